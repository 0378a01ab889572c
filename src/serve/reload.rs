//! TLS files, policy and tokens, read again while the server serves: each as a whole, or the old one stays in force.

use std::sync::Arc;

use tokio::sync::Mutex;

use super::notify;
use crate::api::App;
use crate::audit::Entry;
use crate::client::causes;
use crate::policy::Policy;
use crate::tokens::Tokens;

/// Does one reload at a time.
pub(super) struct Reloader {
    app: Arc<App>,
    busy: Mutex<()>,
}

type Outcome = (&'static str, Result<(), String>);

impl Reloader {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self {
            app,
            busy: Mutex::new(()),
        }
    }

    /// Reads everything again and puts what is good in force; `cause` goes into log and audit.
    pub(super) async fn reload(&self, cause: &str) {
        let _one_at_a_time = self.busy.lock().await;
        notify::reloading();
        let app = self.app.clone();
        let outcomes = tokio::task::spawn_blocking(move || reload(&app))
            .await
            .unwrap_or_else(|error| vec![("reload", Err(error.to_string()))]);
        for (operation, outcome) in &outcomes {
            self.report(cause, operation, outcome);
        }
        notify::reloaded();
    }

    fn report(&self, cause: &str, operation: &str, outcome: &Result<(), String>) {
        let (word, reason) = match outcome {
            Ok(()) => ("ok", cause.to_owned()),
            Err(problem) => ("error", format!("{cause}: {problem}")),
        };
        if outcome.is_ok() {
            tracing::info!(operation, cause, "read again");
        } else {
            tracing::error!(operation, reason, "the old one stays in force");
        }
        let entry = Entry {
            operation,
            outcome: word,
            reason: &reason,
            ..Entry::default()
        };
        if let Err(error) = self.app.audit.record(&entry) {
            tracing::error!(error = causes(&error), "the reload is not in the audit log");
        }
    }
}

fn reload(app: &App) -> Vec<Outcome> {
    let tls = app.tls.reload().map_err(|error| causes(&error));
    let policy = Policy::load(&app.config.policy)
        .map(|policy| app.policy.store(Arc::new(policy)))
        .map_err(|error| causes(&error));
    let mut outcomes = vec![("reload:tls", tls), ("reload:policy", policy)];
    if let Some(path) = &app.config.tokens {
        let tokens = Tokens::load(path)
            .map(|tokens| app.tokens.store(Arc::new(tokens)))
            .map_err(|error| causes(&error));
        outcomes.push(("reload:tokens", tokens));
    }
    outcomes
}
