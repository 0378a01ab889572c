//! `strongroom audit …`: the audit log, checked anywhere with the public key alone, and held
//! against what the token knows of it.

use std::fs::File;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use p256::pkcs8::der::pem::{self, LineEnding};
use serde_json::json;
use strongroom_ceremony::{Anchors, verify as transcript};
use strongroom_core::audit::{Anchor, Audit, AuditError, Held, NoAnchor, Verification};
use strongroom_core::config::Config;
use strongroom_core::files as regular;
use strongroom_core::hex;
use strongroom_core::owner::acting;
use strongroom_hsm::{Hsm, Register, ceremony};

use super::exit::{Exit, Failure};
use super::files;
use super::output::Format;
use super::remote::block_on;
use super::server::{AuditedAct, ConfigFile};

/// The label of a SubjectPublicKeyInfo in PEM (RFC 7468, section 13).
const PEM_LABEL: &str = "PUBLIC KEY";

#[derive(Args, Debug)]
pub(super) struct AuditArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Verify the log's chain and signatures
    #[command(
        after_help = "Example:\n  strongroom audit verify audit.log.2 audit.log.1 audit.log --public-key audit.pem\n\n\
        Finds a line that was changed, removed, added or moved, also across rotated files. Exit code 8 if there is one.\n\
        What was written after the last signature is only chained: --complete asks for a signature at the end.\n\
        A log whose end was cut off is right in itself. On the appliance --complete also asks the token, which knows how far the log had come; \
        elsewhere give what `strongroom audit end` printed there: --end VALUE. --transcript holds its first line against the ceremony's record."
    )]
    Verify {
        /// Files of the log, oldest first
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Public key of the log's signatures, from `strongroom audit public-key`
        #[arg(long, value_name = "FILE")]
        public_key: PathBuf,
        /// Also fail if the log does not end with a signature, as one of a stopped server does, or
        /// not where the token knows it to
        #[arg(long)]
        complete: bool,
        /// Fail if the log ends before this value of `strongroom audit end`, or is another log
        #[arg(
            long,
            value_name = "LOGID:LINE:SHA256:STATE[:BYTES]",
            conflicts_with = "config"
        )]
        end: Option<String>,
        /// Ask the token of this configuration where the log ends [default with --complete: the
        /// appliance's, if this is one]
        #[arg(long, short, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The transcript of the appliance's initial ceremony: fail if the log is not the one that
        /// began there
        #[arg(long, value_name = "FILE")]
        transcript: Option<PathBuf>,
    },
    /// Print where the log ends, as the token knows it
    #[command(
        after_help = "Example:\n  strongroom audit end\n\nAlso beside a running server. Keep it away from the appliance, and give it to `audit verify --end`."
    )]
    End {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Accept a log that differs from what the token knows of it
    #[command(after_help = "Example:\n  strongroom audit accept --yes\n\n\
        For a log whose end is lost for good, that was replaced, or that something was added to after a stop. What the token knew and what was found is \
        written into the log. Where there is no file, a new log begins.")]
    Accept {
        #[command(flatten)]
        config: ConfigFile,
        /// Confirm that this log is to be continued
        #[arg(long)]
        yes: bool,
    },
    /// Print the public key of the log's signatures, PEM
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
            end,
            config,
            transcript,
        } => {
            // Before another user's rights are taken to ask the token.
            let opened = open(files)?;
            let key = read_key(public_key)?;
            let beginning = transcript
                .as_deref()
                .map(|path| beginning(path, &key))
                .transpose()?;
            let end = match (end, config) {
                (Some(end), _) => Some(end.parse().map_err(|error: NoAnchor| {
                    Failure::new(Exit::Usage, format!("--end: {error}"))
                })?),
                (None, Some(config)) => token_end(&ConfigFile::of(config).load_as_owner()?)?,
                (None, None) if *complete => token_end_if_here(&key, format),
                (None, None) => None,
            };
            let mut found = Audit::verify_opened(opened, &key, &Held { end, beginning })?;
            if *complete {
                found.must_be_complete();
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
        Action::End { config } => {
            let end = token_end(&config.load_as_owner()?)?.ok_or_else(|| {
                Failure::new(Exit::Failed, "the token knows of no audit log yet")
                    .next("start the server: it tells the token")
            })?;
            format.either(&end.to_string(), &json!({"end": end.to_string()}))
        }
        Action::Accept { config, yes } => {
            if !yes {
                return Err(Failure::new(
                    Exit::Usage,
                    "accepting a log gives up what the token knew of lines that are not in it",
                )
                .next("if that is meant, run it again with --yes"));
            }
            accept(&config.load_as_owner()?, format)
        }
        Action::PublicKey { config } => {
            let text = public_key(&config.load_as_owner()?)?;
            format.either(text.trim_end(), &json!({"public_key": text}))
        }
    }
}

