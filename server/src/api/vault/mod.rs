//! Vault's dialect: Transit, and what Vault's clients ask besides.

pub(super) mod auth;
pub(super) mod body;
mod clients;
pub(super) mod error;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod rotation;
pub mod routes;
mod sys;
mod transit;
pub mod wire;
