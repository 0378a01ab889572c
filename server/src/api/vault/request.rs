//! Requests as types: one struct a request, whose fields are its parameters. The struct gives the
//! route's row what is taken, the `OpenAPI` document its part, and reads the parameters with
//! Vault's weak conversions: all of them before anything is done, as Vault does.

use std::borrow::Cow;
use std::ops::Deref;
use std::time::Duration;

use serde_json::{Value, json};

use super::batch::items::MAX_BATCH;
use super::error::ApiError;
use super::value::{Field, Scalar};
use crate::api::pipeline::route::Kind;

/// What the document says of a parameter of this type.
pub(super) trait Described {
    /// A request without it is refused.
    const NEEDED: bool = false;

    /// Its JSON Schema, without a description.
    fn schema() -> Value;
}

/// What an item of a batch may hold: a parameter whose type is strict there.
pub(super) trait InItem {
    const KIND: Kind;
}

impl Described for Option<Cow<'_, str>> {
    fn schema() -> Value {
        json!({ "type": ["string", "null"] })
    }
}

impl<'p> Field<'p> for Option<Cow<'p, str>> {
    fn read(value: &'p Scalar<'p>, name: &'static str) -> Result<Self, ApiError> {
        value.text(name)
    }
}

impl InItem for Option<Cow<'_, str>> {
    const KIND: Kind = Kind::Text;
}

/// A text without which nothing is done: the handler says what it must be.
pub(super) struct Needed<'p>(pub(super) Option<Cow<'p, str>>);

impl Described for Needed<'_> {
    const NEEDED: bool = true;

    fn schema() -> Value {
        json!({ "type": "string" })
    }
}

impl<'p> Field<'p> for Needed<'p> {
    fn read(value: &'p Scalar<'p>, name: &'static str) -> Result<Self, ApiError> {
        value.text(name).map(Self)
    }
}

/// Base64, not yet decoded: each handler has its own words for what is not. May be a secret: the
/// parser's own text is borrowed, which is wiped, and there is no `Debug`.
pub(super) struct Base64<'p>(Option<Cow<'p, str>>);

impl<'p> Deref for Base64<'p> {
    type Target = Option<Cow<'p, str>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Described for Base64<'_> {
    fn schema() -> Value {
        json!({ "type": ["string", "null"], "contentEncoding": "base64" })
    }
}

impl<'p> Field<'p> for Base64<'p> {
    fn read(value: &'p Scalar<'p>, name: &'static str) -> Result<Self, ApiError> {
        value.text(name).map(Self)
    }
}

impl InItem for Base64<'_> {
    const KIND: Kind = Kind::Text;
}

impl Base64<'_> {
    /// Whether it is there, and not empty.
    pub(super) fn is_given(&self) -> bool {
        self.as_deref().is_some_and(|text| !text.is_empty())
    }
}

/// One of two texts, of which a request gives one or the other.
pub(super) struct Either<'p> {
    text: Option<Cow<'p, str>>,
    given: Given,
}

impl Either<'_> {
    /// Whether it is the one that was given: not null, nor empty, zero or false.
    pub(super) fn is_set(&self) -> bool {
        self.given.0
    }
}

impl<'p> Deref for Either<'p> {
    type Target = Option<Cow<'p, str>>;

    fn deref(&self) -> &Self::Target {
        &self.text
    }
}

impl Described for Either<'_> {
    fn schema() -> Value {
        Option::<Cow<'_, str>>::schema()
    }
}

impl InItem for Either<'_> {
    const KIND: Kind = Kind::Text;
}

impl<'p> Field<'p> for Either<'p> {
    fn read(value: &'p Scalar<'p>, name: &'static str) -> Result<Self, ApiError> {
        Ok(Self {
            text: value.text(name)?,
            given: Given::read(value, name)?,
        })
    }
}

/// One that is there only to be refused: whether it was given, with whatever value but the empty
/// string, zero, false and null.
#[derive(Clone, Copy)]
pub(super) struct Given(pub(super) bool);

impl Described for Given {
    fn schema() -> Value {
        json!({ "type": ["string", "null"], "maxLength": 0 })
    }
}

impl<'p> Field<'p> for Given {
    fn read(value: &'p Scalar<'p>, _: &'static str) -> Result<Self, ApiError> {
        Ok(Self(value.is_set()))
    }
}

impl InItem for Given {
    const KIND: Kind = Kind::Text;
}

impl Described for Option<i64> {
    fn schema() -> Value {
        json!({ "$ref": "#/components/schemas/WeakInteger" })
    }
}

impl<'p> Field<'p> for Option<i64> {
    fn read(value: &'p Scalar<'p>, name: &'static str) -> Result<Self, ApiError> {
        value.int(name)
    }
}

impl InItem for Option<i64> {
    const KIND: Kind = Kind::Integer;
}

