//! Answers: Vault's envelope, written straight into the buffer that goes to the socket and zeroized
//! when it has.

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::header::{self, HeaderValue};
use serde::Serialize;
use zeroize::Zeroizing;

use super::vault::error::ApiError;
use super::vault::wire::{BASE64, PREFIX};

/// Two years, for every host below: the appliance speaks nothing but TLS.
const STRICT_TRANSPORT_SECURITY: &str = "max-age=63072000; includeSubDomains; preload";
/// Nothing but its own style sheet: what a client named a key must never become a script, and
/// nobody frames the page.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Seconds that a client is asked to wait after 503.
const RETRY_AFTER: &str = "1";
/// Room for the envelope around `data`.
const ENVELOPE: usize = 224;

/// A request's id: a random UUID, in the envelope and in the audit log.
#[derive(Clone, Copy)]
pub(super) struct RequestId([u8; 36]);

impl RequestId {
    /// A new one.
    pub(super) fn random() -> Self {
        let mut text = [0; 36];
        uuid::Uuid::new_v4().hyphenated().encode_lower(&mut text);
        Self(text)
    }

    /// Lower case, hyphenated.
    pub(super) fn as_str(&self) -> &str {
        // A UUID's text is ASCII.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// What a handler answers when all went well, and what the audit log wants to know of it.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) body: Bytes,
    /// The key version used, 0 for none.
    pub(super) key_version: u32,
    /// Items of the batch, 0 where it was none.
    pub(super) batch: usize,
    /// Items that failed.
    pub(super) batch_failed: usize,
    /// How long it may be kept; `None`: not at all.
    pub(super) cache: Option<Cache>,
}

/// What an answer says to caches.
pub(super) struct Cache {
    /// `max-age`.
    pub(super) seconds: u64,
    /// `ETag`, with its quotes.
    pub(super) tag: String,
}

impl Answer {
    /// 204.
    pub(super) fn no_content() -> Self {
        Self::raw(204, "", Bytes::new())
    }

    /// 200 with an envelope.
    pub(super) fn ok(body: Bytes) -> Self {
        Self::raw(200, "application/json", body)
    }

    /// A body that is no envelope.
    pub(super) fn raw(status: u16, content_type: &'static str, body: Bytes) -> Self {
        Self {
            status,
            content_type,
            body,
            key_version: 0,
            batch: 0,
            batch_failed: 0,
            cache: None,
        }
    }

    /// With the key version for the audit log.
    pub(super) fn with_version(mut self, version: u32) -> Self {
        self.key_version = version;
        self
    }

    /// As HTTP.
    pub(super) fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = response(self.status, self.body);
        if !self.content_type.is_empty() {
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static(self.content_type),
            );
        }
        if self.content_type.starts_with("text/") {
            let headers = response.headers_mut();
            let policy = HeaderValue::from_static(PAGE_POLICY);
            headers.insert(header::CONTENT_SECURITY_POLICY, policy);
            let sniff = HeaderValue::from_static("nosniff");
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, sniff);
            let referrer = HeaderValue::from_static("no-referrer");
            headers.insert(header::REFERRER_POLICY, referrer);
        }
        if let Some(cache) = self.cache {
            let headers = response.headers_mut();
            let control = match cache.seconds {
                0 => "no-cache".to_owned(),
                seconds => format!("public, max-age={seconds}"),
            };
            // Digits and hexadecimal make header values.
            if let (Ok(control), Ok(tag)) = (
                HeaderValue::try_from(control),
                HeaderValue::try_from(cache.tag),
            ) {
                headers.insert(header::CACHE_CONTROL, control);
                headers.insert(header::ETAG, tag);
            }
        }
        response
    }
}

impl ApiError {
    /// As HTTP.
    pub(super) fn into_response(self) -> Response<Full<Bytes>> {
        #[derive(Serialize)]
        struct Errors<'a> {
            errors: &'a [std::borrow::Cow<'static, str>],
        }
        let errors = Errors {
            errors: &self.messages,
        };
        let mut body = serde_json::to_vec(&errors).unwrap_or_default();
        body.push(b'\n');
        let mut response = response(self.status, body.into());
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if self.status == 503 {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
        }
        if let Some(allow) = self.allow.and_then(|a| HeaderValue::try_from(a).ok()) {
            headers.insert(header::ALLOW, allow);
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

fn response(status: u16, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    // Every status in this crate is a number between 200 and 599.
    *response.status_mut() =
        hyper::StatusCode::from_u16(status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::STRICT_TRANSPORT_SECURITY,
        HeaderValue::from_static(STRICT_TRANSPORT_SECURITY),
    );
    response
}

/// Vault's envelope, open at `"data":`.
pub(super) struct Envelope {
    buf: Zeroizing<Vec<u8>>,
}

impl Envelope {
    /// `room`: bytes that `data` will take. What doesn't fit still works, but leaves a copy behind
    /// in freed memory.
    pub(super) fn open(id: &RequestId, room: usize) -> Self {
        let mut buf = Zeroizing::new(Vec::with_capacity(ENVELOPE + room));
        buf.extend_from_slice(b"{\"request_id\":\"");
        buf.extend_from_slice(&id.0);
        buf.extend_from_slice(
            b"\",\"lease_id\":\"\",\"renewable\":false,\"lease_duration\":0,\"data\":",
        );
        Self { buf }
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.buf.len()
    }

    /// JSON as it stands.
    pub(super) fn raw(&mut self, json: &str) {
        self.buf.extend_from_slice(json.as_bytes());
    }

    /// A string with quotes and escapes.
    pub(super) fn string(&mut self, text: &str) {
        self.json(text);
    }

    /// A number.
    pub(super) fn number(&mut self, n: u32) {
        // Writing to memory can't fail.
        let _ = write!(*self.buf, "{n}");
    }

    /// Base64, without quotes.
    pub(super) fn base64(&mut self, bytes: &[u8]) {
        let start = self.buf.len();
        let len = base64::encoded_len(bytes.len(), true).unwrap_or(0);
        self.buf.resize(start + len, 0);
        if let Some(room) = self.buf.get_mut(start..) {
            // The room is as long as the encoding says.
            let _ = BASE64.encode_slice(bytes, room);
        }
    }

    /// Hexadecimal, lower case, without quotes.
    pub(super) fn hex(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let _ = write!(*self.buf, "{byte:02x}");
        }
    }

    /// `vault:v<version>:<base64>` with quotes.
    pub(super) fn versioned(&mut self, version: u32, bytes: &[u8]) {
        self.raw("\"");
        self.raw(PREFIX);
        self.number(version);
        self.raw(":");
        self.base64(bytes);
        self.raw("\"");
    }

    /// `vault:v<version>:<base64url, no padding>` with quotes.
    pub(super) fn versioned_url(&mut self, version: u32, bytes: &[u8]) {
        self.raw("\"");
        self.raw(PREFIX);
        self.number(version);
        self.raw(":");
        self.raw(&URL_SAFE_NO_PAD.encode(bytes));
        self.raw("\"");
    }

    /// Any value.
    pub(super) fn json<T: Serialize + ?Sized>(&mut self, value: &T) {
        // The types written here have no map with keys that aren't strings, so nothing can fail.
        let _ = serde_json::to_writer(&mut *self.buf, value);
    }

    /// Ends the envelope, with `auth` where a token is answered.
    pub(super) fn close(mut self, warnings: &[String], auth: Option<&impl Serialize>) -> Bytes {
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
pub(super) fn room(n: usize) -> usize {
    n / 3 * 4 + 96
}
