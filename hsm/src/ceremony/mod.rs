//! What a key ceremony asks of a token: from an uninitialized one to one with the appliance's keys,
//! and back.
//!
//! Every function is one step that may be cut off by a power failure. Afterwards [`slots`] tells
//! how far the token's initialization came, and [`evidence`] how far its keys did; what is
//! half-made is removed by [`discard_unused_keys`] and made again.
//!
//! Each function logs in by itself and tries each PIN once.
//!
//! `SoftHSM` 2.6.1 rewrites a token's own file in place, in `C_InitToken`, in `C_InitPIN` and even
//! in each `C_Login`: a process that is killed within these microseconds may leave
//! [`TokenCondition::SoPinLocked`], or a token that [`slots`] does not show any more.

mod destroy;
mod evidence;
pub mod expected;
mod objects;
mod participant;
mod rotation;
mod text;
mod token;
mod transport;

use std::path::Path;

use zeroize::Zeroizing;

use crate::config::{HsmConfig, TokenSelector};
use crate::error::HsmError;
use crate::pin::SecretPin;
use crate::provision::{OptionalKeys, Provisioned};
use crate::types::TokenIdentity;

pub use destroy::{Destroyed, DestroyedObject};
pub use evidence::{Evidence, KeySet, ObjectEvidence};
pub use participant::{ParticipantKeys, ParticipantToken};
pub use rotation::{RotationState, Successor};

/// A slot with a token, initialized or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotState {
    /// The slot's number. It may change when the module is loaded again: keep the serial number
    /// instead.
    pub slot: u64,
    /// Which token; label and serial number of an uninitialized one may be empty.
    pub token: TokenIdentity,
    /// `CKF_TOKEN_INITIALIZED`.
    pub initialized: bool,
    /// `CKF_USER_PIN_INITIALIZED`.
    pub user_pin_set: bool,
    /// `CKF_USER_PIN_LOCKED`.
    pub user_pin_locked: bool,
    /// `CKF_SO_PIN_LOCKED`.
    pub so_pin_locked: bool,
}

/// How far a token's initialization came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenCondition {
    /// Not initialized: [`initialize_token`] is next.
    Blank,
    /// Initialized, but the SO PIN is locked; `SoftHSM` says so of a token whose `C_InitToken` was
    /// cut off. Only its maker's tool (for `SoftHSM`: deleting it) helps.
    SoPinLocked,
    /// Initialized, without a user PIN: [`set_user_pin`] is next.
    NoUserPin,
    /// Both PINs are set: [`evidence`] tells about the keys.
    Initialized,
    /// The user PIN is locked after wrong ones; [`set_user_pin`] sets it again.
    UserPinLocked,
}

impl SlotState {
    /// What the flags mean together.
    pub fn condition(&self) -> TokenCondition {
        if !self.initialized {
            TokenCondition::Blank
        } else if self.so_pin_locked {
            TokenCondition::SoPinLocked
        } else if !self.user_pin_set {
            TokenCondition::NoUserPin
        } else if self.user_pin_locked {
            TokenCondition::UserPinLocked
        } else {
            TokenCondition::Initialized
        }
    }
}

/// Every slot that holds a token. The module is started for it and left again.
pub fn slots(module: &Path) -> Result<Vec<SlotState>, HsmError> {
    token::slots(module)
}

/// `C_InitToken`: gives the token in that slot its label and SO PIN. Refuses an initialized one
/// with [`HsmError::TokenInitialized`]. The answer tells the token's serial number and the slot
/// that it is in from now on.
pub fn initialize_token(
    module: &Path,
    slot: u64,
    label: &str,
    so_pin: &SecretPin,
) -> Result<SlotState, HsmError> {
    token::initialize(module, slot, label, so_pin)
}

/// `C_InitPIN` as the security officer: sets the user PIN, for the first time or again.
pub fn set_user_pin(
    module: &Path,
    selector: &TokenSelector,
    so_pin: &SecretPin,
    user_pin: &SecretPin,
) -> Result<(), HsmError> {
    token::set_user_pin(module, selector, so_pin, user_pin)
}

/// Logs in with each PIN once; the first that is refused is the error ([`HsmError::Pin`] says whose
/// it is).
pub fn check_pins(
    module: &Path,
    selector: &TokenSelector,
    so_pin: &SecretPin,
    user_pin: &SecretPin,
) -> Result<(), HsmError> {
    token::check_pins(module, selector, so_pin, user_pin)
}

/// `len` bytes of the token's generator, for health tests of its entropy.
pub fn random(
    module: &Path,
    selector: &TokenSelector,
    user_pin: &SecretPin,
    len: usize,
) -> Result<Zeroizing<Vec<u8>>, HsmError> {
    token::random(module, selector, user_pin, len)
}

/// Makes the appliance's keys, as [`crate::Hsm::provision`] does.
pub fn make_keys(
    config: &HsmConfig,
    optional: OptionalKeys,
    progress: &mut dyn FnMut(&str),
) -> Result<Provisioned, HsmError> {
    crate::provision::provision(config, optional, progress)
}

/// Tries the transfer key as a rotation would use it, with a throwaway KEK and both PINs: the
/// security officer marks the master key that is there, a KEK is moved by it, and the mark is
/// removed. [`HsmError::Unsupported`] says why the token is not fit for a transfer key.
pub fn try_transfer(
    module: &Path,
    selector: &TokenSelector,
    so_pin: &SecretPin,
    user_pin: &SecretPin,
) -> Result<(), HsmError> {
    rotation::try_transfer(module, selector, so_pin, user_pin)
}

/// Which generations of the master key are on the token.
pub fn rotation_state(config: &HsmConfig) -> Result<RotationState, HsmError> {
    rotation::state(config)
}

