//! Session objects: how KEKs are made, wrapped in and out, and with which attributes.

use std::iter::once;

use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki_sys::{CK_MECHANISM_TYPE, CKM_AES_KEY_GEN, CKM_GENERIC_SECRET_KEY_GEN};

use crate::fault::Fault;
use crate::ffi::Wrapping;
use crate::keys::{self, Pair, UnwrapAttributes};
use crate::template::{
    EPHEMERAL, KEK_AEAD, KEK_MAC, NEW_AEAD, NEW_MAC, Rule, TARGET_AEAD, TARGET_MAC,
    TRANSFER_UNWRAP_TEMPLATE,
};
use crate::types::{HashAlgorithm, KeyUsage, MasterKind, OaepHash};
use crate::watched::WatchedSession;

type Result<T> = std::result::Result<T, Fault>;

/// For people.
pub(crate) const KEK: &str = "key that the master key unwrapped";

/// Bytes of a key that comes in by BYOK or is used in host memory.
pub(crate) const KEY_BYTES: usize = 32;

/// Bytes of a generated key. An HMAC key in the token is as long as the longest hash: some tokens
/// (`SoftHSM`) refuse a key shorter than the hash, and one key serves them all.
pub(crate) const fn generated_len(usage: KeyUsage, master: MasterKind) -> usize {
    match (usage, master) {
        (KeyUsage::Mac, MasterKind::Hsm) => 64,
        _ => KEY_BYTES,
    }
}

/// RSA-OAEP with one hash for label and MGF1.
pub(crate) fn oaep(hash: OaepHash) -> Mechanism<'static> {
    let (hash, mgf) = match hash {
        OaepHash::Sha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
        OaepHash::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
    };
    Mechanism::RsaPkcsOaep(PkcsOaepParams::new(hash, mgf, PkcsOaepSource::empty()))
}

pub(crate) fn hmac(hash: HashAlgorithm) -> Mechanism<'static> {
    match hash {
        HashAlgorithm::Sha224 => Mechanism::Sha224Hmac,
        HashAlgorithm::Sha256 => Mechanism::Sha256Hmac,
        HashAlgorithm::Sha384 => Mechanism::Sha384Hmac,
        HashAlgorithm::Sha512 => Mechanism::Sha512Hmac,
    }
}

/// A new key that can be wrapped out: the only extractable object there ever is, and only until it
/// has been wrapped.
pub(crate) fn generate(
    watched: &WatchedSession,
    usage: KeyUsage,
    master: MasterKind,
) -> Result<ObjectHandle> {
    let mechanism = match usage {
        KeyUsage::Aead => CKM_AES_KEY_GEN,
        KeyUsage::Mac => CKM_GENERIC_SECRET_KEY_GEN,
    };
    let length = Rule::length(generated_len(usage, master));
    let rules = new_rules(usage).iter().filter(|rule| rule.asked(false));
    let key =
        watched
            .raw()
            .generate_key(watched.session(), mechanism, once(&length).chain(rules))?;
    checked(watched, key, "new key", new_rules(usage), false)
}

/// The canary's key: never wrapped, never given a caller's data.
pub(crate) fn canary(watched: &WatchedSession) -> Result<ObjectHandle> {
    let mut template = common(KeyUsage::Aead, false);
    template.push(Attribute::ValueLen(value_len(KEY_BYTES)));
    template.push(Attribute::Modifiable(false));
    Ok(watched
        .session()
        .generate_key(&Mechanism::AesKeyGen, &template)?)
}

/// A KEK from its wrapped form, as strict as the master key's unwrap template demands, and held
/// against the table before anybody uses it. `narrow`: the token takes `CKA_ALLOWED_MECHANISMS` and
/// `CKA_COPYABLE` on session keys. `forced`: what the master key forces.
pub(crate) fn unwrap(
    watched: &WatchedSession,
    hash: OaepHash,
    master: ObjectHandle,
    forced: &UnwrapAttributes,
    blob: &[u8],
    usage: KeyUsage,
    narrow: bool,
) -> Result<ObjectHandle> {
    let rules = kek_rules(usage);
    let key = watched.raw().unwrap_key(
        watched.session(),
        Wrapping::Oaep(hash),
        master,
        blob,
        asked(rules, forced, narrow),
    )?;
    checked(watched, key, KEK, rules, narrow)
}

/// What a call by a key that forces something asks for. `narrow`: see [`unwrap`].
pub(crate) fn asked<'a>(
    rules: &'a [Rule],
    forced: &UnwrapAttributes,
    narrow: bool,
) -> impl Iterator<Item = &'a Rule> {
    rules.iter().filter(move |rule| forced.asked(rule, narrow))
}

