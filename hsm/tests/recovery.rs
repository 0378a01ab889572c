//! How the pool comes back after each loss, on a real token behind a module that fails on command
//! (tests/pkcs11-fault).
//!
//! That module and `SoftHSM` are configured by the environment, which a process can't safely change
//! for itself: each test runs its body in a child process, which is this program with the test's
//! name. The token is made once; provisioning takes seconds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use common::child::{self, CHILD};
use futures_util::FutureExt;
use strongroom_hsm::ceremony::{self, ParticipantToken};
use strongroom_hsm::{
    GcmItem, Hsm, HsmConfig, HsmError, HsmState, KeyUsage, MasterKind, OptionalKeys, PinSource,
    SecretPin, SigningKey, SigningKind, WrappedKey,
};
use strongroom_softhsm::Throwaway;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

#[test]
fn a_lost_token_is_refused_at_once_and_found_again() {
    in_child(
        "a_lost_token_is_refused_at_once_and_found_again",
        async |rig| {
            let sealed = rig.encrypt().await.unwrap();
            // Callers under load, all the while: each gets a right answer or a clear refusal.
            let stop = Arc::new(AtomicBool::new(false));
            let (good, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let mut callers = Vec::new();
            for _ in 0..8 {
                let (rig, sealed, stop) = (rig.clone(), sealed.clone(), Arc::clone(&stop));
                let (good, refused) = (Arc::clone(&good), Arc::clone(&refused));
                callers.push(tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        match rig.decrypt(&sealed).await {
                            Ok(plain) => {
                                assert_eq!(*plain, DATA);
                                good.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(HsmError::Unavailable(_)) => {
                                refused.fetch_add(1, Ordering::Relaxed);
                                tokio::time::sleep(Duration::from_millis(1)).await;
                            }
                            Err(error) => panic!("{error}"),
                        }
                    }
                }));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            rig.control("token-absent");
            rig.until(|state| matches!(state, HsmState::Reconnecting { .. }), 1)
                .await;
            let asked = Instant::now();
            assert!(matches!(rig.encrypt().await, Err(HsmError::Unavailable(_))));
            assert!(asked.elapsed() < Duration::from_millis(50));
            tokio::time::sleep(Duration::from_secs(3)).await;
            let before = good.load(Ordering::Relaxed);
            assert!(matches!(rig.hsm.state(), HsmState::Reconnecting { .. }));
            rig.control("");
            rig.until(|state| *state == HsmState::Ready, 2).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            stop.store(true, Ordering::Relaxed);
            for caller in callers {
                caller.await.unwrap();
            }
            assert!(good.load(Ordering::Relaxed) > before, "served again");
            assert!(refused.load(Ordering::Relaxed) > 0);
        },
    );
}

#[test]
fn a_device_error_leads_to_a_reconnection() {
    in_child("a_device_error_leads_to_a_reconnection", async |rig| {
        let sealed = rig.encrypt().await.unwrap();
        for code in [
            "CKR_DEVICE_ERROR",
            "CKR_DEVICE_REMOVED",
            "CKR_TOKEN_NOT_PRESENT",
            "CKR_CRYPTOKI_NOT_INITIALIZED",
        ] {
            rig.control(&format!("fail C_DecryptInit {code} 1"));
            let error = rig.decrypt(&sealed).await.unwrap_err();
            assert!(
                matches!(&error, HsmError::Unavailable(reason) if reason.contains(code)),
                "{error}"
            );
            rig.until(|state| *state == HsmState::Ready, 2).await;
            assert_eq!(*rig.decrypt(&sealed).await.unwrap(), DATA);
        }
        // A token that fails until its module has been started again, as p11-kit's RPC does.
        rig.control("fail C_DecryptInit CKR_DEVICE_ERROR 1\nfail C_OpenSession CKR_DEVICE_ERROR 3");
        rig.decrypt(&sealed).await.unwrap_err();
        rig.until(|state| *state == HsmState::Ready, 2).await;
        assert_eq!(*rig.decrypt(&sealed).await.unwrap(), DATA);
        assert!(
            rig.logged("C_Finalize") >= 1,
            "the module was started again"
        );
    });
}

