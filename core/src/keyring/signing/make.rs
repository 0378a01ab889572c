//! Changes of signing keys. A private key is on the token and not in the store's transaction, so
//! the store is told first of each id that may come to be on the token without a need (debris), and
//! last that it is needed, or gone:
//!
//! | | 1. store | 2. token | 3. store |
//! |---|---|---|---|
//! | new version | debris: id | generate | version, no debris |
//! | trim, delete | no version, debris: id | destroy | no debris |
//!
//! Whatever stops it in between, what is debris is destroyed at the next start, or as soon as the
//! token is there; what is a version is on the token.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use strongroom_hsm::{HsmError, SigningKind};
use zeroize::Zeroizing;

use super::record::{Settings, debris, debris_id, put_debris};
use super::{Marshaling, NamedKey, RsaScheme, SaltLength, SignOptions, Version};
use crate::keyring::key::{self, check_name, id};
use crate::keyring::manage::{check_auto_rotate, check_trim, configured, next_version};
use crate::keyring::schedule::{self, Verdict};
use crate::keyring::{
    ConfigChange, CreateOptions, Inner, Kdf, KeyType, KeyringError, Refusal, Residency, Scheduled,
};
use crate::seldom::seldom;
use crate::store::{Change, RecordKind};

impl Inner {
    pub(in crate::keyring) async fn create_signing_key(
        &self,
        name: &str,
        kind: SigningKind,
        options: &CreateOptions,
    ) -> Result<bool, KeyringError> {
        check_name(name)?;
        check_auto_rotate(options.auto_rotate_period)?;
        if options.derived || options.convergent {
            return Err(Refusal::NoDerivation(kind).into());
        }
        if options.residency == Some(Residency::Memory) {
            return Err(Refusal::SigningInMemory.into());
        }
        let _turn = self.writer.lock().await;
        if self.is_taken(name) {
            return Ok(false);
        }
        let empty = NamedKey {
            name: name.to_owned(),
            settings: Settings::new(kind, options.auto_rotate_period.as_secs()),
            versions: BTreeMap::new(),
        };
        self.append_signing(&empty).await?;
        Ok(true)
    }

    /// `expected`: rotate only if this is still the latest version.
    pub(in crate::keyring) async fn rotate_signing_key(
        &self,
        name: &str,
        expected: Option<u32>,
    ) -> Result<u32, KeyringError> {
        let _turn = self.writer.lock().await;
        let key = self.find_signing(name).ok_or(KeyringError::NotFound)?;
        let latest = key.settings.latest_version;
        if expected.is_some_and(|expected| expected != latest) {
            return Ok(latest);
        }
        let change = self.append_signing(&key);
        // What a request asked for, it records itself.
        if expected.is_none() {
            return change.await;
        }
        let next = latest.saturating_add(1);
        self.recorded(("auto-rotate", name, next), "", change).await
    }

    pub(in crate::keyring) async fn configure_signing_key(
        &self,
        name: &str,
        change: &ConfigChange,
    ) -> Result<(), KeyringError> {
        let _turn = self.writer.lock().await;
        let key = self.find_signing(name).ok_or(KeyringError::NotFound)?;
        let signing = key.settings.signing_version;
        let least = change
            .min_decryption_version
            .max(change.min_encryption_version);
        if let Some(least) =
            least.filter(|least| *least > signing && *least <= key.settings.latest_version)
        {
            return Err(Refusal::MinAboveSigning {
                asked: least,
                signing,
            }
            .into());
        }
        let new = configured(&key.vault_settings(), change)?;
        let mut changed = NamedKey::clone(&key);
        changed.settings.min_decryption_version = new.min_decryption_version;
        changed.settings.min_encryption_version = new.min_encryption_version;
        changed.settings.deletion_allowed = new.deletion_allowed;
        changed.settings.auto_rotate_period = new.auto_rotate_period;
        if changed.settings == key.settings {
            return Ok(());
        }
        self.put_signing(changed, Vec::new()).await
    }

    pub(in crate::keyring) async fn trim_signing_key(
        &self,
        name: &str,
        min: u32,
    ) -> Result<(), KeyringError> {
        let _turn = self.writer.lock().await;
        let key = self.find_signing(name).ok_or(KeyringError::NotFound)?;
        check_trim(&key.vault_settings(), min)?;
        let published = key.settings.published_version;
        if min > published {
            return Err(Refusal::TrimPublished(published).into());
        }
        let mut changed = NamedKey::clone(&key);
        changed.settings.min_available_version = min;
        let kept = changed.versions.split_off(&min);
        let gone = std::mem::replace(&mut changed.versions, kept);
        let changes = gone
            .values()
            .flat_map(|version| version.delete(name))
            .collect();
        self.put_signing(changed, changes).await?;
        self.sweep_quietly().await;
        Ok(())
    }

