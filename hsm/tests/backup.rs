//! Keys that were born movable: what they are worth to somebody who has the user PIN, and how they
//! come to another token.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::turn;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use strongroom_hsm::ceremony::{self, KeySet, TokenCondition};
use strongroom_hsm::{
    GcmItem, Hsm, HsmConfig, HsmError, KeyShape, KeyUsage, MasterKind, OptionalKeys, PinSource,
    SecretPin, TokenSelector,
};

const TRANSPORT: [u8; 32] = [42; 32];

struct Token {
    module: PathBuf,
    label: String,
    so_pin: SecretPin,
    user_pin: SecretPin,
}

impl Token {
    fn new() -> Self {
        // Makes the configuration that the module needs, if no test did so yet.
        drop(strongroom_softhsm::Throwaway::in_process().unwrap());
        let module = strongroom_softhsm::module_path().unwrap();
        let blank = ceremony::slots(&module)
            .unwrap()
            .into_iter()
            .find(|slot| slot.condition() == TokenCondition::Blank)
            .unwrap();
        let mut number = [0; 8];
        getrandom::fill(&mut number).unwrap();
        let token = Self {
            label: format!("backup-{:016x}", u64::from_ne_bytes(number)),
            so_pin: pin("the officer's PIN"),
            user_pin: pin("the user's PIN"),
            module,
        };
        ceremony::initialize_token(&token.module, blank.slot, &token.label, &token.so_pin).unwrap();
        let selector = TokenSelector::Label(token.label.clone());
        ceremony::set_user_pin(&token.module, &selector, &token.so_pin, &token.user_pin).unwrap();
        token
    }

    fn with_keys(shape: KeyShape, memory_master: bool) -> Self {
        let token = Self::new();
        let optional = OptionalKeys {
            memory_master,
            transfer: memory_master,
        };
        ceremony::make_keys(&token.config(shape), optional, &mut |_| ()).unwrap();
        token
    }

    fn config(&self, shape: KeyShape) -> HsmConfig {
        HsmConfig {
            module: self.module.clone(),
            token: TokenSelector::Label(self.label.clone()),
            pin: PinSource::Given(self.user_pin.clone()),
            sessions: 1,
            queue: 16,
            call_deadline: Duration::from_secs(10),
            key_generation_deadline: Duration::from_mins(5),
            session_keys: 16,
            shape,
        }
    }

    fn export(
        &self,
        shape: KeyShape,
    ) -> Result<(Vec<ceremony::MovedKey>, ceremony::Trial, ceremony::Epoch), HsmError> {
        ceremony::export_keys(&self.config(shape), &self.so_pin, &TRANSPORT)
    }
}

fn pin(text: &str) -> SecretPin {
    SecretPin::new(text.as_bytes().to_vec().into())
}

fn policy_attribute(result: Result<Hsm, HsmError>) -> String {
    match result {
        Err(HsmError::KeyPolicy { attribute, .. }) => attribute,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it started"),
    }
}

#[tokio::test]
#[allow(
    clippy::await_holding_lock,
    reason = "the turn lasts for the whole test"
)]
async fn the_keys_move_and_open_what_was_sealed() {
    let _turn = turn();
    let old = Token::with_keys(KeyShape::Movable, true);
    let hsm = Hsm::start(old.config(KeyShape::Movable)).unwrap();
    let key = hsm
        .generate_key(KeyUsage::Aead, MasterKind::Hsm)
        .await
        .unwrap();
    let item = |data: Vec<u8>| GcmItem {
        key: Arc::new(key.clone()),
        iv: [7; 12],
        aad: b"aad".to_vec(),
        data: data.into(),
    };
    let sealed = hsm.encrypt(vec![item(b"secret".to_vec())]).await.unwrap();
    let sealed = sealed.into_iter().next().unwrap().unwrap();
    hsm.write_epoch(b"an epoch".to_vec()).await.unwrap();
    let old_audit = hsm.signing_public_key();
    drop(hsm);

    let (moved, trial, epoch) = old.export(KeyShape::Movable).unwrap();
    assert_eq!(moved.len(), 4);
    assert_eq!(epoch.0, b"an epoch");
    // Nothing is left of the transport key, and the token is what it was.
    assert_eq!(
        ceremony::evidence(&old.config(KeyShape::Movable))
            .unwrap()
            .keys,
        KeySet::InUse
    );

    let new = Token::new();
    let config = new.config(KeyShape::Moved);
    // Another transport key opens nothing, and leaves nothing that can't be cleared.
    ceremony::import_keys(&config, &[43; 32], &moved, &trial, &epoch, &mut |_| ()).unwrap_err();
    ceremony::discard_unused_keys(&config).unwrap();
    ceremony::import_keys(&config, &TRANSPORT, &moved, &trial, &epoch, &mut |_| ()).unwrap();
    let hsm = Hsm::start(config).unwrap();
    let opened = hsm.decrypt(vec![item(sealed)]).await.unwrap();
    assert_eq!(&**opened.into_iter().next().unwrap().unwrap(), b"secret");
    assert_eq!(hsm.read_epoch().await.unwrap(), b"an epoch");
    assert_ne!(hsm.signing_public_key(), old_audit);
    assert!(hsm.profile().memory_master);
    drop(hsm);

    // What came by a backup can be backed up again, and says that it came so.
    new.export(KeyShape::Moved).unwrap();
    for wrong in [KeyShape::Fixed, KeyShape::Movable] {
        policy_attribute(Hsm::start(new.config(wrong)));
    }
    // A trial of other keys is found.
    let third = Token::new();
    let other = ceremony::Trial {
        answer: vec![0; 32],
        ..trial
    };
    let config = third.config(KeyShape::Moved);
    let error = ceremony::import_keys(&config, &TRANSPORT, &moved, &other, &epoch, &mut |_| ());
    assert!(matches!(error, Err(HsmError::SelfTest(_))), "{error:?}");
}

