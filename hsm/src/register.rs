//! Registers: small values on the token, each a data object. They tell what lies outside of it
//! (store, audit log, transcripts) and is rolled back or cut off from what is current.
//!
//! A token need not let `CKA_VALUE` be set (`SoftHSM` does not), so a new object is made before the
//! old one is destroyed. Each value begins with a sequence number, 8 bytes big-endian; of two
//! objects, after a crash between the two steps, the higher number counts.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki_sys::{CKA_VALUE, CKO_DATA};

use crate::error::HsmError;
use crate::fault::{Fault, Reach};
use crate::keys;
use crate::watched::WatchedSession;

/// How often a register is looked at before it counts as away, and the pause after each.
const MAX_LOOKS: u32 = 10;
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

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
        Ok(latest(self.all(watched)?).map(|one| one.value))
    }

    /// As [`Register::read`], of one that was made with the keys.
    pub(crate) fn must_read(self, watched: &WatchedSession) -> Result<Vec<u8>, Fault> {
        Ok(self.read(watched)?.ok_or_else(|| self.missing(watched))?)
    }

    /// Makes the value the current one, and the object if there is none; durable when this returns,
    /// as far as the token is.
    pub(crate) fn write(self, watched: &WatchedSession, value: &[u8]) -> Result<(), Fault> {
        self.replace(watched, self.all(watched)?, value).map(drop)
    }

    /// The new object's sequence number.
    fn replace(
        self,
        watched: &WatchedSession,
        old: Vec<Stored>,
        value: &[u8],
    ) -> Result<u64, Fault> {
        let sequence = last(&old)
            .unwrap_or_default()
            .checked_add(1)
            .ok_or_else(|| self.not_as_it_was("has reached its last sequence number"))?;
        self.make(watched, sequence, value)?;
        for one in old {
            watched.session().destroy_object(one.handle)?;
        }
        Ok(sequence)
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
                    .ok_or_else(|| self.not_as_it_was("is not whole: it has no value"))?;
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

    fn not_as_it_was(self, problem: &str) -> HsmError {
        HsmError::Register {
            name: self.name().to_owned(),
            problem: problem.to_owned(),
        }
    }
}

fn latest(stored: Vec<Stored>) -> Option<Stored> {
    stored.into_iter().max_by_key(|one| one.sequence)
}

fn last(stored: &[Stored]) -> Option<u64> {
    stored.iter().map(|one| one.sequence).max()
}

/// The registers that were on the token, each with the highest sequence number that was seen of it.
/// One that was there and is not to be seen is away, not gone: making it again would begin its
/// sequence at 1, beside the true one. And one with a lower number than before is an old copy.
#[derive(Default)]
pub(crate) struct KnownRegisters(Mutex<BTreeMap<Register, u64>>);

impl KnownRegisters {
    /// As [`Register::read`]; [`HsmError::Missing`] of one that was there, and of any on a token
    /// that shows nothing, [`HsmError::Register`] of one that is not as it was.
    pub(crate) fn read(
        &self,
        register: Register,
        watched: &WatchedSession,
    ) -> Result<Option<Vec<u8>>, Fault> {
        let found = self.look(register, watched)?;
        if found.is_empty() {
            self.may_be_absent(register, watched)?;
        }
        Ok(latest(found).map(|one| one.value))
    }

    /// As [`Register::write`], and never beside one that is not to be seen or not as it was.
    pub(crate) fn write(
        &self,
        register: Register,
        watched: &WatchedSession,
        value: &[u8],
    ) -> Result<(), Fault> {
        let old = self.look(register, watched)?;
        if old.is_empty() {
            self.may_be_absent(register, watched)?;
        }
        let sequence = register.replace(watched, old, value)?;
        self.saw(register, sequence);
        Ok(())
    }

    /// Whether a token that was connected to again is the one that was left: what it kept then it
    /// keeps now. Of the first connection this learns what there is.
    pub(crate) fn check(&self, watched: &WatchedSession) -> Result<(), Fault> {
        for register in Register::ALL {
            self.look(register, watched)?;
        }
        Ok(())
    }

    /// All that there is of a register; nothing is right only of one that was never there. It may
    /// be just being written, and another session may have replaced it in the middle of a look.
    fn look(&self, register: Register, watched: &WatchedSession) -> Result<Vec<Stored>, Fault> {
        for _ in 1..MAX_LOOKS {
            match self.look_once(register, watched) {
                Err(Fault::Own(HsmError::Missing { .. } | HsmError::Register { .. })) => {
                    thread::sleep(LOOK_INTERVAL);
                }
                seen => return seen,
            }
        }
        self.look_once(register, watched)
    }

    fn look_once(
        &self,
        register: Register,
        watched: &WatchedSession,
    ) -> Result<Vec<Stored>, Fault> {
        let found = register.all(watched)?;
        let known = self.lock().get(&register).copied();
        match (last(&found), known) {
            (Some(last), Some(known)) if last < known => Err(register
                .not_as_it_was(
                    "is an older one than was there: put the newest state of the token back",
                )
                .into()),
            (Some(last), _) => {
                self.saw(register, last);
                Ok(found)
            }
            (None, Some(_)) => Err(register.missing(watched).into()),
            (None, None) => Ok(found),
        }
    }

    /// The store's epoch is on each token of an appliance: one that does not show it shows no
    /// register.
    fn may_be_absent(&self, register: Register, watched: &WatchedSession) -> Result<(), Fault> {
        if register == Register::StoreEpoch || self.look(Register::StoreEpoch, watched)?.is_empty()
        {
            return Err(Register::StoreEpoch.missing(watched).into());
        }
        Ok(())
    }

    fn saw(&self, register: Register, sequence: u64) {
        let mut known = self.lock();
        let last = known.entry(register).or_default();
        *last = sequence.max(*last);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Register, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Stored {
    handle: ObjectHandle,
    sequence: u64,
    value: Vec<u8>,
}
