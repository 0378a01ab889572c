//! The keys, and what the token said of each object, held against the plan and against the tables
//! that each start of the appliance uses.

use std::collections::BTreeSet;

use p256::pkcs8::{DecodePublicKey as _, EncodePublicKey as _};
use strongroom_hsm::ceremony::expected::{
    ExpectedKey, ExpectedObject, PublicKind, SIGNING_LABEL, signing_keys,
};
use strongroom_hsm::{KeyShape, OptionalKeys, SigningKind};

use super::super::Plan;
use super::super::encoding::{hex, sha256, unbase64};
use super::super::record::{KeyRecord, ObjectRecord};

/// The label of the first generation's master key.
const MASTER_LABEL: &str = "strongroom-master";
/// The label of the object that the store's epoch is in.
const EPOCH_LABEL: &str = "strongroom-epoch";

/// What must be on the token.
pub(in super::super) struct TokenRequirements<'a> {
    keys: Vec<ExpectedKey>,
    shape: &'a dyn Fn(&str) -> KeyShape,
    /// Whether the objects are all that are on the token, and not some.
    whole: bool,
    /// Where signing keys may be there, which come and go while the appliance is at work: public
    /// keys, base64, that none of them may have.
    signing: Option<BTreeSet<String>>,
}

impl<'a> TokenRequirements<'a> {
    /// Of a token with every key of the plan; the generation is that of the master key among these.
    pub(in super::super) fn new(
        plan: &Plan,
        keys: &[KeyRecord],
        shape: &'a dyn Fn(&str) -> KeyShape,
    ) -> Self {
        Self {
            keys: ExpectedKey::all(optional(plan), generation(keys)),
            shape,
            whole: true,
            signing: None,
        }
    }

    /// Signing keys may be there as well, each of its own: none has a public key of these.
    pub(in super::super) fn with_signing_keys(self, taken: BTreeSet<String>) -> Self {
        Self {
            signing: Some(taken),
            ..self
        }
    }

    /// Only what a rotation makes, in that generation.
    pub(in super::super) fn successor(
        plan: &Plan,
        generation: u32,
        shape: &'a dyn Fn(&str) -> KeyShape,
    ) -> Self {
        let mut keys = ExpectedKey::all(optional(plan), generation);
        keys.retain(ExpectedKey::is_rotated);
        Self {
            keys,
            shape,
            whole: false,
            signing: None,
        }
    }

    /// What is wrong with the keys that a step recorded: none is missing, none is there besides,
    /// and each is of its kind.
    pub(in super::super) fn key_problems(&self, keys: &[KeyRecord]) -> Vec<String> {
        let mut problems = Vec::new();
        for expected in &self.keys {
            let label = expected.label();
            let mut same = keys.iter().filter(|key| key.label == label);
            let (Some(key), None) = (same.next(), same.next()) else {
                problems.push(format!(
                    "by the plan there must be one key {label:?}, and that is not so"
                ));
                continue;
            };
            problems.extend(public_problem(key, expected.public()));
        }
        for key in keys {
            if !self.keys.iter().any(|known| known.label() == key.label) {
                problems.push(format!("by the plan there is no key {:?}", key.label));
            }
        }
        for (at, key) in keys.iter().enumerate() {
            let twin = keys[..at]
                .iter()
                .find(|other| key.spki.is_some() && other.spki == key.spki);
            if let Some(twin) = twin {
                problems.push(format!(
                    "{:?} and {:?} are the same key",
                    twin.label, key.label
                ));
            }
        }
        problems
    }