    pub(in crate::keyring) async fn delete_signing_key(
        &self,
        name: &str,
    ) -> Result<(), KeyringError> {
        let _turn = self.writer.lock().await;
        let key = self.find_signing(name).ok_or(KeyringError::NotFound)?;
        if !key.settings.deletion_allowed {
            return Err(Refusal::DeletionNotAllowed(name.to_owned()).into());
        }
        let mut changes = vec![Change::Delete(id(RecordKind::SigningKey, name, 0))];
        changes.extend(
            key.versions
                .values()
                .flat_map(|version| version.delete(name)),
        );
        self.commit(changes, || {
            let mut keys = HashMap::clone(&self.signing.load());
            keys.remove(name);
            self.signing.store(Arc::new(keys));
        })
        .await?;
        self.sweep_quietly().await;
        Ok(())
    }

    /// From now on this version signs.
    pub(super) async fn activate(&self, name: &str, version: u32) -> Result<(), KeyringError> {
        let _turn = self.writer.lock().await;
        let key = self.find_signing(name).ok_or(KeyringError::NotFound)?;
        let mut changed = NamedKey::clone(&key);
        if !(changed.settings.signing_version..=changed.settings.latest_version).contains(&version)
        {
            return Err(Refusal::NoSuchVersion.into());
        }
        changed.settings.signing_version = version;
        let change = self.put_signing(changed, Vec::new());
        self.recorded(("key-sign", name, version), "it signs from now on", change)
            .await
    }

    /// From now on the versions below are not in the set of public keys.
    pub(super) async fn retire(&self, name: &str, version: u32) -> Result<(), KeyringError> {
        let _turn = self.writer.lock().await;
        let key = self.find_signing(name).ok_or(KeyringError::NotFound)?;
        let mut changed = NamedKey::clone(&key);
        if !(changed.settings.published_version..=changed.settings.signing_version)
            .contains(&version)
        {
            return Err(Refusal::NoSuchVersion.into());
        }
        changed.settings.published_version = version;
        let change = self.put_signing(changed, Vec::new());
        let why = "the versions below it are not published any more";
        self.recorded(("key-retire", name, version), why, change)
            .await
    }

    /// Destroys what is debris on the token. With the token away it stays debris.
    pub(in crate::keyring) async fn sweep(&self) -> Result<usize, KeyringError> {
        let places: Vec<_> = self
            .store
            .ids()
            .into_iter()
            .filter(|place| place.kind == RecordKind::SigningDebris)
            .collect();
        if places.is_empty() {
            return Ok(0);
        }
        let ids = places.iter().filter_map(debris_id).collect();
        self.hsm.destroy_signing_keys(ids).await?;
        let swept = places.len();
        self.commit(places.into_iter().map(Change::Delete).collect(), || ())
            .await?;
        Ok(swept)
    }

    /// The same under the writer's lock, for the timer.
    pub(super) async fn sweep_in_turn(&self) -> Result<usize, KeyringError> {
        let _turn = self.writer.lock().await;
        self.sweep().await
    }

    async fn sweep_quietly(&self) {
        if let Err(error) = self.sweep().await {
            seldom!(1, warn, %error, "private keys that were destroyed in the store are destroyed on the token as soon as it answers");
        }
    }

    pub(in crate::keyring) fn find_signing(&self, name: &str) -> Option<Arc<NamedKey>> {
        self.signing.load().get(name).cloned()
    }

    /// Whether verifiers get the key's public halves from the published set.
    pub(super) fn is_published(&self, name: &str) -> bool {
        self.options.jwt.keys.iter().any(|key| key == name)
    }

    /// One version more. A key that is not in the published set signs with it at once, as Vault
    /// does; so does one whose private key was lost with its token, since nothing else can sign
    /// for it.
    async fn append_signing(&self, key: &NamedKey) -> Result<u32, KeyringError> {
        let number = key
            .settings
            .latest_version
            .checked_add(1)
            .map_or_else(|| next_version(&key.vault_settings()), Ok)?;
        let version = self.generate_signing(key.settings.kind(), number).await?;
        let mut changed = key.clone();
        changed.settings.latest_version = number;
        if number == 1 || !self.is_published(&key.name) {
            changed.settings.signing_version = number;
            changed.settings.published_version = number;
        } else if self.cannot_sign(key).await? {
            changed.settings.signing_version = number;
        }
        let changes = vec![
            version.put(&key.name)?,
            Change::Delete(debris(&version.key.id)),
        ];
        changed.versions.insert(number, Arc::new(version));
        self.put_signing(changed, changes).await?;
        Ok(number)
    }

