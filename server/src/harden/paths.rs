//! The files that the server needs, found before the way to others is closed.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};

use strongroom_core::config::module::{self, of_home, setting};
use strongroom_core::config::walk::walk;
use strongroom_core::config::{Config, Hardening};
use strongroom_core::files;

/// Libraries of the C library, of the PKCS#11 module, and their settings.
const SYSTEM_PATHS: [&str; 16] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/ssl",
    "/etc/pki",
    "/etc/pkcs11",
    "/usr/share/p11-kit",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/dev/urandom",
    "/dev/random",
    "/sys/devices/system/cpu",
];

/// What may be read, and what written.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    /// The store: its owner is whom the server becomes.
    pub state: PathBuf,
    /// Files, and directories with all that is in them.
    pub read: BTreeSet<PathBuf>,
    /// The same.
    pub write: BTreeSet<PathBuf>,
}

impl Paths {
    /// Those of a configuration. Of each file that is read its `places`; of each that is written
    /// its directory.
    pub fn new(config: &Config, options: &Hardening) -> Self {
        let mut paths = Self {
            state: config.store.clone(),
            ..Self::default()
        };
        for file in config.obeyed() {
            paths.read.extend(places(file));
        }
        paths
            .read
            .extend(env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from));
        paths.read.extend(SYSTEM_PATHS.map(PathBuf::from));
        let libraries = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        paths
            .read
            .extend(env::split_paths(&libraries).filter(|path| path.is_absolute()));
        paths.write.insert(config.store.clone());
        paths.write.extend(folders(&config.audit.path));
        paths.write.insert("/dev/null".into());
        paths.module(&config.hsm.module);
        paths.read.extend(options.read.iter().cloned());
        paths.write.extend(options.write.iter().cloned());
        paths
    }

    /// One more file that is written.
    #[must_use]
    pub fn written(mut self, file: Option<&Path>) -> Self {
        self.write.extend(file.into_iter().flat_map(folders));
        self
    }

    /// Where the PKCS#11 module has its own settings and tokens.
    fn module(&mut self, module: &Path) {
        // p11-kit's modules of a user.
        self.read.extend(of_home(".config/pkcs11"));
        if let Some(file) = module::yubihsm() {
            self.read.extend(folders(&file));
        }
        self.tokens(env::var_os("TPM2_PKCS11_STORE").map(PathBuf::from));
        // SoftHSM keeps its tokens where its settings say.
        if let Some(file) = module::softhsm(module) {
            self.read.extend(folders(&file));
            self.tokens(module::softhsm_tokens(&file));
        }
        if let Some(file) = module::kryoptic() {
            self.read.extend(folders(&file));
            // `dbargs` of each slot: SQLite makes files beside its database.
            let text = files::read_to_string(&file, files::MAX_WRITTEN_BY_HAND).unwrap_or_default();
            let databases = text.lines().filter_map(|line| setting(line, "dbargs"));
            self.tokens(databases.flat_map(|database| folders(&database)));
        }
    }

    /// Directories of tokens, which settings of the module name. One of the system's is more than
    /// tokens.
    fn tokens(&mut self, folders: impl IntoIterator<Item = PathBuf>) {
        for folder in folders {
            if is_the_systems(&folder) {
                tracing::warn!(
                    folder = %folder.display(),
                    "the module's settings keep tokens right in a directory of the system's, which is not opened for writing: give them a directory of their own, or name it in hardening.write"
                );
            } else {
                self.write.insert(folder);
            }
        }
    }
}

/// Where a file is, and where it may be after it was replaced or a link was turned: its directory,
/// and for each link on the way to it the directory that holds the link and the one that holds what
/// it leads to. Each with all below it, since whoever renews certificates makes new directories
/// there, and turns the link to them.
///
/// A directory of the system's, as `/etc`, is not opened for that: of a file there, only the file
/// as it is now.
fn places(file: &Path) -> BTreeSet<PathBuf> {
    let steps = walk(file);
    let mut places: BTreeSet<PathBuf> = folders(file).into_iter().collect();
    for step in steps.iter().filter(|step| step.target.is_some()) {
        let target = step
            .target
            .as_ref()
            .and_then(|target| target.canonicalize().ok());
        places.extend(step.path.parent().map(Path::to_owned));
        places.extend(target.as_deref().and_then(Path::parent).map(Path::to_owned));
    }
    let all = places.len();
    places.retain(|folder| !is_the_systems(folder));
    if places.len() < all {
        // The file as it is now; a link in a directory of the system's is followed once.
        places.extend(steps.last().map(|step| step.path.clone()));
        tracing::warn!(
            file = %file.display(),
            "it, or a link to it, is in a directory of the system's: when it is replaced there, restart; better give it a directory of its own"
        );
    }
    places
}

/// The root, the directories of the file hierarchy standard, where each program has its own, and
/// homes. Another one right in the root, as a volume at `/certs`, is somebody's own.
fn is_the_systems(folder: &Path) -> bool {
    const SHARED_DIRECTORIES: [&str; 37] = [
        "/",
        "/bin",
        "/boot",
        "/dev",
        "/etc",
        "/home",
        "/lib",
        "/lib32",
        "/lib64",
        "/libx32",
        "/media",
        "/mnt",
        "/opt",
        "/proc",
        "/root",
        "/run",
        "/sbin",
        "/srv",
        "/sys",
        "/tmp",
        "/usr",
        "/usr/bin",
        "/usr/lib",
        "/usr/lib32",
        "/usr/lib64",
        "/usr/libx32",
        "/usr/sbin",
        "/var",
        "/var/tmp",
        "/var/lib",
        "/var/log",
        "/var/run",
        "/var/etc",
        "/var/spool",
        "/run/user",
        "/usr/local",
        "/usr/share",
    ];
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    SHARED_DIRECTORIES
        .iter()
        .any(|shared| folder == Path::new(shared))
        || folder.parent() == Some(Path::new("/home"))
}

