//! The file: one writer, one `write(2)` for the lines that are given together, and what happens
//! when that fails.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use super::anchor::{Anchor, Phase};
use super::line::{Chain, Content, Head, MAX_LINE_BYTES};
use super::resume::{self, End, Found, Known, OpenIntent, Refusal, Signer};
use super::room::{self, Room};
use super::{AuditError, Entry};
use crate::hex;
use crate::owner::acting;
use crate::{atomic, lock};

/// After a failure the file is tried again at most this often.
const MIN_RETRY_GAP: Duration = Duration::from_millis(100);

/// An outcome that could not be written says so when it can.
const WITHHELD_REASON: &str =
    "the answer was withheld, since this line could not be written at once";

/// How much may be written, as others see it without having the file to themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum RoomLevel {
    /// All.
    Good = 0,
    /// The disk is nearly full: denials and errors are counted, and each identity has its share.
    Short,
    /// Nothing: what was written last could not be, or there is too little room left.
    Failing,
}

/// The open file and the chain's end.
pub(super) struct LogFile {
    path: PathBuf,
    file: Arc<File>,
    /// Bytes up to the end of the last whole line.
    length: u64,
    /// Where the chain's last line ends.
    line_end: u64,
    /// The last line when the file was looked at.
    seen: Option<Mark>,
    /// Number of the first line that was written to this file, as far as is known.
    first: u64,
    /// Number of the last line that may be lost, since the file that it was in was cut or deleted;
    /// 0 if none is.
    lost: u64,
    chain: Chain,
    log_id: [u8; 16],
    signing_key: [u8; 32],
    /// Lines since the last one that a signature covers, checkpoints not counted.
    unsigned: u64,
    /// Changes that were begun and have no outcome here yet.
    open: BTreeSet<u64>,
    /// Outcomes that could not be written.
    late: Vec<DelayedOutcome>,
    room: Room,
    /// When a write failed, and with what.
    failed: Option<(Instant, Arc<io::Error>)>,
    level: Arc<AtomicU8>,
    /// What somebody else had written, and was accounted for before a line came behind it.
    accounted: Option<Change>,
    /// Nothing more may be written.
    closed: bool,
    /// What is being written.
    buffer: Vec<u8>,
}

/// The outcome of a change, kept until it can be written.
#[derive(Clone, Debug)]
pub(super) struct DelayedOutcome {
    intent: u64,
    request_id: String,
    identity: String,
    token_id: String,
    remote: String,
    certificate: String,
    issuer: String,
    operation: String,
    key: String,
    key_version: u32,
    batch: usize,
    batch_failed: usize,
    outcome: String,
    status: u16,
    reason: String,
}

impl DelayedOutcome {
    pub(super) fn new(entry: &Entry<'_>) -> Self {
        // No more than a line takes of it.
        let text = |text: &str| text.chars().take(MAX_LINE_BYTES / 4).collect();
        Self {
            intent: entry.intent,
            request_id: text(entry.request_id),
            identity: text(entry.identity),
            token_id: text(entry.token_id),
            remote: text(entry.remote),
            certificate: text(entry.certificate),
            issuer: text(entry.issuer),
            operation: text(entry.operation),
            key: text(entry.key),
            key_version: entry.key_version,
            batch: entry.batch,
            batch_failed: entry.batch_failed,
            outcome: text(entry.outcome),
            status: entry.status,
            reason: text(entry.reason),
        }
    }

    pub(super) fn intent(&self) -> u64 {
        self.intent
    }

    fn say(&self, content: &mut Content) {
        let reason = if self.reason.is_empty() {
            WITHHELD_REASON.to_owned()
        } else {
            format!("{WITHHELD_REASON}: {}", self.reason)
        };
        content.decide(&Entry {
            request_id: &self.request_id,
            identity: &self.identity,
            token_id: &self.token_id,
            remote: &self.remote,
            certificate: &self.certificate,
            issuer: &self.issuer,
            operation: &self.operation,
            key: &self.key,
            key_version: self.key_version,
            batch: self.batch,
            batch_failed: self.batch_failed,
            outcome: &self.outcome,
            // What the client was answered.
            status: if self.status == 0 { 0 } else { 503 },
            reason: &reason,
            intent: self.intent,
        });
    }
}

