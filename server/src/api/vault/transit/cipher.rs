//! `encrypt`, `decrypt`, `rewrap`, `datakey`: the hot path.

use std::collections::BTreeMap;

use strongroom_core::keyring::{Ciphertext, CreateOptions, DecryptItem, EncryptItem, KeyType};
use strongroom_core::policy::{Decision, Operation};

use super::batch::{
    ItemError, Sorted, batch_status, count, in_order, partial_failure, references, write_batch,
};
use super::{close, decode_optional, key_type, only, refuse_nonce, wanted_version};
use crate::api::pipeline::answer::Answer;
use crate::api::pipeline::change;
use crate::api::pipeline::credentials::Presented;
use crate::api::vault::body::{Item, Params, Text};
use crate::api::vault::call::Call;
use crate::api::vault::envelope::{Envelope, room};
use crate::api::vault::error::{ApiError, Doing};
use crate::api::vault::routes::UPSERT;
use crate::api::vault::wire::{self, WireError};
use crate::api::vault::words;

/// `encrypt/:name`.
pub(in crate::api) async fn encrypt(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    if let Some(items) = call.params.batch.take() {
        // Apart, as those below: a call without a batch need not carry the room for one.
        return Box::pin(encrypt_batch(call, items)).await;
    }
    let plaintext = call.params.text("plaintext")?;
    let context = call.params.text("context")?;
    let associated_data = call.params.text("associated_data")?;
    let item = encrypt_item(
        plaintext.as_deref(),
        context.as_deref(),
        associated_data.as_deref(),
        call.params.is_set("nonce"),
        call.params.int("key_version")?.unwrap_or(0),
    )
    .map_err(ApiError::of_item)?;
    prepare(call, !item.context.is_empty()).await?;
    let results = call.app.keyring.encrypt(call.name, vec![item]).await;
    let made = results
        .map_err(|e| ApiError::from_keyring(e, Doing::Encrypt, call.name))
        .and_then(|results| only(results, Doing::Encrypt, call.name))?;
    Ok(ciphertext_answer(call, &made))
}

/// `decrypt/:name`.
pub(in crate::api) async fn decrypt(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    if let Some(items) = call.params.batch.take() {
        return Box::pin(decrypt_batch(call, items)).await;
    }
    let item = asked_for(&call.params)?;
    let version = item.ciphertext.version;
    let results = call.app.keyring.decrypt(call.name, vec![item]).await;
    let plaintext = results
        .map_err(|e| ApiError::from_keyring(e, Doing::Decrypt, call.name))
        .and_then(|results| only(results, Doing::Decrypt, call.name))?;
    let mut envelope = Envelope::open(call.id, room(plaintext.len()));
    envelope.raw("{\"plaintext\":\"");
    envelope.base64(&plaintext);
    envelope.raw("\"}");
    Ok(close(call, envelope, &[]).with_version(version))
}

/// `rewrap/:name`. What was encrypted with associated data, or a context, is encrypted with them
/// again.
pub(in crate::api) async fn rewrap(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    if let Some(items) = call.params.batch.take() {
        return Box::pin(rewrap_batch(call, items)).await;
    }
    let item = asked_for(&call.params)?;
    let target =
        wanted_version(call.params.int("key_version")?.unwrap_or(0)).map_err(ApiError::of_item)?;
    let results = call.app.keyring.rewrap(call.name, vec![item], target).await;
    let made = results
        .map_err(|e| ApiError::from_keyring(e, Doing::Decrypt, call.name))
        .and_then(|results| only(results, Doing::Decrypt, call.name))?;
    Ok(ciphertext_answer(call, &made))
}

