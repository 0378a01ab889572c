//! A throwaway public-key infrastructure: a CA, a server, and clients good and bad.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use time::OffsetDateTime;

/// The clients of the infrastructure; each has `<name>.pem` and `<name>.key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// `dns:operator.test`: the policy lets it do everything.
    Operator,
    /// `dns:vault.test`: encrypt and decrypt with `vault-*`, nothing else.
    Vault,
    /// `spiffe://test/app/one`: everything with keys `app-*`.
    App,
    /// A good certificate that no rule of the policy names.
    Stranger,
    /// Expired in 2021.
    Expired,
    /// On the CRL.
    Revoked,
    /// Of another CA, with the operator's name.
    OtherCa,
    /// Not valid before 2090.
    Early,
    /// For servers only.
    ForServers,
}

impl Who {
    const ALL: [Who; 9] = [
        Who::Operator,
        Who::Vault,
        Who::App,
        Who::Stranger,
        Who::Expired,
        Who::Revoked,
        Who::OtherCa,
        Who::Early,
        Who::ForServers,
    ];

    /// The files' stem.
    pub fn name(self) -> &'static str {
        match self {
            Who::Operator => "operator",
            Who::Vault => "vault",
            Who::App => "app",
            Who::Stranger => "stranger",
            Who::Expired => "expired",
            Who::Revoked => "revoked",
            Who::OtherCa => "other-ca",
            Who::Early => "early",
            Who::ForServers => "for-servers",
        }
    }

    fn serial(self) -> u64 {
        100 + Self::ALL.iter().position(|who| *who == self).unwrap() as u64
    }

    fn alternative_name(self) -> SanType {
        match self {
            Who::App => SanType::URI("spiffe://test/app/one".try_into().unwrap()),
            Who::OtherCa | Who::Expired | Who::Revoked | Who::Early | Who::ForServers => {
                SanType::DnsName("operator.test".try_into().unwrap())
            }
            _ => SanType::DnsName(format!("{}.test", self.name()).try_into().unwrap()),
        }
    }
}

/// Certificates in a directory.
#[derive(Clone, Debug)]
pub struct Pki {
    folder: PathBuf,
}

impl Pki {
    /// Makes everything. The CRL names [`Who::Revoked`] only.
    pub fn new(folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        let pki = Self {
            folder: folder.to_owned(),
        };
        let ca = authority("Strongroom test CA");
        let other = authority("Another test CA");
        write(&pki.ca(), ca.0.as_bytes());
        write(&pki.root(), ca.0.as_bytes());
        write(
            &folder.join("ca.key"),
            ca.1.key().serialize_pem().as_bytes(),
        );
        write(&pki.other_ca(), other.0.as_bytes());
        write(
            &folder.join("other-ca-root.key"),
            other.1.key().serialize_pem().as_bytes(),
        );
        pki.renew_server();

        for who in Who::ALL {
            let mut params = CertificateParams::default();
            params
                .distinguished_name
                .push(DnType::CommonName, who.name());
            params.subject_alt_names = vec![who.alternative_name()];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            params.serial_number = Some(SerialNumber::from(who.serial()));
            match who {
                Who::Expired => {
                    params.not_before = date_time_ymd(2020, 1, 1);
                    params.not_after = date_time_ymd(2021, 1, 1);
                }
                Who::Early => params.not_before = date_time_ymd(2090, 1, 1),
                Who::ForServers => {
                    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                }
                _ => {}
            }
            let issuer = if who == Who::OtherCa { &other.1 } else { &ca.1 };
            issue(&pki.certificate(who), &pki.key(who), params, issuer);
        }
        pki.revoke(&[Who::Revoked]);
        pki
    }

    /// Replaces the CRL: only these are revoked.
    pub fn revoke(&self, revoked: &[Who]) {
        let list = crl(&issuer(&self.ca()), revoked, date_time_ymd(2060, 1, 1));
        write(&self.crl(), list.as_bytes());
    }

    /// Replaces the CRL: it ends then.
    pub fn end_crl(&self, next_update: OffsetDateTime) {
        let list = crl(&issuer(&self.ca()), &[Who::Revoked], next_update);
        write(&self.crl(), list.as_bytes());
    }

