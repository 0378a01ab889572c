//! HTTP: Vault's Transit API and what its clients ask besides. No cryptography in here.
//!
//! Each request walks through [`handle`] once: a place is taken, the path is matched against the
//! one table in [`routes`], certificate, token and policy are asked, the audit log is asked whether
//! it can be written, the body is read, the handler runs, the decision is recorded, and only then
//! does the answer leave.

mod answer;
mod jwks;
mod metrics;
mod pipeline;
pub mod recent;
mod ui;
pub mod vault;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, Response};
use strongroom_core::audit::{Audit, AuditError, Entry};
use strongroom_core::config::Config;
use strongroom_core::keyring::{CreateOptions, Keyring, KeyringError};
use strongroom_core::policy::{Decision, Policy};
use strongroom_core::rotation::Rotation;
use strongroom_core::seldom::seldom;
use strongroom_core::store::Store;
use strongroom_core::tls::{Peer, Tls};
use strongroom_core::tokens::{TokenInfo, Tokens};
use strongroom_hsm::Hsm;
use zeroize::{Zeroize, Zeroizing};

use crate::harden::Report;

use answer::{Answer, RequestId};
use metrics::Metrics;
use pipeline::origin::{self, Said};
use recent::Recent;
use vault::auth::{self, Ended};
use vault::body::{self, Params};
use vault::error::{ApiError, Doing};
use vault::routes::{self, Captures, Limit, Route, Target, Verb};

/// The `OpenAPI` 3.1 document that describes every route; served, and checked against the route
/// table by a test.
pub const OPENAPI: &str = include_str!("vault/openapi.json");

/// A body must have come in whole after this long.
const BODY_DEADLINE: Duration = Duration::from_secs(30);
/// [`Limit::Small`], bytes.
const SMALL_BODY: usize = 64 * 1024;

/// Stands for what is no token at all, and is refused as an unknown one.
const NO_TOKEN: &str = "\u{fffd}";

/// Vault's headers: as names, since a text is parsed as one at each look.
static TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
static NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
static WRAP_TTL: HeaderName = HeaderName::from_static("x-vault-wrap-ttl");

/// Headers that would make a request another one if they were understood. `If-None-Match` asks
/// nothing of what only reads.
static NOT_UNDERSTOOD: [HeaderName; 6] = [
    header::IF_MATCH,
    header::IF_UNMODIFIED_SINCE,
    header::CONTENT_RANGE,
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
];

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
    pub audit: Arc<Audit>,
    /// TLS in force.
    pub tls: Arc<Tls>,
    /// When the server started.
    pub started: Instant,
    /// What rights the process has given up.
    pub hardening: Report,
    /// How many requests may be in flight, and what was counted.
    pub gate: Gate,
    /// The move of the keys to another master key.
    pub rotation: Rotation,
}

/// Bounds the requests in flight, and counts them.
pub struct Gate {
    in_flight: AtomicUsize,
    /// Changes that requests asked for and that are being carried out: also of clients that are
    /// gone.
    changes: AtomicUsize,
    /// No other one is begun.
    closed: AtomicBool,
    max_requests: usize,
    metrics: Metrics,
    recent: Recent,
    ended: Ended,
}

impl Gate {
    /// With `max_requests` places.
    pub fn new(config: &Config) -> Self {
        Self {
            in_flight: AtomicUsize::new(0),
            changes: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            max_requests: config.max_requests,
            metrics: Metrics::new(),
            recent: Recent::default(),
            ended: Ended::default(),
        }
    }

    /// Remembers how many requests were answered since the last call; to be called each
    /// [`recent::SAMPLE`].
    pub fn sample(&self) {
        self.recent.sample();
    }

    /// A signing key went from one state to another.
    pub fn transition(&self, key: &str, from: &'static str, to: &'static str) {
        self.metrics.transition(key, from, to);
    }

