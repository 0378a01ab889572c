//! `tests/secrets` finds a key that somebody left lying about, and lets pass those of tests.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A repository of its own, with a first commit.
struct Repository(tempfile::TempDir);

impl Repository {
    fn new() -> Self {
        let own = Self(tempfile::tempdir().unwrap());
        own.git(&["init", "--quiet"]);
        own.write("README.md", "Nothing to see here.\n");
        own.commit();
        own
    }

    fn write(&self, file: &str, text: &str) {
        let file = self.path(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    fn commit(&self) {
        self.git(&["add", "--all"]);
        self.git(&[
            "-c",
            "user.name=test",
            "-c",
            "user.email=test@example.invalid",
            "commit",
            "--quiet",
            "--message=test",
        ]);
    }

    fn git(&self, arguments: &[&str]) {
        let mut git = Command::new("git");
        let output = git.args(arguments).current_dir(&self.0).output().unwrap();
        assert!(output.status.success(), "{}", both(&output));
    }

    fn shell(&self, script: &str) {
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", script]);
        let output = shell.current_dir(&self.0).output().unwrap();
        assert!(output.status.success(), "{}", both(&output));
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    /// What `tests/secrets` says; `None`, counted as skipped, where there is no gitleaks.
    fn look(&self) -> Option<Output> {
        let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/secrets"))
            .arg(self.0.path())
            .env_remove("STRONGROOM_IMAGE")
            .output()
            .unwrap();
        if output.status.code() == Some(77) {
            support::skip("the search for secrets", both(&output).trim());
            return None;
        }
        Some(output)
    }

    /// `None` if it can't be looked through here.
    fn finds(&self, place: &str, key: &str) -> Option<()> {
        let output = self.look()?;
        let told = both(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains(&format!("a secret in {place}")), "{told}");
        let line = key.lines().nth(1).unwrap();
        assert!(!told.contains(line), "it tells the key: {told}");
        Some(())
    }
}

fn key() -> String {
    rcgen::KeyPair::generate().unwrap().serialize_pem()
}

#[test]
fn a_key_is_found_before_it_is_committed_and_long_after_it_was_removed() {
    let repository = Repository::new();
    let Some(clean) = repository.look() else {
        return;
    };
    assert!(clean.status.success(), "{}", both(&clean));

    let key = key();
    repository.write("deploy/notes.txt", &key);
    repository.finds("the repository's files", &key).unwrap();
    repository.commit();
    fs::remove_file(repository.path("deploy/notes.txt")).unwrap();
    repository.commit();
    repository.finds("the repository's history", &key).unwrap();
}

#[test]
fn a_tests_key_passes_in_its_place_and_nowhere_else_and_another_secret_nowhere() {
    let repository = Repository::new();
    let key = key();
    repository.write("fuzz/seeds/pem_files/all", &key);
    let Some(allowed) = repository.look() else {
        return;
    };
    assert!(allowed.status.success(), "{}", both(&allowed));
    repository.write("src/seeds/all", &key);
    repository.finds("the repository's files", &key).unwrap();
    fs::remove_file(repository.path("src/seeds/all")).unwrap();

    // Of the form that Vault's tokens have.
    let token = format!(
        "hvs.{}",
        support::base64(key.as_bytes()).replace(['+', '/', '='], "x")
    );
    let text = format!("\nVAULT_TOKEN={}\n", &token[..99]);
    repository.write("fuzz/seeds/pem_files/all", &text);
    repository.finds("the repository's files", &text).unwrap();
}

#[test]
fn a_key_in_the_images_root_or_its_initrd_is_found() {
    let missing = ["mkfs.erofs", "fsck.erofs", "zstd", "cpio", "objcopy"]
        .into_iter()
        .find(|program| !found(program));
    if let Some(program) = missing {
        return support::skip("the search in an image", &format!("{program} is missing"));
    }
    let key = key();
    let in_root = Repository::new();
    in_root.write(".gitignore", "image/\n");
    in_root.commit();
    in_root.write("image/root/etc/strongroom/pcr.key", &key);
    in_root.write("image/out/unrelated", "");
    in_root
        .shell("mkfs.erofs --quiet image/out/strongroom_0.root.raw image/root && rm -r image/root");
    if in_root.finds("the image's root", &key).is_none() {
        return;
    }

    let in_initrd = Repository::new();
    in_initrd.write(".gitignore", "image/\n");
    in_initrd.commit();
    in_initrd.write("image/initrd/etc/db.key", &key);
    in_initrd.write("image/out/unrelated", "");
    in_initrd.shell(
        "(cd image/initrd && find . | cpio --quiet -o -H newc) | zstd -q >image/cpio.zst && rm -r image/initrd \
         && objcopy --add-section .initrd=image/cpio.zst --set-section-flags .initrd=readonly,data \
            /bin/true image/out/strongroom_0.efi",
    );
    in_initrd.finds("the image's initrd", &key).unwrap();
}

/// What a program told, on both of its outputs.
fn both(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

fn found(program: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap())
        .any(|folder| folder.join(program).exists())
}
