//! A log server: systemd's own receiver, behind a door that wants a certificate of whoever sends.
//! Debian builds the receiver without that part.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use crate::rig::Room;

pub const PROGRAM: &str = "/usr/lib/systemd/systemd-journal-remote";

/// Where the receiver itself listens.
const INSIDE: &str = "127.0.0.1:19531";

/// It is tried again after half a minute at most.
const PATIENCE: Duration = Duration::from_mins(3);

pub struct LogServer {
    folder: PathBuf,
    address: SocketAddr,
    ca: PathBuf,
    running: Option<(Child, Door)>,
    /// Each start writes a journal of its own.
    starts: usize,
}

impl LogServer {
    pub fn new(room: &Room, ip: IpAddr, port: u16) -> Self {
        let folder = room.path().join(format!("log-server-{port}"));
        fs::create_dir(&folder).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(ip)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let ca_key =
            KeyPair::from_pem(&fs::read_to_string(room.path().join("pki/ca.key")).unwrap())
                .unwrap();
        let ca =
            Issuer::from_ca_cert_pem(&fs::read_to_string(room.pki.ca()).unwrap(), ca_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &ca).unwrap();
        fs::write(folder.join("certificate"), certificate.pem()).unwrap();
        fs::write(folder.join("key"), key.serialize_pem()).unwrap();
        Self {
            folder,
            address: SocketAddr::new(ip, port),
            ca: room.pki.ca(),
            running: None,
            starts: 0,
        }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub fn start(&mut self) {
        self.stop();
        self.starts += 1;
        let receiver = Command::new(PROGRAM)
            .arg(format!("--listen-http={INSIDE}"))
            .arg("--split-mode=none")
            .arg(format!("--output={}", self.journal().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(self.folder.join("errors")).unwrap())
            .spawn()
            .unwrap();
        let door = Door::open(self.address, self.tls());
        self.running = Some((receiver, door));
    }

    pub fn stop(&mut self) {
        if let Some((mut receiver, door)) = self.running.take() {
            let _ = receiver.kill();
            let _ = receiver.wait();
            door.close();
        }
    }

    /// With a certificate for itself, and none but the CA's clients.
    fn tls(&self) -> ServerConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(&self.ca).unwrap())
            .unwrap();
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .unwrap();
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![CertificateDer::from_pem_file(self.folder.join("certificate")).unwrap()],
                PrivateKeyDer::from_pem_file(self.folder.join("key")).unwrap(),
            )
            .unwrap()
    }

    fn journal(&self) -> PathBuf {
        self.folder.join(format!("{}.journal", self.starts))
    }

    /// What came since the last start, each line with the unit that wrote it.
    pub fn lines(&self) -> String {
        let output = Command::new("journalctl")
            .arg("--file")
            .arg(self.journal())
            .args(["--output=with-unit", "--no-pager", "--quiet", "--all"])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Until a line holds all of these words; the line.
    pub fn wait_for(&self, words: &[&str]) -> String {
        let begun = Instant::now();
        loop {
            let lines = self.lines();
            let found = lines
                .lines()
                .find(|line| words.iter().all(|word| line.contains(word)));
            if let Some(line) = found {
                return line.to_owned();
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "no line with {words:?} came:\n{lines}\n{}",
                fs::read_to_string(self.folder.join("errors")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

impl Drop for LogServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Takes TLS off, on a thread of its own: the test's may sleep.
struct Door {
    thread: JoinHandle<()>,
    close: oneshot::Sender<()>,
}

impl Door {
    fn open(address: SocketAddr, tls: ServerConfig) -> Self {
        let (close, closed) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = serve(address, TlsAcceptor::from(Arc::new(tls))) => {}
                    _ = closed => {}
                }
            });
        });
        Self { thread, close }
    }

    fn close(self) {
        let _ = self.close.send(());
        let _ = self.thread.join();
    }
}

async fn serve(address: SocketAddr, tls: TlsAcceptor) {
    let listener = TcpListener::bind(address).await.unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let tls = tls.clone();
        tokio::spawn(async move {
            if let (Ok(mut outside), Ok(mut inside)) =
                (tls.accept(stream).await, TcpStream::connect(INSIDE).await)
            {
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            }
        });
    }
}
