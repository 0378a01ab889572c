//! Derived keys: from a version's key and a request's context to a data-encryption key, for that
//! request only.
//!
//! SoftHSM has no `CKM_HKDF_DERIVE`, so the KDF is composed of HMACs that run in the token: the
//! version's key never leaves it, only the derived key does, into zeroized memory. HKDF's Extract
//! step is left out, as RFC 5869, section 3.3, allows when the input key is already a uniformly
//! random key, as one generated in the token is. In `memory` residency the same HMACs run in host
//! memory.

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
    /// HMAC key that the convergent nonce comes from, if one was asked for.
    pub(super) nonce_key: Option<Zeroizing<[u8; 32]>>,
}

/// What is derived for an item: its key, and of a convergent key to encrypt with, one of two nonce
/// keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DerivedKind {
    /// T(1) of HKDF-Expand.
    Key,
    /// T(1), and T(2) for the nonce: of an item without associated data.
    PlainNonce,
    /// T(1), and T(3) for the nonce: of an item with associated data. A key of its own, since any
    /// encoding of plaintext and associated data is also a plaintext, and one nonce must not
    /// serve two messages.
    BoundNonce,
}

/// An item to derive for: version, context.
pub(super) type Item<'a> = (Arc<Version>, &'a [u8], DerivedKind);

/// Where the version's key is.
pub(super) enum PseudorandomKeys<'a> {
    Token(&'a Hsm),
    /// One per item.
    Host(Vec<Arc<HostKey>>),
}

