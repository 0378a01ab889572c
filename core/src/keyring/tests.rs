//! Tests of the keyring on a real token.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{HashMap, HashSet};

use tokio::sync::MutexGuard;
use zeroize::Zeroizing;

use super::*;
use crate::audit::AuditOptions;
use crate::store::tests::token;

pub(super) struct Site {
    folder: tempfile::TempDir,
    pub(super) hsm: Hsm,
    options: KeyringOptions,
    _turn: MutexGuard<'static, ()>,
}

impl Site {
    pub(super) async fn new(options: KeyringOptions) -> (Self, Keyring) {
        let (hsm, turn) = token().await;
        let folder = tempfile::tempdir().unwrap();
        let site = Self {
            folder,
            hsm,
            options,
            _turn: turn,
        };
        let store = Store::create(&site.path(), site.hsm.clone()).await.unwrap();
        let keyring = site.keyring(store).await;
        (site, keyring)
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("store")
    }

    /// The store, without a keyring that uses it.
    pub(super) async fn store(&self) -> Store {
        Store::open(&self.path(), self.hsm.clone()).await.unwrap()
    }

    async fn keyring(&self, store: Store) -> Keyring {
        let keyring = Keyring::open(Arc::new(store), self.hsm.clone(), self.options.clone())
            .await
            .unwrap();
        let options = AuditOptions {
            path: self.folder.path().join("audit.log"),
            checkpoint_lines: 1000,
            checkpoint_interval: Duration::from_mins(1),
        };
        // The token, which many tests share, knows of the log of the test before.
        let (audit, _) = Audit::accept(options, self.hsm.clone()).await.unwrap();
        keyring.record_in(Arc::new(audit));
        keyring
    }

    pub(super) async fn restart(&self, keyring: Keyring) -> Keyring {
        drop(keyring);
        self.keyring(self.store().await).await
    }
}

fn item(plaintext: &[u8], context: &[u8], key_version: Option<u32>) -> EncryptItem {
    EncryptItem {
        plaintext: Zeroizing::new(plaintext.to_vec()),
        associated_data: b"ad".to_vec(),
        context: context.to_vec(),
        key_version,
    }
}

/// The context, if the key takes one.
fn taken<'c>(keyring: &Keyring, name: &str, context: &'c [u8]) -> &'c [u8] {
    match keyring.read(named(name)) {
        Ok(key) if !key.derived => b"",
        _ => context,
    }
}

/// In the context, if the key is derived.
pub(super) async fn seal(
    keyring: &Keyring,
    name: &str,
    context: &[u8],
) -> Result<Ciphertext, KeyringError> {
    let context = taken(keyring, name, context);
    keyring
        .encrypt(named(name), vec![item(b"secret", context, None)])
        .await?
        .pop()
        .unwrap()
}

/// In the context, if the key is derived.
pub(super) async fn open(
    keyring: &Keyring,
    name: &str,
    ciphertext: &Ciphertext,
    context: &[u8],
) -> Result<Vec<u8>, KeyringError> {
    let context = taken(keyring, name, context);
    let items = vec![DecryptItem {
        ciphertext: ciphertext.clone(),
        associated_data: b"ad".to_vec(),
        context: context.to_vec(),
    }];
    keyring
        .decrypt(named(name), items)
        .await?
        .pop()
        .unwrap()
        .map(|plaintext| plaintext.to_vec())
}

/// The name of a key.
pub(super) fn named(name: &str) -> KeyName<&str> {
    KeyName::parse(name).expect("a name of a key")
}

pub(super) fn says<T>(outcome: Result<T, KeyringError>) -> String {
    outcome.err().expect("an error").to_string()
}

