//! An appliance on the PKCS#11 module that fails on command (`tests/pkcs11-fault`).

use std::fs;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Appliance, Builder, Who, fault_module};

/// The appliance, and the files that the module obeys and writes.
pub struct Rig {
    appliance: Appliance,
    folder: TempDir,
}

impl Rig {
    /// A running appliance without any fault.
    pub async fn start(builder: Builder) -> Self {
        let mut rig = Self::prepare(builder);
        rig.launch().await;
        rig
    }

    /// The same, not running yet.
    pub fn prepare(builder: Builder) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("sr-fault-")
            .tempdir()
            .unwrap();
        let appliance = builder
            .module(&fault_module())
            .env(
                "PKCS11_FAULT_MODULE",
                strongroom_softhsm::module_path().unwrap(),
            )
            .env("PKCS11_FAULT_CONTROL", folder.path().join("control"))
            .env("PKCS11_FAULT_LOG", folder.path().join("log"))
            // What this module needs beside the usual.
            .section(
                "hardening",
                &format!("write = [{:?}]", folder.path().display().to_string()),
            )
            .prepare();
        Self { appliance, folder }
    }

    /// Replaces the control file: the module obeys it from the next call on.
    pub fn control(&self, commands: &str) {
        let aside = self.folder.path().join("control.new");
        fs::write(&aside, commands).unwrap();
        fs::rename(&aside, self.folder.path().join("control")).unwrap();
    }

    /// The module's log.
    pub fn faults(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// How many lines of the module's log hold that text.
    pub fn logged(&self, text: &str) -> usize {
        self.faults()
            .lines()
            .filter(|line| line.contains(text))
            .count()
    }

    /// Waits until the module's log has that many lines with that text.
    pub async fn wait_logged(&self, text: &str, times: usize, patience: Duration) {
        let deadline = Instant::now() + patience;
        while self.logged(text) < times {
            assert!(
                Instant::now() < deadline,
                "{times} times {text:?} did not happen:\n{}",
                self.faults()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Counts of the functions called while `during` ran, by the module's `count` command.
    pub async fn count(&self, during: Duration) -> String {
        let before = self.logged(" counts ");
        self.control("count");
        tokio::time::sleep(during).await;
        self.control("");
        self.wait_logged(" counts ", before + 1, Duration::from_secs(5))
            .await;
        self.faults()
            .lines()
            .rfind(|line| line.contains(" counts "))
            .unwrap()
            .to_owned()
    }

    /// `sys/health`: status and body.
    pub async fn health(&self) -> (u16, Value) {
        let answer = self
            .client(Who::Operator)
            .request("GET", "sys/health", None)
            .await
            .unwrap();
        (answer.status.as_u16(), answer.json().unwrap())
    }

    /// Waits until `sys/health` answers with that status; its body.
    pub async fn wait_health(&self, wanted: u16, patience: Duration) -> Value {
        let deadline = Instant::now() + patience;
        loop {
            let (status, body) = self.health().await;
            if status == wanted {
                return body;
            }
            assert!(
                Instant::now() < deadline,
                "sys/health is {status}, not {wanted}, after {patience:?}: {body}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until `sys/health` answers 503 with all of that in its reason.
    pub async fn wait_reason(&self, parts: &[&str]) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let (status, body) = self.health().await;
            let reason = body["reason"].as_str().unwrap_or_default();
            if status == 503 && parts.iter().all(|part| reason.contains(part)) {
                return;
            }
            assert!(Instant::now() < deadline, "{parts:?}: {status} {body}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Replaces the PIN file; the PIN that was in it.
    pub fn replace_pin(&self, pin: &str) -> String {
        let old = fs::read_to_string(self.pin_file()).unwrap();
        let permissions = fs::metadata(self.pin_file()).unwrap().permissions();
        let aside = self.pin_file().with_extension("new");
        fs::write(&aside, pin).unwrap();
        fs::set_permissions(&aside, permissions).unwrap();
        fs::rename(&aside, self.pin_file()).unwrap();
        old
    }
}

impl Deref for Rig {
    type Target = Appliance;
    fn deref(&self) -> &Appliance {
        &self.appliance
    }
}

impl DerefMut for Rig {
    fn deref_mut(&mut self) -> &mut Appliance {
        &mut self.appliance
    }
}
