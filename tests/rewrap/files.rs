//! Files and directories.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::support::{self, Appliance, STRONGROOM, Who};
use super::{KEY, check, done, failed, min_decryption_version, rotate, rotated};

fn rewrap_file(appliance: &Appliance, path: &Path, more: &[&str]) -> std::process::Output {
    let path = path.to_str().unwrap();
    let words = ["--output", "json", "key", "rewrap-file", KEY, path];
    appliance.cli(words.iter().chain(more))
}

fn rewrap_dir(appliance: &Appliance, path: &Path, more: &[&str]) -> std::process::Output {
    let path = path.to_str().unwrap();
    let words = ["--output", "json", "key", "rewrap-dir", KEY, path];
    appliance.cli(words.iter().chain(more))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_bound_to_associated_data_is_rewrapped_with_it() {
    let (appliance, _) = rotated(1).await;
    let operator = appliance.client(Who::Operator);
    let bound = support::base64(b"tenant a");
    let path = format!("transit/encrypt/{KEY}");
    let body = json!({ "plaintext": "YQ==", "associated_data": bound });
    let made = support::expect(&operator, "POST", &path, body, 200).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("list");
    fs::write(&file, made["data"]["ciphertext"].as_str().unwrap()).unwrap();
    rotate(&appliance).await;
    for wrong in [&[][..], &["--associated-data", "YQ=="]] {
        let refused = failed(&rewrap_dir(&appliance, folder.path(), wrong), 1);
        assert!(
            refused.contains("message authentication failed"),
            "{refused}"
        );
    }
    let result = done(&rewrap_file(
        &appliance,
        &file,
        &["--in-place", "--associated-data", &bound],
    ));
    assert_eq!(result["rewrapped"], 1);
    let new = fs::read_to_string(&file).unwrap();
    assert!(new.starts_with("vault:v3:"), "{new}");
    let path = format!("transit/decrypt/{KEY}");
    for (bound, status) in [(bound.as_str(), 200), ("", 400)] {
        let body = json!({ "ciphertext": new, "associated_data": bound });
        support::expect(&operator, "POST", &path, body, status).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ciphertexts_are_replaced_and_everything_around_them_stays() {
    let (appliance, old) = rotated(5).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.yaml");
    let text = |c: &[&str]| {
        format!(
            "a: {}\nb: {{\"x\":\"{}\",'y':'{}'}}\n\u{fc}\u{0}binary {}, and {}",
            c[0], c[1], c[2], c[3], c[4]
        )
    };
    let before = text(&old.iter().map(String::as_str).collect::<Vec<_>>());
    fs::write(&file, &before).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let link = folder.path().join("link.yaml");
    symlink(&file, &link).unwrap();

    let counted = done(&rewrap_file(&appliance, &file, &["--count"]));
    assert_eq!(counted["versions"], json!({ "1": 5 }));
    assert_eq!(fs::read_to_string(&file).unwrap(), before);

    let out = folder.path().join("out");
    let result = done(&rewrap_file(
        &appliance,
        &file,
        &["--out", out.to_str().unwrap()],
    ));
    assert_eq!(result["rewrapped"], 5);
    assert_eq!(fs::read_to_string(&file).unwrap(), before);

    let result = done(&rewrap_file(
        &appliance,
        &link,
        &["--in-place", "--batch", "2"],
    ));
    assert_eq!(
        result,
        json!({ "rewrapped": 5, "unchanged": 0, "refused": 0, "versions": { "2": 5 }, "latest_version": 2, "retired": false })
    );
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o640
    );
    let after = fs::read_to_string(&file).unwrap();
    let new: Vec<&str> = after
        .split(|c: char| !(c.is_ascii_alphanumeric() || ":+/=".contains(c)))
        .filter(|word| word.starts_with("vault:v2:"))
        .collect();
    check(&appliance, &new).await;
    assert_eq!(after, text(&new));
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        3,
        "nothing is left beside it"
    );

    // Nothing is to be done any more: the file is not even touched.
    let inode = fs::metadata(&file).unwrap().ino();
    let result = done(&rewrap_file(&appliance, &file, &["--in-place"]));
    assert_eq!(
        (&result["rewrapped"], &result["unchanged"]),
        (&json!(0), &json!(5))
    );
    assert_eq!(fs::metadata(&file).unwrap().ino(), inode);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_key_does_not_decrypt_stops_it_or_is_left_as_it_is() {
    let (appliance, old) = rotated(2).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("list");
    let before = format!("{}\n\nvault:v1:AAAA\n{}\n", old[0], old[1]);
    fs::write(&file, &before).unwrap();

    let why = failed(&rewrap_file(&appliance, &file, &["--in-place"]), 1);
    assert!(
        why.contains("line 3") && why.contains("--skip-foreign"),
        "{why}"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), before);

    let result = done(&rewrap_file(
        &appliance,
        &file,
        &["--in-place", "--skip-foreign"],
    ));
    assert_eq!(
        (&result["rewrapped"], &result["refused"]),
        (&json!(2), &json!(1))
    );
    let text = fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[2], "vault:v1:AAAA");
    check(&appliance, &[lines[0], lines[3]]).await;

    let why = failed(
        &appliance.cli([
            "key",
            "rewrap-file",
            "app-none",
            file.to_str().unwrap(),
            "--in-place",
        ]),
        1,
    );
    assert!(why.contains("there is no key app-none"), "{why}");
    failed(
        &rewrap_file(&appliance, &folder.path().join("none"), &["--in-place"]),
        2,
    );
}

