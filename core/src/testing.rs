//! The tokens that this crate's own tests use in their process.
#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use strongroom_softhsm::Throwaway;

/// Made together, before the module is loaded: a loaded SoftHSM does not see a token that another process makes, and it stays loaded
/// while any test holds an [`strongroom_hsm::Hsm`].
static TOKENS: LazyLock<[Throwaway; 2]> =
    LazyLock::new(|| [(); 2].map(|()| Throwaway::in_process().unwrap()));

/// For the tests of `store` and `keyring`.
pub(crate) fn store_token() -> &'static Throwaway {
    &TOKENS[0]
}

/// For the tests of `api`.
pub(crate) fn api_token() -> &'static Throwaway {
    &TOKENS[1]
}
