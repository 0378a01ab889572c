//! `sign`, `verify` of signatures, and `export` of public keys.

use std::collections::BTreeMap;

use serde::Serialize;
use strongroom_core::keyring::{
    KeyType, MadeSignature, Marshaling, RsaScheme, SaltLength, SignOptions,
};
use strongroom_hsm::SigningKind;

use super::algorithm::hash;
use super::batch::{ItemError, Sorted, count, in_order, references, refuse_empty, write_batch};
use super::{NO_CONTEXT, Valid, answer, close, made_by, only, valid_answer};
use crate::api::pipeline::answer::Answer;
use crate::api::vault::body::{Item, word};
use crate::api::vault::call::Call;
use crate::api::vault::envelope::{Envelope, room};
use crate::api::vault::error::{ApiError, Doing};
use crate::api::vault::wire::{self, WireError};
use zeroize::Zeroizing;

/// Room for a signature in base64: RSA-4096's is the longest.
const SIGNATURE: usize = 512;

/// `sign/:name[/:hash]`.
pub(in crate::api) async fn sign(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let options = options(call)?;
    let version = made_by(call, "requested version for signing is negative")?;
    let keyring = &call.app.keyring;
    let failed = |e| ApiError::from_keyring(e, Doing::Sign, call.name);
    if let Some(items) = call.params.batch.take() {
        refuse_empty(&items)?;
        let sorted = Sorted::sort(&items, item_input);
        let results = keyring
            .sign(call.name, version, &options, sorted.good)
            .await;
        let results = in_order(
            sorted.places,
            results.map_err(failed)?,
            Doing::Sign,
            call.name,
        )?;
        let mut envelope = Envelope::open(
            call.id,
            results.len() * room(SIGNATURE) + references(&items),
        );
        write_batch(&mut envelope, &items, &results, |envelope, result| {
            if let Ok(made) = result {
                write(envelope, options.marshaling, made);
            }
        });
        let warnings = only_rsa(call, options);
        let mut answer = close(call, envelope, warnings);
        answer.key_version = results
            .iter()
            .find_map(|r| r.as_ref().ok())
            .map_or(0, |made| made.version);
        count(&mut answer, &results);
        return Ok(answer);
    }
    let given = call.params.text("input")?;
    let item = input(given.as_deref()).map_err(ApiError::of_item)?;
    let results = keyring.sign(call.name, version, &options, vec![item]).await;
    let made = only(results.map_err(failed)?, Doing::Sign, call.name)?;
    let mut envelope = Envelope::open(call.id, room(SIGNATURE));
    envelope.raw("{");
    write(&mut envelope, options.marshaling, &made);
    envelope.raw("}");
    let warnings = only_rsa(call, options);
    Ok(close(call, envelope, warnings).with_version(made.version))
}

/// `verify/:name[/:hash]` with `signature`.
pub(super) fn verify(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let options = options(call)?;
    let jws = options.marshaling == Marshaling::Jws;
    let keyring = &call.app.keyring;
    let failed = |e| ApiError::from_keyring(e, Doing::VerifySignature, call.name);
    if let Some(items) = call.params.batch.take() {
        let sorted = Sorted::sort(&items, |item: &Item<'_>| {
            let signature = item.signature.as_deref().unwrap_or_default();
            Ok::<_, ItemError>((item_input(item)?, signature_of(signature, jws)?))
        });
        let version = sorted.good.first().map_or(0, |(_, made)| made.version);
        let results = keyring.verify_signatures(call.name, &options, &sorted.good);
        let results = in_order(
            sorted.places,
            results.map_err(failed)?,
            Doing::VerifySignature,
            call.name,
        )?;
        let warnings = only_rsa(call, options);
        return Ok(valid_answer(call, &items, &results, warnings).with_version(version));
    }
    let given = call.params.text("input")?;
    let signature = call.params.text("signature")?.unwrap_or_default();
    let made = signature_of(&signature, jws).map_err(ApiError::of_item)?;
    let version = made.version;
    let item = (input(given.as_deref()).map_err(ApiError::of_item)?, made);
    let results = keyring.verify_signatures(call.name, &options, &[item]);
    let valid = only(results.map_err(failed)?, Doing::VerifySignature, call.name)?;
    let warnings = only_rsa(call, options);
    Ok(answer(call, &Valid { valid }, warnings).with_version(version))
}

