//! Decisions that wait to be written together, and what becomes of them.

use std::io;
use std::sync::Arc;

use tokio::sync::SetOnce;

use super::Entry;
use super::file::LogFile;
use super::line::Content;

/// What became of decisions that were written together; not set while they wait.
pub(super) type Outcome = Arc<SetOnce<Result<(), Arc<io::Error>>>>;

/// What waits.
pub(super) struct Queue {
    next: Batch,
    /// The room of the last batch, for the one after the next.
    spare: Option<Content>,
}

/// Decisions that are written together.
pub(super) struct Batch {
    decisions: Content,
    outcome: Outcome,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            next: Batch::new(Content::decisions()),
            spare: None,
        }
    }

    /// To be written with what is there already, and with what comes until it is taken. Returns also whether it is the first of these, which is to see to it.
    pub(super) fn put(&mut self, entry: &Entry<'_>) -> (Outcome, bool) {
        let first = self.next.decisions.is_empty();
        self.next.decisions.decide(entry);
        (Arc::clone(&self.next.outcome), first)
    }

    /// What waits, to be written before anything else is.
    pub(super) fn take(&mut self) -> Option<Batch> {
        if self.next.decisions.is_empty() {
            return None;
        }
        let room = self.spare.take().unwrap_or_else(Content::decisions);
        Some(std::mem::replace(&mut self.next, Batch::new(room)))
    }

    /// The room of a batch that was written.
    pub(super) fn give_back(&mut self, mut room: Content) {
        room.clear();
        self.spare = Some(room);
    }
}

impl Batch {
    fn new(decisions: Content) -> Self {
        Self {
            decisions,
            outcome: Outcome::default(),
        }
    }

    /// Writes them, tells those who wait what became of it, and returns the room they took.
    pub(super) fn write(self, log: &mut LogFile) -> Content {
        let first = self.outcome.set(log.write(&self.decisions)).is_ok();
        debug_assert!(first, "a batch is written once: writing takes it");
        self.decisions
    }
}
