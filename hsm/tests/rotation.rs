//! Another master key, on a real SoftHSM2: made and marked by another process while this one uses
//! the token, and what a start makes of every state that a power cut may leave.
#![allow(
    clippy::await_holding_lock,
    reason = "the turn lasts for the whole test"
)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "../../tests/support/token_files.rs"]
mod token_files;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::turn;
use cryptoki::context::Pkcs11;
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use cryptoki::session::{Session, UserType};
use strongroom_hsm::ceremony::{self, KeySet, TokenCondition};
use strongroom_hsm::{
    GcmItem, HashAlgorithm, Hsm, HsmConfig, HsmError, HsmState, KeyShape, KeyUsage, MacItem,
    MasterGeneration, MasterKind, OptionalKeys, PinSource, Provisioned, SecretPin, TokenSelector,
    TransferKey, WrappedKey,
};
use tempfile::TempDir;
use token_files::{ObjectFile, token_with, tokens_of};
use zeroize::Zeroizing;

/// A token with both PINs known.
struct Rig {
    module: PathBuf,
    label: String,
    so_pin: SecretPin,
    folder: TempDir,
}

impl Rig {
    fn new() -> Self {
        drop(strongroom_softhsm::Throwaway::in_process().unwrap());
        let rig = Self {
            module: strongroom_softhsm::module_path().unwrap(),
            label: format!("rotation-{}", random_text()),
            so_pin: pin(&random_text()),
            folder: tempfile::tempdir().unwrap(),
        };
        let user_pin = pin(&random_text());
        fs::write(rig.pin_file(), user_pin.expose()).unwrap();
        fs::set_permissions(rig.pin_file(), fs::Permissions::from_mode(0o400)).unwrap();
        let slots = ceremony::slots(&rig.module).unwrap();
        let blank = slots
            .iter()
            .find(|slot| slot.condition() == TokenCondition::Blank)
            .unwrap();
        ceremony::initialize_token(&rig.module, blank.slot, &rig.label, &rig.so_pin).unwrap();
        let selector = rig.config().token;
        ceremony::set_user_pin(&rig.module, &selector, &rig.so_pin, &user_pin).unwrap();
        rig
    }

    fn provision(&self) {
        let made = ceremony::make_keys(&self.config(), OptionalKeys::ALL, &mut |_| ()).unwrap();
        let expected = Provisioned {
            transfer: TransferKey::Made,
        };
        assert_eq!(made, expected);
    }

    fn pin_file(&self) -> PathBuf {
        self.folder.path().join("pin")
    }

    fn config(&self) -> HsmConfig {
        config(&self.module, &self.label, self.pin_file())
    }

    fn start(&self) -> Hsm {
        Hsm::start(self.config()).unwrap()
    }

    /// Does it in another process, as a ceremony does while the server runs.
    fn elsewhere(&self, act: &str) {
        let so_pin = self.folder.path().join("so-pin");
        if !so_pin.exists() {
            fs::write(&so_pin, self.so_pin.expose()).unwrap();
        }
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env("CHILD_ACT", act)
            .env("CHILD_LABEL", &self.label)
            .env("CHILD_PIN_FILE", self.pin_file())
            .env("CHILD_SO_PIN_FILE", so_pin)
            .status()
            .unwrap();
        assert!(status.success(), "{act}");
    }

    fn with_session(&self, user: UserType, body: impl FnOnce(&Session)) {
        let pin = match user {
            UserType::So => self.so_pin.expose().to_vec(),
            _ => fs::read(self.pin_file()).unwrap(),
        };
        common::with_session(&self.module, &self.label, user, &pin, body);
    }

    fn destroy_by_hand(&self, class: ObjectClass, label: &str) {
        self.with_session(UserType::User, |session| {
            let template = [Attribute::Class(class), Attribute::Label(label.into())];
            let found = session.find_objects(&template).unwrap();
            assert_eq!(found.len(), 1, "{label}");
            session.destroy_object(found[0]).unwrap();
        });
    }
}

fn config(module: &std::path::Path, label: &str, pin_file: PathBuf) -> HsmConfig {
    HsmConfig {
        module: module.to_owned(),
        token: TokenSelector::Label(label.to_owned()),
        pin: PinSource::File(pin_file),
        sessions: 2,
        queue: 16,
        call_deadline: Duration::from_secs(30),
        key_generation_deadline: Duration::from_mins(5),
        session_keys: 16,
        shape: KeyShape::Fixed,
    }
}

