//! `strongroom dev`: the real command, what it prints pasted into a shell, its directory from one
//! start to the next, and what it refuses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use support::{STRONGROOM, fault_module, skip};
use tempfile::TempDir;

/// Longer than an RSA-4096 key takes on a machine that does other things too.
const PATIENCE: Duration = Duration::from_mins(2);

/// A running `strongroom dev`; killed when it is dropped, if it still runs.
struct Dev {
    child: Child,
    lines: Receiver<String>,
    stderr: PathBuf,
    _scratch: TempDir,
}

/// `strongroom dev` with nothing of the surroundings' settings, nor of what a run of the tests
/// hands down below `nohup`.
fn dev() -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP", STRONGROOM]);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("STRONGROOM_") || text.starts_with("VAULT_") || text == "NOTIFY_SOCKET"
        {
            command.env_remove(name);
        }
    }
    command.arg("dev").stdin(Stdio::null());
    command
}

impl Dev {
    /// In a group of its own, as a shell runs it.
    fn spawn(command: &mut Command) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let stderr = scratch.path().join("stderr");
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&stderr).unwrap())
            .process_group(0)
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            lines,
            stderr,
            _scratch: scratch,
        }
    }

    /// In that directory, on any port, with these arguments; what it said as JSON.
    fn start(folder: &Path, arguments: &[&str]) -> (Self, Value) {
        Self::start_with(dev().arg("--dir").arg(folder).args(arguments))
    }

    fn start_with(command: &mut Command) -> (Self, Value) {
        let mut dev = Self::spawn(command.args(["--port", "0", "--output", "json"]));
        let line = dev.line();
        let told = serde_json::from_str(&line).unwrap();
        (dev, told)
    }

    /// The next line on its standard output.
    fn line(&mut self) -> String {
        self.lines
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("it says nothing: {}", self.said()))
    }

    /// All that it prints until it is up.
    fn until_ready(&mut self) -> String {
        let mut text = String::new();
        while !text.contains("\nready https://") {
            text.push_str(&self.line());
            text.push('\n');
        }
        text
    }

    /// On standard error.
    fn said(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// The processes that it started and that are there now.
    fn children(&self) -> Vec<Pid> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid());
        let text = fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace()
            .map(|pid| Pid::from_raw(pid.parse().unwrap()))
            .collect()
    }

    /// Waits for its end; the exit code, if it was not a signal.
    fn end(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(
                Instant::now() < deadline,
                "it does not end: {}",
                self.said()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// As Ctrl-C and `kill` do; it ends well.
    fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        assert_eq!(self.end(), Some(0), "{}", self.said());
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Its server ends with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A copy of a directory that a first start made, once: RSA-4096 keys take seconds.
fn made() -> TempDir {
    static FIRST: OnceLock<PathBuf> = OnceLock::new();
    let first = FIRST.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dev");
        let _ = fs::remove_dir_all(&folder);
        let (dev, _) = Dev::start(&folder, &[]);
        dev.stop();
        folder
    });
    let copy = tempfile::tempdir().unwrap();
    let copied = Command::new("cp")
        .arg("-a")
        .arg(first.join("."))
        .arg(copy.path())
        .status();
    assert!(copied.unwrap().success());
    copy
}

/// A start that must fail: its exit code, and what it says.
fn refused(command: &mut Command) -> (i32, String) {
    let output = command.args(["--port", "0"]).output().unwrap();
    assert!(output.stdout.is_empty(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), said)
}

/// Pastes lines into a shell; what they print.
fn paste(lines: &str) -> String {
    let output = Command::new("sh")
        .args(["-ec", lines])
        .stdin(Stdio::null())
        .env_remove("VAULT_ADDR")
        .output()
        .unwrap();
    let complained = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{lines}\n{complained}");
    String::from_utf8(output.stdout).unwrap()
}

