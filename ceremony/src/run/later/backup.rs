//! The keys that a second token needs come out, wrapped under a transport key that nobody but M
//! custodians together have.

use serde_json::json;
use strongroom_hsm::Hsm;
use strongroom_hsm::ceremony as hsm;
use zeroize::Zeroizing;

use super::super::custody::{self, Set};
use super::super::outputs::Outputs;
use super::super::{Act, Ceremony, Found, RunError, disk, pins, sha256_hex};
use crate::backup::{self, BackupDetails, Content};
use crate::record::{ExportOutputs, PinsRecord};
use crate::{Step, shares};

/// The directory of the transport key's encrypted shares.
pub(super) const SHARES: &str = "transport-shares";
/// What people call the two secrets.
pub(super) const WHAT: &str = "transport key and its companion";

pub(in crate::run) const TRANSPORT: Act = Act {
    title: "The transport key",
    what: "An AES-256 transport key, and a second key that authenticates the backup's file, are drawn from the kernel's random numbers and split as the PINs \
           are: one share for each custodian, encrypted to their key.",
    why: "The backup is worth the master key to whoever has the transport key. Nobody has it: M custodians together do, and it is never written down whole.",
    who: |_| "the machine; the custodians".to_owned(),
    actors: super::super::everyone,
    ready: "Shall the transport key be made?",
    needs_pins: false,
    inputs: |ceremony| Ok(json!({"threshold": ceremony.plan.threshold})),
    recover: |ceremony| {
        let removed = pins::remove(ceremony, SHARES)?;
        Ok(Found {
            text: format!(
                "{} shares or pages of the interrupted step were removed; their transport key wrapped nothing, and the step starts over",
                removed.len()
            ),
            data: json!({"removed": removed}),
        })
    },
    run: transport,
};

pub(in crate::run) const EXPORT: Act = Act {
    title: "Wrap the keys",
    what: "The security officer's login makes the transport key a trusted, wrap-only object in the token, for seconds and in its memory only. With the user's login each \
           key that was born movable is wrapped by it; then it is destroyed, and the backup's file is written.",
    why: "Only a trusted key can wrap them, and only both PINs together make one: the running appliance has but one of the two.",
    who: |_| "the machine; all watch".to_owned(),
    actors: super::super::everyone,
    ready: "Shall the keys be wrapped?",
    needs_pins: true,
    inputs: |ceremony| Ok(json!({"token_serial": ceremony.token_serial()?})),
    recover: |ceremony| {
        let there = ceremony.folder.join(backup::FILE).exists();
        Ok(Found {
            text: if there {
                "the backup's file is there: it is written once more"
            } else {
                "no backup was written yet; the transport key in the token went with its session"
            }
            .to_owned(),
            data: json!({"file_was_there": there}),
        })
    },
    run: export,
};

fn transport(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let key = || {
        let mut key = Zeroizing::new(vec![0; 32]);
        getrandom::fill(&mut key).map_err(|_| RunError::random())?;
        Ok::<_, RunError>(key)
    };
    let secrets = shares::Pins {
        so: key()?,
        user: key()?,
    };
    let outputs = pins::deal_out(ceremony, &secrets, SHARES)?;
    *ceremony.work.secrets()? = Some(secrets);
    Ok(outputs)
}

/// Both secrets: from memory, or by the custodians' shares.
fn secrets(ceremony: &mut Ceremony<'_>) -> Result<shares::Pins, RunError> {
    if let Some(secrets) = ceremony.work.secrets()? {
        return Ok(secrets.clone());
    }
    let record: PinsRecord = ceremony
        .journal
        .recorded(Step::Transport)?
        .ok_or_else(|| RunError::refused("the transcript holds no shares of the transport key"))?;
    let set = Set {
        what: WHAT,
        folder: ceremony.folder.join(SHARES),
        deal: ceremony.own_deal(),
        commitments: record.commitments,
        restarted: true,
    };
    let secrets = custody::collect(ceremony, set)?;
    *ceremony.work.secrets()? = Some(secrets.clone());
    Ok(secrets)
}

/// The transport key as the token takes it.
pub(super) fn transport_key(secrets: &shares::Pins) -> Result<Zeroizing<[u8; 32]>, RunError> {
    let mut key = Zeroizing::new([0; 32]);
    if secrets.so.len() != key.len() {
        return Err(RunError::refused("these shares are of no transport key"));
    }
    key.copy_from_slice(&secrets.so);
    Ok(key)
}

fn export(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let secrets = secrets(ceremony)?;
    let left_behind = left_behind(ceremony)?;
    let config = ceremony.hsm_config()?;
    let so_pin = ceremony.pins()?.so;
    let key = transport_key(&secrets)?;
    ceremony.ui.working(Some("wrapping the keys"));
    let moved = hsm::export_keys(&config, &so_pin, &key);
    ceremony.ui.working(None);
    let custody = super::opening::custody(ceremony)?;
    let about = BackupDetails {
        mode: ceremony.mode,
        name: ceremony.plan.name.clone(),
        ceremony_id: ceremony.journal.ceremony_id().to_string(),
        previous_sha256: custody.sha256.clone(),
        token: custody.summary.token.clone(),
        store_id: custody.summary.store_id.clone(),
        audit_key: custody.audit_key.clone(),
        threshold: ceremony.plan.threshold,
    };
    let content = Content::new(about, &moved?);
    for key in content.keys() {
        if !custody.summary.keys.contains(&key) {
            return Err(RunError::refused(format!(
                "the token's {} is not the key that the previous transcript names",
                key.label
            )));
        }
    }
    let file = content.to_file(&secrets.user)?;
    let path = ceremony.folder.join(backup::FILE);
    disk::write(&path, &file, 0o600)?;
    // It is needed no more: it lives in the shares alone from here on.
    *ceremony.work.secrets()? = None;
    let record = ExportOutputs {
        backup_sha256: sha256_hex(&file),
        keys: content.keys(),
    };
    ceremony.ui.say(&format!(
        "{} keys are in {}, SHA-256 {}. Keep copies of it elsewhere, with {SHARES}/, and apart from the store's.",
        record.keys.len(),
        path.display(),
        record.backup_sha256
    ))?;
    Ok(Outputs::Export {
        record,
        signing_keys_left_behind: left_behind,
    })
}

/// How many signing keys the token has, which nothing moves: said, and noted if there are any,
/// before anybody relies on the copy.
pub(super) fn left_behind(ceremony: &mut Ceremony<'_>) -> Result<usize, RunError> {
    let config = ceremony.hsm_config()?;
    let count = ceremony
        .block_on(async move { Ok(Hsm::start(config)?.signing_keys().await?) })?
        .len();
    if count > 0 {
        let text = format!(
            "{count} signing keys stay on the token: they are never extractable, so no copy has them. If the token is lost they are, and verifiers must be given new ones (docs/keys.md)"
        );
        ceremony.ui.say(&text)?;
        ceremony.note(&text, &json!({"signing_keys": count}))?;
    }
    Ok(count)
}
