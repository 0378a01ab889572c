//! Whether a plan can be carried out; everything that is wrong, not only the first.

use std::collections::HashMap;
use std::net::IpAddr;

use super::super::encoding::unhex;
use super::super::participant::{Participant, PublicFile};
use super::{FORMAT, File, Plan};

/// PKCS#11 has 32 bytes for a label.
const MAX_LABEL: usize = 32;

/// Shamir's scheme over GF(256) has 255 points.
const MAX_CUSTODIANS: usize = 255;

pub(super) fn check(file: File, text: &str) -> Result<Plan, Vec<String>> {
    let mut problems = Vec::new();
    let mut say = |problem: String| problems.push(problem);

    // What TOML 1.1 reads, or a lenient reader, and TOML 1.0 does not: two programs must see one
    // plan.
    if text.contains(['\\', '{', '}', '\u{feff}']) {
        say("a backslash, a curly bracket or a byte order mark is in it: a plan has none, in a comment neither".to_owned());
    }
    if text
        .chars()
        .any(|c| c.is_ascii_control() && !"\t\r\n".contains(c))
    {
        say("a control character is in it".to_owned());
    }

    if file.format != FORMAT {
        say(format!(
            "format: this version reads format {FORMAT}, not {}",
            file.format
        ));
    }
    if !is_identifier(&file.name) {
        say("name: use 1 to 64 letters, digits and . _ -".to_owned());
    }
    let label = &file.token.label;
    if label.is_empty() || label.len() > MAX_LABEL || label.trim() != label || has_control(label) {
        say(format!(
            "token.label: PKCS#11 has 1 to {MAX_LABEL} bytes for a label; no space at its ends, no control characters"
        ));
    }
    if file
        .token
        .serial
        .as_ref()
        .is_some_and(|serial| serial.is_empty() || serial.len() > 16 || has_control(serial))
    {
        say("token.serial: PKCS#11 has 1 to 16 bytes for a serial number; leave it out if there is one free slot".to_owned());
    }
    for (field, path) in [
        ("token.module", &file.token.module),
        ("appliance.folder", &file.appliance.folder),
        ("appliance.state", &file.appliance.state),
    ] {
        if !path.is_absolute() || path.to_str().is_none_or(has_control) {
            say(format!("{field}: write the whole path, from / on"));
        }
    }
    if file.appliance.names.is_empty() {
        say("appliance.names: name at least one DNS name or IP address: the certificate is made for them".to_owned());
    }
    for name in &file.appliance.names {
        if name.parse::<IpAddr>().is_err() && !is_dns_name(name) {
            say(format!(
                "appliance.names: {name:?} is neither a DNS name nor an IP address"
            ));
        }
    }
    for (field, hash) in [
        ("software.binary_sha256", Some(&file.software.binary_sha256)),
        ("software.image_sha256", file.software.image_sha256.as_ref()),
        ("replaces", file.replaces.as_ref()),
    ] {
        if hash.is_some_and(|hash| unhex::<32>(hash).is_none()) {
            say(format!(
                "{field}: write 64 lower-case hexadecimal digits, as sha256sum prints them"
            ));
        }
    }
    let (threshold, count) = (usize::from(file.custody.threshold), file.custodians.len());
    if count == 0 || count > MAX_CUSTODIANS {
        say(format!(
            "custodian: there must be 1 to {MAX_CUSTODIANS}, there are {count}"
        ));
    } else if threshold == 0 || threshold > count {
        say(format!(
            "custody.threshold: with {count} custodians it is 1 to {count}, not {threshold}"
        ));
    } else if threshold > 1 && count == threshold {
        // Allowed, and said by the command that makes a plan: one lost share loses the PINs.
    }

    let (people, faults) = participants(&file);
    problems.extend(faults);
    let mut people = people.into_iter();
    let custodians: Vec<Participant> = people.by_ref().take(count).collect();
    match (people.next(), people.next()) {
        (Some(security_officer), Some(auditor)) if problems.is_empty() => Ok(Plan {
            name: file.name,
            token: file.token,
            keys: file.keys,
            threshold: file.custody.threshold,
            custodians,
            security_officer,
            auditor,
            software: file.software,
            appliance: file.appliance,
            runtime_pin: file.runtime_pin,
            replaces: file.replaces,
            text: text.to_owned(),
        }),
        _ => Err(problems),
    }
}

/// Everyone whose part is right, and what is wrong with the others' parts or between them.
fn participants(file: &File) -> (Vec<Participant>, Vec<String>) {
    let mut people = Vec::new();
    let mut problems = Vec::new();
    let all = file
        .custodians
        .iter()
        .enumerate()
        .map(|(index, part)| (format!("custodian {}", index + 1), part))
        .chain([
            ("security_officer".to_owned(), &file.security_officer),
            ("auditor".to_owned(), &file.auditor),
        ]);
    let mut names: HashMap<String, String> = HashMap::new();
    let mut keys: HashMap<&str, String> = HashMap::new();
    for (place, part) in all {
        match Participant::from_file(part) {
            Ok(participant) => people.push(participant),
            Err(error) => problems.push(format!("{place}: {error}")),
        }
        // Two names that differ in case only would be one when read aloud.
        if let Some(other) = names.insert(part.name.to_ascii_lowercase(), place.clone()) {
            problems.push(format!(
                "{place}: the name {:?} is that of {other} too: each person has one part, and a name of their own",
                part.name
            ));
        }
        for key in keys_of(part) {
            if let Some(other) = keys
                .insert(key, place.clone())
                .filter(|other| *other != place)
            {
                problems.push(format!(
                    "{place}: a key of {} is that of {other} too: each person has keys of their own",
                    part.name
                ));
            }
        }
    }
    (people, problems)
}

fn keys_of(part: &PublicFile) -> [&str; 2] {
    [&part.signing_key, &part.agreement_key]
}

fn is_identifier(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn has_control(text: &str) -> bool {
    text.chars().any(char::is_control)
}

/// Letters, digits and hyphens between dots (RFC 1123); no wildcard: an appliance has names of its
/// own.
fn is_dns_name(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        })
        // The last label of a name is never a number: what looks like one is a mistyped address.
        && !text
            .rsplit('.')
            .next()
            .is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()))
}
