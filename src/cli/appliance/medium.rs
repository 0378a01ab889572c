//! The medium that an operator puts in: a disc or stick with a FAT file system labelled STRONGROOM.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::cli::exit::{Exit, Failure};

const DEVICE: &str = "/dev/disk/by-label/STRONGROOM";
const PLACE: &str = "/run/strongroom-medium";

/// A mounted medium; written out and unmounted when it is dropped, so that it may be pulled at any
/// other time.
pub(super) struct Medium(PathBuf);

impl Medium {
    /// Whether one is there.
    pub(super) fn is_there() -> bool {
        Path::new(DEVICE).exists()
    }

    /// Mounts it, if one is there.
    pub(super) fn mount() -> Result<Option<Self>, Failure> {
        if !Self::is_there() {
            return Ok(None);
        }
        std::fs::create_dir_all(PLACE).map_err(|error| Failure::file(Path::new(PLACE), &error))?;
        mount(
            Some(DEVICE),
            PLACE,
            Some("vfat"),
            MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
            Some("umask=0077,iocharset=ascii"),
        )
        .map_err(|error| {
            Failure::new(
                Exit::Failed,
                format!("the medium can't be mounted: {error}"),
            )
            .next("it must have a FAT file system with the label STRONGROOM")
        })?;
        Ok(Some(Self(PLACE.into())))
    }

    /// A file on it.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::empty()) {
            eprintln!("strongroom: the medium can't be unmounted: {error}");
        }
    }
}
