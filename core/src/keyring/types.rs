//! What the keyring is asked and what it answers.

use std::time::Duration;

use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};
use sha3::{Sha3_224, Sha3_256, Sha3_384, Sha3_512};
use strongroom_hsm::SigningKind;
use zeroize::Zeroizing;

use super::KeyName;
use crate::lifecycle::Limits;

/// Where a key is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Residency {
    /// In the token: the KEK's bytes are never in host memory.
    #[default]
    Hsm,
    /// In locked, zeroized host memory, dropped when idle.
    Memory,
}

/// How a derived key's data-encryption keys come from its version's key and the context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Kdf {
    /// HKDF-Expand with SHA-256 (RFC 5869, 2.3); the version's key is the pseudorandom key.
    #[default]
    #[serde(rename = "hkdf_sha256")]
    HkdfSha256,
    /// The KDF in counter mode with HMAC-SHA256 (NIST SP 800-108), one block: what Vault uses for
    /// imported keys.
    #[serde(rename = "hmac-sha256-counter")]
    HmacSha256Counter,
}

impl Kdf {
    /// Vault's name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HkdfSha256 => "hkdf_sha256",
            Self::HmacSha256Counter => "hmac-sha256-counter",
        }
    }
}

/// Options of a new key.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// What it is to be.
    pub key_type: KeyType,
    /// `None`: the keyring's default.
    pub residency: Option<Residency>,
    /// Each operation needs a context; keys are derived from it (HKDF-Expand, RFC 5869).
    pub derived: bool,
    /// Equal plaintexts give equal ciphertexts under one context; needs `derived`.
    pub convergent: bool,
    /// Zero: no automatic rotation.
    pub auto_rotate_period: Duration,
}

/// Options of an imported key.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// As for a new key.
    pub create: CreateOptions,
    /// Whether `rotate` may add versions made in the token.
    pub allow_rotation: bool,
}

/// Settings to change; `None` leaves one as it is.
#[derive(Clone, Debug, Default)]
pub struct ConfigChange {
    /// Versions below don't decrypt.
    pub min_decryption_version: Option<u32>,
    /// Versions below don't encrypt; 0: the latest only by default, any allowed.
    pub min_encryption_version: Option<u32>,
    /// Whether the key may be deleted.
    pub deletion_allowed: Option<bool>,
    /// Zero turns automatic rotation off; else at least one hour.
    pub auto_rotate_period: Option<Duration>,
}

/// What a key is, by Vault's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyType {
    /// Encrypts and authenticates.
    #[default]
    Aes256Gcm96,
    /// Signs.
    Signing(SigningKind),
}

/// Settings of tokens and of the keys that sign them.
#[derive(Clone, Debug)]
pub struct JwtOptions {
    /// The keys that sign tokens, whose public halves are published as one set: whoever trusts the
    /// set trusts each of them.
    pub keys: Vec<KeyName>,
    /// `iss` of each token; `None`: the client's own.
    pub issuer: Option<String>,
    /// `limits.overlap` is how long a token may be valid.
    pub limits: Limits,
}

impl Default for JwtOptions {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            issuer: None,
            limits: Limits {
                publish_before: Duration::from_mins(10),
                overlap: Duration::from_mins(15),
                cache: Duration::from_mins(5),
                key_max_age: Duration::from_hours(7 * 24),
            },
        }
    }
}

/// A key as `read` shows it.
#[derive(Clone, Debug)]
pub struct KeyInfo {
    /// Its name.
    pub name: String,
    /// What it is.
    pub key_type: KeyType,
    /// Where it is used.
    pub residency: Residency,
    /// Needs a context.
    pub derived: bool,
    /// Convergent.
    pub convergent: bool,
    /// How keys are derived, if `derived`.
    pub kdf: Kdf,
    /// Came in by BYOK, and not rotated in the token since.
    pub imported: bool,
    /// For imported keys: may be rotated.
    pub allow_rotation: bool,
    /// May be deleted.
    pub deletion_allowed: bool,
    /// Zero: none.
    pub auto_rotate_period: Duration,
    /// Versions below are destroyed; 0: none were.
    pub min_available_version: u32,
    /// Versions below don't decrypt.
    pub min_decryption_version: u32,
    /// Versions below don't encrypt; 0: no limit.
    pub min_encryption_version: u32,
    /// The newest.
    pub latest_version: u32,
    /// Of a signing key: the version that signs; 0 for other keys.
    pub signing_version: u32,
    /// Of a signing key: the oldest version in the published set of public keys; 0 for other keys.
    pub published_version: u32,
    /// The versions that exist, oldest first.
    pub versions: Vec<VersionInfo>,
}

