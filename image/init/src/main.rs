//! `/init` of the bootable image. The kernel runs it first; it becomes systemd if, and only if,
//! nothing was added to what was signed.
//!
//! systemd-stub appends to the signed command line what the firmware's SMBIOS strings say, and puts
//! what lies beside the kernel image on the boot partition into the initrd, signed or not. systemd
//! would obey the one and take in the other. The end of this program is a kernel panic, after which
//! the machine starts again.

mod added;

use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

const MANAGER: &str = "/usr/lib/systemd/systemd";

/// The command line as it was signed. Made by the build, beside this program.
const SIGNED: &str = "/etc/cmdline";

/// Where systemd-stub puts what it adds to the initrd.
const EXTRA: &str = "/.extra";

fn main() -> ExitCode {
    // The kernel could be told to run it as a helper; it is for one place only.
    if std::process::id() != 1 {
        return ExitCode::FAILURE;
    }
    let why = match refusal() {
        Ok(None) => {
            let error = Command::new(MANAGER)
                .env_clear()
                .env("TERM", "linux")
                .exec();
            format!("{MANAGER} does not start: {error}")
        }
        Ok(Some(why)) => why,
        Err(error) => format!("what was added can't be told: {error}"),
    };
    println!("\nstrongroom: NOT STARTED: {why}");
    ExitCode::FAILURE
}

/// Why nothing may start; `None` if all is as it was signed.
fn refusal() -> io::Result<Option<String>> {
    let signed = fs::read_to_string(SIGNED)?;
    let given = command_line()?;
    if let Some(why) = added::to_command_line(&signed, &given) {
        return Ok(Some(why));
    }
    added::to_initrd(Path::new(EXTRA))
}

fn command_line() -> io::Result<Vec<u8>> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>)?;
    let given = fs::read("/proc/cmdline");
    // systemd mounts its own.
    umount2("/proc", MntFlags::empty())?;
    given
}
