//! Signing keys on a real token and store.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::trivially_copy_pass_by_ref
)]

use std::time::Duration;

use tokio::time::sleep;

use super::*;
use crate::keyring::tests::{Site, named, says};
use crate::keyring::{ConfigChange, CreateOptions, JwtOptions, KeyringOptions};
use crate::lifecycle::{Limits, State};
use crate::store::RecordKind;

fn kind(kind: SigningKind) -> CreateOptions {
    CreateOptions {
        key_type: KeyType::Signing(kind),
        ..CreateOptions::default()
    }
}

fn input(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(bytes.to_vec())
}

async fn sign(
    keyring: &Keyring,
    name: &str,
    version: Option<u32>,
    options: &SignOptions,
) -> Result<MadeSignature, KeyringError> {
    keyring
        .sign(named(name), version, options, vec![input(b"message")])
        .await?
        .pop()
        .unwrap()
}

fn verifies(
    keyring: &Keyring,
    name: &str,
    options: &SignOptions,
    message: &[u8],
    made: &MadeSignature,
) -> bool {
    let items = [(input(message), made.clone())];
    keyring
        .verify_signatures(named(name), options, &items)
        .unwrap()
        .pop()
        .unwrap()
        .unwrap()
}

async fn on_token(site: &Site) -> usize {
    site.hsm.signing_keys().await.unwrap().len()
}

#[tokio::test]
async fn every_kind_signs_rotates_survives_a_restart_and_is_destroyed() {
    let (site, mut keyring) = Site::new(KeyringOptions::default()).await;
    let before = on_token(&site).await;
    let options = SignOptions::default();
    for sort in SigningKind::ALL {
        let name = sort.name();
        assert!(keyring.create(named(name), kind(sort)).await.unwrap());
        assert!(!keyring.create(named(name), kind(sort)).await.unwrap());
        assert!(
            !keyring
                .create(named(name), CreateOptions::default())
                .await
                .unwrap(),
            "names are shared"
        );
        let one = sign(&keyring, name, None, &options).await.unwrap();
        assert_eq!(keyring.rotate(named(name)).await.unwrap(), 2);
        let two = sign(&keyring, name, None, &options).await.unwrap();
        assert_eq!(
            (one.version, two.version),
            (1, 2),
            "a key that is not published signs at once"
        );
        assert_eq!(
            sign(&keyring, name, Some(1), &options)
                .await
                .unwrap()
                .version,
            1
        );

        keyring = site.restart(keyring).await;
        for made in [&one, &two] {
            assert!(
                verifies(&keyring, name, &options, b"message", made),
                "{name}"
            );
            assert!(
                !verifies(&keyring, name, &options, b"massage", made),
                "{name}"
            );
            let mut altered = made.clone();
            *altered.bytes.last_mut().unwrap() ^= 1;
            assert!(
                !verifies(&keyring, name, &options, b"message", &altered),
                "{name}"
            );
            altered.version = 3 - altered.version;
            assert!(
                !verifies(&keyring, name, &options, b"message", &altered),
                "{name}"
            );
        }
        assert!(sign(&keyring, name, None, &options).await.is_ok(), "{name}");

        let least = ConfigChange {
            min_decryption_version: Some(2),
            min_encryption_version: Some(2),
            deletion_allowed: Some(true),
            ..ConfigChange::default()
        };
        keyring.configure(named(name), least).await.unwrap();
        assert!(
            says(sign(&keyring, name, Some(1), &options).await).contains("too old for signing")
        );
        assert_eq!(on_token(&site).await, before + 2);
        keyring.trim(named(name), 2).await.unwrap();
        assert_eq!(
            on_token(&site).await,
            before + 1,
            "a trimmed version is gone from the token"
        );
        keyring.delete(named(name)).await.unwrap();
        assert_eq!(
            on_token(&site).await,
            before,
            "a deleted key is gone from the token"
        );
        assert!(matches!(
            sign(&keyring, name, None, &options).await,
            Err(KeyringError::NotFound)
        ));
    }
}

