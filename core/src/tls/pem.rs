//! The sections of a PEM file (RFC 7468), of which none is passed over: it may be the CRL that
//! names somebody, or the CA that is bound to what it may name.
//!
//! Text may stand around the sections, as `openssl x509 -text` writes it. What could be a section
//! that was damaged is refused: another label, a BEGIN or END that is not alone on its line or has
//! no partner, base64 outside of a section, bytes that are not text (DER, UTF-16).

use std::iter;

/// What a file is to hold.
pub(super) struct PemContents {
    pub(super) label: &'static str,
    /// The private key may stand in the same file.
    pub(super) with_keys: bool,
}

/// As long as a line of base64 may be that is taken for a word of the text.
const MAX_WORD: usize = 40;

/// Longer than any label in use.
const LABEL: usize = 40;

/// Each section with its BEGIN and END lines.
///
/// # Errors
/// What is wrong and where, for people. It holds nothing of the file but labels: there may be a
/// private key in it.
pub(super) fn sections<'a>(pem: &'a [u8], wanted: &PemContents) -> Result<Vec<&'a [u8]>, String> {
    let mut found = Vec::new();
    let mut open: Option<(&str, usize, usize)> = None;
    let mut base64 = 0;
    for (number, (start, line)) in (1..).zip(lines(pem)) {
        match (marker(line, wanted.label), open) {
            (Line::Begin(label), None) => {
                wanted
                    .allow(label)
                    .map_err(|problem| format!("line {number} {problem}"))?;
                open = Some((label, number, start));
                base64 = 0;
            }
            (Line::End(label), Some((begun, _, from))) if label == begun => {
                if label == wanted.label {
                    found.extend(pem.get(from..start + line.len()));
                }
                open = None;
            }
            (Line::Begin(_), Some((_, begun, _))) => {
                return Err(format!(
                    "a section begins on line {number}, and the one of line {begun} has not ended"
                ));
            }
            (Line::End(_), Some((label, begun, _))) => {
                return Err(format!(
                    "line {number} ends another section than the {label} that begins on line {begun}"
                ));
            }
            (Line::End(_), None) => {
                return Err(format!(
                    "a section ends on line {number} that has not begun"
                ));
            }
            (Line::Broken, _) => {
                return Err(format!(
                    "line {number} is not as a section begins or ends: alone on its line, with five hyphens on each side"
                ));
            }
            (Line::Other, Some(_)) => {}
            (Line::Other, None) => {
                let text = text(line).ok_or_else(|| {
                    format!("line {number} holds bytes that are not text: is it DER, or UTF-16?")
                })?;
                base64 = if is_base64(text) {
                    base64 + text.trim().len()
                } else {
                    0
                };
                if base64 >= MAX_WORD {
                    return Err(format!(
                        "line {number} looks like the inside of a section, and none has begun there"
                    ));
                }
            }
        }
    }
    match open {
        Some((label, begun, _)) => Err(format!(
            "the {label} that begins on line {begun} does not end"
        )),
        None => Ok(found),
    }
}

impl PemContents {
    fn allow(&self, label: &str) -> Result<(), String> {
        let of_a_key =
            ["EC PARAMETERS", "DH PARAMETERS"].contains(&label) || label.ends_with("PRIVATE KEY");
        if label == self.label || (self.with_keys && of_a_key) {
            return Ok(());
        }
        Err(format!(
            "begins a section that is called {label:?}, and nothing else than {:?} belongs there",
            self.label
        ))
    }
}

enum Line<'a> {
    /// With the label.
    Begin(&'a str),
    /// With the label.
    End(&'a str),
    /// Meant as one of them.
    Broken,
    Other,
}

fn marker<'a>(line: &'a [u8], wanted: &str) -> Line<'a> {
    let Some(words) = ["BEGIN", "END"]
        .into_iter()
        .find(|word| is_meant(line, word, wanted))
    else {
        return Line::Other;
    };
    let label = str::from_utf8(line)
        .ok()
        .and_then(|line| line.trim_ascii_end().strip_prefix("-----"))
        .and_then(|line| line.strip_prefix(words)?.strip_prefix(' '))
        .and_then(|line| line.strip_suffix("-----"))
        .filter(|label| is_label(label));
    match label {
        Some(label) if words == "BEGIN" => Line::Begin(label),
        Some(label) => Line::End(label),
        None => Line::Broken,
    }
}

/// As labels in use are. A whole section on one line, whose newlines were lost, is not one: what
/// stands in it may be a key.
fn is_label(label: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b' ';
    (1..=LABEL).contains(&label.len()) && label.bytes().all(good)
}

/// Whatever is before and behind it.
fn is_meant(line: &[u8], word: &str, wanted: &str) -> bool {
    let holds = |part: &str| {
        line.windows(part.len())
            .any(|window| window == part.as_bytes())
    };
    holds(&format!("-{word}")) || holds(&format!("{word} {wanted}"))
}

/// What can be read by people.
fn text(line: &[u8]) -> Option<&str> {
    let text = str::from_utf8(line).ok()?;
    let is_good = |one: char| !one.is_control() || one == '\t';
    text.chars().all(is_good).then_some(text)
}

/// A line of nothing else.
fn is_base64(line: &str) -> bool {
    let line = line.trim();
    let line = line.strip_suffix('=').unwrap_or(line);
    let line = line.strip_suffix('=').unwrap_or(line);
    !line.is_empty()
        && line
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'))
}

/// Each line with where it starts; it ends with LF, CR or both.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut next = 0;
    iter::from_fn(move || {
        let rest = bytes.get(next..).filter(|rest| !rest.is_empty())?;
        let start = next;
        let length = rest
            .iter()
            .position(|byte| matches!(byte, b'\n' | b'\r'))
            .unwrap_or(rest.len());
        let (line, end) = rest.split_at(length);
        next += length + if end.starts_with(b"\r\n") { 2 } else { 1 };
        Some((start, line))
    })
}
