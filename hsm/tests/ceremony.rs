//! A token's life, step by step, on a real SoftHSM2: initialization, PINs, keys, evidence,
//! destruction, and every state that a power cut may leave it in.
#![allow(
    clippy::await_holding_lock,
    reason = "the turn lasts for the whole test"
)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use common::turn;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectClass};
use cryptoki::session::{Session, UserType};
use strongroom_hsm::ceremony::{self, Evidence, KeySet, TokenCondition};
use strongroom_hsm::{
    Hsm, HsmConfig, HsmError, KeyUsage, MasterKind, OptionalKeys, PinSource, Register, SecretPin,
    SlotState, TokenSelector,
};
use tempfile::TempDir;

/// A token that a ceremony brings to life.
struct Birth {
    module: PathBuf,
    label: String,
    so_pin: SecretPin,
    user_pin: SecretPin,
    folder: TempDir,
}

impl Birth {
    fn new() -> Self {
        // Makes the configuration that the module needs, if no test did so yet.
        drop(strongroom_softhsm::Throwaway::in_process().unwrap());
        Self {
            module: strongroom_softhsm::module_path().unwrap(),
            label: format!("birth-{}", random_hex()),
            so_pin: pin(&random_hex()),
            user_pin: pin(&random_hex()),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// With both PINs set.
    fn ready() -> Self {
        let birth = Self::new();
        let blank = birth.blank();
        ceremony::initialize_token(&birth.module, blank.slot, &birth.label, &birth.so_pin).unwrap();
        birth.set_user_pin().unwrap();
        birth
    }

    fn selector(&self) -> TokenSelector {
        TokenSelector::Label(self.label.clone())
    }

    fn config(&self) -> HsmConfig {
        HsmConfig {
            module: self.module.clone(),
            token: self.selector(),
            pin: PinSource::Given(self.user_pin.clone()),
            sessions: 1,
            queue: 16,
            call_deadline: Duration::from_secs(10),
            key_generation_deadline: Duration::from_mins(5),
            session_keys: 16,
            shape: strongroom_hsm::KeyShape::Fixed,
        }
    }

    fn blank(&self) -> SlotState {
        ceremony::slots(&self.module)
            .unwrap()
            .into_iter()
            .find(|slot| slot.condition() == TokenCondition::Blank)
            .expect("SoftHSM always offers a blank token")
    }

    fn state(&self) -> Option<SlotState> {
        ceremony::slots(&self.module)
            .unwrap()
            .into_iter()
            .find(|slot| slot.initialized && slot.token.label == self.label)
    }

    fn condition(&self) -> TokenCondition {
        self.state().unwrap().condition()
    }

    fn set_user_pin(&self) -> Result<(), HsmError> {
        ceremony::set_user_pin(&self.module, &self.selector(), &self.so_pin, &self.user_pin)
    }

    fn check_pins(&self, so_pin: &SecretPin, user_pin: &SecretPin) -> Result<(), HsmError> {
        ceremony::check_pins(&self.module, &self.selector(), so_pin, user_pin)
    }

    fn evidence(&self) -> Evidence {
        ceremony::evidence(&self.config()).unwrap()
    }

    fn discard(&self) -> Vec<String> {
        ceremony::discard_unused_keys(&self.config()).unwrap()
    }

    /// Runs `ceremony::make_keys` in a process that dies without a word when it is about to begin
    /// `step`.
    fn make_keys_and_lose_power_at(&self, step: &str) {
        let pin_file = self.folder.path().join("pin");
        if !pin_file.exists() {
            fs::write(&pin_file, self.user_pin.expose()).unwrap();
            fs::set_permissions(&pin_file, fs::Permissions::from_mode(0o400)).unwrap();
        }
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_makes_keys", "--ignored"])
            .env("CHILD_LABEL", &self.label)
            .env("CHILD_PIN_FILE", pin_file)
            .env("CHILD_STEP", step)
            .status()
            .unwrap();
        assert!(!status.success(), "the child was to die at {step:?}");
    }

    fn with_session(&self, body: impl FnOnce(&Session)) {
        let pin = self.user_pin.expose();
        common::with_session(&self.module, &self.label, UserType::User, pin, body);
    }

    fn destroy_by_hand(&self, class: ObjectClass, label: &str) {
        self.with_session(|session| {
            let template = [Attribute::Class(class), Attribute::Label(label.into())];
            for object in session.find_objects(&template).unwrap() {
                session.destroy_object(object).unwrap();
            }
        });
    }
}

/// Not a test: the process that loses its power.
#[test]
#[ignore = "run by other tests, in a process of its own"]
fn child_makes_keys() {
    let Ok(label) = std::env::var("CHILD_LABEL") else {
        return;
    };
    let step = std::env::var("CHILD_STEP").unwrap();
    let config = HsmConfig {
        module: strongroom_softhsm::module_path().unwrap(),
        token: TokenSelector::Label(label),
        pin: PinSource::File(std::env::var_os("CHILD_PIN_FILE").unwrap().into()),
        sessions: 1,
        queue: 16,
        call_deadline: Duration::from_secs(10),
        key_generation_deadline: Duration::from_mins(5),
        session_keys: 16,
        shape: strongroom_hsm::KeyShape::Fixed,
    };
    ceremony::make_keys(&config, OptionalKeys::default(), &mut |now| {
        if now == step {
            std::process::abort();
        }
    })
    .unwrap();
}

#[test]
fn a_blank_token_becomes_one_with_two_pins() {
    let _turn = turn();
    let birth = Birth::new();
    let blank = birth.blank();
    let initialize =
        |slot, label: &str| ceremony::initialize_token(&birth.module, slot, label, &birth.so_pin);
    for (slot, label, part) in [
        (blank.slot, "", "1 to 32 bytes"),
        (
            blank.slot,
            "a label that is longer than that!",
            "1 to 32 bytes",
        ),
        (blank.slot, " vault", "blank"),
        (blank.slot, "va\nult", "control"),
        (u64::from(u32::MAX), "vault", "no token in slot"),
    ] {
        let error = initialize(slot, label).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let short = ceremony::initialize_token(&birth.module, blank.slot, &birth.label, &pin("123"));
    assert!(
        matches!(&short, Err(HsmError::Config(text)) if text.contains("4 to 255")),
        "{short:?}"
    );
    assert_eq!(birth.state(), None);

    let made = initialize(blank.slot, &birth.label).unwrap();
    assert_eq!(made.condition(), TokenCondition::NoUserPin);
    assert!(!made.token.serial.is_empty());
    assert_eq!(birth.state(), Some(made.clone()));
    // Neither it nor a second one of the same label: a ceremony that was cut off here goes on with
    // the first.
    for slot in [made.slot, birth.blank().slot] {
        match initialize(slot, &birth.label).unwrap_err() {
            HsmError::TokenInitialized { label, serial } => {
                assert_eq!(
                    (label, serial),
                    (birth.label.clone(), made.token.serial.clone())
                );
            }
            error => panic!("{error}"),
        }
    }

    // Cut off here: without a user PIN nobody can look for keys, and there can be none.
    for error in [
        ceremony::evidence(&birth.config()).unwrap_err(),
        ceremony::discard_unused_keys(&birth.config()).unwrap_err(),
        ceremony::make_keys(&birth.config(), OptionalKeys::default(), &mut |_| ()).unwrap_err(),
    ] {
        assert!(
            matches!(&error, HsmError::Pin(code) if code.contains("CKR_USER_PIN_NOT_INITIALIZED")),
            "{error}"
        );
    }
    let wrong = pin("a wrong PIN");
    let refused = ceremony::set_user_pin(&birth.module, &birth.selector(), &wrong, &birth.user_pin);
    assert_pin(&refused, "SO PIN: CKR_PIN_INCORRECT");
    assert_eq!(birth.condition(), TokenCondition::NoUserPin);
    birth.set_user_pin().unwrap();
    assert_eq!(birth.condition(), TokenCondition::Initialized);
    // Cut off here, the step is done once more.
    birth.set_user_pin().unwrap();

    birth.check_pins(&birth.so_pin, &birth.user_pin).unwrap();
    assert_pin(
        &birth.check_pins(&wrong, &birth.user_pin),
        "SO PIN: CKR_PIN_INCORRECT",
    );
    assert_pin(
        &birth.check_pins(&birth.so_pin, &wrong),
        "user PIN: CKR_PIN_INCORRECT",
    );

    let random =
        |len| ceremony::random(&birth.module, &birth.selector(), &birth.user_pin, len).unwrap();
    let bytes = random(100_000);
    assert_eq!(bytes.len(), 100_000);
    let (head, tail) = (&bytes[..32], &bytes[99_968..]);
    assert!(head != tail && tail != [0; 32] && head != &random(32)[..]);

    let evidence = birth.evidence();
    assert_eq!((evidence.keys, evidence.objects.len()), (KeySet::None, 0));
    assert_eq!(evidence.profile, None);
    assert_eq!(evidence.token, made.token);
    for mechanism in ["CKM_AES_GCM", "CKM_RSA_PKCS_OAEP"] {
        assert!(evidence.mechanisms.iter().any(|name| name == mechanism));
    }
    assert!(birth.discard().is_empty());
}

#[test]
fn a_token_whose_initialization_was_cut_off_is_told() {
    let _turn = turn();
    let birth = Birth::new();
    let blank = birth.blank();
    let initialize =
        |slot| ceremony::initialize_token(&birth.module, slot, &birth.label, &birth.so_pin);
    initialize(blank.slot).unwrap();
    birth.lock_so_pin();
    assert_eq!(birth.condition(), TokenCondition::SoPinLocked);
    for slot in [birth.state().unwrap().slot, birth.blank().slot] {
        let error = initialize(slot).unwrap_err().to_string();
        assert!(error.contains("--delete-token"), "{error}");
    }
    // No PIN is tried on it.
    assert_pin(&birth.set_user_pin(), "SO PIN: CKF_SO_PIN_LOCKED");
}

#[test]
fn a_pin_is_truly_tried_while_another_is_logged_in() {
    let _turn = turn();
    let birth = Birth::ready();
    birth.with_session(|_| {
        // That session's login must not make a wrong PIN look right.
        let wrong = pin("a wrong PIN");
        for (so_pin, user_pin) in [(&wrong, &wrong), (&birth.so_pin, &birth.user_pin)] {
            let result = birth.check_pins(so_pin, user_pin);
            assert!(matches!(result, Err(HsmError::TokenInUse(_))), "{result:?}");
        }
        let result = birth.set_user_pin();
        assert!(matches!(result, Err(HsmError::TokenInUse(_))), "{result:?}");
        let result = ceremony::destroy(&birth.config(), &birth.so_pin);
        assert!(matches!(result, Err(HsmError::TokenInUse(_))), "{result:?}");
    });
    birth.check_pins(&birth.so_pin, &birth.user_pin).unwrap();
}

#[test]
fn half_of_the_keys_are_seen_and_discarded() {
    let _turn = turn();
    let birth = Birth::ready();
    birth.make_keys_and_lose_power_at("RSA-4096 wrapping key for imports");
    let evidence = birth.evidence();
    assert_eq!(
        evidence.keys,
        KeySet::Incomplete {
            missing: names(&[
                "BYOK wrapping key",
                "public half of the BYOK wrapping key",
                "epoch object"
            ]),
            in_use: false,
        }
    );
    assert_eq!(evidence.profile, None);
    let present = names(&[
        "master key",
        "public half of the master key",
        "store key",
        "audit signing key",
        "public half of the audit signing key",
    ]);
    let seen: Vec<_> = evidence.objects.iter().map(|o| o.name.clone()).collect();
    assert_eq!(seen, present);
    let again = ceremony::make_keys(&birth.config(), OptionalKeys::default(), &mut |_| ());
    assert!(matches!(again, Err(HsmError::KeyExists(_))), "{again:?}");

    // A pair of which only one half was written, and a cut in the middle of the clearing.
    birth.destroy_by_hand(ObjectClass::PRIVATE_KEY, "strongroom-audit");
    assert!(matches!(
        birth.evidence().keys,
        KeySet::Incomplete { missing, in_use: false } if missing[0] == "audit signing key"
    ));
    // Somebody else's object is not the appliance's to discard.
    birth.with_session(|session| {
        let template = [
            Attribute::Token(true),
            Attribute::Label("other".into()),
            Attribute::ValueLen(32.into()),
        ];
        session
            .generate_key(&Mechanism::AesKeyGen, &template)
            .unwrap();
    });
    let discarded = birth.discard();
    assert_eq!(discarded.len(), 4, "{discarded:?}");
    // What SoftHSM leaves of a key whose making was cut off: no name, and it may both wrap and
    // decrypt.
    birth.make_nameless_key();
    assert!(matches!(
        birth.evidence().keys,
        KeySet::Incomplete { missing, in_use: false } if missing.len() == 8
    ));
    assert_eq!(birth.discard(), ["half-made object"]);
    // And of one that was cut off before that: a file that tells nothing. SoftHSM says
    // CKR_FUNCTION_FAILED of destroying it, having done so.
    let nothing = birth.token_file().with_file_name("cut-off.object");
    fs::write(&nothing, 1_u64.to_be_bytes()).unwrap();
    let evidence = birth.evidence();
    let seen = evidence
        .objects
        .iter()
        .find(|o| o.class == "no class")
        .unwrap();
    assert_eq!(
        (seen.name.as_str(), seen.attributes.len()),
        ("half-made object", 0)
    );
    assert!(matches!(evidence.keys, KeySet::Incomplete { .. }));
    assert_eq!(birth.discard(), ["half-made object"]);
    let evidence = birth.evidence();
    assert_eq!(evidence.keys, KeySet::None);
    assert_eq!(evidence.objects.len(), 1);
    assert_eq!(evidence.objects[0].name, "not of the appliance");
}

#[tokio::test]
#[allow(
    clippy::too_many_lines,
    reason = "one set of keys, from its making to its end: making one takes seconds"
)]
async fn whole_keys_are_told_by_their_epoch_and_die_with_evidence() {
    let _turn = turn();
    let birth = Birth::ready();
    ceremony::make_keys(&birth.config(), OptionalKeys::ALL, &mut |_| ()).unwrap();
    let evidence = birth.evidence();
    assert_eq!(evidence.keys, KeySet::Unused);
    assert_described(&evidence);
    assert_eq!(birth.evidence(), evidence, "the same token tells the same");

    // A store is born: from now on nothing is discarded.
    let hsm = Hsm::start(birth.config()).unwrap();
    assert_eq!(Some(hsm.profile()), evidence.profile.as_ref());
    let spki = |name: &str| {
        let object = evidence.objects.iter().find(|o| o.name == name).unwrap();
        object.spki.clone().unwrap()
    };
    assert_eq!(
        hsm.signing_public_key(),
        spki("public half of the audit signing key")
    );
    assert_eq!(
        hsm.wrapping_public_key(),
        spki("public half of the BYOK wrapping key")
    );
    // Session objects of a running product are nameless too, and nobody's to list or discard.
    hsm.generate_key(KeyUsage::Aead, MasterKind::Hsm)
        .await
        .unwrap();
    assert_eq!(birth.evidence().objects, evidence.objects);
    assert_eq!(birth.evidence().keys, KeySet::Unused);
    for register in [Register::AuditEnd, Register::CeremonyTranscript] {
        hsm.write_register(register, b"one".to_vec()).await.unwrap();
    }
    assert_eq!(birth.evidence().keys, KeySet::Unused, "the epoch decides");
    hsm.write_epoch(b"a store".to_vec()).await.unwrap();
    let objects = birth.evidence().objects;
    let told: Vec<_> = objects.iter().map(|o| o.name.as_str()).collect();
    assert!(
        told.ends_with(&["end of the audit log", "last transcript", "epoch object"]),
        "{told:?}"
    );
    let before = objects.len();
    drop(hsm);
    assert_eq!(birth.evidence().keys, KeySet::InUse);
    let refused = ceremony::discard_unused_keys(&birth.config());
    assert!(
        matches!(refused, Err(HsmError::KeysInUse(_))),
        "{refused:?}"
    );
    assert_eq!(birth.evidence().objects.len(), before);

    // A key is lost, or spoilt, under a store.
    birth.destroy_by_hand(ObjectClass::PRIVATE_KEY, "strongroom-wrapping");
    assert_eq!(
        birth.evidence().keys,
        KeySet::Incomplete {
            missing: names(&["BYOK wrapping key"]),
            in_use: true
        }
    );
    birth.with_session(|session| {
        let template = [
            Attribute::Class(ObjectClass::DATA),
            Attribute::Token(true),
            Attribute::Label("other".into()),
            Attribute::Private(false),
            Attribute::Value(vec![1]),
        ];
        session.create_object(&template).unwrap();
    });

    // A wrong PIN destroys nothing.
    let wrong = pin("a wrong PIN");
    assert_pin(
        &ceremony::destroy(&birth.config(), &wrong),
        "SO PIN: CKR_PIN_INCORRECT",
    );
    let wrong_user = HsmConfig {
        pin: PinSource::Given(wrong),
        ..birth.config()
    };
    assert_pin(
        &ceremony::destroy(&wrong_user, &birth.so_pin),
        "user PIN: CKR_PIN_INCORRECT",
    );
    assert_eq!(birth.evidence().objects.len(), before, "one less, one more");

    let listed: Vec<_> = birth
        .evidence()
        .objects
        .into_iter()
        .map(|o| (o.name, o.class, o.label))
        .collect();
    let destroyed = ceremony::destroy(&birth.config(), &birth.so_pin).unwrap();
    let gone: Vec<_> = destroyed
        .objects
        .iter()
        .map(|o| (o.name.clone(), o.class.clone(), o.label.clone()))
        .collect();
    assert_eq!(gone, listed);
    assert!(gone.contains(&(
        "master key".to_owned(),
        "CKO_PRIVATE_KEY".to_owned(),
        "strongroom-master".to_owned()
    )));
    assert!(destroyed.as_user);
    assert_eq!(destroyed.before, evidence.token);
    assert_eq!(birth.state().unwrap().token, destroyed.after);
    assert_eq!(birth.condition(), TokenCondition::NoUserPin);

    // Cut off after C_InitToken, it is done once more.
    let again = ceremony::destroy(&birth.config(), &birth.so_pin).unwrap();
    assert!(again.objects.is_empty() && !again.as_user);
    // And the token is empty for whoever sets a PIN.
    birth.set_user_pin().unwrap();
    let evidence = birth.evidence();
    assert_eq!((evidence.keys, evidence.objects.len()), (KeySet::None, 0));
}

#[test]
fn keys_that_nothing_depends_on_are_discarded_whole() {
    let _turn = turn();
    let birth = Birth::ready();
    // All keys are there, the epoch object is not.
    birth.make_keys_and_lose_power_at("epoch object");
    assert_eq!(
        birth.evidence().keys,
        KeySet::Incomplete {
            missing: names(&["epoch object"]),
            in_use: false
        }
    );
    // An epoch object as a store's creation finds it, beside a key that is not as it must be.
    birth.with_session(|session| {
        let template = [
            Attribute::Class(ObjectClass::DATA),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Label("strongroom-epoch".into()),
            Attribute::Value(1_u64.to_be_bytes().to_vec()),
        ];
        session.create_object(&template).unwrap();
    });
    assert_eq!(birth.evidence().keys, KeySet::Unused);
    birth.with_session(|session| {
        let template = [
            Attribute::Class(ObjectClass::DATA),
            Attribute::Token(true),
            Attribute::Value(vec![1]),
        ];
        session.create_object(&template).unwrap();
    });
    assert!(matches!(
        birth.evidence().keys,
        KeySet::Unacceptable { problem, in_use: false } if problem.contains("cut off")
    ));
    birth.with_session(|session| {
        let template = [
            Attribute::Token(true),
            Attribute::Label("strongroom-store".into()),
            Attribute::Wrap(false),
            Attribute::ValueLen(32.into()),
        ];
        session
            .generate_key(&Mechanism::AesKeyGen, &template)
            .unwrap();
    });
    let KeySet::Unacceptable { problem, in_use } = birth.evidence().keys else {
        panic!("two store keys were accepted");
    };
    assert!(!in_use && problem.contains("store key"), "{problem}");
    birth.with_session(|session| {
        let template = [
            Attribute::Class(ObjectClass::DATA),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Label("strongroom-audit-end".into()),
            Attribute::Value(1_u64.to_be_bytes().to_vec()),
        ];
        session.create_object(&template).unwrap();
    });
    let discarded = birth.discard();
    assert_eq!(discarded.len(), 11, "{discarded:?}");
    assert_eq!(
        discarded[10], "epoch object",
        "while keys are left, it says that nothing depends on them"
    );
    assert_eq!(birth.evidence().objects, []);

    // An epoch object that can't be read may be a store's.
    birth.with_session(|session| {
        let template = [
            Attribute::Class(ObjectClass::DATA),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Label("strongroom-epoch".into()),
            Attribute::Value(vec![0; 7]),
        ];
        session.create_object(&template).unwrap();
    });
    let refused = ceremony::discard_unused_keys(&birth.config());
    assert!(matches!(&refused, Err(HsmError::Register { name, .. }) if name == "epoch object"));
    assert_eq!(birth.count_objects(), 1);

    // What the token keeps in spite of all is named, and the rest goes.
    birth.destroy_by_hand(ObjectClass::DATA, "strongroom-epoch");
    birth.with_session(|session| {
        for (label, destroyable) in [("strongroom-keep", false), ("strongroom-go", true)] {
            let template = [
                Attribute::Class(ObjectClass::DATA),
                Attribute::Token(true),
                Attribute::Label(label.into()),
                Attribute::Destroyable(destroyable),
            ];
            session.create_object(&template).unwrap();
        }
    });
    let stuck = ceremony::discard_unused_keys(&birth.config());
    assert!(
        matches!(&stuck, Err(HsmError::NotDestroyed(left)) if left.len() == 1 && left[0].contains("strongroom-keep")),
        "{stuck:?}"
    );
    assert_eq!(birth.count_objects(), 1);
}

impl Birth {
    /// Sets `CKF_SO_PIN_LOCKED` in the token's file, as it is between the first and the last write
    /// of `C_InitToken`.
    fn lock_so_pin(&self) {
        let flags = |flags: u64| flags.to_be_bytes();
        let file = self.token_file();
        let mut bytes = fs::read(&file).unwrap();
        let at = bytes
            .windows(8)
            .position(|window| window == flags(0x425))
            .unwrap();
        bytes[at..at + 8].copy_from_slice(&flags(0x0040_0425));
        fs::write(&file, bytes).unwrap();
    }

