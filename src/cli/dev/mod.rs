//! `strongroom dev`: an appliance on a SoftHSM2 token of its own, in the foreground, for
//! development and CI.

mod site;
mod token;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde_json::{Map, Value, json};
use strongroom_core::identity::Identity;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::site::{DOMAIN, Site};
use super::child::{self, Server};
use super::exit::{Exit, Failure};
use super::output::Format;
use super::remote::{Remote, block_on};
use super::{files, seal, server};

/// The key of the stanza, as in Vault's documentation.
const KEY: &str = "vault-unseal";
/// The client of the stanza.
const CLIENT: &str = "vault";
const MOUNT: &str = "transit";
const WARNING: &str =
    "NOT FOR PRODUCTION: SoftHSM keeps keys in files, and every client may do everything";

#[derive(Args, Debug)]
pub(super) struct DevArgs {
    /// Work in this directory and keep it, created if it does not exist, instead of a temporary one
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Listen on this port of 127.0.0.1; 0: any that is free
    #[arg(long, default_value_t = 8220)]
    port: u16,
    /// Also create this key, beside vault-unseal; may be repeated
    #[arg(long, value_name = "NAME", value_parser = key_name)]
    key: Vec<String>,
    /// Also make a certificate for this client, beside vault; may be repeated
    #[arg(long, value_name = "NAME", value_parser = client_name)]
    client: Vec<String>,
    /// SoftHSM2's PKCS#11 module, if it is not in one of its usual places
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,
    /// The process that has the token: this configuration's
    #[arg(long, hide = true, value_name = "FILE")]
    make_token: Option<PathBuf>,
}

fn key_name(text: &str) -> Result<String, &'static str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !text.is_empty() && text.chars().all(fits) && !text.starts_with('.') {
        Ok(text.to_owned())
    } else {
        Err("a key's name has letters, digits, `-`, `_` and `.`")
    }
}

/// It becomes a file's name and a part of a DNS name.
fn client_name(text: &str) -> Result<String, String> {
    format!("dns:{text}.{DOMAIN}")
        .parse::<Identity>()
        .map_err(|error| error.to_string())?;
    Ok(text.to_ascii_lowercase())
}

pub(super) fn run(args: &DevArgs, format: Format) -> Result<(), Failure> {
    if let Some(config) = &args.make_token {
        return token::make(config);
    }
    server::private_files();
    block_on(async {
        // From here on the site is removed however this ends, but by SIGKILL.
        let mut stop = Stop::new()?;
        let module = match &args.module {
            Some(module) => module
                .canonicalize()
                .map_err(|error| Failure::file(module, &error))?,
            None => strongroom_softhsm::module_path()
                .map_err(|error| Failure::caused(Exit::Hsm, &error))?,
        };
        let site = Site::open(args.dir.as_deref(), module)?;
        develop(args, &site, &mut stop, format).await
    })
}

async fn develop(
    args: &DevArgs,
    site: &Site,
    stop: &mut Stop,
    format: Format,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let keys = with(KEY, &args.key);
    let clients = with(CLIENT, &args.client);
    site.write_certificates(&clients)?;
    site.write_policy()?;
    let state = make_state(site, args.port, stop, format).await?;

    let serve = site.command(&state, &["serve", "--config"])?;
    let mut server = Server::start(serve, site.path("server.log"), &site.path("address")).await?;
    let shown = match create_keys(&mut server, site, &keys).await {
        Ok(remote) => {
            let ready = Ready {
                site,
                remote,
                keys: &keys,
                clients: &clients,
                seconds: begun.elapsed().as_secs_f64(),
            };
            ready.show(format)
        }
        Err(failure) => Err(failure),
    };
    if let Err(failure) = shown {
        server.stop().await?;
        return Err(failure);
    }
    tokio::select! {
        failure = server.ended() => return Err(failure),
        () = stop.told() => {}
    }
    server.stop().await
}

/// Token, keys and store, which take seconds where they are not there; their directory.
async fn make_state(
    site: &Site,
    port: u16,
    stop: &mut Stop,
    format: Format,
) -> Result<PathBuf, Failure> {
    let (place, is_new) = site.place_of_state()?;
    site.configure(&place, port)?;
    let spinner = format.spinner();
    if is_new {
        spinner.set_message("making a token and its RSA-4096 master key");
    }
    let made = child::run(site.command(&place, &["dev", "--make-token"])?, stop.told()).await;
    spinner.finish_and_clear();
    made?;
    if !is_new {
        return Ok(place);
    }
    site.keep_state(&place)?;
    let (state, _) = site.place_of_state()?;
    site.configure(&state, port)?;
    Ok(state)
}

