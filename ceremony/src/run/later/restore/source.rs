//! The backup that is restored, and what the transcript of its own ceremony says of it.

use std::path::{Path, PathBuf};

use strongroom_core::store::Store;
use strongroom_core::{files, json};

use super::super::super::chain::previous;
use super::super::super::{Ceremony, RunError, hex, sha256_hex};
use crate::backup::{self, Backup, BackupDetails};
use crate::record::{ExportOutputs, PinsRecord};
use crate::shares::Deal;
use crate::transcript::{Body, Close, Line, Open};
use crate::{CeremonyId, CustodyState, Kind, Plan, Step};

/// The backup, held against the transcript of the ceremony that made it.
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) folder: PathBuf,
    pub(super) sha256: String,
    pub(super) file: Backup,
    pub(super) deal: Deal,
    pub(super) shares: PinsRecord,
}

impl Source {
    /// Reads it and checks all that can be seen without the custodians. `chain`: the transcripts
    /// that this ceremony goes on from.
    pub(super) fn load(
        folder: &Path,
        chain: &[Vec<u8>],
        custody: &CustodyState,
    ) -> Result<Self, RunError> {
        let path = folder.join(backup::FILE);
        let bytes = files::read(&path, backup::MAX_FILE_BYTES)
            .map_err(|error| RunError::file(&path, error))?;
        let sha256 = sha256_hex(&bytes);
        let file = Backup::parse(&bytes)?;
        let unknown = || {
            RunError::refused(format!(
                "{} is of the ceremony {}, which is none of those that this one goes on from: take the backup that belongs to this appliance",
                path.display(),
                file.content.ceremony_id
            ))
        };
        let id = CeremonyId::parse(&file.content.ceremony_id).ok_or_else(unknown)?;
        let record = Record::find(chain, id).ok_or_else(unknown)?;
        if record.export.backup_sha256 != sha256 {
            return Err(RunError::refused(format!(
                "{} is not the file that its ceremony's transcript names: it was altered; take another copy",
                path.display()
            )));
        }
        let plan = Plan::parse(&record.open.plan)?;
        let summary = record.close.summary;
        let made = BackupDetails {
            mode: custody.mode,
            name: plan.name.clone(),
            ceremony_id: id.to_string(),
            previous_sha256: record.open.previous_sha256.unwrap_or_default(),
            token: summary.token,
            store_id: summary.store_id,
            audit_key: record.close.audit_key,
            threshold: plan.threshold,
        };
        file.content.check(&made, &record.export.keys)?;
        for key in file.content.keys() {
            if !custody.summary.keys.contains(&key) {
                return Err(RunError::refused(format!(
                    "the backup's {} is not the key that the previous transcript names: take the newest backup",
                    key.label
                )));
            }
        }
        let (_, _, epoch) = file.content.moved()?;
        if Store::id_in_epoch(&epoch.0).is_none_or(|id| hex(&id) != made.store_id) {
            return Err(RunError::refused(format!(
                "the epoch in {} is not one of the store {}: take another copy",
                path.display(),
                made.store_id
            )));
        }
        Ok(Self {
            deal: Deal::new(&plan, id, custody.mode),
            shares: record.shares,
            folder: folder.to_owned(),
            sha256,
            file,
            path,
        })
    }

    pub(super) fn of(ceremony: &Ceremony<'_>) -> Result<Self, RunError> {
        let folder = ceremony.work.backup()?;
        let chain = previous(&ceremony.folder)?;
        Self::load(folder, &chain, super::super::opening::custody(ceremony)?)
    }
}

/// What the transcript of a backup says.
struct Record {
    open: Open,
    shares: PinsRecord,
    export: ExportOutputs,
    close: Close,
}

impl Record {
    /// That of the ceremony with this id, among transcripts that were verified.
    fn find(chain: &[Vec<u8>], id: CeremonyId) -> Option<Self> {
        chain
            .iter()
            .filter_map(|transcript| Self::read(transcript))
            .find(|record| CeremonyId::parse(&record.open.ceremony_id) == Some(id))
    }

    /// None of a transcript that is not a backup's.
    fn read(transcript: &[u8]) -> Option<Self> {
        let (mut open, mut shares, mut export, mut close) = (None, None, None, None);
        let lines = transcript.split(|byte| *byte == b'\n');
        for line in lines.filter(|line| !line.is_empty()) {
            match Line::parse(line).ok()?.body {
                Body::Open(it) => open = Some(it),
                Body::Done(done) if done.step == Step::Transport => {
                    shares = json::read(&done.outputs).ok();
                }
                Body::Done(done) if done.step == Step::Export => {
                    export = json::read(&done.outputs).ok();
                }
                Body::Close(it) => close = Some(it),
                _ => {}
            }
        }
        let record = Self {
            open: open?,
            shares: shares?,
            export: export?,
            close: close?,
        };
        (record.open.kind == Kind::Backup.name()).then_some(record)
    }
}
