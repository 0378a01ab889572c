//! Fuzz entry: the store's bytes.
#![allow(
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzz target reports"
)]

use std::sync::LazyLock;

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};

use super::record::{Anchor, Envelope, aad, decode_id, encode_id};
use super::{RecordId, RecordKind, claim};

const STORE_ID: [u8; 16] = [5; 16];

/// Two bytes of length, a place in the database, and a sealed record: what opens is what was sealed
/// for that very place.
pub fn store_record(data: &[u8]) {
    let Some((length, rest)) = data.split_first_chunk() else {
        return;
    };
    let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
    let (place, sealed) = rest.split_at(length);
    same_bytes_again(place);
    same_bytes_again(sealed);
    let Some(id) = decode_id(place) else {
        return;
    };
    let payload = claim(&STORE_ID, &id, sealed).and_then(|(envelope, aad)| {
        let message = Payload {
            msg: &envelope.sealed,
            aad: &aad,
        };
        cipher()?.decrypt(&envelope.nonce.into(), message).ok()
    });
    if let Some(payload) = payload {
        let known = RECORDS.iter().find(|(known, _)| *known == id);
        assert_eq!(
            known.map(|(_, bytes)| bytes.as_slice()),
            Some(sealed),
            "{id:?} holds {payload:?}"
        );
    }
}

/// What a store sealed, each for its place: the seeds are made of it.
pub(super) static RECORDS: LazyLock<Vec<(RecordId, Vec<u8>)>> = LazyLock::new(|| {
    let places = [
        (RecordKind::Key, "k", 0),
        (RecordKind::KeyVersion, "k", 1),
        (RecordKind::KeyVersion, "k", 2),
        (RecordKind::UseCounter, "k", 1),
        (RecordKind::Key, "k2", 0),
    ];
    (0_u8..)
        .zip(places)
        .filter_map(|(number, place)| sealed(number, place))
        .collect()
});

fn sealed(
    number: u8,
    (kind, name, version): (RecordKind, &str, u32),
) -> Option<(RecordId, Vec<u8>)> {
    let id = RecordId {
        kind,
        name: name.to_owned(),
        version,
    };
    let nonce = [number; 12];
    let payload = format!("payload {number}");
    let aad = aad(&STORE_ID, &encode_id(&id)?);
    let message = Payload {
        msg: payload.as_bytes(),
        aad: &aad,
    };
    let sealed = cipher()?.encrypt(&nonce.into(), message).ok()?;
    let envelope = Envelope {
        kind: kind as u8,
        store_id: STORE_ID,
        nonce,
        sealed,
    };
    Some((id, envelope.encode()))
}

fn cipher() -> Option<Aes256Gcm> {
    Aes256Gcm::new_from_slice(&[9; 32]).ok()
}

/// Each format has one spelling of each value.
fn same_bytes_again(bytes: &[u8]) {
    if let Some(envelope) = Envelope::decode(bytes) {
        assert_eq!(envelope.encode(), bytes);
    }
    if let Some(id) = decode_id(bytes) {
        assert_eq!(encode_id(&id).as_deref(), Some(bytes));
    }
    if let Some(anchor) = Anchor::decode(bytes) {
        assert_eq!(anchor.encode(), bytes);
    }
    if let Some(anchor) = Anchor::decode_from_token(bytes) {
        assert_eq!(anchor.encode_for_token(), bytes);
    }
}
