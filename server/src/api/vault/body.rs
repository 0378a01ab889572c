//! A request's parameters: read from JSON, a form or a query, converted nearly as weakly as Vault
//! does, never copied where the body can be borrowed. What goes wrong is told by names, places and
//! types, never by a value: values are the client's secrets.

#[cfg(any(fuzzing, test))]
use std::borrow::Cow;
use std::fmt;
#[cfg(any(fuzzing, test))]
use std::time::Duration;

use percent_encoding::percent_decode;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::batch::items::{BATCH, Items, Reader};
use super::error::ApiError;
use super::names::{Fault, GIVEN_TWICE, Others, Shape, Unknown, fail};
use super::value::{Scalar, SecretText, Values};

/// The most parameters that one route may name.
pub(in crate::api) const MAX_PARAMS: usize = 12;
/// The parameter whose value is an object: the claims of a token.
pub(in crate::api) const CLAIMS: &str = "claims";
/// The parameter whose value is a list of paths.
pub(in crate::api) const PATHS: &str = "paths";
/// Vault's words for a body that is neither `null` nor an object, or not even JSON.
const JSON_ERROR: &str = "error parsing JSON";

/// The parameters of one request, by the names that its route knows.
pub(in crate::api) struct Params<'a> {
    names: &'static [&'static str],
    values: [Scalar<'a>; MAX_PARAMS],
    /// `batch_input`, where it was given and is not null.
    pub(in crate::api) batch: Option<Items<'a>>,
    /// `claims` or `paths`, where it was given and is not null.
    pub(in crate::api) structured: Option<Value>,
    /// Names that the route doesn't know.
    unknown: Unknown,
    others: Others,
    /// Names in the body that the path gives too.
    replaced: Vec<&'static str>,
}

/// Whether a body is a form: if it is called one, unless it looks like JSON, as Vault has it.
/// curl's `-d` calls everything a form.
pub(in crate::api) fn is_form(called: bool, body: &[u8]) -> bool {
    called
        && !matches!(without_blanks(body).first(), None | Some(b'{' | b'['))
        && !says_nothing(body)
}

/// Whether a body says nothing: blanks, `null` or an empty object.
pub(in crate::api) fn says_nothing(body: &[u8]) -> bool {
    let mut said = body.iter().filter(|b| !is_blank(**b));
    let mut is = |text: &[u8]| text.iter().all(|b| said.next() == Some(b)) && said.next().is_none();
    match without_blanks(body).first() {
        None => true,
        Some(b'{') => is(b"{}"),
        Some(b'n') => without_blanks(body)
            .strip_prefix(b"null")
            .is_some_and(|behind| without_blanks(behind).is_empty()),
        Some(_) => false,
    }
}

/// JSON's white space, RFC 8259, 2.
fn is_blank(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\n' | b'\r')
}

fn without_blanks(body: &[u8]) -> &[u8] {
    let begin = body.iter().position(|&b| !is_blank(b));
    begin.map_or(&[], |begin| body.get(begin..).unwrap_or_default())
}

