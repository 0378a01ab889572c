//! What only the people can do: their keys, and getting the PINs back from their shares.

use std::path::{Path, PathBuf};

use strongroom_core::files;
use strongroom_hsm::SecretPin;

use super::ui::Question;
use super::{Ceremony, Pins, RunError};
use crate::participant::Unlock;
use crate::record::PinsRecord;
use crate::shares::{self, Added, Commitment, Deal};
use crate::{CeremonyError, Participant, ParticipantKey, Recovery, Share, Step};

impl From<shares::Pins> for Pins {
    fn from(pins: shares::Pins) -> Self {
        Self {
            so: SecretPin::new(pins.so),
            user: SecretPin::new(pins.user),
        }
    }
}

/// The directory, in a ceremony's, of the encrypted shares that it dealt.
pub(super) const SHARES_DIRECTORY: &str = "shares";
/// The directory, in a later ceremony's, of those that were in force when it began.
pub(super) const PREVIOUS_SHARES_DIRECTORY: &str = "previous-shares";

/// The file of a custodian's encrypted share.
pub(super) fn name(custodian: &Participant) -> String {
    format!("{}.jwe", custodian.fingerprint())
}

/// Asks custodians for their shares until there are enough.
pub(super) fn recover(ceremony: &mut Ceremony<'_>) -> Result<Pins, RunError> {
    let deal = ceremony.deal()?;
    let own = deal.ceremony_id == ceremony.journal.ceremony_id();
    let commitments = if own {
        let record: Option<PinsRecord> = ceremony.journal.recorded(Step::Pins)?;
        record.map(|record| record.commitments)
    } else {
        ceremony
            .custody
            .as_ref()
            .map(|custody| custody.shares.commitments.clone())
    };
    let commitments =
        commitments.ok_or_else(|| RunError::refused("the transcript holds no shares yet"))?;
    let set = Set {
        what: "PINs",
        folder: ceremony.folder.join(if own {
            SHARES_DIRECTORY
        } else {
            PREVIOUS_SHARES_DIRECTORY
        }),
        deal,
        commitments,
        restarted: own,
    };
    collect(ceremony, set).map(Pins::from)
}

/// A set of shares of two secrets, and where the encrypted ones are.
pub(super) struct Set {
    /// "PINs": what people call what it gives back.
    pub(super) what: &'static str,
    pub(super) folder: PathBuf,
    pub(super) deal: Deal,
    pub(super) commitments: Vec<Commitment>,
    /// The secrets were in this machine's memory before.
    pub(super) restarted: bool,
}

/// Asks custodians for their shares until there are enough.
pub(super) fn collect(ceremony: &mut Ceremony<'_>, set: Set) -> Result<shares::Pins, RunError> {
    let Set {
        what,
        folder,
        deal,
        commitments,
        restarted,
    } = set;
    let mut recovery = Recovery::new(deal.clone(), commitments)?;
    ceremony.ui.new_round();
    ceremony.ui.say(&format!(
        "The {what} are not in this machine's memory{}. {} custodians give them back with their keys.",
        if restarted { " (it was restarted)" } else { "" },
        deal.threshold
    ))?;
    loop {
        let present: Vec<String> = recovery.present().into_iter().map(str::to_owned).collect();
        let absent: Vec<String> = deal
            .custodians
            .iter()
            .map(|custodian| custodian.name().to_owned())
            .filter(|name| !present.contains(name))
            .collect();
        let text = format!("Whose share is next? {} more needed.", recovery.missing());
        let Some(name) = ceremony.ui.person(&text, &absent)? else {
            return Err(RunError::Waiting {
                what: format!(
                    "{} of {} shares are there, and {} are needed: too few to give the {what} back; nothing was changed",
                    present.len(),
                    deal.custodians.len(),
                    deal.threshold
                ),
                next: "bring more custodians with their keys, and run the same command again"
                    .to_owned(),
            });
        };
        let problem = match share(ceremony, &folder, &deal, &name)? {
            Ok(share) => match recovery.add(share) {
                Added::Complete(pins) => {
                    ceremony
                        .ui
                        .say(&format!("The {what} are back in this machine's memory."))?;
                    let by: Vec<String> =
                        recovery.present().into_iter().map(str::to_owned).collect();
                    ceremony.note(
                        &format!("the {what} were given back by custodians' shares"),
                        &serde_json::json!({"custodians": by}),
                    )?;
                    return Ok(pins);
                }
                Added::More { missing } => {
                    ceremony
                        .ui
                        .say(&format!("{name}'s share is right; {missing} more needed."))?;
                    continue;
                }
                Added::Refused(refusal) => refusal.to_string(),
            },
            Err(problem) => problem,
        };
        ceremony.refused(problem)?;
    }
}

