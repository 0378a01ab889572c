//! The sealed store: records encrypted and authenticated with the HSM's store key, bound to their
//! place, and to an epoch that the HSM keeps, so that an altered, swapped or rolled-back store is
//! never used.
//!
//! The format is published in `docs/store-format.md`.
//!
//! A commit goes to the disk first (records and header in one atomic batch, then fsync) and to the
//! token's epoch object second; only then is it acknowledged. Whatever stops it in between, the
//! store opens again: it is then either at the token's epoch, without the change, or one ahead of
//! it, with the whole change, and the token follows.

mod engine;
mod export;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod open;
mod pages;
mod record;
mod trial;

pub use export::Import;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use strongroom_hsm::{Hsm, HsmError};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use engine::sled_db::Lock;
use engine::{Engine, EngineError, Write};
use record::{Anchor, Digests, Envelope};

use crate::owner::acting;

/// Seals that one store key may make on one token. Random 96-bit nonces are safe for 2^32 (NIST SP
/// 800-38D, 8.3); this is a sixteenth of it, since a restoration or a second token seals with the
/// same key and counts for itself. The rest is room for seals that a crash kept from being counted.
const MAX_SEALS: u64 = (1 << 28) - (1 << 20);
/// The payload of a [`RecordKind::UseCounter`] whose count was lost when its store was accepted:
/// more than any key may make.
pub const COUNT_LOST: u64 = u64::MAX;
/// More than a record takes on the disk besides its name and payload: its key, its envelope, and
/// what the database writes with it.
const RECORD_OVERHEAD_BYTES: usize = 512;
/// A database call longer than this counts as hung.
const ENGINE_DEADLINE: Duration = Duration::from_mins(1);
/// Pauses between tries to write the token's epoch.
const EPOCH_RETRIES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];

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
    /// A named signing key's settings (version 0).
    SigningKey = 4,
    /// One version of a named signing key: its id on the token and its public half.
    SigningVersion = 5,
    /// A private key that may be on the token and that nothing needs; the name is its id in
    /// hexadecimal.
    SigningDebris = 6,
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

impl fmt::Display for RecordId {
    /// As errors name it: kind/name/version.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            RecordKind::Key => "key",
            RecordKind::KeyVersion => "key-version",
            RecordKind::UseCounter => "use-counter",
            RecordKind::SigningKey => "signing-key",
            RecordKind::SigningVersion => "signing-version",
            RecordKind::SigningDebris => "signing-debris",
        };
        write!(f, "{kind}/{}/{}", self.name.escape_debug(), self.version)
    }
}

/// One change of a commit.
pub enum Change {
    /// Write or replace.
    Put(RecordId, Zeroizing<Vec<u8>>),
    /// Remove; no error if it isn't there.
    Delete(RecordId),
}

/// The store, open and verified.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Arc<dyn Engine>,
    hsm: Hsm,
    /// What is on the disk; replaced as a whole, so that readers never wait for a commit.
    view: ArcSwap<View>,
    /// Held for the length of a commit.
    commits: Mutex<Committer>,
    /// The last change was refused for want of room.
    disk_full: AtomicBool,
}

struct View {
    anchor: Anchor,
    digests: Digests,
}

struct Committer {
    /// Seals made so far, written or not.
    seals: u64,
    /// The sealed header that is on the disk; `None`: there is none yet.
    header: Option<Vec<u8>>,
    /// The token has not been told of the epoch that is on the disk.
    epoch_pending: bool,
    /// The disk failed in the middle of a write: what it holds is known only after opening it
    /// again.
    broken: Option<String>,
}

/// What `strongroom store accept-rollback` did, for the audit log.
#[derive(Clone, Debug)]
pub struct AcceptedRollback {
    /// The epoch the HSM held; 0 if it held none.
    pub hsm_epoch: u64,
    /// The epoch the store held.
    pub store_epoch: u64,
    /// Both hold this now.
    pub new_epoch: u64,
}

/// A summary for `strongroom store status`.
#[derive(Clone, Debug)]
pub struct StoreStatus {
    /// Random, made at the store's creation.
    pub store_id: [u8; 16],
    /// Commits since it was made.
    pub epoch: u64,
    /// Records.
    pub records: usize,
}