/// Asks by curl with what `env.sh` of that directory has.
fn curl(folder: &Path, path: &str, body: &str) -> Value {
    let said = paste(&format!(
        ". '{}/env.sh'\ncurl -sS --cacert \"$VAULT_CACERT\" --cert \"$VAULT_CLIENT_CERT\" \
         --key \"$VAULT_CLIENT_KEY\" --data '{body}' \"$VAULT_ADDR/v1/transit/{path}\"",
        folder.display()
    ));
    serde_json::from_str(&said).unwrap()
}

fn encrypt(folder: &Path) -> String {
    let answer = curl(
        folder,
        "encrypt/vault-unseal",
        r#"{"plaintext": "aGVsbG8="}"#,
    );
    answer["data"]["ciphertext"].as_str().unwrap().to_owned()
}

fn decrypts(folder: &Path, ciphertext: &str) -> bool {
    let body = format!(r#"{{"ciphertext": "{ciphertext}"}}"#);
    curl(folder, "decrypt/vault-unseal", &body)["data"]["plaintext"] == "aGVsbG8="
}

fn has_curl(test: &str) -> bool {
    let there = Command::new("curl").arg("--version").output().is_ok();
    if !there {
        skip(test, "there is no curl");
    }
    there
}

/// This program on the appliance of that directory, which must not run.
fn on_the_spot(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(STRONGROOM)
        .args(arguments)
        .arg("--config")
        .arg(folder.join("strongroom.toml"))
        .env(
            strongroom_softhsm::CONF_VARIABLE,
            folder.join("state/softhsm2.conf"),
        )
        .output()
        .unwrap()
}

/// Every record of the store, against the token.
fn has_whole_store(folder: &Path) -> bool {
    let output = on_the_spot(folder, &["store", "status"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    true
}

/// Everything below a directory, itself too.
fn all_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(all_below(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

fn assert_private(folder: &Path) {
    for path in all_below(folder) {
        let seen = fs::symlink_metadata(&path).unwrap();
        let mode = seen.mode() & 0o777;
        let wanted: &[u32] = if seen.is_dir() {
            &[0o700]
        } else {
            &[0o600, 0o400]
        };
        assert!(wanted.contains(&mode), "{}: {mode:o}", path.display());
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_running(pid: Pid) -> bool {
    // A zombie has ended; its parent may be one that reaps late.
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = status
        .rsplit_once(") ")
        .map(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some(Some('Z')))
}

#[test]
fn what_it_prints_is_pasted_into_a_shell_and_encrypts() {
    if !has_curl("what_it_prints_is_pasted_into_a_shell_and_encrypts") {
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let mut dev = Dev::spawn(dev().args(["--port", "0"]).env("TMPDIR", temporary.path()));
    let text = dev.until_ready();
    let warning = text.lines().next().unwrap();
    assert!(warning.starts_with("NOT FOR PRODUCTION"), "{text}");
    assert!(
        text.lines()
            .last()
            .unwrap()
            .starts_with("ready https://127.0.0.1:")
    );

    // Exports and the first request, as they stand.
    let (_, rest) = text.split_once("\n\nexport ").unwrap();
    let (exports, rest) = rest.split_once("\n\n").unwrap();
    let (_, rest) = rest.split_once("\n\ncurl ").unwrap();
    let (request, rest) = rest.split_once("\n\n").unwrap();
    let answer = paste(&format!("export {exports}\ncurl -sS {request}"));
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let ciphertext = answer["data"]["ciphertext"].as_str().unwrap();
    let folder = fs::read_dir(temporary.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    assert!(decrypts(&folder, ciphertext));
    // And what a Vault does, by the same variables of this program.
    let seal = format!(
        ". '{}/env.sh'; '{STRONGROOM}' client seal vault-unseal",
        folder.display()
    );
    assert!(paste(&seal).contains("sealed and unsealed"));
    assert!(rest.contains("seal \"transit\" {"), "{rest}");

    assert_private(&folder);
    let pin = fs::read_to_string(folder.join("state/pin")).unwrap();
    assert!(pin.len() >= 32);
    for process in dev.children().into_iter().chain([dev.pid()]) {
        for file in ["cmdline", "environ"] {
            let bytes = fs::read(format!("/proc/{process}/{file}")).unwrap();
            assert!(!String::from_utf8_lossy(&bytes).contains(&pin), "{file}");
        }
    }
    for path in all_below(&folder) {
        if path.is_file() && !path.ends_with("state/pin") {
            let bytes = fs::read(&path).unwrap();
            assert!(
                !String::from_utf8_lossy(&bytes).contains(&pin),
                "{}",
                path.display()
            );
        }
    }
    assert!(!text.contains(&pin) && !dev.said().contains(&pin));

    dev.stop();
    let left = fs::read_dir(temporary.path()).unwrap().count();
    assert_eq!(left, 0, "it left files behind");
}

#[test]
fn a_second_start_goes_on_with_the_same_keys_clients_and_policy() {
    if !has_curl("a_second_start_goes_on_with_the_same_keys_clients_and_policy") {
        return;
    }
    let folder = made();
    let arguments = ["--key", "tenant-a", "--client", "Billing"];
    let (dev, told) = Dev::start(folder.path(), &arguments);
    assert_eq!(
        told["keys"],
        serde_json::json!(["vault-unseal", "tenant-a"])
    );
    assert_eq!(
        told["clients"]["billing"]["identity"],
        "dns:billing.dev.internal"
    );
    assert_eq!(told["kept"], true);
    assert!(
        told["warning"]
            .as_str()
            .unwrap()
            .starts_with("NOT FOR PRODUCTION")
    );
    // The line of the document needs no variables.
    let answer = paste(told["first_request"].as_str().unwrap());
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let ciphertext = answer["data"]["ciphertext"].as_str().unwrap();
    let certificate = PathBuf::from(told["clients"]["billing"]["certificate"].as_str().unwrap());
    let before = fs::read(&certificate).unwrap();
    dev.stop();
    assert!(has_whole_store(folder.path()));
    let policy = folder.path().join("policy.toml");
    let text = fs::read_to_string(&policy).unwrap() + "# mine\n";
    fs::write(&policy, &text).unwrap();

    let (dev, told) = Dev::start(folder.path(), &[]);
    assert!(decrypts(folder.path(), ciphertext));
    assert_eq!(told["clients"].as_object().unwrap().len(), 2, "{told}");
    assert_eq!(fs::read(&certificate).unwrap(), before);
    assert_eq!(fs::read_to_string(&policy).unwrap(), text);
    assert_eq!(told["made_again"], serde_json::json!([]));
    dev.stop();
}

#[test]
fn each_signal_that_ends_it_leaves_a_whole_store() {
    let folder = made();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let (mut dev, _) = Dev::start(folder.path(), &[]);
        let server = dev.children();
        assert_eq!(server.len(), 1);
        // Ctrl-C is for the whole group of processes in the foreground.
        killpg(dev.pid(), signal).unwrap();
        assert_eq!(dev.end(), Some(0), "{signal}: {}", dev.said());
        assert!(!is_running(server[0]), "{signal}");
        let log = fs::read_to_string(folder.path().join("server.log")).unwrap();
        assert!(!log.contains("ERROR"), "{log}");
        assert!(has_whole_store(folder.path()), "{signal}");
    }
}

#[test]
fn under_nohup_it_outlives_the_terminal() {
    let folder = made();
    let mut nohup = Command::new("nohup");
    nohup
        .arg(STRONGROOM)
        .args(["dev", "--dir"])
        .arg(folder.path())
        .stdin(Stdio::null());
    let (mut dev, _) = Dev::start_with(&mut nohup);
    dev.signal(Signal::SIGHUP);
    std::thread::sleep(Duration::from_millis(300));
    assert!(dev.child.try_wait().unwrap().is_none());
    dev.stop();
}

#[test]
fn killed_it_leaves_no_server_and_a_store_that_goes_on() {
    if !has_curl("killed_it_leaves_no_server_and_a_store_that_goes_on") {
        return;
    }
    let folder = made();
    let (mut dev, _) = Dev::start(folder.path(), &[]);
    let ciphertext = encrypt(folder.path());
    let server = dev.children()[0];
    dev.signal(Signal::SIGKILL);
    dev.end();
    // At once, with the same port, while the old server may still be on its way out.
    let port = fs::read_to_string(folder.path().join("address")).unwrap();
    let (_, port) = port.trim().rsplit_once(':').unwrap();
    let mut command = self::dev();
    command
        .arg("--dir")
        .arg(folder.path())
        .args(["--port", port, "--output", "json"]);
    let mut again = Dev::spawn(&mut command);
    again.line();
    wait_until("the end of the server", || !is_running(server));
    assert!(decrypts(folder.path(), &ciphertext));
    again.stop();
    assert!(has_whole_store(folder.path()));
}

#[test]
fn killed_or_stopped_while_it_makes_keys_it_leaves_no_process_and_no_half_state() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("dev");
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let mut command = dev();
        command.arg("--dir").arg(&folder).args(["--port", "0"]);
        let mut dev = Dev::spawn(&mut command);
        wait_until("the process with the token", || !dev.children().is_empty());
        wait_until("the token", || folder.join("state.new/pin").exists());
        let maker = dev.children()[0];
        dev.signal(signal);
        let code = dev.end();
        assert_eq!(
            code,
            (signal == Signal::SIGTERM).then_some(1),
            "{}",
            dev.said()
        );
        wait_until("the end of the process with the token", || {
            !is_running(maker)
        });
        assert!(!folder.join("state").exists());
    }
    // Nobody uses half a token: the next start makes another one.
    let old = fs::read(folder.join("state.new/pin")).unwrap();
    let (dev, _) = Dev::start(&folder, &[]);
    dev.stop();
    assert_ne!(fs::read(folder.join("state/pin")).unwrap(), old);
    assert!(!folder.join("state.new").exists());
}

#[test]
fn a_directory_that_is_not_its_own_is_refused_and_left_as_it_is() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = |name: &str, mode: u32| {
        let path = scratch.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let production = folder("production", 0o700);
    fs::write(production.join("strongroom.toml"), "[server]\n").unwrap();
    let shared = folder("shared", 0o777);
    let quoted = folder("it's", 0o700);
    let link = scratch.path().join("link");
    symlink(&production, &link).unwrap();
    let file = scratch.path().join("file");
    fs::write(&file, "").unwrap();
    let place = Path::new("/var/lib/strongroom/dev-test");
    let way_round = Path::new("/tmp/../etc/strongroom/dev-test");
    let back = scratch.path().join("missing/../dev");
    for (path, reason, next) in [
        (
            production.as_path(),
            "something else than a `strongroom dev`",
            "empty or not there",
        ),
        (
            &link,
            "something else than a `strongroom dev`",
            "empty or not there",
        ),
        (&shared, "lets others write", "chmod 700"),
        (&quoted, "needs quotes", "without quotes"),
        (&file, "exists", ""),
        (place, "a production appliance's", "another --dir"),
        (way_round, "a production appliance's", "another --dir"),
        (&back, "goes back", "without `..`"),
    ] {
        let before = path.exists().then(|| fs::metadata(path).unwrap().mode());
        let parent = path.parent().unwrap().exists();
        let (code, said) = refused(dev().arg("--dir").arg(path));
        assert_eq!(code, 2, "{said}");
        assert!(said.contains(reason) && said.contains(next), "{said}");
        assert_eq!(
            before,
            path.exists().then(|| fs::metadata(path).unwrap().mode())
        );
        assert_eq!(parent, path.parent().unwrap().exists());
    }
    assert_eq!(fs::read_dir(&production).unwrap().count(), 1);
    assert_eq!(fs::read_dir(&shared).unwrap().count(), 0);
}

#[test]
fn a_directory_that_others_could_have_changed_is_refused() {
    let folder = made();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o770)).unwrap();
    let (code, said) = refused(dev().arg("--dir").arg(folder.path()));
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("lets others write") && said.contains("chmod 700"),
        "{said}"
    );

    if !nix::unistd::geteuid().is_root() {
        return skip(
            "a_directory_that_others_could_have_changed_is_refused",
            "needs root",
        );
    }
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    for path in [folder.path().join("policy.toml"), folder.path().to_owned()] {
        chown(&path, Some(65_534), None).unwrap();
        let (code, said) = refused(dev().arg("--dir").arg(folder.path()));
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("of another user (uid 65534)"), "{said}");
        chown(&path, Some(0), None).unwrap();
    }
}

#[test]
fn modes_that_a_copy_lost_are_put_right() {
    let folder = made();
    let widened = Command::new("chmod")
        .args(["-R", "go+rX"])
        .arg(folder.path())
        .status();
    assert!(widened.unwrap().success());
    let (dev, _) = Dev::start(folder.path(), &[]);
    assert_private(folder.path());
    dev.stop();
}

#[test]
fn of_two_in_one_directory_the_second_is_refused() {
    let folder = made();
    let (dev, _) = Dev::start(folder.path(), &[]);
    let (code, said) = refused(self::dev().arg("--dir").arg(folder.path()));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("another `strongroom dev` runs in"), "{said}");
    dev.stop();
}

#[test]
fn a_port_in_use_is_told_before_anything_is_made() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let temporary = tempfile::tempdir().unwrap();
    let output = dev()
        .args(["--port", &port])
        .env("TMPDIR", temporary.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(&format!("127.0.0.1:{port}")), "{said}");
    assert!(
        said.contains("next: ") && said.contains("another --port"),
        "{said}"
    );
    assert!(!said.contains("making"), "{said}");
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
}

