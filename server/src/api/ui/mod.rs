//! `/ui/`: a status page for administrators. It can only be read: no script, no form, nothing from
//! elsewhere.

mod gather;
mod page;
mod time;
mod timeline;

use bytes::Bytes;

use super::Call;
use super::answer::Answer;
use crate::api::vault::error::ApiError;

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
