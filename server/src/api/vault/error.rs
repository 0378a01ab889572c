//! What goes wrong, as the client sees it: Vault's statuses and Vault's shape, `{"errors":[…]}`.
//! The only place where the errors of the layers below become HTTP.

use std::borrow::Cow;

use strongroom_core::keyring::KeyringError;
use strongroom_core::seldom::seldom;
use strongroom_core::store::StoreError;
use strongroom_hsm::HsmError;

pub(in crate::api) use crate::api::pipeline::error::ApiError;

/// Vault's words for a policy that says no.
pub(in crate::api) const PERMISSION_DENIED: &str = "1 error occurred:\n\t* permission denied\n\n";

impl ApiError {
    /// 403 as Vault's policies answer.
    pub(in crate::api) fn denied(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(403, PERMISSION_DENIED).because(reason)
    }

    /// 403 as Vault answers a missing or unknown token.
    pub(in crate::api) fn bad_token(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(403, "permission denied").because(reason)
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
