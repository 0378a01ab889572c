//! How many lines of one identity are written one by one, of denials, errors, and what anybody may
//! do. What comes beyond is counted, and the counts are written. And how many lines one identity
//! may cause while the disk is nearly full.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// Lines are counted, and counts are written, for this long at a time.
pub(super) const QUOTA_WINDOW: Duration = Duration::from_secs(10);
/// Denials, errors, and what anybody may do, of an identity that are written one by one in a
/// window.
pub(super) const MAX_LINES_PER_WINDOW: u32 = 100;
/// Changes of an identity that may fail in a window before no other of its is begun: about as many
/// lines.
pub(super) const MAX_FAILURES_PER_WINDOW: u32 = 50;
/// Requests of an identity that are carried out while the disk is nearly full, until there is room
/// again. Their lines take a small part of what is left for all.
pub(super) const MAX_REQUESTS_DISK_LOW: u32 = 100;
/// So many identities are counted each by itself; all others together.
const MAX_IDENTITIES: usize = 1024;
/// Stands for the identities that are counted together.
pub(super) const OTHER_IDENTITIES: &str = "(others)";

/// A count for the log.
pub(super) struct WindowSummary {
    pub(super) identity: Box<str>,
    pub(super) since: Timestamp,
    pub(super) counts: Counts,
}

/// Decisions that have no line of their own, by their outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) ok: u64,
    pub(super) denied: u64,
    pub(super) errors: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.ok += other.ok;
        self.denied += other.denied;
        self.errors += other.errors;
    }

    fn of(outcome: &str) -> Self {
        let mut one = Self::default();
        match outcome {
            "ok" => one.ok = 1,
            "denied" => one.denied = 1,
            _ => one.errors = 1,
        }
        one
    }
}

/// The current window of each identity that has one.
#[derive(Default)]
pub(super) struct Quota {
    windows: Mutex<HashMap<Box<str>, Window>>,
    /// What each identity has had of its share since the disk became nearly full.
    shares: Mutex<HashMap<Box<str>, u32>>,
}

struct Window {
    began: Instant,
    since: Timestamp,
    lines: u32,
    /// Changes that failed.
    failures: u32,
    counts: Counts,
}

impl Window {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            since: Timestamp::now(),
            lines: 0,
            failures: 0,
            counts: Counts::default(),
        }
    }

    fn has_sum(&self) -> bool {
        self.counts != Counts::default()
    }
}

impl Quota {
    /// Whether one more line about the identity may be written, of so many in a window (`limit`);
    /// if not, it is counted.
    pub(super) fn takes_or_counts(&self, identity: &str, limit: u32, outcome: &str) -> bool {
        self.with(identity, |window| {
            let takes = window.lines < limit;
            if takes {
                window.lines += 1;
            } else {
                window.counts.add(Counts::of(outcome));
            }
            takes
        })
    }

    /// A change that the identity asked for was begun, and failed.
    pub(super) fn change_failed(&self, identity: &str) {
        self.with(identity, |window| {
            window.failures = window.failures.saturating_add(1);
        });
    }

    /// Whether a change that the identity asks for may begin: not too many have failed in the
    /// window.
    pub(super) fn may_begin(&self, identity: &str) -> bool {
        let windows = self.lock();
        let together = || {
            let full = windows.len() >= MAX_IDENTITIES;
            windows.get(OTHER_IDENTITIES).filter(|_| full)
        };
        let window = windows.get(identity).or_else(together);
        // One with a sum goes on until the sum is written.
        window.is_none_or(|window| {
            let over = window.began.elapsed() >= QUOTA_WINDOW && !window.has_sum();
            over || window.failures < MAX_FAILURES_PER_WINDOW
        })
    }

    /// Whether the identity has something left of its share of a disk that is nearly full; takes
    /// one of it.
    pub(super) fn takes_share(&self, identity: &str) -> bool {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let known = shares.len() < MAX_IDENTITIES || shares.contains_key(identity);
        let name = if known { identity } else { OTHER_IDENTITIES };
        // Looked for first: a name is copied once.
        let taken = match shares.get_mut(name) {
            Some(taken) => taken,
            None => shares.entry(name.into()).or_default(),
        };
        let takes = *taken < MAX_REQUESTS_DISK_LOW;
        *taken += u32::from(takes);
        takes
    }

    /// There is room again.
    pub(super) fn give_shares_back(&self) {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        *shares = HashMap::new();
    }

    fn with<T>(&self, identity: &str, body: impl FnOnce(&mut Window) -> T) -> T {
        let mut windows = self.lock();
        if let Some(window) = windows.get_mut(identity) {
            // One with a sum ends when the sum is written.
            if window.began.elapsed() >= QUOTA_WINDOW && !window.has_sum() {
                *window = Window::new();
            }
            return body(window);
        }
        if windows.len() >= MAX_IDENTITIES {
            windows.retain(|_, window| window.has_sum() || window.began.elapsed() < QUOTA_WINDOW);
        }
        let name = if windows.len() < MAX_IDENTITIES {
            identity
        } else {
            OTHER_IDENTITIES
        };
        body(windows.entry(name.into()).or_insert_with(Window::new))
    }

