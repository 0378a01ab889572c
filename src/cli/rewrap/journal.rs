//! How far the rewrapping of a large file has come, so that an interrupted one goes on there.
//!
//! Beside the file, until it is finished: `FILE.rewrap-partial`, the new text so far, and
//! `FILE.rewrap-journal`, which says what that is.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use strongroom_core::atomic::{self, Access};

use super::Binding;
use super::tally::Tally;

const PARTIAL_SUFFIX: &str = ".rewrap-partial";
const JOURNAL_SUFFIX: &str = ".rewrap-journal";
/// A journal is some hundred bytes.
const MAX_JOURNAL_BYTES: u64 = 64 * 1024;

/// Whether a file is one of those that are kept beside another one.
pub(super) fn is_ours(path: &Path) -> bool {
    path.file_name()
        .and_then(OsStr::to_str)
        .is_some_and(|name| name.ends_with(PARTIAL_SUFFIX) || name.ends_with(JOURNAL_SUFFIX))
}

/// What a file was when its rewrapping began: any change makes what was done so far worthless.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    key: String,
    context: Option<String>,
    #[serde(default)]
    associated_data: Option<String>,
    latest: u32,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Identity {
    pub(super) fn of(file: &File, key: &str, bound: Binding<'_>, latest: u32) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            key: key.to_owned(),
            context: bound.context.map(str::to_owned),
            associated_data: bound.associated_data.map(str::to_owned),
            latest,
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// Where it stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Progress {
    of: Identity,
    /// Bytes of the file that are done.
    pub(super) read: u64,
    /// Bytes of the new text.
    written: u64,
    /// Lines of the file that are done.
    pub(super) lines: u64,
    pub(super) tally: Tally,
}

/// The new text under construction.
pub(super) struct Partial {
    target: PathBuf,
    file: File,
    pub(super) progress: Progress,
}

impl Partial {
    /// Goes on where an earlier run of the same work stopped, or begins again.
    pub(super) fn open(target: &Path, of: Identity, like: &File) -> io::Result<Self> {
        let path = beside(target, PARTIAL_SUFFIX);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)?;
        let earlier =
            read_journal(&beside(target, JOURNAL_SUFFIX)).filter(|earlier| earlier.of == of);
        let length = file.metadata()?.len();
        let progress = match earlier {
            Some(earlier) if earlier.written <= length => earlier,
            _ => Progress {
                of,
                read: 0,
                written: 0,
                lines: 0,
                tally: Tally::default(),
            },
        };
        file.set_len(progress.written)?;
        file.seek(SeekFrom::End(0))?;
        // Before anything is done: whoever may not give the file to its owner again should know it
        // now.
        let metadata = like.metadata()?;
        file.set_permissions(metadata.permissions())?;
        let own = file.metadata()?;
        if (own.uid(), own.gid()) != (metadata.uid(), metadata.gid()) {
            fchown(&file, Some(metadata.uid()), Some(metadata.gid()))?;
        }
        Ok(Self {
            target: target.to_owned(),
            file,
            progress,
        })
    }

    /// Adds new text for `read` bytes and `lines` lines of the file, and remembers it.
    pub(super) fn add(
        &mut self,
        text: &[u8],
        read: u64,
        lines: u64,
        tally: &Tally,
    ) -> io::Result<()> {
        self.file.write_all(text)?;
        // The journal must never be ahead of the text, also after a power cut.
        self.file.sync_data()?;
        self.progress.read += read;
        self.progress.written += text.len() as u64;
        self.progress.lines += lines;
        self.progress.tally.add(tally);
        let journal = beside(&self.target, JOURNAL_SUFFIX);
        let progress = serde_json::to_vec(&self.progress)?;
        atomic::replace(&journal, &progress, Access::Mode(0o600))
    }

    /// Puts the new text in the target's place, in one step.
    pub(super) fn finish(self) -> io::Result<Tally> {
        self.file.sync_all()?;
        fs::rename(beside(&self.target, PARTIAL_SUFFIX), &self.target)?;
        remove(&beside(&self.target, JOURNAL_SUFFIX))?;
        atomic::sync_folder(&self.target)?;
        Ok(self.progress.tally)
    }

    /// Nothing was to be changed.
    pub(super) fn discard(self) -> io::Result<Tally> {
        remove(&beside(&self.target, PARTIAL_SUFFIX))?;
        remove(&beside(&self.target, JOURNAL_SUFFIX))?;
        Ok(self.progress.tally)
    }
}

fn read_journal(path: &Path) -> Option<Progress> {
    let mut text = Vec::new();
    File::open(path)
        .ok()?
        .take(MAX_JOURNAL_BYTES)
        .read_to_end(&mut text)
        .ok()?;
    // One that can't be read is of no use: the work begins again.
    serde_json::from_slice(&text).ok()
}

fn beside(target: &Path, suffix: &str) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
