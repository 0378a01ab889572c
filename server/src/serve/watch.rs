//! TLS files, CRLs, policy and tokens: whichever changes on disk is read again, without a signal.
//!
//! Looked at once a second rather than watched through inotify: that wakes for every write into the
//! same directories (the audit log may be in one), and is silent where files come by network file
//! systems or bind mounts.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use strongroom_core::config::Config;

use super::reload::Reloader;

/// How often the files are looked at. Also the time for whoever replaces certificate and key to
/// replace both: a change is read when nothing has changed since the look before.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The files, and what they looked like when they were last read.
pub(super) struct Watch {
    files: Vec<PathBuf>,
    read: Fingerprint,
}

/// Device, inode, size and time of change of each file; `None` for one that can't be seen.
type Fingerprint = Vec<Option<(u64, u64, u64, i64, i64)>>;

impl Watch {
    /// To be made before the files are first read: a change during the start is one too.
    pub(super) fn new(config: &Config) -> Self {
        let files: Vec<_> = config
            .tls
            .all()
            .chain([&config.policy])
            .chain(&config.tokens)
            .cloned()
            .collect();
        let read = fingerprint(&files);
        Self { files, read }
    }

    /// Looks for ever; reloads once per change, whether it succeeds or not.
    pub(super) async fn run(mut self, reloader: Arc<Reloader>) {
        let mut last = self.read.clone();
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            let now = fingerprint(&self.files);
            if now != self.read && now == last {
                self.read.clone_from(&now);
                reloader.reload("a file changed").await;
            }
            last = now;
        }
    }
}

/// Follows symbolic links, as reading does: a link that is turned to another file is a change.
fn fingerprint(files: &[PathBuf]) -> Fingerprint {
    let look = |file: &PathBuf| {
        let seen = std::fs::metadata(file).ok()?;
        Some((
            seen.dev(),
            seen.ino(),
            seen.size(),
            seen.ctime(),
            seen.ctime_nsec(),
        ))
    };
    files.iter().map(look).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    #[test]
    fn a_file_written_replaced_or_relinked_looks_different() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("a"), "1").unwrap();
        fs::write(path("b"), "2").unwrap();
        std::os::unix::fs::symlink(path("a"), path("link")).unwrap();
        let files = vec![path("a"), path("link"), path("later")];
        let mut seen = vec![fingerprint(&files)];
        fs::write(path("a"), "longer").unwrap();
        seen.push(fingerprint(&files));
        fs::write(path("new"), "longer").unwrap();
        fs::rename(path("new"), path("a")).unwrap();
        seen.push(fingerprint(&files));
        fs::remove_file(path("link")).unwrap();
        std::os::unix::fs::symlink(path("b"), path("link")).unwrap();
        seen.push(fingerprint(&files));
        fs::write(path("later"), "").unwrap();
        seen.push(fingerprint(&files));
        seen.dedup();
        assert_eq!(seen.len(), 5, "{seen:?}");
        assert_eq!(fingerprint(&files), fingerprint(&files));
    }
}
