//! A virtual machine: disk, firmware variables, TPM, serial console, and a port of this host that
//! leads to the API's.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::net::{IpAddr, TcpListener};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use uuid::Uuid;

/// How long the slowest start took, in milliseconds, from QEMU's start to the console's first
/// status; 0 before there was one. A boot takes half a minute where nothing else runs, and many
/// times that on a busy host that must emulate the processor.
static SLOWEST_START: AtomicU64 = AtomicU64::new(0);

/// What the console shows once the machine is up.
const UP: &str = "strongroom: version ";

/// How long a machine may take to its next step before it counts as hung: several times what a
/// start took.
pub fn patience() -> Duration {
    match SLOWEST_START.load(Ordering::Relaxed) {
        0 => Duration::from_mins(20),
        start => Duration::from_mins(4).max(6 * Duration::from_millis(start)),
    }
}

/// Bytes: as much as a state partition needs beside the two slots.
const DISK: u64 = 1 << 30;

/// The build's output; `None`, counted as skipped, where the image is not built or QEMU not
/// installed.
pub fn built() -> Option<Image> {
    let folder = std::env::var_os("STRONGROOM_IMAGE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("image/out"),
        PathBuf::from,
    );
    let image = Image { folder };
    // Why `tests/run` could not build it.
    let not_built = std::env::var("STRONGROOM_NO_IMAGE");
    let missing = [
        (
            image.find(".raw", "strongroom_").is_none(),
            not_built.as_deref().unwrap_or("make image was not run"),
        ),
        (
            !installed("qemu-system-x86_64"),
            "qemu-system-x86 is not installed",
        ),
        (!installed("swtpm"), "swtpm is not installed"),
        (!installed("mcopy"), "mtools is not installed"),
        (!installed("mkfs.vfat"), "dosfstools is not installed"),
    ];
    for (is_missing, why) in missing {
        if is_missing {
            crate::support::skip("the image in QEMU", why);
            return None;
        }
    }
    Some(image)
}

pub fn installed(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).exists())
}

/// What `make image` made.
pub struct Image {
    folder: PathBuf,
}

impl Image {
    fn find(&self, end: &str, start: &str) -> Option<PathBuf> {
        let mut found: Vec<PathBuf> = fs::read_dir(&self.folder)
            .ok()?
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                let name = path.file_name().unwrap().to_str().unwrap();
                let part = name.contains(".root.") || name.contains(".verity.");
                name.starts_with(start) && name.ends_with(end) && (end != ".raw" || !part)
            })
            .collect();
        found.sort();
        found.into_iter().next()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The SHA-256 of the program inside, hexadecimal.
    pub fn program_sha256(&self) -> String {
        fs::read_to_string(self.file("strongroom.sha256"))
            .unwrap()
            .trim()
            .to_owned()
    }

    /// Another version with the same keys, built beside this image once: with these variables for
    /// `image/build.sh`.
    pub fn other(&self, name: &str, variables: &[(&str, &str)]) -> Self {
        let mut folder = self.folder.clone().into_os_string();
        folder.push(format!("-{name}"));
        let other = Self {
            folder: folder.into(),
        };
        let made =
            |image: &Self| fs::metadata(image.file("SHA256SUMS")).and_then(|it| it.modified());
        if made(&other).ok() < made(self).ok() {
            run(
                Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("image/build.sh"))
                    .arg(&other.folder)
                    .env("STRONGROOM_BINARY", crate::support::STRONGROOM)
                    .envs(variables.iter().copied()),
            );
        }
        other
    }

    /// What belongs into the directory `update` of a medium.
    pub fn update_files(&self) -> Vec<PathBuf> {
        [".efi", ".root.raw", ".verity.raw"]
            .map(|end| self.find(end, "strongroom_").unwrap())
            .into()
    }

    /// The partitions of root and hash tree, by which the initrd finds them.
    pub fn identities(&self) -> [String; 2] {
        [".root.raw", ".verity.raw"].map(|end| {
            let path = self.find(end, "strongroom_").unwrap();
            let name = path.file_name().unwrap().to_str().unwrap();
            let identity = name.strip_suffix(end).unwrap().rsplit('_').next().unwrap();
            identity.to_owned()
        })
    }

    /// The signed kernel image.
    pub fn uki(&self) -> PathBuf {
        self.find(".efi", "strongroom_").unwrap()
    }
}

