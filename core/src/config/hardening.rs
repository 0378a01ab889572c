//! The section `[hardening]`.

use std::path::PathBuf;

use super::reader::{Reader, Section};

/// The section `[hardening]`.
#[derive(Clone, Debug, Default)]
pub struct Hardening {
    /// Whom to become when started as root; none: whoever owns the store.
    pub user: Option<String>,
    /// Refuse to start where a measure can't be taken.
    pub require: bool,
    /// Forbidden system calls are logged by the kernel, and carried out.
    pub log_only: bool,
    /// Files and directories to read beside those of the configuration.
    pub read: Vec<PathBuf>,
    /// Files and directories to write.
    pub write: Vec<PathBuf>,
    /// TCP ports that the PKCS#11 module may connect to.
    pub hsm_connect: Vec<u16>,
    /// Further system calls of the PKCS#11 module.
    pub hsm_syscalls: Vec<String>,
}

/// What is not there has its default: everything is done, and what can't be done is said.
pub(super) fn read(reader: &mut Reader) -> Hardening {
    let mut section = reader.section("hardening");
    let options = Hardening {
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

    fn parse(text: &str) -> Result<Hardening, Vec<String>> {
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
