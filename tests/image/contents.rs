//! What is in the root, and what is not.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::machine::built;
use crate::support;

/// Whatever runs a text as a program, lets somebody in, changes users, or installs something.
const FORBIDDEN: &[&str] = &[
    "sh",
    "bash",
    "dash",
    "ash",
    "zsh",
    "ksh",
    "busybox",
    "toybox",
    "sulogin",
    "login",
    "agetty",
    "getty",
    "su",
    "sudo",
    "doas",
    "run0",
    "pkexec",
    "ssh",
    "sshd",
    "dropbear",
    "telnetd",
    "apt",
    "apt-get",
    "dpkg",
    "rpm",
    "snap",
    "perl",
    "python",
    "python3",
    "lua",
    "ruby",
    "tclsh",
    "awk",
    "gawk",
    "mawk",
    "sed",
    "node",
    "gdb",
    "strace",
    "systemd-run",
    "machinectl",
    "debug-shell",
];

#[test]
#[ignore = "needs make image, and minutes"]
fn two_builds_give_the_same_bytes() {
    let Some(image) = built() else { return };
    let sums = |name| fs::read_to_string(image.other(name, &[]).file("SHA256SUMS")).unwrap();
    assert_eq!(sums("once"), sums("twice"));
}

#[test]
#[ignore = "needs make image"]
fn short_no_key_or_password_is_in_the_root_or_the_initrd() {
    let Some(image) = built() else { return };
    let sums = image.file("SHA256SUMS");
    let text = fs::read_to_string(&sums).unwrap();
    assert!(text.contains(".root.raw\n") && text.contains(".efi\n"));
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/secrets"))
        .env("STRONGROOM_IMAGE", sums.parent().unwrap())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) {
        return support::skip("the search for secrets in the image", told.trim());
    }
    assert!(output.status.success(), "{told}");
}

#[test]
#[ignore = "needs make image"]
fn short_no_shell_no_interpreter_no_setuid_file() {
    let Some(image) = built() else { return };
    let contents = fs::read_to_string(image.file("root.contents")).unwrap();
    let mut executables = Vec::new();
    for line in contents.lines() {
        assert!(!line.starts_with("#!"), "a script: {line}");
        let [mode, _owner, path] = line.splitn(3, ' ').collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        let (kind, rights) = mode.split_at(1);
        assert!(!rights.contains(['s', 'S']), "setuid or setgid: {line}");
        // A link from a forbidden name would do as well.
        let name = path.rsplit('/').next().unwrap();
        let runs = (kind == "-" && rights.contains('x')) || kind == "l";
        let versioned = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
        if runs && path.contains("bin/") {
            assert!(
                !FORBIDDEN.contains(&name) && !FORBIDDEN.contains(&versioned),
                "{line}"
            );
        }
        if kind == "-" && rights.contains('x') {
            executables.push(path);
        }
    }
    println!(
        "{} executables:\n{}",
        executables.len(),
        executables.join("\n")
    );
    assert!(executables.iter().any(|path| path.ends_with("/strongroom")));
}

/// What would make units of a word, a partition or a credential, take in more files, or let
/// somebody in at a terminal.
const OBEDIENT: &[&str] = &[
    "-generator",
    "-generators",
    "systemd-sysext",
    "systemd-confext",
    "systemd-firstboot",
    "systemd-sysusers",
    "systemd-udev-load-credentials",
    "systemd-fsck",
    "systemd-vmspawn",
    "systemd-ssh-proxy",
    "debug-shell",
    "rescue.",
    "getty",
    "kexec",
    "qemu_fw_cfg",
];

#[test]
#[ignore = "needs make image"]
fn short_nothing_makes_units_of_words_and_few_credentials_are_read() {
    let Some(image) = built() else { return };
    for list in ["root.contents", "initrd.contents"] {
        let contents = fs::read_to_string(image.file(list)).unwrap();
        assert!(contents.lines().count() > 100, "{list}: {contents}");
        for line in contents.lines() {
            // Of the words of its own command line, which are the signed ones; docs/image.md names
            // the credentials.
            if line.contains("systemd-network-generator") {
                continue;
            }
            let obedient = OBEDIENT.iter().find(|name| line.contains(*name));
            assert_eq!(obedient, None, "{list}: {line}");
        }
    }
    assert_eq!(
        imported(&fs::read_to_string(image.file("credentials")).unwrap()),
        [
            ("strongroom-logs.service", "strongroom.logs.*"),
            ("systemd-network-generator.service", "network.network.50-*"),
        ]
        .map(|(unit, pattern)| (unit.to_owned(), pattern.to_owned()))
    );
}

/// Unit and pattern of what is imported from whoever sets them, after the drop-ins. Lines are
/// `TREE/…/UNIT.service:LINE` and `TREE/…/UNIT.service.d/NAME.conf:LINE`. What is loaded comes from
/// a file of the state, and must say which.
fn imported(lines: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let (mut base, mut dropins) = (Vec::new(), Vec::new());
    for line in lines.lines() {
        let (path, setting) = line.split_once(':').unwrap();
        let unit = path
            .split('/')
            .find(|part| part.contains(".service"))
            .unwrap();
        let dropin = unit.strip_suffix(".d");
        let (unit, is_dropin) = (dropin.unwrap_or(unit), dropin.is_some());
        let (key, value) = setting.split_once('=').unwrap();
        if key == "ImportCredential" {
            if is_dropin { &mut dropins } else { &mut base }.push((unit, value));
        } else {
            let source = value.split_once(':').map(|(_, source)| source);
            assert!(source.is_some_and(|it| it.starts_with('/')), "{line}");
        }
    }
    for (unit, value) in base.into_iter().chain(dropins) {
        if value.is_empty() {
            found.retain(|(other, _)| other != unit);
        } else {
            found.push((unit.to_owned(), value.to_owned()));
        }
    }
    found.sort();
    found
}

#[test]
#[ignore = "needs make image"]
fn short_the_bill_of_materials_names_what_is_in_it() {
    let Some(image) = built() else { return };
    let bom: Value =
        serde_json::from_str(&fs::read_to_string(image.file("sbom.cdx.json")).unwrap()).unwrap();
    assert_eq!(
        (&bom["bomFormat"], &bom["specVersion"]),
        (&"CycloneDX".into(), &"1.6".into())
    );
    let components = bom["components"].as_array().unwrap();
    for part in [
        "pkg:deb/debian/libc6@",
        "pkg:deb/debian/systemd@",
        "pkg:deb/debian/libsofthsm2@",
        "pkg:cargo/rustls@",
        "pkg:cargo/cryptoki@",
    ] {
        let named = components
            .iter()
            .any(|c| c["purl"].as_str().unwrap().starts_with(part));
        assert!(named, "{part} is not named");
    }
    let program = &bom["metadata"]["component"]["components"][0]["hashes"][0]["content"];
    assert_eq!(
        program,
        fs::read_to_string(image.file("strongroom.sha256"))
            .unwrap()
            .trim()
    );
}
