//! Requests as types: one struct a request, whose fields are its parameters. The struct gives the
//! route's row its list of them, and reads them with Vault's weak conversions.

use std::borrow::Cow;
use std::time::Duration;

use super::body::Params;
use super::error::ApiError;

/// What a parameter may be; `None` where it was not given, or is null.
pub(super) trait Field<'p>: Sized {
    /// Vault's conversion of that parameter to this type.
    fn read(params: &'p Params<'_>, name: &str) -> Result<Self, ApiError>;
}

impl<'p> Field<'p> for Option<Cow<'p, str>> {
    fn read(params: &'p Params<'_>, name: &str) -> Result<Self, ApiError> {
        params.text(name)
    }
}

impl<'p> Field<'p> for Option<i64> {
    fn read(params: &'p Params<'_>, name: &str) -> Result<Self, ApiError> {
        params.int(name)
    }
}

impl<'p> Field<'p> for Option<bool> {
    fn read(params: &'p Params<'_>, name: &str) -> Result<Self, ApiError> {
        params.flag(name)
    }
}

impl<'p> Field<'p> for Option<Duration> {
    fn read(params: &'p Params<'_>, name: &str) -> Result<Self, ApiError> {
        params.duration(name)
    }
}

/// A request's struct, `PARAMS` for its row, and `read`.
macro_rules! request {
    ($(#[$doc:meta])* $name:ident<$p:lifetime> { $($field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        pub(in crate::api) struct $name<$p> {
            $($field: $type,)*
        }

        impl<$p> $name<$p> {
            /// The names of its parameters.
            pub(in crate::api) const PARAMS: &'static [&'static str] = &[$(stringify!($field)),*];

            /// Each parameter, converted to its field's type.
            fn read(
                params: &$p $crate::api::vault::body::Params<'_>,
            ) -> Result<Self, $crate::api::vault::error::ApiError> {
                use $crate::api::vault::request::Field as _;
                Ok(Self {
                    $($field: <$type>::read(params, stringify!($field))?,)*
                })
            }
        }
    };
}

pub(super) use request;
