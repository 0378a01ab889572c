//! The rules of docs/transcript-format.md, one by one: each has at least one transcript that
//! everyone signed and the token sealed, and that breaks this rule alone. Both programs refuse it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use strongroom_ceremony::record::KeyRecord;
use strongroom_ceremony::{Kind, Mode, Step};
use strongroom_hsm::ceremony::expected::{SIGNING_LABEL, signing_keys};

use super::forge::Forgery;
use super::people::{Room, key, spki};
use super::scene::{SERIALS, Scene, rsa, token, told};
use super::{Cases, both_say, both_say_after};

/// Number of the rule, what is wrong, and how.
type Breach = (u32, &'static str, fn(&mut Forgery));

fn record(label: &str, public: Option<&[u8]>) -> Value {
    json!(KeyRecord::new(label, label, public))
}

fn with_label<'a>(list: &'a mut Value, label: &str) -> &'a mut Value {
    let all = list.as_array_mut().unwrap().iter_mut();
    all.into_iter().find(|one| one["label"] == label).unwrap()
}

/// The same key in step `keys`, in the summary, and in what the token said of it.
fn replace(forgery: &mut Forgery, label: &str, public: Option<&[u8]>) {
    let new = record(label, public);
    *with_label(&mut forgery.outputs(Step::Keys)["keys"], label) = new.clone();
    *with_label(&mut forgery.summary()["keys"], label) = new.clone();
    for object in objects(forgery, Step::Evidence) {
        if object["label"] == label && object["spki"].is_string() {
            object["spki"] = new["spki"].clone();
        }
    }
}

fn objects(forgery: &mut Forgery, step: Step) -> &mut Vec<Value> {
    forgery.outputs(step)["objects"].as_array_mut().unwrap()
}

fn push(forgery: &mut Forgery, step: Step, class: &str, label: &str) {
    let more = json!({"name": "x", "label": label, "class": class, "attributes": []});
    objects(forgery, step).push(more);
}

/// A signing key as the token tells of it, the first, second or third of the document's table.
fn push_signing(forgery: &mut Forgery, step: Step, kind: usize, public: Option<&[u8]>) {
    let record = KeyRecord::new(SIGNING_LABEL, SIGNING_LABEL, public);
    let object = told(&signing_keys()[kind], &record);
    objects(forgery, step).push(object);
}

const P256: usize = 0;
const RSA: usize = 1;
const ED25519: usize = 2;

/// `SubjectPublicKeyInfo` of an Ed25519 key.
fn ed25519(byte: u8) -> Vec<u8> {
    let mut spki = vec![
        0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
    ];
    spki.extend([byte; 32]);
    spki
}

/// The public half of a key in the summary.
fn public_of(forgery: &mut Forgery, label: &str) -> Vec<u8> {
    let key = with_label(&mut forgery.summary()["keys"], label)["spki"].clone();
    BASE64_STANDARD.decode(key.as_str().unwrap()).unwrap()
}

fn remove(forgery: &mut Forgery, step: Step, label: &str, class: &str) {
    let before = objects(forgery, step).len();
    objects(forgery, step).retain(|object| object["label"] != label || object["class"] != class);
    assert_eq!(objects(forgery, step).len() + 1, before);
}

fn set(forgery: &mut Forgery, step: Step, member: &str, value: impl Into<Value>) {
    forgery.outputs(step)[member] = value.into();
}

fn known_answers(forgery: &mut Forgery) -> &mut Vec<Value> {
    let known = &mut forgery.outputs(Step::SelfTest)["known_answers"];
    known.as_array_mut().unwrap()
}

