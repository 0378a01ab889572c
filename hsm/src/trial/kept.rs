//! Whether the keys on the token are as good as their attributes say: not told, not wrapped, not
//! weakened, not copied into weaker ones, and used for nothing that they are not for.
//!
//! A master key that decrypts, signs without padding, or unwraps by PKCS #1 v1.5 gives each KEK to
//! whoever has the user PIN and the KEK's wrapped form, whatever the attributes say; the last
//! through the token's answers to chosen ciphertexts alone (Bardou and others 2012).

use cryptoki::mechanism::Mechanism;
use cryptoki::object::ObjectHandle;
use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CKA_COEFFICIENT, CKA_EXPONENT_1, CKA_EXPONENT_2, CKA_PRIME_1, CKA_PRIME_2,
    CKA_PRIVATE_EXPONENT, CKA_UNWRAP_TEMPLATE, CKA_VALUE, CKM_RSA_PKCS, CKM_RSA_X_509,
};
use rsa::pkcs8::DecodePublicKey as _;
use sha1::Sha1;
use sha2::Sha256;

use super::{Result, Trial, forced, parts};
use crate::fault::Fault;
use crate::ffi::Wrapping;
use crate::keys::{Keys, Pair, UnwrapAttributes, policy};
use crate::session_key;
use crate::template::{
    AS_DATA, AUDIT, EPHEMERAL, KeySpec, LOOSER, LOOSER_LISTS, MASTER, MEMORY_MASTER, ON_TOKEN,
    Rule, SIGNS, STORE, TRANSFER, WRAPPING, WRAPPING_UNWRAP_TEMPLATE,
};
use crate::types::{KeyUsage, OaepHash};

/// What a private or secret key must not tell.
const SECRET_ATTRIBUTES: [(CK_ATTRIBUTE_TYPE, &str); 7] = [
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
    let kept = |spec, key| Kept { trial, spec, key };
    let public = keys.generations.current().master.public;
    for generation in keys.generations.all() {
        let master = kept(&MASTER, generation.master.private);
        master.stays(public)?;
        let forced = &generation.master.forced;
        master.unwraps_only_oaep(&generation.master, |usage| kek_rules(usage, forced))?;
        if let Some(transfer) = &generation.transfer {
            let key = kept(&TRANSFER, transfer.private);
            key.stays(public)?;
            key.unwraps_only_oaep(transfer, session_key::to_move)?;
        }
        if let Some(memory) = &generation.memory_master {
            let key = kept(&MEMORY_MASTER, memory.private);
            key.stays(public)?;
            key.decrypts_only_oaep(memory)?;
        }
    }
    let wrapping = kept(&WRAPPING, keys.wrapping.private);
    wrapping.stays(public)?;
    let forced = &keys.wrapping.forced;
    wrapping.unwraps_only_oaep(&keys.wrapping, |usage| ephemeral(usage, forced))?;
    wrapping.forces(&keys.wrapping)?;
    kept(&AUDIT, keys.audit.private).stays(public)?;
    let store = kept(&STORE, keys.store);
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

/// As the master key unwraps.
fn kek_rules(usage: KeyUsage, forced: &UnwrapAttributes) -> Vec<Rule> {
    let rules = session_key::kek_rules(usage);
    session_key::asked(rules, forced, false).cloned().collect()
}

/// As the BYOK wrapping key does, with the use by which it can be seen what came out.
fn ephemeral(usage: KeyUsage, forced: &UnwrapAttributes) -> Vec<Rule> {
    let mut rules: Vec<_> = session_key::kek_rules(usage)
        .iter()
        .take(KIND)
        .chain(session_key::asked(EPHEMERAL, forced, false).skip(KIND))
        .cloned()
        .collect();
    if usage == KeyUsage::Mac {
        // Before CKA_MODIFIABLE.
        rules.insert(KIND + 1, SIGNS.clone());
    }
    rules
}

/// Rules at a template's beginning that say what kind of key it is: class and type.
const KIND: usize = 2;

/// What anybody encrypts with the public half of a key, of a value that protects nothing. Made
/// here: the token may refuse to.
struct Blobs {
    oaep: Vec<u8>,
    pkcs1: Vec<u8>,
}

struct Kept<'a> {
    trial: &'a Trial<'a>,
    spec: &'static KeySpec,
    key: ObjectHandle,
}

