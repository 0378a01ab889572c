//! Fuzz entries: what custodians and auditors bring: plans, transcripts, shares, words, backups.
#![allow(
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzz target reports"
)]

use std::str;

use super::backup::Backup;
use super::shares::Share;
use super::verify::{Anchors, verify};
use super::{Plan, words};

/// The key that seeds of backups are authenticated with.
const AUTHENTICATION: [u8; 32] = [9; 32];

/// A plan that is taken can be carried out, and is the text that was signed.
pub fn ceremony_plan(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let Ok(plan) = Plan::parse(text) else {
        return;
    };
    assert_eq!(plan.text(), text);
    assert!(plan.threshold >= 1 && usize::from(plan.threshold) <= plan.custodians.len());
    let mut people: Vec<&[u8]> = plan
        .participants()
        .map(|(_, person)| person.signing_spki())
        .collect();
    let count = people.len();
    people.sort_unstable();
    people.dedup();
    assert_eq!(people.len(), count, "one person has two parts");
}

/// No transcript is valid but the one that people signed.
pub fn transcript(data: &[u8]) {
    let found = verify(data, &Anchors::default());
    // `ceremony/transcript.jsonl` of `strongroom demo --keep`; "cut" is its first 20000 bytes,
    // "swapped" has lines 4 and 5 the other way round.
    let signed: &[u8] = include_bytes!("../../fuzz/seeds/transcript/whole");
    assert_eq!(
        found.problems.is_empty(),
        data == signed,
        "{:?}",
        found.problems
    );
}

/// Words that are taken stand for bytes whose words are taken too.
pub fn words(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    if let Ok(bytes) = words::decode(text) {
        let again = words::decode(&words::encode(&bytes));
        assert!(again.is_ok_and(|again| *again == *bytes));
    }
}

/// A share that is taken is written as one with the same commitment.
pub fn share(data: &[u8]) {
    let Ok(share) = Share::from_json(data) else {
        return;
    };
    let again = share.to_json().and_then(|json| Share::from_json(&json));
    assert!(again.is_ok_and(|again| again.commitment() == share.commitment()));
    // Whatever it holds, it goes onto paper or says why not.
    let _ = share.to_words();
}

/// No backup is authentic but the one that was made.
pub fn backup(data: &[u8]) {
    let Ok(backup) = Backup::parse(data) else {
        return;
    };
    let _ = (backup.content.moved(), backup.content.keys());
    let made: &[u8] = include_bytes!("../../fuzz/seeds/backup/whole");
    if backup.authenticate(&AUTHENTICATION).is_ok() {
        assert!(data == made);
    }
}
