//! How many ciphertexts there are of which version, and what became of them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Counts of ciphertexts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tally {
    rewrapped: u64,
    current: u64,
    refused: u64,
    /// Afterwards.
    versions: BTreeMap<u32, u64>,
}

impl Tally {
    /// One that was left as it is: nothing was to be done, or only counting was asked for.
    pub(super) fn current(&mut self, version: u32) {
        self.current += 1;
        self.count(version);
    }

    /// One that is of this version now.
    pub(super) fn rewrapped(&mut self, version: u32) {
        self.rewrapped += 1;
        self.count(version);
    }

    /// One that the key does not decrypt.
    pub(super) fn refused(&mut self, version: u32) {
        self.refused += 1;
        self.count(version);
    }

    /// Both together.
    pub(super) fn add(&mut self, other: &Self) {
        self.rewrapped += other.rewrapped;
        self.current += other.current;
        self.refused += other.refused;
        for (version, count) in &other.versions {
            *self.versions.entry(*version).or_default() += count;
        }
    }

    /// Of a further look at the same place, what it changed: what it found is what was counted
    /// before.
    pub(super) fn add_rewrapped(&mut self, other: &Self) {
        self.rewrapped += other.rewrapped;
        self.current = other.current;
        self.refused = other.refused;
        self.versions.clone_from(&other.versions);
    }

    /// Whether anything is other than before.
    pub(super) fn has_rewrapped(&self) -> bool {
        self.rewrapped > 0
    }

    /// The oldest version below this one that is in use, and how many ciphertexts are of it.
    pub(super) fn older_than(&self, version: u32) -> Option<(u32, u64)> {
        self.versions
            .range(..version)
            .next()
            .map(|(version, count)| (*version, *count))
    }

    /// For programs.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "rewrapped": self.rewrapped,
            "unchanged": self.current,
            "refused": self.refused,
            "versions": self.versions,
        })
    }

    fn count(&mut self, version: u32) {
        *self.versions.entry(version).or_default() += 1;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ciphertexts rewrapped, {} left as they were",
            self.rewrapped,
            self.current + self.refused
        )?;
        if self.refused > 0 {
            write!(f, " ({} of them the key does not decrypt)", self.refused)?;
        }
        let mut separator = "; now in use: ";
        for (version, count) in &self.versions {
            write!(f, "{separator}version {version} by {count}")?;
            separator = ", ";
        }
        Ok(())
    }
}
