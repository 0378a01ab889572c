//! `sys`: health, seal status, metrics, and the API's own description. None of these is enveloped,
//! as in Vault.

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::Serialize;
use strongroom_core::keyring::{KeyHealth, Scheduled, Verdict};
use strongroom_core::tls::ClientCertificate;
use strongroom_hsm::HsmState;

use super::call::Call;
use super::error::ApiError;
use super::names::word;
use super::openapi::OPENAPI;
use super::request::{Unread, request};
use super::rotation;
use crate::api::App;
use crate::api::pipeline::answer::Answer;

/// What stands for Vault's version: this program's, marked as its own.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "+strongroom");
/// What stands for Vault's cluster name.
const NAME: &str = "strongroom";

request! {
    /// `GET`, `HEAD sys/health`.
    Health {
        /// The status, 200 to 599, when requests are served.
        activecode: Option<i64> = serde_json::json!({ "type": "string" }),
        /// The status, 200 to 599, when they aren't.
        sealedcode: Option<i64> = serde_json::json!({ "type": "string" }),
    }
    besides {
        /// Not looked at: there is no such state here.
        standbyok: Unread,
        /// Not looked at: there is no such state here.
        perfstandbyok: Unread,
        /// Not looked at: there is no such state here.
        standbycode: Unread,
        /// Not looked at: there is no such state here.
        uninitcode: Unread,
        /// Not looked at: there is no such state here.
        drsecondarycode: Unread,
        /// Not looked at: there is no such state here.
        performancestandbycode: Unread,
    }
}

request! {
    /// `GET sys/metrics`.
    Metrics<'p> {
        /// The text format is the same for all.
        format: Option<Cow<'p, str>> = serde_json::json!({ "enum": ["", "prometheus", "openmetrics"] }),
    }
}

request! {
    /// `GET sys/internal/specs/openapi`.
    Specification {}
    besides {
        /// Not looked at.
        generic_mount_paths: Unread,
    }
}

/// `GET`, `HEAD sys/health`: 200 when requests are served, else 503 with the reason.
pub(in crate::api) async fn health(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    #[derive(Serialize)]
    #[allow(clippy::struct_excessive_bools)]
    struct HealthBody {
        initialized: bool,
        sealed: bool,
        standby: bool,
        performance_standby: bool,
        replication_performance_mode: &'static str,
        replication_dr_mode: &'static str,
        server_time_utc: u64,
        version: &'static str,
        cluster_name: &'static str,
        cluster_id: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        strongroom: Option<rotation::Progress>,
    }
    let asked = Health::read(&call.params)?;
    let reason = not_serving(call.app);
    let (parameter, default) = match reason {
        None => ("activecode", 200),
        Some(_) => ("sealedcode", 503),
    };
    let wanted = match reason {
        None => asked.activecode,
        Some(_) => asked.sealedcode,
    };
    let status = match wanted {
        None => default,
        Some(code) => match u16::try_from(code) {
            Ok(code @ 200..=599) => code,
            _ => {
                return Err(ApiError::bad_request(format!(
                    "{parameter} must be an HTTP status between 200 and 599"
                ))
                .in_own_words());
            }
        },
    };
    let body = HealthBody {
        initialized: true,
        sealed: reason.is_some(),
        standby: false,
        performance_standby: false,
        replication_performance_mode: "disabled",
        replication_dr_mode: "disabled",
        server_time_utc: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        version: VERSION,
        cluster_name: NAME,
        cluster_id: cluster_id(call.app),
        reason,
        strongroom: rotation::progress(call.app),
    };
    Ok(json(status, &body))
}

/// `GET sys/seal-status`. Sealed: the HSM is not there.
pub(in crate::api) async fn seal_status(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    #[derive(Serialize)]
    #[allow(clippy::struct_excessive_bools)]
    struct SealStatus {
        r#type: &'static str,
        initialized: bool,
        sealed: bool,
        t: u32,
        n: u32,
        progress: u32,
        nonce: &'static str,
        version: &'static str,
        build_date: &'static str,
        migration: bool,
        cluster_name: &'static str,
        cluster_id: String,
        recovery_seal: bool,
        storage_type: &'static str,
    }
    let body = SealStatus {
        r#type: "pkcs11",
        initialized: true,
        sealed: not_serving(call.app).is_some(),
        t: 0,
        n: 0,
        progress: 0,
        nonce: "",
        version: VERSION,
        build_date: "",
        migration: false,
        cluster_name: NAME,
        cluster_id: cluster_id(call.app),
        recovery_seal: false,
        storage_type: NAME,
    };
    Ok(json(200, &body))
}

/// `GET sys/init`.
pub(in crate::api) async fn init(_: &mut Call<'_>) -> Result<Answer, ApiError> {
    #[derive(Serialize)]
    struct Init {
        initialized: bool,
    }
    Ok(json(200, &Init { initialized: true }))
}