/// Not a test: the other process.
#[test]
#[ignore = "run by other tests of this file"]
fn child() {
    let Ok(act) = std::env::var("CHILD_ACT") else {
        return;
    };
    let module = strongroom_softhsm::module_path().unwrap();
    let label = std::env::var("CHILD_LABEL").unwrap();
    let config = config(
        &module,
        &label,
        std::env::var_os("CHILD_PIN_FILE").unwrap().into(),
    );
    let so_pin = fs::read(std::env::var_os("CHILD_SO_PIN_FILE").unwrap()).unwrap();
    let so_pin = SecretPin::new(so_pin.into());
    match act.as_str() {
        "make" => {
            ceremony::make_successor(&config, &mut |_| ()).unwrap();
        }
        "trust" => {
            let successor = ceremony::rotation_state(&config)
                .unwrap()
                .successor
                .unwrap();
            ceremony::trust_successor(&config, &so_pin, &successor).unwrap();
        }
        "retire" => {
            let gone = ceremony::retire_predecessors(&config).unwrap();
            assert!(!gone.is_empty());
        }
        other => panic!("{other}"),
    }
}

/// A key of each kind, and what each made of something.
struct Keys {
    aead: Arc<WrappedKey>,
    mac: Arc<WrappedKey>,
    memory: Arc<WrappedKey>,
    ciphertext: Vec<u8>,
    tag: Vec<u8>,
    bytes: Zeroizing<Vec<u8>>,
}

impl Keys {
    async fn new(hsm: &Hsm) -> Self {
        let make = async |usage, master| Arc::new(hsm.generate_key(usage, master).await.unwrap());
        let aead = make(KeyUsage::Aead, MasterKind::Hsm).await;
        let mac = make(KeyUsage::Mac, MasterKind::Hsm).await;
        let memory = make(KeyUsage::Aead, MasterKind::Memory).await;
        assert!(aead.transfer.is_some() && mac.transfer.is_some() && memory.transfer.is_none());
        let sealed = hsm.encrypt(vec![item(&aead, b"a secret")]).await.unwrap();
        Self {
            ciphertext: sealed.into_iter().next().unwrap().unwrap(),
            tag: tag(hsm, &mac).await.to_vec(),
            bytes: hsm.unwrap_to_memory(Arc::clone(&memory)).await.unwrap(),
            aead,
            mac,
            memory,
        }
    }

    /// The old ciphertext opens, the HMAC is the same, so is the key in memory.
    async fn check(&self, hsm: &Hsm) {
        let opened = hsm
            .decrypt(vec![item(&self.aead, &self.ciphertext)])
            .await
            .unwrap();
        assert_eq!(**opened[0].as_ref().unwrap(), *b"a secret");
        assert_eq!(*tag(hsm, &self.mac).await, self.tag);
        let bytes = hsm.unwrap_to_memory(Arc::clone(&self.memory)).await;
        assert_eq!(*bytes.unwrap(), *self.bytes);
    }

    /// The same keys, moved; each must be another record of the same key.
    async fn moved(&self, hsm: &Hsm) -> Self {
        let rewrap = async |key: &Arc<WrappedKey>| {
            let moved = hsm.rewrap(Arc::clone(key)).await.unwrap().unwrap();
            assert_eq!((moved.id, moved.usage), (key.id, key.usage));
            assert!(moved.blob != key.blob && moved.master_fingerprint != key.master_fingerprint);
            assert_eq!(moved.transfer.is_some(), key.transfer.is_some());
            if let (Some(new), Some(old)) = (&moved.transfer, &key.transfer) {
                assert!(new.blob != old.blob && new.fingerprint != old.fingerprint);
            }
            // Once is enough.
            let moved = Arc::new(moved);
            assert!(hsm.rewrap(Arc::clone(&moved)).await.unwrap().is_none());
            moved
        };
        Self {
            aead: rewrap(&self.aead).await,
            mac: rewrap(&self.mac).await,
            memory: rewrap(&self.memory).await,
            ciphertext: self.ciphertext.clone(),
            tag: self.tag.clone(),
            bytes: self.bytes.clone(),
        }
    }
}

