//! What Vault's clients ask about their token, and the login that some insist on. A token here
//! never expires by itself: it is worthless without the certificate that it is bound to.
//!
//! A login's token is the hash of the certificate that logged in. It is no secret and gives no
//! right: with that certificate it says nothing new, with any other it is refused. So there is
//! nothing to keep, to guess or to lose, and it is good after a restart.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use strongroom_core::hex;
use strongroom_core::tls::Peer;
use strongroom_core::tokens::TokenInfo;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::call::Call;
use super::error::ApiError;
use super::request::{Described as _, Given, request};
use crate::api::pipeline::answer::Answer;
use crate::api::pipeline::credentials::Presented;
use crate::api::vault::envelope::Envelope;

/// What a login's token begins with.
const LOGIN_TOKEN_PREFIX: &str = "srl.";
/// The longest lease, seconds: Vault's, 32 days.
const MAX_LEASE_SECONDS: i64 = 32 * 24 * 60 * 60;

/// How many logins are remembered as ended.
const MAX_ENDED_LOGINS: usize = 4096;

/// What tells one login of a certificate from another.
type Login = [u8; 16];

/// Logins that their clients have ended. A login gives nothing that the certificate does not give,
/// so what is forgotten, at a restart or because of many others, is forgotten at nobody's cost.
#[derive(Default)]
pub struct Logins(Mutex<VecDeque<Login>>);

impl Logins {
    fn add(&self, login: Login) {
        let mut ended = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.len() == MAX_ENDED_LOGINS {
            ended.pop_front();
        }
        ended.push_back(login);
    }

    fn has(&self, login: Login) -> bool {
        let ended = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ended.contains(&login)
    }
}

/// A login's token, if this is one of the certificate that asks, and has not been ended.
pub(in crate::api) fn presented_login(
    text: &str,
    peer: &Peer,
    ended: &Logins,
) -> Option<TokenInfo> {
    let login = login_of(text)?;
    // A hash of what the client shows anyway: nothing to learn from the time that this takes.
    (text == login_token(peer, login) && !ended.has(login)).then(|| login_info(peer, login))
}

fn login_of(text: &str) -> Option<Login> {
    let text = text.strip_prefix(LOGIN_TOKEN_PREFIX)?;
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    bytes.first_chunk().copied()
}

fn login_token(peer: &Peer, login: Login) -> String {
    let mut bytes = login.to_vec();
    bytes.extend(digest(peer, b"token", login));
    format!("{LOGIN_TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
}

fn login_info(peer: &Peer, login: Login) -> TokenInfo {
    let accessor = digest(peer, b"accessor", login);
    let accessor = hex::encode(accessor.get(..8).unwrap_or_default());
    TokenInfo {
        id: format!("login-{accessor}"),
        created: validity(peer).0,
    }
}

fn digest(peer: &Peer, what: &[u8], login: Login) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"strongroom login\0");
    hash.update(what);
    hash.update(b"\0");
    hash.update(login);
    // A peer has a certificate, or it would be none.
    hash.update(peer.chain.first().map_or(&[][..], Vec::as_slice));
    hash.finalize().into()
}

/// The certificate's beginning and end, seconds since 1970.
fn validity(peer: &Peer) -> (i64, i64) {
    let der = peer.chain.first().map_or(&[][..], Vec::as_slice);
    X509Certificate::from_der(der).map_or((0, 0), |(_, certificate)| {
        let validity = certificate.validity();
        (
            validity.not_before.timestamp(),
            validity.not_after.timestamp(),
        )
    })
}

/// What a login's token is said to have left: clients come back in time to be told again, until the
/// certificate ends.
fn lease(peer: &Peer) -> i64 {
    let left = validity(peer).1 - jiff::Timestamp::now().as_second();
    left.clamp(0, MAX_LEASE_SECONDS)
}

request! {
    /// `POST auth/:mount/login`.
    LoginAs {
        /// Ignored with a warning: there are no roles.
        name: Given = Option::<Cow<'_, str>>::schema(),
    }
    ; strict
}

request! {
    /// `POST auth/token/renew-self`.
    Renew {
        /// Changes nothing: for how long is the certificate's to say.
        increment: Option<Duration>,
    }
}

request! {
    /// `GET`, `POST auth/token/lookup-self`.
    Lookup<'p> {
        /// No other than the one that was sent.
        token: Option<Cow<'p, str>>,
    }
}

