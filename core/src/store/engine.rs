//! The database under the store: what the store needs of one, and which there are.
//!
//! Another one is a file beside `sled_db.rs` that `suite.rs` holds to these promises.

use std::path::Path;

#[cfg(test)]
pub(super) mod memory;
pub(super) mod sled_db;
#[cfg(test)]
mod suite;

/// A key and its value.
pub(super) type Pair = (Vec<u8>, Vec<u8>);

/// One write of a batch: a key, and its value or `None` to remove it.
pub(super) type Write = (Vec<u8>, Option<Vec<u8>>);

/// What must be under a key for a batch to be applied; `None`: nothing.
pub(super) type Expected = (Vec<u8>, Option<Vec<u8>>);

/// An open database. Every function blocks.
pub(super) trait Engine: Send + Sync {
    /// Where its files are: root calls it with the rights of their owner. `None`: it has none.
    fn folder(&self) -> Option<&Path>;

    /// The value under `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError>;

    /// Every key and value, in the order of the keys' bytes. Not while a write is under way.
    fn scan(&self) -> Result<Vec<Pair>, EngineError>;

    /// Has the disk keep room for a write of so many bytes, so that it is not met by a full one in
    /// its middle: else [`EngineError::Full`], and nothing was begun. Where the file system keeps
    /// none, nothing is promised.
    fn keep_room(&self, bytes: u64) -> Result<(), EngineError>;

    /// Applies all writes or none, whatever stops it, and returns when they are on the disk; of two
    /// of one key the later counts. Only if what is `only_if` is so, and nobody else writes between
    /// that look and the end: else [`EngineError::Conflict`], and nothing was written.
    fn write(&self, only_if: Option<&Expected>, writes: Vec<Write>) -> Result<(), EngineError>;
}

/// The database failed; the text is for the operator.
#[derive(Debug, thiserror::Error)]
pub(super) enum EngineError {
    /// Another process has it open.
    #[error("another process has it open: stop that one first (is the server running?)")]
    Busy,
    /// What was to be replaced is not what this process wrote or read last.
    #[error("another process wrote to it: stop that one, and start again")]
    Conflict,
    /// There is no room on its disk.
    #[error("the disk is full")]
    Full,
    /// The operating system refused something.
    #[error("{0}")]
    Io(String),
    /// The database's own files contradict themselves.
    #[error("the database is damaged{0}")]
    Damaged(String),
}
