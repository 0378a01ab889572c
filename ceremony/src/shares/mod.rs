//! The token's PINs, split M-of-N: dealing the shares, and getting the PINs back.
//!
//! The scheme is Shamir's over GF(256), by the crate `vsss-rs`. It was chosen over `blahaj` (a
//! repaired fork of `sharks`, whose polynomials were biased, RUSTSEC-2024-0398): both now draw
//! every coefficient from the whole field, but `vsss-rs` was audited twice, computes without tables
//! that a secret would index, and takes the `rand_core` that the rest of this program uses. Neither
//! tells a wrong share from a right one, so each share is committed to in the transcript.

mod recovery;
mod share;

use getrandom::SysRng;
use rand_core::UnwrapErr;
use vsss_rs::Gf256;
use zeroize::Zeroizing;

use super::{CeremonyError, CeremonyId, Mode, Participant, ParticipantKey, Plan, jwe};

pub use recovery::{Added, Pins, Recovery, Refusal};
pub use share::{Commitment, Share};

/// A PIN's characters: without those that are taken for another (0 O, 1 I l), and fit for every
/// token and keyboard.
const ALPHABET: &[u8; 32] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZ";

/// 24 of 32 characters: 120 bits.
const PIN_LENGTH: usize = 24;

/// What every share of one ceremony has in common.
#[derive(Clone, Debug)]
pub struct Deal {
    /// Which ceremony.
    pub ceremony_id: CeremonyId,
    /// Whether it counts.
    pub mode: Mode,
    /// How many shares give the PINs back.
    pub threshold: u8,
    /// Who gets them: the first gets share 1.
    pub custodians: Vec<Participant>,
}

impl Deal {
    /// As a plan has it.
    pub fn new(plan: &Plan, ceremony_id: CeremonyId, mode: Mode) -> Self {
        Self {
            ceremony_id,
            mode,
            threshold: plan.threshold,
            custodians: plan.custodians.clone(),
        }
    }
}

/// A PIN from the kernel's generator.
///
/// # Errors
/// [`CeremonyError::Random`].
pub fn generate_pin() -> Result<Zeroizing<Vec<u8>>, CeremonyError> {
    let mut pin = Zeroizing::new(vec![0; PIN_LENGTH]);
    getrandom::fill(&mut pin).map_err(|_| CeremonyError::Random)?;
    for byte in pin.iter_mut() {
        // 32 divides 256: every character is as likely as the others.
        *byte = ALPHABET[usize::from(*byte % 32)];
    }
    Ok(pin)
}

/// Splits both PINs: one share for each custodian, in the plan's order. The commitments go into the
/// transcript.
///
/// # Errors
/// [`CeremonyError::Random`]; [`CeremonyError::Share`] for a threshold that the custodians can't
/// meet.
pub fn split(deal: &Deal, pins: &Pins) -> Result<(Vec<Share>, Vec<Commitment>), CeremonyError> {
    let so = split_one(deal, &pins.so)?;
    let user = split_one(deal, &pins.user)?;
    let mut shares = Vec::with_capacity(so.len());
    for ((custodian, so), user) in deal.custodians.iter().zip(so).zip(user) {
        shares.push(Share::new(deal, custodian, so, user)?);
    }
    let commitments = shares.iter().map(Share::commitment).collect();
    Ok((shares, commitments))
}

/// Encrypts a share to its custodian.
///
/// # Errors
/// [`CeremonyError::Random`], [`CeremonyError::Jwe`].
pub fn seal(share: &Share, custodian: &Participant) -> Result<String, CeremonyError> {
    jwe::seal(&share.to_json()?, custodian)
}

/// Decrypts a share with its custodian's key.
///
/// # Errors
/// [`CeremonyError::Jwe`], [`CeremonyError::Share`], [`CeremonyError::Key`],
/// [`CeremonyError::Token`].
pub fn open(jwe: &str, key: &ParticipantKey) -> Result<Share, CeremonyError> {
    Share::from_json(&jwe::open(jwe, key)?)
}

/// A secret's pieces, each index || bytes.
fn split_one(deal: &Deal, secret: &[u8]) -> Result<Vec<Zeroizing<Vec<u8>>>, CeremonyError> {
    let (threshold, count) = (usize::from(deal.threshold), deal.custodians.len());
    let refuse = || {
        CeremonyError::Share(format!(
            "a secret can't be split among {count} custodians with a threshold of {threshold}"
        ))
    };
    if threshold == 1 && (1..=255).contains(&count) {
        // A polynomial of degree 0, which the crate refuses to call a sharing: everyone has the
        // whole.
        return Ok((1..=u8::MAX)
            .take(count)
            .map(|index| Zeroizing::new([&[index], secret].concat()))
            .collect());
    }
    // The crate's generator can't fail; ours can, and says so here rather than by a panic inside.
    getrandom::fill(&mut [0; 32]).map_err(|_| CeremonyError::Random)?;
    let pieces =
        Gf256::split_bytes(threshold, count, secret, UnwrapErr(SysRng)).map_err(|_| refuse())?;
    let pieces: Vec<_> = pieces.into_iter().map(Zeroizing::new).collect();
    // The index is what tells custodians apart; it must be the place in the plan.
    let numbered = pieces
        .iter()
        .zip(1_u8..)
        .all(|(piece, index)| piece.first() == Some(&index));
    if numbered { Ok(pieces) } else { Err(refuse()) }
}

fn combine(pieces: &[&[u8]]) -> Option<Zeroizing<Vec<u8>>> {
    if let [piece] = pieces {
        return Some(Zeroizing::new(piece.get(1..)?.to_vec()));
    }
    let pieces = Zeroizing::new(
        pieces
            .iter()
            .map(|piece| piece.to_vec())
            .collect::<Vec<_>>(),
    );
    Gf256::combine_bytes(&*pieces).ok().map(Zeroizing::new)
}

#[cfg(test)]
mod tests;
