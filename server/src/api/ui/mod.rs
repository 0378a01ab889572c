//! `/ui/`: a status page for administrators. It can only be read: no script, no form, nothing from
//! elsewhere.

mod gather;
mod page;
mod time;
mod timeline;

use bytes::Bytes;
use strongroom_core::policy::Operation;

use super::pages::Pages;
use super::pipeline::answer::Answer;
use super::pipeline::dialect::Claim;
use super::pipeline::error::ApiError;
use super::pipeline::route::Route;
use super::vault::call::Call;
use super::vault::request::Nothing;
use super::vault::routes::route;

/// The page and its style sheet.
pub(super) static PAGES: Pages = Pages {
    name: "the status page",
    claims: &[Claim::Path("/ui/"), Claim::Path("/ui/style.css")],
    table: ROUTES,
};

#[rustfmt::skip]
static ROUTES: &[Route] = &[
    route!(Read   "ui/",                          "status-page",       Some(Operation::StatusPage), Small, true,  false, Nothing, page),
    route!(Read   "ui/style.css",                 "status-page",       None,                       Small, false, false, Nothing, style),
];

/// `GET /ui/`.
pub(super) async fn page(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let html = page::render(&gather::gather(call.app)).into_string();
    Ok(Answer::raw(
        200,
        "text/html; charset=utf-8",
        Bytes::from(html),
    ))
}

/// `GET /ui/style.css`.
pub(super) async fn style(_: &mut Call<'_>) -> Result<Answer, ApiError> {
    let css = Bytes::from_static(include_bytes!("style.css"));
    Ok(Answer::raw(200, "text/css; charset=utf-8", css))
}
