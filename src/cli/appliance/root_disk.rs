//! The disk that the running root was verified from, and its partitions.
//!
//! Whoever adds a disk can put partitions with any label and identity there. So a label counts on
//! the root's own disk only: that is the one whose root fits the signed hash.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use uuid::Uuid;

/// Why there is no telling which partition is meant.
#[derive(Debug, thiserror::Error)]
pub(super) enum RootDiskError {
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("root and hash tree are not of one disk")]
    NotOneDisk,
    #[error("the root's disk has {} partitions {label}: {}", names.len(), names.join(", "))]
    Several { label: String, names: Vec<String> },
}

impl RootDiskError {
    fn file(path: &Path) -> impl Fn(io::Error) -> Self {
        move |error| Self::File {
            path: path.to_owned(),
            error,
        }
    }
}

/// A line of the partition table.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    label: String,
    /// Of this one partition (`PARTUUID`).
    identity: Uuid,
}

/// A partition of the root's disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Partition {
    pub(super) device: PathBuf,
    pub(super) identity: Uuid,
}

/// The partition with this label, if the disk from which the running root was verified has one.
pub(super) fn partition(label: &str) -> Result<Option<Partition>, RootDiskError> {
    let root = fs::metadata("/").map_err(RootDiskError::file(Path::new("/")))?;
    let device = format!("/sys/dev/block/{}:{}", major(root.dev()), minor(root.dev()));
    let disk = disk_below(Path::new(&device))?;
    let mut found = device_name(&disk)
        .and_then(|name| entries(&mut fs::File::open(Path::new("/dev").join(name))?))
        .and_then(|table| labelled(&disk, &table, label))
        .map_err(RootDiskError::file(&disk))?;
    if found.len() > 1 {
        return Err(RootDiskError::Several {
            label: label.to_owned(),
            names: found.into_iter().map(|(name, _)| name).collect(),
        });
    }
    Ok(found.pop().map(|(name, identity)| Partition {
        device: Path::new("/dev").join(name),
        identity,
    }))
}

/// The one disk that root and hash tree are partitions of.
fn disk_below(device: &Path) -> Result<PathBuf, RootDiskError> {
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
        .map_err(RootDiskError::file(&slaves))?;
    disks.dedup();
    match disks.pop().flatten() {
        Some(disk) if disks.is_empty() && disk.join("slaves").exists() => Ok(disk),
        _ => Err(RootDiskError::NotOneDisk),
    }
}

/// The partitions of a disk that have the label in this table, as the kernel names them. The kernel
/// itself knows no labels of partitions that were made since it read the table.
fn labelled(disk: &Path, table: &[Entry], label: &str) -> io::Result<Vec<(String, Uuid)>> {
    let mut found = Vec::new();
    for folder in fs::read_dir(disk)? {
        let folder = folder?.path();
        let Ok(number) = fs::read_to_string(folder.join("partition")) else {
            continue;
        };
        let entry = number
            .trim()
            .parse::<usize>()
            .ok()
            .and_then(|number| table.get(number.checked_sub(1)?));
        if let Some(entry) = entry.filter(|entry| entry.label == label) {
            found.push((device_name(&folder)?, entry.identity));
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

/// A disk's partition table, the first partition first. UEFI 2.10, 5.3.
fn entries(disk: &mut impl Read) -> io::Result<Vec<Entry>> {
    const BLOCK_BYTES: usize = 512; // of the image's disks
    const ENTRY_BYTES: usize = 128;
    const MAX_PARTITIONS: usize = 128;
    const UNIQUE_ID_OFFSET: usize = 16;
    const NAME_OFFSET: usize = 56;
    let mut start = [0; 2 * BLOCK_BYTES];
    disk.read_exact(&mut start)?;
    let number = |at: usize| {
        let bytes = start[BLOCK_BYTES + at..].first_chunk().copied();
        bytes.map_or(0, u32::from_le_bytes) as usize
    };
    // Signature, the block that the entries begin at, how many there are, how long each is.
    if !start[BLOCK_BYTES..].starts_with(b"EFI PART")
        || (number(72), number(76), number(84)) != (2, 0, ENTRY_BYTES)
    {
        return Err(io::Error::other("it has no partition table of this image"));
    }
    (0..number(80).min(MAX_PARTITIONS))
        .map(|_| {
            let mut entry = [0; ENTRY_BYTES];
            disk.read_exact(&mut entry)?;
            let units: Vec<u16> = entry[NAME_OFFSET..]
                .chunks_exact(2)
                .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
                .take_while(|unit| *unit != 0)
                .collect();
            let identity = entry[UNIQUE_ID_OFFSET..].first_chunk().copied();
            Ok(Entry {
                label: String::from_utf16_lossy(&units),
                identity: Uuid::from_bytes_le(identity.unwrap_or_default()),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::symlink;

    use super::*;

    const LABEL: &str = "strongroom-state";

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

    fn read(table: &[u8]) -> Vec<Entry> {
        entries(&mut &*table).unwrap()
    }

    fn names(disk: &Path, table: &[Entry]) -> Vec<String> {
        let found = labelled(disk, table, LABEL).unwrap();
        found.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn a_partition_is_one_of_the_disk_that_the_root_is_on() {
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
        assert_eq!(names(&disk, &read(&made)), ["vda6"]);
        let delivered = table(&["strongroom-esp", root, root]);
        assert_eq!(names(&disk, &read(&delivered)), [""; 0]);
        // An entry that the kernel has no partition for is none.
        let twice = table(&["", "", "", LABEL, "", LABEL, LABEL]);
        assert_eq!(names(&disk, &read(&twice)), ["vda6", "vda7"]);
    }

    #[test]
    fn a_root_on_two_disks_or_on_none_has_no_partitions() {
        let folder = devices(["vda/vda2", "vdb/vdb3"], &["vda/vda6"]);
        let failure = disk_below(&folder.path().join("dm-0")).unwrap_err();
        assert!(matches!(failure, RootDiskError::NotOneDisk), "{failure:?}");
        assert!(disk_below(&folder.path().join("vda")).is_err());
        assert!(disk_below(&folder.path().join("nothing")).is_err());
    }

    #[test]
    fn a_partition_s_identity_is_read_as_it_is_written_elsewhere() {
        let mut disk = table(&[LABEL]);
        let bytes: Vec<u8> = (0..16).collect();
        disk[1024 + 16..1024 + 32].copy_from_slice(&bytes);
        assert_eq!(
            read(&disk)[0].identity.to_string(),
            "03020100-0504-0706-0809-0a0b0c0d0e0f"
        );
    }

    #[test]
    fn a_table_of_another_kind_is_refused() {
        let labels: Vec<String> = read(&table(&["a", "b"]))
            .into_iter()
            .take(3)
            .map(|entry| entry.label)
            .collect();
        assert_eq!(labels, ["a", "b", ""]);
        for change in [512, 512 + 72, 512 + 76, 512 + 84] {
            let mut table = table(&[LABEL]);
            table[change] ^= 1;
            assert!(entries(&mut &*table).is_err(), "{change}");
        }
        assert!(entries(&mut &table(&[])[..2000]).is_err());
        assert!(entries(&mut &[][..]).is_err());
        // More entries than are taken.
        let mut many = table(&[]);
        many[512 + 81] = 0xff;
        assert_eq!(read(&many).len(), 128);
    }
}
