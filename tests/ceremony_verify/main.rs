//! Transcripts, good and bad, checked twice: by `strongroom ceremony verify` and by
//! `tests/stranger/transcript.py`, which was written from `docs/transcript-format.md` alone. They
//! must agree each time.
//!
//! - `people`: keys in this process, the HSM's among them, and a plan
//! - `forge`: transcripts line by line, with any fault, chained, signed and sealed
//! - `changed`: a good one that somebody changed afterwards
//! - `later`: ceremonies after the initial ceremony, held against those before them
//! - `corners`: JSON, TOML, names and times that two readers could take differently
//! - `dishonest`: ones whose makers put something wrong into them, and signed it
//! - `attributes`: keys that are not as they must be, though everyone signed that they are there
//! - `rules`: each rule of the document's list, and a transcript that breaks it
//! - `scene`: what honest steps put into a transcript

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    reason = "tests"
)]

#[path = "../support/mod.rs"]
mod support;

mod attributes;
mod changed;
mod corners;
mod dishonest;
mod forge;
mod later;
mod people;
mod rules;
mod scene;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use strongroom_ceremony::verify::verify;
use strongroom_ceremony::{Anchors, Mode};

/// Transcripts by what is special about each.
type Cases = Vec<(String, Vec<u8>)>;

fn second(python: &Path, arguments: &[&str]) -> Output {
    Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stranger/transcript.py"))
        .args(arguments)
        .output()
        .unwrap()
}

/// Has both implementations check every case, and compares what they say with `valid`.
fn both_say(valid: bool, cases: &Cases) {
    both_say_after(valid, cases, &[]);
}

/// The same of transcripts that go on from those.
fn both_say_after(valid: bool, cases: &Cases, previous: &[Vec<u8>]) {
    let anchors = Anchors {
        previous: previous.to_vec(),
        ..Anchors::default()
    };
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|(name, transcript)| {
            let found = verify(transcript, &anchors);
            let fine = found.problems.is_empty() && !found.is_rehearsal();
            (fine != valid).then(|| format!("{name}: {:?}", found.problems))
        })
        .collect();
    assert!(wrong.is_empty(), "strongroom is wrong about: {wrong:#?}");

    let Some(python) = support::cryptography() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<String> = cases
        .iter()
        .enumerate()
        .map(|(number, (_, transcript))| {
            let path = folder.path().join(format!("{number}.jsonl"));
            fs::write(&path, transcript).unwrap();
            path.to_str().unwrap().to_owned()
        })
        .collect();
    let mut arguments: Vec<&str> = paths.iter().map(String::as_str).collect();
    let chain = folder.path().join("chain");
    fs::create_dir(&chain).unwrap();
    for (number, transcript) in previous.iter().enumerate() {
        fs::write(chain.join(format!("{number}.jsonl")), transcript).unwrap();
    }
    arguments.extend(["--previous", chain.to_str().unwrap()]);
    let output = second(&python, &arguments);
    let said = String::from_utf8(output.stdout).unwrap();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{complained}");
    let wrong: Vec<&str> = cases
        .iter()
        .zip(&paths)
        .filter(|(_, path)| said.lines().any(|line| line.starts_with(*path)) == valid)
        .map(|((name, _), _)| name.as_str())
        .collect();
    assert!(
        wrong.is_empty(),
        "the second implementation is wrong about: {wrong:#?}\n{said}{complained}"
    );
}

/// Exit codes of both programs, with the same options.
fn exit_codes(transcript: &[u8], options: &[&str]) -> (Option<i32>, Option<i32>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("transcript.jsonl");
    fs::write(&path, transcript).unwrap();
    let mut arguments = vec![path.to_str().unwrap()];
    arguments.extend(options);
    let first = Command::new(support::STRONGROOM)
        .args(["ceremony", "verify"])
        .args(&arguments)
        .output()
        .unwrap();
    let second = support::cryptography().map(|python| second(&python, &arguments));
    (
        first.status.code(),
        second.map_or_else(
            || first.status.code().map(|code| i32::from(code != 0)),
            |second| second.status.code(),
        ),
    )
}

