//! What the steps recorded, held against each other, the plan and the summary.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;

use super::super::encoding::{hex, sha256, unbase64, unhex};
use super::super::record::{
    EvidenceOutputs, KeyRecord, KeysOutputs, ObjectRecord, PinsRecord, StoreOutputs, Summary,
    TokenOutputs, TokenRecord,
};
use super::super::{Kind, Mode, Plan, Step};
use super::chain::{Chain, Closed};

/// The label of every signing key.
pub(in super::super) const SIGNING: &str = "strongroom-signing";

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
    if chain.kind == Some(Kind::Birth)
        && let (Some((line, token)), Some(plan)) = (&token, &chain.plan)
    {
        token_fits(*line, &token.token, plan, chain.mode, &mut problems);
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
    if let Some((line, keys)) = &keys {
        for key in &keys.keys {
            if !hash_fits(key) {
                problems.push((
                    *line,
                    format!(
                        "the hash of key {:?} is not that of its public half",
                        key.name
                    ),
                ));
            }
        }
    }
    let at_hand = keys
        .as_ref()
        .map(|(_, outputs)| &outputs.keys)
        .or(summary.map(|summary| &summary.keys));
    if let (Some(keys), Some((line, evidence))) = (at_hand, &evidence) {
        evidence_fits(*line, keys, &evidence.objects, &mut problems);
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
    match serde_json::from_value(done.outputs.clone()) {
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

pub(super) fn pins_fit(pins: &PinsRecord, plan: &Plan) -> bool {
    pins.threshold == plan.threshold
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

fn token_fits(
    line: usize,
    token: &TokenRecord,
    plan: &Plan,
    mode: Option<Mode>,
    problems: &mut Problems,
) {
    if token.label != plan.token.label {
        problems.push((line, "the token's label is not that of the plan".into()));
    }
    // A rehearsal is on a throwaway token, whatever its serial number.
    if mode == Some(Mode::Ceremony)
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

fn hash_fits(key: &KeyRecord) -> bool {
    match (&key.spki, &key.sha256) {
        (None, None) => true,
        (Some(spki), Some(hash)) => unbase64(spki).is_some_and(|spki| hex(&sha256(&spki)) == *hash),
        _ => false,
    }
}

/// Each key is an object on the token, and the token has no public key besides.
pub(super) fn evidence_fits(
    line: usize,
    keys: &[KeyRecord],
    objects: &[ObjectRecord],
    problems: &mut Problems,
) {
    let pairs =
        |spki: &Option<String>, label: &str| spki.clone().map(|spki| (label.to_owned(), spki));
    let recorded: BTreeSet<_> = keys
        .iter()
        .filter_map(|key| pairs(&key.spki, &key.label))
        .collect();
    let found: BTreeSet<_> = objects
        .iter()
        .filter_map(|object| pairs(&object.spki, &object.label))
        .collect();
    for (label, _) in recorded.difference(&found) {
        problems.push((
            line,
            format!("the token does not have the public key {label:?} of step keys"),
        ));
    }
    // Signing keys come and go while the appliance is at work: they are none of a ceremony's.
    let unknown = found.difference(&recorded);
    for (label, _) in unknown.filter(|(label, _)| label != SIGNING) {
        problems.push((
            line,
            format!("the token has a public key {label:?} that step keys did not record"),
        ));
    }
    for key in keys {
        if !objects.iter().any(|object| object.label == key.label) {
            problems.push((line, format!("there is no evidence of key {:?}", key.label)));
        }
    }
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
    if audit_key.is_none() || !summary.keys.iter().any(|key| key.sha256 == audit_key) {
        problems.push((
            close.line,
            "the audit key is none of the keys in the summary".into(),
        ));
    }
}
