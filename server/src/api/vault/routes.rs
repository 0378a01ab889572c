//! The table of Vault's dialect: what is answered, who may ask, what it may carry, whether it is
//! audited.

use std::borrow::Cow;

use hyper::Method;
use strongroom_core::keyring::KeyName;
use strongroom_core::policy::Operation;

use super::dialect::ROOT;
use super::names::Shape;
use super::request::{Nothing, NothingElse};
use super::transit::{cipher, import, jwt, keys, mac, random, sign, unsupported, verify};
use super::{auth, clients, rotation, sys};
pub(in crate::api) use crate::api::pipeline::route::{Captures, Route, Verb, allow};

/// What it takes, for the parser.
pub(super) fn shape<'c>(route: &Route, captures: &'c Captures<'_>) -> Shape<'c> {
    Shape {
        names: route.request.names,
        item: route.request.item,
        refused: route.request.refused,
        strict: route.request.strict,
        captured: captures.names,
    }
}

/// `route!(Verb "path" label, Some(Operation) …)` keeps each row on few lines.
macro_rules! route {
    ($verb:ident $path:literal, $label:literal, $operation:expr, $limit:ident, $audited:literal, $mutates:literal, $request:ty, $handler:path) => {
        $crate::api::pipeline::route::Route {
            verb: $crate::api::pipeline::route::Verb::$verb,
            path: $path,
            parts: $crate::api::pipeline::route::parts($path),
            operation: $operation,
            label: $label,
            request: <$request>::REQUEST,
            limit: $crate::api::pipeline::route::Limit::$limit,
            audited: $audited,
            mutates: $mutates,
            handler: |ask| {
                Box::pin(async move {
                    let mut call = $crate::api::vault::call::Call::begin(ask).await?;
                    $handler(&mut call).await
                })
            },
        }
    };
}

pub(in crate::api) use route;

use Operation as O;

