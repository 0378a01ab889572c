//! Every call into the PKCS#11 module, straight through `cryptoki-sys` and one function list.
//!
//! cryptoki lends its types. Its calls can't be used: it knows no attribute whose value is a
//! template (`CKA_UNWRAP_TEMPLATE`), calls the module once more to ask for each output's length,
//! believes what a module claims of lengths and numbers, and has a function list of its own that it
//! shows to nobody. This is the only file, with `ffi/session.rs`, that holds `unsafe`.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::path::Path;
use std::ptr;

use cryptoki::context::Function;
use cryptoki::error::{Error, Rv, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::slot::Slot;
use cryptoki_sys::{
    CK_AES_CTR_PARAMS, CK_ATTRIBUTE, CK_ATTRIBUTE_TYPE, CK_BYTE, CK_CCM_PARAMS, CK_CHACHA20_PARAMS,
    CK_ECDH_AES_KEY_WRAP_PARAMS, CK_EXTRACT_PARAMS, CK_FUNCTION_LIST, CK_GCM_PARAMS,
    CK_KEY_DERIVATION_STRING_DATA, CK_MECHANISM, CK_MECHANISM_TYPE, CK_OBJECT_HANDLE,
    CK_RSA_AES_KEY_WRAP_PARAMS, CK_RSA_PKCS_OAEP_PARAMS, CK_RV,
    CK_SALSA20_CHACHA20_POLY1305_PARAMS, CK_SESSION_HANDLE, CK_ULONG, CK_UNAVAILABLE_INFORMATION,
    CKA_ID, CKA_UNWRAP_TEMPLATE, CKD_SHA256_KDF, CKG_MGF1_SHA1, CKG_MGF1_SHA256, CKM_AES_CCM,
    CKM_AES_CTR, CKM_AES_GCM, CKM_CHACHA20, CKM_CHACHA20_POLY1305, CKM_ECDH_AES_KEY_WRAP,
    CKM_RSA_AES_KEY_WRAP, CKM_RSA_PKCS_OAEP, CKM_SHA_1, CKM_SHA256, CKZ_DATA_SPECIFIED,
};

use zeroize::Zeroizing;

use crate::template::{Rule, Value};
use crate::types::OaepHash;

/// The GCM tag of everything this product makes: 128 bits.
pub(crate) const TAG_LEN: usize = 16;
/// More than any attribute that is asked for; a length above it is a module's fault.
const MAX_ATTRIBUTE_BYTES: usize = 64 * 1024;
/// Handles that a search asks for at once, and more objects than any token has.
const FIND_BATCH: usize = 32;
const MAX_FOUND_OBJECTS: usize = 1 << 20;
/// More mechanisms than any token has.
const MAX_MECHANISMS: usize = 16 * 1024;
/// Enough for any attribute of [`Raw::attributes`]: a short list of mechanisms.
const SMALL_OUTPUT_BYTES: usize = 64;
/// Enough for nearly any attribute: an RSA-4096 modulus has 512 bytes.
const LIKELY_OUTPUT_BYTES: usize = 1024;

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// A template as the token tells it.
pub(crate) type Attributes = Vec<(CK_ATTRIBUTE_TYPE, Vec<u8>)>;

/// How a key is wrapped or unwrapped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wrapping {
    /// A mechanism without parameters.
    Plain(CK_MECHANISM_TYPE),
    /// AES in a mode whose parameter is an IV of 16 bytes, here zeros.
    Iv(CK_MECHANISM_TYPE),
    /// The same of a cipher with blocks of 8 bytes.
    ShortIv(CK_MECHANISM_TYPE),
    /// AES-GCM with an IV of zeros.
    Gcm,
    /// AES-CTR from a counter of zeros.
    Ctr,
    /// AES-CCM of 32 bytes with a nonce of zeros.
    Ccm,
    /// `ChaCha20` with counter and nonce of zeros.
    ChaCha20,
    /// The same with Poly1305.
    ChaCha20Poly1305,
    /// An AES-256 key agreed with an EC key, and the wrapped key under that.
    EcdhAes,
    /// An AES-256 key that goes by RSA-OAEP, and the wrapped key under that.
    RsaAes(OaepHash),
    /// RSA-OAEP with one hash for label and MGF1, and an empty label.
    Oaep(OaepHash),
}

/// What `C_DeriveKey` is given beside the base key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Derivation<'a> {
    Nothing,
    Data(&'a [u8]),
    Key(ObjectHandle),
    /// A bit's place in the base key.
    Bit(CK_ULONG),
}

/// `C_EncryptInit`, `C_DecryptInit`, `C_SignInit`, `C_SignRecoverInit`.
type Begin = unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_MECHANISM, CK_OBJECT_HANDLE) -> CK_RV;
/// `C_Encrypt`, `C_Decrypt`, `C_Sign`, `C_SignRecover`.
type CarryOut = unsafe extern "C" fn(
    CK_SESSION_HANDLE,
    *mut CK_BYTE,
    CK_ULONG,
    *mut CK_BYTE,
    *mut CK_ULONG,
) -> CK_RV;

/// The function list of a loaded module.
pub(crate) struct Raw {
    list: CK_FUNCTION_LIST,
    // Keeps the library mapped as long as `list` points into it.
    _library: cryptoki_sys::Pkcs11,
}

