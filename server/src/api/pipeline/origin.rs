//! Where a browser sends a request from. An administrator's browser shows the client certificate to
//! whoever makes it send a request, so that a page from anywhere could rotate, sign or delete in
//! the administrator's name. This API is for programs; the only page is its own status page, which
//! sends nothing.
//!
//! A browser says where a request comes from, and no page can make it say something else:
//! `Sec-Fetch-Site` and its kin (Fetch Metadata), `Origin` (the Fetch standard), or at least
//! `Referer`. Programs send none of them.

use hyper::Method;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;

use strongroom_core::policy::Operation;

use super::error::Refusal;
use super::route::Route;

pub(super) static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
pub(super) static SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
pub(super) static SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

const CROSS_SITE_REFUSED: &str = "a browser sent this for a page of another site, so it is refused: only programs, and the appliance's own pages, may ask";
const FORM_REFUSED: &str =
    "a browser sent this as a form, so it is refused: the appliance has none";

/// What a browser says of a request.
#[derive(Clone, Copy, Default)]
pub(super) struct FetchMetadata<'h> {
    pub(super) site: Option<&'h HeaderValue>,
    pub(super) mode: Option<&'h HeaderValue>,
    pub(super) dest: Option<&'h HeaderValue>,
    pub(super) origin: Option<&'h HeaderValue>,
    pub(super) referer: Option<&'h HeaderValue>,
}

impl<'h> FetchMetadata<'h> {
    /// Of a request that leads nowhere: one header of each name counts.
    pub(super) fn of(headers: &'h HeaderMap) -> Self {
        Self {
            site: headers.get(&SEC_FETCH_SITE),
            mode: headers.get(&SEC_FETCH_MODE),
            dest: headers.get(&SEC_FETCH_DEST),
            origin: headers.get(header::ORIGIN),
            referer: headers.get(header::REFERER),
        }
    }

    /// Refuses what another site's page made a browser send, and every form.
    pub(super) fn check(self, head: &Parts, route: &Route) -> Result<(), Refusal> {
        if self.site.is_none()
            && self.mode.is_none()
            && self.origin.is_none()
            && self.referer.is_none()
        {
            return Ok(());
        }
        let read = matches!(head.method, Method::GET | Method::HEAD);
        let navigates = is(self.mode, b"navigate");
        if navigates && !read {
            return Err(Refusal::Browser(FORM_REFUSED));
        }
        // Somebody follows a link to the status page: it is shown to them alone, in no frame, and
        // changes nothing.
        let link = read
            && navigates
            && is(self.dest, b"document")
            && self.site.is_some()
            && self.origin.is_none()
            && route.operation == Some(Operation::StatusPage);
        if link || self.is_own(head) {
            Ok(())
        } else {
            Err(Refusal::Browser(CROSS_SITE_REFUSED))
        }
    }

    /// Everything that is said must agree. A `Referer` counts only for a browser that says no more.
    fn is_own(self, head: &Parts) -> bool {
        let authority = authority(head);
        let own = |value: &HeaderValue, url: bool| {
            authority.is_some_and(|asked| same_authority(value, asked, url))
        };
        match (self.site, self.origin, self.referer) {
            (Some(site), origin, _) => {
                matches!(site.as_bytes(), b"same-origin" | b"none")
                    && origin.is_none_or(|origin| own(origin, false))
            }
            (None, Some(origin), _) => own(origin, false),
            (None, None, Some(referer)) => own(referer, true),
            (None, None, None) => true,
        }
    }
}

fn is(value: Option<&HeaderValue>, wanted: &[u8]) -> bool {
    value.is_some_and(|value| value.as_bytes() == wanted)
}

/// What the client calls this server: `:authority` of HTTP/2, else `Host`.
fn authority(head: &Parts) -> Option<&[u8]> {
    let headers: &HeaderMap = &head.headers;
    match head.uri.authority() {
        Some(authority) => Some(authority.as_str().as_bytes()),
        None => headers.get(header::HOST).map(HeaderValue::as_bytes),
    }
}

