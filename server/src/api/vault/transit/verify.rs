//! `verify`: of HMACs (`mac.rs`) or of signatures (`sign.rs`), as the request says.

use std::borrow::Cow;

use serde_json::json;

use super::algorithm::HASHES;
use super::data::Valid;
use super::{mac, sign};
use crate::api::pipeline::answer::Answer;
use crate::api::vault::batch::Done;
use crate::api::vault::call::Call;
use crate::api::vault::error::ApiError;
use crate::api::vault::request::{Base64, Described as _, Either, Given, one_of, request};

request! {
    /// `verify/:name[/:algorithm]`: what is read of it depends on what is verified.
    Verify<'p> {
        /// Missing: sha2-256. The path wins.
        pub(super) algorithm: Option<Cow<'p, str>> = one_of(HASHES),
        /// The hash, also of an HMAC: as `algorithm`, and the path wins. Both, if given, are the
        /// same.
        pub(super) hash_algorithm: Option<Cow<'p, str>> = json!({}),
        /// Of RSA signatures: as for `sign`. An HMAC has none.
        pub(super) signature_algorithm: Option<Cow<'p, str>> = json!({}),
        /// Of ECDSA signatures: as for `sign`. An HMAC has none.
        pub(super) marshaling_algorithm: Option<Cow<'p, str>> = json!({}),
        /// As for `sign`. With an HMAC it is refused unless false.
        pub(super) prehashed: Option<bool> = json!({}),
        /// Of RSA-PSS signatures: as for `sign`. An HMAC has none.
        pub(super) salt_length: Option<Cow<'p, str>> = json!({}),
    }
    item
    /// What is verified.
    ToVerify<'p> {
        /// The input, base64.
        pub(super) input: Base64<'p>,
        /// `vault:v<version>:<base64>`, as hmac gave it.
        pub(super) hmac: Either<'p>,
        /// `vault:v<version>:…`, as sign gave it; instead of `hmac`.
        pub(super) signature: Either<'p>,
        /// Refused unless empty: what signs is no derived key.
        pub(super) context: Given = Base64::schema(),
    }
    refused ["cmac", "mac_length"]
}

/// `verify/:name[/:algorithm]`.
pub(in crate::api) async fn verify(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let signatures = if let Some(items) = &call.params.batch {
        all_signatures(&items.read::<ToVerify<'_>>()?)?
    } else {
        let ToVerify {
            hmac, signature, ..
        } = Verify::read(&call.params)?.one;
        signature.is_set() && !hmac.is_set()
    };
    if signatures {
        sign::verify(call)
    } else {
        mac::verify(call).await
    }
}

/// Every item a signature: true; every item an HMAC: false.
fn all_signatures(items: &[ToVerify<'_>]) -> Result<bool, ApiError> {
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

/// Whether what was given is right.
pub(super) fn valid_answer(
    call: &mut Call<'_>,
    done: &Done<'_, bool>,
    warnings: &[&str],
) -> Answer {
    let valid = |&valid: &bool| Valid { valid };
    match done {
        Done::One(one) => call.answer(&valid(one), warnings),
        Done::Many(results) => results.answer(call, 160, valid, warnings),
    }
}
