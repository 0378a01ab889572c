//! Strongroom: an HSM-backed key appliance.
//!
//! A request walks one way, `api` → `policy` → `keyring` → `strongroom_hsm`, and the answer walks back. Nothing below
//! `api` knows of HTTP, nothing above `strongroom_hsm` knows of PKCS#11, only `store` knows of sled.

pub mod api;
pub mod audit;
pub mod causes;
pub mod ceremony;
pub mod cli;
pub mod client;
mod clock;
pub mod config;
mod files;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
pub mod harden;
pub mod identity;
pub mod json;
pub mod keyring;
pub mod lifecycle;
mod lock;
mod owner;
pub mod policy;
pub mod rotation;
mod seldom;
pub mod serve;
pub mod store;
pub mod tls;
pub mod tokens;

#[cfg(test)]
mod testing;