    /// Requests being answered now.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// No change that a request asks for is begun any more; answers how many are still being
    /// carried out.
    pub fn close(&self) -> usize {
        self.closed.store(true, Ordering::SeqCst);
        self.changes.load(Ordering::SeqCst)
    }
}

/// A change that is being carried out, until it is dropped.
struct Change(Arc<Client>);

impl Change {
    /// `Err`: the server is about to stop.
    fn begin(client: &Arc<Client>) -> Result<Self, ApiError> {
        let gate = &client.app.gate;
        // Counted before it is known whether it may begin: whoever closes the gate sees it, or is
        // seen.
        let change = Self(Arc::clone(client));
        gate.changes.fetch_add(1, Ordering::SeqCst);
        if gate.closed.load(Ordering::SeqCst) {
            return Err(stopping());
        }
        Ok(change)
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        self.0.app.gate.changes.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A request's place among those in flight, given back when it is dropped.
struct Place(Arc<Client>);

impl Place {
    /// `None`: all are taken.
    fn take(client: &Arc<Client>) -> Option<Self> {
        let gate = &client.app.gate;
        // Counted before it is known whether there is room, and given back if there is none.
        let place = Self(Arc::clone(client));
        let before = gate.in_flight.fetch_add(1, Ordering::Relaxed);
        (before < gate.max_requests).then_some(place)
    }

    /// Another one for a request that has one, whether or not there is room: for what goes on
    /// without the client.
    fn another(client: &Arc<Client>) -> Self {
        client.app.gate.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(client))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.app.gate.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whose requests those of one connection are.
pub struct Client {
    /// What serves them.
    pub app: Arc<App>,
    /// Who asks.
    pub peer: Peer,
}

/// Answers one request of one authenticated client. Never fails, never panics: what goes wrong is
/// an answer.
pub async fn handle<B>(client: Arc<Client>, request: Request<B>) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Display,
{
    let begun = Instant::now();
    let Some(place) = Place::take(&client) else {
        client.app.gate.metrics.overloaded.inc();
        return ApiError::unavailable("too many requests are in flight: try again later")
            .into_response();
    };
    // A defect must cost one answer, not the server.
    let head = request.method() == hyper::Method::HEAD;
    let work = pin!(answer(&client, request, place, begun));
    let response = match AssertUnwindSafe(work).catch_unwind().await {
        Ok(Ok(answer)) => answer.into_response(),
        Ok(Err(error)) => error.into_response(),
        Err(_) => panicked(&client.app).into_response(),
    };
    // hyper takes such a body off in HTTP/1 only, and in HTTP/2 it would be against the protocol.
    match response.status().as_u16() {
        204 | 205 | 304 => response.map(|_| Full::default()),
        _ if head => without_its_body(response),
        _ => response,
    }
}

/// What is answered to HEAD: as to GET, without the body (RFC 9110, 9.3.2).
fn without_its_body(response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    let (mut head, body) = response.into_parts();
    if let Some(length) = body.size_hint().exact() {
        head.headers.insert(header::CONTENT_LENGTH, length.into());
    }
    Response::from_parts(head, Full::default())
}

/// What is answered to a request that does not say which host it is for, or says it twice (RFC
/// 9112, 3.2).
pub fn without_a_host() -> Response<Full<Bytes>> {
    ApiError {
        close: true,
        ..ApiError::bad_request("HTTP/1.1 wants one Host header: name the server in it")
    }
    .into_response()
}

/// A good token, and its text for `lookup-self`.
struct Presented {
    info: TokenInfo,
    text: Zeroizing<String>,
    /// Of a login: it says no more than the certificate does.
    login: bool,
}

impl Presented {
    /// Whether it is what a rule of the policy asks for that wants a token.
    fn counts(&self) -> bool {
        !self.login
    }
}

/// What a handler is given.
struct Call<'a> {
    client: &'a Arc<Client>,
    app: &'a Arc<App>,
    peer: &'a Peer,
    id: &'a RequestId,
    /// The key's name, empty where the path has none.
    name: &'a str,
    /// The path's other captures.
    captures: [Option<&'a str>; 2],
    params: Params<'a>,
    token: Option<&'a Presented>,
    /// What the client has already of what it reads.
    if_none_match: Option<&'a str>,
}

async fn answer<B>(
    client: &Arc<Client>,
    request: Request<B>,
    place: Place,
    begun: Instant,
) -> Result<Answer, ApiError>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Display,
{
    let (app, peer) = (&client.app, &client.peer);
    let id = RequestId::random();
    let (head, body) = request.into_parts();
    // Owned, as all that is kept of the head: see below.
    let path = routes::decode_path(head.uri.path()).map(Cow::into_owned);
    let (verb, route, captures) = match find_route(app, &head, path.as_deref()) {
        Ok(found) => found,
        Err(error) => return Err(leads_nowhere(app, peer, &id, &head, begun, error).await),
    };
    let key = captures.name.unwrap_or_default();
    let mut trail = Trail::begin(app, peer, &id, route, key, begun);
    let admitted = admit(app, peer, &head, route, captures.name, &mut trail);
    let token = trail.refuse_on_error(admitted).await?;
    let limit = match route.limit {
        Limit::Small => SMALL_BODY.min(app.config.max_body),
        Limit::Data => app.config.max_body,
    };
    let read = read_body(body, limit).await;
    let body = trail.refuse_on_error(read).await?;
    let source = Source::of(&head, verb, &body);
    let source = trail.refuse_on_error(source).await?;
    let known = head.headers.get(header::IF_NONE_MATCH);
    let known = known.and_then(|tags| tags.to_str().ok().map(str::to_owned));
    // Head and body are pieces of hyper's buffer. With both gone when the answer waits for the
    // audit log, the buffer is used again for what is read next, and what was in the body
    // overwritten; or else hyper gets a new one.
    drop(head);
    if !route.mutates {
        let known = known.as_deref();
        return carry_out(client, trail, captures, source, token.as_ref(), body, known).await;
    }
    // Once begun, a change is carried out and recorded whether or not the client waits for it.
    let under_way = trail.refuse_on_error(Change::begin(client)).await?;
    let form = matches!(source, Source::Form);
    trail.hand_over();
    let path = path.unwrap_or_default();
    let client = Arc::clone(client);
    let change = async move {
        let (_place, _under_way) = (place, under_way);
        let (app, peer) = (&client.app, &client.peer);
        let captures = match routes::resolve(&path, verb, &app.config.mounts) {
            Target::Route(_, captures) => captures,
            // The same path led to a route a moment ago.
            _ => Captures::default(),
        };
        let key = captures.name.unwrap_or_default();
        let mut trail = Trail::begin(app, peer, &id, route, key, begun);
        trail.token = token.as_ref().map(|t| t.info.id.clone());
        let source = if form { Source::Form } else { Source::Json };
        carry_out(&client, trail, captures, source, token.as_ref(), body, None).await
    };
    // `carry_out` catches a handler's panic; a task that is lost all the same was aborted by the
    // runtime's end.
    tokio::spawn(change)
        .await
        .unwrap_or_else(|_| Err(stopping()))
}

/// What is answered where no route is. Who is out, or is sent by another site, learns nothing of
/// which paths there are.
async fn leads_nowhere(
    app: &App,
    peer: &Peer,
    id: &RequestId,
    head: &Parts,
    begun: Instant,
    error: ApiError,
) -> ApiError {
    let route = &routes::NOWHERE;
    let admitted = still_good(app, peer);
    if admitted.is_ok()
        && let Err(foreign) = Said::of(&head.headers).check(head, route)
    {
        let mut trail = Trail::begin(app, peer, id, route, "", begun);
        trail.audited = true;
        return trail.refuse(&foreign).await.err().unwrap_or(foreign);
    }
    let error = admitted.err().unwrap_or(error);
    let took = begun.elapsed();
    let metrics = &app.gate.metrics;
    metrics.request(route.label, "error", error.status, 0, took);
    error
}

fn stopping() -> ApiError {
    ApiError::unavailable("the server is stopping")
}

/// Where the parameters are.
enum Source {
    Query(String),
    Form,
    Json,
}

impl Source {
    /// POST and PUT have them in the body, the others in the query. What stands in the other place
    /// would be ignored, so it is refused.
    fn of(head: &Parts, verb: Verb, body: &[u8]) -> Result<Self, ApiError> {
        let query = head.uri.query().unwrap_or_default();
        if verb != Verb::Update {
            if !body::says_nothing(body) {
                return Err(ApiError::bad_request(
                    "this method takes no body: parameters of GET and LIST are in the query",
                ));
            }
            if verb == Verb::Delete && !query.is_empty() {
                return Err(ApiError::bad_request("DELETE takes no parameters"));
            }
            return Ok(Self::Query(query.to_owned()));
        }
        if !query.is_empty() {
            return Err(ApiError::bad_request(
                "parameters of POST and PUT are in the body: take them out of the query",
            ));
        }
        let content_type = head.headers.get(header::CONTENT_TYPE);
        Ok(
            if body::is_form(content_type.map(HeaderValue::as_bytes), body) {
                Self::Form
            } else {
                Self::Json
            },
        )
    }
}

/// Runs the handler and records what came of it.
async fn carry_out(
    client: &Arc<Client>,
    mut trail: Trail<'_>,
    captures: Captures<'_>,
    source: Source,
    token: Option<&Presented>,
    body: Bytes,
    if_none_match: Option<&str>,
) -> Result<Answer, ApiError> {
    let app = &client.app;
    let route = trail.route;
    let shape = route.shape(&captures);
    let parsed = match &source {
        Source::Query(query) => Params::from_query(shape, query.as_bytes()),
        Source::Form => Params::from_form(shape, &body),
        Source::Json => Params::from_json(shape, &body),
    };
    let result = match parsed {
        Ok(params) => {
            if route.mutates
                && let Err(error) = trail.intend().await
            {
                drop(params);
                wipe(body);
                return Err(error);
            }
            let mut call = Call {
                client,
                app,
                peer: trail.peer,
                id: trail.id,
                name: trail.key,
                captures: captures.others,
                params,
                token,
                if_none_match,
            };
            AssertUnwindSafe((route.handler)(&mut call))
                .catch_unwind()
                .await
                .unwrap_or_else(|_| Err(panicked(app)))
        }
        Err(error) => Err(error),
    };
    wipe(body);
    match &result {
        Ok(answer) => trail.record(answer).await?,
        Err(error) => trail.refuse(error).await?,
    }
    result
}

/// What method and path lead to.
fn find_route<'a>(
    app: &App,
    head: &Parts,
    path: Option<&'a str>,
) -> Result<(Verb, &'static Route, Captures<'a>), ApiError> {
    let verb = verb(head)?;
    let path = path.ok_or_else(|| ApiError::empty(404))?;
    match routes::resolve(path, verb, &app.config.mounts) {
        Target::Route(route, captures) => Ok((verb, route, captures)),
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

/// A path for Vault's words: one that no client of Vault sends is not repeated.
fn shown(path: &str) -> &str {
    if path.len() <= 128
        && path
            .split('/')
            .all(|part| part.is_empty() || body::is_word(part))
    {
        path
    } else {
        "(not repeated)"
    }
}

/// The method's meaning; GET with `list` is LIST. With another method it must say the same as that.
fn verb(head: &Parts) -> Result<Verb, ApiError> {
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
    if path.starts_with("sys/") || path.starts_with('/') || path == "openapi.json" {
        return ApiError {
            allow: Some(allow),
            ..ApiError::empty(405)
        };
    }
    ApiError::unsupported_operation(allow)
}

/// Certificate, where a browser was made to ask, headers that change a request's meaning, token,
/// policy, and whether the audit log can be written.
fn admit(
    app: &App,
    peer: &Peer,
    head: &Parts,
    route: &Route,
    key: Option<&str>,
    trail: &mut Trail<'_>,
) -> Result<Option<Presented>, ApiError> {
    still_good(app, peer)?;
    let names = [
        &TOKEN,
        &header::AUTHORIZATION,
        &NAMESPACE,
        &WRAP_TTL,
        &origin::SITE,
        &origin::MODE,
        &origin::DEST,
        &header::ORIGIN,
        &header::REFERER,
        &header::CONTENT_TYPE,
    ];
    let [
        own,
        authorization,
        namespace,
        wrap_ttl,
        site,
        mode,
        dest,
        origin,
        referer,
        _,
    ] = only_of(&head.headers, names)?;
    let said = Said {
        site,
        mode,
        dest,
        origin,
        referer,
    };
    said.check(head, route)
        .inspect_err(|_| trail.audited = true)?;
    let token = match presented_token(own, authorization)? {
        None => None,
        Some(text) => {
            let known = app.tokens.load().check(text, &peer.identity);
            let login = known.is_none();
            let info = known
                .or_else(|| auth::presented_login(text, peer, &app.gate.ended))
                .ok_or_else(|| {
                    ApiError::bad_token("the token is unknown or bound to another certificate")
                })?;
            trail.token = Some(info.id.clone());
            Some(Presented {
                login,
                info,
                text: Zeroizing::new(text.to_owned()),
            })
        }
    };
    if let Some(operation) = route.operation {
        match app.policy.load().decide(&peer.identity, operation, key) {
            Decision::Allowed => {}
            Decision::AllowedWithToken if token.as_ref().is_some_and(Presented::counts) => {}
            Decision::AllowedWithToken => {
                return Err(ApiError::bad_token(
                    "the policy asks for a token and none was sent",
                ));
            }
            Decision::Denied => return Err(ApiError::denied("no policy rule allows it")),
        }
    }
    // Asked after the policy: who is denied learns nothing of what the appliance supports.
    refuse_headers(namespace, wrap_ttl)?;
    refuse_other_requests(&head.headers, route)?;
    let writable = if !route.needs_audit() {
        Ok(())
    } else if route.operation.is_none() {
        // Of these there are only counts when the disc is nearly full: they take no share.
        app.audit.check()
    } else {
        app.audit.admit(peer.identity.as_str())
    };
    if let Err(error) = writable {
        seldom!(1, error, %error, "refusing requests: they can't be audited");
        app.gate.metrics.audit_failures.inc();
        return Err(unaudited(&error));
    }
    Ok(token)
}

/// Why a request is refused that could not be recorded.
fn unaudited(error: &AuditError) -> ApiError {
    ApiError::unavailable(match error {
        AuditError::Room { .. } => {
            "the disc of the audit log is nearly full, so the request is refused"
        }
        AuditError::Share { .. } => {
            "the disc of the audit log is nearly full, and this client has had its share of it until there is room again"
        }
        _ => "the audit log can't be written, so the request is refused",
    })
}

/// Whether the client's certificate is as good as when it connected.
fn still_good(app: &App, peer: &Peer) -> Result<(), ApiError> {
    app.tls.still_valid(peer).map_err(|why| ApiError {
        close: true,
        ..ApiError::denied(format!("the client certificate is no longer good: {why}"))
    })
}

/// The value of each of these headers. In one pass: a request has few headers, and mostly none of
/// these. Of two values one would be ignored.
fn only_of<'h, const N: usize>(
    headers: &'h HeaderMap,
    names: [&HeaderName; N],
) -> Result<[Option<&'h HeaderValue>; N], ApiError> {
    let mut values = [None; N];
    for (name, value) in headers {
        for (known, only) in names.iter().zip(&mut values).filter(|(n, _)| **n == name) {
            if only.replace(value).is_some() {
                return Err(
                    ApiError::bad_request(format!("the header {known} is given twice"))
                        .in_own_words(),
                );
            }
        }
    }
    Ok(values)
}

/// `X-Vault-Token` or `Authorization: Bearer`; both, if they say the same.
fn presented_token<'h>(
    own: Option<&'h HeaderValue>,
    authorization: Option<&'h HeaderValue>,
) -> Result<Option<&'h str>, ApiError> {
    // Not ASCII, so no token of ours: it is looked up, and refused, as any other unknown one.
    let text = |value: &'h HeaderValue| value.to_str().unwrap_or(NO_TOKEN);
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
        NO_TOKEN
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

/// Refuses what would make this request another one: a method for the one that was sent, a
/// condition, a part, a body that is coded.
fn refuse_other_requests(headers: &HeaderMap, route: &Route) -> Result<(), ApiError> {
    let refuse = |name: &HeaderName| {
        Err(
            ApiError::bad_request(format!("the header {name} is not supported: leave it out"))
                .in_own_words(),
        )
    };
    for (name, value) in headers {
        let plain = |none: &[u8]| value.is_empty() || value.as_bytes().eq_ignore_ascii_case(none);
        if NOT_UNDERSTOOD.contains(name)
            || *name == header::IF_NONE_MATCH && matches!(route.verb, Verb::Update | Verb::Delete)
            || *name == header::CONTENT_ENCODING && !plain(b"identity")
            || *name == header::TRANSFER_ENCODING && !plain(b"chunked")
        {
            return refuse(name);
        }
    }
    Ok(())
}

/// The whole body, within the limit and in time.
async fn read_body<B>(mut body: B, limit: usize) -> Result<Bytes, ApiError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    let too_large = || ApiError {
        // What is left of the body is not read.
        close: true,
        ..ApiError::new(
            413,
            format!("the request body is larger than {limit} bytes: send less at once"),
        )
    };
    if usize::try_from(body.size_hint().lower()).map_or(true, |n| n > limit) {
        return Err(too_large());
    }
    let whole = async {
        let mut first = Bytes::new();
        // Only for a body that comes in several pieces.
        let mut joined: Option<Zeroizing<Vec<u8>>> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                ApiError::bad_request("the request body broke off").because(error.to_string())
            })?;
            let Ok(piece) = frame.into_data() else {
                continue;
            };
            if first.is_empty() && joined.is_none() {
                if piece.len() > limit {
                    return Err(too_large());
                }
                first = piece;
                continue;
            }
            let joined = joined.get_or_insert_with(|| {
                let expected = usize::try_from(body.size_hint().lower()).unwrap_or(limit);
                let room = first.len() + piece.len() + expected.min(limit);
                let mut all = Zeroizing::new(Vec::with_capacity(room));
                all.extend_from_slice(&first);
                wipe(std::mem::take(&mut first));
                all
            });
            if joined.len() + piece.len() > limit {
                return Err(too_large());
            }
            joined.extend_from_slice(&piece);
            wipe(piece);
        }
        Ok(joined.map_or(first, Bytes::from_owner))
    };
    let mut whole = pin!(whole);
    // Mostly the body came with the head, and needs no timer.
    if let Some(result) = whole.as_mut().now_or_never() {
        return result;
    }
    match tokio::time::timeout(BODY_DEADLINE, whole).await {
        Ok(result) => result,
        Err(_) => Err(ApiError {
            close: true,
            ..ApiError::new(408, "the request body did not come in time")
        }),
    }
}

