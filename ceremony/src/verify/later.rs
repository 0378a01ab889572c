//! Ceremonies after the initial ceremony, each by itself: who was there, and what each kind
//! records.

use strongroom_hsm::ceremony::expected::{AUDIT_LABEL, ExpectedKey};
use strongroom_hsm::{KeyShape, OptionalKeys};

use super::super::encoding::unhex;
use super::super::record::{
    CopyOutputs, DestroyOutputs, ExportOutputs, InventoryOutputs, KeyRecord, LaterOpeningOutputs,
    MoveOutputs, PinsRecord, PresentRecord, RestoreOutputs, RetireOutputs, SuccessorOutputs,
    TokenOutputs,
};
use super::super::{CeremonyId, Kind, Plan, Step};
use super::chain::Chain;
use super::evidence::{TokenRequirements, is_own};
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
    if let Some(plan) = &chain.plan {
        let needs = match kind {
            Kind::Backup | Kind::AddToken | Kind::Restore => (plan.keys.backup, "backup"),
            Kind::RotateMaster => (plan.keys.transfer, "transfer"),
            Kind::Birth | Kind::ReplaceCustodian | Kind::Destroy => (true, ""),
        };
        if !needs.0 {
            problems.push((
                1,
                format!("a {kind} can't be: the plan says {} = false", needs.1),
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

/// Each of the present is in the plan, once and in its order; security officer, auditor and M
/// custodians are among them.
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
        let mut moved = summary.keys.iter().filter(|key| !is_own(&key.label));
        if moved.clone().count() != export.keys.len() || !moved.all(|key| export.keys.contains(key))
        {
            problems.push((
                line,
                "the keys of the backup are not those of the summary that can be moved".into(),
            ));
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
    if !is_audit_key(&copy.audit_key, &copy.keys) {
        problems.push((line, "the copy's audit key is none of its keys".into()));
    }
    if let Some(plan) = &chain.plan {
        let shape = |_: &str| KeyShape::Moved;
        let demands = TokenRequirements::new(plan, &copy.keys, &shape);
        let told = demands.key_problems(&copy.keys).into_iter();
        let told = told.chain(demands.object_problems(&copy.keys, &copy.objects));
        let told = told.chain(facts::somebodys(plan, &copy.keys));
        problems.extend(told.map(|problem| (line, format!("the copy: {problem}"))));
    }
    if let Some(close) = &chain.close {
        for key in &close.fields.summary.keys {
            if !is_own(&key.label) && !copy.keys.contains(key) {
                problems.push((line, format!("the copy lacks the key {:?}", key.label)));
            }
        }
    }
}

/// Whether that is the audit key among these.
fn is_audit_key(spki: &str, keys: &[KeyRecord]) -> bool {
    keys.iter()
        .any(|key| key.label == AUDIT_LABEL && key.spki.as_deref() == Some(spki))
}

/// The keys that came by the backup are those that were there; the audit key is new, and both are
/// named.
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
    if let Some(plan) = &chain.plan {
        let shape = |_: &str| made_here(plan);
        let demands = TokenRequirements::successor(plan, successor.generation, &shape);
        let told = demands.key_problems(&successor.keys).into_iter();
        let told = told.chain(demands.object_problems(&successor.keys, &successor.objects));
        problems.extend(told.map(|problem| (line, problem)));
    }
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

/// The shape of a key that the token made itself.
pub(super) fn made_here(plan: &Plan) -> KeyShape {
    if plan.keys.backup {
        KeyShape::Movable
    } else {
        KeyShape::Fixed
    }
}

/// Whether a rotation of the master key replaces the key with that label: `strongroom-master`,
/// `strongroom-master-2`, …
pub(super) fn is_rotated(label: &str) -> bool {
    let base = label
        .rsplit_once('-')
        .filter(|(_, end)| !end.is_empty() && end.bytes().all(|byte| byte.is_ascii_digit()))
        .map_or(label, |(base, _)| base);
    ExpectedKey::all(OptionalKeys::ALL, 1)
        .iter()
        .any(|key| key.is_rotated() && key.label() == base)
}
