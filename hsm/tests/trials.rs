//! What a token must refuse: each refusal taken away from a real one, by a module in front of it
//! (tests/pkcs11-fault), must be seen.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::child::{self, CHILD};
use common::rig::{DEADLINE, Rig, blank, in_child_on, provision_all, token};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use strongroom_hsm::{
    GcmItem, Hsm, HsmConfig, HsmError, HsmState, KeyShape, KeyUsage, MasterKind, OaepHash,
    OptionalKeys, Register, SigningKind, TransferKey, WrappedKey,
};

/// Every function that makes an object or changes one.
const MAKERS: [&str; 7] = [
    "C_SetAttributeValue",
    "C_CopyObject",
    "C_CreateObject",
    "C_GenerateKey",
    "C_UnwrapKey",
    "C_DeriveKey",
    "C_GenerateKeyPair",
];

#[test]
fn a_token_on_which_the_user_marks_keys_as_trusted_is_refused() {
    in_child(
        "a_token_on_which_the_user_marks_keys_as_trusted_is_refused",
        async |rig| {
            drop(rig.start("").unwrap());
            for function in MAKERS {
                let reason = rig.trial(&format!("accept {function} CKA_TRUSTED"));
                assert!(
                    reason.contains("trusted") && reason.ends_with(&format!("by {function}")),
                    "{function}: {reason}"
                );
                // Taken and ignored: the key is as good as any other.
                let ignored = rig.start(&format!("ignore {function} CKA_TRUSTED"));
                assert!(ignored.is_ok(), "{function}: {:?}", ignored.err());
                // What is taken and not told is not believed.
                let silent =
                    format!("ignore {function} CKA_TRUSTED\nclaim {function} CKA_TRUSTED none");
                if function != "C_SetAttributeValue" {
                    assert!(rig.trial(&silent).contains(function));
                }
            }
        },
    );
}

#[test]
fn a_token_on_which_the_user_marks_keys_gets_neither_transfer_nor_movable_keys() {
    in_child_on(
        "a_token_on_which_the_user_marks_keys_gets_neither_transfer_nor_movable_keys",
        blank,
        async |rig| {
            rig.control("accept C_GenerateKey CKA_TRUSTED");
            let movable = HsmConfig {
                shape: KeyShape::Movable,
                ..rig.config()
            };
            let refused = Hsm::provision(&movable, OptionalKeys::default(), &mut |_| ());
            match refused {
                Err(HsmError::Trial { reason, .. }) => {
                    assert!(reason.contains("C_GenerateKey"), "{reason}");
                }
                other => panic!("{other:?}"),
            }
            // Nothing was left, so others can be made.
            let transfer = OptionalKeys {
                transfer: true,
                ..OptionalKeys::default()
            };
            let made = Hsm::provision(&rig.config(), transfer, &mut |_| ()).unwrap();
            match made.transfer {
                TransferKey::Unsupported(reason) => {
                    assert!(reason.contains("C_GenerateKey"), "{reason}");
                }
                other => panic!("{other:?}"),
            }
            // Without a key that depends on the mark it does no harm.
            drop(Hsm::start(rig.config()).unwrap());
        },
    );
}

/// Where another process says, one a line, what it has made on the token.
const MADE: &str = "made";
/// Its end.
const ENOUGH: &str = "enough";

