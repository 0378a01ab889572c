//! What a ceremony is held for, and which steps it has.
//!
//! A new kind is a variant here with its steps, their `Act`s (`run/acts.rs`, `run/later`), and what
//! its steps record in `verify/later.rs`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a ceremony is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The keys are made. Every other kind is of an appliance that had one.
    Birth,
    /// The PINs are shared again, among other custodians.
    ReplaceCustodian,
    /// The keys that a second token needs come out, under a transport key that the custodians
    /// share.
    Backup,
    /// They come into a second token beside the first, with nothing left on a disk.
    AddToken,
    /// They come into another token, which takes the place of the one that is lost.
    Restore,
    /// Another master key takes the place of the one in force.
    RotateMaster,
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
    Transport,
    Export,
    Successor,
    Trust,
    Move,
    Retire,
    SecondToken,
    Copy,
    Inventory,
    Consent,
    Destroy,
    Closing,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Birth,
        Self::ReplaceCustodian,
        Self::Backup,
        Self::AddToken,
        Self::Restore,
        Self::RotateMaster,
        Self::Destroy,
    ];

    /// As transcripts have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Birth => "birth",
            Self::ReplaceCustodian => "replace-custodian",
            Self::Backup => "backup",
            Self::AddToken => "add-token",
            Self::Restore => "restore",
            Self::RotateMaster => "rotate-master",
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
            Self::Backup => &[Step::Opening, Step::Transport, Step::Export, Step::Closing],
            Self::AddToken => &[Step::Opening, Step::SecondToken, Step::Copy, Step::Closing],
            Self::Restore => &[
                Step::Opening,
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
            Self::RotateMaster => &[
                Step::Opening,
                Step::SelfTest,
                Step::Successor,
                Step::Trust,
                Step::Move,
                Step::Retire,
                Step::Keys,
                Step::Evidence,
                Step::Closing,
            ],
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

    /// The step before which the audit key seals the transcript, where that key does not live to
    /// see its end.
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
            Self::Transport => "transport",
            Self::Export => "export",
            Self::Successor => "successor",
            Self::Trust => "trust",
            Self::Move => "move",
            Self::Retire => "retire",
            Self::SecondToken => "second-token",
            Self::Copy => "copy",
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
