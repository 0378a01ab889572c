//! A store as one plain file, sealed as it is in the database: `docs/store-format.md` publishes the
//! bytes. Another program reads it without sled.
//!
//! An import is tried in a directory of its own before anything is written where the store is to
//! be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use strongroom_hsm::Hsm;

use super::engine::sled_db::Sled;
use super::engine::{Engine as _, Pair, Write};
use super::open::{Contents, Rule, on_disc, prepare_folder, read_token};
use super::record::{self, HEADER_KEY, Reader};
use super::trial::Scratch;
use super::{AcceptedRollback, Store, StoreError};

const MAGIC: [u8; 4] = *b"SRex";
const VERSION: u8 = 1;
/// SHA-256 at the end, bytes.
const HASH_BYTES: usize = 32;
/// No sealed record is longer, bytes.
const MAX_RECORD_BYTES: usize = 1 << 24;
/// Nor shorter: an envelope around nothing.
const MIN_RECORD_BYTES: usize = 50;

/// The file of these database entries. `None`: they are no store's, or too large for the format.
fn encode(pairs: &[Pair]) -> Option<Vec<u8>> {
    let mut records = BTreeMap::new();
    let mut header = None;
    for (key, sealed) in pairs {
        if *key == HEADER_KEY {
            header = Some((key, sealed));
        } else {
            records.insert(record::decode_id(key)?, (key, sealed));
        }
    }
    let mut out = MAGIC.to_vec();
    out.push(VERSION);
    out.extend_from_slice(&(pairs.len() as u64).to_be_bytes());
    for (key, sealed) in std::iter::once(header?).chain(records.into_values()) {
        for part in [key, sealed] {
            out.extend_from_slice(&u32::try_from(part.len()).ok()?.to_be_bytes());
            out.extend_from_slice(part);
        }
    }
    let hash = Sha256::digest(&out);
    out.extend_from_slice(&hash);
    Some(out)
}

/// The database entries of a file, the header first. The error says what is wrong with it.
fn decode(bytes: &[u8]) -> Result<Vec<Pair>, &'static str> {
    let cut = "it was cut off, or is longer than it says";
    let (content, hash) = bytes.split_last_chunk::<HASH_BYTES>().ok_or(cut)?;
    let mut reader = Reader(content);
    if reader.array() != Some(MAGIC) {
        return Err("it is not an export of a store");
    }
    if reader.array() != Some([VERSION]) {
        return Err("it is of a format that this version does not read");
    }
    if Sha256::digest(content)[..] != hash[..] {
        return Err("it was damaged: its bytes do not give the SHA-256 at its end");
    }
    let count = u64::from_be_bytes(reader.array().ok_or(cut)?);
    let mut pairs = Vec::new();
    let mut last = None;
    for number in 0..count {
        let key = part(&mut reader).ok_or(cut)?;
        let sealed = part(&mut reader).ok_or(cut)?;
        if !(MIN_RECORD_BYTES..=MAX_RECORD_BYTES).contains(&sealed.len()) {
            return Err("a record in it has a length that can't be");
        }
        if number == 0 {
            if key != HEADER_KEY {
                return Err("it does not begin with the header");
            }
        } else {
            let id = record::decode_id(key).ok_or("a record in it is of no kind that is known")?;
            if last.as_ref().is_some_and(|last| *last >= id) {
                return Err("its records are not in order");
            }
            last = Some(id);
        }
        pairs.push((key.to_vec(), sealed.to_vec()));
    }
    if pairs.is_empty() || !reader.0.is_empty() {
        return Err(cut);
    }
    Ok(pairs)
}

fn part<'a>(reader: &mut Reader<'a>) -> Option<&'a [u8]> {
    let length = u32::from_be_bytes(reader.array()?);
    reader.slice(usize::try_from(length).ok()?)
}

impl Store {
    /// The store as one file (`docs/store-format.md`), after it was held against the token once
    /// more. Commits wait meanwhile.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub async fn export(&self) -> Result<Vec<u8>, StoreError> {
        let _turn = self.inner.commits.lock().await;
        let pairs = super::blocking(&self.inner.engine, |engine| engine.scan()).await?;
        let token = read_token(&self.inner.hsm).await?;
        Contents::of(&pairs)?
            .judge(&self.inner.hsm, Rule::Anchored(token))
            .await?;
        encode(&pairs).ok_or_else(|| StoreError::Io("a record is too long to export".to_owned()))
    }
}

/// An export that was tried and found to be a whole store, and is not in its place yet; dropped,
/// nothing is left of it.
pub struct Import {
    path: PathBuf,
    hsm: Hsm,
    pairs: Vec<Pair>,
    accept: bool,
    store: Arc<Store>,
    scratch: Scratch,
}

