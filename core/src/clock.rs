//! The kernel's clocks as of its last tick, some milliseconds ago: to be asked with each request,
//! at a fraction of the price.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Since 1970. `None`: the clock is before that.
pub(crate) fn unix_time() -> Option<Duration> {
    tick(ClockId::CLOCK_REALTIME_COARSE)
}

/// Since the machine's start.
pub(crate) fn uptime() -> Duration {
    // It begins at zero.
    tick(ClockId::CLOCK_MONOTONIC_COARSE).unwrap_or_default()
}

fn tick(clock: ClockId) -> Option<Duration> {
    // Linux has both since 2.6.32.
    let time = clock_gettime(clock).ok()?;
    let seconds = u64::try_from(time.tv_sec()).ok()?;
    let nanos = u32::try_from(time.tv_nsec()).ok()?;
    Some(Duration::new(seconds, nanos))
}
