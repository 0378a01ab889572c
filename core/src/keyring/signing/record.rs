//! What the store holds of signing keys: settings, versions, and the ids of private keys that are
//! to be destroyed.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use strongroom_hsm::{SigningKey, SigningKind};
use zeroize::Zeroizing;

use super::public::PublicKey;
use super::{SignatureKey, Version};
use crate::hex;
use crate::keyring::KeyringError;
use crate::keyring::key::{id, inconsistent, json, read_json, unreadable};
use crate::keyring::load::{Records, key_name, numbers};
use crate::store::{Change, RecordId, RecordKind};

/// The payload of a `SigningKey` record, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    r#type: Kind,
    pub(super) deletion_allowed: bool,
    /// Seconds; 0: none.
    pub(super) auto_rotate_period: u64,
    pub(super) min_available_version: u32,
    pub(super) min_decryption_version: u32,
    pub(super) min_encryption_version: u32,
    pub(super) latest_version: u32,
    /// Signs where none is asked for; not above the latest.
    pub(super) signing_version: u32,
    /// Those from here to the latest are in the set of public keys; not above the one that signs.
    pub(super) published_version: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    #[serde(rename = "ecdsa-p256")]
    EcdsaP256,
    #[serde(rename = "rsa-4096")]
    Rsa4096,
    #[serde(rename = "ed25519")]
    Ed25519,
}

impl Settings {
    /// Of a new key without versions.
    pub(super) fn new(kind: SigningKind, auto_rotate_period: u64) -> Self {
        Self {
            r#type: match kind {
                SigningKind::EcdsaP256 => Kind::EcdsaP256,
                SigningKind::Rsa4096 => Kind::Rsa4096,
                SigningKind::Ed25519 => Kind::Ed25519,
            },
            deletion_allowed: false,
            auto_rotate_period,
            min_available_version: 0,
            min_decryption_version: 1,
            min_encryption_version: 0,
            latest_version: 0,
            signing_version: 0,
            published_version: 0,
        }
    }

    pub(super) fn kind(&self) -> SigningKind {
        match self.r#type {
            Kind::EcdsaP256 => SigningKind::EcdsaP256,
            Kind::Rsa4096 => SigningKind::Rsa4096,
            Kind::Ed25519 => SigningKind::Ed25519,
        }
    }
}

/// The payload of a `SigningVersion` record, as JSON; byte strings are base64.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VersionRecord {
    created: i64,
    id: String,
    spki: String,
}

impl SignatureKey {
    /// Where the settings are in the store.
    pub(in crate::keyring) fn place(&self) -> RecordId {
        id(RecordKind::SigningKey, &self.name, 0)
    }

    /// The change that writes the settings.
    pub(in crate::keyring) fn put(&self) -> Result<Change, KeyringError> {
        Ok(Change::Put(self.place(), json(&self.settings)?))
    }
}

impl Version {
    /// The change that writes it.
    pub(super) fn put(&self, name: &str) -> Result<Change, KeyringError> {
        let record = VersionRecord {
            created: self.created,
            id: STANDARD.encode(self.key.id),
            spki: STANDARD.encode(&self.key.spki),
        };
        Ok(Change::Put(
            id(RecordKind::SigningVersion, name, self.number),
            json(&record)?,
        ))
    }

    /// Reads what [`Version::put`] wrote.
    pub(super) fn read(
        name: &str,
        number: u32,
        kind: SigningKind,
        record: &[u8],
    ) -> Result<Self, KeyringError> {
        let parsed = read_json::<VersionRecord>(record);
        let version = parsed.and_then(|record| {
            let key = SigningKey {
                id: STANDARD.decode(&record.id).ok()?.try_into().ok()?,
                kind,
                spki: STANDARD.decode(&record.spki).ok()?,
            };
            Some(Self {
                number,
                created: record.created,
                public: PublicKey::read(&key)?,
                key: key.into(),
            })
        });
        version.ok_or_else(|| unreadable(RecordKind::SigningVersion, name, number))
    }
}

/// Reads a `SigningKey` record.
pub(super) fn read_settings(name: &str, record: &[u8]) -> Result<Settings, KeyringError> {
    read_json(record).ok_or_else(|| unreadable(RecordKind::SigningKey, name, 0))
}

/// What is wrong with its own numbers; those that Vault has too are looked at with them.
fn problem(settings: &Settings) -> Option<String> {
    let Settings {
        min_available_version: available,
        published_version: published,
        signing_version: signing,
        latest_version: latest,
        ..
    } = *settings;
    let possible = available.max(1) <= published && published <= signing && signing <= latest;
    (!possible).then(|| {
        format!("has versions that can't be together: {available} available, {published} published, {signing} signs, {latest} the latest")
    })
}

/// Every signing key of the store, by name.
pub(in crate::keyring) fn load(records: &mut Records) -> Result<Vec<SignatureKey>, KeyringError> {
    let mut keys = Vec::new();
    let mut ids = HashSet::new();
    for name in records.names(RecordKind::SigningKey) {
        let place = id(RecordKind::SigningKey, &name, 0);
        let name = key_name(&place)?;
        let settings = read_settings(&name, &records.take(&place)?)?;
        if let Some(problem) = problem(&settings) {
            return Err(inconsistent(&place, problem));
        }
        let mut key = SignatureKey {
            name: name.clone(),
            settings,
            versions: BTreeMap::new(),
        };
        for number in numbers(&place, &key.rules())? {
            let place = id(RecordKind::SigningVersion, &name, number);
            let record = records.take(&place)?;
            let version = Version::read(&name, number, key.settings.kind(), &record)?;
            if !ids.insert(version.key.id) {
                return Err(inconsistent(&place, "has the key id of another version"));
            }
            key.versions.insert(number, Arc::new(version));
        }
        keys.push(key);
    }
    for name in records.names(RecordKind::SigningDebris) {
        let place = id(RecordKind::SigningDebris, &name, 0);
        if *records.take(&place)? != b"{}"[..] {
            return Err(unreadable(RecordKind::SigningDebris, &name, 0));
        }
        let Some(key) = debris_id(&place) else {
            return Err(inconsistent(
                &place,
                "names no key id, which has 32 hexadecimal digits",
            ));
        };
        // It would be destroyed.
        if ids.contains(&key) {
            return Err(inconsistent(
                &place,
                "wants a private key destroyed that a version needs",
            ));
        }
    }
    Ok(keys)
}

/// The record that says: a private key with this id is on the token, or may be, and nothing needs
/// it.
pub(super) fn debris(key: &[u8; 16]) -> RecordId {
    id(RecordKind::SigningDebris, &hex::encode(key), 0)
}

pub(super) fn put_debris(key: &[u8; 16]) -> Change {
    Change::Put(debris(key), Zeroizing::new(b"{}".to_vec()))
}

/// The id that a record of debris is about.
pub(super) fn debris_id(place: &RecordId) -> Option<[u8; 16]> {
    hex::decode(&place.name)
}
