//! What is on the token when it is over.

use serde_json::{Value, json};
use strongroom_hsm::ceremony::expected::SIGNING_LABEL;
use strongroom_hsm::ceremony::{self as hsm, KeySet};

use super::super::super::outputs::Outputs;
use super::super::super::{Act, Ceremony, Found, RunError, evidence, key_records};
use crate::record::KeysOutputs;

pub(in crate::run) const KEYS: Act = Act {
    title: "The keys from now on",
    what: "The token names every key that it holds now.",
    why: "The summary that everyone signs has these, and the next ceremony goes on from them.",
    who: |_| "the machine; all watch".to_owned(),
    actors: super::super::super::everyone,
    ready: "Shall the token be asked?",
    needs_pins: true,
    inputs: |ceremony| Ok(json!({"token_serial": ceremony.token_serial()?})),
    recover: asked_again,
    run: keys,
};

pub(in crate::run) const EVIDENCE: Act = Act {
    title: "Evidence of the keys",
    what: "The token is asked for every attribute of every object on it, and goes through the appliance's self-tests.",
    why: "The attributes show that the new keys can't be taken out or misused, and that nothing trusted was left.",
    who: |ceremony| format!("{} (auditor) reads along", ceremony.plan.auditor.name()),
    actors: super::super::super::everyone,
    ready: "Shall the token be asked?",
    needs_pins: true,
    inputs: |ceremony| Ok(json!({"token_serial": ceremony.token_serial()?})),
    recover: asked_again,
    run: attributes,
};

#[allow(clippy::unnecessary_wraps, reason = "a step's way to recover")]
fn asked_again(_: &mut Ceremony<'_>) -> Result<Found, RunError> {
    Ok(Found {
        text: "asking changes nothing: the token is asked once more".to_owned(),
        data: Value::Null,
    })
}

fn found(ceremony: &mut Ceremony<'_>) -> Result<hsm::Evidence, RunError> {
    let config = ceremony.hsm_config()?;
    ceremony.ui.working(Some("asking the token"));
    let found = hsm::evidence(&config);
    ceremony.ui.working(None);
    let found = found?;
    if found.keys == KeySet::InUse {
        return Ok(found);
    }
    Err(RunError::refused(format!(
        "the token's keys are not as they must be: {:?}",
        found.keys
    )))
}

fn keys(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let record = KeysOutputs {
        // Signing keys come and go while the appliance is at work: they are none of a ceremony's.
        keys: key_records(&found(ceremony)?)
            .into_iter()
            .filter(|key| key.label != SIGNING_LABEL)
            .collect(),
    };
    ceremony.say_keys(&record.keys)?;
    Ok(Outputs::RotatedKeys(record))
}

fn attributes(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let found = found(ceremony)?;
    ceremony.say_objects(&found)?;
    Ok(Outputs::RotatedEvidence {
        record: evidence::record(&found),
        self_tests: "passed",
    })
}
