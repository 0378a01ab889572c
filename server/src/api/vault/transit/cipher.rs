//! `encrypt`, `decrypt`, `rewrap`, `datakey`: the hot path.

use std::borrow::Cow;
use std::collections::BTreeMap;

use strongroom_core::keyring::{Ciphertext, CreateOptions, DecryptItem, EncryptItem, KeyType};
use strongroom_core::policy::Operation;

use super::data::{DataKeyMade, Decrypted, Encrypted};
use super::new_key::{ENCRYPTION_KEY_TYPE, key_type};
use super::unsupported::Refused;
use super::{decode_optional, wanted_version};
use crate::api::pipeline::answer::Answer;
use crate::api::pipeline::change;
use crate::api::vault::batch::items::Items;
use crate::api::vault::batch::{
    Batch, ItemError, Results, none_missing, only, partial_failure, same_contexts,
};
use crate::api::vault::body::Params;
use crate::api::vault::call::Call;
use crate::api::vault::envelope::{Envelope, room};
use crate::api::vault::error::{ApiError, Doing};
use crate::api::vault::request::{Base64, Given, one_of, request};
use crate::api::vault::routes::UPSERT;
use crate::api::vault::wire::{self, WireError};
use crate::api::vault::words;

request! {
    /// `encrypt/:name`.
    Encrypt<'p> {
        /// The only type that encrypts; another one is refused.
        r#type: Option<Cow<'p, str>> = one_of(&[ENCRYPTION_KEY_TYPE, ""]),
        /// Equal plaintexts give equal ciphertexts under one context; needs `derived`.
        convergent_encryption: Option<bool>,
        /// The HTTP status, 200 to 599 but 204, 205 and 304, of a batch in which some items failed;
        /// 400 otherwise.
        partial_failure_response_code: Option<i64>,
    }
    item
    /// What is encrypted.
    ToEncrypt<'p> {
        /// The plaintext, base64; may be empty, not missing.
        plaintext: Base64<'p>,
        /// For derived keys: what the key is derived from, base64.
        context: Base64<'p>,
        /// Refused unless empty: nonces are the appliance's.
        nonce: Given,
        /// 0 or missing: the latest.
        key_version: Option<i64>,
        /// Additional authenticated data, base64: needed again to decrypt.
        associated_data: Base64<'p>,
    }
    needs [plaintext]
    refused ["padding_scheme"]
}

request! {
    /// `decrypt/:name`.
    Decrypt<'p> {
        /// The HTTP status, 200 to 599 but 204, 205 and 304, of a batch in which some items failed;
        /// 400 otherwise.
        partial_failure_response_code: Option<i64>,
    }
    item
    /// What is decrypted.
    ToDecrypt<'p> {
        /// `vault:v<version>:<base64>`, as encrypt gave it.
        ciphertext: Option<Cow<'p, str>>,
        /// For derived keys: what the key is derived from, base64.
        context: Base64<'p>,
        /// Refused unless empty: nonces are the appliance's.
        nonce: Given,
        /// Additional authenticated data, base64: needed again to decrypt.
        associated_data: Base64<'p>,
    }
    needs [ciphertext]
    refused ["padding_scheme"]
}

request! {
    /// `rewrap/:name`.
    Rewrap<'p> {}
    item
    /// What is decrypted and encrypted again, and with which version.
    ToRewrap<'p> {
        /// `vault:v<version>:<base64>`, as encrypt gave it.
        ciphertext: Option<Cow<'p, str>>,
        /// For derived keys: what the key is derived from, base64.
        context: Base64<'p>,
        /// Refused unless empty: nonces are the appliance's.
        nonce: Given,
        /// 0 or missing: the latest.
        key_version: Option<i64>,
        /// What the ciphertext is bound to, base64; the new one is bound to it too.
        associated_data: Base64<'p>,
    }
    needs [ciphertext]
    refused ["padding_scheme", "decrypt_padding_scheme", "encrypt_padding_scheme"]
}

request! {
    /// `datakey/plaintext/:name`, `datakey/wrapped/:name`.
    DataKey<'p> {
        /// 128, 256 or 512; missing: 256.
        bits: Option<i64>,
        /// For derived keys: what the key is derived from, base64.
        context: Base64<'p>,
        /// Refused unless empty: nonces are the appliance's.
        nonce: Given,
        /// 0 or missing: the latest.
        key_version: Option<i64>,
        /// Additional authenticated data, base64: needed again to decrypt.
        associated_data: Base64<'p>,
    }
    refused ["padding_scheme"]
}

