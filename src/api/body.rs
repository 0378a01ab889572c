//! A request's parameters: read from JSON, a form or a query, converted as weakly as Vault does, never copied
//! where the body can be borrowed.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::error::ApiError;
use super::wire;

/// The most parameters that one route may name.
pub(super) const MAX_PARAMS: usize = 12;
/// The most items of one batch: what a body of the default size can hold, and no more work than a token does in seconds.
pub(super) const MAX_BATCH: usize = 16_384;
/// The parameter whose value is a list of [`Item`]s.
pub(super) const BATCH: &str = "batch_input";
/// The parameter whose value is an object: the claims of a token.
pub(super) const CLAIMS: &str = "claims";

/// The parameters of one request, by the names that its route knows.
pub(super) struct Params<'a> {
    names: &'static [&'static str],
    values: [Scalar<'a>; MAX_PARAMS],
    /// `batch_input`, where it was given and is not null.
    pub(super) batch: Option<Vec<Item<'a>>>,
    /// `claims`, where it was given and is not null.
    pub(super) claims: Option<serde_json::Value>,
    /// Names that the route doesn't know.
    unknown: Vec<String>,
    /// Names in the body that the path gives too.
    replaced: Vec<&'static str>,
}

/// One item of a batch. Types are strict in here, as in Vault.
#[derive(Default, Deserialize)]
#[allow(clippy::struct_field_names)]
pub(super) struct Item<'a> {
    #[serde(borrow, default)]
    pub(super) plaintext: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) ciphertext: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) input: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) hmac: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) signature: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) context: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) nonce: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) associated_data: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) reference: Option<Text<'a>>,
    #[serde(default)]
    pub(super) key_version: Option<i64>,
}

