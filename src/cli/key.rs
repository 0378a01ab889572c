//! `strongroom key …`: the named keys of a running appliance.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};
use strongroom_core::keyring::KeyName;

use super::exit::{Exit, Failure};
use super::output::Format;
use super::remote::{Remote, block_on};
use super::{import, rewrap};

#[derive(Args, Debug)]
pub(super) struct KeyArgs {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Create a key, or leave an existing one unchanged
    #[command(after_help = "Examples:\n  strongroom key create vault-unseal\n  \
        strongroom key create tenant-a --derived --auto-rotate-period 30d\n  \
        strongroom key create bulk --residency memory\n  \
        strongroom key create user-tokens --type ecdsa-p256")]
    Create {
        /// Name of the key: letters, digits, _ - .
        name: KeyName,
        /// Type of the key; ecdsa-p256, rsa-4096 and ed25519 keys sign
        #[arg(long = "type", value_name = "TYPE", default_value = "aes256-gcm96")]
        kind: Kind,
        /// Where the key is used [default: the configuration's]
        #[arg(long)]
        residency: Option<Residency>,
        /// Derive a key for each context, which every operation must then name
        #[arg(long)]
        derived: bool,
        /// Encrypt equal plaintexts to equal ciphertexts under one context
        #[arg(long, requires = "derived")]
        convergent: bool,
        /// Rotate automatically this often, e.g. 30d or 720h; at least 1h; 0 turns it off
        /// [default: the configuration's, 90d]
        #[arg(long, value_name = "PERIOD")]
        auto_rotate_period: Option<String>,
    },
    /// Show a key's settings and versions
    #[command(
        after_help = "Example:\n  strongroom key read vault-unseal --output json | jq .latest_version"
    )]
    Read {
        /// Name of the key
        name: KeyName,
    },
    /// List the names of all keys
    #[command(after_help = "Example:\n  strongroom key list")]
    List,
    /// Add a version and make it the latest; older ones still decrypt
    #[command(after_help = "Example:\n  strongroom key rotate vault-unseal")]
    Rotate {
        /// Name of the key
        name: KeyName,
    },
    /// Change a key's settings
    #[command(
        after_help = "Examples:\n  strongroom key config tenant-a --min-decryption-version 3\n  \
        strongroom key config tenant-a --deletion-allowed true"
    )]
    Config {
        /// Name of the key
        name: KeyName,
        #[command(flatten)]
        change: Change,
    },
    /// Destroy old versions for good: what they encrypted is lost
    #[command(
        after_help = "Example:\n  strongroom key trim tenant-a --min-available-version 3\n\n\
        The versions must be below min_decryption_version and min_encryption_version: strongroom key config --help"
    )]
    Trim {
        /// Name of the key
        name: KeyName,
        /// Destroy the versions below this one
        #[arg(long, value_name = "N")]
        min_available_version: u32,
    },
    /// Destroy a key for good, if its deletion_allowed is set: what it encrypted is lost
    #[command(
        after_help = "Example:\n  strongroom key config tenant-a --deletion-allowed true\n  strongroom key delete tenant-a"
    )]
    Delete {
        /// Name of the key
        name: KeyName,
    },
    /// Import a key of 32 raw bytes, wrapped for the HSM before it leaves this process
    #[command(
        after_help = "Examples:\n  strongroom key import legacy --in legacy.key\n  \
        openssl rand 32 | strongroom key import legacy --in - --allow-rotation\n  \
        strongroom key import legacy --in legacy.key --oaep-hash sha1\n\n\
        The last is for an HSM that unwraps by RSA-OAEP with SHA-1 alone, as SoftHSM 2."
    )]
    Import(import::ImportArgs),
    /// Rewrap the ciphertexts in a file with the latest key version
    #[command(
        after_help = "Examples:\n  strongroom key rewrap-file tenant-a secrets.yaml --in-place\n  \
        strongroom key rewrap-file tenant-a dump.sql --out rewrapped.sql\n  \
        strongroom key rewrap-file tenant-a secrets.yaml --count\n\n\
        Interrupted, it goes on where it was when it is run again; the file is replaced at the end, in one step."
    )]
    RewrapFile(rewrap::FileArgs),
    /// Rewrap the ciphertexts in every file of a directory with the latest key version
    #[command(
        after_help = "Examples:\n  strongroom key rewrap-dir tenant-a /srv/secrets\n  \
        strongroom key rewrap-dir tenant-a /srv/secrets --retire"
    )]
    RewrapDir(rewrap::DirArgs),
    /// Rewrap the ciphertexts in a column of a PostgreSQL table with the latest key version
    #[command(
        after_help = "Example:\n  strongroom key rewrap-postgres tenant-a --database 'host=db.example dbname=app user=app' \\\n    \
        --password-file pg.pass --database-cacert pg-ca.pem --table public.customers --column iban\n\n\
        Each page of rows is one transaction; a row that another client changes meanwhile is left to them and looked at again."
    )]
    RewrapPostgres(rewrap::PostgresArgs),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// Encrypts
    #[value(name = "aes256-gcm96")]
    Aes256Gcm96,
    /// Signs: ES256
    #[value(name = "ecdsa-p256")]
    EcdsaP256,
    /// Signs: RSA-PSS; takes seconds to create
    #[value(name = "rsa-4096")]
    Rsa4096,
    /// Signs: EdDSA, where the HSM supports it
    #[value(name = "ed25519")]
    Ed25519,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Residency {
    /// Inside the HSM only
    Hsm,
    /// In locked memory of the appliance, for bulk traffic
    Memory,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
struct Change {
    /// Refuse to decrypt with versions below this one
    #[arg(long, value_name = "N")]
    min_decryption_version: Option<u32>,
    /// Refuse to encrypt with versions below this one; 0 sets no limit
    #[arg(long, value_name = "N")]
    min_encryption_version: Option<u32>,
    /// Allow the key to be deleted
    #[arg(long, value_name = "BOOL")]
    deletion_allowed: Option<bool>,
    /// Rotate automatically this often; 0 turns it off
    #[arg(long, value_name = "PERIOD")]
    auto_rotate_period: Option<String>,
}

pub(super) fn run(args: &KeyArgs, format: Format) -> Result<(), Failure> {
    let remote = &args.remote;
    match &args.action {
        Action::Create {
            name,
            kind,
            residency,
            derived,
            convergent,
            auto_rotate_period,
        } => {
            let mut body = Map::new();
            let kind = match kind {
                Kind::Aes256Gcm96 => "aes256-gcm96",
                Kind::EcdsaP256 => "ecdsa-p256",
                Kind::Rsa4096 => "rsa-4096",
                Kind::Ed25519 => "ed25519",
            };
            body.insert("type".into(), kind.into());
            if let Some(residency) = residency {
                let residency = match residency {
                    Residency::Hsm => "hsm",
                    Residency::Memory => "memory",
                };
                body.insert("residency".into(), residency.into());
            }
            body.insert("derived".into(), (*derived).into());
            body.insert("convergent_encryption".into(), (*convergent).into());
            if let Some(period) = auto_rotate_period {
                body.insert("auto_rotate_period".into(), period.as_str().into());
            }
            show(remote, format, "POST", &keys(name), Some(&body.into()))
        }
        Action::Read { name } => show(remote, format, "GET", &keys(name), None),
        Action::List => list(remote, format),
        Action::Rotate { name } => show(
            remote,
            format,
            "POST",
            &format!("{}/rotate", keys(name)),
            Some(&json!({})),
        ),
        Action::Config { name, change } => {
            let body = change.body();
            show(
                remote,
                format,
                "POST",
                &format!("{}/config", keys(name)),
                Some(&body),
            )
        }
        Action::Trim {
            name,
            min_available_version,
        } => {
            let body = json!({"min_available_version": min_available_version});
            show(
                remote,
                format,
                "POST",
                &format!("{}/trim", keys(name)),
                Some(&body),
            )
        }
        Action::Delete { name } => {
            request(remote, "DELETE", &keys(name), None)?;
            format.either(&format!("{name} is destroyed"), &json!({"deleted": name}))
        }
        Action::Import(import) => import::run(import, remote, format),
        Action::RewrapFile(args) => rewrap::run_file(args, remote, format),
        Action::RewrapDir(args) => rewrap::run_dir(args, remote, format),
        Action::RewrapPostgres(args) => rewrap::run_postgres(args, remote, format),
    }
}

impl Change {
    fn body(&self) -> Value {
        let mut body = Map::new();
        let mut add = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                body.insert(name.into(), value);
            }
        };
        add(
            "min_decryption_version",
            self.min_decryption_version.map(Value::from),
        );
        add(
            "min_encryption_version",
            self.min_encryption_version.map(Value::from),
        );
        add("deletion_allowed", self.deletion_allowed.map(Value::from));
        add(
            "auto_rotate_period",
            self.auto_rotate_period.clone().map(Value::from),
        );
        body.into()
    }
}

