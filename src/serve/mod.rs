//! Start and stop: the listener, signals, reload, timers, `sd_notify`.

use crate::config::Config;

/// Why the server did not start or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// TLS files.
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
}

/// Runs the server until SIGTERM or SIGINT.
#[allow(unused_variables, clippy::todo)]
pub fn run(config: Config) -> Result<(), ServeError> {
    todo!()
}
