//! What the appliance does at its edges: with bad clients, changed files, and bytes that no good
//! client sends. The real program each time.
//!
//! - `tls`: who gets a connection;  `reload`: what comes into force while it serves;  `requests`:
//!   HTTP and the API over the wire
//! - `links`: links that certificate managers turn;  `trust`: files that others can change;  `crl`:
//!   revocation lists over the life of a CA, held against openssl
//! - `program`: the process itself;  `wire`: one TLS connection that sends any bytes and reads what
//!   comes back

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    reason = "tests"
)]

#[path = "../support/mod.rs"]
mod support;

mod crl;
mod links;
mod program;
mod reload;
mod requests;
mod tls;
mod trust;
mod wire;
