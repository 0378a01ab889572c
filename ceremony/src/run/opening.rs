//! The plan, its signatures, this very program, and who is in the room.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::journal::Journal;
use super::outputs::Outputs;
use super::site::Site;
use super::ui::Ui;
use super::work::Work;
use super::{Act, Ceremony, Found, Options, RunError, disk, hex, runtime_pin};
use crate::record::PresentRecord;
use crate::{CeremonyId, Kind, Mode, Opening, Plan, PlanSignature, Step, transcript};

pub(super) const ACT: Act = Act {
    title: "Opening",
    what: "The plan's hash is read aloud and compared with everyone's copy. The plan's signatures and this program's hash were checked just now. \
           Then the roll is called.",
    why: "Everyone must know that this is the plan they signed, carried out by the program that it names.",
    who: |ceremony| {
        format!(
            "{} (security officer) reads; all compare",
            ceremony.plan.security_officer.name()
        )
    },
    actors: super::everyone,
    ready: "Is this the plan that everyone signed, and is everyone here?",
    needs_pins: false,
    inputs: |ceremony| Ok(json!({"plan": ceremony.plan.hash_hex()})),
    recover: |_| {
        Ok(Found {
            text: "the roll is called once more".to_owned(),
            data: Value::Null,
        })
    },
    run,
};

/// Opens the transcript of this plan, or begins one when everything that can be checked beforehand
/// is right.
pub(super) fn open<'a>(options: &Options, ui: &'a mut dyn Ui) -> Result<Ceremony<'a>, RunError> {
    let plan = Plan::load(&options.plan)?;
    let signatures = PlanSignature::load_all(&options.plan)?;
    plan.check_signatures(&signatures)?;
    let binary = program_sha256()?;
    if binary != plan.software.binary_sha256 {
        return Err(RunError::refused(format!(
            "this program is not the one that the plan names: its SHA-256 is {binary}, the plan says {}; use the right program, or have a new plan signed",
            plan.software.binary_sha256
        )));
    }
    disk::make_folder(&options.folder)?;
    let folder = options
        .folder
        .canonicalize()
        .map_err(|error| RunError::file(&options.folder, error))?;
    let (mode, site) = match &options.rehearsal {
        Some(module) => (
            Mode::Rehearsal,
            Site::rehearsal(&plan, &folder, module.clone()),
        ),
        None => (Mode::Ceremony, Site::planned(&plan)),
    };
    let journal = journal(&plan, &signatures, mode, &site, &folder, &binary)?;
    Ok(Ceremony {
        kind: Kind::Birth,
        runtime: runtime()?,
        plan,
        mode,
        custody: None,
        folder,
        site,
        paper: options.paper,
        journal,
        ui,
        step: Step::Opening,
        pins: None,
        work: Work::Plain,
    })
}

pub(super) fn runtime() -> Result<tokio::runtime::Runtime, RunError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| RunError::refused(format!("the async runtime can't start: {error}")))
}

fn journal(
    plan: &Plan,
    signatures: &[PlanSignature],
    mode: Mode,
    site: &Site,
    folder: &Path,
    binary: &str,
) -> Result<Journal, RunError> {
    if transcript::path(folder).exists() {
        let (journal, history) = Journal::resume(folder)?;
        if history.kind != Kind::Birth {
            return Err(RunError::refused(format!(
                "the directory holds a ceremony of kind {}: go on with its own command, or name another directory with --dir",
                history.kind
            )));
        }
        Journal::check_plan(&history.plan, plan)?;
        if history.mode != mode {
            return Err(RunError::refused(format!(
                "the directory holds a {}: name another one with --dir",
                history.mode
            )));
        }
        return Ok(journal);
    }
    let in_the_way = site.in_the_way();
    if !in_the_way.is_empty() {
        let names: Vec<_> = in_the_way
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        return Err(RunError::refused(format!(
            "there is an appliance already, or what is left of one: {}; a ceremony writes over nothing, so move it away, or name other directories in the plan",
            names.join(", ")
        )));
    }
    runtime_pin::check_available(site.pin_place).map_err(RunError::Refused)?;
    let opening = Opening {
        mode,
        kind: Kind::Birth,
        previous_sha256: None,
        ceremony_id: CeremonyId::random()?,
        plan,
        signatures,
        version: env!("CARGO_PKG_VERSION"),
        binary_sha256: binary,
    };
    Journal::create(folder, &opening)
}

fn run(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    ceremony.ui.say(&format!(
        "Plan SHA-256: {}",
        grouped(&ceremony.plan.hash_hex())
    ))?;
    ceremony.ui.say(&format!(
        "Program SHA-256: {}",
        grouped(&ceremony.plan.software.binary_sha256)
    ))?;
    ceremony.ui.say(&format!(
        "{} of {} custodians give the PINs back. The roll:",
        ceremony.plan.threshold,
        ceremony.plan.custodians.len()
    ))?;
    let mut present = Vec::new();
    for (role, name, fingerprint) in ceremony.roll() {
        ceremony.ui.confirm(&format!(
            "{name}, {role}, key {}: here?",
            &fingerprint[..16]
        ))?;
        present.push(PresentRecord {
            name,
            role: role.name().to_owned(),
            key: fingerprint,
        });
    }
    Ok(Outputs::Opening {
        plan_sha256: ceremony.plan.hash_hex(),
        binary_sha256: ceremony.plan.software.binary_sha256.clone(),
        version: env!("CARGO_PKG_VERSION"),
        present,
    })
}

/// As it is read aloud: groups of eight.
pub(super) fn grouped(text: &str) -> String {
    text.as_bytes()
        .chunks(8)
        .map(String::from_utf8_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// SHA-256 of the program that runs, whatever has become of its file: what a plan must name.
///
/// # Errors
/// [`RunError::File`].
pub fn program_sha256() -> Result<String, RunError> {
    let path = Path::new("/proc/self/exe");
    let fail = |error| RunError::file(path, error);
    let mut file = fs::File::open(path).map_err(fail)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = std::io::Read::read(&mut file, &mut buffer).map_err(fail)?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
    }
}
