//! Each step's act. [`Kind::steps`] is the one list of steps; a kind that does a step in another
//! way than the rest has its own line here.

use super::later::{add_token, backup, destroy, opening as later, reshare, restore, rotate};
use super::{
    Act, closing, evidence, identity, keys, opening, pins, runtime_pin, self_test, store, token,
    trial,
};
use crate::{Kind, Step};

/// What is done at that step of a ceremony of that kind.
pub(super) fn act(kind: Kind, step: Step) -> &'static Act {
    match (step, kind) {
        (Step::Opening, Kind::Birth) => &opening::ACT,
        (Step::Opening, _) => &later::ACT,
        (Step::SelfTest, _) => &self_test::ACT,
        (Step::Pins, Kind::ReplaceCustodian) => &reshare::ACT,
        (Step::Pins, Kind::Restore) => &restore::PINS,
        (Step::Pins, _) => &pins::ACT,
        (Step::Token, Kind::Restore) => &restore::TOKEN,
        (Step::Token, _) => &token::ACT,
        (Step::Keys, Kind::Restore) => &restore::KEYS,
        (Step::Keys, Kind::RotateMaster) => &rotate::KEYS,
        (Step::Keys, _) => &keys::ACT,
        (Step::Evidence, Kind::RotateMaster) => &rotate::EVIDENCE,
        (Step::Evidence, _) => &evidence::ACT,
        (Step::Store, Kind::Restore) => &restore::STORE,
        (Step::Store, _) => &store::ACT,
        (Step::Identity, Kind::Restore) => &restore::IDENTITY,
        (Step::Identity, _) => &identity::ACT,
        (Step::Trial, _) => &trial::ACT,
        (Step::RuntimePin, _) => &runtime_pin::ACT,
        (Step::Transport, _) => &backup::TRANSPORT,
        (Step::Export, _) => &backup::EXPORT,
        (Step::Successor, _) => &rotate::SUCCESSOR,
        (Step::Trust, _) => &rotate::TRUST,
        (Step::Move, _) => &rotate::MOVE,
        (Step::Retire, _) => &rotate::RETIRE,
        (Step::SecondToken, _) => &add_token::TOKEN,
        (Step::Copy, _) => &add_token::COPY,
        (Step::Inventory, _) => &destroy::INVENTORY,
        (Step::Consent, _) => &destroy::CONSENT,
        (Step::Destroy, _) => &destroy::ACT,
        (Step::Closing, Kind::Destroy) => &destroy::CLOSING,
        (Step::Closing, _) => &closing::ACT,
    }
}
