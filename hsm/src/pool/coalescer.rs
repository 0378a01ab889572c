//! Batches as jobs. Small ones that come together go to the token as one job: under load, handing a
//! job to another thread and back costs more than a short PKCS#11 call.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::Pool;
use super::job::{Answer, Job, Progress};
use super::queue::{Lane, Turn};
use crate::Batch;
use crate::error::HsmError;
use crate::fault::{Fault, Reach};
use crate::operations::Conn;

/// A batch of more items is a job of its own.
const MAX_COALESCED_ITEMS: usize = 8;
/// Callers in one job at most: those at its end wait for all before them.
const MAX_CALLERS_PER_JOB: usize = 64;

/// Adds to the results, from the first item that has none on, until all are there or the turn is
/// over.
type Operation<I, T> =
    fn(&mut Conn, &[I], &mut Vec<Result<T, HsmError>>, Turn) -> Result<(), Fault>;

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
        let (answer, receiver) = oneshot::channel();
        let lane = if items.len() > MAX_COALESCED_ITEMS {
            Lane::Batch
        } else {
            Lane::Single
        };
        let caller = Caller { items, answer };
        if lane == Lane::Batch || counted.alone() {
            pool.queue(self.job(lane, vec![caller]));
        } else {
            self.waiting().push(caller);
            tokio::task::yield_now().await;
            self.submit_those_who_wait(pool);
        }
        // No answer: the connection ended with the job still in its queue.
        receiver.await.unwrap_or_else(|_| Err(Pool::lost()))
    }

    fn submit_those_who_wait(&self, pool: &Pool) {
        // Whoever comes first submits for all.
        let mut callers = std::mem::take(&mut *self.waiting());
        let share = callers
            .len()
            .div_ceil(self.sessions)
            .clamp(1, MAX_CALLERS_PER_JOB);
        while !callers.is_empty() {
            let rest = callers.split_off(share.min(callers.len()));
            let together = std::mem::replace(&mut callers, rest);
            pool.queue(self.job(Lane::Single, together));
        }
    }

    fn job(&self, lane: Lane, callers: Vec<Caller<I, T>>) -> Job {
        let operation = self.operation;
        let (mut batches, senders): (VecDeque<_>, VecDeque<_>) = callers
            .into_iter()
            .map(|caller| (caller.items, caller.answer))
            .unzip();
        let all = Arc::new(All(Mutex::new(senders)));
        let answer: Arc<dyn Answer> = Arc::<All<T>>::clone(&all);
        let mut results = Vec::new();
        let run = move |conn: &mut Conn, turn: Turn| {
            while let Some(items) = batches.front() {
                results.reserve_exact(items.len() - results.len());
                let batch = match operation(conn, items, &mut results, turn) {
                    Ok(()) if results.len() < items.len() => return Ok(Progress::More),
                    Ok(()) => Ok(std::mem::take(&mut results)),
                    Err(fault) => match conn.settle(fault) {
                        fault if fault.reach() == Reach::Item => Err(fault.into_error()),
                        fault => return Err(fault),
                    },
                };
                results.clear();
                batches.pop_front();
                all.send_next(batch);
            }
            Ok(Progress::Done)
        };
        Job::of(lane, answer, run)
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Caller<I, T>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who of a job's callers still waits, in the order of their batches.
struct All<T>(Mutex<VecDeque<oneshot::Sender<Batch<T>>>>);

impl<T> All<T> {
    /// Answers the next one, unless all were refused meanwhile.
    fn send_next(&self, batch: Batch<T>) {
        if let Some(sender) = self.senders().pop_front() {
            // The caller may have gone away meanwhile.
            let _ = sender.send(batch);
        }
    }

    fn senders(&self) -> MutexGuard<'_, VecDeque<oneshot::Sender<Batch<T>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send> Answer for All<T> {
    fn refuse(&self, error: HsmError) {
        for sender in std::mem::take(&mut *self.senders()) {
            let _ = sender.send(Err(error.clone()));
        }
    }

    fn is_wanted(&self) -> bool {
        self.senders().iter().any(|sender| !sender.is_closed())
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
