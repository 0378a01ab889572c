//! The state partition: which one it is, and that it is opened as it was made.
//!
//! Whoever has the disk, or adds one, can put other partitions with the state's name there, and
//! write what he likes into the state's LUKS2 header, which nothing protects. So the name counts on
//! the root's own disk only, and the header is read once, judged, and used as it was judged.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::stat::{major, minor};

use super::{luks, tpm};
use crate::cli::exit::{Exit, Failure};

/// The partition's label.
const LABEL: &str = "strongroom-state";

const CRYPTSETUP: &str = "/usr/bin/systemd-cryptsetup";

/// Here the header stays while it is in use: in memory, where nobody changes it.
const HEADER: &str = "/run/strongroom-state-header";

/// What the kernel image's stub brought: the signature of its PCR 11.
const SIGNATURE: &str = "/run/systemd/tpm2-pcr-signature.json";

/// Opens the one state of the root's disk as `/dev/mapper/state`, if it is as this image makes it.
pub(super) fn open() -> Result<(), Failure> {
    let partition = partition()?
        .ok_or_else(|| not_opened(&format!("the root's disk has no partition {LABEL}")))?;
    let header = read_header(&partition).map_err(|error| Failure::file(&partition, &error))?;
    luks::check(&header).map_err(|problem| {
        not_opened(&format!(
            "{} is not as this image makes it: {problem}",
            partition.display()
        ))
        .next("somebody changed it, or put another in its place; put the right disk back")
    })?;
    let copy = Path::new(HEADER);
    let status = keep(copy, &header).and_then(|()| {
        Command::new(CRYPTSETUP)
            .args(["attach", "state"])
            .arg(&partition)
            .arg("-")
            .arg(format!(
                "tpm2-device=auto,headless=true,tpm2-signature={SIGNATURE},header={HEADER}"
            ))
            .status()
    });
    let removed = fs::remove_file(copy);
    let status = status.map_err(|error| Failure::file(Path::new(CRYPTSETUP), &error))?;
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
    match partition()? {
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

/// The state's device, if the disk from which the running root was verified has one.
fn partition() -> Result<Option<PathBuf>, Failure> {
    let root = fs::metadata("/").map_err(|error| Failure::file(Path::new("/"), &error))?;
    let device = format!("/sys/dev/block/{}:{}", major(root.dev()), minor(root.dev()));
    let disk = disk_below(Path::new(&device))?;
    let names = device_name(&disk)
        .and_then(|name| labels(&mut fs::File::open(Path::new("/dev").join(name))?))
        .and_then(|table| labelled(&disk, &table))
        .map_err(|error| Failure::file(&disk, &error))?;
    match &names[..] {
        [] => Ok(None),
        [name] => Ok(Some(Path::new("/dev").join(name))),
        names => Err(not_opened(&format!(
            "the root's disk has {} partitions {LABEL}: {}",
            names.len(),
            names.join(", ")
        ))),
    }
}

/// The one disk that root and hash tree are partitions of.
fn disk_below(device: &Path) -> Result<PathBuf, Failure> {
    let slaves = device.join("slaves");
    let mut disks = fs::read_dir(&slaves)
        .and_then(|entries| {
            entries
                .map(|entry| {
                    Ok(fs::canonicalize(entry?.path())?
                        .parent()
                        .map(Path::to_owned))
                })
                .collect::<io::Result<Vec<_>>>()
        })
        .map_err(|error| {
            Failure::file(&slaves, &error).next("this command is for the bootable image")
        })?;
    disks.dedup();
    match disks.pop().flatten() {
        Some(disk) if disks.is_empty() && disk.join("slaves").exists() => Ok(disk),
        _ => Err(not_opened("root and hash tree are not of one disk")),
    }
}

/// The partitions of a disk that have the state's label in this table, as the kernel names them.
/// The kernel itself knows no labels of partitions that were made since it read the table.
fn labelled(disk: &Path, table: &[String]) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(disk)? {
        let folder = entry?.path();
        let Ok(number) = fs::read_to_string(folder.join("partition")) else {
            continue;
        };
        let label = number
            .trim()
            .parse::<usize>()
            .ok()
            .and_then(|number| table.get(number.checked_sub(1)?));
        if label.is_some_and(|label| label == LABEL) {
            found.push(device_name(&folder)?);
        }
    }
    found.sort();
    Ok(found)
}

fn device_name(folder: &Path) -> io::Result<String> {
    let event = fs::read_to_string(folder.join("uevent"))?;
    event
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))
        .map(str::to_owned)
        .ok_or_else(|| io::Error::other("the kernel names no device"))
}

