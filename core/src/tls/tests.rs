#![allow(clippy::unwrap_used)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnValue, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber, date_time_ymd,
};
use rustls::client::Resumption;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, NamedGroup, RootCertStore};
use rustls::{ProtocolVersion, ServerConnection};
use tempfile::TempDir;

use super::*;

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

struct Leaf {
    der: CertificateDer<'static>,
    pem: String,
    key: KeyPair,
}

impl Ca {
    fn new(name: &str) -> Self {
        let params = Self::params(name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    /// The same CA, whose software writes its name as an older type of string.
    fn renamed(&self, name: &str) -> Issuer<'_, &KeyPair> {
        Issuer::new(Self::printable(name), self.issuer.key())
    }

    fn printable(name: &str) -> CertificateParams {
        let mut params = Self::params("");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(
            rcgen::DnType::CommonName,
            DnValue::PrintableString(name.try_into().unwrap()),
        );
        params
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    fn intermediate(&self, name: &str) -> Self {
        self.intermediate_of(Self::params(name))
    }

    fn intermediate_of(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Self {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    /// Another certificate of this CA's key, by another CA.
    fn signed_by(&self, issuer: &Self, serial: u64) -> rcgen::Certificate {
        let mut params = Self::params(&self.name());
        params.serial_number = Some(SerialNumber::from(serial));
        params.signed_by(self.issuer.key(), &issuer.issuer).unwrap()
    }

    fn name(&self) -> String {
        let (_, parsed) = x509_parser::parse_x509_certificate(&self.der).unwrap();
        let name = parsed.subject().iter_common_name().next().unwrap();
        name.as_str().unwrap().to_owned()
    }

    fn leaf(&self, serial: u64, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        leaf_of(&self.issuer, serial, change)
    }

    fn crl(&self, revoked: &[u64], next_year: i32) -> String {
        crl(&self.issuer, 1, revoked, next_year)
    }
}

fn leaf_of(
    issuer: &Issuer<'_, impl rcgen::SigningKey>,
    serial: u64,
    change: impl FnOnce(&mut CertificateParams),
) -> Leaf {
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from(serial));
    params.subject_alt_names = vec![SanType::DnsName("localhost".try_into().unwrap())];
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    Leaf {
        der: certificate.der().clone(),
        pem: certificate.pem(),
        key,
    }
}

fn crl(
    issuer: &Issuer<'_, impl rcgen::SigningKey>,
    number: u64,
    revoked: &[u64],
    next_year: i32,
) -> String {
    crl_of_key(issuer, KeyIdMethod::Sha256, number, revoked, next_year)
}

/// As `crl`, with another key identifier.
fn crl_of_key(
    issuer: &Issuer<'_, impl rcgen::SigningKey>,
    key_identifier_method: KeyIdMethod,
    number: u64,
    revoked: &[u64],
    next_year: i32,
) -> String {
    CertificateRevocationListParams {
        this_update: date_time_ymd(2024, 1, 1),
        next_update: date_time_ymd(next_year, 1, 1),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: revoked
            .iter()
            .map(|serial| RevokedCertParams {
                serial_number: SerialNumber::from(*serial),
                revocation_time: date_time_ymd(2024, 1, 1),
                reason_code: None,
                invalidity_date: None,
            })
            .collect(),
        key_identifier_method,
    }
    .signed_by(issuer)
    .unwrap()
    .pem()
    .unwrap()
}

struct TestPki {
    folder: TempDir,
    ca: Ca,
}

impl TestPki {
    fn new() -> Self {
        let house = Self {
            folder: TempDir::new().unwrap(),
            ca: Ca::new("clients"),
        };
        let server = house.ca.leaf(1, |_| ());
        house.write("server.pem", &server.pem);
        house.write("server.key", &server.key.serialize_pem());
        house.write("ca.pem", &house.ca.pem);
        house
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(0o600)).unwrap();
    }

    fn files(&self, crls: &[&str]) -> TlsFiles {
        TlsFiles {
            certificate: self.path("server.pem"),
            private_key: self.path("server.key"),
            client_cas: vec![ClientCa::for_anybody(self.path("ca.pem"))],
            crls: crls.iter().map(|name| self.path(name)).collect(),
        }
    }

    /// With a file of CAs that may only make SPIFFE IDs.
    fn with_bound(&self, pem: &str) -> TlsFiles {
        self.write("bound.pem", pem);
        let mut files = self.files(&[]);
        files.client_cas.push(ClientCa {
            file: self.path("bound.pem"),
            identities: vec![
                IdentityPattern::try_from("spiffe://example.org/**".to_owned()).unwrap(),
            ],
        });
        files
    }

    fn load(&self, crls: &[&str]) -> Result<Tls, TlsError> {
        Tls::load(self.files(crls))
    }

    fn client(&self, chain: Option<(&Leaf, &[&Ca])>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der.clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match chain {
            None => builder.with_no_client_auth(),
            Some((leaf, intermediates)) => {
                let mut chain = vec![leaf.der.clone()];
                chain.extend(intermediates.iter().map(|ca| ca.der.clone()));
                let key = PrivateKeyDer::try_from(leaf.key.serialize_der()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.resumption = Resumption::in_memory_sessions(8);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

/// The whole handshake, in memory.
fn handshake(
    tls: &Tls,
    client: &Arc<ClientConfig>,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(tls.server_config()).unwrap();
    for _ in 0..10 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut bytes = bytes.as_slice();
        while !bytes.is_empty() {
            server.read_tls(&mut bytes).unwrap();
            server.process_new_packets()?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut bytes = bytes.as_slice();
        while !bytes.is_empty() {
            client.read_tls(&mut bytes).unwrap();
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}

fn peer(chain: &[&CertificateDer<'_>]) -> Peer {
    let chain = chain.iter().map(|der| der.to_vec()).collect();
    Peer::new(chain, "192.0.2.1:1".parse().unwrap()).unwrap()
}

#[test]
fn it_speaks_1_3_with_the_hybrid_key_exchange() {
    let house = TestPki::new();
    let tls = house.load(&[]).unwrap();
    let leaf = house.ca.leaf(7, |_| ());
    let (client, server) = handshake(&tls, &house.client(Some((&leaf, &[])))).unwrap();
    assert_eq!(server.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    let group = client.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
    assert_eq!(server.alpn_protocol(), Some(&b"h2"[..]));
    let shown = server.peer_certificates().unwrap();
    let peer = Peer::new(vec![shown[0].to_vec()], "192.0.2.1:1".parse().unwrap()).unwrap();
    assert_eq!(peer.identity.as_str(), "dns:localhost");
    tls.still_valid(&peer).unwrap();
}

#[test]
fn no_session_is_resumed() {
    let house = TestPki::new();
    let tls = house.load(&[]).unwrap();
    let leaf = house.ca.leaf(7, |_| ());
    let client = house.client(Some((&leaf, &[])));
    for _ in 0..2 {
        let (client, _) = handshake(&tls, &client).unwrap();
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(client.tls13_tickets_received(), 0);
    }
}

#[test]
fn who_has_no_good_certificate_is_refused() {
    let house = TestPki::new();
    let tls = house.load(&[]).unwrap();
    assert!(handshake(&tls, &house.client(None)).is_err());
    let stranger = Ca::new("clients").leaf(7, |_| ());
    let expired = house
        .ca
        .leaf(8, |params| params.not_after = date_time_ymd(2020, 1, 1));
    let early = house
        .ca
        .leaf(8, |params| params.not_before = date_time_ymd(2090, 1, 1));
    let for_servers = house.ca.leaf(9, |params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    });
    for leaf in [stranger, expired, early, for_servers] {
        assert!(handshake(&tls, &house.client(Some((&leaf, &[])))).is_err());
        assert!(tls.still_valid(&peer(&[&leaf.der])).is_err());
    }
}

#[test]
fn a_revoked_client_is_refused_also_on_an_open_connection() {
    let house = TestPki::new();
    house.write("crl.pem", &house.ca.crl(&[], 2090));
    let tls = house.load(&["crl.pem"]).unwrap();
    let (good, bad) = (house.ca.leaf(7, |_| ()), house.ca.leaf(8, |_| ()));
    let (good_peer, bad_peer) = (peer(&[&good.der]), peer(&[&bad.der]));
    handshake(&tls, &house.client(Some((&bad, &[])))).unwrap();
    tls.still_valid(&bad_peer).unwrap();
    tls.still_valid(&good_peer).unwrap();

    house.write("crl.pem", &house.ca.crl(&[8], 2090));
    tls.read_again().unwrap().put_in_force();
    assert_eq!(tls.generation(), 2);
    assert!(handshake(&tls, &house.client(Some((&bad, &[])))).is_err());
    let error = tls.still_valid(&bad_peer).unwrap_err();
    assert!(error.contains("Revoked"), "{error}");
    tls.still_valid(&good_peer).unwrap();
    handshake(&tls, &house.client(Some((&good, &[])))).unwrap();
}

#[test]
fn with_crls_every_issuer_of_the_chain_needs_one() {
    let house = TestPki::new();
    let intermediate = house.ca.intermediate("issuing");
    let leaf = intermediate.leaf(7, |_| ());
    // A new one for each configuration: a peer remembers its last check.
    let chain = || peer(&[&leaf.der, &intermediate.der]);
    house.load(&[]).unwrap().still_valid(&chain()).unwrap();

    house.write("root.pem", &house.ca.crl(&[], 2090));
    let tls = house.load(&["root.pem"]).unwrap();
    let error = tls.still_valid(&chain()).unwrap_err();
    assert!(error.contains("UnknownRevocationStatus"), "{error}");

    house.write("issuing.pem", &intermediate.crl(&[], 2090));
    let tls = house.load(&["root.pem", "issuing.pem"]).unwrap();
    tls.still_valid(&chain()).unwrap();
    let client = house.client(Some((&leaf, &[&intermediate])));
    handshake(&tls, &client).unwrap();

    let error = house.load(&["issuing.pem"]).err().unwrap();
    assert!(error.problem.contains("CN=clients"), "{error}");
}

/// An anchor ends the path, but not the question: the root above it may have revoked it.
#[test]
fn a_ca_of_the_bundle_that_another_one_of_it_revoked_makes_no_clients() {
    let house = TestPki::new();
    let root = &house.ca;
    let middle = Ca::new("middle");
    let issuing = Ca::new("issuing");
    let by_root = middle.signed_by(root, 21);
    let by_middle = issuing.signed_by(&middle, 22);
    let leaf = issuing.leaf(7, |_| ());
    house.write("middle.pem", &middle.crl(&[], 2999));
    house.write("issuing.pem", &issuing.crl(&[], 2999));
    let lists = ["root.pem", "middle.pem", "issuing.pem"];
    let bundle = [&root.pem, &by_root.pem(), &by_middle.pem()];
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let pems: Vec<&str> = order.iter().map(|&at| bundle[at].as_str()).collect();
        house.write("ca.pem", &pems.concat());
        for (revoked, good) in [(&[][..], true), (&[22], true), (&[21], false)] {
            house.write("root.pem", &root.crl(revoked, 2999));
            let tls = house.load(&lists).unwrap();
            for more in [
                &[][..],
                &[by_middle.der().clone()],
                &[by_middle.der().clone(), by_root.der().clone()],
            ] {
                let chain: Vec<_> = [&leaf.der].into_iter().chain(more).collect();
                let answer = tls.still_valid(&peer(&chain));
                assert_eq!(answer.is_ok(), good, "{order:?} {revoked:?} {answer:?}");
                if let Err(error) = answer {
                    assert!(error.contains("of CN=clients names it"), "{error}");
                }
            }
        }
    }
    // The root says nothing of it any more.
    house.write("root.pem", &root.crl(&[], 2025));
    let tls = Tls::start(house.files(&lists)).unwrap();
    let error = tls.still_valid(&peer(&[&leaf.der])).unwrap_err();
    assert!(error.contains("ended on 2025-01-01"), "{error}");
}

/// RFC 5280, section 6: one path with nothing revoked on it is enough.
#[test]
fn a_ca_that_two_others_issued_makes_clients_until_both_revoked_it() {
    let house = TestPki::new();
    let (one, other) = (&house.ca, Ca::new("other root"));
    let issuing = Ca::new("issuing");
    let by_one = issuing.signed_by(one, 21);
    let by_other = issuing.signed_by(&other, 22);
    let leaf = issuing.leaf(7, |_| ());
    let bundle = [&one.pem, &by_one.pem(), &other.pem, &by_other.pem()];
    house.write("ca.pem", &bundle.map(String::as_str).concat());
    house.write("issuing.pem", &issuing.crl(&[], 2999));
    for (by_one, by_other, good) in [
        (&[][..], &[][..], true),
        (&[21], &[], true),
        (&[], &[22], true),
        (&[21], &[22], false),
    ] {
        house.write("one.pem", &one.crl(by_one, 2999));
        house.write("other.pem", &other.crl(by_other, 2999));
        let tls = house
            .load(&["one.pem", "other.pem", "issuing.pem"])
            .unwrap();
        let answer = tls.still_valid(&peer(&[&leaf.der]));
        assert_eq!(answer.is_ok(), good, "{by_one:?} {by_other:?} {answer:?}");
    }
}

#[test]
fn cas_that_issued_each_other_are_asked_once_each() {
    let house = TestPki::new();
    let (one, other) = (Ca::new("one"), Ca::new("other"));
    let by_other = one.signed_by(&other, 21);
    let by_one = other.signed_by(&one, 22);
    house.write("ca.pem", &(by_one.pem() + &by_other.pem()));
    let leaf = one.leaf(7, |_| ());
    for (of_one, of_other, good) in [
        (&[][..], &[][..], true),
        (&[], &[21], false),
        (&[22], &[], false),
    ] {
        house.write("one.pem", &one.crl(of_one, 2999));
        house.write("other.pem", &other.crl(of_other, 2999));
        let tls = house.load(&["one.pem", "other.pem"]).unwrap();
        let answer = tls.still_valid(&peer(&[&leaf.der]));
        assert_eq!(answer.is_ok(), good, "{of_one:?} {of_other:?} {answer:?}");
    }
}

/// Its key is what a CRL belongs to, also where the name is another than in the certificate that
/// the client sends along.
#[test]
fn a_newer_crl_of_a_ca_that_clients_send_along_counts_under_whichever_name() {
    let house = TestPki::new();
    let between = house.ca.intermediate("issuing");
    let leaf = between.leaf(7, |_| ());
    house.write("root.pem", &house.ca.crl(&[], 2999));
    house.write("old.pem", &between.crl(&[], 2999));
    let renamed = between.renamed("Issuing CA");
    house.write("new.pem", &crl(&renamed, 2, &[7], 2999));
    for lists in [
        ["root.pem", "old.pem", "new.pem"],
        ["new.pem", "old.pem", "root.pem"],
    ] {
        let tls = house.load(&lists).unwrap();
        let error = tls
            .still_valid(&peer(&[&leaf.der, &between.der]))
            .unwrap_err();
        assert!(error.contains("Revoked: number 2"), "{error}");
    }
}

#[test]
fn an_ended_crl_of_a_ca_above_is_said_before_everybody_below_is_refused() {
    let house = TestPki::new();
    let (root, issuing) = (&house.ca, house.ca.intermediate("issuing"));
    let other = Ca::new("other");
    house.write("ca.pem", &format!("{}{}", issuing.pem, root.pem));
    house.write("issuing.pem", &issuing.crl(&[], 2999));
    house.write("other.pem", &other.crl(&[], 2999));
    house.write("root.pem", &root.crl(&[], 2025));
    let error = house.load(&["root.pem", "issuing.pem"]).err().unwrap();
    assert_eq!(error.file, house.path("root.pem"));
    assert!(error.problem.contains("ended on 2025-01-01"), "{error}");
    // As a reload has it.
    house.write("root.pem", &root.crl(&[], 2999));
    let tls = house.load(&["root.pem", "issuing.pem"]).unwrap();
    house.write("root.pem", &root.crl(&[], 2025));
    assert!(tls.read_again().is_err());
    // Not everybody's way goes there.
    house.write(
        "ca.pem",
        &format!("{}{}{}", issuing.pem, root.pem, other.pem),
    );
    house
        .load(&["root.pem", "issuing.pem", "other.pem"])
        .unwrap();
    // Another CA has issued it too.
    let by_other = issuing.signed_by(&other, 21);
    house.write(
        "ca.pem",
        &(by_other.pem() + &issuing.pem + &root.pem + &other.pem),
    );
    house.write("other.pem", &other.crl(&[], 2025));
    house
        .load(&["root.pem", "issuing.pem", "other.pem"])
        .err()
        .unwrap();
}

#[test]
fn a_ca_with_another_ones_key_needs_a_crl_under_its_own_name() {
    let house = TestPki::new();
    let renamed = Ca::params("renamed")
        .signed_by(house.ca.issuer.key(), &house.ca.issuer)
        .unwrap();
    let renamed_issuer = Issuer::new(Ca::params("renamed"), house.ca.issuer.key());
    house.write("ca.pem", &format!("{}{}", house.ca.pem, renamed.pem()));
    house.write("old.pem", &house.ca.crl(&[], 2999));
    let error = house.load(&["old.pem"]).err().unwrap();
    assert!(error.problem.contains("CN=renamed"), "{error}");
    house.write("new.pem", &crl(&renamed_issuer, 1, &[], 2999));
    let tls = house.load(&["old.pem", "new.pem"]).unwrap();
    let leaf = leaf_of(&renamed_issuer, 7, as_it_is);
    tls.still_valid(&peer(&[&leaf.der])).unwrap();
}

#[test]
fn a_crl_that_is_asked_about_nobody_is_said() {
    let house = TestPki::new();
    let mut params = Ca::params("issuing");
    params.use_authority_key_identifier_extension = true;
    let issuing = house.ca.intermediate_of(params);
    let between = issuing.intermediate("below");
    house.write("root.pem", &house.ca.crl(&[], 2999));
    house.write("namesake.pem", &Ca::new("clients").crl(&[], 2999));
    house.write("issuing.pem", &issuing.crl(&[], 2999));
    house.write("below.pem", &between.crl(&[], 2999));
    let both = format!("{}{}", house.ca.pem, issuing.pem);
    for (bundle, lists, said) in [
        (&issuing.pem, &["root.pem", "issuing.pem"][..], true),
        (&issuing.pem, &["namesake.pem", "issuing.pem"], false),
        // Of a CA that clients send along.
        (&issuing.pem, &["below.pem", "issuing.pem"], false),
        (&both, &["root.pem", "issuing.pem"], false),
    ] {
        house.write("ca.pem", bundle);
        let log = tempfile::NamedTempFile::new().unwrap();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(Mutex::new(log.reopen().unwrap()))
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            house.load(lists).unwrap();
        });
        let log = fs::read_to_string(log.path()).unwrap();
        let says = "of CN=clients is asked about nobody: in tls.client_ca there is CN=issuing";
        assert_eq!(log.contains(says), said, "{lists:?}: {log}");
    }
}

/// RFC 5280, section 6.3.3 (g). OpenSSL would pass over it, and let its client in.
#[test]
fn a_newer_crl_of_a_key_counts_whichever_key_identifier_it_names() {
    let house = TestPki::new();
    let between = house.ca.intermediate("issuing");
    let other_id = || KeyIdMethod::PreSpecified(vec![1, 2, 3, 4]);
    house.write("root.pem", &house.ca.crl(&[], 2999));
    house.write("old.pem", &between.crl(&[], 2999));
    let new = crl_of_key(&between.issuer, other_id(), 2, &[7], 2999);
    house.write("new.pem", &new);
    for bundle in [
        house.ca.pem.clone(),
        format!("{}{}", house.ca.pem, between.pem),
    ] {
        house.write("ca.pem", &bundle);
        for lists in [
            ["root.pem", "old.pem", "new.pem"],
            ["new.pem", "old.pem", "root.pem"],
        ] {
            let tls = house.load(&lists).unwrap();
            let answer = |serial| {
                tls.still_valid(&peer(&[&between.leaf(serial, as_it_is).der, &between.der]))
            };
            let error = answer(7).unwrap_err();
            assert!(error.contains("Revoked: number 2"), "{error}");
            answer(8).unwrap();
        }
    }
    // Alone.
    let tls = house.load(&["root.pem", "new.pem"]).unwrap();
    let leaf = between.leaf(8, as_it_is);
    tls.still_valid(&peer(&[&leaf.der, &between.der])).unwrap();
}

#[test]
fn two_keys_of_one_name_have_their_own_lists_whichever_identifier_they_share() {
    let house = TestPki::new();
    let other = house.ca.intermediate("clients");
    let shared = || KeyIdMethod::PreSpecified(vec![1, 2, 3, 4]);
    house.write(
        "five.pem",
        &crl_of_key(&house.ca.issuer, shared(), 5, &[], 2999),
    );
    house.write(
        "four.pem",
        &crl_of_key(&other.issuer, shared(), 4, &[7], 2999),
    );
    for lists in [["five.pem", "four.pem"], ["four.pem", "five.pem"]] {
        let tls = house.load(&lists).unwrap();
        let answer =
            |serial| tls.still_valid(&peer(&[&other.leaf(serial, as_it_is).der, &other.der]));
        answer(8).unwrap();
        let error = answer(7).unwrap_err();
        assert!(error.contains("Revoked: number 4"), "{error}");
    }
}

#[test]
fn an_expired_crl_is_refused() {
    let house = TestPki::new();
    house.write("crl.pem", &house.ca.crl(&[], 2025));
    let error = house.load(&["crl.pem"]).err().unwrap();
    assert!(error.problem.contains("ended on 2025-01-01"), "{error}");
}

#[test]
fn what_has_ended_lets_the_server_start_and_takes_its_successor() {
    let house = TestPki::new();
    let (leaf, good) = (house.ca.leaf(7, |_| ()), house.ca.leaf(1, |_| ()));
    let renew = |server: &Leaf| {
        house.write("server.pem", &server.pem);
        house.write("server.key", &server.key.serialize_pem());
    };
    let old = house
        .ca
        .leaf(2, |params| params.not_after = date_time_ymd(2021, 2, 3));
    renew(&old);
    house.write("crl.pem", &house.ca.crl(&[], 2025));
    // Asked without starting, both are refused.
    house.load(&["crl.pem"]).err().unwrap();
    let tls = Tls::start(house.files(&["crl.pem"])).unwrap();
    let error = tls.still_valid(&peer(&[&leaf.der])).unwrap_err();
    assert!(error.contains("ended on 2025-01-01"), "{error}");

    // Each is taken alone, in any order: the other one is no worse than before.
    tls.read_again().unwrap().put_in_force();
    house.write("crl.pem", &house.ca.crl(&[8], 2090));
    tls.read_again().unwrap().put_in_force();
    tls.still_valid(&peer(&[&leaf.der])).unwrap();
    let revoked = house.ca.leaf(8, |_| ());
    tls.still_valid(&peer(&[&revoked.der])).unwrap_err();
    handshake(&tls, &house.client(Some((&leaf, &[])))).unwrap_err();
    renew(&good);
    tls.read_again().unwrap().put_in_force();
    handshake(&tls, &house.client(Some((&leaf, &[])))).unwrap();

    // Nothing good is given up for it.
    renew(&old);
    let error = tls.read_again().err().unwrap();
    assert!(error.problem.contains("expired on 2021-02-03"), "{error}");
    renew(&good);
    house.write("crl.pem", &house.ca.crl(&[8], 2025));
    let error = tls.read_again().err().unwrap();
    assert!(error.problem.contains("ended on 2025-01-01"), "{error}");
    handshake(&tls, &house.client(Some((&leaf, &[])))).unwrap();
}

#[test]
fn all_that_the_files_say_against_each_other_is_named_at_once() {
    let house = TestPki::new();
    let (one, two, three) = (Ca::new("one"), Ca::new("two"), Ca::new("three"));
    let old = house
        .ca
        .leaf(2, |params| params.not_after = date_time_ymd(2021, 2, 3));
    house.write("server.pem", &old.pem);
    house.write("server.key", &old.key.serialize_pem());
    house.write(
        "ca.pem",
        &[&one.pem, &two.pem, &three.pem]
            .map(String::as_str)
            .concat(),
    );
    // The key of one is in both files, twice.
    let again = Ca::params("one")
        .self_signed(one.issuer.key())
        .unwrap()
        .pem();
    let mut files = house.with_bound(&format!("{}{again}", one.pem));
    house.write("one.pem", &one.crl(&[], 2999));
    house.write("one-else.pem", &one.crl(&[7], 2999));
    house.write("renamed.pem", &crl(&one.renamed("somebody"), 1, &[], 2999));
    files.crls = ["one.pem", "one-else.pem", "renamed.pem"]
        .map(|name| house.path(name))
        .into();
    let said: Vec<String> = Tls::problems(&files)
        .iter()
        .map(ToString::to_string)
        .collect();
    let expected = [
        "bound.pem: the key of the CA CN=one is in",
        "bound.pem: the key of the CA CN=one is in",
        "renamed.pem: the CRL number 1 is signed by the key of the CA CN=one, but its issuer",
        "one.pem: the CRLs of CN=one contradict each other",
        "one-else.pem: no CRL that is signed by the key of the client CA CN=two",
        "one-else.pem: no CRL that is signed by the key of the client CA CN=three",
        "server.pem: the server certificate",
    ];
    assert_eq!(said.len(), expected.len(), "{said:#?}");
    for (said, expected) in said.iter().zip(expected) {
        assert!(said.contains(expected), "{said}: {expected}");
    }

    // What has ended is all there is.
    house.write("ca.pem", &one.pem);
    house.write("one.pem", &one.crl(&[], 2025));
    files.client_cas.truncate(1);
    files.crls.truncate(1);
    let said: Vec<String> = Tls::problems(&files)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(said.len(), 2, "{said:#?}");
    assert!(said[0].contains("expired on 2021-02-03"), "{said:#?}");
    assert!(said[1].contains("ended on 2025-01-01"), "{said:#?}");
}

#[test]
fn broken_files_leave_the_old_ones_in_force() {
    let house = TestPki::new();
    let tls = house.load(&[]).unwrap();
    let leaf = house.ca.leaf(7, |_| ());
    for (name, text) in [
        ("server.pem", "nothing"),
        ("server.key", "nothing"),
        ("ca.pem", ""),
        (
            "ca.pem",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ),
        ("ca.pem", "-----BEGIN CERTIFICATE-----\nAA"),
        ("ca.pem", leaf.pem.as_str()),
        ("server.key", &leaf.key.serialize_pem()),
    ] {
        let old = fs::read_to_string(house.path(name)).unwrap();
        house.write(name, text);
        let error = tls.read_again().err().unwrap();
        assert_eq!(error.file, house.path(name), "{error}");
        assert_eq!(tls.generation(), 1);
        handshake(&tls, &house.client(Some((&leaf, &[])))).unwrap();
        house.write(name, &old);
    }
    tls.read_again().unwrap().put_in_force();
    assert_eq!(tls.generation(), 2);
}

#[test]
fn errors_say_what_is_expected() {
    let house = TestPki::new();
    let problem = |house: &TestPki| house.load(&[]).err().unwrap().to_string();

    fs::set_permissions(house.path("server.key"), Permissions::from_mode(0o604)).unwrap();
    assert!(
        problem(&house).contains("chmod 0600"),
        "{}",
        problem(&house)
    );
    fs::set_permissions(house.path("server.key"), Permissions::from_mode(0o640)).unwrap();
    house.load(&[]).unwrap();

    house.write(
        "server.key",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    assert!(
        problem(&house).contains("passphrase"),
        "{}",
        problem(&house)
    );

    let house = TestPki::new();
    house.write("server.pem", "x");
    assert!(
        problem(&house).contains("no PEM certificate"),
        "{}",
        problem(&house)
    );
    fs::remove_file(house.path("server.pem")).unwrap();
    assert!(
        problem(&house).contains("server.pem"),
        "{}",
        problem(&house)
    );

    let house = TestPki::new();
    let old = house
        .ca
        .leaf(2, |params| params.not_after = date_time_ymd(2021, 2, 3));
    house.write("server.pem", &old.pem);
    house.write("server.key", &old.key.serialize_pem());
    assert!(
        problem(&house).contains("expired on 2021-02-03"),
        "{}",
        problem(&house)
    );
}

#[test]
fn a_remembered_answer_needs_no_check_and_ends_with_the_certificate() {
    let house = TestPki::new();
    let tls = house.load(&[]).unwrap();
    let leaf = house.ca.leaf(7, |_| ());
    let mut peer = peer(&[&leaf.der]);
    tls.still_valid(&peer).unwrap();
    // A check would not pass any more.
    peer.chain = Arc::default();
    tls.still_valid(&peer).unwrap();

    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    assert!(peer.was_checked(1, now));
    assert!(!peer.was_checked(2, now), "another generation");
    assert!(!peer.was_checked(1, now + 61), "too long ago");
    assert!(!peer.was_checked(1, now - 3600), "the clock went back");
    let end = u64::try_from(date_time_ymd(4096, 1, 1).unix_timestamp()).unwrap() + 1;
    peer.set_checked(1, end);
    assert!(!peer.was_checked(1, end), "the certificate has expired");
}

/// The clients' CA of this house is made again, so.
fn house_with(change: impl FnOnce(&mut CertificateParams)) -> TestPki {
    let mut house = TestPki::new();
    let mut params = Ca::params("limited");
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    house.ca = Ca {
        pem: certificate.pem(),
        der: certificate.der().clone(),
        issuer: Issuer::new(params, key),
    };
    house.write("ca.pem", &house.ca.pem);
    house
}

type Change = fn(&mut CertificateParams);

fn as_it_is(_: &mut CertificateParams) {}

fn spiffe(params: &mut CertificateParams) {
    let id = "spiffe://example.org/a".try_into().unwrap();
    params.subject_alt_names = vec![SanType::URI(id)];
}

fn permits(name: &str) -> rcgen::NameConstraints {
    rcgen::NameConstraints {
        permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName(name.to_owned())],
        excluded_subtrees: Vec::new(),
    }
}

#[test]
fn a_ca_that_has_expired_or_not_begun_gives_nobody_a_name() {
    for (says, change) in [
        (
            "expired on 2021-01-01",
            (|params| params.not_after = date_time_ymd(2021, 1, 1)) as fn(&mut CertificateParams),
        ),
        ("not valid before 2090", |params| {
            params.not_before = date_time_ymd(2090, 1, 1);
        }),
    ] {
        let house = house_with(change);
        let tls = house.load(&[]).unwrap();
        let leaf = house.ca.leaf(7, |_| ());
        let error = tls.still_valid(&peer(&[&leaf.der])).unwrap_err();
        assert!(
            error.contains(says) && error.contains("CN=limited"),
            "{error}"
        );
        assert!(handshake(&tls, &house.client(Some((&leaf, &[])))).is_err());
    }
}

#[test]
fn a_renewed_ca_certificate_serves_beside_the_one_that_has_ended() {
    let house = house_with(|params| params.not_after = date_time_ymd(2021, 1, 1));
    let leaf = house.ca.leaf(7, |_| ());
    let key = house.ca.issuer.key();
    let renewed = Ca::params("limited").self_signed(key).unwrap().pem();
    for bundle in [
        format!("{}{renewed}", house.ca.pem),
        format!("{renewed}{}", house.ca.pem),
    ] {
        house.write("ca.pem", &bundle);
        let tls = house.load(&[]).unwrap();
        tls.still_valid(&peer(&[&leaf.der])).unwrap();
    }
}

#[test]
fn a_ca_limited_to_dns_names_makes_no_other_identity() {
    for at_the_root in [true, false] {
        let house = house_with(|params| {
            if at_the_root {
                params.name_constraints = Some(permits("localhost"));
            }
        });
        let mut params = Ca::params("issuing");
        if !at_the_root {
            params.name_constraints = Some(permits("localhost"));
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &house.ca.issuer).unwrap();
        let issuing = Ca {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        };
        let tls = house.load(&[]).unwrap();
        let answer = |change: fn(&mut CertificateParams)| {
            let leaf = issuing.leaf(7, change);
            tls.still_valid(&peer(&[&leaf.der, &issuing.der]))
        };
        answer(|_| ()).unwrap();
        let error = answer(spiffe).unwrap_err();
        assert!(
            error.contains("may not name spiffe://example.org/a"),
            "{error}"
        );
        // Without any name the identity would be the key's.
        answer(|params| params.subject_alt_names.clear()).unwrap_err();
        answer(|params| {
            params.subject_alt_names = vec![SanType::DnsName("other".try_into().unwrap())];
        })
        .unwrap_err();
    }
}

#[test]
fn an_anchors_own_limits_hold() {
    let house = house_with(|params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    let tls = house.load(&[]).unwrap();
    let leaf = house.ca.leaf(7, |_| ());
    tls.still_valid(&peer(&[&leaf.der])).unwrap();
    let below = house.ca.intermediate("below");
    let leaf = below.leaf(7, |_| ());
    let error = tls
        .still_valid(&peer(&[&leaf.der, &below.der]))
        .unwrap_err();
    assert!(error.contains("allows 0 CAs below it"), "{error}");

    let house = house_with(|params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    });
    let error = house.load(&[]).err().unwrap();
    assert!(error.problem.contains("no clientAuth"), "{error}");
    let house = house_with(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]);
    let error = house.load(&[]).err().unwrap();
    assert!(error.problem.contains("no keyCertSign"), "{error}");
    let house = TestPki::new();
    house.write("crl.pem", &house.ca.crl(&[], 2090));
    let mut params = Ca::params("clients");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let silent = params.self_signed(house.ca.issuer.key()).unwrap();
    house.write("ca.pem", &silent.pem());
    let error = house.load(&["crl.pem"]).err().unwrap();
    assert!(error.problem.contains("no cRLSign"), "{error}");
}

#[test]
fn a_ca_between_that_may_not_sign_certificates_makes_no_clients() {
    use KeyUsagePurpose::{CrlSign, DigitalSignature, KeyCertSign};
    let house = TestPki::new();
    let tls = house.load(&[]).unwrap();
    for (usages, allowed) in [
        (vec![], true),
        (vec![KeyCertSign], true),
        (vec![CrlSign], false),
        (vec![DigitalSignature], false),
    ] {
        let mut params = Ca::params("issuing");
        params.key_usages = usages;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &house.ca.issuer).unwrap();
        let issuing = Ca {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        };
        let below = issuing.intermediate("below");
        let (leaf, low) = (issuing.leaf(7, |_| ()), below.leaf(8, |_| ()));
        for chain in [
            &[&leaf.der, &issuing.der][..],
            &[&low.der, &below.der, &issuing.der],
        ] {
            let answer = tls.still_valid(&peer(chain));
            assert_eq!(answer.is_ok(), allowed, "{answer:?}");
            if let Err(error) = answer {
                assert!(
                    error.contains("CN=issuing") && error.contains("no keyCertSign"),
                    "{error}"
                );
            }
        }
    }
}

#[test]
fn a_ca_makes_only_the_clients_that_it_is_bound_to() {
    let house = TestPki::new();
    let (spire, hosts, any) = (Ca::new("spire"), Ca::new("hosts"), Ca::new("any"));
    let patterns = |texts: &[&str]| -> Vec<IdentityPattern> {
        let one = |text: &&str| IdentityPattern::try_from((*text).to_owned()).unwrap();
        texts.iter().map(one).collect()
    };
    let mut files = house.files(&[]);
    for (ca, name, identities) in [
        (&spire, "spire.pem", &["spiffe://example.org/**"][..]),
        (&hosts, "hosts.pem", &["dns:*.example.org", "dns:localhost"]),
        (&any, "any.pem", &[]),
    ] {
        house.write(name, &ca.pem);
        files.client_cas.push(ClientCa {
            file: house.path(name),
            identities: patterns(identities),
        });
    }
    let tls = Tls::load(files.clone()).unwrap();
    let uri = |id: &'static str| SanType::URI(id.try_into().unwrap());
    let dns = |name: &'static str| SanType::DnsName(name.try_into().unwrap());
    for (san, allowed) in [
        (Some(uri("spiffe://example.org/a/b")), [true, false, true]),
        (
            Some(uri("spiffe://example.org.evil/a")),
            [false, false, true],
        ),
        (Some(dns("a.example.org")), [false, true, true]),
        (Some(dns("localhost")), [false, true, true]),
        (Some(dns("example.org")), [false, false, true]),
        (Some(dns("aexample.org")), [false, false, true]),
        (None, [false, false, true]),
    ] {
        for (ca, allowed) in [&spire, &hosts, &any].into_iter().zip(allowed) {
            let leaf = ca.leaf(7, |params| {
                params.subject_alt_names = san.clone().into_iter().collect();
            });
            let answer = tls.still_valid(&peer(&[&leaf.der]));
            assert_eq!(answer.is_ok(), allowed, "{san:?}: {answer:?}");
            let below = ca.intermediate("below");
            let leaf = below.leaf(7, |params| {
                params.subject_alt_names = san.clone().into_iter().collect();
            });
            let answer = tls.still_valid(&peer(&[&leaf.der, &below.der]));
            assert_eq!(answer.is_ok(), allowed, "below, {san:?}: {answer:?}");
        }
    }
    // The same CA with two bounds.
    house.write("any.pem", &format!("{}{}", any.pem, spire.pem));
    let error = Tls::load(files).err().unwrap();
    assert!(
        error.file == house.path("any.pem") && error.problem.contains("spire.pem too"),
        "{error}"
    );
}

#[test]
fn no_ca_of_a_file_is_passed_over() {
    let house = TestPki::new();
    let spire = house.ca.intermediate("spire");
    let other = Ca::new("other");
    let mut files = house.files(&[]);
    files.client_cas.push(ClientCa {
        file: house.path("bound.pem"),
        identities: vec![IdentityPattern::try_from("spiffe://example.org/**".to_owned()).unwrap()],
    });
    let text = "Certificate:\n    Data:\n        Serial Number: 11 (0xb)\nsubject=CN = spire\n";
    house.write(
        "bound.pem",
        &format!("{text}{}\n# other\n{}", spire.pem, other.pem),
    );
    let tls = Tls::load(files.clone()).unwrap();
    let leaf = spire.leaf(7, |_| ());
    // It may not name this one, and its issuer, which is bound to nothing, vouches for it.
    let chain = || peer(&[&leaf.der, &spire.der]);
    tls.still_valid(&chain()).unwrap_err();

    let (_, headless) = spire.pem.split_once('\n').unwrap();
    let bare = headless.split_once('-').unwrap().0;
    let label = spire.pem.replace("CERTIFICATE", "TRUSTED CERTIFICATE");
    let utf_16: Vec<u8> = spire
        .pem
        .encode_utf16()
        .flat_map(u16::to_be_bytes)
        .collect();
    let longer = [&spire.der[..], &other.der].concat();
    let two_in_one = pem_of(&longer);
    for (what, bad) in [
        ("a BEGIN cut off", headless.as_bytes()),
        ("neither BEGIN nor END", bare.as_bytes()),
        ("another label", label.as_bytes()),
        ("DER", &spire.der),
        ("UTF-16", &utf_16),
        ("two in one", two_in_one.as_bytes()),
    ] {
        for bad in [
            [bad, other.pem.as_bytes()].concat(),
            [other.pem.as_bytes(), bad].concat(),
        ] {
            fs::write(house.path("bound.pem"), bad).unwrap();
            let taken = tls.read_again();
            assert!(taken.is_err(), "{what} was taken");
            let error = taken.err().unwrap();
            assert_eq!(error.file, house.path("bound.pem"), "{what}: {error}");
            Tls::load(files.clone()).err().unwrap();
        }
    }
}

#[test]
fn the_key_may_stand_in_the_file_of_the_servers_chain() {
    let house = TestPki::new();
    let server = house.ca.leaf(3, |_| ());
    let mut files = house.files(&[]);
    files.private_key = files.certificate.clone();
    for both in [
        format!("{}{}", server.pem, server.key.serialize_pem()),
        format!("{}{}", server.key.serialize_pem(), server.pem),
    ] {
        house.write("server.pem", &both);
        Tls::load(files.clone()).unwrap();
        // Nothing of the key is told.
        let cut = both.replace("-----END PRIVATE", "---END PRIVATE");
        house.write("server.pem", &cut);
        let error = Tls::load(files.clone()).err().unwrap().to_string();
        let secret = server.key.serialize_pem();
        let secret = secret.lines().nth(1).unwrap();
        assert!(!error.contains(secret), "{error}");
    }
}

/// RFC 5280, section 7.1, as `openssl verify` has it.
#[test]
fn a_list_counts_whichever_way_its_issuer_is_written() {
    for name in ["clients", "CLIENTS ", " Clients"] {
        let house = TestPki::new();
        let leaf = house.ca.leaf(7, |_| ());
        house.write("old.pem", &house.ca.crl(&[], 2999));
        house.write("new.pem", &crl(&house.ca.renamed(name), 2, &[7], 2999));
        for lists in [["old.pem", "new.pem"], ["new.pem", "old.pem"]] {
            let tls = house.load(&lists).unwrap();
            let refused = handshake(&tls, &house.client(Some((&leaf, &[]))));
            assert!(refused.is_err(), "{name} {lists:?}");
        }
    }
    // Of another name, none would be asked.
    let house = TestPki::new();
    house.write("old.pem", &house.ca.crl(&[], 2999));
    house.write("new.pem", &crl(&house.ca.renamed("others"), 2, &[7], 2999));
    let error = house.load(&["old.pem", "new.pem"]).err().unwrap();
    assert_eq!(error.file, house.path("new.pem"));
    assert!(error.problem.contains("its issuer is CN=others"), "{error}");
}

/// Newlines are lost where a template or a shell writes the file.
#[test]
fn no_key_is_told_of_whichever_way_and_place_its_pem_is_broken() {
    let house = TestPki::new();
    let key = house.ca.leaf(3, |_| ()).key.serialize_pem();
    let secret = key.lines().nth(1).unwrap();
    let decimal: Vec<String> = secret.bytes().map(|byte| byte.to_string()).collect();
    let decimal = decimal[..16].join(", ");
    let broken = [
        key.replace('\n', ""),
        key.replace('\n', " "),
        key.replace('\n', "\\n"),
        key.replacen('\n', "", 1),
        key.replacen("\n-----END", "-----END", 1),
        key.replace("-----END PRIVATE KEY-----\n", ""),
        key.replace("-----\n", "----\n"),
        key.replace("PRIVATE KEY", secret),
        key.replacen("PRIVATE KEY", secret, 1),
        key.replace("BEGIN PRIVATE KEY-----", "BEGIN PRIVATE KEY-----!"),
        format!("x{key}"),
        secret.to_owned(),
    ];
    house.write("crl.pem", &house.ca.crl(&[9], 2999));
    for name in ["server.pem", "server.key", "ca.pem", "crl.pem"] {
        let good = fs::read_to_string(house.path(name)).unwrap();
        for key in &broken {
            for text in [
                key.clone(),
                format!("{good}{key}"),
                format!("{key}\n{good}"),
            ] {
                house.write(name, &text);
                let Err(error) = house.load(&["crl.pem"]) else {
                    continue;
                };
                let said = format!("{error} {error:?}");
                for part in [secret, &secret[8..40], decimal.as_str()] {
                    assert!(!said.contains(part), "{name}: {text}: {said}");
                }
            }
        }
        house.write(name, &good);
    }
    house.load(&["crl.pem"]).unwrap();
}

fn pem_of(der: &[u8]) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    let text = BASE64_STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

#[test]
fn a_bound_ca_stays_bound_whichever_way_its_client_shows() {
    let house = TestPki::new();
    // Both are trusted, `spire` for its names only, and `clients` has issued its certificate.
    let spire = house.ca.intermediate("spire");
    let itself = Ca::params("spire").self_signed(spire.issuer.key()).unwrap();
    let itself = Ca {
        pem: itself.pem(),
        der: itself.der().clone(),
        issuer: Issuer::new(Ca::params("spire"), KeyPair::generate().unwrap()),
    };
    let below = spire.intermediate("below");
    let free = house.ca.intermediate("free");
    for in_the_bundle in [&spire, &itself] {
        house.write("spire.pem", &in_the_bundle.pem);
        let mut files = house.files(&[]);
        files.client_cas.push(ClientCa {
            file: house.path("spire.pem"),
            identities: vec![
                IdentityPattern::try_from("spiffe://example.org/**".to_owned()).unwrap(),
            ],
        });
        let tls = Tls::load(files).unwrap();
        let of_spire = |change: fn(&mut CertificateParams)| spire.leaf(7, change);
        for (change, allowed) in [
            ((|_| ()) as fn(&mut CertificateParams), false),
            (spiffe, true),
        ] {
            let (leaf, low) = (of_spire(change), below.leaf(8, change));
            let chains: [&[&CertificateDer<'_>]; 7] = [
                &[&leaf.der],
                &[&leaf.der, &spire.der],
                &[&leaf.der, &itself.der],
                &[&leaf.der, &itself.der, &spire.der],
                &[&low.der, &below.der],
                &[&low.der, &below.der, &spire.der],
                &[&low.der, &spire.der, &below.der, &house.ca.der],
            ];
            for (at, chain) in chains.into_iter().enumerate() {
                let answer = tls.still_valid(&peer(chain));
                assert_eq!(answer.is_ok(), allowed, "{at}: {answer:?}");
                if let Err(error) = answer {
                    assert!(error.contains("CN=spire may not name"), "{at}: {error}");
                }
            }
            let client = house.client(Some((&leaf, &[&spire])));
            assert_eq!(handshake(&tls, &client).is_ok(), allowed);
            // Another CA below the same root is bound to nothing.
            let other = free.leaf(9, change);
            tls.still_valid(&peer(&[&other.der, &free.der])).unwrap();
        }
    }
}

#[test]
fn a_bound_ca_stays_bound_with_a_new_key_under_its_old_name() {
    let house = TestPki::new();
    let spire = house.ca.intermediate("spire");
    // Its successor: only the CA above it vouches for it, and that one is bound to nothing.
    let again = house.ca.intermediate("spire");
    let below = again.intermediate("below");
    let rewritten = house.ca.intermediate_of(Ca::printable("SPIRE"));
    // Of the same name and known by its own key: its own bounds hold.
    let namesake = house.ca.intermediate("spire");
    house.write("spire.pem", &spire.pem);
    house.write("namesake.pem", &namesake.pem);
    let mut files = house.files(&[]);
    for (file, pattern) in [
        ("spire.pem", "spiffe://example.org/**"),
        ("namesake.pem", "**"),
    ] {
        files.client_cas.push(ClientCa {
            file: house.path(file),
            identities: vec![IdentityPattern::try_from(pattern.to_owned()).unwrap()],
        });
    }
    let tls = Tls::load(files).unwrap();
    for (change, allowed) in [
        ((|_| ()) as fn(&mut CertificateParams), false),
        (spiffe, true),
    ] {
        let (leaf, low) = (again.leaf(7, change), below.leaf(8, change));
        let third = rewritten.leaf(10, change);
        let chains: [&[&CertificateDer<'_>]; 3] = [
            &[&leaf.der, &again.der],
            &[&third.der, &rewritten.der],
            &[&low.der, &below.der, &again.der],
        ];
        for chain in chains {
            let answer = tls.still_valid(&peer(chain));
            assert_eq!(answer.is_ok(), allowed, "{answer:?}");
            if let Err(error) = answer {
                assert!(error.contains("CN=spire may not name"), "{error}");
            }
        }
        let other = namesake.leaf(9, change);
        tls.still_valid(&peer(&[&other.der, &namesake.der]))
            .unwrap();
    }
}

/// A path ends at the CA of `ca.pem`, and who is bound is the one above it.
#[test]
fn a_ca_stays_within_the_bounds_of_the_one_above_it_in_another_file() {
    let house = TestPki::new();
    let (root, middle, issuing) = (Ca::new("root"), Ca::new("middle"), Ca::new("issuing"));
    let by_root = middle.signed_by(&root, 21);
    let by_middle = issuing.signed_by(&middle, 22);
    house.write("ca.pem", &(by_middle.pem() + &by_root.pem()));
    let tls = Tls::load(house.with_bound(&root.pem)).unwrap();
    let chains: [&[&CertificateDer<'_>]; 4] = [
        &[],
        &[by_middle.der()],
        &[by_middle.der(), by_root.der()],
        &[by_middle.der(), by_root.der(), &root.der],
    ];
    for (change, allowed) in [(as_it_is as Change, false), (spiffe, true)] {
        let leaf = issuing.leaf(7, change);
        for chain in chains {
            let chain: Vec<_> = [&leaf.der]
                .into_iter()
                .chain(chain.iter().copied())
                .collect();
            let answer = tls.still_valid(&peer(&chain));
            assert_eq!(answer.is_ok(), allowed, "{answer:?}");
            if let Err(error) = answer {
                assert!(error.contains("CN=root may not name"), "{error}");
            }
        }
        let client = house.client(Some((&leaf, &[])));
        assert_eq!(handshake(&tls, &client).is_ok(), allowed);
    }
}

/// Its certificate is of the bound CA's old key, which is in no file; or of a CA that has its key
/// under another name.
#[test]
fn a_ca_stays_within_the_bounds_of_the_one_above_it_whichever_its_key_and_name() {
    let house = TestPki::new();
    let (old, new) = (Ca::new("root"), Ca::new("root"));
    let of_old = old.intermediate("issuing");
    let first = Ca::new("first");
    let by_new = first.signed_by(&new, 21);
    let mut renamed = Ca::params("second");
    renamed.serial_number = Some(SerialNumber::from(22));
    let renamed = renamed
        .signed_by(first.issuer.key(), &first.issuer)
        .unwrap();
    let second = Issuer::new(Ca::params("second"), first.issuer.key());
    for (what, bundle) in [
        ("an old key", of_old.pem.clone()),
        ("another name", renamed.pem() + &by_new.pem()),
    ] {
        house.write("ca.pem", &bundle);
        let tls = Tls::load(house.with_bound(&new.pem)).unwrap();
        for (change, allowed) in [(as_it_is as Change, false), (spiffe, true)] {
            let leaf = of_old.leaf(7, change);
            let renamed = leaf_of(&second, 8, change);
            let leaf = if what == "an old key" { leaf } else { renamed };
            let answer = tls.still_valid(&peer(&[&leaf.der]));
            assert_eq!(answer.is_ok(), allowed, "{what}: {answer:?}");
            if let Err(error) = answer {
                assert!(error.contains("CN=root may not name"), "{what}: {error}");
            }
        }
    }
}

/// What would be verified is not known, or is not so; it would slip out of the bounds of the one
/// that it names.
#[test]
fn a_ca_that_can_not_be_held_to_be_anothers_of_the_bundle_is_refused() {
    let house = TestPki::new();
    let root = Ca::new("root");
    let named = |signer: &Ca, says_which_key: bool| {
        let mut params = Ca::params("issuing");
        params.use_authority_key_identifier_extension = says_which_key;
        signer.intermediate_of(params).der
    };
    let broken = |der: CertificateDer<'_>| {
        let mut der = der.to_vec();
        *der.last_mut().unwrap() ^= 1;
        CertificateDer::from(der)
    };
    let namesake = Ca::new("root");
    for (what, der, taken) in [
        ("good", named(&root, true), true),
        ("good without a key identifier", named(&root, false), true),
        ("another kind", of_another_kind(&named(&root, true)), false),
        (
            "another kind, without a key identifier",
            of_another_kind(&named(&root, false)),
            false,
        ),
        ("broken", broken(named(&root, true)), false),
        ("of a namesake", named(&namesake, true), true),
        (
            "of a namesake, of another kind",
            of_another_kind(&named(&namesake, true)),
            true,
        ),
        ("of a namesake, not named", named(&namesake, false), true),
    ] {
        house.write("ca.pem", &pem_of(&der));
        let answer = Tls::load(house.with_bound(&root.pem));
        assert_eq!(answer.is_ok(), taken, "{what}");
        if let Err(error) = answer {
            assert_eq!(error.file, house.path("ca.pem"), "{what}");
            assert!(
                error
                    .problem
                    .contains("CN=issuing names CN=root as its issuer"),
                "{what}: {error}"
            );
        }
        // Alone it is trusted as it is.
        house.load(&[]).unwrap();
    }
}

#[test]
fn a_root_is_not_bound_by_another_one_of_its_name() {
    let house = TestPki::new();
    let (free, bound) = (Ca::new("root"), Ca::new("root"));
    let old_kind = of_another_kind(&free.der);
    for der in [&free.der, &old_kind] {
        house.write("ca.pem", &pem_of(der));
        let tls = Tls::load(house.with_bound(&bound.pem)).unwrap();
        let answer = |ca: &Ca| tls.still_valid(&peer(&[&ca.leaf(7, as_it_is).der]));
        answer(&free).unwrap();
        answer(&bound).unwrap_err();
    }
}

/// ecdsa-with-SHA256 to ecdsa-with-SHA224, which nobody verifies.
fn of_another_kind(der: &CertificateDer<'_>) -> CertificateDer<'static> {
    let sha256 = [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    let mut der = der.to_vec();
    while let Some(at) = der.windows(8).position(|part| part == sha256) {
        der[at + 7] = 1;
    }
    CertificateDer::from(der)
}

/// RFC 5280, section 6: of two ways up, one that allows all of it is enough. What one allows and
/// what the other allows don't add up.
#[test]
fn a_ca_that_two_others_issued_is_bound_where_the_free_one_revoked_it() {
    let house = TestPki::new();
    let (bound, free, issuing) = (Ca::new("bound"), Ca::new("free"), Ca::new("issuing"));
    let by_bound = issuing.signed_by(&bound, 21);
    let by_free = issuing.signed_by(&free, 22);
    house.write("ca.pem", &(by_bound.pem() + &by_free.pem() + &free.pem));
    house.write("bound.crl", &bound.crl(&[], 2999));
    house.write("issuing.crl", &issuing.crl(&[], 2999));
    let mut files = house.with_bound(&bound.pem);
    let lists = ["bound.crl", "free.crl", "issuing.crl"];
    files.crls = lists.iter().map(|name| house.path(name)).collect();
    for (revoked, to_anybody) in [(&[][..], true), (&[22], false)] {
        house.write("free.crl", &free.crl(revoked, 2999));
        let tls = Tls::load(files.clone()).unwrap();
        let answer = |change: Change| tls.still_valid(&peer(&[&issuing.leaf(7, change).der]));
        assert_eq!(answer(as_it_is).is_ok(), to_anybody, "{revoked:?}");
        answer(spiffe).unwrap();
    }
}

#[test]
fn the_limits_of_a_ca_above_an_anchor_hold() {
    type Case = (Change, [(Change, &'static str); 3], &'static str);
    let other = |params: &mut CertificateParams| {
        params.subject_alt_names = vec![SanType::DnsName("other".try_into().unwrap())];
    };
    let cases: [Case; 4] = [
        (
            |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)),
            [as_it_is as Change, spiffe, other].map(|leaf| (leaf, "allows 0 CAs below it")),
            "and there are 2",
        ),
        (
            |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1)),
            [as_it_is as Change, spiffe, other].map(|leaf| (leaf, "")),
            "allows 1 CAs below it",
        ),
        (
            |params| params.name_constraints = Some(permits("localhost")),
            [
                (as_it_is, ""),
                (spiffe, "may not name"),
                (other, "NameConstraint"),
            ],
            "",
        ),
        (
            |params| params.not_after = date_time_ymd(2021, 1, 1),
            [as_it_is as Change, spiffe, other].map(|leaf| (leaf, "expired on 2021-01-01")),
            "expired on 2021-01-01",
        ),
    ];
    for (limit, leaves, deeper) in cases {
        let house = house_with(limit);
        let issuing = house.ca.intermediate("issuing");
        let below = issuing.intermediate("below");
        let agrees = |answer: Result<(), String>, says: &str| match answer {
            Ok(()) => assert_eq!(says, ""),
            Err(error) => assert!(!says.is_empty() && error.contains(says), "{error}"),
        };
        for bundle in [
            format!("{}{}", house.ca.pem, issuing.pem),
            format!("{}{}", issuing.pem, house.ca.pem),
        ] {
            house.write("ca.pem", &bundle);
            let tls = house.load(&[]).unwrap();
            for (leaf, says) in leaves {
                let leaf = issuing.leaf(7, leaf);
                agrees(tls.still_valid(&peer(&[&leaf.der])), says);
                agrees(tls.still_valid(&peer(&[&leaf.der, &issuing.der])), says);
            }
            let leaf = below.leaf(8, as_it_is);
            agrees(tls.still_valid(&peer(&[&leaf.der, &below.der])), deeper);
        }
    }
}

#[test]
fn a_client_whose_key_is_not_for_signatures_is_refused() {
    use KeyUsagePurpose::{ContentCommitment, DigitalSignature, KeyAgreement, KeyEncipherment};
    let house = TestPki::new();
    let tls = house.load(&[]).unwrap();
    for (usages, allowed) in [
        (vec![], true),
        (vec![DigitalSignature], true),
        (vec![DigitalSignature, KeyEncipherment, KeyAgreement], true),
        (vec![KeyEncipherment], false),
        (vec![KeyAgreement], false),
        (vec![ContentCommitment], false),
    ] {
        let leaf = house
            .ca
            .leaf(7, |params| params.key_usages = usages.clone());
        let answer = tls.still_valid(&peer(&[&leaf.der]));
        assert_eq!(answer.is_ok(), allowed, "{usages:?}: {answer:?}");
        if let Err(error) = answer {
            assert!(error.contains("no digitalSignature"), "{error}");
        }
        let client = house.client(Some((&leaf, &[])));
        assert_eq!(handshake(&tls, &client).is_ok(), allowed, "{usages:?}");
    }
}
