//! Power-on self-tests: a known answer for each mechanism in use, before any of them is trusted,
//! and the profile that follows from them.

mod vectors;

use cryptoki::error::RvError;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki_sys::{
    CK_MECHANISM_TYPE, CKA_VALUE, CKM_AES_GCM, CKM_AES_KEY_GEN, CKM_AES_KEY_WRAP_KWP,
    CKM_AES_KEY_WRAP_PAD, CKM_ECDSA, CKM_GENERIC_SECRET_KEY_GEN, CKM_RSA_PKCS_OAEP,
    CKM_SHA224_HMAC, CKM_SHA256_HMAC, CKM_SHA384_HMAC, CKM_SHA512_HMAC,
};
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use p256::ecdsa::{Signature, VerifyingKey};
use p256::pkcs8::DecodePublicKey;
use sha2::{Digest, Sha256};

use crate::error::HsmError;
use crate::fault::Fault;
use crate::ffi::{Wrapping, writable};
use crate::keys::{Keys, Pair};
use crate::session_key;
use crate::template::{self, KWP_TEST_TARGET};
use crate::trial::{Places, Trial, kek};
use crate::types::{HashAlgorithm, KeyUsage, MasterKind, OaepHash, Profile, SigningKind};
use crate::watched::WatchedSession;

/// What the token was found able to do.
#[derive(Clone, Debug)]
pub(crate) struct Abilities {
    pub(crate) profile: Profile,
    /// The mechanism that is RFC 5649 here.
    pub(crate) kwp: Option<CK_MECHANISM_TYPE>,
    /// Session keys may carry `CKA_ALLOWED_MECHANISMS`.
    pub(crate) narrow_session_keys: bool,
}

type Result<T> = std::result::Result<T, Fault>;

const REQUIRED: [(CK_MECHANISM_TYPE, &str); 6] = [
    (CKM_RSA_PKCS_OAEP, "CKM_RSA_PKCS_OAEP"),
    (CKM_AES_GCM, "CKM_AES_GCM"),
    (CKM_AES_KEY_GEN, "CKM_AES_KEY_GEN"),
    (CKM_GENERIC_SECRET_KEY_GEN, "CKM_GENERIC_SECRET_KEY_GEN"),
    (CKM_ECDSA, "CKM_ECDSA"),
    (CKM_SHA256_HMAC, "CKM_SHA256_HMAC"),
];

/// Tests everything and chooses the profile. `mechanisms`: the token's list.
pub(crate) fn run(
    watched: &WatchedSession,
    keys: &Keys,
    mechanisms: &[CK_MECHANISM_TYPE],
) -> Result<Abilities> {
    let offered = |wanted: CK_MECHANISM_TYPE| mechanisms.contains(&wanted);
    let missing: Vec<_> = REQUIRED
        .iter()
        .filter(|(m, _)| !offered(*m))
        .map(|(_, name)| *name)
        .collect();
    if !missing.is_empty() {
        return Err(HsmError::Unsupported(missing.join(", ")).into());
    }
    random(watched)?;
    gcm(watched)?;
    let mut hmac = Vec::new();
    for (hash, mechanism) in [
        (HashAlgorithm::Sha224, CKM_SHA224_HMAC),
        (HashAlgorithm::Sha256, CKM_SHA256_HMAC),
        (HashAlgorithm::Sha384, CKM_SHA384_HMAC),
        (HashAlgorithm::Sha512, CKM_SHA512_HMAC),
    ] {
        if offered(mechanism) && hmac_answer(watched, hash)? {
            hmac.push(hash);
        }
    }
    let oaep_accepted = oaep(watched)?;
    let preferred = best(&oaep_accepted);
    let kwp = kwp(watched, mechanisms)?;
    let mut signing = SigningKind::ALL.to_vec();
    signing.retain(|kind| {
        let mut needed = template::signing::spec(*kind).signs_with.iter();
        needed.all(|(mechanism, _)| offered(*mechanism))
    });
    ecdsa(watched, &keys.audit)?;
    let narrow_session_keys = master(watched, keys, preferred)?;
    Ok(Abilities {
        profile: Profile {
            oaep: preferred,
            oaep_accepted,
            aes_kwp: kwp.is_some(),
            hmac,
            memory_master: keys.master(MasterKind::Memory).is_ok(),
            transfer: keys.generations.current().transfer.is_some(),
            signing,
        },
        kwp,
        narrow_session_keys,
    })
}

/// The OAEP hash that new keys are wrapped with.
pub(crate) fn preferred_oaep(watched: &WatchedSession) -> Result<OaepHash> {
    Ok(best(&oaep(watched)?))
}

fn best(accepted: &[OaepHash]) -> OaepHash {
    if accepted.contains(&OaepHash::Sha256) {
        OaepHash::Sha256
    } else {
        OaepHash::Sha1
    }
}

/// After a reconnection: the mechanisms of the hot path and the keys themselves.
pub(crate) fn run_short(
    watched: &WatchedSession,
    keys: &Keys,
    abilities: &Abilities,
) -> Result<()> {
    random(watched)?;
    gcm(watched)?;
    ecdsa(watched, &keys.audit)?;
    master(watched, keys, abilities.profile.oaep)?;
    Ok(())
}

