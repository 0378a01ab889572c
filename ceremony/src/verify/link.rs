//! Whether a ceremony goes on from what the one before left.

use std::collections::BTreeSet;

use strongroom_hsm::ceremony::expected::{AUDIT_LABEL, WRAPPING_LABEL};

use super::super::custody_state::UsedValues;
use super::super::encoding::base64;
use super::super::record::{
    EvidenceOutputs, InventoryOutputs, KeyRecord, KeysOutputs, LaterOpeningOutputs, RestoreOutputs,
    SuccessorOutputs, TokenOutputs,
};
use super::super::{CustodyState, Kind, Plan, Step};
use super::chain::{Chain, Closed};
use super::evidence::{self, TokenRequirements, is_own};
use super::facts::{self, Problems};
use super::later::{is_rotated, made_here};

/// What does not fit between a transcript and the one that it goes on from.
pub(super) fn problems(chain: &Chain, before: &CustodyState) -> Problems {
    let mut problems = Vec::new();
    let (Some(kind), Some(plan)) = (chain.kind, &chain.plan) else {
        return problems;
    };
    if let Some((line, successor)) =
        facts::outputs::<SuccessorOutputs>(chain, Step::Successor, &mut Vec::new())
        && Some(successor.generation) != evidence::generation(&before.summary.keys).checked_add(1)
    {
        problems.push((line, "the generation is not the next one".into()));
    }
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
    problems.extend(used_before(chain, kind, before));
    if kind == Kind::ReplaceCustodian {
        for problem in plan.revision_problems(&before.plan) {
            problems.push((1, problem));
        }
    } else if plan.text() != before.plan.text() {
        problems.push((1, "its plan is not that of the transcript before".into()));
    }
    problems.extend(opened(chain, kind, before));
    problems.extend(restored(chain, kind, before));
    // A spare may be at work in place of the token.
    let spare = chain
        .close
        .as_ref()
        .and_then(|close| spare_at_work(close, before));
    let before = spare.as_ref().unwrap_or(before);
    problems.extend(tokens_objects(chain, plan, before));
    problems.extend(register(chain, kind, before));
    if let Some(close) = &chain.close {
        for what in changed(kind, close, before) {
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

/// What the opening found, against what the transcript before left.
fn opened(chain: &Chain, kind: Kind, before: &CustodyState) -> Problems {
    let mut problems = Vec::new();
    if let Some((line, opening)) =
        facts::outputs::<LaterOpeningOutputs>(chain, Step::Opening, &mut Vec::new())
    {
        if opening.shares != before.shares {
            problems.push((
                line,
                "the shares in force are not those that the transcript before left".into(),
            ));
        }
        if opening.previous_kind != before.kind.name() {
            problems.push((
                line,
                "the transcript before is of another kind than was read aloud".into(),
            ));
        }
        let spares = before.spares.iter().map(|spare| &spare.token);
        let mut tokens = std::iter::once(&before.summary.token).chain(spares);
        let replaced = kind == Kind::Restore;
        let at_work = chain
            .close
            .as_ref()
            .map(|close| &close.fields.summary.token.serial);
        if !tokens.any(|token| token.serial == opening.token_serial)
            || !replaced && at_work.is_some_and(|serial| *serial != opening.token_serial)
        {
            problems.push((
                line,
                "the token at work is not the one of the transcript before".into(),
            ));
        }
    }
    problems
}

/// Which backup a restoration took, and whose keys are in it.
fn restored(chain: &Chain, kind: Kind, before: &CustodyState) -> Problems {
    let mut problems = Vec::new();
    if let Some((line, restored)) =
        facts::outputs::<RestoreOutputs>(chain, Step::Keys, &mut Vec::new())
        && kind == Kind::Restore
    {
        let mut spares = before
            .spares
            .iter()
            .filter(|spare| before.with(spare).is_some());
        if restored.old_audit_key != before.audit_key
            && !spares.any(|spare| spare.audit_key == restored.old_audit_key)
        {
            problems.push((
                line,
                "the old audit key is not that of the transcript before".into(),
            ));
        }
        let moved = |keys: &[KeyRecord]| -> BTreeSet<(String, Option<String>)> {
            keys.iter()
                .filter(|key| !is_own(&key.label))
                .map(|key| (key.label.clone(), key.spki.clone()))
                .collect()
        };
        match before.past.backups.get(&restored.backup_sha256) {
            None => problems.push((
                line,
                "the backup is of none of the ceremonies that it goes on from".into(),
            )),
            Some(keys) if moved(keys) != moved(&before.summary.keys) => problems.push((
                line,
                "the backup is older than the keys in force: a rotation came after it".into(),
            )),
            Some(_) => {}
        }
    }
    problems
}

/// How things stood before, if a spare has taken the token's place.
fn spare_at_work(close: &Closed, before: &CustodyState) -> Option<CustodyState> {
    let token = &close.fields.summary.token;
    let mut spares = before.spares.iter();
    let spare = spares.find(|spare| spare.token == *token && *token != before.summary.token)?;
    before.with(spare)
}

/// What must be new is not what an earlier ceremony of the chain had: an old thing under a new name
/// is no replacement.
fn used_before(chain: &Chain, kind: Kind, before: &CustodyState) -> Problems {
    let mut problems = Vec::new();
    let past = &before.past;
    if chain.id.is_some_and(|id| past.ceremony_ids.contains(&id)) {
        problems.push((1, "it has the ceremony id of a transcript before it".into()));
    }
    let own = UsedValues::of(chain);
    let line = |step| {
        let done = chain.done.iter().find(|done| done.step == step);
        done.map_or(0, |done| done.line)
    };
    let (token, keys, shares) = match kind {
        Kind::Restore => (Step::Token, Step::Keys, Step::Pins),
        Kind::AddToken => (Step::SecondToken, Step::Copy, Step::Pins),
        Kind::RotateMaster => (Step::Token, Step::Successor, Step::Pins),
        Kind::Backup => (Step::Token, Step::Keys, Step::Transport),
        Kind::Birth | Kind::ReplaceCustodian | Kind::Destroy => {
            (Step::Token, Step::Keys, Step::Pins)
        }
    };
    let initialised: Option<TokenOutputs> = chain.recorded(token);
    if initialised.is_some_and(|outputs| past.serials.contains(&outputs.token.serial)) {
        problems.push((
            line(token),
            "the token is not another one: it has the serial number of one before it".into(),
        ));
    }
    let made: Option<KeysOutputs> = chain.recorded(keys);
    for key in made.into_iter().flat_map(|outputs| outputs.keys) {
        let new = kind == Kind::RotateMaster || is_own(&key.label);
        if new
            && key.spki.is_some_and(|spki| {
                past.public_keys.contains(&spki) || past.peoples_keys.contains(&spki)
            })
        {
            problems.push((
                line(keys),
                format!("the key {:?} is not new: it was there before", key.label),
            ));
        }
    }
    for (_, person) in chain.plan.iter().flat_map(Plan::participants) {
        let keys = [person.signing_spki(), person.agreement_spki()];
        if keys
            .iter()
            .any(|spki| past.public_keys.contains(&base64(spki)))
        {
            problems.push((
                1,
                format!("a key of {} is one of the appliance's", person.name()),
            ));
        }
    }
    if own
        .commitments
        .intersection(&past.commitments)
        .next()
        .is_some()
    {
        problems.push((
            line(shares),
            "a share that was dealt is one of an earlier ceremony".into(),
        ));
    }
    if own
        .backups
        .keys()
        .any(|sha256| past.backups.contains_key(sha256))
    {
        problems.push((
            line(Step::Export),
            "the backup is one of an earlier ceremony".into(),
        ));
    }
    problems
}

/// The token knew the transcript before as its last one: no other ceremony has gone on from that.
fn register(chain: &Chain, kind: Kind, before: &CustodyState) -> Problems {
    let step = match kind {
        Kind::Destroy => Step::Inventory,
        _ => Step::Closing,
    };
    let Some(done) = chain.done.iter().find(|done| done.step == step) else {
        return Vec::new();
    };
    let told = &done.outputs["register"];
    let fits = match (kind, told.as_str()) {
        (Kind::Restore, _) => return Vec::new(), // a token of its own: see its step
        (_, Some(told)) if before.is_spare => before.past.closings.contains(told),
        (_, None) => before.is_spare && told.is_null(),
        (_, Some(told)) => told == before.closing,
    };
    if fits {
        return Vec::new();
    }
    vec![(
        done.line,
        "the token did not know the transcript before as its last one (register)".into(),
    )]
}

/// What the token said of its objects in a ceremony that did not make all of them: which of them it
/// made itself, those before tell.
fn tokens_objects(chain: &Chain, plan: &Plan, before: &CustodyState) -> Problems {
    let mut nowhere = Vec::new();
    let (line, objects, keys) = match chain.kind {
        Some(Kind::RotateMaster) => {
            let keys = facts::outputs::<KeysOutputs>(chain, Step::Keys, &mut nowhere);
            let told = facts::outputs::<EvidenceOutputs>(chain, Step::Evidence, &mut nowhere);
            let (Some((_, keys)), Some((line, told))) = (keys, told) else {
                return Vec::new(); // not yet, or said already
            };
            (line, told.objects, keys.keys)
        }
        Some(Kind::Destroy) => {
            let told = facts::outputs::<InventoryOutputs>(chain, Step::Inventory, &mut nowhere);
            let Some((line, told)) = told else {
                return Vec::new();
            };
            (line, told.objects, before.summary.keys.clone())
        }
        _ => return Vec::new(),
    };
    let rotates = chain.kind == Some(Kind::RotateMaster);
    let shape = |label: &str| {
        if rotates && is_rotated(label) {
            made_here(plan)
        } else {
            before.shape_of(label)
        }
    };
    // Of this ceremony, whose close may not be there yet, and of all before.
    let own = UsedValues::of(chain);
    let past = [&own, &before.past].into_iter();
    let taken = past
        .flat_map(|past| past.public_keys.iter().chain(&past.peoples_keys))
        .chain(keys.iter().filter_map(|key| key.spki.as_ref()))
        .cloned()
        .collect();
    TokenRequirements::new(plan, &keys, &shape)
        .with_signing_keys(taken)
        .object_problems(&keys, &objects)
        .into_iter()
        .map(|problem| (line, problem))
        .collect()
}

/// What in the summary a kind of ceremony may leave other than it found it: `token`, `store_id`,
/// `audit_key`, a key's label, or `keys` for other labels than before.
fn may_change(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Birth
        | Kind::ReplaceCustodian
        | Kind::Backup
        | Kind::AddToken
        | Kind::RotateMaster
        | Kind::Destroy => &[],
        Kind::Restore => &["token", "audit_key", AUDIT_LABEL, WRAPPING_LABEL],
    }
}

fn changed<'a>(kind: Kind, close: &'a Closed, before: &'a CustodyState) -> Vec<&'a str> {
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
    let labels = |keys: &'a [KeyRecord]| -> BTreeSet<&'a str> {
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
