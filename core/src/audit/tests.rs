#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use futures_util::FutureExt as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use p256::ecdsa::signature::hazmat::PrehashSigner as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::EncodePublicKey as _;
use proptest::prelude::*;
use tokio::sync::MutexGuard;

use super::line::Chain;
use super::queue::Outcome;
use super::*;
use crate::hex;

/// `/dev/full` is locked by whoever has it open as a log.
static FULL: Mutex<()> = Mutex::new(());

/// A log whose checkpoints are signed by a key of this process: the whole program's tests use the
/// HSM's.
struct Log {
    folder: tempfile::TempDir,
    key: SigningKey,
}

impl Log {
    fn new() -> Self {
        let key = SigningKey::from_slice(&[7; 32]).unwrap();
        Self {
            folder: tempfile::tempdir().unwrap(),
            key,
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("audit.log")
    }

    fn public_key(&self) -> Vec<u8> {
        self.key
            .verifying_key()
            .to_public_key_der()
            .unwrap()
            .into_vec()
    }

    fn signer(&self) -> Signer {
        Signer {
            fingerprint: Sha256::digest(self.public_key()).into(),
            key: *self.key.verifying_key(),
        }
    }

    fn open(&self) -> LogFile {
        self.open_as(Known::Nothing).unwrap().0
    }

    fn open_as(&self, known: Known<'_>) -> Result<(LogFile, Found), AuditError> {
        open_at(&self.path(), &self.signer(), known)
    }

    fn checkpoint(&self, file: &mut LogFile) {
        let head = file.head().unwrap();
        let signature: Signature = self.key.sign_prehash(&head.digest()).unwrap();
        file.append(&Content::checkpoint(&head, &signature.to_bytes().into()))
            .unwrap();
        file.signed_up_to(&head);
    }

    /// Six decisions, a checkpoint after the third and the sixth: header, 1, 2, 3, checkpoint, 4,
    /// 5, 6, checkpoint.
    fn filled() -> Self {
        let log = Self::new();
        let mut file = log.open();
        for number in 1..=6_u32 {
            file.append(&decision(&entry(&format!("key-{number}"))))
                .unwrap();
            if number % 3 == 0 {
                log.checkpoint(&mut file);
            }
        }
        log
    }

    fn lines(&self) -> Vec<String> {
        fs::read_to_string(self.path())
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    fn write(&self, lines: &[String]) {
        fs::write(
            self.path(),
            lines
                .iter()
                .flat_map(|line| [line, "\n"])
                .collect::<String>(),
        )
        .unwrap();
    }

    fn verify(&self) -> Verification {
        Audit::verify(&[&self.path()], &self.public_key(), &Held::default()).unwrap()
    }

    fn problems_after(change: impl FnOnce(&mut Vec<String>)) -> Vec<String> {
        let log = Self::filled();
        let mut lines = log.lines();
        change(&mut lines);
        log.write(&lines);
        log.verify().problems
    }
}

fn open_at(path: &Path, signer: &Signer, known: Known<'_>) -> Result<(LogFile, Found), AuditError> {
    let (mut log, resumed) = LogFile::open(path, signer, known)?;
    let found = log.go_on(resumed)?;
    Ok((log, found))
}

/// The key of another token.
fn foreign() -> Signer {
    let key = SigningKey::from_slice(&[9; 32]).unwrap();
    Signer {
        fingerprint: [9; 32],
        key: *key.verifying_key(),
    }
}

fn entry(key: &str) -> Entry<'_> {
    Entry {
        operation: "encrypt",
        outcome: "ok",
        status: 200,
        key,
        ..Entry::default()
    }
}

fn decision(entry: &Entry<'_>) -> Content {
    let mut line = Content::default();
    line.decide(entry);
    line
}

#[test]
fn a_list_is_no_line() {
    let problems = Log::problems_after(|lines| {
        let last = lines.last().unwrap();
        let prev = hex::encode(&Sha256::digest(last));
        lines.push(format!(
            r#"["decision",10,"{prev}",null,null,null,null,null,null,null]"#
        ));
    });
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("not a line"), "{problems:?}");
}

#[test]
fn a_log_that_cannot_be_counted_further_is_not_continued() {
    let log = Log::filled();
    let mut lines = log.lines();
    lines.push(format!(
        r#"{{"type":"decision","seq":{},"prev":"00"}}"#,
        u64::MAX
    ));
    log.write(&lines);
    // It is no line of the chain, but what somebody left at its end.
    let (_, found) = log.open_as(Known::Nothing).unwrap();
    assert_eq!(found.torn_bytes, lines.last().unwrap().len() as u64 + 1);
}

#[test]
fn an_untouched_log_verifies_and_is_signed_to_its_end() {
    let found = Log::filled().verify();
    assert!(found.problems.is_empty(), "{found:?}");
    assert_eq!(
        (
            found.lines,
            found.checkpoints,
            found.unsigned_tail,
            found.first_seq
        ),
        (9, 2, 0, 1)
    );
}

#[test]
fn each_kind_of_tampering_is_found_where_it_is() {
    let changed = Log::problems_after(|lines| lines[2] = lines[2].replace("key-2", "key-9"));
    assert!(
        changed[0].contains("log:4") && changed[0].contains("changed"),
        "{changed:?}"
    );
    let removed = Log::problems_after(|lines| drop(lines.remove(2)));
    assert!(
        removed[0].contains("log:3") && removed[0].contains("missing"),
        "{removed:?}"
    );
    let moved = Log::problems_after(|lines| lines.swap(2, 3));
    assert!(moved[0].contains("log:3"), "{moved:?}");
    let doubled = Log::problems_after(|lines| lines.insert(3, lines[2].clone()));
    assert!(doubled[0].contains("log:4"), "{doubled:?}");
    let foreign = Log::problems_after(|lines| lines.insert(3, "not json".to_owned()));
    assert!(
        foreign[0].contains("log:4") && foreign[0].contains("not a line"),
        "{foreign:?}"
    );
    let headless = Log::problems_after(|lines| drop(lines.remove(0)));
    assert!(headless[0].contains("header"), "{headless:?}");
}

#[test]
fn a_whole_log_written_anew_lacks_the_signature() {
    // The chain is right again, but only the HSM could have signed it.
    let log = Log::filled();
    let forger = Log {
        key: SigningKey::from_slice(&[8; 32]).unwrap(),
        ..Log::filled()
    };
    let (mut forged, _) = open_at(&forger.path(), &log.signer(), Known::Nothing).unwrap();
    forged.append(&decision(&entry("forged"))).unwrap();
    forger.checkpoint(&mut forged);
    let found = Audit::verify(&[&forger.path()], &log.public_key(), &Held::default()).unwrap();
    assert!(
        found
            .problems
            .iter()
            .any(|problem| problem.contains("signature")),
        "{found:?}"
    );
}

#[test]
fn the_last_line_changed_after_its_signature_is_found() {
    let problems = Log::problems_after(|lines| {
        lines[7] = lines[7].replace("key-6", "key-5");
        // The forger repairs the chain as far as it can be without the key.
        let hash = hex::encode(&Sha256::digest(lines[7].as_bytes()));
        let at = lines[8].find("\"prev\":\"").unwrap() + 8;
        lines[8].replace_range(at..at + 64, &hash);
    });
    assert!(
        problems
            .iter()
            .any(|problem| problem.contains("not the one that was signed")),
        "{problems:?}"
    );
}

#[test]
fn a_cut_end_shows_as_unsigned_lines() {
    let log = Log::filled();
    let mut lines = log.lines();
    lines.truncate(7);
    log.write(&lines);
    let found = log.verify();
    assert!(found.problems.is_empty(), "{found:?}");
    assert_eq!(
        found.unsigned_tail, 3,
        "a checkpoint and two decisions behind what is signed"
    );
}

