//! The user PIN is put where the service finds it when it starts.

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;
use strongroom_core::files;
use zeroize::Zeroizing;

use super::outputs::Outputs;
use super::site::{CREDENTIAL, PinPlace, TLS_KEY_CREDENTIAL};
use super::{Act, Ceremony, Found, RunError, configuration, disk, sha256_hex};
use crate::Mode;

/// No credential of a PIN is larger, bytes.
const MAX_CREDENTIAL_BYTES: usize = 1 << 16;

pub(super) const ACT: Act = Act {
    title: "Seal the run-time PIN",
    what: "The user PIN is encrypted for this machine's service (systemd-creds, bound to the TPM where there is one), or written to a file \
           that only its owner may read, as the plan says.",
    why: "The appliance must start by itself after a power cut, without the custodians; the security officer's PIN is kept by nobody but them.",
    who: |_| "the machine; all watch".to_owned(),
    actors: super::everyone,
    ready: "Shall the PIN be sealed?",
    needs_pins: true,
    inputs: |ceremony| {
        Ok(json!({
            "method": ceremony.plan.runtime_pin.method.name(),
            "file": ceremony.site.pin_path(),
        }))
    },
    recover,
    run,
};

#[allow(clippy::unnecessary_wraps, reason = "other steps' can fail")]
fn recover(ceremony: &mut Ceremony<'_>) -> Result<Found, RunError> {
    let path = ceremony.site.pin_path();
    let text = if path.exists() {
        "the run-time PIN was written already: it is written once more in its place"
    } else {
        "the run-time PIN was not written yet: the step starts over"
    };
    Ok(Found {
        text: text.to_owned(),
        data: json!({"file_was_there": path.exists()}),
    })
}

fn run(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let pin = ceremony.pins()?.user;
    let path = ceremony.site.pin_path();
    disk::make_folder(&ceremony.site.folder)?;
    let planned = ceremony.plan.runtime_pin.method.name();
    match ceremony.site.pin_place {
        PinPlace::File => {
            disk::write(&path, pin.expose(), 0o400)?;
            if ceremony.mode == Mode::Rehearsal {
                ceremony.ui.say(&format!(
                    "REHEARSAL: the throwaway token's PIN is in a file; the plan's method for the ceremony is {planned}."
                ))?;
            }
            ceremony
                .ui
                .say(&format!("{} holds the PIN, mode 0400.", path.display()))?;
            Ok(Outputs::PinFile {
                method: "file",
                planned,
                file: path,
                mode: "0400",
            })
        }
        PinPlace::Credential => {
            let tpm2 = has_tpm2();
            let key = if tpm2 { "host+tpm2" } else { "host" };
            ceremony.ui.working(Some("systemd-creds encrypt"));
            let sealed = seal(CREDENTIAL, pin.expose(), key);
            ceremony.ui.working(None);
            let sealed = sealed.map_err(|problem| {
                RunError::refused(format!(
                    "the run-time PIN can't be sealed with systemd-creds: {problem}"
                ))
            })?;
            disk::write(&path, &sealed, 0o600)?;
            ceremony.ui.say(&format!(
                "{} holds the PIN, encrypted with {key}; the service loads it with LoadCredentialEncrypted={CREDENTIAL}:{}.",
                path.display(),
                path.display()
            ))?;
            seal_tls_key(ceremony, key)?;
            let written = files::read(&path, MAX_CREDENTIAL_BYTES as u64)
                .map_err(|error| RunError::file(&path, error))?;
            Ok(Outputs::PinCredential {
                method: "systemd-creds",
                key,
                tpm2,
                credential: CREDENTIAL,
                file: path,
                sha256: sha256_hex(&written),
            })
        }
    }
}

