//! What comes into force while the server serves, by SIGHUP and by a changed file alone; and that
//! no connection is dropped for it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use crate::support::{Appliance, Who};
use crate::wire::{TLS13, Wire, assert_unharmed, config, until};

/// The path that each client of these tests may read, and whose requests are audited.
const KEY: &str = "/v1/transit/keys/app-k";
const SIGHUP: &str = "SIGHUP";
/// How the server hears of a change, in the words of its audit log.
const CAUSES: [&str; 2] = [SIGHUP, "a file changed"];

async fn start() -> Appliance {
    let appliance = Appliance::start().await;
    appliance.create_key("app-k", json!({})).await;
    appliance
}

fn tell(appliance: &Appliance, cause: &str) {
    if cause == SIGHUP {
        appliance.signal(Signal::SIGHUP);
    }
}

/// The reasons of the reloads of the TLS files that succeeded, oldest first.
fn reloads(appliance: &Appliance) -> Vec<String> {
    audited(appliance)
        .iter()
        .filter(|line| line["operation"] == "reload:tls" && line["outcome"] == "ok")
        .map(|line| line["reason"].as_str().unwrap().to_owned())
        .collect()
}

fn audited(appliance: &Appliance) -> Vec<Value> {
    let log = fs::read_to_string(appliance.audit()).unwrap();
    log.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// The addresses and ports from which that identity has read the key: one per TCP connection.
fn remotes(appliance: &Appliance, identity: &str) -> BTreeSet<String> {
    audited(appliance)
        .iter()
        .filter(|line| line["operation"] == "read" && line["identity"] == identity)
        .map(|line| line["remote"].as_str().unwrap().to_owned())
        .collect()
}

async fn read(wire: &mut Wire) -> u16 {
    wire.ask("GET", KEY, b"").await.unwrap().status
}

/// Whether a new connection with that certificate is served.
async fn is_let_in(appliance: &Appliance, who: Who) -> bool {
    match Wire::open(appliance, who).await {
        Ok(mut wire) => wire.ask("GET", KEY, b"").await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_crl_takes_effect_on_the_open_connection_of_whom_it_names_and_of_nobody_else() {
    for cause in CAUSES {
        let appliance = start().await;
        let mut app = Wire::open(&appliance, Who::App).await.unwrap();
        let mut operator = Wire::open(&appliance, Who::Operator).await.unwrap();
        assert_eq!(
            (read(&mut app).await, read(&mut operator).await),
            (200, 200)
        );

        appliance.pki.revoke(&[Who::Revoked, Who::App]);
        tell(&appliance, cause);
        let mut refusal = None;
        until("the refusal", async || {
            let reply = app.ask("GET", KEY, b"").await.unwrap();
            refusal = (reply.status != 200).then_some(reply);
            refusal.is_some()
        })
        .await;
        let refusal = refusal.unwrap();
        assert_eq!(refusal.status, 403);
        let denied = "1 error occurred:\n\t* permission denied\n\n";
        assert_eq!(refusal.json(), json!({ "errors": [denied] }));
        assert_eq!(refusal.header("connection"), Some("close"));
        assert!(app.is_closed().await, "{cause}");
        assert_eq!(reloads(&appliance)[0], cause);

        assert_eq!(read(&mut operator).await, 200);
        for identity in ["dns:operator.test", "spiffe://test/app/one"] {
            let remotes = remotes(&appliance, identity);
            assert_eq!(remotes.len(), 1, "{identity} came from {remotes:?}");
        }
        assert!(!is_let_in(&appliance, Who::App).await, "{cause}");
        assert_unharmed(&appliance, cause).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_revoked_is_refused_whatever_it_asks() {
    let appliance = start().await;
    let asked = [
        ("GET", "/v1/sys/health"),
        ("GET", "/v1/openapi.json"),
        ("PUT", "/v1/auth/token/renew-self"),
        ("POST", "/v1/transit/decrypt/app-k"),
        ("GET", "/v1/transit/no/such/path"),
        ("PATCH", KEY),
        ("GET", "/"),
    ];
    let mut open = Vec::new();
    for _ in asked {
        let mut wire = Wire::open(&appliance, Who::App).await.unwrap();
        assert_eq!(read(&mut wire).await, 200);
        open.push(wire);
    }
    appliance.pki.revoke(&[Who::Revoked, Who::App]);
    appliance.signal(Signal::SIGHUP);
    until("the reload", async || appliance.has_read_again()).await;
    for (mut wire, (method, path)) in open.into_iter().zip(asked) {
        let reply = wire.ask(method, path, b"").await.unwrap();
        assert_eq!(reply.status, 403, "{method} {path}");
        assert!(wire.is_closed().await, "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http_2_too_a_revoked_client_is_refused_and_its_connection_closed() {
    let appliance = start().await;
    let mut config = config(&appliance, Some(Who::App), TLS13, &default_provider());
    config.alpn_protocols = vec![b"h2".to_vec()];
    let wire = Wire::with(&appliance, config).await.unwrap();
    let io = TokioIo::new(wire.stream);
    let (mut requests, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
            .await
            .unwrap();
    let connection = tokio::spawn(connection);
    let mut ask = async || {
        let request = hyper::Request::get(format!("https://localhost{KEY}"))
            .body(Full::<Bytes>::default())
            .unwrap();
        let response = requests.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        response.into_body().collect().await.unwrap();
        status
    };
    assert_eq!(ask().await, 200);
    appliance.pki.revoke(&[Who::Revoked, Who::App]);
    appliance.signal(Signal::SIGHUP);
    until("the reload", async || appliance.has_read_again()).await;
    assert_eq!(ask().await, 403);
    let ended = tokio::time::timeout(Duration::from_secs(2), connection).await;
    assert!(ended.is_ok(), "the connection stays open");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_client_ca_bundle_lets_its_clients_in_and_the_old_one_puts_them_out_again() {
    for cause in CAUSES {
        let appliance = start().await;
        let mut before = Wire::open(&appliance, Who::App).await.unwrap();
        assert_eq!(read(&mut before).await, 200);
        assert!(!is_let_in(&appliance, Who::OtherCa).await);
        let old = fs::read(appliance.pki.ca()).unwrap();

        appliance.pki.trust_the_other_ca();
        tell(&appliance, cause);
        until("the new bundle", async || {
            is_let_in(&appliance, Who::OtherCa).await
        })
        .await;
        assert_eq!(reloads(&appliance)[0], cause);
        let mut other = Wire::open(&appliance, Who::OtherCa).await.unwrap();
        assert_eq!(read(&mut other).await, 200);

        fs::write(appliance.pki.ca(), old).unwrap();
        tell(&appliance, cause);
        until("the old bundle", async || read(&mut other).await == 403).await;
        assert!(!is_let_in(&appliance, Who::OtherCa).await);
        assert_eq!(read(&mut before).await, 200);
        assert_eq!(remotes(&appliance, "spiffe://test/app/one").len(), 1);
        assert_unharmed(&appliance, cause).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_server_certificate_is_shown_to_new_connections_and_old_ones_go_on() {
    for cause in CAUSES {
        let appliance = start().await;
        let mut before = Wire::open(&appliance, Who::App).await.unwrap();
        let old = shown(&before);
        assert_eq!(read(&mut before).await, 200);

        appliance.pki.renew_server();
        tell(&appliance, cause);
        let new = CertificateDer::from_pem_file(appliance.pki.server_certificate()).unwrap();
        assert_ne!(old, new);
        until("the new certificate", async || {
            shown(&Wire::open(&appliance, Who::App).await.unwrap()) == new
        })
        .await;
        assert_eq!(reloads(&appliance)[0], cause);
        assert_eq!(shown(&before), old);
        assert_eq!(read(&mut before).await, 200);
        assert_eq!(remotes(&appliance, "spiffe://test/app/one").len(), 1);
        assert_unharmed(&appliance, cause).await;
    }
}

fn shown(wire: &Wire) -> CertificateDer<'static> {
    wire.stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_in_the_place_of_a_file_stops_no_later_reload() {
    let appliance = start().await;
    let pki = &appliance.pki;
    for path in [pki.crl(), pki.ca(), pki.server_key(), appliance.policy()] {
        let kept = path.with_extension("kept");
        fs::rename(&path, &kept).unwrap();
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let told = || {
            audited(&appliance).iter().any(|line| {
                let reason = line["reason"].as_str().unwrap_or_default();
                line["outcome"] == "error"
                    && reason.contains(path.to_str().unwrap())
                    && reason.contains("not a regular file")
            })
        };
        tell(&appliance, SIGHUP);
        until("the refusal", async || told()).await;
        let earlier = reloads(&appliance).len();
        fs::rename(&kept, &path).unwrap();
        tell(&appliance, SIGHUP);
        until("the next reload", async || {
            reloads(&appliance).len() > earlier
        })
        .await;
        assert!(is_let_in(&appliance, Who::App).await);
        assert!(!is_let_in(&appliance, Who::Revoked).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_leaves_the_old_one_in_force() {
    let appliance = start().await;
    let mut before = Wire::open(&appliance, Who::App).await.unwrap();
    let pki = &appliance.pki;
    let crl = fs::read_to_string(pki.crl()).unwrap();
    let strangers_key = fs::read_to_string(pki.key(Who::Stranger)).unwrap();
    let broken: [(PathBuf, &str); 8] = [
        (pki.server_certificate(), "no certificate"),
        (pki.server_key(), &strangers_key),
        (pki.ca(), ""),
        (pki.crl(), ""),
        (pki.crl(), &crl[..crl.len() / 2]),
        (
            pki.crl(),
            "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
        ),
        (appliance.policy(), "[[rule]]\nidentities = 7\n"),
        (
            appliance.policy(),
            "[[rule]]\nidentities = [\"*\"]\nkeys = [\"*\"]\noperations = [\"everything\"]\n",
        ),
    ];
    // At once: a policy that is read before it is written to its end may be a policy.
    let put = |path: &Path, content: &[u8]| {
        let new = path.with_extension("new");
        fs::write(&new, content).unwrap();
        fs::set_permissions(&new, fs::metadata(path).unwrap().permissions()).unwrap();
        fs::rename(&new, path).unwrap();
    };
    for (at, (path, text)) in broken.into_iter().enumerate() {
        let good = fs::read(&path).unwrap();
        let refusals = || {
            appliance
                .log()
                .matches("the old one stays in force")
                .count()
        };
        let earlier = refusals();
        put(&path, text.as_bytes());
        tell(&appliance, CAUSES[at % 2]);
        until("the refusal", async || refusals() > earlier).await;
        assert_eq!(read(&mut before).await, 200, "{at}");
        assert!(is_let_in(&appliance, Who::Operator).await, "{at}");
        assert!(!is_let_in(&appliance, Who::Revoked).await, "{at}");
        let mut stranger = Wire::open(&appliance, Who::Stranger).await.unwrap();
        assert_eq!(read(&mut stranger).await, 403, "{at}");
        let all = audited(&appliance);
        let last = all.iter().rev().find(|line| {
            let operation = line["operation"].as_str().unwrap_or_default();
            operation.starts_with("reload:") && line["outcome"] == "error"
        });
        let reason = last.unwrap()["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains(path.to_str().unwrap()), "{reason}");
        // Without a signal, so that nothing of this file is still to come when the next one is
        // broken.
        let mended = reloads(&appliance).len();
        put(&path, &good);
        until("the mended file", async || {
            reloads(&appliance).len() > mended
        })
        .await;
    }
    assert_eq!(remotes(&appliance, "spiffe://test/app/one").len(), 1);
    assert_unharmed(&appliance, "broken files").await;
}
