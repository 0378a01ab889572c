//! The server's life: start, reload, stop, and the limits on connections.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::{Appliance, Who, ask, cpu_of, expect};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// How long a stop waits for what is in flight.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than any reload takes.
const PATIENCE: Duration = Duration::from_secs(10);

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done().await {
        assert!(Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn status(appliance: &Appliance, who: Who) -> u16 {
    ask(
        &appliance.client(who),
        "GET",
        "transit/keys/app-k",
        Value::Null,
    )
    .await
    .status
    .as_u16()
}

/// A policy under which the stranger may read.
const KIND: &str = "[[rule]]\nidentities = [\"dns:*\"]\nkeys = [\"*\"]\noperations = [\"read\"]\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_policy_comes_into_force_by_itself_and_a_broken_one_does_not() {
    let appliance = Appliance::start().await;
    appliance.create_key("app-k", json!({})).await;
    assert_eq!(status(&appliance, Who::Stranger).await, 403);

    fs::write(appliance.policy(), KIND).unwrap();
    until("the new policy", async || {
        status(&appliance, Who::Stranger).await == 200
    })
    .await;

    fs::write(appliance.policy(), "[[rule]]\nidentities = 7\n").unwrap();
    until("the refusal", async || {
        appliance.log().contains("the old one stays in force")
    })
    .await;
    assert_eq!(status(&appliance, Who::Stranger).await, 200);
    let audit = fs::read_to_string(appliance.audit()).unwrap();
    let line = audit
        .lines()
        .find(|line| line.contains("reload:policy") && line.contains("\"error\""));
    assert!(line.unwrap().contains("a file changed"), "{line:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_client_ca_comes_into_force_with_sighup_and_connections_stay() {
    let appliance = Appliance::start().await;
    appliance.create_key("app-k", json!({})).await;
    let client = appliance.client(Who::Operator);
    expect(&client, "GET", "transit/keys/app-k", Value::Null, 200).await;
    appliance.signal(Signal::SIGHUP);
    until("the reload", async || appliance.has_read_again()).await;
    expect(&client, "GET", "transit/keys/app-k", Value::Null, 200).await;
    let audit = fs::read_to_string(appliance.audit()).unwrap();
    assert!(
        audit
            .lines()
            .any(|line| line.contains("reload:tls") && line.contains("SIGHUP"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sigusr1_opens_the_audit_log_anew() {
    let appliance = Appliance::start().await;
    appliance.create_key("app-k", json!({})).await;
    let moved = appliance.path().join("audit.log.1");
    fs::rename(appliance.audit(), &moved).unwrap();
    appliance.signal(Signal::SIGUSR1);
    until("the new file", async || appliance.audit().exists()).await;
    assert_eq!(status(&appliance, Who::Operator).await, 200);
    until("a line", async || {
        fs::read_to_string(appliance.audit())
            .unwrap()
            .contains("\"read\"")
    })
    .await;
    assert!(!fs::read_to_string(moved).unwrap().contains("\"read\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_what_is_in_flight() {
    let mut appliance = Appliance::start().await;
    appliance.create_key("app-k", json!({})).await;
    let client = appliance.client(Who::Operator);
    let batch: Vec<Value> = (0..400)
        .map(|_| json!({"plaintext": support::base64(&[7; 64])}))
        .collect();
    let requests: Vec<_> = (0..20)
        .map(|_| {
            let (client, body) = (client.clone(), json!({ "batch_input": batch }));
            tokio::spawn(async move {
                client
                    .request("POST", "transit/encrypt/app-k", Some(&body))
                    .await
            })
        })
        .collect();
    // Until the first of them was decided on, so that the others are on their way.
    until("a request", async || {
        fs::read_to_string(appliance.audit())
            .unwrap()
            .contains("\"encrypt\"")
    })
    .await;
    assert_eq!(appliance.stop(), Some(0), "{}", appliance.log());
    let mut answered = 0;
    for request in requests {
        // One that had not reached the server finds nobody; one that had gets its whole answer.
        if let Ok(answer) = request.await.unwrap() {
            assert_eq!(answer.status, 200);
            assert_eq!(
                answer.json().unwrap()["data"]["batch_results"]
                    .as_array()
                    .unwrap()
                    .len(),
                400
            );
            answered += 1;
        }
    }
    let audit = fs::read_to_string(appliance.audit()).unwrap();
    let decided = audit
        .lines()
        .filter(|line| line.contains("\"encrypt\""))
        .count();
    assert_eq!(answered, decided, "each decision's answer arrived");
    assert!(audit.contains("server:stop"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_no_idle_or_half_open_connection() {
    let mut appliance = Appliance::start().await;
    let client = appliance.client(Who::Operator);
    expect(&client, "GET", "sys/health", Value::Null, 200).await;
    let _silent = TcpStream::connect(appliance.address()).await.unwrap();
    let begun = Instant::now();
    assert_eq!(appliance.stop(), Some(0), "{}", appliance.log());
    assert!(
        begun.elapsed() < DRAIN_TIMEOUT,
        "it took {:?}",
        begun.elapsed()
    );
}

/// The commands read them there, and so must the confined server.
#[tokio::test(flavor = "multi_thread")]
async fn softhsms_settings_in_the_users_home_are_reached() {
    let mut appliance = Appliance::builder().prepare();
    let home = tempfile::tempdir().unwrap();
    let settings = home.path().join(".config/softhsm2");
    fs::create_dir_all(&settings).unwrap();
    fs::copy(appliance.softhsm_conf(), settings.join("softhsm2.conf")).unwrap();
    let home = format!("HOME={}", home.path().display());
    appliance.wrap(["env", "-u", "SOFTHSM2_CONF", &home]);
    appliance.launch().await;
    let client = appliance.client(Who::Operator);
    let health = client.request("GET", "sys/health", None).await.unwrap();
    assert!(health.status.is_success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_too_many_is_closed_at_once() {
    let appliance = Appliance::builder()
        .section("server", "max_connections = 4")
        .start()
        .await;
    let closed = async |address: SocketAddr| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut byte = [0];
        let read = tokio::time::timeout(Duration::from_millis(500), stream.read(&mut byte)).await;
        (stream, matches!(read, Ok(Ok(0) | Err(_))))
    };
    let mut open = Vec::new();
    let mut refused = 0;
    for _ in 0..8 {
        let (stream, closed) = closed(appliance.address()).await;
        if closed {
            refused += 1;
        } else {
            open.push(stream);
        }
    }
    assert!(
        open.len() <= 4 && refused >= 4,
        "{} open, {refused} refused",
        open.len()
    );
    drop(open);
    let client = appliance.client(Who::Operator);
    until("a free place", async || {
        client.request("GET", "sys/health", None).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_stops_the_start_with_its_name() {
    let appliance = Appliance::builder().prepare();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let config = fs::read_to_string(appliance.config()).unwrap();
    fs::write(appliance.config(), config.replace("127.0.0.1:0", &address)).unwrap();
    let output = appliance.cli(["serve"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&address));
}

/// How long that is on the clock is the benchmark's: here others may have the processor.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_takes_less_than_a_second_of_the_processor() {
    let mut appliance = Appliance::start().await;
    appliance.create_key("app-k", json!({})).await;
    appliance.stop();
    appliance.launch().await;
    let used = cpu_of(appliance.pid());
    assert!(used < Duration::from_secs(1), "it took {used:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told_ready_reloading_and_stopping() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let next = || {
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let mut appliance = Appliance::builder()
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "400000")
        .start()
        .await;
    let mut told = vec![next()];
    assert!(told[0].contains("READY=1"), "{told:?}");
    until("the watchdog's food", async || {
        told.push(next());
        told.last().unwrap().contains("WATCHDOG=1")
    })
    .await;
    appliance.signal(Signal::SIGHUP);
    until("the reload", async || {
        told.push(next());
        told.last().unwrap().contains("RELOADING=1")
    })
    .await;
    assert!(told.last().unwrap().contains("MONOTONIC_USEC="), "{told:?}");
    appliance.stop();
    until("the stop", async || {
        told.push(next());
        told.last().unwrap().contains("STOPPING=1")
    })
    .await;
    let reloading = told
        .iter()
        .position(|words| words.contains("RELOADING=1"))
        .unwrap();
    assert!(
        told[reloading..]
            .iter()
            .any(|words| words.contains("READY=1")),
        "{told:?}"
    );
}
