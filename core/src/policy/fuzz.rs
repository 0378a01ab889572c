//! Fuzz entries: the policy file and its patterns.
#![allow(
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzz target reports"
)]

use std::str;

use super::glob::Glob;
use super::{Decision, Effect, KeyGlob, Operation, Operations, Policy};
use crate::identity::Identity;

/// A policy says to everybody what a look at all of its rules, one by one, says.
pub fn policy(data: &[u8]) {
    let Some(policy) = str::from_utf8(data)
        .ok()
        .and_then(|text| Policy::parse(text).ok())
    else {
        return;
    };
    let mut identities = vec![
        "dns:a".to_owned(),
        "spiffe://example.org/vault/0".to_owned(),
    ];
    let mut keys = vec!["vault-eu".to_owned(), "k".to_owned()];
    // A bound, so that a policy with many rules does not take a second.
    for rule in policy.rules.iter().take(16) {
        identities.extend(
            rule.identities
                .iter()
                .take(4)
                .map(|pattern| example(&pattern.narrow)),
        );
        keys.extend(rule.keys.iter().take(4).map(|KeyGlob(glob)| example(glob)));
    }
    for identity in identities
        .iter()
        .filter_map(|text| text.parse::<Identity>().ok())
    {
        for key in keys.iter().map(|key| Some(key.as_str())).chain([None]) {
            for operation in Operation::ALL {
                let found = policy.decide(&identity, operation, key);
                let expected = by_the_book(&policy, &identity, operation, key);
                assert_eq!(found, expected, "{identity} {operation:?} {key:?}");
            }
        }
    }
}

/// `pattern`, newline, text: it matches as the definition says.
pub fn glob(data: &[u8]) {
    let Some((pattern, text)) = str::from_utf8(data)
        .ok()
        .and_then(|both| both.split_once('\n'))
    else {
        return;
    };
    let Ok(glob) = Glob::new(pattern) else {
        return;
    };
    assert_eq!(
        glob.matches(text),
        matches(pattern, text),
        "{pattern:?} {text:?}"
    );
    assert_eq!(glob.literal().is_some(), !pattern.contains(['*', '?']));
    let example = example(&glob);
    assert!(glob.matches(&example), "{pattern:?} {example:?}");
}

fn by_the_book(policy: &Policy, who: &Identity, what: Operation, key: Option<&str>) -> Decision {
    if !what.is_global() && key.is_none() {
        return Decision::Denied;
    }
    let (mut allowed, mut needs_token) = (false, false);
    for rule in &policy.rules {
        let mut keys = rule.keys.iter();
        let speaks_of_it = rule.operations.overlaps(Operations::only(what))
            && (what.is_global()
                || keys.any(|KeyGlob(glob)| matches(&spelt(glob), key.unwrap_or_default())));
        let met = |spelt: fn(&Glob) -> String| {
            let mut identities = rule.identities.iter();
            identities.any(|pattern| matches(&spelt(&pattern.narrow), who.as_str()))
        };
        if !speaks_of_it {
            continue;
        }
        match rule.effect {
            Effect::Deny if met(wide) => return Decision::Denied,
            Effect::AllowWithToken => needs_token |= met(wide),
            _ => {}
        }
        allowed |= rule.effect != Effect::Deny && met(spelt);
    }
    match (allowed, needs_token) {
        (false, _) => Decision::Denied,
        (true, true) => Decision::AllowedWithToken,
        (true, false) => Decision::Allowed,
    }
}

/// The definition of a pattern, as a table: which ends of the text each part of the pattern can
/// reach.
fn matches(pattern: &str, text: &str) -> bool {
    let text = text.as_bytes();
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    let mut rest = pattern.as_bytes();
    while let [first, after @ ..] = rest {
        let double = rest.starts_with(b"**");
        rest = if double { &after[1..] } else { after };
        let before = std::mem::replace(&mut reached, vec![false; text.len() + 1]);
        for at in 0..=text.len() {
            let last = at.checked_sub(1).map(|last| text[last]);
            reached[at] = match first {
                b'*' => before[at] || at > 0 && reached[at - 1] && (double || last != Some(b'/')),
                b'?' => at > 0 && before[at - 1] && last != Some(b'/'),
                byte => at > 0 && before[at - 1] && last == Some(*byte),
            };
        }
    }
    reached[text.len()]
}

fn spelt(glob: &Glob) -> String {
    glob.spelt("*", "**", "?")
}

/// The same with every `*` as `**`.
fn wide(glob: &Glob) -> String {
    glob.spelt("**", "**", "?")
}

/// A text that the pattern matches.
fn example(glob: &Glob) -> String {
    glob.spelt("x", "y/z", "q")
}