/// Where a line ends in the file, and its hash.
#[derive(Clone, Copy)]
struct Mark {
    offset: u64,
    hash: [u8; 32],
}

/// What somebody else did to the file while it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The path leads elsewhere: lines go on into the file that was moved away.
    Moved,
    /// It has no name any more: what was in it is gone.
    Deleted,
    /// It is shorter than what was written.
    Truncated {
        /// Bytes.
        from: u64,
        /// Bytes.
        to: u64,
    },
    /// Somebody else has written behind what was written.
    Appended {
        /// Bytes.
        bytes: u64,
    },
    /// It is at least as long as what was written, and that is not in it any more.
    Overwritten {
        /// Bytes.
        to: u64,
    },
}

impl LogFile {
    /// Opens or makes the file. What is there already is held against what is `known`. Nothing is
    /// written to a log that is there: see [`LogFile::go_on`].
    pub(super) fn open(
        path: &Path,
        signer: &Signer,
        known: Known<'_>,
    ) -> Result<(Self, LogEnd), AuditError> {
        if let Known::Anchor(anchor) = known
            && anchor.phase != Phase::Rotating
            && !path.exists()
        {
            return Err(AuditError::End {
                path: path.to_owned(),
                problem: format!(
                    "there is no such file, but the token knows of line {} of the log {}",
                    anchor.seq,
                    hex::encode(&anchor.log_id)
                ),
            });
        }
        let file = Arc::new(open_file(path, lock::take)?);
        let end = resume::find(path, signer, known).map_err(|refusal| match refusal {
            Refusal::Read(source) => AuditError::Read {
                path: path.to_owned(),
                source,
            },
            Refusal::Foreign(problem) => foreign(path, &problem),
            Refusal::End(problem) => AuditError::End {
                path: path.to_owned(),
                problem,
            },
        })?;
        let mut log = Self {
            path: path.to_owned(),
            file,
            length: 0,
            line_end: 0,
            seen: None,
            first: 1,
            lost: 0,
            chain: Chain::START,
            log_id: [0; 16],
            signing_key: signer.fingerprint,
            unsigned: 0,
            open: BTreeSet::new(),
            late: Vec::new(),
            room: Room::new(),
            failed: None,
            level: Arc::default(),
            accounted: None,
            closed: false,
            buffer: Vec::new(),
        };
        let Some(end) = end else {
            log.begin()?;
            return Ok((log, LogEnd::default()));
        };
        log.log_id = end.log_id;
        log.chain = end.chain;
        log.length = end.length;
        log.line_end = end.length;
        log.first = end.chain.seq;
        log.unsigned = end.found.unsigned;
        Ok((log, LogEnd(Some(end))))
    }

    /// The first line of a log.
    fn begin(&mut self) -> Result<(), AuditError> {
        getrandom::fill(&mut self.log_id)
            .map_err(|error| self.write_error(io::Error::other(error.to_string())))?;
        self.file
            .set_len(0)
            .or_else(|error| {
                // A device has no length.
                (error.kind() == io::ErrorKind::InvalidInput)
                    .then_some(())
                    .ok_or(error)
            })
            .map_err(|source| self.write_error(source))?;
        let header = Content::header(&self.log_id, &self.signing_key);
        self.append(&header)?;
        // A log that the token is told of must not be lost with its directory's entry.
        self.file
            .sync_data()
            .and_then(|()| sync_folder(&self.path))
            .map_err(|source| self.write_error(source))
    }

