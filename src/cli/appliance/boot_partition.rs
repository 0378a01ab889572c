//! The boot loader's partition: the one of the disk that the root was verified from, if the machine
//! was started from it.
//!
//! Versions on trial are counted there and updates are put there. A label can be on any disk.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use uuid::Uuid;

use super::root_disk;
use crate::cli::exit::{Exit, Failure};

/// The partition's label.
const PARTITION_LABEL: &str = "strongroom-esp";

/// Leads to it: `efi.mount` mounts what is here.
const PARTITION_LINK: &str = "/run/strongroom-boot-partition";

/// What systemd-boot says it was started from: attributes, then a UUID in UTF-16. Boot Loader
/// Interface.
const LOADER_PARTITION_VARIABLE: &str =
    "/sys/firmware/efi/efivars/LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

pub(super) fn find() -> Result<(), Failure> {
    let partition = root_disk::partition(PARTITION_LABEL)
        .map_err(|error| not_mounted(&error.to_string()))?
        .ok_or_else(|| {
            not_mounted(&format!(
                "the root's disk has no partition {PARTITION_LABEL}"
            ))
        })?;
    let said = fs::read(LOADER_PARTITION_VARIABLE)
        .map_err(|error| not_mounted(&format!("{LOADER_PARTITION_VARIABLE}: {error}")))?;
    if identity(&said) != Some(partition.identity) {
        return Err(
            not_mounted("the machine was started from another disk than the root is on")
                .next("take the other disk out, or have the firmware start from the root's disk"),
        );
    }
    let link = Path::new(PARTITION_LINK);
    symlink(&partition.device, link).map_err(|error| Failure::file(link, &error))
}

fn not_mounted(why: &str) -> Failure {
    Failure::new(
        Exit::Failed,
        format!("there are no updates, since the boot partition is not mounted: {why}"),
    )
}

fn identity(variable: &[u8]) -> Option<Uuid> {
    let units: Vec<u16> = variable
        .get(4..)?
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
        .take_while(|unit| *unit != 0)
        .collect();
    Uuid::try_parse(&String::from_utf16(&units).ok()?).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_variable_of_the_boot_loader_names_a_partition() {
        const TEXT: &str = "03020100-0504-0706-0809-0A0B0C0D0E0F";
        let variable = |text: &str| -> Vec<u8> {
            let units = text.encode_utf16().flat_map(u16::to_le_bytes);
            [6, 0, 0, 0].into_iter().chain(units).collect()
        };
        let known = Uuid::from_bytes_le(std::array::from_fn(|at| u8::try_from(at).unwrap()));
        assert_eq!(identity(&variable(&format!("{TEXT}\0"))), Some(known));
        assert_eq!(identity(&variable(TEXT)), Some(known));
        for other in ["", "\0", &TEXT[1..], "strongroom-esp"] {
            assert_eq!(identity(&variable(other)), None, "{other}");
        }
        assert_eq!(identity(&[6, 0]), None);
    }
}
