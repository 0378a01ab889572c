//! Making, opening and re-anchoring a store: where its epoch is judged against the token's.

use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arc_swap::ArcSwap;
use strongroom_hsm::{Hsm, HsmError};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::engine::sled_db::{LOG, Role, Sled, role};
use super::engine::{Engine, Pair, Write};
use super::record::{self, Anchor, Digests, Envelope, HEADER_KEY, HEADER_KIND, Token};
use super::trial::{Files, With, is_free};
use super::{
    AcceptedRollback, COUNT_LOST, Committer, Inner, RecordId, RecordKind, Store, StoreError, View,
    as_owner, count_seal, open_record, seal_record,
};
use crate::hex::encode as hex;
use crate::owner::acting;

pub(super) async fn create(path: &Path, hsm: Hsm) -> Result<Store, StoreError> {
    check_unused(&hsm).await?;
    let engine = on_disc(path, |folder| {
        prepare_folder(folder)?;
        Ok(Sled::open(folder)?)
    })
    .await?;
    begin(Arc::new(engine), hsm).await
}

/// The token must know of no store.
async fn check_unused(hsm: &Hsm) -> Result<(), StoreError> {
    match read_token(hsm).await? {
        None => Ok(()),
        Some(token) => Err(StoreError::TokenInUse {
            store_id: hex(&token.anchor.store_id),
        }),
    }
}

/// Makes a store in an empty database.
pub(super) async fn begin(engine: Arc<dyn Engine>, hsm: Hsm) -> Result<Store, StoreError> {
    let mut store_id = [0; 16];
    getrandom::fill(&mut store_id)
        .map_err(|error| StoreError::Io(format!("no random bytes from the kernel: {error}")))?;
    let digests = Digests::new();
    let anchor = Anchor {
        store_id,
        epoch: 1,
        root: record::root(&digests),
        seals: 1,
    };
    let store = Store::assemble(engine, hsm, anchor, digests, None);
    store.anchor_both(anchor, Vec::new()).await?;
    Ok(store)
}

pub(super) async fn open(path: &Path, hsm: Hsm) -> Result<Store, StoreError> {
    let token = read_token(&hsm).await?;
    let found = load(path, &hsm, Rule::Anchored(token)).await;
    let (engine, found) = found.map_err(|error| missed(error, token))?;
    adopt(Arc::new(engine), hsm, token, found).await
}

/// Nobody is told to make another store in the place of one that the token knows.
fn missed(error: StoreError, token: Option<Token>) -> StoreError {
    match (error, token) {
        (StoreError::Missing(path), Some(token)) => StoreError::Lost {
            path,
            store_id: hex(&token.anchor.store_id),
            epoch: token.anchor.epoch,
        },
        (error, _) => error,
    }
}

/// Uses a database whose content was found to be a store that the token knows.
pub(super) async fn adopt(
    engine: Arc<dyn Engine>,
    hsm: Hsm,
    token: Option<Token>,
    found: Found,
) -> Result<Store, StoreError> {
    let mut anchor = found.anchor;
    if let Some(token) = token {
        anchor.seals = anchor.seals.max(token.anchor.seals);
    }
    let store = Store::assemble(engine, hsm, anchor, found.digests, Some(found.header));
    if found.forward {
        store.inner.write_epoch(&anchor).await?;
    }
    Ok(store)
}

pub(super) async fn accept_rollback(path: &Path, hsm: Hsm) -> Result<AcceptedRollback, StoreError> {
    let token = read_token(&hsm).await?;
    let found = load(path, &hsm, Rule::Authentic).await;
    let (engine, found) = found.map_err(|error| missed(error, token))?;
    let hsm_epoch = token.map_or(0, |token| token.anchor.epoch);
    let known = token.map_or(0, |token| token.anchor.seals);
    let mut seals = found.anchor.seals.max(known);
    let (writes, digests) = fence(&hsm, &found, &mut seals).await?;
    count_seal(&mut seals)?;
    let anchor = Anchor {
        epoch: found.anchor.epoch.max(hsm_epoch) + 1,
        root: record::root(&digests),
        seals,
        ..found.anchor
    };
    let header = Some(found.header);
    let store = Store::assemble(Arc::new(engine), hsm, anchor, digests, header);
    store.anchor_both(anchor, writes).await?;
    Ok(AcceptedRollback {
        hsm_epoch,
        store_epoch: found.anchor.epoch,
        new_epoch: anchor.epoch,
    })
}

