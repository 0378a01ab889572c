//! The states of a signing key whose public half others keep in a cache: a pure function of what
//! happened and of a clock.
//!
//! ```text
//! Loading ──▶ Active ──▶ DualActive ──▶ Active        Active, DualActive ──▶ Degraded ──▶ Critical
//!                new signs      old leaves the set             ◀──────── confirmed ────────┘
//! ```
//!
//! A verifier fetches the set of public keys, keeps it for `cache` (the `max-age` of its headers),
//! and fetches again. It must never reject a token that is valid, that is, signed at most `overlap`
//! ago. Two waits see to that:
//!
//! - A new version is in the set for `publish_before` before it signs. Who fetched the set at `t`
//!   fetches again at `t + cache`. What signs at `s`, with `t <= s <= t + cache`, was in the set
//!   from `s - publish_before <= t + cache - publish_before` on, and so at `t`, as
//!   `publish_before >= cache`.
//! - A version that another has followed at `s` stays in the set until `s + overlap + cache`. Its
//!   last token is signed at `s` and valid until `s + overlap`; every set that is fetched until
//!   then has the version. (That alone would do; `cache` besides is for verifiers whose clock is
//!   behind, and for sets that were on their way.)
//!
//! Both waits are measured on a clock that only goes forward and that knows nothing of the time of
//! day, from when this process first saw what it waits for. So a clock that jumps shortens neither,
//! and a restart makes them longer, never shorter.

use std::collections::BTreeMap;
use std::time::Duration;

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From a version's publication to its first signature; at least `cache`.
    pub publish_before: Duration,
    /// How long a token is valid at most (`JWT_ACCESS_TOKEN_TTL`).
    pub overlap: Duration,
    /// How long verifiers keep the set of public keys (`max-age`).
    pub cache: Duration,
    /// How long the copy in use may go without confirmation by HSM and store (`KEY_MAX_AGE`).
    pub key_max_age: Duration,
}

/// What an operator is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Read from the store, and not yet confirmed by HSM and store.
    Loading,
    /// One version is accepted and signs; the next may be published already.
    Active,
    /// The old version and the new one are accepted, the new one signs.
    DualActive,
    /// HSM or store is away: what is in memory is served, nothing rotates.
    Degraded,
    /// HSM or store has been away for `key_max_age`: somebody must act.
    Critical,
}

impl State {
    /// Every state, in the order of a page that lists them.
    pub const ALL: [Self; 5] = [
        Self::Loading,
        Self::Active,
        Self::DualActive,
        Self::Degraded,
        Self::Critical,
    ];

    /// As metrics and logs spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Active => "active",
            Self::DualActive => "dual_active",
            Self::Degraded => "degraded",
            Self::Critical => "critical",
        }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// HSM and store both have the copy in use.
    Confirmed,
    /// HSM or store did not answer, or has another copy.
    Lost,
    /// A new version is in the store, and so in the set.
    Published(u32),
    /// The store says that this version signs.
    Activated(u32),
    /// The store says that the versions below this one have left the set.
    Retired(u32),
    /// Nothing but time.
    Tick,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Let this version sign.
    Activate(u32),
    /// Take the versions below this one out of the set.
    Retire(u32),
}

/// Which versions are in the set, and which one signs: `published <= signing <= latest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The oldest in the set.
    pub published: u32,
    /// The one that signs.
    pub signing: u32,
    /// The newest.
    pub latest: u32,
}

/// One key's machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifecycle {
    limits: Limits,
    versions: Versions,
    /// Of a version that does not sign yet: when it was published. Of one that signs no more: when
    /// another followed it.
    since: BTreeMap<u32, Duration>,
    /// The latest time seen: a clock that steps back stands still.
    now: Duration,
    confirmed: Option<Duration>,
    lost: bool,
}

impl Lifecycle {
    /// Of a key that was just read or made. `now`: on a clock that only goes forward.
    pub fn new(limits: Limits, versions: Versions, now: Duration) -> Self {
        let waiting = (versions.published..=versions.latest).filter(|v| *v != versions.signing);
        Self {
            limits,
            versions,
            since: waiting.map(|version| (version, now)).collect(),
            now,
            confirmed: None,
            lost: false,
        }
    }

    /// After an event.
    #[must_use]
    pub fn after(mut self, event: Event, now: Duration) -> Self {
        self.now = self.now.max(now);
        let now = self.now;
        match event {
            Event::Confirmed => {
                self.confirmed = Some(now);
                self.lost = false;
            }
            Event::Lost => self.lost = true,
            Event::Published(version) if version > self.versions.latest => {
                self.versions.latest = version;
                self.since.insert(version, now);
            }
            Event::Activated(version)
                if (self.versions.signing..=self.versions.latest).contains(&version) =>
            {
                for followed in self.versions.signing..version {
                    self.since.insert(followed, now);
                }
                self.since.remove(&version);
                self.versions.signing = version;
            }
            Event::Retired(version)
                if (self.versions.published..=self.versions.signing).contains(&version) =>
            {
                self.since = self.since.split_off(&version);
                self.versions.published = version;
            }
            // The last three: of versions that this key does not have, an event told late.
            Event::Tick | Event::Published(_) | Event::Activated(_) | Event::Retired(_) => {}
        }
        self
    }

    /// The state now.
    pub fn state(&self) -> State {
        match self.unconfirmed_for() {
            None => State::Loading,
            Some(age) if age >= self.limits.key_max_age => State::Critical,
            Some(_) if self.lost => State::Degraded,
            Some(_) if self.versions.published < self.versions.signing => State::DualActive,
            Some(_) => State::Active,
        }
    }

    /// What is to be done; nothing unless HSM and store are there.
    pub fn due(&self) -> Option<Due> {
        if !matches!(self.state(), State::Active | State::DualActive) {
            return None;
        }
        let Versions {
            published,
            signing,
            latest,
        } = self.versions;
        let waited = |version: u32, wait: Duration| {
            let since = self.since.get(&version);
            since.is_some_and(|since| self.now.saturating_sub(*since) >= wait)
        };
        let next = (signing + 1..=latest)
            .rev()
            .find(|version| waited(*version, self.limits.publish_before));
        if let Some(version) = next {
            return Some(Due::Activate(version));
        }
        let wait = self.limits.overlap.saturating_add(self.limits.cache);
        let keep = (published..signing)
            .find(|version| !waited(*version, wait))
            .unwrap_or(signing);
        (keep > published).then_some(Due::Retire(keep))
    }

    /// Whether a new version may be made: HSM and store are there.
    pub fn may_rotate(&self) -> bool {
        matches!(self.state(), State::Active | State::DualActive)
    }

    /// Which versions are in the set and which one signs.
    pub fn versions(&self) -> Versions {
        self.versions
    }

    /// Since when the copy in use is without confirmation; `None` if it never had one.
    pub fn unconfirmed_for(&self) -> Option<Duration> {
        Some(self.now.saturating_sub(self.confirmed?))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;
