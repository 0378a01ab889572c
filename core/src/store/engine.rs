//! The database under the store. This is the only file that names sled: another engine is put in by
//! rewriting these few functions.
//!
//! Every function blocks. sled asserts some of its invariants by panicking when its files are
//! damaged, so each call runs under a guard that turns a panic into an [`EngineError`]. sled 0.34
//! flushes with `sync_file_range`, which neither writes the file's metadata nor empties the disc's
//! cache, so a write ends with an fsync of our own.
//!
//! Opening a sled database changes it: what follows the first bytes of the log that do not fit is
//! overwritten with zeros. So a store's files are tried as a copy before they are opened
//! (`trial.rs`).

use std::cell::Cell;
use std::fs::File;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;

use crate::{files, lock};

/// Pages that sled keeps in memory, bytes: the store is read at start and then rarely.
const CACHE_BYTES: u64 = 1 << 20;

/// What opening makes of a database that nobody made, and what a database is made of.
pub(super) const LOG: &str = "db";
/// How the names of files begin that only shorten an opening: the log has all that is in them.
const SNAPSHOT: &str = "snap.";
/// The settings of the log, which are always those that [`Engine::open`] gives.
pub(super) const SETTINGS: &str = "conf";
/// The folder of values that are too large for the log.
pub(super) const BLOBS: &str = "blobs";

/// What a file of a database's folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The database itself.
    Log,
    /// Made anew by an opening that does not find it.
    Spare,
    /// The folder of [`BLOBS`].
    Blobs,
    /// Not the database's.
    Other,
}

/// By its name.
pub(super) fn role(name: &str) -> Role {
    match name {
        LOG => Role::Log,
        BLOBS => Role::Blobs,
        SETTINGS => Role::Spare,
        name if name.starts_with(SNAPSHOT) => Role::Spare,
        _ => Role::Other,
    }
}

/// The database failed; the text is for the operator.
#[derive(Debug, thiserror::Error)]
pub(super) enum EngineError {
    /// Another process has it open.
    #[error("another process has it open: stop that one first (is the server running?)")]
    Busy,
    /// The operating system refused something.
    #[error("{0}")]
    Io(String),
    /// The database's own files contradict themselves.
    #[error("the database is damaged{0}")]
    Damaged(String),
}

/// One write of a batch: a key, and its value or `None` to remove it.
pub(super) type Write = (Vec<u8>, Option<Vec<u8>>);

/// An open database, locked against other processes.
pub(super) struct Engine {
    db: sled::Db,
    path: PathBuf,
}

/// A key and its value.
pub(super) type Pair = (Vec<u8>, Vec<u8>);

/// Tries again for a while if another process has the database open: `strongroom check` looks at
/// one for a moment, and must not keep a server from starting.
fn patiently<T>(attempt: impl FnMut() -> Result<T, EngineError>) -> Result<T, EngineError> {
    lock::patiently(attempt, |error| matches!(error, EngineError::Busy))
}

/// Keeps other processes from opening a database.
pub(super) struct Lock(#[allow(dead_code, reason = "unlocked when it is dropped")] File);

impl Lock {
    /// Waits for a while if another process has the database open.
    ///
    /// # Errors
    /// [`EngineError::Busy`], or the file can't be opened.
    pub(super) fn take_patiently(folder: &Path) -> Result<Self, EngineError> {
        patiently(|| Self::take(folder))
    }

    /// Does not wait.
    ///
    /// # Errors
    /// As of [`Lock::take_patiently`].
    pub(super) fn take(folder: &Path) -> Result<Self, EngineError> {
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

impl Engine {
    /// Whether a database was ever made in this folder.
    pub(super) fn exists(folder: &Path) -> bool {
        file(folder).symlink_metadata().is_ok()
    }

    /// Opens the database in `folder`, which must exist, making it if it is not there. One that
    /// another process has open is waited for a while.
    pub(super) fn open(folder: &Path) -> Result<Self, EngineError> {
        let open = || {
            let db = sled::Config::new()
                .path(folder)
                .cache_capacity(CACHE_BYTES)
                .mode(sled::Mode::LowSpace)
                .flush_every_ms(None)
                .open()?;
            let path = folder.to_owned();
            Ok(Self { db, path })
        };
        patiently(|| guarded(open))
    }

    /// Its folder.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The value under `key`.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        guarded(|| Ok(self.db.get(key)?.map(|value| value.to_vec())))
    }

    /// Every key and value, in the order of the keys.
    pub(super) fn scan(&self) -> Result<Vec<Pair>, EngineError> {
        guarded(|| {
            let mut all = Vec::new();
            for entry in &*self.db {
                let (key, value) = entry?;
                all.push((key.to_vec(), value.to_vec()));
            }
            Ok(all)
        })
    }

    /// Applies all writes or none, and returns when they are on the disc.
    pub(super) fn write(&self, writes: Vec<Write>) -> Result<(), EngineError> {
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

    fn sync(&self) -> std::io::Result<()> {
        File::open(file(&self.path))?.sync_all()?;
        File::open(&self.path)?.sync_all()
    }
}

fn file(folder: &Path) -> PathBuf {
    folder.join(LOG)
}

fn guarded<T>(call: impl FnOnce() -> Result<T, sled::Error>) -> Result<T, EngineError> {
    keep_quiet();
    GUARDED.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(false);
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
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Keeps panics that are caught here, and those of sled's own threads, out of the log: they are
/// told as errors.
fn keep_quiet() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let of_sled = std::thread::current()
                .name()
                .is_some_and(|name| name.starts_with("sled-"));
            if of_sled || GUARDED.try_with(Cell::get).unwrap_or(false) {
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
