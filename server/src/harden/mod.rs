//! The process gives up what it does not need, before the first byte of a client is read.
//!
//! | file | what |
//! |---|---|
//! | `memory.rs` | no core dump, no debugger, no page in the swap |
//! | `user.rs` | root's user and every capability are given up |
//! | `paths.rs`, `confinement.rs` | landlock: the few files that it needs, no port but the one it has, no signal to others |
//! | `seccomp.rs`, `filters.json` | the system calls that each group of threads may make |
//!
//! What a kernel can't do is said: in the log, to systemd, in `sys/metrics`; with
//! `hardening.require` it ends the start.

mod confinement;
mod memory;
mod paths;
mod seccomp;
mod user;

use std::path::Path;

pub use paths::Paths;
pub use seccomp::{Filters, Group};
use strongroom_core::config::Hardening;

/// Why the process was not hardened.
#[derive(Debug, thiserror::Error)]
pub enum HardenError {
    /// `hardening.hsm_syscalls` is wrong.
    #[error("hardening.hsm_syscalls: {0}: write names of system calls, as in syscalls(2)")]
    SystemCalls(String),
    /// The filters of system calls.
    #[error("the filter of system calls: {0}")]
    Filters(String),
    /// The user to become.
    #[error("hardening.user: {0}")]
    User(String),
    /// `hardening.require`, and something is missing.
    #[error("hardening.require is set, and this is missing:\n{}", .0.join("\n"))]
    Missing(Vec<String>),
}

/// What was done, and what could not be.
#[derive(Clone, Debug, Default)]
pub struct Report {
    measures: Vec<Measure>,
}

/// One measure.
#[derive(Clone, Debug)]
pub struct Measure {
    /// As in `sys/metrics`.
    pub name: &'static str,
    /// In which form it was taken, or why it was not.
    pub outcome: Result<String, String>,
}

impl Report {
    /// In the order in which they were taken.
    pub fn measures(&self) -> &[Measure] {
        &self.measures
    }

    /// The names of those that could not be taken.
    pub fn missing(&self) -> Vec<&'static str> {
        let missing = |measure: &&Measure| measure.outcome.is_err();
        self.measures
            .iter()
            .filter(missing)
            .map(|measure| measure.name)
            .collect()
    }

    fn add(&mut self, name: &'static str, outcome: Result<String, String>) {
        match &outcome {
            Ok(how) => tracing::info!(measure = name, how, "hardened"),
            Err(why) => tracing::warn!(measure = name, why, "not hardened"),
        }
        self.measures.push(Measure { name, outcome });
    }
}

/// Becomes whoever owns the store, or is going to, if this is root: for commands whose files the
/// server must be able to open afterwards.
///
/// # Errors
/// [`HardenError::User`].
pub fn become_owner(options: &Hardening, store: &Path) -> Result<(), HardenError> {
    user::become_owner(options.user.as_deref(), store).map(drop)
}

/// What a start would refuse of these settings, without hardening anything.
///
/// # Errors
/// [`HardenError::SystemCalls`], [`HardenError::Filters`], [`HardenError::User`].
pub fn check(options: &Hardening, store: &Path) -> Result<(), HardenError> {
    Filters::new(options)?;
    user::check(options.user.as_deref(), store)
}

/// Hardens the process as a whole. It must have one thread: what is given up here is each thread's
/// own, and handed down to those it starts.
///
/// # Errors
/// Settings that make no sense, a user that can't be become, and with [`Hardening::require`]
/// whatever is missing.
pub fn process(options: &Hardening, paths: &Paths) -> Result<(Report, Filters), HardenError> {
    let mut filters = Filters::new(options)?;
    let mut report = Report::default();
    // Both raise or use a limit, which only root may.
    report.add("core_dumps", memory::forbid_core_dumps());
    report.add("memory_lock", memory::lock());
    report.add(
        "user",
        user::become_owner(options.user.as_deref(), &paths.state)?,
    );
    report.add("capabilities", user::drop_capabilities());
    // A change of user makes a process dumpable or not as it likes.
    report.add("dumpable", memory::forbid_reading());
    report.add("no_new_privileges", user::forbid_new_privileges());
    report.add("landlock", confinement::confine(options, paths));
    report.add("seccomp", filters.prepare(options));
    let missing: Vec<_> = report
        .measures
        .iter()
        .filter_map(|measure| {
            Some(format!(
                "{}: {}",
                measure.name,
                measure.outcome.as_ref().err()?
            ))
        })
        .collect();
    if options.require && !missing.is_empty() {
        return Err(HardenError::Missing(missing));
    }
    Ok((report, filters))
}
