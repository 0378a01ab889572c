//! Strongroom's own pages, outside of any protocol's paths. They take tokens, and refuse, as
//! Vault's dialect does.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::header::HeaderName;
use hyper::http::request::Parts;
use strongroom_core::tls::Peer;

use super::App;
use super::pipeline::credentials::Credentials;
use super::pipeline::dialect::{Claim, Dialect, OwnHeaders};
use super::pipeline::error::{ApiError, Refusal};
use super::pipeline::route::{Captures, Found, Route, allow};
use super::vault::{VAULT, verb};

/// Some pages.
pub(super) struct Pages {
    pub(super) name: &'static str,
    /// The paths of `table`.
    pub(super) claims: &'static [Claim],
    /// Their paths are without the first slash.
    pub(super) table: &'static [Route],
}

impl Dialect for Pages {
    fn name(&self) -> &'static str {
        self.name
    }

    fn claims(&self) -> &'static [Claim] {
        self.claims
    }

    fn headers(&self) -> &'static [&'static HeaderName] {
        VAULT.headers()
    }

    fn find<'p>(
        &self,
        _: &App,
        head: &Parts,
        path: Option<&'p str>,
    ) -> Result<Found<'p>, ApiError> {
        let verb = verb(head)?;
        let path = path.and_then(|path| path.strip_prefix('/'));
        let same_path = || self.table.iter().filter(|row| Some(row.path) == path);
        if let Some(route) = same_path().find(|row| row.verb == verb) {
            return Ok(Found {
                route,
                captures: Captures::default(),
            });
        }
        Err(match same_path().next() {
            Some(_) => ApiError {
                allow: Some(allow(same_path())),
                ..ApiError::empty(405)
            },
            None => ApiError::empty(404),
        })
    }

    fn credentials(
        &self,
        app: &App,
        peer: &Peer,
        own: &OwnHeaders<'_>,
    ) -> Result<Credentials, ApiError> {
        VAULT.credentials(app, peer, own)
    }

    fn refuse(&self, refusal: Refusal) -> ApiError {
        VAULT.refuse(refusal)
    }

    fn respond(&self, error: ApiError) -> Response<Full<Bytes>> {
        VAULT.respond(error)
    }
}
