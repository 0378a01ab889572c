//! What the token knows of the log: how far it had come. Its format is in `docs/audit-format.md`.

use std::fmt;
use std::str::FromStr;

use crate::hex;

/// The first bytes of the register.
const MAGIC: [u8; 4] = *b"SRae";
const VERSION: u8 = 2;
/// Without [`Anchor::bytes`].
const OLD_VERSION: u8 = 1;
/// So many intents without an outcome are named at most, and so many changes are open at once.
/// Older versions had more open: the file tells the others.
pub(super) const MAX_OPEN_INTENTS: usize = 256;

/// A line that was in the log, and what was going on then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// Of the log.
    pub(super) log_id: [u8; 16],
    /// The line's number.
    pub(super) seq: u64,
    /// Its SHA-256.
    pub(super) hash: [u8; 32],
    /// Where it ends in its file, so that nothing before it can be taken out; not known of a log
    /// that an older version wrote last.
    pub(super) bytes: Option<u64>,
    /// What was going on.
    pub(super) phase: Phase,
    /// Numbers of the intents whose outcome was not in the log yet, the lowest ones.
    pub(super) open: Vec<u64>,
}

/// What the writer of the log was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It was writing: more lines may follow.
    Open = 0,
    /// It had stopped in order: the line is the log's last.
    Stopped = 1,
    /// It was about to go on in a new file.
    Rotating = 2,
}

impl Anchor {
    /// The register's value.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut value = MAGIC.to_vec();
        let version = self.bytes.map_or(OLD_VERSION, |_| VERSION);
        value.extend_from_slice(&[version, self.phase as u8]);
        value.extend_from_slice(&self.log_id);
        value.extend_from_slice(&self.seq.to_be_bytes());
        value.extend_from_slice(&self.hash);
        if let Some(bytes) = self.bytes {
            value.extend_from_slice(&bytes.to_be_bytes());
        }
        for seq in self.open.iter().take(MAX_OPEN_INTENTS) {
            value.extend_from_slice(&seq.to_be_bytes());
        }
        value
    }

    /// `None`: not a value of this version.
    pub fn decode(value: &[u8]) -> Option<Self> {
        let (magic, rest) = value.split_first_chunk()?;
        let (&[version, phase], rest) = rest.split_first_chunk()?;
        let (log_id, rest) = rest.split_first_chunk()?;
        let (seq, rest) = rest.split_first_chunk()?;
        let (hash, rest) = rest.split_first_chunk()?;
        let (bytes, rest) = match version {
            OLD_VERSION => (None, rest),
            VERSION => {
                let (bytes, rest) = rest.split_first_chunk()?;
                (Some(u64::from_be_bytes(*bytes)), rest)
            }
            _ => return None,
        };
        let (open, []) = rest.as_chunks() else {
            return None;
        };
        if *magic != MAGIC {
            return None;
        }
        Some(Self {
            log_id: *log_id,
            seq: u64::from_be_bytes(*seq),
            hash: *hash,
            bytes,
            phase: match phase {
                0 => Phase::Open,
                1 => Phase::Stopped,
                2 => Phase::Rotating,
                _ => return None,
            },
            open: open.iter().map(|seq| u64::from_be_bytes(*seq)).collect(),
        })
    }
}

/// As a person hands it on: log id, number, hash, what was going on, and where the line ends.
impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = hex::encode;
        let phase = match self.phase {
            Phase::Open => "open",
            Phase::Stopped => "stopped",
            Phase::Rotating => "rotating",
        };
        let (log_id, hash) = (hex(&self.log_id), hex(&self.hash));
        write!(f, "{log_id}:{}:{hash}:{phase}", self.seq)?;
        match self.bytes {
            Some(bytes) => write!(f, ":{bytes}"),
            None => Ok(()),
        }
    }
}

/// Why a text is no [`Anchor`].
#[derive(Debug, thiserror::Error)]
#[error(
    "not the end of an audit log: LOGID:LINE:SHA256:open, :stopped or :rotating, and :BYTES if they are known, as `strongroom audit end` prints it"
)]
pub struct NoAnchor;

impl FromStr for Anchor {
    type Err = NoAnchor;

    fn from_str(text: &str) -> Result<Self, NoAnchor> {
        let mut parts = text.trim().split(':');
        let mut next = || parts.next().ok_or(NoAnchor);
        let (log_id, seq, hash, phase) = (next()?, next()?, next()?, next()?);
        let anchor = Self {
            log_id: hex::decode(log_id).ok_or(NoAnchor)?,
            seq: seq.parse().map_err(|_| NoAnchor)?,
            hash: hex::decode(hash).ok_or(NoAnchor)?,
            phase: match phase {
                "open" => Phase::Open,
                "stopped" => Phase::Stopped,
                "rotating" => Phase::Rotating,
                _ => return Err(NoAnchor),
            },
            bytes: match parts.next() {
                Some(bytes) => Some(bytes.parse().map_err(|_| NoAnchor)?),
                None => None,
            },
            open: Vec::new(),
        };
        parts.next().is_none().then_some(anchor).ok_or(NoAnchor)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_anchor_survives_the_token_and_a_persons_hands(
            log_id: [u8; 16], seq: u64, hash: [u8; 32], phase in 0_usize..3, bytes: Option<u64>,
            open in prop::collection::vec(any::<u64>(), 0..9)
        ) {
            let phase = [Phase::Open, Phase::Stopped, Phase::Rotating][phase];
            let anchor = Anchor { log_id, seq, hash, bytes, phase, open };
            prop_assert_eq!(Anchor::decode(&anchor.encode()).unwrap(), anchor.clone());
            let told: Anchor = anchor.to_string().parse().unwrap();
            prop_assert_eq!(told, Anchor { open: Vec::new(), ..anchor });
        }

        #[test]
        fn any_bytes_and_texts_are_judged(bytes in prop::collection::vec(any::<u8>(), 0..80), text in ".{0,80}") {
            let _ = Anchor::decode(&bytes);
            let _ = text.parse::<Anchor>();
        }
    }
}
