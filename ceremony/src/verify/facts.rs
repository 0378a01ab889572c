//! What the steps recorded, held against each other, the plan and the summary.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use strongroom_core::json;
use strongroom_hsm::KeyShape;
use strongroom_hsm::ceremony::expected::AUDIT_LABEL;

use super::super::encoding::{unbase64, unhex};
use super::super::record::{
    EvidenceOutputs, KeyRecord, KeysOutputs, PinsRecord, StoreOutputs, Summary, TokenOutputs,
    TokenRecord,
};
use super::super::{Kind, Mode, Plan, Step};
use super::chain::{Chain, Closed};
use super::evidence::TokenRequirements;

/// Line and what is wrong there.
pub(super) type Problems = Vec<(usize, String)>;

/// Everything that does not fit. A step that is not done is no problem of this kind.
pub(super) fn problems(chain: &Chain) -> Problems {
    let mut problems = Vec::new();
    let close = chain.close.as_ref();
    if let Some((line, pins)) = outputs::<PinsRecord>(chain, Step::Pins, &mut problems)
        && let Some(plan) = &chain.plan
        && !pins_fit(&pins, plan)
    {
        problems.push((
            line,
            "the shares' commitments are not of the plan's custodians and threshold".into(),
        ));
    }
    let token = outputs::<TokenOutputs>(chain, Step::Token, &mut problems);
    let keys = outputs::<KeysOutputs>(chain, Step::Keys, &mut problems);
    let evidence = outputs::<EvidenceOutputs>(chain, Step::Evidence, &mut problems);
    let store = outputs::<StoreOutputs>(chain, Step::Store, &mut problems);
    if let (Some((line, token)), Some(plan)) = (&token, &chain.plan) {
        // What is initialised after the initial ceremony is another token than the plan's.
        let named = chain.kind == Some(Kind::Birth) && chain.mode == Some(Mode::Ceremony);
        token_fits(*line, &token.token, plan, named, &mut problems);
    }
    // What a kind of ceremony has no step for is in the summary as it was before.
    let summary = close.map(|close| &close.fields.summary);
    let at_work = token
        .as_ref()
        .map(|(_, outputs)| &outputs.token)
        .or(summary.map(|summary| &summary.token));
    if let (Some(token), Some((line, evidence))) = (at_work, &evidence)
        && evidence.token != *token
    {
        problems.push((
            *line,
            "the evidence is of another token than the one at work".into(),
        ));
    }
    let at_hand = match (&keys, close) {
        (Some((line, outputs)), _) => Some((*line, &outputs.keys)),
        (None, Some(close)) => Some((close.line, &close.fields.summary.keys)),
        (None, None) => None,
    };
    if let (Some((line, keys)), Some(plan)) = (at_hand, &chain.plan) {
        // What a rotation's token holds besides is held against those before it.
        let shape = born_or_moved(chain.kind, plan);
        let demands = TokenRequirements::new(plan, keys, &shape);
        let told = demands.key_problems(keys).into_iter();
        problems.extend(told.map(|problem| (line, problem)));
        problems.extend(somebodys(plan, keys).map(|problem| (line, problem)));
        if let Some((line, evidence)) = &evidence
            && chain.kind != Some(Kind::RotateMaster)
        {
            let told = demands.object_problems(keys, &evidence.objects).into_iter();
            problems.extend(told.map(|problem| (*line, problem)));
        }
    }
    if let Some(close) = close {
        let summary = &close.fields.summary;
        let recorded = Summary {
            token: token.map_or_else(|| summary.token.clone(), |(_, token)| token.token),
            keys: keys.map_or_else(|| summary.keys.clone(), |(_, keys)| keys.keys),
            store_id: store.map_or_else(|| summary.store_id.clone(), |(_, store)| store.store_id),
        };
        summary_fits(close, &recorded, &mut problems);
    }
    problems
}

/// A step's outputs, and the line that has them.
pub(super) fn outputs<T: DeserializeOwned>(
    chain: &Chain,
    step: Step,
    problems: &mut Problems,
) -> Option<(usize, T)> {
    let done = chain.done.iter().find(|done| done.step == step)?;
    match json::read(&done.outputs) {
        Ok(outputs) => Some((done.line, outputs)),
        Err(error) => {
            problems.push((
                done.line,
                format!("the outputs of step {step} are not what it records ({error})"),
            ));
            None
        }
    }
}

/// One share for each custodian of the plan, and none twice.
pub(super) fn pins_fit(pins: &PinsRecord, plan: &Plan) -> bool {
    let mut seen = BTreeSet::new();
    let all = pins.commitments.iter();
    all.flat_map(|one| [&one.so, &one.user])
        .all(|commitment| seen.insert(commitment))
        && pins.threshold == plan.threshold
        && pins.commitments.len() == plan.custodians.len()
        && pins
            .commitments
            .iter()
            .zip(&plan.custodians)
            .zip(1_u8..)
            .all(|((commitment, custodian), index)| {
                commitment.index == index
                    && commitment.custodian == custodian.fingerprint()
                    && unhex::<32>(&commitment.so).is_some()
                    && unhex::<32>(&commitment.user).is_some()
            })
}

fn token_fits(line: usize, token: &TokenRecord, plan: &Plan, named: bool, problems: &mut Problems) {
    if token.label != plan.token.label {
        problems.push((line, "the token's label is not that of the plan".into()));
    }
    // A rehearsal is on a throwaway token, whatever its serial number.
    if named
        && plan
            .token
            .serial
            .as_ref()
            .is_some_and(|serial| *serial != token.serial)
    {
        problems.push((
            line,
            "the token is not the one of the plan (serial number)".into(),
        ));
    }
}

/// The shape of keys that an initial ceremony has just made, or that a backup has just brought.
fn born_or_moved(kind: Option<Kind>, plan: &Plan) -> impl Fn(&str) -> KeyShape + use<> {
    let shape = match (plan.keys.backup, kind) {
        (_, Some(Kind::Restore)) => KeyShape::Moved,
        (true, _) => KeyShape::Movable,
        (false, _) => KeyShape::Fixed,
    };
    move |_| shape
}

/// A key of the token's that is a person's: whoever seals with it is not the token.
pub(super) fn somebodys(plan: &Plan, keys: &[KeyRecord]) -> impl Iterator<Item = String> {
    keys.iter().filter_map(|key| {
        let spki = unbase64(key.spki.as_ref()?)?;
        let mut people = plan.participants();
        let (_, person) = people.find(|(_, person)| {
            [person.signing_spki(), person.agreement_spki()].contains(&&*spki)
        })?;
        Some(format!(
            "the key {:?} is one of {}",
            key.label,
            person.name()
        ))
    })
}

fn summary_fits(close: &Closed, recorded: &Summary, problems: &mut Problems) {
    let summary = &close.fields.summary;
    for (differs, what) in [
        (summary.token != recorded.token, "token"),
        (summary.keys != recorded.keys, "keys"),
        (summary.store_id != recorded.store_id, "store_id"),
    ] {
        if differs {
            problems.push((
                close.line,
                format!("the summary's `{what}` is not what the steps recorded"),
            ));
        }
    }
    if unhex::<16>(&summary.store_id).is_none() {
        problems.push((
            close.line,
            "`store_id` is not 32 lower-case hexadecimal digits".into(),
        ));
    }
    let audit_key = close.audit_key_sha256();
    let ours = summary.keys.iter().find(|key| key.label == AUDIT_LABEL);
    if audit_key.is_none() || ours.is_none_or(|key| key.sha256 != audit_key) {
        problems.push((
            close.line,
            "the audit key is not the one in the summary".into(),
        ));
    }
}