#[test]
fn what_others_make_during_the_trial_stays_and_nothing_of_the_trial_does() {
    in_child_on(
        "what_others_make_during_the_trial_stays_and_nothing_of_the_trial_does",
        blank,
        async |rig| {
            rig.control("");
            let made = || std::fs::read_to_string(rig.folder.join(MADE)).unwrap_or_default();
            let mut other = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "imports", "--include-ignored"])
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            let until = Instant::now() + DEADLINE;
            while made().is_empty() {
                assert!(Instant::now() < until, "{:?}", other.try_wait());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let movable = HsmConfig {
                shape: KeyShape::Movable,
                call_deadline: Duration::from_mins(1),
                ..rig.config()
            };
            let transfer = OptionalKeys {
                transfer: true,
                ..OptionalKeys::default()
            };
            let provisioned = Hsm::provision(&movable, transfer, &mut |_| ());
            std::fs::write(rig.folder.join(ENOUGH), "").unwrap();
            assert!(other.wait().unwrap().success(), "an import was destroyed");
            assert_eq!(provisioned.unwrap().transfer, TransferKey::Made);

            let made = made();
            let mut theirs: Vec<_> = made.lines().collect();
            assert!(theirs.len() > 50, "{}", theirs.len());
            theirs.sort_unstable();
            let (mut found, mut ours) = (Vec::new(), Vec::new());
            as_user(&rig.folder, |session| {
                for object in session.find_objects(&[]).unwrap() {
                    match text(session, object, AttributeType::Value) {
                        value if value.starts_with(MADE) => found.push(value),
                        _ => ours.push(text(session, object, AttributeType::Label)),
                    }
                }
            });
            found.sort_unstable();
            assert_eq!(found, theirs);
            ours.sort_unstable();
            let keys = ["audit", "master", "transfer", "wrapping"];
            let mut expected: Vec<_> = keys
                .iter()
                .chain(&keys)
                .chain(&["epoch", "store"])
                .collect();
            expected.sort_unstable();
            let expected: Vec<_> = expected
                .into_iter()
                .map(|name| format!("strongroom-{name}"))
                .collect();
            assert_eq!(ours, expected);
        },
    );
}

#[test]
#[ignore = "runs in a child process, as another user of the token"]
fn imports() {
    let folder = PathBuf::from(std::env::var_os(CHILD).unwrap());
    let mut told = std::fs::File::create(folder.join(MADE)).unwrap();
    as_user(&folder, |session| {
        let mut number = 0;
        while !folder.join(ENOUGH).exists() {
            let value = format!("{MADE} {number}");
            let mut template = vec![
                // A key would for a moment be SoftHSM's default one, which no token of the
                // appliance may have.
                Attribute::Class(ObjectClass::DATA),
                Attribute::Token(true),
                Attribute::Value(value.clone().into_bytes()),
            ];
            // Not everybody gives names.
            if number % 2 == 0 {
                template.push(Attribute::Label(MADE.into()));
            }
            session.create_object(&template).unwrap();
            writeln!(told, "{value}").unwrap();
            number += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
    });
}

/// `SoftHSM` shows each key of another process with all rights for a moment.
#[test]
fn a_key_that_wraps_and_decrypts_for_a_moment_only_does_not_stop_the_start() {
    in_child(
        "a_key_that_wraps_and_decrypts_for_a_moment_only_does_not_stop_the_start",
        async |rig| {
            // Each search is written down, so that the other process sees when the first has ended.
            rig.control("slow C_FindObjects 1");
            for stays in [false, true] {
                for left in [MADE, ENOUGH] {
                    let _ = std::fs::remove_file(rig.folder.join(left));
                }
                let mut other = Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "wraps_and_decrypts", "--include-ignored"])
                    .env(STAYS, stays.to_string())
                    .stdout(Stdio::null())
                    .spawn()
                    .unwrap();
                let until = Instant::now() + DEADLINE;
                while !rig.folder.join(MADE).exists() {
                    assert!(Instant::now() < until, "{:?}", other.try_wait());
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                let started = Hsm::start(rig.config());
                std::fs::write(rig.folder.join(ENOUGH), "").unwrap();
                assert!(other.wait().unwrap().success());
                match started.err() {
                    None => assert!(!stays),
                    Some(HsmError::KeyPolicy { attribute, .. }) if stays => {
                        assert_eq!(attribute, "CKA_WRAP");
                    }
                    other => panic!("{stays}: {other:?}"),
                }
            }
        },
    );
}

/// Whether that key is there until the start has ended.
const STAYS: &str = "STRONGROOM_TEST_STAYS";

