//! Who a client is: its certificate, turned into one name.

/// A client's name: `spiffe://domain/path`, `dns:host.example`, or `spki:sha256:<64 hex digits>`.
///
/// Taken from the certificate's first SPIFFE URI SAN, else its first DNS SAN, else the SHA-256 of its SubjectPublicKeyInfo.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity(String);

/// Why a certificate gives no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Not an X.509 certificate.
    #[error("the client certificate can't be read: {0}")]
    Malformed(String),
}

#[allow(unused_variables, clippy::todo)]
impl Identity {
    /// From an end-entity certificate, DER.
    pub fn from_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        todo!()
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
