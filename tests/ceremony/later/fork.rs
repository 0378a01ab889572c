//! Two ceremonies that go on from one: a copy of a directory is as good as the directory, but for
//! what the token knows.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Later, to_the_end};
use crate::rig::{AUDITOR, Room, describe, kill_at, stderr};

const REFUSED: &str = "the token's last ceremony is not the one that this goes on from";

/// Everything in a directory, as somebody with a USB stick has it.
fn copy(from: &Path, to: &Path) -> PathBuf {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
    let _ = std::fs::remove_file(to.join("followed-by"));
    to.to_owned()
}

fn after<'a>(room: &'a Room, folder: &Path, name: &str) -> Later<'a> {
    Later {
        after: folder.to_owned(),
        dir: room.path().join(name),
        ..Later::new(room, &["backup"])
    }
}

fn is_sealed(later: &Later<'_>) -> bool {
    later
        .transcript()
        .iter()
        .any(|line| describe(line) == "seal")
}

#[test]
fn the_token_goes_on_from_its_last_transcript_and_from_no_copy_of_one_before() {
    let room = to_the_end(Room::with_backup());
    let known = |later: &Later<'_>| {
        let output = room
            .command(&["ceremony", "verify"])
            .arg(later.transcript_path())
            .arg("--previous")
            .arg(later.dir.join("chain"))
            .arg("--config")
            .arg(room.appliance().join("strongroom.toml"))
            .output()
            .unwrap();
        output.status.success()
    };
    let born = copy(&room.dir(), &room.path().join("copy-of-birth"));
    // Begun before the other is closed, and left where only the seal is missing.
    let early = after(&room, &born, "early");
    kill_at(early.command(), &early.dir, "done closing");

    let first = after(&room, &room.dir(), "first");
    first.run_to_the_end();
    first.verify();
    assert!(known(&first));
    early.fails(1, REFUSED);
    assert!(!is_sealed(&early));
    let second = after(
        &room,
        &copy(&room.dir(), &room.path().join("copy-2")),
        "second",
    );
    second.fails(1, REFUSED);
    assert!(!is_sealed(&second));

    // Cut off after everyone signed, and between the token's word and the seal: it goes on.
    let third = after(&room, &first.dir, "third");
    kill_at(third.command(), &third.dir, &format!("signature {AUDITOR}"));
    third.run_to_the_end();
    third.verify();
    assert!(known(&third) && !known(&first));
    let next = after(&room, &third.dir, "next");
    let output = next.run();
    assert!(output.status.success(), "{}", stderr(&output));
}
