//! `strongroom store …`: the sealed store, while the server is stopped.

use base16ct::lower::encode_string;
use clap::{Args, Subcommand};
use serde_json::json;
use strongroom_hsm::Hsm;

use super::exit::{Exit, Failure};
use super::output::Format;
use super::remote::block_on;
use super::server::{ConfigFile, create_store, record};
use crate::store::Store;

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
    /// Make an empty store for the keys that are on the token already
    #[command(
        after_help = "Example:\n  strongroom store create\n\n`strongroom init` makes keys and store in one go; this is for when only the store is missing."
    )]
    Create {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Take an older copy of the store as the true one, after a backup was restored on purpose
    #[command(after_help = "Example:\n  strongroom store accept-rollback --yes\n\n\
        Keys and versions made after the backup are gone: what they encrypted can't be decrypted. The act is written into the audit log.")]
    AcceptRollback {
        #[command(flatten)]
        config: ConfigFile,
        /// Yes, this copy is the one to go on with
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
                &format!("made store {}", encode_string(&status.store_id)),
                &json!({"store_id": encode_string(&status.store_id), "epoch": status.epoch}),
            )
        }
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
    let status = block_on(async { Ok(Store::open(&config.store, hsm).await?.status()) })?;
    format.result(&json!({
        "path": config.store,
        "store_id": encode_string(&status.store_id),
        "epoch": status.epoch,
        "records": status.records,
    }))
}

fn accept_rollback(config: &ConfigFile, format: Format) -> Result<(), Failure> {
    let config = config.load_as_owner()?;
    let hsm = Hsm::start(config.hsm.clone())?;
    block_on(async {
        let accepted = Store::accept_rollback(&config.store, hsm.clone()).await?;
        let reason = format!(
            "epoch of the token {}, of the store {}, now {}",
            accepted.hsm_epoch, accepted.store_epoch, accepted.new_epoch
        );
        record(&config, hsm, "cli:accept-rollback", &reason).await?;
        format.either(
            &format!("accepted: {reason}"),
            &json!({
                "hsm_epoch": accepted.hsm_epoch,
                "store_epoch": accepted.store_epoch,
                "new_epoch": accepted.new_epoch,
            }),
        )
    })
}
