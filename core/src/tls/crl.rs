//! One certificate revocation list: what is taken, and what is refused with the reason.
//!
//! Taken: complete lists of version 2 with a number and a `nextUpdate`, also those that cover only
//! end entities, only CAs, or the certificates of a distribution point. Refused: everything that
//! says less than it seems to (delta, indirect, of some reasons only), or says something unknown.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustls::crypto::WebPkiSupportedAlgorithms;
use x509_parser::asn1_rs::{Any, BitString, Class, FromDer as _, Oid, Sequence, Tag};
use x509_parser::der_parser::oid;
use x509_parser::extensions::{DistributionPointName, GeneralName, ParsedExtension, X509Extension};
use x509_parser::oid_registry::{
    OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_X509_EXT_CRL_NUMBER,
    OID_X509_EXT_DELTA_CRL_INDICATOR, OID_X509_EXT_ISSUER_DISTRIBUTION_POINT,
    OID_X509_EXT_REASON_CODE,
};
use x509_parser::prelude::{CertificateRevocationList, X509Certificate, X509Version};

use super::name;

/// RFC 5280, section 5.3.3: the certificate issuer of an entry.
const CERTIFICATE_ISSUER: Oid<'static> = oid!(2.5.29.29);

/// RFC 5280, section 5.2.3: at most 20 octets.
const MAX_NUMBER_BYTES: usize = 20;

/// So many keys that don't verify a list are remembered with it. CAs of one name are few.
const MAX_OTHER_KEYS: usize = 16;

/// A list that was understood.
pub(super) struct Crl {
    /// Where it was found.
    pub(super) file: PathBuf,
    /// Whose it is, for people.
    pub(super) issuer_name: String,
    /// Whose it is: the name's one form.
    pub(super) issuer: Vec<u8>,
    pub(super) number: Number,
    /// Seconds since 1970.
    pub(super) this_update: i64,
    /// Seconds since 1970; from then on it is no evidence.
    pub(super) next_update: i64,
    /// Which of the issuer's keys it names as its own.
    pub(super) key_id: Option<Vec<u8>>,
    pub(super) scope: Scope,
    der: Vec<u8>,
    /// Serial numbers, the content of the INTEGER.
    revoked: HashSet<Box<[u8]>>,
    /// The `SubjectPublicKeyInfo` of the key that verifies it, once one was found.
    key: OnceLock<Vec<u8>>,
    /// Those that don't, the last ones that were tried.
    other_keys: Mutex<VecDeque<Vec<u8>>>,
}

/// Compares as the number does.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Number(usize, Vec<u8>, String);

/// Which certificates a list speaks of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Scope {
    users_only: bool,
    cas_only: bool,
    /// The URIs of its distribution point, in order.
    points: Option<Vec<String>>,
}

/// The certificate that is asked about.
pub(super) struct Subject<'a> {
    pub(super) der: &'a [u8],
    /// The content of the INTEGER.
    pub(super) serial: &'a [u8],
    pub(super) is_ca: bool,
}

