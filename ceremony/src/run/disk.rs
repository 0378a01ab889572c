//! Files that are there whole or not at all, whenever the power goes.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use strongroom_core::atomic::{self, Access, sync_folder};

use super::RunError;

/// The whole of it or nothing, with this mode; one that is there is replaced.
pub(super) fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), RunError> {
    atomic::replace(path, bytes, Access::Mode(mode)).map_err(|source| RunError::file(path, source))
}

/// The directory and those above it, private; no error if they are there.
pub(super) fn make_folder(path: &Path) -> Result<(), RunError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .and_then(|()| sync_folder(path))
        .map_err(|source| RunError::file(path, source))
}

/// Takes a file away; no error if there is none.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
