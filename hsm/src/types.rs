//! What callers hand to the token and get from it.

use std::fmt;
use std::sync::Arc;
use zeroize::Zeroizing;

/// The hash of RSA-OAEP (both the label hash and MGF1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OaepHash {
    /// SHA-1: all that `SoftHSM` 2.6 offers. OAEP's security does not rest on collision resistance.
    Sha1,
    /// SHA-256.
    Sha256,
}

/// The hash of an HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HashAlgorithm {
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// What an unwrapped key may do; one purpose per key (SP 800-57 part 1, 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyUsage {
    /// AES-256, `CKA_ENCRYPT` and `CKA_DECRYPT`.
    Aead,
    /// 256-bit generic secret, `CKA_SIGN` and `CKA_VERIFY`.
    Mac,
}

/// Which master key wraps a KEK, and so where its plaintext may exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MasterKind {
    /// Unwrap-only: the KEK exists in the token only.
    Hsm,
    /// Decrypt-only: the KEK is used in locked host memory.
    Memory,
}

/// A KEK as it is kept: wrapped by a master key, with all that is needed to unwrap it again.
#[derive(Clone, PartialEq, Eq)]
pub struct WrappedKey {
    /// Random, unique; names the key in session-object caches.
    pub id: [u8; 16],
    /// What it may do once unwrapped.
    pub usage: KeyUsage,
    /// The master key that wraps it.
    pub master: MasterKind,
    /// First 16 bytes of SHA-256 over the master's `SubjectPublicKeyInfo`: tells masters apart
    /// after a rotation.
    pub master_fingerprint: [u8; 16],
    /// The OAEP hash it was wrapped with.
    pub oaep: OaepHash,
    /// RSA-OAEP ciphertext, 512 bytes for RSA-4096.
    pub blob: Vec<u8>,
    /// The same key wrapped by the transfer key, through which it can be moved to another master
    /// key. `None`: it was made without, or it is of [`MasterKind::Memory`], which needs none.
    pub transfer: Option<TransferBlob>,
}

/// A KEK wrapped by the transfer key, with the OAEP hash of its [`WrappedKey`].
#[derive(Clone, PartialEq, Eq)]
pub struct TransferBlob {
    /// First 16 bytes of SHA-256 over the transfer key's `SubjectPublicKeyInfo`.
    pub fingerprint: [u8; 16],
    /// RSA-OAEP ciphertext, 512 bytes for RSA-4096.
    pub blob: Vec<u8>,
}

/// One generation of the keys that a rotation replaces, as the token has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasterGeneration {
    /// From 1.
    pub number: u32,
    /// SHA-256 of the master key's `SubjectPublicKeyInfo`; a [`WrappedKey::master_fingerprint`] is
    /// its first half.
    pub master: [u8; 32],
    /// The same of the memory master key, if there is one.
    pub memory_master: Option<[u8; 32]>,
    /// The same of the transfer key, if there is one.
    pub transfer: Option<[u8; 32]>,
    /// The security officer has marked its public keys: KEKs may be moved to it.
    pub trusted: bool,
    /// It wraps new KEKs. One generation does.
    pub in_force: bool,
}

impl MasterGeneration {
    /// Whether it is the same keys, whatever their standing.
    pub(crate) fn same_keys(&self, other: &Self) -> bool {
        let keys = |one: &Self| (one.number, one.master, one.memory_master, one.transfer);
        keys(self) == keys(other)
    }
}

impl fmt::Debug for WrappedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WrappedKey")
            .field("usage", &self.usage)
            .field("master", &self.master)
            .finish_non_exhaustive()
    }
}

/// One AES-GCM operation of a batch.
pub struct GcmItem {
    /// The key, of usage [`KeyUsage::Aead`].
    pub key: Arc<WrappedKey>,
    /// 96-bit nonce.
    pub iv: [u8; 12],
    /// Additional authenticated data, may be empty.
    pub aad: Vec<u8>,
    /// Plaintext, or ciphertext || tag.
    pub data: Zeroizing<Vec<u8>>,
}

