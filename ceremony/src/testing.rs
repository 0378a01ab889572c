//! People and a plan for tests.

#![allow(clippy::unwrap_used)]

use super::participant::KeyFile;
use super::plan::{Draft, PinMethod};
use super::shares::Deal;
use super::{CeremonyId, Mode, Participant, ParticipantKey, Plan, PlanSignature};

pub(super) const PASSPHRASE: &str = "vivid orbit cactus";

/// Keys of a new participant; with the cheap scrypt of tests.
pub(super) fn key(name: &str) -> ParticipantKey {
    let folder = tempfile::tempdir().unwrap();
    KeyFile::generate(name, PASSPHRASE)
        .unwrap()
        .write(&folder.path().join("key"))
        .unwrap()
}

/// People with their keys.
pub(super) struct Room {
    /// In the plan's order.
    pub(super) keys: Vec<ParticipantKey>,
    pub(super) draft: Draft,
    pub(super) plan: Plan,
}

impl Room {
    /// M of N custodians, a security officer and an auditor.
    pub(super) fn new(threshold: u8, custodians: usize) -> Self {
        let mut keys: Vec<_> = (1..=custodians)
            .map(|number| key(&format!("Custodian {number}")))
            .collect();
        keys.push(key("Sam Officer"));
        keys.push(key("Ada Auditor"));
        let public = |index: usize| -> Participant { keys[index].participant().clone() };
        let draft = Draft {
            name: "vault-keys-1".into(),
            module: "/usr/lib/softhsm/libsofthsm2.so".into(),
            label: "vault-keys-1".into(),
            serial: None,
            memory_master: true,
            transfer: true,
            backup: false,
            threshold,
            custodians: (0..custodians).map(public).collect(),
            security_officer: public(custodians),
            auditor: public(custodians + 1),
            binary_sha256: "0".repeat(64),
            image_sha256: None,
            folder: "/etc/strongroom".into(),
            state: "/var/lib/strongroom".into(),
            listen: "0.0.0.0:8200".parse().unwrap(),
            names: vec!["keys.example".into()],
            pin_method: PinMethod::SystemdCreds,
            replaces: None,
        };
        let plan = draft.plan().unwrap();
        Self { keys, draft, plan }
    }

    pub(super) fn signatures(&self) -> Vec<PlanSignature> {
        self.keys
            .iter()
            .map(|key| PlanSignature::make(&self.plan, key).unwrap())
            .collect()
    }

    pub(super) fn deal(&self, mode: Mode) -> Deal {
        Deal::new(&self.plan, CeremonyId::random().unwrap(), mode)
    }
}

/// A child that has a copy of the descriptor by which a file is locked, and ends by itself half a
/// second later.
pub(crate) fn lingering(locked: &std::fs::File) -> std::process::Child {
    std::process::Command::new("sleep")
        .arg("0.5")
        .stdin(locked.try_clone().unwrap())
        .spawn()
        .unwrap()
}