#[tokio::test]
async fn every_sort_of_key_survives_rotation_and_restart_and_refuses_altered_ciphertexts() {
    let (site, mut keyring) = Site::new(KeyringOptions::default()).await;
    let mut kept = Vec::new();
    for residency in [Residency::Hsm, Residency::Memory] {
        for (derived, convergent) in [(false, false), (true, false), (true, true)] {
            let name = format!("{residency:?}-{derived}-{convergent}");
            let options = CreateOptions {
                residency: Some(residency),
                derived,
                convergent,
                ..CreateOptions::default()
            };
            assert!(keyring.create(named(&name), options.clone()).await.unwrap());
            assert!(!keyring.create(named(&name), options).await.unwrap());
            let first = seal(&keyring, &name, b"ctx").await.unwrap();
            let again = seal(&keyring, &name, b"ctx").await.unwrap();
            assert_eq!(first == again, convergent, "{name}");
            for at in 0..first.bytes.len() {
                let mut bad = first.clone();
                bad.bytes[at] ^= 1;
                assert_eq!(
                    says(open(&keyring, &name, &bad, b"ctx").await),
                    KeyringError::Decrypt.to_string()
                );
            }
            let short = Ciphertext {
                version: 1,
                bytes: first.bytes[..11].to_vec(),
            };
            assert_eq!(
                says(open(&keyring, &name, &short, b"ctx").await),
                "the ciphertext is too short"
            );
            if derived {
                assert!(says(seal(&keyring, &name, b"").await).ends_with("it needs a context"));
                assert!(matches!(
                    open(&keyring, &name, &first, b"other").await,
                    Err(KeyringError::Decrypt)
                ));
            }
            assert_eq!(keyring.rotate(named(&name)).await.unwrap(), 2);
            let second = seal(&keyring, &name, b"ctx").await.unwrap();
            assert_eq!((first.version, second.version), (1, 2));
            kept.extend([(name.clone(), first), (name, second)]);
        }
    }
    keyring = site.restart(keyring).await;
    for (name, ciphertext) in kept {
        assert_eq!(
            open(&keyring, &name, &ciphertext, b"ctx").await.unwrap(),
            b"secret",
            "{name}"
        );
    }
    assert_eq!(keyring.list().len(), 6);
}

/// AES-GCM gives its authentication key away with two tags of one nonce: then one associated data's
/// ciphertext can be changed at will.
#[tokio::test]
async fn no_two_messages_of_a_convergent_key_have_one_nonce() {
    let (_site, keyring) = Site::new(KeyringOptions::default()).await;
    for residency in [Residency::Hsm, Residency::Memory] {
        let name = format!("{residency:?}");
        let options = CreateOptions {
            residency: Some(residency),
            derived: true,
            convergent: true,
            ..CreateOptions::default()
        };
        keyring.create(named(&name), options).await.unwrap();
        // The last plaintext is what the second message's nonce is made of.
        let encoded = [&5_u64.to_be_bytes()[..], b"row-1", b"value"].concat();
        let messages: [(&[u8], &[u8]); 6] = [
            (b"", b"value"),
            (b"row-1", b"value"),
            (b"row-2", b"value"),
            (b"row-", b"1value"),
            (b"row-1value", b""),
            (b"", &encoded),
        ];
        let items = || {
            let item = |(associated_data, plaintext): (&[u8], &[u8])| EncryptItem {
                plaintext: Zeroizing::new(plaintext.to_vec()),
                associated_data: associated_data.to_vec(),
                context: b"ctx".to_vec(),
                key_version: None,
            };
            messages.map(item).into()
        };
        let sealed = |answers: Vec<Result<Ciphertext, _>>| -> Vec<Ciphertext> {
            answers.into_iter().map(Result::unwrap).collect()
        };
        let first = sealed(keyring.encrypt(named(&name), items()).await.unwrap());
        let again = sealed(keyring.encrypt(named(&name), items()).await.unwrap());
        assert_eq!(first, again, "convergent");
        let nonces: HashSet<_> = first.iter().map(|one| one.bytes[..12].to_vec()).collect();
        assert_eq!(nonces.len(), messages.len(), "a nonce was used twice");
        let items = messages
            .iter()
            .zip(&first)
            .map(|((ad, _), one)| DecryptItem {
                ciphertext: one.clone(),
                associated_data: ad.to_vec(),
                context: b"ctx".to_vec(),
            });
        let opened = keyring
            .decrypt(named(&name), items.collect())
            .await
            .unwrap();
        for (opened, (_, plaintext)) in opened.into_iter().zip(messages) {
            assert_eq!(**opened.unwrap(), *plaintext);
        }
    }
}