/// The ciphertext of a request without a batch, and what it is bound to.
fn asked_for(params: &Params<'_>) -> Result<DecryptItem, ApiError> {
    decrypt_item(
        params.text("ciphertext")?.as_deref(),
        params.text("context")?.as_deref(),
        params.text("associated_data")?.as_deref(),
        params.is_set("nonce"),
    )
    .map_err(ApiError::of_item)
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
    let bits = match call.params.int("bits")? {
        Some(128) => 128,
        None | Some(256) => 256,
        Some(512) => 512,
        Some(_) => return Err(ApiError::bad_request(words::DATA_KEY_LENGTH)),
    };
    refuse_nonce(call.params.is_set("nonce")).map_err(ApiError::of_item)?;
    let template = EncryptItem {
        context: decode_optional(call.params.text("context")?.as_deref())
            .map_err(|_| ApiError::bad_request("failed to base64-decode context"))?,
        associated_data: associated(call.params.text("associated_data")?.as_deref())
            .map_err(ApiError::of_item)?,
        key_version: wanted_version(call.params.int("key_version")?.unwrap_or(0))
            .map_err(ApiError::of_item)?,
        ..EncryptItem::default()
    };
    let key = call
        .app
        .keyring
        .data_key(call.name, bits, template)
        .await
        .map_err(|e| ApiError::from_keyring(e, Doing::Encrypt, call.name))?;
    let mut envelope = Envelope::open(call.id, 256 + room(key.ciphertext.bytes.len()));
    envelope.raw("{\"ciphertext\":");
    envelope.versioned(key.ciphertext.version, &key.ciphertext.bytes);
    envelope.raw(",\"key_version\":");
    envelope.number(key.ciphertext.version);
    if with_plaintext {
        envelope.raw(",\"plaintext\":\"");
        envelope.base64(&key.plaintext);
        envelope.raw("\"");
    }
    envelope.raw("}");
    Ok(close(call, envelope, &[]).with_version(key.ciphertext.version))
}

async fn encrypt_batch(call: &mut Call<'_>, items: Vec<Item<'_>>) -> Result<Answer, ApiError> {
    let if_some = partial_failure(&call.params)?;
    let contexts = check_batch(&items)?;
    if let Some(at) = items.iter().position(|item| item.plaintext.is_none()) {
        return Err(ApiError::bad_request(format!(
            "failed to parse batch input: '[{at}].plaintext' missing plaintext to encrypt"
        ))
        .in_own_words());
    }
    let sorted = Sorted::sort(&items, |item| {
        encrypt_item(
            item.plaintext.as_deref(),
            item.context.as_deref(),
            item.associated_data.as_deref(),
            has(item.nonce.as_ref()),
            item.key_version.unwrap_or(0),
        )
    });
    prepare(call, contexts).await?;
    let results = call.app.keyring.encrypt(call.name, sorted.good).await;
    let results = results.map_err(|e| ApiError::from_keyring(e, Doing::Encrypt, call.name))?;
    let results = in_order(sorted.places, results, Doing::Encrypt, call.name)?;
    let mut answer = ciphertexts_answer(call, &items, &results);
    answer.status = batch_status(if_some, &results);
    Ok(answer)
}

async fn decrypt_batch(call: &mut Call<'_>, items: Vec<Item<'_>>) -> Result<Answer, ApiError> {
    let if_some = partial_failure(&call.params)?;
    check_batch(&items)?;
    if let Some(at) = items.iter().position(|item| item.ciphertext.is_none()) {
        return Err(ApiError::bad_request(format!(
            "failed to parse batch input: '[{at}].ciphertext' missing ciphertext to decrypt"
        ))
        .in_own_words());
    }
    let sorted = Sorted::sort(&items, |item| {
        decrypt_item(
            item.ciphertext.as_deref(),
            item.context.as_deref(),
            item.associated_data.as_deref(),
            has(item.nonce.as_ref()),
        )
    });
    let version = sorted
        .good
        .first()
        .map_or(0, |item| item.ciphertext.version);
    let results = call.app.keyring.decrypt(call.name, sorted.good).await;
    let results = results.map_err(|e| ApiError::from_keyring(e, Doing::Decrypt, call.name))?;
    let results = in_order(sorted.places, results, Doing::Decrypt, call.name)?;
    let bytes: usize = results
        .iter()
        .map(|r| match r {
            Ok(plaintext) => room(plaintext.len()),
            Err(why) => 96 + why.len(),
        })
        .sum();
    let mut envelope = Envelope::open(call.id, bytes + references(&items));
    write_batch(&mut envelope, &items, &results, |envelope, result| {
        envelope.raw("\"plaintext\":\"");
        if let Ok(plaintext) = result {
            envelope.base64(plaintext);
        }
        envelope.raw("\"");
    });
    let mut answer = close(call, envelope, &[]).with_version(version);
    answer.status = batch_status(if_some, &results);
    count(&mut answer, &results);
    Ok(answer)
}

