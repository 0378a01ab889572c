//! What real tokens do otherwise than they should, on one that does it right: attributes that are
//! taken from anybody, and what objects then say of themselves.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ffi::c_void;
use std::slice;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_ATTRIBUTE_TYPE, CK_BYTE, CK_FALSE, CK_FUNCTION_LIST, CK_GCM_PARAMS,
    CK_KEY_TYPE, CK_MECHANISM, CK_MECHANISM_INFO, CK_MECHANISM_TYPE, CK_OBJECT_HANDLE, CK_RV,
    CK_SESSION_HANDLE, CK_TOKEN_INFO, CK_ULONG, CK_UNAVAILABLE_INFORMATION, CKA_CLASS,
    CKA_EXTRACTABLE, CKA_KEY_TYPE, CKA_LABEL, CKA_TOKEN, CKA_TRUSTED, CKA_UNWRAP_TEMPLATE,
    CKA_VALUE, CKA_VALUE_LEN, CKF_DERIVE, CKF_WRAP, CKK_AES, CKK_DES, CKK_DES2, CKK_DES3,
    CKK_GENERIC_SECRET, CKM_AES_GCM, CKM_AES_KEY_GEN, CKM_AES_KEY_WRAP_KWP, CKM_AES_KEY_WRAP_PAD,
    CKM_CONCATENATE_BASE_AND_KEY, CKM_DES_KEY_GEN, CKM_DES2_KEY_GEN, CKM_DES3_KEY_GEN,
    CKM_GENERIC_SECRET_KEY_GEN, CKO_DATA, CKR_ATTRIBUTE_TYPE_INVALID, CKR_BUFFER_TOO_SMALL,
    CKR_FUNCTION_NOT_SUPPORTED, CKR_KEY_FUNCTION_NOT_PERMITTED, CKR_KEY_NOT_WRAPPABLE, CKR_OK,
    CKR_TEMPLATE_INCONSISTENT,
};

use crate::control::{Control, Facts};
use crate::functions::Function;

/// Bytes of what `allow C_WrapKey` gives out: as long as AES-256 under RFC 3394.
const WRAPPED: usize = 40;

/// Types of keys, and what makes them.
const GENERATORS: [(CK_KEY_TYPE, CK_MECHANISM_TYPE); 4] = [
    (CKK_AES, CKM_AES_KEY_GEN),
    (CKK_DES, CKM_DES_KEY_GEN),
    (CKK_DES2, CKM_DES2_KEY_GEN),
    (CKK_DES3, CKM_DES3_KEY_GEN),
];

/// What objects say of themselves that they are not; `None`: what they do not tell.
type Claims = HashMap<(CK_OBJECT_HANDLE, CK_ATTRIBUTE_TYPE), Option<Vec<u8>>>;

fn claims() -> MutexGuard<'static, Claims> {
    static CLAIMS: LazyLock<Mutex<Claims>> = LazyLock::new(Mutex::default);
    CLAIMS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was claimed before: handles are numbered again.
pub(crate) fn forget() {
    claims().clear();
    copies().clear();
}

/// Copies that there are not: the object that each is, and the one that it says it is a copy of.
fn copies() -> MutexGuard<'static, HashMap<CK_OBJECT_HANDLE, CK_OBJECT_HANDLE>> {
    static COPIES: LazyLock<Mutex<HashMap<CK_OBJECT_HANDLE, CK_OBJECT_HANDLE>>> =
        LazyLock::new(Mutex::default);
    COPIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The object whose attributes are told for that one.
pub(crate) fn original(object: CK_OBJECT_HANDLE) -> CK_OBJECT_HANDLE {
    copies().get(&object).copied().unwrap_or(object)
}

/// A call's arguments.
pub(crate) struct Call {
    pub(crate) session: CK_SESSION_HANDLE,
    /// The key that it is done with.
    pub(crate) key: CK_OBJECT_HANDLE,
    /// The key that it is done to.
    pub(crate) of: CK_OBJECT_HANDLE,
    pub(crate) mechanism: *const CK_MECHANISM,
    pub(crate) template: *const CK_ATTRIBUTE,
    pub(crate) count: CK_ULONG,
}

impl Call {
    pub(crate) fn new(session: CK_SESSION_HANDLE) -> Self {
        Self {
            session,
            key: 0,
            of: 0,
            mechanism: std::ptr::null(),
            template: std::ptr::null(),
            count: 0,
        }
    }

