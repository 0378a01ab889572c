//! This program again as child processes, for the demo and `strongroom dev`: none outlives its
//! parent.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use strongroom_client::Client;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStdin, Command as AsyncCommand};

use super::exit::{Exit, Failure};

/// Longer than any start takes on a slow machine.
const MAX_START_TIME: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Bytes of what a child says of why it failed.
const MAX_SAID: u64 = 64 * 1024;
/// What a service manager tells its own child, which is this process and no child of it.
const SERVICE_MANAGER: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];

/// `strongroom serve` as a child. It stops when its standard input closes, so also when this
/// process dies.
pub(super) struct Server {
    child: Child,
    /// Apart from the child, whose `wait` closes what it has.
    stdin: Option<ChildStdin>,
    log: PathBuf,
    addr_file: PathBuf,
    /// `https://…`, once it listens.
    pub(super) address: String,
}

impl Server {
    /// Starts the command, which is `serve` with its configuration, and waits until it listens.
    /// What it logs goes into `log`, its address through `addr_file`.
    pub(super) async fn start(
        command: Command,
        log: PathBuf,
        addr_file: PathBuf,
    ) -> Result<Self, Failure> {
        let mut server = Self::spawn(command, log, addr_file)?;
        server.wait_until_listening().await?;
        Ok(server)
    }

    /// As [`Server::start`], without waiting.
    pub(super) fn spawn(
        mut command: Command,
        log: PathBuf,
        addr_file: PathBuf,
    ) -> Result<Self, Failure> {
        let file = File::create(&log).map_err(|error| Failure::file(&log, &error))?;
        // An earlier server's would be taken for this one's.
        match std::fs::remove_file(&addr_file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::file(&addr_file, &error));
            }
            _ => {}
        }
        for name in SERVICE_MANAGER {
            command.env_remove(name);
        }
        command
            .arg("--stop-with-stdin")
            .arg("--addr-file")
            .arg(&addr_file)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(file)
            // Ctrl-C is for the parent, which then stops this one in order, once.
            .process_group(0);
        let mut child = AsyncCommand::from(command)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Failure::new(Exit::Failed, format!("the server: {error}")))?;
        Ok(Self {
            stdin: child.stdin.take(),
            child,
            log,
            addr_file,
            address: String::new(),
        })
    }

    pub(super) async fn wait_until_listening(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + MAX_START_TIME;
        loop {
            if let Ok(text) = std::fs::read_to_string(&self.addr_file) {
                self.address = format!("https://{}", text.trim());
                return Ok(());
            }
            self.check(deadline)?;
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
            Ok(status) => self.failure(status),
            Err(error) => Failure::new(Exit::Failed, format!("the server: {error}")),
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
        Err(self.failure(status))
    }

    fn check(&mut self, deadline: Instant) -> Result<(), Failure> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Err(self.failure(status));
        }
        if Instant::now() > deadline {
            let what = "the server does not become healthy";
            return Err(Failure::new(Exit::Failed, self.with_log(what)));
        }
        Ok(())
    }

    /// What it said itself, with its exit code, if it ended with an error; else its whole log.
    fn failure(&self, status: ExitStatus) -> Failure {
        reported(&end_of(&self.log), status).unwrap_or_else(|| {
            Failure::new(
                Exit::Failed,
                self.with_log(&format!("the server ended with {status}")),
            )
        })
    }

    fn with_log(&self, what: &str) -> String {
        format!("{what}; its log:\n{}", end_of(&self.log).trim_end())
    }
}

/// Its last bytes, as text.
fn end_of(log: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MAX_SAID)))?;
        let mut bytes = Vec::new();
        file.take(MAX_SAID).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// The failure that a child of this program reported last (see [`Failure::report`]) in what it
/// wrote on standard error.
fn reported(said: &str, status: ExitStatus) -> Option<Failure> {
    const MARK: &str = "error: ";
    let begin = if said.starts_with(MARK) {
        0
    } else {
        said.rfind(&format!("\n{MARK}"))? + 1
    };
    let report = said.get(begin + MARK.len()..)?.trim_end();
    let (message, next) = match report.split_once("\nnext: ") {
        Some((message, next)) => (message, Some(next)),
        None => (report, None),
    };
    let failure = Failure::new(Exit::of_code(status.code()), message.replace("\n  ", "\n"));
    Some(match next {
        Some(next) => failure.next(next),
        None => failure,
    })
}

/// Ends this process when its standard input closes: its parent, which holds the other end, is
/// gone or wants it to. At once, since only what it makes as a whole counts.
pub(super) fn end_with_stdin() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = kill(Pid::this(), Signal::SIGKILL);
    });
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
/// and gone when this returns. A failure of it is this one's, with its exit code. Its standard
/// input stays open as long as this process waits: [`end_with_stdin`].
pub(super) async fn run(command: Command, stop: impl Future<Output = ()>) -> Result<(), Failure> {
    let fail = |error: &std::io::Error| Failure::new(Exit::Failed, error.to_string());
    let mut command = AsyncCommand::from(command);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // As the server: `stop` is how it ends early.
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| fail(&error))?;
    // Apart from the child, whose `wait` closes what it has.
    let _stdin = child.stdin.take();
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
        return Err(interrupted());
    };
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said);
    Err(reported(&said, status)
        .unwrap_or_else(|| Failure::new(Exit::Failed, format!("{status}\n{}", said.trim_end()))))
}

/// Somebody stopped it before its time.
pub(super) fn interrupted() -> Failure {
    Failure::new(Exit::Failed, "interrupted")
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
