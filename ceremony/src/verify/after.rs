//! How things stand after a transcript.

use std::collections::BTreeSet;

use super::super::custody_state::UsedValues;
use super::super::encoding::{base64, hex};
use super::super::record::{
    CopyOutputs, ExportOutputs, KeyRecord, LaterOpeningOutputs, PinsRecord, SharesRecord,
};
use super::super::{CustodyState, Kind, Plan, Step};
use super::chain::Chain;
use super::facts;
use super::later::is_rotated;

impl UsedValues {
    /// What one ceremony adds to it.
    pub(super) fn of(chain: &Chain) -> Self {
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
        past: UsedValues::of(chain),
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

/// Both keys of everybody in a plan, base64.
pub(super) fn peoples_keys(plan: &Plan) -> impl Iterator<Item = String> + '_ {
    plan.participants()
        .flat_map(|(_, person)| [person.signing_spki(), person.agreement_spki()])
        .map(base64)
}
