//! Transcripts that everyone signed, though something in them is wrong.

use serde_json::{Value, json};
use strongroom_ceremony::{Mode, Step};

use super::forge::{Forgery, hex};
use super::people::{Room, key, spki};
use super::{Cases, both_say};

type Change = fn(&mut Forgery);

fn cases(room: &Room, mode: Mode, changes: &[(&str, Change)]) -> Cases {
    changes
        .iter()
        .map(|(name, change)| {
            let mut forgery = Forgery::new(room, mode);
            change(&mut forgery);
            ((*name).to_owned(), forgery.bytes())
        })
        .collect()
}

#[test]
fn steps_out_of_order() {
    let room = Room::new();
    let changes: &[(&str, Change)] = &[
        ("a step is missing", |forgery| {
            drop(forgery.lines.drain(1..4));
        }),
        ("the last step is missing", |forgery| {
            let close = forgery.lines.len() - 1;
            forgery.lines.drain(close - 3..close);
        }),
        ("a step is done twice", |forgery| {
            forgery.lines.insert(4, forgery.lines[3].clone());
        }),
        ("a step has not begun", |forgery| {
            drop(forgery.lines.remove(1));
        }),
        ("a step is not done", |forgery| {
            drop(forgery.lines.remove(3));
        }),
        ("two steps swapped", |forgery| {
            let step: Vec<_> = forgery.lines.drain(1..4).collect();
            forgery.lines.splice(4..4, step);
        }),
        ("no summary", |forgery| drop(forgery.lines.pop())),
        ("two summaries", |forgery| {
            forgery.lines.push(forgery.lines.last().unwrap().clone());
        }),
        ("a step after the summary", |forgery| {
            forgery.lines.push(forgery.lines[1].clone());
        }),
        ("opened twice", |forgery| {
            forgery.lines.insert(1, forgery.lines[0].clone());
        }),
        ("never opened", |forgery| drop(forgery.lines.remove(0))),
        ("a step of no name", |forgery| {
            forgery.lines[1].1["step"] = "party".into();
        }),
        ("a line of no type", |forgery| {
            forgery
                .lines
                .insert(2, ("party".into(), json!({"step": "opening"})));
        }),
        ("an actor of no name", |forgery| {
            forgery.lines[1].1["actor"] = json!([1]);
        }),
        ("outputs that are none", |forgery| {
            forgery.lines[3].1["outputs"] = json!([]);
        }),
        ("a member more", |forgery| {
            forgery.lines[1].1["more"] = json!(1);
        }),
        ("a member twice", |forgery| {
            forgery.instead = ("\"actor\":", "\"actor\":[],\"actor\":");
        }),
        ("a member twice, further in", |forgery| {
            forgery.instead = ("\"slot\":7", "\"slot\":7,\"slot\":8");
        }),
        ("a member twice, in a list", |forgery| {
            forgery.instead = ("\"class\":", "\"x\":1,\"x\":2,\"class\":");
        }),
        ("a line with another number", |forgery| {
            forgery.instead = ("\"seq\":9,", "\"seq\":10,");
        }),
        ("a number that is none", |forgery| {
            forgery.instead = ("\"slot\":7", "\"slot\":NaN");
        }),
        ("a member less", |forgery| {
            forgery.lines[2].1.as_object_mut().unwrap().remove("data");
        }),
    ];
    both_say(false, &cases(&room, Mode::Ceremony, changes));
}

/// Nobody makes a ceremony out of a rehearsal by having one line say so, or all but one.
#[test]
fn two_modes_in_one_transcript() {
    let room = Room::new();
    let count = Forgery::new(&room, Mode::Ceremony).bytes();
    let count = count.split_inclusive(|byte| *byte == b'\n').count() as u64;
    let mut cases = Cases::new();
    for number in 1..=count {
        for mode in [Mode::Ceremony, Mode::Rehearsal] {
            let mut forgery = Forgery::new(&room, mode);
            forgery.but = Some(number);
            cases.push((format!("{mode}, but not line {number}"), forgery.bytes()));
        }
    }
    both_say(false, &cases);
    for (name, transcript) in cases.iter().step_by(9) {
        assert_eq!(
            super::exit_codes(transcript, &["--rehearsal"]),
            (Some(8), Some(1)),
            "{name}"
        );
    }
}

