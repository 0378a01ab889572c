//! `keys`: create, read, list, delete, config, rotate, trim.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use strongroom_core::keyring::{ConfigChange, KeyInfo, KeyName, KeyType, Residency, VersionInfo};

use super::decode_optional;
use super::new_key::{ENCRYPTION_KEY_TYPE, NewKey, check_period, create_options, refuse_exports};
use super::unsupported::Refused;
use crate::api::pipeline::answer::Answer;
use crate::api::vault::call::Call;
use crate::api::vault::error::{ApiError, Doing};
use crate::api::vault::request::{Base64, Described as _, Given, one_of, request};
use crate::api::vault::words;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use strongroom_hsm::SigningKind;

request! {
    /// `POST keys/:name`.
    Create<'p> {
        /// Missing: aes256-gcm96. The others sign; ed25519 where the token can.
        r#type: Option<Cow<'p, str>> = one_of(&[ENCRYPTION_KEY_TYPE, "ecdsa-p256", "rsa-4096", "ed25519"]),
        /// Each operation takes a `context`, from which its key is derived by HKDF-SHA256.
        derived: Option<bool>,
        /// Equal plaintexts give equal ciphertexts under one context; needs `derived`.
        convergent_encryption: Option<bool>,
        /// Refused if true.
        exportable: Option<bool>,
        /// Refused if true.
        allow_plaintext_backup: Option<bool>,
        /// Missing: as configured (90 days). Zero: no automatic rotation; else at least an hour.
        auto_rotate_period: Option<Duration>,
        /// Refused unless 0: the type has one size.
        key_size: Option<i64>,
        /// Refused unless empty: a context comes with each operation.
        context: Given = Base64::schema(),
        /// Refused unless empty.
        managed_key_name: Given,
        /// Refused unless empty.
        managed_key_id: Given,
        /// Strongroom's own: where the key is used. `hsm`: its bytes never leave the token.
        /// `memory`: in locked host memory, faster on a slow token; needs the second master key,
        /// refused in FIPS mode. Missing: the configured default.
        residency: Option<Cow<'p, str>> = one_of(&["hsm", "memory", ""]),
    }
    refused ["parameter_set", "hybrid_key_type_pqc", "hybrid_key_type_ec", "external_key_ref"]
}

request! {
    /// `GET keys/:name`.
    ReadKey<'p> {
        /// Checked to be base64, otherwise not looked at.
        context: Option<Cow<'p, str>>,
    }
}

request! {
    /// `LIST keys`.
    List<'p> {
        /// Only names behind this one, in the order of their bytes.
        after: Option<Cow<'p, str>>,
        /// At most this many names; 0 or less: all.
        limit: Option<i64>,
    }
}

request! {
    /// `POST keys/:name/config`.
    Configure {
        /// Versions below don't decrypt.
        min_decryption_version: Option<i64>,
        /// Versions below don't encrypt; 0: the latest by default, any allowed.
        min_encryption_version: Option<i64>,
        /// Whether the key may be deleted.
        deletion_allowed: Option<bool>,
        /// Refused if true.
        exportable: Option<bool>,
        /// Refused if true.
        allow_plaintext_backup: Option<bool>,
        /// Zero: no automatic rotation; else at least an hour.
        auto_rotate_period: Option<Duration>,
    }
}

request! {
    /// `POST keys/:name/rotate`.
    Rotate {
        /// Refused unless empty.
        managed_key_name: Given,
        /// Refused unless empty.
        managed_key_id: Given,
    }
    refused ["external_key_ref"]
}

request! {
    /// `POST keys/:name/trim`.
    Trim {
        /// Versions below are destroyed for good.
        min_available_version: Option<i64>,
    }
}

/// `POST keys/:name`: makes a key; one that exists is described and left as it is.
pub(in crate::api) async fn create(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let asked = Create::read(&call.params)?;
    Refused::ManagedKey.when(asked.managed_key_name.0 || asked.managed_key_id.0)?;
    let said = NewKey {
        key_type: asked.r#type.as_deref(),
        derived: asked.derived,
        exportable: asked.exportable,
        allow_plaintext_backup: asked.allow_plaintext_backup,
        context: asked.context,
        auto_rotate_period: asked.auto_rotate_period,
        residency: asked.residency.as_deref(),
    };
    let mut options = create_options(&said, call.app.config.keyring.rotation_period)?;
    options.convergent = asked.convergent_encryption.unwrap_or(false);
    if options.convergent && !options.derived {
        return Err(ApiError::bad_request(words::CONVERGENT_NOT_DERIVED));
    }
    if asked.key_size.unwrap_or(0) != 0 {
        return Err(ApiError::bad_request(format!(
            "key_size is not valid for algorithm {}",
            options.key_type.as_str()
        ))
        .in_own_words());
    }
    let made = call.app.keyring.create(call.key()?, options).await;
    let made = made.map_err(|e| ApiError::from_keyring(e, Doing::Create, call.name))?;
    if made {
        return describe(call, &[]);
    }
    let key = call.app.keyring.read(call.key()?);
    let key = key.map_err(|e| ApiError::from_keyring(e, Doing::Read, call.name))?;
    agrees(&asked, call.name, &key)?;
    let warning = format!("key {} already existed", call.name);
    Ok(call.answer(&Description::from(key), &[&warning]))
}

