//! Start and stop: the order in which the parts come up, the listener, signals, reload, timers,
//! `sd_notify`.
//!
//! | event | what happens |
//! |---|---|
//! | SIGTERM, SIGINT | stop accepting, finish what is in flight (10 s at most), sign the audit log, leave; a second one leaves at once |
//! | SIGHUP, a watched file changes | read TLS files, policy and tokens again, each as a whole or not at all |
//! | SIGUSR1 | go on with the audit log in a new file |

mod connection;
mod descriptors;
mod linger;
mod listen;
mod notify;
mod plain;
mod reload;
mod signals;
mod stdin;
mod timers;
mod watch;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use strongroom_core::atomic::{self, Access};
use strongroom_core::audit::{Audit, AuditError, Entry};
use strongroom_core::causes::causes;
use strongroom_core::config::{Config, ConfigError};
use strongroom_core::hex;
use strongroom_core::keyring::{Keyring, KeyringError};
use strongroom_core::policy::{Policy, PolicyError};
use strongroom_core::rotation::MasterRotation;
use strongroom_core::store::{Store, StoreError};
use strongroom_core::tls::{Tls, TlsError};
use strongroom_core::tokens::{Tokens, TokensError};
use strongroom_hsm::{Hsm, HsmError, OaepHash};
use tokio::runtime::Runtime;
use tokio::sync::MutexGuard;
use tokio::task::JoinSet;

use crate::api::{self, Admission, App, Endpoint, Logins};
use crate::harden::{self, Filters, Group, HardenError, Paths, Report};
use listen::BoundListener;

/// Requests in flight at a stop get this long to finish.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Then changes that nobody waits for get this long: with [`DRAIN_TIMEOUT`], less
/// than `TimeoutStopSec` of the unit.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Between two looks at what is still under way.
const DRAIN_POLL: Duration = Duration::from_millis(10);

/// What the command line adds to the configuration.
#[derive(Clone, Debug, Default)]
pub struct ServeOptions {
    /// Write the address that is listened on into this file, one line: for a configured port of 0.
    pub addr_file: Option<PathBuf>,
    /// Stop as on SIGTERM when standard input closes.
    pub stop_with_stdin: bool,
}

/// Why the server did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The token.
    #[error(transparent)]
    Hsm(#[from] HsmError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The keyring.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// TLS files.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The policy file.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The tokens file.
    #[error(transparent)]
    Tokens(#[from] TokensError),
    /// The configuration has paths that two protocols would have.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address can't be listened on.
    #[error("can't listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The file of `--addr-file` can't be written.
    #[error("the address can't be written to {path}: {source}")]
    AddrFile {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `server.max_connections` is more than the files that may be open.
    #[error(
        "server.max_connections = {max_connections} needs {needed} files that may be open at once, and the limit is {limit}: {}raise the limit to {needed} or more \
         (LimitNOFILE= of the unit, `ulimit -n`)",
        descriptors::or_fewer(*most)
    )]
    Descriptors {
        /// As configured.
        max_connections: usize,
        /// What the process may have.
        limit: u64,
        /// What the setting needs.
        needed: u64,
        /// What may be set under this limit; 0: nothing.
        most: u64,
    },
    /// The process could not be hardened.
    #[error(transparent)]
    Harden(#[from] HardenError),
    /// The operating system refused something the server can't do without.
    #[error("{what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// Why it was refused.
        source: io::Error,
    },
}

/// The server's own thread runs the runtime, so it has the room that a main thread has.
const SERVER_STACK_BYTES: usize = 8 << 20;

