//! Making the appliance's keys on an empty token.

use std::sync::Arc;

use cryptoki::object::ObjectHandle;

use crate::config::{HsmConfig, KeyShape};
use crate::error::HsmError;
use crate::fault::Fault;
use crate::keys::generation::Numbered;
use crate::keys::{self, Keys};
use crate::module::Module;
use crate::register::Register;
use crate::selector::TokenFilter;
use crate::selftest;
use crate::template::{MEMORY_MASTER, REQUIRED, TRANSFER};
use crate::trial::{self, Places, Trial, kek, kept, transfer};
use crate::watched::{Access, Watch, WatchedSession};

/// Keys that an appliance may have or not; what is made in its initial ceremony can't be added
/// later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OptionalKeys {
    /// The second master key, which `memory` residency needs.
    pub memory_master: bool,
    /// The transfer key, without which KEKs can never be moved to another master key.
    pub transfer: bool,
}

impl OptionalKeys {
    /// Every one.
    pub const ALL: Self = Self {
        memory_master: true,
        transfer: true,
    };
}

/// What provisioning made besides the keys that every appliance has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provisioned {
    /// What became of the transfer key.
    pub transfer: TransferKey,
}

/// What became of the transfer key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferKey {
    /// It is there, and the token keeps what it unwraps as it must.
    Made,
    /// It was not asked for.
    NotAsked,
    /// The token is not fit for one, which is why; there is none.
    Unsupported(String),
}

/// See [`crate::Hsm::provision`].
pub(crate) fn provision(
    config: &HsmConfig,
    optional: OptionalKeys,
    progress: &mut dyn FnMut(&str),
) -> Result<Provisioned, HsmError> {
    let wanted = TokenFilter::new(&config.token)?;
    let module = Module::acquire(&config.module).map_err(Fault::into_error)?;
    let result = on_token(&module, config, &wanted, optional, progress);
    module.release(false);
    result.map_err(Fault::into_error)
}

fn on_token(
    module: &Module,
    config: &HsmConfig,
    wanted: &TokenFilter,
    optional: OptionalKeys,
    progress: &mut dyn FnMut(&str),
) -> Result<Provisioned, Fault> {
    let library = module.library();
    let found = wanted.find(&library.raw)?;
    let watched = WatchedSession::open(library, found.slot, Arc::new(Watch::default()))?;
    let result = Access::new(config.pin.clone())
        .login(&watched)
        .and_then(|()| make_all(&watched, config.shape, optional, progress));
    watched.close();
    result
}

fn make_all(
    watched: &WatchedSession,
    shape: KeyShape,
    optional: OptionalKeys,
    progress: &mut dyn FnMut(&str),
) -> Result<Provisioned, Fault> {
    if let Some(name) = keys::existing(watched)? {
        return Err(HsmError::KeyExists(name).into());
    }
    // What an earlier appliance left there would be held against the new one's store and log.
    for register in [Register::StoreEpoch, Register::AuditEnd] {
        if register.exists(watched)? {
            return Err(HsmError::KeyExists(register.name().to_owned()).into());
        }
    }
    or_nothing(watched, |made| {
        make_each(watched, shape, optional, progress, made)
    })
}

/// Destroys what `body` has made if it fails: a half-made set would make the next attempt say that
/// keys exist.
pub(crate) fn or_nothing<T>(
    watched: &WatchedSession,
    body: impl FnOnce(&mut Vec<ObjectHandle>) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let mut made = Vec::new();
    let result = body(&mut made);
    if result.is_err() {
        for object in made {
            if let Err(error) = watched.session().destroy_object(object) {
                tracing::warn!(%error, "an object of the failed key generation is left on the token");
            }
        }
    }
    result
}

fn make_each(
    watched: &WatchedSession,
    shape: KeyShape,
    optional: OptionalKeys,
    progress: &mut dyn FnMut(&str),
    made: &mut Vec<ObjectHandle>,
) -> Result<Provisioned, Fault> {
    let memory_master = optional.memory_master.then_some(&MEMORY_MASTER);
    for spec in REQUIRED.into_iter().chain(memory_master) {
        progress(spec.making);
        made.extend(make(watched, spec.into(), shape)?);
    }
    let transfer = if optional.transfer {
        progress(TRANSFER.making);
        make_transfer(watched, shape, made)?
    } else {
        TransferKey::NotAsked
    };
    progress(Register::StoreEpoch.name());
    made.push(Register::StoreEpoch.create(watched)?);
    // What the token made of the templates, not what they asked for.
    progress("check of all attributes");
    let keys = Keys::check(watched, shape)?;
    progress("trial of what must be refused");
    let hash = selftest::preferred_oaep(watched)?;
    let master = &keys.generations.current().master;
    Trial::with(watched, hash, Places::Session, |trial| {
        kek::check(trial, master)
    })?;
    // Of what goes under trusted keys only the transfer key was tried when it was made.
    if shape == KeyShape::Fixed {
        Trial::with(watched, hash, Places::Session, |trial| {
            kept::check(trial, &keys)
        })?;
    } else {
        trial::at_start(watched, &keys, shape, hash, Places::Token)?;
    }
    Ok(Provisioned { transfer })
}

/// The transfer key, unless the token does not make one, or one that does not keep what it unwraps.
fn make_transfer(
    watched: &WatchedSession,
    shape: KeyShape,
    made: &mut Vec<ObjectHandle>,
) -> Result<TransferKey, Fault> {
    let key = Numbered::from(&TRANSFER);
    let objects = match make(watched, key, shape) {
        Ok(objects) => objects,
        Err(fault) if fault.refuses_template() => {
            return Ok(TransferKey::Unsupported(format!(
                "the token does not make it: {fault}"
            )));
        }
        Err(fault) => return Err(fault),
    };
    let verdict = transfer::check_as_user(watched, key, Places::Token);
    let reason = match verdict {
        Ok(None) => {
            made.extend(objects);
            return Ok(TransferKey::Made);
        }
        Ok(Some(reason)) => reason,
        Err(fault) => {
            made.extend(objects);
            return Err(fault);
        }
    };
    for object in objects {
        watched.session().destroy_object(object)?;
    }
    Ok(TransferKey::Unsupported(reason))
}

/// Makes a key as its template says, and without those attributes that a token need not know if it
/// refuses them.
pub(crate) fn make(
    watched: &WatchedSession,
    key: Numbered<'_>,
    shape: KeyShape,
) -> Result<Vec<ObjectHandle>, Fault> {
    let (public, private) = (key.public_rules(shape), key.private_rules(shape));
    let attempt = |with_optional: bool| -> Result<Vec<ObjectHandle>, Fault> {
        let private: Vec<_> = private
            .iter()
            .filter(|rule| rule.asked(with_optional))
            .map(|rule| {
                if with_optional {
                    rule.clone()
                } else {
                    rule.without_optional()
                }
            })
            .collect();
        let private = private.iter();
        if key.spec.public.is_some() {
            let public = public.iter().filter(|rule| rule.asked(with_optional));
            let (public, private) = watched.raw().generate_key_pair(
                watched.session(),
                key.spec.mechanism,
                public,
                private,
            )?;
            Ok(vec![public, private])
        } else {
            Ok(vec![watched.raw().generate_key(
                watched.session(),
                key.spec.mechanism,
                private,
            )?])
        }
    };
    match attempt(true) {
        Err(fault) if fault.refuses_template() => attempt(false),
        other => other,
    }
}
