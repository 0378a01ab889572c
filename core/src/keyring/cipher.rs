//! AES-256-GCM over a batch of items of one key, wherever that key is used.

use std::sync::Arc;

use aes_gcm::{AeadInOut, Aes256Gcm, Key as AesKey, KeyInit, Nonce, Tag};
use strongroom_hsm::{GcmItem, Hsm, HsmError};
use zeroize::Zeroizing;

use super::derive::{
    Derived, DerivedKind, PseudorandomKeys, convergent_nonce, derive, wrong_usage,
};
use super::key::{Key, Version};
use super::memory::HostKey;
use super::{KeyringError, Refusal, Residency};

const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

/// One item, its version already chosen.
pub(super) struct Job {
    /// Its place in the request.
    pub(super) index: usize,
    pub(super) version: Arc<Version>,
    pub(super) context: Vec<u8>,
    pub(super) aad: Vec<u8>,
    /// Plaintext, or nonce || ciphertext || tag.
    pub(super) data: Zeroizing<Vec<u8>>,
}

/// One answer per job, with the job's index.
pub(super) type Answers<T> = Vec<(usize, Result<T, KeyringError>)>;

/// Encrypts each job's plaintext to nonce || ciphertext || tag.
pub(super) async fn encrypt(
    hsm: &Hsm,
    key: &Key,
    jobs: Vec<Job>,
) -> Result<Answers<Vec<u8>>, KeyringError> {
    let nonces = random_nonces(jobs.len())?;
    if key.settings.derived {
        let derived = derive_all(hsm, key, &jobs, |job| {
            match (key.settings.convergent, job.aad.is_empty()) {
                (false, _) => DerivedKind::Key,
                (true, true) => DerivedKind::PlainNonce,
                (true, false) => DerivedKind::BoundNonce,
            }
        })
        .await?;
        let jobs = jobs.into_iter().zip(nonces).zip(derived);
        return Ok(jobs
            .map(|((job, nonce), derived)| (job.index, encrypt_derived(&job, nonce, derived)))
            .collect());
    }
    if key.settings.residency == Residency::Memory {
        let mut answers = Vec::with_capacity(jobs.len());
        for (job, nonce) in jobs.into_iter().zip(nonces) {
            let host = job.version.memory.get(hsm, &job.version.kek()).await?;
            let answer = match &*host {
                HostKey::Aead(cipher) => encrypt_here(cipher, nonce, &job.aad, &job.data),
                HostKey::Mac(_) => Err(wrong_usage()),
            };
            answers.push((job.index, answer));
        }
        return Ok(answers);
    }
    let mut indexes = Vec::with_capacity(jobs.len());
    let mut items = Vec::with_capacity(jobs.len());
    for (job, nonce) in jobs.into_iter().zip(&nonces) {
        indexes.push(job.index);
        items.push(GcmItem {
            key: job.version.kek(),
            iv: *nonce,
            aad: job.aad,
            data: job.data,
        });
    }
    let sealed = hsm.encrypt(items).await?;
    let answers = indexes.into_iter().zip(nonces).zip(sealed);
    Ok(answers
        .map(|((index, nonce), sealed)| {
            let answer = sealed.map(|sealed| [&nonce[..], &sealed].concat());
            (index, answer.map_err(KeyringError::from))
        })
        .collect())
}

/// Decrypts each job's nonce || ciphertext || tag to the plaintext.
pub(super) async fn decrypt(
    hsm: &Hsm,
    key: &Key,
    mut jobs: Vec<Job>,
) -> Result<Answers<Zeroizing<Vec<u8>>>, KeyringError> {
    let mut answers = Vec::with_capacity(jobs.len());
    for short in jobs.extract_if(.., |job| job.data.len() < NONCE_BYTES + TAG_BYTES) {
        let error = match short.data.len() {
            0..NONCE_BYTES => Refusal::CiphertextTooShort.into(),
            _ => KeyringError::Decrypt,
        };
        answers.push((short.index, Err(error)));
    }
    if key.settings.derived {
        let derived = derive_all(hsm, key, &jobs, |_| DerivedKind::Key).await?;
        answers.extend(jobs.into_iter().zip(derived).map(|(job, derived)| {
            let answer = derived
                .and_then(|derived| decrypt_here(&cipher(&derived.key), &job.aad, &job.data));
            (job.index, answer)
        }));
    } else if key.settings.residency == Residency::Memory {
        for job in jobs {
            let host = job.version.memory.get(hsm, &job.version.kek()).await?;
            let answer = match &*host {
                HostKey::Aead(cipher) => decrypt_here(cipher, &job.aad, &job.data),
                HostKey::Mac(_) => Err(wrong_usage()),
            };
            answers.push((job.index, answer));
        }
    } else if !jobs.is_empty() {
        let mut indexes = Vec::with_capacity(jobs.len());
        let mut items = Vec::with_capacity(jobs.len());
        for job in jobs {
            let Some((iv, sealed)) = job.data.split_first_chunk::<NONCE_BYTES>() else {
                continue; // Shorter ones were answered above.
            };
            indexes.push(job.index);
            items.push(GcmItem {
                key: job.version.kek(),
                iv: *iv,
                aad: job.aad,
                data: Zeroizing::new(sealed.to_vec()),
            });
        }
        let opened = hsm.decrypt(items).await?;
        answers.extend(indexes.into_iter().zip(opened).map(|(index, opened)| {
            let answer = opened.map_err(|error| match error {
                HsmError::Authentication => KeyringError::Decrypt,
                other => KeyringError::Hsm(other),
            });
            (index, answer)
        }));
    }
    Ok(answers)
}

