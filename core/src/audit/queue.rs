//! Lines that wait to be written together, and what becomes of them.

use std::io;
use std::sync::Arc;

use tokio::sync::SetOnce;

use super::Entry;
use super::file::{DelayedOutcome, LogFile};
use super::line::Content;

/// What became of lines that were written together: the number of the first, or why they could not
/// be. Not set while they wait.
pub(super) type Outcome = Arc<SetOnce<Result<u64, Arc<io::Error>>>>;

/// What waits.
pub(super) struct Queue {
    next: Batch,
    /// The room of the last batch, for the one after the next.
    spare: Option<Content>,
}

/// Lines that are written together.
pub(super) struct Batch {
    content: Content,
    /// So many.
    lines: u64,
    /// Places among them of those that begin a change.
    intents: Vec<u64>,
    /// Those that end one.
    outcomes: Vec<DelayedOutcome>,
    outcome: Outcome,
}

/// A line that waits.
pub(super) struct QueuedLine {
    pub(super) outcome: Outcome,
    /// Its place among those that are written together.
    pub(super) at: u64,
}

impl QueuedLine {
    /// Whether it is the first of these, which is to see to it.
    pub(super) fn is_first(&self) -> bool {
        self.at == 0
    }
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            next: Batch::new(Content::default()),
            spare: None,
        }
    }

    /// A decision, to be written with what is there already, and with what comes until it is taken.
    pub(super) fn put(&mut self, entry: &Entry<'_>) -> QueuedLine {
        if entry.intent > 0 {
            self.next.outcomes.push(DelayedOutcome::new(entry));
        }
        self.next.content.decide(entry);
        self.next.place()
    }

    /// A change that is about to begin, likewise.
    pub(super) fn intend(&mut self, entry: &Entry<'_>) -> QueuedLine {
        self.next.intents.push(self.next.lines);
        self.next.content.intend(entry);
        self.next.place()
    }

    /// How many changes that are about to begin wait.
    pub(super) fn intents(&self) -> usize {
        self.next.intents.len()
    }

    /// What waits, to be written before anything else is.
    pub(super) fn take(&mut self) -> Option<Batch> {
        if self.next.content.is_empty() {
            return None;
        }
        let room = self.spare.take().unwrap_or_default();
        Some(std::mem::replace(&mut self.next, Batch::new(room)))
    }

    /// The room of a batch that was written.
    pub(super) fn give_back(&mut self, mut room: Content) {
        room.clear();
        self.spare = Some(room);
    }
}

impl Batch {
    fn new(content: Content) -> Self {
        Self {
            content,
            lines: 0,
            intents: Vec::new(),
            outcomes: Vec::new(),
            outcome: Outcome::default(),
        }
    }

    fn place(&mut self) -> QueuedLine {
        self.lines += 1;
        QueuedLine {
            outcome: Arc::clone(&self.outcome),
            at: self.lines - 1,
        }
    }

    /// Writes them, tells those who wait what became of it, and returns the room they took.
    pub(super) fn write(self, log: &mut LogFile) -> Content {
        let result = log.write(&self.content);
        match &result {
            Ok(first) => {
                for at in self.intents {
                    log.begun(first + at);
                }
                for outcome in self.outcomes {
                    log.concluded(outcome.intent());
                }
            }
            Err(_) => log.keep(self.outcomes),
        }
        let first = self.outcome.set(result).is_ok();
        debug_assert!(first, "a batch is written once: writing takes it");
        self.content
    }
}
