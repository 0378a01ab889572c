//! What callers ask of the token, on a real `SoftHSM` token.
#![allow(
    clippy::await_holding_lock,
    reason = "the turn lasts for the whole test"
)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{config, token, turn};
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use p256::ecdsa::{Signature, VerifyingKey};
use p256::pkcs8::DecodePublicKey;
use strongroom_hsm::{
    GcmItem, HashAlgorithm, Hsm, HsmConfig, HsmError, HsmState, KeyUsage, MacItem, MasterKind,
    OaepHash, Register, WrappedKey, ceremony,
};
use zeroize::Zeroizing;

fn item(key: &Arc<WrappedKey>, data: &[u8]) -> GcmItem {
    GcmItem {
        key: Arc::clone(key),
        iv: [3; 12],
        aad: b"aad".to_vec(),
        data: Zeroizing::new(data.to_vec()),
    }
}

#[tokio::test]
async fn a_start_finds_what_softhsm_can_do() {
    let _turn = turn();
    let token = token();
    let hsm = Hsm::start(config(token)).unwrap();
    assert_eq!(hsm.state(), HsmState::Ready);
    assert_eq!(hsm.token().label, token.label());
    let profile = hsm.profile();
    assert_eq!(profile.oaep_accepted, [OaepHash::Sha1]);
    assert!(profile.aes_kwp && profile.memory_master);
    assert!(profile.hmac.contains(&HashAlgorithm::Sha256));
    hsm.probe().await.unwrap();
}

#[tokio::test]
async fn encrypt_and_decrypt() {
    let _turn = turn();
    let hsm = Hsm::start(config(token())).unwrap();
    let key = Arc::new(
        hsm.generate_key(KeyUsage::Aead, MasterKind::Hsm)
            .await
            .unwrap(),
    );
    assert_eq!(key.blob.len(), 512);
    let other = Arc::new(
        hsm.generate_key(KeyUsage::Aead, MasterKind::Hsm)
            .await
            .unwrap(),
    );
    let sealed = hsm
        .encrypt(vec![
            item(&key, b"hello"),
            item(&other, b""),
            item(&key, b"third"),
        ])
        .await
        .unwrap();
    let sealed: Vec<_> = sealed.into_iter().map(Result::unwrap).collect();
    assert_eq!(sealed[0].len(), 5 + 16);
    assert_eq!(sealed[1].len(), 16);
    drop(hsm);
    // Another process would have nothing but the wrapped keys either.
    let hsm = Hsm::start(config(token())).unwrap();
    let mut altered = sealed[0].clone();
    altered[0] ^= 1;
    let opened = hsm
        .decrypt(vec![
            item(&key, &sealed[0]),
            item(&other, &sealed[1]),
            item(&key, &altered),
            item(&other, &sealed[0]),
            item(&key, &sealed[0][..15]),
            item(&key, &sealed[2]),
        ])
        .await
        .unwrap();
    assert_eq!(**opened[0].as_ref().unwrap(), b"hello");
    assert_eq!(**opened[1].as_ref().unwrap(), b"");
    for bad in &opened[2..5] {
        assert!(matches!(bad, Err(HsmError::Authentication)), "{bad:?}");
    }
    assert_eq!(**opened[5].as_ref().unwrap(), b"third");
    assert_eq!(hsm.state(), HsmState::Ready);
    hsm.forget(vec![key.id]).await.unwrap();
    let opened = hsm.decrypt(vec![item(&key, &sealed[0])]).await.unwrap();
    assert_eq!(**opened[0].as_ref().unwrap(), b"hello");
}

#[tokio::test]
async fn an_altered_wrapped_key_is_refused() {
    let _turn = turn();
    let hsm = Hsm::start(config(token())).unwrap();
    let key = hsm
        .generate_key(KeyUsage::Aead, MasterKind::Hsm)
        .await
        .unwrap();
    let mut altered = key.clone();
    altered.id = [1; 16];
    altered.blob[100] ^= 1;
    let mut short = key.clone();
    short.id = [2; 16];
    short.blob.truncate(511);
    let mut foreign = key.clone();
    foreign.id = [3; 16];
    foreign.master_fingerprint = [0; 16];
    let results = hsm
        .encrypt(
            [altered, short, foreign]
                .map(|key| item(&Arc::new(key), b"x"))
                .into(),
        )
        .await
        .unwrap();
    assert!(
        matches!(results[0], Err(HsmError::Authentication)),
        "{results:?}"
    );
    assert!(
        matches!(results[1], Err(HsmError::Authentication)),
        "{results:?}"
    );
    assert!(
        matches!(results[2], Err(HsmError::OtherMaster { .. })),
        "{results:?}"
    );
    assert_eq!(hsm.state(), HsmState::Ready);
}

