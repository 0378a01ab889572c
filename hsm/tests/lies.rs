//! For each thing that the trials of a start look at, a token that does wrong in that alone
//! (tests/pkcs11-fault): what no lie finds, no check holds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fmt::Write as _;

use common::rig::{Rig, blank, in_child_on, older, provision_all, provision_older, token};
use strongroom_hsm::{Hsm, HsmConfig, HsmError, KeyShape, KeyUsage, MasterKind, OptionalKeys};

const MASTER: &str = "strongroom-master";
const TRANSFER: &str = "strongroom-transfer";
const WRAPPING: &str = "strongroom-wrapping";
const MEMORY: &str = "strongroom-memory-master";
const AUDIT: &str = "strongroom-audit";
const STORE: &str = "strongroom-store";

/// What a refusal calls them.
fn name(label: &str) -> &'static str {
    match label {
        MASTER => "the master key",
        TRANSFER => "the transfer key",
        WRAPPING => "the BYOK wrapping key",
        MEMORY => "the memory master key",
        AUDIT => "the audit signing key",
        _ => "the store key",
    }
}

/// Gives each key that the master key unwraps a label, by which commands can be meant for it.
const KEK: &str = "where key=strongroom-master claim C_UnwrapKey CKA_LABEL 6b656b\n";
/// The same of the transfer key.
const MOVED: &str = "where key=strongroom-transfer claim C_UnwrapKey CKA_LABEL 6d6f766564\n";
/// The same of a key that goes under trusted keys only.
const GUARDED: &str = "where with=CKA_WRAP_WITH_TRUSTED claim C_GenerateKey CKA_LABEL 67\n";

#[test]
fn a_key_that_unwraps_by_oaep_does_nothing_else() {
    in_child(
        "a_key_that_unwraps_by_oaep_does_nothing_else",
        async |rig| {
            drop(rig.start("").unwrap());
            for key in [MASTER, TRANSFER, WRAPPING] {
                for mechanism in ["CKM_RSA_PKCS_OAEP", "CKM_RSA_PKCS", "CKM_RSA_X_509"] {
                    rig.refused(
                        &format!("where key={key} mechanism={mechanism} allow C_DecryptInit"),
                        &[name(key), "CKA_DECRYPT"],
                    );
                }
                for mechanism in ["CKM_RSA_PKCS", "CKM_RSA_X_509"] {
                    // By nothing that the token itself has wrapped.
                    let commands = format!(
                        "where mechanism={mechanism} refuse C_WrapKey\n\
                         where key={key} make C_UnwrapKey {mechanism}"
                    );
                    rig.refused(&commands, &[name(key), "CKA_ALLOWED_MECHANISMS", mechanism]);
                }
                // As an AES key only.
                rig.refused(
                    &format!("where key={key} CKA_KEY_TYPE=:31 make C_UnwrapKey CKM_RSA_PKCS"),
                    &[name(key), "CKA_ALLOWED_MECHANISMS"],
                );
            }
            for mechanism in ["CKM_RSA_PKCS", "CKM_RSA_X_509"] {
                rig.refused(
                    &format!("where key={MEMORY} mechanism={mechanism} allow C_DecryptInit"),
                    &[name(MEMORY), "CKA_ALLOWED_MECHANISMS", mechanism],
                );
            }
            for mechanism in ["CKM_RSA_PKCS_OAEP", "CKM_RSA_PKCS", "CKM_RSA_X_509"] {
                rig.refused(
                    &format!("where key={MEMORY} make C_UnwrapKey {mechanism}"),
                    &[name(MEMORY), "CKA_UNWRAP"],
                );
            }
            for key in [MASTER, TRANSFER, WRAPPING, MEMORY] {
                rig.refused(
                    &format!("where key={key} allow C_SignInit"),
                    &[name(key), "CKA_SIGN "],
                );
                for mechanism in ["CKM_RSA_PKCS", "CKM_RSA_X_509"] {
                    rig.refused(
                        &format!("where key={key} mechanism={mechanism} allow C_SignInit"),
                        &[name(key), "CKA_SIGN "],
                    );
                }
                rig.refused(
                    &format!("where key={key} allow C_SignRecoverInit"),
                    &[name(key), "CKA_SIGN_RECOVER"],
                );
            }
        },
    );
}

#[test]
fn a_key_on_the_token_tells_none_of_its_numbers() {
    in_child(
        "a_key_on_the_token_tells_none_of_its_numbers",
        async |rig| {
            for secret in [
                "CKA_VALUE",
                "CKA_PRIVATE_EXPONENT",
                "CKA_PRIME_1",
                "CKA_PRIME_2",
                "CKA_EXPONENT_1",
                "CKA_EXPONENT_2",
                "CKA_COEFFICIENT",
            ] {
                rig.refused(
                    &format!("where key={MASTER} claim C_FindObjects {secret} 00112233"),
                    &[name(MASTER), secret],
                );
            }
            for key in [TRANSFER, WRAPPING, MEMORY, AUDIT, STORE] {
                rig.refused(
                    &format!("where key={key} claim C_FindObjects CKA_VALUE 00112233"),
                    &[name(key), "CKA_VALUE"],
                );
            }
        },
    );
}

