//! An appliance's HSM behind the module of tests/pkcs11-fault, in a child process.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc
)]

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use strongroom_hsm::{Hsm, HsmConfig, HsmError, KeyShape, OptionalKeys, TransferKey};
use strongroom_softhsm::Throwaway;

use super::child::{self, CHILD};

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct Rig {
    pub(crate) folder: PathBuf,
    pub(crate) shape: KeyShape,
}

impl Rig {
    pub(crate) fn config(&self) -> HsmConfig {
        HsmConfig {
            shape: self.shape,
            ..child::config(&self.folder, 1, DEADLINE)
        }
    }

    pub(crate) fn control(&self, commands: &str) {
        child::control(&self.folder, commands);
    }

    /// Lines of the module's log with that text.
    pub(crate) fn logged(&self, text: &str) -> usize {
        let log = std::fs::read_to_string(self.folder.join("log")).unwrap();
        log.lines().filter(|line| line.contains(text)).count()
    }

    pub(crate) fn start(&self, commands: &str) -> Result<Hsm, HsmError> {
        self.control(commands);
        Hsm::start(self.config())
    }

    /// Why a start fails whose trial does.
    pub(crate) fn trial(&self, commands: &str) -> String {
        match self.start(commands).err() {
            Some(HsmError::Trial { reason, .. }) => reason,
            other => panic!("{commands}: {other:?}"),
        }
    }

    /// The attribute for which a start fails.
    pub(crate) fn policy(&self, commands: &str) -> String {
        match self.start(commands).err() {
            Some(HsmError::KeyPolicy { attribute, .. }) => attribute,
            other => panic!("{commands}: {other:?}"),
        }
    }

    /// That the token is refused for what it does by these commands, with each of these parts in
    /// the reason.
    pub(crate) fn refused(&self, commands: &str, parts: &[&str]) {
        let reason = match self.start(commands).err() {
            Some(error @ (HsmError::KeyPolicy { .. } | HsmError::Trial { .. })) => {
                error.to_string()
            }
            other => panic!("{commands}: {other:?}"),
        };
        for part in parts {
            assert!(reason.contains(part), "{commands}: {part}: {reason}");
        }
    }
}

/// Runs the body in a child process, on a copy of the token.
pub(crate) fn in_child_on(
    test: &str,
    token: fn() -> &'static Throwaway,
    body: impl AsyncFnOnce(Rig),
) {
    let Some(folder) = std::env::var_os(CHILD) else {
        return child::run_on_copy(test, token());
    };
    let rig = Rig {
        folder: folder.into(),
        shape: KeyShape::Fixed,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(body(rig));
}

/// The body of a test named `provision`, which makes the token of [`token`] in a child process.
pub(crate) fn provision_all() {
    let folder = PathBuf::from(std::env::var_os(CHILD).unwrap());
    let config = HsmConfig {
        call_deadline: Duration::from_mins(1),
        key_generation_deadline: Duration::from_mins(5),
        ..child::config(&folder, 1, DEADLINE)
    };
    let made = Hsm::provision(&config, OptionalKeys::ALL, &mut |_| ()).unwrap();
    assert_eq!(made.transfer, TransferKey::Made);
}

/// With all keys.
pub(crate) fn token() -> &'static Throwaway {
    static TOKEN: OnceLock<Throwaway> = OnceLock::new();
    TOKEN.get_or_init(|| {
        let token = Throwaway::new().unwrap();
        let folder = child::folder();
        child::run("provision", folder.path(), &token, token.env().1);
        token
    })
}

/// The body of a test named `provision_as_earlier_builds_did`, for [`older`].
pub(crate) fn provision_older() {
    let folder = PathBuf::from(std::env::var_os(CHILD).unwrap());
    child::control(
        &folder,
        "drop-forced CKA_DERIVE\ndrop-forced CKA_COPYABLE\ndrop-forced CKA_MODIFIABLE",
    );
    provision_all();
}

/// With all keys, of which master and BYOK key force less than today's.
pub(crate) fn older() -> &'static Throwaway {
    static TOKEN: OnceLock<Throwaway> = OnceLock::new();
    TOKEN.get_or_init(|| {
        let token = Throwaway::new().unwrap();
        let folder = child::folder();
        let test = "provision_as_earlier_builds_did";
        child::run(test, folder.path(), &token, token.env().1);
        token
    })
}

/// Without any.
pub(crate) fn blank() -> &'static Throwaway {
    static TOKEN: OnceLock<Throwaway> = OnceLock::new();
    TOKEN.get_or_init(|| Throwaway::new().unwrap())
}
