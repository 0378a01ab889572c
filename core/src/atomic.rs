//! Files that are there whole or not at all, whenever the process is killed, the disk fills up or
//! the power goes.
//!
//! The new content goes to `NAME.new` beside the file, which is private to this writer: it is made
//! again, so that nobody has it open, and locked. It is synced, and only then gets the file's name,
//! in one step; the directory is synced last. What fails on the way leaves the old file, and
//! nothing beside it. What a killed writer left there is taken away by the next one.

use std::ffi::OsString;
use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile};

use crate::{files, lock};

/// What is behind the name while the file is written.
const TEMPORARY_SUFFIX: &str = ".new";

/// Whose the new file is, and who may do what with it; settled before it has any content.
#[derive(Clone, Copy, Debug)]
pub enum Access {
    /// This process's user's, with this mode less the umask.
    Mode(u32),
    /// Owner, group and mode of the file that is replaced. If there is none: this user's, 0600.
    AsBefore,
}

/// Puts `bytes` in the place of a file, which need not be there. A link is replaced, not followed.
/// Durable when it returns. Blocks.
///
/// # Errors
/// [`ErrorKind::WouldBlock`] if another process is writing the same file;
/// [`ErrorKind::PermissionDenied`] if the owner can't be kept; any other of the file system's. The
/// old file is in place after all of these but one: that the directory can't be synced.
pub fn replace(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let mut new = match access {
        Access::Mode(mode) => begin(path, mode)?,
        Access::AsBefore => {
            let new = begin(path, 0o600)?;
            liken(new.as_file(), path)?;
            new
        }
    };
    fill(&mut new, bytes)?;
    new.persist(path).map_err(|failed| failed.error)?;
    sync_folder(path)
}

/// As [`replace`] with a mode, for a file that must not be there yet.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`]; else as of [`replace`].
pub fn create(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let there = || io::Error::from(ErrorKind::AlreadyExists);
    // Asked again when it counts, by what gives the name.
    if fs::symlink_metadata(path).is_ok() {
        return Err(there());
    }
    let mut new = begin(path, mode)?;
    fill(&mut new, bytes)?;
    match new.persist_noclobber(path) {
        Ok(_) => {}
        Err(failed) if failed.error.kind() == ErrorKind::AlreadyExists => return Err(there()),
        // The file system can neither rename without replacing nor link. An empty file holds the
        // place until it is replaced.
        Err(failed) => {
            File::create_new(path)?;
            let renamed = failed.file.persist(path);
            renamed.map_err(|failed| {
                let _ = fs::remove_file(path);
                failed.error
            })?;
        }
    }
    sync_folder(path)
}

/// Makes the entry of a file in its directory durable. Blocks.
///
/// # Errors
/// The directory can't be opened or synced.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    match File::open(folder(path))?.sync_all() {
        // A file system without anything to write back: devices, a read-only root with a link to
        // the state.
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

/// That of a file, as a path that can be opened.
pub fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

fn aside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(TEMPORARY_SUFFIX);
    name.into()
}

/// The empty file beside it. It is removed when it is dropped without having got its name.
fn begin(path: &Path, mode: u32) -> io::Result<NamedTempFile> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "it names no file"))?;
    loop {
        let made = Builder::new()
            .prefix(name)
            .suffix(TEMPORARY_SUFFIX)
            .rand_bytes(0)
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(folder(path));
        match made {
            Ok(new) if hold(new.as_file(), new.path())? => return Ok(new),
            // Another writer took it for one that was left behind, before it was locked.
            Ok(new) => drop(new.keep()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => clear(&aside(path))?,
            Err(error) => return Err(error),
        }
    }
}

/// Whether this process alone writes what is at `path`.
fn hold(file: &File, path: &Path) -> io::Result<bool> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Ok(false),
        // A file system without locks: as good as it gets there.
        Ok(()) | Err(TryLockError::Error(_)) => is_at(file, path),
    }
}

/// Takes away what a writer left that is no more.
fn clear(aside: &Path) -> io::Result<()> {
    let at =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", aside.display()));
    let left = match files::open_itself(aside, File::options().read(true)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(at)?,
    };
    if let Err(TryLockError::WouldBlock) = lock::take(&left) {
        let busy = "another process is writing this file now: try again when it is done";
        return Err(io::Error::new(ErrorKind::WouldBlock, busy));
    }
    if is_at(&left, aside)? {
        fs::remove_file(aside).map_err(at)?;
    }
    Ok(())
}

/// Whether a path still leads to the open file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(seen) => Ok((seen.dev(), seen.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives the new file the owner, group and mode of the old one, if there is one.
fn liken(new: &File, path: &Path) -> io::Result<()> {
    let old = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        seen => seen?,
    };
    let own = new.metadata()?;
    if (own.uid(), own.gid()) != (old.uid(), old.gid()) {
        fchown(new, Some(old.uid()), Some(old.gid())).map_err(|error| {
            let why = format!(
                "it belongs to user {} and group {}, and would not any more ({error}): do this as that user or as root",
                old.uid(),
                old.gid()
            );
            io::Error::new(error.kind(), why)
        })?;
    }
    new.set_permissions(old.permissions())
}

fn fill(new: &mut NamedTempFile, bytes: &[u8]) -> io::Result<()> {
    // Not through the temporary file's own functions: they would name it in each error.
    let file = new.as_file_mut();
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests;
