//! What real tokens do otherwise than they should, on one that does it right: attributes that are taken from anybody, and what objects then say of
//! themselves.

use std::collections::{HashMap, HashSet};
use std::ffi::c_void;
use std::slice;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_ATTRIBUTE_TYPE, CK_BYTE, CK_FUNCTION_LIST, CK_GCM_PARAMS, CK_MECHANISM,
    CK_MECHANISM_TYPE, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_ULONG,
    CK_UNAVAILABLE_INFORMATION, CKA_KEY_TYPE, CKA_TRUSTED, CKA_VALUE_LEN, CKK_AES, CKM_AES_GCM,
    CKM_AES_KEY_GEN, CKM_AES_KEY_WRAP_KWP, CKM_AES_KEY_WRAP_PAD, CKM_GENERIC_SECRET_KEY_GEN,
    CKR_BUFFER_TOO_SMALL, CKR_FUNCTION_NOT_SUPPORTED, CKR_KEY_FUNCTION_NOT_PERMITTED, CKR_OK,
};

use crate::control::Control;
use crate::functions::Function;

/// Bytes of what `allow C_WrapKey` gives out: as long as AES-256 under RFC 3394.
const WRAPPED: usize = 40;

/// What objects say of themselves that they are not; `None`: what they do not tell.
type Claims = HashMap<(CK_OBJECT_HANDLE, CK_ATTRIBUTE_TYPE), Option<Vec<u8>>>;

fn claims() -> MutexGuard<'static, Claims> {
    static CLAIMS: LazyLock<Mutex<Claims>> = LazyLock::new(Mutex::default);
    CLAIMS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was claimed before: handles are numbered anew.
pub(crate) fn forget() {
    claims().clear();
}

/// A call that makes an object by a template.
pub(crate) struct Changed<'a> {
    pub(crate) function: Function,
    pub(crate) control: &'a Control,
    pub(crate) template: *mut CK_ATTRIBUTE,
    pub(crate) count: CK_ULONG,
}

