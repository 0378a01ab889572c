//! Generations of the keys that a rotation replaces: which there are, and which is in force.
//!
//! Nothing but the objects on the token says where a rotation stands, so a start after a power cut
//! knows it too:
//!
//! | on the token | in force |
//! |---|---|
//! | one generation | that one |
//! | an older one, and a newer one that is not marked as trusted | the older: a rotation was begun |
//! | an older one, and a newer one whose public keys the security officer has imported as trusted | the newer; the older still unwraps |
//!
//! The marks are there only as long as the rotation lasts. Outside of one no trusted key is on the
//! token, and the transfer key is of no use.

use std::collections::{BTreeMap, BTreeSet};

use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki_sys::{
    CKA_ID, CKA_LABEL, CKA_LOCAL, CKA_MODULUS, CKA_PUBLIC_EXPONENT, CKO_PRIVATE_KEY, CKO_PUBLIC_KEY,
};

use super::{Pair, check, demand, only, policy, rsa_pair};
use crate::config::KeyShape;
use crate::error::HsmError;
use crate::fault::Fault;
use crate::template::{KeySpec, MASTER, MEMORY_MASTER, ROTATED, Rule, TRANSFER, TRUSTED, Value};
use crate::types::{MasterGeneration, MasterKind};
use crate::watched::WatchedSession;

/// The end of a mark's label.
const MARK_SUFFIX: &str = "-trusted";

/// A key in one of its generations, the first of which is 1.
#[derive(Clone, Copy)]
pub(crate) struct Numbered<'a> {
    pub(crate) spec: &'a KeySpec,
    pub(crate) generation: u32,
}

impl<'a> From<&'a KeySpec> for Numbered<'a> {
    fn from(spec: &'a KeySpec) -> Self {
        Self {
            spec,
            generation: 1,
        }
    }
}

impl Numbered<'_> {
    /// `CKA_LABEL` and `CKA_ID` of its objects.
    pub(crate) fn label(&self) -> String {
        match self.generation {
            1 => self.spec.label.to_owned(),
            later => format!("{}-{later}", self.spec.label),
        }
    }

    /// `CKA_LABEL` and `CKA_ID` of the public half that the security officer has marked.
    pub(crate) fn trusted_label(&self) -> String {
        self.label() + MARK_SUFFIX
    }

    /// For people.
    pub(crate) fn name(&self) -> String {
        match self.generation {
            1 => self.spec.name.to_owned(),
            later => format!("{} of generation {later}", self.spec.name),
        }
    }

    /// For people.
    pub(crate) fn public_name(&self) -> String {
        format!("public half of the {}", self.name())
    }

    /// For people.
    pub(crate) fn trusted_name(&self) -> String {
        format!("trusted public half of the {}", self.name())
    }

    /// The public half's template.
    pub(crate) fn public_rules(&self, shape: KeyShape) -> Vec<Rule> {
        relabelled(self.spec.public_rules(shape), &self.label())
    }

    /// The private half's template.
    pub(crate) fn private_rules(&self, shape: KeyShape) -> Vec<Rule> {
        relabelled(self.spec.private_rules(shape), &self.label())
    }

    /// Whether each half is there: (private, public).
    pub(crate) fn halves(&self, watched: &WatchedSession) -> Result<(bool, bool), Fault> {
        let label = self.label();
        Ok((
            !watched.find(self.spec.private_class(), &label)?.is_empty(),
            !watched.find(CKO_PUBLIC_KEY, &label)?.is_empty(),
        ))
    }
}

/// What a label is that [`Numbered`] makes: the key, and whether it is the mark.
pub(crate) fn parse(label: &str) -> Option<(Numbered<'static>, bool)> {
    let (rest, trusted) = match label.strip_suffix(MARK_SUFFIX) {
        Some(rest) => (rest, true),
        None => (label, false),
    };
    ROTATED.into_iter().find_map(|spec| {
        let generation = match rest.strip_prefix(spec.label)? {
            "" => 1,
            number => number
                .strip_prefix('-')?
                .parse()
                .ok()
                .filter(|number| *number > 1)?,
        };
        let key = Numbered { spec, generation };
        // Only as it is written here: "-02" is somebody else's.
        (key.label() == rest).then_some((key, trusted))
    })
}

