//! A whole appliance for tests: a throwaway SoftHSM2 token, certificates, a configuration, and the
//! real `strongroom serve` as a child.
//!
//! The keys on the token (two or three RSA-4096 pairs) are made once and kept under cargo's
//! directory for tests; each appliance gets a copy of that token and its empty store.

#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::format_push_string,
    clippy::needless_pass_by_value,
    clippy::unnecessary_debug_formatting
)]

pub mod pki;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use strongroom_client::{Answer, Client, ClientOptions};
use strongroom_softhsm::Throwaway;
use tempfile::TempDir;

pub use pki::{Pki, Who};

/// The program under test.
pub const STRONGROOM: &str = env!("CARGO_BIN_EXE_strongroom");

/// How long a start may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// How an appliance differs from the plain one.
#[derive(Default)]
pub struct Builder {
    memory: bool,
    module: Option<PathBuf>,
    env: BTreeMap<OsString, OsString>,
    sections: BTreeMap<&'static str, String>,
    wrapper: Vec<OsString>,
    policy: Option<String>,
    tokens: Option<String>,
}

/// An appliance; everything is stopped and removed when it is dropped.
pub struct Appliance {
    folder: TempDir,
    pub pki: Pki,
    child: Option<Child>,
    address: Option<SocketAddr>,
    env: BTreeMap<OsString, OsString>,
    wrapper: Vec<OsString>,
}

impl Builder {
    /// Also the second master key, for keys in `memory` residency.
    pub fn memory_master(mut self) -> Self {
        self.memory = true;
        self
    }

    /// Another PKCS#11 module than SoftHSM's own: one that forwards to it, or fails on command.
    pub fn module(mut self, module: &Path) -> Self {
        self.module = Some(module.to_owned());
        self
    }

    /// For the server's environment.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Lines of TOML at the end of a section: `.section("hsm", "call_deadline = \"1s\"")`.
    pub fn section(mut self, name: &'static str, lines: &str) -> Self {
        let section = self.sections.entry(name).or_default();
        section.push_str(lines);
        section.push('\n');
        self
    }

    /// A command that runs the server: `wrapper… strongroom serve …`.
    pub fn wrapper(mut self, command: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.wrapper = command.into_iter().map(Into::into).collect();
        self
    }

    /// Another policy file.
    pub fn policy(mut self, toml: &str) -> Self {
        self.policy = Some(toml.to_owned());
        self
    }

    /// A tokens file.
    pub fn tokens(mut self, toml: &str) -> Self {
        self.tokens = Some(toml.to_owned());
        self
    }

    /// Everything but a running server.
    pub fn prepare(self) -> Appliance {
        let folder = tempfile::Builder::new().prefix("sr-").tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        copy_folder(&template(self.memory), folder.path());
        let site = Site::of(folder.path());
        site.write_softhsm_conf();
        let pki = Pki::new(&folder.path().join("pki"));

        fs::write(site.policy(), self.policy.as_deref().unwrap_or(POLICY)).unwrap();
        let mut sections = self.sections;
        if let Some(tokens) = &self.tokens {
            fs::write(folder.path().join("tokens.toml"), tokens).unwrap();
            sections
                .entry("tokens")
                .or_default()
                .push_str("path = \"tokens.toml\"\n");
        }
        let module = self
            .module
            .unwrap_or_else(|| strongroom_softhsm::module_path().unwrap());
        fs::write(site.config(), site.configuration(&module, &sections)).unwrap();

        let mut env = self.env;
        env.insert(
            strongroom_softhsm::CONF_VARIABLE.into(),
            site.softhsm_conf().into(),
        );
        Appliance {
            folder,
            pki,
            child: None,
            address: None,
            env,
            wrapper: self.wrapper,
        }
    }

    /// A running appliance that has answered a health check.
    pub async fn start(self) -> Appliance {
        let mut appliance = self.prepare();
        appliance.launch().await;
        appliance
    }
}

impl Appliance {
    /// An appliance unlike the plain one.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A plain appliance, running.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// Starts the server, and waits until it answers.
    pub async fn launch(&mut self) {
        self.spawn();
        self.wait_ready().await;
    }