#[test]
#[ignore = "runs in a child process, as another user of the token"]
fn wraps_and_decrypts() {
    let folder = PathBuf::from(std::env::var_os(CHILD).unwrap());
    let stays = std::env::var(STAYS).unwrap() == "true";
    let log = folder.join("log");
    let searches = || {
        let log = std::fs::read_to_string(&log).unwrap();
        let mine = format!(" {} ", std::process::id());
        let others = log.lines().filter(|line| !line.contains(&mine));
        others
            .filter(|line| line.contains("slow C_FindObjects"))
            .count()
    };
    as_user(&folder, |session| {
        let template = [
            Attribute::Token(true),
            Attribute::ValueLen(32.into()),
            Attribute::Wrap(true),
            Attribute::Decrypt(true),
        ];
        let before = searches();
        let key = session
            .generate_key(&Mechanism::AesKeyGen, &template)
            .unwrap();
        std::fs::write(folder.join(MADE), "").unwrap();
        let until = Instant::now() + DEADLINE;
        // The call that finds the key, and the one that finds no more.
        while (stays && !folder.join(ENOUGH).exists()) || searches() < before + 2 {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(1));
        }
        session.destroy_object(key).unwrap();
    });
}

fn as_user(folder: &Path, body: impl FnOnce(&Session)) {
    let config = child::config(folder, 1, DEADLINE);
    let label = std::fs::read_to_string(folder.join("label")).unwrap();
    let pin = std::fs::read(folder.join("pin")).unwrap();
    common::with_session(&config.module, &label, UserType::User, &pin, body);
}

/// An attribute; empty if the token does not tell it.
fn text(session: &Session, object: ObjectHandle, attribute: AttributeType) -> String {
    match session.get_attributes(object, &[attribute]).as_deref() {
        Ok([Attribute::Value(bytes) | Attribute::Label(bytes)]) => {
            String::from_utf8_lossy(bytes).into_owned()
        }
        _ => String::new(),
    }
}

#[test]
fn movable_keys_are_tried_at_each_start() {
    in_child_on("movable_keys_are_tried_at_each_start", blank, async |rig| {
        let rig = Rig {
            shape: KeyShape::Movable,
            ..rig
        };
        Hsm::provision(&rig.config(), OptionalKeys::default(), &mut |_| ()).unwrap();
        drop(rig.start("").unwrap());
        for function in ["C_GenerateKey", "C_GenerateKeyPair", "C_UnwrapKey"] {
            let reason = rig.trial(&format!("accept {function} CKA_TRUSTED"));
            assert!(reason.contains(function), "{reason}");
        }
        let reason = rig.trial("drop C_GenerateKey CKA_WRAP_WITH_TRUSTED");
        assert!(reason.contains("CKA_WRAP_WITH_TRUSTED"), "{reason}");
    });
}

#[test]
fn a_token_that_does_not_force_its_unwrap_template_is_refused() {
    in_child(
        "a_token_that_does_not_force_its_unwrap_template_is_refused",
        async |rig| {
            // opencryptoki 3.27.
            let whole = [
                "accept C_UnwrapKey CKA_EXTRACTABLE",
                "accept C_UnwrapKey CKA_SENSITIVE",
                "claim C_UnwrapKey CKA_SENSITIVE false",
                "claim C_UnwrapKey CKA_EXTRACTABLE true",
                "claim C_UnwrapKey CKA_VALUE 00112233",
                "allow C_WrapKey",
            ];
            assert_eq!(rig.policy(&whole.join("\n")), "CKA_SENSITIVE");
            // Each by itself.
            for attribute in [
                "EXTRACTABLE",
                "SENSITIVE",
                "WRAP",
                "UNWRAP",
                "DERIVE",
                "COPYABLE",
                "MODIFIABLE",
            ] {
                let attribute = format!("CKA_{attribute}");
                let command = format!("accept C_UnwrapKey {attribute}");
                assert_eq!(rig.policy(&command), attribute);
                // Forced whatever was asked.
                let command = format!("ignore C_UnwrapKey {attribute}");
                let forced = rig.start(&command);
                assert!(forced.is_ok(), "{attribute}: {:?}", forced.err());
            }
            assert_eq!(
                rig.policy("claim C_UnwrapKey CKA_VALUE 00112233"),
                "CKA_VALUE"
            );
            assert_eq!(rig.policy("allow C_WrapKey"), "CKA_EXTRACTABLE");
            for attribute in ["EXTRACTABLE", "SENSITIVE", "DERIVE", "MODIFIABLE"] {
                let attribute = format!("CKA_{attribute}");
                let command = format!("accept C_SetAttributeValue {attribute}");
                assert_eq!(rig.policy(&command), attribute);
                let ignored = rig.start(&format!("ignore C_SetAttributeValue {attribute}"));
                assert!(ignored.is_ok(), "{attribute}: {:?}", ignored.err());
            }
        },
    );
}

