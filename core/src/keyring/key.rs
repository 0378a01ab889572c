//! One named key: its settings, its versions, and their records in the store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use strongroom_hsm::{KeyUsage, MasterKind, OaepHash, TransferBlob, WrappedKey};
use zeroize::Zeroizing;

use super::counter::UseCounter;
use super::memory::MemorySlot;
use super::named::{Leftovers, Removal};
use super::rules::Rules;
use super::schedule::{self, Verdict};
use super::{
    Kdf, KeyInfo, KeyName, KeyType, KeyringError, Purpose, Refusal, Residency, Scheduled,
    VersionInfo,
};
use crate::json::Document;
use crate::store::{Change, RecordId, RecordKind, StoreError};

/// The payload of a `Key` record, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    pub(super) residency: Residency,
    pub(super) derived: bool,
    pub(super) convergent: bool,
    pub(super) kdf: Kdf,
    pub(super) imported: bool,
    pub(super) allow_rotation: bool,
    pub(super) deletion_allowed: bool,
    /// Seconds; 0: none.
    pub(super) auto_rotate_period: u64,
    pub(super) min_available_version: u32,
    pub(super) min_decryption_version: u32,
    pub(super) min_encryption_version: u32,
    pub(super) latest_version: u32,
}

impl Settings {
    /// What its versions' keys are used for: a derived key's are HMAC keys, from which others are
    /// derived.
    pub(super) fn usage(&self) -> KeyUsage {
        if self.derived {
            KeyUsage::Mac
        } else {
            KeyUsage::Aead
        }
    }

    pub(super) fn rules(&self) -> Rules {
        Rules {
            may_rotate: !self.imported || self.allow_rotation,
            deletion_allowed: self.deletion_allowed,
            auto_rotate_period: self.auto_rotate_period,
            min_available_version: self.min_available_version,
            min_decryption_version: self.min_decryption_version,
            min_encryption_version: self.min_encryption_version,
            latest_version: self.latest_version,
        }
    }

    /// With other rules; whether the key may be rotated stays as it is.
    fn with(&self, rules: Rules) -> Self {
        Self {
            deletion_allowed: rules.deletion_allowed,
            auto_rotate_period: rules.auto_rotate_period,
            min_available_version: rules.min_available_version,
            min_decryption_version: rules.min_decryption_version,
            min_encryption_version: rules.min_encryption_version,
            latest_version: rules.latest_version,
            ..self.clone()
        }
    }

    pub(super) fn master(&self) -> MasterKind {
        match self.residency {
            Residency::Hsm => MasterKind::Hsm,
            Residency::Memory => MasterKind::Memory,
        }
    }
}

/// A named key at one moment; a change makes a new one that shares the versions.
#[derive(Clone)]
pub(super) struct Key {
    pub(super) name: KeyName,
    pub(super) settings: Settings,
    pub(super) versions: BTreeMap<u32, Arc<Version>>,
}

/// One version of a key.
pub(super) struct Version {
    pub(super) number: u32,
    /// Seconds since 1970, UTC.
    pub(super) created: i64,
    /// Replaced by a move to another master key, under requests that use it: the keys in it stay
    /// the same.
    pub(super) wrapped: ArcSwap<Wrapped>,
    pub(super) counter: UseCounter,
    pub(super) memory: MemorySlot,
}

/// A version's keys as they are kept.
pub(super) struct Wrapped {
    /// Encrypts, or has encryption keys derived from it.
    pub(super) kek: Arc<WrappedKey>,
    /// For `hmac`: a key of its own, always used in the token.
    pub(super) mac: Arc<WrappedKey>,
}

impl Key {
    pub(super) fn info(&self) -> KeyInfo {
        let settings = &self.settings;
        KeyInfo {
            name: self.name.to_string(),
            key_type: KeyType::Aes256Gcm96,
            residency: settings.residency,
            derived: settings.derived,
            convergent: settings.convergent,
            kdf: settings.kdf,
            imported: settings.imported,
            allow_rotation: settings.allow_rotation,
            deletion_allowed: settings.deletion_allowed,
            auto_rotate_period: Duration::from_secs(settings.auto_rotate_period),
            min_available_version: settings.min_available_version,
            min_decryption_version: settings.min_decryption_version,
            min_encryption_version: settings.min_encryption_version,
            latest_version: settings.latest_version,
            signing_version: 0,
            published_version: 0,
            versions: self
                .versions
                .values()
                .map(|version| VersionInfo {
                    version: version.number,
                    created: version.created,
                    public: None,
                })
                .collect(),
        }
    }

