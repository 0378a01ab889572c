//! This program again as child processes, for the demo and `strongroom dev`: none outlives its
//! parent.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use strongroom_client::Client;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStdin, Command as AsyncCommand};

use super::exit::{Exit, Failure};

/// Longer than any start takes on a slow machine.
const MAX_START_TIME: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Bytes of what a child says of why it failed.
const MAX_SAID: u64 = 64 * 1024;

/// `strongroom serve` as a child. It stops when its standard input closes, so also when this
/// process dies.
pub(super) struct Server {
    child: Child,
    /// Apart from the child, whose `wait` closes what it has.
    stdin: Option<ChildStdin>,
    log: PathBuf,
    pub(super) address: String,
}

impl Server {
    /// Starts the command, which is `serve` with its configuration, and waits until it listens.
    /// What it logs goes into `log`, its address through `addr_file`.
    pub(super) async fn start(
        mut command: Command,
        log: PathBuf,
        addr_file: &Path,
    ) -> Result<Self, Failure> {
        let fail =
            |error: &std::io::Error| Failure::new(Exit::Failed, format!("the server: {error}"));
        let file = std::fs::File::create(&log).map_err(|error| Failure::file(&log, &error))?;
        // An earlier server's would be taken for this one's.
        match std::fs::remove_file(addr_file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::file(addr_file, &error));
            }
            _ => {}
        }
        command
            .arg("--stop-with-stdin")
            .arg("--addr-file")
            .arg(addr_file)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(file)
            // Ctrl-C is for the parent, which then stops this one in order, once.
            .process_group(0);
        let mut child = AsyncCommand::from(command)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| fail(&error))?;
        let mut server = Self {
            stdin: child.stdin.take(),
            child,
            log,
            address: String::new(),
        };
        let deadline = Instant::now() + MAX_START_TIME;
        loop {
            if let Ok(text) = std::fs::read_to_string(addr_file) {
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

    /// Waits until it ends by itself, which it should not.
    pub(super) async fn ended(&mut self) -> Failure {
        match self.child.wait().await {
            Ok(status) => self.failure(&format!("the server ended with {status}")),
            Err(error) => self.failure(&format!("the server: {error}")),
        }
    }

    /// Closes its standard input and waits for it to leave.
    pub(super) async fn stop(&mut self) -> Result<(), Failure> {
        drop(self.stdin.take());
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

/// This program's own file.
pub(super) fn executable() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|error| {
        Failure::new(
            Exit::Failed,
            format!("this program's own path is not known: {error}"),
        )
    })
}

/// Runs this program with other arguments to its end, unless `stop` comes first: then it is killed,
/// and gone when this returns. A failure of it is this one's, with its exit code.
pub(super) async fn run(command: Command, stop: impl Future<Output = ()>) -> Result<(), Failure> {
    let fail = |error: &std::io::Error| Failure::new(Exit::Failed, error.to_string());
    let mut command = AsyncCommand::from(command);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // As the server: `stop` is how it ends early.
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| fail(&error))?;
    let stderr = child.stderr.take();
    let mut said = Vec::new();
    let ended = async {
        if let Some(stderr) = stderr {
            stderr.take(MAX_SAID).read_to_end(&mut said).await?;
        }
        child.wait().await
    };
    let status = tokio::select! {
        status = ended => Some(status.map_err(|error| fail(&error))?),
        () = stop => None,
    };
    let Some(status) = status else {
        child.kill().await.map_err(|error| fail(&error))?;
        return Err(Failure::new(Exit::Failed, "interrupted"));
    };
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said);
    let said = said.trim_end();
    let (message, next) = said.rsplit_once("\nnext: ").unwrap_or((said, ""));
    let exit = Exit::of_code(status.code());
    let failure = Failure::new(exit, message.strip_prefix("error: ").unwrap_or(message));
    Err(match next {
        "" => failure,
        next => failure.next(next),
    })
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