/// Nobody knows how many encryptions the versions in a copy have made since it was made, on this
/// token or on another: their counts are written as lost.
async fn fence(
    hsm: &Hsm,
    found: &Found,
    seals: &mut u64,
) -> Result<(Vec<Write>, Digests), StoreError> {
    let mut digests = found.digests.clone();
    let mut writes = Vec::new();
    for (id, digest) in &mut digests {
        if id.kind != RecordKind::UseCounter {
            continue;
        }
        let Some(place) = record::encode_id(id) else {
            continue; // It was decoded from one, so it can be encoded.
        };
        count_seal(seals)?;
        let payload = Zeroizing::new(COUNT_LOST.to_be_bytes().to_vec());
        let sealed = seal_record(hsm, &found.anchor.store_id, &place, payload).await?;
        *digest = record::digest(&sealed);
        writes.push((place, Some(sealed)));
    }
    Ok((writes, digests))
}

/// What a store must be to be used.
#[derive(Clone, Copy)]
pub(super) enum Rule {
    /// Sealed by this token, and the one that its epoch names.
    Anchored(Option<Token>),
    /// Sealed by this token.
    Authentic,
}

/// What was found to be a whole store.
pub(super) struct Found {
    pub(super) anchor: Anchor,
    pub(super) digests: Digests,
    /// As it is sealed in the database.
    pub(super) header: Vec<u8>,
    /// The token's epoch must follow.
    forward: bool,
}

/// Whether the store may be used, and if so whether the token's epoch must first follow it.
fn judge(token: Option<&Token>, store: &Anchor) -> Result<bool, String> {
    let Some(token) = token else {
        // The creation of the store was cut off between the disk and the token.
        return if store.epoch == 1 && store.root == record::root(&Digests::new()) {
            Ok(true)
        } else {
            Err(format!(
                "the store is at epoch {}, but the token knows of no store",
                store.epoch
            ))
        };
    };
    if token.copied {
        // Also if it is the very store: each token would count for itself what a key encrypts.
        return Err(
            "the keys of this token came from another one, and no store was bound to it yet"
                .to_owned(),
        );
    }
    let token = token.anchor;
    if store.epoch == token.epoch && store.root == token.root {
        Ok(false)
    } else if store.epoch == token.epoch {
        Err(format!(
            "store and token are both at epoch {}, but the token knows other contents",
            store.epoch
        ))
    } else if Some(store.epoch) == token.epoch.checked_add(1) {
        Ok(true)
    } else {
        Err(format!(
            "the store is at epoch {}, but the token at epoch {}",
            store.epoch, token.epoch
        ))
    }
}

/// All that is in the database, not yet believed.
pub(super) struct Contents {
    header: Option<Vec<u8>>,
    records: Vec<(RecordId, Vec<u8>)>,
}

impl Contents {
    pub(super) fn of(pairs: &[Pair]) -> Result<Self, StoreError> {
        let mut contents = Self {
            header: None,
            records: Vec::new(),
        };
        for (key, value) in pairs {
            if *key == HEADER_KEY {
                contents.header = Some(value.clone());
            } else if let Some(id) = record::decode_id(key) {
                contents.records.push((id, value.clone()));
            } else {
                return Err(StoreError::Tampered {
                    record: format!("under the unknown key {}", hex(key)),
                });
            }
        }
        Ok(contents)
    }

    /// Whether it is one whole store by the rule: header, epoch, and every record's place in the
    /// root.
    pub(super) async fn judge(self, hsm: &Hsm, rule: Rule) -> Result<Found, StoreError> {
        let envelope = self.header()?;
        if let Rule::Anchored(Some(token)) = rule
            && token.anchor.store_id != envelope.store_id
        {
            return Err(StoreError::RolledBack {
                detail: format!(
                    "this is the store {}, but the token belongs to the store {}",
                    hex(&envelope.store_id),
                    hex(&token.anchor.store_id)
                ),
            });
        }
        let anchor = open_header(hsm, envelope).await?;
        let forward = match rule {
            Rule::Anchored(token) => judge(token.as_ref(), &anchor)
                .map_err(|detail| StoreError::RolledBack { detail })?,
            Rule::Authentic => true,
        };
        let digests = self.verify(hsm, &anchor, forward).await?;
        Ok(Found {
            anchor,
            digests,
            header: self.header.unwrap_or_default(),
            forward,
        })
    }

