//! What the pipeline asks of a protocol, and which protocol answers which path.
//!
//! A dialect is a value in an [`Endpoint`]'s list: its paths, the rows that they lead to, the form
//! of its errors. Certificate, policy, audit log and limits are the pipeline's, alike for all.

use std::borrow::Cow;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::header::{HeaderName, HeaderValue};
use hyper::http::request::Parts;
use strongroom_core::config::Config;
use strongroom_core::tls::Peer;

use super::credentials::Credentials;
use super::error::{ApiError, Refusal};
use super::route::Found;
use crate::api::{App, jwks, ui, vault};

/// The most headers of its own that a dialect may name.
pub(crate) const MAX_HEADERS: usize = 4;

/// The values of a dialect's own headers, in the order of [`Dialect::headers`].
pub(crate) type OwnHeaders<'h> = [Option<&'h HeaderValue>; MAX_HEADERS];

/// A protocol.
pub(crate) trait Dialect: Sync {
    /// What messages call it.
    fn name(&self) -> &'static str;

    /// The paths that are its own, whatever another dialect makes of them.
    fn claims(&self) -> &'static [Claim];

    /// What the configuration puts below its paths: beginnings of paths, each with a slash at its
    /// end.
    fn mounts(&self, _config: &Config) -> Vec<String> {
        Vec::new()
    }

    /// Paths of its own below which no mount can be reached: each begins as a mount's do, and ends
    /// with a slash.
    fn reserved(&self) -> &'static [&'static str] {
        &[]
    }

    /// Headers that may stand once in a request, [`MAX_HEADERS`] at most: handed to
    /// [`Dialect::credentials`].
    fn headers(&self) -> &'static [&'static HeaderName] {
        &[]
    }

    /// The path as [`Dialect::find`] wants it. `None`: none of its own can be meant.
    fn decode<'p>(&self, path: &'p str) -> Option<Cow<'p, str>> {
        Some(Cow::Borrowed(path))
    }

    /// The row that method and path lead to.
    fn find<'p>(
        &self,
        app: &App,
        head: &Parts,
        path: Option<&'p str>,
    ) -> Result<Found<'p>, ApiError>;

    /// What its own headers say. `Err`: a token that is none.
    fn credentials(
        &self,
        _app: &App,
        _peer: &Peer,
        _own: &OwnHeaders<'_>,
    ) -> Result<Credentials, ApiError> {
        Ok(Credentials::default())
    }

    /// Its words for what the pipeline refuses.
    fn refuse(&self, refusal: Refusal) -> ApiError {
        refusal.into()
    }

    /// An error in its form.
    fn respond(&self, error: ApiError) -> Response<Full<Bytes>>;
}

/// Paths that belong to a dialect, percent signs decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// This one.
    Path(&'static str),
    /// All that begin so; it ends with a slash.
    Below(&'static str),
}

impl Claim {
    fn text(self) -> &'static str {
        match self {
            Self::Path(text) | Self::Below(text) => text,
        }
    }

    /// How much of the path it names, if it has it.
    fn covers(self, path: &str) -> Option<usize> {
        let has = match self {
            Self::Path(own) => path == own,
            Self::Below(own) => path.starts_with(own),
        };
        has.then(|| self.text().len())
    }

    /// Whether a path below `mount` may be this claim's.
    fn meets(self, mount: &str) -> bool {
        self.text().starts_with(mount) || matches!(self, Self::Below(own) if mount.starts_with(own))
    }
}

/// What one listener answers, and how much of it.
pub struct Endpoint {
    dialects: &'static [&'static dyn Dialect],
    /// Answers what nobody claims.
    fallback: &'static dyn Dialect,
    pub(crate) limits: Limits,
}

/// The bounds of one listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections.
    pub(crate) connections: usize,
    /// Requests in flight, those of other listeners counted in: with a lower number a listener
    /// leaves room to the others.
    pub(crate) requests: usize,
    /// Bytes of one body.
    pub(crate) body: usize,
}

impl Limits {
    /// As configured for `listen`.
    pub(crate) fn configured(config: &Config) -> Self {
        Self {
            connections: config.max_connections,
            requests: config.max_requests,
            body: config.max_body,
        }
    }
}

/// All dialects.
static DIALECTS: [&dyn Dialect; 3] = [&ui::PAGES, &jwks::PAGES, &vault::VAULT];

impl Endpoint {
    /// Every dialect, within the configured limits: what is served on `listen`.
    pub fn configured(config: &Config) -> Self {
        Self::new(&DIALECTS, &vault::VAULT, Limits::configured(config))
    }

    /// These dialects; `fallback` answers what none of them claims.
    pub(crate) fn new(
        dialects: &'static [&'static dyn Dialect],
        fallback: &'static dyn Dialect,
        limits: Limits,
    ) -> Self {
        Self {
            dialects,
            fallback,
            limits,
        }
    }

    /// Whose a path is, as it came. The claim that names more of it wins, so that no mount hides
    /// another dialect's path, however it is written.
    pub(crate) fn dialect_of(&self, path: &str) -> &'static dyn Dialect {
        if !path.contains('%') {
            return self.owner(path);
        }
        match percent_encoding::percent_decode_str(path).decode_utf8() {
            Ok(decoded) => self.owner(&decoded),
            Err(_) => self.owner(path),
        }
    }

    fn owner(&self, path: &str) -> &'static dyn Dialect {
        let mut owner = (self.fallback, 0);
        for &dialect in self.dialects {
            let covered = dialect.claims().iter().filter_map(|c| c.covers(path));
            if let Some(length) = covered.max()
                && length > owner.1
            {
                owner = (dialect, length);
            }
        }
        owner.0
    }

    /// What the configuration mounts where another dialect has its paths, and what two dialects
    /// claim both: each would be answered by one of them only. In sentences.
    pub(crate) fn contradictions(&self, config: &Config) -> Vec<String> {
        let mut found = Vec::new();
        for (at, dialect) in self.dialects.iter().enumerate() {
            for mount in dialect.mounts(config) {
                if let Some(own) = dialect
                    .reserved()
                    .iter()
                    .find(|own| mount.starts_with(**own))
                {
                    found.push(format!(
                        "server.mounts: {mount} can't be reached, since {own} is {}'s own: choose another mount",
                        dialect.name(),
                    ));
                }
                let others = self.dialects.iter().enumerate();
                let others = others.filter(|(other, _)| *other != at);
                for (_, other) in others {
                    let met = other.claims().iter().find(|claim| claim.meets(&mount));
                    if let Some(claim) = met {
                        found.push(format!(
                            "server.mounts: {mount} of {} hides {}, a path of {}: choose another mount",
                            dialect.name(),
                            claim.text(),
                            other.name(),
                        ));
                    }
                }
            }
            for other in self.dialects.iter().skip(at + 1) {
                for claim in dialect.claims() {
                    if other.claims().iter().any(|c| c.text() == claim.text()) {
                        found.push(format!(
                            "{} belongs to {} and to {}: serve them on two listeners",
                            claim.text(),
                            dialect.name(),
                            other.name(),
                        ));
                    }
                }
            }
        }
        found
    }
}

/// What keeps a configuration from being served though each of its settings is right, in sentences:
/// paths that two protocols would have, or that one has for something else.
pub fn contradictions(config: &Config) -> Vec<String> {
    Endpoint::configured(config).contradictions(config)
}