#[test]
fn the_shape_is_demanded_as_it_was_decided() {
    let _turn = turn();
    let fixed = Token::with_keys(KeyShape::Fixed, false);
    let movable = Token::with_keys(KeyShape::Movable, false);
    drop(Hsm::start(fixed.config(KeyShape::Fixed)).unwrap());
    drop(Hsm::start(movable.config(KeyShape::Movable)).unwrap());
    assert_eq!(
        policy_attribute(Hsm::start(movable.config(KeyShape::Fixed))),
        "CKA_EXTRACTABLE"
    );
    assert_eq!(
        policy_attribute(Hsm::start(fixed.config(KeyShape::Movable))),
        "CKA_EXTRACTABLE"
    );
    // A token cannot be told to move what its plan keeps.
    for shape in [KeyShape::Fixed, KeyShape::Movable] {
        let refused = fixed.export(shape);
        assert!(refused.is_err(), "{shape:?}");
    }
    assert!(matches!(
        fixed.export(KeyShape::Fixed),
        Err(HsmError::Unsupported(_))
    ));
    // The transcript's evidence shows it.
    let evidence = ceremony::evidence(&movable.config(KeyShape::Movable)).unwrap();
    let master = evidence
        .objects
        .iter()
        .find(|object| object.name == "master key")
        .unwrap();
    for name in ["CKA_EXTRACTABLE", "CKA_WRAP_WITH_TRUSTED"] {
        assert!(
            master
                .attributes
                .contains(&(name.to_owned(), "true".to_owned())),
            "{:?}",
            master.attributes
        );
    }
}

/// Somebody with the user PIN and the module.
struct Thief {
    session: Session,
    library: Pkcs11,
}

impl Thief {
    fn new(token: &Token) -> Self {
        let library = Pkcs11::new(&token.module).unwrap();
        match library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => panic!("{error}"),
        }
        let session = common::open_session(&library, &token.label);
        let pin = str::from_utf8(token.user_pin.expose()).unwrap().to_owned();
        session
            .login(UserType::User, Some(&AuthPin::new(pin.into())))
            .unwrap();
        Self { session, library }
    }

    fn find(&self, class: ObjectClass, label: &str) -> ObjectHandle {
        let template = [Attribute::Class(class), Attribute::Label(label.into())];
        self.session.find_objects(&template).unwrap()[0]
    }

    fn aes(&self, more: &[Attribute]) -> Result<ObjectHandle, Error> {
        let mut template = vec![
            Attribute::Token(false),
            Attribute::Wrap(true),
            Attribute::Unwrap(true),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
            Attribute::ValueLen(32.into()),
        ];
        template.extend_from_slice(more);
        self.session.generate_key(&Mechanism::AesKeyGen, &template)
    }
}

impl Drop for Thief {
    fn drop(&mut self) {
        let _ = self.library.clone().finalize();
    }
}

fn refused<T>(what: &str, result: Result<T, Error>) -> RvError {
    match result {
        Err(Error::Pkcs11(code, _)) => code,
        Err(error) => panic!("{what}: {error}"),
        Ok(_) => panic!("{what} succeeded"),
    }
}

