//! The token is emptied: first what is on it, then the word of those who are there and the audit
//! key's last seal, then nothing is left.

use serde_json::{Value, json};
use strongroom_hsm::ceremony::{self as hsm, SlotState};
use strongroom_hsm::{Hsm, HsmError, PinSource};

use super::super::outputs::Outputs;
use super::super::{Act, Ceremony, Found, RunError, base64, evidence, register, token_record};
use crate::record::{DestroyOutputs, InventoryOutputs};

pub(in crate::run) const INVENTORY: Act = Act {
    title: "What will be destroyed",
    what: "The token lists every object on it. Each of them will be destroyed, and the token initialised again.",
    why: "What is destroyed must be known before, and be the appliance's keys that the previous transcript names.",
    who: |ceremony| format!("{} (auditor) reads along", ceremony.plan.auditor.name()),
    actors: super::super::everyone,
    ready: "Shall the token be asked?",
    needs_pins: true,
    inputs: |ceremony| Ok(json!({"token_serial": ceremony.token_serial()?})),
    recover: |_| {
        Ok(Found {
            text: "asking changes nothing: the token is asked once more".to_owned(),
            data: Value::Null,
        })
    },
    run: inventory,
};

pub(in crate::run) const CONSENT: Act = Act {
    title: "Consent",
    what: "The appliance's name is typed in full. Then the audit key seals the transcript so far: it does so for the last time.",
    why: "After the next step nothing that was sealed or encrypted under these keys can ever be opened again, by anybody.",
    who: |ceremony| {
        format!(
            "{} (security officer) types; all agree, or say stop now",
            ceremony.plan.security_officer.name()
        )
    },
    actors: super::super::everyone,
    ready: "Does everyone agree that the keys are destroyed?",
    needs_pins: false,
    inputs: |ceremony| Ok(json!({"appliance": ceremony.plan.name})),
    recover: |_| {
        Ok(Found {
            text: "nothing was destroyed yet: the name is asked for once more".to_owned(),
            data: Value::Null,
        })
    },
    run: consent,
};

pub(in crate::run) const ACT: Act = Act {
    title: "Destroy the keys",
    what: "Each object on the token is destroyed, the token is asked whether any is left, and it is initialised again. \
           The user PIN is gone with it; the security officer's stays, in the shares.",
    why: "Zeroization, with the token's own word for it.",
    who: |_| "the machine; all watch".to_owned(),
    actors: super::super::everyone,
    ready: "Now, for good?",
    needs_pins: true,
    inputs: |ceremony| Ok(json!({"token_serial": ceremony.token_serial()?})),
    recover,
    run: destroy,
};

pub(in crate::run) const CLOSING: Act = Act {
    title: "Closing",
    what: "The transcript is summed up in its closing line. Everyone who is here signs that line; there is no audit key any more to seal it.",
    why: "A signature says: I was there, and nothing was left on the token.",
    who: |_| "everyone who is here, in the plan's order".to_owned(),
    actors: super::super::everyone,
    ready: "Has everything been done as it was read aloud, and shall the transcript be closed?",
    needs_pins: false,
    inputs: |_| Ok(json!({})),
    recover: |_| {
        Ok(Found {
            text: "the transcript was not closed yet".to_owned(),
            data: Value::Null,
        })
    },
    run: |_| Ok(Outputs::Nothing {}),
};

fn inventory(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let config = ceremony.hsm_config()?;
    ceremony.ui.working(Some("asking for the token's objects"));
    let found = hsm::evidence(&config);
    ceremony.ui.working(None);
    let found = evidence::record(&found?);
    let config = ceremony.hsm_config()?;
    let audit_key =
        ceremony.block_on(async move { Ok(Hsm::start(config)?.signing_public_key()) })?;
    for object in &found.objects {
        ceremony.ui.say(&format!(
            "{} ({}, label {:?})",
            object.name, object.class, object.label
        ))?;
    }
    ceremony.ui.say(&format!(
        "{} objects. The store in {} and every ciphertext of this appliance become worthless with them.",
        found.objects.len(),
        ceremony.site.store().display()
    ))?;
    let register = register::check(ceremony)?;
    Ok(Outputs::Inventory {
        record: InventoryOutputs {
            token: found.token,
            objects: found.objects,
            audit_key: base64(&audit_key),
        },
        register,
    })
}

fn consent(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let name = ceremony.plan.name.clone();
    loop {
        let typed = ceremony.ui.typed(
            "appliance",
            &format!("Type the appliance's name, {name}, to have its keys destroyed."),
        )?;
        if typed == name {
            return Ok(Outputs::Consent { typed });
        }
        ceremony.refused(format!("that is not the appliance's name, {name}"))?;
    }
}

/// The token: by its serial number, or by its label where it got a new number when it was
/// initialised again.
fn token(ceremony: &Ceremony<'_>) -> Result<SlotState, RunError> {
    let wanted = &super::opening::custody(ceremony)?.summary.token;
    let slots = hsm::slots(&ceremony.site.module)?;
    let by = |fits: &dyn Fn(&SlotState) -> bool| -> Vec<SlotState> {
        slots.iter().filter(|slot| fits(slot)).cloned().collect()
    };
    let same = by(&|slot| slot.token.serial == wanted.serial);
    let found = if same.is_empty() {
        by(&|slot| slot.token.label == wanted.label && !slot.user_pin_set)
    } else {
        same
    };
    match found.as_slice() {
        [one] => Ok(one.clone()),
        _ => Err(RunError::refused(format!(
            "the token {} ({:?}) is not there: put it back, and run again",
            wanted.serial, wanted.label
        ))),
    }
}

fn recover(ceremony: &mut Ceremony<'_>) -> Result<Found, RunError> {
    let state = token(ceremony)?;
    let text = if state.user_pin_set {
        "the token was not initialised again yet: what is left on it is destroyed now"
    } else {
        "the token was initialised again already: it is looked at, and initialised once more"
    };
    Ok(Found {
        text: text.to_owned(),
        data: json!({"user_pin_set": state.user_pin_set}),
    })
}

fn destroy(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let state = token(ceremony)?;
    let pins = ceremony.pins()?;
    let mut config = ceremony.hsm_config()?;
    config.token = strongroom_hsm::TokenSelector::Serial(state.token.serial);
    config.pin = PinSource::Given(pins.user);
    ceremony.ui.working(Some("destroying every object"));
    let destroyed = hsm::destroy(&config, &pins.so);
    ceremony.ui.working(None);
    let destroyed = match destroyed {
        Err(HsmError::NotDestroyed(left)) => {
            return Err(RunError::refused(format!(
                "the token does not destroy everything; left are: {}. Have its maker's tool erase it, or destroy the device, before witnesses",
                left.join(", ")
            )));
        }
        other => other?,
    };
    ceremony.ui.say(&format!(
        "{} objects were destroyed, none is left, and the token {} was initialised again.",
        destroyed.objects.len(),
        destroyed.after.serial
    ))?;
    Ok(Outputs::Destroy {
        record: DestroyOutputs { left: Vec::new() },
        destroyed: destroyed.objects.into_iter().map(Into::into).collect(),
        as_user: destroyed.as_user,
        token_after: token_record(&destroyed.after),
        reinitialised: true,
    })
}
