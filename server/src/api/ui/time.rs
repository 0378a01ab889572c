//! Times and spans as people read them.

use jiff::Timestamp;

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// Seconds since 1970, as `2026-11-24 09:41 UTC`.
pub(super) fn moment(seconds: i64) -> String {
    match Timestamp::from_second(seconds) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M UTC").to_string(),
        Err(_) => "-".to_owned(),
    }
}

/// Seconds since 1970, as `2026-11-24`.
pub(super) fn day(seconds: i64) -> String {
    match Timestamp::from_second(seconds) {
        Ok(time) => time.strftime("%Y-%m-%d").to_string(),
        Err(_) => "-".to_owned(),
    }
}

/// A span in its largest unit: `3 days`.
pub(super) fn span(seconds: i64) -> String {
    let (count, unit) = match seconds.max(0) {
        s if s >= 2 * DAY => (s / DAY, "days"),
        s if s >= 2 * HOUR => (s / HOUR, "hours"),
        s if s >= 2 * MINUTE => (s / MINUTE, "minutes"),
        1 => (1, "second"),
        s => (s, "seconds"),
    };
    format!("{count} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_in_their_largest_unit() {
        for (seconds, text) in [
            (-5, "0 seconds"),
            (1, "1 second"),
            (119, "119 seconds"),
            (120, "2 minutes"),
            (7_200, "2 hours"),
            (172_800, "2 days"),
        ] {
            assert_eq!(span(seconds), text);
        }
        assert_eq!(moment(0), "1970-01-01 00:00 UTC");
        assert_eq!(day(i64::MAX), "-");
    }
}
