//! Who a client is: its certificate, turned into one name.
//!
//! | the end-entity certificate has | the identity is |
//! |---|---|
//! | a URI SAN with the scheme `spiffe` | that SPIFFE ID, `spiffe://domain/path` |
//! | else a DNS SAN | `dns:` and the first of them, in lower case |
//! | else | `spki:sha256:` and the SHA-256 of the `SubjectPublicKeyInfo`, 64 hex digits |
//!
//! The prefix is always written here and never comes from the certificate: what a client puts into
//! a SAN can't make one kind look like another. A URI or DNS SAN that is not well formed refuses
//! the certificate, and so does a URI that only looks like a SPIFFE ID; it does not fall through to
//! the next kind, which would be a way to choose one's name.

use std::fmt;
use std::str::FromStr;

use crate::hex;
use sha2::{Digest, Sha256};
use x509_parser::asn1_rs::Any;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// SPIFFE-ID, section 2.3: "no more than 2048 bytes".
const MAX_SPIFFE_ID: usize = 2048;
const MAX_TRUST_DOMAIN: usize = 255;
/// RFC 1035, section 2.3.4, as text.
const MAX_DNS_NAME: usize = 253;
const MAX_DNS_LABEL: usize = 63;

/// What an identity looks like.
const FORMS: &str =
    "write spiffe://DOMAIN/PATH, dns:NAME, or spki:sha256: and 64 lower-case hex digits";

/// A client's name: `spiffe://domain/path`, `dns:host.example`, or `spki:sha256:<64 hex digits>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity(String);

/// What an identity was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A URI SAN with the scheme `spiffe`.
    Spiffe,
    /// A DNS SAN.
    Dns,
    /// The public key.
    Key,
}

