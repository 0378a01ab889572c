//! Rotation by schedule: once, also when killed in the middle of it, and never later than promised
//! without an alert.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines
)]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use strongroom_hsm::{HsmConfig, HsmState, PinSource, SigningKind, TokenSelector};
use strongroom_softhsm::Throwaway;

use super::tests::{Site, named, seal};
use super::*;
use crate::audit::AuditOptions;

const DAY: i64 = 86_400;
const CHILD: &str = "STRONGROOM_TEST_ROTATION_CHILD";

/// Now, to the keyrings of this process that are told to use it.
static CLOCK: AtomicI64 = AtomicI64::new(0);

fn simulated() -> i64 {
    CLOCK.load(Ordering::Relaxed)
}

fn use_simulated_clock(keyring: &mut Keyring) {
    Arc::get_mut(&mut keyring.inner).unwrap().clock = simulated;
}

fn signing() -> CreateOptions {
    CreateOptions {
        key_type: KeyType::Signing(SigningKind::EcdsaP256),
        ..CreateOptions::default()
    }
}

fn period(days: u64) -> ConfigChange {
    ConfigChange {
        auto_rotate_period: Some(Duration::from_hours(days * 24)),
        ..ConfigChange::default()
    }
}

/// Not a test: the program that the next one kills. Opens the keyring at a time that is given,
/// rotates what is due, and says so.
#[tokio::test]
async fn rotation_child() {
    let Ok(arguments) = std::env::var(CHILD) else {
        return;
    };
    let [module, label, pin, folder, key, now] = arguments.split('\n').collect::<Vec<_>>()[..]
    else {
        panic!("six arguments");
    };
    let config = HsmConfig {
        module: module.into(),
        token: TokenSelector::Label(label.to_owned()),
        pin: PinSource::File(pin.into()),
        sessions: 1,
        queue: 16,
        call_deadline: Duration::from_mins(2),
        key_generation_deadline: Duration::from_mins(5),
        session_keys: 16,
        shape: strongroom_hsm::KeyShape::Fixed,
    };
    let path = Path::new(folder).join("store");
    let new = !path.exists();
    if new {
        Hsm::provision(
            &config,
            strongroom_hsm::OptionalKeys::default(),
            &mut |_| (),
        )
        .unwrap();
    }
    let hsm = Hsm::start(config).unwrap();
    let store = if new {
        Store::create(&path, hsm.clone()).await.unwrap()
    } else {
        Store::open(&path, hsm.clone()).await.unwrap()
    };
    let options = KeyringOptions::default();
    let mut keyring = Keyring::open(Arc::new(store), hsm.clone(), options)
        .await
        .unwrap();
    CLOCK.store(now.parse().unwrap(), Ordering::Relaxed);
    use_simulated_clock(&mut keyring);
    keyring.record_in(audit(Path::new(folder), &hsm).await);
    keyring.keep().await; // What a kill left on the token goes.
    if new {
        keyring
            .create(named("kek"), CreateOptions::default())
            .await
            .unwrap();
        keyring.create(named("sig"), signing()).await.unwrap();
    }
    for name in ["kek", "sig"] {
        let days = if name == key { 90 } else { 0 };
        keyring.configure(named(name), period(days)).await.unwrap();
    }
    println!("ready");
    // The parent may want to say first what the token is to do.
    let _ = std::io::stdin().lines().next();
    if fs::read_to_string(Path::new(folder).join("control")).unwrap_or_default() == "token-absent" {
        while hsm.state() == HsmState::Ready {
            let _ = hsm.random(1).await;
        }
        let begun = std::cell::Cell::new(false);
        let change = async {
            begun.set(true);
            Ok(())
        };
        let place = ("auto-rotate", "kek", 2);
        let outcome = keyring.inner.recorded(place, "", change).await;
        let due = keyring.rotate_due().await;
        println!("away {} {outcome:?} {due:?}", begun.get());
        return;
    }
    for _ in 0..2 {
        for (name, outcome) in keyring.rotate_due().await {
            println!("rotated {name} {}", outcome.unwrap());
        }
    }
    let latest = |name| keyring.read(named(name)).unwrap().latest_version;
    let objects = hsm.signing_keys().await.unwrap().len();
    println!("end {} {} {objects}", latest("kek"), latest("sig"));
}

