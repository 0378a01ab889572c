//! Moving every key to the master key in force, one version at a time, while it is in use.
//!
//! A version is taken from the token to the store and only then put in force, so whatever stops the
//! work leaves each version under one master key or the other, both of which are on the token. What
//! is moved already is left alone: the work is simply begun again.

use std::sync::Arc;

use strongroom_hsm::{Hsm, MasterGeneration, MasterKind, WrappedKey};
use tokio::sync::MutexGuard;

use super::KeyName;
use super::key::Wrapped;
use super::named::{Keys, NamedKey};
use super::{Inner, Keyring, KeyringError};
use crate::hex::encode as hex;

/// Where the keys stand against the master key in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MoveProgress {
    /// Versions of keys.
    pub versions: usize,
    /// Those that are wrapped by the master key in force.
    pub moved: usize,
    /// Those that can't be moved to another one, because they were made without a transfer key:
    /// name and version, sorted.
    pub unmovable: Vec<(KeyName, u32)>,
}

impl MoveProgress {
    /// Nothing is left to be moved, and nothing that can't be.
    pub fn is_complete(&self) -> bool {
        self.moved == self.versions
    }
}

/// What became of one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// It is wrapped by the master key in force now.
    Now,
    /// It was so already, or is no more.
    Before,
}

impl Keyring {
    /// Returns once every change that was under way has been committed: a version that was still
    /// being made by the master key of before is counted from then on.
    pub async fn settle(&self) {
        drop(self.hold().await);
    }

    /// As [`Keyring::settle`]; no change is made as long as the answer is held.
    pub async fn hold(&self) -> MutexGuard<'_, ()> {
        self.inner.writer.lock().await
    }

    /// Counts the versions by the master key that wraps them.
    pub fn standing(&self) -> MoveProgress {
        let masters = Masters::of(&self.inner.hsm.generations());
        let mut standing = MoveProgress::default();
        for key in self
            .inner
            .keys
            .load()
            .values()
            .filter_map(NamedKey::encryption)
        {
            for version in key.versions.values() {
                standing.versions += 1;
                let wrapped = version.wrapped.load();
                let both = [&wrapped.kek, &wrapped.mac];
                if both.iter().all(|key| masters.in_force(key)) {
                    standing.moved += 1;
                }
                if !both.iter().all(|key| masters.is_movable(key)) {
                    standing.unmovable.push((key.name.clone(), version.number));
                }
            }
        }
        standing.unmovable.sort();
        standing
    }

    /// Name and version of each that is still to be moved and can be, sorted.
    pub fn to_move(&self) -> Vec<(KeyName, u32)> {
        let masters = Masters::of(&self.inner.hsm.generations());
        let mut left = Vec::new();
        for key in self
            .inner
            .keys
            .load()
            .values()
            .filter_map(NamedKey::encryption)
        {
            for version in key.versions.values() {
                let wrapped = version.wrapped.load();
                let both = [&wrapped.kek, &wrapped.mac];
                if !both.iter().all(|key| masters.in_force(key))
                    && both.iter().all(|key| masters.is_movable(key))
                {
                    left.push((key.name.clone(), version.number));
                }
            }
        }
        left.sort();
        left
    }

    /// Moves one version; durable when this returns.
    ///
    /// # Errors
    /// [`KeyringError::Hsm`], with [`strongroom_hsm::HsmError::NotMovable`] for a version that
    /// can't be; [`KeyringError::Store`].
    pub async fn move_version(
        &self,
        name: KeyName<&str>,
        version: u32,
    ) -> Result<Moved, KeyringError> {
        self.change(name, move |inner, name| async move {
            inner.move_version(&name, version).await
        })
        .await
    }
}

impl Inner {
    async fn move_version(&self, name: &str, number: u32) -> Result<Moved, KeyringError> {
        // Nobody trims or deletes the version meanwhile: that must not bring its record back.
        let key = self.find(name);
        let key = key.as_ref().and_then(NamedKey::encryption);
        let Some(version) = key.and_then(|key| key.versions.get(&number)) else {
            return Ok(Moved::Before);
        };
        let kek = self.hsm.rewrap(version.kek()).await?;
        let mac = self.hsm.rewrap(version.mac()).await?;
        if kek.is_none() && mac.is_none() {
            return Ok(Moved::Before);
        }
        let wrapped = Arc::new(Wrapped {
            kek: kek.map_or_else(|| version.kek(), Arc::new),
            mac: mac.map_or_else(|| version.mac(), Arc::new),
        });
        let change = version.put_wrapped(name, &wrapped)?;
        let change = self.commit(vec![change], || version.wrapped.store(wrapped));
        self.recorded(("move-key", name, number), "", change)
            .await?;
        Ok(Moved::Now)
    }
}

/// Refuses a store whose keys no master key of the token unwraps: better at the start than at the
/// first request that needs them.
pub(super) fn check(hsm: &Hsm, keys: &Keys) -> Result<(), KeyringError> {
    let masters = Masters::of(&hsm.generations());
    let mut sorted: Vec<_> = keys.values().filter_map(NamedKey::encryption).collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    for key in sorted {
        for version in key.versions.values() {
            let wrapped = version.wrapped.load();
            for one in [&wrapped.kek, &wrapped.mac] {
                let known = masters.all(one.master);
                // Without a memory master key there is another error, at the key's use.
                if known.is_empty() || known.contains(&one.master_fingerprint) {
                    continue;
                }
                return Err(KeyringError::OtherMaster {
                    name: key.name.to_string(),
                    version: version.number,
                    wanted: hex(&one.master_fingerprint),
                    here: known
                        .iter()
                        .map(|known| hex(known))
                        .collect::<Vec<_>>()
                        .join(" and "),
                });
            }
        }
    }
    Ok(())
}

/// Fingerprints of the token's master and transfer keys.
struct Masters {
    hsm: Vec<[u8; 16]>,
    memory: Vec<[u8; 16]>,
    transfer: Vec<[u8; 16]>,
    hsm_in_force: Option<[u8; 16]>,
    memory_in_force: Option<[u8; 16]>,
}

impl Masters {
    fn of(generations: &[MasterGeneration]) -> Self {
        let in_force = generations.iter().find(|generation| generation.in_force);
        let all = |of: fn(&MasterGeneration) -> Option<[u8; 32]>| {
            generations.iter().filter_map(of).map(half).collect()
        };
        Self {
            hsm: all(|generation| Some(generation.master)),
            memory: all(|generation| generation.memory_master),
            transfer: all(|generation| generation.transfer),
            hsm_in_force: in_force.map(|generation| half(generation.master)),
            memory_in_force: in_force.and_then(|generation| generation.memory_master.map(half)),
        }
    }

    fn all(&self, kind: MasterKind) -> &[[u8; 16]] {
        match kind {
            MasterKind::Hsm => &self.hsm,
            MasterKind::Memory => &self.memory,
        }
    }

    fn in_force(&self, key: &WrappedKey) -> bool {
        let in_force = match key.master {
            MasterKind::Hsm => self.hsm_in_force,
            MasterKind::Memory => self.memory_in_force,
        };
        in_force == Some(key.master_fingerprint)
    }

    fn is_movable(&self, key: &WrappedKey) -> bool {
        match (key.master, &key.transfer) {
            (MasterKind::Memory, _) => true,
            (MasterKind::Hsm, Some(transfer)) => self.transfer.contains(&transfer.fingerprint),
            (MasterKind::Hsm, None) => false,
        }
    }
}

/// How [`WrappedKey`] names a key: the first half of its SHA-256.
fn half(sha256: [u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&sha256[..16]);
    half
}
