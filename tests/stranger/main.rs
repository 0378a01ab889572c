//! The stranger's kit: programs in Python that were written from `docs/` alone, held against this
//! program on good and bad documents.
//!
//! - `audit`: audit logs that were forged, changed and cut
//! - `json`: one table of JSON that two readers could take differently, read by both
//! - shares and backups: `tests/ceremony/stranger.rs`, since they come out of whole ceremonies
//! - transcripts: `tests/ceremony_verify/`

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    reason = "tests"
)]

#[path = "../support/mod.rs"]
mod support;

mod audit;
mod json;

use std::path::Path;
use std::process::Command;

/// A program of the kit.
fn kit(python: &Path, program: &str) -> Command {
    let mut command = Command::new(python);
    command.arg(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/stranger")
            .join(program),
    );
    command
}
