//! The items of a batch, as they are sent. What goes wrong is told by an item's place and a
//! member's name.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::api::vault::names::{Others, Shape, Unknown, fail};
use crate::api::vault::value::{Scalar, SecretText};

/// The most items of one batch: what a body of the default size can hold, and no more work than a
/// token does in seconds.
pub(in crate::api) const MAX_BATCH: usize = 16_384;
/// The parameter whose value is a list of [`Item`]s.
pub(in crate::api) const BATCH: &str = "batch_input";

/// What an item can hold, where its request takes it.
pub(in crate::api) const ITEM_PARAMETERS: &[&str] = &[
    "plaintext",
    "ciphertext",
    "input",
    "hmac",
    "signature",
    "context",
    "nonce",
    "associated_data",
    "key_version",
];

/// One item of a batch. Types are strict in here, as in Vault.
#[derive(Default)]
#[allow(clippy::struct_field_names)]
pub(in crate::api) struct Item<'a> {
    pub(in crate::api) plaintext: Option<SecretText<'a>>,
    pub(in crate::api) ciphertext: Option<SecretText<'a>>,
    pub(in crate::api) input: Option<SecretText<'a>>,
    pub(in crate::api) hmac: Option<SecretText<'a>>,
    pub(in crate::api) signature: Option<SecretText<'a>>,
    pub(in crate::api) context: Option<SecretText<'a>>,
    pub(in crate::api) nonce: Option<SecretText<'a>>,
    pub(in crate::api) associated_data: Option<SecretText<'a>>,
    pub(in crate::api) reference: Option<SecretText<'a>>,
    pub(in crate::api) key_version: Option<i64>,
}

/// A list of items, or null; says which one is wrong.
pub(in crate::api::vault) struct Batch<'p, 's> {
    pub(in crate::api::vault) shape: Shape<'s>,
    pub(in crate::api::vault) unknown: &'p mut Unknown,
    pub(in crate::api::vault) fault: &'p mut Option<String>,
}

impl Batch<'_, '_> {
    fn fail<E: de::Error>(&mut self, why: fmt::Arguments<'_>) -> E {
        fail(self.fault, format!("failed to parse batch input: {why}"))
    }
}

impl<'de> DeserializeSeed<'de> for Batch<'_, '_> {
    type Value = Option<Vec<Item<'de>>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// The visitor's methods for what is neither a list nor null.
macro_rules! no_list {
    ($($method:ident($type:ty)),*) => {
        $(fn $method<E: de::Error>(mut self, _: $type) -> Result<Self::Value, E> {
            Err(self.no_list())
        })*
    };
}

impl Batch<'_, '_> {
    fn no_list<E: de::Error>(&mut self) -> E {
        self.fail(format_args!("source data must be an array"))
    }
}

impl<'de> Visitor<'de> for Batch<'_, '_> {
    type Value = Option<Vec<Item<'de>>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    no_list!(
        visit_bool(bool),
        visit_i64(i64),
        visit_u64(u64),
        visit_f64(f64),
        visit_str(&str)
    );

    fn visit_map<A: MapAccess<'de>>(mut self, _: A) -> Result<Self::Value, A::Error> {
        Err(self.no_list())
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let one = One {
                at: items.len(),
                batch: &mut self,
            };
            match seq.next_element_seed(one)? {
                Some(item) if items.len() < MAX_BATCH => items.push(item),
                Some(_) => {
                    return Err(
                        self.fail(format_args!("at most {MAX_BATCH} items are taken at once"))
                    );
                }
                None => return Ok(Some(items)),
            }
        }
    }
}

/// One item: an object. Serde would also take a list, as the fields in their order.
struct One<'p, 'q, 's> {
    at: usize,
    batch: &'p mut Batch<'q, 's>,
}

impl One<'_, '_, '_> {
    fn no_object<E: de::Error>(self, found: &str) -> E {
        let at = self.at;
        self.batch
            .fail(format_args!("'[{at}]' expected a map, got {found}"))
    }
}

