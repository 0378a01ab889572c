//! Ceremonies of an appliance that has its keys: each goes on from the folder of the one before.

use std::path::PathBuf;

use clap::Args;

use super::run::{converse, keep_memory_private, print, with_token_folder};
use crate::ceremony::run::later::{self, rehearsal_folder};
use crate::ceremony::run::{LaterOptions, Task};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::Format;

/// What every later ceremony is told.
#[derive(Args, Debug)]
pub(super) struct LaterArgs {
    /// The folder of the ceremony before: its transcript is what this one goes on from
    #[arg(long, value_name = "DIR")]
    after: PathBuf,
    /// This ceremony's own folder; made if it is not there
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Take answers from the files in this folder instead of asking people; docs/ceremony.md lists them
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
