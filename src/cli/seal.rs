//! What Vault's transit seal asks of an appliance, and nothing else: the same requests in the same
//! order.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use strongroom_client::{Client, ClientError, SecretText};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::exit::{Exit, Failure};
use super::remote::Remote;

/// What a round trip showed.
pub(super) struct RoundTrip {
    /// The test value, encrypted: `vault:v<N>:…`.
    pub(super) ciphertext: String,
    /// From the first request to the last answer.
    pub(super) took: Duration,
}

impl RoundTrip {
    /// The key version that encrypted, as it stands in the ciphertext.
    pub(super) fn key_version(&self) -> &str {
        let version = self.ciphertext.split(':').nth(1).unwrap_or_default();
        version.trim_start_matches('v')
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "sealed_and_unsealed": true,
            "key_version": self.key_version(),
            "ciphertext": self.ciphertext,
            "milliseconds": self.took.as_secs_f64() * 1e3,
        })
    }
}

/// What makes a Vault or OpenBao unseal with `key`, for its configuration.
pub(super) fn stanza(remote: &Remote, key: &str) -> String {
    let shown = |path: &Option<PathBuf>| {
        path.as_deref()
            .map_or_else(String::new, |path| path.display().to_string())
    };
    format!(
        "seal \"transit\" {{\n  \
           address         = \"{}\"\n  \
           mount_path      = \"{}/\"\n  \
           key_name        = \"{key}\"\n  \
           disable_renewal = \"true\"\n  \
           tls_ca_cert     = \"{}\"\n  \
           tls_client_cert = \"{}\"\n  \
           tls_client_key  = \"{}\"\n\
         }}",
        remote.addr(),
        remote.mount,
        shown(&remote.cacert),
        shown(&remote.client_cert),
        shown(&remote.client_key),
    )
}

/// Seals a random value with `key`, unseals it, and compares.
pub(super) async fn round_trip(
    client: &Client,
    remote: &Remote,
    key: &str,
) -> Result<RoundTrip, Failure> {
    let started = Instant::now();
    if remote.token_file.is_some() {
        renew(client).await?;
    }
    let mut secret = Zeroizing::new([0_u8; 32]);
    getrandom::fill(&mut *secret)
        .map_err(|error| Failure::new(Exit::Failed, format!("no random bytes: {error}")))?;
    let ciphertext = seal(client, remote, key, &*secret).await?;
    let opened = unseal(client, remote, key, &ciphertext).await?;
    if !bool::from(opened.ct_eq(&*secret)) {
        return Err(Failure::new(
            Exit::Failed,
            "what was unsealed is not what was sealed",
        ));
    }
    let took = started.elapsed();
    Ok(RoundTrip { ciphertext, took })
}

/// `PUT <mount>/encrypt/<key>`; Vault's seal takes the answer only if it has three parts.
pub(super) async fn seal(
    client: &Client,
    remote: &Remote,
    key: &str,
    plaintext: &[u8],
) -> Result<String, Failure> {
    #[derive(Serialize)]
    struct Plaintext {
        plaintext: SecretText,
    }
    #[derive(Deserialize)]
    struct Sealed {
        ciphertext: String,
    }
    let body = Plaintext {
        plaintext: SecretText::new(STANDARD.encode(plaintext)),
    };
    let path = remote.path(&format!("encrypt/{key}"));
    let sealed: Sealed = client.data_for("PUT", &path, &body).await?;
    let parts: Vec<&str> = sealed.ciphertext.split(':').collect();
    if let ["vault", version, _] = parts.as_slice()
        && version.starts_with('v')
    {
        return Ok(sealed.ciphertext);
    }
    Err(Failure::new(
        Exit::Failed,
        "the ciphertext is not of the form vault:v<version>:<base64>",
    ))
}

/// `PUT <mount>/decrypt/<key>`.
pub(super) async fn unseal(
    client: &Client,
    remote: &Remote,
    key: &str,
    ciphertext: &str,
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let body = json!({"ciphertext": ciphertext});
    let path = remote.path(&format!("decrypt/{key}"));
    let opened: Opened = client.data("PUT", &path, Some(&body)).await?;
    opened.bytes()
}

/// The `data` of a `decrypt` or `datakey/plaintext`.
#[derive(Deserialize)]
pub(super) struct Opened {
    plaintext: SecretText,
}

impl Opened {
    pub(super) fn bytes(&self) -> Result<Zeroizing<Vec<u8>>, Failure> {
        STANDARD
            .decode(self.plaintext.as_str())
            .map(Zeroizing::new)
            .map_err(|_| Failure::new(Exit::Failed, "the plaintext in the answer is not base64"))
    }
}

/// The seal's client renews its token first; a refusal is tolerated, as it does.
async fn renew(client: &Client) -> Result<(), Failure> {
    let body = json!({});
    match client
        .call("PUT", "auth/token/renew-self", Some(&body))
        .await
    {
        Ok(_) | Err(ClientError::Refused { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
