//! The audit log, held against the record of the appliance's initial ceremony by both programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::birth::finished;
use crate::later::{Later, to_the_end};
use crate::rig::{Room, stderr};
use crate::support;

/// The documented exit code of an audit log that does not verify.
const AUDIT: i32 = 8;
/// And of an argument that is wrong.
const USAGE: i32 = 2;

/// `audit verify` says that, and the second program the same. Answers the first one's complaint.
fn both_say(right: bool, room: &Room, files: &[&Path], transcript: Option<&Path>) -> String {
    let mut programs = vec![room.command(&["audit", "verify"])];
    if let Some(python) = support::cryptography() {
        let mut second = Command::new(python);
        second.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stranger/audit.py"));
        programs.push(second);
    }
    let outputs = programs.iter_mut().map(|program| {
        program
            .args(files)
            .arg("--public-key")
            .arg(room.dir().join("audit-key.pem"));
        if let Some(transcript) = transcript {
            program.arg("--transcript").arg(transcript);
        }
        let output = program.output().unwrap();
        let wrong = if program.get_program() == support::STRONGROOM {
            AUDIT
        } else {
            1
        };
        let wanted = if right { 0 } else { wrong };
        let said = String::from_utf8_lossy(&output.stdout);
        let complained = stderr(&output);
        assert_eq!(
            output.status.code(),
            Some(wanted),
            "{program:?}: {said}{complained}"
        );
        complained
    });
    outputs.collect::<Vec<_>>().swap_remove(0)
}

/// A server's log in two files, oldest first.
fn served(room: &Room) -> [PathBuf; 2] {
    let log = room.state().join("audit.log");
    let old = room.path().join("audit.log.1");
    let serving = room.serve();
    fs::rename(&log, &old).unwrap();
    serving.signal(Signal::SIGUSR1);
    let deadline = Instant::now() + Duration::from_secs(20);
    // Two lines: its header, and the checkpoint behind it.
    while fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < 2 {
        assert!(Instant::now() < deadline, "there is no new file");
        std::thread::sleep(Duration::from_millis(20));
    }
    serving.kill();
    [old, log]
}

#[test]
fn a_log_is_held_against_the_transcript_of_its_birth() {
    let room = to_the_end(Room::with_backup());
    let birth = room.transcript_path();
    let begun = [&*room.state().join("audit.log")];
    both_say(true, &room, &begun, Some(&birth));
    let [old, log] = served(&room);
    both_say(true, &room, &[&old, &log], None);
    both_say(true, &room, &[&old, &log], Some(&birth));

    // The beginning is missing: a file of it, which is no fault where nobody asks for the
    // beginning, or a line.
    let not_first = "not the first line of the log that was born";
    both_say(true, &room, &[&log], None);
    let said = both_say(false, &room, &[&log], Some(&birth));
    assert!(said.contains(not_first), "{said}");
    let text = fs::read_to_string(&old).unwrap();
    let cut = room.path().join("cut.log");
    fs::write(&cut, text.split_once('\n').unwrap().1).unwrap();
    let said = both_say(false, &room, &[&cut, &log], Some(&birth));
    assert!(said.contains(not_first), "{said}");

    // Another appliance's transcript, and one that was written into.
    let said = both_say(
        false,
        &room,
        &[&old, &log],
        Some(&finished().transcript_path()),
    );
    assert!(said.contains("does not verify with that key"), "{said}");
    let named = room.outputs("store")["audit_log_header_sha256"]
        .as_str()
        .unwrap()
        .to_owned();
    let changed = fs::read_to_string(&birth).unwrap();
    let changed = changed.replace(&named, &"0".repeat(64));
    let forged = room.path().join("forged.jsonl");
    fs::write(&forged, changed).unwrap();
    let said = both_say(false, &room, &[&old, &log], Some(&forged));
    assert!(said.contains("does not verify with that key"), "{said}");

    // Another log of the same token: it verifies, and is not the one that was born.
    fs::remove_file(&log).unwrap();
    let accepted = room
        .command(&["audit", "accept", "--yes", "--config"])
        .arg(room.appliance().join("strongroom.toml"))
        .output()
        .unwrap();
    assert!(accepted.status.success(), "{}", stderr(&accepted));
    room.serve().kill();
    both_say(true, &room, &[&log], None);
    let said = both_say(false, &room, &[&log], Some(&birth));
    assert!(said.contains(not_first), "{said}");

    // A later ceremony began no log: its transcript is the wrong one to give, which is no fault of
    // the log's.
    let backup = Later::new(&room, &["backup"]);
    backup.run_to_the_end();
    let given = room
        .command(&["audit", "verify"])
        .args([&old, Path::new("--public-key")])
        .arg(room.dir().join("audit-key.pem"))
        .arg("--transcript")
        .arg(backup.transcript_path())
        .output()
        .unwrap();
    let said = stderr(&given);
    assert_eq!(given.status.code(), Some(USAGE), "{said}");
    assert!(said.contains("is of a later ceremony (backup)"), "{said}");
    // It says where the right one is.
    let right = backup.dir.join("chain/0001.jsonl");
    assert_eq!(fs::read(&right).unwrap(), fs::read(&birth).unwrap());
    both_say(true, &room, &[&old], Some(&right));
}