#[test]
fn the_chain_goes_on_after_a_restart_and_in_a_new_file() {
    let log = Log::filled();
    let mut file = log.open();
    file.append(&decision(&entry("after"))).unwrap();
    let old = log.folder.path().join("audit.log.1");
    fs::rename(log.path(), &old).unwrap();
    file.reopen().unwrap();
    file.append(&decision(&entry("in the new file"))).unwrap();
    log.checkpoint(&mut file);
    let both = Audit::verify(&[&old, &log.path()], &log.public_key(), &Held::default()).unwrap();
    assert!(
        both.problems.is_empty() && both.unsigned_tail == 0,
        "{both:?}"
    );
    let swapped = Audit::verify(&[&log.path(), &old], &log.public_key(), &Held::default()).unwrap();
    assert!(!swapped.problems.is_empty());

    // A file left out of the middle.
    let older = log.folder.path().join("audit.log.2");
    fs::rename(&old, &older).unwrap();
    fs::rename(log.path(), &old).unwrap();
    file.reopen().unwrap();
    log.checkpoint(&mut file);
    let gap = Audit::verify(&[&older, &log.path()], &log.public_key(), &Held::default()).unwrap();
    assert!(
        gap.problems
            .iter()
            .any(|problem| problem.contains("missing")),
        "{gap:?}"
    );
}

#[test]
fn a_torn_last_line_is_recovered_and_accounted_for() {
    for torn in ["{\"type\":\"deci", "\u{0}\u{0}\u{0}"] {
        let log = Log::filled();
        let text = fs::read_to_string(log.path()).unwrap();
        fs::write(log.path(), format!("{text}{torn}")).unwrap();
        assert!(
            !log.verify().problems.is_empty(),
            "a torn end that was not recovered is a problem"
        );
        let mut file = log.open();
        file.append(&decision(&entry("next"))).unwrap();
        drop(file);
        assert!(log.verify().problems.is_empty(), "{:?}", log.verify());
        let spoilt = fs::read_to_string(log.path())
            .unwrap()
            .replace(torn, "{\"type\":\"other");
        fs::write(log.path(), spoilt).unwrap();
        assert!(
            !log.verify().problems.is_empty(),
            "another torn line than the one that was recovered"
        );
    }
}

#[test]
fn newlines_left_by_a_try_for_room_are_no_lines() {
    let log = Log::filled();
    let text = fs::read_to_string(log.path()).unwrap();
    fs::write(log.path(), format!("{text}\n\n\n")).unwrap();
    let mut file = log.open();
    file.append(&decision(&entry("after"))).unwrap();
    assert!(log.verify().problems.is_empty(), "{:?}", log.verify());
}

#[test]
fn a_log_of_another_tokens_key_is_not_continued() {
    let log = Log::filled();
    let error = open_at(&log.path(), &foreign(), Known::Nothing)
        .err()
        .unwrap();
    assert!(error.to_string().contains("another token's key"), "{error}");
    assert!(log.verify().problems.is_empty());
}

#[test]
fn a_new_file_that_cannot_be_written_leaves_the_old_one_in_use() {
    let _alone = FULL.lock();
    let log = Log::filled();
    let mut file = log.open();
    let old = log.folder.path().join("audit.log.1");
    fs::rename(log.path(), &old).unwrap();
    std::os::unix::fs::symlink("/dev/full", log.path()).unwrap();
    file.reopen().unwrap_err();
    file.append(&decision(&entry("still in the old file")))
        .unwrap();
    fs::remove_file(log.path()).unwrap();
    file.reopen().unwrap();
    file.append(&decision(&entry("in the new file"))).unwrap();
    log.checkpoint(&mut file);
    let both = Audit::verify(&[&old, &log.path()], &log.public_key(), &Held::default()).unwrap();
    assert!(both.problems.is_empty(), "{both:?}");
}

#[test]
fn a_log_without_any_signature_does_not_verify() {
    let log = Log::new();
    let mut file = log.open();
    file.append(&decision(&entry("unsigned"))).unwrap();
    let problems = log.verify().problems;
    assert!(
        problems.iter().any(|p| p.contains("no line is covered")),
        "{problems:?}"
    );
    log.checkpoint(&mut file);
    assert!(log.verify().problems.is_empty());
}

#[test]
fn a_line_that_lacks_only_its_newline_counts() {
    let log = Log::filled();
    let text = fs::read_to_string(log.path()).unwrap();
    fs::write(log.path(), text.trim_end()).unwrap();
    drop(log.open());
    assert!(log.verify().problems.is_empty(), "{:?}", log.verify());
}

#[test]
fn who_writes_it_a_moment_longer_keeps_no_start_from_it() {
    let log = Log::filled();
    let mut child = crate::lock::tests::lingering(&log.open().handle());
    assert!(log.open().handle().metadata().unwrap().len() > 0);
    child.wait().unwrap();
}

#[test]
fn two_writers_are_refused_and_so_is_a_foreign_file() {
    let log = Log::filled();
    let _first = log.open();
    let second = open_at(&log.path(), &foreign(), Known::Nothing)
        .err()
        .unwrap();
    assert!(second.to_string().contains("another process"), "{second}");
    let foreign_file = log.folder.path().join("foreign");
    fs::write(&foreign_file, "hello\n").unwrap();
    let error = open_at(&foreign_file, &foreign(), Known::Nothing)
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("does not begin with the header"),
        "{error}"
    );
}

fn put(queue: &mut Queue) -> (Vec<Outcome>, Vec<bool>) {
    ["a", "b", "c"]
        .map(|key| queue.put(&entry(key)))
        .map(|place| (Arc::clone(&place.outcome), place.is_first()))
        .into_iter()
        .unzip()
}

#[test]
fn lines_that_wait_for_each_other_are_written_together() {
    let log = Log::new();
    let mut file = log.open();
    let mut queue = Queue::new();
    let (outcomes, first) = put(&mut queue);
    assert_eq!(first, [true, false, false]);
    assert_eq!(log.lines().len(), 1, "nothing but the header yet");
    assert!(outcomes.iter().all(|outcome| outcome.get().is_none()));
    let batch = queue.take().unwrap();
    let next = queue.put(&entry("d"));
    assert!(next.is_first());
    let next = next.outcome;
    queue.give_back(batch.write(&mut file));
    assert_eq!(log.lines().len(), 4);
    for outcome in &outcomes {
        outcome.get().unwrap().as_ref().unwrap();
    }
    assert!(next.get().is_none(), "its turn comes later");
    queue.take().unwrap().write(&mut file);
    next.get().unwrap().as_ref().unwrap();
    assert!(queue.take().is_none());

    log.checkpoint(&mut file);
    let found = log.verify();
    assert!(found.problems.is_empty(), "{found:?}");
    assert_eq!((found.lines, found.unsigned_tail), (6, 0), "{found:?}");
    let keys: Vec<_> = log.lines()[1..5]
        .iter()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["key"].clone())
        .collect();
    assert_eq!(keys, ["a", "b", "c", "d"]);
}

/// A log whose checkpoints the token signs; tests take turns at that.
pub(crate) async fn audit(path: PathBuf) -> (Audit, MutexGuard<'static, ()>) {
    let (hsm, turn) = crate::store::tests::token().await;
    let options = AuditOptions {
        path,
        checkpoint_lines: 100,
        checkpoint_interval: Duration::from_secs(100),
    };
    // The token, which many tests share, knows of the log of the test before.
    (Audit::accept(options, hsm).await.unwrap().0, turn)
}