pub struct Machine {
    folder: TempDir,
    running: Option<Running>,
    link: Link,
    medium: Option<PathBuf>,
}

/// How the machine's network card leads to this host.
pub enum Link {
    /// This port of this host leads to the API's, and nothing else leads anywhere.
    Port(u16),
    /// This interface; the machine's address.
    Tap(&'static str, IpAddr),
}

struct Running {
    qemu: Child,
    tpm: Child,
    since: Instant,
    /// Its first status was on the console.
    up: bool,
}

impl Machine {
    /// As delivered: the image on a larger disk, Secure Boot with the build's keys, a TPM that has
    /// seen nothing.
    pub fn new(image: &Image) -> Self {
        Self::linked(image, Link::Port(free_port()))
    }

    pub fn linked(image: &Image, link: Link) -> Self {
        let folder = tempfile::Builder::new().prefix("sr-vm-").tempdir().unwrap();
        let raw = image.find(".raw", "strongroom_").unwrap();
        let copied = Command::new("cp")
            .args(["--sparse=always", "--"])
            .arg(raw)
            .arg(folder.path().join("disk"))
            .status()
            .unwrap();
        assert!(copied.success());
        let disk = OpenOptions::new()
            .write(true)
            .open(folder.path().join("disk"))
            .unwrap();
        disk.set_len(DISK).unwrap();
        for (from, to) in [("firmware-code.fd", "code"), ("firmware-vars.fd", "vars")] {
            fs::copy(image.file(from), folder.path().join(to)).unwrap();
        }
        let mut machine = Self {
            folder,
            running: None,
            link,
            medium: None,
        };
        machine.new_tpm();
        machine
    }

    /// The same machine once more, as it was when it was stopped: its disk, its firmware's
    /// variables, its TPM.
    pub fn copy_of(kept: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("sr-vm-").tempdir().unwrap();
        copy_parts(kept, folder.path());
        Self {
            folder,
            running: None,
            link: Link::Port(free_port()),
            medium: None,
        }
    }

    /// Keeps disk, firmware's variables and TPM in this directory, for [`Machine::copy_of`].
    pub fn keep(&self, folder: &Path) {
        assert!(self.running.is_none(), "stop it first");
        copy_parts(self.folder.path(), folder);
    }

    /// Another TPM, as in another machine.
    pub fn new_tpm(&mut self) {
        let folder = self.folder.path().join("tpm");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(folder).unwrap();
    }

    /// Firmware that trusts others' keys only.
    pub fn trust_others(&self, image: &Image) {
        fs::copy(
            image.file("firmware-vars-others.fd"),
            self.folder.path().join("vars"),
        )
        .unwrap();
    }

    /// Firmware that starts anything.
    pub fn secure_boot_off(&self, image: &Image) {
        fs::copy(
            image.file("firmware-vars-off.fd"),
            self.folder.path().join("vars"),
        )
        .unwrap();
    }

    /// With a medium in it.
    pub fn insert(&mut self, medium: &Path) {
        self.medium = Some(medium.to_owned());
    }

    pub fn eject(&mut self) {
        self.medium = None;
    }

