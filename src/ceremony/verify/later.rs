//! Ceremonies after the birth: who was there, what each kind records, and whether it goes on from what the one before left.

use std::collections::BTreeSet;

use super::super::encoding::{hex, sha256, unbase64, unhex};
use super::super::record::{
    CopyOutputs, DestroyOutputs, ExportOutputs, InventoryOutputs, LaterOpeningOutputs, MoveOutputs,
    PinsRecord, PresentRecord, RestoreOutputs, RetireOutputs, SharesRecord, SuccessorOutputs,
    TokenOutputs,
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
        Kind::Backup => backup(chain, &mut problems),
        Kind::AddToken => copy(chain, &mut problems),
        Kind::Restore => restore(chain, &mut problems),
        Kind::RotateMaster => rotate(chain, &mut problems),
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

/// The transport key is shared as the PINs are, and the backup's keys are the appliance's.
fn backup(chain: &Chain, problems: &mut Problems) {
    if let Some((line, shares)) = facts::outputs::<PinsRecord>(chain, Step::Transport, problems)
        && let Some(plan) = &chain.plan
        && !facts::pins_fit(&shares, plan)
    {
        problems.push((
            line,
            "the transport key's commitments are not of the plan's custodians and threshold".into(),
        ));
    }
    if let (Some((line, export)), Some(close)) = (
        facts::outputs::<ExportOutputs>(chain, Step::Export, problems),
        &chain.close,
    ) {
        let summary = &close.fields.summary;
        if unhex::<32>(&export.backup_sha256).is_none() {
            problems.push((
                line,
                "`backup_sha256` is not 64 lower-case hexadecimal digits".into(),
            ));
        }
        if export.keys.iter().any(|key| !summary.keys.contains(key)) {
            problems.push((line, "a key of the backup is none of the summary".into()));
        }
    }
}

/// The second token has the first one's keys, and an audit key of its own.
fn copy(chain: &Chain, problems: &mut Problems) {
    let second = facts::outputs::<TokenOutputs>(chain, Step::SecondToken, problems);
    let Some((line, copy)) = facts::outputs::<CopyOutputs>(chain, Step::Copy, problems) else {
        return;
    };
    if second.is_some_and(|(_, second)| second.token != copy.token) {
        problems.push((
            line,
            "the copy is on another token than the one that was initialised for it".into(),
        ));
    }
    let audit_key = unbase64(&copy.audit_key).map(|spki| hex(&sha256(&spki)));
    if audit_key.is_none() || !copy.keys.iter().any(|key| key.sha256 == audit_key) {
        problems.push((line, "the copy's audit key is none of its keys".into()));
    }
    facts::evidence_fits(line, &copy.keys, &copy.objects, problems);
    if let Some(close) = &chain.close {
        for key in &close.fields.summary.keys {
            if !OWN.contains(&key.label.as_str()) && !copy.keys.contains(key) {
                problems.push((line, format!("the copy lacks the key {:?}", key.label)));
            }
        }
    }
}

/// Labels of the keys that each token makes for itself.
const OWN: [&str; 2] = ["strongroom-audit", "strongroom-wrapping"];

/// The keys that came by the backup are those that were there; the audit key is new, and both are named.
fn restore(chain: &Chain, problems: &mut Problems) {
    if let (Some((line, restored)), Some(close)) = (
        facts::outputs::<RestoreOutputs>(chain, Step::Keys, problems),
        &chain.close,
    ) {
        if restored.new_audit_key != close.fields.audit_key {
            problems.push((line, "the new audit key is not that of the summary".into()));
        }
        if unhex::<32>(&restored.backup_sha256).is_none() {
            problems.push((
                line,
                "`backup_sha256` is not 64 lower-case hexadecimal digits".into(),
            ));
        }
    }
}

/// Every key was moved, and the new keys are those of the summary.
fn rotate(chain: &Chain, problems: &mut Problems) {
    let successor = facts::outputs::<SuccessorOutputs>(chain, Step::Successor, problems);
    if let Some((line, moved)) = facts::outputs::<MoveOutputs>(chain, Step::Move, problems)
        && moved.moved != moved.versions
    {
        problems.push((line, "not every key was moved".into()));
    }
    let retired = facts::outputs::<RetireOutputs>(chain, Step::Retire, problems);
    let Some((line, successor)) = successor else {
        return;
    };
    if let Some((line, retired)) = retired
        && retired.generation != successor.generation
    {
        problems.push((line, "another generation was left than was made".into()));
    }
    facts::evidence_fits(line, &successor.keys, &successor.objects, problems);
    if let Some(close) = &chain.close {
        let rotated: Vec<_> = close
            .fields
            .summary
            .keys
            .iter()
            .filter(|key| is_rotated(&key.label))
            .collect();
        if rotated.len() != successor.keys.len()
            || rotated.iter().any(|key| !successor.keys.contains(key))
        {
            problems.push((
                close.line,
                "the summary's master and transfer keys are not those that were made".into(),
            ));
        }
    }
}

/// Whether a rotation of the master key replaces the key with that label: `strongroom-master`, `strongroom-master-2`, …
fn is_rotated(label: &str) -> bool {
    [
        "strongroom-master",
        "strongroom-transfer",
        "strongroom-memory-master",
    ]
    .iter()
    .any(|base| {
        label.strip_prefix(base).is_some_and(|rest| {
            rest.is_empty()
                || rest.strip_prefix('-').is_some_and(|number| {
                    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
                })
        })
    })
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
    if let Some((line, restored)) =
        facts::outputs::<RestoreOutputs>(chain, Step::Keys, &mut Vec::new())
        && kind == Kind::Restore
        && restored.old_audit_key != before.audit_key
    {
        problems.push((
            line,
            "the old audit key is not that of the transcript before".into(),
        ));
    }
    if let Some(close) = &chain.close {
        // A spare may be at work in place of the token.
        let spare = before
            .spares
            .iter()
            .find(|spare| spare.token == close.fields.summary.token)
            .and_then(|spare| before.with(spare));
        for what in changed(kind, close, spare.as_ref().unwrap_or(before)) {
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
        Kind::Birth
        | Kind::ReplaceCustodian
        | Kind::Backup
        | Kind::AddToken
        | Kind::RotateMaster
        | Kind::Destroy => &[],
        Kind::Restore => &[
            "token",
            "audit_key",
            "strongroom-audit",
            "strongroom-wrapping",
        ],
    }
}

fn changed<'a>(kind: Kind, close: &'a Closed, before: &'a Standing) -> Vec<&'a str> {
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
    // A rotation's new labels are held against what it made.
    let rotates = kind == Kind::RotateMaster;
    let labels = |keys: &'a [super::super::record::KeyRecord]| -> BTreeSet<&'a str> {
        let labels = keys.iter().map(|key| key.label.as_str());
        labels
            .filter(|label| !rotates || !is_rotated(label))
            .collect()
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

/// The second token that this ceremony added.
pub(super) fn spare(chain: &Chain) -> Option<CopyOutputs> {
    serde_json::from_value(chain.outputs(Step::Copy)?.clone()).ok()
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
        moved: chain.kind == Some(Kind::Restore),
        mode: chain.mode?,
        plan: chain.plan.clone()?,
        signatures: chain.plan_signatures.clone(),
        shares,
        summary: close.fields.summary.clone(),
        spares: spare(chain).into_iter().collect(),
        audit_key: close.fields.audit_key.clone(),
    })
}