/// A string, borrowed from the body unless it has escapes.
#[derive(Clone, Debug, Default)]
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// A parameter's value as it came.
#[derive(Clone, Debug, Default)]
enum Scalar<'a> {
    #[default]
    Absent,
    Null,
    Text(Cow<'a, str>),
    Int(i64),
    Unsigned(u64),
    Float(f64),
    Bool(bool),
    /// An object or an array.
    Other(&'static str),
}

impl<'a> Params<'a> {
    /// No parameters.
    pub(super) fn none(names: &'static [&'static str]) -> Self {
        Self {
            names,
            values: Default::default(),
            batch: None,
            claims: None,
            unknown: Vec::new(),
            replaced: Vec::new(),
        }
    }

    /// From a JSON body. An empty one and `null` are no parameters; what follows the first value is not looked at.
    pub(super) fn from_json(
        names: &'static [&'static str],
        captured: &'static [&'static str],
        body: &'a [u8],
    ) -> Result<Self, ApiError> {
        let mut params = Self::none(names);
        if body.is_empty() {
            return Ok(params);
        }
        let seed = Seed {
            params: &mut params,
            captured,
        };
        let mut json = serde_json::Deserializer::from_slice(body);
        match seed.deserialize(&mut json) {
            Ok(()) => Ok(params),
            Err(error) => Err(unreadable(&error)),
        }
    }

    /// From `a=b&c=d`: a query, or a form's body.
    pub(super) fn from_form(
        names: &'static [&'static str],
        captured: &'static [&'static str],
        form: &'a [u8],
    ) -> Result<Self, ApiError> {
        let mut params = Self::none(names);
        for (name, value) in form_urlencoded::parse(form) {
            if name == BATCH && names.contains(&BATCH) {
                return Err(ApiError::bad_request(
                    "failed to parse batch input: send it as a list in a JSON body",
                ));
            }
            if name == CLAIMS && names.contains(&CLAIMS) {
                return Err(ApiError::bad_request(
                    "claims is an object: send it in a JSON body",
                ));
            }
            if params.has(&name) {
                return Err(ApiError::bad_request(format!("{name:?} is given twice")));
            }
            if !params.set(captured, &name, Scalar::Text(value)) {
                params.unknown.push(name.into_owned());
            }
        }
        Ok(params)
    }

    /// What the answer warns of.
    pub(super) fn warnings(&mut self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.unknown.is_empty() {
            self.unknown.sort();
            self.unknown.dedup();
            warnings.push(format!(
                "Endpoint ignored these unrecognized parameters: [{}]",
                self.unknown.join(" ")
            ));
        }
        if !self.replaced.is_empty() {
            warnings.push(format!(
                "Endpoint replaced the value of these parameters with the values captured from the endpoint's path: [{}]",
                self.replaced.join(" ")
            ));
        }
        warnings
    }

    /// Whether a parameter was given, with whatever value but the empty string, zero, false and null.
    pub(super) fn is_set(&self, name: &str) -> bool {
        match self.get(name) {
            Scalar::Absent | Scalar::Null | Scalar::Int(0) | Scalar::Bool(false) => false,
            Scalar::Text(text) => !text.is_empty(),
            _ => true,
        }
    }

    /// A string; a number or a bool is taken as its text, null as the empty string.
    pub(super) fn text(&self, name: &str) -> Result<Option<Cow<'_, str>>, ApiError> {
        Ok(Some(match self.get(name) {
            Scalar::Absent => return Ok(None),
            Scalar::Null => Cow::Borrowed(""),
            Scalar::Text(text) => Cow::Borrowed(text.as_ref()),
            Scalar::Int(n) => Cow::Owned(n.to_string()),
            Scalar::Unsigned(n) => Cow::Owned(n.to_string()),
            Scalar::Float(n) => Cow::Owned(n.to_string()),
            Scalar::Bool(b) => Cow::Borrowed(if *b { "1" } else { "0" }),
            Scalar::Other(kind) => return Err(conversion(name, kind, "string")),
        }))
    }

    /// An integer, or a string that holds one.
    pub(super) fn int(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let no = |found: &str| Err(conversion(name, found, "int"));
        match self.get(name) {
            Scalar::Absent => Ok(None),
            Scalar::Null => Ok(Some(0)),
            Scalar::Int(n) => Ok(Some(*n)),
            Scalar::Bool(b) => Ok(Some(i64::from(*b))),
            Scalar::Text(text) if text.is_empty() => Ok(Some(0)),
            Scalar::Text(text) => match text.parse() {
                Ok(n) => Ok(Some(n)),
                Err(_) => Err(ApiError::bad_request(format!(
                    "Field validation failed: error converting input {text} for field {name:?}: cannot parse '' as int: strconv.ParseInt: parsing {text:?}: invalid syntax"
                ))),
            },
            Scalar::Unsigned(n) => no(&n.to_string()),
            Scalar::Float(n) => no(&n.to_string()),
            Scalar::Other(kind) => no(kind),
        }
    }

    /// A bool, or a string or number that stands for one.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.get(name) {
            Scalar::Absent => Ok(None),
            Scalar::Null => Ok(Some(false)),
            Scalar::Bool(b) => Ok(Some(*b)),
            Scalar::Int(n) => Ok(Some(*n != 0)),
            Scalar::Unsigned(_) => Ok(Some(true)),
            Scalar::Text(text) => match text.as_ref() {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Some(true)),
                "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Some(false)),
                _ => Err(ApiError::bad_request(format!(
                    "Field validation failed: error converting input {text} for field {name:?}: cannot parse '' as bool: strconv.ParseBool: parsing {text:?}: invalid syntax"
                ))),
            },
            Scalar::Float(n) => Err(conversion(name, &n.to_string(), "bool")),
            Scalar::Other(kind) => Err(conversion(name, kind, "bool")),
        }
    }

    /// A duration: seconds, or a text such as `30d`.
    pub(super) fn duration(&self, name: &str) -> Result<Option<Duration>, ApiError> {
        let seconds = |n: i64| {
            u64::try_from(n).map(Duration::from_secs).map_err(|_| {
                ApiError::bad_request(format!(
                    "Field validation failed: error converting input {n} for field {name:?}: cannot provide negative value {n:?}"
                ))
            })
        };
        match self.get(name) {
            Scalar::Absent => Ok(None),
            Scalar::Null => Ok(Some(Duration::ZERO)),
            Scalar::Int(n) => seconds(*n).map(Some),
            Scalar::Text(text) => wire::parse_duration(text).map(Some).map_err(|why| {
                ApiError::bad_request(format!(
                    "Field validation failed: error converting input {text} for field {name:?}: {why}"
                ))
            }),
            Scalar::Unsigned(n) => Err(conversion(name, &n.to_string(), "duration")),
            Scalar::Float(n) => Err(conversion(name, &n.to_string(), "duration")),
            Scalar::Bool(b) => Err(conversion(name, &b.to_string(), "duration")),
            Scalar::Other(kind) => Err(conversion(name, kind, "duration")),
        }
    }

    fn get(&self, name: &str) -> &Scalar<'a> {
        debug_assert!(self.names.contains(&name), "the route doesn't name {name}");
        self.names
            .iter()
            .zip(&self.values)
            .find(|(known, _)| **known == name)
            .map_or(&Scalar::Absent, |(_, value)| value)
    }

    /// Whether the name has a value already: which of two counts, another reader may see otherwise.
    fn has(&self, name: &str) -> bool {
        let mut values = self.names.iter().zip(&self.values);
        values.any(|(known, value)| *known == name && !matches!(value, Scalar::Absent))
    }

    /// False if the route doesn't know the name.
    fn set(&mut self, captured: &'static [&'static str], name: &str, value: Scalar<'a>) -> bool {
        if let Some(name) = captured.iter().find(|known| **known == name) {
            if !self.replaced.contains(name) {
                self.replaced.push(name);
            }
            return true;
        }
        let slot = self
            .names
            .iter()
            .zip(&mut self.values)
            .find(|(known, _)| **known == name);
        match slot {
            Some((_, slot)) => {
                *slot = value;
                true
            }
            None => false,
        }
    }
}

