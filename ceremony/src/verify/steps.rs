//! What each step must have come to: a ceremony whose own record says that something failed is
//! none, whoever signed it.

use serde_json::{Value, json};
use strongroom_hsm::ceremony::expected::MASTER_LABEL;

use super::super::encoding::{hex, sha256, unbase64, unhex};
use super::super::plan::PinMethod;
use super::super::record::KNOWN_ANSWERS;
use super::super::{Kind, Mode, Plan, Step};
use super::chain::{Chain, DoneStep};
use super::evidence::is_p256;
use super::facts::Problems;

/// Everything that is not as it must be.
pub(super) fn problems(chain: &Chain) -> Problems {
    let mut problems = Vec::new();
    let (Some(kind), Some(plan)) = (chain.kind, &chain.plan) else {
        return problems;
    };
    for done in &chain.done {
        let mut wrong = Vec::new();
        {
            let mut check = Check {
                outputs: &done.outputs,
                wrong: &mut wrong,
            };
            step(chain, kind, plan, done, &mut check);
        }
        problems.extend(wrong.into_iter().map(|what| {
            let step = done.step;
            (done.line, format!("step {step}: {what}"))
        }));
    }
    problems
}

/// One step's outputs.
struct Check<'a> {
    outputs: &'a Value,
    wrong: &'a mut Vec<String>,
}

impl Check<'_> {
    fn is(&mut self, member: &str, wanted: impl Into<Value>) {
        let wanted = wanted.into();
        if self.outputs[member] != wanted {
            self.wrong
                .push(format!("`{member}` is not {}", short(&wanted)));
        }
    }

    fn holds(&mut self, member: &str, what: &str, test: impl FnOnce(&Value) -> bool) {
        if !test(&self.outputs[member]) {
            self.wrong.push(format!("`{member}` is not {what}"));
        }
    }

    fn is_hash(&mut self, member: &str) {
        self.holds(member, "64 lower-case hexadecimal digits", |value| {
            value.as_str().and_then(unhex::<32>).is_some()
        });
    }
}

fn is_said(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.is_empty())
}

/// What a step destroyed.
fn destroyed(check: &mut Check<'_>) {
    const MEMBERS: [&str; 3] = ["name", "class", "label"];
    let is_object = |one: &Value| {
        one.as_object()
            .is_some_and(|one| one.len() == MEMBERS.len())
            && MEMBERS.iter().all(|member| one[member].is_string())
    };
    check.holds(
        "destroyed",
        "a list of objects with name, class and label",
        |value| {
            value
                .as_array()
                .is_some_and(|all| all.iter().all(is_object))
        },
    );
}

/// A text of the transcript's may be long.
fn short(value: &Value) -> String {
    value.to_string().chars().take(100).collect()
}

