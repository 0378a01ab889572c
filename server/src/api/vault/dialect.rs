//! Vault's dialect, as the pipeline asks for it.

use std::borrow::Cow;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use serde::Serialize;
use strongroom_core::config::Config;
use strongroom_core::tls::Peer;
use zeroize::Zeroizing;

use super::error::{ApiError, PERMISSION_DENIED};
use super::routes::{self, Target};
use super::{auth, names};
use crate::api::App;
use crate::api::pipeline::credentials::{Credentials, Presented};
use crate::api::pipeline::dialect::{Claim, Dialect, OwnHeaders};
use crate::api::pipeline::error::Refusal;
use crate::api::pipeline::route::{Found, Verb};

/// What all its paths begin with.
pub(super) const ROOT: &str = "/v1/";

/// Stands for what is not a token at all, and is refused as an unknown one.
const NOT_A_TOKEN: &str = "\u{fffd}";

/// Its headers: as names, since a text is parsed as one at each look.
static TOKEN_HEADER: HeaderName = HeaderName::from_static("x-vault-token");
static AUTHORIZATION_HEADER: HeaderName = header::AUTHORIZATION;
static NAMESPACE_HEADER: HeaderName = HeaderName::from_static("x-vault-namespace");
static WRAP_TTL_HEADER: HeaderName = HeaderName::from_static("x-vault-wrap-ttl");
static CREDENTIAL_HEADERS: [&HeaderName; 4] = [
    &TOKEN_HEADER,
    &AUTHORIZATION_HEADER,
    &NAMESPACE_HEADER,
    &WRAP_TTL_HEADER,
];

/// Vault's dialect.
pub(in crate::api) struct Vault;

/// Vault's dialect.
pub(in crate::api) static VAULT: Vault = Vault;

impl Dialect for Vault {
    fn name(&self) -> &'static str {
        "Vault's API"
    }

    fn claims(&self) -> &'static [Claim] {
        &[Claim::Below(ROOT)]
    }

    fn mounts(&self, config: &Config) -> Vec<String> {
        let mounts = config.mounts.iter();
        mounts
            .map(|mount| format!("{ROOT}{}/", mount.trim_matches('/')))
            .collect()
    }

    fn reserved(&self) -> &'static [&'static str] {
        routes::RESERVED
    }

    fn headers(&self) -> &'static [&'static HeaderName] {
        &CREDENTIAL_HEADERS
    }

    fn decode<'p>(&self, path: &'p str) -> Option<Cow<'p, str>> {
        routes::decode_path(path)
    }

    fn find<'p>(
        &self,
        app: &App,
        head: &Parts,
        path: Option<&'p str>,
    ) -> Result<Found<'p>, ApiError> {
        let verb = verb(head)?;
        let path = path.ok_or_else(|| ApiError::empty(404))?;
        match routes::resolve(path, verb, &app.config.mounts) {
            Target::Route(route, captures) => Ok(Found { route, captures }),
            Target::WrongMethod(allow) => Err(wrong_method(path, allow)),
            Target::UnknownPath => Err(ApiError::unsupported_path()),
            Target::NoMount => Err(ApiError::new(
                404,
                format!(
                    "no handler for route {:?}. route entry not found.",
                    shown(path)
                ),
            )),
        }
    }

    fn credentials(
        &self,
        app: &App,
        peer: &Peer,
        own: &OwnHeaders<'_>,
    ) -> Result<Credentials, ApiError> {
        let [token, authorization, namespace, wrap_ttl] = *own;
        let text = presented_token(token, authorization)?;
        Ok(Credentials {
            token: text.map(|text| known(app, peer, text)).transpose()?,
            refused: refuse_headers(namespace, wrap_ttl).err(),
        })
    }

    fn refuse(&self, refusal: Refusal) -> ApiError {
        let policy = matches!(refusal, Refusal::Policy { .. } | Refusal::Certificate(_));
        let mut error = ApiError::from(refusal);
        if let Some(first) = error.messages.first_mut().filter(|_| policy) {
            *first = PERMISSION_DENIED.into();
        }
        error
    }

    fn respond(&self, error: ApiError) -> Response<Full<Bytes>> {
        #[derive(Serialize)]
        struct Errors<'a> {
            errors: &'a [Cow<'static, str>],
        }
        let errors = Errors {
            errors: &error.messages,
        };
        let mut body = serde_json::to_vec(&errors).unwrap_or_default();
        body.push(b'\n');
        error.into_response("application/json", body)
    }
}

