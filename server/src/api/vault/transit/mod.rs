//! Vault's Transit: one file per family of endpoints.

mod algorithm;
mod batch;
pub(in crate::api) mod cipher;
mod data;
pub(in crate::api) mod import;
pub(in crate::api) mod jwt;
pub(in crate::api) mod keys;
pub(in crate::api) mod mac;
pub(in crate::api) mod random;
pub(in crate::api) mod sign;
pub(in crate::api) mod unsupported;
pub(in crate::api) mod verify;

use std::time::Duration;

use serde::Serialize;

use super::batch::items::Item;
use super::error::{ApiError, Doing};
use super::names::word;
use super::request::Given;
use super::{wire, words};
use crate::api::pipeline::answer::Answer;
use crate::api::vault::call::Call;
use crate::api::vault::envelope::Envelope;
use batch::{ItemError, count, references, write_batch};
use data::{Outcome, Valid};
use strongroom_hsm::SigningKind;

use strongroom_core::keyring::{CreateOptions, KeyType, KeyringError, Residency};

/// The type of a key that encrypts.
const ENCRYPTION_KEY_TYPE: &str = "aes256-gcm96";
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

/// For what is made with the key itself, not with one derived from it.
const CONTEXT_REFUSED: &str =
    "signatures and HMACs are not made with derived keys: leave context out";

/// The only result of a request without a batch.
fn only<R>(results: Vec<Result<R, KeyringError>>, doing: Doing, name: &str) -> Result<R, ApiError> {
    match results.into_iter().next() {
        Some(result) => result.map_err(|error| ApiError::from_keyring(error, doing, name)),
        None => Err(ApiError::unavailable("the keyring lost a result")),
    }
}

/// `data` as a value, with the request's warnings.
fn answer<T: Serialize>(call: &mut Call<'_>, data: &T, more: &[&str]) -> Answer {
    let mut envelope = Envelope::open(call.id, 512);
    envelope.json(data);
    close(call, envelope, more)
}

fn close(call: &mut Call<'_>, envelope: Envelope, more: &[&str]) -> Answer {
    let mut warnings = call.params.warnings();
    warnings.extend(more.iter().map(|&w| w.to_owned()));
    Answer::ok(envelope.close(&warnings, None::<&()>))
}

/// A key version that a client may ask for: `None` for 0, the latest.
fn wanted_version(version: i64) -> Result<Option<u32>, ItemError> {
    match version {
        0 => Ok(None),
        v if v < 0 => Err("requested version for encryption is negative".into()),
        v => u32::try_from(v)
            .map(Some)
            .map_err(|_| words::ENCRYPTION_TOO_NEW.into()),
    }
}

/// `key_version` of HMACs and signatures: 0 is `None`, `negative` says what is wrong with one
/// below. One that is too high is none that a key has.
fn made_by(wanted: Option<i64>, negative: &'static str) -> Result<Option<u32>, ApiError> {
    match wanted.unwrap_or(0) {
        0 => Ok(None),
        v if v < 0 => Err(ApiError::bad_request(negative)),
        v => Ok(Some(u32::try_from(v).unwrap_or(u32::MAX))),
    }
}

/// The answer of `verify` for a batch.
fn valid_answer(
    call: &mut Call<'_>,
    items: &[Item<'_>],
    results: &[Result<bool, ItemError>],
    warnings: &[&str],
) -> Answer {
    let mut envelope = Envelope::open(call.id, results.len() * 160 + references(items));
    let made = |valid: Option<&bool>| valid.map(|&valid| Valid { valid });
    write_batch(&mut envelope, items, results, made, Outcome::serialize_into);
    let mut answer = close(call, envelope, warnings);
    count(&mut answer, results);
    answer
}

/// Refuses a `nonce`: it served convergent keys of version 1, which nobody makes any more, and was
/// CVE-2023-4680.
fn refuse_nonce(given: bool) -> Result<(), ItemError> {
    if given {
        return Err("provided nonce not allowed for this key".into());
    }
    Ok(())
}

/// What is said of a new key, made or imported.
struct NewKey<'p> {
    key_type: Option<&'p str>,
    derived: Option<bool>,
    exportable: Option<bool>,
    allow_plaintext_backup: Option<bool>,
    context: Given,
    auto_rotate_period: Option<Duration>,
    residency: Option<&'p str>,
}

/// Settings of a new key: what this appliance doesn't do is refused, not ignored.
fn create_options(said: &NewKey<'_>, default_period: Duration) -> Result<CreateOptions, ApiError> {
    let key_type = key_type(said.key_type)?;
    refuse_exports(said.exportable, said.allow_plaintext_backup)?;
    if said.context.0 {
        return Err(ApiError::bad_request(
            "a key has no context of its own: leave it out, and give it with each operation",
        ));
    }
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
fn key_type(text: Option<&str>) -> Result<KeyType, ApiError> {
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

fn refuse_exports(exportable: Option<bool>, backup: Option<bool>) -> Result<(), ApiError> {
    for (name, said) in [
        ("exportable", exportable),
        ("allow_plaintext_backup", backup),
    ] {
        if said == Some(true) {
            return Err(ApiError::bad_request(format!(
                "{name} is not supported: keys never leave the appliance in plaintext"
            ))
            .in_own_words());
        }
    }
    Ok(())
}

/// Zero, or at least an hour.
fn check_period(period: Duration) -> Result<(), ApiError> {
    if period.is_zero() || period >= Duration::from_hours(1) {
        return Ok(());
    }
    Err(ApiError::bad_request(words::PERIOD_TOO_SHORT))
}

/// Base64 of a parameter that may be missing.
fn decode_optional(text: Option<&str>) -> Result<Vec<u8>, wire::Base64Error> {
    match text {
        None | Some("") => Ok(Vec::new()),
        Some(text) => wire::decode_base64(text).map(|mut bytes| std::mem::take(&mut *bytes)),
    }
}
