//! What a thread of the runtime does before it sleeps for want of work: it lets others run.
//!
//! Where processors are few, what others do just then is often its next work: the HSM's thread is about to answer, a client on the same machine about to
//! ask. Being put to sleep and woken for it costs more than a look around, which takes a microsecond when nobody else is about.
//!
//! A program that always has work of its own would take the processor for the scheduler's whole slice each time, and a request that comes meanwhile would
//! wait. So it is watched how long the others run, and with such a program about the thread sleeps at once, as it would without all this.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

/// How often others are let run before a sleep.
const TURNS: usize = 3;
/// Half a tick of the kernel's scheduler at 250 Hz, as Debian builds it: a program that never waits is seldom interrupted sooner than by the next tick.
const LONG: Duration = Duration::from_millis(2);
/// A long turn weighs as much as this many short ones: a client with many connections takes one in twenty or so, a program that never waits nearly each of them.
const WEIGHT: u32 = 4;
/// So much more weight of long turns than of short ones is enough: 16 long ones in a row, say.
const ENOUGH: u32 = 64;
/// How long nobody is let run then.
const PAUSE: Duration = Duration::from_secs(1);

thread_local! {
    static COMPANY: Cell<Company> = const { Cell::new(Company::UNKNOWN) };
}

/// For [`tokio::runtime::Builder::on_thread_park`].
pub(super) fn let_others_run() {
    let mut company = COMPANY.get();
    let mut since = Instant::now();
    for _ in 0..TURNS {
        if company.is_greedy(since) {
            break;
        }
        thread::yield_now();
        let now = Instant::now();
        company.took(now.saturating_duration_since(since), now);
        since = now;
    }
    COMPANY.set(company);
}

/// What is known of those who share the processor with this thread.
#[derive(Clone, Copy, Debug)]
struct Company {
    weight: u32,
    greedy_until: Option<Instant>,
}

impl Company {
    const UNKNOWN: Self = Self {
        weight: 0,
        greedy_until: None,
    };

    fn is_greedy(&self, now: Instant) -> bool {
        self.greedy_until.is_some_and(|until| now < until)
    }

    /// Others ran for that long, until `now`.
    fn took(&mut self, turn: Duration, now: Instant) {
        self.weight = if turn < LONG {
            self.weight.saturating_sub(1)
        } else {
            self.weight.saturating_add(WEIGHT)
        };
        if self.weight >= ENOUGH {
            *self = Self {
                weight: 0,
                greedy_until: Some(now + PAUSE),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Turns of which each `every`th is long, for `time`; how much of it went by before the first pause, if there was one.
    fn until_a_pause(every: usize, time: Duration) -> Option<Duration> {
        let start = Instant::now();
        let mut company = Company::UNKNOWN;
        let mut now = start;
        for turn in 1.. {
            let took = if turn % every == 0 {
                Duration::from_millis(3)
            } else {
                Duration::from_micros(50)
            };
            now += took;
            company.took(took, now);
            if company.is_greedy(now) {
                return Some(now - start);
            }
            if now - start > time {
                break;
            }
        }
        None
    }

    #[test]
    fn who_takes_every_turn_is_let_run_no_more_than_a_twentieth_of_the_time() {
        let before = until_a_pause(1, PAUSE).unwrap();
        assert!(before * 20 <= before + PAUSE, "{before:?}");
    }

    #[test]
    fn who_takes_every_other_turn_is_found_too() {
        let before = until_a_pause(2, PAUSE).unwrap();
        assert!(before * 8 <= before + PAUSE, "{before:?}");
    }

    #[test]
    fn a_busy_client_is_let_run() {
        assert_eq!(until_a_pause(8, Duration::from_mins(1)), None);
    }

    #[test]
    fn after_the_pause_others_are_let_run_again_and_are_not_remembered() {
        let start = Instant::now();
        let mut company = Company::UNKNOWN;
        for _ in 0..ENOUGH / WEIGHT {
            assert!(!company.is_greedy(start));
            company.took(LONG, start);
        }
        assert!(company.is_greedy(start));
        assert!(company.is_greedy(start + PAUSE.mul_f32(0.999)));
        assert!(!company.is_greedy(start + PAUSE));
        company.took(LONG, start + PAUSE);
        assert!(!company.is_greedy(start + PAUSE));
    }
}