const BIRTH: &[Breach] = &[
    (1, "a key that the plan has not", |f| {
        let more = record("strongroom-memory-master", Some(&rsa("more")));
        f.outputs(Step::Keys)["keys"]
            .as_array_mut()
            .unwrap()
            .push(more.clone());
        f.summary()["keys"].as_array_mut().unwrap().push(more);
    }),
    (1, "a key of no name of ours", |f| {
        let more = record("strongroom-other", None);
        f.outputs(Step::Keys)["keys"]
            .as_array_mut()
            .unwrap()
            .push(more.clone());
        f.summary()["keys"].as_array_mut().unwrap().push(more);
    }),
    (1, "the plan's transfer key is not there", |f| {
        let without = |keys: &mut Value| {
            keys.as_array_mut()
                .unwrap()
                .retain(|key| key["label"] != "strongroom-transfer");
        };
        without(&mut f.outputs(Step::Keys)["keys"]);
        without(&mut f.summary()["keys"]);
        objects(f, Step::Evidence).retain(|object| object["label"] != "strongroom-transfer");
    }),
    (1, "the store key twice", |f| {
        let more = record("strongroom-store", None);
        f.outputs(Step::Keys)["keys"]
            .as_array_mut()
            .unwrap()
            .push(more.clone());
        f.summary()["keys"].as_array_mut().unwrap().push(more);
    }),
    (2, "a master key on P-256", |f| {
        replace(f, "strongroom-master", Some(&spki(&key(90))));
    }),
    (2, "an audit key of RSA", |f| {
        replace(f, "strongroom-audit", Some(&rsa("audit")));
    }),
    (2, "a master key of 2048 bits", |f| {
        let mut short = rsa("short");
        // The modulus' first half goes, and with it what the lengths said.
        short.drain(33..33 + 256);
        replace(f, "strongroom-master", Some(&short));
    }),
    (2, "a master key with the exponent 3", |f| {
        let mut low = rsa("low");
        let end = low.len();
        low[end - 3..].copy_from_slice(&[0, 0, 3]);
        replace(f, "strongroom-master", Some(&low));
    }),
    (2, "a store key with a public half", |f| {
        *with_label(&mut f.outputs(Step::Keys)["keys"], "strongroom-store") =
            record("strongroom-store", Some(&rsa("store")));
        *with_label(&mut f.summary()["keys"], "strongroom-store") =
            record("strongroom-store", Some(&rsa("store")));
    }),
    (3, "one key in two parts", |f| {
        replace(f, "strongroom-master", Some(&rsa("one")));
        replace(f, "strongroom-transfer", Some(&rsa("one")));
    }),
    (4, "the audit key is a custodian's", |f| audit_key(f, 1)),
    (5, "another of the keys seals", |f| {
        // Whatever it is, it is not the one that the appliance signs its log with.
        f.close()["audit_key"] = BASE64_STANDARD.encode(rsa("strongroom-master 0")).into();
        f.outputs(Step::Closing)["audit_key"] =
            BASE64_STANDARD.encode(rsa("strongroom-master 0")).into();
    }),
    (6, "a private half is not there", |f| {
        remove(f, Step::Evidence, "strongroom-master", "CKO_PRIVATE_KEY");
    }),
    (6, "a public half is not there", |f| {
        remove(f, Step::Evidence, "strongroom-wrapping", "CKO_PUBLIC_KEY");
    }),
    (6, "the store key is not there", |f| {
        remove(f, Step::Evidence, "strongroom-store", "CKO_SECRET_KEY");
    }),
    (6, "a half twice", |f| {
        let again = objects(f, Step::Evidence)[0].clone();
        objects(f, Step::Evidence).push(again);
    }),
    (7, "a key that can be taken out", |f| {
        let attributes = objects(f, Step::Evidence)[0]["attributes"]
            .as_array_mut()
            .unwrap();
        let one = attributes
            .iter_mut()
            .find(|one| one[0] == "CKA_EXTRACTABLE")
            .unwrap();
        one[1] = "true".into();
    }),
    (8, "a private half of another key", |f| {
        objects(f, Step::Evidence)[0]["spki"] = BASE64_STANDARD.encode(rsa("other")).into();
    }),
    (8, "a private half of no numbers", |f| {
        objects(f, Step::Evidence)[0]
            .as_object_mut()
            .unwrap()
            .remove("spki");
    }),
    (8, "a secret key with public numbers", |f| {
        let spki = BASE64_STANDARD.encode(rsa("other"));
        with_label(
            &mut f.outputs(Step::Evidence)["objects"],
            "strongroom-store",
        )["spki"] = spki.into();
    }),
    (9, "a secret key of nobody's", |f| {
        push(f, Step::Evidence, "CKO_SECRET_KEY", "spare");
    }),
    (9, "a private key of nobody's", |f| {
        push(f, Step::Evidence, "CKO_PRIVATE_KEY", "strongroom-extra");
    }),
    (9, "a public key of nobody's", |f| {
        push(
            f,
            Step::Evidence,
            "CKO_PUBLIC_KEY",
            "strongroom-master-trusted",
        );
    }),
    (9, "a secret half of a pair", |f| {
        push(f, Step::Evidence, "CKO_SECRET_KEY", "strongroom-master");
    }),
    (9, "an object of no class", |f| {
        push(f, Step::Evidence, "no class", "");
    }),
    (9, "a signing key at an initial ceremony", |f| {
        push(f, Step::Evidence, "CKO_PRIVATE_KEY", "strongroom-signing");
    }),
    (9, "data with a public key", |f| {
        push(f, Step::Evidence, "CKO_DATA", "strongroom-other");
        objects(f, Step::Evidence).last_mut().unwrap()["spki"] =
            BASE64_STANDARD.encode(rsa("x")).into();
    }),
    (9, "data that says it is a key", |f| {
        push(f, Step::Evidence, "CKO_DATA", "strongroom-other");
        objects(f, Step::Evidence).last_mut().unwrap()["attributes"] =
            json!([["CKA_CLASS", "CKO_SECRET_KEY"]]);
    }),
    (10, "no epoch object", |f| {
        remove(f, Step::Evidence, "strongroom-epoch", "CKO_DATA");
    }),
    (11, "another program was read aloud", |f| {
        set(f, Step::Opening, "binary_sha256", "0".repeat(64));
    }),
    (11, "another plan was read aloud", |f| {
        set(f, Step::Opening, "plan_sha256", "0".repeat(64));
    }),
    (11, "somebody was not there", |f| {
        f.outputs(Step::Opening)["present"]
            .as_array_mut()
            .unwrap()
            .pop();
    }),
    (12, "no known answer was right", |f| {
        set(f, Step::SelfTest, "known_answers", json!([]));
    }),
    (12, "a self-test without an answer", |f| {
        set(f, Step::SelfTest, "known_answers", "failed");
    }),
    (12, "a known answer of no name", |f| {
        known_answers(f).push("".into());
    }),
    (12, "the first known answer left out", |f| {
        known_answers(f).remove(0);
    }),
    (12, "the last known answer left out", |f| {
        known_answers(f).pop();
    }),
    (12, "a known answer under another name", |f| {
        known_answers(f)[2] = "AES-128-GCM, the GCM specification's case 16".into();
    }),
    (13, "a user PIN that is not set", |f| {
        f.outputs(Step::Token)["flags"]["user_pin_set"] = false.into();
    }),
    (13, "a token of no state", |f| {
        set(f, Step::Token, "flags", Value::Null);
    }),
    (14, "another label", |f| {
        for step in [Step::Token, Step::Evidence] {
            f.outputs(step)["token"]["label"] = "other".into();
        }
        f.summary()["token"]["label"] = "other".into();
    }),
    (14, "another serial number than planned", |f| {
        for step in [Step::Token, Step::Evidence] {
            f.outputs(step)["token"]["serial"] = "other".into();
        }
        f.summary()["token"]["serial"] = "other".into();
    }),
    (15, "self-tests of the token that failed", |f| {
        set(f, Step::Evidence, "self_tests", "failed");
    }),
    (15, "a token that has no transfer key", |f| {
        f.outputs(Step::Evidence)["profile"]["transfer"] = false.into();
    }),
    (15, "a token with a memory master key", |f| {
        f.outputs(Step::Evidence)["profile"]["memory_master"] = true.into();
    }),
    (16, "a store that was used", |f| {
        set(f, Step::Store, "epoch", 2);
    }),
    (16, "no audit log", |f| {
        set(f, Step::Store, "audit_log_header_sha256", "");
    }),
    (18, "a TLS key that is not a key", |f| {
        set(f, Step::Identity, "spki", "AAAA");
    }),
    (18, "the TLS key is the audit key", |f| {
        let audit = spki(&key(50));
        set(f, Step::Identity, "spki", BASE64_STANDARD.encode(&audit));
        set(
            f,
            Step::Identity,
            "spki_sha256",
            super::forge::hex(&<sha2::Sha256 as sha2::Digest>::digest(&audit)),
        );
    }),
    (18, "the TLS key is the auditor's", |f| {
        let own = spki(&key(5));
        set(f, Step::Identity, "spki", BASE64_STANDARD.encode(&own));
        set(
            f,
            Step::Identity,
            "spki_sha256",
            super::forge::hex(&<sha2::Sha256 as sha2::Digest>::digest(&own)),
        );
    }),
    (18, "another hash of the TLS key", |f| {
        set(f, Step::Identity, "spki_sha256", "0".repeat(64));
    }),
    (18, "no configuration", |f| {
        set(f, Step::Identity, "configuration_sha256", Value::Null);
    }),
    (19, "a seal that failed", |f| {
        set(f, Step::Trial, "sealed", false);
    }),
    (19, "an unseal that failed", |f| {
        set(f, Step::Trial, "unsealed", false);
    }),
    (19, "an altered ciphertext that was taken", |f| {
        set(f, Step::Trial, "altered_refused", false);
    }),
    (19, "an unseal that says failed", |f| {
        set(f, Step::Trial, "unsealed", "failed");
    }),
    (19, "a trial that kept its key", |f| {
        set(f, Step::Trial, "kept", "the key");
    }),
    (19, "a trial of another master key", |f| {
        set(f, Step::Trial, "master_fingerprint", "0".repeat(32));
    }),
    (19, "no trial", |f| *f.outputs(Step::Trial) = json!({})),
    (20, "a PIN kept in another way", |f| {
        set(f, Step::RuntimePin, "method", "systemd-creds");
    }),
    (26, "another audit key at the closing", |f| {
        set(f, Step::Closing, "audit_key", "AAAA");
    }),
    (27, "another threshold", |f| {
        set(f, Step::Pins, "threshold", 1);
    }),
    (27, "a commitment twice", |f| {
        let commitments = f.outputs(Step::Pins)["commitments"].as_array_mut().unwrap();
        commitments[1]["so"] = commitments[0]["so"].clone();
    }),
    (27, "one commitment for both PINs", |f| {
        let commitments = f.outputs(Step::Pins)["commitments"].as_array_mut().unwrap();
        commitments[1]["so"] = commitments[1]["user"].clone();
    }),
    (27, "another index", |f| {
        f.outputs(Step::Pins)["commitments"][1]["index"] = 1.into();
    }),
    (27, "a custodian of another plan", |f| {
        f.outputs(Step::Pins)["commitments"][1]["custodian"] = "0".repeat(64).into();
    }),
    (
        42,
        "an initial ceremony on a token that knew of a ceremony",
        |f| {
            set(f, Step::Closing, "register", "0".repeat(64));
        },
    ),
    (
        42,
        "an initial ceremony that does not say what the token knew",
        |f| {
            f.outputs(Step::Closing)
                .as_object_mut()
                .unwrap()
                .remove("register");
        },
    ),
    (28, "nobody acts", |f| {
        f.lines[1].1["actor"] = json!([]);
    }),
    (28, "nobody has done it", |f| {
        let mut lines = f.lines.iter_mut();
        let (_, done) = lines.find(|(kind, _)| kind.as_str() == "done").unwrap();
        done["actor"] = json!([]);
    }),
    (28, "a stranger acts", |f| {
        f.lines[1].1["actor"] = json!(["Mallory"]);
    }),
];

