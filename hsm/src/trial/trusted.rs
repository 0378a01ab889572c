//! Whether whoever has the user PIN can have a key that counts as trusted, by any of the ways in
//! which PKCS#11 makes an object or changes one.
//!
//! What goes under trusted keys only (`CKA_WRAP_WITH_TRUSTED`) is as safe as that mark. Kryoptic
//! 1.5.4 lets the user generate a key with it.

use std::iter::once;

use cryptoki::error::Error;
use cryptoki::mechanism::ekdf::AesCbcDeriveParams;
use cryptoki::mechanism::hkdf::{HkdfParams, HkdfSalt};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::ObjectHandle;
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CK_MECHANISM_TYPE, CK_ULONG, CKA_DERIVE, CKA_MODULUS, CKA_PUBLIC_EXPONENT,
    CKA_SENSITIVE, CKA_WRAP_WITH_TRUSTED, CKM_AES_ECB_ENCRYPT_DATA, CKM_AES_KEY_GEN,
    CKM_CONCATENATE_BASE_AND_DATA, CKM_CONCATENATE_BASE_AND_KEY, CKM_CONCATENATE_DATA_AND_BASE,
    CKM_EC_KEY_PAIR_GEN, CKM_EXTRACT_KEY_FROM_KEY, CKM_RSA_AES_KEY_WRAP, CKM_RSA_PKCS,
    CKM_RSA_PKCS_KEY_PAIR_GEN, CKM_RSA_PKCS_OAEP, CKM_RSA_X_509, CKM_SHA1_KEY_DERIVATION,
    CKM_SHA256_KEY_DERIVATION, CKM_SHA384_KEY_DERIVATION, CKM_SHA512_KEY_DERIVATION,
    CKM_XOR_BASE_AND_DATA,
};

use super::own::{AES_DERIVATIONS, DERIVATIONS, Named, Twins, untried, wrap_nothing};
use super::{Result, Trial};
use crate::error::HsmError;
use crate::fault::Fault;
use crate::ffi::Derivation;
use crate::session_key;
use crate::template::{
    CLAIMED_AES, CLAIMED_AES_IMPORT, CLAIMED_EC, CLAIMED_RSA, GUARDED, ON_TOKEN, Rule,
    TRUSTED_MARK, WRAPS,
};
use crate::types::{KeyUsage, MasterKind};

