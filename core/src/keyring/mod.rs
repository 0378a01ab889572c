//! Named keys, their versions, where they are used (residency), and their rotation: what the API
//! calls.
//!
//! A request takes a snapshot of its key without waiting for anybody; changes replace the snapshot
//! after they are durable.

mod change;
mod cipher;
mod counter;
mod derive;
mod error;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod key;
mod load;
mod manage;
mod memory;
mod moving;
mod named;
mod rules;
mod schedule;
mod signing;
mod types;

pub use error::{KeyringError, Purpose, Refusal};
pub use key::{MAX_NAME, is_key_name};
pub use moving::{Moved, Standing};
pub use schedule::{SKIPPED_AFTER, Verdict};
pub use signing::{
    Jwk, JwtSigner, KeyHealth, MadeSignature, Marshaling, RsaScheme, SaltLength, SignOptions,
    Transition,
};
pub use types::{
    Algorithm, Ciphertext, ConfigChange, CreateOptions, DataKey, DecryptItem, EncryptItem,
    HmacInput, HmacTag, ImportOptions, JwtOptions, Kdf, KeyInfo, KeyType, PublicInfo, RandomSource,
    Residency, VersionInfo,
};

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use strongroom_hsm::{HashAlgorithm, Hsm, MacItem, OaepHash};
use subtle::ConstantTimeEq;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use crate::audit::Audit;
use crate::store::Store;
use cipher::{Answers, Job};
use counter::Take;
use key::{Key, Version};
use named::{Keys, NamedKey};
use signing::Keeper;

/// Settings of the keyring as a whole.
#[derive(Clone, Debug)]
pub struct KeyringOptions {
    /// For keys created without a residency of their own.
    pub default_residency: Residency,
    /// A key in `memory` residency is dropped from memory after this long without use.
    pub memory_idle: Duration,
    /// `memory` residency is refused.
    pub fips: bool,
    /// Encryptions with random nonces that one key version may make (NIST SP 800-38D, 8.3: at most
    /// 2^32).
    pub nonce_limit: u64,
    /// How many of them are reserved in the store at a time; a restart counts what was reserved as
    /// used.
    pub counter_block: u64,
    /// For keys created without a period of their own; zero: none.
    pub rotation_period: Duration,
    /// Tokens, and the keys that sign them.
    pub jwt: JwtOptions,
}

impl Default for KeyringOptions {
    fn default() -> Self {
        Self {
            default_residency: Residency::Hsm,
            memory_idle: Duration::from_mins(5),
            fips: false,
            nonce_limit: 1 << 32,
            counter_block: 1 << 20,
            rotation_period: Duration::ZERO,
            jwt: JwtOptions::default(),
        }
    }
}

/// The named keys of this appliance.
pub struct Keyring {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<Store>,
    hsm: Hsm,
    options: KeyringOptions,
    /// Replaced as a whole by a change.
    keys: ArcSwap<Keys>,
    keeper: Keeper,
    /// Held for the length of a change, by [`Inner::change`].
    writer: Mutex<()>,
    /// Seconds since 1970, UTC.
    clock: fn() -> i64,
    /// Where changes that no request asked for are recorded.
    audit: OnceLock<Arc<Audit>>,
}

type PerItem<T> = Result<Vec<Result<T, KeyringError>>, KeyringError>;

impl Keyring {
    /// Loads every key's settings and wrapped KEKs from the store, and checks that its records hold
    /// together.
    ///
    /// # Errors
    /// [`KeyringError::Store`] if a record is missing, too many, altered, of an unknown format, or
    /// contradicts another; [`KeyringError::OtherMaster`]; [`KeyringError::Hsm`].
    pub async fn open(
        store: Arc<Store>,
        hsm: Hsm,
        options: KeyringOptions,
    ) -> Result<Self, KeyringError> {
        let keys = load::load(&store).await?;
        moving::check(&hsm, &keys)?;
        Ok(Self {
            inner: Arc::new(Inner {
                store,
                hsm,
                options,
                keys: ArcSwap::from_pointee(keys),
                keeper: Keeper::new(),
                writer: Mutex::new(()),
                clock: unix_seconds,
                audit: OnceLock::new(),
            }),
        })
    }

