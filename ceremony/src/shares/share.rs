//! One custodian's share: of both PINs, with what tells which ceremony it belongs to.

use serde::{Deserialize, Serialize};
use strongroom_core::json::{self, Document};
use zeroize::Zeroizing;

use super::super::encoding::{base64, hex, sha256_of, unbase64};
use super::super::{CeremonyError, CeremonyId, Mode, Participant, words};
use super::Deal;

/// The format that shares name.
const FORMAT: u8 = 1;

/// One custodian's share.
#[derive(Clone)]
pub struct Share {
    /// Of which ceremony.
    pub ceremony_id: CeremonyId,
    /// Whether that counted.
    pub mode: Mode,
    /// Whose it is: a fingerprint.
    pub custodian: String,
    /// Their place in the plan, from 1.
    pub index: u8,
    /// How many are needed.
    pub threshold: u8,
    pub(super) so: Piece,
    pub(super) user: Piece,
}

/// A share of one secret.
#[derive(Clone)]
pub(super) struct Piece {
    salt: Zeroizing<[u8; 32]>,
    /// The index, and the polynomials' values there.
    pub(super) share: Zeroizing<Vec<u8>>,
}

/// What a transcript keeps of a share: enough to tell whether it is the one that was dealt, and
/// nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commitment {
    /// Whose it is: a fingerprint.
    pub custodian: String,
    /// Their place in the plan, from 1.
    pub index: u8,
    /// SHA-256 of salt || share of the security officer's PIN, hexadecimal.
    pub so: String,
    /// The same of the user PIN.
    pub user: String,
}

impl Share {
    pub(super) fn new(
        deal: &Deal,
        custodian: &Participant,
        so: Zeroizing<Vec<u8>>,
        user: Zeroizing<Vec<u8>>,
    ) -> Result<Self, CeremonyError> {
        Ok(Self {
            ceremony_id: deal.ceremony_id,
            mode: deal.mode,
            custodian: custodian.fingerprint(),
            index: so.first().copied().unwrap_or(0),
            threshold: deal.threshold,
            so: Piece::new(so)?,
            user: Piece::new(user)?,
        })
    }

    /// What the transcript keeps of it.
    pub fn commitment(&self) -> Commitment {
        Commitment {
            custodian: self.custodian.clone(),
            index: self.index,
            so: self.so.commitment(),
            user: self.user.commitment(),
        }
    }

    /// As it is encrypted.
    ///
    /// # Errors
    /// [`CeremonyError::Share`].
    pub fn to_json(&self) -> Result<Zeroizing<Vec<u8>>, CeremonyError> {
        let text = Text {
            format: FORMAT,
            ceremony_id: self.ceremony_id.to_string(),
            mode: self.mode,
            custodian: self.custodian.clone(),
            index: self.index,
            threshold: self.threshold,
            so: self.so.to_text(),
            user: self.user.to_text(),
        };
        // Room for all of it at once: a vector that grows leaves copies behind.
        let mut json = Zeroizing::new(Vec::with_capacity(4096));
        serde_json::to_writer(&mut *json, &text)
            .map_err(|_| CeremonyError::Share("the share could not be written".to_owned()))?;
        Ok(json)
    }

    /// From what was encrypted.
    ///
    /// # Errors
    /// [`CeremonyError::Share`] if it is not a share.
    pub fn from_json(json: &[u8]) -> Result<Self, CeremonyError> {
        let refuse =
            || CeremonyError::Share("what was decrypted is not a share of this format".to_owned());
        let document = Document::parse(json).map_err(|_| refuse())?;
        let text: Text = json::read_exactly(document.value()).map_err(|_| refuse())?;
        if text.format != FORMAT || text.index == 0 {
            return Err(refuse());
        }
        Ok(Self {
            ceremony_id: CeremonyId::parse(&text.ceremony_id).ok_or_else(refuse)?,
            mode: text.mode,
            custodian: text.custodian,
            index: text.index,
            threshold: text.threshold,
            so: Piece::from_text(&text.so, text.index).ok_or_else(refuse)?,
            user: Piece::from_text(&text.user, text.index).ok_or_else(refuse)?,
        })
    }

    /// The share as words to write down or type in.
    ///
    /// # Errors
    /// [`CeremonyError::Share`].
    pub fn to_words(&self) -> Result<Zeroizing<String>, CeremonyError> {
        Ok(words::encode(&self.packed()))
    }

