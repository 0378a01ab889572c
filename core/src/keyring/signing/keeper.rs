//! Walks the published signing keys through their [`Lifecycle`]: asks HSM and store whether they
//! still have the copy in use, and carries out what is due.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use strongroom_hsm::{HsmError, HsmState};

use super::record::read_settings;
use crate::keyring::key::id;
use crate::keyring::named::NamedKey;
use crate::keyring::{Inner, KeyName, Keyring, KeyringError};
use crate::lifecycle::{Due, Event, Lifecycle, State, Versions};
use crate::store::RecordKind;

/// HSM and store are asked this often; a token that is known to be away counts at once.
const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// The machines of the published keys.
pub(in crate::keyring) struct Keeper {
    started: Instant,
    machines: Mutex<HashMap<KeyName, Lifecycle>>,
    asked: Mutex<Option<Instant>>,
    /// Why the copy in use was not confirmed the last time; empty if it was.
    doubt: Mutex<String>,
}

/// How a published key is.
#[derive(Clone, Debug, serde::Serialize)]
pub struct KeyHealth {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: State,
    /// The oldest version in the set of public keys.
    pub published_version: u32,
    /// The version that signs.
    pub signing_version: u32,
    /// The newest version.
    pub latest_version: u32,
    /// Seconds since HSM and store last confirmed the copy in use; none if they never have.
    pub unconfirmed_seconds: Option<u64>,
}

/// A key went from one state to another.
#[derive(Clone, Debug)]
pub struct Transition {
    /// Its name.
    pub key: String,
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
    /// Why, where there is more to say than the states do.
    pub reason: String,
}

impl Keeper {
    pub(in crate::keyring) fn new() -> Self {
        Self {
            started: Instant::now(),
            machines: Mutex::default(),
            asked: Mutex::default(),
            doubt: Mutex::default(),
        }
    }

