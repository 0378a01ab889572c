//! When a key is to be rotated: a pure function of its latest version, its period and the time of
//! day.

use sha2::{Digest as _, Sha256};

/// A rotation this long after its time is one that was skipped: somebody must know.
pub const MAX_ROTATION_DELAY: i64 = 15 * 60;
/// A latest version that is younger than now by more than this was made by a clock that was ahead,
/// or this one is behind.
const MAX_CLOCK_SKEW: i64 = 24 * 60 * 60;
/// Keys made together are rotated apart: each up to a twentieth of its period before the period
/// ends, never after.
const JITTER_DIVISOR: u64 = 20;

/// What the schedule says of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is not rotated automatically.
    Never,
    /// In so many seconds.
    In(i64),
    /// Now; for so many seconds already.
    Due(i64),
    /// Its latest version is from the future: nothing is done until the clock is right.
    ClockBehind,
}

impl Verdict {
    /// Whether the rotation was skipped for so long that somebody must know.
    pub fn is_skipped(self) -> bool {
        matches!(self, Self::Due(since) if since >= MAX_ROTATION_DELAY)
    }
}

/// `period`: seconds, 0 for none. `created`: of version `latest`, seconds since 1970, as `now`.
pub(super) fn verdict(name: &str, latest: u32, created: i64, period: u64, now: i64) -> Verdict {
    if period == 0 {
        return Verdict::Never;
    }
    let age = now.saturating_sub(created);
    if age < -MAX_CLOCK_SKEW {
        return Verdict::ClockBehind;
    }
    let wait = i64::try_from(period - jitter(name, latest, period)).unwrap_or(i64::MAX);
    let left = wait.saturating_sub(age);
    if left > 0 {
        Verdict::In(left)
    } else {
        Verdict::Due(left.saturating_neg())
    }
}

/// The same for the same version at each call and after each restart.
fn jitter(name: &str, latest: u32, period: u64) -> u64 {
    let mut hash = Sha256::new();
    hash.update(name.as_bytes());
    hash.update(latest.to_be_bytes());
    let hash: [u8; 32] = hash.finalize().into();
    // The first eight bytes as a number.
    let number = hash
        .iter()
        .take(8)
        .fold(0, |n: u64, byte| n << 8 | u64::from(*byte));
    number % (period / JITTER_DIVISOR + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: i64 = 86_400;

    #[test]
    fn a_key_is_due_within_its_last_twentieth_and_skipped_a_quarter_of_an_hour_later() {
        let period = 7_776_000;
        assert_eq!(verdict("k", 1, 0, 0, i64::MAX), Verdict::Never);
        assert!(matches!(
            verdict("k", 1, 0, period, 85 * DAY),
            Verdict::In(_)
        ));
        assert!(matches!(
            verdict("k", 1, 0, period, 90 * DAY),
            Verdict::Due(_)
        ));
        let Verdict::In(left) = verdict("k", 1, 0, period, 0) else {
            unreachable!("a new key is not due")
        };
        assert_eq!(verdict("k", 1, 0, period, left), Verdict::Due(0));
        assert!(!verdict("k", 1, 0, period, left + MAX_ROTATION_DELAY - 1).is_skipped());
        assert!(verdict("k", 1, 0, period, left + MAX_ROTATION_DELAY).is_skipped());
    }

    #[test]
    fn a_version_from_the_future_is_the_clocks_fault() {
        assert_eq!(verdict("k", 1, 2 * DAY, 3600, 0), Verdict::ClockBehind);
        assert!(matches!(verdict("k", 1, DAY, 3600, 0), Verdict::In(_)));
    }

    #[test]
    fn keys_made_together_are_rotated_apart() {
        let due: std::collections::BTreeSet<_> = (0..100)
            .map(|n| match verdict(&format!("key-{n}"), 1, 0, 7_776_000, 0) {
                Verdict::In(left) => left / 3600,
                _ => -1,
            })
            .collect();
        assert!(due.len() > 50, "{} different hours", due.len());
    }

    proptest! {
        #[test]
        fn never_later_than_the_period_and_never_before_nineteen_twentieths(
            name in "[a-z]{1,8}", latest: u32, created in 0_i64..1 << 40, period in 3600_u64..1 << 33
        ) {
            let Verdict::In(left) = verdict(&name, latest, created, period, created) else {
                return Err(TestCaseError::fail("due at once"));
            };
            let left = u64::try_from(left).unwrap_or(0);
            prop_assert!(left <= period && left >= period - period / JITTER_DIVISOR, "{left} of {period}");
        }

        #[test]
        fn any_numbers_give_a_verdict(latest: u32, created: i64, period: u64, now: i64) {
            let _ = verdict("k", latest, created, period, now);
        }
    }
}
