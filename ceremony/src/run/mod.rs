//! Carrying a ceremony out: a state machine of steps, each in a file of its own. Those of an
//! initial ceremony are here, the later kinds' in [`later`].
//!
//! The transcript is the source of truth. A step whose `done` line is there is never done again;
//! one with a `begin` line only was interrupted, and its `recover` looks at what is there (token,
//! files) and says how the step goes on, on the screen and in a note of the transcript. PINs exist
//! in this process's memory only; after a restart, the first step that needs them asks the
//! custodians for their shares.

mod acts;
mod answers;
mod certificate;
mod chain;
mod closing;
mod configuration;
mod custody;
mod disk;
mod entropy;
mod error;
mod evidence;
pub mod handover;
mod identity;
mod journal;
mod keys;
mod known_answers;
pub mod later;
mod opening;
mod outputs;
mod pins;
mod register;
mod runtime_pin;
mod self_test;
mod site;
mod store;
mod terminal;
mod throwaway;
mod token;
mod tree;
mod trial;
pub mod ui;
mod work;

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use strongroom_hsm::ceremony::{self as hsm, Evidence};
use strongroom_hsm::{HsmConfig, KeyShape, PinSource, SecretPin, TokenIdentity, TokenSelector};

pub use answers::Answers;
pub use error::RunError;
pub use later::{LaterOptions, Task};
pub use opening::program_sha256;
pub use terminal::Terminal;
pub use ui::{Ui, UiError};

use self::journal::Journal;
use self::outputs::Outputs;
use self::site::Site;
use self::work::Work;
use super::encoding::{base64, hex, sha256};
use super::record::{Attendance, KeyRecord, TokenOutputs, TokenRecord};
use super::shares::Deal;
use super::{CustodyState, Kind, Mode, Participant, Plan, Role, Step, transcript, verify};

/// What is to be carried out, and where its record goes.
#[derive(Clone, Debug)]
pub struct Options {
    /// The plan; its signatures are beside it.
    pub plan: PathBuf,
    /// The ceremony's own directory: transcript, shares, pages, certificate request.
    pub folder: PathBuf,
    /// Also print each custodian's share as words and a QR code.
    pub paper: bool,
    /// The PKCS#11 module of a rehearsal's throwaway token; `None` for a ceremony.
    pub rehearsal: Option<PathBuf>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The transcript.
    pub transcript: PathBuf,
    /// The report that an auditor files.
    pub report: PathBuf,
    /// The audit key's public half, PEM: what the transcript is verified against.
    pub audit_key: PathBuf,
    /// The appliance's configuration, where the ceremony wrote one.
    pub configuration: Option<PathBuf>,
}

/// Both PINs, while they are known.
#[derive(Clone)]
struct Pins {
    so: SecretPin,
    user: SecretPin,
}

