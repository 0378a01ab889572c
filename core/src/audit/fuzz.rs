//! Fuzz entry: continuing a log that is there already.
#![allow(
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzz target reports"
)]

use std::path::{Path, PathBuf};
use std::{env, fs, process, thread};

use p256::ecdsa::SigningKey;
use p256::pkcs8::EncodePublicKey as _;

use super::file::LogFile;
use super::line::{Content, Line};
use super::resume::{Known, Signer};
use super::{Audit, Entry, Held};

/// A file is continued without losing a byte of it, and what is written is the end of a log that
/// verifies as far as the file did; or it is refused and left alone.
pub fn audit_resume(data: &[u8]) {
    let path = place();
    let written = fs::write(&path, data);
    assert!(written.is_ok(), "{}: {written:?}", path.display());
    let Some(signer) = signer(data) else {
        unreachable!("the key is one");
    };
    let before = problems(&path, &signer);
    let gone_on = go_on(&path, &signer);
    let now = fs::read(&path).unwrap_or_default();
    let after = problems(&path, &signer);
    // Whatever was left by this start, the next one takes as it is.
    let again = gone_on && go_on(&path, &signer);
    let _ = fs::remove_file(&path);
    if gone_on {
        // A torn header is no line, and the only thing that is thrown away.
        let torn = !data.contains(&b'\n');
        assert!(torn || now.starts_with(data), "what was there is gone");
        assert!(after <= before, "{before} problems became {after}");
        assert!(again, "the next start is refused");
    } else {
        assert_eq!(now, data, "it was refused and written to");
    }
}

fn go_on(path: &Path, signer: &Signer) -> bool {
    LogFile::open(path, signer, Known::Nothing).is_ok_and(|(mut file, resumed)| {
        let mut line = Content::default();
        line.decide(&Entry {
            operation: "encrypt",
            ..Entry::default()
        });
        file.go_on(resumed).is_ok() && file.append(&line).is_ok()
    })
}

/// How much is wrong with a log, signatures aside: nothing here is signed.
fn problems(path: &Path, signer: &Signer) -> usize {
    let Ok(key) = signer.key.to_public_key_der() else {
        unreachable!("a key has an encoding");
    };
    let found = Audit::verify(&[path], key.as_bytes(), &Held::default());
    found.map_or(0, |found| {
        let known = |problem: &&String| {
            !problem.contains("signed")
                && !problem.contains("signature")
                && !problem.contains("signing key")
        };
        found.problems.iter().filter(known).count()
    })
}

/// The key that the header names: a log of another key is refused before anything else is looked
/// at.
fn signer(data: &[u8]) -> Option<Signer> {
    let first = data.split(|byte| *byte == b'\n').next();
    let named = first
        .and_then(Line::parse)
        .and_then(|line| crate::hex::decode(&line.signing_key?));
    Some(Signer {
        fingerprint: named.unwrap_or([3; 32]),
        key: *SigningKey::from_slice(&[3; 32]).ok()?.verifying_key(),
    })
}

/// One file for each thread of each process that runs this.
fn place() -> PathBuf {
    let thread = thread::current().id();
    env::temp_dir().join(format!("strongroom-fuzz-{}-{thread:?}.log", process::id()))
}
