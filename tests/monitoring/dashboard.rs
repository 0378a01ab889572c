//! The Grafana dashboard: each of its queries is one that Prometheus takes, of metrics that there
//! are.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::prometheus::{Prometheus, is_installed};
use super::support::{self, Appliance, Who, ask};

#[tokio::test(flavor = "multi_thread")]
async fn each_query_of_the_dashboard_is_valid_and_of_metrics_that_there_are() {
    if !is_installed() {
        return support::skip("the dashboard", "Prometheus is not on this machine");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring/grafana.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let appliance = Appliance::builder()
        .section("jwt", "keys = [\"users\"]\n")
        .start()
        .await;
    appliance
        .create_key("users", json!({ "type": "ecdsa-p256" }))
        .await;
    appliance.create_key("seal", json!({})).await;
    let operator = appliance.client(Who::Operator);
    let batch = json!({ "batch_input": [{ "plaintext": "" }] });
    ask(&operator, "POST", "transit/encrypt/seal", batch).await;
    ask(
        &appliance.client(Who::Stranger),
        "POST",
        "transit/encrypt/seal",
        json!({ "plaintext": "" }),
    )
    .await;
    let prometheus = Prometheus::watch(&appliance).await;

    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10);
    for panel in panels {
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            let query = query
                .replace("$instance", ".*")
                .replace("$__rate_interval", "10s");
            // Some metrics have a label that comes with the first request.
            prometheus.wait(&query).await;
        }
    }
}
