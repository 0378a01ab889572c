//! The bootable image in QEMU, with firmware that enforces Secure Boot and a software TPM.
//!
//! `make image` builds what is booted; these tests are ignored unless asked for
//! (`make test-image`), and say where it is not built. Each waits for lines on the serial console,
//! as an operator would.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    dead_code,
    unreachable_pub,
    reason = "tests"
)]

#[path = "../support/mod.rs"]
mod support;

mod arsenal;
mod ceremony;
mod contents;
mod doors;
mod kept;
mod logs;
mod machine;
mod network;
#[path = "../ceremony/rig.rs"]
mod rig;
mod scan;
mod tamper;
mod update;
