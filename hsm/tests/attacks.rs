//! The PKCS#11 attack list, by somebody who has the user PIN and the module, against the token that
//! [`Hsm::provision`] makes.
//!
//! Clulow, "On the Security of PKCS #11" (2003); Bortolozzo et al., "Attacking and Fixing PKCS#11
//! Security Tokens" (CCS 2010).
#![allow(
    clippy::await_holding_lock,
    reason = "the turn lasts for the whole test"
)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{config, token, turn};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::elliptic_curve::{EcKdf, Ecdh1DeriveParams};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use strongroom_hsm::{Hsm, KeyUsage, MasterKind};

/// The attacker's session, on the provisioned token.
struct Attacker {
    session: Session,
    // Fields are dropped in order: the library goes after the session.
    library: Library,
}

struct Library(Pkcs11);

impl Drop for Library {
    fn drop(&mut self) {
        let _ = self.0.clone().finalize();
    }
}

impl Attacker {
    fn new() -> Self {
        let token = token();
        let library = Library(Pkcs11::new(token.module()).unwrap());
        // The product may run in this process.
        match library
            .0
            .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
        {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => panic!("{error}"),
        }
        let session = common::open_session(&library.0, token.label());
        let pin = std::fs::read_to_string(token.pin_file()).unwrap();
        match session.login(UserType::User, Some(&AuthPin::new(pin.into()))) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            Err(error) => panic!("{error}"),
        }
        Self { session, library }
    }

    fn key(&self, class: ObjectClass, label: &str) -> ObjectHandle {
        let template = [Attribute::Class(class), Attribute::Label(label.into())];
        let found = self.session.find_objects(&template).unwrap();
        assert_eq!(found.len(), 1, "{label}");
        found[0]
    }

    fn master(&self) -> ObjectHandle {
        self.key(ObjectClass::PRIVATE_KEY, "strongroom-master")
    }

    /// Every key that must never leave the token, by name.
    fn treasures(&self) -> Vec<(&'static str, ObjectHandle)> {
        let mut all = vec![
            ("session KEK", self.kek()),
            (
                "store",
                self.key(ObjectClass::SECRET_KEY, "strongroom-store"),
            ),
        ];
        for label in [
            "strongroom-master",
            "strongroom-transfer",
            "strongroom-memory-master",
            "strongroom-wrapping",
            "strongroom-audit",
        ] {
            all.push((label, self.key(ObjectClass::PRIVATE_KEY, label)));
        }
        all
    }

    /// A KEK as the product keeps it: wrapped by the master key.
    fn wrapped_kek(&self) -> Vec<u8> {
        self.wrapped_by("strongroom-master")
    }

    fn wrapped_by(&self, label: &str) -> Vec<u8> {
        let kek = self
            .session
            .generate_key(
                &Mechanism::AesKeyGen,
                &[
                    Attribute::Token(false),
                    Attribute::Sensitive(true),
                    Attribute::Extractable(true),
                    Attribute::ValueLen(32.into()),
                ],
            )
            .unwrap();
        let public = self.key(ObjectClass::PUBLIC_KEY, label);
        let wrapped = self.session.wrap_key(&oaep(), public, kek).unwrap();
        self.session.destroy_object(kek).unwrap();
        wrapped
    }

    /// The control: the unwrapping that the product does.
    fn kek(&self) -> ObjectHandle {
        self.session
            .unwrap_key(&oaep(), self.master(), &self.wrapped_kek(), &strict())
            .unwrap()
    }

    /// An AES key of the attacker's own that may wrap and decrypt.
    fn own_wrapping_key(&self) -> ObjectHandle {
        self.session
            .generate_key(
                &Mechanism::AesKeyGen,
                &[
                    Attribute::Token(false),
                    Attribute::Wrap(true),
                    Attribute::Unwrap(true),
                    Attribute::Decrypt(true),
                    Attribute::Encrypt(true),
                    Attribute::ValueLen(32.into()),
                ],
            )
            .unwrap()
    }
}

/// What the transfer key forces; each must be repeated.
fn to_move() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(true),
        Attribute::WrapWithTrusted(true),
        Attribute::Encrypt(false),
        Attribute::Decrypt(false),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
        Attribute::Copyable(false),
        Attribute::Modifiable(false),
    ]
}

