//! Whether a KEK that the master key unwrapped is as safe as the master key's unwrap template says.
//!
//! A token may store that template and ignore it (opencryptoki 3.27): then each KEK tells its value
//! to whoever has the user PIN.

use std::iter::once;

use cryptoki::object::ObjectHandle;
use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CK_KEY_TYPE, CKA_COPYABLE, CKA_DERIVE, CKA_EXTRACTABLE, CKA_MODIFIABLE,
    CKA_SENSITIVE, CKA_UNWRAP, CKA_WRAP, CKK_AES, CKK_CHACHA20, CKK_DES3, CKK_GENERIC_SECRET,
    CKK_SHA256_HMAC, CKK_VENDOR_DEFINED,
};

use super::{Result, Trial, answer, parts};
use crate::error::HsmError;
use crate::ffi::Wrapping;
use crate::keys::{Pair, policy};
use crate::session_key::{self, KEK, kek_rules};
use crate::template::{AS_DATA, DERIVES, MASTER_UNWRAP_TEMPLATE, ON_TOKEN, Rule};
use crate::types::{KeyUsage, MasterKind};

/// With a KEK that protects nothing. What is wrong is an [`HsmError::KeyPolicy`]; else whether the
/// token takes narrow session keys, see [`session_key::unwrap`].
pub(crate) fn check(trial: &Trial<'_>, master: &Pair) -> Result<bool> {
    let watched = trial.watched;
    let original = session_key::generate(watched, KeyUsage::Aead, MasterKind::Hsm)?;
    let blob = watched.raw().wrap_key(
        watched.session(),
        Wrapping::Oaep(trial.hash),
        master.public,
        original,
    );
    let expected = answer(watched, original);
    watched.session().destroy_object(original)?;
    let expected = expected?;
    let mut kek = Kek {
        trial,
        master,
        blob: blob?,
        narrow: true,
    };
    for usage in [KeyUsage::Aead, KeyUsage::Mac] {
        let unwrapped = match kek.unwrap(usage) {
            Err(fault) if kek.narrow && fault.refuses_template() => {
                kek.narrow = false;
                kek.unwrap(usage)?
            }
            unwrapped => unwrapped?,
        };
        let result = kek.stays(unwrapped, usage).and_then(|()| match usage {
            KeyUsage::Aead if answer(watched, unwrapped)? != expected => {
                Err(HsmError::SelfTest("wrapping with the master key".to_owned()).into())
            }
            _ => Ok(()),
        });
        watched.session().destroy_object(unwrapped)?;
        result?;
    }
    // What not every master key forces is for the parts to show.
    for rule in master.forced.of(MASTER_UNWRAP_TEMPLATE) {
        for usage in [KeyUsage::Aead, KeyUsage::Mac] {
            kek.comes_only_with(rule, usage)?;
        }
    }
    kek.comes_as_forced()?;
    kek.comes_whole()?;
    Ok(kek.narrow)
}

/// As what a key of 32 bytes may be unwrapped.
const KEY_TYPES: [CK_KEY_TYPE; 6] = [
    CKK_AES,
    CKK_GENERIC_SECRET,
    CKK_CHACHA20,
    CKK_SHA256_HMAC,
    CKK_DES3,
    CKK_VENDOR_DEFINED,
];
/// What would be easier to take out if it were otherwise.
const WEAKENING_ATTRIBUTES: &[CK_ATTRIBUTE_TYPE] = &[
    CKA_EXTRACTABLE,
    CKA_SENSITIVE,
    CKA_WRAP,
    CKA_UNWRAP,
    CKA_DERIVE,
    CKA_MODIFIABLE,
    CKA_COPYABLE,
];

struct Kek<'a> {
    trial: &'a Trial<'a>,
    master: &'a Pair,
    blob: Vec<u8>,
    narrow: bool,
}