    /// From now on each change that no request asked for is in the audit log: that it is about to
    /// begin, durably, and what came of it. Before this, none is made.
    pub fn record_in(&self, audit: Arc<Audit>) {
        // The first one stays.
        let _ = self.inner.audit.set(audit);
    }

    /// Creates a key at version 1. Creating one that exists changes nothing and answers `false`, as
    /// Vault does.
    ///
    /// # Errors
    /// [`KeyringError::Refused`] for a name or options that can't be; [`KeyringError::Hsm`],
    /// [`KeyringError::Store`].
    pub async fn create(&self, name: &str, options: CreateOptions) -> Result<bool, KeyringError> {
        self.change(name, |inner, name| async move {
            inner.create(&name, options).await
        })
        .await
    }

    /// BYOK: creates a key from wrapped material (`ciphertext` = RSA-OAEP(AES key), 512 bytes, ||
    /// AES-KWP(target)).
    ///
    /// # Errors
    /// [`KeyringError::Exists`]; [`KeyringError::Refused`] if it does not unwrap to a 256-bit key,
    /// or the token can't.
    pub async fn import(
        &self,
        name: &str,
        ciphertext: &[u8],
        oaep: OaepHash,
        options: ImportOptions,
    ) -> Result<(), KeyringError> {
        let ciphertext = ciphertext.to_vec();
        self.change(name, move |inner, name| async move {
            inner.import(&name, &ciphertext, oaep, options).await
        })
        .await
    }

    /// BYOK: adds a version to an imported key; returns it.
    ///
    /// # Errors
    /// As [`Keyring::import`], and [`KeyringError::Refused`] if the key is not an imported one.
    pub async fn import_version(
        &self,
        name: &str,
        ciphertext: &[u8],
        oaep: OaepHash,
    ) -> Result<u32, KeyringError> {
        let ciphertext = ciphertext.to_vec();
        self.change(name, move |inner, name| async move {
            inner.import_version(&name, &ciphertext, oaep).await
        })
        .await
    }

    /// The BYOK wrapping key's public half, PEM (`SubjectPublicKeyInfo`, RFC 7468).
    pub fn wrapping_key_pem(&self) -> String {
        pem(&self.inner.hsm.wrapping_public_key())
    }

    /// How many keys and versions of keys there are.
    pub fn size(&self) -> (usize, usize) {
        let keys = self.inner.keys.load();
        (keys.len(), keys.values().map(NamedKey::count).sum())
    }

    /// A key's settings and versions.
    ///
    /// # Errors
    /// [`KeyringError::NotFound`].
    pub fn read(&self, name: &str) -> Result<KeyInfo, KeyringError> {
        let key = self.inner.find(name).ok_or(KeyringError::NotFound)?;
        Ok(key.info())
    }

    /// Whether a key of that name exists.
    pub fn exists(&self, name: &str) -> bool {
        self.inner.exists(name)
    }

