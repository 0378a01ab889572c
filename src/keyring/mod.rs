//! Named keys, their versions, where they are used (residency), and their rotation: what the API calls.

mod types;

pub use types::{
    Algorithm, Ciphertext, ConfigChange, CreateOptions, DataKey, DecryptItem, EncryptItem,
    HmacInput, HmacTag, ImportOptions, KeyInfo, KeyringError, RandomSource, Residency, VersionInfo,
};

use std::sync::Arc;
use strongroom_hsm::{Hsm, OaepHash};
use zeroize::Zeroizing;

use crate::store::Store;

/// Settings of the keyring as a whole.
#[derive(Clone, Debug)]
pub struct KeyringOptions {
    /// For keys created without a residency of their own.
    pub default_residency: Residency,
    /// A key in `memory` residency is dropped from memory after this long without use.
    pub memory_idle: std::time::Duration,
    /// `memory` residency is refused.
    pub fips: bool,
}

/// The named keys of this appliance.
pub struct Keyring {}

type PerItem<T> = Result<Vec<Result<T, KeyringError>>, KeyringError>;

#[allow(unused_variables, clippy::todo, clippy::unused_async)]
impl Keyring {
    /// Loads every key's settings and wrapped KEKs from the store.
    pub async fn open(
        store: Arc<Store>,
        hsm: Hsm,
        options: KeyringOptions,
    ) -> Result<Self, KeyringError> {
        todo!()
    }

    /// Creates a key at version 1. Creating one that exists changes nothing and answers `false`, as Vault does.
    pub async fn create(&self, name: &str, options: CreateOptions) -> Result<bool, KeyringError> {
        todo!()
    }

    /// BYOK: creates a key from wrapped material (`ciphertext` = RSA-OAEP(AES key) || AES-KWP(target)).
    pub async fn import(
        &self,
        name: &str,
        ciphertext: &[u8],
        oaep: OaepHash,
        options: ImportOptions,
    ) -> Result<(), KeyringError> {
        todo!()
    }

    /// BYOK: adds a version to an imported key.
    pub async fn import_version(
        &self,
        name: &str,
        ciphertext: &[u8],
        oaep: OaepHash,
    ) -> Result<u32, KeyringError> {
        todo!()
    }

    /// The BYOK wrapping key's public half, PEM.
    pub fn wrapping_key_pem(&self) -> String {
        todo!()
    }

    /// A key's settings and versions.
    pub fn read(&self, name: &str) -> Result<KeyInfo, KeyringError> {
        todo!()
    }

    /// Whether a key of that name exists.
    pub fn exists(&self, name: &str) -> bool {
        todo!()
    }

    /// Every key's name, sorted.
    pub fn list(&self) -> Vec<String> {
        todo!()
    }

    /// Adds a version and makes it the latest; returns it.
    pub async fn rotate(&self, name: &str) -> Result<u32, KeyringError> {
        todo!()
    }

    /// Changes settings, all or none.
    pub async fn configure(
        &self,
        name: &str,
        change: ConfigChange,
    ) -> Result<KeyInfo, KeyringError> {
        todo!()
    }

    /// Destroys the versions below `min_available_version`.
    pub async fn trim(&self, name: &str, min_available_version: u32) -> Result<(), KeyringError> {
        todo!()
    }

    /// Destroys a key, if its `deletion_allowed` is set.
    pub async fn delete(&self, name: &str) -> Result<(), KeyringError> {
        todo!()
    }

    /// Encrypts with each item's version, else the latest.
    pub async fn encrypt(&self, name: &str, items: Vec<EncryptItem>) -> PerItem<Ciphertext> {
        todo!()
    }

    /// Decrypts each item with the version that it names.
    pub async fn decrypt(
        &self,
        name: &str,
        items: Vec<DecryptItem>,
    ) -> PerItem<Zeroizing<Vec<u8>>> {
        todo!()
    }

    /// Decrypts and encrypts again with `target` (else the latest) version; the plaintext stays in here.
    pub async fn rewrap(
        &self,
        name: &str,
        items: Vec<DecryptItem>,
        target: Option<u32>,
    ) -> PerItem<Ciphertext> {
        todo!()
    }

    /// A fresh random key of 128, 256 or 512 bits, in plaintext and encrypted.
    pub async fn data_key(
        &self,
        name: &str,
        bits: u32,
        template: EncryptItem,
    ) -> Result<DataKey, KeyringError> {
        todo!()
    }

    /// HMAC of each input with the version's HMAC key.
    pub async fn hmac(
        &self,
        name: &str,
        algorithm: Algorithm,
        version: Option<u32>,
        inputs: Vec<HmacInput>,
    ) -> PerItem<HmacTag> {
        todo!()
    }

    /// Whether each tag is the HMAC of its input; constant-time.
    pub async fn verify_hmac(
        &self,
        name: &str,
        algorithm: Algorithm,
        inputs: Vec<(HmacInput, HmacTag)>,
    ) -> PerItem<bool> {
        todo!()
    }

    /// Random bytes.
    pub async fn random(
        &self,
        len: usize,
        source: RandomSource,
    ) -> Result<Zeroizing<Vec<u8>>, KeyringError> {
        todo!()
    }

    /// Rotates every key whose `auto_rotate_period` has passed; returns their names. Called by a timer.
    pub async fn rotate_due(&self) -> Vec<(String, Result<u32, KeyringError>)> {
        todo!()
    }

    /// Drops `memory` keys idle for too long. Called by a timer.
    pub fn drop_idle(&self) {
        todo!()
    }
}