fn oaep() -> Mechanism<'static> {
    Mechanism::RsaPkcsOaep(PkcsOaepParams::new(
        MechanismType::SHA1,
        PkcsMgfType::MGF1_SHA1,
        PkcsOaepSource::empty(),
    ))
}

fn strict() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Derive(false),
        Attribute::Copyable(false),
        Attribute::AllowedMechanisms(vec![MechanismType::AES_GCM]),
        // Last: SoftHSM lets nothing be set after it.
        Attribute::Modifiable(false),
    ]
}

/// `strict()` with one attribute changed.
fn strict_but(changed: Attribute) -> Vec<Attribute> {
    let mut template = strict();
    template.retain(|attribute| attribute.attribute_type() != changed.attribute_type());
    template.insert(0, changed);
    template
}

/// The code with which the token refused.
fn refusal<T>(result: Result<T, Error>, attack: &str) -> RvError {
    match result {
        Err(Error::Pkcs11(code, _)) => code,
        Err(error) => panic!("{attack}: {error}"),
        Ok(_) => panic!("{attack} succeeded"),
    }
}

#[test]
fn control_the_legitimate_unwrap_succeeds() {
    let _turn = turn();
    let attacker = Attacker::new();
    let kek = attacker.kek();
    let mut iv = [0; 12];
    let gcm = Mechanism::AesGcm(GcmParams::new(&mut iv, &[], 128.into()).unwrap());
    let sealed = attacker.session.encrypt(&gcm, kek, b"data").unwrap();
    assert_eq!(
        attacker.session.decrypt(&gcm, kek, &sealed).unwrap(),
        b"data"
    );
    // And the attacker's own key does wrap a key that may be wrapped: the refusals below are not
    // its fault.
    let own = attacker.own_wrapping_key();
    let extractable = attacker
        .session
        .generate_key(
            &Mechanism::AesKeyGen,
            &[
                Attribute::Token(false),
                Attribute::Extractable(true),
                Attribute::ValueLen(32.into()),
            ],
        )
        .unwrap();
    attacker
        .session
        .wrap_key(&Mechanism::AesKeyWrap, own, extractable)
        .unwrap();
}

#[test]
fn a_kek_does_not_unwrap_with_weaker_attributes() {
    let _turn = turn();
    let attacker = Attacker::new();
    let wrapped = attacker.wrapped_kek();
    for weaker in [
        Attribute::Extractable(true),
        Attribute::Sensitive(false),
        Attribute::Wrap(true),
        Attribute::Unwrap(true),
        Attribute::Derive(true),
        Attribute::Modifiable(true),
        Attribute::Copyable(true),
    ] {
        let attack = format!("unwrapping with {weaker:?}");
        let result =
            attacker
                .session
                .unwrap_key(&oaep(), attacker.master(), &wrapped, &strict_but(weaker));
        assert_eq!(
            refusal(result, &attack),
            RvError::TemplateInconsistent,
            "{attack}"
        );
    }
    // Saying nothing must not fall back on weaker defaults.
    let silent = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
    ];
    if let Ok(kek) = attacker
        .session
        .unwrap_key(&oaep(), attacker.master(), &wrapped, &silent)
    {
        let own = attacker.own_wrapping_key();
        let result = attacker.session.wrap_key(&Mechanism::AesKeyWrap, own, kek);
        refusal(result, "wrapping out a KEK unwrapped without attributes");
    }
}

/// Without the two attributes in the master key's template, `SoftHSM` gives a key here that takes
/// all of it.
#[test]
fn a_kek_that_is_unwrapped_by_a_stranger_is_neither_changed_nor_copied() {
    let _turn = turn();
    let attacker = Attacker::new();
    let session = &attacker.session;
    let wrapped = attacker.wrapped_kek();
    let rights = [
        Attribute::Derive(true),
        Attribute::Wrap(true),
        Attribute::Unwrap(true),
    ];
    let without = |left_out: &[AttributeType]| {
        let mut template = strict();
        template.retain(|attribute| !left_out.contains(&attribute.attribute_type()));
        template
    };
    for left_out in [
        &[AttributeType::Modifiable][..],
        &[AttributeType::Copyable],
        &[AttributeType::Modifiable, AttributeType::Copyable],
        &[],
    ] {
        let template = without(left_out);
        let Ok(kek) = session.unwrap_key(&oaep(), attacker.master(), &wrapped, &template) else {
            assert!(!left_out.is_empty(), "the control");
            continue;
        };
        for right in &rights {
            let attack = format!("{right:?} where the call leaves {left_out:?} out");
            refusal(
                session.update_attributes(kek, std::slice::from_ref(right)),
                &attack,
            );
            refusal(
                session.copy_object(kek, std::slice::from_ref(right)),
                &attack,
            );
        }
    }
}