/// `export/public-key/:name[/:version]`.
pub(in crate::api) async fn export_public_key(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    #[derive(Serialize)]
    struct Exported {
        name: String,
        r#type: &'static str,
        keys: BTreeMap<u32, String>,
    }
    let failed = |e| ApiError::from_keyring(e, Doing::Read, call.name);
    let key = call.app.keyring.read(call.name).map_err(failed)?;
    let [wanted, _] = call.captures;
    let wanted = match wanted {
        None => None,
        Some("latest") => Some(key.latest_version),
        Some(text) => Some(
            text.strip_prefix('v')
                .unwrap_or(text)
                .parse()
                .map_err(|_| {
                    ApiError::bad_request(format!(
                        "invalid key version {:?}: it is a number, or latest",
                        word(text)
                    ))
                    .because("the key version in the path is neither a number nor latest")
                })?,
        ),
    };
    let least = key.min_decryption_version;
    let keys: BTreeMap<_, _> = key
        .versions
        .into_iter()
        .filter(|v| v.version >= least && wanted.is_none_or(|wanted| wanted == v.version))
        .filter_map(|v| Some((v.version, v.public?.pem)))
        .collect();
    if keys.is_empty() {
        let why = match (wanted, key.signing_version) {
            (_, 0) => format!(
                "unknown key type {} for export type public-key",
                key.key_type.as_str()
            ),
            (Some(wanted), _) if wanted < least => {
                "version for export is below minimum decryption version".to_owned()
            }
            _ => "version does not exist or cannot be found".to_owned(),
        };
        return Err(ApiError::bad_request(why).in_own_words());
    }
    let exported = Exported {
        name: key.name,
        r#type: key.key_type.as_str(),
        keys,
    };
    Ok(answer(call, &exported, &[]))
}

/// The parameters that say how to sign: Vault's names, defaults and words.
fn options(call: &mut Call<'_>) -> Result<SignOptions, ApiError> {
    if call.params.is_set("context") {
        return Err(ApiError::bad_request(NO_CONTEXT));
    }
    let hash = hash(call)?;
    let params = &call.params;
    let salt = match params.text("salt_length")?.as_deref().unwrap_or_default() {
        "" | "auto" => SaltLength::Auto,
        "hash" => SaltLength::Hash,
        number => SaltLength::Bytes(number.parse().map_err(|_| {
            ApiError::bad_request(format!(
                "salt length {:?} is neither \"auto\", \"hash\" nor a number of bytes",
                word(number)
            ))
            .because("salt_length is neither auto, hash nor a number of bytes")
        })?),
    };
    let rsa = match params
        .text("signature_algorithm")?
        .as_deref()
        .unwrap_or_default()
    {
        "" | "pss" => RsaScheme::Pss(salt),
        "pkcs1v15" => RsaScheme::Pkcs1v15,
        other => {
            return Err(ApiError::bad_request(format!(
                "unsupported rsa signature algorithm {}",
                word(other)
            ))
            .because("unsupported signature_algorithm"));
        }
    };
    let marshaling = match params
        .text("marshaling_algorithm")?
        .as_deref()
        .unwrap_or_default()
    {
        "" | "asn1" => Marshaling::Asn1,
        "jws" => Marshaling::Jws,
        other => {
            return Err(ApiError::bad_request(format!(
                "invalid marshaling type {:?}: \"asn1\" or \"jws\"",
                word(other)
            ))
            .because("invalid marshaling_algorithm"));
        }
    };
    Ok(SignOptions {
        hash,
        prehashed: params.flag("prehashed")?.unwrap_or(false),
        rsa,
        marshaling,
    })
}

/// What to warn of where a key of another type was told how RSA signs. Not refused: sigstore's
/// client says `pkcs1v15` to every key.
fn only_rsa(call: &Call<'_>, options: SignOptions) -> &'static [&'static str] {
    let default = options.rsa == RsaScheme::Pss(SaltLength::Auto);
    let keyring = &call.app.keyring;
    if default
        || keyring
            .read(call.name)
            .is_ok_and(|key| key.key_type == KeyType::Signing(SigningKind::Rsa4096))
    {
        &[]
    } else {
        &["signature_algorithm and salt_length are for RSA keys: they change nothing here"]
    }
}

/// A missing input is not an empty one: what was sent under another name would be signed or judged
/// unseen.
fn input(text: Option<&str>) -> Result<Zeroizing<Vec<u8>>, ItemError> {
    wire::decode_base64(text.ok_or("missing input")?)
        .map_err(|e| format!("unable to decode input as base64: {e}").into())
}

fn item_input(item: &Item<'_>) -> Result<Zeroizing<Vec<u8>>, ItemError> {
    if item.context.as_deref().is_some_and(|c| !c.is_empty()) {
        return Err(NO_CONTEXT.into());
    }
    input(item.input.as_deref())
}

fn signature_of(text: &str, jws: bool) -> Result<MadeSignature, ItemError> {
    wire::parse_signature(text, jws).map_err(|error| match error {
        WireError::NoPrefix => "invalid signature: no prefix".into(),
        WireError::TooOld => "invalid signature: version is too old".into(),
        WireError::Base64(_) => "invalid base64 signature value".into(),
        error => format!("invalid signature: {error}").into(),
    })
}

/// `"signature": "vault:v<version>:…", "key_version": <version>`.
fn write(envelope: &mut Envelope, marshaling: Marshaling, made: &MadeSignature) {
    envelope.raw("\"signature\":");
    match marshaling {
        Marshaling::Asn1 => envelope.versioned(made.version, &made.bytes),
        Marshaling::Jws => envelope.versioned_url(made.version, &made.bytes),
    }
    envelope.raw(",\"key_version\":");
    envelope.number(made.version);
}
