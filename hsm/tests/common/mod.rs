//! A token with the appliance's keys, made once per test program: RSA-4096 generation takes
//! seconds.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc
)]

pub(crate) mod child;
pub(crate) mod rig;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use strongroom_hsm::{Hsm, HsmConfig, OptionalKeys, PinSource, TokenSelector};
use strongroom_softhsm::Throwaway;

/// `SoftHSM` sees tokens made by other processes only when it is initialized: tests that make one
/// take turns.
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
        key_generation_deadline: Duration::from_mins(5),
        session_keys: 64,
        shape: strongroom_hsm::KeyShape::Fixed,
    }
}

/// A session with the token of that label, in a module that is initialized.
pub(crate) fn open_session(library: &Pkcs11, label: &str) -> Session {
    let slot = library
        .get_slots_with_token()
        .unwrap()
        .into_iter()
        .find(|slot| library.get_token_info(*slot).unwrap().label() == label)
        .unwrap();
    library.open_rw_session(slot).unwrap()
}

/// With a session of the test's own, logged in, in a module that it initializes for this alone.
pub(crate) fn with_session(
    module: &Path,
    label: &str,
    user: UserType,
    pin: &[u8],
    body: impl FnOnce(&Session),
) {
    let library = Pkcs11::new(module).unwrap();
    library
        .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
        .unwrap();
    let session = open_session(&library, label);
    let pin = String::from_utf8(pin.to_vec()).unwrap();
    session
        .login(user, Some(&AuthPin::new(pin.into())))
        .unwrap();
    body(&session);
    drop(session);
    library.finalize().unwrap();
}
