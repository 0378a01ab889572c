//! `sign`, `verify` of signatures, and `export` of public keys.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;
use strongroom_core::keyring::{
    KeyInfo, KeyType, MadeSignature, Marshaling, RsaScheme, SaltLength, SignOptions,
};
use strongroom_hsm::SigningKind;

use super::algorithm::{SIGNED_HASHES, hash};
use super::data::{Signed, Versioned};
use super::made_by;
use super::unsupported::Refused;
use super::verify::{ToVerify, Verify, valid_answer};
use crate::api::pipeline::answer::Answer;
use crate::api::vault::batch::{Done, ItemError, Work};
use crate::api::vault::call::Call;
use crate::api::vault::envelope::{Envelope, room};
use crate::api::vault::error::{ApiError, Doing};
use crate::api::vault::names::word;
use crate::api::vault::request::{Base64, Described as _, Given, one_of, request};
use crate::api::vault::wire::{self, WireError};
use zeroize::Zeroizing;

/// Room for a signature in base64: RSA-4096's is the longest.
const MAX_SIGNATURE_BASE64: usize = 512;

request! {
    /// `sign/:name[/:hash]`.
    Sign<'p> {
        /// Missing: sha2-256. The path wins. `none`: with `prehashed` and `pkcs1v15` only. Ed25519
        /// has its own.
        hash_algorithm: Option<Cow<'p, str>> = one_of(SIGNED_HASHES),
        /// An old name of `hash_algorithm`.
        algorithm: Option<Cow<'p, str>> = one_of(SIGNED_HASHES),
        /// For RSA keys. Missing: pss.
        signature_algorithm: Option<Cow<'p, str>> = one_of(&["pss", "pkcs1v15", ""]),
        /// asn1 (the default): DER, base64. jws: r || s, base64url without padding.
        marshaling_algorithm: Option<Cow<'p, str>> = one_of(&["asn1", "jws", ""]),
        /// The input is a digest. Refused with ed25519.
        prehashed: Option<bool>,
        /// For pss: `auto` (the default; as long as fits), `hash`, or bytes.
        salt_length: Option<Cow<'p, str>> = json!({ "type": ["string", "integer", "null"] }),
        /// 0 or missing: the version that signs now.
        key_version: Option<i64>,
    }
    item
    /// What is signed.
    ToSign<'p> {
        /// What to sign, base64: the message, or its digest with `prehashed`.
        input: Base64<'p>,
        /// Refused unless empty: what signs is no derived key.
        context: Given = Base64::schema(),
    }
}

impl ToSign<'_> {
    fn item(&self) -> Result<Zeroizing<Vec<u8>>, ItemError> {
        Refused::Context.when(self.context.0)?;
        input(&self.input)
    }
}

impl ToVerify<'_> {
    fn signed(&self, jws: bool) -> Result<(Zeroizing<Vec<u8>>, MadeSignature), ItemError> {
        Refused::Context.when(self.context.0)?;
        let signature = self.signature.as_deref().unwrap_or_default();
        Ok((input(&self.input)?, signature_of(signature, jws)?))
    }

    /// The same where there is no batch: of two mistakes, the one of the signature is told.
    fn signed_alone(&self, jws: bool) -> Result<(Zeroizing<Vec<u8>>, MadeSignature), ItemError> {
        let signature = self.signature.as_deref().unwrap_or_default();
        let made = signature_of(signature, jws)?;
        Ok((input(&self.input)?, made))
    }
}

/// `sign/:name[/:hash]`.
pub(in crate::api) async fn sign(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let items = call.params.batch.take();
    let asked = Sign::read(&call.params)?;
    let context = asked.one.context;
    let (options, replaced) = SignParameters::from(&asked).options(call.captures, context)?;
    let version = made_by(
        asked.key_version,
        "requested version for signing is negative",
    )?;
    let (work, inputs) = Work::of(items.as_ref(), || asked.one.item(), ToSign::item)?;
    if replaced {
        call.params.replaced_by_path("hash_algorithm");
    }
    let keyring = &call.app.keyring;
    let results = keyring.sign(call.key()?, version, &options, inputs).await;
    let marshaling = options.marshaling;
    let warnings = only_rsa(call, options);
    match work.done(results, Doing::Sign, call.name)? {
        Done::One(made) => {
            let mut envelope = Envelope::open(call.id, room(MAX_SIGNATURE_BASE64));
            envelope.json(&signed(marshaling, &made));
            Ok(call.close(envelope, warnings).with_version(made.version))
        }
        Done::Many(results) => {
            let signed = |made| signed(marshaling, made);
            let answer = results.answer(call, room(MAX_SIGNATURE_BASE64), signed, warnings);
            Ok(answer.with_version(results.version(|made| made.version)))
        }
    }
}

