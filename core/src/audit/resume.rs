//! Where a log that is there already goes on: it is held against what the token knows, and whatever
//! a power cut or a kill left at its end is found.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek as _, SeekFrom};
use std::path::Path;

use p256::ecdsa::VerifyingKey;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::anchor::{Anchor, MAX_OPEN_INTENTS, Phase};
use super::line::{Chain, FORMAT, Head, Line, MAX_LINE_BYTES};
use crate::hex;
use crate::json::Document;
use crate::owner::acting;

/// How much of the end is looked at first for the line that the token knows; more if it is not
/// there.
const FIRST_TAIL_BYTES: u64 = 1 << 20;
/// No log of ours gets as far, so that its numbers can be counted up.
const MAX_SEQ: u64 = 1 << 62;
/// A checkpoint may name a line this far back.
const MAX_CHECKPOINT_LAG: usize = 1 << 16;

/// What a log is held against.
#[derive(Clone, Copy)]
pub(super) enum Known<'a> {
    /// The token knows of no log yet.
    Nothing,
    /// How far the log had come.
    Anchor(&'a Anchor),
    /// Whatever is there is accepted; how far the log had come, if that is known.
    Accepted(Option<&'a Anchor>),
}

/// The token's audit signing key.
#[derive(Clone)]
pub(super) struct Signer {
    /// SHA-256 of its `SubjectPublicKeyInfo`.
    pub(super) fingerprint: [u8; 32],
    pub(super) key: VerifyingKey,
}

/// Where the log goes on.
pub(super) struct End {
    pub(super) chain: Chain,
    pub(super) log_id: [u8; 16],
    /// Offset behind the last line of the chain.
    pub(super) length: u64,
    /// What stands behind it, if anything does.
    pub(super) torn: Option<TornTail>,
    /// The last line lacks its newline.
    pub(super) unended: bool,
    /// The file begins with another line than a header, as after a `copytruncate`, and has none as
    /// far as is known.
    pub(super) headless: bool,
    /// The file is to begin here: the program ended when the log was about to go on in it.
    pub(super) anew: bool,
    /// Intents without an outcome.
    pub(super) open: BTreeMap<u64, OpenIntent>,
    pub(super) found: Found,
}

/// Bytes that are not of the chain.
pub(super) struct TornTail {
    pub(super) bytes: u64,
    /// Of all of them, and of a newline behind them if they lack it.
    pub(super) sha256: [u8; 32],
    pub(super) lacks_newline: bool,
}

/// What an intent said.
#[derive(Clone, Debug, Default)]
pub(super) struct OpenIntent {
    pub(super) request_id: String,
    pub(super) identity: String,
    pub(super) token_id: String,
    pub(super) remote: String,
    pub(super) certificate: String,
    pub(super) issuer: String,
    pub(super) operation: String,
    pub(super) key: String,
}

/// What a start found of the lines before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Lines that no signature covered.
    pub unsigned: u64,
    /// Number of the last checkpoint's line, 0 if there was none.
    pub checkpoint: u64,
    /// Number of the line that the token knew, 0 if it knew of none.
    pub anchor: u64,
    /// Bytes at the end that were no whole line.
    pub torn_bytes: u64,
    /// Changes of which the outcome is not known.
    pub unknown: usize,
}

/// As the line of a start says it.
impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            unsigned,
            checkpoint,
            anchor,
            torn_bytes,
            unknown,
        } = self;
        write!(
            f,
            "unsigned={unsigned} checkpoint={checkpoint} anchor={anchor} torn_bytes={torn_bytes} unknown={unknown}"
        )
    }
}