/// A path for Vault's words: one that no client of Vault sends is not repeated.
pub(super) fn shown(path: &str) -> &str {
    if path.len() <= 128
        && path
            .split('/')
            .all(|part| part.is_empty() || names::is_word(part))
    {
        path
    } else {
        "(not repeated)"
    }
}

/// The method's meaning; GET with `list` is LIST. With another method it must say the same as that.
pub(in crate::api) fn verb(head: &Parts) -> Result<Verb, ApiError> {
    let method = &head.method;
    let plain = routes::verb(method, false);
    let mut list = false;
    // The others have no query.
    if matches!(plain, Some(Verb::Read | Verb::List | Verb::Head))
        && let Some(query) = head.uri.query()
        && let Some(said) = list_of(query)?
    {
        list = said;
        if plain == Some(Verb::List) && !said || plain == Some(Verb::Head) && said {
            return Err(ApiError::bad_request(
                "the method and \"list\" differ: leave \"list\" out, or send GET",
            ));
        }
    }
    routes::verb(method, list).ok_or_else(|| ApiError {
        allow: Some("GET, LIST, POST, PUT, DELETE, HEAD".to_owned()),
        ..ApiError::empty(405)
    })
}

/// What a query says of `list`.
fn list_of(query: &str) -> Result<Option<bool>, ApiError> {
    let mut said = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "list");
    let Some((_, value)) = said.next() else {
        return Ok(None);
    };
    if said.next().is_some() {
        return Err(ApiError::bad_request("\"list\" is given twice"));
    }
    match value.as_ref() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Some(true)),
        "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Some(false)),
        _ => Err(ApiError::bad_request("\"list\" is true or false")),
    }
}

/// Vault's core answers its own paths without words.
fn wrong_method(path: &str, allow: String) -> ApiError {
    if path.starts_with("sys/") || path == "openapi.json" {
        return ApiError {
            allow: Some(allow),
            ..ApiError::empty(405)
        };
    }
    ApiError::unsupported_operation(allow)
}

/// `X-Vault-Token` or `Authorization: Bearer`; both, if they say the same.
fn presented_token<'h>(
    own: Option<&'h HeaderValue>,
    authorization: Option<&'h HeaderValue>,
) -> Result<Option<&'h str>, ApiError> {
    // Not ASCII, so no token of ours: it is looked up, and refused, as any other unknown one.
    let text = |value: &'h HeaderValue| value.to_str().unwrap_or(NOT_A_TOKEN);
    let own = own.map_or("", text);
    let other = authorization.map_or("", |value| bearer(text(value)));
    match (own, other) {
        ("", "") => Ok(None),
        ("", token) | (token, "") => Ok(Some(token)),
        // Both are the client's own words: there is nothing to learn from the time that this takes.
        (own, other) if own == other => Ok(Some(own)),
        _ => Err(ApiError::bad_request(
            "X-Vault-Token and Authorization differ: send one of them",
        )),
    }
}

/// Who is known by a token.
fn known(app: &App, peer: &Peer, text: &str) -> Result<Presented, ApiError> {
    let known = app.tokens.load().check(text, &peer.identity);
    let login = known.is_none();
    let info = known
        .or_else(|| auth::presented_login(text, peer, &app.logins))
        .ok_or_else(|| {
            ApiError::bad_token("the token is unknown or bound to another certificate")
        })?;
    Ok(Presented {
        login,
        info,
        text: Zeroizing::new(text.to_owned()),
    })
}

/// The token of `Authorization`, whose scheme may be in any case (RFC 9110, 11.1). What is no
/// bearer token is none of ours, and not ignored.
fn bearer(credentials: &str) -> &str {
    let credentials = credentials.trim();
    let (scheme, token) = credentials
        .split_once([' ', '\t'])
        .unwrap_or((credentials, ""));
    if credentials.is_empty() || scheme.eq_ignore_ascii_case("bearer") {
        token.trim()
    } else {
        NOT_A_TOKEN
    }
}

/// Headers that ask for what would silently not happen.
fn refuse_headers(
    namespace: Option<&HeaderValue>,
    wrap_ttl: Option<&HeaderValue>,
) -> Result<(), ApiError> {
    if let Some(namespace) = namespace
        && !matches!(namespace.as_bytes(), b"" | b"/" | b"root" | b"root/")
    {
        return Err(ApiError::bad_request(
            "namespaces are not supported: leave X-Vault-Namespace out",
        ));
    }
    if let Some(ttl) = wrap_ttl
        && !matches!(ttl.as_bytes(), b"" | b"0" | b"0s")
    {
        return Err(ApiError::bad_request(
            "response wrapping is not supported: leave X-Vault-Wrap-TTL out",
        ));
    }
    Ok(())
}
