//! The lines one by one: the chain, the order, the signatures.

use p256::PublicKey;
use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use p256::ecdsa::{self, VerifyingKey};
use p256::pkcs8::DecodePublicKey as _;
use serde::de::DeserializeOwned;
use serde_json::Value;
use strongroom_core::json;

use super::super::encoding::{base64, hex, sha256, unbase64, unhex};
use super::super::page::printable;
use super::super::record::{Attendance, InventoryOutputs};
use super::super::transcript::{
    Begin, Body, Close, Done, FORMAT, GENESIS_HASH, Line, Note, Open, Seal, Signature, check_time,
    seal_digest, signing_digest,
};
use super::super::{
    CeremonyError, CeremonyId, Kind, Mode, Participant, Plan, PlanSignature, Role, Step,
};
use super::Problem;

/// No line of ours is longer.
const MAX_LINE_BYTES: usize = 4 << 20;

/// What the lines came to.
#[derive(Default)]
pub(super) struct Chain {
    pub(super) problems: Vec<Problem>,
    pub(super) lines: usize,
    pub(super) mode: Option<Mode>,
    pub(super) kind: Option<Kind>,
    pub(super) previous_sha256: Option<String>,
    pub(super) id: Option<CeremonyId>,
    pub(super) plan: Option<Plan>,
    pub(super) plan_signatures: Vec<PlanSignature>,
    pub(super) binary_sha256: String,
    pub(super) done: Vec<DoneStep>,
    pub(super) begun: Option<(Step, Value)>,
    pub(super) closed: bool,
    pub(super) close: Option<Closed>,
    /// Fingerprints of those whose signatures are right.
    pub(super) signed: Vec<String>,
    /// Signature lines, right or not.
    signatures: usize,
    pub(super) sealed: bool,
    /// A seal line was there, right or not.
    seals: bool,
    /// The last line was there, right or not.
    pub(super) ended: bool,
    /// Number, hash and time of the last line.
    pub(super) seq: u64,
    pub(super) hash: [u8; 32],
    pub(super) time: String,
}

/// A step that is done.
pub(super) struct DoneStep {
    pub(super) line: usize,
    pub(super) step: Step,
    pub(super) outputs: Value,
}

/// The `close` line.
pub(super) struct Closed {
    pub(super) line: usize,
    pub(super) seq: u64,
    pub(super) hash: [u8; 32],
    pub(super) fields: Close,
}

impl Chain {
    pub(super) fn read(transcript: &[u8]) -> Self {
        let mut chain = Self {
            hash: GENESIS_HASH,
            ..Self::default()
        };
        let mut lines: Vec<&[u8]> = transcript.split(|byte| *byte == b'\n').collect();
        let torn = lines.pop().unwrap_or_default();
        for line in lines {
            chain.line(line);
        }
        if !torn.is_empty() {
            chain.lines += 1;
            chain.say("the line has no end: it was torn by an interruption or cut");
        }
        if chain.lines == 0 {
            chain.say("the transcript is empty");
        }
        chain
    }

    /// What must be there at the end.
    pub(super) fn finish(&mut self) {
        let (done, missing) = (self.done.len(), self.steps().get(self.done.len()));
        if let Some(step) = missing {
            self.whole(format!(
                "it is not complete: {done} steps are done, and {step} is not"
            ));
        } else if !self.closed {
            self.whole("it is not complete: there is no summary".to_owned());
        }
        let unsigned: Vec<String> = self
            .signers()
            .into_iter()
            .filter(|(_, participant)| !self.signed.contains(&participant.fingerprint()))
            .map(|(role, participant)| {
                format!(
                    "{} ({role}) has not signed the transcript",
                    participant.name()
                )
            })
            .collect();
        for what in unsigned {
            self.whole(what);
        }
        if !self.sealed {
            self.whole("the HSM's audit key has not sealed it".to_owned());
        }
    }

