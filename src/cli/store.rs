//! `strongroom store …`: the sealed store, while the server is stopped.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::json;
use strongroom_core::config::Config;
use strongroom_core::hex;
use strongroom_core::keyring::Keyring;
use strongroom_core::store::{AcceptedRollback, Import, Store, StoreError, StoreStatus};
use strongroom_hsm::Hsm;

use super::exit::{Exit, Failure};
use super::files;
use super::output::Format;
use super::remote::block_on;
use super::server::{AuditedAct, ConfigFile, create_store, private_files};

#[derive(Args, Debug)]
pub(super) struct StoreArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Verify the whole store against the token and show its id, epoch and size
    #[command(
        after_help = "Example:\n  strongroom store status\n\nThe server must be stopped: it holds the store open."
    )]
    Status {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Create an empty store for keys that are on the token already
    #[command(
        after_help = "Example:\n  strongroom store create\n\n`strongroom init` makes keys and store in one go; this is for when that was cut off between the two. A store that is lost comes back from a copy (`strongroom store import`): \
        an empty one would have no key of this appliance."
    )]
    Create {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Write the store into one file, still sealed, as a backup that needs no database to be read
    #[command(
        after_help = "Example:\n  strongroom store export /mnt/backup/strongroom-store.export\n\n\
        The server must be stopped. The file is its owner's only, holds no secret in the clear, and opens with this token alone; docs/store-format.md is its format."
    )]
    Export {
        #[command(flatten)]
        config: ConfigFile,
        /// File to write; must not exist yet
        file: PathBuf,
    },
    /// Restore an export into a store directory that is empty or does not exist
    #[command(
        after_help = "Example:\n  strongroom store import /mnt/backup/strongroom-store.export\n\n\
        Every record is verified against the token first; then all are written, or none. The act is written into the audit log."
    )]
    Import {
        #[command(flatten)]
        config: ConfigFile,
        /// File that `store export` wrote
        file: PathBuf,
        /// Accept an export older than what the token knows: keys and versions made since are
        /// lost, as with accept-rollback
        #[arg(long)]
        accept_rollback: bool,
    },
    /// Accept an older copy of the store, after a backup was restored on purpose
    #[command(after_help = "Example:\n  strongroom store accept-rollback --yes\n\n\
        Keys and versions made after the backup are gone: what they encrypted can't be decrypted. The act is written into the audit log.")]
    AcceptRollback {
        #[command(flatten)]
        config: ConfigFile,
        /// Confirm that this copy is to be used
        #[arg(long)]
        yes: bool,
    },
}

pub(super) fn run(args: &StoreArgs, format: Format) -> Result<(), Failure> {
    match &args.action {
        Action::Status { config } => status(config, format),
        Action::Create { config } => {
            let status = create_store(&config.load_as_owner()?, "cli:store-create")?;
            format.either(
                &format!("made store {}", hex::encode(&status.store_id)),
                &json!({"store_id": hex::encode(&status.store_id), "epoch": status.epoch}),
            )
        }
        Action::Export { config, file } => export(config, file, format),
        Action::Import {
            config,
            file,
            accept_rollback,
        } => import(config, file, *accept_rollback, format),
        Action::AcceptRollback { config, yes } => {
            if !yes {
                return Err(Failure::new(
                    Exit::Usage,
                    "accepting a rollback gives up every key and version made after that copy",
                )
                .next("if that is meant, run it again with --yes"));
            }
            accept_rollback(config, format)
        }
    }
}

fn status(config: &ConfigFile, format: Format) -> Result<(), Failure> {
    let config = config.load_as_owner()?;
    let hsm = Hsm::start(config.hsm.clone())?;
    let (status, (keys, versions)) = block_on(async { verify(&config, hsm).await })?;
    format.result(&json!({
        "path": config.store,
        "store_id": hex::encode(&status.store_id),
        "epoch": status.epoch,
        "records": status.records,
        "keys": keys,
        "versions": versions,
    }))
}

/// What a start does with the store: all records are verified against the token, decoded, and held
/// against each other. Keys and versions are counted.
pub(super) async fn verify(
    config: &Config,
    hsm: Hsm,
) -> Result<(StoreStatus, (usize, usize)), Failure> {
    let store = Arc::new(Store::open(&config.store, hsm.clone()).await?);
    let size = look_into(config, &store, hsm).await?;
    Ok((store.status(), size))
}

