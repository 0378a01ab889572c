//! A backup's keys come into another token, which takes the place of the one that is lost.

mod source;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use strongroom_core::atomic;
use strongroom_core::audit::{Audit, AuditError, AuditOptions, Entry};
use strongroom_core::owner::acting;
use strongroom_core::store::{Store, copied_epoch};
use strongroom_hsm::ceremony::{self as hsm, KeySet};
use strongroom_hsm::{Hsm, HsmConfig};

use super::super::custody::{self, Set};
use super::super::outputs::Outputs;
use super::super::{
    Act, Ceremony, Found, RunError, base64, configuration, disk, hex, key_records,
    security_officer, sha256_hex, token,
};
use super::backup::{SHARES, WHAT, transport_key};
use crate::record::{KeysOutputs, RestoreOutputs};
use crate::{CustodyState, shares};

use self::source::Source;

/// New PINs: the old token's may be known to whoever has it now. Before anything is made, the
/// backup must prove that it is whole.
pub(in crate::run) const PINS: Act = Act {
    title: "Open the backup, share new PINs",
    what: "Custodians of the backup give its two secrets back, and the file is authenticated with one of them: it is read and checked whole while nothing is made. Then \
           the new token gets PINs of its own: drawn from the kernel's random numbers, split, and each custodian's share encrypted to their key, before any token \
           knows a PIN.",
    ready: "Shall the backup be opened, and the PINs be made?",
    run: pins,
    ..super::super::pins::ACT
};

/// As at an initial ceremony.
pub(in crate::run) const TOKEN: Act = Act {
    ready: "Is a token of the same kind, not initialised, in its place, and is the old one taken out?",
    ..token::ACT
};

pub(in crate::run) const KEYS: Act = Act {
    title: "Unwrap the keys",
    what: "The transport key, which custodians gave back, becomes an unwrap-only object in the token, for seconds; each key of the backup is unwrapped with the \
           attributes it was born with, tried against what the old token sealed, and the transport key is destroyed. Audit key and import key are new.",
    why: "The keys pass from token to token without ever being readable. Each token signs with an audit key of its own, so that its log says where it was made.",
    who: |_| "custodians of the backup, each with their key; the machine".to_owned(),
    actors: super::super::everyone,
    ready: "Shall the keys be unwrapped?",
    needs_pins: true,
    inputs: |ceremony| {
        let backup = Source::of(ceremony)?;
        Ok(json!({
            "token_serial": ceremony.token_serial()?,
            "backup": backup.path,
            "backup_sha256": backup.sha256,
            "backup_ceremony": backup.file.content.ceremony_id,
        }))
    },
    recover,
    run: keys,
};

pub(in crate::run) const STORE: Act = Act {
    title: "Bind the store",
    what: "The copy of the store is verified record by record with the store key, and bound to the new token with a new epoch. The old audit log is kept aside, \
           since its key stayed with the old token; a new one begins.",
    why: "From here on this token knows this copy of the store, and refuses any other. Whatever was written after the copy was made is lost.",
    who: |ceremony| {
        format!(
            "{} (security officer) puts the newest copy of the store in its place",
            ceremony.plan.security_officer.name()
        )
    },
    actors: security_officer,
    ready: "Is the newest copy of the store in its place?",
    needs_pins: true,
    inputs: super::super::store::inputs,
    recover: |_| {
        Ok(Found {
            text: "the store is verified and bound once more: that loses nothing".to_owned(),
            data: Value::Null,
        })
    },
    run: store,
};

pub(in crate::run) const IDENTITY: Act = Act {
    title: "The appliance's configuration",
    what: "Section [hsm] of the configuration is changed for the new token; every other setting stays. A copy of it as it was is kept beside it. Certificates, CRLs and \
           policy stay as they are.",
    why: "The appliance must find the new token, and demand of its keys what the plan decided.",
    who: |_| "the machine; all watch".to_owned(),
    actors: super::super::everyone,
    ready: "Is the old configuration in its place, if there is one?",
    needs_pins: false,
    inputs: |ceremony| Ok(json!({"file": ceremony.site.configuration()})),
    recover: |_| {
        Ok(Found {
            text: "the configuration is looked at once more".to_owned(),
            data: Value::Null,
        })
    },
    run: configure,
};

/// Reads the backup and holds it against the transcripts, before anything is made, on every run:
/// what can't be restored is said at once.
pub(super) fn check(
    folder: &Path,
    chain: &[Vec<u8>],
    custody: &CustodyState,
) -> Result<(), RunError> {
    Source::load(folder, chain, custody).map(|_| ())
}

