//! Why a ceremony stopped, and what to do next.

use std::path::{Path, PathBuf};

use strongroom_core::audit::AuditError;
use strongroom_core::store::StoreError;
use strongroom_hsm::HsmError;

use super::ui::UiError;
use crate::CeremonyError;

/// Why a ceremony stopped. Whatever the reason, running the same command again goes on where it
/// stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Plan, participants, shares or transcript.
    #[error(transparent)]
    Ceremony(#[from] CeremonyError),
    /// The token.
    #[error(transparent)]
    Hsm(#[from] HsmError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The people, or their answers.
    #[error(transparent)]
    Ui(#[from] UiError),
    /// A file that the ceremony reads or writes.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something is not as it must be; nothing was done about it.
    #[error("{0}")]
    Refused(String),
    /// Something must come from outside first.
    #[error("{what}")]
    Waiting {
        /// What is missing.
        what: String,
        /// What to do about it.
        next: String,
    },
}

impl RunError {
    pub(super) fn file(path: &Path, source: std::io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn refused(problem: impl Into<String>) -> Self {
        Self::Refused(problem.into())
    }

    pub(super) fn random() -> Self {
        CeremonyError::Random.into()
    }

    #[allow(clippy::needless_pass_by_value, reason = "for map_err")]
    pub(super) fn json(error: serde_json::Error) -> Self {
        Self::refused(format!("a transcript line can't be made: {error}"))
    }
}
