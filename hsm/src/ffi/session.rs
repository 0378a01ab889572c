//! What cryptoki has too, through the same function list as all else: some modules give out another
//! list each time they are asked (p11-kit-proxy), and sessions and handles of one are nothing to
//! the other.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::UserType;
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_C_INITIALIZE_ARGS, CK_MECHANISM, CK_MECHANISM_INFO, CK_MECHANISM_TYPE,
    CK_SESSION_HANDLE, CK_SESSION_INFO, CK_SLOT_ID, CK_TOKEN_INFO, CK_TRUE, CK_ULONG,
    CKF_CLOCK_ON_TOKEN, CKF_OS_LOCKING_OK, CKF_RW_SESSION, CKF_SERIAL_SESSION,
    CKS_RW_USER_FUNCTIONS,
};

use super::{Raw, Result, checked};

/// More slots than any module has.
const MAX_SLOTS: usize = 16 * 1024;
/// `CK_TOKEN_INFO.label`, padded with blanks.
const LABEL_BYTES: usize = 32;

/// A read/write session. Closed by [`Session::close`] only.
pub(crate) struct Session {
    raw: Arc<Raw>,
    handle: CK_SESSION_HANDLE,
}

impl Raw {
    /// `C_Initialize`, with the system's own locks.
    pub(crate) fn initialize(&self) -> Result<()> {
        let mut arguments = CK_C_INITIALIZE_ARGS {
            CreateMutex: None,
            DestroyMutex: None,
            LockMutex: None,
            UnlockMutex: None,
            flags: CKF_OS_LOCKING_OK,
            pReserved: ptr::null_mut(),
        };
        let place: *mut c_void = (&raw mut arguments).cast();
        // SAFETY: the arguments outlive the call.
        unsafe { call!(self, C_Initialize, Initialize, place) }
    }

    /// `C_Finalize`.
    pub(crate) fn finalize(&self) -> Result<()> {
        // SAFETY: the one argument is reserved and must be null.
        unsafe { call!(self, C_Finalize, Finalize, ptr::null_mut()) }
    }

    /// The slots that hold a token.
    pub(crate) fn slots_with_token(&self) -> Result<Vec<Slot>> {
        // Between two calls a slot may come or go: then once more, but not for ever.
        for _ in 0..4 {
            let mut count = 0;
            // SAFETY: with a null list the module writes the count alone.
            unsafe {
                call!(
                    self,
                    C_GetSlotList,
                    GetSlotList,
                    CK_TRUE,
                    ptr::null_mut(),
                    &raw mut count
                )
            }?;
            let room = usize::try_from(count)?;
            if room > MAX_SLOTS {
                return Err(Error::InvalidValue);
            }
            let mut slots: Vec<CK_SLOT_ID> = vec![0; room];
            // SAFETY: `slots` has room for `count` numbers, and the module writes no more.
            let listed = unsafe {
                call!(
                    self,
                    C_GetSlotList,
                    GetSlotList,
                    CK_TRUE,
                    slots.as_mut_ptr(),
                    &raw mut count
                )
            };
            match listed {
                Err(Error::Pkcs11(RvError::BufferTooSmall, _)) => {}
                listed => {
                    listed?;
                    let slots = super::shortened(slots, count).ok_or(Error::InvalidValue)?;
                    return slots.into_iter().map(Slot::try_from).collect();
                }
            }
        }
        Err(Error::Pkcs11(
            RvError::BufferTooSmall,
            Function::GetSlotList,
        ))
    }

    pub(crate) fn token_info(&self, slot: Slot) -> Result<TokenInfo> {
        let mut info = CK_TOKEN_INFO::default();
        // SAFETY: `info` is a place for the structure.
        unsafe {
            call!(
                self,
                C_GetTokenInfo,
                GetTokenInfo,
                slot.into(),
                &raw mut info
            )
        }?;
        // Nobody asks for the token's time, and one that is odd (opencryptoki 3.8) would make the
        // whole unreadable.
        info.flags &= !CKF_CLOCK_ON_TOKEN;
        TokenInfo::try_from(info)
    }

