//! Registers: small values on the token, each a data object. They tell what lies outside of it
//! (store, audit log, transcripts) and is rolled back or cut off from what is current.
//!
//! A token need not let `CKA_VALUE` be set (`SoftHSM` does not), so a new object is made before the
//! old one is destroyed. Each value begins with a sequence number, 8 bytes big-endian; of two
//! objects, after a crash between the two steps, the higher number counts.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki_sys::{CKA_VALUE, CKO_DATA};

use crate::error::HsmError;
use crate::fault::{Fault, Reach};
use crate::keys;
use crate::watched::WatchedSession;

/// One of the values that a token keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Register {
    /// What the store must be: made with the keys, empty until a store is born. While it is empty
    /// nothing depends on the keys.
    StoreEpoch,
    /// How far the audit log had come.
    AuditEnd,
    /// The last ceremony's transcript.
    CeremonyTranscript,
}

impl Register {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::StoreEpoch, Self::AuditEnd, Self::CeremonyTranscript];

    /// `CKA_LABEL` and `CKA_APPLICATION` of its object.
    pub const fn label(self) -> &'static str {
        match self {
            Self::StoreEpoch => "strongroom-epoch",
            Self::AuditEnd => "strongroom-audit-end",
            Self::CeremonyTranscript => "strongroom-transcript",
        }
    }

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::StoreEpoch => "epoch object",
            Self::AuditEnd => "end of the audit log",
            Self::CeremonyTranscript => "last transcript",
        }
    }

    /// The value with the highest sequence number, without that number; `None` if there is no
    /// object.
    pub(crate) fn read(self, watched: &WatchedSession) -> Result<Option<Vec<u8>>, Fault> {
        let latest = self
            .all(watched)?
            .into_iter()
            .max_by_key(|one| one.sequence);
        Ok(latest.map(|one| one.value))
    }

    /// As [`Register::read`], of one that was made with the keys.
    pub(crate) fn must_read(self, watched: &WatchedSession) -> Result<Vec<u8>, Fault> {
        Ok(self.read(watched)?.ok_or_else(|| self.missing(watched))?)
    }

    /// Makes the value the current one, and the object if there is none; durable when this returns,
    /// as far as the token is.
    pub(crate) fn write(self, watched: &WatchedSession, value: &[u8]) -> Result<(), Fault> {
        self.replace(watched, self.all(watched)?, value)
    }

    /// As [`Register::write`], of one that was made with the keys: a token that lost it has lost
    /// what it said.
    pub(crate) fn must_write(self, watched: &WatchedSession, value: &[u8]) -> Result<(), Fault> {
        let old = self.all(watched)?;
        if old.is_empty() {
            return Err(self.missing(watched).into());
        }
        self.replace(watched, old, value)
    }

    fn replace(
        self,
        watched: &WatchedSession,
        old: Vec<Stored>,
        value: &[u8],
    ) -> Result<(), Fault> {
        let last = old.iter().map(|one| one.sequence).max().unwrap_or_default();
        let sequence = last
            .checked_add(1)
            .ok_or_else(|| self.broken("CKA_VALUE", "has reached the last sequence number"))?;
        self.make(watched, sequence, value)?;
        for one in old {
            watched.session().destroy_object(one.handle)?;
        }
        Ok(())
    }

    /// The first, empty value.
    pub(crate) fn create(self, watched: &WatchedSession) -> Result<ObjectHandle, Fault> {
        self.make(watched, 1, &[])
    }

    pub(crate) fn exists(self, watched: &WatchedSession) -> Result<bool, Fault> {
        Ok(!watched.find(CKO_DATA, self.label())?.is_empty())
    }

    fn all(self, watched: &WatchedSession) -> Result<Vec<Stored>, Fault> {
        watched
            .find(CKO_DATA, self.label())?
            .into_iter()
            .map(|handle| {
                let bytes = watched
                    .raw()
                    .attribute(watched.session(), handle, CKA_VALUE)?;
                let (sequence, value) = bytes
                    .as_deref()
                    .and_then(<[u8]>::split_first_chunk)
                    .ok_or_else(|| self.broken("CKA_VALUE", "holds no sequence number"))?;
                Ok(Stored {
                    handle,
                    sequence: u64::from_be_bytes(*sequence),
                    value: value.to_vec(),
                })
            })
            .collect()
    }

    /// `SoftHSM` now and then answers `CKR_GENERAL_ERROR` while another thread looks for objects:
    /// then once more. What such a call may have left behind has the same value.
    fn make(
        self,
        watched: &WatchedSession,
        sequence: u64,
        value: &[u8],
    ) -> Result<ObjectHandle, Fault> {
        match self.try_to_make(watched, sequence, value) {
            Err(fault) if fault.reach() == Reach::Unclear => {
                self.try_to_make(watched, sequence, value)
            }
            other => other,
        }
    }

    fn try_to_make(
        self,
        watched: &WatchedSession,
        sequence: u64,
        value: &[u8],
    ) -> Result<ObjectHandle, Fault> {
        let mut bytes = sequence.to_be_bytes().to_vec();
        bytes.extend_from_slice(value);
        Ok(watched.session().create_object(&[
            Attribute::Class(ObjectClass::DATA),
            Attribute::Label(self.label().into()),
            Attribute::Application(self.label().into()),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Modifiable(false),
            Attribute::Value(bytes),
        ])?)
    }

    fn missing(self, watched: &WatchedSession) -> HsmError {
        HsmError::Missing {
            name: self.name().to_owned(),
            label: self.label().to_owned(),
            there: keys::there(watched),
        }
    }

    fn broken(self, attribute: &str, problem: &str) -> HsmError {
        HsmError::KeyPolicy {
            key: self.name().to_owned(),
            attribute: attribute.to_owned(),
            problem: problem.to_owned(),
        }
    }
}

/// The registers that were on the token. One that was there and is not to be seen is away, not
/// gone: making it again would begin its sequence at 1, beside the true one.
#[derive(Default)]
pub(crate) struct KnownRegisters(Mutex<BTreeSet<Register>>);

impl KnownRegisters {
    /// As [`Register::read`]; [`HsmError::Missing`] of one that was there, and of any on a token
    /// that shows nothing.
    pub(crate) fn read(
        &self,
        register: Register,
        watched: &WatchedSession,
    ) -> Result<Option<Vec<u8>>, Fault> {
        let value = register.read(watched)?;
        if value.is_some() {
            self.saw(register);
        } else {
            self.may_be_absent(register, watched)?;
        }
        Ok(value)
    }

    /// As [`Register::write`], and never beside one that is not to be seen.
    pub(crate) fn write(
        &self,
        register: Register,
        watched: &WatchedSession,
        value: &[u8],
    ) -> Result<(), Fault> {
        let old = register.all(watched)?;
        if old.is_empty() {
            self.may_be_absent(register, watched)?;
        }
        register.replace(watched, old, value)?;
        self.saw(register);
        Ok(())
    }

    /// The store's epoch is on each token of an appliance: one that does not show it shows no
    /// register.
    fn may_be_absent(&self, register: Register, watched: &WatchedSession) -> Result<(), Fault> {
        if self.lock().contains(&register) {
            return Err(register.missing(watched).into());
        }
        Register::StoreEpoch.must_read(watched).map(drop)
    }

    fn saw(&self, register: Register) {
        self.lock().insert(register);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<Register>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Stored {
    handle: ObjectHandle,
    sequence: u64,
    value: Vec<u8>,
}
