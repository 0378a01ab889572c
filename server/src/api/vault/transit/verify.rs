//! `verify`: of HMACs (`mac.rs`) or of signatures (`sign.rs`), as the request says.

use super::batch::refuse_empty;
use super::{mac, sign};
use crate::api::pipeline::answer::Answer;
use crate::api::vault::body::Item;
use crate::api::vault::call::Call;
use crate::api::vault::error::ApiError;

/// `verify/:name[/:algorithm]`.
pub(in crate::api) async fn verify(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let signatures = match &call.params.batch {
        Some(items) => all_signatures(items)?,
        None => call.params.is_set("signature") && !call.params.is_set("hmac"),
    };
    if signatures {
        sign::verify(call)
    } else {
        mac::verify(call).await
    }
}

/// Every item a signature: true; every item an HMAC: false.
fn all_signatures(items: &[Item<'_>]) -> Result<bool, ApiError> {
    refuse_empty(items)?;
    let hmacs = items.iter().filter(|item| item.hmac.is_some()).count();
    let signatures = items.iter().filter(|item| item.signature.is_some()).count();
    let why = match (hmacs, signatures) {
        (0, 0) => "no batch_input elements have 'signature' or 'hmac'",
        (0, _) if signatures == items.len() => return Ok(true),
        (0, _) => "some elements of batch_input are missing 'signature'",
        (_, 0) if hmacs == items.len() => return Ok(false),
        (_, 0) => "some elements of batch_input are missing 'hmac'",
        _ => "elements of batch_input must all provide 'signature' or all provide 'hmac'",
    };
    Err(ApiError::bad_request(why))
}
