use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Later, born, to_the_end};
use crate::rig::{AUDITOR, CUSTODIANS, OFFICER, Room, files, lines_to_come, stderr};
use crate::support::Who;

const RULES: &str = "[[rule]]\nidentities = [\"dns:vault.test\"]\nkeys = [\"*\"]\noperations = [\"create\", \"read\", \"encrypt\", \"decrypt\"]\n";

const RESTORE: [&str; 10] = [
    "opening",
    "pins",
    "token",
    "keys",
    "evidence",
    "store",
    "identity",
    "trial",
    "runtime-pin",
    "closing",
];

fn everyone() -> Vec<&'static str> {
    CUSTODIANS.into_iter().chain([OFFICER, AUDITOR]).collect()
}

/// An appliance whose keys may be moved, and what it encrypted.
pub fn in_use() -> (Room, PathBuf) {
    let room = to_the_end(Room::with_backup());
    fs::write(room.appliance().join("policy.toml"), RULES).unwrap();
    let plain = room.path().join("plain");
    fs::write(&plain, "from the old token").unwrap();
    let serving = room.serve();
    serving.succeeds(&["key", "create", "vault-unseal"]);
    serving.succeeds(&["key", "create", "signer", "--type", "ecdsa-p256"]);
    let sealed = serving.succeeds(&[
        "client",
        "encrypt",
        "vault-unseal",
        "--in",
        plain.to_str().unwrap(),
    ]);
    drop(serving);
    let path = room.path().join("sealed");
    fs::write(&path, sealed).unwrap();
    (room, path)
}

/// The old token is gone, as in a fire.
fn lose_the_token(room: &Room) {
    let tokens = room.path().join("token/tokens");
    fs::rename(&tokens, room.path().join("burnt")).unwrap();
    fs::create_dir(&tokens).unwrap();
}

fn restore<'a>(room: &'a Room, backup: &Later<'_>) -> Later<'a> {
    Later {
        after: backup.dir.clone(),
        ..Later::new(room, &["restore", backup.dir.to_str().unwrap()])
    }
}

fn decrypts(room: &Room, sealed: &Path) {
    let serving = room.serve();
    let opened = serving.succeeds(&[
        "client",
        "decrypt",
        "vault-unseal",
        "--in",
        sealed.to_str().unwrap(),
    ]);
    assert_eq!(opened, b"from the old token");
    serving.succeeds(&["client", "seal", "vault-unseal"]);
}

/// What an operator made of the ceremony's configuration since.
fn with_settings_of_its_own(room: &Room) -> String {
    let path = room.appliance().join("strongroom.toml");
    let text = fs::read_to_string(&path).unwrap();
    let text = text
        .replacen(
            "[hsm]\n",
            &format!(
                "# who left\ncrls = [\"{}\"]\n\n[hsm]\nsessions = 2 # a fast one\n",
                room.pki.crl().display()
            ),
            1,
        )
        .replacen("[server]\n", "[server]\nmax_requests = 77\n", 1);
    fs::write(&path, &text).unwrap();
    text
}

