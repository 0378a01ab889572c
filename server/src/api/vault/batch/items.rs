//! The items of a batch, as they are sent. What goes wrong is told by an item's place and a
//! member's name.

use std::fmt;
use std::ops::Deref;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::api::pipeline::route::{Kind, Member};
use crate::api::vault::error::ApiError;
use crate::api::vault::names::{Others, Shape, Unknown, fail};
use crate::api::vault::value::{Asked, Scalar, SecretText, Values};

/// The most items of one batch: what a body of the default size can hold, and no more work than a
/// token does in seconds.
pub(in crate::api) const MAX_BATCH: usize = 16_384;
/// The parameter whose value is a list of [`Item`]s.
pub(in crate::api) const BATCH: &str = "batch_input";
/// The most members that an item may have, besides its reference.
pub(in crate::api) const MAX_MEMBERS: usize = 5;
/// What the client calls an item, so that it knows it again.
const REFERENCE: Member = Member {
    name: "reference",
    kind: Kind::Text,
};

/// The items of one batch.
pub(in crate::api) struct Items<'a>(Vec<Item<'a>>);

impl<'a> Items<'a> {
    /// Each as its request has it; a batch without items is refused.
    pub(in crate::api::vault) fn read<'p, T: Asked<'p>>(&'p self) -> Result<Vec<T>, ApiError> {
        if self.is_empty() {
            return Err(ApiError::bad_request("missing batch input to process"));
        }
        let read = |item: &'p Item<'a>| T::read(&mut Values::new(&item.values));
        self.iter().map(read).collect()
    }
}

impl<'a> Deref for Items<'a> {
    type Target = [Item<'a>];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// One item. Types are strict in here, as in Vault.
#[derive(Default)]
pub(in crate::api) struct Item<'a> {
    /// In the order of [`Shape::item`].
    values: [Scalar<'a>; MAX_MEMBERS],
    reference: Scalar<'a>,
}

impl<'a> Item<'a> {
    /// What the client calls it; empty if it doesn't.
    pub(in crate::api) fn reference(&self) -> &str {
        match &self.reference {
            Scalar::Text(text) => text,
            _ => "",
        }
    }

    #[cfg(any(fuzzing, test))]
    pub(in crate::api::vault) fn member(&self, at: usize) -> &Scalar<'a> {
        self.values.get(at).unwrap_or(&Scalar::Absent)
    }

    /// Where the value of that name belongs; `None`: an item doesn't hold it.
    fn slot(&mut self, shape: Shape<'_>, name: &str) -> Option<(Member, &mut Scalar<'a>)> {
        if name == REFERENCE.name {
            return Some((REFERENCE, &mut self.reference));
        }
        let at = shape.in_item(name)?;
        Some((*shape.item.get(at)?, self.values.get_mut(at)?))
    }
}

/// `Err`: the type that is wanted, and the one that was found.
fn check(kind: Kind, value: &Scalar<'_>) -> Result<(), (&'static str, &'static str)> {
    match (kind, value) {
        (_, Scalar::Null) | (Kind::Text, Scalar::Text(_)) | (Kind::Integer, Scalar::Int(_)) => {
            Ok(())
        }
        (Kind::Text, other) => Err(("string", other.kind())),
        (Kind::Integer, other) => Err(("int", other.kind())),
    }
}

/// A list of items, or null; says which one is wrong.
pub(in crate::api::vault) struct Reader<'p, 's> {
    pub(in crate::api::vault) shape: Shape<'s>,
    pub(in crate::api::vault) unknown: &'p mut Unknown,
    pub(in crate::api::vault) fault: &'p mut Option<String>,
}

impl Reader<'_, '_> {
    fn fail<E: de::Error>(&mut self, why: fmt::Arguments<'_>) -> E {
        fail(self.fault, format!("failed to parse batch input: {why}"))
    }
}

impl<'de> DeserializeSeed<'de> for Reader<'_, '_> {
    type Value = Option<Items<'de>>;

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

impl Reader<'_, '_> {
    fn no_list<E: de::Error>(&mut self) -> E {
        self.fail(format_args!("source data must be an array"))
    }
}

impl<'de> Visitor<'de> for Reader<'_, '_> {
    type Value = Option<Items<'de>>;

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
                None => return Ok(Some(Items(items))),
            }
        }
    }
}

/// One item: an object. Serde would also take a list, as the fields in their order.
struct One<'p, 'q, 's> {
    at: usize,
    batch: &'p mut Reader<'q, 's>,
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
        let mut others = Others::default();
        while let Some(name) = map.next_key::<SecretText<'de>>()? {
            let shape = batch.shape;
            let Some((member, slot)) = item.slot(shape, &name) else {
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
            let Member { name, kind } = member;
            if !matches!(slot, Scalar::Absent) {
                return Err(batch.fail(format_args!("'[{at}].{name}' is given twice")));
            }
            let value: Scalar<'de> = map.next_value()?;
            check(kind, &value).map_err(|(wanted, found)| {
                batch.fail(format_args!(
                    "'[{at}].{name}' expected type '{wanted}', got {found}"
                ))
            })?;
            *slot = value;
        }
        Ok(item)
    }
}
