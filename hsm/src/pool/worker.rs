//! A thread with a session: takes jobs from its connection's queue until the queue is closed.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::Sender;
use cryptoki::slot::Slot;

use super::connect::{look_again, open_another, unseen};
use super::job::{Answer, Job, Progress};
use super::queue::{Lane, Queue};
use super::{Event, Facts, ModuleCall, Shared};
use crate::error::HsmError;
use crate::fault::{Fault, Reach};
use crate::module::Library;
use crate::operations::Conn;
use crate::watched::Watch;

/// What a worker and its supervisor share.
#[derive(Default)]
pub(super) struct WorkerSlot {
    pub(super) watch: Arc<Watch>,
    current: Mutex<Work>,
}

/// What the worker does right now.
#[derive(Default)]
enum Work {
    /// It waits for a job.
    #[default]
    Idle,
    /// It opens its session.
    Opening,
    /// It works for this caller.
    Job(Arc<dyn Answer>),
    /// It makes a key pair for this caller.
    Generation {
        answer: Arc<dyn Answer>,
        /// Whether another worker has its place.
        replaced: bool,
    },
}

/// Whether a worker is one of those that take jobs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Kept,
    /// Another worker takes jobs in its place.
    Replaced,
    /// It was given up, its caller told, and another worker has its place.
    GivenUp,
}

impl WorkerSlot {
    /// A worker's slot, watched from before its first call on.
    pub(super) fn opening() -> Arc<Self> {
        Arc::new(Self {
            watch: Arc::default(),
            current: Mutex::new(Work::Opening),
        })
    }

    /// The slot of a worker whose session is open already.
    pub(super) fn of(watch: &Arc<Watch>) -> Arc<Self> {
        Arc::new(Self {
            watch: Arc::clone(watch),
            current: Mutex::new(Work::Opening),
        })
    }

    /// The calls so far, if the thread is in the middle of something.
    pub(super) fn busy(&self) -> Option<u64> {
        let current = self.current();
        (!matches!(*current, Work::Idle)).then(|| self.watch.calls())
    }

    /// Gives the thread up and tells its caller; says whether another has its place already.
    /// `None` if it has just finished.
    pub(super) fn abandon(&self, error: HsmError) -> Option<Place> {
        // The lock is the decision: either the worker has put its work down, or it finds itself
        // abandoned when it wants to.
        let mut current = self.current();
        let place = match std::mem::take(&mut *current) {
            Work::Idle => return None,
            Work::Opening => Place::Kept,
            Work::Job(answer) => {
                answer.refuse(error);
                Place::Kept
            }
            Work::Generation { answer, replaced } => {
                answer.refuse(error);
                if replaced {
                    Place::Replaced
                } else {
                    Place::Kept
                }
            }
        };
        self.watch.abandon();
        Some(place)
    }

    pub(super) fn is_generating(&self) -> bool {
        matches!(*self.current(), Work::Generation { .. })
    }

    /// Takes this one's place, unless its key pair is made by now.
    fn replace(&self) -> bool {
        match &mut *self.current() {
            Work::Generation { replaced, .. } => {
                *replaced = true;
                true
            }
            _ => false,
        }
    }

    fn begin(&self, job: &Job) {
        let answer = Arc::clone(&job.answer);
        *self.current() = match job.lane {
            Lane::Generation => Work::Generation {
                answer,
                replaced: false,
            },
            _ => Work::Job(answer),
        };
    }

    fn end(&self) -> Place {
        let work = std::mem::take(&mut *self.current());
        if self.watch.is_abandoned() {
            Place::GivenUp
        } else if matches!(work, Work::Generation { replaced: true, .. }) {
            Place::Replaced
        } else {
            Place::Kept
        }
    }

    fn current(&self) -> MutexGuard<'_, Work> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All that a worker needs.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) library: Arc<Library>,
    pub(super) slot: Slot,
    pub(super) facts: Arc<Facts>,
    pub(super) queue: Arc<Queue>,
    pub(super) events: Sender<Event>,
    pub(super) connection: u64,
    pub(super) state: Arc<WorkerSlot>,
    /// The worker that makes a key pair, if this one takes its place.
    pub(super) replaces: Option<Arc<WorkerSlot>>,
    /// Counted before the thread starts, so that nobody thinks the module empty in between.
    pub(super) inside: ModuleCall,
}

impl Worker {
    /// The thread's body. `conn`: a session that is open already.
    pub(super) fn run(mut self, conn: Option<Conn>) {
        let conn = match conn {
            Some(conn) => conn,
            None => match self.open() {
                Ok(conn) => conn,
                Err(fault) => {
                    if !self.state.watch.is_abandoned() {
                        self.could_not_open(fault);
                    }
                    self.state.end();
                    return;
                }
            },
        };
        if let Some(conn) = self.work(conn) {
            conn.watched.close();
        }
        // Until here the thread counted as inside the module.
        drop(self.inside);
    }

