//! The console: status whenever it changes, and the offer of a ceremony.

use std::io::{IsTerminal as _, Read as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::birth;
use super::ceremony::{CEREMONY_DIRECTORY, finish};
use super::medium::Medium;
use super::status::Status;
use crate::cli::exit::{Exit, Failure};

const REFRESH_INTERVAL: Duration = Duration::from_secs(5);

/// What has to be typed: a line that nobody types by chance.
const ACCEPT_WORD: &str = "accept";

/// Carries `strongroom audit accept` out, as the server's user and with its PIN.
const ACCEPT_UNIT: &str = "strongroom-audit-accept.service";

/// What somebody at the console can have done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Offer {
    /// The ceremony of the medium that is there.
    Ceremony,
    /// To go on with an audit log that is not as the token knows it.
    Accept,
}

impl Offer {
    fn now(status: &Status) -> Option<Self> {
        if status.log_refused {
            Some(Self::Accept)
        } else {
            (!status.born && Medium::is_there()).then_some(Self::Ceremony)
        }
    }

    fn show(self) {
        match self {
            Self::Ceremony => println!(
                "strongroom: a medium is there. Press Enter to hold the ceremony of its plan.toml"
            ),
            Self::Accept => println!(
                "strongroom: the audit log is not as the token knows it: lines may be lost or forged. {}\n\
                 strongroom: to go on with the log as it is type {ACCEPT_WORD} and press Enter",
                why_refused().unwrap_or_default()
            ),
        }
    }

    fn take_up(self, line: &str) -> Result<(), Failure> {
        match self {
            Self::Ceremony => hold(),
            Self::Accept if line.trim() == ACCEPT_WORD => {
                accept_log();
                Ok(())
            }
            Self::Accept => Ok(()),
        }
    }
}

/// Never returns but with an error: the console is there as long as the machine runs.
pub(super) fn run() -> Result<(), Failure> {
    let mut shown = Status::default();
    let mut offered = None;
    loop {
        let status = Status::now();
        let offer = Offer::now(&status);
        if status != shown {
            println!("{status}");
            shown = status;
        }
        if offer != offered
            && let Some(offer) = offer
        {
            offer.show();
        }
        offered = offer;
        match offer.filter(|_| std::io::stdin().is_terminal()) {
            Some(offer) => {
                if let Some(line) = line_soon() {
                    offer.take_up(&line)?;
                }
            }
            None => std::thread::sleep(REFRESH_INTERVAL),
        }
    }
}

/// What is typed, if Enter comes soon.
fn line_soon() -> Option<String> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd as _;
    let stdin = std::io::stdin();
    let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    let soon = PollTimeout::try_from(REFRESH_INTERVAL).unwrap_or(PollTimeout::ZERO);
    if poll(&mut fds, soon) != Ok(1) {
        return None;
    }
    let mut line = [0; 256];
    let read = stdin.lock().read(&mut line).ok()?;
    (read > 0).then(|| String::from_utf8_lossy(&line[..read]).into_owned())
}

/// What the server said last.
fn why_refused() -> Option<String> {
    let output = Command::new("journalctl")
        .args([
            "--unit=strongroom.service",
            "--boot",
            "--output=cat",
            "--lines=20",
        ])
        .output()
        .ok()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let error = said
        .lines()
        .rev()
        .find_map(|line| line.split_once("error: "));
    error.map(|(_, why)| why.escape_debug().collect())
}

fn accept_log() {
    let done = Command::new("systemctl")
        .args(["--no-ask-password", "start", ACCEPT_UNIT])
        .status();
    if done.is_ok_and(|status| status.success()) {
        println!(
            "strongroom: the audit log goes on as it is; what was wrong with it is written there"
        );
        start_server();
    } else {
        println!("strongroom: the audit log can't be gone on with; the journal says why");
    }
}

/// With the people at the console, each step asking.
fn hold() -> Result<(), Failure> {
    let medium = match Medium::mount() {
        Ok(Some(medium)) => medium,
        Ok(None) => return Ok(()),
        Err(failure) => {
            println!("strongroom: the ceremony waits: {}", failure.message());
            return Ok(());
        }
    };
    // Held by the medium's answers while this waited for the medium.
    if birth::is_born() {
        return Ok(());
    }
    let program = std::env::current_exe()
        .map_err(|error| Failure::file(Path::new("/proc/self/exe"), &error))?;
    birth::begin()?;
    let status = Command::new(program)
        .args(["ceremony", "run"])
        .arg(medium.path("plan.toml"))
        .args(["--dir", CEREMONY_DIRECTORY])
        .status()
        .map_err(|error| {
            Failure::new(
                Exit::Failed,
                format!("the ceremony does not start: {error}"),
            )
        })?;
    if status.success() {
        finish(&medium)?;
    }
    Ok(())
}

/// The units' conditions hold from now on.
pub(super) fn start_server() {
    let started = Command::new("systemctl")
        .args([
            "start",
            "--no-block",
            "strongroom.socket",
            "strongroom.service",
            "strongroom-logs.service",
        ])
        .status();
    if !started.is_ok_and(|status| status.success()) {
        println!("strongroom: the server does not start; the machine must be started again");
    }
}
