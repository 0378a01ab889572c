//! The same on a throwaway token: marked on every line, and worth nothing for real.

use std::fs;
use std::process::Output;

use strongroom_ceremony::Mode;

use crate::rig::{People, Room, lines, recover, stderr};

/// Runs `ceremony rehearse` in a directory of the room, in an environment without any token.
fn rehearse(room: &Room) -> Output {
    let mut command = std::process::Command::new(crate::support::STRONGROOM);
    command
        .args(["ceremony", "rehearse"])
        .arg(room.plan_path())
        .arg("--dir")
        .arg(room.path().join("rehearsal"))
        .arg("--answers")
        .arg(room.answers())
        .env_remove(strongroom_softhsm::CONF_VARIABLE);
    command.stdin(std::process::Stdio::null()).output().unwrap()
}

#[test]
fn a_rehearsal_runs_through_and_its_shares_are_worth_nothing() {
    let room = Room::new();
    let output = rehearse(&room);
    assert!(output.status.success(), "{}", stderr(&output));
    let dir = room.path().join("rehearsal");
    for line in lines(&dir.join("transcript.jsonl")) {
        assert_eq!(line["mode"], "REHEARSAL");
    }
    assert!(
        fs::read_to_string(dir.join("report.html"))
            .unwrap()
            .contains("REHEARSAL")
    );
    // Nothing was touched outside its directory.
    assert!(!room.appliance().exists());
    assert!(!room.state().exists());
    recover(
        &dir,
        &room.plan(),
        Mode::Rehearsal,
        &["Alice", "Bob", "Carol"],
    );

    let verify = |extra: &[&str]| {
        room.command(&["ceremony", "verify"])
            .arg(dir.join("transcript.jsonl"))
            .args(extra)
            .output()
            .unwrap()
    };
    assert!(!verify(&[]).status.success());
    assert!(verify(&["--rehearsal"]).status.success());

    // The rehearsed appliance's configuration is whole.
    let checked = room
        .command(&["check-config", "--config"])
        .arg(dir.join("appliance/strongroom.toml"))
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", stderr(&checked));

    // For real now. After an interruption somebody brings the rehearsal's shares.
    room.run_to_the_certificate();
    room.sign_certificate();
    let shares = room.dir().join("shares");
    let kept = room.path().join("kept");
    fs::rename(&shares, &kept).unwrap();
    fs::create_dir(&shares).unwrap();
    for file in fs::read_dir(dir.join("shares")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), shares.join(file.file_name())).unwrap();
    }
    let refused = room.run();
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        stderr(&refused).contains("of a REHEARSAL and worth nothing here"),
        "{}",
        stderr(&refused)
    );
    fs::remove_dir_all(&shares).unwrap();
    fs::rename(&kept, &shares).unwrap();
    room.run_to_the_end();
    room.verify();
    // And the directory of a ceremony is not taken for one of a rehearsal.
    let mixed = room
        .command(&["ceremony", "rehearse"])
        .arg(room.plan_path())
        .arg("--dir")
        .arg(room.dir())
        .arg("--answers")
        .arg(room.answers())
        .output()
        .unwrap();
    assert!(!mixed.status.success());
    assert!(
        stderr(&mixed).contains("holds a CEREMONY"),
        "{}",
        stderr(&mixed)
    );
}

#[test]
fn what_is_not_right_at_the_door_stops_everything() {
    let room = Room::new();
    let refused = |message: &str| {
        let output = room.run();
        assert!(output.status.code().is_some_and(|code| code != 0));
        assert!(
            stderr(&output).contains(message),
            "{message}: {}",
            stderr(&output)
        );
        assert!(!room.transcript_path().exists());
    };
    // Another appliance is there.
    fs::create_dir_all(room.appliance()).unwrap();
    fs::write(room.appliance().join("strongroom.toml"), "").unwrap();
    refused("there is an appliance already");
    fs::remove_file(room.appliance().join("strongroom.toml")).unwrap();

    // Not everyone has signed.
    let signatures = room.path().join("plan.toml.signatures");
    let all = fs::read_to_string(&signatures).unwrap();
    let without = all.split_once('\n').unwrap().1;
    fs::write(&signatures, without).unwrap();
    refused("Alice (custodian) has not signed");
    fs::write(&signatures, &all).unwrap();

    // The plan names another program.
    let plan = fs::read_to_string(room.plan_path()).unwrap();
    fs::write(
        room.plan_path(),
        plan.replace(crate::rig::program_sha256(), &"0".repeat(64)),
    )
    .unwrap();
    fs::remove_file(&signatures).unwrap();
    for name in People::names() {
        strongroom_ceremony::PlanSignature::make(&room.plan(), &People::all().key(name))
            .unwrap()
            .append(&room.plan_path())
            .unwrap();
    }
    refused("this program is not the one that the plan names");
}

#[test]
fn what_follows_a_rehearsal_is_one() {
    let room = Room::new();
    let output = rehearse(&room);
    assert!(output.status.success(), "{}", stderr(&output));
    room.answer("appliance", "vault-keys-1\n");
    let first = room.path().join("rehearsal");
    let later = |after: &std::path::Path, dir: &std::path::Path| {
        let mut command = std::process::Command::new(crate::support::STRONGROOM);
        command
            .args(["ceremony", "destroy", "--after"])
            .arg(after)
            .arg("--dir")
            .arg(dir)
            .arg("--answers")
            .arg(room.answers())
            .env_remove(strongroom_softhsm::CONF_VARIABLE)
            .stdin(std::process::Stdio::null());
        command.output().unwrap()
    };
    let dir = room.path().join("destroyed");
    let output = later(&first, &dir);
    assert!(output.status.success(), "{}", stderr(&output));
    for line in lines(&dir.join("transcript.jsonl")) {
        assert_eq!(line["mode"], "REHEARSAL");
    }
    assert!(
        fs::read_to_string(dir.join("report.html"))
            .unwrap()
            .contains("REHEARSAL")
    );
    let verify = |extra: &[&str]| {
        room.command(&["ceremony", "verify"])
            .arg(dir.join("transcript.jsonl"))
            .arg("--previous")
            .arg(dir.join("chain"))
            .args(extra)
            .output()
            .unwrap()
    };
    assert!(!verify(&[]).status.success());
    assert!(verify(&["--rehearsal"]).status.success());
}
