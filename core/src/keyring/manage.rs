//! What is done to keys, each under the lock of [`Inner::change`]; and how keys that encrypt are
//! made.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use strongroom_hsm::{HsmError, KeyUsage, MasterKind, OaepHash, WrappedKey};

use super::counter::UseCounter;
use super::key::{Key, Settings, Version, Wrapped, put_counter};
use super::memory::MemorySlot;
use super::named::NamedKey;
use super::rules::check_auto_rotate;
use super::{
    ConfigChange, CreateOptions, ImportOptions, Inner, Kdf, KeyInfo, KeyName, KeyType,
    KeyringError, Refusal, Residency, signing,
};

/// The RSA-4096 part of an import's ciphertext, bytes.
const IMPORT_RSA_BYTES: usize = 512;

impl Inner {
    /// `false`: there is a key of that name, which is left as it is.
    pub(super) async fn create(
        &self,
        name: &KeyName,
        options: CreateOptions,
    ) -> Result<bool, KeyringError> {
        check_auto_rotate(options.auto_rotate_period)?;
        if let KeyType::Signing(kind) = options.key_type {
            signing::check_options(kind, &options)?;
        }
        if self.exists(name) {
            return Ok(false);
        }
        match options.key_type {
            KeyType::Aes256Gcm96 => self.create_encryption_key(name, &options).await?,
            KeyType::Signing(kind) => self.create_signing_key(name, kind, &options).await?,
        }
        Ok(true)
    }

    pub(super) async fn import(
        &self,
        name: &KeyName,
        ciphertext: &[u8],
        oaep: OaepHash,
        options: ImportOptions,
    ) -> Result<(), KeyringError> {
        check_auto_rotate(options.create.auto_rotate_period)?;
        if !options.create.auto_rotate_period.is_zero() && !options.allow_rotation {
            return Err(Refusal::PeriodWithoutRotation.into());
        }
        if options.create.convergent {
            return Err(Refusal::ImportConvergent.into());
        }
        if self.exists(name) {
            return Err(KeyringError::Exists(name.to_string()));
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
        let key = self.find(name);
        let key = key.as_ref().and_then(NamedKey::encryption);
        let key = key.ok_or(KeyringError::NotFound)?;
        if !key.settings.imported {
            return Err(Refusal::NotImported.into());
        }
        self.check_residency(key.settings.residency)?;
        let number = key.settings.rules().next_version()?;
        let version = self
            .unwrap_import(&key.settings, number, ciphertext, oaep)
            .await?;
        self.append(key, version, true).await
    }

    /// `expected`: rotate only if this is still the latest version.
    pub(super) async fn rotate(
        &self,
        name: &str,
        expected: Option<u32>,
    ) -> Result<u32, KeyringError> {
        let key = self.find(name).ok_or(KeyringError::NotFound)?;
        let latest = key.rules().latest_version;
        if expected.is_some_and(|expected| expected != latest) {
            return Ok(latest);
        }
        let change = async {
            match &key {
                NamedKey::Encryption(key) => self.append_generated(key).await,
                NamedKey::Signing(key) => self.append_signing(key).await,
            }
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
        change: &ConfigChange,
    ) -> Result<KeyInfo, KeyringError> {
        let key = self.find(name).ok_or(KeyringError::NotFound)?;
        let changed = key.configured(change)?;
        if changed.rules() != key.rules() {
            self.put(changed.clone(), Vec::new()).await?;
        }
        Ok(changed.info())
    }

    pub(super) async fn trim(&self, name: &str, min: u32) -> Result<(), KeyringError> {
        let key = self.find(name).ok_or(KeyringError::NotFound)?;
        let (changed, removal) = key.trimmed(min)?;
        self.put(changed, removal.changes).await?;
        self.clear(removal.leftovers).await;
        Ok(())
    }

    pub(super) async fn delete(&self, name: &str) -> Result<(), KeyringError> {
        let key = self.find(name).ok_or(KeyringError::NotFound)?;
        if !key.rules().deletion_allowed {
            return Err(Refusal::DeletionNotAllowed(name.to_owned()).into());
        }
        let removal = key.removal();
        self.commit(removal.changes, || self.unpublish(name))
            .await?;
        self.clear(removal.leftovers).await;
        Ok(())
    }

    /// Makes `total` encryptions of a version durable as reserved.
    pub(super) async fn reserve(
        &self,
        name: &str,
        version: &Arc<Version>,
        total: u64,
    ) -> Result<(), KeyringError> {
        // Only of a version that still is: a reservation must not bring back the record of a
        // deleted key.
        let current = self.find(name);
        let current = current.as_ref().and_then(NamedKey::encryption);
        if !current
            .ok_or(KeyringError::NotFound)?
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

    async fn create_encryption_key(
        &self,
        name: &KeyName,
        options: &CreateOptions,
    ) -> Result<(), KeyringError> {
        if options.convergent && !options.derived {
            return Err(Refusal::ConvergentNotDerived.into());
        }
        let settings = self.settings(options, false, false)?;
        let version = self.generate(&settings, 1).await?;
        self.add(name, settings, version).await
    }

    /// One version more, made in the token.
    async fn append_generated(&self, key: &Key) -> Result<u32, KeyringError> {
        if !key.may_rotate() {
            return Err(Refusal::RotationNotAllowed(key.name.to_string()).into());
        }
        self.check_residency(key.settings.residency)?;
        let number = key.settings.rules().next_version()?;
        let version = self.generate(&key.settings, number).await?;
        self.append(key, version, false).await
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
            .split_at_checked(IMPORT_RSA_BYTES)
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
        name: &KeyName,
        settings: Settings,
        version: Version,
    ) -> Result<(), KeyringError> {
        let empty = Key {
            name: name.clone(),
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
            version.put(&key.name)?,
            put_counter(&key.name, number, self.first_reservation()),
        ];
        changed.versions.insert(number, Arc::new(version));
        self.put(NamedKey::Encryption(Arc::new(changed)), changes)
            .await?;
        Ok(number)
    }

    fn first_reservation(&self) -> u64 {
        self.options.counter_block.min(self.options.nonce_limit)
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
