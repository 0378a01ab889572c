//! Checks a log without the HSM: the chain through all its files, the signatures, that each change
//! has its outcome, and what is known of its beginning and end from elsewhere.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use p256::ecdsa::VerifyingKey;
use p256::pkcs8::DecodePublicKey as _;
use sha2::{Digest as _, Sha256};

use super::anchor::{Anchor, Phase};
use super::line::{FORMAT, GENESIS_HASH, Head, Line, MAX_LINE_BYTES};
use super::resume::{Lines, sha256};
use super::{Audit, AuditError};
use crate::hex;

/// A checkpoint may name a line this far back: those that were written while the HSM signed, or was
/// away.
const MAX_CHECKPOINT_LAG: usize = 1 << 20;

/// What `strongroom audit verify` found.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Verification {
    /// Lines read.
    pub lines: u64,
    /// Number of the first line; greater than 1 if older files were left out.
    pub first_seq: u64,
    /// Number of the last line.
    pub last_seq: u64,
    /// Signed checkpoints that are right.
    pub checkpoints: u64,
    /// Lines after the last one that a signature covers.
    pub unsigned_tail: u64,
    /// Changes at the end that have no outcome yet.
    pub open_intents: u64,
    /// Changes whose outcome nobody knows, since the program ended before it was written.
    pub unknown_outcomes: u64,
    /// Decisions that are only counted.
    pub counted: u64,
    /// Every problem, with file and line.
    pub problems: Vec<String>,
}

/// What a log is held against, from elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// What the token knows of its end.
    pub end: Option<Anchor>,
    /// SHA-256 of its first line, as the transcript of its initial ceremony has it.
    pub beginning: Option<[u8; 32]>,
}

impl Audit {
    /// Checks files, oldest first, against the signing key (`SubjectPublicKeyInfo`, DER).
    ///
    /// # Errors
    /// [`AuditError::Key`] and [`AuditError::Read`]; what is wrong with the log itself is in
    /// [`Verification::problems`].
    pub fn verify(
        files: &[&Path],
        signing_key: &[u8],
        held: &Held,
    ) -> Result<Verification, AuditError> {
        let files = files.iter().map(|path| {
            let file = File::open(path).map_err(|source| AuditError::Read {
                path: (*path).to_owned(),
                source,
            })?;
            Ok(((*path).to_owned(), file))
        });
        Self::verify_opened(files.collect::<Result<_, AuditError>>()?, signing_key, held)
    }

    /// As [`Audit::verify`], of files that are open already.
    ///
    /// # Errors
    /// The same.
    pub fn verify_opened(
        files: Vec<(PathBuf, File)>,
        signing_key: &[u8],
        held: &Held,
    ) -> Result<Verification, AuditError> {
        let mut check = Check::new(signing_key, held)?;
        for (path, file) in files {
            check
                .file(&path.display().to_string(), file)
                .map_err(|source| AuditError::Read { path, source })?;
        }
        Ok(check.finish())
    }
}

impl Verification {
    /// Makes problems of what only the log of a server that was stopped in order has none of.
    pub fn must_be_complete(&mut self) {
        if self.unsigned_tail > 0 {
            self.problems.push(format!(
                "the last {} lines are covered by no signature: the server is running or was killed, or the end was cut or rewritten",
                self.unsigned_tail
            ));
        }
        if self.open_intents > 0 {
            self.problems.push(format!(
                "{} changes have no outcome: the server is running or was killed, or the end was cut",
                self.open_intents
            ));
        }
    }
}

struct Check<'a> {
    key: VerifyingKey,
    fingerprint: [u8; 32],
    held: &'a Held,
    found: Verification,
    log_id: Option<[u8; 16]>,
    /// Number and `prev` of the next line; none before the first.
    expected: Option<(u64, [u8; 32])>,
    /// Number and hash of the latest lines.
    recent: VecDeque<(u64, [u8; 32])>,
    signed_seq: u64,
    /// Changes without an outcome, and where they began.
    open: BTreeMap<u64, String>,
    /// The line that the token knows was there.
    reached: bool,
}

impl<'a> Check<'a> {
    fn new(signing_key: &[u8], held: &'a Held) -> Result<Self, AuditError> {
        let key = VerifyingKey::from_public_key_der(signing_key)
            .map_err(|error| AuditError::Key(error.to_string()))?;
        Ok(Self {
            key,
            fingerprint: Sha256::digest(signing_key).into(),
            held,
            found: Verification::default(),
            log_id: None,
            expected: None,
            recent: VecDeque::new(),
            signed_seq: 0,
            open: BTreeMap::new(),
            reached: false,
        })
    }