    /// The version to encrypt with; `None` and 0 ask for the latest.
    pub(super) fn encrypting(&self, asked: Option<u32>) -> Result<Arc<Version>, Refusal> {
        let rules = self.settings.rules();
        let number = match asked.unwrap_or(0) {
            0 => rules.latest_version,
            number if number > rules.latest_version => {
                return Err(rules.too_new(Purpose::Encrypt));
            }
            number if number < rules.min_encryption_version => {
                return Err(Refusal::VersionTooOld(Purpose::Encrypt));
            }
            number => number,
        };
        rules.unarchived(&self.versions, number)
    }

    /// The version to decrypt with; 0 means 1, as in the first of Vault's ciphertexts.
    pub(super) fn decrypting(&self, asked: u32) -> Result<Arc<Version>, Refusal> {
        let rules = self.settings.rules();
        rules.usable(&self.versions, asked.max(1), Purpose::Decrypt)
    }

    /// The version to make an HMAC with; `None` and 0 ask for the latest.
    pub(super) fn authenticating(&self, asked: Option<u32>) -> Result<Arc<Version>, Refusal> {
        let rules = self.settings.rules();
        let number = match asked.unwrap_or(0) {
            0 => rules.latest_version,
            number if number == rules.latest_version => number,
            number if number < rules.min_encryption_version => {
                return Err(Refusal::VersionTooOld(Purpose::Hmac));
            }
            number if number > rules.latest_version => {
                return Err(rules.too_new(Purpose::Hmac));
            }
            number => number,
        };
        rules.unarchived(&self.versions, number)
    }

    /// The version to check an HMAC with.
    pub(super) fn verifying(&self, asked: u32) -> Result<Arc<Version>, Refusal> {
        let rules = self.settings.rules();
        rules.usable(&self.versions, asked, Purpose::VerifyHmac)
    }

    /// A derived key needs a context. Vault's others ignore one: who believes a ciphertext to be
    /// bound to it would not find out.
    pub(super) fn check_context(&self, context: &[u8]) -> Result<(), Refusal> {
        match (self.settings.derived, context.is_empty()) {
            (true, true) => Err(Refusal::ContextMissing),
            (false, false) => Err(Refusal::ContextUnwanted),
            _ => Ok(()),
        }
    }

    /// Whether versions may be added that are made in the token.
    pub(super) fn may_rotate(&self) -> bool {
        self.settings.rules().may_rotate
    }

    /// What the schedule says of it.
    fn verdict(&self, now: i64) -> Verdict {
        let settings = &self.settings;
        let latest = settings.latest_version;
        match self.versions.get(&latest) {
            // It encrypts with a new version or not at all.
            Some(version)
                if version.counter.is_fenced() && !settings.convergent && self.may_rotate() =>
            {
                Verdict::Due(0)
            }
            Some(version) if self.may_rotate() => schedule::verdict(
                &self.name,
                latest,
                version.created,
                settings.auto_rotate_period,
                now,
            ),
            _ => Verdict::Never,
        }
    }

    /// When it is rotated automatically.
    pub(super) fn scheduled(&self, now: i64) -> Scheduled {
        Scheduled {
            name: self.name.clone(),
            latest: self.settings.latest_version,
            verdict: self.verdict(now),
            waiting: false,
        }
    }

    /// The key with other rules.
    pub(super) fn with(&self, rules: Rules) -> Self {
        Self {
            settings: self.settings.with(rules),
            ..self.clone()
        }
    }

    /// The key with these rules, without the versions that they say are destroyed.
    pub(super) fn trimmed(&self, rules: Rules) -> (Self, Removal) {
        let mut trimmed = self.with(rules);
        let kept = trimmed.versions.split_off(&rules.min_available_version);
        let gone = std::mem::replace(&mut trimmed.versions, kept);
        (trimmed, self.removal(gone.values()))
    }

    /// What destroying these versions takes.
    pub(super) fn removal<'v>(&self, versions: impl Iterator<Item = &'v Arc<Version>>) -> Removal {
        let (mut changes, mut ids) = (Vec::new(), Vec::new());
        for version in versions {
            let kinds = [RecordKind::KeyVersion, RecordKind::UseCounter];
            changes.extend(kinds.map(|kind| Change::Delete(id(kind, &self.name, version.number))));
            ids.extend([version.kek().id, version.mac().id]);
        }
        Removal {
            changes,
            leftovers: Leftovers::SessionObjects(ids),
        }
    }

    /// Where the settings are in the store.
    pub(super) fn place(&self) -> RecordId {
        id(RecordKind::Key, &self.name, 0)
    }

    /// The change that writes the settings.
    pub(super) fn put(&self) -> Result<Change, KeyringError> {
        Ok(Change::Put(self.place(), json(&self.settings)?))
    }
}

