//! What can go wrong with keys, as facts: whoever speaks to clients has the words for them.

use strongroom_hsm::{HsmError, SigningKind};

use super::KeyType;
use crate::audit::AuditError;
use crate::store::StoreError;

/// What can go wrong with keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// No such key.
    #[error("no such key")]
    NotFound,
    /// `import` of a name that exists.
    #[error("there is a key named {0} already")]
    Exists(String),
    /// The request can't be met as it stands.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Does not authenticate: altered, or another key, context or associated data.
    #[error(
        "the ciphertext does not authenticate: it was altered, or made with another key, context or associated data"
    )]
    Decrypt,
    /// 2^32 random-nonce encryptions are reached (NIST SP 800-38D) and automatic rotation is off.
    #[error(
        "this key version has made as many encryptions as are safe with random nonces (2^32, NIST SP 800-38D): rotate the key"
    )]
    Exhausted,
    /// How many encryptions the version has made is not known, since its store was accepted from
    /// elsewhere.
    #[error(
        "this key version encrypts no more: its store was restored or accepted after a rollback, so that its number of encryptions with random nonces is not known (NIST SP 800-38D); use the latest version, or, if that is it, rotate the key, or import a new version of a key that may not be rotated"
    )]
    Fenced,
    /// A key is wrapped by a master key that is not on the token.
    #[error(
        "version {version} of the key {name:?} is wrapped by the master key {wanted}, but the token holds {here}: the store is from before a \
         rotation of the master key, which destroyed that one, or from another token. Restore a backup of the store that was made after the rotation"
    )]
    OtherMaster {
        /// The key.
        name: String,
        /// Its version.
        version: u32,
        /// The master key's fingerprint, hexadecimal.
        wanted: String,
        /// Those of the token's.
        here: String,
    },
    /// The operating system refused random bytes, locked memory, or a task.
    #[error("{0}")]
    System(String),
    /// The token.
    #[error(transparent)]
    Hsm(#[from] HsmError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The change can't be recorded, so it was not begun.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

/// What a version was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Purpose {
    Encrypt,
    Decrypt,
    Hmac,
    VerifyHmac,
    Sign,
    VerifySignature,
}

impl std::fmt::Display for Purpose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Encrypt => "encryption",
            Self::Decrypt => "decryption",
            Self::Hmac => "HMACs",
            Self::VerifyHmac => "the verification of HMACs",
            Self::Sign => "signing",
            Self::VerifySignature => "verification",
        })
    }
}

