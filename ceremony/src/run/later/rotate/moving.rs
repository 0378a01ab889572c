//! Every key goes to the new master key, by the running server or, where it is stopped, by the
//! ceremony itself; then the old one goes.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use strongroom_core::audit::{Audit, AuditError, AuditOptions};
use strongroom_core::causes::causes;
use strongroom_core::keyring::{Keyring, KeyringOptions, MoveProgress};
use strongroom_core::store::Store;
use strongroom_hsm::Hsm;
use strongroom_hsm::ceremony as hsm;

use super::super::super::outputs::Outputs;
use super::super::super::{Act, Ceremony, Found, RunError, sha256_hex};
use super::server::{NoAnswer, Progress, RunningServer};
use super::{SealedBefore, successor, trial};
use crate::record::{MoveOutputs, RetireOutputs};

/// Between two questions to the server.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

pub(in crate::run) const MOVE: Act = Act {
    title: "Move every key",
    what: "Each KEK is taken out of its transfer blob inside the token, wrapped by the new master and transfer key, unwrapped again and compared, and written to the \
           store, one after the other. A running server does it and goes on serving. Then a text that was sealed before this ceremony's new keys were made is opened.",
    why: "The old master key may only go when nothing needs it. Ciphertexts are not touched: the KEKs stay what they are.",
    who: |ceremony| match ceremony.work.server() {
        Some(_) => "the running server; all watch its progress".to_owned(),
        None => "the machine, on the store of the stopped appliance; all watch".to_owned(),
    },
    actors: super::super::super::everyone,
    ready: "Shall the keys be moved?",
    needs_pins: true,
    inputs: |ceremony| {
        let successor = successor(ceremony)?;
        Ok(json!({"master_sha256": sha256_hex(&successor.master)}))
    },
    recover: |_| {
        Ok(Found {
            text: "keys that were moved already stay so, and the others follow".to_owned(),
            data: Value::Null,
        })
    },
    run: move_all,
};

pub(in crate::run) const RETIRE: Act = Act {
    title: "Destroy the old master key",
    what: "Every key is counted once more. Then the old master key and transfer key are destroyed, and last the security officer's marks: outside of a rotation no \
           trusted key is on the token. A backup of the store from before this ceremony can't be used afterwards.",
    why: "What was under the old master key, in whatever copy of the store, is closed for good; that is what a rotation is for.",
    who: |_| "the machine; all agree, or say stop now".to_owned(),
    actors: super::super::super::everyone,
    ready: "Does everyone agree that the old master key is destroyed, now and for good?",
    needs_pins: true,
    inputs: |ceremony| Ok(json!({"token_serial": ceremony.token_serial()?})),
    recover: |_| {
        Ok(Found {
            text: "what is left of the old keys is destroyed now".to_owned(),
            data: Value::Null,
        })
    },
    run: retire,
};

/// Before anything is made: keys that can't be moved would end the ceremony in its middle.
pub(super) fn check_movable(ceremony: &mut Ceremony<'_>) -> Result<(), RunError> {
    let unmovable: Vec<String> = if let Some(server) = ceremony.work.server() {
        let answer = told(server.progress())?;
        let places = answer.unmovable.into_iter();
        places
            .map(|place| format!("{} version {}", place.name, place.version))
            .collect()
    } else {
        let (keyring, _) = open(ceremony)?;
        let places = keyring.standing().unmovable.into_iter();
        places
            .map(|(name, version)| format!("{name} version {version}"))
            .collect()
    };
    if unmovable.is_empty() {
        return Ok(());
    }
    Err(RunError::refused(format!(
        "keys that were made without a transfer key can't be moved: {}. Nothing was changed. Rotate each, re-encrypt what it protects (`strongroom rewrap`), trim \
         its old versions, and run again",
        unmovable.join(", ")
    )))
}

