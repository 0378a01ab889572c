//! The key ceremony as a whole: from a signed plan to an appliance that serves.
//!
//! - `birth`: a 3-of-5 ceremony by a directory of answers, with every kind of wrong share on the
//!   way; the appliance serves
//! - `power_cut`: killed at every line of the transcript and inside the token's functions
//! - `rehearsal`: the same on a throwaway token, worth nothing for real
//! - `by_hand`: through a real terminal; nothing secret stays on it or in memory
//! - `later`: ceremonies of an appliance that has its keys
//! - `log`: the audit log, held against the record of the appliance's initial ceremony
//! - `stranger`: shares and backups opened by the programs of `tests/stranger/`
//! - `rig`: people with keys, a plan, a directory for each ceremony

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    reason = "tests"
)]

#[path = "../support/mod.rs"]
mod support;

mod birth;
mod by_hand;
mod later;
mod log;
mod power_cut;
mod rehearsal;
mod rig;
mod stranger;
