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
    /// As `call_deadline`, where a key pair is made; if it is shorter than that, that counts.
    pub key_generation_deadline: Duration,
    /// Unwrapped KEKs each session keeps; the least recently used goes first.
    pub session_keys: usize,
    /// What the plan decided in the keys' initial ceremony; each start demands exactly this of
    /// them.
    pub shape: KeyShape,
}

/// Whether the keys that a second token needs (master keys, store key) may ever be moved to one.
/// Decided in their initial ceremony, for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyShape {
    /// They never leave the token: `CKA_EXTRACTABLE=false`.
    #[default]
    Fixed,
    /// They were made here, and can be wrapped by a key that the security officer made
    /// `CKA_TRUSTED`, and by no other: `CKA_EXTRACTABLE=true` with
    /// `CKA_WRAP_WITH_TRUSTED=true`.
    Movable,
    /// The same, but they came from another token by a backup, so that this one did not make them:
    /// `CKA_LOCAL=false`.
    Moved,
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
    /// In memory already: a PIN that the custodians' shares have just made, which never was in a
    /// file.
    Given(SecretPin),
}
