//! Ceremonies of an appliance that has its keys: each goes on from the directory of the one before.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use hyper::StatusCode;
use serde_json::{Value, json};
use strongroom_ceremony::run::later::{self, NoAnswer, Progress, RunningServer, rehearsal_folder};
use strongroom_ceremony::run::{LaterOptions, Task};
use strongroom_client::{Client, ClientError, ClientOptions};
use strongroom_core::causes::causes;

use super::run::{converse, keep_memory_private, print, with_token_folder};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::Format;
use crate::cli::remote::runtime;

/// What every later ceremony is told.
#[derive(Args, Debug)]
pub(super) struct LaterArgs {
    /// The directory of the ceremony before: its transcript is what this one goes on from
    #[arg(long, value_name = "DIR")]
    after: PathBuf,
    /// This ceremony's own directory; made if it is not there
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Take answers from the files in this directory instead of asking people; docs/ceremony.md
    /// lists them
    #[arg(long, value_name = "DIR", visible_alias = "non-interactive")]
    answers: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(super) struct ReplaceCustodianArgs {
    /// The new plan, signed by everyone in it; `ceremony revise` writes it
    plan: PathBuf,
    #[command(flatten)]
    later: LaterArgs,
    /// Also write each custodian's share as words and a QR code on a page to be printed
    #[arg(long)]
    paper: bool,
}

pub(super) fn replace_custodian(
    args: &ReplaceCustodianArgs,
    format: Format,
) -> Result<(), Failure> {
    let task = Task::ReplaceCustodian {
        plan: args.plan.clone(),
    };
    carry_out(&args.later, task, args.paper, format)
}

#[derive(Args, Debug)]
pub(super) struct RestoreArgs {
    /// The directory of the ceremony that made the backup: backup.jsonl and transport-shares/
    backup: PathBuf,
    #[command(flatten)]
    later: LaterArgs,
    /// Also write each custodian's share of the new PINs as words and a QR code on a page to be
    /// printed
    #[arg(long)]
    paper: bool,
}

#[derive(Args, Debug)]
pub(super) struct BackupArgs {
    #[command(flatten)]
    later: LaterArgs,
    /// Also write each custodian's share of the transport key as words and a QR code on a page to
    /// be printed
    #[arg(long)]
    paper: bool,
}

pub(super) fn backup(args: &BackupArgs, format: Format) -> Result<(), Failure> {
    carry_out(&args.later, Task::Backup, args.paper, format)
}

pub(super) fn restore(args: &RestoreArgs, format: Format) -> Result<(), Failure> {
    let task = Task::Restore {
        backup: args.backup.clone(),
    };
    carry_out(&args.later, task, args.paper, format)
}

pub(super) fn add_token(args: &LaterArgs, format: Format) -> Result<(), Failure> {
    carry_out(args, Task::AddToken, false, format)
}

#[derive(Args, Debug)]
pub(super) struct RotateMasterArgs {
    #[command(flatten)]
    later: LaterArgs,
    /// The address of the running appliance, which moves the keys while it serves; without it the
    /// appliance must be stopped
    #[arg(long, value_name = "URL", requires_all = ["cacert", "client_cert", "client_key"])]
    addr: Option<String>,
    /// The CA of the appliance's certificate, PEM
    #[arg(long, value_name = "FILE", requires = "addr")]
    cacert: Option<PathBuf>,
    /// The certificate of a client that the policy allows `rotate-master`, PEM
    #[arg(long, value_name = "FILE", requires = "addr")]
    client_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "addr")]
    client_key: Option<PathBuf>,
}

pub(super) fn rotate_master(args: &RotateMasterArgs, format: Format) -> Result<(), Failure> {
    let server = match (
        &args.addr,
        &args.cacert,
        &args.client_cert,
        &args.client_key,
    ) {
        (Some(address), Some(ca), Some(certificate), Some(key)) => {
            let options = ClientOptions::new(address, ca).identity(certificate, key);
            Some(Arc::new(Server::new(&options)?) as Arc<dyn RunningServer>)
        }
        _ => None,
    };
    carry_out(&args.later, Task::RotateMaster { server }, false, format)
}

/// The appliance, over its API.
struct Server {
    client: Client,
    /// The client's connections live on it.
    runtime: tokio::runtime::Runtime,
}

impl Server {
    fn new(options: &ClientOptions) -> Result<Self, Failure> {
        let runtime = runtime()?;
        let inside = runtime.enter();
        let client = Client::new(options)?;
        drop(inside);
        Ok(Self { client, runtime })
    }

    fn ask(&self, method: &str, body: Option<&Value>) -> Result<Progress, NoAnswer> {
        let answer = self
            .runtime
            .block_on(self.client.call(method, "sys/rotate-master", body));
        let answer = answer.map_err(|error| {
            let why = causes(&error);
            match error {
                ClientError::Refused { status, .. } if status == StatusCode::FORBIDDEN => {
                    NoAnswer::Denied(why)
                }
                ClientError::Refused { .. } => NoAnswer::Refused(why),
                _ => NoAnswer::Unreachable(why),
            }
        })?;
        serde_json::from_value(answer).map_err(|error| NoAnswer::Unreachable(error.to_string()))
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.client.address())
    }
}

impl RunningServer for Server {
    fn progress(&self) -> Result<Progress, NoAnswer> {
        self.ask("GET", None)
    }

    fn rotate_to(&self, master_sha256: &str) -> Result<Progress, NoAnswer> {
        self.ask("POST", Some(&json!({"master_sha256": master_sha256})))
    }
}

pub(super) fn destroy(args: &LaterArgs, format: Format) -> Result<(), Failure> {
    carry_out(args, Task::Destroy, false, format)
}

/// `paper`: where shares are dealt, also as pages.
pub(super) fn carry_out(
    args: &LaterArgs,
    task: Task,
    paper: bool,
    format: Format,
) -> Result<(), Failure> {
    let rehearsal = match rehearsal_folder(&args.after)? {
        Some(folder) => {
            let soft = |error| Failure::caused(Exit::Hsm, &error);
            with_token_folder(&strongroom_softhsm::blank(&folder.join("token")).map_err(soft)?)?;
            Some(strongroom_softhsm::module_path().map_err(soft)?)
        }
        None => None,
    };
    keep_memory_private()?;
    let options = LaterOptions {
        after: args.after.clone(),
        folder: args.dir.clone(),
        task,
        paper,
        rehearsal,
    };
    let outcome = converse(args.answers.as_deref(), format, |ui| {
        later::run(&options, ui)
    })?;
    print(&outcome, format)
}
