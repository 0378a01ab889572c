//! Root's user and every capability are given up.

use std::ffi::CString;
use std::path::Path;

use caps::{CapSet, CapsHashSet};
use nix::sys::prctl::set_no_new_privs;
use nix::unistd::{Gid, Uid, User, geteuid, initgroups, setgid, setgroups, setuid};
use strongroom_core::owner;

use super::HardenError;

/// Becomes `user`, or else whoever but root can change what is at `state`, if this is root: a link
/// that they put there does not make them root. Anybody else stays who they are.
pub(super) fn become_owner(
    user: Option<&str>,
    state: &Path,
) -> Result<Result<String, String>, HardenError> {
    let name = |uid: Uid| match User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    };
    if !geteuid().is_root() {
        return Ok(Ok(name(geteuid())));
    }
    let refused = |what: String| HardenError::User(what);
    let (uid, gid) = of(user, state)?;
    owner::settle();
    if uid.is_root() {
        return Ok(Err(format!(
            "root, without capabilities: give {} to a user of its own, or set hardening.user",
            state.display()
        )));
    }
    let name = name(uid);
    let groups = match CString::new(name.as_str()) {
        Ok(name) if User::from_uid(uid).is_ok_and(|user| user.is_some()) => initgroups(&name, gid),
        _ => setgroups(&[gid]),
    };
    groups
        .and_then(|()| forget_bounding_set().and_then(|()| setgid(gid)))
        .and_then(|()| setuid(uid))
        .map_err(|error| refused(format!("this process can't become {name}: {error}")))?;
    Ok(Ok(name))
}

/// Whether there is somebody to become, for whoever runs this.
pub(super) fn check(user: Option<&str>, state: &Path) -> Result<(), HardenError> {
    if user.is_none() && !geteuid().is_root() {
        return Ok(());
    }
    of(user, state).map(drop)
}

/// Whom root would become.
fn of(user: Option<&str>, state: &Path) -> Result<(Uid, Gid), HardenError> {
    if let Some(wanted) = user {
        let user = named(wanted)?;
        return Ok((user.uid, user.gid));
    }
    match owner::owner(state) {
        Ok(Some(owner)) => Ok((Uid::from_raw(owner.uid), Gid::from_raw(owner.gid))),
        Ok(None) => Ok((Uid::from_raw(0), Gid::from_raw(0))),
        Err(error) => Err(HardenError::User(format!("it says nobody, and {error}"))),
    }
}

fn named(wanted: &str) -> Result<User, HardenError> {
    match User::from_name(wanted) {
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err(HardenError::User(format!(
            "there is no user {wanted:?}: make it (`systemd-sysusers`), or remove the setting, to become the owner of the store"
        ))),
        Err(error) => Err(HardenError::User(format!(
            "{wanted:?} can't be looked up: {error}"
        ))),
    }
}

/// Every set of the calling thread; those it starts have none either.
pub(super) fn drop_capabilities() -> Result<String, String> {
    // Asked first: inside a unit the call that changes them is forbidden, and there is nothing to
    // change.
    if geteuid().is_root() {
        forget_bounding_set().map_err(|error| format!("the bounding set: {error}"))?;
    }
    for set in [
        CapSet::Ambient,
        CapSet::Effective,
        CapSet::Inheritable,
        CapSet::Permitted,
    ] {
        let held = caps::read(None, set).map_err(|error| error.to_string())?;
        if !held.is_empty() {
            clear(set).map_err(|error| error.to_string())?;
        }
    }
    Ok("none".to_owned())
}

/// Permitted and effective go together: what is effective must be permitted, and the call sets all
/// three.
fn clear(set: CapSet) -> Result<(), caps::errors::CapsError> {
    match set {
        CapSet::Ambient => caps::clear(None, set),
        set => caps::set(None, set, &CapsHashSet::new()),
    }
}

/// What not even an executable with capabilities of its own could bring back. Needs `CAP_SETPCAP`.
fn forget_bounding_set() -> nix::Result<()> {
    match caps::read(None, CapSet::Bounding) {
        Ok(held) if held.is_empty() => Ok(()),
        _ => caps::clear(None, CapSet::Bounding).map_err(|_| nix::Error::EPERM),
    }
}

pub(super) fn forbid_new_privileges() -> Result<String, String> {
    set_no_new_privs()
        .map(|()| "no executable brings any back".to_owned())
        .map_err(|error| format!("PR_SET_NO_NEW_PRIVS: {error}"))
}