#[tokio::test]
async fn each_option_makes_what_it_verifies_and_nothing_else() {
    let (_site, keyring) = Site::new(KeyringOptions::default()).await;
    for sort in SigningKind::ALL {
        keyring
            .create(named(sort.name()), kind(sort))
            .await
            .unwrap();
    }
    let with = |change: &dyn Fn(&mut SignOptions)| {
        let mut options = SignOptions::default();
        change(&mut options);
        options
    };
    let mut sets = vec![
        ("ecdsa-p256", with(&|o| o.marshaling = Marshaling::Jws)),
        ("ecdsa-p256", with(&|o| o.hash = Some(Algorithm::Sha2_512))),
        ("ecdsa-p256", with(&|o| o.hash = Some(Algorithm::Sha2_224))),
        ("ecdsa-p256", with(&|o| o.hash = Some(Algorithm::Sha3_256))),
        (
            "rsa-4096",
            with(&|o| o.rsa = RsaScheme::Pss(SaltLength::Hash)),
        ),
        (
            "rsa-4096",
            with(&|o| o.rsa = RsaScheme::Pss(SaltLength::Bytes(0))),
        ),
    ];
    for hash in [
        Algorithm::Sha2_224,
        Algorithm::Sha2_256,
        Algorithm::Sha2_384,
        Algorithm::Sha2_512,
    ] {
        sets.push(("rsa-4096", with(&|o| o.hash = Some(hash))));
        sets.push((
            "rsa-4096",
            with(&|o| (o.hash, o.rsa) = (Some(hash), RsaScheme::Pkcs1v15)),
        ));
    }
    let mut made = Vec::new();
    for (name, options) in &sets {
        let signature = sign(&keyring, name, None, options).await.unwrap();
        assert!(
            verifies(&keyring, name, options, b"message", &signature),
            "{name} {options:?}"
        );
        made.push(signature);
    }
    // A salt of any length is a salt: PSS with `auto` verifies the others of its hash.
    let loose = |options: &SignOptions| matches!(options.rsa, RsaScheme::Pss(SaltLength::Auto));
    for (signed, signature) in sets.iter().zip(&made) {
        for (name, options) in sets.iter().filter(|(name, _)| *name == signed.0) {
            let same = format!("{options:?}") == format!("{:?}", signed.1);
            let both_pss = loose(options)
                && options.hash == signed.1.hash
                && matches!(signed.1.rsa, RsaScheme::Pss(_))
                && *name == "rsa-4096";
            let good = verifies(&keyring, name, options, b"message", signature);
            assert_eq!(
                good,
                same || both_pss,
                "{name}: {:?} as {options:?}",
                signed.1
            );
        }
    }
    let digest =
        sha2::Digest::finalize(<sha2::Sha256 as sha2::Digest>::new_with_prefix(b"message"));
    let prehashed = with(&|o| o.prehashed = true);
    for name in ["ecdsa-p256", "rsa-4096"] {
        let made = keyring
            .sign(named(name), None, &prehashed, vec![input(&digest)])
            .await
            .unwrap()
            .pop()
            .unwrap()
            .unwrap();
        assert!(
            verifies(&keyring, name, &SignOptions::default(), b"message", &made),
            "{name}"
        );
        assert!(says(sign(&keyring, name, None, &prehashed).await).contains("7 bytes long"));
    }
    for (name, options, why) in [
        ("ed25519", prehashed, "the message itself"),
        (
            "rsa-4096",
            with(&|o| o.hash = Some(Algorithm::Sha3_256)),
            "SHA-2 only",
        ),
        (
            "rsa-4096",
            with(&|o| o.rsa = RsaScheme::Pss(SaltLength::Bytes(479))),
            "too long",
        ),
        ("ecdsa-p256", with(&|o| o.hash = None), "without a hash"),
    ] {
        let said = says(sign(&keyring, name, None, &options).await);
        assert!(said.contains(why), "{name}: {said}");
    }
}