#[test]
fn without_softhsm_it_says_what_to_install() {
    let test = "without_softhsm_it_says_what_to_install";
    // In a namespace of its own, where those directories are empty.
    let hide = "for d in /usr/lib/softhsm /usr/lib/*/softhsm /usr/lib64/pkcs11; do \
                [ ! -d \"$d\" ] || mount -t tmpfs none \"$d\" || exit 77; done; exec \"$@\"";
    let output = Command::new("unshare")
        .args([
            "--mount", "sh", "-c", hide, "sh", STRONGROOM, "dev", "--port", "0",
        ])
        .stdin(Stdio::null())
        .output();
    let Ok(output) = output else {
        return skip(test, "there is no unshare");
    };
    let said = String::from_utf8(output.stderr).unwrap();
    if output.status.code() == Some(77) || said.starts_with("unshare:") {
        return skip(test, said.trim());
    }
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("apt-get install softhsm2"), "{said}");
}

#[test]
fn any_other_token_than_softhsms_is_refused() {
    let folder = made();
    let real = |module: &Path, control: &str| {
        let file = folder.path().join("control");
        fs::write(&file, control).unwrap();
        refused(
            dev()
                .arg("--dir")
                .arg(folder.path())
                .arg("--module")
                .arg(module)
                .env("PKCS11_FAULT_CONTROL", file),
        )
    };
    let (code, said) = real(&fault_module(), "manufacturer Luna\n");
    assert_eq!(code, 4, "{said}");
    assert!(
        said.contains("\"Luna\"") && said.contains("next: "),
        "{said}"
    );

    let (code, said) = real(Path::new("/dev/null"), "");
    assert_eq!(code, 4, "{said}");
    let (code, said) = real(Path::new("/does/not/exist.so"), "");
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("/does/not/exist.so"), "{said}");
}

