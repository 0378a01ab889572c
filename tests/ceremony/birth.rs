//! A 3-of-5 ceremony by a directory of answers, from the plan to an appliance that serves.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::OnceLock;
use std::thread;

use base64::Engine as _;
use serde_json::Value;
use strongroom_ceremony::{Mode, jwe, shares};

use crate::rig::{CUSTODIANS, People, Room, WAITING, describe, files, stderr};

/// A finished ceremony, made once, with every kind of wrong share on the way.
pub fn finished() -> &'static Room {
    static ROOM: OnceLock<Room> = OnceLock::new();
    ROOM.get_or_init(|| {
        let room = Room::new();
        room.run_to_the_certificate();
        // The certificate of another key does not get in, and a re-run asks again.
        fs::copy(
            room.pki.server_certificate(),
            room.answers().join("certificate.pem"),
        )
        .unwrap();
        fails(&room, 1, "another key");
        room.sign_certificate();
        wrong_shares(&room);
        let output = room.run_to_the_end();
        let pins = room.recover(Mode::Ceremony, &["Alice", "Bob", "Carol"]);
        for pin in [&pins.so, &pins.user] {
            let text = str::from_utf8(pin).unwrap();
            assert!(!String::from_utf8_lossy(&output.stdout).contains(text));
            assert!(!stderr(&output).contains(text));
        }
        room
    })
}

/// The trial needs the PINs again; each of these attempts is refused, and the next run goes on as
/// if nothing had been.
fn wrong_shares(room: &Room) {
    // A custodian who comes twice.
    room.answer("recover", "Alice\nAlice\nBob\n");
    fails(room, 1, "Alice's share was taken already");
    // Too few.
    room.answer("recover", "Alice\nBob\n");
    fails(room, WAITING, "too few");
    // Nobody of that name.
    room.answer("recover", "Mallory\n");
    fails(room, 1, "Mallory is not a custodian");
    // A wrong passphrase.
    room.answer("recover", "Alice\nBob\nCarol\n");
    room.answer("passphrases/Bob", "another long passphrase\n");
    fails(room, 1, "Bob's key");
    room.bring("Bob");
    // Somebody else's key.
    for suffix in ["", ".pub"] {
        let dave = room.answers().join(format!("keys/Dave.key{suffix}"));
        fs::copy(dave, room.answers().join(format!("keys/Bob.key{suffix}"))).unwrap();
    }
    room.answer("passphrases/Bob", &People::passphrase("Dave"));
    fails(room, 1, "is the key of Dave, not of Bob");
    room.bring("Bob");

    let people = People::all();
    let carol = people.key("Carol");
    let path = room
        .dir()
        .join(format!("shares/{}.jwe", carol.participant().fingerprint()));
    let good = fs::read_to_string(&path).unwrap();
    // A share that was damaged on the disk.
    let mut bad = good.trim().to_owned().into_bytes();
    let at = bad.len() - 40;
    bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
    fs::write(&path, bad).unwrap();
    fails(room, 1, "Carol's share");
    // One that decrypts, but is not the one that was dealt.
    let mut share: Value =
        serde_json::from_slice(&jwe::open(good.trim(), &carol).unwrap()).unwrap();
    let engine = base64::engine::general_purpose::STANDARD;
    let mut bytes = engine
        .decode(share["user"]["share"].as_str().unwrap())
        .unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    share["user"]["share"] = engine.encode(bytes).into();
    let sealed = jwe::seal(share.to_string().as_bytes(), carol.participant()).unwrap();
    fs::write(&path, sealed).unwrap();
    fails(room, 1, "Carol's share is corrupted");
    fs::write(&path, good).unwrap();

    // Words that were typed wrongly, and then rightly.
    let erin = people.key("Erin");
    let path = room
        .dir()
        .join(format!("shares/{}.jwe", erin.participant().fingerprint()));
    let share = shares::open(fs::read_to_string(path).unwrap().trim(), &erin).unwrap();
    let words = share.to_words().unwrap();
    fs::create_dir(room.answers().join("words")).unwrap();
    room.answer("recover", "Erin\nCarol\nAlice\n");
    room.answer("words/Erin", &words.replacen(' ', " zebra ", 1));
    fails(room, 1, "the words' checksum is wrong");
    room.answer("words/Erin", &words);

    // Other custodians do as well.
    room.answer("recover", "Erin\nCarol\nAlice\n");
}

fn fails(room: &Room, code: i32, message: &str) {
    let before = room
        .transcript()
        .iter()
        .filter(|line| line["type"] == "done")
        .count();
    let output = room.run();
    let errors = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{message}: {errors}");
    assert!(errors.contains(message), "{message}: {errors}");
    let after = room
        .transcript()
        .iter()
        .filter(|line| line["type"] == "done")
        .count();
    assert!(after <= before + 1, "{message}");
}

