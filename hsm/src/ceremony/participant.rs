//! A participant's own token, a smart card say: a key pair that signs and one that agrees on keys.

use std::path::Path;

use zeroize::Zeroizing;

use crate::config::{PinSource, TokenSelector};
use crate::error::HsmError;
use crate::types::TokenIdentity;

/// The public halves, and how to find the private ones again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParticipantKeys {
    /// `CKA_ID` of all four objects: 16 random bytes.
    pub id: Vec<u8>,
    /// ECDSA P-256: `SubjectPublicKeyInfo`, DER.
    pub signing: Vec<u8>,
    /// ECDH P-256: `SubjectPublicKeyInfo`, DER.
    pub agreement: Vec<u8>,
}

/// A participant's token, logged in.
pub struct ParticipantToken {
    token: TokenIdentity,
    keys: ParticipantKeys,
}

impl ParticipantToken {
    /// Makes a pair for each purpose on an initialized token. `name` goes into the labels, for people.
    pub fn make_keys(
        _module: &Path,
        _selector: &TokenSelector,
        _pin: &PinSource,
        _name: &str,
    ) -> Result<Self, HsmError> {
        Err(HsmError::Unsupported(
            "a participant's token yet".to_owned(),
        ))
    }

    /// Finds the pairs with that `CKA_ID` again and checks their attributes.
    pub fn open(
        _module: &Path,
        _selector: &TokenSelector,
        _pin: &PinSource,
        _id: &[u8],
    ) -> Result<Self, HsmError> {
        Err(HsmError::Unsupported(
            "a participant's token yet".to_owned(),
        ))
    }

    /// Which token: its serial number finds it again.
    pub fn token(&self) -> &TokenIdentity {
        &self.token
    }

    /// The public halves.
    pub fn keys(&self) -> &ParticipantKeys {
        &self.keys
    }

    /// ECDSA over a SHA-256 digest: r || s.
    pub fn sign_digest(&self, _digest: &[u8; 32]) -> Result<[u8; 64], HsmError> {
        Err(HsmError::Unsupported(
            "a participant's token yet".to_owned(),
        ))
    }

    /// ECDH with a peer's public key, a SEC1 point: the shared x coordinate.
    pub fn agree(&self, _peer: &[u8]) -> Result<Zeroizing<[u8; 32]>, HsmError> {
        Err(HsmError::Unsupported(
            "a participant's token yet".to_owned(),
        ))
    }
}
