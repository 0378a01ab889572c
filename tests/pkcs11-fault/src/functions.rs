//! The C functions. Most are generated: what differs between them is the arguments and what they
//! return while the token is absent.
//!
//! Only `C_GetFunctionList` is a symbol of the library; callers reach the others through its list.
//! Were they symbols as well, the real module's own references to its `C_` functions could be bound
//! to them.

#![allow(non_snake_case, reason = "PKCS#11's names")]

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

#[allow(clippy::wildcard_imports, reason = "a C header: over 30 of its types")]
use cryptoki_sys::*;

use crate::inject::{self, Outcome, WhenAbsent};
use crate::traits::{self, Call, Changed};
use crate::{codes, log, watch};

/// The list of this module's functions (PKCS#11 2.40, section 5.4).
///
/// # Safety
/// `list` must be null or point to writable memory for one pointer.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    if list.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    log::line("C_GetFunctionList");
    // SAFETY: not null, and the caller vouches for the rest. The list is never written to: PKCS#11
    // forbids it to callers.
    unsafe { list.write((&raw const FUNCTIONS).cast_mut()) };
    CKR_OK
}

unsafe extern "C" fn C_Initialize(args: *mut c_void) -> CK_RV {
    guard(|| {
        let outcome = inject::call(Function::C_Initialize, WhenAbsent::Forward, |real, _| {
            // SAFETY: the caller's arguments, passed on unchanged to the same function of the real
            // module.
            real.C_Initialize.map(|function| unsafe { function(args) })
        });
        if outcome.value == CKR_OK {
            traits::forget();
            watch::start();
        }
        log::line(&format!("C_Initialize {outcome}"));
        outcome
    })
}

unsafe extern "C" fn C_Finalize(reserved: *mut c_void) -> CK_RV {
    guard(|| {
        let outcome = inject::call(Function::C_Finalize, WhenAbsent::Forward, |real, _| {
            // SAFETY: as above.
            real.C_Finalize
                .map(|function| unsafe { function(reserved) })
        });
        if outcome.value == CKR_OK {
            watch::stop();
        }
        log::line(&format!("C_Finalize {outcome}"));
        outcome
    })
}

/// While the token is absent, the list of slots with a token is empty.
unsafe extern "C" fn C_GetSlotList(
    token_present: CK_BBOOL,
    list: *mut CK_SLOT_ID,
    count: *mut CK_ULONG,
) -> CK_RV {
    guard(|| {
        inject::call(
            Function::C_GetSlotList,
            WhenAbsent::Forward,
            |real, control| {
                if control.token_absent && token_present != CK_FALSE && !count.is_null() {
                    // SAFETY: not null; the caller must give a place for the count.
                    unsafe { count.write(0) };
                    return Some(CKR_OK);
                }
                // SAFETY: as above.
                real.C_GetSlotList
                    .map(|function| unsafe { function(token_present, list, count) })
            },
        )
    })
}

/// While the token is absent, its slot says so.
unsafe extern "C" fn C_GetSlotInfo(slot: CK_SLOT_ID, info: *mut CK_SLOT_INFO) -> CK_RV {
    guard(|| {
        inject::call(
            Function::C_GetSlotInfo,
            WhenAbsent::Forward,
            |real, control| {
                // SAFETY: as above.
                let value = real
                    .C_GetSlotInfo
                    .map(|function| unsafe { function(slot, info) });
                if control.token_absent && value == Some(CKR_OK) {
                    // SAFETY: the real module has just filled in `info`, so it points to a
                    // CK_SLOT_INFO.
                    unsafe { (*info).flags &= !CKF_TOKEN_PRESENT };
                }
                value
            },
        )
    })
}

/// Logged, but for the PIN: a test counts the attempts.
unsafe extern "C" fn C_Login(
    session: CK_SESSION_HANDLE,
    user: CK_USER_TYPE,
    pin: *mut CK_UTF8CHAR,
    pin_len: CK_ULONG,
) -> CK_RV {
    guard(|| {
        let outcome = inject::call(
            Function::C_Login,
            WhenAbsent::Return(CKR_DEVICE_REMOVED),
            |real, _| {
                // SAFETY: as above.
                real.C_Login
                    .map(|function| unsafe { function(session, user, pin, pin_len) })
            },
        );
        let user = match user {
            CKU_SO => "CKU_SO",
            CKU_USER => "CKU_USER",
            CKU_CONTEXT_SPECIFIC => "CKU_CONTEXT_SPECIFIC",
            _ => "CKU_UNKNOWN",
        };
        log::line(&format!("C_Login {user} {outcome}"));
        outcome
    })
}

