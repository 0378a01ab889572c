//! Each rule of each template, broken alone on a real token: the check must name it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::{Arc, Mutex, PoisonError};

use cryptoki_sys::{CKA_MODULUS_BITS, CKA_UNWRAP_TEMPLATE, CKM_RSA_PKCS, CKM_RSA_PKCS_OAEP};
use strongroom_softhsm::Throwaway;

use super::*;
use crate::config::{PinSource, TokenSelector};
use crate::module::Module;
use crate::selector::TokenFilter;
use crate::template::{KeySpec, MASTER, MEMORY_MASTER, TRANSFER};
use crate::watched::{Access, Watch};

static TOO_MANY: Value = Value::Mechanisms(&[CKM_RSA_PKCS_OAEP, CKM_RSA_PKCS]);

static EXTRACTABLE: &[Rule] = &[Rule {
    attribute: cryptoki_sys::CKA_EXTRACTABLE,
    name: "CKA_EXTRACTABLE",
    value: Value::Bool(true),
    when: When::Always,
}];

/// Runs `body` on a session with an empty token.
fn on_token(body: impl FnOnce(&WatchedSession)) {
    // SoftHSM sees a new token only when it is initialized.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let token = Throwaway::in_process().unwrap();
    let module = Module::acquire(token.module()).unwrap();
    let wanted = TokenFilter::new(&TokenSelector::Label(token.label().to_owned())).unwrap();
    let found = wanted.find(&module.library().raw).unwrap();
    let watched =
        WatchedSession::open(module.library(), found.slot, Arc::new(Watch::default())).unwrap();
    Access::new(PinSource::File(token.pin_file()))
        .login(&watched)
        .unwrap();
    body(&watched);
    watched.close();
    module.release(false);
}

/// The rules, with the value of one replaced, and small RSA keys: their size is the last thing that
/// is checked.
fn broken(rules: &[Rule], attribute: CK_ATTRIBUTE_TYPE, value: Option<&Value>) -> Vec<Rule> {
    rules
        .iter()
        .filter(|rule| rule.when != When::CheckOnly)
        .filter(|rule| value.is_some() || rule.attribute != attribute)
        .map(|rule| Rule {
            attribute: rule.attribute,
            name: rule.name,
            when: rule.when,
            value: match value {
                Some(value) if rule.attribute == attribute => value.clone(),
                _ if rule.attribute == CKA_MODULUS_BITS => Value::Ulong(1024),
                _ => rule.value.clone(),
            },
        })
        .collect()
}

/// Makes the key, checks it, destroys it: the attribute that was named, or none if all was well.
/// Answers the token's refusal to make it.
fn verdict(
    watched: &WatchedSession,
    spec: &KeySpec,
    public: &[Rule],
    private: &[Rule],
) -> Result<Option<String>, Fault> {
    let made = if spec.public.is_some() {
        let pair = watched.raw().generate_key_pair(
            watched.session(),
            spec.mechanism,
            public.iter(),
            private.iter(),
        )?;
        vec![pair.0, pair.1]
    } else {
        vec![
            watched
                .raw()
                .generate_key(watched.session(), spec.mechanism, private.iter())?,
        ]
    };
    let result = private_key(watched, spec.into(), KeyShape::Fixed).and_then(|_| {
        if spec.public.is_some() {
            public_key(watched, spec.into(), KeyShape::Fixed).map(|_| ())
        } else {
            Ok(())
        }
    });
    for object in made {
        watched.session().destroy_object(object)?;
    }
    match result {
        Ok(()) => Ok(None),
        Err(Fault::Own(HsmError::KeyPolicy { attribute, .. })) => Ok(Some(attribute)),
        Err(fault) => panic!("{fault}"),
    }
}

fn flipped(value: &Value) -> Option<Value> {
    match value {
        Value::Bool(value) => Some(Value::Bool(!value)),
        Value::Mechanisms(_) => Some(TOO_MANY.clone()),
        _ => None,
    }
}

#[test]
fn each_broken_rule_is_named() {
    on_token(|watched| {
        let mut named = 0;
        // The BYOK wrapping key's rules come from the same macro as the master key's.
        for spec in [&MASTER, &TRANSFER, &MEMORY_MASTER, &STORE, &AUDIT] {
            let (public, private) = (spec.public.unwrap_or_default(), spec.private);
            let whole = |rules: &[Rule]| broken(rules, 0, Some(&Value::Bool(true)));
            // The control: as it should be, but for the modulus.
            let size = public.iter().any(|rule| rule.attribute == CKA_MODULUS_BITS);
            let good = verdict(watched, spec, &whole(public), &whole(private)).unwrap();
            assert_eq!(
                good.as_deref(),
                size.then_some("CKA_MODULUS_BITS"),
                "{}",
                spec.name
            );
            for rule in private
                .iter()
                .chain(public)
                .filter(|rule| rule.when != When::CheckOnly)
            {
                let Some(value) = flipped(&rule.value) else {
                    continue;
                };
                let in_public = !private.iter().any(|other| std::ptr::eq(other, rule));
                let made = if in_public {
                    verdict(
                        watched,
                        spec,
                        &broken(public, rule.attribute, Some(&value)),
                        &whole(private),
                    )
                } else {
                    verdict(
                        watched,
                        spec,
                        &whole(public),
                        &broken(private, rule.attribute, Some(&value)),
                    )
                };
                match made {
                    Ok(found) => {
                        // Breaking one may break another with it, which comes first in the table.
                        let found = found.unwrap_or_default();
                        assert_eq!(found, rule.name, "{}", spec.name);
                        named += 1;
                    }
                    // Some the token itself refuses to make.
                    Err(fault) => println!("{} with another {}: {fault}", spec.name, rule.name),
                }
            }
        }
        assert!(named > 55, "{named}");
    });
}

