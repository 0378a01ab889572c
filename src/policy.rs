//! Who may do what with which key: identities × key globs × operations; what is not allowed is denied.

use std::path::{Path, PathBuf};

use crate::identity::Identity;

/// What a request asks to do; the names in the policy file are these in kebab case.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Operation {
    Create,
    Read,
    List,
    Rotate,
    Configure,
    Trim,
    Delete,
    Import,
    WrappingKey,
    Encrypt,
    Decrypt,
    Rewrap,
    DatakeyPlaintext,
    DatakeyWrapped,
    Random,
    Hash,
    Hmac,
    Verify,
    Metrics,
}

/// A whole policy, parsed and validated.
#[derive(Debug)]
pub struct Policy {}

/// Why a policy file was refused.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Can't be read.
    #[error("the policy file {path} can't be read: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Can't be understood.
    #[error("the policy file {path} is not valid: {problem}")]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What and where.
        problem: String,
    },
}

#[allow(unused_variables, clippy::todo)]
impl Policy {
    /// Reads and validates the whole file, or says what is wrong with it.
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        todo!()
    }

    /// Whether `identity` may do `operation` with `key` (`None` for operations without a key).
    pub fn allows(&self, identity: &Identity, operation: Operation, key: Option<&str>) -> bool {
        todo!()
    }

    /// Whether any rule that allows it for this identity also asks for a token.
    pub fn needs_token(
        &self,
        identity: &Identity,
        operation: Operation,
        key: Option<&str>,
    ) -> bool {
        todo!()
    }
}
