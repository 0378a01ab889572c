//! What the token says of itself and of each key.

use serde_json::{Value, json};
use strongroom_hsm::ceremony::{self as hsm, Evidence, KeySet};
use strongroom_hsm::{Hsm, TokenSelector};

use super::outputs::{Entropy, Outputs, ProfileRecord};
use super::{Act, Ceremony, Found, RunError, base64, self_test, token_record};
use crate::Kind;
use crate::record::{EvidenceOutputs, ObjectRecord};

pub(super) const ACT: Act = Act {
    title: "Evidence of the keys",
    what: "The token is asked for every attribute of every object on it, for its mechanisms, and for random bytes, which are tested; then it \
           goes through the appliance's own self-tests.",
    why: "The attributes show that the keys can't be taken out or misused. They go into the transcript, so that a stranger can check them years later.",
    who: |ceremony| format!("{} (auditor) reads along", ceremony.plan.auditor.name()),
    actors: super::everyone,
    ready: "Shall the token be asked?",
    needs_pins: true,
    inputs: |ceremony| Ok(json!({"token_serial": ceremony.token_serial()?})),
    recover: |_| {
        Ok(Found {
            text: "asking changes nothing: the token is asked once more".to_owned(),
            data: Value::Null,
        })
    },
    run,
};

const SAMPLES: usize = 1 << 16;

fn run(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let config = ceremony.hsm_config()?;
    ceremony
        .ui
        .working(Some("asking for the token's attributes"));
    let evidence = hsm::evidence(&config);
    ceremony.ui.working(None);
    let evidence = evidence?;
    // The keys that a backup brought belong to a store already.
    let expected = match ceremony.kind {
        Kind::Restore => KeySet::InUse,
        _ => KeySet::Unused,
    };
    if evidence.keys != expected {
        return Err(RunError::refused(format!(
            "the token's keys are not as they were made: {:?}",
            evidence.keys
        )));
    }

    ceremony
        .ui
        .working(Some("testing the token's random numbers"));
    let pin = ceremony.pins()?.user;
    let selector = TokenSelector::Serial(ceremony.token_serial()?);
    let samples = hsm::random(&config.module, &selector, &pin, SAMPLES);
    ceremony.ui.working(None);
    self_test::healthy(&samples?, "token")?;

    ceremony
        .ui
        .working(Some("the appliance's self-tests of the token"));
    // Its start checks every key's attributes against what the appliance demands, and runs known
    // answers through the token.
    let started = Hsm::start(config).map(|hsm| hsm.profile().clone());
    ceremony.ui.working(None);
    let profile = started?;

    ceremony.say_objects(&evidence)?;
    ceremony.ui.say(&format!(
        "{} mechanisms; random numbers and self-tests passed.",
        evidence.mechanisms.len()
    ))?;
    Ok(Outputs::Evidence {
        record: record(&evidence),
        mechanisms: evidence.mechanisms,
        hardware_version: evidence.hardware_version,
        firmware_version: evidence.firmware_version,
        entropy: Entropy::of("token", SAMPLES),
        profile: ProfileRecord::from(&profile),
        self_tests: "passed",
    })
}

/// What a verification looks at.
pub(super) fn record(evidence: &Evidence) -> EvidenceOutputs {
    EvidenceOutputs {
        token: token_record(&evidence.token),
        objects: evidence
            .objects
            .iter()
            .map(|object| ObjectRecord {
                name: object.name.clone(),
                label: object.label.clone(),
                class: object.class.clone(),
                spki: object.spki.as_deref().map(base64),
                attributes: object.attributes.clone(),
            })
            .collect(),
    }
}