#[test]
fn a_key_on_the_token_is_not_weakened() {
    in_child("a_key_on_the_token_is_not_weakened", async |rig| {
        let set = |key: &str, attribute: &str| {
            rig.refused(
                &format!("where key={key} accept C_SetAttributeValue {attribute}"),
                &[name(key), attribute, "is as it was again"],
            );
        };
        let copied = |key: &str, attribute: &str| {
            rig.refused(
                &format!("where key={key} make C_CopyObject {attribute}"),
                &[name(key), attribute, "in a copy"],
            );
        };
        for attribute in [
            "CKA_SENSITIVE",
            "CKA_EXTRACTABLE",
            "CKA_DECRYPT",
            "CKA_SIGN",
            "CKA_SIGN_RECOVER",
            "CKA_DERIVE",
            "CKA_MODIFIABLE",
            "CKA_COPYABLE",
        ] {
            set(MASTER, attribute);
            copied(MASTER, attribute);
        }
        for attribute in ["CKA_UNWRAP", "CKA_WRAP"] {
            set(STORE, attribute);
            copied(STORE, attribute);
        }
        for key in [TRANSFER, WRAPPING, MEMORY, AUDIT, STORE] {
            for attribute in [
                "CKA_EXTRACTABLE",
                "CKA_MODIFIABLE",
                "CKA_ALLOWED_MECHANISMS",
            ] {
                set(key, attribute);
                copied(key, attribute);
            }
        }
        set(MASTER, "CKA_ALLOWED_MECHANISMS");
        copied(MASTER, "CKA_ALLOWED_MECHANISMS");
        for key in [MASTER, TRANSFER, WRAPPING] {
            set(key, "CKA_UNWRAP_TEMPLATE");
            let template = format!(
                "where key={key} make C_CopyObject CKA_UNWRAP_TEMPLATE\n\
                 claim C_CopyObject CKA_UNWRAP_TEMPLATE none"
            );
            rig.refused(&template, &[name(key), "CKA_UNWRAP_TEMPLATE"]);
        }
        // As strict as the key, and it tells.
        let telling = format!(
            "where key={MASTER} make C_CopyObject CKA_SIGN\nclaim C_CopyObject CKA_SIGN false\n\
             claim C_CopyObject CKA_PRIVATE_EXPONENT 00112233"
        );
        rig.refused(&telling, &[name(MASTER), "CKA_PRIVATE_EXPONENT"]);
        // Taken, and nothing came of it.
        let ignored = format!(
            "where key={MASTER} make C_CopyObject CKA_SIGN\nclaim C_CopyObject CKA_SIGN false"
        );
        let started = rig.start(&ignored);
        assert!(started.is_ok(), "{:?}", started.err());
        let stuck = format!(
            "where key={STORE} CKA_WRAP=true accept C_SetAttributeValue CKA_WRAP\n\
             where key={STORE} CKA_WRAP=false ignore C_SetAttributeValue CKA_WRAP"
        );
        rig.refused(&stuck, &[name(STORE), "CKA_WRAP", "could not be set back"]);
    });
}

/// Mechanisms by which a key wraps that anybody can make; the token says of each that it wraps.
const BY_OWN: [&str; 20] = [
    "CKM_AES_KEY_WRAP",
    "CKM_AES_KEY_WRAP_PAD",
    "CKM_AES_CBC_PAD",
    "CKM_AES_CBC",
    "CKM_AES_ECB",
    "CKM_AES_GCM",
    "CKM_AES_KEY_WRAP_PKCS7",
    "CKM_AES_CTR",
    "CKM_AES_CCM",
    "CKM_AES_OFB",
    "CKM_AES_CFB1",
    "CKM_AES_CFB8",
    "CKM_AES_CFB64",
    "CKM_AES_CFB128",
    "CKM_AES_CTS",
    "CKM_DES3_CBC_PAD",
    "CKM_DES3_CBC",
    "CKM_DES3_ECB",
    "CKM_ECDH_AES_KEY_WRAP",
    "CKM_CHACHA20",
];
const BY_RSA: [&str; 4] = [
    "CKM_RSA_PKCS_OAEP",
    "CKM_RSA_PKCS",
    "CKM_RSA_X_509",
    "CKM_RSA_AES_KEY_WRAP",
];
/// `ChaCha20` keys, which SoftHSM does not make.
const CHACHA20: &str = "where CKA_KEY_TYPE=:51 make C_GenerateKey CKA_WRAP\n";

#[test]
fn no_mechanism_wraps_a_kek() {
    in_child("no_mechanism_wraps_a_kek", async |rig| {
        let wrapped = |by: &str, mechanism: &str| {
            rig.refused(
                &format!(
                    "{KEK}{CHACHA20}where key={by} of=kek mechanism={mechanism} allow C_WrapKey"
                ),
                &["unwrapped", "CKA_EXTRACTABLE", "wrapped out"],
            );
        };
        for mechanism in BY_OWN {
            wrapped("", mechanism);
        }
        wrapped("", "CKM_CHACHA20_POLY1305");
        // By its proper name.
        rig.refused(
            &format!("{KEK}kwp-by-its-name\nwhere key= of=kek mechanism=CKM_AES_KEY_WRAP_KWP allow C_WrapKey"),
            &["unwrapped", "CKA_EXTRACTABLE"],
        );
        for mechanism in BY_RSA {
            wrapped(MASTER, mechanism);
        }
        // They are there, and refuse.
        let started = rig.start(&format!(
            "{CHACHA20}where key=nobody mechanism=CKM_CHACHA20 allow C_WrapKey"
        ));
        assert!(started.is_ok(), "{:?}", started.err());
    });
}