async fn look_into(
    config: &Config,
    store: &Arc<Store>,
    hsm: Hsm,
) -> Result<(usize, usize), Failure> {
    let keyring = Keyring::open(Arc::clone(store), hsm, config.keyring.clone()).await?;
    Ok(keyring.size())
}

fn export(config: &ConfigFile, file: &Path, format: Format) -> Result<(), Failure> {
    let config = config.load_as_owner()?;
    files::check_new(file)?;
    let hsm = Hsm::start(config.hsm.clone())?;
    let (bytes, status) = block_on(async {
        let store = Arc::new(Store::open(&config.store, hsm.clone()).await?);
        look_into(&config, &store, hsm).await?;
        Ok((store.export().await?, store.status()))
    })?;
    files::write_whole(file, &bytes)?;
    format.either(
        &format!(
            "exported store {}, epoch {}, {} records: {} bytes",
            hex::encode(&status.store_id),
            status.epoch,
            status.records,
            bytes.len()
        ),
        &json!({
            "store_id": hex::encode(&status.store_id),
            "epoch": status.epoch,
            "records": status.records,
            "bytes": bytes.len(),
        }),
    )
}

fn import(config: &ConfigFile, file: &Path, accept: bool, format: Format) -> Result<(), Failure> {
    // Read first: the store's owner may not be able to.
    let bytes = files::read_large(file)?;
    private_files();
    let config = config.load_as_owner()?;
    let hsm = Hsm::start(config.hsm.clone())?;
    block_on(async {
        let prepared = Import::prepare(&config.store, hsm.clone(), &bytes, accept).await;
        let import = prepared.map_err(|error| {
            let older = matches!(error, StoreError::RolledBack { .. });
            let failure = Failure::from(error);
            if older {
                failure.next("if no newer one is left, and what was made since may be lost: the same command with --accept-rollback")
            } else {
                failure
            }
        })?;
        let (keys, versions) = look_into(&config, import.store(), hsm.clone()).await?;
        let act = AuditedAct::begin(&config, hsm, "cli:store-import").await?;
        let finished = import.finish().await.map(|(store, accepted)| {
            let status = store.status();
            let rollback = accepted.as_ref().map_or_else(String::new, |accepted| {
                format!(
                    "; rollback accepted: epoch of the token {}, of the export {}",
                    accepted.hsm_epoch, accepted.store_epoch
                )
            });
            let reason = format!(
                "epoch {}, {} records{rollback}",
                status.epoch, status.records
            );
            (status, accepted, reason)
        });
        let say = |(_, _, reason): &(_, _, String)| reason.clone();
        let (status, accepted, reason) = act.end(finished.map_err(Into::into), say).await?;
        format.either(
            &format!("imported store {}: {reason}", hex::encode(&status.store_id)),
            &json!({
                "store_id": hex::encode(&status.store_id),
                "epoch": status.epoch,
                "records": status.records,
                "keys": keys,
                "versions": versions,
                "accepted_rollback": accepted.is_some(),
            }),
        )
    })
}

fn accept_rollback(config: &ConfigFile, format: Format) -> Result<(), Failure> {
    let config = config.load_as_owner()?;
    let hsm = Hsm::start(config.hsm.clone())?;
    block_on(async {
        let act = AuditedAct::begin(&config, hsm.clone(), "cli:accept-rollback").await?;
        let say = |accepted: &AcceptedRollback| {
            format!(
                "epoch of the token {}, of the store {}, now {}",
                accepted.hsm_epoch, accepted.store_epoch, accepted.new_epoch
            )
        };
        let accepted = Store::accept_rollback(&config.store, hsm).await;
        let accepted = act.end(accepted.map_err(Into::into), say).await?;
        let reason = say(&accepted);
        format.either(
            &format!(
                "accepted: {reason}; each key encrypts with a new version from the next start on"
            ),
            &json!({
                "hsm_epoch": accepted.hsm_epoch,
                "store_epoch": accepted.store_epoch,
                "new_epoch": accepted.new_epoch,
            }),
        )
    })
}
