//! One JSON line for every decision, hash-chained and signed by the HSM, so that a change shows.
//!
//! The format is published in `docs/audit-format.md`.

mod file;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod line;
mod queue;
pub(crate) mod verify;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use strongroom_hsm::{Hsm, HsmError};
use tokio::sync::Notify;

use file::LogFile;
use line::Content;
use queue::{Outcome, Queue};
pub use verify::Verification;

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

/// Signatures are this far apart at least, however many lines come: each costs the token a signature and the disc a sync.
const BREATH: Duration = Duration::from_secs(1);

/// How often a request lets others go first before it waits for whoever writes: a write is short, a disc that stalls is not.
const TURNS: usize = 4;

/// Where and how to write.
#[derive(Clone, Debug)]
pub struct AuditOptions {
    /// The file, appended to.
    pub path: PathBuf,
    /// A signed checkpoint after this many lines...
    pub checkpoint_lines: u64,
    /// ...or this long after the first unsigned one.
    pub checkpoint_interval: Duration,
}

/// Why nothing could be written, or what a verification could not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The file can't be written; requests are refused until it can.
    #[error("the audit log {path} can't be written: {source}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why. Shared by all whose lines were in the call.
        source: Arc<std::io::Error>,
    },
    /// A file can't be read.
    #[error("the audit log {path} can't be read: {source}")]
    Read {
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
    /// The public key given for a verification is none.
    #[error("the key to verify with is not a P-256 public key: {0}")]
    Key(String),
    /// The token did not sign.
    #[error("the audit log's latest lines could not be signed: {0}")]
    Sign(#[from] HsmError),
}

/// The open log.
pub struct Audit {
    /// Taken for moments only, so that nobody who queues waits for the disc.
    queue: Mutex<Queue>,
    log: Mutex<LogFile>,
    failing: Arc<AtomicBool>,
    options: AuditOptions,
    hsm: Hsm,
    due: Notify,
}

impl Audit {
    /// Opens or makes the file and continues its chain.
    ///
    /// # Errors
    /// [`AuditError::Write`] if it can't be written, [`AuditError::Continue`] if it is not a log of this format or another process writes it.
    #[allow(
        clippy::unused_async,
        reason = "callers are async, and a log on a network disc may want to be"
    )]
    pub async fn open(options: AuditOptions, hsm: Hsm) -> Result<Self, AuditError> {
        let fingerprint = Sha256::digest(hsm.signing_public_key()).into();
        let log = LogFile::open(&options.path, fingerprint)?;
        Ok(Self {
            queue: Mutex::new(Queue::new()),
            failing: log.failing(),
            log: Mutex::new(log),
            options,
            hsm,
            due: Notify::new(),
        })
    }

    /// Appends one line; it is in the kernel when this returns. After a failure every later call fails too until
    /// the file can be written again, so that the server refuses requests rather than serve them unrecorded.
    ///
    /// # Errors
    /// [`AuditError::Write`].
    pub fn record(&self, entry: &Entry<'_>) -> Result<(), AuditError> {
        self.put(entry)?.0.result()
    }

    /// As [`Audit::record`], but together with other requests that are ready, so that their lines and this one go to the kernel in one call: under
    /// load that call is most of what a line costs.
    ///
    /// # Errors
    /// [`AuditError::Write`], to everyone whose line was in the call.
    pub async fn record_with_others(&self, entry: &Entry<'_>) -> Result<(), AuditError> {
        let (waiting, first) = self.put(entry)?;
        if first {
            self.let_others_come(&waiting.outcome).await;
        } else {
            waiting.outcome.wait().await;
        }
        waiting.result()
    }

    /// Puts a decision among those that wait. Returns also whether it is the first of these, which is to see to it.
    fn put(&self, entry: &Entry<'_>) -> Result<(Waiting<'_>, bool), AuditError> {
        self.check()?;
        let (outcome, first) = lock(&self.queue).put(entry);
        let waiting = Waiting {
            audit: self,
            outcome,
        };
        Ok((waiting, first))
    }

    /// Returns when it is time to write, if nobody has by then.
    async fn let_others_come(&self, outcome: &Outcome) {
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
            // While the lines before are being written, others have their turn.
            if outcome.initialized() || self.log.try_lock().is_ok() {
                return;
            }
        }
    }

    /// Writes what waits.
    fn flush(&self, log: &mut LogFile) {
        let Some(batch) = lock(&self.queue).take() else {
            return;
        };
        let room = batch.write(log);
        lock(&self.queue).give_back(room);
        self.call_for_signature(log);
    }

    /// Whether the log can be written now: asked before an operation is carried out.
    ///
    /// # Errors
    /// [`AuditError::Write`].
    pub fn check(&self) -> Result<(), AuditError> {
        if self.failing.load(Ordering::Relaxed) {
            return lock(&self.log).check();
        }
        Ok(())
    }

    /// Opens the file anew (after logrotate moved it); the chain goes on in the new one.
    ///
    /// # Errors
    /// [`AuditError::Write`]; the old file stays in use.
    pub fn reopen(&self) -> Result<(), AuditError> {
        self.lock_to_write().reopen()
    }

    /// Signs what is unsigned and syncs it to disc. Called by a timer and at stop.
    ///
    /// # Errors
    /// [`AuditError::Sign`] if the token can't, [`AuditError::Write`]. The lines stay, and are signed next time.
    pub async fn checkpoint(&self) -> Result<(), AuditError> {
        let head = self.lock_to_write().head();
        let Some(head) = head else {
            return Ok(());
        };
        let signature = self.hsm.sign(head.digest()).await?;
        let handle = {
            let mut log = self.lock_to_write();
            log.append(&Content::checkpoint(&head, &signature))?;
            log.signed_up_to(&head);
            log.handle()
        };
        let synced = tokio::task::spawn_blocking(move || handle.sync_data()).await;
        match synced {
            Ok(Err(source)) => Err(self.write_error(Arc::new(source))),
            // A task that did not run to its end was stopped with the runtime; the kernel has the lines.
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }

    /// Signs after `checkpoint_lines` lines and each `checkpoint_interval`, for ever. What fails is tried again.
    pub async fn run_checkpoints(&self) {
        loop {
            let _ =
                tokio::time::timeout(self.options.checkpoint_interval, self.due.notified()).await;
            if let Err(error) = self.checkpoint().await {
                tracing::warn!(%error, "the audit log's latest lines are not signed yet");
                // More lines come in meanwhile, and would ask for a signature at once.
                tokio::time::sleep(self.options.checkpoint_interval).await;
            } else {
                tokio::time::sleep(BREATH).await;
            }
        }
    }

    fn call_for_signature(&self, log: &LogFile) {
        if log.unsigned() >= self.options.checkpoint_lines {
            self.due.notify_one();
        }
    }

    /// What waits has been written when this returns: lines stand in the order of the decisions.
    fn lock_to_write(&self) -> MutexGuard<'_, LogFile> {
        let mut log = lock(&self.log);
        self.flush(&mut log);
        log
    }

    fn write_error(&self, source: Arc<std::io::Error>) -> AuditError {
        AuditError::Write {
            path: self.options.path.clone(),
            source,
        }
    }
}

/// A panic while a lock was held left nothing half done: the chain goes on once its lines are written, and no sooner.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A decision that waits to be written: also if the request that it belongs to is dropped meanwhile.
struct Waiting<'a> {
    audit: &'a Audit,
    outcome: Outcome,
}

impl Waiting<'_> {
    /// What became of it; it is written first if nobody has.
    fn result(self) -> Result<(), AuditError> {
        self.see_to_it();
        match self.outcome.get() {
            Some(Ok(())) => Ok(()),
            Some(Err(source)) => Err(self.audit.write_error(Arc::clone(source))),
            // Whoever took it panicked before it was written.
            None => {
                let lost = std::io::Error::other("the line was lost");
                Err(self.audit.write_error(Arc::new(lost)))
            }
        }
    }

    fn see_to_it(&self) {
        if !self.outcome.initialized() {
            drop(self.audit.lock_to_write());
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.see_to_it();
    }
}

#[cfg(test)]
pub(crate) mod tests;
