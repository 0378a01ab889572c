//! The transcript is closed, signed by everyone, and sealed by the token.

use std::path::Path;

use p256::pkcs8::DecodePublicKey as _;
use p256::pkcs8::{EncodePublicKey as _, LineEnding};
use serde::Deserialize;
use serde_json::{Value, json};
use strongroom_hsm::Hsm;

use super::outputs::Outputs;
use super::{Act, Ceremony, Found, Outcome, RunError, custody, disk, handover, register};
use crate::encoding::unbase64;
use crate::record::{KeysOutputs, StoreOutputs, Summary, TokenOutputs};
use crate::{Anchors, Kind, Mode, Step, report, transcript, verify};

pub(super) const ACT: Act = Act {
    title: "Closing",
    what: "The transcript is summed up in its closing line. Everyone signs that line with their own key, and the token's audit key seals the whole.",
    why: "A signature says: I was there, and this is what happened. After the seal nothing can be added or changed.",
    who: |_| "everyone, in the plan's order".to_owned(),
    actors: super::everyone,
    ready: "Has everything been done as it was read aloud, and shall the transcript be closed?",
    needs_pins: true,
    inputs: |ceremony| Ok(json!({"token_serial": ceremony.token_serial()?})),
    recover: |_| {
        Ok(Found {
            text: "the transcript was not closed yet".to_owned(),
            data: Value::Null,
        })
    },
    run: |ceremony| {
        // Asked before anybody signs: without the seal their signatures would stand alone.
        let config = ceremony.hsm_config()?;
        let key = ceremony.block_on(async move { Ok(Hsm::start(config)?.signing_public_key()) })?;
        let register = register::check(ceremony)?;
        Ok(Outputs::Closing {
            audit_key: super::base64(&key),
            register,
        })
    },
};

/// What comes after the last step: close line, signatures, seal, and the papers.
pub(super) fn sign(ceremony: &mut Ceremony<'_>) -> Result<Outcome, RunError> {
    if ceremony.journal.is_closed() {
        if !ceremony.journal.is_ended() {
            ceremony.screen(Step::Closing)?;
        }
    } else {
        let (summary, audit_key) = (summary(ceremony)?, audit_key(ceremony)?);
        ceremony.journal.close(&summary, &audit_key)?;
    }
    if !ceremony.journal.is_sealed() {
        signatures(ceremony)?;
        // Before the seal: cut off here, this ceremony can be finished, and no other can begin.
        register::write(ceremony)?;
        seal(ceremony)?;
    } else if ceremony.kind.sealed_before().is_some() {
        signatures(ceremony)?;
    }
    // Nothing needs them any more: they are wiped here.
    ceremony.pins = None;
    papers(ceremony)
}

fn signatures(ceremony: &mut Ceremony<'_>) -> Result<(), RunError> {
    for (role, person) in ceremony.signers()? {
        if ceremony.journal.has_signed(&person) {
            continue;
        }
        ceremony.ui.say(&format!(
            "{} ({role}) signs the transcript; what is signed is {}.",
            person.name(),
            super::hex(&ceremony.journal.signing_digest()?)
        ))?;
        let key = custody::key(ceremony, &person)?;
        ceremony.journal.sign(role, &key)?;
        ceremony.ui.say(&format!("{} has signed.", person.name()))?;
    }
    Ok(())
}

/// The audit key's signature. Where it comes before the end, what follows is held by the people's.
pub(super) fn seal(ceremony: &mut Ceremony<'_>) -> Result<(), RunError> {
    ceremony.check_token()?;
    register::check(ceremony)?;
    let config = ceremony.hsm_config()?;
    let digest = ceremony.journal.seal_digest()?;
    ceremony.ui.working(Some("the token seals the transcript"));
    let signed = ceremony.block_on(async move {
        let hsm = Hsm::start(config)?;
        Ok(hsm.sign(digest).await?)
    });
    ceremony.ui.working(None);
    ceremony.journal.seal(&signed?)?;
    Ok(())
}

/// What the steps came to; what they did not touch is as it was before.
fn summary(ceremony: &Ceremony<'_>) -> Result<Summary, RunError> {
    let before = ceremony.custody.as_ref().map(|custody| &custody.summary);
    let journal = &ceremony.journal;
    let token: Option<TokenOutputs> = journal.recorded(Step::Token)?;
    let keys: Option<KeysOutputs> = journal.recorded(Step::Keys)?;
    let store: Option<StoreOutputs> = journal.recorded(Step::Store)?;
    let lacks = |what| move || RunError::refused(format!("the transcript names no {what}"));
    Ok(Summary {
        token: token
            .map(|outputs| outputs.token)
            .or_else(|| Some(before?.token.clone()))
            .ok_or_else(lacks("token"))?,
        keys: keys
            .map(|outputs| outputs.keys)
            .or_else(|| Some(before?.keys.clone()))
            .ok_or_else(lacks("keys"))?,
        store_id: store
            .map(|outputs| outputs.store_id)
            .or_else(|| Some(before?.store_id.clone()))
            .ok_or_else(lacks("store"))?,
    })
}

