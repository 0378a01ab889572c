//! The status page.

use std::path::Path;

use bytes::Bytes;
use serde_json::json;

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