    /// The session, if it is still good at the end.
    fn work(&mut self, mut conn: Conn) -> Option<Conn> {
        if self.state.end() == Place::GivenUp {
            // It hung while opening and came back too late; another has its place.
            return Some(conn);
        }
        if self.replaces.take().is_some_and(|other| !other.replace()) {
            return Some(conn);
        }
        let mut forgotten = 0;
        let mut refreshes = self.shared.refreshes.load(Ordering::Acquire);
        while let Some(mut job) = self.queue.take() {
            let generates = job.lane == Lane::Generation;
            if !job.answer.is_wanted() {
                if generates {
                    self.queue.generated();
                }
                continue;
            }
            self.state.begin(&job);
            if generates {
                let _ = self.events.send(Event::Generating {
                    connection: self.connection,
                    worker: Arc::clone(&self.state),
                });
            }
            let (seen, ids) = self.shared.forgotten.since(forgotten);
            forgotten = seen;
            let asked = self.shared.refreshes.load(Ordering::Acquire);
            let outcome = conn
                .forget(&ids)
                .and_then(|()| {
                    if asked == refreshes {
                        Ok(())
                    } else {
                        refresh(&mut conn, &self.facts)
                    }
                })
                .or_else(|fault| self.reopen(&mut conn, &fault))
                .and_then(|()| self.attempt(&mut conn, &mut job));
            refreshes = asked;
            let place = self.state.end();
            if place == Place::GivenUp {
                // The caller has been told already.
                return outcome.is_ok().then_some(conn);
            }
            if generates {
                self.queue.generated();
            }
            match outcome {
                Ok(Progress::Done) => {}
                Ok(Progress::More) => self.queue.put_back(job),
                Err(fault) => {
                    self.give_up(&job, fault);
                    return None;
                }
            }
            if place == Place::Replaced {
                break;
            }
        }
        Some(conn)
    }

    /// Runs a job's turn; a session that was merely forgotten costs no failed job.
    fn attempt(&self, conn: &mut Conn, job: &mut Job) -> Result<Progress, Fault> {
        match job.run(conn) {
            Err(fault) if matches!(fault.reach(), Reach::Session | Reach::Object) => {
                self.reopen(conn, &fault)?;
                job.run(conn)
            }
            other => other,
        }
    }

    fn reopen(&self, conn: &mut Conn, fault: &Fault) -> Result<(), Fault> {
        tracing::info!(%fault, "a session with the HSM was lost; opening another");
        // The old session's handle may be somebody else's by now: it is not closed.
        *conn = self.open()?;
        Ok(())
    }

    fn open(&self) -> Result<Conn, Fault> {
        open_another(
            &self.shared,
            &self.library,
            self.slot,
            &self.facts,
            &self.state.watch,
        )
    }

    fn give_up(&self, job: &Job, fault: Fault) {
        let reason = fault.to_string();
        let event = match fault {
            Fault::Own(
                error @ (HsmError::Pin(_) | HsmError::Trial { .. } | HsmError::SelfTest(_)),
            ) => Event::Fatal(error),
            // Also a key that is not acceptable: the next connection looks at it again.
            _ => Event::Lost {
                connection: self.connection,
                reason: reason.clone(),
            },
        };
        // Before the caller is told, so that one who tries again at once finds the gate closed.
        self.shared.close_gate(self.connection, &reason);
        let _ = self.events.send(event);
        job.answer.refuse(HsmError::Unavailable(reason));
    }

    fn could_not_open(&self, fault: Fault) {
        let event = match fault {
            Fault::Own(error @ HsmError::Pin(_)) => Event::Fatal(error),
            // Looked at again by the next connection.
            Fault::Own(error @ HsmError::KeyPolicy { .. }) => Event::Lost {
                connection: self.connection,
                reason: error.to_string(),
            },
            fault if fault.reach() == Reach::Item => {
                // Too many sessions for the token, say. The others work.
                tracing::warn!(%fault, "an HSM session could not be opened; working with fewer");
                return;
            }
            fault => Event::Lost {
                connection: self.connection,
                reason: fault.to_string(),
            },
        };
        let _ = self.events.send(event);
    }
}

/// Takes over the keys that another session found. If they are not acceptable any more, the work
/// goes on with those of before, unless these are of another generation: then new KEKs would be
/// wrapped by a master key that is about to be destroyed.
fn refresh(conn: &mut Conn, facts: &Facts) -> Result<(), Fault> {
    let known = facts.generations();
    let found = look_again(|| match conn.follow(&known) {
        Ok(follows) => Ok(follows.then_some(())),
        Err(Fault::Own(error @ (HsmError::KeyPolicy { .. } | HsmError::Missing { .. }))) => {
            tracing::warn!(%error, "the keys on the token have changed");
            Ok(None)
        }
        Err(fault) => Err(fault),
    });
    if found?.is_some() || conn.wraps_as(&known) {
        Ok(())
    } else {
        Err(unseen())
    }
}
