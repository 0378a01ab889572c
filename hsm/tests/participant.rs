//! A participant's own token, against the arithmetic of another implementation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::turn;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::elliptic_curve::{EcKdf, Ecdh1DeriveParams};
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use p256::ecdsa::{Signature, VerifyingKey};
use p256::elliptic_curve::sec1::ToSec1Point;
use p256::pkcs8::DecodePublicKey;
use p256::{PublicKey, SecretKey};
use strongroom_hsm::ceremony::{self, ParticipantToken, TokenCondition};
use strongroom_hsm::{HsmError, PinSource, TokenSelector};
use strongroom_softhsm::Throwaway;

fn make(token: &Throwaway, name: &str) -> ParticipantToken {
    ParticipantToken::make_keys(token.module(), &selector(token), &pin(token), name).unwrap()
}

fn selector(token: &Throwaway) -> TokenSelector {
    TokenSelector::Label(token.label().to_owned())
}

fn pin(token: &Throwaway) -> PinSource {
    PinSource::File(token.pin_file())
}

fn random_key() -> SecretKey {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).unwrap();
    SecretKey::from_slice(&bytes).unwrap()
}

fn shared_x(ours: &SecretKey, theirs: &PublicKey) -> [u8; 32] {
    let point = (theirs.to_projective() * *ours.to_nonzero_scalar()).to_affine();
    (*point.to_sec1_point(false).x().unwrap()).into()
}

fn point(key: &SecretKey) -> Vec<u8> {
    key.public_key().to_sec1_point(false).as_bytes().to_vec()
}

#[test]
fn a_participants_token_signs_and_agrees() {
    let _turn = turn();
    let token = Throwaway::in_process().unwrap();
    let made = make(&token, "Ada");
    let keys = made.keys().clone();
    let serial = made.token().serial.clone();
    assert_ne!(keys.signing, keys.agreement);
    drop(made);

    // Another person's keys on the same token are told apart.
    let other = make(&token, "Bea");
    assert_ne!(other.keys().id, keys.id);
    let again = ParticipantToken::open(
        token.module(),
        &TokenSelector::Serial(serial),
        &pin(&token),
        &keys.id,
    )
    .unwrap();
    assert_eq!(again.keys(), &keys);

    let digest = [0x5a; 32];
    let signature = Signature::from_slice(&again.sign_digest(&digest).unwrap()).unwrap();
    let verifier = VerifyingKey::from_public_key_der(&keys.signing).unwrap();
    verifier.verify_prehash(&digest, &signature).unwrap();
    verifier
        .verify_prehash(&[0x5b; 32], &signature)
        .unwrap_err();
    VerifyingKey::from_public_key_der(&other.keys().signing)
        .unwrap()
        .verify_prehash(&digest, &signature)
        .unwrap_err();

    let own = PublicKey::from_public_key_der(&keys.agreement).unwrap();
    let peer = random_key();
    let expected = shared_x(&peer, &own);
    assert_eq!(*again.agree(&point(&peer)).unwrap(), expected);
    let compressed = peer.public_key().to_sec1_point(true);
    assert_eq!(*again.agree(compressed.as_bytes()).unwrap(), expected);
}

#[test]
fn points_with_odd_bytes_agree_too() {
    let _turn = turn();
    let token = Throwaway::in_process().unwrap();
    let participant = make(&token, "Ada");
    let own = PublicKey::from_public_key_der(&participant.keys().agreement).unwrap();
    // A shared coordinate that begins with a zero, and points that look like an OCTET STRING of
    // another length.
    let (mut leading_zero, mut like_der) = (0, 0);
    while leading_zero == 0 || like_der == 0 {
        let peer = random_key();
        let expected = shared_x(&peer, &own);
        let point = point(&peer);
        let (zero, der) = (expected[0] == 0, point[1] == 63);
        if zero || der {
            assert_eq!(*participant.agree(&point).unwrap(), expected);
        }
        leading_zero += usize::from(zero);
        like_der += usize::from(der);
    }
}

#[test]
fn no_secret_of_an_agreement_stays_and_no_point_off_the_curve_gets_in() {
    let _turn = turn();
    let token = Throwaway::in_process().unwrap();
    let participant = make(&token, "Ada");
    let peer = random_key();
    participant.agree(&point(&peer)).unwrap();
    let mut off = point(&peer);
    off[64] ^= 1;
    for bad in [&off[..], &off[..64], &[4], &[], &[0]] {
        let error = participant.agree(bad).unwrap_err();
        assert!(matches!(error, HsmError::InvalidKey(_)), "{error}");
    }
    with_session(&token, |session| {
        let left = session.find_objects(&[Attribute::Token(false)]).unwrap();
        assert!(left.is_empty(), "{left:?}");
    });
}

