//! The token's PINs are made and split before any token knows them.

use std::fs;

use serde_json::json;

use super::outputs::{DealtShare, Outputs};
use super::{Act, Ceremony, Found, Pins, RunError, custody, disk, sha256_hex};
use crate::Participant;
use crate::page;
use crate::record::PinsRecord;
use crate::shares;

pub(super) const ACT: Act = Act {
    title: "PINs and shares",
    what: "A security officer's PIN and a user PIN are drawn from the kernel's random numbers. Each is split, and each custodian's share of both is \
           encrypted to their key and written to the ceremony's directory, before any token knows a PIN.",
    why: "Nobody ever sees a whole PIN. As many custodians as the plan says, together, can give the PINs back; fewer learn nothing.",
    who: |ceremony| {
        let names: Vec<_> = ceremony
            .plan
            .custodians
            .iter()
            .map(Participant::name)
            .collect();
        format!("the machine; the custodians are {}", names.join(", "))
    },
    actors: super::everyone,
    ready: "Shall the PINs be made?",
    needs_pins: false,
    inputs: |ceremony| {
        Ok(json!({
            "threshold": ceremony.plan.threshold,
            "custodians": ceremony.plan.custodians.iter().map(Participant::fingerprint).collect::<Vec<_>>(),
        }))
    },
    recover,
    run,
};

/// Shares without a `done` line are of PINs that no token ever knew.
fn recover(ceremony: &mut Ceremony<'_>) -> Result<Found, RunError> {
    let removed = remove(ceremony, custody::SHARES_DIRECTORY)?;
    Ok(Found {
        text: format!(
            "{} shares or pages of the interrupted step were removed; no token knows the PINs that they were of, and the step starts over",
            removed.len()
        ),
        data: json!({"removed": removed}),
    })
}

/// Takes away what an interrupted step dealt; the files' names.
pub(super) fn remove(ceremony: &Ceremony<'_>, folder: &str) -> Result<Vec<String>, RunError> {
    let mut removed = Vec::new();
    for folder in [ceremony.folder.join(folder), ceremony.folder.join("pages")] {
        if !folder.exists() {
            continue;
        }
        let entries = fs::read_dir(&folder).map_err(|error| RunError::file(&folder, error))?;
        for entry in entries.filter_map(Result::ok) {
            disk::remove(&entry.path()).map_err(|error| RunError::file(&entry.path(), error))?;
            removed.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    removed.sort();
    Ok(removed)
}

fn run(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let pins = shares::Pins::generate()?;
    let outputs = deal_out(ceremony, &pins, custody::SHARES_DIRECTORY)?;
    ceremony.pins = Some(Pins::from(pins));
    Ok(outputs)
}

/// Splits two secrets and gives each custodian of the plan their share, in that directory of the
/// ceremony's; for the `done` line.
pub(super) fn deal_out(
    ceremony: &mut Ceremony<'_>,
    pins: &shares::Pins,
    folder: &str,
) -> Result<Outputs, RunError> {
    let deal = ceremony.own_deal();
    let (dealt, commitments) = shares::split(&deal, pins)?;
    let folder = ceremony.folder.join(folder);
    disk::make_folder(&folder)?;
    let mut shares = Vec::new();
    for (share, custodian) in dealt.iter().zip(&deal.custodians) {
        let jwe = shares::seal(share, custodian)?;
        let path = folder.join(custody::name(custodian));
        disk::write(&path, jwe.as_bytes(), 0o600)?;
        let page = if ceremony.paper {
            let page = page::write(&ceremony.folder, share, custodian, &ceremony.plan.name)?;
            Some(page)
        } else {
            None
        };
        ceremony.ui.say(&format!(
            "Share {} for {}: {}{}",
            share.index,
            custodian.name(),
            path.display(),
            page.iter().fold(String::new(), |_, page| format!(
                " and, to be printed, {}",
                page.display()
            ))
        ))?;
        shares.push(DealtShare {
            custodian: custodian.name().to_owned(),
            file: path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned()),
            sha256: sha256_hex(jwe.as_bytes()),
            paper: page.is_some(),
        });
    }
    if ceremony.paper {
        ceremony.ui.say(
            "Print each page on a printer without memory, give it to its custodian, and remove the file; a page is worth as much as the share.",
        )?;
    }
    Ok(Outputs::Shares {
        record: PinsRecord {
            threshold: deal.threshold,
            commitments,
        },
        shares,
    })
}
