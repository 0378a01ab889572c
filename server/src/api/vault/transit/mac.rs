//! `hmac`, and `verify` of HMACs.

use std::borrow::Cow;

use super::algorithm::{HASHES, hash, invalid_hash, of_path_or_body};
use super::batch::{ItemError, Sorted, count, in_order, references, refuse_empty, write_batch};
use super::data::{Outcome, Tag, Valid, Versioned};
use super::unsupported::Refused;
use super::verify::Verify;
use super::{made_by, only, valid_answer};
use crate::api::pipeline::answer::Answer;
use crate::api::vault::call::Call;
use crate::api::vault::envelope::{Envelope, room};
use crate::api::vault::error::{ApiError, Doing};
use crate::api::vault::request::{Base64, Batch, one_of, request};
use crate::api::vault::wire::{self, WireError};
use strongroom_core::keyring::{HmacInput, HmacTag};

request! {
    /// `hmac/:name[/:algorithm]`. Here the hash is `algorithm`; who gives it the name that it has
    /// elsewhere means it.
    Hmac<'p> {
        /// The input, base64.
        input: Base64<'p>,
        /// Missing: sha2-256. The path wins.
        algorithm: Option<Cow<'p, str>> = one_of(HASHES),
        /// 0 or missing: the latest.
        key_version: Option<i64>,
    }
    besides {
        batch_input: Batch,
    }
    item [input] needs [input]
    refused ["hash_algorithm"]
}

/// `hmac/:name[/:algorithm]`.
pub(in crate::api) async fn hmac(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let items = call.params.batch.take();
    let asked = Hmac::read(&call.params)?;
    let (algorithm, replaced) = of_path_or_body(call.captures, asked.algorithm.as_deref())?;
    let version = made_by(
        asked.key_version,
        "key version does not exist (cannot be negative)",
    )?;
    let keyring = &call.app.keyring;
    let failed = |e| ApiError::from_keyring(e, Doing::Hmac, call.name);
    if let Some(items) = items {
        refuse_empty(&items)?;
        if replaced {
            call.params.replaced_by_path("algorithm");
        }
        let sorted = Sorted::sort(&items, |item| {
            hmac_input(item.input.as_deref().ok_or("missing input for HMAC")?)
        });
        let results = keyring
            .hmac(call.key()?, algorithm, version, sorted.good)
            .await;
        let results = in_order(
            sorted.places,
            results.map_err(failed)?,
            Doing::Hmac,
            call.name,
        )?;
        let bytes = results.len() * room(96) + references(&items);
        let mut envelope = Envelope::open(call.id, bytes);
        write_batch(
            &mut envelope,
            &items,
            &results,
            |made| made.map(tag_of),
            Outcome::serialize_into,
        );
        let mut answer = call.close(envelope, &[]);
        answer.key_version = results
            .iter()
            .find_map(|r| r.as_ref().ok())
            .map_or(0, |made| made.version);
        count(&mut answer, &results);
        return Ok(answer);
    }
    let input = asked
        .input
        .as_deref()
        .ok_or_else(|| ApiError::bad_request("missing input for HMAC"))?;
    let input = hmac_input(input).map_err(ApiError::of_item)?;
    if replaced {
        call.params.replaced_by_path("algorithm");
    }
    let results = keyring
        .hmac(call.key()?, algorithm, version, vec![input])
        .await;
    let made = only(results.map_err(failed)?, Doing::Hmac, call.name)?;
    let mut envelope = Envelope::open(call.id, room(made.tag.len()));
    envelope.json(&tag_of(&made));
    Ok(call.close(envelope, &[]).with_version(made.version))
}

/// `verify/:name[/:algorithm]` with `hmac`.
pub(super) async fn verify(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let items = call.params.batch.take();
    let asked = Verify::read(&call.params)?;
    let (algorithm, replaced) = hash(
        call.captures,
        asked.hash_algorithm.as_deref(),
        asked.algorithm.as_deref(),
    )?;
    let algorithm = algorithm.ok_or_else(|| invalid_hash("none"))?;
    refuse_for_hmac(&asked)?;
    let keyring = &call.app.keyring;
    let failed = |e| ApiError::from_keyring(e, Doing::VerifyHmac, call.name);
    if let Some(items) = items {
        if replaced {
            call.params.replaced_by_path("hash_algorithm");
        }
        let sorted = Sorted::sort(&items, |item| {
            let context = item.context.as_deref();
            Refused::Context.when(context.is_some_and(|c| !c.is_empty()))?;
            check(
                item.input.as_deref(),
                item.hmac.as_deref().unwrap_or_default(),
            )
        });
        let version = sorted.good.first().map_or(0, |(_, tag)| tag.version);
        let results = keyring
            .verify_hmac(call.key()?, algorithm, sorted.good)
            .await;
        let results = in_order(
            sorted.places,
            results.map_err(failed)?,
            Doing::VerifyHmac,
            call.name,
        )?;
        return Ok(valid_answer(call, &items, &results, &[]).with_version(version));
    }
    let tag = match (asked.tag(), asked.made_signature()) {
        (Some(_), Some(_)) => {
            return Err(ApiError::bad_request(
                "provide one of 'signature' or 'hmac'",
            ));
        }
        (None, _) => {
            return Err(ApiError::bad_request(
                "neither a 'signature' nor an 'hmac' were given to verify",
            ));
        }
        (Some(tag), None) => tag,
    };
    let item = check(asked.input.as_deref(), tag).map_err(ApiError::of_item)?;
    if replaced {
        call.params.replaced_by_path("hash_algorithm");
    }
    let version = item.1.version;
    let results = keyring
        .verify_hmac(call.key()?, algorithm, vec![item])
        .await;
    let valid = only(results.map_err(failed)?, Doing::VerifyHmac, call.name)?;
    Ok(call.answer(&Valid { valid }, &[]).with_version(version))
}

/// What is said of signatures, and would make an HMAC another one. Vault looks at none of it.
fn refuse_for_hmac(asked: &Verify<'_>) -> Result<(), ApiError> {
    Refused::Context.when(asked.context.0)?;
    Refused::Prehashed.when(asked.prehashed == Some(true))?;
    Ok(())
}

fn tag_of(made: &HmacTag) -> Tag<'_> {
    Tag {
        hmac: Versioned {
            version: made.version,
            bytes: &made.tag,
            url: false,
        },
    }
}

fn hmac_input(text: &str) -> Result<HmacInput, ItemError> {
    let input =
        wire::decode_base64(text).map_err(|e| format!("unable to decode input as base64: {e}"))?;
    Ok(HmacInput { input })
}

/// What to check. A missing input is not an empty one: what was sent under another name would be
/// judged unseen.
fn check(input: Option<&str>, tag: &str) -> Result<(HmacInput, HmacTag), ItemError> {
    let tag = wire::parse_hmac(tag).map_err(|error| -> ItemError {
        match error {
            WireError::NoPrefix => "invalid HMAC to verify: no prefix".into(),
            WireError::TooOld => {
                "cannot verify HMAC: version is too old (disallowed by policy)".into()
            }
            WireError::Base64(e) => {
                format!("unable to decode verification HMAC as base64: {e}").into()
            }
            error => format!("invalid HMAC: {error}").into(),
        }
    })?;
    Ok((hmac_input(input.ok_or("missing input")?)?, tag))
}
