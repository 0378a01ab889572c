//! The file: one writer, one `write(2)` for the lines that came together, and what happens when that fails.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::AuditError;
use super::line::{Head, Line, LineWriter, START, unhex};

/// After a failure the file is tried again at most this often.
const RETRY: Duration = Duration::from_millis(100);

/// No line of ours is longer; an end without a newline within this distance is no log of ours.
const LONGEST_LINE: u64 = 1 << 20;

/// No log of ours gets as far, so that its numbers can be counted up.
const LAST_SEQ: u64 = 1 << 62;

/// What became of lines that were written together.
pub(super) type Outcome = Arc<OnceLock<Told>>;

type Told = Result<(), (io::ErrorKind, String)>;

/// Lines that are in the chain and not yet in the file.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    lines: u64,
    /// The chain's end before them, to go back to if they can't be written.
    before: (u64, [u8; 32]),
    outcome: Outcome,
}

/// Pending lines on their way into the file. More may be queued behind them meanwhile, but nothing else may be written.
pub(super) struct Batch {
    pending: Pending,
    file: Arc<File>,
    written: io::Result<()>,
}

impl Batch {
    /// Writes the lines: what takes long, and needs no [`LogFile`].
    pub(super) fn write(&mut self) {
        self.written = (&*self.file).write_all(&self.pending.bytes);
    }

    /// As if the disc had become full after some of the lines.
    #[cfg(test)]
    pub(super) fn write_a_part(&mut self) {
        let half = self.pending.bytes.len() / 2;
        self.pending.bytes.truncate(half);
        self.write();
        self.written = Err(io::ErrorKind::StorageFull.into());
    }
}

/// The open file and the chain's end.
pub(super) struct LogFile {
    path: PathBuf,
    file: Arc<File>,
    /// Bytes up to the end of the last whole line.
    length: u64,
    /// Of the next line.
    seq: u64,
    prev: [u8; 32],
    log_id: [u8; 16],
    signing_key: [u8; 32],
    /// Lines since the last one that a signature covers, checkpoints not counted.
    unsigned: u64,
    /// When a write failed, and with what.
    failed: Option<(Instant, io::ErrorKind, String)>,
    buffer: Vec<u8>,
    pending: Pending,
    /// The room of the last batch, for the next.
    spare: Vec<u8>,
}

impl LogFile {
    pub(super) fn open(path: &Path, signing_key: [u8; 32]) -> Result<Self, AuditError> {
        let file = Arc::new(open_file(path)?);
        let mut log = Self {
            path: path.to_owned(),
            file,
            length: 0,
            seq: 1,
            prev: START,
            log_id: [0; 16],
            signing_key,
            unsigned: 0,
            failed: None,
            buffer: Vec::with_capacity(1024),
            pending: Pending::default(),
            spare: Vec::new(),
        };
        if log
            .file
            .metadata()
            .map_err(|source| log.write_error(source))?
            .len()
            == 0
        {
            getrandom::fill(&mut log.log_id)
                .map_err(|error| log.write_error(io::Error::other(error.to_string())))?;
            log.write_header()?;
        } else {
            log.resume()?;
        }
        Ok(log)
    }

