//! Names that keys can have.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use serde::Serialize;

/// Vault allows any length; a bound keeps records and audit lines small.
pub const MAX_NAME: usize = 128;

/// A name that a key can have, as Vault has it (`framework.GenericNameRegex`): 1 to 128 of `A-Z a-z
/// 0-9 _ . -`, with neither `.` nor `-` at either end. There may be no such key.
///
/// `KeyName<&str>` is part of what it was parsed from, so that a request's name costs no memory;
/// `KeyName` is one that is kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct KeyName<S = String>(S);

impl<'n> KeyName<&'n str> {
    /// `None`: no key can have that name.
    pub fn parse(name: &'n str) -> Option<Self> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let bytes = name.as_bytes();
        let (first, last) = (*bytes.first()?, *bytes.last()?);
        let good = bytes.len() <= MAX_NAME
            && word(first)
            && word(last)
            && bytes.iter().all(|&b| word(b) || b == b'.' || b == b'-');
        good.then_some(Self(name))
    }

    /// The name.
    pub fn as_str(self) -> &'n str {
        self.0
    }

    /// The same, kept.
    pub fn to_owned(self) -> KeyName {
        KeyName(self.0.to_owned())
    }
}

impl KeyName {
    /// The same, not kept.
    pub fn borrowed(&self) -> KeyName<&str> {
        KeyName(&self.0)
    }
}

/// Why a text is not a key's name.
#[derive(Debug, thiserror::Error)]
#[error(
    "a key name is 1 to {MAX_NAME} letters, digits, '_', '-' and '.', and does not begin or end with '-' or '.'"
)]
pub struct BadKeyName;

impl FromStr for KeyName {
    type Err = BadKeyName;

    fn from_str(name: &str) -> Result<Self, BadKeyName> {
        KeyName::parse(name)
            .map(KeyName::to_owned)
            .ok_or(BadKeyName)
    }
}

impl Deref for KeyName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// For maps: it is equal, ordered and hashed as its string is.
impl Borrow<str> for KeyName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// As its string is.
impl<S: fmt::Debug> fmt::Debug for KeyName<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<S: fmt::Display> fmt::Display for KeyName<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_vaults() {
        for good in [
            "a", "_", "ab", "a-b", "a.b", "a..b", "tenant_1", "A9", "a--b",
        ] {
            assert!(KeyName::parse(good).is_some(), "{good}");
            assert!(good.parse::<KeyName>().is_ok_and(|name| &*name == good));
        }
        for bad in [
            "", "-", ".", "a-", "-a", "a.", ".a", "a/b", "a b", "ä", "a\0b", "a\n", "..",
        ] {
            assert!(KeyName::parse(bad).is_none(), "{bad:?}");
            assert!(bad.parse::<KeyName>().is_err(), "{bad:?}");
        }
        assert!(KeyName::parse(&"n".repeat(MAX_NAME)).is_some());
        assert!(KeyName::parse(&"n".repeat(MAX_NAME + 1)).is_none());
    }
}
