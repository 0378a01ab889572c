use serde_json::{Value, json};

use super::appliance::{Appliance, Who, b64, named, unb64};

const DERIVED: &str = "missing 'context' for key derivation; the key was created using a derived key, which means additional, per-request information must be included in order to perform operations with the key";

#[test]
fn what_is_encrypted_decrypts_under_any_mount_by_post_and_put() {
    let a = Appliance::new();
    a.key("c-roundtrip", &Value::Null);
    for (method, mount, plaintext) in [
        ("POST", "transit", &b"a secret"[..]),
        ("PUT", "some/deep/mount", b""),
        ("PUT", "transit", &vec![0xff; 40_000]),
    ] {
        let answer = a.expect(
            200,
            method,
            &format!("{mount}/encrypt/c-roundtrip"),
            &json!({ "plaintext": b64(plaintext) }),
        );
        assert_eq!(answer["data"]["key_version"], 1);
        let answer = a.expect(
            200,
            method,
            &format!("{mount}/decrypt/c-roundtrip"),
            &json!({ "ciphertext": answer["data"]["ciphertext"] }),
        );
        assert_eq!(unb64(&answer["data"]["plaintext"]), plaintext);
    }
}

#[test]
fn encrypt_says_what_is_wrong() {
    let a = Appliance::with(|config| config.upsert = false);
    a.key("c-wrong", &Value::Null);
    for (error, body) in [
        ("missing plaintext to encrypt", json!({})),
        (
            "illegal base64 data at input byte 3",
            json!({ "plaintext": "not base64" }),
        ),
        (
            "provided nonce not allowed for this key",
            json!({ "plaintext": "YQ==", "nonce": "AAAAAAAAAAAAAAAA" }),
        ),
        (
            "requested version for encryption is negative",
            json!({ "plaintext": "YQ==", "key_version": -1 }),
        ),
        (
            "requested version for encryption is higher than the latest key version",
            json!({ "plaintext": "YQ==", "key_version": 2 }),
        ),
        (
            "requested version for encryption is higher than the latest key version",
            json!({ "plaintext": "YQ==", "key_version": "99999999999" }),
        ),
        (
            "unable to get associated_data/additional_data from factory[0]: illegal base64 data at input byte 0",
            json!({ "plaintext": "YQ==", "associated_data": "!" }),
        ),
        (
            "missing batch input to process",
            json!({ "batch_input": [] }),
        ),
        (
            "failed to parse batch input: '[1].plaintext' missing plaintext to encrypt",
            json!({ "batch_input": [{ "plaintext": "" }, {}] }),
        ),
        (
            "context should be set either in all the request blocks or in none",
            json!({ "batch_input": [{ "plaintext": "", "context": "YQ==" }, { "plaintext": "" }] }),
        ),
    ] {
        a.refused(400, error, "transit/encrypt/c-wrong", &body);
    }
    a.refused(
        400,
        "encryption key not found",
        "transit/encrypt/c-nobody",
        &json!({ "plaintext": "YQ==" }),
    );
}

