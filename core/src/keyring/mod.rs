//! Named keys, their versions, where they are used (residency), and their rotation: what the API
//! calls.
//!
//! A request takes a snapshot of its key without waiting for anybody; changes replace the snapshot
//! after they are durable.

mod automatic;
mod change;
mod cipher;
mod counter;
mod derive;
mod encrypt;
mod error;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod key;
mod load;
mod mac;
mod manage;
mod memory;
mod moving;
mod name;
mod named;
mod random;
mod rules;
mod schedule;
mod signing;
mod types;

pub use automatic::Scheduled;
pub use error::{KeyringError, Purpose, Refusal};
pub use moving::{MoveProgress, Moved};
pub use name::{BadKeyName, KeyName, MAX_NAME};
pub use schedule::{MAX_ROTATION_DELAY, Verdict};
pub use signing::{
    Jwk, JwtSigner, KeyHealth, MadeSignature, Marshaling, RsaScheme, SaltLength, SignOptions,
    Transition,
};
pub use types::{
    Algorithm, Ciphertext, ConfigChange, CreateOptions, DataKey, DecryptItem, EncryptItem,
    HmacInput, HmacTag, ImportOptions, JwtOptions, Kdf, KeyInfo, KeyType, PublicInfo, RandomSource,
    Residency, VersionInfo,
};

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use p256::pkcs8::LineEnding;
use p256::pkcs8::der::pem;
use strongroom_hsm::{Hsm, OaepHash};
use tokio::sync::Mutex;

use crate::audit::Audit;
use crate::store::Store;
use named::{Keys, NamedKey};
use signing::Keeper;

/// Settings of the keyring as a whole.
#[derive(Clone, Debug)]
pub struct KeyringOptions {
    /// For keys created without a residency of their own.
    pub default_residency: Residency,
    /// A key in `memory` residency is dropped from memory after this long without use.
    pub memory_idle: Duration,
    /// `memory` residency is refused.
    pub fips: bool,
    /// Encryptions with random nonces that one key version may make (NIST SP 800-38D, 8.3: at most
    /// 2^32).
    pub nonce_limit: u64,
    /// How many of them are reserved in the store at a time; a restart counts what was reserved as
    /// used.
    pub counter_block: u64,
    /// For keys created without a period of their own; zero: none.
    pub rotation_period: Duration,
    /// Tokens, and the keys that sign them.
    pub jwt: JwtOptions,
}

impl Default for KeyringOptions {
    fn default() -> Self {
        Self {
            default_residency: Residency::Hsm,
            memory_idle: Duration::from_mins(5),
            fips: false,
            nonce_limit: 1 << 32,
            counter_block: 1 << 20,
            rotation_period: Duration::ZERO,
            jwt: JwtOptions::default(),
        }
    }
}

/// The named keys of this appliance.
pub struct Keyring {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<Store>,
    hsm: Hsm,
    options: KeyringOptions,
    /// Replaced as a whole by a change.
    keys: ArcSwap<Keys>,
    keeper: Keeper,
    /// Held for the length of a change, by [`Inner::change`].
    writer: Mutex<()>,
    /// Seconds since 1970, UTC.
    clock: fn() -> i64,
    /// Where changes that no request asked for are recorded.
    audit: OnceLock<Arc<Audit>>,
}

type PerItem<T> = Result<Vec<Result<T, KeyringError>>, KeyringError>;

impl Keyring {
    /// Loads every key's settings and wrapped KEKs from the store, and checks that its records hold
    /// together.
    ///
    /// # Errors
    /// [`KeyringError::Store`] if a record is missing, too many, altered, of an unknown format, or
    /// contradicts another; [`KeyringError::OtherMaster`]; [`KeyringError::Hsm`].
    pub async fn open(
        store: Arc<Store>,
        hsm: Hsm,
        options: KeyringOptions,
    ) -> Result<Self, KeyringError> {
        let keys = load::load(&store).await?;
        moving::check(&hsm, &keys)?;
        Ok(Self {
            inner: Arc::new(Inner {
                store,
                hsm,
                options,
                keys: ArcSwap::from_pointee(keys),
                keeper: Keeper::new(),
                writer: Mutex::new(()),
                clock: unix_seconds,
                audit: OnceLock::new(),
            }),
        })
    }

    /// From now on each change that no request asked for is in the audit log: that it is about to
    /// begin, durably, and what came of it. Before this, none is made.
    pub fn record_in(&self, audit: Arc<Audit>) {
        // The first one stays.
        let _ = self.inner.audit.set(audit);
    }

