#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::json;

use super::super::testing::key;
use super::*;

/// RFC 7518, appendix C.
#[test]
fn the_kdf_meets_rfc_7518() {
    let z: [u8; 32] = [
        158, 86, 217, 29, 129, 113, 53, 211, 114, 131, 66, 131, 191, 132, 38, 156, 251, 49, 110,
        163, 218, 128, 106, 72, 246, 218, 167, 121, 140, 254, 144, 196,
    ];
    let key = concat_kdf(&z, b"A128GCM", b"Alice", b"Bob", 128);
    let derived = key.get(..16).unwrap();
    assert_eq!(encode(derived), "VqqN6vgjbSBcIijNcacQGg");
}

/// The same appendix: the points that Z comes from.
#[test]
fn ecdh_meets_rfc_7518() {
    let bob = p256::SecretKey::from_slice(
        &decode("VEmDZpDXXK8p8N0Cndsxs924q6nS1RXFASRl6BfUqdw").unwrap(),
    )
    .unwrap();
    let alice = Jwk {
        kty: "EC".into(),
        crv: "P-256".into(),
        x: "gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0".into(),
        y: "SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps".into(),
    };
    let shared = p256::ecdh::diffie_hellman(
        bob.to_nonzero_scalar(),
        alice.public_key().unwrap().as_affine(),
    );
    assert_eq!(shared.raw_secret_bytes()[..4], [158, 86, 217, 29]);
}

#[test]
fn only_the_recipient_opens_it() {
    let (alice, bob) = (key("Alice"), key("Bob"));
    let jwe = seal(b"a share", alice.participant()).unwrap();
    assert_eq!(&**open(&jwe, &alice).unwrap(), b"a share");
    assert_eq!(&**open(&format!("{jwe}\n"), &alice).unwrap(), b"a share");
    let error = open(&jwe, &bob).unwrap_err().to_string();
    assert!(error.contains("another participant"), "{error}");

    // Nor by writing their own name on it: the header is authenticated, and the key agreement is
    // with Alice's key.
    let (header, rest) = jwe.split_once('.').unwrap();
    let header = String::from_utf8(decode(header).unwrap()).unwrap();
    let renamed = header.replace(
        &alice.participant().fingerprint(),
        &bob.participant().fingerprint(),
    );
    let error = open(&format!("{}.{rest}", encode(renamed.as_bytes())), &bob).unwrap_err();
    assert!(error.to_string().contains("altered or damaged"), "{error}");
}

#[test]
fn any_change_is_found() {
    let alice = key("Alice");
    let jwe = seal(b"a share of a secret", alice.participant()).unwrap();
    for at in 0..jwe.len() {
        let mut changed = jwe.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert!(open(&changed, &alice).is_err(), "{at}");
    }
}

#[test]
fn headers_that_ask_for_something_else_are_refused() {
    let alice = key("Alice");
    let jwe = seal(b"a share", alice.participant()).unwrap();
    let (header, rest) = jwe.split_once('.').unwrap();
    let good: serde_json::Value = serde_json::from_slice(&decode(header).unwrap()).unwrap();
    for (name, value) in [
        ("/alg", json!("ECDH-ES+A256KW")),
        ("/enc", json!("A128GCM")),
        ("/epk/crv", json!("P-384")),
        ("/epk/kty", json!("OKP")),
        // Not on the curve: an answer would tell of the private key.
        (
            "/epk/x",
            json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE"),
        ),
        ("/epk/y", json!("")),
    ] {
        let mut header = good.clone();
        *header.pointer_mut(name).unwrap() = value;
        let text = format!("{}.{rest}", encode(header.to_string().as_bytes()));
        let error = open(&text, &alice).unwrap_err().to_string();
        assert!(error.contains("not an encrypted share"), "{name}: {error}");
    }
    for (name, value) in [
        ("zip", json!("DEF")),
        ("crit", json!(["exp"])),
        ("apu", json!("QQ")),
    ] {
        let mut header = good.clone();
        header[name] = value;
        let text = format!("{}.{rest}", encode(header.to_string().as_bytes()));
        assert!(open(&text, &alice).is_err(), "{name}");
    }
    for text in [
        "",
        "....",
        "a.b.c",
        &jwe.replacen("..", ".QUJD.", 1),
        &"A".repeat(100_000),
    ] {
        assert!(open(text, &alice).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn round_trips(plaintext in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let alice = key("Alice");
        let jwe = seal(&plaintext, alice.participant()).unwrap();
        prop_assert_eq!(&**open(&jwe, &alice).unwrap(), &plaintext);
    }

    #[test]
    fn rubbish_is_refused(text in "[A-Za-z0-9._-]{0,200}") {
        prop_assert!(open(&text, &key("Alice")).is_err());
    }
}
