//! Throwaway certificates, for the demo and the tests. Not for production: the CA's key is in this process's memory.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use zeroize::Zeroizing;

/// What goes wrong in making a certificate: a name that can't be in one.
pub type Error = rcgen::Error;

/// A certificate and its private key, PEM.
pub struct Certified {
    /// The certificate.
    pub certificate: String,
    /// Its private key, PKCS#8.
    pub key: Zeroizing<String>,
    /// Its serial number, for [`Authority::crl`].
    pub serial: Vec<u8>,
}

/// How long a certificate is valid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Validity {
    /// From yesterday for a year or so.
    #[default]
    Now,
    /// Expired years ago.
    Past,
}

/// A name of a certificate's subject (RFC 5280, section 4.2.1.6).
#[derive(Clone, Debug)]
pub enum Name {
    /// A DNS name.
    Dns(String),
    /// A URI, e.g. `spiffe://domain/path`.
    Uri(String),
    /// None but the common name: the identity is then the key's hash.
    Common(String),
}

/// A certificate authority that dies with the process.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A self-signed one.
    pub fn new(common_name: &str) -> Result<Self, Error> {
        let mut params = params(common_name, Validity::Now)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Self { issuer })
    }

    /// Its own certificate, PEM.
    pub fn certificate(&self) -> String {
        self.issuer.pem()
    }

    /// A server's certificate for DNS names and IP addresses.
    pub fn server(&self, names: &[&str]) -> Result<Certified, Error> {
        let mut params = params("strongroom", Validity::Now)?;
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        params.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    /// A client's certificate.
    pub fn client(&self, name: &Name, validity: Validity) -> Result<Certified, Error> {
        let (common_name, alternative) = match name {
            Name::Dns(dns) => (dns, Some(SanType::DnsName(dns.as_str().try_into()?))),
            Name::Uri(uri) => (uri, Some(SanType::URI(uri.as_str().try_into()?))),
            Name::Common(name) => (name, None),
        };
        let mut params = params(common_name, validity)?;
        params.subject_alt_names.extend(alternative);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    /// A revocation list, PEM, with these serial numbers on it.
    pub fn crl(&self, number: u64, serials: &[&[u8]]) -> Result<String, Error> {
        let (from, until) = years(Validity::Now);
        let revoked = |serial: &&[u8]| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: date_time_ymd(from, 1, 1),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        };
        CertificateRevocationListParams {
            this_update: date_time_ymd(from, 1, 1),
            next_update: date_time_ymd(until, 1, 1),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&self.issuer)?
        .pem()
    }

    fn sign(&self, mut params: CertificateParams) -> Result<Certified, Error> {
        let mut serial = [0_u8; 16];
        getrandom::fill(&mut serial).map_err(|_| Error::RingUnspecified)?;
        // Positive and of full length whatever the random bits are (RFC 5280, section 4.1.2.2).
        serial[0] = serial[0] & 0x7f | 0x40;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Certified {
            certificate: certificate.pem(),
            key: Zeroizing::new(key.serialize_pem()),
            serial: serial.to_vec(),
        })
    }
}

fn params(common_name: &str, validity: Validity) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    let (from, until) = years(validity);
    params.not_before = date_time_ymd(from, 1, 1);
    params.not_after = date_time_ymd(until, 1, 1);
    Ok(params)
}

/// The years at whose first of January validity begins and ends: near enough, and no calendar is needed.
fn years(validity: Validity) -> (i32, i32) {
    let year = i32::from(
        jiff::Timestamp::now()
            .to_zoned(jiff::tz::TimeZone::UTC)
            .year(),
    );
    match validity {
        Validity::Now => (year - 1, year + 2),
        Validity::Past => (year - 5, year - 3),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn certificates_and_a_revocation_list_are_made() {
        let authority = Authority::new("test CA").unwrap();
        let client = authority
            .client(
                &Name::Uri("spiffe://example.org/vault".into()),
                Validity::Past,
            )
            .unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(client.certificate.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        assert!(!certificate.validity().is_valid());
        assert_eq!(certificate.raw_serial(), client.serial);
        let crl = authority.crl(1, &[&client.serial]).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(crl.as_bytes()).unwrap();
        let (_, crl) = x509_parser::parse_x509_crl(&pem.contents).unwrap();
        assert_eq!(crl.iter_revoked_certificates().count(), 1);
    }
}
