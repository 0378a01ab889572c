//! One JSON line for every decision, hash-chained and signed by the HSM, so that a change shows.
//!
//! The format is published in `docs/audit-format.md`.

mod anchor;
mod file;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod line;
mod queue;
mod quota;
mod resume;
mod room;
pub(crate) mod verify;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use p256::ecdsa::VerifyingKey;
use p256::pkcs8::DecodePublicKey as _;
use sha2::{Digest as _, Sha256};
use strongroom_hsm::{Hsm, HsmError, Register};
use tokio::sync::Notify;

use anchor::Phase;
pub use anchor::{Anchor, NoAnchor};
use file::{Change, LogFile, RoomLevel};
use line::Content;
use queue::{Queue, QueuedLine};
use quota::Quota;
pub use resume::Found;
use resume::{Known, Signer};
pub use verify::{Held, Verification};

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
    /// SHA-256 of the client's certificate, hex; empty where there is none.
    pub certificate: &'a str,
    /// SHA-256 of the certificate of the CA that issued it, hex; empty where the certificate is
    /// not good.
    pub issuer: &'a str,
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
    /// What [`Audit::begin`] answered, of a change; else 0.
    pub intent: u64,
}

/// Signatures are this far apart at least, however many lines come: each costs the token a
/// signature and the disk a sync.
const MIN_CHECKPOINT_GAP: Duration = Duration::from_secs(1);

/// Windows of what is only counted are looked at this often.
const QUOTA_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A change looks again this often whether it may begin while too many others are open.
const OPEN_CHANGES_POLL: Duration = Duration::from_millis(10);