/// Overwrites a buffer that nobody else holds. hyper's read buffer may be shared with the next
/// request's head; then it is left to be overwritten by what is read next.
fn wipe(body: Bytes) {
    if let Ok(mut own) = body.try_into_mut() {
        own.as_mut().zeroize();
    }
}

/// What becomes of a request, told to the audit log and the metrics exactly once: also when the
/// client goes away and the request is dropped half-way.
struct Trail<'a> {
    app: &'a App,
    peer: &'a Peer,
    id: &'a RequestId,
    route: &'static Route,
    key: &'a str,
    token: Option<String>,
    begun: Instant,
    /// As its route says, or because of what was refused.
    audited: bool,
    /// The line that says that the change is about to begin, 0 if there is none.
    intent: u64,
    done: bool,
}

impl<'a> Trail<'a> {
    fn begin(
        app: &'a App,
        peer: &'a Peer,
        id: &'a RequestId,
        route: &'static Route,
        key: &'a str,
        begun: Instant,
    ) -> Self {
        Self {
            app,
            peer,
            id,
            route,
            key,
            token: None,
            begun,
            audited: route.audited,
            intent: 0,
            done: false,
        }
    }

    /// The change is about to begin: that is durable when this returns. `Err`: it must not.
    async fn intend(&mut self) -> Result<(), ApiError> {
        if !self.app.audit.may_begin(self.peer.identity.as_str()) {
            let error = ApiError::unavailable(
                "too many of this client's changes have failed in the last seconds: see why, and try again later",
            );
            self.refuse(&error).await?;
            return Err(error);
        }
        let begun = self.app.audit.begin(&self.entry("", 0, "", None)).await;
        match begun {
            Ok(intent) => {
                self.intent = intent;
                Ok(())
            }
            Err(error) => {
                seldom!(1, error, %error, "a change is refused: it can't be audited");
                self.app.gate.metrics.audit_failures.inc();
                self.count("error", 503, None);
                // For want of room: that it was asked for is counted all the same. What has an
                // intent has its outcome already.
                if matches!(error, AuditError::Room { .. }) {
                    let reason = error.to_string();
                    let entry = self.entry("error", 503, &reason, None);
                    let _ = self.app.audit.record_or_count_now(&entry);
                }
                Err(unaudited(&error))
            }
        }
    }