/// The TLS key goes the same way, and its file is removed. After a power cut in between the step
/// does it once more, or finds it done.
fn seal_tls_key(ceremony: &mut Ceremony<'_>, key: &str) -> Result<(), RunError> {
    let (plain, path) = (ceremony.site.tls_key(), ceremony.site.sealed_tls_key());
    if !plain.exists() && path.exists() {
        return Ok(());
    }
    let configuration = ceremony.site.configuration();
    let old = configuration::read(&ceremony.site)?
        .ok_or_else(|| RunError::file(&configuration, io::ErrorKind::NotFound.into()))?;
    let sealed_already = configuration::has_sealed_tls_key(&old, &configuration)?;
    let named = configuration::parse(&old, &configuration)?.tls.private_key;
    // The operator's own key, elsewhere, is the operator's.
    if !sealed_already && named != plain {
        return Ok(());
    }
    let bytes = files::read(&plain, files::MAX_WRITTEN_BY_HAND)
        .map_err(|error| RunError::file(&plain, error))?;
    ceremony.ui.working(Some("systemd-creds encrypt"));
    let sealed = seal(TLS_KEY_CREDENTIAL, &bytes, key);
    ceremony.ui.working(None);
    let sealed = sealed.map_err(|problem| {
        RunError::refused(format!(
            "the TLS key can't be sealed with systemd-creds: {problem}"
        ))
    })?;
    disk::write(&path, &sealed, 0o600)?;
    let text = configuration::with_sealed_tls_key(&ceremony.site, &old)?;
    disk::write(&configuration, text.as_bytes(), 0o640)?;
    disk::remove(&plain).map_err(|error| RunError::file(&plain, error))?;
    ceremony.ui.say(&format!(
        "{} holds the TLS key in the same way, with LoadCredentialEncrypted={TLS_KEY_CREDENTIAL}:{}.",
        path.display(),
        path.display()
    ))?;
    Ok(())
}

/// Encrypted, and decrypted once for a trial: what nobody can open again would be found at the
/// first start, when the room is empty.
fn seal(name: &str, secret: &[u8], key: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let name = format!("--name={name}");
    let with_key = format!("--with-key={key}");
    let sealed = systemd_creds(&["encrypt", &name, &with_key, "-", "-"], secret)?;
    let opened = systemd_creds(&["decrypt", &name, "-", "-"], &sealed)?;
    if **opened == *secret {
        Ok(sealed)
    } else {
        Err("systemd-creds gives back something else than was encrypted".to_owned())
    }
}

/// Whether firmware, driver, kernel and libraries are all there: then it ends with 0.
fn has_tpm2() -> bool {
    Command::new("systemd-creds")
        .args(["has-tpm2", "--quiet"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The secret goes through pipes, never through arguments.
fn systemd_creds(arguments: &[&str], input: &[u8]) -> Result<Zeroizing<Vec<u8>>, String> {
    let mut child = Command::new("systemd-creds")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("it does not start: {error}"))?;
    // Much less than a pipe holds: nobody waits for anybody. Room for all of the output at once,
    // since a vector that grows leaves copies behind.
    let mut output = Zeroizing::new(Vec::with_capacity(MAX_CREDENTIAL_BYTES));
    let talked = (|| {
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input)?;
        }
        if let Some(stdout) = child.stdout.take() {
            read_in_place(stdout, &mut output)?;
        }
        let mut errors = String::new();
        if let Some(stderr) = child.stderr.take() {
            stderr
                .take(MAX_CREDENTIAL_BYTES as u64)
                .read_to_string(&mut errors)?;
        }
        Ok((child.wait()?, errors))
    })();
    let (status, errors) = talked.map_err(|error: io::Error| error.to_string())?;
    if status.success() {
        Ok(output)
    } else {
        Err(errors.trim().to_owned())
    }
}

/// As `read_to_end`, without its small buffers elsewhere.
fn read_in_place(mut from: impl io::Read, to: &mut Zeroizing<Vec<u8>>) -> io::Result<()> {
    to.resize(MAX_CREDENTIAL_BYTES, 0);
    let mut length = 0;
    loop {
        match from.read(&mut to[length..])? {
            0 => break,
            read => length += read,
        }
    }
    to.truncate(length);
    Ok(())
}

/// Whether the program that the plan's method needs is there: asked before anything is made.
pub(super) fn check_available(place: PinPlace) -> Result<(), String> {
    match place {
        PinPlace::File => Ok(()),
        PinPlace::Credential if find("systemd-creds") => Ok(()),
        PinPlace::Credential => Err(
            "the plan wants the run-time PIN as a systemd credential, but systemd-creds is not installed".to_owned(),
        ),
    }
}

fn find(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|paths| {
        std::env::split_paths(&paths).any(|folder| Path::new(&folder).join(program).exists())
    })
}
