//! Session objects: how KEKs are made, wrapped in and out, and with which attributes.

use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki_sys::CK_MECHANISM_TYPE;

use crate::fault::Fault;
use crate::line::Line;
use crate::template::{TARGET_AEAD, TARGET_MAC};
use crate::types::{HashAlgorithm, KeyUsage, MasterKind, OaepHash};

type Result<T> = std::result::Result<T, Fault>;

/// Bytes of a key that comes in by BYOK or is used in host memory.
pub(crate) const LEN: usize = 32;

/// Bytes of a generated key. An HMAC key in the token is as long as the longest hash: some tokens (`SoftHSM`) refuse a
/// key shorter than the hash, and one key serves them all.
pub(crate) const fn generated_len(usage: KeyUsage, master: MasterKind) -> usize {
    match (usage, master) {
        (KeyUsage::Mac, MasterKind::Hsm) => 64,
        _ => LEN,
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

/// A new key that can be wrapped out: the only extractable object there ever is, and only until it has been wrapped.
pub(crate) fn generate(line: &Line, usage: KeyUsage, master: MasterKind) -> Result<ObjectHandle> {
    let mechanism = match usage {
        KeyUsage::Aead => Mechanism::AesKeyGen,
        KeyUsage::Mac => Mechanism::GenericSecretKeyGen,
    };
    let mut template = common(usage, true);
    template.push(Attribute::ValueLen(value_len(generated_len(usage, master))));
    template.push(Attribute::Modifiable(false));
    Ok(line.session().generate_key(&mechanism, &template)?)
}

/// The canary's key: never wrapped, never given a caller's data.
pub(crate) fn canary(line: &Line) -> Result<ObjectHandle> {
    let mut template = common(KeyUsage::Aead, false);
    template.push(Attribute::ValueLen(value_len(LEN)));
    template.push(Attribute::Modifiable(false));
    Ok(line
        .session()
        .generate_key(&Mechanism::AesKeyGen, &template)?)
}

/// A KEK from its wrapped form, as strict as the master key's unwrap template demands. `narrow`: the token takes
/// `CKA_ALLOWED_MECHANISMS` and `CKA_COPYABLE` on session keys.
pub(crate) fn unwrap(
    line: &Line,
    hash: OaepHash,
    master: ObjectHandle,
    blob: &[u8],
    usage: KeyUsage,
    narrow: bool,
) -> Result<ObjectHandle> {
    let mut template = common(usage, false);
    if narrow {
        template.push(Attribute::Copyable(false));
        template.push(Attribute::AllowedMechanisms(mechanisms(usage)));
    }
    // Last: SoftHSM lets nothing be set after it.
    template.push(Attribute::Modifiable(false));
    Ok(line
        .session()
        .unwrap_key(&oaep(hash), master, blob, &template)?)
}

/// A KEK out of its transfer blob: good for nothing but to be wrapped by a trusted key.
pub(crate) fn unwrap_to_move(
    line: &Line,
    hash: OaepHash,
    transfer: ObjectHandle,
    blob: &[u8],
    usage: KeyUsage,
) -> Result<ObjectHandle> {
    Ok(line
        .session()
        .unwrap_key(&oaep(hash), transfer, blob, &to_move(usage))?)
}

/// What the transfer key's unwrap template wants repeated in the call, and what kind of key it is.
pub(crate) fn to_move(usage: KeyUsage) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(match usage {
            KeyUsage::Aead => KeyType::AES,
            KeyUsage::Mac => KeyType::GENERIC_SECRET,
        }),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(true),
        Attribute::WrapWithTrusted(true),
        Attribute::Encrypt(false),
        Attribute::Decrypt(false),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
        Attribute::Copyable(false),
        Attribute::Modifiable(false),
    ]
}

/// A key whose bytes the host has, to compare with, or, if `extractable`, to wrap.
pub(crate) fn create(
    line: &Line,
    usage: KeyUsage,
    value: &[u8],
    extractable: bool,
) -> Result<ObjectHandle> {
    let mut template = common(usage, extractable);
    template.push(Attribute::Value(value.to_vec()));
    template.push(Attribute::Modifiable(false));
    let result = line.session().create_object(&template);
    for attribute in &mut template {
        if let Attribute::Value(value) = attribute {
            zeroize::Zeroize::zeroize(value);
        }
    }
    Ok(result?)
}

/// BYOK's first step: the AES key that unwraps the target.
pub(crate) fn unwrap_ephemeral(
    line: &Line,
    hash: OaepHash,
    wrapping_key: ObjectHandle,
    blob: &[u8],
) -> Result<ObjectHandle> {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Wrap(false),
        Attribute::Unwrap(true),
        Attribute::Encrypt(false),
        Attribute::Decrypt(false),
    ];
    Ok(line
        .session()
        .unwrap_key(&oaep(hash), wrapping_key, blob, &template)?)
}

/// BYOK's second step: the target, extractable so that the master key can wrap it.
pub(crate) fn unwrap_target(
    line: &Line,
    kwp: CK_MECHANISM_TYPE,
    ephemeral: ObjectHandle,
    wrapped: &[u8],
    usage: KeyUsage,
) -> Result<ObjectHandle> {
    let rules = match usage {
        KeyUsage::Aead => TARGET_AEAD,
        KeyUsage::Mac => TARGET_MAC,
    };
    Ok(line
        .raw()
        .unwrap_key(line.session(), kwp, ephemeral, wrapped, rules.iter())?)
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

fn mechanisms(usage: KeyUsage) -> Vec<MechanismType> {
    match usage {
        KeyUsage::Aead => vec![MechanismType::AES_GCM],
        KeyUsage::Mac => vec![
            MechanismType::SHA224_HMAC,
            MechanismType::SHA256_HMAC,
            MechanismType::SHA384_HMAC,
            MechanismType::SHA512_HMAC,
        ],
    }
}

fn value_len(len: usize) -> cryptoki::types::Ulong {
    // At most a few dozen bytes: fits any CK_ULONG.
    cryptoki::types::Ulong::new(len as cryptoki_sys::CK_ULONG)
}
