//! The token that this crate's own tests use in their process.
#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use strongroom_softhsm::Throwaway;

/// Made before the module is loaded: a loaded SoftHSM does not see a token that another process
/// makes, and it stays loaded while any test holds an [`strongroom_hsm::Hsm`].
static TOKEN: LazyLock<Throwaway> = LazyLock::new(|| Throwaway::in_process().unwrap());

/// For the tests of `store` and `keyring`.
pub(crate) fn store_token() -> &'static Throwaway {
    &TOKEN
}
