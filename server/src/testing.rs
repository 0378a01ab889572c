//! The tokens that this crate's own tests use in their process.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use strongroom_core::audit::{Audit, AuditOptions};
use strongroom_hsm::{Hsm, HsmConfig, KeyShape, OptionalKeys, PinSource, TokenSelector};
use strongroom_softhsm::Throwaway;

/// How many of the API's tests run side by side; more of them wait.
const SIDE_BY_SIDE: usize = 8;

/// Tokens with the same keys, made together before the module is loaded for good: a loaded SoftHSM
/// does not see a token that another process makes, and it stays loaded while any test holds an
/// [`Hsm`].
static TOKENS: LazyLock<Vec<Throwaway>> = LazyLock::new(|| {
    let first = Throwaway::in_process().unwrap();
    Hsm::provision(&config(&first), OptionalKeys::ALL, &mut |_| ()).unwrap();
    let mut tokens: Vec<_> = (0..SIDE_BY_SIDE).map(|_| first.copy().unwrap()).collect();
    tokens.push(first);
    tokens
});

/// With all keys, for the tests of `api`.
pub(crate) fn api_tokens() -> &'static [Throwaway] {
    &TOKENS[..SIDE_BY_SIDE]
}

/// A log whose checkpoints a token signs, for the one test of `serve` that has one.
pub(crate) async fn audit(path: PathBuf) -> Audit {
    let options = AuditOptions {
        path,
        checkpoint_lines: 100,
        checkpoint_interval: Duration::from_secs(100),
    };
    let hsm = Hsm::start(config(&TOKENS[SIDE_BY_SIDE])).unwrap();
    Audit::accept(options, hsm).await.unwrap().0
}

fn config(token: &Throwaway) -> HsmConfig {
    HsmConfig {
        module: token.module().to_owned(),
        token: TokenSelector::Label(token.label().to_owned()),
        pin: PinSource::File(token.pin_file()),
        sessions: 1,
        queue: 256,
        call_deadline: Duration::from_secs(30),
        key_generation_deadline: Duration::from_mins(5),
        session_keys: 64,
        shape: KeyShape::Fixed,
    }
}
