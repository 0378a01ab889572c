//! People with keys, a plan that they all signed, and a directory in which a ceremony runs.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use p256::SecretKey;
use p256::pkcs8::{EncodePublicKey as _, LineEnding};
use pkcs8::pkcs5::{pbes2, scrypt};
use pkcs8::{EncodePrivateKey as _, PrivateKeyInfoRef};
use rcgen::{CertificateSigningRequestParams, Issuer, KeyPair};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use strongroom_ceremony::record::PinsRecord;
use strongroom_ceremony::shares::{self, Added, Deal, Pins};
use strongroom_ceremony::{
    CeremonyId, Mode, Participant, ParticipantKey, Plan, PlanSignature, Recovery,
};
use strongroom_client::ClientOptions;
use tempfile::TempDir;
use zeroize::Zeroizing;

use crate::support::{self, Pki, STRONGROOM, Who, base64};

pub const CUSTODIANS: [&str; 5] = ["Alice", "Bob", "Carol", "Dave", "Erin"];
pub const OFFICER: &str = "Olga";
pub const AUDITOR: &str = "Anton";

/// Nobody in an initial ceremony's plan.
pub const NEWCOMER: &str = "Frank";

/// The exit code of a ceremony that waits for something from outside.
pub const WAITING: i32 = 10;

const PATIENCE: Duration = Duration::from_secs(90);

/// Everyone's key files, made once.
pub struct People {
    folder: TempDir,
}

impl People {
    pub fn all() -> &'static Self {
        static PEOPLE: OnceLock<People> = OnceLock::new();
        PEOPLE.get_or_init(|| {
            let people = Self {
                folder: tempfile::Builder::new()
                    .prefix("sr-people-")
                    .tempdir()
                    .unwrap(),
            };
            fs::create_dir(people.folder.path().join("passphrases")).unwrap();
            for name in Self::names().chain([NEWCOMER]) {
                people.make(name);
            }
            people
        })
    }

    pub fn names() -> impl Iterator<Item = &'static str> {
        CUSTODIANS.into_iter().chain([OFFICER, AUDITOR])
    }

    pub fn passphrase(name: &str) -> String {
        format!("the long passphrase of {name}")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.key"))
    }

    pub fn key(&self, name: &str) -> ParticipantKey {
        ParticipantKey::load(&self.file(name), &mut |_| {
            Ok(Zeroizing::new(Self::passphrase(name)))
        })
        .unwrap()
    }

    /// As `custodian new` does, with a passphrase that costs less than a real one: it is asked for
    /// hundreds of times here.
    fn make(&self, name: &str) {
        let keys: Vec<SecretKey> = (0..2)
            .map(|_| {
                let mut bytes = [0; 32];
                getrandom::fill(&mut bytes).unwrap();
                SecretKey::from_slice(&bytes).unwrap()
            })
            .collect();
        let spki = |key: &SecretKey| {
            key.public_key()
                .to_public_key_der()
                .unwrap()
                .as_bytes()
                .to_vec()
        };
        let participant = Participant::new(name, &spki(&keys[0]), &spki(&keys[1])).unwrap();
        let passphrase = Self::passphrase(name);
        let private: String = keys
            .iter()
            .map(|key| {
                let cost = scrypt::Params::new(4, 8, 1).unwrap();
                let parameters =
                    pbes2::Parameters::generate_scrypt_aes256cbc(cost, &[7; 16], [9; 16]).unwrap();
                let plain = key.to_pkcs8_der().unwrap();
                PrivateKeyInfoRef::try_from(plain.as_bytes())
                    .unwrap()
                    .encrypt_with_params(parameters, &passphrase)
                    .unwrap()
                    .to_pem("ENCRYPTED PRIVATE KEY", LineEnding::LF)
                    .unwrap()
                    .as_str()
                    .to_owned()
            })
            .collect();
        fs::write(self.file(name), private).unwrap();
        fs::write(
            self.folder.path().join(format!("{name}.key.pub")),
            participant.to_toml(),
        )
        .unwrap();
    }
}

/// A ceremony's surroundings: plan, answers, token directory, the appliance's directories, a PKI.
pub struct Room {
    folder: TempDir,
    pub pki: Pki,
    env: Vec<(String, PathBuf)>,
    /// The user that the appliance runs as, if another than the ceremony's.
    service: Option<u32>,
}