#[test]
fn nothing_wraps_a_key_on_the_token() {
    in_child("nothing_wraps_a_key_on_the_token", async |rig| {
        for key in [MASTER, TRANSFER, WRAPPING, MEMORY, AUDIT, STORE] {
            rig.refused(
                &format!("where key= of={key} mechanism=CKM_AES_CBC_PAD allow C_WrapKey"),
                &[name(key), "CKA_EXTRACTABLE", "wrapped out"],
            );
            rig.refused(
                &format!(
                    "where key={MASTER} of={key} mechanism=CKM_RSA_AES_KEY_WRAP allow C_WrapKey"
                ),
                &[name(key), "CKA_EXTRACTABLE", "wrapped out"],
            );
        }
        for mechanism in ["CKM_RSA_PKCS_OAEP", "CKM_RSA_PKCS", "CKM_RSA_X_509"] {
            rig.refused(
                &format!("where key={MASTER} of={STORE} mechanism={mechanism} allow C_WrapKey"),
                &[name(STORE), "CKA_EXTRACTABLE", "wrapped out"],
            );
        }
    });
}

#[test]
fn a_kek_comes_as_the_unwrap_template_says_by_whatever_call() {
    in_child(
        "a_kek_comes_as_the_unwrap_template_says_by_whatever_call",
        async |rig| {
            // Another key than was wrapped.
            let other =
                format!("where key={MASTER} CKA_KEY_TYPE=:31 make C_UnwrapKey CKM_RSA_PKCS_OAEP");
            match rig.start(&other).err() {
                Some(HsmError::SelfTest(what)) => assert!(what.contains("wrapping"), "{what}"),
                other => panic!("{other:?}"),
            }
            // Of one type only.
            for kind in [31, 16] {
                for attribute in [
                    "CKA_EXTRACTABLE",
                    "CKA_SENSITIVE",
                    "CKA_WRAP",
                    "CKA_UNWRAP",
                    "CKA_DERIVE",
                    "CKA_COPYABLE",
                    "CKA_MODIFIABLE",
                ] {
                    rig.refused(
                        &format!(
                            "where key={MASTER} CKA_KEY_TYPE=:{kind} accept C_UnwrapKey {attribute}"
                        ),
                        &["unwrapped", attribute, "what the call asks for"],
                    );
                }
            }
            // AES, generic, ChaCha20, HMAC by SHA-256, triple DES, and one that PKCS#11 has no name
            // for.
            let silent = "without=CKA_EXTRACTABLE without=CKA_VALUE_LEN";
            for kind in [31_u64, 16, 51, 43, 21, 0x8000_0000] {
                rig.refused(
                    &format!(
                        "where key={MASTER} CKA_KEY_TYPE=:{kind} {silent} make C_UnwrapKey -CKA_EXTRACTABLE\n\
                         where key={MASTER} {silent} claim C_UnwrapKey CKA_EXTRACTABLE true"
                    ),
                    &["unwrapped", "CKA_EXTRACTABLE", "does not ask for it"],
                );
            }
            let as_forced = format!(
                "where key={MASTER} CKA_KEY_TYPE=:16 {silent} make C_UnwrapKey -CKA_EXTRACTABLE\n\
                 where key={MASTER} {silent} claim C_UnwrapKey CKA_EXTRACTABLE false\n\
                 where key={MASTER} {silent} claim C_UnwrapKey CKA_SENSITIVE true\n\
                 where key={MASTER} {silent} claim C_UnwrapKey CKA_WRAP false\n\
                 where key={MASTER} {silent} claim C_UnwrapKey CKA_UNWRAP false\n\
                 where key={MASTER} {silent} claim C_UnwrapKey CKA_DERIVE false\n\
                 where key={MASTER} {silent} claim C_UnwrapKey CKA_COPYABLE false\n\
                 where key={MASTER} {silent} claim C_UnwrapKey CKA_MODIFIABLE false\n\
                 where key={MASTER} {silent} claim C_UnwrapKey CKA_LABEL 73\n"
            );
            rig.refused(
                &format!(
                    "{as_forced}where key={MASTER} {silent} claim C_UnwrapKey CKA_VALUE 00112233\n\
                          claim C_WrapKey CKA_VALUE none"
                ),
                &["unwrapped", "CKA_VALUE"],
            );
            for (by, mechanism) in [("", "CKM_AES_CBC_PAD"), (MASTER, "CKM_RSA_PKCS")] {
                rig.refused(
                    &format!(
                        "{as_forced}where key={by} of=s mechanism={mechanism} allow C_WrapKey"
                    ),
                    &["unwrapped", "CKA_EXTRACTABLE", "wrapped out"],
                );
            }
            // As what is not a key.
            rig.refused(
                &format!("where key={MASTER} CKA_CLASS=:0 make C_UnwrapKey CKA_CLASS"),
                &["unwrapped", "CKA_VALUE"],
            );
            rig.refused(
                &format!("where key={TRANSFER} CKA_CLASS=:0 make C_UnwrapKey CKA_CLASS"),
                &["transfer key", "CKA_CLASS"],
            );
            rig.refused(
                &format!("where key={WRAPPING} CKA_CLASS=:0 make C_UnwrapKey CKA_CLASS"),
                &[name(WRAPPING), "CKA_VALUE"],
            );
            for attribute in [
                "CKA_EXTRACTABLE",
                "CKA_SENSITIVE",
                "CKA_WRAP",
                "CKA_UNWRAP",
                "CKA_DERIVE",
                "CKA_MODIFIABLE",
                "CKA_COPYABLE",
            ] {
                rig.refused(
                    &format!("{KEK}where key=kek make C_CopyObject {attribute}"),
                    &["unwrapped", attribute],
                );
                rig.refused(
                    &format!("{KEK}where key=kek accept C_SetAttributeValue {attribute}"),
                    &["unwrapped", attribute],
                );
            }
            rig.refused(
                &format!("{KEK}where key=kek make C_CopyObject CKA_WRAP\nclaim C_CopyObject CKA_WRAP false\n\
                          claim C_CopyObject CKA_VALUE 00112233"),
                &["unwrapped", "CKA_VALUE"],
            );
        },
    );
}

