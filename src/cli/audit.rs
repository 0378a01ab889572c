//! `strongroom audit …`: the audit log, checked anywhere with the public key alone.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use p256::pkcs8::der::pem::{self, LineEnding};
use serde_json::json;
use strongroom_hsm::Hsm;

use super::exit::{Exit, Failure};
use super::files;
use super::output::Format;
use super::server::ConfigFile;
use crate::audit::{Audit, Verification};

/// The label of a SubjectPublicKeyInfo in PEM (RFC 7468, section 13).
const LABEL: &str = "PUBLIC KEY";

#[derive(Args, Debug)]
pub(super) struct AuditArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Check the log's chain and signatures
    #[command(
        after_help = "Example:\n  strongroom audit verify audit.log.2 audit.log.1 audit.log --public-key audit.pem\n\n\
        Finds a line that was changed, removed, added or moved, also across rotated files. Exit code 8 if there is one.\n\
        What was written after the last signature is only chained: --complete asks for a signature at the end."
    )]
    Verify {
        /// The log's files, oldest first
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// The signing key's public half, from `strongroom audit public-key`
        #[arg(long, value_name = "FILE")]
        public_key: PathBuf,
        /// Also fail if the log does not end with a signature, as one of a stopped server does
        #[arg(long)]
        complete: bool,
    },
    /// Print the public half of the token's signing key, PEM
    #[command(
        after_help = "Example:\n  strongroom audit public-key > audit.pem\n\nKeep it away from the appliance: whoever can replace it can forge a log."
    )]
    PublicKey {
        #[command(flatten)]
        config: ConfigFile,
    },
}

pub(super) fn run(args: &AuditArgs, format: Format) -> Result<(), Failure> {
    match &args.action {
        Action::Verify {
            files,
            public_key,
            complete,
        } => {
            let mut found = verify(files, public_key)?;
            if *complete && found.unsigned_tail > 0 {
                found.problems.push(format!(
                    "the last {} lines are covered by no signature: the server is running or was killed, or the end was cut or rewritten",
                    found.unsigned_tail
                ));
            }
            let value = serde_json::to_value(&found).unwrap_or_default();
            if found.problems.is_empty() {
                return format.either(&summary(&found), &value);
            }
            if format == Format::Json {
                format.result(&value)?;
            }
            Err(Failure::new(
                Exit::Audit,
                format!(
                    "the audit log does not verify:\n{}",
                    found.problems.join("\n")
                ),
            )
            .next("keep these files as they are, and compare them with a copy that was shipped elsewhere"))
        }
        Action::PublicKey { config } => {
            let text = public_key(&config.load_as_owner()?)?;
            format.either(text.trim_end(), &json!({"public_key": text}))
        }
    }
}

pub(super) fn verify(files: &[PathBuf], public_key: &Path) -> Result<Verification, Failure> {
    let text = files::read(public_key)?;
    let Ok((LABEL, key)) = pem::decode_vec(&text) else {
        return Err(Failure::new(
            Exit::Usage,
            format!("{} holds no PEM public key", public_key.display()),
        )
        .next("get it from the appliance: strongroom audit public-key"));
    };
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    Ok(Audit::verify(&files, &key)?)
}

pub(super) fn summary(found: &Verification) -> String {
    format!(
        "{} lines verify, {} signed checkpoints, {} lines since the last one",
        found.lines, found.checkpoints, found.unsigned_tail
    )
}

pub(super) fn public_key(config: &crate::config::Config) -> Result<String, Failure> {
    let der = Hsm::start(config.hsm.clone())?.signing_public_key();
    pem::encode_string(LABEL, LineEnding::LF, &der)
        .map_err(|error| Failure::new(Exit::Failed, format!("the public key: {error}")))
}
