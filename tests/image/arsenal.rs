//! What an attacker without any of our keys can make: programs, units, add-ons, roots and states.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::machine::{Image, boot_partition_of, installed, put, run};

/// What the attacker's programs, units and roots say on the console.
pub const ATTACKER: &str = "THE ATTACKER'S CODE RUNS";

/// What the attacker has made ready.
pub struct Attacker {
    folder: tempfile::TempDir,
}

/// A whole root of the attacker's, rightly hashed, on a disk.
pub struct Root {
    pub hash: String,
    image: Image,
    pub disk: Vec<String>,
}

impl Attacker {
    pub fn new() -> Option<Self> {
        if !installed("mkfs.ext4") {
            crate::support::skip("the image's doors", "e2fsprogs is not installed");
            return None;
        }
        let folder = tempfile::Builder::new()
            .prefix("sr-attacker-")
            .tempdir()
            .unwrap();
        let attacker = Self { folder };
        for (name, linked) in [("static", "+crt-static"), ("dynamic", "-crt-static")] {
            run(
                Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
                    .args([
                        "--edition=2024",
                        "--target=x86_64-unknown-linux-gnu",
                        "-Copt-level=1",
                        "-Cstrip=symbols",
                    ])
                    .arg(format!("-Ctarget-feature={linked}"))
                    .arg("-o")
                    .arg(attacker.program(name))
                    .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/image/attacker.rs")),
            );
        }
        Some(attacker)
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Such a file, under a name of its own.
    pub fn text(&self, content: &str) -> PathBuf {
        let count = fs::read_dir(self.folder.path()).unwrap().count();
        let path = self.folder.path().join(format!("text{count}"));
        fs::write(&path, content).unwrap();
        path
    }

    /// A string in the machine's SMBIOS tables, from a file: no comma ends it there.
    pub fn smbios(&self, name: &str, value: &str) -> Vec<String> {
        let path = self.text(&format!("{name}={value}"));
        vec!["-smbios".into(), format!("type=11,path={}", path.display())]
    }

    /// What systemd-stub appends to the command line.
    pub fn words(&self, words: &str) -> Vec<String> {
        self.smbios("io.systemd.stub.kernel-cmdline-extra", words)
    }

    /// A unit that needs nothing but what is in the image.
    pub fn unit(&self) -> PathBuf {
        self.text(&format!(
            "[Unit]\nDescription={ATTACKER}\nDefaultDependencies=no\n[Service]\nType=oneshot\n\
             ExecStart=systemctl show --property=Description attacker.service\nStandardOutput=tty\nTTYPath=/dev/console\n"
        ))
    }

    pub fn set_variable(&self, firmware: &Path, name: &str, value: &str) {
        let data: Vec<u8> = value
            .encode_utf16()
            .chain([0])
            .flat_map(u16::to_le_bytes)
            .collect();
        let data = base16ct::lower::encode_string(&data);
        let guid = "8cf2644b-4b0b-428f-9387-6d876050dc67"; // systemd's own
        let variable = json!({"name": name, "guid": guid, "attr": 7, "data": data});
        fs::write(
            self.folder.path().join("variable.json"),
            json!({"version": 2, "variables": [variable]}).to_string(),
        )
        .unwrap();
        let copy = self.folder.path().join("variables");
        fs::copy(firmware, &copy).unwrap();
        self.tools("virt-fw-vars --loglevel WARNING --inplace variables --set-json variable.json");
        fs::copy(copy, firmware).unwrap();
    }

    /// On an `NVMe` disk, a file system that holds the program.
    pub fn kernel_s_root(&self) -> Vec<String> {
        let disk = self.folder.path().join("nvme");
        if !disk.exists() {
            let tree = self.folder.path().join("tree");
            for folder in ["dev", "proc", "sys"] {
                fs::create_dir_all(tree.join(folder)).unwrap();
            }
            fs::copy(self.program("static"), tree.join("attacker")).unwrap();
            fs::File::create(&disk).unwrap().set_len(32 << 20).unwrap();
            run(Command::new("/usr/sbin/mkfs.ext4")
                .args(["-q", "-d"])
                .arg(&tree)
                .arg(&disk));
        }
        vec![
            "-drive".into(),
            format!(
                "if=none,id=nvme,format=raw,snapshot=on,file={}",
                disk.display()
            ),
            "-device".into(),
            "nvme,drive=nvme,serial=attacker".into(),
        ]
    }

    /// The program as /init, in an initrd of its own.
    pub fn initrd(&self) -> PathBuf {
        let tree = self.folder.path().join("initrd-tree");
        fs::create_dir_all(&tree).unwrap();
        fs::copy(self.program("static"), tree.join("init")).unwrap();
        self.tools("cd initrd-tree; echo init | cpio --quiet -o -H newc >../initrd");
        self.folder.path().join("initrd")
    }

    pub fn add_on(&self, signed: bool) -> PathBuf {
        let name = if signed {
            "signed.addon"
        } else {
            "unsigned.addon"
        };
        let path = self.folder.path().join(name);
        if !path.exists() {
            let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("image/keys");
            for key in ["db.key", "db.pem"] {
                fs::copy(keys.join(key), self.folder.path().join(key)).unwrap();
            }
            let signature = if signed {
                "--secureboot-private-key db.key --secureboot-certificate db.pem --signtool systemd-sbsign"
            } else {
                ""
            };
            self.tools(&format!(
                "ukify build --stub /usr/lib/systemd/boot/efi/addonx64.efi.stub --cmdline systemd.unit=emergency.target {signature} --output {name}"
            ));
        }
        path
    }

    /// A root of the attacker's own making: all of ours, and a unit that says so. Hash and hash
    /// tree are right; nobody signed them.
    pub fn root(&self, image: &Image) -> Root {
        let extra = self.folder.path().join("extra");
        let units = extra.join("etc/systemd/system");
        fs::create_dir_all(units.join("sysinit.target.wants")).unwrap();
        fs::copy(self.unit(), units.join("attacker.service")).unwrap();
        std::os::unix::fs::symlink(
            "../attacker.service",
            units.join("sysinit.target.wants/attacker.service"),
        )
        .unwrap();
        let other = image.other(
            "attacker",
            &[
                ("STRONGROOM_VERSION", "1000.0.0"),
                ("STRONGROOM_EXTRA", extra.to_str().unwrap()),
            ],
        );
        let [root, tree] = other.identities();
        let disk = self.disk("second", &other, [&root, &tree]);
        Root {
            hash: format!("{root}{tree}").replace('-', ""),
            image: other,
            disk,
        }
    }

    /// The attacker's root where the initrd looks for the right one.
    pub fn look_alike(&self, image: &Image, root: &Root) -> Vec<String> {
        let [data, tree] = image.identities();
        self.disk("look-alike", &root.image, [&data, &tree])
    }

    /// A disk with that image's root and hash tree, as partitions of this identity.
    fn disk(&self, name: &str, image: &Image, identity: [&str; 2]) -> Vec<String> {
        let [_, root, tree] = &image.update_files()[..] else {
            panic!("three files")
        };
        let definitions = self.folder.path().join(format!("{name}.d"));
        fs::create_dir(&definitions).unwrap();
        for (kind, file, identity) in [
            ("root", root, identity[0]),
            ("root-verity", tree, identity[1]),
        ] {
            fs::copy(file, definitions.join(kind)).unwrap();
            fs::write(
                definitions.join(format!("{kind}.conf")),
                format!(
                    "[Partition]\nType={kind}\nUUID={identity}\nCopyBlocks=/work/{name}.d/{kind}\n"
                ),
            )
            .unwrap();
        }
        self.partitioned(name, "")
    }

    /// On a second disk, a state with the right label.
    pub fn state_look_alike(&self) -> Vec<String> {
        self.state_definition("");
        self.partitioned("state", "")
    }

    /// On a second disk, a boot partition with the right label and this identity, and these files
    /// on it: from here, to there.
    pub fn boot_look_alike(&self, identity: Uuid, files: &[(&Path, &str)]) -> Vec<String> {
        let name = format!("boot-{identity}");
        let definitions = self.folder.path().join(format!("{name}.d"));
        fs::create_dir(&definitions).unwrap();
        fs::write(
            definitions.join("esp.conf"),
            format!(
                "[Partition]\nType=esp\nLabel=strongroom-esp\nUUID={identity}\nFormat=vfat\nSizeMinBytes=96M\nSizeMaxBytes=96M\n"
            ),
        )
        .unwrap();
        let options = self.partitioned(&name, "--sector-size=512");
        let drive = boot_partition_of(&self.folder.path().join(name));
        for (from, to) in files {
            put(&drive, from, to);
        }
        options
    }

    /// A state whose key the attacker knows. It is sealed to the machine's TPM with what the real
    /// state's header says of that: the TPM's public key.
    pub fn sealed_state(&self, real: &[u8]) -> Vec<u8> {
        self.sealed(real, "--tpm2-pcrs=")
    }

    /// The same, and its header says what the real one's says.
    pub fn sealed_and_dressed_state(&self, real: &[u8]) -> Vec<u8> {
        let header: Value = serde_json::from_slice(json_of(real)).unwrap();
        let key = header["tokens"]["0"]["tpm2_pubkey"].as_str().unwrap();
        fs::write(
            self.folder.path().join("pcr-key"),
            STANDARD.decode(key).unwrap(),
        )
        .unwrap();
        let pcrs = ["7", "12", "13"].map(|pcr| format!("{pcr}:sha256={}", "00".repeat(32)));
        let pcrs = pcrs.join("+");
        self.sealed(
            real,
            &format!("--tpm2-pcrs={pcrs} --tpm2-public-key=pcr-key --tpm2-public-key-pcrs=11"),
        )
    }

    fn sealed(&self, real: &[u8], policy: &str) -> Vec<u8> {
        let header: Value = serde_json::from_slice(json_of(real)).unwrap();
        let key = header["tokens"]["0"]["tpm2_srk"].as_str().unwrap();
        // As the TPM software stack writes a handle: number, name behind its length, kind, then the
        // public key.
        let key = STANDARD.decode(key).unwrap();
        let name = usize::from(u16::from_be_bytes([key[4], key[5]]));
        fs::write(self.folder.path().join("tpm-key"), &key[6 + name + 4..]).unwrap();
        self.state_definition("Encrypt=tpm2\n");
        self.repart("state", &format!("--tpm2-device-key=tpm-key {policy}"));
        partition(&fs::read(self.folder.path().join("state")).unwrap()).to_vec()
    }

    /// The real state's own header, but that what it is for is not encrypted, and in its place a
    /// file system of the attacker's.
    pub fn open_state(&self, real: &[u8]) -> Vec<u8> {
        const DATA: usize = 16 << 20;
        self.state_definition("");
        self.repart("state", "");
        let text = std::str::from_utf8(json_of(real)).unwrap();
        let crypt = "\"iv_tweak\":\"0\",\"encryption\":\"aes-xts-plain64\"";
        let null = "\"iv_tweak\":\"0\",\"encryption\":\"cipher_null-ecb\"";
        assert!(text.contains(crypt), "{text}");
        let text = text.replace(crypt, null);
        let mut state = real[..DATA].to_vec();
        for copy in [0, COPY] {
            let copy = &mut state[copy..copy + COPY];
            copy[JSON..].fill(0);
            copy[JSON..JSON + text.len()].copy_from_slice(text.as_bytes());
            copy[CHECKSUM..CHECKSUM + 64].fill(0);
            let checksum = Sha256::digest(&*copy);
            copy[CHECKSUM..CHECKSUM + 32].copy_from_slice(&checksum);
        }
        state.extend(partition(
            &fs::read(self.folder.path().join("state")).unwrap(),
        ));
        state
    }

    fn state_definition(&self, more: &str) {
        let definitions = self.folder.path().join("state.d");
        fs::create_dir_all(&definitions).unwrap();
        fs::write(
            definitions.join("state.conf"),
            format!(
                "[Partition]\nType=linux-generic\nLabel=strongroom-state\nFormat=ext4\nSizeMinBytes=64M\nSizeMaxBytes=64M\n{more}"
            ),
        )
        .unwrap();
    }

    /// A disk with the partitions that `NAME.d` defines.
    fn repart(&self, name: &str, options: &str) {
        self.tools(&format!(
            "rm -f {name}; systemd-repart --empty=create --size=auto --offline=yes --definitions={name}.d --dry-run=no {options} {name}"
        ));
    }

    fn partitioned(&self, name: &str, options: &str) -> Vec<String> {
        self.repart(name, options);
        vec![
            "-drive".into(),
            format!(
                "if=none,id={name},format=raw,snapshot=on,file={}",
                self.folder.path().join(name).display()
            ),
            "-device".into(),
            format!("virtio-blk-pci,drive={name}"),
        ]
    }

    /// Runs this in the tree of tools that the build of the image left, in this directory.
    fn tools(&self, script: &str) {
        let cache = std::env::var_os("STRONGROOM_IMAGE_CACHE").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/image"),
            PathBuf::from,
        );
        run(Command::new("unshare")
            .args(["-m", "bash", "-euc"])
            .arg(
                "mount --make-rprivate /; mount --bind \"$1\" \"$1\"; mount --rbind /dev \"$1/dev\"; mount -t proc proc \"$1/proc\"; \
                 mount -t tmpfs tmpfs \"$1/tmp\"; mount --bind \"$2\" \"$1/work\"; \
                 exec chroot \"$1\" /usr/bin/env -i PATH=/usr/sbin:/usr/bin LC_ALL=C bash -euc \"cd /work; $3\"",
            )
            .args([OsStr::new("-"), cache.join("tools").as_os_str(), self.folder.path().as_os_str(), OsStr::new(script)]));
    }
}

/// Of a LUKS2 header: each of its two copies, where its checksum stands, and its JSON.
const COPY: usize = 16 << 10;
const CHECKSUM: usize = 448;
const JSON: usize = 4 << 10;

fn json_of(header: &[u8]) -> &[u8] {
    let area = &header[JSON..COPY];
    let end = area.iter().position(|byte| *byte == 0).unwrap();
    &area[..end]
}

/// The first partition of a disk.
fn partition(disk: &[u8]) -> &[u8] {
    let block = |at: usize| {
        usize::try_from(u64::from_le_bytes(disk[at..at + 8].try_into().unwrap())).unwrap()
    };
    &disk[block(1024 + 32) * 512..(block(1024 + 40) + 1) * 512]
}
