//! `/.well-known/jwks.json`: the public keys that tokens are checked with (RFC 7517), with headers
//! that say how long they may be kept.

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use strongroom_core::hex;
use strongroom_core::keyring::Jwk;

use super::pages::Pages;
use super::pipeline::answer::{Answer, Cache};
use super::pipeline::dialect::Claim;
use super::pipeline::error::ApiError;
use super::pipeline::route::Route;
use super::vault::call::Call;
use super::vault::request::Nothing;
use super::vault::routes::route;

/// One page.
pub(super) static PAGES: Pages = Pages {
    name: "the published keys",
    claims: &[Claim::Path("/.well-known/jwks.json")],
    table: ROUTES,
};

#[rustfmt::skip]
static ROUTES: &[Route] = &[
    route!(Read   ".well-known/jwks.json",        "jwks",              None,                       Small, false, false, Nothing, jwks),
];

/// `GET /.well-known/jwks.json`.
pub(super) async fn jwks(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    #[derive(Serialize)]
    struct Set {
        keys: Vec<Jwk>,
    }
    let settings = &call.app.config.keyring.jwt;
    if settings.keys.is_empty() {
        return Err(ApiError::new(
            404,
            "no keys are published: name them in [jwt] keys of the configuration",
        ));
    }
    let keys = call.app.keyring.jwks(&settings.keys);
    let cache_for = if keys.is_empty() {
        // Nobody may keep a set without the first key, which signs as soon as it is there.
        0
    } else {
        settings.limits.cache.as_secs()
    };
    // A list of structs whose members are strings: nothing can fail.
    let body = serde_json::to_vec(&Set { keys }).unwrap_or_default();
    let digest = Sha256::digest(&body);
    let tag = digest.get(..16).unwrap_or_default();
    let tag = format!("\"{}\"", hex::encode(tag));
    let unchanged = call
        .request
        .if_none_match
        .is_some_and(|given| matches(given, &tag));
    let mut answer = if unchanged {
        Answer::raw(304, "", bytes::Bytes::new())
    } else {
        Answer::raw(200, "application/jwk-set+json", body.into())
    };
    answer.cache = Some(Cache {
        seconds: cache_for,
        tag,
    });
    Ok(answer)
}

/// RFC 9110, 13.1.2: a list of tags, weakly compared, or `*`.
fn matches(given: &str, tag: &str) -> bool {
    given.trim() == "*"
        || given
            .split(',')
            .any(|one| one.trim().trim_start_matches("W/") == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_compared_weakly_and_in_lists() {
        for good in ["\"a\"", "W/\"a\"", "\"b\", \"a\"", "*", " \"a\" "] {
            assert!(matches(good, "\"a\""), "{good}");
        }
        for bad in ["", "a", "\"b\"", "W/\"b\"", "\"ab\""] {
            assert!(!matches(bad, "\"a\""), "{bad}");
        }
    }
}