#[test]
fn the_byok_key_yields_no_key_that_is_changed_or_copied() {
    let _turn = turn();
    let attacker = Attacker::new();
    let wrapping = attacker.key(ObjectClass::PRIVATE_KEY, "strongroom-wrapping");
    let public = attacker.key(ObjectClass::PUBLIC_KEY, "strongroom-wrapping");
    let number = |attribute| match attacker
        .session
        .get_attributes(public, &[attribute])
        .unwrap()
        .pop()
    {
        Some(Attribute::Modulus(bytes) | Attribute::PublicExponent(bytes)) => {
            rsa::BoxedUint::from_be_slice_vartime(&bytes)
        }
        other => panic!("{other:?}"),
    };
    let key = rsa::PublicKey::new(
        number(AttributeType::Modulus),
        number(AttributeType::PublicExponent),
    )
    .unwrap();
    let wrapped = key.oaep_encrypt::<sha1::Sha1>(&[0x5a; 32]).unwrap();
    // As the product does it.
    let call = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Wrap(false),
        Attribute::Unwrap(true),
        Attribute::Encrypt(false),
        Attribute::Decrypt(false),
        Attribute::Derive(false),
        Attribute::Copyable(false),
        Attribute::Modifiable(false),
    ];
    let session = &attacker.session;
    session
        .unwrap_key(&oaep(), wrapping, &wrapped, &call)
        .unwrap();
    for weaker in [
        Attribute::Derive(true),
        Attribute::Copyable(true),
        Attribute::Modifiable(true),
    ] {
        let kind = weaker.attribute_type();
        let mut template = call.clone();
        template.retain(|attribute| attribute.attribute_type() != kind);
        let silent = session.unwrap_key(&oaep(), wrapping, &wrapped, &template);
        refusal(silent, &format!("leaving {kind:?} out"));
        template.insert(0, weaker);
        let asked = session.unwrap_key(&oaep(), wrapping, &wrapped, &template);
        refusal(asked, &format!("{kind:?}"));
    }
}

#[test]
fn the_memory_master_does_not_unwrap_and_the_master_does_not_decrypt() {
    let _turn = turn();
    let attacker = Attacker::new();
    let wrapped = attacker.wrapped_kek();
    let result = attacker
        .session
        .decrypt(&oaep(), attacker.master(), &wrapped);
    assert_eq!(
        refusal(result, "decrypting a wrapped KEK"),
        RvError::KeyFunctionNotPermitted
    );
    let wrapping = attacker.key(ObjectClass::PRIVATE_KEY, "strongroom-wrapping");
    let result = attacker.session.decrypt(&oaep(), wrapping, &wrapped);
    assert_eq!(
        refusal(result, "decrypting with the BYOK key"),
        RvError::KeyFunctionNotPermitted
    );
    let memory = attacker.key(ObjectClass::PRIVATE_KEY, "strongroom-memory-master");
    let result = attacker
        .session
        .unwrap_key(&oaep(), memory, &wrapped, &strict());
    refusal(result, "unwrapping with the memory master");
}

#[test]
fn no_key_is_wrapped_out() {
    let _turn = turn();
    let attacker = Attacker::new();
    let own = attacker.own_wrapping_key();
    let public = attacker.key(ObjectClass::PUBLIC_KEY, "strongroom-master");
    for (name, key) in attacker.treasures() {
        for (mechanism, wrapper) in [
            (Mechanism::AesKeyWrapPad, own),
            (Mechanism::AesKeyWrap, own),
            (oaep(), public),
            (Mechanism::RsaPkcs, public),
        ] {
            let attack = format!("wrapping the {name} key out");
            refusal(attacker.session.wrap_key(&mechanism, wrapper, key), &attack);
        }
    }
}

