//! Files that stand in a directory where others may put what they like, or that are read again
//! while the server serves: only a regular one is opened, and no more of it is read than a file of
//! its kind can need. To open a pipe, or to read a device, may never end; a file of many GiB, which
//! may be one hole, would take the memory.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::fcntl::OFlag;
use zeroize::{Zeroize as _, Zeroizing};

/// A file that people write by hand, bytes: a configuration, a plan, a key file.
pub const MAX_WRITTEN_BY_HAND: u64 = 1 << 20;
/// A file that may list every client and every key, bytes: the policy, the tokens.
pub const MAX_GENERATED_LIST: u64 = 16 << 20;
/// Certificates and CRLs, bytes: a public CA's full CRL has some MiB.
pub const MAX_PEM: u64 = 64 << 20;

/// To read, through links.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for what is not a regular file; or it can't be opened.
pub fn open(path: &Path) -> io::Result<File> {
    open_with(path, File::options().read(true))
}

/// For what the options say, through links.
///
/// # Errors
/// As of [`open`].
pub fn open_with(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    // A device is not even opened: that may do something.
    checked(&fs::metadata(path)?)?;
    still(options.custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?)
}

/// The whole of a file of at most `limit` bytes, through links. It is overwritten when dropped.
///
/// # Errors
/// As of [`open`]; [`io::ErrorKind::FileTooLarge`] for a larger one.
pub fn read(path: &Path, limit: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    read_opened(open(path)?, limit)
}

/// As [`read`], for text.
///
/// # Errors
/// As of [`read`]; [`io::ErrorKind::InvalidData`] if it is not UTF-8.
pub fn read_to_string(path: &Path, limit: u64) -> io::Result<Zeroizing<String>> {
    let mut bytes = read(path, limit)?;
    String::from_utf8(std::mem::take(&mut *bytes))
        .map(Zeroizing::new)
        .map_err(|error| {
            error.into_bytes().zeroize();
            io::Error::new(io::ErrorKind::InvalidData, "it is not text in UTF-8")
        })
}

/// As [`read`], of a file that is open already, or a pipe that somebody gave on purpose.
///
/// # Errors
/// [`io::ErrorKind::FileTooLarge`] if more than `limit` bytes come; or it can't be read.
pub fn read_opened(file: File, limit: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let size = file.metadata()?.len();
    if size > limit {
        return Err(too_large(limit));
    }
    read_from(file, size, limit)
}

/// As [`read_opened`], of what should give `size` bytes.
///
/// # Errors
/// As of [`read_opened`].
pub fn read_from(from: impl io::Read, size: u64, limit: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    // Room for all of it at once, and for the call that finds its end: a vector that grows leaves
    // copies of a secret behind.
    let room = usize::try_from(size.min(limit)).unwrap_or(0) + 1024;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    // A pipe has no size, nor have some files of the kernel's.
    if from.take(limit + 1).read_to_end(&mut bytes)? as u64 > limit {
        return Err(too_large(limit));
    }
    Ok(bytes)
}

fn too_large(limit: u64) -> io::Error {
    let why = format!(
        "it is larger than {limit} bytes, more than is ever read of a file of its kind: is it the right one?"
    );
    io::Error::new(io::ErrorKind::FileTooLarge, why)
}

/// The file of that name itself, not what a link there leads to.
///
/// # Errors
/// As of [`open`].
pub fn open_itself(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    checked(&fs::symlink_metadata(path)?)?;
    unfollowed(path, options)
}

/// As [`open_itself`], where a file that is not there is made, if the options say so.
///
/// # Errors
/// As of [`open`].
pub fn create_itself(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    match fs::symlink_metadata(path) {
        Ok(seen) => checked(&seen)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    unfollowed(path, options)
}

fn unfollowed(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
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
        let why = "it is not a regular file: move it away, and put a file in its place";
        Err(io::Error::new(io::ErrorKind::InvalidInput, why))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;
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
    fn a_file_has_at_most_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "12345").unwrap();
        assert_eq!(**read(&path, 5).unwrap(), *b"12345");
        assert_eq!(**read_to_string(&path, 6).unwrap(), *"12345");
        let too_large = |path: &Path, limit| {
            let error = read(path, limit).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        };
        too_large(&path, 4);
        // One of the kernel's says that it has no bytes.
        let kernels = folder.path().join("kernels");
        symlink("/proc/self/maps", &kernels).unwrap();
        assert_eq!(fs::metadata(&kernels).unwrap().len(), 0);
        too_large(&kernels, 4);
        fs::write(&path, [0xff]).unwrap();
        let error = read_to_string(&path, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_file_of_many_gib_is_refused_before_it_takes_the_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hole");
        // No disk holds it, and no memory would.
        File::create(&path).unwrap().set_len(1 << 43).unwrap();
        for error in [
            Config::load(&path).err().unwrap().to_string(),
            Policy::load(&path).err().unwrap().to_string(),
            Tokens::load(&path).err().unwrap().to_string(),
        ] {
            assert!(error.contains("it is larger than"), "{error}");
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
    }

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
                assert!(error.contains("it is not a regular file"), "{error}");
            }
        }
    }
}
