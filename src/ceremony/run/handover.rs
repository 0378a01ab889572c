//! The appliance's files are given to the user that the service runs as, where the package has made one.
//!
//! A ceremony runs as root: it seals credentials for the machine. The service is not root, and could not open what root has made. It may be hostile, though, and
//! its folder is where root walks here: see [`super::tree`].

use std::io;
use std::path::Path;

use super::RunError;
use super::site::Site;
use super::tree::Entry;

/// Whom the state's folder belongs to gets all that is in it, and reads the configuration as its group; he can't change that.
pub(super) fn to_service(site: &Site) -> Result<(), RunError> {
    let open = |path: &Path| Entry::folder(path).map_err(|error| RunError::file(path, error));
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let state = open(&site.state)?;
    let (owner, group) = state.owner();
    if owner.is_root() {
        return Ok(());
    }
    let owns = |entry: &Entry| entry.give(Some(owner), Some(group));
    state
        .each(&owns)
        .map_err(|error| RunError::file(&site.state, error))?;
    let reads = |entry: &Entry| -> io::Result<()> {
        // Sealed for the machine: systemd opens them, as root.
        let sealed = entry.path().extension().is_some_and(|end| end == "cred");
        if sealed && entry.is_file() {
            return Ok(());
        }
        entry.give(None, Some(group))?;
        // What its owner may read or enter.
        let mode = entry.mode();
        entry.set_mode(mode | (mode & 0o500) >> 3)
    };
    open(&site.folder)?
        .each(&reads)
        .map_err(|error| RunError::file(&site.folder, error))
}
