//! Changes of keys: made under one lock, durable before they are in force, and run to their end
//! even if the caller goes away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use strongroom_hsm::{HsmError, KeyUsage, MasterKind, OaepHash, WrappedKey};

use super::counter::UseCounter;
use super::key::{Key, Settings, Version, Wrapped, check_name, id, put_counter};
use super::memory::MemorySlot;
use super::{
    ConfigChange, CreateOptions, ImportOptions, Inner, Kdf, KeyringError, Refusal, Residency,
};
use crate::seldom::seldom;
use crate::store::{Change, RecordKind};

/// Vault's shortest.
const MIN_AUTO_ROTATE: Duration = Duration::from_hours(1);
/// The RSA-4096 part of an import's ciphertext, bytes.
const IMPORT_RSA: usize = 512;

impl Inner {
    pub(super) async fn create(
        &self,
        name: &str,
        options: CreateOptions,
    ) -> Result<bool, KeyringError> {
        check_name(name)?;
        check_auto_rotate(options.auto_rotate_period)?;
        let _turn = self.writer.lock().await;
        if self.is_taken(name) {
            return Ok(false);
        }
        if options.convergent && !options.derived {
            return Err(Refusal::ConvergentNotDerived.into());
        }
        let settings = self.settings(&options, false, false)?;
        let version = self.generate(&settings, 1).await?;
        self.add(name, settings, version).await?;
        Ok(true)
    }

    pub(super) async fn import(
        &self,
        name: &str,
        ciphertext: &[u8],
        oaep: OaepHash,
        options: ImportOptions,
    ) -> Result<(), KeyringError> {
        check_name(name)?;
        check_auto_rotate(options.create.auto_rotate_period)?;
        if !options.create.auto_rotate_period.is_zero() && !options.allow_rotation {
            return Err(Refusal::PeriodWithoutRotation.into());
        }
        if options.create.convergent {
            return Err(Refusal::ImportConvergent.into());
        }
        let _turn = self.writer.lock().await;
        if self.is_taken(name) {
            return Err(KeyringError::Exists(name.to_owned()));
        }
        let settings = self.settings(&options.create, true, options.allow_rotation)?;
        let version = self.unwrap_import(&settings, 1, ciphertext, oaep).await?;
        self.add(name, settings, version).await
    }

    pub(super) async fn import_version(
        &self,
        name: &str,
        ciphertext: &[u8],
        oaep: OaepHash,
    ) -> Result<u32, KeyringError> {
        let _turn = self.writer.lock().await;
        let key = self.find(name).ok_or(KeyringError::NotFound)?;
        if !key.settings.imported {
            return Err(Refusal::NotImported.into());
        }
        self.check_residency(key.settings.residency)?;
        let number = next_version(&key.settings)?;
        let version = self
            .unwrap_import(&key.settings, number, ciphertext, oaep)
            .await?;
        self.append(&key, version, true).await
    }

    /// `expected`: rotate only if this is still the latest version.
    pub(super) async fn rotate(
        &self,
        name: &str,
        expected: Option<u32>,
    ) -> Result<u32, KeyringError> {
        let _turn = self.writer.lock().await;
        let key = self.find(name).ok_or(KeyringError::NotFound)?;
        let latest = key.settings.latest_version;
        if expected.is_some_and(|expected| expected != latest) {
            return Ok(latest);
        }
        let change = async {
            if !key.may_rotate() {
                return Err(Refusal::RotationNotAllowed(name.to_owned()).into());
            }
            self.check_residency(key.settings.residency)?;
            let number = next_version(&key.settings)?;
            let version = self.generate(&key.settings, number).await?;
            self.append(&key, version, false).await
        };
        // What a request asked for, it records itself.
        if expected.is_none() {
            return change.await;
        }
        let next = latest.saturating_add(1);
        self.recorded(("auto-rotate", name, next), "", change).await
    }

    pub(super) async fn configure(
        &self,
        name: &str,
        change: ConfigChange,
    ) -> Result<Arc<Key>, KeyringError> {
        let _turn = self.writer.lock().await;
        let key = self.find(name).ok_or(KeyringError::NotFound)?;
        let settings = configured(&key.settings, &change)?;
        if settings == key.settings {
            return Ok(key);
        }
        let changed = Arc::new(Key {
            settings,
            ..Key::clone(&key)
        });
        self.commit(vec![changed.put()?], || self.publish(Arc::clone(&changed)))
            .await?;
        Ok(changed)
    }

    pub(super) async fn trim(&self, name: &str, min: u32) -> Result<(), KeyringError> {
        let _turn = self.writer.lock().await;
        let key = self.find(name).ok_or(KeyringError::NotFound)?;
        check_trim(&key.settings, min)?;
        let mut changed = Key::clone(&key);
        changed.settings.min_available_version = min;
        let kept = changed.versions.split_off(&min);
        let gone = std::mem::replace(&mut changed.versions, kept);
        let mut changes = vec![changed.put()?];
        changes.extend(gone.keys().flat_map(|number| delete_version(name, *number)));
        self.commit(changes, || self.publish(Arc::new(changed)))
            .await?;
        self.forget(&gone).await;
        Ok(())
    }