impl Kept<'_> {
    /// That it does not leave the token, nor become weaker. `public`: an RSA key that wraps, and is
    /// not trusted.
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
        for looser in LOOSER_LISTS {
            let own = |rule: &&Rule| rule.attribute == looser.attribute;
            // A list that it has none of makes it no looser.
            if let Some(tighter) = self.spec.private.iter().find(own) {
                self.is_not_set(looser, tighter)?;
            }
            self.is_not_copied(looser)?;
        }
        Ok(())
    }

    fn tells_nothing(&self, key: ObjectHandle) -> Result<()> {
        let watched = self.trial.watched;
        for (attribute, name) in SECRET_ATTRIBUTES {
            let value = watched.raw().attribute(watched.session(), key, attribute)?;
            if value.is_some_and(|value| !value.is_empty()) {
                return Err(self.wrong(name, "is told to whoever has the user PIN"));
            }
        }
        Ok(())
    }

    /// That `CKA_MODIFIABLE` holds. First what changes nothing is set: only a token that takes that
    /// is asked for more, and it is set back.
    fn is_not_set(&self, looser: &Rule, tighter: &Rule) -> Result<()> {
        let trial = self.trial;
        let set = |rule| {
            let watched = trial.watched;
            trial.given(
                watched
                    .raw()
                    .set_attribute(watched.session(), self.key, rule),
            )
        };
        if set(tighter)?.is_none() {
            return Ok(());
        }
        let before = self.value(self.key, tighter.attribute)?;
        let is_as_before = || Ok::<_, Fault>(self.value(self.key, tighter.attribute)? == before);
        if set(looser)?.is_none() || is_as_before()? {
            return Ok(());
        }
        let back = set(tighter)?.is_some() && is_as_before()?;
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
        let (trial, watched) = (self.trial, self.trial.watched);
        let template = [&ON_TOKEN[0], looser].into_iter();
        let copy = watched
            .raw()
            .copy_object(watched.session(), self.key, template);
        let Some(copy) = trial.given(copy)? else {
            return Ok(());
        };
        // Taken and ignored is no harm.
        let same = match looser.opposite() {
            Some(tighter) => self.is(copy, &tighter),
            None => self
                .value(copy, looser.attribute)
                .and_then(|value| Ok(value == self.value(self.key, looser.attribute)?)),
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

    /// The bytes of an attribute; of a template its attributes and their values.
    fn value(&self, key: ObjectHandle, attribute: CK_ATTRIBUTE_TYPE) -> Result<Option<Vec<u8>>> {
        let watched = self.trial.watched;
        if attribute != CKA_UNWRAP_TEMPLATE {
            return Ok(watched.raw().attribute(watched.session(), key, attribute)?);
        }
        let template = watched.raw().unwrap_template(watched.session(), key)?;
        let one = |(attribute, value): (CK_ATTRIBUTE_TYPE, Vec<u8>)| {
            attribute.to_ne_bytes().into_iter().chain(value)
        };
        Ok(template.map(|all| all.into_iter().flat_map(one).collect()))
    }

    fn blobs(&self, pair: &Pair) -> Result<Blobs> {
        let value = [0x5a; session_key::KEY_BYTES];
        let made = || {
            let key = rsa::PublicKey::from_public_key_der(&pair.spki).ok()?;
            let oaep = match self.trial.hash {
                OaepHash::Sha1 => key.oaep_encrypt::<Sha1>(&value),
                OaepHash::Sha256 => key.oaep_encrypt::<Sha256>(&value),
            };
            Some(Blobs {
                oaep: oaep.ok()?,
                pkcs1: key.pkcs1v15_encrypt(&value).ok()?,
            })
        };
        let unfit = "and its exponent make no RSA key that encrypts";
        Ok(made().ok_or_else(|| policy(self.spec.name, "CKA_MODULUS", unfit))?)
    }

    /// That a key which unwraps by RSA-OAEP does nothing else. `pair`: its own; `call`: a template
    /// by which it unwraps.
    fn unwraps_only_oaep(&self, pair: &Pair, call: impl Fn(KeyUsage) -> Vec<Rule>) -> Result<()> {
        let blobs = self.blobs(pair)?;
        self.signs_nothing(&blobs.oaep)?;
        let oaep = session_key::oaep(self.trial.hash);
        for (mechanism, blob) in [
            (&oaep, &blobs.oaep),
            (&Mechanism::RsaPkcs, &blobs.pkcs1),
            (&Mechanism::RsaX509, &blobs.oaep),
        ] {
            if self.decrypts(mechanism, blob)? {
                return Err(self.wrong("CKA_DECRYPT", "is false, and yet it decrypts"));
            }
        }
        // Without padding it is as long as the modulus, which no AES key is.
        for (usage, mechanism, name, blob) in [
            (KeyUsage::Mac, CKM_RSA_PKCS, "CKM_RSA_PKCS", &blobs.pkcs1),
            (KeyUsage::Aead, CKM_RSA_PKCS, "CKM_RSA_PKCS", &blobs.pkcs1),
            (KeyUsage::Mac, CKM_RSA_X_509, "CKM_RSA_X_509", &blobs.oaep),
        ] {
            if self.unwraps(Wrapping::Plain(mechanism), blob, &call(usage))? {
                return Err(self.only_oaep(&format!("unwraps by {name}")));
            }
        }
        Ok(())
    }

    /// That a key which decrypts by RSA-OAEP does nothing else.
    fn decrypts_only_oaep(&self, pair: &Pair) -> Result<()> {
        let blobs = self.blobs(pair)?;
        self.signs_nothing(&blobs.oaep)?;
        for (mechanism, name, blob) in [
            (Mechanism::RsaPkcs, "CKM_RSA_PKCS", &blobs.pkcs1),
            (Mechanism::RsaX509, "CKM_RSA_X_509", &blobs.oaep),
        ] {
            if self.decrypts(&mechanism, blob)? {
                return Err(self.only_oaep(&format!("decrypts by {name}")));
            }
        }
        for (wrapping, blob) in [
            (Wrapping::Oaep(self.trial.hash), &blobs.oaep),
            (Wrapping::Plain(CKM_RSA_PKCS), &blobs.pkcs1),
            (Wrapping::Plain(CKM_RSA_X_509), &blobs.oaep),
        ] {
            if self.unwraps(wrapping, blob, &kek_rules(KeyUsage::Mac, &pair.forced))? {
                return Err(self.wrong("CKA_UNWRAP", "is false, and yet it unwraps"));
            }
        }
        Ok(())
    }

    /// That the BYOK wrapping key's unwrap template decides, and that what it unwraps comes whole:
    /// who has a recorded import, and the AES key of it in parts or with more rights, has the
    /// imported key.
    fn forces(&self, pair: &Pair) -> Result<()> {
        let trial = self.trial;
        let blobs = self.blobs(pair)?;
        let unwrap =
            |rules: &[Rule]| self.unwrapped(Wrapping::Oaep(trial.hash), &blobs.oaep, rules);
        for usage in [KeyUsage::Aead, KeyUsage::Mac] {
            let call = ephemeral(usage, &pair.forced);
            // With CKA_TOKEN: SoftHSM has no default for it.
            let silent = KIND + 1;
            let demanded: Vec<_> = pair.forced.of(WRAPPING_UNWRAP_TEMPLATE).cloned().collect();
            if let Some(attribute) = forced::otherwise(trial, &call, silent, &demanded, unwrap)? {
                let problem = "of what it unwraps is not what its CKA_UNWRAP_TEMPLATE forces";
                return Err(self.wrong(attribute, problem));
            }
        }
        for kind in parts::SHORTER_KINDS {
            let Some(part) = unwrap(&kind.instead(&ephemeral(kind.usage(), &pair.forced)))? else {
                continue;
            };
            let whole = parts::says_whole(trial, kind, part);
            trial.destroy(part)?;
            if !whole? {
                let problem = "of what it unwraps is what the call asks for, and a part of a key is easily guessed";
                return Err(self.wrong(kind.attribute(), problem));
            }
        }
        let Some(data) = unwrap(AS_DATA)? else {
            return Ok(());
        };
        let told = self.tells_nothing(data);
        trial.destroy(data)?;
        told
    }

    fn decrypts(&self, mechanism: &Mechanism<'_>, blob: &[u8]) -> Result<bool> {
        let decrypted = self.trial.watched.decrypt(mechanism, self.key, blob);
        Ok(self.trial.given(decrypted)?.is_some())
    }

    /// A signature without padding is a decryption; one with padding is still somebody else's word.
    fn signs_nothing(&self, blob: &[u8]) -> Result<()> {
        let (trial, watched) = (self.trial, self.trial.watched);
        // As long as what is hashed, where the token pads.
        let hash = blob.get(..32).unwrap_or(blob);
        for (mechanism, data) in [(Mechanism::RsaX509, blob), (Mechanism::RsaPkcs, hash)] {
            let signed = watched.sign(&mechanism, self.key, data);
            if trial.given(signed)?.is_some() {
                return Err(self.wrong("CKA_SIGN", "is false, and yet it signs"));
            }
        }
        let signed =
            watched
                .raw()
                .sign_recover(watched.session(), &Mechanism::RsaX509, self.key, blob);
        match trial.given(signed)? {
            Some(_) => Err(self.wrong("CKA_SIGN_RECOVER", "is false, and yet it signs")),
            None => Ok(()),
        }
    }

    fn unwraps(&self, wrapping: Wrapping, blob: &[u8], call: &[Rule]) -> Result<bool> {
        match self.unwrapped(wrapping, blob, call)? {
            Some(key) => self.trial.destroy(key).map(|()| true).map_err(Into::into),
            None => Ok(false),
        }
    }

    fn unwrapped(
        &self,
        wrapping: Wrapping,
        blob: &[u8],
        call: &[Rule],
    ) -> Result<Option<ObjectHandle>> {
        let watched = self.trial.watched;
        self.trial.given(watched.raw().unwrap_key(
            watched.session(),
            wrapping,
            self.key,
            blob,
            call.iter(),
        ))
    }

    /// Whether it says of a yes or no what the rule does.
    fn is(&self, key: ObjectHandle, rule: &Rule) -> Result<bool> {
        let told = self.trial.told(key, rule)?;
        Ok(told.is_some_and(|told| rule.admits(&[u8::from(told)])))
    }

    fn only_oaep(&self, does: &str) -> Fault {
        let problem = format!("is CKM_RSA_PKCS_OAEP alone, and yet it {does}");
        self.wrong("CKA_ALLOWED_MECHANISMS", &problem)
    }

    fn wrong(&self, attribute: &str, problem: &str) -> Fault {
        let problem = format!(
            "{problem}: this token does not do what it says, so it must not hold such keys"
        );
        policy(self.spec.name, attribute, &problem).into()
    }
}