    /// Starts the server and returns at once. After the first start it listens on the same port
    /// again.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "the server is running already");
        let address_file = self.path().join("address");
        let _ = fs::remove_file(&address_file);
        self.keep_port();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .unwrap();
        let mut words: Vec<OsString> = self.wrapper.clone();
        words.push(STRONGROOM.into());
        let child = Command::new(&words[0])
            .args(&words[1..])
            .args(["serve", "--config"])
            .arg(self.config())
            .arg("--addr-file")
            .arg(&address_file)
            .envs(&self.env)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Writes the port that was taken at the first start into the configuration, for every later
    /// start.
    pub fn keep_port(&self) {
        if let Some(address) = self.address {
            let config = fs::read_to_string(self.config()).unwrap();
            fs::write(
                self.config(),
                config.replacen("127.0.0.1:0", &address.to_string(), 1),
            )
            .unwrap();
        }
    }

    /// Waits until the server answers a health check with 200.
    pub async fn wait_ready(&mut self) {
        let address_file = self.path().join("address");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("the server ended with {status}:\n{}", self.log());
            }
            assert!(
                Instant::now() < deadline,
                "the server did not become ready:\n{}",
                self.log()
            );
            let address = fs::read_to_string(&address_file).unwrap_or_default();
            if let Ok(address) = address.trim().parse() {
                self.address = Some(address);
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let client = self.client(Who::Operator);
        while !matches!(client.request("GET", "sys/health", None).await, Ok(answer) if answer.status == 200)
        {
            assert!(
                Instant::now() < deadline,
                "the server did not become healthy:\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// From the next start on, another command runs the server: as [`Builder::wrapper`].
    pub fn wrap(&mut self, command: impl IntoIterator<Item = impl Into<OsString>>) {
        self.wrapper = command.into_iter().map(Into::into).collect();
    }

    /// For the server's environment, from the next start on: as [`Builder::env`].
    pub fn set_env(&mut self, name: impl Into<OsString>, value: impl Into<OsString>) {
        self.env.insert(name.into(), value.into());
    }

    /// From the next start on the server has a clock of its own; until that is set, it shows the
    /// machine's time.
    pub fn clock(&mut self) -> Clock {
        let clock = Clock(self.path().join("clock"));
        clock.set(0);
        self.set_env("LD_PRELOAD", built("libstrongroom_clock.so"));
        self.set_env("STRONGROOM_CLOCK", &clock.0);
        clock
    }

    /// SIGTERM, and waits; the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.wait_exit()
    }

    /// SIGKILL, as a power cut.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait_exit();
    }

    /// Sends the server a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid() as i32), signal).unwrap();
    }

    /// Waits for the server to end; the exit code.
    pub fn wait_exit(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("the server is running");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                panic!("the server did not end:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether the server is still there.
    pub fn is_running(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the server is running").id()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address.expect("the server was started")
    }

    /// `https://127.0.0.1:port`
    pub fn url(&self) -> String {
        format!("https://{}", self.address())
    }

    /// A client with that certificate.
    pub fn client(&self, who: Who) -> Client {
        Client::new(&self.client_options(who)).unwrap()
    }

    /// What that client is made of.
    pub fn client_options(&self, who: Who) -> ClientOptions {
        ClientOptions::new(self.url(), self.pki.ca())
            .identity(self.pki.certificate(who), self.pki.key(who))
    }

    /// A program in the appliance's environment.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .envs(&self.env)
            .env("STRONGROOM_CONFIG", self.config());
        command
    }

    /// Runs `strongroom ARGS…` in the appliance's environment, with `STRONGROOM_*` set for the
    /// operator.
    pub fn cli<I: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Output {
        let mut command = self.command(Path::new(STRONGROOM));
        command.args(arguments);
        if let Some(address) = self.address {
            command
                .env("STRONGROOM_ADDR", format!("https://{address}"))
                .env("STRONGROOM_CACERT", self.pki.ca())
                .env(
                    "STRONGROOM_CLIENT_CERT",
                    self.pki.certificate(Who::Operator),
                )
                .env("STRONGROOM_CLIENT_KEY", self.pki.key(Who::Operator));
        }
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// Creates a key as the operator.
    pub async fn create_key(&self, name: &str, options: Value) {
        expect(
            &self.client(Who::Operator),
            "POST",
            &format!("transit/keys/{name}"),
            options,
            200,
        )
        .await;
    }

    /// The directory with everything.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        Site::of(self.path()).config()
    }

    /// The policy file.
    pub fn policy(&self) -> PathBuf {
        Site::of(self.path()).policy()
    }

    /// The store's directory.
    pub fn store(&self) -> PathBuf {
        self.path().join("store")
    }

    /// The audit log.
    pub fn audit(&self) -> PathBuf {
        self.path().join("audit.log")
    }

    /// SoftHSM's configuration, the value of `SOFTHSM2_CONF`.
    pub fn softhsm_conf(&self) -> PathBuf {
        Site::of(self.path()).softhsm_conf()
    }

    /// The user PIN's file.
    pub fn pin_file(&self) -> PathBuf {
        self.path().join("pin")
    }

    /// The token's label.
    pub fn token_label(&self) -> String {
        Site::of(self.path()).label()
    }

    /// What the server has printed so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Whether the TLS files and the policy that it read again are in force; the audit log has them
    /// before they are.
    pub fn has_read_again(&self) -> bool {
        self.log().matches("reloaded").count() >= 2
    }

    fn log_path(&self) -> PathBuf {
        self.path().join("server.log")
    }
}

/// User and system time of a process (proc(5): fields 14 and 15 of its `stat`, in ticks of 10 ms).
pub fn cpu_of(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    let ticks: u64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 10)
}

