//! The loaded PKCS#11 library: one per file and process, shared by every [`crate::Hsm`] that uses
//! it.
//!
//! `C_Initialize` and `C_Finalize` concern the whole process, so they are counted here. A library
//! is never unmapped: a thread may still hang inside it.

mod no_start;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use cryptoki::error::{Error, RvError};

use crate::error::HsmError;
use crate::fault::Fault;
use crate::ffi::Raw;

/// A loaded library.
pub(crate) struct Library {
    pub(crate) raw: Arc<Raw>,
    use_count: Mutex<UseCount>,
}

#[derive(Default)]
struct UseCount {
    users: usize,
    /// `C_Initialize` was ours, so `C_Finalize` is too.
    ours: bool,
}

/// A user's share of an initialized library. [`Module::release`] gives it back.
pub(crate) struct Module {
    library: Arc<Library>,
}

static LIBRARIES: LazyLock<Mutex<HashMap<PathBuf, Arc<Library>>>> = LazyLock::new(Mutex::default);

impl Module {
    /// Loads the library if it is not loaded yet, and initializes it if it is not initialized.
    pub(crate) fn acquire(path: &Path) -> Result<Self, Fault> {
        let library = library(path)?;
        let mut count = library.count();
        if count.users == 0 {
            count.ours = initialize(&library.raw).map_err(|fault| no_start::why(path, &fault))?;
        }
        count.users += 1;
        drop(count);
        Ok(Self { library })
    }

    pub(crate) fn library(&self) -> Arc<Library> {
        Arc::clone(&self.library)
    }

    /// `C_Finalize` and `C_Initialize`, which some modules need to find a token again. No thread
    /// may be inside the module. Does nothing while somebody else in this process uses it.
    pub(crate) fn restart(&self) -> Result<(), Fault> {
        let mut count = self.library.count();
        if count.users > 1 || !count.ours {
            return Ok(());
        }
        finalize(&self.library.raw)?;
        count.ours = initialize(&self.library.raw)?;
        Ok(())
    }

    /// Gives the share back; the last one finalizes the library, unless `in_use` says that a thread
    /// still hangs in it.
    pub(crate) fn release(&self, in_use: bool) {
        let mut count = self.library.count();
        count.users = count.users.saturating_sub(1);
        if count.users == 0 && count.ours && !in_use {
            count.ours = false;
            if let Err(fault) = finalize(&self.library.raw) {
                tracing::warn!(%fault, "the PKCS#11 module could not be finalized");
            }
        }
    }
}

impl Library {
    /// Whether nobody else in this process uses it, so that no session object can be another's.
    pub(crate) fn has_one_user(&self) -> bool {
        let count = self.count();
        count.users == 1 && count.ours
    }

    fn count(&self) -> MutexGuard<'_, UseCount> {
        self.use_count
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn library(path: &Path) -> Result<Arc<Library>, Fault> {
    let unusable = |error: &dyn std::fmt::Display| {
        HsmError::Config(format!(
            "the PKCS#11 module {} can't be loaded: {error}; install it or correct its path",
            path.display()
        ))
    };
    // The same file under two names must not be initialized twice.
    let real = path.canonicalize().map_err(|error| unusable(&error))?;
    let mut libraries = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = libraries.get(&real) {
        return Ok(Arc::clone(library));
    }
    let raw = Raw::open(&real).map_err(|error| unusable(&error))?;
    let library = Arc::new(Library {
        raw: Arc::new(raw),
        use_count: Mutex::default(),
    });
    libraries.insert(real, Arc::clone(&library));
    Ok(library)
}

/// Whether this call initialized it; somebody else in the process may have.
fn initialize(raw: &Raw) -> Result<bool, Fault> {
    match raw.initialize() {
        Ok(()) => Ok(true),
        Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn finalize(raw: &Raw) -> Result<(), Fault> {
    match raw.finalize() {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiNotInitialized, _)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
