//! Ceremonies of an appliance that has its keys: each goes on from the one before, whose transcript
//! its own names.
//!
//! A later ceremony is carried out by the same machine as an initial ceremony: an `Act` for each
//! step of its kind, of which `opening` is the first and `super::closing` (or one of its own) the
//! last. Between them, `Ceremony::pins` has the custodians give the PINs back,
//! `Ceremony::hsm_config` is the token at work, `Ceremony::custody` what the ceremony before left
//! (plan, shares, token, keys, store).
//! What a step `token`, `keys`, `store` or `pins` records takes the place of what was there before,
//! in the summary and for the next ceremony; `verify/link.rs` says which kind may change what.
//!
//! To add a kind: a variant of `Kind` with its steps, a `Task`, the lines in `super::acts` where a
//! step is another than elsewhere, and its facts in `verify/later.rs`.

pub(super) mod add_token;
mod at_work;
pub(super) mod backup;
pub(super) mod destroy;
pub(super) mod opening;
pub(super) mod reshare;
pub(super) mod restore;
pub(super) mod rotate;

pub(super) use rotate::SealedBefore;
pub use rotate::{NoAnswer, Progress, RunningServer, Unmovable};

use std::path::{Path, PathBuf};
use std::sync::Arc;

use strongroom_core::{files, lock};
use strongroom_hsm::KeyShape;

use super::chain::{CHAIN_DIRECTORY, previous};
use super::journal::Journal;
use super::site::Site;
use super::ui::Ui;
use super::work::Work;
use super::{Ceremony, Outcome, RunError, configuration, custody, disk};
use crate::record::LaterOpeningOutputs;
use crate::{
    Anchors, CeremonyId, CustodyState, Kind, Mode, Opening, Plan, PlanSignature, Step, transcript,
    verify,
};

/// In a directory that another ceremony goes on from: the path of that one's directory.
const FOLLOWED: &str = "followed-by";
/// In a later rehearsal's directory: the path of the first rehearsal's, which has the throwaway
/// token.
const REHEARSAL: &str = "rehearsal-of";

/// What is to be carried out, and where its record goes.
#[derive(Clone, Debug)]
pub struct LaterOptions {
    /// The directory of the ceremony that it goes on from.
    pub after: PathBuf,
    /// The ceremony's own directory.
    pub folder: PathBuf,
    /// What it is for.
    pub task: Task,
    /// Also print each custodian's share as words and a QR code, where shares are dealt.
    pub paper: bool,
    /// The PKCS#11 module of the throwaway token, after a rehearsal; `None` after a ceremony.
    pub rehearsal: Option<PathBuf>,
}

/// What a later ceremony is for.
#[derive(Clone, Debug)]
pub enum Task {
    /// New shares of the same PINs, for the custodians of a new plan.
    ReplaceCustodian {
        /// The new plan; its signatures are beside it.
        plan: PathBuf,
    },
    /// The keys that a second token needs come out.
    Backup,
    /// They come into a second token.
    AddToken,
    /// They come into another token.
    Restore {
        /// The directory of the ceremony that made the backup.
        backup: PathBuf,
    },
    /// Another master key takes the place of the one in force.
    RotateMaster {
        /// The running server; `None`: it is stopped.
        server: Option<Arc<dyn RunningServer>>,
    },
    /// The token is emptied.
    Destroy,
}

impl Task {
    fn kind(&self) -> Kind {
        match self {
            Self::ReplaceCustodian { .. } => Kind::ReplaceCustodian,
            Self::Backup => Kind::Backup,
            Self::AddToken => Kind::AddToken,
            Self::Restore { .. } => Kind::Restore,
            Self::RotateMaster { .. } => Kind::RotateMaster,
            Self::Destroy => Kind::Destroy,
        }
    }
}

/// Carries a later ceremony out, from where it stopped if it began before.
///
/// # Errors
/// [`RunError`]: what was done so far stays done, and the next run goes on from there.
pub fn run(options: &LaterOptions, ui: &mut dyn Ui) -> Result<Outcome, RunError> {
    open(options, ui)?.carry_on()
}

