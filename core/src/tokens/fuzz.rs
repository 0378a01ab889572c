//! Fuzz entry: the tokens file.
#![allow(
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzz target reports"
)]

use std::str;

use sha2::{Digest, Sha256};

use super::{TOKEN_PREFIX, Tokens};
use crate::identity::Identity;

/// Whose hashes the seeds have.
const KNOWN: [&str; 2] = ["srt.seed-one", "srt.seed-two"];

/// A token is good for nobody but the identity beside its hash; and what is written for a new one
/// can be read, whatever its description.
pub fn tokens(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    if let Ok(tokens) = Tokens::parse(text) {
        same_answers(text, &tokens);
    }
    new_entry(text);
}

fn same_answers(text: &str, tokens: &Tokens) {
    let file: toml::Table = text.parse().unwrap_or_default();
    let entries = file
        .get("token")
        .and_then(toml::Value::as_array)
        .cloned()
        .unwrap_or_default();
    let identities = ["dns:a.example", "spiffe://example.org/vault/0"].map(str::to_owned);
    let named = entries
        .iter()
        .filter_map(|entry| entry.get("identity")?.as_str())
        .take(8);
    for identity in identities.iter().map(String::as_str).chain(named) {
        let Ok(identity) = identity.parse::<Identity>() else {
            continue;
        };
        for token in KNOWN {
            let hash = crate::hex::encode(&Sha256::digest(token));
            let expected = entries.iter().find(|entry| {
                let text = |name| {
                    entry
                        .get(name)
                        .and_then(toml::Value::as_str)
                        .unwrap_or_default()
                };
                let bound: Option<Identity> = text("identity").parse().ok();
                text("sha256").eq_ignore_ascii_case(&hash) && bound.as_ref() == Some(&identity)
            });
            let id = expected.and_then(|entry| entry.get("id")?.as_str());
            let found = tokens.check(token, &identity);
            assert_eq!(
                found.as_ref().map(|info| info.id.as_str()),
                id,
                "{token} {identity}"
            );
        }
        // A hash is not the token.
        let hashes = entries
            .iter()
            .filter_map(|entry| entry.get("sha256")?.as_str());
        for hash in hashes.take(8) {
            assert_eq!(tokens.check(hash, &identity), None);
        }
    }
}

fn new_entry(description: &str) {
    let [us, other] = ["dns:us.example", "dns:other.example"].map(str::parse::<Identity>);
    let (Ok(us), Ok(other)) = (us, other) else {
        unreachable!("both are identities");
    };
    let id: String = description.chars().take(10).collect();
    for id in [id.as_str(), "a"] {
        let Ok(new) = Tokens::new_token(id, &us, Some(description)) else {
            assert!(
                id != "a" && id.contains(|c: char| !c.is_ascii_alphanumeric()) || id.is_empty()
            );
            continue;
        };
        assert!(new.token.starts_with(TOKEN_PREFIX) && !new.entry.contains(&**new.token));
        let tokens = Tokens::parse(&new.entry).unwrap_or_default();
        assert_eq!(
            tokens.check(&new.token, &us).map(|info| info.id).as_deref(),
            Some(id)
        );
        assert_eq!(tokens.check(&new.token, &other), None);
    }
}
