//! People with keys in this process, a plan that they have signed, and a transcript as the
//! ceremony's own writer makes it.

use p256::ecdsa::signature::hazmat::PrehashSigner as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::{EncodePublicKey as _, LineEnding};
use p256::{PublicKey, SecretKey};
use serde_json::{Value, json};
use strongroom_ceremony::participant::PrivateKeys;
use strongroom_ceremony::plan::{Draft, PinMethod};
use strongroom_ceremony::{
    CeremonyError, CeremonyId, Kind, Mode, Opening, Participant, ParticipantKey, Plan,
    PlanSignature, Step, Transcript,
};
use zeroize::Zeroizing;

use super::scene::{SERIALS, Scene, dealt};

pub const SERIAL: &str = SERIALS[0];
pub const BINARY: &str = "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9";
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

    /// With every key that there is, and keys that may be moved.
    pub fn movable() -> Self {
        Self::with(|draft| {
            draft.backup = true;
            draft.memory_master = true;
        })
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
        let commitments = dealt(&plan, ID);
        Self {
            keys,
            plan,
            signatures,
            hsm: key(50),
            commitments,
        }
    }

    pub fn spki(&self) -> Vec<u8> {
        spki(&self.hsm)
    }

    /// What each step of the initial ceremony puts into the transcript.
    pub fn outputs(&self, step: Step) -> Value {
        Scene::birth(self).outputs(step)
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
        let summary = Scene::birth(self).summary();
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
    person_with(name, number, 100 + number)
}

/// A participant with keys of these numbers.
pub fn person_with(name: &str, signing: u8, agreement: u8) -> ParticipantKey {
    let keys = InMemory {
        signing: key(signing),
        agreement: SecretKey::from_slice(&[agreement; 32]).unwrap(),
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
