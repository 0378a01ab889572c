//! Another protocol, of one file and its rows, goes the whole way of a request: certificate,
//! policy, audit lines, limits, errors in its own form. Its paths are such as a mount of Vault's
//! dialect could have.

#![allow(clippy::unwrap_used, clippy::panic)]

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::http::request::Parts;
use hyper::{Request, Response};
use serde_json::{Value, json};
use strongroom_core::keyring::{CreateOptions, EncryptItem, KeyName, KeyringError};
use strongroom_core::policy::Operation;
use zeroize::Zeroizing;

use super::appliance::{Appliance, Who, b64, run};
use crate::api::pipeline::answer::Answer;
use crate::api::pipeline::dialect::{Claim, Dialect, Limits};
use crate::api::pipeline::error::ApiError;
use crate::api::pipeline::route::{Ask, Captures, Found, Limit, Route, Verb, parts};
use crate::api::vault::VAULT;
use crate::api::vault::request::Nothing;
use crate::api::{App, Endpoint, handle};

struct Toy;

static TOY: Toy = Toy;

static ROWS: [Route; 2] = [
    Route {
        verb: Verb::Update,
        path: "create/{name}",
        parts: parts("create/{name}"),
        operation: Some(Operation::Create),
        label: "create",
        request: Nothing::REQUEST,
        limit: Limit::Small,
        audited: true,
        mutates: true,
        handler: |ask| Box::pin(create(ask)),
    },
    Route {
        verb: Verb::Update,
        path: "encrypt/{name}",
        parts: parts("encrypt/{name}"),
        operation: Some(Operation::Encrypt),
        label: "encrypt",
        request: Nothing::REQUEST,
        limit: Limit::Data,
        audited: true,
        mutates: false,
        handler: |ask| Box::pin(encrypt(ask)),
    },
];

async fn create(ask: Ask<'_, '_>) -> Result<Answer, ApiError> {
    if !ask.body().is_empty() {
        return Err(ApiError::bad_request("a key is made without a body"));
    }
    let call = ask.begin().await?;
    let made = call
        .app
        .keyring
        .create(call.key()?, CreateOptions::default());
    made.await.map_err(failed)?;
    Ok(Answer::ok("{}".into()))
}

async fn encrypt(ask: Ask<'_, '_>) -> Result<Answer, ApiError> {
    let item = EncryptItem {
        plaintext: Zeroizing::new(ask.body().to_vec()),
        ..EncryptItem::default()
    };
    let call = ask.begin().await?;
    let made = call.app.keyring.encrypt(call.key()?, vec![item]).await;
    let made = made.and_then(|mut made| made.remove(0)).map_err(failed)?;
    let text = format!("{{\"sealed\":\"{}.{}\"}}", made.version, b64(&made.bytes));
    Ok(Answer::ok(text.into()).with_version(made.version))
}

fn failed(error: KeyringError) -> ApiError {
    match error {
        KeyringError::NotFound => ApiError::new(404, "no such key"),
        error => ApiError::unavailable(error.to_string()),
    }
}

impl Dialect for Toy {
    fn name(&self) -> &'static str {
        "a toy"
    }

    fn claims(&self) -> &'static [Claim] {
        &[Claim::Below("/v1/key/")]
    }

    fn find<'p>(
        &self,
        _: &App,
        head: &Parts,
        path: Option<&'p str>,
    ) -> Result<Found<'p>, ApiError> {
        let below = path.and_then(|path| path.strip_prefix("/v1/key/"));
        let found = ROWS.iter().find_map(|route| {
            let name = below?.strip_prefix(route.parts.0)?;
            (!name.contains('/')).then_some((route, name))
        });
        let Some((route, name)) = found else {
            return Err(ApiError::new(404, "no such path"));
        };
        if head.method != hyper::Method::POST {
            return Err(ApiError::new(405, "POST only"));
        }
        let captures = Captures {
            name: KeyName::parse(name),
            ..Captures::default()
        };
        Ok(Found { route, captures })
    }

    fn respond(&self, error: ApiError) -> Response<Full<Bytes>> {
        let message = error.messages.first().cloned().unwrap_or_default();
        let body = json!({ "message": message }).to_string().into_bytes();
        error.into_response("application/json", body)
    }
}

static BOTH: [&dyn Dialect; 2] = [&VAULT, &TOY];
static TWICE: [&dyn Dialect; 2] = [&TOY, &TOY];
static ALONE: [&dyn Dialect; 1] = [&TOY];