#[test]
fn a_token_that_does_not_force_the_byok_keys_template_is_refused() {
    in_child(
        "a_token_that_does_not_force_the_byok_keys_template_is_refused",
        async |rig| {
            let silent = "without=CKA_EXTRACTABLE";
            for kind in [31, 16] {
                for (attribute, other) in [
                    ("CKA_EXTRACTABLE", "true"),
                    ("CKA_SENSITIVE", "false"),
                    ("CKA_WRAP", "true"),
                    ("CKA_ENCRYPT", "true"),
                    ("CKA_DECRYPT", "true"),
                    ("CKA_DERIVE", "true"),
                    ("CKA_COPYABLE", "true"),
                    ("CKA_MODIFIABLE", "true"),
                ] {
                    rig.refused(
                        &format!("where key={WRAPPING} CKA_KEY_TYPE=:{kind} accept C_UnwrapKey {attribute}"),
                        &[name(WRAPPING), attribute],
                    );
                    let mut commands = format!(
                        "where key={WRAPPING} CKA_KEY_TYPE=:{kind} {silent} make C_UnwrapKey -CKA_EXTRACTABLE\n"
                    );
                    for (one, right) in [
                        ("CKA_EXTRACTABLE", "false"),
                        ("CKA_SENSITIVE", "true"),
                        ("CKA_WRAP", "false"),
                        ("CKA_ENCRYPT", "false"),
                        ("CKA_DECRYPT", "false"),
                        ("CKA_DERIVE", "false"),
                        ("CKA_COPYABLE", "false"),
                        ("CKA_MODIFIABLE", "false"),
                    ] {
                        let value = if one == attribute { other } else { right };
                        writeln!(
                            commands,
                            "where key={WRAPPING} {silent} claim C_UnwrapKey {one} {value}"
                        )
                        .unwrap();
                    }
                    rig.refused(&commands, &[name(WRAPPING), attribute]);
                }
            }
        },
    );
}

/// Lengths in bytes.
const LENGTHS: [usize; 6] = [1, 2, 4, 5, 8, 16];

#[test]
fn a_key_is_not_unwrapped_as_a_shorter_one() {
    in_child("a_key_is_not_unwrapped_as_a_shorter_one", async |rig| {
        for (key, named) in [
            (MASTER, "unwrapped"),
            (TRANSFER, "transfer key"),
            (WRAPPING, "BYOK"),
        ] {
            for length in LENGTHS {
                rig.refused(
                    &format!(
                        "where key={key} CKA_KEY_TYPE=:16 CKA_VALUE_LEN=:{length} make C_UnwrapKey CKA_VALUE_LEN"
                    ),
                    &[named, "CKA_VALUE_LEN"],
                );
            }
            rig.refused(
                &format!(
                    "where key={key} CKA_KEY_TYPE=:31 CKA_VALUE_LEN=:16 make C_UnwrapKey CKA_VALUE_LEN"
                ),
                &[named, "CKA_VALUE_LEN"],
            );
        }
        // DES, of two keys and of three, whose type says how long they are.
        for kind in [19, 20, 21] {
            rig.refused(
                &format!(
                    "where key={MASTER} CKA_KEY_TYPE=:{kind} with=CKA_EXTRACTABLE make C_UnwrapKey CKA_KEY_TYPE\n\
                     where mechanism=CKM_DES_ECB allow C_EncryptInit"
                ),
                &["unwrapped", "CKA_KEY_TYPE"],
            );
        }
        let started = rig.start(&format!(
            "where key={MASTER} drop C_UnwrapKey CKA_VALUE_LEN"
        ));
        assert!(started.is_ok(), "{:?}", started.err());
    });
}

