//! What a configuration names: whether it is there and can be used, asked without starting
//! anything.

use std::io::{self, Read as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use super::{Config, ConfigError};
use crate::policy::Policy;
use crate::store::Store;
use crate::tls::Tls;
use crate::tokens::Tokens;
use crate::{atomic, files};

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";

impl Config {
    /// Reads every file that a start would read, but for the token and what is in the store and the
    /// audit log.
    ///
    /// # Errors
    /// Every problem at once, each with its file.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        problems.extend(Tls::problems(&self.tls).iter().map(ToString::to_string));
        problems.extend(
            Policy::load(&self.policy)
                .err()
                .map(|error| error.to_string()),
        );
        let tokens = self.tokens.as_deref().map(Tokens::load);
        problems.extend(tokens.and_then(Result::err).map(|error| error.to_string()));
        problems.extend(no_library("hsm.module", &self.hsm.module));
        problems.extend(self.hsm.pin.check().err().map(|error| error.to_string()));
        let store = || {
            Store::check_place(&self.store)
                .err()
                .map(|error| error.to_string())
        };
        problems.extend(folder_of("store.path", &self.store).or_else(store));
        let log = || no_log("audit.path", &self.audit.path);
        problems.extend(folder_of("audit.path", &self.audit.path).or_else(log));
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ConfigError(problems))
        }
    }
}

/// What the loader would not take is not loaded to find that out: its code would run as whoever
/// asks.
fn no_library(setting: &str, path: &Path) -> Option<String> {
    let mut begin = [0; ELF_MAGIC.len()];
    let read = files::open(path).and_then(|mut file| file.read_exact(&mut begin));
    match read {
        Ok(()) if begin == ELF_MAGIC => None,
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Some(format!(
            "{setting}: {} can't be read: {error}",
            path.display()
        )),
        _ => Some(format!(
            "{setting}: {} is no shared library: name the PKCS#11 module of the HSM's maker",
            path.display()
        )),
    }
}

/// A pipe would be waited for; of devices those that take lines may be meant.
fn no_log(setting: &str, path: &Path) -> Option<String> {
    let kind = path.metadata().ok()?.file_type();
    (!kind.is_file() && !kind.is_char_device()).then(|| {
        format!(
            "{setting}: {} is not a regular file: move it away, or name another one",
            path.display()
        )
    })
}

/// The file or directory itself is made when it is first needed; the directory around it is the
/// operator's.
fn folder_of(setting: &str, path: &Path) -> Option<String> {
    let folder = atomic::folder(path);
    (!folder.is_dir()).then(|| {
        format!(
            "{setting}: the directory {} is not there: make it, and let the server's user write to it",
            folder.display()
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn everything_that_is_missing_is_said_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let text = include_str!("../../../examples/strongroom.toml")
            .replace("pin_credential = \"hsm-pin\"", "pin_file = \"pin\"")
            .replace("/usr/lib/softhsm/libsofthsm2.so", "module.so")
            .replace("/var/lib/strongroom/store", "lib/store")
            .replace("/var/lib/strongroom/audit.log", "log/audit.log")
            .replace("crls = ", "# crls = ")
            .replace("# [tokens]", "[tokens]")
            .replace("# path = \"tokens.toml\"", "path = \"tokens.toml\"");
        let config = Config::parse(&text, &folder.path().join("strongroom.toml")).unwrap();
        let ConfigError(problems) = config.check().unwrap_err();
        let expected = [
            "server.pem",
            "server.key",
            "client-ca.pem",
            "policy.toml",
            "tokens.toml",
            "hsm.module",
            "the PIN file",
            "store.path",
            "audit.path",
        ];
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        for (problem, part) in problems.iter().zip(expected) {
            assert!(problem.contains(part), "{part} is not in {problem}");
        }

        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        // One certificate does for both: this test is not about TLS.
        let certificate = params.self_signed(&key).unwrap().pem();
        for made in ["tls", "lib", "log"] {
            fs::create_dir(folder.path().join(made)).unwrap();
        }
        let write = |name: &str, text: &str| {
            fs::write(folder.path().join(name), text).unwrap();
            let mode = fs::Permissions::from_mode(0o600);
            fs::set_permissions(folder.path().join(name), mode).unwrap();
        };
        write("module.so", "\x7fELF, and more");
        write("pin", "1234");
        write("policy.toml", include_str!("../../../examples/policy.toml"));
        write("tokens.toml", include_str!("../../../examples/tokens.toml"));
        write("tls/server.pem", &certificate);
        write("tls/server.key", &key.serialize_pem());
        write("tls/client-ca.pem", &certificate);
        config.check().unwrap();
        let one = |expected: &str| {
            let ConfigError(problems) = config.check().unwrap_err();
            assert_eq!(problems.len(), 1, "{problems:#?}");
            assert!(problems[0].contains(expected), "{problems:#?}");
        };
        let pin = folder.path().join("pin");
        fs::set_permissions(&pin, fs::Permissions::from_mode(0o604)).unwrap();
        one("chmod 0400");
        write("pin", "\n");
        one("holds no PIN");
        write("pin", "1234");
        for text in ["", "#!/bin/sh\n"] {
            write("module.so", text);
            one("is no shared library");
        }
        write("module.so", "\x7fELF, and more");
        let log = folder.path().join("log/audit.log");
        fs::create_dir(&log).unwrap();
        one("audit.path: ");
        fs::remove_dir(&log).unwrap();
        write("log/audit.log", "");
        let store = folder.path().join("lib/store");
        write("lib/store", "");
        one("is not a directory");
        fs::remove_file(&store).unwrap();
        fs::create_dir(&store).unwrap();
        fs::set_permissions(&store, fs::Permissions::from_mode(0o755)).unwrap();
        one("chmod 700");
        fs::set_permissions(&store, fs::Permissions::from_mode(0o700)).unwrap();
        config.check().unwrap();
    }
}