impl Changed<'_> {
    /// A key by the template, if the control file says that there be one in place of what was asked.
    ///
    /// # Safety
    /// All must be a caller's, `made` a place for a handle.
    pub(crate) unsafe fn made(
        &self,
        real: &CK_FUNCTION_LIST,
        session: CK_SESSION_HANDLE,
        mechanism: *const CK_MECHANISM,
        made: *mut CK_OBJECT_HANDLE,
    ) -> Option<CK_RV> {
        // SAFETY: the caller of this function vouches for them.
        let (mechanism, asked) =
            unsafe { (mechanism.as_ref()?, attributes(self.template, self.count)) };
        if !self
            .control
            .makes(self.function, mechanism.mechanism, asked)
        {
            return None;
        }
        let generate = real.C_GenerateKey?;
        let has = |name| asked.iter().find(|attribute| attribute.type_ == name);
        let mechanism = CK_MECHANISM {
            mechanism: match has(CKA_KEY_TYPE) {
                // SAFETY: a template's attributes point to as many bytes as they say.
                Some(kind) if unsafe { value_of(kind) } == CKK_AES.to_ne_bytes() => CKM_AES_KEY_GEN,
                _ => CKM_GENERIC_SECRET_KEY_GEN,
            },
            pParameter: std::ptr::null_mut(),
            ulParameterLen: 0,
        };
        let length: CK_ULONG = 32;
        // SAFETY: the caller's template, and a length that outlives the call.
        Some(unsafe {
            self.forward(made, |template, count| {
                let mut template = attributes(template, count).to_vec();
                if has(CKA_VALUE_LEN).is_none() {
                    template.push(CK_ATTRIBUTE {
                        type_: CKA_VALUE_LEN,
                        pValue: (&raw const length).cast_mut().cast(),
                        ulValueLen: size_of::<CK_ULONG>() as CK_ULONG,
                    });
                }
                let mut mechanism = mechanism;
                generate(
                    session,
                    &raw mut mechanism,
                    template.as_mut_ptr(),
                    template.len() as CK_ULONG,
                    made,
                )
            })
        })
    }

    /// Forwards it as it is, and, if that is refused, without what the control file has taken from anybody.
    ///
    /// # Safety
    /// Template and count must be a caller's, `made` a place for a handle that `forward` writes where it returns `CKR_OK`.
    pub(crate) unsafe fn forward(
        &self,
        made: *mut CK_OBJECT_HANDLE,
        forward: impl Fn(*mut CK_ATTRIBUTE, CK_ULONG) -> CK_RV,
    ) -> CK_RV {
        // SAFETY: the caller of this function vouches for both.
        let asked = unsafe { attributes(self.template, self.count) };
        for attribute in asked {
            // SAFETY: a template's attributes point to as many bytes as they say; in a nested one they are attributes, which are written back too.
            unsafe { input(self.control, attribute.pValue, attribute.ulValueLen) };
        }
        let mut asked: Vec<_> = asked
            .iter()
            .filter(|attribute| !self.control.drops(self.function, attribute.type_))
            .copied()
            .collect();
        let mut value = forward(asked.as_mut_ptr(), asked.len() as CK_ULONG);
        let mut obeyed = Vec::new();
        if value != CKR_OK {
            let mut changed = Vec::new();
            // Places for other values; each outlives the call.
            let mut others = vec![0_u8; asked.len()];
            let mut taken = false;
            for (attribute, other) in asked.iter().zip(&mut others) {
                let mut attribute = *attribute;
                if let Some(obeys) = self.control.takes(self.function, attribute.type_) {
                    taken = true;
                    // SAFETY: a template's attributes point to as many bytes as they say.
                    let bytes = unsafe { value_of(&attribute) }.to_vec();
                    *other = u8::from(bytes == [0]);
                    if obeys {
                        obeyed.push((attribute.type_, Some(bytes)));
                    }
                    if attribute.type_ == CKA_TRUSTED {
                        continue;
                    }
                    attribute.pValue = std::ptr::from_mut(other).cast();
                }
                changed.push(attribute);
            }
            if !taken {
                return value;
            }
            value = forward(changed.as_mut_ptr(), changed.len() as CK_ULONG);
        }
        if value == CKR_OK {
            // SAFETY: written just now.
            let made = unsafe { *made };
            let mut claims = claims();
            for (attribute, value) in self.control.claims(self.function).chain(obeyed) {
                claims.insert((made, attribute), value);
            }
            for (attribute, value) in self.control.silent(self.function) {
                if asked.iter().all(|one| one.type_ != attribute) {
                    claims.insert((made, attribute), value);
                }
            }
        }
        value
    }
}

/// What `C_SetAttributeValue` returns, of which the real module said `value`.
///
/// # Safety
/// Template and count must be a caller's.
pub(crate) unsafe fn set(
    control: &Control,
    value: CK_RV,
    object: CK_OBJECT_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
) -> CK_RV {
    if value == CKR_OK {
        return value;
    }
    // SAFETY: the caller of this function vouches for both.
    for attribute in unsafe { attributes(template, count) } {
        match control.takes(Function::C_SetAttributeValue, attribute.type_) {
            None => return value,
            Some(false) => {}
            Some(true) => {
                // SAFETY: as in `Changed::forward`.
                let bytes = unsafe { value_of(attribute) }.to_vec();
                claims().insert((object, attribute.type_), Some(bytes));
            }
        }
    }
    CKR_OK
}

/// What `C_GetAttributeValue` returns and tells, of which the real module said `value`.
///
/// # Safety
/// Template and count must be a caller's, filled in by the real module.
pub(crate) unsafe fn told(
    value: CK_RV,
    object: CK_OBJECT_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
) -> CK_RV {
    if template.is_null() {
        return value;
    }
    let Ok(count) = usize::try_from(count) else {
        return value;
    };
    let claims = claims();
    let mut all = count > 0;
    // SAFETY: the caller of this function vouches for both.
    for attribute in unsafe { slice::from_raw_parts_mut(template, count) } {
        match claims.get(&(object, attribute.type_)) {
            None => all = false,
            Some(None) => attribute.ulValueLen = CK_UNAVAILABLE_INFORMATION,
            Some(Some(claim)) => {
                // What the real module did not tell it has not measured either.
                let unmeasured = attribute.ulValueLen == CK_UNAVAILABLE_INFORMATION;
                if !attribute.pValue.is_null() {
                    if !unmeasured && attribute.ulValueLen < claim.len() as CK_ULONG {
                        return CKR_BUFFER_TOO_SMALL;
                    }
                    // SAFETY: there was room for as many bytes as the caller said, and these are short values in buffers for any.
                    unsafe {
                        std::ptr::copy_nonoverlapping(
                            claim.as_ptr(),
                            attribute.pValue.cast(),
                            claim.len(),
                        );
                    };
                }
                attribute.ulValueLen = claim.len() as CK_ULONG;
            }
        }
    }
    if all { CKR_OK } else { value }
}