    /// Every key's name, sorted.
    pub fn list(&self) -> Vec<String> {
        let mut names: Vec<_> = self.inner.keys.load().keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// Adds a version and makes it the latest; returns it.
    ///
    /// # Errors
    /// [`KeyringError::NotFound`]; [`KeyringError::Refused`] if it was imported without
    /// `allow_rotation`.
    pub async fn rotate(&self, name: &str) -> Result<u32, KeyringError> {
        self.change(name, |inner, name| async move {
            inner.rotate(&name, None).await
        })
        .await
    }

    /// Changes settings, all or none.
    ///
    /// # Errors
    /// [`KeyringError::Refused`]; [`KeyringError::NotFound`].
    pub async fn configure(
        &self,
        name: &str,
        change: ConfigChange,
    ) -> Result<KeyInfo, KeyringError> {
        self.change(name, move |inner, name| async move {
            inner.configure(&name, &change).await
        })
        .await
    }

    /// Destroys the versions below `min_available_version`.
    ///
    /// # Errors
    /// [`KeyringError::Refused`]; [`KeyringError::NotFound`].
    pub async fn trim(&self, name: &str, min_available_version: u32) -> Result<(), KeyringError> {
        self.change(name, move |inner, name| async move {
            inner.trim(&name, min_available_version).await
        })
        .await
    }

    /// Destroys a key, if its `deletion_allowed` is set.
    ///
    /// # Errors
    /// [`KeyringError::Refused`]; [`KeyringError::NotFound`].
    pub async fn delete(&self, name: &str) -> Result<(), KeyringError> {
        self.change(name, |inner, name| async move { inner.delete(&name).await })
            .await
    }

    /// Encrypts with each item's version, else the latest.
    ///
    /// # Errors
    /// [`KeyringError::NotFound`], [`KeyringError::Hsm`] for the whole; else one per item.
    pub async fn encrypt(&self, name: &str, items: Vec<EncryptItem>) -> PerItem<Ciphertext> {
        self.inner.encrypt(name, items).await
    }

    /// Decrypts each item with the version that it names.
    ///
    /// # Errors
    /// [`KeyringError::NotFound`], [`KeyringError::Hsm`] for the whole; else one per item.
    pub async fn decrypt(
        &self,
        name: &str,
        items: Vec<DecryptItem>,
    ) -> PerItem<Zeroizing<Vec<u8>>> {
        self.inner.decrypt(name, items).await
    }

    /// Decrypts and encrypts again with `target` (else the latest) version; the plaintext stays in
    /// here.
    ///
    /// # Errors
    /// As [`Keyring::decrypt`], then as [`Keyring::encrypt`].
    pub async fn rewrap(
        &self,
        name: &str,
        items: Vec<DecryptItem>,
        target: Option<u32>,
    ) -> PerItem<Ciphertext> {
        let bound: Vec<_> = items
            .iter()
            .map(|item| (item.associated_data.clone(), item.context.clone()))
            .collect();
        let opened = self.inner.decrypt(name, items).await?;
        let mut results = Vec::with_capacity(opened.len());
        let mut again = Vec::with_capacity(opened.len());
        let mut places = Vec::with_capacity(opened.len());
        for (index, (opened, (associated_data, context))) in
            opened.into_iter().zip(bound).enumerate()
        {
            match opened {
                Ok(plaintext) => {
                    places.push(index);
                    again.push(EncryptItem {
                        plaintext,
                        associated_data,
                        context,
                        key_version: target,
                    });
                }
                Err(error) => results.push((index, Err(error))),
            }
        }
        if !again.is_empty() {
            let sealed = self.inner.encrypt(name, again).await?;
            results.extend(places.into_iter().zip(sealed));
        }
        Ok(in_order(results))
    }

    /// A fresh random key of 128, 256 or 512 bits, in plaintext and encrypted; `template`'s
    /// plaintext is not used.
    ///
    /// # Errors
    /// [`KeyringError::Refused`] for another length; else as [`Keyring::encrypt`].
    pub async fn data_key(
        &self,
        name: &str,
        bits: u32,
        template: EncryptItem,
    ) -> Result<DataKey, KeyringError> {
        let length = match bits {
            128 => 16,
            256 => 32,
            512 => 64,
            _ => return Err(Refusal::DataKeyLength.into()),
        };
        let plaintext = kernel_random(length)?;
        let item = EncryptItem {
            plaintext: plaintext.clone(),
            ..template
        };
        let ciphertext = self
            .inner
            .encrypt(name, vec![item])
            .await?
            .pop()
            .ok_or_else(|| KeyringError::System("no answer for an item".to_owned()))??;
        Ok(DataKey {
            plaintext,
            ciphertext,
        })
    }

    /// HMAC of each input with the version's HMAC key, in the token.
    ///
    /// # Errors
    /// [`KeyringError::Refused`] for a version or hash that can't be; [`KeyringError::NotFound`],
    /// [`KeyringError::Hsm`].
    pub async fn hmac(
        &self,
        name: &str,
        algorithm: Algorithm,
        version: Option<u32>,
        inputs: Vec<HmacInput>,
    ) -> PerItem<HmacTag> {
        let version = self.inner.key(name)?.authenticating(version)?;
        let hash = self.inner.hash(algorithm)?;
        let items = inputs
            .into_iter()
            .map(|input| mac_item(&version, hash, input));
        let tags = self.inner.hsm.hmac(items.collect()).await?;
        let tagged = tags.into_iter().map(|tag| {
            Ok(HmacTag {
                version: version.number,
                tag: tag?.to_vec(),
            })
        });
        Ok(tagged.collect())
    }

    /// Whether each tag is the HMAC of its input; constant-time.
    ///
    /// # Errors
    /// [`KeyringError::Refused`] per item for a version that can't be; for the whole as
    /// [`Keyring::hmac`].
    pub async fn verify_hmac(
        &self,
        name: &str,
        algorithm: Algorithm,
        inputs: Vec<(HmacInput, HmacTag)>,
    ) -> PerItem<bool> {
        let key = self.inner.key(name)?;
        let hash = self.inner.hash(algorithm)?;
        let mut results = Vec::with_capacity(inputs.len());
        let mut expected = Vec::with_capacity(inputs.len());
        let mut items = Vec::with_capacity(inputs.len());
        for (index, (input, tag)) in inputs.into_iter().enumerate() {
            match key.verifying(tag.version) {
                Ok(version) => {
                    items.push(mac_item(&version, hash, input));
                    expected.push((index, tag.tag));
                }
                Err(refusal) => results.push((index, Err(refusal.into()))),
            }
        }
        if !items.is_empty() {
            let tags = self.inner.hsm.hmac(items).await?;
            results.extend(expected.into_iter().zip(tags).map(|((index, given), tag)| {
                let valid = tag.map(|tag| bool::from(tag.as_slice().ct_eq(&given)));
                (index, valid.map_err(KeyringError::from))
            }));
        }
        Ok(in_order(results))
    }

    /// `len` random bytes.
    ///
    /// # Errors
    /// [`KeyringError::System`] or [`KeyringError::Hsm`], by source.
    pub async fn random(
        &self,
        len: usize,
        source: RandomSource,
    ) -> Result<Zeroizing<Vec<u8>>, KeyringError> {
        match source {
            RandomSource::Platform => kernel_random(len),
            RandomSource::Seal => Ok(self.inner.hsm.random(len).await?),
            RandomSource::All => {
                let mut bytes = kernel_random(len)?;
                let others = self.inner.hsm.random(len).await?;
                for (byte, other) in bytes.iter_mut().zip(others.iter()) {
                    *byte ^= other;
                }
                Ok(bytes)
            }
        }
    }

    /// Rotates every key whose `auto_rotate_period` has passed; returns their names. Called by a
    /// timer.
    pub async fn rotate_due(&self) -> Vec<(String, Result<u32, KeyringError>)> {
        let mut rotated = Vec::new();
        for Scheduled {
            name,
            latest,
            verdict,
            waiting,
        } in self.schedule()
        {
            if !matches!(verdict, Verdict::Due(_)) || waiting {
                continue;
            }
            // Only if `latest` is still the latest: somebody may have rotated it meanwhile.
            let rotation = self.change(&name, move |inner, name| async move {
                inner.rotate(&name, Some(latest)).await
            });
            let outcome = rotation.await;
            rotated.push((name, outcome));
        }
        rotated
    }

    /// Each key that is rotated by itself, and when, by name.
    pub fn schedule(&self) -> Vec<Scheduled> {
        let now = (self.inner.clock)();
        let keys = self.inner.keys.load_full();
        let mut scheduled: Vec<_> = keys.values().map(|key| key.scheduled(now)).collect();
        scheduled.retain(|key| key.verdict != Verdict::Never);
        scheduled.sort_by(|a, b| a.name.cmp(&b.name));
        scheduled
    }

    /// Drops `memory` keys idle for too long. Called by a timer.
    pub fn drop_idle(&self) {
        for key in self
            .inner
            .keys
            .load()
            .values()
            .filter_map(NamedKey::encryption)
        {
            for version in key.versions.values() {
                version.memory.drop_idle(self.inner.options.memory_idle);
            }
        }
    }
}

impl Inner {
    fn exists(&self, name: &str) -> bool {
        self.keys.load().contains_key(name)
    }

