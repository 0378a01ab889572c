//! A request of Vault's dialect, understood.

use std::sync::Arc;

use serde::Serialize;
use strongroom_core::keyring::KeyName;
use strongroom_core::tls::Peer;

use super::body::{Params, is_form, says_nothing};
use super::envelope::Envelope;
use super::error::ApiError;
use super::routes;
use crate::api::App;
use crate::api::pipeline::answer::{Answer, RequestId};
use crate::api::pipeline::credentials::Presented;
use crate::api::pipeline::route::{self, Ask, Verb};

/// What a handler is given.
pub(in crate::api) struct Call<'a> {
    /// As the pipeline has it.
    pub(in crate::api) request: route::Call<'a>,
    pub(in crate::api) app: &'a Arc<App>,
    pub(in crate::api) peer: &'a Peer,
    pub(in crate::api) id: &'a RequestId,
    /// The key's name, empty where the path has none.
    pub(in crate::api) name: &'a str,
    /// The path's other captures.
    pub(in crate::api) captures: [Option<&'a str>; 2],
    pub(in crate::api) params: Params<'a>,
    pub(in crate::api) token: Option<&'a Presented>,
}

impl<'a> Call<'a> {
    /// The key that the path names.
    pub(in crate::api) fn key(&self) -> Result<KeyName<&'a str>, ApiError> {
        self.request.key()
    }

    /// Reads the parameters; then the request begins.
    pub(in crate::api) async fn begin(ask: Ask<'a, '_>) -> Result<Self, ApiError> {
        let params = read(&ask)?;
        let request = ask.begin().await?;
        Ok(Self {
            request,
            app: request.app,
            peer: request.peer,
            id: request.id,
            name: request.name,
            captures: request.captures,
            params,
            token: request.token,
        })
    }

    /// `data` as a value, with the request's warnings and `more`.
    pub(in crate::api) fn answer<T: Serialize>(&mut self, data: &T, more: &[&str]) -> Answer {
        let mut envelope = Envelope::open(self.id, 512);
        envelope.json(data);
        self.close(envelope, more)
    }

    /// The same where `data` is written already.
    pub(in crate::api) fn close(&mut self, envelope: Envelope, more: &[&str]) -> Answer {
        let mut warnings = self.params.warnings();
        warnings.extend(more.iter().map(|&w| w.to_owned()));
        Answer::ok(envelope.close(&warnings, None::<&()>))
    }
}

/// POST and PUT have their parameters in the body, the others in the query. What stands in the
/// other place would be ignored, so it is refused.
fn read<'a>(ask: &Ask<'a, '_>) -> Result<Params<'a>, ApiError> {
    let (verb, source, body) = (ask.route().verb, ask.source(), ask.body());
    let shape = routes::shape(ask.route(), ask.captures());
    if verb != Verb::Update {
        if !says_nothing(body) {
            return Err(ApiError::bad_request(
                "this method takes no body: parameters of GET and LIST are in the query",
            ));
        }
        if verb == Verb::Delete && !source.query.is_empty() {
            return Err(ApiError::bad_request("DELETE takes no parameters"));
        }
        return Params::from_query(shape, source.query.as_bytes());
    }
    if !source.query.is_empty() {
        return Err(ApiError::bad_request(
            "parameters of POST and PUT are in the body: take them out of the query",
        ));
    }
    if is_form(source.form, body) {
        Params::from_form(shape, body)
    } else {
        Params::from_json(shape, body)
    }
}
