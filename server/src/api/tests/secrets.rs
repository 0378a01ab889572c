//! Nothing that a client sends as a value comes back in an error, or stands in the audit log.
#![allow(clippy::too_many_lines, reason = "one walk over all that can be said")]

use serde_json::{Value, json};

use super::appliance::{Appliance, Who, named};
use crate::api::vault::routes::{Route, SYSTEM, TRANSIT, Verb};

/// What no log may hold: a card's number, as text and as a number; what is not a number; what needs
/// escapes.
const SECRETS: &[&str] = &[
    "4111111111111111",
    "123-45-6789",
    "\u{1}\u{1}correct horse\u{1}",
];

fn shapes(secret: &str) -> Vec<Value> {
    let mut shapes = vec![
        json!(secret),
        json!([secret]),
        json!({ secret: secret }),
        json!([{ secret: secret, "plaintext": secret, "ciphertext": secret, "input": secret, "hmac": secret, "signature": secret }]),
        json!([{ "plaintext": [secret], "input": { secret: 1 } }]),
        json!([[secret]]),
        json!([secret]),
        json!({ "sub": { secret: secret }, "exp": secret, "iss": secret, "aud": [secret, 1] }),
    ];
    if let Ok(number) = secret.parse::<u64>() {
        shapes.push(json!(number));
        shapes.push(json!([number]));
        shapes.push(json!([{ "plaintext": number, "key_version": number, "input": number }]));
        shapes.push(json!(-i64::try_from(number).unwrap()));
        shapes.push(json!([{ "plaintext": "", "input": "", "key_version": number }]));
    }
    shapes
}

fn path(route: &Route, name: &str, other: &str) -> String {
    let escaped = percent_encoding::utf8_percent_encode(other, percent_encoding::NON_ALPHANUMERIC);
    let mut path = route.path.replace("{name}", name);
    for capture in [
        "{source}",
        "{urlbytes}",
        "{urlalgorithm}",
        "{plaintext}",
        "{type}",
        "{version}",
        "{mount}",
        "{path}",
    ] {
        path = path.replace(capture, &escaped.to_string());
    }
    if SYSTEM.iter().any(|own| std::ptr::eq(own, route)) {
        path
    } else {
        format!("transit/{path}")
    }
}

fn method(verb: Verb) -> &'static str {
    match verb {
        Verb::Read => "GET",
        Verb::List => "LIST",
        Verb::Update => "POST",
        Verb::Delete => "DELETE",
        Verb::Head => "HEAD",
    }
}

/// Vault's words repeat a version that could be one, and a length: to the client alone.
#[test]
fn a_number_that_is_repeated_to_the_client_is_not_in_the_log() {
    let a = Appliance::with(|config| config.keyring.jwt.keys = vec![named("n-jwt").to_owned()]);
    a.key("n-aes", &Value::Null);
    a.key("n-jwt", &json!({ "type": "ecdsa-p256" }));
    a.key("n-rsa", &json!({ "type": "rsa-4096" }));
    let config = "transit/keys/n-aes/config";
    a.expect(200, "POST", "transit/keys/n-aes/rotate", &Value::Null);
    let both = json!({ "min_encryption_version": 1, "min_decryption_version": 2 });
    for (path, body, told, logged) in [
        (
            config,
            json!({ "min_decryption_version": 1_234_567 }),
            "cannot set min decryption version of 1234567, latest key version is 2",
            "min_decryption_version is higher than the latest key version",
        ),
        (
            config,
            json!({ "min_encryption_version": 1_234_567 }),
            "cannot set min encryption version of 1234567, latest key version is 2",
            "min_encryption_version is higher than the latest key version",
        ),
        (
            config,
            both,
            "cannot set min encryption/decryption values; min encryption version of 1 must be greater than or equal to min decryption version of 2",
            "min_encryption_version is lower than min_decryption_version",
        ),
        (
            config,
            json!({ "min_decryption_version": 4_111_111_111_111_111_u64 }),
            "cannot set min decryption version: it is higher than any key version can be",
            "cannot set min decryption version: it is higher than any key version can be",
        ),
        (
            "transit/sign/n-rsa",
            json!({ "input": "YQ==", "salt_length": 12345 }),
            "salt_length 12345 is too long: at most 478 bytes with this hash",
            "salt_length is too long with this hash",
        ),
        (
            "transit/keys/n-new",
            json!({ "type": "rsa-2048" }),
            "key type rsa-2048 is not supported: the types are aes256-gcm96, ecdsa-p256, rsa-4096 and ed25519",
            "a key type that is not supported",
        ),
    ] {
        let reply = a.send(Who::Operator, "POST", path, &[], body.to_string());
        assert_eq!((reply.status, &*reply.error()), (400, told), "{body}");
        assert_eq!(a.audited().last().unwrap()["reason"], logged, "{body}");
    }
    let number = 1_234_567_890_u32;
    for route in TRANSIT.iter().filter(|route| route.verb == Verb::Update) {
        for key in ["n-aes", "n-jwt", "n-rsa"] {
            let path = path(route, key, "sha2-256");
            for name in route.request.names {
                for value in [json!(number), json!(number.to_string())] {
                    let mut body = json!({ "plaintext": "YQ==", "input": "YQ==", "claims": {} });
                    body[*name] = value;
                    a.send(Who::Operator, "POST", &path, &[], body.to_string());
                }
            }
        }
    }
    let log = std::fs::read_to_string(&a.app.config.audit.path).unwrap();
    let line = log.lines().find(|line| line.contains(&number.to_string()));
    assert_eq!(line, None);
}

