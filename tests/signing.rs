//! Signing keys of the real program, under load while they rotate: nobody is refused, and who keeps
//! the public keys as long as the headers say, and no longer, never meets a token that it can't
//! check.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::format_push_string,
    reason = "tests"
)]

mod support;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{Signature, VerifyingKey};
use serde_json::{Value, json};
use strongroom_client::Client;
use support::{Appliance, Who, ask, base64, decrypt, encrypt, expect};

const JWKS: &str = "/.well-known/jwks.json";
/// Clients at once, each with a connection of its own.
const CONNECTIONS: usize = 64;
const ROTATIONS: u64 = 20;
/// A token is checked once when it is made, and once this much later; it is valid for three
/// seconds.
const LATER: Duration = Duration::from_millis(1800);

/// A verifier that refreshes by the cache headers alone: never because a key is unknown.
struct Cache {
    until: Instant,
    keys: HashMap<String, VerifyingKey>,
}

impl Cache {
    async fn fetch(client: &Client) -> Self {
        let answer = client.send("GET", JWKS, Bytes::new()).await.unwrap();
        assert_eq!(answer.status, 200);
        let control = answer.headers["cache-control"].to_str().unwrap();
        let seconds = control.rsplit_once("max-age=").unwrap().1.parse().unwrap();
        let set: Value = answer.json().unwrap();
        let keys = set["keys"].as_array().unwrap().iter().map(|key| {
            let part = |name: &str| URL_SAFE_NO_PAD.decode(key[name].as_str().unwrap()).unwrap();
            let point = [&[4][..], &part("x"), &part("y")].concat();
            (
                key["kid"].as_str().unwrap().to_owned(),
                VerifyingKey::from_sec1_bytes(&point).unwrap(),
            )
        });
        Self {
            until: Instant::now() + Duration::from_secs(seconds),
            keys: keys.collect(),
        }
    }

