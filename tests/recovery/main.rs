//! What the appliance does when something breaks: its token, its process, its disk, its audit log,
//! or its clients' patience.
//!
//! - `token`: the token is pulled out, forgets, fails, hangs, refuses the PIN
//! - `audit`: the audit log is cut, deleted, flooded, without room
//! - `process`: the server is killed, restarted, given an old store, an audit log that can't be
//!   written
//! - `stop`: it is told to stop, or to read its files again, in the middle of something else
//! - `store`: records that contradict each other
//! - `disk`: one that can be full
//! - `load`: clients that know what each answer must be;  `rig`: an appliance on the module that
//!   fails on command

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    reason = "tests"
)]

#[path = "../support/mod.rs"]
mod support;
#[path = "../support/token_files.rs"]
mod token_files;

mod audit;
mod disk;
mod load;
mod process;
mod rig;
mod stop;
mod store;
mod token;
