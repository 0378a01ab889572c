//! TLS files, CRLs, policy and tokens: whichever changes on disc is read again, without a signal.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

use super::reload::Reloader;
use crate::api::App;

/// After a first sign of change: time for whoever writes certificate and key to write both.
const SETTLE: Duration = Duration::from_millis(250);

/// Device, inode, size and time of change of each file; `None` for one that can't be seen.
type Fingerprint = Vec<Option<(u64, u64, u64, i64, i64)>>;

/// Watches for ever; reloads once per change, whether it succeeds or not.
pub(super) async fn watch(app: Arc<App>, reloader: Arc<Reloader>) {
    let files = files(&app);
    let mut seen = fingerprint(&files);
    let stirred = Arc::new(Notify::new());
    let _watcher = match watcher(&files, stirred.clone()) {
        Ok(watcher) => watcher,
        Err(error) => {
            tracing::error!(%error, "files can't be watched: after a change, send SIGHUP");
            return;
        }
    };
    loop {
        stirred.notified().await;
        tokio::time::sleep(SETTLE).await;
        // The folders may hold busier files too, the audit log for one; only what these files look like counts.
        let now = fingerprint(&files);
        if now != seen {
            seen = now;
            reloader.reload("a file changed").await;
        }
    }
}

fn files(app: &App) -> Vec<PathBuf> {
    let mut files = app.tls.files();
    files.push(app.config.policy.clone());
    files.extend(app.config.tokens.clone());
    files
}

/// Watches the folders, not the files: a file that is replaced by a rename is another one.
fn watcher(files: &[PathBuf], stirred: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading a file is an event too, and the reload itself reads.
        if !matches!(
            event,
            Ok(notify::Event {
                kind: EventKind::Access(_),
                ..
            })
        ) {
            stirred.notify_one();
        }
    })?;
    let folders: BTreeSet<&Path> = files.iter().filter_map(|file| file.parent()).collect();
    for folder in folders {
        let folder = if folder == Path::new("") {
            Path::new(".")
        } else {
            folder
        };
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
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

    #[tokio::test]
    async fn a_file_replaced_by_a_rename_stirs_and_looks_different() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("policy.toml");
        fs::write(&file, "a").unwrap();
        let files = vec![file.clone()];
        let before = fingerprint(&files);
        let stirred = Arc::new(Notify::new());
        let _watcher = watcher(&files, stirred.clone()).unwrap();
        fs::write(folder.path().join("new"), "b").unwrap();
        fs::rename(folder.path().join("new"), &file).unwrap();
        tokio::time::timeout(Duration::from_secs(5), stirred.notified())
            .await
            .unwrap();
        assert_ne!(fingerprint(&files), before);
    }
}