#[tokio::test]
#[allow(
    clippy::too_many_lines,
    reason = "one rule after the other, on one key"
)]
async fn rules_of_versions_are_vaults() {
    let (site, keyring) = Site::new(KeyringOptions::default()).await;
    assert!(KeyName::parse("bad/name").is_none());
    assert!(matches!(
        keyring.read(named("k")),
        Err(KeyringError::NotFound)
    ));
    let convergent = CreateOptions {
        convergent: true,
        ..CreateOptions::default()
    };
    assert_eq!(
        says(keyring.create(named("k"), convergent).await),
        "a convergent key must be derived"
    );
    keyring
        .create(named("k"), CreateOptions::default())
        .await
        .unwrap();
    let first = seal(&keyring, "k", b"").await.unwrap();
    keyring.rotate(named("k")).await.unwrap();
    keyring.rotate(named("k")).await.unwrap();
    let version = |number| ConfigChange {
        min_decryption_version: Some(number),
        ..ConfigChange::default()
    };
    assert_eq!(
        says(keyring.configure(named("k"), version(4)).await),
        "version 4 can't be the least that decrypts: the latest is 3"
    );
    assert_eq!(
        says(keyring.trim(named("k"), 2).await),
        "versions can't be destroyed while any may be asked to encrypt"
    );
    let both = ConfigChange {
        min_decryption_version: Some(2),
        min_encryption_version: Some(2),
        ..ConfigChange::default()
    };
    keyring.configure(named("k"), both).await.unwrap();
    assert!(matches!(
        open(&keyring, "k", &first, b"").await,
        Err(KeyringError::Refused(Refusal::VersionTooOld(
            Purpose::Decrypt
        )))
    ));
    let items = vec![
        item(b"x", b"", Some(1)),
        item(b"x", b"", Some(2)),
        item(b"x", b"", Some(4)),
        item(b"x", b"", None),
    ];
    let answers = keyring.encrypt(named("k"), items).await.unwrap();
    let answers: Vec<_> = answers
        .into_iter()
        .map(|answer| {
            answer
                .map(|good| good.version)
                .map_err(|bad| bad.to_string())
        })
        .collect();
    assert_eq!(
        answers,
        [
            Err("this version is too old for encryption".to_owned()),
            Ok(2),
            Err("there is no such version for encryption yet: the latest is 3".to_owned()),
            Ok(3),
        ]
    );
    let new = Ciphertext {
        version: 9,
        ..first.clone()
    };
    assert!(matches!(
        open(&keyring, "k", &new, b"").await,
        Err(KeyringError::Refused(Refusal::VersionTooNew {
            latest: 3,
            ..
        }))
    ));
    keyring.trim(named("k"), 2).await.unwrap();
    assert_eq!(
        says(keyring.configure(named("k"), version(1)).await),
        "the least version that decrypts can't be one that is destroyed"
    );
    assert_eq!(
        says(keyring.trim(named("k"), 1).await),
        "versions that are destroyed do not come back"
    );
    let keyring = site.restart(keyring).await;
    let info = keyring.read(named("k")).unwrap();
    assert_eq!(
        info.versions
            .iter()
            .map(|version| version.version)
            .collect::<Vec<_>>(),
        [2, 3]
    );
    assert_eq!(
        says(keyring.delete(named("k")).await),
        "the key k may not be deleted"
    );
    let allowed = ConfigChange {
        deletion_allowed: Some(true),
        ..ConfigChange::default()
    };
    keyring.configure(named("k"), allowed).await.unwrap();
    keyring.delete(named("k")).await.unwrap();
    let keyring = site.restart(keyring).await;
    assert!(!keyring.exists(named("k")));
    assert_eq!(keyring.inner.store.status().records, 0);
}

