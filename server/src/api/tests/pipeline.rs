use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Frame;
use serde_json::{Value, json};
use strongroom_core::policy::Policy;
use strongroom_core::tokens::Tokens;
use zeroize::Zeroizing;

use super::appliance::{Appliance, Who, named, run};
use crate::api::handle;

const DENIED: &str = "1 error occurred:\n\t* permission denied\n\n";

#[test]
fn only_what_the_policy_allows_is_done_and_each_decision_is_audited() {
    let a = Appliance::new();
    a.key("app-k", &Value::Null);
    let body = r#"{"plaintext":"c2VjcmV0"}"#;
    for (who, path, status) in [
        (Who::App, "transit/encrypt/app-k", 200),
        (Who::App, "transit/encrypt/other", 403),
        (Who::App, "transit/rewrap/app-k", 403),
        (Who::Stranger, "transit/encrypt/app-k", 403),
        (Who::Expired, "transit/encrypt/app-k", 403),
    ] {
        let before = a.audited().len();
        let reply = a.send(who, "POST", path, &[], body);
        assert_eq!(reply.status, status, "{who:?} {path}");
        let audited = a.audited();
        assert_eq!(audited.len(), before + 1);
        let line = audited.last().unwrap();
        assert_eq!(
            line["outcome"],
            if status == 200 { "ok" } else { "denied" },
            "{line}"
        );
        if status == 200 {
            assert_eq!(line["request_id"], reply.json()["request_id"]);
        } else {
            assert_eq!(reply.error(), DENIED);
        }
        assert!(
            !line.to_string().contains("c2VjcmV0"),
            "plaintext in the audit log"
        );
    }
}

