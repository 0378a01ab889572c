//! Fuzz entry: what the store holds of a key.
#![allow(
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzz target reports"
)]

use super::KeyName;
use super::key::{Key, Version, put_counter, read_settings};
use crate::store::Change;

/// `0` and a key's settings, or anything else and a version's keys: what can be read is written
/// again with the same meaning.
pub fn key_record(data: &[u8]) {
    match data {
        [b'0', record @ ..] => settings(record),
        [_, record @ ..] => version(record),
        [] => {}
    }
}

fn settings(record: &[u8]) {
    let Ok(settings) = read_settings("k", record) else {
        return;
    };
    let Some(name) = KeyName::parse("k") else {
        unreachable!("a good name");
    };
    let key = Key {
        name: name.to_owned(),
        settings,
        versions: std::collections::BTreeMap::new(),
    };
    let Ok(Change::Put(_, again)) = key.put() else {
        unreachable!("settings can be written");
    };
    assert_eq!(read_settings("k", &again).ok(), Some(key.settings));
}

fn version(record: &[u8]) {
    let Change::Put(_, counter) = put_counter("k", 1, 77) else {
        unreachable!("a counter is put");
    };
    let Ok(version) = Version::read("k", 1, record, &counter) else {
        return;
    };
    assert!(Version::read("k", 1, record, &counter[1..]).is_err());
    let Ok(Change::Put(_, written)) = version.put("k") else {
        unreachable!("a version can be written");
    };
    let again = Version::read("k", 1, &written, &counter).ok();
    let again = again.map(|again| (again.created, again.kek(), again.mac()));
    assert_eq!(again, Some((version.created, version.kek(), version.mac())));
}