/// What a step is, for the machine.
struct Act {
    title: &'static str,
    what: &'static str,
    why: &'static str,
    who: fn(&Ceremony<'_>) -> String,
    /// For the transcript.
    actors: fn(&Ceremony<'_>) -> Result<Vec<Participant>, RunError>,
    /// What the room says yes to before anything happens.
    ready: &'static str,
    needs_pins: bool,
    /// For the `begin` line.
    inputs: fn(&mut Ceremony<'_>) -> Result<Value, RunError>,
    /// After an interruption: looks at what is there, and clears what can't be continued.
    recover: fn(&mut Ceremony<'_>) -> Result<Found, RunError>,
    /// Does it; for the `done` line.
    run: fn(&mut Ceremony<'_>) -> Result<Outputs, RunError>,
}

/// What a step found after an interruption.
struct Found {
    text: String,
    data: Value,
}

/// A ceremony under way.
struct Ceremony<'a> {
    kind: Kind,
    plan: Plan,
    mode: Mode,
    /// What it goes on from; none for an initial ceremony.
    custody: Option<CustodyState>,
    folder: PathBuf,
    site: Site,
    paper: bool,
    journal: Journal,
    ui: &'a mut dyn Ui,
    /// Where it stands.
    step: Step,
    pins: Option<Pins>,
    /// What only its kind works with.
    work: Work,
    runtime: tokio::runtime::Runtime,
}

/// Carries a ceremony out, from where it stopped if it began before.
///
/// # Errors
/// [`RunError`]: what was done so far stays done, and the next run goes on from there.
pub fn run(options: &Options, ui: &mut dyn Ui) -> Result<Outcome, RunError> {
    opening::open(options, ui)?.carry_on()
}

impl Ceremony<'_> {
    /// Every step that is not done yet, and the signatures.
    fn carry_on(&mut self) -> Result<Outcome, RunError> {
        // What a step left that was cut off.
        handover::to_service(&self.site)?;
        for step in self.kind.steps() {
            if self.kind.sealed_before() == Some(*step) && !self.journal.is_sealed() {
                closing::seal(self)?;
            }
            self.carry_out(*step)?;
        }
        closing::sign(self)
    }

    fn carry_out(&mut self, step: Step) -> Result<(), RunError> {
        self.step = step;
        if self.journal.is_done(step) {
            return Ok(());
        }
        let act = acts::act(self.kind, step);
        let interrupted = self.journal.interrupted(step).is_some();
        self.screen(step)?;
        if interrupted {
            self.ui
                .say("This step was interrupted before. It looks at what is there first.")?;
        }
        self.ui.confirm(act.ready)?;
        let inputs = (act.inputs)(self)?;
        let actors = (act.actors)(self)?;
        let actors: Vec<&str> = actors.iter().map(Participant::name).collect();
        self.journal.begin(step, &actors, inputs)?;
        if act.needs_pins {
            self.check_token()?;
            self.pins()?;
        }
        if interrupted {
            let found = (act.recover)(self)?;
            self.ui
                .say(&format!("After the interruption: {}.", found.text))?;
            self.note(&format!("interrupted; {}", found.text), &found.data)?;
        }
        let came_to = (act.run)(self);
        // Whatever it came to, the service goes on working with what is there now.
        let handed_over = handover::to_service(&self.site);
        let outputs = serde_json::to_value(came_to?).map_err(RunError::json)?;
        handed_over?;
        self.hold_against_the_rules(&outputs)?;
        self.journal.done(step, &actors, outputs)?;
        // After the last step the signatures follow on the same screen.
        if self.kind.steps().last() != Some(&step) {
            self.ui.pause()?;
        }
        Ok(())
    }

    /// What a verifier would refuse is not written: nobody can repair a transcript afterwards.
    fn hold_against_the_rules(&mut self, outputs: &Value) -> Result<(), RunError> {
        let path = transcript::path(&self.folder);
        let lines = transcript::read(&path).map_err(|error| RunError::file(&path, error))?;
        let problems = verify::foresee(&lines, self.step, outputs, self.custody.as_ref());
        if problems.is_empty() {
            return Ok(());
        }
        let problem = format!(
            "no verifier would accept what the step {} came to: {}. See to it, and run the same command again",
            self.step,
            problems.join("; ")
        );
        self.note(&problem, &Value::Null)?;
        Err(RunError::Refused(problem))
    }

    fn screen(&mut self, step: Step) -> Result<(), RunError> {
        let (act, steps) = (acts::act(self.kind, step), self.kind.steps());
        let before = steps.iter().take_while(|other| **other != step);
        let screen = ui::Screen {
            number: before.count() + 1,
            of: steps.len(),
            title: act.title,
            what: act.what,
            why: act.why,
            who: (act.who)(self),
            rehearsal: self.mode == Mode::Rehearsal,
        };
        Ok(self.ui.screen(&screen)?)
    }

    /// Everyone of the plan: part, name, fingerprint.
    fn roll(&self) -> Vec<(Role, String, String)> {
        self.plan
            .participants()
            .map(|(role, person)| (role, person.name().to_owned(), person.fingerprint()))
            .collect()
    }

    /// Shows each key with what people compare.
    fn say_keys(&mut self, keys: &[KeyRecord]) -> Result<(), RunError> {
        for key in keys {
            let hash = key
                .sha256
                .as_deref()
                .unwrap_or("a secret key, no public half");
            self.ui.say(&format!("{}: {hash}", key.name))?;
        }
        Ok(())
    }

    /// Shows each object of the token that attributes were read of.
    fn say_objects(&mut self, evidence: &Evidence) -> Result<(), RunError> {
        for object in &evidence.objects {
            self.ui.say(&format!(
                "{} ({}): {} attributes",
                object.name,
                object.class,
                object.attributes.len()
            ))?;
        }
        Ok(())
    }

    /// Worth keeping.
    fn note(&mut self, text: &str, data: &Value) -> Result<(), RunError> {
        self.journal.note(self.step, text, data)
    }

    /// An answer that can't be taken: said, noted, and asked for again where somebody can give
    /// another.
    fn refused(&mut self, problem: String) -> Result<(), RunError> {
        self.note(&format!("refused: {problem}"), &Value::Null)?;
        if !self.ui.another_try() {
            return Err(RunError::Refused(problem));
        }
        Ok(self.ui.refuse(&problem)?)
    }

    /// Both PINs: those in memory, or those that the custodians' shares give back.
    fn pins(&mut self) -> Result<Pins, RunError> {
        if self.pins.is_none() {
            self.pins = Some(custody::recover(self)?);
            // With the first PINs, before anything is done with them: is this the ceremony that
            // comes next?
            if self.has_a_token_of_before()
                && let Err(error) = register::check(self)
            {
                self.pins = None;
                return Err(error);
            }
        }
        self.pins
            .clone()
            .ok_or_else(|| RunError::refused("the PINs are not known"))
    }

    /// Whether the token at work is the one that the ceremony before left, with what it knows of
    /// that.
    fn has_a_token_of_before(&self) -> bool {
        let destroys = self.journal.interrupted(Step::Destroy).is_some()
            || self.journal.is_done(Step::Destroy);
        self.kind.is_later() && self.kind != Kind::Restore && !destroys
    }

    /// Those who sign, in this order: at an initial ceremony everyone in the plan, later those whom
    /// step `opening` found present.
    fn signers(&self) -> Result<Vec<(Role, Participant)>, RunError> {
        let present: Option<Attendance> = match self.kind {
            Kind::Birth => None,
            _ => Some(self.journal.recorded(Step::Opening)?.unwrap_or_default()),
        };
        let is_there = |person: &Participant| {
            let fingerprint = person.fingerprint();
            present
                .as_ref()
                .is_none_or(|roll| roll.present.iter().any(|one| one.key == fingerprint))
        };
        let people = self.plan.participants();
        Ok(people
            .filter(|(_, person)| is_there(person))
            .map(|(role, person)| (role, person.clone()))
            .collect())
    }

    /// The serial number of the token that is at work: the one that step `token` recorded, or else
    /// the one that was there before.
    fn token_serial(&self) -> Result<String, RunError> {
        let initialised: Option<TokenOutputs> = self.journal.recorded(Step::Token)?;
        initialised
            .map(|outputs| outputs.token.serial)
            .or_else(|| Some(self.custody.as_ref()?.summary.token.serial.clone()))
            .ok_or_else(|| RunError::refused("the transcript names no token yet"))
    }

    /// The label that a token gets which this ceremony initialises: the plan's, and for a second
    /// token beside it one that tells them apart.
    fn token_label(&self) -> String {
        let label = &self.plan.token.label;
        let spares = match (self.kind, &self.custody) {
            (Kind::AddToken, Some(custody)) => custody.spares.len(),
            _ => return label.clone(),
        };
        let end = format!("-{}", spares + 2);
        // PKCS#11 has 32 bytes for it.
        let mut room = 32 - end.len();
        while !label.is_char_boundary(room.min(label.len())) {
            room -= 1;
        }
        format!("{}{end}", &label[..room.min(label.len())])
    }

    /// What the shares have in common that give the PINs back: those that this ceremony dealt, or
    /// else those in force before.
    fn deal(&self) -> Result<Deal, RunError> {
        if self.journal.is_done(Step::Pins) || self.custody.is_none() {
            return Ok(self.own_deal());
        }
        self.custody
            .as_ref()
            .and_then(CustodyState::deal)
            .ok_or_else(|| RunError::refused("the transcript before holds no shares"))
    }

    /// For the shares that this ceremony deals itself.
    fn own_deal(&self) -> Deal {
        Deal::new(&self.plan, self.journal.ceremony_id(), self.mode)
    }

    /// Whether the token that step `token` initialised is still there; its loss has to be told in
    /// so many words.
    fn check_token(&mut self) -> Result<(), RunError> {
        // Where the ceremony has a token of its own to initialise, that comes first.
        if self.kind.steps().contains(&Step::Token) && !self.journal.is_done(Step::Token) {
            return Ok(());
        }
        let serial = self.token_serial()?;
        let slots = hsm::slots(&self.site.module)?;
        if slots.iter().any(|slot| slot.token.serial == serial) {
            return Ok(());
        }
        if !self.journal.is_done(Step::Token) {
            return Err(RunError::Waiting {
                what: format!("the token {serial}, which holds the appliance's keys, is not there"),
                next: "put it in, and run the same command again".to_owned(),
            });
        }
        let problem = format!(
            "the token {serial}, which this ceremony initialised, is not there: put it back, and run the same command again. If it is lost for good (a SoftHSM \
             token is, when the power goes while it writes its own file), nothing depends on it yet: hold the ceremony again with another token, in another directory"
        );
        self.note(&problem, &Value::Null)?;
        Err(RunError::Refused(problem))
    }

    /// What is demanded of the token's keys.
    fn shape(&self) -> KeyShape {
        match (self.kind, &self.custody) {
            (Kind::Restore, _) => KeyShape::Moved,
            (_, Some(custody)) => custody.shape(),
            (_, None) if self.plan.keys.backup => KeyShape::Movable,
            (_, None) => KeyShape::Fixed,
        }
    }

    /// For the token of this ceremony, with the user PIN from memory.
    fn hsm_config(&mut self) -> Result<HsmConfig, RunError> {
        let pins = self.pins()?;
        Ok(HsmConfig {
            module: self.site.module.clone(),
            token: TokenSelector::Serial(self.token_serial()?),
            pin: PinSource::Given(pins.user),
            sessions: 1,
            queue: 64,
            call_deadline: Duration::from_mins(1),
            key_generation_deadline: Duration::from_mins(5),
            session_keys: 4,
            shape: self.shape(),
        })
    }

    fn block_on<T>(
        &self,
        future: impl Future<Output = Result<T, RunError>>,
    ) -> Result<T, RunError> {
        self.runtime.block_on(future)
    }

    /// Where the certificate request is.
    fn request(&self) -> PathBuf {
        self.folder.join("certificate-request.pem")
    }
}

fn sha256_hex(bytes: &[u8]) -> String {
    hex(&sha256(bytes))
}

fn token_record(token: &TokenIdentity) -> TokenRecord {
    TokenRecord {
        label: token.label.clone(),
        serial: token.serial.clone(),
        manufacturer: token.manufacturer.clone(),
        model: token.model.clone(),
    }
}

/// Every key of the appliance, public half or not, in the token's order.
fn key_records(evidence: &Evidence) -> Vec<KeyRecord> {
    let mut keys: Vec<KeyRecord> = Vec::new();
    for object in &evidence.objects {
        match object.class.as_str() {
            "CKO_PUBLIC_KEY" | "CKO_SECRET_KEY" => keys.push(KeyRecord::new(
                &object.label,
                &object.label,
                object.spki.as_deref(),
            )),
            _ => {}
        }
    }
    keys
}

/// Everyone who is there.
fn everyone(ceremony: &Ceremony<'_>) -> Result<Vec<Participant>, RunError> {
    let signers = ceremony.signers()?.into_iter();
    Ok(signers.map(|(_, person)| person).collect())
}

#[allow(clippy::unnecessary_wraps, reason = "other steps' can fail")]
fn security_officer(ceremony: &Ceremony<'_>) -> Result<Vec<Participant>, RunError> {
    Ok(vec![ceremony.plan.security_officer.clone()])
}
