//! Asking for passphrases and PINs: at the terminal without echo, or from a file. Never from the
//! command line or the environment.

use std::path::{Path, PathBuf};

use clap::Args;
use strongroom_ceremony::CeremonyError;
use strongroom_ceremony::participant::Unlock;
use zeroize::Zeroizing;

use crate::cli::exit::{Exit, Failure};
use crate::cli::files;

/// Where a passphrase or PIN comes from, if not from the terminal.
#[derive(Args, Debug)]
pub(in crate::cli) struct PinOptions {
    /// A file with the key file's passphrase, instead of asking at the terminal
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// A file with the token's PIN, instead of asking at the terminal
    #[arg(long, value_name = "FILE")]
    pin_file: Option<PathBuf>,
}

impl PinOptions {
    /// A new passphrase: asked for twice.
    pub(in crate::cli) fn new_passphrase(&self) -> Result<Zeroizing<String>, Failure> {
        if let Some(path) = &self.passphrase_file {
            return read(path);
        }
        let first = ask("A passphrase for the new key (12 characters or more): ")?;
        if *ask("The same again: ")? != *first {
            return Err(Failure::new(Exit::Usage, "the two passphrases differ")
                .next("nothing was made; run the command again"));
        }
        Ok(first)
    }

    /// The PIN of a token on which keys are to be made.
    pub(in crate::cli) fn pin(&self) -> Result<Zeroizing<String>, Failure> {
        match &self.pin_file {
            Some(path) => read(path),
            None => ask("The token's PIN: "),
        }
    }
}

/// What a key is unlocked with, as [`strongroom_ceremony::ParticipantKey::load`] asks for it.
pub(in crate::cli) fn unlock_with(
    options: &PinOptions,
) -> impl FnMut(Unlock<'_>) -> Result<Zeroizing<String>, CeremonyError> {
    move |what| {
        let (file, prompt) = match what {
            Unlock::Passphrase { name, path } => (
                &options.passphrase_file,
                format!("{name}, the passphrase of {}: ", path.display()),
            ),
            Unlock::Pin { name, token } => (
                &options.pin_file,
                format!("{name}, the PIN of token {token}: "),
            ),
        };
        match file {
            Some(path) => read(path),
            None => ask(&prompt),
        }
        .map_err(|failure| CeremonyError::Passphrase(failure.message().to_owned()))
    }
}

/// From the terminal, without echo.
fn ask(prompt: &str) -> Result<Zeroizing<String>, Failure> {
    rpassword::prompt_password(prompt)
        .map(Zeroizing::new)
        .map_err(|error| {
            Failure::new(
                Exit::Usage,
                format!(
                    "a passphrase or PIN can't be asked for, since there is no terminal ({error})"
                ),
            )
            .next("run it at a terminal, or name a file with --passphrase-file or --pin-file")
        })
}

/// From a file; one newline at its end is none of the passphrase.
fn read(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let bytes = files::read(path)?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| Failure::new(Exit::Usage, format!("{} is not text", path.display())))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    Ok(Zeroizing::new(
        text.strip_suffix('\r').unwrap_or(text).to_owned(),
    ))
}
