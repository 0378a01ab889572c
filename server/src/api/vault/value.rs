//! A parameter's value as it was sent. What may be a secret is in the body, which is wiped, or in a
//! copy that is.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use zeroize::Zeroizing;

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
