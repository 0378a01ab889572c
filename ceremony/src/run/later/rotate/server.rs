//! The running server, as far as a rotation needs it. How it is reached is the caller's: a ceremony
//! knows of no protocol.

use std::fmt;

use serde::Deserialize;

/// A server that moves the keys while it serves.
pub trait RunningServer: fmt::Debug + Send + Sync {
    /// How far the keys are.
    ///
    /// # Errors
    /// Why there is no answer.
    fn progress(&self) -> Result<Progress, NoAnswer>;

    /// Has the server look for its master key again, and move every key to it. `master_sha256`: of
    /// its public half (`SubjectPublicKeyInfo`, DER), hexadecimal.
    ///
    /// # Errors
    /// Why there is no answer, or the server's refusal.
    fn rotate_to(&self, master_sha256: &str) -> Result<Progress, NoAnswer>;
}

/// Why the server did not do it, each with the reason in one line.
#[derive(Debug)]
pub enum NoAnswer {
    /// It was not reached, or does not speak as the appliance does.
    Unreachable(String),
    /// Its policy has no such right for this client.
    Denied(String),
    /// It was asked, and can't.
    Refused(String),
}

/// How far the keys are: what `sys/rotate-master` answers, as far as it matters here.
#[derive(Clone, Debug, Deserialize)]
pub struct Progress {
    /// `complete`, `incomplete`, or something on the way there.
    pub state: String,
    /// Why nothing goes on at the moment.
    pub waiting_for: Option<String>,
    /// Versions of keys in all.
    pub versions: usize,
    /// Those under the new master key.
    pub moved: usize,
    /// Those that can't be moved.
    pub unmovable: Vec<Unmovable>,
}

/// A version of a key that can't be moved.
#[derive(Clone, Debug, Deserialize)]
pub struct Unmovable {
    /// The key's name.
    pub name: String,
    /// The version.
    pub version: u32,
    /// Why not.
    pub reason: String,
}
