//! Through a real terminal of 80 by 24: people type, one of them wrongly, and the power goes once.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use memchr::memmem::Finder;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use strongroom_ceremony::Mode;

use crate::rig::{People, Room};
use crate::support::{STRONGROOM, skip};

const PATIENCE: Duration = Duration::from_mins(1);

/// A moment at which both PINs are in memory: what shows that they would be found.
const KNOWN: &str = "while the PINs are known";

/// What a prompt ends with.
const PROMPTS: [&str; 7] = [
    "yes, or stop to end here> ",
    "path of the file, or later> ",
    "number or name, or stop> ",
    "key or words> ",
    "without echo> ",
    "Enter for the next step> ",
    "Enter to leave> ",
];

/// A terminal with one program in it; its own tmux server.
struct Terminal {
    socket: PathBuf,
    raw: PathBuf,
    /// What of the raw output was answered already.
    answered: usize,
}

impl Terminal {
    fn start(room: &Room, command: &str) -> Self {
        let terminal = Self {
            socket: room.path().join("tmux"),
            raw: room.path().join("raw"),
            answered: 0,
        };
        let made = terminal.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            "80",
            "-y",
            "24",
            "-s",
            "c",
            "cat",
        ]);
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        terminal.tmux(&["set-option", "-g", "remain-on-exit", "on"]);
        terminal.tmux(&["set-option", "-g", "history-limit", "50000"]);
        terminal.tmux(&[
            "pipe-pane",
            "-o",
            &format!("cat >> {}", terminal.raw.display()),
        ]);
        terminal.respawn(command);
        terminal
    }

    fn tmux(&self, words: &[&str]) -> Output {
        Command::new("tmux")
            .arg("-S")
            .arg(&self.socket)
            .args(words)
            .output()
            .unwrap()
    }

    fn respawn(&self, command: &str) {
        let again = self.tmux(&["respawn-pane", "-k", "-t", "c", command]);
        assert!(
            again.status.success(),
            "{}",
            String::from_utf8_lossy(&again.stderr)
        );
        self.tmux(&["pipe-pane"]);
        self.tmux(&["pipe-pane", "-o", &format!("cat >> {}", self.raw.display())]);
    }

    fn pid(&self) -> u32 {
        let pid = self.tmux(&["display-message", "-p", "-t", "c", "#{pane_pid}"]);
        String::from_utf8_lossy(&pid.stdout).trim().parse().unwrap()
    }

    fn has_ended(&self) -> bool {
        let dead = self.tmux(&["display-message", "-p", "-t", "c", "#{pane_dead}"]);
        dead.stdout.trim_ascii() == b"1"
    }

    fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.raw).unwrap_or_default()).into_owned()
    }

    /// Waits for the next prompt: the text since the last answer, and the prompt.
    fn prompt(&mut self) -> (String, &'static str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let all = self.output();
            let new = all.get(self.answered..).unwrap_or_default();
            let found = PROMPTS
                .iter()
                .filter_map(|prompt| new.find(prompt).map(|at| (at, *prompt)))
                .min();
            if let Some((at, prompt)) = found {
                self.answered += at + prompt.len();
                return (new[..at].replace('\r', ""), prompt);
            }
            assert!(
                Instant::now() < deadline,
                "no prompt comes:\n{new}\n{}",
                self.screen()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn answer(&self, text: &str) {
        if !text.is_empty() {
            self.tmux(&["send-keys", "-t", "c", "-l", text]);
        }
        self.tmux(&["send-keys", "-t", "c", "Enter"]);
    }

    /// All that can be scrolled back to.
    fn scroll_back(&self) -> String {
        let text = self.tmux(&["capture-pane", "-p", "-J", "-t", "c", "-S", "-", "-E", "-"]);
        String::from_utf8_lossy(&text.stdout).into_owned()
    }

    fn screen(&self) -> String {
        let text = self.tmux(&["capture-pane", "-p", "-t", "c"]);
        String::from_utf8_lossy(&text.stdout).into_owned()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "one story")]
fn people_at_a_terminal_get_through_and_nothing_secret_stays() {
    if Command::new("tmux").arg("-V").output().is_err() {
        skip(
            "people_at_a_terminal_get_through_and_nothing_secret_stays",
            "tmux is not installed",
        );
        return;
    }
    let credential = has_systemd_creds();
    let room = if credential {
        Room::with_credential()
    } else {
        skip(
            "the run-time PIN as a systemd credential",
            "systemd-creds is not installed, or this is not root",
        );
        Room::new()
    };
    let command = format!(
        "exec env -u STRONGROOM_CONFIG {} {STRONGROOM} ceremony run {} --dir {} --paper",
        room.shell_env(),
        room.plan_path().display(),
        room.dir().display()
    );
    let mut terminal = Terminal::start(&room, &command);
    let mut witness = Witness::default();
    let (mut wrong_passphrase, mut cut) = (false, false);
    let mut custodians = vec!["Erin", "1", "2", "Alice"];
    loop {
        let (text, prompt) = terminal.prompt();
        let pid = terminal.pid();
        witness.look(pid);
        match prompt {
            "yes, or stop to end here> " if text.contains("Shall the PINs be made?") => {
                witness.dump(pid, "before the pins");
                terminal.answer("yes");
            }
            "yes, or stop to end here> " if text.contains("Shall the keys be made?") => {
                witness.dump(pid, KNOWN);
                terminal.answer("yes");
            }
            "yes, or stop to end here> " if text.contains("Shall it be tried?") && !cut => {
                cut = true;
                kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
                std::thread::sleep(Duration::from_millis(200));
                terminal.respawn(&command);
            }
            "yes, or stop to end here> " => terminal.answer("yes"),
            "number or name, or stop> " => terminal.answer(custodians.pop().unwrap()),
            "Enter for the next step> " => terminal.answer(""),
            "key or words> " => terminal.answer("key"),
            "path of the file, or later> " if text.contains("client certificates") => {
                terminal.answer(room.pki.ca().to_str().unwrap());
            }
            "path of the file, or later> " if text.contains("certificate") => {
                terminal.answer(room.sign_certificate().to_str().unwrap());
            }
            "path of the file, or later> " => {
                let name = People::names()
                    .find(|name| text.contains(&format!("{name}: which file is your key?")))
                    .unwrap_or_else(|| panic!("{text}"));
                terminal.answer(People::all().file(name).to_str().unwrap());
            }
            "without echo> " => {
                let name = People::names()
                    .find(|name| text.contains(&format!("{name}: the passphrase of")))
                    .unwrap_or_else(|| panic!("{text}"));
                if wrong_passphrase {
                    terminal.answer(&People::passphrase(name));
                } else {
                    wrong_passphrase = true;
                    terminal.answer("a wrong long passphrase");
                }
            }
            _ => {
                assert!(text.contains("complete and verifies"), "{text}");
                // The token's threads have gone, and what they knew with them.
                std::thread::sleep(Duration::from_millis(300));
                witness.dump(pid, "at the end");
                terminal.answer("");
                break;
            }
        }
    }
    let deadline = Instant::now() + PATIENCE;
    while !terminal.has_ended() {
        let state = || fs::read_to_string(format!("/proc/{}/status", terminal.pid()));
        assert!(
            Instant::now() < deadline,
            "{}\n{:?}",
            terminal.screen(),
            state()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    room.verify();
    assert!(cut && wrong_passphrase);
    let raw = terminal.output();
    assert!(raw.contains("!! "), "the wrong passphrase was not refused");
    assert!(raw.contains("are not in this machine's memory"));
    plain(&raw);

    let pins = room.recover(Mode::Ceremony, &["Alice", "Bob", "Carol"]);
    let scroll_back = terminal.scroll_back();
    for (what, secret) in [("the SO PIN", &pins.so), ("the user PIN", &pins.user)] {
        let text = str::from_utf8(secret).unwrap();
        assert!(
            !raw.contains(text) && !scroll_back.contains(text),
            "{what} was on the screen"
        );
        witness.never(what, secret);
    }
    if credential {
        let opened = room
            .systemd_creds()
            .args(["decrypt", "--name=hsm-pin"])
            .arg(room.appliance().join("hsm-pin.cred"))
            .arg("-")
            .output()
            .unwrap();
        assert_eq!(opened.stdout, *pins.user);
    }
    for name in People::names() {
        let passphrase = People::passphrase(name);
        assert!(
            !raw.contains(&passphrase) && !scroll_back.contains(&passphrase),
            "{name}'s passphrase"
        );
        witness.never_in_proc("a passphrase", passphrase.as_bytes());
    }
    // The pages are there to be printed, for their owners only.
    for name in crate::rig::CUSTODIANS {
        let page = crate::rig::files(&room.dir().join("pages"))
            .into_iter()
            .find(|path| {
                path.file_name()
                    .unwrap()
                    .to_string_lossy()
                    .starts_with(name)
            })
            .unwrap();
        assert_eq!(
            fs::metadata(&page).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(fs::read_to_string(page).unwrap().contains(name));
    }
}

/// Whether a credential can be encrypted here with a host key of one's own.
fn has_systemd_creds() -> bool {
    let folder = tempfile::tempdir().unwrap();
    Command::new("systemd-creds")
        .args(["encrypt", "--name=try", "--with-key=host", "/dev/null", "-"])
        .env("SYSTEMD_CREDENTIAL_SECRET", folder.path().join("secret"))
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Printable ASCII, lines of at most 80 columns, and no control sequence but the one that clears.
fn plain(raw: &str) {
    let text = raw.replace("\x1b[H\x1b[2J", "\n");
    for line in text.lines() {
        // The spinner of long work redraws its own line.
        let drawn = line.contains("\x1b[");
        let bare: String = line.chars().filter(|letter| !letter.is_control()).collect();
        assert!(bare.is_ascii(), "{line:?}");
        // A path can be longer than any line; prompts are followed by what was typed.
        assert!(
            drawn || bare.len() <= 80 || bare.contains('/') || bare.contains('>'),
            "{line:?}"
        );
    }
}

/// What could be seen of the process from outside.
#[derive(Default)]
struct Witness {
    proc: Vec<Vec<u8>>,
    dumps: Vec<(&'static str, Vec<u8>)>,
}

impl Witness {
    fn look(&mut self, pid: u32) {
        for file in ["cmdline", "environ"] {
            self.proc
                .push(fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default());
        }
    }

    /// All of its memory, as a core dump would have it.
    fn dump(&mut self, pid: u32, when: &'static str) {
        let memory = match File::open(format!("/proc/{pid}/mem")) {
            Ok(memory) => memory,
            Err(error) => {
                skip(
                    "the memory of a ceremony's process",
                    &format!("{error}; run it as root"),
                );
                return;
            }
        };
        let mut all = Vec::new();
        for (from, to) in mappings(pid) {
            let mut buffer = vec![0; usize::try_from(to - from).unwrap()];
            // A few of the kernel's own can't be read.
            if let Ok(length) = memory.read_at(&mut buffer, from) {
                all.extend_from_slice(&buffer[..length]);
            }
        }
        assert!(
            all.len() > 4 << 20,
            "only {} bytes could be read",
            all.len()
        );
        self.dumps.push((when, all));
    }

    fn never(&self, what: &str, secret: &[u8]) {
        self.never_in_proc(what, secret);
        let half = &secret[..secret.len() / 2];
        for (when, dump) in &self.dumps {
            if *when == KNOWN {
                assert!(
                    Finder::new(secret).find(dump).is_some(),
                    "the search finds nothing, not even what is there"
                );
                continue;
            }
            assert!(
                Finder::new(secret).find(dump).is_none(),
                "{what} is in memory {when}"
            );
            assert!(
                Finder::new(half).find(dump).is_none(),
                "half of {what} is in memory {when}"
            );
        }
    }

    fn never_in_proc(&self, what: &str, secret: &[u8]) {
        for file in &self.proc {
            assert!(
                Finder::new(secret).find(file).is_none(),
                "{what} is in /proc"
            );
        }
    }
}

/// Mappings that have pages of their own.
fn mappings(pid: u32) -> Vec<(u64, u64)> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut mappings = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        let range = line
            .split_once(' ')
            .and_then(|(range, _)| range.split_once('-'));
        if let Some((from, to)) = range
            && let (Ok(from), Ok(to)) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16))
        {
            current = Some((from, to));
        } else if line.starts_with("Anonymous:") && !line.ends_with(" 0 kB") {
            mappings.extend(current.take());
        }
    }
    mappings
}
