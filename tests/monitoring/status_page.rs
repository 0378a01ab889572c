//! The status page.

use std::path::Path;

use bytes::Bytes;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::browser::Browser;
use super::support::{self, Appliance, Who, ask};

/// Half a year of an appliance's life.
async fn lived_in() -> Appliance {
    let mut appliance = Appliance::builder()
        .section("jwt", "keys = [\"tokens\"]\n")
        .prepare();
    let clock = appliance.clock();
    for days in [170, 110, 83, 52, 24, 0] {
        clock.set(-days * 24 * 60 * 60);
        appliance.launch().await;
        let operator = appliance.client(Who::Operator);
        for (key, options, born, rotated) in [
            (
                "app-orders",
                json!({ "auto_rotate_period": "720h" }),
                110,
                &[83, 52, 24][..],
            ),
            (
                "app-invoices",
                json!({ "auto_rotate_period": "1440h", "derived": true }),
                83,
                &[24],
            ),
            ("tokens", json!({ "type": "ecdsa-p256" }), 52, &[]),
            (
                "vault-unseal",
                json!({ "auto_rotate_period": "0" }),
                170,
                &[83],
            ),
        ] {
            if days == born {
                appliance.create_key(key, options).await;
            } else if rotated.contains(&days) {
                support::expect(
                    &operator,
                    "POST",
                    &format!("transit/keys/{key}/rotate"),
                    json!({}),
                    200,
                )
                .await;
            }
        }
        if days > 0 {
            appliance.stop();
        }
    }
    let operator = appliance.client(Who::Operator);
    for _ in 0..20 {
        support::encrypt(&operator, "app-orders", b"x").await;
    }
    ask(
        &appliance.client(Who::Stranger),
        "POST",
        "transit/encrypt/app-orders",
        json!({ "plaintext": "" }),
    )
    .await;
    ask(
        &appliance.client(Who::Vault),
        "DELETE",
        "transit/keys/vault-unseal",
        json!({}),
    )
    .await;
    appliance
}

/// Requests for a minute and a half, so that a picture of the page has a curve.
async fn work(appliance: &Appliance) {
    let operator = appliance.client(Who::Operator);
    for second in 0..90_u64 {
        for _ in 0..(4 + second % 23) {
            support::encrypt(&operator, "app-orders", b"x").await;
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_s_browser_shows_it_and_another_s_does_not() {
    let appliance = lived_in().await;
    let Some(browser) = Browser::new(&appliance, Some(Who::Operator)) else {
        return support::skip(
            "the status page",
            "Chromium, NSS's tools or OpenSSL are not on this machine",
        );
    };
    let url = format!("{}/ui/", Browser::origin(&appliance));
    let (page, console) = browser.document(&url);
    assert!(
        page.contains("All is well") || page.contains("Worth a look"),
        "{page}\n{console}"
    );
    for expected in [
        "app-orders",
        "vault-unseal",
        "aes256-gcm96",
        "in ",
        "by hand",
        "dns:stranger.test",
        "no policy rule allows it",
        "SoftHSM",
        "Certificate",
    ] {
        assert!(
            page.contains(expected),
            "{expected} is not on the page: {page}"
        );
    }
    // What the page's own policy forbids would be complained of here.
    assert!(
        !console.contains("Content Security Policy") && !console.contains("Refused to"),
        "{console}"
    );
    if let Some(to) = std::env::var_os("STRONGROOM_SCREENSHOT") {
        work(&appliance).await;
        browser.screenshot(&url, Path::new(&to));
    }
    drop(browser);

    let browser = Browser::new(&appliance, None).unwrap();
    let (page, _) = browser.document(&url);
    assert!(
        !page.contains("app-orders"),
        "shown without a certificate: {page}"
    );
    drop(browser);

    let browser = Browser::new(&appliance, Some(Who::Stranger)).unwrap();
    let (page, _) = browser.document(&url);
    assert!(
        page.contains("permission denied") && !page.contains("vault-unseal"),
        "{page}"
    );
}

/// A page on another origin does what a page can: requests without a preflight, forms, images. The
/// browser shows the administrator's certificate.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_site_can_make_an_administrator_s_browser_do_nothing() {
    let appliance = Appliance::start().await;
    let (operator, key) = (appliance.client(Who::Operator), "transit/keys/app-target");
    appliance.create_key("app-target", json!({})).await;
    let Some(browser) = Browser::new(&appliance, Some(Who::Operator)) else {
        return support::skip(
            "requests from other sites",
            "Chromium, NSS's tools or OpenSSL are not on this machine",
        );
    };
    let target = Browser::origin(&appliance);
    let page = format!(
        // First of all a connection with the certificate: a browser that is asked for it on many
        // at once drops requests.
        r#"<!doctype html><iframe name=f></iframe><iframe name=g></iframe><img src="/slow">
<form id=plain method=post enctype="text/plain" target=f action="{target}/v1/{key}/config"><input name='{{"deletion_allowed":true,"x":"' value='"}}'></form>
<form id=form method=post target=g action="{target}/v1/{key}/config"><input name=deletion_allowed value=true></form>
<script>
const credentials = "include", method = "POST", mode = "no-cors";
const ask = (path, body) => fetch("{target}/v1/" + path, {{ method, mode, credentials, body }});
const loaded = (element, start) => new Promise((then) => {{ element.onload = element.onerror = then; start(element); }});
const add = (tag, src) => loaded(document.createElement(tag), (made) => {{ made.src = "{target}" + src; document.body.append(made); }});
const submit = (id, frame) => loaded(document.getElementsByName(frame)[0], () => document.getElementById(id).submit());
const all = [
  () => add("img", "/v1/{key}"), () => add("img", "/.well-known/jwks.json"), () => add("iframe", "/ui/"),
  () => ask("{key}/rotate"), () => ask("{key}/config", '{{"deletion_allowed":true}}'),
  () => ask("transit/encrypt/app-target", new URLSearchParams({{ plaintext: "YQ==" }})),
  () => fetch("{target}/v1/{key}", {{ method: "DELETE", credentials }}),
  () => fetch("{target}/v1/{key}/rotate", {{ method, credentials }}),
  () => submit("plain", "f"), () => submit("form", "g"),
  async () => navigator.sendBeacon("{target}/v1/{key}/trim", "{{}}"),
  // Behind the beacon, which tells nobody when it was sent.
  () => ask("transit/encrypt/app-target"), () => new Promise((then) => setTimeout(then, 1000)),
];
(async () => {{
  while (!await fetch("{target}/.well-known/jwks.json", {{ mode, credentials }}).catch(() => false));
  for (const one of all) await one().catch(() => {{}});
  document.title = "asked";
  fetch("/done");
}})();
</script>"#
    );
    let evil = Elsewhere::start(page).await;
    let (document, console) = browser.document(&evil.url);
    assert!(
        document.contains("<title>asked</title>"),
        "{document}\n{console}"
    );

    let lines = std::fs::read_to_string(appliance.audit()).unwrap();
    let lines: Vec<serde_json::Value> = lines
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let of = |operation: &str| {
        lines
            .iter()
            .filter(|line| {
                line["operation"] == operation
                    && line["reason"].to_string().contains("a browser sent this")
            })
            .inspect(|line| {
                assert_eq!(
                    (&line["outcome"], &line["identity"]),
                    (&json!("denied"), &json!("dns:operator.test"))
                );
            })
            .count()
    };
    // They came, with the administrator's certificate.
    for (operation, least) in [
        ("rotate", 2),
        ("configure", 3),
        ("encrypt", 1),
        ("trim", 1),
        ("read", 1),
        ("status-page", 1),
    ] {
        assert!(of(operation) >= least, "{operation}: {lines:#?}\n{console}");
    }
    let read = support::expect(&operator, "GET", key, json!(null), 200).await;
    assert_eq!(
        (
            &read["data"]["latest_version"],
            &read["data"]["deletion_allowed"]
        ),
        (&json!(1), &json!(false))
    );

    // The page itself is taken to the status page by its user's click, and shows it.
    let link = format!(
        "<!doctype html><a id=a href=\"{target}/ui/\">status</a><script>document.getElementById('a').click()</script>"
    );
    let evil = Elsewhere::start(link).await;
    let (document, console) = browser.document(&evil.url);
    assert!(
        document.contains("Certificate") || document.contains("status"),
        "{document}\n{console}"
    );

    // The control: a program may.
    support::expect(&operator, "POST", &format!("{key}/rotate"), json!({}), 200).await;
}

/// A web server on an origin of its own, with one page. `/slow` keeps the page loading until it
/// asks for `/done`, its requests being through.
struct Elsewhere {
    url: String,
    serving: tokio::task::JoinHandle<()>,
}

impl Elsewhere {
    async fn start(page: String) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let page = std::sync::Arc::new((page, tokio::sync::Notify::new()));
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, std::sync::Arc::clone(&page)));
            }
        });
        Self { url, serving }
    }
}