#[tokio::test]
async fn lines_are_written_though_the_first_of_those_who_wait_goes_away() {
    let log = Log::new();
    let (audit, _turn) = audit(log.path()).await;
    let (a, b) = (entry("a"), entry("b"));
    let mut first = Box::pin(audit.record_with_others(&a));
    let mut second = Box::pin(audit.record_with_others(&b));
    assert!(first.as_mut().now_or_never().is_none());
    assert!(second.as_mut().now_or_never().is_none());
    assert_eq!(log.lines().len(), 1, "nothing but the header yet");
    drop(first);
    let told = tokio::time::timeout(Duration::from_secs(5), second).await;
    told.unwrap().unwrap();
    assert_eq!(log.lines().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_at_once_each_line_is_there_once_also_of_those_who_went_away() {
    const CLIENTS: usize = 40;
    const REQUESTS: usize = 50;
    let log = Log::new();
    let (audit, _turn) = audit(log.path()).await;
    let audit = Arc::new(audit);
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let audit = Arc::clone(&audit);
        clients.spawn(async move {
            for request in 0..REQUESTS {
                let key = format!("{client}.{request}");
                let entry = entry(&key);
                let mut record = Box::pin(audit.record_with_others(&entry));
                let told = record.as_mut().now_or_never();
                // Every third goes away before it is told.
                match told {
                    Some(told) => told.unwrap(),
                    None if request.is_multiple_of(3) => drop(record),
                    None => record.await.unwrap(),
                }
                // And some lines are written at once, among those that wait.
                if request.is_multiple_of(7) {
                    audit.record(&entry).unwrap();
                }
            }
        });
    }
    let all = tokio::time::timeout(Duration::from_mins(1), clients.join_all());
    assert!(all.await.is_ok(), "somebody waits for ever");
    audit.checkpoint().await.unwrap();
    let found = Audit::verify(
        &[&log.path()],
        &audit.hsm.signing_public_key(),
        &Held::default(),
    )
    .unwrap();
    assert!(found.problems.is_empty(), "{found:?}");
    assert_eq!(found.unsigned_tail, 0);
    let mut lines = BTreeMap::new();
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        if line["type"] == "decision" {
            *lines
                .entry(line["key"].as_str().unwrap().to_owned())
                .or_insert(0) += 1;
        }
    }
    assert_eq!(lines.len(), CLIENTS * REQUESTS);
    for (key, times) in lines {
        let request: usize = key.split_once('.').unwrap().1.parse().unwrap();
        assert_eq!(
            times,
            if request.is_multiple_of(7) { 2 } else { 1 },
            "{key}"
        );
    }
}

const FULL_DISC: &str = "STRONGROOM_TEST_FULL_DISC";

/// Not a test of its own: the process of [`of_lines_that_were_written_in_part_nothing_stays`],
/// whose files can't grow beyond a limit.
#[test]
fn full_disc_child() {
    if std::env::var_os(FULL_DISC).is_none() {
        return;
    }
    let log = Log::new();
    let mut file = log.open();
    let mut queue = Queue::new();
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    let (before, lost) = loop {
        let before = log.lines();
        let (mut outcomes, _) = put(&mut queue);
        let batch = queue.take().unwrap();
        outcomes.push(queue.put(&entry("since")).outcome);
        batch.write(&mut file);
        if outcomes[0].get().unwrap().is_err() {
            break (before, outcomes);
        }
    };
    assert_eq!(log.lines(), before, "what was written in part is gone");
    // What was queued since does not get into the file either, for a while.
    queue.take().unwrap().write(&mut file);
    assert_eq!(log.lines(), before);
    assert_eq!(lost.len(), 4);
    for outcome in lost {
        let error = outcome.get().unwrap().as_ref().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::FileTooLarge, "{error}");
    }
    assert_eq!(
        file.level().load(Ordering::Relaxed),
        RoomLevel::Failing as u8
    );
    file.check(false).unwrap_err();

    setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
    std::thread::sleep(Duration::from_millis(150));
    file.append(&decision(&entry("after"))).unwrap();
    assert_eq!(file.level().load(Ordering::Relaxed), RoomLevel::Good as u8);
    log.checkpoint(&mut file);
    let found = log.verify();
    assert!(found.problems.is_empty(), "{found:?}");
    assert_eq!(log.lines().len(), before.len() + 2);
    println!("recovered");
}

#[test]
fn of_lines_that_were_written_in_part_nothing_stays() {
    let script = r#"trap "" XFSZ; ulimit -S -f 9; exec "$0" --exact audit::tests::full_disc_child --nocapture"#;
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .env(FULL_DISC, "1")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("recovered"), "{told}");
}

#[test]
fn a_full_disc_refuses_every_line() {
    let _alone = FULL.lock();
    let error = open_at(Path::new("/dev/full"), &foreign(), Known::Nothing)
        .err()
        .unwrap();
    assert!(matches!(error, AuditError::Write { .. }), "{error}");
}

#[test]
fn hostile_texts_stay_within_their_field() {
    let log = Log::new();
    let mut file = log.open();
    // Together, and each by itself.
    let all = "a\"}\n{\"type\":\"header\"\u{0}\u{2028}\\";
    let texts = [
        all, "\"", "\\", "\n", "\u{0}", "\u{1f}", "\u{7f}", "\u{2028}",
    ];
    for hostile in texts {
        file.append(&decision(&Entry {
            reason: hostile,
            ..entry(hostile)
        }))
        .unwrap();
    }
    let lines = log.lines();
    assert_eq!(lines.len(), 1 + texts.len());
    log.checkpoint(&mut file);
    for (line, hostile) in lines.iter().skip(1).zip(texts) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(
            (line["key"].as_str(), line["reason"].as_str()),
            (Some(hostile), Some(hostile))
        );
    }
    assert!(log.verify().problems.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// One byte changed to any other value is found, whatever it is. The last checkpoint is left out: nothing is signed after it yet.
    #[test]
    fn every_changed_byte_is_found(at in any::<prop::sample::Index>(), mask in 1_u8..) {
        let log = Log::filled();
        let mut bytes = fs::read(log.path()).unwrap();
        let last_line = log.lines().last().unwrap().len() + 1;
        let at = at.index(bytes.len() - last_line);
        bytes[at] ^= mask;
        fs::write(log.path(), &bytes).unwrap();
        prop_assert!(!log.verify().problems.is_empty());
    }

    #[test]
    fn no_file_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let log = Log::new();
        fs::write(log.path(), &bytes).unwrap();
        let _ = log.verify();
        let _ = log.open_as(Known::Nothing);
    }
}

/// As [`Log::filled`], with a change that has its outcome and one that has none.
fn with_changes() -> Log {
    let log = Log::filled();
    let mut file = log.open();
    for concluded in [true, false] {
        let mut queue = Queue::new();
        let place = queue.intend(&entry("changed"));
        queue.take().unwrap().write(&mut file);
        let first = *place.outcome.get().unwrap().as_ref().unwrap();
        if concluded {
            file.append(&decision(&Entry {
                intent: first + place.at,
                ..entry("changed")
            }))
            .unwrap();
            file.concluded(first + place.at);
        }
    }
    log
}

/// What only a signature behind the end mends.
fn but_for_signatures(problems: &[String]) -> Vec<&String> {
    problems
        .iter()
        .filter(|problem| !problem.contains("no line is covered"))
        .collect()
}

#[test]
fn a_start_goes_on_from_a_log_that_was_cut_at_any_byte() {
    let log = with_changes();
    let whole = fs::read(log.path()).unwrap();
    for end in 0..whole.len() {
        fs::write(log.path(), &whole[..end]).unwrap();
        let (mut file, _) = log.open_as(Known::Nothing).unwrap();
        file.append(&decision(&entry("after"))).unwrap();
        drop(file);
        let found = log.verify();
        let problems = but_for_signatures(&found.problems);
        assert!(problems.is_empty(), "cut at {end}: {problems:?}");
        assert_eq!(found.open_intents, 0, "cut at {end}");
        let (file, again) = log.open_as(Known::Nothing).unwrap();
        assert_eq!(again.torn_bytes, 0, "cut at {end}");
        drop(file);
    }
}

#[test]
fn a_start_goes_on_from_whatever_a_disc_leaves_behind_the_end() {
    let log = with_changes();
    let whole = fs::read(log.path()).unwrap();
    let line = whole[whole.len() - 300..].to_vec();
    let zeros = |count: usize| vec![0; count];
    let tails = [
        zeros(1),
        zeros(4096),
        zeros(3 << 20),
        [zeros(4096), line.clone(), zeros(10)].concat(),
        [zeros(77), b"\n".to_vec(), line, b"\n\n".to_vec()].concat(),
        vec![b'x'; 4 << 20],
        b"{\"type\":\"decision\",\"reason\":\"".repeat(40_000),
        b"\xff\xfe\n\n{}\n[]\n".to_vec(),
    ];
    for (number, tail) in tails.iter().enumerate() {
        // Twice, as the power may go again.
        fs::write(log.path(), [&whole[..], tail].concat()).unwrap();
        for _ in 0..2 {
            let (mut file, found) = log.open_as(Known::Nothing).unwrap();
            assert_eq!(found.torn_bytes, tail.len() as u64, "tail {number}");
            file.append(&decision(&entry("after"))).unwrap();
            drop(file);
            let found = log.verify();
            assert!(found.problems.is_empty(), "tail {number}: {found:?}");
            let now = fs::read(log.path()).unwrap();
            fs::write(log.path(), [&now[..], tail].concat()).unwrap();
        }
    }
    // What was accounted for may not be changed afterwards.
    let (file, _) = log.open_as(Known::Nothing).unwrap();
    drop(file);
    assert!(log.verify().problems.is_empty());
    let mut now = fs::read(log.path()).unwrap();
    now[whole.len() + 2] ^= 1;
    fs::write(log.path(), now).unwrap();
    assert!(!log.verify().problems.is_empty());
}

