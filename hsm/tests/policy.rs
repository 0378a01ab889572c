//! A start refuses a token, a PIN or a selection that is not as it must be, and says what is wrong.
//! Each single rule of the templates is broken in `src/keys/tests.rs`; these are whole starts.
#![allow(
    clippy::await_holding_lock,
    reason = "the turn lasts for the whole test"
)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::{config, turn};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use strongroom_hsm::{Hsm, HsmConfig, HsmError, OptionalKeys, PinSource, TokenSelector};
use strongroom_softhsm::Throwaway;

#[test]
#[allow(
    clippy::too_many_lines,
    reason = "one token, made worse step by step: making one takes seconds"
)]
fn a_token_with_a_bad_key_does_not_start() {
    let _turn = turn();
    let token = Throwaway::in_process().unwrap();
    match Hsm::start(config(&token)).err() {
        Some(HsmError::Missing { name, label, there }) => {
            assert_eq!((&*name, &*label), ("master key", "strongroom-master"));
            assert!(there.is_empty(), "{there:?}");
        }
        other => panic!("{other:?}"),
    }
    let mut steps = Vec::new();
    Hsm::provision(&config(&token), OptionalKeys::default(), &mut |step| {
        steps.push(step.to_owned());
    })
    .unwrap();
    assert!(
        steps
            .iter()
            .any(|step| step.contains("RSA-4096 master key")),
        "{steps:?}"
    );
    drop(Hsm::start(config(&token)).unwrap());

    let again = Hsm::provision(&config(&token), OptionalKeys::default(), &mut |_| ()).unwrap_err();
    assert!(
        matches!(&again, HsmError::KeyExists(name) if name == "master key"),
        "{again}"
    );

    // Each of these leaves the token worse than the one before, in a key that is checked earlier.
    with_session(&token, |session| {
        session
            .destroy_object(find(session, ObjectClass::SECRET_KEY, "strongroom-store"))
            .unwrap();
        // A store key whose bytes somebody knows: everything else is as it must be.
        let mut template = store_key();
        template.extend([Attribute::Value(vec![7; 32]), Attribute::Modifiable(false)]);
        session.create_object(&template).unwrap();
    });
    assert_policy(&token, "store key", "CKA_ALWAYS_SENSITIVE");

    with_session(&token, |session| {
        let mut template = store_key();
        template.push(Attribute::ValueLen(32.into()));
        session
            .generate_key(&Mechanism::AesKeyGen, &template)
            .unwrap();
    });
    assert_policy(&token, "store key", "CKA_LABEL");

    let audit = |session: &Session, derive: bool| {
        let label = Attribute::Label("strongroom-audit".into());
        let oid = vec![0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
        let both = [
            Attribute::Token(true),
            label,
            Attribute::Id("strongroom-audit".into()),
            Attribute::Derive(derive),
        ];
        let mut public = both.to_vec();
        public.extend([
            Attribute::EcParams(oid),
            Attribute::Private(false),
            Attribute::Verify(true),
        ]);
        let mut private = both.to_vec();
        private.extend([
            Attribute::Sign(true),
            Attribute::SignRecover(false),
            Attribute::Decrypt(false),
            Attribute::Unwrap(false),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
        ]);
        session
            .generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)
            .unwrap();
    };
    with_session(&token, |session| {
        destroy_pair(session, "strongroom-audit");
        audit(session, true);
    });
    assert_policy(&token, "audit signing key", "CKA_DERIVE");

    for (extra, attribute) in [
        (vec![Attribute::Extractable(true)], "CKA_EXTRACTABLE"),
        (vec![Attribute::Sensitive(false)], "CKA_SENSITIVE"),
        (
            vec![Attribute::Extractable(false), Attribute::Decrypt(true)],
            "CKA_DECRYPT",
        ),
        (
            vec![Attribute::Extractable(false), Attribute::Sign(true)],
            "CKA_SIGN",
        ),
        (
            vec![Attribute::Extractable(false), Attribute::Copyable(false)],
            "CKA_MODIFIABLE",
        ),
        (
            vec![
                Attribute::Extractable(false),
                Attribute::Modifiable(false),
                Attribute::Copyable(false),
            ],
            "CKA_ALLOWED_MECHANISMS",
        ),
        (
            vec![
                Attribute::Extractable(false),
                Attribute::AllowedMechanisms(vec![MechanismType::RSA_PKCS_OAEP]),
                Attribute::Copyable(false),
                Attribute::Modifiable(false),
            ],
            "CKA_UNWRAP_TEMPLATE",
        ),
    ] {
        with_session(&token, |session| {
            destroy_pair(session, "strongroom-master");
            make_master(session, &extra);
        });
        assert_policy(&token, "master key", attribute);
    }

    with_session(&token, |session| {
        session
            .generate_key(
                &Mechanism::AesKeyGen,
                &[
                    Attribute::Token(true),
                    Attribute::Label("helper".into()),
                    Attribute::Wrap(true),
                    Attribute::Decrypt(true),
                    Attribute::ValueLen(32.into()),
                ],
            )
            .unwrap();
    });
    assert_policy(&token, "key labelled \"helper\"", "CKA_WRAP");
}