/// After a rehearsal: the directory of its first one, which has the throwaway token. None after a
/// ceremony.
///
/// # Errors
/// [`RunError`] if there is no transcript that can be read.
pub fn rehearsal_folder(after: &Path) -> Result<Option<PathBuf>, RunError> {
    let path = transcript::path(after);
    let bytes = transcript::read(&path).map_err(|error| RunError::file(&path, error))?;
    if verify::verify(&bytes, &Anchors::default()).mode != Some(Mode::Rehearsal) {
        return Ok(None);
    }
    let path = after.join(REHEARSAL);
    if path.exists() {
        return files::read_to_string(&path, files::MAX_WRITTEN_BY_HAND)
            .map(|text| Some(PathBuf::from(text.trim_end())))
            .map_err(|error| RunError::file(&path, error));
    }
    after
        .canonicalize()
        .map(Some)
        .map_err(|error| RunError::file(after, error))
}

/// The ceremony that the new one goes on from: checked as a stranger would, with all those before
/// it.
struct Before {
    /// All transcripts, oldest first; the last is its own.
    chain: Vec<Vec<u8>>,
    custody: CustodyState,
}

impl Before {
    fn load(after: &Path) -> Result<Self, RunError> {
        let mut chain = previous(after)?;
        let path = transcript::path(after);
        let own = transcript::read(&path).map_err(|error| RunError::file(&path, error))?;
        let anchors = Anchors {
            previous: chain.clone(),
            ..Anchors::default()
        };
        let verified = verify::verify(&own, &anchors);
        let custody = verified.custody.ok_or_else(|| {
            RunError::refused(format!(
                "the transcript {} does not verify, so nothing can go on from it:{}",
                path.display(),
                verified
                    .problems
                    .iter()
                    .fold(String::new(), |text, problem| format!("{text}\n{problem}"))
            ))
        })?;
        chain.push(own);
        if custody.kind == Kind::Destroy {
            return Err(RunError::refused(format!(
                "{} is of a ceremony that destroyed the keys: nothing can go on from it",
                path.display()
            )));
        }
        Ok(Self { chain, custody })
    }
}

fn open<'a>(options: &LaterOptions, ui: &'a mut dyn Ui) -> Result<Ceremony<'a>, RunError> {
    let before = Before::load(&options.after)?;
    let kind = options.task.kind();
    let (plan, signatures) = plan(&options.task, &before.custody)?;
    if matches!(kind, Kind::Backup | Kind::AddToken | Kind::Restore) && !plan.keys.backup {
        return Err(RunError::refused(
            "the plan decided in the keys' initial ceremony that there is no backup ([keys] backup = false): they can't leave their token, and nothing can change that now",
        ));
    }
    let mode = before.custody.mode;
    if options.rehearsal.is_some() != (mode == Mode::Rehearsal) {
        return Err(RunError::refused(
            "what follows a rehearsal is one too, and nothing else is",
        ));
    }
    let canonical = |path: &Path| {
        path.canonicalize()
            .map_err(|error| RunError::file(path, error))
    };
    let backup = match &options.task {
        Task::Restore { backup } => Some(canonical(backup)?),
        _ => None,
    };
    if let Some(backup) = &backup {
        restore::check(backup, &before.chain, &before.custody)?;
    }
    disk::make_folder(&options.folder)?;
    let (folder, after) = (canonical(&options.folder)?, canonical(&options.after)?);
    let mut site = match &options.rehearsal {
        Some(module) => {
            let first = rehearsal_folder(&after)?.unwrap_or_else(|| after.clone());
            let path = first.display().to_string();
            disk::write(&folder.join(REHEARSAL), path.as_bytes(), 0o600)?;
            Site::rehearsal(&plan, &first, module.clone())
        }
        None => Site::planned(&plan),
    };
    // The plan names the first one; what is initialised later is another.
    site.serial = None;
    if backup.is_some() {
        configuration::check(&site, KeyShape::Moved)?;
    }
    let (journal, custody) = if transcript::path(&folder).exists() {
        let journal = resume(&folder, kind, &plan, &before.custody)?;
        let begun: Option<LaterOpeningOutputs> = journal.recorded(Step::Opening)?;
        let custody = match begun {
            // Once a ceremony has begun with one token, it goes on with that one.
            Some(opening) => at_work::held_with(&before.custody, &opening.token_serial)?,
            None => at_work::at_work(&site, kind, &before.custody)?,
        };
        (journal, custody)
    } else {
        let custody = at_work::at_work(&site, kind, &before.custody)?;
        follow(&after, &folder)?;
        copy(&before, &after, &folder)?;
        let binary = super::program_sha256()?;
        let opening = Opening {
            mode,
            kind,
            previous_sha256: Some(&before.custody.sha256),
            ceremony_id: CeremonyId::random()?,
            plan: &plan,
            signatures: &signatures,
            version: env!("CARGO_PKG_VERSION"),
            binary_sha256: &binary,
        };
        (Journal::create(&folder, &opening)?, custody)
    };
    Ok(Ceremony {
        kind,
        runtime: super::opening::runtime()?,
        plan,
        mode,
        custody: Some(custody),
        folder,
        site,
        paper: options.paper,
        journal,
        ui,
        step: Step::Opening,
        pins: None,
        work: Work::of(&options.task, backup),
    })
}

