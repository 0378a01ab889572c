//! Vault's Transit: one file per family of endpoints.

mod algorithm;
pub(in crate::api) mod cipher;
mod data;
pub(in crate::api) mod import;
pub(in crate::api) mod jwt;
pub(in crate::api) mod keys;
pub(in crate::api) mod mac;
mod new_key;
pub(in crate::api) mod random;
pub(in crate::api) mod sign;
pub(in crate::api) mod unsupported;
pub(in crate::api) mod verify;

use super::batch::ItemError;
use super::error::ApiError;
use super::{wire, words};

/// A key version that a client may ask for: `None` for 0 or nothing, the latest.
fn wanted_version(version: Option<i64>) -> Result<Option<u32>, ItemError> {
    match version.unwrap_or(0) {
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

/// Base64 of a parameter that may be missing.
fn decode_optional(text: Option<&str>) -> Result<Vec<u8>, wire::Base64Error> {
    match text {
        None | Some("") => Ok(Vec::new()),
        Some(text) => wire::decode_base64(text).map(|mut bytes| std::mem::take(&mut *bytes)),
    }
}
