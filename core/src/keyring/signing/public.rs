//! Public halves: checking signatures in this process, and showing keys as PEM and as JWKs.

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use p256::pkcs8::DecodePublicKey;
use rsa::traits::PublicKeyParts as _;
use serde::Serialize;
use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};
use strongroom_hsm::{SigningKey, SigningKind};
use zeroize::Zeroizing;

use super::{Algorithm, KeyringError, Marshaling, Refusal, RsaScheme, SaltLength, SignOptions};

/// `SubjectPublicKeyInfo` of an Ed25519 key, up to the 32 bytes of the key itself (RFC 8410).
const ED25519_SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// RFC 8017, 9.2, note 1: what stands before the digest in a `DigestInfo`, but for its last five
/// bytes and the two lengths, is alike for SHA-2.
const SHA2_OID_PREFIX: [u8; 10] = [0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02];

/// A public key, ready for use.
pub(super) enum PublicKey {
    EcdsaP256(p256::ecdsa::VerifyingKey),
    Rsa4096(rsa::PublicKey),
    Ed25519([u8; 32]),
}

/// A public key as JSON (RFC 7517; RFC 7518, 6; RFC 8037). `kid` is the thumbprint of RFC 7638.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Jwk {
    kty: &'static str,
    r#use: &'static str,
    alg: &'static str,
    /// Names the key in a token's header.
    pub kid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    crv: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    y: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    e: Option<String>,
}

impl PublicKey {
    /// `None`: the bytes are no key of that kind.
    pub(super) fn read(key: &SigningKey) -> Option<Self> {
        Some(match key.kind {
            SigningKind::EcdsaP256 => {
                Self::EcdsaP256(p256::ecdsa::VerifyingKey::from_public_key_der(&key.spki).ok()?)
            }
            SigningKind::Rsa4096 => {
                let key = rsa::PublicKey::from_public_key_der(&key.spki).ok()?;
                (key.size() == super::RSA_SIGNATURE_BYTES).then_some(Self::Rsa4096(key))?
            }
            SigningKind::Ed25519 => Self::Ed25519(
                key.spki
                    .strip_prefix(&ED25519_SPKI_PREFIX)?
                    .try_into()
                    .ok()?,
            ),
        })
    }

    /// Whether the signature is the input's. A signature of another length or form is not.
    pub(super) fn verify(
        &self,
        options: SignOptions,
        input: &[u8],
        signature: &[u8],
    ) -> Result<bool, KeyringError> {
        match self {
            Self::Ed25519(key) => {
                refuse_prehashed(options)?;
                let key = UnparsedPublicKey::new(&ED25519, key);
                Ok(key.verify(input, signature).is_ok())
            }
            Self::EcdsaP256(key) => {
                let (_, digest) = digest(options, input)?;
                let signature = match options.marshaling {
                    Marshaling::Asn1 => p256::ecdsa::Signature::from_der(signature),
                    Marshaling::Jws => p256::ecdsa::Signature::from_slice(signature),
                };
                Ok(
                    signature
                        .is_ok_and(|signature| key.verify_prehash(&digest, &signature).is_ok()),
                )
            }
            Self::Rsa4096(key) => match options.rsa {
                RsaScheme::Pkcs1v15 => {
                    let info = digest_info(options, input)?;
                    let key = rsa::pkcs1v15::VerifyingKey::<Sha256>::new_unprefixed(key.clone());
                    let signature = rsa::pkcs1v15::Signature::try_from(signature);
                    Ok(signature
                        .is_ok_and(|signature| key.verify_prehash(&info, &signature).is_ok()))
                }
                RsaScheme::Pss(salt) => {
                    let (hash, digest) = digest(options, input)?;
                    match hash {
                        Algorithm::Sha2_224 => verify_pss::<Sha224>(key, salt, &digest, signature),
                        Algorithm::Sha2_256 => verify_pss::<Sha256>(key, salt, &digest, signature),
                        Algorithm::Sha2_384 => verify_pss::<Sha384>(key, salt, &digest, signature),
                        Algorithm::Sha2_512 => verify_pss::<Sha512>(key, salt, &digest, signature),
                        _ => Err(Refusal::HashForRsa.into()),
                    }
                }
            },
        }
    }

    /// The 32 bytes of an Ed25519 key.
    pub(super) fn ed25519(&self) -> Option<&[u8; 32]> {
        match self {
            Self::Ed25519(key) => Some(key),
            _ => None,
        }
    }

