//! Slots, initialization, PINs.

use std::path::Path;

use zeroize::Zeroizing;

use super::SlotState;
use crate::config::TokenSelector;
use crate::error::HsmError;
use crate::pin::SecretPin;

pub(super) fn slots(_module: &Path) -> Result<Vec<SlotState>, HsmError> {
    Err(HsmError::Unsupported("listing slots yet".to_owned()))
}

pub(super) fn initialize(
    _module: &Path,
    _slot: u64,
    _label: &str,
    _so_pin: &SecretPin,
) -> Result<SlotState, HsmError> {
    Err(HsmError::Unsupported("initializing yet".to_owned()))
}

pub(super) fn set_user_pin(
    _module: &Path,
    _selector: &TokenSelector,
    _so_pin: &SecretPin,
    _user_pin: &SecretPin,
) -> Result<(), HsmError> {
    Err(HsmError::Unsupported("setting the user PIN yet".to_owned()))
}

pub(super) fn check_pins(
    _module: &Path,
    _selector: &TokenSelector,
    _so_pin: &SecretPin,
    _user_pin: &SecretPin,
) -> Result<(), HsmError> {
    Err(HsmError::Unsupported("checking PINs yet".to_owned()))
}

pub(super) fn random(
    _module: &Path,
    _selector: &TokenSelector,
    _user_pin: &SecretPin,
    _len: usize,
) -> Result<Zeroizing<Vec<u8>>, HsmError> {
    Err(HsmError::Unsupported("random bytes yet".to_owned()))
}