/// Killed in the middle of a large file, the command leaves the file as it was, and the next one
/// goes on where it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_command_goes_on_where_it_was() {
    const PIECES: usize = 4;
    const EACH: usize = 150;
    let (appliance, old) = rotated(PIECES * EACH).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dump.sql");
    let filler = "-- nothing\n".repeat(100_000);
    let before: String = old
        .chunks(EACH)
        .map(|some| format!("{}\n{filler}", some.join("\n")))
        .collect();
    fs::write(&file, &before).unwrap();

    let mut command = Command::new(STRONGROOM)
        .args([
            "key",
            "rewrap-file",
            KEY,
            file.to_str().unwrap(),
            "--in-place",
            "--batch",
            "1",
        ])
        .env("STRONGROOM_ADDR", appliance.url())
        .env("STRONGROOM_CACERT", appliance.pki.ca())
        .env(
            "STRONGROOM_CLIENT_CERT",
            appliance.pki.certificate(Who::Operator),
        )
        .env("STRONGROOM_CLIENT_KEY", appliance.pki.key(Who::Operator))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let journal = folder.path().join("dump.sql.rewrap-journal");
    let start = Instant::now();
    while !journal.exists() {
        assert!(
            start.elapsed() < Duration::from_mins(1),
            "no journal was written"
        );
        assert!(
            command.try_wait().unwrap().is_none(),
            "it ended before it could be killed"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    command.kill().unwrap();
    command.wait().unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
    let asked_before = rewraps(&appliance).await;
    assert!(asked_before < PIECES * EACH);

    let result = done(&rewrap_file(&appliance, &file, &["--in-place"]));
    assert_eq!(result["rewrapped"], PIECES * EACH);
    let asked = rewraps(&appliance).await - asked_before;
    assert!(
        asked <= (PIECES - 1) * EACH,
        "it began again: {asked} ciphertexts were sent again"
    );
    let after = fs::read_to_string(&file).unwrap();
    let new: Vec<&str> = after
        .lines()
        .filter(|line| line.starts_with("vault:v2:"))
        .collect();
    check(&appliance, &new).await;
    assert_eq!(
        after.lines().filter(|line| *line == "-- nothing").count(),
        PIECES * 100_000
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// How many ciphertexts the appliance was asked to rewrap.
async fn rewraps(appliance: &Appliance) -> usize {
    let client = appliance.client(Who::Operator);
    let answer = client.send(
        "GET",
        "/v1/sys/metrics?format=prometheus",
        bytes::Bytes::new(),
    );
    let text = String::from_utf8(answer.await.unwrap().bytes().to_vec()).unwrap();
    text.lines()
        .filter(|line| line.starts_with("strongroom_batch_items_total") && line.contains("rewrap"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap())
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_file_of_another_time_is_not_used() {
    let (appliance, old) = rotated(1).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("list");
    fs::write(&file, &old[0]).unwrap();
    fs::write(folder.path().join("list.rewrap-partial"), "something else").unwrap();
    fs::write(folder.path().join("list.rewrap-journal"), "{\"read\": 5}").unwrap();
    done(&rewrap_file(&appliance, &file, &["--in-place"]));
    check(&appliance, &[&fs::read_to_string(&file).unwrap()]).await;
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_gone_through_and_its_versions_are_retired_after_a_second_look() {
    let (appliance, old) = rotated(3).await;
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("a/b");
    fs::create_dir_all(&deep).unwrap();
    fs::write(folder.path().join("one"), &old[0]).unwrap();
    fs::write(
        deep.join("two.json"),
        format!("[\"{}\",\"{}\"]", old[1], old[2]),
    )
    .unwrap();
    fs::write(deep.join("none"), "nothing in here").unwrap();
    fs::write(deep.join("foreign"), "vault:v1:AAAA").unwrap();

    let why = failed(&rewrap_dir(&appliance, folder.path(), &["--retire"]), 1);
    assert!(
        why.contains("1 of 4 files failed") && why.contains("foreign"),
        "{why}"
    );
    assert_eq!(min_decryption_version(&appliance).await, 1);
    let counted = done(&rewrap_dir(&appliance, folder.path(), &["--count"]));
    assert_eq!(counted["versions"], json!({ "1": 1, "2": 3 }));

    fs::remove_file(deep.join("foreign")).unwrap();
    rotate(&appliance).await;
    let result = done(&rewrap_dir(&appliance, folder.path(), &["--retire"]));
    assert_eq!(result["versions"], json!({ "3": 3 }));
    assert_eq!(result["retired"], true);
    assert_eq!(min_decryption_version(&appliance).await, 3);
    check(
        &appliance,
        &[&fs::read_to_string(folder.path().join("one")).unwrap()],
    )
    .await;
    let client = appliance.client(Who::Operator);
    let path = format!("transit/decrypt/{KEY}");
    support::expect(&client, "POST", &path, json!({ "ciphertext": old[0] }), 400).await;
}
