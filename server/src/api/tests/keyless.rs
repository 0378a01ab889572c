use serde_json::{Value, json};

use super::appliance::{Appliance, Who, b64, unb64};

#[test]
fn random_bytes_come_as_asked() {
    let a = Appliance::new();
    for (path, body, bytes) in [
        ("transit/random", json!({}), 32),
        ("transit/random", json!({ "bytes": "16" }), 16),
        ("transit/random/8", json!({ "bytes": 99 }), 8),
        ("transit/random/seal", json!({}), 32),
        ("transit/random/all/131072", json!({}), 131_072),
    ] {
        let answer = a.expect(200, "POST", path, &body);
        assert_eq!(
            unb64(&answer["data"]["random_bytes"]).len(),
            bytes,
            "{path}"
        );
    }
    let answer = a.expect(
        200,
        "POST",
        "transit/random/platform/4",
        &json!({ "format": "hex" }),
    );
    assert_eq!(answer["data"]["random_bytes"].as_str().unwrap().len(), 8);
    for (error, path, body) in [
        (
            "\"bytes\" cannot be less than 1",
            "transit/random",
            json!({ "bytes": 0 }),
        ),
        (
            "\"bytes\" should be less than 131072",
            "transit/random/131073",
            json!({}),
        ),
        (
            "error parsing url-set byte count: strconv.Atoi: parsing \"x\": invalid syntax",
            "transit/random/x",
            json!({}),
        ),
        (
            "unsupported encoding format \"x\"; must be \"hex\" or \"base64\"",
            "transit/random",
            json!({ "format": "x" }),
        ),
        (
            "unsupported entropy source \"x\"; must be \"platform\" or \"seal\", or \"all\"",
            "transit/random/x/4",
            json!({}),
        ),
    ] {
        a.refused(400, error, path, &body);
    }
}

#[test]
fn hashes_are_known_answers() {
    let a = Appliance::new();
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    for (path, body, sum) in [
        ("transit/hash", json!({ "input": "YWJj" }), abc),
        (
            "transit/hash/sha2-256",
            json!({ "input": "YWJj", "algorithm": "sha2-512" }),
            abc,
        ),
        (
            "transit/hash",
            json!({ "input": "YWJj", "format": "base64" }),
            "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=",
        ),
        (
            "transit/hash/sha3-224",
            json!({ "input": "YWJj" }),
            "e642824c3f8cf24ad09234ee7d3c766fc9a3a5168d0c94ad73b46fdf",
        ),
    ] {
        assert_eq!(a.expect(200, "POST", path, &body)["data"]["sum"], sum);
    }
    for (error, body) in [
        ("input missing", json!({})),
        (
            "unable to decode input as base64: illegal base64 data at input byte 0",
            json!({ "input": "!" }),
        ),
        (
            "unsupported encoding format x; must be \"hex\" or \"base64\"",
            json!({ "input": "", "format": "x" }),
        ),
        (
            "unsupported algorithm md5",
            json!({ "input": "", "algorithm": "md5" }),
        ),
    ] {
        a.refused(400, error, "transit/hash", &body);
    }
}

#[test]
fn hmacs_verify_and_altered_ones_do_not() {
    let a = Appliance::new();
    a.key("h-key", &Value::Null);
    a.key("h-memory", &json!({ "residency": "memory" }));
    for (key, algorithm) in [("h-key", ""), ("h-key", "/sha2-256"), ("h-memory", "")] {
        let made = a.expect(
            200,
            "POST",
            &format!("transit/hmac/{key}{algorithm}"),
            &json!({ "input": "YWJj" }),
        );
        let hmac = made["data"]["hmac"].as_str().unwrap();
        let path = format!("transit/verify/{key}{algorithm}");
        let valid = |input: &str, hmac: &str| {
            let body =
                json!({ "input": input, "hmac": hmac, "hash_algorithm": "sha2-256", "name": "x" });
            a.expect(200, "POST", &path, &body)["data"]["valid"].clone()
        };
        assert_eq!(valid("YWJj", hmac), true, "{algorithm}");
        assert_eq!(valid("YWJk", hmac), false);
        let mut altered = unb64(&json!(&hmac["vault:v1:".len()..]));
        altered[0] ^= 1;
        assert_eq!(valid("YWJj", &format!("vault:v1:{}", b64(&altered))), false);
    }
}