/// Another audit key, whose private half is that number's.
fn audit_key(forgery: &mut Forgery, number: u8) {
    let other = spki(&key(number));
    replace(forgery, "strongroom-audit", Some(&other));
    forgery.close()["audit_key"] = BASE64_STANDARD.encode(&other).into();
    forgery.outputs(Step::Closing)["audit_key"] = BASE64_STANDARD.encode(&other).into();
    forgery.sealer = key(number);
}

const BACKUP: &[Breach] = &[
    (42, "the token knew another ceremony as its last", |f| {
        set(f, Step::Closing, "register", "0".repeat(64));
    }),
    (42, "the token knew of no ceremony", |f| {
        set(f, Step::Closing, "register", Value::Null);
    }),
    (42, "what the token knew is not told", |f| {
        f.outputs(Step::Closing)
            .as_object_mut()
            .unwrap()
            .remove("register");
    }),
    (11, "a program without a hash", |f| {
        f.open()["software"]["binary_sha256"] = "failed".into();
    }),
    (11, "no program was read aloud", |f| {
        set(f, Step::Opening, "binary_sha256", Value::Null);
    }),
    (27, "a share of the transport key twice", |f| {
        let commitments = f.outputs(Step::Transport)["commitments"]
            .as_array_mut()
            .unwrap();
        commitments[2]["user"] = commitments[0]["user"].clone();
    }),
    (29, "the ceremony id of the initial ceremony", |f| {
        f.id = super::people::ID;
        f.open()["ceremony_id"] = super::people::ID.to_string().into();
    }),
    (36, "another token at work", |f| {
        set(f, Step::Opening, "token_serial", "other");
    }),
    (36, "another kind before", |f| {
        set(f, Step::Opening, "previous_kind", "restore");
    }),
    (38, "a backup without the store key", |f| {
        let keys = f.outputs(Step::Export)["keys"].as_array_mut().unwrap();
        keys.retain(|key| key["label"] != "strongroom-store");
    }),
    (38, "a backup of the audit key", |f| {
        let audit = f.summary()["keys"][2].clone();
        f.outputs(Step::Export)["keys"]
            .as_array_mut()
            .unwrap()
            .push(audit);
    }),
    (40, "other shares in force", |f| {
        f.outputs(Step::Opening)["shares"]["commitments"][0]["so"] = "0".repeat(64).into();
    }),
    (41, "too few were present", |f| {
        f.outputs(Step::Opening)["present"]
            .as_array_mut()
            .unwrap()
            .drain(0..2);
        f.signers.drain(0..2);
    }),
];