impl<'a> Params<'a> {
    /// No parameters.
    pub(in crate::api) fn none(names: &'static [&'static str]) -> Self {
        Self {
            names,
            values: Default::default(),
            batch: None,
            structured: None,
            unknown: Unknown::default(),
            others: Others::default(),
            replaced: Vec::new(),
        }
    }

    /// From a JSON body. Blanks and `null` are no parameters; behind the value there is nothing but
    /// blanks.
    pub(in crate::api) fn from_json(shape: Shape<'_>, body: &'a [u8]) -> Result<Self, ApiError> {
        let mut params = Self::none(shape.names);
        let body = without_blanks(body);
        if body.is_empty() {
            return Ok(params);
        }
        let mut fault = None;
        let seed = Seed {
            params: &mut params,
            shape,
            fault: &mut fault,
        };
        let mut json = serde_json::Deserializer::from_slice(body);
        let read = seed.deserialize(&mut json).and_then(|()| json.end());
        match (read, fault) {
            (Ok(()), _) => params.agree(shape),
            (Err(_), Some(fault)) => Err(ApiError::bad_request(fault).in_own_words()),
            // serde's own message repeats what it found.
            (Err(_), None) => Err(ApiError::bad_request(JSON_ERROR)),
        }
    }

    /// From a form's body, `a=b&c=d`.
    pub(in crate::api) fn from_form(shape: Shape<'_>, form: &'a [u8]) -> Result<Self, ApiError> {
        Self::from_pairs(shape, form, true)
    }

    /// From a query. A name alone is one with an empty value.
    pub(in crate::api) fn from_query(shape: Shape<'_>, query: &'a [u8]) -> Result<Self, ApiError> {
        Self::from_pairs(shape, query, false)
    }

    fn from_pairs(shape: Shape<'_>, text: &'a [u8], form: bool) -> Result<Self, ApiError> {
        let mut params = Self::none(shape.names);
        for pair in text.split(|&b| b == b'&').filter(|pair| !pair.is_empty()) {
            let (name, value) = match pair.iter().position(|&b| b == b'=') {
                Some(at) => pair.split_at(at),
                None if form => {
                    return Err(ApiError::bad_request(
                        "the body is neither JSON nor a form: a form is name=value, with & between",
                    ));
                }
                None => (pair, &b"="[..]),
            };
            let value = value.get(1..).unwrap_or_default();
            let (Some(name), Some(value)) = (unescape(name), unescape(value)) else {
                return Err(ApiError::bad_request(if form {
                    "error parsing form data"
                } else {
                    "error parsing the query"
                }));
            };
            if !form && &*name == "list" {
                // It made the request what it is: LIST, or not.
                continue;
            }
            if &*name == BATCH && shape.names.contains(&BATCH) {
                return Err(ApiError::bad_request(
                    "failed to parse batch input: send it as a list in a JSON body",
                ));
            }
            if &*name == CLAIMS && shape.names.contains(&CLAIMS) {
                return Err(ApiError::bad_request(
                    "claims is an object: send it in a JSON body",
                ));
            }
            if &*name == PATHS && shape.names.contains(&PATHS) {
                let paths = (*value).into();
                if params.structured.replace(paths).is_some() {
                    return Err(ApiError::bad_request("\"paths\" is given twice"));
                }
                continue;
            }
            params
                .take(shape, &name, Scalar::Text(value))
                .map_err(|fault| match fault {
                    Fault::Twice(name) => format!("{name:?} {GIVEN_TWICE}"),
                    Fault::Other(why) => why,
                })
                .map_err(|why| ApiError::bad_request(why).in_own_words())?;
        }
        Ok(params)
    }

    /// One parameter.
    fn take(&mut self, shape: Shape<'_>, name: &str, value: Scalar<'a>) -> Result<(), Fault> {
        if let Some(name) = shape.captured.iter().find(|known| **known == name) {
            if self.replaced.contains(name) {
                return Err(Fault::Twice(name));
            }
            self.replaced.push(name);
            return Ok(());
        }
        let mut slots = self.names.iter().zip(&mut self.values);
        if let Some((name, slot)) = slots.find(|(known, _)| **known == name) {
            if !matches!(slot, Scalar::Absent) {
                return Err(Fault::Twice(name));
            }
            *slot = value;
            return Ok(());
        }
        self.others.note(name).map_err(Fault::Other)?;
        if let Some(name) = shape.refused.iter().find(|known| **known == name) {
            return if value.is_set() {
                Err(Fault::Other(format!(
                    "{name} is not supported: leave it out"
                )))
            } else {
                Ok(())
            };
        }
        self.unknown.note(shape, name).map_err(Fault::Other)
    }

    /// What is to be in each item of a batch must not be beside it too: which one counts?
    fn agree(self, shape: Shape<'_>) -> Result<Self, ApiError> {
        if self.batch.is_none() {
            return Ok(self);
        }
        let mut values = self.names.iter().zip(&self.values);
        match values.find(|(name, value)| value.is_set() && shape.in_item(name).is_some()) {
            None => Ok(self),
            Some((name, _)) => Err(ApiError::bad_request(format!(
                "{name} is given beside {BATCH}: give it in each item"
            ))
            .in_own_words()),
        }
    }

    /// What the answer warns of.
    pub(in crate::api) fn warnings(&mut self) -> Vec<String> {
        let mut warnings = Vec::new();
        let Unknown { named, others } = &mut self.unknown;
        if *others || !named.is_empty() {
            named.sort();
            let more = if *others { ", and others" } else { "" };
            warnings.push(format!(
                "Endpoint ignored these unrecognized parameters: [{}]{more}",
                named.join(" ")
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

    /// To be warned of: the path said something else than this parameter, and counts.
    pub(in crate::api) fn replaced_by_path(&mut self, name: &'static str) {
        if !self.replaced.contains(&name) {
            self.replaced.push(name);
        }
    }

    /// For the request whose parameters have these names.
    pub(in crate::api) fn values(&self, names: &'static [&'static str]) -> Values<'_> {
        debug_assert_eq!(self.names, names, "another request's parameters");
        Values::new(&self.values)
    }
}

/// By name: a handler reads its request's type.
#[cfg(any(fuzzing, test))]
impl Params<'_> {
    pub(in crate::api) fn is_set(&self, name: &str) -> bool {
        self.get(name).is_set()
    }

    pub(in crate::api) fn text(&self, name: &str) -> Result<Option<Cow<'_, str>>, ApiError> {
        self.get(name).text(name)
    }

    pub(in crate::api) fn int(&self, name: &str) -> Result<Option<i64>, ApiError> {
        self.get(name).int(name)
    }

    pub(in crate::api) fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.get(name).flag(name)
    }

    pub(in crate::api) fn duration(&self, name: &str) -> Result<Option<Duration>, ApiError> {
        self.get(name).duration(name)
    }

    fn get(&self, name: &str) -> &Scalar<'_> {
        let mut values = self.names.iter().zip(&self.values);
        values
            .find(|(known, _)| **known == name)
            .map_or(&Scalar::Absent, |(_, value)| value)
    }
}

