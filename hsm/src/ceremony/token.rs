//! Slots, initialization, PINs.

use std::path::Path;
use std::sync::Arc;

use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};
use cryptoki::session::UserType;
use cryptoki::slot::{Slot, TokenInfo};
use zeroize::Zeroizing;

use super::{SlotState, TokenCondition};
use crate::config::{PinSource, TokenSelector};
use crate::error::HsmError;
use crate::fault::{Fault, code_name};
use crate::ffi::Raw;
use crate::module::Module;
use crate::pin::SecretPin;
use crate::selector::{Found, TokenFilter};
use crate::types::TokenIdentity;
use crate::watched::{Access, Watch, WatchedSession};

/// `CK_TOKEN_INFO.label` has room for this many bytes.
const MAX_LABEL_BYTES: usize = 32;
/// More random bytes than this come in several calls.
const MAX_RANDOM_PER_CALL: usize = 64 * 1024;

pub(super) fn slots(module: &Path) -> Result<Vec<SlotState>, HsmError> {
    with_module(module, |module| list(&module.library().raw))
}

pub(super) fn initialize(
    module: &Path,
    slot: u64,
    label: &str,
    so_pin: &SecretPin,
) -> Result<SlotState, HsmError> {
    check_label(label)?;
    with_module(module, |module| {
        let all = list(&module.library().raw)?;
        let Some(state) = all.iter().find(|state| state.slot == slot) else {
            let seen: Vec<_> = all.iter().map(|state| state.slot.to_string()).collect();
            return Err(HsmError::Config(format!(
                "there is no token in slot {slot}; slots with a token: {}",
                seen.join(", ")
            ))
            .into());
        };
        // A second token of the same label could not be told from the first by it: after a power
        // cut it is the first that goes on.
        let same_label = all
            .iter()
            .find(|other| other.initialized && other.token.label == label);
        if let Some(initialized) = state.initialized.then_some(state).or(same_label) {
            if initialized.condition() == TokenCondition::SoPinLocked {
                return Err(locked(initialized).into());
            }
            return Err(HsmError::TokenInitialized {
                label: initialized.token.label.clone(),
                serial: initialized.token.serial.clone(),
            }
            .into());
        }
        init_token(module, slot, label, so_pin)
    })
}

/// `C_InitToken`, whatever is on the token. Its slot may be another afterwards, so it is found by
/// its serial number.
pub(super) fn init_token(
    module: &Module,
    slot: u64,
    label: &str,
    so_pin: &SecretPin,
) -> Result<SlotState, Fault> {
    let library = module.library();
    let slot = Slot::try_from(slot)?;
    let info = library.raw.token_info(slot)?;
    check_length(&info, so_pin)?;
    library
        .raw
        .init_token(slot, so_pin.text()?, label)
        .map_err(|error| pin_fault(error, "SO PIN"))?;
    let info = library.raw.token_info(slot)?;
    let serial = info.serial_number().to_owned();
    // SoftHSM gives a new token its slot number when it is loaded again.
    module.restart()?;
    list(&library.raw)?
        .into_iter()
        .find(|state| state.initialized && state.token.serial == serial && state.token.label == label)
        .ok_or_else(|| {
            HsmError::Unavailable(format!(
                "the token was initialized with the label {label:?} and has the serial number {serial}, but is not found any more"
            ))
            .into()
        })
}

pub(super) fn set_user_pin(
    module: &Path,
    selector: &TokenSelector,
    so_pin: &SecretPin,
    user_pin: &SecretPin,
) -> Result<(), HsmError> {
    on_token(module, selector, |watched, found| {
        check_length(&found.info, user_pin)?;
        log_in(watched, UserType::So, so_pin, &found.info)?;
        watched
            .session()
            .init_pin(user_pin.text()?)
            .map_err(|error| pin_fault(error, "user PIN"))?;
        watched.session().logout()?;
        Ok(())
    })
}

pub(super) fn check_pins(
    module: &Path,
    selector: &TokenSelector,
    so_pin: &SecretPin,
    user_pin: &SecretPin,
) -> Result<(), HsmError> {
    on_token(module, selector, |watched, found| {
        for (user, pin) in [(UserType::So, so_pin), (UserType::User, user_pin)] {
            log_in(watched, user, pin, &found.info)?;
            watched.session().logout()?;
        }
        Ok(())
    })
}

pub(super) fn random(
    module: &Path,
    selector: &TokenSelector,
    user_pin: &SecretPin,
    len: usize,
) -> Result<Zeroizing<Vec<u8>>, HsmError> {
    on_token(module, selector, |watched, _| {
        Access::new(PinSource::Given(user_pin.clone())).login(watched)?;
        let mut bytes = Zeroizing::new(vec![0; len]);
        for chunk in bytes.chunks_mut(MAX_RANDOM_PER_CALL) {
            watched.session().generate_random_slice(chunk)?;
        }
        Ok(bytes)
    })
}