/// Another audit key on the second token, whose private half is that number's.
fn audit_key_of_copy(f: &mut Forgery, number: u8) {
    let label = "strongroom-audit";
    let other = record(label, Some(&spki(&key(number))));
    *with_label(&mut f.outputs(Step::Copy)["keys"], label) = other.clone();
    for object in objects(f, Step::Copy) {
        if object["label"] == label && object["spki"].is_string() {
            object["spki"] = other["spki"].clone();
        }
    }
    set(f, Step::Copy, "audit_key", other["spki"].clone());
}

const ADD_TOKEN: &[Breach] = &[
    (1, "a copy with a key more", |f| {
        let more = record("strongroom-other", None);
        f.outputs(Step::Copy)["keys"]
            .as_array_mut()
            .unwrap()
            .push(more);
    }),
    (6, "a copy without a private half", |f| {
        remove(f, Step::Copy, "strongroom-master", "CKO_PRIVATE_KEY");
    }),
    (9, "a key of nobody's beside the copy", |f| {
        push(f, Step::Copy, "CKO_SECRET_KEY", "spare");
    }),
    (10, "a copy without an epoch", |f| {
        remove(f, Step::Copy, "strongroom-epoch", "CKO_DATA");
    }),
    (13, "a second token without a PIN", |f| {
        f.outputs(Step::SecondToken)["flags"]["user_pin_set"] = false.into();
    }),
    (30, "the second token is the first", |f| {
        for step in [Step::SecondToken, Step::Copy] {
            f.outputs(step)["token"]["serial"] = SERIALS[0].into();
        }
    }),
    (31, "the copy's audit key is the first token's", |f| {
        audit_key_of_copy(f, 50);
    }),
    (31, "the copy's audit key is the TLS key", |f| {
        audit_key_of_copy(f, 80);
    }),
    (4, "the copy's audit key is a custodian's", |f| {
        audit_key_of_copy(f, 1);
    }),
    (39, "a copy on another token", |f| {
        f.outputs(Step::Copy)["token"]["serial"] = "other".into();
    }),
    (39, "a copy of another master key", |f| {
        let label = "strongroom-master";
        let other = record(label, Some(&rsa("other")));
        *with_label(&mut f.outputs(Step::Copy)["keys"], label) = other.clone();
        for object in objects(f, Step::Copy) {
            if object["label"] == label {
                object["spki"] = other["spki"].clone();
            }
        }
    }),
    (39, "a copy that another key signs for", |f| {
        set(f, Step::Copy, "audit_key", Scene::audit_key_of(0));
    }),
];

