//! The CAs of clients: what their own certificates allow them, which the path's check does not ask
//! of an anchor.

use std::path::{Path, PathBuf};
use std::{ptr, slice};

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, Der, TrustAnchor};
use sha2::{Digest, Sha256};
use webpki::{anchor_from_trusted_cert, spki_for_anchor};
use x509_parser::extensions::{GeneralName, NameConstraints, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::TlsError;
use super::crl::{Crl, Subject, has_known_signature, is_signed_by, whole};
use super::files::{Expiry, date, refuse};
use super::name;
use super::refusal::Refusal;
use super::revocation::Issuer;
use crate::identity::{Identity, Kind};
use crate::policy::IdentityPattern;

/// All CAs of clients.
#[derive(Debug)]
pub(super) struct Authorities {
    all: Vec<Authority>,
    anchors: Vec<TrustAnchor<'static>>,
    /// For each, the places of those that issued its certificate; none of a root.
    issuers: Vec<Vec<usize>>,
}

/// A certificate of a client CA.
#[derive(Debug)]
pub(super) struct Authority {
    file: PathBuf,
    name: String,
    der: CertificateDer<'static>,
    serial: Vec<u8>,
    anchor: TrustAnchor<'static>,
    subject: Vec<u8>,
    /// The one form of its issuer's name.
    issuer: Vec<u8>,
    spki: Vec<u8>,
    key_id: Option<Vec<u8>>,
    /// Which of its issuer's keys it names.
    issuer_key_id: Option<Vec<u8>>,
    fingerprint: [u8; 32],
    /// Seconds since 1970.
    not_before: i64,
    /// Seconds since 1970.
    not_after: i64,
    /// How many CAs may stand below it.
    path_len: Option<u32>,
    may_sign_crls: bool,
    kinds: Kinds,
    /// Whom it may name, by the configuration; none: anybody.
    identities: Vec<IdentityPattern>,
}

/// Which kinds of identity a CA's name constraints leave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kinds {
    dns: bool,
    spiffe: bool,
    key: bool,
}

impl Authorities {
    pub(super) fn new(all: Vec<Authority>, algorithms: &WebPkiSupportedAlgorithms) -> Self {
        let anchors = all.iter().map(|one| one.anchor.clone()).collect();
        let issuers = all
            .iter()
            .map(|one| {
                let issued = |other: &Authority| {
                    one.names_as_issuer(other) && is_signed_by(&one.der, &other.spki, algorithms)
                };
                (0..all.len())
                    .filter(|&at| all.get(at).is_some_and(issued))
                    .collect()
            })
            .collect();
        Self {
            all,
            anchors,
            issuers,
        }
    }

    /// CAs of which can't be told whether another one of the bundle issued them. They would be
    /// taken for those of nobody, and slip out of that one's limits and CRLs.
    pub(super) fn unproven(&self, algorithms: &WebPkiSupportedAlgorithms) -> Vec<TlsError> {
        let problem = |one: &Authority, other: &Authority| {
            refuse(
                &one.file,
                format!(
                    "the CA certificate {} names {} as its issuer, but that one's key does not verify its signature, or it is of a kind that is not supported: have it issued again, with SHA-256 or better, or take one of the two out of tls.client_ca",
                    one.name, other.name
                ),
            )
        };
        self.all
            .iter()
            .filter(|one| self.issuers_of(one).next().is_none())
            .filter_map(|one| {
                let known = has_known_signature(&one.der, algorithms);
                let other = self.all.iter().find(|other| {
                    one.names_as_issuer(other)
                        && match (&one.issuer_key_id, &other.key_id) {
                            (Some(named), Some(own)) => named == own,
                            // Or another one of that name.
                            _ => !known && !one.is_self_issued(),
                        }
                })?;
                Some(problem(one, other))
            })
            .collect()
    }

