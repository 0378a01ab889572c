//! Lists that no library makes, put together byte by byte: what the server says of each, and what
//! openssl says.

use rcgen::{KeyPair, SigningKey as _};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Ca, Client, List, Place, Tls, days, der_pem, has_openssl, ours};

/// Object identifiers, content only.
mod oid {
    pub const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    pub const ECDSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];
    pub const NUMBER: &[u8] = &[0x55, 0x1d, 20];
    pub const REASON: &[u8] = &[0x55, 0x1d, 21];
    pub const DELTA: &[u8] = &[0x55, 0x1d, 27];
    pub const POINT: &[u8] = &[0x55, 0x1d, 28];
    pub const CERTIFICATE_ISSUER: &[u8] = &[0x55, 0x1d, 29];
    pub const KEY_ID: &[u8] = &[0x55, 0x1d, 35];
    pub const FRESHEST: &[u8] = &[0x55, 0x1d, 46];
    pub const UNKNOWN: &[u8] = &[0x2a, 3, 4];
}

const INTEGER: u8 = 2;
const BITS: u8 = 3;
const OCTETS: u8 = 4;
const OID: u8 = 6;
const ENUMERATED: u8 = 10;
const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    let head: &[u8] = match length {
        [0, short @ ..0x80] => &[tag, short],
        [0, long] => &[tag, 0x81, long],
        [high, low] => &[tag, 0x82, high, low],
    };
    [head, content].concat()
}

fn extension(id: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical: &[u8] = if critical { &[1, 1, 0xff] } else { &[] };
    tlv(
        SEQUENCE,
        &[&tlv(OID, id), critical, &tlv(OCTETS, value)].concat(),
    )
}

fn number(bytes: &[u8]) -> Vec<u8> {
    extension(oid::NUMBER, false, &tlv(INTEGER, bytes))
}

fn reason(reason: u8) -> Vec<u8> {
    extension(oid::REASON, false, &tlv(ENUMERATED, &[reason]))
}

/// An issuing distribution point with these elements.
fn point(elements: &[&[u8]]) -> Vec<u8> {
    extension(oid::POINT, true, &tlv(SEQUENCE, &elements.concat()))
}

fn time(time: OffsetDateTime) -> Vec<u8> {
    let (date, clock) = (time.date(), time.time());
    let text = format!(
        "{:02}{:02}{:02}{:02}{:02}{:02}Z",
        date.year() % 100,
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second()
    );
    tlv(UTC_TIME, text.as_bytes())
}

/// A list of whose parts each can be another. As it is made it is a good one that names the serial
/// number 8.
#[derive(Clone)]
struct Form {
    version: Option<u8>,
    /// Inside of what is signed; outside it is the right one.
    algorithm: &'static [u8],
    issuer: Vec<u8>,
    from: i64,
    until: Option<i64>,
    /// Serial numbers, content only, and the entries' extensions.
    revoked: Vec<(Vec<u8>, Vec<u8>)>,
    key_id: Vec<u8>,
    /// The number and whatever else.
    extensions: Vec<Vec<u8>>,
    breaks_signature: bool,
}

impl Form {
    fn of(ca: &Ca) -> Self {
        let der = CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap();
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        let key_id = parsed
            .extensions()
            .iter()
            .find(|one| one.oid == x509_parser::oid_registry::OID_X509_EXT_SUBJECT_KEY_IDENTIFIER);
        // OCTET STRING { … } there, [0] { … } in a SEQUENCE here.
        let key_id = &key_id.unwrap().value[2..];
        Self {
            version: Some(1),
            algorithm: oid::ECDSA_SHA256,
            issuer: parsed.subject().as_raw().to_vec(),
            from: -10,
            until: Some(10),
            revoked: vec![(vec![8], vec![])],
            key_id: extension(oid::KEY_ID, false, &tlv(SEQUENCE, &tlv(0x80, key_id))),
            extensions: vec![number(&[2])],
            breaks_signature: false,
        }
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut changed = self.clone();
        change(&mut changed);
        changed
    }

    fn and(&self, extension: Vec<u8>) -> Self {
        self.with(|form| form.extensions.push(extension))
    }

    /// The one entry has this extension.
    fn entry(&self, extension: &[u8]) -> Self {
        self.with(|form| form.revoked[0].1 = extension.to_vec())
    }

