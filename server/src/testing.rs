//! The tokens that this crate's own tests use in their process.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use strongroom_core::audit::{Audit, AuditOptions};
use strongroom_hsm::{Hsm, HsmConfig, KeyShape, OptionalKeys, PinSource, TokenSelector};
use strongroom_softhsm::Throwaway;

/// Made together, before the module is loaded: a loaded SoftHSM does not see a token that another
/// process makes, and it stays loaded while any test holds an [`Hsm`].
static TOKENS: LazyLock<[Throwaway; 2]> =
    LazyLock::new(|| [(); 2].map(|()| Throwaway::in_process().unwrap()));

/// For the tests of `api`.
pub(crate) fn api_token() -> &'static Throwaway {
    &TOKENS[0]
}

/// A log whose checkpoints a token signs, for the one test of `serve` that has one.
pub(crate) async fn audit(path: PathBuf) -> Audit {
    let token = &TOKENS[1];
    let config = HsmConfig {
        module: token.module().to_owned(),
        token: TokenSelector::Label(token.label().to_owned()),
        pin: PinSource::File(token.pin_file()),
        sessions: 1,
        queue: 256,
        call_deadline: Duration::from_secs(30),
        session_keys: 64,
        shape: KeyShape::Fixed,
    };
    Hsm::provision(&config, OptionalKeys::ALL, &mut |_| ()).unwrap();
    let options = AuditOptions {
        path,
        checkpoint_lines: 100,
        checkpoint_interval: Duration::from_secs(100),
    };
    let hsm = Hsm::start(config).unwrap();
    Audit::accept(options, hsm).await.unwrap().0
}