#[test]
fn decrypt_refuses_every_altered_ciphertext() {
    let a = Appliance::new();
    a.key("c-altered", &Value::Null);
    a.key("c-other", &Value::Null);
    let good = a.encrypt("c-altered", b"a secret of 24 bytes....");
    let bytes = unb64(&json!(good.strip_prefix("vault:v1:").unwrap()));
    let failed = "cipher: message authentication failed";
    let check = |error: &str, ciphertext: &str| {
        a.refused(
            400,
            error,
            "transit/decrypt/c-altered",
            &json!({ "ciphertext": ciphertext }),
        );
    };
    // A bit of the nonce, of the ciphertext, of the tag.
    for at in [
        0,
        11,
        12,
        bytes.len() - 17,
        bytes.len() - 16,
        bytes.len() - 1,
    ] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        check(failed, &format!("vault:v1:{}", b64(&bytes)));
    }
    // Truncated, from the end and from the front.
    check(
        failed,
        &format!("vault:v1:{}", b64(&bytes[..bytes.len() - 1])),
    );
    check(failed, &format!("vault:v1:{}", b64(&bytes[1..])));
    check(
        "invalid ciphertext length",
        &format!("vault:v1:{}", b64(&bytes[..11])),
    );
    let rest = &good["vault:v1:".len()..];
    for (error, ciphertext) in [
        ("missing ciphertext to decrypt", String::new()),
        ("invalid ciphertext: no prefix", rest.to_owned()),
        ("invalid ciphertext: no prefix", format!("Vault:v1:{rest}")),
        (
            "invalid ciphertext: wrong number of fields",
            "vault:v1".to_owned(),
        ),
        (
            "invalid ciphertext: version number could not be decoded",
            format!("vault:vx:{rest}"),
        ),
        (
            "invalid ciphertext: version is too new",
            format!("vault:v2:{rest}"),
        ),
        (
            "invalid ciphertext: version is too new",
            format!("vault:v4294967297:{rest}"),
        ),
        (
            "ciphertext or signature version is disallowed by policy (too old)",
            format!("vault:v-1:{rest}"),
        ),
        (
            "invalid ciphertext: could not decode base64",
            format!("vault:v1:{rest}!"),
        ),
    ] {
        check(error, &ciphertext);
    }
    a.refused(
        400,
        failed,
        "transit/decrypt/c-other",
        &json!({ "ciphertext": good }),
    );
    a.refused(
        400,
        "encryption key not found",
        "transit/decrypt/c-nobody",
        &json!({ "ciphertext": good }),
    );
    a.refused(
        400,
        "missing ciphertext to decrypt",
        "transit/decrypt/c-altered",
        &json!({}),
    );
}

#[test]
fn associated_data_and_context_are_bound() {
    let a = Appliance::new();
    a.key("c-bound", &Value::Null);
    let answer = a.expect(
        200,
        "POST",
        "transit/encrypt/c-bound",
        &json!({ "plaintext": "YQ==", "associated_data": "YWQ=" }),
    );
    let ciphertext = &answer["data"]["ciphertext"];
    let failed = "cipher: message authentication failed";
    a.refused(
        400,
        failed,
        "transit/decrypt/c-bound",
        &json!({ "ciphertext": ciphertext }),
    );
    a.refused(
        400,
        failed,
        "transit/decrypt/c-bound",
        &json!({ "ciphertext": ciphertext, "associated_data": "YWU=" }),
    );
    a.expect(
        200,
        "POST",
        "transit/decrypt/c-bound",
        &json!({ "ciphertext": ciphertext, "associated_data": "YWQ=" }),
    );

    a.key(
        "c-derived",
        &json!({ "derived": true, "convergent_encryption": "true" }),
    );
    let body = json!({ "plaintext": "YQ==", "context": "Y3R4" });
    let one = a.expect(200, "POST", "transit/encrypt/c-derived", &body);
    let two = a.expect(200, "POST", "transit/encrypt/c-derived", &body);
    assert_eq!(one["data"], two["data"], "convergent");
    let ciphertext = &one["data"]["ciphertext"];
    a.refused(
        400,
        DERIVED,
        "transit/encrypt/c-derived",
        &json!({ "plaintext": "YQ==" }),
    );
    a.refused(
        400,
        failed,
        "transit/decrypt/c-derived",
        &json!({ "ciphertext": ciphertext, "context": "eHh4" }),
    );
    a.expect(
        200,
        "POST",
        "transit/decrypt/c-derived",
        &json!({ "ciphertext": ciphertext, "context": "Y3R4" }),
    );
}

