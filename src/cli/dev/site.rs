//! The directory of `strongroom dev`.
//!
//! | file | what |
//! |---|---|
//! | `strongroom-dev.lock` | says whose directory it is; locked while it is in use |
//! | `state/` | token, PIN, store and audit log: there whole or not at all |
//! | `pki/` | CA, server and clients |
//! | `policy.toml` | made once, the user's to edit |
//! | `strongroom.toml`, `env.sh`, `seal.hcl` | made at each start |

use std::fs::{self, DirBuilder, File, Metadata, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use strongroom_core::lock;
use tempfile::TempDir;
use walkdir::WalkDir;

use super::certificates::{Certificates, DOMAIN};
use crate::cli::child::executable;
use crate::cli::exit::{Exit, Failure};
use crate::cli::files;

const LOCK: &str = "strongroom-dev.lock";
/// The token's label.
const LABEL: &str = "strongroom-dev";
/// Where an appliance that is no toy has its files, empty as they may still be: the package's
/// directories.
const PRODUCTION: [&str; 4] = [
    "/etc/strongroom",
    "/run/strongroom",
    "/var/lib/strongroom",
    "/var/log/strongroom",
];

pub(super) struct Site {
    folder: PathBuf,
    module: String,
    /// Held until the end.
    _lock: File,
    /// Removed with this value.
    temporary: Option<TempDir>,
}

impl Site {
    /// In `folder`, which is kept, else in a temporary one. `module`: SoftHSM's.
    pub(super) fn open(folder: Option<&Path>, module: &Path) -> Result<Self, Failure> {
        let module = module
            .to_str()
            .ok_or_else(|| unfit(module, "is not text"))?
            .to_owned();
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
        make_private(&folder)?;
        let site = Self {
            folder,
            module,
            _lock: file,
            temporary,
        };
        make_folder(&site.path("pki"))?;
        Ok(site)
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

    pub(super) fn certificates(&self) -> Certificates {
        Certificates::new(self.path("pki"))
    }

    pub(super) fn audit_log(&self) -> PathBuf {
        self.state().join("audit.log")
    }

    fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// Where the state is made before it is [`Site::state`], and whether there is need to.
    pub(super) fn place_of_state(&self) -> Result<(PathBuf, bool), Failure> {
        let state = self.state();
        if fs::symlink_metadata(&state).is_ok() {
            if state.join("pin").exists() {
                return Ok((state, false));
            }
            return Err(unfit(&state, "has no PIN any more, so its keys are lost")
                .next("put its file `pin` back; or remove the directory, and new keys are made"));
        }
        let new = self.path("state.new");
        // An earlier start was cut off.
        match fs::remove_dir_all(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
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
    pub(super) fn configure(&self, state: &Path, listen: SocketAddr) -> Result<(), Failure> {
        strongroom_softhsm::configure(state).map_err(|error| Failure::caused(Exit::Hsm, &error))?;
        // Basic strings of TOML are JSON's, but for a character that no path here has.
        let quoted = |name: &str| {
            let path = state.join(name);
            serde_json::Value::from(path.to_string_lossy()).to_string()
        };
        let text = format!(
            "# NOT FOR PRODUCTION. Made by `strongroom dev` at each start; edit policy.toml.\n\
             [server]\nlisten = \"{listen}\"\n\n\
             [tls]\ncertificate = \"pki/server.pem\"\nprivate_key = \"pki/server.key\"\n\
             client_ca = \"pki/ca.pem\"\n\n\
             [hsm]\nmodule = {}\nlabel = \"{LABEL}\"\npin_file = {}\n\n\
             [store]\npath = {}\n\n\
             [policy]\npath = \"policy.toml\"\n\n\
             [audit]\npath = {}\n",
            serde_json::Value::from(self.module.as_str()),
            quoted("pin"),
            quoted("store"),
            quoted("audit.log"),
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

/// The directory's whole path, once it is sure that it is this user's, private, and either empty or
/// of an earlier `strongroom dev`.
fn own(folder: &Path) -> Result<PathBuf, Failure> {
    let fail = |error: &io::Error| Failure::file(folder, error);
    let folder = whole_path(folder)?;
    refuse_production(&folder)?;
    make_folder(&folder)?;
    // It stands in TOML, HCL, shell and SoftHSM's own format.
    let special = |c: char| c.is_control() || "'\"\\$#`".contains(c);
    if folder.to_str().is_none_or(|text| text.contains(special)) {
        return Err(unfit(&folder, "has a path that needs quotes")
            .next("choose a --dir without quotes, backslashes, `$` and `#`"));
    }
    let seen = fs::metadata(&folder).map_err(|error| fail(&error))?;
    check_owner(&folder, &seen)?;
    let mut entries = fs::read_dir(&folder).map_err(|error| fail(&error))?;
    let is_empty = entries.next().is_none();
    if !is_empty && !folder.join(LOCK).exists() {
        return Err(
            unfit(&folder, "holds something else than a `strongroom dev`")
                .next("choose a --dir that is empty or not there"),
        );
    }
    // Of an empty one, a group's rights may come from the umask; anybody's are a directory's like
    // /tmp.
    if seen.mode() & if is_empty { 0o002 } else { 0o022 } != 0 {
        return Err(
            unfit(&folder, "lets others write to it, who could swap its files").next(format!(
                "choose another --dir; or, if all in it is yours, run `chmod 700 {}`",
                folder.display()
            )),
        );
    }
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))
        .map_err(|error| fail(&error))?;
    Ok(folder)
}

/// Without links, whether or not its end is there yet.
fn whole_path(folder: &Path) -> Result<PathBuf, Failure> {
    let fail = |error: &io::Error| Failure::file(folder, error);
    let path = std::path::absolute(folder).map_err(|error| fail(&error))?;
    for there in path.ancestors() {
        let missing = path.strip_prefix(there).unwrap_or(&path);
        match there.canonicalize() {
            Ok(there)
                if missing
                    .components()
                    .all(|part| part != Component::ParentDir) =>
            {
                return Ok(there.join(missing));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(&error)),
            _ => {}
        }
    }
    Err(unfit(folder, "goes back from what is not there").next("choose a --dir without `..`"))
}

fn refuse_production(folder: &Path) -> Result<(), Failure> {
    match PRODUCTION.iter().find(|path| folder.starts_with(path)) {
        Some(place) => Err(unfit(
            folder,
            &format!("is a production appliance's, as everything below {place}"),
        )
        .next("choose another --dir")),
        None => Ok(()),
    }
}

/// Takes from everybody else what they may do with what is in it: a copy of a directory often has
/// other modes than the original.
fn make_private(folder: &Path) -> Result<(), Failure> {
    for entry in WalkDir::new(folder) {
        let found = entry.and_then(|entry| {
            let seen = entry.metadata()?;
            Ok((entry, seen))
        });
        let (entry, seen) = match found {
            Ok(found) => found,
            // A server that was killed with its parent tidies up.
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(Failure::caused(Exit::Usage, &error)),
        };
        let path = entry.path();
        check_owner(path, &seen)?;
        let mode = seen.mode() & 0o7777;
        if !seen.is_symlink() && mode & 0o077 != 0 {
            fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o700))
                .map_err(|error| Failure::file(path, &error))?;
        }
    }
    Ok(())
}

fn is_gone(error: &walkdir::Error) -> bool {
    error
        .io_error()
        .is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn check_owner(path: &Path, seen: &Metadata) -> Result<(), Failure> {
    if seen.uid() == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    Err(
        unfit(path, &format!("is of another user (uid {})", seen.uid()))
            .next("run it as that user, or choose another --dir"),
    )
}

fn unfit(path: &Path, why: &str) -> Failure {
    Failure::new(Exit::Usage, format!("{} {why}", path.display()))
}

fn make_folder(folder: &Path) -> Result<(), Failure> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| Failure::file(folder, &error))
}
