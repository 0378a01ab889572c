//! The appliance's files are given to the user that the service runs as, where the package has made
//! one.
//!
//! A ceremony runs as root: it seals credentials for the machine. The service is not root, and
//! could not open what root has made. It may be hostile, though, and its directory is where root
//! walks here: see `tree.rs`.

use std::io;
use std::path::Path;

use strongroom_core::config::module;

use super::RunError;
use super::site::Site;
use super::tree::Entry;

/// Gives a directory and all in it to a user and a group; with `modes`, permission bits of
/// directories and of files too. Nothing is followed: see `tree.rs`.
pub fn give(path: &Path, owner: u32, group: u32, modes: Option<(u32, u32)>) -> io::Result<()> {
    Entry::folder(path)?.each(&|entry| {
        entry.give(Some(owner.into()), Some(group.into()))?;
        match modes {
            Some((_, file)) if entry.is_file() => entry.set_mode(file),
            Some((folder, _)) => entry.set_mode(folder),
            None => Ok(()),
        }
    })
}

/// Whom the state's directory belongs to gets all that is in it, and in that of the token, and
/// reads the configuration as its group; they can't change that.
///
/// After each step, and not at the end alone: the service may be at work meanwhile, and finds what
/// a step left also when nobody comes back to the ceremony.
pub(super) fn to_service(site: &Site) -> Result<(), RunError> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    // Before its store there may be none.
    let Some(state) = open(&site.state)? else {
        return Ok(());
    };
    let (owner, group) = state.owner();
    if owner.is_root() {
        return Ok(());
    }
    let owns = |entry: &Entry| entry.give(Some(owner), Some(group));
    state
        .each(&owns)
        .map_err(|error| RunError::file(&site.state, error))?;
    // A token in files has them elsewhere, perhaps.
    let tokens = module::softhsm(&site.module).and_then(|file| module::softhsm_tokens(&file));
    if let Some(path) = tokens
        && let Some(tokens) = open(&path)?
        && tokens.owner().0 == owner
    {
        tokens
            .each(&owns)
            .map_err(|error| RunError::file(&path, error))?;
    }
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
    match open(&site.folder)? {
        Some(folder) => folder
            .each(&reads)
            .map_err(|error| RunError::file(&site.folder, error)),
        None => Ok(()),
    }
}

/// The directory, if it is there.
fn open(path: &Path) -> Result<Option<Entry>, RunError> {
    match Entry::folder(path) {
        Ok(folder) => Ok(Some(folder)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(RunError::file(path, error)),
    }
}
