//! Each command of the control file, driven by the `cryptoki` crate on a throwaway `SoftHSM` token,
//! and the recovery from it.
//!
//! `SoftHSM` and the module take their settings from the environment, which a process can't safely
//! change for itself, and a PKCS#11 module has one state per process: so each test runs its body in
//! a child process of its own, which is this program with the test's name.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;

const PIN: &str = "throwaway-user-pin";
const WRONG_PIN: &str = "not-the-user-pin";

#[test]
fn without_commands_it_is_the_real_module() {
    in_child("without_commands_it_is_the_real_module", |rig| {
        let (session, key) = rig.session_with_key();
        let sealed = encrypt(&session, key).unwrap();
        assert_ne!(sealed, TEXT);
        assert_eq!(decrypt(&session, key, &sealed).unwrap(), TEXT);
        let mechanisms = rig.pkcs11.get_mechanism_list(rig.slot).unwrap();
        assert!(
            mechanisms.contains(&MechanismType::AES_GCM),
            "{mechanisms:?}"
        );
        assert_eq!(rig.logged("fault"), 0);
    });
}

#[test]
fn a_function_fails_as_often_as_asked() {
    in_child("a_function_fails_as_often_as_asked", |rig| {
        let (session, key) = rig.session_with_key();
        let sealed = encrypt(&session, key).unwrap();
        rig.control("fail C_DecryptInit CKR_DEVICE_ERROR 2 # and then no more");
        for _ in 0..2 {
            assert_eq!(code(decrypt(&session, key, &sealed)), RvError::DeviceError);
        }
        assert_eq!(decrypt(&session, key, &sealed).unwrap(), TEXT);
        assert_eq!(rig.logged("fault fail C_DecryptInit CKR_DEVICE_ERROR"), 2);

        rig.control("fail C_GenerateRandom 0x80000001");
        assert!(session.generate_random_vec(8).is_err());
        assert_eq!(decrypt(&session, key, &sealed).unwrap(), TEXT);
        rig.control("");
        session.generate_random_vec(8).unwrap();
    });
}

#[test]
fn every_function_fails_but_the_librarys_own() {
    in_child("every_function_fails_but_the_librarys_own", |rig| {
        let (session, key) = rig.session_with_key();
        let sealed = encrypt(&session, key).unwrap();
        rig.control("fail * CKR_DEVICE_REMOVED");
        assert_eq!(
            code(decrypt(&session, key, &sealed)),
            RvError::DeviceRemoved
        );
        assert_eq!(
            code(rig.pkcs11.get_slots_with_token()),
            RvError::DeviceRemoved
        );
        assert_eq!(
            code(rig.pkcs11.open_rw_session(rig.slot)),
            RvError::DeviceRemoved
        );
        rig.pkcs11.get_library_info().unwrap();
        rig.control("");
        assert_eq!(decrypt(&session, key, &sealed).unwrap(), TEXT);
    });
}

#[test]
fn an_absent_token_loses_its_sessions_and_their_objects() {
    in_child(
        "an_absent_token_loses_its_sessions_and_their_objects",
        |rig| {
            let (session, key) = rig.session_with_key();
            let token_key = generate(&session, "kept", true);
            let sealed = encrypt(&session, token_key).unwrap();

            rig.control("token-absent");
            assert_eq!(rig.pkcs11.get_slots_with_token().unwrap(), []);
            assert!(rig.pkcs11.get_all_slots().unwrap().contains(&rig.slot));
            assert!(!rig.pkcs11.get_slot_info(rig.slot).unwrap().token_present());
            assert_eq!(
                code(rig.pkcs11.get_token_info(rig.slot)),
                RvError::TokenNotPresent
            );
            assert_eq!(
                code(rig.pkcs11.open_rw_session(rig.slot)),
                RvError::TokenNotPresent
            );
            assert_eq!(code(encrypt(&session, key)), RvError::DeviceRemoved);
            assert_eq!(
                code(session.login(UserType::User, Some(&pin(PIN)))),
                RvError::DeviceRemoved
            );

            rig.control("");
            assert!(rig.pkcs11.get_slot_info(rig.slot).unwrap().token_present());
            assert_eq!(code(encrypt(&session, key)), RvError::SessionHandleInvalid);
            let again = rig.pkcs11.open_rw_session(rig.slot).unwrap();
            assert_eq!(
                labelled(&again, "kept"),
                [],
                "the login must be gone as well"
            );
            again.login(UserType::User, Some(&pin(PIN))).unwrap();
            assert!(
                encrypt(&again, key).is_err(),
                "the old session key must be gone"
            );
            assert_eq!(labelled(&again, "session"), []);
            let [kept] = labelled(&again, "kept")[..] else {
                panic!("the token key must be there")
            };
            assert_eq!(decrypt(&again, kept, &sealed).unwrap(), TEXT);
            assert_eq!(rig.logged("token-absent sessions of"), 1);
            assert_eq!(rig.logged("token-present"), 1);
        },
    );
}

