//! What the page shows, at one moment.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use strongroom_core::keyring::{KeyInfo, KeyType, Residency, Verdict};
use strongroom_core::lifecycle::State;
use strongroom_core::tls;
use strongroom_hsm::HsmState;

use crate::api::App;
use crate::api::metrics::RENEWAL_DAYS;
use crate::api::recent::{Answered, Denial};

/// More keys than this make no page that anybody reads.
const MAX_KEYS: usize = 500;
/// An end that is nearer than this is worth a look.
const EXPIRES_SOON_SECONDS: i64 = 14 * 24 * 60 * 60;

/// How good something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severity {
    Good,
    Watch,
    Bad,
}

/// A fact, and how good it is.
pub(super) struct Fact {
    pub(super) name: String,
    pub(super) value: String,
    pub(super) grade: Severity,
}

/// One key's row.
pub(super) struct Key {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) versions: String,
    /// Seconds since 1970 of each version, oldest first.
    pub(super) created: Vec<i64>,
    /// Seconds until the next rotation; negative: it is overdue for so long.
    pub(super) due: Option<i64>,
    pub(super) state: &'static str,
    pub(super) grade: Severity,
}

/// Everything.
pub(super) struct Status {
    pub(super) now: i64,
    pub(super) facts: Vec<Fact>,
    pub(super) keys: Vec<Key>,
    /// Keys beyond those shown.
    pub(super) more_keys: usize,
    pub(super) samples: Vec<Answered>,
    pub(super) denials: Vec<Denial>,
}

impl Status {
    /// The worst of it.
    pub(super) fn grade(&self) -> Severity {
        let facts = self.facts.iter().map(|fact| fact.grade);
        let keys = self.keys.iter().map(|key| key.grade);
        facts.chain(keys).max().unwrap_or(Severity::Good)
    }
}

pub(super) fn gather(app: &App) -> Status {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        });
    let mut keys = keys(app, now);
    // What needs a look comes first.
    keys.sort_by(|a, b| b.grade.cmp(&a.grade).then_with(|| a.name.cmp(&b.name)));
    let more_keys = keys.len().saturating_sub(MAX_KEYS);
    keys.truncate(MAX_KEYS);
    Status {
        now,
        facts: facts(app, now),
        keys,
        more_keys,
        samples: app.admission.recent.samples(),
        denials: app.admission.recent.denials(),
    }
}

fn facts(app: &App, now: i64) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut say = |name: &str, value: String, grade: Severity| {
        facts.push(Fact {
            name: name.to_owned(),
            value,
            grade,
        });
    };
    match app.hsm.state() {
        HsmState::Ready => say("HSM", "ready".to_owned(), Severity::Good),
        HsmState::Reconnecting { reason } => {
            say(
                "HSM",
                format!("away, being reconnected: {reason}"),
                Severity::Bad,
            );
        }
        HsmState::Stopped { reason } => {
            say("HSM", format!("stopped for good: {reason}"), Severity::Bad);
        }
    }
    let token = app.hsm.token();
    let model = format!(
        "{} {}, serial {}",
        token.manufacturer, token.model, token.serial
    );
    say(
        "Token",
        format!("{} ({model})", token.label),
        Severity::Good,
    );
    let store = app.store.status();
    say(
        "Store",
        format!("{} records, epoch {}", store.records, store.epoch),
        Severity::Good,
    );
    match app.audit.check().map(|()| app.audit.worry()) {
        Ok(None) => say("Audit log", "written".to_owned(), Severity::Good),
        Ok(Some(worry)) => say("Audit log", format!("written, but {worry}"), Severity::Bad),
        Err(error) => say("Audit log", error.to_string(), Severity::Bad),
    }
    match tls::expiries(&app.config.tls) {
        Ok(expiries) => {
            for expiry in expiries {
                let left = expiry.end - now;
                let grade = match left {
                    ..=0 => Severity::Bad,
                    // A CRL lives for days, and is renewed as a matter of course.
                    1..EXPIRES_SOON_SECONDS if !expiry.is_crl => Severity::Watch,
                    _ => Severity::Good,
                };
                let what = if expiry.is_crl {
                    "Revocation list"
                } else {
                    "Certificate"
                };
                let value = format!("{}: {} left", expiry.name, super::time::span(left));
                say(what, value, grade);
            }
        }
        Err(error) => say("Certificates", error.to_string(), Severity::Bad),
    }
    let clients = app.tls.client_certificates();
    let seen = clients.len();
    for client in clients {
        let left = client.not_after - now;
        let grade = match left {
            ..=0 => Severity::Bad,
            _ if now >= client.renewal_due(RENEWAL_DAYS) => Severity::Watch,
            _ => continue,
        };
        let value = format!("{}: {} left", client.identity, super::time::span(left));
        say("Client's certificate", value, grade);
    }
    say(
        "Clients",
        format!("{seen} identities seen since the start"),
        Severity::Good,
    );
    match app.hardening.missing().as_slice() {
        [] => say("Hardening", "complete".to_owned(), Severity::Good),
        missing => say(
            "Hardening",
            format!("missing: {}", missing.join(", ")),
            Severity::Watch,
        ),
    }
    let uptime = i64::try_from(app.started.elapsed().as_secs()).unwrap_or(i64::MAX);
    let version = env!("CARGO_PKG_VERSION");
    say(
        "Running",
        format!("version {version}, for {}", super::time::span(uptime)),
        Severity::Good,
    );
    facts
}