/// Who has rights learns what is wrong with them; who has none learns what they said themselves.
#[test]
fn a_denial_says_who_asked_what_and_which_sort_it_is_to_whom_it_concerns() {
    const DENIES: &str = r#"
[[rule]]
identities = ["dns:app.test"]
keys = ["app-*", "token-*"]
operations = ["encrypt"]

[[rule]]
identities = ["dns:app.test"]
keys = ["token-*"]
operations = ["encrypt"]
require_token = true

[[rule]]
identities = ["**"]
keys = ["app-closed"]
operations = ["*"]
deny = true
"#;
    let a = Appliance::new();
    a.app.policy.store(Arc::new(Policy::parse(DENIES).unwrap()));
    let no_rule = "no policy rule allows it";
    let rule = "policy rule 3 denies it";
    let token = "the policy asks for a token and none was sent";
    for (who, key, told, reason) in [
        (Who::App, "app-closed", rule, rule),
        (Who::App, "other", no_rule, no_rule),
        (Who::App, "token-k", "with an API token only", token),
        // A stranger does not learn what the file has for others.
        (Who::Stranger, "app-closed", no_rule, rule),
        (Who::Stranger, "app-k", no_rule, no_rule),
        (Who::Stranger, "token-k", no_rule, no_rule),
    ] {
        let path = format!("transit/encrypt/{key}");
        let reply = a.send(who, "POST", &path, &[], r#"{"plaintext":"YQ=="}"#);
        assert_eq!(reply.status, 403, "{who:?} {key}");
        let errors = reply.json()["errors"].clone();
        let more = errors[1].as_str().unwrap().to_owned();
        assert!(more.contains(told), "{who:?} {key}: {more}");
        if reason != token {
            let name = if who == Who::App { "app" } else { "stranger" };
            let asked = format!("dns:{name}.test asked for encrypt with the key {key}: ");
            assert!(more.starts_with(&asked), "{more}");
            assert_eq!(reply.error(), DENIED);
        }
        assert_eq!(a.audited().last().unwrap()["reason"], reason);
    }
    let reply = a.send(Who::App, "LIST", "transit/keys", &[], "");
    let told = "dns:app.test asked for list: no policy rule allows it";
    assert_eq!(reply.json()["errors"][1], told);
}

/// A token that belongs to [`Who::App`]'s certificate.
fn apps_token(a: &Appliance) -> Zeroizing<String> {
    let identity = "dns:app.test".parse().unwrap();
    let made = Tokens::new_token("seal-1", &identity, None).unwrap();
    let tokens = Tokens::parse(&made.entry).unwrap();
    a.app.tokens.store(Arc::new(tokens));
    made.token
}

#[test]
fn tokens_work_with_their_certificate_only() {
    let a = Appliance::new();
    a.key("token-k", &Value::Null);
    let token = apps_token(&a);
    let token = token.as_str();
    let (path, body) = ("transit/encrypt/token-k", r#"{"plaintext":""}"#);
    let bearer = format!("Bearer {token}");
    let lower = format!("bearer  {token}");
    for (who, headers, status) in [
        (Who::App, vec![], 403),
        (Who::App, vec![("x-vault-token", "wrong")], 403),
        (
            Who::App,
            vec![("x-vault-token", token), ("x-vault-request", "true")],
            200,
        ),
        (Who::App, vec![("authorization", bearer.as_str())], 200),
        (Who::App, vec![("authorization", lower.as_str())], 200),
        (Who::App, vec![("authorization", "bearer wrong")], 403),
        (Who::Operator, vec![("authorization", "BEARER wrong")], 403),
        (
            Who::Operator,
            vec![("authorization", "Basic d3Jvbmc=")],
            403,
        ),
        (Who::Operator, vec![("authorization", "wrong")], 403),
        (Who::Operator, vec![("authorization", "Bearer ")], 200),
        // Of two tokens none is ignored.
        (
            Who::App,
            vec![("x-vault-token", token), ("x-vault-token", "wrong")],
            400,
        ),
        (
            Who::App,
            vec![
                ("authorization", bearer.as_str()),
                ("authorization", "Basic x"),
            ],
            400,
        ),
        (
            Who::App,
            vec![
                ("authorization", bearer.as_str()),
                ("x-vault-token", "wrong"),
            ],
            400,
        ),
        (
            Who::App,
            vec![("x-vault-token", token), ("authorization", "Bearer wrong")],
            400,
        ),
        (
            Who::App,
            vec![("x-vault-token", token), ("authorization", bearer.as_str())],
            200,
        ),
        (
            Who::App,
            vec![("x-vault-token", ""), ("authorization", bearer.as_str())],
            200,
        ),
        (
            Who::Operator,
            vec![("x-vault-token", ""), ("authorization", "Bearer wrong")],
            403,
        ),
        (Who::Operator, vec![("x-vault-token", token)], 403),
        (Who::Operator, vec![("x-vault-token", "")], 200),
    ] {
        let reply = a.send(who, "POST", path, &headers, body);
        assert_eq!(reply.status, status, "{who:?} {headers:?}");
        if status == 403 {
            assert_eq!(reply.error(), "permission denied");
        }
    }
    assert!(
        !a.audited()
            .iter()
            .any(|line| line.to_string().contains(token))
    );
}

#[test]
fn a_token_is_looked_up_and_renewed_with_its_certificate() {
    let a = Appliance::new();
    let token = apps_token(&a);
    let token = token.as_str();
    let headers = [("x-vault-token", token)];
    let found = a
        .send(Who::App, "GET", "auth/token/lookup-self", &headers, "")
        .json();
    assert_eq!(found["data"]["meta"]["identity"], "dns:app.test");
    let renewed = a
        .send(
            Who::App,
            "PUT",
            "auth/token/renew-self",
            &headers,
            r#"{"increment":0}"#,
        )
        .json();
    assert_eq!(renewed["auth"]["accessor"], "seal-1");
    for (method, path) in [
        ("GET", "auth/token/lookup-self"),
        ("PUT", "auth/token/renew-self"),
    ] {
        let reply = a.send(Who::App, method, path, &[], "");
        assert_eq!(
            (reply.status, reply.error().as_str()),
            (403, "permission denied")
        );
    }
}

/// For clients that must log in: the token says which certificate logged in, and nothing else.
#[test]
fn a_login_gives_what_the_certificate_gives_and_to_nobody_else() {
    let a = Appliance::new();
    a.key("app-login", &Value::Null);
    a.key("token-login", &Value::Null);
    let login = |who: Who, path: &str, body: &str| a.send(who, "PUT", path, &[], body.to_owned());
    let made = login(Who::App, "auth/cert/login", "").json();
    let (auth, token) = (
        &made["auth"],
        made["auth"]["client_token"].as_str().unwrap(),
    );
    assert!(token.starts_with("srl.") && auth["renewable"] == true);
    let lease = auth["lease_duration"].as_i64().unwrap();
    assert!((1..=32 * 86_400).contains(&lease), "{lease}");
    assert_eq!(auth["metadata"]["identity"], "dns:app.test");
    // Any mount; and each login is one of its own.
    let again = login(Who::App, "auth/team/a/login", r#"{"name":"web"}"#).json();
    let other = again["auth"]["client_token"].as_str().unwrap();
    assert_ne!(other, token);
    assert_eq!(again["warnings"].as_array().unwrap().len(), 1);
    // Another method's credentials are not what was asked for.
    assert_eq!(
        login(Who::App, "auth/approle/login", r#"{"role_id":"x"}"#).status,
        400
    );
    assert_eq!(login(Who::Expired, "auth/cert/login", "").status, 403);

    let with = [("x-vault-token", token)];
    let found = a
        .send(Who::App, "GET", "auth/token/lookup-self", &with, "")
        .json();
    assert_eq!(
        (&found["data"]["id"], &found["data"]["path"]),
        (&json!(token), &json!("auth/cert/login"))
    );
    let renewed = a
        .send(Who::App, "POST", "auth/token/renew-self", &with, "")
        .json();
    assert_eq!(renewed["auth"]["client_token"], token);
    let plaintext = r#"{"plaintext":""}"#;
    for (who, path, status) in [
        (Who::App, "transit/encrypt/app-login", 200),
        // No more rights: not another key's, and not where a rule asks for a token.
        (Who::App, "transit/encrypt/other", 403),
        (Who::App, "transit/encrypt/token-login", 403),
        // Nobody else's.
        (Who::Operator, "transit/encrypt/app-login", 403),
        (Who::Stranger, "transit/encrypt/app-login", 403),
    ] {
        assert_eq!(
            a.send(who, "POST", path, &with, plaintext).status,
            status,
            "{who:?} {path}"
        );
    }
    // `POST` too, and of no other token.
    for (body, status) in [
        (Value::Null, 200),
        (json!({ "token": token }), 200),
        (json!({ "token": other }), 400),
    ] {
        let reply = a.send(
            Who::App,
            "POST",
            "auth/token/lookup-self",
            &with,
            body.to_string(),
        );
        assert_eq!(reply.status, status, "{body}");
    }
    let altered = format!(
        "{}{}",
        &token[..token.len() - 1],
        if token.ends_with('A') { "B" } else { "A" }
    );
    let mixed = format!("{}{}", &other[..24], &token[24..]);
    for wrong in [
        altered.as_str(),
        "srl.",
        &token[1..],
        &mixed,
        &format!("{token}A"),
    ] {
        let reply = a.send(
            Who::App,
            "POST",
            "transit/encrypt/app-login",
            &[("x-vault-token", wrong)],
            plaintext,
        );
        assert_eq!(reply.status, 403, "{wrong}");
    }
}

#[test]
fn a_login_is_ended_by_whoever_has_it_and_no_other_with_it() {
    let a = Appliance::new();
    a.key("app-login", &Value::Null);
    let login = || {
        let made = a.send(Who::App, "PUT", "auth/cert/login", &[], "").json();
        made["auth"]["client_token"].as_str().unwrap().to_owned()
    };
    let (token, other) = (&*login(), &*login());
    let plaintext = r#"{"plaintext":""}"#;
    let end = |who: Who, token: &str, body: &str| {
        let with = [("x-vault-token", token)];
        a.send(
            who,
            "POST",
            "auth/token/revoke-self",
            &with,
            body.to_owned(),
        )
    };
    assert_eq!(end(Who::App, token, r#"{"accessor":"x"}"#).status, 400);
    assert_eq!(end(Who::Operator, token, "").status, 403);
    assert_eq!(end(Who::App, "", "").status, 403);
    assert_eq!(end(Who::App, token, "").status, 204);
    assert_eq!(end(Who::App, token, "").status, 403);
    for (token, status) in [(token, 403), (other, 200)] {
        let with = [("x-vault-token", token)];
        let reply = a.send(
            Who::App,
            "POST",
            "transit/encrypt/app-login",
            &with,
            plaintext,
        );
        assert_eq!(reply.status, status);
    }
    // It is not what stops a certificate.
    assert_eq!(
        a.send(
            Who::App,
            "POST",
            "transit/encrypt/app-login",
            &[],
            plaintext
        )
        .status,
        200
    );
    let log = std::fs::read_to_string(&a.app.config.audit.path).unwrap();
    assert!(
        log.contains("\"login\"")
            && log.contains("\"revoke-self\"")
            && log.contains("login-")
            && !log.contains(token)
    );
}

#[test]
fn clients_are_told_their_mounts() {
    let a = Appliance::with(|config| {
        config.mounts = vec!["transit".to_owned(), "team/kms/".to_owned()];
    });
    a.key("app-may", &Value::Null);
    let mounts = a.expect(200, "GET", "sys/mounts", &Value::Null);
    assert_eq!(
        (
            &mounts["data"]["transit/"]["type"],
            &mounts["data"]["team/kms/"]["type"]
        ),
        (&json!("transit"), &json!("transit"))
    );
    for mount in ["transit", "team/kms", "team/kms/"] {
        let path = format!("sys/mounts/{mount}");
        let found = a.expect(200, "GET", &path, &Value::Null);
        assert_eq!(found["data"], mounts["data"]["transit/"]);
    }
    let shown = a.expect(200, "GET", "sys/internal/ui/mounts", &Value::Null);
    assert!(
        shown["data"]["secret"]["transit/"].is_object()
            && shown["data"]["auth"]["cert/"].is_object()
    );
    for (path, mount) in [
        ("transit", "transit/"),
        ("transit/keys/x", "transit/"),
        ("team/kms/encrypt/x", "team/kms/"),
    ] {
        let found = a.expect(
            200,
            "GET",
            &format!("sys/internal/ui/mounts/{path}"),
            &Value::Null,
        );
        assert_eq!(
            (&found["data"]["path"], &found["data"]["type"]),
            (&json!(mount), &json!("transit"))
        );
    }
    for path in ["secret", "transitx", "team", "transit/tune", ""] {
        let reply = a.ask("GET", &format!("sys/mounts/{path}"), &Value::Null);
        let (status, error) = match path {
            "" => (
                404,
                "1 error occurred:\n\t* unsupported path\n\n".to_owned(),
            ),
            path => (400, format!("No secret engine mount at {path}/")),
        };
        assert_eq!((reply.status, reply.error()), (status, error), "{path}");
    }
    for path in ["secret", "transitx", "team"] {
        let reply = a.ask(
            "GET",
            &format!("sys/internal/ui/mounts/{path}"),
            &Value::Null,
        );
        assert!(
            reply.status == 403 && reply.error().contains("preflight capability check"),
            "{path}"
        );
    }
}

#[test]
fn clients_are_told_what_they_may_do() {
    let a = Appliance::new();
    a.key("app-may", &Value::Null);
    let body = json!({ "paths": ["transit/encrypt/app-may", "transit/keys/app-may", "transit/keys", "transit/encrypt/token-x", "secret/x", "sys/metrics"] });
    for (who, expected) in [
        (
            Who::App,
            json!([["update"], ["deny"], ["deny"], ["deny"], ["deny"], ["deny"]]),
        ),
        (
            Who::Operator,
            json!([
                ["update"],
                ["create", "delete", "read"],
                ["list"],
                ["update"],
                ["deny"],
                ["read"]
            ]),
        ),
        (
            Who::Stranger,
            json!([["deny"], ["deny"], ["deny"], ["deny"], ["deny"], ["deny"]]),
        ),
    ] {
        let reply = a
            .send(who, "POST", "sys/capabilities-self", &[], body.to_string())
            .json();
        let paths = body["paths"].as_array().unwrap();
        let found: Vec<&Value> = paths
            .iter()
            .map(|path| &reply["data"][path.as_str().unwrap()])
            .collect();
        assert_eq!(json!(found), expected, "{who:?}");
        assert_eq!(reply["data"]["capabilities"], expected[0]);
    }
    for bad in [
        json!({}),
        json!({ "paths": [] }),
        json!({ "paths": [1] }),
        json!({ "paths": {} }),
        json!({ "paths": vec!["x"; 65] }),
        json!({ "path": "" }),
        json!({ "path": "transit/keys", "paths": ["transit/keys"] }),
    ] {
        a.expect(400, "POST", "sys/capabilities-self", &bad);
    }
    let one = a.expect(
        200,
        "PUT",
        "sys/capabilities-self",
        &json!({ "path": "transit/random" }),
    );
    assert_eq!(one["data"]["capabilities"], json!(["update"]));
}

#[test]
fn a_certificate_without_rights_does_not_fill_the_audit_log() {
    let a = Appliance::new();
    for _ in 0..150 {
        for (method, path) in [
            ("POST", "auth/cert/login"),
            ("GET", "auth/token/lookup-self"),
            ("POST", "auth/token/renew-self"),
            ("POST", "auth/token/revoke-self"),
        ] {
            a.send(Who::Stranger, method, path, &[], "");
        }
    }
    let login = a.send(Who::Stranger, "POST", "auth/cert/login", &[], "");
    assert_eq!(login.status, 200, "it is answered all the same");
    assert_eq!(a.audited().len(), 100);
}

/// Denials in a log: one by one, and beyond a hundred by their number.
fn told_of_denials(lines: &[Value]) -> usize {
    let one_by_one = lines.iter().filter(|line| line["outcome"] == "denied");
    let sums = lines.iter().filter(|line| line["type"] == "summary");
    let counted: u64 = sums.filter_map(|line| line["denied"].as_u64()).sum();
    one_by_one.count() + usize::try_from(counted).unwrap()
}

/// What a page of another site makes an administrator's browser send. tests/monitoring has a real
/// one do it.
#[test]
fn what_a_browser_was_made_to_send_is_denied_and_audited() {
    let a = Appliance::new();
    a.key("p-browser", &Value::Null);
    let evil = ("origin", "https://evil.example");
    let site = ("sec-fetch-site", "cross-site");
    let form = ("content-type", "application/x-www-form-urlencoded");
    let mut denied = 0;
    for headers in [
        &[evil][..],
        &[site],
        &[site, evil, form],
        &[("origin", "null")],
        &[("sec-fetch-mode", "navigate")],
        &[("referer", "http://evil.example/")],
    ] {
        for (method, path) in [
            ("POST", "transit/keys/p-browser/rotate"),
            ("POST", "transit/keys/p-browser/config"),
            ("DELETE", "transit/keys/p-browser"),
            ("POST", "transit/encrypt/p-browser"),
            ("POST", "transit/random"),
            ("GET", "transit/keys/p-browser"),
            ("LIST", "transit/keys"),
            ("POST", "sys/rotate-master"),
            ("GET", "sys/metrics"),
            ("GET", "/ui/"),
        ] {
            let reply = a.send(Who::Operator, method, path, headers, "");
            let read = method == "GET" && headers[0].0 == "sec-fetch-mode";
            if read {
                assert_eq!(reply.status, 200, "{path}: a reader's own navigation");
                continue;
            }
            assert_eq!(reply.status, 403, "{method} {path} {headers:?}");
            assert!(
                reply.error().starts_with("a browser sent this"),
                "{}",
                reply.error()
            );
            assert!(
                !reply
                    .headers
                    .keys()
                    .any(|name| name.as_str().starts_with("access-control"))
            );
            denied += 1;
        }
        // Also where a request leaves no line, and where nothing is.
        for (method, path) in [
            ("GET", "/.well-known/jwks.json"),
            ("GET", "/ui/style.css"),
            ("GET", "sys/health"),
            ("GET", "sys/mounts"),
            ("POST", "sys/capabilities-self"),
            ("GET", "nope"),
            ("POST", "transit/nope"),
            ("GET", "/nope"),
            ("DELETE", "transit/encrypt/p-browser"),
            ("OPTIONS", "transit/keys/p-browser/rotate"),
            ("GET", "transit/keys?list=perhaps"),
            ("GET", "transit/%zz"),
        ] {
            let reply = a.send(Who::Operator, method, path, headers, "");
            let expected = headers[0].0 != "sec-fetch-mode" || method != "GET";
            assert_eq!(reply.status == 403, expected, "{method} {path} {headers:?}");
            denied += usize::from(expected);
        }
    }
    // A preflight is told nothing.
    let preflight = [evil_origin(), ("access-control-request-method", "POST")];
    let reply = a.send(
        Who::Operator,
        "OPTIONS",
        "transit/keys/p-browser/rotate",
        &preflight,
        "",
    );
    assert_eq!(reply.status, 403);
    denied += 1;
    assert!(
        !reply
            .headers
            .keys()
            .any(|name| name.as_str().starts_with("access-control"))
    );
    let key = a.expect(200, "GET", "transit/keys/p-browser", &Value::Null);
    assert_eq!(key["data"]["latest_version"], 1);
    // The control: the same, sent by a program.
    a.expect(200, "POST", "transit/keys/p-browser/rotate", &Value::Null);
    run(a.app.audit.close()).unwrap();
    let log = std::fs::read_to_string(&a.app.config.audit.path).unwrap();
    let lines: Vec<Value> = log
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(told_of_denials(&lines), denied);
    assert!(lines.iter().any(|line| line["operation"] == "none"));
    let evil = lines.iter().find(|line| line.to_string().contains("evil"));
    assert_eq!(evil, None);
}

fn evil_origin() -> (&'static str, &'static str) {
    ("origin", "https://evil.example")
}

/// One rule: what is refused is told to the audit log, whatever the path.
#[test]
fn each_refusal_is_audited_on_every_path() {
    let a = Appliance::new();
    a.key("p-refused", &Value::Null);
    let refused = [
        ("DELETE", "transit/encrypt/p-refused", 405, "none"),
        ("PATCH", "transit/keys/p-refused", 405, "none"),
        ("OPTIONS", "sys/health", 405, "none"),
        ("POST", "transit/nope", 404, "none"),
        ("GET", "nope", 404, "none"),
        ("GET", "/nope", 404, "none"),
        ("GET", "transit/keys?list=perhaps", 400, "none"),
        ("GET", "sys/health?activecode=1", 400, "health"),
        ("GET", "transit/keys/not-there", 404, "read"),
    ];
    for (method, path, status, _) in refused {
        let reply = a.send(Who::Operator, method, path, &[], "");
        assert_eq!(reply.status, status, "{method} {path}");
    }
    // What is taken has a line only where it concerns keys.
    for path in ["sys/health", "sys/seal-status"] {
        a.expect(200, "GET", path, &Value::Null);
    }
    run(a.app.audit.close()).unwrap();
    let log = std::fs::read_to_string(&a.app.config.audit.path).unwrap();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let told: Vec<_> = lines
        .iter()
        .filter(|line| line["outcome"] == "error")
        .map(|line| (line["status"].clone(), line["operation"].clone()))
        .collect();
    let expected = refused.map(|(_, _, status, operation)| (json!(status), json!(operation)));
    assert_eq!(told, expected);
    assert!(
        !log.contains("seal-status") && !log.contains("nope"),
        "{log}"
    );
}

#[test]
fn requests_that_make_no_sense_are_told_so() {
    let a = Appliance::with(|config| config.mounts = vec!["transit".to_owned()]);
    for (method, path, status, error) in [
        (
            "POST",
            "nomount/encrypt/x",
            404,
            "no handler for route \"nomount/encrypt/x\". route entry not found.",
        ),
        (
            "POST",
            "transit/nope",
            404,
            "1 error occurred:\n\t* unsupported path\n\n",
        ),
        (
            "POST",
            "transit/encrypt/-x",
            404,
            "1 error occurred:\n\t* unsupported path\n\n",
        ),
        (
            "DELETE",
            "transit/encrypt/x",
            405,
            "1 error occurred:\n\t* unsupported operation\n\n",
        ),
        ("TRACE", "transit/encrypt/x", 405, ""),
        (
            "GET",
            "transit/keys?list=perhaps",
            400,
            "\"list\" is true or false",
        ),
    ] {
        let reply = a.send(Who::Operator, method, path, &[], "");
        assert_eq!(
            (reply.status, reply.error().as_str()),
            (status, error),
            "{method} {path}"
        );
    }
    for body in ["{", "[1]", "\u{0}", "{\"plaintext\":"] {
        let reply = a.send(Who::Operator, "POST", "transit/encrypt/x", &[], body);
        assert_eq!(
            (reply.status, reply.error().as_str()),
            (400, "error parsing JSON"),
            "{body}"
        );
    }
    for (header, value, status) in [
        ("x-vault-namespace", "team", 400),
        ("x-vault-namespace", "root", 200),
        ("x-vault-wrap-ttl", "60s", 400),
    ] {
        let reply = a.send(
            Who::Operator,
            "POST",
            "transit/random",
            &[(header, value)],
            "",
        );
        assert_eq!(reply.status, status, "{header}: {value}");
    }
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let reply = a.send(
        Who::Operator,
        "POST",
        "transit/random",
        &form,
        "bytes=2&format=hex",
    );
    assert_eq!(
        reply.json()["data"]["random_bytes"].as_str().unwrap().len(),
        4
    );
}

#[test]
fn a_body_that_is_too_large_is_refused_whether_or_not_it_says_so() {
    let a = Appliance::with(|config| config.max_body = 1 << 20);
    let large = Bytes::from(vec![b' '; 10 << 20]);
    let reply = a.send(
        Who::Operator,
        "POST",
        "transit/encrypt/x",
        &[],
        large.clone(),
    );
    assert_eq!(reply.status, 413);
    assert_eq!(reply.headers["connection"], "close");
    // In pieces, without a length.
    let request = Request::post("/v1/transit/encrypt/x")
        .body(Pieces(large, 65_536))
        .unwrap();
    let response = run(handle(a.client(Who::Operator), request));
    assert_eq!(response.status(), 413);
    // Small settings take small bodies.
    assert_eq!(
        a.send(
            Who::Operator,
            "POST",
            "transit/keys/x",
            &[],
            vec![b' '; 65_537]
        )
        .status,
        413
    );
    // And a body in pieces that fits is read whole.
    let text = json!({ "bytes": 2, "format": "hex" }).to_string();
    let request = Request::post("/v1/transit/random")
        .body(Pieces(text.into(), 3))
        .unwrap();
    let response = run(handle(a.client(Who::Operator), request));
    assert_eq!(response.status(), 200);
    let bytes = run(response.into_body().collect()).unwrap().to_bytes();
    let answer: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(answer["data"]["random_bytes"].as_str().unwrap().len(), 4);
}

/// A body without a length that comes in pieces of so many bytes.
struct Pieces(Bytes, usize);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let size = self.1.min(self.0.len());
        let piece = self.0.split_to(size);
        Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(piece))))
    }
}

#[test]
fn one_request_too_many_is_refused_at_once() {
    let a = Appliance::with(|config| config.max_requests = 1);
    let (_keep, waits) = tokio::sync::oneshot::channel::<()>();
    run(async {
        let body = Full::new(Bytes::new());
        let never = Request::post("/v1/transit/random")
            .body(Slow(waits))
            .unwrap();
        let first = tokio::spawn(handle(a.client(Who::Operator), never));
        while a.app.admission.in_flight() == 0 && !first.is_finished() {
            tokio::task::yield_now().await;
        }
        let request = Request::post("/v1/transit/random")
            .body(body.clone())
            .unwrap();
        let refused = handle(a.client(Who::Operator), request).await;
        assert_eq!(
            (refused.status().as_u16(), &refused.headers()["retry-after"]),
            (503, &"1".parse().unwrap())
        );
        // The client of the first one goes away: its place is free again, and it is in the audit
        // log.
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        let request = Request::post("/v1/transit/random").body(body).unwrap();
        let served = handle(a.client(Who::Operator), request).await;
        assert_eq!(served.status(), 200);
    });
    let statuses: Vec<Value> = a
        .audited()
        .iter()
        .map(|line| line["status"].clone())
        .collect();
    assert_eq!(statuses, [499, 200]);
}

/// A body that does not come.
struct Slow(tokio::sync::oneshot::Receiver<()>);

impl hyper::body::Body for Slow {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let _ = Pin::new(&mut self.0).poll(cx);
        Poll::Pending
    }
}

