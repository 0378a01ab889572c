//! A throwaway KEK that the old master key wraps, with a ciphertext: after the move it must open
//! under the new one. It protects nothing, so all of it is in the transcript.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use strongroom_hsm::{GcmItem, Hsm, KeyUsage, MasterKind, OaepHash, TransferBlob, WrappedKey};

use super::super::super::{Ceremony, RunError, base64};
use crate::Step;
use crate::encoding::unbase64;

/// What is encrypted.
const TRIAL_PLAINTEXT: &[u8] = b"sealed under the old master key";

/// Its record in the transcript, in base64.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::run) struct SealedBefore {
    id: String,
    master: String,
    oaep: String,
    blob: String,
    transfer: String,
    transfer_blob: String,
    iv: String,
    ciphertext: String,
}

impl SealedBefore {
    /// What step `successor` recorded.
    pub(super) fn of(ceremony: &Ceremony<'_>) -> Result<Self, RunError> {
        #[derive(Deserialize)]
        struct Recorded {
            trial: SealedBefore,
        }
        let recorded: Option<Recorded> = ceremony.journal.recorded(Step::Successor)?;
        recorded.map(|recorded| recorded.trial).ok_or_else(broken)
    }
}

fn broken() -> RunError {
    RunError::refused("the transcript holds no trial of the old master key")
}

pub(super) async fn make(hsm: &Hsm) -> Result<SealedBefore, RunError> {
    let key = hsm.generate_key(KeyUsage::Aead, MasterKind::Hsm).await?;
    let mut iv = [0; 12];
    getrandom::fill(&mut iv).map_err(|_| RunError::random())?;
    let item = item(key.clone(), iv, TRIAL_PLAINTEXT);
    let ciphertext = hsm
        .encrypt(vec![item])
        .await?
        .pop()
        .ok_or_else(|| RunError::refused("the token gave no ciphertext"))??;
    let Some(transfer) = &key.transfer else {
        return Err(RunError::refused(
            "the token was made without a transfer key (`transfer = true` in the plan's [keys]), so its master key can't be replaced: the keys can only be \
             replaced by new ones, on a new token",
        ));
    };
    Ok(SealedBefore {
        id: base64(&key.id),
        master: base64(&key.master_fingerprint),
        oaep: match key.oaep {
            OaepHash::Sha1 => "sha1".to_owned(),
            OaepHash::Sha256 => "sha256".to_owned(),
        },
        blob: base64(&key.blob),
        transfer: base64(&transfer.fingerprint),
        transfer_blob: base64(&transfer.blob),
        iv: base64(&iv),
        ciphertext: base64(&ciphertext),
    })
}

/// Moves it, and opens what it sealed before.
pub(super) async fn check(hsm: &Hsm, trial: &SealedBefore) -> Result<(), RunError> {
    let bytes = |text: &str| unbase64(text).ok_or_else(broken);
    let key = WrappedKey {
        id: array(&bytes(&trial.id)?).ok_or_else(broken)?,
        usage: KeyUsage::Aead,
        master: MasterKind::Hsm,
        master_fingerprint: array(&bytes(&trial.master)?).ok_or_else(broken)?,
        oaep: match trial.oaep.as_str() {
            "sha256" => OaepHash::Sha256,
            _ => OaepHash::Sha1,
        },
        blob: bytes(&trial.blob)?,
        transfer: Some(TransferBlob {
            fingerprint: array(&bytes(&trial.transfer)?).ok_or_else(broken)?,
            blob: bytes(&trial.transfer_blob)?,
        }),
    };
    let fails = |why: &str| {
        RunError::refused(format!(
            "the trial of the new master key failed ({why}): nothing is destroyed; the old master key is still there"
        ))
    };
    let moved = hsm
        .rewrap(Arc::new(key))
        .await?
        .ok_or_else(|| fails("the old master key is still in force"))?;
    // The session object of before is the same key: without it, only the new blob can open the
    // text.
    hsm.forget(vec![moved.id]).await?;
    let iv = array(&bytes(&trial.iv)?).ok_or_else(broken)?;
    let opened = hsm
        .decrypt(vec![item(moved, iv, &bytes(&trial.ciphertext)?)])
        .await?
        .pop()
        .ok_or_else(broken)?;
    match opened {
        Ok(text) if text.as_slice() == TRIAL_PLAINTEXT => Ok(()),
        Ok(_) => Err(fails("another text came out")),
        Err(error) => Err(fails(&error.to_string())),
    }
}

fn item(key: WrappedKey, iv: [u8; 12], data: &[u8]) -> GcmItem {
    GcmItem {
        key: Arc::new(key),
        iv,
        aad: Vec::new(),
        data: data.to_vec().into(),
    }
}

fn array<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}
