//! Whether a token is fit for a transfer key, found out by trying: with a throwaway KEK, by all
//! that the user's PIN allows, and then by a move as a rotation makes it.
//!
//! PKCS#11 says what `CKA_UNWRAP_TEMPLATE`, `CKA_WRAP_WITH_TRUSTED` and `CKA_TRUSTED` mean, but
//! tokens differ, and one that ignored them would let whoever has the user's PIN take every KEK
//! out. So each refusal is asked for.

use cryptoki::error::Error;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CKA_COPYABLE, CKA_DECRYPT, CKA_DERIVE, CKA_ENCRYPT, CKA_MODIFIABLE,
    CKA_SENSITIVE, CKA_WRAP_WITH_TRUSTED, CKO_PRIVATE_KEY, CKO_PUBLIC_KEY,
};
use rsa::pkcs8::DecodePublicKey as _;
use rsa::traits::PublicKeyParts as _;

use super::{Places, Result, Trial, answer, forced, parts, trusted};
use crate::error::HsmError;
use crate::fault::{Fault, Verdict};
use crate::ffi::{Wrapping, writable};
use crate::keys::generation::{Numbered, trusted_rules};
use crate::keys::{self, UnwrapAttributes};
use crate::template::{AS_DATA, MASTER, Rule};
use crate::types::{KeyUsage, MasterKind, OaepHash};
use crate::watched::WatchedSession;
use crate::{selftest, session_key};

/// Rules at a template's beginning that say what kind of key it is: class and type.
const KIND: usize = 2;
/// For people.
const KEY_DESCRIPTION: &str = "key from the transfer key";
/// What would help to take it out if it were otherwise.
const WEAKENING_ATTRIBUTES: &[CK_ATTRIBUTE_TYPE] = &[
    CKA_WRAP_WITH_TRUSTED,
    CKA_SENSITIVE,
    CKA_ENCRYPT,
    CKA_DECRYPT,
    CKA_DERIVE,
    CKA_MODIFIABLE,
    CKA_COPYABLE,
];

/// A KEK that protects nothing.
pub(crate) struct Throwaway {
    hash: OaepHash,
    by_transfer: Vec<u8>,
    /// What it makes of a fixed input.
    answer: Vec<u8>,
}

impl Throwaway {
    /// Made, wrapped by the transfer key, and destroyed.
    pub(crate) fn new(watched: &WatchedSession, transfer: Numbered<'_>) -> Result<Self> {
        let hash = selftest::preferred_oaep(watched)?;
        Self::wrapped(watched, hash, one(watched, CKO_PUBLIC_KEY, transfer)?)
    }

    fn wrapped(watched: &WatchedSession, hash: OaepHash, public: ObjectHandle) -> Result<Self> {
        let original = session_key::generate(watched, KeyUsage::Aead, MasterKind::Hsm)?;
        let made = || -> Result<Self> {
            Ok(Self {
                hash,
                by_transfer: watched.raw().wrap_key(
                    watched.session(),
                    Wrapping::Oaep(hash),
                    public,
                    original,
                )?,
                answer: answer(watched, original)?,
            })
        };
        let made = made();
        watched.session().destroy_object(original)?;
        made
    }

    fn unwrap<'a>(
        &self,
        watched: &WatchedSession,
        transfer: ObjectHandle,
        template: impl Iterator<Item = &'a Rule>,
    ) -> std::result::Result<ObjectHandle, Error> {
        watched.raw().unwrap_key(
            watched.session(),
            Wrapping::Oaep(self.hash),
            transfer,
            &self.by_transfer,
            template,
        )
    }

    /// As a rotation does it: out of the transfer key, under the trusted key, and out of the master
    /// key again. `None`: all well.
    pub(crate) fn move_to(
        &self,
        watched: &WatchedSession,
        transfer: Numbered<'_>,
        trusted: ObjectHandle,
        master: Numbered<'_>,
    ) -> Result<Option<String>> {
        let transfer = one(watched, CKO_PRIVATE_KEY, transfer)?;
        let master = one(watched, CKO_PRIVATE_KEY, master)?;
        let forced = UnwrapAttributes::read(watched, master)?;
        let usage = KeyUsage::Aead;
        let moved =
            session_key::unwrap_to_move(watched, self.hash, transfer, &self.by_transfer, usage)?;
        let wrapped =
            watched
                .raw()
                .wrap_key(watched.session(), Wrapping::Oaep(self.hash), trusted, moved);
        watched.session().destroy_object(moved)?;
        let wrapped = match wrapped.map_err(Fault::from) {
            Ok(wrapped) => wrapped,
            Err(fault) if fault.verdict() != Verdict::Failed => {
                return Ok(Some(format!(
                    "it does not wrap a key from the transfer key even by a trusted one ({fault})"
                )));
            }
            Err(fault) => return Err(fault),
        };
        let kek = session_key::unwrap(watched, self.hash, master, &forced, &wrapped, usage, false)?;
        let same = answer(watched, kek)? == self.answer;
        watched.session().destroy_object(kek)?;
        Ok((!same).then(|| "a key that was moved is another key afterwards".to_owned()))
    }
}