    /// What is wrong with what the token said of each object: every half of every key is there once
    /// and is as the tables have it, and no key is there besides.
    pub(in super::super) fn object_problems(
        &self,
        keys: &[KeyRecord],
        objects: &[ObjectRecord],
    ) -> Vec<String> {
        let mut problems = Vec::new();
        for expected in &self.keys {
            let label = expected.label();
            let key = keys.iter().find(|key| key.label == label);
            for wanted in expected.objects((self.shape)(&label)) {
                let mut same = objects
                    .iter()
                    .filter(|object| object.label == label && object.class == wanted.class);
                let (Some(object), None) = (same.next(), same.next()) else {
                    problems.push(format!(
                        "there must be one object {label:?} of class {} on the token, and that is not so",
                        wanted.class
                    ));
                    continue;
                };
                let told = |problem| format!("{label:?} ({}): {problem}", wanted.class);
                problems.extend(wanted.problems(&object.attributes).into_iter().map(told));
                if !numbers_fit(expected, &wanted, key, object) {
                    problems.push(told(
                        "its public numbers are not those of the key".to_owned(),
                    ));
                }
            }
        }
        for object in objects {
            problems.extend(self.stranger(object));
        }
        problems.extend(self.signing_twins(objects));
        if self.whole
            && !objects
                .iter()
                .any(|object| is_data(object) && object.label == EPOCH_LABEL)
        {
            problems.push("there is no epoch object on the token".to_owned());
        }
        problems
    }

    /// Why an object may not be there.
    fn stranger(&self, object: &ObjectRecord) -> Option<String> {
        let told = format!("an object {:?} of class {}", object.label, object.class);
        if is_data(object) {
            let differs = [("CKA_LABEL", &object.label), ("CKA_CLASS", &object.class)]
                .into_iter()
                .any(|(name, value)| {
                    let mut told = object.attributes.iter();
                    told.any(|(other, told)| other == name && told != value)
                });
            return (differs || object.spki.is_some())
                .then(|| format!("{told} is not what its attributes say"));
        }
        if object.label == SIGNING_LABEL
            && let Some(taken) = &self.signing
        {
            return signing_problem(object, taken).map(|problem| format!("{told} {problem}"));
        }
        // The shape changes no class.
        let ours = self.keys.iter().any(|key| {
            key.label() == object.label
                && key
                    .objects(KeyShape::Fixed)
                    .iter()
                    .any(|wanted| wanted.class == object.class)
        });
        (!ours).then(|| format!("{told} is on the token, which is none of the keys"))
    }
}

impl TokenRequirements<'_> {
    /// Two signing keys that are one.
    fn signing_twins(&self, objects: &[ObjectRecord]) -> Option<String> {
        self.signing.as_ref()?;
        let mut seen = BTreeSet::new();
        let twin = objects
            .iter()
            .filter(|object| object.label == SIGNING_LABEL && !is_data(object))
            .filter_map(|object| object.spki.as_ref())
            .any(|spki| !seen.insert(spki));
        twin.then(|| format!("two objects {SIGNING_LABEL:?} are the same key"))
    }
}

/// What is wrong with a signing key: its private half alone is on the token, and tells its public
/// numbers if it is an RSA key; a token need not tell those of others.
fn signing_problem(object: &ObjectRecord, taken: &BTreeSet<String>) -> Option<&'static str> {
    let known = SigningKind::ALL.into_iter().zip(signing_keys());
    let fits = |wanted: &ExpectedObject| {
        wanted.class == object.class && wanted.problems(&object.attributes).is_empty()
    };
    let Some((kind, _)) = known.into_iter().find(|(_, wanted)| fits(wanted)) else {
        return Some("is not as a signing key must be");
    };
    let Some(told) = &object.spki else {
        let must = kind == SigningKind::Rsa4096;
        return must.then_some("does not tell its public numbers");
    };
    if taken.contains(told) {
        return Some("is a key that is there for something else, or was");
    }
    let is_its = match kind {
        SigningKind::EcdsaP256 => is_p256,
        SigningKind::Rsa4096 => is_rsa_4096,
        SigningKind::Ed25519 => is_ed25519,
    };
    (!unbase64(told).is_some_and(|spki| is_its(&spki)))
        .then_some("has public numbers that are of no key of its kind")
}

/// What the plan decides.
fn optional(plan: &Plan) -> OptionalKeys {
    OptionalKeys {
        memory_master: plan.keys.memory_master,
        transfer: plan.keys.transfer,
    }
}

