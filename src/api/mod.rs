//! HTTP: one file per protocol spoken; no cryptography in here.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response};
use strongroom_hsm::Hsm;

use crate::audit::Audit;
use crate::config::Config;
use crate::keyring::Keyring;
use crate::policy::Policy;
use crate::store::Store;
use crate::tls::{Peer, Tls};
use crate::tokens::Tokens;

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
    /// The audit log.
    pub audit: Audit,
    /// TLS in force.
    pub tls: Arc<Tls>,
    /// When the server started.
    pub started: Instant,
}

/// Answers one request of one authenticated client. Never fails, never panics: what goes wrong is an answer.
#[allow(unused_variables, clippy::todo, clippy::unused_async)]
pub async fn handle(
    app: Arc<App>,
    peer: Arc<Peer>,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    todo!()
}