/// The file's directory as it is written, and as it really is.
fn folders(file: &Path) -> Vec<PathBuf> {
    let real = file.canonicalize().ok();
    [Some(file), real.as_deref()]
        .into_iter()
        .flatten()
        .filter_map(|path| match path.parent() {
            Some(folder) if folder != Path::new("") => Some(folder.to_owned()),
            Some(_) => Some(".".into()),
            None => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    #[test]
    fn a_link_counts_at_both_its_ends() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        fs::create_dir_all(real.join("archive")).unwrap();
        fs::create_dir_all(real.join("live")).unwrap();
        fs::write(real.join("archive/cert1.pem"), "").unwrap();
        std::os::unix::fs::symlink("../archive/cert1.pem", real.join("live/cert.pem")).unwrap();
        assert_eq!(
            folders(&real.join("live/cert.pem")),
            [real.join("live"), real.join("archive")]
        );
        assert_eq!(folders(&real.join("none/file")), [real.join("none")]);
        assert_eq!(folders(Path::new("file")), [PathBuf::from(".")]);
    }

    #[test]
    fn a_setting_is_a_path_quoted_or_not() {
        let path = Some(PathBuf::from("/var/lib/tokens"));
        assert_eq!(
            setting(
                "directories.tokendir = /var/lib/tokens",
                "directories.tokendir"
            ),
            path
        );
        assert_eq!(setting("dbargs = \"/var/lib/tokens\"", "dbargs"), path);
        assert_eq!(setting("dbargs = \"tokens\"", "dbargs"), None);
        assert_eq!(setting("dbtype = \"/var/lib/tokens\"", "dbargs"), None);
    }

    #[test]
    fn wherever_a_link_may_be_turned_is_opened_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, root.join(name)).unwrap();
        };
        for made in ["tls", "certs/v1", "store/2026", "mount/..1", "pin"] {
            fs::create_dir_all(root.join(made)).unwrap();
        }
        for made in ["certs/v1/a", "store/2026/a", "mount/..1/a", "pin/a"] {
            fs::write(root.join(made), "").unwrap();
        }
        link("v1", "certs/current");
        link("../certs/current/a", "tls/a");
        link("..1", "mount/..data");
        link("..data/a", "mount/a");
        let absolute = root.join("store/2026");
        link(absolute.to_str().unwrap(), "certs/other");
        for (file, expected) in [
            ("tls/a", &["certs", "certs/v1", "tls"][..]),
            ("mount/a", &["mount", "mount/..1"]),
            (
                "certs/other/a",
                &["certs", "certs/other", "store", "store/2026"],
            ),
            ("pin/a", &["pin"]),
        ] {
            let expected: BTreeSet<_> = expected.iter().map(|name| root.join(name)).collect();
            assert_eq!(places(&root.join(file)), expected, "{file}");
        }
        // Never all of /etc, for one file or link in it.
        assert_eq!(
            places(Path::new("/etc/passwd")),
            BTreeSet::from([PathBuf::from("/etc/passwd")])
        );
        for folder in [
            "/",
            "/etc",
            "/run",
            "/var/lib",
            "/var/run",
            "/home",
            "/home/somebody",
            "/root",
            "/tmp",
            "/mnt",
            "/lib",
            "/bin",
            "/lib64",
        ] {
            assert!(is_the_systems(Path::new(folder)), "{folder}");
        }
        for folder in [
            "/etc/strongroom",
            "/var/lib/strongroom",
            "/home/somebody/tls",
            "/certs",
            "/tls",
            "/secrets",
            "/mnt/certs",
        ] {
            assert!(!is_the_systems(Path::new(folder)), "{folder}");
        }
        // A volume that is mounted right in the root.
        assert_eq!(
            places(Path::new("/no-such-volume/server.pem")),
            BTreeSet::from([PathBuf::from("/no-such-volume")])
        );
    }

    #[test]
    fn of_the_shipped_example_only_its_own_folders_are_written() {
        let text = include_str!("../../../examples/strongroom.toml");
        let config = Config::parse(text, Path::new("/etc/strongroom/strongroom.toml")).unwrap();
        let paths = Paths::new(&config, &config.hardening);
        assert!(paths.read.contains(Path::new("/etc/strongroom/tls")));
        let ours = |path: &&PathBuf| {
            path.starts_with("/var/lib/strongroom") || **path == Path::new("/dev/null")
        };
        let others: Vec<_> = paths.write.iter().filter(|path| !ours(path)).collect();
        // The tests' own token, or the system's: wherever SoftHSM has it here.
        assert!(others.len() <= 1, "{others:?}");
    }

    #[test]
    fn tokens_open_no_folder_of_the_systems_for_writing() {
        let mut paths = Paths::default();
        let own = ["/var/lib/softhsm/tokens", "/tokens"].map(PathBuf::from);
        let systems = ["/", "/etc", "/var/lib/", "/etc/../", "/home/somebody"].map(PathBuf::from);
        paths.tokens(systems.into_iter().chain(own.clone()));
        assert_eq!(paths.write, BTreeSet::from(own));
    }
}
