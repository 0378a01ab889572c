//! Fuzz entry: the configuration file.
#![allow(
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzz target reports"
)]

use std::path::Path;
use std::str;
use std::time::Duration;

use strongroom_hsm::PinSource;

use super::{Config, ConfigError};

const FILE: &str = "/etc/strongroom/strongroom.toml";

/// A configuration that is accepted is within its documented bounds; one that is refused says why,
/// naming the file.
pub fn config(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    match Config::parse(text, Path::new(FILE)) {
        Ok(config) => within_bounds(text, &config),
        Err(ConfigError(problems)) => {
            assert!(!problems.is_empty());
            assert!(
                problems.iter().all(|problem| problem.starts_with(FILE)),
                "{problems:?}"
            );
        }
    }
}

fn within_bounds(text: &str, config: &Config) {
    assert!((1 << 10..=256 << 20).contains(&config.max_body));
    assert!((1..=1 << 20).contains(&config.max_requests));
    assert!((1..=1 << 20).contains(&config.max_connections));
    assert!((1..=64).contains(&config.hsm.sessions));
    assert!((1..=1 << 16).contains(&config.hsm.queue));
    assert!((4..=1 << 20).contains(&config.hsm.session_keys));
    assert!(config.hsm.call_deadline >= Duration::from_millis(100));
    assert!(config.audit.checkpoint_interval >= Duration::from_millis(100));
    assert!((1..=1 << 30).contains(&config.audit.checkpoint_lines));
    assert!(config.keyring.memory_idle >= Duration::from_secs(1));
    for mount in &config.mounts {
        assert!(
            !mount.is_empty() && !mount.starts_with('/') && !mount.ends_with('/'),
            "{mount:?}"
        );
    }
    let pin = match &config.hsm.pin {
        PinSource::File(path) => Some(path),
        PinSource::Credential(_) => None,
        PinSource::Given(_) => unreachable!("no configuration holds a PIN"),
    };
    let tls = &config.tls;
    let paths = [
        &tls.certificate,
        &tls.private_key,
        &config.hsm.module,
        &config.store,
        &config.policy,
    ];
    let others = [&config.audit.path]
        .into_iter()
        .chain(&tls.crls)
        .chain(&config.tokens)
        .chain(pin);
    assert!(
        paths
            .into_iter()
            .chain(others)
            .all(|path| path.is_absolute()),
        "{config:?}"
    );
    every_setting_counts(text);
}

/// No table or setting is passed over: with one more that is unknown, the file is refused.
fn every_setting_counts(text: &str) {
    let Ok(table) = text.parse::<toml::Table>() else {
        unreachable!("it was read a moment ago");
    };
    for (name, _) in &table {
        let mut more = table.clone();
        if let Some(toml::Value::Table(section)) = more.get_mut(name) {
            section.insert("no_such_setting".to_owned(), true.into());
        }
        let more = toml::to_string(&more).unwrap_or_default();
        let refused = Config::parse(&more, Path::new(FILE)).err();
        let ConfigError(problems) = refused.unwrap_or(ConfigError(Vec::new()));
        assert!(
            problems
                .iter()
                .any(|problem| problem.contains("no_such_setting")),
            "[{name}]"
        );
    }
}
