//! The file: one writer, one `write(2)` for the lines that are given together, and what happens when that fails.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::AuditError;
use super::line::{Chain, Content, Head, Line, unhex};

/// After a failure the file is tried again at most this often.
const RETRY: Duration = Duration::from_millis(100);

/// No line of ours is longer; an end without a newline within this distance is no log of ours.
const LONGEST_LINE: u64 = 1 << 20;

/// No log of ours gets as far, so that its numbers can be counted up.
const LAST_SEQ: u64 = 1 << 62;

/// The open file and the chain's end.
pub(super) struct LogFile {
    path: PathBuf,
    file: Arc<File>,
    /// Bytes up to the end of the last whole line.
    length: u64,
    chain: Chain,
    log_id: [u8; 16],
    signing_key: [u8; 32],
    /// Lines since the last one that a signature covers, checkpoints not counted.
    unsigned: u64,
    /// When a write failed, and with what.
    failed: Option<(Instant, Arc<io::Error>)>,
    /// Whether `failed` is something, for those who do not have the file to themselves.
    failing: Arc<AtomicBool>,
    /// What is being written.
    buffer: Vec<u8>,
}

impl LogFile {
    pub(super) fn open(path: &Path, signing_key: [u8; 32]) -> Result<Self, AuditError> {
        let file = Arc::new(open_file(path)?);
        let mut log = Self {
            path: path.to_owned(),
            file,
            length: 0,
            chain: Chain::START,
            log_id: [0; 16],
            signing_key,
            unsigned: 0,
            failed: None,
            failing: Arc::default(),
            buffer: Vec::new(),
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
            log.append(&Content::header(&log.log_id, &log.signing_key))?;
        } else {
            log.resume()?;
        }
        Ok(log)
    }

    /// Writes one line or more, in one call. After a failure, tries again when it is time.
    pub(super) fn append(&mut self, content: &Content) -> Result<(), AuditError> {
        self.write(content)
            .map_err(|source| self.write_error(source))
    }

    /// As [`LogFile::append`], for those who tell several of one error.
    pub(super) fn write(&mut self, content: &Content) -> Result<(), Arc<io::Error>> {
        self.try_again()?;
        let chain = self.chain.link(content, &mut self.buffer);
        if let Err(error) = (&*self.file).write_all(&self.buffer) {
            return Err(self.fail(error));
        }
        self.length += self.buffer.len() as u64;
        self.unsigned += chain.seq - self.chain.seq;
        self.chain = chain;
        Ok(())
    }

    /// Whether a line could be written now, as far as is known.
    pub(super) fn check(&mut self) -> Result<(), AuditError> {
        self.try_again().map_err(|source| self.write_error(source))
    }

    fn try_again(&mut self) -> Result<(), Arc<io::Error>> {
        let Some((when, error)) = &self.failed else {
            return Ok(());
        };
        if when.elapsed() < RETRY {
            return Err(Arc::clone(error));
        }
        // What the failed write left behind goes first: a torn line in the middle would break the chain for good.
        match self.file.set_len(self.length).and_then(|()| self.probe()) {
            Ok(()) => {
                self.recover();
                Ok(())
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Whether the last write failed. To be asked by those who do not have the file to themselves; then [`LogFile::check`] knows more.
    pub(super) fn failing(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.failing)
    }

    /// Continues in a new file if the path leads to another one by now.
    pub(super) fn reopen(&mut self) -> Result<(), AuditError> {
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
        let header = Content::header(&self.log_id, &self.signing_key);
        let chain = self.chain.link(&header, &mut self.buffer);
        if let Err(source) = (&file).write_all(&self.buffer) {
            // The old file stays in use; a part of a header would keep the next attempt from using the new one.
            let _ = file.set_len(0);
            return Err(self.write_error(source));
        }
        self.file = Arc::new(file);
        self.length = self.buffer.len() as u64;
        self.chain = chain;
        self.recover();
        self.unsigned += 1;
        Ok(())
    }

    /// Lines that no signature covers.
    pub(super) fn unsigned(&self) -> u64 {
        self.unsigned
    }

    /// What a checkpoint would sign now, if there is anything new: only what is in the file.
    pub(super) fn head(&self) -> Option<Head> {
        (self.unsigned > 0).then_some(Head {
            log_id: self.log_id,
            seq: self.chain.seq - 1,
            hash: self.chain.prev,
        })
    }

    /// A checkpoint for this head was written as the last line: it covers all but itself and what came between.
    pub(super) fn signed_up_to(&mut self, head: &Head) {
        self.unsigned = (self.chain.seq - 1)
            .saturating_sub(head.seq)
            .saturating_sub(1);
    }

    /// For syncing without holding the lock.
    pub(super) fn handle(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Asks the file system for one more byte, and gives it back.
    fn probe(&mut self) -> io::Result<()> {
        (&*self.file).write_all(b"\n")?;
        self.file.set_len(self.length)
    }

    fn fail(&mut self, error: io::Error) -> Arc<io::Error> {
        // A part of the lines may have been written. If this fails too, `try_again` does it before the next line.
        let _ = self.file.set_len(self.length);
        let error = Arc::new(error);
        self.failed = Some((Instant::now(), Arc::clone(&error)));
        self.failing.store(true, Ordering::Relaxed);
        error
    }

    fn recover(&mut self) {
        self.failed = None;
        self.failing.store(false, Ordering::Relaxed);
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
        self.chain = Chain::after(line.seq, &last);
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
            .filter(|line| line.seq == self.chain.seq && line.prev() == Some(self.chain.prev));
        if complete.is_some() {
            self.chain = Chain::after(self.chain.seq, &torn);
            return Ok(());
        }
        self.append(&Content::recovered(&torn))
    }

    fn foreign(&self, problem: &str) -> AuditError {
        AuditError::Continue {
            path: self.path.clone(),
            problem: format!("{problem}. Move the file away (and keep it), and start again"),
        }
    }

    fn write_error(&self, source: impl Into<Arc<io::Error>>) -> AuditError {
        write_error(&self.path, source)
    }
}

pub(super) fn write_error(path: &Path, source: impl Into<Arc<io::Error>>) -> AuditError {
    AuditError::Write {
        path: path.to_owned(),
        source: source.into(),
    }
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
