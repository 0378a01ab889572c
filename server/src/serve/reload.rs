//! TLS files, policy and tokens, read again while the server serves: each as a whole, or the old
//! one stays in force.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use strongroom_core::audit::{Audit, Entry};
use strongroom_core::causes::causes;
use strongroom_core::config::ConfigError;
use strongroom_core::policy::{Policy, PolicyError};
use strongroom_core::tls::{Renewal, TlsError};
use strongroom_core::tokens::{Tokens, TokensError};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::notify;
use crate::api::App;

/// What was read comes into force when the audit log says so; that is tried this often.
const AUDIT_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A reload takes moments; one that takes this long is said, and again each time that it has
/// passed.
const SLOW_RELOAD: Duration = Duration::from_secs(10);

/// Does one reload at a time.
pub(super) struct Reloader {
    app: Arc<App>,
    busy: Mutex<()>,
    /// Nothing that waits for the log comes into force any more.
    stopping: Arc<AtomicBool>,
}

impl Reloader {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self {
            app,
            busy: Mutex::new(()),
            stopping: Arc::default(),
        }
    }

    /// The server is about to stop: a reload under way waits no longer.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Reads everything again and puts what is good in force; `cause` goes into log and audit.
    pub(super) async fn reload(&self, cause: &'static str) {
        let _one_at_a_time = self.busy.lock().await;
        notify::reloading();
        let (app, stopping) = (self.app.clone(), self.stopping.clone());
        let mut reload = tokio::task::spawn_blocking(move || reload(&app, cause, &stopping));
        let ended = loop {
            if let Ok(ended) = timeout(SLOW_RELOAD, &mut reload).await {
                break ended;
            }
            tracing::error!(
                cause,
                "the reload has not ended: does the disk of one of the files hang, or the audit log's? Nothing newer is read until it does"
            );
        };
        if let Err(error) = ended {
            let reason = format!("{cause}: {error}");
            tracing::error!(reason, "the reload failed");
            record(&self.app.audit, "reload", "error", &reason);
        }
        notify::reloaded();
    }
}

fn reload(app: &App, cause: &str, stopping: &AtomicBool) {
    let config = &app.config;
    let log = Announced {
        audit: &app.audit,
        cause,
        stopping,
    };
    let tls = config
        .trust(config.tls.all().map(PathBuf::as_path))
        .map_err(ReloadError::from)
        .and_then(|()| Ok(app.tls.read_again()?));
    log.replace("reload:tls", tls, Renewal::put_in_force);
    let policy = config
        .trust([config.policy.as_path()])
        .map_err(ReloadError::from)
        .and_then(|()| Ok(Policy::load(&config.policy)?));
    log.replace("reload:policy", policy, |policy| {
        app.policy.store(Arc::new(policy));
    });
    if let Some(path) = &config.tokens {
        let tokens = config
            .trust([path.as_path()])
            .map_err(ReloadError::from)
            .and_then(|()| Ok(Tokens::load(path)?));
        log.replace("reload:tokens", tokens, |tokens| {
            app.tokens.store(Arc::new(tokens));
        });
    }
}

/// Why what was read again is not taken.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    /// Others can change the file now.
    #[error(transparent)]
    Trust(#[from] ConfigError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Tokens(#[from] TokensError),
}

/// A reload that the audit log tells of.
struct Announced<'a> {
    audit: &'a Audit,
    cause: &'a str,
    stopping: &'a AtomicBool,
}

impl Announced<'_> {
    /// The audit log gets its line first, so that no decision by what is new stands above it.
    fn replace<T, E: Error + 'static>(
        &self,
        operation: &str,
        read: Result<T, E>,
        put_in_force: impl FnOnce(T),
    ) {
        let cause = self.cause;
        match read {
            Ok(new) => {
                // Nothing is served while the log can't be written, so nobody is kept waiting by
                // this.
                while !record(self.audit, operation, "ok", cause) {
                    if self.stopping.load(Ordering::Relaxed) {
                        return;
                    }
                    thread::sleep(AUDIT_RETRY_INTERVAL);
                }
                put_in_force(new);
                tracing::info!(operation, cause, "reloaded");
            }
            Err(problem) => {
                let reason = format!("{cause}: {}", causes(&problem));
                record(self.audit, operation, "error", &reason);
                tracing::error!(operation, reason, "the old one stays in force");
            }
        }
    }
}

/// Whether the line is on the disk.
fn record(audit: &Audit, operation: &str, outcome: &str, reason: &str) -> bool {
    let entry = Entry {
        operation,
        outcome,
        reason,
        ..Entry::default()
    };
    match audit.record_durably(&entry) {
        Ok(()) => true,
        Err(error) => {
            let error = causes(&error);
            tracing::error!(operation, error, "the reload is not in the audit log");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn what_comes_into_force_is_in_the_audit_log_by_then() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let audit = crate::testing::audit(path.clone()).await;
        let last_line = || {
            let log = fs::read_to_string(&path).unwrap();
            serde_json::from_str::<serde_json::Value>(log.lines().last().unwrap()).unwrap()
        };

        let reload = Announced {
            audit: &audit,
            cause: "SIGHUP",
            stopping: &AtomicBool::new(false),
        };
        let mut announced = None;
        let read = Ok::<_, std::fmt::Error>(());
        reload.replace("reload:tls", read, |()| {
            announced = Some(last_line());
        });
        let announced = announced.unwrap();
        assert_eq!(announced["operation"], "reload:tls");
        assert_eq!(announced["outcome"], "ok");
        assert_eq!(announced["reason"], "SIGHUP");

        let mut put_in_force = false;
        let read = Err::<(), _>(std::fmt::Error);
        reload.replace("reload:policy", read, |()| {
            put_in_force = true;
        });
        assert!(!put_in_force);
        assert_eq!(last_line()["operation"], "reload:policy");
        assert_eq!(last_line()["outcome"], "error");
    }
}
