//! Whoever has the machine's disk, its SMBIOS strings and its firmware's variables, but no key of ours, tries to have another root opened, code of
//! his own run, or the state opened to him: by every way on which something gets into a boot beside what is signed. docs/image.md lists them.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::ceremony::{born, make_key, seal, seal_client, wait_until_healthy};
use crate::machine::{Image, Machine, built, installed, run};

/// What the attacker's programs, units and roots say on the console.
const ATTACKER: &str = "THE ATTACKER'S CODE RUNS";

const NOT_STARTED: &str =
    "strongroom: NOT STARTED: the kernel's command line is not the signed one; added is: ";
const NOT_SIGNED: &str = "strongroom: NOT STARTED: the boot partition holds something for the initrd that was not signed with it";
/// By systemd, some time before the appliance's console says it in words.
const CLOSED: &str = "Failed to start state.service";
const SERVES: &str = "strongroom: health      serving (";

/// The kernel alone mounts this root, since `NVMe` and ext4 are built into it, and runs its program: without any initrd.
const KERNEL_S_ROOT: &str = "rdinit=/attacker init=/attacker root=/dev/nvme0n1 rootfstype=ext4 rw";

/// The loader of the initrd runs a program that is not executable by its mode, and takes in a library: here both come from the boot partition.
const LOADER: &str = "LD_PRELOAD=/.extra/global_credentials/attacker.cred rdinit=/lib64/ld-linux-x86-64.so.2 -- /.extra/global_credentials/attacker.cred";

/// What systemd, its generators and the kernel obey.
const WORDS: &str = "systemd.unit=emergency.target rd.systemd.unit=emergency.target systemd.debug_shell=console rd.systemd.debug_shell rd.break \
    systemd.run=/attacker systemd.wants=attacker.service systemd.mask=firewall.service systemd.setenv=LD_PRELOAD=/attacker emergency 1 \
    systemd.set_credential=tmpfiles.extra:x systemd.verity=no systemd.volatile=yes ip=dhcp sysctl.kernel.core_pattern=|/attacker \
    module.sig_enforce=0 lockdown=none lsm=capability ima_appraise=off modprobe.blacklist=dm_verity";

/// In a machine that was through a ceremony: the words that are appended to the command line by the firmware's SMBIOS strings.
pub fn words_of_the_firmware_start_nothing(machine: &mut Machine) {
    let Some(attacker) = Attacker::new() else {
        return;
    };
    let disk = attacker.kernel_s_root();
    let words = attacker.words(&format!(
        "{KERNEL_S_ROOT} roothash={} {WORDS}",
        "12".repeat(32)
    ));
    let options = [words, disk].concat();
    machine.start_with(&options.iter().map(String::as_str).collect::<Vec<_>>());
    machine.wait_for(&[&format!("{NOT_STARTED}rdinit=/attacker init=/attacker")]);
    machine.wait_for(&["Attempted to kill init"]);
    refuted(machine);
    machine.stop();
}

#[tokio::test]
#[ignore = "needs make image, and half an hour"]
async fn every_door_leads_nowhere_and_the_state_is_as_it_was() {
    let Some(image) = built() else { return };
    let Some(client) = seal_client() else { return };
    let Some(attacker) = Attacker::new() else {
        return;
    };
    if !nix::unistd::geteuid().is_root() {
        crate::support::skip("every door of the image", "root's rights");
        return;
    }
    let mut machine = Machine::new(&image);
    let room = born(&image, &mut machine).await;
    make_key(&machine, &room).await;
    let kept = seal(&machine, &room, &client, "keep", b"sealed before");
    machine.stop();
    machine.eject();

    let mut open = Vec::new();
    for door in doors(&image, &attacker) {
        println!("{}", door.name);
        let machine = Machine::copy_of(&machine);
        if let Err(why) = door.attempt(&attacker, machine) {
            open.push(format!("{}: {why}", door.name));
        }
    }
    assert!(open.is_empty(), "{}", open.join("\n\n"));

    machine.start();
    wait_until_healthy(&machine, &room).await;
    let opened = seal(&machine, &room, &client, "open", &kept);
    assert_eq!(opened, b"sealed before");
}

