//! `strongroom ceremony revise`: a plan that takes the place of another, with other people in it.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use strongroom_ceremony::plan::Draft;
use strongroom_ceremony::{Participant, Plan};

use crate::cli::exit::{Exit, Failure};
use crate::cli::files;
use crate::cli::output::Format;

#[derive(Args, Debug)]
pub(super) struct ReviseArgs {
    /// The plan in force
    plan: PathBuf,
    /// The new plan, a new file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The name of a custodian who leaves
    #[arg(long = "remove", value_name = "NAME")]
    removed: Vec<String>,
    /// The .pub file of a custodian who comes; they take the place of one who leaves, or the last
    #[arg(long = "add", value_name = "FILE")]
    added: Vec<PathBuf>,
    /// How many shares are to give the PINs back; as before if not given
    #[arg(long, value_name = "M")]
    threshold: Option<u8>,
    /// The .pub file of a new security officer
    #[arg(long, value_name = "FILE")]
    security_officer: Option<PathBuf>,
    /// The .pub file of a new auditor
    #[arg(long, value_name = "FILE")]
    auditor: Option<PathBuf>,
}

pub(super) fn run(args: &ReviseArgs, format: Format) -> Result<(), Failure> {
    let old = Plan::load(&args.plan)?;
    let mut draft = Draft::revision(&old);
    let mut newcomers = args
        .added
        .iter()
        .map(|path| Participant::load(path))
        .collect::<Result<Vec<_>, _>>()?
        .into_iter();
    for name in &args.removed {
        let place = draft
            .custodians
            .iter()
            .position(|custodian| custodian.name() == name)
            .ok_or_else(|| {
                Failure::new(
                    Exit::Usage,
                    format!("{name} is not a custodian of {}", args.plan.display()),
                )
            })?;
        match newcomers.next() {
            Some(newcomer) => draft.custodians[place] = newcomer,
            None => drop(draft.custodians.remove(place)),
        }
    }
    draft.custodians.extend(newcomers);
    draft.threshold = args.threshold.unwrap_or(draft.threshold);
    if let Some(path) = &args.security_officer {
        draft.security_officer = Participant::load(path)?;
    }
    if let Some(path) = &args.auditor {
        draft.auditor = Participant::load(path)?;
    }
    let plan = draft.plan()?;
    // One that is there may have been signed.
    files::write_new(&args.out, plan.text().as_bytes())?;
    format.either(
        &format!(
            "wrote {}, SHA-256 {}, which replaces {}\nnext: everyone in it reads it, and signs: strongroom ceremony sign {} --key FILE",
            args.out.display(),
            plan.hash_hex(),
            old.hash_hex(),
            args.out.display()
        ),
        &json!({"plan": args.out, "sha256": plan.hash_hex(), "replaces": old.hash_hex(), "threshold": plan.threshold, "custodians": plan.custodians.len()}),
    )
}
