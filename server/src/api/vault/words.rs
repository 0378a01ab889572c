//! Vault's words, and ours beside them, for what the keyring refuses: the keyring says what is the
//! matter, and nobody but this file how a client of Transit is told.

use std::borrow::Cow;

use strongroom_core::keyring::{KeyringError, Purpose, Refusal};
use strongroom_hsm::HsmError;

use super::error::Doing;

/// A period that the keyring does not take either.
pub(super) const PERIOD_TOO_SHORT: &str =
    "auto rotate period must be 0 to disable or at least an hour";
/// A period for an imported key that may not be rotated.
pub(super) const PERIOD_WITHOUT_ROTATION: &str =
    "allow_rotation must be set to true if auto-rotation is enabled";
/// A convergent key that is not derived.
pub(super) const CONVERGENT_NOT_DERIVED: &str =
    "convergent encryption requires derivation to be enabled";
/// A data key of another length than 128, 256 or 512 bits.
pub(super) const DATA_KEY_LENGTH: &str = "invalid bit length";
/// `trim` of a key that is not there.
pub(super) const TRIM_NO_KEY: &str = "invalid key name";
/// A version that is not there yet.
pub(super) const ENCRYPTION_TOO_NEW: &str =
    "requested version for encryption is higher than the latest key version";
/// A version below `min_decryption_version`.
pub(super) const DECRYPTION_TOO_OLD: &str =
    "ciphertext or signature version is disallowed by policy (too old)";
/// A digest info that is none.
const NEEDS_DIGEST_INFO: &str =
    "hash_algorithm=none requires both prehashed=true and signature_algorithm=pkcs1v15";
/// Go's words for a GCM tag that doesn't fit.
const AUTHENTICATION: &str = "cipher: message authentication failed";

/// Of a key that is not there: the same fact has other words in other places of Vault. `None`: in
/// that place it has none.
pub(super) fn not_found(doing: Doing, name: &str) -> Option<Cow<'static, str>> {
    Some(match doing {
        Doing::Read => return None,
        Doing::Configure => format!("no existing key named {name} could be found").into(),
        Doing::Rotate => "key not found".into(),
        Doing::Trim => TRIM_NO_KEY.into(),
        Doing::Delete => {
            format!("error deleting policy {name}: could not delete key; not found").into()
        }
        Doing::Import => {
            format!("no key found with name {name}; to import a new key, use the import/ endpoint")
                .into()
        }
        Doing::Sign => "signing key not found".into(),
        Doing::VerifySignature => "signature verification key not found".into(),
        Doing::Create
        | Doing::Encrypt
        | Doing::Decrypt
        | Doing::Hmac
        | Doing::VerifyHmac
        | Doing::Random => ENCRYPTION_KEY_NOT_FOUND.into(),
    })
}

const ENCRYPTION_KEY_NOT_FOUND: &str = "encryption key not found";

/// Of one item's error, or of a request that has one item.
pub(super) fn of_item(error: &KeyringError) -> Cow<'static, str> {
    match error {
        KeyringError::NotFound => ENCRYPTION_KEY_NOT_FOUND.into(),
        KeyringError::Exists(_) => {
            "the import path cannot be used with an existing key; use import-version to rotate an existing imported key".into()
        }
        KeyringError::Refused(refusal) => of_refusal(refusal),
        KeyringError::Decrypt | KeyringError::Hsm(HsmError::Authentication) => {
            AUTHENTICATION.into()
        }
        // Vault does not know these: in the keyring's own words.
        KeyringError::Exhausted
        | KeyringError::Fenced
        | KeyringError::OtherMaster { .. }
        | KeyringError::System(_)
        | KeyringError::Hsm(_)
        | KeyringError::Store(_)
        | KeyringError::Audit(_) => error.to_string().into(),
    }
}