/// Why a certificate or a text gives no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not an X.509 certificate, or no certificate at all.
    #[error("the client certificate can't be read: {0}")]
    Malformed(String),
    /// X509-SVID, section 2: "exactly one URI SAN".
    #[error(
        "the client certificate has a SPIFFE ID and {0} URI SANs in all: an X509-SVID has exactly one; issue it with one"
    )]
    SeveralUris(usize),
    /// A SPIFFE ID that breaks the SPIFFE-ID specification.
    #[error("{id:?} is not a SPIFFE ID: {problem}")]
    Spiffe {
        /// As found.
        id: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A URI that is none, or looks like a SPIFFE ID and is none.
    #[error("the client certificate has the URI {uri:?}, which is not taken: {problem}")]
    Uri {
        /// As found.
        uri: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A DNS name that is none, or is a wildcard.
    #[error("{name:?} does not name a client: {problem}")]
    Dns {
        /// As found.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A text that has none of the three forms.
    #[error("{0:?} is not an identity: {FORMS}")]
    Form(String),
}

impl IdentityError {
    /// What is wrong, without the text that was found: for a text of a file, where it may be an API
    /// token.
    pub fn problem(&self) -> &str {
        match self {
            Self::Spiffe { problem, .. }
            | Self::Uri { problem, .. }
            | Self::Dns { problem, .. } => problem,
            Self::Form(_) | Self::SeveralUris(_) => FORMS,
            Self::Malformed(problem) => problem,
        }
    }
}

impl Identity {
    /// From an end-entity certificate, DER.
    pub fn from_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let (rest, certificate) = X509Certificate::from_der(der)
            .map_err(|error| IdentityError::Malformed(error.to_string()))?;
        if !rest.is_empty() {
            return Err(IdentityError::Malformed("bytes follow its end".to_owned()));
        }
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| IdentityError::Malformed(error.to_string()))?
            .map_or(&[][..], |extension| &extension.value.general_names);
        if names
            .iter()
            .any(|name| matches!(name, GeneralName::Invalid(..)))
        {
            return Err(IdentityError::Malformed(
                "a subject alternative name is not readable".to_owned(),
            ));
        }

        let mut uris = Vec::new();
        let mut dns = Vec::new();
        for name in names {
            match name {
                GeneralName::URI(uri) => uris.push(*uri),
                GeneralName::DNSName(name) => dns.push(*name),
                _ => {}
            }
        }
        // One that is not well formed is refused wherever it stands: who reads it otherwise would
        // see another name.
        for uri in &uris {
            check_uri(uri).map_err(|problem| IdentityError::Uri {
                uri: cut(uri),
                problem,
            })?;
        }
        // A certificate for a server has wildcards beside its name; they name nobody here.
        for name in dns.iter().skip(1) {
            Self::dns(name.strip_prefix("*.").unwrap_or(name))?;
        }
        if let Some(id) = uris.iter().find(|uri| has_spiffe_scheme(uri)) {
            return match uris.len() {
                1 => Self::spiffe(id),
                several => Err(IdentityError::SeveralUris(several)),
            };
        }
        if let Some(name) = dns.first() {
            return Self::dns(name);
        }
        let key = certificate.public_key().raw;
        // The parser leaves out what follows the key's bits inside the SEQUENCE: then this is not
        // all of it.
        if Any::from_der(key).is_err() {
            return Err(IdentityError::Malformed(
                "bytes follow its public key".to_owned(),
            ));
        }
        Ok(Self::spki(key))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What it was made of.
    pub fn kind(&self) -> Kind {
        if self.0.starts_with("dns:") {
            Kind::Dns
        } else if self.0.starts_with("spki:") {
            Kind::Key
        } else {
            Kind::Spiffe
        }
    }

    fn spiffe(id: &str) -> Result<Self, IdentityError> {
        check_spiffe(id).map_err(|problem| IdentityError::Spiffe {
            id: cut(id),
            problem,
        })?;
        Ok(Self(id.to_owned()))
    }

    fn dns(name: &str) -> Result<Self, IdentityError> {
        let lower = name.to_ascii_lowercase();
        check_dns(&lower).map_err(|problem| IdentityError::Dns {
            name: cut(name),
            problem,
        })?;
        Ok(Self(format!("dns:{lower}")))
    }

    fn spki(der: &[u8]) -> Self {
        Self(format!("spki:sha256:{}", hex::encode(&Sha256::digest(der))))
    }
}

/// Reads what [`Identity::as_str`] wrote, as the tokens file has it.
impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        if has_spiffe_scheme(text) {
            return Self::spiffe(text);
        }
        if let Some(name) = text.strip_prefix("dns:") {
            return Self::dns(name);
        }
        match text.strip_prefix("spki:sha256:") {
            Some(hex) if is_sha256(hex) => Ok(Self(text.to_owned())),
            _ => Err(IdentityError::Form(cut(text))),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Also true for `SPIFFE:`, which is then refused: a sloppy scheme must not turn a SPIFFE
/// certificate into a DNS one.
fn has_spiffe_scheme(uri: &str) -> bool {
    uri.get(..7)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("spiffe:"))
}

/// RFC 3986: visible ASCII that begins with a scheme. What looks like a SPIFFE ID without being one
/// is not passed over: its reader meant that name.
fn check_uri(uri: &str) -> Result<(), &'static str> {
    if has_spiffe_scheme(uri) {
        return Ok(());
    }
    if !uri
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte))
    {
        return Err("it has a blank or a character that no URI has");
    }
    let scheme = uri.split_once(':').map_or("", |(scheme, _)| scheme);
    let well_formed = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+.-".contains(&byte));
    if !well_formed {
        return Err("it has no scheme");
    }
    let lower = uri.to_ascii_lowercase();
    if scheme.to_ascii_lowercase().contains("spiffe")
        || lower.contains("spiffe:")
        || lower.contains("spiffe%3a")
    {
        return Err("it looks like a SPIFFE ID and is none");
    }
    Ok(())
}

/// For messages: names come from outside, in any length.
fn cut(text: &str) -> String {
    const MAX_SHOWN: usize = 256;
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// SPIFFE-ID, section 2.
fn check_spiffe(id: &str) -> Result<(), &'static str> {
    if id.len() > MAX_SPIFFE_ID {
        return Err("it is longer than 2048 bytes");
    }
    let rest = id
        .strip_prefix("spiffe://")
        .ok_or("it must begin with spiffe:// in lower case")?;
    let (domain, path) = rest.split_once('/').ok_or(
        "it has no path; a trust domain alone names an authority, not a client (X509-SVID, section 5.2)",
    )?;
    if domain.is_empty() {
        return Err("the trust domain is empty");
    }
    if domain.len() > MAX_TRUST_DOMAIN {
        return Err("the trust domain is longer than 255 bytes");
    }
    if !domain
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte))
    {
        return Err("the trust domain may hold only a-z, 0-9, '.', '-' and '_'");
    }
    for segment in path.split('/') {
        match segment {
            "" => return Err("a path segment is empty, or the path ends with '/'"),
            "." | ".." => return Err("a path segment is '.' or '..'"),
            _ => {}
        }
        if !segment
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        {
            return Err("the path may hold only letters, digits, '.', '-', '_' and '/'");
        }
    }
    Ok(())
}