#[test]
fn a_loss_that_no_call_saw_is_a_loss() {
    in_child("a_loss_that_no_call_saw_is_a_loss", |rig| {
        let (session, key) = rig.session_with_key();
        rig.control("token-absent");
        rig.wait_for("token-absent sessions of");
        rig.control("");
        assert_eq!(code(encrypt(&session, key)), RvError::SessionHandleInvalid);
    });
}

#[test]
fn sessions_are_lost_under_load_without_a_wrong_answer() {
    in_child(
        "sessions_are_lost_under_load_without_a_wrong_answer",
        |rig| {
            let (session, _) = rig.session_with_key();
            let key = generate(&session, "kept", true);
            let sealed = encrypt(&session, key).unwrap();
            let stop = AtomicBool::new(false);
            let work = || {
                let (mut right, mut lost) = (0, 0);
                while !stop.load(Ordering::SeqCst) {
                    let Ok(session) = rig.pkcs11.open_ro_session(rig.slot) else {
                        lost += 1;
                        continue;
                    };
                    // Another thread may have logged in: a login is the process's, not the
                    // session's.
                    let _ = session.login(UserType::User, Some(&pin(PIN)));
                    let Some(key) = find(&session, "kept").unwrap_or_default().first().copied()
                    else {
                        continue;
                    };
                    while !stop.load(Ordering::SeqCst) {
                        match decrypt(&session, key, &sealed) {
                            Ok(text) => {
                                assert_eq!(text, TEXT);
                                right += 1;
                            }
                            Err(error) => {
                                let expected = [
                                    RvError::DeviceRemoved,
                                    RvError::SessionHandleInvalid,
                                    RvError::UserNotLoggedIn,
                                    RvError::KeyHandleInvalid,
                                    RvError::ObjectHandleInvalid,
                                ];
                                let got = code::<()>(Err(error));
                                assert!(expected.contains(&got), "{got:?}");
                                lost += 1;
                                break;
                            }
                        }
                    }
                }
                (right, lost)
            };
            let (right, lost) = thread::scope(|scope| {
                let workers: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
                for round in 0..30 {
                    let fault = ["token-absent", "forget-sessions"][round % 2];
                    rig.control(fault);
                    thread::sleep(Duration::from_millis(5));
                    rig.control("");
                    thread::sleep(Duration::from_millis(20));
                }
                stop.store(true, Ordering::SeqCst);
                workers
                    .into_iter()
                    .map(|worker| worker.join().unwrap())
                    .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
            });
            assert!(right > 100, "{right} right answers");
            assert!(lost > 30, "{lost} losses seen");
        },
    );
}

#[test]
fn sessions_are_forgotten_once() {
    in_child("sessions_are_forgotten_once", |rig| {
        let (session, key) = rig.session_with_key();
        rig.control("forget-sessions");
        assert_eq!(code(encrypt(&session, key)), RvError::SessionHandleInvalid);
        // The command is still in the file, and it is done.
        let (session, key) = rig.session_with_key();
        encrypt(&session, key).unwrap();
        rig.control("forget-sessions");
        assert_eq!(code(encrypt(&session, key)), RvError::SessionHandleInvalid);
        assert_eq!(rig.logged("forget-sessions sessions of"), 2);
        rig.control("");
        let (session, key) = rig.session_with_key();
        encrypt(&session, key).unwrap();
    });
}

#[test]
fn a_call_hangs_until_released() {
    in_child("a_call_hangs_until_released", |rig| {
        let (session, key) = rig.session_with_key();
        let sealed = encrypt(&session, key).unwrap();
        rig.control("hang C_Decrypt");
        thread::scope(|scope| {
            let hung = scope.spawn(move || {
                let started = Instant::now();
                (decrypt(&session, key, &sealed).unwrap(), started.elapsed())
            });
            rig.wait_for("fault hang C_Decrypt");
            thread::sleep(Duration::from_millis(300));
            assert!(!hung.is_finished());
            // The others go on meanwhile.
            rig.pkcs11
                .open_rw_session(rig.slot)
                .unwrap()
                .generate_random_vec(8)
                .unwrap();
            rig.control("");
            let (text, took) = hung.join().unwrap();
            assert_eq!(text, TEXT);
            assert!(took >= Duration::from_millis(300), "{took:?}");
        });
        assert!(rig.logged("fault hang C_Decrypt over") > 0);
    });
}

