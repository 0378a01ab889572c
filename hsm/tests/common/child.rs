//! Tests that run in a child process: this module's faults and `SoftHSM` are configured by the
//! environment, which a process can't safely change for itself. The child is the same program, with
//! the test's name.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc
)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use strongroom_hsm::{HsmConfig, PinSource, TokenSelector};
use strongroom_softhsm::Throwaway;

/// Set in the child: the directory of its control file, log, label and PIN.
pub(crate) const CHILD: &str = "STRONGROOM_RECOVERY_FOLDER";

pub(crate) fn config(folder: &Path, sessions: usize, call_deadline: Duration) -> HsmConfig {
    HsmConfig {
        // Cargo builds it beside this program.
        module: std::env::current_exe()
            .unwrap()
            .with_file_name("libstrongroom_pkcs11_fault.so"),
        token: TokenSelector::Label(fs::read_to_string(folder.join("label")).unwrap()),
        pin: PinSource::File(folder.join("pin")),
        sessions,
        queue: 256,
        call_deadline,
        key_generation_deadline: Duration::from_mins(5),
        session_keys: 16,
        shape: strongroom_hsm::KeyShape::Fixed,
    }
}

pub(crate) fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Replaces the control file.
pub(crate) fn control(folder: &Path, commands: &str) {
    let aside = folder.join("control.new");
    fs::write(&aside, commands).unwrap();
    fs::rename(aside, folder.join("control")).unwrap();
    // Noticed without a call within a few milliseconds.
    std::thread::sleep(Duration::from_millis(20));
}

pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Runs the test in a child on a copy of the token, with a control file and a log of its own.
pub(crate) fn run_on_copy(test: &str, token: &Throwaway) {
    let folder = folder();
    // A copy for each test: SoftHSM rewrites the token's file at a login, and a process that starts
    // just then sees no token.
    copy(&token.path().join("tokens"), &folder.path().join("tokens"));
    let configuration = folder.path().join("softhsm2.conf");
    let tokens = folder.path().join("tokens");
    fs::write(
        &configuration,
        format!("directories.tokendir = {}\n", tokens.display()),
    )
    .unwrap();
    run(test, folder.path(), token, &configuration);
}

pub(crate) fn run(test: &str, folder: &Path, token: &Throwaway, configuration: &Path) {
    fs::write(folder.join("label"), token.label()).unwrap();
    fs::copy(token.pin_file(), folder.join("pin")).unwrap();
    private(&folder.join("pin"));
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            test,
            "--nocapture",
            "--include-ignored",
            "--test-threads=1",
        ])
        .env(CHILD, folder)
        .env(token.env().0, configuration)
        .env("PKCS11_FAULT_CONTROL", folder.join("control"))
        .env("PKCS11_FAULT_LOG", folder.join("log"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{}: {said}{}\nlog:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        fs::read_to_string(folder.join("log")).unwrap_or_default()
    );
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
