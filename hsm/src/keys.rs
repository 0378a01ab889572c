//! Finding the appliance's keys on the token and holding each against its template.

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
use crate::line::Line;
use crate::template::{
    AUDIT, KeySpec, MASTER, MEMORY_MASTER, REQUIRED, Rule, STORE, Value, WRAPPING, When,
};
use crate::types::MasterKind;

/// The appliance's keys: handles are those of one login.
pub(crate) struct Keys {
    pub(crate) master: Pair,
    pub(crate) memory_master: Option<Pair>,
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
}

impl Keys {
    /// Finds every key and checks every attribute. The first deviation is an [`HsmError::KeyPolicy`].
    pub(crate) fn check(line: &Line, shape: KeyShape) -> Result<Self, Fault> {
        refuse_wrap_and_decrypt(line)?;
        let memory_master = if is_absent(line, &MEMORY_MASTER)? {
            None
        } else {
            Some(rsa_pair(line, &MEMORY_MASTER, shape)?)
        };
        Ok(Self {
            master: rsa_pair(line, &MASTER, shape)?,
            memory_master,
            wrapping: rsa_pair(line, &WRAPPING, shape)?,
            audit: ec_pair(line, &AUDIT, shape)?,
            store: private_key(line, &STORE, shape)?,
        })
    }

    /// The master key of that kind.
    pub(crate) fn master(&self, kind: MasterKind) -> Result<&Pair, HsmError> {
        match kind {
            MasterKind::Hsm => Ok(&self.master),
            MasterKind::Memory => self.memory_master.as_ref().ok_or_else(|| {
                HsmError::Unsupported(
                    "memory residency: it needs a second master key, which this token does not hold".to_owned(),
                )
            }),
        }
    }
}

impl Pair {
    /// The first 16 bytes of SHA-256 over the `SubjectPublicKeyInfo`.
    pub(crate) fn fingerprint(&self) -> [u8; 16] {
        let digest: [u8; 32] = Sha256::digest(&self.spki).into();
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&digest[..16]);
        fingerprint
    }
}