#[test]
fn a_change_is_finished_and_audited_though_the_client_goes_away() {
    let a = Appliance::new();
    run(async {
        let request = Request::post("/v1/transit/keys/p-gone")
            .body(Full::new(Bytes::new()))
            .unwrap();
        let mut work = Box::pin(handle(a.client(Who::Operator), request));
        // The body is there, so one poll leads to where the change has begun.
        std::future::poll_fn(|cx| {
            assert!(work.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        drop(work);
        while a.app.admission.in_flight() > 0 {
            tokio::task::yield_now().await;
        }
    });
    let statuses: Vec<Value> = a
        .audited()
        .iter()
        .map(|line| line["status"].clone())
        .collect();
    assert_eq!(statuses, [200]);
    assert!(a.app.keyring.exists(named("p-gone")));
}

#[test]
fn without_a_token_in_the_hsm_nothing_is_500() {
    // What each layer's outage becomes, without waiting for one: tests/ makes real ones.
    use crate::api::vault::error::{ApiError, Doing};
    use strongroom_core::keyring::KeyringError;
    use strongroom_core::store::StoreError;
    use strongroom_hsm::HsmError;
    for error in [
        HsmError::Unavailable("gone".into()),
        HsmError::Busy(7),
        HsmError::Deadline(std::time::Duration::from_secs(1)),
        HsmError::Pin("CKR_PIN_INCORRECT".into()),
        HsmError::Pkcs11 {
            function: "C_Decrypt".into(),
            code: "CKR_GENERAL_ERROR".into(),
        },
    ] {
        for error in [
            KeyringError::Hsm(error.clone()),
            KeyringError::Store(StoreError::Hsm(error.clone())),
            KeyringError::Store(StoreError::EpochPending(error)),
        ] {
            let text = error.to_string();
            let answer = ApiError::from_keyring(error, Doing::Decrypt, "k");
            assert_eq!(
                (answer.status, answer.messages[0].as_ref()),
                (503, text.as_str())
            );
        }
    }
    let io = ApiError::from_keyring(
        KeyringError::Store(StoreError::Io("/secret/path".into())),
        Doing::Create,
        "k",
    );
    assert_eq!((io.status, io.messages[0].contains("secret")), (503, false));
}