impl ToEncrypt<'_> {
    fn item(&self) -> Result<EncryptItem, ItemError> {
        let plaintext = self.plaintext.as_deref();
        let plaintext = plaintext.ok_or("missing plaintext to encrypt")?;
        Refused::Nonce.when(self.nonce.0)?;
        Ok(EncryptItem {
            plaintext: wire::decode_base64(plaintext).map_err(|e| e.to_string())?,
            associated_data: associated(&self.associated_data)?,
            context: context(&self.context)?,
            key_version: wanted_version(self.key_version)?,
        })
    }
}

impl ToDecrypt<'_> {
    fn item(&self) -> Result<DecryptItem, ItemError> {
        let Self {
            ciphertext,
            context,
            nonce,
            associated_data,
        } = self;
        decrypt_item(ciphertext.as_deref(), context, *nonce, associated_data)
    }
}

impl ToRewrap<'_> {
    fn item(&self) -> Result<DecryptItem, ItemError> {
        decrypt_item(
            self.ciphertext.as_deref(),
            &self.context,
            self.nonce,
            &self.associated_data,
        )
    }

    /// The version that it is to be encrypted with.
    fn target(&self) -> Result<Option<u32>, ItemError> {
        wanted_version(self.key_version)
    }
}

impl Encrypt<'_> {
    fn new_key(&self) -> Result<NewKey, ApiError> {
        let said = self.r#type.as_deref().filter(|said| !said.is_empty());
        Refused::TypeToEncrypt.when(key_type(said)? != KeyType::Aes256Gcm96)?;
        Ok(NewKey {
            convergent: self.convergent_encryption.unwrap_or(false),
        })
    }
}

/// What the key is, or is to be, that an `encrypt` may make.
struct NewKey {
    convergent: bool,
}

/// `encrypt/:name`.
pub(in crate::api) async fn encrypt(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    if let Some(items) = call.params.batch.take() {
        // Apart, as those below: a call without a batch need not carry the room for one.
        return Box::pin(encrypt_batch(call, items)).await;
    }
    let (item, new_key) = one_to_encrypt(&call.params)?;
    prepare(call, &new_key, !item.context.is_empty()).await?;
    let results = call.app.keyring.encrypt(call.key()?, vec![item]).await;
    let made = only(results, Doing::Encrypt, call.name)?;
    Ok(ciphertext_answer(call, &made))
}

/// Apart, so that the request is not carried through what waits.
fn one_to_encrypt(params: &Params<'_>) -> Result<(EncryptItem, NewKey), ApiError> {
    let asked = Encrypt::read(params)?;
    let item = asked.one.item().map_err(ApiError::of_item)?;
    Ok((item, asked.new_key()?))
}

/// `decrypt/:name`.
pub(in crate::api) async fn decrypt(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    if let Some(items) = call.params.batch.take() {
        return Box::pin(decrypt_batch(call, items)).await;
    }
    let item = one_to_decrypt(&call.params)?;
    let version = item.ciphertext.version;
    let results = call.app.keyring.decrypt(call.key()?, vec![item]).await;
    let plaintext = only(results, Doing::Decrypt, call.name)?;
    let mut envelope = Envelope::open(call.id, room(plaintext.len()));
    envelope.object(&Decrypted {
        plaintext: &plaintext,
    });
    Ok(call.close(envelope, &[]).with_version(version))
}

fn one_to_decrypt(params: &Params<'_>) -> Result<DecryptItem, ApiError> {
    let asked = Decrypt::read(params)?;
    asked.one.item().map_err(ApiError::of_item)
}

/// `rewrap/:name`. What was encrypted with associated data, or a context, is encrypted with them
/// again.
pub(in crate::api) async fn rewrap(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    if let Some(items) = call.params.batch.take() {
        return Box::pin(rewrap_batch(call, items)).await;
    }
    let (item, target) = one_to_rewrap(&call.params)?;
    let results = call
        .app
        .keyring
        .rewrap(call.key()?, vec![item], target)
        .await;
    let made = only(results, Doing::Decrypt, call.name)?;
    Ok(ciphertext_answer(call, &made))
}

/// And the version that it is to be encrypted with.
fn one_to_rewrap(params: &Params<'_>) -> Result<(DecryptItem, Option<u32>), ApiError> {
    let asked = Rewrap::read(params)?.one;
    let item = asked.item().map_err(ApiError::of_item)?;
    Ok((item, asked.target().map_err(ApiError::of_item)?))
}

