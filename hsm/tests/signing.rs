//! Signing keys on a real `SoftHSM` token: what they sign verifies, they survive a restart, and
//! they are gone when destroyed.
#![allow(
    clippy::await_holding_lock,
    reason = "the turn lasts for the whole test"
)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;

use common::{config, token, turn};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::object::{Attribute, AttributeType, ObjectClass};
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use p256::pkcs8::DecodePublicKey;
use sha2::{Digest as _, Sha256};
use strongroom_hsm::{Digest, Hsm, HsmError, SignItem, Signature, SigningKey, SigningKind};
use zeroize::Zeroizing;

const SALT: u16 = 32;

fn item(key: &Arc<SigningKey>, signature: Signature, data: &[u8]) -> SignItem {
    SignItem {
        key: Arc::clone(key),
        signature,
        data: Zeroizing::new(data.to_vec()),
    }
}

async fn sign(hsm: &Hsm, key: &Arc<SigningKey>, signature: Signature, data: &[u8]) -> Vec<u8> {
    let items = vec![item(key, signature, data)];
    hsm.sign_with(items).await.unwrap().pop().unwrap().unwrap()
}

fn natural(kind: SigningKind) -> Signature {
    match kind {
        SigningKind::EcdsaP256 => Signature::Ecdsa,
        SigningKind::Rsa4096 => Signature::Pss {
            digest: Digest::Sha256,
            salt: SALT,
        },
        SigningKind::Ed25519 => Signature::Ed25519,
    }
}

/// By other code than the token's.
fn verifies(key: &SigningKey, digest: &[u8], signature: &[u8]) -> bool {
    match key.kind {
        SigningKind::EcdsaP256 => p256::ecdsa::VerifyingKey::from_public_key_der(&key.spki)
            .unwrap()
            .verify_prehash(
                digest,
                &p256::ecdsa::Signature::from_slice(signature).unwrap(),
            )
            .is_ok(),
        SigningKind::Rsa4096 => {
            let public = rsa::PublicKey::from_public_key_der(&key.spki).unwrap();
            let key = rsa::pss::VerifyingKey::<Sha256>::new_with_salt_len(public, SALT.into());
            let signature = rsa::pss::Signature::try_from(signature).unwrap();
            key.verify_prehash(digest, &signature).is_ok()
        }
        SigningKind::Ed25519 => {
            use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
            UnparsedPublicKey::new(&ED25519, &key.spki[12..])
                .verify(digest, signature)
                .is_ok()
        }
    }
}

#[tokio::test]
async fn signing_keys_sign_survive_a_restart_and_are_destroyed() {
    let _turn = turn();
    let mut hsm = Hsm::start(config(token())).unwrap();
    println!("{:?}", hsm.profile().signing);
    for (n, kind) in hsm.profile().signing.clone().into_iter().enumerate() {
        let id = [u8::try_from(n).unwrap() + 1; 16];
        let key = Arc::new(hsm.generate_signing_key(kind, id).await.unwrap());
        let again = hsm.generate_signing_key(kind, id).await;
        assert!(matches!(again, Err(HsmError::KeyExists(_))), "{again:?}");
        let digest = Sha256::digest(b"message");
        let signature = sign(&hsm, &key, natural(kind), &digest).await;
        assert!(verifies(&key, &digest, &signature), "{kind:?}");
        assert!(
            !verifies(&key, &Sha256::digest(b"other"), &signature),
            "{kind:?}"
        );

        drop(hsm);
        hsm = Hsm::start(config(token())).unwrap();
        let signature = sign(&hsm, &key, natural(kind), &digest).await;
        assert!(verifies(&key, &digest, &signature), "{kind:?}");

        let wrong = match kind {
            SigningKind::EcdsaP256 => Signature::Ed25519,
            _ => Signature::Ecdsa,
        };
        let wrong = hsm
            .sign_with(vec![item(&key, wrong, &digest)])
            .await
            .unwrap();
        assert!(matches!(wrong[..], [Err(HsmError::Unsupported(_))]));

        assert!(hsm.signing_keys().await.unwrap().contains(&id));
        hsm.destroy_signing_keys(vec![id]).await.unwrap();
        assert!(!hsm.signing_keys().await.unwrap().contains(&id));
        let gone = hsm
            .sign_with(vec![item(&key, natural(kind), &digest)])
            .await
            .unwrap();
        assert!(
            matches!(gone[..], [Err(HsmError::InvalidKey(_))]),
            "{gone:?}"
        );
        hsm.destroy_signing_keys(vec![id]).await.unwrap();
    }
}

#[tokio::test]
async fn a_kind_that_the_token_lacks_is_refused_by_the_mechanisms_name() {
    let _turn = turn();
    let hsm = Hsm::start(config(token())).unwrap();
    let can = &hsm.profile().signing;
    assert!(can.contains(&SigningKind::EcdsaP256) && can.contains(&SigningKind::Rsa4096));
    if can.contains(&SigningKind::Ed25519) {
        return; // Covered above.
    }
    let refused = hsm
        .generate_signing_key(SigningKind::Ed25519, [9; 16])
        .await;
    let said = refused.unwrap_err().to_string();
    assert!(
        said.contains("ed25519") && said.contains("CKM_EDDSA"),
        "{said}"
    );
}

/// What a thief with the PIN and any PKCS#11 program can do with them.
#[tokio::test]
async fn a_signing_key_does_not_leave_the_token_and_does_nothing_else() {
    let _turn = turn();
    let hsm = Hsm::start(config(token())).unwrap();
    let id = [77; 16];
    hsm.generate_signing_key(SigningKind::EcdsaP256, id)
        .await
        .unwrap();
    // The module is initialized by `hsm`; cryptoki's own handle shares it.
    let module = Pkcs11::new(token().module()).unwrap();
    let flags = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
    let _ = module.initialize(flags);
    let session = common::open_session(&module, token().label());
    let found = session
        .find_objects(&[
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::Id(id.to_vec()),
        ])
        .unwrap();
    let [key] = found[..] else {
        panic!("{found:?}")
    };
    let value = session
        .get_attributes(key, &[AttributeType::Value])
        .unwrap();
    assert!(value.is_empty(), "{value:?}");
    let public = session
        .find_objects(&[
            Attribute::Class(ObjectClass::PUBLIC_KEY),
            Attribute::Id(id.to_vec()),
        ])
        .unwrap();
    assert!(
        public.is_empty(),
        "the public half is in the store, not on the token"
    );
    for change in [
        Attribute::Extractable(true),
        Attribute::Sensitive(false),
        Attribute::Derive(true),
        Attribute::Decrypt(true),
        Attribute::Label(b"mine".to_vec()),
    ] {
        assert!(
            session
                .update_attributes(key, std::slice::from_ref(&change))
                .is_err(),
            "{change:?}"
        );
    }
    assert!(
        session
            .copy_object(key, &[Attribute::Extractable(true)])
            .is_err()
    );
    let sha256 = cryptoki::mechanism::Mechanism::EcdsaSha256;
    assert!(
        session.sign(&sha256, key, b"x").is_err(),
        "a mechanism off its list"
    );
    drop(session);
    hsm.destroy_signing_keys(vec![id]).await.unwrap();
}