fn keys(name: &KeyName) -> String {
    format!("keys/{name}")
}

fn list(remote: &Remote, format: Format) -> Result<(), Failure> {
    block_on(async {
        let client = remote.client()?;
        let answer = client.request("LIST", &remote.path("keys"), None).await?;
        // Vault answers an empty list with 404 and no error.
        let empty = answer.status == hyper::StatusCode::NOT_FOUND && answer.errors().is_empty();
        let names = if empty {
            json!([])
        } else {
            let mut data: Value = answer.accepted()?.data().map_err(|error| {
                Failure::new(Exit::Failed, format!("the answer is not Vault's: {error}"))
            })?;
            data.get_mut("keys").map(Value::take).unwrap_or_default()
        };
        match format {
            Format::Text if names == json!([]) => {
                format.note("there are no keys");
                Ok(())
            }
            _ => format.result(&names),
        }
    })
}

fn show(
    remote: &Remote,
    format: Format,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<(), Failure> {
    let mut answer = request(remote, method, path, body)?;
    let data = answer.get_mut("data").map(Value::take).unwrap_or_default();
    format.result(&data)
}

fn request(
    remote: &Remote,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, Failure> {
    block_on(async {
        let client = remote.client()?;
        let answer = client.request(method, &remote.path(path), body).await?;
        // Vault answers the read of a key that is not there with 404 and no words.
        if answer.status == hyper::StatusCode::NOT_FOUND && answer.errors().is_empty() {
            return Err(Failure::new(
                Exit::Failed,
                format!("there is no {path} under {}", remote.mount),
            )
            .next("`strongroom key list` shows the keys that there are"));
        }
        answer
            .accepted()?
            .json()
            .map_err(|error| Failure::new(Exit::Failed, format!("the answer is not JSON: {error}")))
    })
}
