//! How often a key version has encrypted with a random nonce: never under-counted, not even by a
//! crash.
//!
//! Encryptions are counted in memory against a durable reservation. When the reservation is used
//! up, a larger one is committed first. After a restart the whole reservation counts as used, so
//! what a crash loses errs on the safe side.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::store::COUNT_LOST;

/// Whether encryptions may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Take {
    /// Counted: go ahead.
    Taken,
    /// Commit a reservation of this many, call [`UseCounter::reserved`], and try again.
    Reserve(u64),
    /// The limit would be passed.
    Exhausted,
}

/// The counter of one key version.
#[derive(Debug)]
pub(super) struct UseCounter {
    used: AtomicU64,
    reserved: AtomicU64,
}

impl UseCounter {
    /// Of a version just made, with its first reservation.
    pub(super) fn fresh(reserved: u64) -> Self {
        Self {
            used: AtomicU64::new(0),
            reserved: AtomicU64::new(reserved),
        }
    }

    /// Of a version read from the store: all that was reserved may have been used.
    pub(super) fn recovered(reserved: u64) -> Self {
        Self {
            used: AtomicU64::new(reserved),
            reserved: AtomicU64::new(reserved),
        }
    }

    /// Whether the count was lost: no encryption is made any more.
    pub(super) fn is_fenced(&self) -> bool {
        self.reserved.load(Ordering::Acquire) == COUNT_LOST
    }

    /// Counts `n` more encryptions, if they are within the reservation. `block`: how many to
    /// reserve at a time.
    pub(super) fn take(&self, n: u64, limit: u64, block: u64) -> Take {
        let reserved = self.reserved.load(Ordering::Acquire);
        let fits = |used: u64| {
            used.checked_add(n)
                .filter(|sum| *sum <= reserved.min(limit))
        };
        match self
            .used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, fits)
        {
            Ok(_) => Take::Taken,
            Err(used) => match used.checked_add(n) {
                Some(needed) if needed <= limit => {
                    Take::Reserve(needed.max(reserved.saturating_add(block)).min(limit))
                }
                _ => Take::Exhausted,
            },
        }
    }

    /// Whether somebody else reserved as many meanwhile.
    pub(super) fn is_reserved(&self, total: u64) -> bool {
        self.reserved.load(Ordering::Acquire) >= total
    }

    /// A reservation became durable.
    pub(super) fn reserved(&self, total: u64) {
        self.reserved.fetch_max(total, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn counts_within_the_reservation_and_stops_at_the_limit() {
        let counter = UseCounter::fresh(4);
        assert_eq!(counter.take(3, 10, 4), Take::Taken);
        assert_eq!(counter.take(2, 10, 4), Take::Reserve(8));
        counter.reserved(8);
        assert_eq!(counter.take(2, 10, 4), Take::Taken);
        assert_eq!(counter.take(5, 10, 4), Take::Reserve(10));
        counter.reserved(10);
        assert_eq!(counter.take(5, 10, 4), Take::Taken);
        assert_eq!(counter.take(1, 10, 4), Take::Exhausted);
        assert_eq!(counter.take(u64::MAX, 10, 4), Take::Exhausted);
    }

    #[test]
    fn a_lost_count_takes_nothing_whatever_the_limit() {
        let counter = UseCounter::recovered(COUNT_LOST);
        assert!(counter.is_fenced() && !UseCounter::recovered(COUNT_LOST - 1).is_fenced());
        for limit in [1, 1 << 32, u64::MAX] {
            assert_eq!(counter.take(1, limit, 1 << 20), Take::Exhausted);
        }
    }

    proptest! {
        #[test]
        fn a_crash_never_loses_a_count(steps in proptest::collection::vec((1_u64..9, any::<bool>()), 1..60)) {
            let (limit, block) = (100, 7);
            let (mut durable, mut truly_used) = (0, 0);
            let mut counter = UseCounter::recovered(0);
            for (n, crash) in steps {
                loop {
                    match counter.take(n, limit, block) {
                        Take::Taken => { truly_used += n; break }
                        Take::Reserve(total) => { durable = total; counter.reserved(total); }
                        Take::Exhausted => break,
                    }
                }
                prop_assert!(truly_used <= durable && durable <= limit);
                if crash { counter = UseCounter::recovered(durable); }
            }
        }
    }
}
