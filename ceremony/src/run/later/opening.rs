//! What it goes on from, which program this is, and who is there: not everyone in the plan must be.

use serde_json::{Value, json};

use super::super::outputs::Outputs;
use super::super::{Act, Ceremony, Found, RunError, opening::grouped};
use crate::record::{LaterOpeningOutputs, PresentRecord};
use crate::{Kind, Role};

pub(in crate::run) const ACT: Act = Act {
    title: "Opening",
    what: "The hashes of the transcript that this ceremony goes on from, of the plan and of this program are read aloud and compared. \
           The transcripts so far were checked just now. Then the roll is called.",
    why: "Everyone must know which appliance this is about, and that the program is the one they trust. Those who are here sign at the end.",
    who: |ceremony| {
        format!(
            "{} (security officer) reads; all compare",
            ceremony.plan.security_officer.name()
        )
    },
    actors: super::super::security_officer,
    ready: "Are these the transcript, the plan and the program that everyone expects?",
    needs_pins: false,
    inputs: |ceremony| {
        let custody = custody(ceremony)?;
        Ok(json!({"previous_sha256": custody.sha256, "plan": ceremony.plan.hash_hex()}))
    },
    recover: |_| {
        Ok(Found {
            text: "the roll is called once more".to_owned(),
            data: Value::Null,
        })
    },
    run,
};

/// What the ceremony before left.
pub(super) fn custody<'a>(ceremony: &'a Ceremony<'_>) -> Result<&'a crate::CustodyState, RunError> {
    ceremony
        .custody
        .as_ref()
        .ok_or_else(|| RunError::refused("there is no ceremony before this one"))
}

fn run(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let custody = custody(ceremony)?.clone();
    let binary = super::super::program_sha256()?;
    ceremony.ui.say(&format!(
        "Previous transcript ({}) SHA-256: {}",
        custody.kind,
        grouped(&custody.sha256)
    ))?;
    ceremony.ui.say(&format!(
        "Token at work: {}, serial number {}",
        custody.summary.token.label, custody.summary.token.serial
    ))?;
    ceremony.ui.say(&format!(
        "Plan SHA-256: {}",
        grouped(&ceremony.plan.hash_hex())
    ))?;
    ceremony
        .ui
        .say(&format!("Program SHA-256: {}", grouped(&binary)))?;
    if binary != ceremony.plan.software.binary_sha256 {
        ceremony.ui.say(
            "That is another program than the plan names: compare it with what its release says.",
        )?;
    }
    let mut present = Vec::new();
    for (role, name, fingerprint) in ceremony.roll() {
        let text = format!("{name}, {role}, key {}: here?", &fingerprint[..16]);
        if ceremony.ui.present(&text, &name)? {
            present.push(PresentRecord {
                name,
                role: role.name().to_owned(),
                key: fingerprint,
            });
        }
    }
    enough(ceremony, &present)?;
    Ok(Outputs::LaterOpening {
        record: LaterOpeningOutputs {
            present,
            shares: custody.shares,
            token_serial: custody.summary.token.serial,
            previous_kind: custody.kind.name().to_owned(),
        },
        binary_sha256: binary,
        version: env!("CARGO_PKG_VERSION"),
    })
}

fn enough(ceremony: &Ceremony<'_>, present: &[PresentRecord]) -> Result<(), RunError> {
    let count = |role: Role| present.iter().filter(|one| one.role == role.name()).count();
    let needed = usize::from(ceremony.plan.threshold);
    let custodians = count(Role::Custodian);
    if custodians >= needed && count(Role::SecurityOfficer) == 1 && count(Role::Auditor) == 1 {
        return Ok(());
    }
    let newcomers = match ceremony.kind {
        Kind::ReplaceCustodian => " of the new plan",
        _ => "",
    };
    Err(RunError::Waiting {
        what: format!(
            "{custodians} custodians{newcomers} are here, and the security officer, the auditor and {needed} custodians must be"
        ),
        next: "call the others, and run the same command again (in a directory of answers, the file `present` lists who is here)".to_owned(),
    })
}