    /// A key as `SoftHSM` leaves it when its making is cut off: without a name, and calling itself
    /// a session object.
    fn make_nameless_key(&self) {
        let before = self.object_files();
        self.with_session(|session| {
            let template = [Attribute::Token(true), Attribute::ValueLen(32.into())];
            session
                .generate_key(&Mechanism::AesKeyGen, &template)
                .unwrap();
        });
        let mut files = self.object_files();
        files.retain(|file| !before.contains(file));
        assert_eq!(files.len(), 1);
        // CKA_TOKEN (1), a boolean (1), true.
        let on_token = [&1_u64.to_be_bytes()[..], &1_u64.to_be_bytes(), &[0xff]].concat();
        let mut bytes = fs::read(&files[0]).unwrap();
        let at = bytes
            .windows(on_token.len())
            .position(|window| window == on_token)
            .unwrap();
        bytes[at + 16] = 0;
        fs::write(&files[0], bytes).unwrap();
    }

    fn object_files(&self) -> Vec<PathBuf> {
        fs::read_dir(self.token_file().parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "object")
            })
            .collect()
    }

    /// Where SoftHSM keeps what it knows of the token itself.
    fn token_file(&self) -> PathBuf {
        let configuration = PathBuf::from(std::env::var_os("SOFTHSM2_CONF").unwrap());
        fs::read_dir(configuration.with_extension("tokens"))
            .unwrap()
            .map(|folder| folder.unwrap().path().join("token.object"))
            .find(|file| {
                let label = self.label.as_bytes();
                fs::read(file).is_ok_and(|bytes| bytes.windows(label.len()).any(|w| w == label))
            })
            .unwrap()
    }

    fn count_objects(&self) -> usize {
        let mut count = 0;
        self.with_session(|session| {
            count = session
                .find_objects(&[Attribute::Token(true)])
                .unwrap()
                .len();
        });
        count
    }
}