/// Makes the next generation of master, transfer and, where there is one, memory master key. It is
/// not in force until [`trust_successor`]. [`HsmError::KeyExists`] if there is one already,
/// [`HsmError::NotMovable`] on a token without a transfer key.
pub fn make_successor(
    config: &HsmConfig,
    progress: &mut dyn FnMut(&str),
) -> Result<Successor, HsmError> {
    rotation::make_successor(config, progress)
}

/// Destroys whatever is newer than the generation in force, and objects whose making was cut off.
/// Not to be called once a successor was marked: KEKs may be wrapped by it, and its marks may be
/// gone.
pub fn discard_successor(config: &HsmConfig) -> Result<Vec<DestroyedObject>, HsmError> {
    rotation::discard_successor(config)
}

/// As the security officer: imports the successor's public keys, marked as trusted. From then on it
/// is in force. What is marked already stays.
pub fn trust_successor(
    config: &HsmConfig,
    so_pin: &SecretPin,
    successor: &Successor,
) -> Result<(), HsmError> {
    rotation::trust_successor(config, so_pin, successor)
}

/// Destroys every generation older than the one in force, and then the marks. Call it when no KEK
/// is wrapped by an older one. Cut off by a power failure, it may be called again; the list then
/// holds what was left.
pub fn retire_predecessors(config: &HsmConfig) -> Result<Vec<DestroyedObject>, HsmError> {
    rotation::retire(config)
}

/// Destroys every object of the appliance (label `strongroom-…`) that a power cut left behind, or
/// that no store was born with yet, and objects with neither label nor identifier, which `SoftHSM`
/// leaves of a key whose making was cut off in the middle. Answers their names, empty if there were
/// none. [`HsmError::KeysInUse`], and nothing is destroyed, if the epoch object is not empty: then
/// a store depends on the keys.
pub fn discard_unused_keys(config: &HsmConfig) -> Result<Vec<String>, HsmError> {
    destroy::discard_unused_keys(config)
}

/// All that the token tells of itself and of each object on it, and the state that its keys are in.
pub fn evidence(config: &HsmConfig) -> Result<Evidence, HsmError> {
    evidence::evidence(config)
}

/// A register's value, without a start of the whole appliance: also beside a server that runs.
/// `None` if it was never written.
pub fn read_register(
    config: &HsmConfig,
    register: crate::Register,
) -> Result<Option<Vec<u8>>, HsmError> {
    token::on_token(&config.module, &config.token, |watched, _| {
        crate::watched::Access::new(config.pin.clone()).login(watched)?;
        objects::steadily(|| register.read(watched))
    })
}

/// The key that signs the audit log, `SubjectPublicKeyInfo`, DER, once the token has shown that it
/// has the private half; and [`crate::Register::AuditEnd`]. As [`read_register`], also beside a
/// server that runs.
pub fn read_audit(config: &HsmConfig) -> Result<(Vec<u8>, Option<Vec<u8>>), HsmError> {
    token::on_token(&config.module, &config.token, |watched, _| {
        crate::watched::Access::new(config.pin.clone()).login(watched)?;
        let audit = crate::keys::Keys::audit(watched, config.shape)?;
        crate::selftest::ecdsa(watched, &audit)?;
        let end = objects::steadily(|| crate::Register::AuditEnd.read(watched))?;
        Ok((audit.spki, end))
    })
}

/// Destroys every object on the token, whoever made it, checks that none is left, and initializes
/// the token again. Cut off by a power failure, it may be called again; the list then holds what
/// was left.
pub fn destroy(config: &HsmConfig, so_pin: &SecretPin) -> Result<Destroyed, HsmError> {
    destroy::destroy(config, so_pin)
}

/// A key that was moved out of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MovedKey {
    /// `CKA_LABEL`: which key it is.
    pub label: String,
    /// The private or secret key under the transport key: RFC 5649 over PKCS#8, or over the key's
    /// bytes.
    pub wrapped: Vec<u8>,
    /// The public half, `SubjectPublicKeyInfo`, DER; none for a secret key.
    pub spki: Option<Vec<u8>>,
}

/// What the old token sealed, for the new one to open: nothing else proves that the keys are the
/// same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// A KEK of no other use, wrapped by the master key's public half.
    pub wrapped: Vec<u8>,
    /// With this hash.
    pub oaep: crate::OaepHash,
    /// What that KEK makes of a known text: ciphertext || tag, with a nonce of zeros.
    pub answer: Vec<u8>,
    /// Nonce of the next.
    pub iv: [u8; 12],
    /// The known text, sealed by the store key.
    pub sealed: Vec<u8>,
}

/// The epoch object's value when the keys were moved out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch(pub Vec<u8>);

/// Wraps every key that a second token needs, under a transport key that lives in the token for the
/// seconds of this call. [`HsmError::Unsupported`] with the reason if the keys are
/// [`crate::KeyShape::Fixed`], or if the token can't do it.
pub fn export_keys(
    config: &HsmConfig,
    so_pin: &SecretPin,
    transport: &[u8; 32],
) -> Result<(Vec<MovedKey>, Trial, Epoch), HsmError> {
    transport::export(config, so_pin, transport)
}

/// Unwraps them on an initialised token that has none, makes the keys that are each token's own,
/// checks all of it and tries it, and writes the epoch. Cut off before its end,
/// [`discard_unused_keys`] clears what it made.
pub fn import_keys(
    config: &HsmConfig,
    transport: &[u8; 32],
    moved: &[MovedKey],
    trial: &Trial,
    epoch: &Epoch,
    progress: &mut dyn FnMut(&str),
) -> Result<(), HsmError> {
    transport::import(config, transport, moved, trial, epoch, progress)
}
