//! Objects that go: half-made keys, and everything at the end of a token's life.

use crate::config::HsmConfig;
use crate::error::HsmError;
use crate::pin::SecretPin;
use crate::types::TokenIdentity;

/// The evidence that a token was emptied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destroyed {
    /// The token before.
    pub before: TokenIdentity,
    /// Each object, in the order of its destruction.
    pub objects: Vec<DestroyedObject>,
    /// Objects that were found afterwards; always 0, as anything else is an error.
    pub left: usize,
    /// The token after `C_InitToken`.
    pub after: TokenIdentity,
}

/// An object that is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestroyedObject {
    /// `CKO_PRIVATE_KEY`, ...
    pub class: String,
    /// `CKA_LABEL`.
    pub label: String,
}

pub(super) fn discard_unused_keys(_config: &HsmConfig) -> Result<Vec<String>, HsmError> {
    Err(HsmError::Unsupported("discarding keys yet".to_owned()))
}

pub(super) fn destroy(_config: &HsmConfig, _so_pin: &SecretPin) -> Result<Destroyed, HsmError> {
    Err(HsmError::Unsupported("destroying yet".to_owned()))
}
