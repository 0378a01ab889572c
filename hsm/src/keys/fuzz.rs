//! Fuzz entries: what the token says of its keys.
#![allow(
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzz target reports"
)]

use cryptoki_sys::CK_MECHANISM_TYPE;
use p256::ecdsa::SigningKey;
use p256::pkcs8::{Document, EncodePublicKey as _};
use rsa::pkcs8::DecodePublicKey as _;
use rsa::traits::PublicKeyParts as _;

use super::{ec_der, is, rsa_der};
use crate::template::{OPTIONAL, REQUIRED, Rule, Value};

/// A point is read whether it is bare or in its OCTET STRING, as the same key; what is read is the
/// point that was given.
pub fn ec_point(data: &[u8]) {
    if let Some(der) = ec_der(data) {
        assert!(
            der.ends_with(&data[data.len().saturating_sub(32)..]) || data.len() == 33,
            "{data:02x?}"
        );
    }
    let Some(key) = data
        .first_chunk::<32>()
        .and_then(|secret| SigningKey::from_slice(secret).ok())
    else {
        return;
    };
    let public = key.verifying_key();
    let bare = public.to_sec1_point(false);
    let wrapped = [&[0x04, 0x41], bare.as_bytes()].concat();
    let expected = public.to_public_key_der().ok().map(Document::into_vec);
    assert!(expected.is_some());
    assert_eq!(ec_der(&wrapped), expected);
    assert_eq!(ec_der(bare.as_bytes()), expected, "{bare:?}");
}

/// Length of the exponent, exponent, modulus: what makes a key is in the key as it was given.
pub fn rsa_numbers(data: &[u8]) {
    let Some((length, rest)) = data.split_first() else {
        return;
    };
    let (exponent, modulus) = rest.split_at(usize::from(*length).min(rest.len()));
    let Some(der) = rsa_der(modulus, exponent) else {
        return;
    };
    let key = rsa::PublicKey::from_public_key_der(&der);
    let numbers = key.map(|key| {
        (
            key.n().to_be_bytes_trimmed_vartime(),
            key.e().to_be_bytes_trimmed_vartime(),
        )
    });
    let given = (without_zeros(modulus), without_zeros(exponent));
    assert!(numbers.is_ok_and(|(n, e)| (&*n, &*e) == given));
}

/// An attribute's value passes a rule if it is that value, and no looser one.
pub fn key_attribute(data: &[u8]) {
    let halves = REQUIRED
        .into_iter()
        .chain(OPTIONAL)
        .flat_map(|spec| [Some(spec.private), spec.public]);
    for rule in halves.flatten().flatten() {
        if rule.admits(data) {
            assert!(is_as_strict(rule, data), "{} admits {data:02x?}", rule.name);
        } else {
            let _ = is(rule, data);
        }
    }
}

fn is_as_strict(rule: &Rule, data: &[u8]) -> bool {
    match &rule.value {
        Value::Bool(true) => data != [0] && data.len() == 1,
        Value::Bool(false) => data == [0],
        Value::Ulong(number) => data == number.to_ne_bytes(),
        Value::Bytes(bytes) => data == &**bytes,
        Value::Mechanisms(allowed) => {
            let (found, rest) = data.as_chunks::<{ size_of::<CK_MECHANISM_TYPE>() }>();
            let mut found = found
                .iter()
                .map(|bytes| CK_MECHANISM_TYPE::from_ne_bytes(*bytes));
            // An empty list means "all mechanisms" in PKCS#11.
            rest.is_empty()
                && !data.is_empty()
                && found.all(|mechanism| allowed.contains(&mechanism))
        }
        Value::Template(_) => false,
    }
}

fn without_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}
