//! Ceremonies after the birth: who was there, what each kind records, and whether it goes on from
//! what the one before left.

use std::collections::BTreeSet;

use strongroom_hsm::ceremony::expected::{AUDIT_LABEL, ExpectedKey, WRAPPING_LABEL};
use strongroom_hsm::{KeyShape, OptionalKeys};

use super::super::custody_state::Past;
use super::super::encoding::{base64, hex, unhex};
use super::super::record::{
    CopyOutputs, DestroyOutputs, EvidenceOutputs, ExportOutputs, InventoryOutputs, KeyRecord,
    KeysOutputs, LaterOpeningOutputs, MoveOutputs, PinsRecord, PresentRecord, RestoreOutputs,
    RetireOutputs, SharesRecord, SuccessorOutputs, TokenOutputs,
};
use super::super::{CeremonyId, CustodyState, Kind, Plan, Step};
use super::chain::{Chain, Closed};
use super::evidence::{self, Demands, is_own};
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
        let demands = Demands::new(plan, &copy.keys, &shape);
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
        let demands = Demands::successor(plan, successor.generation, &shape);
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
fn made_here(plan: &Plan) -> KeyShape {
    if plan.keys.backup {
        KeyShape::Movable
    } else {
        KeyShape::Fixed
    }
}

/// Whether a rotation of the master key replaces the key with that label: `strongroom-master`,
/// `strongroom-master-2`, …
fn is_rotated(label: &str) -> bool {
    let base = label
        .rsplit_once('-')
        .filter(|(_, end)| !end.is_empty() && end.bytes().all(|byte| byte.is_ascii_digit()))
        .map_or(label, |(base, _)| base);
    ExpectedKey::all(OptionalKeys::ALL, 1)
        .iter()
        .any(|key| key.is_rotated() && key.label() == base)
}

/// What does not fit between a transcript and the one that it goes on from.
pub(super) fn link(chain: &Chain, before: &CustodyState) -> Problems {
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

/// Both keys of everybody in a plan, base64.
fn peoples_keys(plan: &Plan) -> impl Iterator<Item = String> + '_ {
    plan.participants()
        .flat_map(|(_, person)| [person.signing_spki(), person.agreement_spki()])
        .map(base64)
}

/// What must be new is not what an earlier ceremony of the chain had: an old thing under a new name
/// is no replacement.
fn used_before(chain: &Chain, kind: Kind, before: &CustodyState) -> Problems {
    let mut problems = Vec::new();
    let past = &before.past;
    if chain.id.is_some_and(|id| past.ceremony_ids.contains(&id)) {
        problems.push((1, "it has the ceremony id of a transcript before it".into()));
    }
    let own = Past::of(chain);
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
    let own = Past::of(chain);
    let past = [&own, &before.past].into_iter();
    let taken = past
        .flat_map(|past| past.public_keys.iter().chain(&past.peoples_keys))
        .chain(keys.iter().filter_map(|key| key.spki.as_ref()))
        .cloned()
        .collect();
    Demands::new(plan, &keys, &shape)
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

impl Past {
    /// What one ceremony adds to it.
    fn of(chain: &Chain) -> Self {
        let mut past = Self::default();
        past.ceremony_ids.extend(chain.id);
        past.closings
            .extend(chain.close.as_ref().map(|close| hex(&close.hash)));
        let mut keys: Vec<KeyRecord> = Vec::new();
        if let Some(close) = &chain.close {
            past.serials
                .insert(close.fields.summary.token.serial.clone());
            keys.extend(close.fields.summary.keys.iter().cloned());
        }
        if let Some(copy) = spare(chain) {
            past.serials.insert(copy.token.serial);
            keys.extend(copy.keys);
        }
        past.public_keys = keys.into_iter().filter_map(|key| key.spki).collect();
        let tls = chain.outputs(Step::Identity);
        let tls = tls.and_then(|outputs| outputs["spki"].as_str());
        past.public_keys.extend(tls.map(str::to_owned));
        past.peoples_keys = chain.plan.iter().flat_map(peoples_keys).collect();
        let mut nowhere = Vec::new();
        for step in [Step::Pins, Step::Transport] {
            if let Some((_, pins)) = facts::outputs::<PinsRecord>(chain, step, &mut nowhere) {
                let commitments = pins.commitments.into_iter();
                past.commitments
                    .extend(commitments.flat_map(|one| [one.so, one.user]));
            }
        }
        if let Some((_, export)) =
            facts::outputs::<ExportOutputs>(chain, Step::Export, &mut nowhere)
        {
            past.backups.insert(export.backup_sha256, export.keys);
        }
        past
    }
}

/// The second token that this ceremony added.
pub(super) fn spare(chain: &Chain) -> Option<CopyOutputs> {
    chain.recorded(Step::Copy)
}

/// How things stand after a transcript that has no faults.
pub(super) fn custody(chain: &Chain, sha256: &str) -> Option<CustodyState> {
    let close = chain.close.as_ref()?;
    let id = chain.id?;
    let shares = if chain.outputs(Step::Pins).is_some() {
        let dealt: PinsRecord = chain.recorded(Step::Pins)?;
        SharesRecord {
            ceremony_id: id.to_string(),
            threshold: dealt.threshold,
            commitments: dealt.commitments,
        }
    } else {
        let opening: LaterOpeningOutputs = chain.recorded(Step::Opening)?;
        opening.shares
    };
    Some(CustodyState {
        past: Past::of(chain),
        closing: hex(&close.hash),
        is_spare: false,
        made_here: match chain.kind? {
            Kind::RotateMaster => close
                .fields
                .summary
                .keys
                .iter()
                .filter(|key| is_rotated(&key.label))
                .map(|key| key.label.clone())
                .collect(),
            _ => BTreeSet::new(),
        },
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