    fn der(&self, key: &KeyPair) -> Vec<u8> {
        assert_eq!(key.algorithm(), &rcgen::PKCS_ECDSA_P256_SHA256);
        let algorithm = |id| tlv(SEQUENCE, &tlv(OID, id));
        let mut parts = Vec::new();
        if let Some(version) = self.version {
            parts.push(tlv(INTEGER, &[version]));
        }
        parts.extend([
            algorithm(self.algorithm),
            self.issuer.clone(),
            time(days(self.from)),
        ]);
        parts.extend(self.until.map(|until| time(days(until))));
        let entry = |(serial, extensions): &(Vec<u8>, Vec<u8>)| {
            let mut entry = [tlv(INTEGER, serial), time(days(-20))].concat();
            if !extensions.is_empty() {
                entry.extend(tlv(SEQUENCE, extensions));
            }
            tlv(SEQUENCE, &entry)
        };
        if !self.revoked.is_empty() {
            let entries: Vec<u8> = self.revoked.iter().flat_map(entry).collect();
            parts.push(tlv(SEQUENCE, &entries));
        }
        if self.version.is_some() {
            let extensions = [&self.key_id[..], &self.extensions.concat()].concat();
            parts.push(tlv(0xa0, &tlv(SEQUENCE, &extensions)));
        }
        let signed = tlv(SEQUENCE, &parts.concat());
        let mut signature = key.sign(&signed).unwrap();
        if self.breaks_signature {
            *signature.last_mut().unwrap() ^= 1;
        }
        let signature = tlv(BITS, &[&[0], &signature[..]].concat());
        tlv(
            SEQUENCE,
            &[signed, algorithm(oid::ECDSA_SHA256), signature].concat(),
        )
    }
}

/// A CA with two clients, of whom the list names one.
struct Scene {
    ca: Ca,
    place: Place,
    good: Client,
    bad: Client,
}

impl Scene {
    fn new() -> Self {
        let ca = Ca::new("clients");
        Self {
            place: Place::new(),
            good: ca.client("good", 7),
            bad: ca.client("bad", 8),
            ca,
        }
    }

    fn form(&self) -> Form {
        Form::of(&self.ca)
    }

    fn pem(&self, form: &Form) -> String {
        der_pem(&form.der(self.ca.issuer.key()))
    }

    /// What the load says, with the list alone or beside an older one that is good and names
    /// nobody.
    fn load(&self, lists: &[String]) -> Result<Tls, String> {
        Tls::load(self.place.files(&[&self.ca], lists)).map_err(|error| error.to_string())
    }

    fn older(&self) -> String {
        List::new(&self.ca, 1, (-30, 30), &[]).pem()
    }

    /// Who gets in, of the good one and the bad one.
    fn ours(&self, tls: &Tls) -> [bool; 2] {
        [&self.good, &self.bad].map(|client| ours(tls, client).is_ok())
    }

    fn openssl(&self, lists: &[String]) -> [bool; 2] {
        // The root's own certificate is no user's, and no list has to speak of it.
        let ask = |client| self.place.openssl_asks("-crl_check", client, lists, true);
        [&self.good, &self.bad].map(ask)
    }
}

