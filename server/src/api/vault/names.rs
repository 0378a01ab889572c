//! The names of parameters: those that a route takes, and what is done with the others.

use std::collections::BTreeSet;

use serde::de;

use crate::api::pipeline::route::Member;

/// The most unknown names that are repeated to the client.
const MAX_UNKNOWN_NAMED: usize = 8;
/// The most names in one object that the route doesn't take.
pub(in crate::api) const MAX_OTHERS: usize = 256;
/// What is wrong with a name.
pub(super) const GIVEN_TWICE: &str = "is given twice";

/// What a route takes.
#[derive(Clone, Copy)]
pub(in crate::api) struct Shape<'p> {
    /// The parameters.
    pub(in crate::api) names: &'static [&'static str],
    /// Those of them that an item of a batch may hold.
    pub(in crate::api) item: &'static [Member],
    /// Parameters of Vault's, or of `OpenBao`'s, that would change what is done, and that this
    /// appliance doesn't have.
    pub(in crate::api) refused: &'static [&'static str],
    /// Any other name is refused too: the answer has no room for a warning, or the endpoint is not
    /// Vault's.
    pub(in crate::api) strict: bool,
    /// The names that the path gave already.
    pub(in crate::api) captured: &'p [&'static str],
}

impl Shape<'_> {
    /// Where in an item of a batch the parameter is, if one may hold it.
    pub(super) fn in_item(&self, name: &str) -> Option<usize> {
        self.item.iter().position(|member| member.name == name)
    }
}

/// The names in one object that the route doesn't take, each once.
#[derive(Default)]
pub(super) struct Others(BTreeSet<Box<str>>);

impl Others {
    /// `Err`: the name was given before, or there are too many. In our own words: the name may be
    /// anything.
    pub(super) fn note(&mut self, name: &str) -> Result<(), String> {
        if self.0.contains(name) {
            return Err(format!("a parameter that is not known {GIVEN_TWICE}"));
        }
        if self.0.len() == MAX_OTHERS {
            return Err(format!(
                "more than {MAX_OTHERS} parameters are not known: leave them out"
            ));
        }
        self.0.insert(name.into());
        Ok(())
    }
}

/// Unknown names: those that look like a parameter's, as far as they are repeated, and whether
/// there were others.
#[derive(Default)]
pub(super) struct Unknown {
    pub(super) named: Vec<String>,
    pub(super) others: bool,
}

impl Unknown {
    /// A name that the route doesn't know. The error is in our own words.
    pub(super) fn note(&mut self, shape: Shape<'_>, name: &str) -> Result<(), String> {
        let known = |known: &&&str| known.eq_ignore_ascii_case(name);
        if let Some(name) = shape.names.iter().chain(shape.refused).find(known) {
            return Err(format!(
                "a parameter is {name:?} but for the case of its letters: names are in lower case"
            ));
        }
        let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/');
        if name.is_empty() || !name.bytes().all(is_name) {
            return Err("a parameter's name is not made of letters, digits and _ - . /".to_owned());
        }
        if shape.strict {
            return Err(format!(
                "a parameter is unknown here; the known ones are: {}",
                shape.names.join(", ")
            ));
        }
        if !is_word(name) || self.named.len() == MAX_UNKNOWN_NAMED {
            self.others = true;
        } else if !self.named.iter().any(|known| known == name) {
            self.named.push(name.to_owned());
        }
        Ok(())
    }
}

/// Whether a text may be repeated to the client that sent it, in words of Vault's that do: it looks
/// like a parameter or a choice, not like data.
pub(in crate::api) fn is_word(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= 32
        && bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'+'))
}

/// A text for an answer if [`is_word`], else what stands for it. Not for the audit log.
pub(in crate::api) fn word(text: &str) -> &str {
    if is_word(text) {
        text
    } else {
        "(not repeated)"
    }
}

/// Why a parameter is not taken, in our own words.
pub(super) enum Fault {
    /// Which of two values counts, another reader may see otherwise.
    Twice(&'static str),
    Other(String),
}

/// Keeps what is wrong, and ends the reading.
pub(super) fn fail<E: de::Error>(fault: &mut Option<String>, why: String) -> E {
    *fault = Some(why);
    E::custom("refused")
}
