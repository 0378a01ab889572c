//! HTTP: requests of several protocols, on one way. No cryptography in here.
//!
//! - `pipeline` is the way of every request: place, row, certificate, policy, audit log, limits,
//!   body, outcome. It names no protocol, but in its list of dialects.
//! - [`vault`] is Vault's dialect: Transit, and what Vault's clients ask besides. It names
//!   `pipeline`.
//! - `ui` and `jwks` are the status page, and the public keys that JWTs are checked with; `pages`
//!   makes dialects of them. They name both.
//! - `metrics` and [`recent`] are what is counted.

mod jwks;
mod metrics;
mod pages;
mod pipeline;
pub mod recent;
mod ui;
pub mod vault;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use strongroom_core::audit::Audit;
use strongroom_core::config::Config;
use strongroom_core::keyring::Keyring;
use strongroom_core::policy::Policy;
use strongroom_core::rotation::MasterRotation;
use strongroom_core::store::Store;
use strongroom_core::tls::{Peer, Tls};
use strongroom_core::tokens::Tokens;
use strongroom_hsm::Hsm;

use crate::harden::Report;

pub use pipeline::admission::Admission;
pub use pipeline::dialect::{Endpoint, contradictions};
pub use pipeline::{handle, without_a_host};
pub use vault::{Logins, OPENAPI};

/// Everything a request may need.
pub struct App {
    /// As loaded at start.
    pub config: Config,
    /// The token, for health and state.
    pub hsm: Hsm,
    /// The keys.
    pub keyring: Keyring,
    /// The store, for its status.
    pub store: Arc<Store>,
    /// The policy in force.
    pub policy: ArcSwap<Policy>,
    /// The tokens in force.
    pub tokens: ArcSwap<Tokens>,
    /// The logins of Vault's clients.
    pub logins: Logins,
    /// The audit log.
    pub audit: Arc<Audit>,
    /// TLS in force.
    pub tls: Arc<Tls>,
    /// When the server started.
    pub started: Instant,
    /// What rights the process has given up.
    pub hardening: Report,
    /// The requests in flight, and what was counted.
    pub admission: Admission,
    /// The move of the keys to another master key.
    pub rotation: MasterRotation,
}

/// Whose requests those of one connection are.
pub struct Client {
    /// What serves them.
    pub app: Arc<App>,
    /// What they came to.
    pub endpoint: Arc<Endpoint>,
    /// Who asks.
    pub peer: Peer,
}
