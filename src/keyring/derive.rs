//! Derived keys: from a version's key and a request's context to a data-encryption key, for that request only.
//!
//! SoftHSM has no `CKM_HKDF_DERIVE`, so the KDF is composed of HMACs that run in the token: the version's key never leaves it, only the
//! derived key does, into zeroized memory. HKDF's Extract step is left out, as RFC 5869, section 3.3, allows when the input key is
//! already a uniformly random key, as one generated in the token is. In `memory` residency the same HMACs run in host memory.

use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use strongroom_hsm::{HashAlgorithm, Hsm, HsmError, MacItem};
use zeroize::Zeroizing;

use super::memory::HostKey;
use super::{Kdf, KeyringError};
use crate::keyring::key::Version;

/// What one context gives.
pub(super) struct Derived {
    /// AES-256 key.
    pub(super) key: Zeroizing<[u8; 32]>,
    /// HMAC key that convergent nonces come from.
    pub(super) nonce_key: Option<Zeroizing<[u8; 32]>>,
}

/// Where the version's key is.
pub(super) enum PseudorandomKeys<'a> {
    Token(&'a Hsm),
    /// One per item.
    Host(Vec<Arc<HostKey>>),
}

/// Derives one key per (version, context). `convergent`: with a nonce key.
pub(super) async fn derive(
    keys: &PseudorandomKeys<'_>,
    kdf: Kdf,
    convergent: bool,
    items: &[(Arc<Version>, &[u8])],
) -> Result<Vec<Result<Derived, KeyringError>>, KeyringError> {
    let messages = items
        .iter()
        .map(|(_, context)| first_block(kdf, context))
        .collect();
    let first = hmacs(keys, items, messages).await?;
    if !convergent {
        let derived = |block: Result<Zeroizing<[u8; 32]>, KeyringError>| {
            block.map(|key| Derived {
                key,
                nonce_key: None,
            })
        };
        return Ok(first.into_iter().map(derived).collect());
    }
    let messages = items
        .iter()
        .zip(&first)
        .map(|((_, context), block)| second_block(block.as_ref().ok(), context))
        .collect();
    let second = hmacs(keys, items, messages).await?;
    let joined = first.into_iter().zip(second).map(|(key, nonce_key)| {
        Ok(Derived {
            key: key?,
            nonce_key: Some(nonce_key?),
        })
    });
    Ok(joined.collect())
}

/// HMAC-SHA256 of `plaintext` under the nonce key, cut to 96 bits, as Vault's convergent encryption (version 3) has it.
pub(super) fn convergent_nonce(
    nonce_key: &[u8; 32],
    plaintext: &[u8],
) -> Result<[u8; 12], KeyringError> {
    let mac = hmac_sha256(nonce_key, plaintext)?;
    let (nonce, _) = mac.split_at(12);
    nonce
        .try_into()
        .map_err(|_| KeyringError::System("HMAC-SHA256 is too short".to_owned()))
}

/// T(1)'s input of HKDF-Expand: info || 0x01. Of the counter mode: counter 0 || context || 256 bits.
fn first_block(kdf: Kdf, context: &[u8]) -> Zeroizing<Vec<u8>> {
    let (before, after): (&[u8], &[u8]) = match kdf {
        Kdf::HkdfSha256 => (&[], &[1]),
        Kdf::HmacSha256Counter => (&[0; 4], &[0, 0, 1, 0]),
    };
    Zeroizing::new([before, context, after].concat())
}

/// T(2)'s input of HKDF-Expand: T(1) || info || 0x02.
fn second_block(first: Option<&Zeroizing<[u8; 32]>>, context: &[u8]) -> Zeroizing<Vec<u8>> {
    let first: &[u8] = first.map_or(&[], |block| &block[..]);
    Zeroizing::new([first, context, &[2]].concat())
}

async fn hmacs(
    keys: &PseudorandomKeys<'_>,
    items: &[(Arc<Version>, &[u8])],
    messages: Vec<Zeroizing<Vec<u8>>>,
) -> Result<Vec<Result<Zeroizing<[u8; 32]>, KeyringError>>, KeyringError> {
    match keys {
        PseudorandomKeys::Token(hsm) => {
            let items = items
                .iter()
                .zip(messages)
                .map(|((version, _), data)| MacItem {
                    key: version.kek(),
                    hash: HashAlgorithm::Sha256,
                    data,
                });
            let tags = hsm.hmac(items.collect()).await?;
            Ok(tags.into_iter().map(|tag| to_block(&tag?)).collect())
        }
        PseudorandomKeys::Host(keys) => Ok(keys
            .iter()
            .zip(messages)
            .map(|(key, message)| match &**key {
                HostKey::Mac(key) => hmac_sha256(key, &message),
                HostKey::Aead(_) => Err(wrong_usage()),
            })
            .collect()),
    }
}

fn to_block(tag: &[u8]) -> Result<Zeroizing<[u8; 32]>, KeyringError> {
    let block = tag.try_into().map_err(|_| {
        KeyringError::Hsm(HsmError::Pkcs11 {
            function: "C_Sign".to_owned(),
            code: format!("{} bytes for an HMAC-SHA256", tag.len()),
        })
    })?;
    Ok(Zeroizing::new(block))
}

fn hmac_sha256(key: &[u8; 32], message: &[u8]) -> Result<Zeroizing<[u8; 32]>, KeyringError> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key)
        .map_err(|_| KeyringError::System("HMAC refused a 32-byte key".to_owned()))?;
    mac.update(message);
    Ok(Zeroizing::new(mac.finalize().into_bytes().into()))
}

pub(super) fn wrong_usage() -> KeyringError {
    KeyringError::System("a key's record names the wrong usage".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect()
    }

    /// RFC 5869, A.1 and A.3: the first 42 bytes of output are T(1) || T(2)'s beginning.
    #[test]
    fn blocks_are_those_of_rfc_5869() {
        let vectors = [
            (
                "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
                "f0f1f2f3f4f5f6f7f8f9",
                "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
            ),
            (
                "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04",
                "",
                "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
            ),
        ];
        for (prk, info, okm) in vectors {
            let prk: [u8; 32] = bytes(prk).try_into().unwrap();
            let info = bytes(info);
            let first = hmac_sha256(&prk, &first_block(Kdf::HkdfSha256, &info)).unwrap();
            let second = hmac_sha256(&prk, &second_block(Some(&first), &info)).unwrap();
            let ours = [&first[..], &second[..]].concat();
            assert_eq!(ours[..42], bytes(okm));
        }
    }

    #[test]
    fn the_counter_mode_has_counter_context_and_length() {
        assert_eq!(
            **first_block(Kdf::HmacSha256Counter, b"ctx"),
            *b"\0\0\0\0ctx\0\0\x01\0"
        );
    }
}
