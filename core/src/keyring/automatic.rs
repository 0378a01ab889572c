//! What is done by the clock: rotations that are due, and keys in memory that nobody uses.

use super::named::NamedKey;
use super::schedule::Verdict;
use super::{KeyName, Keyring, KeyringError};

impl Keyring {
    /// Rotates every key whose `auto_rotate_period` has passed; returns their names. Called by a
    /// timer.
    pub async fn rotate_due(&self) -> Vec<(KeyName, Result<u32, KeyringError>)> {
        let mut rotated = Vec::new();
        for Scheduled {
            name,
            latest,
            verdict,
            waiting,
        } in self.schedule()
        {
            if !matches!(verdict, Verdict::Due(_)) || waiting {
                continue;
            }
            // Only if `latest` is still the latest: somebody may have rotated it meanwhile.
            let rotation = self.change(name.borrowed(), move |inner, name| async move {
                inner.rotate(&name, Some(latest)).await
            });
            let outcome = rotation.await;
            rotated.push((name, outcome));
        }
        rotated
    }

    /// Each key that is rotated automatically, and when, by name.
    pub fn schedule(&self) -> Vec<Scheduled> {
        let now = (self.inner.clock)();
        let keys = self.inner.keys.load_full();
        let mut scheduled: Vec<_> = keys.values().map(|key| key.scheduled(now)).collect();
        scheduled.retain(|key| key.verdict != Verdict::Never);
        scheduled.sort_by(|a, b| a.name.cmp(&b.name));
        scheduled
    }

    /// Drops `memory` keys idle for too long. Called by a timer.
    pub fn drop_idle(&self) {
        for key in self
            .inner
            .keys
            .load()
            .values()
            .filter_map(NamedKey::encryption)
        {
            for version in key.versions.values() {
                version.memory.drop_idle(self.inner.options.memory_idle);
            }
        }
    }
}

/// A key that is rotated automatically.
#[derive(Clone, Debug)]
pub struct Scheduled {
    /// Its name.
    pub name: KeyName,
    /// Its latest version.
    pub latest: u32,
    /// When the next one is due.
    pub verdict: Verdict,
    /// A new version is published and does not sign yet: no other is made meanwhile.
    pub waiting: bool,
}