/// Transit, below a mount.
#[rustfmt::skip]
pub(in crate::api) static TRANSIT: &[Route] = &[
    //     verb   path                            label               operation                   limit  audited mutates
    route!(Update "encrypt/{name}",               "encrypt",           Some(O::Encrypt),           Data,  true,  false, cipher::Encrypt, cipher::encrypt),
    route!(Update "decrypt/{name}",               "decrypt",           Some(O::Decrypt),           Data,  true,  false, cipher::Decrypt, cipher::decrypt),
    route!(Update "rewrap/{name}",                "rewrap",            Some(O::Rewrap),            Data,  true,  false, cipher::Rewrap, cipher::rewrap),
    route!(Update "datakey/plaintext/{name}",     "datakey-plaintext", Some(O::DatakeyPlaintext),  Small, true,  false, cipher::DataKey, cipher::datakey_plaintext),
    route!(Update "datakey/wrapped/{name}",       "datakey-wrapped",   Some(O::DatakeyWrapped),    Small, true,  false, cipher::DataKey, cipher::datakey_wrapped),
    route!(List   "keys",                         "list",              Some(O::List),              Small, true,  false, keys::List, keys::list),
    route!(Update "keys/{name}",                  "create",            Some(O::Create),            Small, true,  true,  keys::Create, keys::create),
    route!(Read   "keys/{name}",                  "read",              Some(O::Read),              Small, true,  false, keys::ReadKey, keys::read),
    route!(Delete "keys/{name}",                  "delete",            Some(O::Delete),            Small, true,  true,  NothingElse, keys::delete),
    route!(Update "keys/{name}/config",           "configure",         Some(O::Configure),         Small, true,  true,  keys::Configure, keys::configure),
    route!(Update "keys/{name}/rotate",           "rotate",            Some(O::Rotate),            Small, true,  true,  keys::Rotate, keys::rotate),
    route!(Update "keys/{name}/trim",             "trim",              Some(O::Trim),              Small, true,  true,  keys::Trim, keys::trim),
    route!(Update "keys/{name}/import",           "import",            Some(O::Import),            Small, true,  true,  import::Import, import::import),
    route!(Update "keys/{name}/import_version",   "import",            Some(O::Import),            Small, true,  true,  import::ImportVersion, import::import_version),
    route!(Read   "wrapping_key",                 "wrapping-key",      Some(O::WrappingKey),       Small, true,  false, Nothing, import::wrapping_key),
    route!(Update "random",                       "random",            Some(O::Random),            Small, true,  false, random::Random, random::random),
    route!(Update "random/{urlbytes}",            "random",            Some(O::Random),            Small, true,  false, random::Random, random::random),
    route!(Update "random/{source}/{urlbytes}",   "random",            Some(O::Random),            Small, true,  false, random::RandomFrom, random::random_from),
    route!(Update "hash",                         "hash",              Some(O::Hash),              Data,  true,  false, random::Hash, random::hash),
    route!(Update "hash/{urlalgorithm}",          "hash",              Some(O::Hash),              Data,  true,  false, random::Hash, random::hash),
    route!(Update "hmac/{name}",                  "hmac",              Some(O::Hmac),              Data,  true,  false, mac::Hmac, mac::hmac),
    route!(Update "hmac/{name}/{urlalgorithm}",   "hmac",              Some(O::Hmac),              Data,  true,  false, mac::Hmac, mac::hmac),
    route!(Update "verify/{name}",                "verify",            Some(O::Verify),            Data,  true,  false, verify::Verify, verify::verify),
    route!(Update "verify/{name}/{urlalgorithm}", "verify",            Some(O::Verify),            Data,  true,  false, verify::Verify, verify::verify),
    route!(Update "sign/{name}",                  "sign",              Some(O::Sign),              Data,  true,  false, sign::Sign, sign::sign),
    route!(Update "sign/{name}/{urlalgorithm}",   "sign",              Some(O::Sign),              Data,  true,  false, sign::Sign, sign::sign),
    route!(Read   "export/public-key/{name}",     "read",              Some(O::Read),              Small, true,  false, Nothing, sign::export_public_key),
    route!(Read   "export/public-key/{name}/{version}", "read",        Some(O::Read),              Small, true,  false, Nothing, sign::export_public_key),
    // Strongroom's own.
    route!(Update "jwt/{name}",                   "jwt",               Some(O::Jwt),               Small, true,  false, jwt::Jwt, jwt::jwt),
    // Known to Vault, not to this appliance: each says so.
    route!(Update "datakey/{plaintext}/{name}",   "unsupported",       None,                       Small, true,  false, Nothing, unsupported::datakey),
    route!(Read   "export/{type}/{name}",         "unsupported",       None,                       Small, true,  false, Nothing, unsupported::export),
    route!(Read   "export/{type}/{name}/{version}", "unsupported",     None,                       Small, true,  false, Nothing, unsupported::export),
    route!(Read   "backup/{name}",                "unsupported",       None,                       Small, true,  false, Nothing, unsupported::backup),
    route!(Update "restore",                      "unsupported",       None,                       Small, true,  false, Nothing, unsupported::restore),
    route!(Update "restore/{name}",               "unsupported",       None,                       Small, true,  false, Nothing, unsupported::restore),
];

/// The system's own, below `/v1/`.
#[rustfmt::skip]
pub(in crate::api) static SYSTEM: &[Route] = &[
    route!(Update "auth/token/renew-self",        "renew-self",        None,                       Small, true,  false, auth::Renew, auth::renew_self),
    route!(Read   "auth/token/lookup-self",       "lookup-self",       None,                       Small, true,  false, auth::Lookup, auth::lookup_self),
    route!(Update "auth/token/lookup-self",       "lookup-self",       None,                       Small, true,  false, auth::Lookup, auth::lookup_self),
    route!(Update "auth/token/revoke-self",       "revoke-self",       None,                       Small, true,  false, NothingElse, auth::revoke_self),
    route!(Update "auth/{mount}/login",           "login",             None,                       Small, true,  false, auth::LoginAs, auth::login),
    route!(Read   "sys/mounts",                   "mounts",            None,                       Small, false, false, Nothing, clients::mounts),
    route!(Read   "sys/mounts/{path}",            "mounts",            None,                       Small, false, false, Nothing, clients::read_mount),
    route!(Read   "sys/internal/ui/mounts",       "mounts",            None,                       Small, false, false, Nothing, clients::ui_mounts),
    route!(Read   "sys/internal/ui/mounts/{path}", "mounts",           None,                       Small, false, false, Nothing, clients::ui_mount),
    route!(Update "sys/capabilities-self",        "capabilities",      None,                       Small, false, false, clients::Capabilities, clients::capabilities),
    route!(Read   "sys/health",                   "health",            None,                       Small, false, false, sys::Health, sys::health),
    route!(Head   "sys/health",                   "health",            None,                       Small, false, false, sys::Health, sys::health),
    route!(Read   "sys/seal-status",              "seal-status",       None,                       Small, false, false, Nothing, sys::seal_status),
    route!(Read   "sys/init",                     "init",              None,                       Small, false, false, Nothing, sys::init),
    route!(Read   "sys/leader",                   "leader",            None,                       Small, false, false, Nothing, sys::leader),
    route!(Read   "sys/lifecycle",                "metrics",           Some(O::Metrics),           Small, true,  false, Nothing, sys::lifecycle),
    route!(Read   "sys/metrics",                  "metrics",           Some(O::Metrics),           Small, true,  false, sys::Metrics, sys::metrics),
    route!(Read   "sys/rotate-master",            "rotate-master",     Some(O::RotateMaster),      Small, true,  false, NothingElse, rotation::read),
    route!(Update "sys/rotate-master",            "rotate-master",     Some(O::RotateMaster),      Small, true,  true,  rotation::RotateMaster, rotation::update),
    route!(Read   "sys/internal/specs/openapi",   "openapi",           None,                       Small, false, false, sys::Specification, sys::openapi),
    route!(Read   "openapi.json",                 "openapi",           None,                       Small, false, false, Nothing, sys::openapi),
];

