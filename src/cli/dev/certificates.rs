//! `pki/` of `strongroom dev`: one CA, the server and the clients. What is missing, does not belong
//! together or ends soon is made again, so that a directory of last year still works.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{KeyPair, PublicKeyData as _};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::X509Certificate;
use zeroize::Zeroizing;

use super::client_name;
use crate::cli::exit::Failure;
use crate::cli::files;
use crate::cli::pki::{Authority, Certified};

/// What follows a client's name in its certificate.
pub(super) const DOMAIN: &str = "dev.internal";
/// What has less left than this is made again, seconds.
const MARGIN: i64 = 30 * 24 * 60 * 60;
/// By which the server can be reached, whatever else its certificate says.
const SERVER_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

pub(super) struct Certificates {
    folder: PathBuf,
}

/// A certificate's file and its private key's.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl Certificates {
    /// In that directory, which is there.
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.pair("ca").certificate
    }

    pub(super) fn client(&self, name: &str) -> Pair {
        self.pair(&format!("client-{name}"))
    }

    fn pair(&self, stem: &str) -> Pair {
        Pair {
            certificate: self.folder.join(format!("{stem}.pem")),
            key: self.folder.join(format!("{stem}.key")),
        }
    }

    /// Sees that there is a CA, a server's certificate for `hosts` too, and one for each of
    /// `clients`; says which were there and had to be made again.
    pub(super) fn complete(
        &self,
        hosts: &[String],
        clients: &[String],
    ) -> Result<Vec<String>, Failure> {
        let mut renewed = Vec::new();
        let ca = self.authority(&mut renewed)?;
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let mut server: Vec<String> = names(&SERVER_NAMES);
        server.extend_from_slice(hosts);
        let mut wanted = vec![(self.pair("server"), server)];
        for name in clients {
            wanted.push((self.client(name), vec![format!("{name}.{DOMAIN}")]));
        }
        for (index, (pair, names)) in wanted.iter().enumerate() {
            let found = pair.read()?;
            if found.as_ref().is_some_and(|found| found.serves(names, &ca)) {
                continue;
            }
            if found.is_some() {
                renewed.push(pair.certificate.display().to_string());
            }
            let made = if index == 0 {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                ca.server(&names)?
            } else {
                ca.client(&names.concat())?
            };
            pair.write(&made)?;
        }
        Ok(renewed)
    }

    /// Those that have a certificate already, sorted.
    pub(super) fn known_clients(&self) -> Result<Vec<String>, Failure> {
        let fail = |error: &std::io::Error| Failure::file(&self.folder, error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(|error| fail(&error))? {
            let file = entry.map_err(|error| fail(&error))?.file_name();
            let name = file
                .to_str()
                .and_then(|file| file.strip_prefix("client-")?.strip_suffix(".pem"));
            names.extend(name.and_then(|name| client_name(name).ok()));
        }
        names.sort_unstable();
        Ok(names)
    }

    fn authority(&self, renewed: &mut Vec<String>) -> Result<Authority, Failure> {
        let pair = self.pair("ca");
        let found = pair.read()?;
        if let Some(found) = &found {
            if found.is_valid(&[]) {
                return Ok(Authority::again(found.certificate.clone(), &found.key)?);
            }
            renewed.push(pair.certificate.display().to_string());
        }
        let made = Authority::new("Strongroom dev CA, not for production")?;
        pair.write(&Certified {
            certificate: made.certificate().to_owned(),
            key: made.key(),
        })?;
        Ok(made)
    }
}

impl Pair {
    /// `None`: there is nothing. An absent half is empty.
    fn read(&self) -> Result<Option<Certified>, Failure> {
        let certificate = read_if_there(&self.certificate)?;
        let key = read_if_there(&self.key)?;
        if certificate.is_none() && key.is_none() {
            return Ok(None);
        }
        Ok(Some(Certified {
            certificate: certificate.as_deref().cloned().unwrap_or_default(),
            key: key.unwrap_or_default(),
        }))
    }

    /// Killed in between, the two do not belong together, which is seen at the next start.
    fn write(&self, made: &Certified) -> Result<(), Failure> {
        files::replace(&self.key, made.key.as_bytes())?;
        files::replace(&self.certificate, made.certificate.as_bytes())
    }
}

fn read_if_there(path: &Path) -> Result<Option<Zeroizing<String>>, Failure> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        // What can't be read as text is no PEM, and made again.
        _ => Ok(Some(Zeroizing::new(
            String::from_utf8_lossy(&files::read(path)?).into_owned(),
        ))),
    }
}

impl Certified {
    /// Whether it is of this CA, for all these names, with its own key, and not about to end.
    fn serves(&self, names: &[String], ca: &Authority) -> bool {
        let issuer = with_certificate(ca.certificate(), |ca| key_id(ca, false)).flatten();
        let of = with_certificate(&self.certificate, |it| key_id(it, true)).flatten();
        issuer.is_some() && issuer == of && self.is_valid(names)
    }

    /// The same, whoever issued it.
    fn is_valid(&self, names: &[String]) -> bool {
        let Ok(key) = KeyPair::from_pem(&self.key) else {
            return false;
        };
        let now = jiff::Timestamp::now().as_second();
        with_certificate(&self.certificate, |it| {
            let validity = it.validity();
            let has = its_names(it);
            validity.not_before.timestamp() <= now
                && validity.not_after.timestamp() > now + MARGIN
                && it.public_key().raw == key.subject_public_key_info()
                && names.iter().all(|name| has.contains(&spelt(name)))
        })
        .unwrap_or(false)
    }
}

/// `None`: it is no certificate.
fn with_certificate<T>(pem: &str, ask: impl FnOnce(&X509Certificate<'_>) -> T) -> Option<T> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).ok()?;
    pem.parse_x509().ok().map(|certificate| ask(&certificate))
}

/// Of its own key, or of its issuer's.
fn key_id(certificate: &X509Certificate<'_>, of_issuer: bool) -> Option<Vec<u8>> {
    let mut extensions = certificate.extensions().iter();
    extensions.find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) if !of_issuer => Some(id.0.to_vec()),
        ParsedExtension::AuthorityKeyIdentifier(authority) if of_issuer => {
            authority.key_identifier.as_ref().map(|id| id.0.to_vec())
        }
        _ => None,
    })
}

fn its_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(spelt(name)),
            GeneralName::IPAddress(bytes) => <[u8; 4]>::try_from(*bytes)
                .map(IpAddr::from)
                .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from))
                .ok()
                .map(|address| address.to_string()),
            _ => None,
        })
        .collect()
}

/// In one way.
fn spelt(name: &str) -> String {
    name.parse::<IpAddr>()
        .map_or_else(|_| name.to_ascii_lowercase(), |address| address.to_string())
}
