//! What the token tells of itself and of each object on it.

use cryptoki_sys::{CKO_PRIVATE_KEY, CKO_PUBLIC_KEY};

use super::objects::{self, TokenObject};
use super::text;
use super::token::on_token;
use crate::config::{HsmConfig, KeyShape};
use crate::error::HsmError;
use crate::fault::Fault;
use crate::keys::{self, Keys};
use crate::register::Register;
use crate::selector::Found;
use crate::selftest;
use crate::types::{Profile, TokenIdentity};
use crate::watched::{Access, WatchedSession};

/// A token's description of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Label, serial number, manufacturer, model.
    pub token: TokenIdentity,
    /// `CK_TOKEN_INFO.hardwareVersion`.
    pub hardware_version: String,
    /// `CK_TOKEN_INFO.firmwareVersion`.
    pub firmware_version: String,
    /// The mechanism list, sorted: `CKM_AES_GCM`, ..., without mechanisms that PKCS#11 3.x has no
    /// name for.
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
    /// Some are missing, or all and there is only a half-made object:
    /// [`super::discard_unused_keys`] clears the rest.
    Incomplete {
        /// Names of those that are missing, the epoch object among them.
        missing: Vec<String>,
        /// The epoch object has a value: keys that a store depends on are lost.
        in_use: bool,
    },
    /// All are there, but one is not as it must be, or a half-made object lies beside them.
    Unacceptable {
        /// What the check said.
        problem: String,
        /// The epoch object has a value: a store depends on the keys.
        in_use: bool,
    },
    /// All are there and good, and no store was born with them yet.
    Unused,
    /// All are there and good, and a store depends on them: the epoch object has a value.
    InUse,
}

/// One object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEvidence {
    /// For people: "master key", "public half of the master key"; "half-made object" for one
    /// without label and identifier; "not of the appliance" for anything else.
    pub name: String,
    /// `CKA_LABEL`.
    pub label: String,
    /// `CKO_PRIVATE_KEY`, ...
    pub class: String,
    /// `SubjectPublicKeyInfo`, DER, of an RSA or P-256 public key, and of an RSA private key whose
    /// modulus the token tells: the two halves of a pair must have the same.
    pub spki: Option<Vec<u8>>,
    /// (`CKA_…`, value as text), sorted by name. Never a secret.
    pub attributes: Vec<(String, String)>,
}

pub(super) fn evidence(config: &HsmConfig) -> Result<Evidence, HsmError> {
    on_token(&config.module, &config.token, |watched, found| {
        Access::new(config.pin.clone()).login(watched)?;
        objects::steadily(|| collect(watched, found, config.shape))
    })
}

fn collect(watched: &WatchedSession, found: &Found, shape: KeyShape) -> Result<Evidence, Fault> {
    let offered = watched.mechanisms()?;
    let objects = objects::all(watched)?;
    // At once, as a running server replaces its epoch object with each change of the store: what
    // follows takes longer.
    let told = objects
        .iter()
        .map(|object| tell(watched, object))
        .collect::<Result<_, Fault>>()?;
    let (keys, checked) = key_set(watched, &objects, shape)?;
    // With good keys the self-tests show that they work, not only what they say of themselves.
    let profile = checked
        .map(|keys| selftest::run(watched, &keys, &offered))
        .transpose()?
        .map(|abilities| abilities.profile);
    let mut mechanisms: Vec<_> = offered.iter().map(|m| text::mechanism(*m)).collect();
    mechanisms.sort();
    Ok(Evidence {
        token: found.identity.clone(),
        hardware_version: found.info.hardware_version().to_string(),
        firmware_version: found.info.firmware_version().to_string(),
        mechanisms,
        profile,
        keys,
        objects: told,
    })
}

fn tell(watched: &WatchedSession, object: &TokenObject) -> Result<ObjectEvidence, Fault> {
    Ok(ObjectEvidence {
        name: object.name.clone(),
        label: object.label.clone(),
        class: object.class_name(),
        spki: match object.class {
            CKO_PUBLIC_KEY => keys::spki(watched, object.handle)?,
            CKO_PRIVATE_KEY => keys::rsa_spki_of_private(watched, object.handle)?,
            _ => None,
        },
        attributes: if object.has_class() {
            text::attributes(watched, object.handle)?
        } else {
            Vec::new()
        },
    })
}

/// The state of the keys, and the keys where they are good.
fn key_set(
    watched: &WatchedSession,
    objects: &[TokenObject],
    shape: KeyShape,
) -> Result<(KeySet, Option<Keys>), Fault> {
    if !objects.iter().any(TokenObject::is_ours) {
        return Ok((KeySet::None, None));
    }
    let mut missing = keys::missing(watched)?;
    let epoch = Register::StoreEpoch.read(watched)?;
    let in_use = epoch.as_ref().is_some_and(|value| !value.is_empty());
    if epoch.is_none() {
        missing.push(Register::StoreEpoch.name().to_owned());
    }
    if !missing.is_empty() {
        return Ok((KeySet::Incomplete { missing, in_use }, None));
    }
    match Keys::check(watched, shape) {
        Ok(_) if !in_use && objects.iter().any(TokenObject::is_half_made) => {
            let problem = "an object whose making was cut off is on the token".to_owned();
            Ok((KeySet::Unacceptable { problem, in_use }, None))
        }
        Ok(keys) if in_use => Ok((KeySet::InUse, Some(keys))),
        Ok(keys) => Ok((KeySet::Unused, Some(keys))),
        Err(Fault::Own(error @ (HsmError::KeyPolicy { .. } | HsmError::Missing { .. }))) => {
            let problem = error.to_string();
            Ok((KeySet::Unacceptable { problem, in_use }, None))
        }
        Err(fault) => Err(fault),
    }
}