async fn derive_all(
    hsm: &Hsm,
    key: &Key,
    jobs: &[Job],
    want: impl Fn(&Job) -> DerivedKind,
) -> Result<Vec<Result<Derived, KeyringError>>, KeyringError> {
    let keys = match key.settings.residency {
        Residency::Hsm => PseudorandomKeys::Token(hsm),
        Residency::Memory => {
            let mut keys = Vec::with_capacity(jobs.len());
            for job in jobs {
                keys.push(job.version.memory.get(hsm, &job.version.kek()).await?);
            }
            PseudorandomKeys::Host(keys)
        }
    };
    let items: Vec<_> = jobs
        .iter()
        .map(|job| (Arc::clone(&job.version), job.context.as_slice(), want(job)))
        .collect();
    if items.is_empty() {
        return Ok(Vec::new());
    }
    derive(&keys, key.settings.kdf, &items).await
}

fn encrypt_derived(
    job: &Job,
    random: [u8; NONCE_BYTES],
    derived: Result<Derived, KeyringError>,
) -> Result<Vec<u8>, KeyringError> {
    let derived = derived?;
    let nonce = match &derived.nonce_key {
        Some(nonce_key) => convergent_nonce(nonce_key, &job.aad, &job.data)?,
        None => random,
    };
    encrypt_here(&cipher(&derived.key), nonce, &job.aad, &job.data)
}

fn cipher(key: &[u8; 32]) -> Aes256Gcm {
    Aes256Gcm::new(<&AesKey<Aes256Gcm>>::from(key))
}

fn encrypt_here(
    cipher: &Aes256Gcm,
    nonce: [u8; NONCE_BYTES],
    aad: &[u8],
    plaintext: &[u8],
) -> Result<Vec<u8>, KeyringError> {
    // Made at its full size: a buffer that grows would leave plaintext behind.
    let mut out = Vec::with_capacity(NONCE_BYTES + plaintext.len() + TAG_BYTES);
    out.extend_from_slice(&nonce);
    out.extend_from_slice(plaintext);
    let (_, body) = out.split_at_mut(NONCE_BYTES);
    let tag = cipher
        .encrypt_inout_detached(&Nonce::from(nonce), aad, body.into())
        .map_err(|_| Refusal::PlaintextTooLong)?;
    out.extend_from_slice(&tag);
    Ok(out)
}

fn decrypt_here(
    cipher: &Aes256Gcm,
    aad: &[u8],
    data: &[u8],
) -> Result<Zeroizing<Vec<u8>>, KeyringError> {
    let (nonce, sealed) = data
        .split_first_chunk::<NONCE_BYTES>()
        .ok_or(KeyringError::Decrypt)?;
    let (body, tag) = sealed
        .split_last_chunk::<TAG_BYTES>()
        .ok_or(KeyringError::Decrypt)?;
    let mut plaintext = Zeroizing::new(body.to_vec());
    cipher
        .decrypt_inout_detached(
            &Nonce::from(*nonce),
            aad,
            plaintext.as_mut_slice().into(),
            &Tag::from(*tag),
        )
        .map_err(|_| KeyringError::Decrypt)?;
    Ok(plaintext)
}

fn random_nonces(count: usize) -> Result<Vec<[u8; NONCE_BYTES]>, KeyringError> {
    let mut nonces = vec![[0; NONCE_BYTES]; count];
    getrandom::fill(nonces.as_flattened_mut()).map_err(|error| {
        KeyringError::System(format!("no random bytes from the kernel: {error}"))
    })?;
    Ok(nonces)
}
