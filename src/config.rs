//! `/etc/strongroom/strongroom.toml`: typed, and validated whole before anything starts.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The whole configuration, after validation.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Serve no request body larger than this, bytes (default 1 MiB... Vault: 32 MiB).
    pub max_body: usize,
    /// Requests in flight at once; one more is answered 503.
    pub max_requests: usize,
    /// Connections at once.
    pub max_connections: usize,
    /// TLS.
    pub tls: crate::tls::TlsFiles,
    /// The token.
    pub hsm: strongroom_hsm::HsmConfig,
    /// The store's folder.
    pub store: PathBuf,
    /// The policy file.
    pub policy: PathBuf,
    /// The tokens file, if tokens are used.
    pub tokens: Option<PathBuf>,
    /// The audit log.
    pub audit: crate::audit::AuditOptions,
    /// The keyring.
    pub keyring: crate::keyring::KeyringOptions,
    /// Mount paths under which Transit is spoken (default: any).
    pub mounts: Vec<String>,
    /// Create a key on `encrypt` of an unknown name, as Vault does for a token with the `create` capability (also needs the policy's `create`).
    pub upsert: bool,
}

/// Everything that is wrong with a configuration, at once.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

#[allow(unused_variables, clippy::todo)]
impl Config {
    /// Reads and validates the whole file; every problem is reported, not the first alone.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        todo!()
    }
}
