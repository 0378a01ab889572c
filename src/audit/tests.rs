#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use futures_util::FutureExt as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use p256::ecdsa::signature::hazmat::PrehashSigner as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::EncodePublicKey as _;
use proptest::prelude::*;
use tokio::sync::MutexGuard;

use super::file::LogFile;
use super::*;

/// `/dev/full` is locked by whoever has it open as a log.
static FULL: Mutex<()> = Mutex::new(());

/// A log whose checkpoints are signed by a key of this process: the whole program's tests use the HSM's.
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

    fn open(&self) -> LogFile {
        LogFile::open(&self.path(), Sha256::digest(self.public_key()).into()).unwrap()
    }

    fn checkpoint(&self, file: &mut LogFile) {
        let head = file.head().unwrap();
        let signature: Signature = self.key.sign_prehash(&head.digest()).unwrap();
        file.append(&Content::checkpoint(&head, &signature.to_bytes().into()))
            .unwrap();
        file.signed_up_to(&head);
    }

    /// Six decisions, a checkpoint after the third and the sixth: header, 1, 2, 3, checkpoint, 4, 5, 6, checkpoint.
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
        Audit::verify(&[&self.path()], &self.public_key()).unwrap()
    }

    fn problems_after(change: impl FnOnce(&mut Vec<String>)) -> Vec<String> {
        let log = Self::filled();
        let mut lines = log.lines();
        change(&mut lines);
        log.write(&lines);
        log.verify().problems
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
    let mut line = Content::decisions();
    line.decide(entry);
    line
}

#[test]
fn a_list_is_no_line() {
    let problems = Log::problems_after(|lines| {
        let last = lines.last().unwrap();
        let prev = base16ct::lower::encode_string(&Sha256::digest(last));
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
    let key = Sha256::digest(log.public_key()).into();
    assert!(matches!(
        LogFile::open(&log.path(), key),
        Err(AuditError::Continue { .. })
    ));
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
    let fingerprint = Sha256::digest(log.public_key()).into();
    let mut forged = LogFile::open(&forger.path(), fingerprint).unwrap();
    forged.append(&decision(&entry("forged"))).unwrap();
    forger.checkpoint(&mut forged);
    let found = Audit::verify(&[&forger.path()], &log.public_key()).unwrap();
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
        let hash = base16ct::lower::encode_string(&Sha256::digest(lines[7].as_bytes()));
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
    let both = Audit::verify(&[&old, &log.path()], &log.public_key()).unwrap();
    assert!(
        both.problems.is_empty() && both.unsigned_tail == 0,
        "{both:?}"
    );
    let swapped = Audit::verify(&[&log.path(), &old], &log.public_key()).unwrap();
    assert!(!swapped.problems.is_empty());

    // A file left out of the middle.
    let older = log.folder.path().join("audit.log.2");
    fs::rename(&old, &older).unwrap();
    fs::rename(log.path(), &old).unwrap();
    file.reopen().unwrap();
    log.checkpoint(&mut file);
    let gap = Audit::verify(&[&older, &log.path()], &log.public_key()).unwrap();
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
fn a_newline_left_by_a_probe_for_room_is_no_line() {
    let log = Log::filled();
    let text = fs::read_to_string(log.path()).unwrap();
    fs::write(log.path(), format!("{text}\n")).unwrap();
    let mut file = log.open();
    file.append(&decision(&entry("after"))).unwrap();
    assert!(log.verify().problems.is_empty(), "{:?}", log.verify());
}

#[test]
fn a_log_of_another_tokens_key_is_not_continued() {
    let log = Log::filled();
    let error = LogFile::open(&log.path(), [9; 32]).err().unwrap();
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
    let both = Audit::verify(&[&old, &log.path()], &log.public_key()).unwrap();
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
fn two_writers_are_refused_and_so_is_a_foreign_file() {
    let log = Log::filled();
    let _first = log.open();
    let second = LogFile::open(&log.path(), [0; 32]).err().unwrap();
    assert!(second.to_string().contains("another process"), "{second}");
    let foreign = log.folder.path().join("foreign");
    fs::write(&foreign, "hello\n").unwrap();
    let error = LogFile::open(&foreign, [0; 32]).err().unwrap();
    assert!(
        error.to_string().contains("does not begin with the header"),
        "{error}"
    );
}

fn put(queue: &mut Queue) -> (Vec<Outcome>, Vec<bool>) {
    ["a", "b", "c"]
        .map(|key| queue.put(&entry(key)))
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
    let (next, first) = queue.put(&entry("d"));
    assert!(first);
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
    (Audit::open(options, hsm).await.unwrap(), turn)
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
    let found = Audit::verify(&[&log.path()], &audit.hsm.signing_public_key()).unwrap();
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

/// Not a test of its own: the process of [`of_lines_that_were_written_in_part_nothing_stays`], whose files can't grow beyond a limit.
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
        outcomes.push(queue.put(&entry("since")).0);
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
    assert!(file.failing().load(Ordering::Relaxed));
    file.check().unwrap_err();

    setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
    std::thread::sleep(Duration::from_millis(150));
    file.append(&decision(&entry("after"))).unwrap();
    assert!(!file.failing().load(Ordering::Relaxed));
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
    let error = LogFile::open(std::path::Path::new("/dev/full"), [0; 32])
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
        let _ = LogFile::open(&log.path(), [0; 32]);
    }
}