    fn file(&mut self, name: &str, mut file: impl Read + Seek) -> io::Result<()> {
        let torn = self.torn(name, &mut file)?;
        let mut torn = torn.iter().peekable();
        file.seek(SeekFrom::Start(0))?;
        let mut lines = Lines::new(BufReader::with_capacity(1 << 16, file), 0);
        let mut number = 0_u64;
        while let Some(raw) = lines.next()? {
            number += 1;
            let place = format!("{name}:{number}");
            self.found.lines += 1;
            // What a power cut left is accounted for by the line behind it.
            while torn.next_if(|region| region.1 <= raw.start).is_some() {}
            if torn.peek().is_some_and(|region| region.0 <= raw.start) {
                continue;
            }
            self.line(&place, raw.bytes, raw.end);
            if !raw.ended {
                self.problem(
                    &place,
                    "the line has no end: it was cut, or is still being written",
                );
            }
        }
        if number == 0 {
            self.problem(name, "the file is empty");
        }
        Ok(())
    }

    /// Where the bytes are that `recovered` lines account for: from and to, in their order.
    fn torn(&mut self, name: &str, file: &mut (impl Read + Seek)) -> io::Result<Vec<(u64, u64)>> {
        let mut recovered = Vec::new();
        let mut lines = Lines::new(BufReader::with_capacity(1 << 16, &mut *file), 0);
        let mut number = 0_u64;
        while let Some(raw) = lines.next()? {
            number += 1;
            // A type can be written with escapes too.
            let may_be = memchr::memchr(b'\\', raw.bytes).is_some()
                || memchr::memmem::find(raw.bytes, b"recovered").is_some();
            if may_be
                && let Some(line) = Line::parse(raw.bytes).filter(|line| line.kind == "recovered")
            {
                let sum = line.torn_sha256.as_deref().and_then(hex::decode::<32>);
                recovered.push((number, raw.start, line.torn_bytes, sum));
            }
        }
        let mut regions = Vec::new();
        // From the last on: what it accounts for may look like a line that accounts for something.
        // No byte is looked at twice, whatever the lines say.
        let mut free = u64::MAX;
        for (number, end, bytes, sum) in recovered.into_iter().rev() {
            if end >= free {
                continue;
            }
            let begin = bytes.and_then(|bytes| end.checked_sub(bytes));
            free = bytes.map_or(end, |bytes| end.saturating_sub(bytes));
            if begin.is_some() && sum == Some(sha256(&mut *file, free, end)?) {
                regions.push((free, end));
            } else {
                self.problem(
                    &format!("{name}:{number}"),
                    "what it accounts for is not what stands before it",
                );
            }
        }
        regions.reverse();
        Ok(regions)
    }

    fn line(&mut self, place: &str, bytes: &[u8], ends: u64) {
        let hash: [u8; 32] = Sha256::digest(bytes).into();
        let Some(line) = Line::parse(bytes) else {
            self.problem(
                place,
                if bytes.len() >= MAX_LINE_BYTES {
                    "longer than a line of an audit log can be"
                } else {
                    "not a line of an audit log"
                },
            );
            return;
        };
        let first = self.expected.is_none();
        if first && line.kind != "header" {
            self.problem(place, "the log does not begin with a header");
        }
        if first
            && let Some(beginning) = self.held.beginning
            && (hash != beginning || line.seq != 1)
        {
            self.problem(
                place,
                "it is not the first line of the log that was born with the appliance",
            );
        }
        self.chain(place, &line);
        match line.kind.as_str() {
            "header" => self.header(place, &line),
            "checkpoint" => self.checkpoint(place, &line),
            "intent" => {
                self.open.insert(line.seq, place.to_owned());
            }
            "decision" => self.decision(place, &line),
            "summary" => {
                let counts = [line.denied, line.errors, line.ok].map(Option::unwrap_or_default);
                self.found.counted = counts
                    .into_iter()
                    .fold(self.found.counted, u64::saturating_add);
            }
            "recovered" => {}
            other => {
                let other: String = other.chars().take(40).collect();
                self.problem(place, &format!("a line of unknown type {other:?}"));
            }
        }
        if let Some(end) = &self.held.end
            && end.seq == line.seq
        {
            self.reached = true;
            if hash != end.hash {
                self.problem(place, "it is not the line that the token knows");
            }
            if let Some(known) = end.bytes.filter(|known| *known != ends) {
                self.problem(
                    place,
                    &format!("it ends at byte {ends} of the file, but the token knows that it ended at byte {known}: lines before it were taken out, or put in"),
                );
            }
        }
        self.expected = Some((line.seq.saturating_add(1), hash));
        if self.recent.len() == MAX_CHECKPOINT_LAG {
            self.recent.pop_front();
        }
        self.recent.push_back((line.seq, hash));
    }