    /// Creates a key at version 1. Creating one that exists changes nothing and answers `false`, as
    /// Vault does.
    ///
    /// # Errors
    /// [`KeyringError::Refused`] for a name or options that can't be; [`KeyringError::Hsm`],
    /// [`KeyringError::Store`].
    pub async fn create(
        &self,
        name: KeyName<&str>,
        options: CreateOptions,
    ) -> Result<bool, KeyringError> {
        self.change(name, |inner, name| async move {
            inner.create(&name, options).await
        })
        .await
    }

    /// BYOK: creates a key from wrapped material (`ciphertext` = RSA-OAEP(AES key), 512 bytes, ||
    /// AES-KWP(target)).
    ///
    /// # Errors
    /// [`KeyringError::Exists`]; [`KeyringError::Refused`] if it does not unwrap to a 256-bit key,
    /// or the token can't.
    pub async fn import(
        &self,
        name: KeyName<&str>,
        ciphertext: &[u8],
        oaep: OaepHash,
        options: ImportOptions,
    ) -> Result<(), KeyringError> {
        let ciphertext = ciphertext.to_vec();
        self.change(name, move |inner, name| async move {
            inner.import(&name, &ciphertext, oaep, options).await
        })
        .await
    }

    /// BYOK: adds a version to an imported key; returns it.
    ///
    /// # Errors
    /// As [`Keyring::import`], and [`KeyringError::Refused`] if the key is not an imported one.
    pub async fn import_version(
        &self,
        name: KeyName<&str>,
        ciphertext: &[u8],
        oaep: OaepHash,
    ) -> Result<u32, KeyringError> {
        let ciphertext = ciphertext.to_vec();
        self.change(name, move |inner, name| async move {
            inner.import_version(&name, &ciphertext, oaep).await
        })
        .await
    }

    /// The BYOK wrapping key's public half, PEM (`SubjectPublicKeyInfo`, RFC 7468).
    pub fn wrapping_key_pem(&self) -> String {
        spki_pem(&self.inner.hsm.wrapping_public_key())
    }

    /// How many keys and versions of keys there are.
    pub fn size(&self) -> (usize, usize) {
        let keys = self.inner.keys.load();
        (keys.len(), keys.values().map(NamedKey::count).sum())
    }

    /// A key's settings and versions.
    ///
    /// # Errors
    /// [`KeyringError::NotFound`].
    pub fn read(&self, name: KeyName<&str>) -> Result<KeyInfo, KeyringError> {
        let key = self
            .inner
            .find(name.as_str())
            .ok_or(KeyringError::NotFound)?;
        Ok(key.info())
    }

    /// Whether a key of that name exists.
    pub fn exists(&self, name: KeyName<&str>) -> bool {
        self.inner.exists(name.as_str())
    }

    /// Every key's name, sorted.
    pub fn list(&self) -> Vec<KeyName> {
        let mut names: Vec<_> = self.inner.keys.load().keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// Adds a version and makes it the latest; returns it.
    ///
    /// # Errors
    /// [`KeyringError::NotFound`]; [`KeyringError::Refused`] if it was imported without
    /// `allow_rotation`.
    pub async fn rotate(&self, name: KeyName<&str>) -> Result<u32, KeyringError> {
        self.change(name, |inner, name| async move {
            inner.rotate(&name, None).await
        })
        .await
    }

    /// Changes settings, all or none.
    ///
    /// # Errors
    /// [`KeyringError::Refused`]; [`KeyringError::NotFound`].
    pub async fn configure(
        &self,
        name: KeyName<&str>,
        change: ConfigChange,
    ) -> Result<KeyInfo, KeyringError> {
        self.change(name, move |inner, name| async move {
            inner.configure(&name, &change).await
        })
        .await
    }

    /// Destroys the versions below `min_available_version`.
    ///
    /// # Errors
    /// [`KeyringError::Refused`]; [`KeyringError::NotFound`].
    pub async fn trim(
        &self,
        name: KeyName<&str>,
        min_available_version: u32,
    ) -> Result<(), KeyringError> {
        self.change(name, move |inner, name| async move {
            inner.trim(&name, min_available_version).await
        })
        .await
    }

    /// Destroys a key, if its `deletion_allowed` is set.
    ///
    /// # Errors
    /// [`KeyringError::Refused`]; [`KeyringError::NotFound`].
    pub async fn delete(&self, name: KeyName<&str>) -> Result<(), KeyringError> {
        self.change(name, |inner, name| async move { inner.delete(&name).await })
            .await
    }
}

impl Inner {
    fn exists(&self, name: &str) -> bool {
        self.keys.load().contains_key(name)
    }
}

/// `SubjectPublicKeyInfo`, DER, as PEM (RFC 7468).
fn spki_pem(spki: &[u8]) -> String {
    // No key is so long that the length of its text overflows.
    pem::encode_string("PUBLIC KEY", LineEnding::LF, spki).unwrap_or_default()
}

fn unix_seconds() -> i64 {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod rotation_tests;
#[cfg(test)]
mod tests;
