//! A key by its name, whatever it is for: what every sort of key can be asked.

use std::collections::HashMap;
use std::sync::Arc;

use super::key::Key;
use super::rules::Rules;
use super::signing::SignatureKey;
use super::{ConfigChange, Inner, KeyInfo, KeyName, KeyringError, Refusal, Scheduled};
use crate::store::{Change, RecordId};

/// Every key there is, by its name.
pub(super) type Keys = HashMap<KeyName, NamedKey>;

/// A named key at one moment.
#[derive(Clone)]
pub(super) enum NamedKey {
    /// Encrypts and authenticates.
    Encryption(Arc<Key>),
    /// Signs.
    Signing(Arc<SignatureKey>),
}

/// What destroying versions takes.
pub(super) struct Removal {
    /// In the store.
    pub(super) changes: Vec<Change>,
    /// On the token, afterwards.
    pub(super) leftovers: Leftovers,
}

/// What the token holds of versions that are destroyed.
pub(super) enum Leftovers {
    /// Session objects of wrapped keys, by the keys' ids.
    SessionObjects(Vec<[u8; 16]>),
    /// Private keys, which the store says are debris.
    PrivateKeys,
}

impl NamedKey {
    pub(super) fn encryption(&self) -> Option<&Arc<Key>> {
        match self {
            Self::Encryption(key) => Some(key),
            Self::Signing(_) => None,
        }
    }

    pub(super) fn signing(&self) -> Option<&Arc<SignatureKey>> {
        match self {
            Self::Encryption(_) => None,
            Self::Signing(key) => Some(key),
        }
    }

    pub(super) fn name(&self) -> &KeyName {
        match self {
            Self::Encryption(key) => &key.name,
            Self::Signing(key) => &key.name,
        }
    }

    pub(super) fn info(&self) -> KeyInfo {
        match self {
            Self::Encryption(key) => key.info(),
            Self::Signing(key) => key.info(),
        }
    }

    pub(super) fn rules(&self) -> Rules {
        match self {
            Self::Encryption(key) => key.settings.rules(),
            Self::Signing(key) => key.rules(),
        }
    }

    /// How many versions it has.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Encryption(key) => key.versions.len(),
            Self::Signing(key) => key.count(),
        }
    }

    /// When it is rotated automatically.
    pub(super) fn scheduled(&self, now: i64) -> Scheduled {
        match self {
            Self::Encryption(key) => key.scheduled(now),
            Self::Signing(key) => key.scheduled(now),
        }
    }

    /// The key after the change.
    pub(super) fn configured(&self, change: &ConfigChange) -> Result<Self, Refusal> {
        if let Self::Signing(key) = self {
            key.check_minimum(change)?;
        }
        Ok(self.with(self.rules().configured(change)?))
    }

    /// The key without the versions below `min`, and what destroying them takes.
    pub(super) fn trimmed(&self, min: u32) -> Result<(Self, Removal), Refusal> {
        let rules = self.rules().trimmed(min)?;
        Ok(match self {
            Self::Encryption(key) => {
                let (key, removal) = key.trimmed(rules);
                (Self::Encryption(Arc::new(key)), removal)
            }
            Self::Signing(key) => {
                let (key, removal) = key.trimmed(rules)?;
                (Self::Signing(Arc::new(key)), removal)
            }
        })
    }

    /// What destroying it takes.
    pub(super) fn removal(&self) -> Removal {
        let mut removal = match self {
            Self::Encryption(key) => key.removal(key.versions.values()),
            Self::Signing(key) => key.removal_of_all(),
        };
        removal.changes.push(Change::Delete(self.place()));
        removal
    }

    /// Where its settings are in the store.
    fn place(&self) -> RecordId {
        match self {
            Self::Encryption(key) => key.place(),
            Self::Signing(key) => key.place(),
        }
    }

    /// The change that writes its settings.
    pub(super) fn put(&self) -> Result<Change, KeyringError> {
        match self {
            Self::Encryption(key) => key.put(),
            Self::Signing(key) => key.put(),
        }
    }

    fn with(&self, rules: Rules) -> Self {
        match self {
            Self::Encryption(key) => Self::Encryption(Arc::new(key.with(rules))),
            Self::Signing(key) => Self::Signing(Arc::new(key.with(rules))),
        }
    }
}

impl Inner {
    pub(super) fn find(&self, name: &str) -> Option<NamedKey> {
        self.keys.load().get(name).cloned()
    }

    /// A key that encrypts.
    pub(super) fn key(&self, name: &str) -> Result<Arc<Key>, KeyringError> {
        match self.keys.load().get(name) {
            Some(NamedKey::Encryption(key)) => Ok(Arc::clone(key)),
            Some(NamedKey::Signing(key)) => Err(Refusal::OnlySigns(key.kind()).into()),
            None => Err(KeyringError::NotFound),
        }
    }

    pub(super) fn find_signing(&self, name: &str) -> Option<Arc<SignatureKey>> {
        self.keys.load().get(name)?.signing().cloned()
    }
}
