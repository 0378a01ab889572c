//! The appliance seen from the other side: Vault's HTTP API over TLS 1.3 with a client certificate.
//!
//! The command line, the whole-program tests and the benchmarks all talk through [`Client`]. It
//! knows no endpoint: a caller names a method and a path below `/v1/`, and gets the JSON of the
//! answer.
//!
//! May know: of `strongroom-core` how an error's causes are told and how a file is read, no more.
//! `tests/specification.rs` holds it to its `Cargo.toml`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use strongroom_core::causes::causes;
use strongroom_core::{files, parse_error};
use zeroize::Zeroizing;

/// An answer larger than this is refused, bytes: twice the largest batch that a server takes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// How to reach an appliance and who asks.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// `https://host[:port]`; the port is 8200 if there is none, as Vault's.
    pub address: String,
    /// The CAs that may have signed the server's certificate, PEM.
    pub ca: PathBuf,
    /// The client's chain and its private key, PEM; `None` sends no certificate, and is refused.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// A file with the token, if tokens are used; white space around it is dropped.
    pub token_file: Option<PathBuf>,
    /// For one request, from connecting to the last byte.
    pub timeout: Duration,
    /// Offer HTTP/2 beside HTTP/1.1.
    pub http2: bool,
}

impl ClientOptions {
    /// With a certificate, without a token, HTTP/1.1, 30 seconds.
    pub fn new(address: impl Into<String>, ca: impl Into<PathBuf>) -> Self {
        Self {
            address: address.into(),
            ca: ca.into(),
            identity: None,
            token_file: None,
            timeout: Duration::from_secs(30),
            http2: false,
        }
    }

    /// With this client certificate and private key.
    #[must_use]
    pub fn identity(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }
}

/// What can go wrong between a client and an appliance.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is not one.
    #[error("{0:?} is not a valid appliance address: expected https://host:port")]
    Address(String),
    /// A PEM file or the token file can't be used.
    #[error("{path}: {problem}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong and what is expected.
        problem: String,
    },
    /// No connection, or it broke: nobody listens, or one side refuses the other's certificate.
    #[error("no answer from {address}: {problem}")]
    Connection {
        /// Whom.
        address: String,
        /// Every cause, outermost first.
        problem: String,
    },
    /// The appliance refused the client certificate, or the lack of one, with a TLS alert.
    #[error("{address} refused the client certificate: {alert}")]
    Certificate {
        /// Whom.
        address: String,
        /// The alert's name (RFC 8446, section 6.2).
        alert: String,
    },
    /// No whole answer in time.
    #[error("no answer from {address} within {timeout:?}")]
    Timeout {
        /// Whom.
        address: String,
        /// The limit.
        timeout: Duration,
    },
    /// The appliance refused the request.
    #[error("{}", refusal(*.status, .errors))]
    Refused {
        /// The HTTP status, not 2xx.
        status: StatusCode,
        /// Vault's `errors`; may be empty.
        errors: Vec<String>,
    },
    /// The answer is not what this request is answered with.
    #[error("{address} gave an answer that is not the appliance's: {problem}")]
    Answer {
        /// Whom.
        address: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// One answer, whatever its status.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    body: Body,
}

/// Keeps a body, which may hold plaintext, out of `Debug`.
struct Body(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Answer {
    /// The body as it came.
    pub fn bytes(&self) -> &[u8] {
        &self.body.0
    }

    /// The body as JSON; an empty one is `null`.
    pub fn json(&self) -> Result<Value, serde_json::Error> {
        if self.body.0.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&self.body.0)
    }

    /// The `data` of Vault's envelope, as a type of the caller's: for plaintext, one that zeroizes
    /// itself.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        #[derive(serde::Deserialize)]
        struct Envelope<T> {
            data: T,
        }
        serde_json::from_slice::<Envelope<T>>(&self.body.0).map(|envelope| envelope.data)
    }

    /// The strings in Vault's `errors`.
    pub fn errors(&self) -> Vec<String> {
        let errors = self
            .json()
            .ok()
            .and_then(|mut body| body.get_mut("errors").map(Value::take));
        errors
            .and_then(|errors| serde_json::from_value(errors).ok())
            .unwrap_or_default()
    }

    /// The answer itself if its status is 2xx, else the refusal.
    pub fn accepted(self) -> Result<Self, ClientError> {
        if self.status.is_success() {
            return Ok(self);
        }
        Err(ClientError::Refused {
            status: self.status,
            errors: self.errors(),
        })
    }
}

