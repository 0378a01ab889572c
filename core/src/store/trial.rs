//! A store's files are tried as a copy before they are opened: to open them changes them, and what
//! is damaged must stay as it was found until a person has looked at it. Only when the copy gave a
//! whole store, judged by the token, are the files themselves opened.
//!
//! If the copy is not good with all its files, another is tried without those that the database can
//! do without. Root and epoch, which are in the token, say whether anything is missing then.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::engine::sled_db::{BLOBS, LOG, Lock, Role, SETTINGS, Sled, role};
use super::engine::{Engine as _, EngineError, Pair};
use super::{StoreError, pages};
use crate::files;
use crate::owner::acting;

/// Where copies are made, in the store's directory: the process may have no right to any other.
const TRIAL_DIRECTORY: &str = "trial";
/// Where files are put that were not good, in a directory for each time.
const REJECTED_DIRECTORY: &str = "aside";
/// No store is larger than this, bytes; a file that says so is not tried.
const MAX_STORE_BYTES: u64 = 16 << 30;

/// Nor is a file that the database can do without, bytes.
const MAX_SPARE_FILE_BYTES: u64 = 256 << 20;

/// Which files of a store are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum With {
    /// All.
    Everything,
    /// Those that the database can't do without.
    TheLogAlone,
}

/// The files of a store that nobody else has open.
pub(super) struct Files {
    folder: PathBuf,
    /// Names in the directory.
    spare: Vec<String>,
    /// Names in the directory of blobs.
    blobs: Vec<String>,
    _lock: Lock,
}

impl Files {
    /// Looks at every file, and keeps other processes out.
    pub(super) fn hold(folder: &Path) -> Result<Self, StoreError> {
        // To open a pipe, or to read what a link leads to, may never end.
        regular(&folder.join(LOG))?;
        let lock = Lock::take_patiently(folder).map_err(|error| failed(folder, error))?;
        let mut files = Self {
            folder: folder.to_owned(),
            spare: Vec::new(),
            blobs: Vec::new(),
            _lock: lock,
        };
        let mut size = 0;
        for (path, name) in entries(folder)? {
            match name.as_deref().map_or(Role::Other, role) {
                Role::Log => size += checked_file(&path)?,
                Role::Spare => {
                    files.spare.extend(name);
                }
                Role::Blobs => {
                    let seen = fs::symlink_metadata(&path);
                    if !seen.map_err(|error| unreadable(&path, &error))?.is_dir() {
                        return Err(stray(&path));
                    }
                    for (path, name) in entries(&path)? {
                        let Some(name) = name else {
                            return Err(stray(&path));
                        };
                        size += checked_file(&path)?;
                        files.blobs.push(name);
                    }
                }
                // sled looks at each file whose name begins like one of its own.
                Role::Other if is_like_sleds(&path) => return Err(stray(&path)),
                Role::Other => {}
            }
        }
        if size > MAX_STORE_BYTES {
            return Err(StoreError::Io(format!(
                "{} has {size} bytes of files, more than any store: put its own files back",
                folder.display()
            )));
        }
        Ok(files)
    }

    /// Whether there is anything that the database can do without.
    pub(super) fn has_spare(&self) -> bool {
        !self.spare.is_empty()
    }

    /// Everything that a copy of the files holds, in the order of the keys.
    pub(super) fn read(&self, with: With) -> Result<Vec<Pair>, StoreError> {
        let copy = Scratch::copy(self, with)?;
        let log = copy.path().join(LOG);
        if let Some(page) = pages::impossible(&log).map_err(|error| unreadable(&log, &error))? {
            return Err(StoreError::Damaged {
                file: self.folder.join(LOG),
                why: format!("it has a page of the number {page}, for which it is too small"),
            });
        }
        let pairs = Sled::open(copy.path())
            .and_then(|engine| engine.scan())
            .map_err(|error| failed(&self.folder, error))?;
        Ok(pairs)
    }

    /// Puts the files aside that the database can do without, and says where.
    pub(super) fn set_aside(&self) -> Result<PathBuf, StoreError> {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let aside = self.folder.join(REJECTED_DIRECTORY).join(format!(
            "{}.{:09}",
            now.as_secs(),
            now.subsec_nanos()
        ));
        let moved = || {
            private().recursive(true).create(&aside)?;
            for name in &self.spare {
                fs::rename(self.folder.join(name), aside.join(name))?;
            }
            File::open(&aside)?.sync_all()?;
            File::open(&self.folder)?.sync_all()
        };
        moved().map_err(|error| unwritable(&self.folder, &error))?;
        Ok(aside)
    }
}

/// A directory in a store's directory, removed when it is dropped.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// An empty one, with the directory of blobs.
    pub(super) fn make(store: &Path) -> Result<Self, StoreError> {
        let folder = clear(store)?;
        private()
            .create(&folder)
            .and_then(|()| private().create(folder.join(BLOBS)))
            .map_err(|error| unwritable(&folder, &error))?;
        Ok(Self(folder))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    fn copy(files: &Files, with: With) -> Result<Self, StoreError> {
        let copy = Self::make(&files.folder)?;
        let spare = match with {
            With::Everything => files.spare.as_slice(),
            With::TheLogAlone => &[],
        };
        for name in spare {
            let path = files.folder.join(name);
            let seen = fs::symlink_metadata(&path).map_err(|error| unreadable(&path, &error))?;
            let why = match seen.len() {
                _ if !seen.is_file() => "it is not a regular file".to_owned(),
                size if size > MAX_SPARE_FILE_BYTES => format!("it has {size} bytes"),
                _ => continue,
            };
            return Err(StoreError::Damaged { file: path, why });
        }
        let names = std::iter::once(LOG.to_owned())
            .chain(spare.iter().cloned())
            .chain(files.blobs.iter().map(|name| format!("{BLOBS}/{name}")));
        for name in names {
            copy_file(&files.folder.join(&name), &copy.0.join(&name))?;
        }
        Ok(copy)
    }
}