/// The PKCS#11 function by which such a key is to be had; `None`: by none of them. `public`: an RSA
/// public key on the token.
pub(crate) fn way(trial: &Trial<'_>, public: ObjectHandle) -> Result<Option<&'static str>> {
    let guarded = guarded(trial)?;
    let way = own_public(trial, public).and_then(|own_public| {
        let marks = Marks {
            trial,
            guarded,
            own_public,
        };
        let way = marks.way(public);
        if let Some(own) = own_public {
            trial.destroy(own)?;
        }
        way
    });
    trial.destroy(guarded)?;
    way
}

/// For people, of a function that [`way`] found.
pub(crate) fn by(function: &str) -> String {
    format!("whoever has the user PIN can have a key marked as trusted, by {function}")
}

/// Whether a key that is to go under trusted keys only goes under another, or can be had without
/// that; why. `public`: an RSA public key that wraps and is not trusted.
pub(crate) fn is_ignored(trial: &Trial<'_>, public: ObjectHandle) -> Result<Option<String>> {
    let guarded = guarded(trial)?;
    let ignored = trial.rsa_wraps(public, guarded).and_then(|by_rsa| {
        if by_rsa || trial.own_wraps(guarded)? {
            return Ok(Some(
                "a key with CKA_WRAP_WITH_TRUSTED is wrapped by one that is not trusted".to_owned(),
            ));
        }
        let strict = trial
            .tells_nothing(guarded, KEY_DESCRIPTION)
            .and_then(|()| {
                trial.keeps(
                    guarded,
                    KEY_DESCRIPTION,
                    GUARDED,
                    true,
                    WEAKENING_ATTRIBUTES,
                )
            });
        match strict {
            Ok(()) => Ok(None),
            Err(Fault::Own(HsmError::KeyPolicy {
                attribute, problem, ..
            })) => Ok(Some(format!(
                "{KEY_DESCRIPTION} is not what it must be: {attribute} {problem}"
            ))),
            Err(fault) => Err(fault),
        }
    });
    trial.destroy(guarded)?;
    ignored
}

/// For people.
const KEY_DESCRIPTION: &str = "a key with CKA_WRAP_WITH_TRUSTED";
/// What would help to take it out if it were otherwise.
const WEAKENING_ATTRIBUTES: &[CK_ATTRIBUTE_TYPE] =
    &[CKA_WRAP_WITH_TRUSTED, CKA_SENSITIVE, CKA_DERIVE];

fn guarded(trial: &Trial<'_>) -> Result<ObjectHandle> {
    let length = Rule::length(session_key::KEY_BYTES);
    Ok(trial.watched.raw().generate_key(
        trial.watched.session(),
        CKM_AES_KEY_GEN,
        once(&length).chain(GUARDED),
    )?)
}

/// An RSA public key that wraps: a copy of that one, its numbers, or another. None if nobody has
/// one.
fn own_public(trial: &Trial<'_>, public: ObjectHandle) -> Result<Option<ObjectHandle>> {
    const MECHANISMS: [Named; 4] = [
        (CKM_RSA_PKCS_OAEP, "CKM_RSA_PKCS_OAEP"),
        (CKM_RSA_PKCS, "CKM_RSA_PKCS"),
        (CKM_RSA_X_509, "CKM_RSA_X_509"),
        (CKM_RSA_AES_KEY_WRAP, "CKM_RSA_AES_KEY_WRAP"),
    ];
    let (raw, session) = (trial.watched.raw(), trial.watched.session());
    let copy = raw.copy_object(session, public, ON_TOKEN.iter().take(1));
    if let Some(copy) = trial.given(copy)? {
        return Ok(Some(copy));
    }
    if let Some(imported) = imported(trial, public, false)? {
        return Ok(Some(imported));
    }
    let bits = Rule::modulus_bits(trial.watched.shortest_rsa()?);
    let unmarked = CLAIMED_RSA
        .iter()
        .filter(|rule| rule.attribute != TRUSTED_MARK.attribute);
    let place = &ON_TOKEN[0];
    let pair = raw.generate_key_pair(
        trial.watched.session(),
        CKM_RSA_PKCS_KEY_PAIR_GEN,
        once(place).chain(once(&bits)).chain(unmarked),
        once(place),
    );
    if let Some((public, private)) = trial.given(pair)? {
        trial.destroy(private)?;
        return Ok(Some(public));
    }
    match trial.says(MECHANISMS.into_iter(), WRAPS)? {
        Some(mechanism) => Err(untried(mechanism, WRAPS, "RSA")),
        None => Ok(None),
    }
}

/// The numbers of a public key as a key of one's own.
fn imported(trial: &Trial<'_>, public: ObjectHandle, marked: bool) -> Result<Option<ObjectHandle>> {
    let watched = trial.watched;
    let number = |name| watched.raw().attribute(watched.session(), public, name);
    let (Some(modulus), Some(exponent)) = (number(CKA_MODULUS)?, number(CKA_PUBLIC_EXPONENT)?)
    else {
        return Ok(None);
    };
    let mut template = vec![
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Token(false),
        Attribute::Wrap(true),
        Attribute::Modulus(modulus),
        Attribute::PublicExponent(exponent),
    ];
    if marked {
        template.push(Attribute::Trusted(true));
    }
    trial.given(watched.session().create_object(&template))
}

/// Whether a key that counts is to be had so.
type Way<'a> = dyn Fn() -> Result<bool> + 'a;

struct Marks<'a> {
    trial: &'a Trial<'a>,
    /// A key that goes under trusted keys only.
    guarded: ObjectHandle,
    /// A public key of one's own, unlike the appliance's, of which nothing may be set or copied.
    own_public: Option<ObjectHandle>,
}

