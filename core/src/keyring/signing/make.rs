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

use std::collections::BTreeMap;
use std::sync::Arc;

use strongroom_hsm::{HsmError, SigningKind};
use zeroize::Zeroizing;

use super::record::{Settings, debris, debris_id, put_debris};
use super::{Marshaling, RsaScheme, SaltLength, SignOptions, SignatureKey, Version};
use crate::keyring::key::id;
use crate::keyring::named::{Leftovers, NamedKey, Removal};
use crate::keyring::rules::Rules;
use crate::keyring::schedule::{self, Verdict};
use crate::keyring::{
    ConfigChange, CreateOptions, Inner, KeyName, KeyType, KeyringError, Refusal, Residency,
    Scheduled,
};
use crate::store::{Change, RecordKind};

/// Whether a key of that kind can be made with these options.
pub(in crate::keyring) fn check_options(
    kind: SigningKind,
    options: &CreateOptions,
) -> Result<(), Refusal> {
    if options.derived || options.convergent {
        Err(Refusal::NoDerivation(kind))
    } else if options.residency == Some(Residency::Memory) {
        Err(Refusal::SigningInMemory)
    } else {
        Ok(())
    }
}

impl Inner {
    pub(in crate::keyring) async fn create_signing_key(
        &self,
        name: &KeyName,
        kind: SigningKind,
        options: &CreateOptions,
    ) -> Result<(), KeyringError> {
        let empty = SignatureKey {
            name: name.clone(),
            settings: Settings::new(kind, options.auto_rotate_period.as_secs()),
            versions: BTreeMap::new(),
        };
        self.append_signing(&empty).await?;
        Ok(())
    }

    /// From now on this version signs.
    pub(super) async fn activate(&self, name: &str, version: u32) -> Result<(), KeyringError> {
        let key = self.find_signing(name).ok_or(KeyringError::NotFound)?;
        let mut changed = SignatureKey::clone(&key);
        if !(changed.settings.signing_version..=changed.settings.latest_version).contains(&version)
        {
            return Err(Refusal::NoSuchVersion.into());
        }
        changed.settings.signing_version = version;
        let change = self.put(NamedKey::Signing(Arc::new(changed)), Vec::new());
        self.recorded(("key-sign", name, version), "it signs from now on", change)
            .await
    }

    /// From now on the versions below are not in the set of public keys.
    pub(super) async fn retire(&self, name: &str, version: u32) -> Result<(), KeyringError> {
        let key = self.find_signing(name).ok_or(KeyringError::NotFound)?;
        let mut changed = SignatureKey::clone(&key);
        if !(changed.settings.published_version..=changed.settings.signing_version)
            .contains(&version)
        {
            return Err(Refusal::NoSuchVersion.into());
        }
        changed.settings.published_version = version;
        let change = self.put(NamedKey::Signing(Arc::new(changed)), Vec::new());
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

    /// Whether verifiers get the key's public halves from the published set.
    pub(super) fn is_published(&self, name: &str) -> bool {
        self.options.jwt.keys.iter().any(|key| **key == *name)
    }

    /// One version more. A key that is not in the published set signs with it at once, as Vault
    /// does; so does one whose private key was lost with its token, since nothing else can sign
    /// for it.
    pub(in crate::keyring) async fn append_signing(
        &self,
        key: &SignatureKey,
    ) -> Result<u32, KeyringError> {
        let number = key.rules().next_version()?;
        let version = self.generate_signing(key.kind(), number).await?;
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
        self.put(NamedKey::Signing(Arc::new(changed)), changes)
            .await?;
        Ok(number)
    }

    /// Whether the token lacks the private key of the version that signs. One look that does not
    /// see it is no verdict: verifiers are refused what another version signs before they know it.
    async fn cannot_sign(&self, key: &SignatureKey) -> Result<bool, KeyringError> {
        let Some(signs) = key.versions.get(&key.settings.signing_version) else {
            return Ok(true);
        };
        if self.hsm.signing_keys().await?.contains(&signs.key.id) {
            return Ok(false);
        }
        self.hsm.restart_module().await;
        Ok(!self.hsm.signing_keys().await?.contains(&signs.key.id))
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
}

impl SignatureKey {
    pub(in crate::keyring) fn rules(&self) -> Rules {
        let settings = &self.settings;
        Rules {
            may_rotate: true,
            deletion_allowed: settings.deletion_allowed,
            auto_rotate_period: settings.auto_rotate_period,
            min_available_version: settings.min_available_version,
            min_decryption_version: settings.min_decryption_version,
            min_encryption_version: settings.min_encryption_version,
            latest_version: settings.latest_version,
        }
    }

    /// The key with other rules.
    pub(in crate::keyring) fn with(&self, rules: Rules) -> Self {
        let mut changed = self.clone();
        let settings = &mut changed.settings;
        settings.deletion_allowed = rules.deletion_allowed;
        settings.auto_rotate_period = rules.auto_rotate_period;
        settings.min_available_version = rules.min_available_version;
        settings.min_decryption_version = rules.min_decryption_version;
        settings.min_encryption_version = rules.min_encryption_version;
        settings.latest_version = rules.latest_version;
        changed
    }

    /// The version that signs must stay one that may.
    pub(in crate::keyring) fn check_minimum(&self, change: &ConfigChange) -> Result<(), Refusal> {
        let signing = self.settings.signing_version;
        let least = change
            .min_decryption_version
            .max(change.min_encryption_version);
        match least {
            Some(asked) if asked > signing && asked <= self.settings.latest_version => {
                Err(Refusal::MinAboveSigning { asked, signing })
            }
            _ => Ok(()),
        }
    }

    /// The key with these rules, without the versions that they say are destroyed.
    pub(in crate::keyring) fn trimmed(&self, rules: Rules) -> Result<(Self, Removal), Refusal> {
        let published = self.settings.published_version;
        if rules.min_available_version > published {
            return Err(Refusal::TrimPublished(published));
        }
        let mut trimmed = self.with(rules);
        let kept = trimmed.versions.split_off(&rules.min_available_version);
        let gone = std::mem::replace(&mut trimmed.versions, kept);
        Ok((trimmed, self.removal(&gone)))
    }

    /// What destroying every version takes.
    pub(in crate::keyring) fn removal_of_all(&self) -> Removal {
        self.removal(&self.versions)
    }

    fn removal(&self, versions: &BTreeMap<u32, Arc<Version>>) -> Removal {
        Removal {
            changes: versions
                .values()
                .flat_map(|version| version.delete(&self.name))
                .collect(),
            leftovers: Leftovers::PrivateKeys,
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
