//! TLS as the appliance speaks it: 1.3 only, a client certificate always, X25519MLKEM768 with every
//! client that prefers it, hot reload, revocation.
//!
//! Decisions that the code alone does not explain:
//!
//! - No session is ever resumed: no tickets, no session cache, so no early data. A resumed
//!   handshake shows no certificate, so a client that was revoked meanwhile would come back in.
//!   Clients of a key service hold few, long connections; a full handshake for each is cheap.
//! - With CRLs configured they cover the whole chain: each certificate from the client's up to the
//!   one that a CA of `client_ca` signed needs a CRL that its issuer's key signed, and "unknown" is
//!   refused. Of each key the highest number counts. A CRL past its `nextUpdate` is no longer
//!   evidence, and the clients of its CA are refused; so publish CRLs well before the last one
//!   ends. Without CRLs nothing is checked for revocation.
//! - A connection outlives the moment its certificate was checked, so [`Tls::still_valid`] asks
//!   again.

mod authority;
mod clients;
mod crl;
mod files;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod name;
mod peer;
mod pem;
mod refusal;
mod revocation;
mod verifier;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;

use self::clients::Clients;
use self::revocation::Revocation;
use self::verifier::Verifier;
use crate::clock;
use crate::policy::IdentityPattern;

pub use self::clients::ClientCertificate;
pub use self::files::{Expiry, expiries};
pub use self::peer::Peer;

/// The files TLS is made of, all PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The server's chain.
    pub certificate: PathBuf,
    /// Its private key, PKCS#8, SEC1 or PKCS#1, not encrypted.
    pub private_key: PathBuf,
    /// The CAs that client certificates are checked against.
    pub client_cas: Vec<ClientCa>,
    /// CRLs of those CAs; where there are any, a certificate whose status is unknown is refused.
    pub crls: Vec<PathBuf>,
}

/// A file of CAs, and whom they may name.
#[derive(Clone, Debug)]
pub struct ClientCa {
    /// PEM.
    pub file: PathBuf,
    /// The identities that these CAs may give; none: any.
    pub identities: Vec<IdentityPattern>,
}

impl ClientCa {
    /// CAs that may name anybody.
    pub fn for_anybody(file: PathBuf) -> Self {
        Self {
            file,
            identities: Vec::new(),
        }
    }
}

impl TlsFiles {
    /// Each of them.
    pub fn all(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.certificate, &self.private_key]
            .into_iter()
            .chain(self.client_cas.iter().map(|ca| &ca.file))
            .chain(&self.crls)
    }
}

/// Why TLS files were refused; the old ones stay in force on reload.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct TlsError {
    /// Which file.
    pub file: PathBuf,
    /// What is wrong with it and what is expected.
    pub problem: String,
}

/// The TLS configuration in force, replaced as a whole.
pub struct Tls {
    files: TlsFiles,
    current: ArcSwap<Generation>,
    clients: Clients,
    /// One reload at a time, so that generations rise with the files' age.
    reloading: Mutex<()>,
}

/// What one reading of the files gave.
struct Generation {
    number: u64,
    server: Arc<ServerConfig>,
    /// Of the server's own certificate.
    end: Expiry,
    verifier: Arc<Verifier>,
}

/// What the files hold now, good and not yet in force. While it is there, nobody else reads them
/// again.
#[must_use = "the old configuration stays in force"]
pub struct Renewal<'a> {
    current: &'a ArcSwap<Generation>,
    next: Generation,
    _one_at_a_time: MutexGuard<'a, ()>,
}