#[tokio::test]
async fn the_limit_of_random_nonces_is_kept_over_restarts_and_rotates_where_it_may() {
    let options = KeyringOptions {
        nonce_limit: 10,
        counter_block: 4,
        ..KeyringOptions::default()
    };
    let (site, keyring) = Site::new(options).await;
    keyring
        .create(named("k"), CreateOptions::default())
        .await
        .unwrap();
    for _ in 0..10 {
        seal(&keyring, "k", b"").await.unwrap();
    }
    assert!(matches!(
        seal(&keyring, "k", b"").await,
        Err(KeyringError::Exhausted)
    ));
    let keyring = site.restart(keyring).await;
    assert!(matches!(
        seal(&keyring, "k", b"").await,
        Err(KeyringError::Exhausted)
    ));
    let period = ConfigChange {
        auto_rotate_period: Some(Duration::from_hours(1)),
        ..ConfigChange::default()
    };
    keyring.configure(named("k"), period).await.unwrap();
    assert_eq!(seal(&keyring, "k", b"").await.unwrap().version, 2);
    let batch = (0..11).map(|_| item(b"x", b"", None)).collect();
    assert!(
        keyring
            .encrypt(named("k"), batch)
            .await
            .unwrap()
            .iter()
            .all(|answer| matches!(answer, Err(KeyringError::Exhausted)))
    );
    let old = keyring
        .encrypt(named("k"), vec![item(b"x", b"", Some(1))])
        .await
        .unwrap();
    assert!(matches!(old[0], Err(KeyringError::Exhausted)));
}

/// One of each sort of key, and how often each key of AES-GCM was used: by the wrapped key's id,
/// whatever version of whatever copy it is.
#[derive(Default)]
struct Uses(HashMap<[u8; 16], u64>);

impl Uses {
    /// Encrypts until it is refused; by which version at first.
    async fn exhaust(&mut self, keyring: &Keyring, name: &str) -> Result<u32, KeyringError> {
        let mut first = None;
        loop {
            match seal(keyring, name, b"ctx").await {
                Ok(ciphertext) => {
                    let key = keyring.inner.key(name).unwrap();
                    let id = key.versions[&ciphertext.version].kek().id;
                    *self.0.entry(id).or_default() += 1;
                    first.get_or_insert(ciphertext.version);
                }
                Err(error) => return first.ok_or(error),
            }
        }
    }
}

