//! Audit logs, judged by `Audit::verify` and by `audit.py`, which was written from
//! `docs/audit-format.md` alone: they say the same of each.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use nix::sys::signal::Signal;
use p256::ecdsa::signature::hazmat::PrehashSigner as _;
use p256::ecdsa::{Signature, SigningKey, VerifyingKey};
use p256::pkcs8::{DecodePublicKey as _, EncodePublicKey as _};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use strongroom_core::audit::{Audit, Held, Verification};

use crate::support::{Appliance, Who, ask, encrypt, expect};
use crate::{kit, support};

const LOG_ID: [u8; 16] = *b"an id of one log";
const LONGEST: usize = 8191;

/// A log that somebody writes line by line, without this program's writer.
#[derive(Clone)]
struct Log {
    key: SigningKey,
    seq: u64,
    prev: [u8; 32],
    bytes: Vec<u8>,
}

impl Log {
    fn empty() -> Self {
        Self {
            key: SigningKey::from_slice(&[7; 32]).unwrap(),
            seq: 0,
            prev: [0; 32],
            bytes: Vec::new(),
        }
    }

    fn begun() -> Self {
        let mut log = Self::empty();
        log.header();
        log
    }

    fn spki(&self) -> Vec<u8> {
        self.key
            .verifying_key()
            .to_public_key_der()
            .unwrap()
            .into_vec()
    }

    fn header(&mut self) -> &mut Self {
        let more = json!({"format": 2, "log_id": hex(&LOG_ID), "signing_key": hex(&Sha256::digest(self.spki()))});
        self.line("header", &more)
    }

    fn line(&mut self, kind: &str, more: &Value) -> &mut Self {
        let text = self.text(kind, more);
        self.raw(text.as_bytes())
    }

    fn text(&self, kind: &str, more: &Value) -> String {
        let head = json!({"type": kind, "seq": self.seq + 1, "time": "2026-01-31T09:08:07.123Z", "prev": hex(&self.prev)});
        let (head, more) = (head.to_string(), more.to_string());
        match &more[1..] {
            "}" => head,
            more => format!("{},{more}", &head[..head.len() - 1]),
        }
    }

    /// The next line of the chain, whatever it is.
    fn raw(&mut self, line: &[u8]) -> &mut Self {
        self.seq += 1;
        self.prev = Sha256::digest(line).into();
        self.bytes.extend_from_slice(line);
        self.bytes.push(b'\n');
        self
    }

    fn decision(&mut self) -> &mut Self {
        self.outcome("encrypt", 0)
    }

    fn outcome(&mut self, operation: &str, intent: u64) -> &mut Self {
        self.line(
            "decision",
            &json!({
                "request_id": "r", "identity": "dns:a.test", "token_id": "", "remote": "127.0.0.1:1", "operation": operation,
                "key": "vault-unseal", "key_version": 1, "batch": 0, "batch_failed": 0, "outcome": "ok", "status": 200, "reason": "",
                "intent": intent,
            }),
        )
    }

    fn intent(&mut self) -> u64 {
        let more = json!({"request_id": "r", "identity": "dns:a.test", "token_id": "", "remote": "", "operation": "rotate", "key": "k", "reason": ""});
        self.line("intent", &more);
        self.seq
    }

    fn signature(&self) -> Value {
        let mut message = b"strongroom audit checkpoint v1\0".to_vec();
        message.extend_from_slice(&LOG_ID);
        message.extend_from_slice(&self.seq.to_be_bytes());
        message.extend_from_slice(&self.prev);
        let signature: Signature = self.key.sign_prehash(&Sha256::digest(message)).unwrap();
        json!({"signed_seq": self.seq, "signed_hash": hex(&self.prev), "signature": BASE64_STANDARD.encode(signature.to_bytes())})
    }

    fn checkpoint(&mut self) -> &mut Self {
        let more = self.signature();
        self.line("checkpoint", &more)
    }

    /// What a power cut left, and the line that accounts for it.
    fn torn(&mut self, torn: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(torn);
        let more = json!({"torn_bytes": torn.len(), "torn_sha256": hex(&Sha256::digest(torn))});
        self.line("recovered", &more)
    }