/// `datakey/plaintext/:name`.
pub(in crate::api) async fn datakey_plaintext(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    datakey(call, true).await
}

/// `datakey/wrapped/:name`.
pub(in crate::api) async fn datakey_wrapped(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    datakey(call, false).await
}

async fn datakey(call: &mut Call<'_>, with_plaintext: bool) -> Result<Answer, ApiError> {
    let (bits, template) = key_to_make(&call.params)?;
    let key = call
        .app
        .keyring
        .data_key(call.key()?, bits, template)
        .await
        .map_err(|e| ApiError::from_keyring(e, Doing::Encrypt, call.name))?;
    let plaintext = with_plaintext.then_some(key.plaintext.as_slice());
    let made = DataKeyMade::new(&key.ciphertext, plaintext);
    let mut envelope = Envelope::open(call.id, 256 + room(key.ciphertext.bytes.len()));
    envelope.json(&made);
    let version = key.ciphertext.version;
    Ok(call.close(envelope, &[]).with_version(version))
}

/// The data key's length in bits, and how it is to be encrypted.
fn key_to_make(params: &Params<'_>) -> Result<(u32, EncryptItem), ApiError> {
    let asked = DataKey::read(params)?;
    let bits = match asked.bits {
        Some(128) => 128,
        None | Some(256) => 256,
        Some(512) => 512,
        Some(_) => return Err(ApiError::bad_request(words::DATA_KEY_LENGTH)),
    };
    Refused::Nonce.when(asked.nonce.0)?;
    let template = EncryptItem {
        context: decode_optional(asked.context.as_deref())
            .map_err(|_| ApiError::bad_request("failed to base64-decode context"))?,
        associated_data: associated(&asked.associated_data).map_err(ApiError::of_item)?,
        key_version: wanted_version(asked.key_version).map_err(ApiError::of_item)?,
        ..EncryptItem::default()
    };
    Ok((bits, template))
}

async fn encrypt_batch(call: &mut Call<'_>, items: Items<'_>) -> Result<Answer, ApiError> {
    let asked = Encrypt::read(&call.params)?;
    let if_some = partial_failure(asked.partial_failure_response_code)?;
    let each = items.read::<ToEncrypt<'_>>()?;
    let contexts = same_contexts(each.iter().map(|one| one.context.is_given()))?;
    let plaintexts = each.iter().map(|one| one.plaintext.is_some());
    none_missing(plaintexts, "plaintext", "encrypt")?;
    let (batch, good) = Batch::sort(&items, each.iter().map(ToEncrypt::item));
    drop(each);
    let new_key = asked.new_key()?;
    prepare(call, &new_key, contexts).await?;
    let results = call.app.keyring.encrypt(call.key()?, good).await;
    let results = batch.results(results, Doing::Encrypt, call.name)?;
    let mut answer = ciphertexts_answer(call, &results);
    answer.status = results.status(if_some);
    Ok(answer)
}

async fn decrypt_batch(call: &mut Call<'_>, items: Items<'_>) -> Result<Answer, ApiError> {
    let asked = Decrypt::read(&call.params)?;
    let if_some = partial_failure(asked.partial_failure_response_code)?;
    let each = items.read::<ToDecrypt<'_>>()?;
    same_contexts(each.iter().map(|one| one.context.is_given()))?;
    let ciphertexts = each.iter().map(|one| one.ciphertext.is_some());
    none_missing(ciphertexts, "ciphertext", "decrypt")?;
    let (batch, good) = Batch::sort(&items, each.iter().map(ToDecrypt::item));
    drop(each);
    let version = good.first().map_or(0, |item| item.ciphertext.version);
    let results = call.app.keyring.decrypt(call.key()?, good).await;
    let results = batch.results(results, Doing::Decrypt, call.name)?;
    let mut answer = results.answer_by_hand(
        call,
        |plaintext| room(plaintext.len()),
        |plaintext| {
            // Vault has an empty plaintext where an item failed.
            Some(Decrypted {
                plaintext: plaintext.map_or(&[], |plaintext| plaintext.as_slice()),
            })
        },
    );
    answer.status = results.status(if_some);
    Ok(answer.with_version(version))
}

