use std::fs;

use super::{Later, born};
use crate::rig::{AUDITOR, OFFICER, describe, lines_to_come, stderr};

const STEPS: [&str; 5] = ["opening", "inventory", "consent", "destroy", "closing"];

#[test]
fn every_object_is_destroyed_with_evidence() {
    let room = born();
    let destroy = Later::new(&room, &["destroy"]);
    // Nobody destroys anything by saying yes alone.
    destroy.fails(10, "appliance");
    room.answer("appliance", "vault-keys-2\n");
    destroy.fails(1, "that is not the appliance's name");
    let serial = room.outputs("token")["token"]["serial"].clone();
    let status = |expected: bool| {
        let output = room
            .command(&["store", "status", "--config"])
            .arg(room.appliance().join("strongroom.toml"))
            .output()
            .unwrap();
        assert_eq!(output.status.success(), expected, "{}", stderr(&output));
    };
    status(true);
    room.answer("appliance", "vault-keys-1\n");
    destroy.run_to_the_end();
    status(false);

    let before = destroy.outputs("inventory");
    assert_eq!(before["token"]["serial"], serial);
    let destroyed = destroy.outputs("destroy");
    let listed = |objects: &serde_json::Value| -> Vec<String> {
        objects
            .as_array()
            .unwrap()
            .iter()
            .map(|object| format!("{} {}", object["class"], object["label"]))
            .collect()
    };
    assert_eq!(listed(&before["objects"]), listed(&destroyed["destroyed"]));
    assert!(listed(&before["objects"]).len() >= 8);
    assert!(destroyed["left"].as_array().unwrap().is_empty());
    // The audit key seals before it dies; people sign what came after.
    let told: Vec<String> = destroy.transcript().iter().map(describe).collect();
    let place = |wanted: &str| told.iter().position(|line| line == wanted).unwrap();
    assert!(place("done consent") < place("seal") && place("seal") < place("begin destroy"));
    assert_eq!(told.last().unwrap(), &format!("signature {AUDITOR}"));
    assert!(told.contains(&format!("signature {OFFICER}")));
    destroy.verify();
    let report = fs::read_to_string(destroy.dir.join("report.html")).unwrap();
    assert!(report.contains("It verifies") && report.contains("destroy"));

    // Nothing goes on from it, and nothing else from what it went on from.
    let again = Later {
        after: destroy.dir.clone(),
        dir: room.path().join("again"),
        ..Later::new(&room, &["destroy"])
    };
    again.fails(1, "destroyed the keys");
    let fork = Later {
        dir: room.path().join("fork"),
        ..Later::new(&room, &["destroy"])
    };
    fork.fails(1, "another ceremony goes on from");
}

#[test]
fn killed_at_every_line_it_goes_on() {
    let room = born();
    room.answer("appliance", "vault-keys-1\n");
    let destroy = Later::new(&room, &["destroy"]);
    let mut to_come = lines_to_come(&STEPS, &["Alice", "Bob", "Erin", OFFICER, AUDITOR]);
    // The audit key seals while it is there.
    let seal = to_come.pop().unwrap();
    let last = to_come.iter().position(|line| line == "begin destroy");
    to_come.insert(last.unwrap(), seal);
    destroy.killed_at(&to_come);
    destroy.verify();
}

#[test]
fn those_who_are_there_sign_and_too_few_do_nothing() {
    let room = born();
    room.answer("appliance", "vault-keys-1\n");
    room.answer("present", "Alice\nBob\nOlga\nAnton\n");
    let destroy = Later::new(&room, &["destroy"]);
    destroy.fails(10, "2 custodians are here");
    room.answer("present", "Alice\nBob\nErin\nOlga\n");
    destroy.fails(10, "the auditor");
    room.answer("present", "Alice\nBob\nErin\nOlga\nAnton\n");
    room.answer("recover", "Alice\nBob\n");
    destroy.fails(10, "too few");
    room.answer("recover", "Alice\nBob\nErin\n");
    destroy.run_to_the_end();
    let told: Vec<String> = destroy.transcript().iter().map(describe).collect();
    let signed: Vec<_> = told
        .iter()
        .filter(|line| line.starts_with("signature"))
        .collect();
    assert_eq!(signed.len(), 5, "{told:#?}");
    destroy.verify();
}