const RESTORE: &[Breach] = &[
    (42, "a restored token that knew of a ceremony", |f| {
        set(f, Step::Closing, "register", "0".repeat(64));
    }),
    (17, "an epoch that goes back", |f| {
        set(f, Step::Store, "epoch", 7);
    }),
    (17, "an epoch that is not a number", |f| {
        set(f, Step::Store, "store_epoch", "7");
    }),
    (19, "a trial that failed", |f| {
        set(f, Step::Trial, "unsealed", false);
    }),
    (29, "the ceremony id of the initial ceremony", |f| {
        f.id = super::people::ID;
        f.open()["ceremony_id"] = super::people::ID.to_string().into();
    }),
    (30, "the token that was lost", |f| {
        for step in [Step::Token, Step::Evidence] {
            f.outputs(step)["token"]["serial"] = SERIALS[0].into();
        }
        f.summary()["token"]["serial"] = SERIALS[0].into();
    }),
    (31, "the audit key of the token that was lost", |f| {
        audit_key_of_before(f);
    }),
    (31, "the TLS key as the audit key", |f| {
        let tls = BASE64_STANDARD.encode(spki(&key(80)));
        audit_key_of(f, 80, tls);
    }),
    (31, "the import key of the token that was lost", |f| {
        replace(
            f,
            "strongroom-wrapping",
            Some(&rsa("strongroom-wrapping 0")),
        );
    }),
    (32, "the shares of the initial ceremony again", |f| {
        let shares = f.outputs(Step::Opening)["shares"]["commitments"].clone();
        set(f, Step::Pins, "commitments", shares);
    }),
    (33, "a backup that nobody made", |f| {
        set(f, Step::Keys, "backup_sha256", "0".repeat(64));
    }),
    (37, "another old audit key", |f| {
        set(f, Step::Keys, "old_audit_key", Scene::audit_key_of(2));
    }),
    (37, "another new audit key", |f| {
        set(f, Step::Keys, "new_audit_key", Scene::audit_key_of(0));
    }),
];

fn audit_key_of_before(f: &mut Forgery) {
    audit_key_of(f, 50, Scene::audit_key_of(0));
}

fn audit_key_of(f: &mut Forgery, number: u8, told: String) {
    audit_key(f, number);
    set(f, Step::Keys, "new_audit_key", told);
}