/// Not a path: the creation that an `encrypt` of an unknown key is, for the audit log.
#[rustfmt::skip]
pub(in crate::api) static UPSERT: Route =
    route!(Update "",                             "create",            Some(O::Create),            Small, true,  true,  Nothing, keys::create);

/// What a path leads to.
pub(in crate::api) enum Target<'a> {
    /// A route.
    Route(&'static Route, Captures<'a>),
    /// A known path with another method; these are allowed.
    WrongMethod(String),
    /// A mount that has no such path.
    UnknownPath,
    /// Not below any mount.
    NoMount,
}

/// The method's meaning. `Err`: 405, Vault knows no such method.
pub(in crate::api) fn verb(method: &Method, list: bool) -> Option<Verb> {
    match *method {
        Method::GET if list => Some(Verb::List),
        Method::GET => Some(Verb::Read),
        Method::POST | Method::PUT => Some(Verb::Update),
        Method::DELETE => Some(Verb::Delete),
        Method::HEAD => Some(Verb::Head),
        _ if method.as_str() == "LIST" => Some(Verb::List),
        _ => None,
    }
}

/// The path with its percent signs decoded, without `/v1/`. `None`: not below that, or not UTF-8.
pub(in crate::api) fn decode_path(path: &str) -> Option<Cow<'_, str>> {
    let rest = path.strip_prefix(ROOT)?;
    percent_encoding::percent_decode_str(rest)
        .decode_utf8()
        .ok()
}

/// What Transit's paths begin with, Vault's and `OpenBao`'s: `transit/config/keys` is a setting of
/// theirs, and no list of the keys of a mount `transit/config`.
const TRANSIT_WORDS: &[&str] = &[
    "backup",
    "byok-export",
    "cache-config",
    "cmac",
    "config",
    "datakey",
    "decrypt",
    "derive-key",
    "encrypt",
    "export",
    "hash",
    "hmac",
    "jwt",
    "keys",
    "random",
    "restore",
    "rewrap",
    "sign",
    "verify",
    "wrapping_key",
];

/// What [`resolve`] never takes for a mount.
pub(in crate::api) const RESERVED: &[&str] = &["/v1/sys/", "/v1/auth/", "/v1/openapi.json/"];

/// Finds the route of a decoded path. `mounts` empty: whatever stands before a known path is its
/// mount, and the shortest such mount wins, unless it is called as something of Transit's.
pub(in crate::api) fn resolve<'a>(path: &'a str, verb: Verb, mounts: &[String]) -> Target<'a> {
    if path.starts_with('/') {
        return Target::NoMount;
    }
    let first = path.split('/').next().unwrap_or_default();
    if matches!(first, "sys" | "auth" | "openapi.json") {
        return lookup(SYSTEM, path, verb).unwrap_or(Target::UnknownPath);
    }
    if mounts.is_empty() {
        let mut split = 0;
        while let Some(next) = path.get(split..).and_then(|rest| rest.find('/')) {
            let segment = path.get(split..split + next).unwrap_or_default();
            if matches!(segment, "" | "." | "..") {
                break;
            }
            // A path of Transit's, though of none that is here, and not a mount of that name with a
            // path below.
            if split > 0 && TRANSIT_WORDS.contains(&segment) {
                break;
            }
            split += next + 1;
            let below = path.get(split..).unwrap_or_default();
            if let Some(found) = lookup(TRANSIT, below, verb) {
                return found;
            }
        }
        return if split == 0 {
            Target::NoMount
        } else {
            Target::UnknownPath
        };
    }
    let mut mounted = false;
    for mount in mounts {
        let below = path
            .strip_prefix(mount.trim_matches('/'))
            .and_then(|rest| rest.strip_prefix('/'));
        if let Some(below) = below {
            mounted = true;
            if let Some(found) = lookup(TRANSIT, below, verb) {
                return found;
            }
        }
    }
    if mounted {
        Target::UnknownPath
    } else {
        Target::NoMount
    }
}

