//! A request of Vault's dialect, understood.

use std::sync::Arc;

use strongroom_core::tls::Peer;

use super::body::Params;
use super::error::ApiError;
use super::routes;
use crate::api::App;
use crate::api::pipeline::answer::RequestId;
use crate::api::pipeline::route::{self, Ask, Source};
use crate::api::pipeline::token::Presented;

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
    /// Reads the parameters; then the request begins.
    pub(in crate::api) async fn begin(ask: Ask<'a, '_>) -> Result<Self, ApiError> {
        let shape = routes::shape(ask.route(), ask.captures());
        let params = match ask.source() {
            Source::Query(query) => Params::from_query(shape, query.as_bytes()),
            Source::Form => Params::from_form(shape, ask.body()),
            Source::Json => Params::from_json(shape, ask.body()),
        }?;
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
}
