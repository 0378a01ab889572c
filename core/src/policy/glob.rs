//! The patterns of a policy: `*`, `**` and `?`, and nothing else, so that a reader can't misread
//! one.
//!
//! | pattern | stands for |
//! |---|---|
//! | `?` | one character, not `/` |
//! | `*` | any run of characters, also none, without `/` |
//! | `**` | any run of characters, also none |
//!
//! Every other character stands for itself, and the whole text must match. `*` stops at `/` because
//! that is where SPIFFE paths divide: `spiffe://example.org/ns/*/vault` can't be met by one more
//! path segment.

/// A pattern, ready to match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Glob {
    parts: Vec<Part>,
    /// Where there is no wildcard, the pattern itself.
    literal: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// This byte.
    Byte(u8),
    /// `?`
    One,
    /// `*`
    Star,
    /// `**`
    StarStar,
}

impl Glob {
    /// Reads a pattern, or says why it is none, without the pattern: it may be an API token.
    pub(super) fn new(pattern: &str) -> Result<Self, String> {
        if pattern.is_empty() {
            return Err(
                "an empty pattern matches nothing: remove it, or write \"**\" for all".into(),
            );
        }
        if let Some(other) = pattern
            .chars()
            .find(|character| "[]{}\\!^,".contains(*character) || !character.is_ascii_graphic())
        {
            return Err(format!(
                "this pattern has {other:?}: only *, ** and ? are wildcards, and identities and key names hold only visible ASCII"
            ));
        }
        let mut parts = Vec::with_capacity(pattern.len());
        let mut bytes = pattern.bytes().peekable();
        while let Some(byte) = bytes.next() {
            parts.push(match byte {
                b'?' => Part::One,
                b'*' if bytes.next_if_eq(&b'*').is_some() => {
                    if bytes.peek() == Some(&b'*') {
                        return Err("this pattern has ***: write * or **".to_owned());
                    }
                    Part::StarStar
                }
                b'*' => Part::Star,
                byte => Part::Byte(byte),
            });
        }
        let literal = parts
            .iter()
            .all(|part| matches!(part, Part::Byte(_)))
            .then(|| pattern.to_owned());
        Ok(Self { parts, literal })
    }

    /// The same with `*` as wide as `**`.
    pub(super) fn widened(&self) -> Self {
        let widen = |part: &Part| match part {
            Part::Star => Part::StarStar,
            other => *other,
        };
        Self {
            parts: self.parts.iter().map(widen).collect(),
            literal: self.literal.clone(),
        }
    }

    /// Whether it matches every text without `/`.
    pub(super) fn is_everything(&self) -> bool {
        !self.parts.is_empty()
            && self
                .parts
                .iter()
                .all(|part| matches!(part, Part::Star | Part::StarStar))
    }

    /// The pattern, if it stands for one text only.
    pub(super) fn literal(&self) -> Option<&str> {
        self.literal.as_deref()
    }

    /// Whether the whole text matches. Allocates nothing; no pattern makes it take more than
    /// `text × text × pattern` steps.
    pub(super) fn matches(&self, text: &str) -> bool {
        if let Some(literal) = &self.literal {
            return literal == text;
        }
        let text = text.as_bytes();
        let (mut at, mut part) = (0, 0);
        // Where to go on when what follows a wildcard does not fit: one more byte for the wildcard,
        // then again.
        let mut star: Option<(usize, usize)> = None;
        let mut star_star: Option<(usize, usize)> = None;
        loop {
            match (self.parts.get(part), text.get(at)) {
                (Some(Part::Star), _) => {
                    part += 1;
                    star = Some((part, at));
                    continue;
                }
                (Some(Part::StarStar), _) => {
                    part += 1;
                    star_star = Some((part, at));
                    // It can take up whatever a star before it could.
                    star = None;
                    continue;
                }
                (Some(Part::Byte(wanted)), Some(byte)) if wanted == byte => {
                    part += 1;
                    at += 1;
                    continue;
                }
                (Some(Part::One), Some(byte)) if *byte != b'/' => {
                    part += 1;
                    at += 1;
                    continue;
                }
                (None, None) => return true,
                _ => {}
            }
            if let Some((after, from)) = star
                && text.get(from).is_some_and(|byte| *byte != b'/')
            {
                star = Some((after, from + 1));
                (part, at) = (after, from + 1);
            } else if let Some((after, from)) = star_star
                && from < text.len()
            {
                star_star = Some((after, from + 1));
                star = None;
                (part, at) = (after, from + 1);
            } else {
                return false;
            }
        }
    }
}

