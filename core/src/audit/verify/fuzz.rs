//! Fuzz entry: verification of a log.
#![allow(
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzz target reports"
)]

use std::collections::HashMap;
use std::io::Cursor;

use p256::ecdsa::SigningKey;
use p256::pkcs8::EncodePublicKey as _;

use super::super::line::Line;
use super::{Check, Held};

/// Signed by [`key`]: header, three decisions, checkpoint, three decisions, checkpoint.
const WRITTEN: &[u8] = include_bytes!("../../../../fuzz/seeds/audit_log/whole");

/// Whatever is done to a log by someone without the key: what still verifies and is signed, is what
/// was written.
pub fn audit_log(data: &[u8]) {
    let held = Held::default();
    let Some(mut check) = public_key().and_then(|key| Check::new(&key, &held).ok()) else {
        unreachable!("the key is one");
    };
    assert!(
        check.file("log", Cursor::new(data)).is_ok(),
        "memory can be read"
    );
    let lines = data
        .strip_suffix(b"\n")
        .unwrap_or(data)
        .split(|byte| *byte == b'\n');
    let signed = check.signed_seq;
    let found = check.finish();
    assert_eq!(
        found.lines,
        if data.is_empty() {
            0
        } else {
            lines.clone().count() as u64
        }
    );
    if !found.problems.is_empty() {
        return;
    }
    let written: HashMap<u64, &[u8]> = numbered(WRITTEN.split(|byte| *byte == b'\n'));
    for (seq, line) in numbered(lines)
        .into_iter()
        .filter(|(seq, _)| *seq <= signed)
    {
        assert_eq!(
            Some(&line),
            written.get(&seq),
            "line {seq} of a log that verifies"
        );
    }
    assert!(found.unsigned_tail <= found.lines);
    assert!(data != WRITTEN || found.checkpoints == 2 && found.unsigned_tail == 0);
}

fn numbered<'a>(lines: impl Iterator<Item = &'a [u8]>) -> HashMap<u64, &'a [u8]> {
    lines
        .filter_map(|line| Some((Line::parse(line)?.seq, line)))
        .collect()
}

fn public_key() -> Option<Vec<u8>> {
    let key = SigningKey::from_slice(&[7; 32]).ok()?;
    Some(key.verifying_key().to_public_key_der().ok()?.into_vec())
}
