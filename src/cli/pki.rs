//! Certificates for the demo and `strongroom dev`, of a CA of their own.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use zeroize::Zeroizing;

use super::exit::{Exit, Failure};

/// A certificate and its private key (PKCS#8), PEM.
pub(super) struct Certified {
    pub(super) certificate: String,
    pub(super) key: Zeroizing<String>,
}

/// A certificate authority. Its key dies with the process, unless the caller keeps it.
pub(super) struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn new(common_name: &str) -> Result<Self, rcgen::Error> {
        let mut params = params(common_name, &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self {
            certificate,
            issuer: Issuer::new(params, key),
        })
    }

    /// One that was made before, of its certificate and its key, both PEM.
    pub(super) fn again(certificate: String, key: &str) -> Result<Self, rcgen::Error> {
        let issuer = Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(key)?)?;
        Ok(Self {
            certificate,
            issuer,
        })
    }

    /// Its own certificate, PEM.
    pub(super) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its private key (PKCS#8), PEM.
    pub(super) fn key(&self) -> Zeroizing<String> {
        Zeroizing::new(self.issuer.key().serialize_pem())
    }

    /// A client's certificate, for one DNS name.
    pub(super) fn client(&self, name: &str) -> Result<Certified, rcgen::Error> {
        self.sign(params(name, &[name])?, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A server's certificate, for these DNS names and IP addresses.
    pub(super) fn server(&self, names: &[&str]) -> Result<Certified, rcgen::Error> {
        let name = names.first().copied().unwrap_or_default();
        self.sign(params(name, names)?, ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Certified, rcgen::Error> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Certified {
            certificate,
            key: Zeroizing::new(key.serialize_pem()),
        })
    }
}

impl From<rcgen::Error> for Failure {
    fn from(error: rcgen::Error) -> Self {
        Self::new(Exit::Failed, format!("certificates can't be made: {error}"))
    }
}

/// Valid from the first of January of last year until that of the year after next: no finer
/// calendar is needed.
fn params(common_name: &str, names: &[&str]) -> Result<CertificateParams, rcgen::Error> {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    let year = i32::from(
        jiff::Timestamp::now()
            .to_zoned(jiff::tz::TimeZone::UTC)
            .year(),
    );
    params.not_before = date_time_ymd(year - 1, 1, 1);
    params.not_after = date_time_ymd(year + 2, 1, 1);
    Ok(params)
}
