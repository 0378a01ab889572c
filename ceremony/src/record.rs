//! What steps put into a transcript that a verification looks at. A step may add fields of its own;
//! none may ever be a secret.

use serde::{Deserialize, Serialize};
use strongroom_core::json::nullable;

use super::encoding::{base64, hex, sha256};
use super::shares::Commitment;

/// What a machine must compute rightly before it holds a ceremony: in `known_answers` of step
/// `self-test`, each of them.
pub(super) const KNOWN_ANSWERS: [&str; 5] = [
    "SHA-256, FIPS 180-4 abc",
    "HMAC-SHA-256, RFC 4231 case 2",
    "AES-256-GCM, the GCM specification's case 16",
    "ECDSA P-256 signing and verification, RFC 6979 A.2.5",
    "ECDH P-256, RFC 5903 8.1",
];

/// The token: outputs of step `token` (as field `token`), of `evidence`, and in the summary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Its label.
    pub label: String,
    /// Its serial number.
    pub serial: String,
    /// Who made it.
    pub manufacturer: String,
    /// Its model.
    pub model: String,
}

/// A key of the appliance: outputs of step `keys`, and in the summary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// What it is for: `master`, `store`, …
    pub name: String,
    /// Its label on the token.
    pub label: String,
    /// The public half, `SubjectPublicKeyInfo`, base64; none for a secret key.
    #[serde(deserialize_with = "nullable")]
    pub spki: Option<String>,
    /// SHA-256 of the DER of `spki`, hexadecimal; none for a secret key.
    #[serde(deserialize_with = "nullable")]
    pub sha256: Option<String>,
}

impl KeyRecord {
    /// Of a key pair, or with `None` of a secret key.
    pub fn new(name: &str, label: &str, spki: Option<&[u8]>) -> Self {
        Self {
            name: name.to_owned(),
            label: label.to_owned(),
            spki: spki.map(base64),
            sha256: spki.map(|spki| hex(&sha256(spki))),
        }
    }
}

/// Outputs of step `pins`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinsRecord {
    /// How many shares give the PINs back.
    pub threshold: u8,
    /// One for each custodian, in the plan's order.
    pub commitments: Vec<Commitment>,
}

/// The shares in force when a later ceremony begins: outputs of its step `opening` (as field
/// `shares`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharesRecord {
    /// The ceremony that dealt them, hexadecimal.
    pub ceremony_id: String,
    /// How many of them give the PINs back.
    pub threshold: u8,
    /// One for each custodian of that ceremony's plan, in its order.
    pub commitments: Vec<Commitment>,
}

/// Someone who was there: outputs of step `opening` (in field `present`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PresentRecord {
    /// Their name.
    pub name: String,
    /// `custodian`, `security-officer` or `auditor`.
    pub role: String,
    /// Their fingerprint.
    pub key: String,
}

/// Those who were there, of what a later ceremony's step `opening` records.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Attendance {
    pub(crate) present: Vec<PresentRecord>,
}

/// What a later ceremony's step `opening` records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaterOpeningOutputs {
    /// Those who were there and will sign, in the plan's order.
    pub present: Vec<PresentRecord>,
    /// The shares in force.
    pub shares: SharesRecord,
    /// The serial number of the token that is at work.
    pub token_serial: String,
    /// What the ceremony before was for.
    pub previous_kind: String,
}

/// Outputs of step `export`. (Those of step `transport` are a [`PinsRecord`]: of the transport key
/// and the authentication key.)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportOutputs {
    /// SHA-256 of the backup file, hexadecimal.
    pub backup_sha256: String,
    /// Every key in it.
    pub keys: Vec<KeyRecord>,
}

/// Outputs of step `copy`: the second token, as it now is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyOutputs {
    /// The token.
    pub token: TokenRecord,
    /// Every key on it.
    pub keys: Vec<KeyRecord>,
    /// Its own audit key: `SubjectPublicKeyInfo`, base64.
    pub audit_key: String,
    /// Every object on it.
    pub objects: Vec<ObjectRecord>,
}

/// What a restoration's step `keys` records besides [`KeysOutputs`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreOutputs {
    /// SHA-256 of the backup file, hexadecimal.
    pub backup_sha256: String,
    /// The audit key of the token that is replaced: `SubjectPublicKeyInfo`, base64.
    pub old_audit_key: String,
    /// That of the new one.
    pub new_audit_key: String,
}

/// Outputs of step `inventory`: what is to be destroyed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryOutputs {
    /// The token.
    pub token: TokenRecord,
    /// Every object on it.
    pub objects: Vec<ObjectRecord>,
    /// The audit key, which seals before it is destroyed itself: `SubjectPublicKeyInfo`, base64.
    pub audit_key: String,
}

/// Outputs of step `successor`: the next generation of the master key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuccessorOutputs {
    /// From 2.
    pub generation: u32,
    /// Its key pairs.
    pub keys: Vec<KeyRecord>,
    /// Every object of it.
    pub objects: Vec<ObjectRecord>,
}

/// Outputs of step `move`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveOutputs {
    /// Versions of keys in the store.
    pub versions: u64,
    /// Those under the new master key: all.
    pub moved: u64,
}

/// Outputs of step `retire`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetireOutputs {
    /// The one that is left.
    pub generation: u32,
}

/// Outputs of step `destroy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestroyOutputs {
    /// Objects that were found on the token afterwards: none.
    pub left: Vec<ObjectRecord>,
}

/// Outputs of step `token`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenOutputs {
    /// The token, now that it has its label.
    pub token: TokenRecord,
}

/// Outputs of step `keys`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysOutputs {
    /// Every key that was made.
    pub keys: Vec<KeyRecord>,
}

/// One object on the token, as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRecord {
    /// What it is for: `master`, `store`, …
    pub name: String,
    /// Its label.
    pub label: String,
    /// Its `CKA_CLASS`: `CKO_PUBLIC_KEY`, …
    pub class: String,
    /// The public key, `SubjectPublicKeyInfo`, base64, of an object that is one, and of an RSA
    /// private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spki: Option<String>,
    /// Attribute and value, sorted.
    pub attributes: Vec<(String, String)>,
}

/// Outputs of step `evidence`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceOutputs {
    /// The token.
    pub token: TokenRecord,
    /// Every object on it.
    pub objects: Vec<ObjectRecord>,
}

/// Outputs of step `store`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreOutputs {
    /// The new store's id, hexadecimal.
    pub store_id: String,
}

/// Of the outputs of an initial ceremony's step `store`, what the audit log is held against.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct LogRecord {
    /// SHA-256 of the log's first line, hexadecimal.
    pub audit_log_header_sha256: String,
}

/// What an initial ceremony comes to: the `summary` of the `close` line, which everybody signs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// The token.
    pub token: TokenRecord,
    /// Every key, as step `keys` recorded it.
    pub keys: Vec<KeyRecord>,
    /// The store's id, hexadecimal.
    pub store_id: String,
}
