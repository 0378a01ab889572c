//! Getting the PINs back: one share at a time; a wrong one is refused, named, and changes nothing.

use zeroize::Zeroizing;

use super::super::{CeremonyError, Mode};
use super::{Commitment, Deal, Share, combine};

/// The token's two PINs.
#[derive(Clone)]
pub struct Pins {
    /// The security officer's.
    pub so: Zeroizing<Vec<u8>>,
    /// The user's.
    pub user: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Pins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pins(..)")
    }
}

impl Pins {
    /// Two new ones.
    ///
    /// # Errors
    /// [`CeremonyError::Random`].
    pub fn generate() -> Result<Self, CeremonyError> {
        Ok(Self {
            so: super::generate_pin()?,
            user: super::generate_pin()?,
        })
    }
}

/// What became of a share.
#[derive(Debug)]
pub enum Added {
    /// It is right, and more are needed.
    More {
        /// How many more.
        missing: usize,
    },
    /// It is not taken: which and why, and that another may be tried.
    Refused(Refusal),
    /// It was the last that was needed.
    Complete(Pins),
}

/// Why a share is not taken. Nothing was changed by it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Of another ceremony.
    #[error(
        "this share is of another ceremony ({share}), and those in force were dealt by {wanted}: look for the page or file with that id; an older one is void since custodians were replaced"
    )]
    OtherCeremony {
        /// The share's.
        share: String,
        /// This one's.
        wanted: String,
    },
    /// A rehearsal's in a real ceremony.
    #[error(
        "this share is of a REHEARSAL and worth nothing here: bring the share of the real ceremony"
    )]
    Rehearsal,
    /// A real one in a rehearsal.
    #[error(
        "this share is of a real ceremony and must not be used in a rehearsal: put it away, and bring the rehearsal's"
    )]
    NotRehearsal,
    /// Of someone who has none.
    #[error(
        "this share is of nobody in the plan (index {index}): it was altered, or is of another plan"
    )]
    Unknown {
        /// Its index.
        index: u8,
    },
    /// This custodian's was taken already.
    #[error("{name}'s share was taken already: bring the share of another custodian")]
    Repeated {
        /// Whose.
        name: String,
    },
    /// Not the one that was dealt.
    #[error(
        "{name}'s share is corrupted: it is not the one that was dealt ({what}). Try {name}'s other copy, or another custodian"
    )]
    Corrupted {
        /// Whose.
        name: String,
        /// Which part.
        what: &'static str,
    },
}

/// Collects shares until there are enough.
pub struct Recovery {
    deal: Deal,
    commitments: Vec<Commitment>,
    shares: Vec<Share>,
}

impl Recovery {
    /// For one ceremony; `commitments` are those of its transcript (step `pins`).
    ///
    /// # Errors
    /// [`CeremonyError::Share`] if the commitments are not of these custodians.
    pub fn new(deal: Deal, commitments: Vec<Commitment>) -> Result<Self, CeremonyError> {
        let fit = commitments.len() == deal.custodians.len()
            && commitments.iter().zip(&deal.custodians).zip(1_u8..).all(
                |((commitment, custodian), index)| {
                    commitment.index == index && commitment.custodian == custodian.fingerprint()
                },
            );
        if !fit || deal.threshold == 0 || usize::from(deal.threshold) > deal.custodians.len() {
            return Err(CeremonyError::Share(
                "the transcript's commitments are not of the plan's custodians: check the transcript with `strongroom ceremony verify`".to_owned(),
            ));
        }
        Ok(Self {
            deal,
            commitments,
            shares: Vec::new(),
        })
    }

    /// Which custodians' shares were taken, by name.
    pub fn present(&self) -> Vec<&str> {
        self.shares
            .iter()
            .filter_map(|share| self.place(share))
            .map(|place| self.name(place))
            .collect()
    }

    /// How many are still needed.
    pub fn missing(&self) -> usize {
        usize::from(self.deal.threshold).saturating_sub(self.shares.len())
    }

    /// Takes one share, or says why not.
    pub fn add(&mut self, share: Share) -> Added {
        if let Err(refusal) = self.check(&share) {
            return Added::Refused(refusal);
        }
        self.shares.push(share);
        match self.missing() {
            0 => self.complete(),
            missing => Added::More { missing },
        }
    }

    fn check(&self, share: &Share) -> Result<(), Refusal> {
        // The mode first: a rehearsal's share is always of another ceremony too, but this is what
        // its bearer has to hear.
        match (share.mode, self.deal.mode) {
            (Mode::Rehearsal, Mode::Ceremony) => return Err(Refusal::Rehearsal),
            (Mode::Ceremony, Mode::Rehearsal) => return Err(Refusal::NotRehearsal),
            _ => {}
        }
        if share.ceremony_id != self.deal.ceremony_id {
            return Err(Refusal::OtherCeremony {
                share: share.ceremony_id.to_string(),
                wanted: self.deal.ceremony_id.to_string(),
            });
        }
        let unknown = Refusal::Unknown { index: share.index };
        let place = self.place(share).ok_or(unknown)?;
        let name = || self.name(place).to_owned();
        if self.shares.iter().any(|other| other.index == share.index) {
            return Err(Refusal::Repeated { name: name() });
        }
        let corrupted = |what| Refusal::Corrupted { name: name(), what };
        let (found, dealt) = (share.commitment(), self.commitments.get(place));
        if dealt.is_none_or(|dealt| dealt.so != found.so) {
            return Err(corrupted("its part of the security officer's PIN"));
        }
        if dealt.is_none_or(|dealt| dealt.user != found.user) {
            return Err(corrupted("its part of the user PIN"));
        }
        if share.threshold != self.deal.threshold {
            return Err(corrupted("its threshold"));
        }
        Ok(())
    }

    fn complete(&mut self) -> Added {
        let so: Vec<&[u8]> = self.shares.iter().map(|share| &**share.so.share).collect();
        let user: Vec<&[u8]> = self
            .shares
            .iter()
            .map(|share| &**share.user.share)
            .collect();
        if let (Some(so), Some(user)) = (combine(&so), combine(&user)) {
            return Added::Complete(Pins { so, user });
        }
        // Every share met its commitment and indices differ, so this is the last one's length.
        let last = self.shares.pop().and_then(|share| self.place(&share));
        Added::Refused(Refusal::Corrupted {
            name: last.map_or_else(String::new, |place| self.name(place).to_owned()),
            what: "its length",
        })
    }

    /// Whose share it is, as a place among the custodians.
    fn place(&self, share: &Share) -> Option<usize> {
        let place = usize::from(share.index).checked_sub(1)?;
        let custodian = self.deal.custodians.get(place)?;
        (custodian.fingerprint() == share.custodian).then_some(place)
    }

    fn name(&self, place: usize) -> &str {
        self.deal
            .custodians
            .get(place)
            .map_or("", |custodian| custodian.name())
    }
}
