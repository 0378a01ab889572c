//! What no good client sends: each gets the documented status and words (docs/api.md, the `OpenAPI`
//! document), none a 500.

use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use rustls::crypto::aws_lc_rs::default_provider;
use serde_json::{Value, json};
use strongroom_client::Client;
use strongroom_server::api::OPENAPI;
use strongroom_server::api::vault::wire::BASE64;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Appliance, Who, base64, encrypt, skip, unbase64};
use crate::wire::{Reply, TLS13, Wire, assert_unharmed, config, request};

const ENCRYPT: &str = "/v1/transit/encrypt/app-k";
const DECRYPT: &str = "/v1/transit/decrypt/app-k";
const NO_PATH: &str = "1 error occurred:\n\t* unsupported path\n\n";
const NO_METHOD: &str = "1 error occurred:\n\t* unsupported operation\n\n";
const NO_JSON: &str = "error parsing JSON";
/// Larger than `max_body`.
const LARGE: usize = 10 << 20;

/// What an answer's body must be.
#[derive(Clone, Copy, Debug)]
enum Body {
    /// `{"errors": [this]}`
    Says(&'static str),
    /// The only error begins like this.
    Begins(&'static str),
    /// `{"errors": []}`
    NoWords,
    /// Nothing: what is no HTTP does not come as far as the API.
    Empty,
    /// An envelope.
    Data,
}
use Body::{Begins, Data, Empty, NoWords, Says};

/// What is sent, and the answer.
type Row = (&'static str, Vec<u8>, u16, Body);

async fn start() -> Appliance {
    let appliance = Appliance::builder()
        .section("server", "mounts = [\"transit\"]")
        .start()
        .await;
    appliance.create_key("app-k", json!({})).await;
    appliance
}

fn get(path: &str) -> Vec<u8> {
    request("GET", path, &[], b"")
}

fn post(path: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    request("POST", path, &[], body.as_ref())
}

/// With these headers as they stand, and no length but theirs.
fn raw(method: &str, path: &str, headers: &[&str], body: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bytes = request(method, path, headers, b"");
    bytes.extend_from_slice(body.as_ref());
    bytes
}

fn chunked(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.len() + 4096);
    for chunk in body.chunks(64 * 1024) {
        bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

/// Sends each row on a connection of its own and collects what is not as it should be.
async fn check(appliance: &Appliance, rows: Vec<Row>) {
    let mut wrong = Vec::new();
    for (what, bytes, status, body) in rows {
        let mut wire = Wire::open(appliance, Who::Operator).await.unwrap();
        // A server that has answered need not read the rest.
        let _ = wire.send(&bytes).await;
        match wire.answer().await {
            Ok(reply) if reply.status == status && is(&reply, body) => {}
            Ok(reply) => wrong.push(format!(
                "{what}: {} {:?} {}",
                reply.status,
                reply.headers,
                String::from_utf8_lossy(&reply.body)
            )),
            Err(error) => wrong.push(format!("{what}: {error}")),
        }
        assert_unharmed(appliance, what).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn is(reply: &Reply, body: Body) -> bool {
    let found = reply.json();
    if !matches!(body, Empty | Data) && !is_documented_error(&found) {
        return false;
    }
    let errors = &found["errors"];
    match body {
        Says(words) => *errors == json!([words]),
        Begins(words) => errors[0]
            .as_str()
            .is_some_and(|error| error.starts_with(words)),
        NoWords => *errors == json!([]),
        Empty => reply.body.is_empty(),
        Data => found["data"].is_object(),
    }
}

/// The shape that the document gives to every error.
fn is_documented_error(body: &Value) -> bool {
    static SHAPE: LazyLock<jsonschema::Validator> = LazyLock::new(|| {
        let document: Value = serde_json::from_str(&OPENAPI).unwrap();
        jsonschema::draft202012::new(&document["components"]["schemas"]["Errors"]).unwrap()
    });
    SHAPE.is_valid(body)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_or_method_that_does_not_exist_is_told_so() {
    let appliance = start().await;
    let name = |length: usize| format!("/v1/transit/keys/{}", "n".repeat(length));
    #[rustfmt::skip]
    let rows = vec![
        ("an unknown path", get("/v1/transit/nope"), 404, Says(NO_PATH)),
        ("an unknown mount", post("/v1/other/encrypt/app-k", "{}"), 404, Says("no handler for route \"other/encrypt/app-k\". route entry not found.")),
        ("not below /v1", get("/"), 404, NoWords),
        ("a path that climbs", get("/v1/transit/../sys/health"), 404, Says(NO_PATH)),
        ("a path that is not UTF-8", get("/v1/transit/keys/%ff%fe"), 404, NoWords),
        ("a NUL in a key's name", get("/v1/transit/keys/a%00b"), 404, Says(NO_PATH)),
        ("a slash in a key's name", get("/v1/transit/keys/a%2fb"), 404, Says(NO_PATH)),
        ("the longest name", get(&name(128)), 404, NoWords),
        ("a name that is too long", get(&name(129)), 404, Says(NO_PATH)),
        ("a wrong method", raw("DELETE", ENCRYPT, &[], ""), 405, Says(NO_METHOD)),
        ("a method that Vault lacks", raw("PATCH", ENCRYPT, &[], ""), 405, NoWords),
        ("CONNECT", raw("CONNECT", "localhost:443", &[], ""), 405, NoWords),
        ("a list of perhaps", get("/v1/transit/keys?list=perhaps"), 400, Says("\"list\" is true or false")),
        ("a namespace", raw("POST", ENCRYPT, &["X-Vault-Namespace: team"], ""), 400, Begins("namespaces")),
        ("a token that is not ASCII", raw("POST", ENCRYPT, &["X-Vault-Token: \u{fc}"], ""), 403, Says("permission denied")),
        ("a health status that is none", get("/v1/sys/health?activecode=101"), 400, Begins("activecode must be")),
        ("as many random bytes as there are", post("/v1/transit/random/18446744073709551616", ""), 400, Begins("")),
    ];
    check(&appliance, rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_hardly_http_is_refused_and_the_connection_closed() {
    let appliance = start().await;
    let json = br#"{"plaintext":"YQ=="}"#;
    let large = vec![b' '; LARGE];
    let header = |n: usize| format!("X-Large: {}", "x".repeat(n));
    let many: Vec<String> = (0..200).map(|n| format!("X-{n}: {n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let te = "Transfer-Encoding: chunked";
    let too_large = Begins("the request body is larger than 4194304 bytes");
    #[rustfmt::skip]
    let rows = vec![
        ("10 MiB with its length", post(ENCRYPT, &large), 413, too_large),
        ("10 MiB in chunks", raw("POST", ENCRYPT, &[te], chunked(&large)), 413, too_large),
        ("10 MiB announced", raw("POST", ENCRYPT, &["Content-Length: 10485760", "Expect: 100-continue"], ""), 413, too_large),
        ("8 EiB announced", raw("POST", ENCRYPT, &["Content-Length: 9223372036854775807"], ""), 413, too_large),
        ("65 KiB of settings", post("/v1/transit/keys/app-k/config", &large[..65 << 10]), 413, Begins("the request body is larger than 65536 bytes")),
        ("20 KiB of headers", raw("GET", ENCRYPT, &[&header(20 << 10)], ""), 431, Empty),
        ("200 headers", raw("GET", ENCRYPT, &many, ""), 431, Empty),
        ("a long path", get(&format!("/v1/{}", "a/".repeat(40 << 10))), 431, Empty),
        ("a length of -1", raw("POST", ENCRYPT, &["Content-Length: -1"], ""), 400, Empty),
        ("a length above 64 bits", raw("POST", ENCRYPT, &["Content-Length: 18446744073709551616"], ""), 400, Empty),
        ("two lengths", raw("POST", ENCRYPT, &["Content-Length: 20", "Content-Length: 2"], json), 400, Empty),
        ("chunks that are none", raw("POST", ENCRYPT, &[te], "zz\r\n"), 400, Says("the request body broke off")),
        ("an encoding that is not chunked", raw("POST", ENCRYPT, &["Transfer-Encoding: gzip"], json), 400, Empty),
        ("chunks in HTTP/1.0", [b"POST /v1/transit/encrypt/app-k HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" .as_slice(), &chunked(json)] .concat(), 400, Empty),
        ("a header without a colon", raw("GET", ENCRYPT, &["nonsense"], ""), 400, Empty),
        ("a header with a NUL", raw("GET", ENCRYPT, &["X-A: a\0b"], ""), 400, Empty),
        ("a folded header", raw("GET", ENCRYPT, &["X-A: a\r\n b"], ""), 400, Empty),
        ("no host", b"GET /v1/sys/health HTTP/1.1\r\n\r\n".to_vec(), 400, Begins("HTTP/1.1 wants one Host header")),
        ("two hosts", raw("GET", "/v1/sys/health", &["Host: localhost"], ""), 400, Begins("HTTP/1.1 wants one Host header")),
        ("a host with a blank", b"GET /v1/sys/health HTTP/1.1\r\nHost: a b\r\n\r\n".to_vec(), 400, Begins("HTTP/1.1 wants one Host header")),
        ("an empty host", b"GET /v1/sys/health HTTP/1.1\r\nHost:\r\n\r\n".to_vec(), 400, Begins("HTTP/1.1 wants one Host header")),
        ("a host behind a user", b"GET /v1/sys/health HTTP/1.1\r\nHost: a@b\r\n\r\n".to_vec(), 400, Begins("HTTP/1.1 wants one Host header")),
        ("no HTTP", b"hello, is it me you're looking for?\r\n\r\n".to_vec(), 400, Empty),
        ("HTTP/9", b"GET / HTTP/9.9\r\n\r\n".to_vec(), 400, Empty),
    ];
    check(&appliance, rows).await;
}

/// HTTP/1.0 knows no host, and Vault's health checks by old load balancers speak it.
#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_needs_no_host() {
    let appliance = start().await;
    let mut wire = Wire::open(&appliance, Who::Operator).await.unwrap();
    wire.send(b"GET /v1/sys/health HTTP/1.0\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(wire.answer().await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_1_takes_whatever_can_be_a_host() {
    let appliance = start().await;
    let mut wire = Wire::open(&appliance, Who::Operator).await.unwrap();
    for host in [
        "[::1]:8200",
        "vault_1.example.org",
        "10.0.0.1:8200",
        "x%20y",
    ] {
        let request = format!("GET /v1/sys/health HTTP/1.1\r\nHost: {host}\r\n\r\n");
        wire.send(request.as_bytes()).await.unwrap();
        assert_eq!(wire.answer().await.unwrap().status, 200, "{host}");
    }
}

/// A client that is still writing must not lose the answer to the end of its connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_too_much_reads_why_it_is_refused() {
    let appliance = start().await;
    for http2 in [false, true] {
        for (who, path, status) in [
            (Who::Operator, ENCRYPT, 413),
            (Who::Stranger, ENCRYPT, 403),
            (Who::Operator, "/v1/transit/nope", 404),
        ] {
            let mut options = appliance.client_options(who);
            options.http2 = http2;
            let client = Client::new(&options).unwrap();
            for _ in 0..5 {
                let body = Bytes::from(vec![b' '; LARGE]);
                let answer = client.send("POST", path, body).await;
                let found = answer.map(|answer| answer.status.as_u16());
                assert_eq!(found.ok(), Some(status), "{path}, HTTP/2: {http2}");
            }
        }
    }
    assert_unharmed(&appliance, "large bodies").await;
}

/// curl 7.88 fails where HTTP/2 resets the stream of a refused request while it still sends.
#[tokio::test(flavor = "multi_thread")]
async fn curl_reads_each_early_refusal_of_a_small_body() {
    let test = "curl_reads_each_early_refusal_of_a_small_body";
    if Command::new("curl").arg("--version").output().is_err() {
        return skip(test, "there is no curl");
    }
    let appliance = start().await;
    let body = appliance.path().join("body");
    let mut wrong = Vec::new();
    for size in [20, 60 << 10] {
        std::fs::write(&body, vec![b' '; size]).unwrap();
        for (who, path, status) in [
            (Who::Stranger, ENCRYPT, "403"),
            (Who::Operator, "/v1/transit/nope", "404"),
            (Who::Operator, "/v1/transit/keys", "405"),
        ] {
            for (version, tries) in [("--http2", 20), ("--http1.1", 3)] {
                for _ in 0..tries {
                    let options = appliance.client_options(who);
                    let (certificate, key) = options.identity.unwrap();
                    let mut curl = Command::new("curl");
                    curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", version]);
                    curl.arg("--cacert").arg(&options.ca);
                    curl.arg("--cert").arg(certificate).arg("--key").arg(key);
                    curl.arg("--data-binary")
                        .arg(format!("@{}", body.display()));
                    curl.arg(format!("{}{path}", appliance.url()));
                    let found = curl.output().unwrap();
                    let said = String::from_utf8_lossy(&found.stderr).into_owned();
                    let code = String::from_utf8_lossy(&found.stdout).into_owned();
                    if !found.status.success() || code != status {
                        wrong.push(format!("{version} {size} {path}: {code} {said}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.len(), wrong.join("\n"));
}

/// Refused before its body was read, a client that goes on sending slowly, or not at all, is
/// answered and cut all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_client_that_never_ends_its_body_is_answered_and_cut() {
    let appliance = start().await;
    let begun = Instant::now();
    for length in ["Content-Length: 1000", "Transfer-Encoding: chunked"] {
        let mut wire = Wire::open(&appliance, Who::Stranger).await.unwrap();
        wire.send(&raw("POST", ENCRYPT, &[length], ""))
            .await
            .unwrap();
        assert_eq!(wire.answer().await.unwrap().status, 403, "{length}");
        assert!(wire.is_closed().await, "{length}");
    }
    // It would not send before it is told to: its answer is not waited for.
    let expects = ["Content-Length: 1000", "Expect: 100-continue"];
    let mut wire = Wire::open(&appliance, Who::Stranger).await.unwrap();
    wire.send(&raw("POST", ENCRYPT, &expects, ""))
        .await
        .unwrap();
    assert_eq!(wire.answer().await.unwrap().status, 403);
    assert!(
        begun.elapsed() < Duration::from_secs(25),
        "{:?}",
        begun.elapsed()
    );
    assert_unharmed(&appliance, "bodies without an end").await;
}

/// A body in chunks that is also given a length could be read as two requests by one reader and as
/// one by another.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_two_ends_is_never_two_requests() {
    let appliance = start().await;
    let hidden = request("DELETE", "/v1/transit/keys/app-k", &[], b"");
    let chunks = [b"0\r\n\r\n".as_slice(), &hidden].concat();
    let length = format!("Content-Length: {}", chunks.len());
    let te = "Transfer-Encoding: chunked";
    for headers in [[length.as_str(), te], [te, length.as_str()]] {
        let mut wire = Wire::open(&appliance, Who::Operator).await.unwrap();
        wire.send(&raw("POST", ENCRYPT, &headers, &chunks))
            .await
            .unwrap();
        let first = wire.answer().await.unwrap();
        assert_eq!(first.status, 400, "{headers:?}");
        let second = wire.answer_within(Duration::from_secs(2)).await;
        assert!(second.is_err(), "{headers:?}: {second:?}");
        assert!(wire.is_closed().await, "{headers:?}");
    }
    let audit = std::fs::read_to_string(appliance.audit()).unwrap();
    assert!(!audit.contains("\"delete\""), "the hidden request was read");
    assert_unharmed(&appliance, "smuggling").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_makes_no_sense_is_a_400_with_words() {
    let appliance = start().await;
    let nested = |open: &str, close: &str| {
        let (open, close) = (open.repeat(100_000), close.repeat(100_000));
        (
            format!("{{\"plaintext\":{open}{close}}}"),
            format!("{{\"other\":{open}1{close}}}"),
            format!("{{\"batch_input\":{open}{close}}}"),
        )
    };
    let (lists, others, batches) = nested("[", "]");
    let objects = format!(
        "{{\"batch_input\":[{}1{}]}}",
        "{\"a\":".repeat(100_000),
        "}".repeat(100_000)
    );
    let unclosed = format!("{{\"other\":{}", "[".repeat(100_000));
    let no_list = Begins("failed to parse batch input: ");
    let no_base64 = Says("illegal base64 data at input byte 0");
    let no_plaintext = Says("missing plaintext to encrypt");
    let no_field = Begins("Field validation failed");
    #[rustfmt::skip]
    let rows: Vec<Row> = vec![
        ("a brace", post(ENCRYPT, "{"), 400, Says(NO_JSON)),
        ("a list", post(ENCRYPT, "[]"), 400, Says(NO_JSON)),
        ("a NUL", post(ENCRYPT, "\0"), 400, Says(NO_JSON)),
        ("not UTF-8", post(ENCRYPT, b"{\"plaintext\":\"\xff\xfe\"}"), 400, Says(NO_JSON)),
        ("half a surrogate", post(ENCRYPT, r#"{"plaintext":"\ud800"}"#), 400, Says(NO_JSON)),
        ("a name that is not UTF-8", post(ENCRYPT, b"{\"\xff\":1}"), 400, Says(NO_JSON)),
        ("a byte order mark", post(ENCRYPT, "\u{feff}{}"), 400, Says(NO_JSON)),
        ("lists in lists", post(ENCRYPT, lists), 400, no_field),
        ("lists in lists that nobody asked for", post(ENCRYPT, others), 400, no_plaintext),
        ("lists in lists for a batch", post(ENCRYPT, batches), 400, no_list),
        ("objects in objects for a batch", post(ENCRYPT, objects), 400, no_list),
        ("lists that never end", post(ENCRYPT, unclosed), 400, Says(NO_JSON)),
        ("one name twice", post(ENCRYPT, r#"{"plaintext":"YQ==","plaintext":"Yg=="}"#), 400, Says(NO_JSON)),
        ("two batches", post(ENCRYPT, r#"{"batch_input":[{"plaintext":"YQ=="}],"batch_input":[{"plaintext":"Yg=="}]}"#), 400, Says(NO_JSON)),
        ("one name twice in an item", post(ENCRYPT, r#"{"batch_input":[{"plaintext":"YQ==","plaintext":"Yg=="}]}"#), 400, no_list),
        ("an item that is a list", post(ENCRYPT, r#"{"batch_input":[["YQ=="]]}"#), 400, no_list),
        ("a batch that is an object", post(ENCRYPT, r#"{"batch_input":{"plaintext":"YQ=="}}"#), 400, no_list),
        ("a batch without items", post(ENCRYPT, r#"{"batch_input":[]}"#), 400, Says("missing batch input to process")),
        ("nothing", post(ENCRYPT, ""), 400, no_plaintext),
        ("no base64", post(ENCRYPT, r#"{"plaintext":"!!"}"#), 400, no_base64),
        ("base64 of the URL's alphabet", post(ENCRYPT, r#"{"plaintext":"-_-_"}"#), 400, no_base64),
        ("base64 without padding", post(ENCRYPT, r#"{"plaintext":"YQ"}"#), 400, no_base64),
        ("base64 in a context", post(ENCRYPT, r#"{"plaintext":"YQ==","context":"!"}"#), 400, no_base64),
        ("base64 to decrypt", post(DECRYPT, r#"{"ciphertext":"vault:v1:!!"}"#), 400, Says("invalid ciphertext: could not decode base64")),
        ("a form's percent signs", raw("POST", ENCRYPT, &["Content-Type: application/x-www-form-urlencoded", "Content-Length: 14"], "plaintext=%zz%"), 400, Says("error parsing form data")),
        ("a version below zero", post(ENCRYPT, r#"{"plaintext":"YQ==","key_version":-1}"#), 400, Says("requested version for encryption is negative")),
        ("a version that is not there", post(ENCRYPT, r#"{"plaintext":"YQ==","key_version":2}"#), 400, Begins("requested version for encryption is higher")),
        ("a version of 2^32", post(ENCRYPT, r#"{"plaintext":"YQ==","key_version":4294967296}"#), 400, Begins("requested version for encryption is higher")),
        ("a version of 2^63", post(ENCRYPT, r#"{"plaintext":"YQ==","key_version":9223372036854775808}"#), 400, no_field),
        ("a version of 2^64", post(ENCRYPT, r#"{"plaintext":"YQ==","key_version":18446744073709551616}"#), 400, no_field),
        ("a version of 1e400", post(ENCRYPT, r#"{"plaintext":"YQ==","key_version":1e400}"#), 400, Says(NO_JSON)),
        ("a version of 1.5", post(ENCRYPT, r#"{"plaintext":"YQ==","key_version":1.5}"#), 400, no_field),
        ("a version of 2^63 in a batch", post(ENCRYPT, r#"{"batch_input":[{"plaintext":"YQ==","key_version":9223372036854775808}]}"#), 400, no_list),
        ("a least version of 2^31", post("/v1/transit/keys/app-k/config", r#"{"min_decryption_version":2147483648}"#), 400, Begins("")),
        ("a least version of 2^63", post("/v1/transit/keys/app-k/config", r#"{"min_encryption_version":9223372036854775808}"#), 400, no_field),
        ("trimmed to 2^40", post("/v1/transit/keys/app-k/trim", r#"{"min_available_version":1099511627776}"#), 400, Begins("")),
        ("rotated every 2^64 hours", post("/v1/transit/keys/app-k/config", r#"{"auto_rotate_period":"18446744073709551616h"}"#), 400, no_field),
        ("a status of 101", post(DECRYPT, r#"{"batch_input":[{"ciphertext":"x"},{"ciphertext":"y"}],"partial_failure_response_code":101}"#), 400, Begins("partial_failure_response_code is a status from 200 to 599")),
        ("a batch of which all fail", post(DECRYPT, r#"{"batch_input":[{"ciphertext":"x"},{"ciphertext":"y"}],"partial_failure_response_code":207}"#), 400, Data),
    ];
    check(&appliance, rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ciphertext_decrypts_to_what_was_encrypted_or_is_a_400() {
    let appliance = start().await;
    // 22 bytes: with nonce and tag 50, so that the last character of the base64 has bits that stand
    // for nothing.
    let plaintext = b"a secret of 22 bytes..";
    let good = encrypt(&appliance.client(Who::Operator), "app-k", plaintext).await;
    let encoded = good.strip_prefix("vault:v1:").unwrap();
    let bytes = unbase64(encoded);
    let mut wire = Wire::open(&appliance, Who::Operator).await.unwrap();
    let mut decrypt = async |ciphertext: &[u8]| {
        // As it stands: JSON needs no escape for what a flipped bit makes, or the escape's absence
        // is the fault.
        let body = [b"{\"ciphertext\":\"".as_slice(), ciphertext, b"\"}"].concat();
        let reply = wire.ask("POST", DECRYPT, &body).await.unwrap();
        let shown = String::from_utf8_lossy(ciphertext).into_owned();
        match reply.status {
            200 => {
                let found = reply.json()["data"]["plaintext"]
                    .as_str()
                    .unwrap()
                    .to_owned();
                assert_eq!(unbase64(&found), plaintext, "{shown}");
                String::new()
            }
            400 => {
                assert!(is_documented_error(&reply.json()), "{shown}");
                reply.json()["errors"][0].as_str().unwrap().to_owned()
            }
            status => panic!("{shown}: {status}"),
        }
    };
    assert_eq!(decrypt(good.as_bytes()).await, "");

    for at in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[at / 8] ^= 1 << (at % 8);
        let said = decrypt(format!("vault:v1:{}", base64(&bytes)).as_bytes()).await;
        assert_eq!(said, "cipher: message authentication failed", "bit {at}");
    }
    for at in 0..good.len() * 8 {
        let mut text = good.clone().into_bytes();
        text[at / 8] ^= 1 << (at % 8);
        let said = decrypt(&text).await;
        let same = std::str::from_utf8(&text).is_ok_and(|text| {
            let rest = text
                .strip_prefix("vault:v1:")
                .or(text.strip_prefix("vault:v0:"));
            rest.is_some_and(|rest| BASE64.decode(rest).is_ok_and(|found| found == bytes))
        });
        assert_eq!(said.is_empty(), same, "bit {at}: {said}");
    }
    for length in 0..good.len() {
        assert_ne!(decrypt(&good.as_bytes()[..length]).await, "", "{length}");
    }
    for length in 0..bytes.len() {
        let said = decrypt(format!("vault:v1:{}", base64(&bytes[..length])).as_bytes()).await;
        let expected = if length < 12 {
            "invalid ciphertext length"
        } else {
            "cipher: message authentication failed"
        };
        assert_eq!(said, expected, "{length}");
    }
    let (too_new, no_number) = (
        "invalid ciphertext: version is too new",
        "invalid ciphertext: version number could not be decoded",
    );
    for (version, expected) in [
        ("2", too_new),
        ("4294967295", too_new),
        ("4294967296", too_new),
        ("9223372036854775807", too_new),
        ("9223372036854775808", no_number),
        (
            "-1",
            "ciphertext or signature version is disallowed by policy (too old)",
        ),
        ("-9223372036854775809", no_number),
        ("1 ", no_number),
        ("1e0", no_number),
        ("\u{0661}", no_number),
        ("", no_number),
    ] {
        let said = decrypt(format!("vault:v{version}:{encoded}").as_bytes()).await;
        assert_eq!(said, expected, "version {version:?}");
    }
    assert_unharmed(&appliance, "altered ciphertexts").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_408_after_thirty_seconds() {
    let appliance = start().await;
    let heads = [
        raw("POST", ENCRYPT, &["Content-Length: 20"], "{"),
        raw(
            "POST",
            ENCRYPT,
            &["Transfer-Encoding: chunked"],
            "1\r\n{\r\n",
        ),
    ];
    let begun = Instant::now();
    let mut slow = Vec::new();
    for head in heads {
        let mut wire = Wire::open(&appliance, Who::Operator).await.unwrap();
        wire.send(&head).await.unwrap();
        slow.push(wire);
    }
    for mut wire in slow {
        let reply = wire.answer_within(Duration::from_secs(40)).await.unwrap();
        let took = begun.elapsed();
        assert_eq!(reply.status, 408);
        assert!(is(&reply, Says("the request body did not come in time")));
        assert!(wire.is_closed().await);
        assert!((29..36).contains(&took.as_secs()), "{took:?}");
    }
    assert_unharmed(&appliance, "slow bodies").await;
}

/// Bare frames: no client library would send them.
#[tokio::test(flavor = "multi_thread")]
async fn one_stream_too_many_is_refused_and_the_others_are_served() {
    const STREAMS: u32 = 128;
    const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];
    let appliance = start().await;
    let mut config = config(&appliance, Some(Who::Operator), TLS13, &default_provider());
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut stream = Wire::with(&appliance, config).await.unwrap().stream;
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(0x4, 0, 0, b""));
    let head = head(ENCRYPT);
    for at in 0..=STREAMS {
        // END_HEADERS, and no END_STREAM: each waits for its body.
        bytes.extend(frame(0x1, 0x4, 2 * at + 1, &head));
    }
    stream.write_all(&bytes).await.unwrap();
    let mut refused = Vec::new();
    while refused.is_empty() {
        let (kind, id, payload) = read_frame(&mut stream).await;
        assert_ne!(kind, 0x7, "GOAWAY: {payload:?}");
        if kind == 0x3 {
            refused.push((id, payload));
        }
    }
    assert_eq!(refused, [(2 * STREAMS + 1, REFUSED_STREAM.to_vec())]);
    let body = br#"{"plaintext":"YQ=="}"#;
    stream.write_all(&frame(0x0, 0x1, 1, body)).await.unwrap();
    loop {
        let (kind, id, payload) = read_frame(&mut stream).await;
        if kind == 0x1 {
            assert_eq!(id, 1);
            // `:status: 200` of the static table.
            assert_eq!(payload[0], 0x88, "{payload:x?}");
            break;
        }
    }
    drop(stream);
    assert_unharmed(&appliance, "too many streams").await;
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The header block of a POST: indexed method and scheme, literal path and authority (RFC 7541,
/// appendix A).
fn head(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x87, 0x04, u8::try_from(path.len()).unwrap()];
    block.extend(path.as_bytes());
    block.extend([0x01, 9]);
    block.extend(b"localhost");
    block
}

async fn read_frame(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> (u8, u32, Vec<u8>) {
    let read = async {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await.unwrap();
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        (head[3], id, payload)
    };
    tokio::time::timeout(Duration::from_secs(10), read)
        .await
        .unwrap()
}