#[allow(clippy::too_many_lines, reason = "a table of the steps")]
fn step(chain: &Chain, kind: Kind, plan: &Plan, done: &DoneStep, check: &mut Check<'_>) {
    match done.step {
        Step::Opening => {
            // A later ceremony may be gone on with by a newer program.
            check.is_hash("binary_sha256");
            if kind == Kind::Birth {
                let everyone: Vec<Value> = plan
                    .participants()
                    .map(|(role, person)| {
                        json!({"name": person.name(), "role": role.name(), "key": person.fingerprint()})
                    })
                    .collect();
                check.is("binary_sha256", chain.binary_sha256.as_str());
                check.is("plan_sha256", plan.hash_hex());
                check.is("present", everyone);
            }
        }
        Step::SelfTest => check.holds(
            "known_answers",
            "every answer that must be known",
            |value| {
                value.as_array().is_some_and(|all| {
                    all.iter().all(is_said)
                        && KNOWN_ANSWERS.iter().all(|name| all.contains(&json!(name)))
                })
            },
        ),
        Step::Token | Step::SecondToken => check.is(
            "flags",
            json!({
                "initialized": true,
                "user_pin_set": true,
                "user_pin_locked": false,
                "so_pin_locked": false,
            }),
        ),
        Step::Evidence => {
            check.is("self_tests", "passed");
            if kind != Kind::RotateMaster {
                check.holds("profile", "as the plan has the keys", |profile| {
                    profile["transfer"] == plan.keys.transfer
                        && profile["memory_master"] == plan.keys.memory_master
                });
            }
        }
        Step::Store if kind == Kind::Birth => {
            check.is("epoch", 1);
            check.is_hash("audit_log_header_sha256");
        }
        Step::Store => {
            let number = |member: &str| done.outputs[member].as_u64();
            let before = number("store_epoch").zip(number("backup_epoch"));
            check.holds("epoch", "greater than those before", |epoch| {
                before.is_some_and(|(store, backup)| {
                    epoch
                        .as_u64()
                        .is_some_and(|epoch| epoch > store.max(backup))
                })
            });
        }
        Step::Identity => {
            if kind == Kind::Birth {
                tls_key(chain, plan, check);
            }
            check.is_hash("configuration_sha256");
        }
        Step::Trial => {
            for member in ["sealed", "unsealed", "altered_refused"] {
                check.is(member, true);
            }
            check.is("kept", "nothing");
            let master = chain.close.as_ref().and_then(|close| {
                let keys = &close.fields.summary.keys;
                let label = master_label(keys.iter().map(|key| key.label.as_str()))?;
                let key = keys.iter().find(|key| key.label == label)?;
                key.sha256.as_deref()?.get(..32).map(str::to_owned)
            });
            if let Some(master) = master {
                check.is("master_fingerprint", master);
            }
        }
        Step::RuntimePin => {
            let planned = match plan.runtime_pin.method {
                PinMethod::SystemdCreds => "systemd-creds",
                PinMethod::File => "file",
            };
            // A throwaway token's PIN is in a file.
            let rehearsal = chain.mode == Some(Mode::Rehearsal);
            check.is("method", if rehearsal { "file" } else { planned });
        }
        Step::Trust => {
            let made = chain.outputs(Step::Successor);
            let generation = made.map(|made| made["generation"].clone());
            check.is("in_force", generation.unwrap_or_default());
            check.is("marked_by", plan.security_officer.name());
        }
        Step::Move => {
            check.is("trial", "opened");
            check.holds("by", "`server` or `ceremony`", |by| {
                matches!(by.as_str(), Some("server" | "ceremony"))
            });
        }
        Step::Consent => check.is("typed", plan.name.as_str()),
        Step::Destroy => {
            check.is("reinitialised", true);
            destroyed(check);
        }
        Step::Retire => destroyed(check),
        Step::Closing => {
            if kind.sealed_before().is_none()
                && let Some(close) = &chain.close
            {
                check.is("audit_key", close.fields.audit_key.as_str());
            }
            match kind {
                Kind::Destroy => {}
                // A token of the ceremony's own knows of none before.
                Kind::Birth | Kind::Restore => register(check, Value::is_null),
                _ => register(check, |_| true),
            }
        }
        Step::Pins | Step::Keys | Step::Transport | Step::Export | Step::Successor | Step::Copy => {
        }
        Step::Inventory => register(check, |_| true),
    }
}

/// What the token's register said: the hash of a closing line, or null where it said nothing. The
/// member must be there.
fn register(check: &mut Check<'_>, test: impl FnOnce(&Value) -> bool) {
    let there = check.outputs.get("register").is_some();
    check.holds("register", "what the token must have known", |value| {
        there && (value.is_null() || value.as_str().and_then(unhex::<32>).is_some()) && test(value)
    });
}

/// The label of the master key in force.
fn master_label<'a>(labels: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut masters = labels.filter(|label| {
        label
            .strip_prefix(MASTER_LABEL)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    });
    masters.next()
}

/// The key of the certificate request: on P-256, and nobody else's.
fn tls_key(chain: &Chain, plan: &Plan, check: &mut Check<'_>) {
    for member in [
        "request_sha256",
        "certificate_sha256",
        "client_ca_sha256",
        "policy_sha256",
    ] {
        check.is_hash(member);
    }
    let spki = check.outputs["spki"].as_str().and_then(unbase64);
    check.holds("spki", "a public key on P-256", |_| {
        spki.as_deref().is_some_and(is_p256)
    });
    let Some(spki) = spki else { return };
    check.is("spki_sha256", hex(&sha256(&spki)));
    let hash = hex(&sha256(&spki));
    let tokens = chain
        .close
        .iter()
        .flat_map(|close| &close.fields.summary.keys);
    let others = plan
        .participants()
        .flat_map(|(_, person)| [person.signing_spki(), person.agreement_spki()]);
    let taken = tokens
        .into_iter()
        .any(|key| key.sha256.as_deref() == Some(hash.as_str()))
        || others.into_iter().any(|other| *other == *spki);
    check.holds("spki", "a key of its own", |_| !taken);
}
