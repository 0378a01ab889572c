//! Preloaded (`LD_PRELOAD`), it moves a program's time of day by as many seconds as the file that
//! `STRONGROOM_CLOCK` names says: one signed number of 8 bytes in the machine's order, which may
//! change while the program runs.
//!
//! It is not libfaketime, since that one asks for memory while it answers the first question for
//! the time, which is jemalloc's own while it starts, and the two wait for each other for ever.
//! This one never allocates. It is called before `main`, so it does without Rust's runtime too.

#![allow(unsafe_code, reason = "it takes the place of a C function")]

use std::ffi::{c_char, c_int};
use std::ptr;
use std::sync::atomic::{AtomicI64, AtomicPtr, Ordering};

/// Where the file is mapped; null before the first question.
static OFFSET: AtomicPtr<AtomicI64> = AtomicPtr::new(ptr::null_mut());
/// What is used where there is no file.
static NONE: AtomicI64 = AtomicI64::new(0);
const VARIABLE: *const c_char = c"STRONGROOM_CLOCK".as_ptr();

/// `clock_gettime(2)`, with the time of day moved.
///
/// # Safety
/// As the function of libc whose place it takes: `time` points to a `timespec` that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    // SAFETY: the kernel checks both arguments.
    let outcome = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
    if outcome != 0 {
        return -1;
    }
    if matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE) {
        // SAFETY: the kernel has just written it.
        let time = unsafe { &mut *time };
        time.tv_sec = time.tv_sec.wrapping_add(offset());
    }
    0
}

fn offset() -> i64 {
    let mut known = OFFSET.load(Ordering::Acquire);
    if known.is_null() {
        // Two threads that come first together map it twice, which does no harm.
        known = map().unwrap_or(ptr::from_ref(&NONE).cast_mut());
        OFFSET.store(known, Ordering::Release);
    }
    // SAFETY: a static, or a mapping that is never removed and, at a page's beginning, aligned. It
    // is only read.
    unsafe { &*known }.load(Ordering::Relaxed)
}

fn map() -> Option<*mut AtomicI64> {
    // SAFETY: asked for before the program has threads that could change its environment; the rest
    // are calls of the kernel with its own file.
    unsafe {
        let path = libc::getenv(VARIABLE);
        if path.is_null() {
            return None;
        }
        let file = libc::open(path, libc::O_RDONLY | libc::O_CLOEXEC);
        if file < 0 {
            return None;
        }
        let size = size_of::<AtomicI64>();
        let (read, shared) = (libc::PROT_READ, libc::MAP_SHARED);
        let place = libc::mmap(ptr::null_mut(), size, read, shared, file, 0);
        libc::close(file);
        (place != libc::MAP_FAILED).then(|| place.cast())
    }
}