/// What a restored copy, an accepted rollback and a second token that takes over have in common:
/// the count in the store is older than what was encrypted.
#[tokio::test]
#[allow(
    clippy::too_many_lines,
    reason = "one copy after the other, over one token"
)]
async fn a_count_that_goes_back_with_the_store_is_not_believed() {
    let options = KeyringOptions {
        nonce_limit: 6,
        counter_block: 2,
        ..KeyringOptions::default()
    };
    let limit = options.nonce_limit;
    let (site, keyring) = Site::new(options).await;
    let sorts = [
        ("plain", Residency::Hsm, false),
        ("memory", Residency::Memory, false),
        ("derived", Residency::Hsm, true),
    ];
    for (name, residency, derived) in sorts {
        let options = CreateOptions {
            residency: Some(residency),
            derived,
            ..CreateOptions::default()
        };
        keyring.create(named(name), options).await.unwrap();
    }
    let convergent = CreateOptions {
        derived: true,
        convergent: true,
        ..CreateOptions::default()
    };
    keyring
        .create(named("convergent"), convergent)
        .await
        .unwrap();
    let imported = wrapped(&keyring, &[7; 32]);
    keyring
        .import(
            named("imported"),
            &imported,
            OaepHash::Sha1,
            ImportOptions::default(),
        )
        .await
        .unwrap();
    let always = seal(&keyring, "convergent", b"ctx").await.unwrap();
    let before = seal(&keyring, "imported", b"ctx").await.unwrap();
    let mut uses = Uses::default();
    drop(keyring);
    let copies = [
        site.folder.path().join("first"),
        site.folder.path().join("second"),
    ];
    crate::store::tests::copy(&site.path(), &copies[0]);
    let keyring = site.keyring(site.store().await).await;
    for (name, ..) in sorts {
        assert_eq!(uses.exhaust(&keyring, name).await.unwrap(), 1);
        assert!(matches!(
            seal(&keyring, name, b"ctx").await,
            Err(KeyringError::Exhausted)
        ));
    }
    let _ = uses.exhaust(&keyring, "imported").await;
    drop(keyring);
    crate::store::tests::copy(&site.path(), &copies[1]);

    // Back, further back, and back to what was fenced already.
    for (round, copy) in [(1, &copies[0]), (2, &copies[1]), (3, &copies[0])] {
        std::fs::remove_dir_all(site.path()).unwrap();
        crate::store::tests::copy(copy, &site.path());
        Store::accept_rollback(&site.path(), site.hsm.clone())
            .await
            .unwrap();
        let keyring = site.keyring(site.store().await).await;
        let due: Vec<_> = keyring.schedule().into_iter().map(|key| key.name).collect();
        assert_eq!(
            due,
            ["derived", "memory", "plain"].map(|name| named(name).to_owned())
        );
        for (name, ..) in sorts {
            let asked = keyring
                .encrypt(named(name), vec![item(b"x", b"ctx", Some(1))])
                .await
                .unwrap();
            assert!(matches!(asked[0], Err(KeyringError::Fenced)), "{name}");
        }
        if round == 2 {
            // By the timer, if no request came first.
            assert_eq!(keyring.rotate_due().await.len(), 3);
        }
        for (name, ..) in sorts {
            assert_eq!(uses.exhaust(&keyring, name).await.unwrap(), 2, "{name}");
        }
        assert!(matches!(
            uses.exhaust(&keyring, "imported").await,
            Err(KeyringError::Fenced)
        ));
        assert_eq!(
            open(&keyring, "imported", &before, b"ctx").await.unwrap(),
            b"secret"
        );
        assert_eq!(seal(&keyring, "convergent", b"ctx").await.unwrap(), always);
        keyring
            .import_version(named("imported"), &imported, OaepHash::Sha1)
            .await
            .unwrap();
        assert_eq!(uses.exhaust(&keyring, "imported").await.unwrap(), 2);
        drop(keyring);
        // A restart lifts no fence.
        let keyring = site.keyring(site.store().await).await;
        let asked = keyring
            .encrypt(named("plain"), vec![item(b"x", b"", Some(1))])
            .await
            .unwrap();
        assert!(matches!(asked[0], Err(KeyringError::Fenced)));
    }
    let most = uses.0.values().max().unwrap();
    assert!(*most <= limit, "{most} encryptions by one key");
    assert!(uses.0.len() >= 3 + 3 * 4, "{} keys", uses.0.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rotation_fails_no_request_that_runs_meanwhile() {
    let (_site, keyring) = Site::new(KeyringOptions {
        counter_block: 16,
        ..KeyringOptions::default()
    })
    .await;
    keyring
        .create(named("k"), CreateOptions::default())
        .await
        .unwrap();
    let keyring = Arc::new(keyring);
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let keyring = Arc::clone(&keyring);
            tokio::spawn(async move {
                let mut versions = HashSet::new();
                while versions.len() < 5 {
                    let ciphertext = seal(&keyring, "k", b"").await.unwrap();
                    assert_eq!(
                        open(&keyring, "k", &ciphertext, b"").await.unwrap(),
                        b"secret"
                    );
                    versions.insert(ciphertext.version);
                    if keyring.read(named("k")).unwrap().latest_version >= 8 {
                        break;
                    }
                }
            })
        })
        .collect();
    for expected in 2..=8 {
        assert_eq!(keyring.rotate(named("k")).await.unwrap(), expected);
    }
    for client in clients {
        client.await.unwrap();
    }
}

