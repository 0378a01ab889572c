//! A first seal and unseal, with nothing kept.

use std::sync::Arc;

use serde_json::{Value, json};
use strongroom_hsm::{GcmItem, Hsm, HsmError, KeyUsage, MasterKind, WrappedKey};
use zeroize::Zeroizing;

use super::outputs::Outputs;
use super::{Act, Ceremony, Found, RunError, hex};

pub(super) const ACT: Act = Act {
    title: "Try a seal and an unseal",
    what: "The token makes a key under the master key, seals a random value with it, unseals it, and must refuse the same ciphertext \
           with one bit changed. The key is then forgotten.",
    why: "What was made must work before anybody leaves the room.",
    who: |_| "the machine; all watch".to_owned(),
    actors: super::everyone,
    ready: "Shall it be tried?",
    needs_pins: true,
    inputs: |ceremony| Ok(json!({"token_serial": ceremony.token_serial()?})),
    recover: |_| {
        Ok(Found {
            text: "a trial keeps nothing: it is done once more".to_owned(),
            data: Value::Null,
        })
    },
    run,
};

const AAD: &[u8] = b"strongroom ceremony trial";

fn run(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let config = ceremony.hsm_config()?;
    ceremony
        .ui
        .working(Some("making a key, sealing, unsealing"));
    let tried = ceremony.block_on(async move {
        let hsm = Hsm::start(config)?;
        let tried = seal_and_unseal(&hsm).await;
        drop(hsm);
        tried
    });
    ceremony.ui.working(None);
    let fingerprint = tried?;
    ceremony
        .ui
        .say("Sealed, unsealed, and the altered ciphertext was refused.")?;
    Ok(Outputs::Trial {
        sealed: true,
        unsealed: true,
        altered_refused: true,
        kept: "nothing",
        master_fingerprint: hex(&fingerprint),
    })
}

async fn seal_and_unseal(hsm: &Hsm) -> Result<[u8; 16], RunError> {
    let key = Arc::new(hsm.generate_key(KeyUsage::Aead, MasterKind::Hsm).await?);
    let mut value = Zeroizing::new(vec![0; 32]);
    let mut iv = [0; 12];
    getrandom::fill(&mut value).map_err(|_| RunError::random())?;
    getrandom::fill(&mut iv).map_err(|_| RunError::random())?;
    let sealed = one(hsm.encrypt(vec![item(&key, iv, value.clone())]).await)?;
    let opened = one(hsm
        .decrypt(vec![item(&key, iv, Zeroizing::new(sealed.clone()))])
        .await)?;
    if *opened != *value {
        return Err(RunError::refused(
            "the token unsealed something else than was sealed: it must not be used",
        ));
    }
    let mut altered = Zeroizing::new(sealed);
    if let Some(byte) = altered.first_mut() {
        *byte ^= 1;
    }
    match one(hsm.decrypt(vec![item(&key, iv, altered)]).await) {
        Err(HsmError::Authentication) => {}
        Ok(_) => {
            return Err(RunError::refused(
                "the token took an altered ciphertext for a good one: it must not be used",
            ));
        }
        Err(error) => return Err(error.into()),
    }
    hsm.forget(vec![key.id]).await?;
    Ok(key.master_fingerprint)
}

fn item(key: &Arc<WrappedKey>, iv: [u8; 12], data: Zeroizing<Vec<u8>>) -> GcmItem {
    GcmItem {
        key: Arc::clone(key),
        iv,
        aad: AAD.to_vec(),
        data,
    }
}

/// The result of a batch of one.
fn one<T>(batch: strongroom_hsm::Batch<T>) -> Result<T, HsmError> {
    batch?.pop().unwrap_or_else(|| {
        Err(HsmError::Unavailable(
            "the token answered nothing".to_owned(),
        ))
    })
}
