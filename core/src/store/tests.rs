//! Tests of the store on a real token, and the token that the keyring's tests share.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use nix::sys::stat::Mode;
use strongroom_hsm::{HsmConfig, OptionalKeys, PinSource, TokenSelector};
use strongroom_softhsm::Throwaway;
use tokio::sync::MutexGuard;

use super::engine::memory::Memory;
use super::engine::sled_db::Sled;
use super::*;

fn config(token: &Throwaway) -> HsmConfig {
    HsmConfig {
        module: token.module().to_owned(),
        token: TokenSelector::Label(token.label().to_owned()),
        pin: PinSource::File(token.pin_file()),
        sessions: 1,
        queue: 256,
        call_deadline: Duration::from_secs(30),
        key_generation_deadline: Duration::from_mins(5),
        session_keys: 64,
        shape: strongroom_hsm::KeyShape::Fixed,
    }
}

/// The token that these tests share, made once (RSA-4096 takes seconds); tests take turns, each
/// with an empty epoch object.
pub(crate) async fn token() -> (Hsm, MutexGuard<'static, ()>) {
    static TURN: Mutex<()> = Mutex::const_new(());
    static HSM: OnceLock<Hsm> = OnceLock::new();
    let turn = TURN.lock().await;
    let hsm = HSM.get_or_init(|| {
        let config = config(crate::testing::store_token());
        Hsm::provision(&config, OptionalKeys::ALL, &mut |_| ()).unwrap();
        Hsm::start(config).unwrap()
    });
    hsm.write_epoch(Vec::new()).await.unwrap();
    (hsm.clone(), turn)
}

pub(super) fn place(name: &str, version: u32) -> RecordId {
    RecordId {
        kind: RecordKind::KeyVersion,
        name: name.to_owned(),
        version,
    }
}

pub(super) fn put(name: &str, version: u32, payload: &[u8]) -> Change {
    Change::Put(place(name, version), Zeroizing::new(payload.to_vec()))
}

pub(super) fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o700)).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// Changes the database under a closed store.
fn edit(path: &Path, writes: impl FnOnce(&Sled) -> Vec<Write>) {
    let engine = Sled::open(path).unwrap();
    let writes = writes(&engine);
    engine.write(None, writes).unwrap();
}

fn key(name: &str, version: u32) -> Vec<u8> {
    record::encode_id(&place(name, version)).unwrap()
}

#[tokio::test]
async fn a_store_that_the_token_knows_is_lost_and_not_to_be_made() {
    let (hsm, _turn) = token().await;
    let folder = folder();
    let path = folder.path().join("store");
    let none = Store::open(&path, hsm.clone()).await.err().unwrap();
    assert!(none.to_string().contains("strongroom store create"));
    let store = Store::create(&path, hsm.clone()).await.unwrap();
    store.commit(vec![put("a", 1, b"one")]).await.unwrap();
    let id = crate::hex::encode(&store.status().store_id);
    drop(store);
    std::fs::remove_dir_all(&path).unwrap();
    let opened = Store::open(&path, hsm.clone()).await.err().unwrap();
    let accepted = Store::accept_rollback(&path, hsm).await.err().unwrap();
    for lost in [opened, accepted] {
        let said = lost.to_string();
        assert!(matches!(lost, StoreError::Lost { epoch: 2, .. }), "{said}");
        assert!(said.contains(&id) && said.contains("at epoch 2"), "{said}");
        assert!(!said.contains("create") && !said.contains("init"), "{said}");
    }
}

