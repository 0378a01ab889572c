//! Batches: many items in one request, each with a result of its own. `items` reads them as they
//! are sent. Here each becomes what the keyring is asked for, and gets what came of that;
//! `results` writes it.

pub(in crate::api) mod items;
pub(in crate::api::vault) mod results;

use std::borrow::Cow;

use strongroom_core::keyring::KeyringError;

use super::error::{ApiError, Doing, is_outage};
use super::words;
use items::{Item, Items};
pub(in crate::api::vault) use results::Results;

use super::value::Asked;

/// What the keyring answers: of each that it was asked for, or the error that stopped all.
type Answered<R> = Result<Vec<Result<R, KeyringError>>, KeyringError>;

/// An item's error, as text.
pub(in crate::api::vault) type ItemError = Cow<'static, str>;

/// The items of a batch, each with why it can't be carried out.
pub(in crate::api::vault) struct Batch<'p> {
    items: &'p [Item<'p>],
    /// `None`: the keyring's next result is its own.
    refused: Vec<Option<ItemError>>,
}

impl<'p> Batch<'p> {
    /// And what the keyring is asked for: of each item what it comes to, in the items' order.
    pub(in crate::api::vault) fn sort<T>(
        items: &'p Items<'p>,
        each: impl Iterator<Item = Result<T, ItemError>>,
    ) -> (Self, Vec<T>) {
        let mut good = Vec::with_capacity(items.len());
        let refused = each
            .map(|item| item.map(|item| good.push(item)).err())
            .collect();
        (Self { items, refused }, good)
    }

    /// What came of each item. A result that is an outage fails the whole request.
    pub(in crate::api::vault) fn results<R>(
        self,
        answered: Answered<R>,
        doing: Doing,
        name: &str,
    ) -> Result<Results<'p, R>, ApiError> {
        let answered = answered.map_err(|error| ApiError::from_keyring(error, doing, name))?;
        let mut results = answered.into_iter();
        let mut each = Vec::with_capacity(self.refused.len());
        for refused in self.refused {
            each.push(match refused {
                Some(why) => Err(why),
                None => match results.next() {
                    Some(Ok(result)) => Ok(result),
                    Some(Err(error)) if is_outage(&error) => {
                        return Err(ApiError::from_keyring(error, doing, name));
                    }
                    Some(Err(error)) => Err(words::of_item(&error)),
                    None => return Err(lost()),
                },
            });
        }
        Ok(Results::new(self.items, each))
    }
}

/// What a request asks for: one thing, or a batch.
pub(in crate::api::vault) enum Work<'p> {
    One,
    Many(Batch<'p>),
}

/// What came of that.
pub(in crate::api::vault) enum Done<'p, R> {
    One(R),
    Many(Results<'p, R>),
}

impl<'p> Work<'p> {
    /// And what the keyring is asked for: what `one` comes to, or `read` of each of the items.
    pub(in crate::api::vault) fn of<A: Asked<'p>, T>(
        items: Option<&'p Items<'p>>,
        one: impl FnOnce() -> Result<T, ItemError>,
        read: impl Fn(&A) -> Result<T, ItemError>,
    ) -> Result<(Self, Vec<T>), ApiError> {
        let Some(items) = items else {
            return Ok((Self::One, vec![one().map_err(ApiError::of_item)?]));
        };
        let each = items.read::<A>()?;
        let (batch, good) = Batch::sort(items, each.iter().map(read));
        Ok((Self::Many(batch), good))
    }

    /// As the keyring answers it.
    pub(in crate::api::vault) fn done<R>(
        self,
        answered: Answered<R>,
        doing: Doing,
        name: &str,
    ) -> Result<Done<'p, R>, ApiError> {
        match self {
            Self::One => only(answered, doing, name).map(Done::One),
            Self::Many(batch) => batch.results(answered, doing, name).map(Done::Many),
        }
    }
}

/// The only result of a request without a batch.
pub(in crate::api::vault) fn only<R>(
    answered: Answered<R>,
    doing: Doing,
    name: &str,
) -> Result<R, ApiError> {
    let answered = answered.and_then(|results| results.into_iter().next().transpose());
    match answered {
        Ok(Some(result)) => Ok(result),
        Ok(None) => Err(lost()),
        Err(error) => Err(ApiError::from_keyring(error, doing, name)),
    }
}

fn lost() -> ApiError {
    ApiError::unavailable("the keyring lost a result")
}

/// Refuses a batch in which only some items have a context. Answers whether they have.
pub(in crate::api::vault) fn same_contexts(
    mut given: impl Iterator<Item = bool>,
) -> Result<bool, ApiError> {
    let first = given.next().unwrap_or_default();
    if given.any(|given| given != first) {
        return Err(ApiError::bad_request(
            "context should be set either in all the request blocks or in none",
        ));
    }
    Ok(first)
}

/// Refuses a batch with an item that has no `name`, which is what is `done`.
pub(in crate::api::vault) fn none_missing(
    mut there: impl Iterator<Item = bool>,
    name: &str,
    done: &str,
) -> Result<(), ApiError> {
    match there.position(|there| !there) {
        None => Ok(()),
        Some(at) => Err(ApiError::bad_request(format!(
            "failed to parse batch input: '[{at}].{name}' missing {name} to {done}"
        ))
        .in_own_words()),
    }
}

/// What is to be answered if some items fail: `partial_failure_response_code`, else 400. Refused
/// whether or not one will.
pub(in crate::api::vault) fn partial_failure(wanted: Option<i64>) -> Result<u16, ApiError> {
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
