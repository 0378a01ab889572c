//! A good transcript that somebody changed afterwards: no change goes unseen, whether they repaired
//! the chain behind them or not.

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::Value;
use strongroom_ceremony::Mode;

use super::forge::{Forgery, chained_anew};
use super::people::{Room, person};
use super::{Cases, both_say};

fn lines(transcript: &[u8]) -> Vec<Vec<u8>> {
    transcript
        .split_inclusive(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect()
}

/// Both as it is, and with numbers and chain made right again.
fn twice(cases: &mut Cases, name: &str, transcript: &[u8]) {
    cases.push((name.to_owned(), transcript.to_vec()));
    cases.push((format!("{name}, chained again"), chained_anew(transcript)));
}

#[test]
fn lines_removed_moved_doubled_or_added() {
    let room = Room::new();
    let transcript = room.written(Mode::Ceremony);
    let whole = lines(&transcript);
    assert!(whole.len() > 30);
    let mut cases = Cases::new();
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed.remove(at);
        twice(
            &mut cases,
            &format!("without line {}", at + 1),
            &changed.concat(),
        );

        let mut changed = whole.clone();
        changed.insert(at, whole[at].clone());
        twice(
            &mut cases,
            &format!("line {} doubled", at + 1),
            &changed.concat(),
        );

        if at > 0 {
            let mut changed = whole.clone();
            changed.swap(at - 1, at);
            twice(
                &mut cases,
                &format!("lines {at} and {} swapped", at + 1),
                &changed.concat(),
            );
        }
    }
    for (name, more) in [
        (
            "a note",
            whole
                .iter()
                .find(|line| line.starts_with(b"{\"type\":\"note\""))
                .unwrap()
                .as_slice(),
        ),
        ("the seal", whole.last().unwrap()),
        ("an empty line", b"\n"),
        ("a blank", b" "),
        ("rubbish", b"\xff\xfe\n"),
    ] {
        let after = [&transcript, more].concat();
        if more.starts_with(b"{") {
            twice(&mut cases, &format!("{name} after the seal"), &after);
        } else {
            cases.push((format!("{name} after the seal"), after));
        }
        cases.push((format!("{name} before all"), [more, &transcript].concat()));
    }
    both_say(false, &cases);
}

#[test]
fn torn_anywhere() {
    let room = Room::new();
    let transcript = room.written(Mode::Ceremony);
    let mut cases: Cases = vec![("nothing".into(), Vec::new())];
    let mut end = 0;
    for line in lines(&transcript) {
        for cut in [
            end + 1,
            end + line.len() / 2,
            end + line.len() - 1,
            end + line.len(),
        ] {
            if cut < transcript.len() {
                cases.push((format!("cut after {cut} bytes"), transcript[..cut].to_vec()));
            }
        }
        end += line.len();
    }
    both_say(false, &cases);
}

/// Each member of each line, at any depth.
#[test]
fn every_member_of_every_line_edited() {
    let room = Room::new();
    let transcript = room.written(Mode::Ceremony);
    let whole = lines(&transcript);
    let mut cases = Cases::new();
    for (at, line) in whole.iter().enumerate() {
        let value: Value = serde_json::from_slice(line).unwrap();
        let mut paths = Vec::new();
        leaves(&value, String::new(), &mut paths);
        // Of the token's objects one stands for all: what must be in each is tried elsewhere.
        paths.retain(|path| !path.contains("/objects/") || path.contains("/objects/0/"));
        for path in paths {
            let mut edited = value.clone();
            let member = edited.pointer_mut(&path).unwrap();
            *member = match &*member {
                Value::String(text) => format!(
                    "{}x",
                    &text[..text.len() - text.chars().last().map_or(0, char::len_utf8)]
                )
                .into(),
                Value::Number(number) => (number.as_u64().unwrap() + 1).into(),
                Value::Bool(value) => (!value).into(),
                Value::Null => "x".into(),
                Value::Array(_) => serde_json::json!(["x"]),
                Value::Object(_) => serde_json::json!({"x": 1}),
            };
            let mut changed = whole.clone();
            changed[at] = format!("{edited}\n").into_bytes();
            cases.push((format!("line {}, {path}", at + 1), changed.concat()));
            if !path.starts_with("/seq") && !path.starts_with("/prev") {
                cases.push((
                    format!("line {}, {path}, chained again", at + 1),
                    chained_anew(&changed.concat()),
                ));
            }
        }
        let text = String::from_utf8(line.clone()).unwrap();
        for (name, edited) in [
            ("a member more", text.replacen('{', "{\"more\":1,", 1)),
            (
                "a member twice",
                text.replacen('{', "{\"mode\":\"CEREMONY\",", 1),
            ),
            ("a blank more", text.replacen('{', "{ ", 1)),
            ("a carriage return", text.replace('\n', "\r\n")),
        ] {
            let mut changed = whole.clone();
            changed[at] = edited.into_bytes();
            cases.push((format!("line {}, {name}", at + 1), changed.concat()));
        }
    }
    assert!(cases.len() > 500, "{}", cases.len());
    both_say(false, &cases);
}