#[test]
fn a_good_transcript_verifies() {
    let room = people::Room::new();
    both_say(
        true,
        &vec![
            ("written".into(), room.written(Mode::Ceremony)),
            (
                "forged with no fault".into(),
                forge::Forgery::new(&room, Mode::Ceremony).bytes(),
            ),
        ],
    );
}

#[test]
fn both_programs_hold_it_against_the_anchors() {
    let room = people::Room::new();
    let transcript = room.written(Mode::Ceremony);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let plan = file("plan.toml", room.plan.text());
    let other_plan = file(
        "other.toml",
        &room.plan.text().replace("format = 1\n", "format = 1\n\n"),
    );
    let key = file("audit.pem", &people::pem(&room.hsm));
    let other_key = file("other.pem", &people::pem(&people::key(99)));

    let good = [
        "--plan",
        &plan,
        "--audit-key",
        &key,
        "--token-serial",
        people::SERIAL,
    ];
    assert_eq!(exit_codes(&transcript, &good), (Some(0), Some(0)));
    for wrong in [
        ["--plan", &other_plan],
        ["--audit-key", &other_key],
        ["--token-serial", "another"],
        ["--token-serial", ""],
    ] {
        assert_eq!(
            exit_codes(&transcript, &wrong),
            (Some(8), Some(1)),
            "{wrong:?}"
        );
    }
}

#[test]
fn a_rehearsal_is_not_taken_for_a_ceremony() {
    let room = people::Room::new();
    let transcript = room.written(Mode::Rehearsal);
    assert_eq!(exit_codes(&transcript, &[]), (Some(8), Some(1)));
    assert_eq!(
        exit_codes(&transcript, &["--rehearsal"]),
        (Some(0), Some(0))
    );
    // Nor does the option make a bad one good.
    let torn = &transcript[..transcript.len() - 1];
    assert_eq!(exit_codes(torn, &["--rehearsal"]), (Some(8), Some(1)));
    let text = String::from_utf8(transcript).unwrap();
    both_say(
        false,
        &vec![
            ("a rehearsal".into(), text.clone().into_bytes()),
            (
                "made to look real".into(),
                text.replace("REHEARSAL", "CEREMONY").into_bytes(),
            ),
            (
                "made to look real, and chained again".into(),
                forge::chained_anew(text.replace("REHEARSAL", "CEREMONY").as_bytes()),
            ),
        ],
    );
}

/// The report is a page for printing: nothing on it comes from outside unescaped, and the result is
/// at its top.
#[test]
fn the_report_says_whether_it_verifies() {
    let room = people::Room::new();
    let folder = tempfile::tempdir().unwrap();
    let transcript = folder.path().join("transcript.jsonl");
    let page = |name: &str, content: &[u8]| {
        fs::write(&transcript, content).unwrap();
        let out = folder.path().join(name);
        let output = Command::new(support::STRONGROOM)
            .args(["ceremony", "report"])
            .arg(&transcript)
            .arg("--out")
            .arg(&out)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        fs::read_to_string(out).unwrap()
    };

    let good = page("good.html", &room.written(Mode::Ceremony));
    assert!(good.contains("It verifies: the chain is whole"));
    assert!(!good.contains("REHEARSAL") && !good.contains("NOT SIGNED"));
    for (_, person) in room.plan.participants() {
        assert!(good.contains(&person.fingerprint()));
        assert!(good.contains(&format!(
            "<td>{}</td>",
            person.name().replace('\'', "&#39;")
        )));
    }
    assert!(good.contains(&room.plan.hash_hex()));
    // What a token or a note says can't become a part of the page.
    assert!(!good.contains("<script") && good.contains("&lt;script&gt;"));
    assert!(!good.contains('\u{1b}') && !good.contains('\u{202e}'));

    let mut bad = room.written(Mode::Ceremony);
    bad.truncate(bad.len() - 10);
    let bad = page("bad.html", &bad);
    assert!(bad.contains("does NOT verify") && !bad.contains("It verifies"));

    let rehearsal = page("rehearsal.html", &room.written(Mode::Rehearsal));
    assert!(rehearsal.contains("evidence of nothing"));
    for row in rehearsal.split("<tr>").skip(1) {
        let row = row.split("</tr>").next().unwrap();
        assert!(row.contains("REHEARSAL") || row.contains("<th>"), "{row}");
    }
}