/// What is not asked for in the call is forced too.
#[test]
fn a_token_that_does_not_force_what_a_call_leaves_out_is_refused() {
    in_child(
        "a_token_that_does_not_force_what_a_call_leaves_out_is_refused",
        async |rig| {
            // SoftHSM refuses such a call, which is good too.
            let right = [
                ("CKA_EXTRACTABLE", "false"),
                ("CKA_SENSITIVE", "true"),
                ("CKA_WRAP", "false"),
                ("CKA_UNWRAP", "false"),
                ("CKA_ENCRYPT", "false"),
                ("CKA_DECRYPT", "false"),
                ("CKA_DERIVE", "false"),
                ("CKA_COPYABLE", "false"),
                ("CKA_MODIFIABLE", "false"),
            ];
            let takes = |wrong: &str, value: &str| {
                let mut commands =
                    vec!["where with=CKA_KEY_TYPE make C_UnwrapKey -CKA_EXTRACTABLE".to_owned()];
                commands.extend(right.map(|(attribute, right)| {
                    let value = if attribute == wrong { value } else { right };
                    format!("silent C_UnwrapKey {attribute} {value}")
                }));
                commands.join("\n")
            };
            for (attribute, other) in [
                ("CKA_EXTRACTABLE", "true"),
                ("CKA_SENSITIVE", "false"),
                ("CKA_WRAP", "true"),
                ("CKA_UNWRAP", "true"),
                ("CKA_EXTRACTABLE", "none"),
                ("CKA_DERIVE", "true"),
                ("CKA_COPYABLE", "true"),
                ("CKA_MODIFIABLE", "true"),
                // The BYOK key's.
                ("CKA_ENCRYPT", "true"),
                ("CKA_DECRYPT", "true"),
            ] {
                assert_eq!(rig.policy(&takes(attribute, other)), attribute);
            }
            // What comes out of the transfer key must be extractable.
            let reason = rig.trial(&takes("", ""));
            assert!(
                reason.contains("transfer key") && reason.contains("CKA_EXTRACTABLE"),
                "{reason}"
            );
        },
    );
}

/// Byte by byte a key is known as well as at once (Clulow 2003).
#[test]
fn a_token_that_gives_out_parts_of_an_unwrapped_key_is_refused() {
    in_child(
        "a_token_that_gives_out_parts_of_an_unwrapped_key_is_refused",
        async |rig| {
            for mechanism in [
                "CKM_EXTRACT_KEY_FROM_KEY",
                "CKM_XOR_BASE_AND_DATA",
                "CKM_CONCATENATE_BASE_AND_DATA",
                "CKM_CONCATENATE_DATA_AND_BASE",
                "CKM_CONCATENATE_BASE_AND_KEY",
            ] {
                let derives = format!("make C_DeriveKey {mechanism}");
                // Of the store key, as no KEK derives.
                assert_eq!(rig.policy(&derives), "CKA_DERIVE", "{mechanism}");
            }
            assert_eq!(
                rig.policy("make C_UnwrapKey CKA_VALUE_LEN"),
                "CKA_VALUE_LEN"
            );
        },
    );
}

