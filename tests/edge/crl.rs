//! CRLs over the life of a CA: what the server says of each client is what
//! `openssl verify -crl_check` says.

mod forms;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CrlDistributionPoint,
    CrlIssuingDistributionPoint, CrlScope, DnType, GeneralSubtree, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, NameConstraints, RevokedCertParams, SanType, SerialNumber,
};
use strongroom_core::tls::{ClientCa, Peer, Tls, TlsFiles};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

use crate::support::skip;

struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate, its CAs below the root, and whether it is good.
struct Client {
    name: &'static str,
    pem: String,
    der: Vec<u8>,
    between: Vec<(String, Vec<u8>)>,
}

/// One CRL; times are days from now.
struct List<'a> {
    ca: &'a Ca,
    number: u64,
    from: i64,
    until: i64,
    revoked: &'a [u64],
    point: Option<CrlIssuingDistributionPoint>,
}

impl<'a> List<'a> {
    fn new(ca: &'a Ca, number: u64, (from, until): (i64, i64), revoked: &'a [u64]) -> Self {
        Self {
            ca,
            number,
            from,
            until,
            revoked,
            point: None,
        }
    }

    fn of(mut self, scope: Option<CrlScope>, uri: &str) -> Self {
        self.point = Some(CrlIssuingDistributionPoint {
            distribution_point: CrlDistributionPoint {
                uris: vec![uri.to_owned()],
            },
            scope,
        });
        self
    }

    fn pem(&self) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: days(-100),
            reason_code: None,
            invalidity_date: None,
        };
        CertificateRevocationListParams {
            this_update: days(self.from),
            next_update: days(self.until),
            crl_number: SerialNumber::from(self.number),
            issuing_distribution_point: self.point.clone(),
            revoked_certs: self.revoked.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&self.ca.issuer)
        .unwrap()
        .pem()
        .unwrap()
    }
}

fn days(days: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() + Duration::days(days)
}

fn params(name: &str, is_ca: bool) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    params.not_before = days(-200);
    params.not_after = days(200);
    if is_ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    }
    params
}

impl Ca {
    fn new(name: &str) -> Self {
        Self::with(name, |_| ())
    }

    fn with(name: &str, limit: fn(&mut CertificateParams)) -> Self {
        let (mut params, key) = (params(name, true), KeyPair::generate().unwrap());
        limit(&mut params);
        Self {
            pem: params.self_signed(&key).unwrap().pem(),
            issuer: Issuer::new(params, key),
        }
    }

    fn below(&self, name: &str, serial: u64) -> (Self, (String, Vec<u8>)) {
        let usages = params(name, true).key_usages;
        self.below_with(name, serial, usages)
    }

    /// A CA which signs certificates and CRLs, whatever the usages of its certificate say.
    fn below_with(
        &self,
        name: &str,
        serial: u64,
        usages: Vec<KeyUsagePurpose>,
    ) -> (Self, (String, Vec<u8>)) {
        let (mut limited, key) = (params(name, true), KeyPair::generate().unwrap());
        limited.serial_number = Some(SerialNumber::from(serial));
        limited.key_usages = usages;
        let made = limited.signed_by(&key, &self.issuer).unwrap();
        let ca = Self {
            pem: made.pem(),
            issuer: Issuer::new(params(name, true), key),
        };
        (ca, (made.pem(), made.der().to_vec()))
    }

    fn client(&self, name: &'static str, serial: u64) -> Client {
        self.client_with(name, serial, &[], None)
    }

    fn client_with(
        &self,
        name: &'static str,
        serial: u64,
        between: &[&(String, Vec<u8>)],
        point: Option<&str>,
    ) -> Client {
        let mut params = params(name, false);
        params.serial_number = Some(SerialNumber::from(serial));
        params.subject_alt_names =
            vec![SanType::DnsName(format!("{name}.test").try_into().unwrap())];
        params.crl_distribution_points = point
            .map(|uri| CrlDistributionPoint {
                uris: vec![uri.to_owned()],
            })
            .into_iter()
            .collect();
        let key = KeyPair::generate().unwrap();
        let made = params.signed_by(&key, &self.issuer).unwrap();
        Client {
            name,
            pem: made.pem(),
            der: made.der().to_vec(),
            between: between.iter().map(|ca| (*ca).clone()).collect(),
        }
    }
}

struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self {
            folder: TempDir::new().unwrap(),
        };
        let ca = Ca::new("of servers");
        let key = KeyPair::generate().unwrap();
        let server = params("server", false).signed_by(&key, &ca.issuer).unwrap();
        place.write("server.pem", &server.pem());
        place.write("server.key", &key.serialize_pem());
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
        self.path(name)
    }

    /// Bundle and lists, one file for each list.
    fn files(&self, cas: &[&Ca], lists: &[String]) -> TlsFiles {
        let bundle: String = cas.iter().map(|ca| ca.pem.as_str()).collect();
        TlsFiles {
            certificate: self.path("server.pem"),
            private_key: self.path("server.key"),
            client_cas: vec![ClientCa::for_anybody(self.write("cas.pem", &bundle))],
            crls: lists
                .iter()
                .enumerate()
                .map(|(at, list)| self.write(&format!("{at}.crl"), list))
                .collect(),
        }
    }

    fn openssl(&self, client: &Client, lists: &[String], point: bool) -> bool {
        self.openssl_asks("-crl_check_all", client, lists, point)
    }

    /// Of the client alone by `-crl_check`, of each certificate up to the root by `-crl_check_all`.
    fn openssl_asks(&self, what: &str, client: &Client, lists: &[String], point: bool) -> bool {
        let certificate = self.write("client.pem", &client.pem);
        let between: String = client.between.iter().map(|ca| ca.0.as_str()).collect();
        let mut command = Command::new("openssl");
        command
            .args(["verify", "-purpose", "sslclient", what])
            .arg("-CAfile")
            .arg(self.path("cas.pem"))
            .arg("-CRLfile")
            .arg(self.write("all.crl", &lists.concat()));
        if !between.is_empty() {
            command
                .arg("-untrusted")
                .arg(self.write("between.pem", &between));
        }
        // What it needs to look at distribution points at all.
        if point {
            command.arg("-extended_crl");
        }
        let output = command.arg(certificate).output().unwrap();
        output.status.success()
    }
}

fn ours(tls: &Tls, client: &Client) -> Result<(), String> {
    let chain = [client.der.clone()]
        .into_iter()
        .chain(client.between.iter().map(|ca| ca.1.clone()))
        .collect();
    let peer = Peer::new(chain, "192.0.2.1:1".parse().unwrap()).unwrap();
    tls.still_valid(&peer)
}

fn has_openssl(test: &str) -> bool {
    let there = Command::new("openssl").arg("version").output().is_ok();
    if !there {
        skip(test, "there is no openssl");
    }
    there
}

