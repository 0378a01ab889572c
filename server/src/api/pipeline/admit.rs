//! Who may ask: the certificate, where a browser was made to ask, the token, the policy, headers
//! that change a request's meaning, and whether the audit log can be written.

use std::borrow::Cow;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use strongroom_core::audit::AuditError;
use strongroom_core::policy::{Decision, Denial, Operation};
use strongroom_core::seldom::seldom;
use strongroom_core::tls::Peer;

use super::audit::{AuditGuard, unaudited};
use super::credentials::{Credentials, Presented};
use super::dialect::{Dialect, MAX_HEADERS, OwnHeaders};
use super::error::{ApiError, Refusal};
use super::origin::{self, FetchMetadata};
use super::route::{Route, Verb};
use crate::api::App;

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

/// The token, if one was sent.
pub(super) fn admit(
    dialect: &dyn Dialect,
    head: &Parts,
    key: Option<&str>,
    guard: &mut AuditGuard<'_>,
) -> Result<Option<Presented>, ApiError> {
    let (app, peer, route) = (guard.app, guard.peer, guard.route);
    let refuse = |refusal| dialect.refuse(refusal);
    still_good(app, peer).map_err(refuse)?;
    let (said, own) = once(&head.headers, dialect.headers()).map_err(refuse)?;
    said.check(head, route).map_err(refuse)?;
    let Credentials { token, refused } = dialect.credentials(app, peer, &own)?;
    guard.token = token.as_ref().map(|token| token.info.id.clone());
    if let Some(operation) = route.operation {
        permit(app, peer, operation, key, token.as_ref()).map_err(refuse)?;
    }
    if let Some(error) = refused {
        return Err(error);
    }
    refuse_other_requests(&head.headers, route).map_err(refuse)?;
    recordable(app, peer, route).map_err(refuse)?;
    Ok(token)
}

/// What the policy says, and where it asks for a token, whether one was sent.
pub(super) fn permit(
    app: &App,
    peer: &Peer,
    operation: Operation,
    key: Option<&str>,
    token: Option<&Presented>,
) -> Result<(), Refusal> {
    match app.policy.load().decide(&peer.identity, operation, key) {
        Decision::Allowed => Ok(()),
        Decision::AllowedWithToken if token.is_some_and(Presented::counts) => Ok(()),
        Decision::AllowedWithToken => Err(Refusal::TokenMissing),
        Decision::Denied => Err(denied(app, peer, operation, key)),
    }
}

/// What the client is told of a denial: who it is and what it asked, which it knows. That a rule of
/// its own denies it, and which, only where another allows it: to whoever has no right here a name
/// that is denied is a name like any other.
fn denied(app: &App, peer: &Peer, operation: Operation, key: Option<&str>) -> Refusal {
    let denial = app.policy.load().why_denied(&peer.identity, operation, key);
    let asked = format!(
        "{} asked for {}{}",
        peer.identity,
        operation.name(),
        key.filter(|_| !operation.is_global())
            .map(|key| format!(" with the key {key}"))
            .unwrap_or_default()
    );
    let no_rule = "no policy rule allows it";
    let (told, reason) = match denial {
        Denial::NoRule => (no_rule.to_owned(), Cow::Borrowed(no_rule)),
        Denial::Rule { number, allowed } => {
            let reason = format!("policy rule {number} denies it");
            let told = if allowed { &reason } else { no_rule };
            (told.to_owned(), reason.into())
        }
    };
    Refusal::Policy {
        told: format!("{asked}: {told}"),
        reason,
    }
}

/// Whether the client's certificate is as good as when it connected.
pub(super) fn still_good(app: &App, peer: &Peer) -> Result<(), Refusal> {
    app.tls
        .still_valid(peer)
        .map_err(|why| Refusal::Certificate(why.clone()))
}

/// What a browser says, and the dialect's own headers. In one pass: a request has few headers, and
/// mostly none of these. Of two values one would be ignored.
fn once<'h>(
    headers: &'h HeaderMap,
    own: &'static [&'static HeaderName],
) -> Result<(FetchMetadata<'h>, OwnHeaders<'h>), Refusal> {
    let names = [
        &origin::SEC_FETCH_SITE,
        &origin::SEC_FETCH_MODE,
        &origin::SEC_FETCH_DEST,
        &header::ORIGIN,
        &header::REFERER,
        &header::CONTENT_TYPE,
    ];
    let mut values: [Option<&HeaderValue>; 6] = [None; 6];
    let mut owns: OwnHeaders<'h> = [None; MAX_HEADERS];
    for (name, value) in headers {
        let all = names.iter().zip(&mut values);
        let all = all.chain(own.iter().zip(&mut owns));
        for (known, only) in all.filter(|(known, _)| **known == name) {
            if only.replace(value).is_some() {
                return Err(Refusal::HeaderTwice((*known).clone()));
            }
        }
    }
    let [site, mode, dest, origin, referer, _] = values;
    let said = FetchMetadata {
        site,
        mode,
        dest,
        origin,
        referer,
    };
    Ok((said, owns))
}

/// Refuses what would make this request another one: a method for the one that was sent, a
/// condition, a part, a body that is coded.
fn refuse_other_requests(headers: &HeaderMap, route: &Route) -> Result<(), Refusal> {
    for (name, value) in headers {
        let plain = |none: &[u8]| value.is_empty() || value.as_bytes().eq_ignore_ascii_case(none);
        if NOT_UNDERSTOOD.contains(name)
            || *name == header::IF_NONE_MATCH && matches!(route.verb, Verb::Update | Verb::Delete)
            || *name == header::CONTENT_ENCODING && !plain(b"identity")
            || *name == header::TRANSFER_ENCODING && !plain(b"chunked")
        {
            return Err(Refusal::Header(name.clone()));
        }
    }
    Ok(())
}

/// Whether what becomes of the request can be recorded.
fn recordable(app: &App, peer: &Peer, route: &Route) -> Result<(), Refusal> {
    let writable: Result<(), AuditError> = if !route.needs_audit() {
        Ok(())
    } else if route.operation.is_none() {
        // Of these there are only counts when the disk is nearly full: they take no share.
        app.audit.check()
    } else {
        app.audit.admit(peer.identity.as_str())
    };
    writable.map_err(|error| {
        seldom!(1, error, %error, "refusing requests: they can't be audited");
        app.admission.metrics.audit_failures.inc();
        unaudited(&error)
    })
}