#[test]
fn what_may_differ() {
    let room = Room::new();
    let changes: &[(&str, Change)] = &[
        ("a step begins again", |forgery| {
            forgery.lines.insert(2, forgery.lines[1].clone());
        }),
        ("a note after the summary", |forgery| {
            forgery.lines.push((
                "note".into(),
                json!({"step": "closing", "text": "a key was mislaid", "data": null}),
            ));
        }),
        ("blanks and escapes", |forgery| {
            forgery.instead = ("\"slot\":7", " \"sl\\u006ft\" : 7 ");
        }),
        ("outputs of a step's own", |forgery| {
            forgery.outputs(Step::Token)["more"] = json!({"a": [1, 2]});
        }),
        ("an object that is not a key", |forgery| {
            let more = json!({"name": "epoch object", "label": "strongroom-epoch", "class": "CKO_DATA", "attributes": []});
            forgery.outputs(Step::Evidence)["objects"]
                .as_array_mut()
                .unwrap()
                .push(more);
        }),
    ];
    both_say(true, &cases(&room, Mode::Ceremony, changes));
}

#[test]
fn an_opening_that_is_not_right() {
    let room = Room::new();
    let changes: &[(&str, Change)] = &[
        ("another format", |forgery| {
            forgery.open()["format"] = json!(2);
        }),
        ("another kind", |forgery| {
            forgery.open()["kind"] = "wedding".into();
        }),
        ("another program", |forgery| {
            forgery.open()["software"]["binary_sha256"] = "0".repeat(64).into();
        }),
        ("another hash of the plan", |forgery| {
            forgery.open()["plan_sha256"] = "0".repeat(64).into();
        }),
        ("another plan", |forgery| {
            edit_plan(forgery, "threshold = 2", "threshold = 1");
        }),
        ("a comment in the plan", |forgery| {
            edit_plan(forgery, "[token]", "# psst\n[token]");
        }),
        ("a plan that can't be read", |forgery| {
            edit_plan(forgery, "[token]", "[tok");
        }),
        ("an unknown field in the plan", |forgery| {
            edit_plan(forgery, "[token]", "[token]\nx = 1");
        }),
        ("a signature of the plan is missing", |forgery| {
            drop(signatures(forgery).pop());
        }),
        ("a signature of the plan twice", |forgery| {
            let again = signatures(forgery)[0].clone();
            signatures(forgery).push(again);
        }),
        ("a signature of the plan by another", |forgery| {
            let other = signatures(forgery)[1]["signature"].clone();
            signatures(forgery)[0]["signature"] = other;
        }),
        ("a signature of the plan by a stranger", |forgery| {
            signatures(forgery)[0]["key"] = "0".repeat(64).into();
        }),
        ("a signature of the plan with another name", |forgery| {
            signatures(forgery)[0]["name"] = "Al".into();
        }),
        ("no ceremony id", |forgery| {
            forgery.open()["ceremony_id"] = "".into();
        }),
    ];
    both_say(false, &cases(&room, Mode::Ceremony, changes));
}

#[test]
fn records_that_contradict_each_other() {
    let room = Room::new();
    let changes: &[(&str, Change)] = &[
        ("another threshold", |forgery| {
            forgery.outputs(Step::Pins)["threshold"] = json!(1);
        }),
        ("a commitment is missing", |forgery| {
            forgery.outputs(Step::Pins)["commitments"]
                .as_array_mut()
                .unwrap()
                .pop();
        }),
        ("commitments swapped", |forgery| {
            forgery.outputs(Step::Pins)["commitments"]
                .as_array_mut()
                .unwrap()
                .swap(0, 1);
        }),
        ("a commitment to nothing", |forgery| {
            forgery.outputs(Step::Pins)["commitments"][0]["so"] = "".into();
        }),
        ("another label", |forgery| {
            everywhere(forgery, "/label", "other");
        }),
        ("another token than planned", |forgery| {
            everywhere(forgery, "/serial", "other");
        }),
        ("the evidence is of another token", |forgery| {
            forgery.outputs(Step::Evidence)["token"]["serial"] = "other".into();
        }),
        ("the summary is of another token", |forgery| {
            forgery.summary()["token"]["serial"] = "other".into();
        }),
        ("the summary's model", |forgery| {
            forgery.summary()["token"]["model"] = "other".into();
        }),
        ("the token says nothing of its model", |forgery| {
            forgery.outputs(Step::Token)["token"]
                .as_object_mut()
                .unwrap()
                .remove("model");
        }),
        ("a key's hash", |forgery| {
            forgery.outputs(Step::Keys)["keys"][0]["sha256"] = "0".repeat(64).into();
            forgery.summary()["keys"][0]["sha256"] = "0".repeat(64).into();
        }),
        ("a key without a hash", |forgery| {
            forgery.outputs(Step::Keys)["keys"][0]["sha256"] = Value::Null;
            forgery.summary()["keys"][0]["sha256"] = Value::Null;
        }),
        ("a key is missing in the summary", |forgery| {
            forgery.summary()["keys"].as_array_mut().unwrap().remove(0);
        }),
        ("a key's name in the summary", |forgery| {
            forgery.summary()["keys"][0]["name"] = "other".into();
        }),
        ("no evidence of a public key", |forgery| {
            objects(forgery).retain(|object| {
                object["label"] != "strongroom-master" || object["class"] != "CKO_PUBLIC_KEY"
            });
        }),
        ("no evidence of a secret key", |forgery| {
            objects(forgery).retain(|object| object["label"] != "strongroom-store");
        }),
        ("a public key that nobody made", |forgery| {
            let mut more = objects(forgery)[1].clone();
            more["spki"] = base64(&spki(&key(60))).into();
            objects(forgery).push(more);
        }),
        ("a public key under another label", |forgery| {
            objects(forgery)[1]["label"] = "strongroom-store".into();
        }),
        ("an attribute of no value", |forgery| {
            objects(forgery)[0]["attributes"][0] = json!(["CKA_SIGN"]);
        }),
        ("another store", |forgery| {
            forgery.summary()["store_id"] = "f".repeat(32).into();
        }),
        ("a store of no id", |forgery| {
            forgery.outputs(Step::Store)["store_id"] = "x".into();
            forgery.summary()["store_id"] = "x".into();
        }),
        ("the audit key is none of the keys", |forgery| {
            forgery.sealer = key(60);
            forgery.close()["audit_key"] = base64(&spki(&key(60))).into();
        }),
        ("the audit key is not a key", |forgery| {
            forgery.close()["audit_key"] = "AAAA".into();
        }),
        ("the summary has a member more", |forgery| {
            forgery.summary()["more"] = json!(1);
        }),
    ];
    both_say(false, &cases(&room, Mode::Ceremony, changes));
}

