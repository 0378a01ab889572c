//! Objects that go: half-made keys, and everything at the end of a token's life.

use std::sync::Arc;

use cryptoki::session::UserType;

use super::objects::{self, TokenObject};
use super::token::{init_token, log_in, on_token, with_module};
use crate::config::HsmConfig;
use crate::error::HsmError;
use crate::fault::{Fault, Reach};
use crate::pin;
use crate::pin::SecretPin;
use crate::register::Register;
use crate::selector::{Found, TokenFilter};
use crate::types::TokenIdentity;
use crate::watched::{Access, Watch, WatchedSession};

/// The evidence that a token was emptied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destroyed {
    /// The token before.
    pub before: TokenIdentity,
    /// Whether objects that only the user may see are in the list: `false` if the token had no
    /// user PIN, and so no such objects, or a power cut had come after its `C_InitToken`.
    pub as_user: bool,
    /// Each object, in the order of its destruction.
    pub objects: Vec<DestroyedObject>,
    /// Objects that were found afterwards, before `C_InitToken`: always 0, as anything else is an
    /// error.
    pub left: usize,
    /// The token after `C_InitToken`: the same label, no user PIN. A new serial number only where
    /// the token makes one.
    pub after: TokenIdentity,
}

/// An object that is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestroyedObject {
    /// "master key", ..., "not of the appliance".
    pub name: String,
    /// `CKO_PRIVATE_KEY`, ...
    pub class: String,
    /// `CKA_LABEL`.
    pub label: String,
}

pub(super) fn discard_unused_keys(config: &HsmConfig) -> Result<Vec<String>, HsmError> {
    on_token(&config.module, &config.token, |watched, _| {
        Access::new(config.pin.clone()).login(watched)?;
        // An epoch object that can't be read is an error here: it may be a store's.
        let epoch = Register::StoreEpoch.read(watched)?;
        if epoch.is_some_and(|value| !value.is_empty()) {
            let problem = "the epoch object has a value, so a store was born with them";
            return Err(HsmError::KeysInUse(problem.to_owned()).into());
        }
        let ours = |object: &TokenObject| object.is_ours();
        // The epoch object comes after the keys in the list: while keys are left, it goes on saying
        // that nothing depends on them.
        let gone = destroy_all(watched, ours)?;
        Ok(gone.into_iter().map(|object| object.name).collect())
    })
}

pub(super) fn destroy(config: &HsmConfig, so_pin: &SecretPin) -> Result<Destroyed, HsmError> {
    let wanted = TokenFilter::new(&config.token)?;
    with_module(&config.module, |module| {
        let library = module.library();
        let found = wanted.find(&library.raw)?;
        let watched = WatchedSession::open(library, found.slot, Arc::new(Watch::default()))?;
        let result = empty(&watched, &found, config, so_pin);
        // C_InitToken wants no session.
        watched.close();
        let objects = result?;
        let before = found.identity;
        let state = init_token(module, found.slot.id(), &before.label, so_pin)?;
        Ok(Destroyed {
            before,
            as_user: found.info.user_pin_initialized(),
            objects,
            left: 0,
            after: state.token,
        })
    })
}

/// Both PINs are tried before anything is destroyed: a wrong one must not leave half a token.
fn empty(
    watched: &WatchedSession,
    found: &Found,
    config: &HsmConfig,
    so_pin: &SecretPin,
) -> Result<Vec<DestroyedObject>, Fault> {
    log_in(watched, UserType::So, so_pin, &found.info)?;
    watched.session().logout()?;
    if found.info.user_pin_initialized() {
        log_in(
            watched,
            UserType::User,
            &pin::read(&config.pin)?,
            &found.info,
        )?;
    }
    destroy_all(watched, |_| true)
}

/// Destroys what is `wanted` and looks whether it is gone.
pub(super) fn destroy_all(
    watched: &WatchedSession,
    wanted: impl Fn(&TokenObject) -> bool,
) -> Result<Vec<DestroyedObject>, Fault> {
    let objects: Vec<_> = objects::all(watched)?.into_iter().filter(&wanted).collect();
    for object in &objects {
        if let Err(error) = watched.session().destroy_object(object.handle) {
            // One that the token keeps (CKA_DESTROYABLE=false, say) does not save the others;
            // whether it is gone is seen below.
            let fault = Fault::from(error);
            if !matches!(fault.reach(), Reach::Item | Reach::Unclear) {
                return Err(fault);
            }
            tracing::warn!(%fault, label = object.label, "an object was not destroyed as it should be");
        }
    }
    let left: Vec<_> = objects::all(watched)?
        .iter()
        .filter(|object| wanted(object))
        .map(|object| {
            format!(
                "{} {:?} ({})",
                object.class_name(),
                object.label,
                object.name
            )
        })
        .collect();
    if !left.is_empty() {
        return Err(HsmError::NotDestroyed(left).into());
    }
    Ok(objects
        .into_iter()
        .map(|object| DestroyedObject {
            class: object.class_name(),
            name: object.name,
            label: object.label,
        })
        .collect())
}