    async fn encrypt(self: &Arc<Self>, name: &str, items: Vec<EncryptItem>) -> PerItem<Ciphertext> {
        let mut key = self.key(name)?;
        self.check_residency(key.settings.residency)?;
        // Items of an exhausted latest version are planned a second time, with the version that its
        // rotation made.
        let mut plan = self.plan(&key, &items).await?;
        if plan.rotate {
            let (name, latest) = (name.to_owned(), key.settings.latest_version);
            self.change(move |inner| async move { inner.rotate(&name, Some(latest)).await })
                .await?;
            key = self.key(&key.name)?;
            plan = self.plan(&key, &items).await?;
        }
        let mut results = Vec::with_capacity(items.len());
        let mut versions = Vec::with_capacity(items.len());
        let mut jobs = Vec::with_capacity(items.len());
        for (index, (item, version)) in items.into_iter().zip(plan.versions).enumerate() {
            let checked = version.and_then(|version| {
                key.check_context(&item.context)?;
                Ok(version)
            });
            match checked {
                Ok(version) => {
                    versions.push((index, version.number));
                    jobs.push(Job {
                        index,
                        version,
                        context: item.context,
                        aad: item.associated_data,
                        data: item.plaintext,
                    });
                }
                Err(error) => results.push((index, Err(error))),
            }
        }
        if !jobs.is_empty() {
            let sealed = cipher::encrypt(&self.hsm, &key, jobs).await?;
            // Encryption answers in the order of its jobs.
            results.extend(sealed.into_iter().zip(versions).map(
                |((index, bytes), (_, version))| {
                    (index, bytes.map(|bytes| Ciphertext { version, bytes }))
                },
            ));
        }
        Ok(in_order(results))
    }

