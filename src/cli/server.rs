//! `serve`, `check-config`, `init`: what runs on the appliance itself.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, ValueEnum};
use serde_json::json;
use strongroom_core::audit::{Audit, Entry};
use strongroom_core::config::{Config, ConfigError};
use strongroom_core::hex;
use strongroom_core::store::{Store, StoreError};
use strongroom_hsm::{Hsm, HsmError, OptionalKeys, Register, TransferKey, ceremony};
use strongroom_server::harden;
use strongroom_server::serve::{self, ServeError, ServeOptions};

use super::exit::{Exit, Failure};
use super::output::Format;
use super::remote::block_on;

/// The file that every command on the appliance itself reads.
#[derive(Args, Clone, Debug)]
pub(super) struct ConfigFile {
    /// Configuration file
    #[arg(
        long,
        short,
        value_name = "FILE",
        env = "STRONGROOM_CONFIG",
        default_value = DEFAULT_CONFIG
    )]
    config: PathBuf,
}

/// The configuration, if no other is named.
const DEFAULT_CONFIG: &str = "/etc/strongroom/strongroom.toml";

impl ConfigFile {
    pub(super) fn of(path: &Path) -> Self {
        Self {
            config: path.to_owned(),
        }
    }

    /// As if nothing was said on the command line.
    pub(super) fn unnamed() -> Self {
        Self {
            config: std::env::var_os("STRONGROOM_CONFIG")
                .map_or_else(|| DEFAULT_CONFIG.into(), PathBuf::from),
        }
    }

    pub(super) fn load(&self) -> Result<Config, Failure> {
        Ok(Config::load(&self.config)?)
    }

    /// For what writes into the store, the audit log or a token that is files: root becomes their
    /// owner first, so that the server can open them.
    pub(super) fn load_as_owner(&self) -> Result<Config, Failure> {
        let config = self.load()?;
        harden::become_owner(&config.hardening, &config.store).map_err(ServeError::from)?;
        Ok(config)
    }

    pub(super) fn path(&self) -> &Path {
        &self.config
    }
}

#[derive(Args, Debug)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Write the listener's address into this file, for a configured port of 0
    #[arg(long, value_name = "FILE")]
    addr_file: Option<PathBuf>,
    /// Stop as on SIGTERM when standard input closes, so that a parent can't leave it behind
    #[arg(long)]
    stop_with_stdin: bool,
    /// Format of the log on standard error
    #[arg(long, default_value = "text")]
    log_format: LogFormat,
    /// Level of the log: error, warn, info, debug, trace, or filters like
    /// strongroom=debug,hyper=warn
    #[arg(
        long,
        value_name = "FILTER",
        env = "STRONGROOM_LOG",
        default_value = "info"
    )]
    log: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

pub(super) fn serve(args: &ServeArgs) -> Result<(), Failure> {
    start_log(args)?;
    private_files();
    let config = args.config.load()?;
    let options = ServeOptions {
        addr_file: args.addr_file.clone(),
        stop_with_stdin: args.stop_with_stdin,
    };
    // Looked at while this thread may still look.
    let empty = Some(config.store.clone()).filter(|path| !holds_something(path));
    serve::run(config, &options).map_err(|error| not_started(error, empty.as_deref()))
}

/// What to do next. Only where neither disk nor token has anything of an appliance may it be a new
/// one, and its keys be made.
fn not_started(error: ServeError, empty_store: Option<&Path>) -> Failure {
    let nothing =
        matches!(&error, ServeError::Hsm(HsmError::Missing { there, .. }) if there.is_empty());
    let failure = Failure::from(error);
    let Some(store) = empty_store.filter(|_| nothing) else {
        return failure;
    };
    failure.next(format!(
        "{} is empty too. If this appliance is a new one, make its keys: with a key ceremony (docs/ceremony.md), or with `strongroom init`. If it has served before, both are missing: \
         look that its disk is mounted and [hsm] names its token",
        store.display()
    ))
}

