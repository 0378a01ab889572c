//! Finding the appliance's keys on the token and holding each against its template.

use std::thread;
use std::time::Duration;

use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CK_ULONG, CKA_EC_POINT, CKA_LABEL, CKA_MODULUS, CKA_PUBLIC_EXPONENT,
    CKO_PUBLIC_KEY,
};
use p256::ecdsa::VerifyingKey;
use rsa::BoxedUint;
use rsa::pkcs8::EncodePublicKey;
use sha2::{Digest, Sha256};

use crate::config::KeyShape;
use crate::error::HsmError;
use crate::fault::Fault;
use crate::register::Register;
use crate::template::{AUDIT, F4, OPTIONAL, REQUIRED, ROTATED, Rule, STORE, Value, WRAPPING, When};
use crate::types::MasterKind;
use crate::watched::WatchedSession;
use generation::{Generations, Numbered};

/// The appliance's keys: handles are those of one login.
pub(crate) struct Keys {
    /// Master and transfer keys.
    pub(crate) generations: Generations,
    pub(crate) wrapping: Pair,
    pub(crate) audit: Pair,
    pub(crate) store: ObjectHandle,
}

/// A key pair.
pub(crate) struct Pair {
    pub(crate) public: ObjectHandle,
    pub(crate) private: ObjectHandle,
    /// `SubjectPublicKeyInfo`, DER.
    pub(crate) spki: Vec<u8>,
    /// What the private half forces on whatever it unwraps.
    pub(crate) forced: UnwrapAttributes,
}

/// The attributes of a key's `CKA_UNWRAP_TEMPLATE`, by the token's own word: a call repeats each of
/// them (`SoftHSM` demands it), and not every key has all of its table's.
#[derive(Clone, Default)]
pub(crate) struct UnwrapAttributes(Vec<CK_ATTRIBUTE_TYPE>);

impl UnwrapAttributes {
    pub(crate) fn read(watched: &WatchedSession, private: ObjectHandle) -> Result<Self, Fault> {
        let template = watched.raw().unwrap_template(watched.session(), private)?;
        let template = template.unwrap_or_default().into_iter();
        Ok(Self(template.map(|(attribute, _)| attribute).collect()))
    }

    pub(crate) fn holds(&self, rule: &Rule) -> bool {
        self.0.contains(&rule.attribute)
    }

    /// Whether the rule goes into a call that unwraps by the key.
    pub(crate) fn asked(&self, rule: &Rule, with_optional: bool) -> bool {
        rule.asked(with_optional) || self.holds(rule)
    }

    /// Of a key's table, what this key forces, or must.
    pub(crate) fn of<'a>(&self, template: &'a [Rule]) -> impl Iterator<Item = &'a Rule> {
        template
            .iter()
            .filter(|rule| rule.when == When::Always || self.holds(rule))
    }
}

impl Keys {
    /// Finds every key and checks every attribute. The first deviation is an
    /// [`HsmError::KeyPolicy`].
    pub(crate) fn check(watched: &WatchedSession, shape: KeyShape) -> Result<Self, Fault> {
        refuse_wrap_and_decrypt(watched)?;
        Ok(Self {
            generations: Generations::check(watched, shape)?,
            wrapping: rsa_pair(watched, (&WRAPPING).into(), shape)?,
            audit: Self::audit(watched, shape)?,
            store: private_key(watched, (&STORE).into(), shape)?,
        })
    }

    /// The audit signing key alone, checked as with the others.
    pub(crate) fn audit(watched: &WatchedSession, shape: KeyShape) -> Result<Pair, Fault> {
        ec_pair(watched, (&AUDIT).into(), shape)
    }

    /// The master key of that kind that wraps new KEKs.
    pub(crate) fn master(&self, kind: MasterKind) -> Result<&Pair, HsmError> {
        self.generations.current().master(kind).ok_or_else(|| {
            HsmError::Unsupported(
                "memory residency: it needs a second master key, which this token does not hold"
                    .to_owned(),
            )
        })
    }
}

impl Pair {
    /// The first 16 bytes of SHA-256 over the `SubjectPublicKeyInfo`.
    pub(crate) fn fingerprint(&self) -> [u8; 16] {
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&self.sha256()[..16]);
        fingerprint
    }

    /// SHA-256 over the `SubjectPublicKeyInfo`.
    pub(crate) fn sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.spki).into()
    }
}

