//! A token with the appliance's keys, made once per test program: RSA-4096 generation takes seconds.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc
)]

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use strongroom_hsm::{Hsm, HsmConfig, OptionalKeys, PinSource, TokenSelector};
use strongroom_softhsm::Throwaway;

/// `SoftHSM` sees tokens made by other processes only when it is initialized: tests that make one take turns.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The shared token, with all keys on it.
pub(crate) fn token() -> &'static Throwaway {
    static TOKEN: OnceLock<Throwaway> = OnceLock::new();
    TOKEN.get_or_init(|| {
        let token = Throwaway::in_process().unwrap();
        Hsm::provision(&config(&token), OptionalKeys::ALL, &mut |_| ()).unwrap();
        token
    })
}

pub(crate) fn config(token: &Throwaway) -> HsmConfig {
    HsmConfig {
        module: token.module().to_owned(),
        token: TokenSelector::Label(token.label().to_owned()),
        pin: PinSource::File(token.pin_file()),
        sessions: 1,
        queue: 256,
        call_deadline: Duration::from_secs(10),
        session_keys: 64,
        shape: strongroom_hsm::KeyShape::Fixed,
    }
}
