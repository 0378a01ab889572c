//! Fuzz entries: certificates and identities.
#![allow(
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzz target reports"
)]

use std::str;

use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, Error};
use sha2::{Digest, Sha256};

use super::Identity;

/// A certificate's identity is one of the three forms, and what the TLS library reads in the same
/// certificate.
pub fn certificate(data: &[u8]) {
    let Ok(identity) = Identity::from_certificate(data) else {
        return;
    };
    one_spelling(&identity);
    // Not one byte more, not one less.
    let longer = [data, &[0]].concat();
    assert!(Identity::from_certificate(&longer).is_err());
    let shorter = data.split_last().map_or(data, |(_, shorter)| shorter);
    assert!(Identity::from_certificate(shorter).is_err());
    let der = CertificateDer::from(data);
    let Ok(parsed) = ParsedCertificate::try_from(&der) else {
        // It is stricter, and comes first: such a certificate never gets here.
        return;
    };
    let text = identity.as_str();
    if let Some(hash) = text.strip_prefix("spki:sha256:") {
        let key = Sha256::digest(parsed.subject_public_key_info());
        assert_eq!(hash, crate::hex::encode(&key));
    } else if let Some(name) = text.strip_prefix("dns:")
        && let Ok(name @ ServerName::DnsName(_)) = ServerName::try_from(name)
    {
        let answer = verify_server_name(&parsed, &name);
        let denied = matches!(
            answer,
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
            ))
        );
        assert!(!denied, "{text}: {answer:?}");
    }
}

/// An identity's text is its only spelling.
pub fn identity(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let Ok(identity) = text.parse::<Identity>() else {
        return;
    };
    one_spelling(&identity);
    // Names in DNS have no case; all else does.
    if text.starts_with("dns:") {
        assert_eq!(identity.as_str(), text.to_ascii_lowercase());
    } else {
        assert_eq!(identity.as_str(), text);
    }
}

fn one_spelling(identity: &Identity) {
    let text = identity.as_str();
    assert_eq!(text.parse::<Identity>().ok().as_ref(), Some(identity));
    assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "{text:?}");
    let kinds = ["spiffe://", "dns:", "spki:sha256:"];
    assert!(kinds.iter().any(|kind| text.starts_with(kind)), "{text:?}");
    assert!(!text.contains(['*', '?', '%', ',', '"', '\\']), "{text:?}");
    let id = text.strip_prefix("spiffe://").unwrap_or_default();
    let path = id.split_once('/').map(|(_, path)| path).unwrap_or_default();
    assert!(
        !path.split('/').any(|segment| matches!(segment, "." | "..")),
        "{text:?}"
    );
}