/// Removes what a process that was killed has left of a trial. The directory where the next one is
/// made.
fn clear(store: &Path) -> Result<PathBuf, StoreError> {
    let folder = store.join(TRIAL_DIRECTORY);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unwritable(&folder, &error)),
        _ => Ok(folder),
    }
}

/// Whether nothing is in a directory without a log but what a creation or an import that was killed
/// leaves, or a store that is gone has put aside. If so, what is left of a trial is removed.
pub(super) fn is_free(store: &Path) -> Result<bool, StoreError> {
    for (path, name) in entries(store)? {
        let free = match name.as_deref() {
            Some(REJECTED_DIRECTORY) => true,
            Some(SETTINGS) => path.symlink_metadata().is_ok_and(|seen| seen.is_file()),
            Some(BLOBS) => {
                path.symlink_metadata().is_ok_and(|seen| seen.is_dir())
                    && entries(&path)?.is_empty()
            }
            Some(TRIAL_DIRECTORY) => {
                path.is_dir() && entries(&path)?.iter().all(|(path, _)| is_like_sleds(path))
            }
            _ => false,
        };
        if !free {
            return Ok(false);
        }
    }
    clear(store)?;
    Ok(true)
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // By whomever it is dropped.
        if let Err(error) = acting(&self.0, || fs::remove_dir_all(&self.0)).flatten() {
            tracing::warn!(%error, folder = %self.0.display(), "the directory in which the store was tried is left");
        }
    }
}

fn copy_file(from: &Path, to: &Path) -> Result<(), StoreError> {
    let unreadable = |error: &io::Error| unreadable(from, error);
    let mut source =
        files::open_itself(from, File::options().read(true)).map_err(|error| unreadable(&error))?;
    let mut target = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(|error| unwritable(to, &error))?;
    // By hand: `io::copy` makes a system call that the server may not.
    let mut buffer = vec![0; 1 << 16];
    let mut length = 0;
    loop {
        let read = source
            .read(&mut buffer)
            .map_err(|error| unreadable(&error))?;
        let bytes = buffer.get(..read).unwrap_or_default();
        length += bytes.len() as u64;
        let written = if bytes.is_empty() {
            target.set_len(length)
        } else if pages::is_zero(bytes) {
            // A file may be long and empty: the copy is no larger on the disk.
            target.seek(SeekFrom::Start(length)).map(drop)
        } else {
            target.write_all(bytes)
        };
        written.map_err(|error| unwritable(to, &error))?;
        if bytes.is_empty() {
            return Ok(());
        }
    }
}

/// Each entry's path, and its name if it is text.
fn entries(folder: &Path) -> Result<Vec<(PathBuf, Option<String>)>, StoreError> {
    fs::read_dir(folder)
        .and_then(|entries| {
            entries
                .map(|entry| {
                    let entry = entry?;
                    Ok((entry.path(), entry.file_name().into_string().ok()))
                })
                .collect()
        })
        .map_err(|error| unreadable(folder, &error))
}

/// Its size, if it is a file that can be read and written.
fn checked_file(path: &Path) -> Result<u64, StoreError> {
    let size = regular(path)?;
    files::open_itself(path, File::options().read(true))
        .map_err(|error| unreadable(path, &error))?;
    files::open_itself(path, File::options().write(true))
        .map_err(|error| unwritable(path, &error))?;
    Ok(size)
}

/// Its size, if it is a regular file and no link to one.
fn regular(path: &Path) -> Result<u64, StoreError> {
    let seen = fs::symlink_metadata(path).map_err(|error| unreadable(path, &error))?;
    if seen.is_file() {
        Ok(seen.len())
    } else {
        Err(stray(path))
    }
}

fn is_like_sleds(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| role(&name.to_string_lossy()) != Role::Other)
}

fn private() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    builder
}

fn failed(folder: &Path, error: EngineError) -> StoreError {
    match error {
        EngineError::Damaged(_) => StoreError::Damaged {
            file: folder.join(LOG),
            why: error.to_string(),
        },
        EngineError::Busy | EngineError::Conflict | EngineError::Full => {
            StoreError::Io(format!("{}: {error}", folder.display()))
        }
        EngineError::Io(why) if why.contains("Permission denied") => StoreError::Io(format!(
            "{why}: the server's user must own the files in {} (`chown -R`), and no other must be able to use them",
            folder.display()
        )),
        EngineError::Io(why) => StoreError::Io(format!(
            "{why} (in {}): look at the disk, then start again",
            folder.display()
        )),
    }
}

fn stray(path: &Path) -> StoreError {
    StoreError::Io(format!(
        "{} stands where the store keeps a file of its own: move it away, and put the store's file there if it is missing",
        path.display()
    ))
}

fn unreadable(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Io(format!(
        "{} can't be read: {error}; {}",
        path.display(),
        advice(error)
    ))
}

fn unwritable(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Io(format!(
        "{} can't be written: {error}; {}",
        path.display(),
        advice(error)
    ))
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "the server's user must own it (`chown`), and have the right to write it (`chmod u+rw`, directories `chmod 700`)"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            "make room on the disk: a copy of the store is made before it is opened"
        }
        io::ErrorKind::ReadOnlyFilesystem => "mount its file system so that it can be written",
        _ => "look at the disk, or restore the store from a backup",
    }
}
