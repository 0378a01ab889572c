//! Keys that are not as they must be, in a transcript that everyone signed and the token sealed.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use strongroom_ceremony::{Kind, Mode, Step};
use strongroom_hsm::ceremony::expected::{
    ExpectedAttribute, ExpectedKey, ExpectedObject, ExpectedValue, SIGNING_LABEL, signing_keys,
};
use strongroom_hsm::{KeyShape, OptionalKeys};

use super::forge::Forgery;
use super::people::Room;
use super::scene::Scene;
use super::{Cases, both_say, both_say_after};

const SHAPES: [KeyShape; 3] = [KeyShape::Fixed, KeyShape::Movable, KeyShape::Moved];

/// The document's table is the code's, object by object, so that a program written from it alone
/// knows what this one does.
#[test]
fn the_documents_table_is_the_one_that_a_start_uses() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/transcript-format.md");
    let text = fs::read_to_string(path).unwrap();
    let (_, part) = text.split_once("## The attributes of each object").unwrap();
    let (_, table) = part.split_once("```text\n").unwrap();
    let (table, _) = table.split_once("```").unwrap();
    let expected = table_text();
    assert!(table == expected, "the table must be\n{expected}");
}

fn table_text() -> String {
    let mut text = String::new();
    for key in ExpectedKey::all(OptionalKeys::ALL, 1) {
        let shapes = SHAPES.map(|shape| key.objects(shape));
        let [first, second, third] = &shapes;
        for ((first, second), third) in first.iter().zip(second).zip(third) {
            text += &object_text(&key.label(), [first, second, third]);
        }
    }
    for object in signing_keys() {
        text += &object_text(SIGNING_LABEL, [&object; 3]);
    }
    text
}

