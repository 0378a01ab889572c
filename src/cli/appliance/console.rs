//! The console: status whenever it changes, and the offer of a ceremony.

use std::io::{IsTerminal as _, Read as _};
use std::process::Command;
use std::time::Duration;

use super::ceremony::{FOLDER, hand_over};
use super::medium::Medium;
use super::status::Status;
use crate::cli::exit::{Exit, Failure};

const LOOK: Duration = Duration::from_secs(5);

/// Never returns but with an error: the console is there as long as the machine runs.
pub(super) fn run() -> Result<(), Failure> {
    let mut shown = Status::default();
    let mut offered = false;
    loop {
        let status = Status::now();
        let offer = !status.born && Medium::is_there();
        if status != shown {
            println!("{status}");
            shown = status;
        }
        if offer && !offered {
            println!(
                "strongroom: a medium is there. Press Enter to hold the ceremony of its plan.toml"
            );
        }
        offered = offer;
        if offer && std::io::stdin().is_terminal() && pressed_enter() {
            hold()?;
        } else {
            std::thread::sleep(LOOK);
        }
    }
}

/// Whether Enter comes soon.
fn pressed_enter() -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd as _;
    let stdin = std::io::stdin();
    let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    let soon = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO);
    if poll(&mut fds, soon) != Ok(1) {
        return false;
    }
    let mut line = [0; 256];
    stdin.lock().read(&mut line).is_ok_and(|read| read > 0)
}

/// With the people at the console, each step asking.
fn hold() -> Result<(), Failure> {
    let Some(medium) = Medium::mount()? else {
        return Ok(());
    };
    let program = std::env::current_exe()
        .map_err(|error| Failure::file(std::path::Path::new("/proc/self/exe"), &error))?;
    let status = Command::new(program)
        .args(["ceremony", "run"])
        .arg(medium.path("plan.toml"))
        .args(["--dir", FOLDER])
        .status()
        .map_err(|error| {
            Failure::new(
                Exit::Failed,
                format!("the ceremony does not start: {error}"),
            )
        })?;
    if status.success() {
        hand_over(&medium)?;
        start_server();
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
