//! BYOK: `wrapping_key`, `import`, `import_version`.

use std::time::Duration;

use serde::Serialize;
use strongroom_core::keyring::{ImportOptions, KeyType};
use strongroom_hsm::OaepHash;

use super::{answer, create_options};
use crate::api::pipeline::answer::Answer;
use crate::api::vault::body::word;
use crate::api::vault::call::Call;
use crate::api::vault::error::{ApiError, Doing};
use crate::api::vault::{wire, words};

/// `GET wrapping_key`.
pub(in crate::api) async fn wrapping_key(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    #[derive(Serialize)]
    struct WrappingKey {
        public_key: String,
    }
    let mut public_key = call.app.keyring.wrapping_key_pem();
    if !public_key.ends_with('\n') {
        public_key.push('\n');
    }
    Ok(answer(call, &WrappingKey { public_key }, &[]))
}

/// `POST keys/:name/import`.
pub(in crate::api) async fn import(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let derived = call.params.flag("derived")?.unwrap_or(false);
    let options = ImportOptions {
        // Rotated by itself only if that is asked for: nobody knows how the key came about, or who
        // else has it.
        create: create_options(&call.params, derived, Duration::ZERO)?,
        allow_rotation: call.params.flag("allow_rotation")?.unwrap_or(false),
    };
    if options.create.key_type != KeyType::Aes256Gcm96 {
        return Err(ApiError::bad_request(
            "signing keys can't be imported: they are made in the token; create one with keys/:name",
        ));
    }
    if !options.create.auto_rotate_period.is_zero() && !options.allow_rotation {
        return Err(ApiError::bad_request(words::PERIOD_WITHOUT_ROTATION));
    }
    let (ciphertext, hash) = wrapped(call)?;
    let imported = call
        .app
        .keyring
        .import(call.name, &ciphertext, hash, options)
        .await;
    imported.map_err(|e| ApiError::from_keyring(e, Doing::Import, call.name))?;
    Ok(Answer::no_content().with_version(1))
}

/// `POST keys/:name/import_version`.
pub(in crate::api) async fn import_version(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    if call.params.is_set("version") {
        return Err(ApiError::bad_request(
            "version is not supported: an imported version becomes the latest one",
        ));
    }
    let (ciphertext, hash) = wrapped(call)?;
    let imported = call
        .app
        .keyring
        .import_version(call.name, &ciphertext, hash)
        .await;
    let version = imported.map_err(|e| ApiError::from_keyring(e, Doing::Import, call.name))?;
    Ok(Answer::no_content().with_version(version))
}

/// The wrapped key and the hash that wrapped it.
fn wrapped(call: &Call<'_>) -> Result<(Vec<u8>, OaepHash), ApiError> {
    if call.params.is_set("public_key") {
        return Err(ApiError::bad_request(
            "provided type does not support public_key import",
        ));
    }
    let name = call.params.text("hash_function")?.unwrap_or_default();
    let hash = match name.to_ascii_uppercase().as_str() {
        "" | "SHA256" => OaepHash::Sha256,
        "SHA1" => OaepHash::Sha1,
        "SHA224" | "SHA384" | "SHA512" => {
            return Err(ApiError::bad_request(format!(
                "hash function {name} is not supported: wrap with SHA256 or SHA1"
            ))
            .in_own_words());
        }
        _ => {
            return Err(
                ApiError::bad_request(format!("unknown hash function: {}", word(&name)))
                    .because("unknown hash_function"),
            );
        }
    };
    let text = call
        .params
        .text("ciphertext")?
        .filter(|text| !text.is_empty())
        .ok_or_else(|| ApiError::bad_request("missing ciphertext: the wrapped key"))?;
    let mut bytes = wire::decode_base64(&text)
        .map_err(|e| ApiError::bad_request(e.to_string()).in_own_words())?;
    if bytes.len() <= 512 {
        return Err(ApiError::bad_request("provided ciphertext is too short"));
    }
    Ok((std::mem::take(&mut *bytes), hash))
}