/// Why it does not go on.
pub(super) enum Refusal {
    Read(io::Error),
    /// The file is no log of this token's, or of another format.
    Foreign(String),
    /// It is not as the token knows it.
    End(String),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// To read; as whoever owns its directory, if this is root.
pub(super) fn open(path: &Path) -> io::Result<File> {
    acting(path, || File::open(path)).flatten()
}

/// Finds the end of the log in a file. `None`: the file holds nothing, or not even one whole line,
/// and the token knows of no log, or what it knows does not count.
pub(super) fn find(path: &Path, signer: &Signer, known: Known<'_>) -> Result<Option<End>, Refusal> {
    let mut file = open(path)?;
    let length = file.metadata()?.len();
    // A device says that it has no length, and may never end.
    let first = if length == 0 {
        Vec::new()
    } else {
        first_line(&file)?
    };
    if length == 0 || is_torn_header(&first, length) {
        return match known {
            Known::Anchor(anchor) if anchor.phase == Phase::Rotating => Ok(Some(anew(anchor))),
            Known::Anchor(anchor) => Err(Refusal::End(format!(
                "the file holds no line, but the token knows of line {} of the log {}",
                anchor.seq,
                hex::encode(&anchor.log_id)
            ))),
            _ => Ok(None),
        };
    }
    let header = Line::parse(&first).filter(|line| line.kind == "header");
    let header_seq = header.as_ref().map(|header| header.seq);
    let log_id = match (&header, known) {
        (Some(header), _) => check_header(header, signer)?,
        // The file was truncated or written over while the log was written: the token knows of
        // which log, and its line is looked for behind what stands at the beginning.
        (None, Known::Anchor(anchor) | Known::Accepted(Some(anchor))) => anchor.log_id,
        _ => {
            return Err(Refusal::Foreign(
                "it does not begin with the header of an audit log".to_owned(),
            ));
        }
    };
    let mut walk = ChainWalk::new(log_id, signer);
    match known {
        Known::Anchor(anchor) => {
            if anchor.log_id != log_id {
                return Err(Refusal::End(format!(
                    "the file is of the log {}, but the token knows of line {} of the log {}",
                    hex::encode(&log_id),
                    anchor.seq,
                    hex::encode(&anchor.log_id)
                )));
            }
            walk.found.anchor = anchor.seq;
            walk.found.checkpoint = anchor.seq;
            let begun = header_seq.is_some_and(|seq| seq > anchor.seq);
            if begun {
                check_rotated(anchor)?;
                walk.open = anchor.open.iter().map(|seq| (*seq, None)).collect();
                walk.from(&mut file, 0, None)?;
            } else {
                let at = find_anchor(&mut file, length, anchor, &mut walk)?;
                check_before(anchor, at)?;
                walk.from(&mut file, at, Some(Chain::of(anchor)))?;
            }
            let behind = walk.chain.is_some_and(|chain| chain.seq > anchor.seq + 1);
            let more = behind || walk.length < length;
            if anchor.phase == Phase::Stopped && more {
                return Err(Refusal::End(format!(
                    "something stands behind line {}, where the log ended when it was last stopped in order",
                    anchor.seq
                )));
            }
        }
        Known::Nothing => walk.from(&mut file, 0, None)?,
        Known::Accepted(_) => {
            let at = last_line(&mut file, length)?;
            walk.note_changes_before(&mut file, at)?;
            walk.from(&mut file, at, None)?;
        }
    }
    // Where the token knows how much stands before its line, there is a header in it, or what had
    // become of it was said when it was noticed.
    let vouched = matches!(known, Known::Anchor(anchor) if anchor.bytes.is_some());
    let headless = header.is_none() && !walk.header && !vouched;
    walk.end(&mut file, length, headless).map(Some)
}

/// The log goes on right behind the line that the token knows, in a file that holds nothing yet.
fn anew(anchor: &Anchor) -> End {
    let open: BTreeMap<_, _> = anchor
        .open
        .iter()
        .map(|seq| (*seq, OpenIntent::default()))
        .collect();
    End {
        chain: Chain::of(anchor),
        log_id: anchor.log_id,
        length: 0,
        torn: None,
        unended: false,
        headless: true,
        anew: true,
        found: Found {
            anchor: anchor.seq,
            checkpoint: anchor.seq,
            unknown: open.len(),
            ..Found::default()
        },
        open,
    }
}

/// One key signs a log from its beginning to its end, or no key verifies it.
fn check_header(header: &Line, signer: &Signer) -> Result<[u8; 16], Refusal> {
    if header.format != Some(FORMAT) {
        return Err(Refusal::Foreign(format!(
            "it is of format {}, and this version writes format {FORMAT}",
            header.format.unwrap_or_default()
        )));
    }
    if header.signing_key.as_deref().and_then(hex::decode::<32>) != Some(signer.fingerprint) {
        return Err(Refusal::Foreign(
            "it was signed by another token's key".to_owned(),
        ));
    }
    header
        .log_id
        .as_deref()
        .and_then(hex::decode)
        .ok_or_else(|| Refusal::Foreign("its header has no log id".to_owned()))
}

/// The file begins behind the line that the token knows: right so if the log was just going on in a
/// new file. Else anybody could have written its header, which needs no key.
fn check_rotated(anchor: &Anchor) -> Result<(), Refusal> {
    if anchor.phase == Phase::Rotating {
        return Ok(());
    }
    Err(Refusal::End(format!(
        "the file begins behind line {}, which the token knows: what stood before it is gone, or is in another file",
        anchor.seq
    )))
}

/// Nothing may be gone before the line that the token knows, nor have come between.
fn check_before(anchor: &Anchor, at: u64) -> Result<(), Refusal> {
    match anchor.bytes {
        Some(bytes) if bytes != at => Err(Refusal::End(format!(
            "line {} ends at byte {at} of the file, but the token knows that it ended at byte {bytes}: lines before it were {}",
            anchor.seq,
            if at < bytes { "taken out" } else { "put in" }
        ))),
        _ => Ok(()),
    }
}

/// Offset behind the line that the token knows. Intents before it that had no outcome are noted on
/// the way.
fn find_anchor(
    file: &mut File,
    length: u64,
    anchor: &Anchor,
    walk: &mut ChainWalk<'_>,
) -> Result<u64, Refusal> {
    let lowest = anchor
        .open
        .first()
        .copied()
        .unwrap_or(anchor.seq)
        .min(anchor.seq);
    // Those behind the last one are not named if there was no room for them.
    let named = match anchor.open.last() {
        Some(last) if anchor.open.len() >= MAX_OPEN_INTENTS => *last,
        _ => anchor.seq,
    };
    let mut tail = FIRST_TAIL_BYTES;
    loop {
        let from = length.saturating_sub(tail);
        let mut lines = Lines::from(file, from)?;
        if from > 0 {
            // Most likely in the middle of a line.
            lines.next()?;
        }
        walk.open = anchor.open.iter().map(|seq| (*seq, None)).collect();
        let (mut at, mut reached, mut last, mut other) = (None, from == 0, 0, false);
        while let Some(raw) = lines.next()? {
            let Some(line) = Line::parse(raw.bytes) else {
                continue;
            };
            reached |= line.seq <= lowest;
            if !reached {
                break;
            }
            last = line.seq;
            if let Some(open) = walk.open.get_mut(&line.seq)
                && line.kind == "intent"
            {
                *open = Some(intended(&line, raw.bytes));
            }
            if line.seq > named {
                walk.note_change(&line, raw.bytes);
            }
            if line.seq == anchor.seq {
                if <[u8; 32]>::from(Sha256::digest(raw.bytes)) == anchor.hash && raw.ended {
                    at = Some(raw.end);
                    break;
                }
                other = true;
            }
        }
        match at {
            Some(at) => return Ok(at),
            None if from > 0 => tail = tail.saturating_mul(8),
            None if other => {
                return Err(Refusal::End(format!(
                    "line {} is not the one that the token knows: the log was written again",
                    anchor.seq
                )));
            }
            None => {
                return Err(Refusal::End(format!(
                    "it ends at line {last}, but the token knows of line {}: its end was cut off, or an older copy put in its place",
                    anchor.seq
                )));
            }
        }
    }
}

/// Offset of the last whole line of ours, whatever stands before it.
fn last_line(file: &mut File, length: u64) -> Result<u64, Refusal> {
    let mut tail = FIRST_TAIL_BYTES;
    loop {
        let from = length.saturating_sub(tail);
        let mut lines = Lines::from(file, from)?;
        if from > 0 {
            lines.next()?;
        }
        let mut at = None;
        while let Some(raw) = lines.next()? {
            if raw.ended && Line::parse(raw.bytes).is_some_and(|line| line.seq < MAX_SEQ) {
                at = Some(raw.start);
            }
        }
        match at {
            Some(at) => return Ok(at),
            None if from > 0 => tail = tail.saturating_mul(8),
            None => {
                return Err(Refusal::Foreign(
                    "no whole line of it is one of an audit log".to_owned(),
                ));
            }
        }
    }
}

/// Who asked, as far as no verification needs it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Who {
    token_id: String,
    remote: String,
    certificate: String,
    issuer: String,
}

