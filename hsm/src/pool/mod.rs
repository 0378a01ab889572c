//! The threads behind [`crate::Hsm`]: workers, each with a session, and a supervisor who watches
//! them and brings the token back.
//!
//! ```text
//!                        ┌────── not done in its turn ─────┐
//!                        ▼                                 │
//! caller ──put──▶ bounded queue ──▶ worker 1..N ──▶ PKCS#11 ┘
//!    ▲                                   │ loss of the token
//!    └───────── oneshot answer ◀─────────┤
//!                                   supervisor: closes the gate, reconnects, opens it
//! ```
//!
//! Each connection has a queue and workers of its own. When the token is lost the queue is closed,
//! so workers end by themselves, and callers are refused at once; a new connection gets a new queue
//! and new workers. When the module is to be started again the new queue comes first: the old
//! workers empty theirs and end, and callers wait in the new one.

mod coalescer;
mod connect;
mod job;
mod queue;
mod supervisor;
mod worker;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Sender;
use tokio::sync::oneshot;

use crate::config::HsmConfig;
use crate::error::HsmError;
use crate::fault::Fault;
use crate::keys::generation;
use crate::operations::Conn;
use crate::register::KnownRegisters;
use crate::selector::TokenFilter;
use crate::selftest::Abilities;
use crate::types::{HsmState, MasterGeneration, TokenIdentity};
use crate::watched::Access;

pub(crate) use coalescer::Coalescer;
pub(crate) use queue::Turn;

use job::Job;
use queue::{Entrance, Lane};

/// What a connection learned about the token, for callers.
pub(crate) struct Facts {
    pub(crate) token: TokenIdentity,
    pub(crate) abilities: Arc<Abilities>,
    pub(crate) signing_public_key: Vec<u8>,
    pub(crate) wrapping_public_key: Vec<u8>,
    /// The generations of the master key when they were last looked at.
    generations: Mutex<Vec<MasterGeneration>>,
}

impl Facts {
    pub(crate) fn generations(&self) -> Vec<MasterGeneration> {
        let known = self.generations.lock();
        known.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes what a session has found.
    fn learn(&self, found: Vec<MasterGeneration>) -> Result<(), HsmError> {
        self.recognize(&found)?;
        if let Some(missing) = generation::no_more_in_force(&found, &self.generations()) {
            return Err(missing);
        }
        *self
            .generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = found;
        Ok(())
    }

    /// A token that comes back with no master key that was there before is not the one that left.
    fn recognize(&self, found: &[MasterGeneration]) -> Result<(), HsmError> {
        let known = self.generations();
        let same = found
            .iter()
            .any(|one| known.iter().any(|other| one.master == other.master));
        if !same {
            return Err(HsmError::KeyPolicy {
                key: "master key".to_owned(),
                attribute: "CKA_MODULUS".to_owned(),
                problem: "is not the one that was there at start".to_owned(),
            });
        }
        Ok(())
    }
}

/// The running pool; dropping it stops the threads and leaves the token.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    facts: Arc<Facts>,
    events: Sender<Event>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
}

/// What all threads of a pool share.
struct Shared {
    config: HsmConfig,
    wanted: TokenFilter,
    access: Access,
    registers: Arc<KnownRegisters>,
    gate: RwLock<JobQueue>,
    /// Threads that may be inside the module: workers, a connection attempt, hung ones.
    inside: AtomicUsize,
    forgotten: Forgotten,
    /// How often workers were told to look for the keys again.
    refreshes: AtomicUsize,
}

/// Whether jobs are let in.
enum JobQueue {
    Open { entrance: Entrance, connection: u64 },
    Closed(HsmState),
}