    async fn decrypt(&self, name: &str, items: Vec<DecryptItem>) -> PerItem<Zeroizing<Vec<u8>>> {
        let key = self.key(name)?;
        self.check_residency(key.settings.residency)?;
        // Most often there is nothing to put in here.
        let mut refused = Vec::new();
        let mut jobs = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            let version = key
                .decrypting(item.ciphertext.version)
                .and_then(|version| key.check_context(&item.context).map(|()| version));
            match version {
                Ok(version) => jobs.push(Job {
                    index,
                    version,
                    context: item.context,
                    aad: item.associated_data,
                    data: Zeroizing::new(item.ciphertext.bytes),
                }),
                Err(refusal) => refused.push((index, Err(refusal.into()))),
            }
        }
        if jobs.is_empty() {
            return Ok(in_order(refused));
        }
        let mut results = cipher::decrypt(&self.hsm, &key, jobs).await?;
        results.append(&mut refused);
        Ok(in_order(results))
    }

    /// Chooses each item's version and counts its use.
    async fn plan(
        self: &Arc<Self>,
        key: &Arc<Key>,
        items: &[EncryptItem],
    ) -> Result<Plan, KeyringError> {
        let mut versions: Vec<_> = items
            .iter()
            .map(|item| Ok(key.encrypting(item.key_version)?))
            .collect();
        // Convergent nonces aren't random: equal ones belong to equal plaintexts.
        if key.settings.convergent {
            return Ok(Plan {
                versions,
                rotate: false,
            });
        }
        let mut counts: BTreeMap<u32, (Arc<Version>, u64)> = BTreeMap::new();
        for version in versions.iter().flatten() {
            counts
                .entry(version.number)
                .or_insert_with(|| (Arc::clone(version), 0))
                .1 += 1;
        }
        let mut exhausted = HashSet::new();
        for (version, count) in counts.into_values() {
            if !self.count(key, &version, count).await? {
                exhausted.insert(version.number);
            }
        }
        let latest = key.settings.latest_version;
        let mut rotate = false;
        for (place, item) in versions.iter_mut().zip(items) {
            let Ok(version) = place else { continue };
            if !exhausted.contains(&version.number) {
                continue;
            }
            let fenced = version.counter.is_fenced();
            rotate |= item.key_version.unwrap_or(0) == 0
                && version.number == latest
                && (key.settings.auto_rotate_period > 0 || fenced && key.may_rotate());
            *place = Err(if fenced {
                KeyringError::Fenced
            } else {
                KeyringError::Exhausted
            });
        }
        Ok(Plan { versions, rotate })
    }

