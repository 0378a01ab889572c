//! How things stand after a ceremony: what the next one goes on from.

use strongroom_hsm::KeyShape;

use super::encoding::unbase64;
use super::record::{CopyOutputs, SharesRecord, Summary};
use super::shares::Deal;
use super::{CeremonyId, Kind, Mode, Plan, PlanSignature};

/// How things stand after a ceremony whose transcript is valid.
#[derive(Clone, Debug)]
pub struct Standing {
    /// SHA-256 of its whole transcript, hexadecimal: what the next one names.
    pub sha256: String,
    /// Which ceremony.
    pub ceremony_id: CeremonyId,
    /// What it was for.
    pub kind: Kind,
    /// Whether the token's keys came from another one by a backup.
    pub moved: bool,
    /// Whether it counted.
    pub mode: Mode,
    /// The plan in force.
    pub plan: Plan,
    /// Everyone's signatures of it.
    pub signatures: Vec<PlanSignature>,
    /// The shares that give the PINs back.
    pub shares: SharesRecord,
    /// Token, keys and store.
    pub summary: Summary,
    /// Second tokens that hold the same keys and take the same PINs.
    pub spares: Vec<CopyOutputs>,
    /// The audit key, `SubjectPublicKeyInfo`, base64.
    pub audit_key: String,
}

impl Standing {
    /// What the shares in force have in common.
    pub fn deal(&self) -> Option<Deal> {
        let id = CeremonyId::parse(&self.shares.ceremony_id)?;
        Some(Deal::new(&self.plan, id, self.mode))
    }

    /// What is demanded of the token's keys.
    pub fn shape(&self) -> KeyShape {
        match (self.plan.keys.backup, self.moved) {
            (false, _) => KeyShape::Fixed,
            (true, false) => KeyShape::Movable,
            (true, true) => KeyShape::Moved,
        }
    }

    /// What was so before and still is: where the keys came from, and which second tokens take the same PINs.
    pub(super) fn goes_on_from(&mut self, before: &Self) {
        let at_work = before
            .spares
            .iter()
            .any(|spare| spare.token == self.summary.token);
        self.moved |= before.moved || at_work;
        if self.kind != Kind::Restore {
            let spares = before.spares.iter().cloned();
            self.spares = spares.chain(self.spares.drain(..)).collect();
        }
    }

    /// How things stand if that spare is at work in place of the token; none if it lacks keys that are in force now.
    #[must_use]
    pub fn with(&self, spare: &CopyOutputs) -> Option<Self> {
        let own = ["strongroom-audit", "strongroom-wrapping"];
        let moved = self
            .summary
            .keys
            .iter()
            .filter(|key| !own.contains(&key.label.as_str()));
        let holds = moved.clone().all(|key| spare.keys.contains(key));
        holds.then(|| Self {
            moved: true,
            audit_key: spare.audit_key.clone(),
            summary: Summary {
                token: spare.token.clone(),
                keys: spare.keys.clone(),
                store_id: self.summary.store_id.clone(),
            },
            ..self.clone()
        })
    }

    /// The audit key, DER.
    pub fn audit_key(&self) -> Vec<u8> {
        unbase64(&self.audit_key).unwrap_or_default()
    }

    /// SHA-256 of the public half of the key with that label, hexadecimal.
    pub fn key_sha256(&self, label: &str) -> Option<&str> {
        self.summary
            .keys
            .iter()
            .find(|key| key.label == label)
            .and_then(|key| key.sha256.as_deref())
    }
}