/// Each client, and whether it is let in, by both; the lists in any order and in any number of
/// files.
fn agree(what: &str, cas: &[&Ca], lists: &[List<'_>], clients: &[(&Client, bool)]) {
    let place = Place::new();
    let mut pems: Vec<String> = lists.iter().map(List::pem).collect();
    let point = lists.iter().any(|list| list.point.is_some());
    for turn in 0..lists.len() {
        pems.rotate_left(1);
        let one_file = [pems.concat()];
        for files in [pems.as_slice(), one_file.as_slice()] {
            let tls = Tls::load(place.files(cas, files))
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            for (client, good) in clients {
                let name = client.name;
                let answer = ours(&tls, client);
                assert_eq!(answer.is_ok(), *good, "{what}, {name}, {turn}: {answer:?}");
                let theirs = place.openssl(client, files, point);
                assert_eq!(theirs, *good, "{what}, {name}, {turn}: openssl");
            }
        }
    }
}

#[test]
fn over_the_life_of_a_ca_openssl_says_the_same() {
    if !has_openssl("over_the_life_of_a_ca_openssl_says_the_same") {
        return;
    }
    let ca = Ca::new("clients");
    let (good, bad) = (ca.client("good", 7), ca.client("bad", 8));
    let first = || List::new(&ca, 1, (-90, 30), &[]);
    let second = || List::new(&ca, 2, (-60, 60), &[8]);
    agree("first", &[&ca], &[first()], &[(&good, true), (&bad, true)]);
    agree(
        "successor",
        &[&ca],
        &[second()],
        &[(&good, true), (&bad, false)],
    );
    agree(
        "overlap",
        &[&ca],
        &[first(), second()],
        &[(&good, true), (&bad, false)],
    );
    let ended = List::new(&ca, 1, (-90, -1), &[]);
    agree(
        "the old one has ended",
        &[&ca],
        &[ended, second()],
        &[(&good, true), (&bad, false)],
    );
    let third = List::new(&ca, 3, (10, 100), &[7, 8]);
    agree(
        "the next one has not begun",
        &[&ca],
        &[second(), third],
        &[(&good, true), (&bad, false)],
    );
    let large = List::new(&ca, u64::MAX, (-10, 60), &[8]);
    let small = List::new(&ca, 255, (-20, 60), &[]);
    agree(
        "numbers of other lengths",
        &[&ca],
        &[large, small, first()],
        &[(&good, true), (&bad, false)],
    );
    let on_hold = List::new(&ca, 2, (-60, 60), &[8]);
    let released = List::new(&ca, 3, (-30, 60), &[]);
    agree(
        "released again",
        &[&ca],
        &[on_hold, released],
        &[(&good, true), (&bad, true)],
    );
}

#[test]
fn a_ca_with_a_new_key_under_its_old_name_has_two_series_and_openssl_says_the_same() {
    if !has_openssl(
        "a_ca_with_a_new_key_under_its_old_name_has_two_series_and_openssl_says_the_same",
    ) {
        return;
    }
    let (old, new) = (Ca::new("clients"), Ca::new("clients"));
    let (old_good, old_bad) = (old.client("old-good", 7), old.client("old-bad", 8));
    // The same serial numbers again: they mean others here.
    let (new_good, new_bad) = (new.client("new-good", 8), new.client("new-bad", 7));
    let olds = || List::new(&old, 40, (-60, 60), &[8]);
    let news = || List::new(&new, 1, (-30, 60), &[7]);
    let all = [
        (&old_good, true),
        (&old_bad, false),
        (&new_good, true),
        (&new_bad, false),
    ];
    agree("two keys", &[&old, &new], &[olds(), news()], &all);
    agree("the other way", &[&new, &old], &[olds(), news()], &all);

    let ended = List::new(&old, 40, (-60, -1), &[8]);
    let rest = [
        (&old_good, false),
        (&old_bad, false),
        (&new_good, true),
        (&new_bad, false),
    ];
    agree(
        "the old key's ended",
        &[&old, &new],
        &[ended, news()],
        &rest,
    );
    // The old key is gone, its list still lies there.
    agree("the end of one key", &[&new], &[olds(), news()], &rest);

    let other = Ca::new("others");
    let theirs = other.client("other", 9);
    let ended = List::new(&other, 5, (-60, -1), &[]);
    agree(
        "only the clients of the CA whose list has ended are refused",
        &[&other, &old],
        &[ended, olds()],
        &[(&theirs, false), (&old_good, true), (&old_bad, false)],
    );
}

#[test]
fn for_cas_that_clients_send_along_openssl_says_the_same() {
    if !has_openssl("for_cas_that_clients_send_along_openssl_says_the_same") {
        return;
    }
    let root = Ca::new("root");
    let (one, one_cert) = root.below("issuing", 20);
    let (two, two_cert) = root.below("issuing", 21);
    let (low, low_cert) = one.below("lower", 30);
    let (of_one, of_two) = (
        one.client_with("of-one", 7, &[&one_cert], None),
        two.client_with("of-two", 7, &[&two_cert], None),
    );
    let of_low = low.client_with("of-low", 7, &[&low_cert, &one_cert], None);
    let roots = || List::new(&root, 1, (-30, 30), &[]);
    let ones = |revoked| List::new(&one, 9, (-30, 30), revoked);
    let lows = || List::new(&low, 1, (-30, 30), &[]);
    let all = |one: bool, two: bool, low: bool| [(&of_one, one), (&of_two, two), (&of_low, low)];
    let twos = || List::new(&two, 3, (-30, 30), &[]);
    agree(
        "all",
        &[&root],
        &[roots(), ones(&[]), twos(), lows()],
        &all(true, true, true),
    );
    agree(
        "one of them is missing",
        &[&root],
        &[roots(), ones(&[]), lows()],
        &all(true, false, true),
    );
    agree(
        "a client of one",
        &[&root],
        &[roots(), ones(&[7]), twos(), lows()],
        &all(false, true, true),
    );
    agree(
        "the lower CA",
        &[&root],
        &[roots(), ones(&[30]), twos(), lows()],
        &all(true, true, false),
    );
    let revoked = List::new(&root, 2, (-20, 30), &[20]);
    agree(
        "the upper CA",
        &[&root],
        &[roots(), revoked, ones(&[]), twos(), lows()],
        &all(false, true, false),
    );
    let older = List::new(&two, 2, (-60, 90), &[7]);
    let ended = List::new(&one, 8, (-60, -30), &[]);
    agree(
        "older ones of theirs",
        &[&root],
        &[roots(), ones(&[]), older, twos(), ended, lows()],
        &all(true, true, true),
    );
}

/// What is in the bundle is trusted, and may be revoked all the same by the CA above it.
#[test]
fn for_cas_between_that_are_in_the_bundle_openssl_says_the_same() {
    if !has_openssl("for_cas_between_that_are_in_the_bundle_openssl_says_the_same") {
        return;
    }
    let root = Ca::new("root");
    let (one, one_cert) = root.below("issuing", 20);
    let (low, low_cert) = one.below("lower", 30);
    let alone = one.client("alone", 7);
    let sent = one.client_with("sent", 8, &[&one_cert], None);
    let of_low = low.client("of-low", 7);
    let of_low_sent = low.client_with("of-low-sent", 8, &[&low_cert, &one_cert], None);
    for (what, by_root, by_one, upper, lower) in [
        ("all", &[][..], &[][..], true, true),
        ("another one", &[21], &[31], true, true),
        ("the lower CA", &[], &[30], true, false),
        ("the upper CA", &[20], &[], false, false),
    ] {
        let lists = [
            List::new(&root, 2, (-30, 30), by_root),
            List::new(&one, 9, (-30, 30), by_one),
            List::new(&low, 1, (-30, 30), &[]),
        ];
        for bundle in [[&root, &one, &low], [&low, &one, &root]] {
            agree(
                what,
                &bundle,
                &lists,
                &[
                    (&alone, upper),
                    (&sent, upper),
                    (&of_low, lower),
                    (&of_low_sent, lower),
                ],
            );
        }
    }
}

/// It has limits of its own, and what ends the path is a CA below it.
#[test]
fn of_the_limits_of_a_ca_above_in_the_bundle_openssl_says_the_same() {
    type Limit = fn(&mut CertificateParams);
    if !has_openssl("of_the_limits_of_a_ca_above_in_the_bundle_openssl_says_the_same") {
        return;
    }
    let limits: [(&'static str, Limit, [bool; 3]); 5] = [
        ("none", |_| (), [true; 3]),
        (
            "no CA below",
            |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)),
            [false; 3],
        ),
        (
            "one CA below",
            |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1)),
            [true, true, false],
        ),
        (
            "names",
            |params| {
                params.name_constraints = Some(NameConstraints {
                    permitted_subtrees: vec![GeneralSubtree::DnsName("one.test".to_owned())],
                    excluded_subtrees: Vec::new(),
                });
            },
            [true, false, true],
        ),
        ("time", |params| params.not_after = days(-1), [false; 3]),
    ];
    for (what, limit, [one_good, other_good, lower_good]) in limits {
        let root = Ca::with("root", limit);
        let (issuing, _) = root.below("issuing", 20);
        let (low, low_cert) = issuing.below("lower", 30);
        let (one, other) = (issuing.client("one", 7), issuing.client("other", 8));
        let lower = low.client_with("one", 9, &[&low_cert], None);
        let lists = [
            List::new(&root, 2, (-30, 30), &[]),
            List::new(&issuing, 9, (-30, 30), &[]),
            List::new(&low, 1, (-30, 30), &[]),
        ];
        for bundle in [[&root, &issuing], [&issuing, &root]] {
            agree(
                what,
                &bundle,
                &lists,
                &[(&one, one_good), (&other, other_good), (&lower, lower_good)],
            );
        }
    }
}