/// The plan in force, or the one that takes its place.
fn plan(task: &Task, before: &CustodyState) -> Result<(Plan, Vec<PlanSignature>), RunError> {
    let Task::ReplaceCustodian { plan: path } = task else {
        return Ok((before.plan.clone(), before.signatures.clone()));
    };
    let plan = Plan::load(path)?;
    let signatures = PlanSignature::load_all(path)?;
    plan.check_signatures(&signatures)?;
    let problems = plan.revision_problems(&before.plan);
    if problems.is_empty() {
        Ok((plan, signatures))
    } else {
        Err(crate::CeremonyError::Plan(problems).into())
    }
}

fn resume(
    folder: &Path,
    kind: Kind,
    plan: &Plan,
    before: &CustodyState,
) -> Result<Journal, RunError> {
    let (journal, history) = Journal::resume(folder)?;
    Journal::check_plan(&history.plan, plan)?;
    if history.kind != kind {
        return Err(RunError::refused(format!(
            "the directory holds a ceremony of kind {}: go on with its own command, or name another directory with --dir",
            history.kind
        )));
    }
    if history.previous_sha256.as_ref() != Some(&before.sha256) {
        return Err(RunError::refused(
            "the ceremony in this directory goes on from another transcript than that of --after: name the directory that it began with",
        ));
    }
    Ok(journal)
}

/// Two ceremonies must not go on from one: what the second would rest on is not so any more.
fn follow(after: &Path, folder: &Path) -> Result<(), RunError> {
    // Of two that begin at once, one comes after the other.
    let own = transcript::path(after);
    let held = files::open(&own).map_err(|error| RunError::file(&own, error))?;
    lock::take(&held).map_err(|error| RunError::file(&own, error.into()))?;
    let path = after.join(FOLLOWED);
    let follower = match files::read_to_string(&path, files::MAX_WRITTEN_BY_HAND) {
        Ok(text) => PathBuf::from(text.trim_end()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let own = folder.display().to_string();
            return disk::write(&path, own.as_bytes(), 0o600);
        }
        Err(error) => return Err(RunError::file(&path, error)),
    };
    if follower == folder {
        return Ok(());
    }
    Err(RunError::refused(format!(
        "another ceremony goes on from {} already, in {}: name that directory with --after, or finish what was begun there; if nothing ever came of it, remove {}",
        after.display(),
        follower.display(),
        path.display()
    )))
}

/// The transcripts so far and the shares in force, so that the new directory is all that the next
/// ceremony, or a stranger, needs.
fn copy(before: &Before, after: &Path, folder: &Path) -> Result<(), RunError> {
    disk::make_folder(&folder.join(CHAIN_DIRECTORY))?;
    for (number, transcript) in before.chain.iter().enumerate() {
        let path = folder
            .join(CHAIN_DIRECTORY)
            .join(format!("{:04}.jsonl", number + 1));
        disk::write(&path, transcript, 0o600)?;
    }
    let custody = &before.custody;
    let dealt = custody.shares.ceremony_id == custody.ceremony_id.to_string();
    let from = after.join(if dealt {
        custody::SHARES_DIRECTORY
    } else {
        custody::PREVIOUS_SHARES_DIRECTORY
    });
    let to = folder.join(custody::PREVIOUS_SHARES_DIRECTORY);
    disk::make_folder(&to)?;
    for custodian in &custody.plan.custodians {
        let name = custody::name(custodian);
        // One that is not there any more is asked for when it is needed; its custodian may have it
        // on paper.
        if let Ok(share) = files::read(&from.join(&name), files::MAX_WRITTEN_BY_HAND) {
            disk::write(&to.join(&name), &share, 0o600)?;
        }
    }
    Ok(())
}
