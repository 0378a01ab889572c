//! `strongroom token create`: a token for one client, which is worthless without that client's
//! certificate.

use std::io::ErrorKind;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;
use strongroom_core::identity::Identity;
use strongroom_core::tokens::Tokens;

use super::exit::{Exit, Failure};
use super::files;
use super::output::Format;

#[derive(Args, Debug)]
pub(super) struct TokenArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Create an API token, print it once, and add its hash to the tokens file
    #[command(
        after_help = "Example:\n  strongroom token create --id alice --identity spiffe://example.org/operator/alice > alice.token\n\n\
        A running server reads the tokens file again by itself."
    )]
    Create(CreateArgs),
}

#[derive(Args, Debug)]
struct CreateArgs {
    /// Name of the token in the tokens file and the audit log
    #[arg(long)]
    id: String,
    /// Identity of the client that may use it, as in the audit log: spiffe://…, dns:…, or
    /// spki:sha256:…
    #[arg(long)]
    identity: String,
    /// Comment for the tokens file
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Tokens file, created if it does not exist
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/strongroom/tokens.toml"
    )]
    tokens: PathBuf,
}

pub(super) fn run(args: &TokenArgs, format: Format) -> Result<(), Failure> {
    let Action::Create(args) = &args.action;
    let identity: Identity = args
        .identity
        .parse()
        .map_err(|error| Failure::caused(Exit::Usage, &error))?;
    let mut text = match std::fs::read_to_string(&args.tokens) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(Failure::file(&args.tokens, &error)),
    };
    let new = Tokens::new_token(&args.id, &identity, args.description.as_deref())
        .map_err(|error| Failure::caused(Exit::Usage, &error))?;
    if !text.is_empty() && !text.ends_with("\n\n") {
        text.push('\n');
    }
    text.push_str(&new.entry);
    // Checked as the server will check it: an id that is taken shows here, and the old file stays.
    Tokens::parse(&text).map_err(|problem| {
        Failure::new(
            Exit::Config,
            format!("{} would not be valid: {problem}", args.tokens.display()),
        )
        .next("nothing was changed; choose another --id, or correct the file")
    })?;
    files::replace(&args.tokens, text.as_bytes())?;
    format.note(&format!(
        "added to {}; the token is shown this once:",
        args.tokens.display()
    ));
    format.either(
        &new.token,
        &json!({"id": args.id, "identity": args.identity, "token": *new.token}),
    )
}
