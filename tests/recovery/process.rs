//! The server is killed, restarted, rotated under load, given an old store, or an audit log that
//! can't be written.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use strongroom_client::Client;

use crate::load::{Load, What, flaw_of_503};
use crate::support::{Appliance, Who, ask, base64, decrypt, encrypt, expect};

/// The documented exit code of a store that can't be used.
const STORE: i32 = 5;

/// What the server acknowledged: for each key its latest version, and a ciphertext of each version
/// that made one.
#[derive(Default)]
struct Acknowledged {
    versions: BTreeMap<String, u64>,
    ciphertexts: Vec<(String, String)>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_before_a_kill_is_there_after_it() {
    let mut appliance = Appliance::start().await;
    let acknowledged = Arc::new(Mutex::new(Acknowledged::default()));
    for round in 0..6_u64 {
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let client = appliance.client(Who::Operator);
                tokio::spawn(write_keys(
                    client,
                    format!("r{round}w{writer}"),
                    acknowledged.clone(),
                ))
            })
            .collect();
        // Each round is cut off at another moment.
        tokio::time::sleep(Duration::from_millis(300 + 97 * round)).await;
        appliance.kill();
        for writer in writers {
            writer.await.unwrap();
        }
        appliance.launch().await;

        let (versions, ciphertexts) = {
            let acknowledged = acknowledged.lock().unwrap();
            (
                acknowledged.versions.clone(),
                acknowledged.ciphertexts.clone(),
            )
        };
        let client = appliance.client(Who::Operator);
        for (key, version) in &versions {
            let read = expect(
                &client,
                "GET",
                &format!("transit/keys/{key}"),
                Value::Null,
                200,
            )
            .await;
            let latest = read["data"]["latest_version"].as_u64().unwrap();
            assert!(
                latest >= *version,
                "round {round}: {key} is at version {latest}; {version} was acknowledged"
            );
        }
        for (key, ciphertext) in &ciphertexts {
            assert_eq!(
                decrypt(&client, key, ciphertext).await,
                key.as_bytes(),
                "round {round}"
            );
        }
    }
    let acknowledged = acknowledged.lock().unwrap();
    assert!(
        acknowledged.versions.len() > 6,
        "only {} keys were made: no load",
        acknowledged.versions.len()
    );
    assert!(
        acknowledged.versions.values().any(|version| *version > 1),
        "no rotation was acknowledged"
    );
    drop(acknowledged);
    verify_audit(&mut appliance);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_everything() {
    let mut appliance = Appliance::start().await;
    let client = appliance.client(Who::Operator);
    appliance.create_key("plain", json!({})).await;
    let first = encrypt(&client, "plain", b"by version 1").await;
    expect(
        &client,
        "POST",
        "transit/keys/plain/rotate",
        Value::Null,
        200,
    )
    .await;
    let second = encrypt(&client, "plain", b"by version 2").await;
    expect(
        &client,
        "POST",
        "transit/keys/plain/config",
        json!({ "deletion_allowed": true }),
        200,
    )
    .await;
    let before = expect(&client, "GET", "transit/keys/plain", Value::Null, 200).await;

    assert_eq!(appliance.stop(), Some(0), "{}", appliance.log());
    appliance.launch().await;
    let client = appliance.client(Who::Operator);
    let after = expect(&client, "GET", "transit/keys/plain", Value::Null, 200).await;
    assert_eq!(after["data"], before["data"]);
    assert!(second.starts_with("vault:v2:"), "{second}");
    assert_eq!(decrypt(&client, "plain", &first).await, b"by version 1");
    assert_eq!(decrypt(&client, "plain", &second).await, b"by version 2");
    verify_audit(&mut appliance);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_copy_of_the_store_is_refused_until_it_is_accepted() {
    let mut appliance = Appliance::start().await;
    appliance.create_key("old", json!({})).await;
    let ciphertext = encrypt(&appliance.client(Who::Operator), "old", b"in both copies").await;
    appliance.stop();
    let backup = appliance.path().join("backup");
    copy_folder(&appliance.store(), &backup);

    appliance.launch().await;
    appliance.create_key("new", json!({})).await;
    appliance.stop();
    fs::rename(appliance.store(), appliance.path().join("newer")).unwrap();
    copy_folder(&backup, &appliance.store());

    let logged = appliance.log().len();
    appliance.spawn();
    assert_eq!(appliance.wait_exit(), Some(STORE), "{}", appliance.log());
    let said = appliance.log().split_off(logged);
    assert!(
        said.contains("rolled back") && said.contains("strongroom store accept-rollback"),
        "{said}"
    );

    let accepted = appliance.cli(["store", "accept-rollback"]);
    assert!(!accepted.status.success(), "accepted without --yes");
    let accepted = appliance.cli(["store", "accept-rollback", "--yes"]);
    assert!(
        accepted.status.success(),
        "{}",
        String::from_utf8_lossy(&accepted.stderr)
    );

    appliance.launch().await;
    let client = appliance.client(Who::Operator);
    assert_eq!(
        decrypt(&client, "old", &ciphertext).await,
        b"in both copies"
    );
    expect(&client, "GET", "transit/keys/new", Value::Null, 404).await;
    // How often version 1 encrypted after the copy was made, nobody knows.
    assert!(encrypt(&client, "old", b"x").await.starts_with("vault:v2:"));

    // The newer copy is now the one that doesn't fit.
    appliance.stop();
    fs::rename(appliance.store(), appliance.path().join("older")).unwrap();
    fs::rename(appliance.path().join("newer"), appliance.store()).unwrap();
    appliance.spawn();
    assert_eq!(appliance.wait_exit(), Some(STORE), "{}", appliance.log());

    let audit = fs::read_to_string(appliance.audit()).unwrap();
    let lines = audit.matches("accept-rollback").count();
    assert_eq!(lines, 2, "before and after: {audit}");
    verify_audit(&mut appliance);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_cannot_be_audited_are_refused() {
    // Without the trap the signal of an exceeded file size would end the server, which is no better
    // than a 503 but another matter.
    let wrapper = ["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"];
    let mut appliance = Appliance::builder().wrapper(wrapper).start().await;
    appliance.create_key("seal", json!({})).await;
    let client = appliance.client(Who::Operator);
    let ciphertext = encrypt(&client, "seal", b"audited").await;
    let body = json!({ "ciphertext": ciphertext });

    // Room for a line's beginning, not for the whole line.
    let full = fs::metadata(appliance.audit()).unwrap().len() + 40;
    file_size_limit(appliance.pid(), &full.to_string());
    for together in [1, 1, 16, 16] {
        // Lines of requests that come together are written together, and must fail together.
        let asked: Vec<_> = (0..together)
            .map(|_| {
                let (client, body) = (appliance.client(Who::Operator), body.clone());
                tokio::spawn(
                    async move { ask(&client, "POST", "transit/decrypt/seal", body).await },
                )
            })
            .collect();
        for answer in asked {
            let answer = answer.await.unwrap();
            assert_eq!(flaw_of_503(&answer), None);
            assert!(!String::from_utf8_lossy(answer.bytes()).contains(&base64(b"audited")));
        }
    }
    let answer = ask(
        &client,
        "POST",
        "transit/encrypt/seal",
        json!({ "plaintext": base64(b"x") }),
    )
    .await;
    assert_eq!(flaw_of_503(&answer), None);
    let health = client.request("GET", "sys/health", None).await.unwrap();
    assert_eq!(
        health.status.as_u16(),
        503,
        "{}",
        String::from_utf8_lossy(health.bytes())
    );
    let allowed = fs::read_to_string(appliance.audit()).unwrap();
    assert_eq!(allowed.matches("\"decrypt\"").count(), 0, "{allowed}");

    file_size_limit(appliance.pid(), "unlimited");
    let deadline = Instant::now() + Duration::from_secs(5);
    while ask(&client, "POST", "transit/decrypt/seal", body.clone())
        .await
        .status
        .as_u16()
        != 200
    {
        assert!(
            Instant::now() < deadline,
            "room on the disk again, and still no request is served:\n{}",
            appliance.log()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(decrypt(&client, "seal", &ciphertext).await, b"audited");
    appliance.stop();
    appliance.launch().await;
    verify_audit(&mut appliance);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_fails_no_request() {
    let appliance = Appliance::start().await;
    appliance.create_key("seal", json!({})).await;
    let client = appliance.client(Who::Operator);
    let first = encrypt(&client, "seal", b"by version 1").await;
    let load = Load::start(&appliance, "seal", 4).await;
    for _ in 0..20 {
        expect(
            &client,
            "POST",
            "transit/keys/seal/rotate",
            Value::Null,
            200,
        )
        .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let report = load.finish().await;
    report.assert_nothing_wrong();
    assert_eq!(report.count(&What::Away), 0, "a rotation refused requests");
    assert!(
        report.count(&What::Right) > 100,
        "only {} requests: no load",
        report.count(&What::Right)
    );
    assert_eq!(decrypt(&client, "seal", &first).await, b"by version 1");
    assert!(
        encrypt(&client, "seal", b"x")
            .await
            .starts_with("vault:v21:")
    );
}

/// Creates keys and rotates them until the server is gone, and writes down what was acknowledged.
async fn write_keys(client: Client, prefix: String, acknowledged: Arc<Mutex<Acknowledged>>) {
    for number in 0.. {
        let key = format!("{prefix}k{number}");
        for version in 1..=3 {
            let path = if version == 1 {
                format!("transit/keys/{key}")
            } else {
                format!("transit/keys/{key}/rotate")
            };
            match client.request("POST", &path, Some(&json!({}))).await {
                Err(_) => return,
                Ok(answer) => assert_eq!(
                    answer.status.as_u16(),
                    200,
                    "{}",
                    String::from_utf8_lossy(answer.bytes())
                ),
            }
            acknowledged
                .lock()
                .unwrap()
                .versions
                .insert(key.clone(), version);
            let body = json!({ "plaintext": base64(key.as_bytes()) });
            match client
                .request("POST", &format!("transit/encrypt/{key}"), Some(&body))
                .await
            {
                Err(_) => return,
                Ok(answer) => {
                    assert_eq!(
                        answer.status.as_u16(),
                        200,
                        "{}",
                        String::from_utf8_lossy(answer.bytes())
                    );
                    let ciphertext = answer.json().unwrap()["data"]["ciphertext"]
                        .as_str()
                        .unwrap()
                        .to_owned();
                    assert!(
                        ciphertext.starts_with(&format!("vault:v{version}:")),
                        "{ciphertext}"
                    );
                    acknowledged
                        .lock()
                        .unwrap()
                        .ciphertexts
                        .push((key.clone(), ciphertext));
                }
            }
        }
    }
}

/// Stops the server, if it runs, and checks its whole audit log.
pub fn verify_audit(appliance: &mut Appliance) {
    if appliance.is_running() {
        assert_eq!(appliance.stop(), Some(0), "{}", appliance.log());
    }
    let public = appliance.cli(["audit", "public-key"]);
    assert!(
        public.status.success(),
        "{}",
        String::from_utf8_lossy(&public.stderr)
    );
    let file = appliance.path().join("audit.pem");
    fs::write(&file, public.stdout).unwrap();
    let audit = appliance.audit();
    let verified = appliance.cli([
        "audit".as_ref(),
        "verify".as_ref(),
        audit.as_os_str(),
        "--public-key".as_ref(),
        file.as_os_str(),
    ]);
    assert!(
        verified.status.success(),
        "{}{}",
        String::from_utf8_lossy(&verified.stdout),
        String::from_utf8_lossy(&verified.stderr)
    );
}

/// Sets the size that no file of a running process may grow beyond, bytes.
pub fn file_size_limit(pid: u32, limit: &str) {
    let set = Command::new("prlimit")
        .arg(format!("--pid={pid}"))
        .arg(format!("--fsize={limit}:"))
        .output()
        .unwrap();
    assert!(
        set.status.success(),
        "{}",
        String::from_utf8_lossy(&set.stderr)
    );
}

pub fn copy_folder(from: &Path, to: &Path) {
    let copied = Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .output()
        .unwrap();
    assert!(
        copied.status.success(),
        "{}",
        String::from_utf8_lossy(&copied.stderr)
    );
}