const ROTATE: &[Breach] = &[
    (1, "a rotation without a transfer key", |f| {
        for keys in [Step::Successor, Step::Keys]
            .map(|step| f.outputs(step)["keys"].as_array().unwrap().clone())
        {
            assert!(
                keys.iter()
                    .any(|key| key["label"] == "strongroom-transfer-2")
            );
        }
        for step in [Step::Successor, Step::Keys] {
            let keys = f.outputs(step)["keys"].as_array_mut().unwrap();
            keys.retain(|key| key["label"] != "strongroom-transfer-2");
        }
        f.summary()["keys"]
            .as_array_mut()
            .unwrap()
            .retain(|key| key["label"] != "strongroom-transfer-2");
        for step in [Step::Successor, Step::Evidence] {
            objects(f, step).retain(|object| object["label"] != "strongroom-transfer-2");
        }
    }),
    (9, "the old master key is still there", |f| {
        push(f, Step::Evidence, "CKO_PRIVATE_KEY", "strongroom-master");
    }),
    (9, "a mark was left", |f| {
        push(
            f,
            Step::Evidence,
            "CKO_PUBLIC_KEY",
            "strongroom-master-2-trusted",
        );
    }),
    (9, "a signing key that can be taken out", |f| {
        let attributes = json!([["CKA_EXTRACTABLE", "true"]]);
        push(f, Step::Evidence, "CKO_PRIVATE_KEY", "strongroom-signing");
        objects(f, Step::Evidence).last_mut().unwrap()["attributes"] = attributes;
    }),
    (9, "a signing key that is the audit key", |f| {
        let audit = public_of(f, "strongroom-audit");
        push_signing(f, Step::Evidence, P256, Some(&audit));
    }),
    (9, "a signing key that is the new master key", |f| {
        let master = public_of(f, "strongroom-master-2");
        push_signing(f, Step::Evidence, RSA, Some(&master));
    }),
    (9, "a signing key that is the master key of before", |f| {
        push_signing(f, Step::Evidence, RSA, Some(&rsa("strongroom-master 0")));
    }),
    (9, "a signing key that is somebody's", |f| {
        push_signing(f, Step::Evidence, P256, Some(&spki(&key(1))));
    }),
    (9, "a signing key that is the appliance's TLS key", |f| {
        push_signing(f, Step::Evidence, P256, Some(&spki(&key(80))));
    }),
    (9, "two signing keys that are one", |f| {
        for _ in 0..2 {
            push_signing(f, Step::Evidence, ED25519, Some(&ed25519(7)));
        }
    }),
    (9, "a signing key with the numbers of another kind", |f| {
        push_signing(f, Step::Evidence, ED25519, Some(&spki(&key(111))));
    }),
    (9, "a signing key on P-256 with RSA's numbers", |f| {
        push_signing(f, Step::Evidence, P256, Some(&rsa("signing")));
    }),
    (9, "an RSA signing key with numbers on P-256", |f| {
        push_signing(f, Step::Evidence, RSA, Some(&spki(&key(111))));
    }),
    (9, "an RSA signing key without numbers", |f| {
        push_signing(f, Step::Evidence, RSA, None);
    }),
    (9, "a signing key whose numbers end too soon", |f| {
        push_signing(f, Step::Evidence, ED25519, Some(&ed25519(7)[..43]));
    }),
    (9, "the public half of a signing key", |f| {
        push_signing(f, Step::Evidence, P256, Some(&spki(&key(111))));
        objects(f, Step::Evidence).last_mut().unwrap()["class"] = "CKO_PUBLIC_KEY".into();
    }),
    (15, "self-tests of the token that failed", |f| {
        set(f, Step::Evidence, "self_tests", "failed");
    }),
    (21, "another generation in force", |f| {
        set(f, Step::Trust, "in_force", 1);
    }),
    (21, "marked by another", |f| {
        set(f, Step::Trust, "marked_by", "Mallory");
    }),
    (22, "not every key was moved", |f| {
        set(f, Step::Move, "moved", 2);
    }),
    (22, "what was sealed before does not open", |f| {
        set(f, Step::Move, "trial", "failed");
    }),
    (22, "moved by nobody", |f| set(f, Step::Move, "by", "")),
    (23, "another generation was left", |f| {
        set(f, Step::Retire, "generation", 1);
    }),
    (23, "something was destroyed that is no object", |f| {
        set(f, Step::Retire, "destroyed", json!(["failed"]));
    }),
    (31, "the old master key under another label", |f| {
        let old = rsa("strongroom-master 0");
        let label = "strongroom-master-2";
        replace(f, label, Some(&old));
        let new = record(label, Some(&old));
        *with_label(&mut f.outputs(Step::Successor)["keys"], label) = new.clone();
        for object in objects(f, Step::Successor) {
            if object["label"] == label {
                object["spki"] = new["spki"].clone();
            }
        }
    }),
    (34, "a generation left out", |f| {
        let text = serde_json::to_string(&f.lines).unwrap();
        let text = text
            .replace("strongroom-master-2", "strongroom-master-3")
            .replace("strongroom-transfer-2", "strongroom-transfer-3")
            .replace("strongroom-memory-master-2", "strongroom-memory-master-3")
            .replace("\"generation\":2", "\"generation\":3")
            .replace("\"in_force\":2", "\"in_force\":3");
        f.lines = serde_json::from_str(&text).unwrap();
    }),
];

