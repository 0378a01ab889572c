//! The lines: how each kind is written, and what a signature covers.

use std::io::Write as _;

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

/// One line under construction, in a buffer that is used again for the next.
pub(super) struct LineWriter<'a> {
    buffer: &'a mut Vec<u8>,
    seq: u64,
    prev: [u8; 32],
}

impl<'a> LineWriter<'a> {
    pub(super) fn new(buffer: &'a mut Vec<u8>, seq: u64, prev: [u8; 32]) -> Self {
        buffer.clear();
        Self { buffer, seq, prev }
    }

    pub(super) fn decision(self, entry: &Entry<'_>) {
        let mut line = self.begin("decision");
        line.text("request_id", entry.request_id);
        line.text("identity", entry.identity);
        line.text("token_id", entry.token_id);
        line.text("remote", entry.remote);
        line.text("operation", entry.operation);
        line.text("key", entry.key);
        line.number("key_version", u64::from(entry.key_version));
        line.number("batch", entry.batch as u64);
        line.number("batch_failed", entry.batch_failed as u64);
        line.text("outcome", entry.outcome);
        line.number("status", u64::from(entry.status));
        line.text("reason", entry.reason);
        line.end();
    }

    pub(super) fn header(self, log_id: &[u8; 16], signing_key: &[u8; 32]) {
        let mut line = self.begin("header");
        line.number("format", u64::from(FORMAT));
        line.text("log_id", &base16ct::lower::encode_string(log_id));
        line.text("signing_key", &base16ct::lower::encode_string(signing_key));
        line.end();
    }

    pub(super) fn checkpoint(self, head: &Head, signature: &[u8; 64]) {
        let mut line = self.begin("checkpoint");
        line.number("signed_seq", head.seq);
        line.text("signed_hash", &base16ct::lower::encode_string(&head.hash));
        line.text("signature", &BASE64_STANDARD.encode(signature));
        line.end();
    }

    pub(super) fn recovered(self, torn: &[u8]) {
        let mut line = self.begin("recovered");
        line.number("torn_bytes", torn.len() as u64);
        line.text(
            "torn_sha256",
            &base16ct::lower::encode_string(&Sha256::digest(torn)),
        );
        line.end();
    }

    fn begin(mut self, kind: &str) -> Self {
        self.buffer.extend_from_slice(b"{\"type\":\"");
        self.buffer.extend_from_slice(kind.as_bytes());
        self.buffer.push(b'"');
        self.number("seq", self.seq);
        self.name("time");
        // Formatting into memory has no way to fail.
        let _ = write!(self.buffer, "\"{:.3}\"", jiff::Timestamp::now());
        let (prev, mut hex) = (self.prev, [0; 64]);
        // Nor has this: two digits a byte.
        self.text(
            "prev",
            base16ct::lower::encode_str(&prev, &mut hex).unwrap_or_default(),
        );
        self
    }

    fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        // JSON of a text into memory has no way to fail.
        let _ = serde_json::to_writer(&mut *self.buffer, value);
    }

    fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        let _ = serde_json::to_writer(&mut *self.buffer, &value);
    }

    fn name(&mut self, name: &str) {
        self.buffer.extend_from_slice(b",\"");
        self.buffer.extend_from_slice(name.as_bytes());
        self.buffer.extend_from_slice(b"\":");
    }

    fn end(self) {
        self.buffer.extend_from_slice(b"}\n");
    }
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
