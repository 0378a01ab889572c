//! The database under the store. This is the only file that names sled: another engine is put in by rewriting
//! these few functions.
//!
//! Every function blocks. sled asserts some of its invariants by panicking when its files are damaged, so each call runs
//! under a guard that turns a panic into an [`EngineError`]. sled 0.34 flushes with `sync_file_range`, which neither
//! writes the file's metadata nor empties the disc's cache, so a write ends with an fsync of our own.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Pages that sled keeps in memory, bytes: the store is read at start and then rarely.
const CACHE_BYTES: u64 = 1 << 20;

/// The database failed; the text is for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct EngineError(String);

/// One write of a batch: a key, and its value or `None` to remove it.
pub(super) type Write = (Vec<u8>, Option<Vec<u8>>);

/// An open database, locked against other processes.
pub(super) struct Engine {
    db: sled::Db,
    path: PathBuf,
}

/// A key and its value.
type Pair = (Vec<u8>, Vec<u8>);

impl Engine {
    /// Whether a database was ever made in this folder.
    pub(super) fn exists(folder: &Path) -> bool {
        file(folder).exists()
    }

    /// Opens the database in `folder`, which must exist, making it if it is not there.
    pub(super) fn open(folder: &Path) -> Result<Self, EngineError> {
        let path = folder.to_owned();
        guarded(|| {
            let db = sled::Config::new()
                .path(&path)
                .cache_capacity(CACHE_BYTES)
                .mode(sled::Mode::LowSpace)
                .flush_every_ms(None)
                .open()?;
            Ok(Self { db, path })
        })
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
            .map_err(|error| EngineError(format!("fsync of {}: {error}", self.path.display())))
    }

    fn sync(&self) -> std::io::Result<()> {
        File::open(file(&self.path))?.sync_all()?;
        File::open(&self.path)?.sync_all()
    }
}

fn file(folder: &Path) -> PathBuf {
    folder.join("db")
}

fn guarded<T>(call: impl FnOnce() -> Result<T, sled::Error>) -> Result<T, EngineError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(EngineError(describe(&error))),
        Err(panic) => {
            let why = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no reason given");
            Err(EngineError(format!("the database is damaged ({why})")))
        }
    }
}

fn describe(error: &sled::Error) -> String {
    match error {
        sled::Error::Io(error) if error.to_string().contains("could not acquire lock") => {
            "another process has it open: stop that one first (is the server running?)".to_owned()
        }
        sled::Error::Io(error) => format!("input or output error: {error}"),
        sled::Error::Corruption { .. } => "the database is damaged".to_owned(),
        other => other.to_string(),
    }
}
