//! The server is told to stop, or to read its files again, while something else is under way.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::process::{copy_folder, file_size_limit};
use crate::rig::Rig;
use crate::support::{Appliance, Who, ask, encrypt};

/// Waits until the server's own log has that text behind that length.
async fn wait_said(appliance: &Appliance, from: usize, text: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !appliance.log()[from..].contains(text) {
        assert!(Instant::now() < deadline, "{text}:\n{}", appliance.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The audit log's whole lines of that operation on that key.
fn of_it(appliance: &Appliance, operation: &str, key: &str) -> Vec<Value> {
    let log = fs::read_to_string(appliance.audit()).unwrap();
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    lines
        .filter(|line: &Value| line["operation"] == operation && line["key"] == key)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_nobody_waits_for_has_its_outcome_before_the_end_of_the_log() {
    let mut rig = Rig::start(Appliance::builder()).await;
    // An old copy of the store: the first encryption has the key rotated, which no request asked
    // for.
    for key in ["fenced", "asked"] {
        rig.create_key(key, json!({})).await;
    }
    assert_eq!(rig.stop(), Some(0), "{}", rig.log());
    let copy = rig.path().join("copy");
    copy_folder(&rig.store(), &copy);
    rig.launch().await;
    rig.create_key("newer", json!({})).await;
    assert_eq!(rig.stop(), Some(0), "{}", rig.log());
    fs::rename(rig.store(), rig.path().join("newer")).unwrap();
    fs::rename(&copy, rig.store()).unwrap();
    let accepted = rig.cli(["store", "accept-rollback", "--yes"]);
    assert!(accepted.status.success(), "{accepted:?}");

    rig.launch().await;
    rig.control("slow C_WrapKey 200");
    for (operation, key, path, body) in [
        (
            "auto-rotate",
            "fenced",
            "transit/encrypt/fenced",
            json!({ "plaintext": "eA==" }),
        ),
        ("rotate", "asked", "transit/keys/asked/rotate", json!({})),
    ] {
        let client = rig.client(Who::Operator);
        let asked = tokio::spawn(async move { ask(&client, "POST", path, body).await });
        // Begun, and not done.
        let begun = || !of_it(&rig, operation, key).is_empty();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !begun() {
            assert!(
                Instant::now() < deadline,
                "{key} is not begun: {:#?}",
                of_it(&rig, operation, key)
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The client goes away.
        asked.abort();
        assert!(
            asked.await.is_err(),
            "it was answered: nothing was under way"
        );
    }
    rig.signal(Signal::SIGTERM);
    assert_eq!(rig.wait_exit(), Some(0), "{}", rig.log());

    for (operation, key) in [("auto-rotate", "fenced"), ("rotate", "asked")] {
        let of_it = of_it(&rig, operation, key);
        let [intent, outcome] = &of_it[..] else {
            panic!("not one intent and one outcome: {of_it:#?}");
        };
        assert_eq!(intent["type"], "intent");
        assert_eq!(outcome["intent"], intent["seq"]);
        assert_eq!(outcome["outcome"], "ok");
    }
    let public = rig.cli(["audit", "public-key"]);
    let key = rig.path().join("audit.pem");
    fs::write(&key, public.stdout).unwrap();
    let (audit, key) = (rig.audit(), key.to_str().unwrap().to_owned());
    let audit = audit.to_str().unwrap();
    let verified = rig.cli(["audit", "verify", audit, "--public-key", &key, "--complete"]);
    assert!(verified.status.success(), "{verified:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_that_waits_for_the_log_keeps_no_signal_from_being_heard() {
    // Without the trap the signal of an exceeded file size would end the server.
    let wrapper = ["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"];
    let mut appliance = Appliance::builder().wrapper(wrapper).start().await;
    appliance.create_key("seal", json!({})).await;
    // The limit below is meant for the audit log: the server's own must be smaller by far.
    let client = appliance.client(Who::Operator);
    for _ in 0..100 {
        encrypt(&client, "seal", b"x").await;
    }
    let waits = "the reload is not in the audit log";

    for and_then in [Signal::SIGTERM, Signal::SIGINT] {
        let full = fs::metadata(appliance.audit()).unwrap().len() + 40;
        file_size_limit(appliance.pid(), &full.to_string());
        let from = appliance.log().len();
        appliance.signal(Signal::SIGHUP);
        wait_said(&appliance, from, waits).await;
        appliance.signal(Signal::SIGUSR1);
        wait_said(&appliance, from, "opened again").await;
        let told = Instant::now();
        appliance.signal(and_then);
        appliance.wait_exit();
        let took = told.elapsed();
        assert!(
            took < Duration::from_secs(9),
            "{took:?}: {}",
            appliance.log()
        );
        appliance.launch().await;
    }

    // With room again, what was read comes into force.
    let full = fs::metadata(appliance.audit()).unwrap().len() + 40;
    file_size_limit(appliance.pid(), &full.to_string());
    let from = appliance.log().len();
    appliance.signal(Signal::SIGHUP);
    wait_said(&appliance, from, waits).await;
    file_size_limit(appliance.pid(), "unlimited");
    wait_said(&appliance, from, "reloaded").await;
    assert_eq!(appliance.stop(), Some(0), "{}", appliance.log());
}
