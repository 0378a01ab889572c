//! The audit log is cut, deleted, flooded, or has no room; the server is killed in the middle of
//! changes. No change is without a line, and what is missing shows.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use strongroom_client::Client;

use crate::disk::SmallFileSystem;
use crate::process::{file_size_limit, verify_audit};
use crate::support::{Appliance, Who, ask, encrypt, expect, skip};

/// The documented exit code of an audit log that is not as the token knows it.
const AUDIT: i32 = 8;

fn lines(log: &Path) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap();
    // Zeros that a power cut left are accounted for by the line behind them.
    let whole = text.lines().filter(|line| !line.starts_with('\0'));
    whole
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn of<'a>(lines: &'a [Value], member: &str, value: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line[member] == value).collect()
}

async fn latest(appliance: &Appliance, key: &str) -> u64 {
    let client = appliance.client(Who::Operator);
    let path = format!("transit/keys/{key}");
    let read = expect(&client, "GET", &path, Value::Null, 200).await;
    read["data"]["latest_version"].as_u64().unwrap()
}

/// Each rotation that was made has its outcome, each outcome its intent, which stands before it.
fn assert_recorded(lines: &[Value], rotations: u64) {
    let decisions = of(lines, "type", "decision");
    let rotated = decisions
        .iter()
        .filter(|line| line["operation"] == "rotate" && line["intent"] != 0);
    let mut made = 0;
    for outcome in rotated {
        let intent = lines.iter().find(|line| line["seq"] == outcome["intent"]);
        let intent = intent.unwrap();
        assert_eq!(
            (&intent["type"], &intent["key"]),
            (&json!("intent"), &outcome["key"])
        );
        assert!(intent["seq"].as_u64() < outcome["seq"].as_u64());
        made += u64::from(outcome["outcome"] == "ok");
    }
    let unknown = of(lines, "outcome", "unknown").len() as u64;
    assert!(
        (made..=made + unknown).contains(&rotations),
        "{rotations} rotations, {made} of which are said, {unknown} unknown"
    );
}

/// More than any file of the store has. A process's limit on the size of files is met by each file
/// that it writes: so the log is made the largest by far.
const LARGEST: u64 = 8 << 20;

/// A running appliance of whose files only the log is hindered by [`file_size_limit`]: before its
/// latest start stand zeros, as a power cut leaves them.
async fn with_the_largest_log() -> Appliance {
    let mut appliance = Appliance::builder().start().await;
    appliance.create_key("full", json!({})).await;
    appliance.kill();
    let log = File::options().write(true).open(appliance.audit()).unwrap();
    log.set_len(log.metadata().unwrap().len() + LARGEST)
        .unwrap();
    appliance.launch().await;
    appliance
}

/// The log may become so much longer; no other file is as long.
fn leave_room(appliance: &Appliance, room: u64) {
    let size = fs::metadata(appliance.audit()).unwrap().len();
    for file in fs::read_dir(appliance.store()).unwrap() {
        let file = file.unwrap();
        let length = file.metadata().unwrap().len();
        assert!(length < size / 2, "{file:?} would meet the limit: {length}");
    }
    file_size_limit(appliance.pid(), &(size + room).to_string());
}

async fn rotate(client: &Client) -> u16 {
    let answer = ask(client, "POST", "transit/keys/full/rotate", json!({})).await;
    // The time after which the file is tried again.
    tokio::time::sleep(Duration::from_millis(110)).await;
    answer.status.as_u16()
}

