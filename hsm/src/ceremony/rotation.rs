//! Another master key: made, marked as trusted, and, when every KEK is wrapped by it, the only one.

use cryptoki::session::UserType;
use cryptoki_sys::CKO_PUBLIC_KEY;

use super::destroy::{DestroyedObject, destroy_all};
use super::objects::TokenObject;
use super::token::{log_in, on_token};
use crate::config::{HsmConfig, KeyShape, TokenSelector};
use crate::error::HsmError;
use crate::fault::Fault;
use crate::keys::Keys;
use crate::keys::generation::{Generation, Numbered, numbers, parse};
use crate::pin::SecretPin;
use crate::provision::{make, or_nothing};
use crate::selector::Found;
use crate::selftest;
use crate::template::{MASTER, MEMORY_MASTER, TRANSFER};
use crate::trial::{Places, Trial, kek, transfer};
use crate::types::MasterGeneration;
use crate::watched::{Access, WatchedSession};

/// A newer generation than the one in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Successor {
    /// Of its generation.
    pub number: u32,
    /// The master key's public half, `SubjectPublicKeyInfo`, DER.
    pub master: Vec<u8>,
    /// The transfer key's.
    pub transfer: Vec<u8>,
    /// The memory master key's, if the token has one.
    pub memory_master: Option<Vec<u8>>,
}

/// Where a rotation of the master key stands, by what is on the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotationState {
    /// Every generation that can be used, oldest first.
    pub generations: Vec<MasterGeneration>,
    /// The newest, if it is not the oldest, and whole.
    pub successor: Option<Successor>,
    /// Generations of which only a part is there: a making or destruction was cut off.
    pub half_made: Vec<u32>,
}

pub(super) fn state(config: &HsmConfig) -> Result<RotationState, HsmError> {
    as_user(config, |watched| {
        let keys = Keys::check(watched, config.shape)?;
        let generations = keys.generations.describe();
        let half_made = numbers(watched)?
            .into_iter()
            .filter(|number| generations.iter().all(|known| known.number != *number))
            .collect();
        let newest = keys.generations.newest();
        Ok(RotationState {
            successor: newest.filter(|_| generations.len() > 1).and_then(successor),
            generations,
            half_made,
        })
    })
}

pub(super) fn make_successor(
    config: &HsmConfig,
    progress: &mut dyn FnMut(&str),
) -> Result<Successor, HsmError> {
    as_user(config, |watched| {
        let keys = Keys::check(watched, config.shape)?;
        let current = keys.generations.current();
        if current.transfer.is_none() {
            return Err(HsmError::NotMovable(
                "the token was made without a transfer key (`transfer = true` in the plan's [keys]); its keys can only be replaced by new ones"
                    .to_owned(),
            )
            .into());
        }
        let there = numbers(watched)?;
        if let Some(other) = there.iter().find(|number| **number != current.number) {
            return Err(HsmError::KeyExists(format!(
                "master key of generation {other} beside the one in force ({}): a rotation was begun and not ended",
                current.number
            ))
            .into());
        }
        let Some(number) = current.number.checked_add(1) else {
            return Err(HsmError::Rotation("this is the last generation".to_owned()).into());
        };
        // What is made here is this token's own, wherever its other keys came from.
        let shape = match config.shape {
            KeyShape::Moved => KeyShape::Movable,
            other => other,
        };
        let specs = [&MASTER, &TRANSFER]
            .into_iter()
            .chain(current.memory_master.is_some().then_some(&MEMORY_MASTER));
        or_nothing(watched, |made| {
            for spec in specs {
                let key = Numbered {
                    spec,
                    generation: number,
                };
                progress(&format!("{}, generation {number}", spec.making));
                made.extend(make(watched, key, shape)?);
            }
            progress("trying the transfer key");
            let key = Numbered {
                spec: &TRANSFER,
                generation: number,
            };
            if let Some(reason) = transfer::check_as_user(watched, key, Places::Session)? {
                return Err(HsmError::Unsupported(format!("a transfer key: {reason}")).into());
            }
            progress("check of all attributes");
            let keys = Keys::check(watched, config.shape)?;
            let made = keys.generations.newest();
            if let Some(generation) = made {
                let hash = selftest::preferred_oaep(watched)?;
                Trial::with(watched, hash, Places::Session, |trial| {
                    kek::check(trial, &generation.master)
                })?;
            }
            made.filter(|generation| generation.number == number)
                .and_then(successor)
                .ok_or_else(|| {
                    HsmError::Rotation(
                        "the new keys are not as they were asked for: see the log".to_owned(),
                    )
                    .into()
                })
        })
    })
}