impl Version {
    /// The key that encrypts, or from which encryption keys are derived.
    pub(super) fn kek(&self) -> Arc<WrappedKey> {
        Arc::clone(&self.wrapped.load().kek)
    }

    /// The key of `hmac`.
    pub(super) fn mac(&self) -> Arc<WrappedKey> {
        Arc::clone(&self.wrapped.load().mac)
    }

    /// The change that writes this version's keys.
    pub(super) fn put(&self, name: &str) -> Result<Change, KeyringError> {
        self.put_wrapped(name, &self.wrapped.load())
    }

    /// The change that writes this version with other wrapped keys.
    pub(super) fn put_wrapped(
        &self,
        name: &str,
        wrapped: &Wrapped,
    ) -> Result<Change, KeyringError> {
        let record = VersionRecord {
            format: VERSION_FORMAT,
            created: self.created,
            kek: WrappedRecord::from(&*wrapped.kek),
            mac: WrappedRecord::from(&*wrapped.mac),
        };
        Ok(Change::Put(
            id(RecordKind::KeyVersion, name, self.number),
            json(&record)?,
        ))
    }

    /// Reads what [`Version::put`] and [`put_counter`] wrote.
    pub(super) fn read(
        name: &str,
        number: u32,
        record: &[u8],
        counter: &[u8],
    ) -> Result<Self, KeyringError> {
        let parsed: Option<VersionRecord> = read_json(record);
        let keys = parsed
            .filter(|record| record.format <= VERSION_FORMAT)
            .and_then(|record| Some((record.created, record.kek.decode()?, record.mac.decode()?)));
        let Some((created, kek, mac)) = keys else {
            return Err(unreadable(RecordKind::KeyVersion, name, number));
        };
        let reserved = u64::from_be_bytes(
            counter
                .try_into()
                .map_err(|_| unreadable(RecordKind::UseCounter, name, number))?,
        );
        Ok(Self {
            number,
            created,
            wrapped: ArcSwap::from_pointee(Wrapped {
                kek: Arc::new(kek),
                mac: Arc::new(mac),
            }),
            counter: UseCounter::recovered(reserved),
            memory: MemorySlot::new(),
        })
    }
}

/// The change that writes how many encryptions are reserved for a version: 8 bytes, big-endian.
pub(super) fn put_counter(name: &str, version: u32, reserved: u64) -> Change {
    Change::Put(
        id(RecordKind::UseCounter, name, version),
        Zeroizing::new(reserved.to_be_bytes().to_vec()),
    )
}

pub(super) fn id(kind: RecordKind, name: &str, version: u32) -> RecordId {
    RecordId {
        kind,
        name: name.to_owned(),
        version,
    }
}

/// Reads a `Key` record. Whether its numbers can be is looked at when all records are there.
pub(super) fn read_settings(name: &str, record: &[u8]) -> Result<Settings, KeyringError> {
    read_json(record).ok_or_else(|| unreadable(RecordKind::Key, name, 0))
}

/// A record's payload, by the rules that every reader of it has (`docs/json.md`).
pub(super) fn read_json<T: DeserializeOwned>(record: &[u8]) -> Option<T> {
    Document::parse(record).ok()?.read().ok()
}

/// An authentic record that can't be read: written by a newer version of this program.
pub(super) fn unreadable(kind: RecordKind, name: &str, version: u32) -> KeyringError {
    inconsistent(
        &id(kind, name, version),
        "is of a format that this version does not read",
    )
}

/// An authentic record that contradicts another, or itself; `problem` follows "the record … ".
pub(super) fn inconsistent(record: &RecordId, problem: impl Into<String>) -> KeyringError {
    KeyringError::Store(StoreError::Inconsistent {
        record: record.to_string(),
        problem: problem.into(),
    })
}

/// The format of a `KeyVersion` record that is written; the first one had no number and no transfer
/// blobs, and is still read.
const VERSION_FORMAT: u32 = 2;

fn first_format() -> u32 {
    1
}

/// The payload of a `KeyVersion` record, as JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VersionRecord {
    #[serde(default = "first_format")]
    format: u32,
    created: i64,
    kek: WrappedRecord,
    mac: WrappedRecord,
}

/// A [`WrappedKey`] in JSON; byte strings are base64.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrappedRecord {
    id: String,
    usage: String,
    master: String,
    master_fingerprint: String,
    oaep: String,
    blob: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    transfer: Option<TransferRecord>,
}

