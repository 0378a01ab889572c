use serde_json::{Value, json};

use super::appliance::{Appliance, b64, named};

#[test]
fn a_key_is_made_described_listed_and_deleted() {
    let a = Appliance::new();
    let made = a.expect(
        200,
        "POST",
        "transit/keys/k-life",
        &json!({ "auto_rotate_period": "30d", "nonsense": 1 }),
    );
    assert_eq!(made["data"]["auto_rotate_period"], 2_592_000);
    assert_eq!(
        made["warnings"],
        json!(["Endpoint ignored these unrecognized parameters: [nonsense]"])
    );
    // Made again: described, not changed, as long as what is said of it is true.
    for same in [
        Value::Null,
        json!({ "type": "aes256-gcm96", "derived": false, "residency": "hsm", "auto_rotate_period": "720h", "exportable": false }),
    ] {
        let again = a.expect(200, "PUT", "transit/keys/k-life", &same);
        assert_eq!(again["data"], made["data"]);
        assert_eq!(again["warnings"], json!(["key k-life already existed"]));
    }
    for (name, is, other) in [
        ("derived", "false", json!({ "derived": true })),
        ("type", "aes256-gcm96", json!({ "type": "ecdsa-p256" })),
        ("residency", "hsm", json!({ "residency": "memory" })),
        (
            "auto_rotate_period",
            "2592000 s",
            json!({ "auto_rotate_period": 0 }),
        ),
    ] {
        let error = format!(
            "the key k-life is there already, and its {name} is {is}: nothing was changed. What can be changed is changed by keys/k-life/config"
        );
        a.refused(400, &error, "transit/keys/k-life", &other);
    }
    a.expect(
        400,
        "POST",
        "transit/keys/k-life",
        &json!({ "exportable": true }),
    );
    let read = a.expect(200, "GET", "transit/keys/k-life", &Value::Null);
    assert_eq!(
        (&read["data"]["derived"], &read["data"]["residency"]),
        (&json!(false), &json!("hsm"))
    );
    assert_eq!(read["data"]["keys"].as_object().unwrap().len(), 1);
    for (method, path) in [
        ("LIST", "transit/keys"),
        ("LIST", "transit/keys/"),
        ("GET", "transit/keys?list=true"),
    ] {
        let list = a.expect(200, method, path, &Value::Null);
        assert!(
            list["data"]["keys"]
                .as_array()
                .unwrap()
                .contains(&json!("k-life"))
        );
    }
    a.key("k-derived", &json!({ "derived": true }));
    a.refused(
        400,
        "the key k-derived is there already, and its convergent_encryption is false: nothing was changed. What can be changed is changed by keys/k-derived/config",
        "transit/keys/k-derived",
        &json!({ "derived": true, "convergent_encryption": true }),
    );
    let delete = |error: &str| {
        let reply = a.ask("DELETE", "transit/keys/k-life", &Value::Null);
        assert_eq!((reply.status, reply.error().as_str()), (400, error));
    };
    delete("error deleting policy k-life: deletion is not allowed for this key");
    a.expect(
        200,
        "POST",
        "transit/keys/k-life/config",
        &json!({ "deletion_allowed": "true" }),
    );
    a.expect(204, "DELETE", "transit/keys/k-life", &Value::Null);
    delete("error deleting policy k-life: could not delete key; not found");
    let reply = a.ask("GET", "transit/keys/k-life", &Value::Null);
    assert_eq!((reply.status, reply.json()), (404, json!({ "errors": [] })));
}

#[test]
fn what_a_key_cannot_be_is_refused() {
    let a = Appliance::new();
    for (error, body) in [
        ("unknown key type des", json!({ "type": "des" })),
        (
            "key type rsa-2048 is not supported: the types are aes256-gcm96, ecdsa-p256, rsa-4096 and ed25519",
            json!({ "type": "rsa-2048" }),
        ),
        (
            "convergent encryption requires derivation to be enabled",
            json!({ "convergent_encryption": true }),
        ),
        (
            "exportable is not supported: keys never leave the appliance in plaintext",
            json!({ "exportable": true }),
        ),
        (
            "allow_plaintext_backup is not supported: keys never leave the appliance in plaintext",
            json!({ "allow_plaintext_backup": 1 }),
        ),
        (
            "auto rotate period must be 0 to disable or at least an hour",
            json!({ "auto_rotate_period": 60 }),
        ),
        (
            "key_size is not valid for algorithm aes256-gcm96",
            json!({ "key_size": 32 }),
        ),
        (
            "managed keys are not supported: every key is held by the HSM",
            json!({ "managed_key_name": "x" }),
        ),
        (
            "unknown residency \"moon\"; must be \"hsm\" or \"memory\"",
            json!({ "residency": "moon" }),
        ),
        (
            r#"Field validation failed: error converting input for field "derived": expected type 'bool'"#,
            json!({ "derived": "maybe" }),
        ),
    ] {
        a.refused(400, error, "transit/keys/k-refused", &body);
    }
    assert!(!a.app.keyring.exists(named("k-refused")));
}

