//! The medium that an operator puts in: a disk or stick with a FAT file system labelled STRONGROOM.

use std::fs::File;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::cli::exit::{Exit, Failure};

const MEDIUM_DEVICE: &str = "/dev/disk/by-label/STRONGROOM";
const MOUNT_POINT: &str = "/run/strongroom-medium";

/// Whoever mounts the medium has this file locked: the ceremony, the console and updates, each in
/// a process of its own, use one after the other.
const LOCK_FILE: &str = "/run/strongroom-medium.lock";

/// A mounted medium; written out and unmounted when it is dropped, so that it may be pulled at any
/// other time.
pub(super) struct Medium {
    place: PathBuf,
    /// Given up after the medium is unmounted.
    _lock: File,
}

impl Medium {
    /// Whether one is there.
    pub(super) fn is_there() -> bool {
        Path::new(MEDIUM_DEVICE).exists()
    }

    /// Mounts it, if one is there. Waits for as long as another part of the appliance has it.
    pub(super) fn mount() -> Result<Option<Self>, Failure> {
        if !Self::is_there() {
            return Ok(None);
        }
        let lock = lock(Path::new(LOCK_FILE))?;
        if !Self::is_there() {
            return Ok(None);
        }
        // Left by one that was killed: whoever has the lock is alone.
        while umount2(MOUNT_POINT, MntFlags::MNT_DETACH).is_ok() {}
        std::fs::create_dir_all(MOUNT_POINT)
            .map_err(|error| Failure::file(Path::new(MOUNT_POINT), &error))?;
        mount(
            Some(MEDIUM_DEVICE),
            MOUNT_POINT,
            Some("vfat"),
            // The kernel's own words about another file system would come with each look.
            MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_SILENT,
            Some("umask=0077,iocharset=ascii"),
        )
        .map_err(|error| {
            Failure::new(
                Exit::Failed,
                format!(
                    "the medium can't be mounted: {error}; it must have a FAT file system with the label STRONGROOM"
                ),
            )
        })?;
        Ok(Some(Self {
            place: MOUNT_POINT.into(),
            _lock: lock,
        }))
    }

    /// A file on it.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }
}

/// Waits until nobody else has it locked.
fn lock(path: &Path) -> Result<File, Failure> {
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .and_then(|file| file.lock().map(|()| file))
        .map_err(|error| Failure::file(path, &error))
}

impl Drop for Medium {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.place, MntFlags::empty()) {
            eprintln!("strongroom: the medium can't be unmounted: {error}");
        }
    }
}