/// `verify/:name[/:hash]` with `signature`.
pub(super) fn verify(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let items = call.params.batch.take();
    let asked = Verify::read(&call.params)?;
    let context = asked.one.context;
    let (options, replaced) = SignParameters::from(&asked).options(call.captures, context)?;
    let jws = options.marshaling == Marshaling::Jws;
    let (work, inputs) = Work::of(
        items.as_ref(),
        || asked.one.signed_alone(jws),
        |item: &ToVerify<'_>| item.signed(jws),
    )?;
    if replaced {
        call.params.replaced_by_path("hash_algorithm");
    }
    let version = inputs.first().map_or(0, |(_, made)| made.version);
    let keyring = &call.app.keyring;
    let results = keyring.verify_signatures(call.key()?, &options, &inputs);
    let done = work.done(results, Doing::VerifySignature, call.name)?;
    let warnings = only_rsa(call, options);
    Ok(valid_answer(call, &done, warnings).with_version(version))
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
    let key = call.app.keyring.read(call.key()?).map_err(failed)?;
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
    Ok(call.answer(&exported, &[]))
}

/// What `sign` and `verify` say of how to sign: Vault's names, defaults and words.
#[derive(Clone, Copy)]
struct SignParameters<'p> {
    hash_algorithm: Option<&'p str>,
    algorithm: Option<&'p str>,
    signature_algorithm: Option<&'p str>,
    marshaling_algorithm: Option<&'p str>,
    prehashed: Option<bool>,
    salt_length: Option<&'p str>,
}

impl<'p> From<&'p Sign<'_>> for SignParameters<'p> {
    fn from(asked: &'p Sign<'_>) -> Self {
        Self {
            hash_algorithm: asked.hash_algorithm.as_deref(),
            algorithm: asked.algorithm.as_deref(),
            signature_algorithm: asked.signature_algorithm.as_deref(),
            marshaling_algorithm: asked.marshaling_algorithm.as_deref(),
            prehashed: asked.prehashed,
            salt_length: asked.salt_length.as_deref(),
        }
    }
}

impl<'p> From<&'p Verify<'_>> for SignParameters<'p> {
    fn from(asked: &'p Verify<'_>) -> Self {
        Self {
            hash_algorithm: asked.hash_algorithm.as_deref(),
            algorithm: asked.algorithm.as_deref(),
            signature_algorithm: asked.signature_algorithm.as_deref(),
            marshaling_algorithm: asked.marshaling_algorithm.as_deref(),
            prehashed: asked.prehashed,
            salt_length: asked.salt_length.as_deref(),
        }
    }
}

impl SignParameters<'_> {
    /// And whether the path counts, and not what the body says of the hash.
    fn options(
        self,
        captures: [Option<&str>; 2],
        context: Given,
    ) -> Result<(SignOptions, bool), ApiError> {
        Refused::Context.when(context.0)?;
        let (hash, replaced) = hash(captures, self.hash_algorithm, self.algorithm)?;
        let salt = match self.salt_length.unwrap_or_default() {
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
        let rsa = match self.signature_algorithm.unwrap_or_default() {
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
        let marshaling = match self.marshaling_algorithm.unwrap_or_default() {
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
        let options = SignOptions {
            hash,
            prehashed: self.prehashed.unwrap_or(false),
            rsa,
            marshaling,
        };
        Ok((options, replaced))
    }
}

/// What to warn of where a key of another type was told how RSA signs. Not refused: sigstore's
/// client says `pkcs1v15` to every key.
fn only_rsa(call: &Call<'_>, options: SignOptions) -> &'static [&'static str] {
    let default = options.rsa == RsaScheme::Pss(SaltLength::Auto);
    let keyring = &call.app.keyring;
    let rsa = |key: KeyInfo| key.key_type == KeyType::Signing(SigningKind::Rsa4096);
    if default
        || call
            .key()
            .is_ok_and(|name| keyring.read(name).is_ok_and(rsa))
    {
        &[]
    } else {
        &["signature_algorithm and salt_length are for RSA keys: they change nothing here"]
    }
}

/// A missing input is not an empty one: what was sent under another name would be signed or judged
/// unseen.
fn input(text: &Base64<'_>) -> Result<Zeroizing<Vec<u8>>, ItemError> {
    wire::decode_base64(text.as_deref().ok_or("missing input")?)
        .map_err(|e| format!("unable to decode input as base64: {e}").into())
}

fn signature_of(text: &str, jws: bool) -> Result<MadeSignature, ItemError> {
    wire::parse_signature(text, jws).map_err(|error| match error {
        WireError::NoPrefix => "invalid signature: no prefix".into(),
        WireError::TooOld => "invalid signature: version is too old".into(),
        WireError::Base64(_) => "invalid base64 signature value".into(),
        error => format!("invalid signature: {error}").into(),
    })
}

fn signed(marshaling: Marshaling, made: &MadeSignature) -> Signed<'_> {
    Signed {
        signature: Versioned {
            version: made.version,
            bytes: &made.bytes,
            url: marshaling == Marshaling::Jws,
        },
        key_version: made.version,
    }
}