impl Tls {
    /// Reads and checks everything. What has ended is refused.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let first = Generation::read(&files, 1)?;
        match first.ended(files::now()).into_iter().flatten().next() {
            Some(ended) => Err(ended),
            None => Ok(Self::new(files, first)),
        }
    }

    /// All that [`Tls::load`] refuses, for whoever mends it all at once. What the files say of each
    /// other is only looked at when each alone is good.
    pub fn problems(files: &TlsFiles) -> Vec<TlsError> {
        let alone = files::problems(files);
        if !alone.is_empty() {
            return alone;
        }
        let error = match Generation::read(files, 1) {
            Ok(first) => return first.ended(files::now()).into_iter().flatten().collect(),
            Err(error) => error,
        };
        match files::problems_together(files) {
            Ok(problems) if !problems.is_empty() => problems,
            _ => vec![error],
        }
    }

    /// As [`Tls::load`], but what has ended is only logged, as for a server that runs when it ends:
    /// nobody is let in who should not be, and the successor is taken as soon as it is there. A
    /// server that was off meanwhile comes up for that.
    pub fn start(files: TlsFiles) -> Result<Self, TlsError> {
        let first = Generation::read(&files, 1)?;
        for ended in first.ended(files::now()).into_iter().flatten() {
            warn(&ended);
        }
        Ok(Self::new(files, first))
    }

    fn new(files: TlsFiles, first: Generation) -> Self {
        Self {
            files,
            current: ArcSwap::from_pointee(first),
            clients: Clients::default(),
            reloading: Mutex::new(()),
        }
    }

    /// Reads and checks everything again, and puts nothing in force yet.
    pub fn read_again(&self) -> Result<Renewal<'_>, TlsError> {
        let one_at_a_time = self
            .reloading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let next = Generation::read(&self.files, self.generation() + 1)?;
        next.follows(&self.current.load())?;
        Ok(Renewal {
            current: &self.current,
            next,
            _one_at_a_time: one_at_a_time,
        })
    }

    /// The configuration for the next handshake.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.load().server)
    }

    /// Rises with each successful reload.
    pub fn generation(&self) -> u64 {
        self.current.load().number
    }

    /// Whether the peer's certificate is still good (CA, validity, revocation) under the
    /// configuration in force: asked for each request. The answer is remembered in the peer
    /// until the configuration changes, the certificate expires, or a minute has passed (a CRL
    /// or an intermediate certificate may have expired by then).
    ///
    /// # Errors
    /// The reason, fit for a log and for the client.
    pub fn still_valid(&self, peer: &Peer) -> Result<(), String> {
        let current = self.current.load();
        let now = clock::unix_time().ok_or("the server's clock is before 1970")?;
        if peer.was_checked(current.number, now.as_secs()) {
            return Ok(());
        }
        let mut chain = peer
            .chain
            .iter()
            .map(|der| CertificateDer::from(der.as_slice()));
        let end_entity = chain.next().ok_or("there is no client certificate")?;
        let intermediates: Vec<_> = chain.collect();
        let verified = current
            .verifier
            .verify(&end_entity, &intermediates, UnixTime::since_unix_epoch(now))
            .map_err(|error| format!("the client certificate is no longer accepted: {error}"))?;
        peer.set_issuer(&verified.issuer);
        peer.set_checked(current.number, now.as_secs());
        self.clients.saw(peer, now.as_secs());
        Ok(())
    }

    /// Of each identity that was here since the start, the certificate in use that ends first.
    /// Those that end first come first.
    pub fn client_certificates(&self) -> Vec<ClientCertificate> {
        self.clients.list(files::now())
    }
}

impl Renewal<'_> {
    /// Open connections go on, and their clients' certificates are checked again at their next
    /// request.
    pub fn put_in_force(self) {
        self.current.store(Arc::new(self.next));
    }
}

impl Generation {
    fn read(paths: &TlsFiles, number: u64) -> Result<Self, TlsError> {
        let error = |file: &PathBuf, problem: String| TlsError {
            file: file.clone(),
            problem,
        };
        let key = files::certified_key(&paths.certificate, &paths.private_key)?;
        let end = files::end_of(&paths.certificate, &key)?;
        let authorities = files::authorities(&paths.client_cas)?;
        let crls = files::crls(&paths.crls)?;

        let provider = Arc::new(provider());
        let algorithms = provider.signature_verification_algorithms;
        let revocation = if crls.is_empty() {
            None
        } else {
            Some(Revocation::new(
                crls,
                &authorities,
                algorithms,
                files::now(),
            )?)
        };
        let verifier = Arc::new(Verifier::new(authorities, revocation, algorithms));
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|problem| error(&paths.certificate, problem.to_string()))?
            .with_client_cert_verifier(Arc::clone(&verifier) as _)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self {
            number,
            server: Arc::new(server),
            end,
            verifier,
        })
    }

    /// What can't be used any more: the server's certificate, and the CRLs.
    fn ended(&self, now: i64) -> [Option<TlsError>; 2] {
        [
            files::ended_certificate(&self.end, now),
            self.verifier.lists_ended(now),
        ]
    }

    /// Nothing that is in force is taken back, and nothing good replaced by what has ended.
    fn follows(&self, in_force: &Self) -> Result<(), TlsError> {
        let now = files::now();
        for (new, old) in self.ended(now).into_iter().zip(in_force.ended(now)) {
            match (new, old) {
                (Some(ended), None) => return Err(ended),
                // No worse than before, and other files may be better.
                (Some(ended), Some(_)) => warn(&ended),
                (None, _) => {}
            }
        }
        match (self.verifier.revocation(), in_force.verifier.revocation()) {
            (Some(new), Some(old)) => new.follows(old, now),
            _ => Ok(()),
        }
    }
}

fn warn(ended: &TlsError) {
    tracing::warn!(file = %ended.file.display(), "{}", ended.problem);
}

/// The library's suites and key exchanges; the hybrid one keeps what is recorded today secret from
/// tomorrow's quantum computers. rustls takes the first group of the *client's* order that is in
/// this list, so the hybrid is used with every client that prefers it, as Go since 1.24, OpenSSL
/// since 3.5 and rustls do; the order here decides nothing.
fn provider() -> CryptoProvider {
    CryptoProvider {
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ],
        ..default_provider()
    }
}

#[cfg(test)]
mod tests;