    /// Replaces the CA bundle and the CRLs: clients of [`Who::OtherCa`]'s CA are good too.
    pub fn trust_the_other_ca(&self) {
        let (ours, other) = (issuer(&self.ca()), issuer(&self.other_ca()));
        // CRLs first: a CA whose CRL is missing is refused.
        let end = date_time_ymd(2060, 1, 1);
        let crls = crl(&ours, &[], end) + &crl(&other, &[], end);
        write(&self.crl(), crls.as_bytes());
        let bundle = [self.ca(), self.other_ca()].map(|path| fs::read_to_string(path).unwrap());
        write(&self.ca(), bundle.concat().as_bytes());
    }

    /// A new certificate and key for the server, written one after the other.
    pub fn renew_server(&self) {
        self.renew_server_until(date_time_ymd(4096, 1, 1));
    }

    /// The same, with that end.
    pub fn renew_server_until(&self, not_after: OffsetDateTime) {
        let mut server = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        server.not_after = not_after;
        server
            .subject_alt_names
            .push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        issue(
            &self.server_certificate(),
            &self.server_key(),
            server,
            &issuer(&self.ca()),
        );
    }

    /// A new certificate and key for a client, with that end.
    pub fn renew_client_until(&self, who: Who, not_after: OffsetDateTime) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![who.alternative_name()];
        params.not_after = not_after;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(SerialNumber::from(who.serial()));
        let ca = issuer(&self.ca());
        issue(&self.certificate(who), &self.key(who), params, &ca);
    }

    /// The CA's certificate, for both sides.
    pub fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// What [`Pki::new`] made in this directory, or a copy of it.
    pub fn made_in(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// The CA's certificate, for clients: this file stays as it is.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root.pem")
    }

    /// The certificate of the CA that the server does not trust.
    pub fn other_ca(&self) -> PathBuf {
        self.folder.join("other-ca-root.pem")
    }

    /// The CRL.
    pub fn crl(&self) -> PathBuf {
        self.folder.join("crl.pem")
    }

    /// The server's certificate.
    pub fn server_certificate(&self) -> PathBuf {
        self.folder.join("server.pem")
    }

    /// The server's private key.
    pub fn server_key(&self) -> PathBuf {
        self.folder.join("server.key")
    }

    /// A client's certificate.
    pub fn certificate(&self, who: Who) -> PathBuf {
        self.folder.join(format!("{}.pem", who.name()))
    }

    /// A client's private key.
    pub fn key(&self, who: Who) -> PathBuf {
        self.folder.join(format!("{}.key", who.name()))
    }
}

fn authority(name: &str) -> (String, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), Issuer::new(params, key))
}

/// A CA again, from its certificate (the first in the file) and the key beside it.
fn issuer(certificate: &Path) -> Issuer<'static, KeyPair> {
    let key = fs::read_to_string(certificate.with_extension("key")).unwrap();
    let certificate = fs::read_to_string(certificate).unwrap();
    Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(&key).unwrap()).unwrap()
}

/// Each has a higher number than the one before it.
fn crl(issuer: &Issuer<'_, KeyPair>, revoked: &[Who], next_update: OffsetDateTime) -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2024, 1, 1),
        next_update,
        crl_number: SerialNumber::from(NUMBER.fetch_add(1, Ordering::Relaxed)),
        issuing_distribution_point: None,
        revoked_certs: revoked
            .iter()
            .map(|who| RevokedCertParams {
                serial_number: SerialNumber::from(who.serial()),
                revocation_time: date_time_ymd(2024, 1, 1),
                reason_code: Some(RevocationReason::KeyCompromise),
                invalidity_date: None,
            })
            .collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(issuer).unwrap().pem().unwrap()
}

fn issue(certificate: &Path, key: &Path, params: CertificateParams, issuer: &Issuer<'_, KeyPair>) {
    let pair = KeyPair::generate().unwrap();
    write(
        certificate,
        params.signed_by(&pair, issuer).unwrap().pem().as_bytes(),
    );
    write(key, pair.serialize_pem().as_bytes());
}

/// Written aside and renamed, as a careful operator's tool does: a server that watches the file
/// never sees half of it.
fn write(path: &Path, bytes: &[u8]) {
    let aside = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)
        .unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    fs::rename(&aside, path).unwrap();
}