/// Its two secrets: from memory, or by the custodians' shares. The file is authenticated by one of
/// them.
fn secrets(ceremony: &mut Ceremony<'_>, source: &Source) -> Result<shares::Pins, RunError> {
    if let Some(secrets) = ceremony.work.secrets()? {
        return Ok(secrets.clone());
    }
    let set = Set {
        what: WHAT,
        folder: source.folder.join(SHARES),
        deal: source.deal.clone(),
        commitments: source.shares.commitments.clone(),
        restarted: false,
    };
    let secrets = custody::collect(ceremony, set)?;
    source.file.authenticate(&secrets.user)?;
    transport_key(&secrets)?;
    *ceremony.work.secrets()? = Some(secrets.clone());
    Ok(secrets)
}

fn pins(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let source = Source::of(ceremony)?;
    secrets(ceremony, &source)?;
    ceremony.ui.say(&format!(
        "The backup is whole: SHA-256 {}, authenticated by its custodians.",
        source.sha256
    ))?;
    (super::super::pins::ACT.run)(ceremony)
}

/// What no store depends on yet is cleared. The epoch is written last: where it is there, all is.
fn recover(ceremony: &mut Ceremony<'_>) -> Result<Found, RunError> {
    let config = ceremony.hsm_config()?;
    clear(&config)
}

/// The same for any token that keys are being moved to.
pub(super) fn clear(config: &HsmConfig) -> Result<Found, RunError> {
    let (text, destroyed) = match hsm::evidence(config)?.keys {
        KeySet::None => ("no key was unwrapped yet: the step starts over", Vec::new()),
        KeySet::InUse => (
            "every key was unwrapped and tried: the step continues with them",
            Vec::new(),
        ),
        _ => (
            "objects of the interrupted step were destroyed; nothing depended on them, and the step starts over",
            hsm::discard_unused_keys(config)?,
        ),
    };
    Ok(Found {
        text: text.to_owned(),
        data: json!({"destroyed": destroyed}),
    })
}

fn keys(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let source = Source::of(ceremony)?;
    let custody = super::opening::custody(ceremony)?.clone();
    let config = ceremony.hsm_config()?;
    if hsm::evidence(&config)?.keys != KeySet::InUse {
        let secrets = secrets(ceremony, &source)?;
        let transport = transport_key(&secrets)?;
        let (moved, trial, epoch) = source.file.content.moved()?;
        let epoch = hsm::Epoch(copied_epoch(&epoch.0));
        let ui = &mut *ceremony.ui;
        let result = hsm::import_keys(&config, &transport, &moved, &trial, &epoch, &mut |what| {
            ui.working(Some(what));
        });
        ui.working(None);
        result?;
    }
    *ceremony.work.secrets()? = None;
    let evidence = hsm::evidence(&config)?;
    let record = KeysOutputs {
        keys: key_records(&evidence),
    };
    let new_audit_key =
        ceremony.block_on(async move { Ok(Hsm::start(config)?.signing_public_key()) })?;
    for key in &record.keys {
        let hash = key
            .sha256
            .as_deref()
            .unwrap_or("a secret key, no public half");
        let came = if custody.summary.keys.contains(key) {
            "as before"
        } else {
            "new"
        };
        ceremony.ui.say(&format!("{} ({came}): {hash}", key.name))?;
    }
    let backup = source.file.content;
    Ok(Outputs::RestoredKeys {
        record,
        restored: RestoreOutputs {
            backup_sha256: source.sha256,
            old_audit_key: custody.audit_key,
            new_audit_key: base64(&new_audit_key),
        },
        backup_ceremony: backup.ceremony_id,
        backup_token: backup.token,
    })
}

