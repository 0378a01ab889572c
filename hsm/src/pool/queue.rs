//! The jobs that wait, and whose turn is next.
//!
//! A job has the token for one [`Turn`]; what is not done by then waits again, behind the others of
//! its lane. Single operations and batches have a lane each, and workers take from them in turns:
//! so nobody's batches, however many and long, are more than one turn ahead of a single operation.
//! Key pairs are made one at a time, in one call that may take minutes: whoever makes one has
//! another worker in its place meanwhile.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Pool;
use super::job::Job;
use crate::error::HsmError;

/// How long a job has the token before others have theirs. The call that is under way then is
/// finished: PKCS#11 has no way to stop one.
const TURN: Duration = Duration::from_millis(5);

/// A job's time with the token.
#[derive(Clone, Copy)]
pub(crate) struct Turn(Instant);

impl Turn {
    pub(super) fn begin() -> Self {
        Self(Instant::now() + TURN)
    }

    pub(crate) fn is_over(self) -> bool {
        Instant::now() >= self.0
    }
}

/// Where a job waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lane {
    /// Before all others: the appliance asks whether the token still answers.
    Probe,
    /// A key pair is made.
    Generation,
    /// One operation, or a few.
    Single,
    /// Many items of one request.
    Batch,
}

/// The jobs of one connection. Each lane has as many places as are configured, so that no lane
/// fills another.
pub(super) struct Queue {
    places: usize,
    waiting: Mutex<Waiting>,
    more: Condvar,
}

struct Waiting {
    probes: VecDeque<Job>,
    generations: VecDeque<Job>,
    /// Whether a worker makes a key pair now.
    generating: bool,
    singles: VecDeque<Job>,
    batches: VecDeque<Job>,
    /// Of the two lanes the one that was served last.
    last: Lane,
    until: Until,
}

/// How long jobs are taken.
enum Until {
    Closed,
    /// No new ones; those that are there are finished.
    Emptied,
    /// None at all.
    Refused(HsmError),
}

/// The end of the queue at which callers put their jobs; when it is dropped, no more come.
pub(super) struct Entrance(Arc<Queue>);

impl Queue {
    /// With so many places in each lane.
    pub(super) fn new(places: usize) -> (Entrance, Arc<Self>) {
        let queue = Arc::new(Self {
            places,
            waiting: Mutex::new(Waiting {
                probes: VecDeque::new(),
                generations: VecDeque::new(),
                generating: false,
                singles: VecDeque::new(),
                batches: VecDeque::new(),
                last: Lane::Batch,
                until: Until::Closed,
            }),
            more: Condvar::new(),
        });
        (Entrance(Arc::clone(&queue)), queue)
    }

    /// The next job, waited for; `None` when there is none and none will come. One that makes a key
    /// pair is followed by [`Queue::generated`].
    pub(super) fn take(&self) -> Option<Job> {
        let mut waiting = self.waiting();
        loop {
            if let Some(job) = waiting.next() {
                return Some(job);
            }
            if !matches!(waiting.until, Until::Closed) && waiting.generations.is_empty() {
                return None;
            }
            waiting = self
                .more
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The key pair is made, or could not be: the next one may be.
    pub(super) fn generated(&self) {
        self.waiting().generating = false;
        self.more.notify_all();
    }

    /// A job whose turn is over waits for its next one. It had a place, so it has one now.
    pub(super) fn put_back(&self, job: Job) {
        let mut waiting = self.waiting();
        if let Until::Refused(error) = &waiting.until {
            let error = error.clone();
            drop(waiting);
            job.answer.refuse(error);
            return;
        }
        waiting.lane(job.lane).push_back(job);
        drop(waiting);
        self.more.notify_one();
    }

    /// Lets nothing in any more, and refuses whatever waits or wants to wait again.
    pub(super) fn refuse(&self, error: &HsmError) {
        let mut waiting = self.waiting();
        waiting.until = Until::Refused(error.clone());
        let mut jobs = std::mem::take(&mut waiting.generations);
        jobs.extend(std::iter::from_fn(|| waiting.next()));
        drop(waiting);
        self.more.notify_all();
        for job in jobs {
            job.answer.refuse(error.clone());
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entrance {
    pub(super) fn is_generating(&self) -> bool {
        self.0.waiting().generating
    }

    pub(super) fn put(&self, job: Job) -> Result<(), HsmError> {
        let queue = &self.0;
        let mut waiting = queue.waiting();
        match &waiting.until {
            Until::Closed => {}
            Until::Emptied => return Err(Pool::lost()),
            Until::Refused(error) => return Err(error.clone()),
        }
        let lane = waiting.lane(job.lane);
        if lane.len() >= queue.places {
            return Err(HsmError::Busy(queue.places));
        }
        lane.push_back(job);
        drop(waiting);
        queue.more.notify_one();
        Ok(())
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting();
        if matches!(waiting.until, Until::Closed) {
            waiting.until = Until::Emptied;
        }
        drop(waiting);
        self.0.more.notify_all();
    }
}

impl Waiting {
    fn lane(&mut self, lane: Lane) -> &mut VecDeque<Job> {
        match lane {
            Lane::Probe => &mut self.probes,
            Lane::Generation => &mut self.generations,
            Lane::Single => &mut self.singles,
            Lane::Batch => &mut self.batches,
        }
    }

    fn next(&mut self) -> Option<Job> {
        if let Some(job) = self.probes.pop_front() {
            return Some(job);
        }
        if !self.generating
            && let Some(job) = self.generations.pop_front()
        {
            self.generating = true;
            return Some(job);
        }
        let lanes = match self.last {
            Lane::Single => [Lane::Batch, Lane::Single],
            _ => [Lane::Single, Lane::Batch],
        };
        for lane in lanes {
            if let Some(job) = self.lane(lane).pop_front() {
                self.last = lane;
                return Some(job);
            }
        }
        None
    }
}
