#![allow(clippy::unwrap_used)]

use std::os::unix::fs::symlink;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use tempfile::TempDir;

use super::*;

/// Nobody's on any machine.
const SERVICE: u32 = 54_321;

fn room() -> (TempDir, PathBuf) {
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("file");
    (room, path)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// The names in a directory.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_is_replaced_whole_with_its_mode() {
    let (room, path) = room();
    fs::write(aside(&path), "half, of a writer that was killed").unwrap();
    for (text, access) in [("one", 0o600), ("two", 0o400), ("three", 0o640)] {
        replace(&path, text.as_bytes(), Access::Mode(access)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        assert_eq!(mode(&path), access);
        assert_eq!(names(room.path()), ["file"]);
    }
    assert!(replace(Path::new("/"), b"", Access::AsBefore).is_err());
}

#[test]
fn a_replaced_file_keeps_its_mode() {
    let (room, path) = room();
    replace(&path, b"first", Access::AsBefore).unwrap();
    assert_eq!(mode(&path), 0o600);
    fs::set_permissions(&path, Permissions::from_mode(0o664)).unwrap();
    replace(&path, b"next", Access::AsBefore).unwrap();
    assert_eq!(mode(&path), 0o664);
    assert_eq!(fs::read(&path).unwrap(), b"next");
    assert_eq!(names(room.path()), ["file"]);
}

#[test]
fn a_replaced_file_keeps_its_owner() {
    if !geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let (_room, path) = room();
    fs::write(&path, "old").unwrap();
    std::os::unix::fs::chown(&path, Some(SERVICE), Some(SERVICE + 1)).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    replace(&path, b"new", Access::AsBefore).unwrap();
    let seen = fs::metadata(&path).unwrap();
    assert_eq!((seen.uid(), seen.gid()), (SERVICE, SERVICE + 1));
    assert_eq!(mode(&path), 0o640);
}

#[test]
fn who_cannot_keep_the_owner_is_told_and_changes_nothing() {
    if !geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let (room, path) = room();
    fs::write(&path, "roots").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(room.path(), Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(room.path(), Some(SERVICE), Some(SERVICE)).unwrap();
    let outcome = crate::owner::acting(&path, || replace(&path, b"new", Access::AsBefore));
    let error = outcome.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(error.to_string().contains("as root"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "roots");
    assert_eq!(names(room.path()), ["file"]);
}

#[test]
fn a_new_file_takes_nobodys_place() {
    let (room, path) = room();
    create(&path, b"one", 0o600).unwrap();
    assert_eq!(mode(&path), 0o600);
    let error = create(&path, b"two", 0o600).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&path).unwrap(), b"one");
    // A link that leads nowhere is somebody's too.
    let link = room.path().join("link");
    symlink("nowhere", &link).unwrap();
    let error = create(&link, b"two", 0o600).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(names(room.path()), ["file", "link"]);
}

#[test]
fn of_writers_at_once_each_writes_the_whole() {
    let (room, path) = room();
    let texts = [1, 2, 3, 4].map(|byte| vec![byte; 100_000]);
    let done = AtomicBool::new(false);
    let is_whole = |found: &Vec<u8>| texts.contains(found);
    thread::scope(|scope| {
        let writers = texts.each_ref().map(|text| {
            scope.spawn(|| (0..20).for_each(|_| replace(&path, text, Access::AsBefore).unwrap()))
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if let Ok(found) = fs::read(&path) {
                    assert!(is_whole(&found));
                }
            }
        });
        let outcomes = writers.map(thread::ScopedJoinHandle::join);
        done.store(true, Ordering::Relaxed);
        assert!(outcomes.iter().all(Result::is_ok));
    });
    assert!(is_whole(&fs::read(&path).unwrap()));
    assert_eq!(names(room.path()), ["file"]);
}

#[test]
fn a_writer_that_does_not_end_is_told_of() {
    let (_room, path) = room();
    let other = File::create(aside(&path)).unwrap();
    other.lock().unwrap();
    let error = replace(&path, b"new", Access::Mode(0o600)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert!(error.to_string().contains("another process"), "{error}");
    assert!(!path.exists());
    // A pipe there holds nobody up.
    fs::remove_file(aside(&path)).unwrap();
    nix::unistd::mkfifo(&aside(&path), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let error = replace(&path, b"new", Access::Mode(0o600)).unwrap_err();
    assert!(error.to_string().contains(TEMPORARY_SUFFIX), "{error}");
}

#[test]
fn a_link_beside_it_leads_nowhere() {
    let (room, path) = room();
    let other = room.path().join("other");
    fs::write(&other, "another's").unwrap();
    symlink(&other, aside(&path)).unwrap();
    assert!(replace(&path, b"new", Access::Mode(0o600)).is_err());
    assert_eq!(fs::read_to_string(&other).unwrap(), "another's");
}

/// A file system of a few pages in memory, where this process may mount one.
struct SmallFileSystem(TempDir);

impl SmallFileSystem {
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=128k,mode=0700", "tmpfs"])
            .arg(folder.path())
            .output();
        mounted
            .is_ok_and(|mounted| mounted.status.success())
            .then(|| Self(folder))
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

#[test]
fn a_full_disc_leaves_the_old_file_and_nothing_beside_it() {
    let Some(disc) = SmallFileSystem::new() else {
        eprintln!("skipped: nothing can be mounted here");
        return;
    };
    let path = disc.0.path().join("file");
    replace(&path, b"old", Access::AsBefore).unwrap();
    let large = vec![0; 1 << 20];
    for failed in [
        replace(&path, &large, Access::AsBefore),
        replace(&path, &large, Access::Mode(0o600)),
        create(&disc.0.path().join("other"), &large, 0o600),
    ] {
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(disc.0.path()), ["file"]);
    }
    replace(&path, b"newer", Access::AsBefore).unwrap();
}

const KILLED: &str = "STRONGROOM_TEST_KILLED_WRITER";

/// Not a test of its own: the process of [`a_killed_writer_leaves_a_whole_file`].
#[test]
fn killed_writer_child() {
    let Some(path) = std::env::var_os(KILLED).map(PathBuf::from) else {
        return;
    };
    for byte in (1..=2).cycle() {
        replace(&path, &vec![byte; 4 << 20], Access::Mode(0o600)).unwrap();
    }
}

#[test]
fn a_killed_writer_leaves_a_whole_file() {
    let (room, path) = room();
    replace(&path, &vec![1; 4 << 20], Access::Mode(0o600)).unwrap();
    let deadline = Instant::now() + Duration::from_mins(1);
    let (mut halves, mut rounds) = (0, 0);
    while halves < 3 {
        assert!(Instant::now() < deadline, "never killed while it wrote");
        let mut writer: Child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "atomic::tests::killed_writer_child"])
            .env(KILLED, &path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while !aside(&path).exists() {
            assert!(Instant::now() < deadline, "it writes nothing");
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(rounds % 7));
        writer.kill().unwrap();
        writer.wait().unwrap();
        halves += u32::from(aside(&path).exists());
        rounds += 1;
        let found = fs::read(&path).unwrap();
        assert_eq!(found.len(), 4 << 20);
        assert!(found.iter().all(|byte| *byte == found[0]));
    }
    // The next one takes away what the killed ones left.
    replace(&path, b"next", Access::Mode(0o600)).unwrap();
    assert_eq!(names(room.path()), ["file"]);
}
