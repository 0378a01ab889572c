//! Whether the keys on the token are as good as their attributes say: not told, not wrapped, not weakened, not copied into weaker ones, and used for
//! nothing that they are not for.
//!
//! A master key that decrypts, signs without padding, or unwraps by PKCS #1 v1.5 gives each KEK to whoever has the user PIN and the KEK's wrapped
//! form, whatever the attributes say; the last through the token's answers to chosen ciphertexts alone (Bardou and others 2012).

use cryptoki::mechanism::Mechanism;
use cryptoki::object::ObjectHandle;
use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CKA_COEFFICIENT, CKA_EXPONENT_1, CKA_EXPONENT_2, CKA_PRIME_1, CKA_PRIME_2,
    CKA_PRIVATE_EXPONENT, CKA_VALUE, CKM_RSA_PKCS, CKM_RSA_X_509,
};

use super::{Result, Trial, parts};
use crate::ffi::{Wrapping, writable};
use crate::keys::{Keys, Pair, policy};
use crate::session_key;
use crate::template::{
    AUDIT, LOOSER, LOOSER_UNWRAPPING, MASTER, MEMORY_MASTER, ON_TOKEN, Rule, STORE, TRANSFER,
    WRAPPING,
};
use crate::types::{KeyUsage, MasterKind};

/// What a private or secret key must not tell.
const SECRETS: [(CK_ATTRIBUTE_TYPE, &str); 7] = [
    (CKA_VALUE, "CKA_VALUE"),
    (CKA_PRIVATE_EXPONENT, "CKA_PRIVATE_EXPONENT"),
    (CKA_PRIME_1, "CKA_PRIME_1"),
    (CKA_PRIME_2, "CKA_PRIME_2"),
    (CKA_EXPONENT_1, "CKA_EXPONENT_1"),
    (CKA_EXPONENT_2, "CKA_EXPONENT_2"),
    (CKA_COEFFICIENT, "CKA_COEFFICIENT"),
];

/// What is wrong is an [`HsmError::KeyPolicy`].
pub(crate) fn check(trial: &Trial<'_>, keys: &Keys) -> Result<()> {
    let kept = |name, key| Kept { trial, name, key };
    let public = keys.generations.current().master.public;
    for generation in keys.generations.all() {
        let master = kept(MASTER.name, generation.master.private);
        master.stays(public)?;
        master.unwraps_only(&generation.master)?;
        if let Some(transfer) = &generation.transfer {
            let key = kept(TRANSFER.name, transfer.private);
            key.stays(public)?;
            key.unwraps_only(transfer)?;
        }
        if let Some(memory) = &generation.memory_master {
            let key = kept(MEMORY_MASTER.name, memory.private);
            key.stays(public)?;
            key.signs_nothing(&trial.wrapped_by(memory.public)?)?;
        }
    }
    let wrapping = kept(WRAPPING.name, keys.wrapping.private);
    wrapping.stays(public)?;
    // Its public half wraps nothing here; without padding any number will do.
    wrapping.unwraps_only_oaep(&writable(&[0x5a; 512]))?;
    kept(AUDIT.name, keys.audit.private).stays(public)?;
    let store = kept(STORE.name, keys.store);
    store.stays(public)?;
    if trial.rsa_wraps(public, keys.store)? {
        return Err(store.wrong(
            "CKA_EXTRACTABLE",
            "does not allow it, and yet it is wrapped out",
        ));
    }
    match parts::way(trial, keys.store)? {
        Some(mechanism) => Err(store.wrong(
            "CKA_DERIVE",
            &format!("is false, and yet a part of it comes out by {mechanism}"),
        )),
        None => Ok(()),
    }
}

struct Kept<'a> {
    trial: &'a Trial<'a>,
    name: &'static str,
    key: ObjectHandle,
}

