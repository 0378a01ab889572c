//! The units and the Debian package: what systemd makes of them, what is in it, and a clean system
//! with it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

const UNITS: [&str; 4] = [
    "strongroom.service",
    "strongroom.socket",
    "strongroom-check.service",
    "strongroom-check.timer",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn unit(name: &str) -> String {
    fs::read_to_string(root().join("systemd").join(name)).unwrap()
}

fn both(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The units in a directory of their own, with a program that is there.
fn installed() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in UNITS {
        let text = unit(name).replace("/usr/bin/strongroom", support::STRONGROOM);
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

/// `systemd-analyze …` on them; `None`, counted as skipped, where there is none.
fn analyze(test: &str, words: &[&str]) -> Option<Output> {
    let folder = installed();
    let output = Command::new("systemd-analyze")
        .args(words)
        .env("SYSTEMD_UNIT_PATH", format!("{}:", folder.path().display()))
        .current_dir(folder.path())
        .output();
    match output {
        Ok(output) => Some(output),
        Err(error) => {
            support::skip(test, &format!("systemd-analyze: {error}"));
            None
        }
    }
}

#[test]
fn systemd_rates_the_service_as_safe() {
    let test = "systemd_rates_the_service_as_safe";
    // In tenths: 1.0 is what was asked for, 0.4 what it is.
    for (unit, threshold) in [
        ("strongroom.service", "5"),
        ("strongroom-check.service", "13"),
    ] {
        let threshold = format!("--threshold={threshold}");
        let words = [
            "security",
            "--offline=true",
            "--no-pager",
            &threshold,
            &format!("./{unit}"),
        ];
        let Some(output) = analyze(test, &words) else {
            return;
        };
        assert!(output.status.success(), "{}", both(&output));
        assert!(
            both(&output).contains("Overall exposure"),
            "{}",
            both(&output)
        );
    }
}

#[test]
fn systemd_understands_every_line_of_the_units() {
    let test = "systemd_understands_every_line_of_the_units";
    let mut words = vec!["verify".to_owned(), "--man=no".to_owned()];
    words.extend(UNITS.map(|name| format!("./{name}")));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let Some(output) = analyze(test, &words) else {
        return;
    };
    let said = both(&output);
    // systemd before 253 does not know the second of two types, and keeps the first.
    let complaints: Vec<_> = said
        .lines()
        .filter(|line| line.contains("strongroom") && !line.contains("notify-reload"))
        .collect();
    assert!(output.status.success() && complaints.is_empty(), "{said}");
}

#[test]
fn the_units_the_ceremony_and_the_example_use_the_same_names() {
    let service = unit("strongroom.service");
    let site = fs::read_to_string(root().join("ceremony/src/run/site.rs")).unwrap();
    let example = fs::read_to_string(root().join("examples/strongroom.toml")).unwrap();
    for (credential, file) in [
        ("hsm-pin", "/etc/strongroom/hsm-pin.cred"),
        ("tls-key", "/etc/strongroom/tls/server.key.cred"),
    ] {
        assert!(service.contains(&format!("LoadCredentialEncrypted={credential}:{file}")));
        // Without the file the service starts all the same, for whoever keeps the secret otherwise.
        assert!(service.contains(&format!("SetCredential={credential}:\\n")));
        assert!(site.contains(&format!("\"{credential}\"")), "{credential}");
        let name = Path::new(file).file_name().unwrap().to_str().unwrap();
        assert!(site.contains(&format!("\"{name}\"")), "{name}");
    }
    assert!(example.contains("pin_credential = \"hsm-pin\""));
    assert!(example.contains("private_key_credential = \"tls-key\""));
    // What `strongroom serve` says will never get better by itself.
    assert!(service.contains("RestartPreventExitStatus=3 5 8 9\n"));
    assert!(service.contains("StateDirectory=strongroom\n"));
    assert!(example.contains("path = \"/var/lib/strongroom/store\""));
    assert!(example.contains("path = \"/var/lib/strongroom/audit.log\""));
}

/// The package, made once from the program under test.
fn package() -> Result<&'static Path, &'static str> {
    static PACKAGE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    PACKAGE
        .get_or_init(|| {
            let found = Command::new("cargo")
                .args(["deb", "--version"])
                .output()
                .is_ok_and(|output| output.status.success());
            if !found {
                return Err("cargo-deb is missing: .ci/install test".to_owned());
            }
            let output = Command::new(root().join("packaging/build.sh"))
                .arg("dev")
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", both(&output));
            let made = String::from_utf8(output.stdout).unwrap();
            Ok(made.trim().into())
        })
        .as_deref()
        .map_err(String::as_str)
}

#[test]
fn the_package_has_units_manual_pages_completions_and_examples() {
    let package = match package() {
        Ok(package) => package,
        Err(why) => {
            return support::skip(
                "the_package_has_units_manual_pages_completions_and_examples",
                why,
            );
        }
    };
    let list = both(
        &Command::new("dpkg-deb")
            .arg("-c")
            .arg(package)
            .output()
            .unwrap(),
    );
    for (mode, file) in [
        ("-rwxr-xr-x", "usr/bin/strongroom"),
        ("-rw-r--r--", "etc/default/strongroom"),
        ("-rw-r--r--", "usr/lib/sysusers.d/strongroom.conf"),
        ("-rw-r--r--", "usr/lib/tmpfiles.d/strongroom.conf"),
        ("-rw-r--r--", "usr/share/man/man1/strongroom.1.gz"),
        ("-rw-r--r--", "usr/share/man/man1/strongroom-check.1.gz"),
        (
            "-rw-r--r--",
            "usr/share/man/man1/strongroom-ceremony-run.1.gz",
        ),
        (
            "-rw-r--r--",
            "usr/share/bash-completion/completions/strongroom",
        ),
        ("-rw-r--r--", "usr/share/zsh/vendor-completions/_strongroom"),
        (
            "-rw-r--r--",
            "usr/share/fish/vendor_completions.d/strongroom.fish",
        ),
        (
            "-rw-r--r--",
            "usr/share/doc/strongroom/examples/strongroom.toml",
        ),
        ("-rw-r--r--", "usr/share/doc/strongroom/copyright"),
    ]
    .into_iter()
    .map(|(mode, file)| (mode, file.to_owned()))
    .chain(UNITS.map(|name| ("-rw-r--r--", format!("usr/lib/systemd/system/{name}"))))
    {
        assert!(
            list.lines()
                .any(|line| line.starts_with(mode) && line.ends_with(&format!(" ./{file}"))),
            "{mode} {file} is not in\n{list}"
        );
    }
    // Nobody gets rights by running it.
    assert!(
        list.lines()
            .all(|line| !line[..10].contains(['s', 'S', 't', 'T'])),
        "{list}"
    );
    assert!(
        list.lines()
            .all(|line| line.contains(" 0/0 ") || line.contains(" root/root ")),
        "{list}"
    );
}

#[test]
fn in_a_clean_system_a_package_a_ceremony_and_a_start_are_the_whole_installation() {
    const TEST: &str =
        "in_a_clean_system_a_package_a_ceremony_and_a_start_are_the_whole_installation";
    let package = match package() {
        Ok(package) => package,
        Err(why) => return support::skip(TEST, why),
    };
    let output = Command::new(root().join("tests/package/boot.sh"))
        .arg(package)
        .output()
        .unwrap();
    let said = both(&output);
    if output.status.code() == Some(77) {
        return support::skip(TEST, said.trim());
    }
    assert!(output.status.success(), "{said}");
    let facts: BTreeMap<&str, &str> = said
        .lines()
        .filter_map(|line| line.strip_prefix("fact ")?.split_once(' '))
        .map(|(name, value)| (name, value.trim()))
        .collect();
    let fact = |name: &str| {
        *facts
            .get(name)
            .unwrap_or_else(|| panic!("{name} is missing:\n{said}"))
    };

    assert_eq!(fact("enabled"), "enabled enabled enabled");
    // Before there is a configuration nothing runs, and nothing has failed.
    assert_eq!(fact("before"), "inactive no");
    assert_eq!(fact("plain.secrets"), "0");
    assert_eq!(fact("started"), "active active");
    assert_eq!((fact("sealed"), fact("restarted")), ("yes", "yes"));

    assert_eq!(fact("thread.Seccomp"), "2");
    assert_eq!(fact("thread.NoNewPrivs"), "1");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(fact(&format!("thread.{set}")), "0000000000000000", "{set}");
    }
    let user = fact("user");
    assert_ne!(user, "0");
    assert_eq!(fact("thread.Uid"), [user; 4].join(" "));
    assert_eq!(fact("namespaces"), "mnt,net,ipc,user");
    assert_eq!(fact("writable.elsewhere"), "none", "{said}");
    assert_eq!(fact("writable.state"), "yes");
    // 8200, and nothing else.
    assert_eq!(fact("listens"), "2008");
    let exposure: f64 = fact("exposure").parse().unwrap();
    assert!(exposure <= 1.0, "{exposure}");

    assert_eq!(fact("check"), "passed", "{said}");
    assert_eq!(fact("stopped"), "success");
    // The store outlives the package.
    assert_eq!(fact("purged"), "2");
    assert_eq!(fact("failed"), "");
}