/// One set of keys that are replaced together.
pub(crate) struct Generation {
    pub(crate) number: u32,
    pub(crate) master: Pair,
    pub(crate) memory_master: Option<Pair>,
    pub(crate) transfer: Option<Pair>,
    /// The public halves that the security officer has marked, if they have marked all that it
    /// takes.
    pub(crate) trusted: Option<Trusted>,
}

/// Public keys under which a KEK from the transfer key may go.
#[derive(Clone, Copy)]
pub(crate) struct Trusted {
    pub(crate) master: ObjectHandle,
    pub(crate) transfer: ObjectHandle,
}

/// Every generation that can be used, oldest first; never empty.
pub(crate) struct Generations {
    all: Vec<Generation>,
    current: usize,
}

impl Generations {
    /// Finds and checks them.
    pub(super) fn check(watched: &WatchedSession, shape: KeyShape) -> Result<Self, Fault> {
        let marks = TrustedMarks::find(watched)?;
        let numbers = numbers(watched)?;
        let mut whole = Vec::new();
        for number in &numbers {
            let master = Numbered {
                spec: &MASTER,
                generation: *number,
            };
            if master.halves(watched)? == (true, true) {
                whole.push(*number);
            } else if numbers.len() > 1 {
                tracing::warn!(
                    generation = number,
                    "half of a master key is on the token: its making or destruction was cut off; have the ceremony finish it"
                );
            }
        }
        let oldest = whole.first().or(numbers.first()).copied().unwrap_or(1);
        // Without any the check of the oldest says what is missing.
        let in_force = whole
            .iter()
            .rev()
            .find(|number| marks.is_marked(watched, **number))
            .copied()
            .unwrap_or(oldest);
        let mut all = Vec::new();
        for number in whole.iter().copied().filter(|number| *number != in_force) {
            match Generation::load(watched, number, shape, false, &marks) {
                Ok(generation) => all.push(generation),
                // Not yet in force: whatever it is, it does not keep the older from serving.
                Err(Fault::Own(
                    error @ (HsmError::KeyPolicy { .. } | HsmError::Missing { .. }),
                )) if number > in_force => {
                    tracing::warn!(%error, "the next generation of the master key is not used");
                }
                Err(fault) => return Err(fault),
            }
        }
        all.push(Generation::load(watched, in_force, shape, true, &marks)?);
        all.sort_by_key(|generation| generation.number);
        let current = all
            .iter()
            .position(|generation| generation.number == in_force)
            .unwrap_or_default();
        marks.refuse_others(&all)?;
        Ok(Self { all, current })
    }

    /// Every one, oldest first.
    pub(crate) fn all(&self) -> &[Generation] {
        &self.all
    }

    /// The one that wraps new KEKs.
    pub(crate) fn current(&self) -> &Generation {
        // Proof of the index: `check` and `follow` take it from this vector, which never changes.
        &self.all[self.current]
    }

    /// Puts the generation in force that is so in `known`, what another session of this process has
    /// found, so that all wrap alike; a newer one's turn comes when the process is told of it.
    /// `false` if it is not here, or here not in force yet.
    pub(crate) fn follow(&mut self, known: &[MasterGeneration]) -> bool {
        let index = as_known(&self.describe(), known);
        self.current = index.unwrap_or(self.current);
        index.is_some()
    }

    pub(crate) fn newest(&self) -> Option<&Generation> {
        self.all.last()
    }

    /// For callers.
    pub(crate) fn describe(&self) -> Vec<MasterGeneration> {
        let describe = |(index, generation): (usize, &Generation)| MasterGeneration {
            number: generation.number,
            master: generation.master.sha256(),
            memory_master: generation.memory_master.as_ref().map(Pair::sha256),
            transfer: generation.transfer.as_ref().map(Pair::sha256),
            trusted: generation.trusted.is_some(),
            in_force: index == self.current,
        };
        self.all.iter().enumerate().map(describe).collect()
    }

