//! `docs/json.md`, as a table: each case is read by `strongroom_core::json` and by `common.py`.

use std::fs;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use strongroom_core::json::Document;

use crate::{kit, support};

fn nested(open: &str, close: &str, depth: usize) -> String {
    format!(
        "{{\"a\":{}1{}}}",
        open.repeat(depth - 1),
        close.repeat(depth - 1)
    )
}

fn good() -> Vec<Vec<u8>> {
    let mut cases: Vec<Vec<u8>> = [
        r"{}",
        r#"{"a":0}"#,
        r#"{"a":-1,"b":18446744073709551615,"c":-9223372036854775808}"#,
        r#"{"a":true,"b":false,"c":null,"d":[],"e":{},"f":""}"#,
        // Blanks between tokens, escapes of every kind, characters that are none in print.
        "{ \"a\"\t:\r[ 1 , 2 ]\n}",
        r#"{"\u0061\u00e9\ud83d\ude00\/\\\"\b\f\n\r\t":"\u0000\uffff"}"#,
        "{\"\u{7f}\u{80}\u{2028}\u{feff}\u{fffe}\u{10ffff}\":1}",
        // One member in two objects, and names that differ in case or in normal form.
        r#"{"a":{"a":{"a":1}},"A":2,"b":[{"c":1},{"c":2}]}"#,
        "{\"\u{e9}\":1,\"e\u{301}\":2}",
        r#"{"":1}"#,
    ]
    .map(|case| case.as_bytes().to_vec())
    .into();
    cases.push(nested("[", "]", 127).into_bytes());
    cases.push(nested("{\"a\":", "}", 127).into_bytes());
    cases
}

fn bad() -> Vec<Vec<u8>> {
    let mut cases: Vec<Vec<u8>> = [
        // Not an object from the first byte to the last.
        "",
        " ",
        "null",
        "[]",
        "1",
        "\"a\"",
        " {}",
        "{} ",
        "{}\r",
        "{}\n",
        "\u{feff}{}",
        "{}{}",
        "{},",
        "{}\0",
        "{",
        "}",
        // A member twice.
        r#"{"a":1,"a":1}"#,
        r#"{"a":1,"\u0061":2}"#,
        r#"{"a":{"b":[{"c":1,"c":2}]}}"#,
        r#"{"":1,"":2}"#,
        // Numbers.
        r#"{"a":1.0}"#,
        r#"{"a":1.5}"#,
        r#"{"a":1e2}"#,
        r#"{"a":1E0}"#,
        r#"{"a":-0}"#,
        r#"{"a":0.0}"#,
        r#"{"a":01}"#,
        r#"{"a":-01}"#,
        r#"{"a":+1}"#,
        r#"{"a":.5}"#,
        r#"{"a":1.}"#,
        r#"{"a":0x1}"#,
        r#"{"a":1_0}"#,
        r#"{"a":--1}"#,
        r#"{"a":-}"#,
        r#"{"a":NaN}"#,
        r#"{"a":Infinity}"#,
        r#"{"a":-Infinity}"#,
        r#"{"a":18446744073709551616}"#,
        r#"{"a":-9223372036854775809}"#,
        r#"{"a":1e400}"#,
        "{\"a\":\u{661}}",
        // Strings.
        r#"{"a":"\ud800"}"#,
        r#"{"a":"\udc00"}"#,
        r#"{"a":"\ud800\ud800"}"#,
        r#"{"a":"\udc00\ud800"}"#,
        r#"{"a":"\ud800x"}"#,
        r#"{"\ud800":1}"#,
        r#"{"a":"\u12"}"#,
        r#"{"a":"\u+123"}"#,
        r#"{"a":"\x41"}"#,
        r#"{"a":"\a"}"#,
        r#"{"a":'b'}"#,
        "{\"a\":\"\t\"}",
        "{\"a\":\"\u{1f}\"}",
        "{\"a\":\"\n\"}",
        r#"{"a":"b}"#,
        // Tokens.
        r"{a:1}",
        r"{1:1}",
        r#"{"a":1,}"#,
        r#"{"a":[1,]}"#,
        r#"{"a"}"#,
        r#"{"a":}"#,
        r#"{"a" 1}"#,
        r#"{"a":1 "b":2}"#,
        r#"{"a":True}"#,
        r#"{"a":nul}"#,
        r"{/**/}",
        "{\"a\":\u{a0}1}",
        "{\u{c}}",
        "{\u{b}}",
    ]
    .map(|case| case.as_bytes().to_vec())
    .into();
    cases.push(nested("[", "]", 128).into_bytes());
    cases.push(nested("{\"a\":", "}", 128).into_bytes());
    cases.push(nested("[", "]", 5000).into_bytes());
    cases.push(nested("[", "]", 200_000).into_bytes());
    cases.push(format!("{{\"a\":{}}}", "9".repeat(10_000)).into_bytes());
    // Not UTF-8: a lone byte, overlong, a surrogate, beyond the last character, cut; also as a
    // name.
    for bytes in [
        &b"\xff"[..],
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xe2\x82",
        b"\x80",
    ] {
        cases.push([b"{\"a\":\"", bytes, b"\"}"].concat());
        cases.push([b"{\"", bytes, b"\":1}"].concat());
    }
    cases.push(b"\xef\xbb\xbf{}".to_vec());
    cases.push(
        "{\"a\":1}"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect(),
    );
    cases
}