impl Crl {
    /// From DER.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub(super) fn read(file: &Path, der: &[u8]) -> Result<Self, String> {
        let (rest, parsed) = CertificateRevocationList::from_der(der)
            .map_err(|error| format!("a CRL can't be read: {error}"))?;
        let issuer_name = parsed.issuer().to_string();
        let refuse = |problem: &str| format!("the CRL of {issuer_name} {problem}");
        if !rest.is_empty() {
            return Err(refuse("is followed by other bytes"));
        }
        match parsed.version() {
            Some(X509Version::V2) => {}
            None | Some(X509Version::V1) => {
                return Err(refuse(
                    "is of version 1, which has no number to tell a new one from an old one: have it issued in version 2 (`openssl ca`: set `crlnumber`, and `crl_extensions` with `authorityKeyIdentifier`)",
                ));
            }
            Some(_) => return Err(refuse("is of a version that is not known")),
        }
        let scope = extensions(&parsed).map_err(|problem| refuse(&problem))?;
        let number = Number::of(&parsed).map_err(|problem| refuse(&problem))?;
        let this_update = parsed.last_update().timestamp();
        let next_update = parsed
            .next_update()
            .ok_or_else(|| refuse("has no nextUpdate, which RFC 5280 requires"))?
            .timestamp();
        if next_update < this_update {
            return Err(refuse("ends before it begins"));
        }
        for entry in parsed.iter_revoked_certificates() {
            entry_extensions(entry.extensions()).map_err(|problem| {
                refuse(&format!(
                    "has an entry, serial {}, that {problem}",
                    entry.raw_serial_as_string()
                ))
            })?;
        }
        let key_id =
            parsed
                .extensions()
                .iter()
                .find_map(|extension| match extension.parsed_extension() {
                    ParsedExtension::AuthorityKeyIdentifier(id) => {
                        id.key_identifier.as_ref().map(|id| id.0.to_vec())
                    }
                    _ => None,
                });
        let body = Body::read(der)
            .ok_or_else(|| refuse("can't be used: it is not the DER that RFC 5280 describes"))?;
        let revoked = body.revoked().map_err(|problem| refuse(&problem))?;
        Ok(Self {
            file: file.to_owned(),
            issuer: name::canonical(body.issuer),
            issuer_name,
            number,
            this_update,
            next_update,
            key_id,
            scope,
            der: der.to_vec(),
            revoked,
            key: OnceLock::new(),
            other_keys: Mutex::default(),
        })
    }

    /// Whether it is this key's own: found out once, as the signature is over the whole list, which
    /// may be large, and a CA's key is asked about with each of its clients.
    pub(super) fn is_signed_by(&self, spki: &[u8], algorithms: &WebPkiSupportedAlgorithms) -> bool {
        if let Some(key) = self.key.get() {
            return key == spki;
        }
        let others = || {
            self.other_keys
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if others().iter().any(|other| other == spki) {
            return false;
        }
        let good = is_signed_by(&self.der, spki, algorithms);
        if good {
            // Somebody else was as fast, with the same answer: no two keys verify one signature.
            let _ = self.key.set(spki.to_vec());
        } else {
            let mut others = others();
            others.push_back(spki.to_vec());
            if others.len() > MAX_OTHER_KEYS {
                others.pop_front();
            }
        }
        good
    }

    /// The key that verifies it, if it was found yet.
    pub(super) fn key(&self) -> Option<&[u8]> {
        self.key.get().map(Vec::as_slice)
    }

    pub(super) fn is_the_same_as(&self, other: &Self) -> bool {
        self.der == other.der
    }

    /// Whether it names each certificate that the other one does.
    pub(super) fn names_all_of(&self, other: &Self) -> bool {
        other.revoked.is_subset(&self.revoked)
    }

    /// Whether it names the certificate. A certificate "on hold" is revoked, for as long as it is.
    pub(super) fn names(&self, serial: &[u8]) -> bool {
        self.revoked.contains(serial)
    }
}

impl fmt::Debug for Crl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "CRL {} of {}", self.number, self.issuer_name)
    }
}

impl Number {
    fn of(crl: &CertificateRevocationList<'_>) -> Result<Self, String> {
        let number = crl.crl_number().ok_or(
            "has no CRL number, which RFC 5280 requires, so that a new one can't be told from an old one",
        )?;
        let bytes = number.to_bytes_be();
        if bytes.len() > MAX_NUMBER_BYTES {
            return Err("has a number of more than 20 bytes".to_owned());
        }
        Ok(Self(bytes.len(), bytes, number.to_string()))
    }
}

impl fmt::Display for Number {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.2)
    }
}

impl fmt::Debug for Number {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl Scope {
    /// RFC 5280, section 6.3.3 (b): a list of a distribution point speaks of the certificates that
    /// name it.
    pub(super) fn covers(&self, subject: &Subject<'_>) -> bool {
        if (self.users_only && subject.is_ca) || (self.cas_only && !subject.is_ca) {
            return false;
        }
        self.points
            .as_ref()
            .is_none_or(|points| names_one_of(subject.der, points))
    }