#[test]
fn no_part_of_a_key_is_derived() {
    in_child("no_part_of_a_key_is_derived", async |rig| {
        let derived = |conditions: &str, mechanism: &str, more: &str| {
            rig.refused(
                &format!("where key={STORE} {conditions} make C_DeriveKey {mechanism}\n{more}"),
                &[name(STORE), "CKA_DERIVE", mechanism],
            );
        };
        // Each kind by one mechanism, and one kind by each.
        let mechanism = "CKM_EXTRACT_KEY_FROM_KEY";
        for length in LENGTHS {
            derived(
                &format!("CKA_KEY_TYPE=:16 CKA_VALUE_LEN=:{length}"),
                mechanism,
                "",
            );
        }
        derived("CKA_KEY_TYPE=:31 CKA_VALUE_LEN=:16", mechanism, "");
        for kind in [19, 20, 21] {
            derived(&format!("CKA_KEY_TYPE=:{kind}"), mechanism, "");
        }
        // As short as it says itself, in bytes or in bits.
        let shortest = |length| format!("shortest {mechanism} {length}");
        derived("CKA_VALUE_LEN=:3", mechanism, &shortest(3));
        derived("CKA_VALUE_LEN=:7", mechanism, &shortest(56));
        derived(
            "CKA_SENSITIVE=false",
            mechanism,
            "claim C_DeriveKey CKA_VALUE none",
        );
        for mechanism in [
            "CKM_XOR_BASE_AND_DATA",
            "CKM_CONCATENATE_BASE_AND_DATA",
            "CKM_CONCATENATE_BASE_AND_KEY",
        ] {
            derived("CKA_KEY_TYPE=:16 CKA_VALUE_LEN=:16", mechanism, "");
            derived("CKA_SENSITIVE=false", mechanism, "");
        }
        derived(
            "CKA_KEY_TYPE=:16 without=CKA_VALUE_LEN",
            "CKM_XOR_BASE_AND_DATA",
            "claim C_DeriveKey CKA_VALUE_LEN :1",
        );
        for conditions in [
            "CKA_VALUE_LEN=:32 CKA_SENSITIVE=true",
            "CKA_SENSITIVE=false",
        ] {
            derived(conditions, "CKM_CONCATENATE_DATA_AND_BASE", "");
        }
        // A length that is ignored, and told, gives as much as the key is worth.
        let whole = format!(
            "where key={STORE} CKA_VALUE_LEN=:1 make C_DeriveKey CKM_XOR_BASE_AND_DATA\n\
             claim C_DeriveKey CKA_VALUE_LEN :32"
        );
        let started = rig.start(&whole);
        assert!(started.is_ok(), "{:?}", started.err());
    });
}

/// Master keys of earlier builds do not force that a KEK stays as it is.
#[test]
fn no_part_is_derived_from_a_kek_that_was_changed() {
    in_child_on(
        "no_part_is_derived_from_a_kek_that_was_changed",
        older,
        async |rig| {
            let mechanism = "CKM_EXTRACT_KEY_FROM_KEY";
            for (kind, call) in [
                // SoftHSM sets it, and copies with it ...
                (31, "without=CKA_MODIFIABLE"),
                (16, "without=CKA_MODIFIABLE"),
                // ... and this is for a token whose defaults are strict.
                (31, "CKA_MODIFIABLE=true CKA_COPYABLE=true"),
                (16, "CKA_MODIFIABLE=true CKA_COPYABLE=true"),
            ] {
                rig.refused(
                    &format!(
                        "where key={MASTER} CKA_KEY_TYPE=:{kind} CKA_DERIVE=false {call} claim C_UnwrapKey CKA_LABEL 6b656b\n\
                         where key=kek CKA_KEY_TYPE=:16 CKA_VALUE_LEN=:1 make C_DeriveKey {mechanism}"
                    ),
                    &["unwrapped", "CKA_DERIVE", "afterwards", mechanism],
                );
            }
        },
    );
}

#[test]
fn no_part_is_derived_from_a_kek_of_an_older_key() {
    in_child_on(
        "no_part_is_derived_from_a_kek_of_an_older_key",
        older,
        async |rig| {
            let mechanism = "CKM_EXTRACT_KEY_FROM_KEY";
            rig.refused(
                &format!(
                    "where key={MASTER} CKA_DERIVE=true claim C_UnwrapKey CKA_LABEL 6b656b\n\
                     where key=kek CKA_KEY_TYPE=:16 CKA_VALUE_LEN=:1 make C_DeriveKey {mechanism}"
                ),
                &[
                    "unwrapped",
                    "CKA_DERIVE",
                    "what the call asks for",
                    mechanism,
                ],
            );
        },
    );
}

#[test]
fn keys_of_an_earlier_build_still_serve() {
    in_child_on("keys_of_an_earlier_build_still_serve", older, async |rig| {
        let hsm = rig.start("").unwrap();
        for usage in [KeyUsage::Aead, KeyUsage::Mac] {
            hsm.generate_key(usage, MasterKind::Hsm).await.unwrap();
        }
        drop(hsm);
        // They force what they did.
        for attribute in ["CKA_EXTRACTABLE", "CKA_WRAP"] {
            rig.refused(
                &format!("where key={MASTER} accept C_UnwrapKey {attribute}"),
                &["unwrapped", attribute, "what the call asks for"],
            );
        }
        // And not what they did not.
        for attribute in ["CKA_COPYABLE", "CKA_MODIFIABLE"] {
            let started = rig.start(&format!("accept C_UnwrapKey {attribute}"));
            match started.err() {
                // The transfer key always forced it.
                Some(HsmError::Trial { reason, .. }) => {
                    assert!(reason.contains("transfer key"), "{reason}");
                }
                other => panic!("{other:?}"),
            }
        }
    });
}

/// Kryoptic 1.5 asks the base key alone for `CKA_DERIVE`.
#[test]
fn no_key_is_put_behind_another() {
    in_child("no_key_is_put_behind_another", async |rig| {
        for conditions in ["CKA_VALUE_LEN=:33", "CKA_SENSITIVE=false"] {
            for (of, named) in [
                ("kek", "unwrapped"),
                (STORE, "the store key"),
                ("moved", "transfer key"),
            ] {
                rig.refused(
                    &format!(
                        "{KEK}{MOVED}where key= of={of} {conditions} make C_DeriveKey CKM_CONCATENATE_BASE_AND_KEY"
                    ),
                    &[named, "CKM_CONCATENATE_BASE_AND_KEY"],
                );
            }
        }
    });
}

/// Refuses each key that has what is asked, however it is made.
fn no_key(asked: &str) -> String {
    ["C_GenerateKey", "C_CreateObject"]
        .map(|function| format!("where {asked} refuse {function}\n"))
        .concat()
}

