//! The API token that came with a request.

use strongroom_core::tokens::TokenInfo;
use zeroize::Zeroizing;

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
