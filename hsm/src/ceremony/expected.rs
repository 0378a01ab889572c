//! What evidence must say of the appliance's objects: the tables that provisioning and each start
//! use, as text and without a token, for whoever judges a transcript years later.

use cryptoki_sys::{CK_MECHANISM_TYPE, CK_ULONG, CKO_PRIVATE_KEY, CKO_PUBLIC_KEY};

use super::text;
use crate::config::KeyShape;
use crate::keys::generation::Numbered;
use crate::provision::OptionalKeys;
use crate::template::{
    AUDIT, KeySpec, MASTER, MEMORY_MASTER, REQUIRED, ROTATED, Rule, TRANSFER, Value, WRAPPING,
    When, signing,
};
use crate::types::SigningKind;

/// The label of the master key; a successor's ends in its generation, as all such do.
pub const MASTER_LABEL: &str = MASTER.label;
/// Of the transfer key.
pub const TRANSFER_LABEL: &str = TRANSFER.label;
/// Of the master key of `memory` residency.
pub const MEMORY_MASTER_LABEL: &str = MEMORY_MASTER.label;
/// Of the audit log's signing key.
pub const AUDIT_LABEL: &str = AUDIT.label;
/// Of the key for imports.
pub const WRAPPING_LABEL: &str = WRAPPING.label;
/// The label of every signing key: many on one token, none of a ceremony's.
pub const SIGNING_LABEL: &str = signing::LABEL;

/// A key of the appliance, in its generation.
#[derive(Clone, Copy)]
pub struct ExpectedKey(Numbered<'static>);

/// What a public half is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublicKind {
    /// RSA with a modulus of 4096 bits and the exponent 65537.
    Rsa4096,
    /// On P-256.
    P256,
}

/// An object of a key: what its attributes must be.
#[derive(Clone, Debug)]
pub struct ExpectedObject {
    /// `CKO_PRIVATE_KEY`, ...
    pub class: String,
    /// Each attribute that is demanded, in the table's order.
    pub attributes: Vec<ExpectedAttribute>,
}

/// One attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedAttribute {
    /// `CKA_…`
    pub name: &'static str,
    /// What it must be.
    pub value: ExpectedValue,
    /// A token that does not know the attribute may leave it out.
    pub optional: bool,
}

/// What an attribute must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpectedValue {
    /// This.
    Is(String),
    /// A template with at least these, each once; those that are optional may be missing.
    Holds(Vec<ExpectedAttribute>),
    /// This, or what PKCS#11 says of a key that the token did not make; the token need not tell it.
    MadeBy(String),
}

/// What is told of a key that was made elsewhere (`CK_UNAVAILABLE_INFORMATION`).
const UNAVAILABLE: &str = "unavailable";

impl ExpectedKey {
    /// Every key of an appliance with these choices, when the keys that a rotation replaces are of
    /// that generation.
    pub fn all(optional: OptionalKeys, generation: u32) -> Vec<Self> {
        let chosen = [
            (&TRANSFER, optional.transfer),
            (&MEMORY_MASTER, optional.memory_master),
        ];
        let optional = chosen.into_iter().filter(|(_, chosen)| *chosen);
        REQUIRED
            .into_iter()
            .chain(optional.map(|(spec, _)| spec))
            .map(|spec| {
                let first = Self(Numbered::from(spec));
                let generation = if first.is_rotated() { generation } else { 1 };
                Self(Numbered { spec, generation })
            })
            .collect()
    }

    /// `CKA_LABEL` of its objects.
    pub fn label(&self) -> String {
        self.0.label()
    }

    /// Whether a rotation of the master key replaces it.
    pub fn is_rotated(&self) -> bool {
        ROTATED.iter().any(|spec| self.is(spec))
    }

    /// Whether each token makes it for itself: no backup holds it.
    pub fn is_own(&self) -> bool {
        !self.0.spec.is_moved()
    }

    /// Whether it signs the audit log and transcripts.
    pub fn is_audit(&self) -> bool {
        self.is(&AUDIT)
    }

    /// What its public half is; none of a secret key.
    pub fn public(&self) -> Option<PublicKind> {
        self.0.spec.public.map(|_| {
            if self.is_audit() {
                PublicKind::P256
            } else {
                PublicKind::Rsa4096
            }
        })
    }

    /// Its one or two objects: the private half or secret key, then the public half.
    pub fn objects(&self, shape: KeyShape) -> Vec<ExpectedObject> {
        let spec = self.0.spec;
        let made_here = shape != KeyShape::Moved || self.is_own();
        let object = |class, rules: &[Rule]| {
            let mut object = ExpectedObject::new(class, rules);
            if made_here {
                object.attributes.push(made_by(spec.mechanism));
            }
            object
        };
        let private = object(spec.private_class(), &self.0.private_rules(shape));
        let public =
            (spec.public.is_some()).then(|| object(CKO_PUBLIC_KEY, &self.0.public_rules(shape)));
        std::iter::once(private).chain(public).collect()
    }