/// Runs the server until SIGTERM or SIGINT.
///
/// Call it while the process has one thread: that one gives up the process's rights, then starts
/// two others, one for the HSM and one for the runtime, waits for them, and does nothing else.
/// Threads that these start are confined as they are.
///
/// # Errors
/// Whatever keeps a part from starting: nothing is served unless every part is up.
pub fn run(config: Config, options: &ServeOptions) -> Result<(), ServeError> {
    let started = Instant::now();
    let cores = thread::available_parallelism().map_or(2, usize::from);
    let contradictions = api::contradictions(&config);
    if !contradictions.is_empty() {
        return Err(ConfigError(contradictions).into());
    }
    descriptors::provide(config.max_connections)?;
    let bound = BoundListener::new(config.listen)?;
    let paths = Paths::new(&config, &config.hardening).written(options.addr_file.as_deref());
    let (report, filters) = harden::process(&config.hardening, &paths)?;
    let (go, hsm) = hsm_thread(&config, &filters)?;
    let server = {
        let (filters, options) = (filters.clone(), options.clone());
        let start = Start {
            config,
            started,
            report,
            bound,
            go,
            hsm,
        };
        spawn("strongroom", SERVER_STACK_BYTES, move || {
            filters.confine(Group::Server)?;
            start.run(&options, cores)
        })?
    };
    if options.stop_with_stdin {
        stdin::watch(&filters)?;
    }
    filters.confine(Group::Main)?;
    server
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// What [`run`] would refuse before it asks the HSM, found without giving up or taking anything;
/// the files that the configuration names are [`Config::check`]'s matter.
pub fn problems(config: &Config) -> Vec<String> {
    let mut problems = api::contradictions(config);
    let limits = descriptors::check(config.max_connections);
    problems.extend(limits.err().map(|error| error.to_string()));
    let hardening = harden::check(&config.hardening, &config.store);
    problems.extend(hardening.err().map(|error| error.to_string()));
    problems
}

/// A thread that starts the HSM's when it is told to: those have other rights than the runtime's.
fn hsm_thread(
    config: &Config,
    filters: &Filters,
) -> Result<(mpsc::Sender<()>, HsmThread), ServeError> {
    let (go, gone) = mpsc::channel();
    let (config, filters) = (config.hsm.clone(), filters.clone());
    let thread = spawn("hsm-start", SERVER_STACK_BYTES, move || {
        filters.confine(Group::Hsm)?;
        // Nobody says so: the runtime could not be started.
        if gone.recv().is_err() {
            return Ok(None);
        }
        Ok(Some(Hsm::start(config)?))
    })?;
    Ok((go, thread))
}

type HsmThread = JoinHandle<Result<Option<Hsm>, ServeError>>;

fn spawn<T: Send + 'static>(
    name: &'static str,
    stack: usize,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, ServeError> {
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(stack)
        .spawn(run)
        .map_err(|source| ServeError::System {
            what: "a thread can't be started",
            source,
        })
}

/// What the server's thread starts with.
struct Start {
    config: Config,
    started: Instant,
    report: Report,
    bound: BoundListener,
    go: mpsc::Sender<()>,
    hsm: HsmThread,
}

impl Start {
    fn run(self, options: &ServeOptions, cores: usize) -> Result<(), ServeError> {
        // Signals that come while the parts start must not kill a half-started server in the middle
        // of a write.
        let runtime = runtime(cores)?;
        let mut signals = {
            let _inside = runtime.enter();
            signals::Signals::new().map_err(|source| ServeError::System {
                what: "signals can't be caught",
                source,
            })?
        };
        let watch = watch::Watch::new(&self.config);
        let stopped = || ServeError::System {
            what: "the HSM's thread",
            source: io::ErrorKind::BrokenPipe.into(),
        };
        self.go.send(()).map_err(|_| stopped())?;
        let hsm = match self.hsm.join() {
            Ok(started) => started?.ok_or_else(stopped)?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let app = start(&runtime, self.config, hsm, self.started, self.report)?;
        let served = runtime.block_on(serve(&app, self.bound, options, &mut signals, watch));
        // Whatever still runs after the drain is cut off here.
        runtime.shutdown_timeout(Duration::from_millis(100));
        served
    }
}

/// Makes the parts in order; each fails closed before the next one sees the light.
fn start(
    runtime: &Runtime,
    config: Config,
    hsm: Hsm,
    started: Instant,
    report: Report,
) -> Result<Arc<App>, ServeError> {
    log_token(&hsm);
    runtime.block_on(async {
        let store = Arc::new(Store::open(&config.store, hsm.clone()).await?);
        let status = store.status();
        tracing::info!(
            store = %hex::encode(&status.store_id),
            epoch = status.epoch,
            records = status.records,
            "store opened"
        );
        let keyring = Keyring::open(store.clone(), hsm.clone(), config.keyring.clone()).await?;
        let audit = Arc::new(Audit::open(config.audit.clone(), hsm.clone()).await?);
        keyring.record_in(Arc::clone(&audit));
        let found = audit.found();
        audit.record(&Entry {
            operation: "server:start",
            outcome: "ok",
            reason: &found.to_string(),
            ..Entry::default()
        })?;
        if found.unsigned > 0 || found.torn_bytes > 0 || found.unknown > 0 {
            tracing::warn!(%found, "the audit log's last writer did not stop in order");
        }
        // No log is without a signature, however short its server's life.
        audit.checkpoint().await?;
        let policy = Policy::load(&config.policy)?;
        let tokens = match &config.tokens {
            Some(path) => Tokens::load(path)?,
            None => Tokens::default(),
        };
        let tls = Arc::new(Tls::start(config.tls.clone())?);
        Ok(Arc::new(App {
            config,
            hsm,
            keyring,
            store,
            policy: ArcSwap::from_pointee(policy),
            tokens: ArcSwap::from_pointee(tokens),
            audit,
            tls,
            started,
            hardening: report,
            logins: Logins::default(),
            admission: Admission::default(),
            rotation: MasterRotation::default(),
        }))
    })
}

async fn serve(
    app: &Arc<App>,
    bound: BoundListener,
    options: &ServeOptions,
    signals: &mut signals::Signals,
    watch: watch::Watch,
) -> Result<(), ServeError> {
    let listen_error = |source| ServeError::Listen {
        address: app.config.listen,
        source,
    };
    let listener = bound.listen(app.config.listen).map_err(listen_error)?;
    let address = listener.local_addr().map_err(listen_error)?;
    if let Some(path) = &options.addr_file {
        write_address(path, address)?;
    }
    tracing::info!(%address, start_ms = app.started.elapsed().as_millis(), "listening");

    let endpoint = Arc::new(Endpoint::configured(&app.config));
    let acceptor = connection::Acceptor::new(app.clone(), listener, endpoint);
    let reloader = Arc::new(reload::Reloader::new(app.clone()));
    let mut timers = timers::start(app, &reloader, watch);
    notify::ready(&serving(app, address));

    tokio::select! {
        () = acceptor.run() => {}
        () = signals.until_stop(app, &reloader) => {}
    }
    reloader.stop();

    notify::stopping();
    tracing::info!("stopping: requests in flight get {DRAIN_TIMEOUT:?} to finish");
    timers.abort_all();
    let finished = async {
        acceptor.drain(DRAIN_TIMEOUT).await;
        settle(app, &mut timers).await
    };
    // Held to the end.
    let _settled = tokio::select! {
        settled = finished => settled,
        () = signals.stop_again() => {
            tracing::warn!("told again to stop: leaving at once");
            None
        }
    };
    let said = app.audit.record(&Entry {
        operation: "server:stop",
        outcome: "ok",
        ..Entry::default()
    });
    // What is in the log is signed all the same, and its end told to the token.
    if let Err(error) = said {
        tracing::warn!(error = causes(&error), "the stop is not in the audit log");
    }
    // With the token gone nothing can be signed; the chain still holds, so a stop is not held up by
    // it.
    if let Err(error) = app.audit.close().await {
        tracing::warn!(
            error = causes(&error),
            "the end of the audit log is not signed"
        );
    }
    tracing::info!("stopped");
    Ok(())
}

/// Changes that nobody waits for, because their client is gone or no request asked for them, are
/// carried out to their end, so that the audit log has their outcome before its own end. While the
/// answer is held no other one is begun.
async fn settle<'a>(app: &'a App, timers: &mut JoinSet<()>) -> Option<MutexGuard<'a, ()>> {
    let settled = async {
        while timers.join_next().await.is_some() {}
        while app.admission.close() > 0 {
            tokio::time::sleep(DRAIN_POLL).await;
        }
        app.keyring.hold().await
    };
    let settled = tokio::time::timeout(SETTLE_TIMEOUT, settled).await.ok();
    if settled.is_none() {
        tracing::warn!(
            "a change was still under way after {SETTLE_TIMEOUT:?}: the next start says that its outcome is not known"
        );
    }
    settled
}

