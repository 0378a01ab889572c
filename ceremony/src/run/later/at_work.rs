//! Which token a later ceremony is held with. A second token has the keys and the PINs of the
//! first, and both may be plugged in; which of them the appliance works with its configuration
//! says. A ceremony with the other one would export, rotate or destroy what nobody uses any more.

use std::collections::BTreeSet;

use strongroom_hsm::TokenSelector;
use strongroom_hsm::ceremony::{self as hsm, SlotState};

use super::super::site::Site;
use super::super::{RunError, configuration};
use crate::{CustodyState, Kind};

/// As things stand with the token that the appliance works with: that of the ceremony before, or a
/// spare of it that has taken over since.
///
/// # Errors
/// [`RunError`] if it can't be told which one that is, or if that one is not of these transcripts,
/// lacks keys that are in force, or is not there while another one is. Nothing was begun then.
pub(super) fn at_work(
    site: &Site,
    kind: Kind,
    custody: &CustodyState,
) -> Result<CustodyState, RunError> {
    let here = Here::look(site, custody)?;
    // Whatever was at work, a restoration puts another token in its place: the old one need not be
    // there, nor known.
    if kind == Kind::Restore {
        let serial = here.configured.as_ref().or_else(|| here.only());
        return Ok(serial
            .and_then(|serial| with(custody, serial))
            .unwrap_or_else(|| custody.clone()));
    }
    let (own, path) = (&custody.summary.token.serial, site.configuration());
    let path = path.display();
    let Some(serial) = &here.configured else {
        if here.of_the_appliance.len() > 1 {
            return Err(RunError::refused(format!(
                "several tokens of the appliance are here ({}), and {path} does not say which one it works with. Put the appliance's configuration there, with that \
                 one's serial number in [hsm], or take the others out, and run the same command again",
                here.list()
            )));
        }
        return held_with(custody, here.only().unwrap_or(own));
    };
    if serial != own && spare(custody, serial).is_none() {
        let known = if custody.had_token(serial) {
            "a token that was at work in an earlier ceremony of this appliance"
        } else {
            "a token that none of these transcripts names"
        };
        return Err(RunError::refused(format!(
            "the appliance works with the token {serial} (section [hsm] of {path}), {known}; by the transcript that this ceremony would go on from it is {own}. Name the directory of \
             the appliance's last ceremony with --after, or set [hsm] right, and run the same command again; nothing was begun"
        )));
    }
    if !here.of_the_appliance.contains(serial) && !here.of_the_appliance.is_empty() {
        return Err(RunError::refused(format!(
            "the appliance works with the token {serial} (section [hsm] of {path}), which is not there; here is {}, which has the same keys. Put the token {serial} in. If it is lost, \
             have the other one take over first: docs/ceremony.md says how, and its serial number is in [hsm] then. Then run the same command again; nothing was begun",
            here.list()
        )));
    }
    held_with(custody, serial)
}

/// As things stand with the token of that serial number, which is of these transcripts.
///
/// # Errors
/// [`RunError`] if it lacks keys that are in force.
pub(super) fn held_with(custody: &CustodyState, serial: &str) -> Result<CustodyState, RunError> {
    with(custody, serial).ok_or_else(|| {
        RunError::refused(format!(
            "the token {serial} lacks keys that are in force: the master key was rotated after its keys were copied to it. Only the token {} has them: use that one, or, if it is \
             lost, bring the newest backup to another token (`strongroom ceremony restore`)",
            custody.summary.token.serial
        ))
    })
}

/// None if it is a spare that lacks keys; any other serial number is that of the ceremony before.
fn with(custody: &CustodyState, serial: &str) -> Option<CustodyState> {
    match spare(custody, serial) {
        Some(spare) => custody.with(spare),
        None => Some(custody.clone()),
    }
}

/// The second token with that serial number, if it is not the one at work already.
fn spare<'a>(custody: &'a CustodyState, serial: &str) -> Option<&'a crate::record::CopyOutputs> {
    let mut spares = custody.spares.iter();
    let spare = spares.find(|spare| spare.token.serial == *serial)?;
    (spare.token != custody.summary.token).then_some(spare)
}

/// What the machine says of it.
struct Here {
    /// The serial number of the token that the configuration names, if there is one and it is
    /// known.
    configured: Option<String>,
    /// Of those tokens that are there and that the transcripts name.
    of_the_appliance: BTreeSet<String>,
}

impl Here {
    fn look(site: &Site, custody: &CustodyState) -> Result<Self, RunError> {
        let slots = hsm::slots(&site.module)?;
        let spares = custody.spares.iter().map(|spare| &spare.token);
        let known: BTreeSet<_> = std::iter::once(&custody.summary.token)
            .chain(spares)
            .map(|token| &token.serial)
            .collect();
        Ok(Self {
            configured: configured(site, &slots)?,
            of_the_appliance: slots
                .iter()
                .map(|slot| slot.token.serial.clone())
                .filter(|serial| known.contains(serial))
                .collect(),
        })
    }

    fn only(&self) -> Option<&String> {
        let mut tokens = self.of_the_appliance.iter();
        tokens.next().filter(|_| tokens.next().is_none())
    }

    fn list(&self) -> String {
        let tokens: Vec<_> = self.of_the_appliance.iter().map(String::as_str).collect();
        tokens.join(", ")
    }
}

/// By a label or a URI only one that is there is known by its serial number.
fn configured(site: &Site, slots: &[SlotState]) -> Result<Option<String>, RunError> {
    let Some(text) = configuration::read(site)? else {
        return Ok(None);
    };
    let selector = configuration::parse(&text, &site.configuration())?
        .hsm
        .token;
    if let TokenSelector::Serial(serial) = selector {
        return Ok(Some(serial));
    }
    let mut named = Vec::new();
    for slot in slots {
        if selector.names(slot)? {
            named.push(slot.token.serial.clone());
        }
    }
    Ok(named.pop().filter(|_| named.is_empty()))
}