    fn is(&self, spec: &KeySpec) -> bool {
        self.0.spec.label == spec.label
    }
}

/// The private half of a signing key, of each kind that there is.
pub fn signing_keys() -> Vec<ExpectedObject> {
    SigningKind::ALL
        .into_iter()
        .map(|kind| {
            let spec = signing::spec(kind);
            let mut object = ExpectedObject::new(CKO_PRIVATE_KEY, spec.private);
            object.attributes.push(made_by(spec.mechanism));
            object
        })
        .collect()
}

impl ExpectedObject {
    fn new(class: CK_ULONG, rules: &[Rule]) -> Self {
        Self {
            class: text::class(class),
            attributes: rules.iter().map(attribute).collect(),
        }
    }

    /// What of these (attribute, value) is not as it must be; empty if all is.
    pub fn problems(&self, attributes: &[(String, String)]) -> Vec<String> {
        let mut problems = Vec::new();
        for (at, (name, _)) in attributes.iter().enumerate() {
            if attributes[..at].iter().any(|(other, _)| other == name) {
                problems.push(format!("{name} is told twice"));
            }
        }
        // In no table, since no template of ours asks for it: whoever made such a key can have
        // every KEK wrapped by it.
        if attributes
            .iter()
            .any(|(name, value)| name == "CKA_TRUSTED" && value != "false")
        {
            problems.push("CKA_TRUSTED is true".to_owned());
        }
        for wanted in &self.attributes {
            let told = attributes
                .iter()
                .find(|(name, _)| name == wanted.name)
                .map(|(_, value)| value.as_str());
            match told {
                Some(value) if wanted.admits(value) => {}
                None if wanted.optional => {}
                Some(value) => problems.push(format!(
                    "{} is {value:?}, it must be {}",
                    wanted.name, wanted.value
                )),
                None => problems.push(format!("{} is not told", wanted.name)),
            }
        }
        problems
    }
}

impl ExpectedAttribute {
    fn admits(&self, told: &str) -> bool {
        match &self.value {
            ExpectedValue::Is(value) => told == value,
            ExpectedValue::MadeBy(value) => told == value || told == UNAVAILABLE,
            ExpectedValue::Holds(inner) => {
                let told: Vec<_> = told
                    .split(", ")
                    .filter_map(|one| one.split_once('='))
                    .collect();
                inner.iter().all(|wanted| {
                    let mut same = told.iter().filter(|(other, _)| *other == wanted.name);
                    match same.next() {
                        Some((_, told)) => wanted.admits(told) && same.next().is_none(),
                        None => wanted.optional,
                    }
                })
            }
        }
    }
}

impl std::fmt::Display for ExpectedValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Is(value) | Self::MadeBy(value) => f.write_str(value),
            Self::Holds(inner) => {
                let inner: Vec<_> = inner
                    .iter()
                    .map(|wanted| {
                        let may = if wanted.optional {
                            " or without it"
                        } else {
                            ""
                        };
                        format!("{}={}{may}", wanted.name, wanted.value)
                    })
                    .collect();
                write!(f, "a template with {}", inner.join(", "))
            }
        }
    }
}

fn attribute(rule: &Rule) -> ExpectedAttribute {
    ExpectedAttribute {
        name: rule.name,
        value: match &rule.value {
            Value::Template(inner) => ExpectedValue::Holds(inner.iter().map(attribute).collect()),
            _ => ExpectedValue::Is(plain(rule)),
        },
        optional: rule.when == When::IfKnown,
    }
}

/// A value that is no template, as evidence tells it.
fn plain(rule: &Rule) -> String {
    let bytes = match &rule.value {
        Value::Bool(value) => vec![u8::from(*value)],
        Value::Ulong(value) => value.to_ne_bytes().to_vec(),
        Value::Bytes(value) => value.to_vec(),
        Value::Mechanisms(value) => value.iter().flat_map(|one| one.to_ne_bytes()).collect(),
        Value::Template(_) => Vec::new(),
    };
    text::of(rule.attribute, &bytes)
}

fn made_by(mechanism: CK_MECHANISM_TYPE) -> ExpectedAttribute {
    ExpectedAttribute {
        name: "CKA_KEY_GEN_MECHANISM",
        value: ExpectedValue::MadeBy(text::mechanism(mechanism)),
        optional: true,
    }
}
