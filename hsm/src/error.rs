//! What can go wrong between Strongroom and a token, by what the operator can do about it.

/// An error of the token or of what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HsmError {
    /// The token is gone or not answering; it is being reconnected. Try again later.
    #[error("the HSM is not available: {0}")]
    Unavailable(String),
    /// The queue is full. Try again later.
    #[error("the HSM is busy: {0} jobs are waiting")]
    Busy(usize),
    /// A call did not come back in time.
    #[error("the HSM did not answer within {0:?}")]
    Deadline(std::time::Duration),
    /// Data or a wrapped key did not authenticate, or could not be unwrapped.
    #[error("authentication failed: the data was altered, or was made with another key")]
    Authentication,
    /// The token has no such mechanism.
    #[error("the token does not support {0}")]
    Unsupported(String),
    /// `CKR_PIN_INCORRECT` and its kin: never retried.
    #[error(
        "the token refused the PIN ({0}); it was tried once and will not be tried again: correct the PIN and restart"
    )]
    Pin(String),
    /// A key is missing or has an attribute that it must not have.
    #[error("the {key} on the token is not acceptable: {attribute} {problem}")]
    KeyPolicy {
        /// Which key, e.g. "master key".
        key: String,
        /// The attribute, e.g. `CKA_EXTRACTABLE`.
        attribute: String,
        /// What is wrong and what it must be.
        problem: String,
    },
    /// An object that the appliance needs is not to be seen on the token.
    #[error(
        "the {name} is not to be seen on the token (no such object is labelled {label:?}; {})",
        shows(there)
    )]
    Missing {
        /// Of which object, e.g. "master key".
        name: String,
        /// Its `CKA_LABEL`.
        label: String,
        /// Labels of an appliance's objects that are there.
        there: Vec<String>,
    },
    /// A value that the token keeps is not as it was left.
    #[error("the {name} on the token {problem}")]
    Register {
        /// Which, e.g. "epoch object".
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A wrapped key belongs to another master key than the token's.
    #[error(
        "the key is wrapped by the master key {wanted}, but the token holds {here}: use the token that the key was made with; if the store is a \
         backup from before a rotation of the master key, use one that was made after it"
    )]
    OtherMaster {
        /// Fingerprint of the master key that wraps it, hexadecimal.
        wanted: String,
        /// Fingerprint of the token's, or of each where a rotation is under way.
        here: String,
    },
    /// A KEK can't go from one master key to another.
    #[error("the key can't be moved to another master key: {0}")]
    NotMovable(String),
    /// No rotation of the master key is under way, or it is not as far as that.
    #[error("{0}")]
    Rotation(String),
    /// A key to be imported is of no use.
    #[error("the key can't be used: {0}")]
    InvalidKey(String),
    /// A key that is to be made is there already.
    #[error("the token already holds a {0}; nothing was changed")]
    KeyExists(String),
    /// A token that is to be initialized is so already.
    #[error(
        "the token {label:?} (serial {serial}) is initialized already; nothing was changed: choose an uninitialized token, or have this one erased first if nothing depends on it"
    )]
    TokenInitialized {
        /// Its label.
        label: String,
        /// Its serial number.
        serial: String,
    },
    /// Keys that are to be discarded are in use.
    #[error(
        "the keys on the token are in use ({0}); nothing was destroyed: use `destroy` if the store is to be given up"
    )]
    KeysInUse(String),
    /// Something else in this process or on this machine uses the token.
    #[error("the token is in use ({0}): stop whatever uses it, then try again")]
    TokenInUse(String),
    /// Objects that were to be destroyed are still on the token.
    #[error("the token still holds {}: have it erased by its maker's tool", .0.join(", "))]
    NotDestroyed(Vec<String>),
    /// The token gives what it must refuse.
    #[error(
        "the token failed the trial of the {what}: {reason}; its keys could be taken out with the user PIN alone, so it is not used: make the \
         appliance's keys on a token that keeps them"
    )]
    Trial {
        /// Of which key.
        what: String,
        /// What the user PIN alone gives.
        reason: String,
    },
    /// The token gives none of the keys with which it must be tried.
    #[error(
        "the token could not be tried: {0}, so what it does for whoever has such a key is not shown, and it is not used: let the user PIN make such \
         keys, or, if nobody is to have them, take the mechanism off the token's list (its maker's tool or settings do either)"
    )]
    Untried(String),
    /// A known-answer test failed.
    #[error(
        "the power-on self-test of {0} failed: the token gives wrong answers and must not be used"
    )]
    SelfTest(String),
    /// The module, the token or the PIN file can't be found or read as configured.
    #[error("{0}")]
    Config(String),
    /// Any other answer of the token.
    #[error("{function} returned {code}")]
    Pkcs11 {
        /// `C_Decrypt`, ...
        function: String,
        /// `CKR_...`
        code: String,
    },
}

/// What a token has of an appliance, for whoever looks for the right one.
fn shows(there: &[String]) -> String {
    if there.is_empty() {
        return "it shows nothing of an appliance".to_owned();
    }
    format!("it shows {}", there.join(", "))
}
