//! What happened lately, for the status page: how many requests were answered how, and who was
//! denied what.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// One sample is taken this often.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);
/// An hour of them is kept.
const MAX_SAMPLES: usize = 360;
/// So many denials are kept.
const MAX_DENIALS: usize = 50;
/// A denial's texts come from clients and configuration; longer ones are cut.
const MAX_TEXT_CHARS: usize = 200;

/// Requests answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Answered {
    pub(super) ok: u64,
    pub(super) denied: u64,
    pub(super) error: u64,
}

/// A request that was denied.
#[derive(Clone, Debug)]
pub(super) struct Denial {
    pub(super) time: SystemTime,
    pub(super) identity: String,
    pub(super) operation: &'static str,
    pub(super) key: String,
    pub(super) reason: String,
}

/// Everything of this file.
#[derive(Default)]
pub(super) struct Recent {
    ok: AtomicU64,
    denied: AtomicU64,
    error: AtomicU64,
    samples: Mutex<Samples>,
    denials: Mutex<VecDeque<Denial>>,
}

#[derive(Default)]
struct Samples {
    last: Answered,
    history: VecDeque<Answered>,
}

impl Recent {
    /// One request is answered.
    pub(super) fn count(&self, outcome: &str) {
        let counter = match outcome {
            "ok" => &self.ok,
            "denied" => &self.denied,
            _ => &self.error,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// One request is denied.
    pub(super) fn deny(&self, identity: &str, operation: &'static str, key: &str, reason: &str) {
        let cut = |text: &str| text.chars().take(MAX_TEXT_CHARS).collect();
        let mut denials = lock(&self.denials);
        denials.truncate(MAX_DENIALS - 1);
        denials.push_front(Denial {
            time: SystemTime::now(),
            identity: cut(identity),
            operation,
            key: cut(key),
            reason: cut(reason),
        });
    }

    /// Takes a sample; to be called each [`SAMPLE_INTERVAL`].
    pub(super) fn sample(&self) {
        let now = Answered {
            ok: self.ok.load(Ordering::Relaxed),
            denied: self.denied.load(Ordering::Relaxed),
            error: self.error.load(Ordering::Relaxed),
        };
        let mut samples = lock(&self.samples);
        let last = std::mem::replace(&mut samples.last, now);
        samples.history.truncate(MAX_SAMPLES - 1);
        samples.history.push_front(Answered {
            ok: now.ok - last.ok,
            denied: now.denied - last.denied,
            error: now.error - last.error,
        });
    }

    /// Requests of each [`SAMPLE_INTERVAL`], the latest first.
    pub(super) fn samples(&self) -> Vec<Answered> {
        lock(&self.samples).history.iter().copied().collect()
    }

    /// The latest first.
    pub(super) fn denials(&self) -> Vec<Denial> {
        lock(&self.denials).iter().cloned().collect()
    }
}

/// Nothing that holds these locks can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_what_came_since_the_last_and_an_hour_of_them_is_kept() {
        let recent = Recent::default();
        recent.count("ok");
        recent.count("ok");
        recent.count("error");
        recent.sample();
        recent.count("denied");
        recent.sample();
        let (first, second) = (
            Answered {
                ok: 2,
                denied: 0,
                error: 1,
            },
            Answered {
                ok: 0,
                denied: 1,
                error: 0,
            },
        );
        assert_eq!(recent.samples(), [second, first]);
        for _ in 0..MAX_SAMPLES {
            recent.sample();
        }
        assert_eq!(recent.samples(), [Answered::default(); MAX_SAMPLES]);
    }

    #[test]
    fn the_latest_denials_are_kept_and_long_texts_cut() {
        let recent = Recent::default();
        for number in 0..60 {
            recent.deny("dns:a", "decrypt", &format!("{number}"), &"x".repeat(1000));
        }
        let denials = recent.denials();
        assert_eq!(denials.len(), MAX_DENIALS);
        assert_eq!(denials.first().map(|d| d.key.as_str()), Some("59"));
        assert!(denials.iter().all(|d| d.reason.len() == MAX_TEXT_CHARS));
    }
}
