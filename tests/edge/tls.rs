//! Who gets a connection, and what becomes of those who don't.

use std::io;
use std::time::{Duration, Instant};

use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::{AlertDescription, NamedGroup, ProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Appliance, STRONGROOM, Who};
use crate::wire::{TLS12, TLS13, Wire, assert_unharmed, config};

const HEALTH: &[u8] = b"GET /v1/sys/health HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_good_certificate_gets_an_alert_and_no_answer() {
    let appliance = Appliance::start().await;
    for (who, versions, alert) in [
        (None, TLS13, AlertDescription::CertificateRequired),
        (Some(Who::OtherCa), TLS13, AlertDescription::UnknownCA),
        (
            Some(Who::Expired),
            TLS13,
            AlertDescription::CertificateExpired,
        ),
        (
            Some(Who::Early),
            TLS13,
            AlertDescription::CertificateExpired,
        ),
        (
            Some(Who::Revoked),
            TLS13,
            AlertDescription::CertificateRevoked,
        ),
        (
            Some(Who::ForServers),
            TLS13,
            AlertDescription::UnsupportedCertificate,
        ),
        (
            Some(Who::Operator),
            TLS12,
            AlertDescription::ProtocolVersion,
        ),
    ] {
        let config = config(&appliance, who, versions, &default_provider());
        let error = match Wire::with(&appliance, config).await {
            Ok(mut wire) => {
                // The alert may come before or after the request is written.
                let _ = wire.send(HEALTH).await;
                wire.answer().await.map(|reply| reply.status).unwrap_err()
            }
            Err(error) => error,
        };
        assert_eq!(received(&error), Some(alert), "{who:?}: {error}");
        assert_unharmed(&appliance, &format!("{who:?}")).await;
    }
    // The same client, with nothing wrong, is served.
    let mut wire = Wire::open(&appliance, Who::Operator).await.unwrap();
    wire.send(HEALTH).await.unwrap();
    assert_eq!(wire.answer().await.unwrap().status, 200);
}

