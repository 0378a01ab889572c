//! The way of every request, whatever protocol it speaks.
//!
//! Each request walks through [`handle`] once, and through this directory from top to bottom:
//!
//! 1. whose the path is ([`dialect`]), and a place among those in flight ([`admission`]);
//! 2. the row that method and path lead to ([`route`]);
//! 3. certificate, browser, token, policy, headers, and whether the audit log can be written
//!    ([`admit`]);
//! 4. the body, within its limit ([`body`]);
//! 5. of a change, a task of its own ([`change`]), and its intent in the audit log ([`audit`]);
//! 6. the row's handler, which is the dialect's;
//! 7. the outcome, in the audit log before the answer leaves ([`audit`]);
//! 8. of a body that a refusal left unread, what is small and comes at once ([`body`]).
//!
//! Nothing here knows a protocol: a dialect's words and forms come through [`dialect::Dialect`].

pub(crate) mod admission;
mod admit;
pub(crate) mod answer;
mod audit;
mod body;
pub(crate) mod change;
pub(crate) mod credentials;
pub(crate) mod dialect;
pub(crate) mod error;
pub(crate) mod origin;
pub(crate) mod route;

use std::borrow::Cow;
use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::Full;
use hyper::body::Body;
use hyper::header;
use hyper::http::request::Parts;
use hyper::{Request, Response};
use strongroom_core::keyring::KeyName;
use strongroom_core::seldom::seldom;

use super::{App, Client};
use admission::{Change, InFlightPermit};
use answer::{Answer, RequestId};
use audit::AuditGuard;
use credentials::Presented;
use dialect::Dialect;
use error::{ApiError, Refusal};
use origin::FetchMetadata;
use route::{Ask, Captures, NO_SUCH_ROUTE, Source};