/// What is said of a key that was there already must be true of it: creating changes nothing.
fn agrees(asked: &Create<'_>, key_name: &str, key: &KeyInfo) -> Result<(), ApiError> {
    let other = |name: &str, is: &dyn std::fmt::Display| {
        Err(ApiError::bad_request(format!(
            "the key {key_name} is there already, and its {name} is {is}: nothing was changed. What can be changed is changed by keys/{key_name}/config"
        ))
        .in_own_words())
    };
    let key_type = key.key_type.as_str();
    if asked.r#type.as_deref().is_some_and(|said| said != key_type) {
        return other("type", &key_type);
    }
    let residency = match key.residency {
        Residency::Hsm => "hsm",
        Residency::Memory => "memory",
    };
    let said = asked.residency.as_deref();
    if said.is_some_and(|said| !said.is_empty() && said != residency) {
        return other("residency", &residency);
    }
    for (name, said, is) in [
        ("derived", asked.derived, key.derived),
        (
            "convergent_encryption",
            asked.convergent_encryption,
            key.convergent,
        ),
    ] {
        if said.is_some_and(|said| said != is) {
            return other(name, &is);
        }
    }
    let period = key.auto_rotate_period;
    if asked
        .auto_rotate_period
        .is_some_and(|said| said.as_secs() != period.as_secs())
    {
        return other(
            "auto_rotate_period",
            &format_args!("{} s", period.as_secs()),
        );
    }
    Ok(())
}

/// `GET keys/:name`.
pub(in crate::api) async fn read(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    decode_optional(ReadKey::read(&call.params)?.context.as_deref())
        .map_err(|_| ApiError::bad_request("failed to base64-decode context"))?;
    describe(call, &[])
}

/// `LIST keys`, by pages as `OpenBao` has them: `limit` names at most, behind the name `after`.
pub(in crate::api) async fn list(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    #[derive(Serialize)]
    struct Names {
        keys: Vec<KeyName>,
    }
    let mut keys = call.app.keyring.list();
    let asked = List::read(&call.params)?;
    if let Some(after) = asked.after.as_deref() {
        keys.retain(|name| **name > *after);
    }
    let limit = asked.limit.unwrap_or(0);
    if let Ok(limit @ 1..) = usize::try_from(limit) {
        keys.truncate(limit);
    }
    if keys.is_empty() {
        return Err(ApiError::empty(404));
    }
    Ok(call.answer(&Names { keys }, &[]))
}

/// `DELETE keys/:name`.
pub(in crate::api) async fn delete(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let deleted = call.app.keyring.delete(call.key()?).await;
    deleted.map_err(|e| ApiError::from_keyring(e, Doing::Delete, call.name))?;
    Ok(Answer::no_content())
}

/// `POST keys/:name/config`.
pub(in crate::api) async fn configure(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let mut warnings: &[&str] = &[];
    let asked = Configure::read(&call.params)?;
    let mut min_decryption_version =
        version(asked.min_decryption_version, "min decryption version")?;
    if min_decryption_version == Some(0) {
        min_decryption_version = Some(1);
        warnings = &["since Vault 0.3, transit key numbering starts at 1; forcing minimum to 1"];
    }
    refuse_exports(asked.exportable, asked.allow_plaintext_backup)?;
    let change = ConfigChange {
        min_decryption_version,
        min_encryption_version: version(asked.min_encryption_version, "min encryption version")?,
        deletion_allowed: asked.deletion_allowed,
        auto_rotate_period: asked.auto_rotate_period,
    };
    if let Some(period) = change.auto_rotate_period {
        check_period(period)?;
    }
    let changed = call.app.keyring.configure(call.key()?, change).await;
    changed.map_err(|e| ApiError::from_keyring(e, Doing::Configure, call.name))?;
    describe(call, warnings)
}

/// `POST keys/:name/rotate`.
pub(in crate::api) async fn rotate(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let asked = Rotate::read(&call.params)?;
    Refused::ManagedKey.when(asked.managed_key_name.0 || asked.managed_key_id.0)?;
    let rotated = call.app.keyring.rotate(call.key()?).await;
    let version = rotated.map_err(|e| ApiError::from_keyring(e, Doing::Rotate, call.name))?;
    Ok(describe(call, &[])?.with_version(version))
}