fn accept(config: &Config, format: Format) -> Result<(), Failure> {
    let hsm = Hsm::start(config.hsm.clone())?;
    block_on(async {
        let (audit, problem) = Audit::accept(config.audit.clone(), hsm).await?;
        let reason = problem.unwrap_or_else(|| "nothing was wrong with it".to_owned());
        let act = AuditedAct::begin_in(audit, "cli:audit-accept").await?;
        act.end(Ok(()), |()| reason.clone()).await?;
        format.either(&format!("accepted: {reason}"), &json!({"accepted": reason}))
    })
}

/// What the token of a configuration knows.
pub(super) fn token_end(config: &Config) -> Result<Option<Anchor>, Failure> {
    decode(ceremony::read_register(&config.hsm, Register::AuditEnd)?)
}

/// The public key of its log, and where that ends, both by the configuration's token.
pub(super) fn token_key_and_end(config: &Config) -> Result<(Vec<u8>, Option<Anchor>), Failure> {
    let (key, end) = ceremony::read_audit(&config.hsm)?;
    Ok((key, decode(end)?))
}

fn decode(value: Option<Vec<u8>>) -> Result<Option<Anchor>, Failure> {
    let anchor = |value: Vec<u8>| Anchor::decode(&value).ok_or(AuditError::Register);
    Ok(value.map(anchor).transpose()?)
}

/// On the appliance itself, what its token knows. Elsewhere, or where the token can't be reached,
/// nothing, and that is said.
fn token_end_if_here(key: &[u8], format: Format) -> Option<Anchor> {
    let here = || {
        let config = ConfigFile::unnamed().load_as_owner()?;
        let hsm = Hsm::start(config.hsm)?;
        if hsm.signing_public_key() != key {
            let other = "it is another appliance's";
            return Err(Failure::new(Exit::Failed, other));
        }
        block_on(async { decode(hsm.read_register(Register::AuditEnd).await?) })
    };
    here().unwrap_or_else(|failure| {
        format.note(&format!(
            "the log's end was not held against a token ({}): on the appliance give --config, elsewhere --end with what `strongroom audit end` printed there",
            failure.message()
        ));
        None
    })
}

/// The first line of the log that began at the appliance's initial ceremony.
fn beginning(path: &Path, key: &[u8]) -> Result<[u8; 32], Failure> {
    let text = files::read(path)?;
    let anchors = Anchors {
        audit_key: Some(key.to_vec()),
        ..Anchors::default()
    };
    let verified = transcript::verify(&text, &anchors);
    // Only an initial ceremony begins a log. Another one's transcript does not even verify by
    // itself.
    if let Some(kind) = verified.kind.filter(|kind| kind.is_later()) {
        let text = format!(
            "{} is of a later ceremony ({kind}), which began no audit log",
            path.display()
        );
        return Err(Failure::new(Exit::Usage, text).next(
            "give the transcript of the initial ceremony: the first one in the directory chain beside this one",
        ));
    }
    if !verified.problems.is_empty() {
        let problems: Vec<_> = verified.problems.iter().map(ToString::to_string).collect();
        return Err(Failure::new(
            Exit::Audit,
            format!(
                "{} does not verify with that key:\n{}",
                path.display(),
                problems.join("\n")
            ),
        )
        .next("give the transcript of the initial ceremony of the appliance whose log this is"));
    }
    verified
        .audit_log_header
        .and_then(|text| hex::decode(&text))
        .ok_or_else(|| {
            let text = format!(
                "{} is of a ceremony that began no audit log",
                path.display()
            );
            Failure::new(Exit::Usage, text).next("give the transcript of the initial ceremony")
        })
}