    /// Writes one line. After a failure, tries again when it is time.
    pub(super) fn append(&mut self, line: impl FnOnce(LineWriter<'_>)) -> Result<(), AuditError> {
        let outcome = self.queue(line)?;
        self.flush();
        result(&outcome, &self.path)
    }

    /// Puts a line into the chain, to be written by the next [`LogFile::flush`] together with what else comes until then.
    pub(super) fn queue(
        &mut self,
        line: impl FnOnce(LineWriter<'_>),
    ) -> Result<Outcome, AuditError> {
        self.check()?;
        if self.pending.lines == 0 {
            self.pending.before = (self.seq, self.prev);
        }
        line(LineWriter::new(&mut self.buffer, self.seq, self.prev));
        self.pending.bytes.extend_from_slice(&self.buffer);
        self.pending.lines += 1;
        self.chain();
        Ok(self.pending.outcome.clone())
    }

    /// Writes the lines that wait, and tells those who wait for them.
    pub(super) fn flush(&mut self) {
        if let Some(mut batch) = self.take() {
            batch.write();
            self.settle(batch);
        }
    }

    /// The lines that wait, to be written and settled before anything else is written.
    pub(super) fn take(&mut self) -> Option<Batch> {
        if self.pending.lines == 0 {
            return None;
        }
        let bytes = std::mem::take(&mut self.spare);
        Some(Batch {
            pending: std::mem::replace(
                &mut self.pending,
                Pending {
                    bytes,
                    ..Pending::default()
                },
            ),
            file: Arc::clone(&self.file),
            written: Ok(()),
        })
    }

    /// Tells those who wait for these lines what became of them. If they could not be written, then nor can those be that were chained to them since.
    pub(super) fn settle(&mut self, batch: Batch) {
        let Batch {
            pending:
                Pending {
                    mut bytes,
                    lines,
                    before,
                    outcome,
                },
            written,
            ..
        } = batch;
        match written {
            Ok(()) => {
                self.length += bytes.len() as u64;
                self.unsigned += lines;
                tell(&outcome, Ok(()));
            }
            Err(error) => {
                (self.seq, self.prev) = before;
                self.fail(&error);
                let since = std::mem::take(&mut self.pending);
                for outcome in [outcome, since.outcome] {
                    tell(&outcome, Err((error.kind(), error.to_string())));
                }
            }
        }
        bytes.clear();
        self.spare = bytes;
    }

    /// Whether a line could be written now, as far as is known.
    pub(super) fn check(&mut self) -> Result<(), AuditError> {
        let Some((when, kind, text)) = &self.failed else {
            return Ok(());
        };
        if when.elapsed() < RETRY {
            return Err(self.write_error(io::Error::new(*kind, text.clone())));
        }
        // What the failed write left behind goes first: a torn line in the middle would break the chain for good.
        match self.file.set_len(self.length).and_then(|()| self.probe()) {
            Ok(()) => {
                self.failed = None;
                Ok(())
            }
            Err(error) => {
                self.fail(&error);
                Err(self.write_error(error))
            }
        }
    }

    /// Continues in a new file if the path leads to another one by now.
    pub(super) fn reopen(&mut self) -> Result<(), AuditError> {
        self.flush();
        let here = self
            .file
            .metadata()
            .map_err(|source| self.write_error(source))?;
        if fs::metadata(&self.path)
            .is_ok_and(|there| (there.dev(), there.ino()) == (here.dev(), here.ino()))
        {
            return Ok(());
        }
        let file = open_file(&self.path)?;
        let length = file
            .metadata()
            .map_err(|source| self.write_error(source))?
            .len();
        if length != 0 {
            return Err(AuditError::Continue {
                path: self.path.clone(),
                problem: "another file with something in it stands in its place: move it away"
                    .to_owned(),
            });
        }
        LineWriter::new(&mut self.buffer, self.seq, self.prev)
            .header(&self.log_id, &self.signing_key);
        if let Err(source) = (&file).write_all(&self.buffer) {
            // The old file stays in use; a part of a header would keep the next attempt from using the new one.
            let _ = file.set_len(0);
            return Err(self.write_error(source));
        }
        self.file = Arc::new(file);
        self.length = self.buffer.len() as u64;
        self.failed = None;
        self.chain();
        self.unsigned += 1;
        Ok(())
    }

    /// Lines that no signature covers.
    pub(super) fn unsigned(&self) -> u64 {
        self.unsigned
    }

    /// What a checkpoint would sign now, if there is anything new: only what is in the file.
    pub(super) fn head(&mut self) -> Option<Head> {
        self.flush();
        (self.unsigned > 0).then_some(Head {
            log_id: self.log_id,
            seq: self.seq - 1,
            hash: self.prev,
        })
    }

    /// A checkpoint for this head was written as the last line: it covers all but itself and what came between.
    pub(super) fn signed_up_to(&mut self, head: &Head) {
        self.unsigned = (self.seq - 1).saturating_sub(head.seq).saturating_sub(1);
    }

    /// For syncing without holding the lock.
    pub(super) fn handle(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    fn write_header(&mut self) -> Result<(), AuditError> {
        let (log_id, signing_key) = (self.log_id, self.signing_key);
        self.append(|line| line.header(&log_id, &signing_key))
    }

    /// The chain's end is now the line in the buffer.
    fn chain(&mut self) {
        let line = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer);
        self.prev = Sha256::digest(line).into();
        self.seq += 1;
    }

    /// Asks the file system for one more byte, and gives it back.
    fn probe(&mut self) -> io::Result<()> {
        (&*self.file).write_all(b"\n")?;
        self.file.set_len(self.length)
    }

    fn fail(&mut self, error: &io::Error) {
        // A part of the line may have been written. If this fails too, `check` does it before the next line.
        let _ = self.file.set_len(self.length);
        self.failed = Some((Instant::now(), error.kind(), error.to_string()));
    }

    /// Finds the chain's end in a file that is there already.
    fn resume(&mut self) -> Result<(), AuditError> {
        let read = |source| AuditError::Read {
            path: self.path.clone(),
            source,
        };
        let mut reader = File::open(&self.path).map_err(read)?;
        let length = reader.metadata().map_err(read)?.len();
        let mut tail = Vec::new();
        reader
            .seek(SeekFrom::Start(length.saturating_sub(2 * LONGEST_LINE)))
            .map_err(read)?;
        reader.read_to_end(&mut tail).map_err(read)?;
        let first = first_line(&self.path).map_err(read)?;

        let header = Line::parse(&first)
            .filter(|line| line.kind == "header")
            .ok_or_else(|| self.foreign("it does not begin with the header of an audit log"))?;
        self.log_id = header
            .log_id
            .as_deref()
            .and_then(unhex)
            .ok_or_else(|| self.foreign("its header has no log id"))?;
        // One key signs a log from its beginning to its end, or no key verifies it.
        if header.signing_key.as_deref().and_then(unhex::<32>) != Some(self.signing_key) {
            return Err(self.foreign("it was signed by another token's key"));
        }

        // The power went while `probe` asked for room: its newline is no line.
        let probed = tail.ends_with(b"\n\n") && tail.pop().is_some();
        let whole = tail
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let (lines, torn) = tail.split_at(whole);
        let torn = torn.to_vec();
        let last = lines.strip_suffix(b"\n").unwrap_or_default();
        let last = last
            .rsplit(|byte| *byte == b'\n')
            .next()
            .unwrap_or_default()
            .to_vec();
        let line = Line::parse(&last)
            .filter(|line| line.seq < LAST_SEQ)
            .ok_or_else(|| self.foreign("its last whole line is not one of an audit log"))?;
        self.prev = Sha256::digest(&last).into();
        self.seq = line.seq + 1;
        self.length = length - u64::from(probed);
        if probed {
            self.file
                .set_len(self.length)
                .map_err(|source| self.write_error(source))?;
        }
        // What was signed before is not known here; the next checkpoint covers it all anyway.
        self.unsigned = u64::from(line.kind != "checkpoint");
        if torn.is_empty() {
            return Ok(());
        }

        // The power went in the middle of a line. If all but its newline is there, it counts.
        (&*self.file)
            .write_all(b"\n")
            .map_err(|source| self.write_error(source))?;
        self.length += 1;
        let complete = Line::parse(&torn)
            .filter(|line| line.seq == self.seq && line.prev() == Some(self.prev));
        if complete.is_some() {
            self.prev = Sha256::digest(&torn).into();
            self.seq += 1;
            return Ok(());
        }
        self.append(|line| line.recovered(&torn))
    }

    fn foreign(&self, problem: &str) -> AuditError {
        AuditError::Continue {
            path: self.path.clone(),
            problem: format!("{problem}. Move the file away (and keep it), and start again"),
        }
    }

    fn write_error(&self, source: io::Error) -> AuditError {
        write_error(&self.path, source)
    }
}

/// What became of a line that was queued and flushed into the log at `path`. Needs no [`LogFile`], so that whoever waited holds up nobody by asking.
pub(super) fn result(outcome: &Outcome, path: &Path) -> Result<(), AuditError> {
    match outcome.get() {
        Some(Ok(())) => Ok(()),
        Some(Err((kind, text))) => Err(write_error(path, io::Error::new(*kind, text.clone()))),
        None => Err(write_error(path, io::Error::other("the line still waits"))),
    }
}

fn write_error(path: &Path, source: io::Error) -> AuditError {
    AuditError::Write {
        path: path.to_owned(),
        source,
    }
}

fn tell(outcome: &Outcome, told: Told) {
    let first = outcome.set(told).is_ok();
    debug_assert!(
        first,
        "lines are settled once: they were taken out of the log"
    );
}

/// Append-only, for its owner only, and for one process at a time.
fn open_file(path: &Path) -> Result<File, AuditError> {
    let write = |source| write_error(path, source);
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(write)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(AuditError::Continue {
            path: path.to_owned(),
            problem: "another process writes it: stop the running server first".to_owned(),
        }),
        Err(fs::TryLockError::Error(source)) => Err(write(source)),
    }
}

fn first_line(path: &Path) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let file = io::BufReader::new(File::open(path)?);
    io::BufRead::read_until(&mut io::Read::take(file, LONGEST_LINE), b'\n', &mut line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    Ok(line)
}