/// Starts the module for `body`.
pub(super) fn with_module<T>(
    path: &Path,
    body: impl FnOnce(&Module) -> Result<T, Fault>,
) -> Result<T, HsmError> {
    let module = Module::acquire(path).map_err(Fault::into_error)?;
    let result = body(&module);
    module.release(false);
    result.map_err(Fault::into_error)
}

/// Opens a session for `body`, not logged in. Closing it ends whatever login it made.
pub(super) fn on_token<T>(
    module: &Path,
    selector: &TokenSelector,
    body: impl FnOnce(&WatchedSession, &Found) -> Result<T, Fault>,
) -> Result<T, HsmError> {
    let wanted = TokenFilter::new(selector)?;
    with_module(module, |module| {
        let library = module.library();
        let found = wanted.find(&library.raw)?;
        let watched = WatchedSession::open(library, found.slot, Arc::new(Watch::default()))?;
        let result = body(&watched, &found);
        watched.close();
        result
    })
}

/// Tries the PIN once, truly: a login that somebody else made says nothing about it.
pub(super) fn log_in(
    watched: &WatchedSession,
    user: UserType,
    pin: &SecretPin,
    info: &TokenInfo,
) -> Result<(), Fault> {
    let (whose, locked, flag) = match user {
        UserType::So => ("SO PIN", info.so_pin_locked(), "CKF_SO_PIN_LOCKED"),
        _ => ("user PIN", info.user_pin_locked(), "CKF_USER_PIN_LOCKED"),
    };
    if locked {
        return Err(HsmError::Pin(format!("{whose}: {flag}")).into());
    }
    watched
        .session()
        .login(user, pin.expose())
        .map_err(|error| pin_fault(error, whose))
}

/// What the token said of a PIN, with whose it is.
fn pin_fault(error: Error, whose: &str) -> Fault {
    match Fault::from(error) {
        Fault::Token(
            code @ (RvError::PinIncorrect
            | RvError::PinInvalid
            | RvError::PinLenRange
            | RvError::PinExpired
            | RvError::PinLocked
            | RvError::UserPinNotInitialized),
            Function::Login | Function::InitToken | Function::InitPIN,
        ) => HsmError::Pin(format!("{whose}: {}", code_name(code))).into(),
        Fault::Token(
            code @ (RvError::SessionExists
            | RvError::SessionReadOnlyExists
            | RvError::UserAlreadyLoggedIn
            | RvError::UserAnotherAlreadyLoggedIn
            | RvError::UserTooManyTypes),
            _,
        ) => HsmError::TokenInUse(code_name(code)).into(),
        other => other,
    }
}

fn list(raw: &Raw) -> Result<Vec<SlotState>, Fault> {
    let mut states = Vec::new();
    for slot in raw.slots_with_token()? {
        // A token may go between the two calls.
        let Ok(info) = raw.token_info(slot) else {
            continue;
        };
        states.push(SlotState {
            slot: slot.id(),
            token: TokenIdentity {
                label: info.label().to_owned(),
                serial: info.serial_number().to_owned(),
                manufacturer: info.manufacturer_id().to_owned(),
                model: info.model().to_owned(),
            },
            initialized: info.token_initialized(),
            user_pin_set: info.user_pin_initialized(),
            user_pin_locked: info.user_pin_locked(),
            so_pin_locked: info.so_pin_locked(),
        });
    }
    Ok(states)
}

/// A token that nobody can use: `SoftHSM` leaves one when `C_InitToken` is cut off in the middle.
fn locked(state: &SlotState) -> HsmError {
    let TokenIdentity { label, serial, .. } = &state.token;
    HsmError::Config(format!(
        "the SO PIN of the token {label:?} (serial {serial}) is locked: either wrong PINs were tried, or its initialization was cut off; \
         nothing was changed. If nothing depends on it, have it erased (SoftHSM: softhsm2-util --delete-token --serial {serial}) and try again"
    ))
}

fn check_label(label: &str) -> Result<(), HsmError> {
    let problem = if label.is_empty() || label.len() > MAX_LABEL_BYTES {
        "must be 1 to 32 bytes long"
    } else if label.trim() != label || label.chars().any(char::is_control) {
        // Tokens pad it with blanks.
        "must not begin or end with a blank or hold control characters"
    } else {
        return Ok(());
    };
    Err(HsmError::Config(format!(
        "the token label {label:?} {problem}"
    )))
}

fn check_length(info: &TokenInfo, pin: &SecretPin) -> Result<(), HsmError> {
    let (least, most) = (info.min_pin_length(), info.max_pin_length());
    // Some modules leave these at 0 until the token is initialized.
    if most == 0 || (least..=most).contains(&pin.expose().len()) {
        return Ok(());
    }
    Err(HsmError::Config(format!(
        "the token takes PINs of {least} to {most} bytes, and the new one is not so"
    )))
}