/// Nothing but the token, and the shape of its keys.
fn keeps_its_settings(room: &Room, before: &str) {
    let now = fs::read_to_string(room.appliance().join("strongroom.toml")).unwrap();
    let kept = |text: &str| {
        let lines = text.lines();
        let kept =
            lines.filter(|line| !line.starts_with("serial = ") && !line.starts_with("keys = "));
        kept.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(kept(&now), kept(before));
    let serving = room.serve();
    let as_revoked = || {
        Command::new("curl")
            .args(["--silent", "--show-error", "--cacert"])
            .arg(room.pki.ca())
            .arg("--cert")
            .arg(room.pki.certificate(Who::Revoked))
            .arg("--key")
            .arg(room.pki.key(Who::Revoked))
            .arg(format!("{}/v1/sys/health", serving.address))
            .output()
            .unwrap()
    };
    // curl may find the connection closed before it has read why.
    let why = (0..50).find(|_| {
        let revoked = as_revoked();
        assert!(!revoked.status.success(), "a revoked client is let in");
        stderr(&revoked).contains("revoked")
    });
    assert!(why.is_some(), "the client was refused for another reason");
    serving.succeeds(&["client", "seal", "vault-unseal"]);
}

#[test]
fn restored_twice_the_configuration_keeps_every_setting_and_a_revoked_client_stays_out() {
    let (room, _) = in_use();
    let backup = Later::new(&room, &["backup"]);
    backup.run_to_the_end();
    let before = with_settings_of_its_own(&room);
    keeps_its_settings(&room, &before);
    let config = room.appliance().join("strongroom.toml");

    // What a restoration could not keep is said before anything is made.
    let elsewhere = before.replace("/audit.log", "/other.log");
    fs::write(&config, &elsewhere).unwrap();
    lose_the_token(&room);
    let first = restore(&room, &backup);
    first.fails(1, "audit.path: ");
    assert!(!first.transcript_path().exists());
    fs::write(&config, &before).unwrap();
    first.run_to_the_end();
    keeps_its_settings(&room, &before);

    let second = Later {
        after: first.dir.clone(),
        dir: room.path().join("backup-2"),
        ..Later::new(&room, &["backup"])
    };
    second.run_to_the_end();
    fs::remove_dir_all(room.path().join("burnt")).unwrap();
    lose_the_token(&room);
    let between = fs::read_to_string(&config).unwrap();
    let again = Later {
        dir: room.path().join("restore-2"),
        ..restore(&room, &second)
    };
    again.run_to_the_end();
    keeps_its_settings(&room, &before);
    // Each ceremony kept what it found.
    let mut kept: Vec<String> = files(&room.appliance())
        .iter()
        .filter(|path| path.to_string_lossy().contains("strongroom.toml.before-"))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let mut expected = vec![before, between];
    kept.sort();
    expected.sort();
    assert_eq!(kept, expected);
}

#[test]
fn another_token_opens_what_the_lost_one_sealed() {
    let (room, sealed) = in_use();
    let backup = Later::new(&room, &["backup"]);
    backup.run_to_the_end();
    backup.verify();
    let export = backup.outputs("export");
    let labels: Vec<_> = export["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| key["label"].as_str().unwrap())
        .collect();
    assert_eq!(
        labels,
        [
            "strongroom-master",
            "strongroom-transfer",
            "strongroom-memory-master",
            "strongroom-store"
        ]
    );
    // A signing key can't leave, and whoever relies on the backup hears it.
    assert_eq!(export["signing_keys_left_behind"], 1);
    assert!(backup.transcript().iter().any(|line| {
        line["text"]
            .as_str()
            .is_some_and(|text| text.starts_with("1 signing keys stay on the token"))
    }));
    // The transcript of the initial ceremony shows that it was decided then.
    let evidence = room.outputs("evidence").to_string();
    assert!(evidence.contains("[\"CKA_WRAP_WITH_TRUSTED\",\"true\"]"));

    // Written after the backup: only the store's copy has it.
    let serving = room.serve();
    serving.succeeds(&["key", "create", "later"]);
    drop(serving);
    lose_the_token(&room);
    let restore = restore(&room, &backup);

    // Too few, a custodian twice, and a backup that was altered.
    room.answer("recover", "Alice\nBob\n");
    restore.fails(10, "too few");
    room.answer("recover", "Alice\nAlice\nBob\n");
    restore.fails(1, "Alice's share was taken already");
    let file = backup.dir.join("backup.jsonl");
    let good = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        good.replacen("\"threshold\":3", "\"threshold\":2", 1),
    )
    .unwrap();
    restore.fails(1, "is not the file that its ceremony's transcript names");
    fs::write(&file, &good).unwrap();
    room.answer("recover", "Carol\nErin\nDave\n");
    restore.run_to_the_end();
    restore.verify();
    let keys = restore.outputs("keys");
    assert_ne!(keys["old_audit_key"], keys["new_audit_key"]);
    let store: Value = restore.outputs("store");
    assert!(store["store_epoch"].as_u64().unwrap() > store["backup_epoch"].as_u64().unwrap());

    decrypts(&room, &sealed);
    let serving = room.serve();
    serving.succeeds(&["client", "seal", "later"]);
    drop(serving);

    // The old audit log is kept, and verifies with the old key.
    let old_logs: Vec<_> = files(&room.state())
        .into_iter()
        .filter(|path| path.to_string_lossy().contains("audit.log."))
        .collect();
    let verified = room
        .command(&["audit", "verify"])
        .args(&old_logs)
        .arg("--public-key")
        .arg(room.dir().join("audit-key.pem"))
        .output()
        .unwrap();
    assert!(
        verified.status.success(),
        "{old_logs:?} {}",
        stderr(&verified)
    );

    // And life goes on from there: the restored keys can be backed up again.
    fs::remove_file(room.answers().join("recover")).unwrap();
    let again = Later {
        after: restore.dir.clone(),
        dir: room.path().join("backup-2"),
        ..Later::new(&room, &["backup"])
    };
    again.run_to_the_end();
    assert!(again.verifies(&again.transcript_path(), &again.dir.join("chain")));
}

/// Everything in the directory of the tokens, byte for byte.
fn tokens(room: &Room) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = files(&room.path().join("token/tokens"));
    files.sort();
    files
        .into_iter()
        .map(|path| (path.clone(), fs::read(&path).unwrap()))
        .collect()
}

