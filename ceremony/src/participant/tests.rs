#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::super::testing::{PASSPHRASE, key};
use super::*;

fn folder_with_key(name: &str) -> (tempfile::TempDir, std::path::PathBuf, Participant) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let key = KeyFile::generate(name, PASSPHRASE)
        .unwrap()
        .write(&path)
        .unwrap();
    let participant = key.participant().clone();
    (folder, path, participant)
}

fn load(path: &Path, passphrase: &str) -> Result<ParticipantKey, CeremonyError> {
    ParticipantKey::load(path, &mut |_| Ok(Zeroizing::new(passphrase.to_owned())))
}

#[test]
fn a_key_file_opens_with_its_passphrase_and_no_other() {
    let (_folder, path, participant) = folder_with_key("Alice Ames");
    let key = load(&path, PASSPHRASE).unwrap();
    assert_eq!(key.participant(), &participant);
    let digest = [7; 32];
    assert!(participant.verifies(&digest, &key.sign_digest(&digest).unwrap()));

    // 1 in 256 wrong passphrases leaves a padding that looks right; what is under it must not pass
    // either.
    for number in 0..300 {
        let error = load(&path, &format!("another one {number}")).unwrap_err();
        assert!(error.to_string().contains("does not open"), "{error}");
    }
}

#[test]
fn a_key_file_is_its_owners_and_overwrites_nothing() {
    let (_folder, path, _) = folder_with_key("Alice");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(
        text.matches("-----BEGIN ENCRYPTED PRIVATE KEY-----")
            .count(),
        2
    );
    assert!(
        KeyFile::generate("Alice", PASSPHRASE)
            .unwrap()
            .write(&path)
            .is_err()
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), text);

    // A public file in the way: no private key is left that nobody could use.
    fs::remove_file(&path).unwrap();
    assert!(
        KeyFile::generate("Alice", PASSPHRASE)
            .unwrap()
            .write(&path)
            .is_err()
    );
    assert!(!path.exists());
}

#[test]
fn a_short_passphrase_is_refused() {
    let error = KeyFile::generate("Alice", "eleven char").err().unwrap();
    assert!(matches!(error, CeremonyError::Passphrase(_)), "{error}");
    assert!(KeyFile::generate("Alice", "twelve chars").is_ok());
    // Characters count, not bytes.
    assert!(KeyFile::generate("Alice", "äöüäöü").is_err());
}

#[test]
fn a_public_file_of_another_is_noticed() {
    let (_folder, path, _) = folder_with_key("Alice");
    let (_other_folder, other, _) = folder_with_key("Alice");
    fs::copy(public_path(&other), public_path(&path)).unwrap();
    let error = load(&path, PASSPHRASE).unwrap_err().to_string();
    assert!(error.contains("not of one pair"), "{error}");
}

#[test]
fn what_is_no_key_file_is_refused_before_a_passphrase_is_asked_for() {
    let (_folder, path, _) = folder_with_key("Alice");
    let text = fs::read_to_string(&path).unwrap();
    let half = text
        .split_inclusive("KEY-----\n")
        .take(2)
        .collect::<String>();
    for broken in ["", "rubbish", &half, &format!("{text}{half}")] {
        fs::write(&path, broken).unwrap();
        let result = ParticipantKey::load(&path, &mut |_| panic!("asked"));
        assert!(matches!(result, Err(CeremonyError::Key(_))), "{broken}");
    }
}

#[test]
fn the_public_file_round_trips() {
    let (_folder, path, participant) = folder_with_key("Zoë O'Neil-Smith (deputy), 2nd");
    assert_eq!(Participant::load(&public_path(&path)).unwrap(), participant);
    let text = participant.to_toml();
    for (from, to) in [
        ("name =", "more = 1\nname ="),
        ("signing_key = \"M", "signing_key = \"N"),
        ("agreement_key = \"", "agreement_key = \" "),
    ] {
        fs::write(public_path(&path), text.replacen(from, to, 1)).unwrap();
        assert!(Participant::load(&public_path(&path)).is_err(), "{to}");
    }
}

#[test]
fn names_that_deceive_are_refused() {
    for name in [
        "",
        " Alice",
        "Alice ",
        "A\nB",
        "A\u{1b}[2JB",
        "A\u{202e}B",
        "<b>",
        "a/b",
        "x\u{0}",
        &"a".repeat(65),
    ] {
        assert!(check_name(name).is_err(), "{name:?}");
    }
    for name in ["A", "Çelik, D.", "李小龍", &"ä".repeat(64)] {
        assert!(check_name(name).is_ok(), "{name:?}");
    }
}

#[test]
fn one_key_for_both_purposes_is_refused() {
    let alice = key("Alice").participant().clone();
    let error = Participant::new("Alice", alice.signing_spki(), alice.signing_spki()).unwrap_err();
    assert!(error.to_string().contains("SP 800-57"), "{error}");
}

#[test]
fn a_key_that_signs_for_another_spoils_nothing() {
    struct Wrong(ParticipantKey);
    impl PrivateKeys for Wrong {
        fn sign_digest(&self, digest: &[u8; 32]) -> Result<[u8; 64], CeremonyError> {
            self.0.sign_digest(digest)
        }
        fn agree(&self, _: &PublicKey) -> Result<Zeroizing<[u8; 32]>, CeremonyError> {
            Ok(Zeroizing::new([0; 32]))
        }
    }
    let alice = key("Alice").participant().clone();
    let key = ParticipantKey::new(alice, Box::new(Wrong(key("Bob"))));
    assert!(matches!(
        key.sign_digest(&[1; 32]),
        Err(CeremonyError::Key(_))
    ));
}

#[test]
fn debug_tells_no_secret() {
    let (_folder, path, _) = folder_with_key("Alice");
    let text = format!("{:?}", load(&path, PASSPHRASE).unwrap());
    assert_eq!(text, "ParticipantKey { participant: \"Alice\", .. }");
}
