//! The real program and its store: records that contradict each other, a disk without room,
//! exports.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use strongroom_client::Answer;
use strongroom_core::config::Config;
use strongroom_core::store::{Change, RecordId, RecordKind, Store};
use strongroom_hsm::Hsm;
use zeroize::Zeroizing;

use crate::disk::SmallFileSystem;
use crate::support::{Appliance, Who, ask, decrypt, encrypt, expect, skip};

/// The documented exit code of a store that can't be used.
const STORE: i32 = 5;
/// Of a command line that can't be.
const USAGE: i32 = 2;

/// What the process that edits the store is told: configuration, and which of the [`EDITS`], or
/// `undo`.
const EDITOR: &str = "STRONGROOM_TEST_STORE_EDITOR";

/// Makes another payload of the one that is there, or none.
type Edit = fn(Option<Value>) -> Option<Value>;

/// What is done to which record, and which record the refusal names.
const EDITS: [(RecordKind, &str, u32, Edit, &str); 6] = [
    (RecordKind::UseCounter, "a", 1, |_| None, "use-counter/a/1"),
    (RecordKind::KeyVersion, "a", 1, |_| None, "key-version/a/1"),
    (
        RecordKind::Key,
        "a",
        0,
        |record| with(record, "latest_version", json!(1)),
        "key-version/a/2",
    ),
    (
        RecordKind::Key,
        "a",
        0,
        |record| with(record, "exportable", json!(true)),
        "key/a/0",
    ),
    (
        RecordKind::Key,
        "a",
        0,
        |record| with(record, "min_decryption_version", json!(3)),
        "key/a/0",
    ),
    (
        RecordKind::KeyVersion,
        "ghost",
        1,
        |_| Some(json!({})),
        "key-version/ghost/1",
    ),
];

