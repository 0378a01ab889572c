//! How things stand after a ceremony: what the next one goes on from.

use std::collections::{BTreeMap, BTreeSet};

use strongroom_hsm::KeyShape;

use super::encoding::unbase64;
use super::record::{CopyOutputs, KeyRecord, SharesRecord, Summary};
use super::shares::Deal;
use super::{CeremonyId, Kind, Mode, Plan, PlanSignature, verify};

/// What the ceremonies so far had, so that nothing of it is taken for new.
#[derive(Clone, Debug, Default)]
pub(super) struct UsedValues {
    pub(super) ceremony_ids: Vec<CeremonyId>,
    /// Hashes of closing lines, hexadecimal.
    pub(super) closings: BTreeSet<String>,
    /// Serial numbers of tokens.
    pub(super) serials: BTreeSet<String>,
    /// Of every token, and the appliance's TLS key: `SubjectPublicKeyInfo`, base64.
    pub(super) public_keys: BTreeSet<String>,
    /// Of everybody who was in a plan, the same.
    pub(super) peoples_keys: BTreeSet<String>,
    /// Commitments of shares, hexadecimal.
    pub(super) commitments: BTreeSet<String>,
    /// SHA-256 of each backup's file, hexadecimal, and the keys in it.
    pub(super) backups: BTreeMap<String, Vec<KeyRecord>>,
}

/// How things stand after a ceremony whose transcript is valid.
#[derive(Clone, Debug)]
pub struct CustodyState {
    /// SHA-256 of its whole transcript, hexadecimal: what the next one names.
    pub sha256: String,
    /// Which ceremony.
    pub ceremony_id: CeremonyId,
    /// What it was for.
    pub kind: Kind,
    /// Whether the token's keys came from another one by a backup.
    pub moved: bool,
    /// Labels of those that it made itself since then, in a rotation.
    pub(super) made_here: BTreeSet<String>,
    pub(super) past: UsedValues,
    /// SHA-256 of its closing line, hexadecimal: what the token knows of it.
    pub(super) closing: String,
    /// A spare is at work since then.
    pub(super) is_spare: bool,
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

impl UsedValues {
    fn add(&mut self, earlier: &Self) {
        self.ceremony_ids.extend_from_slice(&earlier.ceremony_ids);
        self.closings.extend(earlier.closings.iter().cloned());
        self.serials.extend(earlier.serials.iter().cloned());
        self.public_keys.extend(earlier.public_keys.iter().cloned());
        self.peoples_keys
            .extend(earlier.peoples_keys.iter().cloned());
        self.commitments.extend(earlier.commitments.iter().cloned());
        for (sha256, keys) in &earlier.backups {
            self.backups.insert(sha256.clone(), keys.clone());
        }
    }
}

impl CustodyState {
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

    /// Whether a token with that serial number was one of the appliance's, whenever.
    pub(super) fn had_token(&self, serial: &str) -> bool {
        self.past.serials.contains(serial)
    }

    /// What is demanded of the key with that label, among those that a backup moves.
    pub(super) fn shape_of(&self, label: &str) -> KeyShape {
        match self.shape() {
            KeyShape::Moved if self.made_here.contains(label) => KeyShape::Movable,
            shape => shape,
        }
    }

    /// What was so before and still is: where the keys came from, and which second tokens take the
    /// same PINs.
    pub(super) fn goes_on_from(&mut self, before: &Self) {
        let at_work = before.summary.token != self.summary.token
            && before
                .spares
                .iter()
                .any(|spare| spare.token == self.summary.token);
        self.moved |= before.moved || at_work;
        if self.kind != Kind::Restore && self.kind != Kind::RotateMaster && !at_work {
            self.made_here.clone_from(&before.made_here);
        }
        self.past.add(&before.past);
        if self.kind != Kind::Restore {
            let spares = before.spares.iter().cloned();
            self.spares = spares.chain(self.spares.drain(..)).collect();
        }
    }

    /// How things stand if that spare is at work in place of the token; none if it lacks keys that
    /// are in force now.
    #[must_use]
    pub fn with(&self, spare: &CopyOutputs) -> Option<Self> {
        let moved = self
            .summary
            .keys
            .iter()
            .filter(|key| !verify::evidence::is_own(&key.label));
        let holds = moved.clone().all(|key| spare.keys.contains(key));
        holds.then(|| Self {
            moved: true,
            made_here: BTreeSet::new(),
            is_spare: true,
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