    /// Whether `count` more encryptions may be made.
    async fn count(
        self: &Arc<Self>,
        key: &Key,
        version: &Arc<Version>,
        count: u64,
    ) -> Result<bool, KeyringError> {
        let KeyringOptions {
            nonce_limit,
            counter_block,
            ..
        } = self.options;
        loop {
            match version.counter.take(count, nonce_limit, counter_block) {
                Take::Taken => return Ok(true),
                Take::Exhausted => return Ok(false),
                Take::Reserve(total) => {
                    let (name, version) = (key.name.clone(), Arc::clone(version));
                    self.change(
                        move |inner| async move { inner.reserve(&name, &version, total).await },
                    )
                    .await?;
                }
            }
        }
    }

    fn hash(&self, algorithm: Algorithm) -> Result<HashAlgorithm, KeyringError> {
        let hash = match algorithm {
            Algorithm::Sha2_224 => Some(HashAlgorithm::Sha224),
            Algorithm::Sha2_256 => Some(HashAlgorithm::Sha256),
            Algorithm::Sha2_384 => Some(HashAlgorithm::Sha384),
            Algorithm::Sha2_512 => Some(HashAlgorithm::Sha512),
            _ => None,
        };
        hash.filter(|hash| self.hsm.profile().hmac.contains(hash))
            .ok_or_else(|| Refusal::HmacHash.into())
    }
}

/// A key that is rotated by itself.
#[derive(Clone, Debug)]
pub struct Scheduled {
    /// Its name.
    pub name: String,
    /// Its latest version.
    pub latest: u32,
    /// When the next one is due.
    pub verdict: Verdict,
    /// A new version is published and does not sign yet: no other is made meanwhile.
    pub waiting: bool,
}

/// What an encryption request will use.
struct Plan {
    /// One per item.
    versions: Vec<Result<Arc<Version>, KeyringError>>,
    /// The latest version is exhausted, is asked for, and may be rotated.
    rotate: bool,
}

fn in_order<T>(mut results: Answers<T>) -> Vec<Result<T, KeyringError>> {
    results.sort_unstable_by_key(|(index, _)| *index);
    // `collect` would use the same memory again and then ask for less of it, which takes longer
    // than other memory.
    let mut in_order = Vec::with_capacity(results.len());
    in_order.extend(results.into_iter().map(|(_, result)| result));
    in_order
}

fn mac_item(version: &Arc<Version>, hash: HashAlgorithm, input: HmacInput) -> MacItem {
    MacItem {
        key: version.mac(),
        hash,
        data: input.input,
    }
}

/// `SubjectPublicKeyInfo`, DER, as PEM (RFC 7468).
fn pem(spki: &[u8]) -> String {
    let text = STANDARD.encode(spki);
    let mut pem = "-----BEGIN PUBLIC KEY-----\n".to_owned();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END PUBLIC KEY-----\n");
    pem
}

fn kernel_random(len: usize) -> Result<Zeroizing<Vec<u8>>, KeyringError> {
    let mut bytes = Zeroizing::new(vec![0; len]);
    getrandom::fill(&mut bytes).map_err(|error| {
        KeyringError::System(format!("no random bytes from the kernel: {error}"))
    })?;
    Ok(bytes)
}

fn unix_seconds() -> i64 {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod rotation_tests;
#[cfg(test)]
mod tests;