/// Derives what each item wants.
pub(super) async fn derive(
    keys: &PseudorandomKeys<'_>,
    kdf: Kdf,
    items: &[Item<'_>],
) -> Result<Vec<Result<Derived, KeyringError>>, KeyringError> {
    let everyone: Vec<usize> = (0..items.len()).collect();
    let messages = items
        .iter()
        .map(|(_, context, _)| first_block(kdf, context))
        .collect();
    let mut derived: Vec<_> = hmacs(keys, items, &everyone, messages)
        .await?
        .into_iter()
        .map(|block| {
            block.map(|key| Derived {
                key,
                nonce_key: None,
            })
        })
        .collect();
    let second = Round {
        of: |want| want != DerivedKind::Key,
        number: 2,
    };
    let third = Round {
        of: |want| want == DerivedKind::BoundNonce,
        number: 3,
    };
    for round in [second, third] {
        next_block(keys, items, &mut derived, round).await?;
    }
    Ok(derived)
}

/// One of the later blocks of HKDF-Expand, and whose it is.
struct Round {
    of: fn(DerivedKind) -> bool,
    number: u8,
}

/// Puts the next block in the place of the nonce key: T(2) follows T(1), T(3) follows T(2).
async fn next_block(
    keys: &PseudorandomKeys<'_>,
    items: &[Item<'_>],
    derived: &mut [Result<Derived, KeyringError>],
    round: Round,
) -> Result<(), KeyringError> {
    let mut chosen = Vec::new();
    let mut messages = Vec::new();
    for (index, ((_, context, want), derived)) in items.iter().zip(derived.iter()).enumerate() {
        if let Ok(derived) = derived
            && (round.of)(*want)
        {
            let before = derived.nonce_key.as_ref().unwrap_or(&derived.key);
            chosen.push(index);
            messages.push(later_block(before, context, round.number));
        }
    }
    if chosen.is_empty() {
        return Ok(());
    }
    let blocks = hmacs(keys, items, &chosen, messages).await?;
    for (index, block) in chosen.into_iter().zip(blocks) {
        if let Some(place) = derived.get_mut(index) {
            match (block, &mut *place) {
                (Ok(block), Ok(derived)) => derived.nonce_key = Some(block),
                (Err(error), _) => *place = Err(error),
                (Ok(_), Err(_)) => {}
            }
        }
    }
    Ok(())
}

/// HMAC-SHA256 under the nonce key, cut to 96 bits. Without associated data it is that of the
/// plaintext, as Vault's convergent encryption (version 3) has it; else that of the associated
/// data's length (8 bytes, big-endian), the associated data, and the plaintext.
///
/// A nonce thus belongs to one plaintext with one associated data: AES-GCM tells its authentication
/// key to whoever sees two tags of one nonce.
pub(super) fn convergent_nonce(
    nonce_key: &[u8; 32],
    associated_data: &[u8],
    plaintext: &[u8],
) -> Result<[u8; 12], KeyringError> {
    let length = (associated_data.len() as u64).to_be_bytes();
    let mac = if associated_data.is_empty() {
        hmac_sha256(nonce_key, &[plaintext])?
    } else {
        hmac_sha256(nonce_key, &[&length, associated_data, plaintext])?
    };
    let (nonce, _) = mac.split_at(12);
    nonce
        .try_into()
        .map_err(|_| KeyringError::System("HMAC-SHA256 is too short".to_owned()))
}

/// T(1)'s input of HKDF-Expand: info || 0x01. Of the counter mode: counter 0 || context || 256
/// bits.
fn first_block(kdf: Kdf, context: &[u8]) -> Zeroizing<Vec<u8>> {
    let (before, after): (&[u8], &[u8]) = match kdf {
        Kdf::HkdfSha256 => (&[], &[1]),
        Kdf::HmacSha256Counter => (&[0; 4], &[0, 0, 1, 0]),
    };
    Zeroizing::new([before, context, after].concat())
}

/// T(n)'s input of HKDF-Expand: T(n - 1) || info || n.
fn later_block(before: &[u8; 32], context: &[u8], number: u8) -> Zeroizing<Vec<u8>> {
    Zeroizing::new([&before[..], context, &[number]].concat())
}

/// One HMAC for each of the `chosen` items, with its version's key.
async fn hmacs(
    keys: &PseudorandomKeys<'_>,
    items: &[Item<'_>],
    chosen: &[usize],
    messages: Vec<Zeroizing<Vec<u8>>>,
) -> Result<Vec<Result<Zeroizing<[u8; 32]>, KeyringError>>, KeyringError> {
    let chosen = chosen.iter().copied().zip(messages);
    match keys {
        PseudorandomKeys::Token(hsm) => {
            let items = chosen.filter_map(|(index, data)| {
                let (version, _, _) = items.get(index)?;
                Some(MacItem {
                    key: version.kek(),
                    hash: HashAlgorithm::Sha256,
                    data,
                })
            });
            let tags = hsm.hmac(items.collect()).await?;
            Ok(tags.into_iter().map(|tag| to_block(&tag?)).collect())
        }
        PseudorandomKeys::Host(keys) => Ok(chosen
            .filter_map(|(index, message)| {
                Some(match &**keys.get(index)? {
                    HostKey::Mac(key) => hmac_sha256(key, &[&message]),
                    HostKey::Aead(_) => Err(wrong_usage()),
                })
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

fn hmac_sha256(key: &[u8; 32], message: &[&[u8]]) -> Result<Zeroizing<[u8; 32]>, KeyringError> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key)
        .map_err(|_| KeyringError::System("HMAC refused a 32-byte key".to_owned()))?;
    for part in message {
        mac.update(part);
    }
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
        base16ct::lower::decode_vec(hex).unwrap()
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
            let first = hmac_sha256(&prk, &[&first_block(Kdf::HkdfSha256, &info)]).unwrap();
            let second = hmac_sha256(&prk, &[&later_block(&first, &info, 2)]).unwrap();
            let ours = [&first[..], &second[..]].concat();
            assert_eq!(ours[..42], bytes(okm));
        }
    }

    /// The nonce of (associated data, plaintext).
    fn nonce(bound: (&[u8], &[u8])) -> [u8; 12] {
        convergent_nonce(&[7; 32], bound.0, bound.1).unwrap()
    }

    #[test]
    fn a_convergent_nonce_is_of_one_associated_data_and_one_plaintext() {
        // Vault's, where there is no associated data: HMAC-SHA256 of the plaintext.
        assert_eq!(
            nonce((b"", b"abc")),
            hmac_sha256(&[7; 32], &[b"abc"]).unwrap()[..12]
        );
        let cases: [(&[u8], &[u8]); 9] = [
            (b"", b"row-1secret"),
            (b"row-1", b"secret"),
            (b"row-2", b"secret"),
            (b"row-", b"1secret"),
            (b"row-1s", b"ecret"),
            (b"row-1secret", b""),
            (b"", b"secret"),
            (b"r", b"ow-1secret"),
            (b"\0", b"secret"),
        ];
        let nonces: std::collections::HashSet<_> = cases.map(nonce).into_iter().collect();
        assert_eq!(nonces.len(), cases.len());
        assert_eq!(nonce((b"row-1", b"secret")), nonce((b"row-1", b"secret")));
    }

    #[test]
    fn the_counter_mode_has_counter_context_and_length() {
        assert_eq!(
            **first_block(Kdf::HmacSha256Counter, b"ctx"),
            *b"\0\0\0\0ctx\0\0\x01\0"
        );
    }
}