/// A [`TransferBlob`] in JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TransferRecord {
    fingerprint: String,
    blob: String,
}

impl From<&WrappedKey> for WrappedRecord {
    fn from(key: &WrappedKey) -> Self {
        let usage = match key.usage {
            KeyUsage::Aead => "aead",
            KeyUsage::Mac => "mac",
        };
        let master = match key.master {
            MasterKind::Hsm => "hsm",
            MasterKind::Memory => "memory",
        };
        let oaep = match key.oaep {
            OaepHash::Sha1 => "sha1",
            OaepHash::Sha256 => "sha256",
        };
        Self {
            id: STANDARD.encode(key.id),
            usage: usage.to_owned(),
            master: master.to_owned(),
            master_fingerprint: STANDARD.encode(key.master_fingerprint),
            oaep: oaep.to_owned(),
            blob: STANDARD.encode(&key.blob),
            transfer: key.transfer.as_ref().map(|transfer| TransferRecord {
                fingerprint: STANDARD.encode(transfer.fingerprint),
                blob: STANDARD.encode(&transfer.blob),
            }),
        }
    }
}

impl WrappedRecord {
    fn decode(&self) -> Option<WrappedKey> {
        let bytes16 = |text: &str| STANDARD.decode(text).ok()?.try_into().ok();
        Some(WrappedKey {
            id: bytes16(&self.id)?,
            usage: match self.usage.as_str() {
                "aead" => KeyUsage::Aead,
                "mac" => KeyUsage::Mac,
                _ => return None,
            },
            master: match self.master.as_str() {
                "hsm" => MasterKind::Hsm,
                "memory" => MasterKind::Memory,
                _ => return None,
            },
            master_fingerprint: bytes16(&self.master_fingerprint)?,
            oaep: match self.oaep.as_str() {
                "sha1" => OaepHash::Sha1,
                "sha256" => OaepHash::Sha256,
                _ => return None,
            },
            blob: STANDARD.decode(&self.blob).ok()?,
            transfer: match &self.transfer {
                None => None,
                Some(transfer) => Some(TransferBlob {
                    fingerprint: bytes16(&transfer.fingerprint)?,
                    blob: STANDARD.decode(&transfer.blob).ok()?,
                }),
            },
        })
    }
}

pub(super) fn json(value: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, KeyringError> {
    serde_json::to_vec(value)
        .map(Zeroizing::new)
        .map_err(|error| KeyringError::System(format!("a record could not be written: {error}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]

    use super::*;

    /// Bytes in base64, as short as they may be: only their form is looked at.
    fn version_record(format: &str, transfer: &str) -> String {
        let id = STANDARD.encode([7; 16]);
        let wrapped = |usage: &str| {
            format!(
                r#"{{"id":"{id}","usage":"{usage}","master":"hsm","master_fingerprint":"{id}","oaep":"sha1","blob":"AAAA"{transfer}}}"#
            )
        };
        format!(
            r#"{{{format}"created":5,"kek":{},"mac":{}}}"#,
            wrapped("aead"),
            wrapped("mac")
        )
    }

    #[test]
    fn a_version_record_of_the_first_format_is_read_and_one_of_a_later_is_not() {
        let read = |text: &str| Version::read("k", 1, text.as_bytes(), &[0; 8]);
        let transfer = format!(
            r#","transfer":{{"fingerprint":"{}","blob":"BBBB"}}"#,
            STANDARD.encode([9; 16])
        );
        // As it was written before there were transfer keys.
        let Ok(first) = read(&version_record("", "")) else {
            panic!("the first format is not read");
        };
        assert!(first.kek().transfer.is_none() && first.created == 5);
        let Ok(second) = read(&version_record(r#""format":2,"#, &transfer)) else {
            panic!("the second format is not read");
        };
        for key in [second.kek(), second.mac()] {
            let blob = key.transfer.clone().map(|blob| blob.fingerprint);
            assert_eq!(blob, Some([9; 16]));
        }
        // What was written is read as it was.
        let Ok(Change::Put(_, bytes)) = second.put("k") else {
            panic!("no change");
        };
        let Ok(again) = Version::read("k", 1, &bytes, &[0; 8]) else {
            panic!("what was written is not read");
        };
        assert!(again.kek() == second.kek() && again.mac() == second.mac());
        assert!(read(&version_record(r#""format":3,"#, &transfer)).is_err());
        assert!(read(&version_record(r#""format":2,"#, r#","transfer":{}"#)).is_err());
    }
}