async fn rewrap_batch(call: &mut Call<'_>, items: Items<'_>) -> Result<Answer, ApiError> {
    Rewrap::read(&call.params)?;
    let each = items.read::<ToRewrap<'_>>()?;
    same_contexts(each.iter().map(|one| one.context.is_given()))?;
    let items_and_targets = each.iter().map(|one| Ok((one.target()?, one.item()?)));
    let (batch, good) = Batch::sort(&items, items_and_targets);
    drop(each);
    // The keyring takes one target version per call; most batches have one.
    let mut groups: BTreeMap<Option<u32>, (Vec<usize>, Vec<DecryptItem>)> = BTreeMap::new();
    for (at, (target, item)) in good.into_iter().enumerate() {
        let (places, items) = groups.entry(target).or_default();
        places.push(at);
        items.push(item);
    }
    let mut made = BTreeMap::new();
    if groups.is_empty() {
        groups.insert(None, (Vec::new(), Vec::new()));
    }
    for (target, (places, items)) in groups {
        let results = call.app.keyring.rewrap(call.key()?, items, target).await;
        let results = results.map_err(|e| ApiError::from_keyring(e, Doing::Decrypt, call.name))?;
        made.extend(places.into_iter().zip(results));
    }
    let results = Ok(made.into_values().collect());
    let results = batch.results(results, Doing::Decrypt, call.name)?;
    Ok(ciphertexts_answer(call, &results))
}

/// Makes the key if it isn't there, where configuration and policy allow it. What is said of a key
/// that is there must be true of it.
async fn prepare(call: &Call<'_>, new_key: &NewKey, derived: bool) -> Result<(), ApiError> {
    let NewKey { convergent } = *new_key;
    let app = call.app;
    if convergent
        && app
            .keyring
            .read(call.key()?)
            .is_ok_and(|key| !key.convergent)
    {
        return Err(ApiError::bad_request(
            "the key is there and not convergent: leave convergent_encryption out, or use another key",
        ));
    }
    if !app.config.upsert || app.keyring.exists(call.key()?) {
        return Ok(());
    }
    call.request.permit(Operation::Create)?;
    let options = CreateOptions {
        derived,
        convergent,
        ..CreateOptions::default()
    };
    if options.convergent && !options.derived {
        return Err(ApiError::bad_request(
            "convergent encryption requires derivation to be enabled, so context is required",
        ));
    }
    let name = call.key()?.to_owned();
    // A change of its own, with its own lines in the audit log before the encryption's.
    change::beside(&call.request, &UPSERT, |client| async move {
        match client.app.keyring.create(name.borrowed(), options).await {
            Ok(_) => Ok(Answer::no_content()),
            Err(error) => Err(ApiError::from_keyring(
                error,
                Doing::Create,
                name.borrowed().as_str(),
            )),
        }
    })
    .await
}

fn decrypt_item(
    ciphertext: Option<&str>,
    of: &Base64<'_>,
    nonce: Given,
    associated_data: &Base64<'_>,
) -> Result<DecryptItem, ItemError> {
    let ciphertext = match ciphertext {
        None | Some("") => return Err("missing ciphertext to decrypt".into()),
        Some(text) => text,
    };
    Refused::Nonce.when(nonce.0)?;
    Ok(DecryptItem {
        ciphertext: wire::parse_ciphertext(ciphertext).map_err(ciphertext_error)?,
        associated_data: associated(associated_data)?,
        context: context(of)?,
    })
}

fn ciphertext_error(error: WireError) -> ItemError {
    match error {
        WireError::TooOld => words::DECRYPTION_TOO_OLD.into(),
        error => format!("invalid ciphertext: {error}").into(),
    }
}

fn context(text: &Base64<'_>) -> Result<Vec<u8>, ItemError> {
    decode_optional(text.as_deref()).map_err(|e| e.to_string().into())
}

fn associated(text: &Base64<'_>) -> Result<Vec<u8>, ItemError> {
    decode_optional(text.as_deref()).map_err(|e| {
        format!("unable to get associated_data/additional_data from factory[0]: {e}").into()
    })
}

fn ciphertext_answer(call: &mut Call<'_>, made: &Ciphertext) -> Answer {
    let mut envelope = Envelope::open(call.id, room(made.bytes.len()));
    envelope.object(&Encrypted::from(made));
    call.close(envelope, &[]).with_version(made.version)
}

fn ciphertexts_answer(call: &mut Call<'_>, results: &Results<'_, Ciphertext>) -> Answer {
    let answer = results.answer_by_hand(
        call,
        |made| room(made.bytes.len()),
        |made| made.map(Encrypted::from),
    );
    answer.with_version(results.version(|made| made.version))
}
