//! What a LUKS2 header may say that is opened as the state: what systemd-repart of this image
//! writes, and nothing else.
//!
//! The header is not protected: whoever has the disk can name another cipher, or none, and put a
//! key of their own in. With the TPM's public key, which the header holds, they can seal that key
//! to this machine without ever having been near it. Such a key comes to the TPM by an import; one
//! that was made in the TPM does not, and says so in what the TPM checks.
//!
//! The format: LUKS2 On-Disk Format Specification 1.1.1. The sealed key: systemd's
//! `tpm2_marshal_blob`, TPM 2.0 Library part 2.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use strongroom_core::json::Document;

/// Bytes, from the partition's start to its data.
pub(super) const HEADER_BYTES: usize = 16 << 20;

/// Each of the two copies: a block of numbers, then JSON.
const HEADER_COPY_BYTES: usize = 16 << 10;
const JSON_OFFSET: usize = 4 << 10;

/// Of the specification: the first copy and the second.
const MAGICS: [&[u8; 8]; 2] = [b"LUKS\xba\xbe\x00\x02", b"SKUL\xba\xbe\x00\x02"];

/// What differs from one state to the next: numbers and texts that are keys, or that only fit one
/// key.
const INSTANCE_MEMBERS: [&str; 10] = [
    "/keyslots/0/kdf/iterations",
    "/keyslots/0/kdf/salt",
    "/tokens/0/tpm2-blob",
    "/tokens/0/tpm2-policy-hash",
    "/tokens/0/tpm2_pubkey",
    "/tokens/0/tpm2_srk",
    "/segments/0/sector_size",
    "/digests/0/iterations",
    "/digests/0/salt",
    "/digests/0/digest",
];

/// TPMA_OBJECT: made in this TPM, never to leave it. The TPM imports nothing that says so.
const FIXED_TPM_AND_PARENT: u32 = (1 << 1) | (1 << 4);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum NotOurs {
    #[error("it has no LUKS2 header")]
    NoHeader,
    #[error("the two copies of its LUKS2 header differ")]
    Copies,
    #[error("its LUKS2 header is not readable: {0}")]
    Json(String),
    #[error("its LUKS2 header names other ciphers, keys or parts than are made here")]
    Other,
    #[error("its key was not made in a TPM")]
    Key,
}

/// `header`: the partition's first [`HEADER_BYTES`] bytes.
pub(super) fn check(header: &[u8]) -> Result<(), NotOurs> {
    let copy =
        |index: usize| header.get(index * HEADER_COPY_BYTES..(index + 1) * HEADER_COPY_BYTES);
    let (Some(first), Some(second), HEADER_BYTES) = (copy(0), copy(1), header.len()) else {
        return Err(NotOurs::NoHeader);
    };
    if !first.starts_with(MAGICS[0]) || !second.starts_with(MAGICS[1]) {
        return Err(NotOurs::NoHeader);
    }
    // Whichever is read in the end says the same. Nothing writes a header again once the state was
    // made.
    if first[JSON_OFFSET..] != second[JSON_OFFSET..] {
        return Err(NotOurs::Copies);
    }
    let mut metadata = metadata(&first[JSON_OFFSET..])?;
    let blob = metadata
        .pointer("/tokens/0/tpm2-blob")
        .and_then(Value::as_str)
        .and_then(|text| STANDARD.decode(text).ok())
        .ok_or(NotOurs::Other)?;
    for own in INSTANCE_MEMBERS {
        let value = metadata.pointer_mut(own).ok_or(NotOurs::Other)?;
        if !value.is_string() && !value.is_u64() {
            return Err(NotOurs::Other);
        }
        *value = Value::Null;
    }
    if metadata != made() {
        return Err(NotOurs::Other);
    }
    is_fixed(&blob).ok_or(NotOurs::Key)
}

fn metadata(area: &[u8]) -> Result<Value, NotOurs> {
    let end = area
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(area.len());
    let (text, padding) = area.split_at(end);
    if padding.iter().any(|byte| *byte != 0) {
        return Err(NotOurs::Json("something follows it".to_owned()));
    }
    Document::parse(text)
        .map(Document::into_value)
        .map_err(|error| NotOurs::Json(error.to_string()))
}