#[test]
fn a_log_that_is_not_as_the_token_knows_it_is_refused_until_it_is_accepted() {
    let log = Log::filled();
    let (file, _) = log.open_as(Known::Nothing).unwrap();
    let open = file.anchor(Phase::Open);
    let stopped = file.anchor(Phase::Stopped);
    drop(file);
    let lines = log.lines();
    let refused = |anchor: &Anchor, what: &str| {
        let Err(AuditError::End { problem, .. }) = log.open_as(Known::Anchor(anchor)) else {
            panic!("not refused: {what}");
        };
        assert!(problem.contains(what), "{problem}");
        let now = fs::read(log.path()).unwrap_or_default();
        log.open_as(Known::Anchor(anchor)).err().unwrap();
        assert_eq!(fs::read(log.path()).unwrap_or_default(), now, "written to");
    };
    for anchor in [&open, &stopped] {
        log.write(&lines);
        log.open_as(Known::Anchor(anchor)).unwrap();
        for end in 1..lines.len() {
            log.write(&lines[..end]);
            refused(anchor, "its end was cut off");
        }
        fs::write(log.path(), "").unwrap();
        refused(anchor, "holds no line");
        fs::remove_file(log.path()).unwrap();
        refused(anchor, "no such file");
        assert!(!log.path().exists(), "it was made");
        fs::copy(Log::filled().path(), log.path()).unwrap();
        refused(anchor, "of the log");
        let mut changed = lines.clone();
        let last = changed.last_mut().unwrap();
        *last = last.replace("\"time\":\"2", "\"time\":\"1");
        log.write(&changed);
        refused(anchor, "written again");
    }

    // Cut and written on by a forger, who knows the chain.
    log.write(&lines[..5]);
    let mut forger = log.open();
    for _ in 0..9 {
        forger.append(&decision(&entry("forged"))).unwrap();
    }
    drop(forger);
    refused(&open, "written again");

    // Something more is right while the log is open, and not behind its end.
    log.write(&lines);
    let mut more = log.open();
    more.append(&decision(&entry("more"))).unwrap();
    drop(more);
    let (_, found) = log.open_as(Known::Anchor(&open)).unwrap();
    assert_eq!((found.unsigned, found.anchor), (1, 9), "{found:?}");
    refused(&stopped, "stands behind line 9");
    log.write(&lines);
    fs::OpenOptions::new()
        .append(true)
        .open(log.path())
        .and_then(|mut file| std::io::Write::write_all(&mut file, b"x"))
        .unwrap();
    refused(&stopped, "stands behind line 9");

    log.write(&lines[..3]);
    let (mut file, _) = log.open_as(Known::Accepted(None)).unwrap();
    file.append(&decision(&entry("accepted"))).unwrap();
    log.checkpoint(&mut file);
    drop(file);
    assert!(log.verify().problems.is_empty(), "{:?}", log.verify());
    let held = |end: &Anchor| {
        let held = Held {
            end: Some(end.clone()),
            ..Held::default()
        };
        Audit::verify(&[&log.path()], &log.public_key(), &held).unwrap()
    };
    assert!(held(&open).problems[0].contains("its end was cut off"));
    log.write(&lines);
    assert!(held(&stopped).problems.is_empty());
}

#[test]
fn a_log_may_go_on_in_another_file_than_the_one_that_the_token_knows_of() {
    let log = Log::filled();
    let mut file = log.open();
    let before = file.anchor(Phase::Open);
    let rotating = file.anchor(Phase::Rotating);
    let old = log.folder.path().join("audit.log.1");
    fs::rename(log.path(), &old).unwrap();
    file.append(&decision(&entry("meanwhile"))).unwrap();
    assert!(file.reopen().unwrap());
    drop(file);
    log.open_as(Known::Anchor(&rotating)).unwrap();
    let refused = log.open_as(Known::Anchor(&before)).err().unwrap();
    assert!(refused.to_string().contains("in another file"), "{refused}");
}

#[test]
fn a_start_refuses_a_log_of_which_lines_before_the_end_are_gone() {
    for phase in [Phase::Stopped, Phase::Open] {
        let log = Log::filled();
        let file = log.open();
        let anchor = file.anchor(phase);
        drop(file);
        let whole = fs::read_to_string(log.path()).unwrap();
        let lines: Vec<&str> = whole.split_inclusive('\n').collect();
        let last = lines.len() - 1;
        let forged = {
            let mut bytes = Vec::new();
            let next = Chain {
                seq: anchor.seq + 1,
                prev: anchor.hash,
            };
            let header = Content::header(&anchor.log_id, &log.signer().fingerprint);
            next.link(&header, &mut bytes);
            String::from_utf8(bytes).unwrap()
        };
        for (what, text) in [
            ("the last line alone", lines[last].to_owned()),
            ("behind something", format!("x\n{}", lines[last])),
            ("header and last line", lines[0].to_owned() + lines[last]),
            ("one line less", lines[0].to_owned() + &lines[2..].concat()),
            ("one line more", lines[..2].concat() + &lines[1..].concat()),
            ("a header that goes on from it", forged.clone()),
        ] {
            fs::write(log.path(), &text).unwrap();
            let refused = log.open_as(Known::Anchor(&anchor)).err();
            assert!(
                matches!(refused, Some(AuditError::End { .. })),
                "{what}: {refused:?}"
            );
            assert_eq!(fs::read_to_string(log.path()).unwrap(), text, "{what}");
            let held = Held {
                end: Some(anchor.clone()),
                ..Held::default()
            };
            // Of a log that was not stopped a verification takes it for the one behind older files.
            if phase == Phase::Stopped || text != forged {
                let found = Audit::verify(&[&log.path()], &log.public_key(), &held).unwrap();
                assert!(!found.problems.is_empty(), "{what}");
            }
        }
        fs::write(log.path(), &whole).unwrap();
        log.open_as(Known::Anchor(&anchor)).unwrap();
    }
}

#[test]
fn what_an_older_version_told_the_token_still_leads_to_a_log_and_a_missing_header_is_said() {
    let log = Log::filled();
    let file = log.open();
    let old = Anchor {
        bytes: None,
        ..file.anchor(Phase::Stopped)
    };
    drop(file);
    let whole = fs::read_to_string(log.path()).unwrap();
    log.open_as(Known::Anchor(&old)).unwrap();
    assert_eq!(fs::read_to_string(log.path()).unwrap(), whole);

    let last = whole.split_inclusive('\n').next_back().unwrap();
    fs::write(log.path(), last).unwrap();
    log.open_as(Known::Anchor(&old)).unwrap();
    let text = fs::read_to_string(log.path()).unwrap();
    assert!(text.contains("does not begin with a header"), "{text}");
}

/// What a verification tells once a start has gone on with the log and signed it: no problem.
fn verified_behind_a_start(log: &Log, file: &mut LogFile) -> Verification {
    file.append(&decision(&Entry {
        operation: "server:start",
        ..entry("")
    }))
    .unwrap();
    log.checkpoint(file);
    let found = log.verify();
    assert!(found.problems.is_empty(), "{found:?}");
    found
}

#[test]
fn an_accepted_log_leaves_no_change_without_an_outcome() {
    let log = Log::filled();
    let mut file = log.open();
    let mut queue = Queue::new();
    queue.intend(&entry("changed"));
    queue.take().unwrap().write(&mut file);
    file.append(&decision(&entry("later"))).unwrap();
    drop(file);
    let (mut file, found) = log.open_as(Known::Accepted(None)).unwrap();
    assert_eq!(found.unknown, 1);
    let found = verified_behind_a_start(&log, &mut file);
    assert_eq!((found.open_intents, found.unknown_outcomes), (0, 1));
}

