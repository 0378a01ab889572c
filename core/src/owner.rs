//! Root in a directory that another user owns: whoever owns it could swap whatever is in it for a
//! link, at any moment. So root does there what it does with that user's rights, not with its own:
//! a link then leads nowhere that its maker could not go, and what is made is that user's.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::unistd::geteuid;
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::config::trust::{EMPTY_DIR_ADVICE, is_anybodys, is_outside};
use crate::config::walk::walk;

/// This process is who it is going to be.
static IDENTITY_SETTLED: AtomicBool = AtomicBool::new(false);

/// Not root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its number.
    pub uid: u32,
    /// That of its group.
    pub gid: u32,
}

/// Directories of two users on one way: the first of them could lead to any of the other's.
#[derive(Debug)]
struct MixedOwnership {
    first: PathBuf,
    then: PathBuf,
}

impl fmt::Display for MixedOwnership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} and {} are two users', and the first could lead root to whatever is the second's: only root and one other may own what is on the way (`chown`)",
            self.first.display(),
            self.then.display()
        )
    }
}

impl std::error::Error for MixedOwnership {}

/// A directory on the way that everybody may write to: whose rights should those be?
#[derive(Debug)]
struct WorldWritable(PathBuf);

impl fmt::Display for WorldWritable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.0.display();
        write!(
            f,
            "everybody may write to {at}, and could lead root from there to any place: run `chmod o-w {at}`{EMPTY_DIR_ADVICE}"
        )
    }
}

impl std::error::Error for WorldWritable {}

/// Who else than root can change what is on the way to a path, or at its end, as far as it is
/// there. `None`: only root, and the groups that root lets write to its directories, which are as
/// good as root.
///
/// # Errors
/// Two users can, or everybody.
pub fn owner(path: &Path) -> io::Result<Option<Owner>> {
    let mut found: Option<(Owner, PathBuf)> = None;
    let denied = |error: Box<dyn std::error::Error + Send + Sync>| {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, error))
    };
    for step in walk(path) {
        if is_anybodys(&step.seen) {
            return denied(WorldWritable(step.path).into());
        }
        let owner = Owner {
            uid: step.seen.uid(),
            gid: step.seen.gid(),
        };
        if owner.uid == 0 || is_outside(owner.uid) {
            continue;
        }
        match &found {
            None => found = Some((owner, step.path)),
            Some((first, _)) if first.uid == owner.uid => {}
            Some((_, first)) => {
                let error = MixedOwnership {
                    first: first.clone(),
                    then: step.path,
                };
                return denied(error.into());
            }
        }
    }
    Ok(found.map(|(owner, _)| owner))
}

/// From now on this process acts as nobody else, and may have lost the right to.
pub fn settle() {
    IDENTITY_SETTLED.store(true, Ordering::Relaxed);
}

