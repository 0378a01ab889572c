//! An [`App`] for each test of this file's neighbours. Its token and its store it has to itself, as
//! a test before it left them: a token has one store, and a store one keyring that changes it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};
use strongroom_core::audit::Audit;
use strongroom_core::config::Config;
use strongroom_core::keyring::{KeyName, Keyring};
use strongroom_core::policy::Policy;
use strongroom_core::rotation::MasterRotation;
use strongroom_core::store::Store;
use strongroom_core::tls::{Peer, Tls};
use strongroom_core::tokens::Tokens;
use strongroom_hsm::Hsm;
use strongroom_softhsm::{Pool, Taken, Throwaway};

use super::openapi;
use crate::api::vault::routes::{self, Target};
use crate::api::{Admission, App, Client, Endpoint, Logins, handle};
use crate::harden::Report;

/// Where an appliance stands.
pub(super) struct Site {
    token: &'static Throwaway,
    /// Made for the first appliance.
    fixed: OnceLock<Fixed>,
}

/// What the appliances of a site have in common.
struct Fixed {
    config: Config,
    hsm: Hsm,
    store: Arc<Store>,
}

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
});

static SITES: LazyLock<Pool<Site>> = LazyLock::new(|| {
    Pool::new(crate::testing::api_tokens().iter().map(|token| Site {
        token,
        fixed: OnceLock::new(),
    }))
});

/// The directory with the certificates that all have.
static CERTIFICATES: LazyLock<&'static Path> = LazyLock::new(|| {
    let folder = crate::testing::api_tokens()[0].path();
    certificates(folder);
    folder
});

const POLICY: &str = r#"
[[rule]]
identities = ["dns:operator.test"]
keys = ["*"]
operations = ["*", "global"]

[[rule]]
identities = ["dns:app.test"]
keys = ["app-*"]
operations = ["encrypt", "decrypt"]

[[rule]]
identities = ["dns:app.test"]
keys = ["token-*"]
operations = ["encrypt"]
require_token = true
"#;

/// The clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// May do everything.
    Operator,
    /// May encrypt and decrypt with `app-*`, and encrypt with `token-*` if it has a token.
    App,
    /// May do nothing.
    Stranger,
    /// As the operator, but expired.
    Expired,
}

impl Who {
    const ALL: [Self; 4] = [Self::Operator, Self::App, Self::Stranger, Self::Expired];

    fn name(self) -> &'static str {
        match self {
            Self::Operator | Self::Expired => "operator.test",
            Self::App => "app.test",
            Self::Stranger => "stranger.test",
        }
    }

    fn file(self) -> PathBuf {
        CERTIFICATES.join(format!("{self:?}.der"))
    }
}

impl Site {
    fn fixed(&self) -> &Fixed {
        self.fixed.get_or_init(|| Fixed::make(self.token))
    }
}

impl Fixed {
    fn make(token: &Throwaway) -> Self {
        fs::write(token.path().join("policy.toml"), POLICY).unwrap();
        let (module, label) = (token.module(), token.label());
        let [certificate, private_key, client_ca] =
            ["server.pem", "server.key", "ca.pem"].map(|name| CERTIFICATES.join(name));
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n\
             [tls]\ncertificate = {certificate:?}\nprivate_key = {private_key:?}\nclient_ca = {client_ca:?}\n\
             [hsm]\nmodule = {module:?}\nlabel = {label:?}\npin_file = \"pin\"\ncall_deadline = \"1m\"\n\
             [store]\npath = \"store\"\n[policy]\npath = \"policy.toml\"\n[audit]\npath = \"audit.log\"\n"
        );
        let path = token.path().join("strongroom.toml");
        fs::write(&path, text).unwrap();
        let config = Config::load(&path).unwrap();
        let hsm = Hsm::start(config.hsm.clone()).unwrap();
        let store = RUNTIME
            .block_on(Store::create(&config.store, hsm.clone()))
            .unwrap();
        Self {
            config,
            hsm,
            store: Arc::new(store),
        }
    }
}

