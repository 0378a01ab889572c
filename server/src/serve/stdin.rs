//! `--stop-with-stdin`: for whoever starts the server and must not leave it behind.

use nix::sys::signal::{Signal, raise};

use super::{ServeError, spawn};
use crate::harden::{Filters, Group};

/// Watches standard input in a thread; its end becomes a SIGTERM to this process, which the server
/// knows how to handle.
pub(super) fn watch(filters: &Filters) -> Result<(), ServeError> {
    let filters = filters.clone();
    let watch = move || {
        if let Err(error) = filters.confine(Group::Server) {
            tracing::error!(%error, "standard input is not watched");
            return;
        }
        // Whatever is written there is of no interest; an error is an end too.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        if let Err(error) = raise(Signal::SIGTERM) {
            tracing::error!(%error, "standard input is closed, but the server can't be stopped");
        }
    };
    spawn("stdin", 64 * 1024, watch).map(drop)
}