#[test]
fn a_kill_amid_more_changes_than_the_token_names_leaves_none_without_an_outcome() {
    const CHANGES: usize = anchor::MAX_OPEN_INTENTS + 44;
    let log = Log::filled();
    let mut file = log.open();
    let mut queue = Queue::new();
    let places: Vec<_> = (0..CHANGES)
        .map(|_| queue.intend(&entry("changed")))
        .collect();
    queue.take().unwrap().write(&mut file);
    let number = |at: usize| {
        let place = &places[at];
        place.outcome.get().unwrap().as_ref().unwrap() + place.at
    };
    // One of those that are named, and one of the others, have come to their end.
    for done in [3, CHANGES - 3].map(number) {
        file.append(&decision(&Entry {
            intent: done,
            ..entry("changed")
        }))
        .unwrap();
        file.concluded(done);
    }
    log.checkpoint(&mut file);
    let told = Anchor::decode(&file.anchor(Phase::Open).encode()).unwrap();
    assert_eq!(told.open.len(), anchor::MAX_OPEN_INTENTS);
    drop(file);

    let (mut file, found) = log.open_as(Known::Anchor(&told)).unwrap();
    assert_eq!(found.unknown, CHANGES - 2);
    let found = verified_behind_a_start(&log, &mut file);
    assert_eq!(found.unknown_outcomes, (CHANGES - 2) as u64);
}

#[test]
fn each_change_has_its_outcome_or_one_that_nobody_knows() {
    let log = with_changes();
    let found = log.verify();
    assert!(found.problems.is_empty(), "{found:?}");
    assert_eq!((found.open_intents, found.unknown_outcomes), (1, 0));
    let mut complete = found;
    complete.must_be_complete();
    assert!(complete.problems.iter().any(|p| p.contains("no outcome")));

    let (mut file, found) = log.open_as(Known::Nothing).unwrap();
    assert_eq!(found.unknown, 1);
    file.append(&decision(&Entry {
        operation: "server:start",
        ..entry("")
    }))
    .unwrap();
    log.checkpoint(&mut file);
    drop(file);
    let found = log.verify();
    assert!(found.problems.is_empty(), "{found:?}");
    assert_eq!((found.open_intents, found.unknown_outcomes), (0, 1));

    // Without that line the change has no outcome, and a start that does not say so is a problem.
    let start = "server:start";
    let problems = Log::problems_after(|lines| {
        let mut chain = Chain::after(9, lines.last().unwrap().as_bytes());
        let mut out = Vec::new();
        let mut add = |content: &Content| chain = chain.link(content, &mut out);
        let mut intent = Content::default();
        intent.intend(&entry("lost"));
        add(&intent);
        add(&decision(&Entry {
            operation: start,
            ..entry("")
        }));
        add(&decision(&Entry {
            intent: 4,
            ..entry("no change")
        }));
        lines.extend(String::from_utf8(out).unwrap().lines().map(str::to_owned));
    });
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].contains("log:10: the outcome"), "{problems:?}");
    assert!(problems[1].contains("outcome of line 4"), "{problems:?}");
}

#[test]
fn what_others_do_to_the_file_is_seen_and_the_log_goes_on() {
    let log = Log::filled();
    let mut file = log.open();
    assert_eq!(file.look(), None);
    let append = |bytes: &[u8]| {
        let mut other = fs::OpenOptions::new()
            .append(true)
            .open(log.path())
            .unwrap();
        std::io::Write::write_all(&mut other, bytes).unwrap();
    };
    append(b"{\"type\":\"forged");
    assert_eq!(file.look(), Some(Change::Appended { bytes: 15 }));
    let change = file.look().unwrap();
    file.go_on_after(change).unwrap();
    assert_eq!(file.look(), None);
    log.checkpoint(&mut file);
    assert!(log.verify().problems.is_empty(), "{:?}", log.verify());

    // A copy, and a cut to nothing: nothing was written between them.
    let copy = log.folder.path().join("copy");
    fs::copy(log.path(), &copy).unwrap();
    let from = fs::metadata(log.path()).unwrap().len();
    fs::write(log.path(), "").unwrap();
    file.append(&decision(&entry("before it is noticed")))
        .unwrap();
    let to = fs::metadata(log.path()).unwrap().len();
    assert!(
        matches!(file.look(), Some(Change::Truncated { .. })),
        "{from} {to}"
    );
    let change = file.look().unwrap();
    file.go_on_after(change).unwrap();
    let anchor = file.anchor(Phase::Open);
    log.checkpoint(&mut file);
    let both = Audit::verify(&[&copy, &log.path()], &log.public_key(), &Held::default()).unwrap();
    assert!(both.problems.is_empty(), "{:?}", both.problems);
    drop(file);
    let (mut file, _) = log.open_as(Known::Anchor(&anchor)).unwrap();

    let held = fs::metadata(log.path()).unwrap();
    fs::remove_file(log.path()).unwrap();
    assert_eq!(file.look(), Some(Change::Deleted));
    file.go_on_after(Change::Deleted).unwrap();
    assert!(
        fs::read_to_string(log.path())
            .unwrap()
            .contains("server:audit-file")
    );
    assert_eq!(held.len() > 0, file.look().is_none());
    let anchor = file.anchor(Phase::Open);
    drop(file);
    let (mut file, _) = log.open_as(Known::Anchor(&anchor)).unwrap();

    // Another file in its place is not written to.
    fs::remove_file(log.path()).unwrap();
    fs::write(log.path(), "somebody's").unwrap();
    let change = file.look().unwrap();
    file.go_on_after(change).unwrap_err();
    std::thread::sleep(Duration::from_millis(150));
    file.append(&decision(&entry("nowhere"))).unwrap_err();
    assert_eq!(fs::read_to_string(log.path()).unwrap(), "somebody's");
    fs::remove_file(log.path()).unwrap();
    std::thread::sleep(Duration::from_millis(150));
    file.append(&decision(&entry("somewhere"))).unwrap();
    assert!(
        fs::read_to_string(log.path())
            .unwrap()
            .contains("somewhere")
    );

    fs::rename(log.path(), &copy).unwrap();
    assert_eq!(file.look(), Some(Change::Moved));
}

#[test]
fn what_was_appended_is_accounted_for_wherever_the_path_leads() {
    for other in [
        None,
        Some("another file, which is longer than what was appended"),
    ] {
        let log = Log::filled();
        let mut file = log.open();
        let moved = log.folder.path().join("moved");
        let mut foreign = fs::OpenOptions::new()
            .append(true)
            .open(log.path())
            .unwrap();
        std::io::Write::write_all(&mut foreign, b"not of this log").unwrap();
        fs::rename(log.path(), &moved).unwrap();
        if let Some(text) = other {
            fs::write(log.path(), text.repeat(1000)).unwrap();
        }
        let change = file.look().unwrap();
        assert_eq!(change, Change::Appended { bytes: 15 });
        file.go_on_after(change).unwrap();
        file.append(&decision(&entry("behind it"))).unwrap();
        log.checkpoint(&mut file);
        let found = Audit::verify(&[&moved], &log.public_key(), &Held::default()).unwrap();
        assert!(found.problems.is_empty(), "{:?}", found.problems);
        let text = fs::read_to_string(&moved).unwrap();
        assert!(text.contains("\"type\":\"recovered\""), "{text}");
        assert!(text.contains("15 bytes that are not of this log"), "{text}");
    }
}

#[test]
fn what_was_appended_is_accounted_for_before_a_line_comes_behind_it() {
    let log = Log::filled();
    let mut file = log.open();
    let append = |bytes: &[u8]| {
        let mut foreign = fs::OpenOptions::new()
            .append(true)
            .open(log.path())
            .unwrap();
        std::io::Write::write_all(&mut foreign, bytes).unwrap();
    };
    for (bytes, length) in [(&b"{}\n"[..], 3), (b"half a line", 11)] {
        append(bytes);
        file.append(&decision(&entry("behind it"))).unwrap();
        assert_eq!(
            file.take_accounted(),
            Some(Change::Appended { bytes: length })
        );
        assert_eq!((file.take_accounted(), file.look()), (None, None));
        file.append(&decision(&entry("and another"))).unwrap();
    }
    log.checkpoint(&mut file);
    assert!(log.verify().problems.is_empty(), "{:?}", log.verify());
    let text = fs::read_to_string(log.path()).unwrap();
    assert_eq!(text.matches("\"type\":\"recovered\"").count(), 2);
    assert_eq!(text.matches("server:audit-file").count(), 2);
}

