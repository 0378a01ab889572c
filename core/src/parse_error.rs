//! What a parser says of a file, without what is in the file.
//!
//! Such words end up on a terminal, in the journal and in the audit log, and in any file there may
//! stand a key, a token or a PIN: by mistake, or because a newline was lost. So they name the place
//! and what belongs there, never what was found.

use std::ops::Range;

use rustls::pki_types::pem;

use crate::tokens::TOKEN_PREFIX;

/// A TOML parser's error: line, column, and what is wrong.
pub fn toml(text: &str, error: &toml::de::Error) -> String {
    toml_at(text, error.span(), error.message())
}

/// The same of another TOML parser: its error's own `span()` and `message()`.
pub fn toml_at(text: &str, span: Option<Range<usize>>, message: &str) -> String {
    let what = without_values(message);
    let Some(before) = span.and_then(|span| text.get(..span.start)) else {
        return what;
    };
    let line = 1 + before.matches('\n').count();
    let column = 1 + before.chars().rev().take_while(|one| *one != '\n').count();
    format!("line {line}, column {column}: {what}")
}

/// serde's messages hold values and names from the file ("invalid type: string \"…\", expected …",
/// "unknown field `…`, expected …"); those of the TOML parser and of this program hold none.
fn without_values(message: &str) -> String {
    // The names of what this program knows.
    let expected = |found: &str| match message.rfind(found) {
        Some(at) => message.get(at + 2..).unwrap_or_default(),
        None => "see the documentation for what belongs there",
    };
    for (begins, what) in [
        ("invalid type:", "a value of another type"),
        ("invalid value:", "a value that does not belong there"),
        ("unknown field ", "a name that is not known"),
        ("unknown variant ", "a word that is not known"),
    ] {
        if message.starts_with(begins) {
            return format!("{what}, {}", expected(", expected "));
        }
    }
    message.trim_end().to_owned()
}

/// Whether what stands where a path belongs may be what belongs into the file: a key, a token or a
/// PIN. Then no message repeats it.
pub fn may_be_content(path: &str) -> bool {
    // Base64 has neither a dot nor, where a key begins, a slash.
    let is_long_word = path.len() >= 40 && !path.starts_with('/') && !path.contains('.');
    is_long_word
        || path.bytes().all(|byte| byte.is_ascii_digit())
        || path.contains(TOKEN_PREFIX)
        || path.contains("-----")
        || path.contains(char::is_control)
}

/// A PEM parser's error: its own words hold whole lines, in which a key may stand.
pub fn pem(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => {
            "a section does not end: its END line is missing, or is not alone on its line"
        }
        pem::Error::IllegalSectionStart { .. } => {
            "a BEGIN line is not alone on its line, with five hyphens on each side"
        }
        pem::Error::Base64Decode(_) => "what stands between BEGIN and END is not base64",
        pem::Error::NoItemsFound => "there is no section of the kind that belongs there",
        pem::Error::SectionTooLarge => "a section is too large",
        _ => "it can't be read as PEM",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use serde::Deserialize;

    use super::*;

    const SECRET: &str = "MIGHAgEAMBMGByqGSM49";

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "read into for its errors")]
    struct File {
        number: u32,
        one: Option<One>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum One {
        Red,
    }

    #[test]
    fn no_error_of_a_toml_file_holds_what_is_in_it() {
        for (text, place, what) in [
            (
                "number = \"S\"",
                "line 1, column 10: ",
                "a value of another type, expected u32",
            ),
            (
                "\n\tnumber = 1.5 # S",
                "line 2, column 11: ",
                "another type",
            ),
            (
                "number = -1 #S",
                "line 1, column 10: ",
                "does not belong there, expected u32",
            ),
            (
                "number = 1\nS = 2",
                "line 2, column 1: ",
                "not known, expected `number` or `one`",
            ),
            (
                "number = 1\n\"S, expected S\" = 2",
                "line 2",
                "expected `number` or `one`",
            ),
            (
                "number = 1\none = \"S\"",
                "line 2",
                "a word that is not known, expected `red`",
            ),
            (
                "number = 1\none = \"S, expected S\"",
                "line 2",
                "expected `red`",
            ),
            ("number = S", "line 1", ""),
            ("number = 1\nS", "line 2", ""),
            ("number = \"S", "line 1", ""),
            ("[S", "line 1", ""),
            ("S = 1\nS = 2", "line 2", ""),
            ("[a]\nS.b = 1\nS = 2", "line 3", ""),
            ("number = '''\nS", "line ", ""),
            ("\"S\\q\" = 1", "line 1", ""),
            ("number = 0xS", "line 1", ""),
            ("number = 1979-99-99T S", "line 1", ""),
        ] {
            let text = text.replace('S', SECRET);
            let error = toml::from_str::<File>(&text).unwrap_err();
            let said = toml(&text, &error);
            assert!(said.starts_with(place), "{text}: {said}");
            assert!(said.contains(what), "{text}: {said}");
            assert!(!said.contains(SECRET), "{text}: {said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }

    #[test]
    fn no_error_of_a_pem_file_holds_what_is_in_it() {
        let decimal = format!("{:?}", SECRET.as_bytes());
        let decimal = decimal.trim_matches(['[', ']']);
        // With the lines that begin and end a section, this file would seem to hold a key.
        let (begin, end) = ("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----");
        for text in [
            "<S>",
            "<\\nS\\n>",
            "<\nS>",
            "< S\n>",
            "<\nS",
            "<\n!S\n>",
            "<\nS\n-----END S-----",
            "-----BEGIN S-----\nS",
            "S",
        ] {
            let text = text.replace('S', SECRET);
            let text = text.replace('<', begin).replace('>', end);
            let errors = [
                PrivateKeyDer::from_pem_slice(text.as_bytes()).map(drop),
                CertificateDer::from_pem_slice(text.as_bytes()).map(drop),
            ];
            for error in errors.into_iter().filter_map(Result::err) {
                let said = pem(&error);
                assert!(!said.contains(SECRET) && !said.contains(decimal), "{said}");
            }
        }
    }
}