    /// Another trail goes on from here.
    fn hand_over(mut self) {
        self.done = true;
    }

    /// A decision that was made. `Err`: it could not be recorded, so its answer must not leave.
    async fn record(&mut self, answer: &Answer) -> Result<(), ApiError> {
        let failed = answer.batch > 0 && answer.batch == answer.batch_failed;
        let outcome = if failed { "error" } else { "ok" };
        let reason = if failed {
            "every item of the batch failed"
        } else {
            ""
        };
        self.write(outcome, answer.status, reason, Some(answer))
            .await
    }

    /// A request that was denied or failed.
    async fn refuse(&mut self, error: &ApiError) -> Result<(), ApiError> {
        let outcome = if error.status == 403 {
            let (identity, operation) = (self.peer.identity.as_str(), self.route.label);
            let recent = &self.app.gate.recent;
            recent.deny(identity, operation, self.key, error.reason());
            "denied"
        } else {
            "error"
        };
        self.write(outcome, error.status, error.reason(), None)
            .await
    }

    async fn refuse_on_error<T>(&mut self, result: Result<T, ApiError>) -> Result<T, ApiError> {
        match result {
            Ok(value) => Ok(value),
            // It can't be recorded either: the client gets the one error or the other.
            Err(error) => Err(self.refuse(&error).await.err().unwrap_or(error)),
        }
    }