#[test]
fn a_state_without_its_pin_is_not_made_again_over_the_keys() {
    let folder = made();
    let pin = folder.path().join("state/pin");
    let aside = folder.path().join("pin.aside");
    fs::rename(&pin, &aside).unwrap();
    let (code, said) = refused(dev().arg("--dir").arg(folder.path()));
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("has no PIN any more") && said.contains("next: "),
        "{said}"
    );
    fs::rename(&aside, &pin).unwrap();
    assert!(has_whole_store(folder.path()));
}

/// Names of the files of certificates that this start made again.
fn made_again(told: &Value) -> Vec<&str> {
    let files = told["made_again"].as_array().unwrap().iter();
    files
        .map(|file| file.as_str().unwrap().rsplit('/').next().unwrap())
        .collect()
}

#[test]
fn certificates_that_are_missing_or_mixed_up_are_made_again() {
    let folder = made();
    let pki = |name: &str| folder.path().join("pki").join(name);
    let ca = fs::read(pki("ca.pem")).unwrap();
    let client = fs::read(pki("client-vault.pem")).unwrap();

    // The client's key is gone; the server's is none.
    fs::remove_file(pki("client-vault.key")).unwrap();
    fs::write(pki("server.key"), "no key").unwrap();
    let (dev, told) = Dev::start(folder.path(), &["--client", "billing"]);
    assert_eq!(made_again(&told), ["server.pem", "client-vault.pem"]);
    assert!(seals(folder.path(), &[]));
    dev.stop();
    assert_eq!(fs::read(pki("ca.pem")).unwrap(), ca);
    assert_ne!(fs::read(pki("client-vault.pem")).unwrap(), client);

    // Two keys changed places; a certificate is somebody else's.
    fs::rename(pki("client-vault.key"), pki("aside")).unwrap();
    fs::rename(pki("client-billing.key"), pki("client-vault.key")).unwrap();
    fs::rename(pki("aside"), pki("client-billing.key")).unwrap();
    fs::copy(pki("client-billing.pem"), pki("server.pem")).unwrap();
    let (dev, told) = Dev::start(folder.path(), &[]);
    assert_eq!(
        made_again(&told),
        ["server.pem", "client-vault.pem", "client-billing.pem"]
    );
    assert!(seals(folder.path(), &[]));
    dev.stop();

    // Without the CA's key nothing can be signed: another CA, and all that is below it.
    fs::remove_file(pki("ca.key")).unwrap();
    let (dev, told) = Dev::start(folder.path(), &[]);
    assert_eq!(
        made_again(&told),
        [
            "ca.pem",
            "server.pem",
            "client-vault.pem",
            "client-billing.pem"
        ]
    );
    assert!(seals(folder.path(), &[]));
    dev.stop();
    assert_ne!(fs::read(pki("ca.pem")).unwrap(), ca);
    assert_private(folder.path());

    let (dev, told) = Dev::start(folder.path(), &[]);
    assert_eq!(made_again(&told), Vec::<&str>::new());
    dev.stop();
}

