//! People with keys in this process, a plan that they have signed, and a transcript as the ceremony's own writer makes it.

use p256::ecdsa::signature::hazmat::PrehashSigner as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::{EncodePublicKey as _, LineEnding};
use p256::{PublicKey, SecretKey};
use serde_json::{Value, json};
use strongroom::ceremony::participant::PrivateKeys;
use strongroom::ceremony::plan::{Draft, PinMethod};
use strongroom::ceremony::record::{KeyRecord, Summary, TokenRecord};
use strongroom::ceremony::shares::{Deal, Pins, split};
use strongroom::ceremony::{
    CeremonyError, CeremonyId, Kind, Mode, Opening, Participant, ParticipantKey, Plan,
    PlanSignature, Step, Transcript,
};
use zeroize::Zeroizing;

pub const SERIAL: &str = "c0ffee1234567890";
pub const BINARY: &str = "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9";
const STORE_ID: &str = "000102030405060708090a0b0c0d0e0f";
pub const ID: CeremonyId = CeremonyId(*b"a ceremony's id.");

/// Everyone and everything.
pub struct Room {
    /// In the plan's order.
    pub keys: Vec<ParticipantKey>,
    pub plan: Plan,
    pub signatures: Vec<PlanSignature>,
    /// Stands for the HSM's audit key.
    pub hsm: SigningKey,
    pub commitments: Value,
}

impl Room {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// With a plan that differs.
    pub fn with(change: impl FnOnce(&mut Draft)) -> Self {
        let names = [
            "Alice Ames",
            "Bob O'Bell",
            "Çelik, D.",
            "Dora (security)",
            "Ed",
        ];
        let keys: Vec<ParticipantKey> = names
            .into_iter()
            .zip(1_u8..)
            .map(|(name, number)| person(name, number))
            .collect();
        let public = |index: usize| keys[index].participant().clone();
        let mut draft = Draft {
            name: "vault-keys-1".into(),
            module: "/usr/lib/softhsm/libsofthsm2.so".into(),
            label: "vault-keys-1".into(),
            serial: Some(SERIAL.into()),
            memory_master: false,
            transfer: true,
            backup: false,
            threshold: 2,
            custodians: (0..3).map(public).collect(),
            security_officer: public(3),
            auditor: public(4),
            binary_sha256: BINARY.into(),
            image_sha256: None,
            folder: "/etc/strongroom".into(),
            state: "/var/lib/strongroom".into(),
            listen: "0.0.0.0:8200".parse().unwrap(),
            names: vec!["keys.example".into(), "192.0.2.7".into()],
            pin_method: PinMethod::File,
            replaces: None,
        };
        change(&mut draft);
        let plan = draft.plan().unwrap();
        let signatures = keys
            .iter()
            .map(|key| PlanSignature::make(&plan, key).unwrap())
            .collect();
        let deal = Deal::new(&plan, ID, Mode::Ceremony);
        let (_, commitments) = split(&deal, &Pins::generate().unwrap()).unwrap();
        Self {
            keys,
            plan,
            signatures,
            hsm: key(50),
            commitments: serde_json::to_value(commitments).unwrap(),
        }
    }

    pub fn spki(&self) -> Vec<u8> {
        spki(&self.hsm)
    }

    fn token() -> Value {
        json!({"label": "vault-keys-1", "serial": SERIAL, "manufacturer": "SoftHSM project", "model": "SoftHSM v2"})
    }

    pub fn made(&self) -> Value {
        json!([
            KeyRecord::new("master key", "strongroom-master", Some(&spki(&key(51)))),
            KeyRecord::new("store key", "strongroom-store", None),
            KeyRecord::new("audit key", "strongroom-audit", Some(&self.spki())),
        ])
    }

    /// What each step puts into the transcript.
    pub fn outputs(&self, step: Step) -> Value {
        match step {
            Step::Pins => {
                json!({"threshold": self.plan.threshold, "commitments": self.commitments})
            }
            Step::Token => json!({"token": Self::token(), "slot": 7}),
            Step::Keys => json!({"keys": self.made(), "seconds": 12}),
            Step::Evidence => {
                let mut objects = Vec::new();
                for made in self.made().as_array().unwrap() {
                    let attributes = json!([
                        ["CKA_EXTRACTABLE", "false"],
                        ["CKA_LABEL", "<script>alert(1)</script>"]
                    ]);
                    objects.push(json!({"name": made["name"], "label": made["label"], "class": "CKO_PRIVATE_KEY", "attributes": attributes}));
                    if made["spki"].is_string() {
                        objects.push(json!({"name": "public half", "label": made["label"], "class": "CKO_PUBLIC_KEY", "spki": made["spki"], "attributes": attributes}));
                    }
                }
                json!({"token": Self::token(), "objects": objects, "mechanisms": ["CKM_ECDSA"]})
            }
            Step::Store => json!({"store_id": STORE_ID, "epoch": 1}),
            _ => json!({}),
        }
    }