/// A form's or query's text; `None`: a percent sign without its digits, a semicolon (which some
/// readers take for `&`), or not UTF-8.
fn unescape(text: &[u8]) -> Option<SecretText<'_>> {
    let whole = |at: usize| {
        let digits = text.get(at + 1..at + 3);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    let mut plain = true;
    for (at, b) in text.iter().enumerate() {
        match b {
            b';' => return None,
            b'%' if !whole(at) => return None,
            b'%' | b'+' => plain = false,
            _ => {}
        }
    }
    if plain {
        return std::str::from_utf8(text).ok().map(SecretText::Borrowed);
    }
    let spaced = text.iter().map(|&b| if b == b'+' { b' ' } else { b });
    let spaced = Zeroizing::new(spaced.collect::<Vec<u8>>());
    // Decoded it is no longer, so that no copy is left behind by one that grows.
    let mut decoded = Zeroizing::new(Vec::with_capacity(spaced.len()));
    decoded.extend(percent_decode(&spaced));
    std::str::from_utf8(&decoded).ok().map(SecretText::copied)
}

/// Reads the top-level object into parameters: they are large, and stay where they are.
struct Seed<'p, 's, 'a> {
    params: &'p mut Params<'a>,
    shape: Shape<'s>,
    /// What is wrong, in our own words: serde's would repeat the value.
    fault: &'p mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_, '_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_, '_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self {
            params,
            shape,
            fault,
        } = self;
        let (mut batches, mut structured) = (0, 0);
        while let Some(name) = map.next_key::<SecretText<'de>>()? {
            if &*name == BATCH && params.names.contains(&BATCH) {
                batches += 1;
                params.batch = map.next_value_seed(Reader {
                    shape,
                    unknown: &mut params.unknown,
                    fault: &mut *fault,
                })?;
            } else if [CLAIMS, PATHS].contains(&&*name) && params.names.contains(&&*name) {
                structured += 1;
                params.structured = map.next_value_seed(Exact { fault: &mut *fault })?;
            } else {
                let value = map.next_value()?;
                match params.take(shape, &name, value) {
                    Ok(()) => {}
                    Err(Fault::Twice(_)) => return Err(de::Error::custom(GIVEN_TWICE)),
                    Err(Fault::Other(why)) => return Err(fail(fault, why)),
                }
            }
            if batches > 1 || structured > 1 {
                return Err(de::Error::custom(GIVEN_TWICE));
            }
        }
        Ok(())
    }
}

/// A value as it was sent, which is how it is signed: each name once in an object, no number that
/// would be another one. Null at the top is none.
struct Exact<'f> {
    /// What is wrong, in our own words.
    fault: &'f mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for Exact<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        let value = deserializer.deserialize_any(self)?;
        Ok(Some(value).filter(|value| !value.is_null()))
    }
}