unsafe extern "C" fn C_CreateObject(
    session: CK_SESSION_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
    object: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    guard(|| {
        inject::call(
            Function::C_CreateObject,
            WhenAbsent::session,
            |real, control| {
                let call = Call {
                    template,
                    count,
                    ..Call::new(session)
                };
                // SAFETY: the caller's arguments.
                let control = &*unsafe { call.control(control, real) };
                let function = real.C_CreateObject?;
                let changed = Changed {
                    function: Function::C_CreateObject,
                    control,
                    template,
                    count,
                };
                // SAFETY: the caller's arguments, the template but for what `Changed` changes; see
                // there.
                Some(unsafe {
                    changed.forward(object, |template, count| {
                        function(session, template, count, object)
                    })
                })
            },
        )
    })
}

unsafe extern "C" fn C_CopyObject(
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
    copy: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    guard(|| {
        inject::call(
            Function::C_CopyObject,
            WhenAbsent::session,
            |real, control| {
                let call = Call {
                    key: object,
                    template,
                    count,
                    ..Call::new(session)
                };
                // SAFETY: the caller's arguments.
                let control = &*unsafe { call.control(control, real) };
                let function = real.C_CopyObject?;
                let changed = Changed {
                    function: Function::C_CopyObject,
                    control,
                    template,
                    count,
                };
                // SAFETY: the caller's arguments.
                if let Some(value) = unsafe { changed.copied(real, session, object, copy) } {
                    return Some(value);
                }
                // SAFETY: the caller's arguments, the template but for what `Changed` changes; see
                // there.
                Some(unsafe {
                    changed.forward(copy, |template, count| {
                        function(session, object, template, count, copy)
                    })
                })
            },
        )
    })
}

unsafe extern "C" fn C_SetAttributeValue(
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
) -> CK_RV {
    guard(|| {
        inject::call(
            Function::C_SetAttributeValue,
            WhenAbsent::session,
            |real, control| {
                let call = Call {
                    key: object,
                    template,
                    count,
                    ..Call::new(session)
                };
                // SAFETY: the caller's arguments.
                let control = &*unsafe { call.control(control, real) };
                // SAFETY: the caller's arguments.
                let value = unsafe { real.C_SetAttributeValue?(session, object, template, count) };
                // SAFETY: as above.
                Some(unsafe { traits::set(control, value, object, template, count) })
            },
        )
    })
}

unsafe extern "C" fn C_GetAttributeValue(
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
) -> CK_RV {
    guard(|| {
        inject::call(
            Function::C_GetAttributeValue,
            WhenAbsent::session,
            |real, _| {
                // SAFETY: the caller's arguments.
                let room = unsafe { traits::room(template, count) };
                // SAFETY: as above.
                let value = unsafe {
                    real.C_GetAttributeValue?(session, traits::original(object), template, count)
                };
                // SAFETY: as above.
                Some(unsafe { traits::told(value, &room, object, template, count) })
            },
        )
    })
}

unsafe extern "C" fn C_GenerateKey(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
    key: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    guard(|| {
        inject::call(
            Function::C_GenerateKey,
            WhenAbsent::session,
            |real, control| {
                let call = Call {
                    mechanism,
                    template,
                    count,
                    ..Call::new(session)
                };
                // SAFETY: the caller's arguments.
                let control = &*unsafe { call.control(control, real) };
                let function = real.C_GenerateKey?;
                let changed = Changed {
                    function: Function::C_GenerateKey,
                    control,
                    template,
                    count,
                };
                // SAFETY: the caller's arguments.
                if let Some(value) = unsafe { changed.made(real, session, mechanism, key) } {
                    return Some(value);
                }
                // SAFETY: the caller's arguments, the template but for what `Changed` changes; see
                // there.
                Some(unsafe {
                    changed.forward(key, |template, count| {
                        function(session, mechanism, template, count, key)
                    })
                })
            },
        )
    })
}

