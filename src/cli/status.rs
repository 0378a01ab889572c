//! `strongroom status`: is it up, and if not, why.

use clap::Args;
use serde_json::{Value, json};

use super::exit::{Exit, Failure};
use super::output::Format;
use super::remote::{Remote, block_on};

#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    remote: Remote,
}

pub(super) fn run(args: &StatusArgs, format: Format) -> Result<(), Failure> {
    block_on(async {
        let client = args.remote.client()?;
        let health = client.request("GET", "sys/health", None).await?;
        let seal: Value = client.call("GET", "sys/seal-status", None).await?;
        let body = health.json().unwrap_or_default();
        let healthy = health.status.is_success();
        let mut fields = json!({
            "address": client.address(),
            "healthy": healthy,
            "status": health.status.as_u16(),
            "sealed": seal.get("sealed"),
            "version": seal.get("version"),
        });
        // What this appliance tells beyond Vault's fields, among it why it is not healthy.
        if let (Some(fields), Some(more)) = (fields.as_object_mut(), body.get("strongroom")) {
            fields.insert("strongroom".into(), more.clone());
        }
        // Only who may read metrics is told of keys.
        let keys = client.request("GET", "sys/lifecycle", None).await?;
        if keys.status.is_success()
            && let (Some(fields), Ok(Value::Object(keys))) = (fields.as_object_mut(), keys.json())
        {
            let rotations = keys.get("rotations").and_then(Value::as_array);
            let skipped = rotations
                .into_iter()
                .flatten()
                .filter(|r| r["skipped"] == true)
                .count();
            fields.insert("rotations_skipped".into(), skipped.into());
            fields.insert(
                "signing_keys".into(),
                keys.get("signing_keys").cloned().unwrap_or_default(),
            );
            fields.insert(
                "client_certificates".into(),
                keys.get("client_certificates").cloned().unwrap_or_default(),
            );
        }
        format.result(&fields)?;
        if healthy {
            return Ok(());
        }
        let why = health.errors().join("; ");
        Err(Failure::new(
            Exit::Unavailable,
            format!("the appliance answers {} {why}", health.status),
        )
        .next(
            "look at its log; with the token gone it serves again by itself when the token is back",
        ))
    })
}
