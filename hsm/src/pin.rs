//! PINs: in memory, and how they get there.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::config::PinSource;
use crate::error::HsmError;

/// No token takes a longer PIN; a longer file is some other file.
const MAX_PIN_FILE_BYTES: usize = 1024;

/// A PIN in memory: wiped when the last copy goes, never shown, compared in constant time.
#[derive(Clone)]
pub struct SecretPin(Arc<Zeroizing<Vec<u8>>>);

impl SecretPin {
    /// Takes the PIN over.
    pub fn new(pin: Zeroizing<Vec<u8>>) -> Self {
        Self(Arc::new(pin))
    }

    /// The PIN itself, for whoever must split or store it.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// As `C_InitToken` and `C_InitPIN` take it here.
    pub(crate) fn text(&self) -> Result<&[u8], HsmError> {
        // The error says nothing of the bytes.
        str::from_utf8(&self.0)
            .map(str::as_bytes)
            .map_err(|_| HsmError::Config("the new PIN is not UTF-8 text".to_owned()))
    }
}

impl fmt::Debug for SecretPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretPin(hidden)")
    }
}

impl PartialEq for SecretPin {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_slice().ct_eq(other.0.as_slice()).into()
    }
}

impl Eq for SecretPin {}

impl PinSource {
    /// What a start would refuse of it, and what of that can be seen outside the service: of a
    /// credential the name, of a file all.
    ///
    /// # Errors
    /// [`HsmError::Config`].
    pub fn check(&self) -> Result<(), HsmError> {
        match self {
            Self::File(path) => read_file(path).map(drop),
            Self::Credential(name) => check_name(name),
            Self::Given(_) => Ok(()),
        }
    }
}

/// The PIN, without the newline that an editor leaves at the end of a file.
pub(crate) fn read(source: &PinSource) -> Result<SecretPin, HsmError> {
    let path = match source {
        PinSource::File(path) => path.clone(),
        PinSource::Credential(name) => credential(name)?,
        PinSource::Given(pin) => return Ok(pin.clone()),
    };
    read_file(&path).map(SecretPin::new)
}

fn credential(name: &str) -> Result<PathBuf, HsmError> {
    check_name(name)?;
    // Only the directory's name comes from the environment, never the PIN.
    std::env::var_os("CREDENTIALS_DIRECTORY")
        .map(|folder| PathBuf::from(folder).join(name))
        .ok_or_else(|| {
            HsmError::Config(
                "the PIN is to come from the systemd credential that hsm.pin_credential names, but \
                 CREDENTIALS_DIRECTORY is not set: start through systemd with LoadCredential=, or \
                 name a PIN file"
                    .to_owned(),
            )
        })
}