#[test]
fn the_hash_that_a_verify_of_an_hmac_names_counts() {
    let a = Appliance::new();
    a.key("h-key", &Value::Null);
    // hvac can name it by this name only.
    let made = a.expect(
        200,
        "POST",
        "transit/hmac/h-key",
        &json!({ "input": "YWJj" }),
    );
    for (hash, status, error) in [
        ("sha2-256", 200, ""),
        ("md5", 400, "invalid hash algorithm \"md5\""),
        ("none", 400, "invalid hash algorithm \"none\""),
    ] {
        let body = json!({ "input": "YWJj", "hmac": made["data"]["hmac"], "hash_algorithm": hash });
        for body in [
            body.clone(),
            json!({ "hash_algorithm": hash, "batch_input": [{ "input": "YWJj", "hmac": made["data"]["hmac"] }] }),
        ] {
            let reply = a.send(
                Who::Operator,
                "POST",
                "transit/verify/h-key",
                &[],
                body.to_string(),
            );
            assert_eq!(reply.status, status, "{body}: {}", reply.json());
            if status == 400 {
                assert_eq!(reply.error(), error);
            }
        }
    }
    // The hash that is named counts, by whichever of its names, and no other one.
    let made = a.ask(
        "POST",
        "transit/hmac/h-key/sha2-512",
        &json!({ "input": "YWJj" }),
    );
    let hmac = made.json()["data"]["hmac"].clone();
    if made.status == 200 {
        for (name, hash, valid) in [
            ("hash_algorithm", "sha2-512", true),
            ("algorithm", "sha2-512", true),
            ("hash_algorithm", "sha2-256", false),
        ] {
            let body = json!({ "input": "YWJj", "hmac": hmac, name: hash });
            let judged = a.expect(200, "POST", "transit/verify/h-key", &body);
            assert_eq!(judged["data"]["valid"], valid, "{name} {hash}");
        }
    }
}