/// One HMAC of a batch.
pub struct MacItem {
    /// The key, of usage [`KeyUsage::Mac`].
    pub key: Arc<WrappedKey>,
    /// The hash.
    pub hash: HashAlgorithm,
    /// The message.
    pub data: Zeroizing<Vec<u8>>,
}

/// A kind of signing key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SigningKind {
    /// ECDSA on P-256 (FIPS 186-5).
    EcdsaP256,
    /// RSA of 4096 bits: PSS and PKCS #1 v1.5 (RFC 8017).
    Rsa4096,
    /// Ed25519 (RFC 8032).
    Ed25519,
}

impl SigningKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::EcdsaP256, Self::Rsa4096, Self::Ed25519];

    /// Vault's name for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EcdsaP256 => "ecdsa-p256",
            Self::Rsa4096 => "rsa-4096",
            Self::Ed25519 => "ed25519",
        }
    }
}

/// A signing key as it is kept. The private half is a token object that never leaves the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningKey {
    /// `CKA_ID` of the private half.
    pub id: [u8; 16],
    /// What it signs.
    pub kind: SigningKind,
    /// The public half, `SubjectPublicKeyInfo`, DER.
    pub spki: Vec<u8>,
}

/// The hash of an RSA-PSS signature (both of the message and of MGF1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Digest {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// How a signature is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    /// ECDSA of a digest: r || s.
    Ecdsa,
    /// RSASSA-PSS of a digest.
    Pss {
        /// The digest's hash.
        digest: Digest,
        /// Bytes of salt.
        salt: u16,
    },
    /// RSASSA-PKCS1-v1_5 of a `DigestInfo`, DER.
    Pkcs1v15,
    /// Ed25519 of a message.
    Ed25519,
}

/// One signature of a batch.
pub struct SignItem {
    /// The key.
    pub key: Arc<SigningKey>,
    /// How.
    pub signature: Signature,
    /// Digest, `DigestInfo` or message, as `signature` says.
    pub data: Zeroizing<Vec<u8>>,
}

/// What the token's mechanism list allowed; chosen once at start, printed, recorded in wrapped
/// keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// For wrapping new keys: SHA-256 where the token offers it, else SHA-1.
    pub oaep: OaepHash,
    /// Every OAEP hash the token accepts.
    pub oaep_accepted: Vec<OaepHash>,
    /// `CKM_AES_KEY_WRAP_PAD` / `CKM_AES_KEY_WRAP_KWP` (RFC 5649): BYOK is possible.
    pub aes_kwp: bool,
    /// HMAC hashes on offer.
    pub hmac: Vec<HashAlgorithm>,
    /// The second master key is there: `memory` residency is possible.
    pub memory_master: bool,
    /// The transfer key is there: new KEKs can be moved to another master key later.
    pub transfer: bool,
    /// Kinds of signing keys whose mechanisms are all on the token's list.
    pub signing: Vec<SigningKind>,
}

/// Which token answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenIdentity {
    /// `CK_TOKEN_INFO.label`, trimmed.
    pub label: String,
    /// `CK_TOKEN_INFO.serialNumber`, trimmed.
    pub serial: String,
    /// `CK_TOKEN_INFO.manufacturerID`, trimmed.
    pub manufacturer: String,
    /// `CK_TOKEN_INFO.model`, trimmed.
    pub model: String,
}

/// The pool's state as health checks report it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HsmState {
    /// Serving.
    Ready,
    /// The token was lost; it is being tried again with backoff.
    Reconnecting {
        /// Why, for the operator.
        reason: String,
    },
    /// Stopped for good (wrong PIN, a key whose attributes changed and stayed so): a restart by a
    /// person is needed.
    Stopped {
        /// Why, for the operator.
        reason: String,
    },
}