fn published(names: &[&str], publish_before: Duration, after: Duration) -> KeyringOptions {
    KeyringOptions {
        jwt: JwtOptions {
            keys: names.iter().map(|name| named(name).to_owned()).collect(),
            issuer: None,
            limits: Limits {
                publish_before,
                overlap: after / 2,
                cache: after / 2,
                key_max_age: Duration::from_hours(1),
            },
        },
        ..KeyringOptions::default()
    }
}

#[tokio::test]
async fn a_published_key_is_there_before_it_signs_and_until_its_tokens_are_over() {
    let wait = Duration::from_millis(300);
    let (site, keyring) = Site::new(published(&["users"], wait, wait)).await;
    keyring
        .create(named("users"), kind(SigningKind::EcdsaP256))
        .await
        .unwrap();
    let names = [named("users").to_owned()];
    let kids = |keyring: &Keyring| {
        keyring
            .jwks(&names)
            .into_iter()
            .map(|key| key.kid)
            .collect::<Vec<_>>()
    };
    let state = |keyring: &Keyring| keyring.health()[0].state;
    let transitions = keyring.keep().await;
    assert!(
        matches!(&transitions[..], [t] if (t.from, t.to) == (State::Loading, State::Active)),
        "{transitions:?}"
    );
    assert_eq!(keyring.jwt_signer(named("users")).unwrap().version, 1);

    keyring.rotate(named("users")).await.unwrap();
    keyring.keep().await;
    assert_eq!(kids(&keyring).len(), 2, "the new one is published");
    assert_eq!(
        keyring.jwt_signer(named("users")).unwrap().version,
        1,
        "and does not sign"
    );
    let refused = says(sign(&keyring, "users", Some(2), &SignOptions::default()).await);
    assert!(refused.contains("does not sign yet"), "{refused}");
    let raised = ConfigChange {
        min_encryption_version: Some(2),
        ..ConfigChange::default()
    };
    assert!(says(keyring.configure(named("users"), raised).await).contains("version 1 signs"));

    // A restart before it signs: it is published for the whole time again.
    let keyring = site.restart(keyring).await;
    keyring.keep().await;
    assert_eq!(keyring.jwt_signer(named("users")).unwrap().version, 1);
    sleep(wait).await;
    keyring.keep().await;
    assert_eq!(keyring.jwt_signer(named("users")).unwrap().version, 2);
    assert_eq!(
        (state(&keyring), kids(&keyring).len()),
        (State::DualActive, 2)
    );
    let raised = ConfigChange {
        min_encryption_version: Some(2),
        ..ConfigChange::default()
    };
    keyring.configure(named("users"), raised).await.unwrap();
    sleep(wait).await;
    keyring.keep().await;
    assert_eq!((state(&keyring), kids(&keyring).len()), (State::Active, 1));
    assert_eq!(
        kids(&keyring)[0],
        keyring.jwt_signer(named("users")).unwrap().kid
    );
    let keyring = site.restart(keyring).await;
    assert_eq!(
        keyring.jwt_signer(named("users")).unwrap().version,
        2,
        "it is in the store"
    );
    assert_eq!(kids(&keyring).len(), 1);
}

#[tokio::test]
async fn a_private_key_that_is_gone_from_the_token_degrades_its_key() {
    let limits = published(&["users"], Duration::ZERO, Duration::ZERO);
    let (site, keyring) = Site::new(limits).await;
    keyring
        .create(named("users"), kind(SigningKind::EcdsaP256))
        .await
        .unwrap();
    keyring.keep().await;
    assert_eq!(keyring.health()[0].state, State::Active);
    let key = keyring.inner.find_signing("users").unwrap();
    let ids = key.versions.values().map(|v| v.key.id).collect();
    site.hsm.destroy_signing_keys(ids).await.unwrap();
    keyring.inner.keeper.ask_again();
    let transitions = keyring.keep().await;
    let [
        Transition {
            from, to, reason, ..
        },
    ] = &transitions[..]
    else {
        panic!("{transitions:?}");
    };
    assert_eq!((*from, *to), (State::Active, State::Degraded));
    assert!(reason.contains("not on the token"), "{reason}");
    assert_eq!(
        keyring.jwks(&[named("users").to_owned()]).len(),
        1,
        "what is in memory is served"
    );
}

