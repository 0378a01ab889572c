//! The directory of `strongroom dev`.
//!
//! | file | what |
//! |---|---|
//! | `strongroom-dev.lock` | says whose directory it is; locked while it is in use |
//! | `state/` | token, PIN, store and audit log: there whole or not at all |
//! | `pki/` | CA, server and clients |
//! | `policy.toml` | made once, the user's to edit |
//! | `strongroom.toml`, `env.sh`, `seal.hcl` | made at each start |

use std::fs::{self, DirBuilder, File, TryLockError};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use strongroom_core::lock;
use tempfile::TempDir;

use crate::cli::child::executable;
use crate::cli::exit::{Exit, Failure};
use crate::cli::files;
use crate::cli::pki::{Authority, Certified};

const LOCK: &str = "strongroom-dev.lock";
/// The token's label.
const LABEL: &str = "strongroom-dev";
/// What follows a client's name in its certificate.
pub(super) const DOMAIN: &str = "dev.internal";

pub(super) struct Site {
    folder: PathBuf,
    module: PathBuf,
    /// Held until the end.
    _lock: File,
    /// Removed with this value.
    temporary: Option<TempDir>,
}

impl Site {
    /// In `folder`, which is kept, else in a temporary one.
    pub(super) fn open(folder: Option<&Path>, module: PathBuf) -> Result<Self, Failure> {
        let (folder, temporary) = if let Some(folder) = folder {
            (own(folder)?, None)
        } else {
            let made = tempfile::Builder::new()
                .prefix("strongroom-dev-")
                .permissions(fs::Permissions::from_mode(0o700))
                .tempdir()
                .map_err(|error| Failure::file(&std::env::temp_dir(), &error))?;
            (own(made.path())?, Some(made))
        };
        let path = folder.join(LOCK);
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|error| Failure::file(&path, &error))?;
        lock::take(&file).map_err(|error| match error {
            TryLockError::WouldBlock => Failure::new(
                Exit::Usage,
                format!("another `strongroom dev` runs in {}", folder.display()),
            )
            .next("stop it, or choose another --dir"),
            TryLockError::Error(error) => Failure::file(&path, &error),
        })?;
        Ok(Self {
            folder,
            module,
            _lock: file,
            temporary,
        })
    }

    pub(super) fn is_kept(&self) -> bool {
        self.temporary.is_none()
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(super) fn audit_log(&self) -> PathBuf {
        self.state().join("audit.log")
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.path("pki/ca.pem")
    }

    /// A client's certificate and private key.
    pub(super) fn client(&self, name: &str) -> (PathBuf, PathBuf) {
        let stem = format!("pki/client-{name}");
        (
            self.path(&format!("{stem}.pem")),
            self.path(&format!("{stem}.key")),
        )
    }

    fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// Where the state is made before it is [`Site::state`], and whether there is need to.
    pub(super) fn place_of_state(&self) -> Result<(PathBuf, bool), Failure> {
        if self.state().exists() {
            return Ok((self.state(), false));
        }
        let new = self.path("state.new");
        // An earlier start was cut off.
        match fs::remove_dir_all(&new) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::file(&new, &error));
            }
            _ => {}
        }
        Ok((new, true))
    }

    pub(super) fn keep_state(&self, new: &Path) -> Result<(), Failure> {
        let state = self.state();
        fs::rename(new, &state).map_err(|error| Failure::file(&state, &error))
    }

    /// The configuration for a state in that directory, SoftHSM's and the appliance's.
    pub(super) fn configure(&self, state: &Path, port: u16) -> Result<(), Failure> {
        strongroom_softhsm::configure(state).map_err(|error| Failure::caused(Exit::Hsm, &error))?;
        let text = format!(
            "# Not for production. Made by `strongroom dev` at each start; edit policy.toml.\n\
             [server]\nlisten = \"127.0.0.1:{port}\"\n\n\
             [tls]\ncertificate = \"pki/server.pem\"\nprivate_key = \"pki/server.key\"\n\
             client_ca = \"pki/ca.pem\"\n\n\
             [hsm]\nmodule = {:?}\nlabel = \"{LABEL}\"\npin_file = {:?}\n\n\
             [store]\npath = {:?}\n\n\
             [policy]\npath = \"policy.toml\"\n\n\
             [audit]\npath = {:?}\n",
            self.module,
            state.join("pin"),
            state.join("store"),
            state.join("audit.log"),
        );
        files::replace(&self.configuration(), text.as_bytes())
    }

    fn configuration(&self) -> PathBuf {
        self.path("strongroom.toml")
    }

    /// The policy, unless it is there: it is the user's to change.
    pub(super) fn write_policy(&self) -> Result<(), Failure> {
        let path = self.path("policy.toml");
        if path.exists() {
            return Ok(());
        }
        let text = format!(
            "# Everything to every client of `strongroom dev`. Yours to edit: it is read again when\n\
             # it changes, and kept.\n\
             [[rule]]\nidentities = [\"dns:*.{DOMAIN}\"]\nkeys = [\"*\"]\noperations = [\"*\", \"global\"]\n"
        );
        files::replace(&path, text.as_bytes())
    }

    /// CA, server and these clients; whoever has a certificate keeps it.
    pub(super) fn write_certificates(&self, clients: &[String]) -> Result<(), Failure> {
        make_folder(&self.path("pki"))?;
        let ca = self.authority()?;
        let server = (self.path("pki/server.pem"), self.path("pki/server.key"));
        write_pair(&server, || ca.server(&["localhost", "127.0.0.1", "::1"]))?;
        for name in clients {
            write_pair(&self.client(name), || {
                ca.client(&format!("{name}.{DOMAIN}"))
            })?;
        }
        Ok(())
    }

    fn authority(&self) -> Result<Authority, Failure> {
        let (certificate, key) = (self.ca(), self.path("pki/ca.key"));
        // The certificate comes last: where it is, the key is.
        if certificate.exists() {
            let key = files::read_text(&key)?;
            let key = zeroize::Zeroizing::new(key);
            return Ok(Authority::again(files::read_text(&certificate)?, &key)?);
        }
        let made = Authority::new("Strongroom dev CA, not for production")?;
        files::replace(&key, made.key().as_bytes())?;
        files::replace(&certificate, made.certificate().as_bytes())?;
        Ok(made)
    }

    /// This program as another process, with the token of that state in its environment.
    pub(super) fn command(&self, state: &Path, arguments: &[&str]) -> Result<Command, Failure> {
        let mut command = Command::new(executable()?);
        command.args(arguments).arg(self.configuration()).env(
            strongroom_softhsm::CONF_VARIABLE,
            state.join("softhsm2.conf"),
        );
        Ok(command)
    }
}

