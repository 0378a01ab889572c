//! What only one kind of ceremony works with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::RunError;
use super::later::{RunningServer, Task};
use crate::shares;

/// In a ceremony of its kind.
pub(super) enum Work {
    /// Every kind that has nothing besides.
    Plain,
    Backup {
        secrets: Option<shares::Pins>,
    },
    Restore {
        /// The directory of the ceremony that made the backup.
        backup: PathBuf,
        secrets: Option<shares::Pins>,
    },
    RotateMaster {
        /// The one that moves the keys; none if it is stopped.
        server: Option<Arc<dyn RunningServer>>,
    },
}

impl Work {
    /// `backup`: where a restoration's is, once it was found.
    pub(super) fn of(task: &Task, backup: Option<PathBuf>) -> Self {
        match (task, backup) {
            (Task::Backup, _) => Self::Backup { secrets: None },
            (Task::Restore { .. }, Some(backup)) => Self::Restore {
                backup,
                secrets: None,
            },
            (Task::RotateMaster { server }, _) => Self::RotateMaster {
                server: server.clone(),
            },
            _ => Self::Plain,
        }
    }

    /// A backup's two secrets, while they are known: the transport key, and the key that
    /// authenticates its file.
    pub(super) fn secrets(&mut self) -> Result<&mut Option<shares::Pins>, RunError> {
        match self {
            Self::Backup { secrets } | Self::Restore { secrets, .. } => Ok(secrets),
            Self::Plain | Self::RotateMaster { .. } => Err(RunError::refused(
                "this kind of ceremony has no transport key",
            )),
        }
    }

    pub(super) fn backup(&self) -> Result<&Path, RunError> {
        match self {
            Self::Restore { backup, .. } => Ok(backup),
            _ => Err(RunError::refused("no backup was named")),
        }
    }

    pub(super) fn server(&self) -> Option<Arc<dyn RunningServer>> {
        match self {
            Self::RotateMaster { server } => server.clone(),
            _ => None,
        }
    }
}