#[test]
fn the_transcript_tells_all_and_verifies() {
    let room = finished();
    room.verify();
    let transcript = room.transcript();
    let told: Vec<String> = transcript.iter().map(describe).collect();
    for step in [
        "opening",
        "self-test",
        "pins",
        "token",
        "keys",
        "evidence",
        "store",
        "identity",
        "trial",
        "runtime-pin",
        "closing",
    ] {
        let count = told
            .iter()
            .filter(|line| **line == format!("done {step}"))
            .count();
        assert_eq!(count, 1, "{step}: {told:#?}");
    }
    let signatures: Vec<_> = told
        .iter()
        .filter(|line| line.starts_with("signature"))
        .collect();
    assert_eq!(signatures.len(), 7, "{signatures:?}");
    assert_eq!(told.last().map(String::as_str), Some("seal"));
    // What was refused on the way is there, by name.
    let notes: Vec<_> = transcript
        .iter()
        .filter_map(|line| line["text"].as_str())
        .collect();
    for what in [
        "Alice's share was taken already",
        "Carol's share is corrupted",
        "Bob's key",
        "another key",
    ] {
        assert!(
            notes.iter().any(|note| note.contains(what)),
            "{what}: {notes:#?}"
        );
    }
    assert!(
        fs::read_to_string(room.dir().join("report.html"))
            .unwrap()
            .contains("vault-keys-1")
    );
    // Running it once more changes nothing.
    let before = fs::read(room.transcript_path()).unwrap();
    room.run_to_the_end();
    assert_eq!(fs::read(room.transcript_path()).unwrap(), before);
}

#[test]
fn every_three_custodians_get_the_pin_back_that_the_service_has() {
    let room = finished();
    let pin = fs::read(room.appliance().join("hsm-pin")).unwrap();
    for left_out in 0..CUSTODIANS.len() {
        for also in left_out + 1..CUSTODIANS.len() {
            let names: Vec<&str> = CUSTODIANS
                .into_iter()
                .enumerate()
                .filter(|(index, _)| *index != left_out && *index != also)
                .map(|(_, name)| name)
                .collect();
            let pins = room.recover(Mode::Ceremony, &names);
            assert_eq!(*pins.user, pin, "{names:?}");
            assert_ne!(*pins.so, pin);
        }
    }
}

#[test]
fn nothing_secret_is_in_any_file() {
    let room = finished();
    let pins = room.recover(Mode::Ceremony, &["Alice", "Bob", "Carol"]);
    let share = {
        let key = People::all().key("Alice");
        let path = room
            .dir()
            .join(format!("shares/{}.jwe", key.participant().fingerprint()));
        let json: Value = serde_json::from_slice(
            &jwe::open(fs::read_to_string(path).unwrap().trim(), &key).unwrap(),
        )
        .unwrap();
        json["user"]["share"].as_str().unwrap().to_owned()
    };
    let pin_file = room.appliance().join("hsm-pin");
    let searched: Vec<_> = files(&room.dir())
        .into_iter()
        .chain(files(&room.appliance()))
        .chain(files(&room.state()))
        .chain(files(&room.path().join("token")))
        .filter(|path| *path != pin_file)
        .collect();
    assert!(searched.len() > 15, "{searched:?}");
    for path in searched {
        let bytes = fs::read(&path).unwrap();
        for (what, needle) in [
            ("the SO PIN", pins.so.as_slice()),
            ("the user PIN", pins.user.as_slice()),
            ("a share", share.as_bytes()),
            ("a passphrase", b"the long passphrase"),
        ] {
            assert!(
                memchr::memmem::find(&bytes, needle).is_none(),
                "{what} is in {}",
                path.display()
            );
        }
    }
    for (file, mode) in [
        ("etc/hsm-pin", 0o400),
        ("etc/tls/server.key", 0o600),
        ("ceremony/transcript.jsonl", 0o600),
        ("ceremony/shares", 0o700),
    ] {
        let found = fs::metadata(room.path().join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(found & 0o777, mode, "{file}");
    }
}

#[test]
fn of_two_at_once_in_one_folder_one_holds_the_ceremony() {
    let room = Room::new();
    let outputs = thread::scope(|scope| {
        let both = [scope.spawn(|| room.run()), scope.spawn(|| room.run())];
        both.map(|one| one.join().unwrap())
    });
    for output in &outputs {
        let errors = stderr(output);
        // A second one that came only when the first had stopped goes on with it, and waits too.
        let refused = errors.contains("another process writes it") || errors.contains("exists");
        let code = output.status.code();
        assert!(
            code == Some(WAITING) || matches!(code, Some(1 | 2)) && refused,
            "{code:?}: {errors}"
        );
    }
    assert!(
        outputs
            .iter()
            .any(|output| output.status.code() == Some(WAITING))
    );
    room.sign_certificate();
    room.run_to_the_end();
    room.verify();
}

#[test]
fn the_appliance_serves() {
    let room = finished();
    let config = room.appliance().join("strongroom.toml");
    let policy = room.appliance().join("policy.toml");
    // Nobody may do anything until the operator says who.
    assert!(!fs::read_to_string(&policy).unwrap().contains("[[rule]]"));
    fs::write(
        &policy,
        "[[rule]]\nidentities = [\"dns:vault.test\"]\nkeys = [\"vault-unseal\"]\noperations = [\"create\", \"read\", \"encrypt\", \"decrypt\"]\n",
    )
    .unwrap();
    let config = config.to_str().unwrap();
    let checked = room
        .command(&["check-config", "--config", config])
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", stderr(&checked));

    let serving = room.serve();
    serving.succeeds(&["key", "create", "vault-unseal"]);
    serving.succeeds(&["client", "seal", "vault-unseal"]);
}
