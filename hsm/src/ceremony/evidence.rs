//! What the token tells of itself and of each object on it.

use crate::config::HsmConfig;
use crate::error::HsmError;
use crate::types::{Profile, TokenIdentity};

/// A token's description of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Label, serial number, manufacturer, model.
    pub token: TokenIdentity,
    /// `CK_TOKEN_INFO.hardwareVersion`.
    pub hardware_version: String,
    /// `CK_TOKEN_INFO.firmwareVersion`.
    pub firmware_version: String,
    /// The mechanism list, sorted: `CKM_AES_GCM`, or `0x…` for what has no name here.
    pub mechanisms: Vec<String>,
    /// What the self-tests found the token able to do; only with a complete set of keys.
    pub profile: Option<Profile>,
    /// Which of the appliance's keys are there.
    pub keys: KeySet,
    /// Every object on the token: the appliance's in a fixed order, then whatever else there is.
    pub objects: Vec<ObjectEvidence>,
}

/// How far the making of the appliance's keys came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySet {
    /// No object of the appliance: [`super::make_keys`] is next.
    None,
    /// Some are missing: [`super::discard_unused_keys`] clears the rest.
    Incomplete {
        /// Names of those that are missing, the epoch object among them.
        missing: Vec<String>,
    },
    /// All are there, but one is not as it must be.
    Unacceptable {
        /// What the check said.
        problem: String,
    },
    /// All are there and good, and no store was born with them yet.
    Unused,
    /// All are there and good, and a store depends on them: the epoch object has a value.
    InUse,
}

/// One object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEvidence {
    /// For people: "master key", "public half of the master key"; "not of the appliance" for anything else.
    pub name: String,
    /// `CKA_LABEL`.
    pub label: String,
    /// `CKO_PRIVATE_KEY`, ...
    pub class: String,
    /// `SubjectPublicKeyInfo`, DER, of an RSA or P-256 public key.
    pub spki: Option<Vec<u8>>,
    /// (`CKA_…`, value as text), sorted by name. Never a secret.
    pub attributes: Vec<(String, String)>,
}

pub(super) fn evidence(_config: &HsmConfig) -> Result<Evidence, HsmError> {
    Err(HsmError::Unsupported("evidence yet".to_owned()))
}
