//! The module behind this one.

use std::ffi::OsString;
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;

use cryptoki_sys::{CK_FUNCTION_LIST, CK_RV, CK_SLOT_ID, CK_TRUE, CKR_OK};
use libloading::Library;

use crate::log;

/// Where Debian, Fedora, and `SoftHSM`'s own build put it.
const SOFTHSM: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

/// The functions of the module that `PKCS11_FAULT_MODULE` names, or else of `SoftHSM`; loaded at
/// the first call, never unloaded. `None` when it can't be loaded; the log says why.
pub(crate) fn functions() -> Option<&'static CK_FUNCTION_LIST> {
    static REAL: OnceLock<Option<CK_FUNCTION_LIST>> = OnceLock::new();
    REAL.get_or_init(|| {
        load()
            .map_err(|reason| log::line(&format!("error {reason}")))
            .ok()
    })
    .as_ref()
}

/// Closes every session that this process has with the real module, and with them their session
/// objects and the login. Returns how many slots had their sessions closed; 0 when the module is
/// not initialized.
pub(crate) fn close_all_sessions() -> usize {
    let Some((real, slots)) = functions().and_then(|real| Some((real, slots(real)?))) else {
        return 0;
    };
    let Some(close) = real.C_CloseAllSessions else {
        return 0;
    };
    // SAFETY: C_CloseAllSessions takes a number and touches no memory of ours.
    slots
        .into_iter()
        .filter(|slot| unsafe { close(*slot) } == CKR_OK)
        .count()
}

fn slots(real: &CK_FUNCTION_LIST) -> Option<Vec<CK_SLOT_ID>> {
    let list = real.C_GetSlotList?;
    let mut count = 0;
    // SAFETY: with a null list the function writes the number of slots to `count` only.
    if unsafe { list(CK_TRUE, ptr::null_mut(), &raw mut count) } != CKR_OK {
        return None;
    }
    let mut slots = vec![0; usize::try_from(count).ok()?];
    // SAFETY: `slots` has room for `count` numbers, and the function writes no more than that.
    if unsafe { list(CK_TRUE, slots.as_mut_ptr(), &raw mut count) } != CKR_OK {
        return None;
    }
    slots.truncate(usize::try_from(count).ok()?);
    Some(slots)
}

fn load() -> Result<CK_FUNCTION_LIST, String> {
    type GetFunctionList = unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV;
    let path = std::env::var_os("PKCS11_FAULT_MODULE")
        .or_else(|| {
            SOFTHSM
                .iter()
                .find(|path| Path::new(path).exists())
                .map(OsString::from)
        })
        .ok_or("no SoftHSM found; set PKCS11_FAULT_MODULE to a PKCS#11 module")?;
    // SAFETY: loading runs the library's initializers. It is a PKCS#11 module that the tester
    // chose, as trusted as the test itself.
    let library = unsafe { Library::new(&path) }
        .map_err(|error| format!("can't load {}: {error}", Path::new(&path).display()))?;
    let mut list = ptr::null_mut();
    // SAFETY: the type is the one that PKCS#11 gives to C_GetFunctionList, the one symbol that
    // every module must have. It writes one pointer.
    let value = unsafe {
        library
            .get::<GetFunctionList>(b"C_GetFunctionList\0")
            .map_err(|error| error.to_string())?(&raw mut list)
    };
    if value != CKR_OK || list.is_null() {
        return Err(format!(
            "C_GetFunctionList of {} returned {value:#x}",
            Path::new(&path).display()
        ));
    }
    // The functions must outlive every caller, so the library stays loaded.
    std::mem::forget(library);
    // SAFETY: the module returned CKR_OK, so `list` points to its list of functions, which is valid
    // while it is loaded: for ever, see above.
    Ok(unsafe { *list })
}