#[test]
fn of_every_form_that_is_taken_openssl_says_the_same() {
    if !has_openssl("of_every_form_that_is_taken_openssl_says_the_same") {
        return;
    }
    let scene = Scene::new();
    let plain = scene.form();
    let (only_the_bad, nobody) = ([true, false], [false, false]);
    for (what, form, expected) in [
        ("as it is", plain.clone(), only_the_bad),
        ("a reason", plain.entry(&reason(1)), only_the_bad),
        ("on hold", plain.entry(&reason(6)), only_the_bad),
        (
            "an entry with an unknown extension that is not critical",
            plain.entry(&extension(oid::UNKNOWN, false, &[5, 0])),
            only_the_bad,
        ),
        (
            "where a delta would be",
            plain.and(extension(oid::FRESHEST, false, &tlv(SEQUENCE, &[]))),
            only_the_bad,
        ),
        (
            "unknown and not critical",
            plain.and(extension(oid::UNKNOWN, false, &[5, 0])),
            only_the_bad,
        ),
        (
            "nobody is revoked",
            plain.with(|form| form.revoked.clear()),
            [true, true],
        ),
        (
            "the entry is the last of many",
            plain.with(|form| {
                form.revoked = (10..=250)
                    .map(|serial: u8| (vec![0, serial | 0x80], vec![]))
                    .chain([(vec![8], vec![])])
                    .collect();
            }),
            only_the_bad,
        ),
        (
            "twice, and the other time with a reason",
            plain.with(|form| form.revoked.push((vec![8], reason(1)))),
            only_the_bad,
        ),
        (
            "a number of 20 bytes",
            plain.with(|form| form.extensions = vec![number(&[0x7f; 20])]),
            only_the_bad,
        ),
        (
            "not begun",
            plain.with(|form| (form.from, form.until) = (1, Some(10))),
            nobody,
        ),
        (
            "without the key's id",
            plain.with(|form| form.key_id.clear()),
            only_the_bad,
        ),
        (
            "for users only, which is all that there is",
            plain.and(point(&[&[0x81, 1, 0xff]])),
            only_the_bad,
        ),
        (
            "for CAs only",
            plain.and(point(&[&[0x82, 1, 0xff]])),
            nobody,
        ),
        (
            "FALSE where a default would do",
            plain.and(point(&[&[0x81, 1, 0], &[0x84, 1, 0]])),
            only_the_bad,
        ),
    ] {
        let lists = [scene.pem(&form)];
        let tls = scene
            .load(&lists)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(scene.ours(&tls), expected, "{what}");
        assert_eq!(scene.openssl(&lists), expected, "{what}: openssl");
    }

    // Only a delta may say so (RFC 5280, section 5.3.1). openssl lets the client in; here an entry
    // is an entry.
    let removed = [scene.pem(&plain.entry(&reason(8)))];
    assert_eq!(scene.ours(&scene.load(&removed).unwrap()), only_the_bad);
}

#[test]
fn every_form_that_says_something_else_is_refused_by_file_and_reason() {
    let scene = Scene::new();
    let plain = scene.form();
    let uri = tlv(0xa0, &tlv(0xa0, &tlv(0x86, b"http://a/")));
    for (form, says) in [
        (plain.with(|form| form.version = None), "version 1"),
        (plain.with(|form| form.version = Some(0)), ""),
        (plain.with(|form| form.version = Some(2)), ""),
        (plain.with(|form| form.until = None), "no nextUpdate"),
        (plain.with(|form| form.until = Some(-11)), "ends before"),
        (plain.with(|form| form.extensions.clear()), "no CRL number"),
        (
            plain.with(|form| form.extensions = vec![number(&[0xff])]),
            "",
        ),
        (
            plain.with(|form| form.extensions = vec![number(&[0x7f; 21])]),
            "more than 20 bytes",
        ),
        (plain.and(number(&[3])), "twice"),
        (
            plain.and(extension(oid::DELTA, true, &tlv(INTEGER, &[1]))),
            "is a delta",
        ),
        (
            plain.and(extension(oid::DELTA, false, &tlv(INTEGER, &[1]))),
            "is a delta",
        ),
        (
            plain.and(extension(oid::UNKNOWN, true, &[5, 0])),
            "critical extension 1.2.3.4",
        ),
        (
            plain.entry(&extension(oid::UNKNOWN, true, &[5, 0])),
            "critical extension 1.2.3.4",
        ),
        (
            plain.entry(&extension(
                oid::CERTIFICATE_ISSUER,
                true,
                &tlv(SEQUENCE, &tlv(0xa4, &plain.issuer)),
            )),
            "names another CA",
        ),
        (plain.and(point(&[&[0x84, 1, 0xff]])), "is an indirect one"),
        (plain.and(point(&[&[0x83, 2, 1, 6]])), "only some reasons"),
        (plain.and(point(&[&[0x85, 1, 0xff]])), "attribute"),
        (
            plain.and(point(&[&[0x81, 1, 0xff], &[0x82, 1, 0xff]])),
            "covers nobody",
        ),
        (plain.and(point(&[&uri, &uri])), "can't be read"),
        (plain.and(point(&[&[0x86, 1, 0xff]])), "can't be read"),
        (plain.and(point(&[&[1, 1, 0xff]])), "can't be read"),
        (
            plain.and(point(&[&tlv(0xa0, &tlv(0xa0, &[]))])),
            "without a URI",
        ),
        (
            plain.with(|form| form.revoked[0].0 = vec![0, 8]),
            "serial number",
        ),
        (
            plain.with(|form| form.revoked[0].0 = vec![0xff, 0x88]),
            "serial number",
        ),
        (plain.with(|form| form.revoked[0].0.clear()), ""),
        (plain.with(|form| form.algorithm = oid::ECDSA_SHA384), ""),
        (
            plain.with(|form| form.breaks_signature = true),
            "the signature",
        ),
    ] {
        let error = scene
            .load(&[scene.older(), scene.pem(&form)])
            .err()
            .unwrap_or_else(|| panic!("{says} was taken"));
        assert!(error.contains("1.crl") && error.contains(says), "{error}");
    }
    let bytes = [plain.der(scene.ca.issuer.key()), vec![0]].concat();
    let error = scene.load(&[der_pem(&bytes)]).err().unwrap();
    assert!(error.contains("followed by other bytes"), "{error}");

    // It may be of a CA that had the name: it counts for nothing, and is not enough.
    let stranger = Form::of(&Ca::new("clients"));
    let stranger = scene.pem(&stranger.with(|form| form.breaks_signature = true));
    let error = scene.load(std::slice::from_ref(&stranger)).err().unwrap();
    assert!(error.contains("no CRL that is signed"), "{error}");
    let tls = scene.load(&[stranger, scene.older()]).unwrap();
    assert_eq!(scene.ours(&tls), [true, true]);
    // Without the key's id nobody could tell a newer one of it from an older one.
    let nobodys = plain.with(|form| {
        form.breaks_signature = true;
        form.key_id.clear();
    });
    let error = scene.load(&[scene.older(), scene.pem(&nobodys)]).err();
    let error = error.unwrap();
    assert!(
        error.contains("1.crl") && error.contains("no key identifier"),
        "{error}"
    );
}

