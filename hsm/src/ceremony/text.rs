//! Attributes as text for a record that people file and programs compare.

use base16ct::lower::encode_string as hex;
use cryptoki::mechanism::MechanismType;
use cryptoki::object::ObjectHandle;
use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CK_ULONG, CK_UNAVAILABLE_INFORMATION, CKA_ALLOWED_MECHANISMS,
    CKA_ALWAYS_AUTHENTICATE, CKA_ALWAYS_SENSITIVE, CKA_APPLICATION, CKA_CLASS, CKA_COPYABLE,
    CKA_DECRYPT, CKA_DERIVE, CKA_DESTROYABLE, CKA_EC_PARAMS, CKA_ENCRYPT, CKA_EXTRACTABLE, CKA_ID,
    CKA_KEY_GEN_MECHANISM, CKA_KEY_TYPE, CKA_LABEL, CKA_LOCAL, CKA_MODIFIABLE, CKA_MODULUS_BITS,
    CKA_NEVER_EXTRACTABLE, CKA_PRIVATE, CKA_PUBLIC_EXPONENT, CKA_SENSITIVE, CKA_SIGN,
    CKA_SIGN_RECOVER, CKA_TOKEN, CKA_TRUSTED, CKA_UNWRAP, CKA_VALUE_LEN, CKA_VERIFY,
    CKA_VERIFY_RECOVER, CKA_WRAP, CKA_WRAP_WITH_TRUSTED, CKK_AES, CKK_EC, CKK_EC_EDWARDS,
    CKK_GENERIC_SECRET, CKK_RSA, CKO_CERTIFICATE, CKO_DATA, CKO_PRIVATE_KEY, CKO_PUBLIC_KEY,
    CKO_SECRET_KEY,
};

use crate::fault::Fault;
use crate::template::P256_OID;
use crate::watched::WatchedSession;

/// How an attribute's bytes are read.
#[derive(Clone, Copy)]
enum Kind {
    Bool,
    Number,
    Class,
    KeyType,
    Mechanism,
    Mechanisms,
    Curve,
    /// A name where it is printable, else hexadecimal.
    Name,
    Hex,
}

macro_rules! attributes {
    ($($kind:ident: $($name:ident)+;)+) => { &[$($(($name, stringify!($name), Kind::$kind)),+),+] };
}

/// What is asked of every object: nothing that could be a secret. Moduli and points are in the
/// `SubjectPublicKeyInfo`.
const SHOWN_ATTRIBUTES: &[(CK_ATTRIBUTE_TYPE, &str, Kind)] = attributes! {
    Bool: CKA_TOKEN CKA_PRIVATE CKA_SENSITIVE CKA_EXTRACTABLE CKA_ALWAYS_SENSITIVE CKA_NEVER_EXTRACTABLE CKA_LOCAL
        CKA_ENCRYPT CKA_DECRYPT CKA_SIGN CKA_SIGN_RECOVER CKA_VERIFY CKA_VERIFY_RECOVER CKA_WRAP CKA_UNWRAP CKA_DERIVE
        CKA_MODIFIABLE CKA_COPYABLE CKA_DESTROYABLE CKA_TRUSTED CKA_WRAP_WITH_TRUSTED CKA_ALWAYS_AUTHENTICATE;
    Number: CKA_MODULUS_BITS CKA_VALUE_LEN;
    Class: CKA_CLASS;
    KeyType: CKA_KEY_TYPE;
    Mechanism: CKA_KEY_GEN_MECHANISM;
    Mechanisms: CKA_ALLOWED_MECHANISMS;
    Curve: CKA_EC_PARAMS;
    Name: CKA_LABEL CKA_ID CKA_APPLICATION;
    Hex: CKA_PUBLIC_EXPONENT;
};

/// Every attribute that the object has of those that are asked, sorted by name.
pub(super) fn attributes(
    watched: &WatchedSession,
    object: ObjectHandle,
) -> Result<Vec<(String, String)>, Fault> {
    let mut all = Vec::new();
    for (attribute, name, kind) in SHOWN_ATTRIBUTES {
        if let Some(bytes) = watched
            .raw()
            .attribute(watched.session(), object, *attribute)?
        {
            all.push(((*name).to_owned(), value(*kind, &bytes)));
        }
    }
    if let Some(template) = watched.raw().unwrap_template(watched.session(), object)? {
        let mut inner: Vec<_> = template
            .iter()
            .map(|(attribute, bytes)| inner_value(*attribute, bytes))
            .collect();
        inner.sort();
        all.push(("CKA_UNWRAP_TEMPLATE".to_owned(), inner.join(", ")));
    }
    all.sort();
    Ok(all)
}

