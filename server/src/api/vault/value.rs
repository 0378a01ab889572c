//! A parameter's value as it was sent, and Vault's conversions of it. What may be a secret is in
//! the body, which is wiped, or in a copy that is.

use std::borrow::Cow;
use std::fmt;
use std::slice;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use zeroize::Zeroizing;

use super::error::ApiError;
use super::wire;

/// Go's longest duration, which is what Vault counts in.
const MAX_DURATION: Duration = Duration::from_nanos(i64::MAX as u64);

/// A string that may be a secret: in the body, which is wiped, or a copy where that has escapes.
/// `Debug` does not show it.
pub(in crate::api) enum SecretText<'a> {
    Borrowed(&'a str),
    Copied(Zeroizing<String>),
}

impl SecretText<'_> {
    pub(super) fn copied(text: &str) -> Self {
        Self::Copied(Zeroizing::new(text.to_owned()))
    }
}

impl std::ops::Deref for SecretText<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Copied(text) => text,
        }
    }
}

impl fmt::Debug for SecretText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(..)")
    }
}

/// A parameter's value as it came.
#[derive(Default)]
pub(super) enum Scalar<'a> {
    #[default]
    Absent,
    Null,
    Text(SecretText<'a>),
    Int(i64),
    Unsigned(u64),
    Float,
    Bool(bool),
    List,
    Object,
}

impl Scalar<'_> {
    /// The type's name in JSON.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Absent => "nothing",
            Self::Null => "null",
            Self::Text(_) => "a string",
            Self::Int(_) | Self::Unsigned(_) | Self::Float => "a number",
            Self::Bool(_) => "a boolean",
            Self::List => "a list",
            Self::Object => "an object",
        }
    }

    /// With another value than the empty string, zero, false and null, which stand for none.
    pub(super) fn is_set(&self) -> bool {
        match self {
            Self::Absent | Self::Null | Self::Int(0) | Self::Bool(false) => false,
            Self::Text(text) => !text.is_empty(),
            _ => true,
        }
    }

    /// A string; an integer or a bool is taken as its text. Null is none.
    pub(super) fn text(&self, name: &str) -> Result<Option<Cow<'_, str>>, ApiError> {
        Ok(Some(match self {
            Self::Absent | Self::Null => return Ok(None),
            Self::Text(text) => Cow::Borrowed(&**text),
            Self::Int(n) => Cow::Owned(n.to_string()),
            Self::Unsigned(n) => Cow::Owned(n.to_string()),
            Self::Bool(b) => Cow::Borrowed(if *b { "1" } else { "0" }),
            // The text of a float is not the one that was sent.
            Self::Float | Self::List | Self::Object => {
                return Err(conversion(name, "string"));
            }
        }))
    }

    /// An integer, or a string that holds one.
    pub(super) fn int(&self, name: &str) -> Result<Option<i64>, ApiError> {
        match self {
            Self::Absent | Self::Null => Ok(None),
            Self::Int(n) => Ok(Some(*n)),
            Self::Text(text) => text.parse().map(Some).map_err(|_| conversion(name, "int")),
            _ => Err(conversion(name, "int")),
        }
    }

    /// A bool, or a string, 0 or 1 that stands for one.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        match self {
            Self::Absent | Self::Null => Ok(None),
            Self::Bool(b) => Ok(Some(*b)),
            Self::Int(0) => Ok(Some(false)),
            Self::Int(1) => Ok(Some(true)),
            Self::Text(text) => match &**text {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Some(true)),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Some(false)),
                _ => Err(conversion(name, "bool")),
            },
            _ => Err(conversion(name, "bool")),
        }
    }

    /// A duration: seconds, or a text such as `30d`. At most what Go can hold, 292 years.
    pub(super) fn duration(&self, name: &str) -> Result<Option<Duration>, ApiError> {
        let why = |why: &str| {
            ApiError::bad_request(format!(
                "Field validation failed: error converting input for field {name:?}: {why}"
            ))
            .in_own_words()
        };
        let duration = match self {
            Self::Absent | Self::Null => return Ok(None),
            Self::Int(n) => match u64::try_from(*n) {
                Ok(seconds) => Duration::from_secs(seconds),
                Err(_) => return Err(why("cannot provide negative value")),
            },
            Self::Text(text) if text.trim().is_empty() => {
                return Err(conversion(name, "duration"));
            }
            Self::Text(text) => wire::parse_duration(text).map_err(why)?,
            _ => return Err(conversion(name, "duration")),
        };
        if duration > MAX_DURATION {
            return Err(why("it is too long"));
        }
        Ok(Some(duration))
    }
}

fn conversion(name: &str, wanted: &str) -> ApiError {
    ApiError::bad_request(format!(
        "Field validation failed: error converting input for field {name:?}: expected type '{wanted}'"
    ))
    .in_own_words()
}

/// What a parameter is read into.
pub(super) trait Field<'p>: Sized {
    /// Vault's conversion of the value to this type; the parameter's name is for the error.
    fn read(value: &'p Scalar<'p>, name: &'static str) -> Result<Self, ApiError>;
}

/// Values in the order of the fields that they are read into.
pub(in crate::api) struct Values<'p>(slice::Iter<'p, Scalar<'p>>);

impl<'p> Values<'p> {
    pub(super) fn new(values: &'p [Scalar<'p>]) -> Self {
        Self(values.iter())
    }

    /// The next one.
    pub(super) fn take<T: Field<'p>>(&mut self, name: &'static str) -> Result<T, ApiError> {
        T::read(self.0.next().unwrap_or(&Scalar::Absent), name)
    }
}

/// What a request asks for once, and with a batch as many times as there are items: one type for
/// both. In an item types are strict, as in Vault; beside it they are converted.
pub(in crate::api) trait Asked<'p>: Sized {
    fn read(values: &mut Values<'p>) -> Result<Self, ApiError>;
}

impl<'de: 'a, 'a> Deserialize<'de> for SecretText<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Str;
        impl<'de> Visitor<'de> for Str {
            type Value = SecretText<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<SecretText<'de>, E> {
                Ok(SecretText::Borrowed(text))
            }

            fn visit_str<E>(self, text: &str) -> Result<SecretText<'de>, E> {
                Ok(SecretText::copied(text))
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
                Ok(Scalar::Text(SecretText::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Text(SecretText::copied(text)))
            }

            fn visit_i64<E>(self, n: i64) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Int(n))
            }

            fn visit_u64<E>(self, n: u64) -> Result<Scalar<'de>, E> {
                Ok(i64::try_from(n).map_or(Scalar::Unsigned(n), Scalar::Int))
            }

            fn visit_f64<E>(self, _: f64) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Float)
            }

            fn visit_bool<E>(self, b: bool) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Bool(b))
            }

            fn visit_unit<E>(self) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Null)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Scalar<'de>, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Scalar::List)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar<'de>, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scalar::Object)
            }
        }
        deserializer.deserialize_any(Any)
    }
}
