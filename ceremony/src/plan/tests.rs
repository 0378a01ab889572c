#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;

use proptest::prelude::*;

use super::super::testing::{Room, key};
use super::*;

fn problems(text: &str) -> Vec<String> {
    match Plan::parse(text) {
        Err(CeremonyError::Plan(problems)) => problems,
        other => panic!("{other:?}\n{text}"),
    }
}

#[test]
fn a_plan_says_what_it_was_made_from() {
    let mut room = Room::new(2, 3);
    room.draft.serial = Some("0123abcd".into());
    room.draft.image_sha256 = Some("f".repeat(64));
    let plan = room.draft.plan().unwrap();
    assert_eq!((plan.name.as_str(), plan.threshold), ("vault-keys-1", 2));
    assert_eq!(plan.custodians, room.draft.custodians);
    assert_eq!(plan.token.serial.as_deref(), Some("0123abcd"));
    assert_eq!(plan.software.image_sha256, Some("f".repeat(64)));
    assert!(plan.keys.memory_master && !plan.keys.backup);
    assert_eq!(plan.runtime_pin.method, PinMethod::SystemdCreds);
    assert_eq!(Plan::parse(plan.text()).unwrap().hash(), plan.hash());
    let order: Vec<Role> = plan.participants().map(|(role, _)| role).collect();
    assert_eq!(
        order,
        [
            Role::Custodian,
            Role::Custodian,
            Role::Custodian,
            Role::SecurityOfficer,
            Role::Auditor
        ]
    );
}

#[test]
fn an_unknown_field_is_an_error_wherever_it_is() {
    let room = Room::new(2, 3);
    let text = room.plan.text();
    let tables = [
        "[token]",
        "[keys]",
        "[custody]",
        "[[custodian]]",
        "[security_officer]",
        "[auditor]",
        "[software]",
        "[appliance]",
        "[runtime_pin]",
    ];
    for table in tables {
        let changed = text.replacen(&format!("{table}\n"), &format!("{table}\nbogus = 1\n"), 1);
        let line = 1 + changed[..changed.find("bogus").unwrap()]
            .matches('\n')
            .count();
        let problem = &problems(&changed)[0];
        assert!(
            problem.starts_with(&format!("line {line}, ")) && problem.contains("not known"),
            "{table}: {problem}"
        );
    }
    for more in ["bogus = 1", "text = \"x\""] {
        let problem = &problems(&format!("{more}\n{text}"))[0];
        assert!(
            problem.starts_with("line 1, column 1: a name that is not known"),
            "{problem}"
        );
    }
}

#[test]
fn every_problem_is_told_at_once() {
    let room = Room::new(2, 3);
    let changes = [
        ("format = 1", "format = 2", "format 1"),
        ("name = \"vault-keys-1\"", "name = \"vault keys\"", "name:"),
        ("label = \"vault-keys-1\"", "label = \" x\"", "token.label"),
        ("module = \"/usr", "module = \"usr", "token.module"),
        ("threshold = 2", "threshold = 4", "1 to 3"),
        ("folder = \"/etc", "folder = \"etc", "appliance.folder"),
        (
            "names = [\"keys.example\"]",
            "names = [\"keys example\", \"300.1.1.1\", \"*.example\"]",
            "keys example",
        ),
        ("binary_sha256 = \"0", "binary_sha256 = \"A", "sha256sum"),
        (
            "name = \"Custodian 2\"",
            "name = \"custodian 1\"",
            "custodian 1 too",
        ),
    ];
    let mut all = room.plan.text().to_owned();
    for (from, to, says) in changes {
        assert!(all.contains(from), "{from}");
        all = all.replacen(from, to, 1);
        let alone = problems(&room.plan.text().replacen(from, to, 1));
        assert!(
            alone.iter().any(|problem| problem.contains(says)),
            "{says}: {alone:?}"
        );
    }
    let all = problems(&all);
    for (_, _, says) in changes {
        assert!(
            all.iter().any(|problem| problem.contains(says)),
            "{says}: {all:?}"
        );
    }
    assert!(all.iter().any(|problem| problem.contains("300.1.1.1")));
}

