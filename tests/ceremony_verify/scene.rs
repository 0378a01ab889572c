//! What honest steps put into a transcript: the token's keys and objects as the appliance's own
//! tables have them, and each step's outputs.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use p256::ecdsa::SigningKey;
use rsa::pkcs8::EncodePublicKey as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use strongroom_ceremony::record::{KeyRecord, Summary};
use strongroom_ceremony::shares::{Deal, Pins, split};
use strongroom_ceremony::{CeremonyId, Kind, Mode, Plan, Step};
use strongroom_hsm::ceremony::expected::{ExpectedKey, ExpectedObject, ExpectedValue, PublicKind};
use strongroom_hsm::{KeyShape, OptionalKeys};

use super::forge::hex;
use super::people::{BINARY, ID, Room, key, spki};

/// The serial numbers of an initial ceremony's token, of a second one, and of one that was restored
/// to.
pub const SERIALS: [&str; 3] = ["c0ffee1234567890", "beef", "f00d"];
const STORE_ID: &str = "000102030405060708090a0b0c0d0e0f";

/// Where an appliance stands when a ceremony begins, as far as its steps depend on it.
#[derive(Clone)]
pub struct Scene {
    pub kind: Kind,
    pub id: CeremonyId,
    pub plan: Plan,
    /// The place of the token at work in [`SERIALS`].
    pub token: usize,
    /// Of the master key.
    pub generation: u32,
    /// Whether the token's keys came by a backup.
    pub moved: bool,
    /// Generations from this one on were made on the token itself.
    pub made_here: u32,
    /// Those in force.
    pub shares: Value,
    /// The closing line of the transcript before, which the token knows.
    pub register: Option<String>,
    previous_kind: &'static str,
    commitments: Value,
    pub backup_sha256: String,
}

impl Scene {
    pub fn birth(room: &Room) -> Self {
        Self {
            kind: Kind::Birth,
            id: ID,
            plan: room.plan.clone(),
            token: 0,
            generation: 1,
            moved: false,
            made_here: 1,
            shares: Value::Null,
            register: None,
            previous_kind: "",
            commitments: room.commitments.clone(),
            backup_sha256: BINARY.to_owned(),
        }
    }

    /// The ceremony that comes next.
    pub fn next(&self, kind: Kind) -> Self {
        let mut id = Sha256::new();
        id.update(self.id.0);
        id.update(kind.name());
        let id = CeremonyId(id.finalize()[..16].try_into().unwrap());
        let deals = matches!(
            self.kind,
            Kind::Birth | Kind::Restore | Kind::ReplaceCustodian
        );
        let shares = if deals {
            json!({"ceremony_id": self.id.to_string(), "threshold": self.plan.threshold, "commitments": self.commitments})
        } else {
            self.shares.clone()
        };
        let rotated = self.kind == Kind::RotateMaster;
        let restored = self.kind == Kind::Restore;
        let generation = self.generation + u32::from(rotated);
        Self {
            kind,
            id,
            plan: self.plan.clone(),
            token: if restored { 2 } else { self.token },
            generation,
            moved: self.moved || restored,
            made_here: match self.kind {
                Kind::RotateMaster => generation,
                Kind::Restore => u32::MAX,
                _ => self.made_here,
            },
            shares,
            register: None,
            previous_kind: self.kind.name(),
            commitments: dealt(&self.plan, id),
            backup_sha256: match self.kind {
                Kind::Backup => hex(&Sha256::digest(self.id.0)),
                _ => self.backup_sha256.clone(),
            },
        }
    }

    fn optional(&self) -> OptionalKeys {
        OptionalKeys {
            memory_master: self.plan.keys.memory_master,
            transfer: self.plan.keys.transfer,
        }
    }

    /// The keys as they stand in the summary.
    fn expected(&self, token: usize, generation: u32) -> Vec<(ExpectedKey, KeyRecord)> {
        ExpectedKey::all(self.optional(), generation)
            .into_iter()
            .map(|expected| {
                let label = expected.label();
                let number = if expected.is_own() { token } else { 0 };
                let public = match expected.public() {
                    Some(PublicKind::P256) => Some(spki(&audit(number))),
                    Some(PublicKind::Rsa4096) => Some(rsa(&format!("{label} {number}"))),
                    None => None,
                };
                let record = KeyRecord::new(&label, &label, public.as_deref());
                (expected, record)
            })
            .collect()
    }

    fn generation_after(&self) -> u32 {
        self.generation + u32::from(self.kind == Kind::RotateMaster)
    }

    pub fn token_after(&self) -> usize {
        if self.kind == Kind::Restore {
            2
        } else {
            self.token
        }
    }

    pub fn keys(&self) -> Vec<KeyRecord> {
        records(&self.expected(self.token_after(), self.generation_after()))
    }