impl Import {
    /// Tries an export that is to become the store at `path`, where none may be. `accept`: also one
    /// that is older than the token's epoch.
    ///
    /// # Errors
    /// [`StoreError::Exists`]; [`StoreError::Export`] for a file that is none; else as
    /// [`Store::open`] and [`Store::accept_rollback`].
    pub async fn prepare(
        path: &Path,
        hsm: Hsm,
        file: &[u8],
        accept: bool,
    ) -> Result<Self, StoreError> {
        let pairs = decode(file).map_err(StoreError::Export)?;
        let token = read_token(&hsm).await?;
        let rule = if accept {
            Rule::Authentic
        } else {
            Rule::Anchored(token)
        };
        let found = Contents::of(&pairs)?.judge(&hsm, rule).await?;
        let writes = writes(&pairs);
        let (engine, scratch) = on_disc(path, move |folder| {
            prepare_folder(folder)?;
            let scratch = Scratch::make(folder)?;
            let engine = Sled::open(scratch.path())?;
            engine.write(None, writes)?;
            Ok((engine, scratch))
        })
        .await?;
        let store = Store::assemble(
            Arc::new(engine),
            hsm.clone(),
            found.anchor,
            found.digests,
            Some(found.header),
        );
        Ok(Self {
            path: path.to_owned(),
            hsm,
            pairs,
            accept,
            store: Arc::new(store),
            scratch,
        })
    }

    /// The store as it would be, to be looked into: not to be changed.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Puts it in its place, and opens it there. The rollback that was accepted, if one was to be.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub async fn finish(self) -> Result<(Store, Option<AcceptedRollback>), StoreError> {
        let Self {
            path,
            hsm,
            pairs,
            accept,
            store,
            scratch,
        } = self;
        drop(store);
        drop(scratch);
        let writes = writes(&pairs);
        on_disc(&path, move |folder| {
            // Empty, as `prepare` saw; all records or none are written.
            let engine = Sled::open(folder)?;
            if engine.scan()?.is_empty() {
                Ok(engine.write(None, writes)?)
            } else {
                Err(StoreError::Exists(folder.to_owned()))
            }
        })
        .await?;
        let accepted = if accept {
            Some(Store::accept_rollback(&path, hsm.clone()).await?)
        } else {
            None
        };
        let store = Store::open(&path, hsm).await?;
        Ok((store, accepted))
    }
}

