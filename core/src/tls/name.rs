//! Whether two distinguished names are one (RFC 5280, section 7.1).
//!
//! A CA's software may write the same name as a `PrintableString` in one place and as a
//! `UTF8String` in another: a CRL's issuer, a certificate for a new key. Names that are compared
//! byte by byte would then be two CAs', and a revoked client would be let in.

use x509_parser::asn1_rs::{Any, Class, FromDer as _, Tag};

/// A name in the one form that all its ways of being written have: strings in lower case, blanks
/// at the ends taken away and those between made one, whatever type they are of. This takes more
/// names for one than RFC 4518 does, never fewer of those in use: who is taken for a CA is bound
/// and revoked as that CA.
///
/// `name` is the content of the name's SEQUENCE. What is not a name is itself.
pub(super) fn canonical(name: &[u8]) -> Vec<u8> {
    relative_names(name).unwrap_or_else(|| name.to_vec())
}

fn relative_names(mut name: &[u8]) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    while !name.is_empty() {
        let (rest, set) = Any::from_der(name).ok()?;
        name = rest;
        let mut attributes = (set.tag() == Tag::Set).then(|| attributes(set.data))??;
        // A SET: its order says nothing.
        attributes.sort_unstable();
        put(&mut all, &attributes.concat());
    }
    Some(all)
}

fn attributes(mut set: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    while !set.is_empty() {
        let (rest, attribute) = Any::from_der(set).ok()?;
        set = rest;
        let (value, kind) = Any::from_der(attribute.data).ok()?;
        let (rest, value) = Any::from_der(value).ok()?;
        if attribute.tag() != Tag::Sequence || kind.tag() != Tag::Oid || !rest.is_empty() {
            return None;
        }
        let mut one = Vec::new();
        put(&mut one, kind.data);
        if let Some(text) = text(&value) {
            put(&mut one, folded(&text).as_bytes());
        } else {
            // No length begins with this byte.
            one.push(0xff);
            put(&mut one, &value.tag().0.to_be_bytes());
            put(&mut one, value.data);
        }
        all.push(one);
    }
    Some(all)
}

/// With its length before it, so that no two lists of parts are alike.
fn put(to: &mut Vec<u8>, part: &[u8]) {
    to.extend((part.len() as u64).to_be_bytes());
    to.extend(part);
}

fn text(value: &Any<'_>) -> Option<String> {
    if value.class() != Class::Universal {
        return None;
    }
    match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::NumericString => {
            str::from_utf8(value.data).ok().map(str::to_owned)
        }
        // In practice Latin-1, as OpenSSL reads it.
        Tag::T61String => Some(value.data.iter().copied().map(char::from).collect()),
        Tag::BmpString => {
            let (units, rest) = value.data.as_chunks::<2>();
            let units = units.iter().map(|unit| u16::from_be_bytes(*unit));
            let text: Result<String, _> = char::decode_utf16(units).collect();
            text.ok().filter(|_| rest.is_empty())
        }
        Tag::UniversalString => {
            let (units, rest) = value.data.as_chunks::<4>();
            let units = units.iter().map(|unit| u32::from_be_bytes(*unit));
            let text: Option<String> = units.map(char::from_u32).collect();
            text.filter(|_| rest.is_empty())
        }
        _ => None,
    }
}

fn folded(text: &str) -> String {
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The content of a name with one common name a part.
    fn name(values: &[(u8, &[u8])]) -> Vec<u8> {
        let element = |tag: u8, content: &[u8]| {
            let mut all = vec![tag, u8::try_from(content.len()).unwrap()];
            all.extend(content);
            all
        };
        let part = |&(tag, value): &(u8, &[u8])| {
            let kind = element(0x06, &[0x55, 0x04, 0x03]);
            let attribute = element(0x30, &[kind, element(tag, value)].concat());
            element(0x31, &attribute)
        };
        values.iter().flat_map(part).collect()
    }

    #[test]
    fn a_name_is_one_whichever_way_it_is_written() {
        let first = canonical(&name(&[(0x0c, b"Clients of Ulm")]));
        for (tag, value) in [
            (0x13, &b"Clients of Ulm"[..]),
            (0x14, b"Clients of Ulm"),
            (0x16, b"clients OF ulm"),
            (0x0c, b"  Clients  of Ulm "),
            (0x1e, b"\0C\0l\0i\0e\0n\0t\0s\0 \0o\0f\0 \0U\0l\0m"),
        ] {
            assert_eq!(canonical(&name(&[(tag, value)])), first, "{tag} {value:?}");
        }
        let latin = canonical(&name(&[(0x14, b"M\xfcller")]));
        assert_eq!(latin, canonical(&name(&[(0x0c, "MÜLLER".as_bytes())])));
        for other in [
            name(&[(0x0c, b"Clients of Ulm 2")]),
            name(&[(0x0c, b"ClientsofUlm")]),
            name(&[(0x0c, b"Clients of Ulm"), (0x0c, b"Clients of Ulm")]),
            name(&[(0x04, b"Clients of Ulm")]),
            name(&[]),
        ] {
            assert_ne!(canonical(&other), first);
        }
        // Not a name: as it is.
        assert_eq!(canonical(b"\x31\x05x"), b"\x31\x05x");
    }
}
