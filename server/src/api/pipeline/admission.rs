//! How many requests may be in flight, which changes are under way, and what was counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::error::Refusal;
use crate::api::Client;
use crate::api::metrics::Metrics;
use crate::api::recent::Recent;

/// Bounds the requests in flight, and counts them.
pub struct Admission {
    in_flight: AtomicUsize,
    /// Changes that requests asked for and that are being carried out: also of clients that are
    /// gone.
    changes: AtomicUsize,
    /// No other one is begun.
    closed: AtomicBool,
    pub(in crate::api) metrics: Metrics,
    pub(in crate::api) recent: Recent,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            in_flight: AtomicUsize::new(0),
            changes: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            metrics: Metrics::new(),
            recent: Recent::default(),
        }
    }
}

impl Admission {
    /// Remembers how many requests were answered since the last call; to be called each
    /// [`SAMPLE_INTERVAL`](crate::api::recent::SAMPLE_INTERVAL).
    pub fn sample(&self) {
        self.recent.sample();
    }

    /// A signing key went from one state to another.
    pub fn transition(&self, key: &str, from: &'static str, to: &'static str) {
        self.metrics.transition(key, from, to);
    }

    /// Requests being answered now.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// No change that a request asks for is begun any more; answers how many are still being
    /// carried out.
    pub fn close(&self) -> usize {
        self.closed.store(true, Ordering::SeqCst);
        self.changes.load(Ordering::SeqCst)
    }
}

/// A change that is being carried out, until it is dropped.
pub(super) struct Change(Arc<Client>);

impl Change {
    /// `Err`: the server is about to stop.
    pub(super) fn begin(client: &Arc<Client>) -> Result<Self, Refusal> {
        let admission = &client.app.admission;
        // Counted before it is known whether it may begin: whoever closes the admission sees it, or
        // is seen.
        let change = Self(Arc::clone(client));
        admission.changes.fetch_add(1, Ordering::SeqCst);
        if admission.closed.load(Ordering::SeqCst) {
            return Err(Refusal::Stopping);
        }
        Ok(change)
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        self.0.app.admission.changes.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A request's place among those in flight, given back when it is dropped.
pub(super) struct InFlightPermit(Arc<Client>);

impl InFlightPermit {
    /// `None`: all are taken.
    pub(super) fn take(client: &Arc<Client>) -> Option<Self> {
        let most = client.endpoint.limits.requests;
        // Counted before it is known whether there is room, and given back if there is none.
        let permit = Self(Arc::clone(client));
        let before = client
            .app
            .admission
            .in_flight
            .fetch_add(1, Ordering::Relaxed);
        (before < most).then_some(permit)
    }

    /// Another one for a request that has one, whether or not there is room: for what goes on
    /// without the client.
    pub(super) fn another(client: &Arc<Client>) -> Self {
        client
            .app
            .admission
            .in_flight
            .fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(client))
    }
}

impl Drop for InFlightPermit {
    fn drop(&mut self) {
        self.0
            .app
            .admission
            .in_flight
            .fetch_sub(1, Ordering::Relaxed);
    }
}