#[tokio::test]
async fn a_key_that_was_lost_with_its_token_signs_again_after_a_rotation() {
    let hour = Duration::from_hours(1);
    let (site, keyring) = Site::new(published(&["users"], hour, hour)).await;
    keyring
        .create(named("users"), kind(SigningKind::EcdsaP256))
        .await
        .unwrap();
    keyring.keep().await;
    let key = keyring.inner.find_signing("users").unwrap();
    let ids = key.versions.values().map(|v| v.key.id).collect();
    site.hsm.destroy_signing_keys(ids).await.unwrap();
    let options = SignOptions::default();
    let gone = sign(&keyring, "users", None, &options).await;
    assert!(says(gone).contains("on the token 0 times"));
    keyring.rotate(named("users")).await.unwrap();
    let made = sign(&keyring, "users", None, &options).await.unwrap();
    assert_eq!(made.version, 2, "nothing else can sign");
    keyring.inner.keeper.ask_again();
    keyring.keep().await;
    let [health] = &keyring.health()[..] else {
        panic!("one key");
    };
    assert_eq!(
        (health.state, health.signing_version),
        (State::DualActive, 2)
    );
    assert_eq!(
        keyring.jwks(&[named("users").to_owned()]).len(),
        2,
        "old tokens are valid"
    );
}

/// The steps of a rotation, each left undone once: afterwards, either the version is there and
/// signs, or nothing of it is.
#[tokio::test]
async fn what_a_crash_leaves_on_the_token_is_destroyed_and_what_is_needed_is_not() {
    let (site, keyring) = Site::new(KeyringOptions::default()).await;
    let before = on_token(&site).await;
    keyring
        .create(named("k"), kind(SigningKind::EcdsaP256))
        .await
        .unwrap();
    // Killed after the private key was made, before the store had the version.
    let id = [0xab; 16];
    keyring
        .inner
        .commit(vec![record::put_debris(&id)], || ())
        .await
        .unwrap();
    site.hsm
        .generate_signing_key(SigningKind::EcdsaP256, id)
        .await
        .unwrap();
    assert_eq!(on_token(&site).await, before + 2);
    let keyring = site.restart(keyring).await;
    keyring.keep().await;
    assert_eq!(on_token(&site).await, before + 1);
    assert_eq!(keyring.read(named("k")).unwrap().latest_version, 1);
    assert!(
        sign(&keyring, "k", None, &SignOptions::default())
            .await
            .is_ok()
    );
    // Killed before the private key was made.
    keyring
        .inner
        .commit(vec![record::put_debris(&id)], || ())
        .await
        .unwrap();
    let keyring = site.restart(keyring).await;
    keyring.keep().await;
    assert_eq!(on_token(&site).await, before + 1);
    let store = &keyring.inner.store;
    assert!(
        store
            .ids()
            .iter()
            .all(|place| place.kind != RecordKind::SigningDebris)
    );
    let allowed = ConfigChange {
        deletion_allowed: Some(true),
        ..ConfigChange::default()
    };
    keyring.configure(named("k"), allowed).await.unwrap();
    keyring.delete(named("k")).await.unwrap();
}

#[tokio::test]
async fn thumbprints_are_those_of_rfc_7638_and_rfc_8037() {
    // RFC 8037, A.2 and A.3.
    let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    let key = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, x).unwrap();
    let key = PublicKey::Ed25519(key.try_into().unwrap());
    assert_eq!(
        key.thumbprint(),
        "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    );
}
