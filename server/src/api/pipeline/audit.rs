//! What becomes of each request is told exactly once: to the audit log and to the metrics.

use std::time::Instant;

use strongroom_core::audit::{AuditError, Entry};
use strongroom_core::seldom::seldom;
use strongroom_core::tls::Peer;

use super::answer::{Answer, RequestId};
use super::dialect::Dialect;
use super::error::{ApiError, Refusal, Unaudited};
use super::route::Route;
use crate::api::{App, Client};

/// What becomes of a request, told to the audit log and the metrics exactly once: also when the
/// client goes away and the request is dropped half-way.
pub(super) struct AuditGuard<'a> {
    pub(super) app: &'a App,
    pub(super) peer: &'a Peer,
    dialect: &'static dyn Dialect,
    id: RequestId,
    pub(super) route: &'static Route,
    key: &'a str,
    /// Its id, if a good one was sent.
    pub(super) token: Option<String>,
    begun: Instant,
    /// As its route says; and whatever is refused.
    audited: bool,
    /// The line that says that the change is about to begin, 0 if there is none.
    intent: u64,
    done: bool,
}

impl<'a> AuditGuard<'a> {
    /// Of a request of this client that began then.
    pub(super) fn begin(
        client: &'a Client,
        dialect: &'static dyn Dialect,
        id: RequestId,
        route: &'static Route,
        key: &'a str,
        begun: Instant,
    ) -> Self {
        Self {
            app: &client.app,
            peer: &client.peer,
            dialect,
            id,
            route,
            key,
            token: None,
            begun,
            audited: route.audited,
            intent: 0,
            done: false,
        }
    }

    /// The change is about to begin: that is durable when this returns. `Err`: it must not.
    pub(super) async fn intend(&mut self) -> Result<(), ApiError> {
        if !self.app.audit.may_begin(self.peer.identity.as_str()) {
            let error = self.dialect.refuse(Refusal::FailingChanges);
            self.refuse(&error).await?;
            return Err(error);
        }
        let begun = self.app.audit.begin(&self.entry("", 0, "", None)).await;
        match begun {
            Ok(intent) => {
                self.intent = intent;
                Ok(())
            }
            Err(error) => {
                seldom!(1, error, %error, "a change is refused: it can't be audited");
                self.app.admission.metrics.audit_failures.inc();
                self.count("error", 503, None);
                // For want of room: that it was asked for is counted all the same. What has an
                // intent has its outcome already.
                if matches!(error, AuditError::Room { .. }) {
                    let reason = error.to_string();
                    let entry = self.entry("error", 503, &reason, None);
                    let _ = self.app.audit.record_or_count_now(&entry);
                }
                Err(self.dialect.refuse(unaudited(&error)))
            }
        }
    }

    /// Another guard goes on from here.
    pub(super) fn hand_over(mut self) {
        self.done = true;
    }

    /// A decision that was made. `Err`: it could not be recorded, so its answer must not leave.
    pub(super) async fn record(&mut self, answer: &Answer) -> Result<(), ApiError> {
        let failed = answer.batch > 0 && answer.batch == answer.batch_failed;
        let outcome = if failed { "error" } else { "ok" };
        let reason = if failed {
            "every item of the batch failed"
        } else {
            ""
        };
        self.write(outcome, answer.status, reason, Some(answer))
            .await
    }

    /// A request that was denied or failed: that is recorded on every path.
    pub(super) async fn refuse(&mut self, error: &ApiError) -> Result<(), ApiError> {
        self.audited = true;
        let outcome = if error.status == 403 {
            let (identity, operation) = (self.peer.identity.as_str(), self.route.label);
            let recent = &self.app.admission.recent;
            recent.deny(identity, operation, self.key, error.reason());
            "denied"
        } else {
            "error"
        };
        self.write(outcome, error.status, error.reason(), None)
            .await
    }

    /// Whether what became of it is told already.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// Passes on what is good, and records what is not.
    pub(super) async fn refuse_on_error<T>(
        &mut self,
        result: Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        match result {
            Ok(value) => Ok(value),
            // It can't be recorded either: the client gets the one error or the other.
            Err(error) => Err(self.refuse(&error).await.err().unwrap_or(error)),
        }
    }

    async fn write(
        &mut self,
        outcome: &'static str,
        status: u16,
        reason: &str,
        answer: Option<&Answer>,
    ) -> Result<(), ApiError> {
        self.count(outcome, status, answer);
        if !self.audited {
            return Ok(());
        }
        let entry = self.entry(outcome, status, reason, answer);
        let audit = &self.app.audit;
        // What needs no right could fill the log by whoever has a certificate, and what is answered
        // without room for a line a disk that is short.
        let kept =
            self.route.operation.is_some() && (self.route.needs_audit() || !audit.is_short());
        let by_right = outcome == "ok" && kept;
        let recorded = if by_right || self.intent > 0 {
            audit.record_with_others(&entry).await
        } else {
            audit.record_or_count(&entry).await
        };
        match recorded {
            Err(error) if self.route.needs_audit() => Err(self.withhold(&error)),
            _ => Ok(()),
        }
    }

    fn count(&mut self, outcome: &'static str, status: u16, answer: Option<&Answer>) {
        self.done = true;
        let batch = answer.map_or(0, |a| a.batch);
        let took = self.begun.elapsed();
        let metrics = &self.app.admission.metrics;
        metrics.request(self.route.label, outcome, status, batch, took);
        self.app.admission.recent.count(outcome);
    }

    fn entry<'e>(
        &'e self,
        outcome: &'static str,
        status: u16,
        reason: &'e str,
        answer: Option<&Answer>,
    ) -> Entry<'e> {
        Entry {
            request_id: self.id.as_str(),
            identity: self.peer.identity.as_str(),
            token_id: self.token.as_deref().unwrap_or_default(),
            remote: &self.peer.remote,
            certificate: &self.peer.certificate,
            issuer: self.peer.issuer(),
            operation: self.route.label,
            key: self.key,
            key_version: answer.map_or(0, |a| a.key_version),
            batch: answer.map_or(0, |a| a.batch),
            batch_failed: answer.map_or(0, |a| a.batch_failed),
            outcome,
            status,
            reason,
            intent: self.intent,
        }
    }

    fn withhold(&self, error: &AuditError) -> ApiError {
        seldom!(1, error, %error, "an answer is withheld: it can't be audited");
        self.app.admission.metrics.audit_failures.inc();
        self.dialect.refuse(Refusal::Withheld)
    }
}

impl Drop for AuditGuard<'_> {
    fn drop(&mut self) {
        if !self.done {
            let (outcome, status) = ("error", 499);
            self.count(outcome, status, None);
            if !self.audited {
                return;
            }
            let reason = "the client went away before the answer";
            let entry = self.entry(outcome, status, reason, None);
            if let Err(error) = self.app.audit.record_or_count_now(&entry) {
                // Nobody is left to be answered; the failure to record it is counted.
                self.withhold(&error);
            }
        }
    }
}

/// Why a request is refused that can't be recorded.
pub(super) fn unaudited(error: &AuditError) -> Refusal {
    Refusal::Unaudited(match error {
        AuditError::Room { .. } => Unaudited::Room,
        AuditError::Share { .. } => Unaudited::Share,
        _ => Unaudited::Broken,
    })
}
