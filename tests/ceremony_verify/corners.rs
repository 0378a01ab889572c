//! Corner cases on which two programs could differ, each in a transcript that is signed and sealed:
//! both must say the same, and what the documents say.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use strongroom_ceremony::{Mode, Step};

use super::forge::{Forgery, hex};
use super::people::{Room, key, sign};
use super::{Cases, both_say};

fn instead(room: &Room, from: &'static str, to: &'static str) -> (String, Vec<u8>) {
    let mut forgery = Forgery::new(room, Mode::Ceremony);
    forgery.instead = (from, to);
    (format!("{from} becomes {to}"), forgery.bytes())
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table of cases")]
fn json_that_two_readers_could_take_differently() {
    let room = Room::new();
    let mut cases = Cases::new();
    for (from, to) in [
        ("\"slot\":7", "\"slot\":7.0"),
        ("\"slot\":7", "\"slot\":7e0"),
        ("\"slot\":7", "\"slot\":-0"),
        ("\"slot\":7", "\"slot\":18446744073709551616"),
        ("\"slot\":7", "\"slot\":\"\\ud800\""),
        ("\"slot\":7", "\"\\udfff\":7"),
        ("\"slot\":7", "\"sl\\u006ft\":7,\"slot\":7"),
        ("\"seq\":9,", "\"seq\":9.0,"),
        ("\"seq\":9,", "\"seq\":\"9\","),
        ("\"format\":1,", "\"format\":1.0,"),
        ("\"format\":1,", "\"format\":true,"),
        ("\"inputs\":{}", "\"inputs\":[]"),
        ("\"inputs\":{}", "\"inputs\":null"),
        ("\"actor\":[\"Ed\"]", "\"actor\":{}"),
        ("\"actor\":[\"Ed\"]", "\"actor\":null"),
        (
            "\"kind\":\"birth\"",
            "\"kind\":\"birth\",\"previous_sha256\":null",
        ),
        ("\"sha256\":null,\"spki\":null", "\"spki\":null"),
        ("\"sha256\":null,\"spki\":null", "\"sha256\":null"),
        (
            "\"class\":\"CKO_PRIVATE_KEY\"",
            "\"class\":\"CKO_PRIVATE_KEY\",\"spki\":null",
        ),
        ("2026-01-31T12:34:56.789Z", "2026-01-31t12:34:56.789z"),
        ("2026-01-31T12:34:56.789Z", "2026-01-31T12:34:60.789Z"),
        ("2026-01-31T12:34:56.789Z", "2026-01-31T24:00:00.000Z"),
        ("2026-01-31T12:34:56.789Z", "2026-02-29T12:34:56.789Z"),
        ("2026-01-31T12:34:56.789Z", "2026-01-31T12:34:56.789+00:00"),
        ("2026-01-31T12:34:56.789Z", "2026-01-31 12:34:56.789Z"),
        ("2026-01-31T12:34:56.789Z", "2026-01-31T12:34:56.7890Z"),
        ("2026-01-31T12:34:56.789Z", "0000-01-31T12:34:56.789Z"),
        ("2026-01-31T12:34:56.789Z", "1969-12-31T23:59:59.999Z"),
        ("2026-01-31T12:34:56.789Z", "9999-01-31T12:34:56.789Z"),
    ] {
        cases.push(instead(&room, from, to));
    }
    let mut add = |name: &str, change: &dyn Fn(&mut Forgery)| {
        let mut forgery = Forgery::new(&room, Mode::Ceremony);
        change(&mut forgery);
        cases.push((name.to_owned(), forgery.bytes()));
    };
    let list = |value: &Value, names: &[&str]| -> Value {
        names.iter().map(|name| value[*name].clone()).collect()
    };
    add("a token as a list", &|forgery| {
        let token = &mut forgery.outputs(Step::Token)["token"];
        *token = list(token, &["label", "serial", "manufacturer", "model"]);
    });
    add("a summary as a list", &|forgery| {
        let summary = forgery.summary();
        *summary = list(summary, &["token", "keys", "store_id"]);
    });
    add("software as a list", &|forgery| {
        let software = &mut forgery.open()["software"];
        *software = list(software, &["version", "binary_sha256"]);
    });
    add("a commitment as a list", &|forgery| {
        let one = &mut forgery.outputs(Step::Pins)["commitments"][0];
        *one = list(one, &["custodian", "index", "so", "user"]);
    });
    add("a member more in the summary's token", &|forgery| {
        forgery.summary()["token"]["more"] = json!(1);
    });
    add("a member more in a key of the summary", &|forgery| {
        forgery.summary()["keys"][0]["more"] = json!(1);
    });
    add("a threshold of 256", &|forgery| {
        forgery.outputs(Step::Pins)["threshold"] = json!(256);
    });
    add("too deep", &|forgery| {
        let deep = (0..126).fold(json!(1), |value, _| json!([value]));
        forgery.outputs(Step::Token)["more"] = deep;
    });
    add("an id in capitals", &|forgery| {
        let id = forgery.open()["ceremony_id"]
            .as_str()
            .unwrap()
            .to_uppercase();
        forgery.open()["ceremony_id"] = id.into();
    });
    add("a hash in capitals", &|forgery| {
        let hash = forgery.open()["plan_sha256"]
            .as_str()
            .unwrap()
            .to_uppercase();
        forgery.open()["plan_sha256"] = hash.into();
    });
    both_say(false, &cases);

    let mut cases = Cases::new();
    for (from, to) in [
        (
            "\"slot\":7",
            "\"slot\":-9223372036854775808,\"more\":18446744073709551615",
        ),
        (
            "\"slot\":7",
            "\"slot\":null,\"more\":\"\\u0000\\ud83d\\ude00\\uffff\"",
        ),
        ("2026-01-31T12:34:56.789Z", "2024-02-29T23:59:59.000Z"),
        ("2026-01-31T12:34:56.789Z", "1970-01-01T00:00:00.000Z"),
        ("2026-01-31T12:34:56.789Z", "9998-12-31T23:59:59.999Z"),
    ] {
        cases.push(instead(&room, from, to));
    }
    let mut forgery = Forgery::new(&room, Mode::Ceremony);
    let deep = (0..124).fold(json!(1), |value, _| json!([value]));
    forgery.outputs(Step::Token)["more"] = deep;
    cases.push(("as deep as may be".into(), forgery.bytes()));
    both_say(true, &cases);
}

/// With another plan, which everyone has signed; Ed has another name in it.
fn with_plan(room: &Room, ed: &str, change: impl FnOnce(String) -> String) -> Vec<u8> {
    let mut forgery = Forgery::new(room, Mode::Ceremony);
    let quote = if ed.contains('"') { '\'' } else { '"' };
    let quoted = format!("{quote}{ed}{quote}");
    let plan = room
        .plan
        .text()
        .replace("name = \"Ed\"", &format!("name = {quoted}"));
    assert!(plan.contains(&quoted));
    let plan = change(plan);
    let hash = Sha256::digest(&plan);
    let mut digest = Sha256::new();
    digest.update(b"strongroom ceremony plan v1\0");
    digest.update(hash);
    let digest: [u8; 32] = digest.finalize().into();
    let signatures = room
        .plan
        .participants()
        .zip(1_u8..)
        .map(|((_, person), number)| {
            let name = if person.name() == "Ed" {
                ed
            } else {
                person.name()
            };
            let signature = BASE64_STANDARD.encode(sign(&key(number), &digest));
            json!({"name": name, "key": person.fingerprint(), "signature": signature})
        });
    let signatures: Value = signatures.collect();
    for (members, _) in &mut forgery.signers {
        if members["name"] == "Ed" {
            members["name"] = ed.into();
        }
    }
    for (_, members) in &mut forgery.lines {
        if let Some(actors) = members.get_mut("actor").and_then(Value::as_array_mut) {
            for actor in actors.iter_mut().filter(|actor| *actor == "Ed") {
                *actor = ed.into();
            }
        }
    }
    let opening = forgery.outputs(Step::Opening);
    opening["plan_sha256"] = hex(&hash).into();
    for one in opening["present"].as_array_mut().unwrap() {
        if one["name"] == "Ed" {
            one["name"] = ed.into();
        }
    }
    let open = forgery.open();
    open["plan"] = plan.into();
    open["plan_sha256"] = hex(&hash).into();
    open["signatures"] = signatures;
    forgery.bytes()
}

#[test]
fn plans_that_two_readers_could_take_differently() {
    let room = Room::new();
    let edit = |from: &'static str, to: &'static str| {
        let bytes = with_plan(&room, "Ed", |plan| {
            assert!(plan.contains(from), "{from}: {plan}");
            plan.replacen(from, to, 1)
        });
        (format!("{from} becomes {to}"), bytes)
    };
    let listen = "listen = \"0.0.0.0:8200\"";
    let names = "\"192.0.2.7\"";
    let good: Cases = [
        ("threshold = 2", "threshold = 0x2"),
        ("threshold = 2", "threshold = +2"),
        ("\n", "\r\n"),
        ("[token]", "# \u{e9} \u{2028}\t\n[token]"),
        (listen, "listen = \"[::1]:8200\""),
        (listen, "listen = \"[2001:DB8:0:0::192.0.2.1]:0\""),
        (listen, "listen = \"127.0.0.1:65535\""),
        (names, "\"2001:db8::1\""),
        (names, "\"a-b.example\", \"0x1.f\""),
    ]
    .into_iter()
    .map(|(from, to)| edit(from, to))
    .collect();
    both_say(true, &good);
    let bad: Cases = [
        // Of TOML 1.1, or of a lenient reader.
        ("name = \"vault-keys-1\"", "name = \"vault\\x2dkeys-1\""),
        ("name = \"vault-keys-1\"", "name = \"vault\\u002dkeys-1\""),
        ("[custody]\n", "[custody]\n# a \\ in a comment\n"),
        ("[custody]\n", "[custody]\n# a { in a comment\n"),
        ("[token]", "# \u{1}\n[token]"),
        ("[token]", "# \u{7f}\n[token]"),
        ("[token]", "# \r \n[token]"),
        ("#", "\u{feff}#"),
        ("threshold = 2", "threshold = 2.0"),
        ("threshold = 2", "threshold = 02"),
        ("threshold = 2", "threshold = 2\nthreshold = 2"),
        ("format = 1", "format = true"),
        ("memory_master = false", "memory_master = 0"),
        // Addresses.
        (listen, "listen = \"::1:8200\""),
        (listen, "listen = \"[0.0.0.0]:8200\""),
        (listen, "listen = \"[::1]8200\""),
        (listen, "listen = \"[fe80::1%1]:8200\""),
        (listen, "listen = \"[fe80::1%eth0]:8200\""),
        (listen, "listen = \"0.0.0.0:08200\""),
        (listen, "listen = \"0.0.0.0:65536\""),
        (listen, "listen = \"0.0.0.0:+80\""),
        (listen, "listen = \"0.0.0.0: 80\""),
        (listen, "listen = \"0.0.0.0:\""),
        (listen, "listen = \"0.0.0.00:80\""),
        (listen, "listen = \"0.0.0.256:80\""),
        (listen, "listen = \"localhost:80\""),
        (names, "\"[2001:db8::1]\""),
        (names, "\"fe80::1%eth0\""),
        (names, "\"192.0.2.07\""),
        (names, "\"192.0.2\""),
        (names, "\"a_b.example\""),
        (names, "\"example.\""),
        (names, "\"\u{e9}.example\""),
        (names, "7"),
        // Texts.
        ("folder = \"/etc/strongroom\"", "folder = \"etc\""),
        ("folder = \"/etc/strongroom\"", "folder = \"/e\u{85}tc\""),
        ("folder = \"/etc/strongroom\"", "folder = '''/etc\n'''"),
        ("label = \"vault-keys-1\"", "label = \"vault-keys-1\u{a0}\""),
        ("serial = \"c0ffee1234567890\"", "serial = \"c0ffee\u{9f}\""),
    ]
    .into_iter()
    .map(|(from, to)| edit(from, to))
    .collect();
    both_say(false, &bad);
}

#[test]
fn names_are_judged_by_ranges_and_not_by_a_version_of_unicode() {
    let room = Room::new();
    let with = |names: &[&str]| -> Cases {
        names
            .iter()
            .map(|name| ((*name).to_owned(), with_plan(&room, name, |plan| plan)))
            .collect()
    };
    both_say(
        true,
        &with(&[
            "\u{141}ukasz",
            "\u{674e}\u{5c0f}\u{9f99}",
            "\u{905}\u{92e}\u{93f}\u{924}\u{93e}",
            "e\u{301}",
            "M\u{aa} Jos\u{e9}",
            "\u{1e9e}",
            "\u{10400}",
            "\u{323b0}",
            "\u{2fa1d}",
            "\u{378}",
            "A. O'B-c, (d)_1",
            "\u{e7}elik, D.",
        ]),
    );
    let long = "\u{e9}".repeat(65);
    both_say(
        false,
        &with(&[
            "",
            " Ed",
            "Ed ",
            "a\u{a0}b",
            "a\u{ad}b",
            "\u{d7}",
            "a\u{200b}b",
            "a\u{202e}b",
            "\u{2019}",
            "\u{2460}",
            "\u{feff}Ed",
            "\u{ff0e}",
            "\u{e000}",
            "\u{1f600}",
            "\u{e0041}",
            "a\tb",
            "a/b",
            "a\"b",
            "a&b",
            "\u{b2}",
            "\u{3000}",
            &long,
            // In another case that is somebody else's.
            "aLICE aMES",
        ]),
    );
}