/// What the supervisor is told.
enum Event {
    /// A worker lost the token.
    Lost { connection: u64, reason: String },
    /// A worker makes a key pair: another is to have its place meanwhile.
    Generating {
        connection: u64,
        worker: Arc<worker::WorkerSlot>,
    },
    /// The PIN was refused, or the token gives what it must refuse: never again.
    Fatal(HsmError),
    /// An attempt to connect ended.
    Attempt {
        number: u64,
        result: Result<Box<connect::Connected>, Fault>,
    },
    /// The module is to be started again; `begun` is told when whatever is queued from then on
    /// comes after that.
    Restart { begun: oneshot::Sender<()> },
    /// The last handle was dropped.
    Stop,
}

impl Pool {
    pub(crate) fn start(config: HsmConfig) -> Result<Self, HsmError> {
        if !(1..=64).contains(&config.sessions) || config.queue == 0 || config.session_keys == 0 {
            return Err(HsmError::Config(
                "the HSM needs 1 to 64 sessions, and at least one place in the queue and for session keys"
                    .to_owned(),
            ));
        }
        if config.call_deadline < Duration::from_millis(10) {
            return Err(HsmError::Config(
                "the HSM's call deadline is below 10 ms".to_owned(),
            ));
        }
        let wanted = TokenFilter::new(&config.token)?;
        let access = Access::new(config.pin.clone());
        let gate = RwLock::new(JobQueue::Closed(HsmState::Reconnecting {
            reason: "starting".to_owned(),
        }));
        let shared = Arc::new(Shared {
            config,
            wanted,
            access,
            registers: Arc::default(),
            gate,
            inside: AtomicUsize::new(0),
            forgotten: Forgotten::default(),
            refreshes: AtomicUsize::new(0),
        });
        let (events, supervisor, facts) = supervisor::start(&shared)?;
        Ok(Self {
            shared,
            facts,
            events,
            supervisor: Mutex::new(Some(supervisor)),
        })
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    pub(crate) fn registers(&self) -> Arc<KnownRegisters> {
        Arc::clone(&self.shared.registers)
    }

    pub(crate) fn state(&self) -> HsmState {
        match &*self
            .shared
            .gate
            .read()
            .unwrap_or_else(PoisonError::into_inner)
        {
            JobQueue::Open { .. } => HsmState::Ready,
            JobQueue::Closed(state) => state.clone(),
        }
    }

    /// Queues an operation and waits for its answer.
    pub(crate) async fn submit<T: Send + 'static>(
        &self,
        operation: impl FnMut(&mut Conn) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, HsmError> {
        self.submit_to(Lane::Single, operation).await
    }

    /// One small round trip through the token, before whatever else waits.
    pub(crate) async fn probe(&self) -> Result<(), HsmError> {
        self.submit_to(Lane::Probe, |conn| conn.probe()).await
    }

    /// An operation that makes a key pair: in a call that may take until
    /// [`HsmConfig::key_generation_deadline`], while others have the token.
    pub(crate) async fn generate<T: Send + 'static>(
        &self,
        operation: impl FnMut(&mut Conn) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, HsmError> {
        self.submit_to(Lane::Generation, operation).await
    }

    /// Whether a key pair is made now. A token that does one thing at a time answers nothing
    /// meanwhile.
    pub(crate) fn is_generating(&self) -> bool {
        let gate = self.shared.gate.read();
        match &*gate.unwrap_or_else(PoisonError::into_inner) {
            JobQueue::Open { entrance, .. } => entrance.is_generating(),
            JobQueue::Closed(_) => false,
        }
    }

    async fn submit_to<T: Send + 'static>(
        &self,
        lane: Lane,
        operation: impl FnMut(&mut Conn) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, HsmError> {
        let (job, answer) = Job::new(lane, operation);
        self.shared.admit(job)?;
        // No answer: the connection ended with the job still in its queue.
        answer.await.unwrap_or_else(|_| Err(Self::lost()))
    }

    /// Queues a job whose callers wait elsewhere; they are told if it can't be queued.
    fn queue(&self, job: Job) {
        let answer = Arc::clone(&job.answer);
        if let Err(error) = self.shared.admit(job) {
            answer.refuse(error);
        }
    }

    fn lost() -> HsmError {
        HsmError::Unavailable("the connection to it was lost".to_owned())
    }
}

impl Pool {
    /// Every worker drops these keys' session objects: one at once, each other before its next job.
    pub(crate) async fn forget(&self, ids: Vec<[u8; 16]>) -> Result<(), HsmError> {
        self.shared.forgotten.add(&ids);
        self.submit(|conn| conn.probe()).await
    }