impl Drop for Appliance {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the server's log\n{}", self.log());
        }
    }
}

/// Sends one request and checks its status; the answer's JSON (null if there is no body).
pub async fn expect(client: &Client, method: &str, path: &str, body: Value, status: u16) -> Value {
    let body = (!body.is_null()).then_some(body);
    let answer = client.request(method, path, body.as_ref()).await.unwrap();
    let text = String::from_utf8_lossy(answer.bytes()).into_owned();
    assert_eq!(answer.status.as_u16(), status, "{method} {path}: {text}");
    if text.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&text).unwrap()
    }
}

/// Sends one request; the whole answer, whatever it is.
pub async fn ask(client: &Client, method: &str, path: &str, body: Value) -> Answer {
    let body = (!body.is_null()).then_some(body);
    client.request(method, path, body.as_ref()).await.unwrap()
}

/// Encrypts through the API; the ciphertext.
pub async fn encrypt(client: &Client, key: &str, plaintext: &[u8]) -> String {
    let body = json!({ "plaintext": base64(plaintext) });
    let answer = expect(client, "POST", &format!("transit/encrypt/{key}"), body, 200).await;
    answer["data"]["ciphertext"].as_str().unwrap().to_owned()
}

/// Decrypts through the API; the plaintext.
pub async fn decrypt(client: &Client, key: &str, ciphertext: &str) -> Vec<u8> {
    let body = json!({ "ciphertext": ciphertext });
    let answer = expect(client, "POST", &format!("transit/decrypt/{key}"), body, 200).await;
    unbase64(answer["data"]["plaintext"].as_str().unwrap())
}

pub fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

pub fn unbase64(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap()
}

/// Counts a test as skipped: this machine lacks something. With `CI=true` that is a failure.
pub fn skip(test: &str, why: &str) {
    assert_ne!(
        std::env::var("CI").as_deref(),
        Ok("true"),
        "{test} can't run: {why}"
    );
    eprintln!("SKIPPED {test}: {why}");
    if let Some(list) = std::env::var_os("STRONGROOM_SKIPS") {
        let mut list = File::options()
            .append(true)
            .create(true)
            .open(list)
            .unwrap();
        std::io::Write::write_all(&mut list, format!("{test}: {why}\n").as_bytes()).unwrap();
    }
}

/// The PKCS#11 module that fails on command (`tests/pkcs11-fault`).
pub fn fault_module() -> PathBuf {
    built("libstrongroom_pkcs11_fault.so")
}

/// A library that cargo puts beside the tests, since it is one of their dependencies.
pub fn built(name: &str) -> PathBuf {
    let library = std::env::current_exe().unwrap().with_file_name(name);
    assert!(
        library.exists(),
        "{} is missing: run the tests with cargo",
        library.display()
    );
    library
}

/// A server's time of day: the machine's, moved (`tests/clock`).
pub struct Clock(PathBuf);

impl Clock {
    /// So many seconds later than the machine's, or earlier: at once, also in a server that runs.
    pub fn set(&self, seconds: i64) {
        // In place and never shorter: a server has the file mapped.
        let mut file = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&self.0)
            .unwrap();
        std::io::Write::write_all(&mut file, &seconds.to_ne_bytes()).unwrap();
    }
}

/// A Python interpreter that has the package `cryptography`; `None`, counted as skipped, where
/// there is no Python.
pub fn cryptography() -> Option<PathBuf> {
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/build.sh"))
        .arg("cryptography")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let complained = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) {
        skip("a second implementation in Python", complained.trim());
        return None;
    }
    assert!(output.status.success(), "build.sh: {complained}");
    let said = String::from_utf8(output.stdout).unwrap();
    Some(said.trim().strip_prefix("cryptography ").unwrap().into())
}

