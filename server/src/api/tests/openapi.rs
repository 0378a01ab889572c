//! The document is made of the rows and their requests' types: none is left out, nor is an outline
//! without a row; and answers are what it says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde_json::{Value, json};
use strongroom_core::keyring::MAX_NAME;

use crate::api::OPENAPI;
use crate::api::vault::batch::items::{BATCH, MAX_MEMBERS};
use crate::api::vault::routes::{Route, SYSTEM, TRANSIT, Verb};
use crate::api::{jwks, ui};

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(&OPENAPI).unwrap());

/// Strongroom's own pages.
fn pages() -> impl Iterator<Item = &'static Route> {
    jwks::PAGES.table.iter().chain(ui::PAGES.table)
}

/// The one at this path.
pub(super) fn page(path: &str, verb: Verb) -> Option<&'static Route> {
    pages().find(|page| page.verb == verb && path.strip_prefix('/') == Some(page.path))
}

/// The document's path of a route.
pub(super) fn path(route: &Route) -> String {
    if pages().any(|r| r.path == route.path) {
        format!("/{}", route.path)
    } else if SYSTEM.iter().any(|r| r.path == route.path) {
        format!("/v1/{}", route.path)
    } else {
        format!("/v1/{{mount}}/{}", route.path)
    }
}

/// The document's methods of a verb; it can't name LIST.
fn methods(verb: Verb) -> &'static [&'static str] {
    match verb {
        Verb::Read | Verb::List => &["get"],
        Verb::Update => &["post", "put"],
        Verb::Delete => &["delete"],
        Verb::Head => &["head"],
    }
}

/// Panics unless the document foresees this status of the route, and the body has the shape that it
/// gives.
pub(super) fn check_answer(route: Option<&Route>, status: u16, body: &[u8]) {
    let responses = match route {
        Some(route) => {
            &DOCUMENT["paths"][path(route)][*methods(route.verb).first().unwrap()]["responses"]
        }
        // No route: 404, 405 and the like, described in the preface.
        None => {
            &json!({ "default": { "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Errors" } } } } })
        }
    };
    let mut response = responses
        .get(status.to_string())
        .or_else(|| responses.get("default"))
        .unwrap_or_else(|| {
            panic!(
                "{:?} may not answer {status}: {}",
                route.map(path),
                String::from_utf8_lossy(body)
            )
        });
    if let Some(reference) = response.get("$ref") {
        let pointer = reference.as_str().unwrap().trim_start_matches('#');
        response = DOCUMENT.pointer(pointer).unwrap();
    }
    let Some(content) = response.get("content") else {
        assert!(
            body.is_empty(),
            "{status} has a body: {}",
            String::from_utf8_lossy(body)
        );
        return;
    };
    let Some(schema) = content.pointer("/application~1json/schema") else {
        return;
    };
    let schema = json!({ "allOf": [schema], "components": DOCUMENT["components"] });
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let body: Value = serde_json::from_slice(body).expect("the body is JSON");
    if let Err(error) = validator.validate(&body) {
        panic!("{:?} {status}: {error}\n{body:#}", route.map(path));
    }
}

#[test]
fn the_table_and_the_document_agree() {
    let in_table: BTreeSet<(String, String)> = TRANSIT
        .iter()
        .chain(SYSTEM)
        .chain(pages())
        .flat_map(|route| {
            methods(route.verb)
                .iter()
                .map(|m| (path(route), (*m).to_owned()))
        })
        .collect();
    let in_document: BTreeSet<(String, String)> = DOCUMENT["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            let methods = item
                .as_object()
                .unwrap()
                .keys()
                .filter(|k| *k != "parameters");
            methods.map(|m| (path.clone(), m.clone()))
        })
        .collect();
    assert_eq!(in_table, in_document);
}

