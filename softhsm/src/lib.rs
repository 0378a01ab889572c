//! A throwaway SoftHSM2 token, for tests and the demo. Not for production: SoftHSM keeps keys in
//! files.
//!
//! [`Throwaway::new`] makes a directory with a configuration, an initialized token and a PIN file,
//! with random PINs, and removes it all when dropped. SoftHSM reads its configuration's path from
//! `SOFTHSM2_CONF` in the environment of the process that loads it, so a child process gets
//! [`Throwaway::env`]; a test that loads the module itself sees the shared directory that
//! `.cargo/config.toml` names, and gets its token from [`Throwaway::in_process`]; where several
//! tests of a process run side by side, each takes a [`Throwaway::copy`] of it from a [`Pool`].

mod pool;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use tempfile::{Builder, TempDir};
use zeroize::Zeroizing;

pub use pool::{Pool, Taken};

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
    /// Where `SoftHSM` keeps its tokens, this one among them.
    tokens: PathBuf,
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
        let tokens = folder.path().join("tokens");
        write_configuration(&configuration, &tokens)?;
        Self::with_configuration(folder, configuration, tokens)
    }

    /// A token in the directory that this process's own `SOFTHSM2_CONF` names, for tests that load
    /// the module themselves.
    ///
    /// The configuration is made if it is not there. The token itself stays in that directory
    /// (SoftHSM can't delete one while it is loaded), until a process comes that has it to itself.
    ///
    /// # Errors
    /// As [`Throwaway::new`], and if the variable is not set.
    pub fn in_process() -> Result<Self, SoftHsmError> {
        let configuration = std::env::var_os(CONF_VARIABLE)
            .map(PathBuf::from)
            .ok_or(SoftHsmError::NoConfiguration)?;
        let tokens = configuration.with_extension("tokens");
        if !configuration.exists() {
            write_configuration(&configuration, &tokens)?;
        }
        share(&configuration, &tokens)?;
        Self::with_configuration(private_folder()?, configuration, tokens)
    }

    /// Another token beside this one, with what is on it and its PIN, but a label and a serial
    /// number of its own. To copy keys takes milliseconds, to make them seconds.
    ///
    /// Before a process loads the module: a loaded SoftHSM sees no token that was not there.
    ///
    /// # Errors
    /// As [`Throwaway::new`], and if this one's files can't be read.
    pub fn copy(&self) -> Result<Self, SoftHsmError> {
        let folder = private_folder()?;
        let pin = fs::read(self.pin_file()).map_err(at(&self.pin_file()))?;
        write_private(&folder.path().join("pin"), &pin)?;
        let label = random_label()?;
        copy_token(&self.tokens, &self.label, &label)?;
        Ok(Self {
            folder,
            configuration: self.configuration.clone(),
            tokens: self.tokens.clone(),
            module: self.module.clone(),
            label,
        })
    }

    fn with_configuration(
        folder: TempDir,
        configuration: PathBuf,
        tokens: PathBuf,
    ) -> Result<Self, SoftHsmError> {
        let module = module_path()?;
        let label = random_label()?;
        let pin = random_hex(16)?;
        write_private(&folder.path().join("pin"), pin.as_bytes())?;
        init_token(&configuration, &label, &pin)?;
        Ok(Self {
            folder,
            configuration,
            tokens,
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
    let configuration = folder.join("softhsm2.conf");
    if configuration.exists() {
        return configuration
            .canonicalize()
            .map_err(|source| SoftHsmError::Io {
                path: configuration,
                source,
            });
    }
    configure(folder)
}

/// The same, with the configuration written again: for a directory that may have been moved.
///
/// # Errors
/// If the directory can't be written to.
pub fn configure(folder: &Path) -> Result<PathBuf, SoftHsmError> {
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
    write_configuration(&configuration, &folder.join("tokens"))?;
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

/// From now on until it ends, this process uses the shared directory.
fn share(configuration: &Path, tokens: &Path) -> Result<(), SoftHsmError> {
    static IN_USE: Mutex<Option<File>> = Mutex::new(None);
    let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    if in_use.is_none() {
        *in_use = Some(use_directory(
            &configuration.with_extension("lock"),
            tokens,
        )?);
    }
    Ok(())
}

/// Says by a lock that somebody uses the directory. If nobody did, what is in it goes first: every
/// start of the module looks at each token that earlier processes left.
fn use_directory(lock: &Path, tokens: &Path) -> Result<File, SoftHsmError> {
    let mut options = OpenOptions::new();
    let file = options.create(true).append(true).open(lock);
    let file = file.map_err(at(lock))?;
    if file.try_lock().is_ok() {
        for entry in fs::read_dir(tokens).map_err(at(tokens))?.flatten() {
            fs::remove_dir_all(entry.path()).map_err(at(&entry.path()))?;
        }
    }
    // Whoever comes between the two locks finds the directory empty.
    file.lock_shared().map_err(at(lock))?;
    Ok(file)
}

/// Copies the token of that label. Label and serial number stand as they are in the file of the
/// token itself and nowhere else, and nothing is signed with them.
fn copy_token(tokens: &Path, label: &str, new_label: &str) -> Result<(), SoftHsmError> {
    const OBJECT: &str = "token.object";
    let mut entries = fs::read_dir(tokens).map_err(at(tokens))?.flatten();
    let (from, mut object) = entries
        .find_map(|entry| {
            let object = fs::read(entry.path().join(OBJECT)).ok()?;
            find(&object, label.as_bytes())?;
            Some((entry.path(), object))
        })
        .ok_or_else(|| SoftHsmError::Init(format!("{label} is not in {}", tokens.display())))?;
    let odd = || SoftHsmError::Init(format!("{label} is not in the form of SoftHSM 2"));
    let serial_at = find(&object, SERIAL_ATTRIBUTE).ok_or_else(odd)? + SERIAL_ATTRIBUTE.len();
    let label_at = find(&object, label.as_bytes()).ok_or_else(odd)?;
    for (at, new) in [(serial_at, random_hex(8)?.as_str()), (label_at, new_label)] {
        let old = object.get_mut(at..at + new.len()).ok_or_else(odd)?;
        old.copy_from_slice(new.as_bytes());
    }

    let to = tokens.join(new_label);
    fs::create_dir(&to).map_err(at(&to))?;
    for entry in fs::read_dir(&from).map_err(at(&from))?.flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).map_err(at(&entry.path()))?;
    }
    fs::write(to.join(OBJECT), object).map_err(at(&to))
}

/// In SoftHSM's files: the number of its attribute `CKA_OS_TOKENSERIAL`, the kind "bytes", and how
/// many.
const SERIAL_ATTRIBUTE: &[u8] = b"\0\0\0\0\x80\0SJ\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x10";

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|found| found == wanted)
}

