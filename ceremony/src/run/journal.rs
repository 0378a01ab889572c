//! The transcript with what it says so far, in one hand, so that neither is ever ahead of the
//! other.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;
use strongroom_core::json;

use super::RunError;
use crate::record::Summary;
use crate::{
    CeremonyError, CeremonyId, History, Opening, Participant, ParticipantKey, Plan, Role, Step,
    Transcript,
};

pub(super) struct Journal {
    transcript: Transcript,
    done: BTreeMap<Step, Value>,
    /// The step that was begun and is not done, with its latest inputs.
    begun: Option<(Step, Value)>,
    closed: bool,
    signed: Vec<String>,
    sealed: bool,
    ended: bool,
}

impl Journal {
    pub(super) fn create(folder: &Path, opening: &Opening<'_>) -> Result<Self, RunError> {
        Ok(Self {
            transcript: Transcript::create(folder, opening)?,
            done: BTreeMap::new(),
            begun: None,
            closed: false,
            signed: Vec::new(),
            sealed: false,
            ended: false,
        })
    }

    /// Goes on with the transcript in a directory; also the plan that it opened with.
    pub(super) fn resume(folder: &Path) -> Result<(Self, History), RunError> {
        let (transcript, history) = Transcript::resume(folder)?;
        let journal = Self {
            transcript,
            done: history.done.iter().cloned().collect(),
            begun: history.begun.clone(),
            closed: history.closed,
            signed: history.signed.clone(),
            sealed: history.sealed,
            ended: history.ended,
        };
        Ok((journal, history))
    }

    pub(super) fn ceremony_id(&self) -> CeremonyId {
        self.transcript.ceremony_id()
    }

    pub(super) fn is_done(&self, step: Step) -> bool {
        self.done.contains_key(&step)
    }

    /// Inputs of a step that was begun and is not done.
    pub(super) fn interrupted(&self, step: Step) -> Option<&Value> {
        self.begun
            .as_ref()
            .filter(|(begun, _)| *begun == step)
            .map(|(_, inputs)| inputs)
    }

    /// What a step came to, if it is done.
    pub(super) fn recorded<T: DeserializeOwned>(&self, step: Step) -> Result<Option<T>, RunError> {
        let outputs = self.done.get(&step);
        outputs.map(json::read).transpose().map_err(|_| {
            RunError::refused(format!(
                "the transcript lacks what the step {step} came to: keep it as it is, and look at it with `strongroom ceremony verify`"
            ))
        })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(super) fn has_signed(&self, participant: &Participant) -> bool {
        self.signed.contains(&participant.fingerprint())
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// Whether it was complete when this run began.
    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }

    pub(super) fn begin(
        &mut self,
        step: Step,
        actors: &[&str],
        inputs: Value,
    ) -> Result<(), RunError> {
        self.transcript.begin(step, actors, &inputs)?;
        self.begun = Some((step, inputs));
        Ok(())
    }

    pub(super) fn note(&mut self, step: Step, text: &str, data: &Value) -> Result<(), RunError> {
        Ok(self.transcript.note(step, text, data)?)
    }

    pub(super) fn done(
        &mut self,
        step: Step,
        actors: &[&str],
        outputs: Value,
    ) -> Result<(), RunError> {
        self.transcript.done(step, actors, &outputs)?;
        self.done.insert(step, outputs);
        self.begun = None;
        Ok(())
    }

    pub(super) fn close(&mut self, summary: &Summary, audit_key: &[u8]) -> Result<(), RunError> {
        self.transcript.close(summary, audit_key)?;
        self.closed = true;
        Ok(())
    }

    pub(super) fn closing_sha256(&self) -> Option<[u8; 32]> {
        self.transcript.closing()
    }

    pub(super) fn signing_digest(&self) -> Result<[u8; 32], CeremonyError> {
        self.transcript.signing_digest()
    }

    pub(super) fn sign(&mut self, role: Role, key: &ParticipantKey) -> Result<(), RunError> {
        let signature = key.sign_digest(&self.signing_digest()?)?;
        self.transcript.sign(role, key.participant(), &signature)?;
        self.signed.push(key.participant().fingerprint());
        Ok(())
    }

    pub(super) fn seal_digest(&self) -> Result<[u8; 32], RunError> {
        Ok(self.transcript.seal_digest()?)
    }

    pub(super) fn seal(&mut self, signature: &[u8; 64]) -> Result<(), RunError> {
        self.transcript.seal(signature)?;
        self.sealed = true;
        Ok(())
    }

    /// Whether the transcript is of this plan, byte for byte.
    pub(super) fn check_plan(opened_with: &Plan, plan: &Plan) -> Result<(), RunError> {
        if opened_with.hash() == plan.hash() {
            return Ok(());
        }
        Err(RunError::refused(format!(
            "the directory holds the ceremony of another plan (SHA-256 {}): go on with that plan, or name another directory with --dir",
            opened_with.hash_hex()
        )))
    }
}
