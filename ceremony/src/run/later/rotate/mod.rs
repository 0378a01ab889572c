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
use strongroom_hsm::ceremony::expected::{MASTER_LABEL, MEMORY_MASTER_LABEL, TRANSFER_LABEL};
use strongroom_hsm::ceremony::{self as hsm, Successor};

use super::super::opening::grouped;
use super::super::outputs::Outputs;
use super::super::{Act, Ceremony, Found, RunError, evidence, sha256_hex};
use crate::Step;
use crate::encoding::unbase64;
use crate::record::{KeyRecord, SuccessorOutputs};

pub(in crate::run) use keys::{EVIDENCE, KEYS};
pub(in crate::run) use moving::{MOVE, RETIRE};
pub use server::{NoAnswer, Progress, RunningServer, Unmovable};
pub(in crate::run) use trial::SealedBefore;

pub(in crate::run) const SUCCESSOR: Act = Act {
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

pub(in crate::run) const TRUST: Act = Act {
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

fn make(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
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
    let objects: Vec<_> = evidence::record(&state)
        .objects
        .into_iter()
        .filter(|object| object.label.ends_with(&ending))
        .collect();
    let record = SuccessorOutputs {
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
    Ok(Outputs::Successor { record, trial })
}

fn trust(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
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
    Ok(Outputs::Trust {
        in_force: successor.number,
        marked_by: ceremony.plan.security_officer.name().to_owned(),
    })
}

/// What step `successor` recorded: what people compared, whatever the token shows by now.
fn successor(ceremony: &Ceremony<'_>) -> Result<Successor, RunError> {
    let lacks = || RunError::refused("the transcript names no new master key yet");
    let recorded: SuccessorOutputs = ceremony
        .journal
        .recorded(Step::Successor)?
        .ok_or_else(lacks)?;
    let spki = |base: &str| {
        let label = format!("{base}-{}", recorded.generation);
        let key = recorded.keys.iter().find(|key| key.label == label)?;
        unbase64(key.spki.as_ref()?)
    };
    Ok(Successor {
        number: recorded.generation,
        master: spki(MASTER_LABEL).ok_or_else(lacks)?,
        transfer: spki(TRANSFER_LABEL).ok_or_else(lacks)?,
        memory_master: spki(MEMORY_MASTER_LABEL),
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
