//! What Vault's clients ask about their token. A token here never expires by itself: it is worthless without the
//! certificate that it is bound to.

use std::collections::BTreeMap;

use serde::Serialize;

use super::answer::{Answer, Envelope};
use super::error::ApiError;
use super::{Call, Presented};

/// `POST auth/token/renew-self`: nothing to renew, so nothing changes; clients are told not to come back for it.
pub(super) async fn renew_self(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    #[derive(Serialize)]
    struct Auth<'a> {
        client_token: &'a str,
        accessor: &'a str,
        policies: [&'static str; 1],
        token_policies: [&'static str; 1],
        metadata: BTreeMap<&'static str, &'a str>,
        lease_duration: u32,
        renewable: bool,
        entity_id: &'static str,
        token_type: &'static str,
        orphan: bool,
        mfa_requirement: Option<()>,
        num_uses: u32,
    }
    let token = token(call)?;
    let auth = Auth {
        client_token: &token.text,
        accessor: &token.info.id,
        policies: ["default"],
        token_policies: ["default"],
        metadata: BTreeMap::from([("identity", call.peer.identity.as_str())]),
        lease_duration: 0,
        renewable: false,
        entity_id: "",
        token_type: "service",
        orphan: true,
        mfa_requirement: None,
        num_uses: 0,
    };
    let mut envelope = Envelope::open(call.id, 1024);
    envelope.raw("null");
    let warnings = call.params.warnings();
    Ok(Answer::ok(envelope.close(&warnings, Some(&auth))))
}

/// `GET auth/token/lookup-self`.
pub(super) async fn lookup_self(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    #[derive(Serialize)]
    struct Lookup<'a> {
        accessor: &'a str,
        creation_time: i64,
        creation_ttl: u32,
        display_name: &'a str,
        entity_id: &'static str,
        expire_time: Option<()>,
        explicit_max_ttl: u32,
        id: &'a str,
        meta: BTreeMap<&'static str, &'a str>,
        num_uses: u32,
        orphan: bool,
        path: &'static str,
        policies: [&'static str; 1],
        renewable: bool,
        ttl: u32,
        r#type: &'static str,
    }
    let token = token(call)?;
    let mut envelope = Envelope::open(call.id, 1024);
    envelope.json(&Lookup {
        accessor: &token.info.id,
        creation_time: token.info.created,
        creation_ttl: 0,
        display_name: &token.info.id,
        entity_id: "",
        expire_time: None,
        explicit_max_ttl: 0,
        id: &token.text,
        meta: BTreeMap::from([("identity", call.peer.identity.as_str())]),
        num_uses: 0,
        orphan: true,
        path: "auth/token/create",
        policies: ["default"],
        renewable: false,
        ttl: 0,
        r#type: "service",
    });
    Ok(Answer::ok(envelope.close(&[], None::<&()>)))
}

/// The token that was sent. Without one the answer is Vault's 403, which the seal's client takes for "nothing to renew".
fn token<'a>(call: &Call<'a>) -> Result<&'a Presented, ApiError> {
    call.token
        .ok_or_else(|| ApiError::bad_token("no token was sent: the client certificate needs none"))
}
