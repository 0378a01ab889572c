//! Whether a KEK that the master key unwrapped is as safe as the master key's unwrap template says.
//!
//! A token may store that template and ignore it (opencryptoki 3.27): then each KEK tells its value to whoever has the user PIN.

use cryptoki::object::ObjectHandle;
use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CKA_COPYABLE, CKA_DERIVE, CKA_EXTRACTABLE, CKA_MODIFIABLE, CKA_SENSITIVE,
    CKA_UNWRAP, CKA_WRAP,
};

use super::{Result, Trial, answer};
use crate::error::HsmError;
use crate::ffi::Wrapping;
use crate::keys::{Pair, policy};
use crate::session_key::{self, KEK, kek_rules};
use crate::template::{MASTER_UNWRAP_TEMPLATE, Rule};
use crate::types::{KeyUsage, MasterKind};

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
        kek.comes_only_with(rule)?;
    }
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
        let line = trial.line;
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
        let unwrapped = line.raw().unwrap_key(
            line.session(),
            Wrapping::Oaep(trial.hash),
            self.master.private,
            &self.blob,
            asked,
        );
        let Some(unwrapped) = trial.given(unwrapped)? else {
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
