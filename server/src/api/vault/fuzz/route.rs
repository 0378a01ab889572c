//! Paths.
#![allow(
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzz target reports"
)]

use std::fmt::Write as _;
use std::str;

use strongroom_core::keyring::KeyName;

use super::super::routes::{Captures, Route, SYSTEM, Target, Verb, decode_path, resolve};

const VERBS: [Verb; 5] = [
    Verb::Read,
    Verb::List,
    Verb::Update,
    Verb::Delete,
    Verb::Head,
];

/// A route that is found is the one whose pattern, filled with the captures, stands below a mount
/// in the path.
pub fn route(data: &[u8]) {
    let Ok(raw) = str::from_utf8(data) else {
        return;
    };
    let Some(path) = decode_path(raw) else {
        return;
    };
    let encoded = path.bytes().fold("/v1/".to_owned(), |mut text, byte| {
        let _ = write!(text, "%{byte:02X}");
        text
    });
    assert_eq!(decode_path(&encoded), Some(path.clone()));
    let configured = ["transit".to_owned(), "/team/kms/".to_owned()];
    for mounts in [&[][..], &configured] {
        let targets = VERBS.map(|verb| (verb, resolve(&path, verb, mounts)));
        for (verb, target) in &targets {
            match target {
                Target::Route(route, captures) => found(&path, *verb, mounts, route, captures),
                Target::WrongMethod(allow) => wrong_method(*verb, allow, &targets),
                // Whether a path is known has nothing to do with the method.
                Target::UnknownPath | Target::NoMount => {
                    assert!(
                        targets.iter().all(|(_, other)| !is_known(other)),
                        "{path:?}"
                    );
                }
            }
        }
    }
}

fn found(path: &str, verb: Verb, mounts: &[String], route: &Route, captures: &Captures<'_>) {
    assert_eq!(route.verb, verb);
    assert_eq!(captures.name.is_some(), route.path.contains("{name}"));
    let below = filled(route.path, captures);
    // Vault's own clients end the path of a list with a slash.
    let path = if route.path == "keys" {
        path.strip_suffix('/').unwrap_or(path)
    } else {
        path
    };
    if SYSTEM.iter().any(|known| std::ptr::eq(known, route)) {
        assert_eq!(path, below);
        return;
    }
    let mount = path
        .strip_suffix(&below)
        .and_then(|mount| mount.strip_suffix('/'));
    let mount = mount.unwrap_or_default();
    assert!(!mount.is_empty(), "{path:?} is no {}", route.path);
    assert!(
        !matches!(mount.split('/').next(), Some("sys" | "auth")),
        "{path:?}"
    );
    let configured = |known: &String| known.trim_matches('/') == mount;
    assert!(
        mounts.is_empty() || mounts.iter().any(configured),
        "{path:?}"
    );
}

fn filled(pattern: &str, captures: &Captures<'_>) -> String {
    let mut others = captures.others.iter().flatten();
    let segments: Vec<&str> = pattern
        .split('/')
        .map(|segment| match segment {
            "{name}" => captures.name.map_or("", KeyName::as_str),
            segment if segment.starts_with('{') => others.next().copied().unwrap_or_default(),
            literal => literal,
        })
        .collect();
    segments.join("/")
}

/// What `Allow` names works, and nothing else does.
fn wrong_method(verb: Verb, allow: &str, targets: &[(Verb, Target<'_>)]) {
    for (other, target) in targets {
        let word = match other {
            Verb::Read => "GET",
            Verb::List => "LIST",
            Verb::Update => "POST",
            Verb::Delete => "DELETE",
            Verb::Head => "HEAD",
        };
        let works = matches!(target, Target::Route(..));
        let named = allow.split(", ").any(|method| method == word);
        // LIST is also asked for by GET, with a query.
        let by_query = *other == Verb::Read && allow.contains("LIST");
        assert!(works == named || by_query, "{other:?} and {allow:?}");
        assert!(!works || *other != verb, "{verb:?} works");
    }
}

fn is_known(target: &Target<'_>) -> bool {
    matches!(target, Target::Route(..) | Target::WrongMethod(_))
}
