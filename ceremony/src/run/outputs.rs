//! What each step came to: the `outputs` of its `done` line, as docs/transcript-format.md has them.
//!
//! What a verification reads is a struct of [`crate::record`]; what stands beside it here is for
//! those who read the transcript. None may ever be a secret.

use std::path::PathBuf;

use serde::Serialize;
use strongroom_hsm::ceremony::{self as hsm, SlotState};
use strongroom_hsm::{OaepHash, Profile};

use super::entropy;
use super::later::SealedBefore;
use crate::record::{
    CopyOutputs, DestroyOutputs, EvidenceOutputs, ExportOutputs, InventoryOutputs, KeysOutputs,
    LaterOpeningOutputs, MoveOutputs, PinsRecord, PresentRecord, RestoreOutputs, RetireOutputs,
    SuccessorOutputs, TokenOutputs, TokenRecord,
};

/// One variant for each that a step can come to; they differ where a kind of ceremony does.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Outputs {
    Opening {
        plan_sha256: String,
        binary_sha256: String,
        version: &'static str,
        present: Vec<PresentRecord>,
    },
    LaterOpening {
        #[serde(flatten)]
        record: LaterOpeningOutputs,
        binary_sha256: String,
        version: &'static str,
    },
    SelfTest {
        known_answers: Vec<&'static str>,
        entropy: Entropy,
    },
    /// The PINs', or a transport key's.
    Shares {
        #[serde(flatten)]
        record: PinsRecord,
        shares: Vec<DealtShare>,
    },
    Token {
        #[serde(flatten)]
        record: TokenOutputs,
        flags: TokenFlags,
    },
    Keys {
        #[serde(flatten)]
        record: KeysOutputs,
        made: Vec<String>,
    },
    RestoredKeys {
        #[serde(flatten)]
        record: KeysOutputs,
        #[serde(flatten)]
        restored: RestoreOutputs,
        backup_ceremony: String,
        backup_token: TokenRecord,
    },
    RotatedKeys(KeysOutputs),
    Evidence {
        #[serde(flatten)]
        record: EvidenceOutputs,
        mechanisms: Vec<String>,
        hardware_version: String,
        firmware_version: String,
        entropy: Entropy,
        profile: ProfileRecord,
        self_tests: &'static str,
    },
    RotatedEvidence {
        #[serde(flatten)]
        record: EvidenceOutputs,
        self_tests: &'static str,
    },
    Store {
        store_id: String,
        epoch: u64,
        audit_log_header_sha256: String,
    },
    RestoredStore {
        store_id: String,
        records: usize,
        backup_epoch: u64,
        store_epoch: u64,
        epoch: u64,
    },
    Identity {
        /// Of the TLS key, base64.
        spki: String,
        spki_sha256: String,
        request_sha256: String,
        certificate_sha256: String,
        client_ca_sha256: String,
        configuration_sha256: String,
        policy_sha256: String,
    },
    RestoredIdentity {
        configuration_sha256: String,
        /// Files that the configuration names and that are not there yet.
        missing: Vec<PathBuf>,
    },
    Trial {
        sealed: bool,
        unsealed: bool,
        altered_refused: bool,
        kept: &'static str,
        master_fingerprint: String,
    },
    PinFile {
        method: &'static str,
        planned: &'static str,
        file: PathBuf,
        mode: &'static str,
    },
    PinCredential {
        method: &'static str,
        key: &'static str,
        tpm2: bool,
        credential: &'static str,
        file: PathBuf,
        sha256: String,
    },
    Export {
        #[serde(flatten)]
        record: ExportOutputs,
        signing_keys_left_behind: usize,
    },
    Successor {
        #[serde(flatten)]
        record: SuccessorOutputs,
        trial: SealedBefore,
    },
    Trust {
        in_force: u32,
        marked_by: String,
    },
    Move {
        #[serde(flatten)]
        record: MoveOutputs,
        by: &'static str,
        trial: &'static str,
    },
    Retire {
        #[serde(flatten)]
        record: RetireOutputs,
        destroyed: Vec<DestroyedObject>,
    },
    Copy(CopyOutputs),
    Inventory {
        #[serde(flatten)]
        record: InventoryOutputs,
        register: Option<String>,
    },
    Consent {
        typed: String,
    },
    Destroy {
        #[serde(flatten)]
        record: DestroyOutputs,
        destroyed: Vec<DestroyedObject>,
        as_user: bool,
        token_after: TokenRecord,
        reinitialised: bool,
    },
    Closing {
        /// `SubjectPublicKeyInfo`, base64.
        audit_key: String,
        /// What the token knew of the ceremony before, hexadecimal.
        register: Option<String>,
    },
    /// The closing of a destruction: there is nothing left to ask.
    Nothing {},
}

/// Random numbers that passed the health tests.
#[derive(Debug, Serialize)]
pub(super) struct Entropy {
    source: &'static str,
    bytes: usize,
    tests: [&'static str; 2],
}

impl Entropy {
    /// So many bytes of that source passed.
    pub(super) fn of(source: &'static str, bytes: usize) -> Self {
        Self {
            source,
            bytes,
            tests: entropy::TESTS,
        }
    }
}

/// A share that was given to its custodian.
#[derive(Debug, Serialize)]
pub(super) struct DealtShare {
    pub(super) custodian: String,
    /// Its name in the folder.
    pub(super) file: Option<String>,
    pub(super) sha256: String,
    /// Whether it was printed, too.
    pub(super) paper: bool,
}

/// What a token says of itself once it is initialised.
#[derive(Debug, Serialize)]
pub(super) struct TokenFlags {
    initialized: bool,
    user_pin_set: bool,
    user_pin_locked: bool,
    so_pin_locked: bool,
}

impl From<&SlotState> for TokenFlags {
    fn from(state: &SlotState) -> Self {
        Self {
            initialized: state.initialized,
            user_pin_set: state.user_pin_set,
            user_pin_locked: state.user_pin_locked,
            so_pin_locked: state.so_pin_locked,
        }
    }
}

/// What the self-tests found the token able to do.
#[derive(Debug, Serialize)]
pub(super) struct ProfileRecord {
    oaep: &'static str,
    aes_kwp: bool,
    memory_master: bool,
    transfer: bool,
}

impl From<&Profile> for ProfileRecord {
    fn from(profile: &Profile) -> Self {
        Self {
            oaep: match profile.oaep {
                OaepHash::Sha1 => "sha1",
                OaepHash::Sha256 => "sha256",
            },
            aes_kwp: profile.aes_kwp,
            memory_master: profile.memory_master,
            transfer: profile.transfer,
        }
    }
}

/// An object that is no more.
#[derive(Debug, Serialize)]
pub(super) struct DestroyedObject {
    name: String,
    class: String,
    label: String,
}

impl From<hsm::DestroyedObject> for DestroyedObject {
    fn from(object: hsm::DestroyedObject) -> Self {
        Self {
            name: object.name,
            class: object.class,
            label: object.label,
        }
    }
}