#[test]
fn a_log_that_was_replaced_by_something_longer_goes_on_behind_a_header() {
    for (rewritten, looked) in [(false, false), (false, true), (true, false), (true, true)] {
        let log = Log::filled();
        let mut file = log.open();
        let before = fs::read(log.path()).unwrap();
        let mut other = vec![0; before.len() + 100];
        if rewritten {
            // As an editor that lengthens a name in it leaves it.
            let text = String::from_utf8(before).unwrap();
            other = text.replace("\"ok\"", "\"all right\"").into_bytes();
        }
        fs::write(log.path(), &other).unwrap();
        let to = other.len() as u64;
        let change = Change::Overwritten { to };
        if looked {
            assert_eq!(file.look(), Some(change));
            file.go_on_after(change).unwrap();
        }
        file.append(&decision(&entry("behind it"))).unwrap();
        assert_eq!(file.take_accounted(), (!looked).then_some(change));
        assert_eq!(file.look(), None);

        let text = fs::read(log.path()).unwrap();
        let own = String::from_utf8(text[other.len()..].to_vec()).unwrap();
        assert!(own.starts_with("\n{\"type\":\"header\""), "{own}");
        assert!(own.contains("the file was written over"), "{own}");
        assert!(own.contains("behind it"), "{own}");
        let anchor = file.anchor(Phase::Open);
        drop(file);
        log.open_as(Known::Anchor(&anchor)).unwrap();
    }
}

#[tokio::test]
async fn a_change_is_on_the_disc_before_it_begins_and_its_outcome_is_kept() {
    let log = Log::new();
    let (audit, _turn) = audit(log.path()).await;
    let intent = audit.begin(&entry("a")).await.unwrap();
    assert!(*audit.durable.lock().await >= intent);
    // The outcome can't be written, for a while.
    let kept = |key: &str| Entry {
        key: "a",
        operation: if key.is_empty() { "" } else { "rotate" },
        intent,
        ..entry("a")
    };
    {
        let mut file = lock(&audit.log);
        file.fail_for_a_test();
    }
    audit.record(&kept("a")).unwrap_err();
    audit.begin(&entry("b")).await.unwrap_err();
    std::thread::sleep(Duration::from_millis(150));
    audit.record(&entry("c")).unwrap();
    audit.close().await.unwrap();
    let key = audit.hsm.signing_public_key();
    let found = Audit::verify(&[&log.path()], &key, &Held::default()).unwrap();
    assert!(found.problems.is_empty(), "{found:?}");
    assert_eq!(found.open_intents, 0);
    let text = fs::read_to_string(log.path()).unwrap();
    let late: serde_json::Value = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .find(|line: &serde_json::Value| line["intent"] == intent)
        .unwrap();
    assert_eq!(
        (late["status"].as_u64(), late["outcome"].as_str()),
        (Some(503), Some("ok"))
    );
    assert!(late["reason"].as_str().unwrap().contains("withheld"));
    assert_eq!(
        text.matches("\"key\":\"b\"").count(),
        0,
        "it was never begun"
    );
    audit.record(&entry("late")).unwrap_err();
    let known = known(&audit.hsm).await.unwrap().unwrap();
    assert_eq!((known.phase, known.seq), (Phase::Stopped, found.last_seq));
}

#[tokio::test]
async fn a_flood_of_denials_is_counted_and_the_counts_are_right_after_a_stop() {
    let log = Log::new();
    let (audit, _turn) = audit(log.path()).await;
    let denied = |number: usize| Entry {
        identity: if number.is_multiple_of(3) {
            "dns:a"
        } else {
            "dns:b"
        },
        outcome: if number.is_multiple_of(2) {
            "denied"
        } else {
            "error"
        },
        ..entry("k")
    };
    for number in 0..3000 {
        audit.record_or_count(&denied(number)).await.unwrap();
    }
    for _ in 0..300 {
        let ok = Entry {
            identity: "dns:b",
            ..entry("k")
        };
        audit.record_with_others(&ok).await.unwrap();
    }
    audit.close().await.unwrap();
    let key = audit.hsm.signing_public_key();
    let found = Audit::verify(&[&log.path()], &key, &Held::default()).unwrap();
    assert!(found.problems.is_empty(), "{found:?}");
    assert_eq!(
        found.counted,
        3000 - 2 * u64::from(quota::MAX_LINES_PER_WINDOW)
    );
    assert_eq!(
        found.lines,
        1 + 2 * u64::from(quota::MAX_LINES_PER_WINDOW) + 300 + 2 + 1
    );
}