const DESTROY: &[Breach] = &[
    (25, "what was destroyed is not told", |f| {
        set(f, Step::Destroy, "destroyed", Value::Null);
    }),
    (
        9,
        "a signing key that is the master key of the initial ceremony",
        |f| {
            push_signing(f, Step::Inventory, RSA, Some(&rsa("strongroom-master 0")));
        },
    ),
    (9, "a signing key that is somebody's", |f| {
        push_signing(f, Step::Inventory, P256, Some(&spki(&key(1))));
    }),
    (42, "the token knew another ceremony as its last", |f| {
        set(f, Step::Inventory, "register", "0".repeat(64));
    }),
    (6, "a key that is not in the inventory", |f| {
        remove(f, Step::Inventory, "strongroom-wrapping", "CKO_PRIVATE_KEY");
    }),
    (6, "a secret key that is not in the inventory", |f| {
        remove(f, Step::Inventory, "strongroom-store", "CKO_SECRET_KEY");
    }),
    (9, "a key in the inventory that nobody made", |f| {
        push(f, Step::Inventory, "CKO_SECRET_KEY", "spare");
    }),
    (10, "an inventory without the epoch", |f| {
        remove(f, Step::Inventory, "strongroom-epoch", "CKO_DATA");
    }),
    (24, "another name was typed", |f| {
        set(f, Step::Consent, "typed", "vault-keys-2");
    }),
    (25, "something was left", |f| {
        let left = json!([{"name": "x", "label": "x", "class": "CKO_DATA", "attributes": []}]);
        set(f, Step::Destroy, "left", left);
    }),
    (25, "a token that was not initialised again", |f| {
        set(f, Step::Destroy, "reinitialised", false);
    }),
    (25, "an inventory of another token", |f| {
        let other = token(1);
        set(f, Step::Inventory, "token", other);
    }),
];

/// Every ceremony of a chain, each of which goes on from the one before.
struct Line {
    room: Room,
    scenes: Vec<Scene>,
    transcripts: Vec<Vec<u8>>,
}

impl Line {
    fn new(kinds: &[Kind]) -> Self {
        let room = Room::movable();
        let mut line = Self {
            scenes: vec![Scene::birth(&room)],
            transcripts: vec![room.written(Mode::Ceremony)],
            room,
        };
        for kind in kinds {
            let scene = line.scenes.last().unwrap().next(*kind);
            let before = line.transcripts.last().unwrap();
            let transcript = Forgery::of(&line.room, &scene, before).bytes();
            line.scenes.push(scene);
            line.transcripts.push(transcript);
        }
        line
    }

    /// The last one is good; with a change it is not.
    fn breaks(&self, breaches: &[Breach]) {
        let (last, previous) = self.transcripts.split_last().unwrap();
        both_say_after(
            true,
            &vec![("with no fault".into(), last.clone())],
            previous,
        );
        let scene = self.scenes.last().unwrap();
        let cases: Cases = breaches
            .iter()
            .map(|(rule, name, change)| {
                let mut forgery = Forgery::of(&self.room, scene, previous.last().unwrap());
                change(&mut forgery);
                (format!("rule {rule}: {name}"), forgery.bytes())
            })
            .collect();
        both_say_after(false, &cases, previous);
    }
}

#[test]
fn each_rule_of_a_birth() {
    let room = Room::new();
    let cases: Cases = BIRTH
        .iter()
        .map(|(rule, name, change)| {
            let mut forgery = Forgery::new(&room, Mode::Ceremony);
            change(&mut forgery);
            (format!("rule {rule}: {name}"), forgery.bytes())
        })
        .collect();
    both_say(false, &cases);
}

#[test]
fn each_rule_of_what_comes_later() {
    Line::new(&[Kind::Backup]).breaks(BACKUP);
    Line::new(&[Kind::AddToken]).breaks(ADD_TOKEN);
    Line::new(&[Kind::Backup, Kind::Restore]).breaks(RESTORE);
    Line::new(&[Kind::RotateMaster]).breaks(ROTATE);
    Line::new(&[Kind::RotateMaster, Kind::Destroy]).breaks(DESTROY);
    // All of them in a row, and a rotation of what was restored.
    Line::new(&[
        Kind::Backup,
        Kind::AddToken,
        Kind::Restore,
        Kind::RotateMaster,
        Kind::RotateMaster,
        Kind::Destroy,
    ])
    .breaks(DESTROY);
}