/// What `C_WrapKey` returns, of which the real module said `value`.
///
/// # Safety
/// Output and length must be a caller's.
pub(crate) unsafe fn wrapped(
    control: &Control,
    value: CK_RV,
    output: *mut CK_BYTE,
    output_len: *mut CK_ULONG,
) -> CK_RV {
    if value == CKR_OK || !control.allows(Function::C_WrapKey) {
        return value;
    }
    // SAFETY: the caller of this function vouches for both.
    unsafe { nothing(output, output_len) }
}

/// Gives out some bytes of nothing.
///
/// # Safety
/// Output and length must be a caller's.
pub(crate) unsafe fn nothing(output: *mut CK_BYTE, output_len: *mut CK_ULONG) -> CK_RV {
    // SAFETY: the caller of this function vouches for both.
    unsafe {
        if !output.is_null() {
            if *output_len < WRAPPED as CK_ULONG {
                return CKR_BUFFER_TOO_SMALL;
            }
            output.write_bytes(0xaa, WRAPPED);
        }
        output_len.write(WRAPPED as CK_ULONG);
    }
    CKR_OK
}

/// Sessions with an operation that the real module refused to begin.
fn pretended() -> MutexGuard<'static, HashSet<CK_SESSION_HANDLE>> {
    static PRETENDED: LazyLock<Mutex<HashSet<CK_SESSION_HANDLE>>> = LazyLock::new(Mutex::default);
    PRETENDED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a function returns that begins an operation, of which the real module said `value`.
pub(crate) fn begun(
    control: &Control,
    function: Function,
    value: CK_RV,
    session: CK_SESSION_HANDLE,
) -> CK_RV {
    let lacks_the_right = [CKR_KEY_FUNCTION_NOT_PERMITTED, CKR_FUNCTION_NOT_SUPPORTED];
    if !lacks_the_right.contains(&value) || !control.allows(function) {
        pretended().remove(&session);
        return value;
    }
    pretended().insert(session);
    CKR_OK
}

/// Whether the operation that now ends was never begun.
pub(crate) fn is_pretended(session: CK_SESSION_HANDLE) -> bool {
    pretended().remove(&session)
}

/// What objects that were found say of themselves.
///
/// # Safety
/// Objects and count must be a caller's, filled in by the real module if `value` says so.
pub(crate) unsafe fn found(
    control: &Control,
    value: CK_RV,
    objects: *const CK_OBJECT_HANDLE,
    count: *const CK_ULONG,
) {
    if value != CKR_OK || control.is_overlong(Function::C_FindObjects) {
        return;
    }
    let mut claims = claims();
    // SAFETY: the caller of this function vouches for both.
    let objects =
        unsafe { slice::from_raw_parts(objects, usize::try_from(*count).unwrap_or_default()) };
    for object in objects {
        for (attribute, value) in control.claims(Function::C_FindObjects) {
            claims.insert((*object, attribute), value);
        }
    }
}

/// Writes to all that a mechanism points to, as far as the control file says.
///
/// # Safety
/// The mechanism must be a caller's.
pub(crate) unsafe fn mechanism(control: &Control, mechanism: *mut CK_MECHANISM) {
    // SAFETY: the caller of this function vouches for it.
    let Some(mechanism) = (unsafe { mechanism.as_mut() }) else {
        return;
    };
    // SAFETY: parameters are as long as the mechanism says.
    unsafe { input(control, mechanism.pParameter, mechanism.ulParameterLen) };
    if mechanism.mechanism == CKM_AES_GCM
        && mechanism.ulParameterLen == size_of::<CK_GCM_PARAMS>() as CK_ULONG
    {
        // SAFETY: this mechanism's parameters are of this type.
        let parameters = unsafe { &*mechanism.pParameter.cast::<CK_GCM_PARAMS>() };
        // SAFETY: each is as long as is said beside it.
        unsafe {
            input(control, parameters.pIv.cast(), parameters.ulIvLen);
            input(control, parameters.pAAD.cast(), parameters.ulAADLen);
            if control.own_iv && !parameters.pIv.is_null() {
                parameters.pIv.write(!parameters.pIv.read());
            }
        };
    }
    if control.kwp && mechanism.mechanism == CKM_AES_KEY_WRAP_KWP {
        mechanism.mechanism = CKM_AES_KEY_WRAP_PAD;
    }
}

