//! A transcript as one printable page.

use super::Verified;

/// One self-contained HTML page: A4, no scripts. What does not verify is said at the top.
pub fn html(transcript: &[u8], verified: &Verified) -> String {
    let _ = (transcript, verified);
    String::new()
}