    /// Whether a certificate can be spoken of by both; one may name any number of distribution
    /// points.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        !(self.users_only && other.cas_only || self.cas_only && other.users_only)
    }

    /// From the issuing distribution point (RFC 5280, section 5.2.5), read here: an element that a
    /// parser leaves out would widen the scope.
    fn of(der: &[u8]) -> Result<Self, String> {
        let unreadable = || "has an issuing distribution point that can't be read".to_owned();
        let (rest, point) = Sequence::from_der(der).map_err(|_| unreadable())?;
        if !rest.is_empty() {
            return Err(unreadable());
        }
        let mut scope = Self::default();
        let mut elements = point.content.as_ref();
        let mut seen = Vec::new();
        while !elements.is_empty() {
            let (rest, element) = Any::from_der(elements).map_err(|_| unreadable())?;
            elements = rest;
            let tag = element.tag().0;
            if element.class() != Class::ContextSpecific || seen.contains(&tag) {
                return Err(unreadable());
            }
            seen.push(tag);
            let is_true = element.data != [0];
            match tag {
                0 => scope.points = Some(full_name(element.data)?),
                1 => scope.users_only = is_true,
                2 => scope.cas_only = is_true,
                3 => {
                    return Err(
                        "lists only some reasons of revocation: give one that lists all".to_owned(),
                    );
                }
                4 if is_true => return Err(INDIRECT_CRL.to_owned()),
                5 if is_true => {
                    return Err("lists attribute certificates only, which no client has".to_owned());
                }
                4 | 5 => {}
                _ => return Err(unreadable()),
            }
        }
        if scope.users_only && scope.cas_only {
            return Err(
                "covers nobody: it is for users only and for CAs only at the same time".to_owned(),
            );
        }
        Ok(scope)
    }
}

/// The URIs of a `DistributionPointName`.
fn full_name(der: &[u8]) -> Result<Vec<String>, String> {
    let unreadable = || "has a distribution point that can't be read".to_owned();
    let (rest, name) = Any::from_der(der).map_err(|_| unreadable())?;
    if !rest.is_empty() {
        return Err(unreadable());
    }
    if name.tag().0 != 0 {
        return Err(
            "names its distribution point relative to its issuer, which is not supported"
                .to_owned(),
        );
    }
    let mut names = Vec::new();
    let mut bytes = name.data;
    while !bytes.is_empty() {
        let (rest, name) = GeneralName::from_der(bytes).map_err(|_| unreadable())?;
        bytes = rest;
        names.push(name);
    }
    // In whichever order they are named, it is the same point.
    let mut uris = uris(&names);
    uris.sort_unstable();
    uris.dedup();
    if uris.is_empty() {
        return Err("has a distribution point without a URI: it would cover nobody".to_owned());
    }
    Ok(uris)
}

const INDIRECT_CRL: &str =
    "is an indirect one, which speaks for other CAs than its issuer: give the CRL of each CA";

/// Reads those that change what the list means, and refuses what is unknown and critical.
fn extensions(crl: &CertificateRevocationList<'_>) -> Result<Scope, String> {
    let mut scope = Scope::default();
    let mut seen: Vec<&Oid<'_>> = Vec::new();
    for extension in crl.extensions() {
        let oid = &extension.oid;
        if seen.contains(&oid) {
            return Err(format!("has the extension {oid} twice"));
        }
        seen.push(oid);
        if *oid == OID_X509_EXT_DELTA_CRL_INDICATOR {
            return Err("is a delta, which lists changes only: give the complete one".to_owned());
        } else if *oid == OID_X509_EXT_ISSUER_DISTRIBUTION_POINT {
            scope = Scope::of(extension.value)?;
        } else if extension.critical
            && *oid != OID_X509_EXT_CRL_NUMBER
            && *oid != OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER
        {
            return Err(format!(
                "has the critical extension {oid}, which is not supported"
            ));
        }
    }
    Ok(scope)
}

