//! Ceremonies after the initial ceremony: everyone signed each of them, and the token sealed it;
//! what must not be is between the two.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use strongroom_ceremony::record::KeyRecord;
use strongroom_ceremony::{Kind, Mode, Plan, PlanSignature, Step};

use super::forge::Forgery;
use super::people::{ID, Room, key, person_with, spki};
use super::scene::{Scene, rsa};
use super::{Cases, both_say, both_say_after};

type Change = fn(&mut Forgery);

fn cases(room: &Room, kind: Kind, before: &[u8], changes: &[(&str, Change)]) -> Cases {
    changes
        .iter()
        .map(|(name, change)| {
            let mut forgery = Forgery::later(room, kind, before);
            change(&mut forgery);
            ((*name).to_owned(), forgery.bytes())
        })
        .collect()
}

#[test]
fn one_that_fits_what_was_before_is_valid_only_with_it() {
    let room = Room::movable();
    let birth = room.written(Mode::Ceremony);
    let backup = Forgery::later(&room, Kind::Backup, &birth).bytes();
    let scene = Scene::birth(&room).next(Kind::Backup).next(Kind::AddToken);
    let third = Forgery::of(&room, &scene, &backup).bytes();
    both_say_after(
        true,
        &vec![("backup".into(), backup.clone())],
        std::slice::from_ref(&birth),
    );
    both_say_after(
        true,
        &vec![("third".into(), third.clone())],
        &[backup.clone(), birth.clone()],
    );
    both_say(false, &vec![("backup".into(), backup.clone())]);
    for missing in [&birth, &backup] {
        both_say_after(
            false,
            &vec![("third".into(), third.clone())],
            std::slice::from_ref(missing),
        );
    }
    // A predecessor that is not valid itself.
    let mut torn = birth.clone();
    torn.pop();
    let after_torn = Forgery::later(&room, Kind::Backup, &torn).bytes();
    both_say_after(
        false,
        &vec![("after a torn one".into(), after_torn)],
        &[torn],
    );
    // A rehearsal is no ground to stand on.
    let rehearsal = room.written(Mode::Rehearsal);
    let after = Forgery::later(&room, Kind::Backup, &rehearsal).bytes();
    both_say_after(
        false,
        &vec![("after a rehearsal".into(), after)],
        &[rehearsal],
    );
}