#[test]
fn no_key_is_copied_with_weaker_attributes() {
    let _turn = turn();
    let attacker = Attacker::new();
    for (name, key) in attacker.treasures() {
        for weaker in [
            Attribute::Extractable(true),
            Attribute::Sensitive(false),
            Attribute::Decrypt(true),
            Attribute::Wrap(true),
            Attribute::Token(false),
        ] {
            let attack = format!("copying the {name} key with {weaker:?}");
            refusal(attacker.session.copy_object(key, &[weaker]), &attack);
        }
    }
}

#[test]
fn no_attribute_is_set() {
    let _turn = turn();
    let attacker = Attacker::new();
    for (name, key) in attacker.treasures() {
        for weaker in [
            Attribute::Extractable(true),
            Attribute::Sensitive(false),
            Attribute::Decrypt(true),
            Attribute::Wrap(true),
            Attribute::Unwrap(true),
            Attribute::Modifiable(true),
            Attribute::Copyable(true),
            Attribute::AllowedMechanisms(vec![MechanismType::RSA_PKCS]),
        ] {
            let attack = format!("setting {weaker:?} on the {name} key");
            refusal(attacker.session.update_attributes(key, &[weaker]), &attack);
        }
    }
}

#[test]
fn no_key_tells_its_value() {
    use cryptoki::object::AttributeType;
    let _turn = turn();
    let attacker = Attacker::new();
    for (name, key) in attacker.treasures() {
        for secret in [
            AttributeType::Value,
            AttributeType::PrivateExponent,
            AttributeType::Prime1,
        ] {
            let told = attacker.session.get_attributes(key, &[secret]);
            assert!(
                told.is_err() || told.unwrap().is_empty(),
                "the {name} key tells {secret:?}"
            );
        }
    }
}

#[test]
fn a_mechanism_off_the_list_is_refused() {
    let _turn = turn();
    let attacker = Attacker::new();
    let session = &attacker.session;
    let wrapped = attacker.wrapped_kek();
    let master = attacker.master();
    for mechanism in [Mechanism::RsaPkcs, Mechanism::RsaX509] {
        let attack = format!("unwrapping by {mechanism:?}");
        let result = session.unwrap_key(&mechanism, master, &wrapped, &strict());
        assert_eq!(
            refusal(result, &attack),
            RvError::MechanismInvalid,
            "{attack}"
        );
        refusal(
            session.decrypt(&mechanism, master, &wrapped),
            "decrypting with the master key",
        );
        refusal(
            session.sign(&mechanism, master, &[1; 32]),
            "signing with the master key",
        );
    }
    let memory = attacker.key(ObjectClass::PRIVATE_KEY, "strongroom-memory-master");
    // Raw RSA would be an oracle for the padding.
    let result = session.decrypt(&Mechanism::RsaX509, memory, &wrapped);
    assert_eq!(
        refusal(result, "raw RSA with the memory master"),
        RvError::MechanismInvalid
    );
    let store = attacker.key(ObjectClass::SECRET_KEY, "strongroom-store");
    for key in [store, attacker.kek()] {
        // ECB and CBC would open GCM ciphertexts without their tags.
        for mechanism in [
            Mechanism::AesEcb,
            Mechanism::AesCbc([0; 16]),
            Mechanism::AesCbcPad([0; 16]),
        ] {
            let attack = format!("using {mechanism:?}");
            let code = refusal(session.encrypt(&mechanism, key, &[0; 16]), &attack);
            assert_eq!(code, RvError::MechanismInvalid, "{attack}");
            let code = refusal(session.decrypt(&mechanism, key, &[0; 16]), &attack);
            assert_eq!(code, RvError::MechanismInvalid, "{attack}");
        }
    }
    let audit = attacker.key(ObjectClass::PRIVATE_KEY, "strongroom-audit");
    let point = [4; 65];
    let ecdh = Mechanism::Ecdh1Derive(Ecdh1DeriveParams::new(EcKdf::null(), &point));
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ];
    refusal(
        session.derive_key(&ecdh, audit, &template),
        "deriving with the audit key",
    );
}

