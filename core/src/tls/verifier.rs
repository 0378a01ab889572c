//! The check of a client's certificate: in the handshake, and again while its connection is open.
//!
//! webpki finds and checks the path. What it leaves out is asked of each path that it finds, so
//! that another one may still be good: the limits of the anchor and of the CAs above it, who may
//! name whom, and revocation by the issuer's key ([`super::revocation`]).

use std::cell::RefCell;
use std::ptr;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use sha2::{Digest, Sha256};
use webpki::{Cert, EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::TlsError;
use super::authority::{Authorities, Authority, Kinds, key_id};
use super::crl::Subject;
use super::name;
use super::refusal::Refusal;
use super::revocation::{Issuer, Revocation};
use crate::identity::Identity;

/// Everything that a client's certificate is held against.
#[derive(Debug)]
pub(super) struct Verifier {
    authorities: Authorities,
    /// `None`: no CRLs are configured.
    revocation: Option<Revocation>,
    algorithms: WebPkiSupportedAlgorithms,
    hints: Vec<DistinguishedName>,
}

/// What the check found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verified {
    /// SHA-256 of the certificate of the CA that issued the client's.
    pub(super) issuer: [u8; 32],
}

impl Verifier {
    pub(super) fn new(
        authorities: Authorities,
        revocation: Option<Revocation>,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        let hints = authorities
            .anchors()
            .iter()
            .map(|anchor| DistinguishedName::in_sequence(&anchor.subject))
            .collect();
        Self {
            authorities,
            revocation,
            algorithms,
            hints,
        }
    }

    pub(super) fn revocation(&self) -> Option<&Revocation> {
        self.revocation.as_ref()
    }

    /// No client is let in now, since the CRLs of all CAs have ended.
    pub(super) fn lists_ended(&self, now: i64) -> Option<TlsError> {
        self.revocation.as_ref()?.ended(&self.authorities, now)
    }

    /// Whether the certificate is good now: path, validity, purpose, names, revocation.
    pub(super) fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        time: UnixTime,
    ) -> Result<Verified, Refusal> {
        let named = Identity::from_certificate(end_entity);
        let end_entity = EndEntityCert::try_from(end_entity).map_err(Refusal::Path)?;
        let now = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let found: RefCell<Option<Result<Verified, Refusal>>> = RefCell::new(None);
        let judge = |path: &VerifiedPath<'_>| {
            // Nothing is said of what a certificate names before a CA has signed it.
            let judged = match &named {
                Ok(identity) => self.judge(&Question {
                    path,
                    identity,
                    time,
                    now,
                }),
                Err(error) => Err(Refusal::Identity(error.clone())),
            };
            let answer = match &judged {
                Ok(_) => Ok(()),
                // What webpki goes on to the next path with; the reason is kept here.
                Err(_) => Err(webpki::Error::UnknownIssuer),
            };
            *found.borrow_mut() = Some(judged);
            answer
        };
        let path = end_entity.verify_for_usage(
            self.algorithms.all,
            self.authorities.anchors(),
            intermediates,
            time,
            KeyUsage::client_auth(),
            None,
            Some(&judge),
        );
        match (path, found.into_inner()) {
            (Ok(_), Some(judged)) | (Err(_), Some(judged @ Err(_))) => judged,
            (Err(error), _) => Err(Refusal::Path(error)),
            // No path is accepted that was not judged.
            (Ok(_), None) => Err(Refusal::Path(webpki::Error::UnknownIssuer)),
        }
    }

    /// What webpki does not ask of a path.
    fn judge(&self, question: &Question<'_>) -> Result<Verified, Refusal> {
        let &Question {
            path,
            identity,
            now,
            ..
        } = question;
        let between: Vec<&Cert<'_>> = path.intermediate_certificates().collect();
        let below = between
            .iter()
            .filter(|ca| ca.subject() != ca.issuer())
            .count();
        let authority = self.anchor(question, below)?;
        let cas = between
            .iter()
            .map(|ca| IntermediateCa::new(ca))
            .collect::<Result<Vec<_>, _>>()?;
        for ca in &cas {
            ca.kinds.allow(&ca.name, identity)?;
            self.authorities.bound(&ca.subject, &ca.spki, identity)?;
        }
        may_sign(path.end_entity())?;
        if let Some(revocation) = &self.revocation {
            let issuers: Vec<Issuer<'_>> = cas
                .iter()
                .map(IntermediateCa::issuer)
                .chain([authority.as_issuer()])
                .collect();
            let end_entity: &Cert<'_> = path.end_entity();
            let ders: Vec<_> = [end_entity]
                .into_iter()
                .chain(between.iter().copied())
                .map(|certificate| (certificate.der(), certificate.serial()))
                .collect();
            for (depth, ((der, serial), issuer)) in ders.iter().zip(&issuers).enumerate() {
                let subject = Subject {
                    der,
                    serial,
                    is_ca: depth > 0,
                };
                revocation.check(&subject, issuer, now)?;
            }
        }
        Ok(Verified {
            issuer: cas
                .first()
                .map_or_else(|| authority.fingerprint(), |ca| ca.fingerprint),
        })
    }

    /// The certificate of the anchor under which the path may end.
    fn anchor(&self, question: &Question<'_>, below: usize) -> Result<&Authority, Refusal> {
        let mut refusal = Refusal::Path(webpki::Error::UnknownIssuer);
        for authority in self.authorities.of(question.path.anchor()) {
            match self.allowed_above(question, authority, below, &mut Vec::new()) {
                Ok(()) => return Ok(authority),
                Err(problem) => refusal = problem,
            }
        }
        Err(refusal)
    }

    /// Whether the path is within the limits of this CA and of those above it. It ends at the first
    /// CA that is trusted, and whoever sends the certificates may choose which one that is; so
    /// where the CA that issued its certificate is in the bundle too, that one is asked as well,
    /// and so on up to a root. Of several that issued it (a CA with a renewed certificate), one
    /// that allows the path is enough.
    ///
    /// `passed`: those on the way here. CAs may have issued each other.
    fn allowed_above<'a>(
        &'a self,
        question: &Question<'_>,
        authority: &'a Authority,
        below: usize,
        passed: &mut Vec<&'a Authority>,
    ) -> Result<(), Refusal> {
        if passed.iter().any(|one| ptr::eq(*one, authority)) {
            return Ok(());
        }
        authority.accept(below, question.identity, question.now)?;
        if !passed.is_empty() {
            question.names_within(authority, &self.algorithms)?;
        }
        passed.push(authority);
        let below = below + usize::from(!authority.is_self_issued());
        let mut answer = self.authorities.bound_by_name(authority, question.identity);
        for issuer in self.authorities.issuers_of(authority) {
            answer = self
                .not_revoked(authority, issuer, question.now)
                .and_then(|()| self.allowed_above(question, issuer, below, passed));
            if answer.is_ok() {
                break;
            }
        }
        passed.pop();
        answer
    }

    fn not_revoked(
        &self,
        authority: &Authority,
        issuer: &Authority,
        now: i64,
    ) -> Result<(), Refusal> {
        self.revocation.as_ref().map_or(Ok(()), |revocation| {
            revocation.check(&authority.as_subject(), &issuer.as_issuer(), now)
        })
    }
}