#[test]
#[allow(clippy::too_many_lines, reason = "a list of forgeries")]
fn what_must_be_as_it_was_before() {
    let room = Room::movable();
    let birth = room.written(Mode::Ceremony);
    let changes: &[(&str, Change)] = &[
        ("an initial ceremony that goes on", |forgery| {
            forgery.open()["kind"] = "birth".into();
        }),
        ("a kind of no name", |forgery| {
            forgery.open()["kind"] = "party".into();
        }),
        ("no predecessor", |forgery| {
            forgery
                .open()
                .as_object_mut()
                .unwrap()
                .remove("previous_sha256");
        }),
        ("null for a predecessor", |forgery| {
            forgery.open()["previous_sha256"] = Value::Null;
        }),
        ("another predecessor", |forgery| {
            forgery.open()["previous_sha256"] = "0".repeat(64).into();
        }),
        ("the same ceremony id", |forgery| {
            forgery.id = ID;
            forgery.open()["ceremony_id"] = ID.to_string().into();
        }),
        ("another token", |forgery| {
            forgery.summary()["token"]["serial"] = "0".into();
        }),
        ("another store", |forgery| {
            forgery.summary()["store_id"] = "0".repeat(32).into();
        }),
        ("another master key", |forgery| {
            let other = json!(KeyRecord::new(
                "strongroom-master",
                "strongroom-master",
                Some(&rsa("another"))
            ));
            forgery.summary()["keys"][0] = other.clone();
            forgery.outputs(Step::Export)["keys"][0] = other;
        }),
        ("a key less", |forgery| {
            forgery.summary()["keys"].as_array_mut().unwrap().remove(1);
            forgery.outputs(Step::Export)["keys"]
                .as_array_mut()
                .unwrap()
                .remove(1);
        }),
        ("another audit key", |forgery| {
            let other = spki(&key(77));
            forgery.sealer = key(77);
            forgery.summary()["keys"][2] = json!(KeyRecord::new(
                "strongroom-audit",
                "strongroom-audit",
                Some(&other)
            ));
            let other = BASE64_STANDARD.encode(other);
            forgery.close()["audit_key"] = other.clone().into();
            forgery.outputs(Step::Closing)["audit_key"] = other.into();
        }),
        ("other shares", |forgery| {
            let commitments = &mut forgery.outputs(Step::Opening)["shares"]["commitments"];
            commitments[0]["so"] = "0".repeat(64).into();
        }),
        ("shares of another ceremony", |forgery| {
            forgery.outputs(Step::Opening)["shares"]["ceremony_id"] = "0".repeat(32).into();
        }),
        ("nobody present", |forgery| {
            forgery.outputs(Step::Opening)["present"] = json!([]);
            forgery.signers.clear();
        }),
        ("no auditor", |forgery| {
            forgery.outputs(Step::Opening)["present"]
                .as_array_mut()
                .unwrap()
                .pop();
            forgery.signers.pop();
        }),
        ("too few custodians", |forgery| {
            forgery.outputs(Step::Opening)["present"]
                .as_array_mut()
                .unwrap()
                .drain(0..2);
            forgery.signers.drain(0..2);
        }),
        ("present in another order", |forgery| {
            forgery.outputs(Step::Opening)["present"]
                .as_array_mut()
                .unwrap()
                .swap(0, 1);
        }),
        ("present twice", |forgery| {
            let first = forgery.outputs(Step::Opening)["present"][0].clone();
            forgery.outputs(Step::Opening)["present"]
                .as_array_mut()
                .unwrap()
                .insert(0, first);
        }),
        ("somebody present who did not sign", |forgery| {
            forgery.signers.remove(0);
        }),
        ("somebody who signed and was not present", |forgery| {
            forgery.outputs(Step::Opening)["present"]
                .as_array_mut()
                .unwrap()
                .remove(0);
        }),
        ("a transport key for others", |forgery| {
            forgery.outputs(Step::Transport)["commitments"]
                .as_array_mut()
                .unwrap()
                .swap(0, 1);
        }),
        ("a transport key for one", |forgery| {
            forgery.outputs(Step::Transport)["threshold"] = 1.into();
        }),
        ("a backup of other keys", |forgery| {
            forgery.outputs(Step::Export)["keys"][0]["label"] = "strongroom-other".into();
        }),
        ("a backup without a hash", |forgery| {
            forgery.outputs(Step::Export)["backup_sha256"] = "none".into();
        }),
        ("a note of a step that it has not", |forgery| {
            let note = json!({"step": "destroy", "text": "x", "data": null});
            forgery.lines.insert(2, ("note".into(), note));
        }),
        ("a step of another kind", |forgery| {
            forgery.lines[3].1["step"] = "self-test".into();
            forgery.lines[4].1["step"] = "self-test".into();
        }),
    ];
    both_say_after(
        false,
        &cases(&room, Kind::Backup, &birth, changes),
        std::slice::from_ref(&birth),
    );
    let fewer: &[(&str, Change)] = &[
        ("M custodians are enough", |forgery| {
            forgery.outputs(Step::Opening)["present"]
                .as_array_mut()
                .unwrap()
                .remove(1);
            forgery.signers.remove(1);
        }),
        ("a newer program", |forgery| {
            forgery.open()["software"]["binary_sha256"] = "0".repeat(64).into();
        }),
    ];
    both_say_after(true, &cases(&room, Kind::Backup, &birth, fewer), &[birth]);
}

#[test]
fn a_second_token_is_what_it_says() {
    let room = Room::movable();
    let birth = room.written(Mode::Ceremony);
    let changes: &[(&str, Change)] = &[
        ("a copy on another token", |forgery| {
            forgery.outputs(Step::Copy)["token"]["serial"] = "0".into();
        }),
        ("a copy without the store key", |forgery| {
            forgery.outputs(Step::Copy)["keys"]
                .as_array_mut()
                .unwrap()
                .remove(1);
        }),
        ("a copy with another audit key than its own", |forgery| {
            let audit_key = forgery.close()["audit_key"].clone();
            forgery.outputs(Step::Copy)["audit_key"] = audit_key;
        }),
        ("an object that is not a key", |forgery| {
            let objects = &mut forgery.outputs(Step::Copy)["objects"];
            objects[0]["label"] = "strongroom-other".into();
        }),
        ("the second token at work at once", |forgery| {
            let token = forgery.outputs(Step::Copy)["token"].clone();
            forgery.summary()["token"] = token;
        }),
    ];
    both_say_after(
        false,
        &cases(&room, Kind::AddToken, &birth, changes),
        std::slice::from_ref(&birth),
    );
    // Afterwards it may be at work, all of it or nothing.
    let added = Forgery::later(&room, Kind::AddToken, &birth).bytes();
    let with = |audit_key: bool| {
        let mut scene = Scene::birth(&room).next(Kind::AddToken);
        scene = scene.next(Kind::ReplaceCustodian);
        scene.token = 1;
        let mut forgery = Forgery::of(&room, &scene, &added);
        revise(&room, &mut forgery);
        if !audit_key {
            let first = Scene::birth(&room);
            forgery.summary()["keys"] = json!(first.keys());
            forgery.close()["audit_key"] = first.audit_key().into();
            forgery.outputs(Step::Closing)["audit_key"] = first.audit_key().into();
            forgery.sealer = first.sealer();
        }
        forgery.bytes()
    };
    let previous = [birth, added.clone()];
    both_say_after(
        true,
        &vec![("the second token".into(), with(true))],
        &previous,
    );
    both_say_after(false, &vec![("half of it".into(), with(false))], &previous);
}