/// `POST auth/:mount/login`: a token for clients that must have one. It may what the certificate
/// may.
pub(in crate::api) async fn login(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let warnings: &[&str] = if LoginAs::read(&call.params)?.name.0 {
        &["name was ignored: there are no roles, the policy goes by the certificate's identity"]
    } else {
        &[]
    };
    let login = uuid::Uuid::new_v4().into_bytes();
    let token = Presented {
        info: login_info(call.peer, login),
        text: Zeroizing::new(login_token(call.peer, login)),
        login: true,
    };
    Ok(auth(call, &token, warnings))
}

/// `POST auth/token/renew-self`: nothing to renew, so nothing changes; clients are told not to come
/// back for it, but for a login's token.
pub(in crate::api) async fn renew_self(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let token = token(call)?;
    // For how long is the certificate's to say; but it must be a duration.
    let _ = Renew::read(&call.params)?.increment;
    Ok(auth(call, token, &[]))
}

/// `POST auth/token/revoke-self`: ends a login.
pub(in crate::api) async fn revoke_self(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let token = token(call)?;
    match login_of(&token.text).filter(|_| token.login) {
        Some(login) => {
            call.app.logins.add(login);
            Ok(Answer::no_content())
        }
        None => Err(ApiError::bad_request(
            "a token of the tokens file is ended by taking it out of that file",
        )),
    }
}

/// The answer that a token is in.
fn auth(call: &mut Call<'_>, token: &Presented, more: &[&str]) -> Answer {
    #[derive(Serialize)]
    struct Auth<'a> {
        client_token: &'a str,
        accessor: &'a str,
        policies: [&'static str; 1],
        token_policies: [&'static str; 1],
        metadata: BTreeMap<&'static str, &'a str>,
        lease_duration: i64,
        renewable: bool,
        entity_id: &'static str,
        token_type: &'static str,
        orphan: bool,
        mfa_requirement: Option<()>,
        num_uses: u32,
    }
    let auth = Auth {
        client_token: &token.text,
        accessor: &token.info.id,
        policies: ["default"],
        token_policies: ["default"],
        metadata: BTreeMap::from([("identity", call.peer.identity.as_str())]),
        lease_duration: if token.login { lease(call.peer) } else { 0 },
        renewable: token.login,
        entity_id: "",
        token_type: "service",
        orphan: true,
        mfa_requirement: None,
        num_uses: 0,
    };
    let mut envelope = Envelope::open(call.id, 1024);
    envelope.raw("null");
    let mut warnings = call.params.warnings();
    warnings.extend(more.iter().map(|&warning| warning.to_owned()));
    Answer::ok(envelope.close(&warnings, Some(&auth)))
}

/// `GET`, `POST auth/token/lookup-self`.
pub(in crate::api) async fn lookup_self(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    #[derive(Serialize)]
    struct Found<'a> {
        accessor: &'a str,
        creation_time: i64,
        creation_ttl: i64,
        display_name: &'a str,
        entity_id: &'static str,
        expire_time: Option<String>,
        explicit_max_ttl: u32,
        id: &'a str,
        meta: BTreeMap<&'static str, &'a str>,
        num_uses: u32,
        orphan: bool,
        path: &'static str,
        policies: [&'static str; 1],
        renewable: bool,
        ttl: i64,
        r#type: &'static str,
    }
    let token = token(call)?;
    let meant = Lookup::read(&call.params)?.token;
    if meant.is_some_and(|meant| !meant.is_empty() && *meant != *token.text) {
        return Err(ApiError::bad_request(
            "only the token that the request is sent with is looked up: leave token out",
        ));
    }
    let ttl = if token.login { lease(call.peer) } else { 0 };
    let ends = jiff::Timestamp::from_second(validity(call.peer).1);
    let mut envelope = Envelope::open(call.id, 1024);
    envelope.json(&Found {
        accessor: &token.info.id,
        creation_time: token.info.created,
        creation_ttl: ttl,
        display_name: &token.info.id,
        entity_id: "",
        expire_time: ends.ok().filter(|_| token.login).map(|end| end.to_string()),
        explicit_max_ttl: 0,
        id: &token.text,
        meta: BTreeMap::from([("identity", call.peer.identity.as_str())]),
        num_uses: 0,
        orphan: true,
        path: if token.login {
            "auth/cert/login"
        } else {
            "auth/token/create"
        },
        policies: ["default"],
        renewable: token.login,
        ttl,
        r#type: "service",
    });
    Ok(call.close(envelope, &[]))
}

/// The token that was sent. Without one the answer is Vault's 403, which the seal's client takes
/// for "nothing to renew".
fn token<'a>(call: &Call<'a>) -> Result<&'a Presented, ApiError> {
    call.token
        .ok_or_else(|| ApiError::bad_token("no token was sent: the client certificate needs none"))
}