/// Ignored, it would let whoever sends it believe that the ciphertext is bound to it.
#[test]
fn a_key_that_is_not_derived_takes_no_context() {
    let a = Appliance::new();
    a.key("c-plain", &Value::Null);
    let refusal = "the key is not derived: it takes no context; leave it out, or bind the ciphertext to associated_data";
    let encrypt = "transit/encrypt/c-plain";
    // An empty one is none.
    let made = a.expect(
        200,
        "POST",
        encrypt,
        &json!({ "plaintext": "YQ==", "context": "" }),
    );
    let plain = json!({ "plaintext": "YQ==", "context": "Y3R4" });
    let sealed = json!({ "ciphertext": made["data"]["ciphertext"], "context": "Y3R4" });
    for (path, body) in [
        (encrypt, &plain),
        ("transit/decrypt/c-plain", &sealed),
        ("transit/rewrap/c-plain", &sealed),
        (
            "transit/datakey/plaintext/c-plain",
            &json!({ "context": "Y3R4" }),
        ),
        (
            "transit/datakey/wrapped/c-plain",
            &json!({ "context": "Y3R4" }),
        ),
    ] {
        a.refused(400, refusal, path, body);
    }
    for (path, item) in [
        (encrypt, &plain),
        ("transit/decrypt/c-plain", &sealed),
        ("transit/rewrap/c-plain", &sealed),
    ] {
        let body = json!({ "batch_input": [item, item], "partial_failure_response_code": 207 });
        let reply = a.ask("POST", path, &body).json();
        for result in reply["data"]["batch_results"].as_array().unwrap() {
            assert_eq!(result["error"], refusal, "{path}");
            assert!(result.get("ciphertext").is_none(), "{path}");
        }
    }
}

