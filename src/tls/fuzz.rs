//! Fuzz entry: the PEM files of TLS.
#![allow(
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzz target reports"
)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::{env, process, thread};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::revocation::Revocation;
use super::{ClientCa, files, provider};

/// One file given as certificate, key, client CA and CRL: each is read or refused; all that is taken for a CA says that it is one,
/// and what was taken as CRLs once is taken again.
pub fn pem_files(data: &[u8]) {
    let path = place();
    let written = fs::write(&path, data)
        .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o600)));
    assert!(written.is_ok(), "{}: {written:?}", path.display());
    all_readers(&path, data);
    let _ = fs::remove_file(path);
}

fn all_readers(path: &Path, data: &[u8]) {
    if let Ok(certified) = files::certified_key(path, path) {
        assert!(certified.keys_match().is_ok() && !certified.cert.is_empty());
    }
    let Ok(authorities) = files::authorities(&[ClientCa::for_anybody(path.to_owned())]) else {
        return;
    };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(data).flatten().collect();
    let parsed: Vec<_> = certificates
        .iter()
        .filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1))
        .collect();
    assert!(!parsed.is_empty() && parsed.len() == certificates.len());
    assert!(parsed.iter().all(|certificate| certificate.is_ca()));
    let algorithms = provider().signature_verification_algorithms;
    let revocation = files::crls(&[path.to_owned()])
        .and_then(|crls| Revocation::new(crls, &authorities, algorithms, files::now()));
    if let Ok(revocation) = revocation {
        let none_follows_an_older_one = revocation.follows(&revocation);
        assert!(none_follows_an_older_one.is_ok());
    }
    assert!(files::crls(&[] as &[PathBuf]).is_ok_and(|crls| crls.is_empty()));
}

/// One file for each thread of each process that runs this.
fn place() -> PathBuf {
    let thread = thread::current().id();
    let name = format!("strongroom-fuzz-{}-{thread:?}.pem", process::id());
    env::temp_dir().join(name)
}
