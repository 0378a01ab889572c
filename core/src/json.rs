//! The JSON of documents that several programs must read alike: audit logs, transcripts, shares,
//! backups.
//!
//! RFC 8259 leaves a reader a choice (which of two members counts, what a number beyond a float is,
//! what half a surrogate pair is), and serde leaves more (a list for a struct, null for what is
//! missing, members that nobody looks at unchecked). `docs/json.md` takes each choice away.

use std::fmt;

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, Visitor,
};
use serde::{Serialize, forward_to_deserialize_any};
use serde_json::{Map, Value};
use zeroize::Zeroize as _;

/// What is wrong with a document; it may repeat names and values of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(String);

impl de::Error for JsonError {
    fn custom<T: fmt::Display>(what: T) -> Self {
        Self(what.to_string())
    }
}

/// An object that was read. Its texts are overwritten when it is dropped, since shares are read by
/// it too.
pub struct Document(Value);

impl Document {
    /// Reads one that is all of these bytes.
    ///
    /// # Errors
    /// [`JsonError`] for whatever `docs/json.md` refuses.
    pub fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        if !(bytes.starts_with(b"{") && bytes.ends_with(b"}")) {
            return Err(JsonError(
                "it is not an object from its first byte to its last".to_owned(),
            ));
        }
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        let value = Checked
            .deserialize(&mut reader)
            .and_then(|value| reader.end().map(|()| value))
            .map_err(de::Error::custom)?;
        Ok(Self(value))
    }

    /// What it holds.
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// What it holds, to be kept.
    pub fn into_value(mut self) -> Value {
        self.0.take()
    }

    /// As [`read`], of the whole.
    ///
    /// # Errors
    /// [`JsonError`].
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, JsonError> {
        read(&self.0)
    }
}

impl Drop for Document {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// What it holds may be secret.
impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Document(..)")
    }
}

fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(list) => list.iter_mut().for_each(wipe),
        Value::Object(members) => members.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A part of a [`Document`] as a type: a struct only from an object, an `Option` never from null. A
/// member that may be null has [`nullable`].
///
/// # Errors
/// [`JsonError`].
pub fn read<T: DeserializeOwned>(value: &Value) -> Result<T, JsonError> {
    T::deserialize(Strict(value))
}

/// As [`read`], for formats that name every member: none is besides those, at any depth.
///
/// # Errors
/// [`JsonError`].
pub fn read_exactly<T: DeserializeOwned + Serialize>(value: &Value) -> Result<T, JsonError> {
    let read: T = read(value)?;
    let mut again = serde_json::to_value(&read).map_err(de::Error::custom)?;
    let same = again == *value;
    wipe(&mut again);
    if same {
        Ok(read)
    } else {
        Err(JsonError(
            "it has members besides those of its format".to_owned(),
        ))
    }
}

/// For `#[serde(deserialize_with)]`: a text or null, which must be there.
///
/// # Errors
/// The deserializer's, for anything else.
pub fn nullable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    struct TextOrNull;

    impl Visitor<'_> for TextOrNull {
        type Value = Option<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string or null")
        }

        fn visit_unit<E>(self) -> Result<Option<String>, E> {
            Ok(None)
        }

        fn visit_str<E>(self, text: &str) -> Result<Option<String>, E> {
            Ok(Some(text.to_owned()))
        }
    }

    deserializer.deserialize_any(TextOrNull)
}

/// Any JSON as far as `docs/json.md` takes it. Encoding, surrogates, depth and the numbers' size
/// are `serde_json`'s part: every text is read, none is skipped.
struct Checked;

impl<'de> DeserializeSeed<'de> for Checked {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Checked {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON whose numbers are integers of 64 bits")
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

    /// A fraction, an exponent, `-0`, or more than 64 bits hold: two readers could take it for two
    /// numbers.
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Err(E::invalid_type(Unexpected::Float(value), &self))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Self)? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(Self)?;
            if members.contains_key(&name) {
                return Err(de::Error::custom(format_args!(
                    "{name:?} stands there twice"
                )));
            }
            members.insert(name, value);
        }
        Ok(members.into())
    }
}

/// As `serde_json`'s own, but for what [`read`] says.
#[derive(Clone, Copy)]
struct Strict<'a>(&'a Value);