#[test]
fn batches_answer_each_item_in_its_place() {
    let a = Appliance::new();
    a.key("c-batch", &Value::Null);
    let items: Vec<Value> = (0..=255_u8)
        .map(|i| json!({ "plaintext": b64(&[i; 32]), "reference": format!("r\"{i}") }))
        .collect();
    let answer = a.expect(
        200,
        "POST",
        "transit/encrypt/c-batch",
        &json!({ "batch_input": items, "plaintext": null }),
    );
    let results = answer["data"]["batch_results"].as_array().unwrap();
    assert_eq!(results.len(), 256);
    assert_eq!(results[7]["reference"], "r\"7");
    let items: Vec<Value> = results
        .iter()
        .map(|r| json!({ "ciphertext": r["ciphertext"] }))
        .collect();
    let answer = a.expect(
        200,
        "POST",
        "transit/decrypt/c-batch",
        &json!({ "batch_input": items, "ciphertext": null }),
    );
    for (i, result) in answer["data"]["batch_results"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
    {
        assert_eq!(unb64(&result["plaintext"]), [u8::try_from(i).unwrap(); 32]);
        assert_eq!(result["reference"], "");
    }

    let mixed = json!([{ "ciphertext": "x", "reference": "bad" }, { "ciphertext": items[3]["ciphertext"] }, { "ciphertext": "" }]);
    let path = "transit/decrypt/c-batch";
    let answer = a.expect(400, "POST", path, &json!({ "batch_input": mixed }));
    let results = &answer["data"]["batch_results"];
    assert_eq!(
        results[0],
        json!({ "plaintext": "", "error": "invalid ciphertext: no prefix", "reference": "bad" })
    );
    assert_eq!(unb64(&results[1]["plaintext"]), [3; 32]);
    assert_eq!(results[2]["error"], "missing ciphertext to decrypt");
    a.expect(
        207,
        "POST",
        path,
        &json!({ "batch_input": mixed, "partial_failure_response_code": "207" }),
    );
    // Whether or not an item fails.
    let good = json!([{ "plaintext": "" }]);
    for code in [1000, 101, 204, 304, -1, 600] {
        for (path, items) in [(path, &mixed), ("transit/encrypt/c-batch", &good)] {
            a.refused(
                400,
                "partial_failure_response_code is a status from 200 to 599, and none of 204, 205 and 304, which have no body",
                path,
                &json!({ "batch_input": items, "partial_failure_response_code": code }),
            );
        }
    }
    a.expect(
        400,
        "POST",
        path,
        &json!({ "batch_input": [{ "ciphertext": "x" }], "partial_failure_response_code": 207 }),
    );
    let last = a.audited().pop().unwrap();
    assert_eq!(
        (last["batch"].as_u64(), last["batch_failed"].as_u64()),
        (Some(1), Some(1)),
        "{last}"
    );
}

#[test]
fn rewrap_moves_to_the_latest_version_and_old_ciphertexts_still_decrypt() {
    let a = Appliance::new();
    a.key("c-rewrap", &Value::Null);
    let old = a.encrypt("c-rewrap", b"x");
    a.expect(200, "POST", "transit/keys/c-rewrap/rotate", &Value::Null);
    let answer = a.expect(
        200,
        "POST",
        "transit/rewrap/c-rewrap",
        &json!({ "ciphertext": old }),
    );
    assert_eq!(answer["data"]["key_version"], 2);
    for ciphertext in [&json!(old), &answer["data"]["ciphertext"]] {
        let answer = a.expect(
            200,
            "POST",
            "transit/decrypt/c-rewrap",
            &json!({ "ciphertext": ciphertext }),
        );
        assert_eq!(unb64(&answer["data"]["plaintext"]), b"x");
    }
    let batch = json!({ "batch_input": [{ "ciphertext": old, "key_version": 1 }, { "ciphertext": "x" }, { "ciphertext": old }] });
    let answer = a.expect(200, "POST", "transit/rewrap/c-rewrap", &batch);
    let results = &answer["data"]["batch_results"];
    assert_eq!(
        (&results[0]["key_version"], &results[2]["key_version"]),
        (&json!(1), &json!(2))
    );
    assert_eq!(results[1]["error"], "invalid ciphertext: no prefix");
}

#[test]
fn rewrap_binds_to_the_same_associated_data_and_context() {
    let a = Appliance::new();
    let failed = "cipher: message authentication failed";
    a.key("c-rebind", &json!({ "derived": true }));
    let bound = |ad: &str, context: &str| json!({ "plaintext": "YQ==", "associated_data": ad, "context": context });
    let old = a.expect(
        200,
        "POST",
        "transit/encrypt/c-rebind",
        &bound("YWQ=", "Y3R4"),
    );
    let old = &old["data"]["ciphertext"];
    a.expect(200, "POST", "transit/keys/c-rebind/rotate", &Value::Null);
    let path = "transit/rewrap/c-rebind";
    for body in [
        json!({ "ciphertext": old, "context": "Y3R4" }),
        json!({ "ciphertext": old, "context": "Y3R4", "associated_data": "YWU=" }),
        json!({ "ciphertext": old, "context": "Y3R5", "associated_data": "YWQ=" }),
    ] {
        a.refused(400, failed, path, &body);
    }
    let good = json!({ "ciphertext": old, "context": "Y3R4", "associated_data": "YWQ=" });
    let single = a.expect(200, "POST", path, &good);
    assert_eq!(single["data"]["key_version"], 2);
    let mut bad = good.clone();
    bad["associated_data"] = json!("YWU=");
    let other = a.expect(200, "POST", "transit/encrypt/c-rebind", &bound("", "Y3R4"));
    let none = json!({ "ciphertext": other["data"]["ciphertext"], "context": "Y3R4", "associated_data": null });
    let batch = a.expect(
        200,
        "POST",
        path,
        &json!({ "batch_input": [good, bad, none] }),
    );
    let results = &batch["data"]["batch_results"];
    assert_eq!(results[1]["error"], failed);
    for (new, ad) in [
        (&single["data"]["ciphertext"], "YWQ="),
        (&results[0]["ciphertext"], "YWQ="),
        (&results[2]["ciphertext"], ""),
    ] {
        let mut body = json!({ "ciphertext": new, "context": "Y3R4", "associated_data": ad });
        let answer = a.expect(200, "POST", "transit/decrypt/c-rebind", &body);
        assert_eq!(answer["data"]["plaintext"], "YQ==");
        body["associated_data"] = json!("YWV4dHJh");
        a.refused(400, failed, "transit/decrypt/c-rebind", &body);
    }
    a.refused(
        400,
        "associated_data is given beside batch_input: give it in each item",
        path,
        &json!({ "associated_data": "YWQ=", "batch_input": [{ "ciphertext": old, "context": "Y3R4" }] }),
    );
}

#[test]
fn data_keys_come_in_three_sizes() {
    let a = Appliance::new();
    a.key("c-datakey", &Value::Null);
    for (bits, bytes) in [
        (json!(128), 16),
        (json!("256"), 32),
        (json!(512), 64),
        (Value::Null, 32),
    ] {
        let body = if bits.is_null() {
            json!({})
        } else {
            json!({ "bits": bits })
        };
        let answer = a.expect(200, "POST", "transit/datakey/plaintext/c-datakey", &body);
        let plaintext = unb64(&answer["data"]["plaintext"]);
        assert_eq!(plaintext.len(), bytes);
        let answer = a.expect(
            200,
            "POST",
            "transit/decrypt/c-datakey",
            &json!({ "ciphertext": answer["data"]["ciphertext"] }),
        );
        assert_eq!(unb64(&answer["data"]["plaintext"]), plaintext);
    }
    let answer = a.expect(200, "POST", "transit/datakey/wrapped/c-datakey", &json!({}));
    assert!(answer["data"].get("plaintext").is_none());
    // OpenTofu writes its state with such a key: bound to something, it opens with it and with
    // nothing else.
    let bound = json!({ "associated_data": "YQ==" });
    let made = a.expect(200, "POST", "transit/datakey/plaintext/c-datakey", &bound);
    assert_eq!(made["warnings"], Value::Null);
    let open = |associated_data: Value| {
        let body =
            json!({ "ciphertext": made["data"]["ciphertext"], "associated_data": associated_data });
        a.send(
            Who::Operator,
            "POST",
            "transit/decrypt/c-datakey",
            &[],
            body.to_string(),
        )
    };
    let opened = open(json!("YQ=="));
    assert_eq!(
        (opened.status, &opened.json()["data"]["plaintext"]),
        (200, &made["data"]["plaintext"])
    );
    for wrong in [Value::Null, json!("Yg==")] {
        assert_eq!(open(wrong).error(), "cipher: message authentication failed");
    }
    a.refused(
        400,
        "unable to get associated_data/additional_data from factory[0]: illegal base64 data at input byte 0",
        "transit/datakey/wrapped/c-datakey",
        &json!({ "associated_data": "!" }),
    );
    a.refused(
        400,
        "invalid bit length",
        "transit/datakey/wrapped/c-datakey",
        &json!({ "bits": 192 }),
    );
    a.refused(
        400,
        "failed to base64-decode context",
        "transit/datakey/wrapped/c-datakey",
        &json!({ "context": "!" }),
    );
    a.refused(
        400,
        "Invalid path, must be 'plaintext' or 'wrapped'",
        "transit/datakey/naked/c-datakey",
        &json!({}),
    );
    a.refused(
        400,
        "encryption key not found",
        "transit/datakey/wrapped/c-nobody",
        &json!({}),
    );
}

#[test]
fn an_unknown_key_is_made_where_configuration_and_policy_allow() {
    let a = Appliance::with(|config| config.upsert = true);
    a.expect(
        200,
        "POST",
        "transit/encrypt/c-upsert",
        &json!({ "plaintext": "YQ==", "context": "YQ==" }),
    );
    let key = a.expect(200, "GET", "transit/keys/c-upsert", &Value::Null);
    assert_eq!(key["data"]["derived"], true);
    let audited: Vec<Value> = a
        .audited()
        .into_iter()
        .map(|line| line["operation"].clone())
        .collect();
    assert_eq!(audited, ["create", "encrypt", "read"]);
    let reply = a.send(
        Who::App,
        "POST",
        "transit/encrypt/app-upsert",
        &[],
        r#"{"plaintext":"YQ=="}"#,
    );
    assert_eq!(
        (reply.status, reply.error().as_str()),
        (403, "1 error occurred:\n\t* permission denied\n\n")
    );
    assert_eq!(
        reply.json()["errors"][1],
        "dns:app.test asked for create with the key app-upsert: no policy rule allows it"
    );
    assert!(!a.app.keyring.exists(named("app-upsert")));
}