fn assert_described(evidence: &Evidence) {
    let seen: Vec<_> = evidence
        .objects
        .iter()
        .map(|o| {
            (
                o.name.as_str(),
                o.label.as_str(),
                o.class.as_str(),
                o.spki.is_some(),
            )
        })
        .collect();
    // Of an RSA pair both halves tell the public numbers.
    let pair = |name, public, label| {
        let is_rsa = label != "strongroom-audit";
        [
            (name, label, "CKO_PRIVATE_KEY", is_rsa),
            (public, label, "CKO_PUBLIC_KEY", true),
        ]
    };
    let mut expected = pair(
        "master key",
        "public half of the master key",
        "strongroom-master",
    )
    .to_vec();
    expected.push(("store key", "strongroom-store", "CKO_SECRET_KEY", false));
    expected.extend(pair(
        "audit signing key",
        "public half of the audit signing key",
        "strongroom-audit",
    ));
    expected.extend(pair(
        "BYOK wrapping key",
        "public half of the BYOK wrapping key",
        "strongroom-wrapping",
    ));
    expected.extend(pair(
        "transfer key",
        "public half of the transfer key",
        "strongroom-transfer",
    ));
    expected.extend(pair(
        "memory master key",
        "public half of the memory master key",
        "strongroom-memory-master",
    ));
    expected.push(("epoch object", "strongroom-epoch", "CKO_DATA", false));
    assert_eq!(seen, expected);
    assert_attributes(evidence);
}

