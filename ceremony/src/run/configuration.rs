//! The appliance's configuration where it is there already: what a ceremony must change in it is
//! changed, and every other word of it stays, comments too. Whoever left a setting out would change
//! the appliance: without `crls` a revoked client is let in.

use std::path::Path;

use strongroom_core::config::Config;
use strongroom_core::{files, parse_error};
use strongroom_hsm::{KeyShape, PinSource, TokenSelector};
use toml_edit::{DocumentMut, Item, TableLike, TomlError, value};

use super::RunError;
use super::site::{CREDENTIAL, PinPlace, Site, TLS_KEY_CREDENTIAL};

/// What is there, if anything is.
pub(super) fn read(site: &Site) -> Result<Option<String>, RunError> {
    let path = site.configuration();
    match files::read_to_string(&path, files::MAX_WRITTEN_BY_HAND) {
        Ok(mut text) => Ok(Some(std::mem::take(&mut *text))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(RunError::file(&path, error)),
    }
}

/// Whether the one that is there can be changed for another token, asked before anything is made.
pub(super) fn check(site: &Site, shape: KeyShape) -> Result<(), RunError> {
    match read(site)? {
        Some(text) => for_token(site, &text, "0", shape).map(|_| ()),
        None => Ok(()),
    }
}

/// The same configuration for another token: of `[hsm]` what that demands, and nothing else.
///
/// # Errors
/// It is not valid, or has its store or its audit log elsewhere than the plan: all that is in the
/// way, at once.
pub(super) fn for_token(
    site: &Site,
    text: &str,
    serial: &str,
    shape: KeyShape,
) -> Result<String, RunError> {
    let path = site.configuration();
    let config = parse(text, &path)?;
    elsewhere(site, &config)?;
    let mut document = document(text, &path)?;
    let hsm = table(&mut document, "hsm", &path)?;
    if config.hsm.module != site.module {
        set(
            hsm,
            &["module"],
            "module",
            &site.module.display().to_string(),
        );
    }
    if config.hsm.token != TokenSelector::Serial(serial.to_owned()) {
        set(hsm, &["label", "serial", "uri"], "serial", serial);
    }
    let pin = ["pin_file", "pin_credential"];
    match (site.pin_place, &config.hsm.pin) {
        (PinPlace::Credential, PinSource::Credential(name)) if name == CREDENTIAL => {}
        (PinPlace::File, PinSource::File(file)) if *file == site.pin_path() => {}
        (PinPlace::Credential, _) => set(hsm, &pin, "pin_credential", CREDENTIAL),
        (PinPlace::File, _) => {
            set(
                hsm,
                &pin,
                "pin_file",
                &site.pin_path().display().to_string(),
            );
        }
    }
    if config.hsm.shape != shape {
        match shape {
            KeyShape::Fixed => set(hsm, &["keys"], "keys", "fixed"),
            KeyShape::Movable => set(hsm, &["keys"], "keys", "movable"),
            KeyShape::Moved => set(hsm, &["keys"], "keys", "moved"),
        }
    }
    let text = document.to_string();
    parse(&text, &path)?;
    Ok(text)
}

/// The same configuration, with the TLS key as a credential where it was the file that the ceremony
/// made.
pub(super) fn with_sealed_tls_key(site: &Site, text: &str) -> Result<String, RunError> {
    let path = site.configuration();
    if parse(text, &path)?.tls.private_key != site.tls_key() {
        return Ok(text.to_owned());
    }
    let mut document = document(text, &path)?;
    set(
        table(&mut document, "tls", &path)?,
        &["private_key"],
        "private_key_credential",
        TLS_KEY_CREDENTIAL,
    );
    let text = document.to_string();
    parse(&text, &path)?;
    Ok(text)
}

/// Whether its TLS key is a credential, and not a file.
pub(super) fn has_sealed_tls_key(text: &str, path: &Path) -> Result<bool, RunError> {
    let document = document(text, path)?;
    let tls = document.get("tls").and_then(Item::as_table_like);
    Ok(tls.is_some_and(|tls| tls.contains_key("private_key_credential")))
}

/// As the server will read it.
pub(super) fn parse(text: &str, path: &Path) -> Result<Config, RunError> {
    Config::parse(text, path).map_err(|error| {
        RunError::refused(format!(
            "the configuration that is there is not valid, so nothing of it is changed:\n{error}\nCorrect {}, and run the same command again",
            path.display()
        ))
    })
}

/// A ceremony works with the plan's store and log: a service that opens others would know nothing
/// of it.
fn elsewhere(site: &Site, config: &Config) -> Result<(), RunError> {
    let problems: Vec<_> = [
        ("store.path", &config.store, site.store()),
        ("audit.path", &config.audit.path, site.audit_log()),
    ]
    .into_iter()
    .filter(|(_, has, plan)| *has != plan)
    .map(|(setting, has, plan)| {
        let (has, plan) = (has.display(), plan.display());
        format!("{setting}: {has}, but by the plan it is {plan}")
    })
    .collect();
    if problems.is_empty() {
        return Ok(());
    }
    let path = site.configuration();
    Err(RunError::refused(format!(
        "{} names other places than the plan, so nothing of it is changed:\n{}\nMove the files to the plan's places, set the paths, and run the same command again",
        path.display(),
        problems.join("\n")
    )))
}

fn document(text: &str, path: &Path) -> Result<DocumentMut, RunError> {
    text.parse().map_err(|error: TomlError| {
        let problem = parse_error::toml_at(text, error.span(), error.message());
        RunError::refused(format!("{}: {problem}", path.display()))
    })
}

fn table<'a>(
    document: &'a mut DocumentMut,
    name: &str,
    path: &Path,
) -> Result<&'a mut dyn TableLike, RunError> {
    document
        .get_mut(name)
        .and_then(Item::as_table_like_mut)
        .ok_or_else(|| RunError::refused(format!("{}: no section [{name}]", path.display())))
}