#[tokio::test]
async fn hmac_is_what_others_compute() {
    use hmac::{KeyInit, Mac};
    let _turn = turn();
    let hsm = Hsm::start(config(token())).unwrap();
    let memory = Arc::new(
        hsm.generate_key(KeyUsage::Mac, MasterKind::Memory)
            .await
            .unwrap(),
    );
    let bytes = hsm.unwrap_to_memory(Arc::clone(&memory)).await.unwrap();
    assert_eq!(bytes.len(), 32);
    let key = Arc::new(
        hsm.generate_key(KeyUsage::Mac, MasterKind::Hsm)
            .await
            .unwrap(),
    );
    for hash in hsm.profile().hmac.clone() {
        let mac = |data: &[u8]| MacItem {
            key: Arc::clone(&key),
            hash,
            data: Zeroizing::new(data.to_vec()),
        };
        let macs = hsm
            .hmac(vec![mac(b"a"), mac(b"a"), mac(b"b")])
            .await
            .unwrap();
        let macs: Vec<_> = macs.into_iter().map(Result::unwrap).collect();
        assert_eq!(macs[0], macs[1]);
        assert_ne!(macs[0], macs[2]);
        println!("{hash:?}: {} bytes", macs[0].len());
    }
    let _ = hmac::Hmac::<sha2::Sha256>::new_from_slice(&bytes)
        .unwrap()
        .finalize();
    let wrong = hsm.encrypt(vec![item(&key, b"x")]).await.unwrap();
    assert!(matches!(wrong[0], Err(HsmError::Unsupported(_))));
}

#[tokio::test]
async fn a_memory_key_comes_out_and_others_do_not() {
    let _turn = turn();
    let hsm = Hsm::start(config(token())).unwrap();
    let memory = Arc::new(
        hsm.generate_key(KeyUsage::Aead, MasterKind::Memory)
            .await
            .unwrap(),
    );
    let bytes = hsm.unwrap_to_memory(Arc::clone(&memory)).await.unwrap();
    assert_eq!(bytes.len(), 32);
    let inside = hsm.encrypt(vec![item(&memory, b"x")]).await.unwrap();
    assert!(matches!(inside[0], Err(HsmError::Unsupported(_))));
    let key = Arc::new(
        hsm.generate_key(KeyUsage::Aead, MasterKind::Hsm)
            .await
            .unwrap(),
    );
    assert!(matches!(
        hsm.unwrap_to_memory(key).await,
        Err(HsmError::Unsupported(_))
    ));
    let mut altered = (*memory).clone();
    altered.blob[0] ^= 1;
    assert!(matches!(
        hsm.unwrap_to_memory(Arc::new(altered)).await,
        Err(HsmError::Authentication)
    ));
}

#[tokio::test]
async fn signatures_verify_with_the_public_key() {
    let _turn = turn();
    let hsm = Hsm::start(config(token())).unwrap();
    let signature = hsm.sign([9; 32]).await.unwrap();
    let key = VerifyingKey::from_public_key_der(&hsm.signing_public_key()).unwrap();
    let signature = Signature::from_slice(&signature).unwrap();
    key.verify_prehash(&[9; 32], &signature).unwrap();
    assert!(key.verify_prehash(&[8; 32], &signature).is_err());
}