pub(super) fn discard_successor(config: &HsmConfig) -> Result<Vec<DestroyedObject>, HsmError> {
    as_user(config, |watched| {
        let in_force = Keys::check(watched, config.shape)?
            .generations
            .current()
            .number;
        let newer = move |object: &TokenObject| {
            object.is_half_made()
                || parse(&object.label).is_some_and(|(key, _)| key.generation > in_force)
        };
        destroy_all(watched, newer)
    })
}

pub(super) fn trust_successor(
    config: &HsmConfig,
    so_pin: &SecretPin,
    successor: &Successor,
) -> Result<(), HsmError> {
    on_token(&config.module, &config.token, |watched, found| {
        log_in(watched, UserType::So, so_pin, &found.info)?;
        for (spec, spki) in [
            (&MASTER, &successor.master),
            (&TRANSFER, &successor.transfer),
        ] {
            let key = Numbered {
                spec,
                generation: successor.number,
            };
            // The numbers that the room has compared, not those that the token shows now.
            transfer::mark(watched, key, spki)?;
        }
        watched.session().logout()?;
        // The token's answer as the appliance will see it.
        Access::new(config.pin.clone()).login(watched)?;
        let keys = Keys::check(watched, config.shape)?;
        let current = keys.generations.current();
        if current.number == successor.number && current.trusted.is_some() {
            Ok(())
        } else {
            Err(HsmError::Rotation(format!(
                "the marks are made, but generation {} is still in force: see the log",
                current.number
            ))
            .into())
        }
    })
}

pub(super) fn retire(config: &HsmConfig) -> Result<Vec<DestroyedObject>, HsmError> {
    as_user(config, |watched| {
        let keys = Keys::check(watched, config.shape)?;
        let current = keys.generations.current();
        let in_force = current.number;
        let older = numbers(watched)?
            .into_iter()
            .any(|number| number < in_force);
        if let Some(newer) = numbers(watched)?
            .into_iter()
            .find(|number| *number > in_force)
        {
            return Err(HsmError::Rotation(format!(
                "generation {newer} of the master key is on the token and is not in force: nothing was destroyed"
            ))
            .into());
        }
        if older && current.trusted.is_none() {
            return Err(HsmError::Rotation(format!(
                "generation {in_force} is not marked as trusted: nothing was destroyed"
            ))
            .into());
        }
        let mut gone = destroy_all(watched, |object| {
            parse(&object.label).is_some_and(|(key, _)| key.generation < in_force)
        })?;
        // Last: as long as they are there, the newer generation is in force whatever is left of the
        // older.
        gone.extend(destroy_all(watched, |object| {
            object.class == CKO_PUBLIC_KEY
                && parse(&object.label).is_some_and(|(_, trusted)| trusted)
        })?);
        Ok(gone)
    })
}

/// Makes a mark for the master key that is there, moves a throwaway KEK by it, and removes it
/// again.
pub(super) fn try_transfer(
    module: &std::path::Path,
    selector: &TokenSelector,
    so_pin: &SecretPin,
    user_pin: &SecretPin,
) -> Result<(), HsmError> {
    on_token(module, selector, |watched, found| {
        let as_user = || log_in(watched, UserType::User, user_pin, &found.info);
        let transfer = Numbered::from(&TRANSFER);
        as_user()?;
        if let Some(reason) = transfer::check_as_user(watched, transfer, Places::Session)? {
            return Err(unfit(&reason));
        }
        let throwaway = transfer::Throwaway::new(watched, transfer)?;
        let (master, spki) = transfer::first_master(watched)?;
        watched.session().logout()?;

        log_in(watched, UserType::So, so_pin, &found.info)?;
        transfer::mark(watched, master, &spki)?;
        watched.session().logout()?;

        as_user()?;
        let mark = watched.find(CKO_PUBLIC_KEY, &master.trusted_label())?;
        let verdict = match mark.as_slice() {
            [mark] => throwaway.move_to(watched, transfer, *mark, master),
            _ => Ok(Some("a key that was marked as trusted is gone".to_owned())),
        };
        for mark in mark {
            watched.session().destroy_object(mark)?;
        }
        match verdict? {
            None => Ok(()),
            Some(reason) => Err(unfit(&reason)),
        }
    })
}

fn unfit(reason: &str) -> Fault {
    HsmError::Unsupported(format!("a transfer key: {reason}")).into()
}

fn successor(generation: &Generation) -> Option<Successor> {
    Some(Successor {
        number: generation.number,
        master: generation.master.spki.clone(),
        transfer: generation.transfer.as_ref()?.spki.clone(),
        memory_master: generation
            .memory_master
            .as_ref()
            .map(|pair| pair.spki.clone()),
    })
}

fn as_user<T>(
    config: &HsmConfig,
    body: impl FnOnce(&WatchedSession) -> Result<T, Fault>,
) -> Result<T, HsmError> {
    on_token(&config.module, &config.token, |watched, _: &Found| {
        Access::new(config.pin.clone()).login(watched)?;
        body(watched)
    })
}
