//! The pool's rate against a bare loop on the same token. Ratios travel between machines, absolute
//! numbers do not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::await_holding_lock, reason = "the only test here")]

mod common;

use std::sync::Arc;
use std::time::Instant;

use common::{config, token, turn};
use strongroom_hsm::bench::RawDecryption;
use strongroom_hsm::{GcmItem, Hsm, KeyUsage, MasterKind};
use zeroize::Zeroizing;

/// `cargo test --release -p strongroom-hsm --test rate -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "a measurement, for an idle machine"]
async fn a_batch_runs_at_the_raw_rate() {
    const BATCH: usize = 256;
    const ROUNDS: usize = 40;
    let _turn = turn();
    let config = config(token());
    let hsm = Hsm::start(config.clone()).unwrap();
    let key = Arc::new(
        hsm.generate_key(KeyUsage::Aead, MasterKind::Hsm)
            .await
            .unwrap(),
    );
    let item = |data: &[u8]| GcmItem {
        key: Arc::clone(&key),
        iv: [7; 12],
        aad: vec![],
        data: Zeroizing::new(data.to_vec()),
    };
    let sealed = hsm
        .encrypt(vec![item(&[1; 32])])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    let mut best: f64 = 0.0;
    for _ in 0..5 {
        let count = u32::try_from(BATCH * ROUNDS).unwrap();
        let mut one = RawDecryption::start(&config, 32).unwrap();
        let raw = one.time(count).unwrap();
        one.stop();
        let started = Instant::now();
        for _ in 0..ROUNDS {
            let items = (0..BATCH).map(|_| item(&sealed)).collect();
            assert!(hsm.decrypt(items).await.unwrap().iter().all(Result::is_ok));
        }
        let batch = started.elapsed();
        let started = Instant::now();
        for _ in 0..BATCH * 4 {
            hsm.decrypt(vec![item(&sealed)]).await.unwrap();
        }
        let single = started.elapsed();
        let mut tasks = Vec::new();
        let started64 = Instant::now();
        for _ in 0..64 {
            let (hsm, sealed, key) = (hsm.clone(), sealed.clone(), Arc::clone(&key));
            tasks.push(tokio::spawn(async move {
                for _ in 0..64 {
                    let item = GcmItem {
                        key: Arc::clone(&key),
                        iv: [7; 12],
                        aad: vec![],
                        data: Zeroizing::new(sealed.clone()),
                    };
                    hsm.decrypt(vec![item]).await.unwrap();
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let concurrent = started64.elapsed() / 4096;
        let ratio = raw.as_secs_f64() / batch.as_secs_f64();
        println!(
            "raw {:?}/op, batch of {BATCH} {:?}/op: {ratio:.3} of the raw rate; single {:?}/op; 64 at once {concurrent:?}/op",
            raw / count,
            batch / count,
            single / u32::try_from(BATCH * 4).unwrap(),
        );
        best = best.max(ratio);
    }
    assert!(best >= 0.9, "{best}");
}
