//! Writing a plan.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::super::{CeremonyError, Participant};
use super::{FORMAT, PinMethod, Plan};

/// What a plan is made of.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is a field of `Plan`")]
pub struct Draft {
    pub name: String,
    pub module: PathBuf,
    pub label: String,
    pub serial: Option<String>,
    pub memory_master: bool,
    pub transfer: bool,
    pub backup: bool,
    pub threshold: u8,
    pub custodians: Vec<Participant>,
    pub security_officer: Participant,
    pub auditor: Participant,
    pub binary_sha256: String,
    pub image_sha256: Option<String>,
    pub folder: PathBuf,
    pub state: PathBuf,
    pub listen: SocketAddr,
    pub names: Vec<String>,
    pub pin_method: PinMethod,
    pub replaces: Option<String>,
}

impl Draft {
    /// What another plan says, to take its place once it is changed.
    pub fn revision(old: &Plan) -> Self {
        let appliance = &old.appliance;
        Self {
            name: old.name.clone(),
            module: old.token.module.clone(),
            label: old.token.label.clone(),
            serial: old.token.serial.clone(),
            memory_master: old.keys.memory_master,
            transfer: old.keys.transfer,
            backup: old.keys.backup,
            threshold: old.threshold,
            custodians: old.custodians.clone(),
            security_officer: old.security_officer.clone(),
            auditor: old.auditor.clone(),
            binary_sha256: old.software.binary_sha256.clone(),
            image_sha256: old.software.image_sha256.clone(),
            folder: appliance.folder.clone(),
            state: appliance.state.clone(),
            listen: appliance.listen,
            names: appliance.names.clone(),
            pin_method: old.runtime_pin.method,
            replaces: Some(old.hash_hex()),
        }
    }

    /// The plan, checked as one that was read.
    ///
    /// # Errors
    /// [`CeremonyError::Plan`] with everything that is wrong.
    pub fn plan(&self) -> Result<Plan, CeremonyError> {
        Plan::parse(&self.text())
    }

    fn text(&self) -> String {
        let mut out = format!(
            "# The plan of a key ceremony. Everyone in it signs it: strongroom ceremony sign PLAN --key FILE\n\
             # A change, of a comment too, makes every signature worthless.\n\
             format = {FORMAT}\nname = {}\n{}\n\
             [token]\nmodule = {}\nlabel = {}\n",
            quote(&self.name),
            self.replaces
                .as_deref()
                .map(|hash| format!(
                    "# SHA-256 of the plan that this one takes the place of.\nreplaces = {}\n",
                    quote(hash)
                ))
                .unwrap_or_default(),
            quote(&self.module.to_string_lossy()),
            quote(&self.label),
        );
        // Writing into a text has no way to fail.
        if let Some(serial) = &self.serial {
            let _ = writeln!(out, "serial = {}", quote(serial));
        }
        let _ = write!(
            out,
            "\n[keys]\n# A second master key, for keys that are used in the appliance's memory.\nmemory_master = {}\n\
             # A transfer key, without which the keys can never be moved to another master key: decided here, and for good.\ntransfer = {}\n\
             # Whether the master key may ever be moved to another token: decided here, and for good.\nbackup = {}\n\n\
             [custody]\n# So many of the {} custodians together give the PINs back.\nthreshold = {}\n",
            self.memory_master,
            self.transfer,
            self.backup,
            self.custodians.len(),
            self.threshold
        );
        for custodian in &self.custodians {
            person(&mut out, "[[custodian]]", custodian);
        }
        person(&mut out, "[security_officer]", &self.security_officer);
        person(&mut out, "[auditor]", &self.auditor);
        let _ = write!(
            out,
            "\n[software]\n# What sha256sum says of the strongroom program.\nbinary_sha256 = {}\n",
            quote(&self.binary_sha256)
        );
        if let Some(hash) = &self.image_sha256 {
            let _ = writeln!(out, "image_sha256 = {}", quote(hash));
        }
        let names: Vec<String> = self.names.iter().map(|name| quote(name)).collect();
        let _ = write!(
            out,
            "\n[appliance]\nfolder = {}\nstate = {}\nlisten = \"{}\"\nnames = [{}]\n\n\
             [runtime_pin]\n# systemd-creds: encrypted for this machine, with its TPM where there is one; file: plain, for the service only.\nmethod = \"{}\"\n",
            quote(&self.folder.to_string_lossy()),
            quote(&self.state.to_string_lossy()),
            self.listen,
            names.join(", "),
            self.pin_method.name()
        );
        out
    }
}

fn person(out: &mut String, table: &str, person: &Participant) {
    let file = person.to_file();
    let _ = write!(
        out,
        "\n{table}\n# Fingerprint {}\nname = {}\nsigning_key = {}\nagreement_key = {}\n",
        person.fingerprint(),
        quote(&file.name),
        quote(&file.signing_key),
        quote(&file.agreement_key)
    );
}

fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