fn check_name(name: &str) -> Result<(), HsmError> {
    if name.is_empty() || name.contains('/') || name == ".." {
        return Err(HsmError::Config(
            "hsm.pin_credential is not the name of a systemd credential: it must be a plain file name"
                .to_owned(),
        ));
    }
    Ok(())
}

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, HsmError> {
    let unreadable = |error: std::io::Error| {
        HsmError::Config(if error.kind() == std::io::ErrorKind::NotFound {
            // Not its name: whoever has written the PIN itself in its place must not see it in a
            // log.
            format!(
                "the PIN file is not there: no file in {} has the name that the configuration gives",
                path.parent().unwrap_or(Path::new("/")).display()
            )
        } else {
            format!("the PIN file {} can't be read: {error}", path.display())
        })
    };
    // What is judged is what was opened, not what the name meant before. To open a pipe may never
    // end, and this is asked again at each reconnection.
    let file = File::options()
        .read(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(path)
        .map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(HsmError::Config(format!(
            "the PIN file {} is not a regular file: put the PIN into a file that only its owner may read",
            path.display()
        )));
    }
    // A group may read (systemd's credentials are 0440 in places), nobody else may, and only the
    // owner may write.
    if metadata.permissions().mode() & 0o027 != 0 {
        return Err(HsmError::Config(format!(
            "the PIN file {0} is open to others (mode {1:04o}): run `chmod 0400 {0}`, and change the PIN if others may have read it",
            path.display(),
            metadata.permissions().mode() & 0o7777
        )));
    }
    // Room for all of it at once: a vector that grows leaves copies behind.
    let mut pin = Zeroizing::new(Vec::with_capacity(MAX_PIN_FILE_BYTES + 1));
    file.take(MAX_PIN_FILE_BYTES as u64 + 1)
        .read_to_end(&mut pin)
        .map_err(unreadable)?;
    if pin.ends_with(b"\n") {
        pin.pop();
        if pin.ends_with(b"\r") {
            pin.pop();
        }
    }
    if pin.is_empty() || pin.len() > MAX_PIN_FILE_BYTES {
        return Err(HsmError::Config(format!(
            "the PIN file {} holds no PIN: it must hold the PIN and nothing else",
            path.display()
        )));
    }
    Ok(pin)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs::{self, Permissions};
    use std::process::Command;

    fn file(mode: u32, text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pin");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    #[test]
    fn one_newline_is_dropped() {
        for text in ["12 34", "12 34\n", "12 34\r\n"] {
            let (_folder, path) = file(0o400, text);
            assert_eq!(read(&PinSource::File(path)).unwrap().expose(), b"12 34");
        }
        let (_folder, path) = file(0o440, "1234\n\n");
        assert_eq!(read(&PinSource::File(path)).unwrap().expose(), b"1234\n");
    }

    #[test]
    fn the_name_of_a_file_that_is_not_there_is_not_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hunter2");
        let error = read(&PinSource::File(path)).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
        assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        for mode in [0o444, 0o404, 0o460] {
            let (_folder, path) = file(mode, "1234");
            let error = read(&PinSource::File(path)).unwrap_err().to_string();
            assert!(error.contains("chmod 0400"), "{error}");
            assert!(!error.contains("1234"), "{error}");
        }
    }

    #[test]
    fn a_pipe_or_a_device_is_no_pin_file_and_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        for path in [pipe, "/dev/zero".into(), "/".into()] {
            let error = read(&PinSource::File(path)).unwrap_err().to_string();
            assert!(error.contains("not a regular file"), "{error}");
        }
    }

    /// A name that means a file and a pipe in turn: what was looked at is not what is opened.
    #[test]
    fn a_pipe_that_takes_the_files_place_meanwhile_is_not_waited_for() {
        let (folder, path) = file(0o400, "1234");
        let pipe = folder.path().join("pipe");
        assert!(
            Command::new("mkfifo")
                .arg(&pipe)
                .status()
                .unwrap()
                .success()
        );
        let link = folder.path().join("link");
        let (done, tries) = std::sync::mpsc::channel();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let swaps = {
            let (folder, link) = (folder.path().to_owned(), link.clone());
            std::thread::spawn(move || {
                let mut other = [&pipe, &path].into_iter().cycle();
                while tries.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                    let next = folder.join("next");
                    std::os::unix::fs::symlink(other.next().unwrap(), &next).unwrap();
                    fs::rename(next, &link).unwrap();
                }
            })
        };
        let (answer, answers) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for _ in 0..20_000 {
                let read = read(&PinSource::File(link.clone()));
                answer.send(read.map(|pin| pin.expose().to_vec())).unwrap();
            }
        });
        for _ in 0..20_000 {
            match answers
                .recv_timeout(std::time::Duration::from_secs(20))
                .unwrap()
            {
                Ok(pin) => assert_eq!(pin, b"1234"),
                Err(error) => assert!(error.to_string().contains("not a regular file"), "{error}"),
            }
        }
        done.send(()).unwrap();
        swaps.join().unwrap();
    }

    #[test]
    fn an_empty_or_huge_file_is_no_pin() {
        for text in ["", "\n", &"1".repeat(MAX_PIN_FILE_BYTES + 1)] {
            let (_folder, path) = file(0o400, text);
            assert!(read(&PinSource::File(path)).is_err());
        }
        for name in ["", "..", "a/b"] {
            assert!(read(&PinSource::Credential(name.to_owned())).is_err());
        }
    }

    #[test]
    fn a_pin_is_not_shown_and_compares_by_value() {
        let pin = |text: &str| SecretPin::new(Zeroizing::new(text.as_bytes().to_vec()));
        let given = PinSource::Given(pin("open sesame"));
        assert_eq!(format!("{given:?}"), "Given(SecretPin(hidden))");
        assert_eq!(given, PinSource::Given(pin("open sesame")));
        assert_eq!(read(&given).unwrap(), pin("open sesame"));
        for other in ["open sesamf", "open sesam", ""] {
            assert_ne!(given, PinSource::Given(pin(other)));
        }
        let not_text = SecretPin::new(Zeroizing::new(vec![0xff, 0xfe]));
        let error = not_text.text().err().unwrap().to_string();
        assert!(error.contains("UTF-8") && !error.contains("255"), "{error}");
    }
}
