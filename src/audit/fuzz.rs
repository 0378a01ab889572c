//! Fuzz entry: continuing a log that is there already.
#![allow(
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzz target reports"
)]

use std::path::PathBuf;
use std::{env, fs, process, thread};

use sha2::{Digest as _, Sha256};

use super::Entry;
use super::file::LogFile;
use super::line::{Content, Line};

/// A file is continued without losing a byte of it, and the new line is chained to the one before; or it is refused and left alone.
pub fn audit_resume(data: &[u8]) {
    let path = place();
    let written = fs::write(&path, data);
    assert!(written.is_ok(), "{}: {written:?}", path.display());
    let opened = LogFile::open(&path, signing_key(data));
    let appended = opened.is_ok_and(|mut file| {
        let entry = Entry {
            operation: "encrypt",
            ..Entry::default()
        };
        let mut line = Content::decisions();
        line.decide(&entry);
        file.append(&line).is_ok()
    });
    let now = fs::read(&path).unwrap_or_default();
    let _ = fs::remove_file(path);
    if appended {
        // One newline at the end may be what a probe for room left: no line.
        let kept = match data.strip_suffix(b"\n") {
            Some(rest) if rest.ends_with(b"\n") => rest,
            _ => data,
        };
        assert!(now.starts_with(kept), "what was there is gone");
        chained(kept, &now);
    } else {
        assert_eq!(now, data, "it was refused and written to");
    }
}

/// The key that the header names: a log of another key is refused before anything else is looked at.
fn signing_key(data: &[u8]) -> [u8; 32] {
    let first = data.split(|byte| *byte == b'\n').next();
    first
        .and_then(Line::parse)
        .and_then(|line| super::line::unhex(&line.signing_key?))
        .unwrap_or([3; 32])
}

/// What was added is chained to what was there: one line, or one before it that says what the file's torn end is.
fn chained(before: &[u8], now: &[u8]) {
    let added = now.get(before.len()..).unwrap_or_default();
    let added = lines(added.strip_prefix(b"\n").unwrap_or(added));
    let before = lines(before);
    match (added.as_slice(), before.as_slice()) {
        ([header, ours], []) => follows(ours, header),
        ([ours], [.., last]) => follows(ours, last),
        ([recovered, ours], [.., last, torn]) => {
            follows(ours, recovered);
            follows(recovered, last);
            let named = Line::parse(recovered).and_then(|line| line.torn_sha256);
            assert_eq!(
                named,
                Some(base16ct::lower::encode_string(&Sha256::digest(torn)))
            );
        }
        (added, _) => unreachable!("{} lines were added", added.len()),
    }
}

fn follows(line: &[u8], last: &[u8]) {
    let (Some(line), Some(parsed)) = (Line::parse(line), Line::parse(last)) else {
        unreachable!("lines of a chain can be read");
    };
    let hash = Sha256::digest(last).into();
    assert_eq!((line.seq, line.prev()), (parsed.seq + 1, Some(hash)));
}

fn lines(bytes: &[u8]) -> Vec<&[u8]> {
    let whole = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let lines = whole.split(|byte| *byte == b'\n');
    lines.filter(|_| !bytes.is_empty()).collect()
}

/// One file for each thread of each process that runs this.
fn place() -> PathBuf {
    let thread = thread::current().id();
    env::temp_dir().join(format!("strongroom-fuzz-{}-{thread:?}.log", process::id()))
}
