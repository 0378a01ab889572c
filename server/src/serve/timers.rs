//! What happens without a request: rotation, idle keys, audit signatures, the watchdog, changed
//! files.

use std::sync::Arc;
use std::time::Duration;

use strongroom_core::audit::Entry;
use strongroom_core::causes::causes;
use strongroom_core::keyring::{KeyringError, Moved, Transition};
use strongroom_core::lifecycle::State;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::notify;
use super::reload::Reloader;
use super::watch::Watch;
use crate::api::{App, recent};

/// What an outage of the token kept from being rotated is caught up within a minute of its return.
const ROTATION_INTERVAL: Duration = Duration::from_secs(15);
/// Published keys are looked after this often.
const LIFECYCLE_INTERVAL: Duration = Duration::from_secs(1);
const IDLE_KEYS_INTERVAL: Duration = Duration::from_secs(10);

/// Starts every timer; dropping the set stops them.
pub(super) fn start(app: &Arc<App>, reloader: &Arc<Reloader>, watch: Watch) -> JoinSet<()> {
    let mut timers = JoinSet::new();
    timers.spawn(rotate(app.clone()));
    timers.spawn(keep(app.clone()));
    timers.spawn(drop_idle(app.clone()));
    timers.spawn(move_keys(app.clone()));
    timers.spawn(sample(app.clone()));
    timers.spawn(watch.run(reloader.clone()));
    let signing = app.clone();
    timers.spawn(async move { signing.audit.run_checkpoints().await });
    let counting = app.clone();
    timers.spawn(async move { counting.audit.run_sums().await });
    if let Some(limit) = sd_notify::watchdog_enabled() {
        timers.spawn(watchdog(app.clone(), limit));
    }
    timers
}

async fn rotate(app: Arc<App>) {
    let mut ticks = every(ROTATION_INTERVAL);
    loop {
        ticks.tick().await;
        for (key, rotated) in app.keyring.rotate_due().await {
            let (version, outcome, reason) = match rotated {
                Ok(version) => (version, "ok", String::new()),
                Err(error) => (0, "error", causes(&error)),
            };
            // The keyring has it in the audit log.
            tracing::info!(%key, version, outcome, reason, "automatic rotation");
        }
    }
}

/// Moves keys to another master key: now, if a rotation was under way when the server stopped, and
/// whenever it is told to.
async fn move_keys(app: Arc<App>) {
    let recorded = |key: &str, version: u32, outcome: &Result<Moved, KeyringError>| {
        // What was moved is in the audit log by then.
        let Err(error) = outcome else {
            return;
        };
        let reason = causes(error);
        let entry = Entry {
            operation: "move-key",
            key,
            key_version: version,
            outcome: "error",
            reason: &reason,
            ..Entry::default()
        };
        if let Err(error) = app.audit.record(&entry) {
            let error = causes(&error);
            tracing::error!(key, error, "the move of a key is not in the audit log");
        }
    };
    app.rotation.run(&app.keyring, recorded).await;
}

/// Walks the published signing keys through their states, and tells of each change.
async fn keep(app: Arc<App>) {
    let mut ticks = every(LIFECYCLE_INTERVAL);
    loop {
        ticks.tick().await;
        for transition in app.keyring.keep().await {
            let Transition {
                key,
                from,
                to,
                reason,
            } = &transition;
            let (from, to) = (from.as_str(), to.as_str());
            app.admission.transition(key, from, to);
            match transition.to {
                State::Degraded | State::Critical => {
                    tracing::error!(key, from, to, reason, "the state of a signing key changed");
                }
                _ => tracing::info!(key, from, to, "the state of a signing key changed"),
            }
            let operation = format!("key-state:{to}");
            let entry = Entry {
                operation: &operation,
                key,
                outcome: "ok",
                reason,
                ..Entry::default()
            };
            if let Err(error) = app.audit.record(&entry) {
                tracing::error!(
                    key,
                    error = causes(&error),
                    "a change of state is not in the audit log"
                );
            }
        }
    }
}

async fn drop_idle(app: Arc<App>) {
    let mut ticks = every(IDLE_KEYS_INTERVAL);
    loop {
        ticks.tick().await;
        app.keyring.drop_idle();
    }
}

/// For the status page.
async fn sample(app: Arc<App>) {
    let mut ticks = every(recent::SAMPLE_INTERVAL);
    loop {
        ticks.tick().await;
        app.admission.sample();
    }
}

/// Feeds systemd's watchdog as long as a job comes back from the token's queue, with whatever
/// answer.
///
/// A token that is gone, or that refused the PIN, is no reason to be killed: the pool reconnects by
/// itself, and a restart would try a wrong PIN again. Only a pool that gives no answer at all, or a
/// runtime that does not come round to asking, is. Nor is one that makes a key pair, which has a
/// deadline of its own.
async fn watchdog(app: Arc<App>, limit: Duration) {
    let mut ticks = every(limit / 2);
    loop {
        ticks.tick().await;
        let answers = timeout(limit / 2, app.hsm.probe()).await.is_ok();
        if answers || app.hsm.is_generating() {
            notify::watchdog();
        } else {
            tracing::error!("the token's queue gives no answer: the watchdog is not fed");
        }
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    // A period of zero would panic.
    let mut ticks = interval(period.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