    /// A line that says so of what stands before it, its type as it is written between the quotes.
    fn recovered(&mut self, kind: &str, bytes: usize, torn: &[u8]) -> &mut Self {
        let more = json!({"torn_bytes": bytes, "torn_sha256": hex(&Sha256::digest(torn))});
        let line = self.text("KIND", &more).replacen("KIND", kind, 1);
        self.raw(line.as_bytes())
    }

    /// Header, decisions, a change, a count, a checkpoint; the same once more.
    fn filled() -> Self {
        let mut log = Self::begun();
        for _ in 0..2 {
            log.decision();
            let intent = log.intent();
            log.decision().outcome("rotate", intent);
            log.line("summary", &json!({"identity": "dns:a.test", "since": "2026-01-31T09:08:07.123Z", "denied": 7, "errors": 0}));
            log.checkpoint();
        }
        log
    }
}

fn hex(bytes: &[u8]) -> String {
    base16ct::lower::encode_string(bytes)
}

/// Ways to write `recovered` with escapes.
const ESCAPED: [&str; 3] = [
    r"\u0072ecovered",
    r"recover\u0065d",
    r"\u0072\u0065\u0063\u006f\u0076\u0065\u0072\u0065\u0064",
];

type Cases = Vec<(String, Vec<u8>)>;

fn write_key(folder: &Path, spki: &[u8]) -> PathBuf {
    let path = folder.join("key.pem");
    let text = BASE64_STANDARD.encode(spki);
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n");
    fs::write(&path, pem).unwrap();
    path
}

/// What the first program found, and the second: of each log the problems, and the rest.
fn judge(
    cases: &Cases,
    spki: &[u8],
    complete: bool,
    end: Option<&str>,
) -> Vec<(Verification, Option<Value>)> {
    let folder = tempfile::tempdir().unwrap();
    let held = || Held {
        end: end.map(|end| end.parse().unwrap()),
        ..Held::default()
    };
    let paths: Vec<PathBuf> = cases
        .iter()
        .enumerate()
        .map(|(number, (_, content))| {
            let path = folder.path().join(number.to_string());
            fs::write(&path, content).unwrap();
            path
        })
        .collect();
    let first = paths.iter().map(|path| {
        let mut found = Audit::verify(&[path], spki, &held()).unwrap();
        if complete {
            found.must_be_complete();
        }
        found
    });
    let second: Vec<Option<Value>> = support::cryptography().map_or_else(
        || vec![None; cases.len()],
        |python| {
            let mut command = kit(&python, "audit.py");
            command
                .arg("--each")
                .arg("--public-key")
                .arg(write_key(folder.path(), spki));
            if complete {
                command.arg("--complete");
            }
            if let Some(end) = end {
                command.args(["--end", end]);
            }
            let output = command.args(&paths).output().unwrap();
            let complained = String::from_utf8_lossy(&output.stderr);
            assert!(matches!(output.status.code(), Some(0 | 1)), "{complained}");
            let said = String::from_utf8(output.stdout).unwrap();
            said.lines()
                .map(|line| Some(serde_json::from_str(line).unwrap()))
                .collect()
        },
    );
    assert_eq!(second.len(), cases.len());
    first.zip(second).collect()
}

fn agree(first: &Verification, second: &Value) -> bool {
    let same = (
        &second["first_seq"],
        &second["checkpoints"],
        &second["unsigned_tail"],
    ) == (
        &json!(first.first_seq),
        &json!(first.checkpoints),
        &json!(first.unsigned_tail),
    );
    (second["problems"] == json!([])) == first.problems.is_empty() && same
}

/// They agree, on the details too, and where it is known what is right they say that.
fn both_say(wanted: Option<bool>, cases: &Cases, complete: bool, end: Option<&str>) {
    both_say_with(&Log::empty().spki(), wanted, cases, complete, end);
}