#[test]
fn of_what_the_key_usage_of_a_ca_between_allows_openssl_says_the_same() {
    use KeyUsagePurpose::{CrlSign, DigitalSignature, KeyCertSign};
    if !has_openssl("of_what_the_key_usage_of_a_ca_between_allows_openssl_says_the_same") {
        return;
    }
    let root = Ca::new("root");
    for (usages, good) in [
        (vec![KeyCertSign, CrlSign], true),
        (vec![], true),
        (vec![CrlSign], false),
        (vec![DigitalSignature, CrlSign], false),
        (vec![KeyCertSign], false),
    ] {
        let what = format!("{usages:?}");
        let (one, one_cert) = root.below_with("issuing", 20, usages);
        let (low, low_cert) = one.below("lower", 30);
        let client = one.client_with("client", 7, &[&one_cert], None);
        let of_low = low.client_with("of-low", 7, &[&low_cert, &one_cert], None);
        let lists = [&root, &one, &low].map(|ca| List::new(ca, 1, (-30, 30), &[]));
        agree(&what, &[&root], &lists, &[(&client, good), (&of_low, good)]);
    }
}

#[test]
fn of_partial_lists_openssl_says_the_same() {
    if !has_openssl("of_partial_lists_openssl_says_the_same") {
        return;
    }
    let root = Ca::new("root");
    let (issuing, issuing_cert) = root.below("issuing", 20);
    let (here, there) = ("http://crl.test/1", "http://crl.test/2");
    let plain = issuing.client_with("plain", 7, &[&issuing_cert], None);
    let of_here = issuing.client_with("of-here", 8, &[&issuing_cert], Some(here));
    let of_there = issuing.client_with("of-there", 9, &[&issuing_cert], Some(there));
    let roots = || List::new(&root, 1, (-30, 30), &[]);
    let all =
        |one: bool, two: bool, three: bool| [(&plain, one), (&of_here, two), (&of_there, three)];
    let part = |uri: &str, revoked| List::new(&issuing, 1, (-30, 30), revoked).of(None, uri);
    agree(
        "a part speaks only of who names it",
        &[&root],
        &[roots(), part(here, &[])],
        &all(false, true, false),
    );
    agree(
        "two parts",
        &[&root],
        &[roots(), part(here, &[8]), part(there, &[])],
        &all(false, false, true),
    );
    let users = List::new(&issuing, 1, (-30, 30), &[9]).of(Some(CrlScope::UserCertsOnly), there);
    agree(
        "users only",
        &[&root],
        &[roots(), users],
        &all(false, false, false),
    );
    let cas = List::new(&issuing, 1, (-30, 30), &[]).of(Some(CrlScope::CaCertsOnly), there);
    agree(
        "CAs only",
        &[&root],
        &[roots(), cas],
        &all(false, false, false),
    );
}