/// Whether an origin, or a URL, is `https://` and this authority. Port 443 is the one that is left out.
fn same_authority(value: &HeaderValue, asked: &[u8], url: bool) -> bool {
    let Some(rest) = value.as_bytes().strip_prefix(b"https://") else {
        return false;
    };
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#'));
    let found = match end {
        Some(end) if url => rest.get(..end).unwrap_or_default(),
        Some(_) => return false,
        None => rest,
    };
    let short = |authority: &[u8]| {
        let port = authority.strip_suffix(b":443");
        port.unwrap_or(authority).to_ascii_lowercase()
    };
    !found.is_empty() && short(found) == short(asked)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::api::ui;
    use crate::api::vault::routes::TRANSIT;

    /// Whether a request with these headers is taken, for `keys/{name}/rotate` or the status page.
    fn taken(method: &str, page: bool, headers: &[(&str, &str)]) -> bool {
        let mut request = hyper::Request::builder()
            .method(method)
            .uri("/v1/x")
            .header("host", "Keys.example:8200");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        let said = FetchMetadata::of(&head.headers);
        let table = if page { ui::PAGES.table } else { TRANSIT };
        let path = if page { "ui/" } else { "keys/{name}/rotate" };
        let route = table.iter().find(|route| route.path == path).unwrap();
        said.check(&head, route).is_ok()
    }

    #[test]
    fn only_what_the_server_s_own_pages_and_programs_send_is_taken() {
        let own = "https://keys.example:8200";
        for (headers, expected) in [
            (&[][..], true),
            // Programs that send a little.
            (&[("sec-fetch-mode", "cors")], true),
            (&[("sec-fetch-site", "same-origin")], true),
            (&[("sec-fetch-site", "none")], true),
            (&[("sec-fetch-site", "same-origin"), ("origin", own)], true),
            (&[("origin", own)], true),
            (&[("origin", "https://KEYS.example:8200")], true),
            (&[("referer", "https://keys.example:8200/ui/")], true),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "same-site")], false),
            (&[("sec-fetch-site", "")], false),
            (&[("sec-fetch-site", "Same-Origin")], false),
            (
                &[("sec-fetch-site", "same-origin"), ("origin", "null")],
                false,
            ),
            (
                &[
                    ("sec-fetch-site", "none"),
                    ("origin", "https://evil.example"),
                ],
                false,
            ),
            (&[("sec-fetch-site", "cross-site"), ("origin", own)], false),
            (&[("origin", "null")], false),
            (&[("origin", "")], false),
            (&[("origin", "https://evil.example")], false),
            (&[("origin", "https://keys.example")], false),
            (&[("origin", "http://keys.example:8200")], false),
            (
                &[("origin", "https://keys.example:8200.evil.example")],
                false,
            ),
            (&[("origin", "https://keys.example:8200/")], false),
            (&[("origin", "https://evil@keys.example:8200")], false),
            (&[("origin", "chrome-extension://abc")], false),
            (&[("referer", "https://evil.example/")], false),
            (
                &[("referer", "https://keys.example:8200@evil.example/")],
                false,
            ),
            (&[("referer", "keys.example:8200")], false),
            (
                &[("origin", "https://evil.example"), ("upgrade", "websocket")],
                false,
            ),
            // A form, wherever it is from.
            (&[("sec-fetch-mode", "navigate")], false),
            (
                &[("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")],
                false,
            ),
            (
                &[
                    ("sec-fetch-site", "same-origin"),
                    ("sec-fetch-mode", "navigate"),
                    ("origin", own),
                ],
                false,
            ),
        ] {
            assert_eq!(taken("POST", false, headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn a_link_leads_to_the_status_page_and_nowhere_else() {
        let link = [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "document"),
            ("referer", "https://wiki.example/"),
        ];
        assert!(taken("GET", true, &link));
        assert!(!taken("GET", false, &link));
        assert!(!taken("POST", true, &link));
        for other in ["iframe", "image", "empty", "object", ""] {
            let mut framed = link;
            framed[2].1 = other;
            assert!(!taken("GET", true, &framed), "{other}");
        }
        assert!(!taken("GET", true, &link[..1]));
        assert!(!taken("GET", true, &[("referer", "https://wiki.example/")]));
        // Typed, or a bookmark.
        let typed = [("sec-fetch-site", "none"), link[1], link[2]];
        assert!(taken("GET", true, &typed) && taken("GET", false, &typed));
    }

    #[test]
    fn the_port_of_https_may_be_left_out() {
        for (origin, asked, same) in [
            ("https://a", "a", true),
            ("https://a:443", "a", true),
            ("https://a", "a:443", true),
            ("https://a", "a:8200", false),
            ("https://[::1]:8200", "[::1]:8200", true),
            ("https://", "", false),
        ] {
            let origin = HeaderValue::from_static(origin);
            assert_eq!(
                same_authority(&origin, asked.as_bytes(), false),
                same,
                "{origin:?}"
            );
        }
    }
}