#[tokio::test]
async fn the_products_own_session_keys_are_as_strict() {
    let _turn = turn();
    let hsm = Hsm::start(config(token())).unwrap();
    for usage in [KeyUsage::Aead, KeyUsage::Mac] {
        hsm.generate_key(usage, MasterKind::Hsm).await.unwrap();
    }
    // Session objects are visible to every session of the process.
    let attacker = Attacker::new();
    let session = &attacker.session;
    let keks = session
        .find_objects(&[
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::Token(false),
        ])
        .unwrap();
    // Two KEKs and the canary; the extractable originals are gone.
    assert_eq!(keks.len(), 3);
    let own = attacker.own_wrapping_key();
    let mut narrow = 0;
    for kek in keks {
        for mechanism in [Mechanism::AesKeyWrapPad, Mechanism::AesKeyWrap] {
            refusal(session.wrap_key(&mechanism, own, kek), "wrapping a KEK out");
        }
        for weaker in [Attribute::Extractable(true), Attribute::Wrap(true)] {
            let set = session.update_attributes(kek, std::slice::from_ref(&weaker));
            refusal(set, "setting an attribute of a KEK");
            refusal(session.copy_object(kek, &[weaker]), "copying a KEK");
        }
        let cbc = session.encrypt(&Mechanism::AesCbc([0; 16]), kek, &[0; 16]);
        narrow += usize::from(refusal_code(&cbc) == Some(RvError::MechanismInvalid));
    }
    assert!(narrow >= 1, "the AES KEK does GCM only");
    // In this order: the product finalizes the library at its end.
    drop(attacker.session);
    std::mem::forget(attacker.library);
    drop(hsm);
}

fn refusal_code<T>(result: &Result<T, Error>) -> Option<RvError> {
    match result {
        Err(Error::Pkcs11(code, _)) => Some(*code),
        _ => None,
    }
}

#[test]
fn the_byok_key_yields_nothing_that_comes_out() {
    let _turn = turn();
    let attacker = Attacker::new();
    // The attacker knows an AES key and wraps it as an import would ...
    let public = attacker.key(ObjectClass::PUBLIC_KEY, "strongroom-wrapping");
    let own = attacker.own_wrapping_key();
    refusal(
        attacker.session.wrap_key(&oaep(), public, own),
        "wrapping in the token with the BYOK key",
    );
    // ... but a key meant for the master key can't be taken through the BYOK key either.
    let wrapping = attacker.key(ObjectClass::PRIVATE_KEY, "strongroom-wrapping");
    let wrapped = attacker.wrapped_kek();
    let result = attacker
        .session
        .unwrap_key(&oaep(), wrapping, &wrapped, &strict());
    refusal(result, "unwrapping a KEK with the BYOK key");
}

