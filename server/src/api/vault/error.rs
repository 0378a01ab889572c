//! What goes wrong, as the client sees it: Vault's statuses and Vault's shape, `{"errors":[…]}`.
//! The only place where the errors of the layers below become HTTP; `words.rs` has the words for
//! those of the keyring.

use std::borrow::Cow;

use strongroom_core::keyring::KeyringError;
use strongroom_core::seldom::seldom;
use strongroom_core::store::StoreError;
use strongroom_hsm::HsmError;

use super::words;
pub(in crate::api) use crate::api::pipeline::error::ApiError;

/// Vault's words for a policy that says no.
pub(in crate::api) const PERMISSION_DENIED: &str = "1 error occurred:\n\t* permission denied\n\n";

impl ApiError {
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
    /// An error of the keyring about the key `name`. The layers below know nothing of the client's
    /// but the key's name, and numbers.
    pub(in crate::api) fn from_keyring(error: KeyringError, doing: Doing, name: &str) -> Self {
        let without_numbers = words::without_numbers(&error);
        let answer = Self::keyrings(error, doing, name);
        match (&answer.reason, without_numbers) {
            (Some(_), _) => answer,
            (None, Some(words)) => answer.because(words),
            (None, None) => answer.in_own_words(),
        }
    }

    fn keyrings(error: KeyringError, doing: Doing, name: &str) -> Self {
        match error {
            KeyringError::NotFound => {
                words::not_found(doing, name).map_or_else(|| Self::empty(404), Self::bad_request)
            }
            // In force, but not acknowledged: the client may ask again.
            KeyringError::Store(error) if error.is_applied() => {
                Self::unavailable(error.to_string())
            }
            KeyringError::Store(error @ StoreError::DiskFull) => {
                seldom!(1, error, "{error}");
                Self::unavailable(error.to_string())
            }
            KeyringError::Store(error) if !matches!(error, StoreError::Hsm(_)) => {
                seldom!(1, error, %error, "the store failed");
                Self::unavailable("the key store failed: see the server's log")
                    .because(error.to_string())
            }
            error if is_outage(&error) => Self::unavailable(error.to_string()),
            // The request's own mistake: the client can mend it.
            error => Self::bad_request(words::of_item(&error)),
        }
    }
}

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
