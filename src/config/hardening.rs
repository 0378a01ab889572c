//! The section `[hardening]`.

use super::reader::{Reader, Section};
use crate::serve::harden::Options;

/// What is not there has its default: everything is done, and what can't be done is said.
pub(super) fn read(reader: &mut Reader) -> Options {
    let mut section = reader.section("hardening");
    let options = Options {
        user: section.string("user"),
        require: section.boolean("require", false),
        log_only: log_only(&mut section),
        read: section.paths("read"),
        write: section.paths("write"),
        hsm_connect: section.ports("hsm_connect"),
        hsm_syscalls: section.strings("hsm_syscalls"),
    };
    reader.close(section);
    options
}

fn log_only(section: &mut Section) -> bool {
    match section.string("seccomp").as_deref() {
        None | Some("enforce") => false,
        Some("log") => true,
        Some(_) => {
            section.problem("seccomp", "expected \"enforce\" or \"log\"");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::path::Path;

    fn parse(text: &str) -> Result<Options, Vec<String>> {
        let mut reader = Reader::new(text, Path::new("/etc/strongroom/strongroom.toml")).unwrap();
        let options = read(&mut reader);
        reader.finish().map(|()| options)
    }

    #[test]
    fn what_a_module_needs_is_taken_and_what_makes_no_sense_is_named() {
        let options = parse(
            "[hardening]\nrequire = true\nseccomp = \"log\"\nread = [\"vendor\"]\nhsm_connect = [1792]\nhsm_syscalls = [\"shmget\"]\n",
        )
        .unwrap();
        assert!(options.require && options.log_only && options.user.is_none());
        assert_eq!(options.read, [Path::new("/etc/strongroom/vendor")]);
        assert_eq!(options.hsm_connect, [1792]);
        let plain = parse("").unwrap();
        assert!(!plain.require && !plain.log_only);
        let problems = parse("[hardening]\nseccomp = \"off\"\nhsm_connect = [0]\n").unwrap_err();
        assert!(
            problems
                .iter()
                .any(|problem| problem.contains("hardening.seccomp")),
            "{problems:?}"
        );
        assert!(
            problems
                .iter()
                .any(|problem| problem.contains("hardening.hsm_connect")),
            "{problems:?}"
        );
    }
}