fn move_all(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let standing = match ceremony.work.server() {
        Some(server) => by_server(ceremony, &*server)?,
        None => by_hand(ceremony)?,
    };
    let config = ceremony.hsm_config()?;
    let sealed_before = SealedBefore::of(ceremony)?;
    ceremony.ui.working(Some("opening what was sealed before"));
    let opened =
        ceremony.block_on(async move { trial::check(&Hsm::start(config)?, &sealed_before).await });
    ceremony.ui.working(None);
    opened?;
    ceremony.ui.say(&format!(
        "{} of {} versions of keys are under the new master key, and what was sealed before opens.",
        standing.moved, standing.versions
    ))?;
    Ok(Outputs::Move {
        record: MoveOutputs {
            versions: standing.versions as u64,
            moved: standing.moved as u64,
        },
        by: match ceremony.work.server() {
            Some(_) => "server",
            None => "ceremony",
        },
        trial: "opened",
    })
}

fn by_server(
    ceremony: &mut Ceremony<'_>,
    server: &dyn RunningServer,
) -> Result<MoveProgress, RunError> {
    let master = sha256_hex(&successor(ceremony)?.master);
    let mut answer = told(server.rotate_to(&master))?;
    loop {
        if answer.state == "complete" {
            ceremony.ui.working(None);
            return Ok(MoveProgress {
                versions: answer.versions,
                moved: answer.moved,
                unmovable: Vec::new(),
            });
        }
        if answer.state == "incomplete" {
            ceremony.ui.working(None);
            let places = answer.unmovable.iter();
            let list: Vec<String> = places
                .map(|place| {
                    format!(
                        "{} version {} ({})",
                        place.name, place.version, place.reason
                    )
                })
                .collect();
            return Err(incomplete(&list));
        }
        let why = answer.waiting_for.as_deref();
        ceremony.ui.working(Some(&format!(
            "{} of {} moved{}",
            answer.moved,
            answer.versions,
            why.map(|why| format!(", waiting: {why}"))
                .unwrap_or_default()
        )));
        std::thread::sleep(POLL_INTERVAL);
        answer = told(server.progress())?;
    }
}

/// On the store itself, with the server's own code, and in the server's audit log.
fn by_hand(ceremony: &mut Ceremony<'_>) -> Result<MoveProgress, RunError> {
    let (keyring, hsm) = open(ceremony)?;
    let audit = audit_log(ceremony, hsm)?;
    keyring.record_in(Arc::clone(&audit));
    let moved = move_each(ceremony, &keyring);
    // Signed in either case.
    let closed = ceremony.block_on(async move { Ok(audit.close().await?) });
    ceremony.ui.working(None);
    moved?;
    closed?;
    let standing = keyring.standing();
    if standing.is_complete() {
        return Ok(standing);
    }
    let places = standing.unmovable.iter();
    let list: Vec<String> = places
        .map(|(name, version)| format!("{name} version {version}"))
        .collect();
    Err(incomplete(&list))
}

fn move_each(ceremony: &mut Ceremony<'_>, keyring: &Keyring) -> Result<(), RunError> {
    let left = keyring.to_move();
    let total = left.len();
    for (number, (name, version)) in left.into_iter().enumerate() {
        ceremony
            .ui
            .working(Some(&format!("{number} of {total}: {name}")));
        let moved = ceremony
            .runtime
            .block_on(async move { keyring.move_version(name.borrowed(), version).await });
        moved.map_err(|error| {
            RunError::refused(format!(
                "a key could not be moved ({}): the old master key is still there, and the next run goes on from here",
                causes(&error)
            ))
        })?;
    }
    Ok(())
}

fn incomplete(list: &[String]) -> RunError {
    RunError::refused(format!(
        "not every key is under the new master key: {}. The old one is still there. Rotate each of these keys, re-encrypt what it protects, trim its old versions, and \
         run again",
        list.join(", ")
    ))
}

