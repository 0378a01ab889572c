//! The key file: two `ENCRYPTED PRIVATE KEY` blocks (PKCS #8, PBES2 with scrypt and AES-256-CBC),
//! or a reference to a token; and its `.pub`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::hazmat::PrehashSigner as _;
use p256::pkcs8::{DecodePrivateKey as _, EncodePublicKey as _, LineEnding};
use p256::{PublicKey, SecretKey};
use pkcs8::pkcs5::{pbes2, scrypt};
use pkcs8::{EncodePrivateKey as _, PrivateKeyInfoRef};
use strongroom_core::{atomic, files};
use zeroize::Zeroizing;

use super::token::Reference;
use super::{CeremonyError, Participant, ParticipantKey, PrivateKeys, Unlock};

/// A passphrase has at least as many characters.
pub const MIN_PASSPHRASE_CHARS: usize = 12;

/// scrypt's N, as a power of two: with r = 8 each guess costs 128 MiB, the first of OWASP's
/// recommended settings for passwords.
#[cfg(not(test))]
const SCRYPT_LOG_N: u8 = 17;
#[cfg(test)]
const SCRYPT_LOG_N: u8 = 4;

/// A key file's block ends with this.
const PEM_END: &str = "-----END ENCRYPTED PRIVATE KEY-----";

/// A new key file that is not written yet.
pub struct KeyFile {
    key: ParticipantKey,
    private: String,
}

impl KeyFile {
    /// Makes two keys and encrypts them. Nothing is written.
    ///
    /// # Errors
    /// [`CeremonyError::Passphrase`] if it is too short, [`CeremonyError::Participant`] for the
    /// name, [`CeremonyError::Random`].
    pub fn generate(name: &str, passphrase: &str) -> Result<Self, CeremonyError> {
        check_passphrase(passphrase)?;
        let pair = Pair {
            signing: SigningKey::from(&new_key()?),
            agreement: new_key()?,
        };
        let participant = pair.participant(name)?;
        let private = encrypt(
            &SecretKey::from(pair.signing.as_nonzero_scalar()),
            passphrase,
        )? + &encrypt(&pair.agreement, passphrase)?;
        Ok(Self {
            key: ParticipantKey::new(participant, Box::new(pair)),
            private,
        })
    }

    /// The key that it holds.
    pub fn key(&self) -> &ParticipantKey {
        &self.key
    }

    /// Writes FILE (its owner's only) and FILE.pub. Neither may be there yet.
    ///
    /// # Errors
    /// [`CeremonyError::Write`].
    pub fn write(self, path: &Path) -> Result<ParticipantKey, CeremonyError> {
        write_new(path, &self.key.participant, &self.private)?;
        Ok(self.key)
    }
}

/// The public file that belongs to a key file.
pub fn public_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

/// Refuses if either file is there: asked before anything is made that would need them.
pub(super) fn check_free(path: &Path) -> Result<(), CeremonyError> {
    for path in [path, &public_path(path)] {
        if path.try_exists().unwrap_or(true) {
            return Err(CeremonyError::write(path, ErrorKind::AlreadyExists.into()));
        }
    }
    Ok(())
}

/// Writes a key file and its public file, both new.
pub(super) fn write_new(
    path: &Path,
    participant: &Participant,
    private: &str,
) -> Result<(), CeremonyError> {
    let public = public_path(path);
    // The public one first: if it is there already, no private key is left behind that nobody can
    // use.
    for (path, mode, text) in [
        (public.as_path(), 0o644, participant.to_toml()),
        (path, 0o600, private.to_owned()),
    ] {
        atomic::create(path, text.as_bytes(), mode)
            .map_err(|error| CeremonyError::write(path, error))?;
    }
    Ok(())
}

