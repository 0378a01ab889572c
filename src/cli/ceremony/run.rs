//! `ceremony run` and `ceremony rehearse`: a plan carried out, by people at a terminal or by a
//! directory of answers.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use serde_json::json;
use strongroom_ceremony::run::{self, Answers, Options, Outcome, RunError, Terminal, Ui, UiError};

use crate::cli::exit::{Exit, Failure};
use crate::cli::output::Format;

#[derive(Args, Debug)]
pub(super) struct RunArgs {
    /// The signed plan; its signatures are in PLAN.signatures
    plan: PathBuf,
    /// The ceremony's directory: transcript, shares, pages, report; made if it is not there
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Take answers from the files in this directory instead of asking people; docs/ceremony.md
    /// lists them
    #[arg(long, value_name = "DIR", visible_alias = "non-interactive")]
    answers: Option<PathBuf>,
    /// Also write each custodian's share as words and a QR code on a page to be printed
    #[arg(long)]
    paper: bool,
}

pub(super) fn run(args: &RunArgs, format: Format) -> Result<(), Failure> {
    carry_out(args, None, format)
}

/// The same on a throwaway token in the ceremony's directory.
pub(super) fn rehearse(args: &RunArgs, format: Format) -> Result<(), Failure> {
    let soft = |error| Failure::caused(Exit::Hsm, &error);
    let configuration = strongroom_softhsm::blank(&args.dir.join("token")).map_err(soft)?;
    let module = strongroom_softhsm::module_path().map_err(soft)?;
    with_token_folder(&configuration)?;
    carry_out(args, Some(module), format)
}

/// SoftHSM reads its configuration's path from the environment, which must not change while threads
/// may read it: so where it is not the right one, this program begins again, with it set.
pub(super) fn with_token_folder(configuration: &Path) -> Result<(), Failure> {
    if std::env::var_os(strongroom_softhsm::CONF_VARIABLE).as_deref()
        == Some(configuration.as_os_str())
    {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(|error| {
        Failure::new(
            Exit::Failed,
            format!("this program's own path is not known: {error}"),
        )
    })?;
    let error = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(strongroom_softhsm::CONF_VARIABLE, configuration)
        .exec();
    Err(Failure::new(
        Exit::Failed,
        format!("this program does not start again: {error}"),
    ))
}

fn carry_out(args: &RunArgs, rehearsal: Option<PathBuf>, format: Format) -> Result<(), Failure> {
    keep_memory_private()?;
    let options = Options {
        plan: args.plan.clone(),
        folder: args.dir.clone(),
        paper: args.paper,
        rehearsal,
    };
    let outcome = converse(args.answers.as_deref(), format, |ui| run::run(&options, ui))?;
    print(&outcome, format)
}

/// With people at a terminal, or with a directory of answers.
pub(super) fn converse(
    answers: Option<&Path>,
    format: Format,
    run: impl FnOnce(&mut dyn Ui) -> Result<Outcome, RunError>,
) -> Result<Outcome, Failure> {
    Ok(if let Some(folder) = answers {
        run(&mut Answers::new(folder.to_owned(), format == Format::Json))?
    } else {
        run(&mut Terminal::new().map_err(RunError::from)?)?
    })
}

pub(super) fn print(outcome: &Outcome, format: Format) -> Result<(), Failure> {
    format.result(&json!({
        "transcript": outcome.transcript,
        "report": outcome.report,
        "audit_key": outcome.audit_key,
        "configuration": outcome.configuration,
    }))
}

/// PINs and shares are in this process's memory: no core dump, and no other process of the same
/// user reads it.
pub(super) fn keep_memory_private() -> Result<(), Failure> {
    use nix::sys::resource::{Resource, setrlimit};
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
        .and_then(|()| nix::sys::prctl::set_dumpable(false))
        .map_err(|error| {
            Failure::new(
                Exit::Failed,
                format!("core dumps can't be turned off: {error}; nothing was done"),
            )
        })
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Hsm(error) => Self::from(error).next(RESUME_ADVICE),
            RunError::Store(error) => Self::from(error).next(RESUME_ADVICE),
            RunError::Audit(error) => Self::from(error).next(RESUME_ADVICE),
            RunError::Ceremony(error) => Self::from(error),
            RunError::Waiting { what, next } => Self::new(Exit::Waiting, what).next(next),
            error @ RunError::Ui(UiError::NoTerminal) => Self::caused(Exit::Usage, &error)
                .next("run it on a terminal, or give a directory of answers with --answers"),
            error @ RunError::Ui(UiError::Answer { .. }) => Self::caused(Exit::Waiting, &error)
                .next("docs/ceremony.md lists the answers; correct them and run the same command again"),
            error => Self::caused(Exit::Failed, &error).next(RESUME_ADVICE),
        }
    }
}

const RESUME_ADVICE: &str = "what was done stays done; see to the cause, and run the same command again: it goes on where it stopped";
