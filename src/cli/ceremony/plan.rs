//! `strongroom ceremony plan`: a plan out of options and public files.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use strongroom_ceremony::Participant;
use strongroom_ceremony::plan::{Draft, PinMethod};

use crate::cli::exit::{Exit, Failure};
use crate::cli::files;
use crate::cli::output::Format;
use strongroom_core::hex;

#[derive(Args, Debug)]
pub(super) struct PlanArgs {
    /// The plan, a new file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The appliance's name
    #[arg(long)]
    name: String,
    /// The HSM's PKCS#11 module
    #[arg(long, value_name = "FILE")]
    module: PathBuf,
    /// The label that the token gets [default: the appliance's name]
    #[arg(long)]
    label: Option<String>,
    /// The token's serial number, where more than one is uninitialised
    #[arg(long)]
    serial: Option<String>,
    /// Also make the master key that keys in memory residency need
    #[arg(long)]
    memory_master: bool,
    /// Make no transfer key: the keys of this appliance can then never be moved to another master
    /// key
    #[arg(long)]
    no_transfer: bool,
    /// Make the keys so that they can be moved to a second token, by `ceremony backup` and
    /// `restore`: decided now, and for good
    #[arg(long)]
    backup: bool,
    /// How many custodians together give the PINs back
    #[arg(long, value_name = "M")]
    threshold: u8,
    /// A custodian's .pub file; once for each
    #[arg(long = "custodian", value_name = "FILE", required = true)]
    custodians: Vec<PathBuf>,
    /// The security officer's .pub file
    #[arg(long, value_name = "FILE")]
    security_officer: PathBuf,
    /// The auditor's .pub file
    #[arg(long, value_name = "FILE")]
    auditor: PathBuf,
    /// The strongroom program that is to run the ceremony [default: this one]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// The appliance's image, if there is one
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Where configuration and certificates go
    #[arg(long, value_name = "DIR", default_value = "/etc/strongroom")]
    folder: PathBuf,
    /// Where the store and the audit log go
    #[arg(long, value_name = "DIR", default_value = "/var/lib/strongroom")]
    state: PathBuf,
    /// Where the appliance listens
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:8200")]
    listen: SocketAddr,
    /// A DNS name or IP address for its certificate; once for each
    #[arg(long = "host", value_name = "NAME", required = true)]
    hosts: Vec<String>,
    /// How the service gets its PIN
    #[arg(long, value_enum, default_value = "systemd-creds")]
    runtime_pin: Method,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Method {
    /// An encrypted systemd credential, bound to the TPM where there is one
    SystemdCreds,
    /// A file that only the service may read
    File,
}

pub(super) fn run(args: &PlanArgs, format: Format) -> Result<(), Failure> {
    let binary = match &args.binary {
        Some(path) => path.clone(),
        None => std::env::current_exe()
            .map_err(|error| Failure::file(Path::new("this program"), &error))?,
    };
    let custodians = args
        .custodians
        .iter()
        .map(|path| Participant::load(path))
        .collect::<Result<Vec<_>, _>>()?;
    let draft = Draft {
        name: args.name.clone(),
        module: args.module.clone(),
        label: args.label.clone().unwrap_or_else(|| args.name.clone()),
        serial: args.serial.clone(),
        memory_master: args.memory_master,
        transfer: !args.no_transfer,
        backup: args.backup,
        threshold: args.threshold,
        security_officer: Participant::load(&args.security_officer)?,
        auditor: Participant::load(&args.auditor)?,
        binary_sha256: hash(&binary)?,
        image_sha256: args.image.as_deref().map(hash).transpose()?,
        folder: args.folder.clone(),
        state: args.state.clone(),
        listen: args.listen,
        names: args.hosts.clone(),
        pin_method: match args.runtime_pin {
            Method::SystemdCreds => PinMethod::SystemdCreds,
            Method::File => PinMethod::File,
        },
        replaces: None,
        custodians,
    };
    let plan = draft.plan()?;
    let (threshold, count) = (usize::from(plan.threshold), plan.custodians.len());
    if threshold == count && count > 1 {
        format.note(&format!(
            "note: all {count} custodians are needed; one lost share loses the PINs"
        ));
    } else if threshold == 1 {
        format.note("note: each custodian alone has both PINs: there is no split knowledge");
    }
    // One that is there may have been signed.
    files::write_new(&args.out, plan.text().as_bytes())?;
    format.either(
        &format!(
            "wrote {}, SHA-256 {}\nnext: everyone in it reads it, and signs: strongroom ceremony sign {} --key FILE",
            args.out.display(),
            plan.hash_hex(),
            args.out.display()
        ),
        &json!({"plan": args.out, "sha256": plan.hash_hex(), "threshold": threshold, "custodians": count}),
    )
}

/// SHA-256 of a file of any size.
fn hash(path: &Path) -> Result<String, Failure> {
    let mut hasher = Sha256::new();
    File::open(path)
        .and_then(|mut file| std::io::copy(&mut file, &mut Writer(&mut hasher)))
        .map_err(|error| Failure::new(Exit::Usage, format!("{}: {error}", path.display())))?;
    Ok(hex::encode(&hasher.finalize()))
}

struct Writer<'a>(&'a mut Sha256);

impl std::io::Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
