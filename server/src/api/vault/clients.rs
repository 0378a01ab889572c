//! What Vault's clients ask before they work: which mounts there are, and what they may do there.
//! All of it is only read.

use std::borrow::Cow;

use serde_json::{Map, Value, json};
use strongroom_core::keyring::KeyName;
use strongroom_core::policy::{Decision, Operation};

use super::call::Call;
use super::dialect::{ROOT, VAULT, shown};
use super::error::ApiError;
use super::request::{Unread, request};
use super::routes::{self, Target, Verb};
use crate::api::pipeline::answer::Answer;
use crate::api::pipeline::credentials::Presented;
use crate::api::pipeline::dialect::Dialect as _;

/// The most paths of one question.
const MAX_PATHS: usize = 64;
/// Where any mount is taken: what clients ask for if nobody tells them otherwise.
const DEFAULT_MOUNT: &str = "transit/";

/// `GET sys/mounts`.
pub(in crate::api) async fn mounts(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let all = secret_mounts(call);
    Ok(call.answer(&Value::Object(all), &[]))
}

/// `GET sys/mounts/:path`: the mount of that name.
pub(in crate::api) async fn read_mount(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let [path, _] = call.captures;
    let path = path.unwrap_or_default().trim_end_matches('/');
    let Some(found) = secret_mounts(call).remove(&format!("{path}/")) else {
        return Err(
            ApiError::bad_request(format!("No secret engine mount at {}/", shown(path)))
                .because("no such mount"),
        );
    };
    Ok(call.answer(&found, &[]))
}

/// `GET sys/internal/ui/mounts`.
pub(in crate::api) async fn ui_mounts(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let auth = json!({
        "cert/": mount("cert", "auth_cert", "client certificates"),
        "token/": mount("token", "auth_token", "tokens of the tokens file"),
    });
    let secret = secret_mounts(call);
    Ok(call.answer(&json!({ "auth": auth, "secret": secret }), &[]))
}

/// `GET sys/internal/ui/mounts/:path`: the mount that a path is below.
pub(in crate::api) async fn ui_mount(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let [path, _] = call.captures;
    let path = path.unwrap_or_default();
    let all = secret_mounts(call);
    let below = |mount: &String| {
        path.strip_prefix(mount.trim_end_matches('/'))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let Some((name, found)) = all.into_iter().find(|(name, _)| below(name)) else {
        return Err(ApiError::new(
            403,
            format!(
                "preflight capability check returned 403, please ensure client's policies grant access to path \"{}/\"",
                shown(path.trim_end_matches('/'))
            ),
        )
        .because("no such mount"));
    };
    let mut found = found;
    if let Some(fields) = found.as_object_mut() {
        fields.insert("path".to_owned(), name.into());
    }
    Ok(call.answer(&found, &[]))
}

request! {
    /// `POST sys/capabilities-self`.
    Capabilities<'p> {
        /// If it is only one.
        path: Option<Cow<'p, str>>,
    }
    besides {
        /// Which.
        paths: Unread = json!({
            "type": ["array", "string", "null"],
            "items": { "type": "string" },
            "maxItems": MAX_PATHS,
        }),
    }
}

/// `POST sys/capabilities-self`: what the certificate that asks, with the token that was sent, may
/// do at each path.
pub(in crate::api) async fn capabilities(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let paths = paths(call)?;
    let mut data = Map::new();
    for path in &paths {
        data.insert(path.clone(), at(call, path).into());
    }
    if let Some(first) = paths.first() {
        let first = at(call, first);
        data.insert("capabilities".to_owned(), first.into());
    }
    Ok(call.answer(&Value::Object(data), &[]))
}

fn paths(call: &mut Call<'_>) -> Result<Vec<String>, ApiError> {
    let wrong = || ApiError::bad_request("paths must be a list of strings, 64 at most");
    let many = call.params.structured.take();
    let Capabilities { path } = Capabilities::read(&call.params)?;
    if many.is_some() && path.as_deref().is_some_and(|path| !path.is_empty()) {
        return Err(ApiError::bad_request("give path or paths, not both"));
    }
    let paths: Vec<String> = match many {
        Some(Value::Array(list)) => list
            .into_iter()
            .map(|path| path.as_str().map(str::to_owned).ok_or_else(wrong))
            .collect::<Result<_, _>>()?,
        Some(Value::String(text)) => text.split(',').map(|path| path.trim().to_owned()).collect(),
        Some(_) => return Err(wrong()),
        None => path.map(Cow::into_owned).into_iter().collect(),
    };
    if paths.is_empty() || paths.iter().any(String::is_empty) {
        return Err(ApiError::bad_request("paths must be supplied"));
    }
    if paths.len() > MAX_PATHS {
        return Err(wrong());
    }
    Ok(paths)
}

/// Vault's words for the methods that would be let through; the handlers ask the same policy.
fn at(call: &Call<'_>, path: &str) -> Vec<&'static str> {
    let path = path.trim_start_matches('/');
    let endpoint = &call.request.client.endpoint;
    // No mount reaches another dialect's paths.
    if endpoint.dialect_of(&format!("{ROOT}{path}")).name() != VAULT.name() {
        return vec!["deny"];
    }
    let mut found: Vec<&str> = [Verb::Delete, Verb::List, Verb::Read, Verb::Update]
        .into_iter()
        .filter_map(|verb| {
            let Target::Route(route, captures) =
                routes::resolve(path, verb, &call.app.config.mounts)
            else {
                return None;
            };
            let may = match route.operation {
                None => route.label != "unsupported",
                Some(operation) => allowed(call, operation, captures.name.map(KeyName::as_str)),
            };
            may.then_some(match verb {
                Verb::Delete => "delete",
                Verb::List => "list",
                Verb::Update if route.operation == Some(Operation::Create) => "create",
                Verb::Update => "update",
                Verb::Read | Verb::Head => "read",
            })
        })
        .collect();
    if found.is_empty() {
        return vec!["deny"];
    }
    found.sort_unstable();
    found
}

fn allowed(call: &Call<'_>, operation: Operation, key: Option<&str>) -> bool {
    let identity = &call.peer.identity;
    match call.app.policy.load().decide(identity, operation, key) {
        Decision::Allowed => true,
        Decision::AllowedWithToken => call.token.is_some_and(Presented::counts),
        Decision::Denied => false,
    }
}

fn secret_mounts(call: &Call<'_>) -> Map<String, Value> {
    let configured = &call.app.config.mounts;
    let names: Vec<String> = if configured.is_empty() {
        vec![DEFAULT_MOUNT.to_owned()]
    } else {
        let names = configured.iter().map(|mount| mount.trim_matches('/'));
        names.map(|mount| format!("{mount}/")).collect()
    };
    names
        .into_iter()
        .map(|name| (name, mount("transit", "transit", "keys in an HSM")))
        .collect()
}

/// A mount as Vault describes it.
fn mount(kind: &str, accessor: &str, description: &str) -> Value {
    json!({
        "accessor": format!("{accessor}_strongroom"),
        "config": {
            "default_lease_ttl": 0,
            "force_no_cache": false,
            "max_lease_ttl": 0,
        },
        "description": description,
        "external_entropy_access": false,
        "local": false,
        "options": null,
        "plugin_version": "",
        "seal_wrap": false,
        "type": kind,
    })
}
