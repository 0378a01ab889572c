//! What a configuration names: whether it is there and can be used, asked without starting
//! anything.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use strongroom_hsm::PinSource;

use super::{Config, ConfigError};
use crate::policy::Policy;
use crate::tls::Tls;
use crate::tokens::Tokens;
use crate::{atomic, files};

impl Config {
    /// Reads every file that a start would read, but for the store, the token and the audit log
    /// themselves.
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
        problems.extend(readable("hsm.module", &self.hsm.module));
        // A systemd credential exists only inside the service.
        if let PinSource::File(path) = &self.hsm.pin {
            problems.extend(no_pin(path).or_else(|| secret(path)));
        }
        problems.extend(folder_of("store.path", &self.store));
        problems.extend(folder_of("audit.path", &self.audit.path));
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ConfigError(problems))
        }
    }
}

fn readable(setting: &str, path: &Path) -> Option<String> {
    let problem = files::open(path).err()?;
    Some(format!(
        "{setting}: {} can't be read: {problem}",
        path.display()
    ))
}

/// Its name is said only if it is one: it may be the PIN itself.
fn no_pin(path: &Path) -> Option<String> {
    match files::open(path).err()?.kind() {
        io::ErrorKind::NotFound => Some(format!(
            "hsm.pin_file: no file in {} has the name that it gives: put the PIN into one, and write its path here",
            atomic::folder(path).display()
        )),
        _ => readable("hsm.pin_file", path),
    }
}

/// As the start asks it of a PIN: a group may read it, as systemd has its credentials in places.
fn secret(path: &Path) -> Option<String> {
    let mode = path.metadata().ok()?.permissions().mode();
    (mode & 0o027 != 0).then(|| {
        format!(
            "hsm.pin_file: {} is open to others (mode {:04o}): run `chmod 0400` on it, and change the PIN if others may have read it",
            path.display(),
            mode & 0o7777
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
            "hsm.pin_file",
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
            use std::os::unix::fs::PermissionsExt;
            fs::write(folder.path().join(name), text).unwrap();
            let mode = fs::Permissions::from_mode(0o600);
            fs::set_permissions(folder.path().join(name), mode).unwrap();
        };
        write("module.so", "");
        write("pin", "1234");
        write("policy.toml", include_str!("../../../examples/policy.toml"));
        write("tokens.toml", include_str!("../../../examples/tokens.toml"));
        write("tls/server.pem", &certificate);
        write("tls/server.key", &key.serialize_pem());
        write("tls/client-ca.pem", &certificate);
        config.check().unwrap();
        let pin = folder.path().join("pin");
        fs::set_permissions(&pin, fs::Permissions::from_mode(0o604)).unwrap();
        let ConfigError(problems) = config.check().unwrap_err();
        assert!(problems[0].contains("chmod 0400"), "{problems:?}");
    }
}
