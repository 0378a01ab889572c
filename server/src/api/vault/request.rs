//! Requests as types: one struct a request, whose fields are its parameters. The struct gives the
//! route's row what is taken, the `OpenAPI` document its part, and reads the parameters with
//! Vault's weak conversions: all of them before anything is done, as Vault does.

use std::borrow::Cow;
use std::ops::Deref;
use std::time::Duration;

use serde_json::{Value, json};

use super::batch::items::MAX_BATCH;
use super::body::Params;
use super::error::ApiError;

/// What the document says of a parameter of this type.
pub(super) trait Described {
    /// A request without it is refused.
    const NEEDED: bool = false;

    /// Its JSON Schema, without a description.
    fn schema() -> Value;
}

/// What a parameter may be; `None` where it was not given, or is null.
pub(super) trait Field<'p>: Described + Sized {
    /// Vault's conversion of that parameter to this type.
    fn read(params: &'p Params<'_>, name: &str) -> Result<Self, ApiError>;
}

impl Described for Option<Cow<'_, str>> {
    fn schema() -> Value {
        json!({ "type": ["string", "null"] })
    }
}

impl<'p> Field<'p> for Option<Cow<'p, str>> {
    fn read(params: &'p Params<'_>, name: &str) -> Result<Self, ApiError> {
        params.text(name)
    }
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
    fn read(params: &'p Params<'_>, name: &str) -> Result<Self, ApiError> {
        params.text(name).map(Self)
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
    fn read(params: &'p Params<'_>, name: &str) -> Result<Self, ApiError> {
        params.text(name).map(Self)
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
    fn read(params: &'p Params<'_>, name: &str) -> Result<Self, ApiError> {
        Ok(Self(params.is_set(name)))
    }
}

impl Described for Option<i64> {
    fn schema() -> Value {
        json!({ "$ref": "#/components/schemas/WeakInteger" })
    }
}

impl<'p> Field<'p> for Option<i64> {
    fn read(params: &'p Params<'_>, name: &str) -> Result<Self, ApiError> {
        params.int(name)
    }
}

impl Described for Option<bool> {
    fn schema() -> Value {
        json!({ "$ref": "#/components/schemas/WeakBoolean" })
    }
}

impl<'p> Field<'p> for Option<bool> {
    fn read(params: &'p Params<'_>, name: &str) -> Result<Self, ApiError> {
        params.flag(name)
    }
}

impl Described for Option<Duration> {
    fn schema() -> Value {
        json!({ "$ref": "#/components/schemas/WeakDuration" })
    }
}

impl<'p> Field<'p> for Option<Duration> {
    fn read(params: &'p Params<'_>, name: &str) -> Result<Self, ApiError> {
        params.duration(name)
    }
}

/// The items of a batch, which the parser reads by itself: `Params::batch`. What they take stands
/// in the request's `item`.
pub(super) struct Batch;

impl Described for Batch {
    fn schema() -> Value {
        json!({ "type": ["array", "null"], "maxItems": MAX_BATCH })
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

/// A request's struct, `REQUEST` for its row, and `read`. Behind each field's type may stand the
/// schema that says more than the type does. `besides` has what is taken and not read from here:
/// the parser does, or nobody. `item` names the fields that each item of a batch may hold, `needs`
/// those that it must. `refused` has Vault's and `OpenBao`'s that would change what is done;
/// ignored, they would silently not do what was asked. `strict`: any other is refused too, since
/// the answer has no room for a warning, or none of Vault's clients could send one.
macro_rules! request {
    (@schema $type:ty) => {
        <$type as $crate::api::vault::request::Described>::schema
    };
    (@schema $type:ty, $schema:expr) => {
        || $schema
    };
    (
        $(#[$doc:meta])*
        $name:ident $(<$p:lifetime>)? {
            $($(#[doc = $about:literal])* $vis:vis $field:ident: $type:ty $(= $schema:expr)?,)*
        }
        $(besides {
            $($(#[doc = $about2:literal])* $field2:ident: $type2:ty $(= $schema2:expr)?,)*
        })?
        $(item [$($item:ident),*] $(needs [$($needed:ident),*])?)?
        $(refused [$($refused:literal),*])?
        $(; $strict:ident)?
    ) => {
        $(#[$doc])*
        pub(in crate::api) struct $name $(<$p>)? {
            $($vis $field: $type,)*
        }

        impl $(<$p>)? $name $(<$p>)? {
            /// What it may carry.
            pub(in crate::api) const REQUEST: &'static $crate::api::pipeline::route::Request =
                &$crate::api::pipeline::route::Request {
                    names: &[
                        $($crate::api::vault::request::bare(stringify!($field)),)*
                        $($($crate::api::vault::request::bare(stringify!($field2)),)*)?
                    ],
                    parameters: &[
                        $($crate::api::pipeline::route::Parameter {
                            about: &[$($about),*],
                            schema: $crate::api::vault::request::request!(
                                @schema $type $(, $schema)?
                            ),
                            needed: <$type as $crate::api::vault::request::Described>::NEEDED,
                        },)*
                        $($($crate::api::pipeline::route::Parameter {
                            about: &[$($about2),*],
                            schema: $crate::api::vault::request::request!(
                                @schema $type2 $(, $schema2)?
                            ),
                            needed: <$type2 as $crate::api::vault::request::Described>::NEEDED,
                        },)*)?
                    ],
                    item: &[$($(stringify!($item)),*)?],
                    needed_in_item: &[$($($(stringify!($needed)),*)?)?],
                    refused: &[$($($refused),*)?],
                    strict: false $(|| stringify!($strict).len() == "strict".len())?,
                };

            /// Each parameter, converted to its field's type.
            #[allow(dead_code)]
            pub(in crate::api::vault) fn read(
                params: &$($p)? $crate::api::vault::body::Params<'_>,
            ) -> Result<Self, $crate::api::vault::error::ApiError> {
                let _ = params;
                Ok(Self {
                    $($field: <$type as $crate::api::vault::request::Field>::read(
                        params,
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
