#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::sync::Barrier;
use std::thread;

use serde_json::json;
use tempfile::TempDir;

use super::super::CeremonyError;
use super::super::testing::{Room, lingering};
use super::*;

const BINARY: &str = "0000000000000000000000000000000000000000000000000000000000000000";

fn create(room: &Room, folder: &TempDir) -> Result<Transcript, CeremonyError> {
    create_in(folder.path(), &room.plan, &room.signatures())
}

fn create_in(
    folder: &Path,
    plan: &Plan,
    signatures: &[PlanSignature],
) -> Result<Transcript, CeremonyError> {
    Transcript::create(
        folder,
        &Opening {
            mode: Mode::Ceremony,
            kind: Kind::Birth,
            previous_sha256: None,
            ceremony_id: CeremonyId([9; 16]),
            plan,
            signatures,
            version: "0.1.0",
            binary_sha256: BINARY,
        },
    )
}

fn lines(folder: &TempDir) -> Vec<Value> {
    fs::read_to_string(path(folder.path()))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn it_goes_on_where_it_stopped() {
    let room = Room::new(2, 2);
    let folder = tempfile::tempdir().unwrap();
    let mut transcript = create(&room, &folder).unwrap();
    transcript
        .begin(Step::Opening, &["Custodian 1"], &json!({"a": 1}))
        .unwrap();
    transcript
        .done(Step::Opening, &["Custodian 1"], &json!({"b": 2}))
        .unwrap();
    transcript
        .begin(Step::SelfTest, &["Custodian 1"], &json!({"c": 3}))
        .unwrap();
    drop(transcript);

    let (mut transcript, history) = Transcript::resume(folder.path()).unwrap();
    assert_eq!(history.outputs(Step::Opening), Some(&json!({"b": 2})));
    assert_eq!(history.begun, Some((Step::SelfTest, json!({"c": 3}))));
    assert_eq!(history.next(), Some(Step::SelfTest));
    assert_eq!(
        (history.ceremony_id, history.plan.hash()),
        (CeremonyId([9; 16]), room.plan.hash())
    );
    assert!(history.torn.is_none() && !history.closed && !history.sealed);
    transcript
        .done(Step::SelfTest, &["Custodian 1"], &json!({}))
        .unwrap();
    drop(transcript);
    let (_, history) = Transcript::resume(folder.path()).unwrap();
    assert_eq!((history.begun, history.done.len()), (None, 2));
    assert_eq!(lines(&folder).len(), 5);
}

/// Whatever byte the power went at, what was acknowledged is there, and the rest is cut off and
/// noted.
#[test]
fn a_torn_line_is_cut_off_and_noted() {
    let room = Room::new(1, 1);
    let folder = tempfile::tempdir().unwrap();
    let mut transcript = create(&room, &folder).unwrap();
    transcript
        .begin(Step::Opening, &["Custodian 1"], &json!({}))
        .unwrap();
    drop(transcript);
    let whole = fs::read(path(folder.path())).unwrap();
    let mut next = create_next(&room, &whole);
    next.pop();
    for cut in [1, 2, 20, next.len() - 1, next.len()] {
        fs::write(path(folder.path()), [&whole, &next[..cut]].concat()).unwrap();
        let (transcript, history) = Transcript::resume(folder.path()).unwrap();
        drop(transcript);
        let hash = super::super::encoding::hex(&super::super::encoding::sha256(&next[..cut]));
        assert_eq!(history.torn, Some((cut, hash.clone())));
        assert_eq!(history.begun.map(|(step, _)| step), Some(Step::Opening));
        let all = lines(&folder);
        assert_eq!(all.len(), 3);
        assert_eq!(
            all[2]["data"],
            json!({"torn_bytes": cut, "torn_sha256": hash})
        );
        assert_eq!(all[2]["step"], "opening");
        // Once is enough.
        let (_, history) = Transcript::resume(folder.path()).unwrap();
        assert!(history.torn.is_none());
    }
}

/// The line that would have come next.
fn create_next(room: &Room, whole: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    drop(create(room, &folder).unwrap());
    fs::write(path(folder.path()), whole).unwrap();
    let (mut transcript, _) = Transcript::resume(folder.path()).unwrap();
    transcript
        .done(Step::Opening, &["Custodian 1"], &json!({"x": "y"}))
        .unwrap();
    fs::read(path(folder.path())).unwrap()[whole.len()..].to_vec()
}

#[test]
fn what_was_changed_is_not_gone_on_with() {
    let room = Room::new(2, 2);
    let folder = tempfile::tempdir().unwrap();
    let mut transcript = create(&room, &folder).unwrap();
    for step in [Step::Opening, Step::SelfTest] {
        transcript
            .begin(step, &["Custodian 1"], &json!({}))
            .unwrap();
        transcript.done(step, &["Custodian 1"], &json!({})).unwrap();
    }
    drop(transcript);
    let good = fs::read_to_string(path(folder.path())).unwrap();
    for (from, to) in [
        ("\"seq\":2", "\"seq\":3"),
        ("Custodian 1", "Custodian 9"),
        ("CEREMONY", "REHEARSAL"),
        ("\"outputs\":{}", "\"outputs\":{\"a\":1}"),
    ] {
        let bad = good.replacen(from, to, 1);
        fs::write(path(folder.path()), &bad).unwrap();
        let error = Transcript::resume(folder.path()).err().unwrap().to_string();
        assert!(error.contains("ceremony verify"), "{error}");
        assert_eq!(fs::read_to_string(path(folder.path())).unwrap(), bad);
    }
    fs::write(path(folder.path()), "").unwrap();
    assert!(Transcript::resume(folder.path()).is_err());
}

#[test]
fn one_process_writes_it_and_none_overwrites_it() {
    let room = Room::new(2, 2);
    let folder = tempfile::tempdir().unwrap();
    let transcript = create(&room, &folder).unwrap();
    assert!(
        Transcript::resume(folder.path())
            .err()
            .unwrap()
            .to_string()
            .contains("another process")
    );
    drop(transcript);
    // A copy of the descriptor that a child has is gone a moment later.
    let locked = fs::File::open(path(folder.path())).unwrap();
    strongroom_core::lock::take(&locked).unwrap();
    let mut child = lingering(&locked);
    drop(locked);
    drop(Transcript::resume(folder.path()).unwrap());
    child.wait().unwrap();
    let before = fs::read(path(folder.path())).unwrap();
    assert!(create(&room, &folder).is_err());
    assert_eq!(fs::read(path(folder.path())).unwrap(), before);
    // What a creation that was cut off left behind is not a transcript.
    let other = tempfile::tempdir().unwrap();
    fs::File::create(other.path().join("transcript.jsonl.new"))
        .unwrap()
        .write_all(b"{\"ty")
        .unwrap();
    assert!(Transcript::resume(other.path()).is_err());
    create(&room, &other).unwrap();
}

#[test]
fn of_two_that_begin_at_once_one_does() {
    let room = Room::new(2, 2);
    let signatures = room.signatures();
    for _ in 0..3 {
        let folder = tempfile::tempdir().unwrap();
        let together = Barrier::new(2);
        let (path, plan) = (folder.path(), &room.plan);
        let begin = || {
            together.wait();
            create_in(path, plan, &signatures)
        };
        let made = thread::scope(|scope| {
            let both = [scope.spawn(begin), scope.spawn(begin)];
            both.map(|one| one.join().unwrap())
        });
        assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 1);
        // What the one that began writes is what stands there.
        let mut one = made.into_iter().find_map(Result::ok).unwrap();
        one.begin(Step::Opening, &[], &json!({})).unwrap();
        assert_eq!(lines(&folder).len(), 2);
    }
}