/// Of the master key among these; 1 if there is none, which is said elsewhere.
pub(in super::super) fn generation(keys: &[KeyRecord]) -> u32 {
    let mut numbers = keys.iter().filter_map(|key| {
        let number = key.label.strip_prefix(MASTER_LABEL)?.strip_prefix('-')?;
        number.parse().ok().filter(|number| *number > 1)
    });
    numbers.next().unwrap_or(1)
}

/// Labels of the keys that each token makes for itself.
pub(in super::super) fn is_own(label: &str) -> bool {
    ExpectedKey::all(OptionalKeys::ALL, 1)
        .iter()
        .any(|key| key.is_own() && key.label() == label)
}

fn is_data(object: &ObjectRecord) -> bool {
    matches!(object.class.as_str(), "CKO_DATA" | "CKO_CERTIFICATE")
}

/// The public half of a pair, and the private half where the token tells its numbers, which of an
/// RSA key it must.
fn numbers_fit(
    expected: &ExpectedKey,
    wanted: &ExpectedObject,
    key: Option<&KeyRecord>,
    object: &ObjectRecord,
) -> bool {
    let known = key.and_then(|key| key.spki.as_ref());
    let told = object.spki.as_ref();
    match (expected.public(), wanted.class.as_str()) {
        (None, _) => told.is_none(),
        (Some(PublicKind::P256), "CKO_PRIVATE_KEY") => told.is_none() || told == known,
        (Some(_), _) => told.is_some() && told == known,
    }
}

fn public_problem(key: &KeyRecord, kind: Option<PublicKind>) -> Option<String> {
    let label = &key.label;
    let spki = match (&key.spki, &key.sha256) {
        (Some(spki), Some(hash)) => match unbase64(spki) {
            Some(spki) if hex(&sha256(&spki)) == *hash => Some(spki),
            _ => {
                return Some(format!(
                    "the hash of key {label:?} is not that of its public half"
                ));
            }
        },
        (None, None) => None,
        _ => return Some(format!("key {label:?} has half a public half")),
    };
    let (fits, what) = match (kind, spki) {
        (None, spki) => (spki.is_none(), "a secret key"),
        (Some(PublicKind::P256), spki) => (spki.is_some_and(|spki| is_p256(&spki)), "on P-256"),
        (Some(PublicKind::Rsa4096), spki) => (
            spki.is_some_and(|spki| is_rsa_4096(&spki)),
            "RSA with 4096 bits and the exponent 65537",
        ),
    };
    (!fits).then(|| format!("key {label:?} is not {what}"))
}

pub(super) fn is_p256(spki: &[u8]) -> bool {
    p256::PublicKey::from_public_key_der(spki)
        .ok()
        .and_then(|key| key.to_public_key_der().ok())
        .is_some_and(|der| der.as_bytes() == spki)
}

/// By its bytes (RFC 8410): whether they are a point, only a signature shows.
fn is_ed25519(spki: &[u8]) -> bool {
    const SPKI_PREFIX: [u8; 12] = [
        0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
    ];
    spki.strip_prefix(&SPKI_PREFIX)
        .is_some_and(|key| key.len() == 32)
}

/// By its bytes: an RSA key of that size and exponent has one encoding, of which only the modulus
/// differs.
fn is_rsa_4096(spki: &[u8]) -> bool {
    const SPKI_PREFIX: [u8; 33] = [
        0x30, 0x82, 0x02, 0x22, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01,
        0x01, 0x01, 0x05, 0x00, 0x03, 0x82, 0x02, 0x0f, 0x00, 0x30, 0x82, 0x02, 0x0a, 0x02, 0x82,
        0x02, 0x01, 0x00,
    ];
    const SPKI_SUFFIX: [u8; 5] = [0x02, 0x03, 0x01, 0x00, 0x01];
    spki.strip_prefix(&SPKI_PREFIX)
        .and_then(|rest| rest.strip_suffix(&SPKI_SUFFIX))
        .is_some_and(|modulus| {
            modulus.len() == 512
                && modulus.first().is_some_and(|first| *first >= 0x80)
                && modulus.last().is_some_and(|last| last % 2 == 1)
        })
}