    pub fn disk(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    pub fn firmware_variables(&self) -> PathBuf {
        self.folder.path().join("vars")
    }

    pub fn url(&self) -> String {
        match &self.link {
            Link::Port(port) => format!("https://127.0.0.1:{port}"),
            Link::Tap(_, address) => format!("https://{address}:8200"),
        }
    }

    /// To another address.
    pub fn moved(&mut self, address: IpAddr) {
        if let Link::Tap(_, old) = &mut self.link {
            *old = address;
        }
    }

    /// Of this host, by QEMU since the start: a busy host bends it less than the time on the wall.
    pub fn processor_time(&self) -> Duration {
        let id = self.running.as_ref().unwrap().qemu.id();
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
        // After the name, which may hold anything: user and system time are the 12th and 13th.
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        // A hundred a second on every Linux.
        Duration::from_millis(ticks * 10)
    }

    /// Power on.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    pub fn start_with(&mut self, more: &[&str]) {
        self.stop();
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let socket = path("tpm/socket");
        let tpm = Command::new("swtpm")
            .args(["socket", "--tpm2", "--terminate", "--tpmstate"])
            .arg(format!("dir={}", path("tpm")))
            .args(["--ctrl", &format!("type=unixio,path={socket}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while !Path::new(&socket).exists() {
            assert!(begun.elapsed() < patience(), "swtpm does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = fs::remove_file(path("console"));
        let code = PathBuf::from(path("code"));
        let mut qemu = hardware(
            accelerator(&code),
            &code,
            Path::new(&path("vars")),
            "chardev:console",
        );
        // What it shows goes to the file, whether or not somebody is there to type.
        qemu.args([
            "-chardev",
            &format!(
                "socket,id=console,path={},server=on,wait=off,logfile={}",
                path("keyboard"),
                path("console")
            ),
        ])
        .args([
            "-drive",
            &format!(
                "if=none,id=disk,format=raw,cache=unsafe,file={}",
                path("disk")
            ),
        ])
        .args(["-device", "virtio-blk-pci,drive=disk,bootindex=1"])
        .args(["-chardev", &format!("socket,id=tpm,path={socket}")])
        .args([
            "-tpmdev",
            "emulator,id=tpm,chardev=tpm",
            "-device",
            "tpm-crb,tpmdev=tpm",
        ])
        .args(["-netdev", &self.link.netdev()])
        .args(["-device", "virtio-net-pci,netdev=net,romfile="])
        .args(["-device", "virtio-rng-pci"])
        .args(more);
        if let Some(medium) = &self.medium {
            // Written through: the other side of this file is read while the machine runs.
            qemu.args([
                "-drive",
                &format!("if=none,id=medium,format=raw,file={}", medium.display()),
            ])
            .args(["-device", "virtio-blk-pci,drive=medium"]);
        }
        let qemu = qemu
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(path("qemu-errors")).unwrap())
            .spawn()
            .unwrap();
        self.running = Some(Running {
            qemu,
            tpm,
            since: Instant::now(),
            up: false,
        });
    }

    /// The plug is pulled.
    pub fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            for child in [&mut running.qemu, &mut running.tpm] {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }

    /// All that the serial console has shown since the start, without escape sequences.
    pub fn console(&self) -> String {
        let bytes = fs::read(self.folder.path().join("console")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let mut plain = String::new();
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            match character {
                '\u{1b}' => {
                    let mut sequence = characters
                        .by_ref()
                        .skip_while(|c| "[0123456789;?=!".contains(*c));
                    sequence.next();
                }
                '\r' => {}
                other => plain.push(other),
            }
        }
        plain
    }

    /// At the serial console, with Enter.
    pub fn type_line(&self, line: &str) {
        let mut keyboard = UnixStream::connect(self.folder.path().join("keyboard")).unwrap();
        keyboard.write_all(format!("{line}\r").as_bytes()).unwrap();
        // The machine's serial port takes some bytes at a time.
        std::thread::sleep(Duration::from_secs(5));
    }

    /// Until the console shows one of these; which.
    pub fn wait_for<'a>(&mut self, texts: &[&'a str]) -> &'a str {
        self.wait_through_starts(1, texts)
    }