/// Whatever is wrong with a backup is found before a PIN is made and before a token is touched.
#[test]
#[allow(
    clippy::too_many_lines,
    reason = "one ceremony's backup, broken in many ways"
)]
fn a_bad_backup_is_refused_while_nothing_is_made() {
    let (room, _) = in_use();
    let old = Later {
        dir: room.path().join("backup-old"),
        ..Later::new(&room, &["backup"])
    };
    old.run_to_the_end();
    let rotate = Later {
        after: old.dir.clone(),
        ..Later::new(&room, &["rotate-master"])
    };
    rotate.run_to_the_end();
    let backup = Later {
        after: rotate.dir.clone(),
        ..Later::new(&room, &["backup"])
    };
    backup.run_to_the_end();
    lose_the_token(&room);
    let before = tokens(&room);
    let untouched = |restore: &Later<'_>, what: &str| {
        assert_eq!(tokens(&room), before, "{what}: the token was touched");
        for folder in ["shares", "pages"] {
            let folder = restore.dir.join(folder);
            let made = folder.exists() && !files(&folder).is_empty();
            assert!(!made, "{what}: a share was made");
        }
    };

    let file = backup.dir.join("backup.jsonl");
    let good = fs::read(&file).unwrap();
    let (first, tag) = good.split_at(good.iter().position(|byte| *byte == b'\n').unwrap() + 1);
    let text = String::from_utf8(first.to_vec()).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let altered: [(&str, Vec<u8>); 7] = [
        ("a bit flipped", flipped),
        ("cut", good[..good.len() / 2].to_vec()),
        ("without its tag", first.to_vec()),
        ("empty", Vec::new()),
        (
            "of another format",
            [
                text.replacen("\"format\":1", "\"format\":2", 1).as_bytes(),
                tag,
            ]
            .concat(),
        ),
        (
            "of another store",
            [
                text.replacen("\"store_id\":\"", "\"store_id\":\"0", 1)
                    .as_bytes(),
                tag,
            ]
            .concat(),
        ),
        (
            "of the older one",
            fs::read(old.dir.join("backup.jsonl")).unwrap(),
        ),
    ];
    let restore = restore(&room, &backup);
    for (what, bytes) in altered {
        fs::write(&file, bytes).unwrap();
        let output = restore.run();
        let code = output.status.code();
        assert!(matches!(code, Some(1 | 2)), "{what}: {}", stderr(&output));
        // Not even a transcript was begun.
        assert!(!restore.transcript_path().exists(), "{what}");
        untouched(&restore, what);
    }
    fs::remove_file(&file).unwrap();
    restore.fails(1, "backup.jsonl");
    untouched(&restore, "none");
    fs::write(&file, &good).unwrap();

    // From before the rotation: whole, of this appliance, and of keys that are no more.
    let stale = Later {
        after: backup.dir.clone(),
        dir: room.path().join("restore-old"),
        ..Later::new(&room, &["restore", old.dir.to_str().unwrap()])
    };
    stale.fails(1, "take the newest backup");
    untouched(&stale, "an old one");

    // Its shares: fewer than it takes, of the other backup, and altered ones.
    room.answer("recover", "Alice\nBob\n");
    restore.fails(10, "too few");
    untouched(&restore, "too few shares");
    fs::remove_file(room.answers().join("recover")).unwrap();
    let shares = backup.dir.join("transport-shares");
    let kept: Vec<_> = files(&shares)
        .into_iter()
        .map(|path| (path.clone(), fs::read(&path).unwrap()))
        .collect();
    for (path, _) in &kept {
        let other = old
            .dir
            .join("transport-shares")
            .join(path.file_name().unwrap());
        fs::copy(other, path).unwrap();
    }
    let output = restore.run();
    assert!(!output.status.success(), "shares of another backup");
    untouched(&restore, "shares of another backup");
    for (path, share) in &kept {
        let mut share = share.clone();
        let middle = share.len() / 2;
        share[middle] = if share[middle] == b'A' { b'B' } else { b'A' };
        fs::write(path, share).unwrap();
    }
    let output = restore.run();
    assert!(!output.status.success(), "altered shares");
    untouched(&restore, "altered shares");
    for (path, share) in &kept {
        fs::write(path, share).unwrap();
    }
    restore.run_to_the_end();
    restore.verify();
}