/// The name of the first key that is on the token already, of whatever generation.
pub(crate) fn existing(watched: &WatchedSession) -> Result<Option<String>, Fault> {
    let first = REQUIRED.into_iter().map(Numbered::from);
    let later = generation::numbers(watched)?
        .into_iter()
        .flat_map(|generation| ROTATED.map(|spec| Numbered { spec, generation }));
    for key in first.chain(later) {
        if key.halves(watched)? != (false, false) {
            return Ok(Some(key.name()));
        }
    }
    Ok(None)
}

/// `SubjectPublicKeyInfo`, DER, of an RSA key from its big-endian numbers.
fn rsa_der(modulus: &[u8], exponent: &[u8]) -> Option<Vec<u8>> {
    let key = rsa::PublicKey::new(
        BoxedUint::from_be_slice_vartime(modulus),
        BoxedUint::from_be_slice_vartime(exponent),
    )
    .ok()?;
    Some(key.to_public_key_der().ok()?.as_bytes().to_vec())
}

/// `SubjectPublicKeyInfo`, DER, of any public key object, if it is an RSA or P-256 key.
pub(crate) fn spki(
    watched: &WatchedSession,
    public: ObjectHandle,
) -> Result<Option<Vec<u8>>, Fault> {
    let attribute = |name| watched.raw().attribute(watched.session(), public, name);
    let modulus = attribute(CKA_MODULUS)?;
    let exponent = attribute(CKA_PUBLIC_EXPONENT)?;
    if let (Some(modulus), Some(exponent)) = (modulus, exponent) {
        return Ok(rsa_der(&modulus, &exponent));
    }
    Ok(attribute(CKA_EC_POINT)?.as_deref().and_then(ec_der))
}

/// `SubjectPublicKeyInfo`, DER, of an RSA private key by its modulus. The exponent is the one that
/// every key of the appliance has: a token need not tell it of a private key.
pub(crate) fn rsa_spki_of_private(
    watched: &WatchedSession,
    private: ObjectHandle,
) -> Result<Option<Vec<u8>>, Fault> {
    let modulus = watched
        .raw()
        .attribute(watched.session(), private, CKA_MODULUS)?
        .filter(|modulus| !modulus.is_empty());
    Ok(modulus.and_then(|modulus| rsa_der(&modulus, F4)))
}

/// DER of an RSA public key object.
fn rsa_spki(
    watched: &WatchedSession,
    key: Numbered<'_>,
    public: ObjectHandle,
) -> Result<Vec<u8>, Fault> {
    let name = key.public_name();
    let modulus = demand(watched, public, &name, CKA_MODULUS, "CKA_MODULUS")?;
    let exponent = demand(
        watched,
        public,
        &name,
        CKA_PUBLIC_EXPONENT,
        "CKA_PUBLIC_EXPONENT",
    )?;
    rsa_der(&modulus, &exponent)
        .ok_or_else(|| policy(&name, "CKA_MODULUS", "and its exponent make no RSA key").into())
}

fn rsa_pair(watched: &WatchedSession, key: Numbered<'_>, shape: KeyShape) -> Result<Pair, Fault> {
    let private = private_key(watched, key, shape)?;
    let public = public_key(watched, key, shape)?;
    let name = key.public_name();
    let modulus = demand(watched, public, &name, CKA_MODULUS, "CKA_MODULUS")?;
    // A public key swapped for somebody else's would wrap our keys for them.
    if demand(watched, private, &key.name(), CKA_MODULUS, "CKA_MODULUS")? != modulus {
        return Err(policy(&name, "CKA_MODULUS", "is not that of the private key").into());
    }
    Ok(Pair {
        public,
        private,
        spki: rsa_spki(watched, key, public)?,
        forced: UnwrapAttributes::read(watched, private)?,
    })
}

fn ec_pair(watched: &WatchedSession, key: Numbered<'_>, shape: KeyShape) -> Result<Pair, Fault> {
    let private = private_key(watched, key, shape)?;
    let public = public_key(watched, key, shape)?;
    let name = key.public_name();
    let point = demand(watched, public, &name, CKA_EC_POINT, "CKA_EC_POINT")?;
    // That it belongs to the private key is for the self-test to see, which verifies a signature
    // with it.
    let spki =
        ec_der(&point).ok_or_else(|| policy(&name, "CKA_EC_POINT", "is not a point on P-256"))?;
    Ok(Pair {
        public,
        private,
        spki,
        forced: UnwrapAttributes::default(),
    })
}

/// `SubjectPublicKeyInfo` of a P-256 point: a DER OCTET STRING by the standard; some tokens give
/// the point bare.
fn ec_der(point: &[u8]) -> Option<Vec<u8>> {
    // By length alone: a bare point may begin with the same two bytes.
    let point = if point.len() == 2 + 65 {
        point.strip_prefix(&[0x04, 0x41])?
    } else {
        point
    };
    let key = VerifyingKey::from_sec1_bytes(point).ok()?;
    Some(key.to_public_key_der().ok()?.into_vec())
}

