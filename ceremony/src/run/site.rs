//! Where the appliance's files go: the plan's directories, or a rehearsal's own.

use std::path::{Path, PathBuf};

use strongroom_hsm::KeyShape;

use crate::Plan;
use crate::plan::PinMethod;

/// The credential's name in strongroom.toml and in the service's unit.
pub(super) const CREDENTIAL: &str = "hsm-pin";
/// The same for the TLS key.
pub(super) const TLS_KEY_CREDENTIAL: &str = "tls-key";

/// How the service gets its PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PinPlace {
    /// `systemd-creds`.
    Credential,
    /// A file of mode 0400.
    File,
}

/// The appliance's places.
#[derive(Clone, Debug)]
pub(super) struct Site {
    pub(super) module: PathBuf,
    /// The token that the plan names.
    pub(super) serial: Option<String>,
    pub(super) folder: PathBuf,
    pub(super) state: PathBuf,
    pub(super) listen: String,
    pub(super) names: Vec<String>,
    pub(super) pin_place: PinPlace,
}

impl Site {
    pub(super) fn planned(plan: &Plan) -> Self {
        let appliance = &plan.appliance;
        Self {
            module: plan.token.module.clone(),
            serial: plan.token.serial.clone(),
            folder: appliance.folder.clone(),
            state: appliance.state.clone(),
            listen: appliance.listen.to_string(),
            names: appliance.names.clone(),
            pin_place: match plan.runtime_pin.method {
                PinMethod::SystemdCreds => PinPlace::Credential,
                PinMethod::File => PinPlace::File,
            },
        }
    }

    /// Nothing outside `folder` is touched, and the plan's token is not looked for.
    pub(super) fn rehearsal(plan: &Plan, folder: &Path, module: PathBuf) -> Self {
        Self {
            module,
            serial: None,
            folder: folder.join("appliance"),
            state: folder.join("appliance").join("state"),
            pin_place: PinPlace::File,
            ..Self::planned(plan)
        }
    }

    pub(super) fn configuration(&self) -> PathBuf {
        self.folder.join("strongroom.toml")
    }

    pub(super) fn policy(&self) -> PathBuf {
        self.folder.join("policy.toml")
    }

    pub(super) fn tls_folder(&self) -> PathBuf {
        self.folder.join("tls")
    }

    pub(super) fn tls_key(&self) -> PathBuf {
        self.tls_folder().join("server.key")
    }

    /// The TLS key as a credential, encrypted.
    pub(super) fn sealed_tls_key(&self) -> PathBuf {
        self.tls_folder().join("server.key.cred")
    }

    pub(super) fn tls_certificate(&self) -> PathBuf {
        self.tls_folder().join("server.pem")
    }

    pub(super) fn client_ca(&self) -> PathBuf {
        self.tls_folder().join("client-ca.pem")
    }

    pub(super) fn store(&self) -> PathBuf {
        self.state.join("store")
    }

    pub(super) fn audit_log(&self) -> PathBuf {
        self.state.join("audit.log")
    }

    /// The file that holds the run-time PIN, encrypted or not.
    pub(super) fn pin_path(&self) -> PathBuf {
        self.folder.join(match self.pin_place {
            PinPlace::Credential => "hsm-pin.cred",
            PinPlace::File => "hsm-pin",
        })
    }

    /// What an initial ceremony would write over, if it is there: it belongs to another appliance.
    /// A link is there wherever it leads, and also if that is nowhere: what root makes through
    /// it would be elsewhere.
    pub(super) fn in_the_way(&self) -> Vec<PathBuf> {
        [
            self.configuration(),
            self.tls_key(),
            self.sealed_tls_key(),
            self.tls_certificate(),
            self.client_ca(),
            self.pin_path(),
            self.store(),
            self.audit_log(),
        ]
        .into_iter()
        .filter(|path| path.symlink_metadata().is_ok())
        .collect()
    }

    /// strongroom.toml for the token with that serial number and keys of that shape; the TLS key is
    /// in its file, or sealed.
    pub(super) fn toml(&self, serial: &str, shape: KeyShape, tls_key_is_sealed: bool) -> String {
        let keys = match shape {
            KeyShape::Fixed => "",
            KeyShape::Movable => "keys = \"movable\"\n",
            KeyShape::Moved => "keys = \"moved\"\n",
        };
        let quote = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let path = |path: &Path| quote(&path.display().to_string());
        let pin = match self.pin_place {
            PinPlace::Credential => format!("pin_credential = {}", quote(CREDENTIAL)),
            PinPlace::File => format!("pin_file = {}", path(&self.pin_path())),
        };
        let tls_key = if tls_key_is_sealed {
            format!("private_key_credential = {}", quote(TLS_KEY_CREDENTIAL))
        } else {
            format!("private_key = {}", path(&self.tls_key()))
        };
        format!(
            "# Written by the key ceremony. docs/configuration.md has every setting.\n\n\
             [server]\nlisten = {}\n\n\
             [tls]\ncertificate = {}\n{tls_key}\nclient_ca = {}\n\n\
             [hsm]\nmodule = {}\nserial = {}\n{pin}\n{keys}\n\
             [store]\npath = {}\n\n\
             [policy]\npath = {}\n\n\
             [audit]\npath = {}\n",
            quote(&self.listen),
            path(&self.tls_certificate()),
            path(&self.client_ca()),
            path(&self.module),
            quote(serial),
            path(&self.store()),
            path(&self.policy()),
            path(&self.audit_log()),
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_link_that_leads_nowhere_is_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let site = Site {
            module: PathBuf::new(),
            serial: None,
            folder: folder.path().to_owned(),
            state: folder.path().join("state"),
            listen: String::new(),
            names: Vec::new(),
            pin_place: PinPlace::File,
        };
        std::fs::create_dir(&site.state).unwrap();
        assert!(site.in_the_way().is_empty());
        for path in [site.store(), site.audit_log()] {
            std::os::unix::fs::symlink("/nowhere/at-all", &path).unwrap();
            assert_eq!(site.in_the_way(), [path.as_path()]);
            std::fs::remove_file(path).unwrap();
        }
    }
}
