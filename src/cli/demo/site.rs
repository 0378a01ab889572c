//! The demo's folder: token, certificates, configuration, policy, store, audit log.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use strongroom_softhsm::Throwaway;

use super::pki::Authority;
use super::{KEY, MOUNT, server};
use crate::cli::exit::{Exit, Failure};
use crate::cli::files;
use crate::cli::remote::Remote;

/// The demo client's name; its certificate carries it, the policy allows it.
const CLIENT: &str = "vault.demo.internal";

pub(super) struct Site {
    token: Throwaway,
    folder: PathBuf,
}

impl Site {
    /// In `folder`, else beside the token, which is in a temporary folder and goes away with this value.
    pub(super) fn new(folder: Option<&Path>) -> Result<Self, Failure> {
        let token = Throwaway::new().map_err(|error| Failure::caused(Exit::Hsm, &error))?;
        let folder = folder.unwrap_or(token.path());
        fs::create_dir_all(folder).map_err(|error| Failure::file(folder, &error))?;
        // The configuration names its files by whole paths: the appliance may be started anywhere.
        let folder = folder
            .canonicalize()
            .map_err(|error| Failure::file(folder, &error))?;
        Ok(Self { token, folder })
    }

    pub(super) fn label(&self) -> &str {
        self.token.label()
    }

    /// Nothing is removed; the command that starts the appliance again is in `start.sh`.
    pub(super) fn keep(self) -> PathBuf {
        self.token.keep();
        self.folder
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(super) fn configuration(&self) -> PathBuf {
        self.path("strongroom.toml")
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    pub(super) fn client_certificate(&self) -> PathBuf {
        self.path("client.pem")
    }

    pub(super) fn client_key(&self) -> PathBuf {
        self.path("client.key")
    }

    pub(super) fn audit_log(&self) -> PathBuf {
        self.path("audit.log")
    }

    pub(super) fn audit_key(&self) -> PathBuf {
        self.path("audit.pem")
    }

    pub(super) fn write_certificates(&self) -> Result<(), Failure> {
        let made = || {
            let ca = Authority::new("Strongroom demo CA")?;
            let server = ca.server(&["localhost", "127.0.0.1"])?;
            let client = ca.client(CLIENT)?;
            Ok((ca.certificate(), server, client))
        };
        let (ca, server, client) = made().map_err(|error: rcgen::Error| {
            Failure::new(Exit::Failed, format!("certificates can't be made: {error}"))
        })?;
        files::replace(&self.ca(), ca.as_bytes())?;
        files::replace(&self.path("server.pem"), server.certificate.as_bytes())?;
        files::replace(&self.path("server.key"), server.key.as_bytes())?;
        files::replace(&self.client_certificate(), client.certificate.as_bytes())?;
        files::replace(&self.client_key(), client.key.as_bytes())
    }

    /// With a port that stays the same if the site is to be kept, else with any.
    pub(super) fn write_configuration(&self, keep: bool) -> Result<(), Failure> {
        let port = if keep { free_port()? } else { 0 };
        files::replace(&self.configuration(), self.toml(port).as_bytes())?;
        files::replace(&self.path("policy.toml"), policy().as_bytes())?;
        let start = format!(
            "#!/bin/sh\nexport {}='{}'\nexec '{}' serve --config '{}'\n",
            self.token.env().0,
            self.token.env().1.display(),
            executable()?.display(),
            self.configuration().display()
        );
        files::replace(&self.path("start.sh"), start.as_bytes())
    }

    /// This program again, with the token in its environment and the configuration in its arguments.
    pub(super) fn command(&self, arguments: &[&str]) -> Result<Command, Failure> {
        let mut command = Command::new(executable()?);
        let (name, value) = self.token.env();
        command
            .args(arguments)
            .arg("--config")
            .arg(self.configuration())
            .env(name, value);
        Ok(command)
    }

    /// Runs [`Site::command`] to its end and gives its standard output.
    pub(super) async fn run(&self, arguments: &[&str]) -> Result<Vec<u8>, Failure> {
        let output = server::output(self.command(arguments)?).await?;
        Ok(output.stdout)
    }

    pub(super) fn remote(&self, address: &str) -> Remote {
        Remote {
            addr: address.to_owned(),
            cacert: Some(self.ca()),
            client_cert: Some(self.client_certificate()),
            client_key: Some(self.client_key()),
            token_file: None,
            mount: MOUNT.to_owned(),
            timeout: 30,
        }
    }

    pub(super) fn stanza(&self, address: &str) -> String {
        format!(
            "seal \"transit\" {{\n  \
               address         = \"{address}\"\n  \
               mount_path      = \"{MOUNT}/\"\n  \
               key_name        = \"{KEY}\"\n  \
               disable_renewal = \"true\"\n  \
               tls_ca_cert     = \"{}\"\n  \
               tls_client_cert = \"{}\"\n  \
               tls_client_key  = \"{}\"\n\
             }}",
            self.ca().display(),
            self.client_certificate().display(),
            self.client_key().display()
        )
    }

    fn toml(&self, port: u16) -> String {
        let path = |name: &str| self.path(name).display().to_string();
        let quote = |text: String| toml::Value::String(text).to_string();
        format!(
            "[server]\n\
             listen = \"127.0.0.1:{port}\"\n\n\
             [tls]\n\
             certificate = {}\n\
             private_key = {}\n\
             client_ca = {}\n\n\
             [hsm]\n\
             module = {}\n\
             label = {}\n\
             pin_file = {}\n\n\
             [store]\n\
             path = {}\n\n\
             [policy]\n\
             path = {}\n\n\
             [audit]\n\
             path = {}\n",
            quote(path("server.pem")),
            quote(path("server.key")),
            quote(path("ca.pem")),
            quote(self.token.module().display().to_string()),
            quote(self.label().to_owned()),
            quote(self.token.pin_file().display().to_string()),
            quote(path("store")),
            quote(path("policy.toml")),
            quote(path("audit.log")),
        )
    }
}

fn policy() -> String {
    format!(
        "# Who may do what with which key; everything else is denied.\n\
         [[rule]]\n\
         identities = [\"dns:{CLIENT}\"]\n\
         keys = [\"{KEY}\"]\n\
         operations = [\"create\", \"read\", \"rotate\", \"encrypt\", \"decrypt\"]\n"
    )
}

fn executable() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|error| {
        Failure::new(
            Exit::Failed,
            format!("this program's own path is not known: {error}"),
        )
    })
}

fn free_port() -> Result<u16, Failure> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| Failure::new(Exit::Failed, format!("no port is free: {error}")))
}
