//! Walks directories that another user can write to, as root, without being led anywhere else.
//!
//! A path is asked for once and never again: each entry is opened without following it, by its name
//! in a directory that is open already, and what is done is done to what was opened. Whoever swaps
//! an entry for a link meanwhile changes what the name means, not what is open.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::{Gid, Uid, fchownat};

/// Links on the way to a directory; more are a loop.
const LINKS: usize = 40;

/// A file, a directory or a link, by itself: not what its name may mean by now.
pub(super) struct Entry {
    fd: OwnedFd,
    stat: FileStat,
    /// For messages.
    path: PathBuf,
}

impl Entry {
    fn new(fd: OwnedFd, path: PathBuf) -> io::Result<Self> {
        let stat = fstat(&fd)?;
        Ok(Self { fd, stat, path })
    }

    /// The directory at that path. Links on the way are followed only where nobody but root could
    /// have put them.
    pub(super) fn folder(path: &Path) -> io::Result<Self> {
        let mut here = Self::new(
            open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?,
            "/".into(),
        )?;
        let mut ahead: VecDeque<OsString> = parts(&std::path::absolute(path)?);
        let mut links = 0;
        // Above this nobody can swap anything.
        let mut above: Vec<Self> = Vec::new();
        while let Some(name) = ahead.pop_front() {
            if name == ".." {
                here = above.pop().unwrap_or(here);
                continue;
            }
            let next = here.child(&name)?;
            if next.is(SFlag::S_IFLNK) {
                links += 1;
                if !here.is_roots() || next.stat.st_uid != 0 || links > LINKS {
                    return Err(refused(format!(
                        "{} is a link that another user may have made",
                        next.path.display()
                    )));
                }
                let target = PathBuf::from(OsString::from_vec(
                    readlinkat(&here.fd, name.as_os_str())?.into_vec(),
                ));
                if target.is_absolute() {
                    let root = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
                    here = Self::new(root, "/".into())?;
                    above.clear();
                }
                for part in parts(&target).into_iter().rev() {
                    ahead.push_front(part);
                }
            } else if next.is(SFlag::S_IFDIR) {
                above.push(std::mem::replace(&mut here, next));
            } else {
                return Err(io::Error::from(io::ErrorKind::NotADirectory));
            }
        }
        Ok(here)
    }

    /// An entry of this directory, whatever it is.
    fn child(&self, name: &OsString) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&self.fd, name.as_os_str(), flags, Mode::empty())?;
        Self::new(fd, self.path.join(name))
    }

    fn is(&self, kind: SFlag) -> bool {
        SFlag::from_bits_truncate(self.stat.st_mode) & SFlag::S_IFMT == kind
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_file(&self) -> bool {
        self.is(SFlag::S_IFREG)
    }

    pub(super) fn owner(&self) -> (Uid, Gid) {
        (
            Uid::from_raw(self.stat.st_uid),
            Gid::from_raw(self.stat.st_gid),
        )
    }

    /// Permission bits.
    pub(super) fn mode(&self) -> u32 {
        self.stat.st_mode & 0o7777
    }

    /// Whether nobody but root can put, take or rename entries of this directory that are root's.
    fn is_roots(&self) -> bool {
        const STICKY: u32 = 0o1000;
        self.stat.st_uid == 0 && (self.mode() & 0o022 == 0 || self.mode() & STICKY != 0)
    }

    /// Gives it to a user, a group, or both.
    pub(super) fn give(&self, owner: Option<Uid>, group: Option<Gid>) -> io::Result<()> {
        Ok(fchownat(
            &self.fd,
            "",
            owner,
            group,
            AtFlags::AT_EMPTY_PATH,
        )?)
    }

    /// Sets the permission bits.
    pub(super) fn set_mode(&self, mode: u32) -> io::Result<()> {
        // What this name stands for is what is open, not a path: the one way to do it for a
        // descriptor that only names.
        let open = format!("/proc/self/fd/{}", self.fd.as_fd().as_raw_fd());
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(open, mode)
    }

    /// This directory and every directory and file below it. Links, sockets and devices are passed
    /// over.
    ///
    /// # Errors
    /// Also for a file with a second name: what is done to it would be done to whatever else has
    /// that name.
    pub(super) fn each(&self, act: &impl Fn(&Self) -> io::Result<()>) -> io::Result<()> {
        act(self)?;
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let listed = openat(&self.fd, ".", flags, Mode::empty())?;
        for entry in Dir::from_fd(listed)?.iter() {
            let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
            if [b".".as_slice(), b".."].contains(&name.as_bytes()) {
                continue;
            }
            let entry = match self.child(&name) {
                Ok(entry) => entry,
                // Gone since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if entry.is(SFlag::S_IFDIR) {
                entry.each(act)?;
            } else if entry.is_file() {
                if entry.stat.st_nlink > 1 {
                    return Err(refused(format!(
                        "{} has a second name (hard link): it may be a file of somebody else's; copy it, remove it, put the copy in its place, and run the same \
                         command again",
                        entry.path.display()
                    )));
                }
                act(&entry)?;
            }
        }
        Ok(())
    }
}

