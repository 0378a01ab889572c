//! A job for the token and the way its answer takes back.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use crate::error::HsmError;
use crate::fault::{Fault, Reach};
use crate::operations::Conn;

/// One unit of work for a worker thread. It may run twice: after a session was lost in the middle.
pub(crate) struct Job {
    /// Where the answer goes; shared with the watchdog.
    pub(crate) answer: Arc<dyn Answer>,
    run: Run,
}

type Run = Box<dyn FnMut(&mut Conn) -> Result<(), Fault> + Send>;

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
    /// The job, and the caller's end of it.
    pub(crate) fn new<T: Send + 'static>(
        mut operation: impl FnMut(&mut Conn) -> Result<T, Fault> + Send + 'static,
    ) -> (Self, oneshot::Receiver<Result<T, HsmError>>) {
        let (sender, receiver) = oneshot::channel();
        let pending = Arc::new(Pending(Mutex::new(Some(sender))));
        let answer: Arc<dyn Answer> = Arc::<Pending<T>>::clone(&pending);
        let run = Box::new(move |conn: &mut Conn| {
            let result = match operation(conn) {
                Ok(value) => Ok(value),
                Err(fault) => match conn.settle(fault) {
                    fault if fault.reach() == Reach::Item => Err(fault.into_error()),
                    fault => return Err(fault),
                },
            };
            pending.send(result);
            Ok(())
        });
        (Self { answer, run }, receiver)
    }

    /// A job that answers through `answer`, as `run` does when all went well.
    pub(super) fn of(
        answer: Arc<dyn Answer>,
        run: impl FnMut(&mut Conn) -> Result<(), Fault> + Send + 'static,
    ) -> Self {
        Self {
            answer,
            run: Box::new(run),
        }
    }

    /// Runs it and answers. A fault that reaches beyond the job is returned, and the caller still
    /// waits.
    pub(crate) fn run(&mut self, conn: &mut Conn) -> Result<(), Fault> {
        (self.run)(conn)
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