fn with(record: Option<Value>, member: &str, value: Value) -> Option<Value> {
    let mut record = record?;
    record[member] = value;
    Some(record)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_and_store_status_refuse_the_same_stores_by_the_same_record() {
    let mut appliance = Appliance::start().await;
    appliance.create_key("a", json!({})).await;
    let client = appliance.client(Who::Operator);
    expect(&client, "POST", "transit/keys/a/rotate", Value::Null, 200).await;
    appliance.stop();
    for (number, (.., record)) in EDITS.iter().enumerate() {
        edit(&appliance, &number.to_string());
        let status = appliance.cli(["store", "status"]);
        assert_eq!(status.status.code(), Some(STORE), "{}", text(&status));
        assert!(text(&status).contains(record), "{}", text(&status));
        let logged = appliance.log().len();
        appliance.spawn();
        assert_eq!(appliance.wait_exit(), Some(STORE), "{}", appliance.log());
        let said = appliance.log().split_off(logged);
        assert!(said.contains(record), "{record}: {said}");
        edit(&appliance, "undo");
    }
    let status = appliance.cli(["store", "status", "--output", "json"]);
    assert!(status.status.success(), "{}", text(&status));
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(
        (&status["keys"], &status["versions"]),
        (&json!(1), &json!(2))
    );
    appliance.launch().await;
}

/// What happens to a file of the database, and what the refusal says beside the file's name.
type Damage = (&'static str, fn(&Path), &'static str);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_check_and_server_refuse_a_damaged_database_by_the_same_file() {
    const DAMAGES: [Damage; 6] = [
        ("db", |file| fs::write(file, "").unwrap(), ""),
        ("db", |file| fs::remove_file(file).unwrap(), ""),
        (
            "db",
            |file| {
                // The header, and what follows.
                let mut bytes = fs::read(file).unwrap();
                bytes[..4096].fill(0x5a);
                fs::write(file, bytes).unwrap();
            },
            "",
        ),
        (
            "db",
            |file| {
                fs::remove_file(file).unwrap();
                fs::create_dir(file).unwrap();
            },
            "",
        ),
        (
            "blobs",
            |file| {
                fs::remove_dir_all(file).unwrap();
                fs::write(file, "").unwrap();
            },
            "",
        ),
        (
            "",
            |folder| fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap(),
            "chmod 700",
        ),
    ];
    let mut appliance = Appliance::start().await;
    appliance.create_key("a", json!({})).await;
    appliance.stop();
    let (store, kept) = (appliance.store(), appliance.path().join("kept"));
    fs::rename(&store, &kept).unwrap();
    let whole = || {
        let _ = fs::remove_dir_all(&store);
        let copied = Command::new("cp").arg("-a").args([&kept, &store]).status();
        assert!(copied.unwrap().success());
    };
    for (number, (file, damage, says)) in DAMAGES.into_iter().enumerate() {
        whole();
        let file = if file.is_empty() {
            store.clone()
        } else {
            store.join(file)
        };
        damage(&file);
        let name = file.to_str().unwrap();
        let status = appliance.cli(["store", "status"]);
        assert_eq!(status.status.code(), Some(STORE), "{}", text(&status));
        let check = appliance.cli(["check"]);
        assert!(!check.status.success(), "{}", text(&check));
        let logged = appliance.log().len();
        appliance.spawn();
        assert_eq!(appliance.wait_exit(), Some(STORE), "{}", appliance.log());
        let served = appliance.log().split_off(logged);
        for said in [text(&status), text(&check), served] {
            assert!(
                said.contains(name) && said.contains(says),
                "{number}, {name}: {said}"
            );
            assert!(!said.contains("panicked"), "{said}");
        }
    }
    whole();
    appliance.launch().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disc_without_room_stops_the_start_and_changes_nothing() {
    let mut appliance = Appliance::start().await;
    appliance.create_key("a", json!({})).await;
    appliance.stop();
    let log = appliance.store().join("db");
    let before = fs::read(&log).unwrap();
    // No file may be longer than 64 KiB: what a full disk says too, but of the store alone.
    appliance.wrap(["sh", "-c", "trap '' XFSZ; ulimit -f 128; exec \"$@\"", "sh"]);
    let logged = appliance.log().len();
    appliance.spawn();
    assert_eq!(appliance.wait_exit(), Some(STORE), "{}", appliance.log());
    let said = appliance.log().split_off(logged);
    assert!(said.contains("make room") && said.contains("db"), "{said}");
    assert_eq!(fs::read(&log).unwrap(), before);
    appliance.wrap([""; 0]);
    appliance.launch().await;
    let client = appliance.client(Who::Operator);
    expect(&client, "GET", "transit/keys/a", Value::Null, 200).await;
}

fn text_of(answer: &Answer) -> String {
    String::from_utf8_lossy(answer.bytes()).into_owned()
}

/// Nothing is begun that could not be ended, and nothing needs a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_stores_disk_is_full_changes_wait_and_what_needs_none_goes_on() {
    let mut appliance = Appliance::builder().prepare();
    let folder = appliance.path().join("disk");
    let Some(disk) = SmallFileSystem::new(&folder, "24m") else {
        skip("a full disk of the store", "nothing can be mounted here");
        return;
    };
    let copied = Command::new("cp")
        .arg("-a")
        .arg(appliance.store())
        .arg(folder.join("store"))
        .status();
    assert!(copied.unwrap().success());
    let config = fs::read_to_string(appliance.config()).unwrap();
    fs::write(
        appliance.config(),
        config.replace("path = \"store\"", "path = \"disk/store\""),
    )
    .unwrap();
    appliance.launch().await;
    appliance.create_key("k", json!({})).await;
    let client = appliance.client(Who::Operator);
    let ciphertext = encrypt(&client, "k", b"x").await;
    let rotate = || ask(&client, "POST", "transit/keys/k/rotate", json!({}));
    let versions = || async {
        let read = expect(&client, "GET", "transit/keys/k", Value::Null, 200).await;
        read["data"]["latest_version"].as_u64().unwrap()
    };
    let is_full = || async {
        let metrics = ask(&client, "GET", "sys/metrics", Value::Null).await;
        let text = text_of(&metrics);
        text.lines()
            .any(|line| line == "strongroom_store_disk_full 1")
    };
    let mut made = 1;
    for _ in 0..2 {
        disk.fill();
        // What was kept ready is used first.
        let deadline = Instant::now() + Duration::from_mins(1);
        while rotate().await.status == 200 {
            made += 1;
            assert!(Instant::now() < deadline, "the disk is never full");
        }
        for _ in 0..20 {
            let answer = rotate().await;
            let said = text_of(&answer);
            assert_eq!(answer.status, 503, "{said}");
            assert!(said.contains("the store's disk is full"), "{said}");
        }
        assert!(is_full().await);
        assert_eq!(decrypt(&client, "k", &ciphertext).await, b"x");
        assert_eq!(versions().await, made);

        disk.empty();
        assert_eq!(rotate().await.status, 200);
        made += 1;
        assert!(!is_full().await);
        assert_eq!(versions().await, made);
    }
    appliance.kill();
    appliance.launch().await;
    let client = appliance.client(Who::Operator);
    let read = expect(&client, "GET", "transit/keys/k", Value::Null, 200).await;
    assert_eq!(read["data"]["latest_version"], made);
    assert_eq!(decrypt(&client, "k", &ciphertext).await, b"x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_brings_every_key_back_and_an_older_one_wants_a_yes() {
    let mut appliance = Appliance::start().await;
    appliance.create_key("a", json!({})).await;
    let ciphertext = encrypt(&appliance.client(Who::Operator), "a", b"exported").await;
    let file = appliance.path().join("export");
    let export = file.to_str().unwrap();
    let running = appliance.cli(["store", "export", export]);
    assert_eq!(running.status.code(), Some(STORE), "{}", text(&running));
    assert!(
        text(&running).contains("another process"),
        "{}",
        text(&running)
    );
    assert!(!file.exists());
    appliance.stop();
    let exported = appliance.cli(["store", "export", export]);
    assert!(exported.status.success(), "{}", text(&exported));
    let bytes = fs::read(&file).unwrap();
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let again = appliance.cli(["store", "export", export]);
    assert_eq!(again.status.code(), Some(USAGE), "{}", text(&again));
    let over = appliance.cli(["store", "import", export]);
    assert_eq!(over.status.code(), Some(STORE), "{}", text(&over));
    assert_eq!(fs::read(&file).unwrap(), bytes);

    fs::remove_dir_all(appliance.store()).unwrap();
    let imported = appliance.cli(["store", "import", export]);
    assert!(imported.status.success(), "{}", text(&imported));
    appliance.launch().await;
    let client = appliance.client(Who::Operator);
    assert_eq!(decrypt(&client, "a", &ciphertext).await, b"exported");
    // Nothing went back, so version 1 goes on.
    assert!(encrypt(&client, "a", b"x").await.starts_with("vault:v1:"));
    appliance.create_key("newer", json!({})).await;
    appliance.stop();

    fs::remove_dir_all(appliance.store()).unwrap();
    let older = appliance.cli(["store", "import", export]);
    assert_eq!(older.status.code(), Some(STORE), "{}", text(&older));
    assert!(
        text(&older).contains("--accept-rollback"),
        "{}",
        text(&older)
    );
    assert!(!appliance.store().exists());
    let mut damaged = bytes.clone();
    damaged[100] ^= 1;
    fs::write(&file, damaged).unwrap();
    let refused = appliance.cli(["store", "import", export, "--accept-rollback"]);
    assert_eq!(refused.status.code(), Some(STORE), "{}", text(&refused));
    assert!(!appliance.store().exists());
    fs::write(&file, bytes).unwrap();
    let accepted = appliance.cli(["store", "import", export, "--accept-rollback"]);
    assert!(accepted.status.success(), "{}", text(&accepted));
    appliance.launch().await;
    let client = appliance.client(Who::Operator);
    assert_eq!(decrypt(&client, "a", &ciphertext).await, b"exported");
    assert!(encrypt(&client, "a", b"x").await.starts_with("vault:v2:"));
    appliance.stop();
    let audit = fs::read_to_string(appliance.audit()).unwrap();
    let lines = audit.matches("cli:store-import").count();
    assert_eq!(lines, 4, "before and after each: {audit}");
    assert_eq!(audit.matches("rollback accepted").count(), 1, "{audit}");
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr]
        .map(String::from_utf8_lossy)
        .concat()
}

/// Runs [`store_editor_child`] in the appliance's environment, since the token is only there.
fn edit(appliance: &Appliance, what: &str) {
    let told = format!("{}\n{what}", appliance.config().display());
    let edited = appliance
        .command(&std::env::current_exe().unwrap())
        .args(["--exact", "store::store_editor_child", "--nocapture"])
        .env(EDITOR, told)
        .output()
        .unwrap();
    assert!(edited.status.success(), "{}", text(&edited));
}

/// Not a test of its own: the process that [`edit`] starts.
#[tokio::test]
async fn store_editor_child() {
    let Ok(told) = std::env::var(EDITOR) else {
        return;
    };
    let (config, what) = told.split_once('\n').unwrap();
    let config = Config::load(Path::new(config)).unwrap();
    let hsm = Hsm::start(config.hsm.clone()).unwrap();
    let store = Arc::new(Store::open(&config.store, hsm).await.unwrap());
    let saved = config.store.with_extension("saved");
    let mut now = BTreeMap::new();
    for place in store.ids() {
        let payload = store.get(&place).await.unwrap().unwrap();
        now.insert(place, payload);
    }
    let changes = if what == "undo" {
        let saved: Vec<(u8, String, u32, Vec<u8>)> =
            serde_json::from_slice(&fs::read(&saved).unwrap()).unwrap();
        let put = |(kind, name, version, payload)| {
            let kind = [
                RecordKind::Key,
                RecordKind::KeyVersion,
                RecordKind::UseCounter,
            ]
            .into_iter()
            .find(|known| *known as u8 == kind)
            .unwrap();
            let place = RecordId {
                kind,
                name,
                version,
            };
            Change::Put(place, Zeroizing::new(payload))
        };
        let delete = now.into_keys().map(Change::Delete);
        delete.chain(saved.into_iter().map(put)).collect()
    } else {
        let (kind, name, version, edit, _) = EDITS[what.parse::<usize>().unwrap()];
        let all: Vec<_> = now
            .iter()
            .map(|(place, payload)| (place.kind as u8, &place.name, place.version, &**payload))
            .collect();
        fs::write(&saved, serde_json::to_vec(&all).unwrap()).unwrap();
        let place = RecordId {
            kind,
            name: name.to_owned(),
            version,
        };
        let payload = now
            .get(&place)
            .and_then(|payload| serde_json::from_slice(payload).ok());
        vec![match edit(payload) {
            None => Change::Delete(place),
            Some(payload) => Change::Put(place, Zeroizing::new(payload.to_string().into_bytes())),
        }]
    };
    store.commit(changes).await.unwrap();
}