impl Kek<'_> {
    /// As the appliance does it.
    fn unwrap(&self, usage: KeyUsage) -> Result<ObjectHandle> {
        session_key::unwrap(
            self.trial.watched,
            self.trial.hash,
            self.master.private,
            &self.master.forced,
            &self.blob,
            usage,
            self.narrow,
        )
    }

    /// That it does not leave the token, nor become weaker.
    fn stays(&self, kek: ObjectHandle, usage: KeyUsage) -> Result<()> {
        let trial = self.trial;
        trial.tells_nothing(kek, KEK)?;
        if trial.rsa_wraps(self.master.public, kek)? || trial.own_wraps(kek)? {
            return Err(exposed("CKA_EXTRACTABLE", "is false, and yet it is wrapped out").into());
        }
        if let Some(mechanism) = parts::joined(trial, kek)? {
            let problem = format!("is false, and yet a part of it comes out by {mechanism}");
            return Err(exposed("CKA_DERIVE", &problem).into());
        }
        trial.keeps(
            kek,
            KEK,
            kek_rules(usage),
            self.narrow,
            WEAKENING_ATTRIBUTES,
        )
    }

    /// That the unwrap template decides, whatever the call asks for: it is refused, or the key
    /// comes as the template says.
    fn comes_only_with(&self, rule: &Rule, usage: KeyUsage) -> Result<()> {
        let Some(opposite) = rule.opposite() else {
            return Ok(());
        };
        let trial = self.trial;
        let asked =
            session_key::asked(kek_rules(usage), &self.master.forced, self.narrow).map(|other| {
                if other.attribute == rule.attribute {
                    &opposite
                } else {
                    other
                }
            });
        let Some(unwrapped) = self.given(asked)? else {
            return Ok(());
        };
        let result = trial.told(unwrapped, rule).and_then(|told| {
            trial.tells_nothing(unwrapped, KEK)?;
            // Asked for otherwise: a value that is not told is none of the template's.
            if told.is_some_and(|told| rule.admits(&[u8::from(told)])) {
                Ok(())
            } else {
                Err(exposed(
                    rule.name,
                    "is what the call asks for, although the master key's CKA_UNWRAP_TEMPLATE forces the opposite",
                )
                .into())
            }
        });
        trial.destroy(unwrapped)?;
        result
    }

    /// That the unwrap template decides also of a call that says nothing: it is refused, or the key
    /// comes as the template says.
    fn comes_as_forced(&self) -> Result<()> {
        // Class, type, and that it is not an object on the token; SoftHSM forces nothing on a key
        // that the call makes unmodifiable.
        let silent = |kind| {
            let rules = kek_rules(KeyUsage::Mac).iter().take(3).cloned();
            let mut rules: Vec<_> = rules.collect();
            if let Some(rule) = rules.get_mut(1) {
                *rule = Rule::key_type(kind);
            }
            rules
        };
        for kind in KEY_TYPES {
            let Some(unwrapped) = self.given(silent(kind).iter())? else {
                continue;
            };
            let result = self.is_as_forced(unwrapped);
            self.trial.destroy(unwrapped)?;
            result?;
        }
        // What is not a key has no attributes to be forced.
        let Some(data) = self.given(AS_DATA.iter())? else {
            return Ok(());
        };
        let told = self.trial.tells_nothing(data, KEK);
        self.trial.destroy(data)?;
        told
    }

    fn is_as_forced(&self, kek: ObjectHandle) -> Result<()> {
        let trial = self.trial;
        for rule in self.master.forced.of(MASTER_UNWRAP_TEMPLATE) {
            let told = trial.told(kek, rule)?;
            if !told.is_some_and(|told| rule.admits(&[u8::from(told)])) {
                let problem = "is not what the master key's CKA_UNWRAP_TEMPLATE forces, where the call does not ask for it";
                return Err(exposed(rule.name, problem).into());
            }
        }
        trial.tells_nothing(kek, KEK)?;
        if trial.rsa_wraps(self.master.public, kek)? || trial.own_wraps(kek)? {
            return Err(exposed("CKA_EXTRACTABLE", "is false, and yet it is wrapped out").into());
        }
        Ok(())
    }

    /// That no part of it comes out, by a call that asks for less of it, or by a derivation.
    fn comes_whole(&self) -> Result<()> {
        let trial = self.trial;
        for kind in parts::SHORTER_KINDS {
            let rules = kek_rules(kind.usage());
            let rules: Vec<_> = session_key::asked(rules, &self.master.forced, false)
                .cloned()
                .collect();
            let Some(unwrapped) = self.given(kind.instead(&rules).iter())? else {
                continue;
            };
            let whole = parts::is_whole(trial, kind, unwrapped, |usage| self.unwrap(usage));
            trial.destroy(unwrapped)?;
            if !whole? {
                let problem = "is what the call asks for, and a part of a key is easily guessed";
                return Err(exposed(kind.attribute(), problem).into());
            }
        }
        for usage in [KeyUsage::Aead, KeyUsage::Mac] {
            // The same, and as little more as it takes.
            let forced = self.master.forced.of(MASTER_UNWRAP_TEMPLATE);
            let forced = forced.filter(|rule| rule.attribute != DERIVES.attribute);
            let derives = kek_rules(usage)
                .iter()
                .take(3)
                // Before CKA_MODIFIABLE, after which SoftHSM lets nothing be set.
                .chain(once(DERIVES))
                .chain(forced);
            if let Some(base) = self.given(derives)? {
                let way = parts::way(trial, base);
                trial.destroy(base)?;
                if let Some(mechanism) = way? {
                    let problem = format!(
                        "is what the call asks for, and a part of the key comes out by {mechanism} (a master key that is made again forbids it)"
                    );
                    return Err(exposed("CKA_DERIVE", &problem).into());
                }
            }
            if let Some(mechanism) = self.way_when_changed(usage)? {
                let problem = format!(
                    "can be set afterwards where the call leaves or makes it modifiable, and a part of the key comes out by {mechanism}"
                );
                return Err(exposed("CKA_DERIVE", &problem).into());
            }
        }
        Ok(())
    }

    /// [`parts::way`] out of a KEK that is unwrapped as the template says, but may be changed and
    /// copied, which master keys of earlier builds do not forbid.
    fn way_when_changed(&self, usage: KeyUsage) -> Result<Option<&'static str>> {
        let stays = |rule: &&Rule| [CKA_MODIFIABLE, CKA_COPYABLE].contains(&rule.attribute);
        let strict: Vec<_> = kek_rules(usage)
            .iter()
            .take(3)
            .chain(MASTER_UNWRAP_TEMPLATE)
            .filter(|rule| !stays(rule))
            .cloned()
            .collect();
        let opposite = MASTER_UNWRAP_TEMPLATE
            .iter()
            .filter(stays)
            .filter_map(Rule::opposite);
        let loose: Vec<_> = strict.iter().cloned().chain(opposite).collect();
        for call in [strict, loose] {
            if let Some(kek) = self.given(call.iter())? {
                let way = self.way_out_of(kek);
                self.trial.destroy(kek)?;
                if let Some(mechanism) = way? {
                    return Ok(Some(mechanism));
                }
            }
        }
        Ok(None)
    }

    /// By a copy, or by a change.
    fn way_out_of(&self, kek: ObjectHandle) -> Result<Option<&'static str>> {
        let (trial, watched) = (self.trial, self.trial.watched);
        let template = [&ON_TOKEN[0], DERIVES].into_iter();
        let copy = watched.raw().copy_object(watched.session(), kek, template);
        let copied = trial.given(copy).and_then(|copy| {
            let Some(copy) = copy else { return Ok(None) };
            let way = parts::way(trial, copy);
            trial.destroy(copy)?;
            way
        });
        let set = watched.raw().set_attribute(watched.session(), kek, DERIVES);
        let changed = trial.given(set).and_then(|set| match set {
            Some(()) => parts::way(trial, kek),
            None => Ok(None),
        });
        Ok(copied?.or(changed?))
    }

    /// The KEK by a template of one's own.
    fn given<'a>(&self, template: impl Iterator<Item = &'a Rule>) -> Result<Option<ObjectHandle>> {
        let watched = self.trial.watched;
        self.trial.given(watched.raw().unwrap_key(
            watched.session(),
            Wrapping::Oaep(self.trial.hash),
            self.master.private,
            &self.blob,
            template,
        ))
    }
}

fn exposed(attribute: &str, problem: &str) -> HsmError {
    policy(
        KEK,
        attribute,
        &format!(
            "{problem}: this token does not protect what it unwraps, so it must not hold such keys"
        ),
    )
}
