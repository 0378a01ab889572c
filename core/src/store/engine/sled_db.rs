//! sled 0.34, in files of a directory. This is the only file that names it.
//!
//! It asserts some of its invariants by panicking when its files are damaged, so each call runs
//! under a guard that turns a panic into an [`EngineError`]. It flushes with `sync_file_range`,
//! which neither writes the file's metadata nor empties the disk's cache, so a write ends with an
//! fsync of our own.
//!
//! Opening a sled database changes it: what follows the first bytes of the log that do not fit is
//! overwritten with zeros. So a store's files are tried as a copy before they are opened
//! (`store/trial.rs`).

use std::cell::Cell;
use std::fs::File;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::{Engine, EngineError, Expected, Pair, Write};
use crate::{files, lock};

/// Pages that sled keeps in memory, bytes: the store is read at start and then rarely.
const CACHE_BYTES: u64 = 1 << 20;

/// Kept ready beyond the log's end for each write, besides twice what is written: sled writes
/// segments of half a megabyte, and begins new ones to make room in old ones.
const RESERVE_BYTES: u64 = 4 << 20;

/// What opening makes of a database that nobody made, and what a database is made of.
pub(in crate::store) const LOG: &str = "db";
/// How the names of files begin that only shorten an opening: the log has all that is in them.
const SNAPSHOT_PREFIX: &str = "snap.";
/// The settings of the log, which are always those that [`Sled::open`] gives.
pub(in crate::store) const SETTINGS: &str = "conf";
/// The directory of values that are too large for the log.
pub(in crate::store) const BLOBS: &str = "blobs";

/// What a file of a database's directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Role {
    /// The database itself.
    Log,
    /// Made again by an opening that does not find it.
    Spare,
    /// The directory of [`BLOBS`].
    Blobs,
    /// Not the database's.
    Other,
}

/// By its name.
pub(in crate::store) fn role(name: &str) -> Role {
    match name {
        LOG => Role::Log,
        BLOBS => Role::Blobs,
        SETTINGS => Role::Spare,
        name if name.starts_with(SNAPSHOT_PREFIX) => Role::Spare,
        _ => Role::Other,
    }
}

/// An open database, locked against other processes.
pub(in crate::store) struct Sled {
    db: sled::Db,
    path: PathBuf,
    /// Held for the length of a write. No other process has the database open.
    writing: Mutex<()>,
}

/// Tries again for a while if another process has the database open: `strongroom check` looks at
/// one for a moment, and must not keep a server from starting.
fn patiently<T>(attempt: impl FnMut() -> Result<T, EngineError>) -> Result<T, EngineError> {
    lock::patiently(attempt, |error| matches!(error, EngineError::Busy))
}

/// Keeps other processes from opening a database.
pub(in crate::store) struct Lock(#[allow(dead_code, reason = "unlocked when it is dropped")] File);

impl Lock {
    /// Waits for a while if another process has the database open.
    ///
    /// # Errors
    /// [`EngineError::Busy`], or the file can't be opened.
    pub(in crate::store) fn take_patiently(folder: &Path) -> Result<Self, EngineError> {
        patiently(|| Self::take(folder))
    }

    /// Does not wait.
    ///
    /// # Errors
    /// As of [`Lock::take_patiently`].
    pub(in crate::store) fn take(folder: &Path) -> Result<Self, EngineError> {
        let path = file(folder);
        let failed =
            |error: &std::io::Error| EngineError::Io(format!("{}: {error}", path.display()));
        // Who may only read can still ask whether somebody else has it: `strongroom-check.service`,
        // say. A network file system wants the right to write.
        let log = files::open_itself(&path, File::options().read(true).write(true))
            .or_else(|error| match error.kind() {
                ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
                    files::open_itself(&path, File::options().read(true))
                }
                _ => Err(error),
            })
            .map_err(|error| failed(&error))?;
        match log.try_lock() {
            Ok(()) => Ok(Self(log)),
            Err(std::fs::TryLockError::WouldBlock) => Err(EngineError::Busy),
            Err(std::fs::TryLockError::Error(error)) => Err(failed(&error)),
        }
    }
}

impl Sled {
    /// Whether a database was ever made in this directory.
    pub(in crate::store) fn exists(folder: &Path) -> bool {
        file(folder).symlink_metadata().is_ok()
    }

    /// Opens the database in `folder`, which must exist, making it if it is not there. One that
    /// another process has open is waited for a while.
    pub(in crate::store) fn open(folder: &Path) -> Result<Self, EngineError> {
        let open = || {
            let db = sled::Config::new()
                .path(folder)
                .cache_capacity(CACHE_BYTES)
                .mode(sled::Mode::LowSpace)
                .flush_every_ms(None)
                .open()?;
            let path = folder.to_owned();
            let writing = Mutex::default();
            Ok(Self { db, path, writing })
        };
        patiently(|| guarded(open))
    }