/// Both on one endpoint, Vault's dialect for the rest.
fn both(a: &Appliance) -> Endpoint {
    Endpoint::new(&BOTH, &VAULT, Limits::configured(&a.app.config))
}

fn send(
    a: &Appliance,
    endpoint: Endpoint,
    who: Who,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, Value) {
    let mut request = Request::builder().method("POST").uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body.to_owned())));
    let response = run(handle(a.client_at(endpoint, who), request.unwrap()));
    let status = response.status().as_u16();
    assert_eq!(
        response.headers().contains_key("connection"),
        matches!((who, status), (Who::Expired, _) | (_, 413)),
        "{path}"
    );
    let bytes = run(response.into_body().collect()).unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap())
}

#[test]
#[allow(clippy::too_many_lines, reason = "one story")]
fn another_dialect_goes_the_whole_way() {
    let a = Appliance::new();
    let ask = |who, path: &str, headers: &[(&str, &str)], body: &str| {
        send(&a, both(&a), who, path, headers, body)
    };
    let says = |message: &str| json!({ "message": message });

    let made = ask(Who::Operator, "/v1/key/create/app-toy", &[], "");
    assert_eq!(made, (200, json!({})));
    let (status, sealed) = ask(Who::App, "/v1/key/encrypt/app-toy", &[], "a secret");
    assert_eq!(status, 200);
    // The keys are the same for all dialects.
    let sealed = sealed["sealed"].as_str().unwrap().replacen('.', ":", 1);
    let body = json!({ "ciphertext": format!("vault:v{sealed}") });
    let opened = a.expect(200, "POST", "transit/decrypt/app-toy", &body);
    assert_eq!(opened["data"]["plaintext"], b64(b"a secret"));

    // Nobody else may, and each refusal has the form of the dialect that was asked.
    for (who, path, headers, body, status, message) in [
        (
            Who::Stranger,
            "encrypt/app-toy",
            &[][..],
            "x",
            403,
            "permission denied",
        ),
        (
            Who::App,
            "create/app-other",
            &[],
            "",
            403,
            "permission denied",
        ),
        (
            Who::App,
            "encrypt/token-toy",
            &[],
            "x",
            403,
            "permission denied",
        ),
        (
            Who::Expired,
            "encrypt/app-toy",
            &[],
            "x",
            403,
            "permission denied",
        ),
        (
            Who::Operator,
            "encrypt/p-none",
            &[],
            "x",
            404,
            "no such key",
        ),
        (
            Who::Operator,
            "create/p-none",
            &[],
            "x",
            400,
            "a key is made without a body",
        ),
        (
            Who::Operator,
            "delete/app-toy",
            &[],
            "",
            404,
            "no such path",
        ),
        (
            Who::Operator,
            "encrypt/app-toy",
            &[("content-encoding", "gzip")],
            "x",
            400,
            "the header content-encoding is not supported: leave it out",
        ),
        (
            Who::Operator,
            "encrypt/app-toy",
            &[
                ("origin", "https://a.example"),
                ("origin", "https://b.example"),
            ],
            "x",
            400,
            "the header origin is given twice",
        ),
    ] {
        let answer = ask(who, &format!("/v1/key/{path}"), headers, body);
        assert_eq!(answer, (status, says(message)), "{who:?} {path}");
    }
    let foreign = [("origin", "https://evil.example")];
    let (status, refused) = ask(Who::Operator, "/v1/key/encrypt/app-toy", &foreign, "x");
    assert_eq!(status, 403);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("another site")
    );

    // What Vault's dialect is asked is answered as ever, on the same endpoint.
    let body = json!({ "plaintext": b64(b"x") }).to_string();
    let (status, answer) = ask(Who::App, "/v1/transit/encrypt/app-toy", &[], &body);
    assert_eq!((status, answer["errors"].is_null()), (200, true));
    let (status, answer) = ask(Who::Stranger, "/v1/transit/encrypt/app-toy", &[], &body);
    assert_eq!((status, answer["errors"].is_array()), (403, true));

    // Each decision has its line, in order, and the change its intent.
    let lines = a.audited();
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            let word = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            (
                word("operation"),
                word("outcome"),
                line["status"].as_u64().unwrap(),
            )
        })
        .collect();
    let told: Vec<_> = told
        .iter()
        .map(|(operation, outcome, status)| (operation.as_str(), outcome.as_str(), *status))
        .collect();
    assert_eq!(
        told,
        [
            ("create", "ok", 200),
            ("encrypt", "ok", 200),
            ("decrypt", "ok", 200),
            ("encrypt", "denied", 403),
            ("create", "denied", 403),
            ("encrypt", "denied", 403),
            ("encrypt", "denied", 403),
            ("encrypt", "error", 404),
            ("create", "error", 400),
            ("none", "error", 404),
            ("encrypt", "error", 400),
            ("encrypt", "error", 400),
            ("encrypt", "denied", 403),
            ("encrypt", "ok", 200),
            ("encrypt", "denied", 403),
        ]
    );
    let intent = |at: usize| lines[at]["intent"].as_u64().unwrap_or(0);
    assert!(intent(0) > 0, "the change was to begin: {}", lines[0]);
    assert_eq!(intent(8), 0, "what is not understood does not begin");
    assert_eq!(lines[1]["key"], "app-toy");
    assert_eq!(lines[1]["key_version"], 1);
}