unsafe extern "C" fn C_GenerateKeyPair(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    public: *mut CK_ATTRIBUTE,
    public_count: CK_ULONG,
    private: *mut CK_ATTRIBUTE,
    private_count: CK_ULONG,
    public_key: *mut CK_OBJECT_HANDLE,
    private_key: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    guard(|| {
        inject::call(
            Function::C_GenerateKeyPair,
            WhenAbsent::session,
            |real, control| {
                let call = Call {
                    mechanism,
                    template: public,
                    count: public_count,
                    ..Call::new(session)
                };
                // SAFETY: the caller's arguments.
                let control = &*unsafe { call.control(control, real) };
                let function = real.C_GenerateKeyPair?;
                // SAFETY: the caller's arguments.
                let (mut private, _inner) =
                    unsafe { traits::unforced(control, private, private_count) };
                let private_count = private.len() as CK_ULONG;
                let private = private.as_mut_ptr();
                let changed = Changed {
                    function: Function::C_GenerateKeyPair,
                    control,
                    template: public,
                    count: public_count,
                };
                // SAFETY: as in `C_CreateObject`.
                Some(unsafe {
                    changed.forward(public_key, |public, public_count| {
                        function(
                            session,
                            mechanism,
                            public,
                            public_count,
                            private,
                            private_count,
                            public_key,
                            private_key,
                        )
                    })
                })
            },
        )
    })
}

unsafe extern "C" fn C_UnwrapKey(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    unwrapping_key: CK_OBJECT_HANDLE,
    input: *mut CK_BYTE,
    input_len: CK_ULONG,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
    key: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    guard(|| {
        inject::call(
            Function::C_UnwrapKey,
            WhenAbsent::session,
            |real, control| {
                let call = Call {
                    key: unwrapping_key,
                    mechanism,
                    template,
                    count,
                    ..Call::new(session)
                };
                // SAFETY: the caller's arguments.
                let control = &*unsafe { call.control(control, real) };
                // SAFETY: the caller's arguments.
                unsafe {
                    traits::mechanism(control, mechanism);
                    traits::input(control, input.cast(), input_len);
                };
                if control.refuses(Function::C_UnwrapKey) {
                    return Some(CKR_WRAPPED_KEY_INVALID);
                }
                let function = real.C_UnwrapKey?;
                let changed = Changed {
                    function: Function::C_UnwrapKey,
                    control,
                    template,
                    count,
                };
                // SAFETY: the caller's arguments.
                if let Some(value) = unsafe { changed.made(real, session, mechanism, key) } {
                    return Some(value);
                }
                // SAFETY: the caller's arguments, the template but for what `Changed` changes; see
                // there.
                Some(unsafe {
                    changed.forward(key, |template, count| {
                        function(
                            session,
                            mechanism,
                            unwrapping_key,
                            input,
                            input_len,
                            template,
                            count,
                            key,
                        )
                    })
                })
            },
        )
    })
}

unsafe extern "C" fn C_DeriveKey(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    base: CK_OBJECT_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
    key: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    guard(|| {
        inject::call(
            Function::C_DeriveKey,
            WhenAbsent::session,
            |real, control| {
                let call = Call {
                    key: base,
                    mechanism,
                    template,
                    count,
                    ..Call::new(session)
                };
                // SAFETY: the caller's arguments.
                let control = &*unsafe { call.control(control, real) };
                let function = real.C_DeriveKey?;
                let changed = Changed {
                    function: Function::C_DeriveKey,
                    control,
                    template,
                    count,
                };
                // SAFETY: the caller's arguments.
                if let Some(value) = unsafe { changed.made(real, session, mechanism, key) } {
                    return Some(value);
                }
                // SAFETY: the caller's arguments, the template but for what `Changed` changes; see
                // there.
                Some(unsafe {
                    changed.forward(key, |template, count| {
                        function(session, mechanism, base, template, count, key)
                    })
                })
            },
        )
    })
}

unsafe extern "C" fn C_WrapKey(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    wrapping_key: CK_OBJECT_HANDLE,
    key: CK_OBJECT_HANDLE,
    output: *mut CK_BYTE,
    output_len: *mut CK_ULONG,
) -> CK_RV {
    guard(|| {
        inject::call(Function::C_WrapKey, WhenAbsent::session, |real, control| {
            let call = Call {
                key: wrapping_key,
                of: key,
                mechanism,
                ..Call::new(session)
            };
            // SAFETY: the caller's arguments.
            let control = &*unsafe { call.control(control, real) };
            // SAFETY: the caller's arguments.
            let value = unsafe {
                real.C_WrapKey?(session, mechanism, wrapping_key, key, output, output_len)
            };
            // SAFETY: as above.
            Some(unsafe { traits::wrapped(control, value, output, output_len) })
        })
    })
}