    /// The same, over so many starts.
    pub fn wait_through_starts<'a>(&mut self, starts: u32, texts: &[&'a str]) -> &'a str {
        self.try_wait_through_starts(starts, texts)
            .unwrap_or_else(|why| panic!("{why}"))
    }

    /// As [`Machine::wait_for`]; what was seen instead where it never comes.
    pub fn try_wait_for<'a>(&mut self, texts: &[&'a str]) -> Result<&'a str, String> {
        self.try_wait_through_starts(1, texts)
    }

    fn try_wait_through_starts<'a>(
        &mut self,
        starts: u32,
        texts: &[&'a str],
    ) -> Result<&'a str, String> {
        let begun = Instant::now();
        loop {
            let console = self.console();
            if let Some(running) = &mut self.running {
                running.measure(&console);
            }
            if let Some(text) = texts.iter().find(|text| console.contains(**text)) {
                return Ok(text);
            }
            if let Some(running) = &mut self.running
                && let Some(status) = running.qemu.try_wait().unwrap()
            {
                let errors =
                    fs::read_to_string(self.folder.path().join("qemu-errors")).unwrap_or_default();
                return Err(format!(
                    "QEMU ended with {status} before {texts:?}: {errors}\n{console}"
                ));
            }
            if begun.elapsed() > starts * patience() {
                return Err(format!("the console never showed {texts:?}:\n{console}"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Changes one byte of the disk, `offset` bytes into the partition of this type.
    pub fn flip(&self, partition: Partition, offset: u64) {
        let disk = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.disk())
            .unwrap();
        let at = partition.start(&disk) + offset;
        let mut byte = [0];
        disk.read_exact_at(&mut byte, at).unwrap();
        byte[0] ^= 1;
        disk.write_all_at(&byte, at).unwrap();
    }

    /// All bytes of a partition of the machine's disk.
    pub fn read(&self, partition: Partition) -> Vec<u8> {
        let disk = File::open(self.disk()).unwrap();
        let range = partition.range(&disk);
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
        disk.read_exact_at(&mut bytes, range.start).unwrap();
        bytes
    }

    /// From the partition's start.
    pub fn write(&self, partition: Partition, bytes: &[u8]) {
        let disk = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.disk())
            .unwrap();
        let range = partition.range(&disk);
        assert!(bytes.len() as u64 <= range.end - range.start);
        disk.write_all_at(bytes, range.start).unwrap();
    }

    /// The kernel images on the boot partition.
    pub fn kernels(&self) -> Vec<String> {
        let output = Command::new("mdir")
            .args(["-b", "-i", &self.boot_partition(), "::EFI/Linux"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| line.rsplit('/').next().unwrap().to_owned())
            .collect()
    }

    /// Puts a file on the boot partition, with the directories that it needs.
    pub fn put_on_boot_partition(&self, file: &Path, to: &str) {
        put(&self.boot_partition(), file, to);
    }

    /// `mcopy` and its like see the boot partition as this drive.
    pub fn boot_partition(&self) -> String {
        boot_partition_of(&self.disk())
    }

    /// The identity of the boot partition (`PARTUUID`).
    pub fn boot_identity(&self) -> Uuid {
        let disk = File::open(self.disk()).unwrap();
        let mut identity = [0; 16];
        disk.read_exact_at(&mut identity, Partition::Boot.entry() + 16)
            .unwrap();
        Uuid::from_bytes_le(identity)
    }
}

/// Puts a file on a drive, with the directories that it needs.
pub fn put(drive: &str, file: &Path, to: &str) {
    for (end, _) in to.match_indices('/') {
        // It may be there.
        let _ = Command::new("mmd")
            .args(["-D", "s", "-i", drive, &format!("::{}", &to[..end])])
            .stdin(Stdio::null())
            .output();
    }
    run(Command::new("mcopy")
        .args(["-o", "-i", drive])
        .arg(file)
        .arg(format!("::{to}")));
}

pub fn boot_partition_of(disk: &Path) -> String {
    let start = Partition::Boot.start(&File::open(disk).unwrap());
    format!("{}@@{start}", disk.display())
}

fn copy_parts(from: &Path, to: &Path) {
    for name in ["disk", "code", "vars", "tpm"] {
        run(Command::new("cp")
            .args(["-r", "--sparse=always", "--"])
            .arg(from.join(name))
            .arg(to.join(name)));
    }
    let _ = fs::remove_file(to.join("tpm/socket"));
}

impl Running {
    fn measure(&mut self, console: &str) {
        if !self.up && console.contains(UP) {
            self.up = true;
            let took = u64::try_from(self.since.elapsed().as_millis()).unwrap();
            SLOWEST_START.fetch_max(took, Ordering::Relaxed);
        }
    }
}

/// Free now, and hardly taken until QEMU binds it.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Link {
    fn netdev(&self) -> String {
        match self {
            Link::Port(port) => {
                format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:8200")
            }
            Link::Tap(interface, _) => {
                format!("tap,id=net,ifname={interface},script=no,downscript=no")
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// By its place in the table.
#[derive(Clone, Copy)]
pub enum Partition {
    Boot = 0,
    Root = 1,
    /// Since the first boot.
    State = 5,
}

impl Partition {
    /// Where it is in the table: bytes from the start of the disk.
    fn entry(self) -> u64 {
        1024 + 128 * self as u64
    }

    /// Bytes from the start of the disk.
    fn start(self, disk: &File) -> u64 {
        self.range(disk).start
    }

    /// Bytes of the disk.
    fn range(self, disk: &File) -> Range<u64> {
        let mut entry = [0; 128];
        disk.read_exact_at(&mut entry, self.entry()).unwrap();
        let block = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap());
        block(32) * 512..(block(40) + 1) * 512
    }
}

/// A disk with a FAT file system labelled STRONGROOM.
pub struct Medium {
    path: PathBuf,
}

impl Medium {
    pub fn new(path: PathBuf) -> Self {
        let mut file = File::create(&path).unwrap();
        file.seek(SeekFrom::Start((160 << 20) - 1)).unwrap();
        file.write_all(&[0]).unwrap();
        run(Command::new("/usr/sbin/mkfs.vfat")
            .args(["-n", "STRONGROOM"])
            .arg(&path));
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn folder(&self, name: &str) {
        run(Command::new("mmd")
            .arg("-i")
            .arg(&self.path)
            .arg(format!("::{name}")));
    }

    pub fn put(&self, file: &Path, to: &str) {
        run(Command::new("mcopy")
            .args(["-o", "-s", "-i"])
            .arg(&self.path)
            .arg(file)
            .arg(format!("::{to}")));
    }

    /// `None` if it is not there.
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        let output = Command::new("mtype")
            .arg("-i")
            .arg(&self.path)
            .arg(format!("::{name}"))
            .output()
            .unwrap();
        output.status.success().then_some(output.stdout)
    }
}

pub fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// QEMU's options: KVM only where the machine's firmware was seen to come up under it. A /dev/kvm
/// that is there may still abort, fail or hang.
fn accelerator(firmware: &Path) -> [&'static str; 4] {
    static KVM: OnceLock<bool> = OnceLock::new();
    if *KVM.get_or_init(|| Path::new("/dev/kvm").exists() && firmware_runs(firmware, HARDWARE)) {
        HARDWARE
    } else {
        // Without ERMS: the kernel clears pages by `rep stosb` where it can, which is emulated byte
        // by byte and took a quarter of the boot.
        ["-accel", "tcg,thread=multi", "-cpu", "max,-erms"]
    }
}

const HARDWARE: [&str; 4] = ["-accel", "kvm", "-cpu", "host"];

/// Without a disk the firmware says so after some seconds.
fn firmware_runs(firmware: &Path, accelerator: [&str; 4]) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let (console, vars) = (folder.path().join("console"), folder.path().join("vars"));
    fs::copy(firmware.with_file_name("vars"), &vars).unwrap();
    let serial = format!("file:{}", console.display());
    let mut qemu = hardware(accelerator, firmware, &vars, &serial)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let mut runs = false;
    while !runs && begun.elapsed() < Duration::from_secs(30) && qemu.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(100));
        runs =
            fs::read(&console).is_ok_and(|text| String::from_utf8_lossy(&text).contains("BdsDxe"));
    }
    let _ = qemu.kill();
    let _ = qemu.wait();
    runs
}

/// What every machine has.
fn hardware(accelerator: [&str; 4], code: &Path, vars: &Path, serial: &str) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none"])
        // Two cores and 200 MiB: what the appliance has to get by with.
        .args(["-machine", "q35,smm=on", "-smp", "2", "-m", "200"])
        // Real machines have one. Without it the guest is another machine at each boot, to which
        // nothing is sealed.
        .args(["-uuid", "5f0c6a1e-7d0b-4a57-9d3e-2f6f1c9b8a10"])
        .args(accelerator)
        .args(["-global", "driver=cfi.pflash01,property=secure,value=on"])
        .args(["-global", "ICH9-LPC.disable_s3=1"])
        .args([
            "-drive",
            &format!(
                "if=pflash,unit=0,format=raw,readonly=on,file={}",
                code.display()
            ),
        ])
        .args([
            "-drive",
            &format!("if=pflash,unit=1,format=raw,file={}", vars.display()),
        ])
        .args(["-serial", serial]);
    qemu
}