/// A CA that clients send along: its key is in no file.
struct Below {
    root: Ca,
    issuing: Ca,
    good: Client,
    bad: Client,
    place: Place,
}

impl Below {
    fn new() -> Self {
        let root = Ca::new("root");
        let (issuing, certificate) = root.below("issuing", 20);
        Self {
            place: Place::new(),
            good: issuing.client_with("good", 7, &[&certificate], None),
            bad: issuing.client_with("bad", 8, &[&certificate], None),
            root,
            issuing,
        }
    }

    /// With a number, from a day on, naming the bad client or nobody.
    fn list(&self, of: u8, from: i64, revokes: bool) -> Form {
        Form::of(&self.issuing).with(|form| {
            form.extensions = vec![number(&[of])];
            form.from = from;
            if !revokes {
                form.revoked.clear();
            }
        })
    }

    fn write(&self, lists: &[Form]) {
        let key = self.issuing.issuer.key();
        let pem: String = lists.iter().map(|list| der_pem(&list.der(key))).collect();
        self.place.write("1.crl", &pem);
    }

    fn load(&self, lists: &[Form]) -> Result<Tls, String> {
        let roots = List::new(&self.root, 1, (-30, 30), &[]).pem();
        let files = self.place.files(&[&self.root], &[roots, String::new()]);
        self.write(lists);
        Tls::load(files).map_err(|error| error.to_string())
    }

    fn ours(&self, tls: &Tls) -> [bool; 2] {
        [&self.good, &self.bad].map(|client| ours(tls, client).is_ok())
    }
}

fn without_key_id(form: &Form) -> Form {
    form.with(|form| form.key_id.clear())
}

#[test]
fn an_older_list_of_a_ca_that_clients_send_along_brings_nobody_back() {
    let below = Below::new();
    let nine = below.list(9, -10, true);
    let five = below.list(5, -20, false);
    let other_id = five.with(|form| {
        let id = tlv(SEQUENCE, &tlv(0x80, &[1, 2, 3]));
        form.key_id = extension(oid::KEY_ID, false, &id);
    });
    for met in [true, false] {
        let tls = below.load(std::slice::from_ref(&nine)).unwrap();
        if met {
            assert_eq!(below.ours(&tls), [true, false]);
        }
        for (what, older) in [
            ("as it is", &five),
            ("without the key's id", &without_key_id(&five)),
            ("with another id", &other_id),
        ] {
            below.write(std::slice::from_ref(older));
            match tls.read_again() {
                Err(error) => assert_eq!(error.file, below.place.path("1.crl"), "{what}"),
                // It is of no key that anybody knows, and says nothing of anybody.
                Ok(new) => {
                    assert!(!met && what == "with another id", "{what} was taken");
                    new.put_in_force();
                }
            }
            assert!(!below.ours(&tls)[1], "{what}");
        }
    }
    // Two that contradict each other are found whether they name the key or not.
    let error = below.load(&[nine.clone(), below.list(9, -10, false)]);
    assert!(error.err().unwrap().contains("contradict"));
    let silent = [&nine, &below.list(9, -10, false)].map(without_key_id);
    let error = below.load(&silent).err().unwrap();
    assert!(error.contains("no key identifier"), "{error}");
}

