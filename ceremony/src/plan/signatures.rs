//! Who has signed a plan: `PLAN.signatures`, a JSON line each.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use strongroom_core::files;
use strongroom_core::json::{self, Document};

use super::super::encoding::{base64, unbase64};
use super::super::page::printable;
use super::super::{CeremonyError, ParticipantKey};
use super::Plan;

/// One person's signature of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanSignature {
    /// Whose.
    pub name: String,
    /// Their fingerprint.
    pub key: String,
    /// r || s over [`Plan::digest`], base64.
    pub signature: String,
}

/// The file beside a plan that has its signatures.
pub fn signatures_path(plan: &Path) -> PathBuf {
    let mut name = plan.as_os_str().to_owned();
    name.push(".signatures");
    name.into()
}

impl PlanSignature {
    /// Signs.
    ///
    /// # Errors
    /// [`CeremonyError::Participant`] for someone who is not in the plan; [`CeremonyError::Key`],
    /// [`CeremonyError::Token`].
    pub fn make(plan: &Plan, key: &ParticipantKey) -> Result<Self, CeremonyError> {
        let participant = key.participant();
        match plan.participant(&participant.fingerprint()) {
            Some((_, planned)) if planned == participant => {}
            _ => {
                return Err(CeremonyError::Participant(format!(
                    "{} with this key ({}) is not in the plan: sign with the key whose .pub file the plan was made from",
                    participant.name(),
                    participant.fingerprint()
                )));
            }
        }
        Ok(Self {
            name: participant.name().to_owned(),
            key: participant.fingerprint(),
            signature: base64(&key.sign_digest(&plan.digest())?),
        })
    }

    /// The signatures beside a plan; none if there is no such file yet.
    ///
    /// # Errors
    /// [`CeremonyError::Read`], [`CeremonyError::PlanSignatures`] for a line that is not a
    /// signature.
    pub fn load_all(plan: &Path) -> Result<Vec<Self>, CeremonyError> {
        let path = signatures_path(plan);
        let text = match files::read_to_string(&path, files::MAX_WRITTEN_BY_HAND) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(CeremonyError::read(&path, error)),
        };
        let mut problems = Vec::new();
        let mut signatures = Vec::new();
        for (index, line) in text.lines().enumerate() {
            match Document::parse(line.as_bytes()).and_then(|line| json::read_exactly(line.value()))
            {
                Ok(signature) => signatures.push(signature),
                Err(_) => problems.push(format!(
                    "line {} of {} is not a signature: remove it, and have that person sign again",
                    index + 1,
                    path.display()
                )),
            }
        }
        if problems.is_empty() {
            Ok(signatures)
        } else {
            Err(CeremonyError::PlanSignatures(problems))
        }
    }

    /// Appends it to the file beside the plan.
    ///
    /// # Errors
    /// [`CeremonyError::Write`].
    pub fn append(&self, plan: &Path) -> Result<(), CeremonyError> {
        let path = signatures_path(plan);
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .and_then(|mut file| {
                file.write_all(line.as_bytes())
                    .and_then(|()| file.sync_all())
            })
            .map_err(|error| CeremonyError::write(&path, error))
    }
}

impl Plan {
    /// Whether everyone in the plan has signed it, once, and nobody else.
    ///
    /// # Errors
    /// [`CeremonyError::PlanSignatures`] with everything that is wrong or missing.
    pub fn check_signatures(&self, signatures: &[PlanSignature]) -> Result<(), CeremonyError> {
        let problems = self.signature_problems(signatures);
        if problems.is_empty() {
            Ok(())
        } else {
            Err(CeremonyError::PlanSignatures(problems))
        }
    }

    /// Everything that [`Plan::check_signatures`] finds.
    pub(crate) fn signature_problems(&self, signatures: &[PlanSignature]) -> Vec<String> {
        let mut problems = Vec::new();
        let digest = self.digest();
        for signature in signatures {
            let name = printable(&signature.name);
            match self.participant(&signature.key) {
                Some((_, participant)) if participant.name() == signature.name => {
                    let bytes = unbase64(&signature.signature).unwrap_or_default();
                    if !participant.verifies(&digest, &bytes) {
                        problems.push(format!(
                            "{name}'s signature is not one of this plan: it was changed after {name} signed; remove the line and have {name} sign again"
                        ));
                    }
                }
                _ => problems.push(format!(
                    "a signature of {name}, who is not in the plan with this key: remove the line"
                )),
            }
        }
        for (role, participant) in self.participants() {
            let fingerprint = participant.fingerprint();
            match signatures
                .iter()
                .filter(|signature| signature.key == fingerprint)
                .count()
            {
                1 => {}
                0 => problems.push(format!(
                    "{} ({role}) has not signed: strongroom ceremony sign PLAN --key FILE",
                    participant.name()
                )),
                _ => problems.push(format!(
                    "{} ({role}) has signed more than once: leave one line",
                    participant.name()
                )),
            }
        }
        problems
    }
}