/// The labels of a disk's partition table, the first partition's first. UEFI 2.10, 5.3.
fn labels(disk: &mut impl Read) -> io::Result<Vec<String>> {
    const BLOCK: usize = 512; // of the image's disks
    const ENTRY: usize = 128;
    const MOST: usize = 128;
    const NAME: usize = 56;
    let mut start = [0; 2 * BLOCK];
    disk.read_exact(&mut start)?;
    let number = |at: usize| {
        let bytes = start[BLOCK + at..].first_chunk().copied();
        bytes.map_or(0, u32::from_le_bytes) as usize
    };
    // Signature, the block that the entries begin at, how many there are, how long each is.
    if !start[BLOCK..].starts_with(b"EFI PART")
        || (number(72), number(76), number(84)) != (2, 0, ENTRY)
    {
        return Err(io::Error::other("it has no partition table of this image"));
    }
    (0..number(80).min(MOST))
        .map(|_| {
            let mut entry = [0; ENTRY];
            disk.read_exact(&mut entry)?;
            let units: Vec<u16> = entry[NAME..]
                .chunks_exact(2)
                .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
                .take_while(|unit| *unit != 0)
                .collect();
            Ok(String::from_utf16_lossy(&units))
        })
        .collect()
}

fn read_header(partition: &Path) -> io::Result<Vec<u8>> {
    let mut header = Vec::with_capacity(luks::HEADER_SIZE);
    fs::File::open(partition)?
        .take(luks::HEADER_SIZE as u64)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::symlink;

    use super::*;

    /// As the kernel shows them: a root on partitions 2 and 3 of these disks, and what else is
    /// there.
    fn devices(root: [&str; 2], partitions: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        let slaves = at("dm-0/slaves");
        fs::create_dir_all(&slaves).unwrap();
        for path in root.iter().chain(partitions) {
            let (disk, name) = path.split_once('/').unwrap();
            fs::create_dir_all(at(disk).join("slaves")).unwrap();
            fs::create_dir_all(at(path)).unwrap();
            let number = name.trim_start_matches(char::is_alphabetic);
            fs::write(at(path).join("partition"), format!("{number}\n")).unwrap();
            fs::write(
                at(path).join("uevent"),
                format!("MAJOR=254\nDEVNAME={name}\nDEVTYPE=partition\n"),
            )
            .unwrap();
        }
        for path in root {
            symlink(at(path), slaves.join(path.replace('/', "-"))).unwrap();
        }
        folder
    }

    /// A disk's first blocks.
    fn table(labels: &[&str]) -> Vec<u8> {
        let mut disk = vec![0; 1024 + 128 * 128];
        disk[512..520].copy_from_slice(b"EFI PART");
        disk[512 + 72] = 2;
        disk[512 + 80] = 128;
        disk[512 + 84] = 128;
        for (index, label) in labels.iter().enumerate() {
            for (place, unit) in label.encode_utf16().enumerate() {
                let at = 1024 + 128 * index + 56 + 2 * place;
                disk[at..at + 2].copy_from_slice(&unit.to_le_bytes());
            }
        }
        disk
    }

    fn read(table: &[u8]) -> Vec<String> {
        labels(&mut &*table).unwrap()
    }

    #[test]
    fn the_state_is_the_one_of_the_disk_that_the_root_is_on() {
        let folder = devices(
            ["vda/vda2", "vda/vda3"],
            &["vda/vda1", "vda/vda6", "vda/vda7", "vdb/vdb1"],
        );
        let disk = disk_below(&folder.path().join("dm-0")).unwrap();
        assert_eq!(disk, folder.path().join("vda"));
        let (root, empty) = ("strongroom_0.1.0", "_empty");
        let made = table(&[
            "strongroom-esp",
            root,
            root,
            empty,
            empty,
            LABEL,
            "strongroom-state2",
        ]);
        assert_eq!(labelled(&disk, &read(&made)).unwrap(), ["vda6"]);
        let delivered = table(&["strongroom-esp", root, root]);
        assert_eq!(labelled(&disk, &read(&delivered)).unwrap(), [""; 0]);
        // An entry that the kernel has no partition for is none.
        let twice = table(&["", "", "", LABEL, "", LABEL, LABEL]);
        assert_eq!(labelled(&disk, &read(&twice)).unwrap(), ["vda6", "vda7"]);
    }

    #[test]
    fn a_root_on_two_disks_or_on_none_has_no_state() {
        let folder = devices(["vda/vda2", "vdb/vdb3"], &["vda/vda6"]);
        let failure = disk_below(&folder.path().join("dm-0")).unwrap_err();
        assert!(failure.message().contains("not of one disk"), "{failure:?}");
        assert!(disk_below(&folder.path().join("vda")).is_err());
        assert!(disk_below(&folder.path().join("nothing")).is_err());
    }

    #[test]
    fn a_table_of_another_kind_is_refused() {
        assert_eq!(read(&table(&["a", "b"]))[..3], ["a", "b", ""]);
        for change in [512, 512 + 72, 512 + 76, 512 + 84] {
            let mut table = table(&[LABEL]);
            table[change] ^= 1;
            assert!(labels(&mut &*table).is_err(), "{change}");
        }
        assert!(labels(&mut &table(&[])[..2000]).is_err());
        assert!(labels(&mut &[][..]).is_err());
        // More entries than are taken.
        let mut many = table(&[]);
        many[512 + 81] = 0xff;
        assert_eq!(read(&many).len(), 128);
    }
}
