//! What holds for the versions of any key, whatever it is for. The rules are Vault's, and good ones
//! for any caller.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{ConfigChange, Purpose, Refusal};

/// Vault's shortest.
const MIN_ROTATION_PERIOD: Duration = Duration::from_hours(1);

/// Which versions a key has, which of them may be used, and what may be done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// Versions may be added that are made in the token.
    pub(super) may_rotate: bool,
    pub(super) deletion_allowed: bool,
    /// Seconds; 0: none.
    pub(super) auto_rotate_period: u64,
    /// Those below are destroyed; 0: none is.
    pub(super) min_available_version: u32,
    /// Those below neither decrypt nor verify.
    pub(super) min_decryption_version: u32,
    /// Those below neither encrypt nor sign; 0: any may.
    pub(super) min_encryption_version: u32,
    pub(super) latest_version: u32,
}

impl Rules {
    /// The rules after the change.
    pub(super) fn configured(&self, change: &ConfigChange) -> Result<Self, Refusal> {
        let mut new = *self;
        let latest = self.latest_version;
        if let Some(min) = change.min_decryption_version {
            if min > latest {
                return Err(Refusal::MinDecryptionAboveLatest { asked: min, latest });
            }
            new.min_decryption_version = min.max(1);
        }
        if let Some(min) = change.min_encryption_version {
            if min > latest {
                return Err(Refusal::MinEncryptionAboveLatest { asked: min, latest });
            }
            new.min_encryption_version = min;
        }
        let (encryption, decryption) = (new.min_encryption_version, new.min_decryption_version);
        if encryption > 0 && encryption < decryption {
            return Err(Refusal::EncryptsBelowDecryption {
                encryption,
                decryption,
            });
        }
        if let Some(allowed) = change.deletion_allowed {
            new.deletion_allowed = allowed;
        }
        if let Some(period) = change.auto_rotate_period {
            check_auto_rotate(period)?;
            if !period.is_zero() && !self.may_rotate {
                return Err(Refusal::PeriodWithoutRotation);
            }
            new.auto_rotate_period = period.as_secs();
        }
        if new.min_available_version > encryption {
            return Err(Refusal::MinEncryptionDestroyed);
        }
        if new.min_available_version > decryption {
            return Err(Refusal::MinDecryptionDestroyed);
        }
        Ok(new)
    }

    /// The rules after the versions below `min` are destroyed.
    pub(super) fn trimmed(&self, min: u32) -> Result<Self, Refusal> {
        if min < self.min_available_version {
            Err(Refusal::TrimBackwards)
        } else if self.min_encryption_version == 0 {
            Err(Refusal::TrimWithoutMinEncryption)
        } else if min > self.min_encryption_version {
            Err(Refusal::TrimEncrypting)
        } else if min > self.min_decryption_version {
            Err(Refusal::TrimDecrypting)
        } else if min == 0 {
            Err(Refusal::TrimZero)
        } else {
            Ok(Self {
                min_available_version: min,
                ..*self
            })
        }
    }

    /// The version to decrypt or verify with.
    pub(super) fn usable<V>(
        &self,
        versions: &BTreeMap<u32, Arc<V>>,
        asked: u32,
        purpose: Purpose,
    ) -> Result<Arc<V>, Refusal> {
        if asked > self.latest_version {
            Err(self.too_new(purpose))
        } else if asked < self.min_decryption_version {
            Err(Refusal::VersionTooOld(purpose))
        } else {
            self.unarchived(versions, asked)
        }
    }

    /// The version of that number, if it is not out of use.
    pub(super) fn unarchived<V>(
        &self,
        versions: &BTreeMap<u32, Arc<V>>,
        number: u32,
    ) -> Result<Arc<V>, Refusal> {
        versions
            .get(&number)
            .filter(|_| number >= self.min_decryption_version)
            .cloned()
            .ok_or(Refusal::NoSuchVersion)
    }

    /// Why a version above the latest can't be used.
    pub(super) fn too_new(&self, purpose: Purpose) -> Refusal {
        Refusal::VersionTooNew {
            purpose,
            latest: self.latest_version,
        }
    }

    /// The number of the version after the latest.
    pub(super) fn next_version(&self) -> Result<u32, Refusal> {
        self.latest_version
            .checked_add(1)
            .ok_or(Refusal::NoNumberLeft)
    }
}

/// None, or an hour at least.
pub(super) fn check_auto_rotate(period: Duration) -> Result<(), Refusal> {
    if period.is_zero() || period >= MIN_ROTATION_PERIOD {
        Ok(())
    } else {
        Err(Refusal::PeriodTooShort)
    }
}
