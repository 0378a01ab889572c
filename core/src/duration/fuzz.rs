//! Durations.
#![allow(
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzz target reports"
)]

use std::str;
use std::time::Duration;

use super::parse;

const UNITS: [(&str, u128); 9] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// A duration is read as the grammar says, to the microsecond, or refused.
pub fn duration(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let found = parse(text);
    match by_the_book(text.trim()) {
        None => assert!(found.is_err(), "{text:?} is {found:?}"),
        Some(nanos) if nanos / 1_000_000_000 <= u128::from(u64::MAX / 2) => {
            let found = found.as_ref().map_or(u128::MAX, Duration::as_nanos);
            // Each of many parts may be cut to whole nanoseconds, digit by digit.
            let slack = 20 * (1 + text.len() as u128);
            assert!(
                found <= nanos && nanos - found <= slack,
                "{text:?}: {found} for {nanos}"
            );
        }
        // Near or beyond what a duration can hold.
        Some(_) => {}
    }
}

/// Nanoseconds; `None`: not a duration. What is too large for any duration is `u128::MAX`.
fn by_the_book(text: &str) -> Option<u128> {
    if text.is_empty() {
        return Some(0);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if !rest.is_empty() && digits(rest) == rest {
        return Some(times(rest, 1_000_000_000));
    }
    let mut total = 0_u128;
    // At least one part, as in Go.
    loop {
        let whole = digits(rest);
        rest = &rest[whole.len()..];
        let fraction = rest.strip_prefix('.').map(digits);
        rest = fraction.map_or(rest, |fraction| &rest[1 + fraction.len()..]);
        if whole.is_empty() && fraction.is_none_or(str::is_empty) {
            return None;
        }
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let (unit, after) = rest.split_at(end);
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit)?;
        total = total.saturating_add(times(whole, *unit));
        // More places than these are less than a nanosecond of any unit.
        let fraction: String = fraction.unwrap_or_default().chars().take(18).collect();
        let scale = u32::try_from(fraction.len()).ok()?;
        total = total.saturating_add(times(&fraction, *unit) / 10_u128.pow(scale));
        rest = after;
        if rest.is_empty() {
            return Some(total);
        }
    }
}

/// What no 64 bits hold is too large, whatever the unit.
fn times(digits: &str, unit: u128) -> u128 {
    let number = digits.bytes().fold(0_u128, |number, digit| {
        number
            .saturating_mul(10)
            .saturating_add(u128::from(digit - b'0'))
    });
    if number > u128::from(u64::MAX) {
        return u128::MAX;
    }
    number * unit
}

fn digits(text: &str) -> &str {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    &text[..end]
}