/// Makes it a good `replace-custodian`, with shares of its own for a plan that replaces the old
/// one.
fn revise(room: &Room, forgery: &mut Forgery) {
    let replaces = format!("format = 1\nreplaces = \"{}\"\n", room.plan.hash_hex());
    let text = room.plan.text().replacen("format = 1\n", &replaces, 1);
    plan(room, forgery, &text);
}

fn plan(room: &Room, forgery: &mut Forgery, text: &str) {
    let plan = Plan::parse(text).unwrap();
    let signatures: Vec<_> = room
        .keys
        .iter()
        .map(|key| PlanSignature::make(&plan, key).unwrap())
        .collect();
    let open = forgery.open();
    open["plan_sha256"] = plan.hash_hex().into();
    open["plan"] = text.into();
    open["signatures"] = json!(signatures);
}

#[test]
fn a_plan_takes_the_place_of_the_one_in_force_and_of_no_other() {
    let room = Room::movable();
    let birth = room.written(Mode::Ceremony);
    let made = |change: &dyn Fn(String) -> String| {
        let mut forgery = Forgery::later(&room, Kind::ReplaceCustodian, &birth);
        revise(&room, &mut forgery);
        let text = change(forgery.open()["plan"].as_str().unwrap().to_owned());
        plan(&room, &mut forgery, &text);
        forgery.bytes()
    };
    let previous = std::slice::from_ref(&birth);
    let good: Cases = vec![("a revision".into(), made(&|text| text))];
    both_say_after(true, &good, previous);
    let bad: Cases = vec![
        (
            "of another plan".into(),
            made(&|text| text.replace(&room.plan.hash_hex(), &"0".repeat(64))),
        ),
        ("of none".into(), made(&|_| room.plan.text().to_owned())),
        (
            "with another label".into(),
            made(&|text| text.replace("label = \"vault-keys-1\"", "label = \"other\"")),
        ),
        (
            "without a backup".into(),
            made(&|text| text.replace("backup = true", "backup = false")),
        ),
        (
            "with another directory".into(),
            made(&|text| text.replace("/etc/strongroom", "/etc/other")),
        ),
        (
            "with another way for the PIN".into(),
            made(&|text| text.replace("method = \"file\"", "method = \"systemd-creds\"")),
        ),
    ];
    both_say_after(false, &bad, previous);
    // No other kind changes the plan.
    let mut forgery = Forgery::later(&room, Kind::Backup, &birth);
    let text = room
        .plan
        .text()
        .replacen("format = 1\n", "format = 1\n\n", 1);
    plan(&room, &mut forgery, &text);
    both_say_after(
        false,
        &vec![("a backup by another plan".into(), forgery.bytes())],
        previous,
    );
}

/// Whoever takes a custodian's place comes with keys that are nobody's yet, nor the appliance's.
#[test]
fn a_person_has_no_key_of_the_appliances() {
    // Rule 43.
    let room = Room::movable();
    let birth = room.written(Mode::Ceremony);
    let made = |number: u8| {
        let mut other = Room::movable();
        let public = |number| BASE64_STANDARD.encode(spki(&key(number)));
        let replaces = format!("format = 1\nreplaces = \"{}\"\n", room.plan.hash_hex());
        let text = room.plan.text().replacen("format = 1\n", &replaces, 1);
        other.plan = Plan::parse(&text.replace(&public(3), &public(number))).unwrap();
        other.keys[2] = person_with("Çelik, D.", number, 103);
        other.signatures = other
            .keys
            .iter()
            .map(|key| PlanSignature::make(&other.plan, key).unwrap())
            .collect();
        let shares = Scene::birth(&room)
            .next(Kind::ReplaceCustodian)
            .outputs(Step::Opening)["shares"]
            .clone();
        let mut forgery = Forgery::later(&other, Kind::ReplaceCustodian, &birth);
        forgery.outputs(Step::Opening)["shares"] = shares;
        forgery.signers[2].1 = key(number);
        forgery.bytes()
    };
    let previous = std::slice::from_ref(&birth);
    both_say_after(true, &vec![("a new custodian".into(), made(99))], previous);
    both_say_after(
        false,
        &vec![("with the TLS key".into(), made(80))],
        previous,
    );
}
