//! Files for one process at a time: the audit log, the store, a ceremony's transcript.
//!
//! A lock belongs to the open file, and goes with the last descriptor of it. So it can be held for
//! a moment longer than whoever took it lives: by a process that was just killed and is not gone
//! yet, or by a child that another thread began meanwhile, which has copies of all descriptors
//! until it becomes its program. Who opens such a file waits for that moment before it says that
//! another process has it.

use std::fs::{File, TryLockError};
use std::time::{Duration, Instant};

/// How long a file that is in use elsewhere is waited for.
const MAX_LOCK_WAIT: Duration = Duration::from_secs(2);

/// How long between two attempts.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Locks the file against other processes, until its last descriptor is closed. Blocks for up to
/// two seconds.
///
/// # Errors
/// [`TryLockError::WouldBlock`] if another process still has it then.
pub fn take(file: &File) -> Result<(), TryLockError> {
    patiently(
        || file.try_lock(),
        |error| matches!(error, TryLockError::WouldBlock),
    )
}

/// Tries again, for up to two seconds, what fails since another process has the file: for a library
/// that locks by itself. Blocks.
///
/// # Errors
/// As of the last attempt.
pub(crate) fn patiently<T, E>(
    mut attempt: impl FnMut() -> Result<T, E>,
    is_busy: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let deadline = Instant::now() + MAX_LOCK_WAIT;
    loop {
        match attempt() {
            Err(error) if is_busy(&error) && Instant::now() < deadline => {
                std::thread::sleep(LOCK_RETRY_INTERVAL);
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::File;
    use std::path::Path;
    use std::process::{Child, Command};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A child that has a copy of the descriptor by which a file is locked, and ends by itself half
    /// a second later.
    pub(crate) fn lingering(locked: &File) -> Child {
        Command::new("sleep")
            .arg("0.5")
            .stdin(locked.try_clone().unwrap())
            .spawn()
            .unwrap()
    }

    fn open(path: &Path) -> File {
        File::options().append(true).open(path).unwrap()
    }

    #[test]
    fn a_file_is_free_a_moment_after_its_last_descriptor_and_not_before() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let first = open(file.path());
        take(&first).unwrap();
        assert!(matches!(
            take(&open(file.path())),
            Err(TryLockError::WouldBlock)
        ));
        let mut child = lingering(&first);
        drop(first);
        assert!(matches!(
            open(file.path()).try_lock(),
            Err(TryLockError::WouldBlock)
        ));
        take(&open(file.path())).unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn children_that_are_begun_meanwhile_keep_no_file_locked() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        Command::new("true").status().unwrap();
                    }
                });
            }
            let refused = (0..2_000)
                .filter(|_| take(&open(file.path())).is_err())
                .count();
            done.store(true, Ordering::Relaxed);
            assert_eq!(refused, 0);
        });
    }
}
