//! Whether a version on trial may stay: the server serves, and goes on serving.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::cli::exit::{Exit, Failure};

const SERVER_UNIT: &str = "strongroom.service";

/// So long it must have served without a new start: a server that crashes over its first work is
/// not healthy.
const MIN_UPTIME: Duration = Duration::from_secs(10);

/// A network HSM may be slow; a version that needs longer than this is given up.
const MAX_START_TIME: Duration = Duration::from_mins(3);

/// More starts than this, and it crashes.
const MAX_STARTS: u32 = 4;

/// Returns once the server is healthy, or with an error when it is not.
pub(super) fn wait() -> Result<(), Failure> {
    let begun = Instant::now();
    let mut steady: Option<(Instant, String)> = None;
    loop {
        let [active, restarts, status] = ["ActiveState", "NRestarts", "ExecMainStatus"].map(server);
        if active == "failed" {
            return Err(not_healthy(&format!("the server ended with {status}")));
        }
        if restarts.parse().unwrap_or(0) >= MAX_STARTS {
            return Err(not_healthy("the server crashes again and again"));
        }
        steady = match steady {
            Some((since, before)) if active == "active" && before == restarts => {
                if since.elapsed() >= MIN_UPTIME {
                    return Ok(());
                }
                Some((since, before))
            }
            _ => (active == "active").then(|| (Instant::now(), restarts)),
        };
        if begun.elapsed() > MAX_START_TIME && steady.is_none() {
            return Err(not_healthy(&format!(
                "the server did not come up within {} s",
                MAX_START_TIME.as_secs()
            )));
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// What systemd says of the server.
fn server(property: &str) -> String {
    Command::new("systemctl")
        .args(["show", "--value", "--property", property, SERVER_UNIT])
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default()
}

fn not_healthy(why: &str) -> Failure {
    Failure::new(Exit::Failed, format!("this version is not healthy: {why}"))
}