/// `POST keys/:name/trim`.
pub(in crate::api) async fn trim(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let asked = Trim::read(&call.params)?;
    if !call.app.keyring.exists(call.key()?) {
        return Err(ApiError::bad_request(words::TRIM_NO_KEY));
    }
    let wanted = asked
        .min_available_version
        .ok_or_else(|| ApiError::bad_request("missing min_available_version"))?;
    // A version that no key can have is refused by the keyring as greater than any.
    let wanted = u32::try_from(wanted.max(0)).unwrap_or(u32::MAX);
    let trimmed = call.app.keyring.trim(call.key()?, wanted).await;
    trimmed.map_err(|e| ApiError::from_keyring(e, Doing::Trim, call.name))?;
    describe(call, &[])
}

/// A version that a setting names. What no key can have is no version, and not repeated.
fn version(said: Option<i64>, words: &str) -> Result<Option<u32>, ApiError> {
    match said {
        None => Ok(None),
        Some(n) if n < 0 => {
            Err(ApiError::bad_request(format!("{words} cannot be negative")).in_own_words())
        }
        Some(n) => u32::try_from(n).map(Some).map_err(|_| {
            ApiError::bad_request(format!(
                "cannot set {words}: it is higher than any key version can be"
            ))
            .in_own_words()
        }),
    }
}

/// A key as Vault describes it, with this appliance's `residency` besides.
#[derive(Serialize)]
#[allow(clippy::struct_excessive_bools)]
struct Description {
    name: String,
    r#type: &'static str,
    residency: Residency,
    derived: bool,
    deletion_allowed: bool,
    min_available_version: u32,
    min_decryption_version: u32,
    min_encryption_version: u32,
    latest_version: u32,
    exportable: bool,
    allow_plaintext_backup: bool,
    supports_encryption: bool,
    supports_decryption: bool,
    supports_signing: bool,
    supports_derivation: bool,
    auto_rotate_period: u64,
    imported_key: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    imported_key_allow_rotation: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kdf: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    convergent_encryption: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    convergent_encryption_version: Option<i8>,
    /// Strongroom's own, of signing keys: the version that signs, and the oldest in the published
    /// set.
    #[serde(skip_serializing_if = "Option::is_none")]
    signing_version: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    published_version: Option<u32>,
    keys: BTreeMap<u32, Version>,
}

/// A version as Vault describes it.
#[derive(Serialize)]
#[serde(untagged)]
enum Version {
    /// When it was made, seconds since 1970, UTC.
    Created(i64),
    Public {
        name: &'static str,
        creation_time: String,
        public_key: String,
        /// Strongroom's own: what a token's header calls it.
        kid: String,
    },
}

impl Version {
    fn new(kind: KeyType, version: &VersionInfo) -> Self {
        let (KeyType::Signing(kind), Some(public)) = (kind, &version.public) else {
            return Self::Created(version.created);
        };
        let created = jiff::Timestamp::from_second(version.created).unwrap_or_default();
        Self::Public {
            name: match kind {
                SigningKind::EcdsaP256 => "P-256",
                SigningKind::Rsa4096 => "rsa-4096",
                SigningKind::Ed25519 => "ed25519",
            },
            creation_time: created.to_string(),
            // As Vault has it: Ed25519 keys are their 32 bytes in base64, the others PEM.
            public_key: match &public.raw {
                Some(raw) => STANDARD.encode(raw),
                None => public.pem.clone(),
            },
            kid: public.kid.clone(),
        }
    }
}

impl From<KeyInfo> for Description {
    fn from(key: KeyInfo) -> Self {
        let signs = matches!(key.key_type, KeyType::Signing(_));
        Self {
            name: key.name,
            r#type: key.key_type.as_str(),
            residency: key.residency,
            derived: key.derived,
            deletion_allowed: key.deletion_allowed,
            min_available_version: key.min_available_version,
            min_decryption_version: key.min_decryption_version,
            min_encryption_version: key.min_encryption_version,
            latest_version: key.latest_version,
            exportable: false,
            allow_plaintext_backup: false,
            supports_encryption: !signs,
            supports_decryption: !signs,
            supports_signing: signs,
            supports_derivation: !signs,
            signing_version: signs.then_some(key.signing_version),
            published_version: signs.then_some(key.published_version),
            auto_rotate_period: key.auto_rotate_period.as_secs(),
            imported_key: key.imported,
            imported_key_allow_rotation: key.imported.then_some(key.allow_rotation),
            kdf: key.derived.then(|| key.kdf.as_str()),
            convergent_encryption: key.derived.then_some(key.convergent),
            convergent_encryption_version: (key.derived && key.convergent).then_some(-1),
            // Vault lists those that decrypt; older ones are archived.
            keys: key
                .versions
                .iter()
                .filter(|v| v.version >= key.min_decryption_version)
                .map(|v| (v.version, Version::new(key.key_type, v)))
                .collect(),
        }
    }
}

fn describe(call: &mut Call<'_>, warnings: &[&str]) -> Result<Answer, ApiError> {
    let key = call
        .app
        .keyring
        .read(call.key()?)
        .map_err(|e| ApiError::from_keyring(e, Doing::Read, call.name))?;
    Ok(call.answer(&Description::from(key), warnings))
}
