//! What a request says and this appliance doesn't understand is never answered 200 as if it had
//! been understood.
#![allow(clippy::too_many_lines, clippy::type_complexity, reason = "tables")]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::appliance::{Appliance, Who, named};

const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");
const MIXED: (&str, &str) = (
    "content-type",
    "Application/X-WWW-Form-URLencoded; charset=UTF-8",
);
const JSON: (&str, &str) = ("content-type", "Application/JSON");

/// curl's `-d` calls JSON a form. Vault looks at the first byte, and so all examples of its
/// documentation work.
#[test]
fn json_that_is_called_a_form_is_json() {
    let a = Appliance::new();
    for (n, content_type) in [FORM, MIXED, JSON, ("content-type", "text/plain")]
        .into_iter()
        .enumerate()
    {
        let key = format!("transit/keys/t-form-{n}");
        let post = |path: &str, body: &str| {
            let reply = a.send(
                Who::Operator,
                "POST",
                path,
                &[content_type],
                body.to_owned(),
            );
            assert_eq!(
                reply.status,
                200,
                "{content_type:?} {path}: {}",
                reply.json()
            );
            reply.json()["data"].clone()
        };
        assert_eq!(
            post(&key, r#" {"type":"ecdsa-p256"}"#)["type"],
            "ecdsa-p256"
        );
        let path = format!("{key}/config");
        assert_eq!(
            post(&path, r#"{"deletion_allowed":true}"#)["deletion_allowed"],
            true
        );
        assert_eq!(
            post(&path, "\n{\"deletion_allowed\":false}\n")["deletion_allowed"],
            false
        );
        let path = format!("transit/sign/t-form-{n}");
        let signature = post(&path, r#"{"input":"YWJj"}"#)["signature"].clone();
        let path = format!("transit/verify/t-form-{n}");
        for (input, valid) in [("YWJj", true), ("", false)] {
            let body = json!({ "input": input, "signature": signature }).to_string();
            assert_eq!(post(&path, &body)["valid"], valid);
        }
    }
    // And a form is one, whatever the case of what it is called.
    for content_type in [FORM, MIXED] {
        let reply = a.send(
            Who::Operator,
            "POST",
            "transit/keys/t-form-real",
            &[content_type],
            "type=ecdsa-p256",
        );
        assert_eq!(
            reply.json()["data"]["type"],
            "ecdsa-p256",
            "{content_type:?}"
        );
    }
}

#[test]
fn what_is_not_understood_is_refused() {
    let a = Appliance::new();
    a.key("t-aes", &Value::Null);
    a.key("t-sign", &json!({ "type": "ecdsa-p256" }));
    let made = a.expect(200, "POST", "transit/hmac/t-aes", &json!({ "input": "" }));
    let hmac = made["data"]["hmac"].as_str().unwrap().to_owned();
    let made = a.expect(200, "POST", "transit/sign/t-sign", &json!({ "input": "" }));
    let signature = made["data"]["signature"].as_str().unwrap().to_owned();
    let new = "transit/keys/t-never";
    let own = |template: &str| {
        template
            .replace("HMAC", &hmac)
            .replace("SIGNATURE", &signature)
    };
    #[rustfmt::skip]
    let rows: &[(&str, &str, &[(&str, &str)], &str)] = &[
        // Neither JSON nor a form.
        ("POST", new, &[FORM], "hello"),
        ("POST", new, &[FORM], "\"type\""),
        ("POST", new, &[FORM], "\u{feff}{\"type\":\"ecdsa-p256\"}"),
        ("POST", new, &[FORM], "type=%zz"),
        ("POST", new, &[FORM], "type=aes256-gcm96;derived=true"),
        ("POST", new, &[FORM], "=aes256-gcm96"),
        ("POST", new, &[FORM], "type=ecdsa-p256&type=aes256-gcm96"),
        ("POST", new, &[FORM], "Type=ecdsa-p256"),
        ("POST", new, &[FORM], "[{\"type\":\"ecdsa-p256\"}]"),
        ("POST", new, &[JSON], "type=ecdsa-p256"),
        ("POST", new, &[("content-type", "multipart/form-data; boundary=x")], "--x\r\n\r\n--x--"),
        // Another value behind the first one, or the same name again.
        ("POST", new, &[], "{}{\"type\":\"ecdsa-p256\"}"),
        ("POST", new, &[], "null{\"type\":\"ecdsa-p256\"}"),
        ("POST", new, &[], "{}\0"),
        ("POST", new, &[], "{\"type\":\"ecdsa-p256\",\"type\":\"aes256-gcm96\"}"),
        ("POST", new, &[], "{\"derived\":null,\"derived\":true}"),
        // Names that are a parameter's for people only.
        ("POST", new, &[], "{\"Type\":\"ecdsa-p256\"}"),
        ("POST", new, &[], "{\"type \":\"ecdsa-p256\"}"),
        ("POST", new, &[], "{\"\":\"ecdsa-p256\"}"),
        ("POST", new, &[], "{\"ty\\u0000pe\":\"ecdsa-p256\"}"),
        // Values that are none.
        ("POST", new, &[], "{\"type\":\"\"}"),
        ("POST", new, &[], "{\"type\":\" ecdsa-p256\"}"),
        ("POST", new, &[], "{\"derived\":[true]}"),
        ("POST", new, &[], "{\"derived\":\" \"}"),
        ("POST", new, &[], "{\"auto_rotate_period\":true}"),
        ("POST", new, &[], "{\"derived\":2}"),
        ("POST", new, &[], "{\"derived\":\"\"}"),
        ("POST", new, &[], "{\"auto_rotate_period\":1000000000000}"),
        ("POST", "transit/keys/t-aes/config", &[], "{\"deletion_allowed\":2}"),
        ("POST", "transit/keys/t-aes/config", &[], "{\"deletion_allowed\":-1}"),
        ("POST", "transit/keys/t-aes/config", &[], "{\"deletion_allowed\":\"\"}"),
        ("POST", "transit/keys/t-aes/config", &[], "{\"auto_rotate_period\":\"\"}"),
        ("POST", "transit/keys/t-aes/config", &[], "{\"auto_rotate_period\":\" \"}"),
        ("POST", "transit/keys/t-aes/config", &[], "{\"min_encryption_version\":\"\"}"),
        ("POST", "transit/keys/t-aes/config", &[FORM], "min_encryption_version="),
        ("POST", "transit/keys/t-aes/trim", &[], "{\"min_available_version\":\"\"}"),
        // Headers that ask for another request than this one.
        ("POST", new, &[("content-encoding", "gzip")], "{}"),
        ("POST", new, &[("transfer-encoding", "gzip, chunked")], "{}"),
        ("PUT", new, &[("content-range", "bytes 0-1/2")], "{}"),
        ("POST", new, &[("if-none-match", "*")], "{}"),
        ("POST", new, &[("x-http-method-override", "GET")], ""),
        ("POST", new, &[("X-HTTP-Method", "DELETE")], ""),
        ("POST", new, &[("x-method-override", "LIST")], ""),
        ("POST", "transit/keys/t-aes/rotate", &[("if-match", "\"1\"")], ""),
        ("DELETE", "transit/keys/t-aes", &[("if-unmodified-since", "Sun, 06 Nov 1994 08:49:37 GMT")], ""),
        // Which of the two?
        ("POST", new, &[JSON, FORM], "{}"),
        ("POST", new, &[("x-vault-namespace", "root"), ("x-vault-namespace", "team")], "{}"),
        ("POST", new, &[("x-vault-wrap-ttl", "0"), ("x-vault-wrap-ttl", "60")], "{}"),
        ("POST", new, &[("x-vault-token", ""), ("x-vault-token", "")], "{}"),
        // In the wrong place.
        ("POST", "transit/keys/t-never?type=ecdsa-p256", &[], ""),
        ("PUT", "transit/keys/t-aes/config?deletion_allowed=true", &[], "{}"),
        ("DELETE", "transit/keys/t-aes?version=1", &[], ""),
        ("DELETE", "transit/keys/t-aes", &[], "{\"versions\":[1]}"),
        ("GET", "transit/keys/t-aes", &[], "{\"context\":\"YQ==\"}"),
        ("LIST", "transit/keys", &[], "{\"after\":\"t\"}"),
        ("LIST", "transit/keys?limit=some", &[], ""),
        ("LIST", "transit/keys?limit=", &[], ""),
        ("LIST", "transit/keys?limit=1&limit=2", &[], ""),
        // What Vault has and this appliance hasn't.
        ("POST", new, &[], "{\"context\":\"YQ==\"}"),
        ("POST", new, &[], "{\"parameter_set\":\"44\"}"),
        ("POST", "transit/encrypt/t-aes", &[], "{\"plaintext\":\"\",\"padding_scheme\":\"oaep\"}"),
        ("POST", "transit/datakey/wrapped/t-aes", &[], "{\"associated_data\":[\"YQ==\"]}"),
        ("POST", "transit/hmac/t-aes", &[], "{\"input\":\"\",\"hash_algorithm\":\"sha2-512\"}"),
        ("POST", "transit/hash", &[], "{\"input\":\"\",\"hash_algorithm\":\"sha2-512\"}"),
        ("POST", "transit/verify/t-aes", &[], "{\"hmac\":\"HMAC\",\"input\":\"\",\"hash_algorithm\":\"md5\"}"),
        ("POST", "transit/verify/t-aes", &[], "{\"hmac\":\"HMAC\",\"input\":\"\",\"hash_algorithm\":\"sha2-512\",\"algorithm\":\"sha2-256\"}"),
        ("POST", "transit/keys/t-aes/import_version", &[], "{\"cipherText\":\"YQ==\"}"),
        ("POST", "transit/keys/t-never/import", &[], "{\"nonsense\":1}"),
        ("POST", "sys/rotate-master", &[], "{\"force\":true}"),
        // Something to sign, to judge or to encrypt that isn't there.
        ("POST", "transit/sign/t-sign", &[], ""),
        ("POST", "transit/sign/t-sign", &[], "{\"Input\":\"YQ==\"}"),
        ("POST", "transit/sign/t-sign", &[], "{\"inputs\":\"YQ==\"}"),
        ("POST", "transit/sign/t-sign", &[], "{\"input\":null}"),
        ("POST", "transit/sign/t-sign", &[], "{\"input\":[]}"),
        ("POST", "transit/sign/t-sign", &[], "{\"input\":1.5}"),
        ("POST", "transit/sign/t-sign", &[], "{\"input\":\"\",\"context\":\"YQ==\"}"),
        ("POST", "transit/sign/t-sign?input=YQ%3D%3D", &[], ""),
        ("POST", "transit/sign/t-sign", &[FORM], "data=YQ=="),
        ("POST", "transit/verify/t-sign", &[], "{\"signature\":\"SIGNATURE\"}"),
        ("POST", "transit/verify/t-sign", &[], "{\"signature\":\"SIGNATURE\",\"input\":null}"),
        ("POST", "transit/verify/t-sign", &[], "{\"signature\":\"SIGNATURE\",\"input\":\"\",\"hmac\":\"HMAC\"}"),
        ("POST", "transit/verify/t-aes", &[], "{\"hmac\":\"HMAC\"}"),
        ("POST", "transit/verify/t-aes", &[], "{\"hmac\":\"HMAC\",\"input\":\"\",\"prehashed\":true}"),
        ("POST", "transit/verify/t-aes", &[], "{\"hmac\":\"HMAC\",\"input\":\"\",\"context\":\"YQ==\"}"),
        ("POST", "transit/hmac/t-aes", &[], "{\"input\":null}"),
        ("POST", "transit/hash", &[], "{\"input\":null}"),
        ("POST", "transit/encrypt/t-aes", &[], "{\"plaintext\":null}"),
        ("POST", "transit/decrypt/t-aes", &[], "{\"ciphertext\":null}"),
        ("POST", "transit/rewrap/t-aes", &[], "{\"ciphertext\":null}"),
        // Of a key that is there and is something else.
        ("POST", "transit/encrypt/t-aes", &[], "{\"plaintext\":\"\",\"type\":\"chacha20-poly1305\"}"),
        ("POST", "transit/encrypt/t-aes", &[], "{\"plaintext\":\"\",\"convergent_encryption\":true}"),
        // Which of the two?
        ("POST", "transit/encrypt/t-aes", &[], "{\"plaintext\":\"YQ==\",\"batch_input\":[{\"plaintext\":\"\"}]}"),
        ("POST", "transit/encrypt/t-aes", &[], "{\"key_version\":1,\"batch_input\":[{\"plaintext\":\"\"}]}"),
        ("POST", "transit/encrypt/t-aes", &[], "{\"associated_data\":\"YQ==\",\"batch_input\":[{\"plaintext\":\"\"}]}"),
        ("POST", "transit/sign/t-sign", &[], "{\"input\":\"YQ==\",\"batch_input\":[{\"input\":\"\"}]}"),
        ("POST", "transit/sign/t-sign", &[], "{\"batch_input\":[{\"input\":\"\",\"hash_algorithm\":\"sha2-512\"}]}"),
        ("POST", "transit/sign/t-sign", &[], "{\"batch_input\":[{\"input\":\"\",\"key_version\":1}]}"),
        ("POST", "transit/hmac/t-aes", &[], "{\"batch_input\":[{\"input\":\"\",\"algorithm\":\"sha2-512\"}]}"),
        ("POST", "transit/encrypt/t-aes", &[], "{\"batch_input\":[{\"plaintext\":null}]}"),
        ("POST", "transit/encrypt/t-aes", &[], "{\"batch_input\":[{\"plaintext\":\"\",\"plaintext\":\"YQ==\"}]}"),
        ("POST", "transit/encrypt/t-aes", &[], "{\"batch_input\":[{\"Plaintext\":\"\"}]}"),
    ];
    let before = a.audited().len();
    let mut taken = Vec::new();
    for (n, (method, path, headers, body)) in rows.iter().enumerate() {
        let reply = a.send(Who::Operator, method, path, headers, own(body));
        if reply.status != 400 || reply.error().is_empty() {
            taken.push(format!(
                "{} {method} {path} {headers:?} {body}: {}",
                reply.status,
                reply.json()
            ));
        }
        let lines = a.audited();
        assert!(lines.len() > before + n, "{method} {path} {body}");
    }
    assert!(taken.is_empty(), "{taken:#?}");
    let lines = a.audited().split_off(before);
    assert_eq!(lines.len(), rows.len());
    assert!(lines.iter().all(|line| line["outcome"] == "error"));
    assert!(!a.app.keyring.exists(named("t-never")));
    let key = a.expect(200, "GET", "transit/keys/t-aes", &Value::Null);
    assert_eq!(key["data"]["deletion_allowed"], false);
}

/// What unmodified clients send all the same, and what is no more than another way to say nothing.
#[test]
fn what_says_nothing_or_is_only_superfluous_is_taken() {
    let a = Appliance::new();
    a.key("t-taken", &Value::Null);
    a.key("t-signs", &json!({ "type": "ecdsa-p256" }));
    #[rustfmt::skip]
    let rows: &[(&str, &str, &[(&str, &str)], &str, u16)] = &[
        ("POST", "transit/keys/t-taken", &[], " \r\n\t", 200),
        ("POST", "transit/keys/t-taken", &[FORM], " \n", 200),
        ("POST", "transit/keys/t-taken", &[], "null", 200),
        ("POST", "transit/keys/t-taken", &[FORM], "null\n", 200),
        ("POST", "transit/keys/t-taken", &[], "{}\n", 200),
        ("GET", "transit/keys/t-taken", &[], "{ }", 200),
        ("GET", "transit/keys?list=true", &[], "null", 200),
        ("LIST", "transit/keys?list=true", &[], "", 200),
        ("GET", "sys/health?standbyok", &[], "", 200),
        ("POST", "transit/keys/t-taken", &[("content-encoding", "identity"), ("transfer-encoding", "Chunked")], "{}", 200),
        ("POST", "transit/keys/t-taken", &[("x-vault-request", "true"), ("x-vault-namespace", "root"), ("range", "bytes=0-1")], "{}", 200),
        ("GET", "transit/keys/t-taken", &[("if-none-match", "*")], "", 200),
        // hvac sends what it was not told as null.
        ("POST", "transit/encrypt/t-taken", &[], "{\"plaintext\":null,\"context\":\"\",\"key_version\":0,\"batch_input\":[{\"plaintext\":\"\"}]}", 200),
        ("POST", "transit/sign/t-signs", &[], "{\"input\":\"\",\"prehashed\":false,\"context\":null,\"key_version\":0,\"marshaling_algorithm\":null}", 200),
        ("POST", "transit/sign/t-signs", &[], "{\"input\":null,\"batch_input\":[{\"input\":\"YQ==\"},{\"input\":\"\",\"reference\":\"r\"}]}", 200),
    ];
    for (method, path, headers, body, status) in rows {
        let reply = a.send(Who::Operator, method, path, headers, (*body).to_owned());
        assert_eq!(
            reply.status,
            *status,
            "{method} {path} {body}: {}",
            reply.json()
        );
        let warnings = &reply.json()["warnings"];
        let existed = json!(["key t-taken already existed"]);
        assert!(
            warnings.is_null() || *warnings == existed,
            "{method} {path} {body}: {warnings}"
        );
    }
    // Unknown names: taken with Vault's warning.
    let body = json!({ "input": "", "nonsense": 1, "4111111111111111": 1 });
    let answer = a.expect(200, "POST", "transit/sign/t-signs", &body);
    assert_eq!(
        answer["warnings"],
        json!(["Endpoint ignored these unrecognized parameters: [nonsense], and others"])
    );
    // The path counts, and the answer says so.
    for (path, body, name) in [
        ("transit/random/8", json!({ "bytes": 9 }), "bytes"),
        (
            "transit/random/seal",
            json!({ "source": "platform" }),
            "source",
        ),
        (
            "transit/hash/sha2-256",
            json!({ "input": "", "algorithm": "sha2-512" }),
            "algorithm",
        ),
        (
            "transit/sign/t-signs/sha2-256",
            json!({ "input": "", "hash_algorithm": "sha2-512" }),
            "hash_algorithm",
        ),
        (
            "transit/sign/t-signs",
            json!({ "input": "", "name": "other" }),
            "name",
        ),
    ] {
        let answer = a.expect(200, "POST", path, &body);
        assert_eq!(
            answer["warnings"],
            json!([format!(
                "Endpoint replaced the value of these parameters with the values captured from the endpoint's path: [{name}]"
            )])
        );
    }
    a.refused(
        400,
        "hash_algorithm and algorithm differ: give one of them",
        "transit/sign/t-signs",
        &json!({ "input": "", "hash_algorithm": "sha2-512", "algorithm": "sha2-256" }),
    );
}

/// Of what is passed over, a name stands once too: another reader may know it, and take the other
/// value.
#[test]
fn what_is_passed_over_is_not_said_twice() {
    let a = Appliance::new();
    a.key("t-over", &Value::Null);
    let new = "transit/keys/t-never-over";
    #[rustfmt::skip]
    let rows: &[(&str, &str, &[(&str, &str)], &str)] = &[
        ("LIST", "transit/keys?nonsense=1&nonsense=1", &[], ""),
        ("POST", new, &[], "{\"nonsense\":1,\"nonsense\":2}"),
        ("POST", new, &[FORM], "nonsense=1&nonsense=2"),
        ("POST", "transit/keys/t-over/config", &[], "{\"name\":\"a\",\"name\":\"b\"}"),
        ("POST", "transit/encrypt/t-over", &[], "{\"batch_input\":[{\"plaintext\":\"\",\"x\":1,\"x\":2}]}"),
        ("POST", "transit/encrypt/t-over", &[], "{\"partial_failure_response_code\":\"no\",\"batch_input\":[{\"plaintext\":\"\"}]}"),
    ];
    for (method, path, headers, body) in rows {
        let reply = a.send(Who::Operator, method, path, headers, (*body).to_owned());
        assert_eq!(
            reply.status,
            400,
            "{method} {path} {body}: {}",
            reply.json()
        );
    }
    assert!(!a.app.keyring.exists(named("t-never-over")));
}

/// `list` makes a GET another request, and nothing else.
#[test]
fn list_is_said_once_and_agrees_with_the_method() {
    let a = Appliance::new();
    a.key("t-list", &Value::Null);
    for (method, query) in [
        ("GET", "list=banana"),
        ("GET", "list=1&list=0"),
        ("LIST", "list=banana"),
        ("LIST", "list=false"),
        ("LIST", "list=0&list=1"),
        ("LIST", "list=1&list=1"),
        ("LIST", "limit=1&list="),
    ] {
        let path = format!("transit/keys?{query}");
        let reply = a.send(Who::Operator, method, &path, &[], "");
        assert_eq!(reply.status, 400, "{method} {query}");
        assert!(reply.error().contains("\"list\""), "{method} {query}");
    }
    let head = a.send(Who::Operator, "HEAD", "sys/health?list=true", &[], "");
    assert_eq!(head.status, 400);
    for (method, query) in [
        ("GET", "list=true"),
        ("LIST", "list=1"),
        ("LIST", "limit=1"),
    ] {
        a.expect(200, method, &format!("transit/keys?{query}"), &Value::Null);
    }
}

/// How RSA signs is said to a key of another type: sigstore's client says `pkcs1v15` to each.
#[test]
fn what_is_for_rsa_is_warned_of_where_the_key_is_of_another_type() {
    let a = Appliance::new();
    a.key("t-ec", &json!({ "type": "ecdsa-p256" }));
    let warning =
        json!(["signature_algorithm and salt_length are for RSA keys: they change nothing here"]);
    let path = "transit/sign/t-ec";
    for (name, value) in [
        ("signature_algorithm", json!("pkcs1v15")),
        ("salt_length", json!(20)),
        ("salt_length", json!("hash")),
    ] {
        let mut body = json!({ "input": "" });
        body[name] = value.clone();
        let made = a.expect(200, "POST", path, &body);
        assert_eq!(made["warnings"], warning, "{body}");
        let mut verify = json!({ "input": "", "signature": made["data"]["signature"] });
        verify[name] = value.clone();
        let judged = a.expect(200, "POST", "transit/verify/t-ec", &verify);
        assert_eq!(judged["warnings"], warning, "{verify}");
        let mut batch = json!({ "batch_input": [{ "input": "" }] });
        batch[name] = value;
        assert_eq!(
            a.expect(200, "POST", path, &batch)["warnings"],
            warning,
            "{batch}"
        );
    }
    let plain = json!({ "input": "", "signature_algorithm": "pss", "salt_length": "auto" });
    assert_eq!(a.expect(200, "POST", path, &plain)["warnings"], Value::Null);
}

/// What is signed is what was sent: no name twice, at whatever depth, and no number that would
/// become another one.
#[test]
fn claims_are_signed_as_they_were_sent_or_not_at_all() {
    let a = Appliance::with(|config| config.keyring.jwt.keys = vec![named("t-jwt").to_owned()]);
    a.key("t-jwt", &json!({ "type": "ecdsa-p256" }));
    let sign = |claims: &str| {
        let body = format!("{{\"claims\":{claims}}}");
        a.send(Who::Operator, "POST", "transit/jwt/t-jwt", &[], body)
    };
    let twice = "a name is given twice in one object";
    let large = "a number is too large to be kept as it is: send it as a string";
    for (claims, error) in [
        (r#"{"sub":"alice","sub":"admin"}"#, twice),
        (r#"{"sub":"alice","s\u0075b":"admin"}"#, twice),
        (r#"{"sub":null,"sub":null}"#, twice),
        (r#"{"a":[{"b":{"c":1,"c":1}}]}"#, twice),
        (r#"{"account":12345678901234567890123}"#, large),
        (r#"{"account":-9223372036854775809}"#, large),
        (r#"{"account":[9007199254740993.0]}"#, large),
        (r#"{"account":1e400}"#, "error parsing JSON"),
        (r#"{"sub":"\ud800"}"#, "error parsing JSON"),
        (
            "null",
            "missing claims: an object, such as {\"sub\": \"alice\"}",
        ),
        ("[]", "claims must be an object"),
    ] {
        let reply = sign(claims);
        assert_eq!(
            (reply.status, reply.error().as_str()),
            (400, error),
            "{claims}"
        );
    }
    let body = r#"{"claims":{"sub":"a"},"claims":{"sub":"b"}}"#;
    let reply = a.send(Who::Operator, "POST", "transit/jwt/t-jwt", &[], body);
    assert_eq!(
        (reply.status, reply.error().as_str()),
        (400, "error parsing JSON")
    );

    let claims = r#"{"a":{"b":[null,true,-1,0.5,1.0,18446744073709551615,-9223372036854775808,"\u00e4"]},"b":{"a":{}}}"#;
    let signed = sign(claims).json();
    let token = signed["data"]["token"].as_str().unwrap();
    let payload = URL_SAFE_NO_PAD
        .decode(token.split('.').nth(1).unwrap())
        .unwrap();
    let payload: Value = serde_json::from_slice(&payload).unwrap();
    let sent: Value = serde_json::from_str(claims).unwrap();
    for name in ["a", "b"] {
        assert_eq!(payload[name], sent[name]);
    }
}

/// Pages, as `OpenBao` has them: ignored, a client would never come to the end.
#[test]
fn a_list_is_taken_page_by_page() {
    let a = Appliance::new();
    for name in ["t-page-a", "t-page-b", "t-page-c"] {
        a.key(name, &Value::Null);
    }
    let all = a.expect(200, "LIST", "transit/keys", &Value::Null)["data"]["keys"].clone();
    let mut found = Vec::new();
    let mut after = String::new();
    loop {
        let path = format!("transit/keys?list=true&limit=2&after={after}");
        let reply = a.ask("GET", &path, &Value::Null);
        if reply.status == 404 {
            break;
        }
        let page = reply.json()["data"]["keys"].as_array().unwrap().clone();
        assert!(!page.is_empty() && page.len() <= 2, "{page:?}");
        page.last()
            .unwrap()
            .as_str()
            .unwrap()
            .clone_into(&mut after);
        found.extend(page);
    }
    assert_eq!(Value::from(found), all);
    for unlimited in ["limit=0", "limit=-1", ""] {
        let path = format!("transit/keys?{unlimited}");
        assert_eq!(
            a.expect(200, "LIST", &path, &Value::Null)["data"]["keys"],
            all
        );
    }
}

/// `transit/byok-export/keys/NAME` is something of `OpenBao`'s, and no key of a mount of that name.
#[test]
fn a_path_of_transit_s_that_is_not_here_leads_nowhere() {
    let a = Appliance::new();
    a.key("t-path", &Value::Null);
    for (method, path) in [
        ("LIST", "transit/config/keys"),
        ("GET", "transit/byok-export/keys/t-path"),
        ("POST", "transit/byok-export/keys/t-elsewhere"),
        ("POST", "transit/keys/t-path/keys/t-elsewhere"),
        ("POST", "transit/keys/t-path/keys/t-path/rotate"),
        ("DELETE", "transit/keys/t-path/soft-delete"),
        ("POST", "transit/x/../keys/t-elsewhere"),
        ("POST", "transit/%2e%2e/keys/t-elsewhere"),
        ("POST", "transit%2F.%2Fkeys/t-elsewhere"),
    ] {
        let reply = a.ask(method, path, &Value::Null);
        assert_eq!(reply.status, 404, "{method} {path}: {}", reply.json());
    }
    assert!(!a.app.keyring.exists(named("t-elsewhere")));
    // A mount of several segments is still one.
    a.expect(200, "GET", "team/kms/keys/t-path", &Value::Null);
}

#[test]
fn an_item_without_input_has_its_own_error() {
    let a = Appliance::new();
    a.key("t-items", &Value::Null);
    a.key("t-signer", &json!({ "type": "ecdsa-p256" }));
    let sign = json!({ "batch_input": [{ "input": "" }, {}, { "input": null }, { "inputs": "YQ==" }, { "input": "YQ==", "context": "YQ==" }] });
    let signed = a.expect(200, "POST", "transit/sign/t-signer", &sign);
    let results = signed["data"]["batch_results"].as_array().unwrap();
    assert!(results[0]["signature"].is_string() && results[0].get("error").is_none());
    for result in &results[1..4] {
        assert_eq!(
            (&result["error"], result.get("signature")),
            (&json!("missing input"), None)
        );
    }
    assert!(
        results[4]["error"]
            .as_str()
            .unwrap()
            .contains("leave context out")
    );
    let signature = &results[0]["signature"];
    let verify = json!({ "batch_input": [{ "input": "", "signature": signature }, { "signature": signature }] });
    let judged = a.expect(200, "POST", "transit/verify/t-signer", &verify);
    let results = &judged["data"]["batch_results"];
    assert_eq!(
        (&results[0]["valid"], &results[1]["error"]),
        (&json!(true), &json!("missing input"))
    );
    assert!(results[1].get("valid").is_none());

    let made = a.expect(200, "POST", "transit/hmac/t-items", &json!({ "input": "" }));
    let hmac = &made["data"]["hmac"];
    let verify = json!({ "batch_input": [{ "input": "", "hmac": hmac }, { "hmac": hmac }] });
    let judged = a.expect(200, "POST", "transit/verify/t-items", &verify);
    let results = &judged["data"]["batch_results"];
    assert_eq!(
        (&results[0]["valid"], &results[1]["error"]),
        (&json!(true), &json!("missing input"))
    );
}
