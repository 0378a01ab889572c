//! `jwt`: signs a token (RFC 7519) for clients that must not build tokens themselves. They choose
//! what it says, but not when it is from, for how long it is valid, or who issues it.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::api::pipeline::answer::Answer;
use crate::api::vault::call::Call;
use crate::api::vault::error::{ApiError, Doing};
use crate::api::vault::names::word;
use crate::api::vault::request::{Unread, one_of, request};

request! {
    /// `jwt/:name`.
    Jwt<'p> {
        /// How long it is valid; missing: as long as is allowed (JWT_ACCESS_TOKEN_TTL).
        ttl: Option<Duration>,
        /// The header's `typ`. Missing: JWT.
        typ: Option<Cow<'p, str>> = one_of(&["JWT", "at+jwt", ""]),
    }
    besides {
        /// What the token says (RFC 7519). `iat` and `nbf` are the appliance's and refused; `exp`
        /// may be given instead of `ttl`; `iss` is the configured issuer's, where there is one;
        /// `jti` is made if missing.
        claims: Unread = json!({ "type": ["object", "null"] }),
    }
    ; strict
}

/// `jwt/:name`.
pub(in crate::api) async fn jwt(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    #[derive(Serialize)]
    struct Signed {
        token: String,
        kid: String,
        key_version: u32,
        issued_at: u64,
        expires_at: u64,
    }
    let keyring = &call.app.keyring;
    let settings = &call.app.config.keyring.jwt;
    if !settings.keys.iter().any(|key| **key == *call.name) {
        return Err(ApiError::bad_request(format!(
            "the key {} signs no tokens: its public key is not published; name it in [jwt] keys of the configuration",
            call.name
        ))
        .in_own_words());
    }
    let claims = call.params.structured.take();
    let asked = Jwt::read(&call.params)?;
    let typ = match asked.typ.as_deref().unwrap_or_default() {
        "" | "JWT" => "JWT",
        "at+jwt" => "at+jwt",
        other => {
            return Err(ApiError::bad_request(format!(
                "typ {:?} is not supported: \"JWT\" or \"at+jwt\"",
                word(other)
            ))
            .because("typ is not supported"));
        }
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let mut claims = match claims {
        Some(Value::Object(claims)) => claims,
        None => {
            return Err(ApiError::bad_request(
                "missing claims: an object, such as {\"sub\": \"alice\"}",
            ));
        }
        Some(_) => return Err(ApiError::bad_request("claims must be an object")),
    };
    let ttl = asked.ttl.map(|ttl| ttl.as_secs());
    let expires_at = expiry(&claims, ttl, now, settings.limits.overlap.as_secs())?;
    check(&claims, settings.issuer.as_deref())?;
    if let Some(issuer) = &settings.issuer {
        claims.insert("iss".to_owned(), issuer.as_str().into());
    }
    for (name, value) in [("iat", now), ("nbf", now), ("exp", expires_at)] {
        claims.insert(name.to_owned(), value.into());
    }
    claims
        .entry("jti")
        .or_insert_with(|| uuid::Uuid::new_v4().to_string().into());

    let failed = |e| ApiError::from_keyring(e, Doing::Sign, call.name);
    let signer = keyring.jwt_signer(call.key()?).map_err(failed)?;
    let header = serde_json::json!({ "alg": signer.algorithm, "kid": signer.kid, "typ": typ });
    let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let mut token = format!("{}.{}", part(&header), part(&Value::Object(claims)));
    let input = Zeroizing::new(token.clone().into_bytes());
    let signature = keyring
        .sign_jwt(call.key()?, &signer, input)
        .await
        .map_err(failed)?;
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    let data = Signed {
        token,
        kid: signer.kid,
        key_version: signer.version,
        issued_at: now,
        expires_at,
    };
    Ok(call.answer(&data, &[]).with_version(signer.version))
}

/// From `ttl` or the claim `exp`, else as late as may be.
fn expiry(
    claims: &Map<String, Value>,
    ttl: Option<u64>,
    now: u64,
    most: u64,
) -> Result<u64, ApiError> {
    let too_long = || {
        ApiError::bad_request(format!(
            "a token is valid for at most {most} s here (JWT_ACCESS_TOKEN_TTL): ask for less"
        ))
        .in_own_words()
    };
    match (claims.get("exp"), ttl) {
        (Some(_), Some(_)) => Err(ApiError::bad_request("give ttl or the claim exp, not both")),
        (None, None) => Ok(now + most),
        (None, Some(0)) => Err(ApiError::bad_request("ttl must be a second at least")),
        (None, Some(ttl)) if ttl > most => Err(too_long()),
        (None, Some(ttl)) => Ok(now + ttl),
        (Some(exp), None) => {
            let exp = exp.as_u64().ok_or_else(|| {
                ApiError::bad_request("the claim exp must be whole seconds since 1970")
            })?;
            if exp <= now {
                Err(ApiError::bad_request("the claim exp is in the past"))
            } else if exp - now > most {
                Err(too_long())
            } else {
                Ok(exp)
            }
        }
    }
}

/// What RFC 7519, 4.1, says of the types of registered claims; and those that are not the client's.
fn check(claims: &Map<String, Value>, issuer: Option<&str>) -> Result<(), ApiError> {
    for name in ["iat", "nbf"] {
        if claims.contains_key(name) {
            return Err(ApiError::bad_request(format!(
                "the claim {name} is set by the appliance: leave it out"
            ))
            .in_own_words());
        }
    }
    for name in ["iss", "sub", "jti"] {
        if claims.get(name).is_some_and(|value| !value.is_string()) {
            return Err(
                ApiError::bad_request(format!("the claim {name} must be a string")).in_own_words(),
            );
        }
    }
    let strings = |list: &[Value]| list.iter().all(Value::is_string);
    let good = match claims.get("aud") {
        None | Some(Value::String(_)) => true,
        Some(Value::Array(list)) => strings(list),
        Some(_) => false,
    };
    if !good {
        return Err(ApiError::bad_request(
            "the claim aud must be a string or a list of strings",
        ));
    }
    let given = claims.get("iss").and_then(Value::as_str);
    match (issuer, given) {
        (Some(issuer), Some(given)) if given != issuer => Err(ApiError::bad_request(format!(
            "the claim iss is {issuer:?} here: leave it out"
        ))
        .in_own_words()),
        _ => Ok(()),
    }
}