impl Room {
    pub fn new() -> Self {
        Self::with_module(&strongroom_softhsm::module_path().unwrap())
    }

    /// With the run-time PIN as a systemd credential.
    pub fn with_credential() -> Self {
        let module = strongroom_softhsm::module_path().unwrap();
        let mut room = Self::make(&module, "systemd-creds");
        // A host key of its own: the machine's is not to be made by a test.
        let secret = room.path().join("credential.secret");
        room.set_env("SYSTEMD_CREDENTIAL_SECRET", secret);
        room
    }

    /// With another PKCS#11 module in the plan.
    pub fn with_module(module: &Path) -> Self {
        Self::make(module, "file")
    }

    /// With keys that may be moved to another token.
    pub fn with_backup() -> Self {
        let module = strongroom_softhsm::module_path().unwrap();
        Self::planned(&module, "file", true)
    }

    fn make(module: &Path, method: &str) -> Self {
        Self::planned(module, method, false)
    }

    fn planned(module: &Path, method: &str, backup: bool) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("sr-room-")
            .tempdir()
            .unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let configuration = strongroom_softhsm::blank(&folder.path().join("token")).unwrap();
        let pki = Pki::new(&folder.path().join("pki"));
        let room = Self {
            env: vec![(strongroom_softhsm::CONF_VARIABLE.to_owned(), configuration)],
            folder,
            pki,
            service: None,
        };
        fs::write(room.plan_path(), room.plan_text(module, method, backup)).unwrap();
        let plan = room.plan();
        for name in People::names() {
            PlanSignature::make(&plan, &People::all().key(name))
                .unwrap()
                .append(&room.plan_path())
                .unwrap();
        }
        room.write_answers();
        room
    }

    /// The ceremony's environment, for a shell.
    pub fn shell_env(&self) -> String {
        let words: Vec<String> = self
            .env
            .iter()
            .map(|(name, value)| format!("{name}={}", value.display()))
            .collect();
        words.join(" ")
    }

    /// The ceremony's environment.
    pub fn env(&self) -> impl Iterator<Item = (&String, &PathBuf)> {
        self.env.iter().map(|(name, value)| (name, value))
    }

    /// As the package has it: the service is a user of its own, whose are state and token.
    pub fn serve_as(&mut self, user: u32) {
        self.service = Some(user);
        let open = |path: &Path| {
            fs::set_permissions(path, fs::Permissions::from_mode(0o711)).unwrap();
        };
        open(self.path());
        open(&self.path().join("token"));
        for own in [self.state(), self.tokens()] {
            fs::create_dir_all(&own).unwrap();
            chown(&own, Some(user), Some(user)).unwrap();
        }
        fs::create_dir_all(self.appliance()).unwrap();
        fs::copy(STRONGROOM, self.installed()).unwrap();
        fs::set_permissions(
            self.path().join("token/softhsm2.conf"),
            fs::Permissions::from_mode(0o644),
        )
        .unwrap();
    }

    /// The program where the service's user can start it: what was built may be below a directory
    /// that only root enters.
    fn installed(&self) -> PathBuf {
        self.path().join("strongroom")
    }

    /// Where the token keeps its files.
    pub fn tokens(&self) -> PathBuf {
        self.path().join("token/tokens")
    }

    /// For the ceremony's environment.
    pub fn set_env(&mut self, name: &str, value: PathBuf) {
        self.env.push((name.to_owned(), value));
    }

    #[allow(clippy::unnecessary_debug_formatting, reason = "TOML wants it quoted")]
    fn plan_text(&self, module: &Path, method: &str, backup: bool) -> String {
        let people = People::all();
        let person = |head: &str, name: &str| {
            let person = people.key(name).participant().clone();
            format!(
                "[{head}]\nname = {name:?}\nsigning_key = {:?}\nagreement_key = {:?}\n",
                base64(person.signing_spki()),
                base64(person.agreement_spki())
            )
        };
        let mut text = format!(
            "format = 1\nname = \"vault-keys-1\"\n\
             [token]\nmodule = {module:?}\nlabel = \"vault-keys-1\"\n\
             [keys]\nmemory_master = {backup}\ntransfer = true\nbackup = {backup}\n\
             [custody]\nthreshold = 3\n\
             [software]\nbinary_sha256 = \"{}\"\n\
             [appliance]\nfolder = {:?}\nstate = {:?}\nlisten = \"127.0.0.1:0\"\nnames = [\"localhost\", \"127.0.0.1\"]\n\
             [runtime_pin]\nmethod = {method:?}\n",
            program_sha256(),
            self.appliance(),
            self.state(),
        );
        for name in CUSTODIANS {
            text += &person("[custodian]", name);
        }
        text += &person("security_officer", OFFICER);
        text += &person("auditor", AUDITOR);
        text
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn plan_path(&self) -> PathBuf {
        self.path().join("plan.toml")
    }

    pub fn plan(&self) -> Plan {
        Plan::load(&self.plan_path()).unwrap()
    }

    pub fn appliance(&self) -> PathBuf {
        self.path().join("etc")
    }

    pub fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    /// The ceremony's directory.
    pub fn dir(&self) -> PathBuf {
        self.path().join("ceremony")
    }

    pub fn answers(&self) -> PathBuf {
        self.path().join("answers")
    }

    pub fn answer(&self, name: &str, text: &str) {
        fs::write(self.answers().join(name), text).unwrap();
    }

    fn write_answers(&self) {
        for folder in ["keys", "passphrases"] {
            fs::create_dir_all(self.answers().join(folder)).unwrap();
        }
        self.answer("confirm", "yes\n");
        fs::copy(self.pki.ca(), self.answers().join("client_ca.pem")).unwrap();
        for name in People::names() {
            self.bring(name);
        }
    }

    /// Puts somebody's key among the answers.
    pub fn bring(&self, name: &str) {
        let from = People::all().file(name);
        for suffix in ["", ".pub"] {
            let mut file = from.clone().into_os_string();
            file.push(suffix);
            fs::copy(
                file,
                self.answers().join(format!("keys/{name}.key{suffix}")),
            )
            .unwrap();
        }
        self.answer(
            &format!("passphrases/{name}"),
            &(People::passphrase(name) + "\n"),
        );
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = match self.service {
            Some(_) => Command::new(self.installed()),
            None => Command::new(STRONGROOM),
        };
        command.args(words).stdin(Stdio::null());
        for (name, value) in &self.env {
            command.env(name, value);
        }
        command
    }

    /// `systemd-creds` with the room's own host key.
    pub fn systemd_creds(&self) -> Command {
        let mut command = Command::new("systemd-creds");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    fn run_command(&self) -> Command {
        let mut command = self.command(&["ceremony", "run"]);
        command
            .arg(self.plan_path())
            .arg("--dir")
            .arg(self.dir())
            .arg("--answers")
            .arg(self.answers());
        command
    }

    /// Runs the ceremony as far as it goes.
    pub fn run(&self) -> Output {
        self.run_command().output().unwrap()
    }

    /// Starts it.
    pub fn start(&self) -> Running {
        Running::start(self.run_command())
    }

    /// Runs it, and it must end well.
    pub fn run_to_the_end(&self) -> Output {
        let output = self.run();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        output
    }

    /// Runs it until it waits for the certificate.
    pub fn run_to_the_certificate(&self) {
        let output = self.run();
        let errors = stderr(&output);
        assert_eq!(output.status.code(), Some(WAITING), "{errors}");
        assert!(errors.contains("certificate.pem"), "{errors}");
    }

    /// The CA signs the request.
    pub fn sign_certificate(&self) -> PathBuf {
        let key = KeyPair::from_pem(&fs::read_to_string(self.path().join("pki/ca.key")).unwrap())
            .unwrap();
        let ca =
            Issuer::from_ca_cert_pem(&fs::read_to_string(self.pki.ca()).unwrap(), key).unwrap();
        let request = fs::read_to_string(self.dir().join("certificate-request.pem")).unwrap();
        let certificate = CertificateSigningRequestParams::from_pem(&request)
            .unwrap()
            .signed_by(&ca)
            .unwrap();
        let path = self.answers().join("certificate.pem");
        fs::write(&path, certificate.pem()).unwrap();
        path
    }

    pub fn transcript_path(&self) -> PathBuf {
        self.dir().join("transcript.jsonl")
    }

    /// The whole lines so far.
    pub fn transcript(&self) -> Vec<Value> {
        lines(&self.transcript_path())
    }

    /// Runs the ceremony until it has written the line that this describes ("begin keys", "close",
    /// "signature Alice"); there the power goes.
    pub fn kill_at(&self, line: &str) {
        kill_at(self.run_command(), &self.dir(), line);
    }

    /// The ceremony's outputs of a step.
    pub fn outputs(&self, step: &str) -> Value {
        self.transcript()
            .into_iter()
            .find(|line| line["type"] == "done" && line["step"] == step)
            .unwrap_or_else(|| panic!("{step} is not done"))["outputs"]
            .clone()
    }

    /// The PINs, from these custodians' shares.
    pub fn recover(&self, mode: Mode, names: &[&str]) -> Pins {
        recover(&self.dir(), &self.plan(), mode, names)
    }

    /// `ceremony verify` and the second implementation of it: both must be content.
    pub fn verify(&self) {
        let mut programs = vec![self.command(&["ceremony", "verify"])];
        if let Some(python) = support::cryptography() {
            let mut second = Command::new(python);
            second.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stranger/transcript.py"));
            programs.push(second);
        }
        for mut program in programs {
            let output = program
                .arg(self.transcript_path())
                .arg("--plan")
                .arg(self.plan_path())
                .arg("--audit-key")
                .arg(self.dir().join("audit-key.pem"))
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{program:?}: {}{}",
                String::from_utf8_lossy(&output.stdout),
                stderr(&output)
            );
        }
    }
}