/// Why a request can't be met as it stands: its own fault, which the client can mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A convergent key is derived.
    #[error("a convergent key must be derived")]
    ConvergentNotDerived,
    /// Signing keys are not derived.
    #[error("a key of type {} is neither derived nor convergent", .0.name())]
    NoDerivation(SigningKind),
    /// A signing key in `memory` residency.
    #[error("a signing key never leaves the token: use residency hsm, or leave it out")]
    SigningInMemory,
    /// `memory` residency in FIPS mode.
    #[error("memory residency is refused in FIPS mode: use residency hsm")]
    MemoryInFips,
    /// `memory` residency on a token without a second master key.
    #[error(
        "memory residency needs a second master key, which this token does not hold, and which is only made with all its other keys: use residency hsm"
    )]
    NoMemoryMaster,
    /// Between zero and an hour.
    #[error("a period of rotation is an hour at least, or none")]
    PeriodTooShort,
    /// A period for an imported key that may not be rotated.
    #[error("an imported key that may not be rotated can't have a period of rotation")]
    PeriodWithoutRotation,
    /// The key was imported and is not to be rotated.
    #[error("the key {0} was imported, and may not be rotated")]
    RotationNotAllowed(String),
    /// The key has had every number.
    #[error("this key has had 2^32-1 versions")]
    NoNumberLeft,
    /// A convergent key can't be imported.
    #[error("a convergent key can't be imported")]
    ImportConvergent,
    /// A version is imported for a key that was made in the token.
    #[error("a version can only be imported for a key that was imported")]
    NotImported,
    /// Shorter than its two parts.
    #[error("the wrapped key is too short")]
    ImportTooShort,
    /// One of its two parts can't be unwrapped.
    #[error("the wrapped key can't be unwrapped")]
    ImportUnwrap,
    /// It unwraps to no key that can be used, and why.
    #[error("the imported key is of no use: {0}")]
    ImportUnusable(String),
    /// What the token lacks for it.
    #[error("this token can't import that: it does not support {0}")]
    ImportUnsupported(String),
    /// A new minimum of decryption above the latest version.
    #[error("version {asked} can't be the least that decrypts: the latest is {latest}")]
    MinDecryptionAboveLatest {
        /// The new minimum.
        asked: u32,
        /// The latest version.
        latest: u32,
    },
    /// A new minimum of encryption above the latest version.
    #[error("version {asked} can't be the least that encrypts: the latest is {latest}")]
    MinEncryptionAboveLatest {
        /// The new minimum.
        asked: u32,
        /// The latest version.
        latest: u32,
    },
    /// Versions would encrypt that don't decrypt.
    #[error("version {encryption} would encrypt, and the least that decrypts is {decryption}")]
    EncryptsBelowDecryption {
        /// The least that would encrypt.
        encryption: u32,
        /// The least that would decrypt.
        decryption: u32,
    },
    /// A new minimum of encryption below what is destroyed.
    #[error("the least version that encrypts can't be one that is destroyed")]
    MinEncryptionDestroyed,
    /// A new minimum of decryption below what is destroyed.
    #[error("the least version that decrypts can't be one that is destroyed")]
    MinDecryptionDestroyed,
    /// A new minimum above the version that signs.
    #[error(
        "cannot set a minimum version of {asked}: version {signing} signs, until version {asked} has been published long enough"
    )]
    MinAboveSigning {
        /// The new minimum.
        asked: u32,
        /// The version that signs.
        signing: u32,
    },
    /// Versions that are destroyed do not come back.
    #[error("versions that are destroyed do not come back")]
    TrimBackwards,
    /// The key has no minimum of encryption.
    #[error("versions can't be destroyed while any may be asked to encrypt")]
    TrimWithoutMinEncryption,
    /// Above the minimum of encryption.
    #[error("versions that encrypt can't be destroyed")]
    TrimEncrypting,
    /// Above the minimum of decryption.
    #[error("versions that decrypt can't be destroyed")]
    TrimDecrypting,
    /// Version 0.
    #[error("no version is below 1")]
    TrimZero,
    /// Above the oldest published version, which is this one.
    #[error(
        "minimum available version cannot be greater than {0}: tokens that this version signed may still be valid"
    )]
    TrimPublished(u32),
    /// The key's `deletion_allowed` is not set.
    #[error("the key {0} may not be deleted")]
    DeletionNotAllowed(String),
    /// Destroyed, or below what may be used.
    #[error("no such key version")]
    NoSuchVersion,
    /// Above the latest.
    #[error("there is no such version for {purpose} yet: the latest is {latest}")]
    VersionTooNew {
        /// What it was asked for.
        purpose: Purpose,
        /// The latest version.
        latest: u32,
    },
    /// Below the minimum of encryption or decryption.
    #[error("this version is too old for {0}")]
    VersionTooOld(Purpose),
    /// Published, and not in use yet.
    #[error(
        "version {asked} is published and does not sign yet, so that whoever keeps the public keys has it first; version {signing} signs"
    )]
    VersionNotSigning {
        /// What was asked for.
        asked: u32,
        /// The version that signs.
        signing: u32,
    },
    /// A derived key without a context.
    #[error("the key is derived: it needs a context")]
    ContextMissing,
    /// A context for a key that is not derived.
    #[error(
        "the key is not derived: it takes no context; leave it out, or bind the ciphertext to associated data"
    )]
    ContextUnwanted,
    /// Shorter than a nonce.
    #[error("the ciphertext is too short")]
    CiphertextTooShort,
    /// Longer than AES-GCM takes.
    #[error("the plaintext is too long for AES-GCM")]
    PlaintextTooLong,
    /// Neither 128, 256 nor 512 bits.
    #[error("a data key has 128, 256 or 512 bits")]
    DataKeyLength,
    /// The token lacks the hash.
    #[error("this token makes no HMAC with that hash")]
    HmacHash,
    /// The key does not do it.
    #[error("a key of type {} is not for {purpose}", key_type.as_str())]
    WrongType {
        /// What it is.
        key_type: KeyType,
        /// What it was asked for.
        purpose: Purpose,
    },
    /// The key signs and verifies, and nothing else.
    #[error("a key of type {} signs and verifies, and nothing else", .0.name())]
    OnlySigns(SigningKind),
    /// The token lacks what keys of that kind need.
    #[error(
        "this token makes no {} keys: its mechanism list lacks what they need; use another type, or another token",
        .0.name()
    )]
    KindUnsupported(SigningKind),
    /// Does not fit beside the hash (RFC 8017, 9.1.1).
    #[error("a salt of {asked} bytes is too long: at most {most} with this hash")]
    SaltTooLong {
        /// Bytes.
        asked: u16,
        /// Bytes.
        most: u16,
    },
    /// Nothing to hash with.
    #[error("only a digest info that PKCS #1 v1.5 signs goes without a hash")]
    HashMissing,
    /// A digest info that is none, or too long.
    #[error("a digest info comes hashed, and has at most 501 bytes")]
    DigestInfo,
    /// A digest that the hash does not make.
    #[error("the digest is {given} bytes long, but this hash makes {wanted}")]
    DigestLength {
        /// Bytes.
        given: usize,
        /// Bytes.
        wanted: usize,
    },
    /// Ed25519 hashes its message itself (RFC 8032).
    #[error("an Ed25519 key signs the message itself, not its digest")]
    DigestForEd25519,
    /// A hash that RSA is not used with here.
    #[error("RSA signatures are made with SHA-2 only")]
    HashForRsa,
}