pub(super) fn read_key(path: &Path) -> Result<Vec<u8>, Failure> {
    let text = files::read(path)?;
    match pem::decode_vec(&text) {
        Ok((PEM_LABEL, key)) => Ok(key),
        _ => Err(Failure::new(
            Exit::Usage,
            format!("{} holds no PEM public key", path.display()),
        )
        .next("get it from the appliance: strongroom audit public-key")),
    }
}

/// As whoever owns the directory, if this is root.
fn open(logs: &[PathBuf]) -> Result<Vec<(PathBuf, File)>, Failure> {
    let open = |path: &PathBuf| match acting(path, || regular::open(path)).flatten() {
        Ok(file) => Ok((path.clone(), file)),
        Err(source) => Err(AuditError::Read {
            path: path.clone(),
            source,
        }),
    };
    Ok(logs.iter().map(open).collect::<Result<_, _>>()?)
}

/// A log in one file, held against what the token knows of it.
pub(super) fn verify(
    file: &Path,
    public_key: &[u8],
    end: Option<Anchor>,
) -> Result<Verification, Failure> {
    let held = Held {
        end,
        ..Held::default()
    };
    let opened = open(&[file.to_owned()])?;
    Ok(Audit::verify_opened(opened, public_key, &held)?)
}

pub(super) fn summary(found: &Verification) -> String {
    format!(
        "{} lines verify, {} signed checkpoints, {} lines since the last one",
        found.lines, found.checkpoints, found.unsigned_tail
    )
}

pub(super) fn public_key(config: &Config) -> Result<String, Failure> {
    let der = Hsm::start(config.hsm.clone())?.signing_public_key();
    pem::encode_string(PEM_LABEL, LineEnding::LF, &der)
        .map_err(|error| Failure::new(Exit::Failed, format!("the public key: {error}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use nix::sys::stat::Mode;
    use nix::unistd::{geteuid, mkfifo};

    use super::*;

    #[test]
    fn a_pipe_or_a_device_in_the_logs_place_is_refused_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("audit.log");
        let refused = || {
            let failure = open(std::slice::from_ref(&log)).unwrap_err();
            assert!(failure.message().contains("not a regular file"));
        };
        mkfifo(&log, Mode::S_IRWXU).unwrap();
        refused();
        fs::remove_file(&log).unwrap();
        symlink("/dev/zero", &log).unwrap();
        refused();
        fs::remove_file(&log).unwrap();
        fs::write(folder.path().join("other"), "").unwrap();
        symlink("other", &log).unwrap();
        open(&[log]).unwrap();
    }

    #[test]
    fn a_link_in_the_services_folder_shows_root_no_file_of_roots() {
        const SERVICE: u32 = 54_321;
        if !geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let room = tempfile::tempdir().unwrap();
        fs::set_permissions(room.path(), Permissions::from_mode(0o755)).unwrap();
        let (secret, state) = (room.path().join("secret"), room.path().join("state"));
        fs::write(&secret, "").unwrap();
        fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
        fs::create_dir(&state).unwrap();
        let log = state.join("audit.log");
        symlink(&secret, &log).unwrap();
        open(std::slice::from_ref(&log)).unwrap();
        chown(&state, Some(SERVICE), Some(SERVICE)).unwrap();
        let failure = open(&[log]).unwrap_err();
        assert!(failure.message().contains("ermission"));
    }
}
