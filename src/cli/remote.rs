//! The options that name an appliance and who asks it.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use strongroom_client::{Client, ClientOptions};

use super::exit::{Exit, Failure};

/// How to reach the appliance. Only paths stand in the environment, never a secret.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Connection")]
pub(super) struct Remote {
    /// Address of the appliance [default: https://127.0.0.1:8200; for check, where the configured
    /// server listens]
    #[arg(long, global = true, value_name = "URL", env = "STRONGROOM_ADDR")]
    pub(super) addr: Option<String>,
    /// CA of the appliance's certificate, PEM
    #[arg(long, global = true, value_name = "FILE", env = "STRONGROOM_CACERT")]
    pub(super) cacert: Option<PathBuf>,
    /// Client certificate and its chain, PEM
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "STRONGROOM_CLIENT_CERT"
    )]
    pub(super) client_cert: Option<PathBuf>,
    /// Private key of the client certificate, PEM
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "STRONGROOM_CLIENT_KEY"
    )]
    pub(super) client_key: Option<PathBuf>,
    /// File with an API token, where the policy requires one
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Mount path of Transit
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "STRONGROOM_MOUNT",
        default_value = "transit"
    )]
    pub(super) mount: String,
    /// Give up after this many seconds
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(super) timeout: u64,
}

/// Vault's port, on this machine.
const DEFAULT_ADDRESS: &str = "https://127.0.0.1:8200";

impl Remote {
    pub(super) fn addr(&self) -> &str {
        self.addr.as_deref().unwrap_or(DEFAULT_ADDRESS)
    }

    pub(super) fn client(&self) -> Result<Client, Failure> {
        let ca = self.cacert.clone().ok_or_else(|| {
            Failure::new(
                Exit::Usage,
                "the CA of the appliance's certificate is not given",
            )
            .next("give it with --cacert or STRONGROOM_CACERT")
        })?;
        let identity = match (self.client_cert.clone(), self.client_key.clone()) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                return Err(Failure::new(
                    Exit::Usage,
                    "a client certificate and its private key go together",
                )
                .next("give both --client-cert and --client-key"));
            }
        };
        Ok(Client::new(&ClientOptions {
            identity,
            token_file: self.token_file.clone(),
            timeout: Duration::from_secs(self.timeout),
            ..ClientOptions::new(self.addr().to_owned(), ca)
        })?)
    }

    /// A path below the mount.
    pub(super) fn path(&self, rest: &str) -> String {
        format!("{}/{rest}", self.mount.trim_matches('/'))
    }
}

/// Runs one command's requests; a client needs no second thread.
pub(super) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    runtime()?.block_on(future)
}

pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            Failure::new(
                Exit::Failed,
                format!("the async runtime can't start: {error}"),
            )
        })
}