fn intended(line: &Line, bytes: &[u8]) -> OpenIntent {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let who: Who = Document::parse(bytes)
        .ok()
        .and_then(|document| document.read().ok())
        .unwrap_or_default();
    OpenIntent {
        request_id: text(&line.request_id),
        identity: text(&line.identity),
        token_id: who.token_id,
        remote: who.remote,
        certificate: who.certificate,
        issuer: who.issuer,
        operation: text(&line.operation),
        key: text(&line.key),
    }
}

/// A line that accounts for what stands before it.
struct Recovered {
    line: Line,
    hash: [u8; 32],
    /// Where it begins.
    start: u64,
    /// Where the next line does.
    end: u64,
}

/// The chain, followed from a line on.
struct ChainWalk<'a> {
    log_id: [u8; 16],
    signer: &'a Signer,
    chain: Option<Chain>,
    /// Offset behind the last line of the chain.
    length: u64,
    /// That line lacks its newline.
    unended: bool,
    /// There was a header.
    header: bool,
    recent: VecDeque<(u64, [u8; 32])>,
    open: BTreeMap<u64, Option<OpenIntent>>,
    found: Found,
}

impl<'a> ChainWalk<'a> {
    fn new(log_id: [u8; 16], signer: &'a Signer) -> Self {
        Self {
            log_id,
            signer,
            chain: None,
            length: 0,
            unended: false,
            header: false,
            recent: VecDeque::new(),
            open: BTreeMap::new(),
            found: Found::default(),
        }
    }

