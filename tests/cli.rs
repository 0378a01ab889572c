//! The command line, by running the program: help, exit codes, JSON, generated files, and each
//! command against a real appliance.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc
)]

mod support;

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Appliance, STRONGROOM, Who};

/// Runs the program with nothing of the surroundings' `STRONGROOM_*`.
fn run<I: AsRef<OsStr>>(arguments: impl IntoIterator<Item = I>) -> Output {
    let mut command = Command::new(STRONGROOM);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("STRONGROOM_") {
            command.env_remove(name);
        }
    }
    command
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Standard output of a command that must succeed.
fn ok(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{:?}: {}",
        output.status,
        stderr(output)
    );
    stdout(output)
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

/// The commands below one, as its help lists them.
fn subcommands(path: &[String]) -> Vec<String> {
    let help = ok(&run(path.iter().map(String::as_str).chain(["--help"])));
    let Some((_, list)) = help.split_once("Commands:\n") else {
        return Vec::new();
    };
    let names = list.lines().take_while(|line| line.starts_with("  "));
    let names = names
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next());
    names
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_command_has_help_with_an_example() {
    let mut todo: Vec<Vec<String>> = vec![vec![]];
    let mut leaves = 0;
    while let Some(path) = todo.pop() {
        let below = subcommands(&path);
        for name in &below {
            todo.push(path.iter().cloned().chain([name.clone()]).collect());
        }
        if below.is_empty() {
            leaves += 1;
            let help = ok(&run(path.iter().map(String::as_str).chain(["--help"])));
            let example = format!("strongroom {}", path.join(" "));
            let (_, after) = help
                .split_once("Example")
                .unwrap_or_else(|| panic!("{path:?} has no example:\n{help}"));
            assert!(
                after.contains(&example),
                "the example of {path:?} is another command's:\n{after}"
            );
        }
    }
    assert!(leaves >= 25, "only {leaves} commands were found");
}

#[test]
fn every_command_and_every_exit_code_is_in_the_documentation() {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md")).unwrap();
    let mut todo: Vec<Vec<String>> = vec![vec![]];
    while let Some(path) = todo.pop() {
        let below = subcommands(&path);
        if below.is_empty() {
            assert!(
                text.contains(&format!("`{}", path.join(" "))),
                "docs/cli.md lacks {path:?}"
            );
        }
        todo.extend(
            below
                .into_iter()
                .map(|name| path.iter().cloned().chain([name]).collect()),
        );
    }
    for exit in 0..=9 {
        assert!(
            text.contains(&format!("| {exit} |")),
            "docs/cli.md lacks exit code {exit}"
        );
    }
}

#[test]
fn a_wrong_command_line_is_2_as_text_and_as_json() {
    let text = run(["key", "frobnicate"]);
    assert_eq!(code(&text), 2);
    assert!(stderr(&text).contains("frobnicate"));

    let json = run(["key", "frobnicate", "--output", "json"]);
    assert_eq!(code(&json), 2);
    let error: Value = serde_json::from_slice(&json.stderr).unwrap();
    assert_eq!(error["error"]["kind"], "usage");
    assert_eq!(error["error"]["exit_code"], 2);
}