#[test]
fn a_key_belongs_to_one_person() {
    let room = Room::new(2, 3);
    let (first, second) = (&room.plan.custodians[0], &room.plan.custodians[1]);
    let encode = crate::encoding::base64;
    // One custodian's signing key as another's, and as the auditor's agreement key.
    for (old, new) in [
        (second.signing_spki(), first.signing_spki()),
        (second.signing_spki(), first.agreement_spki()),
        (room.plan.auditor.agreement_spki(), first.signing_spki()),
    ] {
        let text = room.plan.text().replace(&encode(old), &encode(new));
        assert!(
            problems(&text)
                .iter()
                .any(|problem| problem.contains("is that of custodian 1 too"))
        );
    }
    let text = room
        .plan
        .text()
        .replace(&encode(second.signing_spki()), "AAAA");
    assert!(
        problems(&text)[0].contains("custodian 2: Custodian 2: the signing key"),
        "{:?}",
        problems(&text)
    );
}

#[test]
fn thresholds() {
    for (threshold, count, good) in [
        (1, 1, true),
        (1, 2, true),
        (2, 2, true),
        (0, 2, false),
        (3, 2, false),
    ] {
        let mut draft = Room::new(1, count).draft;
        draft.threshold = threshold;
        assert_eq!(draft.plan().is_ok(), good, "{threshold} of {count}");
    }
    let mut draft = Room::new(1, 1).draft;
    draft.custodians.clear();
    assert!(draft.plan().is_err());
}

#[test]
fn everyone_signs_once() {
    let room = Room::new(2, 3);
    let all = room.signatures();
    room.plan.check_signatures(&all).unwrap();
    let problems = |signatures: &[PlanSignature]| match room.plan.check_signatures(signatures) {
        Err(CeremonyError::PlanSignatures(problems)) => problems,
        other => panic!("{other:?}"),
    };
    for missing in 0..all.len() {
        let mut some = all.clone();
        some.remove(missing);
        let found = problems(&some);
        assert!(
            found.len() == 1 && found[0].contains("has not signed"),
            "{found:?}"
        );
    }
    assert_eq!(problems(&[]).len(), 5);
    let mut twice = all.clone();
    twice.push(all[0].clone());
    assert!(problems(&twice)[0].contains("more than once"));
    let mut swapped = all.clone();
    swapped[0].signature.clone_from(&all[1].signature);
    assert!(problems(&swapped)[0].contains("Custodian 1's signature is not one of this plan"));

    // A stranger can't sign, nor can somebody with another's name.
    assert!(PlanSignature::make(&room.plan, &key("Custodian 1")).is_err());
    let mut stranger = all.clone();
    stranger[0].key = "0".repeat(64);
    assert!(problems(&stranger)[0].contains("not in the plan"));
}

#[test]
fn a_changed_plan_is_not_the_signed_one() {
    let room = Room::new(2, 3);
    let all = room.signatures();
    let changed = Plan::parse(&format!("{}\n# and a comment\n", room.plan.text())).unwrap();
    assert!(changed.check_signatures(&all).is_err());
}

#[test]
fn signatures_are_kept_beside_the_plan() {
    let room = Room::new(2, 3);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.toml");
    fs::write(&path, room.plan.text()).unwrap();
    assert_eq!(PlanSignature::load_all(&path).unwrap(), []);
    let signatures = room.signatures();
    for signature in &signatures {
        signature.append(&path).unwrap();
    }
    assert_eq!(PlanSignature::load_all(&path).unwrap(), signatures);
    Plan::load(&path)
        .unwrap()
        .check_signatures(&signatures)
        .unwrap();
    fs::write(signatures_path(&path), "rubbish\n").unwrap();
    let error = PlanSignature::load_all(&path).unwrap_err().to_string();
    assert!(error.contains("line 1"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What a person may write into options comes out of the plan as it went in, or is refused; it is never something else.
    #[test]
    fn drafts_round_trip(label in any::<String>(), name in "[a-z\"\\\\\n#=.-]{0,12}", module in "/[a-z\"\\\\ '\u{e4}]{0,12}", host in "[a-z0-9.\"-]{1,12}") {
        let mut draft = Room::new(1, 1).draft;
        draft.label = label;
        draft.name = name;
        draft.module = module.into();
        draft.names = vec![host];
        if let Ok(plan) = draft.plan() {
            prop_assert_eq!(plan.token.label, draft.label);
            prop_assert_eq!(plan.name, draft.name);
            prop_assert_eq!(plan.token.module, draft.module);
            prop_assert_eq!(plan.appliance.names, draft.names);
        }
    }

    #[test]
    fn rubbish_is_refused(text in any::<String>()) {
        prop_assert!(Plan::parse(&text).is_err());
    }
}