/// The directory's whole path, once it is sure that nobody else has files in it.
fn own(folder: &Path) -> Result<PathBuf, Failure> {
    make_folder(folder)?;
    let fail = |error: &std::io::Error| Failure::file(folder, error);
    let mut entries = fs::read_dir(folder).map_err(|error| fail(&error))?;
    if entries.next().is_some() && !folder.join(LOCK).exists() {
        return Err(Failure::new(
            Exit::Usage,
            format!(
                "{} holds something else than a `strongroom dev`",
                folder.display()
            ),
        )
        .next("choose a --dir that is empty or not there"));
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(|error| fail(&error))?;
    let folder = folder.canonicalize().map_err(|error| fail(&error))?;
    // It stands in TOML, HCL, shell and SoftHSM's own format.
    let special = |c: char| c.is_control() || "'\"\\$#`".contains(c);
    match folder.to_str() {
        Some(text) if !text.contains(special) => Ok(folder),
        _ => Err(Failure::new(
            Exit::Usage,
            format!(
                "the path {} has characters that need quotes",
                folder.display()
            ),
        )
        .next("choose a --dir without quotes, backslashes, `$` and `#`")),
    }
}

fn make_folder(folder: &Path) -> Result<(), Failure> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| Failure::file(folder, &error))
}

fn write_pair(
    (certificate, key): &(PathBuf, PathBuf),
    make: impl FnOnce() -> Result<Certified, rcgen::Error>,
) -> Result<(), Failure> {
    // The certificate comes last, as the CA's does.
    if certificate.exists() {
        return Ok(());
    }
    let made = make()?;
    files::replace(key, made.key.as_bytes())?;
    files::replace(certificate, made.certificate.as_bytes())
}