/// What is asked about a path.
struct Question<'a> {
    path: &'a VerifiedPath<'a>,
    identity: &'a Identity,
    time: UnixTime,
    /// The same, seconds since 1970.
    now: i64,
}

impl Question<'_> {
    /// Whether all names of the path are within the name constraints of a CA above its anchor:
    /// webpki knows those of an anchor only, so the anchor is given them.
    fn names_within(
        &self,
        above: &Authority,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<(), Refusal> {
        let Some(constraints) = above.name_constraints() else {
            return Ok(());
        };
        let constrained = TrustAnchor {
            name_constraints: Some(constraints.clone()),
            ..self.path.anchor().clone()
        };
        let between: Vec<_> = self
            .path
            .intermediate_certificates()
            .map(Cert::der)
            .collect();
        self.path
            .end_entity()
            .verify_for_usage(
                algorithms.all,
                &[constrained],
                &between,
                self.time,
                KeyUsage::client_auth(),
                None,
                None,
            )
            .map(|_| ())
            .map_err(Refusal::Path)
    }
}

/// RFC 5280, section 4.2.1.3, and RFC 8446, section 4.4.2.2: a key that is for something else
/// proves nobody by a signature. webpki does not look.
fn may_sign(client: &Cert<'_>) -> Result<(), Refusal> {
    let der = client.der();
    let (_, parsed) =
        X509Certificate::from_der(&der).map_err(|_| Refusal::Path(webpki::Error::BadDer))?;
    let usage = parsed
        .key_usage()
        .map_err(|_| Refusal::Path(webpki::Error::BadDer))?;
    if usage.is_some_and(|usage| !usage.value.digital_signature()) {
        return Err(Refusal::NoSigner);
    }
    Ok(())
}

/// A CA between the client's certificate and the anchor.
struct IntermediateCa {
    name: String,
    subject: Vec<u8>,
    spki: Vec<u8>,
    key_id: Option<Vec<u8>>,
    may_sign_crls: bool,
    kinds: Kinds,
    fingerprint: [u8; 32],
}

impl IntermediateCa {
    fn new(ca: &Cert<'_>) -> Result<Self, Refusal> {
        let der = ca.der();
        let (_, parsed) =
            X509Certificate::from_der(&der).map_err(|_| Refusal::Path(webpki::Error::BadDer))?;
        let name = parsed.subject().to_string();
        let kinds = Kinds::of(&parsed).map_err(|problem| Refusal::Authority {
            name: name.clone(),
            problem: problem.to_owned(),
        })?;
        let usage = parsed
            .key_usage()
            .map_err(|_| Refusal::Path(webpki::Error::BadDer))?;
        // RFC 5280, section 6.1.4 (n).
        if usage
            .as_ref()
            .is_some_and(|usage| !usage.value.key_cert_sign())
        {
            return Err(Refusal::Authority {
                name,
                problem: "may not sign certificates: its key usage has no keyCertSign".to_owned(),
            });
        }
        Ok(Self {
            subject: name::canonical(ca.subject()),
            spki: ca.subject_public_key_info().to_vec(),
            key_id: key_id(&parsed),
            may_sign_crls: usage.is_none_or(|usage| usage.value.crl_sign()),
            kinds,
            fingerprint: Sha256::digest(&der).into(),
            name,
        })
    }

    fn issuer(&self) -> Issuer<'_> {
        Issuer {
            name: &self.subject,
            spki: &self.spki,
            key_id: self.key_id.as_deref(),
            may_sign: self.may_sign_crls,
        }
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