#[test]
fn an_older_list_of_another_scope_brings_nobody_back() {
    let below = Below::new();
    let users = || point(&[&[0x81, 1, 0xff]]);
    let cas = || point(&[&[0x82, 1, 0xff]]);
    let nine = below.list(9, -10, true);
    let older = below.list(5, -20, false);
    let uris = |uris: &[&[u8]]| {
        let uris: Vec<u8> = uris.iter().flat_map(|uri| tlv(0x86, uri)).collect();
        point(&[&tlv(0xa0, &tlv(0xa0, &uris))])
    };
    for (what, old, new) in [
        (
            "users, for the complete one",
            &nine,
            vec![older.and(users())],
        ),
        (
            "users, beside a newer one for CAs",
            &nine,
            vec![older.and(users()), below.list(10, -5, false).and(cas())],
        ),
        (
            "complete, for users",
            &nine.and(users()),
            vec![older.clone()],
        ),
        (
            "complete, for a part",
            &nine.and(uris(&[b"http://a/", b"http://b/"])),
            vec![older.clone()],
        ),
        (
            "a number that went up, made earlier",
            &nine,
            vec![below.list(90, -20, false)],
        ),
        (
            "beside one that has not begun",
            &nine,
            vec![older.clone(), below.list(10, 5, true)],
        ),
    ] {
        let tls = below.load(std::slice::from_ref(old)).unwrap();
        below.write(&new);
        let error = tls
            .read_again()
            .err()
            .unwrap_or_else(|| panic!("{what} was taken"));
        assert_eq!(error.file, below.place.path("1.crl"), "{what}");
        assert!(error.problem.contains("went back"), "{what}: {error}");
        assert!(!below.ours(&tls)[1], "{what}");
    }
    for (what, old, new) in [
        (
            "another scope, newer",
            vec![nine.clone()],
            vec![below.list(10, -5, true).and(users())],
        ),
        (
            "for CAs, which it never spoke of",
            vec![nine.and(users()), older.and(cas())],
            vec![older.and(cas())],
        ),
        (
            "the same points in another order",
            vec![nine.and(uris(&[b"http://a/", b"http://b/"]))],
            vec![nine.and(uris(&[b"http://b/", b"http://a/", b"http://b/"]))],
        ),
        (
            "one that has not begun is withdrawn",
            vec![nine.clone(), below.list(10, 5, true)],
            vec![nine.clone()],
        ),
    ] {
        let tls = below.load(&old).unwrap();
        below.write(&new);
        let new = tls.read_again();
        new.unwrap_or_else(|error| panic!("{what}: {error}"))
            .put_in_force();
        assert!(!below.ours(&tls)[1], "{what}");
    }
}

/// As `openssl crl -text` begins.
const OPENSSL_TEXT: &str = "Certificate Revocation List (CRL):
        Version 2 (0x1)
        Signature Algorithm: ecdsa-with-SHA256
        Issuer: CN = clients
        CRL extensions:
            X509v3 Authority Key Identifier: 
                5F:9D:0B:4E:77:1E:6A:0D:31:8A:2B:5C:6E:9F:10:22:43:65:87:A9
    Signature Value:
        30:45:02:21:00:c3:5b:0e:8d:46:71:2f:9a:bb:cc:dd:ee:01:
";