fn retire(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let master = sha256_hex(&successor(ceremony)?.master);
    let server = ceremony.work.server();
    let complete = match &server {
        // The server looks at the token too: this is the master key that it uses.
        Some(server) => told(server.rotate_to(&master))?.state == "complete",
        None => open(ceremony)?.0.standing().is_complete(),
    };
    if !complete {
        return Err(RunError::refused(
            "not every key is under the new master key any more: nothing was destroyed. Run again after the store is in order",
        ));
    }
    let config = ceremony.hsm_config()?;
    ceremony.ui.working(Some("destroying the old master key"));
    let gone = hsm::retire_predecessors(&config);
    ceremony.ui.working(None);
    let gone = gone?;
    for object in &gone {
        ceremony
            .ui
            .say(&format!("destroyed: {} ({})", object.name, object.class))?;
    }
    let state = hsm::rotation_state(&config)?;
    if state.generations.len() != 1 || !state.half_made.is_empty() {
        return Err(RunError::refused(
            "the token still holds something of another generation: see its evidence (`strongroom ceremony` can be run again)",
        ));
    }
    if let Some(server) = &server {
        // So that it knows no other any more; it serves either way.
        told(server.rotate_to(&master))?;
    }
    Ok(Outputs::Retire {
        record: RetireOutputs {
            generation: state.generations.first().map_or(0, |one| one.number),
        },
        destroyed: gone.into_iter().map(Into::into).collect(),
    })
}

/// What the server answered, or what to do about it that it did not.
fn told(answer: Result<Progress, NoAnswer>) -> Result<Progress, RunError> {
    answer.map_err(|no| {
        let (what, next) = match no {
            NoAnswer::Unreachable(why) => (
                format!("the server did not answer ({why})"),
                "see that it runs, and that --addr, --cacert, --client-cert and --client-key are right",
            ),
            NoAnswer::Denied(why) => (
                format!("the server's policy does not let this client rotate ({why})"),
                "allow `rotate-master`, a global operation, to the certificate of this command in the policy file",
            ),
            NoAnswer::Refused(why) => (
                format!("the server answers, but does not go along ({why})"),
                "its log says more (`journalctl -u strongroom`). If it does not see the token's new keys, its own user can't read them: look at the owner of the \
                 token's files, or at the rights of the service's user with the HSM's client",
            ),
        };
        RunError::Waiting {
            what,
            next: format!("{next}; run the same command again: what was moved stays moved"),
        }
    })
}

/// The appliance's own store, while no server has it.
fn open(ceremony: &mut Ceremony<'_>) -> Result<(Keyring, Hsm), RunError> {
    let config = ceremony.hsm_config()?;
    let path = ceremony.site.store();
    ceremony.block_on(async move {
        let hsm = Hsm::start(config)?;
        let store = Store::open(&path, hsm.clone()).await.map_err(|error| {
            RunError::refused(format!(
                "the store can't be opened ({error}). If the server runs, it has the store to itself: say how to reach it, with --addr, --cacert, --client-cert and \
                 --client-key, or stop it"
            ))
        })?;
        let keyring = Keyring::open(Arc::new(store), hsm.clone(), KeyringOptions::default())
            .await
            .map_err(|error| RunError::refused(error.to_string()))?;
        Ok((keyring, hsm))
    })
}

/// The appliance's own audit log, which must be as the token knows it.
fn audit_log(ceremony: &mut Ceremony<'_>, hsm: Hsm) -> Result<Arc<Audit>, RunError> {
    let options = AuditOptions {
        path: ceremony.site.audit_log(),
        checkpoint_lines: 1000,
        checkpoint_interval: Duration::from_secs(10),
    };
    ceremony.block_on(async move {
        match Audit::open(options, hsm).await {
            Ok(audit) => Ok(Arc::new(audit)),
            Err(error @ (AuditError::End { .. } | AuditError::Continue { .. })) => {
                Err(RunError::refused(format!(
                    "{error}. No key was moved. Put the log in its place, see `strongroom audit accept`, or start the server and let it move the keys (--addr, \
                     --cacert, --client-cert, --client-key)"
                )))
            }
            Err(error) => Err(error.into()),
        }
    })
}