fn assert_attributes(evidence: &Evidence) {
    let told = |name: &str, attribute: &str| {
        let object = evidence.objects.iter().find(|o| o.name == name).unwrap();
        let found = object.attributes.iter().find(|(name, _)| name == attribute);
        found.map(|(_, value)| value.clone())
    };
    for (name, attribute, value) in [
        ("master key", "CKA_EXTRACTABLE", "false"),
        ("master key", "CKA_SENSITIVE", "true"),
        ("master key", "CKA_DECRYPT", "false"),
        ("master key", "CKA_ALLOWED_MECHANISMS", "CKM_RSA_PKCS_OAEP"),
        (
            "master key",
            "CKA_KEY_GEN_MECHANISM",
            "CKM_RSA_PKCS_KEY_PAIR_GEN",
        ),
        (
            "master key",
            "CKA_UNWRAP_TEMPLATE",
            "CKA_COPYABLE=false, CKA_DERIVE=false, CKA_EXTRACTABLE=false, CKA_MODIFIABLE=false, \
             CKA_SENSITIVE=true, CKA_UNWRAP=false, CKA_WRAP=false",
        ),
        ("transfer key", "CKA_DECRYPT", "false"),
        (
            "transfer key",
            "CKA_UNWRAP_TEMPLATE",
            "CKA_COPYABLE=false, CKA_DECRYPT=false, CKA_DERIVE=false, CKA_ENCRYPT=false, CKA_EXTRACTABLE=true, CKA_MODIFIABLE=false, \
             CKA_PRIVATE=true, CKA_SENSITIVE=true, CKA_SIGN=false, CKA_TOKEN=false, CKA_UNWRAP=false, CKA_VERIFY=false, CKA_WRAP=false, \
             CKA_WRAP_WITH_TRUSTED=true",
        ),
        ("public half of the master key", "CKA_MODULUS_BITS", "4096"),
        ("public half of the master key", "CKA_KEY_TYPE", "CKK_RSA"),
        (
            "public half of the audit signing key",
            "CKA_EC_PARAMS",
            "P-256",
        ),
        ("store key", "CKA_ID", "strongroom-store"),
        ("store key", "CKA_NEVER_EXTRACTABLE", "true"),
    ] {
        assert_eq!(
            told(name, attribute).as_deref(),
            Some(value),
            "{name} {attribute}"
        );
    }
    for object in &evidence.objects {
        assert!(object.attributes.is_sorted(), "{:?}", object.attributes);
        for (name, _) in &object.attributes {
            for secret in ["CKA_VALUE", "CKA_PRIVATE_EXPONENT", "CKA_PRIME_1"] {
                assert_ne!(name, secret);
            }
        }
    }
}

fn assert_pin<T: std::fmt::Debug>(result: &Result<T, HsmError>, expected: &str) {
    assert!(
        matches!(result, Err(HsmError::Pin(code)) if code == expected),
        "{result:?}"
    );
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn pin(text: &str) -> SecretPin {
    SecretPin::new(text.as_bytes().to_vec().into())
}

fn random_hex() -> String {
    let mut bytes = [0_u8; 8];
    getrandom::fill(&mut bytes).unwrap();
    u64::from_ne_bytes(bytes).to_string()
}