#[test]
fn it_begins_in_a_file_of_its_own() {
    let room = Room::new(1, 1);
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = folder.path().join("elsewhere");
    let aside = folder.path().join("transcript.jsonl.new");
    fs::write(&elsewhere, "untouched").unwrap();
    symlink(&elsewhere, &aside).unwrap();
    assert!(create(&room, &folder).is_err());
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "untouched");
    fs::remove_file(&aside).unwrap();

    // What a kill left behind, or somebody made ready, is nobody else's to read.
    fs::write(&aside, "left").unwrap();
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o666)).unwrap();
    create(&room, &folder).unwrap();
    let made = fs::metadata(folder.path().join("transcript.jsonl")).unwrap();
    assert_eq!(made.permissions().mode() & 0o777, 0o600);
    assert_eq!(lines(&folder).len(), 1);
}

#[test]
fn it_is_signed_by_those_who_may_and_ends_with_the_seal() {
    use p256::ecdsa::SigningKey;
    use p256::ecdsa::signature::hazmat::PrehashSigner as _;
    use p256::pkcs8::EncodePublicKey as _;

    let room = Room::new(1, 1);
    let folder = tempfile::tempdir().unwrap();
    let mut transcript = create(&room, &folder).unwrap();
    assert!(transcript.signing_digest().is_err() && transcript.seal_digest().is_err());
    let hsm = SigningKey::from_slice(&[3; 32]).unwrap();
    let spki = hsm.verifying_key().to_public_key_der().unwrap();
    let summary = super::super::record::Summary {
        token: super::super::record::TokenRecord {
            label: "l".into(),
            serial: "s".into(),
            manufacturer: "m".into(),
            model: "m".into(),
        },
        keys: Vec::new(),
        store_id: "0".repeat(32),
    };
    transcript.close(&summary, spki.as_bytes()).unwrap();
    assert!(transcript.begin(Step::Opening, &[], &json!({})).is_err());
    assert!(transcript.close(&summary, spki.as_bytes()).is_err());
    let digest = transcript.signing_digest().unwrap();
    let before = lines(&folder).len();
    // Somebody else's signature is not even written.
    let (role, person) = room.plan.participants().next().unwrap();
    let wrong = room.keys[1].sign_digest(&digest).unwrap();
    assert!(transcript.sign(role, person, &wrong).is_err());
    assert_eq!(lines(&folder).len(), before);
    for ((role, person), key) in room.plan.participants().zip(&room.keys) {
        transcript
            .sign(role, person, &key.sign_digest(&digest).unwrap())
            .unwrap();
    }
    // Whichever s the HSM chose, the smaller is written.
    let digest = transcript.seal_digest().unwrap();
    let signature: p256::ecdsa::Signature = hsm.sign_prehash(&digest).unwrap();
    let (r, s) = signature.split_scalars();
    let high = [
        signature,
        p256::ecdsa::Signature::from_scalars(r, -s).unwrap(),
    ]
    .into_iter()
    .find(|signature| signature.normalize_s() != *signature)
    .unwrap();
    transcript.seal(&high.to_bytes().into()).unwrap();
    let last = lines(&folder).pop().unwrap();
    assert_eq!(
        last["signature"],
        super::super::encoding::base64(&high.normalize_s().to_bytes())
    );
    assert!(transcript.note(Step::Closing, "x", &Value::Null).is_err());
    assert!(transcript.seal_digest().is_err() && transcript.sign(role, person, &wrong).is_err());
}