    /// `C_GetMechanismInfo`; key sizes are in whatever unit the mechanism has.
    pub(crate) fn mechanism_info(
        &self,
        slot: Slot,
        mechanism: CK_MECHANISM_TYPE,
    ) -> Result<CK_MECHANISM_INFO> {
        let mut info = CK_MECHANISM_INFO::default();
        // SAFETY: `info` is a place for the structure.
        unsafe {
            call!(
                self,
                C_GetMechanismInfo,
                GetMechanismInfo,
                slot.into(),
                mechanism,
                &raw mut info
            )
        }?;
        Ok(info)
    }

    /// `C_InitToken`. The label is cut after 32 bytes.
    pub(crate) fn init_token(&self, slot: Slot, pin: &[u8], label: &str) -> Result<()> {
        let mut padded = [b' '; LABEL_BYTES];
        for (place, byte) in padded.iter_mut().zip(label.bytes()) {
            *place = byte;
        }
        let length = CK_ULONG::try_from(pin.len())?;
        // SAFETY: PIN and label outlive the call; the label has the 32 bytes that PKCS#11 reads.
        unsafe {
            call!(
                self,
                C_InitToken,
                InitToken,
                slot.into(),
                pin.as_ptr().cast_mut(),
                length,
                padded.as_mut_ptr()
            )
        }
    }

    /// A read/write session.
    pub(crate) fn open_session(self: &Arc<Self>, slot: Slot) -> Result<Session> {
        let mut handle = 0;
        // SAFETY: no callback is set; `handle` is a place for one.
        unsafe {
            call!(
                self,
                C_OpenSession,
                OpenSession,
                slot.into(),
                CKF_SERIAL_SESSION | CKF_RW_SESSION,
                ptr::null_mut(),
                None,
                &raw mut handle
            )
        }?;
        Ok(Session {
            raw: Arc::clone(self),
            handle,
        })
    }
}

impl Session {
    pub(crate) fn handle(&self) -> CK_SESSION_HANDLE {
        self.handle
    }

    pub(crate) fn close(self) -> Result<()> {
        // SAFETY: takes a number, and touches no memory of ours.
        unsafe { call!(self.raw, C_CloseSession, CloseSession, self.handle) }
    }

    /// Whether the user is logged in.
    pub(crate) fn is_users(&self) -> Result<bool> {
        let mut info = CK_SESSION_INFO::default();
        // SAFETY: `info` is a place for the structure.
        unsafe {
            call!(
                self.raw,
                C_GetSessionInfo,
                GetSessionInfo,
                self.handle,
                &raw mut info
            )
        }?;
        Ok(info.state == CKS_RW_USER_FUNCTIONS)
    }

    pub(crate) fn login(&self, user: UserType, pin: &[u8]) -> Result<()> {
        let length = CK_ULONG::try_from(pin.len())?;
        // SAFETY: the PIN outlives the call.
        unsafe {
            call!(
                self.raw,
                C_Login,
                Login,
                self.handle,
                user.into(),
                pin.as_ptr().cast_mut(),
                length
            )
        }
    }

    pub(crate) fn logout(&self) -> Result<()> {
        // SAFETY: as in `close`.
        unsafe { call!(self.raw, C_Logout, Logout, self.handle) }
    }

    /// `C_InitPIN`.
    pub(crate) fn init_pin(&self, pin: &[u8]) -> Result<()> {
        let length = CK_ULONG::try_from(pin.len())?;
        // SAFETY: the PIN outlives the call.
        unsafe {
            call!(
                self.raw,
                C_InitPIN,
                InitPIN,
                self.handle,
                pin.as_ptr().cast_mut(),
                length
            )
        }
    }

    /// `C_GenerateRandom`.
    pub(crate) fn generate_random_slice(&self, output: &mut [u8]) -> Result<()> {
        let length = CK_ULONG::try_from(output.len())?;
        // SAFETY: `output` has room for `length` bytes.
        unsafe {
            call!(
                self.raw,
                C_GenerateRandom,
                GenerateRandom,
                self.handle,
                output.as_mut_ptr(),
                length
            )
        }
    }

    /// `C_CreateObject`.
    pub(crate) fn create_object(&self, template: &[Attribute]) -> Result<ObjectHandle> {
        let mut template = Given::new(template)?;
        let mut object = 0;
        // SAFETY: the attributes point into the caller's template, which outlives the call.
        unsafe {
            call!(
                self.raw,
                C_CreateObject,
                CreateObject,
                self.handle,
                template.pointer(),
                template.count,
                &raw mut object
            )
        }?;
        // SAFETY: the module has just made this object and named its handle.
        Ok(unsafe { ObjectHandle::new_from_raw(object) })
    }