fn entry_extensions(extensions: &[X509Extension<'_>]) -> Result<(), String> {
    for extension in extensions {
        if extension.oid == CERTIFICATE_ISSUER {
            return Err(
                "names another CA: it is an indirect list; give the CRL of each CA".to_owned(),
            );
        }
        if extension.critical && extension.oid != OID_X509_EXT_REASON_CODE {
            return Err(format!(
                "has the critical extension {}, which is not supported",
                extension.oid
            ));
        }
    }
    Ok(())
}

/// Whether the certificate's distribution points have one of these URIs. Points for some reasons
/// only, or of another issuer, don't count.
fn names_one_of(der: &[u8], points: &[String]) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return false;
    };
    let named = certificate
        .extensions()
        .iter()
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::CRLDistributionPoints(found) => Some(&found.points),
            _ => None,
        })
        .flatten()
        .filter(|point| point.reasons.is_none() && point.crl_issuer.is_none())
        .filter_map(|point| match &point.distribution_point {
            Some(DistributionPointName::FullName(names)) => Some(uris(names)),
            _ => None,
        });
    named.flatten().any(|uri| points.contains(&uri))
}

fn uris(names: &[GeneralName<'_>]) -> Vec<String> {
    names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
        .collect()
}

/// What the parser for everything else leaves out or takes as it comes: nothing stands behind what
/// is read, and all of it is.
struct Body<'a> {
    /// The content of the name's SEQUENCE.
    issuer: &'a [u8],
    /// The content of `revokedCertificates`.
    entries: &'a [u8],
}

impl<'a> Body<'a> {
    /// `None`: not the form of RFC 5280, section 5.1.
    fn read(der: &'a [u8]) -> Option<Self> {
        let mut list = Elements(whole(der)?);
        let mut signed = Elements(list.take(Tag::Sequence)?);
        let outside = list.take(Tag::Sequence)?;
        list.take(Tag::BitString)?;
        signed.take(Tag::Integer)?;
        // Section 5.1.2.2: the same, inside of what is signed.
        if signed.take(Tag::Sequence)? != outside {
            return None;
        }
        let issuer = signed.take(Tag::Sequence)?;
        signed.time()?;
        signed.time()?;
        let entries = signed.take(Tag::Sequence).unwrap_or_default();
        let (rest, extensions) = Any::from_der(signed.0).ok()?;
        let at_its_end = rest.is_empty()
            && (extensions.class(), extensions.tag()) == (Class::ContextSpecific, Tag(0));
        whole(extensions.data)?;
        (list.0.is_empty() && at_its_end).then_some(Self { issuer, entries })
    }

    fn revoked(&self) -> Result<HashSet<Box<[u8]>>, String> {
        let mut all = HashSet::new();
        let mut entries = Elements(self.entries);
        while !entries.0.is_empty() {
            let serial = entries
                .take(Tag::Sequence)
                .and_then(serial)
                .ok_or("has an entry that can't be read")?;
            if !is_minimal(serial) {
                return Err(
                    "has an entry whose serial number is not written as DER has it, so that no certificate would have it"
                        .to_owned(),
                );
            }
            all.insert(serial.into());
        }
        Ok(all)
    }
}

/// Of an entry, which has nothing else than what RFC 5280 names.
fn serial(entry: &[u8]) -> Option<&[u8]> {
    let mut entry = Elements(entry);
    let serial = entry.take(Tag::Integer)?;
    entry.time()?;
    let mut extensions = Elements(entry.take(Tag::Sequence).unwrap_or_default());
    while !extensions.0.is_empty() {
        let (rest, _) = X509Extension::from_der(extensions.0).ok()?;
        extensions.0 = rest;
    }
    entry.0.is_empty().then_some(serial)
}

/// Whether the content of an INTEGER is the only one for its number, so that numbers compare as
/// bytes.
pub(super) fn is_minimal(integer: &[u8]) -> bool {
    match integer {
        [] => false,
        [0, next, ..] => *next >= 0x80,
        [0xff, next, ..] => *next < 0x80,
        _ => true,
    }
}

/// The content of a SEQUENCE that is all there is.
pub(super) fn whole(der: &[u8]) -> Option<&[u8]> {
    let mut elements = Elements(der);
    let content = elements.take(Tag::Sequence)?;
    elements.0.is_empty().then_some(content)
}