#[test]
fn each_item_of_a_batch_of_hmacs_is_judged_by_itself_and_what_is_none_is_refused() {
    let a = Appliance::new();
    a.key("h-key", &Value::Null);
    let batch =
        json!({ "batch_input": [{ "input": "YWJj", "reference": "r" }, { "input": "!" }, {}] });
    let answer = a.expect(200, "POST", "transit/hmac/h-key", &batch);
    let results = &answer["data"]["batch_results"];
    assert_eq!(results[0]["reference"], "r");
    assert_eq!(
        results[1]["error"],
        "unable to decode input as base64: illegal base64 data at input byte 0"
    );
    assert_eq!(results[2]["error"], "missing input for HMAC");
    let batch = json!({ "batch_input": [{ "input": "YWJj", "hmac": results[0]["hmac"] }, { "input": "", "hmac": results[0]["hmac"] }, { "input": "", "hmac": "x" }] });
    let answer = a.expect(200, "POST", "transit/verify/h-key", &batch);
    let results = &answer["data"]["batch_results"];
    assert_eq!(
        (&results[0]["valid"], &results[1]["valid"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(results[2]["error"], "invalid HMAC to verify: no prefix");
    for (error, path, body) in [
        ("missing input for HMAC", "transit/hmac/h-key", json!({})),
        (
            "unsupported algorithm sha1",
            "transit/hmac/h-key/sha1",
            json!({ "input": "" }),
        ),
        (
            "key version does not exist (cannot be negative)",
            "transit/hmac/h-key",
            json!({ "input": "", "key_version": -1 }),
        ),
        (
            "encryption key not found",
            "transit/hmac/h-nobody",
            json!({ "input": "" }),
        ),
        (
            "neither a 'signature' nor an 'hmac' were given to verify",
            "transit/verify/h-key",
            json!({ "input": "" }),
        ),
        (
            "key type aes256-gcm96 does not support verification",
            "transit/verify/h-key",
            json!({ "input": "", "signature": "vault:v1:AA==" }),
        ),
        (
            "invalid HMAC: wrong number of fields",
            "transit/verify/h-key",
            json!({ "hmac": "vault:v1" }),
        ),
        (
            "invalid HMAC: version is too new",
            "transit/verify/h-key",
            json!({ "hmac": "vault:v2:AA==", "input": "" }),
        ),
        (
            "no batch_input elements have 'signature' or 'hmac'",
            "transit/verify/h-key",
            json!({ "batch_input": [{ "input": "" }] }),
        ),
        (
            "some elements of batch_input are missing 'hmac'",
            "transit/verify/h-key",
            json!({ "batch_input": [{ "hmac": "x" }, {}] }),
        ),
    ] {
        a.refused(400, error, path, &body);
    }
}

#[test]
fn what_is_not_supported_is_never_a_silent_success() {
    let a = Appliance::new();
    a.key("h-no", &Value::Null);
    for (method, path, status) in [
        ("POST", "transit/sign/h-no", 400),
        ("POST", "transit/sign/h-no/sha2-256", 400),
        ("GET", "transit/export/public-key/h-no", 400),
        ("GET", "transit/export/encryption-key/h-no", 400),
        ("GET", "transit/export/encryption-key/h-no/1", 400),
        ("GET", "transit/backup/h-no", 400),
        ("POST", "transit/restore", 400),
        ("POST", "transit/restore/h-no", 400),
        ("POST", "transit/cache-config", 404),
        ("GET", "transit/keys", 405),
        ("PATCH", "transit/keys/h-no", 405),
    ] {
        a.expect(status, method, path, &Value::Null);
    }
}

#[test]
fn the_system_describes_itself() {
    let a = Appliance::new();
    let health = a.expect(200, "GET", "sys/health", &Value::Null);
    assert_eq!(health["sealed"], false);
    // As GET, but for the body: sent with HTTP/2, it would break the connection.
    for (path, status) in [
        ("sys/health?activecode=299", 299),
        ("sys/seal-status", 405),
        ("sys/none", 404),
    ] {
        let reply = a.ask("HEAD", path, &Value::Null);
        let length = reply.headers["content-length"].to_str().unwrap();
        assert_eq!(reply.status, status);
        assert!(reply.bytes.is_empty() && length.parse::<u64>().unwrap() > 0);
    }
    for code in [204, 205, 304] {
        let path = format!("/v1/sys/health?activecode={code}");
        let reply = a.ask("GET", &path, &Value::Null);
        assert_eq!((reply.status, reply.bytes.len()), (code, 0));
    }
    a.expect(400, "GET", "sys/health?activecode=x", &Value::Null);
    a.key("h-due", &json!({ "auto_rotate_period": "2h" }));
    let keys = a.expect(200, "GET", "sys/lifecycle", &Value::Null);
    let due = keys["rotations"]
        .as_array()
        .unwrap()
        .iter()
        .find(|r| r["name"] == "h-due");
    assert!(
        (6800..=7200).contains(&due.unwrap()["due_in"].as_i64().unwrap()),
        "{keys}"
    );
    for path in ["sys/seal-status", "sys/init", "sys/leader"] {
        a.expect(200, "GET", path, &Value::Null);
    }
    for path in ["sys/internal/specs/openapi", "openapi.json"] {
        assert_eq!(a.expect(200, "GET", path, &Value::Null)["openapi"], "3.1.0");
    }
    a.expect(405, "POST", "sys/health", &Value::Null);
    let reply = a.ask("GET", "sys/metrics?format=prometheus", &Value::Null);
    let text = String::from_utf8_lossy(&reply.bytes).into_owned();
    assert!(text.contains("strongroom_hsm_up 1\n"), "{text}");
    assert!(
        text.contains(
            r#"strongroom_requests_total{operation="health",outcome="ok",status="200"} 1"#
        ),
        "{text}"
    );
    assert_eq!(
        a.send(Who::Stranger, "GET", "sys/metrics", &[], "").status,
        403
    );
    assert!(text.contains("strongroom_master_generation 1\n"), "{text}");
    // One master key: nothing is on its way, and no other is taken for the one in force.
    let standing = a.expect(200, "GET", "sys/rotate-master", &Value::Null);
    assert_eq!(standing["state"], "complete");
    assert_eq!(standing["moved"], standing["versions"]);
    let here = standing["generations"][0]["master_sha256"].clone();
    let other = json!({"master_sha256": "0".repeat(64)});
    let refused = a.expect(400, "POST", "sys/rotate-master", &other);
    assert!(
        refused["errors"][0]
            .as_str()
            .unwrap()
            .contains("nothing was moved"),
        "{refused}"
    );
    for bad in [
        json!({}),
        json!({"master_sha256": "00"}),
        json!({"master_sha256": 7}),
    ] {
        a.expect(400, "POST", "sys/rotate-master", &bad);
    }
    let same = json!({"master_sha256": here});
    a.expect(200, "POST", "sys/rotate-master", &same);
    assert_eq!(
        a.send(Who::Stranger, "GET", "sys/rotate-master", &[], "")
            .status,
        403
    );
    assert_eq!(
        a.send(Who::Stranger, "GET", "sys/health", &[], "").status,
        200
    );
}
