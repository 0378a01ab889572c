//! The sealed store: records encrypted and authenticated with the HSM's store key, bound to their place,
//! and to an epoch that the HSM keeps, so that an altered, swapped or rolled-back store is never used.
//!
//! The format is published in `docs/store-format.md`.

use std::path::Path;
use strongroom_hsm::{Hsm, HsmError};
use zeroize::Zeroizing;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// A named key's settings (version 0).
    Key = 1,
    /// One version of a named key: its wrapped KEK.
    KeyVersion = 2,
    /// The encryptions reserved for one version of a named key.
    UseCounter = 3,
}

/// A record's place: what it is bound to besides the store id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId {
    /// What it is about.
    pub kind: RecordKind,
    /// The key's name.
    pub name: String,
    /// The key's version, 0 for the key as a whole.
    pub version: u32,
}

/// One change of a commit.
pub enum Change {
    /// Write or replace.
    Put(RecordId, Zeroizing<Vec<u8>>),
    /// Remove; no error if it isn't there.
    Delete(RecordId),
}

/// The store, open and verified.
pub struct Store {}

/// What `strongroom store accept-rollback` did, for the audit log.
#[derive(Clone, Debug)]
pub struct AcceptedRollback {
    /// The epoch the HSM held.
    pub hsm_epoch: u64,
    /// The epoch the store held.
    pub store_epoch: u64,
    /// Both hold this now.
    pub new_epoch: u64,
}

/// A summary for `strongroom store status`.
#[derive(Clone, Debug)]
pub struct StoreStatus {
    /// Random, made at the store's birth.
    pub store_id: [u8; 16],
    /// Commits since birth.
    pub epoch: u64,
    /// Records.
    pub records: usize,
}

/// What can go wrong with the store, by what the operator can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no store at this path.
    #[error("no store at {0}: make one with `strongroom init`")]
    Missing(std::path::PathBuf),
    /// There is one already.
    #[error("{0} already holds a store; nothing was changed")]
    Exists(std::path::PathBuf),
    /// Store and token disagree on the epoch.
    #[error(
        "the store was rolled back or replaced: {detail}. Nothing was changed. If a backup was restored on purpose, run `strongroom store accept-rollback`"
    )]
    RolledBack {
        /// Both epochs, or both ids.
        detail: String,
    },
    /// A record does not authenticate.
    #[error(
        "the record {record} was altered or belongs elsewhere; restore the store from a backup, then run `strongroom store accept-rollback`"
    )]
    Tampered {
        /// kind/name/version
        record: String,
    },
    /// The disc or the database failed.
    #[error("the store failed: {0}")]
    Io(String),
    /// The token failed.
    #[error(transparent)]
    Hsm(#[from] HsmError),
}

#[allow(unused_variables, clippy::todo, clippy::unused_async)]
impl Store {
    /// Makes an empty store at epoch 1, and sets the token's epoch object. Refuses a path or a token that has one.
    pub async fn create(path: &Path, hsm: Hsm) -> Result<Self, StoreError> {
        todo!()
    }

    /// Opens and verifies the whole store: header, epoch against the token's, every record's place in the root.
    pub async fn open(path: &Path, hsm: Hsm) -> Result<Self, StoreError> {
        todo!()
    }

    /// Takes the store as it is and moves both epochs past the greater of the two.
    pub async fn accept_rollback(path: &Path, hsm: Hsm) -> Result<AcceptedRollback, StoreError> {
        todo!()
    }

    /// One record's payload.
    pub async fn get(&self, id: &RecordId) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        todo!()
    }

    /// Every record's place, in order.
    pub fn ids(&self) -> Vec<RecordId> {
        todo!()
    }

    /// Applies all changes or none; durable on disc and in the token's epoch when this returns. Returns the new epoch.
    pub async fn commit(&self, changes: Vec<Change>) -> Result<u64, StoreError> {
        todo!()
    }

    /// Id, epoch, number of records.
    pub fn status(&self) -> StoreStatus {
        todo!()
    }
}
