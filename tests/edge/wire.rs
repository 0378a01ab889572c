//! One TLS connection, and on it whatever bytes a test likes. No pool: what is asked twice is asked
//! on the same TCP connection.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::{Appliance, Who, expect};

/// Longer than any answer but a late one takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection.
pub struct Wire {
    pub stream: TlsStream<TcpStream>,
    read: Vec<u8>,
}

/// One answer of HTTP/1.1.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// As they came, names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

impl Wire {
    /// With that client's certificate. TLS 1.3 tells a client that it is refused only when it
    /// reads.
    pub async fn open(appliance: &Appliance, who: Who) -> io::Result<Self> {
        Self::with(
            appliance,
            config(appliance, Some(who), TLS13, &default_provider()),
        )
        .await
    }

    pub async fn with(appliance: &Appliance, config: ClientConfig) -> io::Result<Self> {
        let tcp = TcpStream::connect(appliance.address()).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await?;
        Ok(Self {
            stream,
            read: Vec::new(),
        })
    }

    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// The next answer. An error if the connection ends before it is whole.
    pub async fn answer(&mut self) -> io::Result<Reply> {
        self.answer_within(PATIENCE).await
    }

    pub async fn answer_within(&mut self, patience: Duration) -> io::Result<Reply> {
        match tokio::time::timeout(patience, self.read_answer()).await {
            Ok(answer) => answer,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    pub async fn ask(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<Reply> {
        self.send(&request(method, path, &[], body)).await?;
        self.answer().await
    }

    /// Whether the server ends the connection, soon.
    pub async fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        let read = tokio::time::timeout(Duration::from_secs(2), self.stream.read(&mut byte)).await;
        matches!(read, Ok(Ok(0) | Err(_)))
    }

    async fn read_answer(&mut self) -> io::Result<Reply> {
        let head = loop {
            if let Some(end) = find(&self.read, b"\r\n\r\n") {
                let head: Vec<u8> = self.read.drain(..end + 4).collect();
                break String::from_utf8(head).unwrap();
            }
            self.more().await?;
        };
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let length = length.map_or(0, |(_, value)| value.parse().unwrap());
        while self.read.len() < length {
            self.more().await?;
        }
        Ok(Reply {
            status: status.parse().unwrap(),
            headers,
            body: self.read.drain(..length).collect(),
        })
    }

    async fn more(&mut self) -> io::Result<()> {
        if self.stream.read_buf(&mut self.read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

pub const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
pub const TLS12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];

/// A client's side of TLS.
pub fn config(
    appliance: &Appliance,
    who: Option<Who>,
    versions: &[&'static SupportedProtocolVersion],
    provider: &CryptoProvider,
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_file_iter(appliance.pki.root()).unwrap() {
        roots.add(ca.unwrap()).unwrap();
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(provider.clone()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let Some(who) = who else {
        return builder.with_no_client_auth();
    };
    let chain = CertificateDer::pem_file_iter(appliance.pki.certificate(who)).unwrap();
    let chain = chain.collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(appliance.pki.key(who)).unwrap();
    builder.with_client_auth_cert(chain, key).unwrap()
}

/// A request of HTTP/1.1 with its length.
pub fn request(method: &str, path: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n").into_bytes();
    for header in headers {
        bytes.extend_from_slice(format!("{header}\r\n").as_bytes());
    }
    if !body.is_empty() {
        bytes.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

/// The server serves good clients, and nothing in it has panicked.
pub async fn assert_unharmed(appliance: &Appliance, after: &str) {
    let operator = appliance.client(Who::Operator);
    let random = expect(&operator, "POST", "transit/random/8", Value::Null, 200).await;
    assert!(random["data"]["random_bytes"].is_string(), "{after}");
    let metrics = operator.request("GET", "sys/metrics", None).await.unwrap();
    let metrics = String::from_utf8_lossy(metrics.bytes()).into_owned();
    assert!(
        metrics.contains("\nstrongroom_panics_total 0\n"),
        "{after}: {metrics}"
    );
    // A panic outside of a handler is not counted, but Rust says so on standard error.
    assert!(!appliance.log().contains("panicked"), "{after}");
}

/// Waits for what a reload brings about.
pub async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done().await {
        assert!(Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, wanted)
}