/// Refuses each key with two of the rights that a trial needs.
fn one_right_a_key() -> String {
    [
        "CKA_WRAP=true CKA_UNWRAP=true",
        "CKA_WRAP=true CKA_DERIVE=true",
        "CKA_UNWRAP=true CKA_DERIVE=true",
    ]
    .map(no_key)
    .concat()
}

#[test]
fn a_token_that_gives_no_key_two_rights_is_tried_all_the_same() {
    in_child(
        "a_token_that_gives_no_key_two_rights_is_tried_all_the_same",
        async |rig| {
            let one = one_right_a_key();
            drop(rig.start(&one).unwrap());
            for (of, named) in [
                ("kek", "unwrapped"),
                ("moved", "transfer key"),
                (STORE, name(STORE)),
            ] {
                rig.refused(
                    &format!(
                        "{one}{KEK}{MOVED}where key= of={of} mechanism=CKM_AES_CBC_PAD allow C_WrapKey"
                    ),
                    &[named, "wrapped"],
                );
            }
            for function in ["C_UnwrapKey", "C_DeriveKey", "C_SetAttributeValue"] {
                let only_own = format!("{one}where key= accept {function} CKA_TRUSTED");
                assert!(rig.trial(&only_own).ends_with(function), "{function}");
            }
            // A key that is told and one that is wrapped, but none that is both.
            let mechanism = "CKM_EXTRACT_KEY_FROM_KEY";
            let both = "where CKA_SENSITIVE=false CKA_EXTRACTABLE=true refuse C_DeriveKey\n";
            for open in [
                "CKA_SENSITIVE=true CKA_EXTRACTABLE=true",
                // Only a token that does not go by PKCS#11 tells it.
                "CKA_SENSITIVE=false CKA_EXTRACTABLE=false",
            ] {
                rig.refused(
                    &format!(
                        "{both}where key={STORE} {open} make C_DeriveKey {mechanism}\n\
                         where CKA_SENSITIVE=false claim C_DeriveKey CKA_VALUE 00112233"
                    ),
                    &[name(STORE), "CKA_DERIVE", mechanism],
                );
            }
        },
    );
}

#[test]
fn a_key_for_a_trial_is_had_in_any_way_that_the_token_gives_it() {
    in_child(
        "a_key_for_a_trial_is_had_in_any_way_that_the_token_gives_it",
        async |rig| {
            let wrapped = |commands: &str, by: &str, mechanism: &str| {
                rig.refused(
                    &format!(
                        "{commands}\n{KEK}where key={by} of=kek mechanism={mechanism} allow C_WrapKey"
                    ),
                    &["unwrapped", "wrapped out"],
                );
            };
            // It generates none.
            for (kind, function, mechanism) in [
                (31, "C_GenerateKey", "CKM_AES_CBC_PAD"),
                (21, "C_GenerateKey", "CKM_DES3_CBC"),
                (3, "C_GenerateKeyPair", "CKM_ECDH_AES_KEY_WRAP"),
            ] {
                let refused = format!("where CKA_KEY_TYPE=:{kind} CKA_WRAP=true refuse {function}");
                wrapped(&refused, "", mechanism);
            }
            // It takes few words only.
            wrapped(
                &no_key("CKA_WRAP=true with=CKA_VERIFY"),
                "",
                "CKM_AES_CBC_PAD",
            );
            // What it generates lacks the right.
            let lacks = "where CKA_WRAP=true claim C_GenerateKey CKA_WRAP false\n\
                         where CKA_WRAP=true claim C_CreateObject CKA_LABEL 69";
            wrapped(lacks, "i", "CKM_AES_CBC_PAD");

            let joined = |commands: &str, own: &str| {
                rig.refused(
                    &format!(
                        "{commands}\n{KEK}where key={own} of=kek make C_DeriveKey CKM_CONCATENATE_BASE_AND_KEY"
                    ),
                    &["unwrapped", "CKM_CONCATENATE_BASE_AND_KEY"],
                );
            };
            joined(
                &format!(
                    "where CKA_DERIVE=true refuse C_GenerateKey\n{}",
                    no_key("CKA_DERIVE=true CKA_KEY_TYPE=:31")
                ),
                "",
            );
            joined(&no_key("CKA_DERIVE=true CKA_KEY_TYPE=:16"), "");

            // One that does both, and one of a pair that is made.
            let both = "where CKA_UNWRAP=true with=CKA_DECRYPT refuse C_CreateObject\n\
                        where key= accept C_UnwrapKey CKA_TRUSTED";
            assert!(rig.trial(both).ends_with("C_UnwrapKey"));
            let pair = "where CKA_CLASS=:2 CKA_KEY_TYPE=:0 refuse C_CreateObject\n\
                        where CKA_KEY_TYPE=:0 CKA_TOKEN=false without=CKA_TRUSTED claim C_GenerateKeyPair CKA_LABEL 70\n\
                        where key=p accept C_SetAttributeValue CKA_TRUSTED";
            assert!(rig.trial(pair).ends_with("C_SetAttributeValue"));
            let copied = "where CKA_CLASS=:2 CKA_KEY_TYPE=:0 claim C_CreateObject CKA_LABEL 70\n\
                          where key=p accept C_CopyObject CKA_TRUSTED";
            assert!(rig.trial(copied).ends_with("C_CopyObject"));
        },
    );
}