/// The room's appliance, until this is dropped.
pub struct Serving<'a> {
    room: &'a Room,
    child: Child,
    pub address: String,
}

impl Room {
    /// Starts the appliance with its own configuration.
    pub fn serve(&self) -> Serving<'_> {
        let address_file = match self.service {
            Some(_) => self.state().join("address"),
            None => self.path().join("address"),
        };
        let _ = fs::remove_file(&address_file);
        let mut command = self.command(&["serve", "--config"]);
        if let Some(user) = self.service {
            command.uid(user).gid(user);
        }
        let mut child = command
            .arg(self.appliance().join("strongroom.toml"))
            .arg("--addr-file")
            .arg(&address_file)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        for line in log.lines() {
            seen += &(line.unwrap() + "\n");
            if address_file.exists() {
                break;
            }
        }
        let mut serving = Serving {
            room: self,
            child,
            address: String::new(),
        };
        let address = fs::read_to_string(&address_file).expect(&seen);
        serving.address = format!("https://{}", address.trim());
        serving
    }
}

impl Serving<'_> {
    /// A client's command, as Vault.
    pub fn client(&self, words: &[&str]) -> Command {
        let pki = &self.room.pki;
        let mut command = self.room.command(words);
        command
            .args(["--addr", &self.address, "--cacert"])
            .arg(pki.ca())
            .arg("--client-cert")
            .arg(pki.certificate(Who::Vault))
            .arg("--client-key")
            .arg(pki.key(Who::Vault));
        command
    }

    /// The same, as a library.
    pub fn options(&self) -> ClientOptions {
        let pki = &self.room.pki;
        ClientOptions::new(&self.address, pki.ca())
            .identity(pki.certificate(Who::Vault), pki.key(Who::Vault))
    }

    /// Sends the server a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// The power goes.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Its standard output.
    pub fn succeeds(&self, words: &[&str]) -> Vec<u8> {
        let output = self.client(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", stderr(&output));
        output.stdout
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The PINs, from these custodians' shares in a ceremony's directory.
pub fn recover(dir: &Path, plan: &Plan, mode: Mode, names: &[&str]) -> Pins {
    let transcript = lines(&dir.join("transcript.jsonl"));
    let id = CeremonyId::parse(transcript[0]["ceremony_id"].as_str().unwrap()).unwrap();
    let outputs = &transcript
        .iter()
        .find(|line| line["type"] == "done" && line["step"] == "pins")
        .unwrap()["outputs"];
    let record: PinsRecord = serde_json::from_value(
        serde_json::json!({"threshold": outputs["threshold"], "commitments": outputs["commitments"]}),
    )
    .unwrap();
    let mut recovery = Recovery::new(Deal::new(plan, id, mode), record.commitments).unwrap();
    for name in names {
        let key = People::all().key(name);
        let path = dir.join(format!("shares/{}.jwe", key.participant().fingerprint()));
        let share = shares::open(fs::read_to_string(path).unwrap().trim(), &key).unwrap();
        match recovery.add(share) {
            Added::Complete(pins) => return pins,
            Added::More { .. } => {}
            Added::Refused(refusal) => panic!("{refusal}"),
        }
    }
    panic!("too few shares");
}

/// What a ceremony's lines are, one after the other.
pub fn lines_to_come(steps: &[&str], signers: &[&str]) -> Vec<String> {
    let mut lines = vec!["open".to_owned()];
    for step in steps {
        lines.extend([format!("begin {step}"), format!("done {step}")]);
    }
    lines.push("close".to_owned());
    lines.extend(signers.iter().map(|name| format!("signature {name}")));
    lines.push("seal".to_owned());
    lines
}

/// Each of these is there once, but for a step's beginning: it may have been begun again.
pub fn done_once(transcript: &[Value], lines: &[String]) {
    let written: Vec<String> = transcript.iter().map(describe).collect();
    for line in lines.iter().filter(|line| !line.starts_with("begin ")) {
        let times = written.iter().filter(|other| *other == line).count();
        assert_eq!(times, 1, "{line}: {written:#?}");
    }
}

/// Runs a ceremony until it has written the line that this describes into its directory; there the
/// power goes.
pub fn kill_at(mut ceremony: Command, dir: &Path, line: &str) {
    ceremony
        .env("LD_PRELOAD", support::built("libstrongroom_sync_stop.so"))
        .env("STRONGROOM_SYNC_STOP", dir);
    let transcript = dir.join("transcript.jsonl");
    let from = lines(&transcript).len();
    let has = || {
        lines(&transcript)
            .iter()
            .skip(from)
            .any(|written| describe(written) == line)
    };
    let mut running = Running::start(ceremony);
    loop {
        running.wait_for_stop(line);
        if has() {
            return;
        }
        kill(running.id(), Signal::SIGCONT).unwrap();
    }
}

/// A ceremony's process. The power goes when this is dropped.
pub struct Running {
    child: Child,
}

impl Running {
    fn start(mut ceremony: Command) -> Self {
        let child = ceremony
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child }
    }

    fn id(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    /// The power goes when this becomes true. It must, before the ceremony ends.
    pub fn kill_when(mut self, what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            if self.child.try_wait().unwrap().is_some() {
                self.ended_before(what);
            }
            pause(deadline);
        }
    }

    /// Waits until it stops itself (`tests/sync-stop`). It must, before it ends.
    fn wait_for_stop(&mut self, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        let look = WaitPidFlag::WUNTRACED | WaitPidFlag::WNOHANG;
        loop {
            match waitpid(self.id(), Some(look)).unwrap() {
                WaitStatus::Stopped(..) => return,
                WaitStatus::StillAlive => pause(deadline),
                _ => self.ended_before(what),
            }
        }
    }

    fn ended_before(&mut self, what: &str) -> ! {
        let mut errors = String::new();
        let mut said = self.child.stderr.take().unwrap();
        said.read_to_string(&mut errors).unwrap();
        panic!("it ended before {what}: {errors}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pause(deadline: Instant) {
    assert!(Instant::now() < deadline, "the ceremony hangs");
    std::thread::sleep(Duration::from_micros(500));
}

/// "begin keys", "done keys", "note keys", "open", "close", "signature", "seal".
pub fn describe(line: &Value) -> String {
    let kind = line["type"].as_str().unwrap();
    match (kind, line["step"].as_str()) {
        ("signature", _) => format!("signature {}", line["name"].as_str().unwrap()),
        (_, Some(step)) => format!("{kind} {step}"),
        _ => kind.to_owned(),
    }
}

pub fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |at| &text[..at]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn program_sha256() -> &'static str {
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| {
        base16ct::lower::encode_string(&Sha256::digest(fs::read(STRONGROOM).unwrap()))
    })
}

/// Every regular file below a directory.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}
