//! `strongroom key rewrap-file`, `rewrap-dir` and `rewrap-postgres` against a real appliance, and a
//! real `PostgreSQL`.

#![allow(
    missing_docs,
    clippy::doc_markdown,
    clippy::format_collect,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc
)]

mod files;
mod postgres;
mod server;

#[path = "../support/mod.rs"]
mod support;

use std::process::Output;

use serde_json::{Value, json};
use support::{Appliance, Who};

/// The key of these tests.
const KEY: &str = "app-rewrap";

/// What a command printed as JSON; it must have succeeded.
fn done(output: &Output) -> Value {
    assert!(output.status.success(), "{}", said(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What a command that must fail said of it.
fn failed(output: &Output, code: i32) -> String {
    assert_eq!(
        output.status.code(),
        Some(code),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        said(output)
    );
    said(output)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// An appliance with the key, and ciphertexts of `secret 0`, `secret 1`, ... under its version 1;
/// version 2 is the latest.
async fn rotated(count: usize) -> (Appliance, Vec<String>) {
    let appliance = Appliance::start().await;
    appliance.create_key(KEY, json!({})).await;
    let ciphertexts = encrypt(&appliance, count).await;
    rotate(&appliance).await;
    (appliance, ciphertexts)
}

/// Ciphertexts of `secret 0`, `secret 1`, ... under the latest version.
async fn encrypt(appliance: &Appliance, count: usize) -> Vec<String> {
    let items: Vec<Value> = (0..count)
        .map(|number| json!({ "plaintext": support::base64(secret(number).as_bytes()) }))
        .collect();
    let client = appliance.client(Who::Operator);
    let path = format!("transit/encrypt/{KEY}");
    let answer =
        support::expect(&client, "POST", &path, json!({ "batch_input": items }), 200).await;
    answer["data"]["batch_results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["ciphertext"].as_str().unwrap().to_owned())
        .collect()
}

async fn rotate(appliance: &Appliance) {
    let path = format!("transit/keys/{KEY}/rotate");
    support::expect(
        &appliance.client(Who::Operator),
        "POST",
        &path,
        json!({}),
        200,
    )
    .await;
}

async fn min_decryption_version(appliance: &Appliance) -> Value {
    let path = format!("transit/keys/{KEY}");
    let key = support::expect(
        &appliance.client(Who::Operator),
        "GET",
        &path,
        json!({}),
        200,
    )
    .await;
    key["data"]["min_decryption_version"].clone()
}

/// Each of these decrypts to `secret <its number>`.
async fn check(appliance: &Appliance, ciphertexts: &[&str]) {
    let items: Vec<Value> = ciphertexts
        .iter()
        .map(|ciphertext| json!({ "ciphertext": ciphertext }))
        .collect();
    let client = appliance.client(Who::Operator);
    let path = format!("transit/decrypt/{KEY}");
    let answer =
        support::expect(&client, "POST", &path, json!({ "batch_input": items }), 200).await;
    for (number, item) in answer["data"]["batch_results"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
    {
        let plaintext = support::unbase64(item["plaintext"].as_str().unwrap());
        assert_eq!(plaintext, secret(number).as_bytes());
    }
}

fn secret(number: usize) -> String {
    format!("secret {number}")
}
