//! A second token beside the first: the same keys, the same PINs, an audit key of its own. The
//! transport key lives for one step, in memory.

use serde_json::json;
use strongroom_core::store::copied_epoch;
use strongroom_hsm::ceremony::{self as hsm, KeySet};
use strongroom_hsm::{Hsm, HsmConfig, KeyShape, TokenSelector};
use zeroize::Zeroizing;

use super::super::outputs::Outputs;
use super::super::{Act, Ceremony, Found, RunError, base64, evidence, key_records, token};
use crate::Step;
use crate::record::{CopyOutputs, TokenOutputs};

pub(in crate::run) const TOKEN: Act = Act {
    title: "Initialise the second token",
    what: "A second token gets a label of its own and the PINs of the first, which custodians give back. Nobody types or sees a PIN.",
    ready: "Is the second token in its place, beside the first, and no other that is not initialised?",
    ..token::ACT
};

pub(in crate::run) const COPY: Act = Act {
    title: "Copy the keys",
    what: "A transport key is drawn from the kernel's random numbers. The first token wraps each key that was born movable with it, as a trusted key for seconds; the \
           second unwraps them, tries them, and makes its own audit and import key. The transport key is forgotten; nothing is written to a disk.",
    why: "If the first token dies, the second can take its place without a backup's shares.",
    who: |_| "the machine; all watch".to_owned(),
    actors: super::super::everyone,
    ready: "Shall the keys be copied?",
    needs_pins: true,
    inputs: |ceremony| {
        Ok(json!({
            "from": ceremony.token_serial()?,
            "to": second(ceremony)?,
        }))
    },
    recover,
    run,
};

/// The second token's serial number.
fn second(ceremony: &Ceremony<'_>) -> Result<String, RunError> {
    let recorded: Option<TokenOutputs> = ceremony.journal.recorded(Step::SecondToken)?;
    recorded
        .map(|outputs| outputs.token.serial)
        .ok_or_else(|| RunError::refused("the transcript names no second token yet"))
}

fn second_config(ceremony: &mut Ceremony<'_>) -> Result<HsmConfig, RunError> {
    Ok(HsmConfig {
        token: TokenSelector::Serial(second(ceremony)?),
        shape: KeyShape::Moved,
        ..ceremony.hsm_config()?
    })
}

fn recover(ceremony: &mut Ceremony<'_>) -> Result<Found, RunError> {
    let config = second_config(ceremony)?;
    super::restore::clear(&config)
}

fn run(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    super::backup::left_behind(ceremony)?;
    let (from, to) = (ceremony.hsm_config()?, second_config(ceremony)?);
    if hsm::evidence(&to)?.keys != KeySet::InUse {
        let so_pin = ceremony.pins()?.so;
        let mut transport = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *transport).map_err(|_| RunError::random())?;
        let ui = &mut *ceremony.ui;
        ui.working(Some("wrapping the keys"));
        let result =
            hsm::export_keys(&from, &so_pin, &transport).and_then(|(moved, trial, epoch)| {
                let epoch = hsm::Epoch(copied_epoch(&epoch.0));
                hsm::import_keys(&to, &transport, &moved, &trial, &epoch, &mut |what| {
                    ui.working(Some(what));
                })
            });
        ui.working(None);
        result?;
    }
    let found = hsm::evidence(&to)?;
    let keys = key_records(&found);
    let found = evidence::record(&found);
    let audit_key = ceremony.block_on(async move { Ok(Hsm::start(to)?.signing_public_key()) })?;
    ceremony.ui.say(&format!(
        "The token {} ({:?}) holds {} keys. Keep it elsewhere; docs/ceremony.md says how it takes over.",
        found.token.serial,
        found.token.label,
        keys.len()
    ))?;
    Ok(Outputs::Copy(CopyOutputs {
        token: found.token,
        keys,
        audit_key: base64(&audit_key),
        objects: found.objects,
    }))
}