    /// Follows the chain from `at` on; `chain` is what the line there must have, the first line's
    /// own if there is none.
    fn from(&mut self, file: &mut File, at: u64, chain: Option<Chain>) -> Result<(), Refusal> {
        self.chain = chain;
        self.length = at;
        while let Some(recovered) = self.until_broken(file)? {
            let Recovered {
                line,
                hash,
                start,
                end,
            } = recovered;
            // What an earlier start accounted for ends where its `recovered` line begins.
            let named = line.torn_sha256.as_deref().and_then(hex::decode::<32>);
            if line.torn_bytes != Some(start - self.length)
                || named != Some(sha256(&mut *file, self.length, start)?)
            {
                return Ok(());
            }
            self.take(&line, &[], hash, end, true);
        }
        Ok(())
    }

    /// Takes lines up to the first that is not of the chain, and answers a `recovered` line behind
    /// it that would be.
    fn until_broken(&mut self, file: &mut File) -> Result<Option<Recovered>, Refusal> {
        let mut lines = Lines::from(file, self.length)?;
        while let Some(raw) = lines.next()? {
            let Some(line) = Line::parse(raw.bytes).filter(|line| line.seq < MAX_SEQ) else {
                continue;
            };
            let follows = self
                .chain
                .is_none_or(|chain| line.seq == chain.seq && line.prev() == Some(chain.prev));
            if !follows {
                continue;
            }
            let hash = Sha256::digest(raw.bytes).into();
            if raw.start == self.length {
                self.take(&line, raw.bytes, hash, raw.end, raw.ended);
            } else if line.kind == "recovered" && raw.ended {
                let (start, end) = (raw.start, raw.end);
                return Ok(Some(Recovered {
                    line,
                    hash,
                    start,
                    end,
                }));
            }
        }
        Ok(None)
    }