#[test]
fn what_contradicts_is_refused_with_both_names() {
    let ca = Ca::new("clients");
    let place = Place::new();
    let load = |lists: &[List<'_>]| {
        let pems: Vec<String> = lists.iter().map(List::pem).collect();
        Tls::load(place.files(&[&ca], &pems)).err()
    };
    let first = || List::new(&ca, 5, (-30, 30), &[]);
    for (other, says) in [
        (List::new(&ca, 5, (-30, 30), &[7]), "the same number"),
        (List::new(&ca, 4, (-20, 30), &[7]), "a lower number"),
    ] {
        let error = load(&[first(), other]).unwrap().to_string();
        for part in ["0.crl", "1.crl", says, "CN=clients"] {
            assert!(error.contains(part), "{part} is not in {error}");
        }
    }
    let again = [first(), List::new(&ca, 6, (-20, 30), &[]), first()];
    let (one, other) = (again[0].pem(), again[1].pem());
    // Byte for byte the same list twice is no contradiction.
    let twice = place.files(&[&ca], &[one.clone(), other, one]);
    Tls::load(twice).unwrap();

    // Of another CA with the same name; and one that was changed.
    let impostor = Ca::new("clients");
    let error = load(&[List::new(&impostor, 9, (-20, 30), &[])]).unwrap();
    assert!(error.problem.contains("no CRL that is signed"), "{error}");
    let changed = first().pem();
    let der = pem_der(&changed);
    let mut der = der;
    let at = der.windows(7).position(|part| part == b"clients").unwrap();
    let last = der.len() - 1;
    der[last] ^= 1;
    assert!(at < last);
    let error = Tls::load(place.files(&[&ca], &[first().pem(), der_pem(&der)]))
        .err()
        .unwrap();
    assert_eq!(error.file, place.path("1.crl"));
    assert!(error.problem.contains("signature"), "{error}");
}

#[test]
fn an_older_list_never_takes_the_place_of_the_one_in_force() {
    let ca = Ca::new("clients");
    let place = Place::new();
    let bad = ca.client("bad", 8);
    let list =
        |number: u64, from: i64, revoked: &[u64]| List::new(&ca, number, (from, 30), revoked).pem();
    let tls = Tls::load(place.files(&[&ca], &[list(5, -10, &[8])])).unwrap();
    assert!(ours(&tls, &bad).is_err());
    for old in [list(4, -20, &[]), list(5, -11, &[]), list(4, -5, &[])] {
        place.write("0.crl", &old);
        let error = tls.read_again().err().unwrap();
        assert_eq!(error.file, place.path("0.crl"));
        assert!(error.problem.contains("went back"), "{error}");
        assert!(ours(&tls, &bad).is_err());
    }
    // One of the same number that lets somebody in, whenever it says that it was made.
    for from in [-10, -5] {
        place.write("0.crl", &list(5, from, &[9]));
        let error = tls.read_again().err().unwrap();
        assert!(error.problem.contains("lacks certificates"), "{error}");
        assert!(ours(&tls, &bad).is_err());
    }
    let worse = ca.client("worse", 9);
    ours(&tls, &worse).unwrap();
    place.write("0.crl", &list(5, -5, &[8, 9]));
    tls.read_again().unwrap().put_in_force();
    assert!(ours(&tls, &worse).is_err() && ours(&tls, &bad).is_err());
    place.write("0.crl", &list(6, -5, &[]));
    tls.read_again().unwrap().put_in_force();
    ours(&tls, &bad).unwrap();
}