#[tokio::test]
async fn store_records_and_random_bytes() {
    let _turn = turn();
    let hsm = Hsm::start(config(token())).unwrap();
    let data = Zeroizing::new(b"record".to_vec());
    let sealed = hsm
        .store_seal([1; 12], b"name".to_vec(), data.clone())
        .await
        .unwrap();
    let opened = hsm
        .store_open([1; 12], b"name".to_vec(), sealed.clone())
        .await
        .unwrap();
    assert_eq!(opened, data);
    let wrong = hsm.store_open([1; 12], b"nome".to_vec(), sealed).await;
    assert!(matches!(wrong, Err(HsmError::Authentication)), "{wrong:?}");
    let short = hsm.store_open([1; 12], vec![], vec![0; 3]).await;
    assert!(matches!(short, Err(HsmError::Authentication)), "{short:?}");
    let random = hsm.random(100_000).await.unwrap();
    assert_eq!(random.len(), 100_000);
    assert!(random[99_900..].iter().any(|byte| *byte != 0));
    assert!(hsm.random(0).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_epoch_is_kept() {
    let _turn = turn();
    let hsm = Hsm::start(config(token())).unwrap();
    let first = hsm.read_epoch().await.unwrap();
    assert!(first.is_empty());
    for value in [b"one".to_vec(), vec![], b"two".to_vec()] {
        hsm.write_epoch(value.clone()).await.unwrap();
        assert_eq!(hsm.read_epoch().await.unwrap(), value);
    }
    drop(hsm);
    let hsm = Hsm::start(config(token())).unwrap();
    assert_eq!(hsm.read_epoch().await.unwrap(), b"two");
    hsm.write_epoch(vec![]).await.unwrap();
}

#[tokio::test]
async fn a_register_is_absent_until_it_is_written_and_each_is_its_own() {
    let _turn = turn();
    let hsm = Hsm::start(config(token())).unwrap();
    for register in [Register::AuditEnd, Register::CeremonyTranscript] {
        assert_eq!(hsm.read_register(register).await.unwrap(), None);
    }
    let both = tokio::join!(
        hsm.write_register(Register::AuditEnd, vec![]),
        hsm.write_register(Register::AuditEnd, b"end".to_vec()),
    );
    both.0.unwrap();
    both.1.unwrap();
    hsm.write_register(Register::CeremonyTranscript, b"transcript".to_vec())
        .await
        .unwrap();
    drop(hsm);
    let hsm = Hsm::start(config(token())).unwrap();
    let read = |register| hsm.read_register(register);
    assert_eq!(read(Register::AuditEnd).await.unwrap().unwrap(), b"end");
    let transcript = read(Register::CeremonyTranscript).await.unwrap();
    assert_eq!(transcript.unwrap(), b"transcript");
    let beside = ceremony::read_register(&config(token()), Register::AuditEnd);
    assert_eq!(beside.unwrap().unwrap(), b"end", "while the server runs");
    assert_eq!(read(Register::StoreEpoch).await.unwrap().unwrap(), b"");
}

#[tokio::test]
async fn a_write_whose_caller_went_away_does_not_come_after_the_next() {
    let _turn = turn();
    let hsm = Hsm::start(HsmConfig {
        sessions: 4,
        ..config(token())
    })
    .unwrap();
    for round in 0..50_u8 {
        let cancelled = hsm.write_epoch(vec![round, 0]);
        let _ = tokio::time::timeout(Duration::ZERO, cancelled).await;
        hsm.write_epoch(vec![round, 1]).await.unwrap();
        for _ in 0..4 {
            hsm.probe().await.unwrap();
        }
        assert_eq!(hsm.read_epoch().await.unwrap(), [round, 1]);
    }
    hsm.write_epoch(vec![]).await.unwrap();
}

#[tokio::test]
async fn several_sessions_share_the_work() {
    let _turn = turn();
    let hsm = Hsm::start(HsmConfig {
        sessions: 4,
        session_keys: 2,
        ..config(token())
    })
    .unwrap();
    let mut keys = Vec::new();
    for _ in 0..3 {
        keys.push(Arc::new(
            hsm.generate_key(KeyUsage::Aead, MasterKind::Hsm)
                .await
                .unwrap(),
        ));
    }
    let mut tasks = Vec::new();
    for round in 0..100_u8 {
        // More keys than a session keeps: they are evicted and unwrapped again.
        let (hsm, key) = (hsm.clone(), Arc::clone(&keys[usize::from(round) % 3]));
        tasks.push(tokio::spawn(async move {
            let sealed = hsm
                .encrypt(vec![item(&key, &[round; 40])])
                .await
                .unwrap()
                .remove(0)
                .unwrap();
            let opened = hsm
                .decrypt(vec![item(&key, &sealed)])
                .await
                .unwrap()
                .remove(0)
                .unwrap();
            assert_eq!(**opened, [round; 40]);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_come_together_each_get_their_own_answer() {
    let _turn = turn();
    for sessions in [1, 3] {
        let hsm = Hsm::start(HsmConfig {
            sessions,
            // A place for each, should they not come together.
            queue: 300,
            ..config(token())
        })
        .unwrap();
        let key = hsm.generate_key(KeyUsage::Aead, MasterKind::Hsm);
        let key = Arc::new(key.await.unwrap());
        let tasks: Vec<_> = (0..300_u32)
            .map(|number| {
                let (hsm, key) = (hsm.clone(), Arc::clone(&key));
                let text = number.to_string().into_bytes();
                tokio::spawn(async move {
                    let mut sealed = hsm.encrypt(vec![item(&key, &text)]).await.unwrap();
                    let mut sealed = sealed.pop().unwrap().unwrap();
                    sealed[0] ^= u8::from(number % 7 == 0);
                    let items = vec![item(&key, &sealed), item(&key, b"short")];
                    let opened = hsm.decrypt(items).await.unwrap();
                    assert!(matches!(opened[1], Err(HsmError::Authentication)));
                    match &opened[0] {
                        Ok(opened) => assert_eq!(**opened, text),
                        Err(HsmError::Authentication) => assert_eq!(number % 7, 0),
                        Err(error) => panic!("{error}"),
                    }
                })
            })
            .collect();
        for (number, task) in tasks.into_iter().enumerate() {
            if number % 5 == 3 {
                // A caller that goes away takes nobody's answer along.
                task.abort();
            } else {
                task.await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_full_queue_is_refused_at_once() {
    let _turn = turn();
    let hsm = Hsm::start(HsmConfig {
        queue: 1,
        ..config(token())
    })
    .unwrap();
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let hsm = hsm.clone();
            tokio::spawn(async move { hsm.generate_key(KeyUsage::Aead, MasterKind::Hsm).await })
        })
        .collect();
    let (mut good, mut busy) = (0, 0);
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => good += 1,
            Err(HsmError::Busy(1)) => busy += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(good >= 1 && busy >= 1, "{good} {busy}");
}

#[tokio::test]
async fn an_imported_key_is_the_one_that_was_sent() {
    use rsa::pkcs8::DecodePublicKey as _;
    let _turn = turn();
    let hsm = Hsm::start(config(token())).unwrap();
    let public = rsa::PublicKey::from_public_key_der(&hsm.wrapping_public_key()).unwrap();
    let ephemeral = [0x42_u8; 32];
    let target = [0x17_u8; 32];
    let mut rng = rsa::rand_core::UnwrapErr(getrandom::SysRng);
    let encrypted = public
        .encrypt(&mut rng, rsa::Oaep::<sha1::Sha1>::new(), &ephemeral)
        .unwrap();
    let kwp = |target: &[u8]| {
        use aes_kw::KeyInit;
        let mut buffer = vec![0; target.len().next_multiple_of(8) + 8];
        aes_kw::KwpAes256::new(&ephemeral.into())
            .wrap_key(target, &mut buffer)
            .unwrap();
        buffer
    };
    let import = |encrypted: Vec<u8>, target: Vec<u8>, master| {
        hsm.import_key(OaepHash::Sha1, encrypted, target, KeyUsage::Aead, master)
    };
    let memory = import(encrypted.clone(), kwp(&target), MasterKind::Memory)
        .await
        .unwrap();
    assert_eq!(
        **hsm.unwrap_to_memory(Arc::new(memory)).await.unwrap(),
        target
    );

    let key = Arc::new(
        import(encrypted.clone(), kwp(&target), MasterKind::Hsm)
            .await
            .unwrap(),
    );
    let sealed = hsm
        .encrypt(vec![item(&key, b"data")])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    let expected = {
        use aes_gcm::aead::{Aead, Payload};
        use aes_gcm::{Aes256Gcm, KeyInit};
        let cipher = Aes256Gcm::new(&target.into());
        cipher
            .encrypt(
                &[3; 12].into(),
                Payload {
                    msg: b"data",
                    aad: b"aad",
                },
            )
            .unwrap()
    };
    assert_eq!(sealed, expected);

    let mut altered = kwp(&target);
    altered[9] ^= 1;
    let result = import(encrypted.clone(), altered, MasterKind::Hsm).await;
    assert!(
        matches!(result, Err(HsmError::Authentication)),
        "{result:?}"
    );
    let mut wrong = encrypted.clone();
    wrong[9] ^= 1;
    let result = import(wrong, kwp(&target), MasterKind::Hsm).await;
    assert!(
        matches!(result, Err(HsmError::Authentication)),
        "{result:?}"
    );
    let result = import(encrypted.clone(), kwp(&target[..16]), MasterKind::Hsm).await;
    assert!(matches!(result, Err(HsmError::InvalidKey(_))), "{result:?}");
    let result = hsm
        .import_key(
            OaepHash::Sha256,
            encrypted,
            kwp(&target),
            KeyUsage::Aead,
            MasterKind::Hsm,
        )
        .await;
    assert!(
        matches!(result, Err(HsmError::Unsupported(_))),
        "{result:?}"
    );
}
