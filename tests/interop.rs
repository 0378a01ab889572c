//! Other people's clients against a real appliance: Vault's own seal client, a whole Vault, `hvac`,
//! `node-vault`.
//!
//! They are built by `tests/interop/build.sh`, which takes minutes the first time, so these tests
//! are ignored unless asked for: `tests/run` does, or
//! `cargo test --test interop -- --include-ignored`.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use strongroom_core::tokens::Tokens;
use support::{Appliance, Who};

/// The key that Vault's seal uses.
const KEY: &str = "vault-unseal";

#[tokio::test]
#[ignore = "needs Go"]
async fn the_seal_client_of_vault_without_a_token() {
    let Some(program) = built("seal") else { return };
    let appliance = with_key(Appliance::start().await).await;
    run(client(&appliance, &program).arg("check"));
}

#[tokio::test]
#[ignore = "needs Go"]
async fn the_seal_client_of_vault_with_a_token() {
    let Some(program) = built("seal") else { return };
    let (appliance, token) = with_token().await;
    run(client(&appliance, &program)
        .arg("check")
        .env("STRONGROOM_TOKEN", token));
}

#[test]
#[ignore = "needs Go"]
fn the_demo_seals_with_the_seal_client_of_vault() {
    let Some(program) = built("seal") else { return };
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(support::STRONGROOM)
        .args(["demo", "--output", "json"])
        .env("STRONGROOM_SEAL_CLIENT", program)
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complained}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["seal_client"], "the seal client of Vault and OpenBao");
    let left = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 0, "the demo left files behind");
}

#[test]
#[ignore = "needs Go"]
fn a_seal_client_that_fails_fails_the_demo() {
    let output = Command::new(support::STRONGROOM)
        .arg("demo")
        .env("STRONGROOM_SEAL_CLIENT", "/bin/false")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
}

