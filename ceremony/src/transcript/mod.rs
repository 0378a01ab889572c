//! The transcript: what happened, as JSON lines that are hash-chained, synced to disk one by one,
//! and signed at the end.
//!
//! The format is published in `docs/transcript-format.md`.

mod line;
mod write;

use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;
use strongroom_core::files;

use super::encoding::sha256_of;
use super::{CeremonyId, Kind, Mode, Plan, PlanSignature, Step};

pub(super) use line::{
    Begin, Body, Close, Done, FORMAT, GENESIS_HASH, Line, Note, Open, Seal, Signature, check_time,
};
pub use write::Transcript;

/// The transcript's name in a ceremony's directory.
pub const FILE: &str = "transcript.jsonl";

/// No transcript is larger, bytes; one of an appliance has some hundred KiB.
const MAX_FILE_BYTES: u64 = 32 << 20;

/// Keep the signatures from passing for ones of anything else.
const SIGN_DOMAIN: &[u8] = b"strongroom ceremony transcript v1\0";
const SEAL_DOMAIN: &[u8] = b"strongroom ceremony seal v1\0";

/// What a transcript opens with.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    /// Whether it counts.
    pub mode: Mode,
    /// What for.
    pub kind: Kind,
    /// SHA-256 of the transcript that a later ceremony goes on from, hexadecimal; none for a
    /// initial ceremony.
    pub previous_sha256: Option<&'a str>,
    /// Which ceremony.
    pub ceremony_id: CeremonyId,
    /// The plan.
    pub plan: &'a Plan,
    /// Everyone's signatures of it.
    pub signatures: &'a [PlanSignature],
    /// This program's version.
    pub version: &'a str,
    /// SHA-256 of this program, hexadecimal.
    pub binary_sha256: &'a str,
}

/// Where a ceremony stands: what a resumed one goes on from.
#[derive(Clone, Debug)]
pub struct History {
    /// Whether it counts.
    pub mode: Mode,
    /// What for.
    pub kind: Kind,
    /// What it goes on from.
    pub previous_sha256: Option<String>,
    /// Which ceremony.
    pub ceremony_id: CeremonyId,
    /// The plan that it opened with.
    pub plan: Plan,
    /// The steps that are done, and their outputs.
    pub done: Vec<(Step, Value)>,
    /// The step that was begun and is not done, and its latest inputs.
    pub begun: Option<(Step, Value)>,
    /// Whether the summary is written.
    pub closed: bool,
    /// Who has signed, by fingerprint.
    pub signed: Vec<String>,
    /// Whether it is sealed.
    pub sealed: bool,
    /// Whether nothing may follow.
    pub ended: bool,
    /// What a power cut left of a last line, and was cut off: bytes, and their SHA-256.
    pub torn: Option<(usize, String)>,
}

impl History {
    /// The outputs of a step that is done.
    pub fn outputs(&self, step: Step) -> Option<&Value> {
        self.done
            .iter()
            .find(|(done, _)| *done == step)
            .map(|(_, outputs)| outputs)
    }

    /// The step that comes next, or has to be taken up again; none when all are done.
    pub fn next(&self) -> Option<Step> {
        self.kind.steps().get(self.done.len()).copied()
    }
}

/// The path of the transcript in a ceremony's directory.
pub fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

/// The whole of one.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    files::read(path, MAX_FILE_BYTES).map(|mut bytes| std::mem::take(&mut *bytes))
}

/// What everyone signs: domain || ceremony id || seq of the `close` line (big-endian, 64 bits) ||
/// its SHA-256.
pub(super) fn signing_digest(id: &CeremonyId, seq: u64, hash: &[u8; 32]) -> [u8; 32] {
    sha256_of(&[SIGN_DOMAIN, &id.0, &seq.to_be_bytes(), hash])
}

/// What the HSM's audit key signs: the same of the line before, in a domain of its own.
pub(super) fn seal_digest(id: &CeremonyId, seq: u64, hash: &[u8; 32]) -> [u8; 32] {
    sha256_of(&[SEAL_DOMAIN, &id.0, &seq.to_be_bytes(), hash])
}

#[cfg(test)]
mod tests;