    /// What the token says of its objects.
    fn objects(
        &self,
        keys: &[(ExpectedKey, KeyRecord)],
        moved: bool,
        made_here: u32,
    ) -> Vec<Value> {
        let shape = |key: &ExpectedKey, generation: u32| match (self.plan.keys.backup, moved) {
            (false, _) => KeyShape::Fixed,
            (true, true) if !(key.is_rotated() && generation >= made_here) => KeyShape::Moved,
            (true, _) => KeyShape::Movable,
        };
        let generation = self.generation_after();
        keys.iter()
            .flat_map(|(expected, record)| {
                let objects = expected.objects(shape(expected, generation));
                objects.into_iter().map(|object| told(&object, record))
            })
            .collect()
    }

    fn epoch() -> Value {
        json!({
            "name": "epoch object <script>alert(1)</script>", "label": "strongroom-epoch", "class": "CKO_DATA",
            "attributes": [["CKA_CLASS", "CKO_DATA"], ["CKA_LABEL", "strongroom-epoch"]],
        })
    }

    /// All that a token has.
    fn whole(&self, token: usize, moved: bool, made_here: u32) -> Vec<Value> {
        let keys = self.expected(token, self.generation_after());
        let mut objects = self.objects(&keys, moved, made_here);
        objects.push(Self::epoch());
        objects
    }

    pub fn audit_key(&self) -> String {
        Self::audit_key_of(self.token_after())
    }

    pub fn audit_key_of(token: usize) -> String {
        BASE64_STANDARD.encode(spki(&audit(token)))
    }

    pub fn sealer(&self) -> SigningKey {
        audit(self.token_after())
    }

    pub fn summary(&self) -> Summary {
        Summary {
            token: serde_json::from_value(token(self.token_after())).unwrap(),
            keys: self.keys(),
            store_id: STORE_ID.into(),
        }
    }

    /// What each step puts into the transcript.
    #[allow(clippy::too_many_lines, reason = "a list of the steps")]
    pub fn outputs(&self, step: Step) -> Value {
        let plan = &self.plan;
        let flags = json!({"initialized": true, "user_pin_set": true, "user_pin_locked": false, "so_pin_locked": false});
        let pins = json!({"threshold": plan.threshold, "commitments": self.commitments});
        let present: Vec<Value> = plan
            .participants()
            .map(|(role, person)| {
                json!({"name": person.name(), "role": role.name(), "key": person.fingerprint()})
            })
            .collect();
        let moved = self.moved || self.kind == Kind::Restore;
        let made_here = match self.kind {
            Kind::RotateMaster => self.generation_after(),
            Kind::Restore => u32::MAX,
            _ => self.made_here,
        };
        match step {
            Step::Opening if self.kind == Kind::Birth => json!({
                "plan_sha256": plan.hash_hex(), "binary_sha256": BINARY, "version": "0.1.0", "present": present,
            }),
            Step::Opening => json!({
                "present": present, "shares": self.shares, "token_serial": SERIALS[self.token],
                "previous_kind": self.previous_kind, "binary_sha256": BINARY, "version": "0.2.0",
            }),
            Step::SelfTest => json!({"known_answers": [
                "SHA-256, FIPS 180-4 abc", "HMAC-SHA-256, RFC 4231 case 2",
                "AES-256-GCM, the GCM specification's case 16",
                "ECDSA P-256 signing and verification, RFC 6979 A.2.5",
                "ECDH P-256, RFC 5903 8.1",
            ]}),
            Step::Pins | Step::Transport => pins,
            Step::Token => json!({"token": token(self.token_after()), "slot": 7, "flags": flags}),
            Step::Keys => {
                let mut keys = json!({"keys": self.keys(), "seconds": 12});
                if self.kind == Kind::Restore {
                    keys["backup_sha256"] = self.backup_sha256.clone().into();
                    keys["old_audit_key"] = BASE64_STANDARD.encode(spki(&audit(self.token))).into();
                    keys["new_audit_key"] = self.audit_key().into();
                }
                keys
            }
            Step::Evidence => json!({
                "token": token(self.token_after()),
                "objects": self.whole(self.token_after(), moved, made_here),
                "mechanisms": ["CKM_ECDSA"],
                "self_tests": "passed",
                "profile": {"transfer": plan.keys.transfer, "memory_master": plan.keys.memory_master},
            }),
            Step::Store if self.kind == Kind::Birth => json!({
                "store_id": STORE_ID, "epoch": 1, "audit_log_header_sha256": BINARY,
            }),
            Step::Store => json!({
                "store_id": STORE_ID, "store_epoch": 7, "backup_epoch": 5, "epoch": 8,
            }),
            Step::Identity => {
                let tls = spki(&key(80));
                json!({
                    "spki": BASE64_STANDARD.encode(&tls), "spki_sha256": hex(&Sha256::digest(&tls)),
                    "request_sha256": BINARY, "certificate_sha256": BINARY, "client_ca_sha256": BINARY,
                    "configuration_sha256": BINARY, "policy_sha256": BINARY,
                })
            }
            Step::Trial => {
                let keys = self.keys();
                let master = keys
                    .iter()
                    .find(|key| key.label.starts_with("strongroom-master"));
                let sha256 = master.unwrap().sha256.clone().unwrap();
                json!({
                    "sealed": true, "unsealed": true, "altered_refused": true, "kept": "nothing",
                    "master_fingerprint": sha256[..32],
                })
            }
            Step::RuntimePin => json!({"method": "file"}),
            Step::Export => {
                let keys = self.expected(self.token, self.generation);
                let moved: Vec<_> = keys.into_iter().filter(|(key, _)| !key.is_own()).collect();
                json!({"backup_sha256": hex(&Sha256::digest(self.id.0)), "keys": records(&moved)})
            }
            Step::SecondToken => json!({"token": token(1), "flags": flags}),
            Step::Copy => json!({
                "token": token(1), "keys": records(&self.expected(1, self.generation)),
                "audit_key": BASE64_STANDARD.encode(spki(&audit(1))),
                "objects": self.whole(1, true, u32::MAX),
            }),
            Step::Successor => {
                let keys = self.expected(self.token, self.generation_after());
                let made: Vec<_> = keys
                    .into_iter()
                    .filter(|(key, _)| key.is_rotated())
                    .collect();
                json!({
                    "generation": self.generation_after(), "keys": records(&made),
                    "objects": self.objects(&made, moved, made_here),
                })
            }
            Step::Trust => {
                json!({"in_force": self.generation_after(), "marked_by": plan.security_officer.name()})
            }
            Step::Move => json!({"versions": 3, "moved": 3, "by": "server", "trial": "opened"}),
            Step::Retire => json!({"generation": self.generation_after(), "destroyed": []}),
            Step::Inventory => json!({
                "token": token(self.token), "objects": self.whole(self.token, moved, made_here),
                "audit_key": self.audit_key(), "register": self.register,
            }),
            Step::Consent => json!({"typed": plan.name}),
            Step::Destroy => json!({"left": [], "reinitialised": true, "destroyed": []}),
            Step::Closing if self.kind == Kind::Destroy => json!({}),
            Step::Closing => json!({"audit_key": self.audit_key(), "register": self.register}),
        }
    }
}

