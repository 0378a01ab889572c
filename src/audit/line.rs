//! The lines: how each kind is written and chained, and what a signature covers.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::Entry;

/// The format that headers name.
pub(super) const FORMAT: u32 = 1;

/// The chain's value before the first line.
pub(super) const START: [u8; 32] = [0; 32];

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
        prev: START,
    };

    /// Behind that line with that number.
    pub(super) fn after(seq: u64, line: &[u8]) -> Self {
        Self {
            seq: seq + 1,
            prev: Sha256::digest(line).into(),
        }
    }

    /// Puts lines with that content into `out`, in place of what was there, and returns the chain's end behind them.
    pub(super) fn link(mut self, content: &Content, out: &mut Vec<u8>) -> Self {
        let kind = format!(r#"{{"type":"{}","seq":"#, content.kind);
        let time = format!(r#","time":"{:.3}","prev":""#, jiff::Timestamp::now());
        out.clear();
        let mut from = 0;
        for end in memchr::memchr_iter(b'\n', &content.members) {
            let members = content.members.get(from..=end).unwrap_or_default();
            from = end + 1;
            let start = out.len();
            out.extend_from_slice(kind.as_bytes());
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

/// What one line or more of a kind say, their places in the chain left out: of each, what comes after `prev`, with the newline.
pub(super) struct Content {
    kind: &'static str,
    members: Vec<u8>,
}

impl Content {
    /// No decision yet.
    pub(super) fn decisions() -> Self {
        Self::of("decision")
    }

    /// One decision more.
    pub(super) fn decide(&mut self, entry: &Entry<'_>) {
        self.text(r#","request_id":"#, entry.request_id);
        self.text(r#","identity":"#, entry.identity);
        self.text(r#","token_id":"#, entry.token_id);
        self.text(r#","remote":"#, entry.remote);
        self.text(r#","operation":"#, entry.operation);
        self.text(r#","key":"#, entry.key);
        self.number(r#","key_version":"#, u64::from(entry.key_version));
        self.number(r#","batch":"#, entry.batch as u64);
        self.number(r#","batch_failed":"#, entry.batch_failed as u64);
        self.text(r#","outcome":"#, entry.outcome);
        self.number(r#","status":"#, u64::from(entry.status));
        self.text(r#","reason":"#, entry.reason);
        self.end();
    }

    pub(super) fn header(log_id: &[u8; 16], signing_key: &[u8; 32]) -> Self {
        let mut line = Self::of("header");
        line.number(r#","format":"#, u64::from(FORMAT));
        line.text(r#","log_id":"#, &base16ct::lower::encode_string(log_id));
        line.text(
            r#","signing_key":"#,
            &base16ct::lower::encode_string(signing_key),
        );
        line.end();
        line
    }

    pub(super) fn checkpoint(head: &Head, signature: &[u8; 64]) -> Self {
        let mut line = Self::of("checkpoint");
        line.number(r#","signed_seq":"#, head.seq);
        line.text(
            r#","signed_hash":"#,
            &base16ct::lower::encode_string(&head.hash),
        );
        line.text(r#","signature":"#, &BASE64_STANDARD.encode(signature));
        line.end();
        line
    }

    pub(super) fn recovered(torn: &[u8]) -> Self {
        let mut line = Self::of("recovered");
        line.number(r#","torn_bytes":"#, torn.len() as u64);
        line.text(
            r#","torn_sha256":"#,
            &base16ct::lower::encode_string(&Sha256::digest(torn)),
        );
        line.end();
        line
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// As if nothing had been said, with the room for as much again.
    pub(super) fn clear(&mut self) {
        self.members.clear();
    }

    fn of(kind: &'static str) -> Self {
        Self {
            kind,
            members: Vec::new(),
        }
    }

    /// `name`: as it stands before the value, `,"name":`.
    fn text(&mut self, name: &str, value: &str) {
        self.members.extend_from_slice(name.as_bytes());
        // JSON of a text into memory has no way to fail; its newlines are escaped.
        let _ = serde_json::to_writer(&mut self.members, value);
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

fn digits(out: &mut Vec<u8>, value: u64) {
    // JSON of a number into memory has no way to fail.
    let _ = serde_json::to_writer(out, &value);
}

/// A line as far as the chain is concerned; a decision's own fields are not looked at.
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
    pub(super) torn_sha256: Option<String>,
}

impl Line {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        // Serde would also take a list, as the fields in their order.
        if !bytes.starts_with(b"{") {
            return None;
        }
        serde_json::from_slice(bytes).ok()
    }

    pub(super) fn prev(&self) -> Option<[u8; 32]> {
        unhex(&self.prev)
    }
}

/// `N` bytes from lower-case hexadecimal digits.
pub(super) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    (base16ct::lower::decode(text, &mut bytes).ok()?.len() == N).then_some(bytes)
}
