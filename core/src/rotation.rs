//! The move of every key to another master key in the background of a running server, one version
//! at a time, while requests are served.
//!
//! Where it stands is on the token (which master key is in force) and in the store (which one wraps
//! each version); nothing here has to be kept. A server that is started in the middle goes on by
//! itself.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use strongroom_hsm::HsmError;
use tokio::sync::Notify;

use crate::keyring::{KeyName, Keyring, KeyringError, Moved};

/// After a failure that may pass (the token is away, or busy): first and longest pause.
const MIN_RETRY_PAUSE: Duration = Duration::from_millis(200);
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(30);

/// Moves keys when it is told to, and tells how far it is.
#[derive(Debug, Default)]
pub struct MasterRotation {
    wake: Notify,
    state: Mutex<State>,
}

/// What the background is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// It is moving keys, or waits to try again.
    pub working: bool,
    /// Why it waits.
    pub waiting_for: Option<String>,
    /// Versions that could not be moved, and why; tried again when it is told to.
    pub failed: BTreeMap<(KeyName, u32), String>,
}

impl MasterRotation {
    /// What it is doing.
    pub fn state(&self) -> State {
        self.locked(|state| state.clone())
    }

    /// Has it begin, or begin again.
    pub fn wake(&self) {
        // Seen at once by whoever asks for the state next.
        self.locked(|state| state.working = true);
        self.wake.notify_one();
    }

    /// Moves what there is to move, then waits to be woken; never ends. `done` is told of each
    /// version that was moved or can't be.
    pub async fn run(
        &self,
        keyring: &Keyring,
        done: impl Fn(&str, u32, &Result<Moved, KeyringError>) + Sync,
    ) {
        loop {
            self.locked(|state| {
                *state = State {
                    working: true,
                    ..State::default()
                };
            });
            self.pass(keyring, &done).await;
            self.locked(|state| {
                state.working = false;
                state.waiting_for = None;
            });
            self.wake.notified().await;
        }
    }

    async fn pass(
        &self,
        keyring: &Keyring,
        done: &(impl Fn(&str, u32, &Result<Moved, KeyringError>) + Sync),
    ) {
        let mut pause = MIN_RETRY_PAUSE;
        loop {
            // Looked for again each time: keys come and go meanwhile.
            let failed = self.state().failed;
            let next = keyring
                .to_move()
                .into_iter()
                .find(|place| !failed.contains_key(place));
            let Some((name, version)) = next else {
                return;
            };
            let outcome = keyring.move_version(name.borrowed(), version).await;
            match &outcome {
                Ok(Moved::Before) => {}
                Err(error) if may_pass(error) => {
                    tracing::warn!(key = %name, version, %error, "a key could not be moved to the new master key yet");
                    self.locked(|state| state.waiting_for = Some(error.to_string()));
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(MAX_RETRY_PAUSE);
                    continue;
                }
                outcome => {
                    if let Err(error) = outcome {
                        tracing::error!(key = %name, version, %error, "a key can't be moved to the new master key");
                        let place = (name.clone(), version);
                        self.locked(|state| state.failed.insert(place, error.to_string()));
                    }
                    done(&name, version, outcome);
                }
            }
            pause = MIN_RETRY_PAUSE;
            self.locked(|state| state.waiting_for = None);
        }
    }

    fn locked<T>(&self, body: impl FnOnce(&mut State) -> T) -> T {
        body(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whether the same may go well later without anybody doing anything about the key.
fn may_pass(error: &KeyringError) -> bool {
    match error {
        KeyringError::Hsm(error) => matches!(
            error,
            HsmError::Unavailable(_) | HsmError::Busy(_) | HsmError::Deadline(_)
        ),
        KeyringError::Store(_) | KeyringError::System(_) | KeyringError::Audit(_) => true,
        _ => false,
    }
}