    /// Whether the token lacks the private key of the version that signs.
    async fn cannot_sign(&self, key: &NamedKey) -> Result<bool, KeyringError> {
        let on_token = self.hsm.signing_keys().await?;
        let signs = key.versions.get(&key.settings.signing_version);
        Ok(signs.is_none_or(|version| !on_token.contains(&version.key.id)))
    }

    async fn generate_signing(
        &self,
        kind: SigningKind,
        number: u32,
    ) -> Result<Version, KeyringError> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| {
            KeyringError::System(format!("no random bytes from the kernel: {error}"))
        })?;
        if !self.hsm.profile().signing.contains(&kind) {
            return Err(Refusal::KindUnsupported(kind).into());
        }
        self.commit(vec![put_debris(&id)], || ()).await?;
        let key = self.hsm.generate_signing_key(kind, id).await?;
        let wrong = || KeyringError::Hsm(HsmError::SelfTest(format!("a new {} key", kind.name())));
        let version = Version {
            number,
            created: (self.clock)(),
            public: super::PublicKey::read(&key).ok_or_else(wrong)?,
            key: Arc::new(key),
        };
        self.try_out(&version, wrong).await?;
        Ok(version)
    }

    /// Pairwise (FIPS 140-3, 10.3.A): the token signs, the public half verifies; before anybody is
    /// told of the key.
    async fn try_out(
        &self,
        version: &Version,
        wrong: impl Fn() -> KeyringError,
    ) -> Result<(), KeyringError> {
        let options = SignOptions {
            rsa: RsaScheme::Pss(SaltLength::Hash),
            marshaling: Marshaling::Jws,
            ..SignOptions::default()
        };
        let message = b"Strongroom: the first signature of a key";
        let inputs = vec![Zeroizing::new(message.to_vec())];
        let made = super::make_signatures(&self.hsm, version, &options, inputs).await?;
        let made = made.into_iter().next().ok_or_else(&wrong)??;
        if version.public.verify(options, message, &made.bytes)? {
            Ok(())
        } else {
            Err(wrong())
        }
    }

    async fn put_signing(
        &self,
        key: NamedKey,
        mut changes: Vec<Change>,
    ) -> Result<(), KeyringError> {
        changes.push(key.put()?);
        self.commit(changes, || {
            let mut keys = HashMap::clone(&self.signing.load());
            keys.insert(key.name.clone(), Arc::new(key));
            self.signing.store(Arc::new(keys));
        })
        .await
    }
}

impl NamedKey {
    /// The settings that Vault's rules look at.
    pub(super) fn vault_settings(&self) -> key::Settings {
        let settings = &self.settings;
        key::Settings {
            residency: Residency::Hsm,
            derived: false,
            convergent: false,
            kdf: Kdf::default(),
            imported: false,
            allow_rotation: false,
            deletion_allowed: settings.deletion_allowed,
            auto_rotate_period: settings.auto_rotate_period,
            min_available_version: settings.min_available_version,
            min_decryption_version: settings.min_decryption_version,
            min_encryption_version: settings.min_encryption_version,
            latest_version: settings.latest_version,
        }
    }

    pub(in crate::keyring) fn scheduled(&self, now: i64) -> Scheduled {
        let latest = self.settings.latest_version;
        let verdict = self
            .versions
            .get(&latest)
            .map_or(Verdict::Never, |version| {
                let period = self.settings.auto_rotate_period;
                schedule::verdict(&self.name, latest, version.created, period, now)
            });
        Scheduled {
            name: self.name.clone(),
            latest,
            verdict,
            waiting: latest > self.settings.signing_version,
        }
    }
}

impl Version {
    /// The changes that take it out of the store and leave its private key as debris.
    fn delete(&self, name: &str) -> [Change; 2] {
        [
            Change::Delete(id(RecordKind::SigningVersion, name, self.number)),
            put_debris(&self.key.id),
        ]
    }
}

impl KeyType {
    /// Vault's name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Aes256Gcm96 => "aes256-gcm96",
            Self::Signing(kind) => kind.name(),
        }
    }
}
