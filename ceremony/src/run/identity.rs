//! The appliance's first TLS identity and its configuration.

use std::io::ErrorKind;
use std::path::Path;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256,
    PublicKeyData as _,
};
use serde_json::json;
use strongroom_core::config::Config;
use strongroom_core::files;
use strongroom_core::tls::Tls;
use zeroize::Zeroizing;

use super::certificate::{self, CertificateWanted};
use super::outputs::Outputs;
use super::ui::Question;
use super::{Act, Ceremony, Found, RunError, disk, sha256_hex, throwaway};
use crate::Mode;

pub(super) const ACT: Act = Act {
    title: "The appliance's TLS identity",
    what: "A P-256 key for TLS is made on this machine and a certificate request comes out. Your CA signs it; the certificate goes in, and \
           with it the CA that client certificates must come from. Then the appliance's configuration is written.",
    why: "Clients must be able to tell this appliance from any other. The key never leaves this machine; the certificate is checked against it.",
    who: |ceremony| {
        format!(
            "{} (security officer) carries the request to the CA and the certificate back",
            ceremony.plan.security_officer.name()
        )
    },
    actors: super::security_officer,
    ready: "Shall the request be made?",
    needs_pins: false,
    inputs: |ceremony| {
        Ok(json!({
            "names": ceremony.site.names,
            "listen": ceremony.site.listen,
            "folder": ceremony.site.folder,
        }))
    },
    recover,
    run,
};

const FIRST_POLICY: &str = "# Who may do what with which key. What no rule allows is denied, so for now nobody may do anything.\n\
                      # docs/policy.md describes the rules.\n";

/// What the step wrote is kept; what it wrote half is not there, since files appear whole.
#[allow(clippy::unnecessary_wraps, reason = "other steps' can fail")]
fn recover(ceremony: &mut Ceremony<'_>) -> Result<Found, RunError> {
    let key = ceremony.site.tls_key();
    let there: Vec<_> = [
        key.clone(),
        ceremony.request(),
        ceremony.site.tls_certificate(),
        ceremony.site.client_ca(),
        ceremony.site.configuration(),
    ]
    .into_iter()
    .filter(|path| path.exists())
    .collect();
    let text = if key.exists() {
        "the TLS key was made already: the step continues with it"
    } else {
        "the TLS key was not made yet: the step starts over"
    };
    Ok(Found {
        text: text.to_owned(),
        data: json!({"files": there}),
    })
}

fn run(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    disk::make_folder(&ceremony.site.tls_folder())?;
    let key = key(&ceremony.site.tls_key())?;
    let request = request(&key, &ceremony.site.names)?;
    let path = ceremony.request();
    disk::write(&path, request.as_bytes(), 0o644)?;
    let spki = key.subject_public_key_info();
    ceremony.ui.say(&format!(
        "The certificate request is {}; its key's SHA-256 is {}.",
        path.display(),
        sha256_hex(&spki)
    ))?;
    if ceremony.mode == Mode::Rehearsal {
        throwaway::issue(ceremony, &request)?;
    }

    let wanted = CertificateWanted {
        spki: spki.clone(),
        names: ceremony.site.names.clone(),
    };
    let chain = ask(
        ceremony,
        "certificate.pem",
        "Which file holds the certificate, with any intermediate certificates after it (PEM)?",
        &|text| certificate::check(text, &wanted),
    )?;
    disk::write(&ceremony.site.tls_certificate(), chain.as_bytes(), 0o644)?;
    let client_ca = ask(
        ceremony,
        "client_ca.pem",
        "Which file holds the CA that client certificates must come from (PEM)?",
        &certificate::check_authority,
    )?;
    disk::write(&ceremony.site.client_ca(), client_ca.as_bytes(), 0o644)?;

    let config = configure(ceremony)?;
    let files = config.tls.clone();
    Tls::load(files).map_err(|error| RunError::refused(error.to_string()))?;
    ceremony.ui.say(&format!(
        "{} is written; it denies everything until its policy says otherwise.",
        ceremony.site.configuration().display()
    ))?;
    Ok(Outputs::Identity {
        spki: super::base64(&spki),
        spki_sha256: sha256_hex(&spki),
        request_sha256: sha256_hex(request.as_bytes()),
        certificate_sha256: sha256_hex(chain.as_bytes()),
        client_ca_sha256: sha256_hex(client_ca.as_bytes()),
        configuration_sha256: file_sha256(&ceremony.site.configuration())?,
        policy_sha256: file_sha256(&ceremony.site.policy())?,
    })
}

