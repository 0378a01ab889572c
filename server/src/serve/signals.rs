//! What each signal does.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use strongroom_core::causes::causes;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

use super::reload::Reloader;
use crate::api::App;

/// A reload under way at a stop has so much time to end: a disk may hang.
const MAX_RELOAD_AT_STOP: Duration = Duration::from_secs(1);

/// The signals that the server acts on; from here on none of them has its default effect.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user1: Signal,
    /// Never waited for: a write beyond a limit of the process fails, as one on a full disk does,
    /// instead of ending it.
    _file_size: Signal,
}

impl Signals {
    /// Call it inside the runtime.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            _file_size: signal(SignalKind::from_raw(nix::libc::SIGXFSZ))?,
        })
    }

    /// Reloads and reopens as told, until told to stop. A reload or a reopening that waits for the
    /// disk or the token keeps no other signal from being heard; of its own kind, one that
    /// comes meanwhile has its turn afterwards.
    pub(super) async fn until_stop(&mut self, app: &Arc<App>, reloader: &Arc<Reloader>) {
        let (mut reloads, mut reopenings) = (JoinSet::new(), JoinSet::new());
        loop {
            tokio::select! {
                _ = self.terminate.recv() => break,
                _ = self.interrupt.recv() => break,
                _ = self.hangup.recv(), if reloads.is_empty() => {
                    let reloader = Arc::clone(reloader);
                    reloads.spawn(async move { reloader.reload("SIGHUP").await });
                }
                _ = self.user1.recv(), if reopenings.is_empty() => {
                    reopenings.spawn(reopen(Arc::clone(app)));
                }
                Some(_) = reloads.join_next() => {}
                Some(_) = reopenings.join_next() => {}
            }
        }
        reloader.stop();
        // A reload that waits does so no longer now, and systemd is to be told of its end before
        // the stop.
        let ends = async { while reloads.join_next().await.is_some() {} };
        if tokio::time::timeout(MAX_RELOAD_AT_STOP, ends)
            .await
            .is_err()
        {
            tracing::warn!("a reload does not end, and is left behind");
        }
        // One that was begun goes on: the log's end waits for it.
        reopenings.detach_all();
    }

    /// Returns when told to stop once more.
    pub(super) async fn stop_again(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn reopen(app: Arc<App>) {
    match app.audit.reopen().await {
        Ok(()) => tracing::info!("audit log opened again"),
        Err(error) => tracing::error!(error = causes(&error), "audit log not opened again"),
    }
}
