//! The thread that watches the workers and brings the token back.

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use cryptoki::slot::Slot;

use super::connect::{Connected, connect};
use super::queue::Queue;
use super::worker::{Place, Worker, WorkerSlot};
use super::{Event, Facts, JobQueue, ModuleCall, Pool, Shared};
use crate::error::HsmError;
use crate::fault::Fault;
use crate::module::Module;
use crate::operations::Conn;
use crate::types::HsmState;
use crate::watched::Watch;

/// Wait after the first failed attempt to connect; doubled after each further one ...
const MIN_RECONNECT_WAIT: Duration = Duration::from_millis(50);
/// ... up to this, so that serving resumes within 2 s of the token's return.
const MAX_RECONNECT_WAIT: Duration = Duration::from_millis(500);
/// How long a key pair is made before another session is opened for the others: `SoftHSM`, which is
/// quicker than that with most, may refuse what it makes while others look for objects.
const GENERATION_ALONE: Duration = Duration::from_millis(100);
/// A key that every look for so long has found not to be acceptable is not.
const MAX_DOUBT: Duration = Duration::from_secs(10);
/// Threads that may hang in the module before no more are risked.
const MAX_HUNG_THREADS: usize = 8;
/// A failed attempt is logged at most this often.
const MIN_LOG_GAP: Duration = Duration::from_secs(10);
/// How often it is looked whether the workers have left.
const STOP_POLL: Duration = Duration::from_millis(1);
/// How long a stop waits for calls that have not come back.
const MAX_STOP_WAIT: Duration = Duration::from_secs(2);

/// Where to send events, the supervisor's thread, what was found.
type Started = (Sender<Event>, JoinHandle<()>, Arc<Facts>);

/// Connects, and starts the supervisor, who keeps it so.
pub(super) fn start(shared: &Arc<Shared>) -> Result<Started, HsmError> {
    let (events, incoming) = unbounded();
    let (first, found) = bounded(1);
    let supervisor = Supervisor {
        shared: Arc::clone(shared),
        events: events.clone(),
        module: None,
        facts: None,
        slot: None,
        first: Some(first),
        connection: 0,
        queue: None,
        worker_slots: Vec::new(),
        hung: Vec::new(),
        generating: None,
        generation_seen: None,
        attempt: None,
        attempts: 0,
        retry: Some(Retry::at_once()),
        restarting: None,
        lost_at: None,
        doubted: None,
        logged: None,
    };
    let thread = spawn("hsm-supervisor", move || supervisor.run(&incoming))?;
    match found.recv() {
        Ok(Ok(facts)) => Ok((events, thread, facts)),
        Ok(Err(error)) => {
            let _ = thread.join();
            Err(error)
        }
        Err(_) => Err(HsmError::Unavailable("its supervisor ended".to_owned())),
    }
}

struct Supervisor {
    shared: Arc<Shared>,
    events: Sender<Event>,
    module: Option<Arc<Module>>,
    facts: Option<Arc<Facts>>,
    /// The token's slot in the current connection; it may differ in the next.
    slot: Option<Slot>,
    /// Who waits for the first connection; none once that is there.
    first: Option<Sender<Result<Arc<Facts>, HsmError>>>,
    /// Counts connections; the workers of an older one are on their way out.
    connection: u64,
    /// A view of the current connection's queue: for new workers, and to empty it when the
    /// connection is lost.
    queue: Option<Arc<Queue>>,
    worker_slots: Vec<Watched>,
    hung: Vec<Weak<Watch>>,
    /// Who makes a key pair, and when another takes its place.
    generating: Option<(Instant, Weak<WorkerSlot>)>,
    /// When a key pair was being made last.
    generation_seen: Option<Instant>,
    attempt: Option<Watched>,
    attempts: u64,
    /// When to try to connect; none while connected or stopped.
    retry: Option<Retry>,
    /// The workers are waited for, so that the module can be started again: the queue that they
    /// are to empty.
    restarting: Option<Arc<Queue>>,
    lost_at: Option<Instant>,
    /// Since when each look has found a key that is not acceptable.
    doubted: Option<Instant>,
    logged: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Retry {
    at: Instant,
    wait: Duration,
    failures: u32,
}

impl Retry {
    fn at_once() -> Self {
        Self {
            at: Instant::now(),
            wait: MIN_RECONNECT_WAIT,
            failures: 0,
        }
    }