impl Exact<'_> {
    fn inner(&mut self) -> Exact<'_> {
        Exact { fault: self.fault }
    }
}

impl<'de> Visitor<'de> for Exact<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        // From 2^53 on, not every whole number is a float: what was sent may have been one between.
        if value.abs() >= 9_007_199_254_740_992.0 {
            return Err(fail(
                self.fault,
                "a number is too large to be kept as it is: send it as a string".to_owned(),
            ));
        }
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(self.inner())? {
            list.push(value.unwrap_or_default());
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(self.inner())?.unwrap_or_default();
            if object.insert(name, value).is_some() {
                return Err(fail(
                    self.fault,
                    format!("a name {GIVEN_TWICE} in one object"),
                ));
            }
        }
        Ok(object.into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::super::names::MAX_OTHERS;
    use super::*;
    use crate::api::pipeline::route::{Kind, Member, is_called_form};
    use proptest::prelude::*;

    const NAMES: &[&str] = &[
        "plaintext",
        "bits",
        "derived",
        "period",
        "key_version",
        BATCH,
    ];
    const SHAPE: Shape<'static> = Shape {
        names: NAMES,
        item: &[
            Member {
                name: "plaintext",
                kind: Kind::Text,
            },
            Member {
                name: "key_version",
                kind: Kind::Integer,
            },
        ],
        refused: &["padding_scheme"],
        strict: false,
        captured: &["name"],
    };

    fn json(body: &str) -> Result<Params<'_>, ApiError> {
        Params::from_json(SHAPE, body.as_bytes())
    }

    fn form(body: &str) -> Result<Params<'_>, ApiError> {
        Params::from_form(SHAPE, body.as_bytes())
    }

    /// A copy is made where there are escapes: PHP writes each slash of base64 with one.
    #[test]
    fn a_text_is_wiped_and_not_shown() {
        // By its type: no copy goes without being wiped.
        let copied = |text: &SecretText<'_>| match text {
            SecretText::Copied(text) => Some(Zeroizing::clone(text)),
            SecretText::Borrowed(_) => None,
        };
        let wanted = Some(Zeroizing::new("c2VjcmV0/w==".to_owned()));
        let params = json(r#"{"plaintext":"c2VjcmV0\/w=="}"#).unwrap();
        let Scalar::Text(secret) = params.get("plaintext") else {
            panic!("no text");
        };
        assert_eq!(copied(secret), wanted);
        assert_eq!(format!("{secret:?}"), "SecretText(..)");
        let params = json(r#"{"plaintext":"c2VjcmV0"}"#).unwrap();
        let plain = params.get("plaintext");
        assert!(matches!(
            plain,
            Scalar::Text(SecretText::Borrowed("c2VjcmV0"))
        ));
        let params = form("plaintext=c2VjcmV0%2Fw%3D%3D").unwrap();
        let text = params.text("plaintext").unwrap();
        assert_eq!(text.as_deref(), Some("c2VjcmV0/w=="));
        // Not copied once more.
        assert!(matches!(text, Some(Cow::Borrowed(_))));
        let batch = json(r#"{"batch_input":[{"plaintext":"c2VjcmV0\/w=="}]}"#)
            .unwrap()
            .batch
            .unwrap();
        let Scalar::Text(item) = batch.first().unwrap().member(0) else {
            panic!("no text");
        };
        assert_eq!(copied(item), wanted);
    }

    fn refusal(body: &str) -> String {
        json(body).err().expect(body).messages.join("|")
    }

    #[test]
    fn values_are_converted_nearly_as_weakly_as_vault_does() {
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
        assert!(p.text("plaintext").unwrap().is_none());
        assert_eq!(p.int("bits").unwrap(), None);
        assert_eq!(p.flag("derived").unwrap(), Some(false));
        assert_eq!(p.duration("period").unwrap(), Some(Duration::from_mins(1)));
        let p = json("{}").unwrap();
        assert!(p.text("plaintext").unwrap().is_none() && p.int("bits").unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_converted_says_so_without_the_value() {
        let p = json(
            r#"{"plaintext": {"a": 1}, "bits": "4111111111111111x", "derived": "123-45-6789", "period": "1x"}"#,
        )
        .unwrap();
        for (found, expected) in [
            (
                p.text("plaintext").err(),
                r#"for field "plaintext": expected type 'string'"#,
            ),
            (
                p.int("bits").err(),
                r#"for field "bits": expected type 'int'"#,
            ),
            (
                p.flag("derived").err(),
                r#"for field "derived": expected type 'bool'"#,
            ),
            (
                p.duration("period").err(),
                r#"for field "period": time: unknown unit in duration"#,
            ),
        ] {
            let error = found.unwrap();
            let text = format!("Field validation failed: error converting input {expected}");
            assert_eq!((error.status, error.reason()), (400, text.as_str()));
            assert_eq!(error.messages, [text]);
        }
        for (body, name) in [
            (r#"{"plaintext": 1e20}"#, "plaintext"),
            (r#"{"plaintext": 1.5}"#, "plaintext"),
            (r#"{"bits": true}"#, "bits"),
            (r#"{"bits": 1.0}"#, "bits"),
            (r#"{"bits": ""}"#, "bits"),
            (r#"{"bits": " "}"#, "bits"),
            (r#"{"derived": 0.5}"#, "derived"),
            (r#"{"derived": 2}"#, "derived"),
            (r#"{"derived": -1}"#, "derived"),
            (r#"{"derived": 18446744073709551615}"#, "derived"),
            (r#"{"derived": ""}"#, "derived"),
            (r#"{"period": ""}"#, "period"),
            (r#"{"period": " "}"#, "period"),
            (r#"{"period": 1000000000000}"#, "period"),
            (r#"{"period": "1000000000000s"}"#, "period"),
            (r#"{"period": "999999999999h"}"#, "period"),
            (r#"{"period": true}"#, "period"),
            (r#"{"period": -5}"#, "period"),
            (r#"{"period": "-5s"}"#, "period"),
        ] {
            let p = json(body).unwrap();
            let refused = match name {
                "plaintext" => p.text(name).err(),
                "bits" => p.int(name).err(),
                "derived" => p.flag(name).err(),
                _ => p.duration(name).err(),
            };
            assert!(refused.is_some(), "{body}");
        }
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
            "{} trailing",
            "{}{}",
            "null null",
            "{}\u{0}",
            "\u{a0}",
            "\u{c}",
        ] {
            assert_eq!(refusal(body), JSON_ERROR, "{body}");
        }
        for body in ["", " \r\n\t", "null", "{}", "{}\n", " \n{ } \t"] {
            assert!(json(body).is_ok(), "{body}");
        }
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(10_000), "]".repeat(10_000));
        // What no route asks for is skipped without recursion, however deep.
        assert!(json(&deep).is_ok());
        assert!(Params::from_json(SHAPE, b"{\"plaintext\":\"\xff\"}").is_err());
    }

    #[test]
    fn a_name_stands_once_and_is_written_as_it_is() {
        for (body, error) in [
            (r#"{"bits":1,"bits":1}"#, JSON_ERROR),
            (r#"{"bits":null,"bits":1}"#, JSON_ERROR),
            (r#"{"batch_input":[],"batch_input":null}"#, JSON_ERROR),
            (
                r#"{"Derived":true}"#,
                "a parameter is \"derived\" but for the case of its letters: names are in lower case",
            ),
            (
                r#"{"BATCH_INPUT":[]}"#,
                "a parameter is \"batch_input\" but for the case of its letters: names are in lower case",
            ),
            (
                r#"{"padding_scheme":"oaep"}"#,
                "padding_scheme is not supported: leave it out",
            ),
        ] {
            assert_eq!(refusal(body), error, "{body}");
        }
        for name in [
            "",
            " bits",
            "bits ",
            "bi\\u0000ts",
            "\u{feff}bits",
            "{",
            "a b",
            "b\u{131}ts",
        ] {
            let text = refusal(&format!("{{\"{name}\":1}}"));
            assert!(text.starts_with("a parameter's name"), "{name}: {text}");
        }
        assert!(
            json(r#"{"padding_scheme":""}"#)
                .unwrap()
                .warnings()
                .is_empty()
        );
        let strict = Shape {
            strict: true,
            ..SHAPE
        };
        assert!(Params::from_json(strict, br#"{"plaintxt":""}"#).is_err());
        assert!(Params::from_json(strict, br#"{"plaintext":""}"#).is_ok());
    }

    /// Of what is passed over too: another reader may know the name, and take the other value.
    #[test]
    fn a_name_that_is_not_known_stands_once_too() {
        let unknown = "a parameter that is not known is given twice";
        for (body, error) in [
            (r#"{"z":1,"z":1}"#, unknown),
            (r#"{"z":1,"bits":1,"\u007a":null}"#, unknown),
            (r#"{"4111":1,"4111":2}"#, unknown),
            (r#"{"padding_scheme":"","padding_scheme":""}"#, unknown),
            (r#"{"padding_scheme":"","padding_scheme":"oaep"}"#, unknown),
            (r#"{"name":"n","name":"m"}"#, JSON_ERROR),
            (
                r#"{"batch_input":[{"z":1},{"z":1,"z":2}]}"#,
                "failed to parse batch input: '[1]': a parameter that is not known is given twice",
            ),
        ] {
            assert_eq!(refusal(body), error, "{body}");
        }
        for body in ["z=1&z=1", "padding_scheme=&padding_scheme="] {
            assert_eq!(form(body).err().unwrap().messages, [unknown], "{body}");
        }
        assert_eq!(
            form("name=a&name=b").err().unwrap().messages,
            ["\"name\" is given twice"]
        );
        // In each item again.
        assert!(json(r#"{"z":1,"batch_input":[{"z":1},{"z":1}]}"#).is_ok());
        // Not without bound.
        let many = |count: usize| {
            let names: Vec<String> = (0..count).map(|n| format!("\"n{n}\":1")).collect();
            format!("{{{}}}", names.join(","))
        };
        assert!(json(&many(MAX_OTHERS)).is_ok());
        assert_eq!(
            refusal(&many(MAX_OTHERS + 1)),
            "more than 256 parameters are not known: leave them out"
        );
    }

    #[test]
    fn batches_are_strict() {
        let p = json(r#"{"batch_input": [{"plaintext": "YQ==", "reference": "r\n"}, {"key_version": 2, "x": [], "ciphertext": 7}], "plaintext": null, "key_version": 0}"#).unwrap();
        let batch = p.batch.as_ref().unwrap();
        let plaintext = batch[0].member(0).text("plaintext").unwrap();
        assert_eq!(plaintext.as_deref(), Some("YQ=="));
        assert_eq!(batch[0].reference(), "r\n");
        assert_eq!(batch[1].member(1).int("key_version").unwrap(), Some(2));
        let mut p = p;
        assert_eq!(
            p.warnings(),
            ["Endpoint ignored these unrecognized parameters: [ciphertext x]"]
        );
        assert!(json(r#"{"batch_input": null}"#).unwrap().batch.is_none());
        for (body, part) in [
            (r#"{"batch_input": "x"}"#, "source data must be an array"),
            (r#"{"batch_input": {}}"#, "source data must be an array"),
            (
                r#"{"batch_input": 4111111111111111}"#,
                "source data must be an array",
            ),
            (
                r#"{"batch_input": [4111111111111111]}"#,
                "'[0]' expected a map, got a number",
            ),
            (
                r#"{"batch_input": ["123"]}"#,
                "'[0]' expected a map, got a string",
            ),
            (
                r#"{"batch_input": [["YQ=="]]}"#,
                "'[0]' expected a map, got a list",
            ),
            (
                r#"{"batch_input": [{}, null]}"#,
                "'[1]' expected a map, got null",
            ),
            (
                r#"{"batch_input": [{}, {"key_version": "123-45-6789"}]}"#,
                "'[1].key_version' expected type 'int', got a string",
            ),
            (
                r#"{"batch_input": [{"plaintext": 4111111111111111}]}"#,
                "'[0].plaintext' expected type 'string', got a number",
            ),
            (
                r#"{"batch_input": [{"plaintext": ["123-45-6789"]}]}"#,
                "'[0].plaintext' expected type 'string', got a list",
            ),
            (
                r#"{"batch_input": [{"plaintext": null, "plaintext": ""}]}"#,
                "'[0].plaintext' is given twice",
            ),
            (
                r#"{"batch_input": [{"bits": 1}]}"#,
                "'[0].bits' is not taken in an item: give it beside batch_input",
            ),
            (
                r#"{"batch_input": [{"padding_scheme": 1}]}"#,
                "'[0].padding_scheme' is not supported: leave it out",
            ),
            (
                r#"{"batch_input": [{"Plaintext": ""}]}"#,
                "'[0]': a parameter is \"plaintext\" but for the case of its letters: names are in lower case",
            ),
        ] {
            assert_eq!(
                refusal(body),
                format!("failed to parse batch input: {part}"),
                "{body}"
            );
        }
        for body in [
            r#"{"batch_input": [{"plaintext": "YQ=="}], "plaintext": "Yg=="}"#,
            r#"{"plaintext": "Yg==", "batch_input": []}"#,
        ] {
            assert_eq!(
                refusal(body),
                "plaintext is given beside batch_input: give it in each item"
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
        // What is no name of anything but data is not repeated, nor more than there is room for.
        let many: Vec<String> = (0..100).map(|n| format!("\"n{n}\":1")).collect();
        let body = format!(
            "{{\"4111111111111111\":1,\"{}\":1,{}}}",
            "n".repeat(33),
            many.join(",")
        );
        let warnings = json(&body).unwrap().warnings();
        assert_eq!(
            warnings,
            [
                "Endpoint ignored these unrecognized parameters: [n0 n1 n2 n3 n4 n5 n6 n7], and others"
            ]
        );
    }

    #[test]
    fn forms_are_read_too() {
        let p = form("plaintext=YQ%3D%3D&bits=7").unwrap();
        assert_eq!(p.text("plaintext").unwrap().unwrap(), "YQ==");
        assert_eq!(p.int("bits").unwrap(), Some(7));
        let p = form("plaintext=YQ==&&derived=").unwrap();
        assert_eq!(p.text("plaintext").unwrap().unwrap(), "YQ==");
        for (body, error) in [
            (
                "batch_input=x",
                "failed to parse batch input: send it as a list in a JSON body",
            ),
            ("bits=1&bits=2", "\"bits\" is given twice"),
            ("bits=%zz", "error parsing form data"),
            ("bits=%4", "error parsing form data"),
            ("bits=%ff", "error parsing form data"),
            ("bits=1;derived=1", "error parsing form data"),
            (
                "hello",
                "the body is neither JSON nor a form: a form is name=value, with & between",
            ),
            (
                "\"bits\"",
                "the body is neither JSON nor a form: a form is name=value, with & between",
            ),
            (
                "=1",
                "a parameter's name is not made of letters, digits and _ - . /",
            ),
            (
                "\u{feff}{\"bits\":\"=\"}",
                "a parameter's name is not made of letters, digits and _ - . /",
            ),
        ] {
            assert_eq!(form(body).err().unwrap().messages, [error], "{body}");
        }
        let query = |text: &'static str| Params::from_query(SHAPE, text.as_bytes());
        assert_eq!(
            query("list=true&bits=3").unwrap().int("bits").unwrap(),
            Some(3)
        );
        assert!(query("list=true").unwrap().warnings().is_empty());
        assert!(query("derived").unwrap().flag("derived").is_err());
        assert!(query("bits=%4").is_err());
    }

    #[test]
    fn what_looks_like_json_is_json_whatever_curl_calls_it() {
        let form = "application/x-www-form-urlencoded";
        for (content_type, body, expected) in [
            (Some(form), "a=b", true),
            (Some(form), "", false),
            (Some(form), " \n", false),
            (Some(form), "{}", false),
            (Some(form), " \r\n\t{\"input\":\"\"}", false),
            (Some(form), "[", false),
            (Some(form), "null", false),
            (Some(form), " null\n", false),
            (Some(form), "null=1", true),
            (
                Some("Application/X-WWW-Form-URLencoded ; charset=utf-8"),
                "a=b",
                true,
            ),
            (Some("application/x-www-form-urlencoded-not"), "a=b", false),
            (Some("text/plain"), "a=b", false),
            (Some("Application/JSON"), "a=b", false),
            (None, "a=b", false),
        ] {
            let called = is_called_form(content_type.map(str::as_bytes));
            let found = is_form(called, body.as_bytes());
            assert_eq!(found, expected, "{content_type:?} {body}");
        }
        for (body, nothing) in [
            ("", true),
            (" \n", true),
            ("{ \n}", true),
            (" null ", true),
            ("{\"a\":1}", false),
            ("{}x", false),
            ("nul", false),
            ("n u l l", false),
            ("0", false),
        ] {
            assert_eq!(says_nothing(body.as_bytes()), nothing, "{body}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Params::from_json(SHAPE, &body);
            let _ = Params::from_form(SHAPE, &body);
            let _ = Params::from_query(SHAPE, &body);
        }
    }
}
