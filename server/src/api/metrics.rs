//! Counters and latencies, as Prometheus reads them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use strongroom_core::tls;
use strongroom_hsm::HsmState;

use super::App;

mod lifecycle;
use lifecycle::Lifecycles;

/// A certificate should be renewed so long before its end, as the alert on those of the appliance
/// itself has it.
pub(super) const RENEWAL_DAYS: u32 = 14;

/// Everything that is counted. Labels come from the route table and from what is bounded elsewhere,
/// so their number is bounded.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter<u64, AtomicU64>>,
    latency: Family<OperationLabel, Histogram, fn() -> Histogram>,
    items: Family<OperationLabel, Counter<u64, AtomicU64>>,
    /// Requests refused because too many were in flight.
    pub(super) overloaded: Counter<u64, AtomicU64>,
    /// Answers withheld because the audit log could not be written.
    pub(super) audit_failures: Counter<u64, AtomicU64>,
    audit_file_changes: Counter<u64, AtomicU64>,
    audit_disk_nearly_full: Gauge<i64, AtomicI64>,
    /// Handlers that panicked: each one is a defect.
    pub(super) panics: Counter<u64, AtomicU64>,
    in_flight: Gauge<i64, AtomicI64>,
    hsm_up: Gauge<i64, AtomicI64>,
    keys: Gauge<i64, AtomicI64>,
    store_epoch: Gauge<i64, AtomicI64>,
    store_disk_full: Gauge<i64, AtomicI64>,
    master_generation: Gauge<i64, AtomicI64>,
    key_versions: Gauge<i64, AtomicI64>,
    key_versions_moved: Gauge<i64, AtomicI64>,
    uptime: Gauge<i64, AtomicI64>,
    hardening: Family<MeasureLabel, Gauge<i64, AtomicI64>>,
    tls_not_after: Family<FileLabel, Gauge<i64, AtomicI64>>,
    client_not_after: Family<IdentityLabel, Gauge<i64, AtomicI64>>,
    client_renewal_due: Family<IdentityLabel, Gauge<i64, AtomicI64>>,
    lifecycle: Lifecycles,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    operation: &'static str,
    outcome: &'static str,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OperationLabel {
    operation: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MeasureLabel {
    measure: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FileLabel {
    file: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct IdentityLabel {
    identity: String,
}

impl Metrics {
    #[allow(clippy::too_many_lines, reason = "one registration after the other")]
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("strongroom");
        let new_histogram: fn() -> Histogram =
            // 50 µs to 6.5 s.
            || Histogram::new(exponential_buckets(50e-6, 2.0, 18));
        let metrics = Self {
            requests: Family::default(),
            latency: Family::new_with_constructor(new_histogram),
            items: Family::default(),
            overloaded: Counter::default(),
            audit_failures: Counter::default(),
            audit_file_changes: Counter::default(),
            audit_disk_nearly_full: Gauge::default(),
            panics: Counter::default(),
            in_flight: Gauge::default(),
            hsm_up: Gauge::default(),
            keys: Gauge::default(),
            store_epoch: Gauge::default(),
            store_disk_full: Gauge::default(),
            master_generation: Gauge::default(),
            key_versions: Gauge::default(),
            key_versions_moved: Gauge::default(),
            uptime: Gauge::default(),
            hardening: Family::default(),
            tls_not_after: Family::default(),
            client_not_after: Family::default(),
            client_renewal_due: Family::default(),
            lifecycle: Lifecycles::default(),
            registry: Registry::default(),
        };
        registry.register(
            "requests",
            "Requests by operation, outcome and HTTP status",
            metrics.requests.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "Time from the request's head to its answer",
            Unit::Seconds,
            metrics.latency.clone(),
        );
        registry.register(
            "batch_items",
            "Items of batches by operation",
            metrics.items.clone(),
        );
        registry.register(
            "overloaded",
            "Requests refused because max_requests were in flight",
            metrics.overloaded.clone(),
        );
        registry.register(
            "audit_failures",
            "Answers withheld because the audit log could not be written",
            metrics.audit_failures.clone(),
        );
        registry.register(
            "audit_file_changes",
            "How often somebody else cut, deleted or wrote to the audit log's file",
            metrics.audit_file_changes.clone(),
        );
        registry.register(
            "audit_disk_nearly_full",
            "1: the audit log's disk is nearly full, so that not every line can be written",
            metrics.audit_disk_nearly_full.clone(),
        );
        registry.register("panics", "Handlers that panicked", metrics.panics.clone());
        registry.register(
            "requests_in_flight",
            "Requests being answered",
            metrics.in_flight.clone(),
        );
        registry.register(
            "hsm_up",
            "1: the token is ready; 0: it is being reconnected; -1: stopped for good",
            metrics.hsm_up.clone(),
        );
        registry.register("keys", "Named keys", metrics.keys.clone());
        registry.register(
            "store_epoch",
            "Commits to the store since its initial ceremony",
            metrics.store_epoch.clone(),
        );
        registry.register(
            "store_disk_full",
            "1: the last change was refused since the store's disk has no room",
            metrics.store_disk_full.clone(),
        );
        registry.register(
            "master_generation",
            "The master key in force: 1, and one more with each rotation",
            metrics.master_generation.clone(),
        );
        registry.register(
            "key_versions",
            "Versions of all keys",
            metrics.key_versions.clone(),
        );
        registry.register(
            "key_versions_moved",
            "Those that the master key in force wraps; the others are on their way to it",
            metrics.key_versions_moved.clone(),
        );
        registry.register_with_unit(
            "uptime",
            "Time since the start",
            Unit::Seconds,
            metrics.uptime.clone(),
        );
        registry.register(
            "hardening",
            "1: the process is hardened in this way; 0: it could not be, the log says why",
            metrics.hardening.clone(),
        );
        registry.register_with_unit(
            "tls_not_after",
            "When the first of the file's certificates or lists ends, since 1970",
            Unit::Seconds,
            metrics.tls_not_after.clone(),
        );
        registry.register_with_unit(
            "client_not_after",
            "When the certificate of an identity ends that is in use and ends first, since 1970",
            Unit::Seconds,
            metrics.client_not_after.clone(),
        );
        registry.register_with_unit(
            "client_renewal_due",
            "From when on that certificate should have been renewed, since 1970",
            Unit::Seconds,
            metrics.client_renewal_due.clone(),
        );
        metrics.lifecycle.register(&mut registry);
        Self {
            registry,
            ..metrics
        }
    }

    /// One request is answered.
    pub(super) fn request(
        &self,
        operation: &'static str,
        outcome: &'static str,
        status: u16,
        batch: usize,
        took: Duration,
    ) {
        let labels = RequestLabels {
            operation,
            outcome,
            status,
        };
        self.requests.get_or_create(&labels).inc();
        let label = OperationLabel { operation };
        self.latency
            .get_or_create(&label)
            .observe(took.as_secs_f64());
        if batch > 0 {
            self.items.get_or_create(&label).inc_by(batch as u64);
        }
    }

    /// A signing key went from one state to another.
    pub(super) fn transition(&self, key: &str, from: &'static str, to: &'static str) {
        self.lifecycle.transition(key, from, to);
    }

    /// Of the TLS files as they are now. Of one that can't be read there is no figure: an alert on
    /// its absence would be one on a file half written.
    fn set_ends(&self, app: &App) {
        let files = &app.config.tls;
        let mut ends: BTreeMap<&'static str, i64> = BTreeMap::new();
        for expiry in tls::expiries(files).into_iter().flatten() {
            let file = match expiry.file {
                _ if expiry.is_crl => "crl",
                file if file == files.certificate => "certificate",
                _ => "client_ca",
            };
            let end = ends.entry(file).or_insert(i64::MAX);
            *end = expiry.end.min(*end);
        }
        for (file, end) in ends {
            self.tls_not_after
                .get_or_create(&FileLabel { file })
                .set(end);
        }
    }

    /// Of each identity that was here the certificate in use that ends first; one that was
    /// forgotten has no figure any more.
    fn set_clients(&self, app: &App) {
        self.client_not_after.clear();
        self.client_renewal_due.clear();
        for client in app.tls.client_certificates() {
            let due = client.renewal_due(RENEWAL_DAYS);
            let label = IdentityLabel {
                identity: client.identity,
            };
            self.client_not_after
                .get_or_create(&label)
                .set(client.not_after);
            self.client_renewal_due.get_or_create(&label).set(due);
        }
    }

    /// The whole exposition, in the `OpenMetrics` text format.
    pub(super) fn render(&self, app: &App, in_flight: usize) -> String {
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.in_flight.set(gauge(in_flight));
        self.keys.set(gauge(app.keyring.list().len()));
        let changes = app.audit.changes();
        self.audit_file_changes
            .inc_by(changes.saturating_sub(self.audit_file_changes.get()));
        self.audit_disk_nearly_full
            .set(i64::from(app.audit.is_short()));
        self.hsm_up.set(match app.hsm.state() {
            HsmState::Ready => 1,
            HsmState::Reconnecting { .. } => 0,
            HsmState::Stopped { .. } => -1,
        });
        self.store_epoch
            .set(i64::try_from(app.store.status().epoch).unwrap_or(i64::MAX));
        self.store_disk_full
            .set(i64::from(app.store.disk_is_full()));
        let standing = app.keyring.standing();
        self.key_versions.set(gauge(standing.versions));
        self.key_versions_moved.set(gauge(standing.moved));
        let in_force = app.hsm.generations().into_iter().find(|one| one.in_force);
        self.master_generation
            .set(in_force.map_or(0, |one| i64::from(one.number)));
        self.uptime
            .set(i64::try_from(app.started.elapsed().as_secs()).unwrap_or(i64::MAX));
        for measure in app.hardening.measures() {
            self.hardening
                .get_or_create(&MeasureLabel {
                    measure: measure.name,
                })
                .set(i64::from(measure.outcome.is_ok()));
        }
        self.lifecycle.set(app);
        self.set_ends(app);
        self.set_clients(app);
        let mut text = String::with_capacity(16 * 1024);
        // Writing to memory can't fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