#[test]
fn forgotten_sessions_cost_no_request() {
    in_child("forgotten_sessions_cost_no_request", async |rig| {
        let sealed = rig.encrypt().await.unwrap();
        for _ in 0..5 {
            rig.control("forget-sessions");
            assert_eq!(*rig.decrypt(&sealed).await.unwrap(), DATA);
            assert_eq!(rig.hsm.state(), HsmState::Ready);
        }
        for code in [
            "CKR_SESSION_HANDLE_INVALID",
            "CKR_SESSION_CLOSED",
            "CKR_USER_NOT_LOGGED_IN",
            "CKR_KEY_HANDLE_INVALID",
            "CKR_OBJECT_HANDLE_INVALID",
        ] {
            rig.control(&format!("fail C_DecryptInit {code} 1"));
            assert_eq!(*rig.decrypt(&sealed).await.unwrap(), DATA, "{code}");
        }
        assert_eq!(rig.logged("PIN"), 0);
    });
}

#[test]
fn a_hung_call_is_given_up_and_its_late_answer_dropped() {
    in_child(
        "a_hung_call_is_given_up_and_its_late_answer_dropped",
        async |rig| {
            let sealed = rig.encrypt().await.unwrap();
            rig.control("hang C_Decrypt");
            let asked = Instant::now();
            let error = rig.decrypt(&sealed).await.unwrap_err();
            assert!(matches!(error, HsmError::Deadline(_)), "{error}");
            let waited = asked.elapsed();
            assert!(waited >= DEADLINE && waited < 2 * DEADLINE, "{waited:?}");
            // Every new session's canary would hang too: it does not come back by itself while the
            // calls hang.
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert!(matches!(rig.hsm.state(), HsmState::Reconnecting { .. }));
            rig.control("");
            rig.until(|state| *state == HsmState::Ready, 3).await;
            for _ in 0..20 {
                assert_eq!(*rig.decrypt(&sealed).await.unwrap(), DATA);
            }
        },
    );
}

#[test]
fn single_operations_and_probes_pass_batches_of_any_length() {
    in_child(
        "single_operations_and_probes_pass_batches_of_any_length",
        async |rig| {
            let sealed = rig.encrypt().await.unwrap();
            // One session, and a client whose every batch takes it for seconds.
            rig.control("slow C_EncryptInit 1");
            let ended = Arc::new(AtomicUsize::new(0));
            let batches: Vec<_> = (0..3)
                .map(|_| {
                    let (rig, ended) = (rig.clone(), Arc::clone(&ended));
                    tokio::spawn(async move {
                        let items = (0..4096).map(|_| rig.item(&DATA)).collect();
                        let results = rig.hsm.encrypt(items).await.unwrap();
                        ended.fetch_add(1, Ordering::Relaxed);
                        results.len()
                    })
                })
                .collect();
            rig.until_logged("fault slow C_EncryptInit", 3).await;
            for _ in 0..50 {
                assert_eq!(*rig.decrypt(&sealed).await.unwrap(), DATA);
                rig.hsm.probe().await.unwrap();
            }
            assert_eq!(
                ended.load(Ordering::Relaxed),
                0,
                "a single operation waited for a whole batch"
            );
            assert_eq!(rig.hsm.state(), HsmState::Ready);
            rig.control("");
            for batch in batches {
                assert_eq!(batch.await.unwrap(), 4096);
            }
        },
    );
}

#[test]
fn a_batch_that_nobody_waits_for_any_more_leaves_the_token() {
    in_child(
        "a_batch_that_nobody_waits_for_any_more_leaves_the_token",
        async |rig| {
            let sealed = rig.encrypt().await.unwrap();
            rig.control("slow C_EncryptInit 1");
            let batch = tokio::spawn({
                let rig = rig.clone();
                async move {
                    let items = (0..100_000).map(|_| rig.item(&DATA)).collect();
                    rig.hsm.encrypt(items).await
                }
            });
            rig.until_logged("fault slow C_EncryptInit", 3).await;
            batch.abort();
            batch.await.unwrap_err();
            // The turn that was begun ends; then no call of it comes any more.
            for _ in 0..3 {
                assert_eq!(*rig.decrypt(&sealed).await.unwrap(), DATA);
            }
            let before = rig.logged("fault slow C_EncryptInit");
            for _ in 0..20 {
                assert_eq!(*rig.decrypt(&sealed).await.unwrap(), DATA);
            }
            assert_eq!(rig.logged("fault slow C_EncryptInit"), before);
        },
    );
}

