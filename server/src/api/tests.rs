//! The API from the outside of [`super::handle`], in this process, on a real token; and its
//! description.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc
)]

mod appliance;
mod attacker;
mod cipher;
mod dialect;
mod keyless;
mod keys;
mod openapi;
mod pipeline;
mod secrets;
mod sign;
mod strict;
