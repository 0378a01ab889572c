//! Making, opening and re-anchoring a store: where its epoch is judged against the token's.

use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use strongroom_hsm::{Hsm, HsmError};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::record::{self, Anchor, Digests, Envelope, HEADER_KEY, HEADER_KIND};
use super::{
    AcceptedRollback, Committer, Engine, Inner, RecordId, Store, StoreError, View, blocking,
    open_record, seal_record,
};

pub(super) async fn create(path: &Path, hsm: Hsm) -> Result<Store, StoreError> {
    if let Some(anchor) = read_token(&hsm).await? {
        return Err(StoreError::TokenInUse {
            store_id: hex(&anchor.store_id),
        });
    }
    let folder = path.to_owned();
    let engine = tokio::task::spawn_blocking(move || -> Result<Engine, StoreError> {
        make_folder(&folder)?;
        let engine = Engine::open(&folder)?;
        // A database without any entry is what a creation that was cut off leaves.
        if engine.scan()?.is_empty() {
            Ok(engine)
        } else {
            Err(StoreError::Exists(folder))
        }
    })
    .await
    .map_err(|error| StoreError::Io(error.to_string()))??;

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
    let store = Store::assemble(Arc::new(engine), hsm, anchor, digests);
    store.anchor_both(anchor).await?;
    Ok(store)
}

pub(super) async fn open(path: &Path, hsm: Hsm) -> Result<Store, StoreError> {
    let token = read_token(&hsm).await?;
    let (engine, contents) = load(path).await?;
    let envelope = contents.header()?;
    if let Some(token) = token
        && token.store_id != envelope.store_id
    {
        return Err(StoreError::RolledBack {
            detail: format!(
                "this is the store {}, but the token belongs to the store {}",
                hex(&envelope.store_id),
                hex(&token.store_id)
            ),
        });
    }
    let mut anchor = open_header(&hsm, envelope).await?;
    let forward = match judge(token.as_ref(), &anchor) {
        Ok(forward) => forward,
        Err(detail) => return Err(StoreError::RolledBack { detail }),
    };
    let digests = contents.verify(&hsm, &anchor, forward).await?;
    if let Some(token) = token {
        anchor.seals = anchor.seals.max(token.seals);
    }
    let store = Store::assemble(Arc::new(engine), hsm, anchor, digests);
    if forward {
        store.inner.write_epoch(&anchor).await?;
    }
    Ok(store)
}

pub(super) async fn accept_rollback(path: &Path, hsm: Hsm) -> Result<AcceptedRollback, StoreError> {
    let token = read_token(&hsm).await?;
    let (engine, contents) = load(path).await?;
    let found = open_header(&hsm, contents.header()?).await?;
    let digests = contents.verify(&hsm, &found, true).await?;
    let hsm_epoch = token.map_or(0, |token| token.epoch);
    let anchor = Anchor {
        epoch: found.epoch.max(hsm_epoch) + 1,
        seals: found.seals.max(token.map_or(0, |token| token.seals)) + 1,
        ..found
    };
    let store = Store::assemble(Arc::new(engine), hsm, anchor, digests);
    store.anchor_both(anchor).await?;
    Ok(AcceptedRollback {
        hsm_epoch,
        store_epoch: found.epoch,
        new_epoch: anchor.epoch,
    })
}

/// Whether the store may be used, and if so whether the token's epoch must first follow it.
fn judge(token: Option<&Anchor>, store: &Anchor) -> Result<bool, String> {
    let Some(token) = token else {
        // The creation of the store was cut off between the disc and the token.
        return if store.epoch == 1 && store.root == record::root(&Digests::new()) {
            Ok(true)
        } else {
            Err(format!(
                "the store is at epoch {}, but the token knows of no store",
                store.epoch
            ))
        };
    };
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
struct Contents {
    header: Option<Vec<u8>>,
    records: Vec<(RecordId, Vec<u8>)>,
}

impl Contents {
    fn header(&self) -> Result<Envelope, StoreError> {
        self.header
            .as_deref()
            .and_then(Envelope::decode)
            .filter(|envelope| envelope.kind == HEADER_KIND)
            .ok_or_else(bad_header)
    }

    /// Checks the records against the header's root; opens each of them if they don't match, to tell which it is, or if `each`.
    async fn verify(self, hsm: &Hsm, anchor: &Anchor, each: bool) -> Result<Digests, StoreError> {
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

async fn load(path: &Path) -> Result<(Engine, Contents), StoreError> {
    let folder = path.to_owned();
    tokio::task::spawn_blocking(move || {
        check_folder(&folder)?;
        let engine = Engine::open(&folder)?;
        let mut contents = Contents {
            header: None,
            records: Vec::new(),
        };
        for (key, value) in engine.scan()? {
            if key == HEADER_KEY {
                contents.header = Some(value);
            } else if let Some(id) = record::decode_id(&key) {
                contents.records.push((id, value));
            } else {
                return Err(StoreError::Tampered {
                    record: format!("under the unknown key {}", hex(&key)),
                });
            }
        }
        Ok((engine, contents))
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

async fn read_token(hsm: &Hsm) -> Result<Option<Anchor>, StoreError> {
    let value = hsm.read_epoch().await?;
    if value.is_empty() {
        return Ok(None);
    }
    match Anchor::decode_from_token(&value) {
        Some(anchor) => Ok(Some(anchor)),
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
    fn assemble(engine: Arc<Engine>, hsm: Hsm, anchor: Anchor, digests: Digests) -> Self {
        let committer = Committer {
            seals: anchor.seals,
            epoch_pending: false,
            broken: None,
        };
        Self {
            inner: Arc::new(Inner {
                engine,
                hsm,
                view: ArcSwap::from_pointee(View { anchor, digests }),
                commits: Mutex::new(committer),
            }),
        }
    }

    /// Writes a header alone, to the disc and then to the token.
    async fn anchor_both(&self, anchor: Anchor) -> Result<(), StoreError> {
        let inner = &self.inner;
        let payload = Zeroizing::new(anchor.encode());
        let header = seal_record(&inner.hsm, &anchor.store_id, &HEADER_KEY, payload).await?;
        let writes = vec![(HEADER_KEY.to_vec(), Some(header))];
        blocking(&inner.engine, move |engine| engine.write(writes)).await?;
        Ok(inner.write_epoch(&anchor).await?)
    }
}

fn make_folder(path: &Path) -> Result<(), StoreError> {
    let io = |error: std::io::Error| StoreError::Io(format!("{}: {error}", path.display()));
    if Engine::exists(path) {
        return check_folder(path);
    }
    if path.exists() {
        if fs::read_dir(path).map_err(io)?.next().is_some() {
            return Err(StoreError::Io(format!(
                "{} holds other files: give the store a folder of its own",
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
    // The folder's own name must be on the disc before anything in it is relied on.
    match path.canonicalize().map_err(io)?.parent() {
        Some(parent) => File::open(parent)
            .and_then(|folder| folder.sync_all())
            .map_err(io),
        None => Ok(()),
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
            "{} is not a folder",
            path.display()
        )))
    } else if mode & 0o077 != 0 {
        Err(StoreError::Io(format!(
            "{} may be used by others (mode {mode:04o}): run `chmod 700 {}`",
            path.display(),
            path.display()
        )))
    } else if Engine::exists(path) {
        Ok(())
    } else {
        Err(StoreError::Missing(path.to_owned()))
    }
}

fn hex(bytes: &[u8]) -> String {
    base16ct::lower::encode_string(bytes)
}
