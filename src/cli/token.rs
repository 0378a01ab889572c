//! `strongroom token create`: a token for one client, which is worthless without that client's
//! certificate.

use std::io::ErrorKind;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;
use strongroom_core::files as regular;
use strongroom_core::identity::Identity;
use strongroom_core::owner::acting;
use strongroom_core::tokens::Tokens;
use zeroize::Zeroizing;

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
    let read = || regular::read_to_string(&args.tokens, regular::MAX_GENERATED_LIST);
    let mut text = match acting(&args.tokens, read).flatten() {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => Zeroizing::default(),
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
    acting(&args.tokens, || {
        files::replace(&args.tokens, text.as_bytes())
    })
    .map_err(|error| Failure::file(&args.tokens, &error))??;
    format.note(&format!(
        "added to {}; the token is shown this once:",
        args.tokens.display()
    ));
    format.either(
        &new.token,
        &json!({"id": args.id, "identity": args.identity, "token": *new.token}),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::{self, File};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn what_is_no_tokens_file_is_not_waited_for_nor_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, hole) = (folder.path().join("pipe"), folder.path().join("hole"));
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        File::create(&hole).unwrap().set_len(1 << 43).unwrap();
        let (said, hear) = mpsc::channel();
        thread::spawn(move || {
            for tokens in [pipe, hole] {
                let create = TokenArgs {
                    action: Action::Create(CreateArgs {
                        id: "alice".into(),
                        identity: "dns:alice.example".into(),
                        description: None,
                        tokens,
                    }),
                };
                let failure = run(&create, Format::Json).unwrap_err();
                said.send(failure.message().to_owned()).unwrap();
            }
        });
        for why in ["not a regular file", "it is larger than"] {
            let message = hear.recv_timeout(Duration::from_secs(20)).unwrap();
            assert!(message.contains(why), "{message}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
