//! What administrators see: the status page in a real browser, and the alert rules in a real
//! Prometheus.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unnecessary_debug_formatting,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc
)]

mod alerts;
mod browser;
mod dashboard;
mod prometheus;
mod status_page;

#[path = "../support/mod.rs"]
mod support;

#[path = "../recovery/rig.rs"]
#[allow(dead_code)]
mod rig;