#[test]
fn a_participants_private_keys_do_one_thing_and_stay() {
    let _turn = turn();
    let token = Throwaway::in_process().unwrap();
    let participant = make(&token, "Ada");
    let peer = point(&random_key());
    with_session(&token, |session| {
        let only = |use_of| {
            let template = [Attribute::Class(ObjectClass::PRIVATE_KEY), use_of];
            let found = session.find_objects(&template).unwrap();
            assert_eq!(found.len(), 1);
            found[0]
        };
        let (signing, agreement) = (only(Attribute::Sign(true)), only(Attribute::Derive(true)));
        assert_ne!(signing, agreement);
        let ecdh = Mechanism::Ecdh1Derive(Ecdh1DeriveParams::new(EcKdf::null(), &peer));
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::GENERIC_SECRET),
        ];
        let refused = |result: Result<(), Error>| {
            assert!(matches!(result, Err(Error::Pkcs11(..))), "{result:?}");
        };
        refused(session.derive_key(&ecdh, signing, &template).map(|_| ()));
        refused(
            session
                .sign(&Mechanism::Ecdsa, agreement, &[1; 32])
                .map(|_| ()),
        );
        let wrapper = [
            Attribute::Token(false),
            Attribute::Wrap(true),
            Attribute::ValueLen(32.into()),
        ];
        let wrapper = session
            .generate_key(&Mechanism::AesKeyGen, &wrapper)
            .unwrap();
        for key in [signing, agreement] {
            refused(
                session
                    .wrap_key(&Mechanism::AesKeyWrapPad, wrapper, key)
                    .map(|_| ()),
            );
            for weaker in [
                Attribute::Extractable(true),
                Attribute::Sensitive(false),
                Attribute::Sign(true),
                Attribute::Derive(true),
            ] {
                refused(session.update_attributes(key, std::slice::from_ref(&weaker)));
                refused(session.copy_object(key, &[weaker]).map(|_| ()));
            }
        }
        session.destroy_object(wrapper).unwrap();
    });
    drop(participant);
}

#[test]
fn a_key_with_two_purposes_or_of_another_token_is_refused() {
    let _turn = turn();
    let token = Throwaway::in_process().unwrap();
    let id = vec![7; 16];
    let oid = vec![0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    let open = |id: &[u8]| {
        ParticipantToken::open(token.module(), &selector(&token), &pin(&token), id)
            .err()
            .unwrap()
    };
    let pair = |session: &Session, verify, private: &[Attribute]| {
        let mut public = vec![
            Attribute::Token(true),
            Attribute::Private(false),
            Attribute::Id(id.clone()),
            Attribute::EcParams(oid.clone()),
        ];
        public.push(if verify {
            Attribute::Verify(true)
        } else {
            Attribute::Derive(true)
        });
        let mut all = vec![
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Id(id.clone()),
        ];
        all.extend_from_slice(private);
        let keys = session
            .generate_key_pair(&Mechanism::EccKeyPairGen, &public, &all)
            .unwrap();
        [keys.0, keys.1]
    };
    let good = [
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Decrypt(false),
        Attribute::Unwrap(false),
    ];
    let error = open(&id);
    assert!(
        matches!(&error, HsmError::KeyPolicy { attribute, .. } if attribute == "CKA_ID"),
        "{error}"
    );
    for (weaker, attribute) in [
        (Attribute::Sensitive(false), "CKA_SENSITIVE"),
        (Attribute::Extractable(true), "CKA_EXTRACTABLE"),
        (Attribute::Decrypt(true), "CKA_DECRYPT"),
        (Attribute::Unwrap(true), "CKA_UNWRAP"),
        (Attribute::Derive(true), "CKA_DERIVE"),
    ] {
        with_session(&token, |session| {
            for object in session.find_objects(&[Attribute::Token(true)]).unwrap() {
                session.destroy_object(object).unwrap();
            }
            let mut signing: Vec<_> = good
                .iter()
                .filter(|a| a.attribute_type() != weaker.attribute_type())
                .cloned()
                .collect();
            signing.extend([Attribute::Sign(true), weaker.clone()]);
            if attribute != "CKA_DERIVE" {
                signing.push(Attribute::Derive(false));
            }
            pair(session, true, &signing);
        });
        let error = open(&id);
        assert!(
            matches!(&error, HsmError::KeyPolicy { attribute: named, .. } if named == attribute),
            "{error}"
        );
    }
}

#[test]
fn a_refused_pin_leaves_nothing_open() {
    let _turn = turn();
    let token = Throwaway::in_process().unwrap();
    let wrong = token.path().join("wrong");
    fs::write(&wrong, "not the PIN").unwrap();
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o400)).unwrap();
    let error = ParticipantToken::make_keys(
        token.module(),
        &selector(&token),
        &PinSource::File(wrong),
        "Ada",
    )
    .err()
    .unwrap();
    assert!(
        matches!(&error, HsmError::Pin(code) if code == "CKR_PIN_INCORRECT"),
        "{error}"
    );
    // A session that was left open would keep the module from being left, and from seeing this new
    // token.
    let other = Throwaway::in_process().unwrap();
    let seen = ceremony::slots(token.module()).unwrap();
    assert!(
        seen.iter().any(|slot| slot.token.label == other.label()
            && slot.condition() == TokenCondition::Initialized)
    );
}

/// Beside the product's own session, if there is one: its login is everybody's, and the module
/// stays initialized.
fn with_session(token: &Throwaway, body: impl FnOnce(&Session)) {
    let library = Pkcs11::new(token.module()).unwrap();
    let ours = match library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) => true,
        Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => false,
        Err(error) => panic!("{error}"),
    };
    let session = common::open_session(&library, token.label());
    let text = fs::read_to_string(token.pin_file()).unwrap();
    match session.login(UserType::User, Some(&AuthPin::new(text.into()))) {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
        Err(error) => panic!("{error}"),
    }
    body(&session);
    drop(session);
    if ours {
        library.finalize().unwrap();
    }
}
