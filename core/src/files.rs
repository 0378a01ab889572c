//! Files that stand in a folder where others may put what they like, or that are read again while
//! the server serves: only a regular one is opened. To open a pipe, or to read a device, may never
//! end.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::fcntl::OFlag;

/// To read, through links.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for what is no regular file; or it can't be opened.
pub fn open(path: &Path) -> io::Result<File> {
    // A device is not even opened: that may do something.
    checked(&fs::metadata(path)?)?;
    let flags = OFlag::O_NONBLOCK.bits();
    still(File::options().read(true).custom_flags(flags).open(path)?)
}

/// The text of a file, through links.
///
/// # Errors
/// As of [`open`]; or it is no UTF-8.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    io::read_to_string(open(path)?)
}

/// The file of that name itself, not what a link there leads to.
///
/// # Errors
/// As of [`open`].
pub fn open_itself(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    checked(&fs::symlink_metadata(path)?)?;
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
    still(options.custom_flags(flags.bits()).open(path)?)
}

/// The name may mean another thing by now.
fn still(file: File) -> io::Result<File> {
    checked(&file.metadata()?)?;
    Ok(file)
}

fn checked(seen: &Metadata) -> io::Result<()> {
    if seen.is_file() {
        Ok(())
    } else {
        let why = "it is no regular file: move it away, and put a file in its place";
        Err(io::Error::new(io::ErrorKind::InvalidInput, why))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;
    use crate::config::Config;
    use crate::policy::Policy;
    use crate::tokens::Tokens;

    #[test]
    fn a_pipe_in_the_place_of_a_file_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        mkfifo(&pipe, Mode::S_IRUSR).unwrap();
        let (said, hear) = mpsc::channel();
        thread::spawn(move || {
            for path in [&pipe, Path::new("/dev/zero"), Path::new("/")] {
                said.send([
                    Config::load(path).err().unwrap().to_string(),
                    Policy::load(path).err().unwrap().to_string(),
                    Tokens::load(path).err().unwrap().to_string(),
                ])
                .unwrap();
            }
        });
        for _ in 0..3 {
            for error in hear.recv_timeout(Duration::from_secs(20)).unwrap() {
                assert!(error.contains("it is no regular file"), "{error}");
            }
        }
    }
}