/// How often a request lets others go first before it waits for whoever writes: a write is short, a
/// disk that stalls is not.
const MAX_YIELDS: usize = 4;

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
pub enum AuditError {
    /// The file can't be written; requests are refused until it can.
    #[error("the audit log {path} can't be written: {source}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why. Shared by all whose lines were in the call.
        source: Arc<std::io::Error>,
    },
    /// The disk is nearly full: what is left is kept for what was begun.
    #[error(
        "the disk of the audit log {path} is nearly full, so {what} are refused: make room on it"
    )]
    Room {
        /// Which.
        path: PathBuf,
        /// `changes`, `requests`.
        what: &'static str,
    },
    /// The disk is nearly full, and one client has had its share of what is left.
    #[error(
        "the disk of the audit log {path} is nearly full, and this client has had its share of lines until there is room: make room on it"
    )]
    Share {
        /// Which.
        path: PathBuf,
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
    /// The log is not as the token knows it.
    #[error("the audit log {path} is not the one that the token knows: {problem}")]
    End {
        /// Which.
        path: PathBuf,
        /// What is missing, or too much.
        problem: String,
    },
    /// What the token knows of the log is of another version.
    #[error("what the token knows of the audit log is of no version that this one can read")]
    Register,
    /// The public key given for a verification is none.
    #[error("the key to verify with is not a P-256 public key: {0}")]
    Key(String),
    /// The token did not sign.
    #[error("the audit log's latest lines could not be signed: {0}")]
    Sign(#[from] HsmError),
}

/// The open log.
pub struct Audit {
    /// Taken for moments only, so that nobody who queues waits for the disk.
    queue: Mutex<Queue>,
    log: Mutex<LogFile>,
    level: Arc<AtomicU8>,
    quota: Quota,
    /// Number of the last line that is known to be on the disk. Held by whoever sees to it that
    /// more are.
    durable: tokio::sync::Mutex<u64>,
    /// Held by whoever has the token sign. What the token was told last, and when.
    told: tokio::sync::Mutex<Option<(Anchor, Instant)>>,
    found: Found,
    /// How often the file was found to be changed by somebody else.
    changes: AtomicU64,
    /// The path leads to another file.
    moved: AtomicBool,
    /// The file was to be opened again, and the token could not be told.
    reopen_due: AtomicBool,
    options: AuditOptions,
    hsm: Hsm,
    due: Notify,
}

impl Audit {
    /// Opens or makes the file and continues its chain, if it is as the token knows it. Before a
    /// line is written the token knows that the log is open.
    ///
    /// # Errors
    /// [`AuditError::Write`] if it can't be written, [`AuditError::Continue`] if it is not a log of
    /// this format or another process writes it, [`AuditError::End`] if lines are missing,
    /// changed or added, [`AuditError::Sign`].
    pub async fn open(options: AuditOptions, hsm: Hsm) -> Result<Self, AuditError> {
        let anchor = known(&hsm).await?;
        let held = anchor.as_ref().map_or(Known::Nothing, Known::Anchor);
        Self::start(options, hsm, held, anchor.as_ref()).await
    }

    /// As [`Audit::open`], whatever the token knows. Answers also what was wrong, for the log.
    ///
    /// # Errors
    /// The same, but for [`AuditError::End`].
    pub async fn accept(
        options: AuditOptions,
        hsm: Hsm,
    ) -> Result<(Self, Option<String>), AuditError> {
        let anchor = match known(&hsm).await {
            Err(AuditError::Register) => None,
            known => known?,
        };
        let problem = match &anchor {
            None => None,
            Some(anchor) => {
                let signer = signer(&hsm)?;
                match LogFile::open(&options.path, &signer, Known::Anchor(anchor)) {
                    Err(AuditError::End { problem, .. }) => Some(problem),
                    opened => {
                        opened?;
                        None
                    }
                }
            }
        };
        let known = Known::Accepted(anchor.as_ref());
        let audit = Self::start(options, hsm, known, None).await?;
        Ok((audit, problem))
    }

    async fn start(
        options: AuditOptions,
        hsm: Hsm,
        held: Known<'_>,
        anchor: Option<&Anchor>,
    ) -> Result<Self, AuditError> {
        let (mut log, resumed) = LogFile::open(&options.path, &signer(&hsm)?, held)?;
        // The file was locked only now: whoever had it before may have told the token more.
        if let (Known::Anchor(_), Some(before)) = (held, anchor)
            && known(&hsm).await?.as_ref() != Some(before)
        {
            return Err(AuditError::Continue {
                path: options.path,
                problem: "another process wrote it a moment ago: try again".to_owned(),
            });
        }
        if let Some(anchor) = anchor.filter(|anchor| anchor.phase == Phase::Stopped) {
            // First, or else a crash would leave lines behind the end of a log that was stopped in
            // order. A rotation that was begun stays allowed until the token is told of
            // a line in the new file.
            let open = Anchor {
                phase: Phase::Open,
                ..anchor.clone()
            };
            hsm.write_register(Register::AuditEnd, open.encode())
                .await?;
        }
        let found = log.go_on(resumed)?;
        if log.keeps_no_room() {
            tracing::warn!(
                path = %options.path.display(),
                "the file system keeps no room ready for the audit log: a full disk is met when a line is written"
            );
        }
        Ok(Self {
            queue: Mutex::new(Queue::new()),
            level: log.level(),
            log: Mutex::new(log),
            quota: Quota::default(),
            durable: tokio::sync::Mutex::new(0),
            told: tokio::sync::Mutex::new(None),
            found,
            changes: AtomicU64::new(0),
            moved: AtomicBool::new(false),
            reopen_due: AtomicBool::new(false),
            options,
            hsm,
            due: Notify::new(),
        })
    }

    /// What was found of the lines before this start.
    pub fn found(&self) -> Found {
        self.found
    }

    /// Appends one line; it is in the kernel when this returns. After a failure every later call
    /// fails too until the file can be written again, so that the server refuses requests
    /// rather than serve them unrecorded. The outcome of a change is then kept, and
    /// written first.
    ///
    /// # Errors
    /// [`AuditError::Write`].
    pub fn record(&self, entry: &Entry<'_>) -> Result<(), AuditError> {
        self.put(entry).result().map(drop)
    }

    /// As [`Audit::record`]; the line is on the disk when this returns. Blocks for as long as that
    /// takes.
    ///
    /// # Errors
    /// [`AuditError::Write`].
    pub fn record_durably(&self, entry: &Entry<'_>) -> Result<(), AuditError> {
        self.record(entry)?;
        let handle = lock(&self.log).handle();
        handle
            .sync_data()
            .map_err(|source| self.write_error(Arc::new(source)))
    }

    /// As [`Audit::record`], but together with other requests that are ready, so that their lines
    /// and this one go to the kernel in one call: under load that call is most of what a line
    /// costs.
    ///
    /// # Errors
    /// [`AuditError::Write`], to everyone whose line was in the call.
    pub async fn record_with_others(&self, entry: &Entry<'_>) -> Result<(), AuditError> {
        self.put(entry).written().await.map(drop)
    }

    /// As [`Audit::record_with_others`], of a denial, an error, or what everybody may do who has a
    /// certificate: beyond so many of one identity, or on a disk that is nearly full, it is
    /// only counted, and the count is written later.
    ///
    /// # Errors
    /// [`AuditError::Write`].
    pub async fn record_or_count(&self, entry: &Entry<'_>) -> Result<(), AuditError> {
        if entry.intent == 0 && self.is_counted(entry) {
            return Ok(());
        }
        self.record_with_others(entry).await
    }

    /// As [`Audit::record_or_count`], at once, for what nobody asked for too: what is `ok` has its
    /// line.
    ///
    /// # Errors
    /// [`AuditError::Write`].
    pub fn record_or_count_now(&self, entry: &Entry<'_>) -> Result<(), AuditError> {
        if entry.intent == 0 && entry.outcome != "ok" && self.is_counted(entry) {
            return Ok(());
        }
        self.record(entry)
    }

    fn is_counted(&self, entry: &Entry<'_>) -> bool {
        let limit = if self.at(RoomLevel::Good) {
            quota::MAX_LINES_PER_WINDOW
        } else {
            0
        };
        !self
            .quota
            .takes_or_counts(entry.identity, limit, entry.outcome)
    }

    /// Whether a change that the identity asks for may begin: too many others of its have not
    /// failed a moment ago. Each writes two lines, and neither can be only counted.
    pub fn may_begin(&self, identity: &str) -> bool {
        self.quota.may_begin(identity)
    }

    /// Says that a change is about to begin: that is on the disk when this returns. Answers the
    /// line's number, for the entry of its outcome, which must follow.
    ///
    /// # Errors
    /// [`AuditError::Write`], [`AuditError::Room`]: the change must not be begun.
    pub async fn begin(&self, entry: &Entry<'_>) -> Result<u64, AuditError> {
        let place = loop {
            if let Some(place) = self.intend(entry)? {
                break place;
            }
            tokio::time::sleep(OPEN_CHANGES_POLL).await;
        };
        let intent = self.waiting(place).written().await?;
        if let Err(error) = self.make_durable(intent).await {
            let reason = format!("not begun: {error}");
            let entry = Entry {
                outcome: "error",
                reason: &reason,
                intent,
                ..entry.clone()
            };
            // Kept if it can't be written.
            let _ = self.record(&entry);
            return Err(error);
        }
        Ok(intent)
    }

    /// `None` while as many changes are open as the token can name: of more, a rotation of the file
    /// and a kill would leave no trace of how they ended.
    fn intend(&self, entry: &Entry<'_>) -> Result<Option<QueuedLine>, AuditError> {
        let mut log = lock(&self.log);
        log.check(true)?;
        let mut queue = lock(&self.queue);
        let open = log.open_changes() + queue.intents();
        Ok((open < anchor::MAX_OPEN_INTENTS).then(|| queue.intend(entry)))
    }

    /// What was written up to that line is on the disk when this returns, and the file that it is
    /// in has its name.
    async fn make_durable(&self, line: u64) -> Result<(), AuditError> {
        // Whoever comes meanwhile waits, and most likely finds its line on the disk too.
        let mut durable = self.durable.lock().await;
        let (handle, last) = {
            let log = lock(&self.log);
            self.must_be_there(&log, line)?;
            (log.handle(), log.last())
        };
        if *durable >= line {
            return Ok(());
        }
        sync(handle)
            .await
            .map_err(|source| self.write_error(Arc::new(source)))?;
        self.look_after_file();
        *durable = last;
        self.must_be_there(&lock(&self.log), line)
    }

    /// Whether the file that the line is in was neither cut nor deleted since, whoever noticed it.
    fn must_be_there(&self, log: &LogFile, line: u64) -> Result<(), AuditError> {
        if line <= log.lost() {
            let changed = std::io::Error::other("the file was deleted or cut meanwhile");
            return Err(self.write_error(Arc::new(changed)));
        }
        Ok(())
    }

    fn put(&self, entry: &Entry<'_>) -> Waiting<'_> {
        if entry.intent > 0 && entry.outcome != "ok" && !entry.identity.is_empty() {
            self.quota.change_failed(entry.identity);
        }
        let place = lock(&self.queue).put(entry);
        self.waiting(place)
    }

    fn waiting(&self, place: QueuedLine) -> Waiting<'_> {
        Waiting { audit: self, place }
    }

    /// Returns when it is time to write, if nobody has by then.
    async fn let_others_come(&self, place: &QueuedLine) {
        for _ in 0..MAX_YIELDS {
            tokio::task::yield_now().await;
            // While the lines before are being written, others have their turn.
            if place.outcome.initialized() || self.log.try_lock().is_ok() {
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

    fn at(&self, level: RoomLevel) -> bool {
        self.level.load(Ordering::Relaxed) == level as u8
    }

    /// Whether the log can be written now: asked before a request is carried out that has a line.
    /// On a disk that is nearly full each identity has its share of what is left, until there
    /// is room again.
    ///
    /// # Errors
    /// [`AuditError::Write`], [`AuditError::Room`], [`AuditError::Share`].
    pub fn admit(&self, identity: &str) -> Result<(), AuditError> {
        if self.at(RoomLevel::Good) {
            return Ok(());
        }
        self.check()?;
        if self.at(RoomLevel::Short) && !self.quota.takes_share(identity) {
            let path = self.options.path.clone();
            return Err(AuditError::Share { path });
        }
        Ok(())
    }

    /// Whether the log can be written now, for whoever it may be.
    ///
    /// # Errors
    /// [`AuditError::Write`], [`AuditError::Room`].
    pub fn check(&self) -> Result<(), AuditError> {
        if self.at(RoomLevel::Good) {
            return Ok(());
        }
        lock(&self.log).check(false)
    }

    /// What is not well with the log though it is written, for people.
    pub fn worry(&self) -> Option<&'static str> {
        if self.moved.load(Ordering::Relaxed) {
            return Some(
                "its path leads to another file than the one that is written: send SIGUSR1 after a rotation",
            );
        }
        (!self.at(RoomLevel::Good)).then_some(
            "its disk is nearly full: denials are only counted, changes are refused first",
        )
    }

    /// How often the file was cut, deleted, or written to by somebody else since the start.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Whether the disk is so full that not every line can be written any more.
    pub fn is_short(&self) -> bool {
        !self.at(RoomLevel::Good)
    }

    /// Opens the file again (after logrotate moved it); the chain goes on in the new one. Both ends
    /// are signed, and the token knows of it. While the token can't be told, the old file stays
    /// in use: it is tried again with the next checkpoint.
    ///
    /// # Errors
    /// [`AuditError::Write`], [`AuditError::Continue`], [`AuditError::Sign`]; the old file stays in
    /// use.
    pub async fn reopen(&self) -> Result<(), AuditError> {
        let mut told = self.told.lock().await;
        // What was done to the old file is said in the log: nobody looks at that file again.
        self.settle(&mut self.lock_to_write());
        // First: a start that finds the new file must know that the log may go on in one.
        let allowed = match self.sign(&mut told, Phase::Rotating, true).await {
            // The old file may be on a full disk, and the new one on another.
            Err(AuditError::Write { .. }) => {
                self.tell(&mut told, Phase::Rotating, true, true).await
            }
            signed => signed,
        };
        let no_token = matches!(allowed, Err(AuditError::Sign(_)));
        self.reopen_due.store(no_token, Ordering::Relaxed);
        allowed?;
        let reopened = {
            let mut log = self.lock_to_write();
            self.settle(&mut log);
            log.reopen()
        };
        if let Err(error) = self.sign(&mut told, Phase::Open, true).await {
            tracing::warn!(%error, "the audit log was opened again, and the token does not know yet that this is done");
        }
        if reopened? {
            self.moved.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Signs what is unsigned, syncs it to disk, and tells the token how far the log has come,
    /// which it keeps. Called by a timer and at a start.
    ///
    /// # Errors
    /// [`AuditError::Sign`] if the token can't, [`AuditError::Write`]. The lines stay, and are
    /// signed next time.
    pub async fn checkpoint(&self) -> Result<(), AuditError> {
        let mut told = self.told.lock().await;
        self.sign(&mut told, Phase::Open, false).await
    }

    /// `at_once`: tell the token though it was told a moment ago.
    async fn sign(
        &self,
        told: &mut Option<(Anchor, Instant)>,
        phase: Phase,
        at_once: bool,
    ) -> Result<(), AuditError> {
        let head = self.lock_to_write().head();
        if let Some(head) = head {
            let signature = self.hsm.sign(head.digest()).await?;
            let mut log = self.lock_to_write();
            log.append(&Content::checkpoint(&head, &signature))?;
            log.signed_up_to(&head);
        }
        self.tell(told, phase, at_once, head.is_some()).await
    }

    /// Tells the token how far the log has come, if that is new and it was not told a moment ago,
    /// or if what it was told is not in the file any more. `sync`: also if it is not told.
    async fn tell(
        &self,
        told: &mut Option<(Anchor, Instant)>,
        phase: Phase,
        at_once: bool,
        sync: bool,
    ) -> Result<(), AuditError> {
        // Each costs a token some writes, and what takes its place in hardware wears.
        let often = told
            .as_ref()
            .is_some_and(|(_, when)| when.elapsed() < self.options.checkpoint_interval);
        let (anchor, handle, lost) = {
            let log = lock(&self.log);
            (log.anchor(phase), log.handle(), log.lost())
        };
        let new = told.as_ref().is_none_or(|(last, _)| *last != anchor);
        let gone = told.as_ref().is_some_and(|(last, _)| last.seq <= lost);
        let tell = new && (at_once || gone || !often);
        if sync || tell {
            // Never before the lines are on the disk: the token must not know of more than a power
            // cut leaves.
            self.sync(handle).await?;
        }
        if tell {
            let value = anchor.encode();
            self.hsm.write_register(Register::AuditEnd, value).await?;
            *told = Some((anchor, Instant::now()));
        }
        Ok(())
    }

    /// Signs the log's end, after which nothing is written any more, and tells the token that it is
    /// the end.
    ///
    /// # Errors
    /// As of [`Audit::checkpoint`].
    pub async fn close(&self) -> Result<(), AuditError> {
        let mut told = self.told.lock().await;
        self.write_sums(true);
        let head = {
            let mut log = self.lock_to_write();
            // The token is told that the log ends here: what was done to it comes before that.
            self.settle(&mut log);
            log.close();
            log.head()
        };
        if let Some(head) = head {
            let signature = self.hsm.sign(head.digest()).await?;
            lock(&self.log).append_last(&Content::checkpoint(&head, &signature))?;
        }
        self.sign(&mut told, Phase::Stopped, true).await
    }

    /// Signs after `checkpoint_lines` lines and each `checkpoint_interval`, for ever, and looks
    /// after the file. What fails is tried again.
    pub async fn run_checkpoints(&self) {
        loop {
            let _ =
                tokio::time::timeout(self.options.checkpoint_interval, self.due.notified()).await;
            self.look_after_file();
            let due = self.reopen_due.load(Ordering::Relaxed);
            let signed = if due {
                self.reopen().await
            } else {
                self.checkpoint().await
            };
            if let Err(error) = signed {
                tracing::warn!(%error, "the audit log's latest lines are not signed yet");
                // More lines come in meanwhile, and would ask for a signature at once.
                tokio::time::sleep(self.options.checkpoint_interval).await;
            } else {
                tokio::time::sleep(MIN_CHECKPOINT_GAP).await;
            }
        }
    }

    /// Writes the counts of what was not written one by one, for ever.
    pub async fn run_sums(&self) {
        let mut ticks = tokio::time::interval(QUOTA_CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.at(RoomLevel::Good) {
                self.quota.give_shares_back();
            }
            self.write_sums(false);
        }
    }

    fn write_sums(&self, all: bool) {
        if !lock(&self.log).has_room_for_sums() {
            return;
        }
        for sum in self.quota.ended(all) {
            let mut line = Content::default();
            line.sum_up(&sum.identity, sum.since, &sum.counts);
            if self.lock_to_write().append(&line).is_err() {
                self.quota.give_back(sum);
            }
        }
    }

    /// Whether somebody else did something to the file; if so it is said, and the log goes on as
    /// the documentation says.
    fn look_after_file(&self) -> Option<Change> {
        let mut log = self.lock_to_write();
        self.say_accounted(&mut log);
        let change = log.look();
        self.moved
            .store(change == Some(Change::Moved), Ordering::Relaxed);
        if change == Some(Change::Moved) {
            let path = self.options.path.display();
            tracing::error!(%path, "the audit log's path leads to another file than the one that is written: after a rotation, send SIGUSR1");
            return change;
        }
        self.go_on_after(&mut log, change?);
        change
    }

    /// As [`Audit::look_after_file`], before the file is left: that it was moved away is then as it
    /// should be.
    fn settle(&self, log: &mut LogFile) {
        self.say_accounted(log);
        if let Some(change) = log.look().filter(|change| *change != Change::Moved) {
            self.go_on_after(log, change);
        }
    }

    fn say_accounted(&self, log: &mut LogFile) {
        if let Some(change) = log.take_accounted() {
            self.say_changed(change);
        }
    }

    fn say_changed(&self, change: Change) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        let path = self.options.path.display();
        tracing::error!(%path, ?change, "the audit log's file was changed by somebody else while it was written");
    }

    fn go_on_after(&self, log: &mut LogFile, change: Change) {
        self.say_changed(change);
        if let Err(error) = log.go_on_after(change) {
            tracing::error!(%error, "the audit log does not go on: requests are refused");
        }
        self.due.notify_one();
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

    async fn sync(&self, file: Arc<std::fs::File>) -> Result<(), AuditError> {
        sync(file)
            .await
            .map_err(|source| self.write_error(Arc::new(source)))
    }

    fn write_error(&self, source: Arc<std::io::Error>) -> AuditError {
        AuditError::Write {
            path: self.options.path.clone(),
            source,
        }
    }
}

/// What the token knows of the log; `None` if it knows of none.
async fn known(hsm: &Hsm) -> Result<Option<Anchor>, AuditError> {
    match hsm.read_register(Register::AuditEnd).await? {
        None => Ok(None),
        Some(value) => Anchor::decode(&value).map(Some).ok_or(AuditError::Register),
    }
}

fn signer(hsm: &Hsm) -> Result<Signer, AuditError> {
    let spki = hsm.signing_public_key();
    Ok(Signer {
        fingerprint: Sha256::digest(&spki).into(),
        key: VerifyingKey::from_public_key_der(&spki)
            .map_err(|error| AuditError::Key(error.to_string()))?,
    })
}

/// What was written to the file is on the disk when this returns.
async fn sync(file: Arc<std::fs::File>) -> std::io::Result<()> {
    tokio::task::spawn_blocking(move || match file.sync_data() {
        // A device keeps nothing.
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    })
    .await
    // A task that did not run to its end was stopped with the runtime.
    .unwrap_or_else(|stopped| Err(std::io::Error::other(stopped)))
}

/// A panic while a lock was held left nothing half done: the chain goes on once its lines are
/// written, and no sooner.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line that waits to be written: also if the request that it belongs to is dropped meanwhile.
struct Waiting<'a> {
    audit: &'a Audit,
    place: QueuedLine,
}

impl Waiting<'_> {
    /// Its number once it is written, together with others.
    async fn written(self) -> Result<u64, AuditError> {
        if self.place.is_first() {
            self.audit.let_others_come(&self.place).await;
        } else {
            self.place.outcome.wait().await;
        }
        self.result()
    }

    /// Its number; it is written first if nobody has.
    fn result(self) -> Result<u64, AuditError> {
        self.see_to_it();
        match self.place.outcome.get() {
            Some(Ok(first)) => Ok(first + self.place.at),
            Some(Err(source)) => Err(self.audit.write_error(Arc::clone(source))),
            // Whoever took it panicked before it was written.
            None => {
                let lost = std::io::Error::other("the line was lost");
                Err(self.audit.write_error(Arc::new(lost)))
            }
        }
    }

    fn see_to_it(&self) {
        if !self.place.outcome.initialized() {
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