/// `GET sys/leader`: one appliance, no cluster. Vault's CLI asks for it after `sys/seal-status`.
pub(in crate::api) async fn leader(_: &mut Call<'_>) -> Result<Answer, ApiError> {
    #[derive(Serialize)]
    #[allow(clippy::struct_field_names)]
    struct Leader {
        ha_enabled: bool,
        is_self: bool,
        active_time: &'static str,
        leader_address: &'static str,
        leader_cluster_address: &'static str,
        performance_standby: bool,
        performance_standby_last_remote_wal: u32,
    }
    let body = Leader {
        ha_enabled: false,
        is_self: false,
        active_time: "0001-01-01T00:00:00Z",
        leader_address: "",
        leader_cluster_address: "",
        performance_standby: false,
        performance_standby_last_remote_wal: 0,
    };
    Ok(json(200, &body))
}

/// `GET sys/metrics`: `OpenMetrics` text, whatever `format` says of Prometheus.
pub(in crate::api) async fn metrics(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    match Metrics::read(&call.params)?.format.as_deref() {
        None | Some("" | "prometheus" | "openmetrics") => {}
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "metric response format {:?} is not supported: use \"prometheus\"",
                word(other)
            ))
            .because("the format of metrics is not supported"));
        }
    }
    let text = call
        .app
        .admission
        .metrics
        .render(call.app, call.app.admission.in_flight());
    Ok(Answer::raw(
        200,
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
        text.into(),
    ))
}

/// `GET sys/lifecycle`: how the published signing keys are, and which rotations are due when.
pub(in crate::api) async fn lifecycle(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    Ok(json(200, &Lifecycle::now(call.app)))
}

/// What `sys/lifecycle`, `strongroom status` and the status page show of keys.
#[derive(Serialize)]
pub(in crate::api) struct Lifecycle {
    pub(in crate::api) signing_keys: Vec<KeyHealth>,
    pub(in crate::api) rotations: Vec<DueRotation>,
    /// Of those who were here since the start, when their certificates end.
    pub(in crate::api) client_certificates: Vec<ClientCertificate>,
}

/// A key that is rotated automatically.
#[derive(Serialize)]
pub(in crate::api) struct DueRotation {
    pub(in crate::api) name: String,
    pub(in crate::api) latest_version: u32,
    /// Seconds until it is due; negative: since.
    pub(in crate::api) due_in: Option<i64>,
    /// Due for more than 15 minutes.
    pub(in crate::api) skipped: bool,
    /// Its latest version is from the future: nothing is done until the clock is right.
    pub(in crate::api) clock_behind: bool,
}

impl Lifecycle {
    pub(in crate::api) fn now(app: &App) -> Self {
        let rotation = |key: Scheduled| DueRotation {
            due_in: match key.verdict {
                Verdict::In(seconds) => Some(seconds),
                Verdict::Due(since) => Some(since.saturating_neg()),
                Verdict::Never | Verdict::ClockBehind => None,
            },
            skipped: key.verdict.is_skipped(),
            clock_behind: key.verdict == Verdict::ClockBehind,
            name: key.name.to_string(),
            latest_version: key.latest,
        };
        Self {
            signing_keys: app.keyring.health(),
            rotations: app.keyring.schedule().into_iter().map(rotation).collect(),
            client_certificates: app.tls.client_certificates(),
        }
    }
}

/// `GET sys/internal/specs/openapi`, `GET openapi.json`.
pub(in crate::api) async fn openapi(_: &mut Call<'_>) -> Result<Answer, ApiError> {
    Ok(Answer::raw(
        200,
        "application/json",
        Bytes::from_static(OPENAPI.as_bytes()),
    ))
}

/// Why requests are not served now, if they aren't.
fn not_serving(app: &App) -> Option<String> {
    match app.hsm.state() {
        HsmState::Ready => {}
        HsmState::Reconnecting { reason } => {
            return Some(format!("the HSM is being reconnected: {reason}"));
        }
        HsmState::Stopped { reason } => {
            return Some(format!("the HSM is stopped, restart the server: {reason}"));
        }
    }
    app.audit
        .check()
        .err()
        .map(|_| "the audit log can't be written, so requests are refused".to_owned())
}

/// The store's id: what tells one appliance's keys from another's.
fn cluster_id(app: &App) -> String {
    uuid::Uuid::from_bytes(app.store.status().store_id).to_string()
}

pub(in crate::api) fn json<T: Serialize>(status: u16, body: &T) -> Answer {
    // The types above have no map with keys that aren't strings, so nothing can fail.
    let mut text = serde_json::to_vec(body).unwrap_or_default();
    text.push(b'\n');
    Answer::raw(status, "application/json", text.into())
}
