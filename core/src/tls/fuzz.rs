//! Fuzz entry: the PEM files of TLS.
#![allow(
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzz target reports"
)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{env, process, slice};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::revocation::Revocation;
use super::{ClientCa, files, provider};

/// Certificates, a key and CRLs, in that order: each is read or refused; all that is taken for a CA
/// says that it is one, no certificate is passed over, and what was taken as CRLs once is taken
/// again.
pub fn pem_files(data: &[u8]) {
    let (chain, lists) = split(data, b"-----BEGIN X509 CRL");
    let (cas, _) = split(chain, b"-----BEGIN PRIVATE KEY");
    let paths = [chain, cas, lists].map(write);
    all_readers(&paths, cas);
    for path in paths {
        let _ = fs::remove_file(path);
    }
}

fn all_readers([chain, cas, lists]: &[PathBuf; 3], data: &[u8]) {
    if let Ok(certified) = files::certified_key(chain, chain) {
        assert!(certified.keys_match().is_ok() && !certified.cert.is_empty());
    }
    let Ok(authorities) = files::authorities(&[ClientCa::for_anybody(cas.clone())]) else {
        return;
    };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(data).flatten().collect();
    let parsed: Vec<_> = certificates
        .iter()
        .filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1))
        .collect();
    assert!(!parsed.is_empty() && parsed.len() == certificates.len());
    assert_eq!(parsed.len(), authorities.iter().count());
    assert!(parsed.iter().all(|certificate| certificate.is_ca()));
    let algorithms = provider().signature_verification_algorithms;
    let revocation = files::crls(slice::from_ref(lists))
        .and_then(|crls| Revocation::new(crls, &authorities, algorithms, files::now()));
    if let Ok(revocation) = revocation {
        let none_follows_an_older_one = revocation.follows(&revocation, files::now());
        assert!(none_follows_an_older_one.is_ok());
    }
    assert!(files::crls(&[] as &[PathBuf]).is_ok_and(|crls| crls.is_empty()));
}

/// Before where it first stands, and from there on.
fn split<'a>(data: &'a [u8], at: &[u8]) -> (&'a [u8], &'a [u8]) {
    let at = data.windows(at.len()).position(|window| window == at);
    data.split_at(at.unwrap_or(data.len()))
}

fn write(data: &[u8]) -> PathBuf {
    let path = place();
    let written = fs::write(&path, data)
        .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o600)));
    assert!(written.is_ok(), "{}: {written:?}", path.display());
    path
}

/// A file that nobody else has, in whichever thread and process.
fn place() -> PathBuf {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    env::temp_dir().join(format!("strongroom-fuzz-{}-{number}.pem", process::id()))
}
