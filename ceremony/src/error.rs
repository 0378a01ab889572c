//! Why something in a ceremony could not be done, and what to do next.

use std::path::{Path, PathBuf};

use strongroom_hsm::HsmError;

/// Why something in a ceremony could not be done.
#[derive(Debug, thiserror::Error)]
pub enum CeremonyError {
    /// A file can't be read.
    #[error("{path} can't be read: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file can't be written.
    #[error("{path} can't be written: {source}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A plan that can't be carried out.
    #[error("the plan is not valid:{}", list(.0))]
    Plan(Vec<String>),
    /// Not everyone has signed the plan.
    #[error("the plan is not signed by all:{}", list(.0))]
    PlanSignatures(Vec<String>),
    /// A participant's public file, or their part of a plan.
    #[error("{0}")]
    Participant(String),
    /// A passphrase that can't be taken.
    #[error("{0}")]
    Passphrase(String),
    /// A participant's private key.
    #[error("{0}")]
    Key(String),
    /// An encrypted share that does not open.
    #[error("{0}")]
    Jwe(String),
    /// A share that can't be used; nothing was changed by it.
    #[error("{0}")]
    Share(String),
    /// Words that are no share.
    #[error("{0}")]
    Words(String),
    /// A transcript that can't be continued.
    #[error("the transcript {path} can't be continued: {problem}")]
    Transcript {
        /// Which.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A backup that can't be used.
    #[error("the backup: {0}")]
    Backup(String),
    /// A participant's own token.
    #[error("the token: {0}")]
    Token(#[from] HsmError),
    /// The kernel gives no random bytes.
    #[error(
        "the operating system gives no random bytes: nothing was made; restart the machine and try again"
    )]
    Random,
}

impl CeremonyError {
    pub(crate) fn read(path: &Path, source: std::io::Error) -> Self {
        Self::Read {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn write(path: &Path, source: std::io::Error) -> Self {
        Self::Write {
            path: path.to_owned(),
            source,
        }
    }
}

fn list(problems: &[String]) -> String {
    problems
        .iter()
        .fold(String::new(), |text, problem| text + "\n- " + problem)
}