#[test]
fn a_token_that_does_not_keep_its_own_keys_is_refused() {
    in_child(
        "a_token_that_does_not_keep_its_own_keys_is_refused",
        async |rig| {
            for (command, attribute) in [
                ("allow C_DecryptInit", "CKA_DECRYPT"),
                ("allow C_SignInit", "CKA_SIGN"),
                ("allow C_SignRecoverInit", "CKA_SIGN_RECOVER"),
                ("make C_UnwrapKey CKM_RSA_PKCS", "CKA_ALLOWED_MECHANISMS"),
                ("make C_UnwrapKey CKM_RSA_X_509", "CKA_ALLOWED_MECHANISMS"),
                (
                    "claim C_FindObjects CKA_PRIVATE_EXPONENT 00112233",
                    "CKA_PRIVATE_EXPONENT",
                ),
                ("claim C_FindObjects CKA_PRIME_1 00112233", "CKA_PRIME_1"),
            ] {
                match rig.start(command).err() {
                    Some(HsmError::KeyPolicy {
                        key,
                        attribute: named,
                        ..
                    }) => {
                        assert_eq!(named, attribute, "{command}");
                        assert_eq!(key, "master key", "{command}");
                    }
                    other => panic!("{command}: {other:?}"),
                }
            }
            drop(rig.start("").unwrap());
        },
    );
}

