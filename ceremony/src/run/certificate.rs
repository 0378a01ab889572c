//! Whether a certificate that came in is the one that was asked for.

use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use strongroom_core::parse_error;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What was asked for.
pub(super) struct CertificateWanted {
    /// The key's `SubjectPublicKeyInfo`, DER.
    pub(super) spki: Vec<u8>,
    /// DNS names and IP addresses.
    pub(super) names: Vec<String>,
}

/// The chain's first certificate is for this key and these names, for servers, and valid now.
pub(super) fn check(pem: &str, wanted: &CertificateWanted) -> Result<(), String> {
    let chain = chain(pem)?;
    let certificate = parse(&chain[0])?;
    if certificate.public_key().raw != wanted.spki {
        return Err("the first certificate is for another key: have this ceremony's request signed, and put the chain's end first".to_owned());
    }
    valid_now(&certificate)?;
    let names = names(&certificate);
    let missing: Vec<_> = wanted
        .names
        .iter()
        .filter(|name| !names.contains(&normal(name)))
        .cloned()
        .collect();
    if !missing.is_empty() {
        return Err(format!(
            "the certificate lacks the plan's names {}: it has {}",
            missing.join(", "),
            if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            }
        ));
    }
    let usage = certificate
        .extended_key_usage()
        .map_err(|error| error.to_string())?;
    if usage.is_some_and(|usage| !usage.value.server_auth && !usage.value.any) {
        return Err("the certificate is not for TLS servers (extended key usage)".to_owned());
    }
    if certificate.is_ca() {
        return Err("the first certificate is a CA's: put the chain's end first".to_owned());
    }
    Ok(())
}

/// One or more CA certificates, valid now.
pub(super) fn check_authority(pem: &str) -> Result<(), String> {
    for der in chain(pem)? {
        let certificate = parse(&der)?;
        if !certificate.is_ca() {
            return Err(format!(
                "{} is not a CA's certificate",
                certificate.subject()
            ));
        }
        valid_now(&certificate)?;
    }
    Ok(())
}

fn chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| format!("it is not PEM: {}", parse_error::pem(&error)))?;
    if chain.is_empty() {
        return Err(
            "there is no certificate in it: expected -----BEGIN CERTIFICATE-----".to_owned(),
        );
    }
    Ok(chain)
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err("it holds a certificate that can't be read".to_owned()),
    }
}

fn valid_now(certificate: &X509Certificate<'_>) -> Result<(), String> {
    let validity = certificate.validity();
    if validity.is_valid() {
        return Ok(());
    }
    Err(format!(
        "the certificate of {} is valid from {} to {}, and this machine's clock says that it is not now",
        certificate.subject(),
        validity.not_before,
        validity.not_after
    ))
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    extension
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(normal(name)),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).ok().map(IpAddr::from),
                16 => <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from),
                _ => None,
            }
            .map(|address| address.to_string()),
            _ => None,
        })
        .collect()
}

fn normal(name: &str) -> String {
    name.parse::<IpAddr>()
        .map_or_else(|_| name.to_ascii_lowercase(), |address| address.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair,
        PublicKeyData as _, date_time_ymd,
    };

    fn made(change: impl FnOnce(&mut CertificateParams)) -> (String, CertificateWanted) {
        let key = KeyPair::generate().unwrap();
        let names = vec!["keys.example".to_owned(), "192.0.2.7".to_owned()];
        let mut params = CertificateParams::new(names.clone()).unwrap();
        change(&mut params);
        let spki = key.subject_public_key_info();
        let pem = params.self_signed(&key).unwrap().pem();
        (pem, CertificateWanted { spki, names })
    }

    fn refused(change: impl FnOnce(&mut CertificateParams)) -> String {
        let (pem, wanted) = made(change);
        check(&pem, &wanted).unwrap_err()
    }

    #[test]
    fn the_certificate_that_was_asked_for_is_taken() {
        let (pem, mut wanted) = made(|_| {});
        assert_eq!(check(&pem, &wanted), Ok(()));
        wanted.names = vec!["KEYS.example".to_owned()];
        assert_eq!(check(&pem, &wanted), Ok(()));
        let (other, _) = made(|_| {});
        assert!(check(&other, &wanted).unwrap_err().contains("another key"));
    }

    #[test]
    fn any_other_is_refused_with_its_reason() {
        let names = refused(|params| {
            params.subject_alt_names.pop();
        });
        assert!(names.contains("192.0.2.7"), "{names}");
        assert!(
            refused(|params| params.not_after = date_time_ymd(2021, 1, 1)).contains("valid from")
        );
        let usage = refused(|params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        });
        assert!(usage.contains("not for TLS servers"), "{usage}");
        let ca = refused(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
        assert!(ca.contains("is a CA's"), "{ca}");
        for text in [
            "",
            "hello",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            assert!(check_authority(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_client_ca_is_a_ca() {
        let (leaf, _) = made(|_| {});
        assert!(
            check_authority(&leaf)
                .unwrap_err()
                .contains("is not a CA's")
        );
        let (ca, _) = made(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
        assert_eq!(check_authority(&ca), Ok(()));
    }
}
