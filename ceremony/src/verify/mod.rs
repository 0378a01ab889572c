//! Checks a transcript without the HSM: years later, by a stranger.

mod after;
mod chain;
pub(super) mod evidence;
mod facts;
mod later;
mod link;
mod steps;

use super::encoding::{hex, sha256, unbase64};
use super::record::{LogRecord, Summary};
use super::transcript::History;
use super::{CustodyState, Kind, Mode, Plan, Step};

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
    /// The transcripts that came before, whole, in any order: a later ceremony's is worth no more
    /// than what it goes on from.
    pub previous: Vec<Vec<u8>>,
}

/// One transcript of those that a later one goes on from.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Predecessor {
    /// SHA-256 of the whole file, hexadecimal.
    pub sha256: String,
    /// What it was for.
    pub kind: Option<&'static str>,
    /// Which ceremony.
    pub ceremony_id: Option<String>,
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
    /// Everything that is wrong; empty for a transcript that is whole, signed by all, sealed, and
    /// fits the anchors.
    pub problems: Vec<Problem>,
    /// Whether it counts, as its lines say.
    pub mode: Option<Mode>,
    /// What it was for.
    pub kind: Option<Kind>,
    /// Which ceremony.
    pub ceremony_id: Option<String>,
    /// What it goes on from, the latest first; empty for an initial ceremony.
    pub predecessors: Vec<Predecessor>,
    /// How things stand after it; none if it does not verify.
    pub custody: Option<CustodyState>,
    /// Lines.
    pub lines: usize,
    /// SHA-256 of the whole file, hexadecimal.
    pub sha256: String,
    /// The plan, if it can be read.
    pub plan: Option<Plan>,
    /// The summary, if there is one.
    pub summary: Option<Summary>,
    /// SHA-256 of the first line of the audit log that it began, hexadecimal.
    pub audit_log_header: Option<String>,
    /// SHA-256 of its closing line, hexadecimal: what the token keeps of its last ceremony.
    pub closing: Option<String>,
    /// SHA-256 of the audit key's `SubjectPublicKeyInfo`, hexadecimal.
    pub audit_key: Option<String>,
    /// Fingerprints of those who have to sign it.
    pub signers: Vec<String>,
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

    fn say(&mut self, line: usize, what: impl Into<String>) {
        self.problems.push(Problem {
            line,
            what: what.into(),
        });
    }

    /// In the lines' order; nothing stands on what is not valid.
    fn finish(mut self) -> Self {
        self.problems.sort_by_key(|problem| problem.line);
        if !self.problems.is_empty() {
            self.custody = None;
        }
        self
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

/// Checks a whole transcript, and those that it goes on from.
pub fn verify(transcript: &[u8], anchors: &Anchors) -> Verified {
    let mut all = vec![alone(transcript, anchors)];
    // Each step back finds a file by its own hash, so this ends.
    while let Some(sha256) = all.last().and_then(|last| last.previous.clone()) {
        let Some(bytes) = find(&anchors.previous, &sha256) else {
            all[0].found.say(0, format!(
                "the transcript that it goes on from (SHA-256 {sha256}) is not among those given as previous ones"
            ));
            break;
        };
        all.push(alone(bytes, &Anchors::default()));
    }
    // From the oldest on: what stood after it, and whether the next one fits that.
    let mut before: Option<UnlinkedTranscript> = None;
    let mut predecessors = Vec::new();
    let mut problems = Vec::new();
    while let Some(mut this) = all.pop() {
        let last = all.is_empty();
        let mut say = |line: usize, what: String| {
            problems.push(if last {
                Problem { line, what }
            } else {
                let what = format!("the previous transcript {}: {what}", this.found.sha256);
                Problem { line: 0, what }
            });
        };
        for problem in &this.found.problems {
            if last {
                say(problem.line, problem.what.clone());
            } else {
                say(0, problem.to_string());
            }
        }
        if let Some(before) = before.take() {
            if let Some(then) = &before.found.custody {
                for (line, what) in link::problems(&this.chain, then) {
                    say(line, what);
                }
                if let Some(now) = &mut this.found.custody {
                    now.goes_on_from(then);
                }
            }
            predecessors.insert(
                0,
                Predecessor {
                    kind: before.found.kind.map(Kind::name),
                    sha256: before.found.sha256,
                    ceremony_id: before.found.ceremony_id,
                },
            );
        }
        if last {
            this.found.problems = problems;
            this.found.predecessors = predecessors;
            return this.found.finish();
        }
        before = Some(this);
    }
    // The list was never empty.
    Verified::default()
}

fn find<'a>(transcripts: &'a [Vec<u8>], wanted: &str) -> Option<&'a [u8]> {
    transcripts
        .iter()
        .map(Vec::as_slice)
        .find(|bytes| hex(&sha256(bytes)) == wanted)
}