/// A rehearsal is on a throwaway token, and may be of a program that was built for it.
#[test]
fn what_a_rehearsal_need_not_have() {
    let room = Room::new();
    let changes: &[(&str, Change)] = &[
        ("another token", |forgery| {
            everywhere(forgery, "/serial", "throwaway");
        }),
        ("another program", |forgery| {
            forgery.open()["software"]["binary_sha256"] = "0".repeat(64).into();
            forgery.outputs(Step::Opening)["binary_sha256"] = "0".repeat(64).into();
        }),
    ];
    for (name, transcript) in cases(&room, Mode::Rehearsal, changes) {
        assert_eq!(
            super::exit_codes(&transcript, &["--rehearsal"]),
            (Some(0), Some(0)),
            "{name}"
        );
    }
}

/// A whole, good ceremony, but of another plan, held against the right one.
#[test]
fn the_ceremony_of_another_plan() {
    let room = Room::new();
    let other = Room::with(|draft| draft.threshold = 1);
    let folder = tempfile::tempdir().unwrap();
    let plan = folder.path().join("plan.toml");
    std::fs::write(&plan, room.plan.text()).unwrap();
    let plan = plan.to_str().unwrap();
    let transcript = other.written(Mode::Ceremony);
    assert_eq!(super::exit_codes(&transcript, &[]), (Some(0), Some(0)));
    assert_eq!(
        super::exit_codes(&transcript, &["--plan", plan]),
        (Some(8), Some(1))
    );
}

fn signatures(forgery: &mut Forgery) -> &mut Vec<Value> {
    forgery.open()["signatures"].as_array_mut().unwrap()
}

fn objects(forgery: &mut Forgery) -> &mut Vec<Value> {
    forgery.outputs(Step::Evidence)["objects"]
        .as_array_mut()
        .unwrap()
}

fn edit_plan(forgery: &mut Forgery, from: &str, to: &str) {
    use sha2::{Digest as _, Sha256};
    let plan = forgery.open()["plan"].as_str().unwrap();
    assert!(plan.contains(from));
    let plan = plan.replacen(from, to, 1);
    forgery.open()["plan_sha256"] = hex(&Sha256::digest(&plan)).into();
    forgery.open()["plan"] = plan.into();
}

/// The token's member, wherever the token is named.
fn everywhere(forgery: &mut Forgery, member: &str, value: &str) {
    *forgery.outputs(Step::Token)["token"]
        .pointer_mut(member)
        .unwrap() = value.into();
    *forgery.outputs(Step::Evidence)["token"]
        .pointer_mut(member)
        .unwrap() = value.into();
    *forgery.summary()["token"].pointer_mut(member).unwrap() = value.into();
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::prelude::BASE64_STANDARD.encode(bytes)
}