/// Sets `name`, in the place of each of `instead`, whose comments it inherits.
fn set(table: &mut dyn TableLike, instead: &[&str], name: &str, text: &str) {
    let mut before = None;
    let mut new = value(text);
    for old in instead {
        if let Some(key) = table.key(old) {
            before = Some(key.leaf_decor().clone());
        }
        let item = if *old == name {
            table.get(old).cloned()
        } else {
            table.remove(old)
        };
        if let (Some(Item::Value(was)), Item::Value(is)) = (&item, &mut new) {
            is.decor_mut().clone_from(was.decor());
        }
    }
    table.insert(name, new);
    if let (Some(before), Some(mut key)) = (before, table.key_mut(name)) {
        *key.leaf_decor_mut() = before;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn site(pin_place: PinPlace) -> Site {
        Site {
            module: "/usr/lib/softhsm/libsofthsm2.so".into(),
            serial: None,
            folder: "/etc/strongroom".into(),
            state: "/var/lib/strongroom".into(),
            listen: "0.0.0.0:8200".to_owned(),
            names: Vec::new(),
            pin_place,
        }
    }

    /// By hand: what an operator made of it in a year.
    const YEARS: &str = "# ours\n[server]\nlisten = \"10.0.0.7:8200\" # by the router\nmax_body = 1048576\n\n\
        [tls]\ncertificate = \"/etc/strongroom/tls/server.pem\"\nprivate_key = \"/etc/strongroom/tls/server.key\" # ours\n\
        # revoked clients\ncrls = [\n  \"tls/crl.pem\", # each night\n]\n\
        [[tls.client_cas]]\npath = \"tls/other.pem\"\nidentities = [\"dns:*.example.org\"]\n\n\
        [hsm]\nmodule = \"/usr/lib/softhsm/libsofthsm2.so\"\n# the one in the safe\nserial = \"old\" # slot 3\n\
        pin_file = \"hsm-pin\"\nkeys = \"movable\"\nsessions = 4\n\n\
        [store]\npath = \"/var/lib/strongroom/store\"\n[policy]\npath = \"policy.toml\"\n[tokens]\npath = \"tokens.toml\"\n\
        [audit]\npath = \"/var/lib/strongroom/audit.log\"\ncheckpoint_lines = 10\n# the end\n";

    #[test]
    fn nothing_but_the_token_is_changed() {
        let site = site(PinPlace::File);
        let changed = for_token(&site, YEARS, "new", KeyShape::Moved).unwrap();
        let expected = YEARS
            .replace("\"old\"", "\"new\"")
            .replace("\"movable\"", "\"moved\"");
        assert_eq!(changed, expected);
        // Once more, as after a power cut, nothing is.
        assert_eq!(
            for_token(&site, &changed, "new", KeyShape::Moved).unwrap(),
            changed
        );
        // Named by its label before, and with a credential by the plan.
        let labelled = YEARS.replace("serial = \"old\"", "label = \"old\"");
        let site = self::site(PinPlace::Credential);
        let changed = for_token(&site, &labelled, "new", KeyShape::Moved).unwrap();
        let config = parse(&changed, &site.configuration()).unwrap();
        assert_eq!(config.hsm.token, TokenSelector::Serial("new".to_owned()));
        assert_eq!(config.hsm.sessions, 4);
        assert!(matches!(config.hsm.pin, PinSource::Credential(name) if name == CREDENTIAL));
        assert_eq!(config.tls.crls.len(), 1);
        for comment in [
            "# the one in the safe",
            "# slot 3",
            "# each night",
            "# the end",
        ] {
            assert!(changed.contains(comment), "{comment}: {changed}");
        }
    }

    #[test]
    fn a_sealed_tls_key_changes_that_line_alone() {
        let site = site(PinPlace::Credential);
        let changed = with_sealed_tls_key(&site, YEARS).unwrap();
        let config = parse(&changed, &site.configuration()).unwrap();
        assert!(config.tls.private_key.ends_with(TLS_KEY_CREDENTIAL));
        assert_eq!(config.tls.crls.len(), 1);
        let kept = |text: &str| {
            let mut lines: Vec<_> = text
                .lines()
                .filter(|line| !line.starts_with("private_key"))
                .map(str::to_owned)
                .collect();
            lines.sort();
            lines
        };
        assert_eq!(kept(&changed), kept(YEARS));
        let own = YEARS.replace("/etc/strongroom/tls/server.key", "/srv/own.key");
        assert_eq!(with_sealed_tls_key(&site, &own).unwrap(), own);
    }

    #[test]
    fn what_can_not_be_kept_is_listed_and_nothing_is_changed() {
        let site = site(PinPlace::File);
        let moved = YEARS.replace("/var/lib/strongroom/", "/srv/");
        let error = for_token(&site, &moved, "new", KeyShape::Moved)
            .unwrap_err()
            .to_string();
        for part in ["store.path: /srv/store", "audit.path: /srv/audit.log"] {
            assert!(error.contains(part), "{error}");
        }
        let unknown = YEARS.replace("max_body", "max_bodies");
        let error = for_token(&site, &unknown, "new", KeyShape::Moved).unwrap_err();
        assert!(error.to_string().contains("max_bodies"), "{error}");
    }
}