fn conversion(name: &str, found: &str, wanted: &str) -> ApiError {
    ApiError::bad_request(format!(
        "Field validation failed: error converting input {found} for field {name:?}: expected type '{wanted}'"
    ))
}

const BATCH_ERROR: &str = "\u{1}batch\u{1}";

/// Vault's error for a body that is neither `null` nor an object, or not even JSON.
fn unreadable(error: &serde_json::Error) -> ApiError {
    // Errors of our own making carry this mark; the rest is JSON that can't be read.
    let text = error.to_string();
    match text.split_once(BATCH_ERROR) {
        Some((_, why)) => ApiError::bad_request(format!("failed to parse batch input: {why}")),
        None => ApiError::bad_request("error parsing JSON"),
    }
}

/// Reads the top-level object into parameters: they are large, and stay where they are.
struct Seed<'p, 'a> {
    params: &'p mut Params<'a>,
    captured: &'static [&'static str],
}

impl<'de> DeserializeSeed<'de> for Seed<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { params, captured } = self;
        let mut batches = 0;
        while let Some(name) = map.next_key::<Text<'de>>()? {
            if &*name == BATCH && params.names.contains(&BATCH) {
                batches += 1;
                params.batch = map.next_value::<Option<BatchItems<'de>>>()?.map(|b| b.0);
                continue;
            }
            if &*name == CLAIMS && params.names.contains(&CLAIMS) {
                if params.claims.is_some() {
                    return Err(de::Error::custom("a name is given twice"));
                }
                params.claims = map.next_value()?;
                continue;
            }
            if params.has(&name) {
                return Err(de::Error::custom("a name is given twice"));
            }
            let value = map.next_value()?;
            if !params.set(captured, &name, value) {
                params.unknown.push(name.0.into_owned());
            }
        }
        if batches > 1 {
            return Err(de::Error::custom("a name is given twice"));
        }
        Ok(())
    }
}

