//! Encrypting and decrypting: which version does it, by the rules of its key, and whether its
//! count of random nonces allows it. `cipher.rs` does the work.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::cipher::{self, Answers, Job};
use super::counter::Take;
use super::key::{Key, Version};
use super::random::kernel_random;
use super::{
    Ciphertext, DataKey, DecryptItem, EncryptItem, Inner, KeyName, Keyring, KeyringError,
    KeyringOptions, PerItem, Refusal,
};

impl Keyring {
    /// Encrypts with each item's version, else the latest.
    ///
    /// # Errors
    /// [`KeyringError::NotFound`], [`KeyringError::Hsm`] for the whole; else one per item.
    pub async fn encrypt(
        &self,
        name: KeyName<&str>,
        items: Vec<EncryptItem>,
    ) -> PerItem<Ciphertext> {
        self.inner.encrypt(name.as_str(), items).await
    }

    /// Decrypts each item with the version that it names.
    ///
    /// # Errors
    /// [`KeyringError::NotFound`], [`KeyringError::Hsm`] for the whole; else one per item.
    pub async fn decrypt(
        &self,
        name: KeyName<&str>,
        items: Vec<DecryptItem>,
    ) -> PerItem<Zeroizing<Vec<u8>>> {
        self.inner.decrypt(name.as_str(), items).await
    }

    /// Decrypts and encrypts again with `target` (else the latest) version; the plaintext stays in
    /// here.
    ///
    /// # Errors
    /// As [`Keyring::decrypt`], then as [`Keyring::encrypt`].
    pub async fn rewrap(
        &self,
        name: KeyName<&str>,
        items: Vec<DecryptItem>,
        target: Option<u32>,
    ) -> PerItem<Ciphertext> {
        let bound: Vec<_> = items
            .iter()
            .map(|item| (item.associated_data.clone(), item.context.clone()))
            .collect();
        let opened = self.inner.decrypt(name.as_str(), items).await?;
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
            let sealed = self.inner.encrypt(name.as_str(), again).await?;
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
        name: KeyName<&str>,
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
            .encrypt(name.as_str(), vec![item])
            .await?
            .pop()
            .ok_or_else(|| KeyringError::System("no answer for an item".to_owned()))??;
        Ok(DataKey {
            plaintext,
            ciphertext,
        })
    }
}

impl Inner {
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
}

/// What an encryption request will use.
struct Plan {
    /// One per item.
    versions: Vec<Result<Arc<Version>, KeyringError>>,
    /// The latest version is exhausted, is asked for, and may be rotated.
    rotate: bool,
}

pub(super) fn in_order<T>(mut results: Answers<T>) -> Vec<Result<T, KeyringError>> {
    results.sort_unstable_by_key(|(index, _)| *index);
    // `collect` would use the same memory again and then ask for less of it, which takes longer
    // than other memory.
    let mut in_order = Vec::with_capacity(results.len());
    in_order.extend(results.into_iter().map(|(_, result)| result));
    in_order
}
