//! Updates by a medium: what its directory `update` holds is checked, put into the other slot by
//! systemd-sysupdate, and started on trial.

use std::cmp::Ordering;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use strongroom_core::files;

use super::birth;
use super::kernel_image::KernelImage;
use super::medium::Medium;
use super::signature;
use super::slots::{Installed, installed};
use super::version::{compare, minimum, running};
use crate::cli::exit::{Exit, Failure};

/// From here systemd-sysupdate takes the kernel image: the bytes that were checked, not what the
/// medium gives when it is read again. On the disk, since memory is short beside a server that has
/// all of its own locked.
const CHECKED_COPY: &str = "/var/lib/strongroom-update";

/// Bytes of a kernel image at most: two must fit the boot partition.
const MAX_KERNEL_IMAGE_BYTES: u64 = 44 << 20;

const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Returns when a new version is installed and the machine about to start again.
pub(super) fn run() -> Result<(), Failure> {
    let running = running()?;
    for slot in installed()? {
        // At its own last start it is on trial yet.
        if slot.given_up() && slot.version != running {
            println!(
                "strongroom: version {} did not come up healthy and was given up; this is {running}",
                slot.version
            );
        }
    }
    // Each medium is looked at once, when it is put in or there at the start.
    let mut looked = false;
    // What was told last: each thing is told once.
    let mut told = String::new();
    loop {
        if !Medium::is_there() {
            looked = false;
            told.clear();
        } else if !looked {
            looked = match attempt(&running) {
                Ok(Outcome::Installed) => return Ok(()),
                Ok(Outcome::Nothing) => true,
                Ok(Outcome::NotYet) => false,
                Ok(Outcome::Unreadable(why)) => {
                    if told != why {
                        println!("strongroom: an update would wait: {why}");
                        told = why;
                    }
                    false
                }
                Err(failure) => {
                    println!("strongroom: the update is refused: {}", failure.message());
                    true
                }
            };
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

enum Outcome {
    Nothing,
    /// The trial of what runs, or the medium's ceremony, comes first.
    NotYet,
    /// What is on the medium is not known yet.
    Unreadable(String),
    Installed,
}

fn attempt(running: &str) -> Result<Outcome, Failure> {
    let slots = installed()?;
    let on_trial = |slot: &Installed| slot.version == running && slot.on_trial();
    if slots.iter().any(on_trial) {
        return Ok(Outcome::NotYet);
    }
    let medium = match Medium::mount() {
        Ok(Some(medium)) => medium,
        Ok(None) => return Ok(Outcome::NotYet),
        Err(failure) => return Ok(Outcome::Unreadable(failure.message().to_owned())),
    };
    let Some(update) = Update::find(&medium.path("update"))? else {
        return Ok(Outcome::Nothing);
    };
    if update.version == running {
        println!("strongroom: the update on the medium is what runs: {running}");
        return Ok(Outcome::Nothing);
    }
    if medium.path("plan.toml").exists() && !birth::is_born() {
        return Ok(Outcome::NotYet);
    }
    update.may_follow(running, &minimum()?)?;
    update.was_not_tried(&slots)?;
    let image = KernelImage::new(read(&update.kernel)?);
    signature::check(&image).map_err(|problem| refused(problem.to_string()))?;
    update.is_that_of(&image)?;
    println!("strongroom: installing version {}", update.version);
    // One that was interrupted left its own.
    for entry in fs::read_dir(CHECKED_COPY).into_iter().flatten().flatten() {
        let _ = fs::remove_file(entry.path());
    }
    let checked = Path::new(CHECKED_COPY).join(format!("strongroom_{}.efi", update.version));
    let kept = fs::write(&checked, image.bytes());
    drop(image);
    let done = kept
        .map_err(|error| Failure::file(&checked, &error))
        .and_then(|()| sysupdate(&update.version));
    let _ = fs::remove_file(&checked);
    done?;
    // Written out before the restart.
    drop(medium);
    println!(
        "strongroom: version {} is installed; starting it",
        update.version
    );
    restart()?;
    Ok(Outcome::Installed)
}

fn read(kernel: &Path) -> Result<Vec<u8>, Failure> {
    match files::read(kernel, MAX_KERNEL_IMAGE_BYTES) {
        Ok(mut bytes) => Ok(std::mem::take(&mut *bytes)),
        Err(error) if error.kind() == ErrorKind::FileTooLarge => Err(refused(format!(
            "the kernel image has more than {} MiB",
            MAX_KERNEL_IMAGE_BYTES >> 20
        ))),
        Err(error) => Err(Failure::file(kernel, &error)),
    }
}

/// What a medium holds; where it holds several versions, the newest.
#[derive(Debug, PartialEq, Eq)]
struct Update {
    version: String,
    kernel: PathBuf,
    /// In the files' names: where the initrd looks for root and hash tree.
    root: String,
    verity: String,
}

impl Update {
    fn find(folder: &Path) -> Result<Option<Self>, Failure> {
        let names = match fs::read_dir(folder) {
            Ok(entries) => entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<std::io::Result<Vec<String>>>()
                .map_err(|error| Failure::file(folder, &error))?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::file(folder, &error)),
        };
        let mut versions = Vec::new();
        for version in names.iter().filter_map(|name| between(name, ".efi")) {
            versions.push(Some(version).filter(|text| is_version(text)).ok_or_else(|| {
                refused("a kernel image in its directory is not called strongroom_VERSION.efi, with a version of digits and points")
            })?);
        }
        versions.sort_by(|one, other| compare(one, other));
        let Some(version) = versions.pop().map(str::to_owned) else {
            return if names.is_empty() {
                Ok(None)
            } else {
                Err(refused("its directory holds no strongroom_VERSION.efi"))
            };
        };
        // 1.0 and 1.0.0 are one version.
        if let Some(twin) = versions
            .pop()
            .filter(|twin| compare(twin, &version).is_eq())
        {
            return Err(refused(format!(
                "its directory holds a version twice, as {twin} and as {version}; leave one"
            )));
        }
        // systemd-sysupdate looks names up by itself: of two, it could take the one that was not
        // checked.
        let part = |end: &str| {
            let mut found = names.iter().filter_map(|name| {
                between(name, end)?
                    .strip_prefix(version.as_str())?
                    .strip_prefix('_')
            });
            let file = format!("strongroom_{version}_….{}", &end[1..]);
            match (found.next(), found.next()) {
                (Some(uuid), None) => Ok(uuid.to_owned()),
                (None, _) => Err(refused(format!("its directory holds no {file}"))),
                _ => Err(refused(format!(
                    "its directory holds more than one {file}; leave one"
                ))),
            }
        };
        Ok(Some(Self {
            kernel: folder.join(format!("strongroom_{version}.efi")),
            root: part(".root.raw")?,
            verity: part(".verity.raw")?,
            version,
        }))
    }

    /// No way back.
    fn may_follow(&self, running: &str, minimum: &str) -> Result<(), Failure> {
        let version = &self.version;
        if compare(version, minimum) == Ordering::Less {
            return Err(refused(format!(
                "version {version} is older than {minimum}, the oldest that may run on this state"
            )));
        }
        if compare(version, running) != Ordering::Greater {
            return Err(refused(format!(
                "version {version} is not newer than {running}, which runs"
            )));
        }
        Ok(())
    }

    fn was_not_tried(&self, slots: &[Installed]) -> Result<(), Failure> {
        match slots.iter().find(|slot| slot.version == self.version) {
            Some(slot) if slot.given_up() => Err(refused(format!(
                "version {} was tried here and did not come up healthy; the next one needs another number",
                self.version
            ))),
            Some(_) => Err(refused(format!(
                "version {} is in the other slot already",
                self.version
            ))),
            None => Ok(()),
        }
    }

    /// The signed kernel image says itself what it is: the names of files say what they like.
    fn is_that_of(&self, image: &KernelImage) -> Result<(), Failure> {
        let version = &self.version;
        let said = image.release("IMAGE_VERSION");
        if image.release("IMAGE_ID").as_deref() != Some("strongroom")
            || said.as_ref() != Some(version)
        {
            return Err(refused(format!(
                "strongroom_{version}.efi is version {} inside",
                said.as_deref().unwrap_or("unknown")
            )));
        }
        let hash = format!("{}{}", self.root, self.verity).replace('-', "");
        if image.command_line("roothash") != Some(hash) {
            return Err(refused(format!(
                "the root and the hash tree are not those of strongroom_{version}.efi"
            )));
        }
        Ok(())
    }
}

/// Digits and points, as they stand in file names, partition labels and on the console.
fn is_version(text: &str) -> bool {
    (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

/// What a name has between `strongroom_` and this end.
fn between<'a>(name: &'a str, end: &str) -> Option<&'a str> {
    name.strip_prefix("strongroom_")?.strip_suffix(end)
}

fn refused(why: impl Into<String>) -> Failure {
    Failure::new(Exit::Failed, why)
}

fn sysupdate(version: &str) -> Result<(), Failure> {
    let output = Command::new("/usr/lib/systemd/systemd-sysupdate")
        .args(["--verify=no", "update", version])
        .output()
        .map_err(|error| refused(format!("systemd-sysupdate does not start: {error}")))?;
    let said = String::from_utf8_lossy(&output.stderr);
    eprint!("{said}");
    if output.status.success() {
        return Ok(());
    }
    Err(refused(format!(
        "it can't be installed: {}",
        said.trim().lines().last().unwrap_or_default()
    )))
}

fn restart() -> Result<(), Failure> {
    let started = Command::new("systemctl")
        .args(["reboot", "--no-block"])
        .status();
    if started.is_ok_and(|status| status.success()) {
        Ok(())
    } else {
        Err(refused("the machine can't be started again; do it by hand"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const ROOT: &str = "babc99fe-c087-84e3-fcc5-abdb4ba1ba14";
    const VERITY: &str = "31b22cf0-fc34-eb48-528a-b33481d06123";

    fn folder(versions: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for version in versions {
            for name in [
                format!("strongroom_{version}.efi"),
                format!("strongroom_{version}_{ROOT}.root.raw"),
                format!("strongroom_{version}_{VERITY}.verity.raw"),
            ] {
                fs::write(folder.path().join(name), []).unwrap();
            }
        }
        folder
    }

    #[test]
    fn the_newest_version_of_a_medium_is_taken_if_it_is_whole() {
        let folder = folder(&["0.9.0", "0.10.0"]);
        let update = Update::find(folder.path()).unwrap().unwrap();
        assert_eq!(
            (
                update.version.as_str(),
                update.root.as_str(),
                update.verity.as_str()
            ),
            ("0.10.0", ROOT, VERITY)
        );
        fs::remove_file(
            folder
                .path()
                .join(format!("strongroom_0.10.0_{VERITY}.verity.raw")),
        )
        .unwrap();
        let failure = Update::find(folder.path()).unwrap_err();
        assert!(
            failure
                .message()
                .contains("no strongroom_0.10.0_….verity.raw"),
            "{failure:?}"
        );
    }

    #[test]
    fn of_two_files_for_one_thing_none_is_taken() {
        let other = "11111111-c087-84e3-fcc5-abdb4ba1ba14";
        for (twin, text) in [
            (
                format!("strongroom_0.2.0_{other}.root.raw"),
                "more than one strongroom_0.2.0_….root.raw",
            ),
            (
                format!("strongroom_0.2.0_{other}.verity.raw"),
                "more than one strongroom_0.2.0_….verity.raw",
            ),
            ("strongroom_0.2.efi".into(), "a version twice"),
            ("strongroom_0.2.0.0.efi".into(), "a version twice"),
        ] {
            let folder = folder(&["0.1.0", "0.2.0"]);
            fs::write(folder.path().join(twin), []).unwrap();
            let failure = Update::find(folder.path()).unwrap_err();
            assert!(failure.message().contains(text), "{failure:?}");
        }
    }

    #[test]
    fn a_version_is_of_digits_and_points() {
        for name in [
            "\x1b[2J",
            "0.3.0\u{202e}",
            "0.3.0+3",
            "",
            "0.3.0-rc1",
            &"1".repeat(33),
        ] {
            let folder = folder(&["0.2.0"]);
            fs::write(folder.path().join(format!("strongroom_{name}.efi")), []).unwrap();
            let failure = Update::find(folder.path()).unwrap_err();
            let message = failure.message();
            assert!(message.contains("not called"), "{name:?}: {message}");
            assert!(
                message.is_ascii() && !message.contains('\x1b'),
                "{message:?}"
            );
        }
    }

    #[test]
    fn a_medium_without_updates_is_none() {
        let folder = folder(&[]);
        assert_eq!(Update::find(folder.path()).unwrap(), None);
        assert_eq!(Update::find(&folder.path().join("update")).unwrap(), None);
        fs::write(folder.path().join("readme"), []).unwrap();
        assert!(Update::find(folder.path()).is_err());
    }

    #[test]
    fn a_kernel_image_that_would_not_fit_is_not_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 40).unwrap();
        let failure = read(file.path()).unwrap_err();
        assert!(
            failure.message().contains("more than 44 MiB"),
            "{failure:?}"
        );
        file.as_file().set_len(MAX_KERNEL_IMAGE_BYTES).unwrap();
        assert_eq!(
            read(file.path()).unwrap().len() as u64,
            MAX_KERNEL_IMAGE_BYTES
        );
    }

    #[test]
    fn only_what_is_newer_may_follow() {
        let folder = folder(&["0.2.0"]);
        let update = Update::find(folder.path()).unwrap().unwrap();
        update.may_follow("0.1.9", "0.2.0").unwrap();
        for (running, minimum, text) in [
            ("0.1.9", "0.3.0", "older than 0.3.0"),
            ("0.3.0", "0", "not newer than 0.3.0"),
            ("0.2", "0", "not newer than 0.2"),
        ] {
            let failure = update.may_follow(running, minimum).unwrap_err();
            assert!(failure.message().contains(text), "{failure:?}");
        }
    }

    #[test]
    fn what_was_given_up_is_not_tried_again() {
        let folder = folder(&["0.2.0"]);
        let update = Update::find(folder.path()).unwrap().unwrap();
        update
            .was_not_tried(&[Installed::new("strongroom_0.1.0.efi").unwrap()])
            .unwrap();
        let failed = [Installed::new("strongroom_0.2.0+0-3.efi").unwrap()];
        assert!(update.was_not_tried(&failed).is_err());
    }
}