/// One custodian's share, from the ceremony's directory with their key, or from the words on their
/// page; or why it can't be had.
fn share(
    ceremony: &mut Ceremony<'_>,
    folder: &Path,
    deal: &Deal,
    name: &str,
) -> Result<Result<Share, String>, RunError> {
    let Some(custodian) = deal
        .custodians
        .iter()
        .find(|person| person.name() == name)
        .cloned()
    else {
        return Ok(Err(format!("{name} is not a custodian of this plan")));
    };
    if let Some(words) = ceremony.ui.words(name)? {
        return Ok(Share::from_words(&words, deal).map_err(|error| error.to_string()));
    }
    let path = folder.join(self::name(&custodian));
    let jwe = match files::read_to_string(&path, files::MAX_WRITTEN_BY_HAND) {
        Ok(jwe) => jwe,
        Err(error) => return Ok(Err(format!("{}: {error}", path.display()))),
    };
    Ok(match try_key(ceremony, &custodian)? {
        Ok(key) => {
            shares::open(jwe.trim(), &key).map_err(|error| format!("{name}'s share: {error}"))
        }
        Err(problem) => Err(problem),
    })
}

/// Asks for a participant's key until it is the right one and opens.
pub(super) fn key(
    ceremony: &mut Ceremony<'_>,
    participant: &Participant,
) -> Result<ParticipantKey, RunError> {
    loop {
        match try_key(ceremony, participant)? {
            Ok(key) => return Ok(key),
            Err(problem) => ceremony.refused(problem)?,
        }
    }
}

/// Asks once; a wrong file or passphrase is a problem to be told.
fn try_key(
    ceremony: &mut Ceremony<'_>,
    participant: &Participant,
) -> Result<Result<ParticipantKey, String>, RunError> {
    let name = participant.name();
    let question = Question {
        id: &format!("keys/{name}.key"),
        text: &format!("{name}: which file is your key?"),
    };
    let Some(path) = ceremony.ui.file(&question)? else {
        return Err(RunError::Waiting {
            what: format!("the key of {name} is not there"),
            next: format!(
                "bring {name}'s key (in a directory of answers: keys/{name}.key), and run the same command again"
            ),
        });
    };
    let ui = &mut *ceremony.ui;
    let mut failed = None;
    let loaded = ParticipantKey::load(&path, &mut |unlock| {
        let text = match unlock {
            Unlock::Passphrase { name, path } => {
                format!("{name}: the passphrase of {}", path.display())
            }
            Unlock::Pin { name, token } => format!("{name}: the PIN of your token {token}"),
        };
        ui.passphrase(name, &text).map_err(|error| {
            let told = CeremonyError::Passphrase(error.to_string());
            failed = Some(error);
            told
        })
    });
    if let Some(error) = failed {
        return Err(error.into());
    }
    Ok(match loaded {
        Ok(key) if key.participant() == participant => Ok(key),
        Ok(key) => Err(format!(
            "{} is the key of {}, not of {name}",
            path.display(),
            key.participant().name()
        )),
        Err(error) => Err(format!("{name}'s key: {error}")),
    })
}