fn private_key(
    watched: &WatchedSession,
    key: Numbered<'_>,
    shape: KeyShape,
) -> Result<ObjectHandle, Fault> {
    let name = key.name();
    let object = only(watched, &key.label(), key.spec.private_class(), &name)?;
    check(watched, object, &name, &key.private_rules(shape))?;
    Ok(object)
}

fn public_key(
    watched: &WatchedSession,
    key: Numbered<'_>,
    shape: KeyShape,
) -> Result<ObjectHandle, Fault> {
    let name = key.public_name();
    let object = only(watched, &key.label(), CKO_PUBLIC_KEY, &name)?;
    check(watched, object, &name, &key.public_rules(shape))?;
    Ok(object)
}

/// The one object of that class and label.
pub(crate) fn only(
    watched: &WatchedSession,
    label: &str,
    class: CK_ULONG,
    name: &str,
) -> Result<ObjectHandle, Fault> {
    match watched.find(class, label)?.as_slice() {
        [key] => Ok(*key),
        [] => Err(HsmError::Missing {
            name: name.to_owned(),
            label: label.to_owned(),
            there: there(watched),
        }
        .into()),
        several => Err(policy(
            name,
            "CKA_LABEL",
            &format!(
                "{label:?} is on {} objects, there must be one",
                several.len()
            ),
        )
        .into()),
    }
}

/// Labels of the appliance's objects that are on the token, to be told with what is not there. What
/// can't be asked for is left out: the error is another one.
pub(crate) fn there(watched: &WatchedSession) -> Vec<String> {
    let first = REQUIRED.into_iter().chain(OPTIONAL).map(Numbered::from);
    let later = generation::numbers(watched)
        .unwrap_or_default()
        .into_iter()
        .filter(|generation| *generation > 1)
        .flat_map(|generation| ROTATED.map(|spec| Numbered { spec, generation }));
    let keys = first
        .chain(later)
        .filter(|key| {
            key.halves(watched)
                .is_ok_and(|found| found != (false, false))
        })
        .map(|key| key.label());
    let registers = Register::ALL
        .into_iter()
        .filter(|register| register.exists(watched).is_ok_and(|exists| exists))
        .map(|register| register.label().to_owned());
    keys.chain(registers).collect()
}

/// The halves of the appliance's keys that are not there; of an optional key only if the other half
/// is. Of keys of several generations one whole one is enough.
pub(crate) fn missing(watched: &WatchedSession) -> Result<Vec<String>, Fault> {
    let mut names = Vec::new();
    let mut numbers = generation::numbers(watched)?;
    numbers.insert(1);
    for spec in REQUIRED.into_iter().chain(OPTIONAL) {
        let rotated = ROTATED.iter().any(|other| other.label == spec.label);
        let mut halves = Vec::new();
        for generation in numbers.iter().copied().filter(|n| rotated || *n == 1) {
            let key = Numbered { spec, generation };
            halves.push((key, key.halves(watched)?));
        }
        let whole = |(private, public): (bool, bool)| private && (public || spec.public.is_none());
        let optional = OPTIONAL.iter().any(|other| other.label == spec.label);
        if halves.iter().any(|(_, found)| whole(*found))
            || (optional && halves.iter().all(|(_, found)| *found == (false, false)))
        {
            continue;
        }
        // The first generation where there is nothing at all.
        let Some((key, (private, public))) = halves
            .iter()
            .find(|(_, found)| *found != (false, false))
            .or(halves.first())
        else {
            continue;
        };
        if !private {
            names.push(key.name());
        }
        if spec.public.is_some() && !public {
            names.push(key.public_name());
        }
    }
    Ok(names)
}

pub(crate) fn check(
    watched: &WatchedSession,
    key: ObjectHandle,
    name: &str,
    rules: &[Rule],
) -> Result<(), Fault> {
    for rule in rules {
        if let Value::Template(inner) = &rule.value {
            check_template(watched, key, name, rule, inner)?;
            continue;
        }
        let value = watched
            .raw()
            .attribute(watched.session(), key, rule.attribute)?;
        admit(rule, value.as_deref(), name)?;
    }
    Ok(())
}