/// One spelling only, as identities are compared as text.
fn is_sha256(text: &str) -> bool {
    hex::decode::<32>(text).is_some()
}

fn check_dns(name: &str) -> Result<(), &'static str> {
    if name.starts_with("*.") {
        return Err("it is a wildcard, which names no single client");
    }
    if name.is_empty() || name.len() > MAX_DNS_NAME {
        return Err("a DNS name has 1 to 253 bytes");
    }
    for label in name.split('.') {
        if label.is_empty() || label.len() > MAX_DNS_LABEL {
            return Err("each label of a DNS name has 1 to 63 bytes, and no dot ends it");
        }
        if !label
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte))
        {
            return Err("a DNS name may hold only letters, digits, '-', '_' and '.'");
        }
    }
    let last = name.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("it is an IP address, or ends as one does");
    }
    Ok(())
}

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rcgen::{CertificateParams, KeyPair, PublicKeyData, SanType};

    use super::*;

    fn certificate(names: Vec<SanType>) -> (Vec<u8>, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        let der = params.self_signed(&key).unwrap().der().to_vec();
        (der, key)
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    fn dns(text: &str) -> SanType {
        SanType::DnsName(text.try_into().unwrap())
    }

    fn identity(names: Vec<SanType>) -> Result<String, IdentityError> {
        Identity::from_certificate(&certificate(names).0).map(|identity| identity.0)
    }

    #[test]
    fn a_public_key_with_bytes_behind_it_is_refused() {
        // Found by fuzzing; a certificate library makes no such thing.
        let der = include_bytes!("../../fuzz/seeds/certificate/bytes-after-key");
        let error = Identity::from_certificate(der).unwrap_err().to_string();
        assert!(error.contains("bytes follow its public key"), "{error}");
    }

    #[test]
    fn spiffe_comes_before_dns() {
        let names = vec![dns("a.example"), uri("spiffe://example.org/ns/prod/vault")];
        assert_eq!(
            identity(names).unwrap(),
            "spiffe://example.org/ns/prod/vault"
        );
    }

    #[test]
    fn another_uri_is_not_an_identity() {
        let names = vec![uri("https://example.org/x"), dns("A.Example")];
        assert_eq!(identity(names).unwrap(), "dns:a.example");
    }

    #[test]
    fn what_is_almost_a_spiffe_id_does_not_fall_through_to_the_dns_name() {
        for almost in [
            " spiffe://example.org/a",
            "\tspiffe://example.org/a",
            "spiffe ://example.org/a",
            "spiffe://example.org/a ",
            "SPIFFE://example.org/a",
            "Spiffe://example.org/a",
            "spiffes://example.org/a",
            "xspiffe://example.org/a",
            "spiffe//example.org/a",
            "spiffe%3A//example.org/a",
            "%73piffe://example.org/a",
            "urn:spiffe://example.org/a",
            "https://example.org/?id=spiffe%3a//example.org/a",
            "//example.org/a",
            "example.org/a",
            "",
            "https://example.org/a b",
            "https://example.org/\0",
            "7https://example.org/",
            ":spiffe",
        ] {
            let error = identity(vec![uri(almost), dns("a.example")]).unwrap_err();
            let expected = matches!(
                error,
                IdentityError::Uri { .. } | IdentityError::Spiffe { .. }
            );
            assert!(expected, "{almost:?}: {error}");
        }
    }

    #[test]
    fn every_dns_name_is_well_formed_and_the_first_names_the_client() {
        for bad in [
            "",
            ".",
            "a.example.",
            ".a.example",
            "a..example",
            "a b.example",
            " a.example",
            "a.example\0.evil.example",
            "a/b.example",
            "*",
            "a.*.example",
            "10.0.0.1",
            "a.123",
        ] {
            for names in [vec![dns(bad)], vec![dns("a.example"), dns(bad)]] {
                let error = identity(names).unwrap_err();
                assert!(
                    matches!(error, IdentityError::Dns { .. }),
                    "{bad:?}: {error}"
                );
            }
        }
        assert!(identity(vec![dns("*.a.example")]).is_err());
        let names = vec![dns("a.example"), dns("*.a.example"), dns("b.example")];
        assert_eq!(identity(names).unwrap(), "dns:a.example");
        let only_an_address = vec![SanType::IpAddress("192.0.2.1".parse().unwrap())];
        assert!(
            identity(only_an_address)
                .unwrap()
                .starts_with("spki:sha256:")
        );
    }

    #[test]
    fn an_error_repeats_little_of_what_came() {
        let long = format!("spiffe://example.org/{}", "é".repeat(60_000));
        let error = identity(vec![uri("https://a/ "), dns("a")]).unwrap_err();
        assert!(error.to_string().len() < 200, "{error}");
        let error = long.parse::<Identity>().unwrap_err();
        assert!(
            error.to_string().len() < 2000,
            "{}",
            error.to_string().len()
        );
    }

    #[test]
    fn two_uris_with_a_spiffe_id_are_refused() {
        for second in ["spiffe://example.org/b", "https://example.org/"] {
            let names = vec![uri(second), uri("spiffe://example.org/a")];
            assert_eq!(identity(names).unwrap_err(), IdentityError::SeveralUris(2));
        }
    }

    #[test]
    fn the_first_dns_name_is_used_in_lower_case() {
        let names = vec![dns("Vault-0.Example.ORG"), dns("b.example.org")];
        assert_eq!(identity(names).unwrap(), "dns:vault-0.example.org");
    }

    #[test]
    fn without_names_it_is_the_public_key() {
        let (der, key) = certificate(vec![]);
        let digest = Sha256::digest(key.subject_public_key_info());
        let expected = format!("spki:sha256:{}", hex::encode(&digest));
        let found = Identity::from_certificate(&der).unwrap();
        assert_eq!(found.as_str(), expected);
        assert_eq!(expected.len(), "spki:sha256:".len() + 64);
    }

    #[test]
    fn a_dns_name_that_poses_as_another_kind_is_refused() {
        for name in [
            "spiffe://example.org/a",
            "spki:sha256:00",
            "*.example.org",
            "a..b",
            "a.",
            "a b",
            "a\nb",
            "",
        ] {
            let error = identity(vec![dns(name)]).unwrap_err();
            assert!(
                matches!(error, IdentityError::Dns { .. }),
                "{name:?}: {error}"
            );
        }
    }

    #[test]
    fn malformed_spiffe_ids_are_refused() {
        for id in [
            "spiffe:example.org/a",
            "SPIFFE://example.org/a",
            "spiffe:///a",
            "spiffe://example.org",
            "spiffe://example.org/",
            "spiffe://Example.org/a",
            "spiffe://example.org:80/a",
            "spiffe://user@example.org/a",
            "spiffe://example.org/a/",
            "spiffe://example.org//a",
            "spiffe://example.org/a/../b",
            "spiffe://example.org/./a",
            "spiffe://example.org/a?b",
            "spiffe://example.org/a#b",
            "spiffe://example.org/a%20b",
            "spiffe://example.org/*",
        ] {
            let error = identity(vec![uri(id), dns("a.example")]);
            let alone = identity(vec![uri(id)]).unwrap_err();
            assert!(error.is_err(), "{id} fell through to the DNS name");
            assert!(
                matches!(alone, IdentityError::Spiffe { .. }),
                "{id}: {alone}"
            );
        }
        let long = format!("spiffe://example.org/{}", "a".repeat(2048));
        assert!(identity(vec![uri(&long)]).is_err());
    }

    #[test]
    fn garbage_is_refused() {
        for der in [&[][..], b"garbage", &[0x30, 0x82, 0xff, 0xff]] {
            assert!(matches!(
                Identity::from_certificate(der),
                Err(IdentityError::Malformed(_))
            ));
        }
        let mut der = certificate(vec![]).0;
        der.push(0);
        assert!(Identity::from_certificate(&der).is_err());
    }

    #[test]
    fn a_name_reads_back() {
        for text in [
            "spiffe://example.org/a".to_owned(),
            "dns:a.example".to_owned(),
            format!("spki:sha256:{}", "0a".repeat(32)),
        ] {
            assert_eq!(text.parse::<Identity>().unwrap().as_str(), text);
        }
        for text in ["", "a.example", "spki:sha256:00", "dns:", "spki:sha1:00"] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(der: Vec<u8>) {
            let _ = Identity::from_certificate(&der);
        }
    }
}