#[tokio::test]
async fn what_is_committed_is_there_after_opening_again() {
    let (hsm, _turn) = token().await;
    let folder = folder();
    let path = folder.path().join("store");
    assert!(matches!(
        Store::open(&path, hsm.clone()).await,
        Err(StoreError::Missing(_))
    ));
    let store = Store::create(&path, hsm.clone()).await.unwrap();
    let epoch = store
        .commit(vec![put("a", 1, b"one"), put("b", 1, b"two")])
        .await
        .unwrap();
    assert_eq!(epoch, 2);
    store
        .commit(vec![Change::Delete(place("b", 1)), put("a", 1, b"three")])
        .await
        .unwrap();
    assert!(matches!(
        Store::open(&path, hsm.clone()).await,
        Err(StoreError::Io(why)) if why.contains("another process")
    ));
    drop(store);
    assert!(matches!(
        Store::create(&path, hsm.clone()).await,
        Err(StoreError::TokenInUse { .. })
    ));
    let store = Store::open(&path, hsm).await.unwrap();
    assert_eq!(
        **store.get(&place("a", 1)).await.unwrap().unwrap(),
        *b"three"
    );
    assert_eq!(store.get(&place("b", 1)).await.unwrap(), None);
    assert_eq!(store.ids(), [place("a", 1)]);
    assert_eq!(store.status().epoch, 3);
}

#[tokio::test]
async fn a_flipped_bit_in_any_byte_of_a_record_is_found() {
    let (hsm, _turn) = token().await;
    let folder = folder();
    let path = folder.path().join("store");
    let store = Store::create(&path, hsm.clone()).await.unwrap();
    store.commit(vec![put("a", 1, b"payload")]).await.unwrap();
    drop(store);
    for under in [key("a", 1), record::HEADER_KEY.to_vec()] {
        let good = Sled::open(&path).unwrap().get(&under).unwrap().unwrap();
        for at in (0..good.len()).step_by(3) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            edit(&path, |_| vec![(under.clone(), Some(bad))]);
            let error = Store::open(&path, hsm.clone()).await.err().unwrap();
            // Another store id in the header's own bytes reads as another store.
            assert!(
                matches!(
                    error,
                    StoreError::Tampered { .. } | StoreError::RolledBack { .. }
                ),
                "{at}: {error}"
            );
        }
        edit(&path, |_| vec![(under.clone(), Some(good))]);
    }
    Store::open(&path, hsm).await.unwrap();
}

type Edit<'a> = Box<dyn FnOnce(&Sled) -> Vec<Write> + 'a>;

#[tokio::test]
async fn records_swapped_removed_or_replaced_by_older_ones_are_found() {
    let (hsm, _turn) = token().await;
    let folder = folder();
    let path = folder.path().join("store");
    let store = Store::create(&path, hsm.clone()).await.unwrap();
    store
        .commit(vec![
            put("a", 1, b"old"),
            put("b", 1, b"b"),
            put("a", 2, b"a2"),
        ])
        .await
        .unwrap();
    drop(store);
    let old = Sled::open(&path).unwrap().get(&key("a", 1)).unwrap();
    let store = Store::open(&path, hsm.clone()).await.unwrap();
    store.commit(vec![put("a", 1, b"new")]).await.unwrap();
    drop(store);
    let now = |engine: &Sled, name, version| engine.get(&key(name, version)).unwrap();
    let good = Sled::open(&path).unwrap().scan().unwrap();
    let edits: Vec<(&str, Edit<'_>)> = vec![
        (
            "names",
            Box::new(|e| vec![(key("a", 1), now(e, "b", 1)), (key("b", 1), now(e, "a", 1))]),
        ),
        (
            "versions",
            Box::new(|e| vec![(key("a", 1), now(e, "a", 2)), (key("a", 2), now(e, "a", 1))]),
        ),
        ("removed", Box::new(|_| vec![(key("b", 1), None)])),
        ("added", Box::new(|e| vec![(key("c", 1), now(e, "b", 1))])),
        ("old", Box::new(|_| vec![(key("a", 1), old.clone())])),
        (
            "unknown",
            Box::new(|_| vec![(b"what".to_vec(), Some(vec![1]))]),
        ),
        (
            "no header",
            Box::new(|_| vec![(record::HEADER_KEY.to_vec(), None)]),
        ),
    ];
    for (what, change) in edits {
        edit(&path, change);
        for outcome in [
            Store::open(&path, hsm.clone()).await.err(),
            Store::accept_rollback(&path, hsm.clone()).await.err(),
        ] {
            assert!(
                matches!(outcome, Some(StoreError::Tampered { .. })),
                "{what}: {outcome:?}"
            );
        }
        edit(&path, |engine| {
            let mut writes: Vec<Write> = engine
                .scan()
                .unwrap()
                .into_iter()
                .map(|(key, _)| (key, None))
                .collect();
            writes.extend(
                good.iter()
                    .map(|(key, value)| (key.clone(), Some(value.clone()))),
            );
            writes
        });
    }
    Store::open(&path, hsm).await.unwrap();
}

