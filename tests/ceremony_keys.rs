//! Participants' keys and plans by the command line: `ceremony custodian new`, `plan`, `sign`; and
//! key files and shares read by somebody else's code.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use strongroom_ceremony::participant::{Participant, ParticipantKey};
use strongroom_ceremony::{Plan, PlanSignature, jwe};
use strongroom_softhsm::Throwaway;
use tempfile::TempDir;
use zeroize::Zeroizing;

const PASSPHRASE: &str = "vivid orbit cactus";

struct Desk {
    folder: TempDir,
    token: Option<Throwaway>,
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("passphrase"), format!("{PASSPHRASE}\n")).unwrap();
        Self {
            folder,
            token: None,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(support::STRONGROOM);
        command
            .args(["--output", "json", "ceremony"])
            .args(arguments)
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        if let Some(token) = &self.token {
            let (name, value) = token.env();
            command.env(name, value);
        }
        command.output().unwrap()
    }

    fn done(&self, arguments: &[&str]) -> Value {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        error["error"]["message"].as_str().unwrap().to_owned()
    }

    fn person(&self, name: &str, file: &str) -> Value {
        self.done(&[
            "custodian",
            "new",
            "--name",
            name,
            "--out",
            file,
            "--passphrase-file",
            "passphrase",
        ])
    }
}