/// `CKO_PRIVATE_KEY`, ...
pub(super) fn class(class: CK_ULONG) -> String {
    match class {
        CKO_DATA => "CKO_DATA",
        CKO_CERTIFICATE => "CKO_CERTIFICATE",
        CKO_PUBLIC_KEY => "CKO_PUBLIC_KEY",
        CKO_PRIVATE_KEY => "CKO_PRIVATE_KEY",
        CKO_SECRET_KEY => "CKO_SECRET_KEY",
        CK_ULONG::MAX => "no class",
        other => return format!("{other:#x}"),
    }
    .to_owned()
}

/// `CKM_AES_GCM`, ..., or the number of a mechanism that has no name here.
pub(super) fn mechanism(mechanism: CK_ULONG) -> String {
    MechanismType::try_from(mechanism).map_or_else(
        |_| format!("{mechanism:#x}"),
        |known| match known.to_string() {
            name if name.starts_with("CKM_") => name,
            _ => format!("{mechanism:#x}"),
        },
    )
}

fn inner_value(attribute: CK_ATTRIBUTE_TYPE, bytes: &[u8]) -> String {
    match kind(attribute) {
        Some((name, kind)) => format!("{name}={}", value(kind, bytes)),
        None => format!("{attribute:#x}={}", hex(bytes)),
    }
}

/// The text of one attribute's bytes, as [`attributes`] has it.
pub(super) fn of(attribute: CK_ATTRIBUTE_TYPE, bytes: &[u8]) -> String {
    kind(attribute).map_or_else(|| hex(bytes), |(_, kind)| value(kind, bytes))
}

fn kind(attribute: CK_ATTRIBUTE_TYPE) -> Option<(&'static str, Kind)> {
    SHOWN_ATTRIBUTES
        .iter()
        .find(|(asked, _, _)| *asked == attribute)
        .map(|(_, name, kind)| (*name, *kind))
}

fn value(kind: Kind, bytes: &[u8]) -> String {
    let number = || bytes.try_into().ok().map(CK_ULONG::from_ne_bytes);
    let text = match kind {
        Kind::Bool => match bytes {
            [0] => Some("false".to_owned()),
            [_] => Some("true".to_owned()),
            _ => None,
        },
        Kind::Number => number().map(|number| number.to_string()),
        Kind::Class => number().map(class),
        Kind::KeyType => number().map(key_type),
        Kind::Mechanism => number().map(|number| match number {
            CK_UNAVAILABLE_INFORMATION => "unavailable".to_owned(),
            number => mechanism(number),
        }),
        Kind::Mechanisms => mechanisms(bytes),
        Kind::Curve if bytes == P256_OID => Some("P-256".to_owned()),
        Kind::Name => str::from_utf8(bytes)
            .ok()
            .filter(|text| text.chars().all(|c| c == ' ' || c.is_ascii_graphic()))
            .map(str::to_owned),
        Kind::Curve | Kind::Hex => None,
    };
    text.unwrap_or_else(|| hex(bytes))
}

fn mechanisms(bytes: &[u8]) -> Option<String> {
    let (chunks, rest) = bytes.as_chunks::<{ size_of::<CK_ULONG>() }>();
    let mut names: Vec<_> = chunks
        .iter()
        .map(|chunk| mechanism(CK_ULONG::from_ne_bytes(*chunk)))
        .collect();
    names.sort();
    rest.is_empty().then(|| names.join(", "))
}

fn key_type(key_type: CK_ULONG) -> String {
    match key_type {
        CKK_RSA => "CKK_RSA",
        CKK_EC => "CKK_EC",
        CKK_EC_EDWARDS => "CKK_EC_EDWARDS",
        CKK_AES => "CKK_AES",
        CKK_GENERIC_SECRET => "CKK_GENERIC_SECRET",
        other => return format!("{other:#x}"),
    }
    .to_owned()
}
