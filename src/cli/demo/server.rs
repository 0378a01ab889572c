//! The demo's server and other child processes: none outlives the demo.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use strongroom_client::Client;
use tokio::process::{Child, Command as AsyncCommand};

use super::site::Site;
use crate::cli::exit::{Exit, Failure};

/// Longer than any start takes on a slow machine.
const MAX_START_TIME: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// `strongroom serve` as a child. It stops when its standard input closes, so also when this
/// process dies.
pub(super) struct Server {
    child: Child,
    log: std::path::PathBuf,
    pub(super) address: String,
}

impl Server {
    pub(super) async fn start(site: &Site) -> Result<Self, Failure> {
        let fail =
            |error: &std::io::Error| Failure::new(Exit::Failed, format!("the server: {error}"));
        let log = site.path("server.log");
        let file = std::fs::File::create(&log).map_err(|error| Failure::file(&log, &error))?;
        let addr_file = site.path("address");
        let mut command = site.command(&["serve", "--stop-with-stdin"])?;
        command
            .arg("--addr-file")
            .arg(&addr_file)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(file);
        let child = AsyncCommand::from(command)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| fail(&error))?;
        let mut server = Self {
            child,
            log,
            address: String::new(),
        };
        let deadline = Instant::now() + MAX_START_TIME;
        loop {
            if let Ok(text) = std::fs::read_to_string(&addr_file) {
                server.address = format!("https://{}", text.trim());
                return Ok(server);
            }
            server.check(deadline)?;
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    pub(super) async fn wait_until_healthy(&mut self, client: &Client) -> Result<(), Failure> {
        let deadline = Instant::now() + MAX_START_TIME;
        loop {
            if let Ok(answer) = client.request("GET", "sys/health", None).await
                && answer.status.is_success()
            {
                return Ok(());
            }
            self.check(deadline)?;
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Closes its standard input and waits for it to leave.
    pub(super) async fn stop(&mut self) -> Result<(), Failure> {
        drop(self.child.stdin.take());
        let status = tokio::time::timeout(MAX_START_TIME, self.child.wait())
            .await
            .map_err(|_| Failure::new(Exit::Failed, "the server does not stop"))?
            .map_err(|error| Failure::new(Exit::Failed, format!("the server: {error}")))?;
        if status.success() {
            return Ok(());
        }
        Err(self.failure(&format!("the server ended with {status}")))
    }

    fn check(&mut self, deadline: Instant) -> Result<(), Failure> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Err(self.failure(&format!("the server ended with {status}")));
        }
        if Instant::now() > deadline {
            return Err(self.failure("the server does not become healthy"));
        }
        Ok(())
    }

    fn failure(&self, what: &str) -> Failure {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        Failure::new(
            Exit::Failed,
            format!("{what}; its log:\n{}", log.trim_end()),
        )
    }
}

/// Runs a command to its end; what it printed, or a failure that quotes its errors.
pub(super) async fn output(command: Command) -> Result<Output, Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let fail = |problem: String| Failure::new(Exit::Failed, format!("{name}: {problem}"));
    let output = AsyncCommand::from(command)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| fail(error.to_string()))?;
    if output.status.success() {
        return Ok(output);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(fail(format!("{}\n{}", output.status, errors.trim_end())))
}
