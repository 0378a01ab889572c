//! The allocator that the program brings, unless it was built without it: its settings, and that
//! the PKCS#11 module uses it too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg(feature = "jemalloc")]

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
    let of_the_module: Vec<(&str, &str)> = bound
        .lines()
        .filter_map(|line| line.split_once(" to "))
        .filter(|(from, _)| {
            ["libsofthsm2.so", "libstdc++", "libcrypto"]
                .iter()
                .any(|library| from.contains(library))
        })
        .collect();
    for symbol in ["`malloc'", "`free'"] {
        let (own, others): (Vec<(&str, &str)>, Vec<_>) = of_the_module
            .iter()
            .filter(|(_, to)| to.contains(symbol))
            .partition(|(_, to)| to.contains("/strongroom "));
        assert!(
            !own.is_empty(),
            "{symbol} was never looked up by the module"
        );
        assert!(others.is_empty(), "{others:?}");
    }
}
