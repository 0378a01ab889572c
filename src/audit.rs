//! One JSON line for every decision, hash-chained and signed by the HSM, so that a change shows.

use std::path::{Path, PathBuf};
use strongroom_hsm::Hsm;

/// One decision: who asked what of which key, and what came of it. Never plaintext.
#[derive(Clone, Debug, Default)]
pub struct Entry<'a> {
    /// The request's id, as in the answer.
    pub request_id: &'a str,
    /// The identity, empty where none was established.
    pub identity: &'a str,
    /// The token's id, empty where none was used.
    pub token_id: &'a str,
    /// The client's address and port.
    pub remote: &'a str,
    /// The operation, as in the policy file; `cli:accept-rollback` and the like for offline acts.
    pub operation: &'a str,
    /// The key's name, empty where none is concerned.
    pub key: &'a str,
    /// The key version used, 0 where none was.
    pub key_version: u32,
    /// Items in the batch, 0 where it was none.
    pub batch: usize,
    /// Items of the batch that failed.
    pub batch_failed: usize,
    /// `ok`, `denied`, `error`.
    pub outcome: &'a str,
    /// The HTTP status, 0 for offline acts.
    pub status: u16,
    /// Why it was denied or failed; never from the client's plaintext.
    pub reason: &'a str,
}

/// Where and how to write.
#[derive(Clone, Debug)]
pub struct AuditOptions {
    /// The file, appended to.
    pub path: PathBuf,
    /// A signed checkpoint after this many lines...
    pub checkpoint_lines: u64,
    /// ...or this long after the first unsigned one.
    pub checkpoint_interval: std::time::Duration,
}

/// The open log.
pub struct Audit {}

/// Why nothing could be written, or what a verification found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The file can't be written; requests are refused until it can.
    #[error("the audit log {path} can't be written: {source}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file's end is not a line of ours.
    #[error("the audit log {path} can't be continued: {problem}")]
    Continue {
        /// Which.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
}

/// What `strongroom audit verify` found.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Verification {
    /// Lines read.
    pub lines: u64,
    /// Signed checkpoints that are right.
    pub checkpoints: u64,
    /// Lines after the last signed checkpoint.
    pub unsigned_tail: u64,
    /// Every problem, with file and line.
    pub problems: Vec<String>,
}

#[allow(unused_variables, clippy::todo, clippy::unused_async)]
impl Audit {
    /// Opens or makes the file and continues its chain.
    pub async fn open(options: AuditOptions, hsm: Hsm) -> Result<Self, AuditError> {
        todo!()
    }

    /// Appends one line; it is in the kernel when this returns. After a failure every later call fails too until
    /// the file can be written again, so that the server refuses requests rather than serve them unrecorded.
    pub fn record(&self, entry: &Entry<'_>) -> Result<(), AuditError> {
        todo!()
    }

    /// Whether the log can be written now: asked before an operation is carried out.
    pub fn check(&self) -> Result<(), AuditError> {
        todo!()
    }

    /// Opens the file anew (after logrotate moved it); the chain goes on in the new one.
    pub fn reopen(&self) -> Result<(), AuditError> {
        todo!()
    }

    /// Signs what is unsigned and syncs it to disc. Called by a timer and at stop.
    pub async fn checkpoint(&self) -> Result<(), AuditError> {
        todo!()
    }

    /// Checks files, oldest first, against the signing key (SubjectPublicKeyInfo, DER).
    pub fn verify(files: &[&Path], signing_key: &[u8]) -> Result<Verification, AuditError> {
        todo!()
    }
}
