//! The `OpenAPI` 3.1 document: made of the rows and of their requests' types. `outline.json` has
//! what no type says: an operation's words, and what answers look like.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use strongroom_core::keyring::MAX_NAME;

use super::batch::items::BATCH;
use super::routes::{self, SYSTEM, TRANSIT};
use crate::api::pipeline::route::{Parameter, Request, Route, Verb};

/// What all paths of Transit begin with here.
const MOUNTED: &str = "/v1/{mount}/";

/// What any request may be answered: an operation's outline replaces one, or takes it out by null.
const ANSWERS: &[(&str, &str)] = &[
    ("400", "BadRequest"),
    ("403", "Denied"),
    ("408", "BodyTimeout"),
    ("413", "TooLarge"),
    ("503", "Unavailable"),
];

/// The `OpenAPI` 3.1 document that describes every route, as it is served.
pub static OPENAPI: LazyLock<String> = LazyLock::new(|| {
    // Made of constants: the tests read it, and it is the same each time.
    let outline: Result<Outline, _> = serde_json::from_str(include_str!("openapi/outline.json"));
    outline
        .and_then(|outline| serde_json::to_string(&outline.filled_in()))
        .unwrap_or_default()
});

/// The document without what the types say.
#[derive(Deserialize)]
struct Outline {
    /// By path and method; PUT is POST.
    paths: BTreeMap<String, BTreeMap<String, Words>>,
    /// The document's other members.
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// An operation, as the outline has it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Words {
    operation_id: String,
    summary: String,
    tags: Vec<String>,
    description: Option<String>,
    /// The schemas of the envelope's `data`: of one, and of a batch.
    #[serde(default)]
    data: Vec<String>,
    #[serde(default)]
    responses: Map<String, Value>,
}

#[derive(Serialize)]
struct Document {
    paths: BTreeMap<String, Map<String, Value>>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// An operation, as the document has it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Operation<'o> {
    #[serde(rename = "operationId")]
    id: &'o str,
    summary: &'o str,
    tags: &'o [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'o str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parameters: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_body: Option<Value>,
    responses: &'o Map<String, Value>,
}

impl Outline {
    fn filled_in(self) -> Document {
        let paths = self.paths.into_iter().map(|(path, operations)| {
            let item = item(&path, operations);
            (path, item)
        });
        Document {
            paths: paths.collect(),
            others: self.others,
        }
    }
}

/// All that is under one path.
fn item(path: &str, operations: BTreeMap<String, Words>) -> Map<String, Value> {
    let mut item = Map::new();
    let captures: Vec<Value> = captures(path).map(|name| capture(path, name)).collect();
    if !captures.is_empty() {
        item.insert("parameters".to_owned(), captures.into());
    }
    for (method, words) in operations {
        let route = row(path, &method);
        let responses = responses(&words, route);
        let operation = Operation {
            id: &words.operation_id,
            summary: &words.summary,
            tags: &words.tags,
            description: words.description.as_deref(),
            parameters: route.map(query).unwrap_or_default(),
            request_body: route
                .filter(|route| route.verb == Verb::Update)
                .map(|route| body(route.request)),
            responses: &responses,
        };
        if method == "post" {
            let id = operation.id;
            let put = format!("{}Put", id.strip_suffix("Post").unwrap_or(id));
            let mut same = json!(operation);
            same["operationId"] = put.into();
            item.insert("put".to_owned(), same);
        }
        item.insert(method, json!(operation));
    }
    item
}

/// `None`: a page, whose requests carry nothing.
fn row(path: &str, method: &str) -> Option<&'static Route> {
    let (table, path) = match path.strip_prefix(MOUNTED) {
        Some(path) => (TRANSIT, path),
        None => (SYSTEM, path.strip_prefix("/v1/")?),
    };
    let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes()).ok()?;
    let verb = routes::verb(&method, false)?;
    let mut rows = table.iter().filter(|row| row.path == path);
    // The document can't name LIST.
    rows.find(|row| row.verb == verb || row.verb == Verb::List && verb == Verb::Read)
}

/// The names that a path captures.
fn captures(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}

/// What is said of a segment of a path.
fn capture(path: &str, name: &str) -> Value {
    let text = || json!({ "type": "string" });
    let wide = || json!({ "type": "string", "minLength": 1 });
    let (description, schema) = match name {
        "mount" if path.starts_with(MOUNTED) => (
            "The mount: any path, with any number of segments (which OpenAPI can't say); the configuration may name those that are taken.",
            wide(),
        ),
        "path" if path.starts_with("/v1/sys/mounts/") => {
            ("A mount, with any number of segments.", wide())
        }
        "mount" | "path" => ("Any path, with any number of segments.", wide()),
        "name" => (
            "The key.",
            json!({
                "type": "string",
                "pattern": "^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?$",
                "maxLength": MAX_NAME,
            }),
        ),
        "urlbytes" => ("How many bytes; or, as the only segment, a source.", text()),
        "source" => (
            "Where the bytes come from.",
            json!({ "enum": ["platform", "seal", "all"] }),
        ),
        "urlalgorithm" => ("The hash.", text()),
        "plaintext" => ("Neither `plaintext` nor `wrapped`.", text()),
        "version" if path.contains("/public-key/") => ("A version, or `latest`.", text()),
        "version" => ("Which version.", text()),
        "type" => ("What to export.", text()),
        _ => ("", text()),
    };
    json!({
        "name": name,
        "in": "path",
        "required": true,
        "description": description,
        "schema": schema,
    })
}

