//! Whether the appliance has its keys.
//!
//! The ceremony writes the configuration before its end, and a machine may lose power at any line.
//! So a mark says that a ceremony is under way, from before its first step until its record is
//! handed out; the units of the server and of the ceremony look for both.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use strongroom_core::atomic::{self, Access};

use super::status::CONFIGURATION_FILE;
use crate::cli::exit::Failure;

/// On the state partition, beside the ceremony's directory, which only the ceremony writes to.
const UNDER_WAY: &str = "/var/lib/strongroom-ceremony-under-way";

/// A ceremony was held here to its end.
pub(super) fn is_born() -> bool {
    is_born_by(Path::new(CONFIGURATION_FILE), Path::new(UNDER_WAY))
}

fn is_born_by(configuration: &Path, mark: &Path) -> bool {
    // Seen in this order: the mark is gone only once the configuration is there to stay.
    !mark.exists() && configuration.exists()
}

/// Before the ceremony's first step, and again whenever it goes on.
pub(super) fn begin() -> Result<(), Failure> {
    set(Path::new(UNDER_WAY))
}

/// After the record is with the people and the files with the server's user.
pub(super) fn end() -> Result<(), Failure> {
    remove(Path::new(UNDER_WAY))
}

fn set(mark: &Path) -> Result<(), Failure> {
    atomic::replace(mark, b"", Access::Mode(0o600)).map_err(|error| Failure::file(mark, &error))
}

fn remove(mark: &Path) -> Result<(), Failure> {
    match fs::remove_file(mark) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| atomic::sync_folder(mark)),
    }
    .map_err(|error| Failure::file(mark, &error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_configuration_alone_is_no_birth_while_a_ceremony_is_under_way() {
        let folder = tempfile::tempdir().unwrap();
        let (configuration, mark) = (folder.path().join("toml"), folder.path().join("mark"));
        let born = || is_born_by(&configuration, &mark);
        assert!(!born());
        set(&mark).unwrap();
        fs::write(&configuration, "").unwrap();
        assert!(!born());
        // Cut off and gone on with.
        set(&mark).unwrap();
        remove(&mark).unwrap();
        assert!(born());
        remove(&mark).unwrap();
    }
}
