//! Which system calls each group of threads may make: `filters.json`, compiled in, put together
//! here.
//!
//! A call that is not on a group's list ends the process (SIGSYS): whatever makes it is not this
//! program any more.

use std::collections::BTreeSet;

use seccompiler::{BpfProgram, TargetArch, apply_filter, compile_from_json};
use serde_json::{Map, Value, json};
use strongroom_core::config::Hardening;

use super::HardenError;

/// Lists by name, each a list of rules in seccompiler's JSON; `name@arch` has what only that
/// architecture knows.
const FILTER_LISTS: &str = include_str!("filters.json");

/// Answered `ENOSYS`, so that glibc takes the older call, whose arguments a filter can read.
const ENOSYS_FILTER: &str = r#"{"enosys": {
    "mismatch_action": "allow",
    "match_action": {"errno": 38},
    "filter": [{"syscall": "clone3"}]
}}"#;

/// A group of threads that may do the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Waits for the others to end.
    Main,
    /// The runtime's threads: network, store, audit log.
    Server,
    /// The threads that call the PKCS#11 module, and the module's own.
    Hsm,
}

impl Group {
    /// Its lists.
    fn lists(self, options: &Hardening) -> Vec<&'static str> {
        match self {
            Self::Main => vec!["all", "no_code", "terminal"],
            Self::Server => vec!["all", "no_code", "files", "local_sockets", "serving"],
            Self::Hsm => {
                let mut lists = vec![
                    "all",
                    "no_code",
                    "files",
                    "local_sockets",
                    "module",
                    "terminal",
                ];
                if !options.hsm_connect.is_empty() {
                    lists.push("network_sockets");
                }
                lists
            }
        }
    }
}

/// The compiled filters.
#[derive(Clone, Debug)]
pub struct Filters {
    enosys: BpfProgram,
    main: BpfProgram,
    server: BpfProgram,
    hsm: BpfProgram,
    /// The kernel knows no seccomp; that was reported.
    pub(super) absent: bool,
}

impl Filters {
    /// For this machine.
    ///
    /// # Errors
    /// [`HardenError::SystemCalls`] if `hsm_syscalls` names one that does not exist;
    /// [`HardenError::Filters`] on a machine for which there are none.
    pub fn new(options: &Hardening) -> Result<Self, HardenError> {
        let arch = std::env::consts::ARCH;
        Self::compile(
            options,
            arch,
            TargetArch::try_from(arch).map_err(|error| HardenError::Filters(error.to_string()))?,
        )
    }

    fn compile(options: &Hardening, arch: &str, target: TargetArch) -> Result<Self, HardenError> {
        let broken = |error: &dyn std::fmt::Display| HardenError::Filters(error.to_string());
        let lists: Map<String, Value> =
            serde_json::from_str(FILTER_LISTS).map_err(|error| broken(&error))?;
        let filter = |group: Group, more: &[String]| {
            let mut rules: Vec<Value> = group
                .lists(options)
                .into_iter()
                .flat_map(|list| [list.to_owned(), format!("{list}@{arch}")])
                .filter_map(|name| lists.get(&name)?.as_array())
                .flatten()
                .cloned()
                .collect();
            rules.extend(more.iter().map(|name| json!({"syscall": name})));
            let action = if options.log_only {
                "log"
            } else {
                "kill_process"
            };
            let filter = json!({"group": {
                "mismatch_action": action,
                "match_action": "allow",
                "filter": without_idle_conditions(rules),
            }});
            program_of(&filter.to_string(), target)
        };
        let ours = |group| filter(group, &[]).map_err(|error| broken(&error));
        let hsm = match options.hsm_syscalls.as_slice() {
            [] => ours(Group::Hsm)?,
            more => filter(Group::Hsm, more)
                .map_err(|error| HardenError::SystemCalls(error.to_string()))?,
        };
        Ok(Self {
            enosys: program_of(ENOSYS_FILTER, target).map_err(|error| broken(&error))?,
            main: ours(Group::Main)?,
            server: ours(Group::Server)?,
            hsm,
            absent: false,
        })
    }