    fn chain(&mut self, place: &str, line: &Line) {
        match self.expected {
            None => {
                self.found.first_seq = line.seq;
                if line.seq == 1 && line.prev() != Some(GENESIS_HASH) {
                    self.problem(
                        place,
                        "line 1 of a log has nothing before it, but names something",
                    );
                }
            }
            Some((seq, prev)) => {
                if line.seq != seq {
                    self.problem(
                        place,
                        &format!("line {seq} was expected, this is line {}: lines are missing, added or moved", line.seq),
                    );
                } else if line.prev() != Some(prev) {
                    self.problem(place, "the line before this one is not the one that was written there: it was changed or replaced");
                }
            }
        }
    }

    fn decision(&mut self, place: &str, line: &Line) {
        let intent = line.intent.unwrap_or_default();
        // One in an older file that was left out is not to be seen.
        if intent > 0 && self.open.remove(&intent).is_none() && intent >= self.found.first_seq {
            self.problem(
                place,
                &format!(
                    "it is the outcome of line {intent}, which is not a change that waits for one"
                ),
            );
        }
        self.found.unknown_outcomes += u64::from(line.outcome.as_deref() == Some("unknown"));
        if line.operation.as_deref() == Some("server:start") {
            for place in std::mem::take(&mut self.open).into_values() {
                self.problem(&place, "the outcome of this change is missing");
            }
        }
    }

    fn header(&mut self, place: &str, line: &Line) {
        if line.format != Some(FORMAT) {
            self.problem(place, &format!("the header is not of format {FORMAT}"));
        }
        let id = line.log_id.as_deref().and_then(hex::decode::<16>);
        if id.is_none() || self.log_id.is_some_and(|known| Some(known) != id) {
            self.problem(place, "the header is of another log");
        }
        self.log_id = self.log_id.or(id);
        if line.signing_key.as_deref().and_then(hex::decode::<32>) != Some(self.fingerprint) {
            self.problem(
                place,
                "the header names another signing key than the one given",
            );
        }
    }

    fn checkpoint(&mut self, place: &str, line: &Line) {
        let signed = line
            .signed_seq
            .zip(line.signed_hash.as_deref().and_then(hex::decode::<32>));
        let (Some((seq, hash)), Some(signature)) = (signed, line.signature.as_deref()) else {
            self.problem(place, "the checkpoint is not whole");
            return;
        };
        let head = Head {
            log_id: self.log_id.unwrap_or_default(),
            seq,
            hash,
        };
        if !head.is_signed(signature, &self.key) {
            self.problem(
                place,
                "the checkpoint's signature is not that of the signing key",
            );
            return;
        }
        // From the end: what is signed is nearly always among the last few lines.
        match self.recent.iter().rev().find(|(number, _)| *number == seq) {
            Some((_, found)) if *found == hash => {
                self.found.checkpoints += 1;
                self.signed_seq = self.signed_seq.max(seq);
            }
            Some(_) => self.problem(place, &format!("line {seq} is not the one that was signed")),
            // It signs what is in an older file that was left out.
            None if self.found.first_seq > seq => {}
            None => self.problem(
                place,
                &format!("line {seq}, which is signed here, is missing"),
            ),
        }
    }

    fn finish(mut self) -> Verification {
        if self.found.lines > 0 && self.found.checkpoints == 0 {
            // The chain alone is no evidence: whoever can write the file can compute it again.
            self.found.problems.push(
                "no line is covered by a signature: a server signs its log when it starts, and every few seconds while it runs"
                    .to_owned(),
            );
        }
        let last = self.expected.map_or(0, |(next, _)| next.saturating_sub(1));
        let mut tail =
            last.saturating_sub(self.signed_seq.max(self.found.first_seq.saturating_sub(1)));
        // The checkpoint itself stands behind what it signs.
        if tail == 1 && self.found.checkpoints > 0 {
            tail = 0;
        }
        self.found.unsigned_tail = tail;
        self.found.last_seq = last;
        self.found.open_intents = self.open.len() as u64;
        if let Some(end) = &self.held.end {
            let problem = if self.log_id != Some(end.log_id) {
                Some("the token knows of another log".to_owned())
            } else if !self.reached && last < end.seq {
                Some(format!(
                    "the log ends at line {last}, but the token knows of line {}: its end was cut off, or this is an older copy",
                    end.seq
                ))
            } else if !self.reached && self.found.first_seq <= end.seq {
                Some(format!(
                    "line {}, which the token knows, is missing",
                    end.seq
                ))
            } else if end.phase == Phase::Stopped && last > end.seq {
                Some(format!(
                    "something stands behind line {}, where the log ended when it was last stopped in order",
                    end.seq
                ))
            } else {
                None
            };
            self.found.problems.extend(problem);
        }
        self.found
    }

    fn problem(&mut self, place: &str, what: &str) {
        self.found.problems.push(format!("{place}: {what}"));
    }
}

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
