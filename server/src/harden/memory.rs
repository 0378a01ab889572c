//! What is in memory stays there: no core dump, no debugger, no page in the swap.

use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// `MCL_ONFAULT` of `mlockall(2)`, which nix does not name: pages are locked when they are first
/// used, not all at once.
const MCL_ONFAULT: i32 = 4;

pub(super) fn forbid_core_dumps() -> Result<String, String> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
        .map(|()| "RLIMIT_CORE 0".to_owned())
        .map_err(|error| format!("RLIMIT_CORE: {error}"))
}

/// Also takes `/proc/PID/mem` and `ptrace` away from the same user's other processes.
pub(super) fn forbid_reading() -> Result<String, String> {
    set_dumpable(false)
        .map(|()| "not dumpable, not traceable by its own user".to_owned())
        .map_err(|error| format!("PR_SET_DUMPABLE: {error}"))
}

/// Locks what is there and what comes, each page when it is used.
///
/// Only where no limit stands in the way: below one, it would be the next thread or buffer that is
/// refused its memory, in the middle of the work.
pub(super) fn lock() -> Result<String, String> {
    let raised = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    let (soft, _) =
        getrlimit(Resource::RLIMIT_MEMLOCK).map_err(|error| format!("RLIMIT_MEMLOCK: {error}"))?;
    if raised.is_err() && soft != RLIM_INFINITY {
        return Err(format!(
            "only {soft} bytes may be locked (RLIMIT_MEMLOCK), so memory can be swapped out: start it with LimitMEMLOCK=infinity, as strongroom.service does"
        ));
    }
    mlockall(
        MlockAllFlags::MCL_CURRENT
            | MlockAllFlags::MCL_FUTURE
            | MlockAllFlags::from_bits_retain(MCL_ONFAULT),
    )
    .map(|()| "every page, when it is first used".to_owned())
    .map_err(|error| format!("mlockall: {error}"))
}