fn lookup<'a>(table: &'static [Route], path: &'a str, verb: Verb) -> Option<Target<'a>> {
    let (first, captures) = table
        .iter()
        .find_map(|route| capture(route, path).map(|captures| (route, captures)))?;
    let same_path = || table.iter().filter(|route| route.path == first.path);
    if let Some(route) = same_path().find(|route| route.verb == verb) {
        return Some(Target::Route(route, captures));
    }
    Some(Target::WrongMethod(allow(same_path())))
}

/// The captures, if the path has the route's shape.
fn capture<'a>(route: &Route, path: &'a str) -> Option<Captures<'a>> {
    // A mount has any number of segments.
    let wide = match route.path {
        "auth/{mount}/login" => path
            .strip_prefix("auth/")
            .map(|rest| rest.strip_suffix("/login")),
        "sys/internal/ui/mounts/{path}" => path.strip_prefix("sys/internal/ui/mounts/").map(Some),
        "sys/mounts/{path}" => path.strip_prefix("sys/mounts/").map(Some),
        _ => None,
    };
    if let Some(wide) = wide {
        return wide
            .filter(|mount| !mount.is_empty())
            .map(|mount| Captures {
                others: [Some(mount), None],
                ..Captures::default()
            });
    }
    let (literal, pattern) = route.parts;
    let rest = path.strip_prefix(literal)?;
    // Vault's own clients end the path of a list with a slash.
    let rest = if route.path == "keys" && rest == "/" {
        ""
    } else {
        rest
    };
    let mut captures = Captures::default();
    let mut others = captures.others.iter_mut();
    let mut segments = rest.split('/');
    for expected in pattern.split('/') {
        let segment = segments.next()?;
        match expected {
            "{name}" => captures.name = Some(KeyName::parse(segment)?),
            "{source}" | "{urlbytes}" | "{urlalgorithm}" | "{plaintext}" | "{type}"
            | "{version}" => {
                if segment.is_empty() {
                    return None;
                }
                if let Some(slot) = others.next() {
                    *slot = Some(segment);
                }
            }
            literal if literal == segment => {}
            _ => return None,
        }
    }
    if segments.next().is_some() {
        return None;
    }
    captures.names = match (captures.name, route.path.starts_with("random/{source}")) {
        (Some(_), _) => &["name"],
        (None, true) => &["source"],
        (None, false) => &[],
    };
    Some(captures)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found<'a>(path: &'a str, verb: Verb, mounts: &[String]) -> (&'static str, Captures<'a>) {
        match resolve(path, verb, mounts) {
            Target::Route(route, captures) => (route.path, captures),
            Target::WrongMethod(_) => panic!("{path}: wrong method"),
            Target::UnknownPath => panic!("{path}: unknown"),
            Target::NoMount => panic!("{path}: no mount"),
        }
    }

    #[test]
    fn nothing_is_mounted_below_what_is_reserved() {
        for reserved in RESERVED {
            let mount = reserved
                .strip_prefix(ROOT)
                .unwrap()
                .trim_matches('/')
                .to_owned();
            let below = format!("{mount}/encrypt/k");
            for mounts in [vec![], vec![mount]] {
                let target = resolve(&below, Verb::Update, &mounts);
                assert!(matches!(target, Target::UnknownPath), "{below}");
            }
        }
    }

    #[test]
    fn any_mount_is_taken_where_none_is_configured() {
        for (path, verb, route, name) in [
            (
                "transit/encrypt/k",
                Verb::Update,
                "encrypt/{name}",
                Some("k"),
            ),
            ("a/b/c/encrypt/k", Verb::Update, "encrypt/{name}", Some("k")),
            (
                "transit/keys/k.1/config",
                Verb::Update,
                "keys/{name}/config",
                Some("k.1"),
            ),
            ("transit/keys", Verb::List, "keys", None),
            ("transit/keys/", Verb::List, "keys", None),
            ("encrypt/keys/x", Verb::Read, "keys/{name}", Some("x")),
            (
                "transit/datakey/wrapped/k",
                Verb::Update,
                "datakey/wrapped/{name}",
                Some("k"),
            ),
            (
                "transit/datakey/x/k",
                Verb::Update,
                "datakey/{plaintext}/{name}",
                Some("k"),
            ),
            // The shortest mount wins.
            (
                "transit/hmac/random/sha2-256",
                Verb::Update,
                "hmac/{name}/{urlalgorithm}",
                Some("random"),
            ),
        ] {
            let (pattern, captures) = found(path, verb, &[]);
            let captured = captures.name.map(KeyName::as_str);
            assert_eq!((pattern, captured), (route, name), "{path}");
        }
        let (_, captures) = found("t/random/seal/8", Verb::Update, &[]);
        assert_eq!(captures.others, [Some("seal"), Some("8")]);
        assert_eq!(captures.names, ["source"]);
    }

    #[test]
    fn configured_mounts_are_the_only_ones() {
        let mounts = ["transit".to_owned(), "/team/kms/".to_owned()];
        assert_eq!(
            found("transit/encrypt/k", Verb::Update, &mounts).0,
            "encrypt/{name}"
        );
        assert_eq!(
            found("team/kms/encrypt/k", Verb::Update, &mounts).0,
            "encrypt/{name}"
        );
        for path in [
            "other/encrypt/k",
            "transitx/encrypt/k",
            "team/encrypt/k",
            "transit",
        ] {
            assert!(
                matches!(resolve(path, Verb::Update, &mounts), Target::NoMount),
                "{path}"
            );
        }
        assert!(matches!(
            resolve("transit/x/encrypt/k", Verb::Update, &mounts),
            Target::UnknownPath
        ));
    }

    #[test]
    fn what_is_no_path_is_told_apart() {
        for path in [
            "transit/encrypt",
            "transit/encrypt/",
            "transit/encrypt/-k",
            "transit/encrypt/k/",
            "transit/nope/k",
            "transit/byok-export/keys/k",
            "transit/config/keys/k",
            "transit/keys/a/keys/b",
            "transit/keys/a/soft-delete",
            "transit/./keys/k",
            "transit/../keys/k",
            "transit/keys/a/../../keys/k",
            "transit//keys/k",
            "sys/nope",
            "auth/token/create",
            "sys/encrypt/k",
        ] {
            assert!(
                matches!(resolve(path, Verb::Update, &[]), Target::UnknownPath),
                "{path}"
            );
        }
        for path in ["", "transit", "/encrypt/k", "/"] {
            assert!(
                matches!(resolve(path, Verb::Update, &[]), Target::NoMount),
                "{path}"
            );
        }
        let Target::WrongMethod(allow) = resolve("transit/keys/k", Verb::List, &[]) else {
            panic!()
        };
        assert_eq!(allow, "POST, PUT, GET, DELETE");
        assert!(decode_path("/v2/x").is_none() && decode_path("/v1/%ff").is_none());
        assert_eq!(decode_path("/v1/t%2Fkeys/a%20b").unwrap(), "t/keys/a b");
    }

    #[test]
    fn the_table_is_sound() {
        for route in TRANSIT.iter().chain(SYSTEM) {
            assert!(
                route.request.names.len() <= super::super::body::MAX_PARAMS,
                "{}",
                route.path
            );
            if let Some(operation) = route.operation {
                assert_eq!(
                    serde_json::to_value(operation).unwrap(),
                    route.label,
                    "{}",
                    route.path
                );
            }
            let global = route.operation.is_none_or(Operation::is_global);
            let named = route.path.contains("{name}");
            assert!(
                global != named || route.operation.is_none(),
                "{}",
                route.path
            );
            assert!(
                !route.mutates || route.audited && route.verb != Verb::Read,
                "{}",
                route.path
            );
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(path in "\\PC{0,60}", parts in proptest::collection::vec("[a-z0-9._/-]{0,8}|encrypt|keys|random|config", 0..8)) {
            for path in [path, parts.join("/")] {
                for verb in [Verb::Read, Verb::List, Verb::Update, Verb::Delete, Verb::Head] {
                    let _ = resolve(&path, verb, &[]);
                    let _ = resolve(&path, verb, &["a".to_owned(), String::new()]);
                }
                let _ = decode_path(&path);
            }
        }
    }
}