/// The policy that the tests' clients live under.
const POLICY: &str = r#"
[[rule]]
identities = ["dns:operator.test"]
keys = ["*"]
operations = ["*", "global"]

[[rule]]
identities = ["dns:vault.test"]
keys = ["vault-*"]
operations = ["encrypt", "decrypt"]

[[rule]]
identities = ["spiffe://test/app/*"]
keys = ["app-*"]
operations = ["*"]
"#;

/// Where an appliance's files are in its directory.
struct Site<'a>(&'a Path);

impl<'a> Site<'a> {
    fn of(folder: &'a Path) -> Self {
        Self(folder)
    }

    fn config(&self) -> PathBuf {
        self.0.join("strongroom.toml")
    }

    fn policy(&self) -> PathBuf {
        self.0.join("policy.toml")
    }

    fn softhsm_conf(&self) -> PathBuf {
        self.0.join("softhsm2.conf")
    }

    fn label(&self) -> String {
        fs::read_to_string(self.0.join("label")).unwrap()
    }

    fn write_softhsm_conf(&self) {
        let tokens = self.0.join("tokens");
        let text = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            tokens.display()
        );
        fs::write(self.softhsm_conf(), text).unwrap();
    }

    fn configuration(&self, module: &Path, extra: &BTreeMap<&'static str, String>) -> String {
        let label = self.label();
        let plain = [
            ("server", "listen = \"127.0.0.1:0\"\n".to_owned()),
            (
                "tls",
                "certificate = \"pki/server.pem\"\nprivate_key = \"pki/server.key\"\nclient_ca = \"pki/ca.pem\"\ncrls = [\"pki/crl.pem\"]\n".to_owned(),
            ),
            ("hsm", format!("module = {module:?}\nlabel = {label:?}\npin_file = \"pin\"\n")),
            ("store", "path = \"store\"\n".to_owned()),
            ("policy", "path = \"policy.toml\"\n".to_owned()),
            ("audit", "path = \"audit.log\"\n".to_owned()),
            ("keyring", String::new()),
            ("tokens", String::new()),
            ("hardening", String::new()),
            ("jwt", String::new()),
        ];
        let mut text = String::new();
        for (name, lines) in plain {
            let more = extra.get(name).map_or("", String::as_str);
            if !lines.is_empty() || !more.is_empty() {
                text.push_str(&format!("[{name}]\n{lines}{more}\n"));
            }
        }
        text
    }
}

/// A directory with a token that `strongroom init` has made its keys on, and an empty store; made
/// once for a given program.
fn template(memory: bool) -> PathBuf {
    let program = fs::metadata(STRONGROOM).unwrap();
    let age = program
        .modified()
        .unwrap()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos();
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let kind = if memory { "memory" } else { "plain" };
    let done = root.join(format!("appliance-{kind}-{age:x}"));
    let lock = File::options()
        .create(true)
        .append(true)
        .open(root.join(format!("appliance-{kind}.lock")))
        .unwrap();
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .unwrap();
    if done.exists() {
        return done;
    }
    for old in fs::read_dir(root).unwrap().filter_map(Result::ok) {
        if old
            .file_name()
            .to_string_lossy()
            .starts_with(&format!("appliance-{kind}-"))
        {
            let _ = fs::remove_dir_all(old.path());
        }
    }

    let token = Throwaway::new().unwrap();
    let site = Site::of(token.path());
    fs::write(token.path().join("label"), token.label()).unwrap();
    fs::write(site.policy(), POLICY).unwrap();
    Pki::new(&token.path().join("pki"));
    fs::write(
        site.config(),
        site.configuration(token.module(), &BTreeMap::new()),
    )
    .unwrap();
    let mut init = Command::new(STRONGROOM);
    init.args(["init", "--config"])
        .arg(site.config())
        .env(token.env().0, token.env().1);
    if memory {
        init.arg("--memory-master");
    }
    let output = init.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "strongroom init: {}",
        String::from_utf8_lossy(&output.stderr)
    );

    let made = root.join(format!("appliance-{kind}.new"));
    let _ = fs::remove_dir_all(&made);
    copy_folder(token.path(), &made);
    // The audit log stays: the token knows how far it had come.
    let _ = fs::remove_dir_all(made.join("pki"));
    fs::rename(&made, &done).unwrap();
    done
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}
