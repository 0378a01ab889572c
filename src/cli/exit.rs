//! How a command ends when it fails: an exit code, one sentence, and what to do next.

use std::process::ExitCode;

use hyper::StatusCode;
use serde_json::json;
use strongroom_ceremony::CeremonyError;
use strongroom_client::ClientError;
use strongroom_core::audit::AuditError;
use strongroom_core::causes::causes;
use strongroom_core::config::ConfigError;
use strongroom_core::keyring::KeyringError;
use strongroom_core::policy::PolicyError;
use strongroom_core::store::StoreError;
use strongroom_core::tls::TlsError;
use strongroom_core::tokens::TokensError;
use strongroom_hsm::HsmError;
use strongroom_server::serve::ServeError;

/// The exit codes, as `docs/cli.md` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    /// Anything that has no code of its own.
    Failed = 1,
    /// The command line, or a file that it names.
    Usage = 2,
    /// Configuration, policy, tokens or TLS files.
    Config = 3,
    /// The token is not there, not answering, or not fit for the command.
    Hsm = 4,
    /// The store is missing, altered or rolled back.
    Store = 5,
    /// The appliance refused the certificate, the token or the operation.
    Denied = 6,
    /// The appliance can't be reached or can't serve now.
    Unavailable = 7,
    /// An audit log or a ceremony's transcript does not verify.
    Audit = 8,
    /// The token refused the PIN, fails its self-test, or holds keys that are not acceptable:
    /// starting again can't help.
    HsmRefused = 9,
    /// A ceremony waits for something from outside: put it there, and run the same command again.
    Waiting = 10,
}

impl Exit {
    /// What a child of this program ended with.
    pub(super) fn of_code(code: Option<i32>) -> Self {
        let known = [
            Self::Usage,
            Self::Config,
            Self::Hsm,
            Self::Store,
            Self::Denied,
            Self::Unavailable,
            Self::Audit,
            Self::HsmRefused,
            Self::Waiting,
        ];
        known
            .into_iter()
            .find(|exit| code == Some(i32::from(*exit as u8)))
            .unwrap_or(Self::Failed)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::Config => "config",
            Self::Hsm => "hsm",
            Self::Store => "store",
            Self::Denied => "denied",
            Self::Unavailable => "unavailable",
            Self::Audit => "audit",
            Self::HsmRefused => "hsm-refused",
            Self::Waiting => "waiting",
        }
    }
}

/// Why a command failed.
#[derive(Debug)]
pub(super) struct Failure {
    exit: Exit,
    message: String,
    next: Option<String>,
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            next: None,
        }
    }

    /// From any error, with all its sources.
    pub(super) fn caused(exit: Exit, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(exit, causes(error))
    }

    /// From a file that the command line names.
    pub(super) fn file(path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::new(Exit::Usage, format!("{}: {error}", path.display()))
    }

    /// What it says.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// What to do about it.
    #[must_use]
    pub(super) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Prints it on standard error and gives the exit code.
    pub(super) fn report(&self, json: bool) -> ExitCode {
        use std::io::Write as _;
        let mut stderr = anstream::stderr();
        // Nothing can be done about a standard error that is closed.
        let _ = if json {
            let error = json!({"error": {
                "kind": self.exit.name(),
                "exit_code": self.exit as u8,
                "message": self.message,
                "next": self.next,
            }});
            writeln!(stderr, "{error}")
        } else {
            let bold_red = anstyle::AnsiColor::Red.on_default().bold();
            let message = self.message.replace('\n', "\n  ");
            let next = self
                .next
                .iter()
                .fold(String::new(), |_, next| format!("\n{}{next}", "next: "));
            writeln!(stderr, "{bold_red}error:{bold_red:#} {message}{next}")
        };
        ExitCode::from(self.exit as u8)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Config, error.to_string())
            .next("correct the configuration; `strongroom check-config` checks it without starting anything")
    }
}

impl From<PolicyError> for Failure {
    fn from(error: PolicyError) -> Self {
        Self::caused(Exit::Config, &error)
    }
}

impl From<TokensError> for Failure {
    fn from(error: TokensError) -> Self {
        Self::caused(Exit::Config, &error)
    }
}

impl From<TlsError> for Failure {
    fn from(error: TlsError) -> Self {
        Self::caused(Exit::Config, &error)
    }
}

impl From<HsmError> for Failure {
    fn from(error: HsmError) -> Self {
        let exit = match error {
            HsmError::Pin(_)
            | HsmError::KeyPolicy { .. }
            | HsmError::Missing { .. }
            | HsmError::Register { .. }
            | HsmError::Trial { .. }
            | HsmError::Untried(_)
            | HsmError::SelfTest(_) => Exit::HsmRefused,
            _ => Exit::Hsm,
        };
        let failure = Self::caused(exit, &error);
        match error {
            HsmError::KeyExists(_) => failure.next(
                "if these are an appliance's keys and its store is missing, bring back a copy of that store; only if none was ever made for them, run `strongroom store create`. \
                 For a new appliance name an empty token in [hsm]",
            ),
            // Nothing but these keys opens the store and what was encrypted: whoever is told to
            // make others may lose it all.
            HsmError::Missing { .. } => failure.next(
                "if this appliance has served before, this token is not whole, or another one: look that [hsm] names the right one and that its files or slot are what they were; if it is \
                 lost, a second token can take over, or a backup go to another one (`strongroom ceremony restore`; docs/ceremony.md)",
            ),
            HsmError::KeyPolicy { .. } => failure.next(
                "look that [hsm] names the appliance's own token, and that `keys` there is as its keys were made: \"movable\" where the plan has backup = true, \"moved\" on a token \
                 that they came to by a `restore` or `add-token`. If it is right and the key is not, take no other in its place: have a second token take over, or bring a backup to \
                 another one (docs/ceremony.md)",
            ),
            HsmError::Register { .. } => failure.next(
                "look that nothing else is writing to the token and try again; if it stays, the token is damaged or an old copy: restore it",
            ),
            HsmError::Config(_) | HsmError::Unavailable(_) => failure
                .next("check module, token and PIN file in the configuration's [hsm], and that the token is plugged in (`pkcs11-tool --list-slots`)"),
            _ => failure,
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Hsm(error) => error.into(),
            error => Self::caused(Exit::Store, &error),
        }
    }
}