    /// The fingerprint of each master key of that kind, oldest first.
    pub(crate) fn fingerprints(&self, kind: MasterKind) -> Vec<[u8; 16]> {
        let masters = self
            .all
            .iter()
            .filter_map(|generation| generation.master(kind));
        masters.map(Pair::fingerprint).collect()
    }

    /// The master key of that kind with that fingerprint.
    pub(crate) fn master(&self, kind: MasterKind, fingerprint: &[u8; 16]) -> Option<&Pair> {
        self.all
            .iter()
            .filter_map(|generation| generation.master(kind))
            .find(|pair| pair.fingerprint() == *fingerprint)
    }

    /// The transfer key with that fingerprint.
    pub(crate) fn transfer(&self, fingerprint: &[u8; 16]) -> Option<&Pair> {
        self.all
            .iter()
            .filter_map(|generation| generation.transfer.as_ref())
            .find(|pair| pair.fingerprint() == *fingerprint)
    }
}

/// What is not to be seen if the master key in force in `known` is not in `found`, nor a newer one
/// in its place: a look that sees half of a rotation, after which new KEKs would be wrapped by a
/// master key that is about to be destroyed.
pub(crate) fn no_more_in_force(
    found: &[MasterGeneration],
    known: &[MasterGeneration],
) -> Option<HsmError> {
    let number =
        |all: &[MasterGeneration]| all.iter().find(|one| one.in_force).map(|one| one.number);
    let before = number(known)?;
    if as_known(found, known).is_some() || number(found) > Some(before) {
        return None;
    }
    let key = Numbered {
        spec: &MASTER,
        generation: before,
    };
    Some(HsmError::Missing {
        name: format!("{}, in force", key.name()),
        label: key.label(),
        there: found
            .iter()
            .map(|one| {
                let generation = one.number;
                let spec = &MASTER;
                Numbered { spec, generation }.label()
            })
            .collect(),
    })
}

impl Generation {
    /// `strict`: it is in force, so no half of an optional key may be missing.
    fn load(
        watched: &WatchedSession,
        number: u32,
        shape: KeyShape,
        strict: bool,
        marks: &TrustedMarks,
    ) -> Result<Self, Fault> {
        let key = |spec| Numbered {
            spec,
            generation: number,
        };
        let pair = |spec| rsa_pair(watched, key(spec), own_shape(watched, key(spec), shape)?);
        let optional = |spec: &'static KeySpec| match key(spec).halves(watched)? {
            (false, false) => Ok(None),
            (true, true) => pair(spec).map(Some),
            _ if strict => pair(spec).map(Some),
            _ => Ok(None),
        };
        let master = pair(&MASTER)?;
        let transfer = optional(&TRANSFER)?;
        let memory_master = optional(&MEMORY_MASTER)?;
        let mark = |spec, pair: &Pair| marks.of(watched, key(spec), pair);
        let trusted = match &transfer {
            Some(transfer) => mark(&MASTER, &master)?
                .zip(mark(&TRANSFER, transfer)?)
                .map(|(master, transfer)| Trusted { master, transfer }),
            None => None,
        };
        Ok(Self {
            number,
            master,
            memory_master,
            transfer,
            trusted,
        })
    }

    pub(crate) fn master(&self, kind: MasterKind) -> Option<&Pair> {
        match kind {
            MasterKind::Hsm => Some(&self.master),
            MasterKind::Memory => self.memory_master.as_ref(),
        }
    }
}

/// Which of `found` is in force in `known`. `None`: it is not there, or one before it is in force,
/// so that what was found is older than `known`.
fn as_known(found: &[MasterGeneration], known: &[MasterGeneration]) -> Option<usize> {
    let wanted = known.iter().find(|one| one.in_force)?;
    let index = found.iter().position(|one| one.same_keys(wanted))?;
    let here = found.iter().position(|one| one.in_force)?;
    (index <= here).then_some(index)
}