#[tokio::test]
async fn get_refuses_what_was_changed_under_an_open_store() {
    let (hsm, _turn) = token().await;
    let folder = folder();
    let store = Store::create(&folder.path().join("store"), hsm)
        .await
        .unwrap();
    store
        .commit(vec![put("a", 1, b"one"), put("b", 1, b"two")])
        .await
        .unwrap();
    let engine = &store.inner.engine;
    let other = engine.get(&key("b", 1)).unwrap();
    engine.write(None, vec![(key("a", 1), other)]).unwrap();
    assert!(matches!(
        store.get(&place("a", 1)).await,
        Err(StoreError::Tampered { .. })
    ));
    assert!(store.get(&place("b", 1)).await.unwrap().is_some());
}

/// Opens the store in a database that has no files.
async fn reopen(memory: &Memory, hsm: &Hsm) -> Result<Store, StoreError> {
    let token = open::read_token(hsm).await?;
    let contents = open::Contents::of(&memory.scan()?)?;
    let found = contents.judge(hsm, open::Rule::Anchored(token)).await?;
    open::adopt(Arc::new(memory.clone()), hsm.clone(), token, found).await
}

#[tokio::test]
async fn a_store_is_as_good_on_another_engine() {
    let (hsm, _turn) = token().await;
    let memory = Memory::default();
    let store = open::begin(Arc::new(memory.clone()), hsm.clone())
        .await
        .unwrap();
    store.commit(vec![put("a", 1, b"one")]).await.unwrap();
    let old = memory.scan().unwrap();
    store.commit(vec![put("a", 1, b"two")]).await.unwrap();
    drop(store);
    let store = reopen(&memory, &hsm).await.unwrap();
    let found = store.get(&place("a", 1)).await.unwrap().unwrap();
    assert_eq!(*found, b"two");
    assert_eq!(store.commit(vec![put("b", 1, b"b")]).await.unwrap(), 4);
    drop(store);
    let back: Vec<Write> = old
        .iter()
        .map(|(k, v)| (k.clone(), Some(v.clone())))
        .collect();
    memory.write(None, back).unwrap();
    assert!(matches!(
        reopen(&memory, &hsm).await.err(),
        Some(StoreError::RolledBack { .. })
    ));
}

#[tokio::test]
async fn nothing_is_written_over_what_another_wrote_meanwhile() {
    let (hsm, _turn) = token().await;
    let memory = Memory::default();
    let store = open::begin(Arc::new(memory.clone()), hsm.clone())
        .await
        .unwrap();
    store.commit(vec![put("a", 1, b"one")]).await.unwrap();
    memory
        .write(None, vec![(record::HEADER_KEY.to_vec(), Some(vec![1]))])
        .unwrap();
    let before = memory.scan().unwrap();
    // Nor by a later commit: this server no longer knows what is there.
    for _ in 0..2 {
        let error = store.commit(vec![put("b", 1, b"b")]).await.unwrap_err();
        assert!(matches!(&error, StoreError::Io(why) if why.contains("another process wrote")));
        assert_eq!(memory.scan().unwrap(), before);
    }
}