    /// Takes the sums of the windows that have ended, or of `all`.
    pub(super) fn ended(&self, all: bool) -> Vec<WindowSummary> {
        let mut windows = self.lock();
        windows
            .extract_if(|_, window| all || window.began.elapsed() >= QUOTA_WINDOW)
            .filter(|(_, window)| window.has_sum())
            .map(|(identity, window)| WindowSummary {
                identity,
                since: window.since,
                counts: window.counts,
            })
            .collect()
    }

    /// A sum could not be written: it is part of the next one.
    pub(super) fn give_back(&self, sum: WindowSummary) {
        let mut windows = self.lock();
        let window = windows.entry(sum.identity).or_insert_with(Window::new);
        window.since = window.since.min(sum.since);
        window.counts.add(sum.counts);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Window>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_not_written_is_counted_by_identity() {
        let quota = Quota::default();
        let written = |identity: &str, outcome| {
            (0..250)
                .filter(|_| quota.takes_or_counts(identity, MAX_LINES_PER_WINDOW, outcome))
                .count()
        };
        let first = (written("a", "denied"), written("b", "error"));
        assert_eq!(first, (100, 100));
        assert_eq!((written("a", "error"), written("b", "ok")), (0, 0));
        assert!(quota.ended(false).is_empty(), "the window is open");
        let mut sums = quota.ended(true);
        sums.sort_by(|a, b| a.identity.cmp(&b.identity));
        let told: Vec<_> = sums
            .iter()
            .map(|sum| {
                let Counts { ok, denied, errors } = sum.counts;
                (&*sum.identity, ok, denied, errors)
            })
            .collect();
        assert_eq!(told, [("a", 0, 150, 250), ("b", 250, 0, 150)]);
        for sum in sums {
            quota.give_back(sum);
        }
        assert_eq!(quota.ended(true).len(), 2, "nothing is lost");
    }

    #[test]
    fn whose_changes_fail_again_and_again_begins_no_other_for_a_while() {
        let quota = Quota::default();
        for _ in 0..MAX_FAILURES_PER_WINDOW {
            assert!(quota.may_begin("a"));
            quota.change_failed("a");
        }
        assert!(!quota.may_begin("a"));
        assert!(quota.may_begin("b"));
        quota.lock().get_mut("a").unwrap().began -= QUOTA_WINDOW;
        assert!(quota.may_begin("a"), "the window is over");
        quota.change_failed("a");
        assert_eq!(quota.lock()["a"].failures, 1, "another window");
        // A window whose sum is not written yet goes on.
        for _ in 0..MAX_FAILURES_PER_WINDOW {
            quota.change_failed("a");
        }
        assert!(!quota.takes_or_counts("a", 0, "error"));
        quota.lock().get_mut("a").unwrap().began -= QUOTA_WINDOW;
        assert!(!quota.may_begin("a"));
        assert_eq!(quota.ended(false).len(), 1);
        assert!(quota.may_begin("a"), "the window is over");
        for number in 0..10 * MAX_IDENTITIES {
            quota.change_failed(&number.to_string());
        }
        assert!(!quota.may_begin("one more"), "a crowd is one");
        assert!(quota.may_begin("b") == quota.lock().contains_key("b"));
    }

    #[test]
    fn a_crowd_is_counted_together_and_takes_no_more_memory() {
        let quota = Quota::default();
        for number in 0..10 * MAX_IDENTITIES {
            quota.takes_or_counts(&number.to_string(), 1, "denied");
        }
        assert!(quota.lock().len() <= MAX_IDENTITIES + 1);
        let sums = quota.ended(true);
        let others = 9 * MAX_IDENTITIES - 1;
        assert_eq!(
            sums.iter().map(|sum| sum.counts.denied).sum::<u64>(),
            others as u64
        );
        assert!(sums.iter().all(|sum| &*sum.identity == OTHER_IDENTITIES));
    }

    #[test]
    fn a_share_of_a_full_disc_does_not_grow_with_time_nor_with_the_crowd() {
        let quota = Quota::default();
        let taken = |identity: &str| (0..300).filter(|_| quota.takes_share(identity)).count();
        assert_eq!((taken("a"), taken("b"), taken("a")), (100, 100, 0));
        for number in 2..MAX_IDENTITIES {
            assert_eq!(taken(&number.to_string()), 100);
        }
        assert_eq!((taken("more"), taken("even more"), taken("b")), (100, 0, 0));
        assert!(quota.shares.lock().unwrap().len() <= MAX_IDENTITIES + 1);
        quota.give_shares_back();
        assert_eq!(taken("a"), 100, "there is room again");
    }
}