#[test]
fn a_token_is_found_by_label_serial_or_uri() {
    let _turn = turn();
    let token = common::token();
    let start = |selector| {
        Hsm::start(HsmConfig {
            token: selector,
            ..config(token)
        })
    };
    let label = token.label().to_owned();
    let identity = start(TokenSelector::Label(label.clone())).unwrap().token();
    assert_eq!(
        start(TokenSelector::Serial(identity.serial.clone()))
            .unwrap()
            .token(),
        identity
    );
    let uri = format!(
        "pkcs11:token={};model=SoftHSM%20v2;manufacturer=SoftHSM%20project;serial={}",
        label, identity.serial
    );
    assert_eq!(start(TokenSelector::Uri(uri)).unwrap().token(), identity);
    for (selector, part) in [
        (
            TokenSelector::Label("no such token".to_owned()),
            label.as_str(),
        ),
        (
            TokenSelector::Uri(format!("pkcs11:token={label};serial=ff")),
            label.as_str(),
        ),
        (
            TokenSelector::Uri(format!("pkcs11:token={label}?pin-value=1234")),
            "never given in a URI",
        ),
    ] {
        let error = start(selector).err().unwrap();
        assert!(
            matches!(&error, HsmError::Config(text) if text.contains(part)),
            "{error}"
        );
    }
    let other = Throwaway::in_process().unwrap();
    let several = start(TokenSelector::Uri(
        "pkcs11:manufacturer=SoftHSM%20project".to_owned(),
    ));
    let error = several.err().unwrap().to_string();
    assert!(
        error.contains("tokens match") && error.contains(other.label()),
        "{error}"
    );
}

#[test]
fn a_bad_configuration_is_refused() {
    let _turn = turn();
    let token = common::token();
    let refused = |config: HsmConfig, part: &str| {
        let error = Hsm::start(config).err().unwrap();
        assert!(
            matches!(&error, HsmError::Config(text) if text.contains(part)),
            "{error}"
        );
    };
    refused(
        HsmConfig {
            module: "/no/such/module.so".into(),
            ..config(token)
        },
        "/no/such/module.so",
    );
    let text = token.path().join("text");
    fs::write(&text, "no library").unwrap();
    refused(
        HsmConfig {
            module: text,
            ..config(token)
        },
        "can't be loaded",
    );
    refused(
        HsmConfig {
            sessions: 0,
            ..config(token)
        },
        "1 to 64 sessions",
    );
    refused(
        HsmConfig {
            queue: 0,
            ..config(token)
        },
        "queue",
    );
    let open = token.path().join("open-pin");
    fs::write(&open, "1234").unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    refused(
        HsmConfig {
            pin: PinSource::File(open),
            ..config(token)
        },
        "chmod 0400",
    );
    refused(
        HsmConfig {
            pin: PinSource::File("/no/such/pin".into()),
            ..config(token)
        },
        "no file in /no/such has the name",
    );

    let wrong = token.path().join("wrong-pin");
    fs::write(&wrong, "not the PIN").unwrap();
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o400)).unwrap();
    let error = Hsm::start(HsmConfig {
        pin: PinSource::File(wrong),
        ..config(token)
    })
    .err()
    .unwrap();
    assert!(
        matches!(&error, HsmError::Pin(code) if code == "CKR_PIN_INCORRECT"),
        "{error}"
    );
    assert!(!error.to_string().contains("not the PIN"));
}

/// The start fails and names the key and the attribute.
fn assert_policy(token: &Throwaway, key: &str, attribute: &str) {
    match Hsm::start(config(token)).err() {
        Some(HsmError::KeyPolicy {
            key: found,
            attribute: named,
            problem,
        }) => {
            assert_eq!(
                (found.as_str(), named.as_str()),
                (key, attribute),
                "{problem}"
            );
        }
        other => panic!("{key} {attribute}: {other:?}"),
    }
}

fn with_session(token: &Throwaway, body: impl FnOnce(&Session)) {
    let pin = fs::read(token.pin_file()).unwrap();
    common::with_session(token.module(), token.label(), UserType::User, &pin, body);
}

fn find(session: &Session, class: ObjectClass, label: &str) -> ObjectHandle {
    session
        .find_objects(&[Attribute::Class(class), Attribute::Label(label.into())])
        .unwrap()[0]
}

fn destroy_pair(session: &Session, label: &str) {
    for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY] {
        session.destroy_object(find(session, class, label)).unwrap();
    }
}

fn store_key() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Label("strongroom-store".into()),
        Attribute::Id("strongroom-store".into()),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
        Attribute::Copyable(false),
        Attribute::AllowedMechanisms(vec![MechanismType::AES_GCM]),
    ]
}

/// A master key pair that is right but for what `extra` adds and for the missing unwrap template,
/// which is checked after the rest.
fn make_master(session: &Session, extra: &[Attribute]) {
    let both = [
        Attribute::Token(true),
        Attribute::Label("strongroom-master".into()),
        Attribute::Id("strongroom-master".into()),
        Attribute::Derive(false),
    ];
    let mut public = both.to_vec();
    public.extend([
        Attribute::Private(false),
        Attribute::ModulusBits(2048.into()),
        Attribute::PublicExponent(vec![1, 0, 1]),
        Attribute::Wrap(true),
    ]);
    let mut private = both.to_vec();
    private.extend([Attribute::Private(true), Attribute::Unwrap(true)]);
    let defaults = [
        Attribute::Sensitive(true),
        Attribute::Decrypt(false),
        Attribute::Sign(false),
        Attribute::SignRecover(false),
    ];
    for default in defaults {
        if !extra
            .iter()
            .any(|other| other.attribute_type() == default.attribute_type())
        {
            private.push(default);
        }
    }
    private.extend_from_slice(extra);
    session
        .generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private)
        .unwrap();
}