/// DER elements, one behind the other.
struct Elements<'a>(&'a [u8]);

impl<'a> Elements<'a> {
    /// The content of the next one, if it is of this kind.
    fn take(&mut self, tag: Tag) -> Option<&'a [u8]> {
        let (rest, element) = Any::from_der(self.0).ok()?;
        let is_it = element.class() == Class::Universal && element.tag() == tag;
        is_it.then(|| {
            self.0 = rest;
            element.data
        })
    }

    fn time(&mut self) -> Option<&'a [u8]> {
        self.take(Tag::UtcTime)
            .or_else(|| self.take(Tag::GeneralizedTime))
    }
}

/// Whether this key signed the certificate or CRL: both have the same form around what is signed.
pub(super) fn is_signed_by(
    der: &[u8],
    spki: &[u8],
    algorithms: &WebPkiSupportedAlgorithms,
) -> bool {
    verifies(der, spki, algorithms).unwrap_or(false)
}

/// Whether signatures of the kind that the certificate has can be verified at all.
pub(super) fn has_known_signature(der: &[u8], algorithms: &WebPkiSupportedAlgorithms) -> bool {
    Signed::read(der).is_some_and(|signed| {
        algorithms
            .all
            .iter()
            .any(|one| one.signature_alg_id().as_ref() == signed.algorithm)
    })
}

/// A certificate or a CRL.
struct Signed<'a> {
    message: &'a [u8],
    /// The content of the `AlgorithmIdentifier`.
    algorithm: &'a [u8],
    signature: BitString<'a>,
}

impl<'a> Signed<'a> {
    fn read(der: &'a [u8]) -> Option<Self> {
        let (_, outer) = Any::from_der(der).ok()?;
        let signed = (outer.tag() == Tag::Sequence).then_some(outer.data)?;
        let (rest, _) = Any::from_der(signed).ok()?;
        let message = signed.get(..signed.len() - rest.len())?;
        let (rest, algorithm) = Any::from_der(rest).ok()?;
        let (_, signature) = BitString::from_der(rest).ok()?;
        Some(Self {
            message,
            algorithm: algorithm.data,
            signature,
        })
    }
}

/// `None`: not even the form is right.
fn verifies(der: &[u8], spki: &[u8], algorithms: &WebPkiSupportedAlgorithms) -> Option<bool> {
    let signed = Signed::read(der)?;
    let (_, key) = Sequence::from_der(spki).ok()?;
    let (rest, key_algorithm) = Any::from_der(key.content.as_ref()).ok()?;
    let (_, key) = BitString::from_der(rest).ok()?;
    Some(algorithms.all.iter().any(|one| {
        one.signature_alg_id().as_ref() == signed.algorithm
            && one.public_key_alg_id().as_ref() == key_algorithm.data
            && one
                .verify_signature(key.as_ref(), signed.message, signed.signature.as_ref())
                .is_ok()
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rcgen::{
        CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair,
        KeyUsagePurpose, PublicKeyData as _, SerialNumber, date_time_ymd,
    };

    use super::*;

    #[test]
    fn however_many_keys_are_tried_on_a_list_a_few_are_remembered_and_its_own_is_found() {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::CrlSign];
        let own = KeyPair::generate().unwrap();
        let der = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2999, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&Issuer::new(params, &own))
        .unwrap();
        let list = Crl::read(Path::new("crl.pem"), der.der()).unwrap();
        let algorithms = crate::tls::provider().signature_verification_algorithms;
        for _ in 0..3 * MAX_OTHER_KEYS {
            let other = KeyPair::generate().unwrap().subject_public_key_info();
            for _ in 0..2 {
                assert!(!list.is_signed_by(&other, &algorithms));
            }
            let remembered = list.other_keys.lock().unwrap();
            assert_eq!(remembered.iter().filter(|one| **one == other).count(), 1);
            assert!(remembered.len() <= MAX_OTHER_KEYS);
        }
        assert!(list.is_signed_by(&own.subject_public_key_info(), &algorithms));
        assert_eq!(list.key(), Some(own.subject_public_key_info().as_slice()));
    }
}
