//! Who can change what the server obeys: the configuration and each file that it names, and every
//! directory and link on the way to them.
//!
//! As OpenSSH's `StrictModes`: nobody but root, whoever runs this, and the server's own user may
//! write there. A directory that others may write to is taken only if it is sticky, as `/tmp`:
//! nobody can rename in it what belongs to others, and what is taken from it belongs to one of
//! those.

use std::fs::{self, Metadata};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use nix::unistd::{User, geteuid};
use strongroom_hsm::PinSource;

use super::walk::{Step, walk};
use super::{Config, ConfigError};

const GROUP_OR_OTHERS_WRITE: u32 = 0o022;
const GROUP_OR_OTHERS_ANY: u32 = 0o077;
const STICKY_BIT: u32 = 0o1000;

/// What to do where nobody inside can change the mode.
pub(crate) const EMPTY_DIR_ADVICE: &str = ", or, if it is a Kubernetes emptyDir, have an init container make a directory in it (mode 0755) and mount only that, by `subPath`";

/// Whose files are obeyed.
#[derive(Clone, Debug)]
struct Owners(Vec<u32>);

impl Owners {
    /// Root, whoever runs this, and the user that the server becomes.
    fn of(config: &Config) -> Self {
        let mut owners = Self::own();
        owners
            .0
            .extend(fs::metadata(&config.store).ok().map(|store| store.uid()));
        // A server that is confined is that user by now, and can't look names up any more.
        if geteuid().is_root() {
            let user = config.hardening.user.as_deref();
            let user = user.and_then(|name| User::from_name(name).ok().flatten());
            owners.0.extend(user.map(|user| user.uid.as_raw()));
        }
        owners
    }

    /// Root and whoever runs this.
    fn own() -> Self {
        let mut owners = Self(vec![0, geteuid().as_raw()]);
        owners.0.extend(*OVERFLOW_UID);
        owners
    }

    /// Whether only they can change the file. One that is not there is no matter of this.
    ///
    /// # Errors
    /// Which file, directory or link is open to whom, and what to do.
    fn alone_write(&self, file: &Path) -> Result<(), String> {
        for step in walk(file) {
            self.judge(&step, file)?;
        }
        Ok(())
    }

    fn judge(&self, step: &Step, file: &Path) -> Result<(), String> {
        let (at, mode) = (step.path.display(), step.seen.permissions().mode());
        let kind = step.seen.file_type();
        if !(kind.is_file() || kind.is_dir() || kind.is_symlink()) {
            return Ok(());
        }
        let sticky = kind.is_dir() && mode & STICKY_BIT != 0;
        if mode & GROUP_OR_OTHERS_WRITE != 0 && !sticky && !kind.is_symlink() {
            let volume = if kind.is_dir() && mode & GROUP_OR_OTHERS_ANY == GROUP_OR_OTHERS_ANY {
                EMPTY_DIR_ADVICE
            } else {
                ""
            };
            return Err(format!(
                "{} can be changed by others: {at} has mode {:04o}; run `chmod go-w {at}`{volume}",
                file.display(),
                mode & 0o7777,
            ));
        }
        if self.0.contains(&step.seen.uid()) {
            return Ok(());
        }
        Err(format!(
            "{} can be changed by the user {}, who owns {at}: give that to root, or to the user that the server runs as",
            file.display(),
            step.seen.uid(),
        ))
    }
}

impl Config {
    /// Whether only root, whoever runs this, and the server's user can change the files; all that
    /// is not so.
    ///
    /// # Errors
    /// Each problem names the file, what is open, and what to do.
    pub fn trust<'a>(&self, files: impl IntoIterator<Item = &'a Path>) -> Result<(), ConfigError> {
        let owners = Owners::of(self);
        let problems: Vec<String> = files
            .into_iter()
            .filter_map(|file| owners.alone_write(file).err())
            .collect();
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ConfigError(problems))
        }
    }

    /// Every file that is obeyed or kept secret, and that the configuration names.
    pub fn obeyed(&self) -> Vec<&Path> {
        let pin = match &self.hsm.pin {
            PinSource::File(path) => Some(path),
            _ => None,
        };
        self.tls
            .all()
            .chain([&self.policy, &self.hsm.module])
            .chain(&self.tokens)
            .chain(pin)
            .map(PathBuf::as_path)
            .collect()
    }
}

/// In a user namespace, what belongs to users outside of it has the owner "nobody". That is
/// everybody, and trusted only where it is the system too: where root has no number inside, as in a
/// rootless container. With `PrivateUsers=` root keeps its own, and "nobody" is some other user.
/// Asked once: a server that is confined can't see it any more.
static OVERFLOW_UID: LazyLock<Option<u32>> = LazyLock::new(|| {
    const OVERFLOW_UID_FILE: &str = "/proc/sys/kernel/overflowuid";
    let nobody = fs::read_to_string(OVERFLOW_UID_FILE)
        .ok()?
        .trim()
        .parse()
        .ok()?;
    // The kernel's own files belong to the root of all namespaces.
    (fs::metadata(OVERFLOW_UID_FILE).ok()?.uid() == nobody).then_some(nobody)
});