    /// Of the lines before that one, though nobody knows whether they are what they were: they are
    /// verified with the outcomes that follow.
    fn note_changes_before(&mut self, file: &mut File, at: u64) -> Result<(), Refusal> {
        let mut lines = Lines::from(file, 0)?;
        while let Some(raw) = lines.next()?.filter(|raw| raw.start < at) {
            if let Some(line) = Line::parse(raw.bytes).filter(|line| line.seq < MAX_SEQ) {
                self.note_change(&line, raw.bytes);
            }
        }
        Ok(())
    }

    /// An intent is open until its outcome comes.
    fn note_change(&mut self, line: &Line, bytes: &[u8]) {
        match line.kind.as_str() {
            "intent" => {
                self.open.insert(line.seq, Some(intended(line, bytes)));
            }
            "decision" => {
                self.open.remove(&line.intent.unwrap_or_default());
            }
            _ => {}
        }
    }

    /// `bytes`: the line as it stands there; those of a `recovered` line are not needed.
    fn take(&mut self, line: &Line, bytes: &[u8], hash: [u8; 32], end: u64, ended: bool) {
        self.found.unsigned += 1;
        match line.kind.as_str() {
            "header" => self.header = true,
            "intent" | "decision" => self.note_change(line, bytes),
            "checkpoint" => {
                if let Some(signed) = self.signed_by(line) {
                    // Itself and what came between are not covered, but for itself, which the token
                    // knows right after.
                    self.found.checkpoint = line.seq;
                    self.found.unsigned = (line.seq - 1).saturating_sub(signed);
                }
            }
            _ => {}
        }
        self.recent.push_back((line.seq, hash));
        if self.recent.len() > MAX_CHECKPOINT_LAG {
            self.recent.pop_front();
        }
        self.chain = Some(Chain {
            seq: line.seq + 1,
            prev: hash,
        });
        self.length = end;
        self.unended = !ended;
    }

    /// The line that a checkpoint signs, if it is good.
    fn signed_by(&self, line: &Line) -> Option<u64> {
        let head = Head {
            log_id: self.log_id,
            seq: line.signed_seq?,
            hash: hex::decode(line.signed_hash.as_deref()?)?,
        };
        let known = self.recent.iter().rev().find(|(seq, _)| *seq == head.seq);
        if known.is_some_and(|(_, hash)| *hash != head.hash) {
            return None;
        }
        head.is_signed(line.signature.as_deref()?, &self.signer.key)
            .then_some(head.seq)
    }

    fn end(self, file: &mut File, length: u64, headless: bool) -> Result<End, Refusal> {
        let chain = self.chain.ok_or_else(|| {
            Refusal::Foreign("no whole line of it is one of an audit log".to_owned())
        })?;
        let mut found = self.found;
        let torn = if length > self.length {
            let (sha256, lacks_newline) = torn_sha256(file, self.length, length)?;
            found.torn_bytes = length - self.length;
            Some(TornTail {
                bytes: length - self.length + u64::from(lacks_newline),
                sha256,
                lacks_newline,
            })
        } else {
            None
        };
        let open: BTreeMap<_, _> = self
            .open
            .into_iter()
            .map(|(seq, intended)| (seq, intended.unwrap_or_default()))
            .collect();
        found.unknown = open.len();
        Ok(End {
            chain,
            log_id: self.log_id,
            length: self.length,
            torn,
            unended: self.unended,
            headless,
            anew: false,
            open,
            found,
        })
    }
}

impl Chain {
    fn of(anchor: &Anchor) -> Self {
        Self {
            seq: anchor.seq + 1,
            prev: anchor.hash,
        }
    }
}