impl Kept<'_> {
    /// That it does not leave the token, nor become weaker. `public`: an RSA key that wraps, and is not trusted.
    fn stays(&self, public: ObjectHandle) -> Result<()> {
        self.tells_nothing(self.key)?;
        if self.trial.own_wraps(self.key)? || self.trial.rsa_aes_wraps(public, self.key)? {
            return Err(self.wrong(
                "CKA_EXTRACTABLE",
                "does not allow it, and yet it is wrapped out",
            ));
        }
        for looser in LOOSER {
            let Some(tighter) = looser.opposite() else {
                continue;
            };
            // That which it is already, or does not know, it can't become.
            if !self.is(self.key, &tighter)? {
                continue;
            }
            self.is_not_set(looser, &tighter)?;
            self.is_not_copied(looser)?;
        }
        for looser in LOOSER_UNWRAPPING {
            self.is_not_copied(looser)?;
        }
        Ok(())
    }

    fn tells_nothing(&self, key: ObjectHandle) -> Result<()> {
        let line = self.trial.line;
        for (attribute, name) in SECRETS {
            let value = line.raw().attribute(line.session(), key, attribute)?;
            if value.is_some_and(|value| !value.is_empty()) {
                return Err(self.wrong(name, "is told to whoever has the user PIN"));
            }
        }
        Ok(())
    }

    /// That `CKA_MODIFIABLE` holds. First what changes nothing is set: only a token that takes that is asked for more, and it is set back.
    fn is_not_set(&self, looser: &Rule, tighter: &Rule) -> Result<()> {
        let trial = self.trial;
        let set = |rule| {
            let line = trial.line;
            trial.given(line.raw().set_attribute(line.session(), self.key, rule))
        };
        if set(tighter)?.is_none() || set(looser)?.is_none() || self.is(self.key, tighter)? {
            return Ok(());
        }
        let back = set(tighter)?.is_some() && self.is(self.key, tighter)?;
        let what = if back {
            "and is as it was again"
        } else {
            "and could not be set back: destroy that key"
        };
        Err(self.wrong(
            looser.name,
            &format!("can be changed by whoever has the user PIN, although CKA_MODIFIABLE is false ({what})"),
        ))
    }

    fn is_not_copied(&self, looser: &Rule) -> Result<()> {
        let (trial, line) = (self.trial, self.trial.line);
        let template = [&ON_TOKEN[0], looser].into_iter();
        let copy = line.raw().copy_object(line.session(), self.key, template);
        let Some(copy) = trial.given(copy)? else {
            return Ok(());
        };
        // Taken and ignored is no harm.
        let same = match looser.opposite() {
            Some(tighter) => self.is(copy, &tighter),
            None => self.has_the_same(copy, looser.attribute),
        };
        let same = same.and_then(|same| self.tells_nothing(copy).map(|()| same));
        trial.destroy(copy)?;
        if same? {
            return Ok(());
        }
        Err(self.wrong(
            looser.name,
            "can be had otherwise in a copy by whoever has the user PIN",
        ))
    }

    /// Whether a copy has as much in an attribute that is a list.
    fn has_the_same(&self, copy: ObjectHandle, attribute: CK_ATTRIBUTE_TYPE) -> Result<bool> {
        let line = self.trial.line;
        let list = |key| -> Result<_> {
            Ok(if attribute == cryptoki_sys::CKA_UNWRAP_TEMPLATE {
                let template = line.raw().unwrap_template(line.session(), key)?;
                template.map(|all| all.into_iter().flat_map(|(_, value)| value).collect())
            } else {
                line.raw().attribute(line.session(), key, attribute)?
            })
        };
        let own: Option<Vec<u8>> = list(self.key)?;
        Ok(own == list(copy)?)
    }

    /// That a key which unwraps by RSA-OAEP does so, and nothing else. `pair`: its own.
    fn unwraps_only(&self, pair: &Pair) -> Result<()> {
        let blob = self.trial.wrapped_by(pair.public)?;
        self.unwraps_only_oaep(&blob)?;
        let line = self.trial.line;
        let oaep = session_key::oaep(self.trial.hash);
        let decrypted = line.decrypt(&oaep, self.key, &blob);
        if self.trial.given(decrypted)?.is_some() {
            return Err(self.decrypts());
        }
        if !self.trial.offers(CKM_RSA_PKCS) {
            return Ok(());
        }
        let original = session_key::generate(line, KeyUsage::Aead, MasterKind::Hsm)?;
        let wrapping = Wrapping::Plain(CKM_RSA_PKCS);
        let padded = line
            .raw()
            .wrap_key(line.session(), wrapping, pair.public, original);
        self.trial.destroy(original)?;
        // A token that wraps nothing so can't be asked whether it unwraps it.
        let Some(padded) = self.trial.given(padded)? else {
            return Ok(());
        };
        if self.unwraps(wrapping, &padded)? {
            return Err(self.wrong(
                "CKA_ALLOWED_MECHANISMS",
                "is CKM_RSA_PKCS_OAEP alone, and yet it unwraps by CKM_RSA_PKCS",
            ));
        }
        let decrypted = line.decrypt(&Mechanism::RsaPkcs, self.key, &padded);
        if self.trial.given(decrypted)?.is_some() {
            return Err(self.decrypts());
        }
        Ok(())
    }

    /// The same, of ways without padding.
    fn unwraps_only_oaep(&self, blob: &[u8]) -> Result<()> {
        self.signs_nothing(blob)?;
        if !self.trial.offers(CKM_RSA_X_509) {
            return Ok(());
        }
        if self.unwraps(Wrapping::Plain(CKM_RSA_X_509), blob)? {
            return Err(self.wrong(
                "CKA_ALLOWED_MECHANISMS",
                "is CKM_RSA_PKCS_OAEP alone, and yet it unwraps by CKM_RSA_X_509",
            ));
        }
        let decrypted = self.trial.line.decrypt(&Mechanism::RsaX509, self.key, blob);
        match self.trial.given(decrypted)? {
            Some(_) => Err(self.decrypts()),
            None => Ok(()),
        }
    }

    /// A signature without padding is a decryption.
    fn signs_nothing(&self, blob: &[u8]) -> Result<()> {
        let (trial, line) = (self.trial, self.trial.line);
        if !trial.offers(CKM_RSA_X_509) {
            return Ok(());
        }
        let signed = line.sign(&Mechanism::RsaX509, self.key, blob);
        if trial.given(signed)?.is_some() {
            return Err(self.wrong("CKA_SIGN", "is false, and yet it signs"));
        }
        let signed = line
            .raw()
            .sign_recover(line.session(), &Mechanism::RsaX509, self.key, blob);
        match trial.given(signed)? {
            Some(_) => Err(self.wrong("CKA_SIGN_RECOVER", "is false, and yet it signs")),
            None => Ok(()),
        }
    }

    fn unwraps(&self, wrapping: Wrapping, blob: &[u8]) -> Result<bool> {
        let line = self.trial.line;
        let unwrapped = line.raw().unwrap_key(
            line.session(),
            wrapping,
            self.key,
            blob,
            // Of whatever length: without padding it is that of the modulus.
            session_key::kek_rules(KeyUsage::Mac)
                .iter()
                .filter(|rule| rule.asked(false)),
        );
        match self.trial.given(unwrapped)? {
            Some(key) => self.trial.destroy(key).map(|()| true).map_err(Into::into),
            None => Ok(false),
        }
    }

    /// Whether it says of a yes or no what the rule does.
    fn is(&self, key: ObjectHandle, rule: &Rule) -> Result<bool> {
        let told = self.trial.told(key, rule)?;
        Ok(told.is_some_and(|told| rule.admits(&[u8::from(told)])))
    }

    fn decrypts(&self) -> crate::fault::Fault {
        self.wrong("CKA_DECRYPT", "is false, and yet it decrypts")
    }

    fn wrong(&self, attribute: &str, problem: &str) -> crate::fault::Fault {
        let problem = format!(
            "{problem}: this token does not do what it says, so it must not hold such keys"
        );
        policy(self.name, attribute, &problem).into()
    }
}