    async fn check(&mut self, client: &Client, token: &str) {
        if Instant::now() >= self.until {
            *self = Self::fetch(client).await;
        }
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let header = signed.split('.').next().unwrap();
        let header: Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap();
        let kid = header["kid"].as_str().unwrap();
        let key = self
            .keys
            .get(kid)
            .unwrap_or_else(|| panic!("no key {kid} among {}", self.keys.len()));
        let signature = Signature::from_slice(&URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
        key.verify(signed.as_bytes(), &signature).unwrap();
    }
}

fn published() -> support::Builder {
    Appliance::builder().section(
        "jwt",
        "keys = [\"users\"]\naccess_token_ttl = \"3s\"\njwks_max_age = \"1s\"\npublish_before = \"2s\"\n",
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_rotations_under_load_fail_no_request_and_no_verifier() {
    let appliance = published().start().await;
    appliance
        .create_key("users", json!({ "type": "ecdsa-p256" }))
        .await;
    appliance
        .create_key("documents", json!({ "type": "ecdsa-p256" }))
        .await;
    appliance.create_key("seal", json!({})).await;
    let operator = appliance.client(Who::Operator);
    let first = encrypt(&operator, "seal", b"by version 1").await;
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let mut clients = Vec::new();
    for number in 0..CONNECTIONS {
        let client = appliance.client(Who::Operator);
        let (stop, done, first) = (stop.clone(), done.clone(), first.clone());
        clients.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                match number % 3 {
                    0 => tokens(&client, &stop, &done).await,
                    1 => sign_and_verify(&client).await,
                    _ => assert_eq!(decrypt(&client, "seal", &first).await, b"by version 1"),
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    for rotation in 1..=ROTATIONS {
        for key in ["users", "documents", "seal"] {
            expect(
                &operator,
                "POST",
                &format!("transit/keys/{key}/rotate"),
                Value::Null,
                200,
            )
            .await;
        }
        signs(&operator, rotation + 1).await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client
            .await
            .expect("a client met an answer that it must not get");
    }
    let done = done.load(Ordering::Relaxed);
    assert!(done > 1000, "only {done} rounds: no load");
    let key = expect(&operator, "GET", "transit/keys/users", Value::Null, 200).await;
    assert_eq!(key["data"]["signing_version"], ROTATIONS + 1);
    println!("{done} rounds at {CONNECTIONS} connections, {ROTATIONS} rotations of three keys");
}

/// Waits until this version of `users` signs.
async fn signs(client: &Client, version: u64) {
    let started = Instant::now();
    loop {
        let key = expect(client, "GET", "transit/keys/users", Value::Null, 200).await;
        if key["data"]["signing_version"] == version {
            return;
        }
        assert!(
            started.elapsed() < Duration::from_mins(1),
            "version {version} does not sign: {key}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn tokens(client: &Client, stop: &AtomicBool, done: &AtomicU64) {
    let mut cache = Cache::fetch(client).await;
    let mut kept: VecDeque<(Instant, String)> = VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        let body = json!({ "claims": { "sub": "alice" } });
        let answer = expect(client, "POST", "transit/jwt/users", body, 200).await;
        let token = answer["data"]["token"].as_str().unwrap().to_owned();
        cache.check(client, &token).await;
        kept.push_back((Instant::now(), token));
        while let Some((_, token)) = kept.pop_front_if(|(made, _)| made.elapsed() >= LATER) {
            cache.check(client, &token).await;
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
}

async fn sign_and_verify(client: &Client) {
    let input = base64(b"a document");
    let made = expect(
        client,
        "POST",
        "transit/sign/documents",
        json!({ "input": input }),
        200,
    )
    .await;
    let body = json!({ "input": input, "signature": made["data"]["signature"] });
    let checked = expect(client, "POST", "transit/verify/documents", body, 200).await;
    assert_eq!(checked["data"]["valid"], true);
}

#[tokio::test]
async fn signing_keys_and_what_is_published_survive_a_kill() {
    let mut appliance = published().start().await;
    appliance
        .create_key("users", json!({ "type": "ecdsa-p256" }))
        .await;
    let client = appliance.client(Who::Operator);
    let before = client.send("GET", JWKS, Bytes::new()).await.unwrap();
    let token = expect(
        &client,
        "POST",
        "transit/jwt/users",
        json!({ "claims": {} }),
        200,
    )
    .await;
    appliance.keep_port();
    appliance.kill();
    appliance.spawn();
    appliance.wait_ready().await;
    let client = appliance.client(Who::Operator);
    let after = client.send("GET", JWKS, Bytes::new()).await.unwrap();
    assert_eq!(before.bytes(), after.bytes());
    let mut cache = Cache::fetch(&client).await;
    cache
        .check(&client, token["data"]["token"].as_str().unwrap())
        .await;
    let token = expect(
        &client,
        "POST",
        "transit/jwt/users",
        json!({ "claims": {} }),
        200,
    )
    .await;
    cache
        .check(&client, token["data"]["token"].as_str().unwrap())
        .await;
}

#[tokio::test]
async fn the_state_of_a_key_is_in_metrics_and_status_and_log() {
    let appliance = published().start().await;
    appliance
        .create_key("users", json!({ "type": "ecdsa-p256" }))
        .await;
    let client = appliance.client(Who::Operator);
    let text = wait_for(
        &client,
        "strongroom_signing_key_state{key=\"users\",state=\"active\"} 1",
    )
    .await;
    assert!(text.contains("strongroom_signing_key_transitions_total{key=\"users\",from=\"loading\",to=\"active\"} 1"), "{text}");
    expect(
        &client,
        "POST",
        "transit/keys/users/rotate",
        Value::Null,
        200,
    )
    .await;
    let text = wait_for(
        &client,
        "strongroom_signing_key_state{key=\"users\",state=\"dual_active\"} 1",
    )
    .await;
    assert!(
        text.contains("strongroom_signing_key_state{key=\"users\",state=\"active\"} 0"),
        "{text}"
    );
    let status = appliance.cli(["status", "--output", "json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["signing_keys"][0]["name"], "users", "{status}");
    assert_eq!(status["signing_keys"][0]["signing_version"], 2, "{status}");
    wait_for(
        &client,
        "strongroom_signing_key_published_version{key=\"users\"} 2",
    )
    .await;
    assert!(
        appliance
            .log()
            .contains("the state of a signing key changed")
    );
    // Who may not read metrics is not told of keys.
    assert_eq!(
        ask(
            &appliance.client(Who::Stranger),
            "GET",
            "sys/lifecycle",
            Value::Null
        )
        .await
        .status,
        403
    );
}

async fn wait_for(client: &Client, line: &str) -> String {
    let started = Instant::now();
    loop {
        let answer = client.request("GET", "sys/metrics", None).await.unwrap();
        let text = String::from_utf8_lossy(answer.bytes()).into_owned();
        if text.lines().any(|found| found == line) {
            return text;
        }
        assert!(
            started.elapsed() < Duration::from_mins(1),
            "no {line} in\n{text}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
