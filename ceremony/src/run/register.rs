//! What the token knows of the ceremonies: the hash of the last one's closing line. A copy of a
//! directory goes on from the same transcript as the directory itself, and nothing on a disk
//! tells the two apart; the token does.
//!
//! A ceremony looks before its first step that needs the token, and again before it seals. It
//! writes its own closing line's hash between signatures and seal: cut off there, it goes on; and
//! no other ceremony can, since the token names a closing that only this one has.

use strongroom_hsm::{Hsm, Register, ceremony as hsm};

use super::{Ceremony, RunError, hex};
use crate::Kind;

/// What the token must know for this ceremony to go on; none where it may know nothing.
enum Expected {
    /// A token of this ceremony's own.
    Nothing,
    /// The transcript before.
    Before(String),
    /// A spare takes the token's place: it was left at some transcript of the chain.
    AnyBefore(Vec<String>),
}

/// Looks at the register: the value that is there, if it may be there.
///
/// # Errors
/// [`RunError`] if another ceremony has gone on from the transcript before, or is about to.
pub(super) fn check(ceremony: &mut Ceremony<'_>) -> Result<Option<String>, RunError> {
    let config = ceremony.hsm_config()?;
    let known = hsm::read_register(&config, Register::CeremonyTranscript)?
        .filter(|value| !value.is_empty())
        .map(|value| hex(&value));
    let own = ceremony.journal.closing_sha256().map(|hash| hex(&hash));
    if known.is_some() && known == own {
        return Ok(known);
    }
    let fits = match (expected(ceremony), &known) {
        (Expected::Nothing, known) => known.is_none(),
        (Expected::Before(before), Some(known)) => before == *known,
        (Expected::AnyBefore(before), Some(known)) => before.contains(known),
        (Expected::Before(_), None) => false,
        // A spare that was never at work.
        (Expected::AnyBefore(_), None) => true,
    };
    if fits {
        return Ok(known);
    }
    let told = known.as_deref().unwrap_or("not on the token at all");
    Err(RunError::refused(format!(
        "the token's last ceremony is not the one that this goes on from: the SHA-256 of its closing line is {told}. Another ceremony has gone on from the same transcript, \
         from a copy of the directory perhaps, or was closed and not sealed yet. Find its directory (in its transcript.jsonl the line of type \"close\" has that hash), finish it, and \
         name it with --after; nothing was changed on the token"
    )))
}

fn expected(ceremony: &Ceremony<'_>) -> Expected {
    let Some(custody) = &ceremony.custody else {
        return Expected::Nothing;
    };
    if ceremony.kind == Kind::Restore {
        return Expected::Nothing;
    }
    if custody.is_spare {
        return Expected::AnyBefore(custody.past.closings.iter().cloned().collect());
    }
    Expected::Before(custody.closing.clone())
}

/// Writes this ceremony's closing into the token: from here on no other goes on from the one
/// before.
pub(super) fn write(ceremony: &mut Ceremony<'_>) -> Result<(), RunError> {
    ceremony.check_token()?;
    check(ceremony)?;
    let Some(own) = ceremony.journal.closing_sha256() else {
        return Ok(()); // a destroy seals before it closes, and leaves no token
    };
    let config = ceremony.hsm_config()?;
    ceremony.block_on(async move {
        let hsm = Hsm::start(config)?;
        let register = Register::CeremonyTranscript;
        if hsm.read_register(register).await?.as_deref() != Some(own.as_slice()) {
            hsm.write_register(register, own.to_vec()).await?;
        }
        Ok(())
    })
}
