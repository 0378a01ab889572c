//! What is measured: an appliance on a throwaway token, and child processes for what must not share
//! its memory.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use strongroom_core::config::Config;
use strongroom_core::keyring::{Ciphertext, DecryptItem, EncryptItem, KeyName, Keyring};
use strongroom_core::store::Store;
use strongroom_hsm::Hsm;
use strongroom_hsm::bench::RawDecryption;
use zeroize::Zeroizing;

use super::support::{Appliance, Who, base64, cpu_of, expect};
use super::{PLAINTEXT, body_of, tls};

/// How long a rate without the network is measured.
const LOCAL_TIME: Duration = Duration::from_millis(400);

/// An appliance with a key of each residency, and hello-world servers beside it.
pub struct Site {
    appliance: Appliance,
    client_tls: Arc<rustls::ClientConfig>,
    /// By the items of the decryption whose answer is as long as its own, and whether it decrypts
    /// itself. Once started, each stays: idle it takes no time.
    hellos: HashMap<(usize, bool), Hello>,
}

struct Hello {
    address: SocketAddr,
    process: Child,
}

impl Site {
    /// Starts it.
    pub async fn start() -> Self {
        let appliance = Appliance::builder().memory_master().start().await;
        for residency in ["hsm", "memory"] {
            appliance
                .create_key(
                    &format!("bench-{residency}"),
                    json!({ "residency": residency }),
                )
                .await;
        }
        let pki = &appliance.pki;
        let client_tls = tls::client(
            &pki.ca(),
            &pki.certificate(Who::Operator),
            &pki.key(Who::Operator),
        );
        Self {
            appliance,
            client_tls,
            hellos: HashMap::new(),
        }
    }

    /// From starting the process to the answer of a decryption, on a warm token.
    pub async fn start_to_answer(&mut self) -> Duration {
        let client = self.appliance.client(Who::Operator);
        let ciphertext = super::support::encrypt(&client, "bench-hsm", &[7; PLAINTEXT]).await;
        self.appliance.stop();
        let start = Instant::now();
        self.appliance.launch().await;
        let client = self.appliance.client(Who::Operator);
        super::support::decrypt(&client, "bench-hsm", &ciphertext).await;
        start.elapsed()
    }