fn refused(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, what)
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Nobody's on any machine.
    const SERVICE: u32 = 54_321;

    /// A directory of the service's, and one that is root's; none where the tests are not root.
    fn room() -> Option<tempfile::TempDir> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let room = tempfile::tempdir().unwrap();
        for name in ["state/store", "roots/inner"] {
            fs::create_dir_all(room.path().join(name)).unwrap();
        }
        fs::write(room.path().join("roots/inner/secret"), "x").unwrap();
        fs::write(room.path().join("roots/shadow"), "x").unwrap();
        fs::write(room.path().join("state/store/db"), "x").unwrap();
        chown(room.path().join("state"), Some(SERVICE), Some(SERVICE)).unwrap();
        Some(room)
    }

    fn give_all(state: &Path) -> io::Result<()> {
        let service = (Uid::from_raw(SERVICE), Gid::from_raw(SERVICE));
        Entry::folder(state)?.each(&|entry| entry.give(Some(service.0), Some(service.1)))
    }

    fn still_roots(room: &Path) {
        for name in ["roots", "roots/inner", "roots/inner/secret", "roots/shadow"] {
            let owner = fs::symlink_metadata(room.join(name)).unwrap().uid();
            assert_eq!(owner, 0, "{name}");
        }
    }

    #[test]
    fn what_is_in_the_folder_is_given_and_nothing_else() {
        let Some(room) = room() else { return };
        let state = room.path().join("state");
        symlink(room.path().join("roots"), state.join("folder")).unwrap();
        symlink(room.path().join("roots/shadow"), state.join("file")).unwrap();
        nix::unistd::mkfifo(&state.join("pipe"), Mode::S_IRWXU).unwrap();
        give_all(&state).unwrap();
        for name in ["state", "state/store", "state/store/db"] {
            assert_eq!(
                fs::metadata(room.path().join(name)).unwrap().uid(),
                SERVICE,
                "{name}"
            );
        }
        still_roots(room.path());
    }

    #[test]
    fn a_file_with_a_second_name_is_refused() {
        let Some(room) = room() else { return };
        let state = room.path().join("state");
        fs::hard_link(room.path().join("roots/shadow"), state.join("store/mine")).unwrap();
        let error = give_all(&state).unwrap_err();
        assert!(error.to_string().contains("hard link"), "{error}");
        still_roots(room.path());
    }

    /// The name means another thing at each moment; what was opened does not.
    #[test]
    fn what_was_opened_is_what_is_given_whatever_its_name_means_by_then() {
        let Some(room) = room() else { return };
        let state = room.path().join("state");
        let acted = Entry::folder(&state).unwrap().each(&|entry| {
            // The service's user takes the moment between the look and the act.
            if entry.path().ends_with("store") {
                fs::rename(state.join("store"), state.join("aside")).unwrap();
                symlink(room.path().join("roots/inner"), state.join("store")).unwrap();
            }
            entry.give(Some(Uid::from_raw(SERVICE)), None)?;
            entry.set_mode(entry.mode() | 0o040)
        });
        acted.unwrap();
        still_roots(room.path());
        assert_eq!(fs::metadata(state.join("aside/db")).unwrap().uid(), SERVICE);
        let secret = fs::metadata(room.path().join("roots/inner/secret")).unwrap();
        assert_eq!(secret.permissions().mode() & 0o040, 0o040 & 0o644);
    }

    #[test]
    fn somebody_who_swaps_in_a_loop_leads_it_nowhere() {
        let Some(room) = room() else { return };
        let state = room.path().join("state");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (store, aside) = (state.join("store"), state.join("aside"));
                while !stop.load(Ordering::Relaxed) {
                    fs::rename(&store, &aside).unwrap();
                    symlink(room.path().join("roots/inner"), &store).unwrap();
                    fs::remove_file(&store).unwrap();
                    fs::rename(&aside, &store).unwrap();
                }
            });
            for _ in 0..2_000 {
                // What is swapped may be missed or refused, never followed.
                let _ = give_all(&state);
            }
            stop.store(true, Ordering::Relaxed);
        });
        still_roots(room.path());
    }

    #[test]
    fn a_link_on_the_way_is_followed_only_where_it_must_be_roots() {
        let Some(room) = room() else { return };
        symlink("roots", room.path().join("link")).unwrap();
        let found = Entry::folder(&room.path().join("link/inner")).unwrap();
        assert_eq!(
            found.stat.st_ino,
            fs::metadata(room.path().join("roots/inner")).unwrap().ino()
        );
        symlink("../roots", room.path().join("state/link")).unwrap();
        for name in ["state/link", "state/link/inner"] {
            let error = Entry::folder(&room.path().join(name)).err();
            assert!(
                error.is_some_and(|error| error.to_string().contains("is a link")),
                "{name}"
            );
        }
    }
}