#[allow(clippy::too_many_lines, reason = "a table of sentences")]
fn of_refusal(refusal: &Refusal) -> Cow<'static, str> {
    match refusal {
        // Making and importing keys.
        Refusal::ConvergentNotDerived => CONVERGENT_NOT_DERIVED.into(),
        Refusal::NoDerivation(kind) => format!(
            "key derivation and convergent encryption are not supported for keys of type {}",
            kind.name()
        )
        .into(),
        Refusal::PeriodTooShort => PERIOD_TOO_SHORT.into(),
        Refusal::PeriodWithoutRotation => PERIOD_WITHOUT_ROTATION.into(),
        Refusal::RotationNotAllowed(name) => {
            format!("imported key {name} does not allow rotation within Vault").into()
        }
        Refusal::ImportConvergent => {
            "import cannot be used on keys with convergent encryption enabled".into()
        }
        Refusal::NotImported => {
            "the import_version endpoint can only be used with an imported key".into()
        }
        Refusal::ImportTooShort => "provided ciphertext is too short".into(),
        Refusal::ImportUnwrap => {
            "crypto/rsa: decryption error: the ciphertext must be RSA-OAEP(AES-256 key) by the wrapping key, then AES-KWP(256-bit key)".into()
        }
        Refusal::ImportUnusable(why) => format!("error importing key: {why}").into(),
        // Changing and destroying them.
        Refusal::MinDecryptionAboveLatest { asked, latest } => format!(
            "cannot set min decryption version of {asked}, latest key version is {latest}"
        )
        .into(),
        Refusal::MinEncryptionAboveLatest { asked, latest } => format!(
            "cannot set min encryption version of {asked}, latest key version is {latest}"
        )
        .into(),
        Refusal::EncryptsBelowDecryption {
            encryption,
            decryption,
        } => format!(
            "cannot set min encryption/decryption values; min encryption version of {encryption} must be greater than or equal to min decryption version of {decryption}"
        )
        .into(),
        Refusal::MinEncryptionDestroyed => {
            "min encryption version should not be less than min available version".into()
        }
        Refusal::MinDecryptionDestroyed => {
            "min decryption version should not be less then min available version".into()
        }
        Refusal::TrimBackwards => "minimum available version cannot be decremented".into(),
        Refusal::TrimWithoutMinEncryption => {
            "minimum available version cannot be set when minimum encryption version is not set"
                .into()
        }
        Refusal::TrimEncrypting => {
            "minimum available version cannot be greater than minmum encryption version".into()
        }
        Refusal::TrimDecrypting => {
            "minimum available version cannot be greater than minimum decryption version".into()
        }
        Refusal::TrimZero => "minimum available version should be positive".into(),
        Refusal::DeletionNotAllowed(name) => {
            format!("error deleting policy {name}: deletion is not allowed for this key").into()
        }
        // Using them.
        Refusal::VersionTooNew { purpose, latest } => too_new(*purpose, *latest),
        Refusal::VersionTooOld(purpose) => too_old(*purpose).into(),
        Refusal::ContextMissing => {
            "missing 'context' for key derivation; the key was created using a derived key, which means additional, per-request information must be included in order to perform operations with the key".into()
        }
        Refusal::ContextUnwanted => {
            "the key is not derived: it takes no context; leave it out, or bind the ciphertext to associated_data".into()
        }
        Refusal::CiphertextTooShort => "invalid ciphertext length".into(),
        Refusal::DataKeyLength => DATA_KEY_LENGTH.into(),
        Refusal::HmacHash => {
            "unsupported algorithm: this token makes no HMAC with that hash; use sha2-256".into()
        }
        Refusal::WrongType { key_type, purpose } => {
            format!("key type {} does not support {purpose}", key_type.as_str()).into()
        }
        Refusal::OnlySigns(kind) => format!(
            "key type {} does not support this operation: it signs and verifies; make an aes256-gcm96 key",
            kind.name()
        )
        .into(),
        Refusal::SaltTooLong { asked, most } => {
            format!("salt_length {asked} is too long: at most {most} bytes with this hash").into()
        }
        Refusal::HashMissing => NEEDS_DIGEST_INFO.into(),
        Refusal::DigestInfo => {
            format!("{NEEDS_DIGEST_INFO}, and an input of at most 501 bytes").into()
        }
        Refusal::DigestLength { given, wanted } => format!(
            "the prehashed input is {given} bytes long, but this hash_algorithm makes {wanted}"
        )
        .into(),
        Refusal::DigestForEd25519 => {
            "prehashed is not supported with ed25519 keys: send the message itself".into()
        }
        Refusal::HashForRsa => {
            "unsupported hash algorithm for RSA: use sha2-256, sha2-384, sha2-512 or sha2-224"
                .into()
        }
        // Vault does not know these: in the keyring's own words.
        Refusal::SigningInMemory
        | Refusal::MemoryInFips
        | Refusal::NoMemoryMaster
        | Refusal::NoNumberLeft
        | Refusal::ImportUnsupported(_)
        | Refusal::MinAboveSigning { .. }
        | Refusal::TrimPublished(_)
        | Refusal::NoSuchVersion
        | Refusal::VersionNotSigning { .. }
        | Refusal::PlaintextTooLong
        | Refusal::KindUnsupported(_) => refusal.to_string().into(),
    }
}

