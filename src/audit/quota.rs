//! How many denials and errors of one identity are written one by one. What comes beyond is counted, and the counts are written.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// Lines are counted, and counts are written, for this long at a time.
pub(super) const WINDOW: Duration = Duration::from_secs(10);
/// Denials and errors of an identity that are written one by one in a window.
pub(super) const LINES: u32 = 100;
/// So many identities are counted each by itself; all others together.
const IDENTITIES: usize = 1024;
/// Stands for the identities that are counted together.
pub(super) const OTHERS: &str = "(others)";

/// A count for the log.
pub(super) struct Sum {
    pub(super) identity: Box<str>,
    pub(super) since: Timestamp,
    pub(super) denied: u64,
    pub(super) errors: u64,
}

/// The current window of each identity that has one.
#[derive(Default)]
pub(super) struct Quota {
    windows: Mutex<HashMap<Box<str>, Window>>,
}

struct Window {
    began: Instant,
    since: Timestamp,
    lines: u32,
    denied: u64,
    errors: u64,
}

impl Window {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            since: Timestamp::now(),
            lines: 0,
            denied: 0,
            errors: 0,
        }
    }

    fn has_sum(&self) -> bool {
        self.denied + self.errors > 0
    }
}

impl Quota {
    /// Whether one more line about the identity may be written; `limit`: of how many in a window.
    pub(super) fn takes(&self, identity: &str, limit: u32) -> bool {
        self.with(identity, |window| {
            let takes = window.lines < limit;
            window.lines += u32::from(takes);
            takes
        })
    }

    /// As [`Quota::takes`]; what may not be written is counted.
    pub(super) fn takes_or_counts(&self, identity: &str, limit: u32, denied: bool) -> bool {
        self.with(identity, |window| {
            let takes = window.lines < limit;
            window.lines += u32::from(takes);
            window.denied += u64::from(!takes && denied);
            window.errors += u64::from(!takes && !denied);
            takes
        })
    }

    fn with<T>(&self, identity: &str, body: impl FnOnce(&mut Window) -> T) -> T {
        let mut windows = self.lock();
        if let Some(window) = windows.get_mut(identity) {
            // One with a sum ends when the sum is written.
            if window.began.elapsed() >= WINDOW && !window.has_sum() {
                *window = Window::new();
            }
            return body(window);
        }
        if windows.len() >= IDENTITIES {
            windows.retain(|_, window| window.has_sum() || window.began.elapsed() < WINDOW);
        }
        let name = if windows.len() < IDENTITIES {
            identity
        } else {
            OTHERS
        };
        body(windows.entry(name.into()).or_insert_with(Window::new))
    }

    /// Takes the sums of the windows that have ended, or of `all`.
    pub(super) fn ended(&self, all: bool) -> Vec<Sum> {
        let mut windows = self.lock();
        windows
            .extract_if(|_, window| all || window.began.elapsed() >= WINDOW)
            .filter(|(_, window)| window.has_sum())
            .map(|(identity, window)| Sum {
                identity,
                since: window.since,
                denied: window.denied,
                errors: window.errors,
            })
            .collect()
    }

    /// A sum could not be written: it is part of the next one.
    pub(super) fn give_back(&self, sum: Sum) {
        let mut windows = self.lock();
        let window = windows.entry(sum.identity).or_insert_with(Window::new);
        window.since = window.since.min(sum.since);
        window.denied += sum.denied;
        window.errors += sum.errors;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Window>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_written_is_counted_by_identity() {
        let quota = Quota::default();
        let written = |identity: &str, denied| {
            (0..250)
                .filter(|_| quota.takes_or_counts(identity, LINES, denied))
                .count()
        };
        assert_eq!((written("a", true), written("b", false)), (100, 100));
        assert_eq!(written("a", false), 0);
        assert!(quota.ended(false).is_empty(), "the window is open");
        let mut sums = quota.ended(true);
        sums.sort_by(|a, b| a.identity.cmp(&b.identity));
        let told: Vec<_> = sums
            .iter()
            .map(|sum| (&*sum.identity, sum.denied, sum.errors))
            .collect();
        assert_eq!(told, [("a", 150, 250), ("b", 0, 150)]);
        for sum in sums {
            quota.give_back(sum);
        }
        assert_eq!(quota.ended(true).len(), 2, "nothing is lost");
    }

    #[test]
    fn a_crowd_is_counted_together_and_takes_no_more_memory() {
        let quota = Quota::default();
        for number in 0..10 * IDENTITIES {
            quota.takes_or_counts(&number.to_string(), 1, true);
        }
        assert!(quota.lock().len() <= IDENTITIES + 1);
        let sums = quota.ended(true);
        let others = 9 * IDENTITIES - 1;
        assert_eq!(
            sums.iter().map(|sum| sum.denied).sum::<u64>(),
            others as u64
        );
        assert!(sums.iter().all(|sum| &*sum.identity == OTHERS));
    }
}
