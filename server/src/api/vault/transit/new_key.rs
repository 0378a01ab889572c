//! What a new key is to be, made or imported.

use std::time::Duration;

use strongroom_core::keyring::{CreateOptions, KeyType, Residency};
use strongroom_hsm::SigningKind;

use super::unsupported::Refused;
use crate::api::vault::error::ApiError;
use crate::api::vault::names::word;
use crate::api::vault::request::Given;
use crate::api::vault::words;

/// The type of a key that encrypts.
pub(super) const ENCRYPTION_KEY_TYPE: &str = "aes256-gcm96";
/// Vault's other types: known, and refused as not supported.
const UNSUPPORTED_KEY_TYPES: &[&str] = &[
    "aes128-gcm96",
    "chacha20-poly1305",
    "ecdsa-p384",
    "ecdsa-p521",
    "rsa-2048",
    "rsa-3072",
    "hmac",
    "managed_key",
];

/// What is said of a new key, made or imported.
pub(super) struct NewKey<'p> {
    pub(super) key_type: Option<&'p str>,
    pub(super) derived: Option<bool>,
    pub(super) exportable: Option<bool>,
    pub(super) allow_plaintext_backup: Option<bool>,
    pub(super) context: Given,
    pub(super) auto_rotate_period: Option<Duration>,
    pub(super) residency: Option<&'p str>,
}

/// Settings of a new key: what this appliance doesn't do is refused, not ignored.
pub(super) fn create_options(
    said: &NewKey<'_>,
    default_period: Duration,
) -> Result<CreateOptions, ApiError> {
    let key_type = key_type(said.key_type)?;
    refuse_exports(said.exportable, said.allow_plaintext_backup)?;
    Refused::KeyContext.when(said.context.0)?;
    let period = said.auto_rotate_period.unwrap_or(default_period);
    check_period(period)?;
    let residency = match said.residency {
        None | Some("") => None,
        Some("hsm") => Some(Residency::Hsm),
        Some("memory") => Some(Residency::Memory),
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "unknown residency {:?}; must be \"hsm\" or \"memory\"",
                word(other)
            ))
            .because("unknown residency"));
        }
    };
    Ok(CreateOptions {
        key_type,
        residency,
        derived: said.derived.unwrap_or(false),
        convergent: false,
        auto_rotate_period: period,
    })
}

/// Vault's name of a key type.
pub(super) fn key_type(text: Option<&str>) -> Result<KeyType, ApiError> {
    let signing = SigningKind::ALL
        .into_iter()
        .find(|kind| text == Some(kind.name()));
    if let Some(kind) = signing {
        return Ok(KeyType::Signing(kind));
    }
    match text {
        None | Some(ENCRYPTION_KEY_TYPE) => Ok(KeyType::Aes256Gcm96),
        Some(known) if UNSUPPORTED_KEY_TYPES.contains(&known) => Err(ApiError::bad_request(format!(
            "key type {known} is not supported: the types are {ENCRYPTION_KEY_TYPE}, ecdsa-p256, rsa-4096 and ed25519"
        ))
        .because("a key type that is not supported")),
        Some(unknown) => Err(ApiError::bad_request(format!(
            "unknown key type {}",
            word(unknown)
        ))
        .because("unknown key type")),
    }
}

/// No key leaves the appliance in plaintext.
pub(super) fn refuse_exports(
    exportable: Option<bool>,
    backup: Option<bool>,
) -> Result<(), Refused> {
    Refused::Exportable.when(exportable == Some(true))?;
    Refused::PlaintextBackup.when(backup == Some(true))
}

/// Zero, or at least an hour.
pub(super) fn check_period(period: Duration) -> Result<(), ApiError> {
    if period.is_zero() || period >= Duration::from_hours(1) {
        return Ok(());
    }
    Err(ApiError::bad_request(words::PERIOD_TOO_SHORT))
}