    /// The steps of its kind.
    pub(super) fn steps(&self) -> &'static [Step] {
        self.kind.unwrap_or(Kind::Birth).steps()
    }

    /// The step that comes next.
    fn next(&self) -> Option<Step> {
        self.steps().get(self.done.len()).copied()
    }

    /// What a step came to.
    pub(super) fn outputs(&self, step: Step) -> Option<&Value> {
        self.done
            .iter()
            .find(|done| done.step == step)
            .map(|done| &done.outputs)
    }

    /// The same in its own type, if it is of that.
    pub(super) fn recorded<T: DeserializeOwned>(&self, step: Step) -> Option<T> {
        json::read(self.outputs(step)?).ok()
    }

    /// Who signs, in this order: at an initial ceremony everyone in the plan, later those who were
    /// there.
    pub(super) fn signers(&self) -> Vec<(Role, &Participant)> {
        let later = self.kind.is_some_and(Kind::is_later);
        let roll: Attendance = if later {
            self.recorded(Step::Opening).unwrap_or_default()
        } else {
            Attendance::default()
        };
        self.plan
            .iter()
            .flat_map(Plan::participants)
            .filter(|(_, person)| {
                let fingerprint = person.fingerprint();
                !later || roll.present.iter().any(|one| one.key == fingerprint)
            })
            .collect()
    }

    fn line(&mut self, bytes: &[u8]) {
        self.lines += 1;
        let parsed = if bytes.len() > MAX_LINE_BYTES {
            Err("the line is longer than any of a transcript".to_owned())
        } else {
            Line::parse(bytes)
        };
        if self.ended {
            self.say("something follows the last line");
        }
        let line = match parsed {
            Ok(line) => line,
            Err(problem) => {
                self.say(problem);
                self.seq = self.seq.saturating_add(1);
                self.hash = sha256(bytes);
                return;
            }
        };
        if line.seq != self.seq.saturating_add(1) {
            self.say(format!(
                "line number {} was expected, this is {}: lines are missing, added or moved",
                self.seq.saturating_add(1),
                line.seq
            ));
        } else if line.prev != self.hash {
            self.say("the line before this one is not the one that was written there: it was changed or replaced");
        }
        if !check_time(&line.time) {
            self.say("`time` is not of the form 2026-01-31T12:34:56.789Z");
        }
        if *self.mode.get_or_insert(line.mode) != line.mode {
            self.say(format!(
                "the line says {}, those before it do not",
                line.mode
            ));
        }
        if (self.lines == 1) != matches!(line.body, Body::Open(_)) {
            self.say("the first line opens the transcript, and no other does");
        }
        self.body(bytes, &line);
        self.seq = line.seq;
        self.hash = line.hash;
        self.time = line.time;
    }

    fn body(&mut self, bytes: &[u8], line: &Line) {
        let closed = self.closed;
        match &line.body {
            Body::Begin(_) | Body::Done(_) | Body::Close(_) if closed => {
                self.say("no step and no summary may follow the summary");
            }
            Body::Open(open) => self.open(open),
            Body::Begin(begin) => self.begin(begin),
            Body::Note(note) => self.note(note),
            Body::Done(done) => self.done(done),
            Body::Close(close) => self.close(line, close),
            Body::Signature(signature) => self.signature(bytes, line, signature),
            Body::Seal(seal) => self.seal(bytes, line, seal),
        }
    }

    fn open(&mut self, open: &Open) {
        if self.plan.is_some() || self.id.is_some() {
            return; // said already: a second one
        }
        if open.format != FORMAT {
            self.say(format!(
                "it is of format {}, this version reads {FORMAT}",
                open.format
            ));
        }
        self.kind = Kind::parse(&open.kind);
        match (self.kind, &open.previous_sha256) {
            (None, _) => self.say(format!(
                "it is of a ceremony of kind {:?}, which this version does not know",
                printable(&open.kind)
            )),
            (Some(Kind::Birth), Some(_)) => {
                self.say("an initial ceremony goes on from no other ceremony (previous_sha256)");
            }
            (Some(kind), previous)
                if kind.is_later() && previous.as_deref().and_then(unhex::<32>).is_none() =>
            {
                self.say("`previous_sha256` is not 64 lower-case hexadecimal digits");
            }
            _ => {}
        }
        self.previous_sha256.clone_from(&open.previous_sha256);
        self.id = CeremonyId::parse(&open.ceremony_id);
        if self.id.is_none() {
            self.say("`ceremony_id` is not 32 lower-case hexadecimal digits");
        }
        if unhex(&open.plan_sha256) != Some(sha256(open.plan.as_bytes())) {
            self.say("`plan_sha256` is not the hash of the plan");
        }
        if unhex::<32>(&open.software.binary_sha256).is_none() {
            self.say("`software.binary_sha256` is not 64 lower-case hexadecimal digits");
        }
        self.binary_sha256.clone_from(&open.software.binary_sha256);
        match Plan::parse(&open.plan) {
            Ok(plan) => {
                for problem in plan.signature_problems(&open.signatures) {
                    self.say(format!("the plan's signatures: {problem}"));
                }
                // A rehearsal may be of a program that was built for it, and later there are newer
                // ones.
                if self.mode == Some(Mode::Ceremony)
                    && self.kind == Some(Kind::Birth)
                    && plan.software.binary_sha256 != open.software.binary_sha256
                {
                    self.say("the program that ran is not the one of the plan (binary_sha256)");
                }
                if self.kind == Some(Kind::Birth) && plan.replaces.is_some() {
                    self.say(
                        "the plan of an initial ceremony takes the place of no other (replaces)",
                    );
                }
                self.plan = Some(plan);
                self.plan_signatures.clone_from(&open.signatures);
            }
            Err(CeremonyError::Plan(problems)) => {
                for problem in problems {
                    self.say(format!("the plan: {problem}"));
                }
            }
            Err(error) => self.say(format!("the plan: {error}")),
        }
    }

    fn begin(&mut self, begin: &Begin) {
        if Some(begin.step) != self.next() {
            self.say(format!("step {} begins out of order", begin.step));
        }
        if self.kind.and_then(Kind::sealed_before) == Some(begin.step) && !self.sealed {
            self.say(format!(
                "step {} begins before the audit key has sealed what led to it",
                begin.step
            ));
        }
        self.actors(&begin.actor);
        if !begin.inputs.is_object() {
            self.say("`inputs` is not an object");
        }
        self.begun = Some((begin.step, begin.inputs.clone()));
    }

    /// Who acts is somebody of the plan.
    fn actors(&mut self, actors: &[String]) {
        if actors.is_empty() {
            self.say("`actor` names nobody");
        }
        let Some(plan) = &self.plan else { return };
        let known = |actor: &String| plan.participants().any(|(_, one)| one.name() == actor);
        if let Some(stranger) = actors.iter().find(|actor| !known(actor)) {
            let stranger = printable(stranger);
            self.say(format!("{stranger}, who acts, is not in the plan"));
        }
    }

    fn note(&mut self, note: &Note) {
        if !self.steps().contains(&note.step) {
            self.say(format!(
                "a note of step {}, which this kind of ceremony has not",
                note.step
            ));
        }
    }

    fn done(&mut self, done: &Done) {
        let begun = self.begun.take().map(|(step, _)| step);
        if begun != Some(done.step) || Some(done.step) != self.next() {
            self.say(format!(
                "step {} is done out of order, or without having begun",
                done.step
            ));
        }
        self.actors(&done.actor);
        if !done.outputs.is_object() {
            self.say("`outputs` is not an object");
        }
        self.done.push(DoneStep {
            line: self.lines,
            step: done.step,
            outputs: done.outputs.clone(),
        });
    }

    fn close(&mut self, line: &Line, close: &Close) {
        if self.begun.is_some() || self.done.len() != self.steps().len() {
            self.say("the summary stands before the end of all steps");
        }
        self.closed = true;
        self.close = Some(Closed {
            line: self.lines,
            seq: line.seq,
            hash: line.hash,
            fields: close.clone(),
        });
    }

    fn signature(&mut self, bytes: &[u8], line: &Line, signature: &Signature) {
        let place = self.signatures;
        self.signatures += 1;
        let name = printable(&signature.name);
        let (Some(close), Some(id)) = (&self.close, &self.id) else {
            self.say(format!("{name} signs before there is a summary"));
            return;
        };
        let digest = signing_digest(id, close.seq, &close.hash);
        let last = self.kind.and_then(Kind::sealed_before).is_some();
        let signers = self.signers();
        let Some((role, participant)) = signers.get(place) else {
            self.say(format!(
                "a signature of {name}, who is not expected to sign here"
            ));
            return;
        };
        let fingerprint = participant.fingerprint();
        let expected = [participant.name(), Role::name(*role), &fingerprint];
        let given = unbase64(&signature.signature).unwrap_or_default();
        let problem = if [&signature.name, &signature.role, &signature.key] != expected {
            Some(format!(
                "a signature of {} ({role}) was expected here, this one is of {name} ({})",
                participant.name(),
                printable(&signature.key)
            ))
        } else if !participant.verifies(&digest, &given) {
            Some(format!(
                "{name}'s signature is not one of this transcript by the key in the plan"
            ))
        } else if last && !self.is_prescribed(bytes, line, signature, &given) {
            Some(format!(
                "the line with {name}'s signature is not written as it must be: it was changed"
            ))
        } else {
            None
        };
        if last && place + 1 == signers.len() {
            self.ended = true;
        }
        match problem {
            Some(problem) => self.say(problem),
            None => self.signed.push(fingerprint),
        }
    }

    /// Nothing covers a last signature's line but the signature itself, so all else about it is
    /// prescribed, byte for byte.
    fn is_prescribed(
        &self,
        bytes: &[u8],
        line: &Line,
        signature: &Signature,
        given: &[u8],
    ) -> bool {
        let Ok(given) = ecdsa::Signature::from_slice(given) else {
            return false;
        };
        let body = Body::Signature(Signature {
            signature: base64(&given.normalize_s().to_bytes()),
            ..signature.clone()
        });
        Line::bytes(
            self.seq.saturating_add(1),
            &self.time,
            line.mode,
            &self.hash,
            &body,
        )
        .ok()
        .as_deref()
            == Some(bytes)
    }

    fn seal(&mut self, bytes: &[u8], line: &Line, seal: &Seal) {
        if std::mem::replace(&mut self.seals, true) {
            self.say("a second seal");
            return;
        }
        let early = self.kind.and_then(Kind::sealed_before);
        self.ended = early.is_none();
        let in_time = match early {
            None => self.closed,
            Some(step) => self.next() == Some(step) && self.begun.is_none(),
        };
        let (true, Some(id), Some(audit_key)) = (in_time, &self.id, self.audit_key()) else {
            self.say("a seal where there is nothing to be sealed yet");
            return;
        };
        let key = unbase64(&audit_key)
            .and_then(|spki| PublicKey::from_public_key_der(&spki).ok())
            .map(VerifyingKey::from);
        let signature =
            unbase64(&seal.signature).and_then(|bytes| ecdsa::Signature::from_slice(&bytes).ok());
        let (Some(key), Some(signature)) = (key, signature) else {
            self.say("the seal or the audit key can't be read");
            return;
        };
        let digest = seal_digest(id, self.seq, &self.hash);
        if key.verify_prehash(&digest, &signature).is_err() {
            self.say("the seal is not a signature of this transcript by the HSM's audit key");
            return;
        }
        // Nothing covers this line but its own signature, so all else about it is prescribed, byte
        // for byte.
        let prescribed = Line::bytes(
            self.seq.saturating_add(1),
            &self.time,
            line.mode,
            &self.hash,
            &Body::Seal(Seal {
                signature: base64(&signature.normalize_s().to_bytes()),
            }),
        );
        if prescribed.ok().as_deref() != Some(bytes) {
            self.say("the seal's line is not written as it must be: it was changed");
            return;
        }
        self.sealed = true;
    }

    /// The key that seals: the one of the summary, or where that comes too late, the one that the
    /// token showed before.
    fn audit_key(&self) -> Option<String> {
        if self.kind.and_then(Kind::sealed_before).is_none() {
            return Some(self.close.as_ref()?.fields.audit_key.clone());
        }
        let inventory: InventoryOutputs = self.recorded(Step::Inventory)?;
        Some(inventory.audit_key)
    }

    /// Something is wrong with the line at hand.
    fn say(&mut self, what: impl Into<String>) {
        let line = self.lines;
        self.problems.push(Problem {
            line,
            what: what.into(),
        });
    }

    /// Something is wrong with the whole.
    fn whole(&mut self, what: String) {
        self.problems.push(Problem { line: 0, what });
    }
}

impl Closed {
    /// SHA-256 of the audit key, hexadecimal.
    pub(super) fn audit_key_sha256(&self) -> Option<String> {
        unbase64(&self.fields.audit_key).map(|spki| hex(&sha256(&spki)))
    }
}