    /// RFC 7518, 3.1, and RFC 8037, 3.1.
    pub(super) fn jose_algorithm(&self) -> &'static str {
        match self {
            Self::EcdsaP256(_) => "ES256",
            Self::Rsa4096(_) => "PS256",
            Self::Ed25519(_) => "EdDSA",
        }
    }

    /// RFC 7638: SHA-256 of the required members in the order of their names, without spaces.
    pub(super) fn thumbprint(&self) -> String {
        self.jwk().kid
    }

    pub(super) fn jwk(&self) -> Jwk {
        let mut jwk = Jwk {
            kty: "",
            r#use: "sig",
            alg: self.jose_algorithm(),
            kid: String::new(),
            crv: None,
            x: None,
            y: None,
            n: None,
            e: None,
        };
        let canonical = match self {
            Self::EcdsaP256(key) => {
                let point = key.to_sec1_point(false);
                let coordinate = |bytes: Option<&[u8]>| encode(bytes.unwrap_or_default());
                let (x, y) = (
                    coordinate(point.x().map(|x| &**x)),
                    coordinate(point.y().map(|y| &**y)),
                );
                let text = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
                (jwk.kty, jwk.crv, jwk.x, jwk.y) = ("EC", Some("P-256"), Some(x), Some(y));
                text
            }
            Self::Rsa4096(key) => {
                let (n, e) = (
                    encode(&key.n().to_be_bytes_trimmed_vartime()),
                    encode(&key.e().to_be_bytes_trimmed_vartime()),
                );
                let text = format!(r#"{{"e":"{e}","kty":"RSA","n":"{n}"}}"#);
                (jwk.kty, jwk.n, jwk.e) = ("RSA", Some(n), Some(e));
                text
            }
            Self::Ed25519(key) => {
                let x = encode(key);
                let text = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
                (jwk.kty, jwk.crv, jwk.x) = ("OKP", Some("Ed25519"), Some(x));
                text
            }
        };
        jwk.kid = encode(&Sha256::digest(canonical));
        jwk
    }
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn verify_pss<D>(
    key: &rsa::PublicKey,
    salt: SaltLength,
    digest: &[u8],
    signature: &[u8],
) -> Result<bool, KeyringError>
where
    D: sha2::Digest + sha2::digest::FixedOutputReset,
{
    let salt = match salt {
        SaltLength::Auto => None,
        other => Some(super::salt_bytes(other, digest.len())?),
    };
    let key = match salt {
        None => rsa::pss::VerifyingKey::<D>::new_with_auto_salt_len(key.clone()),
        Some(salt) => rsa::pss::VerifyingKey::<D>::new_with_salt_len(key.clone(), salt.into()),
    };
    let signature = rsa::pss::Signature::try_from(signature);
    Ok(signature.is_ok_and(|signature| key.verify_prehash(digest, &signature).is_ok()))
}

/// The input's hash: made here, or handed in.
pub(super) fn digest(
    options: SignOptions,
    input: &[u8],
) -> Result<(Algorithm, Zeroizing<Vec<u8>>), Refusal> {
    let hash = options.hash.ok_or(Refusal::HashMissing)?;
    if !options.prehashed {
        return Ok((hash, hash.digest(input).into()));
    }
    let wanted = hash.digest(b"").len();
    if input.len() == wanted {
        Ok((hash, Zeroizing::new(input.to_vec())))
    } else {
        Err(Refusal::DigestLength {
            given: input.len(),
            wanted,
        })
    }
}

/// The `DigestInfo` that RSASSA-PKCS1-v1_5 signs.
pub(super) fn digest_info(
    options: SignOptions,
    input: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    if options.hash.is_none() {
        // RFC 8017, 9.2: eleven bytes of padding at least.
        return if options.prehashed && input.len() <= super::RSA_SIGNATURE_BYTES - 11 {
            Ok(Zeroizing::new(input.to_vec()))
        } else {
            Err(Refusal::DigestInfo)
        };
    }
    let (hash, digest) = digest(options, input)?;
    let (length, last) = match hash {
        Algorithm::Sha2_256 => (32, 1),
        Algorithm::Sha2_384 => (48, 2),
        Algorithm::Sha2_512 => (64, 3),
        Algorithm::Sha2_224 => (28, 4),
        _ => return Err(Refusal::HashForRsa),
    };
    let mut info = vec![0x30, 17 + length, 0x30, 0x0d];
    info.extend_from_slice(&SHA2_OID_PREFIX);
    info.extend_from_slice(&[last, 0x05, 0x00, 0x04, length]);
    info.extend_from_slice(&digest);
    Ok(Zeroizing::new(info))
}

/// Ed25519 hashes its message itself; Ed25519ph, which takes a digest, is another scheme.
pub(super) fn refuse_prehashed(options: SignOptions) -> Result<(), Refusal> {
    if options.prehashed {
        Err(Refusal::DigestForEd25519)
    } else {
        Ok(())
    }
}
