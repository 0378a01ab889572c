//! The state partition: which one it is, and that it is opened as it was made.
//!
//! Whoever has the disk can write what they like into the state's LUKS2 header, which nothing
//! protects. So the header is read once, judged, and used as it was judged.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::root_disk::{self, RootDiskError};
use super::{luks, tpm};
use crate::cli::exit::{Exit, Failure};

/// The partition's label.
const PARTITION_LABEL: &str = "strongroom-state";

const CRYPTSETUP_PROGRAM: &str = "/usr/bin/systemd-cryptsetup";

/// Here the header stays while it is in use: in memory, where nobody changes it.
const HEADER_FILE: &str = "/run/strongroom-state-header";

/// What the kernel image's stub brought: the signature of its PCR 11.
const PCR_SIGNATURE_FILE: &str = "/run/systemd/tpm2-pcr-signature.json";

/// Opens the one state of the root's disk as `/dev/mapper/state`, if it is as this image makes it.
pub(super) fn open() -> Result<(), Failure> {
    let partition = partition()
        .map_err(|error| not_opened(&error.to_string()))?
        .ok_or_else(|| {
            not_opened(&format!(
                "the root's disk has no partition {PARTITION_LABEL}"
            ))
        })?;
    let header = read_header(&partition).map_err(|error| Failure::file(&partition, &error))?;
    luks::check(&header).map_err(|problem| {
        not_opened(&format!(
            "{} is not as this image makes it: {problem}",
            partition.display()
        ))
        .next("somebody changed it, or put another in its place; put the right disk back")
    })?;
    let copy = Path::new(HEADER_FILE);
    let status = keep(copy, &header).and_then(|()| {
        Command::new(CRYPTSETUP_PROGRAM)
            .args(["attach", "state"])
            .arg(&partition)
            .arg("-")
            .arg(format!(
                "tpm2-device=auto,headless=true,tpm2-signature={PCR_SIGNATURE_FILE},header={HEADER_FILE}"
            ))
            .status()
    });
    let removed = fs::remove_file(copy);
    let status = status.map_err(|error| Failure::file(Path::new(CRYPTSETUP_PROGRAM), &error))?;
    if !status.success() {
        return Err(not_opened(&format!(
            "{} does not open with this machine's TPM",
            partition.display()
        )));
    }
    if let Err(error) = tpm::forget_failures() {
        eprintln!("strongroom: the TPM does not forget its count of failures: {error}");
    }
    removed.map_err(|error| Failure::file(copy, &error))
}

/// An error if the root's disk has a state already, or it can't be told.
pub(super) fn is_missing() -> Result<(), Failure> {
    let partition = partition().map_err(|error| {
        Failure::caused(Exit::Failed, &error).next("this command is for the bootable image")
    })?;
    match partition {
        None => Ok(()),
        Some(partition) => Err(Failure::new(
            Exit::Failed,
            format!("the state is there: {}", partition.display()),
        )),
    }
}

fn not_opened(why: &str) -> Failure {
    Failure::new(Exit::Failed, format!("the state is not opened: {why}"))
}

/// The state's device, if the root's disk has one.
fn partition() -> Result<Option<PathBuf>, RootDiskError> {
    let partition = root_disk::partition(PARTITION_LABEL)?;
    Ok(partition.map(|partition| partition.device))
}

fn read_header(partition: &Path) -> io::Result<Vec<u8>> {
    let mut header = Vec::with_capacity(luks::HEADER_BYTES);
    fs::File::open(partition)?
        .take(luks::HEADER_BYTES as u64)
        .read_to_end(&mut header)?;
    Ok(header)
}

fn keep(path: &Path, header: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?
        .write_all(header)
}