impl Described for Option<bool> {
    fn schema() -> Value {
        json!({ "$ref": "#/components/schemas/WeakBoolean" })
    }
}

impl<'p> Field<'p> for Option<bool> {
    fn read(value: &'p Scalar<'p>, name: &'static str) -> Result<Self, ApiError> {
        value.flag(name)
    }
}

impl Described for Option<Duration> {
    fn schema() -> Value {
        json!({ "$ref": "#/components/schemas/WeakDuration" })
    }
}

impl<'p> Field<'p> for Option<Duration> {
    fn read(value: &'p Scalar<'p>, name: &'static str) -> Result<Self, ApiError> {
        value.duration(name)
    }
}

/// One that is not read from here: the parser does (an object, a list), or nobody (what is taken
/// for the sake of Vault's clients).
pub(super) struct Unread;

impl Described for Unread {
    fn schema() -> Value {
        json!({ "type": "string" })
    }
}

/// One of these words, or null.
pub(super) fn one_of(words: &[&str]) -> Value {
    let words = words.iter().map(|&word| word.into());
    json!({ "enum": words.chain([Value::Null]).collect::<Vec<Value>>() })
}

/// A parameter's name: a raw identifier is one for Rust only.
pub(super) const fn bare(field: &'static str) -> &'static str {
    match field.as_bytes() {
        [b'r', b'#', ..] => field.split_at(2).1,
        _ => field,
    }
}

/// The items of a batch; what they hold stands in the request's `item`.
pub(super) fn items() -> Value {
    json!({ "type": ["array", "null"], "maxItems": MAX_BATCH })
}

/// A request's struct, `REQUEST` for its row, and `read`. Behind each field's type may stand the
/// schema that says more than the type does. `besides` has what is taken and not read from here:
/// the parser does, or nobody. `item` is the struct of what the request asks for once, or with
/// `batch_input` as many times as there are items; `needs` what must stand in each of those.
/// `refused` has Vault's and `OpenBao`'s that would change what is done; ignored, they would
/// silently not do what was asked. `strict`: any other is refused too, since the answer has no room
/// for a warning, or none of Vault's clients could send one.
macro_rules! request {
    (@schema $type:ty) => {
        <$type as $crate::api::vault::request::Described>::schema
    };
    (@schema $type:ty, $schema:expr) => {
        || $schema
    };
    (@parameter $type:ty, [$($about:literal),*] $(, $schema:expr)?) => {
        $crate::api::pipeline::route::Parameter {
            about: &[$($about),*],
            schema: $crate::api::vault::request::request!(@schema $type $(, $schema)?),
            needed: <$type as $crate::api::vault::request::Described>::NEEDED,
        }
    };
    (@items $item:ident) => {
        $crate::api::pipeline::route::Parameter {
            about: &[],
            schema: $crate::api::vault::request::items,
            needed: false,
        }
    };
    (@batch $item:ident) => {
        $crate::api::vault::batch::items::BATCH
    };
    (
        $(#[$doc:meta])*
        $name:ident $(<$p:lifetime>)? {
            $($(#[doc = $about:literal])* $vis:vis $field:ident: $type:ty $(= $schema:expr)?,)*
        }
        $(besides {
            $($(#[doc = $about2:literal])* $field2:ident: $type2:ty $(= $schema2:expr)?,)*
        })?
        $(item $(#[$doc3:meta])* $item:ident<$q:lifetime> {
            $($(#[doc = $about3:literal])* $vis3:vis $field3:ident: $type3:ty $(= $schema3:expr)?,)*
        }
        $(needs [$($needed:ident),*])?)?
        $(refused [$($refused:literal),*])?
        $(; $strict:ident)?
    ) => {
        $(#[$doc])*
        pub(in crate::api) struct $name $(<$p>)? {
            $(
                /// What is asked for once; of no use beside a batch.
                pub(in crate::api) one: $item<$q>,
            )?
            $($vis $field: $type,)*
        }

        $(
            $(#[$doc3])*
            pub(in crate::api) struct $item<$q> {
                $($vis3 $field3: $type3,)*
            }

            impl<$q> $crate::api::vault::value::Asked<$q> for $item<$q> {
                fn read(
                    values: &mut $crate::api::vault::value::Values<$q>,
                ) -> Result<Self, $crate::api::vault::error::ApiError> {
                    Ok(Self {
                        $($field3: values.take(
                            $crate::api::vault::request::bare(stringify!($field3)),
                        )?,)*
                    })
                }
            }
        )?

        impl $(<$p>)? $name $(<$p>)? {
            /// What it may carry.
            pub(in crate::api) const REQUEST: &'static $crate::api::pipeline::route::Request =
                &$crate::api::pipeline::route::Request {
                    names: &[
                        $($($crate::api::vault::request::bare(stringify!($field3)),)*)?
                        $($crate::api::vault::request::bare(stringify!($field)),)*
                        $($($crate::api::vault::request::bare(stringify!($field2)),)*)?
                        $($crate::api::vault::request::request!(@batch $item),)?
                    ],
                    parameters: &[
                        $($($crate::api::vault::request::request!(
                            @parameter $type3, [$($about3),*] $(, $schema3)?
                        ),)*)?
                        $($crate::api::vault::request::request!(
                            @parameter $type, [$($about),*] $(, $schema)?
                        ),)*
                        $($($crate::api::vault::request::request!(
                            @parameter $type2, [$($about2),*] $(, $schema2)?
                        ),)*)?
                        $($crate::api::vault::request::request!(@items $item),)?
                    ],
                    item: &[$($($crate::api::pipeline::route::Member {
                        name: stringify!($field3),
                        kind: <$type3 as $crate::api::vault::request::InItem>::KIND,
                    },)*)?],
                    needed_in_item: &[$($($(stringify!($needed)),*)?)?],
                    refused: &[$($($refused),*)?],
                    strict: false $(|| stringify!($strict).len() == "strict".len())?,
                };

            /// Each parameter, converted to its field's type.
            #[allow(dead_code)]
            pub(in crate::api::vault) fn read(
                params: &$($p)? $crate::api::vault::body::Params<'_>,
            ) -> Result<Self, $crate::api::vault::error::ApiError> {
                let mut values = params.values(Self::REQUEST.names);
                let _ = &mut values;
                Ok(Self {
                    $(one: <$item<$q> as $crate::api::vault::value::Asked<$q>>::read(
                        &mut values,
                    )?,)?
                    $($field: values.take(
                        $crate::api::vault::request::bare(stringify!($field)),
                    )?,)*
                })
            }
        }
    };
}

pub(super) use request;

request! {
    /// No parameters.
    Nothing {}
}

request! {
    /// No parameters, and none that is ignored.
    NothingElse {}
    ; strict
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::batch::items::BATCH;
    use super::super::body::Params;
    use super::super::names::Shape;
    use super::*;

    request! {
        /// For the tests.
        Toy<'p> {
            bits: Option<i64>,
            derived: Option<bool>,
        }
        besides {
            claims: Unread,
        }
        item
        /// What the tests ask for.
        ToTry<'p> {
            input: Base64<'p>,
            context: Given,
            key_version: Option<i64>,
            signature: Either<'p>,
        }
        needs [input]
    }

    fn read(body: &'static str) -> Params<'static> {
        let shape = Shape {
            names: Toy::REQUEST.names,
            item: Toy::REQUEST.item,
            refused: &[],
            strict: false,
            captured: &[],
        };
        Params::from_json(shape, body.as_bytes()).unwrap()
    }

    /// Each value in the field of its name, in whatever order they come.
    fn check(one: &ToTry<'_>) {
        assert_eq!(one.input.as_deref(), Some("aW5wdXQ="));
        assert!(one.context.0);
        assert_eq!(one.key_version, Some(7));
        assert_eq!(one.signature.as_deref(), Some("c2lnbg=="));
        assert!(one.signature.is_set());
    }

    #[test]
    fn an_item_is_read_as_the_request_that_stands_alone() {
        assert_eq!(
            Toy::REQUEST.names,
            [
                "input",
                "context",
                "key_version",
                "signature",
                "bits",
                "derived",
                "claims",
                BATCH
            ]
        );
        let params = read(
            r#"{"derived":true,"signature":"c2lnbg==","bits":"9","context":"Yw==","claims":{},"key_version":7,"input":"aW5wdXQ="}"#,
        );
        let alone = Toy::read(&params).unwrap();
        check(&alone.one);
        assert_eq!((alone.bits, alone.derived), (Some(9), Some(true)));
        let params = read(
            r#"{"batch_input":[{"signature":"c2lnbg==","key_version":7,"input":"aW5wdXQ=","context":"Yw=="},{"signature":"","context":"","input":null,"x":1},{}],"bits":9}"#,
        );
        assert_eq!(Toy::read(&params).unwrap().bits, Some(9));
        let items = params.batch.unwrap();
        let each = items.read::<ToTry<'_>>().unwrap();
        check(&each[0]);
        for one in &each[1..] {
            assert!(one.input.is_none() && !one.input.is_given() && !one.context.0);
            assert!(one.key_version.is_none() && !one.signature.is_set());
        }
        // Given, and empty: not the same as not given.
        assert!(each[1].signature.is_some() && each[2].signature.is_none());
        assert_eq!(each.len(), 3);
        let none = read(r#"{"batch_input":[]}"#).batch.unwrap();
        assert!(none.read::<ToTry<'_>>().is_err());
    }
}
