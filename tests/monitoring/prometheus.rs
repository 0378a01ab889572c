//! A real Prometheus that scrapes an appliance each second, with the alert rules in haste: every
//! `for` is nothing, every window some seconds.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tempfile::TempDir;

use super::support::{Appliance, Who};

/// How long an alert may take.
const PATIENCE: Duration = Duration::from_mins(3);

/// The rules as they are shipped.
pub fn rules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring/alerts.yml")
}

/// Whether Prometheus and its tool are on this machine.
pub fn is_installed() -> bool {
    ["prometheus", "promtool"].iter().all(|program| {
        let version = Command::new(program).arg("--version").output();
        version.is_ok_and(|output| output.status.success())
    })
}

/// Stopped and removed when it is dropped.
pub struct Prometheus {
    folder: TempDir,
    address: SocketAddr,
    child: Child,
}

impl Prometheus {
    pub async fn watch(appliance: &Appliance) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("sr-prom-")
            .tempdir()
            .unwrap();
        let pki = &appliance.pki;
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}
rule_files: [alerts.yml]
scrape_configs:
  - job_name: strongroom
    scheme: https
    metrics_path: /v1/sys/metrics
    tls_config: {{ ca_file: {:?}, cert_file: {:?}, key_file: {:?} }}
    static_configs: [{{ targets: [\"localhost:{}\"] }}]
",
            pki.root(),
            pki.certificate(Who::Operator),
            pki.key(Who::Operator),
            appliance.address().port()
        );
        fs::write(folder.path().join("prometheus.yml"), config).unwrap();
        fs::write(folder.path().join("alerts.yml"), in_haste()).unwrap();
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let child = Command::new("prometheus")
            .arg("--config.file=prometheus.yml")
            .arg("--storage.tsdb.path=data")
            .arg(format!("--web.listen-address={address}"))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let prometheus = Self {
            folder,
            address,
            child,
        };
        // The appliance was scraped twice: what counters do from now on is seen.
        prometheus
            .wait("count_over_time(up{job=\"strongroom\"}[1m]) > 1")
            .await;
        prometheus
    }

    /// Waits until the query has an answer.
    pub async fn wait(&self, query: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.query(query).await.is_empty() {
            assert!(
                Instant::now() < deadline,
                "{query} has no answer: {}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until that alert fires.
    pub async fn fires(&self, alert: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let firing = self.firing().await;
            if firing.contains(alert) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{alert} does not fire, only {firing:?}: {}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The alerts that fire now.
    pub async fn firing(&self) -> BTreeSet<String> {
        let answer = self.get("/api/v1/alerts").await.unwrap_or_default();
        let alerts = answer["data"]["alerts"].as_array().into_iter().flatten();
        alerts
            .filter(|alert| alert["state"] == "firing")
            .map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned())
            .collect()
    }

    /// What an instant query answers; it must be a valid one.
    pub async fn query(&self, query: &str) -> Vec<Value> {
        let query: String = form_urlencoded::byte_serialize(query.as_bytes()).collect();
        let Some(answer) = self.get(&format!("/api/v1/query?query={query}")).await else {
            return Vec::new();
        };
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    }

    /// `None` while it does not answer yet.
    async fn get(&self, path: &str) -> Option<Value> {
        let client = Client::builder(TokioExecutor::new()).build_http::<Empty<bytes::Bytes>>();
        let uri = format!("http://{}{path}", self.address).parse().unwrap();
        let body = client
            .get(uri)
            .await
            .ok()?
            .into_body()
            .collect()
            .await
            .ok()?;
        serde_json::from_slice(&body.to_bytes()).ok()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The shipped rules, with nothing waited for.
fn in_haste() -> String {
    let rules = fs::read_to_string(rules()).unwrap();
    let lines = rules.lines().map(|line| {
        let line = if line.trim_start().starts_with("for: ") {
            ""
        } else {
            line
        };
        ["[5m]", "[10m]", "[1h]"]
            .iter()
            .fold(line.to_owned(), |line, window| {
                line.replace(window, "[20s]")
            })
    });
    lines.collect::<Vec<_>>().join("\n")
}