fn both_say_with(
    spki: &[u8],
    wanted: Option<bool>,
    cases: &Cases,
    complete: bool,
    end: Option<&str>,
) {
    let judged = judge(cases, spki, complete, end);
    let wrong: Vec<String> = cases
        .iter()
        .zip(judged)
        .filter_map(|((name, _), (first, second))| {
            let fine = first.problems.is_empty();
            let agree = second.as_ref().is_none_or(|second| agree(&first, second));
            let right = wanted.is_none_or(|wanted| wanted == fine);
            (!agree || !right).then(|| format!("{name}: {first:?} {second:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "wanted {wanted:?}: {wrong:#?}");
}

/// One line more, written by hand, in an otherwise good and signed log. `{}` stands for what each
/// line begins with.
fn with_line(line: &str) -> Vec<u8> {
    with_bytes(line.as_bytes())
}

fn with_bytes(line: &[u8]) -> Vec<u8> {
    let mut log = Log::filled();
    let head = log.text("decision", &json!({}));
    let at = memchr::memmem::find(line, b"HEAD");
    let line = at.map_or_else(
        || line.to_vec(),
        |at| {
            [
                &line[..at],
                &head.as_bytes()[1..head.len() - 1],
                &line[at + 4..],
            ]
            .concat()
        },
    );
    log.raw(&line).checkpoint();
    log.bytes
}

#[test]
#[allow(clippy::too_many_lines, reason = "a list of logs")]
fn good_logs_verify() {
    let mut cases: Cases = vec![("filled".into(), Log::filled().bytes)];
    for (name, line) in [
        (
            "members besides",
            r#"{HEAD,"more":[{"a":null}],"reason":"x"}"#,
        ),
        ("blanks and escapes", "{ HEAD , \"\\u006bey\" : \"k\" }"),
        (
            "characters of every kind",
            r#"{HEAD,"key":"\u0000\ud83d\ude00\"}\u2028"}"#,
        ),
        (
            "as deep as may be",
            &format!("{{HEAD,\"a\":{}{}}}", "[".repeat(126), "]".repeat(126)),
        ),
        (
            "the greatest numbers",
            r#"{HEAD,"batch":18446744073709551615,"more":-9223372036854775808}"#,
        ),
        ("no intent named", r"{HEAD}"),
        ("intent 0", r#"{HEAD,"intent":0}"#),
    ] {
        cases.push((name.into(), with_line(line)));
    }
    let long = |length: usize| {
        let fixed = Log::filled().text("decision", &json!({"x": ""})).len();
        with_line(&format!(
            "{{HEAD,\"x\":\"{}\"}}",
            "a".repeat(length - fixed)
        ))
    };
    cases.push(("the longest line".into(), long(LONGEST)));
    for torn in [
        &b"{\"type\":\"deci\n"[..],
        b"\0\0\0\0\n",
        b"\n",
        b"a\nb\n\n{}\n",
        b"\xff\xfe\n",
    ] {
        let mut log = Log::filled();
        log.torn(torn).decision().checkpoint();
        cases.push((format!("torn: {torn:?}"), log.bytes));
    }
    // Torn bytes that look like a line that accounts for others, or for itself.
    let mut log = Log::filled();
    let fake = log.text(
        "recovered",
        &json!({"torn_bytes": 0, "torn_sha256": hex(&Sha256::digest(b""))}),
    );
    log.torn(format!("{fake}\n").as_bytes()).checkpoint();
    cases.push(("torn: a whole line".into(), log.bytes));
    let mut log = Log::filled();
    log.torn(b"one\n").torn(b"two\n").checkpoint();
    cases.push(("torn twice".into(), log.bytes));
    for kind in ESCAPED {
        let mut log = Log::filled();
        log.bytes.extend_from_slice(b"torn\n");
        log.recovered(kind, 5, b"torn\n").checkpoint();
        cases.push((format!("torn: type {kind}"), log.bytes));
    }
    let mut log = Log::filled();
    log.header().decision().checkpoint();
    cases.push(("a header in the middle".into(), log.bytes));
    let mut log = Log::filled();
    log.intent();
    log.checkpoint();
    cases.push(("a change under way".into(), log.bytes));
    let mut log = Log::filled();
    log.decision().decision();
    cases.push(("lines that are not signed yet".into(), log.bytes));
    both_say(Some(true), &cases, false, None);
    // A longer line, on the other side of the bound.
    both_say(
        Some(false),
        &vec![("too long".into(), long(LONGEST + 1))],
        false,
        None,
    );
    // What is missing at the end counts where the whole was asked for.
    let (last, rest) = cases.split_last().unwrap();
    let open = rest.last().unwrap();
    both_say(Some(false), &vec![last.clone(), open.clone()], true, None);
    both_say(Some(true), &rest[..rest.len() - 1].to_vec(), true, None);
    // A later file of a log is one too.
    let mut log = Log::filled();
    log.bytes.clear();
    log.header().decision().checkpoint();
    both_say(
        Some(true),
        &vec![("a later file".into(), log.bytes)],
        false,
        None,
    );
}

/// Each is chained and signed, so that only the line itself is wrong.
#[test]
#[allow(clippy::too_many_lines, reason = "a list of logs")]
fn lines_that_are_none_are_refused() {
    let mut cases = Cases::new();
    for line in [
        // Names.
        r#"{HEAD,"key":"a","key":"b"}"#,
        r#"{HEAD,"key":"a","\u006bey":"b"}"#,
        r#"{HEAD,"more":1,"more":1}"#,
        r#"{HEAD,"more":{"a":1,"a":1}}"#,
        r#"{HEAD,"type":"decision"}"#,
        // null is not absent.
        r#"{HEAD,"intent":null}"#,
        r#"{HEAD,"format":null}"#,
        r#"{HEAD,"operation":null}"#,
        r#"{HEAD,"torn_sha256":null}"#,
        // Types of members that are named somewhere.
        r#"{HEAD,"torn_bytes":"3"}"#,
        r#"{HEAD,"torn_bytes":-1}"#,
        r#"{HEAD,"intent":"0"}"#,
        r#"{HEAD,"denied":true}"#,
        r#"{HEAD,"errors":[]}"#,
        r#"{HEAD,"format":4294967296}"#,
        r#"{HEAD,"format":"2"}"#,
        r#"{HEAD,"signed_seq":18446744073709551616}"#,
        r#"{HEAD,"key":1}"#,
        r#"{HEAD,"identity":{}}"#,
        r#"{HEAD,"outcome":false}"#,
        // Numbers.
        r#"{HEAD,"batch":1.0}"#,
        r#"{HEAD,"batch":1e2}"#,
        r#"{HEAD,"batch":-0}"#,
        r#"{HEAD,"more":18446744073709551616}"#,
        r#"{HEAD,"more":1e400}"#,
        r#"{HEAD,"more":NaN}"#,
        r#"{HEAD,"more":01}"#,
        r#"{HEAD,"intent":0.0}"#,
        // Strings.
        r#"{HEAD,"more":"\ud800"}"#,
        r#"{HEAD,"more":"\udc00\ud800"}"#,
        r#"{HEAD,"\ud800":1}"#,
        "{HEAD,\"more\":\"\t\"}",
        // Not printable ASCII.
        "{HEAD,\"key\":\"\u{e9}\"}",
        "{HEAD,\t\"key\":\"k\"}",
        "{HEAD,\"key\":\"\u{7f}\"}",
        // Around it.
        "{HEAD} ",
        "{HEAD}\r",
        " {HEAD}",
        "\u{feff}{HEAD}",
        "{HEAD}{}",
        "{HEAD,}",
        "[{HEAD}]",
        "{}",
        "",
        "null",
        r#"{"type":"decision","seq":14}"#,
    ] {
        cases.push((line.to_owned(), with_line(line)));
    }
    for bytes in [&b"\xff"[..], b"\xc0\xaf", b"\xed\xa0\x80", b"\xe2\x82"] {
        cases.push((
            format!("{bytes:?}"),
            with_bytes(&[b"{HEAD,\"key\":\"", bytes, b"\"}"].concat()),
        ));
    }
    let deep = format!("{{HEAD,\"a\":{}{}}}", "[".repeat(127), "]".repeat(127));
    cases.push(("too deep".into(), with_line(&deep)));
    // A list of the values, and members of every line with other types.
    for seq in ["\"14\"", "14.0", "1.4e1", "-14", "null", "[14]"] {
        let mut log = Log::filled();
        let line = format!(
            "{{\"type\":\"decision\",\"seq\":{seq},\"prev\":\"{}\"}}",
            hex(&log.prev)
        );
        log.raw(line.as_bytes()).checkpoint();
        cases.push((format!("seq {seq}"), log.bytes));
    }
    both_say(Some(false), &cases, false, None);
}

#[test]
#[allow(clippy::too_many_lines, reason = "a list of logs")]
fn headers_checkpoints_and_changes_that_do_not_fit_are_refused() {
    let mut cases = Cases::new();
    let mut add = |name: &str, log: &Log| cases.push((name.to_owned(), log.bytes.clone()));
    let fingerprint = hex(&Sha256::digest(Log::empty().spki()));
    for (name, header) in [
        (
            "format 1",
            json!({"format": 1, "log_id": hex(&LOG_ID), "signing_key": fingerprint}),
        ),
        (
            "no format",
            json!({"log_id": hex(&LOG_ID), "signing_key": fingerprint}),
        ),
        (
            "another key",
            json!({"format": 2, "log_id": hex(&LOG_ID), "signing_key": hex(&[1; 32])}),
        ),
        ("no key", json!({"format": 2, "log_id": hex(&LOG_ID)})),
        (
            "a key in capitals",
            json!({"format": 2, "log_id": hex(&LOG_ID), "signing_key": fingerprint.to_uppercase()}),
        ),
        (
            "an id in capitals",
            json!({"format": 2, "log_id": hex(&[0xab; 16]).to_uppercase(), "signing_key": fingerprint}),
        ),
        (
            "a short id",
            json!({"format": 2, "log_id": "00", "signing_key": fingerprint}),
        ),
        ("no id", json!({"format": 2, "signing_key": fingerprint})),
    ] {
        let mut log = Log::empty();
        log.line("header", &header).decision().checkpoint();
        add(name, &log);
    }
    let mut log = Log::filled();
    log.line(
        "header",
        &json!({"format": 2, "log_id": hex(&[0; 16]), "signing_key": fingerprint}),
    )
    .checkpoint();
    add("a second header of another log", &log);
    let mut log = Log::empty();
    log.decision().header().checkpoint();
    add("no header first", &log);
    let mut log = Log::empty();
    log.prev = [1; 32];
    log.header().checkpoint();
    add("line 1 behind something", &log);

    let signed = Log::filled().signature();
    for (name, member, value) in [
        ("another line's hash", "signed_hash", json!(hex(&[1; 32]))),
        (
            "a hash in capitals",
            "signed_hash",
            json!(signed["signed_hash"].as_str().unwrap().to_uppercase()),
        ),
        ("a line that is not there yet", "signed_seq", json!(99)),
        ("line 0", "signed_seq", json!(0)),
        ("no signature", "signature", json!("")),
        (
            "a signature with a newline",
            "signature",
            json!(format!("{}\n", signed["signature"].as_str().unwrap())),
        ),
        (
            "a signature in base64url",
            "signature",
            json!("-".repeat(86) + "=="),
        ),
        (
            "a signature without padding",
            "signature",
            json!(signed["signature"].as_str().unwrap().trim_end_matches('=')),
        ),
        (
            "a signature of zeros",
            "signature",
            json!(BASE64_STANDARD.encode([0; 64])),
        ),
        (
            "a signature of 65 bytes",
            "signature",
            json!(BASE64_STANDARD.encode([1; 65])),
        ),
    ] {
        let mut log = Log::filled();
        let mut more = log.signature();
        more[member] = value;
        log.line("checkpoint", &more);
        add(name, &log);
        more.as_object_mut().unwrap().remove(member);
        let mut log = Log::filled();
        log.line("checkpoint", &more);
        add(&format!("without {member}"), &log);
    }
    let mut log = Log::filled();
    let mut more = log.signature();
    let text = more["signature"].as_str().unwrap();
    let at = text.len() - 3;
    // The unused bits of the last character.
    let digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let next = digits.find(&text[at..=at]).unwrap() + 1;
    more["signature"] = json!(format!("{}{}==", &text[..at], &digits[next..=next]));
    log.line("checkpoint", &more);
    add("a signature with other unused bits", &log);
    let mut log = Log::filled();
    log.key = SigningKey::from_slice(&[8; 32]).unwrap();
    log.checkpoint();
    add("another signer", &log);
    let mut log = Log::begun();
    log.decision();
    add("nothing is signed", &log);

    for (name, number) in [
        ("one that has its outcome", 3),
        ("no change", 4),
        ("one to come", 99),
    ] {
        let mut log = Log::filled();
        log.outcome("rotate", number).checkpoint();
        add(&format!("the outcome of {name}"), &log);
    }
    let mut log = Log::filled();
    log.intent();
    log.outcome("server:start", 0).checkpoint();
    add("a start with a change that has no outcome", &log);
    let mut log = Log::filled();
    log.line("party", &json!({})).checkpoint();
    add("an unknown type", &log);

    for (name, count, sum) in [
        ("too few bytes", 3, hex(&Sha256::digest(b"orn"))),
        ("too many bytes", 6, hex(&Sha256::digest(b"torn\n"))),
        (
            "more than there are",
            1 << 40,
            hex(&Sha256::digest(b"torn\n")),
        ),
        ("another sum", 5, hex(&[0; 32])),
        (
            "a sum in capitals",
            5,
            hex(&Sha256::digest(b"torn\n")).to_uppercase(),
        ),
        (
            "the greatest number",
            u64::MAX,
            hex(&Sha256::digest(b"torn\n")),
        ),
    ] {
        let mut log = Log::filled();
        log.bytes.extend_from_slice(b"torn\n");
        log.line(
            "recovered",
            &json!({"torn_bytes": count, "torn_sha256": sum}),
        )
        .checkpoint();
        add(&format!("torn: {name}"), &log);
    }
    for kind in ESCAPED {
        let mut log = Log::filled();
        log.recovered(kind, 5, b"torn\n").checkpoint();
        add(&format!("torn: nothing, but type {kind} says so"), &log);
        // What it takes away is signed.
        let mut log = Log::filled();
        let line = log.bytes.len();
        log.decision().checkpoint();
        let last = log.bytes[line..].to_vec();
        log.recovered(kind, last.len(), &last).checkpoint();
        add(&format!("torn: whole lines, type {kind}"), &log);
    }
    // What it claims begins before the file: whatever stands before it is passed over, in both.
    let mut log = Log::filled();
    log.torn(b"one\n")
        .recovered("recovered", 1 << 40, b"")
        .checkpoint();
    add(
        "torn: one that another claims, with more than there is",
        &log,
    );
    let mut log = Log::filled();
    log.bytes.extend_from_slice(b"torn\n");
    log.decision().checkpoint();
    add("torn, and nobody accounts for it", &log);
    // One that accounts for lines of the chain, and one for bytes that another has accounted for.
    let mut log = Log::filled();
    let whole = log.bytes.clone();
    log.line(
        "recovered",
        &json!({"torn_bytes": whole.len(), "torn_sha256": hex(&Sha256::digest(&whole))}),
    )
    .checkpoint();
    add("torn: the whole log", &log);
    let mut log = Log::filled();
    let at = log.bytes.len();
    log.torn(b"torn\n");
    let more = json!({"torn_bytes": log.bytes.len() - at, "torn_sha256": hex(&Sha256::digest(&log.bytes[at..]))});
    log.line("recovered", &more).checkpoint();
    add("torn: over another", &log);
    both_say(Some(false), &cases, false, None);
}

#[test]
fn what_was_done_to_a_log_is_found() {
    let log = Log::filled();
    let lines: Vec<&[u8]> = log.bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let mut cases: Cases = vec![
        ("an empty file".into(), Vec::new()),
        ("a newline".into(), b"\n".to_vec()),
        (
            "not ended".into(),
            log.bytes[..log.bytes.len() - 1].to_vec(),
        ),
        (
            "an empty line behind".into(),
            [&log.bytes[..], b"\n"].concat(),
        ),
        (
            "an empty line before".into(),
            [b"\n", &log.bytes[..]].concat(),
        ),
        (
            "a byte order mark".into(),
            [&b"\xef\xbb\xbf"[..], &log.bytes].concat(),
        ),
        ("zeros behind".into(), [&log.bytes[..], &[0; 100]].concat()),
        (
            "ended as on Windows".into(),
            lines
                .iter()
                .flat_map(|line| [&line[..line.len() - 1], b"\r\n"].concat())
                .collect(),
        ),
    ];
    for at in 0..lines.len() {
        let mut changed = lines.clone();
        changed.remove(at);
        // The last one is a signature, and what it signs is signed no more.
        if at + 1 < lines.len() {
            cases.push((format!("without line {}", at + 1), changed.concat()));
        }
        let mut changed = lines.clone();
        changed.insert(at, lines[at]);
        cases.push((format!("line {} doubled", at + 1), changed.concat()));
        if at > 0 {
            let mut changed = lines.clone();
            changed.swap(at - 1, at);
            cases.push((
                format!("lines {at} and {} swapped", at + 1),
                changed.concat(),
            ));
        }
        let mut changed = lines.clone();
        changed.insert(at, b"not json\n");
        cases.push((
            format!("a foreign line before {}", at + 1),
            changed.concat(),
        ));
    }
    both_say(Some(false), &cases, false, None);
}

#[test]
fn of_a_changed_log_both_say_the_same() {
    let mut log = Log::filled();
    log.torn(b"{\"torn\n").decision().checkpoint();
    let mut runner = TestRunner::deterministic();
    let flip = (any::<prop::sample::Index>(), 0..8_u32);
    let mut cases = Cases::new();
    for number in 0..600 {
        let mut bytes = log.bytes.clone();
        for _ in 0..=number % 3 {
            let (at, bit) = flip.new_tree(&mut runner).unwrap().current();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        cases.push((format!("flip {number}"), bytes));
        if number % 3 == 0 {
            let (at, _) = flip.new_tree(&mut runner).unwrap().current();
            let cut = log.bytes[..at.index(log.bytes.len())].to_vec();
            cases.push((format!("cut {number}: {}", cut.len()), cut));
        }
    }
    both_say(None, &cases, false, None);
    both_say(None, &cases, true, None);
}

/// What the token knows of the end.
#[test]
fn both_hold_it_against_the_end_that_the_token_knows() {
    let log = Log::filled();
    let id = hex(&LOG_ID);
    let (seq, hash) = (log.seq, hex(&log.prev));
    let whole: Cases = vec![("whole".into(), log.bytes.clone())];
    let mut more = log.clone();
    more.decision().checkpoint();
    let longer: Cases = vec![("longer".into(), more.bytes.clone())];
    let lines: Vec<&[u8]> = log.bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let cut: Cases = vec![("cut".into(), lines[..6].concat())];
    let mut later = Log::filled();
    later.bytes.clear();
    later.header().decision().checkpoint();
    let later: Cases = vec![("later".into(), later.bytes)];
    for phase in ["open", "stopped", "rotating"] {
        let end = format!("{id}:{seq}:{hash}:{phase}");
        both_say(Some(true), &whole, false, Some(&end));
        both_say(Some(phase != "stopped"), &longer, false, Some(&end));
        both_say(Some(false), &cut, false, Some(&end));
        both_say(Some(phase != "stopped"), &later, false, Some(&end));
        let other = format!("{id}:{seq}:{}:{phase}", hex(&[1; 32]));
        both_say(Some(false), &whole, false, Some(&other));
        let other = format!("{}:{seq}:{hash}:{phase}", hex(&[1; 16]));
        both_say(Some(false), &whole, false, Some(&other));
    }
}

/// A server's log in two files: changes, some of which a kill left without an outcome, what a power
/// cut tore, denials that are only counted, a restart, a rotation, a stop in order.
async fn a_servers_log() -> (Appliance, [PathBuf; 2]) {
    let mut appliance = Appliance::builder()
        .section("audit", "checkpoint_interval = \"200ms\"\n")
        .start()
        .await;
    appliance.create_key("k", json!({})).await;
    let stranger = appliance.client(Who::Stranger);
    for _ in 0..130 {
        let answer = ask(
            &stranger,
            "POST",
            "transit/encrypt/k",
            json!({"plaintext": ""}),
        )
        .await;
        assert_eq!(answer.status, 403);
    }
    let writers: Vec<_> = (0..3)
        .map(|_| {
            let client = appliance.client(Who::Operator);
            tokio::spawn(async move {
                let (path, body) = ("transit/keys/k/rotate", json!({}));
                while let Ok(answer) = client.request("POST", path, Some(&body)).await {
                    assert_eq!(answer.status, 200);
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    appliance.kill();
    for writer in writers {
        writer.await.unwrap();
    }
    let (log, old) = (appliance.audit(), appliance.path().join("audit.log.1"));
    let mut file = fs::File::options().append(true).open(&log).unwrap();
    file.write_all(b"{\"type\":\"deci").unwrap();

    appliance.launch().await;
    let (operator, stranger) = (
        appliance.client(Who::Operator),
        appliance.client(Who::Stranger),
    );
    encrypt(&operator, "k", b"x").await;
    for _ in 0..130 {
        ask(
            &stranger,
            "POST",
            "transit/encrypt/k",
            json!({"plaintext": ""}),
        )
        .await;
    }
    fs::rename(&log, &old).unwrap();
    appliance.signal(Signal::SIGUSR1);
    let deadline = Instant::now() + Duration::from_secs(10);
    while fs::metadata(&log).map_or(0, |file| file.len()) == 0 {
        assert!(Instant::now() < deadline, "{}", appliance.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    expect(&operator, "POST", "transit/keys/k/rotate", json!({}), 200).await;
    encrypt(&operator, "k", b"x").await;
    assert_eq!(appliance.stop(), Some(0), "{}", appliance.log());
    (appliance, [old, log])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_say_the_same_of_a_real_servers_log() {
    let (appliance, files) = a_servers_log().await;
    let said = |what: &str| String::from_utf8(appliance.cli(["audit", what]).stdout).unwrap();
    let key = VerifyingKey::from_public_key_pem(&said("public-key")).unwrap();
    let spki = key.to_public_key_der().unwrap().into_vec();
    let end = said("end");
    let end = end.trim();
    // What the line's place in its file is stands last.
    let (end_of_any_file, _) = end.rsplit_once(':').unwrap();
    assert!(end_of_any_file.ends_with(":stopped"), "{end}");

    let [old, log] = files.each_ref().map(|file| fs::read(file).unwrap());
    let whole = [&old[..], &log].concat();
    let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
    let kind = |line: &[u8]| {
        let line: Value = serde_json::from_slice(line).unwrap_or_default();
        line["type"].as_str().unwrap_or("torn").to_owned()
    };
    let mut first_of_kind = std::collections::BTreeMap::new();
    for (at, line) in lines.iter().enumerate() {
        first_of_kind.entry(kind(line)).or_insert(at);
    }
    let kinds: Vec<_> = first_of_kind.keys().map(String::as_str).collect();
    let all = [
        "checkpoint",
        "decision",
        "header",
        "intent",
        "recovered",
        "summary",
        "torn",
    ];
    assert_eq!(kinds, all);

    // As the server left it: in its files, and as one.
    let paths = files.each_ref().map(PathBuf::as_path);
    let held = Held {
        end: Some(end.parse().unwrap()),
        ..Held::default()
    };
    let mut first = Audit::verify(&paths, &spki, &held).unwrap();
    first.must_be_complete();
    assert_eq!((&first.problems, first.first_seq), (&Vec::new(), 1));
    // What was only counted before the kill is lost with it.
    assert!(first.counted > 0 && first.unknown_outcomes > 0, "{first:?}");
    if let Some(python) = support::cryptography() {
        let folder = tempfile::tempdir().unwrap();
        let output = kit(&python, "audit.py")
            .args(paths)
            .arg("--public-key")
            .arg(write_key(folder.path(), &spki))
            .args(["--complete", "--end", end])
            .output()
            .unwrap();
        let second: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(agree(&first, &second), "{first:?} {second}");
    }
    let one: Cases = vec![("as one file".into(), whole.clone())];
    both_say_with(&spki, Some(true), &one, true, Some(end_of_any_file));
    both_say_with(&spki, Some(false), &one, true, Some(end));
    let later: Cases = vec![("the later file".into(), log)];
    both_say_with(&spki, Some(true), &later, true, Some(end));

    // What somebody else then did to it.
    let mut harmed: Cases = vec![("the older file".into(), old)];
    for (kind, at) in first_of_kind {
        let (before, after) = (lines[..at].concat(), lines[at + 1..].concat());
        harmed.push((format!("without a {kind}"), [&before[..], &after].concat()));
        let twice = [&before[..], lines[at], lines[at], &after].concat();
        harmed.push((format!("a {kind} doubled"), twice));
        for byte in [0, lines[at].len() / 2, lines[at].len() - 2] {
            let mut line = lines[at].to_vec();
            line[byte] ^= 1;
            let changed = [&before[..], &line, &after].concat();
            harmed.push((format!("a {kind} changed at {byte}"), changed));
        }
        harmed.push((format!("cut before a {kind}"), before));
    }
    for back in [1, 2, 5] {
        let cut = lines[..lines.len() - back].concat();
        harmed.push((format!("without the last {back}"), cut));
    }
    both_say_with(&spki, Some(false), &harmed, true, Some(end));
}
