//! TLS as the appliance speaks it: 1.3 only, a client certificate always, X25519MLKEM768 preferred, hot reload, revocation.

use std::path::PathBuf;
use std::sync::Arc;

use crate::identity::Identity;

/// The files TLS is made of, all PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The server's chain.
    pub certificate: PathBuf,
    /// Its private key, PKCS#8 or SEC1.
    pub private_key: PathBuf,
    /// The CAs that client certificates are checked against.
    pub client_ca: PathBuf,
    /// CRLs of those CAs; where there are any, a certificate whose status is unknown is refused.
    pub crls: Vec<PathBuf>,
}

/// Why TLS files were refused; the old ones stay in force on reload.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct TlsError {
    /// Which file.
    pub file: PathBuf,
    /// What is wrong with it and what is expected.
    pub problem: String,
}

/// The TLS configuration in force, replaced as a whole.
pub struct Tls {}

/// The client at the other end of one connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name.
    pub identity: Identity,
    /// Address and port.
    pub remote: std::net::SocketAddr,
    /// Its certificate chain, DER, end entity first: checked again when CA or CRLs change.
    pub chain: Arc<Vec<Vec<u8>>>,
}

#[allow(unused_variables, clippy::todo)]
impl Tls {
    /// Reads and checks everything.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        todo!()
    }

    /// Reads everything again; on an error the old configuration stays in force.
    pub fn reload(&self) -> Result<(), TlsError> {
        todo!()
    }

    /// The configuration for the next handshake.
    pub fn server_config(&self) -> Arc<rustls::ServerConfig> {
        todo!()
    }

    /// Rises with each successful reload.
    pub fn generation(&self) -> u64 {
        todo!()
    }

    /// Whether the peer's certificate is still good (CA, validity, revocation) under the configuration in force:
    /// asked for each request, answered from a cache unless the generation changed or the certificate expired.
    pub fn still_valid(&self, peer: &Peer) -> Result<(), String> {
        todo!()
    }

    /// The files to watch.
    pub fn files(&self) -> Vec<PathBuf> {
        todo!()
    }
}
