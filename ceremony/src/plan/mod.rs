//! The plan: what is to happen, on which token, with whom. TOML that people read and sign.

mod check;
mod draft;
mod signatures;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use strongroom_core::{files, parse_error};

use super::encoding::{hex, sha256, sha256_of};
use super::participant::PublicFile;
use super::{CeremonyError, Participant, Role};

pub use draft::Draft;
pub use signatures::{PlanSignature, signatures_path};

/// The format that plans name.
pub const FORMAT: u32 = 1;

/// Keeps a signature of a plan from passing for one of anything else.
const DOMAIN: &[u8] = b"strongroom ceremony plan v1\0";

/// A valid plan, with the text that it was read from.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The appliance.
    pub name: String,
    /// Which token.
    pub token: Token,
    /// Which keys.
    pub keys: Keys,
    /// How many shares give the PINs back.
    pub threshold: u8,
    /// Those who get a share, in this order.
    pub custodians: Vec<Participant>,
    /// Who carries the ceremony out.
    pub security_officer: Participant,
    /// Who watches it.
    pub auditor: Participant,
    /// What is to run.
    pub software: Software,
    /// What is made for the appliance.
    pub appliance: Appliance,
    /// How the service gets its PIN.
    pub runtime_pin: RuntimePin,
    /// SHA-256 of the plan that this one takes the place of, hexadecimal; none for an initial
    /// ceremony's.
    pub replaces: Option<String>,
    text: String,
}

/// Which token.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// The PKCS#11 module.
    pub module: PathBuf,
    /// The label that it gets.
    pub label: String,
    /// Which one, where more than one is uninitialised.
    pub serial: Option<String>,
}

/// Which keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// Also the second master key, for keys in `memory` residency.
    #[serde(default)]
    pub memory_master: bool,
    /// Also the transfer key, without which the keys can never be moved to another master key.
    #[serde(default)]
    pub transfer: bool,
    /// Whether the keys that a second token needs may be moved to one, wrapped by a key that the
    /// security officer made trusted.
    #[serde(default)]
    pub backup: bool,
}

/// What is to run.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Software {
    /// SHA-256 of the `strongroom` program, hexadecimal.
    pub binary_sha256: String,
    /// SHA-256 of the appliance's image, hexadecimal.
    pub image_sha256: Option<String>,
}

/// What is made for the appliance.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Appliance {
    /// Where configuration and certificates go.
    pub folder: PathBuf,
    /// Where the store and the audit log go.
    pub state: PathBuf,
    /// Where it listens.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// What its certificate is for: DNS names or IP addresses.
    pub names: Vec<String>,
}

/// An address as every reader takes it: no zone, no zeros before the port.
fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    let port = text.rsplit(':').next().unwrap_or_default();
    let plain = !text.contains('%') && (port == "0" || !port.starts_with('0'));
    text.parse().ok().filter(|_| plain).ok_or_else(|| {
        D::Error::custom("not an address and a port, as 192.0.2.1:8200 or [2001:db8::1]:8200")
    })
}

/// How the service gets its PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimePin {
    /// Which way.
    pub method: PinMethod,
}

/// How the service gets its PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PinMethod {
    /// An encrypted systemd credential, bound to the TPM where there is one.
    SystemdCreds,
    /// A file that only the service may read.
    File,
}

impl PinMethod {
    /// As plans have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SystemdCreds => "systemd-creds",
            Self::File => "file",
        }
    }
}

impl Plan {
    /// Reads and checks a plan.
    ///
    /// # Errors
    /// [`CeremonyError::Read`]; [`CeremonyError::Plan`] with everything that is wrong.
    pub fn load(path: &Path) -> Result<Self, CeremonyError> {
        let text = files::read_to_string(path, files::MAX_WRITTEN_BY_HAND)
            .map_err(|error| CeremonyError::read(path, error))?;
        Self::parse(&text)
    }

    /// As [`Plan::load`], from the text.
    ///
    /// # Errors
    /// [`CeremonyError::Plan`] with everything that is wrong.
    pub fn parse(text: &str) -> Result<Self, CeremonyError> {
        let file: File = toml::from_str(text).map_err(|error| {
            let problem = parse_error::toml(text, &error);
            CeremonyError::Plan(vec![format!(
                "{problem}; correct it, and have it signed again"
            )])
        })?;
        check::check(file, text).map_err(CeremonyError::Plan)
    }

    /// The text, byte for byte.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// SHA-256 of the text.
    pub fn hash(&self) -> [u8; 32] {
        sha256(self.text.as_bytes())
    }

    /// [`Plan::hash`], hexadecimal: what people read to each other.
    pub fn hash_hex(&self) -> String {
        hex(&self.hash())
    }

    /// What everyone signs.
    pub fn digest(&self) -> [u8; 32] {
        sha256_of(&[DOMAIN, &self.hash()])
    }

    /// Everyone, in the order in which a transcript is signed.
    pub fn participants(&self) -> impl Iterator<Item = (Role, &Participant)> {
        self.custodians
            .iter()
            .map(|custodian| (Role::Custodian, custodian))
            .chain([
                (Role::SecurityOfficer, &self.security_officer),
                (Role::Auditor, &self.auditor),
            ])
    }

    /// Why this plan can't take the other's place; nothing if it can. People may change, and how
    /// many of them are needed; nothing else may.
    pub fn revision_problems(&self, old: &Self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.replaces.as_deref() != Some(&old.hash_hex()) {
            problems.push(format!(
                "the plan does not say that it replaces the plan in force (replaces = \"{}\")",
                old.hash_hex()
            ));
        }
        // As they are written: two texts of one path or address are two values to another program.
        let written = |plan: &Self| toml::from_str::<toml::Table>(&plan.text).unwrap_or_default();
        let (new, then) = (written(self), written(old));
        for (differs, what) in [
            (new.get("name") != then.get("name"), "name"),
            (new.get("token") != then.get("token"), "token"),
            (self.keys != old.keys, "keys"),
            (new.get("appliance") != then.get("appliance"), "appliance"),
            (
                new.get("runtime_pin") != then.get("runtime_pin"),
                "runtime_pin",
            ),
        ] {
            if differs {
                problems.push(format!(
                    "the plan's `{what}` is not that of the plan that it replaces: only people, threshold and software may change"
                ));
            }
        }
        problems
    }

    /// The participant with this fingerprint.
    pub fn participant(&self, fingerprint: &str) -> Option<(Role, &Participant)> {
        self.participants()
            .find(|(_, participant)| participant.fingerprint() == fingerprint)
    }
}

/// A plan as the file has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    name: String,
    replaces: Option<String>,
    token: Token,
    keys: Keys,
    custody: Custody,
    #[serde(rename = "custodian", default)]
    custodians: Vec<PublicFile>,
    security_officer: PublicFile,
    auditor: PublicFile,
    software: Software,
    appliance: Appliance,
    runtime_pin: RuntimePin,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Custody {
    threshold: u8,
}

#[cfg(test)]
mod tests;
