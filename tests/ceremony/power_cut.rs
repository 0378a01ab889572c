//! The power goes at every line of the transcript and inside the token's functions; each re-run
//! goes on or cleanly starts over.

use std::fs;
use std::path::Path;

use strongroom_ceremony::Mode;

use crate::rig::{People, Room, describe, done_once, lines_to_come};
use crate::support::fault_module;

const STEPS: [&str; 11] = [
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
];

#[test]
fn killed_at_every_line_it_goes_on() {
    let room = Room::new();
    let everyone: Vec<&str> = People::names().collect();
    let to_come = lines_to_come(&STEPS, &everyone);
    for line in &to_come {
        if line == "done identity" {
            // Without a certificate it waits there, and would not get to the line at all.
            room.run_to_the_certificate();
            room.sign_certificate();
        }
        room.kill_at(line);
    }
    room.run_to_the_end();
    room.verify();
    check(&room);
    done_once(&room.transcript(), &to_come);
    assert!(room.transcript().iter().any(|line| {
        line["text"]
            .as_str()
            .is_some_and(|text| text.starts_with("interrupted; "))
    }));
}

/// The module that does as a file says: a call hangs, and then the power goes.
#[test]
fn killed_inside_the_tokens_functions_it_goes_on() {
    let mut room = Room::with_module(&fault_module());
    let control = room.path().join("control");
    let log = room.path().join("fault.log");
    room.set_env(
        "PKCS11_FAULT_MODULE",
        strongroom_softhsm::module_path().unwrap(),
    );
    room.set_env("PKCS11_FAULT_CONTROL", control.clone());
    room.set_env("PKCS11_FAULT_LOG", log.clone());
    // In the order in which a ceremony comes to them: step, function, and what it is in the middle
    // of then.
    for (step, function) in [
        ("token", "C_InitToken"),      // the token gets its SO PIN
        ("token", "C_InitPIN"),        // the user PIN
        ("keys", "C_GenerateKeyPair"), // the master key
        ("keys", "C_GenerateKey"),     // the store key; the master key is there
        ("keys", "C_CreateObject"),    // the epoch object; all keys are there
        ("keys", "C_DestroyObject"),   // the removal of what the interrupted attempt made
        ("evidence", "C_GenerateRandom"),
        ("store", "C_CreateObject"), // the store is on the disk, the token doesn't know it yet
        ("store", "C_DestroyObject"), // the token has the new epoch and the old one
    ] {
        let obey = |commands: &str| {
            let aside = control.with_extension("new");
            fs::write(&aside, commands).unwrap();
            fs::rename(&aside, &control).unwrap();
        };
        let hang = format!("hang {function}\n");
        // In the store's step the self-tests at the token's start call the same functions: only
        // later than those. Until then every call is slow, so that there is time to say so.
        let mut armed = step != "store";
        obey(if armed { &hang } else { "slow * 3\n" });
        room.start()
            .kill_when(&format!("{function} in {step}"), || {
                if !armed && room.state().join("store").exists() {
                    obey(&hang);
                    armed = true;
                }
                armed && count(&log, &format!("fault {}", hang.trim())) > 0
            });
        assert!(
            !room
                .transcript()
                .iter()
                .any(|line| describe(line) == format!("done {step}")),
            "{function} came after {step}"
        );
        fs::write(&log, "").unwrap();
    }
    fs::write(&control, "").unwrap();
    room.run_to_the_certificate();
    room.sign_certificate();
    room.run_to_the_end();
    room.verify();
    let notes: Vec<String> = room
        .transcript()
        .iter()
        .filter_map(|line| line["text"].as_str().map(str::to_owned))
        .collect();
    assert!(
        notes
            .iter()
            .any(|note| note.contains("objects that the interrupted step had made were destroyed")),
        "{notes:#?}"
    );
    assert!(
        notes
            .iter()
            .any(|note| note.contains("was initialised and has no user PIN yet")),
        "{notes:#?}"
    );
}

