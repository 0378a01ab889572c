use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::unistd::geteuid;
use serde_json::{Value, json};
use strongroom_client::Client;

use super::{Later, born, to_the_end};
use crate::rig::{AUDITOR, OFFICER, Room, Serving, files, kill_at, lines, lines_to_come, stderr};

const STEPS: [&str; 9] = [
    "opening",
    "self-test",
    "successor",
    "trust",
    "move",
    "retire",
    "keys",
    "evidence",
    "closing",
];
const PLAINTEXT: &str = "YSByb290IGtleQ==";

/// A client that waits for each answer.
struct Api {
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl Api {
    fn new(serving: &Serving<'_>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let client = {
            let _inside = runtime.enter();
            Client::new(&serving.options()).unwrap()
        };
        Self { client, runtime }
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value, String> {
        self.ask("POST", path, Some(body))
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
        self.runtime
            .block_on(self.client.call(method, path, body))
            .map_err(|error| format!("{path}: {error}"))
    }

    fn encrypt(&self, key: &str) -> Result<String, String> {
        let answer = self.post(
            &format!("transit/encrypt/{key}"),
            &json!({"plaintext": PLAINTEXT}),
        )?;
        Ok(answer["data"]["ciphertext"].as_str().unwrap().to_owned())
    }

    fn decrypt(&self, key: &str, ciphertext: &str) -> Result<(), String> {
        let answer = self.post(
            &format!("transit/decrypt/{key}"),
            &json!({"ciphertext": ciphertext}),
        )?;
        if answer["data"]["plaintext"] == PLAINTEXT {
            Ok(())
        } else {
            Err(format!("{key}: another plaintext"))
        }
    }

    fn standing(&self) -> Value {
        self.ask("GET", "sys/rotate-master", None).unwrap()
    }
}

/// Keys with several versions, and a ciphertext of each.
struct Sealed(Vec<(String, String)>);

impl Sealed {
    fn new(api: &Api, keys: usize, versions: usize) -> Self {
        let mut sealed = Vec::new();
        for number in 0..keys {
            let key = format!("vault-{number}");
            api.post(&format!("transit/keys/{key}"), &json!({}))
                .unwrap();
            for version in 1..=versions {
                if version > 1 {
                    api.post(&format!("transit/keys/{key}/rotate"), &json!({}))
                        .unwrap();
                }
                let ciphertext = api.encrypt(&key).unwrap();
                assert!(ciphertext.starts_with(&format!("vault:v{version}:")));
                sealed.push((key.clone(), ciphertext));
            }
        }
        Self(sealed)
    }

