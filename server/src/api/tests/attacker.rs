//! Whatever a client sends, the audit log keeps its promises: it verifies, its lines are bounded
//! and say nothing that stood in a body or a header, each request has its line or is counted, no
//! change is without a line that came before it, and a start goes on from it.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;
use std::{fs, io};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::stream;
use http_body_util::{Full, StreamBody};
use hyper::body::Frame;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};
use strongroom_core::audit::{Audit, Held};
use strongroom_core::keyring::KeyName;

use super::appliance::{Appliance, Who, named, run};
use crate::api::handle;
use crate::api::vault::routes::{self, SYSTEM, TRANSIT, Target, Verb};

/// What somebody's data is: it stands in bodies and headers, and never in the log.
const PRIVATE: &str = "4111111111111111";

/// The path of a route with whatever in its places.
fn path_of(route: usize) -> impl Strategy<Value = String> {
    let name = prop_oneof![
        4 => select(vec!["app-k", "new-key", "app-new", "gone"]).prop_map(str::to_owned),
        1 => "[ -~]{0,40}",
        1 => "(%[0-9a-f]{2}){1,60}",
        // More than a line takes, as it is or with its escapes.
        1 => (select(vec!["a", "%01", "%22", "%c3%a9"]), 100..3000_usize)
            .prop_map(|(piece, times)| piece.repeat(times)),
    ];
    prop::collection::vec(name, 3).prop_map(move |names| {
        let mut names = names.iter();
        let path = TRANSIT[route].path.split('/').map(|segment| {
            let captured = segment.starts_with('{').then(|| names.next()).flatten();
            captured.map_or(segment, String::as_str)
        });
        sendable(&format!("transit/{}", path.collect::<Vec<_>>().join("/")))
    })
}

/// What a request's line can hold at all.
fn sendable(path: &str) -> String {
    path.replace(
        ['?', '#', ' ', '"', '<', '>', '\\', '^', '`', '{', '|', '}'],
        "%7f",
    )
}

/// A path that exists, or nearly so, or nothing of the kind.
fn path() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => (0..TRANSIT.len()).prop_flat_map(path_of),
        1 => (0..SYSTEM.len()).prop_map(|route| sendable(SYSTEM[route].path)),
        1 => "[!-~]{0,60}".prop_map(|path| sendable(&path)),
    ]
}

/// A text that is long, or wants to get out of its member, or both.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        2 => any::<String>(),
        1 => Just(PRIVATE.to_owned()),
        2 => select(vec![
            "\u{1}",
            "\"}\n{\"type\":\"checkpoint\"",
            "\u{202e}",
            "vault:v1:",
            "c2VjcmV0",
            "aes256-gcm96",
        ])
        .prop_map(str::to_owned),
    ];
    (piece, prop_oneof![9 => Just(1), 1 => 1_usize..30_000])
        .prop_map(|(piece, times)| piece.repeat(times.min(200_000 / piece.len().max(1)).max(1)))
}

/// Members of these names, mostly, or something else.
fn body(names: Vec<&'static str>) -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![
        3 => text().prop_map(Value::from),
        2 => Just(Value::from(PRIVATE)),
        1 => any::<i64>().prop_map(Value::from),
        1 => Just(json!(4_111_111_111_111_111_i64)),
        1 => any::<bool>().prop_map(Value::from),
        1 => prop::collection::vec(text(), 0..3).prop_map(|texts| json!(texts)),
        1 => prop::collection::vec(("plaintext|ciphertext|input|context", text()), 0..3)
            .prop_map(|items| json!(items.into_iter().map(|(name, text)| json!({name: text})).collect::<Vec<_>>())),
    ];
    let name = prop_oneof![9 => select(names).prop_map(str::to_owned), 1 => text()];
    let json = prop::collection::vec((name, value), 0..5).prop_map(|members| {
        json!(members.into_iter().collect::<BTreeMap<_, _>>())
            .to_string()
            .into_bytes()
    });
    let valid = select(vec![
        "{}",
        "",
        "{\"plaintext\":\"c2VjcmV0\"}",
        "{\"deletion_allowed\":true}",
        "{\"type\":\"ecdsa-p256\"}",
    ])
    .prop_map(|body| body.as_bytes().to_vec());
    prop_oneof![5 => json, 5 => valid, 1 => prop::collection::vec(any::<u8>(), 0..300)]
}

