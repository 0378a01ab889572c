//! A backup's file: keys wrapped under a transport key, with what tells which they are and proves
//! that they work. No secret is in the clear.
//!
//! The format is published in `docs/backup-format.md`.

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use strongroom_core::json::{self, Document};
use strongroom_hsm::OaepHash;
use strongroom_hsm::ceremony as hsm;

use super::encoding::{base64, hex, unbase64, unhex};
use super::record::{KeyRecord, TokenRecord};
use super::{CeremonyError, Mode};

/// The file's name in a backup's directory.
pub const FILE: &str = "backup.jsonl";

/// No backup's file is larger, bytes; each key takes some KiB of it.
pub(crate) const MAX_FILE_BYTES: u64 = 16 << 20;

const FORMAT: u32 = 1;

/// The first line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    format: u32,
    r#type: String,
    /// Whether it counts.
    pub mode: Mode,
    /// The appliance.
    pub name: String,
    /// The ceremony that made it, hexadecimal.
    pub ceremony_id: String,
    /// SHA-256 of the transcript that that ceremony went on from, hexadecimal.
    pub previous_sha256: String,
    /// The token that gave the keys.
    pub token: TokenRecord,
    /// The store that depends on them, hexadecimal.
    pub store_id: String,
    /// That token's audit key, which stays with it: `SubjectPublicKeyInfo`, base64.
    pub audit_key: String,
    /// How many shares give the transport key back.
    pub threshold: u8,
    keys: Vec<WrappedKey>,
    trial: TrialRecord,
    /// The epoch object's value, base64.
    epoch: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrappedKey {
    key: KeyRecord,
    wrapped: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TrialRecord {
    oaep: String,
    wrapped: String,
    answer: String,
    iv: String,
    sealed: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tag {
    r#type: String,
    hmac_sha256: String,
}

/// What is moved.
pub type Moved = (Vec<hsm::MovedKey>, hsm::Trial, hsm::Epoch);

/// What a backup says besides what is moved.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is a field of `Content`")]
pub struct BackupDetails {
    pub mode: Mode,
    pub name: String,
    pub ceremony_id: String,
    pub previous_sha256: String,
    pub token: TokenRecord,
    pub store_id: String,
    pub audit_key: String,
    pub threshold: u8,
}

impl Content {
    /// From what the token gave.
    pub fn new(about: BackupDetails, (keys, trial, epoch): &Moved) -> Self {
        Self {
            format: FORMAT,
            r#type: "strongroom-backup".to_owned(),
            mode: about.mode,
            name: about.name,
            ceremony_id: about.ceremony_id,
            previous_sha256: about.previous_sha256,
            token: about.token,
            store_id: about.store_id,
            audit_key: about.audit_key,
            threshold: about.threshold,
            keys: keys
                .iter()
                .map(|key| WrappedKey {
                    key: KeyRecord::new(&key.label, &key.label, key.spki.as_deref()),
                    wrapped: base64(&key.wrapped),
                })
                .collect(),
            trial: TrialRecord {
                oaep: match trial.oaep {
                    OaepHash::Sha1 => "sha1",
                    OaepHash::Sha256 => "sha256",
                }
                .to_owned(),
                wrapped: base64(&trial.wrapped),
                answer: base64(&trial.answer),
                iv: base64(&trial.iv),
                sealed: base64(&trial.sealed),
            },
            epoch: base64(&epoch.0),
        }
    }

    fn about(&self) -> BackupDetails {
        BackupDetails {
            mode: self.mode,
            name: self.name.clone(),
            ceremony_id: self.ceremony_id.clone(),
            previous_sha256: self.previous_sha256.clone(),
            token: self.token.clone(),
            store_id: self.store_id.clone(),
            audit_key: self.audit_key.clone(),
            threshold: self.threshold,
        }
    }

    /// Everything that can be seen without the custodians' secrets: that it is what its ceremony's
    /// transcript says of it, and that each value has the form that a token can take.
    ///
    /// # Errors
    /// [`CeremonyError::Backup`] with what is wrong.
    pub fn check(&self, made: &BackupDetails, keys: &[KeyRecord]) -> Result<(), CeremonyError> {
        let wrong = |what: &str| Err(CeremonyError::Backup(what.to_owned()));
        if self.about() != *made {
            return wrong(
                "it does not say what the transcript of its ceremony says: take another copy",
            );
        }
        if self.keys() != keys {
            return wrong("its keys are not those that its ceremony's transcript names");
        }
        if !["sha1", "sha256"].contains(&self.trial.oaep.as_str()) {
            return wrong("its trial is of an unknown hash");
        }
        let (moved, trial, _) = self.moved()?;
        for key in &moved {
            // RFC 5649: whole blocks of 8 bytes, and one more. Anything shorter holds no key.
            let shortest = if key.spki.is_some() { 1024 } else { 40 };
            if key.wrapped.len() % 8 != 0 || key.wrapped.len() < shortest {
                return wrong(&format!("its {} is cut", key.label));
            }
        }
        // RSA-4096; a text of 16 bytes with its tag.
        if trial.wrapped.len() != 512 || trial.answer.len() != 32 || trial.sealed.len() != 32 {
            return wrong("its trial is cut");
        }
        Ok(())
    }

    /// The keys' names, labels and public halves.
    pub fn keys(&self) -> Vec<KeyRecord> {
        self.keys.iter().map(|key| key.key.clone()).collect()
    }

    /// For the token.
    ///
    /// # Errors
    /// [`CeremonyError::Backup`] for what is not base64.
    pub fn moved(&self) -> Result<Moved, CeremonyError> {
        let bytes = |text: &str| {
            unbase64(text)
                .ok_or_else(|| CeremonyError::Backup("a value in it is not base64".to_owned()))
        };
        let keys = self
            .keys
            .iter()
            .map(|key| {
                Ok(hsm::MovedKey {
                    label: key.key.label.clone(),
                    wrapped: bytes(&key.wrapped)?,
                    spki: key.key.spki.as_deref().map(bytes).transpose()?,
                })
            })
            .collect::<Result<_, CeremonyError>>()?;
        let trial = hsm::Trial {
            wrapped: bytes(&self.trial.wrapped)?,
            oaep: match self.trial.oaep.as_str() {
                "sha1" => OaepHash::Sha1,
                "sha256" => OaepHash::Sha256,
                _ => {
                    return Err(CeremonyError::Backup(
                        "its trial is by a hash that this version does not know".to_owned(),
                    ));
                }
            },
            answer: bytes(&self.trial.answer)?,
            iv: bytes(&self.trial.iv)?
                .try_into()
                .map_err(|_| CeremonyError::Backup("its nonce has a wrong length".to_owned()))?,
            sealed: bytes(&self.trial.sealed)?,
        };
        Ok((keys, trial, hsm::Epoch(bytes(&self.epoch)?)))
    }

    /// The file, authenticated by that key.
    ///
    /// # Errors
    /// [`CeremonyError::Backup`].
    pub fn to_file(&self, authentication: &[u8]) -> Result<Vec<u8>, CeremonyError> {
        let failed = |_| CeremonyError::Backup("it can't be written".to_owned());
        let mut file = serde_json::to_vec(self).map_err(failed)?;
        let tag = Tag {
            r#type: "tag".to_owned(),
            hmac_sha256: hex(&mac(authentication, &file)?.finalize().into_bytes()),
        };
        file.push(b'\n');
        file.extend(serde_json::to_vec(&tag).map_err(failed)?);
        file.push(b'\n');
        Ok(file)
    }
}

/// A backup that was read, and perhaps is not to be believed yet.
pub struct Backup {
    /// What it says.
    pub content: Content,
    line: Vec<u8>,
    tag: [u8; 32],
}

impl Backup {
    /// Reads a file.
    ///
    /// # Errors
    /// [`CeremonyError::Backup`] if it is none.
    pub fn parse(file: &[u8]) -> Result<Self, CeremonyError> {
        let foreign = || {
            CeremonyError::Backup(
                "it is not of this format, or was cut: take another copy".to_owned(),
            )
        };
        let mut lines = file.split(|byte| *byte == b'\n');
        let (Some(line), Some(tag), Some([]), None) =
            (lines.next(), lines.next(), lines.next(), lines.next())
        else {
            return Err(foreign());
        };
        let content: Content = read(line).ok_or_else(foreign)?;
        let tag: Tag = read(tag).ok_or_else(foreign)?;
        if content.format != FORMAT || content.r#type != "strongroom-backup" || tag.r#type != "tag"
        {
            return Err(foreign());
        }
        Ok(Self {
            content,
            line: line.to_vec(),
            tag: unhex(&tag.hmac_sha256).ok_or_else(foreign)?,
        })
    }

    /// Whether the custodians' authentication key made it; in constant time.
    ///
    /// # Errors
    /// [`CeremonyError::Backup`] if not.
    pub fn authenticate(&self, authentication: &[u8]) -> Result<(), CeremonyError> {
        mac(authentication, &self.line)?
            .verify_slice(&self.tag)
            .map_err(|_| {
                CeremonyError::Backup(
                    "it was altered since it was made: take another copy".to_owned(),
                )
            })
    }
}

fn read<T: DeserializeOwned + Serialize>(line: &[u8]) -> Option<T> {
    json::read_exactly(Document::parse(line).ok()?.value()).ok()
}

fn mac(key: &[u8], message: &[u8]) -> Result<Hmac<Sha256>, CeremonyError> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key)
        .map_err(|_| CeremonyError::Backup("the authentication key is none".to_owned()))?;
    mac.update(message);
    Ok(mac)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::Value;

    fn content() -> Content {
        let token = TokenRecord {
            label: "l".into(),
            serial: "s".into(),
            manufacturer: "m".into(),
            model: "n".into(),
        };
        let about = BackupDetails {
            mode: Mode::Ceremony,
            name: "keys".into(),
            ceremony_id: "00".repeat(16),
            previous_sha256: "00".repeat(32),
            token,
            store_id: "00".repeat(16),
            audit_key: String::new(),
            threshold: 2,
        };
        let key = hsm::MovedKey {
            label: "strongroom-store".into(),
            wrapped: vec![1, 2, 3],
            spki: None,
        };
        let trial = hsm::Trial {
            wrapped: vec![4],
            oaep: OaepHash::Sha1,
            answer: vec![5],
            iv: [6; 12],
            sealed: vec![7],
        };
        Content::new(about, &(vec![key], trial, hsm::Epoch(vec![8])))
    }

    /// A trial by its form.
    fn trial() -> TrialRecord {
        TrialRecord {
            oaep: "sha1".into(),
            wrapped: base64(&[0; 512]),
            answer: base64(&[0; 32]),
            iv: base64(&[0; 12]),
            sealed: base64(&[0; 32]),
        }
    }

    #[test]
    fn what_does_not_fit_its_transcript_or_no_token_could_take_is_refused() {
        let good = Content {
            keys: vec![WrappedKey {
                key: KeyRecord::new("strongroom-store", "strongroom-store", None),
                wrapped: base64(&[0; 40]),
            }],
            trial: trial(),
            ..content()
        };
        let (about, keys) = (good.about(), good.keys());
        good.check(&about, &keys).unwrap();
        let changes: [fn(&mut Content); 16] = [
            |content| content.mode = Mode::Rehearsal,
            |content| content.name.push('x'),
            |content| content.ceremony_id.replace_range(0..1, "1"),
            |content| content.previous_sha256.replace_range(0..1, "1"),
            |content| content.token.serial.push('x'),
            |content| content.store_id.replace_range(0..1, "1"),
            |content| content.audit_key.push('x'),
            |content| content.threshold = 1,
            |content| content.keys.clear(),
            |content| content.keys[0].key.label.push('x'),
            |content| content.keys[0].wrapped = base64(&[0; 32]),
            |content| content.keys[0].wrapped = "no base64".into(),
            |content| content.trial.oaep = "md5".into(),
            |content| content.trial.wrapped = base64(&[0; 256]),
            |content| content.trial.iv = base64(&[0; 11]),
            |content| content.trial.sealed = base64(&[0; 31]),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut bad = good.clone();
            change(&mut bad);
            assert!(bad.check(&about, &keys).is_err(), "change {number}");
        }
    }

    /// Where each value stands, which is not an object and no list.
    fn leaves(value: &Value, at: &str) -> Vec<String> {
        match value {
            Value::Object(members) => members
                .iter()
                .flat_map(|(name, value)| leaves(value, &format!("{at}/{name}")))
                .collect(),
            Value::Array(list) => list
                .iter()
                .enumerate()
                .flat_map(|(place, value)| leaves(value, &format!("{at}/{place}")))
                .collect(),
            _ => vec![at.to_owned()],
        }
    }

    /// Whoever writes the file again, hash and tag and all, changes no field of it unseen: without
    /// a share, a PIN or a token.
    #[test]
    fn each_field_that_is_damaged_is_refused_before_anybody_acts() {
        let spki = base64(&[0x30; 550]);
        let good = Content {
            keys: [
                ("strongroom-master", 2400, Some(spki)),
                ("strongroom-store", 40, None),
            ]
            .into_iter()
            .map(|(label, length, spki)| WrappedKey {
                key: KeyRecord {
                    sha256: spki.as_ref().map(|_| "00".repeat(32)),
                    spki,
                    ..KeyRecord::new(label, label, None)
                },
                wrapped: base64(&vec![0; length]),
            })
            .collect(),
            trial: trial(),
            audit_key: "AAAA".into(),
            ..content()
        };
        let (about, keys) = (good.about(), good.keys());
        let taken = |value: &Value| {
            let bytes = serde_json::to_vec(value).unwrap();
            read::<Content>(&bytes).is_some_and(|read| {
                read.format == FORMAT
                    && read.r#type == good.r#type
                    && read.check(&about, &keys).is_ok()
            })
        };
        let value = serde_json::to_value(&good).unwrap();
        assert!(taken(&value));
        let places = leaves(&value, "");
        assert_eq!(places.len(), 29, "{places:?}");
        for place in places {
            let (parent, name) = place.rsplit_once('/').unwrap();
            for damage in 0..4 {
                let mut bad = value.clone();
                let field = bad.pointer_mut(&place).unwrap();
                match (damage, &mut *field) {
                    (0, Value::String(text)) => text.push('!'),
                    (0, Value::Number(_)) => *field = Value::from(77),
                    (0 | 1, Value::Null) => *field = Value::from("AAAA"),
                    (1, _) => *field = Value::Null,
                    // Which store it names is looked at when it is read from the disk.
                    (2, _) if place == "/epoch" => *field = Value::from("!"),
                    (2, _) => *field = Value::from(""),
                    _ => {
                        let parent = bad.pointer_mut(parent).unwrap();
                        parent.as_object_mut().unwrap().remove(name).unwrap();
                    }
                }
                assert!(!taken(&bad), "{place}, damage {damage}");
            }
        }
    }

    #[test]
    fn what_is_written_is_read_and_any_change_is_found() {
        let file = content().to_file(&[9; 32]).unwrap();
        let backup = Backup::parse(&file).unwrap();
        backup.authenticate(&[9; 32]).unwrap();
        backup.authenticate(&[8; 32]).unwrap_err();
        assert_eq!(
            backup.content.moved().unwrap().0[0].wrapped,
            content().moved().unwrap().0[0].wrapped
        );
        for at in 0..file.len() {
            for bit in [0, 5] {
                let mut changed = file.clone();
                changed[at] ^= 1 << bit;
                let taken =
                    Backup::parse(&changed).is_ok_and(|read| read.authenticate(&[9; 32]).is_ok());
                assert!(!taken, "bit {bit} of byte {at}");
            }
        }
        for cut in 0..file.len() {
            assert!(Backup::parse(&file[..cut]).is_err(), "{cut}");
        }
    }
}
