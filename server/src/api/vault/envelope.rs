//! Vault's envelope, written straight into the buffer that goes to the socket and zeroized when it
//! has.

use std::io::Write as _;

use base64::Engine as _;
use bytes::Bytes;
use serde::Serialize;
use zeroize::Zeroizing;

use super::wire::{BASE64, PREFIX};
use crate::api::pipeline::answer::RequestId;

/// Room for the envelope around `data`.
const ENVELOPE_BYTES: usize = 224;

/// What a profile shows on the hot path: written by hand, member by member, as serde writes it.
pub(in crate::api::vault) trait Members: Serialize {
    /// The members, without their braces.
    fn write(&self, envelope: &mut Envelope);
}

/// Vault's envelope, open at `"data":`.
pub(in crate::api) struct Envelope {
    buf: Zeroizing<Vec<u8>>,
}

impl Envelope {
    /// `room`: bytes that `data` will take. What doesn't fit still works, but leaves a copy behind
    /// in freed memory.
    pub(in crate::api) fn open(id: &RequestId, room: usize) -> Self {
        let mut buf = Zeroizing::new(Vec::with_capacity(ENVELOPE_BYTES + room));
        buf.extend_from_slice(b"{\"request_id\":\"");
        buf.extend_from_slice(id.as_str().as_bytes());
        buf.extend_from_slice(
            b"\",\"lease_id\":\"\",\"renewable\":false,\"lease_duration\":0,\"data\":",
        );
        Self { buf }
    }

    /// Bytes so far, for tests.
    #[cfg(test)]
    pub(in crate::api) fn len(&self) -> usize {
        self.buf.len()
    }

    /// JSON as it stands.
    pub(in crate::api) fn raw(&mut self, json: &str) {
        self.buf.extend_from_slice(json.as_bytes());
    }

    /// A string with quotes and escapes.
    pub(in crate::api) fn string(&mut self, text: &str) {
        self.json(text);
    }

    /// A number.
    pub(in crate::api) fn number(&mut self, n: u32) {
        // Writing to memory can't fail.
        let _ = write!(*self.buf, "{n}");
    }

    /// Base64, without quotes.
    pub(in crate::api) fn base64(&mut self, bytes: &[u8]) {
        let start = self.buf.len();
        let len = base64::encoded_len(bytes.len(), true).unwrap_or(0);
        self.buf.resize(start + len, 0);
        if let Some(room) = self.buf.get_mut(start..) {
            // The room is as long as the encoding says.
            let _ = BASE64.encode_slice(bytes, room);
        }
    }

    /// `vault:v<version>:<base64>` with quotes.
    pub(in crate::api) fn versioned(&mut self, version: u32, bytes: &[u8]) {
        self.raw("\"");
        self.raw(PREFIX);
        self.number(version);
        self.raw(":");
        self.base64(bytes);
        self.raw("\"");
    }

    /// An object, by hand.
    pub(in crate::api::vault) fn object(&mut self, data: &impl Members) {
        self.raw("{");
        data.write(self);
        self.raw("}");
    }

    /// Any value.
    pub(in crate::api) fn json<T: Serialize + ?Sized>(&mut self, value: &T) {
        // The types written here have no map with keys that aren't strings, so nothing can fail.
        let _ = serde_json::to_writer(&mut *self.buf, value);
    }

    /// Ends the envelope, with `auth` where a token is answered.
    pub(in crate::api) fn close(
        mut self,
        warnings: &[String],
        auth: Option<&impl Serialize>,
    ) -> Bytes {
        self.raw(",\"wrap_info\":null,\"warnings\":");
        if warnings.is_empty() {
            self.raw("null");
        } else {
            self.json(warnings);
        }
        self.raw(",\"auth\":");
        match auth {
            Some(auth) => self.json(auth),
            None => self.raw("null"),
        }
        self.raw("}\n");
        Bytes::from_owner(self.buf)
    }
}

/// Room that `n` bytes take in base64, with some words around them.
pub(in crate::api) const fn room(n: usize) -> usize {
    n / 3 * 4 + 96
}
