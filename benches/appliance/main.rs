//! `make bench`: what the appliance costs beside the token itself, and beside HTTPS itself.
//!
//! Every figure is a ratio of two things measured in turns in one run, since absolute figures do
//! not travel between machines. The token is SoftHSM2, which runs on the same two cores as the
//! server and the load: a hardware HSM changes the balance.
//!
//! | name | what it is |
//! |---|---|
//! | raw | `C_DecryptInit` and `C_Decrypt` in a loop, one thread, a session key on the same token |
//! | keyring | `Keyring::decrypt` in a loop, no network |
//! | https | `POST transit/decrypt/<key>` over mutual TLS 1.3, HTTP/1.1 keep-alive |
//! | hello | a bare hyper + rustls server with mutual TLS, request and answer of the same size |
//! | hello + `C_Decrypt` | the same, and each request is decrypted on the token by the thread that answers it: what one `C_Decrypt` a request costs without an appliance around it. No bound: these threads wait for each other at the token |
//!
//! raw, hello and hello + `C_Decrypt` have libc's allocator, as any bare program.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]

mod hello;
mod load;
mod report;
mod site;
mod tls;

#[path = "../../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use load::Load;
use report::Report;
use site::Site;

/// How many times each pair is measured; the median of the ratios is reported. Many short turns: a
/// machine's speed may change from one second to the next, and both sides of a ratio are to be
/// measured at the same.
const ROUNDS: usize = 11;
/// How long a load runs, in each round.
const TIME: Duration = Duration::from_secs(1);

/// The plaintext's size: a 256-bit key, as a seal's.
const PLAINTEXT: usize = 32;

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    match words.as_slice() {
        ["child", "raw", config] => site::raw(config.as_ref()),
        ["child", "keyring", config, batch] => {
            runtime.block_on(site::keyring(config.as_ref(), batch.parse().unwrap()));
        }
        ["child", "hello", ca, certificate, key, bytes, config @ ..] => {
            runtime.block_on(hello::serve(
                ca.as_ref(),
                certificate.as_ref(),
                key.as_ref(),
                bytes.parse().unwrap(),
                config.first().map(AsRef::as_ref),
            ));
        }
        _ => {
            let only = words.iter().position(|word| *word == "--only");
            let only = only.and_then(|at| words.get(at + 1)).copied();
            runtime.block_on(run(words.contains(&"--quick"), only));
        }
    }
}

/// `quick`: a look at whether it works, no figures to quote. `only`: the load whose name contains
/// this, to profile the server under it.
async fn run(quick: bool, only: Option<&str>) {
    let time = if quick {
        Duration::from_millis(300)
    } else {
        TIME
    };
    let rounds = if quick { 1 } else { ROUNDS };
    let mut report = Report::default();

    let mut site = Site::start().await;
    report.note(
        "start to first answer, ms",
        site.start_to_answer().await.as_secs_f64() * 1e3,
    );
    report.note("RSS idle, MiB", site.rss_mib());

    for residency in ["hsm", "memory"] {
        for batch in [1, 10, 256] {
            let body = site.decrypt_body(residency, batch).await;
            for connections in [1, 64] {
                let name = format!("{residency} batch {batch} x{connections}");
                if only.is_some_and(|only| !name.contains(only)) {
                    continue;
                }
                // It decrypts one item for each request.
                let decrypting_hello = residency == "hsm" && batch == 1;
                let mut rates = report::Pair::default();
                let mut against_raw = report::Pair::default();
                let mut cpu = report::Pair::default();
                let mut against_decrypting = report::Pair::default();
                for _ in 0..rounds {
                    // Right before ours, since the two are to be alike.
                    let decrypting = if decrypting_hello {
                        let load = site.hello(&body, batch, connections, true).await;
                        Some(load.run(time).await)
                    } else {
                        None
                    };
                    let load = site.https(residency, &body, connections);
                    let before = site.server_cpu();
                    let https = load.run(time).await;
                    let ours = site.server_cpu().saturating_sub(before);
                    let load = site.hello(&body, batch, connections, false).await;
                    let before = site.hello_cpu(batch);
                    let hello = load.run(time).await;
                    let theirs = site.hello_cpu(batch).saturating_sub(before);
                    rates.add(https.per_second, hello.per_second);
                    cpu.add(https.cpu_us(ours), hello.cpu_us(theirs));
                    if residency == "hsm" {
                        against_raw.add(https.per_second * batch as f64, site.raw_rate());
                    }
                    if let Some(decrypting) = decrypting {
                        against_decrypting.add(https.per_second, decrypting.per_second);
                    }
                    report.latency(&name, &https);
                }
                report.pair(
                    &format!("{name}: https requests/s vs hello requests/s"),
                    &rates,
                );
                report.pair(&format!("{name}: server's CPU us/request vs hello's"), &cpu);
                if residency == "hsm" {
                    report.pair(
                        &format!("{name}: https items/s vs raw C_Decrypt/s"),
                        &against_raw,
                    );
                }
                if decrypting_hello {
                    report.pair(
                        &format!("{name}: https requests/s vs hello + C_Decrypt requests/s"),
                        &against_decrypting,
                    );
                }
            }
        }
    }
    report.note("RSS after load, MiB", site.rss_mib());
    report.note("RSS peak, MiB", site.rss_peak_mib());

    site.stop();
    for batch in [1, 256] {
        let mut pair = report::Pair::default();
        for _ in 0..rounds {
            pair.add(site.keyring_rate(batch), site.raw_rate());
        }
        report.pair(
            &format!("hsm batch {batch}: keyring items/s vs raw C_Decrypt/s"),
            &pair,
        );
    }
    report.finish(only.is_none());
}

impl Site {
    fn https(&self, residency: &str, body: &Bytes, connections: usize) -> Load {
        Load {
            address: self.address(),
            tls: self.client_tls(),
            path: format!("/v1/transit/decrypt/bench-{residency}"),
            body: body.clone(),
            connections,
        }
    }

    async fn hello(
        &mut self,
        body: &Bytes,
        batch: usize,
        connections: usize,
        decrypting: bool,
    ) -> Load {
        Load {
            address: self.hello_server(batch, decrypting).await,
            tls: self.client_tls(),
            path: "/".to_owned(),
            body: body.clone(),
            connections,
        }
    }
}

/// The body of a request that decrypts these.
fn body_of(ciphertexts: &[String]) -> Bytes {
    let value = match ciphertexts {
        [one] => json!({ "ciphertext": one }),
        many => {
            json!({ "batch_input": many.iter().map(|text| json!({ "ciphertext": text })).collect::<Vec<_>>() })
        }
    };
    Bytes::from(value.to_string())
}
