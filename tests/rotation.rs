//! A rotation by schedule that the token's absence spans, on the real program whose time of day is
//! moved.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

#[allow(dead_code, reason = "the recovery tests use all of it")]
#[path = "recovery/rig.rs"]
mod rig;

use std::time::{Duration, Instant};

use rig::Rig;
use serde_json::{Value, json};
use strongroom_client::Client;
use support::{Appliance, Who, ask, expect};

#[tokio::test]
async fn an_outage_that_spans_a_rotation_is_seen_and_caught_up_within_a_minute() {
    let mut rig = Rig::prepare(Appliance::builder());
    let clock = rig.clock();
    rig.launch().await;
    for (name, kind) in [("kek", "aes256-gcm96"), ("sig", "ecdsa-p256")] {
        let options = json!({ "type": kind, "auto_rotate_period": "1h" });
        rig.create_key(name, options).await;
    }
    let client = rig.client(Who::Operator);
    assert_eq!(metric(&client, "strongroom_rotations_skipped").await, 0);

    rig.control("token-absent");
    rig.wait_health(503, Duration::from_secs(30)).await;
    clock.set(3 * 60 * 60);
    wait(async || metric(&client, "strongroom_rotations_skipped").await == 2).await;
    let status = rig.cli(["status", "--output", "json"]);
    let said: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(said["rotations_skipped"], 2, "{said}");
    assert_eq!(
        [latest(&client, "kek").await, latest(&client, "sig").await],
        [1, 1]
    );

    rig.control("");
    rig.wait_health(200, Duration::from_secs(30)).await;
    wait(async || [latest(&client, "kek").await, latest(&client, "sig").await] == [2, 2]).await;
    // Longer than the schedule is looked at: it was made up for once.
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(
        [latest(&client, "kek").await, latest(&client, "sig").await],
        [2, 2]
    );
    assert_eq!(metric(&client, "strongroom_rotations_skipped").await, 0);
}

/// Within the minute that is promised.
async fn wait(mut done: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !done().await {
        assert!(
            started.elapsed() < Duration::from_mins(1),
            "not within a minute"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn latest(client: &Client, key: &str) -> u64 {
    let path = format!("transit/keys/{key}");
    let key = expect(client, "GET", &path, Value::Null, 200).await;
    key["data"]["latest_version"].as_u64().unwrap()
}

async fn metric(client: &Client, name: &str) -> i64 {
    let answer = ask(client, "GET", "sys/metrics", Value::Null).await;
    let text = String::from_utf8_lossy(answer.bytes()).into_owned();
    let mut values = text
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    values
        .next()
        .unwrap_or_else(|| panic!("no {name} in {text}"))
}