/// By what `strongroom dev` prints, from nothing.
#[test]
#[ignore = "needs Go"]
fn the_seal_clients_of_vault_and_openbao_against_strongroom_dev() {
    let (Some(vault), Some(openbao)) = (built("seal"), built("seal-openbao")) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut dev = Command::new(support::STRONGROOM)
        .args(["dev", "--port", "0", "--output", "json"])
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(dev.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let told: Value = serde_json::from_str(&line).unwrap();
    for program in [vault, openbao] {
        let env = |name: &str| told["env"][name].as_str().unwrap();
        run(Command::new(program)
            .arg("check")
            .env("STRONGROOM_ADDR", env("VAULT_ADDR"))
            .env("STRONGROOM_CA", env("VAULT_CACERT"))
            .env("STRONGROOM_CERT", env("VAULT_CLIENT_CERT"))
            .env("STRONGROOM_KEY", env("VAULT_CLIENT_KEY"))
            .env("STRONGROOM_MOUNT", "transit")
            .env("STRONGROOM_KEY_NAME", KEY)
            .env_remove("STRONGROOM_TOKEN")
            .stdin(Stdio::null()));
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(dev.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(dev.wait().unwrap().success());
}

#[tokio::test]
#[ignore = "needs Go"]
async fn the_seal_client_of_openbao_without_a_token() {
    let Some(program) = built("seal-openbao") else {
        return;
    };
    let appliance = with_key(Appliance::start().await).await;
    run(client(&appliance, &program).arg("check"));
}

#[tokio::test]
#[ignore = "needs Go"]
async fn the_seal_client_of_openbao_with_a_token() {
    let Some(program) = built("seal-openbao") else {
        return;
    };
    let (appliance, token) = with_token().await;
    run(client(&appliance, &program)
        .arg("check")
        .env("STRONGROOM_TOKEN", token));
}

#[tokio::test]
#[ignore = "needs Python"]
async fn hvac_without_a_token() {
    let Some(python) = built("hvac") else { return };
    let appliance = with_key(Appliance::start().await).await;
    run(&mut hvac(&appliance, &python));
}

#[tokio::test]
#[ignore = "needs Python"]
async fn hvac_with_a_token() {
    let Some(python) = built("hvac") else { return };
    let (appliance, token) = with_token().await;
    run(hvac(&appliance, &python).env("STRONGROOM_TOKEN", token));
}

#[tokio::test]
#[ignore = "needs Node"]
async fn node_vault() {
    let Some(folder) = built("node") else { return };
    let appliance = with_key(Appliance::start().await).await;
    run(client(&appliance, Path::new("node")).arg(folder.join("transit_check.js")));
}

#[tokio::test]
#[ignore = "needs Go"]
async fn a_real_vault_through_a_year() {
    let Some(vault) = built("vault") else { return };
    let mut appliance = with_key(Appliance::start().await).await;
    let hooks = Hooks::new(&mut appliance);
    run(client(&appliance, Path::new("python3"))
        .arg(source("vault_scenario.py"))
        .env("VAULT_BIN", vault)
        .env("STRONGROOM_STOP_CMD", &hooks.stop)
        .env("STRONGROOM_START_CMD", &hooks.start));
}

async fn with_key(appliance: Appliance) -> Appliance {
    appliance.create_key(KEY, json!({})).await;
    appliance
}

/// An appliance whose policy also wants a token of the operator, and the token.
async fn with_token() -> (Appliance, String) {
    let identity = "dns:operator.test".parse().unwrap();
    let new = Tokens::new_token("interop", &identity, None).unwrap();
    let appliance = Appliance::builder().tokens(&new.entry).start().await;
    (with_key(appliance).await, new.token.as_str().to_owned())
}

/// A client with the operator's certificate and the environment that `tests/interop/README.md`
/// describes.
fn client(appliance: &Appliance, program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env("STRONGROOM_ADDR", appliance.url())
        .env("STRONGROOM_CA", appliance.pki.ca())
        .env("STRONGROOM_CERT", appliance.pki.certificate(Who::Operator))
        .env("STRONGROOM_KEY", appliance.pki.key(Who::Operator))
        .env("STRONGROOM_MOUNT", "transit")
        .env("STRONGROOM_KEY_NAME", KEY)
        .env_remove("STRONGROOM_TOKEN")
        .stdin(Stdio::null());
    command
}

fn hvac(appliance: &Appliance, python: &Path) -> Command {
    let mut command = client(appliance, python);
    // SoftHSM's OAEP knows SHA-1 only.
    command
        .arg(source("hvac/transit_check.py"))
        .env("STRONGROOM_OAEP_HASH", "SHA1");
    command
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    println!("{said}{complained}");
    assert!(
        output.status.success(),
        "{command:?} ended with {}",
        output.status
    );
}

/// What `build.sh` made of this part; `None`, counted as skipped, where a tool is missing.
fn built(part: &str) -> Option<PathBuf> {
    let output = Command::new(source("build.sh"))
        .arg(part)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let complained = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) {
        support::skip(&format!("interop with {part}"), complained.trim());
        return None;
    }
    assert!(output.status.success(), "build.sh {part}: {complained}");
    let said = String::from_utf8(output.stdout).unwrap();
    let path = said.trim().strip_prefix(part).unwrap().trim_start();
    Some(PathBuf::from(path))
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/interop")
        .join(name)
}

/// Shell commands that stop the appliance and start it again, which the scenario calls as an
/// operator would.
struct Hooks {
    stop: PathBuf,
    start: PathBuf,
}

impl Hooks {
    /// Takes the server over from the harness: from here on only the commands start and stop it.
    fn new(appliance: &mut Appliance) -> Self {
        appliance.stop();
        appliance.keep_port();
        let folder = appliance.path();
        let common = format!(
            "#!/bin/sh\nset -eu\ncd '{}'\nexport SOFTHSM2_CONF='{}'\n",
            folder.display(),
            appliance.softhsm_conf().display()
        );
        let status = format!(
            "'{}' status --addr '{}' --cacert '{}' --client-cert '{}' --client-key '{}'",
            support::STRONGROOM,
            appliance.url(),
            appliance.pki.ca().display(),
            appliance.pki.certificate(Who::Operator).display(),
            appliance.pki.key(Who::Operator).display()
        );
        let start = format!(
            "{common}setsid '{}' serve --config '{}' >>server.log 2>&1 </dev/null &\necho $! >pid\n\
             for _ in $(seq 100); do if {status} >/dev/null 2>&1; then exit 0; fi; sleep 0.1; done\n\
             echo 'the server did not answer' >&2; exit 1\n",
            support::STRONGROOM,
            appliance.config().display()
        );
        let stop = format!(
            "{common}kill \"$(cat pid)\"\nfor _ in $(seq 150); do\n\
             if ! kill -0 \"$(cat pid)\" 2>/dev/null; then exit 0; fi; sleep 0.1\ndone\n\
             echo 'the server did not stop' >&2; exit 1\n"
        );
        let hooks = Self {
            stop: script(folder, "stop", &stop),
            start: script(folder, "start", &start),
        };
        let started = Command::new(&hooks.start).status().unwrap();
        assert!(started.success(), "{}", appliance.log());
        hooks
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        let _ = Command::new(&self.stop).stderr(Stdio::null()).status();
    }
}

fn script(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(format!("{name}.sh"));
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    path
}

/// `PyJWT` and `golang-jwt`, each keeping the public keys by their cache headers alone, over twenty
/// rotations.
#[tokio::test]
#[ignore = "needs Python and Go"]
async fn pyjwt_and_golang_jwt_reject_no_token_over_twenty_rotations() {
    let (Some(python), Some(go)) = (built("pyjwt"), built("gojwt")) else {
        return;
    };
    let appliance = Appliance::builder()
        .section(
            "jwt",
            "keys = [\"users\", \"rsa\", \"ed\"]\naccess_token_ttl = \"3s\"\njwks_max_age = \"1s\"\npublish_before = \"2s\"\n",
        )
        .start()
        .await;
    for (key, kind) in [
        ("users", "ecdsa-p256"),
        ("rsa", "rsa-4096"),
        ("ed", "ed25519"),
    ] {
        appliance.create_key(key, json!({ "type": kind })).await;
    }
    let mut verifiers: Vec<_> = [
        client(&appliance, &python).arg(source("pyjwt/verify.py")),
        &mut client(&appliance, &go),
    ]
    .map(|command| {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(Stdio::piped()).spawn().unwrap()
    })
    .into();
    let operator = appliance.client(Who::Operator);
    let body = json!({ "claims": { "sub": "alice", "aud": "shop" } });
    let mut sent = 0;
    for rotation in 1..=20 {
        let path = "transit/keys/users/rotate";
        support::expect(&operator, "POST", path, Value::Null, 200).await;
        loop {
            for key in ["users", "rsa", "ed"] {
                let path = format!("transit/jwt/{key}");
                let answer = support::expect(&operator, "POST", &path, body.clone(), 200).await;
                let token = answer["data"]["token"].as_str().unwrap();
                for verifier in &mut verifiers {
                    let lines = verifier.stdin.as_mut().unwrap();
                    // At once, and near its end.
                    write!(lines, "0 {token}\n1.8 {token}\n").unwrap();
                }
                sent += 2;
            }
            let path = "transit/keys/users";
            let key = support::expect(&operator, "GET", path, Value::Null, 200).await;
            if key["data"]["signing_version"] == rotation + 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    for mut verifier in verifiers {
        drop(verifier.stdin.take());
        let output = verifier.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complained = String::from_utf8_lossy(&output.stderr);
        println!("{said}{complained}");
        assert!(output.status.success(), "{said}{complained}");
        assert!(
            said.starts_with(&format!("verified {sent}, rejected 0")),
            "{sent} were sent: {said}"
        );
    }
}