    /// Accounts for what a power cut or a kill left at the end, and for the changes whose outcome
    /// it took.
    pub(super) fn go_on(&mut self, resumed: LogEnd) -> Result<Found, AuditError> {
        let Some(end) = resumed.0 else {
            self.room.refill(&self.file, self.length);
            return Ok(Found::default());
        };
        if end.unended {
            self.write_raw(b"\n")?;
            self.line_end = self.length;
        }
        if let Some(torn) = end.torn {
            if torn.lacks_newline {
                self.write_raw(b"\n")?;
            }
            self.length = self
                .file
                .metadata()
                .map_err(|source| self.write_error(source))?
                .len();
            self.append(&Content::recovered(torn.bytes, &torn.sha256))?;
        }
        if end.anew {
            // The beginning of a header, if anything.
            self.file
                .set_len(0)
                .map_err(|source| self.write_error(source))?;
        }
        if end.headless {
            self.append(&Content::header(&self.log_id, &self.signing_key))?;
        }
        if end.anew {
            self.file
                .sync_data()
                .and_then(|()| sync_folder(&self.path))
                .map_err(|source| self.write_error(source))?;
            self.say_changed(&format!(
                "the program ended while the log was about to go on in this file: it goes on behind line {}, which the token knew; lines behind it that stand in the file before are not of the chain any more",
                end.found.anchor
            ))?;
        }
        if end.headless && !end.anew {
            let first = self.last();
            self.say_changed(&format!(
                "the file does not begin with a header: lines before line {first} are in a copy, or lost"
            ))?;
        }
        for (intent, what) in &end.open {
            let mut line = Content::default();
            line.decide(&unknown(*intent, what));
            self.append(&line)?;
        }
        self.room.refill(&self.file, self.length);
        Ok(end.found)
    }