    fn header(&self) -> Result<Envelope, StoreError> {
        self.header
            .as_deref()
            .and_then(Envelope::decode)
            .filter(|envelope| envelope.kind == HEADER_KIND)
            .ok_or_else(bad_header)
    }

    /// Checks the records against the header's root; opens each of them if they don't match, to
    /// tell which it is, or if `each`.
    async fn verify(&self, hsm: &Hsm, anchor: &Anchor, each: bool) -> Result<Digests, StoreError> {
        let digests: Digests = self
            .records
            .iter()
            .map(|(id, sealed)| (id.clone(), record::digest(sealed)))
            .collect();
        let matches = record::root(&digests) == anchor.root;
        if each || !matches {
            for (id, sealed) in &self.records {
                open_record(hsm, &anchor.store_id, id, sealed).await?;
            }
        }
        if matches {
            Ok(digests)
        } else {
            Err(StoreError::Tampered {
                record: "set (one was removed, added, or replaced by an older one)".to_owned(),
            })
        }
    }
}

/// Tries the files as a copy, then opens them.
async fn load(path: &Path, hsm: &Hsm, rule: Rule) -> Result<(Sled, Found), StoreError> {
    let files = on_disc(path, |folder| {
        check_folder(folder)?;
        Files::hold(folder)
    })
    .await?;
    let files = Arc::new(files);
    let (pairs, found) = match attempt(path, &files, hsm, rule, With::Everything).await {
        Err(first) if files.has_spare() && !matches!(first, StoreError::Hsm(_)) => {
            // The first error tells more, if there is nothing in the way of the second try but the
            // damage itself.
            let Ok(second) = attempt(path, &files, hsm, rule, With::TheLogAlone).await else {
                return Err(located(first, path));
            };
            let aside = {
                let files = Arc::clone(&files);
                on_disc(path, move |_| files.set_aside()).await?
            };
            tracing::warn!(
                error = %first,
                "the store's log is whole without the files beside it, which were damaged: they are in {}",
                aside.display()
            );
            second
        }
        outcome => outcome.map_err(|error| located(error, path))?,
    };
    drop(files);
    let engine = on_disc(path, move |folder| {
        let engine = Sled::open(folder)?;
        if engine.scan()? == pairs {
            Ok(engine)
        } else {
            Err(StoreError::Io(format!(
                "the files in {} changed while they were opened: start again, with nothing else that writes there",
                folder.display()
            )))
        }
    })
    .await?;
    Ok((engine, found))
}

/// What a copy of the files holds, if that is a store by the rule.
async fn attempt(
    path: &Path,
    files: &Arc<Files>,
    hsm: &Hsm,
    rule: Rule,
    with: With,
) -> Result<(Vec<Pair>, Found), StoreError> {
    let files = Arc::clone(files);
    let pairs = on_disc(path, move |_| files.read(with)).await?;
    let found = Contents::of(&pairs)?.judge(hsm, rule).await?;
    Ok((pairs, found))
}

/// The error with where the store is, and what else may be the reason.
fn located(error: StoreError, path: &Path) -> StoreError {
    let log = path.join(LOG);
    match error {
        StoreError::Tampered { record } => StoreError::Tampered {
            record: format!("{record} in {}", log.display()),
        },
        StoreError::RolledBack { detail } => StoreError::RolledBack {
            detail: format!(
                "{detail} (in {}; if no other copy was put there, the file is damaged)",
                log.display()
            ),
        },
        other => other,
    }
}

/// Does something with a store's files, as their owner if this is root.
pub(super) async fn on_disc<T: Send + 'static>(
    path: &Path,
    call: impl FnOnce(&Path) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        acting(&path, || call(&path)).map_err(|error| as_owner(&path, &error))?
    })
    .await
    .map_err(|error| StoreError::Io(error.to_string()))?
}

async fn open_header(hsm: &Hsm, envelope: Envelope) -> Result<Anchor, StoreError> {
    let store_id = envelope.store_id;
    let aad = record::aad(&store_id, &HEADER_KEY);
    let payload = match hsm.store_open(envelope.nonce, aad, envelope.sealed).await {
        Err(HsmError::Authentication) => return Err(bad_header()),
        other => other?,
    };
    Anchor::decode(&payload)
        .filter(|anchor| anchor.store_id == store_id)
        .ok_or_else(bad_header)
}

