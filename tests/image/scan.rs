//! A port scan: what of a machine answers to somebody outside.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// So many connections are tried at a time. More would be lost on the way into an emulated machine.
const TOGETHER: usize = 2000;

/// The kernel asks again after a second: each port is asked twice.
const PATIENCE: Duration = Duration::from_millis(2500);

/// A question for the address of a name, which DNS, mDNS and LLMNR alike answer.
const QUESTION: &[u8] =
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x0astrongroom\x00\x00\x01\x00\x01";

/// What NTP answers.
const WHAT_TIME: [u8; 48] = {
    let mut packet = [0; 48];
    packet[0] = 0x23;
    packet
};

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    pub open: BTreeSet<u16>,
    /// Answered that nothing listens: no firewall is in the way.
    pub closed: BTreeSet<u16>,
}

/// All 65535 ports.
pub async fn tcp(address: IpAddr) -> Tcp {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most.min(1 << 16), most).unwrap();
    let places = Arc::new(Semaphore::new(TOGETHER));
    let mut tries = JoinSet::new();
    for port in 1..=u16::MAX {
        let place = places.clone().acquire_owned().await.unwrap();
        tries.spawn(async move {
            let answer = tokio::time::timeout(PATIENCE, TcpStream::connect((address, port))).await;
            drop(place);
            (port, answer)
        });
    }
    let mut found = Tcp::default();
    while let Some(tried) = tries.join_next().await {
        match tried.unwrap() {
            (port, Ok(Ok(_))) => {
                found.open.insert(port);
            }
            (port, Ok(Err(error))) if error.kind() == ErrorKind::ConnectionRefused => {
                found.closed.insert(port);
            }
            // Too many files, say: that would be no scan.
            (port, Ok(Err(error))) => panic!("port {port}: {error}"),
            (_, Err(_)) => {}
        }
    }
    found
}

/// The ports that answer a question of DNS or NTP, of all 65535.
pub async fn udp(from: IpAddr, address: IpAddr) -> BTreeSet<u16> {
    let socket = UdpSocket::bind((from, 0)).await.unwrap();
    for port in 1..=u16::MAX {
        socket.send_to(QUESTION, (address, port)).await.unwrap();
        if port % 100 == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    for port in [123, 123] {
        socket.send_to(&WHAT_TIME, (address, port)).await.unwrap();
    }
    let mut answered = BTreeSet::new();
    let mut answer = [0; 1500];
    while let Ok(got) = tokio::time::timeout(PATIENCE, socket.recv_from(&mut answer)).await {
        answered.insert(got.unwrap().1.port());
    }
    answered
}