    fn write_raw(&mut self, bytes: &[u8]) -> Result<(), AuditError> {
        (&*self.file)
            .write_all(bytes)
            .map_err(|source| self.write_error(source))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Writes one line or more, in one call. After a failure, tries again when it is time.
    pub(super) fn append(&mut self, content: &Content) -> Result<(), AuditError> {
        self.write(content)
            .map(drop)
            .map_err(|source| self.write_error(source))
    }

    /// As [`LogFile::append`], for those who tell several of one error. Answers the number of the
    /// first line.
    pub(super) fn write(&mut self, content: &Content) -> Result<u64, Arc<io::Error>> {
        if self.closed {
            let closed = io::Error::other("the log was closed: the server has stopped");
            return Err(Arc::new(closed));
        }
        self.write_now(content)
    }

    /// The line behind which nothing comes, of a log that was closed.
    pub(super) fn append_last(&mut self, content: &Content) -> Result<(), AuditError> {
        self.write_now(content)
            .map_err(|source| self.write_error(source))?;
        self.unsigned = 0;
        self.room.release(&self.file, self.length);
        Ok(())
    }

    fn write_now(&mut self, content: &Content) -> Result<u64, Arc<io::Error>> {
        self.try_again()?;
        self.account_for_appended()?;
        self.buffer.clear();
        // What was left over comes first, so that no outcome overtakes another.
        let mut before = self.chain;
        let late = self.late.len();
        if late > 0 {
            let mut content = Content::default();
            self.late.iter().for_each(|late| late.say(&mut content));
            before = before.link(&content, &mut self.buffer);
        }
        let chain = before.link(content, &mut self.buffer);
        if let Err(error) = (&*self.file).write_all(&self.buffer) {
            return Err(self.fail(error));
        }
        self.length += self.buffer.len() as u64;
        self.line_end = self.length;
        self.unsigned += chain.seq - self.chain.seq;
        self.chain = chain;
        for late in self.late.drain(..) {
            self.open.remove(&late.intent);
        }
        if !self.closed {
            self.room.refill(&self.file, self.length);
        }
        self.grade();
        Ok(before.seq)
    }

    /// What somebody else has written is accounted for before a line comes behind it: nothing could
    /// account for it then.
    fn account_for_appended(&mut self) -> Result<(), Arc<io::Error>> {
        let Ok(here) = self.file.metadata() else {
            return Ok(());
        };
        if self.closed || !here.is_file() || here.len() <= self.length {
            return Ok(());
        }
        let change = self.grown(here.len());
        self.accounted = Some(change);
        self.go_on_after(change)
            .map_err(|error| Arc::new(io::Error::other(error.to_string())))
    }

    /// What was accounted for since this was asked last.
    pub(super) fn take_accounted(&mut self) -> Option<Change> {
        self.accounted.take()
    }

    /// Changes that were begun and have no outcome here yet.
    pub(super) fn open_changes(&self) -> usize {
        self.open.len()
    }

    /// A change was begun by the line of that number.
    pub(super) fn begun(&mut self, intent: u64) {
        self.open.insert(intent);
    }

    /// Its outcome is in the log.
    pub(super) fn concluded(&mut self, intent: u64) {
        self.open.remove(&intent);
    }

    /// Its outcome could not be written: it is with the next line that can.
    pub(super) fn keep(&mut self, outcomes: Vec<DelayedOutcome>) {
        self.late.extend(outcomes);
    }

    /// Whether a line could be written now, as far as is known; `change`: that of a change, which
    /// has an outcome too.
    pub(super) fn check(&mut self, change: bool) -> Result<(), AuditError> {
        self.try_again()
            .map_err(|source| self.write_error(source))?;
        if !self.late.is_empty() {
            self.append(&Content::default())?;
        }
        self.room.refill(&self.file, self.length);
        let begun = self.open.len() as u64 + 1;
        let outcomes = begun * MAX_LINE_BYTES as u64;
        let (what, needed) = if change {
            (
                "changes",
                room::MIN_BYTES_CHANGE.max(room::MIN_BYTES_REQUEST + 2 * outcomes),
            )
        } else {
            ("requests", room::MIN_BYTES_REQUEST + outcomes)
        };
        let has = self.room.has(&self.file, self.length, needed);
        self.grade();
        if has {
            return Ok(());
        }
        Err(AuditError::Room {
            path: self.path.clone(),
            what,
        })
    }

    /// Whether counts of what was not written one by one may be written now.
    pub(super) fn has_room_for_sums(&self) -> bool {
        self.failed.is_none() && self.room.left(self.length) >= room::MIN_BYTES_SUMMARY
    }

    /// Why the file system keeps no room ready, if it does not.
    pub(super) fn keeps_no_room(&self) -> bool {
        self.room.is_unknown()
    }

    fn try_again(&mut self) -> Result<(), Arc<io::Error>> {
        let Some((when, error)) = &self.failed else {
            return Ok(());
        };
        if when.elapsed() < MIN_RETRY_GAP {
            return Err(Arc::clone(error));
        }
        // A file that was deleted takes lines that nobody will read.
        if self.file.metadata().is_ok_and(|here| here.nlink() == 0) {
            return self
                .begin_again()
                .map_err(|error| self.fail(io::Error::other(error.to_string())));
        }
        // What the failed write left behind goes first: a torn line in the middle would break the
        // chain for good. Then there must be room for more than one line, since one byte in
        // the last block says nothing.
        match self
            .cut()
            .and_then(|()| room::try_writing(&self.file, self.length, 2 * MAX_LINE_BYTES))
        {
            Ok(()) => {
                self.recover();
                Ok(())
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Back to the last whole line; not if somebody else has made the file shorter.
    fn cut(&mut self) -> io::Result<()> {
        if self.file.metadata()?.len() > self.length {
            self.file.set_len(self.length)?;
        }
        Ok(())
    }

    /// What may be written, for those who do not have the file to themselves. Then
    /// [`LogFile::check`] knows more.
    pub(super) fn level(&self) -> Arc<AtomicU8> {
        Arc::clone(&self.level)
    }

    fn grade(&self) {
        let level = if self.failed.is_some() {
            RoomLevel::Failing
        } else if self.room.is_short() {
            RoomLevel::Short
        } else {
            RoomLevel::Good
        };
        self.level.store(level as u8, Ordering::Relaxed);
    }

    /// Continues in a new file if the path leads to another one by now. Answers whether it does.
    pub(super) fn reopen(&mut self) -> Result<bool, AuditError> {
        let here = self
            .file
            .metadata()
            .map_err(|source| self.write_error(source))?;
        if fs::metadata(&self.path)
            .is_ok_and(|there| (there.dev(), there.ino()) == (here.dev(), here.ino()))
        {
            return Ok(false);
        }
        // At once: whoever asks something waits for the log meanwhile.
        let file = open_file(&self.path, File::try_lock)?;
        let length = file
            .metadata()
            .map_err(|source| self.write_error(source))?
            .len();
        if length != 0 {
            return Err(AuditError::Continue {
                path: self.path.clone(),
                problem: "another file with something in it stands in its place: move it away, then send SIGUSR1"
                    .to_owned(),
            });
        }
        let header = Content::header(&self.log_id, &self.signing_key);
        self.buffer.clear();
        let chain = self.chain.link(&header, &mut self.buffer);
        let written = (&file)
            .write_all(&self.buffer)
            .and_then(|()| file.sync_data())
            .and_then(|()| sync_folder(&self.path));
        if let Err(source) = written {
            // The old file stays in use; a part of a header would keep the next attempt from using
            // the new one.
            let _ = file.set_len(0);
            return Err(self.write_error(source));
        }
        // What intents rely on must be on the disk in the old file too.
        let _ = self.file.sync_data();
        self.room.release(&self.file, self.length);
        self.file = Arc::new(file);
        self.seen = None;
        self.length = self.buffer.len() as u64;
        self.line_end = self.length;
        self.first = self.chain.seq;
        self.chain = chain;
        self.unsigned += 1;
        self.recover();
        Ok(true)
    }

    /// Whether the file is still what was written, and where it was.
    pub(super) fn look(&mut self) -> Option<Change> {
        let Ok(here) = self.file.metadata() else {
            return None;
        };
        if !here.is_file() {
            return None;
        }
        if here.nlink() == 0 {
            return Some(Change::Deleted);
        }
        let (from, to) = (self.length, here.len());
        if to < from {
            return Some(Change::Truncated { from, to });
        }
        if to > from && self.failed.is_none() {
            return Some(self.grown(to));
        }
        if self.failed.is_none() && !self.ends_as_written().unwrap_or(true) {
            return Some(Change::Overwritten { to });
        }
        let there = fs::metadata(&self.path);
        there
            .map_or(true, |there| {
                (there.dev(), there.ino()) != (here.dev(), here.ino())
            })
            .then_some(Change::Moved)
    }

    /// What made the file longer than what was written.
    fn grown(&mut self, to: u64) -> Change {
        if self.ends_as_written().unwrap_or(true) {
            Change::Appended {
                bytes: to - self.length,
            }
        } else {
            Change::Overwritten { to }
        }
    }

    /// Whether the last line that was written is the chain's, and the one that was the last when
    /// this was asked before still stands there.
    fn ends_as_written(&mut self) -> io::Result<bool> {
        let end = Mark {
            offset: self.length,
            hash: self.chain.prev,
        };
        let before = self.seen.replace(end);
        let stands = before.map_or(Ok(true), |mark| self.stands(mark));
        Ok(stands? && self.stands(end)?)
    }

    /// Whether the line that ends there has that hash.
    fn stands(&self, mark: Mark) -> io::Result<bool> {
        let from = mark.offset.saturating_sub(2 * MAX_LINE_BYTES as u64);
        // At most two lines.
        let mut end = vec![0; usize::try_from(mark.offset - from).unwrap_or_default()];
        self.file.read_exact_at(&mut end, from)?;
        // A try for room may have left empty lines.
        let end = end.trim_ascii_end();
        let start = memchr::memrchr(b'\n', end).map_or(0, |newline| newline + 1);
        let line = end.get(start..).unwrap_or_default();
        Ok(Chain::after(0, line).prev == mark.hash)
    }

    /// Goes on in spite of it, with a line that says what was done to the file.
    pub(super) fn go_on_after(&mut self, change: Change) -> Result<(), AuditError> {
        let goes_on = self.go_on_behind(change);
        if let Err(error) = &goes_on
            && self.failed.is_none()
        {
            self.fail(io::Error::other(error.to_string()));
        }
        goes_on
    }

    fn go_on_behind(&mut self, change: Change) -> Result<(), AuditError> {
        self.seen = None;
        let reason = match change {
            Change::Moved => return Ok(()),
            Change::Deleted => return self.begin_again(),
            Change::Overwritten { to } => {
                self.lost = self.last();
                self.length = to;
                self.room = Room::new();
                // Nothing of it is accounted for: a verification is to show it.
                self.write_raw(b"\n")?;
                self.resume_behind_loss("the file was written over")?
            }
            Change::Truncated { from, to } => {
                self.lost = self.last();
                self.room = Room::new();
                self.account_for_tail(to)?;
                self.resume_behind_loss(&format!("the file was cut from {from} to {to} bytes"))?
            }
            Change::Appended { bytes } => {
                self.account_for(self.length, self.length + bytes)?;
                format!("{bytes} bytes that are not of this log were written to the file")
            }
        };
        self.say_changed(&reason)
    }

    /// Of a file that ends there now: if that is in the middle of a line, the piece of it is left
    /// out.
    fn account_for_tail(&mut self, to: u64) -> Result<(), AuditError> {
        let from = to.saturating_sub(MAX_LINE_BYTES as u64);
        let mut end = vec![0; usize::try_from(to - from).unwrap_or_default()];
        self.file
            .read_exact_at(&mut end, from)
            .map_err(|source| self.read_error(source))?;
        let piece = memchr::memrchr(b'\n', &end).map_or(0, |newline| newline as u64 + 1);
        if from + piece == to {
            self.length = to;
            return Ok(());
        }
        self.account_for(from + piece, to)
    }

    /// Leaves out what stands between, at the file's end.
    fn account_for(&mut self, from: u64, to: u64) -> Result<(), AuditError> {
        // Not by its path, which may lead elsewhere by now, or be closed to us. Where this leaves
        // the file's position is all the same to what is appended.
        let (sha256, lacks_newline) =
            resume::torn_sha256(&*self.file, from, to).map_err(|source| self.read_error(source))?;
        self.length = to;
        if lacks_newline {
            self.write_raw(b"\n")?;
        }
        let torn = to - from + u64::from(lacks_newline);
        self.append(&Content::recovered(torn, &sha256))
    }

    /// Writes a header, since lines before it may be gone. Answers the reason for the line that
    /// says so.
    fn resume_behind_loss(&mut self, what: &str) -> Result<String, AuditError> {
        self.append(&Content::header(&self.log_id, &self.signing_key))?;
        let first = self.last();
        Ok(format!(
            "{what} while it was written: lines before line {first} are in a copy, or lost"
        ))
    }

    /// In a new file, since the one that was written has no name any more.
    fn begin_again(&mut self) -> Result<(), AuditError> {
        let (first, last) = (self.first, self.last());
        self.lost = last;
        self.reopen()?;
        self.say_changed(&format!(
            "the file was deleted while it was written: lines {first} to {last} were in it"
        ))
    }

    fn say_changed(&mut self, reason: &str) -> Result<(), AuditError> {
        let entry = Entry {
            operation: "server:audit-file",
            outcome: "error",
            reason,
            ..Entry::default()
        };
        let mut line = Content::default();
        line.decide(&entry);
        let said = self.append(&line);
        if said.is_err() {
            self.late.push(DelayedOutcome::new(&entry));
        }
        said
    }

    /// Lines that no signature covers.
    pub(super) fn unsigned(&self) -> u64 {
        self.unsigned
    }

    /// Number of the last line.
    pub(super) fn last(&self) -> u64 {
        self.chain.seq - 1
    }

    /// Number of the last line that may be lost, since the file that it was in was cut or deleted;
    /// 0 if none is.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// What a checkpoint would sign now, if there is anything new: only what is in the file.
    pub(super) fn head(&self) -> Option<Head> {
        (self.unsigned > 0).then_some(self.end())
    }

    /// As [`LogFile::head`], whether or not it was signed.
    pub(super) fn end(&self) -> Head {
        Head {
            log_id: self.log_id,
            seq: self.chain.seq - 1,
            hash: self.chain.prev,
        }
    }

    /// What the token is told.
    pub(super) fn anchor(&self, phase: Phase) -> Anchor {
        Anchor {
            log_id: self.log_id,
            seq: self.chain.seq - 1,
            hash: self.chain.prev,
            bytes: self
                .file
                .metadata()
                .is_ok_and(|file| file.is_file())
                .then_some(self.line_end),
            phase,
            open: self.open.iter().copied().collect(),
        }
    }

    /// A checkpoint for this head was written as the last line: it covers all but itself and what
    /// came between.
    pub(super) fn signed_up_to(&mut self, head: &Head) {
        self.unsigned = (self.chain.seq - 1)
            .saturating_sub(head.seq)
            .saturating_sub(1);
    }

    /// Nothing more is written.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// For syncing without holding the lock.
    pub(super) fn handle(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    #[cfg(test)]
    pub(super) fn first_for_a_test(&self) -> u64 {
        self.first
    }

    #[cfg(test)]
    pub(super) fn fail_for_a_test(&mut self) {
        self.fail(io::Error::other("a test"));
    }

    fn fail(&mut self, error: io::Error) -> Arc<io::Error> {
        // A part of the lines may have been written. If this fails too, `try_again` does it before
        // the next line.
        let _ = self.cut();
        self.room = Room::new();
        let error = Arc::new(error);
        self.failed = Some((Instant::now(), Arc::clone(&error)));
        self.grade();
        error
    }

    fn recover(&mut self) {
        self.failed = None;
        self.room = Room::new();
        self.room.refill(&self.file, self.length);
        self.grade();
    }

    fn read_error(&self, source: io::Error) -> AuditError {
        AuditError::Read {
            path: self.path.clone(),
            source,
        }
    }

    fn write_error(&self, source: impl Into<Arc<io::Error>>) -> AuditError {
        AuditError::Write {
            path: self.path.clone(),
            source: source.into(),
        }
    }
}

/// What [`LogFile::open`] found at the end of a log that was there already.
#[derive(Default)]
pub(super) struct LogEnd(Option<End>);

/// The line that stands for an outcome that nobody knows.
fn unknown(intent: u64, what: &OpenIntent) -> Entry<'_> {
    Entry {
        request_id: &what.request_id,
        identity: &what.identity,
        token_id: &what.token_id,
        remote: &what.remote,
        certificate: &what.certificate,
        issuer: &what.issuer,
        operation: if what.operation.is_empty() {
            "unknown"
        } else {
            &what.operation
        },
        key: &what.key,
        outcome: "unknown",
        reason: "the program ended before the outcome was written: whether the change was carried out, the appliance's state tells",
        intent,
        ..Entry::default()
    }
}

fn foreign(path: &Path, problem: &str) -> AuditError {
    AuditError::Continue {
        path: path.to_owned(),
        problem: format!(
            "{problem}. Move the file away (and keep it), and run `strongroom audit accept`: it begins a new log"
        ),
    }
}

/// Append-only, for its owner only, and for one process at a time. Root makes and opens it as
/// whoever owns its directory.
fn open_file(
    path: &Path,
    lock: impl Fn(&File) -> Result<(), fs::TryLockError>,
) -> Result<File, AuditError> {
    let write = |source: io::Error| AuditError::Write {
        path: path.to_owned(),
        source: Arc::new(source),
    };
    let mut how = OpenOptions::new();
    how.read(true).append(true).create(true).mode(0o600);
    let file = acting(path, || how.open(path)).flatten().map_err(write)?;
    let kind = file.metadata().map_err(write)?.file_type();
    // A pipe would be waited for without end, and keeps nothing. Of devices those that take lines
    // may be meant.
    if !kind.is_file() && !kind.is_char_device() {
        return Err(AuditError::Continue {
            path: path.to_owned(),
            problem: "it is not a regular file: move it away, or name another one as `audit.path`"
                .to_owned(),
        });
    }
    match lock(&file) {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(AuditError::Continue {
            path: path.to_owned(),
            problem: "another process writes it: stop the running server first".to_owned(),
        }),
        Err(fs::TryLockError::Error(source)) => Err(write(source)),
    }
}

/// The entry of a file in its directory, durable.
fn sync_folder(path: &Path) -> io::Result<()> {
    acting(atomic::folder(path), || atomic::sync_folder(path)).flatten()
}
