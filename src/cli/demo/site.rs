//! The demo's directory: a rehearsed ceremony with the appliance that it makes, and a client.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{SEAL_KEY, SEAL_MOUNT, people};
use crate::cli::child::{self, Server, executable};
use crate::cli::exit::{Exit, Failure};
use crate::cli::files;
use crate::cli::pki::Authority;
use crate::cli::remote::Remote;

/// The demo client's name; its certificate carries it, the policy allows it.
const CLIENT_NAME: &str = "vault.demo.internal";

pub(super) struct Site {
    /// Removed with this value, unless it is kept or somebody else's.
    temporary: Option<TempDir>,
    folder: PathBuf,
    module: PathBuf,
}

impl Site {
    /// In `folder`, else in a temporary one, which goes away with this value.
    pub(super) fn new(folder: Option<&Path>) -> Result<Self, Failure> {
        let soft = |error| Failure::caused(Exit::Hsm, &error);
        let module = strongroom_softhsm::module_path().map_err(soft)?;
        let mut temporary = None;
        let folder = if let Some(folder) = folder {
            fs::create_dir_all(folder).map_err(|error| Failure::file(folder, &error))?;
            folder.to_owned()
        } else {
            let made = tempfile::Builder::new()
                .prefix("strongroom-")
                .permissions(fs::Permissions::from_mode(0o700))
                .tempdir()
                .map_err(|error| Failure::file(&std::env::temp_dir(), &error))?;
            temporary.insert(made).path().to_owned()
        };
        // The configuration names its files by whole paths: the appliance may be started anywhere.
        let folder = folder
            .canonicalize()
            .map_err(|error| Failure::file(&folder, &error))?;
        Ok(Self {
            temporary,
            folder,
            module,
        })
    }

    /// Nothing is removed; the command that starts the appliance again is in `start.sh`.
    pub(super) fn keep(self) -> PathBuf {
        if let Some(temporary) = self.temporary {
            let _ = temporary.keep();
        }
        self.folder
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The directory of the rehearsed ceremony, which makes the token and the appliance in it.
    fn ceremony(&self) -> PathBuf {
        self.path("ceremony")
    }

    pub(super) fn transcript(&self) -> PathBuf {
        self.ceremony().join("transcript.jsonl")
    }

    pub(super) fn configuration(&self) -> PathBuf {
        self.ceremony().join("appliance/strongroom.toml")
    }

    /// The throwaway CA that signed the appliance's certificate in the rehearsal.
    pub(super) fn ca(&self) -> PathBuf {
        self.ceremony().join("rehearsal-ca.pem")
    }

    pub(super) fn client_certificate(&self) -> PathBuf {
        self.path("client.pem")
    }

    pub(super) fn client_key(&self) -> PathBuf {
        self.path("client.key")
    }

    pub(super) fn audit_log(&self) -> PathBuf {
        self.ceremony().join("appliance/state/audit.log")
    }

    pub(super) fn audit_key(&self) -> PathBuf {
        self.ceremony().join("audit-key.pem")
    }

    /// The client's; the appliance's own is part of the ceremony.
    pub(super) fn write_certificates(&self) -> Result<(), Failure> {
        let ca = Authority::new("Strongroom demo client CA")?;
        let client = ca.client(CLIENT_NAME)?;
        files::replace(&self.client_certificate(), client.certificate.as_bytes())?;
        files::replace(&self.client_key(), client.key.as_bytes())?;
        let answers = self.path("answers");
        fs::create_dir_all(&answers).map_err(|error| Failure::file(&answers, &error))?;
        files::replace(&answers.join("client_ca.pem"), ca.certificate().as_bytes())
    }

    /// With a port that stays the same if the site is to be kept, else with any.
    pub(super) fn write_plan(&self, keep: bool) -> Result<(), Failure> {
        let port = if keep { free_port()? } else { 0 };
        let plan = people::plan(&self.path("answers"), &self.module, port)?;
        people::write(&self.path("plan.toml"), &plan)
    }

    /// Token, keys, store, TLS identity, configuration, transcript: all by `strongroom ceremony
    /// rehearse`.
    pub(super) async fn rehearse(&self) -> Result<(), Failure> {
        let mut command = Command::new(executable()?);
        command
            .args(["ceremony", "rehearse"])
            .arg(self.path("plan.toml"))
            .arg("--dir")
            .arg(self.ceremony())
            .arg("--answers")
            .arg(self.path("answers"));
        child::output(command).await?;
        let policy_file = self.ceremony().join("appliance/policy.toml");
        files::replace(&policy_file, policy().as_bytes())?;
        let start = format!(
            "#!/bin/sh\nexport {}='{}'\nexec '{}' serve --config '{}'\n",
            strongroom_softhsm::CONF_VARIABLE,
            self.softhsm().display(),
            executable()?.display(),
            self.configuration().display()
        );
        files::replace(&self.path("start.sh"), start.as_bytes())
    }

    /// What a stranger would check, years later.
    pub(super) async fn verify(&self) -> Result<String, Failure> {
        let mut command = Command::new(executable()?);
        command
            .args(["ceremony", "verify", "--rehearsal"])
            .arg(self.transcript())
            .arg("--plan")
            .arg(self.path("plan.toml"))
            .arg("--audit-key")
            .arg(self.audit_key());
        let output = child::output(command).await?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }

    fn softhsm(&self) -> PathBuf {
        self.ceremony().join("token/softhsm2.conf")
    }

    /// This program again, with the token in its environment and the configuration in its
    /// arguments.
    pub(super) fn command(&self, arguments: &[&str]) -> Result<Command, Failure> {
        let mut command = Command::new(executable()?);
        command
            .args(arguments)
            .arg("--config")
            .arg(self.configuration())
            .env(strongroom_softhsm::CONF_VARIABLE, self.softhsm());
        Ok(command)
    }

    pub(super) async fn serve(&self) -> Result<Server, Failure> {
        let command = self.command(&["serve"])?;
        Server::start(command, self.path("server.log"), self.path("address")).await
    }

    /// Runs [`Site::command`] to its end and gives its standard output.
    pub(super) async fn run(&self, arguments: &[&str]) -> Result<Vec<u8>, Failure> {
        let output = child::output(self.command(arguments)?).await?;
        Ok(output.stdout)
    }

    pub(super) fn remote(&self, address: &str) -> Remote {
        Remote {
            addr: Some(address.to_owned()),
            cacert: Some(self.ca()),
            client_cert: Some(self.client_certificate()),
            client_key: Some(self.client_key()),
            token_file: None,
            mount: SEAL_MOUNT.to_owned(),
            timeout: 30,
        }
    }
}

fn policy() -> String {
    format!(
        "# Who may do what with which key; everything else is denied.\n\
         [[rule]]\n\
         identities = [\"dns:{CLIENT_NAME}\"]\n\
         keys = [\"{SEAL_KEY}\"]\n\
         operations = [\"create\", \"read\", \"rotate\", \"encrypt\", \"decrypt\"]\n"
    )
}

fn free_port() -> Result<u16, Failure> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| Failure::new(Exit::Failed, format!("no port is free: {error}")))
}