#[test]
fn no_kek_leaves_through_the_transfer_key() {
    let _turn = turn();
    let attacker = Attacker::new();
    let session = &attacker.session;
    let transfer = attacker.key(ObjectClass::PRIVATE_KEY, "strongroom-transfer");
    let wrapped = attacker.wrapped_by("strongroom-transfer");
    let refused = session.decrypt(&oaep(), transfer, &wrapped);
    refusal(refused, "decrypting with the transfer key");
    // Each attribute, changed or left out.
    for attribute in to_move().into_iter().skip(2) {
        let kind = attribute.attribute_type();
        let mut without = to_move();
        without.retain(|other| other.attribute_type() != kind);
        let other = match attribute {
            Attribute::Token(v) => Attribute::Token(!v),
            Attribute::Private(v) => Attribute::Private(!v),
            Attribute::Sensitive(v) => Attribute::Sensitive(!v),
            Attribute::Extractable(v) => Attribute::Extractable(!v),
            Attribute::WrapWithTrusted(v) => Attribute::WrapWithTrusted(!v),
            Attribute::Encrypt(v) => Attribute::Encrypt(!v),
            Attribute::Decrypt(v) => Attribute::Decrypt(!v),
            Attribute::Sign(v) => Attribute::Sign(!v),
            Attribute::Verify(v) => Attribute::Verify(!v),
            Attribute::Wrap(v) => Attribute::Wrap(!v),
            Attribute::Unwrap(v) => Attribute::Unwrap(!v),
            Attribute::Derive(v) => Attribute::Derive(!v),
            Attribute::Copyable(v) => Attribute::Copyable(!v),
            Attribute::Modifiable(v) => Attribute::Modifiable(!v),
            other => panic!("{other:?}"),
        };
        // Two have defaults that agree.
        if !matches!(other, Attribute::Token(_) | Attribute::Private(_)) {
            let attack = format!("unwrapping without {kind:?}");
            let result = session.unwrap_key(&oaep(), transfer, &wrapped, &without);
            assert_eq!(
                refusal(result, &attack),
                RvError::TemplateInconsistent,
                "{attack}"
            );
        }
        let attack = format!("unwrapping with {other:?}");
        without.insert(2, other);
        let result = session.unwrap_key(&oaep(), transfer, &wrapped, &without);
        assert_eq!(
            refusal(result, &attack),
            RvError::TemplateInconsistent,
            "{attack}"
        );
    }
    // The control: as a rotation does it.
    let moved = session
        .unwrap_key(&oaep(), transfer, &wrapped, &to_move())
        .unwrap();
    let mut iv = [0; 12];
    let gcm = Mechanism::AesGcm(GcmParams::new(&mut iv, &[], 128.into()).unwrap());
    refusal(
        session.encrypt(&gcm, moved, b"data"),
        "encrypting with a KEK that is on its way",
    );
    let own = attacker.own_wrapping_key();
    for label in [
        "strongroom-master",
        "strongroom-transfer",
        "strongroom-memory-master",
    ] {
        let public = attacker.key(ObjectClass::PUBLIC_KEY, label);
        let result = session.wrap_key(&oaep(), public, moved);
        assert_eq!(
            refusal(result, &format!("wrapping it by the {label} key")),
            RvError::KeyNotWrappable
        );
    }
    for mechanism in [Mechanism::AesKeyWrapPad, Mechanism::AesKeyWrap] {
        let result = session.wrap_key(&mechanism, own, moved);
        assert_eq!(
            refusal(result, "wrapping it by an AES key"),
            RvError::KeyNotWrappable
        );
    }
    for weaker in [
        Attribute::WrapWithTrusted(false),
        Attribute::Sensitive(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Derive(true),
        Attribute::Modifiable(true),
        Attribute::Copyable(true),
    ] {
        let weaker = [weaker];
        let attack = format!("{weaker:?} on a KEK that is on its way");
        refusal(session.update_attributes(moved, &weaker), &attack);
        refusal(session.copy_object(moved, &weaker), &attack);
    }
}

#[test]
fn no_key_is_marked_as_trusted_with_the_user_pin() {
    let _turn = turn();
    let attacker = Attacker::new();
    let session = &attacker.session;
    let yes = [Attribute::Trusted(true)];
    for label in ["strongroom-master", "strongroom-transfer"] {
        let public = attacker.key(ObjectClass::PUBLIC_KEY, label);
        refusal(
            session.update_attributes(public, &yes),
            "marking a key of the appliance",
        );
        refusal(
            session.copy_object(public, &yes),
            "copying a key of the appliance as trusted",
        );
    }
    let import = |extra: &[Attribute]| {
        let mut template = vec![
            Attribute::Class(ObjectClass::PUBLIC_KEY),
            Attribute::KeyType(KeyType::RSA),
            Attribute::Token(false),
            Attribute::Wrap(true),
            Attribute::Modulus(vec![0xc1; 256]),
            Attribute::PublicExponent(vec![1, 0, 1]),
        ];
        template.extend_from_slice(extra);
        session.create_object(&template)
    };
    let own = import(&[]).unwrap();
    refusal(import(&yes), "importing a trusted key");
    refusal(
        session.update_attributes(own, &yes),
        "marking a key of one's own",
    );
    refusal(
        session.copy_object(own, &yes),
        "copying a key of one's own as trusted",
    );
    let generated = session.generate_key(
        &Mechanism::AesKeyGen,
        &[
            Attribute::Token(false),
            Attribute::Wrap(true),
            Attribute::Trusted(true),
            Attribute::ValueLen(32.into()),
        ],
    );
    refusal(generated, "generating a trusted key");
}

#[test]
fn the_attacked_token_is_still_accepted() {
    let _turn = turn();
    let attacker = Attacker::new();
    drop(attacker);
    Hsm::start(config(token())).unwrap();
}
