//! The bytes of the store, as `docs/store-format.md` publishes them: record ids, envelopes, the
//! header, the epoch object. All integers are big-endian. Nothing in here does cryptography besides
//! SHA-256.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::{RecordId, RecordKind};

/// The first bytes of a sealed record.
const MAGIC: [u8; 4] = *b"SRrc";
/// The first bytes of the token's epoch object.
const EPOCH_MAGIC: [u8; 4] = *b"SRep";
/// The same in a token whose keys came from another one, and that no store is bound to yet.
const COPIED_MAGIC: [u8; 4] = *b"SRcp";
/// The version of everything in this file.
pub(super) const FORMAT_VERSION: u8 = 1;
/// Of the header record, beside the kinds of [`RecordKind`].
pub(super) const HEADER_KIND: u8 = 0;
/// The header's database key; no record id encodes to it.
pub(super) const HEADER_KEY: [u8; 1] = [HEADER_KIND];

const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
const PREFIX_BYTES: usize = MAGIC.len() + 1 + 1 + 16 + NONCE_BYTES;
/// Store id, epoch, root, seals.
const ANCHOR_BYTES: usize = 16 + 8 + 32 + 8;

/// SHA-256 of a sealed record.
pub(super) type Digest = [u8; 32];

/// The digest of every sealed record, by its place.
pub(super) type Digests = BTreeMap<RecordId, Digest>;

/// A sealed record, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Envelope {
    /// What it says it is about; bound by the AAD.
    pub(super) kind: u8,
    /// The store that it says it belongs to; bound by the AAD.
    pub(super) store_id: [u8; 16],
    /// AES-256-GCM nonce.
    pub(super) nonce: [u8; NONCE_BYTES],
    /// AES-256-GCM ciphertext || tag.
    pub(super) sealed: Vec<u8>,
}

impl Envelope {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(PREFIX_BYTES + self.sealed.len());
        out.extend_from_slice(&MAGIC);
        out.push(FORMAT_VERSION);
        out.push(self.kind);
        out.extend_from_slice(&self.store_id);
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.sealed);
        out
    }

    /// `None`: not an envelope of this format version.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        if reader.array()? != MAGIC || reader.array()? != [FORMAT_VERSION] {
            return None;
        }
        let [kind] = reader.array()?;
        let store_id = reader.array()?;
        let nonce = reader.array()?;
        let sealed = reader.0.to_vec();
        (sealed.len() >= TAG_BYTES).then_some(Self {
            kind,
            store_id,
            nonce,
            sealed,
        })
    }
}

/// What a header and the token's epoch object both say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Anchor {
    /// Of the store.
    pub(super) store_id: [u8; 16],
    /// Commits since it was made.
    pub(super) epoch: u64,
    /// Over every record's place and digest.
    pub(super) root: Digest,
    /// Seals made with the store key since it was made; never less than were made.
    pub(super) seals: u64,
}

impl Anchor {
    /// The payload of the header record.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ANCHOR_BYTES);
        out.extend_from_slice(&self.store_id);
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.extend_from_slice(&self.root);
        out.extend_from_slice(&self.seals.to_be_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let anchor = Self {
            store_id: reader.array()?,
            epoch: u64::from_be_bytes(reader.array()?),
            root: reader.array()?,
            seals: u64::from_be_bytes(reader.array()?),
        };
        reader.0.is_empty().then_some(anchor)
    }

    /// The value of the token's epoch object.
    pub(super) fn encode_for_token(&self) -> Vec<u8> {
        let mut out = EPOCH_MAGIC.to_vec();
        out.push(FORMAT_VERSION);
        out.extend_from_slice(&self.encode());
        out
    }

    #[cfg(any(fuzzing, test))]
    pub(super) fn decode_from_token(bytes: &[u8]) -> Option<Self> {
        Token::decode(bytes)
            .filter(|token| !token.copied)
            .map(|token| token.anchor)
    }
}

/// What the token's epoch object says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// The store that it knows.
    pub(super) anchor: Anchor,
    /// It knows it from another token, which may have gone on since: no store is opened until it
    /// was accepted.
    pub(super) copied: bool,
}

impl Token {
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let magic = reader.array()?;
        if !(magic == EPOCH_MAGIC || magic == COPIED_MAGIC) || reader.array()? != [FORMAT_VERSION] {
            return None;
        }
        Some(Self {
            anchor: Anchor::decode(reader.0)?,
            copied: magic == COPIED_MAGIC,
        })
    }
}

/// See [`super::copied_epoch`].
pub(super) fn copied(value: &[u8]) -> Vec<u8> {
    match value.strip_prefix(&EPOCH_MAGIC) {
        Some(rest) => [&COPIED_MAGIC, rest].concat(),
        None => value.to_vec(),
    }
}

/// A record's place as a database key: kind, length of the name, name, version.
///
/// `None` if the name is longer than 65,535 bytes.
pub(super) fn encode_id(id: &RecordId) -> Option<Vec<u8>> {
    let length = u16::try_from(id.name.len()).ok()?;
    let mut out = Vec::with_capacity(1 + 2 + id.name.len() + 4);
    out.push(id.kind as u8);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(id.name.as_bytes());
    out.extend_from_slice(&id.version.to_be_bytes());
    Some(out)
}