/// The functions that begin an operation with a key.
macro_rules! begin {
    ($($name:ident)*) => {$(
        unsafe extern "C" fn $name(
            session: CK_SESSION_HANDLE,
            mechanism: *mut CK_MECHANISM,
            key: CK_OBJECT_HANDLE,
        ) -> CK_RV {
            guard(|| {
                inject::call(Function::$name, WhenAbsent::session, |real, control| {
                    let call = Call { key, mechanism, ..Call::new(session) };
                    // SAFETY: the caller's arguments.
                    let control = &*unsafe { call.control(control, real) };
                    // SAFETY: the caller's arguments.
                    unsafe { traits::mechanism(control, mechanism) };
                    // SAFETY: as above.
                    let value = unsafe { real.$name?(session, mechanism, key) };
                    Some(traits::begun(control, Function::$name, value, session))
                })
            })
        }
    )*};
}

begin! { C_EncryptInit C_DecryptInit C_SignInit C_SignRecoverInit }

/// The functions that carry it out in one part.
macro_rules! carry_out {
    ($($name:ident)*) => {$(
        unsafe extern "C" fn $name(
            session: CK_SESSION_HANDLE,
            input: *mut CK_BYTE,
            input_len: CK_ULONG,
            output: *mut CK_BYTE,
            output_len: *mut CK_ULONG,
        ) -> CK_RV {
            guard(|| {
                inject::call(Function::$name, WhenAbsent::session, |real, control| {
                    // SAFETY: the caller's arguments.
                    unsafe { traits::input(control, input.cast(), input_len) };
                    if traits::is_pretended(session) {
                        // SAFETY: as above.
                        return Some(unsafe { traits::nothing(output, output_len) });
                    }
                    // SAFETY: as above.
                    let value = unsafe {
                        real.$name?(session, input, input_len, output, output_len)
                    };
                    // SAFETY: as above.
                    Some(unsafe { traits::output(control, Function::$name, value, output_len) })
                })
            })
        }
    )*};
}

carry_out! { C_Encrypt C_Decrypt C_Sign C_SignRecover }

unsafe extern "C" fn C_FindObjects(
    session: CK_SESSION_HANDLE,
    objects: *mut CK_OBJECT_HANDLE,
    max: CK_ULONG,
    count: *mut CK_ULONG,
) -> CK_RV {
    guard(|| {
        inject::call(
            Function::C_FindObjects,
            WhenAbsent::session,
            |real, control| {
                // SAFETY: the caller's arguments.
                let value = unsafe { real.C_FindObjects?(session, objects, max, count) };
                // SAFETY: as above.
                let value =
                    unsafe { traits::output(control, Function::C_FindObjects, value, count) };
                // SAFETY: as above.
                unsafe { traits::found(control, real, session, value, objects, count) };
                Some(value)
            },
        )
    })
}

unsafe extern "C" fn C_GetTokenInfo(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) -> CK_RV {
    guard(|| {
        inject::call(
            Function::C_GetTokenInfo,
            WhenAbsent::slot,
            |real, control| {
                // SAFETY: the caller's arguments.
                let value = unsafe { real.C_GetTokenInfo?(slot, info) };
                // SAFETY: as above.
                unsafe { traits::token_info(control, value, info) };
                Some(value)
            },
        )
    })
}

unsafe extern "C" fn C_GetMechanismList(
    slot: CK_SLOT_ID,
    list: *mut CK_MECHANISM_TYPE,
    count: *mut CK_ULONG,
) -> CK_RV {
    guard(|| {
        inject::call(
            Function::C_GetMechanismList,
            WhenAbsent::slot,
            |real, control| {
                // SAFETY: the caller's arguments.
                Some(unsafe {
                    traits::mechanisms(control, list, count, |list, count| {
                        real.C_GetMechanismList
                            .map_or(CKR_FUNCTION_NOT_SUPPORTED, |function| {
                                function(slot, list, count)
                            })
                    })
                })
            },
        )
    })
}

unsafe extern "C" fn C_GetMechanismInfo(
    slot: CK_SLOT_ID,
    kind: CK_MECHANISM_TYPE,
    info: *mut CK_MECHANISM_INFO,
) -> CK_RV {
    guard(|| {
        inject::call(
            Function::C_GetMechanismInfo,
            WhenAbsent::slot,
            |real, control| {
                // SAFETY: the caller's arguments.
                let value = unsafe { real.C_GetMechanismInfo?(slot, kind, info) };
                // SAFETY: as above.
                Some(unsafe { traits::mechanism_info(control, value, kind, info) })
            },
        )
    })
}

