//! What goes wrong, as the client sees it: Vault's statuses and Vault's shape, `{"errors":[…]}`.
//! The only place where the errors of the layers below become HTTP.

use std::borrow::Cow;

use strongroom_core::keyring::KeyringError;
use strongroom_core::seldom::seldom;
use strongroom_core::store::StoreError;
use strongroom_hsm::HsmError;

/// The longest reason in the audit log, bytes.
const MAX_REASON: usize = 512;
/// Vault's words for a policy that says no.
pub(in crate::api) const PERMISSION_DENIED: &str = "1 error occurred:\n\t* permission denied\n\n";

/// An answer that is an error.
#[derive(Debug)]
pub(in crate::api) struct ApiError {
    /// The HTTP status.
    pub(in crate::api) status: u16,
    /// `errors`; empty where Vault leaves it empty.
    pub(in crate::api) messages: Vec<Cow<'static, str>>,
    /// For the audit log: where it may know more than the client, or must not hold what the client
    /// sent.
    pub(in crate::api) reason: Option<Cow<'static, str>>,
    /// `Allow`, for 405.
    pub(in crate::api) allow: Option<String>,
    /// The connection is closed after the answer.
    pub(in crate::api) close: bool,
}

impl ApiError {
    /// 400 with one message.
    pub(in crate::api) fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(400, message)
    }

    /// 400 for a request of one item, whose errors are in our own words.
    pub(in crate::api) fn of_item(why: Cow<'static, str>) -> Self {
        Self::bad_request(why).in_own_words()
    }

    /// Any status with one message.
    pub(in crate::api) fn new(status: u16, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            messages: vec![message.into()],
            ..Self::empty(status)
        }
    }

    /// Any status with `{"errors":[]}`.
    pub(in crate::api) fn empty(status: u16) -> Self {
        Self {
            status,
            messages: Vec::new(),
            reason: None,
            allow: None,
            close: false,
        }
    }

    /// 403 as Vault's policies answer.
    pub(in crate::api) fn denied(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(403, PERMISSION_DENIED).because(reason)
    }

    /// 403 as Vault answers a missing or unknown token.
    pub(in crate::api) fn bad_token(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(403, "permission denied").because(reason)
    }

    /// 503: try again later.
    pub(in crate::api) fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(503, message)
    }

    /// 404 for a path that no route has inside a mount.
    pub(in crate::api) fn unsupported_path() -> Self {
        Self::new(404, "1 error occurred:\n\t* unsupported path\n\n")
    }

    /// 405 for a path that is known with other methods.
    pub(in crate::api) fn unsupported_operation(allow: String) -> Self {
        Self {
            allow: Some(allow),
            ..Self::new(405, "1 error occurred:\n\t* unsupported operation\n\n")
        }
    }

    /// What the audit log says of it.
    pub(in crate::api) fn because(mut self, reason: impl Into<Cow<'static, str>>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// The audit log may say what the client is told: the text holds nothing that came with the
    /// request but a key's name and numbers.
    pub(in crate::api) fn in_own_words(mut self) -> Self {
        self.reason = self.messages.first().cloned();
        self
    }

    /// The words for the audit log, never more than [`MAX_REASON`] bytes. A text that was made for
    /// this answer may repeat what the client sent, so it stays out of the log unless somebody
    /// said that it is ours.
    pub(in crate::api) fn reason(&self) -> &str {
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

/// What was being done: the same fact has other words in other places of Vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::api) enum Doing {
    Create,
    Read,
    Configure,
    Rotate,
    Trim,
    Delete,
    Import,
    Encrypt,
    Decrypt,
    Hmac,
    VerifyHmac,
    Sign,
    VerifySignature,
    Random,
}

impl ApiError {
    /// An error of the keyring about the key `name`. The layers below know no text of the client's
    /// but the key's name.
    pub(in crate::api) fn from_keyring(error: KeyringError, doing: Doing, name: &str) -> Self {
        let answer = Self::keyrings(error, doing, name);
        if answer.reason.is_some() {
            return answer;
        }
        answer.in_own_words()
    }

    fn keyrings(error: KeyringError, doing: Doing, name: &str) -> Self {
        match error {
            KeyringError::NotFound => match doing {
                Doing::Read => Self::empty(404),
                Doing::Configure => {
                    Self::bad_request(format!("no existing key named {name} could be found"))
                }
                Doing::Rotate => Self::bad_request("key not found"),
                Doing::Trim => Self::bad_request("invalid key name"),
                Doing::Delete => Self::bad_request(format!(
                    "error deleting policy {name}: could not delete key; not found"
                )),
                Doing::Import => Self::bad_request(format!(
                    "no key found with name {name}; to import a new key, use the import/ endpoint"
                )),
                Doing::Sign => Self::bad_request("signing key not found"),
                Doing::VerifySignature => Self::bad_request("signature verification key not found"),
                _ => Self::bad_request("encryption key not found"),
            },
            KeyringError::Exists(_) => Self::bad_request(
                "the import path cannot be used with an existing key; use import-version to rotate an existing imported key",
            ),
            // In force, but not acknowledged: the client may ask again.
            KeyringError::Store(error) if error.is_applied() => {
                Self::unavailable(error.to_string())
            }
            KeyringError::Store(error) if !matches!(error, StoreError::Hsm(_)) => {
                seldom!(1, error, %error, "the store failed");
                Self::unavailable("the key store failed: see the server's log")
                    .because(error.to_string())
            }
            error if is_outage(&error) => Self::unavailable(error.to_string()),
            // The request's own mistake: the client can mend it.
            error => Self::bad_request(item_text(error, doing)),
        }
    }
}

/// Go's words for a GCM tag that doesn't fit.
const AUTHENTICATION: &str = "cipher: message authentication failed";

/// Whether an item's error is the appliance's state, so that the batch as a whole is answered 503.
pub(in crate::api) fn is_outage(error: &KeyringError) -> bool {
    match error {
        KeyringError::Hsm(error) | KeyringError::Store(StoreError::Hsm(error)) => {
            !matches!(error, HsmError::Authentication | HsmError::Unsupported(_))
        }
        KeyringError::Store(_) | KeyringError::System(_) | KeyringError::Audit(_) => true,
        _ => false,
    }
}

/// The words for one item's error.
pub(in crate::api) fn item_text(error: KeyringError, doing: Doing) -> Cow<'static, str> {
    match (error, doing) {
        (KeyringError::VersionTooOld, Doing::Encrypt) => {
            "requested version for encryption is less than the minimum encryption key version".into()
        }
        (KeyringError::VersionTooNew, Doing::Encrypt) => {
            "requested version for encryption is higher than the latest key version".into()
        }
        (KeyringError::VersionTooOld, Doing::Hmac) => {
            "cannot generate HMAC: version is too old (disallowed by policy)".into()
        }
        (KeyringError::VersionTooOld, Doing::VerifyHmac) => {
            "cannot verify HMAC: version is too old (disallowed by policy)".into()
        }
        (KeyringError::VersionTooNew, Doing::Hmac) => {
            "key version does not exist: it is higher than the latest key version".into()
        }
        (KeyringError::VersionTooNew, Doing::VerifyHmac) => {
            "invalid HMAC: version is too new".into()
        }
        (KeyringError::Decrypt | KeyringError::Hsm(HsmError::Authentication), Doing::Import) => {
            "the wrapped key can't be unwrapped: it must be RSA-OAEP(wrapping key, 32-byte AES key) followed by AES-KWP(that AES key, the key), with the same hash_function for OAEP and MGF1".into()
        }
        (KeyringError::Decrypt | KeyringError::Hsm(HsmError::Authentication), _) => {
            AUTHENTICATION.into()
        }
        (error, _) => error.to_string().into(),
    }
}