async fn audit(folder: &Path, hsm: &Hsm) -> Arc<Audit> {
    let options = AuditOptions {
        path: folder.join("audit.log"),
        checkpoint_lines: 1000,
        checkpoint_interval: Duration::from_mins(1),
    };
    let audit = Audit::open(options, hsm.clone()).await.unwrap();
    audit.checkpoint().await.unwrap();
    Arc::new(audit)
}

struct Killed {
    token: Throwaway,
    folder: tempfile::TempDir,
}

impl Killed {
    fn child(&self, key: &str, now: i64) -> Child {
        let arguments = format!(
            "{}\n{}\n{}\n{}\n{key}\n{now}",
            fault_module().display(),
            self.token.label(),
            self.token.pin_file().display(),
            self.folder.path().display()
        );
        Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "keyring::rotation_tests::rotation_child",
                "--nocapture",
            ])
            .env(CHILD, arguments)
            .env(self.token.env().0, self.token.env().1)
            .env("PKCS11_FAULT_MODULE", self.token.module())
            .env("PKCS11_FAULT_CONTROL", self.folder.path().join("control"))
            .env("PKCS11_FAULT_LOG", self.folder.path().join("log"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn control(&self, command: &str) {
        let aside = self.folder.path().join("control.new");
        fs::write(&aside, command).unwrap();
        fs::rename(&aside, self.folder.path().join("control")).unwrap();
    }

    fn hangs(&self) -> usize {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let hang = |line: &&str| line.contains("fault hang ") && !line.ends_with(" over");
        log.lines().filter(hang).count()
    }

    /// Runs a child to its end: latest version of `kek` and of `sig`, private keys on the token.
    fn finish(&self, key: &str, now: i64) -> [u32; 3] {
        self.control("");
        let mut child = self.child(key, now);
        drop(child.stdin.take());
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said: Vec<_> = lines.map_while(Result::ok).collect();
        assert!(child.wait().unwrap().success(), "{said:#?}");
        let end = said
            .iter()
            .find_map(|line| line.strip_prefix("end "))
            .expect("an end");
        let numbers: Vec<_> = end.split(' ').map(|n| n.parse().unwrap()).collect();
        numbers.try_into().unwrap()
    }

    /// Starts a child, lets it rotate, and kills it when it is about to call the last of these
    /// functions, each after the one before it.
    fn kill_before(&self, key: &str, now: i64, functions: &[&str]) {
        self.control("");
        let mut child = self.child(key, now);
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut lines = output.lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains("ready")));
        let before = self.hangs();
        self.control(&format!("hang {}", functions[0]));
        drop(child.stdin.take());
        for (at, function) in functions.iter().enumerate() {
            if at > 0 {
                self.control(&format!("hang {function}"));
            }
            let started = Instant::now();
            while self.hangs() < before + at + 1 {
                assert!(
                    started.elapsed() < Duration::from_mins(1),
                    "{functions:?}: {function} is not called"
                );
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

fn fault_module() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    tests
        .parent()
        .unwrap()
        .join("libstrongroom_pkcs11_fault.so")
}

#[test]
fn with_the_token_away_no_change_is_begun() {
    let killed = Killed {
        token: Throwaway::new().unwrap(),
        folder: tempfile::tempdir().unwrap(),
    };
    let now = 1_900_000_000;
    killed.finish("kek", now);
    let log = || fs::read_to_string(killed.folder.path().join("audit.log")).unwrap();
    assert!(!log().contains("auto-rotate"), "{}", log());
    let mut child = killed.child("kek", now + 91 * DAY);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut lines = lines.map_while(Result::ok);
    assert!(lines.any(|line| line.contains("ready")));
    killed.control("token-absent");
    drop(child.stdin.take());
    let said: Vec<_> = lines.collect();
    assert!(child.wait().unwrap().success(), "{said:#?}");
    let away = said.iter().find(|line| line.starts_with("away "));
    let away = away.expect("what came of it");
    assert!(
        away.starts_with("away false Err(Hsm(Unavailable("),
        "{away}"
    );
    assert!(away.contains("(\"kek\", Err(Hsm(Unavailable("), "{away}");
    let intent = "\"type\":\"intent\"";
    assert!(!log().contains(intent), "{}", log());
    // Once, when the token is back.
    assert_eq!(killed.finish("kek", now + 91 * DAY), [2, 1, 1]);
    assert_eq!(log().matches(intent).count(), 1, "{}", log());
}

#[tokio::test]
async fn without_an_audit_log_no_change_is_begun() {
    let (site, keyring) = Site::new(KeyringOptions::default()).await;
    keyring
        .create(named("kek"), CreateOptions::default())
        .await
        .unwrap();
    keyring.configure(named("kek"), period(90)).await.unwrap();
    drop(keyring);
    CLOCK.store(unix_seconds() + 91 * DAY, Ordering::Relaxed);
    let store = Arc::new(site.store().await);
    let mut keyring = Keyring::open(store, site.hsm.clone(), KeyringOptions::default())
        .await
        .unwrap();
    use_simulated_clock(&mut keyring);
    let due = keyring.rotate_due().await;
    assert!(
        matches!(&due[..], [(_, Err(KeyringError::System(_)))]),
        "{due:?}"
    );
    assert_eq!(keyring.read(named("kek")).unwrap().latest_version, 1);
}

/// Before each call that changes the token, and with it before and after each of the store's
/// commits.
#[test]
fn killed_at_each_write_a_scheduled_rotation_happens_once() {
    let killed = Killed {
        token: Throwaway::new().unwrap(),
        folder: tempfile::tempdir().unwrap(),
    };
    let mut now = 1_900_000_000;
    let [mut kek, mut sig, objects] = killed.finish("kek", now);
    assert_eq!([kek, sig, objects], [1, 1, 1]);
    let moments: [(&str, &[&str]); 13] = [
        ("kek", &["C_GenerateKey"]),
        ("kek", &["C_WrapKey"]),
        ("kek", &["C_WrapKey", "C_UnwrapKey"]),
        ("kek", &["C_WrapKey", "C_DestroyObject"]),
        ("kek", &["C_WrapKey", "C_GenerateKey"]),
        // Records are on the disk, the token is not told.
        ("kek", &["C_WrapKey", "C_CreateObject"]),
        ("kek", &["C_WrapKey", "C_CreateObject", "C_DestroyObject"]),
        // Debris is on the disk; then the private key is on the token; then the version is on the
        // disk.
        ("sig", &["C_GenerateKeyPair"]),
        ("sig", &["C_GenerateKeyPair", "C_DestroyObject"]),
        ("sig", &["C_GenerateKeyPair", "C_SignInit"]),
        ("sig", &["C_SignInit", "C_EncryptInit"]),
        ("sig", &["C_SignInit", "C_CreateObject"]),
        ("sig", &["C_SignInit", "C_CreateObject", "C_DestroyObject"]),
    ];
    for (key, functions) in moments {
        now += 91 * DAY;
        killed.kill_before(key, now, functions);
        if key == "kek" {
            kek += 1;
        } else {
            sig += 1;
        }
        for _ in 0..2 {
            let found = killed.finish(key, now);
            assert_eq!(found, [kek, sig, sig], "{key} killed before {functions:?}");
        }
    }
}

/// One pseudo-random number after the other (Numerical Recipes' constants): the same run each time.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Five years in steps of ten minutes, with outages of minutes and of weeks, restarts, and
/// rewrapped ciphertexts whose old versions are destroyed.
#[tokio::test]
async fn five_years_of_rotations_outages_and_restarts() {
    let (site, mut keyring) = Site::new(KeyringOptions::default()).await;
    let start = 1_900_000_000;
    CLOCK.store(start, Ordering::Relaxed);
    use_simulated_clock(&mut keyring);
    let keys = [("quarterly", 90), ("monthly", 30), ("tokens", 90)];
    for (name, days) in keys {
        let options = if name == "tokens" {
            signing()
        } else {
            CreateOptions::default()
        };
        keyring.create(named(name), options).await.unwrap();
        keyring.configure(named(name), period(days)).await.unwrap();
    }
    let mut random = Random(2026);
    let mut away_until = 0;
    let mut known: Vec<(&str, Ciphertext)> = Vec::new();
    let (mut rotations, mut alerts, mut restarts, mut destroyed) = (0, 0, 0, 0);
    let mut due_since: HashMap<KeyName, i64> = HashMap::new();
    let step = 600;
    for tick in 0..5 * 365 * DAY / step {
        let now = start + tick * step;
        CLOCK.store(now, Ordering::Relaxed);
        if random.below(4000) == 0 {
            // Ten minutes to five weeks; the longer, the rarer.
            let longest = 1 << (10 + random.below(12));
            away_until = now + i64::try_from(random.below(longest)).unwrap();
        }
        let away = now < away_until;
        if random.below(8000) == 0 && !away {
            keyring = site.restart(keyring).await;
            use_simulated_clock(&mut keyring);
            restarts += 1;
        }
        if !away {
            for (name, outcome) in keyring.rotate_due().await {
                outcome.unwrap();
                due_since.remove(&name);
                rotations += 1;
            }
        }
        let schedule = keyring.schedule();
        for key in &schedule {
            if matches!(key.verdict, Verdict::Due(_)) {
                assert!(
                    away,
                    "{} is due and was not rotated with the token there",
                    key.name
                );
                let since = *due_since.entry(key.name.clone()).or_insert(now);
                let skipped = key.verdict.is_skipped();
                alerts += u32::from(skipped);
                assert!(
                    skipped || now - since < MAX_ROTATION_DELAY + step,
                    "{} is overdue without an alert",
                    key.name
                );
            }
        }
        for (name, days) in keys {
            let info = keyring.read(named(name)).unwrap();
            let age = now - info.versions.last().unwrap().created;
            let alert = schedule
                .iter()
                .any(|key| *key.name == *name && key.verdict.is_skipped());
            assert!(
                age <= i64::try_from(days).unwrap() * DAY || alert,
                "{name} is {age} s old without an alert"
            );
        }
        if away || tick % (7 * DAY / step) != 0 {
            continue;
        }
        // Each week something is encrypted; each quarter everything is rewrapped and what no
        // ciphertext needs is destroyed.
        for name in ["quarterly", "monthly"] {
            known.push((name, seal(&keyring, name, b"").await.unwrap()));
        }
        if tick % (91 * DAY / step) == 0 {
            for (name, ciphertext) in &mut known {
                let item = DecryptItem {
                    ciphertext: ciphertext.clone(),
                    associated_data: b"ad".to_vec(),
                    context: Vec::new(),
                };
                *ciphertext = keyring
                    .rewrap(named(name), vec![item], None)
                    .await
                    .unwrap()
                    .pop()
                    .unwrap()
                    .unwrap();
            }
            for name in ["quarterly", "monthly"] {
                let oldest = known
                    .iter()
                    .filter(|(of, _)| *of == name)
                    .map(|(_, c)| c.version)
                    .min()
                    .unwrap();
                let least = ConfigChange {
                    min_decryption_version: Some(oldest),
                    min_encryption_version: Some(oldest),
                    ..ConfigChange::default()
                };
                destroyed += keyring
                    .read(named(name))
                    .unwrap()
                    .versions
                    .iter()
                    .filter(|v| v.version < oldest)
                    .count();
                keyring.configure(named(name), least).await.unwrap();
                keyring.trim(named(name), oldest).await.unwrap();
            }
        }
        // All of a key's at once: most of a call is its way to the token and back.
        for name in ["quarterly", "monthly"] {
            let items = known.iter().filter(|(of, _)| *of == name);
            let items = items.map(|(_, ciphertext)| DecryptItem {
                ciphertext: ciphertext.clone(),
                associated_data: b"ad".to_vec(),
                context: Vec::new(),
            });
            for opened in keyring.decrypt(named(name), items.collect()).await.unwrap() {
                assert_eq!(*opened.unwrap(), b"secret", "{name}");
            }
        }
    }
    println!(
        "{rotations} rotations, {restarts} restarts, {alerts} steps with an alert, {destroyed} versions destroyed, {} ciphertexts",
        known.len()
    );
    assert!(rotations > 95 && restarts > 10 && alerts > 0 && destroyed > 60);
}
