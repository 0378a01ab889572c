//! How things stand after a ceremony: what the next one goes on from.

use super::encoding::unbase64;
use super::record::{SharesRecord, Summary};
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
    /// The audit key, `SubjectPublicKeyInfo`, base64.
    pub audit_key: String,
}

impl Standing {
    /// What the shares in force have in common.
    pub fn deal(&self) -> Option<Deal> {
        let id = CeremonyId::parse(&self.shares.ceremony_id)?;
        Some(Deal::new(&self.plan, id, self.mode))
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