/// Writes back each byte of an input as it is: what can't be written to ends the process.
///
/// # Safety
/// Null, or readable for that many bytes.
pub(crate) unsafe fn input(control: &Control, place: *mut c_void, length: CK_ULONG) {
    if !control.touch || place.is_null() {
        return;
    }
    let place = place.cast::<u8>();
    for offset in 0..usize::try_from(length).unwrap_or_default() {
        // SAFETY: the caller vouches for the length; whether it may be written to is the question.
        unsafe {
            let byte = place.add(offset);
            byte.write_volatile(byte.read_volatile());
        };
    }
}

/// What a function returns that tells a length or number, of which the real module said `value`.
///
/// # Safety
/// `length` must be a caller's.
pub(crate) unsafe fn output(
    control: &Control,
    function: Function,
    value: CK_RV,
    length: *mut CK_ULONG,
) -> CK_RV {
    if value == CKR_OK && control.blind && function == Function::C_FindObjects {
        // SAFETY: the caller of this function vouches for it.
        unsafe { length.write(0) };
    }
    if value == CKR_OK && control.is_overlong(function) {
        // SAFETY: the caller of this function vouches for it.
        unsafe { length.write(length.read() + (1 << 40)) };
    }
    value
}

/// What `C_GetMechanismList` returns and tells, of which the real module is asked by `real`.
///
/// # Safety
/// List and count must be a caller's.
pub(crate) unsafe fn mechanisms(
    control: &Control,
    list: *mut CK_MECHANISM_TYPE,
    count: *mut CK_ULONG,
    real: impl Fn(*mut CK_MECHANISM_TYPE, *mut CK_ULONG) -> CK_RV,
) -> CK_RV {
    let value = real(list, count);
    if value == CKR_OK {
        let offered: Vec<_> = control.offered().collect();
        // SAFETY: the real module has just written the count, and as many mechanisms if there is a list; a caller that asked for the count with the
        // same control file has room for those that are added.
        unsafe {
            let told = usize::try_from(*count).unwrap_or_default();
            if !list.is_null() {
                for (place, mechanism) in offered.iter().enumerate() {
                    list.add(told + place).write(*mechanism);
                }
            }
            count.write(*count + offered.len() as CK_ULONG);
        }
    }
    if value == CKR_OK && control.kwp && !list.is_null() {
        // SAFETY: there are as many.
        let list = unsafe { slice::from_raw_parts_mut(list, usize::try_from(*count).unwrap_or(0)) };
        for mechanism in list.iter_mut().filter(|one| **one == CKM_AES_KEY_WRAP_PAD) {
            *mechanism = CKM_AES_KEY_WRAP_KWP;
        }
    }
    // SAFETY: as in `output`.
    unsafe { output(control, Function::C_GetMechanismList, value, count) }
}

unsafe fn attributes<'a>(template: *const CK_ATTRIBUTE, count: CK_ULONG) -> &'a [CK_ATTRIBUTE] {
    match usize::try_from(count) {
        // SAFETY: the caller vouches for pointer and count.
        Ok(count) if !template.is_null() => unsafe { slice::from_raw_parts(template, count) },
        _ => &[],
    }
}

unsafe fn value_of(attribute: &CK_ATTRIBUTE) -> &[u8] {
    match usize::try_from(attribute.ulValueLen) {
        // SAFETY: the caller vouches for what the attribute points to.
        Ok(length) if !attribute.pValue.is_null() => unsafe {
            slice::from_raw_parts(attribute.pValue.cast(), length)
        },
        _ => &[],
    }
}
