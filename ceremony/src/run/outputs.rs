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
    /// Its name in the directory.
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::record::{KeyRecord, ObjectRecord, SharesRecord};
    use crate::shares::Commitment;

    fn token() -> TokenRecord {
        TokenRecord {
            label: "l".into(),
            serial: "s".into(),
            manufacturer: "m".into(),
            model: "o".into(),
        }
    }

    fn token_json() -> Value {
        json!({"label": "l", "serial": "s", "manufacturer": "m", "model": "o"})
    }

    fn keys() -> Vec<KeyRecord> {
        vec![KeyRecord::new("n", "l", None)]
    }

    fn keys_json() -> Value {
        json!([{"name": "n", "label": "l", "spki": null, "sha256": null}])
    }

    fn objects() -> Vec<ObjectRecord> {
        vec![ObjectRecord {
            name: "n".into(),
            label: "l".into(),
            class: "c".into(),
            spki: None,
            attributes: vec![("CKA_X".into(), "true".into())],
        }]
    }

    fn objects_json() -> Value {
        json!([{"name": "n", "label": "l", "class": "c", "attributes": [["CKA_X", "true"]]}])
    }

    fn gone() -> Vec<DestroyedObject> {
        vec![DestroyedObject {
            name: "n".into(),
            class: "c".into(),
            label: "l".into(),
        }]
    }

    fn gone_json() -> Value {
        json!([{"name": "n", "class": "c", "label": "l"}])
    }

    fn commitments() -> Vec<Commitment> {
        vec![Commitment {
            index: 1,
            custodian: "c".into(),
            so: "a".into(),
            user: "b".into(),
        }]
    }

    fn commitments_json() -> Value {
        json!([{"index": 1, "custodian": "c", "so": "a", "user": "b"}])
    }

    fn present() -> Vec<PresentRecord> {
        vec![PresentRecord {
            name: "n".into(),
            role: "auditor".into(),
            key: "k".into(),
        }]
    }

    /// Old transcripts and new ones are of one format.
    #[test]
    #[allow(clippy::too_many_lines, reason = "a table, one row a step")]
    fn each_step_records_what_transcripts_have_always_had() {
        let entropy = json!({"source": "kernel", "bytes": 9, "tests": entropy::TESTS});
        let keys_of = || KeysOutputs { keys: keys() };
        let evidence = || EvidenceOutputs {
            token: token(),
            objects: objects(),
        };
        let cases = [
            (
                Outputs::Opening {
                    plan_sha256: "p".into(),
                    binary_sha256: "b".into(),
                    version: "1",
                    present: present(),
                },
                json!({
                    "plan_sha256": "p", "binary_sha256": "b", "version": "1",
                    "present": [{"name": "n", "role": "auditor", "key": "k"}],
                }),
            ),
            (
                Outputs::LaterOpening {
                    record: LaterOpeningOutputs {
                        present: present(),
                        shares: SharesRecord {
                            ceremony_id: "i".into(),
                            threshold: 2,
                            commitments: commitments(),
                        },
                        token_serial: "s".into(),
                        previous_kind: "birth".into(),
                    },
                    binary_sha256: "b".into(),
                    version: "1",
                },
                json!({
                    "present": [{"name": "n", "role": "auditor", "key": "k"}],
                    "shares": {
                        "ceremony_id": "i", "threshold": 2, "commitments": commitments_json(),
                    },
                    "token_serial": "s", "previous_kind": "birth",
                    "binary_sha256": "b", "version": "1",
                }),
            ),
            (
                Outputs::SelfTest {
                    known_answers: vec!["a"],
                    entropy: Entropy::of("kernel", 9),
                },
                json!({"known_answers": ["a"], "entropy": entropy}),
            ),
            (
                Outputs::Shares {
                    record: PinsRecord {
                        threshold: 2,
                        commitments: commitments(),
                    },
                    shares: vec![DealtShare {
                        custodian: "c".into(),
                        file: Some("f".into()),
                        sha256: "h".into(),
                        paper: true,
                    }],
                },
                json!({
                    "threshold": 2, "commitments": commitments_json(),
                    "shares": [{"custodian": "c", "file": "f", "sha256": "h", "paper": true}],
                }),
            ),
            (
                Outputs::Token {
                    record: TokenOutputs { token: token() },
                    flags: TokenFlags {
                        initialized: true,
                        user_pin_set: true,
                        user_pin_locked: false,
                        so_pin_locked: false,
                    },
                },
                json!({
                    "token": token_json(),
                    "flags": {
                        "initialized": true, "user_pin_set": true,
                        "user_pin_locked": false, "so_pin_locked": false,
                    },
                }),
            ),
            (
                Outputs::Keys {
                    record: keys_of(),
                    made: vec!["m".into()],
                },
                json!({"keys": keys_json(), "made": ["m"]}),
            ),
            (
                Outputs::RestoredKeys {
                    record: keys_of(),
                    restored: RestoreOutputs {
                        backup_sha256: "h".into(),
                        old_audit_key: "o".into(),
                        new_audit_key: "n".into(),
                    },
                    backup_ceremony: "i".into(),
                    backup_token: token(),
                },
                json!({
                    "keys": keys_json(), "backup_sha256": "h", "old_audit_key": "o",
                    "new_audit_key": "n", "backup_ceremony": "i", "backup_token": token_json(),
                }),
            ),
            (
                Outputs::RotatedKeys(keys_of()),
                json!({"keys": keys_json()}),
            ),
            (
                Outputs::Evidence {
                    record: evidence(),
                    mechanisms: vec!["CKM_X".into()],
                    hardware_version: "1.0".into(),
                    firmware_version: "2.0".into(),
                    entropy: Entropy::of("kernel", 9),
                    profile: ProfileRecord {
                        oaep: "sha1",
                        aes_kwp: true,
                        memory_master: false,
                        transfer: true,
                    },
                    self_tests: "passed",
                },
                json!({
                    "token": token_json(), "objects": objects_json(), "mechanisms": ["CKM_X"],
                    "hardware_version": "1.0", "firmware_version": "2.0", "entropy": entropy,
                    "profile": {
                        "oaep": "sha1", "aes_kwp": true, "memory_master": false, "transfer": true,
                    },
                    "self_tests": "passed",
                }),
            ),
            (
                Outputs::RotatedEvidence {
                    record: evidence(),
                    self_tests: "passed",
                },
                json!({
                    "token": token_json(), "objects": objects_json(), "self_tests": "passed",
                }),
            ),
            (
                Outputs::Copy(CopyOutputs {
                    token: token(),
                    keys: keys(),
                    audit_key: "a".into(),
                    objects: objects(),
                }),
                json!({
                    "token": token_json(), "keys": keys_json(), "audit_key": "a",
                    "objects": objects_json(),
                }),
            ),
            (
                Outputs::Export {
                    record: ExportOutputs {
                        backup_sha256: "h".into(),
                        keys: keys(),
                    },
                    signing_keys_left_behind: 0,
                },
                json!({
                    "backup_sha256": "h", "keys": keys_json(), "signing_keys_left_behind": 0,
                }),
            ),
            (
                Outputs::Move {
                    record: MoveOutputs {
                        versions: 3,
                        moved: 3,
                    },
                    by: "server",
                    trial: "opened",
                },
                json!({"versions": 3, "moved": 3, "by": "server", "trial": "opened"}),
            ),
            (
                Outputs::Retire {
                    record: RetireOutputs { generation: 2 },
                    destroyed: gone(),
                },
                json!({"generation": 2, "destroyed": gone_json()}),
            ),
            (
                Outputs::Inventory {
                    record: InventoryOutputs {
                        token: token(),
                        objects: objects(),
                        audit_key: "a".into(),
                    },
                    register: None,
                },
                json!({
                    "token": token_json(), "objects": objects_json(), "audit_key": "a",
                    "register": null,
                }),
            ),
            (
                Outputs::Destroy {
                    record: DestroyOutputs { left: Vec::new() },
                    destroyed: gone(),
                    as_user: true,
                    token_after: token(),
                    reinitialised: true,
                },
                json!({
                    "left": [], "destroyed": gone_json(), "as_user": true,
                    "token_after": token_json(), "reinitialised": true,
                }),
            ),
            (
                Outputs::Closing {
                    audit_key: "a".into(),
                    register: None,
                },
                json!({"audit_key": "a", "register": null}),
            ),
            (Outputs::Nothing {}, json!({})),
        ];
        for (outputs, wanted) in cases {
            assert_eq!(serde_json::to_value(&outputs).ok(), Some(wanted));
        }
    }
}