/// Calls a function of the list and turns its `CK_RV` into a result.
macro_rules! call {
    ($raw:expr, $field:ident, $function:ident, $($argument:expr),+) => {
        match $raw.list.$field {
            Some(function) => checked(function($($argument),+), Function::$function),
            None => Err(Error::NullFunctionPointer),
        }
    };
}

mod session;

pub(crate) use session::Session;

impl Raw {
    /// Loads the library and fetches its function list: once, since some modules make another for
    /// each that asks.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        // SAFETY: loading runs the library's initializers. It is the module that the operator
        // chose, and trusts with the keys.
        let library = unsafe { cryptoki_sys::Pkcs11::new(path) }.map_err(Error::LibraryLoading)?;
        let Ok(get_function_list) = library.C_GetFunctionList.as_ref() else {
            return Err(Error::MissingSymbol("C_GetFunctionList"));
        };
        let mut list = ptr::null_mut();
        // SAFETY: the symbol has the type that PKCS#11 gives it, and `list` is valid for one
        // pointer.
        let rv = unsafe { get_function_list(&raw mut list) };
        checked(rv, Function::GetFunctionList)?;
        if list.is_null() {
            return Err(Error::NullFunctionPointer);
        }
        Ok(Self {
            // SAFETY: on success the module stored a pointer to its list, which lives as long as
            // the library.
            list: unsafe { *list },
            _library: library,
        })
    }

    /// `C_GenerateKeyPair` with rules as templates, nested ones included: (public, private).
    pub(crate) fn generate_key_pair<'a>(
        &self,
        session: &Session,
        mechanism: CK_MECHANISM_TYPE,
        public: impl Iterator<Item = &'a Rule>,
        private: impl Iterator<Item = &'a Rule>,
    ) -> Result<(ObjectHandle, ObjectHandle)> {
        self.key_pair(
            session,
            mechanism,
            Template::new(public),
            Template::new(private),
        )
    }

    /// The same, with a `CKA_ID` for the private key.
    pub(crate) fn generate_key_pair_with_id<'a>(
        &self,
        session: &Session,
        mechanism: CK_MECHANISM_TYPE,
        public: impl Iterator<Item = &'a Rule>,
        private: impl Iterator<Item = &'a Rule>,
        id: &[u8; 16],
    ) -> Result<(ObjectHandle, ObjectHandle)> {
        let mut private = Template::new(private);
        // `id` outlives the call below, and with it the pointer.
        private.attributes.push(CK_ATTRIBUTE {
            type_: CKA_ID,
            pValue: id.as_ptr().cast_mut().cast(),
            ulValueLen: 16,
        });
        self.key_pair(session, mechanism, Template::new(public), private)
    }

    fn key_pair(
        &self,
        session: &Session,
        mechanism: CK_MECHANISM_TYPE,
        mut public: Template,
        mut private: Template,
    ) -> Result<(ObjectHandle, ObjectHandle)> {
        let mut mechanism = plain_mechanism(mechanism);
        let (mut public_key, mut private_key) = (0, 0);
        // SAFETY: both templates own everything they point to; lengths are the vectors' own.
        unsafe {
            call!(
                self,
                C_GenerateKeyPair,
                GenerateKeyPair,
                session.handle(),
                &raw mut mechanism,
                public.pointer(),
                public.len(),
                private.pointer(),
                private.len(),
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

    /// `C_GenerateKey` with rules as the template.
    pub(crate) fn generate_key<'a>(
        &self,
        session: &Session,
        mechanism: CK_MECHANISM_TYPE,
        rules: impl Iterator<Item = &'a Rule>,
    ) -> Result<ObjectHandle> {
        let mut mechanism = plain_mechanism(mechanism);
        let mut template = Template::new(rules);
        let mut key = 0;
        // SAFETY: as in `generate_key_pair`.
        unsafe {
            call!(
                self,
                C_GenerateKey,
                GenerateKey,
                session.handle(),
                &raw mut mechanism,
                template.pointer(),
                template.len(),
                &raw mut key
            )
        }?;
        // SAFETY: the module has just made this object and named its handle.
        Ok(unsafe { ObjectHandle::new_from_raw(key) })
    }

    /// `C_WrapKey`.
    pub(crate) fn wrap_key(
        &self,
        session: &Session,
        wrapping: Wrapping,
        wrapping_key: ObjectHandle,
        key: ObjectHandle,
    ) -> Result<Vec<u8>> {
        let mut parameters = WrappingParameters::new(wrapping);
        let mut mechanism = parameters.mechanism(wrapping);
        let mut wrapped = vec![0; MAX_ATTRIBUTE_BYTES];
        let mut length = CK_ULONG::try_from(wrapped.len())?;
        // SAFETY: as in `unwrap_key`; `wrapped` has room for `length` bytes, and the module writes
        // no more.
        unsafe {
            call!(
                self,
                C_WrapKey,
                WrapKey,
                session.handle(),
                &raw mut mechanism,
                wrapping_key.handle(),
                key.handle(),
                wrapped.as_mut_ptr(),
                &raw mut length
            )
        }?;
        shortened(wrapped, length).ok_or(Error::InvalidValue)
    }

    /// `C_UnwrapKey` with rules as the template.
    pub(crate) fn unwrap_key<'a>(
        &self,
        session: &Session,
        wrapping: Wrapping,
        unwrapping_key: ObjectHandle,
        wrapped: &[u8],
        rules: impl Iterator<Item = &'a Rule>,
    ) -> Result<ObjectHandle> {
        let mut template = Template::new(rules);
        let mut parameters = WrappingParameters::new(wrapping);
        let mut mechanism = parameters.mechanism(wrapping);
        let length = CK_ULONG::try_from(wrapped.len())?;
        let mut key = 0;
        // SAFETY: as in `generate_key_pair`; the mechanism points into `parameters` or nowhere; the
        // module does not write to `wrapped`.
        unsafe {
            call!(
                self,
                C_UnwrapKey,
                UnwrapKey,
                session.handle(),
                &raw mut mechanism,
                unwrapping_key.handle(),
                wrapped.as_ptr().cast_mut(),
                length,
                template.pointer(),
                template.len(),
                &raw mut key
            )
        }?;
        // SAFETY: the module has just made this object and named its handle.
        Ok(unsafe { ObjectHandle::new_from_raw(key) })
    }

    /// `C_DeriveKey` by a mechanism that cryptoki does not know.
    pub(crate) fn derive_key<'a>(
        &self,
        session: &Session,
        mechanism: CK_MECHANISM_TYPE,
        given: Derivation<'_>,
        base: ObjectHandle,
        rules: impl Iterator<Item = &'a Rule>,
    ) -> Result<ObjectHandle> {
        let mut string = CK_KEY_DERIVATION_STRING_DATA {
            pData: ptr::null_mut(),
            ulLen: 0,
        };
        let mut number: CK_ULONG;
        let mut mechanism = plain_mechanism(mechanism);
        match given {
            Derivation::Nothing => {}
            Derivation::Data(data) => {
                string.pData = data.as_ptr().cast_mut();
                string.ulLen = CK_ULONG::try_from(data.len())?;
                mechanism.pParameter = (&raw mut string).cast();
                mechanism.ulParameterLen = size_of::<CK_KEY_DERIVATION_STRING_DATA>() as CK_ULONG;
            }
            // Both are a CK_ULONG by another name.
            Derivation::Key(key) => {
                number = key.handle();
                mechanism.pParameter = (&raw mut number).cast();
                mechanism.ulParameterLen = size_of::<CK_OBJECT_HANDLE>() as CK_ULONG;
            }
            Derivation::Bit(bit) => {
                number = bit;
                mechanism.pParameter = (&raw mut number).cast();
                mechanism.ulParameterLen = size_of::<CK_EXTRACT_PARAMS>() as CK_ULONG;
            }
        }
        let mut template = Template::new(rules);
        let mut key = 0;
        // SAFETY: as in `generate_key_pair`; the mechanism points to `string` or `number`, which
        // outlive the call.
        unsafe {
            call!(
                self,
                C_DeriveKey,
                DeriveKey,
                session.handle(),
                &raw mut mechanism,
                base.handle(),
                template.pointer(),
                template.len(),
                &raw mut key
            )
        }?;
        // SAFETY: the module has just made this object and named its handle.
        Ok(unsafe { ObjectHandle::new_from_raw(key) })
    }

    /// All objects that a template matches.
    pub(crate) fn find_objects(
        &self,
        session: &Session,
        template: &[Attribute],
    ) -> Result<Vec<ObjectHandle>> {
        let mut template: Vec<CK_ATTRIBUTE> = template.iter().map(Into::into).collect();
        let count = CK_ULONG::try_from(template.len())?;
        // SAFETY: the attributes point into the caller's template, which outlives the call.
        unsafe {
            call!(
                self,
                C_FindObjectsInit,
                FindObjectsInit,
                session.handle(),
                template.as_mut_ptr(),
                count
            )
        }?;
        let found = self.found(session);
        // SAFETY: ends the search of this session, and touches no memory of ours.
        let ended = unsafe { call!(self, C_FindObjectsFinal, FindObjectsFinal, session.handle()) };
        let found = found?;
        ended.map(|()| found)
    }

    /// The rest of a search that has begun.
    fn found(&self, session: &Session) -> Result<Vec<ObjectHandle>> {
        let mut found = Vec::new();
        loop {
            let mut some: [CK_OBJECT_HANDLE; FIND_BATCH] = [0; FIND_BATCH];
            let mut count = 0;
            // SAFETY: `some` has room for as many handles as the call says, and the module writes
            // no more.
            unsafe {
                call!(
                    self,
                    C_FindObjects,
                    FindObjects,
                    session.handle(),
                    some.as_mut_ptr(),
                    FIND_BATCH as CK_ULONG,
                    &raw mut count
                )
            }?;
            let Some(told) = some.get(..usize::try_from(count)?) else {
                return Err(Error::InvalidValue);
            };
            if told.is_empty() {
                return Ok(found);
            }
            // A module that never ends its list must not fill the memory.
            if found.len() > MAX_FOUND_OBJECTS {
                return Err(Error::InvalidValue);
            }
            // SAFETY: the module has just named these handles.
            found.extend(
                told.iter()
                    .map(|handle| unsafe { ObjectHandle::new_from_raw(*handle) }),
            );
        }
    }

    /// `C_Sign` in one part and one call.
    pub(crate) fn sign(
        &self,
        session: &Session,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        data: &[u8],
    ) -> Result<Vec<u8>> {
        Self::in_likely_room(
            session,
            (self.list.C_SignInit, Function::SignInit),
            (self.list.C_Sign, Function::Sign),
            &mut mechanism.into(),
            key,
            data,
        )
    }

    /// `C_SignRecover` in one call.
    pub(crate) fn sign_recover(
        &self,
        session: &Session,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        data: &[u8],
    ) -> Result<Vec<u8>> {
        Self::in_likely_room(
            session,
            (self.list.C_SignRecoverInit, Function::SignRecoverInit),
            (self.list.C_SignRecover, Function::SignRecover),
            &mut mechanism.into(),
            key,
            data,
        )
    }

    /// `C_Encrypt` in one part and one call, by a mechanism whose output fits into
    /// [`LIKELY_OUTPUT_BYTES`].
    pub(crate) fn encrypt(
        &self,
        session: &Session,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        data: &[u8],
    ) -> Result<Vec<u8>> {
        Self::in_likely_room(
            session,
            (self.list.C_EncryptInit, Function::EncryptInit),
            (self.list.C_Encrypt, Function::Encrypt),
            &mut mechanism.into(),
            key,
            data,
        )
    }

    /// `C_Decrypt` in one part and one call, by a mechanism whose output is no longer than its
    /// input.
    pub(crate) fn decrypt(
        &self,
        session: &Session,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        data: &[u8],
    ) -> Result<Vec<u8>> {
        // At least an RSA-4096 modulus: some modules want room for one.
        let mut output = Zeroizing::new(vec![0; data.len().max(LIKELY_OUTPUT_BYTES)]);
        Self::in_one_part(
            session,
            (self.list.C_DecryptInit, Function::DecryptInit),
            (self.list.C_Decrypt, Function::Decrypt),
            &mut mechanism.into(),
            key,
            data,
            &mut output,
        )?;
        Ok(std::mem::take(&mut *output))
    }

    /// As [`Raw::in_one_part`], for an answer that fits into [`LIKELY_OUTPUT_BYTES`].
    fn in_likely_room(
        session: &Session,
        begin: (Option<Begin>, Function),
        carry_out: (Option<CarryOut>, Function),
        mechanism: &mut CK_MECHANISM,
        key: ObjectHandle,
        data: &[u8],
    ) -> Result<Vec<u8>> {
        let mut output = vec![0; LIKELY_OUTPUT_BYTES];
        Self::in_one_part(session, begin, carry_out, mechanism, key, data, &mut output)?;
        Ok(output)
    }

    /// An operation begun and carried out in one part: `output` is as long as there is room, and
    /// afterwards as long as the answer.
    ///
    /// A failure of either call can be told by the error's `Function`. What the mechanism points to
    /// is borrowed by its maker for as long.
    #[allow(clippy::too_many_arguments)]
    fn in_one_part(
        session: &Session,
        (begin, begin_name): (Option<Begin>, Function),
        (carry_out, name): (Option<CarryOut>, Function),
        mechanism: &mut CK_MECHANISM,
        key: ObjectHandle,
        data: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<()> {
        let (Some(begin), Some(carry_out)) = (begin, carry_out) else {
            return Err(Error::NullFunctionPointer);
        };
        let mut length = CK_ULONG::try_from(output.len())?;
        let data_length = CK_ULONG::try_from(data.len())?;
        // SAFETY: what the mechanism points to belongs to this function's caller, and outlives both
        // calls as `data` and `output` do; `length` is the room in `output`. PKCS#11 takes
        // inputs as `*mut` but does not write to them.
        unsafe {
            checked(begin(session.handle(), mechanism, key.handle()), begin_name)?;
            checked(
                carry_out(
                    session.handle(),
                    data.as_ptr().cast_mut(),
                    data_length,
                    output.as_mut_ptr(),
                    &raw mut length,
                ),
                name,
            )
        }?;
        truncate(output, length)
    }

    /// `C_CreateObject` with rules as the template.
    pub(crate) fn create_object<'a>(
        &self,
        session: &Session,
        rules: impl Iterator<Item = &'a Rule>,
    ) -> Result<ObjectHandle> {
        let mut template = Template::new(rules);
        let mut object = 0;
        // SAFETY: as in `generate_key_pair`.
        unsafe {
            call!(
                self,
                C_CreateObject,
                CreateObject,
                session.handle(),
                template.pointer(),
                template.len(),
                &raw mut object
            )
        }?;
        // SAFETY: the module has just made this object and named its handle.
        Ok(unsafe { ObjectHandle::new_from_raw(object) })
    }

    /// `C_CopyObject` with rules as the template.
    pub(crate) fn copy_object<'a>(
        &self,
        session: &Session,
        object: ObjectHandle,
        rules: impl Iterator<Item = &'a Rule>,
    ) -> Result<ObjectHandle> {
        let mut template = Template::new(rules);
        let mut copy = 0;
        // SAFETY: as in `generate_key_pair`.
        unsafe {
            call!(
                self,
                C_CopyObject,
                CopyObject,
                session.handle(),
                object.handle(),
                template.pointer(),
                template.len(),
                &raw mut copy
            )
        }?;
        // SAFETY: the module has just made this object and named its handle.
        Ok(unsafe { ObjectHandle::new_from_raw(copy) })
    }

    /// `C_SetAttributeValue` of one attribute.
    pub(crate) fn set_attribute(
        &self,
        session: &Session,
        object: ObjectHandle,
        rule: &Rule,
    ) -> Result<()> {
        let mut template = Template::new(std::iter::once(rule));
        // SAFETY: as in `generate_key_pair`.
        unsafe {
            call!(
                self,
                C_SetAttributeValue,
                SetAttributeValue,
                session.handle(),
                object.handle(),
                template.pointer(),
                template.len()
            )
        }
    }

    /// The token's mechanisms, those too that cryptoki has no name for.
    pub(crate) fn mechanisms(&self, slot: Slot) -> Result<Vec<CK_MECHANISM_TYPE>> {
        let slot = slot.into();
        let mut count = 0;
        // SAFETY: with a null list the module writes the count alone.
        unsafe {
            call!(
                self,
                C_GetMechanismList,
                GetMechanismList,
                slot,
                ptr::null_mut(),
                &raw mut count
            )
        }?;
        let room = usize::try_from(count)?;
        if room > MAX_MECHANISMS {
            return Err(Error::InvalidValue);
        }
        let mut list = vec![0; room];
        // SAFETY: `list` has room for `count` mechanisms, and the module writes no more.
        unsafe {
            call!(
                self,
                C_GetMechanismList,
                GetMechanismList,
                slot,
                list.as_mut_ptr(),
                &raw mut count
            )
        }?;
        shortened(list, count).ok_or(Error::InvalidValue)
    }

    /// Small attributes of one object in one call, each as in [`Raw::attribute`].
    pub(crate) fn attributes(
        &self,
        session: &Session,
        object: ObjectHandle,
        attributes: &[CK_ATTRIBUTE_TYPE],
    ) -> Result<Vec<Option<Vec<u8>>>> {
        // Words, so that each value is aligned for whatever the module writes there.
        let mut room = vec![[0_u64; SMALL_OUTPUT_BYTES / 8]; attributes.len()];
        let mut queries: Vec<_> = attributes
            .iter()
            .zip(&mut room)
            .map(|(attribute, room)| CK_ATTRIBUTE {
                type_: *attribute,
                pValue: room.as_mut_ptr().cast(),
                ulValueLen: SMALL_OUTPUT_BYTES as CK_ULONG,
            })
            .collect();
        match self.get_attributes(session, object, &mut queries) {
            // Each says for itself whether it is there.
            Ok(_) | Err(Error::Pkcs11(RvError::BufferTooSmall, _)) => {}
            Err(error) => return Err(error),
        }
        let lengths: Vec<_> = queries.iter().map(|query| query.ulValueLen).collect();
        Ok(room
            .into_iter()
            .zip(lengths)
            .map(|(room, length)| {
                let bytes = room.iter().flat_map(|word| word.to_ne_bytes()).collect();
                shortened(bytes, length)
            })
            .collect())
    }

    /// One attribute's bytes; `None` if the object has no such attribute or does not tell it.
    pub(crate) fn attribute(
        &self,
        session: &Session,
        object: ObjectHandle,
        attribute: CK_ATTRIBUTE_TYPE,
    ) -> Result<Option<Vec<u8>>> {
        // With room for it at once: that saves a call, and p11-kit 0.25 can't answer for the length
        // of CKA_ALLOWED_MECHANISMS alone.
        let mut value = vec![0_u8; LIKELY_OUTPUT_BYTES];
        let mut query = empty_attribute(attribute);
        query.pValue = value.as_mut_ptr().cast();
        query.ulValueLen = CK_ULONG::try_from(value.len())?;
        match self.get_attributes(session, object, std::slice::from_mut(&mut query)) {
            Ok(true) => return Ok(shortened(value, query.ulValueLen)),
            Ok(false) => return Ok(None),
            Err(Error::Pkcs11(RvError::BufferTooSmall, _)) => {}
            Err(error) => return Err(error),
        }
        let mut query = empty_attribute(attribute);
        if !self.get_attributes(session, object, std::slice::from_mut(&mut query))? {
            return Ok(None);
        }
        let Some(mut value) = buffer(query.ulValueLen)? else {
            return Ok(None);
        };
        query.pValue = value.as_mut_ptr().cast();
        if !self.get_attributes(session, object, std::slice::from_mut(&mut query))? {
            return Ok(None);
        }
        Ok(shortened(value, query.ulValueLen))
    }

    /// `CKA_UNWRAP_TEMPLATE` as (attribute, bytes) pairs; `None` if the key has none.
    pub(crate) fn unwrap_template(
        &self,
        session: &Session,
        object: ObjectHandle,
    ) -> Result<Option<Attributes>> {
        const SIZE: usize = size_of::<CK_ATTRIBUTE>();
        let mut query = empty_attribute(CKA_UNWRAP_TEMPLATE);
        if !self.get_attributes(session, object, std::slice::from_mut(&mut query))? {
            return Ok(None);
        }
        let length = usize::try_from(query.ulValueLen)?;
        if length > MAX_ATTRIBUTE_BYTES || !length.is_multiple_of(SIZE) {
            return Err(Error::InvalidValue);
        }
        if length == 0 {
            return Ok(Some(Vec::new()));
        }
        // Asked a second time with null pointers inside, the module tells each attribute's type and
        // length ... The types are the module's to set; Kryoptic takes any but this one for
        // a question after that attribute.
        let mut inner = vec![empty_attribute(CK_UNAVAILABLE_INFORMATION); length / SIZE];
        query.pValue = inner.as_mut_ptr().cast();
        if !self.get_attributes(session, object, std::slice::from_mut(&mut query))? {
            return Ok(None);
        }
        // ... and a third time with room for it, the value.
        let mut values = Vec::with_capacity(inner.len());
        for attribute in &mut inner {
            let Some(mut value) = buffer(attribute.ulValueLen)? else {
                return Err(Error::InvalidValue);
            };
            attribute.pValue = value.as_mut_ptr().cast();
            values.push(value);
        }
        query.pValue = inner.as_mut_ptr().cast();
        if !self.get_attributes(session, object, std::slice::from_mut(&mut query))? {
            return Ok(None);
        }
        inner
            .iter()
            .zip(values)
            .map(|(attribute, value)| {
                shortened(value, attribute.ulValueLen)
                    .map(|value| (attribute.type_, value))
                    .ok_or(Error::InvalidValue)
            })
            .collect::<Result<Vec<_>>>()
            .map(Some)
    }

    /// AES-GCM encryption in one `C_Encrypt`: appends ciphertext || tag to `output`, which must be
    /// empty. [`Error::NotSupported`] if the token used an IV of its own.
    pub(crate) fn gcm_encrypt(
        &self,
        session: &Session,
        key: ObjectHandle,
        iv: &[u8; 12],
        aad: &[u8],
        data: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<()> {
        output.resize(data.len() + TAG_LEN, 0);
        // A place of its own: FIPS tokens write an IV of theirs there (AWS CloudHSM), whatever was
        // in it.
        let mut place = *iv;
        let mut parameters = gcm_parameters(&mut place, aad)?;
        let encrypted = Self::in_one_part(
            session,
            (self.list.C_EncryptInit, Function::EncryptInit),
            (self.list.C_Encrypt, Function::Encrypt),
            &mut gcm_mechanism(&mut parameters),
            key,
            data,
            output,
        );
        if encrypted.is_ok() && place != *iv {
            // Sealed under a nonce that nobody else knows of.
            output.clear();
            return Err(Error::NotSupported);
        }
        encrypted
    }

    /// AES-GCM decryption in one `C_Decrypt`; `data` is ciphertext || tag, the plaintext goes to
    /// `output`, which must be empty.
    ///
    /// A failure of `C_DecryptInit` and one of `C_Decrypt` can be told apart by the error's
    /// `Function`.
    pub(crate) fn gcm_decrypt(
        &self,
        session: &Session,
        key: ObjectHandle,
        iv: &[u8; 12],
        aad: &[u8],
        data: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<()> {
        // Room for the tag too: some modules check the buffer against the input's length.
        output.resize(data.len(), 0);
        let mut place = *iv;
        let mut parameters = gcm_parameters(&mut place, aad)?;
        Self::in_one_part(
            session,
            (self.list.C_DecryptInit, Function::DecryptInit),
            (self.list.C_Decrypt, Function::Decrypt),
            &mut gcm_mechanism(&mut parameters),
            key,
            data,
            output,
        )
    }

    /// `false` if the object has no such attribute or keeps it to itself.
    fn get_attributes(
        &self,
        session: &Session,
        object: ObjectHandle,
        attributes: &mut [CK_ATTRIBUTE],
    ) -> Result<bool> {
        let count = CK_ULONG::try_from(attributes.len())?;
        // SAFETY: each attribute's pointer is null or valid for the length beside it; the caller
        // keeps the buffers alive.
        let answer = unsafe {
            call!(
                self,
                C_GetAttributeValue,
                GetAttributeValue,
                session.handle(),
                object.handle(),
                attributes.as_mut_ptr(),
                count
            )
        };
        match answer {
            Ok(()) => Ok(true),
            Err(Error::Pkcs11(RvError::AttributeTypeInvalid | RvError::AttributeSensitive, _)) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// A `CK_ATTRIBUTE` array built from rules, with the nested arrays it points to.
struct Template {
    attributes: Vec<CK_ATTRIBUTE>,
    // Never touched again, but `attributes` points into them; moving a `Template` does not move
    // their heap memory.
    _nested: Vec<Template>,
    // Copies of the values, in words so that each is aligned: a table is in read-only memory,
    // where a module that writes must not be let.
    _values: Vec<Vec<CK_ULONG>>,
}

impl Template {
    fn new<'a>(rules: impl Iterator<Item = &'a Rule>) -> Self {
        let mut nested = Vec::new();
        let mut values = Vec::new();
        let mut own = |bytes: &[u8]| -> *mut c_void {
            let mut words: Vec<_> = bytes
                .chunks(size_of::<CK_ULONG>())
                .map(|chunk| {
                    let mut word = [0; size_of::<CK_ULONG>()];
                    word[..chunk.len()].copy_from_slice(chunk);
                    CK_ULONG::from_ne_bytes(word)
                })
                .collect();
            let place = words.as_mut_ptr();
            values.push(words);
            place.cast()
        };
        let attributes = rules
            .map(|rule| {
                let (pointer, length) = match &rule.value {
                    Value::Bool(value) => (own(&[u8::from(*value)]), 1),
                    Value::Ulong(value) => (own(&value.to_ne_bytes()), size_of_val(value)),
                    Value::Bytes(value) => (own(value), value.len()),
                    Value::Mechanisms(value) => {
                        let bytes: Vec<_> = value.iter().flat_map(|m| m.to_ne_bytes()).collect();
                        (own(&bytes), bytes.len())
                    }
                    Value::Template(rules) => {
                        let mut inner = Self::new(rules.iter());
                        let place = inner.attributes.as_mut_ptr().cast();
                        let length = size_of_val(inner.attributes.as_slice());
                        nested.push(inner);
                        (place, length)
                    }
                };
                CK_ATTRIBUTE {
                    type_: rule.attribute,
                    pValue: pointer,
                    // A template written in this program's source fits: usize and CK_ULONG have the
                    // same width on every Unix.
                    ulValueLen: length as CK_ULONG,
                }
            })
            .collect();
        Self {
            attributes,
            _nested: nested,
            _values: values,
        }
    }

    fn pointer(&mut self) -> *mut CK_ATTRIBUTE {
        self.attributes.as_mut_ptr()
    }

    fn len(&self) -> CK_ULONG {
        self.attributes.len() as CK_ULONG
    }
}

/// A copy of a constant as an input. PKCS#11 takes inputs as `*mut` too and says that modules don't
/// write to them; a caller's data are on the heap, where one that did would do no harm, but
/// constants are in read-only memory, where it would end the process.
pub(crate) fn writable(constant: &[u8]) -> Vec<u8> {
    constant.to_vec()
}

fn checked(answer: CK_RV, function: Function) -> Result<()> {
    Rv::from(answer).into_result(function)
}

fn plain_mechanism(mechanism: CK_MECHANISM_TYPE) -> CK_MECHANISM {
    CK_MECHANISM {
        mechanism,
        pParameter: ptr::null_mut(),
        ulParameterLen: 0,
    }
}

/// What the mechanism of a [`Wrapping`] points to.
struct WrappingParameters {
    iv: [u8; 16],
    oaep: CK_RSA_PKCS_OAEP_PARAMS,
    gcm: CK_GCM_PARAMS,
    rsa_aes: CK_RSA_AES_KEY_WRAP_PARAMS,
    ctr: CK_AES_CTR_PARAMS,
    ccm: CK_CCM_PARAMS,
    chacha20: CK_CHACHA20_PARAMS,
    poly1305: CK_SALSA20_CHACHA20_POLY1305_PARAMS,
    ecdh_aes: CK_ECDH_AES_KEY_WRAP_PARAMS,
    counter: [u8; 4],
}

impl WrappingParameters {
    fn new(wrapping: Wrapping) -> Self {
        let (hash, mgf) = match wrapping {
            Wrapping::Oaep(OaepHash::Sha256) | Wrapping::RsaAes(OaepHash::Sha256) => {
                (CKM_SHA256, CKG_MGF1_SHA256)
            }
            _ => (CKM_SHA_1, CKG_MGF1_SHA1),
        };
        Self {
            iv: [0; 16],
            oaep: CK_RSA_PKCS_OAEP_PARAMS {
                hashAlg: hash,
                mgf,
                source: CKZ_DATA_SPECIFIED,
                pSourceData: ptr::null_mut(),
                ulSourceDataLen: 0,
            },
            gcm: CK_GCM_PARAMS {
                pIv: ptr::null_mut(),
                ulIvLen: 12,
                ulIvBits: 96,
                pAAD: ptr::null_mut(),
                ulAADLen: 0,
                ulTagBits: 128,
            },
            rsa_aes: CK_RSA_AES_KEY_WRAP_PARAMS {
                ulAESKeyBits: 256,
                pOAEPParams: ptr::null_mut(),
            },
            ctr: CK_AES_CTR_PARAMS {
                ulCounterBits: 128,
                cb: [0; 16],
            },
            ccm: CK_CCM_PARAMS {
                ulDataLen: 32,
                pNonce: ptr::null_mut(),
                ulNonceLen: 12,
                pAAD: ptr::null_mut(),
                ulAADLen: 0,
                ulMACLen: 16,
            },
            chacha20: CK_CHACHA20_PARAMS {
                pBlockCounter: ptr::null_mut(),
                blockCounterBits: 32,
                pNonce: ptr::null_mut(),
                ulNonceBits: 96,
            },
            poly1305: CK_SALSA20_CHACHA20_POLY1305_PARAMS {
                pNonce: ptr::null_mut(),
                ulNonceLen: 12,
                pAAD: ptr::null_mut(),
                ulAADLen: 0,
            },
            ecdh_aes: CK_ECDH_AES_KEY_WRAP_PARAMS {
                ulAESKeyBits: 256,
                kdf: CKD_SHA256_KDF,
                ulSharedDataLen: 0,
                pSharedData: ptr::null_mut(),
            },
            counter: [0; 4],
        }
    }

    /// The mechanism points into this, which must outlive its use.
    fn mechanism(&mut self, wrapping: Wrapping) -> CK_MECHANISM {
        let (mechanism, place, length): (_, *mut c_void, _) = match wrapping {
            Wrapping::Plain(mechanism) => return plain_mechanism(mechanism),
            Wrapping::Iv(mechanism) => (
                mechanism,
                self.iv.as_mut_ptr().cast(),
                size_of_val(&self.iv),
            ),
            Wrapping::ShortIv(mechanism) => (mechanism, self.iv.as_mut_ptr().cast(), 8),
            Wrapping::Ctr => (
                CKM_AES_CTR,
                (&raw mut self.ctr).cast(),
                size_of_val(&self.ctr),
            ),
            Wrapping::Ccm => {
                self.ccm.pNonce = self.iv.as_mut_ptr();
                let place = (&raw mut self.ccm).cast();
                (CKM_AES_CCM, place, size_of_val(&self.ccm))
            }
            Wrapping::ChaCha20 => {
                self.chacha20.pBlockCounter = self.counter.as_mut_ptr();
                self.chacha20.pNonce = self.iv.as_mut_ptr();
                let place = (&raw mut self.chacha20).cast();
                (CKM_CHACHA20, place, size_of_val(&self.chacha20))
            }
            Wrapping::ChaCha20Poly1305 => {
                self.poly1305.pNonce = self.iv.as_mut_ptr();
                let place = (&raw mut self.poly1305).cast();
                (CKM_CHACHA20_POLY1305, place, size_of_val(&self.poly1305))
            }
            Wrapping::EcdhAes => (
                CKM_ECDH_AES_KEY_WRAP,
                (&raw mut self.ecdh_aes).cast(),
                size_of_val(&self.ecdh_aes),
            ),
            Wrapping::Oaep(_) => (
                CKM_RSA_PKCS_OAEP,
                (&raw mut self.oaep).cast(),
                size_of_val(&self.oaep),
            ),
            Wrapping::Gcm => {
                self.gcm.pIv = self.iv.as_mut_ptr();
                let place = (&raw mut self.gcm).cast();
                (CKM_AES_GCM, place, size_of_val(&self.gcm))
            }
            Wrapping::RsaAes(_) => {
                self.rsa_aes.pOAEPParams = &raw mut self.oaep;
                let place = (&raw mut self.rsa_aes).cast();
                (CKM_RSA_AES_KEY_WRAP, place, size_of_val(&self.rsa_aes))
            }
        };
        CK_MECHANISM {
            mechanism,
            pParameter: place,
            ulParameterLen: length as CK_ULONG,
        }
    }
}

fn gcm_parameters(iv: &mut [u8; 12], aad: &[u8]) -> Result<CK_GCM_PARAMS> {
    Ok(CK_GCM_PARAMS {
        pIv: iv.as_mut_ptr(),
        ulIvLen: 12,
        ulIvBits: 96,
        pAAD: if aad.is_empty() {
            ptr::null_mut()
        } else {
            aad.as_ptr().cast_mut()
        },
        ulAADLen: CK_ULONG::try_from(aad.len())?,
        ulTagBits: 128,
    })
}

fn gcm_mechanism(parameters: &mut CK_GCM_PARAMS) -> CK_MECHANISM {
    CK_MECHANISM {
        mechanism: CKM_AES_GCM,
        pParameter: ptr::from_mut(parameters).cast(),
        ulParameterLen: size_of::<CK_GCM_PARAMS>() as CK_ULONG,
    }
}

fn empty_attribute(attribute: CK_ATTRIBUTE_TYPE) -> CK_ATTRIBUTE {
    CK_ATTRIBUTE {
        type_: attribute,
        pValue: ptr::null_mut(),
        ulValueLen: 0,
    }
}

/// Room for a value of the length that the module named; `None` if it names none.
fn buffer(length: CK_ULONG) -> Result<Option<Vec<u8>>> {
    if length == CK_UNAVAILABLE_INFORMATION {
        return Ok(None);
    }
    let length = usize::try_from(length)?;
    if length > MAX_ATTRIBUTE_BYTES {
        return Err(Error::InvalidValue);
    }
    Ok(Some(vec![0; length]))
}

/// The output as long as the module says; an error if it claims more than there was room for.
fn truncate(output: &mut Vec<u8>, length: CK_ULONG) -> Result<()> {
    let length = usize::try_from(length)?;
    if length > output.len() {
        return Err(Error::InvalidValue);
    }
    output.truncate(length);
    Ok(())
}

/// The value without what the module did not fill; `None` if it claims more than there was room
/// for.
fn shortened<T>(mut value: Vec<T>, length: CK_ULONG) -> Option<Vec<T>> {
    let length = usize::try_from(length)
        .ok()
        .filter(|length| *length <= value.len())?;
    value.truncate(length);
    Some(value)
}
