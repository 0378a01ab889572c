//! How keys are: states of the published signing keys, and what the rotation schedule says. Labels
//! are keys that the configuration names.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use strongroom_core::keyring::Verdict;
use strongroom_core::lifecycle::State;

use crate::api::App;

type Number = Gauge<i64, AtomicI64>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabels {
    key: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TransitionLabels {
    key: String,
    from: &'static str,
    to: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KeyLabel {
    key: String,
}

/// The metrics of this file.
#[derive(Default)]
pub(super) struct Lifecycles {
    state: Family<StateLabels, Number>,
    transitions: Family<TransitionLabels, Counter<u64, AtomicU64>>,
    unconfirmed: Family<KeyLabel, Number>,
    signing_version: Family<KeyLabel, Number>,
    latest_version: Family<KeyLabel, Number>,
    published_version: Family<KeyLabel, Number>,
    overdue: Number,
    skipped: Number,
    longest_overdue: Number,
    clock_behind: Number,
}

impl Lifecycles {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "signing_key_state",
            "1 for the state that a published signing key is in, 0 for the others",
            self.state.clone(),
        );
        registry.register(
            "signing_key_transitions",
            "Changes of a published signing key's state",
            self.transitions.clone(),
        );
        registry.register_with_unit(
            "signing_key_unconfirmed",
            "Time since HSM and store last confirmed the copy in use; -1: never yet",
            Unit::Seconds,
            self.unconfirmed.clone(),
        );
        registry.register(
            "signing_key_signing_version",
            "The version that signs",
            self.signing_version.clone(),
        );
        registry.register(
            "signing_key_latest_version",
            "The newest version",
            self.latest_version.clone(),
        );
        registry.register(
            "signing_key_published_version",
            "The oldest version in the set of public keys",
            self.published_version.clone(),
        );
        registry.register(
            "rotations_due",
            "Keys whose rotation is due and not done",
            self.overdue.clone(),
        );
        registry.register(
            "rotations_skipped",
            "Keys whose rotation has been due for more than 15 minutes",
            self.skipped.clone(),
        );
        registry.register_with_unit(
            "rotation_overdue",
            "For how long the longest due rotation has been due",
            Unit::Seconds,
            self.longest_overdue.clone(),
        );
        registry.register(
            "rotation_clock_behind",
            "Keys that are not rotated because their latest version is from the future: the clock is, or was, wrong",
            self.clock_behind.clone(),
        );
    }

    pub(super) fn transition(&self, key: &str, from: &'static str, to: &'static str) {
        let labels = TransitionLabels {
            key: key.to_owned(),
            from,
            to,
        };
        self.transitions.get_or_create(&labels).inc();
    }

    /// As things are now.
    pub(super) fn set(&self, app: &App) {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        // A key that was deleted has no state.
        for family in [
            &self.unconfirmed,
            &self.signing_version,
            &self.latest_version,
            &self.published_version,
        ] {
            family.clear();
        }
        self.state.clear();
        for health in app.keyring.health() {
            for state in State::ALL {
                let labels = StateLabels {
                    key: health.name.clone(),
                    state: state.as_str(),
                };
                let gauge = self.state.get_or_create(&labels);
                gauge.set(i64::from(state == health.state));
            }
            let label = KeyLabel { key: health.name };
            let unconfirmed = health.unconfirmed_seconds.map_or(-1, number);
            self.unconfirmed.get_or_create(&label).set(unconfirmed);
            for (family, version) in [
                (&self.signing_version, health.signing_version),
                (&self.latest_version, health.latest_version),
                (&self.published_version, health.published_version),
            ] {
                family.get_or_create(&label).set(version.into());
            }
        }
        let (mut overdue, mut skipped, mut behind, mut longest) = (0, 0, 0, 0);
        for key in app.keyring.schedule() {
            match key.verdict {
                Verdict::Due(since) if !key.waiting => {
                    overdue += 1;
                    longest = longest.max(since);
                    skipped += i64::from(key.verdict.is_skipped());
                }
                Verdict::ClockBehind => behind += 1,
                _ => {}
            }
        }
        self.overdue.set(overdue);
        self.skipped.set(skipped);
        self.longest_overdue.set(longest);
        self.clock_behind.set(behind);
    }
}