    pub(super) fn iter(&self) -> slice::Iter<'_, Authority> {
        self.all.iter()
    }

    pub(super) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    /// When each ends; of one that was renewed under its name and key, the last.
    pub(super) fn ends(&self) -> Vec<Expiry> {
        let is_last = |one: &&Authority| {
            !self
                .all
                .iter()
                .any(|other| one.is_same(other) && other.not_after > one.not_after)
        };
        self.all
            .iter()
            .filter(is_last)
            .map(|one| Expiry {
                file: one.file.clone(),
                name: one.name.clone(),
                end: one.not_after,
                is_crl: false,
            })
            .collect()
    }

    /// The certificates of this anchor: a CA may be there twice, with its old certificate and the
    /// renewed one.
    pub(super) fn of(&self, anchor: &TrustAnchor<'_>) -> impl Iterator<Item = &Authority> {
        self.all.iter().filter(move |one| one.anchor == *anchor)
    }

    /// The CAs of the bundle that issued this one's certificate.
    pub(super) fn issuers_of(&self, authority: &Authority) -> impl Iterator<Item = &Authority> {
        self.all
            .iter()
            .zip(&self.issuers)
            .filter(|(one, _)| ptr::eq(*one, authority))
            .flat_map(|(_, places)| places)
            .filter_map(|&at| self.all.get(at))
    }

    /// Whether the configuration lets the CA of this name and key give the identity, also where the
    /// path goes through it to another anchor: which anchor it ends at is chosen by whoever
    /// sends the certificates.
    ///
    /// A CA is known by its key. One whose key is not in the bundle is taken for the one of its
    /// name: it may have got a new key from the CA above it. `subject` is the name's one form.
    pub(super) fn bound(
        &self,
        subject: &[u8],
        spki: &[u8],
        identity: &Identity,
    ) -> Result<(), Refusal> {
        let known = self.all.iter().any(|one| one.spki == spki);
        self.all
            .iter()
            .filter(|one| {
                if known {
                    one.spki == spki
                } else {
                    one.subject() == subject
                }
            })
            .try_for_each(|one| one.may_give(identity))
    }

    /// As [`Authorities::bound`], of the CA that issued this one's certificate with a key that is
    /// in no file. A root's is its own.
    pub(super) fn bound_by_name(
        &self,
        authority: &Authority,
        identity: &Identity,
    ) -> Result<(), Refusal> {
        if authority.is_self_issued() || self.issuers_of(authority).next().is_some() {
            return Ok(());
        }
        self.all
            .iter()
            .filter(|one| authority.names_as_issuer(one))
            .try_for_each(|one| one.may_give(identity))
    }
}

impl Authority {
    /// From the certificate of a CA.
    pub(super) fn new(
        file: &Path,
        der: &CertificateDer<'_>,
        identities: &[IdentityPattern],
    ) -> Result<Self, TlsError> {
        let (_, parsed) = X509Certificate::from_der(der)
            .map_err(|error| refuse(file, format!("a certificate can't be read: {error}")))?;
        let name = parsed.subject().to_string();
        // Whoever holds the key of a certificate in this file can issue any identity, whether or
        // not it says that it is a CA.
        if !parsed.is_ca() {
            return Err(refuse(
                file,
                format!(
                    "{name} is not a CA certificate: this file holds the CAs that issue client certificates, never a client's own"
                ),
            ));
        }
        let problem = |problem: &str| refuse(file, format!("the CA certificate {name} {problem}"));
        let usage = parsed
            .key_usage()
            .map_err(|error| problem(&format!("has a key usage that can't be read: {error}")))?;
        if usage
            .as_ref()
            .is_some_and(|usage| !usage.value.key_cert_sign())
        {
            return Err(problem(
                "may not sign certificates: its key usage has no keyCertSign",
            ));
        }
        let purposes = parsed.extended_key_usage().map_err(|error| {
            problem(&format!(
                "has an extended key usage that can't be read: {error}"
            ))
        })?;
        if purposes.is_some_and(|purposes| !purposes.value.client_auth && !purposes.value.any) {
            return Err(problem(
                "is not for clients: its extended key usage has no clientAuth",
            ));
        }
        let kinds = Kinds::of(&parsed).map_err(problem)?;
        let issuer = whole(parsed.issuer().as_raw())
            .ok_or_else(|| problem("has an issuer's name that can't be read"))?;
        let anchor = anchor_from_trusted_cert(der)
            .map_err(|error| problem(&format!("is not usable: {error}")))?
            .to_owned();
        Ok(Self {
            file: file.to_owned(),
            spki: spki_for_anchor(&anchor).to_vec(),
            subject: name::canonical(&anchor.subject),
            issuer: name::canonical(issuer),
            serial: parsed.raw_serial().to_vec(),
            der: der.clone().into_owned(),
            anchor,
            key_id: key_id(&parsed),
            issuer_key_id: issuer_key_id(&parsed),
            fingerprint: Sha256::digest(der).into(),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            path_len: parsed
                .basic_constraints()
                .ok()
                .flatten()
                .and_then(|constraints| constraints.value.path_len_constraint),
            may_sign_crls: usage.is_none_or(|usage| usage.value.crl_sign()),
            kinds,
            identities: identities.to_vec(),
            name,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its subject's one form.
    pub(super) fn subject(&self) -> &[u8] {
        &self.subject
    }

    /// `SubjectPublicKeyInfo`, DER.
    pub(super) fn spki(&self) -> &[u8] {
        &self.spki
    }

    pub(super) fn key_id(&self) -> Option<&[u8]> {
        self.key_id.as_deref()
    }

    pub(super) fn may_sign_crls(&self) -> bool {
        self.may_sign_crls
    }

    /// SHA-256 of the certificate.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    pub(super) fn has_ended(&self, now: i64) -> bool {
        now > self.not_after
    }

    /// One CA, which may have several certificates.
    fn is_same(&self, other: &Self) -> bool {
        self.spki == other.spki && self.subject == other.subject
    }

    /// Whether the other one has the name of the CA that issued this certificate. One may be issued
    /// with the same key, under a new name.
    fn names_as_issuer(&self, other: &Self) -> bool {
        other.subject == self.issuer && !self.is_same(other)
    }

    /// RFC 5280, section 6.1.4 (l): it does not count for the length of a path.
    pub(super) fn is_self_issued(&self) -> bool {
        self.subject == self.issuer
    }

    pub(super) fn name_constraints(&self) -> Option<&Der<'static>> {
        self.anchor.name_constraints.as_ref()
    }

    /// As what a CRL speaks of.
    pub(super) fn as_subject(&self) -> Subject<'_> {
        Subject {
            der: &self.der,
            serial: &self.serial,
            is_ca: true,
        }
    }