/// And the log is written again.
async fn make_room(appliance: &Appliance) {
    file_size_limit(appliance.pid(), "unlimited");
    tokio::time::sleep(Duration::from_millis(110)).await;
    encrypt(&appliance.client(Who::Operator), "full", b"x").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_change_is_without_a_line_however_little_room_there_is() {
    let mut appliance = with_the_largest_log().await;
    let client = appliance.client(Who::Operator);
    let (mut answered, mut refused) = (0, 0);
    for room in (0..1800).step_by(100) {
        leave_room(&appliance, room);
        for _ in 0..2 {
            match rotate(&client).await {
                200 => answered += 1,
                503 => refused += 1,
                other => panic!("{other}"),
            }
        }
        make_room(&appliance).await;
    }
    assert!(refused > 10, "{refused} refused: there was room");
    let made = latest(&appliance, "full").await - 1;
    // Else this shows nothing: in some rounds there was room for the beginning alone.
    assert!(
        made > answered,
        "{made} made, {answered} answered: none had no room for its outcome"
    );
    assert_recorded(&lines(&appliance.audit()), made);

    // The power goes while an outcome waits for room.
    for room in [500, 650, 800] {
        leave_room(&appliance, room);
        rotate(&appliance.client(Who::Operator)).await;
        appliance.kill();
        appliance.launch().await;
        let made = latest(&appliance, "full").await - 1;
        assert_recorded(&lines(&appliance.audit()), made);
    }
    let found = lines(&appliance.audit());
    assert!(!of(&found, "outcome", "unknown").is_empty());
    verify_audit(&mut appliance);
    let made = latest_after(&mut appliance, "full").await;
    assert_recorded(&lines(&appliance.audit()), made);
}

/// One byte in the file's last block says nothing about a line, and one line's room nothing about
/// the outcome.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failure_nothing_begins_on_too_little_room() {
    let mut appliance = with_the_largest_log().await;
    let client = appliance.client(Who::Operator);
    for room in [1, 300, 500, 700, 1000, 2000, 8000, 16_000] {
        leave_room(&appliance, 0);
        assert_eq!(rotate(&client).await, 503, "no room at all");
        let before = of(&lines(&appliance.audit()), "type", "intent").len();
        leave_room(&appliance, room);
        for _ in 0..2 {
            assert_eq!(rotate(&client).await, 503, "{room} bytes of room");
        }
        let after = of(&lines(&appliance.audit()), "type", "intent").len();
        assert_eq!(before, after, "{room} bytes of room: a change was begun");
        make_room(&appliance).await;
    }
    assert_eq!(rotate(&client).await, 200);
    assert_eq!(latest(&appliance, "full").await, 2);
    verify_audit(&mut appliance);
    assert_recorded(&lines(&appliance.audit()), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_the_middle_of_a_change_leaves_a_line_that_says_so() {
    let mut appliance = Appliance::start().await;
    appliance.create_key("killed", json!({})).await;
    for round in 0..5_u64 {
        let writers: Vec<_> = (0..3)
            .map(|_| {
                let client = appliance.client(Who::Operator);
                tokio::spawn(async move {
                    while client
                        .request("POST", "transit/keys/killed/rotate", Some(&json!({})))
                        .await
                        .is_ok()
                    {}
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(200 + 37 * round)).await;
        appliance.kill();
        for writer in writers {
            writer.await.unwrap();
        }
        appliance.launch().await;
    }
    let made = latest(&appliance, "killed").await - 1;
    verify_audit(&mut appliance);
    let lines = lines(&appliance.audit());
    assert_recorded(&lines, made);
    let starts = of(&lines, "operation", "server:start");
    let told = |line: &&&Value| line["reason"].as_str().unwrap().contains("unsigned=");
    assert_eq!(starts.iter().filter(told).count(), 6);
    let intents = of(&lines, "type", "intent").len();
    let outcomes = lines
        .iter()
        .filter(|line| line["type"] == "decision" && line["intent"] != 0);
    assert_eq!(
        outcomes.count(),
        intents,
        "each change has an outcome, known or not"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_whose_end_was_cut_stops_the_start_until_it_is_accepted() {
    let mut appliance = Appliance::builder()
        .section("audit", "checkpoint_interval = \"200ms\"\n")
        .start()
        .await;
    appliance.create_key("cut", json!({})).await;
    let client = appliance.client(Who::Operator);
    for _ in 0..5 {
        encrypt(&client, "cut", b"x").await;
        tokio::time::sleep(Duration::from_millis(1400)).await;
    }
    // Not in order: what a running server told the token counts too.
    appliance.kill();
    let whole = fs::read(appliance.audit()).unwrap();
    let text = String::from_utf8(whole.clone()).unwrap();
    let checkpoints: Vec<_> = text
        .match_indices("{\"type\":\"checkpoint\"")
        .map(|(at, _)| at + text[at..].find('\n').unwrap() + 1)
        .collect();
    assert!(checkpoints.len() > 4, "{text}");
    let public = appliance.cli(["audit", "public-key"]);
    let key = appliance.path().join("audit.pem");
    fs::write(&key, public.stdout).unwrap();
    let (log, key) = (appliance.audit(), key.to_str().unwrap().to_owned());
    let log = log.to_str().unwrap();
    let complete = ["audit", "verify", log, "--public-key", &key, "--complete"];
    for end in &checkpoints[..checkpoints.len() - 1] {
        fs::write(appliance.audit(), &whole[..*end]).unwrap();
        appliance.spawn();
        assert_eq!(appliance.wait_exit(), Some(AUDIT), "{}", appliance.log());
        assert_eq!(
            fs::read(appliance.audit()).unwrap(),
            &whole[..*end],
            "written to"
        );
    }
    let said = appliance.log();
    assert!(
        said.contains("its end was cut off") && said.contains("strongroom audit accept"),
        "{said}"
    );
    let verified = appliance.cli(complete);
    assert_eq!(verified.status.code(), Some(AUDIT), "--complete");
    let end = appliance.cli(["audit", "end"]);
    let end = String::from_utf8(end.stdout).unwrap();
    let by_hand = appliance.cli([
        "audit",
        "verify",
        log,
        "--public-key",
        &key,
        "--end",
        end.trim(),
    ]);
    assert_eq!(by_hand.status.code(), Some(AUDIT), "{end}");
    let alone = appliance.cli(["audit", "verify", log, "--public-key", &key]);
    assert!(alone.status.success(), "in itself the log is right");
    let check = appliance.cli(["check", "--audit-key", &key]);
    let check = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.contains("its end was cut off"), "{check}");

    // Other acts are refused too, before they begin.
    let refused = appliance.cli(["store", "accept-rollback", "--yes"]);
    assert_eq!(refused.status.code(), Some(AUDIT));
    let refused = appliance.cli(["audit", "accept"]);
    assert_eq!(refused.status.code(), Some(2), "accepted without --yes");
    let accepted = appliance.cli(["audit", "accept", "--yes"]);
    assert!(
        accepted.status.success(),
        "{}",
        String::from_utf8_lossy(&accepted.stderr)
    );
    appliance.launch().await;
    let all = lines(&appliance.audit());
    let accepted = of(&all, "operation", "cli:audit-accept");
    assert_eq!(accepted.len(), 2, "intent and outcome");
    assert!(
        accepted[1]["reason"]
            .as_str()
            .unwrap()
            .contains("its end was cut off")
    );
    verify_audit(&mut appliance);
    assert!(appliance.cli(complete).status.success());

    // After a stop in order nothing may follow, and nothing be missing.
    let mut log = File::options()
        .append(true)
        .open(appliance.audit())
        .unwrap();
    log.write_all(b"{}\n").unwrap();
    appliance.spawn();
    assert_eq!(appliance.wait_exit(), Some(AUDIT), "{}", appliance.log());
    fs::remove_file(appliance.audit()).unwrap();
    appliance.spawn();
    assert_eq!(appliance.wait_exit(), Some(AUDIT), "{}", appliance.log());
    assert!(!appliance.audit().exists());
    let accepted = appliance.cli(["audit", "accept", "--yes"]);
    assert!(
        accepted.status.success(),
        "{}",
        String::from_utf8_lossy(&accepted.stderr)
    );
    appliance.launch().await;
    verify_audit(&mut appliance);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_holds_the_log_against_the_token_without_a_key_file() {
    let mut appliance = Appliance::builder()
        .section("audit", "checkpoint_interval = \"200ms\"\n")
        .start()
        .await;
    appliance.create_key("k", json!({})).await;
    let check = |appliance: &Appliance| -> (String, String) {
        let output = appliance.cli(["--output", "json", "check", "--certificate-days", "0"]);
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let all = found["checks"].as_array().unwrap().clone();
        let audit = all.into_iter().find(|one| one["check"] == "audit log");
        let audit = audit.unwrap();
        let text = |name: &str| audit[name].as_str().unwrap().to_owned();
        assert!(text("state") != "failed" || !output.status.success());
        (text("state"), text("text"))
    };
    let (state, text) = check(&appliance);
    assert_eq!(state, "ok", "beside the running server: {text}");
    assert!(text.contains("lines verify"), "{text}");
    appliance.stop();
    let whole = fs::read_to_string(appliance.audit()).unwrap();
    assert_eq!(check(&appliance).0, "ok");

    let checkpoint = whole.find("{\"type\":\"checkpoint\"").unwrap();
    let cut = checkpoint + whole[checkpoint..].find('\n').unwrap() + 1;
    let forged = whole.replacen("\"operation\":\"create\"", "\"operation\":\"rotate\"", 1);
    let bad = [
        (whole[..cut].to_owned(), "its end was cut off"),
        (forged, "line"),
        (format!("{whole}{{}}\n"), "line"),
    ];
    for (text, why) in bad {
        assert_ne!(text, whole);
        fs::write(appliance.audit(), text).unwrap();
        let (state, said) = check(&appliance);
        assert_eq!(state, "failed", "{why}: {said}");
        assert!(said.contains(why), "{why}: {said}");
    }
    fs::remove_file(appliance.audit()).unwrap();
    let (state, said) = check(&appliance);
    assert_eq!(state, "failed", "{said}");
    assert!(said.contains("No such file"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_cut_or_deleted_while_it_is_written_is_noticed_and_goes_on() {
    let mut appliance = Appliance::builder()
        .section("audit", "checkpoint_interval = \"200ms\"\n")
        .start()
        .await;
    appliance.create_key("k", json!({})).await;
    let client = appliance.client(Who::Operator);
    let log = appliance.audit();
    let delete = |log: &Path| fs::remove_file(log).unwrap();
    let cut = |log: &Path| fs::write(log, "").unwrap();
    let halve = |log: &Path| {
        let file = File::options().write(true).open(log).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    };
    for (number, harm) in [delete as fn(&Path), cut, halve].into_iter().enumerate() {
        encrypt(&client, "k", b"x").await;
        harm(&log);
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let text = fs::read_to_string(&log).unwrap_or_default();
            if text.contains("server:audit-file") {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "harm {number} was not noticed: {text}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(appliance.log().contains("changed by somebody else"));
        encrypt(&client, "k", b"x").await;
        if number == 1 {
            // Killed, it goes on from there.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            appliance.kill();
            appliance.launch().await;
        }
    }
    let client = appliance.client(Who::Operator);
    encrypt(&client, "k", b"x").await;
    assert_eq!(appliance.stop(), Some(0), "{}", appliance.log());
    appliance.launch().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_denials_is_counted_in_the_chain() {
    let mut appliance = Appliance::start().await;
    let asked = 2000;
    let before = fs::metadata(appliance.audit()).unwrap().len();
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let client = appliance.client(Who::Stranger);
            tokio::spawn(async move {
                for _ in 0..asked / 4 {
                    let body = json!({ "plaintext": "" });
                    let answer = ask(&client, "POST", "transit/encrypt/k", body).await;
                    assert_eq!(answer.status, 403);
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    verify_audit(&mut appliance);
    let lines = lines(&appliance.audit());
    let written = of(&lines, "outcome", "denied").len() as u64;
    let sums = of(&lines, "type", "summary");
    let counted: u64 = sums
        .iter()
        .map(|line| line["denied"].as_u64().unwrap())
        .sum();
    assert_eq!(written + counted, asked);
    assert!(counted > 0 && !sums.is_empty());
    let grown = fs::metadata(appliance.audit()).unwrap().len() - before;
    assert!(
        grown < written * 1024 + 20_000,
        "{grown} bytes for {written} denials"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disc_there_is_room_for_others_and_for_what_was_begun() {
    let mut appliance = Appliance::builder()
        .section("audit", "checkpoint_interval = \"300ms\"\n")
        .prepare();
    let folder = appliance.path().join("disc");
    let Some(disc) = SmallFileSystem::new(&folder, "8m") else {
        skip("a full disk", "nothing can be mounted here");
        return;
    };
    let log = folder.join("audit.log");
    fs::copy(appliance.audit(), &log).unwrap();
    let config = fs::read_to_string(appliance.config()).unwrap();
    let config = config.replace("\"audit.log\"", "\"disc/audit.log\"");
    fs::write(appliance.config(), config).unwrap();
    appliance.launch().await;
    appliance.create_key("k", json!({})).await;
    let (operator, stranger) = (
        appliance.client(Who::Operator),
        appliance.client(Who::Stranger),
    );
    disc.fill();
    assert!(disc.is_full(), "the disk has room");

    // The log knows when it next asks for more; until then there is what it has.
    let body = json!({ "plaintext": "" });
    let deadline = Instant::now() + Duration::from_mins(1);
    let mut share = 0;
    while share == 0 {
        let answer = ask(&operator, "POST", "transit/encrypt/k", body.clone()).await;
        share += u32::from(answer.status == 503);
        assert!(
            answer.status == 200 || answer.status == 503,
            "{}",
            answer.status
        );
        assert!(Instant::now() < deadline, "it never ends");
    }
    // Whoever took their share has to wait; a change and another client do not.
    let before = lines(&log).len();
    for _ in 0..200 {
        assert_eq!(
            ask(&stranger, "POST", "transit/encrypt/k", body.clone())
                .await
                .status,
            403
        );
    }
    assert!(lines(&log).len() < before + 50, "denials are only counted");
    let app = appliance.client(Who::App);
    let other = ask(&app, "POST", "transit/encrypt/app-none", body.clone()).await;
    assert_ne!(other.status, 503, "another client");
    assert!(disc.is_full());

    disc.empty();
    let deadline = Instant::now() + Duration::from_secs(10);
    while ask(&operator, "POST", "transit/keys/k/rotate", json!({}))
        .await
        .status
        != 200
    {
        assert!(Instant::now() < deadline, "there is room again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(appliance.stop(), Some(0), "{}", appliance.log());
    let all = lines(&log);
    let counted: u64 = of(&all, "type", "summary")
        .iter()
        .map(|line| line["denied"].as_u64().unwrap())
        .sum();
    assert_eq!(
        counted + of(&all, "outcome", "denied").len() as u64,
        200 + u64::from(other.status == 403)
    );
    assert_recorded(&all, latest_after(&mut appliance, "k").await);
}

/// Rotations that were made, of a server that was stopped.
async fn latest_after(appliance: &mut Appliance, key: &str) -> u64 {
    appliance.launch().await;
    latest(appliance, key).await - 1
}
