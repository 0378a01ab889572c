//! Each alert, by its cause.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use time::OffsetDateTime;

use super::prometheus::{Prometheus, is_installed, rules};
use super::rig::Rig;
use super::support::{self, Appliance, Builder, Who, ask, expect};

/// Fires wherever the tests run: they are no system service.
const NOT_HARDENED: &str = "StrongroomNotHardened";

/// Whether the test can run; says so if not.
fn ready(test: &str) -> bool {
    if !is_installed() {
        support::skip(test, "Prometheus is not on this machine");
        return false;
    }
    true
}

fn published() -> Builder {
    Appliance::builder().section(
        "jwt",
        "keys = [\"users\"]\njwks_max_age = \"1s\"\npublish_before = \"2s\"\nkey_max_age = \"1m\"\n",
    )
}

#[test]
fn promtool_accepts_the_rules() {
    if !ready("the alert rules") {
        return;
    }
    let output = Command::new("promtool")
        .args(["check", "rules"])
        .arg(rules())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let shipped = fs::read_to_string(rules())
        .unwrap()
        .matches("- alert: ")
        .count();
    assert!(said.contains(&format!("{shipped} rules found")), "{said}");
}

/// Nothing in a request can make a handler panic, as far as is known: this one alert has no cause
/// to be made.
#[test]
fn a_panic_would_fire() {
    if !ready("the alert on panics") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let test = format!(
        "rule_files: [{:?}]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series: [{{ series: 'strongroom_panics_total{{instance=\"a\"}}', values: '0 0 1 1' }}]
    alert_rule_test:
      - {{ eval_time: 1m, alertname: StrongroomPanics, exp_alerts: [] }}
      - eval_time: 3m
        alertname: StrongroomPanics
        exp_alerts: [{{ exp_labels: {{ severity: warning, instance: a }}, exp_annotations: {{ summary: 'A handler of a panicked: a defect, please report it' }} }}]
",
        rules()
    );
    fs::write(folder.path().join("test.yml"), test).unwrap();
    let output = Command::new("promtool")
        .args(["test", "rules", "test.yml"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_appliance_fires_nothing_and_a_dead_one_is_down() {
    if !ready("alerts") {
        return;
    }
    let mut appliance = Appliance::start().await;
    appliance
        .create_key("seal", json!({ "auto_rotate_period": "720h" }))
        .await;
    let operator = appliance.client(Who::Operator);
    let prometheus = Prometheus::watch(&appliance).await;
    for _ in 0..10 {
        support::encrypt(&operator, "seal", b"x").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    prometheus.fires(NOT_HARDENED).await;
    assert_eq!(prometheus.firing().await, [NOT_HARDENED.to_owned()].into());
    appliance.kill();
    prometheus.fires("StrongroomDown").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_token_degrades_and_in_the_end_is_critical() {
    if !ready("alerts") {
        return;
    }
    let rig = Rig::start(published()).await;
    rig.create_key("users", json!({ "type": "ecdsa-p256" }))
        .await;
    rig.create_key("seal", json!({})).await;
    let prometheus = Prometheus::watch(&rig).await;
    prometheus
        .wait("strongroom_signing_key_state{state=\"active\"} == 1")
        .await;
    rig.control("token-absent");
    prometheus.fires("StrongroomHsmUnavailable").await;
    prometheus.fires("StrongroomSigningKeyDegraded").await;
    let operator = rig.client(Who::Operator);
    let load = tokio::spawn(async move {
        loop {
            ask(
                &operator,
                "POST",
                "transit/encrypt/seal",
                json!({ "plaintext": "" }),
            )
            .await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    prometheus.fires("StrongroomErrors").await;
    prometheus.fires("StrongroomSigningKeyCritical").await;
    load.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_pin_stops_it() {
    if !ready("alerts") {
        return;
    }
    let rig = Rig::start(Appliance::builder()).await;
    let prometheus = Prometheus::watch(&rig).await;
    rig.control("token-absent");
    rig.wait_health(503, Duration::from_secs(10)).await;
    rig.replace_pin("not-the-pin");
    rig.control("");
    prometheus.fires("StrongroomHsmRefused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_can_t_be_made_and_a_clock_that_was_wrong() {
    if !ready("alerts") {
        return;
    }
    let mut rig = Rig::prepare(Appliance::builder());
    let clock = rig.clock();
    for (hours, key) in [(-3, "late"), (3 * 24, "early")] {
        clock.set(hours * 60 * 60);
        rig.launch().await;
        let by_hand = json!({ "auto_rotate_period": "0" });
        rig.create_key(key, by_hand).await;
        rig.stop();
    }
    clock.set(0);
    rig.launch().await;
    let prometheus = Prometheus::watch(&rig).await;
    rig.control("fail C_GenerateKey CKR_DEVICE_MEMORY");
    for key in ["late", "early"] {
        let path = format!("transit/keys/{key}/config");
        let period = json!({ "auto_rotate_period": "1h" });
        expect(&rig.client(Who::Operator), "POST", &path, period, 200).await;
    }
    prometheus.fires("StrongroomRotationSkipped").await;
    prometheus.fires("StrongroomRotationClockBehind").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn denials_and_too_many_requests() {
    if !ready("alerts") {
        return;
    }
    let appliance = Appliance::builder()
        .section("server", "max_requests = 2")
        .start()
        .await;
    appliance.create_key("seal", json!({})).await;
    let prometheus = Prometheus::watch(&appliance).await;
    let mut load = tokio::task::JoinSet::new();
    for who in [
        Who::Stranger,
        Who::Stranger,
        Who::Operator,
        Who::Operator,
        Who::Operator,
        Who::Operator,
        Who::Operator,
        Who::Operator,
    ] {
        let client = appliance.client(who);
        load.spawn(async move {
            // Prometheus must get a word in between.
            loop {
                for _ in 0..20 {
                    ask(
                        &client,
                        "POST",
                        "transit/encrypt/seal",
                        json!({ "plaintext": "" }),
                    )
                    .await;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    prometheus.fires("StrongroomDenials").await;
    prometheus.fires("StrongroomOverloaded").await;
    load.abort_all();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_log_that_can_t_be_written() {
    if !ready("alerts") {
        return;
    }
    // A file size limit is met like a full disk, if its signal is ignored.
    let wrapper = ["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"];
    let appliance = Appliance::builder().wrapper(wrapper).start().await;
    appliance.create_key("seal", json!({})).await;
    let prometheus = Prometheus::watch(&appliance).await;
    let size = fs::metadata(appliance.audit()).unwrap().len();
    let limited = Command::new("prlimit")
        .args([
            "--pid",
            &appliance.pid().to_string(),
            &format!("--fsize={size}:"),
        ])
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(limited.success());
    let operator = appliance.client(Who::Operator);
    let load = tokio::spawn(async move {
        loop {
            let answer = ask(
                &operator,
                "POST",
                "transit/encrypt/seal",
                json!({ "plaintext": "" }),
            )
            .await;
            assert_eq!(answer.status, 503);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    prometheus.fires("StrongroomAuditFailures").await;
    load.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_file_that_somebody_cuts() {
    if !ready("alerts") {
        return;
    }
    let appliance = Appliance::builder()
        .section("audit", "checkpoint_interval = \"500ms\"")
        .start()
        .await;
    let prometheus = Prometheus::watch(&appliance).await;
    let log = appliance.audit();
    let attacker = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            fs::write(&log, "").unwrap();
        }
    });
    prometheus.fires("StrongroomAuditFileChanged").await;
    attacker.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_revocation_lists_that_end_soon() {
    if !ready("alerts") {
        return;
    }
    let appliance = Appliance::start().await;
    let prometheus = Prometheus::watch(&appliance).await;
    appliance
        .pki
        .renew_server_until(OffsetDateTime::now_utc() + Duration::from_hours(13 * 24));
    appliance
        .pki
        .end_crl(OffsetDateTime::now_utc() + Duration::from_hours(23));
    prometheus.fires("StrongroomCertificateExpires").await;
    prometheus.fires("StrongroomRevocationListExpires").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_s_certificate_that_ends_soon() {
    if !ready("alerts") {
        return;
    }
    let appliance = Appliance::start().await;
    let soon = OffsetDateTime::now_utc() + Duration::from_hours(13 * 24);
    appliance.pki.renew_client_until(Who::Vault, soon);
    let prometheus = Prometheus::watch(&appliance).await;
    let vault = appliance.client(Who::Vault);
    ask(&vault, "GET", "sys/health", json!({})).await;
    prometheus.fires("StrongroomClientCertificateExpires").await;
    let named =
        "ALERTS{alertname=\"StrongroomClientCertificateExpires\",identity=\"dns:vault.test\"} == 1";
    prometheus.wait(named).await;
}
