//! `strongroom ceremony sign`: one person's signature of a plan.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use strongroom_ceremony::plan::signatures_path;
use strongroom_ceremony::{ParticipantKey, Plan, PlanSignature};

use super::{PinOptions, unlock_with};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::Format;

#[derive(Args, Debug)]
pub(super) struct SignArgs {
    /// The plan
    plan: PathBuf,
    /// The participant's key file
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    pin: PinOptions,
}

pub(super) fn run(args: &SignArgs, format: Format) -> Result<(), Failure> {
    let plan = Plan::load(&args.plan)?;
    let signatures = PlanSignature::load_all(&args.plan)?;
    format.note(&format!("the plan's SHA-256 is {}", plan.hash_hex()));
    let key = ParticipantKey::load(&args.key, &mut unlock_with(&args.pin))?;
    let fingerprint = key.participant().fingerprint();
    if signatures
        .iter()
        .any(|signature| signature.key == fingerprint)
    {
        return Err(Failure::new(
            Exit::Usage,
            format!("{} has signed already", key.participant().name()),
        )
        .next(format!(
            "if that was an earlier version of the plan, remove the line from {} first",
            signatures_path(&args.plan).display()
        )));
    }
    let signature = PlanSignature::make(&plan, &key)?;
    signature.append(&args.plan)?;
    let signed = signatures.len() + 1;
    let all = plan.participants().count();
    format.either(
        &format!("signed by {} ({signed} of {all})", signature.name),
        &json!({"name": signature.name, "key": signature.key, "plan_sha256": plan.hash_hex(), "signed": signed, "participants": all}),
    )
}
