//! What `strongroom dev` tells once all is up.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::certificates::DOMAIN;
use super::site::Site;
use super::{CLIENT, KEY};
use crate::cli::exit::Failure;
use crate::cli::output::Format;
use crate::cli::remote::Remote;
use crate::cli::{files, seal};

pub(super) const WARNING: &str =
    "NOT FOR PRODUCTION: SoftHSM keeps keys in files, and every client may do everything";

pub(super) struct Ready<'a> {
    pub(super) site: &'a Site,
    /// As others reach it.
    pub(super) remote: Remote,
    pub(super) keys: &'a [String],
    pub(super) clients: &'a [String],
    /// Files of certificates.
    pub(super) made_again: &'a [String],
    /// Whether other machines can connect.
    pub(super) is_open: bool,
    pub(super) seconds: f64,
}

impl Ready<'_> {
    /// Prints it, and writes it into files.
    pub(super) fn tell(&self, format: Format) -> Result<(), Failure> {
        let stanza = seal::stanza(&self.remote, KEY);
        let all = exports(&self.for_vault()) + &exports(&self.for_strongroom());
        files::replace(&self.site.path("env.sh"), all.as_bytes())?;
        let hcl = format!("{stanza}\n");
        files::replace(&self.site.path("seal.hcl"), hcl.as_bytes())?;
        format.either(&self.text(&stanza), &self.document(&stanza))
    }

    fn warning(&self) -> String {
        if self.is_open {
            format!("{WARNING}. OTHER MACHINES CAN CONNECT")
        } else {
            WARNING.to_owned()
        }
    }

    fn text(&self, stanza: &str) -> String {
        let folder = self.site.folder().display();
        let loud = anstyle::AnsiColor::Red.on_default().bold();
        let kept = if self.site.is_kept() {
            "kept; start again with the same --dir"
        } else {
            "removed at the end; --dir DIR keeps it"
        };
        format!(
            "{loud}{}{loud:#}\n\n\
             For clients (also in {folder}/env.sh, with STRONGROOM_* for this program):\n\n{}\n\
             A first request:\n\n{}\n\n\
             For Vault or OpenBao (also in {folder}/seal.hcl):\n\n{stanza}\n\n\
             keys     {}\nclients  {} (pki/client-NAME.pem and .key)\n\
             audit    {}\nfiles    {folder} ({kept})\n\n\
             Ctrl-C stops it. Ready in {:.1} s:\nready {}",
            self.warning(),
            exports(&self.for_vault()),
            request(
                &[
                    "$VAULT_ADDR",
                    "$VAULT_CACERT",
                    "$VAULT_CLIENT_CERT",
                    "$VAULT_CLIENT_KEY"
                ],
                " \\\n  "
            ),
            self.keys.join(", "),
            self.clients.join(", "),
            self.site.audit_log().display(),
            self.seconds,
            self.remote.addr(),
        )
    }

    fn document(&self, stanza: &str) -> Value {
        let env: Map<_, _> = self
            .for_vault()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect();
        let clients: Map<_, _> = self
            .clients
            .iter()
            .map(|name| {
                let pair = self.site.certificates().client(name);
                let client = json!({
                    "identity": format!("dns:{name}.{DOMAIN}"),
                    "certificate": pair.certificate,
                    "key": pair.key,
                });
                (name.clone(), client)
            })
            .collect();
        let values = self.for_vault().map(|(_, value)| value);
        json!({
            "ready": true,
            "warning": self.warning(),
            "address": self.remote.addr(),
            "env": env,
            "first_request": request(&values.each_ref().map(String::as_str), " "),
            "stanza": stanza,
            "keys": self.keys,
            "clients": clients,
            "made_again": self.made_again,
            "dir": self.site.folder(),
            "kept": self.site.is_kept(),
            "policy": self.site.path("policy.toml"),
            "audit_log": self.site.audit_log(),
            "log": self.site.path("server.log"),
            "seconds": self.seconds,
        })
    }

    /// What Vault's own programs and libraries read.
    fn for_vault(&self) -> [(&'static str, String); 4] {
        self.named([
            "VAULT_ADDR",
            "VAULT_CACERT",
            "VAULT_CLIENT_CERT",
            "VAULT_CLIENT_KEY",
        ])
    }

    /// What this program's own commands read.
    fn for_strongroom(&self) -> [(&'static str, String); 4] {
        self.named([
            "STRONGROOM_ADDR",
            "STRONGROOM_CACERT",
            "STRONGROOM_CLIENT_CERT",
            "STRONGROOM_CLIENT_KEY",
        ])
    }

    /// No value needs a quote: the directory's path was looked at, and names have nothing of the
    /// kind.
    fn named(
        &self,
        [addr, cacert, client_cert, client_key]: [&'static str; 4],
    ) -> [(&'static str, String); 4] {
        let certificates = self.site.certificates();
        let client = certificates.client(CLIENT);
        [
            (addr, self.remote.addr().to_owned()),
            (cacert, certificates.ca().display().to_string()),
            (client_cert, client.certificate.display().to_string()),
            (client_key, client.key.display().to_string()),
        ]
    }
}

fn exports(variables: &[(&str, String)]) -> String {
    variables
        .iter()
        .fold(String::new(), |mut text, (name, value)| {
            let _ = writeln!(text, "export {name}='{value}'");
            text
        })
}

/// A command of curl that encrypts "hello".
fn request([addr, cacert, certificate, key]: &[&str; 4], and: &str) -> String {
    let plaintext = r#"{"plaintext": "aGVsbG8="}"#;
    format!(
        "curl --cacert \"{cacert}\" --cert \"{certificate}\" --key \"{key}\"{and}\
         --data '{plaintext}' \"{addr}/v1/transit/encrypt/{KEY}\""
    )
}
