//! `verify`: of HMACs (`mac.rs`) or of signatures (`sign.rs`), as the request says.

use std::borrow::Cow;

use serde_json::json;

use super::algorithm::HASHES;
use super::batch::refuse_empty;
use super::{mac, sign};
use crate::api::pipeline::answer::Answer;
use crate::api::vault::batch::items::Item;
use crate::api::vault::call::Call;
use crate::api::vault::error::ApiError;
use crate::api::vault::request::{Base64, Batch, Described as _, Given, one_of, request};

request! {
    /// `verify/:name[/:algorithm]`: what is read of it depends on what is verified.
    Verify<'p> {
        /// The input, base64.
        pub(super) input: Base64<'p>,
        /// `vault:v<version>:<base64>`, as hmac gave it.
        pub(super) hmac: Option<Cow<'p, str>>,
        /// `vault:v<version>:…`, as sign gave it; instead of `hmac`.
        pub(super) signature: Option<Cow<'p, str>>,
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
        /// Refused unless empty: what signs is no derived key.
        pub(super) context: Given = Base64::schema(),
    }
    besides {
        batch_input: Batch,
    }
    item [input, hmac, signature, context]
    refused ["cmac", "mac_length"]
}

impl Verify<'_> {
    /// The HMAC, if there is one.
    pub(super) fn tag(&self) -> Option<&str> {
        self.hmac.as_deref().filter(|text| !text.is_empty())
    }

    /// The signature, if there is one.
    pub(super) fn made_signature(&self) -> Option<&str> {
        self.signature.as_deref().filter(|text| !text.is_empty())
    }
}

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
