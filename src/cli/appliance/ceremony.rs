//! The ceremony without a keyboard: the plan, its signatures and the answers come on a medium, and
//! the record goes back onto it.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::unistd::User;
use strongroom_ceremony::run::handover;
use strongroom_core::atomic::{self, Access};
use strongroom_core::files;

use super::birth;
use super::medium::Medium;
use super::status::CONFIGURATION_FILE;
use crate::cli::exit::{Exit, Failure};

/// The ceremony's own directory.
pub(super) const CEREMONY_DIRECTORY: &str = "/var/lib/strongroom-ceremony";

const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The exit code of a ceremony that waits for something from outside.
const WAITING_EXIT_CODE: i32 = 10;

/// Returns when the appliance has its keys, or when the medium asks for something that can't be
/// done.
pub(super) fn run() -> Result<(), Failure> {
    let mut told = Told::default();
    loop {
        match attempt(&mut told)? {
            Outcome::Done => return Ok(()),
            Outcome::Nothing => {}
            Outcome::Waiting(text) => told.waits(text),
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// What was told last: nothing is told again with each look at the medium.
#[derive(Default)]
struct Told {
    wait: String,
    holding: bool,
}

impl Told {
    fn waits(&mut self, text: String) {
        if self.wait != text {
            println!("strongroom: the ceremony waits: {text}");
            self.wait = text;
            self.holding = false;
        }
    }

    fn holds(&mut self) {
        if !self.holding {
            println!("strongroom: holding the ceremony of the medium");
            self.holding = true;
        }
    }
}

enum Outcome {
    Done,
    Nothing,
    Waiting(String),
}

fn attempt(told: &mut Told) -> Result<Outcome, Failure> {
    let medium = match Medium::mount() {
        Ok(Some(medium)) => medium,
        Ok(None) => return Ok(Outcome::Nothing),
        // Another one may come.
        Err(failure) => return Ok(Outcome::Waiting(failure.message().to_owned())),
    };
    // Held at the console meanwhile.
    if birth::is_born() {
        return Ok(Outcome::Done);
    }
    let answers = medium.path("answers");
    // Without answers there is a plan for people at the console.
    if !answers.exists() {
        return Ok(Outcome::Nothing);
    }
    let request = medium.path("certificate-request.pem");
    if request.exists() && !answers.join("certificate.pem").exists() {
        return Ok(Outcome::Waiting(
            "certificate-request.pem is on the medium; put the certificate there as answers/certificate.pem"
                .to_owned(),
        ));
    }
    told.holds();
    let program = std::env::current_exe()
        .map_err(|error| Failure::file(Path::new("/proc/self/exe"), &error))?;
    birth::begin()?;
    let output = Command::new(program)
        .args(["ceremony", "run"])
        .arg(medium.path("plan.toml"))
        .args(["--dir", CEREMONY_DIRECTORY, "--answers"])
        .arg(&answers)
        .output()
        .map_err(|error| {
            Failure::new(
                Exit::Failed,
                format!("the ceremony does not start: {error}"),
            )
        })?;
    let errors = printable(&String::from_utf8_lossy(&output.stderr));
    let last = errors.trim().lines().last().unwrap_or_default().to_owned();
    match output.status.code() {
        Some(0) => {
            finish(&medium)?;
            Ok(Outcome::Done)
        }
        Some(WAITING_EXIT_CODE) => {
            give(
                Path::new(CEREMONY_DIRECTORY),
                "certificate-request.pem",
                &request,
            )?;
            Ok(Outcome::Waiting(last))
        }
        _ => Err(Failure::new(
            Exit::Failed,
            format!("the ceremony failed: {}", errors.trim()),
        )
        .next("put the medium right; the ceremony goes on when the machine starts again")),
    }
}

/// What the medium holds may stand in an error, and the console is a terminal.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() && char != '\n' {
            out.extend(char.escape_default());
        } else {
            out.push(char);
        }
    }
    out
}

/// What follows a closed ceremony. Cut off in here, it is done again when the machine starts.
pub(super) fn finish(medium: &Medium) -> Result<(), Failure> {
    give_record(medium)?;
    hand_over(medium)?;
    birth::end()?;
    super::console::start_server();
    println!("strongroom: the ceremony is closed; its record is on the medium");
    Ok(())
}

/// What the ceremony made for people goes back with the medium.
fn give_record(medium: &Medium) -> Result<(), Failure> {
    let record = medium.path("record");
    let shares = record.join("shares");
    fs::create_dir_all(&shares).map_err(|error| Failure::file(&shares, &error))?;
    let folder = Path::new(CEREMONY_DIRECTORY);
    for name in ["transcript.jsonl", "report.html", "audit-key.pem"] {
        give(folder, name, &record.join(name))?;
    }
    for entry in read_dir(&folder.join("shares"))? {
        if let Some(name) = entry.file_name().and_then(|name| name.to_str()) {
            give(&folder.join("shares"), name, &shares.join(name))?;
        }
    }
    Ok(())
}

fn give(folder: &Path, name: &str, to: &Path) -> Result<(), Failure> {
    let from = folder.join(name);
    if !from.exists() {
        return Ok(());
    }
    fs::copy(&from, to)
        .and_then(|_| fs::File::open(to)?.sync_all())
        .map_err(|error| Failure::file(to, &error))
}

/// The server's user gets what is its own, and may read its configuration.
fn hand_over(medium: &Medium) -> Result<(), Failure> {
    let user = User::from_name("strongroom")
        .ok()
        .flatten()
        .ok_or_else(|| Failure::new(Exit::Failed, "there is no user strongroom"))?;
    // On the image a link leads to the state.
    let folder = fs::canonicalize(CONFIGURATION_FILE)
        .map_err(|error| Failure::file(Path::new(CONFIGURATION_FILE), &error))?;
    let folder = folder.parent().unwrap_or(Path::new("/var/etc/strongroom"));
    for name in ["policy.toml", "logs/url", "logs/ca.pem"] {
        take(&medium.path(name), &folder.join(name))?;
    }
    let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
    let give = |path: &Path, owner, modes| {
        handover::give(path, owner, gid, modes).map_err(|error| Failure::file(path, &error))
    };
    give(Path::new("/var/lib/strongroom"), uid, None)?;
    give(folder, 0, Some((0o750, 0o640)))
}

/// A file of the medium, if it is there.
fn take(from: &Path, to: &Path) -> Result<(), Failure> {
    let bytes = match files::read(from, files::MAX_GENERATED_LIST) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Failure::file(from, &error)),
    };
    let failed = |error| Failure::file(to, &error);
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    atomic::replace(to, &bytes, Access::Mode(0o640)).map_err(failed)
}

fn read_dir(path: &Path) -> Result<Vec<std::path::PathBuf>, Failure> {
    fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(|error| Failure::file(path, &error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_file_of_the_medium_is_taken_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("etc/policy"));
        take(&from, &to).unwrap();
        assert!(!to.exists());
        fs::write(&from, "one").unwrap();
        take(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"one");
        let file = fs::File::create(&from).unwrap();
        file.set_len(files::MAX_GENERATED_LIST + 1).unwrap();
        let failure = take(&from, &to).unwrap_err();
        assert!(failure.message().contains("larger than"), "{failure:?}");
        assert_eq!(fs::read(&to).unwrap(), b"one");
    }

    #[test]
    fn nothing_of_a_medium_moves_the_console() {
        assert_eq!(
            printable("line 3: \x1b[2J\u{9b}1m\rdone\n\u{e4}"),
            "line 3: \\u{1b}[2J\\u{9b}1m\\rdone\n\u{e4}"
        );
    }
}
