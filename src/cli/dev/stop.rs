//! The signals that end `strongroom dev`.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::exit::{Exit, Failure};

/// From here on none of them has its default effect.
pub(super) struct Stop {
    interrupt: Signal,
    terminate: Signal,
    /// The terminal is gone. `None` under `nohup`.
    hangup: Option<Signal>,
}

impl Stop {
    pub(super) fn new() -> Result<Self, Failure> {
        let caught = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(Exit::Failed, format!("signals can't be caught: {error}"))
            })
        };
        Ok(Self {
            // Asked first: one that is caught is not ignored any more.
            hangup: if is_ignored(SignalKind::hangup()) {
                None
            } else {
                Some(caught(SignalKind::hangup())?)
            },
            interrupt: caught(SignalKind::interrupt())?,
            terminate: caught(SignalKind::terminate())?,
        })
    }

    pub(super) async fn told(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
        }
    }
}

/// Whether who started this process had it ignored: `SigIgn` of `proc_pid_status(5)`.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    mask & (1 << (kind.as_raw_value() - 1)) != 0
}