impl Marks<'_> {
    fn way(&self, public: ObjectHandle) -> Result<Option<&'static str>> {
        // The cheap ones first.
        let ways: [(&str, &Way<'_>); 7] = [
            ("C_SetAttributeValue", &|| self.by_setting(public)),
            ("C_CopyObject", &|| self.by_copying(public)),
            ("C_CreateObject", &|| self.by_importing(public)),
            ("C_GenerateKey", &|| self.by_generating()),
            ("C_UnwrapKey", &|| self.by_unwrapping()),
            ("C_DeriveKey", &|| self.by_deriving()),
            ("C_GenerateKeyPair", &|| self.by_generating_pairs()),
        ];
        for (function, way) in ways {
            if way()? {
                return Ok(Some(function));
            }
        }
        Ok(None)
    }

    fn by_setting(&self, public: ObjectHandle) -> Result<bool> {
        let watched = self.trial.watched;
        for key in self.keys(public) {
            let set = watched
                .raw()
                .set_attribute(watched.session(), key, TRUSTED_MARK);
            if self.trial.given(set)?.is_some() && self.counts(key)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn by_copying(&self, public: ObjectHandle) -> Result<bool> {
        for key in self.keys(public) {
            for place in self.trial.places() {
                let (raw, session) = (self.trial.watched.raw(), self.trial.watched.session());
                let template = [place, TRUSTED_MARK].into_iter();
                if self.marked(raw.copy_object(session, key, template))? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// What there is that wraps.
    fn keys(&self, public: ObjectHandle) -> impl Iterator<Item = ObjectHandle> {
        once(public)
            .chain(self.own_public)
            .chain(self.trial.own.aes)
    }

    fn by_importing(&self, public: ObjectHandle) -> Result<bool> {
        for place in self.trial.places() {
            let (raw, session) = (self.trial.watched.raw(), self.trial.watched.session());
            let template = once(place).chain(CLAIMED_AES_IMPORT);
            if self.marked(raw.create_object(session, template))? {
                return Ok(true);
            }
        }
        match imported(self.trial, public, true)? {
            Some(imported) => {
                let counts = self.counts(imported);
                self.trial.destroy(imported)?;
                counts
            }
            None => Ok(false),
        }
    }

    fn by_generating(&self) -> Result<bool> {
        let length = Rule::length(session_key::KEY_BYTES);
        for place in self.trial.places() {
            let (raw, session) = (self.trial.watched.raw(), self.trial.watched.session());
            let template = [place, &length].into_iter().chain(CLAIMED_AES);
            if self.marked(raw.generate_key(session, CKM_AES_KEY_GEN, template))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn by_generating_pairs(&self) -> Result<bool> {
        // The shortest, since each start waits for it.
        let bits = Rule::modulus_bits(self.trial.watched.shortest_rsa()?);
        for (mechanism, public, length) in [
            (CKM_EC_KEY_PAIR_GEN, CLAIMED_EC, None),
            (CKM_RSA_PKCS_KEY_PAIR_GEN, CLAIMED_RSA, Some(&bits)),
        ] {
            for place in self.trial.places() {
                let (raw, session) = (self.trial.watched.raw(), self.trial.watched.session());
                let pair = raw.generate_key_pair(
                    session,
                    mechanism,
                    once(place).chain(length).chain(public),
                    once(place),
                );
                let Some((public, private)) = self.trial.given(pair)? else {
                    continue;
                };
                let counts = self.counts(public);
                let destroyed = self.trial.destroy(private);
                self.trial.destroy(public)?;
                destroyed?;
                if counts? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Of a key that one's own key has wrapped, so that its value may be known to anybody.
    fn by_unwrapping(&self) -> Result<bool> {
        let Some(twins) = Twins::make(self.trial)? else {
            return Ok(false);
        };
        let watched = self.trial.watched;
        let counts =
            session_key::generate(watched, KeyUsage::Aead, MasterKind::Hsm).and_then(|known| {
                let counts = self.unwrapped(&twins, known);
                self.trial.destroy(known)?;
                counts
            });
        twins.destroy(self.trial)?;
        counts
    }

    fn unwrapped(&self, twins: &Twins, known: ObjectHandle) -> Result<bool> {
        let (raw, session) = (self.trial.watched.raw(), || self.trial.watched.session());
        let mut tried = false;
        for wrapping in self.trial.own.aes_wraps.iter().copied() {
            let wrapped = raw.wrap_key(session(), wrapping, twins.wraps, known);
            let Some(wrapped) = self.trial.given(wrapped)? else {
                continue;
            };
            tried = true;
            for place in self.trial.places() {
                let template = once(place).chain(CLAIMED_AES);
                let key = raw.unwrap_key(session(), wrapping, twins.unwraps, &wrapped, template);
                if self.marked(key)? {
                    return Ok(true);
                }
            }
        }
        if !tried {
            wrap_nothing(self.trial)?;
        }
        Ok(false)
    }

    fn by_deriving(&self) -> Result<bool> {
        let own = &self.trial.own;
        for mechanisms in [DERIVATIONS, AES_DERIVATIONS] {
            own.derives_by(self.trial, mechanisms)?;
        }
        for base in own.bases() {
            if self.by_deriving_from(base)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn by_deriving_from(&self, base: ObjectHandle) -> Result<bool> {
        const DATA: &[u8] = &[0x5a; 32];
        const PLAIN: [(CK_MECHANISM_TYPE, Derivation<'_>); 9] = [
            (CKM_AES_ECB_ENCRYPT_DATA, Derivation::Data(DATA)),
            (CKM_CONCATENATE_BASE_AND_DATA, Derivation::Data(DATA)),
            (CKM_CONCATENATE_DATA_AND_BASE, Derivation::Data(DATA)),
            (CKM_XOR_BASE_AND_DATA, Derivation::Data(DATA)),
            (CKM_EXTRACT_KEY_FROM_KEY, Derivation::Bit(0)),
            (CKM_SHA1_KEY_DERIVATION, Derivation::Nothing),
            (CKM_SHA256_KEY_DERIVATION, Derivation::Nothing),
            (CKM_SHA384_KEY_DERIVATION, Derivation::Nothing),
            (CKM_SHA512_KEY_DERIVATION, Derivation::Nothing),
        ];
        let watched = self.trial.watched;
        let plain = PLAIN
            .into_iter()
            .chain(once((CKM_CONCATENATE_BASE_AND_KEY, Derivation::Key(base))));
        for (mechanism, given) in plain.filter(|(mechanism, _)| self.trial.offers(*mechanism)) {
            // SHA-1 makes 20 bytes, of which the shortest AES key is 16.
            let length = Rule::length(if mechanism == CKM_SHA1_KEY_DERIVATION {
                16
            } else {
                32
            });
            for place in self.trial.places() {
                let template = [place, &length].into_iter().chain(CLAIMED_AES);
                let derived =
                    watched
                        .raw()
                        .derive_key(watched.session(), mechanism, given, base, template);
                if self.marked(derived)? {
                    return Ok(true);
                }
            }
        }
        let with_parameters = [
            Mechanism::AesCbcEncryptData(AesCbcDeriveParams::new([0; 16], DATA)),
            Mechanism::HkdfDerive(HkdfParams::new(
                MechanismType::SHA256,
                Some(HkdfSalt::Null),
                Some(DATA),
            )),
        ];
        for mechanism in with_parameters {
            let kind: CK_MECHANISM_TYPE = *mechanism.mechanism_type();
            if !self.trial.offers(kind) {
                continue;
            }
            for on_token in [false, true].into_iter().take(self.trial.places().len()) {
                let derived = watched.session().derive_key(
                    &mechanism,
                    base,
                    &[
                        Attribute::Class(ObjectClass::SECRET_KEY),
                        Attribute::KeyType(KeyType::AES),
                        Attribute::Token(on_token),
                        Attribute::ValueLen(cryptoki::types::Ulong::new(
                            session_key::KEY_BYTES as CK_ULONG,
                        )),
                        Attribute::Wrap(true),
                        Attribute::Trusted(true),
                    ],
                );
                if self.marked(derived)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Whether the token made it, and it counts; it is destroyed.
    fn marked(&self, made: std::result::Result<ObjectHandle, Error>) -> Result<bool> {
        let Some(key) = self.trial.given(made)? else {
            return Ok(false);
        };
        let counts = self.counts(key);
        self.trial.destroy(key)?;
        counts
    }

    /// Whether it is trusted: by its attribute, or by what it wraps. A token that takes the mark
    /// and ignores it does no harm; one that takes it and does not tell it is not believed.
    fn counts(&self, key: ObjectHandle) -> Result<bool> {
        if self.trial.told(key, TRUSTED_MARK)? != Some(false) {
            return Ok(true);
        }
        Ok(self.trial.rsa_wraps(key, self.guarded)? || self.trial.aes_wraps(key, self.guarded)?)
    }
}
