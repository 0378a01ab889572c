//! Named signing keys: their versions are private keys on the token, known here by their ids and
//! public halves.
//!
//! `make.rs` changes them, `record.rs` is what the store holds of them, `public.rs` checks
//! signatures and shows public halves, `keeper.rs` walks each through its [`crate::lifecycle`].

mod keeper;
mod make;
mod public;
mod record;
#[cfg(test)]
mod tests;

pub(super) use keeper::Keeper;
pub use keeper::{KeyHealth, Transition};
pub(super) use make::check_options;
pub use public::Jwk;
pub(super) use record::load;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use strongroom_hsm::{Digest, Hsm, HsmError, SignItem, Signature, SigningKey, SigningKind};
use zeroize::Zeroizing;

use super::named::NamedKey;
use super::types::PublicInfo;
use super::{
    Algorithm, KeyInfo, KeyName, KeyType, Keyring, KeyringError, PerItem, Purpose, Refusal,
    VersionInfo,
};
use crate::lifecycle::Versions;
use public::{PublicKey, digest, digest_info};
use record::Settings;

/// RSA-4096: bytes of a signature.
const RSA_SIGNATURE_BYTES: usize = 512;

/// How a signature is made or checked.
#[derive(Clone, Copy, Debug)]
pub struct SignOptions {
    /// Of the input; `None`: the input is a `DigestInfo` already (RSA with PKCS #1 v1.5 only).
    /// Ed25519 has a hash of its own and takes no other.
    pub hash: Option<Algorithm>,
    /// The input is a digest.
    pub prehashed: bool,
    /// For RSA keys.
    pub rsa: RsaScheme,
    /// For ECDSA keys.
    pub marshaling: Marshaling,
}

impl Default for SignOptions {
    fn default() -> Self {
        Self {
            hash: Some(Algorithm::Sha2_256),
            prehashed: false,
            rsa: RsaScheme::Pss(SaltLength::Auto),
            marshaling: Marshaling::Asn1,
        }
    }
}

/// Vault's `signature_algorithm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RsaScheme {
    /// RSASSA-PSS (RFC 8017, 8.1); MGF1 with the same hash.
    Pss(SaltLength),
    /// RSASSA-PKCS1-v1_5 (RFC 8017, 8.2).
    Pkcs1v15,
}

/// Vault's `salt_length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaltLength {
    /// As long as fits when signing, any when verifying.
    Auto,
    /// As long as the hash.
    Hash,
    /// Bytes.
    Bytes(u16),
}

/// Vault's `marshaling_algorithm`: how r and s of an ECDSA signature are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marshaling {
    /// ASN.1, DER (RFC 3279).
    Asn1,
    /// r || s, 32 bytes each (RFC 7518, 3.4).
    Jws,
}

/// A signature and the version that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeSignature {
    /// The key version.
    pub version: u32,
    /// The signature.
    pub bytes: Vec<u8>,
}

/// Which key and version a token is to be signed with, as its header names them.
#[derive(Clone, Debug)]
pub struct JwtSigner {
    /// The key version.
    pub version: u32,
    /// `alg`: ES256, PS256 or `EdDSA`.
    pub algorithm: &'static str,
    /// `kid`: the public key's thumbprint (RFC 7638).
    pub kid: String,
}

/// A named signing key at one moment; a change makes a new one that shares the versions.
#[derive(Clone)]
pub(super) struct SignatureKey {
    pub(super) name: KeyName,
    settings: Settings,
    versions: BTreeMap<u32, Arc<Version>>,
}

/// One version.
struct Version {
    number: u32,
    /// Seconds since 1970, UTC.
    created: i64,
    key: Arc<SigningKey>,
    public: PublicKey,
}

impl Keyring {
    /// One signature of each input by the version that was asked for, else by the one that signs
    /// now.
    ///
    /// # Errors
    /// [`KeyringError::Refused`] for a key, version or option that can't be;
    /// [`KeyringError::NotFound`], [`KeyringError::Hsm`].
    pub async fn sign(
        &self,
        name: KeyName<&str>,
        version: Option<u32>,
        options: &SignOptions,
        inputs: Vec<Zeroizing<Vec<u8>>>,
    ) -> PerItem<MadeSignature> {
        let key = self.inner.signing_key(name.as_str(), Purpose::Sign)?;
        let version = key.signing(version)?;
        make_signatures(&self.inner.hsm, &version, options, inputs).await
    }

    /// Whether each signature is the input's: (input, version, signature). Checked in this process,
    /// with the public half that the store authenticates: it works with the token away.
    ///
    /// # Errors
    /// As [`Keyring::sign`]; per item for a version that can't be.
    pub fn verify_signatures(
        &self,
        name: KeyName<&str>,
        options: &SignOptions,
        inputs: &[(Zeroizing<Vec<u8>>, MadeSignature)],
    ) -> PerItem<bool> {
        let key = self
            .inner
            .signing_key(name.as_str(), Purpose::VerifySignature)?;
        let check = |(input, made): &(Zeroizing<Vec<u8>>, MadeSignature)| {
            let version = key.verifying(made.version)?;
            version.public.verify(*options, input, &made.bytes)
        };
        Ok(inputs.iter().map(check).collect())
    }