/// docs/api.md names every path of the table, in a row of a table.
#[test]
fn the_documentation_names_every_path() {
    let documentation = include_str!("../../../../docs/api.md");
    let rows: Vec<&str> = documentation
        .lines()
        .filter(|line| line.starts_with('|'))
        .collect();
    for route in TRANSIT.iter().chain(SYSTEM).chain(pages()) {
        if route.label == "unsupported" {
            // "What differs from Vault" has them by their first word.
            let first = route.path.split('/').next().unwrap();
            assert!(
                rows.iter().any(|row| row.contains(&format!("`{first}"))),
                "{first}"
            );
            continue;
        }
        let mut path = String::new();
        for part in route.path.split('/') {
            match part {
                "" => path.push('/'),
                "{name}" => path.push_str("/:name"),
                "{mount}" => path.push_str("/:mount"),
                // Optional ones are in brackets.
                "{source}" | "{urlbytes}" | "{urlalgorithm}" | "{version}" | "{path}" => break,
                literal => path.extend(["/", literal]),
            }
        }
        let path = path.trim_start_matches('/');
        let named = |row: &&&str| {
            let cells = row.split('`').skip(1).step_by(2);
            cells.into_iter().any(|cell| {
                let cell = cell
                    .split('[')
                    .next()
                    .unwrap_or_default()
                    .trim_start_matches('/');
                cell == path || short(cell, path)
            })
        };
        let words = route.operation.map_or_else(String::new, |operation| {
            let word = serde_json::to_value(operation).unwrap();
            format!("`{}`", word.as_str().unwrap())
        });
        let mut rows = rows.iter().filter(named);
        assert!(
            rows.any(|row| row.contains(&words)),
            "docs/api.md does not name {path} with {words}"
        );
    }
}

/// `/rotate` behind `keys/:name/config`, in one row.
fn short(cell: &str, path: &str) -> bool {
    path.strip_prefix("keys/:name/")
        .is_some_and(|last| last == cell)
}

#[test]
fn the_longest_name_of_a_key_is_the_keyrings() {
    let mut names = 0;
    for (path, item) in DOCUMENT["paths"].as_object().unwrap() {
        let parameters = item["parameters"].as_array().into_iter().flatten();
        for parameter in parameters.filter(|p| p["name"] == "name") {
            assert_eq!(parameter["schema"]["maxLength"], MAX_NAME, "{path}");
            names += 1;
        }
    }
    assert!(names > 10, "only {names} were found");
}

#[test]
fn parameters_agree() {
    for route in TRANSIT.iter().chain(SYSTEM).chain(pages()) {
        for method in methods(route.verb) {
            let operation = &DOCUMENT["paths"][path(route)][*method];
            let described: BTreeSet<&str> = match route.verb {
                Verb::Update => {
                    operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
                        .as_object()
                        .map(|p| p.keys().map(String::as_str).collect())
                        .unwrap_or_default()
                }
                _ => operation["parameters"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|p| p["name"].as_str().unwrap())
                    // What makes it LIST.
                    .filter(|name| *name != "list")
                    .collect(),
            };
            let taken: BTreeSet<&str> = route.request.names.iter().copied().collect();
            assert_eq!(taken, described, "{} {method}", route.path);
        }
    }
}

#[test]
fn the_document_is_whole() {
    let mut ids = BTreeSet::new();
    let mut references = Vec::new();
    let mut queue = vec![&*DOCUMENT];
    while let Some(value) = queue.pop() {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref") {
                    references.push(reference.trim_start_matches('#'));
                }
                if let Some(Value::String(id)) = map.get("operationId") {
                    assert!(ids.insert(id), "the operationId {id} is there twice");
                }
                queue.extend(map.values());
            }
            Value::Array(list) => queue.extend(list),
            _ => {}
        }
    }
    for reference in references {
        assert!(
            DOCUMENT.pointer(reference).is_some(),
            "{reference} leads nowhere"
        );
    }
    for schema in DOCUMENT["components"]["schemas"]
        .as_object()
        .unwrap()
        .values()
    {
        let schema = json!({ "allOf": [schema], "components": DOCUMENT["components"] });
        jsonschema::draft202012::new(&schema).unwrap();
    }
    assert_eq!(DOCUMENT["openapi"], "3.1.0");
    assert_eq!(DOCUMENT["info"]["version"], env!("CARGO_PKG_VERSION"));
}