    /// A share from words that a custodian typed; `deal` says who has which index.
    ///
    /// # Errors
    /// [`CeremonyError::Words`] naming the word that is none, or for a checksum that is wrong;
    /// [`CeremonyError::Share`].
    pub fn from_words(text: &str, deal: &Deal) -> Result<Self, CeremonyError> {
        Self::unpack(&words::decode(text)?, deal)
    }

    /// format, mode, ceremony id, index, threshold, length of both pieces' values, then salt and
    /// values of each.
    fn packed(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(512));
        bytes.extend_from_slice(&[FORMAT, u8::from(self.mode == Mode::Rehearsal)]);
        bytes.extend_from_slice(&self.ceremony_id.0);
        bytes.extend_from_slice(&[self.index, self.threshold]);
        for piece in [&self.so, &self.user] {
            let values = piece.share.get(1..).unwrap_or_default();
            bytes.push(u8::try_from(values.len()).unwrap_or(u8::MAX));
            bytes.extend_from_slice(&*piece.salt);
            bytes.extend_from_slice(values);
        }
        bytes
    }

    fn unpack(bytes: &[u8], deal: &Deal) -> Result<Self, CeremonyError> {
        let refuse = || {
            CeremonyError::Share(
                "these words are right, but they are not a share of this format".to_owned(),
            )
        };
        let mut rest = bytes;
        let mut take = |count: usize| {
            let (head, tail) = rest.split_at_checked(count).ok_or_else(refuse)?;
            rest = tail;
            Ok::<_, CeremonyError>(head)
        };
        let mode = match take(2)? {
            [FORMAT, 0] => Mode::Ceremony,
            [FORMAT, 1] => Mode::Rehearsal,
            _ => return Err(refuse()),
        };
        let ceremony_id = CeremonyId(take(16)?.try_into().map_err(|_| refuse())?);
        let (index, threshold) = match take(2)? {
            [index, threshold] => (*index, *threshold),
            _ => return Err(refuse()),
        };
        let mut piece = || {
            let length = take(1)?.first().copied().filter(|length| *length > 0);
            let length = usize::from(length.ok_or_else(refuse)?);
            let salt = take(32)?.try_into().map_err(|_| refuse())?;
            let share = Zeroizing::new([&[index], take(length)?].concat());
            Ok::<_, CeremonyError>(Piece {
                salt: Zeroizing::new(salt),
                share,
            })
        };
        let (so, user) = (piece()?, piece()?);
        if !rest.is_empty() {
            return Err(refuse());
        }
        // Paper names no fingerprint; a share of another ceremony is told by its id, so any name
        // will do for it.
        let custodian = deal
            .custodians
            .get(usize::from(index).wrapping_sub(1))
            .map(Participant::fingerprint)
            .unwrap_or_default();
        Ok(Self {
            ceremony_id,
            mode,
            custodian,
            index,
            threshold,
            so,
            user,
        })
    }
}

/// Never what it holds.
impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Share")
            .field("ceremony_id", &self.ceremony_id)
            .field("mode", &self.mode)
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

impl Piece {
    fn new(share: Zeroizing<Vec<u8>>) -> Result<Self, CeremonyError> {
        let mut salt = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *salt).map_err(|_| CeremonyError::Random)?;
        Ok(Self { salt, share })
    }

    fn commitment(&self) -> String {
        hex(&sha256_of(&[&*self.salt, &self.share]))
    }

    fn to_text(&self) -> PieceText {
        PieceText {
            salt: Zeroizing::new(base64(&*self.salt)),
            share: Zeroizing::new(base64(&self.share)),
        }
    }

    fn from_text(text: &PieceText, index: u8) -> Option<Self> {
        let salt = Zeroizing::new(unbase64(&text.salt)?);
        let share = Zeroizing::new(unbase64(&text.share)?);
        // The index inside is the one outside: what is said of a share is said of its values too.
        (share.len() > 1 && share.first() == Some(&index)).then_some(Self {
            salt: Zeroizing::new(salt.as_slice().try_into().ok()?),
            share,
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: u8,
    ceremony_id: String,
    mode: Mode,
    custodian: String,
    index: u8,
    threshold: u8,
    so: PieceText,
    user: PieceText,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PieceText {
    salt: Zeroizing<String>,
    share: Zeroizing<String>,
}
