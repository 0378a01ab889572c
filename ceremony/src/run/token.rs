//! The token gets its label and its PINs.

use std::fmt::Write as _;

use serde_json::{Value, json};
use strongroom_hsm::TokenSelector;
use strongroom_hsm::ceremony::{self as hsm, SlotState, TokenCondition};

use super::outputs::{Outputs, TokenFlags};
use super::{Act, Ceremony, Found, RunError, token_record};
use crate::record::TokenOutputs;

pub(super) const ACT: Act = Act {
    title: "Initialise the token",
    what: "The token gets its label, its security officer's PIN and its user PIN, all from this machine's memory. \
           Nobody types or sees a PIN.",
    why: "A token that was used before might hold keys or know PINs that somebody else knows. Only one that is not initialised is taken, \
          and none that was initialised before this ceremony began is touched.",
    who: |ceremony| {
        format!(
            "{} (security officer) puts the token in, and says so",
            ceremony.plan.security_officer.name()
        )
    },
    actors: super::security_officer,
    ready: "Is the token that the plan names in its place, and no other that could be mistaken for it?",
    needs_pins: true,
    inputs,
    recover,
    run,
};

/// What was there before: the tokens that are not to be touched.
fn inputs(ceremony: &mut Ceremony<'_>) -> Result<Value, RunError> {
    // What an interrupted attempt found still counts: what it initialised is not to be taken for
    // somebody else's.
    if let Some(inputs) = ceremony.journal.interrupted(ceremony.step) {
        return Ok(inputs.clone());
    }
    let slots = hsm::slots(&ceremony.site.module)?;
    let initialised = slots.iter().filter(|slot| slot.initialized);
    Ok(json!({
        "module": ceremony.site.module,
        "label": ceremony.token_label(),
        "initialised_before": initialised.map(|slot| slot.token.serial.clone()).collect::<Vec<_>>(),
        "blank": slots.iter().filter(|slot| !slot.initialized).count(),
    }))
}

/// What this ceremony did to tokens so far, by their serial numbers and flags.
struct Survey {
    /// Initialised by this ceremony, as far as label and serial number tell; its PIN will tell for
    /// sure.
    ours: Vec<SlotState>,
    /// Cut off in the middle of `C_InitToken`: nobody can use them any more.
    wrecks: Vec<SlotState>,
    blank: Vec<SlotState>,
}

impl Survey {
    fn new(ceremony: &Ceremony<'_>) -> Result<Self, RunError> {
        let before: Vec<String> = ceremony
            .journal
            .interrupted(ceremony.step)
            .and_then(|inputs| serde_json::from_value(inputs["initialised_before"].clone()).ok())
            .unwrap_or_default();
        let label = ceremony.token_label();
        let mut survey = Self {
            ours: Vec::new(),
            wrecks: Vec::new(),
            blank: Vec::new(),
        };
        for slot in hsm::slots(&ceremony.site.module)? {
            let new = slot.token.label == label && !before.contains(&slot.token.serial);
            match slot.condition() {
                TokenCondition::Blank => survey.blank.push(slot),
                _ if !new => {}
                TokenCondition::SoPinLocked => survey.wrecks.push(slot),
                _ => survey.ours.push(slot),
            }
        }
        Ok(survey)
    }
}

fn recover(ceremony: &mut Ceremony<'_>) -> Result<Found, RunError> {
    let survey = Survey::new(ceremony)?;
    let serials = |slots: &[SlotState]| -> Vec<String> {
        slots.iter().map(|slot| slot.token.serial.clone()).collect()
    };
    let data = json!({"ours": serials(&survey.ours), "cut_off": serials(&survey.wrecks)});
    let mut text = match survey.ours.as_slice() {
        [] => "the token was not initialised yet: the step starts over".to_owned(),
        [one] if one.condition() == TokenCondition::NoUserPin => format!(
            "the token {} was initialised and has no user PIN yet: the step continues with it",
            one.token.serial
        ),
        [one] => format!(
            "the token {} was initialised and has a user PIN: the step continues with it",
            one.token.serial
        ),
        several => format!(
            "{} tokens have the plan's label and were initialised since this ceremony began",
            several.len()
        ),
    };
    if !survey.wrecks.is_empty() {
        // Writing to a String can't fail.
        let _ = write!(
            text,
            "; the initialisation of {} was cut off in the middle, nobody can use it, and its maker's tool must erase it",
            serials(&survey.wrecks).join(", ")
        );
    }
    Ok(Found { text, data })
}