/// One way in.
struct Door {
    name: &'static str,
    /// QEMU's options.
    options: Vec<String>,
    /// What is put on the boot partition: from here, to there.
    files: Vec<(PathBuf, String)>,
    /// A variable of systemd's in the firmware.
    variable: Option<(&'static str, String)>,
    /// How it must end: one of these on the console.
    ends: &'static [&'static str],
}

impl Door {
    fn new(name: &'static str, ends: &'static [&'static str]) -> Self {
        Self {
            name,
            options: Vec::new(),
            files: Vec::new(),
            variable: None,
            ends,
        }
    }

    fn options(mut self, options: Vec<String>) -> Self {
        self.options.extend(options);
        self
    }

    fn file(mut self, from: &Path, to: &str) -> Self {
        self.files.push((from.to_owned(), to.to_owned()));
        self
    }

    fn attempt(&self, attacker: &Attacker, mut machine: Machine) -> Result<(), String> {
        if let Some((name, value)) = &self.variable {
            attacker.set_variable(&machine.firmware_variables(), name, value);
        }
        for (from, to) in &self.files {
            machine.put_on_boot_partition(from, to);
        }
        machine.start_with(&self.options.iter().map(String::as_str).collect::<Vec<_>>());
        let waits = [self.ends, &[ATTACKER]].concat();
        let end = machine.try_wait_for(&waits)?;
        if end == ATTACKER {
            return Err(format!("open:\n{}", machine.console()));
        }
        // Whatever comes later than the end that was waited for.
        std::thread::sleep(std::time::Duration::from_secs(10));
        if machine.console().contains(ATTACKER) {
            return Err(format!("open after all:\n{}", machine.console()));
        }
        Ok(())
    }
}

#[allow(clippy::too_many_lines, reason = "a table of doors")]
fn doors(image: &Image, attacker: &Attacker) -> Vec<Door> {
    let root = attacker.root(image);
    let kernel = image.uki();
    let kernel = kernel.file_name().unwrap().to_str().unwrap();
    let beside = |name: &str| format!("EFI/Linux/{kernel}.extra.d/{name}");
    let program = attacker.program("dynamic");
    vec![
        Door::new(
            "SMBIOS: another root hash, its root on a second disk",
            &[NOT_STARTED],
        )
        .options(attacker.words(&format!("roothash={}", root.hash)))
        .options(root.disk.clone()),
        Door::new(
            "SMBIOS: a root that the kernel mounts by itself",
            &[NOT_STARTED],
        )
        .options(attacker.words(KERNEL_S_ROOT))
        .options(attacker.kernel_s_root()),
        Door::new(
            "SMBIOS: no initrd",
            &[NOT_STARTED, "VFS: Unable to mount root fs"],
        )
        .options(attacker.words(&format!("noinitrd {KERNEL_S_ROOT}")))
        .options(attacker.kernel_s_root()),
        Door::new(
            "SMBIOS: the initrd's loader and a credential of the boot partition",
            &[NOT_STARTED],
        )
        .options(attacker.words(LOADER))
        .file(&program, "loader/credentials/attacker.cred"),
        Door::new("SMBIOS: words that systemd obeys", &[NOT_STARTED])
            .options(attacker.words(WORDS)),
        Door::new("a credential for all kernel images", &[NOT_SIGNED]).file(
            &attacker.unit(),
            "loader/credentials/systemd.extra-unit.attacker.service.cred",
        ),
        Door::new("a credential beside the kernel image", &[NOT_SIGNED]).file(
            &attacker.unit(),
            &beside("systemd.extra-unit.attacker.service.cred"),
        ),
        Door::new("a system extension", &[NOT_SIGNED])
            .file(&program, &beside("attacker.sysext.raw")),
        Door::new("a configuration extension", &[NOT_SIGNED])
            .file(&program, &beside("attacker.confext.raw")),
        Door::new(
            "an add-on that is signed, for all kernel images",
            &[NOT_STARTED],
        )
        .file(&attacker.add_on(true), "loader/addons/attacker.addon.efi"),
        Door::new(
            "an add-on that is signed, beside the kernel image",
            &[NOT_STARTED],
        )
        .file(&attacker.add_on(true), &beside("attacker.addon.efi")),
        Door::new("a boot loader entry with words of its own", &[CLOSED])
            .options(attacker.kernel_s_root())
            .file(
                &attacker.text("default attacker.conf\ntimeout 0\n"),
                "loader/loader.conf",
            )
            .file(
                &attacker.text(&format!(
                    "title Attacker\nlinux /EFI/Linux/{kernel}\noptions {KERNEL_S_ROOT}\n"
                )),
                "loader/entries/attacker.conf",
            ),
        Door::new(
            "a boot loader entry with an initrd of its own",
            &["Error registering initrd"],
        )
        .file(
            &attacker.text("default attacker.conf\ntimeout 0\n"),
            "loader/loader.conf",
        )
        .file(&attacker.initrd(), "attacker.img")
        .file(
            &attacker.text(&format!(
                "title Attacker\nlinux /EFI/Linux/{kernel}\ninitrd /attacker.img\n"
            )),
            "loader/entries/attacker.conf",
        ),
        Door::new(
            "a second disk whose partitions have the identity of the root's and its hash tree's",
            &["is corrupted", "could not be verified", SERVES],
        )
        .options(attacker.look_alike(image, &root)),
        Door::new(
            "a second disk whose partition has the label of the state's",
            &[SERVES, CLOSED],
        )
        .options(attacker.state_look_alike()),
        ignored(attacker, image),
    ]
}

/// All that is passed over, in one boot: the server serves as ever.
fn ignored(attacker: &Attacker, image: &Image) -> Door {
    let unit = fs::read_to_string(attacker.unit()).unwrap();
    let to_console = format!("w /dev/console - - - - {ATTACKER}\n");
    let credentials = [
        ("systemd.extra-unit.attacker.service", unit.as_str()),
        ("systemd.unit-dropin.firewall.service~attacker", &unit),
        (
            "systemd.unit-dropin.multi-user.target~attacker",
            "[Unit]\nWants=attacker.service\n",
        ),
        ("tmpfiles.extra", &to_console),
        ("fstab.extra", "/dev/nvme0n1 /etc ext4 defaults 0 0\n"),
        ("sysctl.extra", "kernel.core_pattern=|/attacker\n"),
        (
            "udev.rules.attacker",
            "RUN+=\"/usr/bin/systemctl start attacker.service\"\n",
        ),
        ("udev.conf.attacker", "udev_log=debug\n"),
        ("getty.ttys.serial", "ttyS0\n"),
        ("ssh.listen", "0.0.0.0:22\n"),
        ("ssh.authorized_keys.root", "ssh-ed25519 AAAA attacker\n"),
        ("passwd.plaintext-password.root", "attacker\n"),
        ("passwd.shell.root", "/attacker\n"),
        ("cryptsetup.passphrase", "attacker\n"),
        (
            "import.pull",
            "tar,class=sysext,runtime=yes:attacker:/attacker\n",
        ),
        ("journal.forward_to_socket", "192.0.2.1:1\n"),
        (
            "network.netdev.50-attacker",
            "[NetDev]\nName=attacker\nKind=dummy\n",
        ),
        (
            "network.link.50-attacker",
            "[Match]\nType=ether\n[Link]\nName=attacker\n",
        ),
        ("network.wireguard.attacker", "attacker\n"),
        ("hsm-pin", "attacker\n"),
        ("tls-key", "attacker\n"),
    ];
    let mut options = attacker.kernel_s_root();
    options.extend(attacker.smbios("io.systemd.boot.kernel-cmdline-extra", KERNEL_S_ROOT));
    for (name, value) in credentials {
        options.extend(attacker.smbios(
            &format!("io.systemd.credential.binary:{name}"),
            &STANDARD.encode(value),
        ));
        // The firmware's file names are shorter than some credentials'.
        if name.len() <= 26 {
            options.extend([
                "-fw_cfg".to_owned(),
                format!(
                    "name=opt/io.systemd.credentials/{name},file={}",
                    attacker.text(value).display()
                ),
            ]);
        }
    }
    let kernel = image.uki();
    let kernel = kernel.file_name().unwrap().to_str().unwrap();
    let mut door = Door::new("what is passed over", &[SERVES])
        .options(options)
        .file(
            &attacker.text("timeout 0\neditor yes\nsecure-boot-enroll force\n"),
            "loader/loader.conf",
        )
        .file(&attacker.add_on(false), "loader/addons/attacker.addon.efi")
        .file(
            &attacker.add_on(false),
            &format!("EFI/Linux/{kernel}.extra.d/attacker.addon.efi"),
        )
        .file(
            &attacker.program("static"),
            "EFI/systemd/drivers/attackerx64.efi",
        );
    door.variable = Some(("SystemdOptions", WORDS.to_owned()));
    door
}

fn refuted(machine: &Machine) {
    let console = machine.console();
    assert!(!console.contains(ATTACKER), "{console}");
}

/// What the attacker has made ready.
struct Attacker {
    folder: tempfile::TempDir,
}

/// A whole root of the attacker's, rightly hashed, on a disk.
struct Root {
    hash: String,
    image: Image,
    disk: Vec<String>,
}

impl Attacker {
    fn new() -> Option<Self> {
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

    fn program(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Such a file, under a name of its own.
    fn text(&self, content: &str) -> PathBuf {
        let count = fs::read_dir(self.folder.path()).unwrap().count();
        let path = self.folder.path().join(format!("text{count}"));
        fs::write(&path, content).unwrap();
        path
    }

    /// A string in the machine's SMBIOS tables, from a file: no comma ends it there.
    fn smbios(&self, name: &str, value: &str) -> Vec<String> {
        let path = self.text(&format!("{name}={value}"));
        vec!["-smbios".into(), format!("type=11,path={}", path.display())]
    }

    /// What systemd-stub appends to the command line.
    fn words(&self, words: &str) -> Vec<String> {
        self.smbios("io.systemd.stub.kernel-cmdline-extra", words)
    }

    /// A unit that needs nothing but what is in the image.
    fn unit(&self) -> PathBuf {
        self.text(&format!(
            "[Unit]\nDescription={ATTACKER}\nDefaultDependencies=no\n[Service]\nType=oneshot\n\
             ExecStart=systemctl show --property=Description attacker.service\nStandardOutput=tty\nTTYPath=/dev/console\n"
        ))
    }

    fn set_variable(&self, firmware: &Path, name: &str, value: &str) {
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
    fn kernel_s_root(&self) -> Vec<String> {
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
    fn initrd(&self) -> PathBuf {
        let tree = self.folder.path().join("initrd-tree");
        fs::create_dir_all(&tree).unwrap();
        fs::copy(self.program("static"), tree.join("init")).unwrap();
        self.tools("cd initrd-tree; echo init | cpio --quiet -o -H newc >../initrd");
        self.folder.path().join("initrd")
    }

    fn add_on(&self, signed: bool) -> PathBuf {
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

    /// A root of the attacker's own making: all of ours, and a unit that says so. Hash and hash tree are right; nobody signed them.
    fn root(&self, image: &Image) -> Root {
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
    fn look_alike(&self, image: &Image, root: &Root) -> Vec<String> {
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
        self.partitioned(name)
    }

    fn state_look_alike(&self) -> Vec<String> {
        let definitions = self.folder.path().join("state.d");
        fs::create_dir(&definitions).unwrap();
        fs::write(
            definitions.join("state.conf"),
            "[Partition]\nType=linux-generic\nLabel=strongroom-state\nFormat=ext4\nSizeMinBytes=64M\n",
        )
        .unwrap();
        self.partitioned("state")
    }

    fn partitioned(&self, name: &str) -> Vec<String> {
        self.tools(&format!(
            "systemd-repart --empty=create --size=auto --offline=yes --definitions={name}.d --dry-run=no {name}"
        ));
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

    /// Runs this in the tree of tools that the build of the image left, in this folder.
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
