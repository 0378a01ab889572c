//! People and a plan for tests.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::stat::Mode as Permission;
use nix::unistd::mkfifo;

use super::participant::{KeyFile, Unlock};
use super::plan::{Draft, PinMethod, signatures_path};
use super::shares::Deal;
use super::{
    CeremonyError, CeremonyId, Mode, Participant, ParticipantKey, Plan, PlanSignature, Transcript,
};

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
pub(crate) fn lingering(locked: &File) -> std::process::Child {
    std::process::Command::new("sleep")
        .arg("0.5")
        .stdin(locked.try_clone().unwrap())
        .spawn()
        .unwrap()
}

/// Every file of a ceremony that others may have put there: a pipe would be waited for, a file of
/// many GiB would take the memory.
#[test]
fn what_no_file_of_a_ceremony_can_be_is_refused_and_not_waited_for() {
    fn pipe(path: &Path) {
        mkfifo(path, Permission::S_IRWXU).unwrap();
    }
    fn hole(path: &Path) {
        File::create(path).unwrap().set_len(1 << 43).unwrap();
    }
    let make: [(fn(&Path), _); 2] = [
        (pipe, "it is not a regular file"),
        (hole, "it is larger than"),
    ];
    for (make, why) in make {
        let folder = tempfile::tempdir().unwrap();
        let plan = folder.path().join("plan.toml");
        make(&plan);
        make(&signatures_path(&plan));
        make(&super::transcript::path(folder.path()));
        // Its public half is beside it, and right.
        let private = folder.path().join("key");
        let key = KeyFile::generate("Ann", PASSPHRASE).unwrap();
        key.write(&private).unwrap();
        fs::remove_file(&private).unwrap();
        make(&private);
        let (said, hear) = mpsc::channel();
        thread::spawn(move || {
            let mut unlock = |_: Unlock<'_>| Err(CeremonyError::Random);
            said.send([
                Plan::load(&plan).err().unwrap().to_string(),
                PlanSignature::load_all(&plan).err().unwrap().to_string(),
                Participant::load(&plan).err().unwrap().to_string(),
                ParticipantKey::load(&private, &mut unlock)
                    .err()
                    .unwrap()
                    .to_string(),
                Transcript::resume(folder.path()).err().unwrap().to_string(),
            ])
            .unwrap();
        });
        for error in hear.recv_timeout(Duration::from_mins(1)).unwrap() {
            assert!(error.contains(why), "{error}");
        }
    }
}