pub(super) fn load(
    path: &Path,
    unlock: &mut dyn FnMut(Unlock<'_>) -> Result<Zeroizing<String>, CeremonyError>,
) -> Result<ParticipantKey, CeremonyError> {
    let participant = Participant::load(&public_path(path))?;
    let text = files::read_to_string(path, files::MAX_WRITTEN_BY_HAND)
        .map_err(|error| CeremonyError::read(path, error))?;
    if let Some(reference) = Reference::parse(&text) {
        return reference.open(participant, unlock);
    }
    let blocks: Vec<&str> = text
        .split_inclusive(PEM_END)
        .filter(|block| block.contains(PEM_END))
        .collect();
    let [signing, agreement] = blocks[..] else {
        return Err(CeremonyError::Key(format!(
            "{} is not a participant's key file: it must hold two encrypted private keys, as `strongroom ceremony custodian new` writes them",
            path.display()
        )));
    };
    let passphrase = unlock(Unlock::Passphrase {
        name: participant.name(),
        path,
    })?;
    let refuse = || {
        CeremonyError::Key(format!(
            "{} does not open: the passphrase is wrong, or the file is damaged; try again",
            path.display()
        ))
    };
    let decrypt = |block: &str| {
        SecretKey::from_pkcs8_encrypted_pem(block.trim_start(), passphrase.as_bytes())
            .map_err(|_| refuse())
    };
    let pair = Pair {
        signing: SigningKey::from(&decrypt(signing)?),
        agreement: decrypt(agreement)?,
    };
    if pair.participant(participant.name())? != participant {
        return Err(CeremonyError::Key(format!(
            "{} and {} are not of one pair: take the .pub file that was made with this key",
            path.display(),
            public_path(path).display()
        )));
    }
    Ok(ParticipantKey::new(participant, Box::new(pair)))
}

/// Private keys in this process's memory; both types overwrite themselves when they are dropped.
struct Pair {
    signing: SigningKey,
    agreement: SecretKey,
}

impl Pair {
    fn participant(&self, name: &str) -> Result<Participant, CeremonyError> {
        let spki = |key: &PublicKey| {
            key.to_public_key_der()
                .map(|der| der.as_bytes().to_vec())
                .map_err(|error| CeremonyError::Key(format!("the public key: {error}")))
        };
        Participant::new(
            name,
            &spki(&PublicKey::from(self.signing.verifying_key()))?,
            &spki(&self.agreement.public_key())?,
        )
    }
}

impl PrivateKeys for Pair {
    fn sign_digest(&self, digest: &[u8; 32]) -> Result<[u8; 64], CeremonyError> {
        let signature: p256::ecdsa::Signature = self
            .signing
            .sign_prehash(digest)
            .map_err(|error| CeremonyError::Key(format!("signing failed: {error}")))?;
        Ok(signature.to_bytes().into())
    }

    fn agree(&self, peer: &PublicKey) -> Result<Zeroizing<[u8; 32]>, CeremonyError> {
        let shared =
            p256::ecdh::diffie_hellman(self.agreement.to_nonzero_scalar(), peer.as_affine());
        let mut secret = Zeroizing::new([0; 32]);
        secret.copy_from_slice(shared.raw_secret_bytes());
        Ok(secret)
    }
}

/// A P-256 key from the kernel's generator.
pub(crate) fn new_key() -> Result<SecretKey, CeremonyError> {
    let mut bytes = Zeroizing::new([0; 32]);
    loop {
        getrandom::fill(&mut *bytes).map_err(|_| CeremonyError::Random)?;
        // Once in 2^32 times the number is not below the group's order.
        if let Ok(key) = SecretKey::from_slice(&*bytes) {
            return Ok(key);
        }
    }
}

fn check_passphrase(passphrase: &str) -> Result<(), CeremonyError> {
    if passphrase.chars().count() < MIN_PASSPHRASE_CHARS {
        return Err(CeremonyError::Passphrase(format!(
            "the passphrase must have at least {MIN_PASSPHRASE_CHARS} characters: five words that do not belong together are easy to keep in mind"
        )));
    }
    Ok(())
}

fn encrypt(key: &SecretKey, passphrase: &str) -> Result<String, CeremonyError> {
    let fail = |error: &dyn std::fmt::Display| {
        CeremonyError::Key(format!("the private key could not be encrypted: {error}"))
    };
    let (mut salt, mut iv) = ([0; 16], [0; 16]);
    getrandom::fill(&mut salt).map_err(|_| CeremonyError::Random)?;
    getrandom::fill(&mut iv).map_err(|_| CeremonyError::Random)?;
    let cost = scrypt::Params::new(SCRYPT_LOG_N, 8, 1).map_err(|error| fail(&error))?;
    let parameters = pbes2::Parameters::generate_scrypt_aes256cbc(cost, &salt, iv)
        .map_err(|error| fail(&error))?;
    let plain = key.to_pkcs8_der().map_err(|error| fail(&error))?;
    let info = PrivateKeyInfoRef::try_from(plain.as_bytes()).map_err(|error| fail(&error))?;
    let sealed = info
        .encrypt_with_params(parameters, passphrase)
        .map_err(|error| fail(&error))?;
    let pem = sealed
        .to_pem("ENCRYPTED PRIVATE KEY", LineEnding::LF)
        .map_err(|error| fail(&error))?;
    Ok(pem.as_str().to_owned())
}
