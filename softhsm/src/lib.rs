//! A throwaway SoftHSM2 token, for tests and the demo. Not for production: SoftHSM keeps keys in
//! files.
//!
//! [`Throwaway::new`] makes a directory with a configuration, an initialized token and a PIN file,
//! with random PINs, and removes it all when dropped. SoftHSM reads its configuration's path from
//! `SOFTHSM2_CONF` in the environment of the process that loads it, so a child process gets
//! [`Throwaway::env`]; a test that loads the module itself sees the shared directory that
//! `.cargo/config.toml` names, and gets its token from [`Throwaway::in_process`].

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::{Builder, TempDir};
use zeroize::Zeroizing;

/// The variable through which SoftHSM finds its configuration.
pub const CONF_VARIABLE: &str = "SOFTHSM2_CONF";

/// Where Debian, Fedora, Alpine and Homebrew put the module.
const MODULE_PATHS: [&str; 6] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib64/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
];

/// Why there is no throwaway token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SoftHsmError {
    /// SoftHSM2 is not installed.
    #[error(
        "SoftHSM2 is not installed (looked for {MODULE_PATHS:?}): on Debian, run `apt-get install softhsm2`"
    )]
    NotInstalled,
    /// A file could not be made.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `softhsm2-util` failed.
    #[error("softhsm2-util could not make the token: {0}")]
    Init(String),
    /// The kernel gave no random bytes.
    #[error("no random bytes from the kernel")]
    Random,
    /// [`Throwaway::in_process`] without a configuration to share.
    #[error(
        "{CONF_VARIABLE} is not set: run the tests through cargo, which sets it from .cargo/config.toml"
    )]
    NoConfiguration,
}

/// A token that is gone when this is dropped.
#[derive(Debug)]
pub struct Throwaway {
    folder: TempDir,
    configuration: PathBuf,
    module: PathBuf,
    label: String,
}

impl Throwaway {
    /// A token in a directory of its own, for child processes that are started with
    /// [`Throwaway::env`].
    ///
    /// # Errors
    /// If SoftHSM2 is not installed or can't make a token.
    pub fn new() -> Result<Self, SoftHsmError> {
        let folder = private_folder()?;
        let configuration = folder.path().join("softhsm2.conf");
        write_configuration(&configuration, &folder.path().join("tokens"))?;
        Self::with_configuration(folder, configuration)
    }

    /// A token in the directory that this process's own `SOFTHSM2_CONF` names, for tests that load
    /// the module themselves.
    ///
    /// The configuration is made if it is not there. The token itself stays in that directory
    /// (SoftHSM can't delete one while it is loaded).
    ///
    /// # Errors
    /// As [`Throwaway::new`], and if the variable is not set.
    pub fn in_process() -> Result<Self, SoftHsmError> {
        let configuration = std::env::var_os(CONF_VARIABLE)
            .map(PathBuf::from)
            .ok_or(SoftHsmError::NoConfiguration)?;
        if !configuration.exists() {
            let folder = configuration.with_extension("tokens");
            write_configuration(&configuration, &folder)?;
        }
        Self::with_configuration(private_folder()?, configuration)
    }

    fn with_configuration(folder: TempDir, configuration: PathBuf) -> Result<Self, SoftHsmError> {
        let module = module_path()?;
        let label = format!("strongroom-{}", &*random_hex(8)?);
        let pin = random_hex(16)?;
        write_private(&folder.path().join("pin"), pin.as_bytes())?;
        init_token(&configuration, &label, &pin)?;
        Ok(Self {
            folder,
            configuration,
            module,
            label,
        })
    }

    /// What a child process that loads the module needs in its environment.
    pub fn env(&self) -> (&'static str, &Path) {
        (CONF_VARIABLE, &self.configuration)
    }

    /// The PKCS#11 module.
    pub fn module(&self) -> &Path {
        &self.module
    }

    /// The token's label, unique to it.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// A file with the user PIN, mode 0400.
    pub fn pin_file(&self) -> PathBuf {
        self.folder.path().join("pin")
    }

    /// The directory that holds it all; a place for a test's other files too.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Keeps the directory: it is not removed on drop.
    pub fn keep(self) -> PathBuf {
        self.folder.keep()
    }
}

