//! One look at the token is no verdict: what is on it may be just being written by another process,
//! or away. A real token, in whose files this writes as such a process does, behind the module of
//! tests/pkcs11-fault.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "../../tests/support/token_files.rs"]
mod token_files;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::rig::{self, Rig, in_child_on};
use strongroom_hsm::{GcmItem, Hsm, HsmError, HsmState, KeyUsage, MasterKind, WrappedKey};
use token_files::{CKA_EXTRACTABLE, CKO_DATA, CKO_SECRET_KEY, ObjectFile};
use zeroize::Zeroizing;

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_key_that_is_just_being_written_is_looked_at_again() {
    in_child(
        "a_key_that_is_just_being_written_is_looked_at_again",
        async |rig| {
            let mut object = store_key(&rig);
            let hsm = rig.start("").unwrap();
            let key = kek(&hsm).await;
            for end in cuts(&object) {
                object.write_up_to(end);
                rig.control("forget-sessions");
                until(async || match hsm.state() {
                    HsmState::Ready => {
                        let _ = encrypt(&hsm, &key).await;
                        false
                    }
                    HsmState::Reconnecting { reason } => {
                        reason.contains("store key") && reason.contains("again")
                    }
                    state @ HsmState::Stopped { .. } => panic!("{state:?}"),
                })
                .await;
                object.write_whole();
                rig.control("");
                until(async || encrypt(&hsm, &key).await.is_ok()).await;
            }
        },
    );
}

#[test]
fn a_key_that_stays_as_it_must_not_be_stops_the_pool() {
    in_child(
        "a_key_that_stays_as_it_must_not_be_stops_the_pool",
        async |rig| {
            let mut object = store_key(&rig);
            let hsm = rig.start("").unwrap();
            let key = kek(&hsm).await;
            object.write_up_to(object.offset_of(CKA_EXTRACTABLE));
            rig.control("forget-sessions");
            until(async || match hsm.state() {
                HsmState::Ready => {
                    let _ = encrypt(&hsm, &key).await;
                    false
                }
                HsmState::Stopped { reason } => {
                    assert!(reason.contains("store key"), "{reason}");
                    true
                }
                HsmState::Reconnecting { .. } => false,
            })
            .await;
            assert!(encrypt(&hsm, &key).await.is_err());
        },
    );
}

#[test]
fn a_start_looks_again_and_then_says_what_is_wrong() {
    in_child(
        "a_start_looks_again_and_then_says_what_is_wrong",
        async |rig| {
            for end in cuts(&store_key(&rig)) {
                let mut object = store_key(&rig);
                object.write_up_to(end);
                match rig.start("").err() {
                    Some(
                        HsmError::KeyPolicy { key: name, .. } | HsmError::Missing { name, .. },
                    ) => {
                        assert_eq!(name, "store key");
                    }
                    other => panic!("{other:?}"),
                }
                // Written on as soon as it was seen half, and looked for again.
                let looks = rig.logged("C_Finalize");
                thread::scope(|scope| {
                    let rig = &rig;
                    let writer = scope.spawn(move || {
                        let deadline = Instant::now() + PATIENCE;
                        while rig.logged("C_Finalize") == looks {
                            assert!(Instant::now() < deadline, "no second look");
                            thread::sleep(Duration::from_millis(1));
                        }
                        object.write_whole();
                    });
                    let started = rig.start("");
                    writer.join().unwrap();
                    assert!(started.is_ok(), "{:?}", started.err());
                });
            }
        },
    );
}

/// `SoftHSM` never looks again at an object whose file it has missed, unless it is started again.
#[test]
fn a_register_that_was_away_is_found_again_and_an_older_one_is_refused() {
    in_child(
        "a_register_that_was_away_is_found_again_and_an_older_one_is_refused",
        async |rig| {
            let hsm = rig.start("").unwrap();
            hsm.write_epoch(vec![1]).await.unwrap();
            let older = registers(&rig);
            hsm.write_epoch(vec![2]).await.unwrap();
            let newest = registers(&rig);
            // The older file's bytes are kept in `older`; the newest file is another one.
            newest.iter().for_each(ObjectFile::move_away);
            for _ in 0..2 {
                assert!(hsm.read_epoch().await.is_err());
                assert!(hsm.write_epoch(vec![3]).await.is_err());
            }
            until(async || says(&hsm, "epoch object")).await;
            newest.iter().for_each(ObjectFile::move_back);
            until(async || hsm.read_epoch().await.is_ok_and(|value| value == [2])).await;

            newest.iter().for_each(ObjectFile::move_away);
            for mut object in older {
                object.write_whole();
            }
            until(async || {
                assert_ne!(hsm.read_epoch().await.ok(), Some(vec![1]));
                says(&hsm, "older")
            })
            .await;
            assert!(hsm.write_epoch(vec![3]).await.is_err());
            newest.iter().for_each(ObjectFile::move_back);
            until(async || hsm.read_epoch().await.is_ok_and(|value| value == [2])).await;
            hsm.write_epoch(vec![3]).await.unwrap();
            assert_eq!(hsm.read_epoch().await.unwrap(), [3]);
        },
    );
}

fn says(hsm: &Hsm, part: &str) -> bool {
    matches!(hsm.state(), HsmState::Reconnecting { reason } if reason.contains(part))
}

/// Between two attributes, and within one.
fn cuts(object: &ObjectFile) -> [usize; 2] {
    [object.offset_of(CKA_EXTRACTABLE), object.len() / 2]
}

fn store_key(rig: &Rig) -> ObjectFile {
    let mut found = ObjectFile::of_class(&rig.folder.join("tokens"), CKO_SECRET_KEY);
    assert_eq!(found.len(), 1);
    found.remove(0)
}

fn registers(rig: &Rig) -> Vec<ObjectFile> {
    let found = ObjectFile::of_class(&rig.folder.join("tokens"), CKO_DATA);
    assert_eq!(found.len(), 1);
    found
}

async fn kek(hsm: &Hsm) -> Arc<WrappedKey> {
    let key = hsm.generate_key(KeyUsage::Aead, MasterKind::Hsm).await;
    Arc::new(key.unwrap())
}

async fn encrypt(hsm: &Hsm, key: &Arc<WrappedKey>) -> Result<Vec<u8>, HsmError> {
    let item = GcmItem {
        key: Arc::clone(key),
        iv: [1; 12],
        aad: vec![],
        data: Zeroizing::new(vec![7; 16]),
    };
    hsm.encrypt(vec![item]).await?.remove(0)
}

async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn in_child(test: &str, body: impl AsyncFnOnce(Rig)) {
    in_child_on(test, rig::token, body);
}

#[test]
#[ignore = "runs in a child process, once, to make the token"]
fn provision() {
    rig::provision_all();
}