/// Names the file in an error.
fn at(path: &Path) -> impl FnOnce(std::io::Error) -> SoftHsmError {
    move |source| SoftHsmError::Io {
        path: path.into(),
        source,
    }
}

fn random_label() -> Result<String, SoftHsmError> {
    Ok(format!("strongroom-{}", &*random_hex(8)?))
}

fn random_hex(bytes: usize) -> Result<Zeroizing<String>, SoftHsmError> {
    let mut raw = Zeroizing::new(vec![0_u8; bytes]);
    getrandom::fill(&mut raw).map_err(|_| SoftHsmError::Random)?;
    Ok(Zeroizing::new(base16ct::lower::encode_string(&raw)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

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
    fn a_copy_is_another_token_beside_the_first() {
        let token = Throwaway::new().unwrap();
        let copy = token.copy().unwrap();
        let (name, value) = token.env();
        assert_eq!(copy.env(), (name, value));
        let shown = Command::new("softhsm2-util")
            .arg("--show-slots")
            .env(name, value)
            .output()
            .unwrap();
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        let of = |field: &str| {
            let lines = shown.lines().map(str::trim);
            let found = lines
                .filter_map(|line| line.strip_prefix(field))
                .map(str::trim);
            found
                .filter(|value| !value.is_empty())
                .collect::<BTreeSet<_>>()
        };
        assert_eq!(of("Label:"), BTreeSet::from([token.label(), copy.label()]));
        assert_eq!(of("Serial number:").len(), 2, "{shown}");
        assert_eq!(
            fs::read(copy.pin_file()).unwrap(),
            fs::read(token.pin_file()).unwrap()
        );
    }

    #[test]
    fn tokens_of_processes_that_are_gone_go_too() {
        let folder = tempfile::tempdir().unwrap();
        let (lock, tokens) = (folder.path().join("lock"), folder.path().join("tokens"));
        fs::create_dir(&tokens).unwrap();
        let one = use_directory(&lock, &tokens).unwrap();
        fs::create_dir(tokens.join("one's")).unwrap();
        let two = use_directory(&lock, &tokens).unwrap();
        drop(one);
        let three = use_directory(&lock, &tokens).unwrap();
        assert!(tokens.join("one's").exists(), "somebody used it all along");
        drop((two, three));
        let _four = use_directory(&lock, &tokens).unwrap();
        assert!(!tokens.join("one's").exists());
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