fn certificates(folder: &Path) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(folder.join(name))
            .unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
    };
    write("ca.pem", params.self_signed(&key).unwrap().pem().as_bytes());
    let ca = Issuer::new(params, key);
    let server = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    write(
        "server.pem",
        params.signed_by(&server, &ca).unwrap().pem().as_bytes(),
    );
    write("server.key", server.serialize_pem().as_bytes());
    for who in Who::ALL {
        let mut params = CertificateParams::new(vec![who.name().to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if who == Who::Expired {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        write(
            &format!("{who:?}.der"),
            params.signed_by(&key, &ca).unwrap().der(),
        );
    }
}

/// An appliance as seen by HTTP.
pub(super) struct Appliance {
    pub(super) app: Arc<App>,
    /// Kept for as long as anything is done with the rest.
    pub(super) site: Taken<Site>,
}

/// An answer that the `OpenAPI` document allows.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: hyper::HeaderMap,
    pub(super) bytes: Bytes,
}

impl Reply {
    /// The body; null if it is empty.
    pub(super) fn json(&self) -> Value {
        if self.bytes.is_empty() {
            return Value::Null;
        }
        serde_json::from_slice(&self.bytes).unwrap()
    }

    /// The first of `errors`, `""` if there are none.
    pub(super) fn error(&self) -> String {
        let json = self.json();
        let errors = json["errors"]
            .as_array()
            .unwrap_or_else(|| panic!("{json}"));
        errors
            .first()
            .map_or("", |e| e.as_str().unwrap())
            .to_owned()
    }
}

impl Appliance {
    /// With the plain configuration.
    pub(super) fn new() -> Self {
        Self::with(|_| {})
    }

    /// With another one.
    pub(super) fn with(change: impl FnOnce(&mut Config)) -> Self {
        let site = SITES.take();
        let Fixed { config, hsm, store } = site.fixed();
        let mut config = config.clone();
        let folder = tempfile::tempdir_in(site.token.path()).unwrap().keep();
        config.audit.path = folder.join("audit.log");
        change(&mut config);
        let (keyring, audit) = RUNTIME.block_on(async {
            let keyring =
                Keyring::open(Arc::clone(store), hsm.clone(), config.keyring.clone()).await;
            // The token knows of the log of the appliance before.
            let audit = Audit::accept(config.audit.clone(), hsm.clone()).await;
            (keyring.unwrap(), Arc::new(audit.unwrap().0))
        });
        let app = App {
            admission: Admission::default(),
            logins: Logins::default(),
            tls: Arc::new(Tls::load(config.tls.clone()).unwrap()),
            hsm: hsm.clone(),
            keyring,
            store: Arc::clone(store),
            policy: ArcSwap::from_pointee(Policy::parse(POLICY).unwrap()),
            tokens: ArcSwap::from_pointee(Tokens::default()),
            audit,
            started: Instant::now(),
            hardening: Report::default(),
            config,
            rotation: MasterRotation::default(),
        };
        Self {
            app: Arc::new(app),
            site,
        }
    }

    /// As the operator.
    pub(super) fn ask(&self, method: &str, path: &str, body: &Value) -> Reply {
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.send(Who::Operator, method, path, &[], text)
    }

    /// As the operator; the answer must have this status.
    pub(super) fn expect(&self, status: u16, method: &str, path: &str, body: &Value) -> Value {
        let reply = self.ask(method, path, body);
        let text = String::from_utf8_lossy(&reply.bytes);
        assert_eq!(reply.status, status, "{method} {path} {body}: {text}");
        reply.json()
    }

    /// As the operator; the answer must be this error.
    pub(super) fn refused(&self, status: u16, error: &str, path: &str, body: &Value) {
        let reply = self.ask("POST", path, body);
        assert_eq!(
            (reply.status, reply.error().as_str()),
            (status, error),
            "{path} {body}"
        );
    }

    /// Anything. Checks what is true of each answer.
    pub(super) fn send(
        &self,
        who: Who,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        let uri = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/v1/{path}")
        };
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let response = RUNTIME.block_on(handle(self.client(who), request));
        let reply = reply(response);
        let query = path.split_once('?').map_or("", |(_, q)| q);
        let (path, _) = path.split_once('?').unwrap_or((path, ""));
        let path = &*percent_encoding::percent_decode_str(path).decode_utf8_lossy();
        let verb = routes::verb(&method.parse().unwrap(), query.contains("list=true"));
        let route =
            verb.and_then(
                |verb| match routes::resolve(path, verb, &self.app.config.mounts) {
                    Target::Route(route, _) => Some(route),
                    _ => openapi::page(path, verb),
                },
            );
        if method == "HEAD" || matches!(reply.status, 204 | 205 | 304) {
            assert!(reply.bytes.is_empty(), "{method} {path} has a body");
        } else {
            openapi::check_answer(route, reply.status, &reply.bytes);
        }
        if !reply.headers.contains_key("etag") {
            assert_eq!(reply.headers["cache-control"], "no-store");
        }
        assert_eq!(
            reply.headers["strict-transport-security"],
            "max-age=63072000; includeSubDomains; preload"
        );
        assert_eq!(
            reply.status == 503,
            reply.headers.contains_key("retry-after")
        );
        assert_eq!(reply.status == 405, reply.headers.contains_key("allow"));
        assert_eq!(self.app.admission.in_flight(), 0, "the place is given back");
        reply
    }

    /// A client of this appliance.
    pub(super) fn client(&self, who: Who) -> Arc<Client> {
        self.client_at(Endpoint::configured(&self.app.config), who)
    }

    /// One that came to this endpoint.
    pub(super) fn client_at(&self, endpoint: Endpoint, who: Who) -> Arc<Client> {
        Arc::new(Client {
            app: Arc::clone(&self.app),
            endpoint: Arc::new(endpoint),
            peer: peer(who),
        })
    }

    /// A key of that name.
    pub(super) fn key(&self, name: &str, options: &Value) {
        self.expect(200, "POST", &format!("transit/keys/{name}"), options);
    }

    /// A ciphertext of it.
    pub(super) fn encrypt(&self, name: &str, plaintext: &[u8]) -> String {
        let body = json!({ "plaintext": b64(plaintext) });
        let answer = self.expect(200, "POST", &format!("transit/encrypt/{name}"), &body);
        answer["data"]["ciphertext"].as_str().unwrap().to_owned()
    }

    /// The audit log's decisions so far, without what signs and chains them, and without what says
    /// that changes begin.
    pub(super) fn audited(&self) -> Vec<Value> {
        fs::read_to_string(&self.app.config.audit.path)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter(|line| line["type"] == "decision")
            .collect()
    }
}

/// One future, where a test needs the request itself.
pub(super) fn run<F: Future>(future: F) -> F::Output {
    RUNTIME.block_on(future)
}

fn peer(who: Who) -> Peer {
    let remote: SocketAddr = "192.0.2.1:4711".parse().unwrap();
    Peer::new(vec![fs::read(who.file()).unwrap()], remote).unwrap()
}

fn reply(response: Response<Full<Bytes>>) -> Reply {
    let (head, body) = response.into_parts();
    Reply {
        status: head.status.as_u16(),
        headers: head.headers,
        bytes: run(body.collect()).unwrap().to_bytes(),
    }
}

pub(super) fn b64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(super) fn unb64(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

/// The name of a key.
pub(super) fn named(name: &str) -> KeyName<&str> {
    KeyName::parse(name).unwrap()
}
