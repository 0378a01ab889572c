//! `strongroom client …`: encrypt, decrypt, rewrap, data keys, and the seal's round trip.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use strongroom_client::SecretText;
use strongroom_core::keyring::KeyName;

use super::exit::Failure;
use super::files;
use super::output::Format;
use super::remote::{Remote, block_on};
use super::seal::{self, Opened};

#[derive(Args, Debug)]
pub(super) struct ClientArgs {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Encrypt a file
    #[command(
        after_help = "Examples:\n  strongroom client encrypt backups --in dump.key > dump.key.enc\n  \
        printf %s \"$secret\" | strongroom client encrypt backups"
    )]
    Encrypt {
        /// Name of the key
        key: KeyName,
        /// File to encrypt; - is standard input
        #[arg(long = "in", value_name = "FILE", default_value = "-")]
        input: PathBuf,
        #[command(flatten)]
        binding: Binding,
        /// Encrypt with this version instead of the latest
        #[arg(long, value_name = "N")]
        key_version: Option<u32>,
    },
    /// Decrypt what `encrypt` made
    #[command(
        after_help = "Examples:\n  strongroom client decrypt backups --in dump.key.enc --out dump.key\n  \
        strongroom client decrypt backups --in dump.key.enc | restore"
    )]
    Decrypt {
        /// Name of the key
        key: KeyName,
        /// File with the ciphertext, vault:v<N>:…; - is standard input
        #[arg(long = "in", value_name = "FILE", default_value = "-")]
        input: PathBuf,
        /// New file for the plaintext, readable by its owner only; - is standard output
        #[arg(long, value_name = "FILE", default_value = "-")]
        out: PathBuf,
        #[command(flatten)]
        binding: Binding,
    },
    /// Rewrap a ciphertext with the latest key version, without showing its plaintext
    #[command(
        after_help = "Example:\n  strongroom client rewrap backups --in dump.key.enc > dump.key.enc2\n\n\
        A whole file of ciphertexts: strongroom key rewrap-file --help"
    )]
    Rewrap {
        /// Name of the key
        key: KeyName,
        /// File with the ciphertext; - is standard input
        #[arg(long = "in", value_name = "FILE", default_value = "-")]
        input: PathBuf,
        #[command(flatten)]
        binding: Binding,
        /// Encrypt with this version instead of the latest
        #[arg(long, value_name = "N")]
        key_version: Option<u32>,
    },
    /// Generate a data key, encrypted by a key, and in plaintext if asked for
    #[command(
        after_help = "Examples:\n  strongroom client datakey backups > backup.key.enc\n  \
        strongroom client datakey backups --plaintext-out backup.key > backup.key.enc"
    )]
    Datakey {
        /// Name of the key
        key: KeyName,
        /// Size of the data key: 128, 256 or 512
        #[arg(long, value_name = "BITS", default_value_t = 256)]
        bits: u32,
        /// Write the data key itself, raw bytes, to this new file, readable by its owner only
        #[arg(long, value_name = "FILE")]
        plaintext_out: Option<PathBuf>,
        #[command(flatten)]
        binding: Binding,
    },
    /// Seal and unseal a random value with the requests of Vault's transit seal
    #[command(
        after_help = "Example:\n  strongroom client seal vault-unseal && echo \"a Vault can unseal with this certificate\""
    )]
    Seal {
        /// Name of the key
        key: KeyName,
    },
}

/// What a ciphertext is bound to besides its key.
#[derive(Args, Debug)]
struct Binding {
    /// Data that is authenticated, not encrypted: decrypting needs the same
    #[arg(long, value_name = "TEXT")]
    associated_data: Option<String>,
    /// Derivation context, for a derived key
    #[arg(long, value_name = "TEXT")]
    context: Option<String>,
}

impl Binding {
    fn add_to(&self, body: &mut Map<String, Value>) {
        add_base64(body, "associated_data", self.associated_data.as_deref());
        add_base64(body, "context", self.context.as_deref());
    }
}

pub(super) fn run(args: &ClientArgs, format: Format) -> Result<(), Failure> {
    let remote = &args.remote;
    let mut body = Map::new();
    match &args.action {
        Action::Encrypt {
            key,
            input,
            binding,
            key_version,
        } => {
            binding.add_to(&mut body);
            add_version(&mut body, *key_version);
            let body = Encrypt {
                plaintext: SecretText::new(STANDARD.encode(&*files::read_plaintext(input)?)),
                rest: body,
            };
            ciphertext(remote, format, &format!("encrypt/{key}"), &body)
        }
        Action::Decrypt {
            key,
            input,
            out,
            binding,
        } => {
            body.insert("ciphertext".into(), files::read_text(input)?.into());
            binding.add_to(&mut body);
            let opened: Opened = data(remote, &format!("decrypt/{key}"), &body)?;
            files::write_secret(out, &opened.bytes()?)
        }
        Action::Rewrap {
            key,
            input,
            binding,
            key_version,
        } => {
            body.insert("ciphertext".into(), files::read_text(input)?.into());
            binding.add_to(&mut body);
            add_version(&mut body, *key_version);
            ciphertext(remote, format, &format!("rewrap/{key}"), &body)
        }
        Action::Datakey {
            key,
            bits,
            plaintext_out,
            binding,
        } => {
            body.insert("bits".into(), (*bits).into());
            binding.add_to(&mut body);
            let Some(out) = plaintext_out else {
                return ciphertext(remote, format, &format!("datakey/wrapped/{key}"), &body);
            };
            let made: DataKey = data(remote, &format!("datakey/plaintext/{key}"), &body)?;
            files::write_secret(out, &made.opened.bytes()?)?;
            format.either(&made.ciphertext, &json!({"ciphertext": made.ciphertext}))
        }
        Action::Seal { key } => block_on(async {
            let client = remote.client()?;
            let trip = seal::round_trip(&client, remote, key).await?;
            format.either(
                &format!(
                    "sealed and unsealed with {key}, version {}, in {:.1} ms",
                    trip.key_version(),
                    trip.took.as_secs_f64() * 1e3
                ),
                &trip.json(),
            )
        }),
    }
}

#[derive(Serialize)]
struct Encrypt {
    plaintext: SecretText,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
struct DataKey {
    ciphertext: String,
    #[serde(flatten)]
    opened: Opened,
}

fn ciphertext(
    remote: &Remote,
    format: Format,
    path: &str,
    body: &impl Serialize,
) -> Result<(), Failure> {
    let data: Value = data(remote, path, body)?;
    let text = data
        .get("ciphertext")
        .and_then(Value::as_str)
        .unwrap_or_default();
    format.either(text, &data)
}

fn data<T: serde::de::DeserializeOwned>(
    remote: &Remote,
    path: &str,
    body: &impl Serialize,
) -> Result<T, Failure> {
    block_on(async {
        let client = remote.client()?;
        Ok(client.data_for("POST", &remote.path(path), body).await?)
    })
}

fn add_base64(body: &mut Map<String, Value>, name: &str, text: Option<&str>) {
    if let Some(text) = text {
        body.insert(name.into(), STANDARD.encode(text).into());
    }
}

fn add_version(body: &mut Map<String, Value>, version: Option<u32>) {
    if let Some(version) = version {
        body.insert("key_version".into(), version.into());
    }
}
