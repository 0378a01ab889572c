//! Parameters: from JSON, and from forms and queries.
#![allow(
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzz target reports"
)]

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::super::batch::items::{BATCH, Item, MAX_BATCH};
use super::super::body::{Params, is_form, says_nothing};
use super::super::names::{MAX_OTHERS, Shape};
use crate::api::pipeline::route::{Kind, Member, is_called_form};

const NAMES: &[&str] = &[
    "plaintext",
    "context",
    "key_version",
    "bits",
    "derived",
    "period",
    BATCH,
];
/// What the path gave already.
const CAPTURED: &[&str] = &["name"];
const REFUSED: &[&str] = &["padding_scheme"];
const SHAPE: Shape<'static> = Shape {
    names: NAMES,
    item: &[
        Member {
            name: "plaintext",
            kind: Kind::Text,
        },
        Member {
            name: "context",
            kind: Kind::Text,
        },
        Member {
            name: "key_version",
            kind: Kind::Integer,
        },
    ],
    refused: REFUSED,
    strict: false,
    captured: CAPTURED,
};

/// A JSON body: what an ordinary JSON reader calls an object and nothing behind it is accepted,
/// with the same values, unless a name is given twice, refused or no name; a batch is a list of
/// objects. What is wrong is told without a value.
pub fn json_body(data: &[u8]) {
    let params = Params::from_json(SHAPE, data);
    assert!(
        !says_nothing(data) || params.is_ok(),
        "a body without a word was refused"
    );
    // Skipping refuses nothing that is read, but not the reverse: depth, numbers, UTF-8. So it
    // alone tells where the value ends.
    let mut values = serde_json::Deserializer::from_slice(data).into_iter::<IgnoredAny>();
    let skipped = values.next();
    let behind = data.get(values.byte_offset()..).unwrap_or_default();
    match skipped {
        Some(Err(_)) => {
            assert!(params.is_err(), "what is not JSON was taken");
            return;
        }
        Some(Ok(_)) if behind.iter().any(|b| !b" \t\r\n".contains(b)) => {
            assert!(params.is_err(), "bytes behind the value were taken");
            return;
        }
        _ => {}
    }
    let first = skipped.map(|_| serde_json::from_slice::<Value>(data));
    match (params, first) {
        (Ok(params), Some(Ok(Value::Object(object)))) => {
            assert!(
                !gives_twice(&names(data)),
                "a parameter given twice was taken"
            );
            same_values(params, &object);
        }
        (Ok(params), Some(Ok(Value::Null)) | None) => same_values(params, &Map::new()),
        (Ok(_), Some(Ok(value))) => unreachable!("{value} was taken for parameters"),
        (Err(error), Some(Ok(Value::Object(object)))) => {
            let why = object.contains_key(BATCH)
                || gives_twice(&names(data))
                || object.len() > MAX_OTHERS
                || object
                    .keys()
                    .any(|name| REFUSED.contains(&name.as_str()) || !may_be(name));
            assert!(why, "an object without a batch was refused: {object:?}");
            told_without_a_value(&error.messages);
        }
        (Ok(_) | Err(_), _) => {}
    }
}

/// A form or query: each known name has its value, or is refused if it is given twice.
pub fn form_body(data: &[u8]) {
    for content_type in [None, Some(&b"application/json"[..])] {
        assert!(!is_form(is_called_form(content_type), data));
    }
    let mut params = match Params::from_form(SHAPE, data) {
        Ok(params) => params,
        Err(error) => {
            let names: Vec<_> = form_urlencoded::parse(data)
                .map(|(name, _)| name.into_owned())
                .collect();
            let why = names
                .iter()
                .any(|name| name == BATCH || REFUSED.contains(&name.as_str()) || !may_be(name))
                || gives_twice(&names)
                || names.len() > MAX_OTHERS
                || !is_strict_form(data);
            assert!(why, "a form without a batch was refused");
            told_without_a_value(&error.messages);
            return;
        }
    };
    assert!(is_strict_form(data));
    for name in NAMES.iter().filter(|name| !CAPTURED.contains(name)) {
        let mut given = form_urlencoded::parse(data).filter(|(found, _)| found == name);
        let value = given.next();
        assert!(given.next().is_none(), "{name} was taken twice");
        let found = params
            .text(name)
            .ok()
            .flatten()
            .map(std::borrow::Cow::into_owned);
        assert_eq!(found, value.map(|(_, value)| value.into_owned()), "{name}");
        conversions(&params, name);
    }
    warnings(
        &mut params,
        form_urlencoded::parse(data).map(|(name, _)| name.into_owned()),
    );
}

/// Each pair has its `=`, each percent sign its digits, and all is UTF-8.
fn is_strict_form(data: &[u8]) -> bool {
    let pairs = data.split(|b| *b == b'&').filter(|pair| !pair.is_empty());
    pairs.into_iter().all(|pair| {
        let escapes = pair.split(|b| *b == b'%').skip(1);
        pair.contains(&b'=')
            && !pair.contains(&b';')
            && escapes.into_iter().all(|rest| {
                rest.get(..2)
                    .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            })
            && percent_encoding::percent_decode(pair).decode_utf8().is_ok()
    })
}

/// Whether a parameter may have that name: a known one but for case is a mistake, as is what is no
/// name.
fn may_be(name: &str) -> bool {
    let all = || NAMES.iter().chain(REFUSED);
    let letters = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"_-./".contains(&b));
    let known = NAMES.contains(&name) || CAPTURED.contains(&name);
    known || !name.is_empty() && letters && !all().any(|known| known.eq_ignore_ascii_case(name))
}