/// As [`check`], in one call: for keys that are looked at each time they come into a session. Rules
/// of small attributes only.
pub(crate) fn check_small(
    watched: &WatchedSession,
    key: ObjectHandle,
    name: &str,
    rules: &[Rule],
    with_optional: bool,
) -> Result<(), Fault> {
    let rules: Vec<_> = rules
        .iter()
        .filter(|rule| rule.asked(with_optional))
        .collect();
    let names: Vec<_> = rules.iter().map(|rule| rule.attribute).collect();
    let values = watched.raw().attributes(watched.session(), key, &names)?;
    for (rule, value) in rules.into_iter().zip(values) {
        admit(rule, value.as_deref(), name)?;
    }
    Ok(())
}

fn admit(rule: &Rule, value: Option<&[u8]>, name: &str) -> Result<(), Fault> {
    match value {
        Some(value) if rule.admits(value) => Ok(()),
        None if rule.when == When::IfKnown => Ok(()),
        // An empty or missing list means "all mechanisms" in PKCS#11.
        found => {
            let found = found.map_or_else(|| "is not set".to_owned(), |value| is(rule, value));
            let problem = format!("{found}, it must be {}", rule.wanted());
            Err(policy(name, rule.name, &problem).into())
        }
    }
}

/// The key's template must hold at least those of the inner rules that are demanded, and none of
/// the others with another value.
fn check_template(
    watched: &WatchedSession,
    key: ObjectHandle,
    name: &str,
    rule: &Rule,
    inner: &[Rule],
) -> Result<(), Fault> {
    let found = watched
        .raw()
        .unwrap_template(watched.session(), key)?
        .unwrap_or_default();
    for wanted in inner {
        let mut values = found
            .iter()
            .filter(|(attribute, _)| *attribute == wanted.attribute);
        let good = match values.next() {
            Some((_, value)) => wanted.admits(value) && values.next().is_none(),
            None => wanted.when == When::IfKnown,
        };
        if !good {
            let problem = format!("does not force {}={}", wanted.name, wanted.wanted());
            return Err(policy(name, rule.name, &problem).into());
        }
    }
    Ok(())
}

/// No object may both wrap and decrypt: with such a key whoever has the PIN wraps another key out
/// and decrypts it (Clulow 2003).
///
/// `SoftHSM` makes each key with all rights and takes them away one by one, and shows it meanwhile,
/// another process's too. So only what stays is refused.
fn refuse_wrap_and_decrypt(watched: &WatchedSession) -> Result<(), Fault> {
    const MAX_LOOKS: u32 = 10;
    const LOOK_INTERVAL: Duration = Duration::from_millis(100);
    let both = [Attribute::Wrap(true), Attribute::Decrypt(true)];
    let mut found = watched.find_objects(&both)?;
    for _ in 0..MAX_LOOKS {
        if found.is_empty() {
            return Ok(());
        }
        thread::sleep(LOOK_INTERVAL);
        let still = watched.find_objects(&both)?;
        found.retain(|object| still.contains(object));
    }
    let Some(object) = found.into_iter().next() else {
        return Ok(());
    };
    let label = watched.told(object, CKA_LABEL)?.unwrap_or_default();
    Err(policy(
        &format!("key labelled {:?}", String::from_utf8_lossy(&label)),
        "CKA_WRAP",
        "and CKA_DECRYPT are both true: together they extract any key of the token; remove that key",
    )
    .into())
}

fn demand(
    watched: &WatchedSession,
    key: ObjectHandle,
    name: &str,
    attribute: CK_ATTRIBUTE_TYPE,
    attribute_name: &str,
) -> Result<Vec<u8>, Fault> {
    let mut value = watched
        .raw()
        .attribute(watched.session(), key, attribute)?
        .ok_or_else(|| policy(name, attribute_name, "can't be read"))?;
    // Big numbers: some tokens put a zero in front.
    if attribute != CKA_EC_POINT {
        let zeros = value.iter().take_while(|byte| **byte == 0).count();
        value.drain(..zeros);
    }
    Ok(value)
}

fn is(rule: &Rule, value: &[u8]) -> String {
    match (&rule.value, value) {
        (Value::Bool(_), [0]) => "is false".to_owned(),
        (Value::Bool(_), [_]) => "is true".to_owned(),
        (Value::Ulong(_), _) => value.try_into().map_or_else(
            |_| "has an odd length".to_owned(),
            |bytes| format!("is {}", CK_ULONG::from_ne_bytes(bytes)),
        ),
        _ => "differs".to_owned(),
    }
}

pub(crate) fn policy(key: &str, attribute: &str, problem: &str) -> HsmError {
    HsmError::KeyPolicy {
        key: key.to_owned(),
        attribute: attribute.to_owned(),
        problem: problem.to_owned(),
    }
}

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
pub(crate) mod generation;
#[cfg(test)]
mod tests;
