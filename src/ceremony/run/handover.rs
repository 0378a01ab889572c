//! The appliance's files are given to the user that the service runs as, where the package has made one.
//!
//! A ceremony runs as root: it seals credentials for the machine. The service is not root, and could not open what root has made.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::path::Path;

use super::RunError;
use super::site::Site;

/// Whom the state's folder belongs to gets all that is in it, and reads the configuration as its group; he can't change that.
pub(super) fn to_service(site: &Site) -> Result<(), RunError> {
    let there = |path: &Path| fs::metadata(path).map_err(|error| RunError::file(path, error));
    let owner = there(&site.state)?;
    if !nix::unistd::geteuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    let owns = |path: &Path, _: &Metadata| lchown(path, Some(owner.uid()), Some(owner.gid()));
    each(&site.state, &owns).map_err(|error| RunError::file(&site.state, error))?;
    let reads = |path: &Path, found: &Metadata| {
        // Sealed for the machine: systemd opens them, as root.
        if path
            .extension()
            .is_some_and(|extension| extension == "cred")
            || found.is_symlink()
        {
            return Ok(());
        }
        lchown(path, None, Some(owner.gid()))?;
        let mode = found.mode() & 0o7777;
        // What its owner may read or enter.
        fs::set_permissions(path, Permissions::from_mode(mode | (mode & 0o500) >> 3))
    };
    each(&site.folder, &reads).map_err(|error| RunError::file(&site.folder, error))
}

/// The folder and all that is in it; symbolic links are not followed.
fn each(path: &Path, act: &impl Fn(&Path, &Metadata) -> io::Result<()>) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    act(path, &found)?;
    if found.is_dir() {
        for entry in fs::read_dir(path)? {
            each(&entry?.path(), act)?;
        }
    }
    Ok(())
}