fn run(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let survey = Survey::new(ceremony)?;
    let module = ceremony.site.module.clone();
    let pins = ceremony.pins()?;
    let state = match survey.ours.as_slice() {
        [] => {
            let blank = choose(ceremony, &survey.blank)?;
            ceremony.ui.working(Some("initialising the token"));
            let label = ceremony.token_label();
            let state = hsm::initialize_token(&module, blank.slot, &label, &pins.so);
            ceremony.ui.working(None);
            state?
        }
        [one] => one.clone(),
        several => {
            return Err(RunError::refused(format!(
                "{} tokens have the label {:?} and were initialised since this ceremony began: take away those that do not belong to it, and run again",
                several.len(),
                ceremony.token_label()
            )));
        }
    };
    let serial = state.token.serial.clone();
    let selector = TokenSelector::Serial(serial.clone());
    // Also for one that has a user PIN already: the security officer's PIN, which this needs,
    // proves that the token is this ceremony's.
    ceremony.ui.working(Some("setting the user PIN"));
    let set = hsm::set_user_pin(&module, &selector, &pins.so, &pins.user)
        .and_then(|()| hsm::check_pins(&module, &selector, &pins.so, &pins.user));
    ceremony.ui.working(None);
    set?;
    let state = hsm::slots(&module)?
        .into_iter()
        .find(|slot| slot.token.serial == serial)
        .ok_or_else(|| {
            RunError::refused(format!(
                "the token {serial} is gone: put it back and run again"
            ))
        })?;
    ceremony.ui.say(&format!(
        "The token {} ({} {}) has its label {:?} and both PINs.",
        serial, state.token.manufacturer, state.token.model, state.token.label
    ))?;
    Ok(Outputs::Token {
        record: TokenOutputs {
            token: token_record(&state.token),
        },
        flags: TokenFlags::from(&state),
    })
}

/// The token that the plan names, or the only one that is not initialised.
fn choose(ceremony: &Ceremony<'_>, blank: &[SlotState]) -> Result<SlotState, RunError> {
    // A token that had an appliance's keys before would be taken for the one that it was. SoftHSM
    // gives a new number at each initialisation.
    let known = |slot: &&SlotState| {
        let custody = ceremony.custody.as_ref();
        custody.is_some_and(|custody| custody.had_token(&slot.token.serial))
    };
    if let Some(old) = blank.iter().find(known) {
        return Err(RunError::refused(format!(
            "the token {} had this appliance's keys before, and was erased since: no verifier takes it for another one. Take it out, put a token with another serial number \
             in, and run again; nothing was changed",
            old.token.serial
        )));
    }
    if let Some(serial) = ceremony.site.serial.as_deref() {
        return blank
            .iter()
            .find(|slot| slot.token.serial == serial)
            .cloned()
            .ok_or_else(|| {
                RunError::refused(format!(
                    "no uninitialised token has the plan's serial number {serial}: put it in; one that is initialised already is never touched"
                ))
            });
    }
    match blank {
        [one] => Ok(one.clone()),
        [] => Err(RunError::refused(
            "no uninitialised token is there: put one in; one that is initialised already is never touched",
        )),
        several => Err(RunError::refused(format!(
            "{} uninitialised tokens are there: leave only the one that is meant, or name its serial number in the plan",
            several.len()
        ))),
    }
}
