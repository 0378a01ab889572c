//! From PEM files to what rustls takes, with errors that say what is expected.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::slice;
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::{Zeroize, Zeroizing};

use super::authority::{Authorities, Authority};
use super::crl::Crl;
use super::pem::{self, PemContents};
use super::revocation;
use super::{ClientCa, TlsError};
use crate::files;
use crate::parse_error;

/// The server's chain with its key.
pub(super) fn certified_key(certificate: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(certificate, &A_CHAIN)?;
    let key_der = private_key(key)?;
    let certified = CertifiedKey::new(
        chain,
        any_supported_type(&key_der.0).map_err(|error| {
            refuse(
                key,
                format!("{error}: expected an ECDSA (P-256, P-384, P-521), Ed25519 or RSA key"),
            )
        })?,
    );
    certified.keys_match().map_err(|_| {
        refuse(
            key,
            format!(
                "it is not the private key of the first certificate in {}: were they renewed together, and is the server's own certificate first?",
                certificate.display()
            ),
        )
    })?;
    Ok(certified)
}

/// When the server's own certificate ends.
pub(super) fn end_of(path: &Path, key: &CertifiedKey) -> Result<Expiry, TlsError> {
    let certificate = parse(
        path,
        key.end_entity_cert()
            .map_err(|error| refuse(path, error.to_string()))?,
    )?;
    Ok(Expiry {
        file: path.to_owned(),
        name: certificate.subject().to_string(),
        end: certificate.validity().not_after.timestamp(),
        is_crl: false,
    })
}

/// The CAs that client certificates are checked against.
pub(super) fn authorities(files: &[ClientCa]) -> Result<Authorities, TlsError> {
    let (authorities, problems) = authorities_and_problems(files)?;
    problems.into_iter().next().map_or(Ok(authorities), Err)
}

/// With what can't be of them together.
pub(super) fn authorities_and_problems(
    files: &[ClientCa],
) -> Result<(Authorities, Vec<TlsError>), TlsError> {
    let mut all: Vec<(&Path, Authority)> = Vec::new();
    let mut problems = Vec::new();
    for ca in files {
        let before = all.len();
        for certificate in certificates(&ca.file, &A_CA)? {
            let authority = Authority::new(&ca.file, &certificate, &ca.identities)?;
            // In two files, the wider of its bounds would be the one that holds.
            let elsewhere = all
                .iter()
                .take(before)
                .find(|(_, one)| one.spki() == authority.spki());
            if let Some((other, _)) = elsewhere {
                problems.push(refuse(
                    &ca.file,
                    format!(
                        "the key of the CA {} is in {} too: in which of them is what it may name? Remove it from one",
                        authority.name(),
                        other.display()
                    ),
                ));
            }
            all.push((&ca.file, authority));
        }
    }
    let algorithms = super::provider().signature_verification_algorithms;
    let all = all.into_iter().map(|(_, one)| one).collect();
    let authorities = Authorities::new(all, &algorithms);
    problems.extend(authorities.unproven(&algorithms));
    Ok((authorities, problems))
}

/// Every CRL of these files.
pub(super) fn crls(paths: &[PathBuf]) -> Result<Vec<Crl>, TlsError> {
    let mut crls = Vec::new();
    for path in paths {
        for der in der::<CertificateRevocationListDer<'_>>(path, &A_CRL)? {
            crls.push(Crl::read(path, &der).map_err(|problem| refuse(path, problem))?);
        }
    }
    Ok(crls)
}

/// What is wrong with each of the files by itself.
pub(super) fn problems(files: &super::TlsFiles) -> Vec<TlsError> {
    let mut own: Vec<TlsError> = certificates(&files.certificate, &A_CHAIN)
        .err()
        .into_iter()
        .chain(private_key(&files.private_key).err())
        .collect();
    if own.is_empty() {
        own.extend(certified_key(&files.certificate, &files.private_key).err());
    }
    let cas = files
        .client_cas
        .iter()
        .filter_map(|ca| authorities_and_problems(slice::from_ref(ca)).err());
    let lists = files
        .crls
        .iter()
        .filter_map(|path| crls(slice::from_ref(path)).err());
    own.into_iter().chain(cas).chain(lists).collect()
}

/// What is wrong with the files together, each of which is good alone.
pub(super) fn problems_together(files: &super::TlsFiles) -> Result<Vec<TlsError>, TlsError> {
    let (authorities, mut problems) = authorities_and_problems(&files.client_cas)?;
    let mut lists = crls(&files.crls)?;
    if !lists.is_empty() {
        let algorithms = super::provider().signature_verification_algorithms;
        problems.extend(revocation::problems(
            &mut lists,
            &authorities,
            &algorithms,
            now(),
        ));
    }
    let key = certified_key(&files.certificate, &files.private_key)?;
    problems.extend(ended_certificate(&end_of(&files.certificate, &key)?, now()));
    Ok(problems)
}

/// The server's certificate has ended.
pub(super) fn ended_certificate(end: &Expiry, now: i64) -> Option<TlsError> {
    (now > end.end).then(|| {
        refuse(
            &end.file,
            format!(
                "the server certificate {} expired on {}: renew it",
                end.name,
                date(end.end)
            ),
        )
    })
}

/// When a certificate or a CRL ends.
#[derive(Clone, Debug)]
pub struct Expiry {
    /// Its file.
    pub file: PathBuf,
    /// Whose it is: a certificate's subject, a CRL's issuer.
    pub name: String,
    /// Seconds since 1970.
    pub end: i64,
    /// A CRL, which is renewed as a matter of course.
    pub is_crl: bool,
}