#[test]
fn no_mount_hides_another_dialects_paths() {
    let a = Appliance::new();
    a.key("app-mine", &Value::Null);
    let body = json!({ "plaintext": b64(b"x") }).to_string();
    // With any mount taken, `key` would be one.
    a.expect(
        200,
        "POST",
        "key/encrypt/app-mine",
        &json!({ "plaintext": "" }),
    );
    for path in [
        "/v1/key/keys/app-mine",
        "/v1/%6bey/encrypt/app-mine",
        "/v1/key%2fencrypt/app-mine",
        "/v1/key/encrypt%2Fapp-mine",
        "/v1/key/x/encrypt/app-mine",
        "/v1/key/../transit/encrypt/app-mine",
    ] {
        let answer = send(&a, both(&a), Who::Operator, path, &[], &body);
        assert_eq!(
            answer,
            (404, json!({ "message": "no such path" })),
            "{path}"
        );
    }
    for path in ["/v1/KEY/encrypt/app-mine", "/v1/keys/encrypt/app-mine"] {
        let (status, answer) = send(&a, both(&a), Who::Operator, path, &[], &body);
        assert_eq!((status, answer["errors"].is_null()), (200, true), "{path}");
    }
    // And Vault's clients are told so.
    let asked = json!({ "paths": ["key/encrypt/app-mine", "keys/encrypt/app-mine"] }).to_string();
    let path = "/v1/sys/capabilities-self";
    let (status, told) = send(&a, both(&a), Who::Operator, path, &[], &asked);
    assert_eq!(status, 200);
    assert_eq!(told["data"]["key/encrypt/app-mine"], json!(["deny"]));
    assert_eq!(told["data"]["keys/encrypt/app-mine"], json!(["update"]));

    let mut config = a.app.config.clone();
    for (mount, other) in [
        ("key", true),
        ("/key/", true),
        ("key/team", true),
        ("keys", false),
        ("transit", false),
        ("team/key", false),
    ] {
        config.mounts = vec!["other".to_owned(), mount.to_owned()];
        let found = both(&a).contradictions(&config);
        assert_eq!(found.len(), usize::from(other), "{mount}: {found:?}");
        assert!(
            found
                .iter()
                .all(|why| why.contains(mount.trim_matches('/')))
        );
    }
    let twice = Endpoint::new(&TWICE, &TOY, Limits::configured(&config));
    assert_eq!(twice.contradictions(&config).len(), 1);
}

#[test]
fn a_listener_has_its_own_dialects_and_limits() {
    let a = Appliance::new();
    a.key("app-small", &Value::Null);
    let alone = |max_body, max_requests| {
        let limits = Limits {
            body: max_body,
            requests: max_requests,
            ..Limits::configured(&a.app.config)
        };
        Endpoint::new(&ALONE, &TOY, limits)
    };
    let ask = |endpoint, path: &str, body: &str| send(&a, endpoint, Who::Operator, path, &[], body);
    let path = "/v1/key/encrypt/app-small";
    assert_eq!(ask(alone(4, 1), path, "1234").0, 200);
    let large = "the request body is larger than 4 bytes: send less at once";
    assert_eq!(
        ask(alone(4, 1), path, "12345"),
        (413, json!({ "message": large }))
    );
    let many = "too many requests are in flight: try again later";
    assert_eq!(
        ask(alone(4, 0), path, ""),
        (503, json!({ "message": many }))
    );
    // Other dialects' paths lead nowhere here.
    for path in [
        "/v1/transit/encrypt/app-small",
        "/v1/sys/health",
        "/ui/",
        "/",
    ] {
        let nothing = (404, json!({ "message": "no such path" }));
        assert_eq!(ask(alone(4, 1), path, ""), nothing, "{path}");
    }
}