/// Whether anybody at all can rename what is in a directory, and put something else in its place.
pub(crate) fn is_anybodys(seen: &Metadata) -> bool {
    const OTHERS_WRITE: u32 = 0o002;
    seen.is_dir() && seen.mode() & (OTHERS_WRITE | STICKY_BIT) == OTHERS_WRITE
}

/// Whether that user is outside of this user namespace, and the system too.
pub(crate) fn is_outside(uid: u32) -> bool {
    *OVERFLOW_UID == Some(uid)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_others_can_write_to_is_refused_wherever_it_is_on_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("a/real/deep")).unwrap();
        fs::write(root.join("a/real/deep/file"), "").unwrap();
        symlink("real/deep", root.join("a/link")).unwrap();
        symlink(root.join("a/link/file"), root.join("a/file")).unwrap();
        let owners = Owners::own();
        let file = root.join("a/file");
        owners.alone_write(&file).unwrap();
        owners.alone_write(&root.join("a/../a/link/file")).unwrap();
        owners.alone_write(&root.join("none/there")).unwrap();
        for (path, good, bad) in [
            ("a/real/deep/file", 0o644, 0o646),
            ("a/real/deep/file", 0o600, 0o620),
            ("a/real/deep", 0o755, 0o775),
            ("a/real", 0o755, 0o757),
            ("a", 0o700, 0o702),
            ("a", 0o755, 0o777),
            ("a", 0o755, 0o2777),
        ] {
            mode(&root.join(path), bad);
            let error = owners.alone_write(&file).unwrap_err();
            assert!(
                error.contains(&format!("chmod go-w {}", root.join(path).display())),
                "{error}"
            );
            // As a Kubernetes emptyDir is.
            assert_eq!(error.contains("subPath"), bad & 0o777 == 0o777, "{error}");
            mode(&root.join(path), good);
            owners.alone_write(&file).unwrap();
        }
        // What is sticky protects what belongs to us.
        mode(&root.join("a/real"), 0o1777);
        owners.alone_write(&file).unwrap();
        if geteuid().is_root() {
            for (path, link) in [("a/file", true), ("a/real/deep", false), ("a", false)] {
                let change = |uid| {
                    if link {
                        std::os::unix::fs::lchown(root.join(path), Some(uid), None)
                    } else {
                        chown(root.join(path), Some(uid), None)
                    }
                };
                change(4242).unwrap();
                let error = owners.alone_write(&file).unwrap_err();
                assert!(error.contains("the user 4242, who owns"), "{error}");
                change(0).unwrap();
            }
        }
        owners.alone_write(&file).unwrap();
    }

    /// It runs itself again inside of user namespaces.
    #[test]
    fn nobody_is_trusted_only_where_that_is_root_too() {
        const INSIDE: &str = "STRONGROOM_TEST_NAMESPACE";
        let nobody = 65534;
        if let Ok(expected) = std::env::var(INSIDE) {
            assert_eq!(
                Owners::own().0.contains(&nobody),
                expected == "trusted" || geteuid().as_raw() == nobody
            );
            return;
        }
        assert!(!Owners::own().0.contains(&nobody) || geteuid().as_raw() == nobody);
        let test = "config::trust::tests::nobody_is_trusted_only_where_that_is_root_too";
        let root_is_inside: &[&str] = &["unshare", "--user", "--map-root-user"];
        let root_is_outside: &[&str] = &[
            "setpriv",
            "--reuid=4242",
            "--clear-groups",
            "unshare",
            "--user",
            "--map-root-user",
        ];
        let cases = if geteuid().is_root() {
            vec![(root_is_inside, "refused"), (root_is_outside, "trusted")]
        } else {
            vec![(root_is_inside, "trusted")]
        };
        // The program where everybody can run it.
        let folder = tempfile::tempdir().unwrap();
        mode(folder.path(), 0o755);
        let program = folder.path().join("test");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        mode(&program, 0o755);
        for (way, expected) in cases {
            let inside = |program: &Path| {
                let (first, rest) = way.split_first().unwrap();
                let mut command = std::process::Command::new(first);
                command.args(rest).arg(program);
                command
            };
            let there = inside(Path::new("true")).output();
            if !there.is_ok_and(|output| output.status.success()) {
                eprintln!("skipped: no namespace by {way:?}");
                continue;
            }
            let output = inside(&program)
                .args(["--exact", test])
                .env(INSIDE, expected)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && text.contains("1 passed"),
                "{way:?}: {output:?}"
            );
        }
    }
}