/// Does something at a path with the rights of whoever else than root can change what the path
/// means.
///
/// # Errors
/// Two users can, or everybody; or this process can't become that user.
pub fn acting<T: Send>(path: &Path, act: impl FnOnce() -> T + Send) -> io::Result<T> {
    if IDENTITY_SETTLED.load(Ordering::Relaxed) || !geteuid().is_root() {
        return Ok(act());
    }
    let Some(owner) = owner(path)? else {
        return Ok(act());
    };
    // Rights are each thread's own. One that gives them up for good, and ends, can't forget to take
    // them back, or take back too many.
    let act = move || {
        become_only(owner)?;
        Ok(act())
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, act)?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// The calling thread alone: what libc has for this does it to all of them.
fn become_only(owner: Owner) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    set_thread_groups(&[gid])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
    use std::sync::atomic::AtomicBool;

    /// Nobody's on any machine.
    const SERVICE: u32 = 54_321;

    /// A directory of the service's that anybody can reach, and one that is root's; none where the
    /// tests are not root.
    fn room() -> Option<tempfile::TempDir> {
        if !geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let room = tempfile::tempdir().unwrap();
        fs::set_permissions(room.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["state", "roots"] {
            fs::create_dir(room.path().join(name)).unwrap();
        }
        chown(room.path().join("state"), Some(SERVICE), Some(SERVICE)).unwrap();
        Some(room)
    }

    #[test]
    fn what_root_makes_in_a_folder_of_the_services_is_the_services() {
        let Some(room) = room() else { return };
        let file = room.path().join("state/file");
        acting(&file, || fs::write(&file, "x")).unwrap().unwrap();
        assert_eq!(fs::metadata(&file).unwrap().uid(), SERVICE);
        assert_eq!(fs::metadata(&file).unwrap().gid(), SERVICE);
        let file = room.path().join("roots/file");
        acting(&file, || fs::write(&file, "x")).unwrap().unwrap();
        assert_eq!(fs::metadata(&file).unwrap().uid(), 0);
        // This thread is root as before.
        assert!(geteuid().is_root());
        fs::write(room.path().join("roots/other"), "x").unwrap();
    }

    #[test]
    fn a_link_of_the_services_leads_root_to_nothing_of_roots() {
        let Some(room) = room() else { return };
        let secret = room.path().join("roots/secret");
        fs::write(&secret, "kept").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        for (link, target) in [
            ("file", "../roots/secret"),
            ("folder", "../roots"),
            ("new", "../roots/new"),
        ] {
            symlink(target, room.path().join("state").join(link)).unwrap();
        }
        let denied = |path: &Path, act: &(dyn Fn(&Path) -> io::Result<()> + Sync)| {
            let path = room.path().join("state").join(path);
            let error = acting(&path, || act(&path)).unwrap().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{path:?}");
        };
        denied(Path::new("file"), &|path| fs::read(path).map(drop));
        denied(Path::new("file"), &|path| fs::write(path, "forged"));
        denied(Path::new("new"), &|path| fs::write(path, "forged"));
        denied(Path::new("folder/new"), &|path| fs::write(path, "forged"));
        denied(Path::new("folder"), &|path| {
            fs::remove_file(path.join("secret"))
        });
        assert_eq!(fs::read_to_string(&secret).unwrap(), "kept");
        assert_eq!(fs::read_dir(room.path().join("roots")).unwrap().count(), 1);
    }

    /// The name may mean another thing at each moment; whose rights are used was settled by what
    /// the service can't change.
    #[test]
    fn somebody_who_swaps_in_a_loop_gains_nothing() {
        let Some(room) = room() else { return };
        let path = room.path().join("state/file");
        let target = room.path().join("roots/new");
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = fs::remove_file(&path);
                    let _ = symlink(&target, &path);
                    let _ = fs::remove_file(&path);
                }
            });
            for _ in 0..500 {
                let _ = acting(&path, || fs::write(&path, "forged")).unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(!target.exists());
    }

    #[test]
    fn a_way_through_folders_of_two_users_is_refused() {
        let Some(room) = room() else { return };
        let inner = room.path().join("state/inner");
        fs::create_dir(&inner).unwrap();
        chown(&inner, Some(SERVICE + 1), None).unwrap();
        let error = acting(&inner.join("file"), || ()).unwrap_err().to_string();
        assert!(error.contains("two users'"), "{error}");
        // Through a link as well.
        symlink("state", room.path().join("link")).unwrap();
        assert!(acting(&room.path().join("link/inner"), || ()).is_err());
        let found = owner(&room.path().join("link/file")).unwrap().unwrap();
        assert_eq!(found.uid, SERVICE);
    }

    #[test]
    fn a_folder_on_the_way_that_is_everybodys_is_refused() {
        let Some(room) = room() else { return };
        for name in ["roots", "state"] {
            let folder = room.path().join(name);
            let set = |mode| fs::set_permissions(&folder, fs::Permissions::from_mode(mode));
            for open in [0o777, 0o2777, 0o703] {
                set(open).unwrap();
                for path in [folder.clone(), folder.join("file"), folder.join("new/file")] {
                    let error = acting(&path, || ()).unwrap_err().to_string();
                    assert!(error.contains("chmod o-w"), "{open:o}: {error}");
                }
            }
            // In a sticky one each has only what is its own; a group is root's choice.
            for closed in [0o1777, 0o775, 0o755] {
                set(closed).unwrap();
                acting(&folder.join("file"), || ()).unwrap();
            }
        }
    }
}