/// Seals and unseals as a Vault does, with what `env.sh` says, in that environment.
fn seals(folder: &Path, env: &[(&str, &Path)]) -> bool {
    let line = format!(
        ". '{}/env.sh'; exec '{STRONGROOM}' client seal vault-unseal",
        folder.display()
    );
    let mut command = Command::new("sh");
    command.args(["-ec", &line]);
    let output = command.envs(env.iter().copied()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    true
}

#[test]
fn certificates_that_ended_are_made_again() {
    let folder = made();
    let clock = folder.path().join("clock");
    // More than any certificate of the first start lasts.
    let later: i64 = 3 * 366 * 24 * 60 * 60;
    fs::write(&clock, later.to_ne_bytes()).unwrap();
    let library = support::built("libstrongroom_clock.so");
    let env = [
        ("LD_PRELOAD", library.as_path()),
        ("STRONGROOM_CLOCK", clock.as_path()),
    ];
    let mut command = dev();
    command.arg("--dir").arg(folder.path()).envs(env);
    let (dev, told) = Dev::start_with(&mut command);
    let all = ["ca.pem", "server.pem", "client-vault.pem"];
    assert_eq!(made_again(&told), all);
    assert!(seals(folder.path(), &env));
    dev.stop();
}

#[test]
fn as_a_service_it_speaks_for_its_server() {
    let folder = made();
    let socket = folder.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = dev();
    command
        .arg("--dir")
        .arg(folder.path())
        .env("NOTIFY_SOCKET", &socket)
        .env("WATCHDOG_USEC", "30000000");
    let (dev, _) = Dev::start_with(&mut command);
    let server = fs::read(format!("/proc/{}/environ", dev.children()[0])).unwrap();
    let server = String::from_utf8_lossy(&server).into_owned();
    assert!(
        !server.contains("NOTIFY_SOCKET") && !server.contains("WATCHDOG"),
        "{server}"
    );
    let said = || {
        let mut bytes = [0; 512];
        let length = manager.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    assert_eq!(said().trim(), "READY=1");
    dev.stop();
    assert_eq!(said().trim(), "STOPPING=1");
}

/// The IPv4 addresses that something listens on at that port: `/proc/net/tcp`.
fn listeners(port: u16) -> Vec<Ipv4Addr> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().skip(1).filter_map(|row| {
        let words: Vec<&str> = row.split_whitespace().collect();
        let (address, at) = words[1].split_once(':')?;
        let listens = words[3] == "0A" && u16::from_str_radix(at, 16).ok()? == port;
        let address = u32::from_str_radix(address, 16).ok()?;
        listens.then(|| Ipv4Addr::from(address.to_ne_bytes()))
    });
    rows.collect()
}

fn port_of(told: &Value) -> u16 {
    let address = told["address"].as_str().unwrap();
    address.rsplit_once(':').unwrap().1.parse().unwrap()
}

#[test]
fn it_listens_on_loopback_unless_it_is_told_otherwise() {
    let folder = made();
    let (dev, told) = Dev::start(folder.path(), &[]);
    assert_eq!(listeners(port_of(&told)), [Ipv4Addr::LOCALHOST]);
    assert!(!told["warning"].as_str().unwrap().contains("OTHER MACHINES"));
    dev.stop();

    let arguments = ["--listen", "0.0.0.0", "--host", "Strongroom.test"];
    let (dev, told) = Dev::start(folder.path(), &arguments);
    let port = port_of(&told);
    assert_eq!(listeners(port), [Ipv4Addr::UNSPECIFIED]);
    assert!(
        told["warning"]
            .as_str()
            .unwrap()
            .contains("OTHER MACHINES CAN CONNECT")
    );
    assert_eq!(told["address"], format!("https://strongroom.test:{port}"));
    if has_curl("it_listens_on_loopback_unless_it_is_told_otherwise") {
        let resolve = format!("curl -sS --resolve strongroom.test:{port}:127.0.0.1 ");
        let request = told["first_request"].as_str().unwrap();
        let answer = paste(&request.replacen("curl ", &resolve, 1));
        assert!(answer.contains("vault:v1:"), "{answer}");
    }
    dev.stop();
}

#[test]
fn names_that_nothing_can_have_are_refused_before_anything_is_made() {
    for (option, value) in [
        ("--key", "a/b"),
        ("--client", "../x"),
        ("--client", "*"),
        ("--host", "a b"),
        ("--listen", "localhost"),
        ("--port", "65536"),
    ] {
        let output = dev().args([option, value]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{option} {value}");
    }
}

#[test]
fn a_server_that_dies_ends_it_with_the_server_s_own_words() {
    let folder = made();
    let (mut dev, _) = Dev::start(folder.path(), &[]);
    kill(dev.children()[0], Signal::SIGKILL).unwrap();
    assert_eq!(dev.end(), Some(1));
    assert!(
        dev.said().contains("the server ended with signal: 9"),
        "{}",
        dev.said()
    );

    fs::write(
        folder.path().join("policy.toml"),
        "[[rule]]\nidentities = 7\n",
    )
    .unwrap();
    let (code, said) = refused(self::dev().arg("--dir").arg(folder.path()));
    assert_eq!(code, 3, "{said}");
    assert!(
        said.starts_with("error: ") && said.contains("policy.toml"),
        "{said}"
    );
}