    fn all_open(&self, api: &Api) {
        for (key, ciphertext) in &self.0 {
            api.decrypt(key, ciphertext).unwrap();
        }
    }
}

/// An appliance whose operator lets its client do everything.
fn permissive() -> Room {
    allowing_all(born())
}

fn allowing_all(room: Room) -> Room {
    fs::write(
        room.appliance().join("policy.toml"),
        "[[rule]]\nidentities = [\"dns:vault.test\"]\nkeys = [\"*\"]\noperations = [\"*\", \"global\"]\n",
    )
    .unwrap();
    room
}

/// With the running server.
fn rotation<'a>(room: &'a Room, serving: &Serving<'_>) -> Later<'a> {
    let options = serving.options();
    let (certificate, key) = options.identity.unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    Later {
        words: vec![
            "rotate-master".to_owned(),
            "--addr".to_owned(),
            options.address,
            "--cacert".to_owned(),
            text(&options.ca),
            "--client-cert".to_owned(),
            text(&certificate),
            "--client-key".to_owned(),
            text(&key),
        ],
        ..Later::new(room, &["rotate-master"])
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
#[allow(
    clippy::too_many_lines,
    reason = "one rotation, and what comes after it"
)]
fn under_a_running_seal_client_no_request_is_lost_and_every_old_ciphertext_opens() {
    let room = permissive();
    let store = room.state().join("store");
    let serving = room.serve();
    let api = Api::new(&serving);
    let sealed = Sealed::new(&api, 3, 3);
    drop(api);
    serving.kill();
    let before = room.path().join("store-before");
    copy(&store, &before);
    let serving = room.serve();

    let (stop, requests, made) = (
        AtomicBool::new(false),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let lost: Vec<String> = thread::scope(|scope| {
        // Seal clients: as a Vault seals and unseals, without pause.
        let mut clients: Vec<_> = (0..3)
            .map(|number: usize| {
                let (serving, sealed, stop, requests) = (&serving, &sealed, &stop, &requests);
                scope.spawn(move || {
                    let api = Api::new(serving);
                    let mut lost = Vec::new();
                    let key = format!("vault-{number}");
                    while !stop.load(Ordering::Acquire) {
                        for (old, ciphertext) in &sealed.0 {
                            let round = api.encrypt(&key).and_then(|new| {
                                api.decrypt(&key, &new)?;
                                api.decrypt(old, ciphertext)
                            });
                            requests.fetch_add(3, Ordering::Relaxed);
                            lost.extend(round.err());
                        }
                    }
                    lost
                })
            })
            .collect();
        // And one that makes keys and rotates them meanwhile.
        clients.push(scope.spawn(|| {
            let api = Api::new(&serving);
            let mut lost = Vec::new();
            while !stop.load(Ordering::Acquire) {
                let key = format!("new-{}", made.fetch_add(1, Ordering::Relaxed));
                let round = api
                    .post(&format!("transit/keys/{key}"), &json!({}))
                    .and_then(|_| api.encrypt(&key))
                    .and_then(|first| {
                        api.post(&format!("transit/keys/{key}/rotate"), &json!({}))?;
                        api.decrypt(&key, &first)
                    });
                lost.extend(round.err());
                thread::sleep(Duration::from_millis(200));
            }
            lost
        }));
        let output = rotation(&room, &serving).run();
        stop.store(true, Ordering::Release);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        clients
            .into_iter()
            .flat_map(|client| client.join().unwrap())
            .collect()
    });
    assert_eq!(lost, Vec::<String>::new());
    let count = requests.load(Ordering::Relaxed);
    assert!(count > 100, "{count}");
    println!("{count} requests during the rotation, none lost; {made:?} keys made meanwhile");

    let api = Api::new(&serving);
    sealed.all_open(&api);
    let standing = api.standing();
    assert_eq!(standing["state"], "complete");
    assert_eq!(standing["moved"], standing["versions"]);
    let generations = standing["generations"].as_array().unwrap();
    assert_eq!(generations.len(), 1);
    assert_eq!(
        (&generations[0]["number"], &generations[0]["in_force"]),
        (&json!(2), &json!(true))
    );
    let metrics = String::from_utf8(serving.succeeds(&["status", "--output", "json"])).unwrap();
    assert!(!metrics.contains("rotate_master"), "{metrics}");
    drop(api);
    serving.kill();

    // A start knows the new generation alone; nothing is left of session objects from before.
    let serving = room.serve();
    let api = Api::new(&serving);
    sealed.all_open(&api);
    drop(api);
    serving.kill();
    let rotate = Later::new(&room, &["rotate-master"]);
    let moved = rotate.outputs("move");
    assert_eq!(moved["by"], "server");
    assert!(moved["versions"].as_u64().unwrap() >= 9);
    let destroyed = rotate.outputs("retire")["destroyed"].clone();
    let labels: Vec<_> = destroyed
        .as_array()
        .unwrap()
        .iter()
        .map(|object| object["label"].as_str().unwrap())
        .collect();
    assert_eq!(
        labels,
        [
            "strongroom-master",
            "strongroom-master",
            "strongroom-transfer",
            "strongroom-transfer",
            "strongroom-master-2-trusted",
            "strongroom-transfer-2-trusted"
        ]
    );
    rotate.verify();

    // A store from before it: the epoch tells first, and whoever insists is told what it is.
    fs::remove_dir_all(&store).unwrap();
    copy(&before, &store);
    let config = room.appliance().join("strongroom.toml");
    let fails = |words: &[&str], message: &str| {
        let output = room
            .command(words)
            .arg("--config")
            .arg(&config)
            .output()
            .unwrap();
        let errors = stderr(&output);
        assert!(
            !output.status.success() && errors.contains(message),
            "{errors}"
        );
    };
    fails(&["serve"], "rolled back");
    let accepted = room
        .command(&["store", "accept-rollback", "--config"])
        .arg(&config)
        .arg("--yes")
        .output()
        .unwrap();
    assert!(accepted.status.success(), "{}", stderr(&accepted));
    fails(&["serve"], "from before a rotation of the master key");
}

/// Nobody's on any machine.
const SERVICE: u32 = 54_321;

fn is_the_services(room: &Room) {
    for path in files(&room.tokens()).iter().chain(&files(&room.state())) {
        let owner = fs::metadata(path).unwrap().uid();
        assert_eq!(owner, SERVICE, "{}", path.display());
    }
}

/// As on a machine with the package: root's ceremony beside a service with a user of its own.
#[test]
fn each_step_hands_its_files_over_to_the_service_that_runs_beside_it() {
    if !geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let mut room = Room::new();
    room.serve_as(SERVICE);
    let room = allowing_all(to_the_end(room));
    is_the_services(&room);
    let serving = room.serve();
    let api = Api::new(&serving);
    let sealed = Sealed::new(&api, 2, 2);
    let rotate = rotation(&room, &serving);
    // Nobody may come back for hours.
    for line in ["done successor", "done trust", "done move", "done retire"] {
        kill_at(rotate.command(), &rotate.dir, line);
        is_the_services(&room);
        sealed.all_open(&api);
    }
    rotate.run_to_the_end();
    is_the_services(&room);
    sealed.all_open(&api);
    assert_eq!(api.standing()["state"], "complete");
    assert_eq!(rotate.outputs("move")["by"], "server");
    drop(api);
    serving.kill();

    // What is wrong is said, and not what could be.
    let serving = room.serve();
    let second = Later {
        after: rotate.dir.clone(),
        dir: room.path().join("rotate-2"),
        ..rotation(&room, &serving)
    };
    fs::write(
        room.appliance().join("policy.toml"),
        "[[rule]]\nidentities = [\"dns:vault.test\"]\nkeys = [\"*\"]\noperations = [\"read\"]\n",
    )
    .unwrap();
    thread::sleep(Duration::from_secs(4));
    second.fails(10, "does not let this client rotate");
    serving.kill();
    second.fails(10, "did not answer");
}

#[test]
fn killed_at_every_line_it_goes_on_without_a_server() {
    let room = permissive();
    let serving = room.serve();
    let api = Api::new(&serving);
    let sealed = Sealed::new(&api, 2, 2);
    drop(api);
    serving.kill();
    let rotate = Later::new(&room, &["rotate-master"]);
    rotate.killed_at(&lines_to_come(
        &STEPS,
        &["Alice", "Bob", "Carol", "Dave", "Erin", OFFICER, AUDITOR],
    ));
    assert_eq!(rotate.outputs("move")["by"], "ceremony");
    assert!(rotate.verifies(&rotate.transcript_path(), &rotate.dir.join("chain")));
    // Each version that was moved is in the audit log: that it would be, and that it was.
    let log = lines(&room.state().join("audit.log"));
    let moves = |kind: &str| {
        let of_kind = |line: &&Value| line["type"] == kind && line["operation"] == "move-key";
        let seqs = log.iter().filter(of_kind).map(|line| match kind {
            "intent" => line["seq"].as_u64().unwrap(),
            _ => line["intent"].as_u64().unwrap(),
        });
        seqs.collect::<Vec<_>>()
    };
    let begun = moves("intent");
    assert_eq!(begun, moves("decision"));
    let moved = rotate.outputs("move")["moved"].as_u64().unwrap();
    assert!(moved > 0 && begun.len() as u64 >= moved, "{begun:?}");
    let serving = room.serve();
    sealed.all_open(&Api::new(&serving));
}

#[test]
fn server_and_ceremony_die_inside_the_move_and_go_on() {
    let room = permissive();
    let serving = room.serve();
    let api = Api::new(&serving);
    let sealed = Sealed::new(&api, 12, 2);
    drop(api);
    let mut serving = Some(serving);
    // The server first, as soon as something was moved, then the ceremony.
    let rotate = rotation(&room, serving.as_ref().unwrap());
    let mut child = rotate
        .command()
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let api = Api::new(serving.as_ref().unwrap());
    let moved = |api: &Api| api.standing()["moved"].as_u64().unwrap();
    let all = api.standing()["versions"].as_u64().unwrap();
    // Before the ceremony all of them are under the master key in force.
    while api.standing()["generations"].as_array().unwrap().len() < 2 {
        assert!(child.try_wait().unwrap().is_none(), "the ceremony ended");
    }
    while moved(&api) == 0 {}
    let at = moved(&api);
    drop(api);
    serving.take().unwrap().kill();
    println!("the server was killed with {at} of {all} moved");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(10), "{}", stderr(&output));

    // It goes on by itself; the ceremony is killed in the middle of watching it.
    let serving = room.serve();
    let rotate = rotation(&room, &serving);
    kill_at(rotate.command(), &rotate.dir, "begin move");
    rotate.run_to_the_end();
    let api = Api::new(&serving);
    sealed.all_open(&api);
    assert_eq!(api.standing()["moved"], json!(all));
    assert!(rotate.verifies(&rotate.transcript_path(), &rotate.dir.join("chain")));
}
