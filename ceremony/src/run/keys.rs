//! The appliance's keys are made in the token.

use serde_json::{Value, json};
use strongroom_hsm::ceremony::{self as hsm, KeySet};
use strongroom_hsm::{HsmConfig, HsmError, OptionalKeys, TransferKey};

use super::outputs::Outputs;
use super::{Act, Ceremony, Found, RunError, key_records};
use crate::record::KeysOutputs;

pub(super) const ACT: Act = Act {
    title: "Make the keys",
    what: "The token makes the master key (RSA-4096), the store key, the audit signing key, the key for imports and those that the plan asks for \
           besides, from its own generator. A transfer key is tried with a throwaway key. This takes some seconds to minutes.",
    why: "These keys are born in the token: each is sensitive and may do one thing only. They can't leave it, unless the plan chose a backup: then a key that both \
          PINs together make trusted can wrap them, and nothing else.",
    who: |_| "the machine; all watch".to_owned(),
    actors: super::everyone,
    ready: "Shall the keys be made?",
    needs_pins: true,
    inputs,
    recover,
    run,
};

fn inputs(ceremony: &mut Ceremony<'_>) -> Result<Value, RunError> {
    Ok(json!({
        "token_serial": ceremony.token_serial()?,
        "memory_master": ceremony.plan.keys.memory_master,
        "transfer": ceremony.plan.keys.transfer,
        "backup": ceremony.plan.keys.backup,
    }))
}

/// Half a set of keys is of no use, and a whole one that nobody saw being finished is made again:
/// nothing depends on it yet.
fn recover(ceremony: &mut Ceremony<'_>) -> Result<Found, RunError> {
    let config = ceremony.hsm_config()?;
    if hsm::evidence(&config)?.keys == KeySet::None {
        return Ok(Found {
            text: "no key was made yet: the step starts over".to_owned(),
            data: json!({"destroyed": []}),
        });
    }
    let destroyed = hsm::discard_unused_keys(&config)?;
    Ok(Found {
        text: format!(
            "{} objects that the interrupted step had made were destroyed; nothing depended on them, and the step starts over",
            destroyed.len()
        ),
        data: json!({"destroyed": destroyed}),
    })
}

fn run(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let config = ceremony.hsm_config()?;
    if ceremony.plan.keys.backup {
        ceremony.ui.say(
            "The plan says backup = true: master and store keys can be wrapped for another token, by a trusted key only. That can't be changed later.",
        )?;
    }
    let optional = OptionalKeys {
        memory_master: ceremony.plan.keys.memory_master,
        transfer: ceremony.plan.keys.transfer,
    };
    let mut made = Vec::new();
    let ui = &mut *ceremony.ui;
    let result = hsm::make_keys(&config, optional, &mut |what| {
        ui.working(Some(what));
        made.push(what.to_owned());
    });
    ui.working(None);
    let result = result.map(|made| made.transfer);
    if let TransferKey::Unsupported(reason) = result? {
        return Err(unfit(&reason));
    }
    if optional.transfer {
        try_transfer(ceremony, &config)?;
    }
    let evidence = hsm::evidence(&config)?;
    let record = KeysOutputs {
        keys: key_records(&evidence),
    };
    ceremony.say_keys(&record.keys)?;
    Ok(Outputs::Keys { record, made })
}

/// The transfer key is tried as a rotation of the master key will use it, with the security
/// officer's PIN too: a token that does not keep its promises is found out now, while nothing
/// depends on it.
fn try_transfer(ceremony: &mut Ceremony<'_>, config: &HsmConfig) -> Result<(), RunError> {
    let pins = ceremony.pins()?;
    ceremony
        .ui
        .working(Some("trying the transfer key with a throwaway key"));
    let tried = hsm::try_transfer(&config.module, &config.token, &pins.so, &pins.user);
    ceremony.ui.working(None);
    match tried {
        Err(HsmError::Unsupported(reason)) => Err(unfit(&reason)),
        tried => Ok(tried?),
    }
}

fn unfit(reason: &str) -> RunError {
    RunError::refused(format!(
        "this token is not fit for a transfer key ({reason}): write `transfer = false` into the [keys] of the plan, have it signed again, and hold the \
         ceremony with it; the keys can then never be moved to another master key"
    ))
}