/// One version as `read` shows it.
#[derive(Clone, Debug)]
pub struct VersionInfo {
    /// From 1.
    pub version: u32,
    /// Seconds since 1970, UTC.
    pub created: i64,
    /// Of a signing key.
    pub public: Option<PublicInfo>,
}

/// The public half of a version.
#[derive(Clone, Debug)]
pub struct PublicInfo {
    /// `SubjectPublicKeyInfo`, PEM.
    pub pem: String,
    /// Of an Ed25519 key: its 32 bytes.
    pub raw: Option<Vec<u8>>,
    /// Thumbprint (RFC 7638), base64url.
    pub kid: String,
}

/// One plaintext to encrypt.
#[derive(Default)]
pub struct EncryptItem {
    /// The plaintext.
    pub plaintext: Zeroizing<Vec<u8>>,
    /// Additional authenticated data.
    pub associated_data: Vec<u8>,
    /// For derived keys.
    pub context: Vec<u8>,
    /// `None`: the latest.
    pub key_version: Option<u32>,
}

/// One ciphertext to decrypt or rewrap.
pub struct DecryptItem {
    /// The ciphertext.
    pub ciphertext: Ciphertext,
    /// Additional authenticated data.
    pub associated_data: Vec<u8>,
    /// For derived keys.
    pub context: Vec<u8>,
}

/// What stands behind `vault:v<version>:` — nonce (12 bytes) || AES-256-GCM ciphertext || tag (16
/// bytes).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ciphertext {
    /// The key version.
    pub version: u32,
    /// nonce || ciphertext || tag.
    pub bytes: Vec<u8>,
}

/// A fresh data key.
pub struct DataKey {
    /// 16, 32 or 64 bytes.
    pub plaintext: Zeroizing<Vec<u8>>,
    /// The same, encrypted.
    pub ciphertext: Ciphertext,
}

/// One message to authenticate.
pub struct HmacInput {
    /// The message.
    pub input: Zeroizing<Vec<u8>>,
}

/// An HMAC and the version that made it.
pub struct HmacTag {
    /// The key version.
    pub version: u32,
    /// The tag, as long as the hash.
    pub tag: Vec<u8>,
}

/// Hashes, by Vault's names (`sha2-256`, ...).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Algorithm {
    Sha2_224,
    Sha2_256,
    Sha2_384,
    Sha2_512,
    Sha3_224,
    Sha3_256,
    Sha3_384,
    Sha3_512,
}

impl Algorithm {
    /// The hash of the input.
    pub fn digest(self, input: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha2_224 => Sha224::digest(input).to_vec(),
            Self::Sha2_256 => Sha256::digest(input).to_vec(),
            Self::Sha2_384 => Sha384::digest(input).to_vec(),
            Self::Sha2_512 => Sha512::digest(input).to_vec(),
            Self::Sha3_224 => Sha3_224::digest(input).to_vec(),
            Self::Sha3_256 => Sha3_256::digest(input).to_vec(),
            Self::Sha3_384 => Sha3_384::digest(input).to_vec(),
            Self::Sha3_512 => Sha3_512::digest(input).to_vec(),
        }
    }
}

/// Where random bytes come from (`source` of Vault's `random`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RandomSource {
    /// The kernel's generator.
    Platform,
    /// The token's generator.
    Seal,
    /// Both, `XORed`.
    All,
}