/// What can go wrong with the store, by what the operator can do about it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no store at this path, and the token knows of none.
    #[error(
        "no store at {0}, and the token knows of none: if these keys are of a new appliance, `strongroom store create` makes an empty one"
    )]
    Missing(PathBuf),
    /// There is no store at this path, though the token knows one.
    #[error(
        "no store at {}, but the token belongs to the store {store_id} at epoch {epoch}, and only that one has the keys of this appliance. Look that store.path is right and \
         its disk mounted, or that this is the token of this appliance; if the store is lost, bring back its newest copy (a backup of the directory, or `strongroom store import`), \
         then run `strongroom store accept-rollback`",
        path.display()
    )]
    Lost {
        /// Where it should be.
        path: PathBuf,
        /// In hexadecimal.
        store_id: String,
        /// What the token knows.
        epoch: u64,
    },
    /// There is one already.
    #[error("{0} already holds a store; nothing was changed")]
    Exists(PathBuf),
    /// The token already anchors a store.
    #[error(
        "the token already belongs to the store {store_id}; nothing was changed. Open that store, or use a token of its own for the new one"
    )]
    TokenInUse {
        /// In hexadecimal.
        store_id: String,
    },
    /// Store and token disagree on the epoch.
    #[error(
        "the store was rolled back or replaced: {detail}. It is not used. If a backup was restored on purpose, run `strongroom store accept-rollback`"
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
    /// A file of the database can't be read. Nothing was changed by trying.
    #[error(
        "{} can't be read: {why}. Nothing was changed. Restore the store from a backup or an export, then run `strongroom store accept-rollback`",
        file.display()
    )]
    Damaged {
        /// Which.
        file: PathBuf,
        /// How that was seen.
        why: String,
    },
    /// A file that is to be imported is none, or was damaged.
    #[error("the export can't be imported: {0}; nothing was changed. Take another copy of it")]
    Export(&'static str),
    /// Every record is authentic, but together they make no store.
    #[error(
        "the record {record} {problem}: the store does not hold together, and is not used; restore a copy of it that is whole, then run \
         `strongroom store accept-rollback`, or use the version of Strongroom that wrote it"
    )]
    Inconsistent {
        /// kind/name/version
        record: String,
        /// What is wrong with it, after "the record … ".
        problem: String,
    },
    /// The change is on the disk and in force, but the token could not be told; the next commit or
    /// start does that first.
    #[error(
        "the change is on the disk and in force, but the HSM did not take the store's new epoch ({0}); it is told with the next change or at the next start"
    )]
    EpochPending(HsmError),
    /// The store key has made as many seals as are safe.
    #[error(
        "the store key has sealed 2^28 records on this token, its share of what is safe (2^32, NIST SP 800-38D): bring the keys to another token with the ceremonies `backup` and `restore`, or to a new appliance"
    )]
    SealsExhausted,
    /// There is no room for a change; nothing was begun.
    #[error(
        "the store's disk is full: no change is begun until there is room again, and what needs none goes on; make room"
    )]
    DiskFull,
    /// The disk or the database failed.
    #[error("the store failed: {0}")]
    Io(String),
    /// The token failed.
    #[error(transparent)]
    Hsm(#[from] HsmError),
}

impl StoreError {
    /// Whether the change that failed with this is in force all the same.
    pub fn is_applied(&self) -> bool {
        matches!(self, Self::EpochPending(_))
    }
}

impl From<EngineError> for StoreError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Full => Self::DiskFull,
            error => Self::Io(error.to_string()),
        }
    }
}

/// What the epoch object of a token must say whose keys come from another one: which store it was,
/// but that none is this token's until it was accepted. `value`: the other one's.
pub fn copied_epoch(value: &[u8]) -> Vec<u8> {
    record::copied(value)
}

impl Store {
    /// Makes an empty store at epoch 1 in a directory of mode 0700, and sets the token's epoch
    /// object.
    ///
    /// # Errors
    /// [`StoreError::Exists`] or [`StoreError::TokenInUse`] if the path or the token has one,
    /// [`StoreError::Io`], [`StoreError::Hsm`].
    pub async fn create(path: &Path, hsm: Hsm) -> Result<Self, StoreError> {
        open::create(path, hsm).await
    }

