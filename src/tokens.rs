//! Optional client tokens, each bound to one identity: a token is worthless without the certificate.

use std::path::{Path, PathBuf};

use crate::identity::Identity;

/// The tokens file, parsed: SHA-256 of each token, never the token.
#[derive(Debug, Default)]
pub struct Tokens {}

/// A token that was presented and is good.
#[derive(Clone, Debug)]
pub struct TokenInfo {
    /// Its name in the file; what `lookup-self` calls the accessor.
    pub id: String,
    /// Seconds since 1970.
    pub created: i64,
}

/// Why a tokens file was refused.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// Can't be read.
    #[error("the tokens file {path} can't be read: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Can't be understood.
    #[error("the tokens file {path} is not valid: {problem}")]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What and where.
        problem: String,
    },
}

#[allow(unused_variables, clippy::todo)]
impl Tokens {
    /// Reads and validates the whole file.
    pub fn load(path: &Path) -> Result<Self, TokensError> {
        todo!()
    }

    /// The token's entry, if it exists and is bound to this identity; constant-time in the token.
    pub fn check(&self, token: &str, identity: &Identity) -> Option<TokenInfo> {
        todo!()
    }
}
