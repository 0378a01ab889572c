//! The settings of the PKCS#11 module itself: files that it obeys, found as it finds them.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::files;

/// SoftHSM's settings, below a user's home and for all.
const SOFTHSM_USER_CONFIGURATION: &str = ".config/softhsm2/softhsm2.conf";
const SOFTHSM_SYSTEM_CONFIGURATION: &str = "/etc/softhsm/softhsm2.conf";

/// p11-kit's: what it loads.
const P11_KIT_SYSTEM_DIRECTORIES: [&str; 2] = ["/etc/pkcs11/modules", "/usr/share/p11-kit/modules"];
const P11_KIT_USER_DIRECTORY: &str = ".config/pkcs11/modules";

/// SoftHSM looks for its settings in this order. `SOFTHSM2_CONF` counts with other modules too: one
/// may stand before SoftHSM.
pub fn softhsm(module: &Path) -> Option<PathBuf> {
    let of_user = || of_home(SOFTHSM_USER_CONFIGURATION).filter(|file| file.exists());
    let usual = || of_user().or_else(|| Some(SOFTHSM_SYSTEM_CONFIGURATION.into()));
    let by_name = is_named(module, "softhsm");
    named("SOFTHSM2_CONF").or_else(|| by_name.then(usual).flatten())
}

/// Where SoftHSM keeps its tokens, by these settings of its.
pub fn softhsm_tokens(settings: &Path) -> Option<PathBuf> {
    let text = files::read_to_string(settings, files::MAX_WRITTEN_BY_HAND).ok()?;
    let mut lines = text.lines();
    lines.find_map(|line| setting(line, "directories.tokendir"))
}

/// The path of a line `name = path`, quoted or not.
pub fn setting(line: &str, name: &str) -> Option<PathBuf> {
    let (found, value) = line.split_once('=')?;
    let value = value.trim().trim_matches('"');
    (found.trim() == name && value.starts_with('/')).then(|| value.into())
}

/// Kryoptic's settings, where they are named.
pub fn kryoptic() -> Option<PathBuf> {
    named("KRYOPTIC_CONF")
}

/// The settings of `YubiHSM`'s module, where they are named.
pub fn yubihsm() -> Option<PathBuf> {
    named("YUBIHSM_PKCS11_CONF")
}

/// Below the home of whoever runs this.
pub fn of_home(path: &str) -> Option<PathBuf> {
    env::var_os("HOME").map(|home| Path::new(&home).join(path))
}

/// Of OpenSSL, which many modules are made of: its settings may name code to load, and the others
/// are directories of it.
const OPENSSL_VARIABLES: [&str; 3] = ["OPENSSL_CONF", "OPENSSL_MODULES", "OPENSSL_ENGINES"];

/// Every file and directory of settings: they decide what code runs, and what is written where.
pub fn settings(module: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = [softhsm(module), kryoptic(), yubihsm()]
        .into_iter()
        .flatten()
        .chain(OPENSSL_VARIABLES.into_iter().filter_map(named))
        .collect();
    if is_named(module, "p11-kit") {
        let folders = P11_KIT_SYSTEM_DIRECTORIES.map(PathBuf::from).into_iter();
        for folder in folders.chain(of_home(P11_KIT_USER_DIRECTORY)) {
            found.extend(of_p11_kit(folder, module));
        }
    }
    found
}

/// A directory of p11-kit's files, all of these, and what they have p11-kit run.
fn of_p11_kit(folder: PathBuf, p11_kit: &Path) -> Vec<PathBuf> {
    let files = in_folder(&folder);
    let mut found: Vec<PathBuf> = files
        .iter()
        .flat_map(|file| loaded_by(file, p11_kit))
        .collect();
    found.extend(files);
    // Whoever can write there puts another one beside them.
    found.push(folder);
    found
}

fn in_folder(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    // Others than `*.module` too: p11-kit warns of their names, and loads what they name.
    entries.map(|entry| entry.path()).collect()
}

/// What p11-kit runs for one of its files: the library of `module:`, which without a path is in the
/// directory `pkcs11` beside p11-kit's own, and the programs and files that `remote:` names.
fn loaded_by(file: &Path, p11_kit: &Path) -> Vec<PathBuf> {
    let Ok(text) = files::read_to_string(file, files::MAX_WRITTEN_BY_HAND) else {
        return Vec::new();
    };
    // Where the library is, and not where a link to it is.
    let own = p11_kit.canonicalize();
    let beside = |path: &Path| Some(path.parent()?.join("pkcs11"));
    let places = [beside(p11_kit), own.ok().as_deref().and_then(beside)];
    let mut found = Vec::new();
    for line in text.lines() {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        match name.trim() {
            "module" => {
                let library = Path::new(value.trim());
                // An absolute one takes the place of the directory's.
                found.extend(places.iter().flatten().map(|place| place.join(library)));
            }
            "remote" => {
                let words = value.split(['|', ' ', '\t', '"', '\'', '=']);
                found.extend(
                    words
                        .filter(|word| word.starts_with('/'))
                        .map(PathBuf::from),
                );
            }
            _ => {}
        }
    }
    found.sort();
    found.dedup();
    found
}

fn is_named(module: &Path, name: &str) -> bool {
    module.to_string_lossy().contains(name)
}

fn named(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_module_obeys_is_found_by_its_name() {
        let of = |module: &str| settings(Path::new(module));
        let proxy = of("/usr/lib/p11-kit-proxy.so");
        assert!(
            P11_KIT_SYSTEM_DIRECTORIES
                .iter()
                .all(|folder| proxy.contains(&folder.into()))
        );
        let other = of("/opt/vendor/module.so");
        assert!(
            P11_KIT_SYSTEM_DIRECTORIES
                .iter()
                .all(|folder| !other.contains(&Path::new(folder).into()))
        );
        if env::var_os("SOFTHSM2_CONF").is_none() {
            assert!(other.is_empty(), "{other:?}");
            assert_eq!(of("/usr/lib/softhsm/libsofthsm2.so").len(), 1);
        }
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.module", "b.module", "c.txt"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let mut found = in_folder(folder.path());
        found.sort();
        assert_eq!(
            found,
            ["a.module", "b.module", "c.txt"].map(|name| folder.path().join(name))
        );
    }

    #[test]
    fn what_p11_kit_loads_is_found_in_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.module");
        let loaded = |text: &str| {
            fs::write(&file, text).unwrap();
            let mut all = of_p11_kit(
                folder.path().into(),
                Path::new("/none/lib/p11-kit-proxy.so"),
            );
            all.retain(|path| !path.starts_with(folder.path()));
            all
        };
        for (text, expected) in [
            ("module: /opt/hsm.so\n", &["/opt/hsm.so"][..]),
            (
                "# a comment\n  module :hsm.so \ncritical: yes\n",
                &["/none/lib/pkcs11/hsm.so"],
            ),
            (
                "remote: |/usr/bin/p11-kit remote /opt/hsm.so\n",
                &["/opt/hsm.so", "/usr/bin/p11-kit"],
            ),
            ("remote: unix:path=/run/hsm.socket\n", &["/run/hsm.socket"]),
            ("#module: /opt/hsm.so\nenable-in: x\n", &[]),
        ] {
            let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(loaded(text), expected, "{text}");
        }
    }
}
