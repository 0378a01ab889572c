//! Reads every record of the store into keys, and refuses a store that does not hold together: a
//! record too few, too many, of no format that is known, or that contradicts another. Each record
//! is authentic by then; what is refused here was written wrongly, or by another version.
//!
//! A start and `strongroom store status` both come through here, so that they can't judge
//! differently.

use std::collections::{BTreeMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use strongroom_hsm::{KeyUsage, MasterKind, WrappedKey};
use zeroize::Zeroizing;

use super::key::{Key, Settings, Version, id, inconsistent, read_settings};
use super::named::{Keys, NamedKey};
use super::rules::{Rules, check_auto_rotate};
use super::signing;
use super::{Kdf, KeyName, KeyringError};
use crate::store::{RecordId, RecordKind, Store};

/// Bytes of what RSA-4096 encrypts: the length of a wrapped key.
const WRAPPED_KEY_BYTES: usize = 512;

/// Every key there is.
pub(super) async fn load(store: &Store) -> Result<Keys, KeyringError> {
    let mut records = Records::read(store).await?;
    let mut keys = load_keys(&mut records)?;
    // Sorted by their names: the first that is another's is the one that is told.
    for key in signing::load(&mut records)? {
        if keys.contains_key(&key.name) {
            return Err(inconsistent(&key.place(), "has the name of another key"));
        }
        keys.insert(key.name.clone(), NamedKey::Signing(Arc::new(key)));
    }
    match records.0.keys().next() {
        None => Ok(keys),
        Some(place) => Err(inconsistent(
            place,
            "belongs to no key, or to no version that its key has",
        )),
    }
}

/// The payload of every record that no key has taken yet, by its place.
pub(super) struct Records(BTreeMap<RecordId, Zeroizing<Vec<u8>>>);

impl Records {
    async fn read(store: &Store) -> Result<Self, KeyringError> {
        let mut records = BTreeMap::new();
        for place in store.ids() {
            let payload = store.get(&place).await?;
            let payload = payload.ok_or_else(|| inconsistent(&place, "is missing"))?;
            records.insert(place, payload);
        }
        Ok(Self(records))
    }

    /// The names of the records of that kind, sorted.
    pub(super) fn names(&self, kind: RecordKind) -> Vec<String> {
        let of_kind = self.0.keys().filter(|place| place.kind == kind);
        let mut names: Vec<_> = of_kind.map(|place| place.name.clone()).collect();
        names.dedup();
        names
    }

    /// Takes a record that must be there.
    pub(super) fn take(&mut self, place: &RecordId) -> Result<Zeroizing<Vec<u8>>, KeyringError> {
        self.0
            .remove(place)
            .ok_or_else(|| inconsistent(place, "is missing"))
    }
}

fn load_keys(records: &mut Records) -> Result<Keys, KeyringError> {
    let mut keys = Keys::new();
    let mut ids = HashSet::new();
    for name in records.names(RecordKind::Key) {
        let place = id(RecordKind::Key, &name, 0);
        let name = key_name(&place)?;
        let settings = read_settings(&name, &records.take(&place)?)?;
        if let Some(problem) = problem(&settings) {
            return Err(inconsistent(&place, problem));
        }
        let mut versions = BTreeMap::new();
        for number in numbers(&place, &settings.rules())? {
            let place = id(RecordKind::KeyVersion, &name, number);
            let record = records.take(&place)?;
            let counter = records.take(&id(RecordKind::UseCounter, &name, number))?;
            let version = Version::read(&name, number, &record, &counter)?;
            check_version(&place, &settings, &version)?;
            for key in [version.kek(), version.mac()] {
                if !ids.insert(key.id) {
                    return Err(inconsistent(&place, "has the id of another wrapped key"));
                }
            }
            versions.insert(number, Arc::new(version));
        }
        let key = Key {
            name: name.clone(),
            settings,
            versions,
        };
        keys.insert(name, NamedKey::Encryption(Arc::new(key)));
    }
    Ok(keys)
}

/// The name of the key whose settings are in `place`.
///
/// # Errors
/// Naming `place`, if no key can have that name.
pub(super) fn key_name(place: &RecordId) -> Result<KeyName, KeyringError> {
    KeyName::parse(&place.name)
        .map(KeyName::to_owned)
        .ok_or_else(|| inconsistent(place, "has a name that no key can have"))
}

/// The versions that a key with these rules has, after the numbers were found to be possible.
///
/// # Errors
/// Naming `place`, which the rules are of, if its numbers or period can't be.
pub(super) fn numbers(
    place: &RecordId,
    rules: &Rules,
) -> Result<RangeInclusive<u32>, KeyringError> {
    let Rules {
        min_available_version: available,
        min_decryption_version: decryption,
        min_encryption_version: encryption,
        latest_version: latest,
        ..
    } = *rules;
    if check_auto_rotate(Duration::from_secs(rules.auto_rotate_period)).is_err() {
        return Err(inconsistent(place, "has a rotation period that can't be"));
    }
    let encryption_fits = match encryption {
        0 => available == 0,
        least => (available.max(decryption)..=latest).contains(&least),
    };
    if !(available.max(1)..=latest).contains(&decryption) || !encryption_fits {
        return Err(inconsistent(
            place,
            format!(
                "has minimum versions that can't be together: {available} available, {decryption} to decrypt, {encryption} to encrypt, {latest} the latest"
            ),
        ));
    }
    Ok(available.max(1)..=latest)
}

fn problem(settings: &Settings) -> Option<&'static str> {
    if settings.convergent && !settings.derived {
        Some("is convergent and not derived, which can't be")
    } else if settings.convergent && settings.kdf != Kdf::HkdfSha256 {
        Some("is convergent and derives with another function than HKDF, which can't be")
    } else {
        None
    }
}

/// Whether its wrapped keys are for what the settings use them for.
fn check_version(
    place: &RecordId,
    settings: &Settings,
    version: &Version,
) -> Result<(), KeyringError> {
    let wrapped = [
        (version.kek(), settings.usage(), settings.master()),
        (version.mac(), KeyUsage::Mac, MasterKind::Hsm),
    ];
    for (key, usage, master) in wrapped {
        let WrappedKey { blob, transfer, .. } = &*key;
        if key.usage != usage || key.master != master {
            return Err(inconsistent(
                place,
                "has a wrapped key of another usage or residency than its key's settings",
            ));
        }
        if blob.len() != WRAPPED_KEY_BYTES
            || transfer
                .as_ref()
                .is_some_and(|key| key.blob.len() != WRAPPED_KEY_BYTES)
        {
            return Err(inconsistent(
                place,
                "has a wrapped key that no RSA-4096 key has wrapped",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