/// Options of `ceremony plan`, and more.
fn plan(more: &[&str]) -> Vec<String> {
    let mut arguments = [
        "plan",
        "--out",
        "plan.toml",
        "--name",
        "vault-keys-1",
        "--module",
        "/usr/lib/softhsm/libsofthsm2.so",
        "--threshold",
        "2",
        "--custodian",
        "a.pub",
        "--custodian",
        "b.pub",
        "--security-officer",
        "so.pub",
        "--auditor",
        "au.pub",
        "--host",
        "keys.example",
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    arguments
}

fn borrowed(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

fn load(path: &Path) -> ParticipantKey {
    ParticipantKey::load(path, &mut |_| Ok(Zeroizing::new(PASSPHRASE.to_owned()))).unwrap()
}

#[test]
fn a_plan_is_made_and_signed_by_all() {
    let desk = Desk::new();
    for (name, file) in [("Alice", "a"), ("Bob", "b"), ("Sam", "so"), ("Ada", "au")] {
        let made = desk.person(name, file);
        let mode = fs::metadata(desk.path(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let public = Participant::load(&desk.path(&format!("{file}.pub"))).unwrap();
        assert_eq!(made["fingerprint"], public.fingerprint());
    }
    let made = desk.done(&borrowed(&plan(&["--memory-master", "--serial", "0123"])));
    let read = Plan::load(&desk.path("plan.toml")).unwrap();
    assert_eq!(made["sha256"], read.hash_hex());
    assert_eq!(read.token.label, "vault-keys-1");
    // One that is there may have been signed: it is left as it is.
    desk.refused(&borrowed(&plan(&[])));

    for (count, file) in (1..).zip(["au", "a", "so", "b"]) {
        let sign = [
            "sign",
            "plan.toml",
            "--key",
            file,
            "--passphrase-file",
            "passphrase",
        ];
        let signed = desk.done(&sign);
        assert_eq!(
            (&signed["signed"], &signed["participants"]),
            (&count.into(), &4.into())
        );
        assert!(desk.refused(&sign).contains("signed already"));
    }
    let signatures = PlanSignature::load_all(&desk.path("plan.toml")).unwrap();
    read.check_signatures(&signatures).unwrap();

    desk.person("Mallory", "m");
    let error = desk.refused(&[
        "sign",
        "plan.toml",
        "--key",
        "m",
        "--passphrase-file",
        "passphrase",
    ]);
    assert!(error.contains("not in the plan"), "{error}");
}

#[test]
fn what_a_person_does_wrong_is_said() {
    let desk = Desk::new();
    for (name, file) in [("Alice", "a"), ("Bob", "b"), ("Sam", "so"), ("Ada", "au")] {
        desk.person(name, file);
    }
    let new = |name: &str, file: &str, passphrase: &str| {
        desk.refused(&[
            "custodian",
            "new",
            "--name",
            name,
            "--out",
            file,
            "--passphrase-file",
            passphrase,
        ])
    };
    fs::write(desk.path("short"), "eleven char\n").unwrap();
    assert!(new("Carl", "c", "short").contains("at least 12 characters"));
    assert!(new("Ca\nrl", "c", "passphrase").contains("name"));
    assert!(new("Carl", "a", "passphrase").contains("can't be written"));
    assert!(!desk.path("c").exists() && !desk.path("c.pub").exists());
    // No terminal, no passphrase; and there is no option that takes one.
    let error = Command::new("setsid")
        .arg(support::STRONGROOM)
        .args(["ceremony", "custodian", "new", "--name", "Carl", "--out"])
        .arg(desk.path("c"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(error.status.code(), Some(2), "{error:?}");
    assert!(String::from_utf8_lossy(&error.stderr).contains("--passphrase-file"));

    let error = desk.refused(&borrowed(&plan(&[
        "--custodian",
        "a.pub",
        "--host",
        "not a host",
    ])));
    assert!(
        error.contains("custodian 1 too") && error.contains("not a host"),
        "{error}"
    );
    assert!(!desk.path("plan.toml").exists());

    desk.done(&borrowed(&plan(&[])));
    fs::write(desk.path("wrong"), "another passphrase").unwrap();
    let error = desk.refused(&[
        "sign",
        "plan.toml",
        "--key",
        "a",
        "--passphrase-file",
        "wrong",
    ]);
    assert!(error.contains("does not open"), "{error}");
    assert!(!desk.path("plan.toml.signatures").exists());
}

#[test]
fn a_custodians_keys_are_on_a_token_of_his_own() {
    let mut desk = Desk::new();
    let token = match Throwaway::new() {
        Ok(token) => token,
        Err(error) => return support::skip("keys on a token", &error.to_string()),
    };
    let module = token.module().to_str().unwrap().to_owned();
    let label = token.label().to_owned();
    let pin = token.pin_file().to_str().unwrap().to_owned();
    desk.token = Some(token);
    desk.done(&[
        "custodian",
        "new",
        "--name",
        "Alice",
        "--out",
        "a",
        "--pkcs11-module",
        &module,
        "--token-label",
        &label,
        "--pin-file",
        &pin,
    ]);
    let reference = fs::read_to_string(desk.path("a")).unwrap();
    assert!(reference.contains("key_id") && !reference.contains("PRIVATE"));
    for (name, file) in [("Bob", "b"), ("Sam", "so"), ("Ada", "au")] {
        desk.person(name, file);
    }
    desk.done(&borrowed(&plan(&[])));
    let signed = desk.done(&["sign", "plan.toml", "--key", "a", "--pin-file", &pin]);
    assert_eq!(signed["name"], "Alice");
    // A file that is in the way is found before keys are made that nothing would refer to.
    let error = desk.refused(&[
        "custodian",
        "new",
        "--name",
        "Alice",
        "--out",
        "a",
        "--pkcs11-module",
        &module,
        "--token-label",
        &label,
        "--pin-file",
        &pin,
    ]);
    assert!(error.contains("can't be written"), "{error}");
    let error = desk.refused(&[
        "custodian",
        "new",
        "--name",
        "Alice",
        "--out",
        "x",
        "--pkcs11-module",
        &module,
    ]);
    assert!(error.contains("--token-label"), "{error}");
}

#[test]
fn other_code_reads_key_files_and_shares() {
    let Some(python) = support::cryptography() else {
        return;
    };
    let desk = Desk::new();
    desk.person("Alice", "a");
    let key = load(&desk.path("a"));
    let other = |arguments: &[&str]| {
        let output = Command::new(&python)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/cryptography/jwe.py"))
            .args(arguments)
            .current_dir(desk.folder.path())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    fs::write(
        desk.path("jwe"),
        jwe::seal(b"a share for Alice", key.participant()).unwrap(),
    )
    .unwrap();
    assert_eq!(
        other(&["open", "a", "passphrase", "jwe"]),
        "a share for Alice"
    );

    fs::write(desk.path("text"), "another one").unwrap();
    let sealed = other(&["seal", "a.pub", "text"]);
    assert_eq!(&**jwe::open(&sealed, &key).unwrap(), b"another one");
}