    /// What each step of a later ceremony puts into its transcript.
    pub fn later_outputs(&self, step: Step) -> Value {
        let shares = json!({"threshold": self.plan.threshold, "commitments": self.commitments});
        let made = self.made();
        match step {
            Step::Opening => {
                let present: Vec<Value> = self
                    .plan
                    .participants()
                    .map(|(role, person)| {
                        json!({"name": person.name(), "role": role.name(), "key": person.fingerprint()})
                    })
                    .collect();
                let mut shares = shares;
                shares["ceremony_id"] = ID.to_string().into();
                json!({"present": present, "shares": shares, "version": "0.2.0"})
            }
            Step::Transport => shares,
            Step::Export => json!({"backup_sha256": BINARY, "keys": [made[0], made[1]]}),
            Step::SecondToken => json!({"token": Self::second_token()}),
            Step::Copy => {
                let audit = spki(&key(60));
                let mut keys = made.as_array().unwrap().clone();
                keys[2] = json!(KeyRecord::new(
                    "audit key",
                    "strongroom-audit",
                    Some(&audit)
                ));
                let objects: Vec<Value> = keys
                    .iter()
                    .map(|key| {
                        let mut object = json!({"name": "x", "label": key["label"], "class": "CKO_PUBLIC_KEY", "attributes": []});
                        if key["spki"].is_string() {
                            object["spki"] = key["spki"].clone();
                        }
                        object
                    })
                    .collect();
                let audit = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, audit);
                json!({"token": Self::second_token(), "keys": keys, "audit_key": audit, "objects": objects})
            }
            _ => json!({}),
        }
    }

    fn second_token() -> Value {
        json!({"label": "vault-keys-1-2", "serial": "beef", "manufacturer": "SoftHSM project", "model": "SoftHSM v2"})
    }

    pub fn summary(&self) -> Value {
        json!({"token": Self::token(), "keys": self.made(), "store_id": STORE_ID})
    }

    /// As the ceremony writes it, with an interruption on the way.
    pub fn written(&self, mode: Mode) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let opening = Opening {
            mode,
            kind: Kind::Birth,
            previous_sha256: None,
            ceremony_id: ID,
            plan: &self.plan,
            signatures: &self.signatures,
            version: "0.1.0",
            binary_sha256: BINARY,
        };
        let mut transcript = Transcript::create(folder.path(), &opening).unwrap();
        let actors: Vec<&str> = self
            .plan
            .participants()
            .map(|(_, person)| person.name())
            .collect();
        for step in Kind::Birth.steps().iter().copied() {
            transcript.begin(step, &actors, &json!({"n": 1})).unwrap();
            if step == Step::Keys {
                drop(transcript);
                let path = folder.path().join("transcript.jsonl");
                let mut torn = std::fs::OpenOptions::new().append(true).open(path).unwrap();
                std::io::Write::write_all(&mut torn, b"{\"type\":\"do").unwrap();
                let (resumed, history) = Transcript::resume(folder.path()).unwrap();
                assert_eq!(history.next(), Some(Step::Keys));
                assert_eq!(history.torn.unwrap().0, 11);
                transcript = resumed;
                transcript.begin(step, &actors, &json!({"n": 2})).unwrap();
                transcript
                    .note(
                        step,
                        "a share was refused \u{1b}[31m\u{202e} <script>",
                        &Value::Null,
                    )
                    .unwrap();
            }
            transcript.done(step, &actors, &self.outputs(step)).unwrap();
        }
        let token: TokenRecord = serde_json::from_value(Self::token()).unwrap();
        let keys: Vec<KeyRecord> = serde_json::from_value(self.made()).unwrap();
        let summary = Summary {
            token,
            keys,
            store_id: STORE_ID.into(),
        };
        transcript.close(&summary, &self.spki()).unwrap();
        let digest = transcript.signing_digest().unwrap();
        for ((role, person), key) in self.plan.participants().zip(&self.keys) {
            let signature = key.sign_digest(&digest).unwrap();
            transcript.sign(role, person, &signature).unwrap();
        }
        let digest = transcript.seal_digest().unwrap();
        transcript.seal(&sign(&self.hsm, &digest)).unwrap();
        std::fs::read(transcript.path()).unwrap()
    }
}

/// A signing key of this number.
pub fn key(number: u8) -> SigningKey {
    SigningKey::from_slice(&[number; 32]).unwrap()
}

pub fn spki(key: &SigningKey) -> Vec<u8> {
    key.verifying_key().to_public_key_der().unwrap().into_vec()
}

pub fn pem(key: &SigningKey) -> String {
    key.verifying_key()
        .to_public_key_pem(LineEnding::LF)
        .unwrap()
}

pub fn sign(key: &SigningKey, digest: &[u8; 32]) -> [u8; 64] {
    let signature: Signature = key.sign_prehash(digest).unwrap();
    signature.to_bytes().into()
}

/// A participant with keys of this number.
pub fn person(name: &str, number: u8) -> ParticipantKey {
    let keys = InMemory {
        signing: key(number),
        agreement: SecretKey::from_slice(&[100 + number; 32]).unwrap(),
    };
    let agreement = keys.agreement.public_key().to_public_key_der().unwrap();
    let public = Participant::new(name, &spki(&keys.signing), agreement.as_bytes()).unwrap();
    ParticipantKey::new(public, Box::new(keys))
}

struct InMemory {
    signing: SigningKey,
    agreement: SecretKey,
}

impl PrivateKeys for InMemory {
    fn sign_digest(&self, digest: &[u8; 32]) -> Result<[u8; 64], CeremonyError> {
        Ok(sign(&self.signing, digest))
    }

    fn agree(&self, peer: &PublicKey) -> Result<Zeroizing<[u8; 32]>, CeremonyError> {
        let shared =
            p256::ecdh::diffie_hellman(self.agreement.to_nonzero_scalar(), peer.as_affine());
        Ok(Zeroizing::new((*shared.raw_secret_bytes()).into()))
    }
}
