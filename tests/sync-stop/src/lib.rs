//! Preloaded (`LD_PRELOAD`), it stops a program (SIGSTOP) whenever that has made a file durable in
//! the directory that `STRONGROOM_SYNC_STOP` names, or the directory itself. Whoever started it
//! sees the stop, looks at the files, and lets it go on or kills it: exactly there, however fast
//! the next file would have come.

#![allow(unsafe_code, reason = "it takes the place of a C function")]

use std::ffi::c_int;
use std::path::PathBuf;
use std::{env, fs};

const VARIABLE: &str = "STRONGROOM_SYNC_STOP";

/// `fsync(2)`, with the stop behind it.
///
/// # Safety
/// As the function of libc whose place it takes: none is asked for, since the kernel checks the
/// descriptor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(descriptor: c_int) -> c_int {
    // SAFETY: the kernel checks the descriptor.
    if unsafe { libc::syscall(libc::SYS_fsync, descriptor) } != 0 {
        return -1;
    }
    if watched(descriptor) {
        // SAFETY: it takes no memory. To this thread alone, and so it goes no further; to the
        // process, another thread could be the first to notice.
        unsafe { libc::raise(libc::SIGSTOP) };
    }
    0
}

fn watched(descriptor: c_int) -> bool {
    let Some(folder) = env::var_os(VARIABLE).map(PathBuf::from) else {
        return false;
    };
    fs::read_link(format!("/proc/self/fd/{descriptor}"))
        .is_ok_and(|file| file == folder || file.parent() == Some(&folder))
}