fn random(watched: &WatchedSession) -> Result<()> {
    let mut outputs = [[0_u8; 32]; 2];
    for output in &mut outputs {
        watched.session().generate_random_slice(output)?;
    }
    let [first, second] = outputs;
    demand(
        first != second && first != [0; 32] && second != [0; 32],
        "the random number generator",
    )
}

fn gcm(watched: &WatchedSession) -> Result<()> {
    const NAME: &str = "AES-GCM";
    let key = import(
        watched,
        NAME,
        &[
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
            // Said outright: a token may default to true, and then a test that hangs leaves a key
            // behind, in a session that nobody can close, which the check of the next
            // connection must refuse.
            Attribute::Wrap(false),
            Attribute::Unwrap(false),
            Attribute::Value(vectors::GCM_KEY.to_vec()),
        ],
    )?;
    let (session, raw) = (watched.session(), watched.raw());
    // Copies of what is in read-only memory, here as below: a module that writes where it should
    // only read must not end the process.
    let (iv, aad) = (&vectors::GCM_IV, &writable(&vectors::GCM_AAD));
    let (mut ciphertext, mut plaintext) = (Vec::new(), Vec::new());
    raw.gcm_encrypt(
        session,
        key,
        iv,
        aad,
        &writable(&vectors::GCM_PLAINTEXT),
        &mut ciphertext,
    )?;
    raw.gcm_decrypt(
        watched.session(),
        key,
        iv,
        aad,
        &writable(&vectors::GCM_CIPHERTEXT),
        &mut plaintext,
    )?;
    demand(
        ciphertext == vectors::GCM_CIPHERTEXT && plaintext == vectors::GCM_PLAINTEXT,
        NAME,
    )?;
    // A token that skips the tag would pass all of the above.
    let mut altered = vectors::GCM_CIPHERTEXT;
    altered[0] ^= 1;
    let mut output = Vec::new();
    let accepted = raw
        .gcm_decrypt(watched.session(), key, iv, aad, &altered, &mut output)
        .is_ok();
    watched.session().destroy_object(key)?;
    demand(!accepted, NAME)
}

/// `false` if the token lists the mechanism but won't do it.
fn hmac_answer(watched: &WatchedSession, hash: HashAlgorithm) -> Result<bool> {
    let (name, expected): (&str, &[u8]) = match hash {
        HashAlgorithm::Sha224 => ("HMAC-SHA-224", &vectors::HMAC_SHA224),
        HashAlgorithm::Sha256 => ("HMAC-SHA-256", &vectors::HMAC_SHA256),
        HashAlgorithm::Sha384 => ("HMAC-SHA-384", &vectors::HMAC_SHA384),
        HashAlgorithm::Sha512 => ("HMAC-SHA-512", &vectors::HMAC_SHA512),
    };
    let key = import(
        watched,
        name,
        &[
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::GENERIC_SECRET),
            Attribute::Sign(true),
            Attribute::Value(vectors::HMAC_KEY.to_vec()),
        ],
    )?;
    let answer = watched.sign(
        &session_key::hmac(hash),
        key,
        &writable(vectors::HMAC_MESSAGE),
    );
    watched.session().destroy_object(key)?;
    demand(answer? == expected, name)?;
    // The keys of this product are shorter than the vector's; some tokens refuse keys shorter than
    // the hash.
    let key = session_key::generate(watched, KeyUsage::Mac, MasterKind::Hsm)?;
    let answer = watched.sign(
        &session_key::hmac(hash),
        key,
        &writable(vectors::HMAC_MESSAGE),
    );
    watched.session().destroy_object(key)?;
    match answer.map_err(Fault::from) {
        Ok(_) => Ok(true),
        Err(Fault::Token(RvError::KeySizeRange, _)) if hash != HashAlgorithm::Sha256 => Ok(false),
        Err(fault) => Err(fault),
    }
}

/// The OAEP hashes that truly work: the mechanism list does not tell.
fn oaep(watched: &WatchedSession) -> Result<Vec<OaepHash>> {
    const NAME: &str = "RSA-OAEP";
    let key = import(
        watched,
        NAME,
        &[
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::KeyType(KeyType::RSA),
            Attribute::Decrypt(true),
            Attribute::Modulus(vectors::RSA_MODULUS.to_vec()),
            Attribute::PublicExponent(vectors::RSA_PUBLIC_EXPONENT.to_vec()),
            Attribute::PrivateExponent(vectors::RSA_PRIVATE_EXPONENT.to_vec()),
            Attribute::Prime1(vectors::RSA_PRIME_1.to_vec()),
            Attribute::Prime2(vectors::RSA_PRIME_2.to_vec()),
            Attribute::Exponent1(vectors::RSA_EXPONENT_1.to_vec()),
            Attribute::Exponent2(vectors::RSA_EXPONENT_2.to_vec()),
            Attribute::Coefficient(vectors::RSA_COEFFICIENT.to_vec()),
        ],
    )?;
    let mut accepted = Vec::new();
    for (hash, ciphertext) in [
        (OaepHash::Sha1, &vectors::OAEP_SHA1),
        (OaepHash::Sha256, &vectors::OAEP_SHA256),
    ] {
        match watched
            .decrypt(&session_key::oaep(hash), key, &writable(ciphertext))
            .map_err(Fault::from)
        {
            Ok(plaintext) => {
                demand(plaintext == vectors::OAEP_PLAINTEXT, NAME)?;
                accepted.push(hash);
            }
            // SoftHSM says ARGUMENTS_BAD to any hash but SHA-1.
            Err(Fault::Token(
                RvError::ArgumentsBad | RvError::MechanismParamInvalid | RvError::MechanismInvalid,
                _,
            )) => {}
            Err(fault) => return Err(fault),
        }
    }
    watched.session().destroy_object(key)?;
    if accepted.is_empty() {
        return Err(HsmError::Unsupported("RSA-OAEP with SHA-256 or SHA-1".to_owned()).into());
    }
    Ok(accepted)
}