#[tokio::test]
async fn an_old_copy_or_another_store_fails_closed_until_it_is_accepted() {
    let (hsm, _turn) = token().await;
    let folder = folder();
    let path = folder.path().join("store");
    let backup = folder.path().join("backup");
    let store = Store::create(&path, hsm.clone()).await.unwrap();
    store.commit(vec![put("a", 1, b"one")]).await.unwrap();
    drop(store);
    copy(&path, &backup);
    let store = Store::open(&path, hsm.clone()).await.unwrap();
    store.commit(vec![put("a", 1, b"two")]).await.unwrap();
    drop(store);
    let error = Store::open(&backup, hsm.clone()).await.err().unwrap();
    assert!(
        matches!(&error, StoreError::RolledBack { detail } if detail.contains("epoch 2") && detail.contains("epoch 3")),
        "{error}"
    );
    assert!(error.to_string().contains("accept-rollback"));

    let accepted = Store::accept_rollback(&backup, hsm.clone()).await.unwrap();
    assert_eq!(
        (accepted.hsm_epoch, accepted.store_epoch, accepted.new_epoch),
        (3, 2, 4)
    );
    let store = Store::open(&backup, hsm.clone()).await.unwrap();
    assert_eq!(**store.get(&place("a", 1)).await.unwrap().unwrap(), *b"one");
    drop(store);
    assert!(matches!(
        Store::open(&path, hsm.clone()).await,
        Err(StoreError::RolledBack { .. })
    ));

    hsm.write_epoch(Vec::new()).await.unwrap();
    drop(
        Store::create(&folder.path().join("other"), hsm.clone())
            .await
            .unwrap(),
    );
    let error = Store::open(&path, hsm).await.err().unwrap();
    assert!(
        matches!(&error, StoreError::RolledBack { detail } if detail.contains("belongs to the store")),
        "{error}"
    );
}

#[tokio::test]
async fn a_store_cut_off_before_the_token_was_told_is_taken_forward() {
    let (hsm, _turn) = token().await;
    let folder = folder();
    let path = folder.path().join("store");
    let store = Store::create(&path, hsm.clone()).await.unwrap();
    let one = hsm.read_epoch().await.unwrap();
    store.commit(vec![put("a", 1, b"one")]).await.unwrap();
    let two = hsm.read_epoch().await.unwrap();
    drop(store);
    hsm.write_epoch(one.clone()).await.unwrap();
    let store = Store::open(&path, hsm.clone()).await.unwrap();
    assert_eq!(hsm.read_epoch().await.unwrap(), two);
    store.commit(vec![put("a", 1, b"two")]).await.unwrap();
    drop(store);
    hsm.write_epoch(one).await.unwrap();
    assert!(matches!(
        Store::open(&path, hsm).await,
        Err(StoreError::RolledBack { .. })
    ));
}

/// Every file below a directory but the copies and what was put aside: path and bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = std::fs::read(&path).unwrap();
                all.insert(path.strip_prefix(folder).unwrap().to_owned(), bytes);
            }
        }
    }
    all
}

const RECORDS: u32 = 12;

/// A closed store with a snapshot and a blob; what its records hold.
async fn store_with_every_file(path: &Path, hsm: &Hsm) -> Vec<Vec<u8>> {
    let mut payloads = vec![vec![7; 1500]; RECORDS as usize];
    payloads.push(vec![8; 600_000]);
    let store = Store::create(path, hsm.clone()).await.unwrap();
    for (version, payload) in (1..).zip(&payloads) {
        store
            .commit(vec![put("a", version, payload)])
            .await
            .unwrap();
    }
    drop(store);
    // An opening leaves a snapshot.
    drop(Store::open(path, hsm.clone()).await.unwrap());
    payloads
}

async fn holds_all(store: &Store, payloads: &[Vec<u8>]) {
    assert_eq!(store.ids().len(), payloads.len());
    for (version, payload) in (1..).zip(payloads) {
        let found = store.get(&place("a", version)).await.unwrap().unwrap();
        assert_eq!(**found, *payload);
    }
}

/// What may happen to a file.
fn damages(whole: &[u8], flips: usize) -> Vec<(String, Option<Vec<u8>>)> {
    let length = whole.len();
    let mut damages = vec![("removed".to_owned(), None)];
    let cuts = [0, 1, 8, 12, 13, length / 3, length / 2, length - 1];
    for cut in cuts.into_iter().filter(|cut| *cut < length) {
        damages.push((format!("cut to {cut}"), Some(whole[..cut].to_vec())));
    }
    damages.push(("longer".to_owned(), Some([whole, b"more"].concat())));
    damages.push(("zeros".to_owned(), Some(vec![0; length])));
    // Most of a log is empty: what is written is at its beginning.
    let written = whole.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
    for at in (0..written).step_by(written.div_ceil(flips)) {
        for bit in [1, 0x80] {
            let mut bytes = whole.to_vec();
            bytes[at] ^= bit;
            damages.push((format!("bit {bit:#x} of byte {at}"), Some(bytes)));
        }
    }
    damages
}

