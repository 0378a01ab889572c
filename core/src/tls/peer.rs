//! The client at the other end of one connection.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::hex::encode as hex;
use crate::identity::{Identity, IdentityError};

/// For so long the answer of a whole check is good, in seconds.
const CHECK_VALID_SECONDS: u64 = 60;

/// The client at the other end of one connection.
#[derive(Debug)]
pub struct Peer {
    /// Its name.
    pub identity: Identity,
    /// Address and port, as the audit log names them for each of its requests.
    pub remote: String,
    /// SHA-256 of its certificate, hex, for the audit log.
    pub certificate: String,
    /// The same of the CA's that issued it, once that is known.
    issuer: OnceLock<String>,
    /// Its certificate chain, DER, end entity first: checked again when CA or CRLs change.
    pub chain: Arc<Vec<Vec<u8>>>,
    /// The end of its certificate's validity, seconds since 1970.
    not_after: u64,
    /// The generation of the TLS configuration under which the chain was last found good; 0: none
    /// yet.
    generation: AtomicU64,
    /// When that was, seconds since 1970.
    checked_at: AtomicU64,
}

/// For a change that outlives the connection that asked for it.
impl Clone for Peer {
    fn clone(&self) -> Self {
        Self {
            identity: self.identity.clone(),
            remote: self.remote.clone(),
            certificate: self.certificate.clone(),
            issuer: self.issuer.clone(),
            chain: Arc::clone(&self.chain),
            not_after: self.not_after,
            generation: AtomicU64::new(self.generation.load(Ordering::Acquire)),
            checked_at: AtomicU64::new(self.checked_at.load(Ordering::Relaxed)),
        }
    }
}

impl Peer {
    /// From the chain that the client showed in the handshake, DER, end entity first.
    pub fn new(chain: Vec<Vec<u8>>, remote: SocketAddr) -> Result<Self, IdentityError> {
        let end_entity = chain
            .first()
            .ok_or_else(|| IdentityError::Malformed("there is none".to_owned()))?;
        let identity = Identity::from_certificate(end_entity)?;
        let (_, certificate) = X509Certificate::from_der(end_entity)
            .map_err(|error| IdentityError::Malformed(error.to_string()))?;
        // A time before 1970 becomes 0: long over.
        let not_after = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        Ok(Self {
            identity,
            remote: remote.to_string(),
            certificate: hex(&Sha256::digest(end_entity)),
            issuer: OnceLock::new(),
            chain: Arc::new(chain),
            not_after,
            generation: AtomicU64::new(0),
            checked_at: AtomicU64::new(0),
        })
    }

    /// SHA-256 of the certificate of the CA that issued this one, hex; empty until this one was
    /// found good.
    pub fn issuer(&self) -> &str {
        self.issuer.get().map_or("", String::as_str)
    }

    /// By the first way to an anchor that was found.
    pub(super) fn set_issuer(&self, fingerprint: &[u8; 32]) {
        self.issuer.get_or_init(|| hex(fingerprint));
    }

    /// Whether the chain was found good under this generation, not long ago, and has not expired
    /// since. `now` is in seconds since 1970; a clock set back asks for a new check.
    pub(super) fn was_checked(&self, generation: u64, now: u64) -> bool {
        let checked_at = self.checked_at.load(Ordering::Relaxed);
        // Acquire pairs with the release below, so the time read is of this generation's check or
        // of a later one.
        self.generation.load(Ordering::Acquire) == generation
            && now <= self.not_after
            && now
                .checked_sub(checked_at)
                .is_some_and(|age| age < CHECK_VALID_SECONDS)
    }

    pub(super) fn set_checked(&self, generation: u64, now: u64) {
        self.checked_at.store(now, Ordering::Relaxed);
        self.generation.store(generation, Ordering::Release);
    }
}