#[test]
fn a_call_hangs_for_a_time() {
    in_child("a_call_hangs_for_a_time", |rig| {
        let (session, _) = rig.session_with_key();
        rig.control("hang C_GenerateRandom 150");
        let took = time(|| session.generate_random_vec(8).map(drop).unwrap());
        assert!(
            took >= Duration::from_millis(150) && took < Duration::from_secs(5),
            "{took:?}"
        );
        rig.control("");
        let took = time(|| session.generate_random_vec(8).map(drop).unwrap());
        assert!(took < Duration::from_millis(150), "{took:?}");
    });
}

#[test]
fn a_hanging_call_meets_what_comes_next() {
    in_child("a_hanging_call_meets_what_comes_next", |rig| {
        let (session, key) = rig.session_with_key();
        rig.control("hang C_EncryptInit");
        thread::scope(|scope| {
            let hung = scope.spawn(move || code(encrypt(&session, key)));
            rig.wait_for("fault hang C_EncryptInit");
            rig.control("token-absent");
            assert_eq!(hung.join().unwrap(), RvError::DeviceRemoved);
        });
    });
}

#[test]
fn a_call_is_slow() {
    in_child("a_call_is_slow", |rig| {
        let (session, key) = rig.session_with_key();
        rig.control("slow C_EncryptInit 120");
        let took = time(|| encrypt(&session, key).map(drop).unwrap());
        assert!(
            took >= Duration::from_millis(120) && took < Duration::from_secs(5),
            "{took:?}"
        );
        rig.control("");
        let took = time(|| encrypt(&session, key).map(drop).unwrap());
        assert!(took < Duration::from_millis(120), "{took:?}");
    });
}

#[test]
fn logins_are_logged_without_their_pin() {
    in_child("logins_are_logged_without_their_pin", |rig| {
        let before = rig.logged("C_Login");
        let session = rig.pkcs11.open_rw_session(rig.slot).unwrap();
        assert_eq!(
            code(session.login(UserType::User, Some(&pin(WRONG_PIN)))),
            RvError::PinIncorrect
        );
        session.login(UserType::User, Some(&pin(PIN))).unwrap();
        session.logout().unwrap();
        assert_eq!(rig.logged("C_Login CKU_USER CKR_PIN_INCORRECT"), 1);

        rig.control("fail C_Login CKR_PIN_INCORRECT");
        assert_eq!(
            code(session.login(UserType::User, Some(&pin(PIN)))),
            RvError::PinIncorrect
        );
        assert_eq!(rig.logged("C_Login CKU_USER CKR_PIN_INCORRECT injected"), 1);
        assert_eq!(rig.logged("C_Login"), before + 4, "{}", rig.log()); // with the line of the injected fault

        assert_eq!(rig.logged("C_Initialize CKR_OK"), 1);
        drop(session);
        rig.pkcs11.clone().finalize().unwrap();
        assert_eq!(rig.logged("C_Finalize CKR_OK"), 1);
        let log = rig.log();
        assert!(!log.contains(PIN) && !log.contains(WRONG_PIN));
    });
}

#[test]
fn it_can_be_initialized_again() {
    in_child("it_can_be_initialized_again", |rig| {
        let watched = || {
            let mut threads = fs::read_dir("/proc/self/task").unwrap().flatten();
            threads.any(|thread| {
                fs::read_to_string(thread.path().join("comm"))
                    .is_ok_and(|name| name.trim() == "pkcs11-fault")
            })
        };
        assert!(watched());
        rig.pkcs11.clone().finalize().unwrap();
        assert!(!watched());
        rig.control("fail C_Initialize CKR_DEVICE_ERROR 1");
        let init = || {
            rig.pkcs11
                .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
        };
        assert_eq!(code(init()), RvError::DeviceError);
        init().unwrap();
        let (session, key) = rig.session_with_key();
        // The file is looked at between the calls again.
        rig.control("forget-sessions");
        rig.wait_for("forget-sessions sessions of");
        assert_eq!(code(encrypt(&session, key)), RvError::SessionHandleInvalid);
    });
}