/// Every key on the token that is trusted and may wrap, by its label.
struct TrustedMarks(BTreeMap<String, Vec<ObjectHandle>>);

impl TrustedMarks {
    fn find(watched: &WatchedSession) -> Result<Self, Fault> {
        // A backup's transport key is one too, but a session object, for the seconds of its use.
        let trusted = [
            Attribute::Token(true),
            Attribute::Trusted(true),
            Attribute::Wrap(true),
        ];
        let mut marks: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for object in watched.find_objects(&trusted)? {
            marks
                .entry(label(watched, object)?)
                .or_default()
                .push(object);
        }
        Ok(Self(marks))
    }

    /// Whether a generation's master and transfer key both have marks that may be theirs.
    fn is_marked(&self, watched: &WatchedSession, generation: u32) -> bool {
        let marked = |spec| {
            let key = Numbered { spec, generation };
            self.0.contains_key(&key.trusted_label())
                && key.halves(watched).is_ok_and(|found| found == (true, true))
        };
        marked(&MASTER) && marked(&TRANSFER)
    }

    /// The mark of that key, checked: only the security officer can have made it, and it must be of
    /// the same numbers.
    fn of(
        &self,
        watched: &WatchedSession,
        key: Numbered<'_>,
        pair: &Pair,
    ) -> Result<Option<ObjectHandle>, Fault> {
        let label = key.trusted_label();
        if !self.0.contains_key(&label) {
            return Ok(None);
        }
        let name = key.trusted_name();
        let mark = only(watched, &label, CKO_PUBLIC_KEY, &name)?;
        check(watched, mark, &name, &trusted_rules(key))?;
        for (attribute, attribute_name) in [
            (CKA_MODULUS, "CKA_MODULUS"),
            (CKA_PUBLIC_EXPONENT, "CKA_PUBLIC_EXPONENT"),
        ] {
            let is = demand(watched, mark, &name, attribute, attribute_name)?;
            if is
                != demand(
                    watched,
                    pair.public,
                    &key.public_name(),
                    attribute,
                    attribute_name,
                )?
            {
                return Err(policy(&name, attribute_name, "is not that of the key pair").into());
            }
        }
        Ok(Some(mark))
    }

    /// A trusted key that is no mark: with it whoever has the user PIN takes every KEK out.
    fn refuse_others(&self, generations: &[Generation]) -> Result<(), Fault> {
        let known: Vec<_> = generations
            .iter()
            .filter_map(|generation| generation.trusted)
            .flat_map(|trusted| [trusted.master, trusted.transfer])
            .collect();
        for (label, objects) in &self.0 {
            // One mark of two, while the other is still to come: it was compared with its key when
            // that was loaded.
            let half = objects.len() == 1
                && parse(label).is_some_and(|(key, trusted)| {
                    trusted
                        && generations
                            .iter()
                            .any(|loaded| loaded.number == key.generation)
                });
            if !half && objects.iter().any(|object| !known.contains(object)) {
                return Err(policy(
                    &format!("key labelled {label:?}"),
                    "CKA_TRUSTED",
                    "and CKA_WRAP are both true, and no rotation of the master key made it: KEKs could be taken out under it; find out who \
                     used the security officer's PIN, and remove that key",
                )
                .into());
            }
        }
        Ok(())
    }
}

/// On a token whose keys came by a backup those that a later rotation made are its own.
fn own_shape(
    watched: &WatchedSession,
    key: Numbered<'_>,
    shape: KeyShape,
) -> Result<KeyShape, Fault> {
    if shape != KeyShape::Moved {
        return Ok(shape);
    }
    let private = watched.find(key.spec.private_class(), &key.label())?;
    let [private] = private.as_slice() else {
        return Ok(shape);
    };
    let local = watched
        .raw()
        .attribute(watched.session(), *private, CKA_LOCAL)?;
    Ok(match local.as_deref() {
        None | Some([0]) => KeyShape::Moved,
        Some(_) => KeyShape::Movable,
    })
}