/// What the second reader says of each: read or refused.
fn second(cases: &[Vec<u8>]) -> Option<Vec<bool>> {
    let python = support::cryptography()?;
    let folder = tempfile::tempdir().unwrap();
    let mut command = kit(&python, "common.py");
    for (number, case) in cases.iter().enumerate() {
        let path = folder.path().join(number.to_string());
        fs::write(&path, case).unwrap();
        command.arg(path);
    }
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let said = String::from_utf8(output.stdout).unwrap();
    let said: Vec<bool> = said.lines().map(|line| line == "read").collect();
    assert_eq!(said.len(), cases.len());
    Some(said)
}

fn both_say(wanted: bool, cases: &[Vec<u8>]) {
    let show = |case: &Vec<u8>| String::from_utf8_lossy(&case[..case.len().min(80)]).into_owned();
    let second = second(cases).unwrap_or_else(|| vec![wanted; cases.len()]);
    let wrong: Vec<_> = cases
        .iter()
        .zip(second)
        .map(|(case, second)| (show(case), Document::parse(case).is_ok(), second))
        .filter(|(_, first, second)| (*first, *second) != (wanted, wanted))
        .collect();
    assert!(wrong.is_empty(), "wanted {wanted}: {wrong:#?}");
}

#[test]
fn what_the_page_allows_both_read() {
    both_say(true, &good());
}

#[test]
fn what_it_refuses_both_refuse() {
    both_say(false, &bad());
}

/// Whatever two good documents become under a few changed bytes, both readers agree on it.
#[test]
fn of_whatever_comes_both_say_the_same() {
    let mut runner = TestRunner::deterministic();
    let pieces = prop::sample::select(vec![
        "{", "}", "[", "]", ",", ":", "\"", "\\", "\\u", "d800", "dc00", "0", "1", "-", "e", ".",
        " ", "\r", "null", "\"a\":", "\u{feff}", "\u{e9}",
    ]);
    let change = (any::<prop::sample::Index>(), 0..3_usize, pieces);
    let changes = prop::collection::vec(change, 1..4);
    let seeds = good();
    let cases: Vec<Vec<u8>> = (0..1500)
        .map(|number| {
            let mut case = seeds[number % (seeds.len() - 2)].clone();
            for (at, cut, piece) in changes.new_tree(&mut runner).unwrap().current() {
                let at = at.index(case.len() + 1);
                let end = (at + cut).min(case.len());
                case.splice(at..end, piece.bytes());
            }
            case
        })
        .collect();
    let Some(second) = second(&cases) else { return };
    let wrong: Vec<_> = cases
        .iter()
        .zip(second)
        .map(|(case, second)| {
            let text = String::from_utf8_lossy(case).into_owned();
            (text, Document::parse(case).is_ok(), second)
        })
        .filter(|(_, first, second)| first != second)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let read = cases
        .iter()
        .filter(|case| Document::parse(case).is_ok())
        .count();
    assert!((50..1450).contains(&read), "{read}");
}