/// For the audit log, of what repeats a number that the client sent.
pub(super) fn without_numbers(error: &KeyringError) -> Option<&'static str> {
    let KeyringError::Refused(refusal) = error else {
        return None;
    };
    Some(match refusal {
        Refusal::MinDecryptionAboveLatest { .. } => {
            "min_decryption_version is higher than the latest key version"
        }
        Refusal::MinEncryptionAboveLatest { .. } => {
            "min_encryption_version is higher than the latest key version"
        }
        Refusal::EncryptsBelowDecryption { .. } => {
            "min_encryption_version is lower than min_decryption_version"
        }
        Refusal::MinAboveSigning { .. } => {
            "a minimum version is higher than the version that signs"
        }
        Refusal::VersionNotSigning { .. } => "the version is published and does not sign yet",
        Refusal::SaltTooLong { .. } => "salt_length is too long with this hash",
        Refusal::DigestLength { .. } => "the prehashed input is not as long as the hash makes it",
        _ => return None,
    })
}

fn too_new(purpose: Purpose, latest: u32) -> Cow<'static, str> {
    match purpose {
        Purpose::Encrypt => ENCRYPTION_TOO_NEW.into(),
        Purpose::Decrypt => "invalid ciphertext: version is too new".into(),
        Purpose::Hmac => {
            format!("key version does not exist; latest key version is {latest}").into()
        }
        Purpose::VerifyHmac => "invalid HMAC: version is too new".into(),
        Purpose::Sign => {
            "requested version for signing is higher than the latest key version".into()
        }
        Purpose::VerifySignature => "invalid signature: version is too new".into(),
    }
}