/// The key wrap mechanism that is RFC 5649 here, if there is one.
pub(crate) fn kwp(
    watched: &WatchedSession,
    mechanisms: &[CK_MECHANISM_TYPE],
) -> Result<Option<CK_MECHANISM_TYPE>> {
    for mechanism in [CKM_AES_KEY_WRAP_KWP, CKM_AES_KEY_WRAP_PAD] {
        if mechanisms.contains(&mechanism) && kwp_is_rfc5649(watched, mechanism)? {
            return Ok(Some(mechanism));
        }
    }
    Ok(None)
}

/// Whether a key wrap mechanism is that of RFC 5649: `CKM_AES_KEY_WRAP_PAD` is not, in some tokens.
fn kwp_is_rfc5649(watched: &WatchedSession, mechanism: CK_MECHANISM_TYPE) -> Result<bool> {
    let key = import(
        watched,
        "AES key wrap",
        &[
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Unwrap(true),
            Attribute::Value(vectors::KWP_KEY.to_vec()),
        ],
    )?;
    let unwrapped = watched.raw().unwrap_key(
        watched.session(),
        Wrapping::Plain(mechanism),
        key,
        &writable(&vectors::KWP_WRAPPED),
        KWP_TEST_TARGET.iter(),
    );
    watched.session().destroy_object(key)?;
    let target = match unwrapped.map_err(Fault::from) {
        Ok(target) => target,
        Err(fault @ Fault::Token(..)) if fault.reach() == crate::fault::Reach::Device => {
            return Err(fault);
        }
        Err(fault) => {
            tracing::debug!(%fault, mechanism, "a key wrap mechanism is not RFC 5649 here");
            return Ok(false);
        }
    };
    let value = watched
        .raw()
        .attribute(watched.session(), target, CKA_VALUE)?;
    watched.session().destroy_object(target)?;
    Ok(value.as_deref() == Some(&vectors::KWP_PLAINTEXT[..]))
}

/// Pairwise: the token signs with the audit signing key, this program verifies.
pub(crate) fn ecdsa(watched: &WatchedSession, audit: &Pair) -> Result<()> {
    let digest = Sha256::digest(b"Strongroom power-on self-test");
    let signature = watched.sign(&Mechanism::Ecdsa, audit.private, &digest)?;
    let good = VerifyingKey::from_public_key_der(&audit.spki)
        .ok()
        .zip(Signature::from_slice(&signature).ok())
        .is_some_and(|(key, signature)| key.verify_prehash(&digest, &signature).is_ok());
    demand(good, "ECDSA with the audit signing key")
}

/// Pairwise: a key wrapped by each master key's public half comes back through its private half;
/// and what comes back stays on the token. Answers whether session keys may carry
/// `CKA_ALLOWED_MECHANISMS`.
fn master(watched: &WatchedSession, keys: &Keys, hash: OaepHash) -> Result<bool> {
    let mut narrow = true;
    Trial::with(watched, hash, Places::Session, |trial| {
        for generation in keys.generations.all() {
            narrow &= kek::check(trial, &generation.master)?;
        }
        Ok(narrow)
    })
}

/// A test key as a session object. A token that takes no keys from outside can't be tested this
/// way: that is an error, not a silent skip.
fn import(watched: &WatchedSession, name: &str, attributes: &[Attribute]) -> Result<ObjectHandle> {
    let mut template = vec![
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(false),
    ];
    template.extend_from_slice(attributes);
    watched
        .session()
        .create_object(&template)
        .map_err(|error| match Fault::from(error) {
            Fault::Token(
                code @ (RvError::ActionProhibited
                | RvError::FunctionNotSupported
                | RvError::TemplateInconsistent
                | RvError::AttributeValueInvalid
                | RvError::FunctionRejected),
                _,
            ) => HsmError::Unsupported(format!(
                "a test key from outside (C_CreateObject returned {}), so {name} was not tested",
                crate::fault::code_name(code)
            ))
            .into(),
            other => other,
        })
}

fn demand(good: bool, name: &str) -> Result<()> {
    if good {
        Ok(())
    } else {
        Err(HsmError::SelfTest(name.to_owned()).into())
    }
}