#[tokio::test]
async fn each_damage_of_each_file_costs_no_record_or_names_the_file_and_changes_nothing() {
    let (hsm, _turn) = token().await;
    let folder = folder();
    let path = folder.path().join("store");
    let payloads = store_with_every_file(&path, &hsm).await;
    let good = files(&path);
    let names: Vec<_> = good.keys().map(|path| path.to_str().unwrap()).collect();
    let has = |start: &str| names.iter().any(|name| name.starts_with(start));
    assert!(
        has("db") && has("conf") && has("snap.") && has("blobs/"),
        "{names:?}"
    );
    let bad = folder.path().join("bad");
    let (mut opened, mut refused) = (0, 0);
    for (name, whole) in &good {
        let spare = !name.starts_with("db") && !name.starts_with("blobs");
        for (what, bytes) in damages(whole, if spare { 30 } else { 12 }) {
            let what = format!("{}: {what}", name.display());
            let _ = std::fs::remove_dir_all(&bad);
            copy(&path, &bad);
            match bytes {
                Some(bytes) => std::fs::write(bad.join(name), bytes).unwrap(),
                None => std::fs::remove_file(bad.join(name)).unwrap(),
            }
            let before = files(&bad);
            match Store::open(&bad, hsm.clone()).await {
                Ok(store) => {
                    holds_all(&store, &payloads).await;
                    drop(store);
                    drop(Store::open(&bad, hsm.clone()).await.expect(&what));
                    // What was not good is kept.
                    let after = files(&bad);
                    let damaged = before
                        .get(name)
                        .filter(|_| !good.values().any(|good| Some(good) == before.get(name)));
                    if let Some(damaged) = damaged.filter(|_| spare) {
                        let kept = after.values().any(|bytes| bytes == damaged);
                        assert!(kept || name.starts_with("conf"), "{what}: evidence is gone");
                    }
                    opened += 1;
                }
                Err(error) => {
                    assert!(!spare, "{what}: {error}");
                    let said = error.to_string();
                    assert!(
                        said.contains(bad.join("db").to_str().unwrap()),
                        "{what}: {said}"
                    );
                    assert!(said.contains("accept-rollback"), "{what}: {said}");
                    assert_eq!(files(&bad), before, "{what}: the files were changed");
                    refused += 1;
                }
            }
            assert!(!bad.join("trial").exists(), "{what}");
        }
    }
    assert!(opened > 100 && refused > 20, "{opened} {refused}");
}

fn pipe(path: &Path) {
    nix::unistd::mkfifo(path, Mode::S_IRWXU).unwrap();
}

/// A file without an end in the place of what is there.
fn endless(path: &Path) {
    let _ = std::fs::remove_file(path);
    std::os::unix::fs::symlink("/dev/zero", path).unwrap();
}

/// Done to a store's directory.
type Harm<'a> = &'a dyn Fn();