/// Why the token is not fit for a transfer key, as far as the user's PIN can tell; `None`: it is.
/// The pair is on the token.
pub(crate) fn check_as_user(
    watched: &WatchedSession,
    transfer: Numbered<'_>,
    places: Places,
) -> Result<Option<String>> {
    let hash = selftest::preferred_oaep(watched)?;
    let public = one(watched, CKO_PUBLIC_KEY, transfer)?;
    let private = one(watched, CKO_PRIVATE_KEY, transfer)?;
    Trial::with(watched, hash, places, |trial| {
        if let Some(reason) = check(trial, public, private)? {
            return Ok(Some(reason));
        }
        match trusted::way(trial, public) {
            Err(Fault::Own(untried @ HsmError::Untried(_))) => Ok(Some(untried.to_string())),
            way => Ok(way?.map(trusted::by)),
        }
    })
}

/// The same of a pair that was found, but for who can mark keys as trusted.
pub(crate) fn check(
    trial: &Trial<'_>,
    public: ObjectHandle,
    private: ObjectHandle,
) -> Result<Option<String>> {
    let watched = trial.watched;
    let throwaway = Throwaway::wrapped(watched, trial.hash, public)?;
    for usage in [KeyUsage::Aead, KeyUsage::Mac] {
        let template = session_key::to_move(usage);
        let unwrap = |rules: &[Rule]| trial.given(throwaway.unwrap(watched, private, rules.iter()));
        let forced = template.get(KIND..).unwrap_or_default();
        if let Some(attribute) = forced::otherwise(trial, &template, KIND, forced, unwrap)? {
            return Ok(Some(format!(
                "a key comes out of the transfer key with another {attribute} than its CKA_UNWRAP_TEMPLATE says"
            )));
        }
    }
    if let Some(attribute) = shortened(trial, &throwaway, private)? {
        return Ok(Some(format!(
            "a part of a key comes out of the transfer key by {attribute}"
        )));
    }
    let template = session_key::to_move(KeyUsage::Aead);
    let moved = match throwaway
        .unwrap(watched, private, template.iter())
        .map_err(Fault::from)
    {
        Ok(moved) => moved,
        Err(fault) if fault.verdict() != Verdict::Failed => {
            return Ok(Some(format!(
                "no key comes out of the transfer key ({fault})"
            )));
        }
        Err(fault) => return Err(fault),
    };
    let leak = leak(trial, moved, public, &template);
    watched.session().destroy_object(moved)?;
    leak
}

/// The attribute by which a key comes out shorter than it was wrapped.
fn shortened(
    trial: &Trial<'_>,
    throwaway: &Throwaway,
    private: ObjectHandle,
) -> Result<Option<&'static str>> {
    let watched = trial.watched;
    for kind in parts::SHORTER_KINDS {
        let template = kind.instead(&session_key::to_move(kind.usage()));
        let unwrapped = throwaway.unwrap(watched, private, template.iter());
        let Some(part) = trial.given(unwrapped)? else {
            continue;
        };
        let whole = parts::says_whole(trial, kind, part);
        trial.destroy(part)?;
        if !whole? {
            return Ok(Some(kind.attribute()));
        }
    }
    // What is not a key has no attributes to be forced.
    let data = throwaway.unwrap(watched, private, AS_DATA.iter());
    let Some(data) = trial.given(data)? else {
        return Ok(None);
    };
    let told = trial.tells_nothing(data, KEY_DESCRIPTION);
    trial.destroy(data)?;
    match told {
        Err(Fault::Own(HsmError::KeyPolicy { .. })) => Ok(Some("CKA_CLASS")),
        told => told.map(|()| None),
    }
}

