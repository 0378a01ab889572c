//! The one way in which anything is changed: one change at a time, durable before it is in force,
//! and carried out to its end once it is begun, whoever may have gone away meanwhile.

use std::collections::HashMap;
use std::sync::Arc;

use strongroom_hsm::{HsmError, HsmState};

use super::named::{Leftovers, NamedKey};
use super::{Inner, KeyName, Keyring, KeyringError};
use crate::audit::Entry;
use crate::causes::causes;
use crate::seldom::seldom;
use crate::store::Change;

impl Keyring {
    /// As [`Inner::change`], for a change of the key of that name.
    pub(super) async fn change<T, F>(
        &self,
        name: KeyName<&str>,
        work: impl FnOnce(Arc<Inner>, KeyName) -> F + Send + 'static,
    ) -> Result<T, KeyringError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, KeyringError>> + Send + 'static,
    {
        let name = name.to_owned();
        self.inner.change(move |inner| work(inner, name)).await
    }
}

impl Inner {
    /// Carries out a change, after the one that is under way, to its end even if whoever asked for
    /// it is gone: one that stopped in the middle would leave memory behind the store.
    ///
    /// This is the keyring's part of "once begun, carried out". The API has a task around it for
    /// its own part: that what was begun is also recorded, though the client is gone.
    pub(super) async fn change<T, F>(
        self: &Arc<Self>,
        work: impl FnOnce(Arc<Self>) -> F + Send + 'static,
    ) -> Result<T, KeyringError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, KeyringError>> + Send + 'static,
    {
        let inner = Arc::clone(self);
        let change = async move {
            let _turn = inner.writer.lock().await;
            work(Arc::clone(&inner)).await
        };
        tokio::spawn(change)
            .await
            .map_err(|error| KeyringError::System(format!("a change was cut off: {error}")))?
    }

    /// Carries out a change that no request asked for: its intent is in the audit log before, its
    /// outcome after. Without a log, or while the token is away, it is not begun; the latter is
    /// only counted, however often it is tried.
    pub(super) async fn recorded<T>(
        &self,
        (operation, name, version): (&str, &str, u32),
        why: &str,
        change: impl Future<Output = Result<T, KeyringError>>,
    ) -> Result<T, KeyringError> {
        let audit = self.audit.get().ok_or_else(|| {
            KeyringError::System(
                "a change that no request asked for is not begun without an audit log".to_owned(),
            )
        })?;
        let mut entry = Entry {
            operation,
            key: name,
            key_version: version,
            reason: why,
            ..Entry::default()
        };
        let outcome = match self.hsm.state() {
            HsmState::Ready => {
                entry.intent = audit.begin(&entry).await?;
                change.await
            }
            HsmState::Reconnecting { reason } | HsmState::Stopped { reason } => {
                Err(HsmError::Unavailable(reason).into())
            }
        };
        let reason = outcome
            .as_ref()
            .err()
            .map(|e| causes(e))
            .unwrap_or_default();
        entry.outcome = if outcome.is_ok() { "ok" } else { "error" };
        if outcome.is_err() {
            entry.reason = &reason;
        }
        if let Err(error) = audit.record_or_count_now(&entry) {
            let error = causes(&error);
            tracing::error!(
                operation,
                key = name,
                error,
                "a change's outcome is not in the audit log yet"
            );
        }
        outcome
    }

    /// Writes a key's new settings, with what else changes, and puts them in force.
    pub(super) async fn put(
        &self,
        key: NamedKey,
        mut changes: Vec<Change>,
    ) -> Result<(), KeyringError> {
        changes.push(key.put()?);
        self.commit(changes, || self.publish(key)).await
    }

    /// Commits, and puts the change in force when the disk has it: also if the token could not be
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
            .is_none_or(crate::store::StoreError::is_applied)
        {
            apply();
        }
        outcome?;
        Ok(())
    }

    /// Puts a key's new state in force; the writer's lock is held.
    fn publish(&self, key: NamedKey) {
        let mut keys = HashMap::clone(&self.keys.load());
        keys.insert(key.name().clone(), key);
        self.keys.store(Arc::new(keys));
    }

    pub(super) fn unpublish(&self, name: &str) {
        let mut keys = HashMap::clone(&self.keys.load());
        keys.remove(name);
        self.keys.store(Arc::new(keys));
    }

    /// Clears the token of what is destroyed in the store. If it can't be reached, session objects
    /// are gone with their session, and private keys stay debris.
    pub(super) async fn clear(&self, leftovers: Leftovers) {
        match leftovers {
            Leftovers::SessionObjects(ids) => {
                if let Err(error) = self.hsm.forget(ids).await {
                    seldom!(1, warn, %error, "the session objects of destroyed keys stay until they are the least used");
                }
            }
            Leftovers::PrivateKeys => {
                if let Err(error) = self.sweep().await {
                    seldom!(1, warn, %error, "private keys that were destroyed in the store are destroyed on the token as soon as it answers");
                }
            }
        }
    }
}