#[cfg(any(fuzzing, test))]
mod fuzz;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Glob::new(pattern).unwrap().matches(text)
    }

    /// The definition, without a care for speed.
    fn by_definition(pattern: &[u8], text: &[u8]) -> bool {
        match pattern {
            [] => text.is_empty(),
            [b'*', b'*', rest @ ..] => {
                (0..=text.len()).any(|skip| by_definition(rest, &text[skip..]))
            }
            [b'*', rest @ ..] => (0..=text.len())
                .take_while(|skip| !text[..*skip].contains(&b'/'))
                .any(|skip| by_definition(rest, &text[skip..])),
            [b'?', rest @ ..] => {
                matches!(text, [byte, tail @ ..] if *byte != b'/' && by_definition(rest, tail))
            }
            [byte, rest @ ..] => {
                matches!(text, [first, tail @ ..] if first == byte && by_definition(rest, tail))
            }
        }
    }

    #[test]
    fn a_star_stops_at_a_slash() {
        assert!(matches(
            "spiffe://e.org/ns/*/vault",
            "spiffe://e.org/ns/prod/vault"
        ));
        assert!(!matches(
            "spiffe://e.org/ns/*/vault",
            "spiffe://e.org/ns/a/b/vault"
        ));
        assert!(matches("spiffe://e.org/**", "spiffe://e.org/ns/a/b/vault"));
        assert!(!matches(
            "spiffe://e.org/**",
            "spiffe://e.org.evil.example/a"
        ));
        assert!(!matches("*", "a/b"));
        assert!(matches("**", "a/b"));
    }

    #[test]
    fn the_whole_text_must_match() {
        assert!(!matches("dns:a.example", "dns:a.example.evil"));
        assert!(!matches("a-?", "a-"));
        assert!(!matches("a-?", "a-12"));
        assert!(matches("tenant-*", "tenant-"));
    }

    #[test]
    fn other_wildcards_are_refused() {
        for pattern in [
            "", "a[0-9]", "{a,b}", "a\\*", "!a", "a***", "a b", "ä", "a\n",
        ] {
            assert!(Glob::new(pattern).is_err(), "{pattern:?}");
        }
    }

    #[test]
    fn a_hostile_text_takes_no_long_time() {
        let pattern = "**/a*/".repeat(20) + "b";
        let text = "a/".repeat(1000);
        let start = std::time::Instant::now();
        assert!(!matches(&pattern, &text));
        assert!(start.elapsed() < std::time::Duration::from_secs(1));
    }

    proptest! {
        #[test]
        fn widened_it_matches_all_that_it_matched_and_slashes_too(pattern in "[ab/?*]{0,3}[ab]", text in "[ab/]{0,10}") {
            let Ok(glob) = Glob::new(&pattern) else { return Ok(()) };
            let wide = pattern.replace("**", "*").replace('*', "**");
            prop_assert_eq!(glob.widened().matches(&text), matches(&wide, &text), "{:?} {:?}", pattern, text);
            prop_assert!(!glob.matches(&text) || glob.widened().matches(&text));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5000))]
        #[test]
        fn it_matches_by_definition(pattern in "([ab/?]|\\*{1,2}[ab/?]){0,6}\\*{0,2}", text in "[ab/]{0,10}") {
            prop_assume!(!pattern.is_empty());
            prop_assert_eq!(
                matches(&pattern, &text),
                by_definition(pattern.as_bytes(), text.as_bytes()),
                "{:?} {:?}", pattern, text
            );
        }
    }
}
