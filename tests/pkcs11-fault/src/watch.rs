//! When the control file is read, and what a new version of it does at once: sessions are lost,
//! counting starts or stops.

use std::fs::{self, File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::control::Control;
use crate::{inject, log, real};

/// How often the file is looked at while nothing is called.
const POLL: Duration = Duration::from_millis(1);

/// One version of the control file.
#[derive(Clone)]
pub(crate) struct Version {
    /// What it asks for. `None`: it can't be read or understood, and every call must fail.
    pub(crate) control: Option<Arc<Control>>,
    number: u64,
}

impl Default for Version {
    fn default() -> Self {
        Self {
            control: Some(Arc::default()),
            number: 0,
        }
    }
}

/// The version now in the file. Costs a stat(2) when it is the same as before.
pub(crate) fn version() -> Version {
    let mut seen = lock(&WATCH.seen);
    let Some(path) = control_path() else {
        return seen.version.clone();
    };
    let identity = fs::metadata(path).ok().map(|found| Identity::of(&found));
    if identity != seen.identity {
        let (identity, control) = read(path, identity);
        // `seen` stays locked: no other call goes on before the sessions are closed.
        let was = seen.version.clone();
        seen.identity = identity;
        seen.version = Version {
            number: was.number + 1,
            control: control
                .map_err(|reason| log::line(&format!("control-error {reason}")))
                .map(Arc::new)
                .ok(),
        };
        enact(&was, &seen.version);
    }
    seen.version.clone()
}

/// Permission to be inside the real module. While it is held no session is closed from here.
/// `None`: the file has a newer version than `version`, which must be asked first.
pub(crate) fn enter(version: &Version) -> Option<RwLockReadGuard<'static, ()>> {
    let inside = WATCH.gate.read().unwrap_or_else(PoisonError::into_inner);
    (WATCH.number.load(Ordering::SeqCst) == version.number).then_some(inside)
}

/// Keeps looking at the file, so that a loss that comes and goes between two calls is one all the
/// same.
pub(crate) fn start() {
    let mut poller = lock(&WATCH.poller);
    if poller.is_none() && control_path().is_some() {
        WATCH.stop.store(false, Ordering::SeqCst);
        let poll = || {
            while !WATCH.stop.load(Ordering::SeqCst) {
                version();
                thread::sleep(POLL);
            }
        };
        *poller = thread::Builder::new()
            .name("pkcs11-fault".to_owned())
            .spawn(poll)
            .map_err(|error| log::line(&format!("error no thread: {error}")))
            .ok();
    }
}

/// Ends what `start` started.
pub(crate) fn stop() {
    WATCH.stop.store(true, Ordering::SeqCst);
    let poller = lock(&WATCH.poller).take();
    if let Some(poller) = poller {
        let _ = poller.join();
    }
}

static WATCH: LazyLock<Watch> = LazyLock::new(Watch::default);

#[derive(Default)]
struct Watch {
    seen: Mutex<Seen>,
    /// The number of the version in `seen`, for who holds `gate` only.
    number: AtomicU64,
    gate: RwLock<()>,
    poller: Mutex<Option<JoinHandle<()>>>,
    stop: AtomicBool,
}

#[derive(Default)]
struct Seen {
    identity: Option<Identity>,
    version: Version,
}

/// Tells one version of the file from the next. Each is a new file that replaces the old one, so
/// the inode alone nearly does.
#[derive(PartialEq)]
struct Identity([i128; 6]);

impl Identity {
    fn of(found: &Metadata) -> Self {
        Self([
            found.dev().into(),
            found.ino().into(),
            found.size().into(),
            found.mtime().into(),
            found.mtime_nsec().into(),
            i128::from(found.ctime()) * 1_000_000_000 + i128::from(found.ctime_nsec()),
        ])
    }
}

fn control_path() -> Option<&'static Path> {
    static PATH: OnceLock<Option<PathBuf>> = OnceLock::new();
    PATH.get_or_init(|| std::env::var_os("PKCS11_FAULT_CONTROL").map(PathBuf::from))
        .as_deref()
}

/// The identity is asked of the open file: by name it could be that of the next version already.
fn read(path: &Path, by_name: Option<Identity>) -> (Option<Identity>, Result<Control, String>) {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return (None, Ok(Control::default())),
        Err(error) => return (by_name, Err(error.to_string())),
    };
    let mut text = String::new();
    let control = file
        .read_to_string(&mut text)
        .map_err(|error| error.to_string())
        .and_then(|_| Control::parse(&text));
    (
        file.metadata().ok().map(|found| Identity::of(&found)),
        control,
    )
}

/// What the change from one version to the next does at once.
fn enact(was: &Version, now: &Version) {
    let asks = |version: &Version, what: fn(&Control) -> bool| {
        version
            .control
            .as_ref()
            .is_some_and(|control| what(control))
    };
    let (was_absent, absent) = (asks(was, |c| c.token_absent), asks(now, |c| c.token_absent));
    let forget = asks(now, |c| c.forget_sessions);
    {
        // Waits until no call is inside the real module: SoftHSM must not lose a session that it
        // works with.
        let _outside = WATCH.gate.write().unwrap_or_else(PoisonError::into_inner);
        if forget || (absent && !was_absent) {
            let slots = real::close_all_sessions();
            log::line(&format!(
                "{} sessions of {slots} slots closed",
                if forget {
                    "forget-sessions"
                } else {
                    "token-absent"
                }
            ));
        }
        WATCH.number.store(now.number, Ordering::SeqCst);
    }
    if was_absent && !absent {
        log::line("token-present");
    }
    if asks(was, |c| c.count) && !asks(now, |c| c.count) {
        log::line(&format!("counts {}", inject::take_counts()));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_is_not_the_latest_may_not_enter() {
        let latest = Version::default();
        let of = |number| Version {
            control: latest.control.clone(),
            number,
        };
        assert!(enter(&latest).is_some());
        assert!(enter(&of(1)).is_none());
        WATCH.number.store(2, Ordering::SeqCst);
        assert!(enter(&of(1)).is_none());
        assert!(enter(&of(2)).is_some());
    }
}