pub(super) async fn read_token(hsm: &Hsm) -> Result<Option<Token>, StoreError> {
    let value = hsm.read_epoch().await?;
    if value.is_empty() {
        return Ok(None);
    }
    match Token::decode(&value) {
        Some(token) => Ok(Some(token)),
        None => Err(StoreError::RolledBack {
            detail: "the token's epoch object is not one that this version can read".to_owned(),
        }),
    }
}

fn bad_header() -> StoreError {
    StoreError::Tampered {
        record: "header (missing, altered, or sealed by another token)".to_owned(),
    }
}

impl Store {
    pub(super) fn assemble(
        engine: Arc<dyn Engine>,
        hsm: Hsm,
        anchor: Anchor,
        digests: Digests,
        header: Option<Vec<u8>>,
    ) -> Self {
        let committer = Committer {
            seals: anchor.seals,
            header,
            epoch_pending: false,
            broken: None,
        };
        Self {
            inner: Arc::new(Inner {
                engine,
                hsm,
                view: ArcSwap::from_pointee(View { anchor, digests }),
                commits: Mutex::new(committer),
                disk_full: AtomicBool::new(false),
            }),
        }
    }

    /// Writes records and their header to the disk, in one step, and then the token's epoch.
    async fn anchor_both(&self, anchor: Anchor, mut writes: Vec<Write>) -> Result<(), StoreError> {
        let inner = &self.inner;
        let payload = Zeroizing::new(anchor.encode());
        let header = seal_record(&inner.hsm, &anchor.store_id, &HEADER_KEY, payload).await?;
        writes.push((HEADER_KEY.to_vec(), Some(header)));
        let mut committer = inner.commits.lock().await;
        inner.write(&mut committer, writes).await?;
        Ok(inner.write_epoch(&anchor).await?)
    }
}

/// A directory for a new store: made, or empty, or with what a creation or an import that was cut
/// off leaves, which may be a database without any entry.
pub(super) fn prepare_folder(path: &Path) -> Result<(), StoreError> {
    let io = |error: std::io::Error| StoreError::Io(format!("{}: {error}", path.display()));
    if Sled::exists(path) {
        check_folder(path)?;
        return if Files::hold(path)?.read(With::Everything)?.is_empty() {
            Ok(())
        } else {
            Err(StoreError::Exists(path.to_owned()))
        };
    }
    if path.exists() {
        if !is_free(path)? {
            return Err(StoreError::Io(format!(
                "{} holds other files: give the store a directory of its own",
                path.display()
            )));
        }
        fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(io)?;
    } else {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(io)?;
    }
    // The directory's own name must be on the disk before anything in it is relied on.
    match path.canonicalize().map_err(io)?.parent() {
        Some(parent) => File::open(parent)
            .and_then(|folder| folder.sync_all())
            .map_err(io),
        None => Ok(()),
    }
}

pub(super) fn check_place(path: &Path) -> Result<(), StoreError> {
    match acting(path, || check_folder(path)) {
        Ok(Err(StoreError::Missing(_))) => Ok(()),
        Ok(checked) => checked,
        Err(error) => Err(as_owner(path, &error)),
    }
}

fn check_folder(path: &Path) -> Result<(), StoreError> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(StoreError::Missing(path.to_owned()));
        }
        Err(error) => return Err(StoreError::Io(format!("{}: {error}", path.display()))),
        Ok(metadata) => metadata,
    };
    let mode = metadata.permissions().mode() & 0o777;
    if !metadata.is_dir() {
        Err(StoreError::Io(format!(
            "{} is not a directory",
            path.display()
        )))
    } else if mode & 0o077 != 0 {
        Err(StoreError::Io(format!(
            "{} may be used by others (mode {mode:04o}): run `chmod 700 {}`",
            path.display(),
            path.display()
        )))
    } else if Sled::exists(path) {
        Ok(())
    } else if holds_remains(path) {
        Err(StoreError::Damaged {
            file: path.join(LOG),
            why: "it is not there, though other files of the store are".to_owned(),
        })
    } else {
        Err(StoreError::Missing(path.to_owned()))
    }
}

/// Whether files of a database are there.
fn holds_remains(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| role(&entry.file_name().to_string_lossy()) != Role::Other)
    })
}
