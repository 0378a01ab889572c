//! `strongroom key import`: BYOK as Vault does it. The key is wrapped here, and unwrapped in the
//! token.

use std::path::PathBuf;

use aes_kw::KwpAes256;
use aes_kw::cipher::KeyInit as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, ValueEnum};
use getrandom::SysRng;
use rsa::pkcs8::DecodePublicKey as _;
use rsa::{Oaep, PublicKey};
use serde::Deserialize;
use serde_json::json;
use sha1::Sha1;
use sha2::Sha256;
use strongroom_core::keyring::KeyName;
use zeroize::Zeroizing;

use super::exit::{Exit, Failure};
use super::files;
use super::output::Format;
use super::remote::{Remote, block_on};

#[derive(Args, Debug)]
pub(super) struct ImportArgs {
    /// Name of the new key
    name: KeyName,
    /// File with the key, 32 raw bytes; - is standard input
    #[arg(long = "in", value_name = "FILE")]
    input: PathBuf,
    /// Hash of RSA-OAEP and its MGF1: sha1 where the HSM supports no other, as SoftHSM 2
    #[arg(long, default_value = "sha256")]
    oaep_hash: OaepHash,
    /// Allow `key rotate`, which creates later versions in the HSM
    #[arg(long)]
    allow_rotation: bool,
    /// Derive a key for each context, which every operation must then name
    #[arg(long)]
    derived: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OaepHash {
    Sha256,
    Sha1,
}

impl OaepHash {
    /// As Vault's `hash_function` names it.
    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "SHA256",
            Self::Sha1 => "SHA1",
        }
    }
}

pub(super) fn run(args: &ImportArgs, remote: &Remote, format: Format) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct WrappingKey {
        public_key: String,
    }
    let key = files::read(&args.input)?;
    if key.len() != 32 {
        return Err(Failure::new(
            Exit::Usage,
            format!(
                "{} holds {} bytes; an AES-256 key has 32",
                args.input.display(),
                key.len()
            ),
        )
        .next("give raw bytes, neither hexadecimal nor base64, without a newline"));
    }
    block_on(async {
        let client = remote.client()?;
        let wrapping: WrappingKey = client
            .data("GET", &remote.path("wrapping_key"), None)
            .await?;
        let body = json!({
            "ciphertext": STANDARD.encode(wrap(&wrapping.public_key, args.oaep_hash, &key)?),
            "hash_function": args.oaep_hash.name(),
            "type": "aes256-gcm96",
            "allow_rotation": args.allow_rotation,
            "derived": args.derived,
        });
        let path = remote.path(&format!("keys/{}/import", args.name));
        client.call("POST", &path, Some(&body)).await?;
        format.either(
            &format!("{} is imported", args.name),
            &json!({"imported": args.name}),
        )
    })
}

/// RSA-OAEP(wrapping key, an AES key of this moment) || AES-KWP(that key, the key).
fn wrap(public_key: &str, hash: OaepHash, key: &[u8]) -> Result<Vec<u8>, Failure> {
    let fail = |what: &str| Failure::new(Exit::Failed, format!("the key can't be wrapped: {what}"));
    let public_key = PublicKey::from_public_key_pem(public_key.trim())
        .map_err(|error| fail(&format!("the appliance's wrapping key: {error}")))?;
    let mut ephemeral = Zeroizing::new([0_u8; 32]);
    getrandom::fill(&mut *ephemeral).map_err(|error| fail(&error.to_string()))?;
    let mut rng = SysRng;
    let mut wrapped = match hash {
        OaepHash::Sha256 => public_key.encrypt(&mut rng, Oaep::<Sha256>::new(), &*ephemeral),
        OaepHash::Sha1 => public_key.encrypt(&mut rng, Oaep::<Sha1>::new(), &*ephemeral),
    }
    .map_err(|error| fail(&error.to_string()))?;
    let mut buffer = vec![0_u8; key.len().next_multiple_of(8) + 8];
    let target = KwpAes256::new(&(*ephemeral).into())
        .wrap_key(key, &mut buffer)
        .map_err(|error| fail(&error.to_string()))?;
    wrapped.extend_from_slice(target);
    Ok(wrapped)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rsa::PrivateKey;
    use rsa::pkcs8::{EncodePublicKey as _, LineEnding};

    #[test]
    fn what_is_wrapped_unwraps() {
        // 2048 bits: only the form is tested, and 4096 take seconds to make.
        let private = PrivateKey::new(&mut SysRng, 2048).unwrap();
        let pem = private
            .to_public_key()
            .to_public_key_pem(LineEnding::LF)
            .unwrap();
        let key = [7_u8; 32];
        let wrapped = wrap(&pem, OaepHash::Sha256, &key).unwrap();
        let (rsa, kwp) = wrapped.split_at(256);
        let ephemeral: [u8; 32] = private
            .decrypt(Oaep::<Sha256>::new(), rsa)
            .unwrap()
            .as_slice()
            .try_into()
            .unwrap();
        let mut buffer = [0_u8; 40];
        let opened = KwpAes256::new(&ephemeral.into())
            .unwrap_key(kwp, &mut buffer)
            .unwrap();
        assert_eq!(opened, key);
    }
}