/// Attribute and value; three values where they depend on where the keys came from.
fn object_text(label: &str, shapes: [&ExpectedObject; 3]) -> String {
    let mut names: Vec<String> = Vec::new();
    for (name, _) in shapes
        .iter()
        .flat_map(|object| &object.attributes)
        .flat_map(rows)
    {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.sort();
    let mut text = format!("{label} {}\n", shapes[0].class);
    for name in names {
        let values = shapes.map(|object| {
            let mut rows = object.attributes.iter().flat_map(rows);
            let row = rows.find(|(other, _)| *other == name);
            row.map_or_else(|| "-".to_owned(), |(_, value)| value)
        });
        let value = if values.iter().all(|value| *value == values[0]) {
            values[0].clone()
        } else {
            values.join(" | ")
        };
        text.extend(["  ", &name, " ", &value, "\n"]);
    }
    text
}

fn rows(attribute: &ExpectedAttribute) -> Vec<(String, String)> {
    let name = attribute.name;
    match &attribute.value {
        ExpectedValue::Is(value) if attribute.optional => {
            vec![(format!("{name}?"), value.clone())]
        }
        ExpectedValue::Is(value) => vec![(name.to_owned(), value.clone())],
        ExpectedValue::MadeBy(value) => vec![(format!("{name}~"), value.clone())],
        ExpectedValue::Holds(inner) => inner
            .iter()
            .flat_map(rows)
            .map(|(inner, value)| (format!("{name}/{inner}"), value))
            .collect(),
    }
}

/// Another value than the one that is there.
fn flipped(value: &str) -> String {
    match value {
        "true" => "false".to_owned(),
        "false" => "true".to_owned(),
        "4096" => "2048".to_owned(),
        "32" => "16".to_owned(),
        "CKM_RSA_PKCS_OAEP" => "CKM_RSA_PKCS".to_owned(),
        "CKM_AES_GCM" => "CKM_AES_ECB, CKM_AES_GCM".to_owned(),
        other => format!("{other}x"),
    }
}

/// Each attribute that is demanded of each object, told as another or not at all.
fn changed(told: &[(String, String)], object: &ExpectedObject) -> Vec<(String, Value)> {
    let mut changed = Vec::new();
    for (at, (name, value)) in told.iter().enumerate() {
        let with = |value: &str| {
            let mut told = told.to_vec();
            value.clone_into(&mut told[at].1);
            json!(told)
        };
        let attribute = object
            .attributes
            .iter()
            .find(|one| one.name == name)
            .unwrap();
        if let ExpectedValue::Holds(inner) = &attribute.value {
            for wanted in inner {
                let (inner, is) = (wanted.name, wanted.value.to_string());
                let part = format!("{inner}={is}");
                let missing = (!wanted.optional).then(|| "CKA_X=true".to_owned());
                let wrong = [
                    format!("{inner}={}", flipped(&is)),
                    format!("{part}, {part}"),
                ];
                for other in wrong.into_iter().chain(missing) {
                    changed.push((
                        format!("{name}/{inner} {other}"),
                        with(&value.replace(&part, &other)),
                    ));
                }
            }
        }
        changed.push((format!("{name} {}", flipped(value)), with(&flipped(value))));
        if at % 6 == 0 {
            let mut twice = told.to_vec();
            twice.push((name.clone(), flipped(value)));
            changed.push((format!("{name} twice"), json!(twice)));
            changed.push((format!("{name} empty"), with("")));
        }
        if !attribute.optional {
            let mut without = told.to_vec();
            without.remove(at);
            changed.push((format!("without {name}"), json!(without)));
        }
    }
    let mut trusted = told.to_vec();
    trusted.push(("CKA_TRUSTED".to_owned(), "true".to_owned()));
    changed.push(("trusted".to_owned(), json!(trusted)));
    changed
}

/// Every change of every attribute of every object that a step told of.
fn cases(
    forge: &dyn Fn() -> Forgery,
    step: Step,
    shape: &dyn Fn(&ExpectedKey) -> KeyShape,
    generation: u32,
    plan: OptionalKeys,
) -> Cases {
    let objects = forge().outputs(step)["objects"].clone();
    let mut cases = Cases::new();
    for key in ExpectedKey::all(plan, generation) {
        let label = key.label();
        for wanted in key.objects(shape(&key)) {
            let Some(at) = objects
                .as_array()
                .unwrap()
                .iter()
                .position(|object| object["label"] == label && object["class"] == wanted.class)
            else {
                continue; // a step that tells of some only
            };
            let told: Vec<(String, String)> =
                serde_json::from_value(objects[at]["attributes"].clone()).unwrap();
            for (name, attributes) in changed(&told, &wanted) {
                let mut forgery = forge();
                forgery.outputs(step)["objects"][at]["attributes"] = attributes;
                cases.push((
                    format!("{step}: {label} {}: {name}", wanted.class),
                    forgery.bytes(),
                ));
            }
        }
    }
    assert!(cases.len() > 200, "{}", cases.len());
    cases
}

/// One of eight: all of them take minutes.
fn some(cases: &Cases, previous: &[Vec<u8>]) {
    let some = cases.iter().step_by(8).cloned().collect();
    both_say_after(false, &some, previous);
}

#[test]
fn every_attribute_of_every_key_that_was_born() {
    for (room, all) in [(Room::new(), true), (Room::movable(), false)] {
        let plan = OptionalKeys {
            memory_master: room.plan.keys.memory_master,
            transfer: room.plan.keys.transfer,
        };
        let shape = if room.plan.keys.backup {
            KeyShape::Movable
        } else {
            KeyShape::Fixed
        };
        let forge = || Forgery::new(&room, Mode::Ceremony);
        both_say(true, &vec![("with no fault".into(), forge().bytes())]);
        let cases = cases(&forge, Step::Evidence, &|_| shape, 1, plan);
        if all {
            both_say(false, &cases);
        } else {
            some(&cases, &[]);
        }
    }
}

/// What keys of earlier builds do not force may be missing from what is told of them.
#[test]
fn a_ceremony_of_an_earlier_build_still_verifies() {
    let room = Room::new();
    let mut forgery = Forgery::new(&room, Mode::Ceremony);
    let mut left_out = 0;
    for object in forgery.outputs(Step::Evidence)["objects"]
        .as_array_mut()
        .unwrap()
    {
        if object["label"] == "strongroom-transfer" {
            continue;
        }
        for attribute in object["attributes"].as_array_mut().unwrap() {
            if attribute[0] != "CKA_UNWRAP_TEMPLATE" {
                continue;
            }
            let told = attribute[1].as_str().unwrap();
            let (newer, older): (Vec<_>, Vec<_>) = told.split(", ").partition(|one| {
                ["CKA_COPYABLE", "CKA_DERIVE", "CKA_MODIFIABLE"]
                    .iter()
                    .any(|name| one.starts_with(name))
            });
            left_out += newer.len();
            attribute[1] = older.join(", ").into();
        }
    }
    assert_eq!(left_out, 6);
    both_say(true, &vec![("of an earlier build".into(), forgery.bytes())]);
}

/// The same where the keys are not those of an initial ceremony: of a copy, a restoration, a
/// rotation and of what is to be destroyed.
#[test]
fn every_attribute_of_every_key_later() {
    let room = Room::movable();
    let plan = OptionalKeys::ALL;
    let birth = room.written(Mode::Ceremony);
    let scene = Scene::birth(&room);
    let moved = |_: &ExpectedKey| KeyShape::Moved;

    let add = scene.next(Kind::AddToken);
    let forge = || Forgery::of(&room, &add, &birth);
    both_say_after(
        true,
        &vec![("add".into(), forge().bytes())],
        std::slice::from_ref(&birth),
    );
    some(
        &cases(&forge, Step::Copy, &moved, 1, plan),
        std::slice::from_ref(&birth),
    );

    let backup = scene.next(Kind::Backup);
    let exported = Forgery::of(&room, &backup, &birth).bytes();
    let restore = backup.next(Kind::Restore);
    let previous = [birth, exported.clone()];
    let forge = || Forgery::of(&room, &restore, &exported);
    both_say_after(true, &vec![("restore".into(), forge().bytes())], &previous);
    some(&cases(&forge, Step::Evidence, &moved, 1, plan), &previous);

    // On a token whose keys came by a backup, those that a rotation made are its own.
    let restored = forge().bytes();
    let rotate = restore.next(Kind::RotateMaster);
    let forge = || Forgery::of(&room, &rotate, &restored);
    let previous = [&previous[..], std::slice::from_ref(&restored)].concat();
    let mixed = |key: &ExpectedKey| {
        if key.is_rotated() {
            KeyShape::Movable
        } else {
            KeyShape::Moved
        }
    };
    both_say_after(true, &vec![("rotate".into(), forge().bytes())], &previous);
    some(&cases(&forge, Step::Successor, &mixed, 2, plan), &previous);
    some(&cases(&forge, Step::Evidence, &mixed, 2, plan), &previous);

    let rotated = forge().bytes();
    let destroy = rotate.next(Kind::Destroy);
    let forge = || Forgery::of(&room, &destroy, &rotated);
    let previous = [&previous[..], std::slice::from_ref(&rotated)].concat();
    both_say_after(true, &vec![("destroy".into(), forge().bytes())], &previous);
    some(&cases(&forge, Step::Inventory, &mixed, 2, plan), &previous);
}
