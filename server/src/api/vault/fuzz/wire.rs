//! Vault's ciphertexts and HMACs.
#![allow(
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzz target reports"
)]

use std::str;

use strongroom_core::keyring::KeyName;

use super::super::wire::{
    BASE64, Base64Error, PREFIX, WireError, decode_base64, parse_ciphertext, parse_hmac,
};
use super::base64::as_go;
use crate::api::pipeline::answer::RequestId;
use crate::api::vault::envelope::Envelope;
use ::base64::Engine as _;

/// `vault:v<version>:<base64>`: what is accepted is what a plain reading of the format gives, and
/// survives being written again.
pub fn ciphertext(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    base64(text);
    let _ = KeyName::parse(text);
    let parsed = parse_ciphertext(text);
    assert_eq!(
        parsed.as_ref().map(|c| (c.version, c.bytes.clone())).ok(),
        by_the_book(text)
    );
    match (parsed, parse_hmac(text)) {
        (Ok(ciphertext), Ok(hmac)) => {
            assert_eq!(
                (hmac.version, &hmac.tag),
                (ciphertext.version, &ciphertext.bytes)
            );
            assert!(ciphertext.version > 0);
            let written = written(ciphertext.version, &ciphertext.bytes);
            assert_eq!(parse_ciphertext(&written).as_ref(), Ok(&ciphertext));
            for cut in 0..written.len().min(PREFIX.len() + 2) {
                assert!(parse_ciphertext(&written[..cut]).is_err());
            }
        }
        // Of HMACs there never was a version 0.
        (Ok(ciphertext), Err(WireError::TooOld)) => {
            assert_eq!(ciphertext.version, 1);
            let zero = text.split(':').nth(1).unwrap_or_default();
            assert!(
                !zero.contains(|c: char| ('1'..='9').contains(&c)),
                "{text:?}"
            );
        }
        (Err(WireError::Base64(Base64Error(at))), Err(_)) => assert!(at <= text.len()),
        (Err(one), Err(other)) => assert_eq!(one, other),
        (one, other) => assert!(one.is_ok() == other.is_ok(), "{text:?}"),
    }
}

/// The decoder, its fast path and the offset of its error against Go's algorithm step by step.
fn base64(text: &str) {
    let found = decode_base64(text);
    let plain = found.as_ref().map(|bytes| bytes.to_vec());
    let expected = as_go(text.as_bytes()).map_err(Base64Error);
    assert_eq!(plain.map_err(|error| *error), expected, "{text:?}");
    if let Ok(bytes) = found {
        assert_eq!(decode_base64(&BASE64.encode(&*bytes)).as_ref(), Ok(&bytes));
    }
}

fn by_the_book(text: &str) -> Option<(u32, Vec<u8>)> {
    let mut fields = text.splitn(3, ':');
    if fields.next() != Some("vault") {
        return None;
    }
    let version = fields.next()?.strip_prefix('v')?;
    let digits = version.strip_prefix(['+', '-']).unwrap_or(version);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u128 = digits
        .trim_start_matches('0')
        .parse()
        .ok()
        .or_else(|| digits.bytes().all(|byte| byte == b'0').then_some(0))?;
    if version.starts_with('-') && number > 0 {
        return None;
    }
    let version = u32::try_from(number).ok()?.max(1);
    Some((version, as_go(fields.next()?.as_bytes()).ok()?))
}

/// As an answer has it, without the quotes.
fn written(version: u32, bytes: &[u8]) -> String {
    let mut envelope = Envelope::open(&RequestId::random(), 0);
    envelope.versioned(version, bytes);
    let answer = envelope.close(&[], None::<&()>);
    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
    answer["data"].as_str().unwrap_or_default().to_owned()
}