#[test]
fn texts_are_cut_at_their_bounds_and_say_so() {
    let log = Log::new();
    let mut file = log.open();
    let long = [
        "x".repeat(10_000_000),
        "\u{1}".repeat(100_000),
        "\"\\".repeat(100_000),
        "\u{1f600}".repeat(100_000),
        "\u{202e}".repeat(3000),
    ];
    for text in &long {
        file.append(&decision(&Entry {
            request_id: text,
            identity: text,
            token_id: text,
            remote: text,
            certificate: text,
            issuer: text,
            operation: text,
            key: text,
            key_version: u32::MAX,
            batch: usize::MAX,
            batch_failed: usize::MAX,
            outcome: text,
            status: u16::MAX,
            reason: text,
            intent: u64::MAX,
        }))
        .unwrap();
    }
    log.checkpoint(&mut file);
    let lines = log.lines();
    for line in &lines[1..=long.len()] {
        assert!(line.len() < line::MAX_LINE_BYTES, "{}", line.len());
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        for member in ["request_id", "identity", "key", "reason"] {
            assert!(
                line[member].as_str().unwrap().ends_with(" [cut]"),
                "{member}"
            );
        }
    }
    assert!(
        !log.verify()
            .problems
            .iter()
            .any(|p| !p.contains("outcome of line"))
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_text_is_kept_or_cut_in_printable_ascii(text in any::<String>(), times in 1_usize..400) {
        let text = text.repeat(times);
        let mut content = Content::default();
        content.decide(&Entry { reason: &text, ..entry(&text) });
        let mut out = Vec::new();
        Chain::START.link(&content, &mut out);
        prop_assert!(out.len() <= line::MAX_LINE_BYTES);
        prop_assert_eq!(out.pop(), Some(b'\n'));
        prop_assert!(out.iter().all(|byte| (b' '..=b'~').contains(byte)));
        let line: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let reason = line["reason"].as_str().unwrap();
        match reason.strip_suffix(" [cut]") {
            Some(cut) if reason != text => prop_assert!(text.starts_with(cut)),
            _ => prop_assert_eq!(reason, text),
        }
    }
}

#[test]
fn a_rotation_that_a_kill_cut_off_is_gone_on_with() {
    for left in ["", "{\"type\":\"header\",\"seq\":11,\"ti", "\0\0\0", "none"] {
        let log = Log::filled();
        let mut file = log.open();
        let mut queue = Queue::new();
        queue.intend(&entry("begun"));
        queue.take().unwrap().write(&mut file);
        let rotating = file.anchor(Phase::Rotating);
        let open = file.anchor(Phase::Open);
        drop(file);
        let old = log.folder.path().join("audit.log.1");
        fs::rename(log.path(), &old).unwrap();
        if left != "none" {
            fs::write(log.path(), left).unwrap();
        }
        log.open_as(Known::Anchor(&open)).err().unwrap();
        // Twice, as it may be killed again before the token is told.
        let (file, found) = log.open_as(Known::Anchor(&rotating)).unwrap();
        assert_eq!((found.anchor, found.unknown), (10, 1), "{found:?}");
        drop(file);
        let (mut file, _) = log.open_as(Known::Anchor(&rotating)).unwrap();
        log.checkpoint(&mut file);
        let files: [&Path; 2] = [&old, &log.path()];
        let both = Audit::verify(&files, &log.public_key(), &Held::default()).unwrap();
        assert!(both.problems.is_empty(), "{left:?}: {both:?}");
        assert_eq!((both.unsigned_tail, both.open_intents), (0, 0));
        assert!(log.lines()[1].contains("behind line 10"), "it is said");
    }
}

#[tokio::test]
async fn a_rotation_stays_allowed_until_the_token_knows_of_the_new_file() {
    let log = Log::new();
    let (audit, _turn) = audit(log.path()).await;
    audit.checkpoint().await.unwrap();
    let (options, hsm) = (audit.options.clone(), audit.hsm.clone());
    audit.record(&entry("a")).unwrap();
    let mut told = audit.told.lock().await;
    audit.sign(&mut told, Phase::Rotating, true).await.unwrap();
    audit.record(&entry("after it was told")).unwrap();
    fs::rename(log.path(), log.folder.path().join("audit.log.1")).unwrap();
    assert!(audit.lock_to_write().reopen().unwrap());
    drop(told);
    drop(audit);
    // Each dies before it tells the token anything.
    for _ in 0..3 {
        let audit = Audit::open(options.clone(), hsm.clone()).await.unwrap();
        audit.record(&entry("b")).unwrap();
        let known = known(&hsm).await.unwrap().unwrap();
        assert_eq!(known.phase, Phase::Rotating);
    }
    let audit = Audit::open(options, hsm.clone()).await.unwrap();
    audit.checkpoint().await.unwrap();
    let known = known(&hsm).await.unwrap().unwrap();
    assert_eq!(known.phase, Phase::Open);
}

/// Lets the token be asked for nothing more, for as long as it makes a large key.
async fn while_the_token_is_busy<T>(hsm: &Hsm, body: impl Future<Output = T>) -> T {
    let id = [0xa5; 16];
    let mut slow = Box::pin(hsm.generate_signing_key(strongroom_hsm::SigningKind::Rsa4096, id));
    assert!(slow.as_mut().now_or_never().is_none());
    let mut others = Vec::new();
    // Twice: the token's thread may take the slow one out of a queue that was full only with it.
    for _ in 0..2 {
        let mut more: Vec<_> = (0..300).map(|_| Box::pin(hsm.random(1))).collect();
        for other in &mut more {
            let _ = other.as_mut().now_or_never();
        }
        others.append(&mut more);
        std::thread::sleep(Duration::from_millis(20));
    }
    let answer = body.await;
    slow.await.unwrap();
    drop(others);
    while hsm.random(1).await.is_err() {
        tokio::task::yield_now().await;
    }
    hsm.destroy_signing_keys(vec![id]).await.unwrap();
    answer
}

#[tokio::test]
async fn while_the_token_cannot_be_told_the_old_file_stays_in_use() {
    let log = Log::new();
    let (audit, _turn) = audit(log.path()).await;
    audit.checkpoint().await.unwrap();
    let (options, hsm) = (audit.options.clone(), audit.hsm.clone());
    let old = log.folder.path().join("audit.log.1");
    audit.record(&entry("a")).unwrap();
    fs::rename(log.path(), &old).unwrap();
    let reopened = while_the_token_is_busy(&hsm, async { audit.reopen().await }).await;
    assert!(matches!(reopened, Err(AuditError::Sign(_))), "{reopened:?}");
    assert!(!log.path().exists());
    audit.record(&entry("b")).unwrap();

    // By itself, when the token is back.
    audit.due.notify_one();
    let until_it_is_there = async {
        while lock(&audit.log).first_for_a_test() == 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = audit.run_checkpoints() => {}
        () = until_it_is_there => {}
        () = tokio::time::sleep(Duration::from_secs(30)) => panic!("never opened again"),
    }
    audit.checkpoint().await.unwrap();
    let key = hsm.signing_public_key();
    let both = Audit::verify(&[&old, &log.path()], &key, &Held::default()).unwrap();
    assert!(both.problems.is_empty(), "{both:?}");
    drop(audit);
    Audit::open(options, hsm).await.unwrap();
}

#[test]
fn of_a_line_that_was_cut_while_serving_the_piece_is_left_out() {
    let log = Log::filled();
    let whole = fs::read(log.path()).unwrap();
    let lines = log.lines();
    let end_of_first = lines[0].len() + 1;
    let end_of_second = end_of_first + lines[1].len() + 1;
    let missing = |cut: usize| {
        fs::write(log.path(), &whole).unwrap();
        let mut file = log.open();
        let other = fs::OpenOptions::new().write(true).open(log.path()).unwrap();
        other.set_len(cut as u64).unwrap();
        let change = file.look().unwrap();
        assert!(matches!(change, Change::Truncated { .. }), "{cut}");
        file.go_on_after(change).unwrap();
        log.checkpoint(&mut file);
        let anchor = file.anchor(Phase::Open);
        drop(file);
        log.open_as(Known::Anchor(&anchor)).unwrap();
        log.verify().problems
    };
    for cut in [
        end_of_first,
        end_of_first + 1,
        end_of_second - 1,
        end_of_second,
    ] {
        let problems = missing(cut);
        assert_eq!(problems.len(), 1, "{cut}: {problems:?}");
        assert!(problems[0].contains("missing"), "{cut}: {problems:?}");
    }
    for cut in [1, end_of_first - 1] {
        let problems = missing(cut);
        assert_eq!(problems.len(), 1, "{cut}: {problems:?}");
        assert!(
            problems[0].contains("does not begin with a header"),
            "{cut}: {problems:?}"
        );
    }
}

#[tokio::test]
async fn a_kill_after_a_cut_that_was_noticed_is_no_reason_to_refuse() {
    let log = Log::new();
    let (audit, _turn) = audit(log.path()).await;
    for key in ["a", "b", "c"] {
        audit.record(&entry(key)).unwrap();
    }
    audit.checkpoint().await.unwrap();
    let (options, hsm) = (audit.options.clone(), audit.hsm.clone());
    let before = known(&hsm).await.unwrap().unwrap();
    fs::write(log.path(), "").unwrap();
    audit.record(&entry("before it is noticed")).unwrap();
    assert!(matches!(
        audit.look_after_file(),
        Some(Change::Truncated { .. })
    ));
    // Not before the interval, but for this.
    audit.checkpoint().await.unwrap();
    drop(audit);
    drop(Audit::open(options.clone(), hsm.clone()).await.unwrap());

    // Killed before that, there is a line of ours, and no header: that is accepted as what it is.
    let lines = log.lines();
    assert!(lines[0].contains("before it is noticed"));
    log.write(&lines[..1]);
    let value = before.encode();
    hsm.write_register(Register::AuditEnd, value).await.unwrap();
    let refused = Audit::open(options.clone(), hsm.clone()).await.err();
    assert!(matches!(refused, Some(AuditError::End { .. })));
    let (accepted, problem) = Audit::accept(options, hsm.clone()).await.unwrap();
    assert!(problem.is_some());
    accepted.close().await.unwrap();
    assert_eq!(known(&hsm).await.unwrap().unwrap().log_id, before.log_id);
}

/// What is said in a log of a file that somebody changed.
fn told_of_changes(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text
        .lines()
        .filter(|line| line.contains("server:audit-file"));
    lines.map(str::to_owned).collect()
}

#[tokio::test]
async fn what_was_done_to_a_file_is_said_before_it_is_left() {
    let log = Log::new();
    let aside = log.folder.path().join("aside");
    let (audit, _turn) = audit(log.path()).await;
    let fill = || {
        for key in ["a", "b", "c"] {
            audit.record(&entry(key)).unwrap();
        }
    };
    fill();
    audit.checkpoint().await.unwrap();
    fs::remove_file(log.path()).unwrap();
    audit.reopen().await.unwrap();
    assert!(told_of_changes(&log.path())[0].contains("was deleted"));

    fill();
    audit.checkpoint().await.unwrap();
    let cut = |path: &Path| {
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(log.lines()[0].len() as u64 + 1).unwrap();
    };
    cut(&log.path());
    fs::rename(log.path(), &aside).unwrap();
    audit.reopen().await.unwrap();
    assert!(told_of_changes(&aside)[0].contains("was cut"));
    assert_eq!(audit.changes(), 2);
    // A rotation in order is no change.
    fill();
    fs::rename(log.path(), &aside).unwrap();
    audit.reopen().await.unwrap();
    assert_eq!(audit.changes(), 2);

    fill();
    audit.checkpoint().await.unwrap();
    cut(&log.path());
    audit.close().await.unwrap();
    assert!(told_of_changes(&log.path())[0].contains("was cut"));
    assert_eq!(audit.changes(), 3);
}

#[tokio::test]
async fn an_end_that_was_written_over_is_seen_though_the_length_is_the_same() {
    let log = Log::new();
    let (audit, _turn) = audit(log.path()).await;
    audit.record(&entry("a")).unwrap();
    assert_eq!(audit.look_after_file(), None);
    let whole = fs::read(log.path()).unwrap();
    let write = |at: usize, byte: u8| {
        let mut bytes = fs::read(log.path()).unwrap();
        bytes[at] = byte;
        let file = fs::OpenOptions::new().write(true).open(log.path()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
    };
    write(whole.len() - 3, b'#');
    let intent = audit.begin(&entry("refused")).await;
    assert!(
        matches!(intent, Err(AuditError::Write { .. })),
        "{intent:?}"
    );
    assert_eq!(audit.changes(), 1);
    assert!(told_of_changes(&log.path())[0].contains("written over"));
    assert_eq!(audit.look_after_file(), None);
    audit.begin(&entry("goes on")).await.unwrap();
}

/// What stands at the beginning then is nothing of ours; the token knows where the log goes on.
#[tokio::test]
async fn a_log_that_was_written_over_from_its_beginning_is_opened_again() {
    for bytes in [100, 1 << 20] {
        let log = Log::new();
        let (audit, _turn) = audit(log.path()).await;
        audit.record(&entry("a")).unwrap();
        audit.checkpoint().await.unwrap();
        assert_eq!(audit.look_after_file(), None);
        let length = fs::metadata(log.path()).unwrap().len();
        let zeros = vec![0; bytes.min(usize::try_from(length).unwrap())];
        let file = fs::OpenOptions::new().write(true).open(log.path()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &zeros, 0).unwrap();
        let _ = audit.look_after_file();
        audit.begin(&entry("goes on")).await.unwrap();
        let (options, hsm) = (audit.options.clone(), audit.hsm.clone());
        audit.close().await.unwrap();
        drop(audit);
        let again = Audit::open(options.clone(), hsm.clone()).await.unwrap();
        again.record(&entry("b")).unwrap();
        again.close().await.unwrap();
        drop(again);
        // Of another log there is no line that the token knows.
        fs::write(log.path(), "something else\n").unwrap();
        let refused = Audit::open(options, hsm).await.err().unwrap();
        assert!(matches!(refused, AuditError::End { .. }), "{refused:?}");
    }
}

#[test]
fn what_is_no_file_is_refused_at_once() {
    let log = Log::new();
    let _ = fs::remove_file(log.path());
    nix::unistd::mkfifo(&log.path(), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let refused = log.open_as(Known::Nothing).err().unwrap().to_string();
    assert!(refused.contains("is not a regular file"), "{refused}");
}

#[tokio::test]
async fn no_more_changes_are_open_than_the_token_can_name() {
    let log = Log::new();
    let (audit, _turn) = audit(log.path()).await;
    let mut open = Vec::new();
    for _ in 0..anchor::MAX_OPEN_INTENTS {
        open.push(audit.begin(&entry("k")).await.unwrap());
    }
    let soon = Duration::from_millis(100);
    let one_more = entry("one more");
    let mut begun = std::pin::pin!(audit.begin(&one_more));
    assert!(tokio::time::timeout(soon, &mut begun).await.is_err());
    let outcome = Entry {
        intent: open[0],
        ..entry("k")
    };
    audit.record(&outcome).unwrap();
    begun.await.unwrap();
}

#[tokio::test]
async fn what_anybody_may_do_is_counted_too() {
    let log = Log::new();
    let (audit, _turn) = audit(log.path()).await;
    let login = Entry {
        identity: "dns:a",
        operation: "login",
        ..entry("")
    };
    for _ in 0..1000 {
        audit.record_or_count(&login).await.unwrap();
    }
    audit.close().await.unwrap();
    let lines = log.lines();
    let sums: Vec<serde_json::Value> = lines
        .iter()
        .filter(|line| line.contains("\"summary\""))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 1 + quota::MAX_LINES_PER_WINDOW as usize + 2);
    let told = (&sums[0]["ok"], &sums[0]["denied"], &sums[0]["errors"]);
    assert_eq!(told, (&900.into(), &0.into(), &0.into()));
    let key = audit.hsm.signing_public_key();
    let found = Audit::verify(&[&log.path()], &key, &Held::default()).unwrap();
    assert_eq!((found.problems.len(), found.counted), (0, 900));
}

#[tokio::test]
async fn no_change_is_begun_whose_intent_was_cut_away_whoever_noticed_it() {
    let log = Log::new();
    let (audit, _turn) = audit(log.path()).await;
    // Their lines are written, and then the file is cut before any of them is on the disk.
    let held = audit.durable.lock().await;
    let changes: Vec<_> = (0..10).map(|number| number.to_string()).collect();
    let entries: Vec<_> = changes.iter().map(|key| entry(key)).collect();
    let mut begun: Vec<_> = entries.iter().map(|e| Box::pin(audit.begin(e))).collect();
    while log.lines().len() < 11 {
        for change in &mut begun {
            assert!(change.as_mut().now_or_never().is_none());
        }
    }
    fs::write(log.path(), "").unwrap();
    drop(held);
    for change in begun {
        change.await.unwrap_err();
    }
    // One that comes after that is.
    audit.begin(&entry("after")).await.unwrap();
}

#[tokio::test]
async fn an_outcome_that_comes_late_or_is_not_known_says_who_asked() {
    let log = Log::new();
    let (audit, _turn) = audit(log.path()).await;
    let who = Entry {
        request_id: "r",
        identity: "dns:a",
        token_id: "t",
        remote: "192.0.2.1:1",
        certificate: "c",
        issuer: "i",
        operation: "rotate",
        ..entry("k")
    };
    let late = audit.begin(&who).await.unwrap();
    let lost = audit.begin(&who).await.unwrap();
    lock(&audit.log).fail_for_a_test();
    let outcome = Entry {
        intent: late,
        batch: 3,
        batch_failed: 2,
        ..who.clone()
    };
    audit.record(&outcome).unwrap_err();
    std::thread::sleep(Duration::from_millis(150));
    audit.checkpoint().await.unwrap();
    audit.record(&entry("next")).unwrap();
    let (options, hsm) = (audit.options.clone(), audit.hsm.clone());
    drop(audit);
    drop(Audit::open(options, hsm).await.unwrap());
    for (intent, batch) in [(late, 3), (lost, 0)] {
        let line: serde_json::Value = log
            .lines()
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .find(|line: &serde_json::Value| line["intent"] == intent)
            .unwrap();
        let told = ["identity", "token_id", "remote", "certificate", "issuer"];
        let told = told.map(|member| line[member].as_str().unwrap());
        assert_eq!(told, ["dns:a", "t", "192.0.2.1:1", "c", "i"], "{line}");
        assert_eq!(line["batch"], batch);
    }
}

#[test]
fn a_link_in_the_services_folder_leads_roots_log_to_no_file_of_roots() {
    const SERVICE: u32 = 54_321;
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let log = Log::new();
    let folder = log.folder.path();
    std::os::unix::fs::chown(folder, Some(SERVICE), Some(SERVICE)).unwrap();
    let roots = tempfile::tempdir().unwrap();
    fs::write(roots.path().join("passwords"), "").unwrap();
    for target in ["passwords", "new"] {
        let target = roots.path().join(target);
        std::os::unix::fs::symlink(&target, log.path()).unwrap();
        let opened = log.open_as(Known::Nothing);
        assert!(matches!(opened, Err(AuditError::Write { .. })));
        assert!(fs::metadata(&target).map_or(true, |file| file.len() == 0));
        fs::remove_file(log.path()).unwrap();
    }
    assert_eq!(fs::read_dir(roots.path()).unwrap().count(), 1);
    // The file is the service's, which goes on with it.
    drop(log.open());
    let made = fs::metadata(log.path()).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), SERVICE);
}