/// One transcript, not yet held against those before it.
struct UnlinkedTranscript {
    found: Verified,
    previous: Option<String>,
    chain: Chain,
}

fn alone(transcript: &[u8], anchors: &Anchors) -> UnlinkedTranscript {
    let mut chain = Chain::read(transcript);
    chain.finish();
    let mut found = Verified {
        problems: std::mem::take(&mut chain.problems),
        ..Verified::default()
    };
    for (line, what) in facts::problems(&chain)
        .into_iter()
        .chain(steps::problems(&chain))
        .chain(later::problems(&chain))
    {
        found.say(line, what);
    }
    let close = chain.close.as_ref();
    if let (Some(wanted), Some(plan)) = (&anchors.plan, &chain.plan)
        && wanted != plan.text()
    {
        found.say(1, "the transcript is of another plan than the one given");
    }
    if let Some(wanted) = &anchors.audit_key
        && close.is_none_or(|close| unbase64(&close.fields.audit_key).as_ref() != Some(wanted))
    {
        found.say(
            0,
            "the transcript's audit key is not the one given: it is of another HSM",
        );
    }
    if let Some(wanted) = &anchors.token_serial
        && close.is_none_or(|close| close.fields.summary.token.serial != *wanted)
    {
        found.say(
            0,
            "the transcript is from another token than the one given (serial number)",
        );
    }
    let audit_key = close.and_then(|close| unbase64(&close.fields.audit_key));
    let found = Verified {
        mode: chain.mode,
        kind: chain.kind,
        ceremony_id: chain.id.map(|id| id.to_string()),
        lines: chain.lines,
        sha256: hex(&sha256(transcript)),
        summary: close.map(|close| close.fields.summary.clone()),
        audit_log_header: chain
            .recorded(Step::Store)
            .map(|record: LogRecord| record.audit_log_header_sha256),
        closing: close.map(|close| hex(&close.hash)),
        audit_key: audit_key.map(|spki| hex(&sha256(&spki))),
        signed: chain.signed.clone(),
        signers: chain
            .signers()
            .iter()
            .map(|(_, person)| person.fingerprint())
            .collect(),
        sealed: chain.sealed,
        plan: chain.plan.clone(),
        custody: after::custody(&chain, &hex(&sha256(transcript))),
        ..found
    };
    UnlinkedTranscript {
        previous: chain
            .previous_sha256
            .clone()
            .filter(|_| chain.kind.is_some_and(Kind::is_later)),
        chain,
        found: found.finish(),
    }
}

/// What a verification will find wrong with a step that came to that, found before it is written:
/// while the room can still do something about it. `before`: how things stood when the ceremony
/// began; none at an initial ceremony.
pub(super) fn foresee(
    lines: &[u8],
    step: Step,
    outputs: &serde_json::Value,
    before: Option<&CustodyState>,
) -> Vec<String> {
    let mut chain = Chain::read(lines);
    chain.done.push(chain::DoneStep {
        line: chain.lines + 1,
        step,
        outputs: outputs.clone(),
    });
    let links = before.map(|before| link::problems(&chain, before));
    facts::problems(&chain)
        .into_iter()
        .chain(steps::problems(&chain))
        .chain(later::problems(&chain))
        .chain(links.into_iter().flatten())
        .map(|(_, what)| what)
        .collect()
}

/// Reads the whole lines of a transcript that is not finished, and refuses one in which anything is
/// wrong.
pub(super) fn resume(lines: &[u8]) -> Result<Resumed, String> {
    let chain = Chain::read(lines);
    if let Some(problem) = chain.problems.first() {
        return Err(problem.to_string());
    }
    let (Some(plan), Some(id), Some(mode), Some(kind)) =
        (chain.plan, chain.id, chain.mode, chain.kind)
    else {
        return Err("it has no first line".to_owned());
    };
    Ok(Resumed {
        seq: chain.seq,
        hash: chain.hash,
        time: chain.time,
        closed: chain.close.map(|close| (close.seq, close.hash)),
        history: History {
            mode,
            kind,
            previous_sha256: chain.previous_sha256,
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
            ended: chain.ended,
            torn: None,
        },
    })
}