    pub(super) async fn delete(&self, name: &str) -> Result<(), KeyringError> {
        let _turn = self.writer.lock().await;
        let key = self.find(name).ok_or(KeyringError::NotFound)?;
        if !key.settings.deletion_allowed {
            return Err(Refusal::DeletionNotAllowed(name.to_owned()).into());
        }
        let mut changes = vec![Change::Delete(id(RecordKind::Key, name, 0))];
        let versions = key.versions.keys();
        changes.extend(versions.flat_map(|number| delete_version(name, *number)));
        self.commit(changes, || self.unpublish(name)).await?;
        self.forget(&key.versions).await;
        Ok(())
    }

    /// Makes `total` encryptions of a version durable as reserved.
    pub(super) async fn reserve(
        &self,
        name: &str,
        version: &Arc<Version>,
        total: u64,
    ) -> Result<(), KeyringError> {
        let _turn = self.writer.lock().await;
        // Only of a version that still is: a reservation must not bring back the record of a
        // deleted key.
        let current = self.find(name).ok_or(KeyringError::NotFound)?;
        if !current
            .versions
            .get(&version.number)
            .is_some_and(|current| Arc::ptr_eq(current, version))
        {
            return Err(Refusal::NoSuchVersion.into());
        }
        if version.counter.is_reserved(total) {
            return Ok(());
        }
        let change = put_counter(name, version.number, total);
        self.commit(vec![change], || version.counter.reserved(total))
            .await
    }

    fn settings(
        &self,
        options: &CreateOptions,
        imported: bool,
        allow_rotation: bool,
    ) -> Result<Settings, KeyringError> {
        let residency = options.residency.unwrap_or(self.options.default_residency);
        self.check_residency(residency)?;
        Ok(Settings {
            residency,
            derived: options.derived,
            convergent: options.convergent,
            // As Vault has it: the key of an import is not known to be uniformly random in the way
            // HKDF-Expand wants it.
            kdf: if imported && options.derived {
                Kdf::HmacSha256Counter
            } else {
                Kdf::HkdfSha256
            },
            imported,
            allow_rotation,
            deletion_allowed: false,
            auto_rotate_period: options.auto_rotate_period.as_secs(),
            min_available_version: 0,
            min_decryption_version: 1,
            min_encryption_version: 0,
            latest_version: 0,
        })
    }

    async fn generate(&self, settings: &Settings, number: u32) -> Result<Version, KeyringError> {
        let kek = self
            .hsm
            .generate_key(settings.usage(), settings.master())
            .await?;
        self.version(number, kek).await
    }

    async fn unwrap_import(
        &self,
        settings: &Settings,
        number: u32,
        ciphertext: &[u8],
        oaep: OaepHash,
    ) -> Result<Version, KeyringError> {
        let (rsa, target) = ciphertext
            .split_at_checked(IMPORT_RSA)
            .filter(|(_, target)| !target.is_empty())
            .ok_or(Refusal::ImportTooShort)?;
        let (usage, master) = (settings.usage(), settings.master());
        let imported = self
            .hsm
            .import_key(oaep, rsa.to_vec(), target.to_vec(), usage, master)
            .await;
        let kek = imported.map_err(|error| match error {
            HsmError::Authentication => Refusal::ImportUnwrap.into(),
            HsmError::InvalidKey(why) => Refusal::ImportUnusable(why).into(),
            HsmError::Unsupported(what) => Refusal::ImportUnsupported(what).into(),
            other => KeyringError::Hsm(other),
        })?;
        self.version(number, kek).await
    }

    async fn version(&self, number: u32, kek: WrappedKey) -> Result<Version, KeyringError> {
        let mac = self
            .hsm
            .generate_key(KeyUsage::Mac, MasterKind::Hsm)
            .await?;
        Ok(Version {
            number,
            created: (self.clock)(),
            wrapped: ArcSwap::from_pointee(Wrapped {
                kek: Arc::new(kek),
                mac: Arc::new(mac),
            }),
            counter: UseCounter::fresh(self.first_reservation()),
            memory: MemorySlot::new(),
        })
    }

    /// A new key with its first version.
    async fn add(
        &self,
        name: &str,
        settings: Settings,
        version: Version,
    ) -> Result<(), KeyringError> {
        let empty = Key {
            name: name.to_owned(),
            settings,
            versions: BTreeMap::new(),
        };
        let imported = empty.settings.imported;
        self.append(&empty, version, imported).await.map(drop)
    }