fn store(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let (path, log) = (ceremony.site.store(), ceremony.site.audit_log());
    if !path.exists() {
        return Err(RunError::Waiting {
            what: format!("the store is not in {}", path.display()),
            next: "put the newest copy of the store there, and run the same command again"
                .to_owned(),
        });
    }
    let custody = super::opening::custody(ceremony)?.clone();
    let config = ceremony.hsm_config()?;
    let aside = aside(&log, &sha256_hex(&custody.audit_key()));
    let options = AuditOptions {
        path: log.clone(),
        checkpoint_lines: 1000,
        checkpoint_interval: Duration::from_secs(10),
    };
    let mode = ceremony.mode;
    ceremony.ui.working(Some("verifying and binding the store"));
    let bound = ceremony.block_on(async move {
        let hsm = Hsm::start(config)?;
        // A log of the old token's is whole as it is, and verifies with the old key.
        let log = match Audit::open(options.clone(), hsm.clone()).await {
            Err(AuditError::Continue { .. }) if !aside.exists() => {
                acting(&log, || {
                    fs::rename(&log, &aside)?;
                    atomic::sync_folder(&log)
                })
                .flatten()
                .map_err(|error| RunError::file(&log, error))?;
                Audit::open(options, hsm.clone()).await?
            }
            opened => opened?,
        };
        let mut entry = Entry {
            identity: "ceremony",
            operation: "ceremony:restore",
            reason: mode.name(),
            ..Entry::default()
        };
        entry.intent = log.begin(&entry).await?;
        let accepted = Store::accept_rollback(&path, hsm.clone()).await?;
        let status = Store::open(&path, hsm).await?.status();
        log.record(&Entry {
            outcome: "ok",
            ..entry
        })?;
        log.close().await?;
        Ok((accepted, status))
    });
    ceremony.ui.working(None);
    let (accepted, status) = bound?;
    if accepted.store_epoch < accepted.hsm_epoch {
        let text = format!(
            "this copy of the store (epoch {}) is OLDER than the backup (epoch {}): what was written between them is lost, unless a newer copy is found",
            accepted.store_epoch, accepted.hsm_epoch
        );
        ceremony.ui.say(&text)?;
        ceremony.note(&text, &Value::Null)?;
    }
    ceremony.ui.say(&format!(
        "The store {} has {} records and is bound to this token, epoch {}.",
        hex(&status.store_id),
        status.records,
        status.epoch
    ))?;
    Ok(Outputs::RestoredStore {
        store_id: hex(&status.store_id),
        records: status.records,
        backup_epoch: accepted.hsm_epoch,
        store_epoch: accepted.store_epoch,
        epoch: status.epoch,
    })
}

fn aside(log: &Path, old_key: &str) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(format!(".{}", old_key.get(..16).unwrap_or_default()));
    name.into()
}

fn configure(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let path = ceremony.site.configuration();
    let serial = ceremony.token_serial()?;
    disk::make_folder(&ceremony.site.folder)?;
    let text = match configuration::read(&ceremony.site)? {
        Some(old) => {
            let new = configuration::for_token(&ceremony.site, &old, &serial, ceremony.shape())?;
            keep(ceremony, &old)?;
            ceremony.ui.say(&format!(
                "{} is for the token {serial} now: section [hsm]. Every other setting is as it was.",
                path.display()
            ))?;
            new
        }
        None => new_one(ceremony, &serial)?,
    };
    disk::write(&path, text.as_bytes(), 0o640)?;
    let config = configuration::parse(&text, &path)?;
    let key = if configuration::has_sealed_tls_key(&text, &path)? {
        ceremony.site.sealed_tls_key()
    } else {
        config.tls.private_key
    };
    let authorities = config.tls.client_cas.into_iter().map(|ca| ca.file);
    let missing: Vec<_> = [key, config.tls.certificate, config.policy]
        .into_iter()
        .chain(authorities)
        .chain(config.tls.crls)
        .chain(config.tokens)
        .filter(|file| !file.exists())
        .collect();
    for file in &missing {
        ceremony.ui.say(&format!(
            "{} is not there: put it there before the service starts.",
            file.display()
        ))?;
    }
    Ok(Outputs::RestoredIdentity {
        configuration_sha256: sha256_hex(text.as_bytes()),
        missing,
    })
}

/// What the ceremony found, beside it: under a name of its own, so that no later one writes over
/// it.
fn keep(ceremony: &mut Ceremony<'_>, old: &str) -> Result<(), RunError> {
    let mut kept = ceremony.site.configuration().into_os_string();
    let id = ceremony.journal.ceremony_id().to_string();
    kept.push(format!(".before-{}", id.get(..8).unwrap_or(&id)));
    let kept = PathBuf::from(kept);
    if !kept.exists() {
        disk::write(&kept, old.as_bytes(), 0o640)?;
    }
    ceremony
        .ui
        .say(&format!("As it was before, it is {}.", kept.display()))?;
    Ok(())
}

/// On a machine that has none: not without a word about what it lacks.
fn new_one(ceremony: &mut Ceremony<'_>, serial: &str) -> Result<String, RunError> {
    let path = ceremony.site.configuration();
    let text = format!(
        "{} is not there. A new one has none of the old one's settings: without its `crls` clients that were revoked are let in, and without its `[tokens]` no token is \
         known. If a copy of the old one is anywhere, stop here, put it there, and run the same command again",
        path.display()
    );
    ceremony
        .ui
        .confirm(&format!("{text}. Shall a new one be written?"))?;
    ceremony.note(&text, &Value::Null)?;
    // Sealed by the first ceremony on this machine; on another one the plain key is put there by
    // hand.
    let tls_key_is_sealed =
        !ceremony.site.tls_key().exists() && ceremony.site.sealed_tls_key().exists();
    Ok(ceremony
        .site
        .toml(serial, ceremony.shape(), tls_key_is_sealed))
}
