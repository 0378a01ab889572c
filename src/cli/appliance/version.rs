//! No way back: the oldest version that may run on this state. Each image names the oldest one that
//! may follow it; once an image has been healthy, that is the state's minimum.

use std::cmp::Ordering;
use std::fs;
use std::path::Path;

use strongroom_core::atomic::{self, Access};

use super::status::release;
use crate::cli::exit::{Exit, Failure};

const MINIMUM_VERSION_FILE: &str = "/var/lib/strongroom-minimum-version";

pub(super) fn check() -> Result<(), Failure> {
    let running = running()?;
    let minimum = minimum()?;
    if compare(&running, &minimum) == Ordering::Less {
        return Err(Failure::new(
            Exit::Failed,
            format!("version {running} must not run on this state: its minimum is {minimum}"),
        )
        .next("start the newer version again, or install a newer one"));
    }
    Ok(())
}

pub(super) fn raise() -> Result<(), Failure> {
    let own = release("MINIMUM_VERSION").unwrap_or_else(|| "0".to_owned());
    if compare(&own, &minimum()?) == Ordering::Greater {
        let path = Path::new(MINIMUM_VERSION_FILE);
        atomic::replace(path, own.as_bytes(), Access::Mode(0o644))
            .map_err(|error| Failure::file(path, &error))?;
        println!("strongroom: no version before {own} runs on this state from now on");
    }
    Ok(())
}

pub(super) fn running() -> Result<String, Failure> {
    release("IMAGE_VERSION").ok_or_else(|| {
        Failure::new(Exit::Failed, "/usr/lib/os-release names no IMAGE_VERSION")
            .next("this command is for the bootable image")
    })
}

pub(super) fn minimum() -> Result<String, Failure> {
    match fs::read_to_string(MINIMUM_VERSION_FILE) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok("0".to_owned()),
        Err(error) => Err(Failure::file(Path::new(MINIMUM_VERSION_FILE), &error)),
    }
}

/// By their numbers: 0.10.0 is newer than 0.9.1. A part that is not there, or no number, counts as
/// 0.
pub(super) fn compare(one: &str, other: &str) -> Ordering {
    let parts = |text: &str| -> Vec<u64> {
        let mut parts: Vec<u64> = text
            .split('.')
            .map(|part| part.parse().unwrap_or(0))
            .collect();
        while parts.last() == Some(&0) {
            parts.pop();
        }
        parts
    };
    parts(one).cmp(&parts(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        for (one, other, order) in [
            ("0.9.1", "0.10.0", Ordering::Less),
            ("1.0", "1.0.0", Ordering::Equal),
            ("0.1.1", "0.1", Ordering::Greater),
            ("0.1.0", "0", Ordering::Greater),
        ] {
            assert_eq!(compare(one, other), order, "{one} {other}");
        }
    }
}
