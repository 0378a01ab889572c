//! `random` and `hash`: what needs no key.

use std::borrow::Cow;

use super::algorithm::{HASHES, of_path_or_body};
use super::data::{Digest, Drawn, Encoded};
use crate::api::pipeline::answer::Answer;
use crate::api::vault::call::Call;
use crate::api::vault::envelope::{Envelope, room};
use crate::api::vault::error::{ApiError, Doing};
use crate::api::vault::names::word;
use crate::api::vault::request::{Base64, one_of, request};
use crate::api::vault::wire;
use serde::Serialize;
use strongroom_core::keyring::RandomSource;

/// How bytes are written.
const FORMATS: &[&str] = &["hex", "base64", ""];
/// The most bytes of one answer.
const MAX_RANDOM_BYTES: i64 = 128 * 1024;

request! {
    /// `random`, `random/:bytes`.
    Random<'p> {
        /// 1 to 131072; missing: 32. The path wins.
        bytes: Option<i64>,
        /// Missing: base64.
        format: Option<Cow<'p, str>> = one_of(FORMATS),
        /// `platform`: the kernel; `seal`: the HSM; `all`: both, XORed. The path wins.
        source: Option<Cow<'p, str>> = one_of(&["platform", "seal", "all", ""]),
    }
}

request! {
    /// `random/:source/:bytes`: the source is the path's alone; the parser warns of another.
    RandomFrom<'p> {
        /// 1 to 131072; missing: 32. The path wins.
        bytes: Option<i64>,
        /// Missing: base64.
        format: Option<Cow<'p, str>> = one_of(FORMATS),
    }
}

request! {
    /// `hash[/:algorithm]`.
    Hash<'p> {
        /// The input, base64.
        input: Base64<'p>,
        /// Missing: sha2-256. The path wins.
        algorithm: Option<Cow<'p, str>> = one_of(HASHES),
        /// Missing: hex.
        format: Option<Cow<'p, str>> = one_of(FORMATS),
    }
    refused ["hash_algorithm"]
}

/// `random`, `random/:bytes`.
pub(in crate::api) async fn random(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let draw = RandomDraw::of(call.captures, &Random::read(&call.params)?)?;
    draw.answer(call).await
}

/// `random/:source/:bytes`.
pub(in crate::api) async fn random_from(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let RandomFrom { bytes, format } = RandomFrom::read(&call.params)?;
    let asked = Random {
        bytes,
        format,
        source: None,
    };
    let draw = RandomDraw::of(call.captures, &asked)?;
    draw.answer(call).await
}

/// What is drawn, and which parameters the path replaced.
struct RandomDraw {
    len: usize,
    source: RandomSource,
    hex: bool,
    bytes_replaced: bool,
    source_replaced: bool,
}

impl RandomDraw {
    fn of(captures: [Option<&str>; 2], asked: &Random<'_>) -> Result<Self, ApiError> {
        let (source, bytes) = match captures {
            [Some(source), Some(bytes)] => (Some(source), Some(bytes)),
            [Some(source @ ("platform" | "seal" | "all")), None] => (Some(source), None),
            [bytes, _] => (None, bytes),
        };
        let len = match bytes {
            None => asked.bytes.unwrap_or(32),
            Some(text) => text.parse().map_err(|_| {
                ApiError::bad_request(format!(
                    "error parsing url-set byte count: strconv.Atoi: parsing {:?}: invalid syntax",
                    word(text)
                ))
                .because("the byte count in the path is not a number")
            })?,
        };
        if len < 1 {
            return Err(ApiError::bad_request("\"bytes\" cannot be less than 1"));
        }
        if len > MAX_RANDOM_BYTES {
            return Err(ApiError::bad_request(format!(
                "\"bytes\" should be less than {MAX_RANDOM_BYTES}"
            )));
        }
        let hex = is_hex(asked.format.as_deref(), "base64", |other| {
            format!(
                "unsupported encoding format {:?}; must be \"hex\" or \"base64\"",
                word(other)
            )
        })?;
        // The path wins.
        let said = asked.source.as_deref().filter(|said| !said.is_empty());
        Ok(Self {
            // Between 1 and MAX_RANDOM_BYTES.
            len: usize::try_from(len).unwrap_or(1),
            source: random_source(source.or(said))?,
            hex,
            bytes_replaced: bytes.is_some() && asked.bytes.is_some_and(|said| said != len),
            source_replaced: source.is_some() && said.is_some() && said != source,
        })
    }

    async fn answer(self, call: &mut Call<'_>) -> Result<Answer, ApiError> {
        if self.bytes_replaced {
            call.params.replaced_by_path("bytes");
        }
        if self.source_replaced {
            call.params.replaced_by_path("source");
        }
        let bytes = call.app.keyring.random(self.len, self.source).await;
        let bytes = bytes.map_err(|e| ApiError::from_keyring(e, Doing::Random, ""))?;
        let random_bytes = encoded(&bytes, self.hex);
        Ok(long_answer(call, &Drawn { random_bytes }, bytes.len()))
    }
}

fn random_source(name: Option<&str>) -> Result<RandomSource, ApiError> {
    match name {
        None | Some("" | "platform") => Ok(RandomSource::Platform),
        Some("seal") => Ok(RandomSource::Seal),
        Some("all") => Ok(RandomSource::All),
        Some(other) => Err(ApiError::bad_request(format!(
            "unsupported entropy source {:?}; must be \"platform\" or \"seal\", or \"all\"",
            word(other)
        ))
        .because("unsupported entropy source")),
    }
}

/// `hash[/:algorithm]`.
pub(in crate::api) async fn hash(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let asked = Hash::read(&call.params)?;
    let (algorithm, replaced) = of_path_or_body(call.captures, asked.algorithm.as_deref())?;
    let hex = is_hex(asked.format.as_deref(), "hex", |other| {
        format!(
            "unsupported encoding format {}; must be \"hex\" or \"base64\"",
            word(other)
        )
    })?;
    let input = asked
        .input
        .as_deref()
        .ok_or_else(|| ApiError::bad_request("input missing"))?;
    let input = wire::decode_base64(input).map_err(|e| {
        ApiError::bad_request(format!("unable to decode input as base64: {e}")).in_own_words()
    })?;
    let digest = algorithm.digest(&input);
    if replaced {
        call.params.replaced_by_path("algorithm");
    }
    let sum = encoded(&digest, hex);
    Ok(long_answer(call, &Digest { sum }, digest.len()))
}

fn is_hex(
    format: Option<&str>,
    default: &str,
    unsupported: impl Fn(&str) -> String,
) -> Result<bool, ApiError> {
    match format.filter(|f| !f.is_empty()).unwrap_or(default) {
        "hex" => Ok(true),
        "base64" => Ok(false),
        other => {
            let error = ApiError::bad_request(unsupported(other));
            Err(error.because("unsupported encoding format"))
        }
    }
}

fn encoded(bytes: &[u8], hex: bool) -> Encoded<'_> {
    if hex {
        Encoded::Hex(bytes)
    } else {
        Encoded::Base64(bytes)
    }
}

/// With room for so many bytes, however they are written.
fn long_answer(call: &mut Call<'_>, data: &impl Serialize, bytes: usize) -> Answer {
    let mut envelope = Envelope::open(call.id, room(bytes) + 2 * bytes);
    envelope.json(data);
    call.close(envelope, &[])
}
