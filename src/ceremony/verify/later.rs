//! Ceremonies after the birth: who was there, what each kind records, and whether it goes on from what the one before left.

use std::collections::BTreeSet;

use super::super::record::{
    DestroyOutputs, InventoryOutputs, LaterOpeningOutputs, PinsRecord, PresentRecord, SharesRecord,
};
use super::super::{CeremonyId, Kind, Standing, Step};
use super::chain::{Chain, Closed};
use super::facts::{self, Problems};

/// Everything in a later ceremony that does not fit by itself.
pub(super) fn problems(chain: &Chain) -> Problems {
    let mut problems = Vec::new();
    let Some(kind) = chain.kind.filter(|kind| kind.is_later()) else {
        return problems;
    };
    if let Some((line, opening)) =
        facts::outputs::<LaterOpeningOutputs>(chain, Step::Opening, &mut problems)
    {
        presence(chain, line, &opening.present, &mut problems);
        if CeremonyId::parse(&opening.shares.ceremony_id).is_none() {
            problems.push((
                line,
                "the shares' `ceremony_id` is not 32 lower-case hexadecimal digits".into(),
            ));
        }
    }
    match kind {
        Kind::Destroy => destroy(chain, &mut problems),
        Kind::Birth | Kind::ReplaceCustodian => {}
    }
    problems
}

/// Each of the present is in the plan, once and in its order; security officer, auditor and M custodians are among them.
fn presence(chain: &Chain, line: usize, present: &[PresentRecord], problems: &mut Problems) {
    let Some(plan) = &chain.plan else { return };
    let expected: Vec<PresentRecord> = chain
        .signers()
        .into_iter()
        .map(|(role, person)| PresentRecord {
            name: person.name().to_owned(),
            role: role.name().to_owned(),
            key: person.fingerprint(),
        })
        .collect();
    if present != expected {
        problems.push((
            line,
            "those who are present are not people of the plan, each once and in its order".into(),
        ));
    }
    let count = |role: &str| present.iter().filter(|one| one.role == role).count();
    if count("security-officer") != 1
        || count("auditor") != 1
        || count("custodian") < usize::from(plan.threshold)
    {
        problems.push((
            line,
            format!(
                "too few were present: security officer, auditor and at least {} custodians must be",
                plan.threshold
            ),
        ));
    }
}

fn destroy(chain: &Chain, problems: &mut Problems) {
    let inventory = facts::outputs::<InventoryOutputs>(chain, Step::Inventory, problems);
    let destroyed = facts::outputs::<DestroyOutputs>(chain, Step::Destroy, problems);
    if let (Some((line, inventory)), Some(close)) = (&inventory, &chain.close) {
        let summary = &close.fields.summary;
        if inventory.token != summary.token {
            problems.push((
                *line,
                "the inventory is of another token than the summary".into(),
            ));
        }
        if inventory.audit_key != close.fields.audit_key {
            problems.push((
                close.line,
                "the summary's audit key is not the one that sealed".into(),
            ));
        }
        facts::evidence_fits(*line, &summary.keys, &inventory.objects, problems);
    }
    if let Some((line, destroyed)) = &destroyed
        && !destroyed.left.is_empty()
    {
        problems.push((*line, "objects were left on the token".into()));
    }
}

/// What does not fit between a transcript and the one that it goes on from.
pub(super) fn link(chain: &Chain, before: &Standing) -> Problems {
    let mut problems = Vec::new();
    let (Some(kind), Some(plan)) = (chain.kind, &chain.plan) else {
        return problems;
    };
    if before.kind == Kind::Destroy {
        problems.push((
            1,
            "it goes on from a ceremony that destroyed the keys: nothing can follow".into(),
        ));
    }
    if chain.mode != Some(before.mode) {
        problems.push((
            1,
            format!("the transcript before it is of a {}", before.mode),
        ));
    }
    if chain.id == Some(before.ceremony_id) {
        problems.push((1, "it has the ceremony id of the transcript before".into()));
    }
    if kind == Kind::ReplaceCustodian {
        for problem in plan.revision_problems(&before.plan) {
            problems.push((1, problem));
        }
    } else if plan.text() != before.plan.text() {
        problems.push((1, "its plan is not that of the transcript before".into()));
    }
    if let Some((line, opening)) =
        facts::outputs::<LaterOpeningOutputs>(chain, Step::Opening, &mut Vec::new())
        && opening.shares != before.shares
    {
        problems.push((
            line,
            "the shares in force are not those that the transcript before left".into(),
        ));
    }
    if let Some(close) = &chain.close {
        for what in changed(close, before) {
            if !may_change(kind).contains(&what) {
                problems.push((
                    close.line,
                    format!("the summary's {what} is not that of the transcript before"),
                ));
            }
        }
    }
    problems
}

/// What in the summary a kind of ceremony may leave other than it found it: `token`, `store_id`, `audit_key`, a key's label, or `keys`
/// for other labels than before.
fn may_change(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Birth | Kind::ReplaceCustodian | Kind::Destroy => &[],
    }
}

fn changed<'a>(close: &'a Closed, before: &'a Standing) -> Vec<&'a str> {
    let (now, then) = (&close.fields.summary, &before.summary);
    let mut changed = Vec::new();
    if now.token != then.token {
        changed.push("token");
    }
    if now.store_id != then.store_id {
        changed.push("store_id");
    }
    if close.fields.audit_key != before.audit_key {
        changed.push("audit_key");
    }
    let labels = |keys: &'a [super::super::record::KeyRecord]| -> BTreeSet<&'a str> {
        keys.iter().map(|key| key.label.as_str()).collect()
    };
    if now.keys.len() != then.keys.len() || labels(&now.keys) != labels(&then.keys) {
        changed.push("keys");
    }
    for key in &now.keys {
        if then
            .keys
            .iter()
            .any(|old| old.label == key.label && old != key)
        {
            changed.push(&key.label);
        }
    }
    changed
}

/// How things stand after a transcript that has no faults.
pub(super) fn standing(chain: &Chain, sha256: &str) -> Option<Standing> {
    let close = chain.close.as_ref()?;
    let id = chain.id?;
    let dealt = chain.outputs(Step::Pins).map(|outputs| {
        let known = serde_json::json!({"threshold": outputs["threshold"], "commitments": outputs["commitments"]});
        serde_json::from_value::<PinsRecord>(known).map(|pins| SharesRecord {
            ceremony_id: id.to_string(),
            threshold: pins.threshold,
            commitments: pins.commitments,
        })
    });
    let shares = if let Some(shares) = dealt {
        shares.ok()?
    } else {
        let outputs = chain.outputs(Step::Opening)?.clone();
        serde_json::from_value::<LaterOpeningOutputs>(outputs)
            .ok()?
            .shares
    };
    Some(Standing {
        sha256: sha256.to_owned(),
        ceremony_id: id,
        kind: chain.kind?,
        mode: chain.mode?,
        plan: chain.plan.clone()?,
        signatures: chain.plan_signatures.clone(),
        shares,
        summary: close.fields.summary.clone(),
        audit_key: close.fields.audit_key.clone(),
    })
}