impl Strict<'_> {
    fn unexpected(self, wanted: &dyn de::Expected) -> JsonError {
        let found = match self.0 {
            Value::Null => Unexpected::Unit,
            Value::Bool(value) => Unexpected::Bool(*value),
            Value::Number(_) => Unexpected::Other("number"),
            Value::String(_) => Unexpected::Other("string"),
            Value::Array(_) => Unexpected::Seq,
            Value::Object(_) => Unexpected::Map,
        };
        de::Error::invalid_type(found, wanted)
    }
}

impl<'de> Deserializer<'de> for Strict<'de> {
    type Error = JsonError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => visitor.visit_u64(number),
                (None, Some(number)) => visitor.visit_i64(number),
                (None, None) => Err(self.unexpected(&visitor)),
            },
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Array(list) => {
                let mut items = SeqDeserializer::new(list.iter().map(Strict));
                let value = visitor.visit_seq(&mut items)?;
                items.end()?;
                Ok(value)
            }
            Value::Object(members) => {
                let members = members
                    .iter()
                    .map(|(name, value)| (name.as_str(), Strict(value)));
                let mut members = MapDeserializer::new(members);
                let value = visitor.visit_map(&mut members)?;
                members.end()?;
                Ok(value)
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        if self.0.is_null() {
            return Err(JsonError(
                "null stands for what could be left out".to_owned(),
            ));
        }
        visitor.visit_some(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        if !self.0.is_object() {
            return Err(self.unexpected(&visitor));
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        match self.0 {
            Value::String(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            _ => Err(self.unexpected(&visitor)),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, JsonError> for Strict<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// Fuzz entry: what is taken means one thing only.
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz {
    #![allow(
        clippy::missing_panics_doc,
        reason = "a panic is what a fuzz target reports"
    )]

    use super::Document;

    /// What is taken is taken again as it is written again, with the same value; and `serde_json`,
    /// which is laxer, sees that value too.
    pub fn strict_json(data: &[u8]) {
        let Ok(document) = Document::parse(data) else {
            return;
        };
        let value = document.into_value();
        let again = serde_json::to_vec(&value).unwrap_or_default();
        assert!(Document::parse(&again).is_ok_and(|again| *again.value() == value));
        assert!(serde_json::from_slice::<serde_json::Value>(data).is_ok_and(|lax| lax == value));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Outer {
        inner: Inner,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        more: Option<String>,
        #[serde(deserialize_with = "nullable")]
        perhaps: Option<String>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Inner {
        number: u8,
        pairs: Vec<(String, String)>,
    }

    #[test]
    fn a_type_is_read_from_what_it_is_and_nothing_else() {
        let good = json!({"inner": {"number": 7, "pairs": [["a", "b"]]}, "perhaps": null});
        let outer: Outer = read(&good).unwrap();
        assert_eq!((outer.inner.number, &outer.more), (7, &None));
        assert_eq!(serde_json::to_value(&outer).unwrap(), good);
        read_exactly::<Outer>(&good).unwrap();
        for (path, value) in [
            // A list for an object, null for what is missing, another type, a pair of three.
            ("/inner", json!([7, []])),
            ("/more", json!(null)),
            ("/perhaps", json!(1)),
            ("/inner/number", json!(256)),
            ("/inner/number", json!(-1)),
            ("/inner/number", json!("7")),
            ("/inner/number", json!(null)),
            ("/inner/pairs", json!([["a", "b", "c"]])),
            ("/inner/pairs", json!([["a"]])),
            ("/inner/pairs", json!({})),
        ] {
            let mut bad = good.clone();
            match bad.pointer_mut(path) {
                Some(place) => *place = value.clone(),
                None => bad["more"] = value.clone(),
            }
            assert!(read::<Outer>(&bad).is_err(), "{path} {value}");
        }
        for name in ["inner", "perhaps"] {
            let mut less = good.clone();
            less.as_object_mut().unwrap().remove(name);
            assert!(read::<Outer>(&less).is_err(), "without {name}");
        }
        for path in ["", "/inner"] {
            let mut more = good.clone();
            more.pointer_mut(path).unwrap()["besides"] = json!(1);
            assert!(read::<Outer>(&more).is_ok(), "{path}");
            assert!(read_exactly::<Outer>(&more).is_err(), "{path}");
        }
    }

    #[test]
    fn nothing_of_it_is_told_or_left() {
        let document = Document::parse(br#"{"a":"secret"}"#).unwrap();
        assert_eq!(format!("{document:?}"), "Document(..)");
        let mut value = json!({"a": ["secret", {"b": "secret"}]});
        wipe(&mut value);
        assert_eq!(value, json!({"a": ["", {"b": ""}]}));
    }
}