#[tokio::test]
async fn what_is_in_a_files_place_is_named_with_what_to_do() {
    let (hsm, _turn) = token().await;
    let folder = folder();
    let path = folder.path().join("store");
    store_with_every_file(&path, &hsm).await;
    let bad = folder.path().join("bad");
    let odd = || std::ffi::OsStr::from_bytes(b"snap.\xff").to_owned();
    let pipe = |name: &str| pipe(&bad.join(name));
    let endless = |name: &str| endless(&bad.join(name));
    let refused: [(&str, Harm<'_>, &str); 10] = [
        (
            "db",
            &|| {
                std::fs::remove_file(bad.join("db")).unwrap();
                std::fs::create_dir(bad.join("db")).unwrap();
            },
            "move it away",
        ),
        (
            "db",
            &|| {
                std::fs::remove_file(bad.join("db")).unwrap();
                pipe("db");
            },
            "move it away",
        ),
        ("db", &|| endless("db"), "move it away"),
        ("blobs/x", &|| pipe("blobs/x"), "move it away"),
        ("blobs/x", &|| endless("blobs/x"), "move it away"),
        (
            "blobs",
            &|| {
                std::fs::rename(bad.join("blobs"), bad.join("elsewhere")).unwrap();
                std::os::unix::fs::symlink("elsewhere", bad.join("blobs")).unwrap();
            },
            "move it away",
        ),
        (
            "db",
            &|| {
                std::fs::rename(bad.join("db"), bad.join("elsewhere")).unwrap();
                std::os::unix::fs::symlink("elsewhere", bad.join("db")).unwrap();
            },
            "move it away",
        ),
        (
            "snap.",
            &|| std::fs::write(bad.join(odd()), "").unwrap(),
            "move it away",
        ),
        (
            "blobs/x",
            &|| std::fs::create_dir(bad.join("blobs/x")).unwrap(),
            "move it away",
        ),
        (
            "bad",
            &|| {
                std::fs::set_permissions(&bad, std::fs::Permissions::from_mode(0o755)).unwrap();
            },
            "chmod 700",
        ),
    ];
    for (named, change, advice) in refused {
        let _ = std::fs::remove_dir_all(&bad);
        copy(&path, &bad);
        change();
        let error = Store::open(&bad, hsm.clone())
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains(named) && error.contains(advice),
            "{named}: {error}"
        );
        assert!(!bad.join("trial").exists(), "{named}");
    }
}

