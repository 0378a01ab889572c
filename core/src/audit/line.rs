//! The lines: how each kind is written and chained, and what a signature covers.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use p256::ecdsa::{Signature, VerifyingKey};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::Entry;
use super::quota::Counts;
use crate::hex;
use crate::json::Document;

/// The format that headers name.
pub(super) const FORMAT: u32 = 2;

/// A line, its newline included, is no longer: what its texts may take at most, and all else in it.
pub(super) const MAX_LINE_BYTES: usize = 8192;

/// What is kept of the room for lines that wait, bytes.
const KEPT_BUFFER_BYTES: usize = 1 << 20;

/// Ends a text that was cut.
const CUT_MARK: &[u8] = b" [cut]";

/// The chain's value before the first line.
pub(super) const GENESIS_HASH: [u8; 32] = [0; 32];

/// Keeps a signature over a log from passing for one over anything else that the key signs.
const DOMAIN: &[u8] = b"strongroom audit checkpoint v1\0";

/// The chain's end at one moment: what a checkpoint signs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) log_id: [u8; 16],
    /// Of the last line.
    pub(super) seq: u64,
    /// SHA-256 of the last line.
    pub(super) hash: [u8; 32],
}

impl Head {
    /// What is signed: SHA-256 of domain || log id || seq (big-endian, 64 bits) || hash.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(DOMAIN);
        hasher.update(self.log_id);
        hasher.update(self.seq.to_be_bytes());
        hasher.update(self.hash);
        hasher.finalize().into()
    }

    /// Whether that is the key's signature of it, base64.
    pub(super) fn is_signed(&self, signature: &str, key: &VerifyingKey) -> bool {
        BASE64_STANDARD
            .decode(signature)
            .ok()
            .and_then(|bytes| Signature::from_slice(&bytes).ok())
            .is_some_and(|signature| key.verify_prehash(&self.digest(), &signature).is_ok())
    }
}

/// The chain's end: what the next line is given.
#[derive(Clone, Copy)]
pub(super) struct Chain {
    /// Of the next line.
    pub(super) seq: u64,
    /// SHA-256 of the last line.
    pub(super) prev: [u8; 32],
}

impl Chain {
    /// Before the first line.
    pub(super) const START: Self = Self {
        seq: 1,
        prev: GENESIS_HASH,
    };

    /// Behind that line with that number.
    pub(super) fn after(seq: u64, line: &[u8]) -> Self {
        Self {
            seq: seq + 1,
            prev: Sha256::digest(line).into(),
        }
    }

    /// Puts lines with that content behind what is in `out`, and returns the chain's end behind
    /// them.
    pub(super) fn link(mut self, content: &Content, out: &mut Vec<u8>) -> Self {
        let time = format!(r#","time":"{:.3}","prev":""#, jiff::Timestamp::now());
        let mut from = 0;
        for end in memchr::memchr_iter(b'\n', &content.members) {
            let line = content.members.get(from..=end).unwrap_or_default();
            from = end + 1;
            let Some((kind, members)) = line.split_first() else {
                continue;
            };
            let start = out.len();
            out.extend_from_slice(Kind::beginning(*kind));
            digits(out, self.seq);
            out.extend_from_slice(time.as_bytes());
            let mut hex = [0; 64];
            // Two digits a byte: they fit.
            let prev = base16ct::lower::encode(&self.prev, &mut hex).unwrap_or_default();
            out.extend_from_slice(prev);
            out.push(b'"');
            out.extend_from_slice(members);
            let line = out.get(start..).unwrap_or_default();
            self = Self::after(self.seq, line.strip_suffix(b"\n").unwrap_or(line));
        }
        self
    }
}

/// What a line is, as one byte before its members in a [`Content`].
#[derive(Clone, Copy)]
enum Kind {
    Header = 1,
    Intent,
    Decision,
    Summary,
    Checkpoint,
    Recovered,
}

impl Kind {
    /// How a line of the kind begins.
    fn beginning(kind: u8) -> &'static [u8] {
        match kind {
            1 => br#"{"type":"header","seq":"#,
            2 => br#"{"type":"intent","seq":"#,
            4 => br#"{"type":"summary","seq":"#,
            5 => br#"{"type":"checkpoint","seq":"#,
            6 => br#"{"type":"recovered","seq":"#,
            _ => br#"{"type":"decision","seq":"#,
        }
    }
}