    fn sync(&self) -> std::io::Result<()> {
        File::open(file(&self.path))?.sync_all()?;
        File::open(&self.path)?.sync_all()
    }
}

impl Engine for Sled {
    fn folder(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        guarded(|| Ok(self.db.get(key)?.map(|value| value.to_vec())))
    }

    fn scan(&self) -> Result<Vec<Pair>, EngineError> {
        guarded(|| {
            let mut all = Vec::new();
            for entry in &*self.db {
                let (key, value) = entry?;
                all.push((key.to_vec(), value.to_vec()));
            }
            Ok(all)
        })
    }

    /// Blocks of the log's file beyond its end. sled takes no change any more once a write has
    /// failed.
    fn keep_room(&self, bytes: u64) -> Result<(), EngineError> {
        let path = file(&self.path);
        let failed = |error: &std::io::Error| {
            EngineError::Io(format!("{} can't be opened: {error}", path.display()))
        };
        let log = File::options()
            .write(true)
            .open(&path)
            .map_err(|error| failed(&error))?;
        let end = log.metadata().map_err(|error| failed(&error))?.len();
        let wanted = bytes.saturating_mul(2).saturating_add(RESERVE_BYTES);
        let (Ok(end), Ok(wanted)) = (i64::try_from(end), i64::try_from(wanted)) else {
            return Err(EngineError::Full);
        };
        loop {
            match fallocate(&log, FallocateFlags::FALLOC_FL_KEEP_SIZE, end, wanted) {
                Err(Errno::EINTR) => {}
                Err(Errno::ENOSPC | Errno::EDQUOT) => return Err(EngineError::Full),
                // Another file system: it says when a write is made.
                Ok(()) | Err(_) => return Ok(()),
            }
        }
    }

    fn write(&self, only_if: Option<&Expected>, writes: Vec<Write>) -> Result<(), EngineError> {
        // It guards nothing that a panic could leave half done.
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((key, value)) = only_if
            && self.get(key)? != *value
        {
            return Err(EngineError::Conflict);
        }
        guarded(|| {
            let mut batch = sled::Batch::default();
            for (key, value) in writes {
                match value {
                    Some(value) => batch.insert(key, value),
                    None => batch.remove(key),
                }
            }
            self.db.apply_batch(batch)?;
            self.db.flush()?;
            Ok(())
        })?;
        self.sync()
            .map_err(|error| EngineError::Io(format!("fsync of {}: {error}", self.path.display())))
    }
}

fn file(folder: &Path) -> PathBuf {
    folder.join(LOG)
}

fn guarded<T>(call: impl FnOnce() -> Result<T, sled::Error>) -> Result<T, EngineError> {
    keep_quiet();
    PANIC_IS_CAUGHT.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(call));
    PANIC_IS_CAUGHT.set(false);
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(describe(&error)),
        Err(panic) => {
            let why = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no reason given");
            Err(EngineError::Damaged(format!(" ({why})")))
        }
    }
}

thread_local! {
    /// A panic in this thread is caught, and told as an error.
    static PANIC_IS_CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Keeps panics that are caught here, and those of sled's own threads, out of the log: they are
/// told as errors.
fn keep_quiet() {
    static HOOK_INSTALLED: Once = Once::new();
    HOOK_INSTALLED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let of_sled = std::thread::current()
                .name()
                .is_some_and(|name| name.starts_with("sled-"));
            if of_sled || PANIC_IS_CAUGHT.try_with(Cell::get).unwrap_or(false) {
                tracing::debug!(%panic, "the database panicked");
            } else {
                before(panic);
            }
        }));
    });
}

fn describe(error: &sled::Error) -> EngineError {
    match error {
        sled::Error::Io(error) if error.to_string().contains("could not acquire lock") => {
            EngineError::Busy
        }
        // Of files that were all there a moment ago: it looked for one that should be.
        sled::Error::Io(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) =>
        {
            EngineError::Damaged(format!(
                " (a part of it, there or in {BLOBS}, is missing: {error})"
            ))
        }
        sled::Error::Io(error) => EngineError::Io(format!("input or output error: {error}")),
        sled::Error::Corruption { .. } => EngineError::Damaged(String::new()),
        other => EngineError::Damaged(format!(" ({other})")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::suite;
    use super::*;

    #[test]
    fn it_keeps_what_an_engine_promises() {
        suite::run(&mut || {
            let folder = tempfile::tempdir().unwrap();
            suite::Kept::new(move || Box::new(Sled::open(folder.path()).unwrap()))
        });
    }
}