async fn rewrap_batch(call: &mut Call<'_>, items: Vec<Item<'_>>) -> Result<Answer, ApiError> {
    check_batch(&items)?;
    let mut sorted = Sorted::sort(&items, |item| {
        let target = wanted_version(item.key_version.unwrap_or(0))?;
        let item = decrypt_item(
            item.ciphertext.as_deref(),
            item.context.as_deref(),
            item.associated_data.as_deref(),
            has(item.nonce.as_ref()),
        )?;
        Ok((target, item))
    });
    // The keyring takes one target version per call; most batches have one.
    let mut groups: BTreeMap<Option<u32>, (Vec<usize>, Vec<DecryptItem>)> = BTreeMap::new();
    for (at, (target, item)) in sorted.good.drain(..).enumerate() {
        let (places, items) = groups.entry(target).or_default();
        places.push(at);
        items.push(item);
    }
    let mut made = BTreeMap::new();
    if groups.is_empty() {
        groups.insert(None, (Vec::new(), Vec::new()));
    }
    for (target, (places, items)) in groups {
        let results = call.app.keyring.rewrap(call.name, items, target).await;
        let results = results.map_err(|e| ApiError::from_keyring(e, Doing::Decrypt, call.name))?;
        made.extend(places.into_iter().zip(results));
    }
    let results = made.into_values().collect();
    let results = in_order(sorted.places, results, Doing::Decrypt, call.name)?;
    Ok(ciphertexts_answer(call, &items, &results))
}

/// Makes the key if it isn't there, where configuration and policy allow it. What is said of a key
/// that is there must be true of it.
async fn prepare(call: &Call<'_>, derived: bool) -> Result<(), ApiError> {
    let key_type = if call.params.is_set("type") {
        key_type(&call.params)?
    } else {
        KeyType::Aes256Gcm96
    };
    if key_type != KeyType::Aes256Gcm96 {
        return Err(ApiError::bad_request(
            "the type of a key that encrypts is aes256-gcm96",
        ));
    }
    let convergent = call
        .params
        .flag("convergent_encryption")?
        .unwrap_or_default();
    let app = call.app;
    if convergent && app.keyring.read(call.name).is_ok_and(|key| !key.convergent) {
        return Err(ApiError::bad_request(
            "the key is there and not convergent: leave convergent_encryption out, or use another key",
        ));
    }
    if !app.config.upsert || app.keyring.exists(call.name) {
        return Ok(());
    }
    let identity = &call.peer.identity;
    let decision = app
        .policy
        .load()
        .decide(identity, Operation::Create, Some(call.name));
    match decision {
        Decision::Allowed => {}
        Decision::AllowedWithToken if call.token.is_some_and(Presented::counts) => {}
        Decision::AllowedWithToken => {
            return Err(ApiError::bad_token(
                "the policy asks for a token to create keys and none was sent",
            ));
        }
        Decision::Denied => {
            return Err(ApiError::denied(
                "the key does not exist, and no policy rule allows to create it",
            ));
        }
    }
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
    let name = call.name.to_owned();
    // A change of its own, with its own lines in the audit log before the encryption's.
    change::beside(&call.request, &UPSERT, |client| async move {
        match client.app.keyring.create(&name, options).await {
            Ok(_) => Ok(Answer::no_content()),
            Err(error) => Err(ApiError::from_keyring(error, Doing::Create, &name)),
        }
    })
    .await
}