/// Away, and then written: the true value would be the older one ever after.
#[test]
fn a_register_that_is_not_to_be_seen_is_not_made_anew() {
    in_child(
        "a_register_that_is_not_to_be_seen_is_not_made_anew",
        async |rig| {
            let end = Register::AuditEnd;
            let ready = async |hsm: &Hsm| {
                let until = Instant::now() + DEADLINE;
                while hsm.read_register(end).await.is_err() {
                    assert!(Instant::now() < until, "{:?}", hsm.state());
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let hsm = rig.start("").unwrap();
            for known in [false, true] {
                rig.control("blind");
                assert!(hsm.read_register(end).await.is_err(), "{known}");
                assert!(hsm.write_register(end, vec![9]).await.is_err(), "{known}");
                rig.control("");
                ready(&hsm).await;
                if !known {
                    assert_eq!(hsm.read_register(end).await.unwrap(), None);
                }
                hsm.write_register(end, vec![7]).await.unwrap();
            }
            assert_eq!(hsm.read_register(end).await.unwrap(), Some(vec![7]));
            drop(hsm);
            let mut labels = Vec::new();
            as_user(&rig.folder, |session| {
                for object in session.find_objects(&[]).unwrap() {
                    labels.push(text(session, object, AttributeType::Label));
                }
            });
            labels.retain(|label| label == end.label());
            assert_eq!(labels.len(), 1);
        },
    );
}

#[test]
fn each_attribute_of_an_unwrapped_key_is_read_before_its_use() {
    in_child(
        "each_attribute_of_an_unwrapped_key_is_read_before_its_use",
        async |rig| {
            let hsm = rig.start("").unwrap();
            let aead = hsm.generate_key(KeyUsage::Aead, MasterKind::Hsm).await;
            let aead = Arc::new(aead.unwrap());
            for (attribute, other) in [
                ("CKA_TOKEN", "true"),
                ("CKA_PRIVATE", "false"),
                ("CKA_SENSITIVE", "false"),
                ("CKA_EXTRACTABLE", "true"),
                ("CKA_WRAP", "true"),
                ("CKA_UNWRAP", "true"),
                ("CKA_SIGN", "true"),
                ("CKA_VERIFY", "true"),
                ("CKA_DERIVE", "true"),
                ("CKA_MODIFIABLE", "true"),
                ("CKA_COPYABLE", "true"),
                ("CKA_EXTRACTABLE", "none"),
                ("CKA_SENSITIVE", "none"),
                ("CKA_ALLOWED_MECHANISMS", "0811000000000000"),
            ] {
                hsm.forget(vec![aead.id]).await.unwrap();
                rig.control(&format!("claim C_UnwrapKey {attribute} {other}"));
                match encrypt(&hsm, &aead).await {
                    Err(HsmError::KeyPolicy {
                        key,
                        attribute: named,
                        ..
                    }) => {
                        assert_eq!(named, attribute);
                        assert!(key.contains("unwrapped"), "{key}");
                    }
                    other => panic!("{attribute}: {other:?}"),
                }
                assert_eq!(hsm.state(), HsmState::Ready);
            }
            rig.control("");
            encrypt(&hsm, &aead).await.unwrap();
            // A new key, before it is wrapped.
            rig.control("claim C_GenerateKey CKA_SENSITIVE false");
            let refused = hsm.generate_key(KeyUsage::Mac, MasterKind::Hsm).await;
            assert!(
                matches!(&refused, Err(HsmError::KeyPolicy { attribute, .. }) if attribute == "CKA_SENSITIVE"),
                "{refused:?}"
            );
        },
    );
}

#[test]
fn the_trial_is_held_again_at_each_connection() {
    in_child("the_trial_is_held_again_at_each_connection", async |rig| {
        let hsm = rig.start("").unwrap();
        let key = hsm.generate_key(KeyUsage::Aead, MasterKind::Hsm).await;
        let key = Arc::new(key.unwrap());
        rig.control("accept C_UnwrapKey CKA_EXTRACTABLE\nfail C_EncryptInit CKR_DEVICE_ERROR 1");
        encrypt(&hsm, &key).await.unwrap_err();
        let until = Instant::now() + Duration::from_mins(1);
        loop {
            match hsm.state() {
                HsmState::Stopped { reason } => {
                    assert!(reason.contains("CKA_EXTRACTABLE"), "{reason}");
                    break;
                }
                state => assert!(Instant::now() < until, "{state:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

/// Kryoptic's way to say no; and what no token says that has refused.
#[test]
fn a_refusal_by_another_name_is_one_and_a_device_that_fails_has_refused_nothing() {
    in_child(
        "a_refusal_by_another_name_is_one_and_a_device_that_fails_has_refused_nothing",
        async |rig| {
            for name in [
                "CKR_WRAPPING_KEY_HANDLE_INVALID",
                "CKR_KEY_HANDLE_INVALID",
                "CKR_FUNCTION_FAILED",
                "CKR_GENERAL_ERROR",
                "CKR_VENDOR_DEFINED",
            ] {
                let started = rig.start(&format!("recode C_WrapKey * {name}"));
                assert!(started.is_ok(), "{name}: {:?}", started.err());
            }
            for name in [
                "CKR_DEVICE_ERROR",
                "CKR_DEVICE_MEMORY",
                "CKR_SESSION_CLOSED",
            ] {
                let started = rig.start(&format!("recode C_WrapKey * {name}"));
                assert!(started.is_err(), "{name}");
            }
        },
    );
}

/// AWS `CloudHSM` does, and Luna in FIPS mode.
#[test]
fn a_token_that_writes_its_own_iv_is_refused_by_name() {
    in_child(
        "a_token_that_writes_its_own_iv_is_refused_by_name",
        async |rig| {
            match rig.start("own-iv").err() {
                Some(HsmError::Unsupported(what)) => assert!(what.contains("IV"), "{what}"),
                other => panic!("{other:?}"),
            }
            // Once it serves: no ciphertext that nobody opens.
            let hsm = rig.start("").unwrap();
            let key = hsm.generate_key(KeyUsage::Aead, MasterKind::Hsm).await;
            let key = Arc::new(key.unwrap());
            rig.control("own-iv");
            let refused = encrypt(&hsm, &key).await;
            assert!(
                matches!(refused, Err(HsmError::Unsupported(_))),
                "{refused:?}"
            );
            rig.control("");
            encrypt(&hsm, &key).await.unwrap();
        },
    );
}

#[test]
fn whatever_a_module_writes_to_is_there_to_be_written_to() {
    in_child(
        "whatever_a_module_writes_to_is_there_to_be_written_to",
        async |rig| {
            let hsm = rig.start("touch").unwrap();
            for usage in [KeyUsage::Aead, KeyUsage::Mac] {
                hsm.generate_key(usage, MasterKind::Hsm).await.unwrap();
            }
            let key = hsm.generate_key(KeyUsage::Aead, MasterKind::Hsm).await;
            let key = Arc::new(key.unwrap());
            encrypt(&hsm, &key).await.unwrap();
            hsm.sign([7; 32]).await.unwrap();
            hsm.forget(vec![key.id]).await.unwrap();
            encrypt(&hsm, &key).await.unwrap();
            let made = hsm
                .generate_signing_key(SigningKind::EcdsaP256, [7; 16])
                .await;
            made.unwrap();
        },
    );
}

#[test]
fn what_a_module_claims_beyond_the_room_is_no_answer() {
    in_child(
        "what_a_module_claims_beyond_the_room_is_no_answer",
        async |rig| {
            for function in [
                "C_Encrypt",
                "C_Decrypt",
                "C_Sign",
                "C_FindObjects",
                "C_GetMechanismList",
            ] {
                let started = rig.start(&format!("overlong {function}"));
                let error = started.err().unwrap().to_string();
                assert!(error.contains("makes no sense"), "{function}: {error}");
            }
            drop(rig.start("").unwrap());
        },
    );
}

#[test]
fn aes_key_wrap_is_found_by_its_proper_name() {
    in_child("aes_key_wrap_is_found_by_its_proper_name", async |rig| {
        let hsm = rig.start("kwp-by-its-name").unwrap();
        assert!(hsm.profile().aes_kwp);
    });
}

/// What a client sends must not look like a device that fails.
#[test]
fn a_blob_that_the_token_calls_a_device_error_is_the_clients() {
    in_child(
        "a_blob_that_the_token_calls_a_device_error_is_the_clients",
        async |rig| {
            let hsm = rig.start("").unwrap();
            let mut key = hsm
                .generate_key(KeyUsage::Aead, MasterKind::Hsm)
                .await
                .unwrap();
            rig.control(
                "recode C_UnwrapKey * CKR_DEVICE_ERROR\nrecode C_Decrypt * CKR_DEVICE_ERROR",
            );
            let logins = rig.logged("C_Login");
            for _ in 0..3 {
                let imported = hsm
                    .import_key(
                        OaepHash::Sha1,
                        vec![7; 512],
                        vec![7; 40],
                        KeyUsage::Aead,
                        MasterKind::Hsm,
                    )
                    .await;
                assert!(
                    matches!(imported, Err(HsmError::Authentication)),
                    "{imported:?}"
                );
                assert_eq!(hsm.state(), HsmState::Ready);
            }
            hsm.forget(vec![key.id]).await.unwrap();
            key.blob[5] ^= 1;
            let refused = encrypt(&hsm, &Arc::new(key)).await;
            assert!(
                matches!(refused, Err(HsmError::Authentication)),
                "{refused:?}"
            );
            assert_eq!(hsm.state(), HsmState::Ready);
            assert_eq!(rig.logged("C_Login"), logins, "it was not connected again");
            // A device that fails every such call is none of the clients'.
            rig.control("fail C_UnwrapKey CKR_DEVICE_ERROR\nfail C_Decrypt CKR_DEVICE_ERROR");
            let imported = hsm
                .import_key(
                    OaepHash::Sha1,
                    vec![7; 512],
                    vec![7; 40],
                    KeyUsage::Aead,
                    MasterKind::Hsm,
                )
                .await;
            assert!(
                matches!(imported, Err(HsmError::Unavailable(_))),
                "{imported:?}"
            );
        },
    );
}

/// SoftHSM shows a token without its objects when it can't open their files.
#[test]
fn a_token_without_its_objects_is_away_and_not_for_good() {
    in_child(
        "a_token_without_its_objects_is_away_and_not_for_good",
        async |rig| {
            // At the first start it is what it says.
            match rig.start("blind").err() {
                Some(HsmError::Missing { name, .. }) => assert_eq!(name, "master key"),
                other => panic!("{other:?}"),
            }
            let hsm = rig.start("").unwrap();
            let key = hsm.generate_key(KeyUsage::Aead, MasterKind::Hsm).await;
            let key = Arc::new(key.unwrap());
            rig.control("blind\nfail C_EncryptInit CKR_DEVICE_ERROR 1");
            encrypt(&hsm, &key).await.unwrap_err();
            let until = Instant::now() + Duration::from_secs(3);
            while Instant::now() < until {
                match hsm.state() {
                    HsmState::Reconnecting { reason } => {
                        assert!(!reason.contains("make the keys"), "{reason}");
                    }
                    state => panic!("{state:?}"),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let HsmState::Reconnecting { reason } = hsm.state() else {
                panic!("{:?}", hsm.state());
            };
            assert!(
                reason.contains("master key") && reason.contains("trying again"),
                "{reason}"
            );
            rig.control("");
            let until = Instant::now() + Duration::from_secs(20);
            while encrypt(&hsm, &key).await.is_err() {
                assert!(Instant::now() < until, "{:?}", hsm.state());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        },
    );
}

/// p11-kit-proxy's sessions belong to the list that they were opened through.
#[test]
fn a_module_is_asked_for_its_functions_once() {
    in_child("a_module_is_asked_for_its_functions_once", async |rig| {
        for _ in 0..2 {
            let hsm = rig.start("").unwrap();
            hsm.generate_key(KeyUsage::Aead, MasterKind::Hsm)
                .await
                .unwrap();
        }
        assert_eq!(rig.logged("C_GetFunctionList"), 1);
    });
}

#[test]
fn a_module_that_does_not_start_says_where_to_look() {
    in_child(
        "a_module_that_does_not_start_says_where_to_look",
        async |rig| match rig.start("fail C_Initialize CKR_GENERAL_ERROR").err() {
            Some(HsmError::Config(text)) => {
                for part in [
                    "CKR_GENERAL_ERROR",
                    "SOFTHSM2_CONF",
                    "softhsm2.conf",
                    "[hardening]",
                ] {
                    assert!(text.contains(part), "{part}: {text}");
                }
            }
            other => panic!("{other:?}"),
        },
    );
}

/// SoftHSM's own `CKR_GENERAL_ERROR`.
#[test]
fn what_keeps_softhsm_from_starting_is_named() {
    in_child("what_keeps_softhsm_from_starting_is_named", async |rig| {
        let settings = std::env::var("SOFTHSM2_CONF").unwrap();
        let before = std::fs::read_to_string(&settings).unwrap();
        let start = || match rig.start("").err() {
            Some(HsmError::Config(text)) => text,
            other => panic!("{other:?}"),
        };
        let user = format!("the user {}", nix::unistd::geteuid());
        std::fs::write(
            &settings,
            "directories.tokendir = /none/tokens\nobjectstore.backend = file\n",
        )
        .unwrap();
        let text = start();
        let told =
            format!("{user} can't use /none/tokens, where directories.tokendir of {settings}");
        assert!(text.contains(&told), "{text}");
        assert!(text.contains("Make that directory"), "{text}");
        std::fs::remove_file(&settings).unwrap();
        let text = start();
        let told =
            format!("{user} can't read SoftHSM's settings {settings} (SOFTHSM2_CONF names it)");
        assert!(text.contains(&told), "{text}");
        // Nothing stays of it.
        std::fs::write(&settings, before).unwrap();
        rig.start("").unwrap();
    });
}

async fn encrypt(hsm: &Hsm, key: &Arc<WrappedKey>) -> Result<Vec<u8>, HsmError> {
    let item = GcmItem {
        key: Arc::clone(key),
        iv: [1; 12],
        aad: Vec::new(),
        data: vec![7; 32].into(),
    };
    hsm.encrypt(vec![item]).await?.remove(0)
}

fn in_child(test: &str, body: impl AsyncFnOnce(Rig)) {
    in_child_on(test, token, body);
}

#[test]
#[ignore = "runs in a child process, once, to make the token"]
fn provision() {
    provision_all();
}
