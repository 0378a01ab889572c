//! `strongroom check`: what somebody should look at before it becomes an outage.
//! `strongroom-check.timer` runs it daily.

mod appliance;
mod machine;
mod server;

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::exit::{Exit, Failure};
use super::output::Format;
use super::remote::Remote;
use super::server::ConfigFile;

#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Days for which each certificate must still be valid
    #[arg(long, value_name = "DAYS", default_value_t = 14)]
    certificate_days: u32,
    /// Public key to verify the audit log with, from `strongroom audit public-key` [default:
    /// audit-key.pem beside the configuration, or the token's own]
    #[arg(long, value_name = "FILE", env = "STRONGROOM_CHECK_AUDIT_KEY")]
    audit_key: Option<PathBuf>,
    /// Directory of backups, whose newest file must be recent
    #[arg(long, value_name = "DIR", env = "STRONGROOM_CHECK_BACKUPS")]
    backups: Option<PathBuf>,
    /// Days after which a backup is too old
    #[arg(
        long,
        value_name = "DAYS",
        env = "STRONGROOM_CHECK_BACKUP_DAYS",
        default_value_t = 7
    )]
    backup_days: u16,
    /// Ask the running server for its health and its keys' rotation too, if --cacert is given
    #[command(flatten)]
    remote: Remote,
}

/// What one look found.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    state: State,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// Not looked at, and why.
    Skipped,
    Failed,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Failed => "FAILED",
        }
    }
}

impl Finding {
    fn new(check: &'static str, found: Result<String, String>) -> Self {
        let (state, text) = match found {
            Ok(text) => (State::Ok, text),
            Err(text) => (State::Failed, text),
        };
        Self { check, state, text }
    }

    fn skipped(check: &'static str, why: &str) -> Self {
        Self {
            check,
            state: State::Skipped,
            text: why.to_owned(),
        }
    }
}

pub(super) fn run(args: &CheckArgs, format: Format) -> Result<(), Failure> {
    let config = args.config.load()?;
    let folder = args.config.path().parent().unwrap_or(args.config.path());
    let mut findings = vec![Finding::new(
        "configuration",
        config
            .check()
            .map(|()| args.config.path().display().to_string())
            .map_err(|error| error.to_string()),
    )];
    findings.extend(appliance::certificates(&config, args.certificate_days));
    let place = findings.len();
    let key = args
        .audit_key
        .clone()
        .or_else(|| Some(folder.join("audit-key.pem")).filter(|file| file.exists()));
    findings.push(appliance::audit_log(&config, key.as_deref()));
    findings.push(machine::disk(&config));
    findings.push(machine::clock(&config));
    findings.push(machine::backups(args.backups.as_deref(), args.backup_days));
    let mut remote = args.remote.clone();
    remote
        .addr
        .get_or_insert_with(|| server::address(args.config.path(), config.listen));
    findings.extend(server::look(&remote, args.certificate_days));
    // Looked at last: root becomes the store's owner for it.
    findings.insert(place, appliance::store(&config));
    report(&findings, format)
}

fn report(findings: &[Finding], format: Format) -> Result<(), Failure> {
    let text = findings.iter().fold(String::new(), |text, finding| {
        let (state, check) = (finding.state.word(), finding.check);
        format!(
            "{text}{state:7}  {check:13}  {}\n",
            finding.text.replace('\n', "; ")
        )
    });
    format.either(text.trim_end(), &json!({ "checks": findings }))?;
    let failed: Vec<_> = findings
        .iter()
        .filter(|finding| finding.state == State::Failed)
        .map(|finding| finding.check)
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Failed,
        format!("not well: {}", failed.join(", ")),
    ))
}

/// Seconds since 1970.
fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

fn date(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| seconds.to_string(), |time| time.to_string())
}