/// By hand, what the types must come to: a field, an item's field, one that is needed, a query.
#[test]
fn the_document_is_made_of_the_types() {
    let at = |pointer: &str| DOCUMENT.pointer(pointer).unwrap_or(&Value::Null).clone();
    let body = "requestBody/content/application~1json/schema";
    let sign = format!("/paths/~1v1~1{{mount}}~1sign~1{{name}}/put/{body}");
    assert_eq!(at(&format!("{sign}/type")), json!(["object", "null"]));
    assert_eq!(
        at(&format!("{sign}/properties/signature_algorithm")),
        json!({
            "enum": ["pss", "pkcs1v15", "", null],
            "description": "For RSA keys. Missing: pss.",
        })
    );
    let key_version = "0 or missing: the latest.";
    let rewrap = format!("/paths/~1v1~1{{mount}}~1rewrap~1{{name}}/post/{body}/properties");
    assert_eq!(
        at(&format!("{rewrap}/key_version")),
        json!({ "$ref": "#/components/schemas/WeakInteger", "description": key_version })
    );
    let text = json!({
        "type": ["string", "null"],
        "description": "`vault:v<version>:<base64>`, as encrypt gave it.",
    });
    let base64 = |about: &str| {
        json!({
            "type": ["string", "null"],
            "contentEncoding": "base64",
            "description": about,
        })
    };
    assert_eq!(
        at(&format!("{rewrap}/batch_input")),
        json!({
            "type": ["array", "null"],
            "maxItems": 16_384,
            "items": {
                "type": "object",
                "required": ["ciphertext"],
                "properties": {
                    "ciphertext": text,
                    "context": base64("For derived keys: what the key is derived from, base64."),
                    "nonce": {
                        "type": ["string", "null"],
                        "maxLength": 0,
                        "description": "Refused unless empty: nonces are the appliance's.",
                    },
                    "associated_data": base64(
                        "What the ciphertext is bound to, base64; the new one is bound to it too."
                    ),
                    // Types are strict in an item.
                    "key_version": { "type": ["integer", "null"], "description": key_version },
                    "reference": {
                        "type": ["string", "null"],
                        "description": "Given back with the item's result.",
                    },
                },
            },
        })
    );
    let needed = at("/paths/~1v1~1sys~1rotate-master/post/requestBody");
    assert_eq!(needed["required"], true);
    let needed = &needed["content"]["application/json"]["schema"];
    assert_eq!(needed["type"], "object");
    assert_eq!(needed["required"], json!(["master_sha256"]));
    assert_eq!(
        at("/paths/~1v1~1{mount}~1keys/get/parameters/2"),
        json!({
            "name": "limit",
            "in": "query",
            "required": false,
            "description": "At most this many names; 0 or less: all.",
            "schema": { "type": "integer" },
        })
    );
}

/// What an item of a batch holds are parameters of the request, and the parser can read them.
#[test]
fn an_items_fields_are_parameters() {
    let mut batches = 0;
    for route in TRANSIT.iter().chain(SYSTEM) {
        let request = route.request;
        assert_eq!(
            request.names.contains(&BATCH),
            !request.item.is_empty(),
            "{}",
            route.path
        );
        batches += usize::from(!request.item.is_empty());
        assert!(request.item.len() <= MAX_MEMBERS, "{}", route.path);
        let held: Vec<&str> = request.item.iter().map(|member| member.name).collect();
        for name in &held {
            assert!(request.names.contains(name), "{name}");
        }
        for name in request.needed_in_item {
            assert!(held.contains(name), "{name}");
        }
    }
    assert_eq!(batches, 9);
}