async fn serve(
    mut stream: tokio::net::TcpStream,
    page: std::sync::Arc<(String, tokio::sync::Notify)>,
) {
    let (page, done) = &*page;
    let mut head = vec![0; 16 * 1024];
    let Ok(read) = stream.read(&mut head).await else {
        return;
    };
    let asked = |path: &[u8]| head[..read].starts_with(&[b"GET ", path, b" "].concat());
    let body = if asked(b"/slow") {
        // The browser gives up after 20 seconds.
        let patience = std::time::Duration::from_secs(18);
        let _ = tokio::time::timeout(patience, done.notified()).await;
        ""
    } else if asked(b"/done") {
        done.notify_one();
        ""
    } else {
        page.as_str()
    };
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(answer.as_bytes()).await;
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_has_no_script_and_its_headers_forbid_any() {
    let appliance = lived_in().await;
    let operator = appliance.client(Who::Operator);
    let answer = operator.send("GET", "/ui/", Bytes::new()).await.unwrap();
    assert_eq!(answer.status, 200);
    let page = String::from_utf8(answer.bytes().to_vec()).unwrap();
    assert!(
        !page.contains("<script")
            && !page.contains("style=")
            && !page.contains("http:")
            && !page.contains("https:"),
        "{page}"
    );
    let policy = answer.headers["content-security-policy"].to_str().unwrap();
    for directive in [
        "default-src 'none'",
        "style-src 'self'",
        "frame-ancestors 'none'",
        "form-action 'none'",
    ] {
        assert!(policy.contains(directive), "{policy}");
    }
    assert_eq!(answer.headers["cache-control"], "no-store");
    assert_eq!(answer.headers["x-content-type-options"], "nosniff");

    for who in [Who::Vault, Who::App, Who::Stranger] {
        let answer = appliance
            .client(who)
            .send("GET", "/ui/", Bytes::new())
            .await
            .unwrap();
        assert_eq!(answer.status, 403, "{who:?}");
    }
    let answer = operator.send("POST", "/ui/", Bytes::new()).await.unwrap();
    assert_eq!(answer.status, 405);
}