    /// Opens and verifies the whole store: header, epoch against the token's, every record's place
    /// in the root.
    ///
    /// A store that is one epoch ahead of the token was cut off between its two writes: all its
    /// records are verified, and the token follows.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Lost`], [`StoreError::RolledBack`],
    /// [`StoreError::Tampered`],
    /// [`StoreError::Io`], [`StoreError::Hsm`].
    pub async fn open(path: &Path, hsm: Hsm) -> Result<Self, StoreError> {
        open::open(path, hsm).await
    }

    /// What a start would refuse of a store's place before it asks the token; that there is no store
    /// yet is no matter of this.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Damaged`].
    pub fn check_place(path: &Path) -> Result<(), StoreError> {
        open::check_place(path)
    }

    /// Which store a token's epoch object names; `None` if it is not one that this version wrote.
    pub fn id_in_epoch(value: &[u8]) -> Option<[u8; 16]> {
        record::Token::decode(value).map(|token| token.anchor.store_id)
    }

    /// Takes the store as it is, after authenticating every record, and moves both epochs past the
    /// greater of the two.
    ///
    /// The count of each version that is in it is written as lost ([`COUNT_LOST`]): how many
    /// encryptions it has made since, nobody knows.
    ///
    /// # Errors
    /// [`StoreError::Tampered`] if it is not one whole store that this token sealed; else as
    /// [`Store::open`].
    pub async fn accept_rollback(path: &Path, hsm: Hsm) -> Result<AcceptedRollback, StoreError> {
        open::accept_rollback(path, hsm).await
    }

    /// Whether another process has the store open. Blocks, and changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the database can't be opened.
    pub fn is_in_use(path: &Path) -> Result<bool, StoreError> {
        let taken = acting(path, || Lock::take(path)).map_err(|error| as_owner(path, &error))?;
        match taken {
            Ok(_) => Ok(false),
            Err(EngineError::Busy) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// One record's payload, or `None` if there is no such record.
    ///
    /// # Errors
    /// [`StoreError::Tampered`] if the disk does not hold what was committed; [`StoreError::Io`],
    /// [`StoreError::Hsm`].
    pub async fn get(&self, id: &RecordId) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let inner = &self.inner;
        if let Some(found) = inner.read(id).await? {
            return inner.open(id, found).await;
        }
        // Disk and view disagree: either a commit is between the two, so wait for it, or somebody
        // wrote to the disk.
        let committer = inner.commits.lock().await;
        if let Some(why) = &committer.broken {
            return Err(StoreError::Io(why.clone()));
        }
        match inner.read(id).await? {
            Some(found) => inner.open(id, found).await,
            None => Err(tampered(id)),
        }
    }

    /// Every record's place, in order of kind, name, version.
    pub fn ids(&self) -> Vec<RecordId> {
        self.inner.view.load().digests.keys().cloned().collect()
    }

    /// Applies all changes or none; durable on disk and in the token's epoch when this returns.
    /// Returns the new epoch.
    ///
    /// A commit that has begun runs to its end even if the caller goes away. Of two changes of one
    /// record the later counts.
    ///
    /// # Errors
    /// [`StoreError::DiskFull`]: nothing was begun. [`StoreError::EpochPending`]: the change is in force, but not acknowledged. After any other error it is not in force;
    /// if it was [`StoreError::Io`] the disk may hold it all the same (never half of it), and
    /// further commits are refused until the store is opened again.
    pub async fn commit(&self, changes: Vec<Change>) -> Result<u64, StoreError> {
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move { inner.commit(changes).await })
            .await
            .map_err(|error| StoreError::Io(format!("a commit was cut off: {error}")))?
    }

    /// Whether the last change was refused since the disk was full.
    pub fn disk_is_full(&self) -> bool {
        self.inner.disk_full.load(Ordering::Relaxed)
    }

    /// Id, epoch, number of records.
    pub fn status(&self) -> StoreStatus {
        let view = self.inner.view.load();
        StoreStatus {
            store_id: view.anchor.store_id,
            epoch: view.anchor.epoch,
            records: view.digests.len(),
        }
    }
}

impl Inner {
    /// `None`: disk and view disagree. `Some(None)`: there is no such record.
    async fn read(&self, id: &RecordId) -> Result<Option<Option<Vec<u8>>>, StoreError> {
        let Some(key) = record::encode_id(id) else {
            return Ok(Some(None));
        };
        let expected = self.view.load().digests.get(id).copied();
        let found = blocking(&self.engine, move |engine| engine.get(&key)).await?;
        let same = found.as_deref().map(record::digest) == expected;
        Ok(same.then_some(found))
    }

