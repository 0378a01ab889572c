//! Where the token is and how it is used.

use std::path::PathBuf;
use std::time::Duration;

use crate::pin::SecretPin;

/// Everything [`crate::Hsm::start`] needs.
#[derive(Clone, Debug)]
pub struct HsmConfig {
    /// The PKCS#11 module, a shared library.
    pub module: PathBuf,
    /// Which token.
    pub token: TokenSelector,
    /// Where the user PIN is.
    pub pin: PinSource,
    /// Threads, each with its own session (1..=64).
    pub sessions: usize,
    /// Jobs that may wait; one more is refused with [`crate::HsmError::Busy`].
    pub queue: usize,
    /// A PKCS#11 call longer than this counts as hung.
    pub call_deadline: Duration,
    /// Unwrapped KEKs each session keeps; the least recently used goes first.
    pub session_keys: usize,
}

/// How the token is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSelector {
    /// By `CK_TOKEN_INFO.label`.
    Label(String),
    /// By `CK_TOKEN_INFO.serialNumber`.
    Serial(String),
    /// By an RFC 7512 URI (`pkcs11:token=…;serial=…;manufacturer=…;model=…;slot-id=…`).
    Uri(String),
}

/// Where the PIN comes from, each time it is needed; never argv, never the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinSource {
    /// A file that only its owner may read; one trailing newline is dropped.
    File(PathBuf),
    /// `$CREDENTIALS_DIRECTORY/NAME`, as systemd's `LoadCredential=` makes it.
    Credential(String),
    /// In memory already: a PIN that the custodians' shares have just made, which never was in a file.
    Given(SecretPin),
}