/// The name of the first key that is on the token already.
pub(crate) fn existing(line: &Line, memory_master: bool) -> Result<Option<&'static str>, Fault> {
    let optional = memory_master.then_some(&MEMORY_MASTER);
    for spec in REQUIRED.into_iter().chain(optional) {
        if !is_absent(line, spec)? {
            return Ok(Some(spec.name));
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
pub(crate) fn spki(line: &Line, public: ObjectHandle) -> Result<Option<Vec<u8>>, Fault> {
    let attribute = |name| line.raw().attribute(line.session(), public, name);
    let modulus = attribute(CKA_MODULUS)?;
    let exponent = attribute(CKA_PUBLIC_EXPONENT)?;
    if let (Some(modulus), Some(exponent)) = (modulus, exponent) {
        return Ok(rsa_der(&modulus, &exponent));
    }
    Ok(attribute(CKA_EC_POINT)?.as_deref().and_then(ec_der))
}

/// DER of an RSA public key object.
fn rsa_spki(line: &Line, spec: &KeySpec, public: ObjectHandle) -> Result<Vec<u8>, Fault> {
    let name = public_name(spec);
    let modulus = demand(line, public, &name, CKA_MODULUS, "CKA_MODULUS")?;
    let exponent = demand(
        line,
        public,
        &name,
        CKA_PUBLIC_EXPONENT,
        "CKA_PUBLIC_EXPONENT",
    )?;
    rsa_der(&modulus, &exponent)
        .ok_or_else(|| policy(&name, "CKA_MODULUS", "and its exponent make no RSA key").into())
}

fn rsa_pair(line: &Line, spec: &KeySpec, shape: KeyShape) -> Result<Pair, Fault> {
    let private = private_key(line, spec, shape)?;
    let public = public_key(line, spec, shape)?;
    let name = public_name(spec);
    let modulus = demand(line, public, &name, CKA_MODULUS, "CKA_MODULUS")?;
    // A public key swapped for somebody else's would wrap our keys for them.
    if demand(line, private, spec.name, CKA_MODULUS, "CKA_MODULUS")? != modulus {
        return Err(policy(&name, "CKA_MODULUS", "is not that of the private key").into());
    }
    Ok(Pair {
        public,
        private,
        spki: rsa_spki(line, spec, public)?,
    })
}

fn ec_pair(line: &Line, spec: &KeySpec, shape: KeyShape) -> Result<Pair, Fault> {
    let private = private_key(line, spec, shape)?;
    let public = public_key(line, spec, shape)?;
    let name = public_name(spec);
    let point = demand(line, public, &name, CKA_EC_POINT, "CKA_EC_POINT")?;
    // That it belongs to the private key is for the self-test to see, which verifies a signature with it.
    let spki =
        ec_der(&point).ok_or_else(|| policy(&name, "CKA_EC_POINT", "is no point of P-256"))?;
    Ok(Pair {
        public,
        private,
        spki,
    })
}

/// `SubjectPublicKeyInfo` of a P-256 point: a DER OCTET STRING by the standard; some tokens give the point bare.
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

fn private_key(line: &Line, spec: &KeySpec, shape: KeyShape) -> Result<ObjectHandle, Fault> {
    let key = only(line, spec, spec.private_class(), spec.name)?;
    check(line, key, spec.name, &spec.private_rules(shape))?;
    Ok(key)
}

fn public_key(line: &Line, spec: &KeySpec, shape: KeyShape) -> Result<ObjectHandle, Fault> {
    let name = public_name(spec);
    let key = only(line, spec, CKO_PUBLIC_KEY, &name)?;
    check(line, key, &name, &spec.public_rules(shape))?;
    Ok(key)
}

pub(crate) fn public_name(spec: &KeySpec) -> String {
    format!("public half of the {}", spec.name)
}

/// The one object of that class and label.
fn only(line: &Line, spec: &KeySpec, class: CK_ULONG, name: &str) -> Result<ObjectHandle, Fault> {
    match line.find(class, spec.label)?.as_slice() {
        [key] => Ok(*key),
        [] => Err(policy(
            name,
            "CKA_LABEL",
            &format!("{:?} is on no such object: make the keys first", spec.label),
        )
        .into()),
        several => Err(policy(
            name,
            "CKA_LABEL",
            &format!(
                "{:?} is on {} objects, there must be one",
                spec.label,
                several.len()
            ),
        )
        .into()),
    }
}

/// The halves of the appliance's keys that are not there; of the optional key only if the other half is.
pub(crate) fn missing(line: &Line) -> Result<Vec<String>, Fault> {
    let mut names = Vec::new();
    let optional = (!is_absent(line, &MEMORY_MASTER)?).then_some(&MEMORY_MASTER);
    for spec in REQUIRED.into_iter().chain(optional) {
        if line.find(spec.private_class(), spec.label)?.is_empty() {
            names.push(spec.name.to_owned());
        }
        if spec.public.is_some() && line.find(CKO_PUBLIC_KEY, spec.label)?.is_empty() {
            names.push(public_name(spec));
        }
    }
    Ok(names)
}

fn is_absent(line: &Line, spec: &KeySpec) -> Result<bool, Fault> {
    Ok(line.find(spec.private_class(), spec.label)?.is_empty()
        && (spec.public.is_none() || line.find(CKO_PUBLIC_KEY, spec.label)?.is_empty()))
}

pub(crate) fn check(
    line: &Line,
    key: ObjectHandle,
    name: &str,
    rules: &[Rule],
) -> Result<(), Fault> {
    for rule in rules {
        if let Value::Template(inner) = rule.value {
            check_template(line, key, name, rule, inner)?;
            continue;
        }
        match line.raw().attribute(line.session(), key, rule.attribute)? {
            Some(value) if rule.admits(&value) => {}
            None if rule.when == When::IfKnown => {}
            // An empty or missing list means "all mechanisms" in PKCS#11.
            found => {
                let found = found.map_or_else(|| "is not set".to_owned(), |value| is(rule, &value));
                let problem = format!("{found}, it must be {}", rule.wanted());
                return Err(policy(name, rule.name, &problem).into());
            }
        }
    }
    Ok(())
}

/// The key's template must hold at least the inner rules.
fn check_template(
    line: &Line,
    key: ObjectHandle,
    name: &str,
    rule: &Rule,
    inner: &[Rule],
) -> Result<(), Fault> {
    let found = line
        .raw()
        .unwrap_template(line.session(), key)?
        .unwrap_or_default();
    for wanted in inner {
        let mut values = found
            .iter()
            .filter(|(attribute, _)| *attribute == wanted.attribute);
        let good =
            values.next().is_some_and(|(_, value)| wanted.admits(value)) && values.next().is_none();
        if !good {
            let problem = format!("does not force {}={}", wanted.name, wanted.wanted());
            return Err(policy(name, rule.name, &problem).into());
        }
    }
    Ok(())
}

/// No object may both wrap and decrypt: with such a key whoever has the PIN wraps another key out and decrypts it (Clulow 2003).
fn refuse_wrap_and_decrypt(line: &Line) -> Result<(), Fault> {
    let both = [Attribute::Wrap(true), Attribute::Decrypt(true)];
    let Some(object) = line.session().find_objects(&both)?.into_iter().next() else {
        return Ok(());
    };
    let label = line
        .raw()
        .attribute(line.session(), object, CKA_LABEL)?
        .unwrap_or_default();
    Err(policy(
        &format!("key labelled {:?}", String::from_utf8_lossy(&label)),
        "CKA_WRAP",
        "and CKA_DECRYPT are both true: together they extract any key of the token; remove that key",
    )
    .into())
}

fn demand(
    line: &Line,
    key: ObjectHandle,
    name: &str,
    attribute: CK_ATTRIBUTE_TYPE,
    attribute_name: &str,
) -> Result<Vec<u8>, Fault> {
    let mut value = line
        .raw()
        .attribute(line.session(), key, attribute)?
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

fn policy(key: &str, attribute: &str, problem: &str) -> HsmError {
    HsmError::KeyPolicy {
        key: key.to_owned(),
        attribute: attribute.to_owned(),
        problem: problem.to_owned(),
    }
}

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;