#[test]
fn calls_are_counted_on_demand() {
    in_child("calls_are_counted_on_demand", |rig| {
        let (session, key) = rig.session_with_key();
        let counts = |work: &dyn Fn()| {
            rig.control("count");
            let before = rig.logged("counts ");
            work();
            rig.control("");
            rig.wait_for_another("counts ", before);
            let log = rig.log();
            let (_, counts) = log.lines().last().unwrap().split_once("counts ").unwrap();
            counts.to_owned()
        };
        let random = || drop(session.generate_random_vec(8).unwrap());
        assert_eq!(
            counts(&|| (0..3).for_each(|_| random())),
            "C_GenerateRandom=3"
        );
        random();
        let round_trip = counts(&|| {
            let sealed = encrypt(&session, key).unwrap();
            decrypt(&session, key, &sealed).unwrap();
        });
        // cryptoki asks for the length of the output first, so two of these are called twice.
        assert_eq!(
            round_trip,
            "C_EncryptInit=1 C_DecryptInit=1 C_Encrypt=2 C_Decrypt=2"
        );
    });
}

#[test]
fn a_command_can_be_meant_for_some_calls() {
    in_child("a_command_can_be_meant_for_some_calls", |rig| {
        let (session, _) = rig.session_with_key();
        for label in ["meant", "other"] {
            generate(&session, label, false);
        }
        rig.control("where key=meant claim C_FindObjects CKA_ID 00112233");
        let id = |label| {
            let key = labelled(&session, label)[0];
            session.get_attributes(key, &[AttributeType::Id]).unwrap()
        };
        assert_eq!(id("meant"), [Attribute::Id(vec![0x00, 0x11, 0x22, 0x33])]);
        assert_eq!(id("other"), [Attribute::Id(Vec::new())]);
        rig.control("where key=meant make C_CopyObject CKA_LABEL");
        let copy = |label| {
            let key = labelled(&session, label)[0];
            let copy = session.copy_object(key, &[Attribute::Label(b"copied".to_vec())]);
            let told = [AttributeType::Label, AttributeType::KeyType];
            session.get_attributes(copy.unwrap(), &told).unwrap()
        };
        // As the original, but for what was asked; and a real one, which its key allows.
        for label in ["meant", "other"] {
            let expected = [
                Attribute::Label(b"copied".to_vec()),
                Attribute::KeyType(KeyType::AES),
            ];
            assert_eq!(copy(label), expected, "{label}");
        }
    });
}

#[test]
fn a_typo_makes_every_call_fail() {
    in_child("a_typo_makes_every_call_fail", |rig| {
        let (session, _) = rig.session_with_key();
        for typo in [
            "fial C_Decrypt CKR_DEVICE_ERROR",
            "fail C_Decyrpt CKR_DEVICE_ERROR",
            "fail C_Decrypt CKR_DEVICE_EROR",
            "fail C_Decrypt CKR_DEVICE_ERROR twice",
            "fail C_Decrypt",
            "hang C_Decrypt soon",
            "token-absent now",
            "where key=one fail C_Decrypt CKR_DEVICE_ERROR",
            "where kye=one allow C_DecryptInit",
        ] {
            rig.control(&format!("# a comment\n{typo}"));
            assert_eq!(
                code(session.generate_random_vec(8)),
                RvError::GeneralError,
                "{typo}"
            );
        }
        assert_eq!(rig.logged("control-error line 2: "), 9);
        rig.control("");
        session.generate_random_vec(8).unwrap();
    });
}

#[test]
fn a_module_that_is_not_there_fails_to_initialize() {
    let test = "a_module_that_is_not_there_fails_to_initialize";
    in_process(test, Some("/nonexistent/module.so"), |folder| {
        let pkcs11 = Pkcs11::new(module()).unwrap();
        let result = pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
        assert_eq!(code(result), RvError::GeneralError);
        let log = fs::read_to_string(folder.join("log")).unwrap();
        assert!(
            log.contains("error can't load /nonexistent/module.so"),
            "{log}"
        );
    });
}

const TEXT: &[u8] = b"thirty-two bytes, a wrapped key.";

/// A token in a directory of its own, reached through the fault module. The fields are what a
/// test's body works with.
struct Rig {
    folder: PathBuf,
    pkcs11: Pkcs11,
    slot: Slot,
}

/// Runs `body` in a child process with a new token. `test` is the test's own name.
fn in_child(test: &str, body: impl FnOnce(&Rig)) {
    in_process(test, None, |folder| body(&Rig::new(folder)));
}