/// Text that is secret, base64 of plaintext mostly: zeroized, and not shown by `Debug`.
#[derive(Clone)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Takes the text.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for SecretText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for SecretText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

/// A client of one appliance; keeps its connections. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: HttpClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    address: Arc<str>,
    token: Option<HeaderValue>,
    timeout: Duration,
}

impl Client {
    /// Reads the files; connects to nobody yet.
    ///
    /// # Errors
    /// [`ClientError::Address`] and [`ClientError::File`].
    pub fn new(options: &ClientOptions) -> Result<Self, ClientError> {
        let address = base_address(&options.address)?;
        let token = options.token_file.as_deref().map(read_token).transpose()?;
        let tls = tls_config(options)?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(options.timeout.min(Duration::from_secs(10))));
        let builder = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only();
        let connector = if options.http2 {
            builder.enable_all_versions().wrap_connector(tcp)
        } else {
            builder.enable_http1().wrap_connector(tcp)
        };
        Ok(Self {
            http: HttpClient::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .build(connector),
            address: address.into(),
            token,
            timeout: options.timeout,
        })
    }

    /// `https://host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Sends one request to `/v1/<path>` and takes its whole answer, whatever its status.
    ///
    /// # Errors
    /// [`ClientError::Connection`], [`ClientError::Timeout`] and [`ClientError::Answer`].
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, ClientError> {
        let body = body.map_or_else(Bytes::new, |value| Bytes::from(value.to_string()));
        self.send(method, &format!("/v1/{path}"), body).await
    }

    /// [`Client::request`] and the JSON of its answer; a status that is not 2xx is an error.
    ///
    /// # Errors
    /// Also [`ClientError::Refused`].
    pub async fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ClientError> {
        let answer = self.request(method, path, body).await?.accepted()?;
        answer.json().map_err(|error| self.not_ours(&error))
    }

    /// As [`Client::call`], for an answer whose `data` has a type of its own.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn data<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, ClientError> {
        let answer = self.request(method, path, body).await?.accepted()?;
        answer.data().map_err(|error| self.not_ours(&error))
    }

    /// As [`Client::data`], for a body that holds a secret: its JSON is zeroized after it was sent.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn data_for<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let json = secret_json(body).map_err(|error| self.not_ours(&error))?;
        let answer = self
            .send(method, &format!("/v1/{path}"), Bytes::from_owner(json))
            .await?
            .accepted()?;
        answer.data().map_err(|error| self.not_ours(&error))
    }

    /// Sends any bytes to any path of the server: what a well-behaved client would not send, for
    /// tests.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub async fn send(
        &self,
        method: &str,
        path_and_query: &str,
        body: Bytes,
    ) -> Result<Answer, ClientError> {
        let refuse = || ClientError::Address(format!("{}{path_and_query}", self.address));
        let uri: Uri = format!("{}{path_and_query}", self.address)
            .parse()
            .map_err(|_| refuse())?;
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| refuse())?;
        let mut request = Request::builder().method(method).uri(uri);
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(token) = &self.token {
            request = request.header("x-vault-token", token);
        }
        let request = request.body(Full::new(body)).map_err(|_| refuse())?;
        tokio::time::timeout(self.timeout, self.exchange(request))
            .await
            .map_err(|_| ClientError::Timeout {
                address: self.address.to_string(),
                timeout: self.timeout,
            })?
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, ClientError> {
        let response = self
            .http
            .request(request)
            .await
            .map_err(|error| self.broken(&error))?;
        let (head, mut stream) = response
            .map(|body| Limited::new(body, MAX_ANSWER))
            .into_parts();
        let mut body = Zeroizing::new(Vec::new());
        while let Some(frame) = stream.frame().await {
            let frame = frame.map_err(|error| self.broken(&*error))?;
            if let Some(data) = frame.data_ref() {
                body.extend_from_slice(data);
            }
        }
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body: Body(body),
        })
    }

    fn broken(&self, error: &(dyn std::error::Error + 'static)) -> ClientError {
        let address = self.address.to_string();
        match alert(error) {
            Some(alert) => ClientError::Certificate { address, alert },
            None => ClientError::Connection {
                address,
                problem: causes(error),
            },
        }
    }

    fn not_ours(&self, error: &serde_json::Error) -> ClientError {
        ClientError::Answer {
            address: self.address.to_string(),
            problem: error.to_string(),
        }
    }
}