    fn after_a_failure(self) -> Self {
        Self {
            at: Instant::now() + self.wait,
            wait: (self.wait * 2).min(MAX_RECONNECT_WAIT),
            failures: self.failures.saturating_add(1),
        }
    }
}

/// A thread and when it was last seen to move.
struct Watched {
    worker_slot: Arc<WorkerSlot>,
    connection: u64,
    /// Calls at that time; none while idle.
    seen: Option<(u64, Instant)>,
}

impl Supervisor {
    fn run(mut self, incoming: &Receiver<Event>) {
        loop {
            match incoming.recv_timeout(self.patience()) {
                Ok(Event::Lost { connection, reason }) => {
                    if connection == self.connection && self.queue.is_some() {
                        self.lost(&reason);
                    }
                }
                Ok(Event::Generating { connection, worker }) => {
                    if connection == self.connection {
                        let at = Instant::now() + GENERATION_ALONE;
                        self.generating = Some((at, Arc::downgrade(&worker)));
                    }
                }
                Ok(Event::Fatal(error)) => self.stop_for_good(&error),
                Ok(Event::Attempt { number, result }) => {
                    // A late answer of an attempt that was given up is dropped, its session with
                    // it.
                    if number == self.attempts && self.attempt.take().is_some() {
                        self.attempted(result);
                    }
                }
                Ok(Event::Restart { begun }) => {
                    self.restart();
                    // Whoever asked may have gone away meanwhile.
                    let _ = begun.send(());
                }
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.watch_attempt();
            self.watch_workers();
            self.replace_generating();
            self.go_on_restarting();
            self.try_again();
            if self.first.is_none() && self.facts.is_none() {
                // The first attempt failed and the caller of `start` knows.
                break;
            }
        }
        self.leave();
    }

    /// Until when nothing needs to be looked at.
    fn patience(&self) -> Duration {
        if self.restarting.is_some() {
            return STOP_POLL;
        }
        let look = (self.shared.config.call_deadline / 4)
            .clamp(Duration::from_millis(2), Duration::from_secs(1));
        let retry = self.retry.filter(|_| self.attempt.is_none());
        let retry = retry.map(|retry| retry.at);
        let generating = self.generating.as_ref().map(|(at, _)| *at);
        retry.into_iter().chain(generating).fold(look, |look, at| {
            look.min(at.saturating_duration_since(Instant::now()))
        })
    }

    fn try_again(&mut self) {
        let Some(retry) = self.retry else { return };
        if self.attempt.is_some() || Instant::now() < retry.at {
            return;
        }
        // The first attempt after a loss is made at once and gently; if it fails, the module is
        // started again where possible.
        self.begin_attempt(retry.failures > 0);
    }

    /// Has the module started again with no job lost: the workers that there are finish what is
    /// queued and end; what comes now waits for the next ones.
    fn restart(&mut self) {
        if self.queue.is_none() || self.restarting.is_some() || self.attempt.is_some() {
            // It is being connected anyway.
            return;
        }
        tracing::info!("starting the PKCS#11 module again, to see what others made on the token");
        self.restarting = self.queue.take();
        self.generating = None;
        self.open_queue();
    }

    fn go_on_restarting(&mut self) {
        let mut worker_slots = self.worker_slots.iter();
        if worker_slots.any(|worker_slot| worker_slot.connection != self.connection) {
            return;
        }
        if let Some(queue) = self.restarting.take() {
            // With the last worker in a hung call, or out of its session, nobody is left to empty
            // it.
            queue.refuse(&Pool::lost());
            self.begin_attempt(true);
        }
    }

    /// `restart`: the module is started again before, if no thread is inside.
    fn begin_attempt(&mut self, restart: bool) {
        self.hung.retain(|watch| watch.strong_count() > 0);
        if self.hung.len() >= MAX_HUNG_THREADS {
            self.failed(&format!(
                "{MAX_HUNG_THREADS} calls hang in the PKCS#11 module"
            ));
            return;
        }
        self.attempts += 1;
        let number = self.attempts;
        let worker_slot = WorkerSlot::opening();
        let watch = Arc::clone(&worker_slot.watch);
        let inside = ModuleCall::new(&self.shared);
        let shared = Arc::clone(&self.shared);
        let module = self.module.clone();
        let facts = self.facts.clone();
        let events = self.events.clone();
        let thread = spawn("hsm-connect", move || {
            let result = attempt(&shared, module, facts.as_ref(), &watch, restart);
            if watch.is_abandoned() {
                if let Ok(connected) = result {
                    connected.conn.watched.close();
                }
            } else {
                let _ = events.send(Event::Attempt {
                    number,
                    result: result.map(Box::new),
                });
            }
            drop(inside);
        });
        match thread {
            Ok(_) => {
                self.attempt = Some(Watched {
                    worker_slot,
                    connection: 0,
                    seen: None,
                });
            }
            Err(error) => self.failed(&error.to_string()),
        }
    }

    fn attempted(&mut self, result: Result<Box<Connected>, Fault>) {
        match result {
            Ok(connected) => self.connected(*connected),
            Err(fault) => {
                if let Some(first) = self.first.take() {
                    self.retry = None;
                    let _ = first.send(Err(fault.into_error()));
                    return;
                }
                match fault {
                    Fault::Own(
                        error @ (HsmError::Pin(_) | HsmError::Trial { .. } | HsmError::SelfTest(_)),
                    ) => self.stop_for_good(&error),
                    Fault::Own(error @ HsmError::KeyPolicy { .. }) => self.doubt(&error),
                    Fault::Own(error @ HsmError::Missing { .. }) => self.failed(&format!(
                        "{error}, which had it at the start: it is away, or not whole; trying again"
                    )),
                    Fault::Own(error @ HsmError::Register { .. }) => {
                        self.failed(&format!("{error}; trying again"));
                    }
                    fault => self.failed(&fault.to_string()),
                }
            }
        }
    }

    fn connected(&mut self, connected: Connected) {
        let Connected {
            module,
            conn,
            slot,
            facts,
        } = connected;
        self.retry = None;
        self.doubted = None;
        self.module = Some(module);
        self.slot = Some(slot);
        self.facts = Some(Arc::clone(&facts));
        if self.queue.is_none() {
            self.open_queue();
        }
        let mut conn = Some(conn);
        for _ in 0..self.shared.config.sessions {
            if let Err(error) = self.add_worker(conn.take(), None) {
                tracing::warn!(%error, "working with fewer HSM sessions");
                break;
            }
        }
        if let Some(lost_at) = self.lost_at.take() {
            tracing::info!(
                token = facts.token.label,
                after_ms = lost_at.elapsed().as_millis(),
                "the HSM is back"
            );
        }
        if let Some(first) = self.first.take() {
            let _ = first.send(Ok(facts));
        }
    }

    /// Lets jobs in, for the workers of the next connection.
    fn open_queue(&mut self) {
        let (entrance, queue) = Queue::new(self.shared.config.queue);
        self.connection += 1;
        self.queue = Some(queue);
        self.shared.set_gate(JobQueue::Open {
            entrance,
            connection: self.connection,
        });
    }

    /// `conn`: a session that is open already. `replaces`: who makes a key pair meanwhile.
    fn add_worker(
        &mut self,
        conn: Option<Conn>,
        replaces: Option<Arc<WorkerSlot>>,
    ) -> Result<(), HsmError> {
        let (Some(module), Some(facts), Some(queue), Some(slot)) =
            (&self.module, &self.facts, &self.queue, self.slot)
        else {
            return Ok(());
        };
        let worker_slot = conn.as_ref().map_or_else(WorkerSlot::opening, |conn| {
            WorkerSlot::of(conn.watched.watch())
        });
        let worker = Worker {
            shared: Arc::clone(&self.shared),
            library: module.library(),
            slot,
            facts: Arc::clone(facts),
            queue: Arc::clone(queue),
            events: self.events.clone(),
            connection: self.connection,
            state: Arc::clone(&worker_slot),
            replaces,
            inside: ModuleCall::new(&self.shared),
        };
        spawn("hsm-worker", move || worker.run(conn))?;
        self.worker_slots.push(Watched {
            worker_slot,
            connection: self.connection,
            seen: None,
        });
        Ok(())
    }

    /// Gives up an attempt that hangs.
    fn watch_attempt(&mut self) {
        let deadline = self.shared.config.call_deadline;
        let hangs = self
            .attempt
            .as_mut()
            .is_some_and(|attempt| attempt.hangs(deadline, None));
        if !hangs {
            return;
        }
        if let Some(attempt) = self.attempt.take() {
            attempt.worker_slot.abandon(HsmError::Deadline(deadline));
            self.hung.push(Arc::downgrade(&attempt.worker_slot.watch));
        }
        if let Some(first) = self.first.take() {
            self.retry = None;
            let _ = first.send(Err(HsmError::Deadline(deadline)));
        } else {
            self.failed("a call hangs");
        }
    }

    /// Gives up workers that hang and puts others in their place.
    fn watch_workers(&mut self) {
        // Nobody but this list holds the slot of a thread that has ended.
        self.worker_slots
            .retain(|watched| Arc::strong_count(&watched.worker_slot) > 1);
        let (deadline, from) = self.patience_with_calls();
        let mut replace = Vec::new();
        let hung = &mut self.hung;
        let (queue, restarting, current) = (&self.queue, &self.restarting, self.connection);
        self.worker_slots.retain_mut(|watched| {
            if !watched.hangs(deadline, from) {
                return true;
            }
            let generates = watched.worker_slot.is_generating();
            let Some(place) = watched.worker_slot.abandon(HsmError::Deadline(deadline)) else {
                return true;
            };
            hung.push(Arc::downgrade(&watched.worker_slot.watch));
            if place == Place::Kept {
                replace.push(watched.connection);
            }
            let its_queue = if watched.connection == current {
                queue
            } else {
                restarting
            };
            if let Some(queue) = its_queue
                && generates
            {
                queue.generated();
            }
            false
        });
        let lost = replace
            .iter()
            .filter(|connection| **connection == self.connection)
            .count();
        if lost == 0 || self.queue.is_none() {
            return;
        }
        tracing::warn!(calls = lost, ?deadline, "calls to the HSM hang");
        let others = self
            .worker_slots
            .iter()
            .any(|watched| watched.connection == self.connection);
        self.hung.retain(|watch| watch.strong_count() > 0);
        if !others || self.hung.len() >= MAX_HUNG_THREADS {
            self.lost(&format!("a call did not come back within {deadline:?}"));
            return;
        }
        for _ in 0..lost {
            if let Err(error) = self.add_worker(None, None) {
                tracing::warn!(%error, "working with fewer HSM sessions");
            }
        }
    }

    /// How long a call may take, and from when on at the earliest that counts. A token that does
    /// one thing at a time keeps all calls waiting while it makes a key pair.
    fn patience_with_calls(&mut self) -> (Duration, Option<Instant>) {
        let config = &self.shared.config;
        let mut worker_slots = self.worker_slots.iter();
        // All wait for the last call of a module that is to be started again.
        if self.restarting.is_none()
            && worker_slots.any(|watched| watched.worker_slot.is_generating())
        {
            self.generation_seen = Some(Instant::now());
            (
                config.key_generation_deadline.max(config.call_deadline),
                None,
            )
        } else {
            (config.call_deadline, self.generation_seen)
        }
    }

    /// Puts a worker in the place of one that makes a key pair for long.
    fn replace_generating(&mut self) {
        if self
            .generating
            .as_ref()
            .is_none_or(|(at, _)| Instant::now() < *at)
        {
            return;
        }
        let worker = self
            .generating
            .take()
            .and_then(|(_, worker)| worker.upgrade());
        if let Some(worker) = worker.filter(|worker| worker.is_generating())
            && let Err(error) = self.add_worker(None, Some(worker))
        {
            tracing::warn!(%error, "a key pair is made, and others wait for it");
        }
    }

    fn lost(&mut self, reason: &str) {
        tracing::warn!(reason, "the HSM is lost; reconnecting");
        self.lost_at.get_or_insert_with(Instant::now);
        self.close(
            HsmState::Reconnecting {
                reason: reason.to_owned(),
            },
            reason,
        );
        self.retry = Some(Retry::at_once());
        self.logged = None;
    }

    fn failed(&mut self, reason: &str) {
        let previous = self.retry.unwrap_or_else(Retry::at_once);
        self.retry = Some(previous.after_a_failure());
        self.doubted = None;
        self.lost_at.get_or_insert_with(Instant::now);
        // There is a queue if the module was being started again.
        self.close(
            HsmState::Reconnecting {
                reason: reason.to_owned(),
            },
            reason,
        );
        if self
            .logged
            .is_none_or(|logged| logged.elapsed() >= MIN_LOG_GAP)
        {
            self.logged = Some(Instant::now());
            tracing::warn!(reason, "the HSM is still away");
        }
    }

    /// One look at a key is no verdict: another process may be just writing it.
    fn doubt(&mut self, error: &HsmError) {
        let since = self.doubted.unwrap_or_else(Instant::now);
        if since.elapsed() < MAX_DOUBT {
            self.failed(&format!(
                "{error}; it may be just being written, and is looked at again"
            ));
            self.doubted = Some(since);
        } else {
            self.stop_for_good(error);
        }
    }

    fn stop_for_good(&mut self, error: &HsmError) {
        tracing::error!(%error, "the HSM is not used any more");
        let reason = error.to_string();
        self.close(
            HsmState::Stopped {
                reason: reason.clone(),
            },
            &reason,
        );
        self.retry = None;
    }

    /// Lets no more jobs in and refuses those that wait. Workers end when they find their queue
    /// closed.
    fn close(&mut self, state: HsmState, reason: &str) {
        self.generating = None;
        self.shared.set_gate(JobQueue::Closed(state));
        let error = HsmError::Unavailable(reason.to_owned());
        for queue in [self.restarting.take(), self.queue.take()].iter().flatten() {
            queue.refuse(&error);
        }
    }

    /// The orderly end, bounded in time.
    fn leave(mut self) {
        const STOPPING: &str = "it is being stopped";
        self.close(
            HsmState::Stopped {
                reason: STOPPING.to_owned(),
            },
            STOPPING,
        );
        let until = Instant::now() + MAX_STOP_WAIT.min(self.shared.config.call_deadline);
        while self.shared.threads_inside() > 0 && Instant::now() < until {
            std::thread::sleep(STOP_POLL);
        }
        if let Some(module) = self.module.take() {
            module.release(self.shared.threads_inside() > 0);
        }
    }
}

impl Watched {
    /// Whether its call has lasted that long, `from` a time on at the earliest.
    fn hangs(&mut self, deadline: Duration, from: Option<Instant>) -> bool {
        match (self.worker_slot.busy(), self.seen) {
            (None, _) => {
                self.seen = None;
                false
            }
            (Some(calls), Some((seen, since))) if calls == seen => {
                from.map_or(since, |from| from.max(since)).elapsed() >= deadline
            }
            (Some(calls), _) => {
                self.seen = Some((calls, Instant::now()));
                false
            }
        }
    }
}

/// Runs in a thread of its own, as any of its calls may hang.
fn attempt(
    shared: &Shared,
    module: Option<Arc<Module>>,
    known: Option<&Arc<Facts>>,
    watch: &Arc<Watch>,
    restart: bool,
) -> Result<Connected, Fault> {
    watch.tick();
    if let Some(module) = module {
        // One thread: this one.
        if restart && shared.threads_inside() == 1 {
            module.restart()?;
        }
        return connect(shared, module, known, watch);
    }
    let module = Arc::new(Module::acquire(&shared.config.module)?);
    let result = connect(shared, Arc::clone(&module), known, watch);
    if result.is_err() || watch.is_abandoned() {
        module.release(false);
    }
    result
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, HsmError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|error| HsmError::Unavailable(format!("no thread for it: {error}")))
}