    /// What the control file says of it.
    ///
    /// # Safety
    /// All must be a caller's.
    pub(crate) unsafe fn control<'a>(
        &self,
        control: &'a Control,
        real: &CK_FUNCTION_LIST,
    ) -> Cow<'a, Control> {
        control.about(|| {
            // SAFETY: the caller of this function vouches for all of them.
            unsafe {
                let mechanism = self.mechanism.as_ref();
                let second = mechanism
                    .filter(|one| one.mechanism == CKM_CONCATENATE_BASE_AND_KEY)
                    // SAFETY: this mechanism's parameter is a handle.
                    .and_then(|one| one.pParameter.cast::<CK_OBJECT_HANDLE>().as_ref());
                Facts {
                    key: label(real, self.session, self.key),
                    of: label(real, self.session, second.copied().unwrap_or(self.of)),
                    mechanism: mechanism.map(|one| one.mechanism),
                    template: attributes(self.template, self.count)
                        .iter()
                        .map(|one| (one.type_, value_of(one).to_vec()))
                        .collect(),
                }
            }
        })
    }
}

/// `CKA_LABEL` as the object says it; empty if it says none.
fn label(real: &CK_FUNCTION_LIST, session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE) -> Vec<u8> {
    if object == 0 {
        return Vec::new();
    }
    if let Some(claim) = claims().get(&(object, CKA_LABEL)) {
        return claim.clone().unwrap_or_default();
    }
    let mut label = vec![0_u8; 64];
    let mut query = CK_ATTRIBUTE {
        type_: CKA_LABEL,
        pValue: label.as_mut_ptr().cast(),
        ulValueLen: 64,
    };
    let value = real.C_GetAttributeValue.map(|function| {
        // SAFETY: one attribute, with room for as many bytes as it says.
        unsafe { function(session, original(object), &raw mut query, 1) }
    });
    let length = usize::try_from(query.ulValueLen).unwrap_or_default();
    match value {
        Some(CKR_OK) if length <= label.len() => label.truncate(length),
        _ => label.clear(),
    }
    label
}

/// A call that makes an object by a template.
pub(crate) struct Changed<'a> {
    pub(crate) function: Function,
    pub(crate) control: &'a Control,
    pub(crate) template: *mut CK_ATTRIBUTE,
    pub(crate) count: CK_ULONG,
}

