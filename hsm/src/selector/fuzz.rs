//! Fuzz entry: RFC 7512 URIs.
#![allow(
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzz target reports"
)]

use std::fmt::Write as _;
use std::str;

use super::{TokenFilter, from_uri};
use crate::types::TokenIdentity;

/// A URI that is accepted means the same when written again, and no PIN that stands in one is used
/// or repeated.
pub fn token_uri(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    for join in [";", "?", "&"] {
        let with_pin = from_uri(&format!("{text}{join}pin-value=S3CR3T-PIN"));
        let error = with_pin.err().map(|error| error.to_string());
        assert!(
            error.is_some_and(|error| !error.contains("S3CR3T-PIN")),
            "{text:?}"
        );
    }
    let Ok(wanted) = from_uri(text) else {
        return;
    };
    assert_eq!(from_uri(&written(&wanted)).ok().as_ref(), Some(&wanted));
    if wanted.slot.is_some() {
        let mut parts = text.split([';', '?', '&']);
        let digit = |c: char| c.is_ascii_digit() || c == '%';
        assert!(
            parts.any(|part| part
                .strip_prefix("slot-id=")
                .or(part.strip_prefix("pkcs11:slot-id="))
                .is_some_and(|slot| slot.starts_with(digit))),
            "{text:?}"
        );
    }
    only_its_own(&wanted);
}

/// The token that it describes matches, one that differs in any named field does not.
fn only_its_own(wanted: &TokenFilter) {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let token = TokenIdentity {
        label: text(&wanted.label),
        serial: text(&wanted.serial),
        manufacturer: text(&wanted.manufacturer),
        model: text(&wanted.model),
    };
    let slot = wanted.slot.unwrap_or_default();
    assert!(wanted.matches(&token, slot));
    assert!(wanted.slot.is_none() || !wanted.matches(&token, slot ^ 1));
    let other = |change: fn(&mut TokenIdentity) -> &mut String| {
        let mut other = token.clone();
        change(&mut other).push('x');
        wanted.matches(&other, slot)
    };
    assert_eq!(other(|token| &mut token.label), wanted.label.is_none());
    assert_eq!(other(|token| &mut token.serial), wanted.serial.is_none());
    assert_eq!(
        other(|token| &mut token.manufacturer),
        wanted.manufacturer.is_none()
    );
    assert_eq!(other(|token| &mut token.model), wanted.model.is_none());
}

/// With every byte of each value percent-encoded.
fn written(wanted: &TokenFilter) -> String {
    let fields = [
        ("token", &wanted.label),
        ("serial", &wanted.serial),
        ("manufacturer", &wanted.manufacturer),
        ("model", &wanted.model),
    ];
    let named = fields
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_ref()?)));
    let mut parts: Vec<String> = named
        .map(|(name, value)| {
            value.bytes().fold(format!("{name}="), |mut part, byte| {
                let _ = write!(part, "%{byte:02x}");
                part
            })
        })
        .collect();
    parts.extend(wanted.slot.map(|slot| format!("slot-id={slot}")));
    format!("pkcs11:{}", parts.join(";"))
}