fn too_old(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Encrypt => {
            "requested version for encryption is less than the minimum encryption key version"
        }
        Purpose::Decrypt | Purpose::VerifySignature => DECRYPTION_TOO_OLD,
        Purpose::Hmac => "cannot generate HMAC: version is too old (disallowed by policy)",
        Purpose::VerifyHmac => "cannot verify HMAC: version is too old (disallowed by policy)",
        Purpose::Sign => {
            "requested version for signing is less than the minimum encryption key version"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use strongroom_core::keyring::KeyType;
    use strongroom_hsm::SigningKind;

    /// Taken from what clients were told when the keyring itself had the words: they match on them.
    #[test]
    #[allow(clippy::too_many_lines, reason = "a table")]
    fn clients_are_told_in_vaults_words_to_the_letter() {
        let signing = SigningKind::EcdsaP256;
        let said: [(Refusal, &str); 39] = [
            (
                Refusal::ConvergentNotDerived,
                "convergent encryption requires derivation to be enabled",
            ),
            (
                Refusal::NoDerivation(signing),
                "key derivation and convergent encryption are not supported for keys of type ecdsa-p256",
            ),
            (
                Refusal::SigningInMemory,
                "a signing key never leaves the token: use residency hsm, or leave it out",
            ),
            (
                Refusal::MemoryInFips,
                "memory residency is refused in FIPS mode: use residency hsm",
            ),
            (
                Refusal::NoMemoryMaster,
                "memory residency needs a second master key, which this token does not hold, and which is only made with all its other keys: use residency hsm",
            ),
            (
                Refusal::PeriodTooShort,
                "auto rotate period must be 0 to disable or at least an hour",
            ),
            (
                Refusal::PeriodWithoutRotation,
                "allow_rotation must be set to true if auto-rotation is enabled",
            ),
            (
                Refusal::RotationNotAllowed("k".into()),
                "imported key k does not allow rotation within Vault",
            ),
            (Refusal::NoNumberLeft, "this key has had 2^32-1 versions"),
            (
                Refusal::ImportConvergent,
                "import cannot be used on keys with convergent encryption enabled",
            ),
            (
                Refusal::NotImported,
                "the import_version endpoint can only be used with an imported key",
            ),
            (Refusal::ImportTooShort, "provided ciphertext is too short"),
            (
                Refusal::ImportUnwrap,
                "crypto/rsa: decryption error: the ciphertext must be RSA-OAEP(AES-256 key) by the wrapping key, then AES-KWP(256-bit key)",
            ),
            (
                Refusal::ImportUnusable("why".into()),
                "error importing key: why",
            ),
            (
                Refusal::ImportUnsupported("it".into()),
                "this token can't import that: it does not support it",
            ),
            (
                Refusal::MinDecryptionAboveLatest {
                    asked: 4,
                    latest: 3,
                },
                "cannot set min decryption version of 4, latest key version is 3",
            ),
            (
                Refusal::MinEncryptionAboveLatest {
                    asked: 4,
                    latest: 3,
                },
                "cannot set min encryption version of 4, latest key version is 3",
            ),
            (
                Refusal::EncryptsBelowDecryption {
                    encryption: 1,
                    decryption: 2,
                },
                "cannot set min encryption/decryption values; min encryption version of 1 must be greater than or equal to min decryption version of 2",
            ),
            (
                Refusal::MinEncryptionDestroyed,
                "min encryption version should not be less than min available version",
            ),
            (
                Refusal::MinDecryptionDestroyed,
                "min decryption version should not be less then min available version",
            ),
            (
                Refusal::MinAboveSigning {
                    asked: 2,
                    signing: 1,
                },
                "cannot set a minimum version of 2: version 1 signs, until version 2 has been published long enough",
            ),
            (
                Refusal::TrimBackwards,
                "minimum available version cannot be decremented",
            ),
            (
                Refusal::TrimWithoutMinEncryption,
                "minimum available version cannot be set when minimum encryption version is not set",
            ),
            (
                Refusal::TrimEncrypting,
                "minimum available version cannot be greater than minmum encryption version",
            ),
            (
                Refusal::TrimDecrypting,
                "minimum available version cannot be greater than minimum decryption version",
            ),
            (
                Refusal::TrimZero,
                "minimum available version should be positive",
            ),
            (
                Refusal::TrimPublished(2),
                "minimum available version cannot be greater than 2: tokens that this version signed may still be valid",
            ),
            (
                Refusal::DeletionNotAllowed("k".into()),
                "error deleting policy k: deletion is not allowed for this key",
            ),
            (Refusal::NoSuchVersion, "no such key version"),
            (
                Refusal::VersionNotSigning {
                    asked: 2,
                    signing: 1,
                },
                "version 2 is published and does not sign yet, so that whoever keeps the public keys has it first; version 1 signs",
            ),
            (
                Refusal::ContextMissing,
                "missing 'context' for key derivation; the key was created using a derived key, which means additional, per-request information must be included in order to perform operations with the key",
            ),
            (
                Refusal::ContextUnwanted,
                "the key is not derived: it takes no context; leave it out, or bind the ciphertext to associated_data",
            ),
            (Refusal::CiphertextTooShort, "invalid ciphertext length"),
            (Refusal::DataKeyLength, "invalid bit length"),
            (
                Refusal::OnlySigns(signing),
                "key type ecdsa-p256 does not support this operation: it signs and verifies; make an aes256-gcm96 key",
            ),
            (
                Refusal::SaltTooLong {
                    asked: 479,
                    most: 478,
                },
                "salt_length 479 is too long: at most 478 bytes with this hash",
            ),
            (
                Refusal::HashMissing,
                "hash_algorithm=none requires both prehashed=true and signature_algorithm=pkcs1v15",
            ),
            (
                Refusal::DigestInfo,
                "hash_algorithm=none requires both prehashed=true and signature_algorithm=pkcs1v15, and an input of at most 501 bytes",
            ),
            (
                Refusal::DigestLength {
                    given: 7,
                    wanted: 32,
                },
                "the prehashed input is 7 bytes long, but this hash_algorithm makes 32",
            ),
        ];
        for (refusal, words) in said {
            assert_eq!(of_item(&refusal.into()), words);
        }
        let by_purpose = [
            (
                Purpose::Encrypt,
                "requested version for encryption is higher than the latest key version",
                "requested version for encryption is less than the minimum encryption key version",
            ),
            (
                Purpose::Decrypt,
                "invalid ciphertext: version is too new",
                "ciphertext or signature version is disallowed by policy (too old)",
            ),
            (
                Purpose::Hmac,
                "key version does not exist; latest key version is 3",
                "cannot generate HMAC: version is too old (disallowed by policy)",
            ),
            (
                Purpose::VerifyHmac,
                "invalid HMAC: version is too new",
                "cannot verify HMAC: version is too old (disallowed by policy)",
            ),
            (
                Purpose::Sign,
                "requested version for signing is higher than the latest key version",
                "requested version for signing is less than the minimum encryption key version",
            ),
            (
                Purpose::VerifySignature,
                "invalid signature: version is too new",
                "ciphertext or signature version is disallowed by policy (too old)",
            ),
        ];
        for (purpose, new, old) in by_purpose {
            let too_new = Refusal::VersionTooNew { purpose, latest: 3 };
            assert_eq!(of_item(&too_new.into()), new);
            assert_eq!(of_item(&Refusal::VersionTooOld(purpose).into()), old);
        }
        for (purpose, name) in [
            (Purpose::Sign, "signing"),
            (Purpose::VerifySignature, "verification"),
        ] {
            let key_type = KeyType::Aes256Gcm96;
            assert_eq!(
                of_item(&Refusal::WrongType { key_type, purpose }.into()),
                format!("key type aes256-gcm96 does not support {name}")
            );
        }
        let text = of_item(&KeyringError::Decrypt);
        assert_eq!(text, "cipher: message authentication failed");
    }
}
