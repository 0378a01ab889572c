//! What a ceremony is held for, and which steps it has.
//!
//! A new kind is a variant here with its steps, a list of `Act`s in `run/later`, and what its steps record in `verify/later.rs`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a ceremony is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The keys are made. Every other kind is of an appliance that had one.
    Birth,
    /// The PINs are shared anew, among other custodians.
    ReplaceCustodian,
    /// The token is emptied, for good.
    Destroy,
}

/// The steps of all kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Step {
    Opening,
    SelfTest,
    Pins,
    Token,
    Keys,
    Evidence,
    Store,
    Identity,
    Trial,
    RuntimePin,
    Inventory,
    Consent,
    Destroy,
    Closing,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Birth, Self::ReplaceCustodian, Self::Destroy];

    /// As transcripts have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Birth => "birth",
            Self::ReplaceCustodian => "replace-custodian",
            Self::Destroy => "destroy",
        }
    }

    /// The kind that transcripts call so.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Its steps, in order.
    pub const fn steps(self) -> &'static [Step] {
        match self {
            Self::Birth => &[
                Step::Opening,
                Step::SelfTest,
                Step::Pins,
                Step::Token,
                Step::Keys,
                Step::Evidence,
                Step::Store,
                Step::Identity,
                Step::Trial,
                Step::RuntimePin,
                Step::Closing,
            ],
            Self::ReplaceCustodian => &[Step::Opening, Step::Pins, Step::Closing],
            Self::Destroy => &[
                Step::Opening,
                Step::Inventory,
                Step::Consent,
                Step::Destroy,
                Step::Closing,
            ],
        }
    }

    /// Whether it goes on from an earlier ceremony, whose transcript its own names.
    pub const fn is_later(self) -> bool {
        !matches!(self, Self::Birth)
    }

    /// The step before which the audit key seals the transcript, where that key does not live to see its end.
    pub const fn sealed_before(self) -> Option<Step> {
        match self {
            Self::Destroy => Some(Step::Destroy),
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Step {
    /// As transcripts have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::SelfTest => "self-test",
            Self::Pins => "pins",
            Self::Token => "token",
            Self::Keys => "keys",
            Self::Evidence => "evidence",
            Self::Store => "store",
            Self::Identity => "identity",
            Self::Trial => "trial",
            Self::RuntimePin => "runtime-pin",
            Self::Inventory => "inventory",
            Self::Consent => "consent",
            Self::Destroy => "destroy",
            Self::Closing => "closing",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
