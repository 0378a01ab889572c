//! Keys of `memory` residency: on a page of their own that is locked against swapping, wiped when
//! dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aes_gcm::{Aes256Gcm, Key as AesKey, KeyInit};
use arc_swap::ArcSwapOption;
use strongroom_hsm::{Hsm, KeyUsage, WrappedKey};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::KeyringError;
use crate::clock;

/// A key in host memory.
pub(super) enum HostKey {
    /// With its key schedule.
    Aead(Locked<Aes256Gcm>),
    /// The pseudorandom key of a derived key.
    Mac(Locked<Zeroizing<[u8; 32]>>),
}

/// Where one version's key is, if it is in memory now.
pub(super) struct MemorySlot {
    key: ArcSwapOption<HostKey>,
    /// Held while the token decrypts the key, so that it does so once.
    loading: Mutex<()>,
    /// By [`clock::uptime`], milliseconds.
    last_used: AtomicU64,
}

impl MemorySlot {
    pub(super) fn new() -> Self {
        Self {
            key: ArcSwapOption::empty(),
            loading: Mutex::new(()),
            last_used: AtomicU64::new(0),
        }
    }

    /// The key, decrypted by the token if it is not in memory.
    pub(super) async fn get(
        &self,
        hsm: &Hsm,
        wrapped: &Arc<WrappedKey>,
    ) -> Result<Arc<HostKey>, KeyringError> {
        self.last_used.store(now(), Ordering::Relaxed);
        if let Some(key) = self.key.load_full() {
            return Ok(key);
        }
        let _turn = self.loading.lock().await;
        if let Some(key) = self.key.load_full() {
            return Ok(key);
        }
        let bytes = hsm.unwrap_to_memory(Arc::clone(wrapped)).await?;
        let bytes: &[u8; 32] = bytes.as_slice().try_into().map_err(|_| {
            KeyringError::System(format!(
                "a wrapped key holds {} bytes instead of 32",
                bytes.len()
            ))
        })?;
        let key = Arc::new(match wrapped.usage {
            KeyUsage::Aead => HostKey::Aead(Locked::new(Aes256Gcm::new(
                &AesKey::<Aes256Gcm>::from(*bytes),
            ))?),
            KeyUsage::Mac => HostKey::Mac(Locked::new(Zeroizing::new(*bytes))?),
        });
        self.key.store(Some(Arc::clone(&key)));
        Ok(key)
    }

    /// Drops the key if it was not used for `idle`. An operation that is using it keeps it until
    /// its end.
    pub(super) fn drop_idle(&self, idle: Duration) {
        let unused = now().saturating_sub(self.last_used.load(Ordering::Relaxed));
        if u128::from(unused) >= idle.as_millis() {
            self.key.store(None);
        }
    }

    /// Whether the key is in memory now.
    #[cfg(test)]
    pub(super) fn is_loaded(&self) -> bool {
        self.key.load().is_some()
    }
}

fn now() -> u64 {
    u64::try_from(clock::uptime().as_millis()).unwrap_or(u64::MAX)
}

/// A value alone on its page, so that unlocking it unlocks nobody else's.
pub(super) struct Locked<T> {
    // Dropped, and so wiped, before the guard unlocks the page.
    page: Box<Page<T>>,
    _guard: region::LockGuard,
}

#[repr(align(4096))]
struct Page<T>(T);

impl<T: zeroize::ZeroizeOnDrop> Locked<T> {
    fn new(value: T) -> Result<Self, KeyringError> {
        let page = Box::new(Page(value));
        let guard = region::lock(std::ptr::from_ref(&*page), size_of::<Page<T>>()).map_err(
            |error| {
                KeyringError::System(format!(
                    "memory for a key could not be locked ({error}): raise RLIMIT_MEMLOCK (systemd: LimitMEMLOCK=)"
                ))
            },
        )?;
        Ok(Self {
            page,
            _guard: guard,
        })
    }
}

impl<T> std::ops::Deref for Locked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.page.0
    }
}
