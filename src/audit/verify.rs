//! Checks a log without the HSM: the chain through all its files, and the signatures.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use p256::ecdsa::{Signature, VerifyingKey};
use p256::pkcs8::DecodePublicKey as _;
use sha2::{Digest as _, Sha256};

use super::line::{FORMAT, Head, Line, START, unhex};
use super::{Audit, AuditError};

/// A longer line is none of ours; it is skipped without being kept.
const LONGEST_LINE: u64 = 1 << 20;

/// A checkpoint may name a line this far back: those that were written while the HSM signed, or was away.
const WINDOW: usize = 1 << 20;

/// What `strongroom audit verify` found.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Verification {
    /// Lines read.
    pub lines: u64,
    /// Number of the first line; greater than 1 if older files were left out.
    pub first_seq: u64,
    /// Signed checkpoints that are right.
    pub checkpoints: u64,
    /// Lines after the last one that a signature covers.
    pub unsigned_tail: u64,
    /// Every problem, with file and line.
    pub problems: Vec<String>,
}

impl Audit {
    /// Checks files, oldest first, against the signing key (`SubjectPublicKeyInfo`, DER).
    ///
    /// # Errors
    /// [`AuditError::Key`] and [`AuditError::Read`]; what is wrong with the log itself is in [`Verification::problems`].
    pub fn verify(files: &[&Path], signing_key: &[u8]) -> Result<Verification, AuditError> {
        let mut check = Check::new(signing_key)?;
        for path in files {
            File::open(path)
                .and_then(|file| check.file(&path.display().to_string(), BufReader::new(file)))
                .map_err(|source| AuditError::Read {
                    path: (*path).to_owned(),
                    source,
                })?;
        }
        Ok(check.finish())
    }
}

struct Check {
    key: VerifyingKey,
    fingerprint: [u8; 32],
    found: Verification,
    log_id: Option<[u8; 16]>,
    /// Number and `prev` of the next line; none before the first.
    expected: Option<(u64, [u8; 32])>,
    /// Number and hash of the latest lines.
    recent: VecDeque<(u64, [u8; 32])>,
    signed_seq: u64,
    /// Where an unreadable line was, and its hash: a `recovered` line may follow.
    torn: Option<(String, [u8; 32])>,
}

impl Check {
    fn new(signing_key: &[u8]) -> Result<Self, AuditError> {
        let key = VerifyingKey::from_public_key_der(signing_key)
            .map_err(|error| AuditError::Key(error.to_string()))?;
        Ok(Self {
            key,
            fingerprint: Sha256::digest(signing_key).into(),
            found: Verification::default(),
            log_id: None,
            expected: None,
            recent: VecDeque::new(),
            signed_seq: 0,
            torn: None,
        })
    }

    fn file(&mut self, name: &str, mut reader: impl BufRead) -> io::Result<()> {
        let mut bytes = Vec::new();
        for number in 1_u64.. {
            let place = format!("{name}:{number}");
            bytes.clear();
            if reader
                .by_ref()
                .take(LONGEST_LINE)
                .read_until(b'\n', &mut bytes)?
                == 0
            {
                if number == 1 {
                    self.problem(&place, "the file is empty");
                }
                break;
            }
            let whole = bytes.pop_if(|byte| *byte == b'\n').is_some();
            if !whole && bytes.len() as u64 >= LONGEST_LINE {
                skip_line(&mut reader)?;
            }
            self.found.lines += 1;
            self.line(&place, &bytes, number == 1);
            if !whole {
                self.problem(
                    &place,
                    "the line has no end: it was cut, or is still being written",
                );
            }
        }
        Ok(())
    }

    fn line(&mut self, place: &str, bytes: &[u8], first: bool) {
        let hash: [u8; 32] = Sha256::digest(bytes).into();
        let Some(line) = Line::parse(bytes) else {
            self.report_torn();
            self.torn = Some((place.to_owned(), hash));
            return;
        };
        if let Some((torn_place, torn_hash)) = self.torn.take() {
            let named = line.torn_sha256.as_deref().and_then(unhex::<32>);
            if line.kind != "recovered" || named != Some(torn_hash) {
                self.problem(&torn_place, "not a line of an audit log");
            }
        }
        self.chain(place, &line);
        if first != (line.kind == "header") {
            self.problem(
                place,
                if first {
                    "the file does not begin with a header"
                } else {
                    "a header in the middle"
                },
            );
        }
        match line.kind.as_str() {
            "header" => self.header(place, &line),
            "checkpoint" => self.checkpoint(place, &line),
            "decision" | "recovered" => {}
            other => self.problem(place, &format!("a line of unknown type {other:?}")),
        }
        self.expected = Some((line.seq.saturating_add(1), hash));
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back((line.seq, hash));
    }

    fn chain(&mut self, place: &str, line: &Line) {
        match self.expected {
            None => {
                self.found.first_seq = line.seq;
                if line.seq == 1 && line.prev() != Some(START) {
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

    fn header(&mut self, place: &str, line: &Line) {
        if line.format != Some(FORMAT) {
            self.problem(place, &format!("the header is not of format {FORMAT}"));
        }
        let id = line.log_id.as_deref().and_then(unhex::<16>);
        if id.is_none() || self.log_id.is_some_and(|known| Some(known) != id) {
            self.problem(place, "the header is of another log");
        }
        self.log_id = self.log_id.or(id);
        if line.signing_key.as_deref().and_then(unhex::<32>) != Some(self.fingerprint) {
            self.problem(
                place,
                "the header names another signing key than the one given",
            );
        }
    }

    fn checkpoint(&mut self, place: &str, line: &Line) {
        let signed = line
            .signed_seq
            .zip(line.signed_hash.as_deref().and_then(unhex::<32>));
        let signature = line
            .signature
            .as_deref()
            .and_then(|text| BASE64_STANDARD.decode(text).ok())
            .and_then(|bytes| Signature::from_slice(&bytes).ok());
        let (Some((seq, hash)), Some(signature)) = (signed, signature) else {
            self.problem(place, "the checkpoint is not whole");
            return;
        };
        let head = Head {
            log_id: self.log_id.unwrap_or_default(),
            seq,
            hash,
        };
        if self.key.verify_prehash(&head.digest(), &signature).is_err() {
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
            None if self.found.first_seq > seq => {} // it signs what is in an older file that was left out
            None => self.problem(
                place,
                &format!("line {seq}, which is signed here, is missing"),
            ),
        }
    }

    fn finish(mut self) -> Verification {
        self.report_torn();
        if self.found.lines > 0 && self.found.checkpoints == 0 {
            // The chain alone is no evidence: whoever can write the file can compute it anew.
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
        self.found
    }

    fn report_torn(&mut self) {
        if let Some((place, _)) = self.torn.take() {
            self.problem(&place, "not a line of an audit log");
        }
    }

    fn problem(&mut self, place: &str, what: &str) {
        self.found.problems.push(format!("{place}: {what}"));
    }
}

fn skip_line(reader: &mut impl BufRead) -> io::Result<()> {
    loop {
        let chunk = reader.fill_buf()?;
        if chunk.is_empty() {
            return Ok(());
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(chunk.len(), |at| at + 1);
        reader.consume(used);
        if end.is_some() {
            return Ok(());
        }
    }
}

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