/// Written twice, to know its length first: a buffer that grows leaves copies behind that nobody
/// zeroizes.
fn secret_json(body: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
    struct Length(usize);
    impl std::io::Write for Length {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut length = Length(0);
    serde_json::to_writer(&mut length, body)?;
    let mut json = Zeroizing::new(Vec::with_capacity(length.0));
    serde_json::to_writer(&mut *json, body)?;
    Ok(json)
}

/// The TLS alert that the server sent, if one is behind this error. `io::Error` hides what it wraps
/// from `source`.
fn alert(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(cause) = next {
        let wrapped = cause
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::AlertReceived(alert)) = wrapped {
            return Some(format!("{alert:?}"));
        }
        next = cause.source();
    }
    None
}

fn refusal(status: StatusCode, errors: &[String]) -> String {
    let what = errors
        .iter()
        .map(|error| error.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect::<Vec<_>>()
        .join("; ");
    if what.is_empty() {
        format!("the appliance answered {status}")
    } else {
        format!("the appliance answered {status}: {what}")
    }
}

fn base_address(address: &str) -> Result<String, ClientError> {
    let refuse = || ClientError::Address(address.to_owned());
    let uri: Uri = address.parse().map_err(|_| refuse())?;
    let authority = uri.authority().ok_or_else(refuse)?;
    if uri.scheme_str() != Some("https") || !matches!(uri.path(), "" | "/") {
        return Err(refuse());
    }
    Ok(match authority.port() {
        Some(_) => format!("https://{authority}"),
        None => format!("https://{authority}:8200"),
    })
}

fn read_token(path: &Path) -> Result<HeaderValue, ClientError> {
    let file_error = |problem: String| ClientError::File {
        path: path.to_owned(),
        problem,
    };
    let bytes = read(path)?;
    let mut value = HeaderValue::from_bytes(bytes.trim_ascii()).map_err(|_| {
        file_error("this is not a token: expected one line of printable text".into())
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn tls_config(options: &ClientOptions) -> Result<rustls::ClientConfig, ClientError> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(&options.ca)? {
        roots.add(certificate).map_err(|error| ClientError::File {
            path: options.ca.clone(),
            problem: format!("a certificate in it can't be used as a CA: {error}"),
        })?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| ClientError::Connection {
            address: options.address.clone(),
            problem: error.to_string(),
        })?
        .with_root_certificates(roots);
    let Some((certificate, key)) = &options.identity else {
        return Ok(builder.with_no_client_auth());
    };
    let private_key =
        PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| ClientError::File {
            path: key.clone(),
            problem: format!(
                "expected a PEM private key, PKCS#8 or SEC1: {}",
                parse_error::pem(&error)
            ),
        })?;
    builder
        .with_client_auth_cert(certificates(certificate)?, private_key)
        .map_err(|error| ClientError::File {
            path: certificate.clone(),
            problem: format!("certificate and private key can't be used together: {error}"),
        })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let file_error = |problem: String| ClientError::File {
        path: path.to_owned(),
        problem,
    };
    let found = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| {
            file_error(format!(
                "expected PEM certificates: {}",
                parse_error::pem(&error)
            ))
        })?;
    if found.is_empty() {
        return Err(file_error("there is no PEM certificate in it".into()));
    }
    Ok(found)
}

/// The whole of a file, or of a pipe: its name is the caller's.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, ClientError> {
    File::open(path)
        .and_then(|file| files::read_opened(file, files::MAX_PEM))
        .map_err(|error| ClientError::File {
            path: path.to_owned(),
            problem: error.to_string(),
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_address_is_https_with_a_port() {
        assert_eq!(base_address("https://a:1/").unwrap(), "https://a:1");
        assert_eq!(base_address("https://a").unwrap(), "https://a:8200");
        assert_eq!(base_address("https://[::1]:5").unwrap(), "https://[::1]:5");
        for wrong in ["http://a:1", "a:1", "https://a/v1", "", "https://"] {
            assert!(base_address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_refusal_is_one_line() {
        let text = refusal(
            StatusCode::FORBIDDEN,
            &["1 error occurred:\n\t* permission denied\n\n".into()],
        );
        assert_eq!(
            text,
            "the appliance answered 403 Forbidden: 1 error occurred: * permission denied"
        );
    }

    #[test]
    fn an_answer_shows_no_body() {
        let answer = Answer {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: Body(Zeroizing::new(b"secret".to_vec())),
        };
        assert!(!format!("{answer:?}").contains("secret"));
    }
}
