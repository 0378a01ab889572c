//! `random` and `hash`: what needs no key.

use super::algorithm::algorithm;
use super::close;
use crate::api::pipeline::answer::Answer;
use crate::api::vault::body::word;
use crate::api::vault::call::Call;
use crate::api::vault::envelope::{Envelope, room};
use crate::api::vault::error::{ApiError, Doing};
use crate::api::vault::wire;
use strongroom_core::keyring::RandomSource;

/// The most bytes of one answer.
const MAX_RANDOM: i64 = 128 * 1024;

/// `random[/:source][/:bytes]`.
pub(in crate::api) async fn random(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let (source, bytes) = match call.captures {
        [Some(source), Some(bytes)] => (Some(source), Some(bytes)),
        [Some(source @ ("platform" | "seal" | "all")), None] => (Some(source), None),
        [bytes, _] => (None, bytes),
    };
    let len = match bytes {
        None => call.params.int("bytes")?.unwrap_or(32),
        Some(text) => text.parse().map_err(|_| {
            ApiError::bad_request(format!(
                "error parsing url-set byte count: strconv.Atoi: parsing {:?}: invalid syntax",
                word(text)
            ))
            .because("the byte count in the path is no number")
        })?,
    };
    if bytes.is_some() && call.params.int("bytes")?.is_some_and(|said| said != len) {
        call.params.replaced_by_path("bytes");
    }
    if len < 1 {
        return Err(ApiError::bad_request("\"bytes\" cannot be less than 1"));
    }
    if len > MAX_RANDOM {
        return Err(ApiError::bad_request(format!(
            "\"bytes\" should be less than {MAX_RANDOM}"
        )));
    }
    let hex = format_is_hex(call, "base64", |other| {
        format!(
            "unsupported encoding format {:?}; must be \"hex\" or \"base64\"",
            word(other)
        )
    })?;
    // The path wins.
    let from_body = match call.captures {
        // This route takes it from the path alone; the parser warns of another.
        [Some(_), Some(_)] => None,
        _ => call.params.text("source")?,
    };
    let said = from_body.as_deref().filter(|said| !said.is_empty());
    let differs = source.is_some() && said.is_some() && said != source;
    let source = match source.or(said) {
        None | Some("" | "platform") => RandomSource::Platform,
        Some("seal") => RandomSource::Seal,
        Some("all") => RandomSource::All,
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "unsupported entropy source {:?}; must be \"platform\" or \"seal\", or \"all\"",
                word(other)
            ))
            .because("unsupported entropy source"));
        }
    };
    if differs {
        call.params.replaced_by_path("source");
    }
    // Between 1 and MAX_RANDOM.
    let len = usize::try_from(len).unwrap_or(1);
    let bytes = call.app.keyring.random(len, source).await;
    let bytes = bytes.map_err(|e| ApiError::from_keyring(e, Doing::Random, ""))?;
    Ok(encoded(call, "random_bytes", &bytes, hex))
}

/// `hash[/:algorithm]`.
pub(in crate::api) async fn hash(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let algorithm = algorithm(call)?;
    let hex = format_is_hex(call, "hex", |other| {
        format!(
            "unsupported encoding format {}; must be \"hex\" or \"base64\"",
            word(other)
        )
    })?;
    let input = call
        .params
        .text("input")?
        .ok_or_else(|| ApiError::bad_request("input missing"))?;
    let input = wire::decode_base64(&input).map_err(|e| {
        ApiError::bad_request(format!("unable to decode input as base64: {e}")).in_own_words()
    })?;
    let sum = algorithm.digest(&input);
    Ok(encoded(call, "sum", &sum, hex))
}

fn format_is_hex(
    call: &Call<'_>,
    default: &'static str,
    unsupported: impl Fn(&str) -> String,
) -> Result<bool, ApiError> {
    let format = call.params.text("format")?;
    match format
        .as_deref()
        .filter(|f| !f.is_empty())
        .unwrap_or(default)
    {
        "hex" => Ok(true),
        "base64" => Ok(false),
        other => {
            let error = ApiError::bad_request(unsupported(other));
            Err(error.because("unsupported encoding format"))
        }
    }
}

/// `{"<name>":"<bytes>"}`.
fn encoded(call: &mut Call<'_>, name: &str, bytes: &[u8], hex: bool) -> Answer {
    let mut envelope = Envelope::open(call.id, room(bytes.len()) + 2 * bytes.len());
    envelope.raw("{\"");
    envelope.raw(name);
    envelope.raw("\":\"");
    if hex {
        envelope.hex(bytes);
    } else {
        envelope.base64(bytes);
    }
    envelope.raw("\"}");
    close(call, envelope, &[])
}