#[test]
fn lists_that_say_less_than_they_seem_to_are_refused_by_name() {
    if !has_openssl("lists_that_say_less_than_they_seem_to_are_refused_by_name") {
        return;
    }
    let ca = Ca::new("clients");
    let place = Place::new();
    place.write("ca.pem", &ca.pem);
    place.write("ca.key", &ca.issuer.key().serialize_pem());
    for (extensions, says) in [
        (None, "is of version 1"),
        (Some("crlNumber = no"), ""),
        (Some("authorityKeyIdentifier = keyid"), "has no CRL number"),
        (Some("2.5.29.27 = critical, DER:02:01:01"), "is a delta"),
        (
            Some("issuingDistributionPoint = critical, @point\n[point]\nindirectCRL = TRUE"),
            "is an indirect one",
        ),
        (
            Some(
                "issuingDistributionPoint = critical, @point\n[point]\nonlysomereasons = keyCompromise",
            ),
            "only some reasons",
        ),
        (
            Some("issuingDistributionPoint = critical, @point\n[point]\nonlyAA = TRUE"),
            "attribute certificates",
        ),
        (
            Some(
                "issuingDistributionPoint = critical, @point\n[point]\nrelativename = name\n[name]\nCN = a",
            ),
            "relative to its issuer",
        ),
        (
            Some("1.2.3.4 = critical, DER:05:00"),
            "critical extension 1.2.3.4",
        ),
    ] {
        let list = openssl_crl(&place, extensions);
        let plain = List::new(&ca, 1, (-30, 30), &[]).pem();
        let loaded = Tls::load(place.files(&[&ca], &[plain, list]));
        match loaded {
            Ok(_) => assert_eq!(says, "", "{extensions:?} was taken"),
            Err(error) => {
                assert_eq!(error.file, place.path("1.crl"), "{error}");
                assert!(error.problem.contains(says) && !says.is_empty(), "{error}");
                assert!(error.problem.contains("CN=clients"), "{error}");
            }
        }
    }
}

/// A list by `openssl ca`, number 2, with these extensions.
fn openssl_crl(place: &Place, extensions: Option<&str>) -> String {
    let numbered = extensions == Some("crlNumber = no");
    let number = place.write("number", "02\n");
    place.write("index", "");
    let mut config = format!(
        "[ca]\ndefault_ca = it\n[it]\ndatabase = {}\ncertificate = {}\nprivate_key = {}\ndefault_md = sha256\ndefault_crl_days = 20\n",
        place.path("index").display(),
        place.path("ca.pem").display(),
        place.path("ca.key").display(),
    );
    let keyid = "authorityKeyIdentifier = keyid";
    if extensions.is_some_and(|extensions| extensions != keyid) {
        config = format!("{config}crlnumber = {}\n", number.display());
    }
    if let Some(extensions) = extensions {
        let extensions = if numbered { keyid } else { extensions };
        config = format!("{config}crl_extensions = lists\n[lists]\n{extensions}\n");
    }
    let config = place.write("ca.conf", &config);
    let out = place.path("made.crl");
    let output = Command::new("openssl")
        .args(["ca", "-gencrl", "-batch", "-config"])
        .arg(config)
        .arg("-out")
        .arg(&out)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    fs::read_to_string(out).unwrap()
}

fn pem_der(pem: &str) -> Vec<u8> {
    use rustls::pki_types::CertificateRevocationListDer;
    use rustls::pki_types::pem::PemObject as _;
    CertificateRevocationListDer::from_pem_slice(pem.as_bytes())
        .unwrap()
        .to_vec()
}

fn der_pem(der: &[u8]) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    let text = BASE64_STANDARD.encode(der);
    format!("-----BEGIN X509 CRL-----\n{text}\n-----END X509 CRL-----\n")
}
