//! Answers as HTTP, and what the audit log wants to know of them.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::header::{self, HeaderValue};

use super::error::ApiError;

/// Two years, for every host below: the appliance speaks nothing but TLS.
const STRICT_TRANSPORT_SECURITY: &str = "max-age=63072000; includeSubDomains; preload";
/// Nothing but its own style sheet: what a client named a key must never become a script, and
/// nobody frames the page.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Seconds that a client is asked to wait after 503.
const RETRY_AFTER_SECONDS: &str = "1";

/// A request's id: a random UUID, in the envelope and in the audit log.
#[derive(Clone, Copy)]
pub(crate) struct RequestId([u8; 36]);

impl RequestId {
    /// A new one.
    pub(crate) fn random() -> Self {
        let mut text = [0; 36];
        uuid::Uuid::new_v4().hyphenated().encode_lower(&mut text);
        Self(text)
    }

    /// Lower case, hyphenated.
    pub(crate) fn as_str(&self) -> &str {
        // A UUID's text is ASCII.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// What a handler answers when all went well, and what the audit log wants to know of it.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    pub(crate) body: Bytes,
    /// The key version used, 0 for none.
    pub(crate) key_version: u32,
    /// Items of the batch, 0 where it was none.
    pub(crate) batch: usize,
    /// Items that failed.
    pub(crate) batch_failed: usize,
    /// How long it may be kept; `None`: not at all.
    pub(crate) cache: Option<Cache>,
}

/// What an answer says to caches.
pub(crate) struct Cache {
    /// `max-age`.
    pub(crate) seconds: u64,
    /// `ETag`, with its quotes.
    pub(crate) tag: String,
}

impl Answer {
    /// 204.
    pub(crate) fn no_content() -> Self {
        Self::raw(204, "", Bytes::new())
    }

    /// 200 with JSON.
    pub(crate) fn ok(body: Bytes) -> Self {
        Self::raw(200, "application/json", body)
    }

    /// A body that is no envelope.
    pub(crate) fn raw(status: u16, content_type: &'static str, body: Bytes) -> Self {
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
    pub(crate) fn with_version(mut self, version: u32) -> Self {
        self.key_version = version;
        self
    }

    /// As HTTP.
    pub(crate) fn into_response(self) -> Response<Full<Bytes>> {
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
    /// As HTTP, in a dialect's form.
    pub(crate) fn into_response(
        self,
        content_type: &'static str,
        body: Vec<u8>,
    ) -> Response<Full<Bytes>> {
        let mut response = response(self.status, body.into());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if self.status == 503 {
            headers.insert(
                header::RETRY_AFTER,
                HeaderValue::from_static(RETRY_AFTER_SECONDS),
            );
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
