//! Batches: many items in one request, each with a result of its own.

use std::borrow::Cow;

use strongroom_core::keyring::KeyringError;

use crate::api::pipeline::answer::Answer;
use crate::api::vault::batch::items::Item;
use crate::api::vault::envelope::Envelope;
use crate::api::vault::error::{ApiError, Doing, is_outage};
use crate::api::vault::words;

use super::data::Outcome;

/// An item's error, as text.
pub(super) type ItemError = Cow<'static, str>;

/// The items of one request: those that can be carried out, and why the others can't, in the
/// request's order.
pub(super) struct Sorted<T> {
    pub(super) good: Vec<T>,
    /// `None`: the next of `good`.
    pub(super) places: Vec<Option<ItemError>>,
}

impl<T> Sorted<T> {
    pub(super) fn sort<'a, 'b: 'a>(
        items: &'a [Item<'b>],
        read: impl Fn(&'a Item<'b>) -> Result<T, ItemError>,
    ) -> Self {
        let mut good = Vec::with_capacity(items.len());
        let places = items
            .iter()
            .map(|item| match read(item) {
                Ok(item) => {
                    good.push(item);
                    None
                }
                Err(why) => Some(why),
            })
            .collect();
        Self { good, places }
    }
}

/// Puts the keyring's results back in their places. A result that is an outage fails the whole
/// request.
pub(super) fn in_order<R>(
    places: Vec<Option<ItemError>>,
    results: Vec<Result<R, KeyringError>>,
    doing: Doing,
    name: &str,
) -> Result<Vec<Result<R, ItemError>>, ApiError> {
    let mut results = results.into_iter();
    let mut ordered = Vec::with_capacity(places.len());
    for place in places {
        ordered.push(match place {
            Some(why) => Err(why),
            None => match results.next() {
                Some(Ok(result)) => Ok(result),
                Some(Err(error)) if is_outage(&error) => {
                    return Err(ApiError::from_keyring(error, doing, name));
                }
                Some(Err(error)) => Err(words::of_item(&error)),
                None => return Err(ApiError::unavailable("the keyring lost a result")),
            },
        });
    }
    Ok(ordered)
}

pub(super) fn refuse_empty(items: &[Item<'_>]) -> Result<(), ApiError> {
    if items.is_empty() {
        return Err(ApiError::bad_request("missing batch input to process"));
    }
    Ok(())
}

/// `batch_results`: of each item what was made, its error if there is one, and its reference.
pub(super) fn write_batch<'r, R, T>(
    envelope: &mut Envelope,
    items: &'r [Item<'_>],
    results: &'r [Result<R, ItemError>],
    made: impl Fn(Option<&'r R>) -> Option<T>,
    write: impl Fn(&Outcome<'r, T>, &mut Envelope),
) {
    envelope.raw("{\"batch_results\":[");
    for (at, (item, result)) in items.iter().zip(results).enumerate() {
        envelope.raw(if at == 0 { "" } else { "," });
        let outcome = Outcome {
            made: made(result.as_ref().ok()),
            error: result.as_ref().err().map(AsRef::as_ref),
            reference: item.reference.as_deref().unwrap_or_default(),
        };
        write(&outcome, envelope);
    }
    envelope.raw("]}");
}

/// Room for the references, escapes included.
pub(super) fn references(items: &[Item<'_>]) -> usize {
    items
        .iter()
        .map(|item| item.reference.as_deref().map_or(0, |r| 6 * r.len()))
        .sum()
}

/// What the audit log says of a batch.
pub(super) fn count<R>(answer: &mut Answer, results: &[Result<R, ItemError>]) {
    answer.batch = results.len();
    answer.batch_failed = results.iter().filter(|r| r.is_err()).count();
}

/// What is to be answered if some items fail: `partial_failure_response_code`, else 400. Refused
/// whether or not one will.
pub(super) fn partial_failure(wanted: Option<i64>) -> Result<u16, ApiError> {
    match wanted.unwrap_or(0).try_into() {
        Ok(0) => Ok(400),
        // HTTP gives 1xx, 204, 205 and 304 no body, so the results could not be told.
        Ok(code @ 200..=599) if !matches!(code, 204 | 205 | 304) => Ok(code),
        _ => Err(ApiError::bad_request(
            "partial_failure_response_code is a status from 200 to 599, and none of 204, 205 and 304, which have no body",
        )
        .in_own_words()),
    }
}

/// 400 if all items failed, and what the client asked for if some did; the body is the same.
pub(super) fn batch_status<R>(if_some: u16, results: &[Result<R, ItemError>]) -> u16 {
    match results.iter().filter(|r| r.is_err()).count() {
        0 => 200,
        failed if failed == results.len() => 400,
        _ => if_some,
    }
}