impl<'de> DeserializeSeed<'de> for One<'_, '_, '_> {
    type Value = Item<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// The visitor's methods for what is not an object.
macro_rules! no_object {
    ($($method:ident($type:ty) $found:literal),*) => {
        $(fn $method<E: de::Error>(self, _: $type) -> Result<Self::Value, E> {
            Err(self.no_object($found))
        })*
    };
}

impl<'de> Visitor<'de> for One<'_, '_, '_> {
    type Value = Item<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    no_object!(visit_bool(bool) "a boolean", visit_i64(i64) "a number", visit_u64(u64) "a number", visit_f64(f64) "a number", visit_str(&str) "a string");

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Err(self.no_object("null"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
        Err(self.no_object("a list"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Self { at, batch } = self;
        let mut item = Item::default();
        let (mut seen, mut others) = (GivenMembers::default(), Others::default());
        while let Some(name) = map.next_key::<SecretText<'de>>()? {
            let shape = batch.shape;
            let Some(name) =
                known_in_item(&name).filter(|name| shape.item.contains(name) || *name == REFERENCE)
            else {
                let same = |known: &&&str| **known == &*name;
                if let Some(name) = shape.names.iter().find(same) {
                    return Err(batch.fail(format_args!(
                        "'[{at}].{name}' is not taken in an item: give it beside {BATCH}"
                    )));
                }
                if let Some(name) = shape.refused.iter().find(same) {
                    return Err(batch.fail(format_args!(
                        "'[{at}].{name}' is not supported: leave it out"
                    )));
                }
                let noted = others.note(&name);
                let noted = noted.and_then(|()| batch.unknown.note(shape, &name));
                noted.map_err(|why| batch.fail(format_args!("'[{at}]': {why}")))?;
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if !seen.first(name) {
                return Err(batch.fail(format_args!("'[{at}].{name}' is given twice")));
            }
            let value: Scalar<'de> = map.next_value()?;
            item.set(name, value).map_err(|(wanted, found)| {
                batch.fail(format_args!(
                    "'[{at}].{name}' expected type '{wanted}', got {found}"
                ))
            })?;
        }
        Ok(item)
    }
}

/// What the client calls an item, so that it knows it again.
const REFERENCE: &str = "reference";

/// The name as it is known, if it is.
fn known_in_item(name: &str) -> Option<&'static str> {
    let mut names = ITEM_PARAMETERS.iter().chain([&REFERENCE]);
    names.find(|known| **known == name).copied()
}

/// Which names an item has given.
#[derive(Default)]
struct GivenMembers(u16);

impl GivenMembers {
    /// False: it was given before.
    fn first(&mut self, name: &str) -> bool {
        let at = ITEM_PARAMETERS.iter().position(|known| *known == name);
        let bit = 1 << at.unwrap_or(ITEM_PARAMETERS.len());
        let first = self.0 & bit == 0;
        self.0 |= bit;
        first
    }
}

impl<'a> Item<'a> {
    /// `Err`: the type that is wanted, and the one that was found.
    fn set(&mut self, name: &str, value: Scalar<'a>) -> Result<(), (&'static str, &'static str)> {
        let slot = match name {
            "plaintext" => &mut self.plaintext,
            "ciphertext" => &mut self.ciphertext,
            "input" => &mut self.input,
            "hmac" => &mut self.hmac,
            "signature" => &mut self.signature,
            "context" => &mut self.context,
            "nonce" => &mut self.nonce,
            "associated_data" => &mut self.associated_data,
            "key_version" => {
                self.key_version = match value {
                    Scalar::Null => None,
                    Scalar::Int(n) => Some(n),
                    other => return Err(("int", other.kind())),
                };
                return Ok(());
            }
            _ => &mut self.reference,
        };
        *slot = match value {
            Scalar::Null => None,
            Scalar::Text(text) => Some(text),
            other => return Err(("string", other.kind())),
        };
        Ok(())
    }
}
