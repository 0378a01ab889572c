//! The appliance's own files: certificates, store, audit log.

use std::fs::{self, File};
use std::path::Path;

use sha2::{Digest as _, Sha256};
use strongroom_core::config::Config;
use strongroom_core::files::open_itself;
use strongroom_core::hex;
use strongroom_core::owner::acting;
use strongroom_core::store::Store;
use strongroom_core::tls::expiries;
use strongroom_hsm::Hsm;
use strongroom_server::harden;

use super::{Finding, date, now};
use crate::cli::audit;
use crate::cli::remote::block_on;
use crate::cli::store::verify;

const DAY: i64 = 24 * 60 * 60;

/// One for each certificate and CRL. A CRL is renewed often, so it fails only when it has ended.
pub(super) fn certificates(config: &Config, days: u32) -> Vec<Finding> {
    let found = match expiries(&config.tls) {
        Ok(found) => found,
        Err(error) => return vec![Finding::new("certificates", Err(error.to_string()))],
    };
    found
        .into_iter()
        .map(|item| {
            let check = if item.is_crl { "crl" } else { "certificate" };
            let margin = if item.is_crl {
                0
            } else {
                i64::from(days) * DAY
            };
            let left = item.end - now();
            let text = format!(
                "{} ({}), until {}",
                item.name,
                item.file.display(),
                date(item.end)
            );
            Finding::new(
                check,
                if left > margin {
                    Ok(text)
                } else if left <= 0 {
                    Err(format!("it has ended: {text}"))
                } else {
                    Err(format!("renew it, it ends in {} days: {text}", left / DAY))
                },
            )
        })
        .collect()
}

/// Whether it can be read, and if no server has it open, whether one would start with it. A running
/// server has found that out when it started.
pub(super) fn store(config: &Config) -> Finding {
    let text = match readable(config) {
        Ok(text) => text,
        Err(error) => return Finding::new("store", Err(error)),
    };
    match Store::is_in_use(&config.store) {
        Ok(false) => {}
        Ok(true) => {
            let text = format!("{text}, verified by the server that has it open");
            return Finding::new("store", Ok(text));
        }
        Err(error) => return Finding::new("store", Err(error.to_string())),
    }
    let hsm = harden::become_owner(&config.hardening, &config.store)
        .map_err(|error| error.to_string())
        .and_then(|()| Hsm::start(config.hsm.clone()).map_err(|error| error.to_string()));
    let hsm = match hsm {
        Ok(hsm) => hsm,
        Err(error) => {
            return Finding::skipped(
                "store",
                &format!(
                    "{text}; not verified, since no server runs and the token can't be asked: {error}"
                ),
            );
        }
    };
    let found = block_on(verify(config, hsm))
        .map(|(status, (keys, versions))| {
            format!(
                "{text}, {} records, {keys} keys, {versions} versions: a server would start with it",
                status.records
            )
        })
        .map_err(|failure| failure.message().to_owned());
    Finding::new("store", found)
}

/// Whether each file can be read, and how large they are.
fn readable(config: &Config) -> Result<String, String> {
    let size = |folder: &Path| -> std::io::Result<u64> {
        let mut size = 0;
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    folders.push(entry.path());
                } else if kind.is_file() {
                    // Opened, not only seen: a file that belongs to root can be seen.
                    let file = open_itself(&entry.path(), File::options().read(true));
                    match file.and_then(|file| file.metadata()) {
                        Ok(metadata) => size += metadata.len(),
                        // The running server removes files as it goes.
                        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(size)
    };
    let path = config.store.display();
    match acting(&config.store, || size(&config.store)).flatten() {
        Ok(0) => Err(format!("{path} is empty: there is no store")),
        Ok(size) => Ok(format!("{path}, {} KiB", size.div_ceil(1024))),
        Err(error) => Err(format!("{path} can't be read: {error}")),
    }
}

/// Held against what the token knows of it; signatures are verified with `key`, and if that is not
/// there with the token's own.
pub(super) fn audit_log(config: &Config, key: Option<&Path>) -> Finding {
    const CHECK: &str = "audit log";
    // The token is asked before the file is read, as a running server goes on with both.
    let (key, end, unheld) = match key {
        None => match audit::token_key_and_end(config) {
            Ok((key, end)) => (key, end, String::new()),
            Err(failure) => {
                return Finding::skipped(
                    CHECK,
                    &format!(
                        "no key to verify it with, and the token can't be asked: {}; `strongroom audit public-key` prints the key, --audit-key names its file",
                        failure.message()
                    ),
                );
            }
        },
        Some(file) => {
            let key = match audit::read_key(file) {
                Ok(key) => key,
                Err(failure) => return Finding::new(CHECK, Err(failure.message().to_owned())),
            };
            match audit::token_key_and_end(config) {
                Ok((tokens, _)) if tokens != key => {
                    return Finding::new(CHECK, Err(another_tokens(file, &key, &tokens)));
                }
                Ok((_, end)) => (key, end, String::new()),
                Err(failure) => {
                    let unheld = format!(
                        "; its end was not held against the token: {}",
                        failure.message()
                    );
                    (key, None, unheld)
                }
            }
        }
    };
    let path = &config.audit.path;
    if end.is_none() && unheld.is_empty() && is_missing(path) {
        return Finding::skipped(CHECK, "there is none yet: the server begins it");
    }
    let found = match audit::verify(path, &key, end) {
        Err(failure) => Err(failure.message().to_owned()),
        Ok(found) if found.problems.is_empty() => Ok(audit::summary(&found) + &unheld),
        Ok(found) => Err(found.problems.join("; ")),
    };
    Finding::new(CHECK, found)
}

/// A second token that has taken over signs with a key of its own.
fn another_tokens(file: &Path, key: &[u8], tokens: &[u8]) -> String {
    let file = file.display();
    let [key, tokens] = [key, tokens].map(|key| hex::encode(&Sha256::digest(key)));
    format!(
        "{file} is the audit key of another token than the one that [hsm] names: its SHA-256 is {key}, that of the token's key {tokens}. If this token has taken over, compare that with \
         the key strongroom-audit in step `copy` of the transcript of its ceremony `add-token`, keep the old file beside the old log, which verifies with it, and write the token's \
         key in its place: `strongroom audit public-key > {file}`. If it has not, [hsm] names the wrong token"
    )
}

fn is_missing(path: &Path) -> bool {
    let there = acting(path, || fs::symlink_metadata(path)).flatten();
    there.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}
