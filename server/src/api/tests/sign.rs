//! Signing keys over HTTP: `sign`, `verify`, `export/public-key`, `jwt`, and the published set.
#![allow(clippy::too_many_lines, reason = "a key's life is told in one piece")]

use serde_json::{Value, json};

use super::appliance::{Appliance, Who, b64, named, unb64};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::ecdsa::signature::Verifier as _;

const JWKS: &str = "/.well-known/jwks.json";

fn valid(a: &Appliance, name: &str, body: &Value) -> bool {
    let answer = a.expect(200, "POST", &format!("transit/verify/{name}"), body);
    answer["data"]["valid"].as_bool().unwrap()
}

#[test]
fn what_is_signed_verifies_as_vault_has_it() {
    let a = Appliance::new();
    for name in ["ecdsa-p256", "rsa-4096", "ed25519"] {
        let key = format!("s-{name}");
        a.key(&key, &json!({ "type": name }));
        let described = a.expect(200, "GET", &format!("transit/keys/{key}"), &Value::Null);
        let data = &described["data"];
        assert_eq!(
            (
                &data["type"],
                &data["supports_signing"],
                &data["supports_encryption"]
            ),
            (&json!(name), &json!(true), &json!(false))
        );
        let shown = &data["keys"]["1"];
        assert!(shown["creation_time"].as_str().unwrap().ends_with('Z'));
        let pem = a.expect(
            200,
            "GET",
            &format!("transit/export/public-key/{key}"),
            &Value::Null,
        );
        assert_eq!(pem["data"]["type"], name);
        if name == "ed25519" {
            assert_eq!(unb64(&shown["public_key"]).len(), 32);
        } else {
            assert_eq!(shown["public_key"], pem["data"]["keys"]["1"]);
        }
        let answer = a.expect(
            200,
            "POST",
            &format!("transit/sign/{key}"),
            &json!({ "input": b64(b"m") }),
        );
        let signature = answer["data"]["signature"].as_str().unwrap();
        assert!(signature.starts_with("vault:v1:") && answer["data"]["key_version"] == 1);
        assert!(valid(
            &a,
            &key,
            &json!({ "input": b64(b"m"), "signature": signature })
        ));
        assert!(!valid(
            &a,
            &key,
            &json!({ "input": b64(b"n"), "signature": signature })
        ));
        a.expect(
            200,
            "POST",
            &format!("transit/keys/{key}/rotate"),
            &Value::Null,
        );
        let answer = a.expect(
            200,
            "PUT",
            &format!("transit/sign/{key}/sha2-512"),
            &json!({ "input": b64(b"m") }),
        );
        let second = answer["data"]["signature"].as_str().unwrap();
        assert!(second.starts_with("vault:v2:"));
        assert!(valid(
            &a,
            &key,
            &json!({ "input": b64(b"m"), "signature": second, "hash_algorithm": "sha2-512" })
        ));
        assert_eq!(
            valid(
                &a,
                &key,
                &json!({ "input": b64(b"m"), "signature": second })
            ),
            name == "ed25519"
        );
        let body = json!({ "batch_input": [{ "input": b64(b"1"), "reference": "one" }, { "input": "!" }] });
        let batch = a.expect(200, "POST", &format!("transit/sign/{key}"), &body);
        let results = batch["data"]["batch_results"].as_array().unwrap();
        assert!(
            results[0]["reference"] == "one"
                && results[1]["error"].as_str().unwrap().contains("base64")
        );
        let body = json!({ "batch_input": [
            { "input": b64(b"1"), "signature": results[0]["signature"] },
            { "input": b64(b"2"), "signature": results[0]["signature"] },
            { "input": b64(b"1"), "signature": "vault:v9:AAAA" },
        ]});
        let batch = a.expect(200, "POST", &format!("transit/verify/{key}"), &body);
        let results = batch["data"]["batch_results"].as_array().unwrap();
        assert_eq!(
            (&results[0]["valid"], &results[1]["valid"]),
            (&json!(true), &json!(false))
        );
        assert_eq!(results[2]["error"], "invalid signature: version is too new");
    }
    // What other code makes of it.
    let body = json!({ "input": b64(b"m"), "marshaling_algorithm": "jws" });
    let answer = a.expect(200, "POST", "transit/sign/s-ecdsa-p256", &body);
    let signature = answer["data"]["signature"]
        .as_str()
        .unwrap()
        .strip_prefix("vault:v2:")
        .unwrap();
    let signature =
        p256::ecdsa::Signature::from_slice(&URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
    let pem = a.expect(
        200,
        "GET",
        "transit/export/public-key/s-ecdsa-p256/latest",
        &Value::Null,
    );
    let key: p256::ecdsa::VerifyingKey =
        pkcs8::DecodePublicKey::from_public_key_pem(pem["data"]["keys"]["2"].as_str().unwrap())
            .unwrap();
    key.verify(b"m", &signature).unwrap();
}

#[test]
fn what_cannot_be_signed_is_refused_in_vaults_words() {
    let a = Appliance::new();
    a.key("s-words", &json!({ "type": "ecdsa-p256" }));
    a.key("s-aes", &Value::Null);
    let m = b64(b"m");
    for (error, path, body) in [
        (
            "signing key not found",
            "transit/sign/s-none",
            json!({ "input": m }),
        ),
        (
            "key type aes256-gcm96 does not support signing",
            "transit/sign/s-aes",
            json!({ "input": m }),
        ),
        (
            "key type aes256-gcm96 does not support verification",
            "transit/verify/s-aes",
            json!({ "input": m, "signature": "vault:v1:AA==" }),
        ),
        (
            "requested version for signing is higher than the latest key version",
            "transit/sign/s-words",
            json!({ "input": m, "key_version": 2 }),
        ),
        (
            "requested version for signing is negative",
            "transit/sign/s-words",
            json!({ "input": m, "key_version": -1 }),
        ),
        (
            "invalid hash algorithm \"md5\"",
            "transit/sign/s-words/md5",
            json!({ "input": m }),
        ),
        (
            "invalid marshaling type \"cbor\": \"asn1\" or \"jws\"",
            "transit/sign/s-words",
            json!({ "input": m, "marshaling_algorithm": "cbor" }),
        ),
        (
            "unsupported rsa signature algorithm x",
            "transit/sign/s-words",
            json!({ "input": m, "signature_algorithm": "x" }),
        ),
        (
            "invalid signature: no prefix",
            "transit/verify/s-words",
            json!({ "input": m, "signature": "AA==" }),
        ),
        (
            "invalid signature: version is too new",
            "transit/verify/s-words",
            json!({ "input": m, "signature": "vault:v2:AA==" }),
        ),
        (
            "elements of batch_input must all provide 'signature' or all provide 'hmac'",
            "transit/verify/s-words",
            json!({ "batch_input": [{ "hmac": "x" }, { "signature": "y" }] }),
        ),
        (
            "key type ecdsa-p256 does not support this operation: it signs and verifies; make an aes256-gcm96 key",
            "transit/encrypt/s-words",
            json!({ "plaintext": m }),
        ),
        (
            "key type ecdsa-p256 does not support this operation: it signs and verifies; make an aes256-gcm96 key",
            "transit/hmac/s-words",
            json!({ "input": m }),
        ),
        (
            "key type ecdsa-p384 is not supported: the types are aes256-gcm96, ecdsa-p256, rsa-4096 and ed25519",
            "transit/keys/s-other",
            json!({ "type": "ecdsa-p384" }),
        ),
    ] {
        a.refused(400, error, path, &body);
    }
    let reply = a.ask("GET", "transit/export/public-key/s-aes", &Value::Null);
    assert_eq!(
        (reply.status, reply.error().as_str()),
        (
            400,
            "unknown key type aes256-gcm96 for export type public-key"
        )
    );
    assert_eq!(
        a.send(Who::App, "POST", "transit/sign/s-words", &[], "{}")
            .status,
        403
    );
}

fn part(token: &str, at: usize) -> Value {
    let part = token.split('.').nth(at).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

#[test]
fn a_token_says_what_it_may_and_its_key_is_published() {
    let a = Appliance::with(|config| {
        config.keyring.jwt.keys = vec![named("j-users").to_owned(), named("j-none").to_owned()];
        config.keyring.jwt.issuer = Some("https://id.test".to_owned());
    });
    let empty = a.ask("GET", JWKS, &Value::Null);
    assert_eq!(
        (empty.status, empty.json(), &empty.headers["cache-control"]),
        (200, json!({ "keys": [] }), &"no-cache".parse().unwrap())
    );
    a.key("j-users", &json!({ "type": "ecdsa-p256" }));
    a.key("j-other", &json!({ "type": "ecdsa-p256" }));
    let body =
        json!({ "claims": { "sub": "alice", "aud": ["x"], "roles": { "n": 1 } }, "ttl": "5m" });
    let answer = a.expect(200, "POST", "transit/jwt/j-users", &body);
    let data = &answer["data"];
    let token = data["token"].as_str().unwrap();
    let (header, claims) = (part(token, 0), part(token, 1));
    assert_eq!(
        header,
        json!({ "alg": "ES256", "typ": "JWT", "kid": data["kid"] })
    );
    assert_eq!(
        (&claims["sub"], &claims["iss"], &claims["roles"]["n"]),
        (&json!("alice"), &json!("https://id.test"), &json!(1))
    );
    assert_eq!(claims["iat"], claims["nbf"]);
    assert_eq!(
        claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(),
        300
    );
    assert!(claims["jti"].as_str().unwrap().len() == 36);

    let set = a.send(Who::Stranger, "GET", JWKS, &[], "");
    assert_eq!(
        (set.status, &set.headers["cache-control"]),
        (200, &"public, max-age=300".parse().unwrap())
    );
    assert_eq!(set.headers["content-type"], "application/jwk-set+json");
    let keys = set.json()["keys"].clone();
    assert_eq!(
        keys.as_array().unwrap().len(),
        1,
        "keys that are not named are not published: {keys}"
    );
    assert_eq!(keys[0]["kid"], data["kid"]);
    let coordinate = |name: &str| {
        URL_SAFE_NO_PAD
            .decode(keys[0][name].as_str().unwrap())
            .unwrap()
    };
    let point = [&[4][..], &coordinate("x"), &coordinate("y")].concat();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let signature =
        p256::ecdsa::Signature::from_slice(&URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
    let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(&point).unwrap();
    key.verify(signed.as_bytes(), &signature).unwrap();

    let tag = set.headers["etag"].to_str().unwrap();
    let same = a.send(Who::Stranger, "GET", JWKS, &[("if-none-match", tag)], "");
    assert_eq!(
        (same.status, same.bytes.len(), &same.headers["etag"]),
        (304, 0, &set.headers["etag"])
    );
    a.expect(200, "POST", "transit/keys/j-users/rotate", &Value::Null);
    let changed = a.send(Who::Stranger, "GET", JWKS, &[("if-none-match", tag)], "");
    assert_eq!(
        (
            changed.status,
            changed.json()["keys"].as_array().unwrap().len()
        ),
        (200, 2)
    );
    let answer = a.expect(200, "POST", "transit/jwt/j-users", &body);
    assert_eq!(
        answer["data"]["key_version"], 1,
        "published, and not signing yet"
    );

    for (error, body) in [
        (
            "missing claims: an object, such as {\"sub\": \"alice\"}",
            json!({}),
        ),
        ("claims must be an object", json!({ "claims": [] })),
        (
            "the claim iat is set by the appliance: leave it out",
            json!({ "claims": { "iat": 1 } }),
        ),
        (
            "the claim nbf is set by the appliance: leave it out",
            json!({ "claims": { "nbf": 1 } }),
        ),
        (
            "the claim iss is \"https://id.test\" here: leave it out",
            json!({ "claims": { "iss": "me" } }),
        ),
        (
            "the claim sub must be a string",
            json!({ "claims": { "sub": 1 } }),
        ),
        (
            "the claim aud must be a string or a list of strings",
            json!({ "claims": { "aud": [1] } }),
        ),
        (
            "the claim exp is in the past",
            json!({ "claims": { "exp": 1 } }),
        ),
        (
            "the claim exp must be whole seconds since 1970",
            json!({ "claims": { "exp": "soon" } }),
        ),
        (
            "a token is valid for at most 900 s here (JWT_ACCESS_TOKEN_TTL): ask for less",
            json!({ "claims": {}, "ttl": 901 }),
        ),
        (
            "a token is valid for at most 900 s here (JWT_ACCESS_TOKEN_TTL): ask for less",
            json!({ "claims": { "exp": 1_u64 << 52 } }),
        ),
        (
            "give ttl or the claim exp, not both",
            json!({ "claims": { "exp": 1 }, "ttl": 1 }),
        ),
        (
            "typ \"none\" is not supported: \"JWT\" or \"at+jwt\"",
            json!({ "claims": {}, "typ": "none" }),
        ),
    ] {
        a.refused(400, error, "transit/jwt/j-users", &body);
    }
    a.refused(400, "the key j-other signs no tokens: its public key is not published; name it in [jwt] keys of the configuration", "transit/jwt/j-other", &body);
    a.refused(400, "signing key not found", "transit/jwt/j-none", &body);
    assert_eq!(
        a.send(
            Who::App,
            "POST",
            "transit/jwt/j-users",
            &[],
            body.to_string()
        )
        .status,
        403
    );
    a.expect(405, "POST", JWKS, &Value::Null);
    drop(a);
    assert_eq!(
        Appliance::new().ask("GET", JWKS, &Value::Null).status,
        404,
        "nothing is published unless it is configured"
    );
}