    /// A body that decrypts `batch` ciphertexts of that key.
    pub async fn decrypt_body(&self, residency: &str, batch: usize) -> Bytes {
        let items: Vec<_> = (0..batch)
            .map(|_| json!({ "plaintext": base64(&[7; PLAINTEXT]) }))
            .collect();
        let path = format!("transit/encrypt/bench-{residency}");
        let client = self.appliance.client(Who::Operator);
        let answer = expect(&client, "POST", &path, json!({ "batch_input": items }), 200).await;
        let results = answer["data"]["batch_results"].as_array().unwrap();
        body_of(
            &results
                .iter()
                .map(|item| item["ciphertext"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>(),
        )
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.appliance.address()
    }

    /// The load's side of TLS.
    pub fn client_tls(&self) -> Arc<rustls::ClientConfig> {
        self.client_tls.clone()
    }

    /// The hello-world server that answers with as many bytes as a decryption of `batch` items, and
    /// decrypts on the token if it shall.
    pub async fn hello_server(&mut self, batch: usize, decrypting: bool) -> SocketAddr {
        let kind = (batch, decrypting);
        if let Some(hello) = self.hellos.get(&kind) {
            return hello.address;
        }
        let client = self.appliance.client(Who::Operator);
        let body = self.decrypt_body("hsm", batch).await;
        let answer = client
            .send("POST", "/v1/transit/decrypt/bench-hsm", body)
            .await
            .unwrap();
        let pki = &self.appliance.pki;
        let mut process = self
            .program()
            .args(["child", "hello"])
            .args([pki.ca(), pki.server_certificate(), pki.server_key()])
            .arg(answer.bytes().len().to_string())
            .args(decrypting.then(|| self.appliance.config()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line.trim().parse().unwrap();
        self.hellos.insert(kind, Hello { address, process });
        address
    }

    /// `C_Decrypt`s per second, in a process of its own on the same token.
    pub fn raw_rate(&self) -> f64 {
        self.child(&["raw"], &[])
    }

    /// Items per second through the keyring alone. The server must be stopped.
    pub fn keyring_rate(&self, batch: usize) -> f64 {
        self.child(&["keyring"], &[&batch.to_string()])
    }

    fn child(&self, before: &[&str], after: &[&str]) -> f64 {
        let output = self
            .program()
            .arg("child")
            .args(before)
            .arg(self.appliance.config())
            .args(after)
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "the child for {before:?} failed");
        String::from_utf8(output.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }

    /// This program, for a child process on the appliance's token.
    fn program(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(
            strongroom_softhsm::CONF_VARIABLE,
            self.appliance.softhsm_conf(),
        );
        command
    }

    /// Processor time that the server has used until now.
    pub fn server_cpu(&self) -> Duration {
        cpu_of(self.appliance.pid())
    }

    /// Processor time that the hello-world server which does not decrypt has used until now.
    pub fn hello_cpu(&self, batch: usize) -> Duration {
        self.hellos
            .get(&(batch, false))
            .map_or(Duration::ZERO, |hello| cpu_of(hello.process.id()))
    }

    /// Resident memory of the server now.
    pub fn rss_mib(&self) -> f64 {
        self.status_mib("VmRSS:")
    }

    /// The most it ever had.
    pub fn rss_peak_mib(&self) -> f64 {
        self.status_mib("VmHWM:")
    }

    fn status_mib(&self, field: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.appliance.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    }

    /// Stops all servers.
    pub fn stop(&mut self) {
        self.stop_hellos();
        self.appliance.stop();
    }

    fn stop_hellos(&mut self) {
        for (_, mut hello) in self.hellos.drain() {
            let _ = hello.process.kill();
            let _ = hello.process.wait();
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop_hellos();
    }
}

/// The child `raw`: prints `C_Decrypt`s per second.
pub fn raw(config: &Path) {
    let config = Config::load(config).unwrap();
    let mut raw = RawDecryption::start(&config.hsm, PLAINTEXT).unwrap();
    let count = 20_000;
    let time = raw.time(count).unwrap();
    raw.stop();
    println!("{}", f64::from(count) / time.as_secs_f64());
}

/// The child `keyring`: prints items per second.
pub async fn keyring(config: &Path, batch: usize) {
    let config = Config::load(config).unwrap();
    let hsm = Hsm::start(config.hsm.clone()).unwrap();
    let store = Arc::new(Store::open(&config.store, hsm.clone()).await.unwrap());
    let keyring = Keyring::open(store, hsm, config.keyring.clone())
        .await
        .unwrap();
    let name = KeyName::parse("bench-hsm").unwrap();
    let item = || EncryptItem {
        plaintext: Zeroizing::new(vec![7; PLAINTEXT]),
        ..EncryptItem::default()
    };
    let encrypted = keyring
        .encrypt(name, (0..batch).map(|_| item()).collect())
        .await
        .unwrap();
    let ciphertexts: Vec<Ciphertext> = encrypted.into_iter().map(Result::unwrap).collect();

    let start = Instant::now();
    let mut items = 0_u64;
    while start.elapsed() < LOCAL_TIME {
        let batch = ciphertexts
            .iter()
            .map(|ciphertext| DecryptItem {
                ciphertext: ciphertext.clone(),
                associated_data: Vec::new(),
                context: Vec::new(),
            })
            .collect();
        for result in keyring.decrypt(name, batch).await.unwrap() {
            assert_eq!(*result.unwrap(), [7; PLAINTEXT]);
            items += 1;
        }
    }
    println!("{}", items as f64 / start.elapsed().as_secs_f64());
}
