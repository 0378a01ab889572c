//! Small batches that come together go to the token as one job: under load, handing a job to
//! another thread and back costs more than a short PKCS#11 call.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use super::Pool;
use super::job::{Answer, Job};
use crate::Batch;
use crate::error::HsmError;
use crate::fault::{Fault, Reach};
use crate::operations::Conn;

/// A batch of more items is a job of its own.
const MAX_COALESCED_ITEMS: usize = 8;
/// Callers in one job at most: those at its end wait for all before them.
const MAX_CALLERS_PER_JOB: usize = 64;

type Operation<I, T> = fn(&mut Conn, &[I]) -> Result<Vec<Result<T, HsmError>>, Fault>;

/// Where callers of one operation meet.
pub(crate) struct Coalescer<I, T> {
    operation: Operation<I, T>,
    /// Jobs that a crowd is shared out to: one for each session of the token.
    sessions: usize,
    callers: AtomicUsize,
    waiting: Mutex<Vec<Caller<I, T>>>,
}

struct Caller<I, T> {
    items: Vec<I>,
    answer: oneshot::Sender<Batch<T>>,
}

impl<I: Send + 'static, T: Send + 'static> Coalescer<I, T> {
    pub(crate) fn new(operation: Operation<I, T>, sessions: usize) -> Self {
        Self {
            operation,
            sessions: sessions.max(1),
            callers: AtomicUsize::new(0),
            waiting: Mutex::default(),
        }
    }

    /// As [`Pool::submit`]. With other callers about, those that are ready get their turn first.
    pub(crate) async fn submit(&self, pool: &Pool, items: Vec<I>) -> Batch<T> {
        let counted = Counted::new(&self.callers);
        if items.len() > MAX_COALESCED_ITEMS || counted.alone() {
            let operation = self.operation;
            return pool.submit(move |conn| operation(conn, &items)).await;
        }
        let (answer, receiver) = oneshot::channel();
        self.waiting().push(Caller { items, answer });
        tokio::task::yield_now().await;
        // Whoever comes first submits for all.
        let mut callers = std::mem::take(&mut *self.waiting());
        let share = callers
            .len()
            .div_ceil(self.sessions)
            .clamp(1, MAX_CALLERS_PER_JOB);
        while !callers.is_empty() {
            let rest = callers.split_off(share.min(callers.len()));
            pool.queue(self.job(std::mem::replace(&mut callers, rest)));
        }
        // No answer: the connection ended with the job still in its queue.
        receiver.await.unwrap_or_else(|_| Err(Pool::lost()))
    }

    fn job(&self, callers: Vec<Caller<I, T>>) -> Job {
        let operation = self.operation;
        let (batches, senders): (Vec<_>, Vec<_>) = callers
            .into_iter()
            .map(|caller| (caller.items, caller.answer))
            .unzip();
        let all = Arc::new(All(Mutex::new(senders)));
        let answer: Arc<dyn Answer> = Arc::<All<T>>::clone(&all);
        let run = move |conn: &mut Conn| {
            let mut results = Vec::with_capacity(batches.len());
            for items in &batches {
                results.push(match operation(conn, items) {
                    Ok(result) => Ok(result),
                    Err(fault) => match conn.settle(fault) {
                        fault if fault.reach() == Reach::Item => Err(fault.into_error()),
                        fault => return Err(fault),
                    },
                });
            }
            all.send(results);
            Ok(())
        };
        Job::of(answer, run)
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<Caller<I, T>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everyone who waits for a job; empty once they are answered.
struct All<T>(Mutex<Vec<oneshot::Sender<Batch<T>>>>);

impl<T> All<T> {
    fn send(&self, results: impl IntoIterator<Item = Batch<T>>) {
        let senders = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for (sender, result) in senders.into_iter().zip(results) {
            // The caller may have gone away meanwhile.
            let _ = sender.send(result);
        }
    }
}

impl<T: Send> Answer for All<T> {
    fn refuse(&self, error: HsmError) {
        self.send(std::iter::repeat_with(|| Err(error.clone())));
    }

    fn is_wanted(&self) -> bool {
        let senders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        senders.iter().any(|sender| !sender.is_closed())
    }
}

/// Counts a caller as long as it lives.
struct Counted<'a> {
    callers: &'a AtomicUsize,
    others: usize,
}

impl<'a> Counted<'a> {
    fn new(callers: &'a AtomicUsize) -> Self {
        let others = callers.fetch_add(1, Ordering::Relaxed);
        Self { callers, others }
    }

    fn alone(&self) -> bool {
        self.others == 0
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.callers.fetch_sub(1, Ordering::Relaxed);
    }
}
