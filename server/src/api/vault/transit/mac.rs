//! `hmac`, and `verify` of HMACs.

use std::borrow::Cow;

use super::algorithm::{HASHES, hash, invalid_hash, of_path_or_body};
use super::data::{Tag, Versioned};
use super::made_by;
use super::unsupported::Refused;
use super::verify::{ToVerify, Verify, valid_answer};
use crate::api::pipeline::answer::Answer;
use crate::api::vault::batch::{Done, ItemError, Work};
use crate::api::vault::call::Call;
use crate::api::vault::envelope::{Envelope, room};
use crate::api::vault::error::{ApiError, Doing};
use crate::api::vault::request::{Base64, one_of, request};
use crate::api::vault::wire::{self, WireError};
use strongroom_core::keyring::{HmacInput, HmacTag};

/// Room for a tag with the hash that has the longest.
const TAG_ROOM: usize = room(96);

request! {
    /// `hmac/:name[/:algorithm]`. Here the hash is `algorithm`; who gives it the name that it has
    /// elsewhere means it.
    Hmac<'p> {
        /// Missing: sha2-256. The path wins.
        algorithm: Option<Cow<'p, str>> = one_of(HASHES),
        /// 0 or missing: the latest.
        key_version: Option<i64>,
    }
    item
    /// What is authenticated.
    ToAuthenticate<'p> {
        /// The input, base64.
        input: Base64<'p>,
    }
    needs [input]
    refused ["hash_algorithm"]
}

impl ToAuthenticate<'_> {
    fn item(&self) -> Result<HmacInput, ItemError> {
        hmac_input(self.input.as_deref().ok_or("missing input for HMAC")?)
    }
}

impl ToVerify<'_> {
    fn authenticated(&self) -> Result<(HmacInput, HmacTag), ItemError> {
        Refused::Context.when(self.context.0)?;
        let tag = self.hmac.as_deref().unwrap_or_default();
        check(self.input.as_deref(), tag)
    }

    /// The same where there is no batch, and an HMAC or a signature must be there.
    fn authenticated_alone(&self) -> Result<(HmacInput, HmacTag), ItemError> {
        let filled = |text: Option<&str>| text.is_some_and(|text| !text.is_empty());
        let hmac = filled(self.hmac.as_deref());
        match (hmac, filled(self.signature.as_deref())) {
            (true, false) => self.authenticated(),
            (true, true) => Err("provide one of 'signature' or 'hmac'".into()),
            (false, _) => Err("neither a 'signature' nor an 'hmac' were given to verify".into()),
        }
    }
}

/// `hmac/:name[/:algorithm]`.
pub(in crate::api) async fn hmac(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let items = call.params.batch.take();
    let asked = Hmac::read(&call.params)?;
    let (algorithm, replaced) = of_path_or_body(call.captures, asked.algorithm.as_deref())?;
    let version = made_by(
        asked.key_version,
        "key version does not exist (cannot be negative)",
    )?;
    let one = || asked.one.item();
    let (work, inputs) = Work::of(items.as_ref(), one, ToAuthenticate::item)?;
    if replaced {
        call.params.replaced_by_path("algorithm");
    }
    let keyring = &call.app.keyring;
    let results = keyring.hmac(call.key()?, algorithm, version, inputs).await;
    match work.done(results, Doing::Hmac, call.name)? {
        Done::One(made) => {
            let mut envelope = Envelope::open(call.id, TAG_ROOM);
            envelope.json(&tag_of(&made));
            Ok(call.close(envelope, &[]).with_version(made.version))
        }
        Done::Many(results) => {
            let answer = results.answer(call, TAG_ROOM, tag_of, &[]);
            Ok(answer.with_version(results.version(|made| made.version)))
        }
    }
}

/// `verify/:name[/:algorithm]` with `hmac`.
pub(super) async fn verify(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let items = call.params.batch.take();
    let asked = Verify::read(&call.params)?;
    let (algorithm, replaced) = hash(
        call.captures,
        asked.hash_algorithm.as_deref(),
        asked.algorithm.as_deref(),
    )?;
    let algorithm = algorithm.ok_or_else(|| invalid_hash("none"))?;
    // What is said of signatures, and would make an HMAC another one. Vault looks at none of it.
    Refused::Context.when(asked.one.context.0)?;
    Refused::Prehashed.when(asked.prehashed == Some(true))?;
    let (work, inputs) = Work::of(
        items.as_ref(),
        || asked.one.authenticated_alone(),
        ToVerify::authenticated,
    )?;
    if replaced {
        call.params.replaced_by_path("hash_algorithm");
    }
    let version = inputs.first().map_or(0, |(_, tag)| tag.version);
    let keyring = &call.app.keyring;
    let results = keyring.verify_hmac(call.key()?, algorithm, inputs).await;
    let done = work.done(results, Doing::VerifyHmac, call.name)?;
    Ok(valid_answer(call, &done, &[]).with_version(version))
}

fn tag_of(made: &HmacTag) -> Tag<'_> {
    Tag {
        hmac: Versioned {
            version: made.version,
            bytes: &made.tag,
            url: false,
        },
    }
}

fn hmac_input(text: &str) -> Result<HmacInput, ItemError> {
    let input =
        wire::decode_base64(text).map_err(|e| format!("unable to decode input as base64: {e}"))?;
    Ok(HmacInput { input })
}

/// What to check. A missing input is not an empty one: what was sent under another name would be
/// judged unseen.
fn check(input: Option<&str>, tag: &str) -> Result<(HmacInput, HmacTag), ItemError> {
    let tag = wire::parse_hmac(tag).map_err(|error| -> ItemError {
        match error {
            WireError::NoPrefix => "invalid HMAC to verify: no prefix".into(),
            WireError::TooOld => {
                "cannot verify HMAC: version is too old (disallowed by policy)".into()
            }
            WireError::Base64(e) => {
                format!("unable to decode verification HMAC as base64: {e}").into()
            }
            error => format!("invalid HMAC: {error}").into(),
        }
    })?;
    Ok((hmac_input(input.ok_or("missing input")?)?, tag))
}