    async fn append(
        &self,
        key: &Key,
        version: Version,
        imported: bool,
    ) -> Result<u32, KeyringError> {
        let number = version.number;
        let mut changed = key.clone();
        changed.settings.latest_version = number;
        changed.settings.imported = imported;
        let changes = vec![
            changed.put()?,
            version.put(&key.name)?,
            put_counter(&key.name, number, self.first_reservation()),
        ];
        changed.versions.insert(number, Arc::new(version));
        self.commit(changes, || self.publish(Arc::new(changed)))
            .await?;
        Ok(number)
    }

    fn first_reservation(&self) -> u64 {
        self.options.counter_block.min(self.options.nonce_limit)
    }

    /// Commits, and puts the change in force when the disc has it: also if the token could not be
    /// told of it, because a restart would bring it into force in any case.
    pub(super) async fn commit(
        &self,
        changes: Vec<Change>,
        apply: impl FnOnce(),
    ) -> Result<(), KeyringError> {
        let outcome = self.store.commit(changes).await;
        if outcome
            .as_ref()
            .err()
            .is_none_or(super::super::store::StoreError::is_applied)
        {
            apply();
        }
        outcome?;
        Ok(())
    }

    /// Drops what the token holds of these versions; if it can't be reached its session objects are
    /// gone with the session.
    async fn forget(&self, versions: &BTreeMap<u32, Arc<Version>>) {
        let ids = versions
            .values()
            .flat_map(|version| [version.kek().id, version.mac().id])
            .collect();
        if let Err(error) = self.hsm.forget(ids).await {
            seldom!(1, warn, %error, "the session objects of destroyed keys stay until they are the least used");
        }
    }

    pub(super) fn check_residency(&self, residency: Residency) -> Result<(), KeyringError> {
        if residency == Residency::Hsm {
            Ok(())
        } else if self.options.fips {
            Err(Refusal::MemoryInFips.into())
        } else if !self.hsm.profile().memory_master {
            Err(Refusal::NoMemoryMaster.into())
        } else {
            Ok(())
        }
    }
}

pub(super) fn check_auto_rotate(period: Duration) -> Result<(), Refusal> {
    if period.is_zero() || period >= MIN_AUTO_ROTATE {
        Ok(())
    } else {
        Err(Refusal::PeriodTooShort)
    }
}

pub(super) fn next_version(settings: &Settings) -> Result<u32, Refusal> {
    settings
        .latest_version
        .checked_add(1)
        .ok_or(Refusal::NoNumberLeft)
}

fn delete_version(name: &str, number: u32) -> [Change; 2] {
    [RecordKind::KeyVersion, RecordKind::UseCounter]
        .map(|kind| Change::Delete(id(kind, name, number)))
}

/// The settings after the change; the rules of versions are Vault's.
pub(super) fn configured(current: &Settings, change: &ConfigChange) -> Result<Settings, Refusal> {
    let mut new = current.clone();
    let latest = current.latest_version;
    if let Some(min) = change.min_decryption_version {
        if min > latest {
            return Err(Refusal::MinDecryptionAboveLatest { asked: min, latest });
        }
        new.min_decryption_version = min.max(1);
    }
    if let Some(min) = change.min_encryption_version {
        if min > latest {
            return Err(Refusal::MinEncryptionAboveLatest { asked: min, latest });
        }
        new.min_encryption_version = min;
    }
    let (encryption, decryption) = (new.min_encryption_version, new.min_decryption_version);
    if encryption > 0 && encryption < decryption {
        return Err(Refusal::EncryptsBelowDecryption {
            encryption,
            decryption,
        });
    }
    if let Some(allowed) = change.deletion_allowed {
        new.deletion_allowed = allowed;
    }
    if let Some(period) = change.auto_rotate_period {
        check_auto_rotate(period)?;
        if !period.is_zero() && current.imported && !current.allow_rotation {
            return Err(Refusal::PeriodWithoutRotation);
        }
        new.auto_rotate_period = period.as_secs();
    }
    if new.min_available_version > encryption {
        return Err(Refusal::MinEncryptionDestroyed);
    }
    if new.min_available_version > decryption {
        return Err(Refusal::MinDecryptionDestroyed);
    }
    Ok(new)
}

/// Whether the versions below `min` may be destroyed; the rules are Vault's.
pub(super) fn check_trim(settings: &Settings, min: u32) -> Result<(), Refusal> {
    if min < settings.min_available_version {
        Err(Refusal::TrimBackwards)
    } else if settings.min_encryption_version == 0 {
        Err(Refusal::TrimWithoutMinEncryption)
    } else if min > settings.min_encryption_version {
        Err(Refusal::TrimEncrypting)
    } else if min > settings.min_decryption_version {
        Err(Refusal::TrimDecrypting)
    } else if min == 0 {
        Err(Refusal::TrimZero)
    } else {
        Ok(())
    }
}