    async fn write(
        &mut self,
        outcome: &'static str,
        status: u16,
        reason: &str,
        answer: Option<&Answer>,
    ) -> Result<(), ApiError> {
        self.count(outcome, status, answer);
        if !self.audited {
            return Ok(());
        }
        let entry = self.entry(outcome, status, reason, answer);
        let audit = &self.app.audit;
        // What needs no right could fill the log by whoever has a certificate, and what is answered
        // without room for a line a disc that is short.
        let kept =
            self.route.operation.is_some() && (self.route.needs_audit() || !audit.is_short());
        let by_right = outcome == "ok" && kept;
        let recorded = if by_right || self.intent > 0 {
            audit.record_with_others(&entry).await
        } else {
            audit.record_or_count(&entry).await
        };
        match recorded {
            Err(error) if self.route.needs_audit() => Err(self.withhold(&error)),
            _ => Ok(()),
        }
    }

    fn count(&mut self, outcome: &'static str, status: u16, answer: Option<&Answer>) {
        self.done = true;
        let batch = answer.map_or(0, |a| a.batch);
        let took = self.begun.elapsed();
        let metrics = &self.app.gate.metrics;
        metrics.request(self.route.label, outcome, status, batch, took);
        self.app.gate.recent.count(outcome);
    }

    fn entry<'e>(
        &'e self,
        outcome: &'static str,
        status: u16,
        reason: &'e str,
        answer: Option<&Answer>,
    ) -> Entry<'e> {
        Entry {
            request_id: self.id.as_str(),
            identity: self.peer.identity.as_str(),
            token_id: self.token.as_deref().unwrap_or_default(),
            remote: &self.peer.remote,
            certificate: &self.peer.certificate,
            issuer: self.peer.issuer(),
            operation: self.route.label,
            key: self.key,
            key_version: answer.map_or(0, |a| a.key_version),
            batch: answer.map_or(0, |a| a.batch),
            batch_failed: answer.map_or(0, |a| a.batch_failed),
            outcome,
            status,
            reason,
            intent: self.intent,
        }
    }

    fn withhold(&self, error: &AuditError) -> ApiError {
        seldom!(1, error, %error, "an answer is withheld: it can't be audited");
        self.app.gate.metrics.audit_failures.inc();
        ApiError::unavailable(
            "the audit log can't be written, so the answer is withheld; the operation may have been carried out",
        )
    }
}