    /// `C_DestroyObject`.
    pub(crate) fn destroy_object(&self, object: ObjectHandle) -> Result<()> {
        // SAFETY: as in `close`.
        unsafe {
            call!(
                self.raw,
                C_DestroyObject,
                DestroyObject,
                self.handle,
                object.handle()
            )
        }
    }

    /// `C_SetAttributeValue`.
    pub(crate) fn update_attributes(
        &self,
        object: ObjectHandle,
        template: &[Attribute],
    ) -> Result<()> {
        let mut template = Given::new(template)?;
        // SAFETY: as in `create_object`.
        unsafe {
            call!(
                self.raw,
                C_SetAttributeValue,
                SetAttributeValue,
                self.handle,
                object.handle(),
                template.pointer(),
                template.count
            )
        }
    }

    /// `C_GenerateKey`.
    pub(crate) fn generate_key(
        &self,
        mechanism: &Mechanism<'_>,
        template: &[Attribute],
    ) -> Result<ObjectHandle> {
        let mut mechanism: CK_MECHANISM = mechanism.into();
        let mut template = Given::new(template)?;
        let mut key = 0;
        // SAFETY: as in `create_object`; the mechanism points into the caller's.
        unsafe {
            call!(
                self.raw,
                C_GenerateKey,
                GenerateKey,
                self.handle,
                &raw mut mechanism,
                template.pointer(),
                template.count,
                &raw mut key
            )
        }?;
        // SAFETY: the module has just made this object and named its handle.
        Ok(unsafe { ObjectHandle::new_from_raw(key) })
    }

    /// `C_GenerateKeyPair`: (public, private).
    pub(crate) fn generate_key_pair(
        &self,
        mechanism: &Mechanism<'_>,
        public: &[Attribute],
        private: &[Attribute],
    ) -> Result<(ObjectHandle, ObjectHandle)> {
        let mut mechanism: CK_MECHANISM = mechanism.into();
        let (mut public, mut private) = (Given::new(public)?, Given::new(private)?);
        let (mut public_key, mut private_key) = (0, 0);
        // SAFETY: as in `generate_key`.
        unsafe {
            call!(
                self.raw,
                C_GenerateKeyPair,
                GenerateKeyPair,
                self.handle,
                &raw mut mechanism,
                public.pointer(),
                public.count,
                private.pointer(),
                private.count,
                &raw mut public_key,
                &raw mut private_key
            )
        }?;
        // SAFETY: the module has just made these two objects and named their handles.
        Ok(unsafe {
            (
                ObjectHandle::new_from_raw(public_key),
                ObjectHandle::new_from_raw(private_key),
            )
        })
    }

    /// `C_DeriveKey`.
    pub(crate) fn derive_key(
        &self,
        mechanism: &Mechanism<'_>,
        base: ObjectHandle,
        template: &[Attribute],
    ) -> Result<ObjectHandle> {
        let mut mechanism: CK_MECHANISM = mechanism.into();
        let mut template = Given::new(template)?;
        let mut key = 0;
        // SAFETY: as in `generate_key`.
        unsafe {
            call!(
                self.raw,
                C_DeriveKey,
                DeriveKey,
                self.handle,
                &raw mut mechanism,
                base.handle(),
                template.pointer(),
                template.count,
                &raw mut key
            )
        }?;
        // SAFETY: the module has just made this object and named its handle.
        Ok(unsafe { ObjectHandle::new_from_raw(key) })
    }
}

/// A caller's template as the module takes it: it points into the caller's.
struct Given {
    attributes: Vec<CK_ATTRIBUTE>,
    count: CK_ULONG,
}

impl Given {
    fn new(template: &[Attribute]) -> Result<Self> {
        Ok(Self {
            attributes: template.iter().map(Into::into).collect(),
            count: CK_ULONG::try_from(template.len())?,
        })
    }

    fn pointer(&mut self) -> *mut CK_ATTRIBUTE {
        self.attributes.as_mut_ptr()
    }
}
