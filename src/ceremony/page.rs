//! A custodian's share on paper: words and a QR code on one HTML page.

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::{CeremonyError, Participant, Share};

/// The page: self-contained, A4, no scripts.
///
/// # Errors
/// [`CeremonyError::Share`].
pub fn html(
    share: &Share,
    custodian: &Participant,
    appliance: &str,
) -> Result<Zeroizing<String>, CeremonyError> {
    let _ = (share, custodian, appliance);
    Err(CeremonyError::Share("pages are not built yet".to_owned()))
}

/// Writes `<dir>/pages/<name>.html`, for its owner only; one that is there is replaced.
///
/// # Errors
/// [`CeremonyError::Write`], [`CeremonyError::Share`].
pub fn write(
    dir: &Path,
    share: &Share,
    custodian: &Participant,
    appliance: &str,
) -> Result<PathBuf, CeremonyError> {
    let page = html(share, custodian, appliance)?;
    let _ = (dir, page);
    Err(CeremonyError::Share("pages are not built yet".to_owned()))
}

/// Text from outside, for a message or a page: without control characters, and not without end.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .take(80)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