async fn create_keys(server: &mut Server, site: &Site, keys: &[String]) -> Result<Remote, Failure> {
    let (certificate, key) = site.client(CLIENT);
    let remote = Remote {
        addr: Some(server.address.clone()),
        cacert: Some(site.ca()),
        client_cert: Some(certificate),
        client_key: Some(key),
        token_file: None,
        mount: MOUNT.to_owned(),
        timeout: 30,
    };
    let client = remote.client()?;
    server.wait_until_healthy(&client).await?;
    for name in keys {
        // One that exists is left as it is.
        let path = remote.path(&format!("keys/{name}"));
        client.call("POST", &path, Some(&json!({}))).await?;
    }
    Ok(remote)
}

/// The first one and then the others, each once.
fn with(first: &str, others: &[String]) -> Vec<String> {
    let mut all = vec![first.to_owned()];
    for other in others {
        if !all.contains(other) {
            all.push(other.clone());
        }
    }
    all
}

/// What is told once, when all is up.
struct Ready<'a> {
    site: &'a Site,
    remote: Remote,
    keys: &'a [String],
    clients: &'a [String],
    seconds: f64,
}

impl Ready<'_> {
    fn show(&self, format: Format) -> Result<(), Failure> {
        let stanza = seal::stanza(&self.remote, KEY);
        let exports: String = self
            .exports()
            .iter()
            .map(|(name, value)| format!("export {name}='{value}'\n"))
            .collect();
        files::replace(&self.site.path("env.sh"), exports.as_bytes())?;
        files::replace(
            &self.site.path("seal.hcl"),
            format!("{stanza}\n").as_bytes(),
        )?;
        let folder = self.site.folder().display();
        let kept = if self.site.is_kept() {
            "kept; start again with the same --dir"
        } else {
            "removed at the end; --dir DIR keeps it"
        };
        let names = self.clients.join(", ");
        let text = format!(
            "{WARNING}\n\n\
             For clients (also in {folder}/env.sh):\n\n{exports}\n\
             For Vault or OpenBao (also in {folder}/seal.hcl):\n\n{stanza}\n\n\
             keys     {}\nclients  {names} (pki/client-NAME.pem and .key)\n\
             audit    {}\nfiles    {folder} ({kept})\n\n\
             Ctrl-C stops it. Ready in {:.1} s:\nready {}",
            self.keys.join(", "),
            self.site.audit_log().display(),
            self.seconds,
            self.remote.addr(),
        );
        format.either(&text, &self.document(&stanza))
    }

    fn document(&self, stanza: &str) -> Value {
        let env: Map<_, _> = self
            .exports()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect();
        let clients: Map<_, _> = self
            .clients
            .iter()
            .map(|name| {
                let (certificate, key) = self.site.client(name);
                let identity = format!("dns:{name}.{DOMAIN}");
                let client = json!({"identity": identity, "certificate": certificate, "key": key});
                (name.clone(), client)
            })
            .collect();
        json!({
            "ready": true,
            "warning": WARNING,
            "address": self.remote.addr(),
            "env": env,
            "stanza": stanza,
            "keys": self.keys,
            "clients": clients,
            "dir": self.site.folder(),
            "kept": self.site.is_kept(),
            "policy": self.site.path("policy.toml"),
            "audit_log": self.site.audit_log(),
            "log": self.site.path("server.log"),
            "seconds": self.seconds,
        })
    }

    /// What Vault's own programs and libraries read. No value needs a quote: the directory's path
    /// was looked at, and names have nothing of the kind.
    fn exports(&self) -> [(&'static str, String); 4] {
        let shown = |path: &Path| path.display().to_string();
        let (certificate, key) = self.site.client(CLIENT);
        [
            ("VAULT_ADDR", self.remote.addr().to_owned()),
            ("VAULT_CACERT", shown(&self.site.ca())),
            ("VAULT_CLIENT_CERT", shown(&certificate)),
            ("VAULT_CLIENT_KEY", shown(&key)),
        ]
    }
}

/// The signals that end it. From here on none of them has its default effect.
struct Stop([Signal; 3]);

impl Stop {
    fn new() -> Result<Self, Failure> {
        let caught = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(Exit::Failed, format!("signals can't be caught: {error}"))
            })
        };
        Ok(Self([
            caught(SignalKind::interrupt())?,
            caught(SignalKind::terminate())?,
            // The terminal is gone.
            caught(SignalKind::hangup())?,
        ]))
    }

    async fn told(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