/// What a KEK must be.
pub(crate) fn kek_rules(usage: KeyUsage) -> &'static [Rule] {
    match usage {
        KeyUsage::Aead => KEK_AEAD,
        KeyUsage::Mac => KEK_MAC,
    }
}

fn new_rules(usage: KeyUsage) -> &'static [Rule] {
    match usage {
        KeyUsage::Aead => NEW_AEAD,
        KeyUsage::Mac => NEW_MAC,
    }
}

/// The key, if it is what its table says; else it is destroyed.
fn checked(
    watched: &WatchedSession,
    key: ObjectHandle,
    name: &str,
    rules: &[Rule],
    with_optional: bool,
) -> Result<ObjectHandle> {
    match keys::check_small(watched, key, name, rules, with_optional) {
        Ok(()) => Ok(key),
        Err(fault) => {
            if let Err(error) = watched.session().destroy_object(key) {
                tracing::warn!(%error, "a session key that is not acceptable could not be destroyed");
            }
            Err(fault)
        }
    }
}

/// A KEK out of its transfer blob: good for nothing but to be wrapped by a trusted key.
pub(crate) fn unwrap_to_move(
    watched: &WatchedSession,
    hash: OaepHash,
    transfer: ObjectHandle,
    blob: &[u8],
    usage: KeyUsage,
) -> Result<ObjectHandle> {
    let rules = to_move(usage);
    let key = watched.raw().unwrap_key(
        watched.session(),
        Wrapping::Oaep(hash),
        transfer,
        blob,
        rules.iter(),
    )?;
    checked(watched, key, "key from the transfer key", &rules, true)
}

/// What the transfer key's unwrap template wants repeated in the call, and what kind of key it is.
pub(crate) fn to_move(usage: KeyUsage) -> Vec<Rule> {
    // Class and type, then what the key demands.
    kek_rules(usage)
        .iter()
        .take(2)
        .chain(TRANSFER_UNWRAP_TEMPLATE)
        .cloned()
        .collect()
}

/// A key whose bytes the host has, to compare with, or, if `extractable`, to wrap.
pub(crate) fn create(
    watched: &WatchedSession,
    usage: KeyUsage,
    value: &[u8],
    extractable: bool,
) -> Result<ObjectHandle> {
    let mut template = common(usage, extractable);
    template.push(Attribute::Value(value.to_vec()));
    template.push(Attribute::Modifiable(false));
    let result = watched.session().create_object(&template);
    for attribute in &mut template {
        if let Attribute::Value(value) = attribute {
            zeroize::Zeroize::zeroize(value);
        }
    }
    Ok(result?)
}

/// BYOK's first step: the AES key that unwraps the target.
pub(crate) fn unwrap_ephemeral(
    watched: &WatchedSession,
    hash: OaepHash,
    wrapping_key: &Pair,
    blob: &[u8],
    narrow: bool,
) -> Result<ObjectHandle> {
    let key = watched.raw().unwrap_key(
        watched.session(),
        Wrapping::Oaep(hash),
        wrapping_key.private,
        blob,
        asked(EPHEMERAL, &wrapping_key.forced, narrow),
    )?;
    checked(watched, key, "AES key of an import", EPHEMERAL, narrow)
}

/// BYOK's second step: the target, extractable so that the master key can wrap it.
pub(crate) fn unwrap_target(
    watched: &WatchedSession,
    kwp: CK_MECHANISM_TYPE,
    ephemeral: ObjectHandle,
    wrapped: &[u8],
    usage: KeyUsage,
) -> Result<ObjectHandle> {
    let rules = match usage {
        KeyUsage::Aead => TARGET_AEAD,
        KeyUsage::Mac => TARGET_MAC,
    };
    let key = watched.raw().unwrap_key(
        watched.session(),
        Wrapping::Plain(kwp),
        ephemeral,
        wrapped,
        rules.iter(),
    )?;
    checked(watched, key, "imported key", rules, true)
}

fn common(usage: KeyUsage, extractable: bool) -> Vec<Attribute> {
    let aead = usage == KeyUsage::Aead;
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(if aead {
            KeyType::AES
        } else {
            KeyType::GENERIC_SECRET
        }),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(extractable),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Encrypt(aead),
        Attribute::Decrypt(aead),
        Attribute::Sign(!aead),
        Attribute::Verify(!aead),
        Attribute::Derive(false),
    ]
}

fn value_len(len: usize) -> cryptoki::types::Ulong {
    // At most a few dozen bytes: fits any CK_ULONG.
    cryptoki::types::Ulong::new(len as cryptoki_sys::CK_ULONG)
}
