//! Five people who exist for the demo only, the plan that they sign, and what they would answer.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use strongroom_ceremony::participant::KeyFile;
use strongroom_ceremony::plan::{Draft, PinMethod};
use strongroom_ceremony::run::program_sha256;
use strongroom_ceremony::{Participant, ParticipantKey, PlanSignature};
use zeroize::Zeroizing;

use crate::cli::exit::Failure;
use crate::cli::files;
use strongroom_core::hex;

const CUSTODIANS: [&str; 3] = ["Custodian 1", "Custodian 2", "Custodian 3"];
const OFFICER: &str = "Security officer";
const AUDITOR: &str = "Auditor";

/// Everyone's keys, and who they are.
pub(super) struct Everyone {
    keys: Vec<ParticipantKey>,
    draft: Draft,
}

/// Makes keys and passphrases among the answers, and drafts the plan.
pub(super) fn plan(answers: &Path, module: &Path, port: u16) -> Result<Everyone, Failure> {
    for folder in ["keys", "passphrases"] {
        let folder = answers.join(folder);
        fs::create_dir_all(&folder).map_err(|error| Failure::file(&folder, &error))?;
    }
    files::replace(&answers.join("confirm"), b"yes\n")?;
    let keys = CUSTODIANS
        .into_iter()
        .chain([OFFICER, AUDITOR])
        .map(|name| person(answers, name))
        .collect::<Result<Vec<_>, Failure>>()?;
    let who = |name: &str| -> Result<Participant, Failure> {
        keys.iter()
            .map(ParticipantKey::participant)
            .find(|person| person.name() == name)
            .cloned()
            .ok_or_else(|| {
                Failure::new(crate::cli::exit::Exit::Failed, format!("{name} is missing"))
            })
    };
    let draft = Draft {
        name: "strongroom-demo".to_owned(),
        module: module.to_owned(),
        label: "strongroom-demo".to_owned(),
        serial: None,
        memory_master: false,
        transfer: true,
        backup: false,
        threshold: 2,
        custodians: CUSTODIANS.into_iter().map(who).collect::<Result<_, _>>()?,
        security_officer: who(OFFICER)?,
        auditor: who(AUDITOR)?,
        binary_sha256: program_sha256()?,
        image_sha256: None,
        folder: "/etc/strongroom".into(),
        state: "/var/lib/strongroom".into(),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
        pin_method: PinMethod::File,
        replaces: None,
    };
    Ok(Everyone { keys, draft })
}

/// The plan, signed by all.
pub(super) fn write(path: &Path, everyone: &Everyone) -> Result<(), Failure> {
    let plan = everyone.draft.plan()?;
    files::replace(path, plan.text().as_bytes())?;
    for key in &everyone.keys {
        PlanSignature::make(&plan, key)?.append(path)?;
    }
    Ok(())
}

fn person(answers: &Path, name: &str) -> Result<ParticipantKey, Failure> {
    let mut secret = Zeroizing::new([0; 16]);
    getrandom::fill(&mut *secret).map_err(|_| strongroom_ceremony::CeremonyError::Random)?;
    let passphrase = Zeroizing::new(hex::encode(&*secret));
    files::write_secret(
        &answers.join("passphrases").join(name),
        passphrase.as_bytes(),
    )?;
    let key = KeyFile::generate(name, &passphrase)?;
    Ok(key.write(&answers.join("keys").join(format!("{name}.key")))?)
}