fn encrypt_item(
    plaintext: Option<&str>,
    context: Option<&str>,
    associated_data: Option<&str>,
    nonce: bool,
    key_version: i64,
) -> Result<EncryptItem, ItemError> {
    let plaintext = plaintext.ok_or("missing plaintext to encrypt")?;
    refuse_nonce(nonce)?;
    Ok(EncryptItem {
        plaintext: wire::decode_base64(plaintext).map_err(|e| e.to_string())?,
        associated_data: associated(associated_data)?,
        context: decode_optional(context).map_err(|e| e.to_string())?,
        key_version: wanted_version(key_version)?,
    })
}

fn decrypt_item(
    ciphertext: Option<&str>,
    context: Option<&str>,
    associated_data: Option<&str>,
    nonce: bool,
) -> Result<DecryptItem, ItemError> {
    let ciphertext = match ciphertext {
        None | Some("") => return Err("missing ciphertext to decrypt".into()),
        Some(text) => text,
    };
    refuse_nonce(nonce)?;
    Ok(DecryptItem {
        ciphertext: wire::parse_ciphertext(ciphertext).map_err(ciphertext_error)?,
        associated_data: associated(associated_data)?,
        context: decode_optional(context).map_err(|e| e.to_string())?,
    })
}

fn ciphertext_error(error: WireError) -> ItemError {
    match error {
        WireError::TooOld => words::DECRYPTION_TOO_OLD.into(),
        error => format!("invalid ciphertext: {error}").into(),
    }
}

fn associated(text: Option<&str>) -> Result<Vec<u8>, ItemError> {
    decode_optional(text).map_err(|e| {
        format!("unable to get associated_data/additional_data from factory[0]: {e}").into()
    })
}

fn has(text: Option<&Text<'_>>) -> bool {
    text.is_some_and(|t| !t.is_empty())
}

/// Refuses a batch without items, and one in which only some items have a context. Answers whether
/// they have.
fn check_batch(items: &[Item<'_>]) -> Result<bool, ApiError> {
    let Some(first) = items.first() else {
        return Err(ApiError::bad_request("missing batch input to process"));
    };
    let contexts = has(first.context.as_ref());
    if items
        .iter()
        .any(|item| has(item.context.as_ref()) != contexts)
    {
        return Err(ApiError::bad_request(
            "context should be set either in all the request blocks or in none",
        ));
    }
    Ok(contexts)
}

fn ciphertext_answer(call: &mut Call<'_>, made: &Ciphertext) -> Answer {
    let mut envelope = Envelope::open(call.id, room(made.bytes.len()));
    envelope.raw("{\"ciphertext\":");
    envelope.versioned(made.version, &made.bytes);
    envelope.raw(",\"key_version\":");
    envelope.number(made.version);
    envelope.raw("}");
    close(call, envelope, &[]).with_version(made.version)
}

fn ciphertexts_answer(
    call: &mut Call<'_>,
    items: &[Item<'_>],
    results: &[Result<Ciphertext, ItemError>],
) -> Answer {
    let bytes: usize = results
        .iter()
        .map(|r| match r {
            Ok(made) => room(made.bytes.len()),
            Err(why) => 96 + why.len(),
        })
        .sum();
    let mut envelope = Envelope::open(call.id, bytes + references(items));
    write_batch(&mut envelope, items, results, |envelope, result| {
        if let Ok(made) = result {
            envelope.raw("\"ciphertext\":");
            envelope.versioned(made.version, &made.bytes);
            envelope.raw(",\"key_version\":");
            envelope.number(made.version);
        }
    });
    let mut answer = close(call, envelope, &[]);
    answer.key_version = results
        .iter()
        .find_map(|r| r.as_ref().ok())
        .map_or(0, |made| made.version);
    count(&mut answer, results);
    answer
}
