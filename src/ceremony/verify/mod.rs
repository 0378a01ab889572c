//! Checks a transcript without the HSM: years later, by a stranger.

mod chain;
mod facts;

use super::encoding::{hex, sha256, unbase64};
use super::record::Summary;
use super::transcript::History;
use super::{Mode, Plan};

use chain::Chain;

/// What the verifier knows from elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Anchors {
    /// The text of the plan that it must be of.
    pub plan: Option<String>,
    /// The HSM's audit key, `SubjectPublicKeyInfo`, DER.
    pub audit_key: Option<Vec<u8>>,
    /// The token's serial number.
    pub token_serial: Option<String>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// In which line, from 1; 0 for the whole.
    pub line: usize,
    /// What.
    pub what: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => f.write_str(&self.what),
            line => write!(f, "line {line}: {}", self.what),
        }
    }
}

/// What a verification found.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// Everything that is wrong; empty for a transcript that is whole, signed by all, sealed, and fits the anchors.
    pub problems: Vec<Problem>,
    /// Whether it counts, as its lines say.
    pub mode: Option<Mode>,
    /// Which ceremony.
    pub ceremony_id: Option<String>,
    /// Lines.
    pub lines: usize,
    /// SHA-256 of the whole file, hexadecimal.
    pub sha256: String,
    /// The plan, if it can be read.
    pub plan: Option<Plan>,
    /// The summary, if there is one.
    pub summary: Option<Summary>,
    /// SHA-256 of the audit key's `SubjectPublicKeyInfo`, hexadecimal.
    pub audit_key: Option<String>,
    /// Fingerprints of those whose signatures of the transcript are right.
    pub signed: Vec<String>,
    /// Whether the seal is right.
    pub sealed: bool,
}

impl Verified {
    /// Whether it says REHEARSAL.
    pub fn is_rehearsal(&self) -> bool {
        self.mode == Some(Mode::Rehearsal)
    }
}

/// Where a transcript can be gone on with.
pub(super) struct Resumed {
    pub(super) history: History,
    pub(super) seq: u64,
    pub(super) hash: [u8; 32],
    pub(super) time: String,
    pub(super) closed: Option<(u64, [u8; 32])>,
}

/// Checks a whole transcript.
pub fn verify(transcript: &[u8], anchors: &Anchors) -> Verified {
    let mut chain = Chain::read(transcript);
    chain.finish();
    let mut problems = std::mem::take(&mut chain.problems);
    let mut say = |line, what: &str| {
        problems.push(Problem {
            line,
            what: what.to_owned(),
        });
    };
    for (line, what) in facts::problems(&chain) {
        say(line, &what);
    }
    let close = chain.close.as_ref();
    if let (Some(wanted), Some(plan)) = (&anchors.plan, &chain.plan)
        && wanted != plan.text()
    {
        say(1, "the transcript is of another plan than the one given");
    }
    if let Some(wanted) = &anchors.audit_key
        && close.is_none_or(|close| unbase64(&close.fields.audit_key).as_ref() != Some(wanted))
    {
        say(
            0,
            "the transcript's audit key is not the one given: it is of another HSM",
        );
    }
    if let Some(wanted) = &anchors.token_serial
        && close.is_none_or(|close| close.fields.summary.token.serial != *wanted)
    {
        say(
            0,
            "the transcript is from another token than the one given (serial number)",
        );
    }
    problems.sort_by_key(|problem| problem.line);
    let audit_key = close.and_then(|close| unbase64(&close.fields.audit_key));
    Verified {
        problems,
        mode: chain.mode,
        ceremony_id: chain.id.map(|id| id.to_string()),
        lines: chain.lines,
        sha256: hex(&sha256(transcript)),
        summary: close.map(|close| close.fields.summary.clone()),
        audit_key: audit_key.map(|spki| hex(&sha256(&spki))),
        signed: chain.signed,
        sealed: chain.sealed,
        plan: chain.plan,
    }
}

/// Reads the whole lines of a transcript that is not finished, and refuses one in which anything is wrong.
pub(super) fn resume(lines: &[u8]) -> Result<Resumed, String> {
    let chain = Chain::read(lines);
    if let Some(problem) = chain.problems.first() {
        return Err(problem.to_string());
    }
    let (Some(plan), Some(id), Some(mode)) = (chain.plan, chain.id, chain.mode) else {
        return Err("it has no first line".to_owned());
    };
    Ok(Resumed {
        seq: chain.seq,
        hash: chain.hash,
        time: chain.time,
        closed: chain.close.map(|close| (close.seq, close.hash)),
        history: History {
            mode,
            ceremony_id: id,
            plan,
            closed: chain.closed,
            done: chain
                .done
                .into_iter()
                .map(|done| (done.step, done.outputs))
                .collect(),
            begun: chain.begun,
            signed: chain.signed,
            sealed: chain.sealed,
            torn: None,
        },
    })
}