/// Every value that has no parts, and every empty object and list.
fn leaves(value: &Value, path: String, paths: &mut Vec<String>) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, member) in members {
                leaves(member, format!("{path}/{name}"), paths);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                leaves(item, format!("{path}/{index}"), paths);
            }
        }
        _ => paths.push(path),
    }
}

/// Any byte, any bit.
#[test]
fn bits_flipped_at_random() {
    let room = Room::new();
    let transcript = room.written(Mode::Ceremony);
    let mut runner = TestRunner::deterministic();
    let strategy = (0..transcript.len(), 0..8_u32);
    let mut cases = Cases::new();
    // The last line has no other line after it, so all of it is tried.
    let last = lines(&transcript).last().unwrap().len();
    let tail = (transcript.len() - last..transcript.len()).flat_map(|at| [(at, 0), (at, 5)]);
    let random = (0..400).map(|_| strategy.new_tree(&mut runner).unwrap().current());
    for (at, bit) in random.chain(tail) {
        let mut changed = transcript.clone();
        changed[at] ^= 1 << bit;
        cases.push((format!("bit {bit} of byte {at}"), changed));
    }
    both_say(false, &cases);
}

#[test]
fn the_signature_or_seal_of_another() {
    let room = Room::new();
    let stranger = person("Mallory", 77);
    let forged = |change: &dyn Fn(&mut Forgery)| {
        let mut forgery = Forgery::new(&room, Mode::Ceremony);
        change(&mut forgery);
        forgery.bytes()
    };
    let others = |with_name: bool| {
        forged(&|forgery| {
            forgery.signers[1].1 = super::people::key(77);
            if with_name {
                forgery.signers[1].0["key"] = stranger.participant().fingerprint().into();
            }
        })
    };
    let cases: Cases = vec![
        ("a stranger's, in a custodian's name".into(), others(false)),
        (
            "a stranger's, with their own fingerprint".into(),
            others(true),
        ),
        (
            "one custodian signs for another".into(),
            forged(&|forgery| forgery.signers[1].1 = super::people::key(1)),
        ),
        (
            "one custodian signs twice".into(),
            forged(&|forgery| forgery.signers[1] = forgery.signers[0].clone()),
        ),
        (
            "in another order".into(),
            forged(&|forgery| forgery.signers.swap(0, 1)),
        ),
        (
            "in another role".into(),
            forged(&|forgery| forgery.signers[0].0["role"] = "auditor".into()),
        ),
        (
            "with another name".into(),
            forged(&|forgery| forgery.signers[0].0["name"] = "Alice".into()),
        ),
        (
            "one is missing".into(),
            forged(&|forgery| drop(forgery.signers.pop())),
        ),
        (
            "nobody signs".into(),
            forged(&|forgery| forgery.signers.clear()),
        ),
        (
            "one too many".into(),
            forged(&|forgery| forgery.signers.push(forgery.signers[0].clone())),
        ),
        (
            "the seal of another HSM".into(),
            forged(&|forgery| forgery.sealer = super::people::key(99)),
        ),
    ];
    both_say(false, &cases);
}

/// The last line has nothing after it that would hold it fast: its own signature has to.
#[test]
fn the_seal_in_another_form() {
    let room = Room::new();
    let sealed =
        |change: &dyn Fn(String) -> String| Forgery::new(&room, Mode::Ceremony).finish(change);
    let cases: Cases = vec![
        (
            "a later time".into(),
            sealed(&|line| line.replace("56.789Z", "57.789Z")),
        ),
        (
            "members in another order".into(),
            sealed(&|line| {
                let line = line.replace("\"type\":\"seal\",", "");
                line.replace("\"mode\"", "\"type\":\"seal\",\"mode\"")
            }),
        ),
        (
            "a blank more".into(),
            sealed(&|line| line.replace(",\"mode\"", ", \"mode\"")),
        ),
        (
            "an escape more".into(),
            sealed(&|line| line.replace("\"seal\"", "\"\\u0073eal\"")),
        ),
        ("the other s".into(), sealed(&|line| other_s(&line))),
        (
            "no padding".into(),
            sealed(&|line| line.replace("==\"", "\"")),
        ),
    ];
    both_say(false, &cases);
}

/// The same signature with n - s for s, which any plain ECDSA verification takes too.
fn other_s(line: &str) -> String {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    let value: Value = serde_json::from_str(line).unwrap();
    let old = value["signature"].as_str().unwrap();
    let signature =
        p256::ecdsa::Signature::from_slice(&BASE64_STANDARD.decode(old).unwrap()).unwrap();
    let (r, s) = signature.split_scalars();
    let other = p256::ecdsa::Signature::from_scalars(r, -s).unwrap();
    line.replace(old, &BASE64_STANDARD.encode(other.to_bytes()))
}
