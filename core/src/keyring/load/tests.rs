//! Stores that are authentic and make no sense, written with the sealing code itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::{Value, json};
use strongroom_hsm::SigningKind;

use super::*;
use crate::hex;
use crate::keyring::tests::{Site, named as key};
use crate::keyring::{CreateOptions, KeyType, Keyring, KeyringOptions};
use crate::store::{Change, StoreError};

type Payloads = BTreeMap<RecordId, Zeroizing<Vec<u8>>>;

/// A change, and the record that the refusal must name.
type Case = (&'static str, String, Vec<Change>);

async fn payloads(store: &Store) -> Payloads {
    let mut all = BTreeMap::new();
    for place in store.ids() {
        let payload = store.get(&place).await.unwrap().unwrap();
        all.insert(place, payload);
    }
    all
}

/// What the cases change.
struct Editor<'a>(&'a Payloads);

impl Editor<'_> {
    fn bytes(&self, kind: RecordKind, name: &str, version: u32) -> Zeroizing<Vec<u8>> {
        self.0[&id(kind, name, version)].clone()
    }

    fn json(&self, kind: RecordKind, name: &str, version: u32) -> Value {
        serde_json::from_slice(&self.bytes(kind, name, version)).unwrap()
    }

    /// The record with some members set; `null` removes one. A pointer (RFC 6901) names each.
    fn with(
        &self,
        (kind, name, version): (RecordKind, &str, u32),
        members: &[(&str, Value)],
    ) -> Change {
        let mut record = self.json(kind, name, version);
        for (pointer, value) in members {
            let (parent, member) = pointer.rsplit_once('/').unwrap();
            let parent = record.pointer_mut(parent).unwrap().as_object_mut().unwrap();
            if value.is_null() {
                parent.remove(member).expect("a member");
            } else {
                parent.insert(member.to_owned(), value.clone());
            }
        }
        put((kind, name, version), record.to_string())
    }
}