    /// The version that signs tokens now, and what their header says of it.
    ///
    /// # Errors
    /// [`KeyringError::NotFound`], [`KeyringError::Refused`] for a key that does not sign.
    pub fn jwt_signer(&self, name: KeyName<&str>) -> Result<JwtSigner, KeyringError> {
        let version = self
            .inner
            .signing_key(name.as_str(), Purpose::Sign)?
            .signing(None)?;
        Ok(JwtSigner {
            version: version.number,
            algorithm: version.public.jose_algorithm(),
            kid: version.public.thumbprint(),
        })
    }

    /// The signature of a token's first two parts (RFC 7515, 5.1), by the version that
    /// [`Keyring::jwt_signer`] named.
    ///
    /// # Errors
    /// As [`Keyring::sign`].
    pub async fn sign_jwt(
        &self,
        name: KeyName<&str>,
        signer: &JwtSigner,
        input: Zeroizing<Vec<u8>>,
    ) -> Result<Vec<u8>, KeyringError> {
        let version = self
            .inner
            .signing_key(name.as_str(), Purpose::Sign)?
            .unarchived(signer.version)?;
        let options = SignOptions {
            rsa: RsaScheme::Pss(SaltLength::Hash),
            marshaling: Marshaling::Jws,
            ..SignOptions::default()
        };
        let made = make_signatures(&self.inner.hsm, &version, &options, vec![input]).await?;
        let made = made.into_iter().next();
        Ok(made
            .ok_or_else(|| KeyringError::System("no answer for an item".to_owned()))??
            .bytes)
    }

    /// The public keys that tokens of these keys are checked with: every version that signs, is
    /// about to, or has signed a token that may still be valid. Keys that are not there are
    /// left out.
    pub fn jwks(&self, names: &[KeyName]) -> Vec<Jwk> {
        let keys = self.inner.keys.load();
        let keys = names.iter().filter_map(|name| keys.get(name)?.signing());
        let published = keys.flat_map(|key| {
            let first = key
                .settings
                .published_version
                .max(key.settings.min_decryption_version);
            key.versions.range(first..)
        });
        published.map(|(_, version)| version.public.jwk()).collect()
    }
}

impl super::Inner {
    /// A signing key, asked for that purpose.
    fn signing_key(&self, name: &str, purpose: Purpose) -> Result<Arc<SignatureKey>, KeyringError> {
        match self.keys.load().get(name) {
            Some(NamedKey::Signing(key)) => Ok(Arc::clone(key)),
            Some(NamedKey::Encryption(_)) => Err(Refusal::WrongType {
                key_type: KeyType::Aes256Gcm96,
                purpose,
            }
            .into()),
            None => Err(KeyringError::NotFound),
        }
    }
}

impl SignatureKey {
    pub(super) fn kind(&self) -> SigningKind {
        self.settings.kind()
    }

    /// How many versions it has.
    pub(super) fn count(&self) -> usize {
        self.versions.len()
    }

    pub(super) fn info(&self) -> KeyInfo {
        let settings = &self.settings;
        KeyInfo {
            name: self.name.to_string(),
            key_type: KeyType::Signing(settings.kind()),
            residency: super::Residency::Hsm,
            derived: false,
            convergent: false,
            kdf: super::Kdf::default(),
            imported: false,
            allow_rotation: false,
            deletion_allowed: settings.deletion_allowed,
            auto_rotate_period: Duration::from_secs(settings.auto_rotate_period),
            min_available_version: settings.min_available_version,
            min_decryption_version: settings.min_decryption_version,
            min_encryption_version: settings.min_encryption_version,
            latest_version: settings.latest_version,
            signing_version: settings.signing_version,
            published_version: settings.published_version,
            versions: self
                .versions
                .values()
                .map(|version| VersionInfo {
                    version: version.number,
                    created: version.created,
                    public: Some(PublicInfo {
                        pem: super::spki_pem(&version.key.spki),
                        raw: version.public.ed25519().map(|key| key.to_vec()),
                        kid: version.public.thumbprint(),
                    }),
                })
                .collect(),
        }
    }

    fn versions(&self) -> Versions {
        Versions {
            published: self.settings.published_version,
            signing: self.settings.signing_version,
            latest: self.settings.latest_version,
        }
    }

