//! `strongroom ceremony verify` and `report`: the record, checked and printed anywhere.

use std::path::{Path, PathBuf};

use clap::Args;
use p256::pkcs8::der::pem;
use serde_json::json;
use strongroom_ceremony::verify::verify;
use strongroom_ceremony::{Anchors, Verified, report as page};
use strongroom_core::config::Config;
use strongroom_core::hex;
use strongroom_hsm::Register;
use strongroom_hsm::ceremony::read_register;

use crate::cli::exit::{Exit, Failure};
use crate::cli::files;
use crate::cli::output::Format;

#[derive(Args, Debug)]
pub(super) struct VerifyArgs {
    /// The transcript
    transcript: PathBuf,
    #[command(flatten)]
    anchors: AnchorOptions,
    /// It is a rehearsal, and that is what was expected
    #[arg(long)]
    rehearsal: bool,
    /// The configuration of the appliance at hand: its token must know this transcript as its last
    /// one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(super) struct ReportArgs {
    /// The transcript
    transcript: PathBuf,
    /// The page, a new file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    anchors: AnchorOptions,
}

/// What is known from elsewhere.
#[derive(Args, Debug)]
struct AnchorOptions {
    /// The plan that it must be of
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// The HSM's audit key, PEM, from `strongroom audit public-key`
    #[arg(long, value_name = "FILE")]
    audit_key: Option<PathBuf>,
    /// The token's serial number
    #[arg(long, value_name = "SERIAL")]
    token_serial: Option<String>,
    /// A transcript that a later ceremony goes on from, or a directory of them: all back to the
    /// initial ceremony's
    #[arg(long, value_name = "PATH")]
    previous: Vec<PathBuf>,
}

pub(super) fn run(args: &VerifyArgs, format: Format) -> Result<(), Failure> {
    let found = verify(&files::read(&args.transcript)?, &args.anchors.load()?);
    let value = json!({
        "mode": found.mode.map(strongroom_ceremony::Mode::name),
        "kind": found.kind.map(strongroom_ceremony::Kind::name),
        "ceremony_id": found.ceremony_id,
        "predecessors": found.predecessors,
        "lines": found.lines,
        "sha256": found.sha256,
        "plan_sha256": found.plan.as_ref().map(strongroom_ceremony::Plan::hash_hex),
        "audit_key_sha256": found.audit_key,
        "token": found.summary.as_ref().map(|summary| &summary.token),
        "signed": found.signed,
        "problems": found.problems,
    });
    if !found.problems.is_empty() {
        if format == Format::Json {
            format.result(&value)?;
        }
        return Err(Failure::new(
            Exit::Audit,
            format!("the transcript does not verify:\n{}", listed(&found)),
        )
        .next(
            "keep the file as it is, and compare it with the copies of the others who were there",
        ));
    }
    if found.is_rehearsal() {
        format.note("REHEARSAL: this transcript is of a rehearsal; it is evidence of nothing");
        if !args.rehearsal {
            if format == Format::Json {
                format.result(&value)?;
            }
            return Err(Failure::new(
                Exit::Audit,
                "the transcript verifies, but it is of a REHEARSAL",
            )
            .next("if that was expected, say so with --rehearsal"));
        }
    }
    if let Some(path) = &args.config {
        known_to_the_token(path, &found)?;
    }
    format.either(&summary(&found), &value)
}

/// Of two transcripts that go on from the same one, both of which verify, the token knows one.
fn known_to_the_token(path: &Path, found: &Verified) -> Result<(), Failure> {
    let config = Config::load(path)?;
    let known = read_register(&config.hsm, Register::CeremonyTranscript)?;
    let known = known.map(|value| hex::encode(&value));
    if known.is_some() && known == found.closing {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Audit,
        format!(
            "the transcript verifies, but the token's last ceremony is another one: the SHA-256 of its closing line is {}",
            known.as_deref().unwrap_or("not on the token")
        ),
    )
    .next("look for the newest transcript of this appliance; if there is none that fits, find out who has held a ceremony with its token"))
}

pub(super) fn report(args: &ReportArgs, format: Format) -> Result<(), Failure> {
    let transcript = files::read(&args.transcript)?;
    let found = verify(&transcript, &args.anchors.load()?);
    files::write_secret(&args.out, page::html(&transcript, &found).as_bytes())?;
    if !found.problems.is_empty() {
        format.note(&format!(
            "the transcript does not verify, as the page says:\n{}",
            listed(&found)
        ));
    }
    format.either(
        &format!("wrote {}", args.out.display()),
        &json!({"report": args.out, "verifies": found.problems.is_empty(), "rehearsal": found.is_rehearsal()}),
    )
}

fn listed(found: &Verified) -> String {
    let problems: Vec<String> = found.problems.iter().map(ToString::to_string).collect();
    problems.join("\n")
}

fn summary(found: &Verified) -> String {
    let mode = if found.is_rehearsal() {
        "REHEARSAL: "
    } else {
        ""
    };
    let token = found.summary.as_ref().map_or_else(String::new, |summary| {
        format!(
            "\ntoken      {}, serial {}",
            summary.token.label, summary.token.serial
        )
    });
    let previous = found
        .predecessors
        .iter()
        .fold(String::new(), |text, before| {
            format!(
                "{text}\nafter      {} {}",
                before.sha256,
                before.kind.unwrap_or("-")
            )
        });
    format!(
        "{mode}{} lines verify, signed by {} people and sealed by the HSM\nkind       {}\nceremony   {}{token}{previous}\naudit key  {}\nplan       {}\nfile       {}",
        found.lines,
        found.signed.len(),
        found.kind.map_or("-", strongroom_ceremony::Kind::name),
        found.ceremony_id.as_deref().unwrap_or("-"),
        found.audit_key.as_deref().unwrap_or("-"),
        found
            .plan
            .as_ref()
            .map_or_else(|| "-".to_owned(), strongroom_ceremony::Plan::hash_hex),
        found.sha256
    )
}

impl AnchorOptions {
    fn previous(&self) -> Result<Vec<Vec<u8>>, Failure> {
        let mut transcripts = Vec::new();
        for path in &self.previous {
            let paths = if path.is_dir() {
                std::fs::read_dir(path)
                    .and_then(|entries| {
                        entries
                            .map(|entry| entry.map(|entry| entry.path()))
                            .collect::<Result<Vec<_>, _>>()
                    })
                    .map_err(|error| Failure::file(path, &error))?
                    .into_iter()
                    .filter(|path| path.extension().is_some_and(|end| end == "jsonl"))
                    .collect()
            } else {
                vec![path.clone()]
            };
            for path in paths {
                transcripts.push(files::read(&path)?.to_vec());
            }
        }
        Ok(transcripts)
    }

    fn load(&self) -> Result<Anchors, Failure> {
        let text = |path: &Path| {
            let bytes = files::read(path)?;
            String::from_utf8(bytes.to_vec())
                .map_err(|_| Failure::new(Exit::Usage, format!("{} is not text", path.display())))
        };
        let key = |path: &Path| {
            let bytes = files::read(path)?;
            match pem::decode_vec(&bytes) {
                Ok(("PUBLIC KEY", key)) => Ok(key),
                _ => Err(Failure::new(
                    Exit::Usage,
                    format!("{} holds no PEM public key", path.display()),
                )
                .next("get it from the appliance: strongroom audit public-key")),
            }
        };
        Ok(Anchors {
            plan: self.plan.as_deref().map(text).transpose()?,
            audit_key: self.audit_key.as_deref().map(key).transpose()?,
            token_serial: self.token_serial.clone(),
            previous: self.previous()?,
        })
    }
}