#[test]
fn settings_are_checked_and_kept() {
    let a = Appliance::new();
    a.key("k-config", &Value::Null);
    let path = "transit/keys/k-config/config";
    a.expect(200, "POST", "transit/keys/k-config/rotate", &Value::Null);
    for (error, body) in [
        (
            "min decryption version cannot be negative",
            json!({ "min_decryption_version": -1 }),
        ),
        (
            "cannot set min decryption version of 3, latest key version is 2",
            json!({ "min_decryption_version": 3 }),
        ),
        (
            "min encryption version cannot be negative",
            json!({ "min_encryption_version": -1 }),
        ),
        (
            "cannot set min encryption version of 3, latest key version is 2",
            json!({ "min_encryption_version": 3 }),
        ),
        (
            "cannot set min encryption/decryption values; min encryption version of 1 must be greater than or equal to min decryption version of 2",
            json!({ "min_encryption_version": 1, "min_decryption_version": 2 }),
        ),
        (
            "auto rotate period must be 0 to disable or at least an hour",
            json!({ "auto_rotate_period": "59m" }),
        ),
        (
            "exportable is not supported: keys never leave the appliance in plaintext",
            json!({ "exportable": true }),
        ),
    ] {
        a.refused(400, error, path, &body);
    }
    let answer = a.expect(200, "POST", path, &json!({ "min_decryption_version": 0 }));
    assert_eq!(
        answer["warnings"],
        json!(["since Vault 0.3, transit key numbering starts at 1; forcing minimum to 1"])
    );
    let old = a.expect(
        200,
        "POST",
        "transit/encrypt/k-config",
        &json!({ "plaintext": "YQ==", "key_version": 1 }),
    );
    let answer = a.expect(
        200,
        "POST",
        path,
        &json!({ "min_decryption_version": 2, "min_encryption_version": 2 }),
    );
    assert_eq!(
        answer["data"]["keys"]
            .as_object()
            .unwrap()
            .keys()
            .collect::<Vec<_>>(),
        ["2"]
    );
    a.refused(
        400,
        "ciphertext or signature version is disallowed by policy (too old)",
        "transit/decrypt/k-config",
        &json!({ "ciphertext": old["data"]["ciphertext"] }),
    );
    a.refused(
        400,
        "requested version for encryption is less than the minimum encryption key version",
        "transit/encrypt/k-config",
        &json!({ "plaintext": "YQ==", "key_version": 1 }),
    );

    a.refused(
        400,
        "no existing key named k-nobody could be found",
        "transit/keys/k-nobody/config",
        &json!({}),
    );
    a.refused(
        400,
        "key not found",
        "transit/keys/k-nobody/rotate",
        &json!({}),
    );
    a.refused(
        400,
        "invalid key name",
        "transit/keys/k-nobody/trim",
        &json!({}),
    );
}

#[test]
fn old_versions_are_trimmed() {
    let a = Appliance::new();
    a.key("k-trim", &Value::Null);
    a.expect(200, "POST", "transit/keys/k-trim/rotate", &Value::Null);
    let config = json!({ "min_decryption_version": 2, "min_encryption_version": 2 });
    a.expect(200, "POST", "transit/keys/k-trim/config", &config);
    let trim = "transit/keys/k-trim/trim";
    a.refused(400, "missing min_available_version", trim, &json!({}));
    a.refused(
        400,
        "minimum available version cannot be greater than minmum encryption version",
        trim,
        &json!({ "min_available_version": 3 }),
    );
    let answer = a.expect(200, "POST", trim, &json!({ "min_available_version": 2 }));
    assert_eq!(answer["data"]["min_available_version"], 2);
    a.refused(
        400,
        "minimum available version cannot be decremented",
        trim,
        &json!({ "min_available_version": 1 }),
    );
}

#[test]
fn an_import_that_cannot_be_unwrapped_says_so() {
    let a = Appliance::new();
    let answer = a.expect(200, "GET", "transit/wrapping_key", &Value::Null);
    let pem = answer["data"]["public_key"].as_str().unwrap();
    assert!(
        pem.starts_with("-----BEGIN PUBLIC KEY-----\n")
            && pem.ends_with("-----END PUBLIC KEY-----\n")
    );
    let path = "transit/keys/k-import/import";
    for (error, body) in [
        (
            "provided ciphertext is too short",
            json!({ "ciphertext": b64(&[7; 512]) }),
        ),
        (
            "illegal base64 data at input byte 0",
            json!({ "ciphertext": "!" }),
        ),
        (
            "unknown hash function: MD5",
            json!({ "ciphertext": "YQ==", "hash_function": "MD5" }),
        ),
        (
            "hash function SHA512 is not supported: wrap with SHA256 or SHA1",
            json!({ "ciphertext": "YQ==", "hash_function": "SHA512" }),
        ),
        (
            "allow_rotation must be set to true if auto-rotation is enabled",
            json!({ "ciphertext": "YQ==", "auto_rotate_period": "1h" }),
        ),
        (
            "provided type does not support public_key import",
            json!({ "public_key": "x" }),
        ),
    ] {
        a.refused(400, error, path, &body);
    }
    let reply = a.ask(
        "POST",
        path,
        &json!({ "ciphertext": b64(&[7; 552]), "hash_function": "SHA1" }),
    );
    assert_eq!(reply.status, 400, "{}", reply.error());
    a.refused(
        400,
        "no key found with name k-import; to import a new key, use the import/ endpoint",
        "transit/keys/k-import/import_version",
        &json!({ "ciphertext": b64(&[7; 552]), "hash_function": "SHA1" }),
    );
}
