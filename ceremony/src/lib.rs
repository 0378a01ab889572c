//! The key ceremony: what the people, their keys, their shares and the record of it all are. What
//! stands in [`run`] carries it out, with an HSM; nothing else here needs one or names `run`.
//!
//! May know: `strongroom-core`, `strongroom-hsm`. Knows nothing of HTTP (a running server is a
//! trait, [`run::later::RunningServer`]), of PKCS#11, of sled and of the command line.
//! `tests/specification.rs` holds it to its `Cargo.toml`.
//!
//! A [`Kind`] of ceremony makes the keys, or something later in their life. A [`Plan`] says what is
//! to happen and who takes part; everyone in it signs it. The PINs of the token are split into
//! [`shares`], one for each custodian, encrypted to them ([`jwe`]) and, if they want, on paper
//! ([`words`], [`page`]). A [`Transcript`] records each step; [`verify`](fn@verify::verify) checks
//! it years later without the HSM, and [`report`] prints it. `docs/transcript-format.md` is the
//! format.

pub mod backup;
pub mod custody_state;
mod error;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
pub mod jwe;
mod kind;
pub mod page;
pub mod participant;
pub mod plan;
pub mod record;
pub mod report;
pub mod run;
pub mod shares;
#[cfg(test)]
mod testing;
pub mod transcript;
pub mod verify;
pub mod words;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use custody_state::CustodyState;
pub use error::CeremonyError;
pub use kind::{Kind, Step};
pub use participant::{Participant, ParticipantKey};
pub use plan::{Plan, PlanSignature};
pub use shares::{Recovery, Share};
pub use transcript::{History, Opening, Transcript};
pub use verify::{Anchors, Verified};

/// Whether it counts. Written on every line of a transcript and on every page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// The real thing.
    Ceremony,
    /// The same on a throwaway token: nothing that comes out of it is taken for real.
    Rehearsal,
}

impl Mode {
    /// As transcripts have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ceremony => "CEREMONY",
            Self::Rehearsal => "REHEARSAL",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What someone does in a ceremony.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Role {
    Custodian,
    SecurityOfficer,
    Auditor,
}

impl Role {
    /// As transcripts have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Custodian => "custodian",
            Self::SecurityOfficer => "security-officer",
            Self::Auditor => "auditor",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SecurityOfficer => "security officer",
            other => other.name(),
        })
    }
}

/// 16 random bytes that tell one ceremony from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CeremonyId(pub [u8; 16]);

impl CeremonyId {
    /// A new one.
    ///
    /// # Errors
    /// [`CeremonyError::Random`].
    pub fn random() -> Result<Self, CeremonyError> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|_| CeremonyError::Random)?;
        Ok(Self(id))
    }

    /// From 32 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        encoding::unhex(text).map(Self)
    }
}

impl fmt::Display for CeremonyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encoding::hex(&self.0))
    }
}

/// Bytes as text, the one way that these formats have them.
pub(crate) mod encoding {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use sha2::{Digest as _, Sha256};
    pub(crate) use strongroom_core::hex::{decode as unhex, encode as hex};

    pub(crate) fn base64(bytes: &[u8]) -> String {
        BASE64_STANDARD.encode(bytes)
    }

    pub(crate) fn unbase64(text: &str) -> Option<Vec<u8>> {
        BASE64_STANDARD.decode(text).ok()
    }

    pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
        Sha256::digest(bytes).into()
    }

    /// SHA-256 of several pieces in a row.
    pub(crate) fn sha256_of(pieces: &[&[u8]]) -> [u8; 32] {
        let mut hasher = Sha256::new();
        for piece in pieces {
            hasher.update(piece);
        }
        hasher.finalize().into()
    }
}