#[tokio::test]
#[allow(
    clippy::too_many_lines,
    reason = "one token's whole rotation: its keys take seconds"
)]
async fn keys_move_to_another_master_key_and_the_old_one_dies() {
    let _turn = turn();
    let rig = Rig::new();
    rig.provision();
    ceremony::try_transfer(
        &rig.module,
        &rig.config().token,
        &rig.so_pin,
        &SecretPin::new(fs::read(rig.pin_file()).unwrap().into()),
    )
    .unwrap();
    let evidence = ceremony::evidence(&rig.config()).unwrap();
    assert_eq!(
        evidence
            .objects
            .iter()
            .filter(|o| o.label.ends_with("-trusted"))
            .count(),
        0,
        "the try left a mark"
    );

    let hsm = rig.start();
    let old = Keys::new(&hsm).await;
    assert!(hsm.rewrap(Arc::clone(&old.aead)).await.unwrap().is_none());

    // The successor is made while the token is in use, and is not in force before the security
    // officer says so.
    rig.elsewhere("make");
    let found = hsm.refresh_keys().await.unwrap();
    assert_eq!(found, hsm.generations());
    assert_eq!(
        found
            .iter()
            .map(|g| (g.number, g.in_force, g.trusted))
            .collect::<Vec<_>>(),
        [(1, true, false), (2, false, false)]
    );
    assert!(hsm.rewrap(Arc::clone(&old.aead)).await.unwrap().is_none());
    let between = Keys::new(&hsm).await;
    assert_eq!(between.aead.master_fingerprint, found[0].master[..16]);

    rig.elsewhere("trust");
    // Nobody has told this process yet: it goes on as before, also the session that looks for the
    // keys only now.
    let unaware = Keys::new(&hsm).await;
    for key in [&unaware.aead, &unaware.mac] {
        assert_eq!(key.master_fingerprint, found[0].master[..16]);
    }
    assert_eq!(
        unaware.memory.master_fingerprint,
        found[0].memory_master.unwrap()[..16]
    );
    let found = hsm.refresh_keys().await.unwrap();
    assert_eq!(
        found
            .iter()
            .map(|g| (g.number, g.in_force, g.trusted))
            .collect::<Vec<_>>(),
        [(1, false, false), (2, true, true)]
    );
    let new = Keys::new(&hsm).await;
    assert_eq!(new.aead.master_fingerprint, found[1].master[..16]);
    assert_eq!(
        new.aead.transfer.as_ref().unwrap().fingerprint,
        found[1].transfer.unwrap()[..16]
    );
    assert_eq!(
        new.memory.master_fingerprint,
        found[1].memory_master.unwrap()[..16]
    );
    let mut moved = Vec::new();
    for keys in [&old, &between, &unaware] {
        keys.check(&hsm).await;
        moved.push(keys.moved(&hsm).await);
        // Both records are good as long as both master keys are there.
        keys.check(&hsm).await;
        moved.last().unwrap().check(&hsm).await;
    }
    // A key that was made without a transfer key, and one whose two blobs are not of one key.
    let bare = WrappedKey {
        transfer: None,
        ..WrappedKey::clone(&old.aead)
    };
    let refused = hsm.rewrap(Arc::new(bare)).await.unwrap_err();
    assert!(matches!(refused, HsmError::NotMovable(_)), "{refused}");
    let mixed = WrappedKey {
        transfer: between.aead.transfer.clone(),
        ..WrappedKey::clone(&old.aead)
    };
    let refused = hsm.rewrap(Arc::new(mixed)).await.unwrap_err();
    assert!(matches!(refused, HsmError::NotMovable(_)), "{refused}");
    drop(hsm);

    // A start in the middle knows both, without any session object from before.
    let hsm = rig.start();
    for keys in [&old, &new, &moved[0], &moved[1]] {
        keys.check(&hsm).await;
    }
    drop(hsm);
    let evidence = ceremony::evidence(&rig.config()).unwrap();
    assert_eq!(evidence.keys, KeySet::Unused);
    for name in [
        "master key",
        "master key of generation 2",
        "public half of the transfer key of generation 2",
        "trusted public half of the master key of generation 2",
        "trusted public half of the transfer key of generation 2",
    ] {
        assert!(evidence.objects.iter().any(|o| o.name == name), "{name}");
    }
    let again = ceremony::make_successor(&rig.config(), &mut |_| ());
    assert!(matches!(again, Err(HsmError::KeyExists(_))), "{again:?}");

    // The old ones die; a destruction that was cut off does not keep the appliance from starting.
    rig.destroy_by_hand(ObjectClass::PRIVATE_KEY, "strongroom-transfer");
    rig.start();
    rig.destroy_by_hand(ObjectClass::PRIVATE_KEY, "strongroom-master");
    let hsm = rig.start();
    assert_eq!(hsm.generations().len(), 1);
    rig.elsewhere("retire");
    moved[0].check(&hsm).await;
    drop(hsm);
    let left = ceremony::evidence(&rig.config()).unwrap();
    assert_eq!(left.keys, KeySet::Unused);
    for object in &left.objects {
        assert!(
            !object.label.ends_with("-trusted")
                && object.label != "strongroom-master"
                && object.label != "strongroom-transfer",
            "{}",
            object.label
        );
    }
    assert!(
        ceremony::retire_predecessors(&rig.config())
            .unwrap()
            .is_empty()
    );
    let hsm = rig.start();
    assert_eq!(
        hsm.generations()
            .iter()
            .map(|g| (g.number, g.in_force, g.trusted))
            .collect::<Vec<_>>(),
        [(2, true, false)]
    );
    // Before its session object is there: that is the same key, whatever wraps it.
    let gone = hsm
        .decrypt(vec![item(&old.aead, &old.ciphertext)])
        .await
        .unwrap();
    assert!(
        matches!(&gone[0], Err(HsmError::OtherMaster { .. })),
        "a store from before the rotation"
    );
    for keys in &moved {
        keys.check(&hsm).await;
    }
    new.check(&hsm).await;
    drop(hsm);

    // A second rotation that is given up, at each point where it can be.
    rig.elsewhere("make");
    for label in ["strongroom-transfer-3", "strongroom-master-3"] {
        rig.destroy_by_hand(ObjectClass::PRIVATE_KEY, label);
        let hsm = rig.start();
        assert!(hsm.generations()[0].in_force && hsm.generations()[0].number == 2);
        moved[0].check(&hsm).await;
    }
    assert_eq!(
        ceremony::rotation_state(&rig.config()).unwrap().half_made,
        [3]
    );
    assert_eq!(ceremony::discard_successor(&rig.config()).unwrap().len(), 4);
    let state = ceremony::rotation_state(&rig.config()).unwrap();
    assert!(
        state.half_made.is_empty() && state.successor.is_none() && state.generations.len() == 1
    );
}

