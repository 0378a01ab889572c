//! What systemd is told (`Type=notify-reload`); nothing happens where `NOTIFY_SOCKET` is not set.

use sd_notify::NotifyState;

/// Serving.
pub(super) fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Serving on, as before the reload.
pub(super) fn reloaded() {
    send(&[NotifyState::Ready]);
}

/// A reload begins; [`reloaded`] ends it. The time is what ties the two together, see
/// `systemd.service(5)`.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "systemd can't be told of the reload"),
    }
}

/// About to leave.
pub(super) fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// Still alive.
pub(super) fn watchdog() {
    send(&[NotifyState::Watchdog]);
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd can't be told");
    }
}
