//! Input and output of commands: files, and `-` for standard input and output. Never a secret in
//! argv.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use strongroom_core::atomic::{self, Access};
use strongroom_core::files as regular;
use zeroize::Zeroizing;

use super::exit::{Exit, Failure};

/// No plaintext or ciphertext that an appliance takes is larger, bytes.
const MAX_INPUT_BYTES: u64 = 32 * 1024 * 1024;

/// The whole of a file, or of standard input for `-`.
pub(super) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    content(path).map_err(|error| Failure::file(path, &error))
}

/// As [`read`], for what is to be encrypted.
pub(super) fn read_plaintext(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    content(path).map_err(|error| {
        let failure = Failure::file(path, &error);
        if error.kind() == io::ErrorKind::FileTooLarge {
            failure.next("encrypt large data with a data key: `strongroom client datakey --help`")
        } else {
            failure
        }
    })
}

fn content(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    if path == Path::new("-") {
        return regular::read_from(io::stdin().lock(), 0, MAX_INPUT_BYTES);
    }
    // It may be a pipe: somebody wrote its name on this command line.
    fs::File::open(path).and_then(|file| regular::read_opened(file, MAX_INPUT_BYTES))
}

/// As [`read`], for text; white space around it is dropped.
pub(super) fn read_text(path: &Path) -> Result<String, Failure> {
    let bytes = read(path)?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(_) => Err(Failure::new(
            Exit::Usage,
            format!("{} is not text", path.display()),
        )),
    }
}

/// Writes a secret to a file that only its owner may read, and that must not be there yet, or to
/// standard output for `-`.
pub(super) fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let written = if path == Path::new("-") {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush())
    } else {
        atomic::create(path, bytes, 0o600)
    };
    written.map_err(|error| Failure::file(path, &error))
}

/// Writes a file that must not be there yet, and that all may read.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    atomic::create(path, bytes, 0o666).map_err(|error| Failure::file(path, &error))
}

/// The whole of a file that may be as large as a store, but not without end.
pub(super) fn read_large(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    const MAX_STORE_BYTES: u64 = 4 << 30;
    regular::read(path, MAX_STORE_BYTES).map_err(|error| Failure::file(path, &error))
}

/// Fails if something is there already: asked before work that would be for nothing.
pub(super) fn check_new(path: &Path) -> Result<(), Failure> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::file(path, &error)),
        Ok(_) => Err(Failure::file(path, &io::ErrorKind::AlreadyExists.into())
            .next("name a file that is not there yet")),
    }
}

/// Writes a file that must not be there yet, for its owner only.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    atomic::create(path, bytes, 0o600).map_err(|error| Failure::file(path, &error))
}

/// Puts new content in the place of a file at once; its owner and mode stay. One that was not there
/// is this user's, 0600.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    atomic::replace(path, bytes, Access::AsBefore).map_err(|error| Failure::file(path, &error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_is_its_owners_and_overwrites_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        write_secret(&path, b"one").unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(write_secret(&path, b"two").is_err());
        assert_eq!(fs::read(&path).unwrap(), b"one");
    }

    #[test]
    fn a_whole_file_is_its_owners_overwrites_nothing_and_leaves_nothing_beside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("export");
        assert!(check_new(&path).is_ok());
        write_whole(&path, b"one").unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(check_new(&path).is_err());
        assert!(write_whole(&path, b"two").is_err());
        assert_eq!(**read_large(&path).unwrap(), *b"one");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