/// `SoftHSM` takes its own next change for all that has changed: what another process has made
/// since it last looked stays unseen for good. And other modules show nothing of other processes
/// before they are started again (nShield's, as it is delivered).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_module_has_missed_it_shows_when_started_anew_and_no_request_is_lost() {
    let _turn = turn();
    let rig = Rig::new();
    rig.provision();
    let hsm = rig.start();
    let old = Arc::new(Keys::new(&hsm).await);
    // Beside those of `hsm`, in the same module.
    let session = common::open_session(&Pkcs11::new(&rig.module).unwrap(), &rig.label);
    rig.elsewhere("make");
    rig.elsewhere("trust");
    let change = [
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::Private(false),
    ];
    session.create_object(&change).unwrap();
    drop(session);
    let in_force = |found: &[MasterGeneration]| {
        let of = |one: &MasterGeneration| (one.number, one.in_force);
        found.iter().map(of).collect::<Vec<_>>()
    };
    let found = hsm.refresh_keys().await.unwrap();
    assert_ne!(in_force(&found), [(1, false), (2, true)], "nothing missed");

    let (stop, requests) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (hsm, old) = (hsm.clone(), Arc::clone(&old));
            let (stop, requests) = (Arc::clone(&stop), Arc::clone(&requests));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    old.check(&hsm).await;
                    requests.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let served = async |at_least| {
        let before = requests.load(Ordering::Relaxed);
        let until = Instant::now() + Duration::from_secs(30);
        while requests.load(Ordering::Relaxed) < before + at_least {
            assert!(Instant::now() < until, "nothing is served any more");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    served(10).await;
    hsm.restart_module().await;
    let found = hsm.refresh_keys().await.unwrap();
    assert_eq!(in_force(&found), [(1, false), (2, true)]);
    served(10).await;
    // Several at a time.
    tokio::join!(
        hsm.restart_module(),
        hsm.restart_module(),
        hsm.restart_module()
    );
    served(10).await;
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    old.moved(&hsm).await.check(&hsm).await;
}

/// New KEKs would be wrapped by a master key that is about to be destroyed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_that_misses_the_master_key_in_force_puts_no_older_one_in_force() {
    let _turn = turn();
    let rig = Rig::new();
    rig.provision();
    let configuration = std::env::var_os(strongroom_softhsm::CONF_VARIABLE).unwrap();
    let token = token_with(&tokens_of(configuration.as_ref()), &rig.label);
    let before = ObjectFile::of_token(&token);
    rig.elsewhere("make");
    rig.elsewhere("trust");
    let mut made = ObjectFile::of_token(&token);
    made.retain(|object| !before.iter().any(|other| other.path() == object.path()));
    let hsm = rig.start();
    let in_force = || {
        let known = hsm.generations().into_iter().find(|one| one.in_force);
        known.unwrap().number
    };
    assert_eq!(in_force(), 2);

    made.iter().for_each(ObjectFile::move_away);
    hsm.restart_module().await;
    let until = Instant::now() + Duration::from_secs(30);
    while !matches!(hsm.state(), HsmState::Reconnecting { reason } if reason.contains("generation 2"))
    {
        assert!(Instant::now() < until, "{:?}", hsm.state());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    made.iter().for_each(ObjectFile::move_back);
    while hsm.state() != HsmState::Ready {
        assert!(Instant::now() < until, "{:?}", hsm.state());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(in_force(), 2);
    let key = hsm.generate_key(KeyUsage::Aead, MasterKind::Hsm).await;
    let newest = hsm.generations().pop().unwrap();
    assert_eq!(key.unwrap().master_fingerprint, newest.master[..16]);
}

#[test]
fn a_trusted_key_that_no_rotation_made_stops_the_start() {
    let _turn = turn();
    let rig = Rig::new();
    rig.provision();
    rig.start();
    // Somebody has the security officer's PIN, and a key of their own.
    let import = |label: &'static str| {
        rig.with_session(UserType::So, |session| {
            session
                .create_object(&[
                    Attribute::Class(ObjectClass::PUBLIC_KEY),
                    Attribute::KeyType(KeyType::RSA),
                    Attribute::Token(true),
                    Attribute::Private(false),
                    Attribute::Label(label.into()),
                    Attribute::Id(label.into()),
                    Attribute::Wrap(true),
                    Attribute::Encrypt(false),
                    Attribute::Verify(false),
                    Attribute::VerifyRecover(false),
                    Attribute::Derive(false),
                    Attribute::Modulus(vec![0xc1; 512]),
                    Attribute::PublicExponent(vec![1, 0, 1]),
                    Attribute::Trusted(true),
                    Attribute::Copyable(false),
                    Attribute::Modifiable(false),
                ])
                .unwrap();
        });
    };
    for (label, attribute) in [
        ("innocent", "CKA_TRUSTED"),
        ("strongroom-master-9-trusted", "CKA_TRUSTED"),
        ("strongroom-master-trusted", "CKA_MODULUS"),
    ] {
        import(label);
        match Hsm::start(rig.config()) {
            Err(HsmError::KeyPolicy {
                attribute: found, ..
            }) => assert_eq!(found, attribute, "{label}"),
            Err(error) => panic!("{label}: {error}"),
            Ok(_) => panic!("{label}: started"),
        }
        rig.destroy_by_hand(ObjectClass::PUBLIC_KEY, label);
        rig.start();
    }
}

fn item(key: &Arc<WrappedKey>, data: &[u8]) -> GcmItem {
    GcmItem {
        key: Arc::clone(key),
        iv: [7; 12],
        aad: b"aad".to_vec(),
        data: Zeroizing::new(data.to_vec()),
    }
}

async fn tag(hsm: &Hsm, key: &Arc<WrappedKey>) -> Zeroizing<Vec<u8>> {
    let item = MacItem {
        key: Arc::clone(key),
        hash: HashAlgorithm::Sha256,
        data: Zeroizing::new(b"a message".to_vec()),
    };
    let tags = hsm.hmac(vec![item]).await.unwrap();
    tags.into_iter().next().unwrap().unwrap()
}

fn pin(text: &str) -> SecretPin {
    SecretPin::new(text.as_bytes().to_vec().into())
}

fn random_text() -> String {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    u64::from_le_bytes(bytes).to_string()
}