/// A configuration in that directory whose one slot holds an uninitialized token, for whoever
/// initializes it themselves; the file's path.
///
/// Both are left as they are if they are there. They stay: the directory is the caller's.
///
/// # Errors
/// If SoftHSM2 is not installed or the directory can't be written to.
pub fn blank(folder: &Path) -> Result<PathBuf, SoftHsmError> {
    module_path()?;
    let io = |source| SoftHsmError::Io {
        path: folder.into(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(io)?;
    // SoftHSM takes a relative path from wherever the process happens to be.
    let folder = folder.canonicalize().map_err(io)?;
    let configuration = folder.join("softhsm2.conf");
    if !configuration.exists() {
        write_configuration(&configuration, &folder.join("tokens"))?;
    }
    Ok(configuration)
}

/// The SoftHSM2 module of this machine.
///
/// # Errors
/// [`SoftHsmError::NotInstalled`].
pub fn module_path() -> Result<PathBuf, SoftHsmError> {
    MODULE_PATHS
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .ok_or(SoftHsmError::NotInstalled)
}

fn private_folder() -> Result<TempDir, SoftHsmError> {
    let folder = Builder::new()
        .prefix("strongroom-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .map_err(|source| SoftHsmError::Io {
            path: std::env::temp_dir(),
            source,
        })?;
    Ok(folder)
}

fn write_configuration(path: &Path, tokens: &Path) -> Result<(), SoftHsmError> {
    fs::create_dir_all(tokens).map_err(|source| SoftHsmError::Io {
        path: tokens.into(),
        source,
    })?;
    let text = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
        tokens.display()
    );
    // Written aside and renamed: test processes that start at once must never see half a file.
    let folder = path.parent().unwrap_or(Path::new("."));
    Builder::new()
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(folder)
        .and_then(|mut aside| {
            aside.write_all(text.as_bytes())?;
            Ok(aside.persist(path)?)
        })
        .map(drop)
        .map_err(|source| SoftHsmError::Io {
            path: path.into(),
            source,
        })
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<(), SoftHsmError> {
    let io = |source| SoftHsmError::Io {
        path: path.into(),
        source,
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(path)
        .map_err(io)?;
    file.write_all(bytes).map_err(io)
}

/// Runs `softhsm2-util` in a process of its own, so that this one does not load the module before
/// its own time.
///
/// The PINs of a throwaway token may stand in argv: they are random and die with it.
fn init_token(configuration: &Path, label: &str, pin: &str) -> Result<(), SoftHsmError> {
    let so_pin = random_hex(16)?;
    let output = Command::new("softhsm2-util")
        .args([
            "--init-token",
            "--free",
            "--label",
            label,
            "--pin",
            pin,
            "--so-pin",
            &so_pin,
        ])
        .env(CONF_VARIABLE, configuration)
        .stdin(Stdio::null())
        .output()
        .map_err(|_| SoftHsmError::NotInstalled)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(SoftHsmError::Init(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ))
    }
}

fn random_hex(bytes: usize) -> Result<Zeroizing<String>, SoftHsmError> {
    let mut raw = Zeroizing::new(vec![0_u8; bytes]);
    getrandom::fill(&mut raw).map_err(|_| SoftHsmError::Random)?;
    Ok(Zeroizing::new(base16ct::lower::encode_string(&raw)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_throwaway_token_is_there_and_then_gone() {
        let token = Throwaway::new().unwrap();
        let folder = token.path().to_owned();
        let (name, value) = token.env();
        let shown = Command::new("softhsm2-util")
            .arg("--show-slots")
            .env(name, value)
            .output()
            .unwrap();
        assert!(String::from_utf8_lossy(&shown.stdout).contains(token.label()));
        assert_eq!(
            fs::metadata(token.pin_file()).unwrap().permissions().mode() & 0o777,
            0o400
        );
        drop(token);
        assert!(!folder.exists());
    }

    #[test]
    fn a_blank_token_waits_to_be_initialized() {
        let folder = tempfile::tempdir().unwrap();
        let configuration = blank(&folder.path().join("token")).unwrap();
        assert_eq!(blank(&folder.path().join("token")).unwrap(), configuration);
        let shown = Command::new("softhsm2-util")
            .arg("--show-slots")
            .env(CONF_VARIABLE, &configuration)
            .output()
            .unwrap();
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains("Initialized:      no"), "{shown}");
        assert_eq!(shown.matches("Initialized:").count(), 1, "{shown}");
    }
}