#[test]
fn no_list_of_a_file_is_passed_over() {
    let scene = Scene::new();
    let (old, new) = (scene.older(), scene.pem(&scene.form()));
    for (what, good) in [
        ("after the old one", format!("{old}{new}")),
        ("before the old one", format!("{new}{old}")),
        (
            "after text",
            format!("Certificate Revocation List:\n    Version 2\n{old}\n\nand\n{new}"),
        ),
        (
            "with another line end",
            format!("{old}{new}").replace('\n', "\r\n"),
        ),
        (
            "in the text of openssl",
            format!("{OPENSSL_TEXT}{old}subject=CN = clients\n\n{new}=======\nEnd."),
        ),
        (
            "with Macintosh line ends",
            format!("{old}{new}").replace('\n', "\r"),
        ),
    ] {
        let tls = scene
            .load(&[good])
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(scene.ours(&tls), [true, false], "{what}");
    }
}

#[test]
fn a_file_of_lists_is_taken_whole_or_not_at_all() {
    let scene = Scene::new();
    let (old, new) = (scene.older(), scene.pem(&scene.form()));
    let of_another = Ca::new("of another").pem;
    let file = scene.place.path("0.crl");
    let der = scene.form().der(scene.ca.issuer.key());
    let utf_16: Vec<u8> = new.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let (_, headless) = new.split_once('\n').unwrap();
    let label = |label| new.replace("X509 CRL", label);
    let bare = headless.split_once('-').unwrap().0;
    for (what, bad) in [
        ("DER", der.clone()),
        ("DER behind", [old.as_bytes(), &der].concat()),
        ("DER before", [&der, old.as_bytes()].concat()),
        ("UTF-16", [old.as_bytes(), &utf_16].concat()),
        ("Latin-1", [b"\xa9 CA\n", old.as_bytes()].concat()),
        (
            "a BEGIN cut off before",
            format!("{headless}{old}").into_bytes(),
        ),
        (
            "a BEGIN cut off behind",
            format!("{old}{headless}").into_bytes(),
        ),
        ("neither BEGIN nor END", format!("{old}{bare}").into_bytes()),
        (
            "neither, and short lines",
            format!("{old}{}\n{}", &bare[..30], &bare[30..]).into_bytes(),
        ),
        (
            "another label",
            format!("{old}{}", label("CRL")).into_bytes(),
        ),
        (
            "almost the label",
            format!("{old}{}", label("X509-CRL")).into_bytes(),
        ),
        (
            "small letters",
            format!("{old}{}", new.to_lowercase()).into_bytes(),
        ),
        (
            "dashes",
            format!("{old}{}", new.replace("-----", "\u{2014}")).into_bytes(),
        ),
        (
            "two labels",
            format!("{old}{}", new.replacen("X509 CRL", "CRL", 1)).into_bytes(),
        ),
        (
            "the one's end and the other's beginning lost",
            format!("{}{headless}", old.split("-----END").next().unwrap()).into_bytes(),
        ),
        (
            "no line end behind the beginning",
            format!("{old}{}", new.replacen("-----\n", "-----", 1)).into_bytes(),
        ),
        (
            "beside a certificate",
            format!("{of_another}{old}{new}").into_bytes(),
        ),
    ] {
        let files = scene.place.files(&[&scene.ca], &[String::new()]);
        std::fs::write(&file, bad).unwrap();
        let error = Tls::load(files)
            .err()
            .unwrap_or_else(|| panic!("{what} was taken"));
        assert_eq!(error.file, file, "{what}: {error}");
    }
    for (what, bad) in [
        ("nothing", String::new()),
        ("cut", format!("{old}{}", &new[..new.len() / 2])),
        (
            "without its end",
            format!("{old}{}", new.replace("-----END X509 CRL-----", "")),
        ),
        (
            "four hyphens",
            format!(
                "{old}-{}",
                new.trim_start_matches('-').replacen("BEGIN", "---BEGIN", 1)
            ),
        ),
        ("a blank before", format!("{old} {new}")),
        ("a byte order mark", format!("\u{feff}{new}{old}")),
        ("no line end between", format!("{}{new}", old.trim_end())),
        (
            "base64 that is none",
            format!("{old}{}", new.replacen("MI", "M*", 1)),
        ),
    ] {
        let error = Tls::load(scene.place.files(&[&scene.ca], &[bad]))
            .err()
            .unwrap_or_else(|| panic!("{what} was taken"));
        assert_eq!(error.file, file, "{what}: {error}");
        assert!(
            error.problem.contains("-----BEGIN X509 CRL-----"),
            "{what}: {error}"
        );
    }
}