/// What `docs/json.md` refuses, and serde takes in part.
fn loosely(text: &str) -> [(&'static str, String); 5] {
    [
        ("a blank before it", format!(" {text}")),
        ("a newline behind it", format!("{text}\n")),
        (
            "a member twice, at depth",
            text.replacen("\"id\":", "\"id\":\"\",\"id\":", 1).replacen(
                "\"latest_version\":",
                "\"latest_version\":1,\"latest_version\":",
                1,
            ),
        ),
        ("minus zero", text.replacen(":0,", ":-0,", 1)),
        (
            "null for what is missing",
            text.replacen("\"oaep\":", "\"transfer\":null,\"oaep\":", 1),
        ),
    ]
}

fn put((kind, name, version): (RecordKind, &str, u32), payload: impl Into<Vec<u8>>) -> Change {
    Change::Put(id(kind, name, version), Zeroizing::new(payload.into()))
}

fn delete(kind: RecordKind, name: &str, version: u32) -> Change {
    Change::Delete(id(kind, name, version))
}

fn named(what: &'static str, record: &str, changes: Vec<Change>) -> Case {
    (what, record.to_owned(), changes)
}

use RecordKind::{Key as Of, KeyVersion, SigningDebris, SigningKey, SigningVersion, UseCounter};

#[allow(clippy::too_many_lines, reason = "a table")]
fn of_keys(edit: &Editor<'_>) -> Vec<Case> {
    let (key, first, second) = ((Of, "a", 0), (KeyVersion, "a", 1), (KeyVersion, "a", 2));
    let one = edit.json(KeyVersion, "a", 1);
    let text = String::from_utf8(edit.bytes(Of, "a", 0).to_vec()).unwrap();
    let twice = text.replacen('{', r#"{"derived":false,"#, 1);
    let settings =
        |what, members: &[(&str, Value)]| named(what, "key/a/0", vec![edit.with(key, members)]);
    let version = |what, members: &[(&str, Value)]| {
        named(what, "key-version/a/1", vec![edit.with(first, members)])
    };
    vec![
        named(
            "no counter",
            "use-counter/a/1",
            vec![delete(UseCounter, "a", 1)],
        ),
        named(
            "no version",
            "key-version/a/1",
            vec![delete(KeyVersion, "a", 1)],
        ),
        named(
            "no latest version",
            "key-version/a/2",
            vec![delete(KeyVersion, "a", 2)],
        ),
        named(
            "a short counter",
            "use-counter/a/1",
            vec![put((UseCounter, "a", 1), [0; 7])],
        ),
        named(
            "a long counter",
            "use-counter/a/1",
            vec![put((UseCounter, "a", 1), [0; 9])],
        ),
        named(
            "latest 1, and 2 is there",
            "key-version/a/2",
            vec![edit.with(key, &[("/latest_version", json!(1))])],
        ),
        named(
            "latest 3, and is not there",
            "key-version/a/3",
            vec![edit.with(key, &[("/latest_version", json!(3))])],
        ),
        named(
            "far too many versions",
            "key-version/a/3",
            vec![edit.with(key, &[("/latest_version", json!(u32::MAX))])],
        ),
        named(
            "1 is trimmed, and there",
            "key-version/a/1",
            vec![edit.with(
                key,
                &[
                    ("/min_available_version", json!(2)),
                    ("/min_decryption_version", json!(2)),
                    ("/min_encryption_version", json!(2)),
                ],
            )],
        ),
        settings("no version at all", &[("/latest_version", json!(0))]),
        settings("decrypts nothing", &[("/min_decryption_version", json!(3))]),
        settings("decrypts from 0", &[("/min_decryption_version", json!(0))]),
        settings(
            "encrypts with nothing",
            &[("/min_encryption_version", json!(3))],
        ),
        settings(
            "encrypts with what does not decrypt",
            &[
                ("/min_decryption_version", json!(2)),
                ("/min_encryption_version", json!(1)),
            ],
        ),
        settings(
            "trimmed above what decrypts",
            &[
                ("/min_available_version", json!(2)),
                ("/min_encryption_version", json!(2)),
            ],
        ),
        settings(
            "trimmed without a minimum",
            &[("/min_available_version", json!(1))],
        ),
        settings("convergent, not derived", &[("/convergent", json!(true))]),
        settings("rotated each second", &[("/auto_rotate_period", json!(1))]),
        settings("no kdf", &[("/kdf", json!(null))]),
        settings("another kdf", &[("/kdf", json!("md5"))]),
        settings("a member too many", &[("/exportable", json!(true))]),
        settings("a number that is text", &[("/latest_version", json!("2"))]),
        settings(
            "a negative version",
            &[("/min_encryption_version", json!(-1))],
        ),
        named("a member twice", "key/a/0", vec![put(key, twice)]),
        named("no JSON", "key/a/0", vec![put(key, "x")]),
        named("an empty record", "key/a/0", vec![put(key, "")]),
        version("no kek", &[("/kek", json!(null))]),
        version("no time", &[("/created", json!(null))]),
        version("a member too many", &[("/kek/exportable", json!(true))]),
        version("a format to come", &[("/format", json!(3))]),
        version("a kek for HMACs", &[("/kek/usage", json!("mac"))]),
        version("a mac for encryption", &[("/mac/usage", json!("aead"))]),
        version("a kek for memory", &[("/kek/master", json!("memory"))]),
        version("a kek that was cut", &[("/kek/blob", json!("AAAA"))]),
        version(
            "a transfer blob that was cut",
            &[("/kek/transfer/blob", json!("AAAA"))],
        ),
        version("no base64", &[("/mac/blob", json!("?"))]),
        version("a short id", &[("/mac/id", json!("AAAA"))]),
        version(
            "one id twice in it",
            &[("/mac/id", one["kek"]["id"].clone())],
        ),
        named(
            "one id in two versions",
            "key-version/a/2",
            vec![edit.with(second, &[("/kek/id", one["kek"]["id"].clone())])],
        ),
        named(
            "a version twice",
            "key-version/a/2",
            vec![put(second, edit.bytes(KeyVersion, "a", 1).to_vec())],
        ),
        named(
            "a derived key of one that is not",
            "key-version/a/1",
            vec![edit.with(key, &[("/derived", json!(true))])],
        ),
        named(
            "a version without a key",
            "key-version/ghost/1",
            vec![put((KeyVersion, "ghost", 1), "{}")],
        ),
        named(
            "a counter without a key",
            "use-counter/ghost/1",
            vec![put((UseCounter, "ghost", 1), [0; 8])],
        ),
        named(
            "a counter without a version",
            "use-counter/a/3",
            vec![put((UseCounter, "a", 3), [0; 8])],
        ),
        named("settings gone", "key-version/a/1", vec![delete(Of, "a", 0)]),
        named(
            "settings of a version",
            "key/a/1",
            vec![put((Of, "a", 1), edit.bytes(Of, "a", 0).to_vec())],
        ),
        named(
            "a name that can't be",
            "key/-/0",
            vec![put((Of, "-", 0), edit.bytes(Of, "a", 0).to_vec())],
        ),
        named(
            "a version 0",
            "key-version/a/0",
            vec![put(
                (KeyVersion, "a", 0),
                edit.bytes(KeyVersion, "a", 1).to_vec(),
            )],
        ),
    ]
}

#[allow(clippy::too_many_lines, reason = "a table")]
fn of_signing_keys(edit: &Editor<'_>) -> Vec<Case> {
    let (key, first, second) = (
        (SigningKey, "s", 0),
        (SigningVersion, "s", 1),
        (SigningVersion, "s", 2),
    );
    let one = edit.json(SigningVersion, "s", 1);
    let needed = base64_to_hex(one["id"].as_str().unwrap());
    let debris = |name: &str| format!("signing-debris/{name}/0");
    let settings = |what, members: &[(&str, Value)]| {
        named(what, "signing-key/s/0", vec![edit.with(key, members)])
    };
    let version = |what, members: &[(&str, Value)]| {
        named(what, "signing-version/s/1", vec![edit.with(first, members)])
    };
    let other = "00112233445566778899aabbccddeeff";
    vec![
        named(
            "a version without a key",
            "signing-version/s/1",
            vec![delete(SigningKey, "s", 0)],
        ),
        named(
            "no version",
            "signing-version/s/1",
            vec![delete(SigningVersion, "s", 1)],
        ),
        named(
            "latest 1, and 2 is there",
            "signing-version/s/2",
            vec![edit.with(
                key,
                &[
                    ("/latest_version", json!(1)),
                    ("/signing_version", json!(1)),
                    ("/published_version", json!(1)),
                ],
            )],
        ),
        settings(
            "signs with what is not there",
            &[("/signing_version", json!(3))],
        ),
        settings("publishes nothing", &[("/published_version", json!(0))]),
        settings(
            "publishes what does not sign yet",
            &[
                ("/published_version", json!(2)),
                ("/signing_version", json!(1)),
            ],
        ),
        settings("decrypts nothing", &[("/min_decryption_version", json!(3))]),
        settings("another type", &[("/type", json!("dsa"))]),
        settings("a member too many", &[("/derived", json!(false))]),
        version("no public half", &[("/spki", json!("AAAA"))]),
        version("no id", &[("/id", json!(null))]),
        named(
            "one id twice",
            "signing-version/s/2",
            vec![edit.with(second, &[("/id", one["id"].clone())])],
        ),
        (
            "needed and to be destroyed",
            debris(&needed),
            vec![put((SigningDebris, &needed, 0), "{}")],
        ),
        (
            "debris of no id",
            debris("x"),
            vec![put((SigningDebris, "x", 0), "{}")],
        ),
        (
            "debris in capitals",
            debris(&other.to_uppercase()),
            vec![put((SigningDebris, &other.to_uppercase(), 0), "{}")],
        ),
        (
            "debris that says something",
            debris(other),
            vec![put((SigningDebris, other, 0), "{ }")],
        ),
        (
            "debris with a version",
            format!("signing-debris/{other}/1"),
            vec![
                put((SigningDebris, other, 0), "{}"),
                put((SigningDebris, other, 1), "{}"),
            ],
        ),
        named(
            "the name of another key",
            "signing-key/a/0",
            vec![
                delete(SigningKey, "s", 0),
                delete(SigningVersion, "s", 1),
                delete(SigningVersion, "s", 2),
                put(
                    (SigningKey, "a", 0),
                    edit.bytes(SigningKey, "s", 0).to_vec(),
                ),
                put(
                    (SigningVersion, "a", 1),
                    edit.bytes(SigningVersion, "s", 1).to_vec(),
                ),
                put(
                    (SigningVersion, "a", 2),
                    edit.bytes(SigningVersion, "s", 2).to_vec(),
                ),
            ],
        ),
    ]
}

fn base64_to_hex(text: &str) -> String {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap();
    hex::encode(&bytes)
}

#[tokio::test]
async fn each_record_that_contradicts_another_is_named() {
    let (site, keyring) = Site::new(KeyringOptions::default()).await;
    let signing = CreateOptions {
        key_type: KeyType::Signing(SigningKind::EcdsaP256),
        ..CreateOptions::default()
    };
    for (name, options) in [("a", CreateOptions::default()), ("s", signing)] {
        keyring.create(key(name), options).await.unwrap();
        keyring.rotate(key(name)).await.unwrap();
    }
    drop(keyring);
    let store = site.store().await;
    let good = payloads(&store).await;
    let mut cases = of_keys(&Editor(&good));
    cases.extend(of_signing_keys(&Editor(&good)));
    for (kind, name, version) in [
        (Of, "a", 0),
        (KeyVersion, "a", 1),
        (SigningKey, "s", 0),
        (SigningVersion, "s", 1),
    ] {
        let place = id(kind, name, version);
        let text = String::from_utf8(good[&place].to_vec()).unwrap();
        let changed = loosely(&text).into_iter().filter(|(_, now)| *now != text);
        cases.extend(changed.map(|(what, now)| {
            let change = put((kind, name, version), now);
            (what, place.to_string(), vec![change])
        }));
    }
    let store = Arc::new(store);
    let options = KeyringOptions::default();
    for (what, record, changes) in cases {
        store.commit(changes).await.unwrap();
        let opened = Keyring::open(store.clone(), site.hsm.clone(), options.clone()).await;
        match opened.err() {
            Some(KeyringError::Store(StoreError::Inconsistent { record: named, .. })) => {
                assert_eq!(named, record, "{what}");
            }
            other => panic!("{what}: {other:?}"),
        }
        let now = store.ids().into_iter().map(Change::Delete);
        let undo = now.chain(
            good.iter()
                .map(|(place, payload)| Change::Put(place.clone(), payload.clone())),
        );
        store.commit(undo.collect()).await.unwrap();
    }
    Keyring::open(store, site.hsm.clone(), options)
        .await
        .unwrap();
}