/// `None`: not an id that [`encode_id`] makes.
pub(super) fn decode_id(bytes: &[u8]) -> Option<RecordId> {
    let mut reader = Reader(bytes);
    let kind = match reader.array()? {
        [1] => RecordKind::Key,
        [2] => RecordKind::KeyVersion,
        [3] => RecordKind::UseCounter,
        [4] => RecordKind::SigningKey,
        [5] => RecordKind::SigningVersion,
        [6] => RecordKind::SigningDebris,
        _ => return None,
    };
    let length = usize::from(u16::from_be_bytes(reader.array()?));
    let name = std::str::from_utf8(reader.slice(length)?).ok()?.to_owned();
    let version = u32::from_be_bytes(reader.array()?);
    reader.0.is_empty().then_some(RecordId {
        kind,
        name,
        version,
    })
}

/// What a record is authenticated with beside its payload: format version, store id, and its place
/// (`place`: a database key, which starts with the kind). Each part before the place has a fixed
/// length, and the place is self-delimiting, so no two records have one AAD.
pub(super) fn aad(store_id: &[u8; 16], place: &[u8]) -> Vec<u8> {
    let mut out = b"strongroom store".to_vec();
    out.push(FORMAT_VERSION);
    out.extend_from_slice(store_id);
    out.extend_from_slice(place);
    out
}

/// SHA-256 of a sealed record.
pub(super) fn digest(sealed: &[u8]) -> Digest {
    Sha256::digest(sealed).into()
}

/// SHA-256 over the number of records, then each one's place and digest, in the order of kind, name
/// (bytewise), version.
pub(super) fn root(digests: &Digests) -> Digest {
    let mut hash = Sha256::new();
    hash.update(b"strongroom root");
    hash.update([FORMAT_VERSION]);
    hash.update((digests.len() as u64).to_be_bytes());
    for (id, digest) in digests {
        // An id came into the map through `encode_id` or `decode_id`, so its name is short enough
        // to be encoded.
        hash.update(encode_id(id).unwrap_or_default());
        hash.update(digest);
    }
    hash.finalize().into()
}

/// Bytes that are taken from the front.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.slice(N)?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn kinds() -> impl Strategy<Value = RecordKind> {
        prop_oneof![
            Just(RecordKind::Key),
            Just(RecordKind::KeyVersion),
            Just(RecordKind::UseCounter),
            Just(RecordKind::SigningKey),
            Just(RecordKind::SigningVersion),
            Just(RecordKind::SigningDebris)
        ]
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_encode_to_themselves(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(envelope) = Envelope::decode(&bytes) {
                prop_assert_eq!(envelope.encode(), bytes.clone());
            }
            if let Some(id) = decode_id(&bytes) {
                prop_assert_eq!(encode_id(&id).unwrap(), bytes.clone());
            }
            if let Some(anchor) = Anchor::decode_from_token(&bytes) {
                prop_assert_eq!(anchor.encode_for_token(), bytes);
            }
        }

        #[test]
        fn an_envelope_survives_and_a_short_or_foreign_one_is_refused(
            kind in any::<u8>(), store_id in any::<[u8; 16]>(), nonce in any::<[u8; 12]>(),
            sealed in proptest::collection::vec(any::<u8>(), 16..100), cut in 0_usize..50, byte in 0_usize..5,
        ) {
            let envelope = Envelope { kind, store_id, nonce, sealed };
            let bytes = envelope.encode();
            prop_assert_eq!(Envelope::decode(&bytes), Some(envelope));
            prop_assert_eq!(Envelope::decode(&bytes[..cut.min(PREFIX_BYTES + TAG_BYTES - 1)]), None);
            let mut foreign = bytes;
            foreign[byte] ^= 0x80;
            prop_assert_eq!(Envelope::decode(&foreign), None);
        }

        #[test]
        fn places_survive_and_no_two_share_an_aad(
            a in (kinds(), ".{0,20}", any::<u32>()), b in (kinds(), ".{0,20}", any::<u32>()),
        ) {
            let [a, b] = [a, b].map(|(kind, name, version)| RecordId { kind, name, version });
            let [left, right] = [&a, &b].map(|id| encode_id(id).unwrap());
            prop_assert_eq!(decode_id(&left), Some(a.clone()));
            prop_assert_eq!(a == b, aad(&[7; 16], &left) == aad(&[7; 16], &right));
            prop_assert_ne!(left, HEADER_KEY);
        }

        #[test]
        fn an_anchor_survives(store_id in any::<[u8; 16]>(), epoch in any::<u64>(), root in any::<[u8; 32]>(), seals in any::<u64>()) {
            let anchor = Anchor { store_id, epoch, root, seals };
            let bytes = anchor.encode_for_token();
            prop_assert_eq!(Anchor::decode_from_token(&bytes), Some(anchor));
            prop_assert_eq!(Anchor::decode_from_token(&bytes[1..]), None);
            let moved = copied(&bytes);
            prop_assert_eq!(Token::decode(&moved), Some(Token { anchor, copied: true }));
            prop_assert_eq!(copied(&moved), moved);
            prop_assert_eq!(Anchor::decode(&anchor.encode()), Some(anchor));
        }
    }

    #[test]
    fn a_name_too_long_to_encode_is_refused() {
        let id = RecordId {
            kind: RecordKind::Key,
            name: "n".repeat(65_536),
            version: 0,
        };
        assert_eq!(encode_id(&id), None);
    }
}
