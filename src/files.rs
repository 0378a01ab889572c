//! Files that stand in a folder where others may put what they like: only a regular one is opened.
//! To open a pipe, or to read a device, may never end.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::fcntl::OFlag;

/// To read, through links.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for what is no regular file; or it can't be opened.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    // A device is not even opened: that may do something.
    checked(&fs::metadata(path)?)?;
    let flags = OFlag::O_NONBLOCK.bits();
    still(File::options().read(true).custom_flags(flags).open(path)?)
}

/// The file of that name itself, not what a link there leads to.
///
/// # Errors
/// As of [`open`].
pub(crate) fn open_itself(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
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
        let why = "it is no regular file";
        Err(io::Error::new(io::ErrorKind::InvalidInput, why))
    }
}