#[tokio::test]
async fn rewrap_datakeys_hmac_and_random_do_what_they_say() {
    let (site, keyring) = Site::new(KeyringOptions::default()).await;
    keyring
        .create(named("k"), CreateOptions::default())
        .await
        .unwrap();
    let first = seal(&keyring, "k", b"").await.unwrap();
    keyring.rotate(named("k")).await.unwrap();
    let items = vec![DecryptItem {
        ciphertext: first,
        associated_data: b"ad".to_vec(),
        context: Vec::new(),
    }];
    let second = keyring
        .rewrap(named("k"), items, None)
        .await
        .unwrap()
        .pop()
        .unwrap()
        .unwrap();
    assert_eq!(second.version, 2);
    assert_eq!(open(&keyring, "k", &second, b"").await.unwrap(), b"secret");
    for bits in [128, 256, 512] {
        let key = keyring
            .data_key(named("k"), bits, item(b"", b"", None))
            .await
            .unwrap();
        assert_eq!(key.plaintext.len() * 8, bits as usize);
        assert_eq!(
            open(&keyring, "k", &key.ciphertext, b"").await.unwrap(),
            **key.plaintext
        );
    }
    assert_eq!(
        says(
            keyring
                .data_key(named("k"), 100, EncryptItem::default())
                .await
        ),
        "a data key has 128, 256 or 512 bits"
    );
    let input = || HmacInput {
        input: Zeroizing::new(b"message".to_vec()),
    };
    let tag = |version| keyring.hmac(named("k"), Algorithm::Sha2_256, version, vec![input()]);
    let (one, two) = (
        tag(Some(1)).await.unwrap().pop().unwrap().unwrap(),
        tag(None).await.unwrap().pop().unwrap().unwrap(),
    );
    assert_ne!(one.tag, two.tag);
    let keyring = site.restart(keyring).await;
    let mut forged = two.tag.clone();
    forged[0] ^= 1;
    let checks = vec![
        (input(), one),
        (
            input(),
            HmacTag {
                version: 2,
                tag: forged,
            },
        ),
        (
            input(),
            HmacTag {
                version: 3,
                tag: Vec::new(),
            },
        ),
        (input(), two),
    ];
    let valid = keyring
        .verify_hmac(named("k"), Algorithm::Sha2_256, checks)
        .await
        .unwrap();
    let valid: Vec<_> = valid.into_iter().map(Result::ok).collect();
    assert_eq!(valid, [Some(true), Some(false), None, Some(true)]);
    assert!(
        keyring
            .hmac(named("k"), Algorithm::Sha3_256, None, vec![input()])
            .await
            .is_err()
    );
    for source in [
        RandomSource::Platform,
        RandomSource::Seal,
        RandomSource::All,
    ] {
        assert_ne!(
            *keyring.random(32, source).await.unwrap(),
            *keyring.random(32, source).await.unwrap()
        );
    }
}

#[tokio::test]
async fn memory_keys_go_when_idle_and_fips_mode_refuses_them() {
    let (mut site, keyring) = Site::new(KeyringOptions {
        memory_idle: Duration::from_millis(50),
        ..KeyringOptions::default()
    })
    .await;
    let options = CreateOptions {
        residency: Some(Residency::Memory),
        ..CreateOptions::default()
    };
    keyring.create(named("k"), options.clone()).await.unwrap();
    let loaded = |keyring: &Keyring| {
        keyring.inner.key("k").unwrap().versions[&1]
            .memory
            .is_loaded()
    };
    let ciphertext = seal(&keyring, "k", b"").await.unwrap();
    assert!(loaded(&keyring));
    tokio::time::sleep(Duration::from_millis(80)).await;
    keyring.drop_idle();
    assert!(!loaded(&keyring));
    assert_eq!(
        open(&keyring, "k", &ciphertext, b"").await.unwrap(),
        b"secret"
    );
    site.options.fips = true;
    let keyring = site.restart(keyring).await;
    assert!(says(open(&keyring, "k", &ciphertext, b"").await).contains("FIPS"));
    assert!(says(keyring.create(named("other"), options).await).contains("FIPS"));
}

#[tokio::test]
async fn keys_are_rotated_when_they_are_due() {
    let (_site, mut keyring) = Site::new(KeyringOptions::default()).await;
    let hourly = CreateOptions {
        auto_rotate_period: Duration::from_hours(1),
        ..CreateOptions::default()
    };
    keyring.create(named("hourly"), hourly).await.unwrap();
    keyring
        .create(named("never"), CreateOptions::default())
        .await
        .unwrap();
    assert!(keyring.rotate_due().await.is_empty());
    Arc::get_mut(&mut keyring.inner).unwrap().clock = || unix_seconds() + 3601;
    let rotated = keyring.rotate_due().await;
    assert!(
        matches!(&rotated[..], [(name, Ok(2))] if **name == *"hourly"),
        "{rotated:?}"
    );
    assert!(keyring.rotate_due().await.is_empty());
}

