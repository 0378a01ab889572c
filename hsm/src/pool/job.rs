//! A job for the token and the way its answer takes back.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use super::queue::{Lane, Turn};
use crate::error::HsmError;
use crate::fault::{Fault, Reach};
use crate::operations::Conn;

/// One unit of work for worker threads, done in one turn or in several. A turn may run twice: after
/// a session was lost in the middle.
pub(crate) struct Job {
    pub(super) lane: Lane,
    /// Where the answer goes; shared with the watchdog.
    pub(crate) answer: Arc<dyn Answer>,
    run: Run,
}

type Run = Box<dyn FnMut(&mut Conn, Turn) -> Result<Progress, Fault> + Send>;

/// How far a job has come in its turn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It was answered.
    Done,
    /// It needs another turn.
    More,
}

/// A caller who waits. Whoever answers first is heard: a result that comes after the watchdog's
/// error is dropped.
pub(crate) trait Answer: Send + Sync {
    /// Answers with an error, unless an answer was given before.
    fn refuse(&self, error: HsmError);
    /// Whether anybody still waits.
    fn is_wanted(&self) -> bool;
}

struct Pending<T>(Mutex<Option<oneshot::Sender<Result<T, HsmError>>>>);

impl Job {
    /// A job that is done in one turn, and the caller's end of it.
    pub(super) fn new<T: Send + 'static>(
        lane: Lane,
        mut operation: impl FnMut(&mut Conn) -> Result<T, Fault> + Send + 'static,
    ) -> (Self, oneshot::Receiver<Result<T, HsmError>>) {
        let (sender, receiver) = oneshot::channel();
        let pending = Arc::new(Pending(Mutex::new(Some(sender))));
        let answer: Arc<dyn Answer> = Arc::<Pending<T>>::clone(&pending);
        let run = Box::new(move |conn: &mut Conn, _: Turn| {
            let result = match operation(conn) {
                Ok(value) => Ok(value),
                Err(fault) => match conn.settle(fault) {
                    fault if fault.reach() == Reach::Item => Err(fault.into_error()),
                    fault => return Err(fault),
                },
            };
            pending.send(result);
            Ok(Progress::Done)
        });
        (Self { lane, answer, run }, receiver)
    }

    /// A job that answers through `answer`, as `run` does when all went well.
    pub(super) fn of(
        lane: Lane,
        answer: Arc<dyn Answer>,
        run: impl FnMut(&mut Conn, Turn) -> Result<Progress, Fault> + Send + 'static,
    ) -> Self {
        Self {
            lane,
            answer,
            run: Box::new(run),
        }
    }

    /// Runs it for a turn, and answers when it is done. A fault that reaches beyond the job is
    /// returned, and the caller still waits.
    pub(crate) fn run(&mut self, conn: &mut Conn) -> Result<Progress, Fault> {
        (self.run)(conn, Turn::begin())
    }
}

impl<T> Pending<T> {
    fn send(&self, result: Result<T, HsmError>) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender {
            // The caller may have gone away meanwhile.
            let _ = sender.send(result);
        }
    }
}

impl<T: Send> Answer for Pending<T> {
    fn refuse(&self, error: HsmError) {
        self.send(Err(error));
    }

    fn is_wanted(&self) -> bool {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sender.as_ref().is_some_and(|sender| !sender.is_closed())
    }
}