impl From<KeyringError> for Failure {
    fn from(error: KeyringError) -> Self {
        match error {
            KeyringError::Hsm(error) => error.into(),
            KeyringError::Store(error) => error.into(),
            KeyringError::Audit(error) => error.into(),
            error @ KeyringError::OtherMaster { .. } => Self::caused(Exit::Store, &error),
            error => Self::caused(Exit::Failed, &error),
        }
    }
}

impl From<AuditError> for Failure {
    fn from(error: AuditError) -> Self {
        match error {
            AuditError::Sign(error) => error.into(),
            error @ AuditError::End { .. } => Self::caused(Exit::Audit, &error).next(
                "look for the whole log and put it back; if it is lost, or what was added is known: strongroom audit accept --yes",
            ),
            error @ AuditError::Register => Self::caused(Exit::Audit, &error).next(
                "use the version that wrote it; or give up what the token knows: strongroom audit accept --yes",
            ),
            error => Self::caused(Exit::Failed, &error),
        }
    }
}

impl From<CeremonyError> for Failure {
    fn from(error: CeremonyError) -> Self {
        match error {
            CeremonyError::Token(error) => error.into(),
            CeremonyError::Random => Self::caused(Exit::Failed, &error),
            // A file or a passphrase that a person gave.
            error => Self::new(Exit::Usage, error.to_string()),
        }
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        match error {
            ServeError::Hsm(error) => error.into(),
            ServeError::Store(error) => error.into(),
            ServeError::Keyring(error) => error.into(),
            ServeError::Audit(error) => error.into(),
            ServeError::Config(error) => error.into(),
            ServeError::Tls(error) => error.into(),
            ServeError::Policy(error) => error.into(),
            ServeError::Tokens(error) => error.into(),
            // Settings, or a machine that can't do what they require: starting again can't help.
            ServeError::Harden(error) => Self::caused(Exit::Config, &error),
            error @ ServeError::Descriptors { .. } => Self::caused(Exit::Config, &error),
            error @ ServeError::Listen { .. } => Self::caused(Exit::Failed, &error)
                .next("choose another `listen` in the configuration, or stop what listens there"),
            error => Self::caused(Exit::Failed, &error),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let text = causes(&error);
        match error {
            ClientError::Address(_) => Self::new(Exit::Usage, text)
                .next("give it with --addr or STRONGROOM_ADDR"),
            ClientError::File { .. } => Self::new(Exit::Usage, text),
            ClientError::Certificate { .. } => Self::new(Exit::Denied, text).next(
                "give a client certificate and key of a CA that the appliance trusts, neither expired nor revoked, with --client-cert and --client-key",
            ),
            ClientError::Connection { .. } | ClientError::Timeout { .. } => {
                Self::new(Exit::Unavailable, text)
                    .next("check the address, that `strongroom serve` runs there, and that --cacert is the CA of its certificate")
            }
            ClientError::Refused { status, .. } => match status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Self::new(Exit::Denied, text)
                    .next("where no rule allows it: allow it to that identity in the appliance's policy file; where it needs an API token: give it with --token-file. The audit log names the reason"),
                StatusCode::SERVICE_UNAVAILABLE => Self::new(Exit::Unavailable, text)
                    .next("`strongroom status` says what is wrong; try again when it is healthy"),
                _ => Self::new(Exit::Failed, text),
            },
            ClientError::Answer { .. } => Self::new(Exit::Failed, text)
                .next("check that --addr and --mount name a Strongroom"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_pin_has_a_code_of_its_own_wherever_it_comes_from() {
        let pin = || HsmError::Pin("CKR_PIN_INCORRECT".into());
        for failure in [
            Failure::from(pin()),
            Failure::from(StoreError::Hsm(pin())),
            Failure::from(ServeError::Keyring(KeyringError::Hsm(pin()))),
        ] {
            assert_eq!(failure.exit, Exit::HsmRefused);
        }
        assert_eq!(
            Failure::from(HsmError::Unavailable("gone".into())).exit,
            Exit::Hsm
        );
    }

    #[test]
    fn a_refusal_is_denied_or_unavailable_by_its_status() {
        let exit = |status| {
            let errors = vec![];
            Failure::from(ClientError::Refused { status, errors }).exit
        };
        assert_eq!(exit(StatusCode::FORBIDDEN), Exit::Denied);
        assert_eq!(exit(StatusCode::SERVICE_UNAVAILABLE), Exit::Unavailable);
        assert_eq!(exit(StatusCode::BAD_REQUEST), Exit::Failed);
    }
}