/// What the user can do with a key that comes out of the transfer key, and must not.
fn leak(
    trial: &Trial<'_>,
    moved: ObjectHandle,
    public: ObjectHandle,
    template: &[Rule],
) -> Result<Option<String>> {
    let watched = trial.watched;
    let said = |what: &str| Ok(Some(format!("a key from the transfer key {what}")));
    let strict = keys::check_small(watched, moved, KEY_DESCRIPTION, template, true)
        .and_then(|()| trial.tells_nothing(moved, KEY_DESCRIPTION))
        .and_then(|()| trial.keeps(moved, KEY_DESCRIPTION, template, true, WEAKENING_ATTRIBUTES));
    match strict {
        Ok(()) => {}
        Err(Fault::Own(HsmError::KeyPolicy {
            attribute, problem, ..
        })) => return said(&format!("is not what it must be: {attribute} {problem}")),
        Err(fault) => return Err(fault),
    }
    let mut output = Vec::new();
    let used = watched.raw().gcm_encrypt(
        watched.session(),
        moved,
        &[0; 12],
        &[],
        &writable(&[0; 16]),
        &mut output,
    );
    if trial.given(used)?.is_some() {
        return said("encrypts");
    }
    if let Some(mechanism) = parts::way(trial, moved)? {
        return said(&format!("is derived from by {mechanism}"));
    }
    if trial.rsa_wraps(public, moved)? {
        return said("is wrapped by a public key that is not trusted");
    }
    if trial.own_wraps(moved)? {
        return said("is wrapped by an AES key that is not trusted");
    }
    Ok(None)
}

/// Imports a public key as the security officer, marked as trusted; the mark that is there already
/// if it is of the same numbers.
///
/// `SoftHSM` lets `CKA_TRUSTED` be given at an object's creation only; PKCS#11 means it to be set
/// afterwards. Both are tried.
pub(crate) fn mark(
    watched: &WatchedSession,
    key: Numbered<'_>,
    spki: &[u8],
) -> Result<ObjectHandle> {
    let unfit =
        |problem: String| HsmError::Unsupported(format!("marking a key as trusted: {problem}"));
    let numbers = rsa::PublicKey::from_public_key_der(spki).map_err(|error| {
        HsmError::Rotation(format!("the {} is no RSA key: {error}", key.public_name()))
    })?;
    let label = key.trusted_label();
    let name = key.trusted_name();
    if let [there] = watched.find(CKO_PUBLIC_KEY, &label)?.as_slice() {
        if keys::spki(watched, *there)?.as_deref() == Some(spki)
            && keys::check(watched, *there, &name, &trusted_rules(key)).is_ok()
        {
            return Ok(*there);
        }
        return Err(HsmError::KeyExists(format!(
            "{name}, which is not of the key that is to be marked: destroy it first"
        ))
        .into());
    }
    let mut plain = public_template(numbers.n_bytes().to_vec(), numbers.e_bytes().to_vec());
    plain.extend([
        Attribute::Token(true),
        Attribute::Label(label.clone().into_bytes()),
        Attribute::Id(label.into_bytes()),
    ]);
    let trusted = Attribute::Trusted(true);
    // Last: SoftHSM lets nothing be set after CKA_MODIFIABLE.
    let fixed = [Attribute::Copyable(false), Attribute::Modifiable(false)];
    let at_once = [&plain[..], std::slice::from_ref(&trusted), &fixed].concat();
    let made = match watched
        .session()
        .create_object(&at_once)
        .map_err(Fault::from)
    {
        Ok(made) => made,
        Err(fault) if fault.verdict() != Verdict::Failed => {
            let made = watched.session().create_object(&plain).map_err(|error| {
                unfit(format!("the import was refused ({})", Fault::from(error)))
            })?;
            for attribute in std::iter::once(trusted).chain(fixed) {
                // What came of it is seen below.
                let _ = watched.session().update_attributes(made, &[attribute]);
            }
            made
        }
        Err(fault) => return Err(fault),
    };
    match keys::check(watched, made, &name, &trusted_rules(key)) {
        Ok(()) => Ok(made),
        Err(fault) => {
            watched.session().destroy_object(made)?;
            Err(unfit(fault.to_string()).into())
        }
    }
}

/// The public half of the first generation of the master key, for a try.
pub(crate) fn first_master(watched: &WatchedSession) -> Result<(Numbered<'static>, Vec<u8>)> {
    let key = Numbered::from(&MASTER);
    let spki = keys::spki(watched, one(watched, CKO_PUBLIC_KEY, key)?)?;
    let spki = spki
        .ok_or_else(|| HsmError::Unsupported("telling the numbers of a public key".to_owned()))?;
    Ok((key, spki))
}

fn public_template(modulus: Vec<u8>, exponent: Vec<u8>) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Private(false),
        Attribute::Wrap(true),
        Attribute::Encrypt(false),
        Attribute::Verify(false),
        Attribute::VerifyRecover(false),
        Attribute::Derive(false),
        Attribute::Modulus(modulus),
        Attribute::PublicExponent(exponent),
    ]
}

fn one(
    watched: &WatchedSession,
    class: cryptoki_sys::CK_ULONG,
    key: Numbered<'_>,
) -> Result<ObjectHandle> {
    keys::only(watched, &key.label(), class, &key.name())
}