#[test]
fn a_token_that_could_not_be_tried_is_not_used() {
    in_child("a_token_that_could_not_be_tried_is_not_used", async |rig| {
        let untried = |commands: &str, parts: &[&str]| match rig.start(commands).err() {
            Some(error @ HsmError::Untried(_)) => {
                let told = error.to_string();
                for part in parts.iter().chain(&["could not be tried", "maker's tool"]) {
                    assert!(told.contains(part), "{commands}: {part}: {told}");
                }
            }
            other => panic!("{commands}: {other:?}"),
        };
        untried(
            &no_key("CKA_KEY_TYPE=:31 CKA_WRAP=true"),
            &["CKM_AES_KEY_WRAP wraps", "makes AES keys", "CKA_WRAP"],
        );
        untried(
            &no_key("CKA_KEY_TYPE=:21 CKA_WRAP=true"),
            &["CKM_DES3_CBC wraps", "makes triple DES keys", "CKA_WRAP"],
        );
        let ecdh = "where key=nobody mechanism=CKM_ECDH_AES_KEY_WRAP allow C_WrapKey";
        untried(
            &format!(
                "{ecdh}\nwhere CKA_KEY_TYPE=:3 CKA_WRAP=true refuse C_GenerateKeyPair\n{}",
                no_key("CKA_KEY_TYPE=:3 CKA_WRAP=true")
            ),
            &["CKM_ECDH_AES_KEY_WRAP wraps", "makes EC keys", "CKA_WRAP"],
        );
        let joins = "where key=nobody make C_DeriveKey CKM_CONCATENATE_BASE_AND_KEY";
        untried(
            &format!("{joins}\n{}", no_key("CKA_DERIVE=true")),
            &["CKM_CONCATENATE_BASE_AND_KEY derives", "CKA_DERIVE"],
        );
        // What only the mark of trusted keys is tried with.
        untried(
            &no_key("CKA_KEY_TYPE=:31 CKA_DERIVE=true"),
            &["CKM_AES_ECB_ENCRYPT_DATA derives", "CKA_DERIVE"],
        );
        untried(
            &no_key("CKA_KEY_TYPE=:31 CKA_UNWRAP=true with=CKA_DECRYPT"),
            &["CKM_AES_KEY_WRAP unwraps", "CKA_UNWRAP"],
        );
        untried(
            "where CKA_CLASS=:2 CKA_KEY_TYPE=:0 refuse C_CreateObject\n\
                 where CKA_KEY_TYPE=:0 CKA_TOKEN=false refuse C_GenerateKeyPair",
            &["CKM_RSA_PKCS", "makes RSA keys", "CKA_WRAP"],
        );
        // Keys that wrap nothing at all; or only those that are to unwrap it again.
        for own in ["", "i"] {
            untried(
                &format!(
                    "where CKA_WRAP=true claim C_CreateObject CKA_LABEL 69\n\
                     where key={own} of= refuse C_WrapKey"
                ),
                &["CKM_AES_KEY_WRAP wraps", "what may be wrapped"],
            );
        }

        // What nobody has, nobody uses: it makes no such keys at all.
        for none in [
            no_key("CKA_KEY_TYPE=:21"),
            "where key=nobody mechanism=CKM_CHACHA20_POLY1305 allow C_WrapKey".to_owned(),
            format!(
                "{ecdh}\nwhere CKA_KEY_TYPE=:3 CKA_TOKEN=false refuse C_GenerateKeyPair\n{}",
                no_key("CKA_KEY_TYPE=:3")
            ),
        ] {
            let started = rig.start(&none);
            assert!(started.is_ok(), "{none}: {:?}", started.err());
        }
    });
}

/// What the product needs of a token, and nothing that wraps by AES.
const NEEDED: &str = "CKM_RSA_PKCS_KEY_PAIR_GEN,CKM_RSA_PKCS_OAEP,CKM_RSA_PKCS,CKM_AES_KEY_GEN,\
                      CKM_AES_GCM,CKM_GENERIC_SECRET_KEY_GEN,CKM_SHA256_HMAC,\
                      CKM_EC_KEY_PAIR_GEN,CKM_ECDSA";

#[test]
fn a_token_that_does_little_and_says_so_serves() {
    in_child("a_token_that_does_little_and_says_so_serves", async |rig| {
        let settings = std::env::var("SOFTHSM2_CONF").unwrap();
        let text = std::fs::read_to_string(&settings).unwrap();
        std::fs::write(&settings, format!("{text}slots.mechanisms = {NEEDED}\n")).unwrap();
        drop(rig.start("").unwrap());
        // It does not say that it wraps by AES, and gives no key that would.
        let wrapless = no_key("CKA_WRAP=true");
        let unwrapless = no_key("CKA_UNWRAP=true with=CKA_DECRYPT");
        drop(rig.start(&format!("{wrapless}{unwrapless}")).unwrap());
    });
}

/// What the transfer key's unwrap template says.
const TRANSFER_FORCES: [&str; 14] = [
    "CKA_TOKEN",
    "CKA_PRIVATE",
    "CKA_SENSITIVE",
    "CKA_EXTRACTABLE",
    "CKA_WRAP_WITH_TRUSTED",
    "CKA_ENCRYPT",
    "CKA_DECRYPT",
    "CKA_SIGN",
    "CKA_VERIFY",
    "CKA_WRAP",
    "CKA_UNWRAP",
    "CKA_DERIVE",
    "CKA_COPYABLE",
    "CKA_MODIFIABLE",
];

