//! A custodian's share on paper: words and a QR code on one HTML page; and what all pages have in
//! common.

use std::fmt::Write as _;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use qrcode::render::svg;
use qrcode::{EcLevel, QrCode};
use strongroom_core::atomic::{self, Access};
use zeroize::Zeroizing;

use super::{CeremonyError, Mode, Participant, Share};

/// The page: self-contained, A4, no scripts. It holds the share: whoever reads it has it.
///
/// # Errors
/// [`CeremonyError::Share`].
pub fn html(
    share: &Share,
    custodian: &Participant,
    appliance: &str,
) -> Result<Zeroizing<String>, CeremonyError> {
    let words = share.to_words()?;
    let name = escape(custodian.name());
    // Room for all of it at once: a text that grows leaves copies behind.
    let mut page = Zeroizing::new(String::with_capacity(256 * 1024));
    page.push_str(&head(
        &format!("Share {} of {appliance}", share.index),
        share.mode,
    ));
    // Writing to a String can't fail.
    let _ = write!(
        page,
        "<h1>Share {} of the PINs of {}</h1>\n<table>\n\
         <tr><th>for</th><td>{name}, and nobody else</td></tr>\n\
         <tr><th>fingerprint</th><td class=\"mono\">{}</td></tr>\n\
         <tr><th>ceremony</th><td class=\"mono\">{}</td></tr>\n\
         <tr><th>needed</th><td>{} shares together</td></tr>\n</table>\n",
        share.index,
        escape(appliance),
        escape(&custodian.fingerprint()),
        share.ceremony_id,
        share.threshold
    );
    page.push_str(
        "<p>Whoever reads this page has the share. Fold it, put it into a tamper-evident bag, sign the bag, and keep it where only you get at it. \
         When you are asked for it, type these words; their first four letters are enough.</p>\n<ol class=\"words\">\n",
    );
    for word in words.split_whitespace() {
        page.push_str("<li>");
        page.push_str(word);
        page.push_str("</li>\n");
    }
    page.push_str("</ol>\n");
    page.push_str(&qr(&words)?);
    page.push_str("<p>The code holds the same words.</p>\n");
    page.push_str(&foot(share.mode));
    Ok(page)
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
    let folder = dir.join("pages");
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(|error| CeremonyError::write(&folder, error))?;
    // Names have no slash (see `check_name`); two that differ in blanks only would be one file, so
    // the fingerprint tells them apart.
    let name: String = custodian
        .name()
        .chars()
        .map(|c| if c.is_alphanumeric() { c } else { '-' })
        .collect();
    let fingerprint = custodian.fingerprint();
    let short = fingerprint.get(..8).unwrap_or(&fingerprint);
    let path = folder.join(format!("{name}-{short}.html"));
    atomic::replace(&path, page.as_bytes(), Access::Mode(0o600))
        .map_err(|error| CeremonyError::write(&path, error))?;
    Ok(path)
}

/// The words as a QR code, SVG.
fn qr(words: &str) -> Result<Zeroizing<String>, CeremonyError> {
    let fail = |_| CeremonyError::Share("the share does not fit a QR code".to_owned());
    // Capitals and blanks take the alphanumeric mode, which is the densest that text can have.
    let text = Zeroizing::new(
        words
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .to_uppercase(),
    );
    let code = QrCode::with_error_correction_level(text.as_bytes(), EcLevel::M).map_err(fail)?;
    let svg = code
        .render::<svg::Color<'_>>()
        .min_dimensions(360, 360)
        .build();
    // The XML declaration has no place inside a page.
    let svg = Zeroizing::new(svg);
    Ok(Zeroizing::new(
        svg.find("<svg")
            .and_then(|at| svg.get(at..))
            .unwrap_or_default()
            .to_owned(),
    ))
}

/// The beginning of a page that can be printed on A4. A rehearsal says so at the top, and across
/// each printed sheet.
pub(super) fn head(title: &str, mode: Mode) -> String {
    let banner = if mode == Mode::Rehearsal {
        "<div class=\"across\">REHEARSAL</div>\n<p class=\"rehearsal\">REHEARSAL: nothing on this page counts</p>\n"
    } else {
        ""
    };
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{}{}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{banner}",
        if mode == Mode::Rehearsal {
            "REHEARSAL: "
        } else {
            ""
        },
        escape(title)
    )
}

/// Its end.
pub(super) fn foot(mode: Mode) -> String {
    let banner = if mode == Mode::Rehearsal {
        "<p class=\"rehearsal\">REHEARSAL: nothing on this page counts</p>\n"
    } else {
        ""
    };
    format!("{banner}</body>\n</html>\n")
}

const STYLE: &str = "
@page { size: A4; margin: 18mm 15mm; }
body { font: 10.5pt/1.4 serif; color: #000; background: #fff; max-width: 178mm; margin: 0 auto; }
h1 { font-size: 17pt; margin: 0 0 4mm; } h2 { font-size: 13pt; margin: 7mm 0 2mm; break-after: avoid; }
table { border-collapse: collapse; width: 100%; }
th, td { border: 0.3pt solid #777; padding: 1mm 2mm; text-align: left; vertical-align: top; overflow-wrap: break-word; }
td { font-size: 9.5pt; } .tag { font-size: 7pt; white-space: nowrap; } .time { white-space: nowrap; font-size: 8pt; }
thead { display: table-header-group; } th { background: #eee; font-weight: 600; }
.mono, pre { font-family: monospace; font-size: 8.5pt; overflow-wrap: anywhere; white-space: pre-wrap; }
.good { border: 1pt solid #060; padding: 2mm 3mm; } .bad { border: 2pt solid #a00; padding: 2mm 3mm; }
.rehearsal { border: 2pt dashed #000; padding: 2mm 3mm; font-weight: 700; text-align: center; }
.across { position: fixed; top: 40%; left: 0; width: 100%; text-align: center; font: 700 70pt sans-serif; color: rgba(0,0,0,.09); transform: rotate(-30deg); z-index: -1; }
.words { columns: 5; column-gap: 2mm; padding-left: 9mm; font-family: monospace; font-size: 10pt; line-height: 1.4; margin: 2mm 0; }
svg { display: block; width: 70mm; height: 70mm; margin: 2mm auto; break-inside: avoid; }
";

/// Text from outside for HTML, element or attribute: escaped, and control characters shown as what
/// they are.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' => out.push('\n'),
            c if is_unseen(c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Text from outside, for a message: without control characters, and not without end.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .take(80)
        .map(|c| if is_unseen(c) { '\u{fffd}' } else { c })
        .collect()
}

/// Control characters, and those that turn the direction of writing or take no room.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests;
