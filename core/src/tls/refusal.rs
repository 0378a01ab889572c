//! Why a client's certificate is not accepted.

use std::fmt;
use std::sync::Arc;

use rustls::{CertificateError, OtherError};

use crate::identity::{Identity, IdentityError};

/// Why a client's certificate is not accepted; fit for a log and for the client.
#[derive(Clone, thiserror::Error)]
pub(super) enum Refusal {
    /// There is no way from it to a CA that is trusted.
    #[error("{0}")]
    Path(webpki::Error),
    /// It names nobody.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A CRL names it, or a CA above it.
    #[error("Revoked: number {number} of the CRLs of {issuer} names it, or a CA above it")]
    Revoked {
        /// Whose list.
        issuer: String,
        /// Which.
        number: String,
    },
    /// No CRL speaks of it.
    #[error(
        "UnknownRevocationStatus: no CRL of its issuer's key speaks of it, or of a CA above it"
    )]
    UnknownStatus,
    /// The CRL that speaks of it has ended.
    #[error("{0}")]
    ListEnded(String),
    /// A CA above it signs CRLs that it may not sign.
    #[error("the key usage of a CA above it has no cRLSign")]
    NoCrlSigner,
    /// Its key is not for what a TLS client does with it.
    #[error(
        "the key usage of the client certificate has no digitalSignature, which a TLS client needs: issue it with that, or without a key usage"
    )]
    NoSigner,
    /// The anchor has ended, has not begun, or may not do this.
    #[error("the CA certificate {name} {problem}")]
    Authority {
        /// The anchor's subject.
        name: String,
        /// Why not.
        problem: String,
    },
    /// The CA may not speak for such names.
    #[error("the CA {name} may not name {identity}: {why}")]
    NotItsName {
        /// The CA's subject.
        name: String,
        /// Who the client says that it is.
        identity: Identity,
        /// Which rule forbids it.
        why: &'static str,
    },
}

/// rustls shows errors of others by their `Debug`.
impl fmt::Debug for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// The client is told the kind in its alert; the log has all of it.
impl From<Refusal> for rustls::Error {
    fn from(refusal: Refusal) -> Self {
        use webpki::Error;
        let error = match &refusal {
            Refusal::Path(error) => match error {
                Error::BadDer | Error::BadDerTime | Error::TrailingData(_) => {
                    CertificateError::BadEncoding
                }
                Error::CertNotValidYet { time, not_before } => {
                    CertificateError::NotValidYetContext {
                        time: *time,
                        not_before: *not_before,
                    }
                }
                Error::CertExpired { time, not_after } => CertificateError::ExpiredContext {
                    time: *time,
                    not_after: *not_after,
                },
                Error::UnknownIssuer => CertificateError::UnknownIssuer,
                Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
                Error::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
                _ => CertificateError::Other(OtherError(Arc::new(refusal))),
            },
            Refusal::Revoked { .. } => CertificateError::Revoked,
            Refusal::UnknownStatus => CertificateError::UnknownRevocationStatus,
            Refusal::ListEnded(_) => CertificateError::ExpiredRevocationList,
            Refusal::Identity(_)
            | Refusal::NoCrlSigner
            | Refusal::NoSigner
            | Refusal::Authority { .. }
            | Refusal::NotItsName { .. } => CertificateError::Other(OtherError(Arc::new(refusal))),
        };
        Self::InvalidCertificate(error)
    }
}
