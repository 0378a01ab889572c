//! The same PINs, shared again among the custodians of the new plan.

use serde_json::{Value, json};

use super::super::outputs::Outputs;
use super::super::{Act, Ceremony, Found, RunError, custody, pins};
use crate::{Participant, shares};

pub(in crate::run) const ACT: Act = Act {
    title: "Share the PINs again",
    what: "Custodians of the old plan give the PINs back, the token is asked whether it takes them, and each custodian of the new plan gets a share \
           of the same PINs, from new random polynomials. No PIN is changed and none is shown.",
    why: "Whoever leaves must not be needed any more, and whoever comes must count. An old share and a new one don't fit together; but the old shares still \
          give the PINs among themselves, so they are to be destroyed.",
    who: |ceremony| {
        let names: Vec<_> = ceremony
            .plan
            .custodians
            .iter()
            .map(Participant::name)
            .collect();
        format!(
            "custodians of the old plan; the new ones are {}",
            names.join(", ")
        )
    },
    actors: super::super::everyone,
    ready: "Shall the PINs be shared again?",
    needs_pins: true,
    inputs,
    recover,
    run,
};

fn inputs(ceremony: &mut Ceremony<'_>) -> Result<Value, RunError> {
    let of = |custodians: &[Participant]| -> Vec<String> {
        custodians.iter().map(Participant::fingerprint).collect()
    };
    let old = &super::opening::custody(ceremony)?.plan;
    Ok(json!({
        "replaces": old.hash_hex(),
        "old_threshold": old.threshold,
        "old_custodians": of(&old.custodians),
        "threshold": ceremony.plan.threshold,
        "custodians": of(&ceremony.plan.custodians),
    }))
}

/// Shares that no `done` line commits to are of nothing: those in force are still the old ones.
fn recover(ceremony: &mut Ceremony<'_>) -> Result<Found, RunError> {
    let removed = pins::remove(ceremony, custody::SHARES_DIRECTORY)?;
    Ok(Found {
        text: format!(
            "{} shares or pages of the interrupted step were removed; the old ones are still in force, and the step starts over",
            removed.len()
        ),
        data: json!({"removed": removed}),
    })
}

fn run(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let known = ceremony.pins()?;
    let selector = strongroom_hsm::TokenSelector::Serial(ceremony.token_serial()?);
    ceremony
        .ui
        .working(Some("asking the token whether it takes the PINs"));
    let checked = strongroom_hsm::ceremony::check_pins(
        &ceremony.site.module,
        &selector,
        &known.so,
        &known.user,
    );
    ceremony.ui.working(None);
    checked?;
    let same = shares::Pins {
        so: known.so.expose().to_vec().into(),
        user: known.user.expose().to_vec().into(),
    };
    let outputs = pins::deal_out(ceremony, &same, custody::SHARES_DIRECTORY)?;
    ceremony.ui.say(&format!(
        "Each new share is with its custodian. {}: have every old share destroyed, page and file: M of them would still give the PINs.",
        ceremony.plan.security_officer.name()
    ))?;
    Ok(outputs)
}
