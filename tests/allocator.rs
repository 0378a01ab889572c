//! The allocator that the program brings: its settings, and that the PKCS#11 module uses it too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;

use support::{Appliance, STRONGROOM, Who, decrypt, encrypt};

#[test]
fn the_allocator_has_the_settings_of_the_build() {
    // It tells them at the end of any process that asks.
    let output = std::process::Command::new(STRONGROOM)
        .arg("--version")
        .env("MALLOC_CONF", "stats_print:true")
        .output()
        .unwrap();
    assert!(output.status.success());
    let told = String::from_utf8(output.stderr).unwrap();
    for setting in [
        "opt.narenas: 2",
        "opt.dirty_decay_ms: 1000",
        "opt.muzzy_decay_ms: 0",
        "opt.retain: false",
    ] {
        assert!(told.contains(setting), "{setting}:\n{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pkcs11_module_has_its_memory_from_the_same_allocator() {
    let mut appliance = Appliance::start().await;
    appliance.stop();
    // ld.so(8) writes down which file each symbol was found in.
    let bindings = appliance.path().join("bindings");
    appliance.set_env("LD_DEBUG", "bindings");
    appliance.set_env("LD_DEBUG_OUTPUT", &bindings);
    appliance.launch().await;
    appliance.create_key("app-k", serde_json::json!({})).await;
    let client = appliance.client(Who::Operator);
    let sealed = encrypt(&client, "app-k", b"hello").await;
    assert_eq!(decrypt(&client, "app-k", &sealed).await, b"hello");

    let file = format!("{}.{}", bindings.display(), appliance.pid());
    let bound = fs::read_to_string(file).unwrap();
    let from = |line: &str| {
        line.contains("libsofthsm2.so") || line.contains("libstdc++") || line.contains("libcrypto")
    };
    for symbol in ["`malloc'", "`free'"] {
        let (mut own, mut others) = (0, Vec::new());
        for line in bound.lines() {
            let Some((binding, to)) = line.split_once(" to ") else {
                continue;
            };
            if from(binding) && line.contains(symbol) {
                if to.contains("/strongroom ") {
                    own += 1;
                } else {
                    others.push(line);
                }
            }
        }
        assert!(own > 0, "{symbol} was never looked up by the module");
        assert!(others.is_empty(), "{others:?}");
    }
}