    /// Every worker looks for the keys again, one at once, and before its next job takes them. Keys
    /// that are not acceptable are the caller's error, and the workers go on with those they
    /// have.
    pub(crate) async fn refresh_keys(&self) -> Result<Vec<MasterGeneration>, HsmError> {
        let found = self.submit(|conn| conn.look_at_keys()).await?;
        self.facts.learn(found.clone())?;
        self.shared.refreshes.fetch_add(1, Ordering::AcqRel);
        Ok(found)
    }

    /// Whatever is queued after this has a module that was started again, or a refusal.
    pub(crate) async fn restart_module(&self) {
        let (begun, told) = oneshot::channel();
        // An error of either: the supervisor has ended, and nothing is let in any more.
        if self.events.send(Event::Restart { begun }).is_ok() {
            let _ = told.await;
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = self.events.send(Event::Stop);
        let supervisor = self
            .supervisor
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(supervisor) = supervisor {
            // Bounded: the supervisor itself makes no PKCS#11 call but C_Finalize, and that only
            // with no thread inside.
            let _ = supervisor.join();
        }
    }
}

impl Shared {
    fn admit(&self, job: Job) -> Result<(), HsmError> {
        match &*self.gate.read().unwrap_or_else(PoisonError::into_inner) {
            JobQueue::Open { entrance, .. } => entrance.put(job),
            JobQueue::Closed(HsmState::Stopped { reason } | HsmState::Reconnecting { reason }) => {
                Err(HsmError::Unavailable(reason.clone()))
            }
            JobQueue::Closed(HsmState::Ready) => Err(HsmError::Unavailable("starting".to_owned())),
        }
    }

    fn set_gate(&self, gate: JobQueue) {
        *self.gate.write().unwrap_or_else(PoisonError::into_inner) = gate;
    }

    /// Closes the gate of a connection that a worker has found lost, before its caller hears of it.
    fn close_gate(&self, connection: u64, reason: &str) {
        let mut gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*gate, JobQueue::Open { connection: open, .. } if open == connection) {
            *gate = JobQueue::Closed(HsmState::Reconnecting {
                reason: reason.to_owned(),
            });
        }
    }

    fn threads_inside(&self) -> usize {
        self.inside.load(Ordering::Acquire)
    }
}

/// Keys whose session objects are to go, for all workers.
#[derive(Default)]
struct Forgotten {
    /// How many there ever were; read without the lock before each job.
    count: AtomicUsize,
    ids: Mutex<Vec<[u8; 16]>>,
}

impl Forgotten {
    fn add(&self, new: &[[u8; 16]]) {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.extend_from_slice(new);
        self.count.store(ids.len(), Ordering::Release);
    }

    /// Those that came after the first `seen`, and their new number. 16 bytes for each key that was
    /// ever deleted: it is not worth a bound.
    fn since(&self, seen: usize) -> (usize, Vec<[u8; 16]>) {
        if self.count.load(Ordering::Acquire) == seen {
            return (seen, Vec::new());
        }
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        (ids.len(), ids.get(seen..).unwrap_or_default().to_vec())
    }
}

/// Counts a thread as inside the module as long as it lives.
struct ModuleCall(Arc<Shared>);

impl ModuleCall {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.inside.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(shared))
    }
}

impl Drop for ModuleCall {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::AcqRel);
    }
}