/// What systemd shows as the service's status.
fn serving(app: &App, address: SocketAddr) -> String {
    let missing = app.hardening.missing();
    if missing.is_empty() {
        format!("serving on {address}")
    } else {
        format!("serving on {address}; not hardened: {}", missing.join(", "))
    }
}

fn runtime(cores: usize) -> Result<Runtime, ServeError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores)
        // Only sled's flushes and file reloads block; each thread would cost memory for nothing.
        .max_blocking_threads(4)
        .thread_keep_alive(Duration::from_secs(2))
        .thread_name("strongroom")
        .enable_all()
        .build()
        .map_err(|source| ServeError::System {
            what: "the async runtime can't start",
            source,
        })
}

fn log_token(hsm: &Hsm) {
    let token = hsm.token();
    let profile = hsm.profile();
    let oaep = match profile.oaep {
        OaepHash::Sha1 => "sha1",
        OaepHash::Sha256 => "sha256",
    };
    tracing::info!(
        label = token.label,
        serial = token.serial,
        manufacturer = token.manufacturer,
        model = token.model,
        oaep,
        aes_kwp = profile.aes_kwp,
        memory_master = profile.memory_master,
        transfer = profile.transfer,
        "token ready"
    );
}

/// At once: whoever waits for the file never reads half a line.
fn write_address(path: &Path, address: SocketAddr) -> Result<(), ServeError> {
    let line = format!("{address}\n");
    atomic::replace(path, line.as_bytes(), Access::Mode(0o644)).map_err(|source| {
        ServeError::AddrFile {
            path: path.to_owned(),
            source,
        }
    })
}
