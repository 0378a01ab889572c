use std::fs;
use std::path::Path;

use strongroom_ceremony::plan::Draft;
use strongroom_ceremony::{Mode, Participant, Plan, PlanSignature};

use super::{Later, born};
use crate::rig::{AUDITOR, OFFICER, People, Room, describe, lines_to_come, recover};

/// Bob leaves, Frank comes; everyone in the new plan signs it.
fn revised(room: &Room) -> String {
    let path = room.path().join("plan-2.toml");
    let frank = People::all().file("Frank").with_extension("key.pub");
    let output = room
        .command(&["ceremony", "revise"])
        .arg(room.plan_path())
        .arg("--out")
        .arg(&path)
        .args(["--remove", "Bob", "--add"])
        .arg(&frank)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", crate::rig::stderr(&output));
    sign(&path);
    room.bring("Frank");
    path.to_str().unwrap().to_owned()
}

pub fn sign(path: &Path) {
    let plan = Plan::load(path).unwrap();
    for (_, person) in plan.participants() {
        PlanSignature::make(&plan, &People::all().key(person.name()))
            .unwrap()
            .append(path)
            .unwrap();
    }
}

#[test]
fn the_same_pins_have_new_shares_and_old_ones_do_not_mix() {
    let room = born();
    let plan = revised(&room);
    let replace = Later::new(&room, &["replace-custodian", &plan]);
    // Custodians of the old plan are asked, the one who leaves among them.
    room.answer("recover", "Bob\nAlice\nCarol\n");
    replace.run_to_the_end();
    replace.verify();
    let told: Vec<String> = replace.transcript().iter().map(describe).collect();
    assert!(told.contains(&"signature Frank".to_owned()));
    assert!(!told.contains(&"signature Bob".to_owned()));

    let new_plan = Plan::load(Path::new(&plan)).unwrap();
    let old = room.recover(Mode::Ceremony, &["Alice", "Bob", "Carol"]);
    for three in [["Alice", "Frank", "Erin"], ["Carol", "Dave", "Frank"]] {
        let new = recover(&replace.dir, &new_plan, Mode::Ceremony, &three);
        assert!(*new.so == *old.so && *new.user == *old.user);
    }

    // Another ceremony after it: Bob is nobody any more, and Alice's old share is not taken.
    room.answer("appliance", "vault-keys-1\n");
    let destroy = Later {
        after: replace.dir.clone(),
        ..Later::new(&room, &["destroy"])
    };
    room.answer("recover", "Bob\nAlice\nCarol\n");
    destroy.fails(1, "Bob is not a custodian");
    let alice = People::all().key("Alice").participant().fingerprint();
    let share = destroy.dir.join(format!("previous-shares/{alice}.jwe"));
    let kept = fs::read(&share).unwrap();
    fs::copy(room.dir().join(format!("shares/{alice}.jwe")), &share).unwrap();
    room.answer("recover", "Alice\nCarol\nFrank\n");
    destroy.fails(1, "this share is of another ceremony");
    fs::write(&share, kept).unwrap();
    destroy.run_to_the_end();
    destroy.verify();
    assert_eq!(fs::read_dir(destroy.dir.join("chain")).unwrap().count(), 2);
    // Both predecessors are needed.
    let folder = tempfile::tempdir().unwrap();
    fs::copy(
        destroy.dir.join("chain/0002.jsonl"),
        folder.path().join("0002.jsonl"),
    )
    .unwrap();
    assert!(!destroy.verifies(&destroy.transcript_path(), folder.path()));
}

#[test]
fn killed_at_every_line_it_goes_on() {
    let room = born();
    let plan = revised(&room);
    let replace = Later::new(&room, &["replace-custodian", &plan]);
    replace.killed_at(&lines_to_come(
        &["opening", "pins", "closing"],
        &["Alice", "Frank", "Carol", "Dave", "Erin", OFFICER, AUDITOR],
    ));
    replace.verify();
    let new_plan = Plan::load(Path::new(&plan)).unwrap();
    let pins = recover(
        &replace.dir,
        &new_plan,
        Mode::Ceremony,
        &["Frank", "Dave", "Erin"],
    );
    assert_eq!(
        *pins.user,
        fs::read(room.appliance().join("hsm-pin")).unwrap()
    );
}

#[test]
fn a_plan_that_is_no_revision_is_refused() {
    let room = born();
    let plan = revised(&room);
    let text = fs::read_to_string(&plan).unwrap();
    let refused = |name: &str, text: &str, message: &str| {
        let path = room.path().join(name);
        fs::write(&path, text).unwrap();
        sign(&path);
        let replace = Later::new(&room, &["replace-custodian", path.to_str().unwrap()]);
        let output = replace.run();
        assert!(!output.status.success());
        let errors = crate::rig::stderr(&output);
        assert!(errors.contains(message), "{message}: {errors}");
        assert!(!replace.transcript_path().exists());
    };
    let replaces = room.plan().hash_hex();
    refused(
        "other.toml",
        &text.replace(&replaces, &"0".repeat(64)),
        "does not say that it replaces the plan in force",
    );
    refused(
        "moved.toml",
        &text.replace("label = \"vault-keys-1\"", "label = \"vault-keys-2\""),
        "the plan's `token` is not that of the plan that it replaces",
    );
    // Not everyone has signed.
    let signatures = format!("{plan}.signatures");
    let all = fs::read_to_string(&signatures).unwrap();
    fs::write(&signatures, all.split_once('\n').unwrap().1).unwrap();
    let replace = Later::new(&room, &["replace-custodian", &plan]);
    let output = replace.run();
    assert!(crate::rig::stderr(&output).contains("has not signed"));
    assert!(!replace.transcript_path().exists());
}

#[test]
fn a_revision_says_what_it_replaces() {
    let room = born();
    let old = room.plan();
    let mut draft = Draft::revision(&old);
    let frank: Participant = People::all().key("Frank").participant().clone();
    draft.custodians.push(frank);
    let plan = draft.plan().unwrap();
    assert!(plan.revision_problems(&old).is_empty());
    assert_eq!(old.revision_problems(&plan).len(), 1);
}