/// The key that is there, or a new one.
fn key(path: &Path) -> Result<KeyPair, RunError> {
    match files::read_to_string(path, files::MAX_WRITTEN_BY_HAND) {
        Ok(pem) => KeyPair::from_pem(&pem).map_err(|error| {
            RunError::refused(format!("{} is not a private key: {error}", path.display()))
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made)?;
            let pem = Zeroizing::new(key.serialize_pem());
            disk::write(path, pem.as_bytes(), 0o600)?;
            Ok(key)
        }
        Err(error) => Err(RunError::file(path, error)),
    }
}

fn request(key: &KeyPair, names: &[String]) -> Result<String, RunError> {
    let mut params = CertificateParams::new(names.to_vec()).map_err(made)?;
    params.distinguished_name = DistinguishedName::new();
    if let Some(name) = names.first() {
        params
            .distinguished_name
            .push(DnType::CommonName, name.as_str());
    }
    params
        .serialize_request(key)
        .and_then(|request| request.pem())
        .map_err(made)
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn made(error: rcgen::Error) -> RunError {
    RunError::refused(format!("the certificate request can't be made: {error}"))
}

/// Asks for a file until its text passes the check.
fn ask(
    ceremony: &mut Ceremony<'_>,
    id: &str,
    text: &str,
    check: &dyn Fn(&str) -> Result<(), String>,
) -> Result<String, RunError> {
    if ceremony.mode == Mode::Rehearsal
        && let Some(path) = throwaway::answer(ceremony, id)
    {
        let mut text = files::read_to_string(&path, files::MAX_PEM)
            .map_err(|error| RunError::file(&path, error))?;
        check(&text).map_err(RunError::refused)?;
        return Ok(std::mem::take(&mut *text));
    }
    loop {
        let Some(path) = ceremony.ui.file(&Question { id, text })? else {
            return Err(RunError::Waiting {
                what: format!("{id} is not there yet"),
                next: format!(
                    "have the request {} signed by your CA, put the answers {} and {} in their place, and run the same command again",
                    ceremony.request().display(),
                    "certificate.pem",
                    "client_ca.pem"
                ),
            });
        };
        let problem = match files::read_to_string(&path, files::MAX_PEM) {
            Ok(mut text) => match check(&text) {
                Ok(()) => return Ok(std::mem::take(&mut *text)),
                Err(problem) => problem,
            },
            Err(error) => error.to_string(),
        };
        let problem = format!("{}: {problem}", path.display());
        ceremony.refused(problem)?;
    }
}

/// Writes strongroom.toml, and a policy that denies everything if there is none; reads both back as
/// the server will.
fn configure(ceremony: &mut Ceremony<'_>) -> Result<Config, RunError> {
    let site = &ceremony.site;
    let path = site.configuration();
    let text = site.toml(&ceremony.token_serial()?, ceremony.shape(), false);
    let config =
        Config::parse(&text, &path).map_err(|error| RunError::refused(error.to_string()))?;
    disk::write(&path, text.as_bytes(), 0o640)?;
    if !site.policy().exists() {
        disk::write(&site.policy(), FIRST_POLICY.as_bytes(), 0o640)?;
    }
    strongroom_core::policy::Policy::load(&site.policy())
        .map_err(|error| RunError::refused(strongroom_core::causes::causes(&error)))?;
    Ok(config)
}

fn file_sha256(path: &Path) -> Result<String, RunError> {
    files::read(path, files::MAX_WRITTEN_BY_HAND)
        .map(|bytes| sha256_hex(&bytes))
        .map_err(|error| RunError::file(path, error))
}