/// In what both of the steps that show it record.
#[derive(Deserialize)]
struct AuditKeyRecord {
    audit_key: String,
}

/// The key that the token showed when the closing began, or before it was destroyed.
fn audit_key(ceremony: &Ceremony<'_>) -> Result<Vec<u8>, RunError> {
    let step = match ceremony.kind.sealed_before() {
        Some(_) => Step::Inventory,
        None => Step::Closing,
    };
    let recorded: Option<AuditKeyRecord> = ceremony.journal.recorded(step)?;
    recorded
        .and_then(|recorded| unbase64(&recorded.audit_key))
        .ok_or_else(|| RunError::refused("the transcript lacks the audit key"))
}

/// The public key and the report, made again from the transcript each time; the transcript is
/// checked as a stranger would.
fn papers(ceremony: &mut Ceremony<'_>) -> Result<Outcome, RunError> {
    let transcript = transcript::path(&ceremony.folder);
    let bytes =
        transcript::read(&transcript).map_err(|error| RunError::file(&transcript, error))?;
    let anchors = Anchors {
        previous: super::chain::previous(&ceremony.folder)?,
        ..Anchors::default()
    };
    let verified = verify::verify(&bytes, &anchors);
    let spki = audit_key(ceremony)?;
    let pem = p256::PublicKey::from_public_key_der(&spki)
        .ok()
        .and_then(|key| key.to_public_key_pem(LineEnding::LF).ok())
        .ok_or_else(|| RunError::refused("the audit key is not a P-256 key"))?;
    let key = ceremony.folder.join("audit-key.pem");
    disk::write(&key, pem.as_bytes(), 0o644)?;
    // `strongroom check` finds it there; the auditor keeps the other one away from the machine.
    disk::write(
        &ceremony.site.folder.join("audit-key.pem"),
        pem.as_bytes(),
        0o644,
    )?;
    handover::to_service(&ceremony.site)?;
    let report = ceremony.folder.join("report.html");
    disk::write(&report, report::html(&bytes, &verified).as_bytes(), 0o644)?;
    if !verified.problems.is_empty() {
        return Err(RunError::refused(format!(
            "the finished transcript does not verify:{}",
            verified
                .problems
                .iter()
                .fold(String::new(), |text, problem| format!("{text}\n{problem}"))
        )));
    }
    let mut text = farewell(ceremony.mode, &transcript, &key, &report);
    text.push_str(&next(ceremony.kind, ceremony.mode, &ceremony.site.policy()));
    ceremony.ui.farewell(&text)?;
    Ok(Outcome {
        transcript,
        report,
        audit_key: key,
        configuration: (ceremony.kind == Kind::Birth).then(|| ceremony.site.configuration()),
    })
}

fn farewell(mode: Mode, transcript: &Path, key: &Path, report: &Path) -> String {
    format!(
        "The {} is complete and verifies.\n  transcript  {}\n  audit key   {}\n  report      {}\nPrint the report, have the auditor file it, and keep copies of transcript and shares elsewhere.",
        match mode {
            Mode::Ceremony => "ceremony",
            Mode::Rehearsal => "REHEARSAL",
        },
        transcript.display(),
        key.display(),
        report.display()
    )
}

/// What the operator does now, where there is a new appliance.
fn next(kind: Kind, mode: Mode, policy: &Path) -> String {
    if (kind, mode) != (Kind::Birth, Mode::Ceremony) {
        return String::new();
    }
    format!(
        "\nNext, the operator: write {} (it denies everything until then; docs/policy.md), try it with `strongroom check-config`, and start the service (`systemctl start strongroom`).",
        policy.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_screen_of_a_new_appliance_names_the_next_step() {
        let policy = Path::new("/etc/strongroom/policy.toml");
        let text = next(Kind::Birth, Mode::Ceremony, policy);
        for part in [
            "/etc/strongroom/policy.toml",
            "check-config",
            "systemctl start",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(next(Kind::Birth, Mode::Rehearsal, policy), "");
    }
}
