//! What came of a batch's items, and how it is answered.

use serde::Serialize;

use super::ItemError;
use super::items::Item;
use crate::api::pipeline::answer::Answer;
use crate::api::vault::call::Call;
use crate::api::vault::envelope::{Envelope, Members};

/// What an item came to, as the answer has it.
#[derive(Serialize)]
pub(in crate::api::vault) struct Outcome<'a, T> {
    #[serde(flatten)]
    pub(in crate::api::vault) made: Option<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api::vault) error: Option<&'a str>,
    pub(in crate::api::vault) reference: &'a str,
}

impl<T: Serialize> Outcome<'_, T> {
    /// By serde.
    pub(in crate::api::vault) fn serialize_into(&self, envelope: &mut Envelope) {
        envelope.json(self);
    }
}

impl<T: Members> Outcome<'_, T> {
    /// By hand.
    pub(in crate::api::vault) fn write(&self, envelope: &mut Envelope) {
        envelope.raw("{");
        if let Some(made) = &self.made {
            made.write(envelope);
            envelope.raw(",");
        }
        if let Some(error) = self.error {
            envelope.raw("\"error\":");
            envelope.string(error);
            envelope.raw(",");
        }
        envelope.raw("\"reference\":");
        envelope.string(self.reference);
        envelope.raw("}");
    }
}

/// What came of each item, in the request's order.
pub(in crate::api::vault) struct Results<'p, R> {
    items: &'p [Item<'p>],
    each: Vec<Result<R, ItemError>>,
}

impl<'p, R> Results<'p, R> {
    pub(super) fn new(items: &'p [Item<'p>], each: Vec<Result<R, ItemError>>) -> Self {
        Self { items, each }
    }

    /// The version of the first that was made, 0 if none was.
    pub(in crate::api::vault) fn version(&self, of: impl Fn(&R) -> u32) -> u32 {
        self.each.iter().find_map(|r| r.as_ref().ok()).map_or(0, of)
    }

    /// 400 if all items failed, and what the client asked for if some did; the body is the same.
    pub(in crate::api::vault) fn status(&self, if_some: u16) -> u16 {
        match self.failed() {
            0 => 200,
            failed if failed == self.each.len() => 400,
            _ => if_some,
        }
    }

    /// `batch_results`, by serde: `made` of each result, for which there is `room`.
    pub(in crate::api::vault) fn answer<'r, T: Serialize>(
        &'r self,
        call: &mut Call<'_>,
        room: usize,
        made: impl Fn(&'r R) -> T,
        warnings: &[&str],
    ) -> Answer {
        let mut envelope = Envelope::open(call.id, self.room(|_| room));
        let made = |result: Option<&'r R>| result.map(&made);
        self.write(&mut envelope, made, Outcome::serialize_into);
        self.counted(call.close(envelope, warnings))
    }

    /// The same by hand; `made` also of what failed.
    pub(in crate::api::vault) fn answer_by_hand<'r, T: Members>(
        &'r self,
        call: &mut Call<'_>,
        room: impl Fn(&R) -> usize,
        made: impl Fn(Option<&'r R>) -> Option<T>,
    ) -> Answer {
        let mut envelope = Envelope::open(call.id, self.room(room));
        self.write(&mut envelope, made, Outcome::write);
        self.counted(call.close(envelope, &[]))
    }

    /// Of each item what was made, its error if there is one, and its reference.
    fn write<'r, T>(
        &'r self,
        envelope: &mut Envelope,
        made: impl Fn(Option<&'r R>) -> Option<T>,
        write: impl Fn(&Outcome<'r, T>, &mut Envelope),
    ) {
        envelope.raw("{\"batch_results\":[");
        for (at, (item, result)) in self.items.iter().zip(&self.each).enumerate() {
            envelope.raw(if at == 0 { "" } else { "," });
            let outcome = Outcome {
                made: made(result.as_ref().ok()),
                error: result.as_ref().err().map(AsRef::as_ref),
                reference: item.reference(),
            };
            write(&outcome, envelope);
        }
        envelope.raw("]}");
    }

    /// Bytes for all, with the references and their escapes.
    fn room(&self, made: impl Fn(&R) -> usize) -> usize {
        let results = self.each.iter().map(|result| match result {
            Ok(result) => made(result),
            Err(why) => 96 + why.len(),
        });
        let references = self.items.iter().map(|item| 6 * item.reference().len());
        results.chain(references).sum()
    }

    /// With what the audit log says of a batch.
    fn counted(&self, mut answer: Answer) -> Answer {
        answer.batch = self.each.len();
        answer.batch_failed = self.failed();
        answer
    }

    fn failed(&self) -> usize {
        self.each.iter().filter(|result| result.is_err()).count()
    }
}