#[test]
fn what_comes_out_of_the_transfer_key_is_good_for_nothing() {
    in_child(
        "what_comes_out_of_the_transfer_key_is_good_for_nothing",
        async |rig| {
            for attribute in TRANSFER_FORCES {
                rig.refused(
                    &format!(
                        "where key={TRANSFER} CKA_KEY_TYPE=:31 accept C_UnwrapKey {attribute}"
                    ),
                    &["transfer key", attribute],
                );
            }
            for attribute in ["CKA_EXTRACTABLE", "CKA_SIGN", "CKA_MODIFIABLE"] {
                rig.refused(
                    &format!(
                        "where key={TRANSFER} CKA_KEY_TYPE=:16 accept C_UnwrapKey {attribute}"
                    ),
                    &["transfer key", attribute],
                );
                // As it is used.
                rig.refused(
                    &format!("where key={TRANSFER} claim C_UnwrapKey {attribute} none"),
                    &["transfer key", attribute],
                );
            }
            for kind in [31, 16] {
                rig.refused(
                    &format!(
                        "where key={TRANSFER} CKA_KEY_TYPE=:{kind} without=CKA_TOKEN make C_UnwrapKey -CKA_TOKEN"
                    ),
                    &["transfer key", "CKA_UNWRAP_TEMPLATE"],
                );
            }
            rig.refused(
                &format!("where key={TRANSFER} refuse C_UnwrapKey"),
                &["no key comes out of the transfer key"],
            );
            rig.refused(
                &format!("where key={TRANSFER} claim C_UnwrapKey CKA_VALUE 00112233"),
                &["transfer key", "CKA_VALUE"],
            );
            rig.refused(
                &format!("{MOVED}where key=moved mechanism=CKM_AES_GCM allow C_EncryptInit"),
                &["a key from the transfer key encrypts"],
            );
            for mechanism in ["CKM_XOR_BASE_AND_DATA", "CKM_EXTRACT_KEY_FROM_KEY"] {
                rig.refused(
                    &format!("{MOVED}where key=moved make C_DeriveKey {mechanism}"),
                    &["transfer key", "derived", mechanism],
                );
            }
            for mechanism in BY_RSA {
                rig.refused(
                    &format!(
                        "{MOVED}where key={TRANSFER} of=moved mechanism={mechanism} allow C_WrapKey"
                    ),
                    &["transfer key", "public key that is not trusted"],
                );
            }
            rig.refused(
                &format!("{MOVED}where key= of=moved mechanism=CKM_AES_CTR allow C_WrapKey"),
                &["transfer key", "AES key that is not trusted"],
            );
            for attribute in [
                "CKA_WRAP_WITH_TRUSTED",
                "CKA_SENSITIVE",
                "CKA_ENCRYPT",
                "CKA_DECRYPT",
                "CKA_DERIVE",
                "CKA_MODIFIABLE",
                "CKA_COPYABLE",
            ] {
                for change in [
                    format!("accept C_SetAttributeValue {attribute}"),
                    format!("make C_CopyObject {attribute}"),
                ] {
                    rig.refused(
                        &format!("{MOVED}where key=moved {change}"),
                        &["a key from the transfer key", attribute],
                    );
                }
            }
            // A key that says that it is not trusted, and counts as one.
            rig.refused(
                &format!(
                    "{GUARDED}where with=CKA_TRUSTED claim C_GenerateKey CKA_LABEL 63\n\
                     ignore C_GenerateKey CKA_TRUSTED\n\
                     where key=c of=g mechanism=CKM_AES_CBC_PAD allow C_WrapKey"
                ),
                &["trusted", "C_GenerateKey"],
            );
        },
    );
}

#[test]
fn what_goes_under_trusted_keys_goes_under_no_other() {
    in_child_on(
        "what_goes_under_trusted_keys_goes_under_no_other",
        blank,
        async |rig| {
            let rig = Rig {
                shape: KeyShape::Movable,
                ..rig
            };
            rig.control("");
            Hsm::provision(
                &HsmConfig { ..rig.config() },
                OptionalKeys::default(),
                &mut |_| (),
            )
            .unwrap();
            drop(rig.start("").unwrap());
            for (by, mechanism) in [
                (MASTER, "CKM_RSA_PKCS_OAEP"),
                (MASTER, "CKM_RSA_AES_KEY_WRAP"),
                ("", "CKM_AES_KEY_WRAP_PAD"),
                ("", "CKM_AES_CCM"),
                ("", "CKM_DES3_CBC_PAD"),
            ] {
                rig.refused(
                    &format!("{GUARDED}where key={by} of=g mechanism={mechanism} allow C_WrapKey"),
                    &["backup", "one that is not trusted"],
                );
            }
            rig.refused(
                "where with=CKA_WRAP_WITH_TRUSTED claim C_GenerateKey CKA_VALUE 00112233",
                &["backup", "CKA_VALUE"],
            );
            for attribute in ["CKA_WRAP_WITH_TRUSTED", "CKA_SENSITIVE", "CKA_DERIVE"] {
                for change in [
                    format!("accept C_SetAttributeValue {attribute}"),
                    format!("make C_CopyObject {attribute}"),
                ] {
                    rig.refused(
                        &format!("{GUARDED}where key=g {change}"),
                        &["backup", attribute],
                    );
                }
            }
        },
    );
}

fn in_child(test: &str, body: impl AsyncFnOnce(Rig)) {
    in_child_on(test, token, body);
}

#[test]
#[ignore = "runs in a child process, once, to make the token"]
fn provision() {
    provision_all();
}

#[test]
#[ignore = "runs in a child process, once, to make the token"]
fn provision_as_earlier_builds_did() {
    provision_older();
}
