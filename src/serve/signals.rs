//! What each signal does.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::reload::Reloader;
use crate::api::App;
use crate::client::causes;

/// The signals that the server acts on; from here on none of them has its default effect.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user1: Signal,
}

impl Signals {
    /// Call it inside the runtime.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
        })
    }

    /// Reloads and reopens as told, until told to stop.
    pub(super) async fn until_stop(&mut self, app: &App, reloader: &Arc<Reloader>) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => reloader.reload("SIGHUP").await,
                _ = self.user1.recv() => match app.audit.reopen().await {
                    Ok(()) => tracing::info!("audit log opened anew"),
                    Err(error) => tracing::error!(error = causes(&error), "audit log not opened anew"),
                },
            }
        }
    }

    /// Returns when told to stop once more.
    pub(super) async fn stop_again(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