/// The token then knows a ceremony that is closed and not sealed: this one, which goes on.
#[test]
fn killed_between_the_register_and_the_seal_it_goes_on() {
    let mut room = Room::with_module(&fault_module());
    let control = room.path().join("control");
    let log = room.path().join("fault.log");
    room.set_env(
        "PKCS11_FAULT_MODULE",
        strongroom_softhsm::module_path().unwrap(),
    );
    room.set_env("PKCS11_FAULT_CONTROL", control.clone());
    room.set_env("PKCS11_FAULT_LOG", log.clone());
    room.run_to_the_certificate();
    room.sign_certificate();
    room.kill_at(&format!("signature {}", People::names().last().unwrap()));
    // Every call is slow, so that there is time between the one that makes the register's object
    // and the one that seals.
    fs::write(&control, "slow * 2\n").unwrap();
    let tokens = room.path().join("token/tokens");
    let before = objects(&tokens);
    // SoftHSM makes the file first: written it is when the next calls come.
    let mut seen = None;
    room.start().kill_when("the register is written", || {
        if objects(&tokens) > before {
            let calls = fs::read_to_string(&log).unwrap().lines().count();
            return calls > *seen.get_or_insert(calls) + 4;
        }
        false
    });
    let kinds = |kind: &str| {
        let lines = room.transcript();
        lines.iter().filter(|line| line["type"] == kind).count()
    };
    assert_eq!((kinds("close"), kinds("seal")), (1, 0));
    fs::write(&control, "").unwrap();
    room.run_to_the_end();
    assert_eq!((kinds("close"), kinds("seal")), (1, 1));
    assert_eq!(kinds("signature"), People::names().count());
    // The object that was there already is the one.
    assert_eq!(objects(&tokens), before + 1);
    room.verify();
}

/// Objects that are kept below that directory.
fn objects(folder: &Path) -> usize {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .map(|path| match path.extension() {
            _ if path.is_dir() => objects(&path),
            Some(extension) => usize::from(extension == "object"),
            None => 0,
        })
        .sum()
}

/// One token, with one set of good keys that a store depends on; its PINs are those of the shares.
fn check(room: &Room) {
    let serial = room.outputs("token")["token"]["serial"]
        .as_str()
        .unwrap()
        .to_owned();
    let pins = room.recover(Mode::Ceremony, &["Dave", "Erin", "Bob"]);
    let pin = fs::read(room.appliance().join("hsm-pin")).unwrap();
    assert_eq!(*pins.user, pin);
    let status = room
        .command(&["store", "status", "--config"])
        .arg(room.appliance().join("strongroom.toml"))
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", crate::rig::stderr(&status));
    let slots = std::process::Command::new("softhsm2-util")
        .arg("--show-slots")
        .env(
            strongroom_softhsm::CONF_VARIABLE,
            room.path().join("token/softhsm2.conf"),
        )
        .output()
        .unwrap();
    let slots = String::from_utf8_lossy(&slots.stdout).into_owned();
    assert_eq!(slots.matches("Initialized:      yes").count(), 1, "{slots}");
    assert!(slots.contains(&serial), "{slots}");
}

fn count(log: &Path, text: &str) -> usize {
    fs::read_to_string(log)
        .unwrap_or_default()
        .lines()
        .filter(|line| line.ends_with(text))
        .count()
}

#[test]
fn a_token_that_is_lost_is_told_in_so_many_words() {
    let room = Room::new();
    room.run_to_the_certificate();
    room.sign_certificate();
    let tokens = room.path().join("token/tokens");
    let away = room.path().join("away");
    fs::rename(&tokens, &away).unwrap();
    fs::create_dir(&tokens).unwrap();
    let output = room.run();
    let errors = crate::rig::stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("which this ceremony initialised, is not there"),
        "{errors}"
    );
    // Put back, all is well.
    fs::remove_dir_all(&tokens).unwrap();
    fs::rename(&away, &tokens).unwrap();
    room.run_to_the_end();
    room.verify();
}
