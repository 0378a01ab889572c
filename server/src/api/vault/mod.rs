//! Vault's dialect: Transit, and what Vault's clients ask besides.
//!
//! `dialect` is what the pipeline asks; `routes` the table; `call` what a handler is given; `body`
//! reads parameters (`names` says which are taken, `value` what each is), `batch` those with many
//! items; `request` makes types of them, `openapi` describes them, `envelope` writes answers,
//! `error` has Vault's words.

mod auth;
pub(super) mod batch;
pub(super) mod body;
pub(super) mod call;
mod clients;
mod dialect;
pub(super) mod envelope;
pub(super) mod error;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod names;
mod openapi;
pub(super) mod request;
mod rotation;
pub(super) mod routes;
mod sys;
mod transit;
mod value;
pub mod wire;
mod words;

pub use auth::Logins;
pub(super) use dialect::{VAULT, verb};
pub use openapi::OPENAPI;
