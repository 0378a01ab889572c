//! Known answers for each algorithm that the ceremony computes in this process, from the standards
//! that publish them.

use aes_gcm::aead::{AeadInOut as _, KeyInit as _};
use aes_gcm::{Aes256Gcm, Nonce};
use hmac::{Hmac, Mac as _};
use p256::ecdsa::signature::hazmat::{PrehashSigner as _, PrehashVerifier as _};
use p256::ecdsa::{Signature, SigningKey};
use sha2::{Digest as _, Sha256};

use crate::record::KNOWN_ANSWERS;

/// What computes each of [`KNOWN_ANSWERS`], in their order, and says whether the answer was right.
const CHECKS: [fn() -> Option<bool>; KNOWN_ANSWERS.len()] =
    [sha256, hmac_sha256, aes_gcm, ecdsa, ecdh];

/// The checks that passed, by name: all of them.
///
/// # Errors
/// The first that did not.
pub(super) fn check() -> Result<Vec<&'static str>, &'static str> {
    KNOWN_ANSWERS
        .into_iter()
        .zip(CHECKS)
        .map(|(name, check)| {
            if check() == Some(true) {
                Ok(name)
            } else {
                Err(name)
            }
        })
        .collect()
}

fn hex(text: &str) -> Option<Vec<u8>> {
    base16ct::mixed::decode_vec(text).ok()
}

fn sha256() -> Option<bool> {
    let want = hex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")?;
    Some(Sha256::digest(b"abc").as_slice() == want)
}

fn hmac_sha256() -> Option<bool> {
    let want = hex("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843")?;
    let mut mac = <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(b"Jefe").ok()?;
    mac.update(b"what do ya want for nothing?");
    Some(mac.finalize().into_bytes().as_slice() == want)
}

fn aes_gcm() -> Option<bool> {
    let key = hex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308")?;
    let nonce: [u8; 12] = hex("cafebabefacedbaddecaf888")?.try_into().ok()?;
    let aad = hex("feedfacedeadbeeffeedfacedeadbeefabaddad2")?;
    let plain = hex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
    )?;
    let want = hex(
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b",
    )?;
    let cipher = Aes256Gcm::new_from_slice(&key).ok()?;
    let nonce = Nonce::from(nonce);
    let mut text = plain.clone();
    cipher.encrypt_in_place(&nonce, &aad, &mut text).ok()?;
    let sealed = text == want;
    cipher.decrypt_in_place(&nonce, &aad, &mut text).ok()?;
    let opened = text == plain;
    let mut altered = want;
    altered[0] ^= 1;
    let refused = cipher.decrypt_in_place(&nonce, &aad, &mut altered).is_err();
    Some(sealed && opened && refused)
}

fn ecdsa() -> Option<bool> {
    let key = hex("c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721")?;
    let want = hex(
        "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8",
    )?;
    let key = SigningKey::from_slice(&key).ok()?;
    let digest = Sha256::digest(b"sample");
    let signature: Signature = key.sign_prehash(&digest).ok()?;
    let signed = signature.to_bytes().as_slice() == want;
    let verified = key
        .verifying_key()
        .verify_prehash(&digest, &signature)
        .is_ok();
    let other = Sha256::digest(b"test");
    let refused = key
        .verifying_key()
        .verify_prehash(&other, &signature)
        .is_err();
    Some(signed && verified && refused)
}

fn ecdh() -> Option<bool> {
    let key = hex("c88f01f510d9ac3f70a292daa2316de544e9aab8afe84049c62a9c57862d1433")?;
    let point = hex(
        "04d12dfb5289c8d4f81208b70270398c342296970a0bccb74c736fc7554494bf6356fbf3ca366cc23e8157854c13c58d6aac23f046ada30f8353e74f33039872ab",
    )?;
    let want = hex("d6840f6b42f6edafd13116e0e12565202fef8e9ece7dce03812464d04b9442de")?;
    let key = p256::SecretKey::from_slice(&key).ok()?;
    let point = p256::PublicKey::from_sec1_bytes(&point).ok()?;
    let shared = p256::ecdh::diffie_hellman(key.to_nonzero_scalar(), point.as_affine());
    Some(shared.raw_secret_bytes().as_slice() == want)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_the_published_one() {
        assert_eq!(check(), Ok(KNOWN_ANSWERS.to_vec()));
    }
}