#[test]
fn an_unwrap_template_that_is_missing_or_weaker_is_named() {
    const WEAKER: [&[&str]; 5] = [
        &[],
        &["CKA_EXTRACTABLE"],
        &["CKA_SENSITIVE"],
        &["CKA_WRAP"],
        &["CKA_UNWRAP"],
    ];
    on_token(|watched| {
        let spec = &MASTER;
        let public = broken(spec.public.unwrap(), 0, None);
        for missing in WEAKER {
            let template: Vec<Rule> = crate::template::MASTER_UNWRAP_TEMPLATE
                .iter()
                .filter(|rule| !missing.contains(&rule.name))
                .map(|rule| Rule {
                    value: rule.value.clone(),
                    ..*rule
                })
                .collect();
            // All of it absent stands first in the list above.
            let template = (!missing.is_empty()).then(|| Value::Template(template.into()));
            let private = broken(spec.private, CKA_UNWRAP_TEMPLATE, template.as_ref());
            let found = verdict(watched, spec, &public, &private).unwrap();
            assert_eq!(
                found.as_deref(),
                Some("CKA_UNWRAP_TEMPLATE"),
                "without {missing:?}"
            );
        }
        // An attribute that is there with the wrong value is as bad as none.
        let private = broken(
            spec.private,
            CKA_UNWRAP_TEMPLATE,
            Some(&Value::Template(EXTRACTABLE.into())),
        );
        let found = verdict(watched, spec, &public, &private).unwrap();
        assert_eq!(found.as_deref(), Some("CKA_UNWRAP_TEMPLATE"));
    });
}

/// What keys of earlier builds do not force may be missing, and be nothing else.
#[test]
fn an_unwrap_template_with_the_wrong_value_is_named() {
    on_token(|watched| {
        let mut wrong = 0;
        for (spec, table) in [
            (&MASTER, crate::template::MASTER_UNWRAP_TEMPLATE),
            (&WRAPPING, crate::template::WRAPPING_UNWRAP_TEMPLATE),
        ] {
            let public = broken(spec.public.unwrap(), 0, Some(&Value::Bool(true)));
            let with = |template: Vec<Rule>| {
                let template = Value::Template(template.into());
                let private = broken(spec.private, CKA_UNWRAP_TEMPLATE, Some(&template));
                verdict(watched, spec, &public, &private).unwrap()
            };
            for rule in table.iter().filter(|rule| rule.when == When::IfKnown) {
                let change = |value: Option<Rule>| {
                    let others = table.iter().filter(|one| one.attribute != rule.attribute);
                    others.cloned().chain(value).collect()
                };
                let old = with(change(None));
                assert_eq!(old.as_deref(), Some("CKA_MODULUS_BITS"), "{}", rule.name);
                let bad = with(change(rule.opposite()));
                assert_eq!(bad.as_deref(), Some("CKA_UNWRAP_TEMPLATE"), "{}", rule.name);
                wrong += 1;
            }
        }
        assert_eq!(wrong, 6);
    });
}

/// `CKA_COPYABLE` is what some tokens do not know: without it they still make the key.
#[test]
fn a_template_for_a_token_that_knows_less_forces_the_rest() {
    let left_out = |spec: &KeySpec| -> Vec<&'static str> {
        let template = |rules: Vec<Rule>| {
            let rule = rules
                .into_iter()
                .find(|rule| rule.attribute == CKA_UNWRAP_TEMPLATE);
            match rule.unwrap().value {
                Value::Template(inner) => inner.into_owned(),
                _ => panic!("no template"),
            }
        };
        let less = template(spec.private.iter().map(Rule::without_optional).collect());
        let all = template(spec.private.to_vec()).into_iter();
        let gone = all.filter(|rule| !less.iter().any(|one| one.attribute == rule.attribute));
        gone.map(|rule| rule.name).collect()
    };
    assert_eq!(left_out(&MASTER), ["CKA_COPYABLE"]);
    assert_eq!(left_out(&WRAPPING), ["CKA_COPYABLE"]);
    // Without it what comes out is not safe, and the trial refuses the key.
    assert_eq!(left_out(&TRANSFER), [""; 0]);
}