#[test]
fn killed_at_every_line_they_go_on() {
    let (room, sealed) = in_use();
    let backup = Later::new(&room, &["backup"]);
    backup.killed_at(&lines_to_come(
        &["opening", "transport", "export", "closing"],
        &everyone(),
    ));
    backup.verify();
    lose_the_token(&room);
    let restore = restore(&room, &backup);
    restore.killed_at(&lines_to_come(&RESTORE, &everyone()));
    restore.verify();
    decrypts(&room, &sealed);
}

#[test]
fn nothing_secret_is_in_any_file() {
    let (room, _) = in_use();
    let backup = Later::new(&room, &["backup"]);
    // What the process list shows of it, as long as it runs.
    let mut child = backup
        .command()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = Vec::new();
    let mut seen = 0;
    while child.try_wait().unwrap().is_none() {
        for file in ["cmdline", "environ"] {
            let path = format!("/proc/{}/{file}", child.id());
            if let Ok(bytes) = fs::read(path) {
                seen += usize::from(!bytes.is_empty());
                said.extend(bytes);
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(seen > 10, "{seen}");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    said.extend(&output.stdout);
    said.extend(&output.stderr);
    let mut needles = backup.transport_secrets();
    let pins = room.recover(
        strongroom_ceremony::Mode::Ceremony,
        &["Alice", "Bob", "Erin"],
    );
    needles.extend([pins.so.to_vec(), pins.user.to_vec()]);
    for needle in &needles {
        assert!(memchr::memmem::find(&said, needle).is_none());
    }
    let searched: Vec<_> = files(room.path())
        .into_iter()
        .filter(|path| !path.ends_with("hsm-pin"))
        .collect();
    assert!(searched.len() > 40);
    for path in searched {
        let bytes = fs::read(&path).unwrap();
        for needle in &needles {
            assert!(
                memchr::memmem::find(&bytes, needle).is_none(),
                "{}",
                path.display()
            );
        }
    }
}

#[test]
fn a_plan_without_backup_stays_without() {
    let room = born();
    let backup = Later::new(&room, &["backup"]);
    backup.fails(
        1,
        "the plan decided in the keys' initial ceremony that there is no backup",
    );
    assert!(!backup.transcript_path().exists());
    let restore = Later::new(&room, &["restore", room.dir().to_str().unwrap()]);
    restore.fails(
        1,
        "the plan decided in the keys' initial ceremony that there is no backup",
    );
    // Nor by another plan that says so.
    let text = fs::read_to_string(room.plan_path()).unwrap();
    let plan = room.path().join("plan-2.toml");
    let text = text.replace("backup = false", "backup = true").replacen(
        "format = 1\n",
        &format!("format = 1\nreplaces = \"{}\"\n", room.plan().hash_hex()),
        1,
    );
    fs::write(&plan, text).unwrap();
    super::replace::sign(&plan);
    let replace = Later::new(&room, &["replace-custodian", plan.to_str().unwrap()]);
    let output = replace.run();
    assert!(!output.status.success());
    assert!(stderr(&output).contains("the plan's `keys` is not that of the plan"));
}

/// The directory of a token of SoftHSM.
fn folder_of(room: &Room, serial: &str) -> PathBuf {
    let folders = fs::read_dir(room.path().join("token/tokens")).unwrap();
    let mut folders = folders.map(|folder| folder.unwrap().path());
    let is_its = |folder: &PathBuf| {
        let object = fs::read(folder.join("token.object")).unwrap();
        memchr::memmem::find(&object, serial.as_bytes()).is_some()
    };
    folders.find(is_its).unwrap()
}

/// A second token takes the first one's place, as docs/ceremony.md has it.
fn take_over(room: &Room, first: &str, second: &str, sealed: &Path) {
    let config = room.appliance().join("strongroom.toml");
    let text = fs::read_to_string(&config).unwrap();
    let text = text
        .replace(first, second)
        .replace("keys = \"movable\"", "keys = \"moved\"");
    fs::write(&config, text).unwrap();
    let log = room.state().join("audit.log");
    fs::rename(&log, room.state().join("audit.log.first")).unwrap();
    // The store may be one commit ahead of the copy, as one that was cut off is: it must be
    // accepted all the same.
    let store = |words: &[&str]| {
        let command = [&["store"], words, &["--config"]].concat();
        room.command(&command).arg(&config).output().unwrap()
    };
    let unbound = store(&["status"]);
    assert_eq!(unbound.status.code(), Some(5), "{}", stderr(&unbound));
    let accepted = store(&["accept-rollback", "--yes"]);
    assert!(accepted.status.success(), "{}", stderr(&accepted));
    decrypts(room, sealed);
}

#[test]
fn the_next_ceremony_is_with_the_token_that_the_appliance_works_with() {
    let (room, sealed) = in_use();
    let add = Later::new(&room, &["add-token"]);
    add.run_to_the_end();
    let serial = |outputs: &Value| outputs["token"]["serial"].as_str().unwrap().to_owned();
    let (first, second) = (serial(&room.outputs("token")), serial(&add.outputs("copy")));
    take_over(&room, &first, &second, &sealed);

    // The first one is still plugged in, with the same keys and PINs.
    let config = room.appliance().join("strongroom.toml");
    let text = fs::read_to_string(&config).unwrap();
    let backup = Later {
        after: add.dir.clone(),
        ..Later::new(&room, &["backup"])
    };
    let refused = |later: &Later<'_>, serials: &[&str], what: &str| {
        let output = later.run();
        let errors = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        for part in serials.iter().chain([&what]) {
            assert!(errors.contains(part), "{part}: {errors}");
        }
        // It can still be begun, and so can another.
        assert!(!later.transcript_path().exists());
        assert!(!later.after.join("followed-by").exists());
    };
    let (both, away) = ([first.as_str(), &second], room.path().join("drawer"));
    let home = folder_of(&room, &second);
    fs::rename(&home, &away).unwrap();
    refused(&backup, &both, "which is not there");
    fs::rename(&away, &home).unwrap();
    fs::remove_file(&config).unwrap();
    refused(&backup, &both, "does not say which one");
    let by_label = text.replace(
        &format!("serial = \"{second}\""),
        "label = \"vault-keys-1-2\"",
    );
    assert_ne!(by_label, text);
    fs::write(&config, &by_label).unwrap();
    backup.run_to_the_end();
    backup.verify();
    let opening = backup.outputs("opening");
    assert_eq!(opening["token_serial"], *second);

    // Somebody puts the configuration of before back: this is not the ceremonies' token any more.
    fs::write(&config, text.replace(&second, &first)).unwrap();
    let next = Later {
        after: backup.dir.clone(),
        dir: room.path().join("next"),
        ..Later::new(&room, &["backup"])
    };
    refused(&next, &both, "at work in an earlier ceremony");
    fs::write(&config, text.replace(&second, "0123456789abcdef")).unwrap();
    refused(
        &next,
        &["0123456789abcdef", &second],
        "that none of these transcripts names",
    );
    fs::write(&config, &text).unwrap();
    next.run_to_the_end();
}

#[test]
fn check_knows_the_audit_key_of_a_token_that_has_taken_over() {
    let (room, sealed) = in_use();
    let add = Later::new(&room, &["add-token"]);
    add.run_to_the_end();
    let serial = |outputs: &Value| outputs["token"]["serial"].as_str().unwrap().to_owned();
    let (first, second) = (serial(&room.outputs("token")), serial(&add.outputs("copy")));
    take_over(&room, &first, &second, &sealed);

    // The key beside the configuration is the first one's, until somebody has compared the two.
    let config = room.appliance().join("strongroom.toml");
    let audit_log = || {
        let output = room
            .command(&["check", "--output", "json", "--config"])
            .arg(&config)
            .output()
            .unwrap();
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut findings = told["checks"].as_array().unwrap().iter();
        let found = findings.find(|one| one["check"] == "audit log");
        found.unwrap().clone()
    };
    let found = audit_log();
    assert_eq!(found["state"], "failed", "{found}");
    let told = add.outputs("copy")["keys"].clone();
    let mut keys = told.as_array().unwrap().iter();
    let own = keys.find(|key| key["label"] == "strongroom-audit");
    for part in ["another token", own.unwrap()["sha256"].as_str().unwrap()] {
        assert!(found["text"].as_str().unwrap().contains(part), "{found}");
    }
    let key = room
        .command(&["audit", "public-key", "--config"])
        .arg(&config)
        .output();
    fs::write(room.appliance().join("audit-key.pem"), key.unwrap().stdout).unwrap();
    let found = audit_log();
    assert_eq!(found["state"], "ok", "{found}");
}

#[test]
fn a_second_token_takes_over() {
    let (room, sealed) = in_use();
    let add = Later::new(&room, &["add-token"]);
    add.killed_at(&lines_to_come(
        &["opening", "second-token", "copy", "closing"],
        &everyone(),
    ));
    add.verify();
    assert!(!add.dir.join("transport-shares").exists() && !add.dir.join("shares").exists());
    let copy = add.outputs("copy");
    let first = room.outputs("token")["token"]["serial"]
        .as_str()
        .unwrap()
        .to_owned();
    let second = copy["token"]["serial"].as_str().unwrap().to_owned();
    assert_eq!(copy["token"]["label"], "vault-keys-1-2");
    // The first one still serves, and the store goes on.
    decrypts(&room, &sealed);
    let serving = room.serve();
    serving.succeeds(&["key", "create", "later"]);
    drop(serving);

    // The first one dies.
    fs::remove_dir_all(folder_of(&room, &first)).unwrap();
    take_over(&room, &first, &second, &sealed);
    let serving = room.serve();
    serving.succeeds(&["client", "seal", "later"]);
    drop(serving);

    // The next ceremony is with the second token, and the same shares open it.
    let backup = Later {
        after: add.dir.clone(),
        ..Later::new(&room, &["backup"])
    };
    backup.run_to_the_end();
    backup.verify();
    let close = backup
        .transcript()
        .into_iter()
        .find(|line| line["type"] == "close")
        .unwrap();
    assert_eq!(close["summary"]["token"]["serial"], *second);
    assert_eq!(close["audit_key"], copy["audit_key"]);
}