fn keys(app: &App, now: i64) -> Vec<Key> {
    let scheduled: HashMap<_, _> = app
        .keyring
        .schedule()
        .into_iter()
        .map(|key| (key.name, (key.verdict, key.waiting)))
        .collect();
    let states: HashMap<_, _> = app
        .keyring
        .health()
        .into_iter()
        .map(|key| (key.name, key.state))
        .collect();
    let names = app.keyring.list();
    // A key may be deleted between the list and the look.
    let infos = names
        .iter()
        .filter_map(|name| app.keyring.read(name.borrowed()).ok());
    infos
        .map(|info| {
            let (due, mut grade) = match scheduled.get(info.name.as_str()).copied() {
                Some((Verdict::In(left), _)) => (Some(left), Severity::Good),
                Some((Verdict::Due(_), true)) => (Some(0), Severity::Good),
                Some((verdict @ Verdict::Due(since), false)) => {
                    let grade = if verdict.is_skipped() {
                        Severity::Bad
                    } else {
                        Severity::Watch
                    };
                    (Some(since.saturating_neg()), grade)
                }
                Some((Verdict::ClockBehind, _)) => (None, Severity::Bad),
                Some((Verdict::Never, _)) | None => (None, Severity::Good),
            };
            let state = states.get(&info.name).copied();
            grade = grade.max(match state {
                Some(State::Degraded) => Severity::Watch,
                Some(State::Critical) => Severity::Bad,
                _ => Severity::Good,
            });
            let mut created: Vec<i64> = info
                .versions
                .iter()
                .map(|version| version.created)
                .collect();
            created.sort_unstable();
            created.retain(|created| *created <= now);
            Key {
                kind: kind(&info),
                versions: versions(&info),
                created,
                due,
                state: state.map_or("", State::as_str),
                grade,
                name: info.name,
            }
        })
        .collect()
}

fn kind(info: &KeyInfo) -> String {
    let mut kind = info.key_type.as_str().to_owned();
    if info.key_type == KeyType::Aes256Gcm96 && info.residency == Residency::Memory {
        kind.push_str(", memory");
    }
    if info.derived {
        kind.push_str(", derived");
    }
    if info.imported {
        kind.push_str(", imported");
    }
    kind
}

fn versions(info: &KeyInfo) -> String {
    let oldest = info
        .min_decryption_version
        .max(info.min_available_version)
        .max(1);
    if oldest == info.latest_version {
        format!("{oldest}")
    } else {
        format!("{oldest}\u{2013}{}", info.latest_version)
    }
}
