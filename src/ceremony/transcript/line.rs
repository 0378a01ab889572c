//! The lines: how each is written and read.

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::super::encoding::{hex, sha256, unhex};
use super::super::record::Summary;
use super::super::{Mode, PlanSignature, Step};

/// The format that `open` lines name.
pub(in crate::ceremony) const FORMAT: u32 = 1;

/// The chain's value before the first line.
pub(in crate::ceremony) const START: [u8; 32] = [0; 32];

/// What a line says, apart from its place in the chain.
#[derive(Clone, Debug)]
pub(in crate::ceremony) enum Body {
    Open(Open),
    Begin(Begin),
    Note(Note),
    Done(Done),
    Close(Close),
    Signature(Signature),
    Seal(Seal),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::ceremony) struct Open {
    pub(in crate::ceremony) format: u32,
    pub(in crate::ceremony) ceremony_id: String,
    pub(in crate::ceremony) kind: String,
    /// SHA-256 of the whole transcript that a later ceremony goes on from, hexadecimal; a birth's line has no such member.
    #[serde(
        default,
        deserialize_with = "there",
        skip_serializing_if = "Option::is_none"
    )]
    pub(in crate::ceremony) previous_sha256: Option<String>,
    pub(in crate::ceremony) plan_sha256: String,
    pub(in crate::ceremony) plan: String,
    pub(in crate::ceremony) signatures: Vec<PlanSignature>,
    pub(in crate::ceremony) software: Software,
}

/// A member that may be missing, but not null.
fn there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    String::deserialize(deserializer).map(Some)
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::ceremony) struct Software {
    pub(in crate::ceremony) version: String,
    pub(in crate::ceremony) binary_sha256: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::ceremony) struct Begin {
    pub(in crate::ceremony) step: Step,
    pub(in crate::ceremony) actor: Vec<String>,
    pub(in crate::ceremony) inputs: Value,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::ceremony) struct Note {
    pub(in crate::ceremony) step: Step,
    pub(in crate::ceremony) text: String,
    pub(in crate::ceremony) data: Value,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::ceremony) struct Done {
    pub(in crate::ceremony) step: Step,
    pub(in crate::ceremony) actor: Vec<String>,
    pub(in crate::ceremony) outputs: Value,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::ceremony) struct Close {
    pub(in crate::ceremony) summary: Summary,
    pub(in crate::ceremony) audit_key: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(
    clippy::struct_field_names,
    reason = "the format calls it `signature`, as the line"
)]
pub(in crate::ceremony) struct Signature {
    pub(in crate::ceremony) name: String,
    pub(in crate::ceremony) role: String,
    pub(in crate::ceremony) key: String,
    pub(in crate::ceremony) signature: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::ceremony) struct Seal {
    pub(in crate::ceremony) signature: String,
}

impl Body {
    fn kind(&self) -> &'static str {
        match self {
            Self::Open(_) => "open",
            Self::Begin(_) => "begin",
            Self::Note(_) => "note",
            Self::Done(_) => "done",
            Self::Close(_) => "close",
            Self::Signature(_) => "signature",
            Self::Seal(_) => "seal",
        }
    }

    fn fields(&self) -> serde_json::Result<Vec<u8>> {
        match self {
            Self::Open(fields) => serde_json::to_vec(fields),
            Self::Begin(fields) => serde_json::to_vec(fields),
            Self::Note(fields) => serde_json::to_vec(fields),
            Self::Done(fields) => serde_json::to_vec(fields),
            Self::Close(fields) => serde_json::to_vec(fields),
            Self::Signature(fields) => serde_json::to_vec(fields),
            Self::Seal(fields) => serde_json::to_vec(fields),
        }
    }
}

/// A line, and its place in the chain.
#[derive(Clone, Debug)]
pub(in crate::ceremony) struct Line {
    pub(in crate::ceremony) seq: u64,
    pub(in crate::ceremony) time: String,
    pub(in crate::ceremony) mode: Mode,
    pub(in crate::ceremony) prev: [u8; 32],
    pub(in crate::ceremony) body: Body,
    /// SHA-256 of its bytes.
    pub(in crate::ceremony) hash: [u8; 32],
}

/// What every line begins with, in this order.
#[derive(Serialize)]
struct Head<'a> {
    r#type: &'a str,
    seq: u64,
    time: &'a str,
    mode: Mode,
    prev: String,
}

impl Line {
    /// Bytes of a new line, without its newline.
    pub(in crate::ceremony) fn bytes(
        seq: u64,
        time: &str,
        mode: Mode,
        prev: &[u8; 32],
        body: &Body,
    ) -> serde_json::Result<Vec<u8>> {
        let head = Head {
            r#type: body.kind(),
            seq,
            time,
            mode,
            prev: hex(prev),
        };
        let mut bytes = serde_json::to_vec(&head)?;
        // {"type":…} and {"step":…} become one object; each has at least one member.
        bytes.pop();
        bytes.push(b',');
        bytes.extend(body.fields()?.get(1..).unwrap_or_default());
        Ok(bytes)
    }

    /// Reads one, or says what is wrong with it.
    pub(in crate::ceremony) fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Chain {
            r#type: String,
            seq: u64,
            time: String,
            mode: Mode,
            prev: String,
            #[serde(flatten)]
            rest: Members,
        }
        let wrong =
            |error: serde_json::Error| format!("this is not a line of a transcript ({error})");
        let chain: Chain = serde_json::from_slice(bytes).map_err(wrong)?;
        let rest = Value::Object(chain.rest.0);
        let of = |error: serde_json::Error| {
            format!(
                "a line of type {:?} is not like this ({error})",
                chain.r#type
            )
        };
        let body = match chain.r#type.as_str() {
            "open" => Body::Open(serde_json::from_value(rest).map_err(of)?),
            "begin" => Body::Begin(serde_json::from_value(rest).map_err(of)?),
            "note" => Body::Note(serde_json::from_value(rest).map_err(of)?),
            "done" => Body::Done(serde_json::from_value(rest).map_err(of)?),
            "close" => Body::Close(serde_json::from_value(rest).map_err(of)?),
            "signature" => Body::Signature(serde_json::from_value(rest).map_err(of)?),
            "seal" => Body::Seal(serde_json::from_value(rest).map_err(of)?),
            other => return Err(format!("a line of unknown type {other:?}")),
        };
        Ok(Self {
            seq: chain.seq,
            prev: unhex(&chain.prev).ok_or("`prev` is not 64 lower-case hexadecimal digits")?,
            time: chain.time,
            mode: chain.mode,
            body,
            hash: sha256(bytes),
        })
    }
}

/// The members that are not every line's.
struct Members(Map<String, Value>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_map(Strict)? {
            Value::Object(members) => Ok(Self(members)),
            _ => Err(D::Error::custom("not an object")),
        }
    }
}

/// Any JSON, but in no object a member twice: which of two would count is not for a reader to choose.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Self)? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(Self)?;
            if members.contains_key(&name) {
                return Err(A::Error::custom(format!("{name:?} stands there twice")));
            }
            members.insert(name, value);
        }
        Ok(members.into())
    }
}

/// Whether it is `2026-01-31T12:34:56.789Z`.
pub(in crate::ceremony) fn check_time(time: &str) -> bool {
    time.len() == 24
        && time
            .parse::<jiff::Timestamp>()
            .is_ok_and(|instant| format!("{instant:.3}") == time)
}