fn start_log(args: &ServeArgs) -> Result<(), Failure> {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_new(&args.log).map_err(|error| {
        Failure::new(Exit::Usage, format!("--log {:?}: {error}", args.log))
            .next("give a level such as info, or filters like strongroom=debug,hyper=warn")
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // A log that can't be written would be reported on standard error, which it is: that
        // panics.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    let coloured = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let started = match args.log_format {
        LogFormat::Text => builder.with_ansi(coloured).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started
        .map_err(|error| Failure::new(Exit::Failed, format!("the log can't be started: {error}")))
}

/// Whatever is made from here on (store, audit log) is its owner's alone.
pub(super) fn private_files() {
    use nix::sys::stat::{Mode, umask};
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
}

#[derive(Args, Debug)]
pub(super) struct CheckConfigArgs {
    #[command(flatten)]
    config: ConfigFile,
}

pub(super) fn check_config(args: &CheckConfigArgs, format: Format) -> Result<(), Failure> {
    let config = args.config.load()?;
    let mut problems = serve::problems(&config);
    problems.extend(config.check().err().into_iter().flat_map(|error| error.0));
    if !problems.is_empty() {
        return Err(ConfigError(problems).into());
    }
    format.either(
        &format!("{} is valid", args.config.path().display()),
        &json!({"valid": true, "config": args.config.path(), "listen": config.listen}),
    )
}

#[derive(Args, Debug)]
pub(super) struct InitArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Also create the second master key, which keys in `memory` residency need
    #[arg(long)]
    memory_master: bool,
    /// Create no transfer key: keys can then never be moved to another master key
    #[arg(long)]
    no_transfer: bool,
}

pub(super) fn init(args: &InitArgs, format: Format) -> Result<(), Failure> {
    private_files();
    let config = args.config.load_as_owner()?;
    // Asked before the token is touched: keys without a store are half an appliance.
    if holds_something(&config.store) {
        return Err(StoreError::Exists(config.store).into());
    }
    let started = Instant::now();
    let spinner = format.spinner();
    let mut made = Vec::new();
    let optional = OptionalKeys {
        memory_master: args.memory_master,
        transfer: !args.no_transfer,
    };
    let provisioned = Hsm::provision(&config.hsm, optional, &mut |what| {
        spinner.set_message(what.to_owned());
        made.push(what.to_owned());
    });
    spinner.finish_and_clear();
    let provisioned = provisioned.map_err(|error| not_made(error, &config))?;
    if let TransferKey::Unsupported(reason) = &provisioned.transfer {
        made.retain(|what| what != "RSA-4096 transfer key");
        format.note(&format!(
            "no transfer key: {reason}; the keys of this appliance can never be moved to another master key"
        ));
    }
    for what in &made {
        format.note(&format!("made: {what}"));
    }
    let status = create_store(&config, "cli:init")?;
    format.either(
        &format!(
            "the appliance is ready: store {} at {}, {:.1} s",
            hex::encode(&status.store_id),
            config.store.display(),
            started.elapsed().as_secs_f64()
        ),
        &json!({
            "made": made,
            "transfer": provisioned.transfer == TransferKey::Made,
            "store": config.store,
            "store_id": hex::encode(&status.store_id),
            "epoch": status.epoch,
        }),
    )
}

/// Keys that have a store are an appliance, whatever became of that: its place is not for another.
fn not_made(error: HsmError, config: &Config) -> Failure {
    let exists = matches!(error, HsmError::KeyExists(_));
    let failure = Failure::from(error);
    let epoch = exists
        .then(|| ceremony::read_register(&config.hsm, Register::StoreEpoch))
        .and_then(|read| read.ok().flatten());
    match epoch.as_deref().and_then(Store::id_in_epoch) {
        None => failure,
        Some(id) => failure.next(format!(
            "these are the keys of an appliance, whose store is {}: bring back the newest copy of that one (a backup of its directory, or `strongroom store import`), then run \
             `strongroom store accept-rollback`. For a new appliance name an empty token in [hsm]",
            hex::encode(&id)
        )),
    }
}

/// Makes an empty store for the keys on the token; written into the audit log as `operation`.
pub(super) fn create_store(
    config: &Config,
    operation: &str,
) -> Result<strongroom_core::store::StoreStatus, Failure> {
    private_files();
    let hsm = Hsm::start(config.hsm.clone())?;
    block_on(async {
        let act = AuditedAct::begin(config, hsm.clone(), operation).await?;
        let store = Store::create(&config.store, hsm).await.map_err(Into::into);
        let store = act.end(store, |_| String::new()).await?;
        Ok(store.status())
    })
}

/// An act on the appliance itself: that it begins is in the audit log before it does, what came of
/// it afterwards, signed.
pub(super) struct AuditedAct<'a> {
    audit: Audit,
    operation: &'a str,
    user: String,
    intent: u64,
}

impl<'a> AuditedAct<'a> {
    pub(super) async fn begin(
        config: &Config,
        hsm: Hsm,
        operation: &'a str,
    ) -> Result<Self, Failure> {
        let audit = Audit::open(config.audit.clone(), hsm).await?;
        Self::begin_in(audit, operation).await
    }

    /// In a log that is open already.
    pub(super) async fn begin_in(audit: Audit, operation: &'a str) -> Result<Self, Failure> {
        let mut act = Self {
            audit,
            operation,
            user: format!("uid:{}", nix::unistd::getuid()),
            intent: 0,
        };
        act.intent = act.audit.begin(&act.entry("", "")).await?;
        Ok(act)
    }

    fn entry<'e>(&'e self, outcome: &'e str, reason: &'e str) -> Entry<'e> {
        Entry {
            identity: &self.user,
            operation: self.operation,
            outcome,
            reason,
            intent: self.intent,
            ..Entry::default()
        }
    }

    /// `say`: what the log says of what was done.
    pub(super) async fn end<T>(
        self,
        result: Result<T, Failure>,
        say: impl FnOnce(&T) -> String,
    ) -> Result<T, Failure> {
        let (outcome, reason) = match &result {
            Ok(done) => ("ok", say(done)),
            Err(failure) => ("error", failure.message().to_owned()),
        };
        let recorded = self.audit.record(&self.entry(outcome, &reason));
        let closed = self.audit.close().await;
        let done = result?;
        recorded?;
        closed?;
        Ok(done)
    }
}

fn holds_something(folder: &Path) -> bool {
    match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}