    /// Whether the list is, by name and key identifier, of the CA that issued it.
    pub(super) fn is_below(&self, list: &Crl) -> bool {
        self.issuer == list.issuer
            && !self.is_self_issued()
            && (self.issuer_key_id.is_none() || self.issuer_key_id == list.key_id)
    }

    /// As whoever signs CRLs.
    pub(super) fn as_issuer(&self) -> Issuer<'_> {
        Issuer {
            name: &self.subject,
            spki: &self.spki,
            key_id: self.key_id.as_deref(),
            may_sign: self.may_sign_crls,
        }
    }

    /// Whether a path may end here by what the certificate and the configuration say.
    pub(super) fn accept(
        &self,
        below: usize,
        identity: &Identity,
        now: i64,
    ) -> Result<(), Refusal> {
        let refuse = |problem: String| {
            Err(Refusal::Authority {
                name: self.name.clone(),
                problem,
            })
        };
        if self.has_ended(now) {
            return refuse(format!("expired on {}", date(self.not_after)));
        }
        if now < self.not_before {
            return refuse(format!("is not valid before {}", date(self.not_before)));
        }
        if let Some(limit) = self.path_len
            && below > usize::try_from(limit).unwrap_or(usize::MAX)
        {
            return refuse(format!(
                "allows {limit} CAs below it, and there are {below}"
            ));
        }
        self.may_give(identity)?;
        self.kinds.allow(&self.name, identity)
    }

    /// By the configuration.
    fn may_give(&self, identity: &Identity) -> Result<(), Refusal> {
        let bound = !self.identities.is_empty();
        if bound && !self.identities.iter().any(|one| one.matches(identity)) {
            return Err(Refusal::NotItsName {
                name: self.name.clone(),
                identity: identity.clone(),
                why: "the configuration (tls.client_cas) binds it to others",
            });
        }
        Ok(())
    }
}

impl Kinds {
    const ALL: Self = Self {
        dns: true,
        spiffe: true,
        key: true,
    };

    /// A CA whose constraints permit certain names has no say in names of other kinds: RFC 5280,
    /// section 4.2.1.10 alone would leave those free.
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Result<Self, &'static str> {
        let constraints = certificate
            .name_constraints()
            .map_err(|_| "has name constraints that can't be read")?;
        let Some(NameConstraints {
            permitted_subtrees: Some(permitted),
            ..
        }) = constraints.map(|found| found.value)
        else {
            return Ok(Self::ALL);
        };
        Ok(Self {
            dns: permitted
                .iter()
                .any(|subtree| matches!(subtree.base, GeneralName::DNSName(_))),
            spiffe: permitted
                .iter()
                .any(|subtree| matches!(subtree.base, GeneralName::URI(_))),
            key: false,
        })
    }

    pub(super) fn allow(self, ca: &str, identity: &Identity) -> Result<(), Refusal> {
        let allowed = match identity.kind() {
            Kind::Spiffe => self.spiffe,
            Kind::Dns => self.dns,
            Kind::Key => self.key,
        };
        if allowed {
            return Ok(());
        }
        Err(Refusal::NotItsName {
            name: ca.to_owned(),
            identity: identity.clone(),
            why: "its name constraints permit no names of this kind",
        })
    }
}

/// The subject key identifier.
pub(super) fn key_id(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        })
}

/// The identifier of the key that signed it.
fn issuer_key_id(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                id.key_identifier.as_ref().map(|id| id.0.to_vec())
            }
            _ => None,
        })
}
