//! The machine on a network of the test's own, with DHCP, a time server and a log server: what it
//! takes from there, what it sends, and what of it answers.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sched::{CloneFlags, unshare};

use crate::ceremony::{DHCP, STATIC, born_with, make_key, seal_client, unseal, wait_until_healthy};
use crate::logs::{self, LogServer};
use crate::machine::{Image, Link, Machine, Medium, built, installed, run};
use crate::rig::Room;
use crate::scan;

const INTERFACE: &str = "strongroom0";
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

#[test]
#[ignore = "needs make image, and minutes"]
fn on_a_network_only_the_api_answers_time_and_address_are_taken_and_the_journal_is_sent() {
    let Some(image) = built() else { return };
    let Some(seal) = seal_client() else { return };
    for (program, is_there) in [
        ("dnsmasq", installed("dnsmasq")),
        ("ip", installed("ip")),
        ("ping", installed("ping")),
        ("root's rights", nix::unistd::geteuid().is_root()),
        ("systemd-journal-remote", Path::new(logs::PROGRAM).exists()),
    ] {
        if !is_there {
            crate::support::skip("the image on a network", program);
            return;
        }
    }
    // The namespace is that thread's and its children's, and goes with them.
    let done = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(everything(&image, &seal));
    });
    if let Err(panic) = done.join() {
        std::panic::resume_unwind(panic);
    }
}

async fn everything(image: &Image, seal: &Path) {
    let network = Network::new();
    let dhcp: IpAddr = DHCP.parse().unwrap();
    let mut machine = Machine::linked(image, Link::Tap(INTERFACE, dhcp));
    let mut log_server = None;
    let room = born_with(image, &mut machine, |room, medium| {
        log_server = Some(named_on(medium, room));
    })
    .await;
    make_key(&machine, &room.pki).await;
    unseal(&machine, &room.pki, seal, "check");
    network.time.wait();
    // As soon as there are keys, and from the first line on.
    let log_server_of_medium = log_server.unwrap();
    log_server_of_medium.wait_for(&["kernel", "Command line"]);
    println!(
        "{}",
        log_server_of_medium.wait_for(&["strongroom", "listening"])
    );
    drop(log_server_of_medium);
    only_the_api_answers(dhcp).await;

    // Now SMBIOS names another one, and another address.
    let mut log_server = LogServer::new(&room, HOST, 19533);
    log_server.start();
    machine.eject();
    let fixed: IpAddr = STATIC.parse().unwrap();
    machine.moved(fixed);
    let asked = network.time.asked();
    let ca = fs::read_to_string(room.pki.ca()).unwrap();
    let credentials = [
        (
            "network.network.50-static",
            format!("[Match]\nType=ether\n[Network]\nAddress={STATIC}/24\nNTP={HOST}\n"),
        ),
        ("strongroom.logs.url", log_server.url()),
        ("strongroom.logs.ca", ca),
        // Not one that is read.
        (
            "sysctl.extra",
            "net.ipv4.icmp_echo_ignore_all=1\n".to_owned(),
        ),
    ]
    .map(|(name, value)| {
        format!(
            "type=11,value=io.systemd.credential.binary:{name}={}",
            STANDARD.encode(value)
        )
    });
    let options: Vec<&str> = credentials
        .iter()
        .flat_map(|value| ["-smbios", value])
        .collect();
    machine.start_with(&options);
    wait_until_healthy(&machine, &room.pki).await;
    unseal(&machine, &room.pki, seal, "roundtrip");
    assert!(
        !machine.console().contains(DHCP),
        "an address by DHCP too: {}",
        machine.console()
    );
    network.time.wait_beyond(asked);
    run(Command::new("ping").args(["-c", "3", "-W", "5", STATIC]));

    // The server runs in the machine with all of its memory locked.
    println!(
        "{}",
        log_server.wait_for(&["hardened", "every page, when it is first used"])
    );
    assert!(!log_server.lines().contains("not hardened"));

    log_server.stop();
    let port = refused_handshake(fixed);
    // It is in the machine's journal, and what sends it has met a closed door, before the log
    // server is back.
    std::thread::sleep(Duration::from_secs(5));
    log_server.start();
    let meanwhile = log_server.wait_for(&["TLS handshake refused", &format!(":{port} ")]);
    println!("{meanwhile}");
}

/// A log server, and a medium that names it.
fn named_on(medium: &Medium, room: &Room) -> LogServer {
    let mut log_server = LogServer::new(room, HOST, 19532);
    log_server.start();
    let folder = room.path().join("logs");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("url"), log_server.url() + "\n").unwrap();
    fs::copy(room.pki.ca(), folder.join("ca.pem")).unwrap();
    medium.put(&folder, "");
    log_server
}

async fn only_the_api_answers(address: IpAddr) {
    let begun = Instant::now();
    let found = scan::tcp(address).await;
    assert_eq!(
        found,
        scan::Tcp {
            open: BTreeSet::from([8200]),
            closed: BTreeSet::new(),
        }
    );
    assert_eq!(scan::udp(HOST, address).await, BTreeSet::new());
    println!("65535 ports of TCP and of UDP: {:?}", begun.elapsed());
}

/// Something that the server logs, with the port that this came from.
fn refused_handshake(address: IpAddr) -> u16 {
    let mut stream = TcpStream::connect((address, 8200)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    stream.local_addr().unwrap().port()
}

/// An interface of the host's to which the machine is connected, with DHCP and the time on it.
struct Network {
    dhcp: Child,
    time: TimeServer,
    _leases: tempfile::TempDir,
}

impl Network {
    fn new() -> Self {
        for arguments in [
            "link set lo up".to_owned(),
            format!("tuntap add {INTERFACE} mode tap"),
            format!("address add {HOST}/24 dev {INTERFACE}"),
            format!("link set {INTERFACE} up"),
        ] {
            run(Command::new("ip").args(arguments.split(' ')));
        }
        let leases = tempfile::tempdir().unwrap();
        let dhcp = Command::new("dnsmasq")
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0"])
            .args(["--user=root", "--pid-file"])
            .arg(format!("--interface={INTERFACE}"))
            .arg(format!("--dhcp-range={DHCP},{DHCP},255.255.255.0,1h"))
            .arg(format!("--dhcp-option=option:ntp-server,{HOST}"))
            .arg(format!(
                "--dhcp-leasefile={}",
                leases.path().join("leases").display()
            ))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            dhcp,
            time: TimeServer::start(),
            _leases: leases,
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.dhcp.kill();
        let _ = self.dhcp.wait();
    }
}

/// Only counts who asks: a machine that asks here was told to.
struct TimeServer(Arc<AtomicU32>);

impl TimeServer {
    fn start() -> Self {
        let count = Arc::new(AtomicU32::new(0));
        let socket = UdpSocket::bind((HOST, 123)).unwrap();
        let counted = count.clone();
        std::thread::spawn(move || {
            let mut packet = [0; 512];
            while socket.recv_from(&mut packet).is_ok() {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self(count)
    }

    fn asked(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    fn wait(&self) {
        self.wait_beyond(0);
    }

    fn wait_beyond(&self, count: u32) {
        let begun = Instant::now();
        while self.asked() <= count {
            assert!(
                begun.elapsed() < Duration::from_mins(2),
                "nobody asks for the time"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