/// Words, names and places: no longer than they need be, and on one line.
fn told_without_a_value(messages: &[std::borrow::Cow<'static, str>]) {
    for message in messages {
        assert!(
            message.len() < 300 && message.bytes().all(|b| (b' '..=b'~').contains(&b)),
            "{message}"
        );
    }
}

/// Whether one is among them more than once.
fn gives_twice(names: &[String]) -> bool {
    names.iter().collect::<BTreeSet<_>>().len() < names.len()
}

/// The names of a JSON object, in their order.
fn names(data: &[u8]) -> Vec<String> {
    struct Names(Vec<String>);
    impl<'de> Deserialize<'de> for Names {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Object;
            impl<'de> Visitor<'de> for Object {
                type Value = Names;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("an object")
                }

                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
                    let mut names = Vec::new();
                    while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
                        names.push(name);
                    }
                    Ok(Names(names))
                }
            }
            deserializer.deserialize_map(Object)
        }
    }
    serde_json::Deserializer::from_slice(data)
        .into_iter::<Names>()
        .next()
        .and_then(Result::ok)
        .map_or_else(Vec::new, |names| names.0)
}

fn same_values(mut params: Params<'_>, object: &Map<String, Value>) {
    for name in NAMES
        .iter()
        .filter(|name| !CAPTURED.contains(name) && **name != BATCH)
    {
        let text = params
            .text(name)
            .map(|text| text.map(std::borrow::Cow::into_owned))
            .ok();
        match object.get(*name) {
            None | Some(Value::Null) => assert_eq!(text, Some(None), "{name}"),
            Some(Value::String(value)) => assert_eq!(text, Some(Some(value.clone())), "{name}"),
            Some(Value::Array(_) | Value::Object(_)) => assert_eq!(text, None, "{name}"),
            Some(Value::Bool(value)) => {
                assert_eq!(params.flag(name).ok(), Some(Some(*value)), "{name}");
            }
            Some(Value::Number(value)) => {
                let int = params.int(name).ok().flatten();
                assert_eq!(int, value.as_i64(), "{name}");
                if let Some(number) = value.as_i64() {
                    assert_eq!(text, Some(Some(number.to_string())), "{name}");
                }
            }
        }
        conversions(&params, name);
    }
    let expected = object.get(BATCH).filter(|value| !value.is_null());
    match (&params.batch, expected) {
        (None, None) => {}
        (Some(items), Some(Value::Array(values))) => {
            for name in ["plaintext", "context", "key_version"] {
                assert!(!params.is_set(name), "{name} was taken beside a batch");
            }
            assert!(items.len() == values.len() && items.len() <= MAX_BATCH);
            items
                .iter()
                .zip(values)
                .for_each(|(item, value)| same_item(item, value));
        }
        (found, expected) => {
            unreachable!(
                "a batch of {:?} for {expected:?}",
                found.as_ref().map(|items| items.len())
            );
        }
    }
    let mut given: Vec<String> = object.keys().cloned().collect();
    for item in expected.and_then(Value::as_array).into_iter().flatten() {
        let names = item.as_object().into_iter().flat_map(Map::keys);
        given.extend(
            names
                .filter(|name| !IN_ITEM.contains(&name.as_str()))
                .cloned(),
        );
    }
    warnings(&mut params, given.into_iter());
}

/// What an item may hold where the route has these parameters.
const IN_ITEM: &[&str] = &["plaintext", "context", "key_version", "reference"];

fn same_item(item: &Item<'_>, value: &Value) {
    assert!(value.is_object(), "{value} was taken for an item");
    for (at, name) in ["plaintext", "context"].into_iter().enumerate() {
        let expected = value.get(name).filter(|value| !value.is_null());
        let found = item.member(at).text(name).ok().flatten();
        assert_eq!(
            found.as_deref().map(Value::from).as_ref(),
            expected,
            "{name}"
        );
    }
    let expected = value.get("reference").and_then(Value::as_str);
    assert_eq!(item.reference(), expected.unwrap_or_default());
    let expected = value.get("key_version").filter(|value| !value.is_null());
    let found = item.member(2).int("key_version").ok().flatten();
    assert_eq!(found.map(Value::from).as_ref(), expected);
}

/// None of them panics, and those that agree on a type agree on the value.
fn conversions(params: &Params<'_>, name: &str) {
    let int = params.int(name).ok().flatten();
    if let (Some(int), Ok(Some(duration))) = (int, params.duration(name)) {
        assert_eq!(u64::try_from(int).ok(), Some(duration.as_secs()), "{name}");
    }
    if let (Some(int), Ok(Some(flag))) = (int, params.flag(name)) {
        assert_eq!(int != 0, flag, "{name}");
    }
    if !params.is_set(name) {
        assert!(int.is_none_or(|int| int == 0), "{name}");
    }
}

/// Every name that is not the route's is warned of, once.
fn warnings(params: &mut Params<'_>, given: impl Iterator<Item = String>) {
    let mut unknown = false;
    let mut replaced = false;
    for name in given {
        replaced |= CAPTURED.contains(&name.as_str());
        unknown |= !NAMES.contains(&name.as_str())
            && !CAPTURED.contains(&name.as_str())
            && !REFUSED.contains(&name.as_str());
    }
    assert_eq!(
        params.warnings().len(),
        usize::from(unknown) + usize::from(replaced)
    );
}
