//! One session, each of whose calls is seen by the watchdog, and the login behind it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::UserType;
use cryptoki::slot::Slot;
use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CK_MECHANISM_INFO, CK_MECHANISM_TYPE, CK_ULONG, CKA_ID, CKA_LABEL,
    CKA_TOKEN, CKM_RSA_PKCS_KEY_PAIR_GEN,
};

use crate::config::PinSource;
use crate::error::HsmError;
use crate::fault::{Fault, Reach, code_name};
use crate::ffi::{self, Raw, Session, Wrapping};
use crate::module::Library;
use crate::pin;
use crate::types::OaepHash;

/// A thread's sign of life: it counts up with each PKCS#11 call.
#[derive(Default)]
pub(crate) struct Watch {
    calls: AtomicU64,
    abandoned: AtomicBool,
}

impl Watch {
    /// Called right before each PKCS#11 call.
    pub(crate) fn tick(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// The thread is given up: whatever it finds is not wanted any more.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }
}

/// A read/write session.
pub(crate) struct WatchedSession {
    library: Arc<Library>,
    session: Session,
    slot: Slot,
    watch: Arc<Watch>,
}

impl WatchedSession {
    pub(crate) fn open(
        library: Arc<Library>,
        slot: Slot,
        watch: Arc<Watch>,
    ) -> Result<Self, Fault> {
        watch.tick();
        // Closed by `close` only: a handle that the token has forgotten may by now be somebody
        // else's.
        let session = library.raw.open_session(slot)?;
        Ok(Self {
            library,
            session,
            slot,
            watch,
        })
    }

    /// Another session of the same login, to be closed by the caller.
    pub(crate) fn another(&self) -> Result<Self, Fault> {
        Self::open(
            Arc::clone(&self.library),
            self.slot,
            Arc::clone(&self.watch),
        )
    }

    /// The session, for one call.
    pub(crate) fn session(&self) -> &Session {
        self.watch.tick();
        &self.session
    }

    /// The calls that cryptoki lacks, for one call with [`WatchedSession::session`].
    pub(crate) fn raw(&self) -> &Raw {
        &self.library.raw
    }

    /// The token's mechanisms.
    pub(crate) fn mechanisms(&self) -> Result<Vec<CK_MECHANISM_TYPE>, Fault> {
        self.watch.tick();
        Ok(self.library.raw.mechanisms(self.slot)?)
    }

    /// What the token says of a mechanism; `None` if it says nothing.
    pub(crate) fn mechanism_info(
        &self,
        mechanism: CK_MECHANISM_TYPE,
    ) -> Result<Option<CK_MECHANISM_INFO>, Fault> {
        self.watch.tick();
        match self
            .library
            .raw
            .mechanism_info(self.slot, mechanism)
            .map_err(Fault::from)
        {
            Ok(info) => Ok(Some(info)),
            Err(fault) if fault.reach() == Reach::Item => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Bits of the shortest RSA key that the token says it makes, if that is shorter than what
    /// today's tokens make.
    pub(crate) fn shortest_rsa(&self) -> Result<CK_ULONG, Fault> {
        const USUAL_BITS: CK_ULONG = 2048;
        let info = self.mechanism_info(CKM_RSA_PKCS_KEY_PAIR_GEN)?;
        let told = info.map_or(USUAL_BITS, |info| info.ulMinKeySize);
        // Below this nobody makes keys, whatever a token says of itself; and one that says nothing
        // may make the usual ones only.
        Ok(match told {
            0 => USUAL_BITS,
            told => told.clamp(1024, USUAL_BITS),
        })
    }

    pub(crate) fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    pub(crate) fn library(&self) -> &Arc<Library> {
        &self.library
    }

    /// All objects of a class and label.
    pub(crate) fn find(&self, class: CK_ULONG, label: &str) -> Result<Vec<ObjectHandle>, Fault> {
        let template = [
            Attribute::Class(class.try_into()?),
            Attribute::Label(label.as_bytes().to_vec()),
        ];
        Ok(self.find_objects(&template)?)
    }

    /// All objects that a template matches.
    pub(crate) fn find_objects(&self, template: &[Attribute]) -> ffi::Result<Vec<ObjectHandle>> {
        self.raw().find_objects(self.session(), template)
    }

    /// An attribute; `None` also of an object that was cut off before it had as much as a class, of
    /// which `SoftHSM` tells nothing.
    pub(crate) fn told(
        &self,
        object: ObjectHandle,
        attribute: CK_ATTRIBUTE_TYPE,
    ) -> Result<Option<Vec<u8>>, Fault> {
        match self.raw().attribute(self.session(), object, attribute) {
            Err(Error::Pkcs11(RvError::AttributeValueInvalid, _)) => Ok(None),
            other => Ok(other?),
        }
    }

    /// Whether an object has neither a label nor an identifier.
    pub(crate) fn is_nameless(&self, object: ObjectHandle) -> Result<bool, Fault> {
        for name in [CKA_LABEL, CKA_ID] {
            if self.told(object, name)?.is_some_and(|is| !is.is_empty()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether an object says that it is kept on the token.
    pub(crate) fn is_on_token(&self, object: ObjectHandle) -> Result<bool, Fault> {
        Ok(self
            .told(object, CKA_TOKEN)?
            .is_some_and(|value| value != [0]))
    }

    pub(crate) fn sign(
        &self,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        data: &[u8],
    ) -> ffi::Result<Vec<u8>> {
        self.raw().sign(self.session(), mechanism, key, data)
    }

    pub(crate) fn decrypt(
        &self,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        data: &[u8],
    ) -> ffi::Result<Vec<u8>> {
        self.raw().decrypt(self.session(), mechanism, key, data)
    }

    /// By RSA-OAEP.
    pub(crate) fn wrap_key(
        &self,
        hash: OaepHash,
        by: ObjectHandle,
        key: ObjectHandle,
    ) -> ffi::Result<Vec<u8>> {
        self.raw()
            .wrap_key(self.session(), Wrapping::Oaep(hash), by, key)
    }

    /// An orderly end. Not for a session that the token has lost.
    pub(crate) fn close(self) {
        self.watch.tick();
        if let Err(error) = self.session.close() {
            tracing::debug!(%error, "a session did not close");
        }
    }
}

/// Who may log in, and whether that was refused before.
pub(crate) struct Access {
    pin: PinSource,
    refused: Mutex<Option<HsmError>>,
}

impl Access {
    pub(crate) fn new(pin: PinSource) -> Self {
        Self {
            pin,
            refused: Mutex::new(None),
        }
    }

    /// Logs the process in, unless it is. A refused PIN is remembered: `C_Login` is never called
    /// again.
    pub(crate) fn login(&self, watched: &WatchedSession) -> Result<(), Fault> {
        // Held over the call, so that of several threads only one tries a PIN that may be wrong.
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = &*refused {
            return Err(error.clone().into());
        }
        if watched.session().is_users()? {
            return Ok(());
        }
        let pin = pin::read(&self.pin)?;
        let fault = match watched.session().login(UserType::User, pin.expose()) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => return Ok(()),
            Err(error) => Fault::from(error),
        };
        match fault {
            Fault::Token(
                code @ (RvError::PinIncorrect
                | RvError::PinInvalid
                | RvError::PinLenRange
                | RvError::PinExpired
                | RvError::PinLocked
                | RvError::UserPinNotInitialized),
                Function::Login,
            ) => {
                let error = HsmError::Pin(code_name(code));
                *refused = Some(error.clone());
                Err(error.into())
            }
            other => Err(other),
        }
    }
}
