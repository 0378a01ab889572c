//! JSON Web Encryption to a participant: RFC 7516 compact, `alg` ECDH-ES (RFC 7518, 4.6), `enc`
//! A256GCM.
//!
//! Only the ECDH step needs the private key, so the same code serves key files and tokens.

use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::{Aes256Gcm, Key, Nonce};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use p256::elliptic_curve::sec1::{FromSec1Point as _, ToSec1Point as _};
use p256::{PublicKey, Sec1Point};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use strongroom_core::json::{self, Document};
use zeroize::Zeroizing;

use super::CeremonyError;
use super::participant::{Participant, ParticipantKey, new_key};

const ALG: &str = "ECDH-ES";
const ENC: &str = "A256GCM";
const TAG_BYTES: usize = 16;
/// A share takes a fraction of it.
const MAX_JWE_BYTES: usize = 64 * 1024;

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    enc: String,
    epk: Jwk,
    kid: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Jwk {
    kty: String,
    crv: String,
    x: String,
    y: String,
}

/// Encrypts to a participant, with an ephemeral key that is used once.
///
/// # Errors
/// [`CeremonyError::Random`], [`CeremonyError::Jwe`].
pub fn seal(plaintext: &[u8], recipient: &Participant) -> Result<String, CeremonyError> {
    let fail = || CeremonyError::Jwe("the share could not be encrypted".to_owned());
    let ephemeral = new_key()?;
    let shared = p256::ecdh::diffie_hellman(
        ephemeral.to_nonzero_scalar(),
        recipient.agreement_key().as_affine(),
    );
    let key = content_key(shared.raw_secret_bytes());
    let point = ephemeral.public_key().to_sec1_point(false);
    let coordinate =
        |bytes: Option<&p256::FieldBytes>| bytes.map(|bytes| encode(bytes)).ok_or_else(fail);
    let header = Header {
        alg: ALG.to_owned(),
        enc: ENC.to_owned(),
        epk: Jwk {
            kty: "EC".to_owned(),
            crv: "P-256".to_owned(),
            x: coordinate(point.x())?,
            y: coordinate(point.y())?,
        },
        kid: recipient.fingerprint(),
    };
    let header = encode(&serde_json::to_vec(&header).map_err(|_| fail())?);
    // The key is new for each message; the nonce need not be, but RFC 7518 wants one.
    let mut iv = [0; 12];
    getrandom::fill(&mut iv).map_err(|_| CeremonyError::Random)?;
    let sealed = cipher(&key)
        .encrypt(
            &Nonce::from(iv),
            Payload {
                msg: plaintext,
                aad: header.as_bytes(),
            },
        )
        .map_err(|_| fail())?;
    let (text, tag) = sealed.split_at(sealed.len().saturating_sub(TAG_BYTES));
    Ok(format!(
        "{header}..{}.{}.{}",
        encode(&iv),
        encode(text),
        encode(tag)
    ))
}

/// Decrypts what was encrypted to a participant.
///
/// # Errors
/// [`CeremonyError::Jwe`] if it is not for them or was altered, [`CeremonyError::Key`],
/// [`CeremonyError::Token`].
pub fn open(jwe: &str, key: &ParticipantKey) -> Result<Zeroizing<Vec<u8>>, CeremonyError> {
    let recipient = key.participant();
    let foreign = |what: &str| {
        CeremonyError::Jwe(format!(
            "this is not an encrypted share ({what}): take the .jwe file with {}'s fingerprint in its name",
            recipient.name()
        ))
    };
    let jwe = jwe.trim_ascii();
    if jwe.len() > MAX_JWE_BYTES {
        return Err(foreign("it is too long"));
    }
    let parts: Vec<&str> = jwe.split('.').collect();
    let [header_text, "", iv, text, tag] = parts[..] else {
        return Err(foreign("it is not a compact JWE with direct key agreement"));
    };
    let header: Header = decode(header_text)
        .and_then(|bytes| Document::parse(&bytes).ok())
        .and_then(|header| json::read_exactly(header.value()).ok())
        .ok_or_else(|| foreign("its header can't be read"))?;
    if (header.alg.as_str(), header.enc.as_str()) != (ALG, ENC) {
        return Err(foreign("it is not ECDH-ES with A256GCM"));
    }
    if header.kid != recipient.fingerprint() {
        return Err(CeremonyError::Jwe(format!(
            "this share is encrypted to another participant ({}), not to {} ({}): take their own file",
            super::page::printable(&header.kid),
            recipient.name(),
            recipient.fingerprint()
        )));
    }
    let peer = header
        .epk
        .public_key()
        .ok_or_else(|| foreign("its ephemeral key is not on P-256"))?;
    let iv: [u8; 12] = decode(iv)
        .and_then(|iv| iv.try_into().ok())
        .ok_or_else(|| foreign("its nonce has a wrong length"))?;
    let tag = decode(tag)
        .filter(|tag| tag.len() == TAG_BYTES)
        .ok_or_else(|| foreign("its tag has a wrong length"))?;
    let mut sealed = decode(text).ok_or_else(|| foreign("its text is not base64url"))?;
    sealed.extend_from_slice(&tag);
    let key = content_key(&*key.agree(&peer)?);
    cipher(&key)
        .decrypt(
            &Nonce::from(iv),
            Payload {
                msg: &sealed,
                aad: header_text.as_bytes(),
            },
        )
        .map(Zeroizing::new)
        .map_err(|_| {
            CeremonyError::Jwe(format!(
                "{}'s encrypted share was altered or damaged: take another copy of the .jwe file, or the share on paper",
                recipient.name()
            ))
        })
}

impl Jwk {
    fn public_key(&self) -> Option<PublicKey> {
        if (self.kty.as_str(), self.crv.as_str()) != ("EC", "P-256") {
            return None;
        }
        let coordinate = |text| <[u8; 32]>::try_from(decode(text)?).ok();
        let (x, y) = (coordinate(&self.x)?, coordinate(&self.y)?);
        let point = Sec1Point::from_affine_coordinates(&x.into(), &y.into(), false);
        // Refuses a point that is not on the curve.
        PublicKey::from_sec1_point(&point).into()
    }
}

/// The content encryption key, out of what ECDH gave; no `apu`, no `apv`.
fn content_key(shared: &[u8]) -> Zeroizing<[u8; 32]> {
    concat_kdf(shared, ENC.as_bytes(), &[], &[], 256)
}

/// The Concat KDF of NIST SP 800-56A with SHA-256, as RFC 7518, 4.6.2 sets it up; one round, so up
/// to 256 bits. What is beyond `bits` is to be left.
fn concat_kdf(
    shared: &[u8],
    algorithm: &[u8],
    apu: &[u8],
    apv: &[u8],
    bits: u32,
) -> Zeroizing<[u8; 32]> {
    let mut hasher = Sha256::new();
    hasher.update(1_u32.to_be_bytes());
    hasher.update(shared);
    for piece in [algorithm, apu, apv] {
        // Each is a constant of a few bytes.
        hasher.update(u32::try_from(piece.len()).unwrap_or(u32::MAX).to_be_bytes());
        hasher.update(piece);
    }
    hasher.update(bits.to_be_bytes());
    Zeroizing::new(hasher.finalize().into())
}

fn cipher(key: &[u8; 32]) -> Aes256Gcm {
    Aes256Gcm::new(&Key::<Aes256Gcm>::from(*key))
}

fn encode(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64_URL_SAFE_NO_PAD.decode(text).ok()
}

#[cfg(test)]
mod tests;