fn writes(pairs: &[Pair]) -> Vec<Write> {
    let write = |(key, sealed): &Pair| (key.clone(), Some(sealed.clone()));
    pairs.iter().map(write).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::store::tests::{copy, folder, place, put, token};
    use proptest::prelude::*;

    #[tokio::test]
    async fn what_was_exported_is_imported_whole_or_not_at_all() {
        let (hsm, _turn) = token().await;
        let folder = folder();
        let path = folder.path().join("store");
        let store = Store::create(&path, hsm.clone()).await.unwrap();
        for (name, version) in [("b", 2), ("b", 1), ("aa", 1), ("c", 1)] {
            store
                .commit(vec![put(name, version, name.as_bytes())])
                .await
                .unwrap();
        }
        let file = store.export().await.unwrap();
        assert_eq!(file, store.export().await.unwrap());
        drop(store);
        let backup = folder.path().join("backup");
        copy(&path, &backup);

        // Not over a store.
        let refused = Import::prepare(&path, hsm.clone(), &file, true).await.err();
        assert!(
            matches!(refused, Some(StoreError::Exists(_))),
            "{refused:?}"
        );
        let again = folder.path().join("again");
        let import = Import::prepare(&again, hsm.clone(), &file, false)
            .await
            .unwrap();
        assert_eq!(import.store().ids().len(), 4);
        assert!(
            !again.join("db").exists(),
            "written before it was asked for"
        );
        drop(import);
        assert_eq!(std::fs::read_dir(&again).unwrap().count(), 0);
        // What a kill leaves, at whatever moment, is no reason to refuse; another's files are, and
        // stay.
        for left in ["trial/blobs", "blobs", "aside/1"] {
            std::fs::create_dir_all(again.join(left)).unwrap();
        }
        std::fs::write(again.join("trial/db"), "half a log").unwrap();
        std::fs::copy(backup.join("conf"), again.join("conf")).unwrap();
        for others in ["blobs/1", "trial/letter", "letter"] {
            std::fs::write(again.join(others), "another's").unwrap();
            let refused = Import::prepare(&again, hsm.clone(), &file, false)
                .await
                .err();
            assert!(
                matches!(&refused, Some(StoreError::Io(why)) if why.contains("other files")),
                "{others}: {refused:?}"
            );
            assert!(again.join("trial/db").exists());
            std::fs::remove_file(again.join(others)).unwrap();
        }
        let import = Import::prepare(&again, hsm.clone(), &file, false)
            .await
            .unwrap();
        let (store, accepted) = import.finish().await.unwrap();
        assert!(accepted.is_none());
        let found = store.get(&place("aa", 1)).await.unwrap().unwrap();
        assert_eq!(**found, *b"aa");
        assert_eq!(store.export().await.unwrap(), file);
        store.commit(vec![put("d", 1, b"d")]).await.unwrap();
        drop(store);

        // It is older than the token's epoch now, as the copy is.
        let third = folder.path().join("third");
        let refused = Import::prepare(&third, hsm.clone(), &file, false)
            .await
            .err();
        assert!(
            matches!(refused, Some(StoreError::RolledBack { .. })),
            "{refused:?}"
        );
        let refused = Store::open(&backup, hsm.clone()).await.err();
        assert!(
            matches!(refused, Some(StoreError::RolledBack { .. })),
            "{refused:?}"
        );
        assert!(!third.exists());
        let import = Import::prepare(&third, hsm.clone(), &file, true)
            .await
            .unwrap();
        let (store, accepted) = import.finish().await.unwrap();
        assert!(accepted.is_some());
        assert_eq!(store.ids().len(), 4);
        drop(store);
        assert!(Store::open(&again, hsm).await.is_err());
    }

    #[tokio::test]
    async fn an_export_that_was_changed_is_refused_and_leaves_nothing() {
        let (hsm, _turn) = token().await;
        let folder = folder();
        let path = folder.path().join("store");
        let store = Store::create(&path, hsm.clone()).await.unwrap();
        store
            .commit(vec![put("a", 1, b"one"), put("b", 1, b"two")])
            .await
            .unwrap();
        let file = store.export().await.unwrap();
        drop(store);
        let target = folder.path().join("target");
        let refuse = async |what: &str, file: &[u8]| {
            for accept in [false, true] {
                let refused = Import::prepare(&target, hsm.clone(), file, accept)
                    .await
                    .err();
                assert!(
                    matches!(
                        refused,
                        Some(
                            StoreError::Export(_)
                                | StoreError::Tampered { .. }
                                | StoreError::RolledBack { .. }
                        )
                    ),
                    "{what}: {refused:?}"
                );
                assert!(!target.exists(), "{what}");
            }
        };
        for at in (0..file.len()).step_by(7) {
            let mut bad = file.clone();
            bad[at] ^= 4;
            refuse("damaged", &bad).await;
            refuse("cut", &file[..at]).await;
        }
        refuse("longer", &[&file[..], &[0]].concat()).await;
        // By somebody who makes the hash again.
        let pairs = decode(&file).unwrap();
        let (header, one, two) = (&pairs[0], &pairs[1], &pairs[2]);
        let swapped = [
            header.clone(),
            (one.0.clone(), two.1.clone()),
            (two.0.clone(), one.1.clone()),
        ];
        refuse("swapped", &encode(&swapped).unwrap()).await;
        refuse(
            "one is missing",
            &encode(&[header.clone(), one.clone()]).unwrap(),
        )
        .await;
        for at in 0..one.1.len() {
            let mut bad = one.clone();
            bad.1[at] ^= 1;
            let changed = [header.clone(), bad, two.clone()];
            refuse("a record changed", &encode(&changed).unwrap()).await;
        }
        let rehashed = |bytes: &[u8]| [bytes, &Sha256::digest(bytes)[..]].concat();
        let content = &file[..file.len() - HASH_BYTES];
        let mut more = content.to_vec();
        more[12] += 1;
        refuse("one more than there are", &rehashed(&more)).await;
        more[5..13].fill(0xff);
        refuse("far more than there are", &rehashed(&more)).await;
        refuse("something behind", &rehashed(&[content, b"x"].concat())).await;
        refuse("nothing", &rehashed(&file[..5])).await;
        // A good one is taken after all that.
        drop(
            Import::prepare(&target, hsm.clone(), &file, false)
                .await
                .unwrap(),
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_encode_to_themselves(
            bytes in proptest::collection::vec(any::<u8>(), 0..300), entries in 0_u8..4
        ) {
            let sealed = [&[7; MIN_RECORD_BYTES][..], &bytes].concat();
            let id = |version| record::encode_id(&place("k", version)).unwrap();
            let pairs: Vec<Pair> = std::iter::once(HEADER_KEY.to_vec())
                .chain((1..=u32::from(entries)).map(id))
                .map(|key| (key, sealed.clone()))
                .collect();
            let file = encode(&pairs).unwrap();
            prop_assert_eq!(decode(&file).unwrap(), pairs);
            for bytes in [bytes.as_slice(), &[&file[..13], &bytes].concat()] {
                let hashed = [bytes, &Sha256::digest(bytes)[..]].concat();
                if let Ok(pairs) = decode(&hashed) {
                    prop_assert_eq!(encode(&pairs).unwrap(), hashed);
                }
            }
        }
    }
}