/// How much of a line each text may take, bytes, its escapes included and its quotes not. With what
/// else is in a line they stay below [`MAX_LINE_BYTES`].
mod max_bytes {
    pub(super) const REQUEST_ID: usize = 64;
    /// A SPIFFE ID has 2048 bytes at most, and is ASCII.
    pub(super) const IDENTITY: usize = 2560;
    pub(super) const TOKEN_ID: usize = 256;
    pub(super) const REMOTE: usize = 64;
    pub(super) const OPERATION: usize = 64;
    pub(super) const KEY: usize = 256;
    pub(super) const REASON: usize = 1024;
    /// Made here, of hex digits and the like.
    pub(super) const OWN_TEXT: usize = 128;
}

/// What lines say, their places in the chain left out: of each its kind, what comes after `prev`,
/// and the newline.
#[derive(Default)]
pub(super) struct Content {
    members: Vec<u8>,
}

impl Content {
    /// One decision more; `entry.intent` is the number of its intent's line.
    pub(super) fn decide(&mut self, entry: &Entry<'_>) {
        self.begin(Kind::Decision);
        self.who_and_what(entry);
        self.number(r#","key_version":"#, u64::from(entry.key_version));
        self.number(r#","batch":"#, entry.batch as u64);
        self.number(r#","batch_failed":"#, entry.batch_failed as u64);
        self.text(r#","outcome":"#, entry.outcome, max_bytes::OWN_TEXT);
        self.number(r#","status":"#, u64::from(entry.status));
        self.text(r#","reason":"#, entry.reason, max_bytes::REASON);
        self.number(r#","intent":"#, entry.intent);
        self.end();
    }

    /// A change that is about to begin.
    pub(super) fn intend(&mut self, entry: &Entry<'_>) {
        self.begin(Kind::Intent);
        self.who_and_what(entry);
        self.text(r#","reason":"#, entry.reason, max_bytes::REASON);
        self.end();
    }

    /// How many decisions about an identity's requests since then have no lines of their own.
    pub(super) fn sum_up(&mut self, identity: &str, since: jiff::Timestamp, counts: &Counts) {
        self.begin(Kind::Summary);
        self.text(r#","identity":"#, identity, max_bytes::IDENTITY);
        self.text(r#","since":"#, &format!("{since:.3}"), max_bytes::OWN_TEXT);
        self.number(r#","denied":"#, counts.denied);
        self.number(r#","errors":"#, counts.errors);
        self.number(r#","ok":"#, counts.ok);
        self.end();
    }

    fn who_and_what(&mut self, entry: &Entry<'_>) {
        self.text(r#","request_id":"#, entry.request_id, max_bytes::REQUEST_ID);
        self.text(r#","identity":"#, entry.identity, max_bytes::IDENTITY);
        self.text(r#","token_id":"#, entry.token_id, max_bytes::TOKEN_ID);
        self.text(r#","remote":"#, entry.remote, max_bytes::REMOTE);
        self.text(r#","certificate":"#, entry.certificate, max_bytes::OWN_TEXT);
        self.text(r#","issuer":"#, entry.issuer, max_bytes::OWN_TEXT);
        self.text(r#","operation":"#, entry.operation, max_bytes::OPERATION);
        self.text(r#","key":"#, entry.key, max_bytes::KEY);
    }

    pub(super) fn header(log_id: &[u8; 16], signing_key: &[u8; 32]) -> Self {
        let mut line = Self::default();
        line.begin(Kind::Header);
        line.number(r#","format":"#, u64::from(FORMAT));
        line.hex(r#","log_id":"#, log_id);
        line.hex(r#","signing_key":"#, signing_key);
        line.end();
        line
    }

    pub(super) fn checkpoint(head: &Head, signature: &[u8; 64]) -> Self {
        let mut line = Self::default();
        line.begin(Kind::Checkpoint);
        line.number(r#","signed_seq":"#, head.seq);
        line.hex(r#","signed_hash":"#, &head.hash);
        line.text(
            r#","signature":"#,
            &BASE64_STANDARD.encode(signature),
            max_bytes::OWN_TEXT,
        );
        line.end();
        line
    }

    pub(super) fn recovered(torn_bytes: u64, torn_sha256: &[u8; 32]) -> Self {
        let mut line = Self::default();
        line.begin(Kind::Recovered);
        line.number(r#","torn_bytes":"#, torn_bytes);
        line.hex(r#","torn_sha256":"#, torn_sha256);
        line.end();
        line
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// As if nothing had been said, with the room for as much again, if that is not out of the
    /// common.
    pub(super) fn clear(&mut self) {
        self.members.clear();
        self.members.shrink_to(KEPT_BUFFER_BYTES);
    }

    fn begin(&mut self, kind: Kind) {
        self.members.push(kind as u8);
    }

    /// `name`: as it stands before the value, `,"name":`. A value that takes more than `limit`
    /// bytes as it is written is cut. What is written is printable ASCII, so that nothing in a
    /// line can move a terminal's cursor or turn the direction of what is read.
    fn text(&mut self, name: &str, value: &str, limit: usize) {
        let out = &mut self.members;
        out.extend_from_slice(name.as_bytes());
        out.push(b'"');
        if value.len() <= limit && value.bytes().all(stands_for_itself) {
            out.extend_from_slice(value.as_bytes());
        } else {
            escape(out, value, limit);
        }
        out.push(b'"');
    }

    fn hex(&mut self, name: &str, bytes: &[u8]) {
        self.text(name, &hex::encode(bytes), max_bytes::OWN_TEXT);
    }

    /// As [`Content::text`].
    fn number(&mut self, name: &str, value: u64) {
        self.members.extend_from_slice(name.as_bytes());
        digits(&mut self.members, value);
    }

    fn end(&mut self) {
        self.members.extend_from_slice(b"}\n");
    }
}

fn stands_for_itself(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')
}

/// As much of a value as fits, with its escapes; [`CUT_MARK`] at the end if that is not all.
fn escape(out: &mut Vec<u8>, value: &str, limit: usize) {
    let start = out.len();
    // Where a text that turns out to be too long is cut.
    let mut cut = start;
    for character in value.chars() {
        match character {
            '"' | '\\' => out.extend_from_slice(&[b'\\', character as u8]),
            ' '..='~' => out.push(character as u8),
            _ => {
                let mut units = [0; 2];
                for unit in character.encode_utf16(&mut units) {
                    out.extend_from_slice(format!("\\u{unit:04x}").as_bytes());
                }
            }
        }
        if out.len() - start > limit {
            out.truncate(cut);
            out.extend_from_slice(CUT_MARK);
            return;
        }
        if out.len() - start + CUT_MARK.len() <= limit {
            cut = out.len();
        }
    }
}

fn digits(out: &mut Vec<u8>, value: u64) {
    // JSON of a number into memory has no way to fail.
    let _ = serde_json::to_writer(out, &value);
}

/// A line as far as the chain is concerned, and what links the lines about a change.
#[derive(Debug, Deserialize)]
pub(super) struct Line {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) seq: u64,
    pub(super) prev: String,
    pub(super) format: Option<u32>,
    pub(super) log_id: Option<String>,
    pub(super) signing_key: Option<String>,
    pub(super) signed_seq: Option<u64>,
    pub(super) signed_hash: Option<String>,
    pub(super) signature: Option<String>,
    pub(super) torn_bytes: Option<u64>,
    pub(super) torn_sha256: Option<String>,
    pub(super) intent: Option<u64>,
    pub(super) outcome: Option<String>,
    pub(super) denied: Option<u64>,
    pub(super) errors: Option<u64>,
    pub(super) ok: Option<u64>,
    pub(super) operation: Option<String>,
    pub(super) key: Option<String>,
    pub(super) request_id: Option<String>,
    pub(super) identity: Option<String>,
}

impl Line {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let printable = bytes.iter().all(|byte| matches!(byte, b' '..=b'~'));
        if bytes.len() >= MAX_LINE_BYTES || !printable {
            return None;
        }
        Document::parse(bytes).ok()?.read().ok()
    }

    pub(super) fn prev(&self) -> Option<[u8; 32]> {
        hex::decode(&self.prev)
    }
}
