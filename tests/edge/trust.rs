//! Files that others can change: the real program does not obey them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::support::{Appliance, STRONGROOM, Who};
use crate::wire::until;

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Whether `check-config` takes it, and what it says.
fn check(appliance: &Appliance) -> (bool, String) {
    let output = Command::new(STRONGROOM)
        .args(["check-config", "--config"])
        .arg(appliance.config())
        .env("SOFTHSM2_CONF", appliance.softhsm_conf())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_can_change_is_refused_by_check_config_start_and_reload() {
    let module = tempfile::tempdir().unwrap();
    let own = module.path().join("module.so");
    fs::copy(strongroom_softhsm::module_path().unwrap(), &own).unwrap();
    let mut appliance = Appliance::builder().tokens("").module(&own).prepare();
    let (good, said) = check(&appliance);
    assert!(good, "{said}");
    let pki = &appliance.pki;
    let files = [
        appliance.config(),
        appliance.policy(),
        appliance.path().join("tokens.toml"),
        pki.ca(),
        pki.crl(),
        pki.server_certificate(),
        pki.server_key(),
        appliance.path().join("pin"),
        own,
        appliance.softhsm_conf(),
        pki.ca().parent().unwrap().to_owned(),
        module.path().to_owned(),
        appliance.path().to_owned(),
    ];
    for path in &files {
        let before = fs::metadata(path).unwrap().permissions().mode();
        for open in [0o020, 0o002] {
            mode(path, before | open);
            let (good, said) = check(&appliance);
            assert!(!good, "{} is taken with {open:o}", path.display());
            assert!(said.contains(path.to_str().unwrap()), "{said}");
            let output = Command::new(STRONGROOM)
                .args(["serve", "--config"])
                .arg(appliance.config())
                .env("SOFTHSM2_CONF", appliance.softhsm_conf())
                .output()
                .unwrap();
            assert!(!output.status.success(), "{}", path.display());
        }
        mode(path, before);
    }
    // OpenSSL, in the module, loads what its settings name.
    let openssl = appliance.path().join("openssl.cnf");
    fs::write(&openssl, "").unwrap();
    mode(&openssl, 0o666);
    for variable in ["OPENSSL_CONF", "OPENSSL_MODULES", "OPENSSL_ENGINES"] {
        let output = Command::new(STRONGROOM)
            .args(["serve", "--config"])
            .arg(appliance.config())
            .env("SOFTHSM2_CONF", appliance.softhsm_conf())
            .env(variable, &openssl)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{variable}");
        assert!(said.contains(openssl.to_str().unwrap()), "{said}");
    }
    mode(&appliance.pki.server_key(), 0o604);
    assert!(!check(&appliance).0);
    mode(&appliance.pki.server_key(), 0o600);

    appliance.launch().await;
    mode(&appliance.policy(), 0o666);
    let everybody = "[[rule]]\nidentities=['**']\nkeys=['*']\noperations=['*','global']\n";
    fs::write(appliance.policy(), everybody).unwrap();
    until("the refusal", async || {
        appliance.log().contains("can be changed by others")
    })
    .await;
    let stranger = appliance.client(Who::Stranger);
    let answer = stranger
        .request("LIST", "transit/keys", None)
        .await
        .unwrap();
    assert_eq!(answer.status, 403);
}