/// RSA-OAEP (SHA-1, which is what SoftHSM has) of an AES key, then AES-KWP of the target.
fn wrapped(keyring: &Keyring, target: &[u8]) -> Vec<u8> {
    use aes_kw::KeyInit as _;
    use rsa::pkcs8::DecodePublicKey as _;
    let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
    let public = rsa::PublicKey::from_public_key_pem(&keyring.wrapping_key_pem()).unwrap();
    let mut ciphertext = public
        .encrypt(&mut rng, rsa::Oaep::<sha1::Sha1>::new(), &[9; 32])
        .unwrap();
    let mut buffer = vec![0; target.len() + 8];
    let kwp = aes_kw::KwpAes256::new(&[9; 32].into())
        .wrap_key(target, &mut buffer)
        .unwrap()
        .to_vec();
    ciphertext.extend(kwp);
    ciphertext
}

#[tokio::test]
async fn imported_keys_are_used_as_they_are_and_rotated_only_where_allowed() {
    use aes_gcm::KeyInit as _;
    use aes_gcm::aead::Aead as _;
    use hmac::Mac as _;

    let (site, keyring) = Site::new(KeyringOptions::default()).await;
    let good = wrapped(&keyring, &[7; 32]);
    let options = |residency, derived, allow_rotation| ImportOptions {
        create: CreateOptions {
            residency: Some(residency),
            derived,
            ..CreateOptions::default()
        },
        allow_rotation,
    };
    let plain = options(Residency::Hsm, false, false);
    for (bad, why) in [
        (good[..512].to_vec(), "too short"),
        (good[..good.len() - 1].to_vec(), "of no use"),
        (wrapped(&keyring, &[7; 16]), "of no use"),
        ([&good[..540], &[0; 12]].concat(), "can't be unwrapped"),
    ] {
        let outcome = keyring
            .import(named("k"), &bad, OaepHash::Sha1, plain.clone())
            .await;
        let said = says(outcome);
        assert!(said.contains(why), "{said}");
        assert!(!keyring.exists(named("k")));
    }
    for residency in [Residency::Hsm, Residency::Memory] {
        for derived in [false, true] {
            let name = format!("{residency:?}-{derived}");
            keyring
                .import(
                    named(&name),
                    &good,
                    OaepHash::Sha1,
                    options(residency, derived, false),
                )
                .await
                .unwrap();
            let mut key = [7; 32];
            if derived {
                let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(&key).unwrap();
                mac.update(b"\0\0\0\0ctx\0\0\x01\0");
                key = mac.finalize().into_bytes().into();
            }
            let ciphertext = seal(&keyring, &name, b"ctx").await.unwrap().bytes;
            let (nonce, sealed) = ciphertext.split_first_chunk::<12>().unwrap();
            let payload = aes_gcm::aead::Payload {
                msg: sealed,
                aad: b"ad",
            };
            let opened = aes_gcm::Aes256Gcm::new(&key.into()).decrypt(&(*nonce).into(), payload);
            assert_eq!(opened.unwrap(), b"secret", "{name}");
        }
    }
    let again = keyring
        .import(named("Hsm-false"), &good, OaepHash::Sha1, plain)
        .await;
    assert!(matches!(again, Err(KeyringError::Exists(_))));
    assert!(says(keyring.rotate(named("Hsm-false")).await).contains("may not be rotated"));
    let other = wrapped(&keyring, &[8; 32]);
    let version = keyring
        .import_version(named("Hsm-false"), &other, OaepHash::Sha1)
        .await;
    assert_eq!(version.unwrap(), 2);
    keyring
        .import(
            named("r"),
            &good,
            OaepHash::Sha1,
            options(Residency::Hsm, false, true),
        )
        .await
        .unwrap();
    keyring.rotate(named("r")).await.unwrap();
    let keyring = site.restart(keyring).await;
    assert!(
        keyring.read(named("Hsm-false")).unwrap().imported
            && !keyring.read(named("r")).unwrap().imported
    );
    assert!(
        keyring
            .import_version(named("r"), &good, OaepHash::Sha1)
            .await
            .is_err()
    );
}