#[test]
fn a_probe_is_answered_before_all_jobs_that_wait() {
    in_child(
        "a_probe_is_answered_before_all_jobs_that_wait",
        async |rig| {
            rig.control("slow C_GenerateRandom 20");
            let answered = Arc::new(AtomicUsize::new(0));
            let mut waiting = Vec::new();
            for _ in 0..100 {
                let mut one = Box::pin({
                    let (rig, answered) = (rig.clone(), Arc::clone(&answered));
                    async move {
                        rig.hsm.random(1).await.unwrap();
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                });
                // In the queue from here on.
                assert!((&mut one).now_or_never().is_none());
                waiting.push(tokio::spawn(one));
            }
            rig.until_logged("fault slow C_GenerateRandom", 3).await;
            rig.hsm.probe().await.unwrap();
            let before = answered.load(Ordering::Relaxed);
            assert!(before < 50, "the probe came after {before} of 100 jobs");
            rig.control("");
            for one in waiting {
                one.await.unwrap();
            }
        },
    );
}

#[test]
fn a_batch_of_several_turns_keeps_its_order_and_each_items_error() {
    in_child(
        "a_batch_of_several_turns_keeps_its_order_and_each_items_error",
        async |rig| {
            let texts: Vec<_> = (0..300_u32).map(|n| n.to_string().into_bytes()).collect();
            let items = texts.iter().map(|text| rig.item(text)).collect();
            let sealed: Vec<_> = rig.hsm.encrypt(items).await.unwrap();
            let items = |rig: &Rig| -> Vec<_> {
                let altered = |(at, sealed): (usize, &Result<Vec<u8>, HsmError>)| {
                    let mut sealed = sealed.clone().unwrap();
                    sealed[0] ^= u8::from(at % 7 == 0);
                    rig.item(&sealed)
                };
                sealed.iter().enumerate().map(altered).collect()
            };
            let begin = |rig: &Rig| {
                let (hsm, items) = (rig.hsm.clone(), items(rig));
                tokio::spawn(async move { hsm.decrypt(items).await })
            };
            rig.control("slow C_DecryptInit 2");
            let batch = begin(&rig);
            rig.until_logged("fault slow C_DecryptInit", 3).await;
            // The session is lost in the middle: what was done stays, the rest is done by another.
            rig.control("slow C_DecryptInit 2\nforget-sessions");
            for (at, (opened, text)) in batch.await.unwrap().unwrap().iter().zip(&texts).enumerate()
            {
                match opened {
                    Ok(opened) => assert_eq!(**opened, *text, "{at}"),
                    Err(HsmError::Authentication) => assert_eq!(at % 7, 0),
                    Err(error) => panic!("{at}: {error}"),
                }
                assert_eq!(opened.is_err(), at % 7 == 0, "{at}");
            }
            // The token is: one error for the whole batch.
            let before = rig.logged("fault slow C_DecryptInit");
            let batch = begin(&rig);
            rig.until_logged("fault slow C_DecryptInit", before + 3)
                .await;
            rig.control("fail C_DecryptInit CKR_DEVICE_ERROR 1");
            let error = batch.await.unwrap().unwrap_err();
            assert!(matches!(error, HsmError::Unavailable(_)), "{error}");
            rig.until(|state| *state == HsmState::Ready, 2).await;
            let again = rig.hsm.decrypt(items(&rig)).await.unwrap();
            assert_eq!(again.iter().filter(|one| one.is_err()).count(), 43);
        },
    );
}

#[test]
fn while_a_key_pair_is_made_others_have_the_token() {
    in_child(
        "while_a_key_pair_is_made_others_have_the_token",
        async |rig| {
            let sealed = rig.encrypt().await.unwrap();
            rig.control("hang C_GenerateKeyPair");
            let pairs = [1, 2].map(|id| rig.make_pair(id));
            rig.until_logged("fault hang C_GenerateKeyPair", 1).await;
            // Three times as long as any other call may take.
            let begun = Instant::now();
            while begun.elapsed() < 3 * DEADLINE {
                assert_eq!(*rig.decrypt(&sealed).await.unwrap(), DATA);
                rig.hsm.probe().await.unwrap();
            }
            assert!(rig.hsm.is_generating());
            // One at a time: each has a session and a thread of its own.
            assert_eq!(rig.logged("fault hang C_GenerateKeyPair"), 1);
            rig.control("");
            for pair in pairs {
                pair.await.unwrap().unwrap();
            }
            assert_eq!(*rig.decrypt(&sealed).await.unwrap(), DATA);
            assert_eq!(rig.hsm.state(), HsmState::Ready);
            // One that nobody waits for any more keeps no other from being made.
            rig.control("hang C_GenerateKeyPair");
            let unwanted = rig.make_pair(3);
            rig.until_logged("fault hang C_GenerateKeyPair", 2).await;
            let waiting = rig.make_pair(4);
            tokio::task::yield_now().await;
            unwanted.abort();
            waiting.abort();
            rig.control("");
            rig.make_pair(5).await.unwrap().unwrap();
        },
    );
}

#[test]
fn a_token_of_one_session_is_not_lost_while_a_key_pair_is_made() {
    in_child(
        "a_token_of_one_session_is_not_lost_while_a_key_pair_is_made",
        async |rig| {
            let sealed = rig.encrypt().await.unwrap();
            rig.control("slow C_GenerateKeyPair 1500\nfail C_OpenSession CKR_SESSION_COUNT");
            let pair = rig.make_pair(1);
            rig.until_logged("fault slow C_GenerateKeyPair", 1).await;
            // It waits three times as long as a call may take, and is answered.
            assert_eq!(*rig.decrypt(&sealed).await.unwrap(), DATA);
            pair.await.unwrap().unwrap();
            assert_eq!(rig.hsm.state(), HsmState::Ready);
            rig.control("");
            rig.make_pair(2).await.unwrap().unwrap();
            assert_eq!(*rig.decrypt(&sealed).await.unwrap(), DATA);
        },
    );
}

#[test]
fn a_key_pair_that_is_never_made_is_given_up_at_its_deadline() {
    in_child(
        "a_key_pair_that_is_never_made_is_given_up_at_its_deadline",
        async |mut rig| {
            let config = HsmConfig {
                key_generation_deadline: 2 * DEADLINE,
                ..rig.config(1)
            };
            rig.hsm = Hsm::start(config).unwrap();
            let sealed = rig.encrypt().await.unwrap();
            rig.control("hang C_GenerateKeyPair");
            let asked = Instant::now();
            let error = rig.make_pair(1).await.unwrap().unwrap_err();
            assert!(matches!(error, HsmError::Deadline(_)), "{error}");
            let waited = asked.elapsed();
            assert!(waited >= 2 * DEADLINE, "{waited:?}");
            assert_eq!(rig.hsm.state(), HsmState::Ready);
            assert_eq!(*rig.decrypt(&sealed).await.unwrap(), DATA);
            // The next one is not behind it.
            let next = rig.make_pair(3);
            rig.until_logged("fault hang C_GenerateKeyPair", 2).await;
            next.abort();
            rig.control("");
            rig.make_pair(2).await.unwrap().unwrap();
        },
    );
}

#[test]
fn one_hung_thread_of_several_is_replaced() {
    in_child_with("one_hung_thread_of_several_is_replaced", 2, async |rig| {
        let sealed = rig.encrypt().await.unwrap();
        // Both threads are at work, so that both have their session.
        tokio::time::sleep(Duration::from_millis(200)).await;
        rig.control("hang C_GenerateRandom");
        let hung = tokio::spawn({
            let rig = rig.clone();
            async move { rig.hsm.random(1).await }
        });
        let until = Instant::now() + 3 * DEADLINE;
        while Instant::now() < until {
            assert_eq!(*rig.decrypt(&sealed).await.unwrap(), DATA);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(matches!(hung.await.unwrap(), Err(HsmError::Deadline(_))));
        assert_eq!(rig.hsm.state(), HsmState::Ready);
        rig.control("");
        assert_eq!(rig.hsm.random(8).await.unwrap().len(), 8);
    });
}

#[test]
fn a_module_that_is_not_well_after_it_was_started_anew_is_found_again() {
    in_child(
        "a_module_that_is_not_well_after_it_was_started_anew_is_found_again",
        async |rig| {
            let sealed = rig.encrypt().await.unwrap();
            rig.control("fail C_OpenSession CKR_DEVICE_ERROR 1");
            rig.hsm.restart_module().await;
            // It waited for the module, and is told.
            let error = rig.decrypt(&sealed).await.unwrap_err();
            assert!(
                matches!(&error, HsmError::Unavailable(reason) if reason.contains("CKR_DEVICE_ERROR")),
                "{error}"
            );
            rig.until(|state| *state == HsmState::Ready, 2).await;
            assert_eq!(*rig.decrypt(&sealed).await.unwrap(), DATA);
        },
    );
}

#[test]
fn a_module_in_which_a_call_hangs_is_not_started_anew_and_serves() {
    in_child(
        "a_module_in_which_a_call_hangs_is_not_started_anew_and_serves",
        async |rig| {
            let sealed = rig.encrypt().await.unwrap();
            rig.control("hang C_GenerateKeyPair");
            let hung = rig.make_pair(7);
            rig.until_logged("fault hang C_GenerateKeyPair", 1).await;
            let mut behind = Box::pin(rig.decrypt(&sealed));
            assert!((&mut behind).now_or_never().is_none());
            let before = rig.logged("C_Finalize");
            rig.hsm.restart_module().await;
            assert_eq!(*rig.decrypt(&sealed).await.unwrap(), DATA);
            assert!(matches!(hung.await.unwrap(), Err(HsmError::Deadline(_))));
            assert!(matches!(behind.await, Err(HsmError::Unavailable(_))));
            assert_eq!(rig.logged("C_Finalize"), before);
            assert_eq!(rig.hsm.state(), HsmState::Ready);
            rig.control("");
        },
    );
}

#[test]
fn a_module_is_started_anew_or_not_whoever_waits_to_make_a_key_pair() {
    in_child(
        "a_module_is_started_anew_or_not_whoever_waits_to_make_a_key_pair",
        async |rig| {
            let sealed = rig.encrypt().await.unwrap();
            rig.control("hang C_GenerateKeyPair");
            let pairs = [1, 2, 3].map(|id| rig.make_pair(id));
            rig.until_logged("fault hang C_GenerateKeyPair", 1).await;
            // By the one in its place, who then waits until a key pair may be made.
            assert_eq!(*rig.decrypt(&sealed).await.unwrap(), DATA);
            rig.hsm.restart_module().await;
            assert_eq!(*rig.decrypt(&sealed).await.unwrap(), DATA);
            for pair in pairs {
                pair.await.unwrap().unwrap_err();
            }
            rig.control("");
            rig.make_pair(4).await.unwrap().unwrap();
        },
    );
}

#[test]
fn a_wrong_pin_is_tried_once() {
    in_child("a_wrong_pin_is_tried_once", async |rig| {
        rig.encrypt().await.unwrap();
        let before = rig.logged("C_Login");
        // The PIN is changed while the token is away.
        rig.write_pin("not the PIN");
        rig.control("token-absent");
        let _ = rig.encrypt().await;
        rig.control("");
        rig.until(|state| matches!(state, HsmState::Stopped { .. }), 3)
            .await;
        let error = rig.encrypt().await.unwrap_err();
        assert!(error.to_string().contains("CKR_PIN_INCORRECT"), "{error}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(rig.logged("C_Login CKU_USER CKR_PIN_INCORRECT"), 1);
        assert_eq!(rig.logged("C_Login"), before + 1);
    });
}

#[test]
fn a_start_with_a_wrong_pin_tries_once() {
    in_child("a_start_with_a_wrong_pin_tries_once", async |rig| {
        rig.write_pin("not the PIN");
        let config = rig.config(3);
        let rig_folder = rig.folder.clone();
        let before = rig.logged("C_Login CKU_USER CKR_PIN_INCORRECT");
        drop(rig);
        let error = Hsm::start(config).err().unwrap();
        assert!(
            matches!(&error, HsmError::Pin(code) if code == "CKR_PIN_INCORRECT"),
            "{error}"
        );
        let log = fs::read_to_string(rig_folder.join("log")).unwrap();
        assert_eq!(
            log.matches("C_Login CKU_USER CKR_PIN_INCORRECT").count(),
            before + 1
        );
    });
}

#[test]
fn a_ceremony_tries_each_wrong_pin_once() {
    in_child("a_ceremony_tries_each_wrong_pin_once", async |rig| {
        let log = rig.folder.join("log");
        let wrong = SecretPin::new(b"not the PIN".to_vec().into());
        let config = HsmConfig {
            pin: PinSource::Given(wrong.clone()),
            ..rig.config(1)
        };
        drop(rig);
        let (module, token) = (config.module.as_path(), &config.token);
        let count = |user| {
            let text = fs::read_to_string(&log).unwrap();
            text.matches(&format!("C_Login {user} CKR_PIN_INCORRECT"))
                .count()
        };
        let (mut so, mut user) = (count("CKU_SO"), count("CKU_USER"));
        let mut tried = |result: Result<(), HsmError>, as_so: usize, as_user: usize| {
            assert!(matches!(result, Err(HsmError::Pin(_))), "{result:?}");
            (so, user) = (so + as_so, user + as_user);
            assert_eq!((count("CKU_SO"), count("CKU_USER")), (so, user));
        };
        tried(ceremony::check_pins(module, token, &wrong, &wrong), 1, 0);
        tried(ceremony::set_user_pin(module, token, &wrong, &wrong), 1, 0);
        tried(ceremony::destroy(&config, &wrong).map(|_| ()), 1, 0);
        tried(ceremony::random(module, token, &wrong, 1).map(|_| ()), 0, 1);
        tried(ceremony::evidence(&config).map(|_| ()), 0, 1);
        tried(ceremony::discard_unused_keys(&config).map(|_| ()), 0, 1);
        tried(
            ceremony::make_keys(&config, OptionalKeys::default(), &mut |_| ()).map(drop),
            0,
            1,
        );
        let made = ParticipantToken::make_keys(module, token, &config.pin, "Ada");
        tried(made.map(|_| ()), 0, 1);
        let found = ParticipantToken::open(module, token, &config.pin, &[1]);
        tried(found.map(|_| ()), 0, 1);
    });
}

#[test]
fn a_tag_that_does_not_fit_is_no_device_error() {
    in_child("a_tag_that_does_not_fit_is_no_device_error", async |rig| {
        let sealed = rig.encrypt().await.unwrap();
        let mut altered = sealed.clone();
        altered[3] ^= 1;
        assert!(matches!(
            rig.decrypt(&altered).await,
            Err(HsmError::Authentication)
        ));
        assert_eq!(rig.hsm.state(), HsmState::Ready);
        // The same code from a token that fails every decryption is not the caller's fault.
        rig.control("fail C_Decrypt CKR_GENERAL_ERROR 2");
        let error = rig.decrypt(&sealed).await.unwrap_err();
        assert!(matches!(error, HsmError::Unavailable(_)), "{error}");
        rig.until(|state| *state == HsmState::Ready, 2).await;
        assert_eq!(*rig.decrypt(&sealed).await.unwrap(), DATA);
    });
}

#[test]
fn a_start_that_hangs_ends() {
    in_child("a_start_that_hangs_ends", async |rig| {
        let config = rig.config(1);
        rig.control("hang C_OpenSession");
        let asked = Instant::now();
        let error = Hsm::start(config).err().unwrap();
        assert!(matches!(error, HsmError::Deadline(_)), "{error}");
        assert!(asked.elapsed() < 3 * DEADLINE);
        // It stays hung: let go, it would be in the module while that is unloaded at the process's
        // end.
    });
}

const DATA: [u8; 32] = [0x5a; 32];
const DEADLINE: Duration = Duration::from_millis(500);

/// A running pool on the token behind the fault module.
#[derive(Clone)]
struct Rig {
    hsm: Hsm,
    key: Arc<WrappedKey>,
    folder: PathBuf,
}

impl Rig {
    async fn new(folder: PathBuf, sessions: usize) -> Self {
        let hsm = Hsm::start(child::config(&folder, sessions, DEADLINE)).unwrap();
        let key = Arc::new(
            hsm.generate_key(KeyUsage::Aead, MasterKind::Hsm)
                .await
                .unwrap(),
        );
        Self { hsm, key, folder }
    }

    fn config(&self, sessions: usize) -> HsmConfig {
        child::config(&self.folder, sessions, DEADLINE)
    }

    fn item(&self, data: &[u8]) -> GcmItem {
        GcmItem {
            key: Arc::clone(&self.key),
            iv: [1; 12],
            aad: vec![],
            data: Zeroizing::new(data.to_vec()),
        }
    }

    async fn encrypt(&self) -> Result<Vec<u8>, HsmError> {
        self.hsm.encrypt(vec![self.item(&DATA)]).await?.remove(0)
    }

    async fn decrypt(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, HsmError> {
        let mut plain = self.hsm.decrypt(vec![self.item(sealed)]).await?.remove(0)?;
        Ok(std::mem::take(&mut *plain).into())
    }

    fn make_pair(&self, id: u8) -> JoinHandle<Result<SigningKey, HsmError>> {
        let hsm = self.hsm.clone();
        let kind = SigningKind::EcdsaP256;
        tokio::spawn(async move { hsm.generate_signing_key(kind, [id; 16]).await })
    }

    fn control(&self, commands: &str) {
        child::control(&self.folder, commands);
    }

    fn write_pin(&self, pin: &str) {
        let path = self.folder.join("pin");
        fs::remove_file(&path).unwrap();
        fs::write(&path, pin).unwrap();
        child::private(&path);
    }

    /// Lines of the module's log with that text.
    fn logged(&self, text: &str) -> usize {
        fs::read_to_string(self.folder.join("log"))
            .unwrap()
            .lines()
            .filter(|line| line.contains(text))
            .count()
    }

    /// Waits for that many lines of the module's log with that text.
    async fn until_logged(&self, text: &str, times: usize) {
        let until = Instant::now() + Duration::from_secs(10);
        while self.logged(text) < times {
            assert!(Instant::now() < until, "{text:?} did not happen");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn until(&self, wanted: impl Fn(&HsmState) -> bool, seconds: u64) {
        let until = Instant::now() + Duration::from_secs(seconds);
        while !wanted(&self.hsm.state()) {
            assert!(
                Instant::now() < until,
                "after {seconds} s still {:?}",
                self.hsm.state()
            );
            // Losing the token is noticed by using it.
            let _ = self.hsm.probe().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn in_child(test: &str, body: impl AsyncFnOnce(Rig)) {
    in_child_with(test, 1, body);
}

/// Runs `body` in a child process on the shared token, with a control file and a log of its own.
fn in_child_with(test: &str, sessions: usize, body: impl AsyncFnOnce(Rig)) {
    if let Some(folder) = std::env::var_os(CHILD) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        return runtime.block_on(async {
            let whole = async { body(Rig::new(folder.into(), sessions).await).await };
            let limit = Duration::from_mins(1);
            tokio::time::timeout(limit, whole)
                .await
                .expect("hangs for a minute");
        });
    }
    child::run_on_copy(test, token());
}

#[test]
#[ignore = "runs in a child process, once, to make the token"]
fn provision() {
    let folder = PathBuf::from(std::env::var_os(CHILD).unwrap());
    let config = HsmConfig {
        call_deadline: Duration::from_mins(1),
        ..child::config(&folder, 1, DEADLINE)
    };
    Hsm::provision(&config, OptionalKeys::default(), &mut |_| ()).unwrap();
}

fn token() -> &'static Throwaway {
    static TOKEN: OnceLock<Throwaway> = OnceLock::new();
    TOKEN.get_or_init(|| {
        let token = Throwaway::new().unwrap();
        let folder = child::folder();
        child::run("provision", folder.path(), &token, token.env().1);
        token
    })
}
