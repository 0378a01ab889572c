//! BYOK: `wrapping_key`, `import`, `import_version`.

use std::borrow::Cow;
use std::time::Duration;

use serde::Serialize;
use strongroom_core::keyring::{ImportOptions, KeyType};
use strongroom_hsm::OaepHash;

use super::new_key::{ENCRYPTION_KEY_TYPE, NewKey, create_options};
use super::unsupported::Refused;
use crate::api::pipeline::answer::Answer;
use crate::api::vault::call::Call;
use crate::api::vault::error::{ApiError, Doing};
use crate::api::vault::names::word;
use crate::api::vault::request::{Base64, Described as _, Given, one_of, request};
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
    Ok(call.answer(&WrappingKey { public_key }, &[]))
}

request! {
    /// `POST keys/:name/import`.
    Import<'p> {
        /// Base64 of RSA-OAEP(wrapping key, a 32-byte AES key) followed by AES-KWP(that AES key,
        /// the key's 32 bytes).
        ciphertext: Base64<'p>,
        /// Of RSA-OAEP, and of its MGF1: SHA256 (if missing) or SHA1.
        hash_function: Option<Cow<'p, str>>,
        /// The only type that is imported.
        r#type: Option<Cow<'p, str>> = one_of(&[ENCRYPTION_KEY_TYPE]),
        /// Each operation takes a `context`, from which its key is derived by HKDF-SHA256.
        derived: Option<bool>,
        /// Whether the appliance may make new versions of the imported key.
        allow_rotation: Option<bool>,
        /// Refused if true.
        exportable: Option<bool>,
        /// Refused if true.
        allow_plaintext_backup: Option<bool>,
        /// Zero: no automatic rotation; else at least an hour.
        auto_rotate_period: Option<Duration>,
        /// Refused unless empty: a context comes with each operation.
        context: Given = Base64::schema(),
        /// Refused unless empty.
        public_key: Given,
        /// Strongroom's own: where the key is used. `hsm`: its bytes never leave the token.
        /// `memory`: in locked host memory, faster on a slow token; needs the second master key,
        /// refused in FIPS mode. Missing: the configured default.
        residency: Option<Cow<'p, str>> = one_of(&["hsm", "memory", ""]),
    }
    ; strict
}

request! {
    /// `POST keys/:name/import_version`.
    ImportVersion<'p> {
        /// Base64 of RSA-OAEP(wrapping key, a 32-byte AES key) followed by AES-KWP(that AES key,
        /// the key's 32 bytes).
        ciphertext: Base64<'p>,
        /// Of RSA-OAEP, and of its MGF1: SHA256 (if missing) or SHA1.
        hash_function: Option<Cow<'p, str>>,
        /// Refused unless empty.
        public_key: Given,
        /// Refused unless 0: an imported version becomes the latest.
        version: Given = Option::<i64>::schema(),
    }
    ; strict
}

/// `POST keys/:name/import`.
pub(in crate::api) async fn import(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let asked = Import::read(&call.params)?;
    let said = NewKey {
        key_type: asked.r#type.as_deref(),
        derived: asked.derived,
        exportable: asked.exportable,
        allow_plaintext_backup: asked.allow_plaintext_backup,
        context: asked.context,
        auto_rotate_period: asked.auto_rotate_period,
        residency: asked.residency.as_deref(),
    };
    let options = ImportOptions {
        // Rotated by itself only if that is asked for: nobody knows how the key came about, or who
        // else has it.
        create: create_options(&said, Duration::ZERO)?,
        allow_rotation: asked.allow_rotation.unwrap_or(false),
    };
    Refused::TypeToImport.when(options.create.key_type != KeyType::Aes256Gcm96)?;
    if !options.create.auto_rotate_period.is_zero() && !options.allow_rotation {
        return Err(ApiError::bad_request(words::PERIOD_WITHOUT_ROTATION));
    }
    let (ciphertext, hash) = wrapped(
        asked.public_key,
        asked.hash_function.as_deref(),
        asked.ciphertext.as_deref(),
    )?;
    let imported = call
        .app
        .keyring
        .import(call.key()?, &ciphertext, hash, options)
        .await;
    imported.map_err(|e| ApiError::from_keyring(e, Doing::Import, call.name))?;
    Ok(Answer::no_content().with_version(1))
}

/// `POST keys/:name/import_version`.
pub(in crate::api) async fn import_version(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let asked = ImportVersion::read(&call.params)?;
    Refused::ImportedVersion.when(asked.version.0)?;
    let (ciphertext, hash) = wrapped(
        asked.public_key,
        asked.hash_function.as_deref(),
        asked.ciphertext.as_deref(),
    )?;
    let imported = call
        .app
        .keyring
        .import_version(call.key()?, &ciphertext, hash)
        .await;
    let version = imported.map_err(|e| ApiError::from_keyring(e, Doing::Import, call.name))?;
    Ok(Answer::no_content().with_version(version))
}

/// The wrapped key and the hash that wrapped it.
fn wrapped(
    public_key: Given,
    hash_function: Option<&str>,
    ciphertext: Option<&str>,
) -> Result<(Vec<u8>, OaepHash), ApiError> {
    Refused::PublicKey.when(public_key.0)?;
    let name = hash_function.unwrap_or_default();
    let hash = match name.to_ascii_uppercase().as_str() {
        "" | "SHA256" => OaepHash::Sha256,
        "SHA1" => OaepHash::Sha1,
        "SHA224" | "SHA384" | "SHA512" => {
            return Err(ApiError::bad_request(format!(
                "hash function {name} is not supported: wrap with SHA256 or SHA1"
            ))
            .because("a hash_function that is not supported"));
        }
        _ => {
            return Err(
                ApiError::bad_request(format!("unknown hash function: {}", word(name)))
                    .because("unknown hash_function"),
            );
        }
    };
    let text = ciphertext
        .filter(|text| !text.is_empty())
        .ok_or_else(|| ApiError::bad_request("missing ciphertext: the wrapped key"))?;
    let mut bytes = wire::decode_base64(text)
        .map_err(|e| ApiError::bad_request(e.to_string()).in_own_words())?;
    if bytes.len() <= 512 {
        return Err(ApiError::bad_request("provided ciphertext is too short"));
    }
    Ok((std::mem::take(&mut *bytes), hash))
}