/// Answers one request of one authenticated client. Never fails, never panics: what goes wrong is
/// an answer.
pub async fn handle<B>(client: Arc<Client>, request: Request<B>) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Display,
{
    let begun = Instant::now();
    let (head, mut body) = request.into_parts();
    let dialect = client.endpoint.dialect_of(head.uri.path());
    let is_head = head.method == hyper::Method::HEAD;
    // Such a client sends its body only when it is read.
    let waits = head.headers.contains_key(header::EXPECT);
    let response = match InFlightPermit::take(&client) {
        None => {
            client.app.admission.metrics.overloaded.inc();
            dialect.respond(dialect.refuse(Refusal::Overloaded))
        }
        Some(permit) => {
            // A defect must cost one answer, not the server.
            let work = pin!(answer(&client, dialect, head, &mut body, permit, begun));
            match AssertUnwindSafe(work).catch_unwind().await {
                Ok(Ok(answer)) => answer.into_response(),
                Ok(Err(error)) => dialect.respond(error),
                Err(_) => dialect.respond(panicked(&client.app, dialect)),
            }
        }
    };
    // Its place among those in flight is free by now.
    if !body.is_end_stream() && !waits {
        body::discard(body).await;
    }
    // hyper takes such a body off in HTTP/1 only, and in HTTP/2 it would be against the protocol.
    match response.status().as_u16() {
        204 | 205 | 304 => response.map(|_| Full::default()),
        _ if is_head => without_its_body(response),
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
pub fn without_a_host<B>(client: &Client, request: &Request<B>) -> Response<Full<Bytes>> {
    let dialect = client.endpoint.dialect_of(request.uri().path());
    dialect.respond(dialect.refuse(Refusal::Host))
}

async fn answer<B>(
    client: &Arc<Client>,
    dialect: &'static dyn Dialect,
    head: Parts,
    body: &mut B,
    permit: InFlightPermit,
    begun: Instant,
) -> Result<Answer, ApiError>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Display,
{
    let id = RequestId::random();
    let refuse = |refusal| dialect.refuse(refusal);
    // Owned, as all that is kept of the head: see below.
    let path = dialect.decode(head.uri.path()).map(Cow::into_owned);
    let found = match dialect.find(&client.app, &head, path.as_deref()) {
        Ok(found) => found,
        Err(error) => return Err(leads_nowhere(client, dialect, id, &head, begun, error).await),
    };
    let (route, captures) = (found.route, found.captures);
    let key = captures.name.map_or("", KeyName::as_str);
    let mut guard = AuditGuard::begin(client, dialect, id, route, key, begun);
    let admitted = admit::admit(
        dialect,
        &head,
        captures.name.map(KeyName::as_str),
        &mut guard,
    );
    let token = guard.refuse_on_error(admitted).await?;
    let limit = route.limit.bytes(client.endpoint.limits.body);
    let read = body::read_body(body, limit).await.map_err(refuse);
    let body = guard.refuse_on_error(read).await?;
    let source = Source::of(&head);
    let known = head.headers.get(header::IF_NONE_MATCH);
    let known = known.and_then(|tags| tags.to_str().ok().map(str::to_owned));
    // Head and body are pieces of hyper's buffer. With both gone when the answer waits for the
    // audit log, the buffer is used again for what is read next, and what was in the body
    // overwritten; or else hyper gets a new one.
    drop(head);
    if !route.mutates {
        let admitted = Admitted {
            client,
            dialect,
            id,
            captures,
            source: &source,
            token: token.as_ref(),
            if_none_match: known.as_deref(),
        };
        return carry_out(guard, admitted, body).await;
    }
    let change = Change::begin(client).map_err(refuse);
    let change = guard.refuse_on_error(change).await?;
    guard.hand_over();
    let task = change::OwnTask {
        dialect,
        id,
        route,
        begun,
        captures: captures.to_owned(),
        source,
        token,
        body,
        permit,
        change,
    };
    task.run(client).await
}

/// What is answered where no route is. Who is out, or is sent by another site, learns nothing of
/// which paths there are.
async fn leads_nowhere(
    client: &Client,
    dialect: &'static dyn Dialect,
    id: RequestId,
    head: &Parts,
    begun: Instant,
    error: ApiError,
) -> ApiError {
    let refuse = |refusal| dialect.refuse(refusal);
    let mut guard = AuditGuard::begin(client, dialect, id, &NO_SUCH_ROUTE, "", begun);
    let own = || FetchMetadata::of(&head.headers).check(head, &NO_SUCH_ROUTE);
    let admitted = admit::still_good(&client.app, &client.peer).and_then(|()| own());
    let error = match admitted.map_err(refuse) {
        Err(error) => error,
        Ok(()) if error.reason.is_some() => error,
        Ok(()) => match error.status {
            404 => error.because("there is no such path"),
            405 => error.because("the path does not take this method"),
            _ => error,
        },
    };
    guard.refuse(&error).await.err().unwrap_or(error)
}

/// What is known of an admitted request beside its body.
struct Admitted<'a> {
    client: &'a Arc<Client>,
    dialect: &'static dyn Dialect,
    id: RequestId,
    captures: Captures<'a>,
    source: &'a Source,
    token: Option<&'a Presented>,
    if_none_match: Option<&'a str>,
}

/// Runs the handler and records what came of it.
async fn carry_out(
    mut guard: AuditGuard<'_>,
    admitted: Admitted<'_>,
    body: Bytes,
) -> Result<Answer, ApiError> {
    let handler = guard.route.handler;
    let ask = Ask {
        guard: &mut guard,
        admitted: &admitted,
        body: &body,
    };
    let result = AssertUnwindSafe(handler(ask))
        .catch_unwind()
        .await
        .unwrap_or_else(|_| Err(panicked(&admitted.client.app, admitted.dialect)));
    body::wipe(body);
    match &result {
        Ok(answer) => guard.record(answer).await?,
        // It was recorded where it was found that the change must not begin.
        Err(_) if guard.is_done() => {}
        Err(error) => guard.refuse(error).await?,
    }
    result
}

fn panicked(app: &App, dialect: &dyn Dialect) -> ApiError {
    app.admission.metrics.panics.inc();
    seldom!(
        1,
        error,
        "a request's handler panicked: this is a defect, please report it"
    );
    dialect.refuse(Refusal::Defect)
}
