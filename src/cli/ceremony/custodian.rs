//! `strongroom ceremony custodian new`: a participant's two keys, in an encrypted file or on a
//! token of their own.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;
use strongroom_ceremony::participant::{KeyFile, create_on_token, public_path};
use strongroom_hsm::TokenSelector;

use super::PinOptions;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::Format;

#[derive(Args, Debug)]
pub(super) struct CustodianArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Make two keys, one that signs and one that shares are encrypted to
    #[command(
        after_help = "Examples:\n  strongroom ceremony custodian new --name \"Alice Ames\" --out alice.key\n  \
        strongroom ceremony custodian new --name \"Bob Bell\" --out bob.key --pkcs11-module /usr/lib/opensc-pkcs11.so --token-label \"Bob's card\"\n\n\
        FILE.pub is for whoever writes the plan; read the fingerprint to them over another way. FILE is for you alone: without it,\n\
        or its passphrase, or the card, your share is lost."
    )]
    New(NewArgs),
}

#[derive(Args, Debug)]
struct NewArgs {
    /// The person's name, as it is to stand in the plan
    #[arg(long)]
    name: String,
    /// The key file; FILE.pub is written beside it
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Make the keys on a PKCS#11 token instead: its module
    #[arg(long, value_name = "FILE", requires = "token")]
    pkcs11_module: Option<PathBuf>,
    #[command(flatten)]
    token: TokenOptions,
    #[command(flatten)]
    pin: PinOptions,
}

/// Which token.
#[derive(Args, Debug)]
#[group(id = "token", multiple = false, requires = "pkcs11_module")]
struct TokenOptions {
    /// The token's label
    #[arg(long, value_name = "LABEL")]
    token_label: Option<String>,
    /// The token's serial number
    #[arg(long, value_name = "SERIAL")]
    token_serial: Option<String>,
}

pub(super) fn run(args: &CustodianArgs, format: Format) -> Result<(), Failure> {
    let Action::New(args) = &args.action;
    let key = match (&args.pkcs11_module, args.token.selector()) {
        (Some(module), Some(selector)) => {
            create_on_token(&args.name, &args.out, module, &selector, &args.pin.pin()?)?
        }
        (None, None) => {
            KeyFile::generate(&args.name, &args.pin.new_passphrase()?)?.write(&args.out)?
        }
        _ => {
            return Err(Failure::new(
                Exit::Usage,
                "keys on a token need --pkcs11-module, and --token-label or --token-serial",
            ));
        }
    };
    let participant = key.participant();
    format.either(
        &format!(
            "{}: fingerprint {}\nwrote {} (keep it) and {} (for the plan)",
            participant.name(),
            participant.fingerprint(),
            args.out.display(),
            public_path(&args.out).display()
        ),
        &json!({
            "name": participant.name(),
            "fingerprint": participant.fingerprint(),
            "key_file": args.out,
            "public_file": public_path(&args.out),
        }),
    )
}

impl TokenOptions {
    fn selector(&self) -> Option<TokenSelector> {
        self.token_label
            .clone()
            .map(TokenSelector::Label)
            .or_else(|| self.token_serial.clone().map(TokenSelector::Serial))
    }
}