/// Of the server's chain, the clients' CAs and the CRLs, in that order. Of a CA with a renewed
/// certificate, and of a key with several CRLs, the last end counts.
///
/// # Errors
/// A file that can't be read, or CRLs that are not taken.
pub fn expiries(files: &super::TlsFiles) -> Result<Vec<Expiry>, TlsError> {
    let mut found = Vec::new();
    for certificate in certificates(&files.certificate, &A_CHAIN)? {
        let certificate = parse(&files.certificate, &certificate)?;
        found.push(Expiry {
            file: files.certificate.clone(),
            name: certificate.subject().to_string(),
            end: certificate.validity().not_after.timestamp(),
            is_crl: false,
        });
    }
    let authorities = authorities(&files.client_cas)?;
    found.extend(authorities.ends());
    found.extend(revocation::ends(&crls(&files.crls)?, &authorities));
    Ok(found)
}

/// A kind of file.
struct Kind {
    wanted: PemContents,
    /// What is in it, for people.
    what: &'static str,
    /// What to do, for people.
    expected: &'static str,
}

const A_CRL: Kind = Kind {
    wanted: PemContents {
        label: "X509 CRL",
        with_keys: false,
    },
    what: "CRL",
    expected: "expected `-----BEGIN X509 CRL-----` (from DER: `openssl crl -inform DER -in FILE -out FILE.pem`)",
};

const A_CA: Kind = Kind {
    wanted: PemContents {
        label: "CERTIFICATE",
        with_keys: false,
    },
    what: "certificate",
    expected: "expected `-----BEGIN CERTIFICATE-----` (from DER: `openssl x509 -inform DER -in FILE -out FILE.pem`)",
};

/// Some keep the server's key in the file of its chain.
const A_CHAIN: Kind = Kind {
    wanted: PemContents {
        label: "CERTIFICATE",
        with_keys: true,
    },
    ..A_CA
};

fn certificates(path: &Path, kind: &Kind) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = der::<CertificateDer<'_>>(path, kind)?;
    for certificate in &certificates {
        parse(path, certificate)?;
    }
    Ok(certificates)
}

/// Every section of the file. What is passed over may be the one that counts, so a file is taken
/// whole or not at all.
fn der<T: PemObject>(path: &Path, kind: &Kind) -> Result<Vec<T>, TlsError> {
    let broken = |problem: String| {
        refuse(
            path,
            format!("the PEM is broken: {problem}; {}", kind.expected),
        )
    };
    let pem = read(path)?;
    let sections = pem::sections(&pem, &kind.wanted).map_err(broken)?;
    if sections.is_empty() {
        return Err(refuse(
            path,
            format!("no PEM {} in it; {}", kind.what, kind.expected),
        ));
    }
    sections
        .into_iter()
        .map(|section| {
            T::from_pem_slice(section).map_err(|error| broken(parse_error::pem(&error).to_owned()))
        })
        .collect()
}

/// A private key that is overwritten when dropped.
struct Key(PrivateKeyDer<'static>);

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

fn private_key(path: &Path) -> Result<Key, TlsError> {
    let file = open(path)?;
    let mode = file
        .metadata()
        .map_err(|error| refuse(path, error.to_string()))?
        .permissions()
        .mode();
    if mode & 0o007 != 0 {
        return Err(refuse(
            path,
            format!(
                "the private key is accessible to every user (mode {:04o}): run `chmod 0600` on it, or 0640 with a group of its own, and replace the key if others may have read it",
                mode & 0o7777
            ),
        ));
    }
    let pem = read_from(path, file)?;
    PrivateKeyDer::from_pem_slice(&pem).map(Key).map_err(|error| {
        let encrypted = pem
            .windows(b"BEGIN ENCRYPTED".len())
            .any(|window| window == b"BEGIN ENCRYPTED");
        refuse(
            path,
            match error {
                PemError::NoItemsFound if encrypted => {
                    "the private key is encrypted with a passphrase: decrypt it (`openssl pkey`) and protect the file instead".to_owned()
                }
                PemError::NoItemsFound => {
                    "no PEM private key in it; expected `-----BEGIN PRIVATE KEY-----`".to_owned()
                }
                error => format!("the PEM is broken: {}", parse_error::pem(&error)),
            },
        )
    })
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    read_from(path, open(path)?)
}

fn open(path: &Path) -> Result<File, TlsError> {
    files::open(path).map_err(|error| refuse(path, format!("it can't be opened: {error}")))
}

fn read_from(path: &Path, file: File) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    files::read_opened(file, files::MAX_PEM)
        .map_err(|error| refuse(path, format!("it can't be read: {error}")))
}

fn parse<'a>(path: &Path, der: &'a [u8]) -> Result<X509Certificate<'a>, TlsError> {
    let (rest, certificate) = X509Certificate::from_der(der)
        .map_err(|error| refuse(path, format!("a certificate can't be read: {error}")))?;
    if !rest.is_empty() {
        return Err(refuse(
            path,
            format!(
                "the certificate of {} is followed by other bytes",
                certificate.subject()
            ),
        ));
    }
    Ok(certificate)
}

pub(super) fn refuse(path: &Path, problem: String) -> TlsError {
    TlsError {
        file: path.to_owned(),
        problem,
    }
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .unwrap_or(0)
}

/// Of seconds since 1970.
pub(super) fn date(time: i64) -> String {
    jiff::Timestamp::from_second(time).map_or_else(
        |_| format!("second {time}"),
        |timestamp| timestamp.to_string(),
    )
}
