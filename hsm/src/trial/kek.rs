//! Whether a KEK that the master key unwrapped is as safe as the master key's unwrap template says.
//!
//! A token may store that template and ignore it (opencryptoki 3.27): then each KEK tells its value to whoever has the user PIN.

use std::iter::once;

use cryptoki::object::ObjectHandle;
use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CKA_COPYABLE, CKA_DERIVE, CKA_EXTRACTABLE, CKA_MODIFIABLE, CKA_SENSITIVE,
    CKA_UNWRAP, CKA_WRAP,
};

use super::{Result, Trial, answer, parts};
use crate::error::HsmError;
use crate::ffi::{Wrapping, writable};
use crate::keys::{Pair, policy};
use crate::session_key::{self, KEK, kek_rules};
use crate::template::{DERIVES, MASTER_UNWRAP_TEMPLATE, PART, Rule, When};
use crate::types::{HashAlgorithm, KeyUsage, MasterKind};

/// With a KEK that protects nothing. What is wrong is an [`HsmError::KeyPolicy`]; else whether the token takes narrow session keys, see
/// [`session_key::unwrap`].
pub(crate) fn check(trial: &Trial<'_>, master: &Pair) -> Result<bool> {
    let line = trial.line;
    let original = session_key::generate(line, KeyUsage::Aead, MasterKind::Hsm)?;
    let blob = line.raw().wrap_key(
        line.session(),
        Wrapping::Oaep(trial.hash),
        master.public,
        original,
    );
    let expected = answer(line, original);
    line.session().destroy_object(original)?;
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
            KeyUsage::Aead if answer(line, unwrapped)? != expected => {
                Err(HsmError::SelfTest("wrapping with the master key".to_owned()).into())
            }
            _ => Ok(()),
        });
        line.session().destroy_object(unwrapped)?;
        result?;
    }
    for rule in MASTER_UNWRAP_TEMPLATE {
        // What not every master key forces is for the parts to show.
        if rule.when == When::Always {
            kek.comes_only_with(rule)?;
        }
    }
    kek.comes_as_forced()?;
    kek.comes_whole()?;
    Ok(kek.narrow)
}

/// What would be easier to take out if it were otherwise.
const WEAKER: &[CK_ATTRIBUTE_TYPE] = &[
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
            self.trial.line,
            self.trial.hash,
            self.master.private,
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
        trial.keeps(kek, KEK, kek_rules(usage), self.narrow, WEAKER)
    }

    /// That the unwrap template decides, whatever the call asks for: it is refused, or the key comes as the template says.
    fn comes_only_with(&self, rule: &Rule) -> Result<()> {
        let Some(opposite) = rule.opposite() else {
            return Ok(());
        };
        let trial = self.trial;
        let asked = kek_rules(KeyUsage::Aead)
            .iter()
            .filter(|other| other.asked(self.narrow))
            .map(|other| {
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

    /// That the unwrap template decides also of a call that says nothing: it is refused, or the key comes as the template says.
    fn comes_as_forced(&self) -> Result<()> {
        for usage in [KeyUsage::Aead, KeyUsage::Mac] {
            // Class, type, and that it is no object on the token; SoftHSM forces nothing on a key that the call makes unmodifiable.
            let silent = kek_rules(usage).iter().take(3);
            let Some(unwrapped) = self.given(silent)? else {
                continue;
            };
            let result = self.is_as_forced(unwrapped);
            self.trial.destroy(unwrapped)?;
            result?;
        }
        Ok(())
    }

    fn is_as_forced(&self, kek: ObjectHandle) -> Result<()> {
        let trial = self.trial;
        let demanded = MASTER_UNWRAP_TEMPLATE
            .iter()
            .filter(|rule| rule.when == When::Always);
        for rule in demanded {
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
        if let Some(unwrapped) = self.given(PART.iter())? {
            let whole = self.is_whole(unwrapped);
            trial.destroy(unwrapped)?;
            if !whole? {
                let problem = "is what the call asks for, and a part of a key is easily guessed";
                return Err(exposed("CKA_VALUE_LEN", problem).into());
            }
        }
        for usage in [KeyUsage::Aead, KeyUsage::Mac] {
            // The same, and as little more as it takes.
            let derives = kek_rules(usage)
                .iter()
                .take(3)
                .chain(MASTER_UNWRAP_TEMPLATE)
                .filter(|rule| rule.attribute != DERIVES.attribute)
                .chain(once(DERIVES));
            let Some(base) = self.given(derives)? else {
                continue;
            };
            let way = parts::way(trial, base);
            trial.destroy(base)?;
            if let Some(mechanism) = way? {
                let problem = format!(
                    "is what the call asks for, and a part of the key comes out by {mechanism} (a master key that is made anew forbids it)"
                );
                return Err(exposed("CKA_DERIVE", &problem).into());
            }
        }
        Ok(())
    }

    /// Whether it is all of the key, which a token shows that takes the length and ignores it.
    fn is_whole(&self, part: ObjectHandle) -> Result<bool> {
        let line = self.trial.line;
        let mac = |key| {
            let mac = session_key::hmac(HashAlgorithm::Sha256);
            line.sign(&mac, key, &writable(&[0; 16]))
        };
        let whole = self.unwrap(KeyUsage::Mac)?;
        let (wanted, found) = (mac(whole), self.trial.given(mac(part)));
        self.trial.destroy(whole)?;
        Ok(found?.is_some_and(|found| wanted.is_ok_and(|wanted| wanted == found)))
    }

    /// The KEK by a template of one's own.
    fn given<'a>(&self, template: impl Iterator<Item = &'a Rule>) -> Result<Option<ObjectHandle>> {
        let line = self.trial.line;
        self.trial.given(line.raw().unwrap_key(
            line.session(),
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