/// Keeps a panic out of the caller's C code.
fn guard(body: impl FnOnce() -> Outcome) -> CK_RV {
    catch_unwind(AssertUnwindSafe(body)).map_or(CKR_GENERAL_ERROR, |outcome| outcome.value)
}

/// Makes `Function`, `FUNCTIONS`, and of each line of the second table the function that forwards.
macro_rules! functions {
    (by hand { $($hand:ident)* } forwarded { $($name:ident $kind:ident($($arg:ident: $type:ty),*);)* }) => {
        /// A function that calls are counted of and faults are injected into.
        #[allow(non_camel_case_types, clippy::enum_variant_names, reason = "PKCS#11's names")]
        #[derive(Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Function {
            $($hand,)*
            $($name,)*
        }

        impl Function {
            /// Every function, each at the place of its discriminant.
            pub(crate) const ALL: &[(&str, Self)] = &[$((stringify!($hand), Self::$hand),)* $((stringify!($name), Self::$name),)*];
        }

        $(
            unsafe extern "C" fn $name($($arg: $type),*) -> CK_RV {
                guard(|| {
                    inject::call(Function::$name, WhenAbsent::$kind, |real, _| {
                        // SAFETY: the caller's arguments, passed on unchanged to the same function of the real module.
                        real.$name.map(|function| unsafe { function($($arg),*) })
                    })
                })
            }
        )*

        static FUNCTIONS: CK_FUNCTION_LIST = CK_FUNCTION_LIST {
            version: CK_VERSION { major: 2, minor: 40 },
            C_GetFunctionList: Some(C_GetFunctionList),
            $($hand: Some($hand),)*
            $($name: Some($name),)*
        };
    };
}

impl Function {
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, function)| *function)
    }

    pub(crate) fn name(self) -> &'static str {
        Self::ALL.get(self as usize).map_or("", |(name, _)| name)
    }

    /// Whether `*` leaves it out: these concern the library, not a token.
    pub(crate) fn is_general(self) -> bool {
        matches!(
            self,
            Self::C_Initialize | Self::C_Finalize | Self::C_GetInfo
        )
    }
}

impl WhenAbsent {
    #![allow(non_upper_case_globals, reason = "words of the table below")]
    const general: Self = Self::Forward;
    const slot: Self = Self::Return(CKR_TOKEN_NOT_PRESENT);
    const session: Self = Self::Return(CKR_DEVICE_REMOVED);
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}{}",
            codes::name(self.value),
            if self.injected { " injected" } else { "" }
        )
    }
}