/// A sealed key is its encrypted part and its public part, each behind its length; a third part
/// would be what an import needs.
fn is_fixed(blob: &[u8]) -> Option<()> {
    let (_private, rest) = part(blob)?;
    let (public, rest) = part(rest)?;
    // Type, hash, attributes.
    let attributes = u32::from_be_bytes(*public.get(4..)?.first_chunk()?);
    (rest.is_empty() && attributes & FIXED_TPM_AND_PARENT == FIXED_TPM_AND_PARENT).then_some(())
}

fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

/// By systemd-repart 257 with libcryptsetup 2.7, from `image/root/usr/lib/repart.d/40-state.conf`
/// and the unit's options.
fn made() -> Value {
    json!({
        "keyslots": {"0": {
            "type": "luks2",
            "key_size": 64,
            "af": {"type": "luks1", "stripes": 4000, "hash": "sha512"},
            "area": {"type": "raw", "offset": "32768", "size": "258048", "encryption": "aes-xts-plain64", "key_size": 64},
            "kdf": {"type": "pbkdf2", "hash": "sha512", "iterations": null, "salt": null},
        }},
        "tokens": {"0": {
            "type": "systemd-tpm2",
            "keyslots": ["0"],
            "tpm2-blob": null,
            "tpm2-pcrs": [7, 12, 13],
            "tpm2-pcr-bank": "sha256",
            "tpm2-policy-hash": null,
            "tpm2_pubkey_pcrs": [11],
            "tpm2_pubkey": null,
            "tpm2_srk": null,
        }},
        "segments": {"0": {
            "type": "crypt",
            "offset": "16777216",
            "size": "dynamic",
            "iv_tweak": "0",
            "encryption": "aes-xts-plain64",
            "sector_size": null,
        }},
        "digests": {"0": {
            "type": "pbkdf2",
            "keyslots": ["0"],
            "segments": ["0"],
            "hash": "sha256",
            "iterations": null,
            "salt": null,
            "digest": null,
        }},
        "config": {"json_size": "12288", "keyslots_size": "16744448"},
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// With a sealed key whose attributes these are, and a third part.
    fn blob(attributes: u32, seed: &[u8]) -> String {
        let mut public = vec![0, 8, 0, 11];
        public.extend(attributes.to_be_bytes());
        public.extend([0; 70]);
        let mut bytes = vec![0, 4, 1, 2, 3, 4, 0, u8::try_from(public.len()).unwrap()];
        bytes.extend(public);
        bytes.extend(seed);
        STANDARD.encode(bytes)
    }

    /// As this image makes it.
    fn ours() -> Value {
        let mut metadata = made();
        for own in INSTANCE_MEMBERS {
            *metadata.pointer_mut(own).unwrap() = json!("c2FsdA==");
        }
        metadata["tokens"]["0"]["tpm2-blob"] = json!(blob(0x412, &[]));
        metadata["segments"]["0"]["sector_size"] = json!(512);
        metadata["digests"]["0"]["iterations"] = json!(1000);
        metadata["keyslots"]["0"]["kdf"]["iterations"] = json!(1000);
        metadata
    }

    fn header(first: &str, second: &str) -> Vec<u8> {
        let mut header = vec![0; HEADER_BYTES];
        for (index, text) in [first, second].iter().enumerate() {
            let copy = &mut header[index * HEADER_COPY_BYTES..];
            copy[..8].copy_from_slice(MAGICS[index]);
            copy[JSON_OFFSET..JSON_OFFSET + text.len()].copy_from_slice(text.as_bytes());
        }
        header
    }

    fn judge(metadata: &Value) -> Result<(), NotOurs> {
        let text = metadata.to_string();
        check(&header(&text, &text))
    }

    #[test]
    fn what_systemd_repart_makes_here_passes() {
        judge(&ours()).unwrap();
    }

    #[test]
    fn whatever_else_a_header_says_is_refused() {
        for (pointer, value) in [
            ("/segments/0/encryption", json!("cipher_null-ecb")),
            ("/segments/0/encryption", json!("aes-xts-plain")),
            ("/segments/0/type", json!("linear")),
            ("/segments/0/offset", json!("33554432")),
            ("/segments/0/sector_size", json!({})),
            ("/keyslots/0/area/encryption", json!("cipher_null-ecb")),
            ("/keyslots/0/kdf/type", json!("argon2id")),
            ("/keyslots/1", ours()["keyslots"]["0"].clone()),
            ("/tokens/1", ours()["tokens"]["0"].clone()),
            ("/tokens/0/type", json!("luks2-keyring")),
            ("/tokens/0/tpm2-pcrs", json!([])),
            ("/tokens/0/tpm2-pcrs", json!([7])),
            ("/tokens/0/tpm2_pubkey_pcrs", json!([])),
            ("/tokens/0/tpm2-pin", json!(true)),
            ("/tokens/0/tpm2_pcrlock", json!(true)),
            ("/segments/1", ours()["segments"]["0"].clone()),
            ("/digests/1", ours()["digests"]["0"].clone()),
            (
                "/config/requirements",
                json!({"mandatory": ["online-reencrypt-v2"]}),
            ),
            ("/config/flags", json!(["allow-discards"])),
        ] {
            let mut metadata = ours();
            let (place, name) = pointer.rsplit_once('/').unwrap();
            metadata.pointer_mut(place).unwrap()[name] = value.clone();
            assert_eq!(judge(&metadata), Err(NotOurs::Other), "{pointer} {value}");
        }
        for own in INSTANCE_MEMBERS {
            let mut metadata = ours();
            let (place, name) = own.rsplit_once('/').unwrap();
            let parent = metadata.pointer_mut(place).unwrap().as_object_mut();
            parent.unwrap().remove(name);
            assert_eq!(judge(&metadata), Err(NotOurs::Other), "without {own}");
        }
    }

    #[test]
    fn a_key_that_was_imported_or_may_leave_the_tpm_is_refused() {
        for (attributes, seed) in [
            (0x412, &[0, 2, 1, 1][..]),
            (0x412, &[0]),
            (0, &[]),
            (0x400, &[]),
            (0x402, &[]),
            (0x410, &[]),
        ] {
            let mut metadata = ours();
            metadata["tokens"]["0"]["tpm2-blob"] = json!(blob(attributes, seed));
            assert_eq!(
                judge(&metadata),
                Err(NotOurs::Key),
                "{attributes:x} {seed:?}"
            );
        }
        for blob in ["", "AAAA", "AAEB"] {
            let mut metadata = ours();
            metadata["tokens"]["0"]["tpm2-blob"] = json!(blob);
            assert_eq!(judge(&metadata), Err(NotOurs::Key), "{blob}");
        }
    }

    #[test]
    fn copies_that_differ_and_other_headers_are_refused() {
        let text = ours().to_string();
        let other = text.replace("aes-xts-plain64", "cipher_null-ecb");
        assert_eq!(check(&header(&text, &other)), Err(NotOurs::Copies));
        assert_eq!(check(&header(&other, &text)), Err(NotOurs::Copies));
        assert_eq!(check(&header(&text, &text)[1..]), Err(NotOurs::NoHeader));
        assert_eq!(check(&vec![0; HEADER_BYTES]), Err(NotOurs::NoHeader));
        assert_eq!(check(&[]), Err(NotOurs::NoHeader));
        let mut header = header(&text, &text);
        for copy in [0, HEADER_COPY_BYTES] {
            header[copy + HEADER_COPY_BYTES - 1] = b'x';
        }
        assert!(matches!(check(&header), Err(NotOurs::Json(_))));
        // Of two members of one name the last counts for libcryptsetup.
        let twice = text.replacen("{\"config\"", "{\"config\":{},\"config\"", 1);
        assert_ne!(twice, text);
        let result = check(&self::header(&twice, &twice));
        assert!(matches!(result, Err(NotOurs::Json(_))), "{result:?}");
    }
}