#[test]
fn signing_keys_of_their_own_may_be_there() {
    let line = Line::new(&[Kind::RotateMaster, Kind::Destroy]);
    for (at, step) in [(1, Step::Evidence), (2, Step::Inventory)] {
        let scene = &line.scenes[at];
        let mut forgery = Forgery::of(&line.room, scene, &line.transcripts[at - 1]);
        for (kind, public) in [
            (P256, Some(spki(&key(111)))),
            (P256, None),
            (RSA, Some(rsa("signing"))),
            (ED25519, Some(ed25519(7))),
            (ED25519, Some(ed25519(8))),
            (ED25519, None),
        ] {
            push_signing(&mut forgery, step, kind, public.as_deref());
        }
        both_say_after(
            true,
            &vec![(format!("{step}"), forgery.bytes())],
            &line.transcripts[..at],
        );
    }
}

/// Rules that a single transcript does not break, or not alone.
const CHAINS: &[u32] = &[33, 35, 43];

#[test]
fn a_backup_from_before_a_rotation_is_of_other_keys() {
    // Rule 33.
    let line = Line::new(&[Kind::Backup, Kind::RotateMaster]);
    let scene = line.scenes.last().unwrap().next(Kind::Restore);
    let restore = Forgery::of(&line.room, &scene, line.transcripts.last().unwrap());
    both_say_after(
        false,
        &vec![("an old backup".into(), restore.bytes())],
        &line.transcripts,
    );
    let line = Line::new(&[Kind::RotateMaster, Kind::Backup, Kind::Restore]);
    line.breaks(&[(33, "another backup", |f| {
        set(f, Step::Keys, "backup_sha256", "0".repeat(64));
    })]);
    // The same backup made twice.
    let line = Line::new(&[Kind::Backup, Kind::Backup]);
    let first = line.scenes[1].outputs(Step::Export)["backup_sha256"].clone();
    let mut again = Forgery::of(&line.room, &line.scenes[2], &line.transcripts[1]);
    again.outputs(Step::Export)["backup_sha256"] = first;
    both_say_after(
        false,
        &vec![("a backup again".into(), again.bytes())],
        &line.transcripts[..2],
    );
}

#[test]
fn an_id_that_was_used_anywhere_before_is_used() {
    let line = Line::new(&[Kind::Backup, Kind::AddToken, Kind::Backup]);
    line.breaks(&[
        (29, "the initial ceremony's", |f| {
            f.id = super::people::ID;
            f.open()["ceremony_id"] = super::people::ID.to_string().into();
        }),
        (29, "the first backup's", |f| {
            let id = Scene::birth(&Room::movable()).next(Kind::Backup).id;
            f.id = id;
            f.open()["ceremony_id"] = id.to_string().into();
        }),
    ]);
}

#[test]
fn a_plan_permits_what_is_done() {
    // Rule 35.
    let room = Room::with(|draft| {
        draft.backup = false;
        draft.transfer = false;
    });
    let birth = room.written(Mode::Ceremony);
    let scene = Scene::birth(&room);
    let cases: Cases = [Kind::Backup, Kind::AddToken, Kind::RotateMaster]
        .into_iter()
        .map(|kind| {
            (
                kind.name().into(),
                Forgery::of(&room, &scene.next(kind), &birth).bytes(),
            )
        })
        .collect();
    both_say_after(false, &cases, std::slice::from_ref(&birth));
    let destroy = Forgery::of(&room, &scene.next(Kind::Destroy), &birth).bytes();
    both_say_after(true, &vec![("destroy".into(), destroy)], &[birth]);
}

/// The document's list is this one: no rule is without a test, and none is tested that is not
/// written there.
#[test]
fn every_rule_of_the_document_is_tested() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/transcript-format.md");
    let text = fs::read_to_string(path).unwrap();
    let (_, part) = text.split_once("### The rules").unwrap();
    let (part, _) = part.split_once("\n## ").unwrap();
    let written: BTreeSet<u32> = part
        .lines()
        .filter_map(|line| line.split_once(". ")?.0.parse().ok())
        .collect();
    let tested: BTreeSet<u32> = [BIRTH, BACKUP, ADD_TOKEN, RESTORE, ROTATE, DESTROY]
        .into_iter()
        .flatten()
        .map(|(rule, _, _)| *rule)
        .chain(CHAINS.iter().copied())
        .collect();
    assert_eq!(written, tested);
    assert_eq!(written.first(), Some(&1));
    assert_eq!(
        written.last().copied(),
        Some(u32::try_from(written.len()).unwrap())
    );
}
