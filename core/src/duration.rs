//! Durations as people write them, in the configuration, the environment and the API alike: one
//! grammar, which is Vault's.

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;

use std::time::Duration;

/// What is wrong with the text, without a word of it: it may come from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// A number that is none, or is too large for any duration.
    #[error("not a valid duration")]
    Invalid,
    /// Less than nothing.
    #[error("a duration can't be negative")]
    Negative,
    /// A number without a unit, beside one that has one.
    #[error("a unit is missing")]
    MissingUnit,
    /// Another unit than `ns`, `us`, `ms`, `s`, `m`, `h` and `d`.
    #[error("the unit is unknown")]
    UnknownUnit,
}

/// Seconds (`3600`), Go's units (`1h30m`, `1.5h`, `300ms`), or days (`30d`). Of an empty text, or
/// one of blanks, zero, as in Vault: whoever wants something asks first.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(Duration::ZERO);
    }
    if text.starts_with('-') {
        return Err(DurationError::Negative);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()) {
        let seconds = rest.parse().map_err(|_| DurationError::Invalid)?;
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    loop {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or(DurationError::MissingUnit)?;
        let (number, after) = rest.split_at(digits);
        let unit_end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let nanos_per_unit: u64 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            _ => return Err(DurationError::UnknownUnit),
        };
        let part = scale(number, nanos_per_unit).ok_or(DurationError::Invalid)?;
        total = total.checked_add(part).ok_or(DurationError::Invalid)?;
        rest = next;
        if rest.is_empty() {
            return Ok(total);
        }
    }
}

/// `number` (digits with at most one point) times a unit given in nanoseconds.
fn scale(number: &str, unit: u64) -> Option<Duration> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole: u64 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let mut nanos = u128::from(whole) * u128::from(unit);
    let mut place = u128::from(unit);
    for digit in fraction.bytes() {
        place /= 10;
        nanos = nanos.checked_add(u128::from(digit - b'0') * place)?;
    }
    let seconds = u64::try_from(nanos / 1_000_000_000).ok()?;
    let rest = u32::try_from(nanos % 1_000_000_000).ok()?;
    Some(Duration::new(seconds, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_ever_accepted_is_read_alike() {
        for (text, millis) in [
            ("", 0),
            (" ", 0),
            ("250ms", 250),
            ("10s", 10_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("30d", 2_592_000_000),
            ("768h", 2_764_800_000),
            ("768h0m0s", 2_764_800_000),
            ("3600", 3_600_000),
            ("+3600", 3_600_000),
            ("007", 7000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            (".5s", 500),
            (" 15m ", 900_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for (text, why) in [
            ("-5s", DurationError::Negative),
            ("-5", DurationError::Negative),
            ("+", DurationError::MissingUnit),
            ("1h5", DurationError::MissingUnit),
            ("1.5", DurationError::MissingUnit),
            ("5 m", DurationError::UnknownUnit),
            ("5M", DurationError::UnknownUnit),
            ("1w", DurationError::UnknownUnit),
            ("h", DurationError::Invalid),
            ("1..5h", DurationError::Invalid),
            ("99999999999999999999", DurationError::Invalid),
            ("999999999999999999d", DurationError::Invalid),
        ] {
            assert_eq!(parse(text), Err(why), "{text}");
        }
    }

    proptest! {
        /// Any whole number of any unit, alone and behind another, in the order that people write
        /// them or not.
        #[test]
        fn parts_add_up(parts in prop::collection::vec((0_u64..1 << 32, 0_usize..7), 1..6)) {
            let units = [
                ("ns", 1), ("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000),
                ("m", 60_000_000_000), ("h", 3_600_000_000_000), ("d", 86_400_000_000_000_u128),
            ];
            let mut text = String::new();
            let mut nanos = 0;
            for (number, unit) in parts {
                let (name, each) = units[unit];
                text.extend([number.to_string(), name.to_owned()]);
                nanos += u128::from(number) * each;
            }
            prop_assert_eq!(parse(&text).map(|found| found.as_nanos()), Ok(nanos));
        }

        #[test]
        fn seconds_need_no_unit(seconds: u64) {
            prop_assert_eq!(parse(&seconds.to_string()), Ok(Duration::from_secs(seconds)));
            prop_assert_eq!(parse(&format!("{seconds}s")), Ok(Duration::from_secs(seconds)));
        }

        #[test]
        fn nothing_panics(text in "\\PC*", short in "[-+0-9.a-zµ ]{0,12}") {
            let _ = parse(&text);
            let _ = parse(&short);
        }
    }
}
