//! Another master key: made, marked as trusted, every KEK moved to it while the appliance serves,
//! and only then the old one destroyed.
//!
//! What is on the token says where it stands, so each step can be cut off anywhere: until the marks
//! are made the old master key is in force, and the new one can be thrown away; from then on
//! nothing is thrown away before every key is moved.

mod keys;
mod moving;
mod server;
mod trial;

use serde_json::{Value, json};
use strongroom_hsm::Hsm;
use strongroom_hsm::ceremony::{self as hsm, Successor};

use super::super::opening::grouped;
use super::super::{Act, Ceremony, Found, RunError, evidence, security_officer, sha256_hex};
use crate::encoding::unbase64;
use crate::record::{KeyRecord, SuccessorOutputs};
use crate::{Participant, Step};

pub(super) use keys::{EVIDENCE, KEYS};
pub(super) use moving::{MOVE, RETIRE};
pub use server::{Progress, RunningServer, Unmovable};

pub(super) const SUCCESSOR: Act = Act {
    step: Step::Successor,
    title: "Make the next master key",
    what: "The token makes the next generation of the master key and of the transfer key (RSA-4096), and of the memory master key where there is one, beside those \
           that are at work. Their fingerprints are written down by everyone. It takes some seconds to minutes.",
    why: "Nothing rests on the new keys yet. Those at work stay in force until the security officer marks the new ones.",
    who: |_| "the machine; all write the fingerprints down".to_owned(),
    actors: super::super::everyone,
    ready: "Shall the next master key be made?",
    needs_pins: true,
    inputs: |ceremony| Ok(json!({"token_serial": ceremony.token_serial()?})),
    recover: |ceremony| {
        let config = ceremony.hsm_config()?;
        let gone = hsm::discard_successor(&config)?;
        Ok(Found {
            text: format!(
                "{} objects that the interrupted step had made were destroyed; they were not in force, and the step starts over",
                gone.len()
            ),
            data: json!({"destroyed": gone.iter().map(|object| &object.label).collect::<Vec<_>>()}),
        })
    },
    run: make,
};

pub(super) const TRUST: Act = Act {
    step: Step::Trust,
    title: "Mark the next master key as trusted",
    what: "The fingerprints are shown once more and compared with what everyone wrote down. Then the security officer's login imports the public halves of the new \
           master and transfer key, marked as trusted (CKA_TRUSTED). From that moment the new master key is in force.",
    why: "The token lets a key on its way go under trusted keys only, and lets the security officer alone make one. A key that somebody put in the new one's place \
          would take every KEK out, so what is compared here is what is marked.",
    who: |ceremony| {
        format!(
            "{} (security officer) reads; {} (auditor) and all compare",
            ceremony.plan.security_officer.name(),
            ceremony.plan.auditor.name()
        )
    },
    actors: super::super::everyone,
    ready: "Has everyone the fingerprints that were written down in the step before?",
    needs_pins: true,
    inputs: |ceremony| {
        let successor = successor(ceremony)?;
        Ok(json!({
            "generation": successor.number,
            "master_sha256": sha256_hex(&successor.master),
            "transfer_sha256": sha256_hex(&successor.transfer),
        }))
    },
    recover: |_| {
        Ok(Found {
            text: "marks that were made already stay, and those that are missing are made"
                .to_owned(),
            data: Value::Null,
        })
    },
    run: trust,
};

fn make(ceremony: &mut Ceremony<'_>) -> Result<Value, RunError> {
    moving::check_movable(ceremony)?;
    let config = ceremony.hsm_config()?;
    let trial = {
        let config = config.clone();
        ceremony.block_on(async move { trial::make(&Hsm::start(config)?).await })?
    };
    let ui = &mut *ceremony.ui;
    let made = hsm::make_successor(&config, &mut |what| ui.working(Some(what)));
    ceremony.ui.working(None);
    let made = made?;
    let state = hsm::evidence(&config)?;
    let ending = format!("-{}", made.number);
    let objects: Vec<_> = evidence::outputs(&state)
        .objects
        .into_iter()
        .filter(|object| object.label.ends_with(&ending))
        .collect();
    let outputs = SuccessorOutputs {
        generation: made.number,
        keys: objects
            .iter()
            .filter(|object| object.class == "CKO_PUBLIC_KEY")
            .filter_map(|object| {
                let spki = unbase64(object.spki.as_ref()?)?;
                Some(KeyRecord::new(&object.label, &object.label, Some(&spki)))
            })
            .collect(),
        objects,
    };
    show(ceremony, &made)?;
    ceremony
        .ui
        .say("Everyone writes these down now: they are compared in the next step.")?;
    let mut outputs = serde_json::to_value(&outputs).map_err(RunError::json)?;
    outputs["trial"] = trial;
    Ok(outputs)
}

fn trust(ceremony: &mut Ceremony<'_>) -> Result<Value, RunError> {
    let successor = successor(ceremony)?;
    show(ceremony, &successor)?;
    ceremony
        .ui
        .confirm("Are these the fingerprints that everyone wrote down?")?;
    let config = ceremony.hsm_config()?;
    let pins = ceremony.pins()?;
    ceremony.ui.working(Some("marking the new keys as trusted"));
    let marked = hsm::trust_successor(&config, &pins.so, &successor);
    ceremony.ui.working(None);
    marked?;
    ceremony.ui.say(&format!(
        "Generation {} of the master key is in force.",
        successor.number
    ))?;
    let officer = security_officer(ceremony);
    Ok(json!({
        "in_force": successor.number,
        "marked_by": officer.first().map(Participant::name),
    }))
}

/// What step `successor` recorded: what people compared, whatever the token shows by now.
fn successor(ceremony: &Ceremony<'_>) -> Result<Successor, RunError> {
    let lacks = || RunError::refused("the transcript names no new master key yet");
    let outputs = ceremony
        .journal
        .outputs(Step::Successor)
        .cloned()
        .ok_or_else(lacks)?;
    let recorded: SuccessorOutputs = serde_json::from_value(outputs).map_err(RunError::json)?;
    let spki = |base: &str| {
        let label = format!("{base}-{}", recorded.generation);
        let key = recorded.keys.iter().find(|key| key.label == label)?;
        unbase64(key.spki.as_ref()?)
    };
    Ok(Successor {
        number: recorded.generation,
        master: spki("strongroom-master").ok_or_else(lacks)?,
        transfer: spki("strongroom-transfer").ok_or_else(lacks)?,
        memory_master: spki("strongroom-memory-master"),
    })
}

fn show(ceremony: &mut Ceremony<'_>, successor: &Successor) -> Result<(), RunError> {
    let mut lines = vec![
        ("master key", &successor.master),
        ("transfer key", &successor.transfer),
    ];
    if let Some(memory) = &successor.memory_master {
        lines.push(("memory master key", memory));
    }
    for (name, spki) in lines {
        ceremony.ui.say(&format!(
            "SHA-256 of the {name} of generation {}: {}",
            successor.number,
            grouped(&sha256_hex(spki))
        ))?;
    }
    Ok(())
}