/// The parameters of a request without a body.
fn query(route: &Route) -> Vec<Value> {
    let parameters = match route.verb {
        Verb::Update => return Vec::new(),
        Verb::Read | Verb::List | Verb::Head | Verb::Delete => parameters(route.request),
    };
    let list = (route.verb == Verb::List).then(|| {
        json!({
            "name": "list",
            "in": "query",
            "required": true,
            "description":
                "`true`. The method `LIST`, which OpenAPI can't name, does the same.",
            "schema": { "type": "string" },
        })
    });
    let parameters = parameters.map(|(name, parameter)| {
        json!({
            "name": name,
            "in": "query",
            "required": parameter.needed,
            "description": parameter.about(),
            "schema": in_query((parameter.schema)()),
        })
    });
    list.into_iter().chain(parameters).collect()
}

/// A query has texts only, and no null.
fn in_query(schema: Value) -> Value {
    match schema["$ref"].as_str() {
        Some("#/components/schemas/WeakInteger") => json!({ "type": "integer" }),
        _ if schema["type"] == json!(["string", "null"]) => json!({ "type": "string" }),
        _ => schema,
    }
}

/// Types are strict in an item of a batch.
fn in_item(schema: Value) -> Value {
    match schema["$ref"].as_str() {
        Some("#/components/schemas/WeakInteger") => json!({ "type": ["integer", "null"] }),
        _ => schema,
    }
}

fn parameters(request: &Request) -> impl Iterator<Item = (&'static str, &'static Parameter)> {
    request.names.iter().copied().zip(request.parameters)
}

fn body(request: &Request) -> Value {
    let needed: Vec<&str> = parameters(request)
        .filter(|(_, parameter)| parameter.needed)
        .map(|(name, _)| name)
        .collect();
    let properties = parameters(request).map(|(name, parameter)| {
        let mut schema = described(parameter, (parameter.schema)());
        if name == BATCH {
            schema["items"] = batch_item(request);
        }
        (name.to_owned(), schema)
    });
    let properties: Map<String, Value> = properties.collect();
    let mut body = json!({});
    let mut schema = json!({ "type": ["object", "null"], "properties": properties });
    if !needed.is_empty() {
        body["required"] = true.into();
        schema["type"] = "object".into();
        schema["required"] = needed.into();
    }
    body["content"] = json!({ "application/json": { "schema": schema } });
    body
}

/// An item of a batch: what it says is what the request would say.
fn batch_item(request: &Request) -> Value {
    let taken = |name| request.item.iter().any(|member| member.name == name);
    let taken = parameters(request).filter(|(name, _)| taken(*name));
    let mut properties: Map<String, Value> = taken
        .map(|(name, parameter)| {
            let schema = in_item((parameter.schema)());
            (name.to_owned(), described(parameter, schema))
        })
        .collect();
    properties.insert(
        "reference".to_owned(),
        json!({
            "type": ["string", "null"],
            "description": "Given back with the item's result.",
        }),
    );
    let mut item = json!({ "type": "object", "properties": properties });
    if !request.needed_in_item.is_empty() {
        item["required"] = json!(request.needed_in_item);
    }
    item
}

fn described(parameter: &Parameter, mut schema: Value) -> Value {
    let about = parameter.about();
    if !about.is_empty() {
        schema["description"] = about.into();
    }
    schema
}

fn responses(words: &Words, route: Option<&Route>) -> Map<String, Value> {
    let mut responses = Map::new();
    for (status, answer) in ANSWERS {
        let answer = json!({ "$ref": format!("#/components/responses/{answer}") });
        responses.insert((*status).to_owned(), answer);
    }
    if !words.data.is_empty() {
        responses.insert("200".to_owned(), done(&words.data));
    }
    let partial = route.is_some_and(|route| {
        let names = route.request.names;
        names.contains(&"partial_failure_response_code")
    });
    if let Some(batch) = words.data.last().filter(|_| partial) {
        let (refused, partial) = failed_in_part(batch);
        responses.insert("400".to_owned(), refused);
        responses.insert("default".to_owned(), partial);
    }
    for (status, answer) in &words.responses {
        if answer.is_null() {
            responses.remove(status);
        } else {
            responses.insert(status.clone(), answer.clone());
        }
    }
    responses
}

/// An envelope with one of these.
fn done(data: &[String]) -> Value {
    let mut schemas: Vec<Value> = data.iter().map(|name| schema(name)).collect();
    let data = match schemas.pop() {
        Some(only) if schemas.is_empty() => only,
        last => {
            schemas.extend(last);
            json!({ "oneOf": schemas })
        }
    };
    answer("Done.", &enveloped(&data))
}

/// Of a batch in which items failed: 400, and the status that the client asked for.
fn failed_in_part(batch: &str) -> (Value, Value) {
    let results = enveloped(&schema(batch));
    (
        answer(
            "The request can't be met; or items of the batch failed, each with its `error`, and `partial_failure_response_code` asks for no other status.",
            &json!({ "oneOf": [schema("Errors"), results] }),
        ),
        answer(
            "A batch in which some items failed, with the status that `partial_failure_response_code` asks for.",
            &results,
        ),
    )
}

fn answer(description: &str, schema: &Value) -> Value {
    json!({
        "description": description,
        "content": { "application/json": { "schema": schema } },
    })
}

fn enveloped(data: &Value) -> Value {
    json!({ "allOf": [schema("Envelope"), { "properties": { "data": data } }] })
}

fn schema(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}