fn received(error: &io::Error) -> Option<AlertDescription> {
    match error.get_ref()?.downcast_ref()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hybrid_key_exchange_is_used_where_the_client_prefers_it() {
    let appliance = Appliance::start().await;
    let mut classical = default_provider();
    classical.kx_groups = vec![kx_group::X25519];
    for (provider, group) in [
        (default_provider(), NamedGroup::X25519MLKEM768),
        (classical, NamedGroup::X25519),
    ] {
        let config = config(&appliance, Some(Who::Operator), TLS13, &provider);
        let mut wire = Wire::with(&appliance, config).await.unwrap();
        wire.send(HEALTH).await.unwrap();
        assert_eq!(wire.answer().await.unwrap().status, 200);
        let session = wire.stream.get_ref().1;
        let found = session.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(found, group);
        assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_tls_close_the_connection() {
    let appliance = Appliance::start().await;
    let hello = client_hello(&appliance);
    let mut altered = hello.clone();
    altered
        .iter_mut()
        .skip(5)
        .step_by(7)
        .for_each(|byte| *byte ^= 0x55);
    let mut random = vec![0; 4096];
    getrandom::fill(&mut random).unwrap();
    // Never the beginning of a record, which the server would wait for the rest of.
    random[0] |= 0x80;
    for (what, bytes) in [
        ("plain HTTP", HEALTH.to_vec()),
        ("plain HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("random bytes", random),
        ("zeros", vec![0; 4096]),
        (
            "a record that is too long",
            b"\x16\x03\x01\xff\xff\x01".repeat(20_000),
        ),
        (
            "application data first",
            b"\x17\x03\x03\x00\x05hello".to_vec(),
        ),
        ("an alert first", b"\x15\x03\x03\x00\x02\x02\x28".to_vec()),
        ("a client hello, altered", altered),
        ("two client hellos", [hello.as_slice(), &hello].concat()),
        (
            "SSL 2",
            b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10".repeat(8),
        ),
    ] {
        let mut tcp = TcpStream::connect(appliance.address()).await.unwrap();
        // The server may be gone before all of it is written.
        let _ = tcp.write_all(&bytes).await;
        let mut answered = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(5), tcp.read_to_end(&mut answered));
        assert!(read.await.is_ok(), "{what}: the connection stays open");
        assert!(!answered.starts_with(b"HTTP"), "{what}");
        assert_unharmed(&appliance, what).await;
    }
    // And one that says nothing at all.
    drop(TcpStream::connect(appliance.address()).await.unwrap());
    assert_unharmed(&appliance, "a connection without a byte").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_left_hanging_is_dropped_after_ten_seconds() {
    let appliance = Appliance::start().await;
    let hello = client_hello(&appliance);
    let lengths = [0, 1, hello.len() / 2, hello.len()];
    let hanging = lengths.map(|length| {
        let (bytes, address) = (hello[..length].to_vec(), appliance.address());
        tokio::spawn(async move {
            let begun = Instant::now();
            let mut tcp = TcpStream::connect(address).await.unwrap();
            tcp.write_all(&bytes).await.unwrap();
            let mut answered = Vec::new();
            let end = tcp.read_to_end(&mut answered);
            let ended = tokio::time::timeout(Duration::from_secs(15), end).await;
            assert!(ended.is_ok(), "{} bytes: still open", bytes.len());
            begun.elapsed()
        })
    });
    assert_unharmed(&appliance, "meanwhile").await;
    for (hanging, length) in hanging.into_iter().zip(lengths) {
        let took = hanging.await.unwrap();
        let expected = Duration::from_millis(9_900)..Duration::from_secs(13);
        assert!(expected.contains(&took), "{length} bytes: {took:?}");
    }
    assert_unharmed(&appliance, "afterwards").await;
}

/// What a good client sends first.
fn client_hello(appliance: &Appliance) -> Vec<u8> {
    let config = config(appliance, Some(Who::Operator), TLS13, &default_provider());
    let name = "localhost".try_into().unwrap();
    let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_s_certificate_that_ends_soon_is_told_by_status_check_and_the_status_page() {
    let mut appliance = Appliance::builder().prepare();
    let soon = time::OffsetDateTime::now_utc() + time::Duration::hours(13 * 24 + 12);
    appliance.pki.renew_client_until(Who::Vault, soon);
    appliance.launch().await;
    let said = |command: &str| {
        let output = std::process::Command::new(STRONGROOM)
            .args([command, "--addr", &appliance.url(), "--output", "json"])
            .args(["--cacert".as_ref(), appliance.pki.root().as_os_str()])
            .args([
                "--client-cert".as_ref(),
                appliance.pki.certificate(Who::Operator).as_os_str(),
            ])
            .args([
                "--client-key".as_ref(),
                appliance.pki.key(Who::Operator).as_os_str(),
            ])
            .env("STRONGROOM_CONFIG", appliance.config())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    // Who was not here is not known.
    assert!(!said("status").contains("dns:vault.test"));
    let vault = appliance.client(Who::Vault);
    vault.request("GET", "sys/health", None).await.unwrap();
    let status: serde_json::Value = serde_json::from_str(&said("status")).unwrap();
    let first = &status["client_certificates"][0];
    assert_eq!(first["identity"], "dns:vault.test");
    assert_eq!(first["not_after"], soon.unix_timestamp());
    let check = said("check");
    assert!(check.contains("dns:vault.test until"), "{check}");
    let mut wire = Wire::open(&appliance, Who::Operator).await.unwrap();
    let page = wire.ask("GET", "/ui/", b"").await.unwrap();
    let page = String::from_utf8_lossy(&page.body);
    assert!(page.contains("dns:vault.test: 13 days left"), "{page}");
    let metrics = wire.ask("GET", "/v1/sys/metrics", b"").await.unwrap();
    let metrics = String::from_utf8_lossy(&metrics.body);
    let line = format!(
        "strongroom_client_not_after_seconds{{identity=\"dns:vault.test\"}} {}",
        soon.unix_timestamp()
    );
    assert!(metrics.contains(&line), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_of_the_audit_log_names_the_certificate_and_who_issued_it() {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    use sha2::{Digest as _, Sha256};
    let appliance = Appliance::start().await;
    appliance.create_key("app-k", serde_json::json!({})).await;
    let hash = |path| {
        let der = CertificateDer::from_pem_file(path).unwrap();
        base16ct::lower::encode_string(&Sha256::digest(&der))
    };
    let issuer = hash(appliance.pki.root());
    for (who, status) in [(Who::App, 200), (Who::Stranger, 403)] {
        let mut wire = Wire::open(&appliance, who).await.unwrap();
        let reply = wire
            .ask("GET", "/v1/transit/keys/app-k", b"")
            .await
            .unwrap();
        assert_eq!(reply.status, status);
        let log = std::fs::read_to_string(appliance.audit()).unwrap();
        let line = log
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .rfind(|line| line["operation"] == "read")
            .unwrap();
        assert_eq!(
            line["certificate"],
            hash(appliance.pki.certificate(who)).as_str()
        );
        assert_eq!(line["issuer"], issuer.as_str());
    }
}