fn headers() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let header = (
        select(vec![
            "content-type",
            "x-vault-token",
            "authorization",
            "x-vault-namespace",
            "x-vault-wrap-ttl",
            "x-vault-request",
            "if-none-match",
            "origin",
            "sec-fetch-site",
            "sec-fetch-mode",
        ]),
        prop_oneof![
            select(vec![
                "application/json",
                "application/x-www-form-urlencoded",
                "Bearer x",
                PRIVATE,
                "root",
                "1m",
                "bEARER  hvs.x",
                "cross-site",
            ])
            .prop_map(str::to_owned),
            "[!-~]{0,200}",
            // No ASCII, as some clients send it.
            "[é-ʯ]{1,40}",
        ],
    );
    prop::collection::vec(header, 0..3)
}

type Asked = (
    Who,
    &'static str,
    String,
    Vec<(&'static str, String)>,
    Vec<u8>,
);

/// What is asked rightly, so that something changes among all the rest.
fn change() -> impl Strategy<Value = Asked> {
    let right = select(vec![
        ("transit/keys/app-k/rotate", "{}"),
        ("transit/keys/app-new", "{}"),
        ("transit/encrypt/new-key", r#"{"plaintext":"c2VjcmV0"}"#),
        (
            "transit/keys/app-k/config",
            r#"{"min_decryption_version":1}"#,
        ),
    ]);
    right.prop_map(|(path, body)| {
        let body = body.as_bytes().to_vec();
        (Who::Operator, "POST", path.to_owned(), Vec::new(), body)
    })
}

fn request() -> impl Strategy<Value = Asked> {
    prop_oneof![4 => fitting(), 2 => any_request(), 1 => change()]
}

/// With a route's own method and parameters: what is wrong is in their values.
fn fitting() -> impl Strategy<Value = Asked> {
    (0..TRANSIT.len()).prop_flat_map(|at| {
        let route = &TRANSIT[at];
        let mut names = route.request.names.to_vec();
        // One that it does not know. `list` would make it another route.
        names.push("other");
        let query = (select(names.clone()), text()).prop_map(|(name, text)| {
            let text: String = text.chars().take(2000).collect();
            let mut query = form_urlencoded::Serializer::new(String::new());
            query.append_pair(name, &text).finish()
        });
        (who(), path_of(at), query, headers(), body(names)).prop_map(
            move |(who, path, query, headers, body)| match route.verb {
                Verb::Update => (who, "POST", path, headers, body),
                Verb::Delete => (who, "DELETE", path, headers, Vec::new()),
                Verb::List => (who, "LIST", format!("{path}?{query}"), headers, Vec::new()),
                Verb::Read | Verb::Head => {
                    (who, "GET", format!("{path}?{query}"), headers, Vec::new())
                }
            },
        )
    })
}

fn who() -> impl Strategy<Value = Who> {
    select(vec![Who::Operator, Who::App, Who::Stranger, Who::Expired])
}

fn any_request() -> impl Strategy<Value = Asked> {
    let all = TRANSIT.iter().flat_map(|route| route.request.names);
    (
        who(),
        select(vec![
            "GET",
            "POST",
            "POST",
            "POST",
            "DELETE",
            "LIST",
            "PUT",
            "HEAD",
            "PATCH",
            "OPTIONS",
            "GET\u{21}",
            "get",
        ]),
        path(),
        headers(),
        body(all.copied().collect()),
    )
}

/// How the body comes, and how long the client waits for the answer.
#[derive(Clone, Copy, Debug)]
struct Way {
    pieces: usize,
    /// It breaks off behind them.
    broken: bool,
    /// So often the server gets on with it before the client goes away.
    patience: Option<usize>,
}

fn way() -> impl Strategy<Value = Way> {
    let patience = prop_oneof![3 => Just(None), 1 => (1..12_usize).prop_map(Some)];
    let broken = prop_oneof![7 => Just(false), 1 => Just(true)];
    (1..5_usize, broken, patience).prop_map(|(pieces, broken, patience)| Way {
        pieces,
        broken,
        patience,
    })
}

type Pieces = StreamBody<stream::Iter<std::vec::IntoIter<io::Result<Frame<Bytes>>>>>;

fn in_pieces(body: &[u8], way: Way) -> Pieces {
    let size = body.len().div_ceil(way.pieces).max(1);
    let pieces = body.chunks(size).map(Bytes::copy_from_slice);
    let mut frames: Vec<_> = pieces.map(|piece| Ok(Frame::data(piece))).collect();
    frames.push(if way.broken {
        Err(io::Error::other("broken off"))
    } else {
        Ok(Frame::trailers(hyper::HeaderMap::new()))
    });
    StreamBody::new(stream::iter(frames))
}

/// The answer's status; `None` for a client that did not wait for it.
fn ask(a: &Appliance, who: Who, request: hyper::Request<Pieces>, way: Way) -> Option<u16> {
    let answer = run(async {
        let mut asked = pin!(handle(a.client(who), request));
        let Some(patience) = way.patience else {
            return Some(asked.await);
        };
        for _ in 0..patience {
            if let Some(answer) = asked.as_mut().now_or_never() {
                return Some(answer);
            }
            tokio::task::yield_now().await;
        }
        None
    });
    // What goes on without the client has its end too.
    for _ in 0..10_000 {
        if a.app.admission.in_flight() == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(a.app.admission.in_flight(), 0, "something goes on for ever");
    answer.map(|answer| answer.status().as_u16())
}

/// What the keys are: whatever a change can change.
fn keys(a: &Appliance) -> BTreeMap<KeyName, String> {
    let names = a.app.keyring.list().into_iter();
    names
        .map(|name| {
            let info = format!("{:?}", a.app.keyring.read(name.borrowed()));
            (name, info)
        })
        .collect()
}

fn lines(a: &Appliance) -> Vec<Value> {
    let text = fs::read_to_string(&a.app.config.audit.path).unwrap();
    assert!(
        text.bytes()
            .all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte))
    );
    assert!(
        text.lines().all(|line| line.len() < 8192),
        "a line is too long"
    );
    assert!(!text.contains(PRIVATE), "a client's data: {text}");
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 200, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn nothing_that_a_client_sends_breaks_the_log_or_changes_without_a_line(
        requests in prop::collection::vec((request(), way()), 1..24)
    ) {
        let a = Appliance::with(|config| config.upsert = true);
        if !a.app.keyring.exists(named("app-k")) {
            a.key("app-k", &Value::Null);
        }
        let mut counted = 0;
        for ((who, method, path, headers, body), way) in requests {
            let uri = format!("/v1/{path}");
            if uri.parse::<hyper::Uri>().is_err() {
                continue;
            }
            let (before, seen) = (keys(&a), lines(&a));
            let mut request = hyper::Request::builder().method(method).uri(uri);
            for (name, value) in &headers {
                request = request.header(*name, value);
            }
            let Ok(request) = request.body(in_pieces(&body, way)) else {
                continue;
            };
            let status = ask(&a, who, request, way);
            let now = lines(&a);
            prop_assert_eq!(&now[..seen.len()], &seen[..], "no line is changed");
            let new = &now[seen.len()..];
            let of = |kind: &str| new.iter().filter(|line| line["type"] == kind).collect::<Vec<_>>();
            let (intents, decisions) = (of("intent"), of("decision"));
            if keys(&a) != before {
                prop_assert_eq!(who, Who::Operator, "only the operator may change keys");
                prop_assert!(!intents.is_empty(), "a change without a line: {} {}", method, path);
            }
            for intent in &intents {
                let outcomes = decisions.iter().filter(|line| line["intent"] == intent["seq"]).count();
                prop_assert_eq!(outcomes, 1, "an outcome for each change");
            }
            if status.is_none_or(|status| matches!(status, 200 | 204) || status >= 400) {
                let audited = decisions.iter().any(|line| status.is_none_or(|status| line["status"] == status));
                let verb = routes::verb(&method.parse().unwrap(), false);
                let path = path.split('?').next().unwrap_or_default();
                let decoded = routes::decode_path(&format!("/v1/{path}")).map(std::borrow::Cow::into_owned);
                let route = verb.zip(decoded).and_then(|(verb, path)| {
                    match routes::resolve(&path, verb, &a.app.config.mounts) {
                        Target::Route(route, _) => Some(route.audited),
                        _ => None,
                    }
                });
                let refused = status.is_some_and(|status| status >= 400);
                prop_assert!(audited || route != Some(true) && !refused, "no line for {} {}: {:?}", method, path, status);
            }
            counted += decisions.len();
        }
        run(a.app.audit.close()).unwrap();
        let log = a.app.config.audit.path.clone();
        let found = Audit::verify(&[&log], &a.app.hsm.signing_public_key(), &Held::default()).unwrap();
        prop_assert!(found.problems.is_empty(), "{:?}", found.problems);
        prop_assert_eq!((found.unsigned_tail, found.open_intents), (0, 0));
        prop_assert!(found.lines >= counted as u64);
        // A restart goes on, and the token agrees.
        let options = a.app.config.audit.clone();
        let Appliance { app, site } = a;
        let hsm = app.hsm.clone();
        drop(app);
        let again = run(Audit::open(options, hsm)).unwrap();
        prop_assert_eq!(again.found().unsigned, 0);
        drop(site);
    }
}

/// Each parameter of each route, with what is no value of it: chance alone seldom finds the one
/// that an error repeats.
#[test]
fn no_parameter_brings_what_stands_in_it_into_the_log() {
    let mut asked = Vec::new();
    for route in TRANSIT.iter().filter(|route| route.verb == Verb::Update) {
        let path = route.path.split('/').map(|part| match part {
            "{name}" => "app-k",
            part if part.starts_with('{') => PRIVATE,
            part => part,
        });
        let path = format!("/v1/transit/{}", path.collect::<Vec<_>>().join("/"));
        for param in route.request.names {
            for value in [
                json!(PRIVATE),
                json!(PRIVATE.repeat(1000)),
                json!(4_111_111_111_111_111_i64),
                json!([PRIVATE, { PRIVATE: PRIVATE }]),
            ] {
                let mut body = json!({});
                if route.request.names.contains(&"input") {
                    body["input"] = "c2VjcmV0".into();
                }
                body[param] = value;
                asked.push((path.clone(), body.to_string()));
            }
        }
    }
    // Fewer than what is only counted.
    for asked in asked.chunks(90) {
        let a = Appliance::new();
        if !a.app.keyring.exists(named("app-k")) {
            a.key("app-k", &Value::Null);
        }
        for (path, body) in asked {
            let body = Full::new(Bytes::from(body.clone()));
            let request = hyper::Request::builder().method("POST").uri(path);
            run(handle(a.client(Who::Operator), request.body(body).unwrap()));
        }
        assert!(lines(&a).len() >= asked.len(), "each has its line");
    }
}

fn upsert(name: &str) -> hyper::Request<Full<Bytes>> {
    hyper::Request::builder()
        .method("POST")
        .uri(format!("/v1/transit/encrypt/{name}"))
        .body(Full::new(Bytes::from_static(
            br#"{"plaintext":"c2VjcmV0"}"#,
        )))
        .unwrap()
}

#[test]
fn a_key_that_is_made_for_a_client_that_is_gone_has_its_place_and_a_stop_waits_for_it() {
    let a = Appliance::with(|config| config.upsert = true);
    // With one thread, which is this one: what goes on without the client has not begun when it
    // goes away.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut asked = Box::pin(handle(a.client(Who::Operator), upsert("made-alone")));
        assert!(asked.as_mut().now_or_never().is_none());
        drop(asked);
        assert_eq!(
            a.app.admission.in_flight(),
            1,
            "it counts among those in flight"
        );
        assert_eq!(a.app.admission.close(), 1, "a stop waits for it");
        while a.app.admission.close() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(a.app.keyring.exists(named("made-alone")));
        let of = |kind: &str| {
            let lines = lines(&a).into_iter();
            lines
                .filter(|line| line["type"] == kind && line["operation"] == "create")
                .count()
        };
        assert_eq!((of("intent"), of("decision")), (1, 1));
        let late = handle(a.client(Who::Operator), upsert("made-late")).await;
        assert_eq!(late.status(), 503);
        assert!(!a.app.keyring.exists(named("made-late")));
    });
}

#[test]
fn changes_that_fail_again_and_again_do_not_fill_the_log() {
    let a = Appliance::new();
    let ask = || a.ask("POST", "transit/keys/no-such-key/rotate", &json!({}));
    let statuses: Vec<_> = (0..400).map(|_| ask().status).collect();
    let of = |status| statuses.iter().filter(|found| **found == status).count();
    // Should the machine be so slow that a window ends meanwhile, another one begins.
    assert!(of(503) >= 100 && of(400) + of(503) == 400, "{statuses:?}");
    let now = lines(&a);
    let intents = now.iter().filter(|line| line["type"] == "intent").count();
    assert_eq!(intents, of(400));
    // What is no change goes on.
    a.expect(200, "POST", "transit/random", &json!({"bytes": 8}));
}