/// Runs `body` in a child process with an empty directory for tokens, and `real` as the module
/// behind the fault module.
fn in_process(test: &str, real: Option<&str>, body: impl FnOnce(PathBuf)) {
    if let Some(folder) = std::env::var_os("PKCS11_FAULT_TEST_FOLDER") {
        thread::spawn(|| {
            thread::sleep(Duration::from_mins(1));
            eprintln!("hangs for a minute");
            std::process::exit(1);
        });
        return body(folder.into());
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("tokens")).unwrap();
    fs::write(
        path("softhsm2.conf"),
        format!(
            "directories.tokendir = {}\nobjectstore.backend = file\n",
            path("tokens").display()
        ),
    )
    .unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("PKCS11_FAULT_TEST_FOLDER", folder.path())
        .env("SOFTHSM2_CONF", path("softhsm2.conf"))
        .env("PKCS11_FAULT_CONTROL", path("control"))
        .env("PKCS11_FAULT_LOG", path("log"))
        .envs(real.map(|real| ("PKCS11_FAULT_MODULE", real)))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{}: {said}{}\nlog:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        fs::read_to_string(path("log")).unwrap_or_default()
    );
}

impl Rig {
    fn new(folder: PathBuf) -> Self {
        let pkcs11 = Pkcs11::new(module()).unwrap();
        pkcs11
            .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
            .unwrap();
        let free = pkcs11.get_slots_with_token().unwrap()[0];
        pkcs11
            .init_token(free, &pin("throwaway-so-pin"), "fault")
            .unwrap();
        // SoftHSM gives an initialized token a new slot.
        let slot = pkcs11
            .get_slots_with_initialized_token()
            .unwrap()
            .into_iter()
            .next()
            .unwrap();
        let session = pkcs11.open_rw_session(slot).unwrap();
        session
            .login(UserType::So, Some(&pin("throwaway-so-pin")))
            .unwrap();
        session.init_pin(&pin(PIN)).unwrap();
        session.logout().unwrap();
        drop(session);
        Self {
            folder,
            pkcs11,
            slot,
        }
    }

    /// Replaces the control file.
    fn control(&self, text: &str) {
        let new = self.folder.join("control.new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.folder.join("control")).unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }

    /// How many lines of the log contain `event`.
    fn logged(&self, event: &str) -> usize {
        self.log()
            .lines()
            .filter(|line| line.contains(event))
            .count()
    }

    fn wait_for(&self, event: &str) {
        self.wait_for_another(event, 0);
    }

    /// Waits until the log has more than `before` lines that contain `event`.
    fn wait_for_another(&self, event: &str, before: usize) {
        let started = Instant::now();
        while self.logged(event) <= before {
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "no `{event}` in the log"
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn session_with_key(&self) -> (Session, ObjectHandle) {
        // Not `self.slot`: SoftHSM numbers a new token's slot again when it is next initialized.
        let slots = self.pkcs11.get_slots_with_initialized_token().unwrap();
        let session = self.pkcs11.open_rw_session(slots[0]).unwrap();
        session.login(UserType::User, Some(&pin(PIN))).unwrap();
        let key = generate(&session, "session", false);
        (session, key)
    }
}

fn module() -> PathBuf {
    // This program is target/<profile>/deps/faults-<hash>.
    let program = std::env::current_exe().unwrap();
    let deps = program.parent().unwrap();
    deps.join("libstrongroom_pkcs11_fault.so")
}

fn generate(session: &Session, label: &str, token: bool) -> ObjectHandle {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen(32.into()),
        Attribute::Token(token),
        Attribute::Private(true),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Label(label.into()),
    ];
    session
        .generate_key(&Mechanism::AesKeyGen, &template)
        .unwrap()
}

fn encrypt(session: &Session, key: ObjectHandle) -> Result<Vec<u8>, Error> {
    let mut iv = [7; 12];
    let params = GcmParams::new(&mut iv, b"aad", 128.into()).unwrap();
    session.encrypt(&Mechanism::AesGcm(params), key, TEXT)
}

fn decrypt(session: &Session, key: ObjectHandle, sealed: &[u8]) -> Result<Vec<u8>, Error> {
    let mut iv = [7; 12];
    let params = GcmParams::new(&mut iv, b"aad", 128.into()).unwrap();
    session.decrypt(&Mechanism::AesGcm(params), key, sealed)
}

fn find(session: &Session, label: &str) -> Result<Vec<ObjectHandle>, Error> {
    session.find_objects(&[Attribute::Label(label.into())])
}

fn labelled(session: &Session, label: &str) -> Vec<ObjectHandle> {
    find(session, label).unwrap()
}

fn code<T>(result: Result<T, Error>) -> RvError {
    match result {
        Err(Error::Pkcs11(code, _)) => code,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it went well"),
    }
}

fn pin(text: &str) -> AuthPin {
    AuthPin::new(text.into())
}

fn time(body: impl FnOnce()) -> Duration {
    let started = Instant::now();
    body();
    started.elapsed()
}