functions! {
    by hand {
        C_Initialize C_Finalize C_GetSlotList C_GetSlotInfo C_Login C_CreateObject C_CopyObject C_SetAttributeValue C_GetAttributeValue
        C_GenerateKey C_GenerateKeyPair C_UnwrapKey C_DeriveKey C_WrapKey C_EncryptInit C_DecryptInit C_SignInit C_SignRecoverInit
        C_Encrypt C_Decrypt C_Sign C_SignRecover C_FindObjects C_GetTokenInfo C_GetMechanismList C_GetMechanismInfo
    }
    forwarded {
        C_GetInfo general(info: *mut CK_INFO);
        C_InitToken slot(slot: CK_SLOT_ID, pin: *mut CK_UTF8CHAR, pin_len: CK_ULONG, label: *mut CK_UTF8CHAR);
        C_OpenSession slot(slot: CK_SLOT_ID, flags: CK_FLAGS, application: *mut c_void, notify: CK_NOTIFY, session: *mut CK_SESSION_HANDLE);
        C_CloseAllSessions slot(slot: CK_SLOT_ID);
        C_WaitForSlotEvent general(flags: CK_FLAGS, slot: *mut CK_SLOT_ID, reserved: *mut c_void);
        C_InitPIN session(session: CK_SESSION_HANDLE, pin: *mut CK_UTF8CHAR, pin_len: CK_ULONG);
        C_SetPIN session(session: CK_SESSION_HANDLE, old: *mut CK_UTF8CHAR, old_len: CK_ULONG, new: *mut CK_UTF8CHAR, new_len: CK_ULONG);
        C_CloseSession session(session: CK_SESSION_HANDLE);
        C_GetSessionInfo session(session: CK_SESSION_HANDLE, info: *mut CK_SESSION_INFO);
        C_GetOperationState session(session: CK_SESSION_HANDLE, state: *mut CK_BYTE, state_len: *mut CK_ULONG);
        C_SetOperationState session(session: CK_SESSION_HANDLE, state: *mut CK_BYTE, state_len: CK_ULONG, encryption: CK_OBJECT_HANDLE, authentication: CK_OBJECT_HANDLE);
        C_Logout session(session: CK_SESSION_HANDLE);
        C_DestroyObject session(session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE);
        C_GetObjectSize session(session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE, size: *mut CK_ULONG);
        C_FindObjectsInit session(session: CK_SESSION_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG);
        C_FindObjectsFinal session(session: CK_SESSION_HANDLE);
        C_EncryptUpdate session(session: CK_SESSION_HANDLE, input: *mut CK_BYTE, input_len: CK_ULONG, output: *mut CK_BYTE, output_len: *mut CK_ULONG);
        C_EncryptFinal session(session: CK_SESSION_HANDLE, output: *mut CK_BYTE, output_len: *mut CK_ULONG);
        C_DecryptUpdate session(session: CK_SESSION_HANDLE, input: *mut CK_BYTE, input_len: CK_ULONG, output: *mut CK_BYTE, output_len: *mut CK_ULONG);
        C_DecryptFinal session(session: CK_SESSION_HANDLE, output: *mut CK_BYTE, output_len: *mut CK_ULONG);
        C_DigestInit session(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM);
        C_Digest session(session: CK_SESSION_HANDLE, input: *mut CK_BYTE, input_len: CK_ULONG, output: *mut CK_BYTE, output_len: *mut CK_ULONG);
        C_DigestUpdate session(session: CK_SESSION_HANDLE, input: *mut CK_BYTE, input_len: CK_ULONG);
        C_DigestKey session(session: CK_SESSION_HANDLE, key: CK_OBJECT_HANDLE);
        C_DigestFinal session(session: CK_SESSION_HANDLE, output: *mut CK_BYTE, output_len: *mut CK_ULONG);
        C_SignUpdate session(session: CK_SESSION_HANDLE, input: *mut CK_BYTE, input_len: CK_ULONG);
        C_SignFinal session(session: CK_SESSION_HANDLE, output: *mut CK_BYTE, output_len: *mut CK_ULONG);
        C_VerifyInit session(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE);
        C_Verify session(session: CK_SESSION_HANDLE, input: *mut CK_BYTE, input_len: CK_ULONG, signature: *mut CK_BYTE, signature_len: CK_ULONG);
        C_VerifyUpdate session(session: CK_SESSION_HANDLE, input: *mut CK_BYTE, input_len: CK_ULONG);
        C_VerifyFinal session(session: CK_SESSION_HANDLE, signature: *mut CK_BYTE, signature_len: CK_ULONG);
        C_VerifyRecoverInit session(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE);
        C_VerifyRecover session(session: CK_SESSION_HANDLE, input: *mut CK_BYTE, input_len: CK_ULONG, output: *mut CK_BYTE, output_len: *mut CK_ULONG);
        C_DigestEncryptUpdate session(session: CK_SESSION_HANDLE, input: *mut CK_BYTE, input_len: CK_ULONG, output: *mut CK_BYTE, output_len: *mut CK_ULONG);
        C_DecryptDigestUpdate session(session: CK_SESSION_HANDLE, input: *mut CK_BYTE, input_len: CK_ULONG, output: *mut CK_BYTE, output_len: *mut CK_ULONG);
        C_SignEncryptUpdate session(session: CK_SESSION_HANDLE, input: *mut CK_BYTE, input_len: CK_ULONG, output: *mut CK_BYTE, output_len: *mut CK_ULONG);
        C_DecryptVerifyUpdate session(session: CK_SESSION_HANDLE, input: *mut CK_BYTE, input_len: CK_ULONG, output: *mut CK_BYTE, output_len: *mut CK_ULONG);
        C_SeedRandom session(session: CK_SESSION_HANDLE, input: *mut CK_BYTE, input_len: CK_ULONG);
        C_GenerateRandom session(session: CK_SESSION_HANDLE, output: *mut CK_BYTE, output_len: CK_ULONG);
        C_GetFunctionStatus session(session: CK_SESSION_HANDLE);
        C_CancelFunction session(session: CK_SESSION_HANDLE);
    }
}