    /// The version to sign with; `None` and 0 ask for the one that signs now.
    fn signing(&self, asked: Option<u32>) -> Result<Arc<Version>, Refusal> {
        let settings = &self.settings;
        match asked.unwrap_or(0) {
            0 => self.unarchived(settings.signing_version),
            number if number > settings.latest_version => Err(self.rules().too_new(Purpose::Sign)),
            number if number > settings.signing_version => Err(Refusal::VersionNotSigning {
                asked: number,
                signing: settings.signing_version,
            }),
            number if number < settings.min_encryption_version => {
                Err(Refusal::VersionTooOld(Purpose::Sign))
            }
            number => self.unarchived(number),
        }
    }

    fn verifying(&self, asked: u32) -> Result<Arc<Version>, Refusal> {
        self.rules()
            .usable(&self.versions, asked, Purpose::VerifySignature)
    }

    /// The version of that number, if it is not out of use.
    fn unarchived(&self, number: u32) -> Result<Arc<Version>, Refusal> {
        self.rules().unarchived(&self.versions, number)
    }
}

async fn make_signatures(
    hsm: &Hsm,
    version: &Version,
    options: &SignOptions,
    inputs: Vec<Zeroizing<Vec<u8>>>,
) -> PerItem<MadeSignature> {
    let mut results = Vec::with_capacity(inputs.len());
    let mut places = Vec::with_capacity(inputs.len());
    let mut items = Vec::with_capacity(inputs.len());
    for (index, input) in inputs.into_iter().enumerate() {
        match sign_item(version, *options, input) {
            Ok(item) => {
                places.push(index);
                items.push(item);
            }
            Err(refusal) => results.push((index, Err(refusal.into()))),
        }
    }
    if !items.is_empty() {
        let made = hsm.sign_with(items).await?;
        results.extend(places.into_iter().zip(made).map(|(index, made)| {
            let made = made
                .map_err(KeyringError::from)
                .and_then(|bytes| marshal(version, *options, bytes));
            (index, made)
        }));
    }
    Ok(super::encrypt::in_order(results))
}

/// What the token is to sign.
fn sign_item(
    version: &Version,
    options: SignOptions,
    input: Zeroizing<Vec<u8>>,
) -> Result<SignItem, Refusal> {
    let (signature, data) = match version.key.kind {
        SigningKind::Ed25519 => {
            public::refuse_prehashed(options)?;
            (Signature::Ed25519, input)
        }
        SigningKind::EcdsaP256 => {
            let (_, mut digest) = digest(options, &input)?;
            // FIPS 186-5, 6.4.1: the leftmost 256 bits.
            digest.truncate(32);
            (Signature::Ecdsa, digest)
        }
        SigningKind::Rsa4096 => match options.rsa {
            RsaScheme::Pkcs1v15 => (Signature::Pkcs1v15, digest_info(options, &input)?),
            RsaScheme::Pss(salt) => {
                let (hash, digest) = digest(options, &input)?;
                let salt = salt_bytes(salt, digest.len())?;
                let digest_name = match hash {
                    Algorithm::Sha2_224 => Digest::Sha224,
                    Algorithm::Sha2_256 => Digest::Sha256,
                    Algorithm::Sha2_384 => Digest::Sha384,
                    Algorithm::Sha2_512 => Digest::Sha512,
                    _ => return Err(Refusal::HashForRsa),
                };
                let signature = Signature::Pss {
                    digest: digest_name,
                    salt,
                };
                (signature, digest)
            }
        },
    };
    Ok(SignItem {
        key: Arc::clone(&version.key),
        signature,
        data,
    })
}

/// RFC 8017, 9.1.1: hash, salt and two bytes fit into the encoded message.
fn salt_bytes(salt: SaltLength, hash: usize) -> Result<u16, Refusal> {
    let most = u16::try_from(RSA_SIGNATURE_BYTES - hash - 2).unwrap_or(0);
    match salt {
        SaltLength::Auto => Ok(most),
        // No hash is longer than 64 bytes.
        SaltLength::Hash => Ok(u16::try_from(hash).unwrap_or(most)),
        SaltLength::Bytes(bytes) if bytes <= most => Ok(bytes),
        SaltLength::Bytes(bytes) => Err(Refusal::SaltTooLong { asked: bytes, most }),
    }
}

fn marshal(
    version: &Version,
    options: SignOptions,
    bytes: Vec<u8>,
) -> Result<MadeSignature, KeyringError> {
    let ecdsa = version.key.kind == SigningKind::EcdsaP256;
    let bytes = if ecdsa && options.marshaling == Marshaling::Asn1 {
        let signature = p256::ecdsa::Signature::from_slice(&bytes).map_err(|_| {
            KeyringError::Hsm(HsmError::SelfTest("ECDSA with a signing key".to_owned()))
        })?;
        signature.to_der().as_bytes().to_vec()
    } else {
        bytes
    };
    Ok(MadeSignature {
        version: version.number,
        bytes,
    })
}