/// A line as it stands in the file.
pub(super) struct Raw<'a> {
    /// Without its newline; of one that is too long its beginning.
    pub(super) bytes: &'a [u8],
    /// Where it begins.
    pub(super) start: u64,
    /// Behind its newline.
    pub(super) end: u64,
    /// It has a newline.
    pub(super) ended: bool,
}

/// Lines one after the other, of which no more is kept than a line of ours can have.
pub(super) struct Lines<R> {
    reader: R,
    at: u64,
    buffer: Vec<u8>,
}

impl<'a> Lines<BufReader<&'a mut File>> {
    fn from(file: &'a mut File, at: u64) -> io::Result<Self> {
        file.seek(SeekFrom::Start(at))?;
        Ok(Self::new(BufReader::with_capacity(1 << 16, file), at))
    }
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R, at: u64) -> Self {
        Self {
            reader,
            at,
            buffer: Vec::new(),
        }
    }

    /// `None`: there is nothing more.
    pub(super) fn next(&mut self) -> io::Result<Option<Raw<'_>>> {
        self.buffer.clear();
        let start = self.at;
        let mut ended = false;
        while !ended {
            let chunk = match self.reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                chunk => chunk?,
            };
            if chunk.is_empty() {
                break;
            }
            let newline = memchr::memchr(b'\n', chunk);
            let used = newline.map_or(chunk.len(), |at| at + 1);
            let line = chunk.get(..newline.unwrap_or(used)).unwrap_or_default();
            let room = MAX_LINE_BYTES.saturating_sub(self.buffer.len());
            self.buffer
                .extend_from_slice(line.get(..room).unwrap_or(line));
            ended = newline.is_some();
            self.at += used as u64;
            self.reader.consume(used);
        }
        Ok((self.at > start).then_some(Raw {
            bytes: &self.buffer,
            start,
            end: self.at,
            ended,
        }))
    }
}

fn first_line(file: &File) -> io::Result<Vec<u8>> {
    let mut file = file;
    file.seek(SeekFrom::Start(0))?;
    let mut lines = Lines::new(BufReader::new(file), 0);
    Ok(lines
        .next()?
        .map(|line| line.bytes.to_vec())
        .unwrap_or_default())
}

/// The beginning of a header and no more: what is left of a file whose first line was being
/// written. A disk may also leave zeros.
fn is_torn_header(first: &[u8], length: u64) -> bool {
    const BEGINNING: &[u8] = br#"{"type":"header","seq":"#;
    let alone = first.len() as u64 == length;
    let common = first.len().min(BEGINNING.len());
    let begun = first.get(..common) == BEGINNING.get(..common);
    alone && (begun && Line::parse(first).is_none() || first.iter().all(|byte| *byte == 0))
}

/// SHA-256 of a part of a file.
pub(super) fn sha256(mut file: impl Read + io::Seek, from: u64, to: u64) -> io::Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    copy(&mut file, from, to, &mut hasher)?;
    Ok(hasher.finalize().into())
}

/// Of what stands between, and of the newline that it is given if it has none.
pub(super) fn torn_sha256(
    file: impl Read + io::Seek,
    from: u64,
    to: u64,
) -> io::Result<([u8; 32], bool)> {
    let mut hasher = Sha256::new();
    let last = copy(file, from, to, &mut hasher)?;
    let lacks_newline = last != Some(b'\n');
    if lacks_newline {
        hasher.update(b"\n");
    }
    Ok((hasher.finalize().into(), lacks_newline))
}

fn copy(
    mut file: impl Read + io::Seek,
    from: u64,
    to: u64,
    hasher: &mut Sha256,
) -> io::Result<Option<u8>> {
    file.seek(SeekFrom::Start(from))?;
    let mut part = file.take(to.saturating_sub(from));
    let mut buffer = vec![0; 1 << 16];
    let mut last = None;
    loop {
        let read = part.read(&mut buffer)?;
        let bytes = buffer.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(last);
        }
        hasher.update(bytes);
        last = bytes.last().copied();
    }
}