    async fn open(
        &self,
        id: &RecordId,
        sealed: Option<Vec<u8>>,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let Some(sealed) = sealed else {
            return Ok(None);
        };
        let store_id = self.view.load().anchor.store_id;
        open_record(&self.hsm, &store_id, id, &sealed)
            .await
            .map(Some)
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<u64, StoreError> {
        let mut committer = self.commits.lock().await;
        if let Some(why) = &committer.broken {
            return Err(StoreError::Io(format!(
                "an earlier write failed ({why}): no change is taken until the server is restarted"
            )));
        }
        self.keep_room(&changes).await?;
        let before = self.view.load_full();
        self.check_alone(&mut committer, &before.anchor).await?;
        if committer.epoch_pending {
            self.write_epoch(&before.anchor).await?;
            committer.epoch_pending = false;
        }

        let mut digests = before.digests.clone();
        let mut writes: Vec<Write> = Vec::with_capacity(changes.len() + 1);
        for change in changes {
            let (id, payload) = match change {
                Change::Put(id, payload) => (id, Some(payload)),
                Change::Delete(id) => (id, None),
            };
            let key = record::encode_id(&id).ok_or_else(|| {
                StoreError::Io(format!("a name of {} bytes is too long", id.name.len()))
            })?;
            if let Some(payload) = payload {
                let sealed = self
                    .seal(&mut committer, &before.anchor.store_id, &key, payload)
                    .await?;
                digests.insert(id, record::digest(&sealed));
                writes.push((key, Some(sealed)));
            } else {
                digests.remove(&id);
                writes.push((key, None));
            }
        }
        let anchor = Anchor {
            store_id: before.anchor.store_id,
            epoch: before.anchor.epoch + 1,
            root: record::root(&digests),
            seals: committer.seals + 1,
        };
        let header = self
            .seal(
                &mut committer,
                &anchor.store_id,
                &record::HEADER_KEY,
                Zeroizing::new(anchor.encode()),
            )
            .await?;
        writes.push((record::HEADER_KEY.to_vec(), Some(header)));
        self.write(&mut committer, writes).await?;
        self.view.store(Arc::new(View { anchor, digests }));
        if let Err(error) = self.write_epoch(&anchor).await {
            committer.epoch_pending = true;
            return Err(StoreError::EpochPending(error));
        }
        Ok(anchor.epoch)
    }

    /// A write that a full disk stops in its middle would leave what the disk holds unknown: it is
    /// not begun.
    async fn keep_room(&self, changes: &[Change]) -> Result<(), StoreError> {
        let bytes = changes
            .iter()
            .map(|change| match change {
                Change::Put(id, payload) => id.name.len() + payload.len() + RECORD_OVERHEAD_BYTES,
                Change::Delete(id) => id.name.len() + RECORD_OVERHEAD_BYTES,
            })
            .sum::<usize>()
            + RECORD_OVERHEAD_BYTES;
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let kept = blocking(&self.engine, move |engine| engine.keep_room(bytes)).await;
        let full = matches!(kept, Err(StoreError::DiskFull));
        if self.disk_full.swap(full, Ordering::Relaxed) && !full {
            tracing::info!("the store's disk has room again");
        }
        kept
    }

    /// Writes a batch whose last is the header.
    async fn write(&self, committer: &mut Committer, writes: Vec<Write>) -> Result<(), StoreError> {
        let header = writes.last().and_then(|(_, header)| header.clone());
        let known = (record::HEADER_KEY.to_vec(), committer.header.take());
        let write = move |engine: &dyn Engine| engine.write(Some(&known), writes);
        if let Err(error) = blocking(&self.engine, write).await {
            committer.broken = Some(error.to_string());
            return Err(error);
        }
        committer.header = header;
        Ok(())
    }

    /// Whether the token still knows this store as it was left. Two servers with a copy each, on
    /// one token, would count their encryptions apart.
    async fn check_alone(
        &self,
        committer: &mut Committer,
        before: &Anchor,
    ) -> Result<(), StoreError> {
        let token = open::read_token(&self.hsm).await?;
        let ours = |token: &record::Token| {
            let known = token.anchor;
            let told = known.epoch == before.epoch && known.root == before.root;
            !token.copied
                && known.store_id == before.store_id
                && (told || committer.epoch_pending && known.epoch < before.epoch)
        };
        if token.as_ref().is_some_and(ours) {
            return Ok(());
        }
        let detail = format!(
            "the token's epoch is {} now, and was left at {}: another server has written with this token, or the token was restored",
            token.map_or(0, |token| token.anchor.epoch),
            before.epoch
        );
        committer.broken = Some(detail.clone());
        Err(StoreError::RolledBack { detail })
    }

    async fn seal(
        &self,
        committer: &mut Committer,
        store_id: &[u8; 16],
        place: &[u8],
        payload: Zeroizing<Vec<u8>>,
    ) -> Result<Vec<u8>, StoreError> {
        count_seal(&mut committer.seals)?;
        seal_record(&self.hsm, store_id, place, payload).await
    }

    async fn write_epoch(&self, anchor: &Anchor) -> Result<(), HsmError> {
        let value = anchor.encode_for_token();
        for pause in EPOCH_RETRIES {
            if self.hsm.write_epoch(value.clone()).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
        }
        self.hsm.write_epoch(value).await
    }
}

/// Counts one more seal, if there may be one.
fn count_seal(seals: &mut u64) -> Result<(), StoreError> {
    if *seals >= MAX_SEALS {
        return Err(StoreError::SealsExhausted);
    }
    *seals += 1;
    Ok(())
}

/// Seals a payload for its place (a database key) with a fresh random nonce.
async fn seal_record(
    hsm: &Hsm,
    store_id: &[u8; 16],
    place: &[u8],
    payload: Zeroizing<Vec<u8>>,
) -> Result<Vec<u8>, StoreError> {
    let mut nonce = [0; 12];
    getrandom::fill(&mut nonce)
        .map_err(|error| StoreError::Io(format!("no random bytes from the kernel: {error}")))?;
    let sealed = hsm
        .store_seal(nonce, record::aad(store_id, place), payload)
        .await?;
    let envelope = Envelope {
        kind: place.first().copied().unwrap_or_default(),
        store_id: *store_id,
        nonce,
        sealed,
    };
    Ok(envelope.encode())
}

async fn open_record(
    hsm: &Hsm,
    store_id: &[u8; 16],
    id: &RecordId,
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    let Some((envelope, aad)) = claim(store_id, id, sealed) else {
        return Err(tampered(id));
    };
    match hsm.store_open(envelope.nonce, aad, envelope.sealed).await {
        Err(HsmError::Authentication) => Err(tampered(id)),
        other => Ok(other?),
    }
}

/// A sealed record taken apart, and what it must be authenticated with to be the one of this place.
/// `None`: it says itself that it is not.
fn claim(store_id: &[u8; 16], id: &RecordId, sealed: &[u8]) -> Option<(Envelope, Vec<u8>)> {
    let envelope = Envelope::decode(sealed)
        .filter(|envelope| envelope.kind == id.kind as u8 && envelope.store_id == *store_id)?;
    let place = record::encode_id(id)?;
    Some((envelope, record::aad(store_id, &place)))
}

fn tampered(id: &RecordId) -> StoreError {
    StoreError::Tampered {
        record: id.to_string(),
    }
}

/// What kept this process from doing something as the store's owner.
fn as_owner(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Io(format!("{}: {error}", path.display()))
}

/// Runs a database call where it may block, as the store's owner if this is root.
async fn blocking<T: Send + 'static>(
    engine: &Arc<dyn Engine>,
    call: impl FnOnce(&dyn Engine) -> Result<T, EngineError> + Send + 'static,
) -> Result<T, StoreError> {
    let engine = Arc::clone(engine);
    let task = tokio::task::spawn_blocking(move || {
        let call = || call(&*engine).map_err(StoreError::from);
        match engine.folder() {
            Some(path) => acting(path, call).map_err(|error| as_owner(path, &error))?,
            None => call(),
        }
    });
    match tokio::time::timeout(ENGINE_DEADLINE, task).await {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => Err(StoreError::Io(format!(
            "a database call was cut off: {error}"
        ))),
        Err(_) => Err(StoreError::Io(format!(
            "the disk did not answer within {ENGINE_DEADLINE:?}"
        ))),
    }
}

#[cfg(test)]
pub(crate) mod tests;