/// What a mark must be, and what the security officer asks the token for.
pub(crate) fn trusted_rules(key: Numbered<'_>) -> Vec<Rule> {
    let name = key.trusted_label().into_bytes();
    let named = |attribute, attribute_name| Rule {
        attribute,
        name: attribute_name,
        value: Value::Bytes(name.clone().into()),
        when: crate::template::When::Always,
    };
    let mut rules = vec![named(CKA_LABEL, "CKA_LABEL"), named(CKA_ID, "CKA_ID")];
    rules.extend_from_slice(TRUSTED);
    rules
}

/// The generations of which anything but a mark is on the token.
pub(crate) fn numbers(watched: &WatchedSession) -> Result<BTreeSet<u32>, Fault> {
    let mut numbers = BTreeSet::new();
    for class in [CKO_PRIVATE_KEY, CKO_PUBLIC_KEY] {
        let template = [Attribute::Class(class.try_into()?), Attribute::Token(true)];
        for object in watched.find_objects(&template)? {
            if let Some((key, false)) = parse(&label(watched, object)?) {
                numbers.insert(key.generation);
            }
        }
    }
    Ok(numbers)
}

fn label(watched: &WatchedSession, object: ObjectHandle) -> Result<String, Fault> {
    let bytes = watched
        .raw()
        .attribute(watched.session(), object, CKA_LABEL)?;
    Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
}

fn relabelled(mut rules: Vec<Rule>, label: &str) -> Vec<Rule> {
    for rule in &mut rules {
        if matches!(rule.attribute, CKA_LABEL | CKA_ID) {
            rule.value = Value::Bytes(label.as_bytes().to_vec().into());
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]

    use super::*;

    #[test]
    fn a_session_follows_another_but_not_back() {
        let generation = |number: u8, in_force| MasterGeneration {
            number: number.into(),
            master: [number; 32],
            memory_master: None,
            transfer: None,
            trusted: in_force,
            in_force,
        };
        let (old, next) = (
            [generation(1, true), generation(2, false)],
            [generation(1, false), generation(2, true)],
        );
        assert_eq!(as_known(&old, &old), Some(0));
        assert_eq!(as_known(&next, &next), Some(1));
        // The process has not been told yet.
        assert_eq!(as_known(&next, &old), Some(0));
        // The old one has been destroyed meanwhile.
        assert_eq!(as_known(&next[1..], &next), Some(0));
        // A look at the token as it was before, and one that sees half of it.
        assert_eq!(as_known(&old, &next), None);
        assert_eq!(as_known(&old[..1], &next), None);
        let mut other = next.clone();
        other[1].transfer = Some([9; 32]);
        assert_eq!(as_known(&other, &next), None);

        let missing = |found: &[_], known: &[_]| no_more_in_force(found, known).is_some();
        assert!(missing(&old, &next) && missing(&old[..1], &next) && missing(&[], &old));
        assert!(!missing(&old, &old) && !missing(&next, &old) && !missing(&next[1..], &old));
        assert!(!missing(&next, &next) && !missing(&next[1..], &next));
    }

    #[test]
    fn a_label_is_read_as_it_is_written() {
        for spec in ROTATED {
            for generation in [1, 2, 10, u32::MAX] {
                let key = Numbered { spec, generation };
                for (label, mark) in [(key.label(), false), (key.trusted_label(), true)] {
                    let Some((found, trusted)) = parse(&label) else {
                        panic!("{label} is not read");
                    };
                    assert_eq!(
                        (found.spec.label, found.generation, trusted),
                        (spec.label, generation, mark)
                    );
                }
            }
        }
        for other in [
            "strongroom-master-1",
            "strongroom-master-02",
            "strongroom-master-+2",
            "strongroom-master-0",
            "strongroom-master-4294967296",
            "strongroom-master2",
            "strongroom-master-2-trusted-trusted",
            "strongroom-store-2",
            "",
        ] {
            assert!(parse(other).is_none(), "{other}");
        }
    }
}
