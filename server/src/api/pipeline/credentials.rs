//! What came with a request in its dialect's own headers: an API token, if any.

use strongroom_core::tokens::TokenInfo;
use zeroize::Zeroizing;

use super::error::ApiError;

/// What a dialect's own headers say.
#[derive(Default)]
pub(crate) struct Credentials {
    /// A good token.
    pub(crate) token: Option<Presented>,
    /// Why a header wants what is not done here. Told after the policy was asked: who is denied
    /// learns nothing of what the appliance supports.
    pub(crate) refused: Option<ApiError>,
}

/// A good token, and its text for `lookup-self`.
pub(crate) struct Presented {
    pub(crate) info: TokenInfo,
    pub(crate) text: Zeroizing<String>,
    /// Of a login: it says no more than the certificate does.
    pub(crate) login: bool,
}

impl Presented {
    /// Whether it is what a rule of the policy asks for that wants a token.
    pub(crate) fn counts(&self) -> bool {
        !self.login
    }
}
