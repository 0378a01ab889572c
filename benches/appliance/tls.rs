//! PEM files into rustls, for both sides of a benchmark.

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The CAs of a file.
pub fn roots(file: &Path) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file) {
        roots.add(certificate).expect("a CA certificate");
    }
    roots
}

/// The chain in a file.
pub fn certificates(file: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(file)
        .expect("a PEM file")
        .map(|c| c.expect("a certificate"))
        .collect()
}

/// The key in a file.
pub fn private_key(file: &Path) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_file(file).expect("a private key")
}

/// A client that shows a certificate.
pub fn client(ca: &Path, certificate: &Path, key: &Path) -> Arc<rustls::ClientConfig> {
    let config = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_root_certificates(roots(ca))
        .with_client_auth_cert(certificates(certificate), private_key(key))
        .expect("a client configuration");
    Arc::new(config)
}