#[test]
fn a_name_that_no_key_can_have_is_2_before_anything_is_asked() {
    for command in [
        ["key", "read", "a/config"],
        ["key", "rotate", "../sys"],
        ["client", "seal", "-"],
    ] {
        let output = run(command);
        assert_eq!(code(&output), 2, "{command:?}");
    }
    let output = run(["key", "read", "a/config"]);
    assert!(
        stderr(&output).contains("a key name is 1 to 128 letters"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_file_that_is_missing_is_named_with_what_to_do() {
    let output = run(["client", "seal", "k"]);
    assert_eq!(code(&output), 2);
    assert!(
        stderr(&output).contains("next: give it with --cacert or STRONGROOM_CACERT"),
        "{}",
        stderr(&output)
    );

    let output = run(["status", "--cacert", "/does/not/exist.pem"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("/does/not/exist.pem"));

    let output = run(["serve", "--config", "/does/not/exist.toml"]);
    assert_eq!(code(&output), 3);
    assert!(stderr(&output).contains("/does/not/exist.toml"));
}

#[test]
fn an_unknown_configuration_key_is_named() {
    let appliance = Appliance::builder()
        .section("server", "colour = \"blue\"")
        .prepare();
    let output = appliance.cli(["check-config"]);
    assert_eq!(code(&output), 3);
    assert!(stderr(&output).contains("colour"), "{}", stderr(&output));

    let output = appliance.cli(["check-config", "--output", "json"]);
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["kind"], "config");
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("colour")
    );
}

#[test]
fn check_config_accepts_a_good_one_and_finds_a_broken_policy() {
    let appliance = Appliance::builder().prepare();
    assert!(ok(&appliance.cli(["check-config"])).contains("is valid"));
    fs::write(appliance.policy(), "[[rule]]\nidentities = 7\n").unwrap();
    let output = appliance.cli(["check-config"]);
    assert_eq!(code(&output), 3);
    assert!(
        stderr(&output).contains("policy.toml"),
        "{}",
        stderr(&output)
    );
}

/// What a start would refuse before it asks the HSM.
#[test]
fn check_config_refuses_what_a_start_would_refuse() {
    let appliance = Appliance::builder().prepare();
    let refused = |words: &[&str]| {
        for command in ["check-config", "serve"] {
            let output = appliance.cli([command]);
            assert_ne!(code(&output), 0, "{command}");
            for word in words {
                let said = stderr(&output);
                assert!(said.contains(word), "{command}: {word}: {said}");
            }
        }
    };
    let (pin, log) = (appliance.pin_file(), appliance.audit());
    let good = fs::read(&pin).unwrap();
    fs::write(&pin, "\n").unwrap();
    refused(&["holds no PIN"]);
    fs::write(&pin, good).unwrap();

    let kept = appliance.path().join("kept");
    fs::rename(&log, &kept).unwrap();
    fs::create_dir(&log).unwrap();
    let output = appliance.cli(["check-config"]);
    assert_eq!(code(&output), 3);
    assert!(
        stderr(&output).contains("audit.path: "),
        "{}",
        stderr(&output)
    );
    fs::remove_dir(&log).unwrap();
    fs::rename(&kept, &log).unwrap();

    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(appliance.store(), open).unwrap();
    refused(&["may be used by others", "chmod 700"]);
    let own = fs::Permissions::from_mode(0o700);
    fs::set_permissions(appliance.store(), own).unwrap();

    let text = fs::read_to_string(appliance.config()).unwrap();
    let module = strongroom_softhsm::module_path().unwrap();
    let wrong = text.replace(module.to_str().unwrap(), pin.to_str().unwrap());
    assert_ne!(wrong, text);
    fs::write(appliance.config(), wrong).unwrap();
    let output = appliance.cli(["check-config"]);
    assert_eq!(code(&output), 3);
    assert!(
        stderr(&output).contains("is no shared library"),
        "{}",
        stderr(&output)
    );
    fs::write(appliance.config(), text).unwrap();
    assert!(ok(&appliance.cli(["check-config"])).contains("is valid"));

    let output = appliance
        .command(Path::new("prlimit"))
        .args(["--nofile=300:300", STRONGROOM, "check-config"])
        .output()
        .unwrap();
    assert_eq!(code(&output), 3);
    assert!(
        stderr(&output).contains("max_connections"),
        "{}",
        stderr(&output)
    );
}

/// Whoever renews them all mends them all.
#[test]
fn check_config_names_each_bad_tls_file() {
    let appliance = Appliance::builder().prepare();
    let bad = ["server.pem", "server.key", "ca.pem", "crl.pem"];
    for file in bad {
        fs::write(appliance.path().join("pki").join(file), "nothing\n").unwrap();
    }
    let output = appliance.cli(["check-config"]);
    assert_eq!(code(&output), 3);
    for file in bad {
        assert!(
            stderr(&output).contains(&format!("pki/{file}: ")),
            "{file}: {}",
            stderr(&output)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_asks_the_configured_address() {
    let appliance = Appliance::start().await;
    let port = appliance.address().port();
    let text = fs::read_to_string(appliance.config()).unwrap();
    let (before, rest) = text.split_once("listen = \"").unwrap();
    let (_, after) = rest.split_once('"').unwrap();
    let config = appliance.path().join("all-addresses.toml");
    fs::write(
        &config,
        format!("{before}listen = \"0.0.0.0:{port}\"{after}"),
    )
    .unwrap();
    let output = Command::new(STRONGROOM)
        .args(["check", "--certificate-days", "0", "--config"])
        .arg(&config)
        .arg("--cacert")
        .arg(appliance.pki.ca())
        .arg("--client-cert")
        .arg(appliance.pki.certificate(Who::Operator))
        .arg("--client-key")
        .arg(appliance.pki.key(Who::Operator))
        .env_remove("STRONGROOM_ADDR")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        said.contains(&format!("https://127.0.0.1:{port} is healthy")),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_what_is_not_well() {
    let mut appliance = Appliance::builder().prepare();
    let key = appliance.path().join("audit-key.pem");
    fs::write(&key, ok(&appliance.cli(["audit", "public-key"]))).unwrap();
    appliance.launch().await;
    let backups = appliance.path().join("backups");
    fs::create_dir(&backups).unwrap();
    let backup = fs::File::create(backups.join("monday")).unwrap();
    let check = |appliance: &Appliance, more: &[&str]| {
        let backups = backups.to_str().unwrap();
        let words = ["--output", "json", "check", "--backups", backups];
        let output = appliance.cli(words.iter().chain(more));
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let failed: Vec<String> = found["checks"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|check| check["state"] == "failed")
            .map(|check| check["check"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(code(&output), i32::from(!failed.is_empty()), "{found:#}");
        assert_eq!(found["checks"].as_array().unwrap().len(), 12, "{found:#}");
        failed
    };
    let fine = check(&appliance, &["--certificate-days", "0"]);
    assert!(fine.is_empty(), "{fine:?}");
    assert_eq!(
        check(&appliance, &["--certificate-days", "9999999"]),
        ["certificate", "certificate"]
    );

    let week = Duration::from_hours(8 * 24);
    backup
        .set_modified(std::time::SystemTime::now() - week)
        .unwrap();
    appliance.stop();
    let mut log = fs::File::options()
        .append(true)
        .open(appliance.audit())
        .unwrap();
    log.write_all(b"{\"time\": \"2999-01-01T00:00:00.000Z\"}\n")
        .unwrap();
    fs::remove_dir_all(appliance.store()).unwrap();
    assert_eq!(
        check(&appliance, &["--certificate-days", "0"]),
        [
            "store",
            "audit log",
            "clock",
            "backups",
            "server",
            "rotation",
            "clients"
        ]
    );
}

#[test]
fn completions_are_made_for_each_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = ok(&run(["completions", shell]));
        assert!(
            script.contains("strongroom") && script.contains("rewrap-file"),
            "{shell}"
        );
    }
    let check = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn();
    let mut check = check.unwrap();
    check
        .stdin
        .take()
        .unwrap()
        .write_all(&run(["completions", "bash"]).stdout)
        .unwrap();
    assert!(check.wait().unwrap().success());
}

#[test]
fn manual_pages_are_made_for_each_command() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    ok(&run([OsStr::new("man"), pages.as_os_str()]));
    for page in [
        "strongroom.1",
        "strongroom-serve.1",
        "strongroom-key-rotate.1",
        "strongroom-client-seal.1",
    ] {
        let text = fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(".SH NAME"), "{page}");
    }
}

#[test]
fn a_token_is_made_and_an_id_that_is_taken_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    let create = |id: &str| {
        let file = file.to_str().unwrap();
        run([
            "token",
            "create",
            "--id",
            id,
            "--identity",
            "dns:a.example",
            "--tokens",
            file,
        ])
    };
    let token = ok(&create("one"));
    assert!(
        token.starts_with("srt."),
        "the token is the only thing on standard output: {token}"
    );
    ok(&create("two"));
    let before = fs::read_to_string(&file).unwrap();
    assert_eq!(before.matches("[[token]]").count(), 2);
    assert!(
        !before.contains(token.trim()),
        "the token itself is in the file"
    );
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );

    let taken = create("one");
    assert_eq!(code(&taken), 3);
    assert!(stderr(&taken).contains("nothing was changed"));
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
}

#[test]
fn nobody_listening_is_7() {
    let appliance = Appliance::builder().prepare();
    let ca = appliance.pki.ca();
    let output = run([
        OsStr::new("status"),
        OsStr::new("--addr"),
        OsStr::new("https://127.0.0.1:1"),
        OsStr::new("--cacert"),
        ca.as_os_str(),
    ]);
    assert_eq!(code(&output), 7, "{}", stderr(&output));
    assert!(stderr(&output).contains("Connection refused"));
}

#[test]
fn no_colour_comes_without_a_terminal() {
    for output in [run(["--help"]), run(["client", "seal", "k"])] {
        assert!(!output.stdout.contains(&0x1b) && !output.stderr.contains(&0x1b));
    }
}

#[test]
fn a_token_that_is_not_there_stops_the_start_with_4_and_its_name() {
    let appliance = Appliance::builder().prepare();
    let config = fs::read_to_string(appliance.config()).unwrap();
    let config = config.replace(&appliance.token_label(), "no-such-token");
    fs::write(appliance.config(), config).unwrap();
    let output = appliance.cli(["serve"]);
    assert_eq!(code(&output), 4, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("no-such-token"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_wrong_pin_stops_the_start_with_9() {
    let appliance = Appliance::builder().prepare();
    let pin = appliance.pin_file();
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&pin, "0000").unwrap();
    let output = appliance.cli(["serve"]);
    assert_eq!(code(&output), 9, "{}", stderr(&output));
    assert!(stderr(&output).contains("PIN"));
}

#[test]
fn init_refuses_a_second_time() {
    let appliance = Appliance::builder().prepare();
    let output = appliance.cli(["init"]);
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    assert!(stderr(&output).contains("nothing was changed"));
    // The store gone, the keys on the token are still in the way, and the next step is named.
    fs::remove_dir_all(appliance.store()).unwrap();
    let output = appliance.cli(["init"]);
    assert_eq!(code(&output), 4, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("strongroom store import"),
        "{}",
        stderr(&output)
    );
    says_nothing_of_new_ones(&output);
}

fn says_nothing_of_new_ones(output: &Output) {
    for new in ["strongroom init", "store create", "make the"] {
        assert!(!stderr(output).contains(new), "{new}: {}", stderr(output));
    }
}

/// Who lost sight of an appliance's keys or store, and makes others, may lose it all.
#[test]
fn whoever_has_keys_or_a_store_is_told_to_look_for_the_rest_and_not_to_make_new_ones() {
    let appliance = Appliance::builder().prepare();
    let fails = |expected: i32, words: &[&str]| {
        let output = appliance.cli(["serve"]);
        assert_eq!(code(&output), expected, "{}", stderr(&output));
        for word in words {
            assert!(
                stderr(&output).contains(word),
                "{word}: {}",
                stderr(&output)
            );
        }
        output
    };
    let (store, away) = (appliance.store(), appliance.path().join("away"));
    // The keys without the store.
    fs::rename(&store, &away).unwrap();
    let said = "no store at ";
    says_nothing_of_new_ones(&fails(
        5,
        &[said, "belongs to the store", "at epoch 1", "mounted"],
    ));
    let output = appliance.cli(["store", "accept-rollback", "--yes"]);
    assert_eq!(code(&output), 5);
    assert!(stderr(&output).contains("belongs to the store"));
    says_nothing_of_new_ones(&output);
    fs::rename(&away, &store).unwrap();

    // Keys that were made in another way than [hsm] says.
    let text = fs::read_to_string(appliance.config()).unwrap();
    let moved = text.replace("[hsm]\n", "[hsm]\nkeys = \"moved\"\n");
    assert_ne!(moved, text);
    fs::write(appliance.config(), moved).unwrap();
    says_nothing_of_new_ones(&fails(9, &["CKA_", "`keys` there", "backup"]));
    fs::write(appliance.config(), text).unwrap();

    // A token that is not whole: the master key's public half is missing.
    let tokens = appliance.path().join("tokens");
    let kept = appliance.path().join("objects");
    fs::create_dir(&kept).unwrap();
    let objects = || {
        let folders = fs::read_dir(&tokens).unwrap();
        let folder = folders.map(|entry| entry.unwrap().path()).next().unwrap();
        let files = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let is_object = |path: &PathBuf| {
            path.extension().is_some_and(|end| end == "object") && !path.ends_with("token.object")
        };
        files.filter(is_object).collect::<Vec<_>>()
    };
    let masters = |path: &&PathBuf| {
        let object = fs::read(path).unwrap();
        memchr::memmem::find(&object, b"strongroom-master").is_some()
    };
    let all = objects();
    let master = all.iter().find(masters).unwrap();
    fs::rename(master, kept.join("master")).unwrap();
    says_nothing_of_new_ones(&fails(
        9,
        &[
            "master key is not to be seen",
            "it shows strongroom-master, ",
            "strongroom-epoch",
        ],
    ));

    // Another one, which is empty.
    for object in objects() {
        fs::rename(&object, kept.join(object.file_name().unwrap())).unwrap();
    }
    says_nothing_of_new_ones(&fails(9, &["it shows nothing of an appliance", "restore"]));

    // Nothing of an appliance anywhere: only here may it be a new one.
    fs::remove_dir_all(&store).unwrap();
    fails(9, &["strongroom init", "If it has served before"]);
}

#[test]
fn the_store_shows_its_status_and_a_rollback_wants_a_yes() {
    let appliance = Appliance::builder().prepare();
    let status: Value =
        serde_json::from_str(&ok(&appliance.cli(["store", "status", "--output", "json"]))).unwrap();
    assert_eq!(status["store_id"].as_str().unwrap().len(), 32);
    assert_eq!(code(&appliance.cli(["store", "accept-rollback"])), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_managed_and_used() {
    let appliance = Appliance::start().await;
    let json = |arguments: &[&str]| -> Value {
        let output = appliance.cli(arguments.iter().copied().chain(["--output", "json"]));
        serde_json::from_str(&ok(&output)).unwrap()
    };
    assert_eq!(json(&["status"])["healthy"], true);
    assert_eq!(json(&["key", "list"]), serde_json::json!([]));
    assert_eq!(json(&["key", "create", "app-one"])["latest_version"], 1);
    assert_eq!(json(&["key", "list"]), serde_json::json!(["app-one"]));

    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("plain"), b"not text: \xff\x00").unwrap();
    let ciphertext = ok(&appliance.cli(["client", "encrypt", "app-one", "--in", &path("plain")]));
    assert!(ciphertext.starts_with("vault:v1:"));
    fs::write(path("cipher"), &ciphertext).unwrap();
    ok(&appliance.cli([
        "client",
        "decrypt",
        "app-one",
        "--in",
        &path("cipher"),
        "--out",
        &path("opened"),
    ]));
    assert_eq!(fs::read(path("opened")).unwrap(), b"not text: \xff\x00");
    assert_eq!(
        fs::metadata(path("opened")).unwrap().permissions().mode() & 0o777,
        0o600
    );

    assert_eq!(json(&["key", "rotate", "app-one"])["latest_version"], 2);
    assert!(
        ok(&appliance.cli(["client", "rewrap", "app-one", "--in", &path("cipher")]))
            .starts_with("vault:v2:")
    );
    assert_eq!(json(&["client", "seal", "app-one"])["key_version"], "2");

    // What is bound to something, stays bound to it.
    let bound = ["--associated-data", "row 7"];
    let client = |what: &str, file: &str, more: &[&str]| {
        let file = path(file);
        let words = ["client", what, "app-one", "--in", file.as_str()];
        appliance.cli(words.iter().chain(more))
    };
    fs::write(path("bound"), ok(&client("encrypt", "plain", &bound))).unwrap();
    assert_eq!(code(&client("rewrap", "bound", &[])), 1);
    fs::write(path("bound.new"), ok(&client("rewrap", "bound", &bound))).unwrap();
    assert_eq!(code(&client("decrypt", "bound.new", &[])), 1);
    ok_bytes(
        &client("decrypt", "bound.new", &bound),
        b"not text: \xff\x00",
    );
    let datakey = ["client", "datakey", "app-one"];
    let datakey = appliance.cli(datakey.iter().chain(&bound));
    fs::write(path("dek.bound"), ok(&datakey)).unwrap();
    assert_eq!(code(&client("decrypt", "dek.bound", &[])), 1);
    assert!(client("decrypt", "dek.bound", &bound).status.success());

    let made = ok(&appliance.cli([
        "client",
        "datakey",
        "app-one",
        "--bits",
        "512",
        "--plaintext-out",
        &path("dek"),
    ]));
    assert_eq!(fs::read(path("dek")).unwrap().len(), 64);
    fs::write(path("dek.enc"), made).unwrap();
    let opened = appliance.cli(["client", "decrypt", "app-one", "--in", &path("dek.enc")]);
    ok_bytes(&opened, &fs::read(path("dek")).unwrap());

    let changed = json(&[
        "key",
        "config",
        "app-one",
        "--min-decryption-version",
        "2",
        "--min-encryption-version",
        "2",
    ]);
    assert_eq!(changed["min_decryption_version"], 2);
    let too_old = appliance.cli(["client", "decrypt", "app-one", "--in", &path("cipher")]);
    assert_eq!(code(&too_old), 1);
    assert!(stderr(&too_old).contains("too old"), "{}", stderr(&too_old));
    assert_eq!(
        json(&["key", "trim", "app-one", "--min-available-version", "2"])["min_available_version"],
        2
    );

    assert_eq!(code(&appliance.cli(["key", "delete", "app-one"])), 1);
    json(&["key", "config", "app-one", "--deletion-allowed", "true"]);
    json(&["key", "delete", "app-one"]);
    let gone = appliance.cli(["key", "read", "app-one"]);
    assert_eq!(code(&gone), 1);
    assert!(stderr(&gone).contains("key list"));
}

fn ok_bytes(output: &Output, expected: &[u8]) {
    assert!(output.status.success(), "{}", stderr(output));
    assert_eq!(output.stdout, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_ones_own_is_imported() {
    let appliance = Appliance::start().await;
    let file = appliance.path().join("own.key");
    fs::write(&file, [9_u8; 32]).unwrap();
    let file = file.to_str().unwrap();
    let import =
        |hash: &str| appliance.cli(["key", "import", "own", "--in", file, "--oaep-hash", hash]);
    // SoftHSM does OAEP with SHA-1 alone.
    ok(&import("sha1"));
    let again = import("sha1");
    assert_eq!(code(&again), 1);
    ok(&appliance.cli(["client", "seal", "own"]));

    fs::write(file, [9_u8; 31]).unwrap();
    let short = import("sha1");
    assert_eq!(code(&short), 2);
    assert!(stderr(&short).contains("31 bytes"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_is_6() {
    let appliance = Appliance::start().await;
    let as_who = |who: Who| {
        Command::new(STRONGROOM)
            .args(["key", "create", "k"])
            .env("STRONGROOM_ADDR", appliance.url())
            .env("STRONGROOM_CACERT", appliance.pki.ca())
            .env("STRONGROOM_CLIENT_CERT", appliance.pki.certificate(who))
            .env("STRONGROOM_CLIENT_KEY", appliance.pki.key(who))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let stranger = as_who(Who::Stranger);
    assert_eq!(code(&stranger), 6, "{}", stderr(&stranger));
    assert!(stderr(&stranger).contains("permission denied"));
    // Refused in the handshake, before any request.
    for who in [Who::OtherCa, Who::Expired, Who::Revoked] {
        let output = as_who(who);
        assert_eq!(code(&output), 6, "{who:?}: {}", stderr(&output));
        assert!(
            stderr(&output).contains("certificate"),
            "{who:?}: {}",
            stderr(&output)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_audit_log_is_8() {
    let mut appliance = Appliance::start().await;
    ok(&appliance.cli(["key", "create", "app-one"]));
    ok(&appliance.cli(["client", "seal", "app-one"]));
    assert_eq!(appliance.stop(), Some(0), "{}", appliance.log());
    let key = appliance.path().join("audit.pem");
    fs::write(&key, ok(&appliance.cli(["audit", "public-key"]))).unwrap();
    let log = appliance.audit();
    let verify = || {
        let (log, key) = (log.to_str().unwrap(), key.to_str().unwrap());
        appliance.cli([
            "audit",
            "verify",
            log,
            "--public-key",
            key,
            "--output",
            "json",
        ])
    };
    let found: Value = serde_json::from_str(&ok(&verify())).unwrap();
    assert!(found["lines"].as_u64().unwrap() >= 4, "{found}");
    assert_eq!(found["unsigned_tail"], 0, "a stop signs what is left");

    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("dns:operator.test"));
    fs::write(
        &log,
        text.replacen("dns:operator.test", "dns:operator.tent", 1),
    )
    .unwrap();
    let output = verify();
    assert_eq!(code(&output), 8);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!found["problems"].as_array().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_ends_with_its_standard_input() {
    let appliance = Appliance::builder().prepare();
    let mut child = Command::new(STRONGROOM)
        .args(["serve", "--stop-with-stdin", "--config"])
        .arg(appliance.config())
        .env(strongroom_softhsm::CONF_VARIABLE, appliance.softhsm_conf())
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(
        child.try_wait().unwrap().is_none(),
        "the server does not wait for the end of its input"
    );
    drop(child.stdin.take());
    let deadline = Instant::now() + Duration::from_secs(10);
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("the server goes on");
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    assert!(status.success(), "{status}");
}

#[test]
fn the_demo_seals_unseals_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(STRONGROOM)
        .args(["demo", "--output", "json"])
        .env("TMPDIR", folder.path())
        .env_remove("STRONGROOM_SEAL_CLIENT")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told: Value = serde_json::from_str(&ok(&output)).unwrap();
    let steps: Vec<&str> = told["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["step"].as_str().unwrap())
        .collect();
    for step in [
        "plan",
        "ceremony",
        "verify",
        "serve",
        "seal",
        "rotate",
        "audit verify",
    ] {
        assert!(steps.contains(&step), "{steps:?}");
    }
    assert_eq!(told["seal_client"], "strongroom client seal");
    assert!(
        told["stanza"]
            .as_str()
            .unwrap()
            .starts_with("seal \"transit\" {")
    );
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        0,
        "the demo left files behind"
    );
}
