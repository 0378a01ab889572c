//! The sealed store and the audit log are born.

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::Path;

use serde_json::{Value, json};
use strongroom_core::audit::{Audit, AuditOptions, Entry};
use strongroom_core::files;
use strongroom_core::owner::acting;
use strongroom_core::store::{Store, StoreError, StoreStatus};
use strongroom_hsm::Hsm;

use super::outputs::Outputs;
use super::{Act, Ceremony, Found, RunError, disk, hex};

pub(super) const ACT: Act = Act {
    title: "Create the store",
    what: "An empty sealed store is made, and its epoch is written into the token; the audit log gets its first line, signed by the token.",
    why: "From here on the token knows its one true store, and refuses an altered or an older one.",
    who: |_| "the machine; all watch".to_owned(),
    actors: super::everyone,
    ready: "Shall the store be made?",
    needs_pins: true,
    inputs,
    recover,
    run,
};

pub(super) fn inputs(ceremony: &mut Ceremony<'_>) -> Result<Value, RunError> {
    Ok(json!({
        "token_serial": ceremony.token_serial()?,
        "store": ceremony.site.store(),
        "audit_log": ceremony.site.audit_log(),
    }))
}

/// Looks only: the store itself knows how to go on after a power cut, on the disk as in the token.
fn recover(ceremony: &mut Ceremony<'_>) -> Result<Found, RunError> {
    let config = ceremony.hsm_config()?;
    let epoch = ceremony.block_on(async move {
        let hsm = Hsm::start(config)?;
        Ok(hsm.read_epoch().await?)
    })?;
    let on_disc = ceremony.site.store().exists();
    let text = match (epoch.is_empty(), on_disc) {
        (true, false) => "the store was not made yet: the step starts over",
        (true, true) => {
            "the store's directory is there, and the token knows of no store yet: the step continues with it"
        }
        (false, _) => {
            "the store was made, on the disk and in the token: the step continues with it"
        }
    };
    Ok(Found {
        text: text.to_owned(),
        data: json!({"on_disc": on_disc, "in_token": !epoch.is_empty()}),
    })
}

fn run(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let config = ceremony.hsm_config()?;
    let (path, audit) = (ceremony.site.store(), ceremony.site.audit_log());
    disk::make_folder(&ceremony.site.state)?;
    let mode = ceremony.mode;
    ceremony
        .ui
        .working(Some("making the store and the audit log"));
    let options = AuditOptions {
        path: audit.clone(),
        checkpoint_lines: 1000,
        checkpoint_interval: std::time::Duration::from_secs(10),
    };
    let born = ceremony.block_on(async move {
        let hsm = Hsm::start(config)?;
        let log = Audit::open(options, hsm.clone()).await?;
        let mut entry = Entry {
            identity: "ceremony",
            operation: "ceremony:store",
            reason: mode.name(),
            ..Entry::default()
        };
        entry.intent = log.begin(&entry).await?;
        // The opening saw to it that nothing was there before: a store that is there now was made
        // by this ceremony before a power cut.
        let store = match Store::create(&path, hsm.clone()).await {
            Err(StoreError::Exists(_) | StoreError::TokenInUse { .. }) => {
                Store::open(&path, hsm).await?
            }
            created => created?,
        };
        let status = store.status();
        // What fails before this leaves a change whose outcome is not known: the next attempt says
        // so.
        if status.epoch != 1 || status.records != 0 {
            return Err(RunError::refused(format!(
                "{} is a store that was used already (epoch {}): name another directory in the plan",
                path.display(),
                status.epoch
            )));
        }
        log.record(&Entry {
            outcome: "ok",
            ..entry
        })?;
        log.close().await?;
        Ok(status)
    });
    ceremony.ui.working(None);
    let StoreStatus {
        store_id, epoch, ..
    } = born?;
    let first = acting(&audit, || first_line(&audit))
        .flatten()
        .map_err(|error| RunError::file(&audit, error))?;
    ceremony
        .ui
        .say(&format!("The store {} is born.", hex(&store_id)))?;
    Ok(Outputs::Store {
        store_id: hex(&store_id),
        epoch,
        audit_log_header_sha256: first,
    })
}

/// The hash of the audit log's header, which names the log for good.
fn first_line(log: &Path) -> io::Result<String> {
    let mut line = Vec::new();
    BufReader::new(files::open(log)?.take(files::MAX_WRITTEN_BY_HAND))
        .read_until(b'\n', &mut line)?;
    Ok(super::sha256_hex(line.strip_suffix(b"\n").unwrap_or(&line)))
}