/// A list of items; says which one is wrong.
struct BatchItems<'a>(Vec<Item<'a>>);

impl<'de> Deserialize<'de> for BatchItems<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = BatchItems<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{BATCH_ERROR}source data must be an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<BatchItems<'de>, A::Error> {
                let mut items = Vec::new();
                loop {
                    match seq.next_element() {
                        Ok(Some(Object(item))) if items.len() < MAX_BATCH => items.push(item),
                        Ok(Some(_)) => {
                            return Err(de::Error::custom(format!(
                                "{BATCH_ERROR}at most {MAX_BATCH} items are taken at once"
                            )));
                        }
                        Ok(None) => return Ok(BatchItems(items)),
                        Err(e) => {
                            return Err(de::Error::custom(format!(
                                "{BATCH_ERROR}[{}] {e}",
                                items.len()
                            )));
                        }
                    }
                }
            }
        }
        deserializer.deserialize_any(List)
    }
}

/// An item that is an object. Serde would also take a list, as the fields in their order.
struct Object<'a>(Item<'a>);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<'de>, A::Error> {
                Item::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_any(Fields)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Str;
        impl<'de> Visitor<'de> for Str {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Str)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Scalar<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Scalar<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_i64<E>(self, n: i64) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Int(n))
            }

            fn visit_u64<E>(self, n: u64) -> Result<Scalar<'de>, E> {
                Ok(i64::try_from(n).map_or(Scalar::Unsigned(n), Scalar::Int))
            }

            fn visit_f64<E>(self, n: f64) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Float(n))
            }

            fn visit_bool<E>(self, b: bool) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Bool(b))
            }

            fn visit_unit<E>(self) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Null)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Scalar<'de>, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other("a list"))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar<'de>, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other("an object"))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAMES: &[&str] = &["plaintext", "bits", "derived", "period", BATCH];

    fn json(body: &str) -> Result<Params<'_>, ApiError> {
        Params::from_json(NAMES, &["name"], body.as_bytes())
    }

    fn refusal(body: &str) -> String {
        json(body).err().expect(body).messages.join("|")
    }

    #[test]
    fn values_are_converted_as_weakly_as_vault_does() {
        let p = json(r#"{"plaintext": 12, "bits": "256", "derived": "true", "period": "30d"}"#)
            .unwrap();
        assert_eq!(p.text("plaintext").unwrap().unwrap(), "12");
        assert_eq!(p.int("bits").unwrap(), Some(256));
        assert_eq!(p.flag("derived").unwrap(), Some(true));
        assert_eq!(
            p.duration("period").unwrap(),
            Some(Duration::from_hours(720))
        );
        let p = json(r#"{"plaintext": null, "bits": null, "derived": 0, "period": 60}"#).unwrap();
        assert_eq!(p.text("plaintext").unwrap().unwrap(), "");
        assert_eq!(p.int("bits").unwrap(), Some(0));
        assert_eq!(p.flag("derived").unwrap(), Some(false));
        assert_eq!(p.duration("period").unwrap(), Some(Duration::from_mins(1)));
        let p = json("{}").unwrap();
        assert!(p.text("plaintext").unwrap().is_none() && p.int("bits").unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_converted_says_so() {
        let p = json(r#"{"plaintext": {"a": 1}, "bits": "x", "derived": "maybe", "period": "1x"}"#)
            .unwrap();
        assert_eq!(p.text("plaintext").unwrap_err().status, 400);
        assert_eq!(
            p.int("bits").unwrap_err().messages,
            [
                r#"Field validation failed: error converting input x for field "bits": cannot parse '' as int: strconv.ParseInt: parsing "x": invalid syntax"#
            ]
        );
        assert_eq!(
            p.flag("derived").unwrap_err().messages,
            [r#"Field validation failed: error converting input maybe for field "deletion_allowed": cannot parse '' as bool: strconv.ParseBool: parsing "maybe": invalid syntax"#.replace("deletion_allowed", "derived")]
        );
        assert_eq!(
            p.duration("period").unwrap_err().messages,
            [
                r#"Field validation failed: error converting input 1x for field "period": time: unknown unit "x" in duration "1x""#
            ]
        );
    }

    #[test]
    fn bodies_that_are_no_object_are_refused() {
        for body in [
            "{",
            "[]",
            "1",
            "\"a\"",
            "{\"a\":}",
            "nul",
            "{\"a\":1",
            "\u{0}",
            r#"{"bits":1,"bits":1}"#,
            r#"{"batch_input":[],"batch_input":null}"#,
        ] {
            assert_eq!(refusal(body), "error parsing JSON", "{body}");
        }
        for body in ["", "null", "{}", "{}\n", "{} trailing"] {
            assert!(json(body).is_ok(), "{body}");
        }
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(10_000), "]".repeat(10_000));
        // What no route asks for is skipped without recursion, however deep.
        assert!(json(&deep).is_ok());
        assert!(Params::from_json(NAMES, &[], b"{\"plaintext\":\"\xff\"}").is_err());
    }

    #[test]
    fn batches_are_strict() {
        let p = json(r#"{"batch_input": [{"plaintext": "YQ==", "reference": "r\n"}, {"key_version": 2, "x": []}]}"#).unwrap();
        let batch = p.batch.unwrap();
        assert_eq!(batch[0].plaintext.as_deref(), Some("YQ=="));
        assert_eq!(batch[0].reference.as_deref(), Some("r\n"));
        assert_eq!(batch[1].key_version, Some(2));
        assert!(json(r#"{"batch_input": null}"#).unwrap().batch.is_none());
        for (body, part) in [
            (r#"{"batch_input": "x"}"#, "source data must be an array"),
            (r#"{"batch_input": [1]}"#, "[0] invalid type: integer `1`"),
            (
                r#"{"batch_input": [["YQ=="]]}"#,
                "[0] invalid type: sequence",
            ),
            (
                r#"{"batch_input": [{}, {"key_version": "1"}]}"#,
                "[1] invalid type: string",
            ),
            (
                r#"{"batch_input": [{"plaintext": 7}]}"#,
                "[0] invalid type: integer `7`",
            ),
            (
                r#"{"batch_input": [{}, ["YQ=="]]}"#,
                "[1] invalid type: sequence, expected an object",
            ),
        ] {
            let text = refusal(body);
            assert!(
                text.starts_with("failed to parse batch input: ") && text.contains(part),
                "{text}"
            );
        }
    }

    #[test]
    fn unknown_and_replaced_names_are_warned_of() {
        let mut p = json(r#"{"z": 1, "a": {}, "name": "n", "bits": 1}"#).unwrap();
        assert_eq!(
            p.warnings(),
            [
                "Endpoint ignored these unrecognized parameters: [a z]",
                "Endpoint replaced the value of these parameters with the values captured from the endpoint's path: [name]",
            ]
        );
    }

    #[test]
    fn forms_are_read_too() {
        let p = Params::from_form(NAMES, &[], b"plaintext=YQ%3D%3D&bits=7").unwrap();
        assert_eq!(p.text("plaintext").unwrap().unwrap(), "YQ==");
        assert_eq!(p.int("bits").unwrap(), Some(7));
        assert!(Params::from_form(NAMES, &[], b"batch_input=x").is_err());
        assert!(Params::from_form(NAMES, &[], b"bits=1&bits=2").is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Params::from_json(NAMES, &["name"], &body);
            let _ = Params::from_form(NAMES, &["name"], &body);
        }
    }
}
