//! What the console tells: version, fingerprint, health, addresses.

use std::fmt;
use std::net::IpAddr;
use std::process::Command;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use strongroom_core::hex;

use super::birth;
use crate::cli::exit::Exit;

/// Written by the ceremony.
pub(super) const CONFIGURATION_FILE: &str = "/etc/strongroom/strongroom.toml";

const SERVER_UNIT: &str = "strongroom.service";

const SERVER_CERTIFICATE: &str = "/etc/strongroom/tls/server.pem";

/// One look at the appliance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    version: String,
    pub(super) born: bool,
    /// The server ended because of its audit log.
    pub(super) log_refused: bool,
    fingerprint: Option<String>,
    health: String,
    addresses: Vec<IpAddr>,
}

impl Status {
    pub(super) fn now() -> Self {
        let born = birth::is_born();
        let units = Units::now();
        Self {
            version: release("IMAGE_VERSION")
                .unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned()),
            born,
            log_refused: born && units.log_refused(),
            fingerprint: fingerprint(),
            health: health(&units, born),
            addresses: addresses(),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "strongroom: version     {}", self.version)?;
        writeln!(f, "strongroom: health      {}", self.health)?;
        if let Some(fingerprint) = &self.fingerprint {
            writeln!(f, "strongroom: certificate SHA-256 {fingerprint}")?;
        }
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        let none = "none yet".to_owned();
        let joined = if addresses.is_empty() {
            none
        } else {
            addresses.join(", ")
        };
        write!(f, "strongroom: address     {joined}")
    }
}

/// A value of this image's os-release.
pub(super) fn release(name: &str) -> Option<String> {
    let text = std::fs::read_to_string("/usr/lib/os-release").ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        .map(|value| value.trim_matches('"').to_owned())
}

fn fingerprint() -> Option<String> {
    let certificate = CertificateDer::from_pem_file(SERVER_CERTIFICATE).ok()?;
    Some(hex::encode(&Sha256::digest(&certificate)))
}

/// In words, from what systemd knows of the units.
fn health(units: &Units, born: bool) -> String {
    let failed = |unit: &str| units.property(unit, "ActiveState") == "failed";
    if failed("state.service") || failed("systemd-repart.service") {
        return "FAILED: the state partition does not open with this machine's TPM".to_owned();
    }
    if failed("strongroom-version.service") {
        return "FAILED: this version is older than the state allows".to_owned();
    }
    if !born {
        return "waiting for the key ceremony".to_owned();
    }
    let server = |property: &str| units.property(SERVER_UNIT, property);
    match server("ActiveState") {
        "active" => format!("serving ({})", server("StatusText")),
        "failed" => format!("FAILED: the server ended with {}", server("ExecMainStatus")),
        other => format!("not serving ({other})"),
    }
}

/// What `systemctl show` says of the units that count: asked once, since a start of it is dear
/// where the processor is emulated.
struct Units(String);

impl Units {
    fn now() -> Self {
        let output = Command::new("systemctl")
            .args([
                "show",
                "--property=Id,ActiveState,StatusText,ExecMainStatus",
                "state.service",
                "systemd-repart.service",
                "strongroom-version.service",
                SERVER_UNIT,
            ])
            .output();
        Self(output.map_or_else(
            |_| String::new(),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        ))
    }

    fn log_refused(&self) -> bool {
        self.property(SERVER_UNIT, "ActiveState") == "failed"
            && self.property(SERVER_UNIT, "ExecMainStatus") == (Exit::Audit as u8).to_string()
    }

    /// Empty if systemd does not say.
    fn property(&self, unit: &str, name: &str) -> &str {
        // A block of lines for each unit.
        self.0
            .split("\n\n")
            .find(|block| value(block, "Id") == Some(unit))
            .and_then(|block| value(block, name))
            .unwrap_or_default()
    }
}

fn value<'a>(block: &'a str, name: &str) -> Option<&'a str> {
    block
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
}

fn addresses() -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = getifaddrs()
        .into_iter()
        .flatten()
        .filter(|interface| !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK))
        .filter_map(|interface| {
            let address = interface.address?;
            address
                .as_sockaddr_in()
                .map(|v4| IpAddr::from(v4.ip()))
                .or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
        })
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_that_ended_for_its_log_offers_to_go_on_with_it() {
        for (state, status, refused) in [
            ("failed", 8, true),
            ("failed", 5, false),
            ("failed", 0, false),
            ("active", 8, false),
            ("activating", 8, false),
        ] {
            let units = Units(format!(
                "Id=state.service\nActiveState=active\nExecMainStatus=0\n\n\
                 Id={SERVER_UNIT}\nActiveState={state}\nExecMainStatus={status}\nStatusText=\n"
            ));
            assert_eq!(units.log_refused(), refused, "{state} {status}");
        }
    }
}