fn records(keys: &[(ExpectedKey, KeyRecord)]) -> Vec<KeyRecord> {
    keys.iter().map(|(_, record)| record.clone()).collect()
}

pub fn token(place: usize) -> Value {
    let label = ["vault-keys-1", "vault-keys-1-2", "vault-keys-1"][place];
    json!({"label": label, "serial": SERIALS[place], "manufacturer": "SoftHSM project", "model": "SoftHSM v2"})
}

/// A token's audit key.
fn audit(token: usize) -> SigningKey {
    key(50 + u8::try_from(token).unwrap())
}

/// New shares of new secrets.
pub fn dealt(plan: &Plan, id: CeremonyId) -> Value {
    let deal = Deal::new(plan, id, Mode::Ceremony);
    let (_, commitments) = split(&deal, &Pins::generate().unwrap()).unwrap();
    serde_json::to_value(commitments).unwrap()
}

/// A public key of RSA-4096 as far as anybody can tell; nobody has the private one.
pub fn rsa(seed: &str) -> Vec<u8> {
    let mut modulus: Vec<u8> = (0..16)
        .flat_map(|part| Sha256::digest(format!("{seed} {part}")).to_vec())
        .collect();
    modulus[0] |= 0x80;
    modulus[511] |= 1;
    let key = rsa::PublicKey::new(
        rsa::BoxedUint::from_be_slice_vartime(&modulus),
        rsa::BoxedUint::from(65537_u32),
    )
    .unwrap();
    key.to_public_key_der().unwrap().as_bytes().to_vec()
}

pub fn told(object: &ExpectedObject, record: &KeyRecord) -> Value {
    let attributes: Vec<Value> = object
        .attributes
        .iter()
        .map(|attribute| {
            let value = match &attribute.value {
                ExpectedValue::Is(value) | ExpectedValue::MadeBy(value) => value.clone(),
                ExpectedValue::Holds(inner) => {
                    let inner: Vec<_> = inner
                        .iter()
                        .map(|wanted| format!("{}={}", wanted.name, wanted.value))
                        .collect();
                    inner.join(", ")
                }
            };
            json!([attribute.name, value])
        })
        .collect();
    let mut value = json!({"name": record.name, "label": record.label, "class": object.class, "attributes": attributes});
    let audits = record.label == "strongroom-audit";
    if let Some(spki) = &record.spki
        && (object.class == "CKO_PUBLIC_KEY" || !audits)
    {
        value["spki"] = spki.clone().into();
    }
    value
}
