//! The versions that the boot loader knows, by the names of their kernel images:
//! `strongroom_VERSION.efi`, with `+LEFT-DONE` while on trial.

use std::fs;
use std::path::Path;

use crate::cli::exit::Failure;

const KERNELS_DIRECTORY: &str = "/efi/EFI/Linux";

#[derive(Debug)]
pub(super) struct Installed {
    pub(super) version: String,
    /// Starts that are left on trial; `None` once it was healthy.
    left: Option<u32>,
}

pub(super) fn installed() -> Result<Vec<Installed>, Failure> {
    let folder = Path::new(KERNELS_DIRECTORY);
    fs::read_dir(folder)
        .and_then(|entries| {
            entries
                .map(|entry| Ok(Installed::new(&entry?.file_name().to_string_lossy())))
                .filter_map(Result::transpose)
                .collect()
        })
        .map_err(|error| Failure::file(folder, &error))
}

impl Installed {
    pub(super) fn new(name: &str) -> Option<Self> {
        let name = name.strip_prefix("strongroom_")?.strip_suffix(".efi")?;
        let Some((version, counter)) = name.rsplit_once('+') else {
            return Some(Self {
                version: name.to_owned(),
                left: None,
            });
        };
        let left = counter.split('-').next()?.parse().ok()?;
        Some(Self {
            version: version.to_owned(),
            left: Some(left),
        })
    }

    /// Its starts on trial are used up.
    pub(super) fn given_up(&self) -> bool {
        self.left == Some(0)
    }

    pub(super) fn on_trial(&self) -> bool {
        self.left.is_some()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_names_of_kernel_images_tell_the_trial() {
        for (name, version, on_trial, given_up) in [
            ("strongroom_0.1.0.efi", "0.1.0", false, false),
            ("strongroom_0.2.0+3.efi", "0.2.0", true, false),
            ("strongroom_0.2.0+2-1.efi", "0.2.0", true, false),
            ("strongroom_0.2.0+0-3.efi", "0.2.0", true, true),
        ] {
            let slot = Installed::new(name).unwrap();
            assert_eq!(
                (slot.version.as_str(), slot.on_trial(), slot.given_up()),
                (version, on_trial, given_up),
                "{name}"
            );
        }
        assert!(Installed::new("linux.efi").is_none());
    }
}