#[tokio::test]
async fn what_stands_in_the_place_of_a_file_that_is_not_needed_is_put_aside() {
    let (hsm, _turn) = token().await;
    let folder = folder();
    let path = folder.path().join("store");
    let payloads = store_with_every_file(&path, &hsm).await;
    let bad = folder.path().join("bad");
    let pipe = |name: &str| pipe(&bad.join(name));
    let endless = |name: &str| endless(&bad.join(name));
    let snapshot = std::fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .find(|name| name.starts_with("snap."))
        .unwrap();
    let harmless: [Harm<'_>; 9] = [
        &|| {
            let file = std::fs::File::create(bad.join(&snapshot)).unwrap();
            file.set_len(1 << 40).unwrap();
        },
        // What a process that was killed leaves.
        &|| std::fs::write(bad.join(format!("{snapshot}.generating")), "half").unwrap(),
        &|| {
            std::fs::create_dir(bad.join("trial")).unwrap();
            std::fs::write(bad.join("trial/db"), "half").unwrap();
        },
        &|| std::fs::write(bad.join("README"), "hands off").unwrap(),
        &|| {
            std::fs::remove_file(bad.join(&snapshot)).unwrap();
            std::fs::create_dir(bad.join(&snapshot)).unwrap();
        },
        &|| pipe("snap.0000000000001000"),
        &|| endless("snap.0000000000002000"),
        &|| {
            std::fs::remove_file(bad.join("conf")).unwrap();
            pipe("conf");
        },
        &|| endless("conf"),
    ];
    for change in harmless {
        let _ = std::fs::remove_dir_all(&bad);
        copy(&path, &bad);
        change();
        let store = Store::open(&bad, hsm.clone()).await.unwrap();
        holds_all(&store, &payloads).await;
        assert!(!bad.join("trial").exists());
    }
    // Nor is a new store made where its settings would be read from one.
    let other: [Harm<'_>; 2] = [&|| pipe("conf"), &|| endless("conf")];
    for change in other {
        std::fs::remove_dir_all(&bad).unwrap();
        std::fs::create_dir(&bad).unwrap();
        change();
        hsm.write_epoch(Vec::new()).await.unwrap();
        let error = Store::create(&bad, hsm.clone()).await.err().unwrap();
        assert!(error.to_string().contains("other files"), "{error}");
    }
}

#[tokio::test]
async fn a_token_that_has_sealed_its_share_seals_no_more() {
    let (hsm, _turn) = token().await;
    let folder = folder();
    let path = folder.path().join("store");
    let store = Store::create(&path, hsm.clone()).await.unwrap();
    drop(store);
    let copied = folder.path().join("copy");
    copy(&path, &copied);
    let seals = async || {
        let value = hsm.read_epoch().await.unwrap();
        Anchor::decode_from_token(&value).unwrap()
    };
    // Two more, of which a commit of one record needs both.
    let almost = Anchor {
        seals: MAX_SEALS - 2,
        ..seals().await
    };
    hsm.write_epoch(almost.encode_for_token()).await.unwrap();
    let store = Store::open(&path, hsm.clone()).await.unwrap();
    store.commit(vec![put("a", 1, b"x")]).await.unwrap();
    assert_eq!(seals().await.seals, MAX_SEALS);
    assert!(matches!(
        store.commit(vec![put("a", 2, b"x")]).await,
        Err(StoreError::SealsExhausted)
    ));
    drop(store);
    // An older copy does not take the token's own count back.
    assert!(matches!(
        Store::accept_rollback(&copied, hsm.clone()).await,
        Err(StoreError::SealsExhausted)
    ));
    assert_eq!(seals().await.seals, MAX_SEALS);
}

#[tokio::test]
async fn who_looks_for_a_moment_keeps_no_server_from_starting() {
    let (hsm, _turn) = token().await;
    let folder = folder();
    let path = folder.path().join("store");
    drop(Store::create(&path, hsm.clone()).await.unwrap());
    // Another test's child may have a copy of the descriptor for a moment.
    let free = || (!Store::is_in_use(&path).unwrap()).then_some(()).ok_or(());
    crate::lock::patiently(free, |()| true).unwrap();
    let looking = Lock::take_patiently(&path).unwrap();
    assert!(Store::is_in_use(&path).unwrap());
    let looking = tokio::task::spawn_blocking(move || {
        std::thread::sleep(Duration::from_millis(500));
        drop(looking);
    });
    Store::open(&path, hsm).await.unwrap();
    looking.await.unwrap();
}

#[tokio::test]
async fn of_two_servers_with_a_copy_each_the_second_to_write_is_refused() {
    let (hsm, _turn) = token().await;
    let folder = folder();
    let (path, copied) = (folder.path().join("store"), folder.path().join("copy"));
    drop(Store::create(&path, hsm.clone()).await.unwrap());
    copy(&path, &copied);
    let first = Store::open(&path, hsm.clone()).await.unwrap();
    let second = Store::open(&copied, hsm.clone()).await.unwrap();
    first.commit(vec![put("a", 1, b"x")]).await.unwrap();
    assert!(matches!(
        second.commit(vec![put("a", 1, b"y")]).await,
        Err(StoreError::RolledBack { .. })
    ));
    first.commit(vec![put("a", 2, b"x")]).await.unwrap();
    drop((first, second));
    assert_eq!(Store::open(&path, hsm).await.unwrap().ids().len(), 2);
}

const CHILD: &str = "STRONGROOM_TEST_COMMITTER";

/// Not a test of its own: the process that [`no_acknowledged_write_is_lost_to_kill_9`] kills.
#[tokio::test]
async fn committer_child() {
    let Ok(arguments) = std::env::var(CHILD) else {
        return;
    };
    let [module, label, pin, path, acknowledged] = arguments.split('\n').collect::<Vec<_>>()[..]
    else {
        panic!("five arguments");
    };
    let config = HsmConfig {
        module: module.into(),
        token: TokenSelector::Label(label.to_owned()),
        pin: PinSource::File(pin.into()),
        sessions: 1,
        queue: 16,
        call_deadline: Duration::from_secs(30),
        key_generation_deadline: Duration::from_mins(5),
        session_keys: 4,
        shape: strongroom_hsm::KeyShape::Fixed,
    };
    let path = Path::new(path);
    if !path.exists() {
        Hsm::provision(&config, OptionalKeys::default(), &mut |_| ()).unwrap();
    }
    let hsm = Hsm::start(config).unwrap();
    let store = if path.exists() {
        Store::open(path, hsm).await.unwrap()
    } else {
        Store::create(path, hsm).await.unwrap()
    };
    let acknowledged: u32 = acknowledged.parse().unwrap();
    for number in 1..=acknowledged {
        for name in ["a", "b"] {
            let found = store.get(&place(name, number)).await.unwrap();
            assert_eq!(
                **found.expect("an acknowledged write"),
                number.to_be_bytes()
            );
        }
    }
    println!("ready");
    for number in acknowledged + 1.. {
        let payload = number.to_be_bytes();
        store
            .commit(vec![put("a", number, &payload), put("b", number, &payload)])
            .await
            .unwrap();
        println!("acknowledged {number}");
    }
}

#[test]
fn no_acknowledged_write_is_lost_to_kill_9() {
    let token = Throwaway::new().unwrap();
    let path = token.path().join("store");
    let mut acknowledged = 0;
    for round in 0..10_u64 {
        let arguments = format!(
            "{}\n{}\n{}\n{}\n{acknowledged}",
            token.module().display(),
            token.label(),
            token.pin_file().display(),
            path.display()
        );
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::committer_child", "--nocapture"])
            .env(CHILD, arguments)
            .env(token.env().0, token.env().1)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(
            lines
                .by_ref()
                .map_while(Result::ok)
                .any(|line| line.contains("ready")),
            "the store did not open after {acknowledged} commits"
        );
        // Another moment of a commit each round.
        let mut lines = lines.map_while(Result::ok);
        let mut seen = |line: String| {
            if let Some(number) = line.strip_prefix("acknowledged ") {
                acknowledged = number.parse().expect("a number");
            }
        };
        lines.by_ref().take(2).for_each(&mut seen);
        std::thread::sleep(Duration::from_micros(round * 4_919));
        child.kill().unwrap();
        lines.for_each(seen);
        child.wait().unwrap();
    }
    assert!(
        acknowledged >= 20,
        "the child hardly committed: {acknowledged}"
    );
}

/// Whoever the service's directory belongs to can put a link there at any time, and root comes by
/// at a initial ceremony, a restoration, a rotation.
#[tokio::test]
async fn a_link_in_the_services_folder_leads_root_to_no_file_of_roots() {
    const SERVICE: u32 = 54_321;
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let (hsm, _turn) = token().await;
    let room = folder();
    std::fs::set_permissions(room.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let state = room.path().join("state");
    let roots = room.path().join("roots");
    for made in [&state, &roots] {
        std::fs::create_dir(made).unwrap();
    }
    std::os::unix::fs::chown(&state, Some(SERVICE), Some(SERVICE)).unwrap();
    let link = |target: &str, name: &str| {
        let _ = std::fs::remove_dir_all(state.join("store"));
        std::fs::create_dir_all(state.join(name).parent().unwrap()).unwrap();
        std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o700)).unwrap();
        if name != "store" {
            let store = state.join("store");
            std::os::unix::fs::chown(&store, Some(SERVICE), Some(SERVICE)).unwrap();
        }
        std::os::unix::fs::symlink(room.path().join(target), state.join(name)).unwrap();
    };
    let untouched = || std::fs::read_dir(&roots).unwrap().count() == 0;
    for (target, name) in [
        ("roots", "store"),
        ("roots/new", "store"),
        ("roots/db", "store/db"),
        ("roots/conf", "store/conf"),
    ] {
        link(target, name);
        assert!(
            Store::create(&state.join("store"), hsm.clone())
                .await
                .is_err(),
            "{name}"
        );
        assert!(untouched(), "{name} to {target}");
        std::fs::remove_file(state.join(name)).unwrap();
    }
    let _ = std::fs::remove_dir_all(state.join("store"));
    let store = Store::create(&state.join("store"), hsm.clone())
        .await
        .unwrap();
    store.commit(vec![put("a", 1, b"one")]).await.unwrap();
    drop(store);
    let mut all = vec![state.join("store")];
    while let Some(path) = all.pop() {
        let owner = std::os::unix::fs::MetadataExt::uid(&path.symlink_metadata().unwrap());
        assert_eq!(owner, SERVICE, "{}", path.display());
        if path.is_dir() {
            all.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
    }
    // A store of root's, in another's place: an acceptance would write into it.
    copy(&state.join("store"), &roots.join("store"));
    std::fs::remove_dir_all(state.join("store")).unwrap();
    std::os::unix::fs::symlink(roots.join("store"), state.join("store")).unwrap();
    let before = std::fs::read(roots.join("store/db")).unwrap();
    let refused = Store::accept_rollback(&state.join("store"), hsm).await;
    assert!(refused.is_err());
    assert!(std::fs::read(roots.join("store/db")).unwrap() == before);
}
