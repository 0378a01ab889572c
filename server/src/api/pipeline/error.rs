//! What goes wrong, before a dialect puts it into its form: a status, words for the client, words
//! for the audit log.

use std::borrow::Cow;

use hyper::header::HeaderName;

/// The longest reason in the audit log, bytes.
const MAX_REASON: usize = 512;

/// An answer that is an error.
#[derive(Debug)]
pub(crate) struct ApiError {
    /// The HTTP status.
    pub(crate) status: u16,
    /// `errors`; empty where Vault leaves it empty.
    pub(crate) messages: Vec<Cow<'static, str>>,
    /// For the audit log: where it may know more than the client, or must not hold what the client
    /// sent.
    pub(crate) reason: Option<Cow<'static, str>>,
    /// `Allow`, for 405.
    pub(crate) allow: Option<String>,
    /// The connection is closed after the answer.
    pub(crate) close: bool,
}

impl ApiError {
    /// 400 with one message.
    pub(crate) fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(400, message)
    }

    /// 400 for a request of one item, whose errors are in our own words.
    pub(crate) fn of_item(why: Cow<'static, str>) -> Self {
        Self::bad_request(why).in_own_words()
    }

    /// Any status with one message.
    pub(crate) fn new(status: u16, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            messages: vec![message.into()],
            ..Self::empty(status)
        }
    }

    /// Any status with `{"errors":[]}`.
    pub(crate) fn empty(status: u16) -> Self {
        Self {
            status,
            messages: Vec::new(),
            reason: None,
            allow: None,
            close: false,
        }
    }

    /// 503: try again later.
    pub(crate) fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(503, message)
    }

    /// One more message.
    pub(crate) fn with(mut self, message: impl Into<Cow<'static, str>>) -> Self {
        self.messages.push(message.into());
        self
    }

    /// What the audit log says of it.
    pub(crate) fn because(mut self, reason: impl Into<Cow<'static, str>>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// The audit log may say what the client is told: the text holds nothing that came with the
    /// request but a key's name, and places in a batch.
    pub(crate) fn in_own_words(mut self) -> Self {
        self.reason = self.messages.first().cloned();
        self
    }

    /// The connection is closed after it.
    pub(crate) fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// The words for the audit log, never more than [`MAX_REASON`] bytes. A text that was made for
    /// this answer may repeat what the client sent, so it stays out of the log unless somebody
    /// said that it is ours.
    pub(crate) fn reason(&self) -> &str {
        let reason: &str = match (&self.reason, self.messages.first()) {
            (Some(reason), _) => reason,
            (None, Some(Cow::Borrowed(message))) => message,
            (None, Some(Cow::Owned(_))) => {
                "a parameter has a value that is not taken: the answer says which"
            }
            (None, None) if self.status == 404 => "not found",
            (None, None) => "refused",
        };
        let end = (0..=MAX_REASON.min(reason.len()))
            .rev()
            .find(|&at| reason.is_char_boundary(at));
        reason.get(..end.unwrap_or(0)).unwrap_or_default()
    }
}

/// Why the pipeline itself turns a request down. A dialect may have other words for it
/// (`Dialect::refuse`).
pub(crate) enum Refusal {
    /// As many requests as may be are in flight.
    Overloaded,
    /// The server is about to stop.
    Stopping,
    /// No `Host`, or two, or what can't be one.
    Host,
    /// The client's certificate is no longer good: why.
    Certificate(String),
    /// A browser was made to send it: in which words.
    Browser(&'static str),
    /// A header that may stand once stands twice.
    HeaderTwice(HeaderName),
    /// A header would make it another request.
    Header(HeaderName),
    /// No rule of the policy allows it, or one denies it.
    Policy {
        /// For the client.
        told: String,
        /// For the audit log.
        reason: Cow<'static, str>,
    },
    /// A rule of the policy allows it with a token, and none was sent.
    TokenMissing,
    /// It can't be recorded.
    Unaudited(Unaudited),
    /// Too many changes of this client failed.
    FailingChanges,
    /// It was done, and that can't be recorded.
    Withheld,
    /// The body is larger than so many bytes.
    BodyTooLarge(usize),
    /// The body broke off: why.
    BodyBroken(String),
    /// The body took too long.
    BodyLate,
    /// A handler panicked.
    Defect,
}

/// Why a request can't be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unaudited {
    /// The disk is nearly full.
    Room,
    /// It is, and this client has had its share of what is left.
    Share,
    /// Nothing can be written.
    Broken,
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Overloaded => {
                Self::unavailable("too many requests are in flight: try again later")
            }
            Refusal::Stopping => Self::unavailable("the server is stopping"),
            Refusal::Host => {
                Self::bad_request("HTTP/1.1 wants one Host header: name the server in it").closing()
            }
            Refusal::Certificate(why) => Self::new(403, "permission denied")
                .because(format!("the client certificate is no longer good: {why}"))
                .closing(),
            Refusal::Browser(words) => Self::new(403, words),
            Refusal::HeaderTwice(name) => {
                Self::bad_request(format!("the header {name} is given twice")).in_own_words()
            }
            Refusal::Header(name) => {
                Self::bad_request(format!("the header {name} is not supported: leave it out"))
                    .in_own_words()
            }
            Refusal::Policy { told, reason } => {
                Self::new(403, "permission denied").with(told).because(reason)
            }
            Refusal::TokenMissing => Self::new(403, "permission denied")
                .with("a policy rule allows it with an API token only, and none was sent that counts: send it as X-Vault-Token (--token-file)")
                .because("the policy asks for a token and none was sent"),
            Refusal::Unaudited(why) => Self::unavailable(match why {
                Unaudited::Room => {
                    "the disk of the audit log is nearly full, so the request is refused"
                }
                Unaudited::Share => {
                    "the disk of the audit log is nearly full, and this client has had its share of it until there is room again"
                }
                Unaudited::Broken => "the audit log can't be written, so the request is refused",
            }),
            Refusal::FailingChanges => Self::unavailable(
                "too many of this client's changes have failed in the last seconds: see why, and try again later",
            ),
            Refusal::Withheld => Self::unavailable(
                "the audit log can't be written, so the answer is withheld; the operation may have been carried out",
            ),
            // What is left of the body is not read.
            Refusal::BodyTooLarge(limit) => Self::new(
                413,
                format!("the request body is larger than {limit} bytes: send less at once"),
            )
            .closing(),
            Refusal::BodyBroken(why) => {
                Self::bad_request("the request body broke off").because(why)
            }
            Refusal::BodyLate => Self::new(408, "the request body did not come in time").closing(),
            Refusal::Defect => Self::new(500, "internal error: see the server's log"),
        }
    }
}