    /// What every thread gets, put on the first one while it is alone; also shows whether the
    /// kernel knows seccomp at all.
    pub(super) fn prepare(&mut self, options: &Hardening) -> Result<String, String> {
        if let Err(error) = apply_filter(&self.enosys) {
            self.absent = true;
            return Err(format!("the kernel takes no filter: {error}"));
        }
        if options.log_only {
            return Err("hardening.seccomp = \"log\": forbidden system calls are logged by the kernel, not refused".to_owned());
        }
        Ok("a list of system calls for each group of threads".to_owned())
    }

    /// Confines the calling thread, and every thread that it starts from now on, for good.
    ///
    /// # Errors
    /// [`HardenError::Filters`]: the kernel has taken one filter before, and refuses this one.
    pub fn confine(&self, group: Group) -> Result<(), HardenError> {
        if self.absent {
            return Ok(());
        }
        let program = match group {
            Group::Main => &self.main,
            Group::Server => &self.server,
            Group::Hsm => &self.hsm,
        };
        apply_filter(program).map_err(|error| HardenError::Filters(error.to_string()))
    }
}

/// A call that one rule allows whatever its arguments needs no other rule; to seccompiler it would
/// be the conditions that count.
fn without_idle_conditions(rules: Vec<Value>) -> Vec<Value> {
    let free: BTreeSet<String> = rules
        .iter()
        .filter(|rule| rule.get("args").is_none())
        .map(|rule| rule["syscall"].to_string())
        .collect();
    let counts =
        |rule: &Value| rule.get("args").is_none() || !free.contains(&rule["syscall"].to_string());
    rules.into_iter().filter(counts).collect()
}

fn program_of(json: &str, target: TargetArch) -> Result<BpfProgram, seccompiler::Error> {
    let programs = compile_from_json(json.as_bytes(), target)?;
    // One filter in, one out.
    Ok(programs.into_values().next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_lists_compile_for_both_machines() {
        for (arch, target) in [
            ("x86_64", TargetArch::x86_64),
            ("aarch64", TargetArch::aarch64),
        ] {
            for hsm_connect in [vec![], vec![1792]] {
                let options = Hardening {
                    hsm_connect,
                    ..Hardening::default()
                };
                let filters = Filters::compile(&options, arch, target).unwrap();
                // The kernel takes 4096 instructions at most.
                for program in [&filters.main, &filters.server, &filters.hsm] {
                    assert!((50..4096).contains(&program.len()), "{}", program.len());
                }
            }
        }
    }

    #[test]
    fn every_list_is_some_groups() {
        let lists: Map<String, Value> = serde_json::from_str(FILTER_LISTS).unwrap();
        let options = Hardening {
            hsm_connect: vec![1],
            ..Hardening::default()
        };
        let used: Vec<_> = [Group::Main, Group::Server, Group::Hsm]
            .into_iter()
            .flat_map(|group| group.lists(&options))
            .collect();
        for name in lists.keys() {
            let list = name.split('@').next().unwrap();
            assert!(used.contains(&list), "{name}");
        }
        assert!(used.iter().all(|list| lists.contains_key(*list)));
    }

    #[test]
    fn a_system_call_that_does_not_exist_is_named() {
        let options = Hardening {
            hsm_syscalls: vec!["shmget".to_owned(), "frobnicate".to_owned()],
            ..Hardening::default()
        };
        let error = Filters::new(&options).unwrap_err().to_string();
        assert!(error.contains("frobnicate"), "{error}");
    }

    #[test]
    fn what_a_module_needs_more_is_allowed_whatever_its_arguments() {
        let length = |more: &[&str]| {
            let options = Hardening {
                hsm_syscalls: more.iter().map(ToString::to_string).collect(),
                ..Hardening::default()
            };
            Filters::new(&options).unwrap().hsm.len()
        };
        // `socket` is on the list with a condition, which goes.
        assert!(length(&["socket"]) < length(&[]));
        assert!(length(&["shmget"]) > length(&[]));
    }
}