    /// Seconds of a clock that only goes forward.
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<KeyName, Lifecycle>) -> T) -> T {
        work(&mut self.machines.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells the log of a reason that is new: a key that is still loading changes no state for it.
    fn note(&self, why: &str) {
        let mut doubt = self.doubt.lock().unwrap_or_else(PoisonError::into_inner);
        if *doubt != why {
            why.clone_into(&mut doubt);
            if !why.is_empty() {
                tracing::warn!(why, "the published signing keys are not confirmed");
            }
        }
    }

    /// As if nobody had been asked for long.
    #[cfg(test)]
    pub(super) fn ask_again(&self) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether it is time to ask; for a key that is loading it always is.
    fn ask(&self) -> bool {
        let loading = |machine: &Lifecycle| machine.state() == State::Loading;
        if self.with(|machines| machines.values().any(loading)) {
            return true;
        }
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let due = asked.is_none_or(|at| at.elapsed() >= HEALTH_CHECK_INTERVAL);
        if due {
            *asked = Some(Instant::now());
        }
        due
    }
}

impl Keyring {
    /// One round: asks HSM and store, lets versions sign and leave the set when they have waited
    /// long enough, and finishes what a crash or an outage left behind. Called about once a
    /// second.
    pub async fn keep(&self) -> Vec<Transition> {
        let inner = &self.inner;
        let mut transitions = Vec::new();
        inner.meet();
        let ready = inner.hsm.state() == HsmState::Ready;
        let asked = if !ready {
            Some(Err("the HSM is away".to_owned()))
        } else if inner.keeper.ask() {
            inner.confirm().await.transpose()
        } else {
            None
        };
        let (event, reason) = match asked {
            Some(Ok(())) => (Event::Confirmed, String::new()),
            Some(Err(why)) => (Event::Lost, why),
            None => (Event::Tick, String::new()),
        };
        if event != Event::Tick && !inner.options.jwt.keys.is_empty() {
            inner.keeper.note(&reason);
        }
        let names: Vec<_> = inner
            .keeper
            .with(|machines| machines.keys().cloned().collect());
        for name in &names {
            transitions.extend(inner.tell(name, event, &reason));
        }
        for name in names {
            let due = inner.keeper.with(|machines| machines.get(&name)?.due());
            let Some(due) = due else { continue };
            match inner.carry_out(&name, due).await {
                Ok(event) => transitions.extend(inner.tell(&name, event, "")),
                Err(error) => {
                    transitions.extend(inner.tell(&name, Event::Lost, &error.to_string()));
                }
            }
        }
        if matches!(event, Event::Confirmed) {
            let swept = inner.change(|inner| async move { inner.sweep().await });
            match swept.await {
                Ok(0) => {}
                Ok(swept) => tracing::info!(
                    swept,
                    "private keys that nothing needs were destroyed on the token"
                ),
                Err(error) => {
                    tracing::warn!(%error, "private keys that nothing needs are still on the token");
                }
            }
        }
        transitions
    }

    /// How each published key is, by name.
    pub fn health(&self) -> Vec<KeyHealth> {
        let mut health: Vec<_> = self.inner.keeper.with(|machines| {
            let now = self.inner.keeper.now();
            let one = |(name, machine): (&KeyName, &Lifecycle)| {
                let machine = machine.clone().after(Event::Tick, now);
                let versions = machine.versions();
                KeyHealth {
                    name: name.to_string(),
                    state: machine.state(),
                    published_version: versions.published,
                    signing_version: versions.signing,
                    latest_version: versions.latest,
                    unconfirmed_seconds: machine.unconfirmed_for().map(|age| age.as_secs()),
                }
            };
            machines.iter().map(one).collect()
        });
        health.sort_by(|a, b| a.name.cmp(&b.name));
        health
    }
}

impl Inner {
    /// Machines for the published keys that there are, and for no others; what was done to a key by
    /// request is told to its machine.
    fn meet(&self) {
        let (keys, now) = (self.keys.load(), self.keeper.now());
        let signing = |name: &KeyName| keys.get(name).and_then(NamedKey::signing);
        self.keeper.with(|machines| {
            machines.retain(|name, _| signing(name).is_some());
            for name in &self.options.jwt.keys {
                let Some(key) = signing(name) else { continue };
                let versions = key.versions();
                let machine = machines
                    .entry(name.clone())
                    .or_insert_with(|| Lifecycle::new(self.options.jwt.limits, versions, now));
                let Versions { latest, .. } = machine.versions();
                if latest > versions.latest {
                    // Deleted and made again under the same name.
                    *machine = Lifecycle::new(self.options.jwt.limits, versions, now);
                }
                for version in latest + 1..=versions.latest {
                    *machine = machine.clone().after(Event::Published(version), now);
                }
                if versions.signing > machine.versions().signing {
                    *machine = machine
                        .clone()
                        .after(Event::Activated(versions.signing), now);
                }
            }
        });
    }

    fn tell(&self, name: &str, event: Event, reason: &str) -> Option<Transition> {
        let now = self.keeper.now();
        self.keeper.with(|machines| {
            let machine = machines.get_mut(name)?;
            let from = machine.state();
            *machine = machine.clone().after(event, now);
            let to = machine.state();
            (from != to).then(|| Transition {
                key: name.to_owned(),
                from,
                to,
                reason: reason.to_owned(),
            })
        })
    }

    /// Whether the token holds every private key that signs or is about to (older ones are needed
    /// no more), and the store the same settings as memory. `None`: the token is too
    /// busy to say, which says nothing of the keys.
    async fn confirm(&self) -> Result<Option<()>, String> {
        let on_token = match self.hsm.signing_keys().await {
            Ok(ids) => ids,
            Err(HsmError::Busy(_)) => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        for name in &self.options.jwt.keys {
            let Some(key) = self.find_signing(name) else {
                continue;
            };
            let versions = key.versions.range(key.settings.signing_version..);
            for (number, version) in versions {
                if !on_token.contains(&version.key.id) {
                    return Err(format!("version {number} of {name} is not on the token"));
                }
            }
            let stored = self
                .store
                .get(&id(RecordKind::SigningKey, name, 0))
                .await
                .map_err(|error| error.to_string())?;
            let same = stored
                .and_then(|record| read_settings(name, &record).ok())
                // A change may have been made between the two.
                .is_some_and(|stored| {
                    stored == key.settings
                        || self
                            .find_signing(name)
                            .is_some_and(|key| stored == key.settings)
                });
            if !same {
                return Err(format!(
                    "the store holds other settings of {name} than memory"
                ));
            }
        }
        Ok(Some(()))
    }

    async fn carry_out(self: &Arc<Self>, name: &str, due: Due) -> Result<Event, KeyringError> {
        let name = name.to_owned();
        self.change(move |inner| async move {
            match due {
                Due::Activate(version) => {
                    inner.activate(&name, version).await?;
                    tracing::info!(key = name, version, "a new version signs");
                    Ok(Event::Activated(version))
                }
                Due::Retire(version) => {
                    inner.retire(&name, version).await?;
                    tracing::info!(
                        key = name,
                        version,
                        "the versions below have left the set of public keys"
                    );
                    Ok(Event::Retired(version))
                }
            }
        })
        .await
    }
}