impl Changed<'_> {
    /// A key by the template, if the control file says that there be one in place of what was
    /// asked.
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
        let has = |name| asked.iter().find(|attribute| attribute.type_ == name);
        let is = |name, value: CK_ULONG| {
            // SAFETY: a template's attributes point to as many bytes as they say.
            has(name).is_some_and(|one| unsafe { value_of(one) } == value.to_ne_bytes())
        };
        if is(CKA_CLASS, CKO_DATA) {
            // SAFETY: as above.
            return unsafe { data(real, session, made) };
        }
        let generate = real.C_GenerateKey?;
        let generator = GENERATORS.iter().find(|(kind, _)| is(CKA_KEY_TYPE, *kind));
        let is_secret = is(CKA_KEY_TYPE, CKK_GENERIC_SECRET);
        // A type whose keys the real module does not make is a generic secret.
        let is_other = generator.is_none() && !is_secret;
        let mechanism = generator.map_or(CKM_GENERIC_SECRET_KEY_GEN, |(_, mechanism)| *mechanism);
        let needs_length = [CKM_AES_KEY_GEN, CKM_GENERIC_SECRET_KEY_GEN].contains(&mechanism);
        let mechanism = CK_MECHANISM {
            mechanism,
            pParameter: std::ptr::null_mut(),
            ulParameterLen: 0,
        };
        let length: CK_ULONG = 32;
        // SAFETY: the caller's template, and a length that outlives the call.
        Some(unsafe {
            self.forward(made, |template, count| {
                let mut template = attributes(template, count).to_vec();
                template.retain(|one| !(is_other && one.type_ == CKA_KEY_TYPE));
                if needs_length && has(CKA_VALUE_LEN).is_none() {
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

    /// A copy of the object that says of itself what was asked, if the control file says that there
    /// be one.
    ///
    /// # Safety
    /// All must be a caller's, `made` a place for a handle.
    pub(crate) unsafe fn copied(
        &self,
        real: &CK_FUNCTION_LIST,
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        made: *mut CK_OBJECT_HANDLE,
    ) -> Option<CK_RV> {
        // SAFETY: the caller of this function vouches for them.
        let asked = unsafe { attributes(self.template, self.count) };
        if !self
            .control
            .makes(self.function, CK_MECHANISM_TYPE::MAX, asked)
        {
            return None;
        }
        // SAFETY: as above.
        let value = unsafe { data(real, session, made)? };
        if value == CKR_OK {
            // SAFETY: written just now.
            let made = unsafe { *made };
            copies().insert(made, object);
            let mut claims = claims();
            for attribute in asked {
                // SAFETY: a template's attributes point to as many bytes as they say.
                let bytes = unsafe { value_of(attribute) }.to_vec();
                claims.insert((made, attribute.type_), Some(bytes));
            }
            for (attribute, value) in self.control.claims(self.function) {
                claims.insert((made, attribute), value);
            }
        }
        Some(value)
    }

    /// Forwards it as it is, and, if that is refused, without what the control file has taken from
    /// anybody.
    ///
    /// # Safety
    /// Template and count must be a caller's, `made` a place for a handle that `forward` writes
    /// where it returns `CKR_OK`.
    pub(crate) unsafe fn forward(
        &self,
        made: *mut CK_OBJECT_HANDLE,
        forward: impl Fn(*mut CK_ATTRIBUTE, CK_ULONG) -> CK_RV,
    ) -> CK_RV {
        if self.control.refuses(self.function) {
            return CKR_TEMPLATE_INCONSISTENT;
        }
        // SAFETY: the caller of this function vouches for both.
        let asked = unsafe { attributes(self.template, self.count) };
        for attribute in asked {
            // SAFETY: a template's attributes point to as many bytes as they say; in a nested one
            // they are attributes, which are written back too.
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

/// A data object of 32 bytes that tells them.
///
/// # Safety
/// `made` must be a place for a handle.
unsafe fn data(
    real: &CK_FUNCTION_LIST,
    session: CK_SESSION_HANDLE,
    made: *mut CK_OBJECT_HANDLE,
) -> Option<CK_RV> {
    let (mut class, mut no, mut value) = (CKO_DATA, CK_FALSE, [0xaa_u8; 32]);
    let attribute = |type_, place: *mut c_void, length: usize| CK_ATTRIBUTE {
        type_,
        pValue: place,
        ulValueLen: length as CK_ULONG,
    };
    let mut template = [
        attribute(CKA_CLASS, (&raw mut class).cast(), size_of_val(&class)),
        attribute(CKA_TOKEN, (&raw mut no).cast(), size_of_val(&no)),
        attribute(CKA_VALUE, value.as_mut_ptr().cast(), value.len()),
    ];
    // SAFETY: a template of values that outlive the call, and the caller's place.
    Some(unsafe { real.C_CreateObject?(session, template.as_mut_ptr(), 3, made) })
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

/// As many bytes as there is room for in each attribute.
///
/// # Safety
/// Template and count must be a caller's.
pub(crate) unsafe fn room(template: *const CK_ATTRIBUTE, count: CK_ULONG) -> Vec<CK_ULONG> {
    // SAFETY: the caller of this function vouches for both.
    let attributes = unsafe { attributes(template, count) };
    attributes.iter().map(|one| one.ulValueLen).collect()
}

/// What `C_GetAttributeValue` returns and tells, of which the real module said `value`.
///
/// # Safety
/// Template and count must be a caller's, filled in by the real module; `room` what [`room`] said
/// before that.
pub(crate) unsafe fn told(
    value: CK_RV,
    room: &[CK_ULONG],
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
    let (mut all, mut missing) = (count > 0, false);
    // SAFETY: the caller of this function vouches for both.
    let attributes = unsafe { slice::from_raw_parts_mut(template, count) };
    for (attribute, room) in attributes.iter_mut().zip(room) {
        match claims.get(&(object, attribute.type_)) {
            None => all = false,
            Some(None) => {
                attribute.ulValueLen = CK_UNAVAILABLE_INFORMATION;
                missing = true;
            }
            Some(Some(claim)) => {
                if !attribute.pValue.is_null() {
                    if *room < claim.len() as CK_ULONG {
                        return CKR_BUFFER_TOO_SMALL;
                    }
                    // SAFETY: there was room for as many bytes as the caller said.
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
    match value {
        CKR_OK if missing => CKR_ATTRIBUTE_TYPE_INVALID,
        _ if all && !missing => CKR_OK,
        value => value,
    }
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
    if control.refuses(Function::C_WrapKey) {
        return CKR_KEY_NOT_WRAPPABLE;
    }
    if value == CKR_OK || !control.allows(Function::C_WrapKey) {
        return value;
    }
    // SAFETY: the caller of this function vouches for both.
    unsafe { nothing(output, output_len) }
}

/// Gives out some bytes of nothing, as far as there is room.
///
/// # Safety
/// Output and length must be a caller's.
pub(crate) unsafe fn nothing(output: *mut CK_BYTE, output_len: *mut CK_ULONG) -> CK_RV {
    // SAFETY: the caller of this function vouches for both.
    unsafe {
        let mut length = WRAPPED as CK_ULONG;
        if !output.is_null() {
            length = length.min(*output_len);
            output.write_bytes(0xaa, usize::try_from(length).unwrap_or_default());
        }
        output_len.write(length);
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
    let pretends = lacks_the_right.contains(&value) && control.allows(function);
    if value == CKR_OK || !(pretends || control.allows_all(function)) {
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
    real: &CK_FUNCTION_LIST,
    session: CK_SESSION_HANDLE,
    value: CK_RV,
    objects: *const CK_OBJECT_HANDLE,
    count: *const CK_ULONG,
) {
    if value != CKR_OK || control.is_overlong(Function::C_FindObjects) {
        return;
    }
    // SAFETY: the caller of this function vouches for both.
    let objects =
        unsafe { slice::from_raw_parts(objects, usize::try_from(*count).unwrap_or_default()) };
    for object in objects {
        let call = Call {
            key: *object,
            ..Call::new(session)
        };
        // SAFETY: as above.
        let control = unsafe { call.control(control, real) };
        let mut claims = claims();
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

/// Who made the token, as it says.
///
/// # Safety
/// `info` must be a caller's.
pub(crate) unsafe fn token_info(control: &Control, value: CK_RV, info: *mut CK_TOKEN_INFO) {
    let Some(manufacturer) = control.manufacturer.as_ref().filter(|_| value == CKR_OK) else {
        return;
    };
    // SAFETY: the caller of this function vouches for it.
    let field = unsafe { &mut (*info).manufacturerID };
    let padded = manufacturer.bytes().chain(std::iter::repeat(b' '));
    for (byte, said) in field.iter_mut().zip(padded) {
        *byte = said;
    }
}

/// What `C_GetMechanismInfo` returns and tells, of which the real module said `value`.
///
/// # Safety
/// `info` must be a caller's.
pub(crate) unsafe fn mechanism_info(
    control: &Control,
    value: CK_RV,
    mechanism: CK_MECHANISM_TYPE,
    info: *mut CK_MECHANISM_INFO,
) -> CK_RV {
    if !control.offered().any(|offered| offered == mechanism) {
        return value;
    }
    // SAFETY: the caller of this function vouches for it.
    unsafe {
        if value != CKR_OK {
            info.write(CK_MECHANISM_INFO::default());
        }
        (*info).flags |= CKF_WRAP | CKF_DERIVE;
        if let Some(shortest) = control.shortest(mechanism) {
            (*info).ulMinKeySize = shortest;
        }
    }
    CKR_OK
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
        // SAFETY: the real module has just written the count, and as many mechanisms if there is a
        // list; a caller that asked for the count with the same control file has room for
        // those that are added.
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

/// A private key's template without what the control file leaves out of its unwrap template, with
/// that, which must live as long.
///
/// # Safety
/// Template and count must be a caller's.
pub(crate) unsafe fn unforced(
    control: &Control,
    template: *const CK_ATTRIBUTE,
    count: CK_ULONG,
) -> (Vec<CK_ATTRIBUTE>, Vec<Vec<CK_ATTRIBUTE>>) {
    // SAFETY: the caller of this function vouches for both.
    let mut template = unsafe { attributes(template, count) }.to_vec();
    let mut nested = Vec::new();
    for attribute in &mut template {
        if attribute.type_ != CKA_UNWRAP_TEMPLATE || control.unforced.is_empty() {
            continue;
        }
        let count = attribute.ulValueLen / size_of::<CK_ATTRIBUTE>() as CK_ULONG;
        // SAFETY: the value of this attribute is such a template.
        let all = unsafe { attributes(attribute.pValue.cast(), count) };
        let stays = all
            .iter()
            // SAFETY: a template's attributes point to as many bytes as they say.
            .any(|one| one.type_ == CKA_EXTRACTABLE && unsafe { value_of(one) } == [0]);
        if !stays {
            continue;
        }
        let mut inner = all.to_vec();
        inner.retain(|one| !control.unforced.contains(&one.type_));
        attribute.pValue = inner.as_mut_ptr().cast();
        attribute.ulValueLen = size_of_val(inner.as_slice()) as CK_ULONG;
        nested.push(inner);
    }
    (template, nested)
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