/// Makes the key that an `encrypt` is for: a change of its own, with its own lines, before the
/// encryption's. In a task of its own: once begun it is carried out and recorded though the client
/// goes away, and as long has a place of its own.
async fn create_on_encrypt(call: &Call<'_>, options: CreateOptions) -> Result<(), ApiError> {
    let under_way = Change::begin(call.client)?;
    let place = Place::another(call.client);
    let client = Arc::clone(call.client);
    let (id, name) = (*call.id, call.name.to_owned());
    let token = call.token.map(|t| t.info.id.clone());
    let change = async move {
        let (_place, _under_way) = (place, under_way);
        let (app, peer) = (&client.app, &client.peer);
        let mut trail = Trail::begin(app, peer, &id, &routes::UPSERT, &name, Instant::now());
        trail.token = token;
        trail.intend().await?;
        let made = AssertUnwindSafe(app.keyring.create(&name, options))
            .catch_unwind()
            .await
            .unwrap_or_else(|_| Err(KeyringError::System("a defect".to_owned())));
        match made.map_err(|e| ApiError::from_keyring(e, Doing::Create, &name)) {
            Ok(_) => trail.record(&Answer::no_content()).await,
            Err(error) => {
                trail.refuse(&error).await?;
                Err(error)
            }
        }
    };
    tokio::spawn(change)
        .await
        .unwrap_or_else(|_| Err(ApiError::unavailable("the key could not be made")))
}

impl Drop for Trail<'_> {
    fn drop(&mut self) {
        if !self.done {
            let (outcome, status) = ("error", 499);
            self.count(outcome, status, None);
            if !self.audited {
                return;
            }
            let reason = "the client went away before the answer";
            let entry = self.entry(outcome, status, reason, None);
            if let Err(error) = self.app.audit.record_or_count_now(&entry) {
                // Nobody is left to be answered; the failure to record it is counted.
                self.withhold(&error);
            }
        }
    }
}

fn panicked(app: &App) -> ApiError {
    app.gate.metrics.panics.inc();
    seldom!(
        1,
        error,
        "a request's handler panicked: this is a defect, please report it"
    );
    ApiError::new(500, "internal error: see the server's log")
}