#[test]
fn the_user_pin_alone_does_not_get_a_movable_key_out() {
    let _turn = turn();
    let token = Token::with_keys(KeyShape::Movable, false);
    let thief = Thief::new(&token);
    let treasures = [
        thief.find(ObjectClass::PRIVATE_KEY, "strongroom-master"),
        thief.find(ObjectClass::SECRET_KEY, "strongroom-store"),
    ];
    let own = thief.aes(&[]).unwrap();
    let master_public = thief.find(ObjectClass::PUBLIC_KEY, "strongroom-master");
    for treasure in treasures {
        // Wrapped by an untrusted key, of the thief's or of the appliance's.
        for mechanism in [Mechanism::AesKeyWrap, Mechanism::AesKeyWrapPad] {
            let code = refused(
                "wrapping",
                thief.session.wrap_key(&mechanism, own, treasure),
            );
            assert_eq!(code, RvError::KeyNotWrappable, "{mechanism:?}");
        }
        let oaep = Mechanism::RsaPkcs;
        refused(
            "wrapping by the master",
            thief.session.wrap_key(&oaep, master_public, treasure),
        );
        // The protection taken off, on the key or on a copy of it.
        for weaker in [
            Attribute::WrapWithTrusted(false),
            Attribute::Sensitive(false),
            Attribute::Decrypt(true),
            Attribute::Copyable(true),
            Attribute::Modifiable(true),
        ] {
            let weaker = [weaker];
            refused(
                "setting",
                thief.session.update_attributes(treasure, &weaker),
            );
            refused("copying", thief.session.copy_object(treasure, &weaker));
        }
        refused("copying", thief.session.copy_object(treasure, &[]));
    }
    // A trusted key of the thief's own: generated, imported, made trusted later, or by a copy.
    let trusted = [Attribute::Trusted(true)];
    refused("generating a trusted key", thief.aes(&trusted));
    refused(
        "importing a trusted key",
        thief.session.create_object(&[
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(false),
            Attribute::Wrap(true),
            Attribute::Trusted(true),
            Attribute::Value(vec![1; 32]),
        ]),
    );
    refused(
        "making a key trusted",
        thief.session.update_attributes(own, &trusted),
    );
    refused(
        "copying a key as trusted",
        thief.session.copy_object(own, &trusted),
    );
    // The bytes, asked for.
    for (treasure, attribute) in [
        (
            treasures[0],
            cryptoki::object::AttributeType::PrivateExponent,
        ),
        (treasures[1], cryptoki::object::AttributeType::Value),
    ] {
        let told = thief.session.get_attributes(treasure, &[attribute]);
        assert!(told.is_err() || told.unwrap().is_empty());
    }
    // No trusted key lies about on the token.
    let found = thief.session.find_objects(&trusted).unwrap();
    assert!(found.is_empty());
}

#[test]
fn an_extractable_key_without_its_guard_stops_the_start() {
    let _turn = turn();
    let token = Token::with_keys(KeyShape::Movable, false);
    {
        // As somebody with the PIN might put it in the store key's place: extractable, and no
        // trusted key needed.
        let thief = Thief::new(&token);
        let store = thief.find(ObjectClass::SECRET_KEY, "strongroom-store");
        thief.session.destroy_object(store).unwrap();
        let label = b"strongroom-store".to_vec();
        thief
            .session
            .generate_key(
                &Mechanism::AesKeyGen,
                &[
                    Attribute::Label(label.clone()),
                    Attribute::Id(label),
                    Attribute::Token(true),
                    Attribute::Private(true),
                    Attribute::Sensitive(true),
                    Attribute::Extractable(true),
                    Attribute::Encrypt(true),
                    Attribute::Decrypt(true),
                    Attribute::Sign(false),
                    Attribute::Verify(false),
                    Attribute::Wrap(false),
                    Attribute::Unwrap(false),
                    Attribute::Derive(false),
                    Attribute::Copyable(false),
                    Attribute::AllowedMechanisms(vec![cryptoki::mechanism::MechanismType::AES_GCM]),
                    Attribute::ValueLen(32.into()),
                    Attribute::Modifiable(false),
                ],
            )
            .unwrap();
    }
    for shape in [KeyShape::Movable, KeyShape::Moved, KeyShape::Fixed] {
        let named = policy_attribute(Hsm::start(token.config(shape)));
        if shape == KeyShape::Movable {
            assert_eq!(named, "CKA_WRAP_WITH_TRUSTED");
        }
    }
}
