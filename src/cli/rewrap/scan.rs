//! Where ciphertexts stand in a text.

use memchr::memmem;

/// What a ciphertext begins with, before its version.
const CIPHERTEXT_PREFIX: &[u8] = b"vault:v";

/// A ciphertext in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found<'a> {
    /// Its first byte's place.
    pub(super) start: usize,
    /// The whole of it.
    pub(super) text: &'a str,
    /// The key version that it names.
    pub(super) version: u32,
}

/// Every `vault:v<version>:<base64>`, in order; none begins within another.
pub(super) fn find(text: &[u8]) -> impl Iterator<Item = Found<'_>> {
    let mut from = 0;
    std::iter::from_fn(move || {
        loop {
            let start = from + memmem::find(text.get(from..)?, CIPHERTEXT_PREFIX)?;
            let rest = text.get(start..)?;
            let MatchLength { bytes, version } = fit(rest);
            from = start + bytes;
            if let Some(version) = version
                && let Ok(text) = std::str::from_utf8(rest.get(..bytes)?)
            {
                return Some(Found {
                    start,
                    text,
                    version,
                });
            }
        }
    })
}

/// The key version that a ciphertext names.
pub(super) fn version(ciphertext: &str) -> Option<u32> {
    fit(ciphertext.as_bytes()).version
}

/// Up to where the text can be looked at although it goes on: what may be the beginning of a
/// ciphertext waits for the rest.
pub(super) fn settled(text: &[u8]) -> usize {
    let mut from = 0;
    while let Some(rest) = text.get(from..)
        && let Some(start) = memmem::find(rest, CIPHERTEXT_PREFIX)
    {
        let bytes = rest.get(start..).map_or(0, |rest| fit(rest).bytes);
        if from + start + bytes == text.len() {
            return from + start;
        }
        from += start + bytes;
    }
    // A prefix cut in the middle.
    (from.max(text.len().saturating_sub(CIPHERTEXT_PREFIX.len() - 1))..text.len())
        .find(|start| {
            text.get(*start..)
                .is_some_and(|rest| CIPHERTEXT_PREFIX.starts_with(rest))
        })
        .unwrap_or(text.len())
}

/// How far a text that begins with the prefix goes on as a ciphertext does.
struct MatchLength {
    bytes: usize,
    /// If that is a whole ciphertext.
    version: Option<u32>,
}

fn fit(text: &[u8]) -> MatchLength {
    let count = |from: usize, limit: usize, fits: fn(u8) -> bool| {
        let rest = text.get(from..).unwrap_or_default();
        rest.iter()
            .take(limit)
            .take_while(|byte| fits(**byte))
            .count()
    };
    let digits_end = CIPHERTEXT_PREFIX.len()
        + count(CIPHERTEXT_PREFIX.len(), usize::MAX, |byte| {
            byte.is_ascii_digit()
        });
    let number = text
        .get(CIPHERTEXT_PREFIX.len()..digits_end)
        .unwrap_or_default();
    let version = std::str::from_utf8(number)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .filter(|version| *version > 0);
    if text.get(digits_end) != Some(&b':') {
        return MatchLength {
            bytes: digits_end,
            version: None,
        };
    }
    let base64 = count(digits_end + 1, usize::MAX, is_base64);
    let end = digits_end + 1 + base64;
    MatchLength {
        bytes: end + count(end, 2, |byte| byte == b'='),
        version: version.filter(|_| base64 > 0),
    }
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(text: &str) -> Vec<(usize, &str, u32)> {
        find(text.as_bytes())
            .map(|found| (found.start, found.text, found.version))
            .collect()
    }

    #[test]
    fn ciphertexts_are_found_in_any_surroundings() {
        assert_eq!(
            texts(r#"{"a":"vault:v3:AA+/bb==","b":'vault:v12:QQ='} vault:v1:zz"#),
            [
                (6, "vault:v3:AA+/bb==", 3),
                (30, "vault:v12:QQ=", 12),
                (46, "vault:v1:zz", 1)
            ]
        );
        assert_eq!(texts("vault:v1:AAAA==="), [(0, "vault:v1:AAAA==", 1)]);
        for none in [
            "vault:v",
            "vault:v1",
            "vault:v1:",
            "vault:v0:AA",
            "vault:vx:AA",
            "vault:v99999999999:AA",
            "Vault:v1:AA",
        ] {
            assert_eq!(texts(none), [], "{none}");
        }
    }

    #[test]
    fn what_may_go_on_waits() {
        for (text, settled_at) in [
            ("abc", 3),
            ("abc vau", 4),
            ("abc vault:v", 4),
            ("abc vault:v1:AA", 4),
            ("abc vault:v1:AA=", 4),
            ("abc vault:v1:AA\n", 16),
            ("", 0),
        ] {
            assert_eq!(settled(text.as_bytes()), settled_at, "{text}");
        }
    }

    proptest! {
        // Cutting a text anywhere and looking at the settled part first finds the same as looking at the whole.
        #[test]
        fn a_cut_loses_nothing(pieces in proptest::collection::vec("(vault:v[0-9]{0,2}:?[A-Za=]{0,6}|[v: \n=]{0,3})", 0..8), at in 0_usize..100) {
            let text = pieces.concat();
            let cut = at.min(text.len());
            let settled_at = settled(&text.as_bytes()[..cut]);
            let first = find(&text.as_bytes()[..settled_at]).map(|f| (f.start, f.text.to_owned()));
            let second = find(&text.as_bytes()[settled_at..]).map(|f| (f.start + settled_at, f.text.to_owned()));
            let parts: Vec<_> = first.chain(second).collect();
            let whole: Vec<_> = find(text.as_bytes()).map(|f| (f.start, f.text.to_owned())).collect();
            prop_assert_eq!(parts, whole);
        }
    }
}
