//! The lines: how each is written and read.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use strongroom_core::json::{self, Document, JsonError};

use super::super::encoding::{hex, sha256, unhex};
use super::super::record::Summary;
use super::super::{Mode, PlanSignature, Step};

/// The format that `open` lines name.
pub(crate) const FORMAT: u32 = 1;

/// The chain's value before the first line.
pub(crate) const GENESIS_HASH: [u8; 32] = [0; 32];

/// What a line says, apart from its place in the chain.
#[derive(Clone, Debug)]
pub(crate) enum Body {
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
pub(crate) struct Open {
    pub(crate) format: u32,
    pub(crate) ceremony_id: String,
    pub(crate) kind: String,
    /// SHA-256 of the whole transcript that a later ceremony goes on from, hexadecimal; an initial
    /// ceremony's line has no such member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) previous_sha256: Option<String>,
    pub(crate) plan_sha256: String,
    pub(crate) plan: String,
    pub(crate) signatures: Vec<PlanSignature>,
    pub(crate) software: Software,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Software {
    pub(crate) version: String,
    pub(crate) binary_sha256: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Begin {
    pub(crate) step: Step,
    pub(crate) actor: Vec<String>,
    pub(crate) inputs: Value,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Note {
    pub(crate) step: Step,
    pub(crate) text: String,
    pub(crate) data: Value,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Done {
    pub(crate) step: Step,
    pub(crate) actor: Vec<String>,
    pub(crate) outputs: Value,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Close {
    pub(crate) summary: Summary,
    pub(crate) audit_key: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(
    clippy::struct_field_names,
    reason = "the format calls it `signature`, as the line"
)]
pub(crate) struct Signature {
    pub(crate) name: String,
    pub(crate) role: String,
    pub(crate) key: String,
    pub(crate) signature: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Seal {
    pub(crate) signature: String,
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
pub(crate) struct Line {
    pub(crate) seq: u64,
    pub(crate) time: String,
    pub(crate) mode: Mode,
    pub(crate) prev: [u8; 32],
    pub(crate) body: Body,
    /// SHA-256 of its bytes.
    pub(crate) hash: [u8; 32],
}

/// The members of every line.
const HEAD_MEMBERS: [&str; 5] = ["type", "seq", "time", "mode", "prev"];

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
    pub(crate) fn bytes(
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
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Head {
            r#type: String,
            seq: u64,
            time: String,
            mode: Mode,
            prev: String,
        }
        let wrong = |error: JsonError| format!("this is not a line of a transcript ({error})");
        let mut line = Document::parse(bytes).map_err(wrong)?.into_value();
        let head: Head = json::read(&line).map_err(wrong)?;
        if let Value::Object(members) = &mut line {
            members.retain(|name, _| !HEAD_MEMBERS.contains(&name.as_str()));
        }
        let of = |error: JsonError| {
            format!(
                "a line of type {:?} is not like this ({error})",
                head.r#type
            )
        };
        let body = match head.r#type.as_str() {
            "open" => Body::Open(json::read_exactly(&line).map_err(of)?),
            "begin" => Body::Begin(json::read_exactly(&line).map_err(of)?),
            "note" => Body::Note(json::read_exactly(&line).map_err(of)?),
            "done" => Body::Done(json::read_exactly(&line).map_err(of)?),
            "close" => Body::Close(json::read_exactly(&line).map_err(of)?),
            "signature" => Body::Signature(json::read_exactly(&line).map_err(of)?),
            "seal" => Body::Seal(json::read_exactly(&line).map_err(of)?),
            other => return Err(format!("a line of unknown type {other:?}")),
        };
        Ok(Self {
            seq: head.seq,
            prev: unhex(&head.prev).ok_or("`prev` is not 64 lower-case hexadecimal digits")?,
            time: head.time,
            mode: head.mode,
            body,
            hash: sha256(bytes),
        })
    }
}

/// Whether it is `2026-01-31T12:34:56.789Z`, of a year that every program's calendar has: 1970 to
/// 9998.
pub(crate) fn check_time(time: &str) -> bool {
    time.len() == 24
        && ("1970".."9999").contains(&time.get(..4).unwrap_or_default())
        && time
            .parse::<jiff::Timestamp>()
            .is_ok_and(|instant| format!("{instant:.3}") == time)
}