#[test]
fn a_value_is_neither_repeated_nor_logged_whatever_parameter_it_stands_in() {
    let a = Appliance::with(|config| config.keyring.jwt.keys = vec![named("x-sign").to_owned()]);
    a.key("x-aes", &Value::Null);
    a.key("x-sign", &json!({ "type": "ecdsa-p256" }));
    let mut asked = 0;
    let mut check = |who: Who,
                     method: &str,
                     path: &str,
                     headers: &[(&str, &str)],
                     body: String,
                     secret: &str| {
        asked += 1;
        let reply = a.send(who, method, path, headers, body.clone());
        let text = String::from_utf8_lossy(&reply.bytes).into_owned();
        let plain = secret.trim_matches('\u{1}');
        // A 200 may hold what was asked for, such as a name.
        assert!(
            reply.status == 200 || !text.contains(plain),
            "{method} {path} {body}: {text}"
        );
        assert!(reply.status == 200 || text.len() < 1024, "{text}");
    };
    for (n, secret) in SECRETS.iter().enumerate() {
        // All shapes once are enough.
        let most = if n == 0 { usize::MAX } else { 4 };
        for route in TRANSIT.iter().chain(SYSTEM) {
            let method = method(route.verb);
            let name = match route.label {
                "sign" | "jwt" => "x-sign",
                // Each would take its time.
                "rotate" => "x-absent",
                _ => "x-aes",
            };
            {
                check(
                    Who::Operator,
                    method,
                    &path(route, name, secret),
                    &[],
                    String::new(),
                    secret,
                );
                let path = path(route, name, "sha2-256");
                let escaped: String = form_urlencoded::byte_serialize(secret.as_bytes()).collect();
                if route.verb != Verb::Update {
                    let query = format!("{path}?{escaped}={escaped}");
                    check(Who::Operator, method, &query, &[], String::new(), secret);
                    for name in route.request.names {
                        let query = format!("{path}?{name}={escaped}");
                        check(Who::Operator, method, &query, &[], String::new(), secret);
                    }
                    check(
                        Who::Operator,
                        method,
                        &path,
                        &[],
                        json!({ *secret: *secret }).to_string(),
                        secret,
                    );
                    continue;
                }
                let form = [("content-type", "application/x-www-form-urlencoded")];
                for name in route.request.names.iter().chain([secret]) {
                    for shape in shapes(secret).into_iter().take(most) {
                        let mut body = json!({ *name: shape });
                        check(Who::Operator, method, &path, &[], body.to_string(), secret);
                        // With what is needed to come further.
                        let object = body.as_object_mut().unwrap();
                        for (name, value) in [
                            ("plaintext", "YQ=="),
                            ("input", "YQ=="),
                            ("ciphertext", "vault:v1:YQ=="),
                            ("claims", ""),
                        ] {
                            let value = if name == "claims" {
                                json!({})
                            } else {
                                json!(value)
                            };
                            object.entry(name).or_insert(value);
                        }
                        check(Who::Operator, method, &path, &[], body.to_string(), secret);
                    }
                    let pair = format!(
                        "{}={escaped}",
                        form_urlencoded::byte_serialize(name.as_bytes()).collect::<String>()
                    );
                    check(Who::Operator, method, &path, &form, pair, secret);
                }
                check(
                    Who::Operator,
                    method,
                    &path,
                    &[],
                    format!("{{\"input\":{secret}"),
                    secret,
                );
                check(
                    Who::Operator,
                    method,
                    &path,
                    &form,
                    (*secret).to_owned(),
                    secret,
                );
            }
        }
        for header in [
            "x-vault-token",
            "authorization",
            "x-vault-namespace",
            "x-vault-wrap-ttl",
            "if-none-match",
            "origin",
            "referer",
        ] {
            let value = secret.trim_matches('\u{1}');
            check(
                Who::Operator,
                "POST",
                "transit/sign/x-sign",
                &[(header, value)],
                String::new(),
                secret,
            );
        }
    }
    assert!(asked > 4_000, "{asked}");
    let log = std::fs::read_to_string(&a.app.config.audit.path).unwrap();
    for secret in SECRETS {
        for form in [
            (*secret).to_owned(),
            secret.trim_matches('\u{1}').to_owned(),
        ] {
            let line = log.lines().find(|line| line.contains(&form));
            assert_eq!(line, None, "{form:?}");
        }
    }
    let longest = log.lines().map(str::len).max().unwrap();
    assert!(longest < 4096, "{longest}");
}
